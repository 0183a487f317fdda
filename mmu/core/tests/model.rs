// SPDX-License-Identifier: MIT OR Apache-2.0
//! Does the guest see the memory that its slots describe, whatever happens in which order? Random steps on simulated
//! hardware against an oracle of a few lines; an audit after each step.

use proptest::prelude::*;
use std::collections::BTreeMap;
use umbra_mmu_abi::*;
use umbra_mmu_core::change::ChangeError;
use umbra_mmu_core::fault::{Fault, Outcome};
use umbra_mmu_core::sim::SimStage2;
use umbra_mmu_core::stage2::{BackingShape, Resource, Stage2Error};
use umbra_mmu_core::vcpu::Vcpu;
use umbra_mmu_core::{Limits, Mmu};

const SHAPES: [BackingShape; 3] = [
    BackingShape {
        small_head: 6,
        large: 3,
        small_tail: 5,
    },
    BackingShape {
        small_head: 64,
        large: 0,
        small_tail: 0,
    },
    BackingShape {
        small_head: 0,
        large: 2,
        small_tail: 0,
    },
];

/// Few places, so that things meet: neighbours, large pages, other directories, other halves of the address space.
const BASES: [u64; 9] = [
    0,
    0x1f8,
    0x1fa,
    0x200,
    0x400,
    0x5fa,
    0x4_0000,
    0xfff_fe00,
    (1 << 36) - 512,
];

#[derive(Clone, Debug)]
enum Step {
    Set {
        id: u16,
        base: u64,
        npages: u32,
        backing: u16,
        first_page: u32,
        readonly: bool,
    },
    Delete {
        id: u16,
    },
    Read {
        gfn: u64,
    },
    Write {
        gfn: u64,
        value: u64,
    },
    ZapAll,
    Background,
}

fn gfn() -> impl Strategy<Value = u64> {
    (proptest::sample::select(&BASES[..]), prop_oneof![0..8u64, 0..1600u64]).prop_map(|(base, into)| base + into)
}

fn step() -> impl Strategy<Value = Step> {
    let base = (
        proptest::sample::select(&BASES[..]),
        prop_oneof![4 => Just(0u64), 1 => 0..5u64],
    )
        .prop_map(|(base, into)| base + into);
    let npages = prop_oneof![
        1..12u32,
        Just(512),
        Just(1024),
        Just(6 + 1536),
        Just(6 + 1536 + 5),
        0..1600u32
    ];
    let first_page = prop_oneof![4 => Just(0u32), 2 => Just(6), 1 => Just(518), 1 => 0..20u32];
    prop_oneof![
        3 => (0..5u16, base, npages, 0..4u16, first_page, any::<bool>()).prop_map(
            |(id, base, npages, backing, first_page, readonly)| Step::Set {
                id, base, npages, backing, first_page, readonly
            }
        ),
        1 => (0..5u16).prop_map(|id| Step::Delete { id }),
        6 => gfn().prop_map(|gfn| Step::Read { gfn }),
        6 => (gfn(), any::<u64>()).prop_map(|(gfn, value)| Step::Write { gfn, value }),
        1 => Just(Step::ZapAll),
        1 => Just(Step::Background),
    ]
}

/// A slot as the oracle knows it.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Slot {
    base: u64,
    npages: u64,
    backing: u16,
    first_page: u64,
    readonly: bool,
}

impl Slot {
    fn contains(&self, gfn: u64) -> bool {
        (self.base..self.base + self.npages).contains(&gfn)
    }
    /// Written without the code under test: page by page.
    fn valid(&self) -> bool {
        let Some(shape) = SHAPES.get(self.backing as usize) else {
            return false;
        };
        let (head, large) = (shape.small_head as u64, shape.large as u64 * 512);
        let fits = self.first_page + self.npages <= head + large + shape.small_tail as u64;
        let in_range = self.base + self.npages <= 1 << 36;
        let whole = (0..self.npages).all(|i| {
            let page = self.first_page + i;
            if page < head || page >= head + large {
                return true;
            }
            let into = (page - head) % 512;
            // The frame's other pages lie in the slot too, and its first at a multiple of 2 MiB.
            i >= into && i - into + 512 <= self.npages && (self.base + i - into).is_multiple_of(512)
        });
        self.npages > 0 && fits && in_range && whole
    }
}

#[derive(Default)]
struct Oracle {
    slots: BTreeMap<u16, Slot>,
    memory: BTreeMap<(u16, u64), u64>,
}

