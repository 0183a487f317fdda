// SPDX-License-Identifier: MIT OR Apache-2.0
//! Integer arithmetic with exact flags, for operands of 1, 2, 4 and 8 bytes.

use crate::vcpu::rflags::{AF, CF, OF, PF, SF, ZF};

/// The six flags that arithmetic sets.
pub const STATUS: u64 = CF | PF | AF | ZF | SF | OF;

/// All ones in `size` bytes.
#[inline]
pub const fn mask(size: u8) -> u64 {
    u64::MAX >> (64 - 8 * size as u32)
}

/// The sign bit of `size` bytes.
#[inline]
pub const fn sign_bit(size: u8) -> u64 {
    1 << (8 * size as u32 - 1)
}

/// `value` of `size` bytes as a signed number.
#[inline]
pub const fn sign_extend(value: u64, size: u8) -> u64 {
    let shift = 64 - 8 * size as u32;
    ((value << shift) as i64 >> shift) as u64
}

/// A result and the status flags that go with it.
pub type Flagged = (u64, u64);

#[inline]
fn szp(value: u64, size: u8) -> u64 {
    let zero = if value & mask(size) == 0 { ZF } else { 0 };
    let sign = if value & sign_bit(size) != 0 { SF } else { 0 };
    let parity = if (value as u8).count_ones() & 1 == 0 { PF } else { 0 };
    zero | sign | parity
}

/// ADD and ADC (`carry` 0 or 1).
pub fn add(a: u64, b: u64, carry: u64, size: u8) -> Flagged {
    let (a, b) = (a & mask(size), b & mask(size));
    let wide = a as u128 + b as u128 + carry as u128;
    let r = wide as u64 & mask(size);
    let cf = if wide > mask(size) as u128 { CF } else { 0 };
    let of = if (a ^ r) & (b ^ r) & sign_bit(size) != 0 { OF } else { 0 };
    (r, cf | of | ((a ^ b ^ r) & AF) | szp(r, size))
}

/// SUB, SBB and CMP (`borrow` 0 or 1).
pub fn sub(a: u64, b: u64, borrow: u64, size: u8) -> Flagged {
    let (a, b) = (a & mask(size), b & mask(size));
    let r = a.wrapping_sub(b).wrapping_sub(borrow) & mask(size);
    let cf = if (a as u128) < b as u128 + borrow as u128 {
        CF
    } else {
        0
    };
    let of = if (a ^ b) & (a ^ r) & sign_bit(size) != 0 { OF } else { 0 };
    (r, cf | of | ((a ^ b ^ r) & AF) | szp(r, size))
}

/// Flags of AND, OR, XOR and TEST: CF = OF = 0, AF is undefined and cleared as processors do.
pub fn logic(r: u64, size: u8) -> Flagged {
    let r = r & mask(size);
    (r, szp(r, size))
}

/// INC: as ADD 1, CF kept.
pub fn inc(a: u64, flags: u64, size: u8) -> Flagged {
    let (r, f) = add(a, 1, 0, size);
    (r, (f & !CF) | (flags & CF))
}

/// DEC: as SUB 1, CF kept.
pub fn dec(a: u64, flags: u64, size: u8) -> Flagged {
    let (r, f) = sub(a, 1, 0, size);
    (r, (f & !CF) | (flags & CF))
}

/// Shifts and rotates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Shift {
    Shl,
    Shr,
    Sar,
    Rol,
    Ror,
    Rcl,
    Rcr,
}

/// A shift or rotate by `count` (as encoded, before masking). Flags that the manual leaves undefined keep their old value
/// (AF) or follow the one-bit rule (OF).
pub fn shift(op: Shift, a: u64, count: u8, flags: u64, size: u8) -> Flagged {
    let bits = 8 * size as u32;
    let count = (count & if size == 8 { 63 } else { 31 }) as u32;
    let a = a & mask(size);
    if count == 0 {
        return (a, flags & STATUS);
    }
    let top = |v: u64| v & sign_bit(size) != 0;
    let flag = |set: bool, f: u64| if set { f } else { 0 };
    match op {
        Shift::Shl => {
            let wide = (a as u128) << count;
            let r = wide as u64 & mask(size);
            let cf = wide >> bits & 1 != 0;
            (r, flag(cf, CF) | flag(top(r) != cf, OF) | (flags & AF) | szp(r, size))
        }
        Shift::Shr => {
            let r = ((a as u128) >> count) as u64;
            let cf = (a as u128) >> (count - 1) & 1 != 0;
            (r, flag(cf, CF) | flag(top(a), OF) | (flags & AF) | szp(r, size))
        }
        Shift::Sar => {
            let wide = sign_extend(a, size) as i64 as i128;
            let r = (wide >> count) as u64 & mask(size);
            let cf = wide >> (count - 1) & 1 != 0;
            (r, flag(cf, CF) | (flags & AF) | szp(r, size))
        }
        Shift::Rol => {
            let n = count % bits;
            let r = if n == 0 {
                a
            } else {
                (a << n | a >> (bits - n)) & mask(size)
            };
            let cf = r & 1 != 0;
            (r, (flags & STATUS & !(CF | OF)) | flag(cf, CF) | flag(top(r) != cf, OF))
        }
        Shift::Ror => {
            let n = count % bits;
            let r = if n == 0 {
                a
            } else {
                (a >> n | a << (bits - n)) & mask(size)
            };
            let cf = top(r);
            (
                r,
                (flags & STATUS & !(CF | OF)) | flag(cf, CF) | flag(cf != (r & sign_bit(size) >> 1 != 0), OF),
            )
        }
        Shift::Rcl | Shift::Rcr => rotate_through_carry(op, a, count % (bits + 1), flags, size),
    }
}

