// SPDX-License-Identifier: MIT OR Apache-2.0
//! The virtual CPU that the kernel runs: how the `Vcpu` trait becomes VMEnter messages and VMCS invocations.

use core::arch::x86_64::_rdtsc;
use core::fmt;
use sel4::{GuestRegisters, VmEntry, VmExit, cap, with_ipc_buffer};
use umbra_mmu_abi::{Gpa, Gva};
use umbra_vmm_core::entry::{INTERRUPT_WINDOW, PRIMARY};
use umbra_vmm_core::exit::RawExit;
use umbra_vmm_core::inject::{Event, EventKind};
use umbra_vmm_core::vcpu::{Entered, Field, Gpr, Vcpu};

/// Words of the kernel's exit message, as the built tree numbers them.
mod mr {
    use sel4::sys;

    pub const QUALIFICATION: usize = sys::SEL4_VMENTER_FAULT_QUALIFICATION_MR as usize;
    pub const INSTRUCTION_LENGTH: usize = sys::SEL4_VMENTER_FAULT_INSTRUCTION_LEN_MR as usize;
    pub const GUEST_PHYSICAL: usize = sys::SEL4_VMENTER_FAULT_GUEST_PHYSICAL_MR as usize;
    pub const RFLAGS: usize = sys::SEL4_VMENTER_FAULT_RFLAGS_MR as usize;
    pub const INTERRUPTIBILITY: usize = sys::SEL4_VMENTER_FAULT_GUEST_INT_MR as usize;
    pub const CR3: usize = sys::SEL4_VMENTER_FAULT_CR3_MR as usize;
    /// RAX, and from here on the order of `GuestRegisters`.
    pub const RAX: usize = sys::SEL4_VMENTER_FAULT_EAX as usize;
    /// Information in the lower, error code in the upper half.
    pub const INTERRUPTION: usize = sys::SEL4_VMENTER_FAULT_INTERRUPTION_MR as usize;
    pub const IDT_VECTORING: usize = sys::SEL4_VMENTER_FAULT_IDT_VECTORING_MR as usize;
    pub const LINEAR: usize = sys::SEL4_VMENTER_FAULT_GUEST_LINEAR_MR as usize;
    pub const RSP: usize = sys::SEL4_VMENTER_FAULT_RSP_MR as usize;
    pub const CR0: usize = sys::SEL4_VMENTER_FAULT_CR0_MR as usize;
    pub const CR4: usize = sys::SEL4_VMENTER_FAULT_CR4_MR as usize;
    pub const EFER: usize = sys::SEL4_VMENTER_FAULT_EFER_MR as usize;
    /// Access rights of CS in the lower, of SS in the upper half.
    pub const CS_SS: usize = sys::SEL4_VMENTER_FAULT_CS_MR as usize;
    pub const CS_BASE: usize = sys::SEL4_VMENTER_FAULT_CS_BASE_MR as usize;
}

/// RAX RBX RCX RDX RSI RDI RBP R8 to R15, CR2: places in the message for registers by their encoding. RSP has none.
const PLACE: [u8; 16] = [0, 2, 3, 1, NO_PLACE, 6, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14];
const NO_PLACE: u8 = u8::MAX;
const CR2: usize = 15;

/// The kernel refused an access to the VMCS: this program asked for something that it must not.
#[derive(Clone, Copy, Debug)]
pub struct VmcsError {
    field: Field,
    write: bool,
    error: sel4::Error,
}

impl fmt::Display for VmcsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let access = if self.write { "write" } else { "read" };
        write!(f, "cannot {access} VMCS field {:?}: {}", self.field, self.error)
    }
}

/// Which registers the next entry brings along.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Changed {
    Nothing,
    Rax,
    All,
}

/// A VCPU of the kernel, bound to this thread.
pub struct KernelVcpu {
    cap: cap::VCpu,
    entry: VmEntry,
    changed: Changed,
    rax: u64,
    /// In message order; valid if `loaded`.
    registers: [u64; GuestRegisters::COUNT],
    loaded: bool,
    /// The IPC buffer holds the message of the last exit, except for the fields in `overwritten`.
    message: bool,
    overwritten: u32,
    error: Option<VmcsError>,
}

