// SPDX-License-Identifier: MIT OR Apache-2.0
//! How does a thread run its guest, and what does it learn when the guest exits?

use crate::{Badge, GuestRegisters, Word};
use sel4_sys as sys;

/// What every entry sets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VmEntry {
    /// Guest RIP.
    pub rip: Word,
    /// Primary processor-based execution controls.
    pub primary_controls: Word,
    /// VM-entry interruption information: the event to inject, or 0.
    pub interruption_info: Word,
}

/// Why the guest does not run any more.
#[derive(Clone, Copy, Debug)]
pub enum VmExit {
    /// A VM exit that the kernel does not handle itself.
    Fault(ExitMessage),
    /// The bound notification was signalled; the guest may not even have run. Only what an entry sets is told.
    Notification {
        /// The bits of the notification.
        badge: Badge,
        /// What to enter with again. An event that was not delivered is still in it.
        entry: VmEntry,
    },
}

/// Runs the guest. An exit and the next entry take 500 ticks.
#[inline(always)]
pub fn vm_enter(entry: VmEntry) -> VmExit {
    vm_enter_with(entry, [])
}

/// Runs the guest with a new RAX, in nearly the same time: the answer to `IN` or a hypercall.
#[inline(always)]
pub fn vm_enter_with_rax(entry: VmEntry, rax: Word) -> VmExit {
    vm_enter_with(entry, [rax])
}

/// Runs the guest with all registers of [`GuestRegisters`] new: 150 ticks more.
#[inline(always)]
pub fn vm_enter_with_registers(entry: VmEntry, registers: &GuestRegisters) -> VmExit {
    vm_enter_with(entry, *registers.as_words())
}

/// Runs the guest with its first `N` registers new, in the order of [`GuestRegisters`]; 4 are RAX, RBX, RCX, RDX: the
/// answer to CPUID. The others stay as they are.
#[inline(always)]
pub fn vm_enter_with<const N: usize>(entry: VmEntry, registers: [Word; N]) -> VmExit {
    const { assert!(FIRST_ENTRY_GPR + N <= sys::SEL4_VMENTER_CALL_REGISTERS_LEN as usize) };
    let buffer = sys::ipc_buffer();
    for (i, word) in registers.iter().enumerate().skip(1) {
        // SAFETY: the runtime set the buffer, nothing refers to it now, and the index is below its length (see above).
        unsafe { (&raw mut (*buffer).msg[FIRST_ENTRY_GPR + i]).write(*word) };
    }
    let first = registers.first().copied().unwrap_or(0);
    exit(sys::vm_enter((FIRST_ENTRY_GPR + N) as Word, entry.words(first)))
}

impl VmEntry {
    #[inline(always)]
    const fn words(self, fourth: Word) -> [Word; 4] {
        [self.rip, self.primary_controls, self.interruption_info, fourth]
    }
}

// The registers of an entry or exit that are CPU registers, in this order.
const _: () = assert!(sys::SEL4_VMENTER_CALL_EIP_MR == 0);
const _: () = assert!(sys::SEL4_VMENTER_CALL_CONTROL_PPC_MR == 1);
const _: () = assert!(sys::SEL4_VMENTER_CALL_CONTROL_ENTRY_MR == 2);
const _: () = assert!(sys::SEL4_VMENTER_FAULT_REASON_MR == 3);
const _: () = assert!(sys::SEL4_VMENTER_CALL_REGISTERS_MR == 3);

/// Message register of RAX in an entry and in an exit; the others follow.
const FIRST_ENTRY_GPR: usize = sys::SEL4_VMENTER_CALL_REGISTERS_MR as usize;
const FIRST_GPR: usize = sys::SEL4_VMENTER_FAULT_EAX as usize;
const _: () = assert!(sys::SEL4_VMENTER_FAULT_CR2 as usize == FIRST_GPR + GuestRegisters::COUNT - 1);

#[inline(always)]
fn exit(message: sys::Message) -> VmExit {
    // For this system call the whole word is the result, not a message info.
    if message.info.words[0] == sys::SEL4_VMENTER_RESULT_FAULT {
        VmExit::Fault(ExitMessage {
            mrs: message.mrs,
            words: sys::ipc_buffer().cast_const(),
        })
    } else {
        let [rip, primary_controls, interruption_info, _] = message.mrs;
        VmExit::Notification {
            badge: message.badge,
            entry: VmEntry {
                rip,
                primary_controls,
                interruption_info,
            },
        }
    }
}

/// The kernel's message about an exit. It is a view: all but the first four words stay in the IPC buffer and are read
/// when asked for, so ask before the next call that uses the IPC buffer (more than four words, capabilities, or an error).
#[derive(Clone, Copy)]
pub struct ExitMessage {
    mrs: [Word; 4],
    words: *const sys::seL4_IPCBuffer,
}

