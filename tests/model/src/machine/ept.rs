// SPDX-License-Identifier: MIT OR Apache-2.0
//! The MMU in EPT mode: processors walk the guest's tables, an EPT below translates what they find.

use super::{Owner, sim_do};
use crate::judge::{Op, Seen};
use crate::layout::SHAPES;
use crate::memory::{Page, Slot};
use crate::oracle::{Registers, Who};
use crate::script::{Header, Step};
use crate::world::{Clear, Failure, MAXPHYADDR, Machine, Slotted};
use std::sync::Arc;
use umbra_mmu_abi::{Generation, SlotId};
use umbra_mmu_core::fault::{Fault, Outcome};
use umbra_mmu_core::sim::cpu::{Cpu, Exit};
use umbra_mmu_core::sim::ept::{EptCaches, ThroughEpt};
use umbra_mmu_core::sim::memory::SimMemory;
use umbra_mmu_core::sim::paging::Model;
use umbra_mmu_core::sim::{SimStage2, Violation};
use umbra_mmu_core::vcpu::Vcpu;
use umbra_mmu_core::{Limits, Mmu};

struct Processor {
    cpu: Cpu,
    ept: EptCaches,
    vcpu: Vcpu,
}

/// Processors above an EPT.
pub struct EptMachine {
    mmu: Mmu<SimStage2>,
    memory: Arc<SimMemory>,
    owner: Owner,
    processors: Vec<Processor>,
}

/// An access faults on its tables' pages and on its own; what it cannot do after so many faults it never can.
const FAULTS: u32 = 24;

impl EptMachine {
    /// As the header of a script says.
    pub fn new(header: &Header) -> Self {
        let Header::Machine {
            vcpus,
            tables,
            generation,
            ..
        } = *header;
        let memory = SimMemory::new(SimMemory::layout_for(46), &SHAPES, 0);
        let stage2 = SimStage2::with_memory(memory.clone(), 2 * tables);
        let limits = Limits {
            tables: tables as usize,
            rmap_entries: 16,
            first_generation: Generation(generation),
        };
        let mmu = Mmu::new(stage2, SHAPES.to_vec(), &limits).expect("the machine is small");
        let model = Model {
            maxphyaddr: MAXPHYADDR as u8,
            ..Model::default()
        };
        let processor = |id| Processor {
            cpu: Cpu::new(model, super::forgetful(id)),
            ept: EptCaches::default(),
            vcpu: mmu.add_vcpu().expect("there are few"),
        };
        let processors = (0..vcpus).map(processor).collect();
        Self {
            mmu,
            memory,
            owner: Owner::default(),
            processors,
        }
    }

    /// The MMU.
    pub fn mmu(&self) -> &Mmu<SimStage2> {
        &self.mmu
    }

    /// What the MMU makes of an EPT violation; `None`: the access goes on.
    fn violation(&mut self, vcpu: u8, violation: Violation) -> Result<Option<Seen>, Failure> {
        let processor = &mut self.processors[vcpu as usize];
        let fault = Fault::violation(violation.gpa, violation.access);
        let outcome = self.mmu.fault(&mut processor.vcpu, &fault);
        match outcome.map_err(|error| Failure::new("fault", format!("{error} at {violation:?}")))? {
            Outcome::Resume => Ok(None),
            Outcome::Emulate(mmio) => {
                let right = (violation.gpa.gfn(), self.mmu.generation());
                if (mmio.gfn, mmio.generation) != right {
                    return Err(Failure::new("mmio", format!("{mmio:?} is not of {right:?}")));
                }
                Ok(Some(Seen::Mmio {
                    gfn: mmio.gfn.raw(),
                    readonly_slot: mmio.readonly_slot,
                }))
            }
            Outcome::Host(fault) => {
                self.owner.need(&self.mmu, &self.memory, &fault)?;
                Ok(None)
            }
            other @ (Outcome::EmulateTableWrite { .. } | Outcome::Reflect(_)) => {
                Err(Failure::new("outcome", format!("{other:?} of an EPT violation")))
            }
        }
    }

    /// Does something of a processor until the MMU lets it.
    fn persist<R>(
        &mut self,
        vcpu: u8,
        mut act: impl FnMut(&mut Cpu, &mut ThroughEpt<'_>) -> Result<R, Exit<Violation>>,
    ) -> Result<Result<R, Seen>, Failure> {
        for _ in 0..FAULTS {
            let processor = &mut self.processors[vcpu as usize];
            let caches = &mut processor.ept;
            let cpu = &mut processor.cpu;
            let done = self.mmu.with_stage2(|ept| act(cpu, &mut ThroughEpt { ept, caches }));
            match done {
                Ok(value) => return Ok(Ok(value)),
                Err(Exit::PageFault { cr2, code }) => {
                    let code = code.bits();
                    return Ok(Err(Seen::Fault { cr2, code }));
                }
                Err(Exit::Refused(violation)) => {
                    if let Some(seen) = self.violation(vcpu, violation)? {
                        return Ok(Err(seen));
                    }
                }
                Err(Exit::GeneralProtection) => return Err(Failure::new("#GP", "of a processor")),
            }
        }
        Ok(Err(Seen::Blocked))
    }
}

impl Machine for EptMachine {
    fn access(&mut self, vcpu: u8, gva: u64, who: Who, op: Op) -> Result<Seen, Failure> {
        let done = self.persist(vcpu, |cpu, below| sim_do(cpu, below, gva, who, op))?;
        Ok(match (done, op) {
            (Ok(value), Op::Read | Op::Fetch) => Seen::Value(value),
            (Ok(_), Op::Write { .. }) => Seen::Stored,
            (Err(seen), _) => seen,
        })
    }

    fn load(&mut self, vcpu: u8, regs: &Registers) -> Result<(), Failure> {
        match self.persist(vcpu, |cpu, below| super::load(cpu, below, regs))? {
            Ok(()) => Ok(()),
            Err(seen) => Err(Failure::new("load", format!("{seen:?} of {regs:x?}"))),
        }
    }

    fn invlpg(&mut self, vcpu: u8, gva: u64) -> Result<(), Failure> {
        self.processors[vcpu as usize].cpu.invlpg(gva);
        Ok(())
    }

    fn set_slot(&mut self, id: u16, slot: &Slot) -> Result<Slotted, Failure> {
        super::set_slot(&self.mmu, id, slot)
    }

    fn log(&mut self, id: u16, clear: Clear) -> Result<Option<Vec<u64>>, Failure> {
        let pages = self
            .mmu
            .with_slots(|slots| slots.get(SlotId(id)).map_or(0, |slot| slot.npages));
        super::log(&self.mmu, id, pages.into(), clear)
    }

    fn device(&mut self, gpa: u64, value: u64) -> Result<(), Failure> {
        super::device(&self.mmu, &self.memory, gpa, value);
        Ok(())
    }

    fn host(&mut self, step: &Step) -> Result<(), Failure> {
        self.owner.act(&self.mmu, &self.memory, step);
        Ok(())
    }

    fn take_written(&mut self) -> Vec<Page> {
        super::take_written(&self.memory)
    }

    fn word(&mut self, page: Page, gpa: u64) -> u64 {
        super::word(&self.memory, page, gpa)
    }

    fn audit(&mut self) -> Result<(), Failure> {
        super::audit(&self.mmu)
    }

    fn check(&mut self) -> Result<(), Failure> {
        match self.mmu.with_stage2(|stage2| stage2.unflushed()) {
            0 => Ok(()),
            count => Err(Failure::new("flush", format!("{count} removals were not flushed"))),
        }
    }
}
