// SPDX-License-Identifier: MIT OR Apache-2.0
//! The MMU in shadow mode: processors walk its tables, which it makes from the guest's.

use super::{Owner, sim_do};
use crate::judge::{Op, Seen};
use crate::layout::SHAPES;
use crate::memory::{Page, Slot};
use crate::oracle::{Paging, Registers, Who};
use crate::script::{Header, Step};
use crate::world::{Clear, Failure, MAXPHYADDR, Machine, Slotted};
use std::sync::Arc;
use umbra_mmu_abi::{Generation, Gpa, SlotId};
use umbra_mmu_core::fault::{ErrorCode, Fault, Outcome};
use umbra_mmu_core::shadow::registers as guest;
use umbra_mmu_core::shadow::roots::{LocalFlush, NotLoaded, Roots};
use umbra_mmu_core::shadow::write::NotWritten;
use umbra_mmu_core::sim::cpu::{Cpu, Exit};
use umbra_mmu_core::sim::memory::SimMemory;
use umbra_mmu_core::sim::paging::{self as hw, StaleDenial};
use umbra_mmu_core::sim::shadow::{HostTables, Staleness};
use umbra_mmu_core::sim::{SimRam, SimShadow, SimWords};
use umbra_mmu_core::vcpu::Vcpu;
use umbra_mmu_core::{Limits, Mmu, Mode};

struct Processor {
    cpu: Cpu,
    vcpu: Vcpu,
}

/// Processors that walk shadow tables.
pub struct ShadowMachine {
    mmu: Mmu<SimShadow>,
    memory: Arc<SimMemory>,
    owner: Owner,
    /// The limit of shadow pages.
    limit: usize,
    processors: Vec<Processor>,
}

/// Shadow pages that one fault may need; a limit below twice as many is none.
const FEWEST: usize = 8;

/// What an access cannot do after so many faults it never can.
const FAULTS: u32 = 24;

/// The guest's registers as the MMU has them.
fn guest_registers(regs: &Registers) -> guest::Registers {
    let (cr0, cr4, efer) = super::control_registers(regs.paging, regs.controls);
    let long = match regs.paging {
        Paging::Off | Paging::TwoLevel | Paging::Pae => 0,
        Paging::FourLevel | Paging::FiveLevel => guest::EFER_LMA,
    };
    guest::Registers {
        cr0: cr0 | guest::CR0_PE,
        cr3: regs.cr3,
        cr4,
        efer: efer | long,
    }
}

impl ShadowMachine {
    /// As the header of a script says.
    pub fn new(header: &Header) -> Self {
        let Header::Machine {
            vcpus,
            tables,
            generation,
            ..
        } = *header;
        let memory = SimMemory::new(SimMemory::layout_for(46), &SHAPES, tables as usize);
        let limits = Limits {
            tables: tables as usize,
            rmap_entries: 4096,
            first_generation: Generation(generation),
        };
        let mmu = Mmu::with_ram(
            SimShadow::new(memory.clone()),
            SimRam(memory.clone()),
            SimWords(memory.clone()),
            Mode::Shadow(*memory.layout()),
            SHAPES.to_vec(),
            &limits,
        );
        let mmu = mmu.expect("the machine is small").with_guest_cpu(guest::GuestCpu {
            maxphyaddr: MAXPHYADDR as u8,
            features: guest::Features::all(),
        });
        // The second processor faults wherever an old translation does not allow an access, though the tables may.
        let model = |id| hw::Model {
            stale_denial: if id == 1 {
                StaleDenial::Faults
            } else {
                StaleDenial::Walks
            },
            ..hw::Model::default()
        };
        let processor = |id| Processor {
            cpu: Cpu::new(model(id), super::forgetful(id)),
            vcpu: mmu.add_vcpu().expect("there are few"),
        };
        let processors = (0..vcpus).map(processor).collect();
        Self {
            mmu,
            memory,
            owner: Owner::default(),
            limit: tables as usize,
            processors,
        }
    }

