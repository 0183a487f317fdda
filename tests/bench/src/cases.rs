// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is measured in EPT mode? Each case sets its machine up and then does `count` operations inside [`measured`].

use crate::count::{ANSWERED, MEASURED, answered, measured, prepared};
use umbra_mmu_abi::{Access, Backing, BackingId, Generation, Gfn, SlotFlags, SlotId};
use umbra_mmu_core::fault::Fault;
use umbra_mmu_core::null::NullStage2;
use umbra_mmu_core::slots::{Slot, SlotTable};
use umbra_mmu_core::stage2::BackingShape;
use umbra_mmu_core::vcpu::Vcpu;
use umbra_mmu_core::{Limits, Mmu};

/// Pages of backing 0, in frames of 4K; backing 1 has as much in frames of 2M.
const SMALL_PAGES: u32 = 1 << 15;
const LARGE_FRAMES: u32 = 1 << 13;

/// One thing to measure.
pub struct Case {
    /// What it is.
    pub name: &'static str,
    /// Instructions that one operation should take at most.
    pub budget: u64,
    /// What is reached where that is more: what it may take.
    pub reached: Option<u64>,
    /// Operations that are averaged.
    pub count: u64,
    /// The function whose instructions count, and what it calls.
    pub counted: &'static str,
    /// Does them.
    pub run: fn(u64),
}

/// All cases of EPT mode.
pub const CASES: &[Case] = &[
    fault_case("EPT fault, fresh 4K page", 300, 16_000, fresh_small_page),
    fault_case("EPT fault, fresh 2M page", 300, 8000, fresh_large_page),
    fault_case("EPT write fault, W restored without the lock", 300, 4096, restore_write),
    fault_case("MMIO fault, cached by the vCPU", 60, 4000, mmio_remembered),
    Case {
        reached: Some(64),
        ..fault_case("MMIO fault, cached in an spte", 60, 4000, mmio_in_spte)
    },
    fault_case("MMIO fault after a slot change", 600, 4000, mmio_refresh),
    Case {
        counted: "cases*find",
        ..case("slot lookup among 509", 40, 4000, slot_lookup)
    },
    case("write-protecting a page, 4096 at once", 20, 4096, write_protect),
];

/// A case whose faults count alone.
pub const fn fault_case(name: &'static str, budget: u64, count: u64, run: fn(u64)) -> Case {
    Case {
        counted: ANSWERED,
        ..case(name, budget, count, run)
    }
}

pub const fn case(name: &'static str, budget: u64, count: u64, run: fn(u64)) -> Case {
    Case {
        name,
        budget,
        reached: None,
        count,
        counted: MEASURED,
        run,
    }
}

/// Hardware that does nothing, and slots' backings.
pub fn machine(tables: usize) -> Mmu<NullStage2> {
    let limits = Limits {
        tables,
        rmap_entries: 64,
        first_generation: Generation(0),
    };
    let shapes = vec![
        BackingShape {
            small_head: SMALL_PAGES,
            large: 0,
            small_tail: 0,
        },
        BackingShape {
            small_head: 0,
            large: LARGE_FRAMES,
            small_tail: 0,
        },
    ];
    Mmu::new(NullStage2::default(), shapes, &limits).expect("memory for the tables")
}

/// Makes slot `id` of a backing's first pages.
pub fn set(mmu: &Mmu<NullStage2>, id: u16, base: u64, npages: u32, backing: u16, flags: SlotFlags) {
    let backing = Backing {
        id: BackingId(backing),
        first_page: u32::from(id) * 8 % SMALL_PAGES,
    };
    mmu.set_slot(SlotId(id), Gfn::new(base), npages, backing, flags)
        .expect("a slot");
}

/// One fault of the guest.
#[inline]
pub fn fault(mmu: &Mmu<NullStage2>, vcpu: &mut Vcpu, gfn: u64, access: Access) {
    let fault = Fault::violation(Gfn::new(gfn).gpa(), access);
    assert!(answered(mmu, vcpu, &fault).is_ok());
}

