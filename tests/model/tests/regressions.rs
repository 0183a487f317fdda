// SPDX-License-Identifier: MIT OR Apache-2.0
//! Do the three bugs stay away that the documents tell of?

use umbra_mmu_abi::{BackingId, Stat};
use umbra_mmu_core::stage2::{Frame, GpteSize};
use umbra_model::layout::LOG_DIRTY;
use umbra_model::machine::ept::EptMachine;
use umbra_model::machine::machine;
use umbra_model::machine::shadow::ShadowMachine;
use umbra_model::oracle::{Controls, Paging, Who};
use umbra_model::script::{Engine, Header, Step};
use umbra_model::world::{Machine, World};

const WHO: Who = Who::Supervisor;

fn header(engine: Engine, paging: Paging, vcpus: u8, generation: u32) -> Header {
    Header::Machine {
        engine,
        paging,
        vcpus,
        tables: 64,
        generation,
    }
}

/// A frame without a slot, in the part that every guest maps to itself; and one of data.
const DEVICE: u64 = 0x1c4;
const DATA: u64 = 0x30;

/// Boots far enough for a wrap: devices and memory are used, before and after paging starts, and slots come and go.
fn boot<M: Machine>(world: &mut World<M>, paging: Paging, changes: u32) {
    let mut step = |step: Step| world.step(&step).unwrap_or_else(|failure| panic!("{step}: {failure}"));
    let cr3 = umbra_model::layout::roots(paging)[0];
    let load = |paging, cr3| Step::Load {
        vcpu: 0,
        paging,
        controls: Controls::WP | Controls::PSE,
        cr3,
    };
    for round in 0..changes {
        // As a boot loader: on and off.
        match round % 8 {
            0 => step(load(Paging::Off, 0)),
            2 => step(load(paging, cr3)),
            _ => {}
        }
        for gfn in [DEVICE, DEVICE + 1, DEVICE + 2] {
            for _ in 0..3 {
                let gva = gfn << 12;
                step(Step::Read { vcpu: 0, gva, who: WHO });
                step(Step::Write {
                    vcpu: 0,
                    gva,
                    who: WHO,
                    bytes: 4,
                    value: round.into(),
                });
            }
        }
        step(Step::Write {
            vcpu: 0,
            gva: DATA << 12,
            who: WHO,
            bytes: 8,
            value: 0x1000 + u64::from(round),
        });
        step(Step::Read {
            vcpu: 0,
            gva: DATA << 12,
            who: WHO,
        });
        // The slot is over one of the devices: what was MMIO is memory, and is MMIO again.
        step(Step::Slot {
            id: 5,
            base: DEVICE + 1,
            npages: if round % 2 == 0 { 1 } else { 0 },
            backing: 1,
            first: 100,
            flags: 0,
        });
    }
    world.audit_all().unwrap();
}

// REQ: GEN-2, GEN-5: "So this commit makes Fedora 9 32 bit reboot during boot."
#[test]
fn a_32_bit_guest_survives_a_high_mmio_generation() {
    for paging in [Paging::TwoLevel, Paging::Pae] {
        for start in [0x200, 0x3ffff, 0x40000, 0x7ff00, 0x7fff0, 0x7fffc] {
            let header = header(Engine::Shadow, paging, 1, start);
            let mut world = World::new(&header, ShadowMachine::new(&header), 1).unwrap();
            boot(&mut world, paging, 40);
            let wraps = world.machine.mmu().stat(Stat::GenerationWraps);
            assert_eq!(wraps > 0, start >= 0x7fff0, "{wraps} wraps from {start:#x}");
        }
    }
    let header = header(Engine::Ept, Paging::Pae, 1, 0x7fff0);
    let mut world = World::new(&header, EptMachine::new(&header), 1).unwrap();
    boot(&mut world, Paging::Pae, 40);
    assert!(world.machine.mmu().stat(Stat::GenerationWraps) > 0);
}

/// The vmm writes to a guest table behind the MMU's back, as CVE-2026-23401 has it: a present spte is found where an MMIO
/// spte is to go. It has to go from the reverse map first.
// REQ: GEN-1, RM-1
#[test]
fn an_mmio_spte_never_replaces_a_present_one() {
    for paging in [Paging::Pae, Paging::FourLevel] {
        let header = header(Engine::Shadow, paging, 1, 0);
        let mut world = World::new(&header, ShadowMachine::new(&header), 1).unwrap();
        let gva = DATA << 12;
        // Read, so that the entry has no D and the spte no W.
        world.step(&Step::Read { vcpu: 0, gva, who: WHO }).unwrap();
        // The page table of the first 2M is at 0x5000; its entry becomes the device, whatever the MMU thinks.
        let (at, entry) = (0x5000 + DATA * 8, DEVICE << 12 | 0b10_0111);
        world.guest.poke(at, entry);
        let frame = Frame::new(BackingId(0), 5).unwrap();
        world
            .machine
            .memory()
            .store(frame, (at & 4095) as u16, GpteSize::B8, entry);
        let write = Step::Write {
            vcpu: 0,
            gva,
            who: WHO,
            bytes: 8,
            value: 1,
        };
        world.step(&write).unwrap();
        world.audit_all().unwrap();
        // A left-over reverse map would now be followed to what is no leaf.
        for step in [
            "age backing=0 first=0 npages=64",
            "reclaim backing=0 first=0 npages=64",
            "zap-all",
            "background",
        ] {
            world.step(&step.parse().unwrap()).unwrap();
        }
        world.step(&write).unwrap();
        world.audit_all().unwrap();
    }
}

/// Every order of writes through the TLB, faults, ageing and looks at the log, four at a time: no write is lost
/// (locking.rst, "Dirty bit tracking"), and no page is in the log that was not written.
// REQ: DT-1, DT-3
#[test]
fn the_lost_dirty_bit() {
    let write = |vcpu, value| Step::Write {
        vcpu,
        gva: DATA << 12,
        who: WHO,
        bytes: 8,
        value,
    };
    let (backing, first, npages) = (0, DATA as u32, 1);
    let alphabet = [
        write(0, 1),
        write(1, 2),
        Step::Read {
            vcpu: 0,
            gva: DATA << 12,
            who: WHO,
        },
        Step::TakeLog { id: 0 },
        Step::ClearLog { id: 0, first, npages },
        Step::Age { backing, first, npages },
        Step::Reclaim { backing, first, npages },
    ];
    let log = Step::Slot {
        id: 0,
        base: 0,
        npages: 64,
        backing: 0,
        first: 0,
        flags: LOG_DIRTY,
    };
    for engine in [Engine::Ept, Engine::Shadow] {
        for before in [write(0, 9), Step::TakeLog { id: 0 }] {
            for order in 0..alphabet.len().pow(4) {
                let header = header(engine, Paging::FourLevel, 2, 0);
                let mut world = World::new(&header, machine(&header), u64::MAX).unwrap();
                world.step(&before).unwrap();
                world.step(&log).unwrap();
                for at in 0..4 {
                    let step = alphabet[order / alphabet.len().pow(at) % alphabet.len()];
                    let failed = |failure| panic!("order {order}: {step}: {failure}");
                    world.step(&step).unwrap_or_else(failed);
                }
                let last = world.step(&Step::TakeLog { id: 0 });
                last.unwrap_or_else(|failure| panic!("order {order} at the end: {failure}"));
            }
        }
    }
}
