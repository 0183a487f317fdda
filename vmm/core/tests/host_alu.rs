// SPDX-License-Identifier: MIT OR Apache-2.0
//! Does the emulator's arithmetic give the results and flags of the processor that runs this test?
#![cfg(target_arch = "x86_64")]

use std::arch::asm;
use umbra_vmm_core::emulate::alu::{self, STATUS, Shift, mask};
use umbra_vmm_core::vcpu::rflags::{AF, CF, OF, PF, SF, ZF};

/// An operation on the host: operands a, b, flags in → a afterwards, flags out.
type Host = fn(u64, u64, u64) -> (u64, u64);

macro_rules! two_operands {
    ($($name:ident $a:literal $b:literal;)*) => { $(

        pub fn $name(mut a: u64, b: u64, flags: u64) -> (u64, u64) {
            let out: u64;
            // SAFETY: only registers and status flags change; the stack is balanced.
            unsafe {
                asm!(
                    "push {f}", "popfq",
                    concat!(stringify!($name), " ", $a, ", ", $b),
                    "pushfq", "pop {o}",
                    a = inout(reg_abcd) a, b = in(reg_abcd) b, f = in(reg) flags, o = lateout(reg) out,
                );
            }
            (a, out)
        }
    )* };
}

mod s1 {
    use super::*;
    two_operands! { add "{a:l}" "{b:l}"; adc "{a:l}" "{b:l}"; sub "{a:l}" "{b:l}"; sbb "{a:l}" "{b:l}"; and "{a:l}" "{b:l}"; or "{a:l}" "{b:l}"; xor "{a:l}" "{b:l}"; }
}
mod s2 {
    use super::*;
    two_operands! { add "{a:x}" "{b:x}"; adc "{a:x}" "{b:x}"; sub "{a:x}" "{b:x}"; sbb "{a:x}" "{b:x}"; and "{a:x}" "{b:x}"; or "{a:x}" "{b:x}"; xor "{a:x}" "{b:x}"; imul "{a:x}" "{b:x}"; }
}
mod s4 {
    use super::*;
    two_operands! { add "{a:e}" "{b:e}"; adc "{a:e}" "{b:e}"; sub "{a:e}" "{b:e}"; sbb "{a:e}" "{b:e}"; and "{a:e}" "{b:e}"; or "{a:e}" "{b:e}"; xor "{a:e}" "{b:e}"; imul "{a:e}" "{b:e}"; }
}
mod s8 {
    use super::*;
    two_operands! { add "{a:r}" "{b:r}"; adc "{a:r}" "{b:r}"; sub "{a:r}" "{b:r}"; sbb "{a:r}" "{b:r}"; and "{a:r}" "{b:r}"; or "{a:r}" "{b:r}"; xor "{a:r}" "{b:r}"; imul "{a:r}" "{b:r}"; }
}

macro_rules! shifts {
    ($module:ident $a:literal: $($name:ident)*) => {
        mod $module {
            use super::*;
            $(
                pub fn $name(mut a: u64, count: u64, flags: u64) -> (u64, u64) {
                    let out: u64;
                    // SAFETY: only registers and status flags change; the stack is balanced.
                    unsafe {
                        asm!(
                            "push {f}", "popfq",
                            concat!(stringify!($name), " ", $a, ", cl"),
                            "pushfq", "pop {o}",
                            a = inout(reg_abcd) a, in("rcx") count, f = in(reg) flags, o = lateout(reg) out,
                        );
                    }
                    (a, out)
                }
            )*
        }
    };
}
shifts!(h1 "{a:l}": shl shr sar rol ror rcl rcr);
shifts!(h2 "{a:x}": shl shr sar rol ror rcl rcr);
shifts!(h4 "{a:e}": shl shr sar rol ror rcl rcr);
shifts!(h8 "{a:r}": shl shr sar rol ror rcl rcr);

