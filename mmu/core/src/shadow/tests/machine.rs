// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest on shadow tables: simulated processors that walk them, and its own tables in its memory.

use crate::fault::{ErrorCode, Fault, Outcome};
use crate::locks::Held;
use crate::shadow::registers::*;
use crate::shadow::roots::{LocalFlush, NotLoaded, Roots};
use crate::sim::SimMemory;
use crate::sim::cpu::{Cpu, Exit, Operation};
use crate::sim::paging::{self as hw, Privilege};
use crate::sim::shadow::{HostTables, SimShadow, Staleness};
use crate::sim::walk::Memory;
use crate::sim::{SimRam, SimWords};
use crate::stage2::{BackingShape, Frame, GpteSize};
use crate::vcpu::Vcpu;
use crate::{Limits, Mmu, Mode};
use alloc::sync::Arc;
use std::vec::Vec;
use umbra_mmu_abi::{Access, Backing, BackingId, Gfn, Gpa, SlotFlags, SlotId};

pub const P: u64 = 1;
pub const W: u64 = 2;
pub const U: u64 = 4;
pub const A: u64 = 1 << 5;
pub const D: u64 = 1 << 6;
pub const PS: u64 = 1 << 7;
pub const ALL: u64 = P | W | U;

/// 4-level paging with all protections but SMAP and SMEP.
pub const LONG: Registers = Registers {
    cr0: CR0_PE | CR0_PG | CR0_WP,
    cr3: 0x1000,
    cr4: CR4_PAE,
    efer: EFER_LME | EFER_LMA | EFER_NXE,
};
pub const TWO_LEVEL: Registers = Registers {
    cr0: CR0_PE | CR0_PG | CR0_WP,
    cr3: 0x1000,
    cr4: CR4_PSE,
    efer: 0,
};
pub const PAE: Registers = Registers {
    cr4: CR4_PAE,
    efer: EFER_NXE,
    ..TWO_LEVEL
};
pub const FIVE: Registers = Registers {
    cr4: CR4_PAE | CR4_LA57,
    ..LONG
};

/// What the guest sees of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It happened.
    Value(u64),
    /// It went to a device.
    Mmio(Gfn),
    /// It went to read-only memory, as a write does.
    ReadOnly(Gfn),
    Fault(ErrorCode),
}

pub struct Machine {
    pub mmu: Mmu<SimShadow>,
    pub memory: Arc<SimMemory>,
    pub vcpus: Vec<(Vcpu, Cpu)>,
    /// Exits of each kind since the last look.
    pub faults: u32,
    pub emulated: u32,
    /// Times that the host was asked for a frame.
    pub asked: u32,
}

/// Backing 0: 4096 pages of 4K in one piece, that the container makes large ones of; backing 1: 64 pages.
pub const PAGES: u32 = 4096;
pub const ROM: Gfn = Gfn::new(0x2000);

impl Machine {
    pub fn new(vcpus: usize, registers: Registers) -> Self {
        Self::with_limits(
            vcpus,
            registers,
            &Limits {
                tables: 256,
                rmap_entries: 4096,
                ..Limits::default()
            },
        )
    }

    pub fn with_limits(vcpus: usize, registers: Registers, limits: &Limits) -> Self {
        let small = |small_head| BackingShape {
            small_head,
            large: 0,
            small_tail: 0,
        };
        let shapes = [small(PAGES), small(64)];
        let memory = SimMemory::new(SimMemory::layout_for(46), &shapes, limits.tables);
        let mmu = Mmu::with_ram(
            SimShadow::new(memory.clone()),
            SimRam(memory.clone()),
            SimWords(memory.clone()),
            Mode::Shadow(*memory.layout()),
            shapes.to_vec(),
            limits,
        )
        .unwrap()
        .with_guest_cpu(GuestCpu {
            maxphyaddr: 40,
            features: Features::all(),
        });
        let vcpus = (0..vcpus)
            .map(|_| {
                let mut vcpu = mmu.add_vcpu().unwrap();
                let _: Result<(), NotLoaded> = mmu.restore_registers(&mut vcpu, registers);
                (vcpu, Cpu::new(hw::Model::default(), None))
            })
            .collect();
        let machine = Self {
            mmu,
            memory,
            vcpus,
            faults: 0,
            emulated: 0,
            asked: 0,
        };
        machine.slot(0, Gfn::new(0), PAGES, 0, SlotFlags::empty());
        machine.slot(1, ROM, 64, 1, SlotFlags::READONLY);
        machine
    }

