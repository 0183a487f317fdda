// SPDX-License-Identifier: MIT OR Apache-2.0
//! How does an mmu component start? It reads its configuration, builds the MMU, and serves its vmm.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::vec::Vec;
use sel4::cap;
use sel4_root_task::{declare_component, logger};
use umbra_description::{MmuConfig, SinkKind, layout::mmu as slot};
use umbra_mmu_abi::Generation;
use umbra_mmu_component::ept::Ept;
use umbra_mmu_component::frame_caps::{BackingCaps, Top};
use umbra_mmu_component::objects::Objects;
use umbra_mmu_component::stage2::CapStage2;
use umbra_mmu_component::{serve, supervisor};
use umbra_mmu_core::generation::GENERATION_FIRST;
use umbra_mmu_core::slots::USER_MEM_SLOTS;
use umbra_mmu_core::stage2::BackingShape;
use umbra_mmu_core::{Limits, Mmu};

declare_component! { main = main }

const CNODE: cap::CNode = cap::CNode::from_bits(slot::CNODE);
const TOP: Top = Top {
    cnode: cap::CNode::from_bits(slot::TOP),
    bits: slot::TOP_BITS as u8,
};

fn main(config: &'static [u8]) -> ! {
    logger::init(supervisor::log, log::LevelFilter::Info);
    let config: MmuConfig = postcard::from_bytes(config).expect("the configuration is of this version");
    let backings: Vec<BackingCaps> = config
        .backings
        .iter()
        .map(|b| BackingCaps {
            first_slot: b.first_slot,
            shape: BackingShape {
                small_head: b.small_head,
                large: b.large,
                small_tail: b.small_tail,
            },
        })
        .collect();
    let shapes: Vec<BackingShape> = backings.iter().map(|backing| backing.shape).collect();
    let (first, count) = config.free_slots;
    let objects = Objects::new(CNODE, &config.tables, first..first + count);
    let limits = Limits {
        tables: tables(&shapes),
        first_generation: config.first_generation.map_or(GENERATION_FIRST, Generation),
        ..Limits::default()
    };
    match config.sink {
        SinkKind::Ept => {
            let ept = Ept(cap::EptPml4::from_bits(shortcut(slot::EPT, 0)));
            let stage2 = CapStage2::new(ept, CNODE, TOP, objects, backings);
            let mmu = Mmu::new(stage2, shapes, &limits).expect("the heap holds the tables");
            let mut vcpu = mmu.add_vcpu().expect("the first virtual processor");
            serve::serve(cap::Endpoint::from_bits(shortcut(slot::REQUESTS, 1)), &mmu, &mut vcpu)
        }
    }
}

/// The capability by a shorter way, where memslots leave entries of the CSpace's root free.
fn shortcut(slot: u64, which: u64) -> u64 {
    const FIRST: u64 = USER_MEM_SLOTS as u64 + 1;
    const { assert!(FIRST + 1 < 1 << slot::TOP_BITS) };
    TOP.shortcut(CNODE, slot, FIRST + which)
        .unwrap_or_else(|error| panic!("capability {slot} cannot be copied: {error}"))
}

/// Tables of sptes: what the memory needs wherever it is placed contiguously, twice for zap-all, and some for MMIO.
fn tables(shapes: &[BackingShape]) -> usize {
    let of_shape = |shape: &BackingShape| {
        let (small, large) = ((shape.small_head + shape.small_tail) as usize, shape.large as usize);
        // Each end of each part may lie in a table of its own.
        small / 512 + 4 + (small / 512 + large) / 512 + 2 + 2
    };
    64 + 2 * shapes.iter().map(of_shape).sum::<usize>()
}