macro_rules! double_shifts {
    ($module:ident $a:literal $b:literal) => {
        mod $module {
            use super::*;
            pub fn shld(a: u64, b: u64, count: u64, flags: u64) -> (u64, u64) {
                double_shifts!(@one "shld" $a $b a b count flags)
            }
            pub fn shrd(a: u64, b: u64, count: u64, flags: u64) -> (u64, u64) {
                double_shifts!(@one "shrd" $a $b a b count flags)
            }
        }
    };
    (@one $name:literal $a:literal $b:literal $va:ident $vb:ident $count:ident $flags:ident) => {{
        let (mut a, out): (u64, u64) = ($va, 0);
        let mut out = out;
        // SAFETY: only registers and status flags change; the stack is balanced.
        unsafe {
            asm!(
                "push {f}", "popfq",
                concat!($name, " ", $a, ", ", $b, ", cl"),
                "pushfq", "pop {o}",
                a = inout(reg) a, b = in(reg) $vb, in("rcx") $count, f = in(reg) $flags, o = inout(reg) out,
            );
        }
        let _ = &mut out;
        (a, out)
    }};
}
double_shifts!(d4 "{a:e}" "{b:e}");
double_shifts!(d8 "{a:r}" "{b:r}");

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    /// Numbers with many edge cases among them.
    fn operand(&mut self) -> u64 {
        let r = self.next();
        match self.next() % 6 {
            0 => r & 0xff,
            1 => 1 << (r & 63),
            2 => (1 << (r & 63)) - 1,
            3 => !(r & 0xff),
            _ => r,
        }
    }
}

const ROUNDS: usize = 20_000;

fn compare(name: &str, size: u8, host: Host, ours: impl Fn(u64, u64, u64) -> (u64, u64), defined: u64) {
    let mut random = Random(0x1234_5678_9abc_def1);
    for _ in 0..ROUNDS {
        let (a, b, flags) = (random.operand(), random.operand(), random.next() & STATUS | 2);
        let (want, want_flags) = host(a, b, flags);
        let (got, got_flags) = ours(a, b, flags);
        assert_eq!(
            got & mask(size),
            want & mask(size),
            "{name}{size} {a:#x} {b:#x} flags {flags:#x}"
        );
        assert_eq!(
            got_flags & defined,
            want_flags & defined,
            "{name}{size} {a:#x} {b:#x} flags {flags:#x}"
        );
    }
}

#[test]
fn two_operand_arithmetic_is_the_processors() {
    macro_rules! each {
        ($($size:literal $m:ident),*) => { $(
            compare("add", $size, $m::add, |a, b, _| alu::add(a, b, 0, $size), STATUS);
            compare("adc", $size, $m::adc, |a, b, f| alu::add(a, b, f & CF, $size), STATUS);
            compare("sub", $size, $m::sub, |a, b, _| alu::sub(a, b, 0, $size), STATUS);
            compare("sbb", $size, $m::sbb, |a, b, f| alu::sub(a, b, f & CF, $size), STATUS);
            compare("and", $size, $m::and, |a, b, _| alu::logic(a & b, $size), STATUS & !AF);
            compare("or", $size, $m::or, |a, b, _| alu::logic(a | b, $size), STATUS & !AF);
            compare("xor", $size, $m::xor, |a, b, _| alu::logic(a ^ b, $size), STATUS & !AF);
        )* };
    }
    each!(1 s1, 2 s2, 4 s4, 8 s8);
    macro_rules! multiply {
        ($($size:literal $m:ident),*) => { $(
            compare("imul", $size, $m::imul, |a, b, f| {
                let (low, _, flags) = alu::imul(a, b, f, $size);
                (low, flags)
            }, CF | OF);
        )* };
    }
    multiply!(2 s2, 4 s4, 8 s8);
}