impl KernelVcpu {
    /// The virtual CPU behind `cap`, with registers 0.
    pub fn new(cap: cap::VCpu) -> Self {
        let primary_controls = PRIMARY.into();
        Self {
            cap,
            entry: VmEntry {
                rip: 0,
                primary_controls,
                interruption_info: 0,
            },
            changed: Changed::All,
            rax: 0,
            registers: [0; GuestRegisters::COUNT],
            loaded: true,
            message: false,
            overwritten: 0,
            error: None,
        }
    }

    /// Copies all registers out of the message.
    fn load(&mut self) {
        if self.loaded {
            return;
        }
        with_ipc_buffer(|buffer| {
            let words = buffer.msg_regs();
            for (n, register) in self.registers.iter_mut().enumerate() {
                *register = words[mr::RAX + n];
            }
        });
        self.registers[0] = self.rax;
        self.loaded = true;
    }

    fn set_place(&mut self, place: usize, value: u64) {
        self.load();
        self.registers[place] = value;
        self.changed = Changed::All;
    }

    #[inline]
    fn take_exit(&mut self) -> RawExit {
        self.message = true;
        self.overwritten = 0;
        self.loaded = false;
        self.changed = Changed::Nothing;
        with_ipc_buffer(|buffer| {
            let w = buffer.msg_regs();
            self.rax = w[mr::RAX];
            RawExit {
                reason: 0,
                qualification: w[mr::QUALIFICATION],
                instruction_length: w[mr::INSTRUCTION_LENGTH] as u32,
                gpa: Gpa::new(w[mr::GUEST_PHYSICAL]),
                linear: Gva::new(w[mr::LINEAR]),
                rip: self.entry.rip,
                rflags: w[mr::RFLAGS],
                interruptibility: w[mr::INTERRUPTIBILITY] as u32,
                cr3: w[mr::CR3],
                interruption: w[mr::INTERRUPTION] as u32,
                idt_vectoring: w[mr::IDT_VECTORING] as u32,
            }
        })
    }

    /// A field that came with the message, if nothing has been written to it since.
    fn in_last_message(&self, field: Field) -> Option<u64> {
        let (bit, index, upper) = in_message(field)?;
        if !self.message || self.overwritten & bit != 0 {
            return None;
        }
        let word = with_ipc_buffer(|buffer| buffer.msg_regs()[index]);
        Some(match upper {
            Half::Whole => word,
            Half::Lower => word & 0xffff_ffff,
            Half::Upper => word >> 32,
        })
    }
}

enum Half {
    Whole,
    Lower,
    Upper,
}

/// Its bit in `overwritten`, its word, and which part of it.
const fn in_message(field: Field) -> Option<(u32, usize, Half)> {
    Some(match field {
        Field::GuestRflags => (1 << 0, mr::RFLAGS, Half::Whole),
        Field::GuestInterruptibility => (1 << 1, mr::INTERRUPTIBILITY, Half::Whole),
        Field::GuestCr3 => (1 << 2, mr::CR3, Half::Whole),
        Field::ExitInterruptionErrorCode => (1 << 3, mr::INTERRUPTION, Half::Upper),
        Field::IdtVectoringErrorCode => (1 << 4, mr::IDT_VECTORING, Half::Upper),
        Field::GuestRsp => (1 << 5, mr::RSP, Half::Whole),
        Field::GuestCr0 => (1 << 6, mr::CR0, Half::Whole),
        Field::GuestCr4 => (1 << 7, mr::CR4, Half::Whole),
        Field::GuestEfer => (1 << 8, mr::EFER, Half::Whole),
        Field::GuestCsAccessRights => (1 << 9, mr::CS_SS, Half::Lower),
        Field::GuestSsAccessRights => (1 << 10, mr::CS_SS, Half::Upper),
        Field::GuestCsBase => (1 << 11, mr::CS_BASE, Half::Whole),
        _ => return None,
    })
}

impl Vcpu for KernelVcpu {
    type Error = VmcsError;

