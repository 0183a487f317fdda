// SPDX-License-Identifier: MIT OR Apache-2.0
//! Does a fault allocate? Counted by an allocator, above a second stage that never does.

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;
use umbra_mmu_abi::{Access, Backing, BackingId, Generation, Gfn, SlotFlags, SlotId};
use umbra_mmu_core::fault::Fault;
use umbra_mmu_core::null::NullStage2;
use umbra_mmu_core::stage2::{BackingShape, Frame};
use umbra_mmu_core::{Limits, Mmu};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

fn main() {
    faults_lookups_and_zaps_allocate_nothing();
    println!("test faults_lookups_and_zaps_allocate_nothing ... ok");
}

// REQ: MEM-4, SP-11
fn faults_lookups_and_zaps_allocate_nothing() {
    let small = BackingShape {
        small_head: 256,
        large: 0,
        small_tail: 0,
    };
    let large = BackingShape {
        small_head: 512,
        large: 8,
        small_tail: 0,
    };
    let shapes = vec![large, small];
    let limits = Limits {
        tables: 24,
        rmap_entries: 8,
        first_generation: Generation(0),
    };
    let mmu = Mmu::new(NullStage2::default(), shapes, &limits).unwrap();
    let backing = Backing {
        id: BackingId(0),
        first_page: 0,
    };
    mmu.set_slot(SlotId(0), Gfn::new(0x1000), 512 + 8 * 512, backing, SlotFlags::empty())
        .unwrap();
    let logged = Backing {
        id: BackingId(1),
        first_page: 0,
    };
    mmu.set_slot(SlotId(1), Gfn::new(0x8000), 256, logged, SlotFlags::LOG_DIRTY)
        .unwrap();
    let mut vcpu = mmu.add_vcpu().unwrap();
    let frames = Frame::new(BackingId(1), 0).unwrap();
    let mut log = [0; 4];
    let region = Region::new(ALLOCATOR);
    for round in 0..3 {
        for gfn in (0x1000..0x1000 + 9 * 512).step_by(7) {
            mmu.fault(&mut vcpu, &Fault::violation(Gfn::new(gfn).gpa(), Access::Write))
                .unwrap();
        }
        // MMIO all over the place, more than there are tables for.
        for i in 0..64 {
            let gpa = Gfn::new(0x10_0000 + (i << 9) + round).gpa();
            mmu.fault(&mut vcpu, &Fault::violation(gpa, Access::Read)).unwrap();
        }
        // W comes with the first write, and again after the log was read; a page that is old comes back at its next access.
        for gfn in 0x8000..0x8100 {
            for access in [Access::Read, Access::Write] {
                mmu.fault(&mut vcpu, &Fault::violation(Gfn::new(gfn).gpa(), access))
                    .unwrap();
            }
        }
        assert_eq!(mmu.get_and_clear_log(SlotId(1), 0, &mut log), Ok(256));
        mmu.test_and_clear_young(frames, 64, |_, _| {}).unwrap();
        for gfn in (0x8000..0x8100).step_by(3) {
            mmu.fault(&mut vcpu, &Fault::violation(Gfn::new(gfn).gpa(), Access::Write))
                .unwrap();
        }
        mmu.reclaim(frames, 16).unwrap();
        mmu.give_back(frames, 16).unwrap();
        mmu.zap_all();
        while mmu.has_background_work() {
            mmu.background();
        }
    }
    let change = region.change();
    assert_eq!(
        (change.allocations, change.reallocations, change.deallocations),
        (0, 0, 0)
    );
}
