// SPDX-License-Identifier: MIT OR Apache-2.0
//! What does a fault make of a world that has changed since it looked? Each step between two looks is made here by hand.

use super::{Fault, Installed, Outcome};
use crate::generation::Stamp;
use crate::locks::Held;
use crate::sim::SimStage2;
use crate::slots::Slot;
use crate::spte::{Format, Leaf, Spte, SpteKind, Writable};
use crate::stage2::{BackingShape, Stage2, TableLevel};
use crate::vcpu::Vcpu;
use crate::zap::ZAP_BATCH;
use crate::{Limits, Mmu, Requests};
use umbra_mmu_abi::{Access, Backing, BackingId, Gfn, SlotFlags, SlotId, Stat};

const SHAPES: [BackingShape; 1] = [BackingShape {
    small_head: 1024,
    large: 0,
    small_tail: 0,
}];
const BASE: Gfn = Gfn::new(0x1_0000);
const SLOT: SlotId = SlotId(3);

fn machine() -> (Mmu<SimStage2>, Vcpu) {
    let mmu = Mmu::new(SimStage2::new(SHAPES.to_vec(), 64), SHAPES.to_vec(), &Limits::default()).unwrap();
    let vcpu = mmu.add_vcpu().unwrap();
    (mmu, vcpu)
}

/// Makes the slot anew at [`BASE`], from `first_page` of the backing.
fn set(mmu: &Mmu<SimStage2>, npages: u32, first_page: u32) {
    let id = BackingId(0);
    mmu.set_slot(SLOT, BASE, npages, Backing { id, first_page }, SlotFlags::empty())
        .unwrap();
}

/// Writes are logged from now on; nothing that is mapped changes.
fn log(mmu: &Mmu<SimStage2>) {
    let slot = mmu.with_slots(|slots| slots.get(SLOT).cloned()).unwrap();
    let flags = SlotFlags::LOG_DIRTY;
    mmu.publish(
        mmu.slots_lock.lock(&mut Held::entry()).held(),
        SLOT,
        Some(Slot { flags, ..slot }),
    );
}

fn is_logged(mmu: &Mmu<SimStage2>, gfn: Gfn) -> bool {
    mmu.with_slots(|slots| slots.get(SLOT).unwrap().data.dirty.is_marked(gfn))
}

fn fault(mmu: &Mmu<SimStage2>, vcpu: &mut Vcpu, gfn: Gfn, access: Access) -> Outcome {
    mmu.fault(vcpu, &Fault::violation(gfn.gpa(), access)).unwrap()
}

fn leaf(mmu: &Mmu<SimStage2>, gfn: Gfn) -> Leaf {
    match mmu.tables.kind(mmu.walk(gfn).place) {
        SpteKind::Leaf(leaf) => leaf,
        kind => panic!("{gfn} is {kind:?}"),
    }
}

// REQ: DT-2, DT-3: the spte that was looked at was zapped, and its place maps another frame by now (ABA).
#[test]
fn w_is_not_set_in_an_spte_that_maps_another_frame() {
    let (mut mmu, mut vcpu) = machine();
    set(&mmu, 4, 0);
    log(&mmu);
    fault(&mmu, &mut vcpu, BASE, Access::Read);
    let seen = mmu.walk(BASE);
    assert_eq!(leaf(&mmu, BASE).writable, Writable::Restorable);
    set(&mmu, 0, 0);
    set(&mmu, 4, 8);
    log(&mmu);
    fault(&mmu, &mut vcpu, BASE, Access::Read);
    let (place, now) = (mmu.walk(BASE).place, leaf(&mmu, BASE));
    // The pool may give another table; the race is about a place that is used again.
    let seen = super::Walk { place, ..seen };
    let write = Fault::violation(BASE.gpa(), Access::Write);
    let mut held = Held::entry();
    let mut section = mmu.slots.read(&mut held);
    let (slots, held) = section.split();
    let fixed = mmu.fast(slots, held, &mut vcpu.spurious, &seen, &write);
    assert_eq!(fixed, Ok(Some(Outcome::Resume)), "the guest comes again");
    drop(section);
    assert_eq!(leaf(&mmu, BASE), now);
    assert!(!is_logged(&mmu, BASE));
    assert!(mmu.stage2_mut().write(BASE.gpa(), 1).is_err());
    assert_eq!(mmu.audit().first, None);
}