    /// The MMU.
    pub fn mmu(&self) -> &Mmu<SimShadow> {
        &self.mmu
    }

    /// All memory, for those who go behind the MMU's back.
    pub fn memory(&self) -> &SimMemory {
        &self.memory
    }

    /// Enters the guest, which does its access or faults.
    fn enter(&mut self, vcpu: u8, gva: u64, who: Who, op: Op) -> Result<Result<u64, (u64, ErrorCode)>, Failure> {
        let Processor { cpu, vcpu } = &mut self.processors[vcpu as usize];
        let entry = self
            .mmu
            .enter(vcpu)
            .map_err(|error| Failure::new("enter", error.to_string()))?;
        let registers = |cr3, cr4, efer, pdptes| hw::Registers {
            cr0: hw::CR0_PG | hw::CR0_WP,
            cr3,
            cr4: hw::CR4_PAE | cr4 | entry.cr4,
            efer: hw::EFER_NXE | efer,
            pdptes,
        };
        cpu.enter(match entry.roots {
            Roots::Pml4(cr3) => registers(cr3, 0, hw::EFER_LME, [0; 4]),
            Roots::Pml5(cr3) => registers(cr3, hw::CR4_LA57, hw::EFER_LME, [0; 4]),
            Roots::Pdptes(pdptes) => registers(0, 0, 0, pdptes),
        });
        match entry.flush {
            LocalFlush::Nothing => {}
            LocalFlush::Address(gva) => cpu.invlpg(gva),
            LocalFlush::All => cpu.flush(),
        }
        let mut below = HostTables {
            memory: &self.memory,
            staleness: Staleness::Refused,
        };
        match sim_do(cpu, &mut below, gva, who, op) {
            Ok(value) => Ok(Ok(value)),
            Err(Exit::PageFault { cr2, code }) => Ok(Err((cr2, code))),
            Err(Exit::GeneralProtection) => Err(Failure::new("#GP", format!("of a processor at {gva:#x}"))),
            Err(Exit::Refused(never)) => match never {},
        }
    }

    /// What the MMU makes of a page fault; `None`: the access goes on.
    fn fault(&mut self, vcpu: u8, (cr2, code): (u64, ErrorCode), who: Who, op: Op) -> Result<Option<Seen>, Failure> {
        let vcpu = &mut self.processors[vcpu as usize].vcpu;
        let ac = match who {
            Who::SupervisorAc => ErrorCode::AC,
            Who::User | Who::Supervisor => ErrorCode::empty(),
        };
        let fault = Fault {
            address: cr2,
            code: code | ac,
        };
        let outcome = self.mmu.fault(vcpu, &fault);
        Ok(
            match outcome.map_err(|error| Failure::new("fault", format!("{error} at {cr2:#x}")))? {
                Outcome::Resume => None,
                Outcome::Emulate(mmio) => {
                    if mmio.generation != self.mmu.generation() {
                        let text = format!("{mmio:?} is not of {:?}", self.mmu.generation());
                        return Err(Failure::new("mmio", text));
                    }
                    Some(Seen::Mmio {
                        gfn: mmio.gfn.raw(),
                        readonly_slot: mmio.readonly_slot,
                    })
                }
                Outcome::EmulateTableWrite { gpa } => {
                    let Op::Write { bytes, value } = op else {
                        return Err(Failure::new(
                            "outcome",
                            format!("{op:?} is a write to a table at {gpa}"),
                        ));
                    };
                    let bytes = &value.to_le_bytes()[..bytes as usize];
                    match self.mmu.emulated_write(vcpu, gpa, bytes) {
                        Ok(()) => {}
                        // The access is tried again.
                        Err(NotWritten::Host(fault)) => {
                            self.owner.need(&self.mmu, &self.memory, &fault)?;
                            return Ok(None);
                        }
                        Err(error) => return Err(Failure::new("outcome", format!("a write to {gpa}: {error:?}"))),
                    }
                    Some(Seen::Stored)
                }
                Outcome::Host(fault) => {
                    self.owner.need(&self.mmu, &self.memory, &fault)?;
                    None
                }
                Outcome::Reflect(fault) => Some(Seen::Fault {
                    cr2: fault.cr2,
                    code: fault.code.bits(),
                }),
            },
        )
    }
}

