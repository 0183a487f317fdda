// SPDX-License-Identifier: MIT OR Apache-2.0
//! Do the simulated processor and the MMU walk guest tables as the manual says? Every combination of the bits that
//! matter at each level, of the control registers, and of the access, in each paging mode.

use umbra_mmu_abi as abi;
use umbra_mmu_abi::Gfn;
use umbra_mmu_core::fault::ErrorCode;
use umbra_mmu_core::shadow::registers as shadow;
use umbra_mmu_core::shadow::walk as mmu;
use umbra_mmu_core::sim::paging as sim;
use umbra_mmu_core::sim::walk::{self, Memory, NoCaches, WalkError};
use umbra_mmu_core::stage2::GpteSize;
use umbra_model::cases::{Case, each_access};
use umbra_model::oracle::{Access, Controls, End, Kind, Paging, Registers, Who, translate};

/// What a walk came to: where it leads or the fault, and the entries afterwards.
#[derive(Debug, PartialEq)]
struct Result {
    end: End,
    entries: [(u64, u64); 5],
}

/// By the manual. Where there is no memory, a bus without anybody gives all ones.
fn right(case: &Case, regs: &Registers, access: Access) -> Result {
    let walk = translate(case, regs, case.gva, access);
    let mut entries = case.entries;
    if let End::Page { .. } = walk.end {
        for flagged in walk.flagged(access.kind) {
            entries.iter_mut().find(|(gpa, _)| *gpa == flagged.gpa).unwrap().1 = flagged.value;
        }
    }
    Result { end: walk.end, entries }
}

/// Only the case's entries are memory.
struct Entries([(u64, u64); 5]);

/// An access to another address.
#[derive(Debug)]
struct Nowhere(u64);

impl Memory for Entries {
    type Refused = Nowhere;

    fn read(&mut self, address: u64, _: GpteSize) -> std::result::Result<u64, Nowhere> {
        let entry = self.0.iter().find(|(gpa, _)| *gpa == address);
        entry.map(|(_, value)| *value).ok_or(Nowhere(address))
    }

    fn compare_exchange(&mut self, at: u64, _: GpteSize, old: u64, new: u64) -> std::result::Result<bool, Nowhere> {
        let entry = self.0.iter_mut().find(|(gpa, _)| *gpa == at).ok_or(Nowhere(at))?;
        assert_eq!(entry.1, old, "nobody else changes entries");
        entry.1 = new;
        Ok(true)
    }
}

fn control_registers(regs: &Registers) -> (u64, u64, u64) {
    let has = |control, bit| if regs.controls.contains(control) { bit } else { 0u64 };
    let (pg, pae, lme, la57) = match regs.paging {
        Paging::Off => (0, 0, 0, 0),
        Paging::TwoLevel => (sim::CR0_PG, 0, 0, 0),
        Paging::Pae => (sim::CR0_PG, sim::CR4_PAE, 0, 0),
        Paging::FourLevel => (sim::CR0_PG, sim::CR4_PAE, sim::EFER_LME, 0),
        Paging::FiveLevel => (sim::CR0_PG, sim::CR4_PAE, sim::EFER_LME, sim::CR4_LA57),
    };
    let cr0 = pg | has(Controls::WP, sim::CR0_WP);
    let protection = has(Controls::SMEP, sim::CR4_SMEP) | has(Controls::SMAP, sim::CR4_SMAP);
    let cr4 = pae | la57 | has(Controls::PSE, sim::CR4_PSE) | protection;
    (cr0, cr4, lme | has(Controls::NXE, sim::EFER_NXE))
}

fn abi_access(kind: Kind) -> abi::Access {
    match kind {
        Kind::Read => abi::Access::Read,
        Kind::Write => abi::Access::Write,
        Kind::Fetch => abi::Access::Fetch,
    }
}

fn by_simulated_processor(case: &Case, regs: &Registers, access: Access) -> Result {
    let (cr0, cr4, efer) = control_registers(regs);
    let registers = sim::Registers {
        cr0,
        cr3: regs.cr3,
        cr4,
        efer,
        pdptes: regs.pdptes,
    };
    let model = sim::Model {
        maxphyaddr: regs.maxphyaddr as u8,
        accessed: sim::AccessedFlags::OnSuccess,
        ..sim::Model::default()
    };
    let paging = sim::Paging::new(&registers, model);
    let sim_access = sim::Access {
        kind: abi_access(access.kind),
        privilege: match access.who {
            Who::User => sim::Privilege::User,
            Who::Supervisor => sim::Privilege::Supervisor,
            Who::SupervisorAc => sim::Privilege::SupervisorAc,
        },
    };
    let mut entries = Entries(case.entries);
    let end = match walk::walk(&mut entries, &mut NoCaches, &paging, case.gva, sim_access) {
        Ok(translation) => End::Page {
            gpa: translation.address,
        },
        Err(WalkError::PageFault(code)) => End::Fault { code: code.bits() },
        // The error code is not the walker's to tell; compared without.
        Err(WalkError::Refused(Nowhere(gpa))) => End::NoMemory { gpa, code: 0 },
    };
    Result {
        end,
        entries: entries.0,
    }
}

