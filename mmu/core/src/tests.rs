// SPDX-License-Identifier: MIT OR Apache-2.0
//! What can only be seen from within? States that a single caller never meets from outside.

use crate::fault::{Fault, FaultError, Outcome};
use crate::host::{HostLayout, HostMemory};
use crate::locks::Held;
use crate::sim::SimStage2;
use crate::slots::{Slot, SlotState};
use crate::spte::{Format, Leaf, Spte, SpteKind, Writable};
use crate::stage2::{BackingShape, Stage2, TableLevel};
use crate::table::SptePlace;
use crate::trace::Event;
use crate::vcpu::Vcpu;
use crate::{Limits, Mmu};
use std::vec::Vec;
use umbra_mmu_abi::{Access, Backing, BackingId, Generation, Gfn, SlotFlags, SlotId, Stat};

const SHAPES: [BackingShape; 1] = [BackingShape {
    small_head: 16,
    large: 0,
    small_tail: 0,
}];
const BASE: Gfn = Gfn::new(0x100);

/// An MMU with one virtual processor.
struct Machine {
    mmu: Mmu<SimStage2>,
    vcpu: Vcpu,
}

impl core::ops::Deref for Machine {
    type Target = Mmu<SimStage2>;
    fn deref(&self) -> &Mmu<SimStage2> {
        &self.mmu
    }
}

impl core::ops::DerefMut for Machine {
    fn deref_mut(&mut self) -> &mut Mmu<SimStage2> {
        &mut self.mmu
    }
}

impl Machine {
    fn fault(&mut self, gpa: umbra_mmu_abi::Gpa, access: Access) -> Result<Outcome, FaultError> {
        self.mmu.fault(&mut self.vcpu, &Fault::violation(gpa, access))
    }
    fn unused(&self) -> usize {
        self.tables.unused(&mut Held::entry()).all()
    }
}

fn mmu(first: u32) -> Machine {
    let limits = Limits {
        tables: 32,
        first_generation: Generation(first),
        ..Limits::default()
    };
    let mmu = Mmu::new(SimStage2::new(SHAPES.to_vec(), 32), SHAPES.to_vec(), &limits).unwrap();
    let vcpu = mmu.add_vcpu().unwrap();
    Machine { mmu, vcpu }
}

fn set(mmu: &Mmu<SimStage2>, id: u16, base: Gfn, npages: u32, first_page: u32, flags: SlotFlags) {
    let backing = Backing {
        id: BackingId(0),
        first_page,
    };
    mmu.set_slot(SlotId(id), base, npages, backing, flags).unwrap();
}

fn place_of(mmu: &Mmu<SimStage2>, gfn: Gfn) -> SptePlace {
    let walk = mmu.walk(gfn);
    assert_eq!(walk.level, TableLevel::Pt);
    walk.place
}

// REQ: MEM-6: with all tables in place, and without.
#[test]
fn a_dying_slot_is_not_mapped() {
    for neighbour in [false, true] {
        let mut mmu = mmu(0);
        set(&mmu, 1, Gfn::new(BASE.raw() + 4), 4, 8, SlotFlags::empty());
        if neighbour {
            mmu.fault(Gfn::new(BASE.raw() + 4).gpa(), Access::Write).unwrap();
        }
        set(&mmu, 0, BASE, 4, 0, SlotFlags::empty());
        let slot = mmu.with_slots(|slots| slots.get(SlotId(0)).cloned()).unwrap();
        mmu.generation.begin();
        let dying = Slot {
            state: SlotState::Invalid,
            ..slot
        };
        mmu.publish(mmu.slots_lock.lock(&mut Held::entry()).held(), SlotId(0), Some(dying));
        assert_eq!(mmu.fault(BASE.gpa(), Access::Write), Ok(Outcome::Resume));
        assert_eq!(mmu.stat(Stat::Mapped4K), u64::from(neighbour));
        // REQ: GEN-6: nor is the absence of other memory cached meanwhile.
        let beyond = Gfn::new(BASE.raw() + 9);
        assert!(matches!(mmu.fault(beyond.gpa(), Access::Read), Ok(Outcome::Emulate(_))));
        assert!(mmu.walk(beyond).spte.is_empty());
    }
}

