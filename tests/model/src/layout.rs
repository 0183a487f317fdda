// SPDX-License-Identifier: MIT OR Apache-2.0
//! What does the small guest consist of? Its backings, its first slots and its first page tables, in every mode at once.
//!
//! | gfns           | what                                                     |
//! |----------------|----------------------------------------------------------|
//! | 0x000..0x040   | backing 0: tables (see below), from 0x20 on data         |
//! | 0x100..0x140   | the same frames again                                    |
//! | 0x180..0x190   | backing 2, read-only                                     |
//! | 0x3fa..0x805   | backing 1: 6 small frames, two of 2M, 5 small ones       |
//! | the rest       | no memory                                                |
//!
//! In each mode the first 2 MiB are mapped to themselves, so that a guest can reach its tables in every mode.

use crate::oracle::Paging;
use umbra_mmu_core::stage2::BackingShape;

/// The frames.
pub const SHAPES: [BackingShape; 4] = [
    BackingShape {
        small_head: 64,
        large: 0,
        small_tail: 0,
    },
    BackingShape {
        small_head: 512,
        large: 2,
        small_tail: 5,
    },
    BackingShape {
        small_head: 16,
        large: 0,
        small_tail: 0,
    },
    BackingShape {
        small_head: 64,
        large: 0,
        small_tail: 0,
    },
];

/// First slots: id, base, pages, backing, first page, bits of the flags.
pub const SLOTS: [(u16, u64, u32, u16, u32, u8); 4] = [
    (0, 0x000, 64, 0, 0, 0),
    (1, 0x3fa, 6 + 1024 + 5, 1, 506, 0),
    (2, 0x100, 64, 0, 0, 0),
    (3, 0x180, 16, 2, 0, READONLY),
];

/// `SlotFlags::LOG_DIRTY`.
pub const LOG_DIRTY: u8 = 1;
/// `SlotFlags::READONLY`.
pub const READONLY: u8 = 2;

/// Pages of tables that the identity does not need.
pub const POOL: core::ops::Range<u64> = 16..32;
/// The page directory of PAE and longer modes, shared by them.
pub const PD: u64 = 4;
/// Its first page table.
pub const PT: u64 = 5;

/// The pages of data that devices write.
pub const DATA: core::ops::Range<u64> = 32..64;

/// Two roots of each mode.
pub const fn roots(paging: Paging) -> [u64; 2] {
    match paging {
        Paging::Off => [0, 0],
        Paging::TwoLevel => [0x1000, 0xd000],
        Paging::Pae => [0x3000, 0x3020],
        Paging::FourLevel => [0x6000, 0xe000],
        Paging::FiveLevel => [0xa000, 0xf000],
    }
}

/// A table's entry with all rights.
const fn entry(gfn: u64) -> u64 {
    gfn << 12 | 0b111
}

const LARGE: u64 = 0x80;

/// The first 2 MiB: what `gfn` is mapped with there.
fn identity(gfn: u64) -> u64 {
    match gfn {
        0..0x40 | 0x100..0x140 | 0x180..0x190 | 0x1c0..0x1c8 => entry(gfn),
        _ => 0,
    }
}

/// Every entry that is not 0, as (gpa, bytes, value).
pub fn first_tables() -> Vec<(u64, u8, u64)> {
    let mut all = Vec::new();
    let mut put = |gfn: u64, index: u64, value: u64| all.push(((gfn << 12) + index * 8, 8, value));
    for gfn in (0..512).filter(|gfn| identity(*gfn) != 0) {
        put(PT, gfn, identity(gfn));
    }
    put(PD, 0, entry(PT));
    put(PD, 1, entry(16));
    put(PD, 2, entry(0x400) | LARGE);
    put(PD, 3, entry(0x600) | LARGE);
    put(PD, 511, entry(PD));
    for half in [0, 4] {
        put(3, half, PD << 12 | 1);
        put(3, half + 1, (17 - half / 4) << 12 | 1);
        put(3, half + 3, PD << 12 | 1);
    }
    for (pml4, pml5) in [(6, 10), (14, 15)] {
        put(pml4, 0, entry(7));
        put(pml4, 1, entry(18));
        put(pml4, 511, entry(pml4));
        put(pml5, 0, entry(pml4));
        put(pml5, 1, entry(19));
        put(pml5, 511, entry(pml5));
    }
    put(7, 0, entry(PD));
    put(7, 1, entry(20));
    put(7, 511, entry(PD));
    // Any pool page is a table of any level above others.
    for (at, gfn) in POOL.enumerate() {
        put(gfn, 0, entry(POOL.start + (at as u64 * 7 + 3) % 16));
        put(gfn, 1, entry(DATA.start + at as u64));
        put(gfn, 2, entry(0x400 + at as u64));
        put(gfn, 3, entry(0x1c0));
    }
    let mut put = |gfn: u64, index: u64, value: u64| all.push(((gfn << 12) + index * 4, 4, value));
    for gfn in (0..1024).filter(|gfn| identity(*gfn) != 0) {
        put(2, gfn, identity(gfn));
    }
    for pd in [1, 13] {
        put(pd, 0, entry(2));
        put(pd, 1, entry(0x400) | LARGE);
        put(pd, 2, entry(21));
        put(pd, 3, entry(22));
        put(pd, 1023, entry(pd));
    }
    all
}