    pub fn slot(&self, id: u16, base: Gfn, npages: u32, backing: u16, flags: SlotFlags) {
        let backing = Backing {
            id: BackingId(backing),
            first_page: 0,
        };
        self.mmu.set_slot(SlotId(id), base, npages, backing, flags).unwrap();
    }

    fn frame(gpa: u64) -> Option<Frame> {
        let gfn = gpa >> 12;
        match gfn.checked_sub(ROM.raw()) {
            Some(page) if page < 64 => Frame::new(BackingId(1), page as u32),
            _ if gfn < PAGES as u64 => Frame::new(BackingId(0), gfn as u32),
            _ => None,
        }
    }

    /// Reads guest memory, whoever else may.
    pub fn peek(&self, gpa: u64, size: GpteSize) -> u64 {
        self.memory.load(Self::frame(gpa).unwrap(), (gpa & 4095) as u16, size)
    }

    /// Writes guest memory behind the MMU's back: before it has looked at it.
    pub fn poke(&self, gpa: u64, value: u64) {
        self.poke_sized(gpa, GpteSize::B8, value);
    }

    pub fn poke_sized(&self, gpa: u64, size: GpteSize, value: u64) {
        self.memory
            .store(Self::frame(gpa).unwrap(), (gpa & 4095) as u16, size, value);
    }

    /// An access of the guest's, with all exits that it takes.
    pub fn access(&mut self, vcpu: usize, gva: u64, kind: Access, who: Privilege, write: (GpteSize, u64)) -> Seen {
        for _ in 0..64 {
            match self.step(vcpu, gva, kind, who, write) {
                Ok(value) => return Seen::Value(value),
                Err((cr2, code)) => {
                    self.faults += 1;
                    let ac = match who {
                        Privilege::SupervisorAc => ErrorCode::AC,
                        Privilege::User | Privilege::Supervisor | Privilege::Implicit => ErrorCode::empty(),
                    };
                    let fault = Fault {
                        address: cr2,
                        code: code | ac,
                    };
                    let outcome = self.mmu.fault(&mut self.vcpus[vcpu].0, &fault).unwrap();
                    match outcome {
                        Outcome::Resume => {}
                        Outcome::Emulate(mmio) if mmio.readonly_slot => return Seen::ReadOnly(mmio.gfn),
                        Outcome::Emulate(mmio) => return Seen::Mmio(mmio.gfn),
                        Outcome::EmulateTableWrite { gpa } => {
                            self.emulated += 1;
                            let (size, value) = write;
                            assert_eq!(kind, Access::Write);
                            let bytes = &value.to_le_bytes()[..size as usize];
                            self.mmu.emulated_write(&mut self.vcpus[vcpu].0, gpa, bytes).unwrap();
                            return Seen::Value(value);
                        }
                        Outcome::Host(fault) => {
                            self.asked += 1;
                            self.mmu.give_back(fault.frame, 1).unwrap();
                        }
                        Outcome::Reflect(fault) => {
                            assert_eq!(fault.cr2, cr2);
                            return Seen::Fault(fault.code);
                        }
                    }
                }
            }
        }
        panic!("the guest faults at {gva:#x} for ever");
    }

    /// Enters the guest, which does one access or faults.
    pub fn step(
        &mut self,
        vcpu: usize,
        gva: u64,
        kind: Access,
        who: Privilege,
        (size, value): (GpteSize, u64),
    ) -> Result<u64, (u64, ErrorCode)> {
        let (vcpu, cpu) = &mut self.vcpus[vcpu];
        let entry = self.mmu.enter(vcpu).unwrap();
        let long = |cr3, cr4| hw::Registers {
            cr0: hw::CR0_PG | hw::CR0_WP,
            cr3,
            cr4: hw::CR4_PAE | cr4 | entry.cr4,
            efer: hw::EFER_LME | hw::EFER_NXE,
            pdptes: [0; 4],
        };
        cpu.enter(match entry.roots {
            Roots::Pml4(cr3) => long(cr3, 0),
            Roots::Pml5(cr3) => long(cr3, hw::CR4_LA57),
            Roots::Pdptes(pdptes) => hw::Registers {
                pdptes,
                efer: hw::EFER_NXE,
                ..long(0, 0)
            },
        });
        match entry.flush {
            LocalFlush::Nothing => {}
            LocalFlush::Address(gva) => cpu.invlpg(gva),
            LocalFlush::All => cpu.flush(),
        }
        let operation = match kind {
            Access::Read | Access::Fetch => Operation::Load(size),
            Access::Write => Operation::Store {
                bytes: size as u8,
                value,
            },
        };
        let mut below = HostTables {
            memory: &self.memory,
            staleness: Staleness::Refused,
        };
        match cpu.access(&mut below, gva, hw::Access { kind, privilege: who }, operation) {
            Ok(value) => Ok(value),
            Err(Exit::PageFault { cr2, code }) => Err((cr2, code)),
            Err(Exit::GeneralProtection) => panic!("{gva:#x} is not canonical"),
            Err(Exit::Refused(never)) => match never {},
        }
    }

