// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which machine is under test? Simulated processors, their memory, and the MMU in one of its modes.

pub mod ept;
pub mod flat;
pub mod shadow;

use crate::judge::Op;
use crate::layout::SHAPES;
use crate::memory::{Page, Slot};
use crate::oracle::{Controls, Kind, Paging, Registers, Who};
use crate::script::{Engine, Header, Step};
use crate::world::{Clear, Failure, Machine, Slotted};
use std::collections::VecDeque;
use umbra_mmu_abi as abi;
use umbra_mmu_abi::{Backing, BackingId, Gfn, Gpa, SlotError, SlotFlags, SlotId};
use umbra_mmu_core::Mmu;
use umbra_mmu_core::change::ChangeError;
use umbra_mmu_core::fault::HostFault;
use umbra_mmu_core::host::{HostError, PageState, SplitFor};
use umbra_mmu_core::logging::LogError;
use umbra_mmu_core::notify::{HostPair, Mappings};
use umbra_mmu_core::resize::{Resize, ResizeError};
use umbra_mmu_core::sim::cpu::{Cpu, Exit, Operation, Physical};
use umbra_mmu_core::sim::memory::SimMemory;
use umbra_mmu_core::sim::paging as sim;
use umbra_mmu_core::sim::tlb::Forgetful;
use umbra_mmu_core::stage2::{Frame, GpteSize, Stage2};