impl Oracle {
    fn at(&self, gfn: u64) -> Option<(Slot, (u16, u64))> {
        let slot = self.slots.values().find(|slot| slot.contains(gfn))?;
        Some((*slot, (slot.backing, slot.first_page + gfn - slot.base)))
    }
    fn accepts(&self, id: u16, new: &Slot) -> bool {
        let free = (self.slots.iter())
            .all(|(other, s)| *other == id || s.base >= new.base + new.npages || new.base >= s.base + s.npages);
        let same = self
            .slots
            .get(&id)
            .is_none_or(|old| (old.npages, old.backing, old.first_page) == (new.npages, new.backing, new.first_page));
        new.valid() && free && same
    }
}

#[derive(Debug, PartialEq)]
enum Seen {
    Value(u64),
    Emulate { readonly_slot: bool },
}

struct World {
    mmu: Mmu<SimStage2>,
    vcpu: Vcpu,
    oracle: Oracle,
}

impl World {
    fn new(tables: usize, first_generation: Generation) -> Self {
        let limits = Limits {
            tables,
            rmap_entries: 4,
            first_generation,
        };
        let sim = SimStage2::new(SHAPES.to_vec(), 2 * tables as u32);
        let mmu = Mmu::new(sim, SHAPES.to_vec(), &limits).unwrap();
        Self {
            vcpu: mmu.add_vcpu().unwrap(),
            mmu,
            oracle: Oracle::default(),
        }
    }

    fn access(&mut self, gfn: u64, write: Option<u64>) -> Seen {
        let gpa = Gpa::new((gfn << 12) + 0x18);
        for _ in 0..4 {
            let sim = self.mmu.stage2_mut();
            let tried = match write {
                Some(value) => sim.write(gpa, value).map(|()| value),
                None => sim.read(gpa),
            };
            let violation = match tried {
                Ok(value) => return Seen::Value(value),
                Err(violation) => violation,
            };
            let fault = Fault::violation(violation.gpa, violation.access);
            match self.mmu.fault(&mut self.vcpu, &fault).unwrap() {
                Outcome::Resume => {}
                Outcome::EmulateTableWrite { .. } | Outcome::Reflect(_) | Outcome::Host(_) => unreachable!("EPT mode"),
                Outcome::Emulate(mmio) => {
                    assert_eq!((mmio.gfn, mmio.generation), (Gfn::new(gfn), self.mmu.generation()));
                    return Seen::Emulate {
                        readonly_slot: mmio.readonly_slot,
                    };
                }
            }
        }
        panic!("the access to {gpa} never ends");
    }