// REQ: DT-1, DT-2: the bit is there before the guest runs on, whichever way W came.
#[test]
fn a_page_is_in_the_log_before_it_can_be_written() {
    let (mut mmu, mut vcpu) = machine();
    let (read, written) = (Gfn::new(BASE.raw() + 1), Gfn::new(BASE.raw() + 2));
    set(&mmu, 4, 0);
    log(&mmu);
    fault(&mmu, &mut vcpu, read, Access::Read);
    assert!(!is_logged(&mmu, read));
    assert!(
        mmu.stage2_mut().write(read.gpa(), 1).is_err(),
        "the first write has to be seen"
    );
    for (gfn, other) in [(read, written), (written, BASE)] {
        fault(&mmu, &mut vcpu, gfn, Access::Write);
        assert_eq!(mmu.stage2_mut().write(gfn.gpa(), 1), Ok(()));
        assert!(is_logged(&mmu, gfn) && !is_logged(&mmu, other));
    }
}

// REQ: AT-1: W comes back through a write fault and its log only.
#[test]
fn a_read_makes_a_tracked_leaf_present_without_w() {
    let (mut mmu, mut vcpu) = machine();
    set(&mmu, 4, 0);
    log(&mmu);
    fault(&mmu, &mut vcpu, BASE, Access::Read);
    let (place, old) = (mmu.walk(BASE).place, leaf(&mmu, BASE));
    let stage2 = mmu.stage2_mut();
    let removed = stage2.unmap(SLOT, BASE, &old);
    stage2.flush(removed);
    mmu.tables.set(place, Spte::access_tracked(old));
    for access in [Access::Fetch, Access::Read] {
        fault(&mmu, &mut vcpu, BASE, access);
        assert_eq!(leaf(&mmu, BASE), old);
    }
    assert_eq!(mmu.stage2_mut().read(BASE.gpa()), Ok(0));
    assert!(mmu.stage2_mut().write(BASE.gpa(), 1).is_err());
    fault(&mmu, &mut vcpu, BASE, Access::Write);
    assert!(is_logged(&mmu, BASE));
    assert_eq!(mmu.stage2_mut().write(BASE.gpa(), 1), Ok(()));
}

// REQ: PF-3, HOST-1: whether its tables are there or not.
#[test]
fn nothing_is_installed_while_its_range_is_being_invalidated() {
    let (mmu, mut vcpu) = machine();
    set(&mmu, 4, 0);
    mmu.invalidate.begin(BASE, Gfn::new(BASE.raw() + 1));
    fault(&mmu, &mut vcpu, BASE, Access::Read);
    assert_eq!(mmu.stat(Stat::Mapped4K), 0);
    fault(&mmu, &mut vcpu, Gfn::new(BASE.raw() + 1), Access::Read);
    fault(&mmu, &mut vcpu, BASE, Access::Read);
    assert_eq!(mmu.stat(Stat::Mapped4K), 1);
    mmu.invalidate.end();
    fault(&mmu, &mut vcpu, BASE, Access::Read);
    assert_eq!(mmu.stat(Stat::Mapped4K), 2);
}

