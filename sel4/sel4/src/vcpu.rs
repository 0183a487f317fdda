// SPDX-License-Identifier: MIT OR Apache-2.0
//! How is a virtual CPU set up?

use crate::cap::{IOPort, Tcb, VCpu};
use crate::{Result, Word};
use sel4_sys as sys;

/// Guest registers that are not in the VMCS: RAX RBX RCX RDX RSI RDI RBP R8 to R15, CR2, in the order of the messages.
/// RSP, RIP and RFLAGS are VMCS fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct GuestRegisters {
    /// RAX.
    pub rax: Word,
    /// RBX.
    pub rbx: Word,
    /// RCX.
    pub rcx: Word,
    /// RDX.
    pub rdx: Word,
    /// RSI.
    pub rsi: Word,
    /// RDI.
    pub rdi: Word,
    /// RBP.
    pub rbp: Word,
    /// R8 to R15.
    pub r8_r15: [Word; 8],
    /// CR2.
    pub cr2: Word,
}

impl GuestRegisters {
    /// Number of registers.
    pub const COUNT: usize = size_of::<Self>() / size_of::<Word>();

    /// In the order of the messages.
    pub const fn as_words(&self) -> &[Word; Self::COUNT] {
        // SAFETY: the structure is COUNT words in C layout.
        unsafe { &*core::ptr::from_ref(self).cast() }
    }

    /// From words in the order of the messages.
    pub const fn from_words(words: [Word; Self::COUNT]) -> Self {
        // SAFETY: the structure is COUNT words in C layout, and all values are valid.
        unsafe { core::mem::transmute(words) }
    }
}

impl VCpu {
    /// Binds the VCPU to a thread: [`crate::vm_enter`] of that thread runs it.
    ///
    /// # Errors
    /// `InvalidCapability` if it is no thread.
    pub fn vcpu_set_tcb(self, tcb: Tcb) -> Result<()> {
        Ok(sys::seL4_X86_VCPU_SetTCB(self.bits(), tcb.bits())?)
    }

    /// Reads a VMCS field by its encoding ([`crate::vmcs`]). 490 ticks.
    ///
    /// # Errors
    /// `IllegalOperation` for a field that the kernel does not show.
    pub fn vcpu_read_vmcs(self, field: Word) -> Result<Word> {
        Ok(sys::seL4_X86_VCPU_ReadVMCS(self.bits(), field)?)
    }

    /// Writes a VMCS field; returns the value that the kernel wrote, which may have other bits forced. 500 ticks.
    ///
    /// # Errors
    /// `IllegalOperation` for a field that the kernel does not let user programs write.
    pub fn vcpu_write_vmcs(self, field: Word, value: Word) -> Result<Word> {
        Ok(sys::seL4_X86_VCPU_WriteVMCS(self.bits(), field, value)?)
    }

    /// Writes the registers that are not in the VMCS. 480 ticks: [`crate::vm_enter_with_registers`] does it within
    /// the entry.
    ///
    /// # Errors
    /// None of a VCPU capability that exists.
    pub fn vcpu_write_registers(self, registers: &GuestRegisters) -> Result<()> {
        let label = sys::invocation_label::X86VCPUWriteRegisters;
        sys::invoke(self.bits(), label, [], *registers.as_words())?;
        Ok(())
    }

    /// Lets the guest use the ports `first..=last` itself, until `port` is deleted.
    ///
    /// # Errors
    /// `IllegalOperation` if `port` does not cover them, `InvalidArgument` if `first` is above `last`.
    pub fn vcpu_enable_io_port(self, port: IOPort, first: u16, last: u16) -> Result<()> {
        Ok(sys::seL4_X86_VCPU_EnableIOPort(
            self.bits(),
            port.bits(),
            first.into(),
            last.into(),
        )?)
    }

    /// Ends the guest's own use of the ports `first..=last`.
    ///
    /// # Errors
    /// `InvalidArgument` if `first` is above `last`.
    pub fn vcpu_disable_io_port(self, first: u16, last: u16) -> Result<()> {
        Ok(sys::seL4_X86_VCPU_DisableIOPort(
            self.bits(),
            first.into(),
            last.into(),
        )?)
    }
}
