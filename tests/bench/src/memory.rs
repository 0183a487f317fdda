// SPDX-License-Identifier: MIT OR Apache-2.0
//! How much memory does the MMU need beside its tables? Counted by an allocator, with every page of a slot mapped.

use crate::cases::fault;
use crate::shadow::Setup;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;
use umbra_mmu_abi::{Access, Backing, BackingId, Generation, Gfn, SlotFlags, SlotId};
use umbra_mmu_core::fault::ErrorCode;
use umbra_mmu_core::null::NullStage2;
use umbra_mmu_core::stage2::BackingShape;
use umbra_mmu_core::{Limits, Mmu};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Bytes of a table that are the sptes themselves.
const TABLE_BYTES: usize = 4096;

/// Bytes on the heap for each mapped 4K page of a slot with 1 GiB, beside the sptes; dirty logging is on.
pub fn ept_bytes_per_page() -> f64 {
    const PAGES: u32 = 1 << 18;
    const TABLES: usize = PAGES as usize / 512 + 4 + 2;
    let region = Region::new(ALLOCATOR);
    let shape = BackingShape {
        small_head: PAGES,
        large: 0,
        small_tail: 0,
    };
    let limits = Limits {
        tables: TABLES,
        rmap_entries: 64,
        first_generation: Generation(0),
    };
    let mmu = Mmu::new(NullStage2::default(), vec![shape], &limits).expect("memory");
    let backing = Backing {
        id: BackingId(0),
        first_page: 0,
    };
    mmu.set_slot(SlotId(0), Gfn::new(0), PAGES, backing, SlotFlags::LOG_DIRTY)
        .expect("a slot");
    let mut vcpu = mmu.add_vcpu().expect("a vCPU");
    (0..u64::from(PAGES)).for_each(|gfn| fault(&mmu, &mut vcpu, gfn, Access::Write));
    let change = region.change();
    let bytes = change.bytes_allocated - change.bytes_deallocated;
    (bytes - TABLES * TABLE_BYTES) as f64 / f64::from(PAGES)
}

/// The same in shadow mode, for a guest with 256 MiB that are mapped by its own tables.
pub fn shadow_bytes_per_page() -> f64 {
    const PAGES: u64 = 1 << 16;
    let setup = Setup::new(PAGES, 0x67);
    let tables = setup.tables();
    let region = Region::new(ALLOCATOR);
    let mut guest = setup.guest();
    (8..PAGES).for_each(|page| guest.fault(page, ErrorCode::W));
    let change = region.change();
    let bytes = change.bytes_allocated - change.bytes_deallocated;
    (bytes - tables * TABLE_BYTES) as f64 / PAGES as f64
}
