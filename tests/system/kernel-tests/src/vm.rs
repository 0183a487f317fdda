// SPDX-License-Identifier: MIT OR Apache-2.0
//! How does a test get a guest? Eight pages of memory, a processor in a plain state, run by this thread.

use crate::check;
use crate::test::Failure;
use crate::world::{Page, World};
use alloc::format;
use sel4::cap::{EptPd, EptPdpt, EptPml4, EptPt, SmallPage, Tcb, VCpu};
use sel4::init_thread::slot::{ASID_POOL, TCB};
use sel4::vmcs::{
    VMX_CONTROL_CR0_MASK, VMX_CONTROL_CR4_MASK, VMX_CONTROL_SECONDARY_PROCESSOR_CONTROLS, VMX_GUEST_CR0, VMX_GUEST_CR3,
    VMX_GUEST_CR4, VMX_GUEST_CS_ACCESS_RIGHTS, VMX_GUEST_EFER, VMX_GUEST_ES_ACCESS_RIGHTS, VMX_GUEST_ES_BASE,
    VMX_GUEST_ES_LIMIT, VMX_GUEST_ES_SELECTOR, VMX_GUEST_LDTR_ACCESS_RIGHTS, VMX_GUEST_RFLAGS, VMX_GUEST_RSP,
    VMX_GUEST_TR_ACCESS_RIGHTS, VMX_GUEST_TR_LIMIT,
};
use sel4::{
    CapRights, EptAttributes, Error, ExitMessage, GuestRegisters, ObjectBlueprint, Result, TranslationTable, VmEntry,
    VmExit, Word, vm_enter,
};

/// Guest pages from 0x1000 to 0x8fff.
const PAGES: usize = 8;
/// Guest-physical address of the page tables.
const TABLES: Word = 0x1000;
/// Guest-physical address of the code.
pub const CODE: Word = 0x4000;
/// Guest-physical address of a page for data.
pub const DATA: Word = 0x5000;

/// Bits of the instructions, and what goes with them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Real mode: an unrestricted guest.
    Real,
    /// Protected mode with 4 MiB pages, identity.
    Protected,
    /// 64-bit mode with a 2 MiB page, identity.
    Long,
}

/// A guest.
pub struct Vm {
    /// Its processor.
    pub vcpu: VCpu,
    /// Its memory.
    pub ept: EptPml4,
    /// What the next entry sets.
    pub entry: VmEntry,
    pages: [Page; PAGES],
}

impl Vm {
    /// A guest that starts with `code`.
    pub fn new(world: &mut World, mode: Mode, code: &[u8]) -> Result<Self> {
        let vcpu = world.make(ObjectBlueprint::VCpu)?.cast();
        Self::with_vcpu(world, vcpu, mode, code)
    }

    /// The same with a processor of one's own.
    pub fn with_vcpu(world: &mut World, vcpu: VCpu, mode: Mode, code: &[u8]) -> Result<Self> {
        let ept: EptPml4 = world.make(ObjectBlueprint::EptPml4)?.cast();
        ASID_POOL.asid_pool_assign_ept(ept)?;
        let first = world.page()?;
        let mut pages = [first; PAGES];
        for (i, page) in pages.iter_mut().enumerate() {
            if i > 0 {
                *page = world.page()?;
            }
            let copy = world.copy(page.cap.cptr(), CapRights::ALL)?.cast();
            map(world, ept, copy, TABLES + 0x1000 * i as Word, CapRights::READ_WRITE)?;
        }
        let vm = Self {
            vcpu,
            ept,
            entry: VmEntry {
                rip: CODE,
                ..VmEntry::default()
            },
            pages,
        };
        vm.run_by(TCB)?;
        vm.page(CODE).load(code);
        vm.tables(mode);
        vm.registers(mode)?;
        Ok(vm)
    }

    /// Binds it to a thread.
    pub fn run_by(&self, tcb: Tcb) -> Result<()> {
        tcb.tcb_set_ept_root(self.ept)?;
        self.vcpu.vcpu_set_tcb(tcb)
    }

    /// A page of its memory.
    pub fn page(&self, gpa: Word) -> Page {
        self.pages[(gpa - TABLES) as usize >> 12]
    }

    /// Reads a VMCS field.
    pub fn read(&self, field: Word) -> Result<Word> {
        self.vcpu.vcpu_read_vmcs(field)
    }

    /// Writes a VMCS field; returns what the kernel wrote.
    pub fn write(&self, field: Word, value: Word) -> Result<Word> {
        self.vcpu.vcpu_write_vmcs(field, value)
    }

    /// Sets general-purpose registers.
    pub fn set(&self, registers: &GuestRegisters) -> Result<()> {
        self.vcpu.vcpu_write_registers(registers)
    }

    /// Runs it to its next exit.
    pub fn enter(&mut self) -> core::result::Result<ExitMessage, Failure> {
        self.exited(vm_enter(self.entry))
    }