/// One that is not counted.
fn prepare(mmu: &Mmu<NullStage2>, vcpu: &mut Vcpu, gfn: u64, access: Access) {
    let fault = Fault::violation(Gfn::new(gfn).gpa(), access);
    assert!(prepared(mmu, vcpu, &fault).is_ok());
}

fn fresh_small_page(count: u64) {
    let mmu = machine(128);
    set(&mmu, 0, 0x1000, SMALL_PAGES, 0, SlotFlags::empty());
    let mut vcpu = mmu.add_vcpu().expect("a vCPU");
    (0..count).for_each(|i| fault(&mmu, &mut vcpu, 0x1000 + i, Access::Write));
}

fn fresh_large_page(count: u64) {
    let mmu = machine(128);
    set(&mmu, 0, 0x1000, LARGE_FRAMES * 512, 1, SlotFlags::empty());
    let mut vcpu = mmu.add_vcpu().expect("a vCPU");
    (0..count).for_each(|i| fault(&mmu, &mut vcpu, 0x1000 + i * 512, Access::Write));
}

/// Pages that dirty logging has write-protected.
fn logged(count: u64) -> (Mmu<NullStage2>, Vcpu) {
    let mmu = machine(128);
    set(&mmu, 0, 0x1000, SMALL_PAGES, 0, SlotFlags::empty());
    let mut vcpu = mmu.add_vcpu().expect("a vCPU");
    (0..count).for_each(|i| prepare(&mmu, &mut vcpu, 0x1000 + i, Access::Write));
    (mmu, vcpu)
}

fn restore_write(count: u64) {
    let (mmu, mut vcpu) = logged(count);
    set(&mmu, 0, 0x1000, SMALL_PAGES, 0, SlotFlags::LOG_DIRTY);
    (0..count).for_each(|i| fault(&mmu, &mut vcpu, 0x1000 + i, Access::Write));
}

fn write_protect(count: u64) {
    let (mmu, _) = logged(count);
    measured(|| set(&mmu, 0, 0x1000, SMALL_PAGES, 0, SlotFlags::LOG_DIRTY));
}

fn mmio_remembered(count: u64) {
    let mmu = machine(16);
    let mut vcpu = mmu.add_vcpu().expect("a vCPU");
    prepare(&mmu, &mut vcpu, 0xfec00, Access::Write);
    (0..count).for_each(|_| fault(&mmu, &mut vcpu, 0xfec00, Access::Write));
}

fn mmio_in_spte(count: u64) {
    let mmu = machine(16);
    let mut vcpu = mmu.add_vcpu().expect("a vCPU");
    for gfn in [0xfec00, 0xfed00] {
        prepare(&mmu, &mut vcpu, gfn, Access::Write);
    }
    // Two pages in turn: the vCPU remembers one.
    (0..count).for_each(|i| fault(&mmu, &mut vcpu, 0xfec00 + (i & 1) * 0x100, Access::Write));
}

fn mmio_refresh(count: u64) {
    let mmu = machine(128);
    let mut vcpu = mmu.add_vcpu().expect("a vCPU");
    for i in 0..count {
        prepare(&mmu, &mut vcpu, 0x10_0000 + i, Access::Write);
    }
    set(&mmu, 1, 0x2000, 8, 0, SlotFlags::empty());
    (0..count).for_each(|i| fault(&mmu, &mut vcpu, 0x10_0000 + i, Access::Write));
}

/// One lookup, from its call to its return.
#[inline(never)]
fn find(slots: &SlotTable, gfn: Gfn) -> Option<&Slot> {
    slots.lookup(gfn)
}

fn slot_lookup(count: u64) {
    let mmu = machine(128);
    for id in 0..509 {
        set(&mmu, id, 0x1000 + u64::from(id) * 16, 8, 0, SlotFlags::empty());
    }
    let gfns: Vec<Gfn> = (0..count).map(|i| Gfn::new(0x1000 + i * 7919 % 8192)).collect();
    mmu.with_slots(|slots| gfns.iter().filter(|gfn| find(slots, **gfn).is_some()).count());
}