    #[inline]
    fn enter(&mut self) -> Result<Entered, VmcsError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        let exit = match self.changed {
            Changed::Nothing => sel4::vm_enter(self.entry),
            Changed::Rax => sel4::vm_enter_with_rax(self.entry, self.rax),
            Changed::All => {
                self.registers[0] = self.rax;
                sel4::vm_enter_with_registers(self.entry, &GuestRegisters::from_words(self.registers))
            }
        };
        match exit {
            VmExit::Fault(message) => {
                self.entry.rip = message.rip();
                self.entry.interruption_info = 0;
                let raw = self.take_exit();
                Ok(Entered::Exit(RawExit {
                    reason: message.reason() as u32,
                    ..raw
                }))
            }
            VmExit::Notification { badge, entry } => {
                self.entry.rip = entry.rip;
                // Bit 31: the event has not been delivered.
                self.entry.interruption_info = if entry.interruption_info >> 31 & 1 != 0 {
                    entry.interruption_info
                } else {
                    0
                };
                self.message = false;
                self.changed = Changed::Nothing;
                Ok(Entered::Notified(badge))
            }
        }
    }

    #[inline]
    fn gpr(&mut self, r: Gpr) -> u64 {
        match r {
            Gpr::Rax => self.rax,
            Gpr::Rsp => self.read(Field::GuestRsp),
            _ => {
                let place = usize::from(PLACE[r as usize]);
                if self.loaded {
                    self.registers[place]
                } else {
                    with_ipc_buffer(|buffer| buffer.msg_regs()[mr::RAX + place])
                }
            }
        }
    }

    #[inline]
    fn set_gpr(&mut self, r: Gpr, value: u64) {
        match r {
            Gpr::Rax => {
                self.rax = value;
                if self.changed == Changed::Nothing {
                    self.changed = Changed::Rax;
                }
            }
            Gpr::Rsp => self.write(Field::GuestRsp, value),
            _ => self.set_place(PLACE[r as usize].into(), value),
        }
    }

    #[inline]
    fn rip(&self) -> u64 {
        self.entry.rip
    }

    #[inline]
    fn set_rip(&mut self, rip: u64) {
        self.entry.rip = rip;
    }

    fn cr2(&mut self) -> u64 {
        self.load();
        self.registers[CR2]
    }

    fn set_cr2(&mut self, value: u64) {
        self.set_place(CR2, value);
    }

    fn read(&mut self, field: Field) -> u64 {
        if let Some(value) = self.in_last_message(field) {
            return value;
        }
        if field == Field::GuestRip {
            return self.entry.rip;
        }
        match self.cap.vcpu_read_vmcs(field.encoding().into()) {
            Ok(value) => value,
            Err(error) => {
                self.error.get_or_insert(VmcsError {
                    field,
                    write: false,
                    error,
                });
                0
            }
        }
    }

    fn write(&mut self, field: Field, value: u64) {
        match field {
            // These two travel with every entry.
            Field::GuestRip => self.entry.rip = value,
            Field::PrimaryControls => self.entry.primary_controls = value,
            _ => {
                if let Some((bit, ..)) = in_message(field) {
                    self.overwritten |= bit;
                }
                if let Err(error) = self.cap.vcpu_write_vmcs(field.encoding().into(), value) {
                    self.error.get_or_insert(VmcsError {
                        field,
                        write: true,
                        error,
                    });
                }
            }
        }
    }

    #[inline]
    fn set_event(&mut self, event: Option<Event>) {
        let Some(event) = event else {
            self.entry.interruption_info = 0;
            return;
        };
        self.entry.interruption_info = event.entry_info().into();
        if let Some(error) = event.error {
            self.write(Field::EntryExceptionErrorCode, error.into());
        }
        match event.kind {
            EventKind::SoftwareInterrupt | EventKind::PrivilegedSoftwareException | EventKind::SoftwareException => {
                self.write(Field::EntryInstructionLength, event.instruction_length.into());
            }
            EventKind::ExternalInterrupt | EventKind::Nmi | EventKind::HardwareException => {}
        }
    }

    #[inline]
    fn set_interrupt_window(&mut self, wanted: bool) {
        let window = u64::from(INTERRUPT_WINDOW);
        self.entry.primary_controls &= !window;
        if wanted {
            self.entry.primary_controls |= window;
        }
    }

    #[inline]
    fn host_tsc(&mut self) -> u64 {
        // SAFETY: the kernel leaves CR4.TSD clear.
        unsafe { _rdtsc() }
    }
}