impl Machine for ShadowMachine {
    fn access(&mut self, vcpu: u8, gva: u64, who: Who, op: Op) -> Result<Seen, Failure> {
        for _ in 0..FAULTS {
            match (self.enter(vcpu, gva, who, op)?, op) {
                (Ok(value), Op::Read | Op::Fetch) => return Ok(Seen::Value(value)),
                (Ok(_), Op::Write { .. }) => return Ok(Seen::Stored),
                (Err(fault), _) => {
                    if let Some(seen) = self.fault(vcpu, fault, who, op)? {
                        return Ok(seen);
                    }
                }
            }
        }
        Ok(Seen::Blocked)
    }

    fn load(&mut self, vcpu: u8, regs: &Registers) -> Result<(), Failure> {
        let vcpu = &mut self.processors[vcpu as usize].vcpu;
        let (old, new) = (*vcpu.registers(), guest_registers(regs));
        let load = |vcpu: &mut Vcpu| {
            if old.mode() != new.mode() {
                return self.mmu.restore_registers(vcpu, new);
            }
            self.mmu.write_cr3(vcpu, new.cr3)?;
            if old.cr0 != new.cr0 {
                self.mmu.write_cr0(vcpu, new.cr0)?;
            }
            if old.cr4 != new.cr4 {
                self.mmu.write_cr4(vcpu, new.cr4)?;
            }
            if old.efer != new.efer {
                self.mmu.write_efer(vcpu, new.efer)?;
            }
            Ok(())
        };
        while let Err(error) = load(vcpu) {
            match error {
                NotLoaded::Host(fault) => self.owner.need(&self.mmu, &self.memory, &fault)?,
                NotLoaded::GeneralProtection => return Err(Failure::new("load", format!("#GP of {regs:x?}"))),
            }
        }
        match regs.paging == Paging::Pae && vcpu.pdptes() != regs.pdptes {
            true => Err(Failure::new(
                "load",
                format!("{:x?} are in the registers of {regs:x?}", vcpu.pdptes()),
            )),
            false => Ok(()),
        }
    }

    fn invlpg(&mut self, vcpu: u8, gva: u64) -> Result<(), Failure> {
        self.mmu.invlpg(&mut self.processors[vcpu as usize].vcpu, gva);
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
        // A device's write is emulated as an instruction's is; where nothing can be written it goes by the slots.
        let vcpu = &mut self.processors[0].vcpu;
        loop {
            match self.mmu.emulated_write(vcpu, Gpa::new(gpa), &value.to_le_bytes()) {
                Ok(()) => return Ok(()),
                Err(NotWritten::Host(fault)) => self.owner.need(&self.mmu, &self.memory, &fault)?,
                Err(NotWritten::NoMemory) => {
                    super::device(&self.mmu, &self.memory, gpa, value);
                    return Ok(());
                }
            }
        }
    }

    fn host(&mut self, step: &Step) -> Result<(), Failure> {
        match step {
            Step::Limit { tables } => self.limit = *tables as usize,
            // The least recently used go, and there may be as many again.
            Step::Shrink { tables } => {
                let fewer = self.mmu.shadow_pages().saturating_sub(*tables as usize);
                self.mmu.set_shadow_page_limit(fewer);
                self.mmu.set_shadow_page_limit(self.limit);
            }
            _ => {}
        }
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
        // REQ: SP-11: roots in use may stay above a limit that has just gone down.
        let (pages, most) = (self.mmu.shadow_pages(), self.limit.max(2 * FEWEST));
        let roots = 4 * self.processors.len();
        match pages <= most + roots {
            true => Ok(()),
            false => Err(Failure::new(
                "limit",
                format!("{pages} shadow pages, and {most} at the most"),
            )),
        }
    }
}
