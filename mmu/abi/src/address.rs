// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guest addresses as types: bytes (`Gpa`, `Gva`) and 4K frame numbers (`Gfn`).

use core::fmt;

/// log2 of the smallest page, in bytes.
pub const PAGE_SHIFT: u32 = 12;
/// The smallest page, in bytes.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;

/// The widest physical address that the architecture defines, in bits.
pub const GPA_BITS: u32 = 52;

/// A guest-physical address in bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gpa(u64);

/// A guest-physical frame number: `Gpa` / 4096.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gfn(u64);

/// A guest-virtual (linear) address in bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gva(u64);

impl Gpa {
    /// Wraps a number that is known to be a guest-physical address.
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }
    /// The number itself; for the edges (hardware, wire, printing).
    pub const fn raw(self) -> u64 {
        self.0
    }
    /// The frame that holds this address.
    pub const fn gfn(self) -> Gfn {
        Gfn(self.0 >> PAGE_SHIFT)
    }
    /// Bytes into the 4K frame.
    pub const fn offset(self) -> u64 {
        self.0 & (PAGE_SIZE - 1)
    }
    /// This address plus `bytes`, or `None` where it would wrap.
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes) {
            Some(raw) => Some(Self(raw)),
            None => None,
        }
    }
}

impl Gfn {
    /// Wraps a number that is known to be a guest frame number.
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }
    /// The number itself; for the edges (hardware, wire, printing).
    pub const fn raw(self) -> u64 {
        self.0
    }
    /// The address of the frame's first byte.
    pub const fn gpa(self) -> Gpa {
        Gpa(self.0 << PAGE_SHIFT)
    }
    /// The first frame of the page of size `level` that holds this frame.
    pub const fn align_down(self, level: PageLevel) -> Self {
        Self(self.0 & !(level.frames() - 1))
    }
    /// This frame plus `frames`, or `None` where it would wrap.
    pub const fn checked_add(self, frames: u64) -> Option<Self> {
        match self.0.checked_add(frames) {
            Some(raw) => Some(Self(raw)),
            None => None,
        }
    }
}

impl Gva {
    /// Wraps a number that is known to be a guest-virtual address.
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }
    /// The number itself; for the edges (hardware, wire, printing).
    pub const fn raw(self) -> u64 {
        self.0
    }
}

/// Table level of a leaf, as KVM counts: 1 is the lowest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PageLevel {
    /// 4 KiB.
    K4 = 1,
    /// 2 MiB.
    M2 = 2,
    /// 1 GiB.
    G1 = 3,
}

impl PageLevel {
    /// Every size, the smallest first.
    pub const ALL: [Self; 3] = [Self::K4, Self::M2, Self::G1];

    /// log2 of [`PageLevel::frames`].
    pub const fn frame_shift(self) -> u32 {
        self.frames().trailing_zeros()
    }

    /// Page size in bytes.
    pub const fn bytes(self) -> u64 {
        self.frames() * PAGE_SIZE
    }
    /// Page size in 4K frames.
    pub const fn frames(self) -> u64 {
        match self {
            Self::K4 => 1,
            Self::M2 => 512,
            Self::G1 => 512 * 512,
        }
    }
}

macro_rules! hex_fmt {
    ($($t:ident),*) => { $(
        impl fmt::Debug for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($t), "({:#x})"), self.0)
            }
        }
        impl fmt::Display for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    )* };
}
hex_fmt!(Gpa, Gfn, Gva);
