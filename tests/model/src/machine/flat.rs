// SPDX-License-Identifier: MIT OR Apache-2.0
//! The simulated processors alone: guest memory is host memory, slots are looked up, and there is no MMU at all.
//!
//! What fails here is the simulation, not what it is to test.

use super::sim_do;
use crate::judge::{Op, Seen};
use crate::layout::{LOG_DIRTY, SHAPES};
use crate::memory::{GuestMemory, Page, Slot};
use crate::oracle::{Registers, Who};
use crate::script::Step;
use crate::world::{Clear, Failure, MAXPHYADDR, Machine, Slotted};
use std::sync::Arc;
use umbra_mmu_abi::{Access, BackingId};
use umbra_mmu_core::sim::cpu::{Cpu, Exit, HostPage, Physical};
use umbra_mmu_core::sim::memory::SimMemory;
use umbra_mmu_core::sim::paging::{Model, Paging};
use umbra_mmu_core::sim::walk::{Memory, Translation};
use umbra_mmu_core::stage2::{Frame, GpteSize};

/// An access that the slots do not allow.
#[derive(Debug)]
struct Refusal {
    gpa: u64,
    readonly_slot: bool,
}

/// The slots; their dirty logs too.
struct Slots {
    table: GuestMemory,
    memory: Arc<SimMemory>,
    changes: u64,
}

impl Slots {
    fn frame(&self, gpa: u64, kind: Access) -> Result<Frame, Refusal> {
        let refused = |readonly_slot| Refusal { gpa, readonly_slot };
        let (_, slot) = self.table.slot_at(gpa >> 12).ok_or(refused(false))?;
        if kind == Access::Write && slot.readonly() {
            return Err(refused(true));
        }
        let page = (slot.first + (gpa >> 12) - slot.base) as u32;
        Ok(Frame::new(BackingId(slot.backing), page).expect("the layout is small"))
    }
}

/// As one processor uses them.
struct Below<'a>(&'a mut Slots);

impl Memory for Below<'_> {
    type Refused = Refusal;

    fn read(&mut self, address: u64, size: GpteSize) -> Result<u64, Refusal> {
        let frame = self.0.frame(address, Access::Read)?;
        Ok(self.0.memory.load(frame, (address & 4095) as u16, size))
    }

    fn compare_exchange(&mut self, address: u64, size: GpteSize, old: u64, new: u64) -> Result<bool, Refusal> {
        let frame = self.0.frame(address, Access::Write)?;
        self.0.table.log(address >> 12);
        Ok(self
            .0
            .memory
            .compare_exchange(frame, (address & 4095) as u16, size, old, new)
            .is_ok())
    }
}

impl Physical for Below<'_> {
    fn flushes(&self) -> u64 {
        self.0.changes
    }

    fn host(&mut self, address: u64, kind: Access) -> Result<HostPage, Refusal> {
        let frame = self.0.frame(address, kind)?;
        let logged = |(_, slot): (u16, &Slot)| slot.flags & LOG_DIRTY != 0;
        if kind == Access::Write {
            self.0.table.log(address >> 12);
        }
        Ok(HostPage {
            host: self.0.memory.layout().hfn(frame) << 12,
            shift: 12,
            // Each write to a page that is logged has to come by here.
            writable: kind == Access::Write && !self.0.table.slot_at(address >> 12).is_some_and(logged),
        })
    }

    fn verify(&self, _: &Paging, _: u64, _: &Translation) {}

    fn memory(&self) -> &SimMemory {
        &self.0.memory
    }
}

/// Processors and slots.
pub struct Flat {
    cpus: Vec<Cpu>,
    slots: Slots,
}

impl Flat {
    /// `vcpus` processors.
    pub fn new(vcpus: u8, model: Model) -> Self {
        let memory = SimMemory::new(SimMemory::layout_for(46), &SHAPES, 0);
        Self {
            cpus: (0..vcpus).map(|_| Cpu::new(model, None)).collect(),
            slots: Slots {
                table: GuestMemory::new(),
                memory,
                changes: 0,
            },
        }
    }

    /// The usual processor, with the guest's width of addresses.
    pub fn model() -> Model {
        Model {
            maxphyaddr: MAXPHYADDR as u8,
            ..Model::default()
        }
    }
}

impl Machine for Flat {
    fn access(&mut self, vcpu: u8, gva: u64, who: Who, op: Op) -> Result<Seen, Failure> {
        let mut below = Below(&mut self.slots);
        let done = sim_do(&mut self.cpus[vcpu as usize], &mut below, gva, who, op);
        Ok(match (done, op) {
            (Ok(value), Op::Read | Op::Fetch) => Seen::Value(value),
            (Ok(_), Op::Write { .. }) => Seen::Stored,
            (Err(Exit::PageFault { cr2, code }), _) => Seen::Fault { cr2, code: code.bits() },
            (Err(Exit::Refused(Refusal { gpa, readonly_slot })), _) => Seen::Mmio {
                gfn: gpa >> 12,
                readonly_slot,
            },
            (Err(Exit::GeneralProtection), _) => return Err(Failure::new("#GP", format!("at {gva:#x}"))),
        })
    }

    fn load(&mut self, vcpu: u8, regs: &Registers) -> Result<(), Failure> {
        let cpu = &mut self.cpus[vcpu as usize];
        let mut below = Below(&mut self.slots);
        super::load(cpu, &mut below, regs).map_err(|exit| Failure::new("load", format!("{exit:?}")))
    }

    fn invlpg(&mut self, vcpu: u8, gva: u64) -> Result<(), Failure> {
        self.cpus[vcpu as usize].invlpg(gva);
        Ok(())
    }

    fn set_slot(&mut self, id: u16, slot: &Slot) -> Result<Slotted, Failure> {
        let table = &mut self.slots.table;
        let accepted = match slot.npages {
            0 => table.slot(id).is_some(),
            _ => table.accepts(id, slot),
        };
        if accepted {
            table.set_slot(id, (slot.npages > 0).then_some(*slot));
            self.slots.changes += 1;
        }
        Ok(if accepted { Slotted::Done } else { Slotted::Refused })
    }

    fn log(&mut self, id: u16, clear: Clear) -> Result<Option<Vec<u64>>, Failure> {
        let logged = self
            .slots
            .table
            .slot(id)
            .is_some_and(|slot| slot.flags & LOG_DIRTY != 0);
        let written = self.slots.table.written(id);
        let log = logged.then(|| written.iter().copied().collect());
        match clear {
            Clear::Nothing => {}
            Clear::All => written.clear(),
            Clear::Pages { first, npages } => {
                written.retain(|page| !(first.into()..first as u64 + npages as u64).contains(page));
            }
        }
        self.slots.changes += 1;
        Ok(log)
    }

    fn device(&mut self, gpa: u64, value: u64) -> Result<(), Failure> {
        if let Ok(frame) = self.slots.frame(gpa, Access::Read) {
            self.slots.memory.store(frame, (gpa & 4095) as u16, GpteSize::B8, value);
            self.slots.table.log(gpa >> 12);
        }
        Ok(())
    }

    fn host(&mut self, _: &Step) -> Result<(), Failure> {
        Ok(())
    }

    fn take_written(&mut self) -> Vec<Page> {
        super::take_written(&self.slots.memory)
    }

    fn word(&mut self, page: Page, gpa: u64) -> u64 {
        super::word(&self.slots.memory, page, gpa)
    }

    fn audit(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    fn check(&mut self) -> Result<(), Failure> {
        Ok(())
    }
}
