// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which machine is under test? Simulated processors, their memory, and the MMU in one of its modes.

pub mod ept;
pub mod flat;

use crate::judge::Op;
use crate::memory::Page;
use crate::oracle::{Controls, Kind, Paging, Registers, Who};
use crate::script::{Engine, Header};
use crate::world::{Failure, Machine, Slotted};
use umbra_mmu_abi as abi;
use umbra_mmu_abi::{BackingId, Generation, SlotError};
use umbra_mmu_core::change::ChangeError;
use umbra_mmu_core::sim::cpu::{Cpu, Exit, Operation, Physical};
use umbra_mmu_core::sim::memory::SimMemory;
use umbra_mmu_core::sim::paging as sim;
use umbra_mmu_core::stage2::{Frame, GpteSize};

/// The machine that the header of a script names.
pub fn machine(header: &Header) -> Box<dyn Machine> {
    let Header::Machine { engine, .. } = header;
    match engine {
        Engine::Ept => Box::new(ept::EptMachine::new(header)),
        Engine::Shadow => todo!(),
    }
}

/// The values of cr0, cr4 and efer.
pub fn control_registers(paging: Paging, controls: Controls) -> (u64, u64, u64) {
    let has = |control, bit| if controls.contains(control) { bit } else { 0u64 };
    let (pg, pae, lme, la57) = match paging {
        Paging::Off => (0, 0, 0, 0),
        Paging::TwoLevel => (sim::CR0_PG, 0, 0, 0),
        Paging::Pae => (sim::CR0_PG, sim::CR4_PAE, 0, 0),
        Paging::FourLevel => (sim::CR0_PG, sim::CR4_PAE, sim::EFER_LME, 0),
        Paging::FiveLevel => (sim::CR0_PG, sim::CR4_PAE, sim::EFER_LME, sim::CR4_LA57),
    };
    let protection = has(Controls::SMEP, sim::CR4_SMEP) | has(Controls::SMAP, sim::CR4_SMAP);
    (
        pg | has(Controls::WP, sim::CR0_WP),
        pae | la57 | has(Controls::PSE, sim::CR4_PSE) | protection,
        lme | has(Controls::NXE, sim::EFER_NXE),
    )
}

/// As the simulated processor has it.
pub fn sim_registers(regs: &Registers) -> sim::Registers {
    let (cr0, cr4, efer) = control_registers(regs.paging, regs.controls);
    sim::Registers {
        cr0,
        cr3: regs.cr3,
        cr4,
        efer,
        pdptes: regs.pdptes,
    }
}

fn sim_access(op: Op, who: Who) -> sim::Access {
    sim::Access {
        kind: match op.kind() {
            Kind::Read => abi::Access::Read,
            Kind::Write => abi::Access::Write,
            Kind::Fetch => abi::Access::Fetch,
        },
        privilege: match who {
            Who::User => sim::Privilege::User,
            Who::Supervisor => sim::Privilege::Supervisor,
            Who::SupervisorAc => sim::Privilege::SupervisorAc,
        },
    }
}

/// Does an access of a processor.
fn sim_do<P: Physical>(cpu: &mut Cpu, below: &mut P, gva: u64, who: Who, op: Op) -> Result<u64, Exit<P::Refused>> {
    let access = sim_access(op, who);
    let operation = match op {
        Op::Read | Op::Fetch => Operation::Load(GpteSize::B8),
        Op::Write { bytes, value } => Operation::Store { bytes, value },
    };
    cpu.access(below, gva, access, operation)
}

/// Loads registers as a guest does: its own instructions where the mode stays, a reset where it does not.
fn load<P: Physical>(cpu: &mut Cpu, below: &mut P, regs: &Registers) -> Result<(), Exit<P::Refused>> {
    let new = sim_registers(regs);
    let old = *cpu.registers();
    if old.mode() != new.mode() {
        cpu.enter(new);
        cpu.flush();
        return Ok(());
    }
    // The other way round, bits that reload the PDPTE registers would read those of the old root.
    cpu.load_cr3(below, regs.cr3)?;
    if (old.cr0, old.cr4, old.efer) != (new.cr0, new.cr4, new.efer) {
        cpu.write_control(below, new)?;
    }
    Ok(())
}

fn frame(page: Page) -> Frame {
    Frame::new(BackingId(page.backing), page.page).expect("the layout is small")
}

/// What came of a change of a slot.
fn slotted(changed: Result<Generation, ChangeError>) -> Result<Slotted, Failure> {
    match changed {
        Ok(_) => Ok(Slotted::Done),
        Err(ChangeError::Refused(SlotError::NoSpace)) => Ok(Slotted::NoRoom),
        Err(ChangeError::Refused(_)) => Ok(Slotted::Refused),
        Err(error) => Err(Failure::new("slot", error.to_string())),
    }
}

fn word(memory: &SimMemory, page: Page, gpa: u64) -> u64 {
    memory.load(frame(page), (gpa & 4088) as u16, GpteSize::B8)
}

fn take_written(memory: &SimMemory) -> Vec<Page> {
    let page = |frame: Frame| Page {
        backing: frame.backing().0,
        page: frame.page(),
    };
    memory.take_written().into_iter().map(page).collect()
}