/// The MMU's view of the same entries.
struct Tables(std::cell::RefCell<Entries>);

impl mmu::GuestTables for Tables {
    fn read(&self, gfn: Gfn, offset: u16, size: GpteSize) -> Option<u64> {
        self.0.borrow_mut().read(gfn.gpa().raw() + offset as u64, size).ok()
    }

    fn mark(&self, gfn: Gfn, offset: u16, size: GpteSize, old: u64, new: u64) -> mmu::Marked {
        let at = gfn.gpa().raw() + offset as u64;
        match self.0.borrow_mut().compare_exchange(at, size, old, new) {
            Ok(true) => mmu::Marked::Done,
            Ok(false) | Err(Nowhere(_)) => panic!("an entry at {at:#x} was there when it was read"),
        }
    }
}

fn by_mmu(case: &Case, regs: &Registers, access: Access) -> Result {
    let (cr0, cr4, efer) = control_registers(regs);
    let long = if efer & shadow::EFER_LME != 0 {
        shadow::EFER_LMA
    } else {
        0
    };
    let registers = shadow::Registers {
        cr0: cr0 | shadow::CR0_PE,
        cr3: regs.cr3,
        cr4,
        efer: efer | long,
    };
    let cpu = shadow::GuestCpu {
        maxphyaddr: regs.maxphyaddr as u8,
        features: shadow::Features::all(),
    };
    let paging = mmu::Paging::new(&registers, &regs.pdptes, &cpu);
    let kind = match access.kind {
        Kind::Read => ErrorCode::empty(),
        Kind::Write => ErrorCode::W,
        Kind::Fetch => ErrorCode::I,
    };
    let who = match access.who {
        Who::User => ErrorCode::U,
        Who::Supervisor => ErrorCode::empty(),
        Who::SupervisorAc => ErrorCode::AC,
    };
    let tables = Tables(std::cell::RefCell::new(Entries(case.entries)));
    let end = match mmu::walk(&tables, &paging, case.gva, kind | who) {
        Ok(walk) => End::Page { gpa: walk.gpa.raw() },
        Err(mmu::NoWalk::Fault(code)) => End::Fault { code: code.bits() },
        Err(mmu::NoWalk::Retry) => panic!("nobody else changes entries"),
    };
    Result {
        end,
        entries: tables.0.into_inner().0,
    }
}

/// Compares one walker with the manual; some cases lead to tables without memory.
fn compare(paging: Paging, maxphyaddr: u32, walker: fn(&Case, &Registers, Access) -> Result, blank: fn(End) -> End) {
    let count = each_access(paging, maxphyaddr, &mut |case, regs, access| {
        let mut right = right(case, regs, access);
        if let End::NoMemory { .. } = right.end {
            right.end = blank(right.end);
        }
        let real = walker(case, regs, access);
        assert_eq!(real, right, "{access:?} with {regs:x?} of {case:x?}");
    });
    assert!(count > 100);
}

fn sim_blank(end: End) -> End {
    match end {
        End::NoMemory { gpa, .. } => End::NoMemory { gpa, code: 0 },
        End::Page { .. } | End::Fault { .. } => end,
    }
}

/// The MMU says what all ones in an entry mean: a reserved bit is set.
fn mmu_blank(end: End) -> End {
    match end {
        End::NoMemory { code, .. } => End::Fault { code: code | 0b1001 },
        End::Page { .. } | End::Fault { .. } => end,
    }
}

/// Widths with PSE-36 cut short, whole, and with more than it has.
fn widths(paging: Paging) -> &'static [u32] {
    match paging {
        Paging::Off | Paging::TwoLevel | Paging::Pae => &[36, 40, 46],
        Paging::FourLevel => &[40, 46],
        Paging::FiveLevel => &[40],
    }
}

macro_rules! walks {
    ($($name:ident: $walker:ident, $blank:ident, $paging:ident;)*) => { $(
        #[test]
        fn $name() {
            for width in widths(Paging::$paging) {
                compare(Paging::$paging, *width, $walker, $blank);
            }
        }
    )* };
}

// REQ: SP-2, PF-2
walks! {
    simulated_processor_without_paging: by_simulated_processor, sim_blank, Off;
    simulated_processor_two_levels: by_simulated_processor, sim_blank, TwoLevel;
    simulated_processor_pae: by_simulated_processor, sim_blank, Pae;
    simulated_processor_four_levels: by_simulated_processor, sim_blank, FourLevel;
    simulated_processor_five_levels: by_simulated_processor, sim_blank, FiveLevel;
    mmu_without_paging: by_mmu, mmu_blank, Off;
    mmu_two_levels: by_mmu, mmu_blank, TwoLevel;
    mmu_pae: by_mmu, mmu_blank, Pae;
    mmu_four_levels: by_mmu, mmu_blank, FourLevel;
    mmu_five_levels: by_mmu, mmu_blank, FiveLevel;
}