    fn step(&mut self, step: &Step) {
        let before = self.mmu.generation();
        match *step {
            Step::Set {
                id,
                base,
                npages,
                backing,
                first_page,
                readonly,
            } => {
                let new = Slot {
                    base,
                    npages: npages.into(),
                    backing,
                    first_page: first_page.into(),
                    readonly,
                };
                let flags = if readonly {
                    SlotFlags::READONLY
                } else {
                    SlotFlags::empty()
                };
                let backing = Backing {
                    id: BackingId(backing),
                    first_page,
                };
                let result = self.mmu.set_slot(SlotId(id), Gfn::new(base), npages, backing, flags);
                if npages == 0 {
                    assert_eq!(result.is_ok(), self.oracle.slots.remove(&id).is_some());
                } else {
                    let accepted = self.oracle.accepts(id, &new);
                    match result {
                        Ok(generation) => {
                            assert!(accepted, "{new:?} was accepted");
                            let changed = self.oracle.slots.insert(id, new) != Some(new);
                            // REQ: GEN-3
                            assert_eq!(changed, generation != before);
                        }
                        // The pool is small on purpose; a refusal for it is right as long as it is whole.
                        Err(ChangeError::Refused(SlotError::NoSpace)) => assert_eq!(self.mmu.generation(), before),
                        Err(error) => {
                            assert!(!accepted, "{new:?} was refused: {error}");
                            assert_eq!(self.mmu.generation(), before);
                        }
                    }
                }
            }
            Step::Delete { id } => {
                let none = Backing {
                    id: BackingId(0),
                    first_page: 0,
                };
                let result = self.mmu.set_slot(SlotId(id), Gfn::new(0), 0, none, SlotFlags::empty());
                assert_eq!(result.is_ok(), self.oracle.slots.remove(&id).is_some());
            }
            Step::Read { gfn } => {
                let wanted = match self.oracle.at(gfn) {
                    Some((_, page)) => Seen::Value(self.oracle.memory.get(&page).copied().unwrap_or(0)),
                    None => Seen::Emulate { readonly_slot: false },
                };
                assert_eq!(self.access(gfn, None), wanted, "read at {gfn:#x}");
            }
            Step::Write { gfn, value } => {
                let wanted = match self.oracle.at(gfn) {
                    Some((slot, _)) if slot.readonly => Seen::Emulate { readonly_slot: true },
                    Some((_, page)) => {
                        self.oracle.memory.insert(page, value);
                        Seen::Value(value)
                    }
                    None => Seen::Emulate { readonly_slot: false },
                };
                assert_eq!(self.access(gfn, Some(value)), wanted, "write at {gfn:#x}");
            }
            Step::ZapAll => {
                self.mmu.zap_all();
                // REQ: ZAP-1: nothing is reachable, whatever was mapped.
                for base in BASES {
                    assert!(self.mmu.stage2_mut().read(Gfn::new(base).gpa()).is_err());
                }
            }
            Step::Background => self.mmu.background(),
        }
        assert_eq!(self.mmu.with_stage2(|sim| sim.unflushed()), 0);
        let audit = self.mmu.audit();
        assert_eq!(audit.differences, 0, "{audit:?} after {step:?}");
        // REQ: MEM-7: what no slot has is out of reach, without the MMU being asked.
        for gfn in BASES.into_iter().chain(BASES.map(|base| base + 7)) {
            if self.oracle.at(gfn).is_none() {
                assert!(
                    self.mmu.stage2_mut().read(Gfn::new(gfn).gpa()).is_err(),
                    "{gfn:#x} after {step:?}"
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_guest_sees_what_the_slots_describe(
        steps in proptest::collection::vec(step(), 1..120),
        tables in prop_oneof![Just(256usize), 14..40usize],
        first in prop_oneof![Just(0x7fffbu32), Just(3), 0x7ff00..0x80000u32],
    ) {
        let mut world = World::new(tables, Generation(first));
        for step in &steps {
            world.step(step);
        }
    }
}

/// A guest that touches every unmapped address: tables are recycled, and memory still works.
#[test]
fn touching_everything_never_runs_out() {
    let mut world = World::new(12, Generation(0));
    world.step(&Step::Set {
        id: 0,
        base: 0x200,
        npages: 64,
        backing: 1,
        first_page: 0,
        readonly: false,
    });
    for round in 0..300u64 {
        let far = round * 0x3_1234 % (1 << 36);
        if world.oracle.at(far).is_none() {
            assert_eq!(world.access(far, None), Seen::Emulate { readonly_slot: false });
        }
        world.step(&Step::Write {
            gfn: 0x200 + round % 64,
            value: round,
        });
    }
}

/// A slot whose tables do not fit is refused at once, not when the guest touches it.
#[test]
fn a_slot_too_large_for_the_pool_is_refused() {
    let mut world = World::new(6, Generation(0));
    let set = |world: &mut World, id, base| {
        let backing = Backing {
            id: BackingId(1),
            first_page: 0,
        };
        world
            .mmu
            .set_slot(SlotId(id), Gfn::new(base), 4, backing, SlotFlags::empty())
    };
    // Root, three tables, and a second root for zap-all.
    assert!(set(&mut world, 0, 0x200).is_ok());
    assert!(set(&mut world, 1, 0x208).is_ok(), "in the same tables");
    let refused = Err(ChangeError::Refused(SlotError::NoSpace));
    assert_eq!(set(&mut world, 2, 0x1000_0000), refused, "two more at least");
    assert_eq!(world.mmu.with_slots(|slots| slots.iter().count()), 2);
}

/// Hardware that runs out of tables says so, and everything stays in order.
#[test]
fn exhausted_hardware_is_a_typed_error() {
    let sim = SimStage2::new(SHAPES.to_vec(), 2);
    let mmu = Mmu::new(sim, SHAPES.to_vec(), &Limits::default()).unwrap();
    let mut vcpu = mmu.add_vcpu().unwrap();
    let backing = Backing {
        id: BackingId(1),
        first_page: 0,
    };
    mmu.set_slot(SlotId(0), Gfn::new(0x200), 4, backing, SlotFlags::empty())
        .unwrap();
    let fault = Fault::violation(Gfn::new(0x200).gpa(), Access::Write);
    let error = mmu.fault(&mut vcpu, &fault).unwrap_err();
    assert_eq!(error, Stage2Error::Exhausted(Resource::Untyped).into());
    assert_eq!(mmu.audit().differences, 0);
}

/// A mapping that hardware has lost is not faulted on for ever.
#[test]
fn a_loop_of_faults_ends() {
    let mut world = World::new(32, Generation(0));
    world.step(&Step::Set {
        id: 0,
        base: 0x200,
        npages: 4,
        backing: 1,
        first_page: 0,
        readonly: false,
    });
    world.step(&Step::Write { gfn: 0x200, value: 1 });
    world.mmu.stage2_mut().lose_mapping(Gfn::new(0x200));
    let fault = Fault::violation(Gfn::new(0x200).gpa(), Access::Read);
    let error = (0..10_000).find_map(|_| world.mmu.fault(&mut world.vcpu, &fault).err());
    assert!(error.unwrap().to_string().contains("0x200000"));
}