// REQ: GEN-1, PF-1: a slot came between the look at the slots and the installation (CVE-2026-23401).
#[test]
fn an_mmio_spte_is_never_installed_over_a_mapping() {
    let (mmu, mut vcpu) = machine();
    let stamp: Stamp = mmu.generation.cacheable().unwrap();
    set(&mmu, 4, 0);
    fault(&mmu, &mut vcpu, BASE, Access::Write);
    let before = leaf(&mmu, BASE);
    let mut held = Held::entry();
    let mut guard = mmu.lock.read(&mut held);
    let installed = mmu.install_mmio(guard.held(), &mut vcpu.cache, BASE, stamp);
    drop(guard);
    assert_eq!(installed, Installed::Overtaken);
    assert_eq!(leaf(&mmu, BASE), before);
    assert_eq!(mmu.audit().first, None);
}

// REQ: GEN-7
#[test]
fn a_remembered_mmio_access_ends_with_the_generation() {
    let (mmu, mut vcpu) = machine();
    for _ in 0..2 {
        assert!(matches!(
            fault(&mmu, &mut vcpu, BASE, Access::Read),
            Outcome::Emulate(mmio) if mmio.gfn == BASE && mmio.generation == mmu.generation()
        ));
    }
    // The neighbour is not what is remembered.
    let next = Gfn::new(BASE.raw() + 1);
    assert!(matches!(fault(&mmu, &mut vcpu, next, Access::Read), Outcome::Emulate(mmio) if mmio.gfn == next));
    set(&mmu, 4, 0);
    assert_eq!(fault(&mmu, &mut vcpu, next, Access::Read), Outcome::Resume);
    assert_eq!(mmu.stat(Stat::Mapped4K), 1);
}

// REQ: ZAP-1
#[test]
fn zap_all_asks_every_vcpu_to_reload_its_roots() {
    let (mmu, mut first) = machine();
    let second = mmu.add_vcpu().unwrap();
    set(&mmu, 4, 0);
    fault(&mmu, &mut first, BASE, Access::Read);
    assert_eq!(mmu.take_requests(&first), Requests::empty());
    mmu.zap_all();
    for vcpu in [&first, &second] {
        assert!(mmu.take_requests(vcpu).contains(Requests::RELOAD_ROOTS));
        assert_eq!(mmu.take_requests(vcpu), Requests::empty());
    }
}

// REQ: ZAP-2
#[test]
fn a_batch_of_the_background_takes_a_bounded_number_of_leaves() {
    let (mut mmu, mut vcpu) = machine();
    set(&mmu, 1024, 0);
    for page in 0..1024 {
        fault(&mmu, &mut vcpu, Gfn::new(BASE.raw() + page), Access::Read);
    }
    mmu.zap_all();
    let mut left = 1024;
    while mmu.has_background_work() {
        mmu.background();
        let now = mmu.stat(Stat::Mapped4K);
        assert!(left - now <= ZAP_BATCH.into(), "{left} and then {now}");
        left = now;
    }
    assert_eq!((left, mmu.audit().first, mmu.stage2_mut().unflushed()), (0, None, 0));
}

// REQ: LK-2, ZAP-2
#[test]
fn a_freed_table_waits_for_the_walker_inside() {
    let (mmu, mut vcpu) = machine();
    let mut other = mmu.add_vcpu().unwrap();
    set(&mmu, 4, 0);
    fault(&mmu, &mut vcpu, BASE, Access::Read);
    let walking = mmu.walkers.enter(&mut other.walker);
    let seen = mmu.walk(BASE);
    set(&mmu, 0, 0);
    let mut held = Held::entry();
    assert_eq!(mmu.tables.reclaim(&mut held, mmu.walkers.safe_epoch()), 0);
    assert!(mmu.tables.words(seen.place.table).iter().all(|word| {
        let word = Spte::from_raw(word.load(crate::sync::atomic::Ordering::Relaxed));
        word.decode(Format::Ept, TableLevel::Pt as u8) == Ok(SpteKind::Empty)
    }));
    drop(walking);
    // Those of the three levels below the root.
    assert_eq!(mmu.tables.reclaim(&mut held, mmu.walkers.safe_epoch()), 3);
}