/// The machine that the header of a script names.
pub fn machine(header: &Header) -> Box<dyn Machine> {
    let Header::Machine { engine, .. } = header;
    match engine {
        Engine::Ept => Box::new(ept::EptMachine::new(header)),
        Engine::Shadow => Box::new(shadow::ShadowMachine::new(header)),
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

/// The last processor forgets one in five of what it looks for, and now and then everything.
fn forgetful(vcpu: u8) -> Option<Forgetful> {
    (vcpu == 2).then(|| Forgetful::new(u64::from(vcpu), 5))
}

fn frame(page: Page) -> Frame {
    Frame::new(BackingId(page.backing), page.page).expect("the layout is small")
}

/// What comes of a change of a slot.
fn set_slot<S: Stage2>(mmu: &Mmu<S>, id: u16, slot: &Slot) -> Result<Slotted, Failure> {
    let backing = Backing {
        id: BackingId(slot.backing),
        first_page: slot.first as u32,
    };
    let flags = SlotFlags::from_bits_retain(slot.flags);
    match mmu.set_slot(SlotId(id), Gfn::new(slot.base), slot.npages as u32, backing, flags) {
        Ok(_) => Ok(Slotted::Done),
        Err(ChangeError::Refused(SlotError::Busy)) => Ok(Slotted::Busy),
        Err(ChangeError::Refused(SlotError::NoSpace)) => Ok(Slotted::NoRoom),
        Err(ChangeError::Refused(_)) => Ok(Slotted::Refused),
        Err(error) => Err(Failure::new("slot", error.to_string())),
    }
}

/// A device of the vmm writes to memory, wherever there is some.
fn device<S: Stage2>(mmu: &Mmu<S>, memory: &SimMemory, gpa: u64, value: u64) {
    let gpa = Gpa::new(gpa);
    let found = mmu.with_slots(|slots| slots.lookup(gpa.gfn()).map(|slot| slot.frame_of(gpa.gfn())));
    if let Some(frame) = found {
        memory.store(frame, gpa.offset() as u16, GpteSize::B8, value);
        mmu.device_wrote(gpa, 8);
    }
}

/// The log of a slot, as pages of it.
fn log<S: Stage2>(mmu: &Mmu<S>, id: u16, pages: u64, clear: Clear) -> Result<Option<Vec<u64>>, Failure> {
    let id = SlotId(id);
    let mut words = vec![0; pages.div_ceil(64) as usize];
    let read = match clear {
        Clear::All => mmu.get_and_clear_log(id, 0, &mut words),
        Clear::Nothing | Clear::Pages { .. } => mmu.get_log(id, 0, &mut words),
    };
    match read {
        Ok(_) => {}
        Err(LogError::NoSlot | LogError::NotLogged) => return Ok(None),
        Err(error) => return Err(Failure::new("log", error.to_string())),
    }
    if let Clear::Pages { first, npages } = clear {
        let mask = |word: usize| {
            let bits = (0..64).filter(|bit| (first..first + npages).contains(&(word as u32 * 64 + bit)));
            bits.map(|bit| 1u64 << bit).sum()
        };
        let masks: Vec<u64> = (0..words.len()).map(mask).collect();
        let cleared = mmu.clear_log(id, 0, &masks);
        cleared.map_err(|error| Failure::new("log", error.to_string()))?;
    }
    let marked = |page: &u64| words[*page as usize / 64] >> (page % 64) & 1 == 1;
    Ok(Some((0..pages).filter(marked).collect()))
}

/// Who owns the frames.
#[derive(Default)]
struct Owner {
    pairs: VecDeque<HostPair>,
}

impl Owner {
    /// Does what a step says. Frames that cannot be changed so stay as they are.
    fn act<S: Stage2>(&mut self, mmu: &Mmu<S>, memory: &SimMemory, step: &Step) {
        match *step {
            Step::ZapAll {} => mmu.zap_all(),
            Step::Background {} => mmu.background(),
            Step::Age { backing, first, npages } => {
                let _: Result<(), HostError> = mmu.test_and_clear_young(range(backing, first), npages, |_, _| {});
            }
            Step::InvalidateStart { backing, first, npages } => {
                let pair = mmu.invalidate_start(range(backing, first), npages, Mappings::Present);
                self.pairs.extend(pair);
            }
            Step::InvalidateEnd {} => {
                if let Some(pair) = self.pairs.pop_front() {
                    restore(memory, pair.first(), pair.pages());
                    mmu.invalidate_end(pair, PageState::Resident);
                }
            }
            Step::Reclaim { backing, first, npages } => {
                let done = mmu.reclaim(range(backing, first), npages);
                let gone = if done.is_ok() { first..first + npages } else { 0..0 };
                gone.for_each(|page| memory.withdraw(range(backing, page)));
            }
            Step::Protect { backing, first, npages } => {
                let done = mmu.write_protect_frames(range(backing, first), npages);
                restore(memory, range(backing, first), if done.is_ok() { npages } else { 0 });
            }
            Step::Limit { tables } => mmu.set_shadow_page_limit(tables as usize),
            Step::SplitForLog { id } => {
                let _: Result<u32, ResizeError> = mmu.split_for_log(SlotId(id));
            }
            Step::Split { backing, first } => {
                let _: Result<(), ResizeError> = mmu.resize(range(backing, first), Resize::Split(SplitFor::Owner));
            }
            Step::Collapse { backing, first } => {
                let _: Result<(), ResizeError> = mmu.resize(range(backing, first), Resize::Merge);
            }
            _ => {}
        }
    }

    /// A guest needs a frame that is away, or cannot be written.
    fn need<S: Stage2>(&mut self, mmu: &Mmu<S>, memory: &SimMemory, fault: &HostFault) -> Result<(), Failure> {
        let whole = |pages: u32| {
            let page = fault.frame.page() / pages * pages;
            (range(fault.frame.backing().0, page), pages)
        };
        // Of a large frame it is all or nothing.
        for (first, pages) in [whole(1), whole(512)] {
            restore(memory, first, pages);
            if mmu.give_back(first, pages).is_ok() {
                return Ok(());
            }
        }
        Err(Failure::new("host", format!("{fault:?} cannot be met")))
    }
}

/// Frames are there again.
fn restore(memory: &SimMemory, first: Frame, pages: u32) {
    let there = SHAPES[first.backing().0 as usize].pages().expect("the layout is small");
    let end = there.min(first.page() + pages);
    (first.page()..end).for_each(|page| memory.restore(range(first.backing().0, page)));
}

fn range(backing: u16, first: u32) -> Frame {
    Frame::new(BackingId(backing), first).expect("the layout is small")
}

fn audit<S: Stage2>(mmu: &Mmu<S>) -> Result<(), Failure> {
    let audit = mmu.audit();
    match audit.differences {
        0 => Ok(()),
        _ => Err(Failure::new("audit", format!("{audit:?}"))),
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
