// SPDX-License-Identifier: MIT OR Apache-2.0
//! What does a slot allocate? Its reverse map, whose allocation may fail, and nothing that grows with the other slots.

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;
use umbra_mmu_abi::{Backing, BackingId, Gfn, SlotFlags, SlotId};
use umbra_mmu_core::null::NullStage2;
use umbra_mmu_core::slots::USER_MEM_SLOTS;
use umbra_mmu_core::stage2::BackingShape;
use umbra_mmu_core::{Limits, Mmu};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

fn main() {
    a_slot_allocates_its_reverse_map_only();
    println!("test a_slot_allocates_its_reverse_map_only ... ok");
}

// REQ: MEM-4
fn a_slot_allocates_its_reverse_map_only() {
    let shapes = vec![BackingShape {
        small_head: 1,
        large: 0,
        small_tail: 0,
    }];
    let mmu = Mmu::new(NullStage2::default(), shapes, &Limits::default()).unwrap();
    let backing = Backing {
        id: BackingId(0),
        first_page: 0,
    };
    let mut first = None;
    for id in 0..USER_MEM_SLOTS as u16 {
        let region = Region::new(ALLOCATOR);
        // All of them near each other: they need few tables.
        mmu.set_slot(SlotId(id), Gfn::new(2 * u64::from(id)), 1, backing, SlotFlags::empty())
            .unwrap();
        let change = region.change();
        let counts = (change.allocations, change.reallocations, change.bytes_allocated);
        assert_eq!(counts, *first.get_or_insert((13, 0, counts.2)), "slot {id}");
    }
}