    pub fn read(&mut self, vcpu: usize, gva: u64) -> Seen {
        self.access(vcpu, gva, Access::Read, Privilege::Supervisor, (GpteSize::B8, 0))
    }

    pub fn write(&mut self, vcpu: usize, gva: u64, value: u64) -> Seen {
        self.access(vcpu, gva, Access::Write, Privilege::Supervisor, (GpteSize::B8, value))
    }

    pub fn user(&mut self, vcpu: usize, gva: u64, kind: Access) -> Seen {
        self.access(vcpu, gva, kind, Privilege::User, (GpteSize::B8, 0x55))
    }

    /// Everything agrees.
    pub fn audit(&self) {
        let audit = self.mmu.audit();
        assert_eq!((audit.differences, audit.first), (0, None));
    }

    pub fn load_cr3(&mut self, vcpu: usize, cr3: u64) {
        self.mmu.write_cr3(&mut self.vcpus[vcpu].0, cr3).unwrap();
    }

    /// A device of the VMM writes.
    pub fn device_write(&mut self, vcpu: usize, gpa: u64, bytes: &[u8]) {
        self.mmu
            .emulated_write(&mut self.vcpus[vcpu].0, Gpa::new(gpa), bytes)
            .unwrap();
    }

    pub fn remove_slot(&self, id: u16, base: Gfn, backing: u16) {
        let backing = Backing {
            id: BackingId(backing),
            first_page: 0,
        };
        self.mmu
            .set_slot(SlotId(id), base, 0, backing, SlotFlags::empty())
            .unwrap();
    }

    /// Shadow pages.
    pub fn pages(&self) -> usize {
        self.mmu.shadow_pages()
    }

    /// Arrays of gfns in use.
    pub fn gfn_arrays(&self) -> usize {
        let mut held = Held::entry();
        self.mmu.lock.read(&mut held).shadow.as_ref().unwrap().gfn_arrays()
    }

    /// Whether a frame is shadowed as a guest table.
    pub fn shadowed(&self, gfn: Gfn) -> bool {
        let mut held = Held::entry();
        let tree = self.mmu.lock.read(&mut held);
        tree.shadow.as_ref().unwrap().iter().any(|id| {
            let table = self.mmu.tables.get(id);
            table.gfn() == gfn && !table.role().direct() && !table.role().invalid()
        })
    }

    pub fn invlpg(&mut self, vcpu: usize, gva: u64) {
        self.mmu.invlpg(&mut self.vcpus[vcpu].0, gva);
    }
}

/// The guest's physical memory, for a processor without any MMU of ours: what is right.
pub struct Bare<'a>(pub &'a SimMemory);

/// A table without memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nowhere;

impl Memory for Bare<'_> {
    type Refused = Nowhere;
    fn read(&mut self, address: u64, size: GpteSize) -> Result<u64, Nowhere> {
        let frame = Machine::frame(address).ok_or(Nowhere)?;
        Ok(self.0.load(frame, (address & 4095) as u16, size))
    }
    fn compare_exchange(&mut self, address: u64, size: GpteSize, old: u64, new: u64) -> Result<bool, Nowhere> {
        let frame = Machine::frame(address).ok_or(Nowhere)?;
        if frame.backing() == BackingId(1) {
            return Ok(true);
        }
        Ok(self
            .0
            .compare_exchange(frame, (address & 4095) as u16, size, old, new)
            .is_ok())
    }
}

/// 4-level tables at 0x1000..0x5000 that map the first 2M at 0 one to one, with entries of `flags`: the guest's kernel.
/// Its page table is at 0x4000.
pub fn identity(machine: &Machine, flags: u64) {
    machine.poke(0x1000, 0x2000 | ALL);
    machine.poke(0x2000, 0x3000 | ALL);
    machine.poke(0x3000, 0x4000 | ALL);
    for page in 0..512 {
        machine.poke(0x4000 + 8 * page, page << 12 | flags);
    }
}
