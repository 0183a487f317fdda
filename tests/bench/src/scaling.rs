// SPDX-License-Identifier: MIT OR Apache-2.0
//! How does the cost grow? The same operation beside more mapped memory, more MMIO sptes, and more vCPUs.

use crate::cases::{fault, set};
use crate::count::measured;
use std::time::Instant;
use umbra_mmu_abi::{Access, Generation, SlotFlags};
use umbra_mmu_core::null::NullStage2;
use umbra_mmu_core::stage2::BackingShape;
use umbra_mmu_core::{Limits, Mmu};

/// Something whose cost may depend on a number.
pub struct Growth {
    /// What is done.
    pub name: &'static str,
    /// The values of the number, and how each is written.
    pub at: &'static [(u64, &'static str)],
    /// Operations that are averaged.
    pub count: u64,
    /// Does it, with the number and the count.
    pub run: fn(u64, u64),
    /// Instructions that the cost at the largest number may be above that at the smallest.
    pub slack: u64,
}

/// Mapped memory in 4K pages.
const MEMORY: &[(u64, &str)] = &[
    (1 << 8, "1 MiB"),
    (1 << 12, "16 MiB"),
    (1 << 16, "256 MiB"),
    (1 << 18, "1 GiB"),
    (1 << 20, "4 GiB"),
    (1 << 22, "16 GiB"),
    (1 << 24, "64 GiB"),
];

/// The same for a guest with tables of its own.
const SHADOWED: &[(u64, &str)] = &[
    (1 << 10, "4 MiB"),
    (1 << 12, "16 MiB"),
    (1 << 14, "64 MiB"),
    (1 << 16, "256 MiB"),
    (1 << 17, "512 MiB"),
];

const CACHED: &[(u64, &str)] = &[(1, "1"), (1 << 6, "64"), (1 << 12, "4 096"), (1 << 16, "65 536")];

const VCPUS: &[(u64, &str)] = &[(1, "1"), (2, "2"), (4, "4"), (8, "8")];

/// What is measured.
pub const GROWTH: &[Growth] = &[
    Growth {
        name: "zap-all beside mapped memory, in 4K pages",
        at: MEMORY,
        count: 1,
        run: zap_all,
        slack: 0,
    },
    Growth {
        name: "first fault after zap-all, beside mapped memory",
        at: MEMORY,
        count: 1,
        run: fault_after_zap_all,
        slack: 64,
    },
    Growth {
        name: "EPT fault on a fresh 4K page, beside mapped memory",
        at: MEMORY,
        count: 256,
        run: fault_beside,
        slack: 16,
    },
    Growth {
        name: "slot change beside MMIO sptes",
        at: CACHED,
        count: 1,
        run: slot_change,
        slack: 0,
    },
    Growth {
        name: "EPT fault on a fresh 4K page, vCPUs in turn",
        at: VCPUS,
        count: 8192,
        run: faults_of_vcpus,
        slack: 16,
    },
    Growth {
        name: "shadow fault, warm path, beside mapped memory",
        at: SHADOWED,
        count: 256,
        run: crate::shadow::fault_beside,
        slack: 16,
    },
];

/// The first frame of the mapped memory.
const BASE: u64 = 0x1_0000;

/// A machine with `mapped` pages mapped and `more` beside them.
fn mapped(mapped: u64, more: u64) -> Mmu<NullStage2> {
    let pages = (mapped + more).min(1 << 24) as u32;
    let limits = Limits {
        tables: 2 * (pages as usize / 512) + 64,
        rmap_entries: 64,
        first_generation: Generation(0),
    };
    let shape = |small_head| BackingShape {
        small_head,
        large: 0,
        small_tail: 0,
    };
    let mmu = Mmu::new(NullStage2::default(), vec![shape(pages), shape(1 << 12)], &limits).expect("memory");
    set(&mmu, 0, BASE, pages, 0, SlotFlags::empty());
    let mut vcpu = mmu.add_vcpu().expect("a vCPU");
    (0..mapped).for_each(|i| fault(&mmu, &mut vcpu, BASE + i, Access::Write));
    mmu
}

fn zap_all(pages: u64, count: u64) {
    let mmu = mapped(pages, 0);
    measured(|| (0..count).for_each(|_| mmu.zap_all()));
}

fn fault_after_zap_all(pages: u64, count: u64) {
    let mmu = mapped(pages, 0);
    let mut vcpu = mmu.add_vcpu().expect("a vCPU");
    mmu.zap_all();
    measured(|| (0..count).for_each(|i| fault(&mmu, &mut vcpu, BASE + i, Access::Write)));
}

fn fault_beside(pages: u64, count: u64) {
    let pages = pages - count.min(pages / 2);
    let mmu = mapped(pages, count + 1);
    let mut vcpu = mmu.add_vcpu().expect("a vCPU");
    // The table is there.
    fault(&mmu, &mut vcpu, BASE + pages + count, Access::Write);
    measured(|| (0..count).for_each(|i| fault(&mmu, &mut vcpu, BASE + pages + i, Access::Write)));
}

fn slot_change(cached: u64, _: u64) {
    // The same slot each time: what a change costs depends on the slots.
    let mmu = mapped(1, (1 << 16) + 2048);
    let mut vcpu = mmu.add_vcpu().expect("a vCPU");
    (0..cached).for_each(|i| fault(&mmu, &mut vcpu, 0x1000_0000 + i, Access::Read));
    measured(|| set(&mmu, 1, 0x2000_0000, 8, 1, SlotFlags::empty()));
}

fn faults_of_vcpus(vcpus: u64, count: u64) {
    let mmu = mapped(1, count + 512);
    let mut vcpus: Vec<_> = (0..vcpus).map(|_| mmu.add_vcpu().expect("a vCPU")).collect();
    let last = vcpus.len();
    measured(|| {
        (0..count).for_each(|i| fault(&mmu, &mut vcpus[i as usize % last], BASE + 1 + i, Access::Write));
    });
}

/// Faults on fresh pages per second of wall time, by as many threads as vCPUs.
pub fn throughput(vcpus: u64) -> f64 {
    const PAGES: u64 = 1 << 20;
    let mmu = mapped(1, PAGES);
    let share = PAGES / vcpus;
    let mut own: Vec<_> = (0..vcpus).map(|_| mmu.add_vcpu().expect("a vCPU")).collect();
    let start = Instant::now();
    std::thread::scope(|scope| {
        for (i, vcpu) in own.iter_mut().enumerate() {
            let (mmu, first) = (&mmu, BASE + 1 + i as u64 * share);
            scope.spawn(move || (0..share - 1).for_each(|i| fault(mmu, vcpu, first + i, Access::Write)));
        }
    });
    (share - 1) as f64 * vcpus as f64 / start.elapsed().as_secs_f64()
}
