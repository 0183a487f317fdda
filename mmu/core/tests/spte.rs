// SPDX-License-Identifier: MIT OR Apache-2.0
//! Is every spte exactly one thing? Enumerated where that is possible.

use umbra_mmu_abi::{BackingId, Generation, Gfn, PageLevel};
use umbra_mmu_core::generation::GENERATION_MAX;
use umbra_mmu_core::mmio::{MmioCheck, check};
use umbra_mmu_core::spte::{Leaf, MmioAccess, MmioSpte, Spte, SpteKind, Writable};
use umbra_mmu_core::stage2::Frame;
use umbra_mmu_core::table::TableId;

/// Low, high and odd ones: those around 4 GiB, where a 32-bit guest's devices are, among them.
const GFNS: [u64; 10] = [
    0,
    1,
    0x1ff,
    0x200,
    0xb8,
    0xfec00,
    0xfffff,
    0x100000,
    0xaa_aaaa_aaaa,
    0xff_ffff_ffff,
];

// REQ: GEN-1, GEN-2
#[test]
fn every_generation_gfn_and_access_reads_back() {
    for generation in 0..=GENERATION_MAX {
        let generation = Generation(generation);
        for gfn in GFNS.map(Gfn::new) {
            for access in MmioAccess::ALL_KINDS {
                let mmio = MmioSpte {
                    gfn,
                    access,
                    generation,
                };
                let spte = Spte::mmio(mmio);
                assert_eq!(spte.decode(1), Ok(SpteKind::Mmio(mmio)));
            }
        }
    }
}

// REQ: GEN-2: the places that the documents give the two halves.
#[test]
fn the_generation_is_where_it_is_documented() {
    let spte = |generation| {
        Spte::mmio(MmioSpte {
            gfn: Gfn::new(0),
            access: MmioAccess::Read,
            generation: Generation(generation),
        })
        .raw()
    };
    let none = spte(0);
    for bit in 0..19 {
        let place = if bit < 9 { 3 + bit } else { 52 + bit - 9 };
        assert_eq!(spte(1 << bit) ^ none, 1 << place, "bit {bit} of the generation");
    }
}

// REQ: GEN-2. The encoding as first published lost the high half for good: it made a 32-bit guest reboot. A high
// generation must not change the frame, and an old one must not look like the present one.
#[test]
fn high_generation_keeps_the_frame_of_a_32_bit_guest() {
    for gfn in [0xfee00, 0xfec00, 0xb8, 0xe0000].map(Gfn::new) {
        for generation in [1 << 9, 1 << 18, GENERATION_MAX - 1, GENERATION_MAX] {
            let mmio = MmioSpte {
                gfn,
                access: MmioAccess::All,
                generation: Generation(generation),
            };
            let kind = Spte::mmio(mmio).decode(1).unwrap();
            assert_eq!(check(kind, gfn, Some(Generation(generation))), MmioCheck::Emulate);
            for other in [generation & 0x1ff, generation >> 9, generation ^ 1 << 18, 0] {
                if other != generation {
                    assert_eq!(check(kind, gfn, Some(Generation(other))), MmioCheck::Invalid);
                }
            }
        }
    }
}

// REQ: GEN-4
#[test]
fn the_check_has_four_answers() {
    let mmio = MmioSpte {
        gfn: Gfn::new(5),
        access: MmioAccess::All,
        generation: Generation(7),
    };
    let kind = SpteKind::Mmio(mmio);
    assert_eq!(check(kind, Gfn::new(5), Some(Generation(7))), MmioCheck::Emulate);
    assert_eq!(check(kind, Gfn::new(5), Some(Generation(8))), MmioCheck::Invalid);
    // REQ: GEN-6: a change of the slots is in progress.
    assert_eq!(check(kind, Gfn::new(5), None), MmioCheck::Invalid);
    assert_eq!(
        check(SpteKind::Empty, Gfn::new(5), Some(Generation(7))),
        MmioCheck::Retry
    );
    assert_eq!(check(kind, Gfn::new(6), Some(Generation(7))), MmioCheck::Bug);
}