/// The generation comes back to a number that an MMIO spte was cached under, 2^19 changes later.
// REQ: GEN-5
#[test]
fn an_mmio_spte_does_not_survive_a_whole_turn() {
    let first = 0x7fff0;
    let mut mmu = mmu(first);
    let gfn = Gfn::new(BASE.raw() + 1);
    mmu.trace().start();
    assert!(matches!(mmu.fault(gfn.gpa(), Access::Read), Ok(Outcome::Emulate(_))));
    set(&mmu, 0, BASE, 4, 0, SlotFlags::empty());
    let mut readonly = false;
    while mmu.generation() != Generation(first) {
        readonly = !readonly;
        let flags = if readonly {
            SlotFlags::READONLY
        } else {
            SlotFlags::empty()
        };
        set(&mmu, 1, Gfn::new(0x900), 4, 8, flags);
        if mmu.generation() == Generation(0) {
            // REQ: GEN-8: one table holds MMIO sptes, and one is visited.
            assert!(
                mmu.trace()
                    .events()
                    .any(|event| event == Event::ZapMmio { tables: 1, sptes: 1 })
            );
        }
    }
    assert_eq!(mmu.stat(Stat::GenerationWraps), 1);
    assert_eq!(
        mmu.fault(gfn.gpa(), Access::Read),
        Ok(Outcome::Resume),
        "memory, and not the old MMIO"
    );
    assert_eq!(mmu.stat(Stat::Mapped4K), 1);
}

#[test]
fn a_write_fault_restores_w_of_a_leaf_that_may_have_it() {
    for before in [Writable::Restorable, Writable::Protected] {
        let mut mmu = mmu(0);
        set(&mmu, 0, BASE, 4, 0, SlotFlags::empty());
        mmu.fault(BASE.gpa(), Access::Write).unwrap();
        protect(&mut mmu, |leaf| {
            Spte::leaf(
                Format::Ept,
                Leaf {
                    writable: before,
                    ..leaf
                },
            )
        });
        assert!(mmu.stage2_mut().write(BASE.gpa(), 1).is_err());
        assert_eq!(mmu.fault(BASE.gpa(), Access::Write), Ok(Outcome::Resume));
        assert_eq!(mmu.stage2_mut().unflushed(), 0);
        assert_eq!(mmu.stage2_mut().write(BASE.gpa(), 1), Ok(()));
        assert_eq!(mmu.audit().differences, 0);
    }
}

#[test]
fn an_access_restores_a_tracked_leaf() {
    let mut mmu = mmu(0);
    set(&mmu, 0, BASE, 4, 0, SlotFlags::empty());
    mmu.fault(BASE.gpa(), Access::Write).unwrap();
    protect(&mut mmu, Spte::access_tracked);
    assert_eq!(mmu.fault(BASE.gpa(), Access::Read), Ok(Outcome::Resume));
    assert_eq!(mmu.stage2_mut().read(BASE.gpa()), Ok(0));
    let SpteKind::Leaf(_) = mmu.tables.kind(place_of(&mmu, BASE)) else {
        panic!("the leaf is not present")
    };
    assert_eq!(mmu.audit().differences, 0);
}

#[test]
fn a_leaf_that_cannot_be_restored_is_gone_everywhere() {
    let mut mmu = mmu(0);
    set(&mmu, 0, BASE, 4, 0, SlotFlags::empty());
    mmu.fault(BASE.gpa(), Access::Write).unwrap();
    protect(&mut mmu, Spte::access_tracked);
    mmu.stage2_mut().refuse_after(0);
    assert!(mmu.fault(BASE.gpa(), Access::Write).is_err());
    assert_eq!(mmu.audit().first, None);
    assert_eq!((mmu.stat(Stat::Mapped4K), mmu.stage2_mut().unflushed()), (0, 0));
    assert_eq!(mmu.fault(BASE.gpa(), Access::Write), Ok(Outcome::Resume));
    assert_eq!(mmu.stage2_mut().write(BASE.gpa(), 1), Ok(()));
    assert_eq!(mmu.audit().first, None);
}

/// The PDPT, the PD, the PT, the frame: whichever the hardware refuses, a later fault finds nothing of the failed one.
// REQ: PF-3
#[test]
fn a_refused_mapping_leaves_no_tables() {
    for calls in 0..4 {
        let mut mmu = mmu(0);
        set(&mmu, 0, BASE, 4, 0, SlotFlags::empty());
        let (tables, hardware) = (mmu.unused(), mmu.stage2_mut().free_tables());
        mmu.stage2_mut().refuse_after(calls);
        assert!(mmu.fault(BASE.gpa(), Access::Write).is_err());
        assert_eq!(mmu.unused(), tables, "refused after {calls}");
        assert_eq!(mmu.stage2_mut().free_tables(), hardware, "refused after {calls}");
        assert_eq!((mmu.audit().first, mmu.stage2_mut().unflushed()), (None, 0));
        assert_eq!(mmu.fault(BASE.gpa(), Access::Write), Ok(Outcome::Resume));
        assert_eq!(mmu.stage2_mut().write(BASE.gpa(), 1), Ok(()));
    }
}