macro_rules! words {
    ($($(#[$doc:meta])* $name:ident = $index:expr;)*) => { $(
        $(#[$doc])*
        #[inline(always)]
        pub fn $name(&self) -> Word {
            const INDEX: usize = ($index) as usize;
            self.word::<INDEX>()
        }
    )* };
}

/// A word of two values.
macro_rules! halves {
    ($($(#[$low_doc:meta])* $low:ident, $(#[$high_doc:meta])* $high:ident = $index:expr;)*) => { $(
        $(#[$low_doc])*
        #[inline(always)]
        pub fn $low(&self) -> u32 {
            self.word::<{ $index as usize }>() as u32
        }

        $(#[$high_doc])*
        #[inline(always)]
        pub fn $high(&self) -> u32 {
            (self.word::<{ $index as usize }>() >> 32) as u32
        }
    )* };
}

impl ExitMessage {
    #[inline(always)]
    fn word<const INDEX: usize>(&self) -> Word {
        if INDEX < 4 {
            self.mrs[INDEX]
        } else {
            const { assert!(INDEX < sys::seL4_MsgMaxLength as usize) };
            // SAFETY: the runtime set the buffer, it is mapped as long as the program runs, and INDEX is inside.
            unsafe { (&raw const (*self.words).msg[INDEX]).read() }
        }
    }

    /// What an entry would set, as it is now: RIP of the instruction that exited, controls, and the event to inject again
    /// if its delivery did not complete.
    #[inline(always)]
    pub fn entry(&self) -> VmEntry {
        VmEntry {
            rip: self.mrs[0],
            primary_controls: self.mrs[1],
            interruption_info: self.mrs[2],
        }
    }

    words! {
        /// Guest RIP.
        rip = sys::SEL4_VMENTER_CALL_EIP_MR;
        /// Primary processor-based execution controls.
        primary_controls = sys::SEL4_VMENTER_CALL_CONTROL_PPC_MR;
        /// VM-entry interruption information.
        interruption_info = sys::SEL4_VMENTER_CALL_CONTROL_ENTRY_MR;
        /// Basic exit reason (SDM vol. 3, appendix C). Bit 31: the entry failed.
        reason = sys::SEL4_VMENTER_FAULT_REASON_MR;
        /// Exit qualification.
        qualification = sys::SEL4_VMENTER_FAULT_QUALIFICATION_MR;
        /// Length of the instruction that exited, in bytes.
        instruction_length = sys::SEL4_VMENTER_FAULT_INSTRUCTION_LEN_MR;
        /// Guest physical address of an EPT violation.
        guest_physical = sys::SEL4_VMENTER_FAULT_GUEST_PHYSICAL_MR;
        /// RFLAGS.
        rflags = sys::SEL4_VMENTER_FAULT_RFLAGS_MR;
        /// Interruptibility state.
        interruptibility = sys::SEL4_VMENTER_FAULT_GUEST_INT_MR;
        /// CR3.
        cr3 = sys::SEL4_VMENTER_FAULT_CR3_MR;
        /// RAX.
        rax = FIRST_GPR;
        /// RBX.
        rbx = FIRST_GPR + 1;
        /// RCX.
        rcx = FIRST_GPR + 2;
        /// RDX.
        rdx = FIRST_GPR + 3;
        /// RSI.
        rsi = FIRST_GPR + 4;
        /// RDI.
        rdi = FIRST_GPR + 5;
        /// RBP.
        rbp = FIRST_GPR + 6;
        /// CR2.
        cr2 = sys::SEL4_VMENTER_FAULT_CR2;
        /// RSP.
        rsp = sys::SEL4_VMENTER_FAULT_RSP_MR;
        /// CR0, as the guest's owner set it or the guest changed it.
        cr0 = sys::SEL4_VMENTER_FAULT_CR0_MR;
        /// CR4.
        cr4 = sys::SEL4_VMENTER_FAULT_CR4_MR;
        /// EFER.
        efer = sys::SEL4_VMENTER_FAULT_EFER_MR;
        /// Base of CS.
        cs_base = sys::SEL4_VMENTER_FAULT_CS_BASE_MR;
        /// Guest linear address of an EPT violation, if the qualification says that it is valid.
        guest_linear = sys::SEL4_VMENTER_FAULT_GUEST_LINEAR_MR;
    }

    halves! {
        /// VM-exit interruption information: the exception or interrupt that caused the exit, if bit 31 is set.
        exit_interruption_info,
        /// Its error code, if bit 11 of the information is set.
        exit_interruption_error = sys::SEL4_VMENTER_FAULT_INTERRUPTION_MR;
        /// IDT-vectoring information: the event whose delivery the exit interrupted, if bit 31 is set.
        idt_vectoring_info,
        /// Its error code, if bit 11 of the information is set.
        idt_vectoring_error = sys::SEL4_VMENTER_FAULT_IDT_VECTORING_MR;
        /// Access rights of CS, as in the VMCS.
        cs_access_rights,
        /// Access rights of SS: bits 5 and 6 are the current privilege level.
        ss_access_rights = sys::SEL4_VMENTER_FAULT_CS_MR;
    }

    /// All registers that are not in the VMCS. Copies 16 words.
    #[inline(always)]
    pub fn registers(&self) -> GuestRegisters {
        const { assert!(FIRST_GPR + GuestRegisters::COUNT <= sys::seL4_MsgMaxLength as usize) };
        // SAFETY: as in word; GuestRegisters is that many words.
        unsafe {
            (&raw const (*self.words).msg[FIRST_GPR])
                .cast::<GuestRegisters>()
                .read()
        }
    }

    /// Register `index` (0 to 14) in the order of [`GuestRegisters`].
    #[inline(always)]
    pub fn gpr(&self, index: usize) -> Word {
        assert!(index < GuestRegisters::COUNT);
        // SAFETY: as in registers.
        unsafe { (&raw const (*self.words).msg[FIRST_GPR + index]).read() }
    }
}

impl core::fmt::Debug for ExitMessage {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("ExitMessage")
            .field("reason", &self.reason())
            .field("rip", &self.rip())
            .field("qualification", &self.qualification())
            .field("guest_physical", &self.guest_physical())
            .finish_non_exhaustive()
    }
}
