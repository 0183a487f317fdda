// SPDX-License-Identifier: MIT OR Apache-2.0
//! How many instructions does the MMU's core take? Counted by valgrind, exact and repeatable.
//!
//! `cargo run --release -p umbra-bench` runs itself under `valgrind --tool=callgrind` for each case, with n and with 2n
//! operations; the difference divided by n is the cost of one. The hardware below does nothing, so that only the core
//! counts. The exit status is 1 where a case is above its budget.

use std::process::{Command, ExitCode};
use umbra_mmu_abi::{Access, Backing, BackingId, Generation, Gfn, SlotFlags, SlotId};
use umbra_mmu_core::fault::Fault;
use umbra_mmu_core::null::NullStage2;
use umbra_mmu_core::stage2::BackingShape;
use umbra_mmu_core::{Limits, Mmu};

/// Name, budget in instructions for one operation, and what runs it that often.
type Case = (&'static str, u64, fn(u64));

const CASES: [Case; 7] = [
    ("EPT fault, fresh 4K page", 300, fresh_small_page),
    ("EPT fault, fresh 2M page", 300, fresh_large_page),
    ("MMIO fault, remembered by the vCPU", 60, mmio_remembered),
    ("MMIO fault, cached in an spte", 150, mmio_fast),
    ("MMIO fault after a slot change", 600, mmio_refresh),
    // The lookup takes 38 of them, its loop the rest.
    ("slot lookup among 509", 45, slot_lookup),
    ("zap-all and refault of one page", 2800, zap_all),
];

const SMALL_PAGES: u32 = 1 << 15;
const SHAPES: [BackingShape; 2] = [
    BackingShape {
        small_head: SMALL_PAGES,
        large: 0,
        small_tail: 0,
    },
    BackingShape {
        small_head: 0,
        large: 1 << 13,
        small_tail: 0,
    },
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, case, count] = &arguments[..] {
        let (case, count): (usize, u64) = (case.parse().expect("a case"), count.parse().expect("a count"));
        CASES[case].2(count);
        return ExitCode::SUCCESS;
    }
    if Command::new("valgrind").arg("--version").output().is_err() {
        eprintln!("valgrind is not installed: apt-get install valgrind");
        return ExitCode::FAILURE;
    }
    let mut within = true;
    for (at, (name, budget, _)) in CASES.iter().enumerate() {
        let count = 4000;
        let cost = (instructions(at, 2 * count) - instructions(at, count)) / count;
        within &= cost <= *budget;
        println!("{name:45} {cost:6} instructions (budget {budget})");
    }
    if within { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Instructions of a whole run of this program.
fn instructions(case: usize, count: u64) -> u64 {
    let program = std::env::current_exe().expect("this program has a path");
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .args([case.to_string(), count.to_string()])
        .output()
        .expect("valgrind runs");
    let text = String::from_utf8_lossy(&output.stderr);
    let line = text.lines().find_map(|line| line.split_once("Collected : "));
    line.unwrap_or_else(|| panic!("valgrind said: {text}"))
        .1
        .trim()
        .parse()
        .expect("a number")
}

fn mmu(tables: usize) -> Mmu<NullStage2> {
    let limits = Limits {
        tables,
        rmap_entries: 64,
        first_generation: Generation(0),
    };
    Mmu::new(NullStage2::default(), SHAPES.to_vec(), &limits).expect("memory for the tables")
}

fn set(mmu: &Mmu<NullStage2>, id: u16, base: u64, npages: u32, backing: u16, first_page: u32) {
    let backing = Backing {
        id: BackingId(backing),
        first_page,
    };
    mmu.set_slot(SlotId(id), Gfn::new(base), npages, backing, SlotFlags::empty())
        .expect("a slot");
}

fn fresh_small_page(count: u64) {
    let mmu = mmu(128);
    let mut vcpu = mmu.add_vcpu().expect("a virtual processor");
    set(&mmu, 0, 0x1000, SMALL_PAGES, 0, 0);
    for i in 0..count {
        std::hint::black_box(mmu.fault(&mut vcpu, &Fault::violation(Gfn::new(0x1000 + i).gpa(), Access::Write)))
            .expect("a mapping");
    }
}

fn fresh_large_page(count: u64) {
    let mmu = mmu(128);
    let mut vcpu = mmu.add_vcpu().expect("a virtual processor");
    set(&mmu, 0, 0x1000, SHAPES[1].large * 512, 1, 0);
    for i in 0..count {
        std::hint::black_box(mmu.fault(
            &mut vcpu,
            &Fault::violation(Gfn::new(0x1000 + i * 512).gpa(), Access::Write),
        ))
        .expect("a mapping");
    }
}

fn mmio_remembered(count: u64) {
    let mmu = mmu(16);
    let mut vcpu = mmu.add_vcpu().expect("a virtual processor");
    set(&mmu, 0, 0x1000, 8, 0, 0);
    for _ in 0..count {
        let fault = Fault::violation(Gfn::new(0xfec00).gpa(), Access::Write);
        std::hint::black_box(mmu.fault(&mut vcpu, &fault)).expect("an emulation");
    }
}

/// Two pages in turn: a vCPU remembers one.
fn mmio_fast(count: u64) {
    let mmu = mmu(16);
    let mut vcpu = mmu.add_vcpu().expect("a virtual processor");
    set(&mmu, 0, 0x1000, 8, 0, 0);
    for _ in 0..count {
        std::hint::black_box(mmu.fault(&mut vcpu, &Fault::violation(Gfn::new(0xfec00).gpa(), Access::Write)))
            .expect("an emulation");
    }
}

fn mmio_refresh(count: u64) {
    let mmu = mmu(128);
    let mut vcpu = mmu.add_vcpu().expect("a virtual processor");
    set(&mmu, 0, 0x1000, 8, 0, 0);
    // Each page is new to the tables, which are there.
    for i in 0..512 {
        mmu.fault(&mut vcpu, &Fault::violation(Gfn::new(0xfec00 + i).gpa(), Access::Write))
            .expect("an emulation");
    }
    for i in 0..count {
        if i % 512 == 0 {
            set(&mmu, 1, 0x2000 + (i / 512 % 2) * 0x100, 8, 0, 8);
        }
        std::hint::black_box(mmu.fault(
            &mut vcpu,
            &Fault::violation(Gfn::new(0xfec00 + i % 512).gpa(), Access::Write),
        ))
        .expect("an emulation");
    }
}

fn slot_lookup(count: u64) {
    let mmu = mmu(128);
    for id in 0..509 {
        set(&mmu, id, 0x1000 + u64::from(id) * 16, 8, 0, u32::from(id) * 8);
    }
    mmu.with_slots(|slots| {
        for i in 0..count {
            std::hint::black_box(slots.lookup(Gfn::new(0x1000 + i * 7919 % 0x2000)));
        }
    });
}

fn zap_all(count: u64) {
    let mmu = mmu(128);
    let mut vcpu = mmu.add_vcpu().expect("a virtual processor");
    set(&mmu, 0, 0x1000, 512, 0, 0);
    for _ in 0..count {
        mmu.zap_all();
        std::hint::black_box(mmu.fault(&mut vcpu, &Fault::violation(Gfn::new(0x1000).gpa(), Access::Write)))
            .expect("a mapping");
        while mmu.has_background_work() {
            mmu.background();
        }
    }
}