    /// Takes over what an exit tells.
    pub fn exited(&mut self, exit: VmExit) -> core::result::Result<ExitMessage, Failure> {
        match exit {
            VmExit::Fault(message) => {
                self.entry = message.entry();
                self.entry.interruption_info = 0;
                Ok(message)
            }
            VmExit::Notification { badge, .. } => Err(Failure(format!(
                "VMEnter came back with a notification, badge {badge:#x}"
            ))),
        }
    }

    /// Runs it to an exit with `reason`, and behind the instruction.
    pub fn exits_with(&mut self, reason: Word) -> core::result::Result<ExitMessage, Failure> {
        let message = self.enter()?;
        check!(
            message.reason() == reason,
            "exit with reason {} (qualification {:#x}) at {:#x}, expected reason {reason}",
            message.reason(),
            message.qualification(),
            message.rip()
        );
        self.entry.rip += message.instruction_length();
        Ok(message)
    }

    fn tables(&self, mode: Mode) {
        match mode {
            Mode::Real => {}
            // Present, writable, 4 MiB: two entries a word.
            Mode::Protected => self.page(TABLES).write(0, 0x83 | 0x40_0083 << 32),
            Mode::Long => {
                self.page(TABLES).write(0, TABLES + 0x1003);
                self.page(TABLES + 0x1000).write(0, TABLES + 0x2003);
                self.page(TABLES + 0x2000).write(0, 0x83);
            }
        }
    }

    fn registers(&self, mode: Mode) -> Result<()> {
        let (limit, code, data) = match mode {
            Mode::Real => (0xffff, 0x9b, 0x93),
            Mode::Protected => (0xffff_ffff, 0xc09b, 0xc093),
            Mode::Long => (0xffff_ffff, 0xa09b, 0xc093),
        };
        // ES, CS, SS, DS, FS, GS: their fields are 2 apart.
        for i in 0..6 {
            let selector = if mode == Mode::Real { 0 } else { 16 };
            self.write(
                VMX_GUEST_ES_SELECTOR + 2 * i,
                if i == 1 { selector / 2 } else { selector },
            )?;
            self.write(VMX_GUEST_ES_LIMIT + 2 * i, limit)?;
            self.write(VMX_GUEST_ES_BASE + 2 * i, 0)?;
            self.write(VMX_GUEST_ES_ACCESS_RIGHTS + 2 * i, data)?;
        }
        self.write(VMX_GUEST_CS_ACCESS_RIGHTS, code)?;
        self.write(VMX_GUEST_LDTR_ACCESS_RIGHTS, 1 << 16)?;
        self.write(VMX_GUEST_TR_ACCESS_RIGHTS, 0x8b)?;
        self.write(VMX_GUEST_TR_LIMIT, 0x67)?;
        // Interrupts on, though none is ever injected: with them off Bochs keeps the host's interrupts from a guest that
        // does not exit.
        self.write(VMX_GUEST_RFLAGS, 0x202)?;
        self.write(VMX_GUEST_RSP, DATA + 0x1000)?;
        self.write(VMX_GUEST_CR3, TABLES)?;
        self.write(VMX_CONTROL_CR0_MASK, 0)?;
        self.write(VMX_CONTROL_CR4_MASK, 1 << 13)?;
        match mode {
            Mode::Real => {
                self.write(VMX_CONTROL_SECONDARY_PROCESSOR_CONTROLS, 1 << 7)?;
                self.write(VMX_GUEST_CR0, 0x30)?;
                self.write(VMX_GUEST_CR4, 0)?;
            }
            // PSE, OSFXSR
            Mode::Protected => {
                self.write(VMX_GUEST_CR0, 0x8000_0031)?;
                self.write(VMX_GUEST_CR4, 0x210)?;
            }
            // PAE; SCE, LME, LMA
            Mode::Long => {
                self.write(VMX_GUEST_CR0, 0x8001_0031)?;
                self.write(VMX_GUEST_CR4, 0x20)?;
                self.write(VMX_GUEST_EFER, 0x501)?;
            }
        }
        Ok(())
    }
}

/// Maps a frame into a guest, with the tables that it takes.
pub fn map(world: &mut World, ept: EptPml4, frame: SmallPage, gpa: Word, rights: CapRights) -> Result<()> {
    loop {
        match frame.frame_map_ept(ept, gpa, rights, EptAttributes::WriteBack) {
            Err(Error::FailedLookup { .. }) => {
                let table: EptPt = world.make(ObjectBlueprint::EptPt)?.cast();
                if table.table_map(ept, gpa).is_ok() {
                    continue;
                }
                let directory: EptPd = world.make(ObjectBlueprint::EptPd)?.cast();
                if directory.table_map(ept, gpa).is_ok() {
                    continue;
                }
                let pdpt: EptPdpt = world.make(ObjectBlueprint::EptPdpt)?.cast();
                pdpt.table_map(ept, gpa)?;
            }
            result => return result,
        }
    }
}