fn leaves() -> impl Iterator<Item = (u8, Leaf)> {
    let frames = [(0, 0), (1, 0x1ff), (7, 0x200), (u16::MAX, Frame::PAGES - 1)];
    frames.into_iter().flat_map(|(backing, page)| {
        let frame = Frame::new(BackingId(backing), page).unwrap();
        [(1, PageLevel::K4), (2, PageLevel::M2), (3, PageLevel::G1)]
            .into_iter()
            .flat_map(move |(table, level)| {
                Writable::ALL
                    .map(|writable| (table, Leaf { frame, level, writable }))
                    .into_iter()
            })
    })
}

#[test]
fn every_leaf_reads_back_with_the_size_of_its_table() {
    for (table, leaf) in leaves() {
        let tracked = if leaf.writable == Writable::Now {
            Leaf {
                writable: Writable::Restorable,
                ..leaf
            }
        } else {
            leaf
        };
        assert_eq!(Spte::leaf(leaf).decode(table), Ok(SpteKind::Leaf(leaf)));
        // W is not kept (AT-1).
        assert_eq!(
            Spte::access_tracked(leaf).decode(table),
            Ok(SpteKind::AccessTracked(tracked))
        );
        for other in (1..=4).filter(|level| *level != table) {
            for (spte, leaf) in [(Spte::leaf(leaf), leaf), (Spte::access_tracked(leaf), tracked)] {
                // As in hardware: of large pages, only the table tells the size.
                let size = match (table, other) {
                    (3, 2) => Some(PageLevel::M2),
                    (2, 3) => Some(PageLevel::G1),
                    _ => None,
                };
                let found = match spte.decode(other) {
                    Ok(SpteKind::Leaf(found) | SpteKind::AccessTracked(found)) => Some(found),
                    Ok(kind) => panic!("{spte:?} is {kind:?}"),
                    Err(_) => None,
                };
                assert_eq!(found, size.map(|level| Leaf { level, ..leaf }));
            }
        }
    }
}

#[test]
fn tables_are_never_below_the_lowest_level() {
    for id in [0, 1, 511, 0xffff_ffff] {
        let spte = Spte::table(TableId::from_raw(id));
        assert!(spte.decode(1).is_err());
        for level in 2..=4 {
            assert_eq!(spte.decode(level), Ok(SpteKind::Table(TableId::from_raw(id))));
        }
    }
}

/// What a word is, or that it is refused, depends on 24 bits and on the address: every combination of the former is
/// tried with some addresses, at every level.
#[test]
fn every_pattern_is_one_kind_or_refused() {
    let control_bits = 24;
    let addresses = [0u64, 1 << 12, 1 << 43, 1 << 44, 1 << 51, ((1 << 40) - 1) << 12];
    let mut kinds = [0u64; 6];
    for pattern in 0..1u64 << control_bits {
        // Spread the pattern over the control bits.
        let word = pattern & 0xfff | pattern >> 12 << 52;
        for address in addresses {
            let word = word | address;
            for level in 1..=4 {
                let kind = match Spte::from_raw(word).decode(level) {
                    Ok(SpteKind::Empty) => {
                        assert_eq!(word, 0);
                        0
                    }
                    Ok(SpteKind::Table(id)) => {
                        assert_eq!(Spte::table(id).raw(), word);
                        1
                    }
                    Ok(SpteKind::Leaf(leaf)) => {
                        assert_eq!(Spte::leaf(leaf).raw(), word);
                        2
                    }
                    Ok(SpteKind::AccessTracked(leaf)) => {
                        assert_eq!(Spte::access_tracked(leaf).raw(), word);
                        3
                    }
                    Ok(SpteKind::Mmio(mmio)) => {
                        assert_eq!(Spte::mmio(mmio).raw(), word);
                        4
                    }
                    Err(bad) => {
                        assert_eq!(bad.0, word);
                        5
                    }
                };
                kinds[kind] += 1;
            }
        }
    }
    assert_eq!(kinds[0], 4, "the empty word at four levels");
    // Tables have numbers of 32 bits, and no place at the lowest level.
    let tables = addresses.iter().filter(|a| **a >> 12 <= u32::MAX as u64).count() as u64;
    assert_eq!(kinds[1], 3 * tables);
    assert_eq!(
        kinds[2],
        3 * 4 * addresses.len() as u64,
        "three levels, four states of writability"
    );
    assert_eq!(
        kinds[3],
        3 * 3 * addresses.len() as u64,
        "three levels, three states without W"
    );
    assert_eq!(
        kinds[4],
        (1 << 19) * 4 * addresses.len() as u64,
        "all generations and accesses, at one level"
    );
}