/// Changes the spte at [`BASE`] and the hardware with it, as dirty logging and ageing do.
fn protect(mmu: &mut Mmu<SimStage2>, spte: impl FnOnce(Leaf) -> Spte) {
    let place = place_of(mmu, BASE);
    let SpteKind::Leaf(leaf) = mmu.tables.kind(place) else {
        panic!("no leaf at {BASE}")
    };
    let new = spte(leaf);
    let stage2 = mmu.stage2_mut();
    let removed = stage2.unmap(SlotId(0), BASE, &leaf);
    stage2.flush(removed);
    if let Ok(SpteKind::Leaf(new)) = new.decode(Format::Ept, 1) {
        stage2.map(SlotId(0), BASE, &new).unwrap();
    }
    mmu.tables.set(place, new);
}

// REQ: GEN-8
#[test]
fn marking_checking_and_invalidating_are_events() {
    let mut mmu = mmu(3);
    mmu.trace().start();
    mmu.fault(BASE.gpa(), Access::Read).unwrap();
    mmu.fault(BASE.gpa(), Access::Read).unwrap();
    set(&mmu, 0, Gfn::new(0x900), 4, 0, SlotFlags::empty());
    mmu.fault(BASE.gpa(), Access::Read).unwrap();
    let (old, new) = (Generation(3), Generation(4));
    let check = |spte, slots, result| Event::CheckMmio {
        gfn: BASE,
        spte,
        slots,
        result,
    };
    let events: Vec<Event> = mmu.trace().events().collect();
    let wanted = [
        Event::MarkMmio {
            gfn: BASE,
            generation: old,
        },
        check(old, old, crate::mmio::MmioCheck::Emulate),
        Event::InvalidateMmio { generation: new },
        check(old, new, crate::mmio::MmioCheck::Invalid),
        Event::MarkMmio {
            gfn: BASE,
            generation: new,
        },
    ];
    assert_eq!(events, wanted);
}

// REQ: RM-2
#[test]
fn an_spte_tells_its_gfn() {
    let mut mmu = mmu(0);
    for gfn in [0, 1, 0x1ff, 0x200, 0xfec00, 0x1_2345_6789, (1 << 36) - 1].map(Gfn::new) {
        // The MMIO spte there needs tables of all levels.
        mmu.fault(gfn.gpa(), Access::Read).unwrap();
        let mut place = mmu.walk(gfn).place;
        for level in TableLevel::TOP_DOWN.into_iter().rev() {
            let shift = level.entry_shift();
            assert_eq!(mmu.tables.get(place.table).level(), level);
            assert_eq!(mmu.tables.gfn_of(place), Gfn::new(gfn.raw() >> shift << shift));
            if let Some(above) = mmu.tables.get(place.table).parent_ptes().first(&mmu.pte_entries) {
                place = above;
            }
        }
    }
}

// REQ: MEM-4: as many slots as there can be, against a search of all of them; a copy that was read before a change stays
// as it was.
#[test]
fn a_lookup_finds_what_a_search_finds() {
    let mmu = mmu(0);
    for id in 0..509u16 {
        // Every other place is left free.
        set(
            &mmu,
            id,
            Gfn::new(u64::from(id * 37 % 509) * 16),
            8,
            u32::from(id % 2) * 8,
            SlotFlags::empty(),
        );
    }
    let before = mmu.with_slots(|slots| slots.clone());
    for gfn in (0..8200).map(Gfn::new) {
        let found = before.lookup(gfn).map(|slot| slot.id);
        assert_eq!(found, before.iter().find(|slot| slot.contains(gfn)).map(|slot| slot.id));
        assert_eq!(found.is_some(), gfn.raw() / 16 < 509 && gfn.raw() % 16 < 8);
    }
    set(&mmu, 5, Gfn::new(0), 0, 0, SlotFlags::empty());
    assert_eq!(
        (before.iter().count(), mmu.with_slots(|slots| slots.iter().count())),
        (509, 508)
    );
}

