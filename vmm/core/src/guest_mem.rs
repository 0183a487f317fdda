// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guest-physical memory as the vmm sees it: RAM behind a window, everything else refused.

use core::fmt;
use umbra_mmu_abi::Gpa;

/// The range has a byte that no RAM backs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unbacked {
    /// First address of the refused access.
    pub gpa: Gpa,
    /// Its length in bytes.
    pub len: u64,
}

impl fmt::Display for Unbacked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no guest RAM at {}..+{:#x}", self.gpa, self.len)
    }
}

impl core::error::Error for Unbacked {}

/// One contiguous range of guest RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamRegion {
    /// First address.
    pub base: Gpa,
    /// Length in bytes.
    pub len: u64,
    /// The guest only reads it (a ROM slot); the vmm may still fill it.
    pub readonly: bool,
}

/// Access to guest RAM. All or nothing: a refused access has changed nothing.
pub trait GuestMemory {
    /// Fills `buf` from guest memory.
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), Unbacked>;
    /// Writes `bytes` to guest memory.
    fn write(&mut self, gpa: Gpa, bytes: &[u8]) -> Result<(), Unbacked>;
    /// Zeroes a range.
    fn zero(&mut self, gpa: Gpa, len: u64) -> Result<(), Unbacked>;
    /// The RAM of this guest, ascending, not overlapping.
    fn regions(&self) -> &[RamRegion];
    /// Is it memory that the guest only reads?
    fn readonly(&self, gpa: Gpa) -> bool {
        let holds = |r: &RamRegion| gpa.raw().wrapping_sub(r.base.raw()) < r.len;
        self.regions().iter().any(|r| r.readonly && holds(r))
    }
}
