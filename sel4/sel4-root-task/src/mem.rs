// SPDX-License-Identifier: MIT OR Apache-2.0
//! How is memory copied, filled and compared?
//!
//! The compiler expects these functions. Small sizes take two overlapping accesses, larger ones `rep movsq`/`rep stosq`:
//! one tick for 8 bytes in the simulator, and no FPU register, so that a copy on the way from a VM exit to the next entry
//! does not cost a switch of FPU state. The bulk is inline assembly because a loop would be turned into a call of the
//! function itself.

use core::arch::asm;

/// Sizes from here on take a string instruction.
const BULK: usize = 32;

/// Loads `T` from any address.
macro_rules! load {
    ($from:expr, $kind:ty) => {
        $from.cast::<$kind>().read_unaligned()
    };
}

/// Stores a value to any address.
macro_rules! store {
    ($to:expr, $value:expr, $kind:ty) => {
        $to.cast::<$kind>().write_unaligned($value)
    };
}

/// Copies `n` < [`BULK`] bytes; everything is read before anything is written, so overlaps do no harm.
///
/// # Safety
/// As memmove.
#[inline(always)]
unsafe fn copy_small(to: *mut u8, from: *const u8, n: usize) {
    // SAFETY: all accesses are within the n bytes.
    unsafe {
        if n >= 16 {
            let (a, b) = (load!(from, u64), load!(from.add(8), u64));
            let (c, d) = (load!(from.add(n - 16), u64), load!(from.add(n - 8), u64));
            store!(to, a, u64);
            store!(to.add(8), b, u64);
            store!(to.add(n - 16), c, u64);
            store!(to.add(n - 8), d, u64);
        } else if n >= 8 {
            let (a, b) = (load!(from, u64), load!(from.add(n - 8), u64));
            store!(to, a, u64);
            store!(to.add(n - 8), b, u64);
        } else if n >= 4 {
            let (a, b) = (load!(from, u32), load!(from.add(n - 4), u32));
            store!(to, a, u32);
            store!(to.add(n - 4), b, u32);
        } else if n >= 2 {
            let (a, b) = (load!(from, u16), load!(from.add(n - 2), u16));
            store!(to, a, u16);
            store!(to.add(n - 2), b, u16);
        } else if n == 1 {
            *to = *from;
        }
    }
}

/// C's memcpy.
///
/// # Safety
/// See C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, n: usize) -> *mut u8 {
    // SAFETY: the caller's; the last word is read before the bulk is written and written after it.
    unsafe {
        if n < BULK {
            copy_small(to, from, n);
        } else {
            let tail = load!(from.add(n - 8), u64);
            asm!(
                "rep movsq",
                inout("rcx") n / 8 => _,
                inout("rdi") to => _,
                inout("rsi") from => _,
                options(nostack, preserves_flags)
            );
            store!(to.add(n - 8), tail, u64);
        }
    }
    to
}

/// C's memmove.
///
/// # Safety
/// See C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, n: usize) -> *mut u8 {
    // SAFETY: the caller's. Forward is right unless `to` lies inside the source; the wrapping difference says so.
    unsafe {
        if n < BULK {
            copy_small(to, from, n);
        } else if (to as usize).wrapping_sub(from as usize) >= n {
            return memcpy(to, from, n);
        } else {
            let head = load!(from, u64);
            asm!(
                "std",
                "rep movsq",
                "cld",
                inout("rcx") n / 8 => _,
                inout("rdi") to.add(n - 8) => _,
                inout("rsi") from.add(n - 8) => _,
                options(nostack)
            );
            store!(to, head, u64);
        }
    }
    to
}

/// C's memset.
///
/// # Safety
/// See C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memset(to: *mut u8, byte: i32, n: usize) -> *mut u8 {
    let word = u64::from(byte as u8) * 0x0101_0101_0101_0101;
    // SAFETY: all accesses are within the n bytes.
    unsafe {
        if n >= 8 {
            if n >= BULK {
                asm!(
                    "rep stosq",
                    inout("rcx") n / 8 => _,
                    inout("rdi") to => _,
                    in("rax") word,
                    options(nostack, preserves_flags)
                );
            } else {
                store!(to, word, u64);
                if n >= 16 {
                    store!(to.add(8), word, u64);
                    store!(to.add(n - 16), word, u64);
                }
            }
            store!(to.add(n - 8), word, u64);
        } else if n >= 4 {
            store!(to, word as u32, u32);
            store!(to.add(n - 4), word as u32, u32);
        } else if n >= 2 {
            store!(to, word as u16, u16);
            store!(to.add(n - 2), word as u16, u16);
        } else if n == 1 {
            *to = word as u8;
        }
    }
    to
}

/// C's memcmp: 8 bytes at a time, in big-endian order so that the first byte decides.
///
/// # Safety
/// See C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
    let mut at = 0;
    // SAFETY: all accesses are within the n bytes.
    unsafe {
        while n - at >= 8 {
            let (x, y) = (load!(a.add(at), u64), load!(b.add(at), u64));
            if x != y {
                return if x.swap_bytes() < y.swap_bytes() { -1 } else { 1 };
            }
            at += 8;
        }
        while at < n {
            let (x, y) = (*a.add(at), *b.add(at));
            if x != y {
                return i32::from(x) - i32::from(y);
            }
            at += 1;
        }
    }
    0
}

/// C's bcmp.
///
/// # Safety
/// See C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
    // SAFETY: the caller's.
    unsafe { memcmp(a, b, n) }
}

/// C's strlen.
///
/// # Safety
/// See C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn strlen(text: *const u8) -> usize {
    let mut n = 0;
    // SAFETY: the text ends with a zero byte. Volatile, or the loop would become a call of strlen.
    while unsafe { text.add(n).read_volatile() } != 0 {
        n += 1;
    }
    n
}
