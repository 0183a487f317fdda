// SPDX-License-Identifier: MIT OR Apache-2.0
//! Does a guest on shadow tables see what its own tables say? The walkers' cases again, through the whole MMU: tables are
//! edited as a guest edits them, registers loaded, and each access done by the simulated processor on shadow tables.

use umbra_model::cases::{controls, each_case};
use umbra_model::judge::Op;
use umbra_model::machine::shadow::ShadowMachine;
use umbra_model::oracle::{Access, Kind, Paging};
use umbra_model::script::{Engine, Header, Step};
use umbra_model::world::{Ended, MAXPHYADDR, Machine, World};

fn world(paging: Paging) -> World<ShadowMachine> {
    let header = Header::Machine {
        engine: Engine::Shadow,
        paging,
        vcpus: 1,
        tables: 64,
        generation: 0,
    };
    let mut world = World::new(&header, ShadowMachine::new(&header), u64::MAX).unwrap();
    // Pages lead here, except where they are too large: then to no memory.
    for (id, base, first) in [(5, 0xc_0000, 100), (6, 0xd4_0000, 200)] {
        let slot = Step::Slot {
            id,
            base,
            npages: 16,
            backing: 1,
            first,
            flags: 0,
        };
        world.step(&slot).unwrap();
    }
    world
}

/// Every `stride`th case, with all controls and accesses; the steps of one case after another are those of one guest.
fn run(paging: Paging, stride: u64) {
    let mut world = world(paging);
    let (mut cases, mut accesses) = (0u64, 0u64);
    each_case(paging, MAXPHYADDR, &mut |case| {
        cases += 1;
        if cases % stride != 0 {
            return;
        }
        let registers = (0..).map(|at| case.regs.cr3 + at * 8).zip(case.regs.pdptes);
        let registers = registers.filter(|_| paging == Paging::Pae);
        let entries: Vec<(u64, u64)> = case
            .entries
            .into_iter()
            .filter(|(gpa, _)| *gpa != u64::MAX)
            .chain(registers)
            .collect();
        for controls in controls(paging) {
            for (gpa, value) in &entries {
                let page = world.guest.memory.page_at(gpa >> 12).unwrap();
                let bytes = paging.entry_bytes();
                let word = Op::Write { bytes, value: *value }.merge(*gpa, world.guest.memory.word(page, *gpa));
                world.guest.poke(gpa & !7, word);
                world.machine.device(gpa & !7, word).unwrap();
            }
            let load = Step::Load {
                vcpu: 0,
                paging,
                controls,
                cr3: case.regs.cr3,
            };
            world.step(&load).unwrap();
            for Access { kind, who } in Access::all() {
                let (vcpu, gva) = (0, case.gva);
                let step = match kind {
                    Kind::Read => Step::Read { vcpu, gva, who },
                    Kind::Fetch => Step::Fetch { vcpu, gva, who },
                    Kind::Write => Step::Write {
                        vcpu,
                        gva,
                        who,
                        bytes: 8,
                        value: cases,
                    },
                };
                let failed = |failure| panic!("{step} with {controls:?}: {failure}\nof {case:x?}");
                world.step(&step).unwrap_or_else(failed);
                accesses += 1;
            }
        }
        if cases % (stride * 64) == 0 {
            world.audit().unwrap();
        }
    });
    let Ended {
        read,
        written,
        faults,
        mmio,
    } = world.ended;
    assert!(
        [read, written, faults, mmio]
            .iter()
            .all(|count| *count > accesses / 400),
        "{:?}",
        world.ended
    );
}

// REQ: SP-2, PF-1, PF-2, PF-4
#[test]
fn two_levels() {
    run(Paging::TwoLevel, 7);
}

#[test]
fn pae() {
    run(Paging::Pae, 3);
}

#[test]
fn four_levels() {
    run(Paging::FourLevel, 19);
}

#[test]
fn five_levels() {
    run(Paging::FiveLevel, 37);
}