fn rotate_through_carry(op: Shift, a: u64, count: u32, flags: u64, size: u8) -> Flagged {
    let (mut r, mut carry) = (a, flags & CF != 0);
    let mut overflow = flags & OF != 0;
    for _ in 0..count {
        if op == Shift::Rcl {
            let out = r & sign_bit(size) != 0;
            r = (r << 1 & mask(size)) | u64::from(carry);
            carry = out;
            overflow = (r & sign_bit(size) != 0) != carry;
        } else {
            overflow = (r & sign_bit(size) != 0) != carry;
            let out = r & 1 != 0;
            r = r >> 1 | if carry { sign_bit(size) } else { 0 };
            carry = out;
        }
    }
    let f = (flags & STATUS & !(CF | OF)) | if carry { CF } else { 0 } | if overflow { OF } else { 0 };
    (r, f)
}

/// SHLD (`left`) and SHRD: bits of `b` move into `a`. Counts above the operand size (16-bit operands) leave the manual's
/// rules; the result is then that of the double-width value, as processors do.
pub fn double_shift(left: bool, a: u64, b: u64, count: u8, flags: u64, size: u8) -> Flagged {
    let bits = 8 * size as u32;
    let count = (count & if size == 8 { 63 } else { 31 }) as u32;
    let (a, b) = (a & mask(size), b & mask(size));
    if count == 0 {
        return (a, flags & STATUS);
    }
    let (r, cf) = if left {
        // a:b:a, so that a 16-bit count above 16 continues with `a`.
        let wide = (a as u128) << (2 * bits % 128) | (b as u128) << bits | if bits == 16 { a as u128 } else { 0 };
        if bits == 64 {
            (a << count | b >> (64 - count), a >> (64 - count) & 1 != 0)
        } else {
            let shifted = wide << count;
            (
                (shifted >> (2 * bits)) as u64 & mask(size),
                shifted >> (3 * bits) & 1 != 0,
            )
        }
    } else if bits == 64 {
        (a >> count | b << (64 - count), a >> (count - 1) & 1 != 0)
    } else {
        let wide = (a as u128) | (b as u128) << bits | (a as u128) << (2 * bits);
        ((wide >> count) as u64 & mask(size), wide >> (count - 1) & 1 != 0)
    };
    let of = (r ^ a) & sign_bit(size) != 0;
    (
        r,
        if cf { CF } else { 0 } | if of { OF } else { 0 } | (flags & AF) | szp(r, size),
    )
}

/// Unsigned product as (low, high, flags): CF = OF = the high half matters. SF, ZF, AF, PF are undefined and kept.
pub fn mul(a: u64, b: u64, flags: u64, size: u8) -> (u64, u64, u64) {
    let wide = (a & mask(size)) as u128 * (b & mask(size)) as u128;
    let (low, high) = (
        wide as u64 & mask(size),
        (wide >> (8 * size as u32)) as u64 & mask(size),
    );
    (
        low,
        high,
        (flags & STATUS & !(CF | OF)) | if high != 0 { CF | OF } else { 0 },
    )
}

/// Signed product as (low, high, flags).
pub fn imul(a: u64, b: u64, flags: u64, size: u8) -> (u64, u64, u64) {
    let wide = sign_extend(a, size) as i64 as i128 * sign_extend(b, size) as i64 as i128;
    let (low, high) = (
        wide as u64 & mask(size),
        (wide >> (8 * size as u32)) as u64 & mask(size),
    );
    let fits = sign_extend(low, size) as i64 as i128 == wide;
    (
        low,
        high,
        (flags & STATUS & !(CF | OF)) | if fits { 0 } else { CF | OF },
    )
}

/// Unsigned quotient and remainder of high:low; `None`: #DE.
pub fn div(low: u64, high: u64, by: u64, size: u8) -> Option<(u64, u64)> {
    let wide = (high & mask(size)) as u128 * (mask(size) as u128 + 1) + (low & mask(size)) as u128;
    let by = (by & mask(size)) as u128;
    let quotient = wide.checked_div(by)?;
    (quotient <= mask(size) as u128).then_some((quotient as u64, (wide % by) as u64))
}

/// Signed quotient and remainder of high:low; `None`: #DE.
pub fn idiv(low: u64, high: u64, by: u64, size: u8) -> Option<(u64, u64)> {
    let bits = 8 * size as u32;
    let wide = (high & mask(size)) as u128 * (mask(size) as u128 + 1) + (low & mask(size)) as u128;
    let shift = 128 - 2 * bits;
    let wide = (wide << shift) as i128 >> shift;
    let by = sign_extend(by, size) as i64 as i128;
    let quotient = wide.checked_div(by)?;
    let limit = 1i128 << (bits - 1);
    let fits = (-limit..limit).contains(&quotient);
    fits.then_some((quotient as u64 & mask(size), (wide % by) as u64 & mask(size)))
}

/// Does condition `cc` (0..=15, as encoded in Jcc) hold?
pub const fn condition(cc: u8, flags: u64) -> bool {
    let set = flags & STATUS;
    let less = (set & SF != 0) != (set & OF != 0);
    let holds = match cc >> 1 {
        0 => set & OF != 0,
        1 => set & CF != 0,
        2 => set & ZF != 0,
        3 => set & (CF | ZF) != 0,
        4 => set & SF != 0,
        5 => set & PF != 0,
        6 => less,
        _ => less || set & ZF != 0,
    };
    holds != (cc & 1 != 0)
}