/// What a slot can need at once: root, one table for each 512G, 1G and, where its frames are small, 2M that it touches.
#[test]
fn slots_are_counted_by_the_tables_that_they_need() {
    let shape = BackingShape {
        small_head: 4,
        large: 1024,
        small_tail: 600,
    };
    let host = HostMemory::new(HostLayout::Frames, &[shape.into()]).unwrap();
    let slot = |id, base, npages, first_page| {
        let backing = Backing {
            id: BackingId(0),
            first_page,
        };
        Slot::check(
            SlotId(id),
            Gfn::new(base),
            npages,
            backing,
            SlotFlags::empty(),
            &host,
            None,
        )
        .unwrap()
    };
    let none = crate::slots::SlotTable::default();
    let needed = |slot: &Slot| none.tables_needed(Some(slot), &host);
    // 1024 large pages from 2 MiB on lie in three directories.
    assert_eq!(needed(&slot(0, 0x200, 1024 * 512, 4)), 1 + 1 + 3);
    // The same with the small pages before and after: one table and two.
    assert_eq!(needed(&slot(0, 0x1fc, 4 + 1024 * 512 + 600, 0)), 1 + 1 + 3 + 1 + 2);
    // Two pages on both sides of 512 GiB.
    assert_eq!(needed(&slot(0, (1 << 27) - 1, 2, 0)), 1 + 2 + 2 + 2);
}

/// A write-protected leaf that is to get W in the slow path, and the hardware refuses.
// REQ: DT-3, PF-1
#[test]
fn a_leaf_that_cannot_be_made_writable_is_gone_everywhere() {
    let mut mmu = mmu(0);
    set(&mmu, 0, BASE, 4, 0, SlotFlags::empty());
    mmu.fault(BASE.gpa(), Access::Write).unwrap();
    protect(&mut mmu, |leaf| {
        let writable = Writable::Protected;
        Spte::leaf(Format::Ept, Leaf { writable, ..leaf })
    });
    mmu.stage2_mut().refuse_after(0);
    assert!(mmu.fault(BASE.gpa(), Access::Write).is_err());
    mmu.stage2_mut().lose_mapping(BASE);
    let removed = mmu.stage2_mut().revoke_slot(SlotId(0));
    mmu.stage2_mut().flush(removed);
    let backing = Backing {
        id: BackingId(0),
        first_page: 0,
    };
    let access = crate::stage2::GuestAccess::All;
    mmu.stage2_mut().attach_slot(SlotId(0), backing, 4, access).unwrap();
    assert_eq!((mmu.audit().first, mmu.stat(Stat::Mapped4K)), (None, 0));
    assert_eq!(mmu.fault(BASE.gpa(), Access::Write), Ok(Outcome::Resume));
    assert_eq!(mmu.stage2_mut().write(BASE.gpa(), 1), Ok(()));
    assert_eq!(mmu.audit().first, None);
}

/// Large pages that were split may take the table that was kept for a second root.
// REQ: ZAP-1, ZAP-3
#[test]
fn zap_all_works_without_a_table_to_spare() {
    let mut mmu = mmu(0);
    set(&mmu, 0, BASE, 4, 0, SlotFlags::empty());
    mmu.fault(BASE.gpa(), Access::Write).unwrap();
    let mut held = Held::entry();
    let role = crate::role::Role::ept(TableLevel::Pt);
    let mut spare = std::vec::Vec::new();
    while let Some(id) = mmu.tables.take(&mut held, BASE, role, 0) {
        spare.push(id);
    }
    mmu.zap_all();
    assert!(mmu.stage2_mut().read(BASE.gpa()).is_err());
    assert_eq!((mmu.stat(Stat::Mapped4K), mmu.stage2_mut().unflushed()), (0, 0));
    for id in spare {
        mmu.tables.retire(&mut held, id, mmu.walkers.retire());
    }
    assert_eq!(mmu.audit().first, None);
    assert_eq!(mmu.fault(BASE.gpa(), Access::Write), Ok(Outcome::Resume));
    assert_eq!(mmu.audit().first, None);
}

/// Every vCPU keeps what a reverse map may need for it, and there is enough for all.
// REQ: SP-11
#[test]
fn as_many_vcpus_as_there_can_be_fault() {
    let mut mmu = mmu(0);
    set(&mmu, 0, BASE, 16, 0, SlotFlags::empty());
    let mut vcpus = std::vec![];
    while let Some(vcpu) = mmu.add_vcpu() {
        vcpus.push(vcpu);
    }
    assert_eq!(vcpus.len() + 1, crate::vcpu::MAX_VCPUS);
    for vcpu in &mut vcpus {
        // Without tables, so that none of these is the usual case.
        mmu.mmu.zap_all();
        while mmu.has_background_work() {
            mmu.background();
        }
        let fault = Fault::violation(BASE.gpa(), Access::Write);
        assert_eq!(mmu.mmu.fault(vcpu, &fault), Ok(Outcome::Resume));
    }
    assert_eq!(mmu.audit().first, None);
    assert_eq!(mmu.stage2_mut().write(BASE.gpa(), 1), Ok(()));
}

