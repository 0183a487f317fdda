// SPDX-License-Identifier: MIT OR Apache-2.0
//! What instructions act on: registers, linear memory, ports. One implementation for VT-x exits; others may follow.

use super::walk::AccessKind;
use super::{Abort, CodeSize};
use crate::vcpu::{Gpr, SegReg, Segment};
use umbra_mmu_abi::Gva;

/// The processor mode, as far as instructions depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    /// Size of the code segment.
    pub code: CodeSize,
    /// CR0.PE.
    pub protected: bool,
    /// Virtual-8086 mode.
    pub v86: bool,
    /// Current privilege level.
    pub cpl: u8,
}

/// A processor that `execute` can work on.
///
/// Memory operands of one instruction are first probed, then read, then written, so that a fault leaves nothing behind.
pub trait Cpu {
    /// The mode.
    fn mode(&self) -> Mode;
    /// A general-purpose register.
    fn gpr(&mut self, r: Gpr) -> u64;
    /// Replaces all 64 bits of a general-purpose register.
    fn set_gpr(&mut self, r: Gpr, value: u64);
    /// RIP.
    fn rip(&self) -> u64;
    /// Replaces RIP.
    fn set_rip(&mut self, rip: u64);
    /// RFLAGS.
    fn rflags(&self) -> u64;
    /// Replaces RFLAGS.
    fn set_rflags(&mut self, flags: u64);
    /// A segment register with its hidden part.
    fn segment(&mut self, seg: SegReg) -> Segment;
    /// The base of a segment register, which may cost less than all of it.
    fn segment_base(&mut self, seg: SegReg) -> u64;
    /// The linear address of the instruction's explicit memory operand, if hardware has already computed and checked it.
    fn known_operand(&self) -> Option<Gva>;
    /// Translates all of `at..at + size`: it faults now or not at all.
    fn probe(&mut self, at: Gva, size: u8, kind: AccessKind) -> Result<(), Abort>;
    /// Reads 1, 2, 4 or 8 bytes. `kind` is `Write` where a write to the same place follows.
    fn read(&mut self, at: Gva, size: u8, kind: AccessKind) -> Result<u64, Abort>;
    /// Writes 1, 2, 4 or 8 bytes, or nothing.
    fn write(&mut self, at: Gva, size: u8, value: u64) -> Result<(), Abort>;
    /// Reads a port (1, 2 or 4 bytes) that the guest may read.
    fn input(&mut self, port: u16, size: u8) -> u32;
    /// Writes a port.
    fn output(&mut self, port: u16, size: u8, value: u32);
}