#[test]
fn shifts_and_rotates_are_the_processors() {
    macro_rules! each {
        ($($size:literal $m:ident),*) => { $(
            for count in 0..=255u8 {
                let bits = 8 * $size as u8;
                let masked = count & if $size == 8 { 63 } else { 31 };
                // Undefined: OF beyond one bit; CF of SHL and SHR beyond the operand; AF of shifts.
                let of = if masked <= 1 { OF } else { 0 };
                let cf = if masked <= bits { CF } else { 0 };
                let af = if masked == 0 { AF } else { 0 };
                let shift = PF | ZF | SF | of | af;
                let rotate = CF | PF | AF | ZF | SF | of;
                let run = |name, host: Host, op, defined| {
                    let mut random = Random(0xfeed_0000 + u64::from(count));
                    for _ in 0..200 {
                        let (a, flags) = (random.operand(), random.next() & STATUS | 2);
                        let (want, want_flags) = host(a, count.into(), flags);
                        let (got, got_flags) = alu::shift(op, a, count, flags, $size);
                        assert_eq!(got, want & mask($size), "{name}{} {a:#x} by {count}", $size);
                        assert_eq!(got_flags & defined, want_flags & defined, "{name}{} {a:#x} by {count} flags {flags:#x}", $size);
                    }
                };
                run("shl", $m::shl, Shift::Shl, shift | cf);
                run("shr", $m::shr, Shift::Shr, shift | cf);
                run("sar", $m::sar, Shift::Sar, shift | CF);
                run("rol", $m::rol, Shift::Rol, rotate);
                run("ror", $m::ror, Shift::Ror, rotate);
                run("rcl", $m::rcl, Shift::Rcl, rotate);
                run("rcr", $m::rcr, Shift::Rcr, rotate);
            }
        )* };
    }
    each!(1 h1, 2 h2, 4 h4, 8 h8);
}

#[test]
fn double_shifts_are_the_processors() {
    macro_rules! each {
        ($($size:literal $m:ident),*) => { $(
            for count in 0..=255u8 {
                let masked = count & if $size == 8 { 63 } else { 31 };
                let of = if masked <= 1 { OF } else { 0 };
                let defined = CF | PF | ZF | SF | of;
                let mut random = Random(0xbeef_0000 + u64::from(count));
                for _ in 0..200 {
                    let (a, b, flags) = (random.operand(), random.operand(), random.next() & STATUS | 2);
                    for (left, host) in [(true, $m::shld as fn(u64, u64, u64, u64) -> (u64, u64)), (false, $m::shrd)] {
                        let (want, want_flags) = host(a, b, count.into(), flags);
                        let (got, got_flags) = alu::double_shift(left, a, b, count, flags, $size);
                        assert_eq!(got, want & mask($size), "left {left} {} {a:#x} {b:#x} by {count}", $size);
                        assert_eq!(got_flags & defined, want_flags & defined, "left {left} {a:#x} {b:#x} by {count}");
                    }
                }
            }
        )* };
    }
    each!(4 d4, 8 d8);
}

#[test]
fn wide_products_and_quotients_are_exact() {
    let mut random = Random(0x0dd_ba11);
    for _ in 0..ROUNDS {
        let (a, b) = (random.operand(), random.operand());
        for size in [1u8, 2, 4, 8] {
            let (low, high, _) = alu::mul(a, b, 0, size);
            let wide = u128::from(high) << (8 * u32::from(size)) | u128::from(low);
            assert_eq!(wide, u128::from(a & mask(size)) * u128::from(b & mask(size)));
            if b & mask(size) != 0 {
                // What was multiplied divides back.
                assert_eq!(alu::div(low, high, b, size), Some((a & mask(size), 0)));
                let (low, high, _) = alu::imul(a, b, 0, size);
                assert_eq!(
                    alu::idiv(low, high, b, size),
                    Some((a & mask(size), 0)),
                    "{a:#x} {b:#x} {size}"
                );
            }
            assert_eq!(alu::div(low, high, 0, size), None);
        }
    }
    assert_eq!(alu::idiv(0x80, 0xff, 0xff, 1), None, "-128 / -1 overflows");
    assert_eq!(alu::div(0, 1, 1, 8), None);
}