/// A fault of another slot waits for a part of them only.
// REQ: LK-2, MEM-6
#[test]
fn a_slot_is_deleted_in_batches() {
    let shape = BackingShape {
        small_head: 3000,
        large: 0,
        small_tail: 0,
    };
    let mmu = Mmu::new(
        SimStage2::new(std::vec![shape], 32),
        std::vec![shape],
        &Limits::default(),
    )
    .unwrap();
    let mut vcpu = mmu.add_vcpu().unwrap();
    set(&mmu, 0, BASE, 3000, 0, SlotFlags::empty());
    for page in 0..3000 {
        let gpa = Gfn::new(BASE.raw() + page).gpa();
        mmu.fault(&mut vcpu, &Fault::violation(gpa, Access::Write)).unwrap();
    }
    let before = mmu.invalidate.seq();
    set(&mmu, 0, BASE, 0, 0, SlotFlags::empty());
    assert!(mmu.invalidate.seq() >= before + 3, "mmu_lock was held all the time");
    assert_eq!((mmu.stat(Stat::Mapped4K), mmu.audit().first), (0, None));
}

/// What the audit takes for right is what the host has now, not what it had when the slot was made.
// REQ: RM-3, LP-4, HOST-2
#[test]
fn the_audit_knows_the_sizes_and_rights_that_the_host_has_now() {
    let shape = BackingShape {
        small_head: 0,
        large: 2,
        small_tail: 0,
    };
    let mmu = Mmu::new(
        SimStage2::new(std::vec![shape], 32),
        std::vec![shape],
        &Limits::default(),
    )
    .unwrap();
    let vcpu = mmu.add_vcpu().unwrap();
    let mut mmu = Machine { mmu, vcpu };
    let base = Gfn::new(0x400);
    set(&mmu, 0, base, 1024, 0, SlotFlags::LOG_DIRTY);
    mmu.fault(base.gpa(), Access::Read).unwrap();
    assert_eq!((mmu.stat(Stat::Mapped2M), mmu.audit().first), (1, None));
    for _ in 0..4 {
        mmu.fault(base.gpa(), Access::Write).unwrap();
    }
    assert_eq!(mmu.stage2_mut().write(base.gpa(), 1), Ok(()));
    assert_eq!((mmu.stat(Stat::Mapped4K), mmu.audit().first), (1, None));
    // More rights than there are, in all three views alike: only the slot says otherwise.
    set(&mmu, 0, base, 1024, 0, SlotFlags::READONLY);
    mmu.fault(base.gpa(), Access::Read).unwrap();
    assert_eq!(mmu.audit().first, None);
    let walk = mmu.walk(base);
    let Ok(SpteKind::Leaf(leaf)) = walk.spte.decode(Format::Ept, walk.level as u8) else {
        panic!("{:?}", walk.spte)
    };
    let writable = Leaf {
        writable: Writable::Protected,
        ..leaf
    };
    mmu.tables.set(walk.place, Spte::leaf(Format::Ept, writable));
    assert_eq!(mmu.audit().first, Some(crate::audit::Difference::Slot(base)));
}

/// Large pages that were split can need more tables than there are: pages take turns, and no fault fails.
// REQ: SP-11
#[test]
fn a_page_takes_the_table_of_another_where_none_is_left() {
    let mut mmu = mmu(0);
    let places = [0x100, 0x400, 0x10_0000, 0x4000_0000].map(Gfn::new);
    for (i, base) in places.into_iter().enumerate() {
        set(&mmu, i as u16, base, 4, 4 * i as u32, SlotFlags::empty());
    }
    // As many as the first page takes, and one more.
    let mut held = Held::entry();
    let role = crate::role::Role::ept(TableLevel::Pt);
    let mut spare = std::vec::Vec::new();
    while mmu.unused() > 4 {
        spare.push(mmu.tables.take(&mut held, BASE, role, u64::MAX - 1).unwrap());
    }
    for round in 0..3 {
        for gfn in places {
            assert_eq!(mmu.fault(gfn.gpa(), Access::Write), Ok(Outcome::Resume), "{gfn}");
            assert_eq!(mmu.stage2_mut().write(gfn.gpa(), gfn.raw() + round), Ok(()));
            assert_eq!(mmu.stage2_mut().unflushed(), 0);
        }
        assert!(mmu.stat(Stat::Mapped4K) < 4);
    }
    for gfn in places {
        mmu.fault(gfn.gpa(), Access::Read).unwrap();
        assert_eq!(mmu.stage2_mut().read(gfn.gpa()), Ok(gfn.raw() + 2));
    }
    for id in spare {
        mmu.tables.retire(&mut held, id, mmu.walkers.retire());
    }
    assert_eq!(mmu.audit().first, None);
}
