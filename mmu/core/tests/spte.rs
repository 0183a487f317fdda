// SPDX-License-Identifier: MIT OR Apache-2.0
//! Is every spte exactly one thing? Enumerated where that is possible.

use umbra_mmu_abi::{BackingId, Generation, Gfn, PageLevel};
use umbra_mmu_core::generation::GENERATION_MAX;
use umbra_mmu_core::mmio::{MmioCheck, check};
use umbra_mmu_core::spte::{
    Format, Leaf, MmioAccess, MmioSpte, Rights, ShadowLayout, Spte, SpteKind, Touched, Writable,
};
use umbra_mmu_core::stage2::Frame;
use umbra_mmu_core::table::TableId;

/// 16 backings of 64 GiB, and tables above them.
const LAYOUT: ShadowLayout = ShadowLayout {
    backing_shift: 24,
    tables_base: 16 << 24,
    maxphyaddr: 46,
};
const SHADOW: Format = Format::Shadow(LAYOUT);

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
    0xa_aaaa_aaaa,
    0xf_ffff_ffff,
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
                for format in [Format::Ept, SHADOW] {
                    let spte = Spte::mmio(format, mmio);
                    assert_eq!(spte.decode(format, 1), Ok(SpteKind::Mmio(mmio)));
                }
            }
        }
    }
}

// REQ: GEN-2: the places that the documents give the two halves.
#[test]
fn the_generation_is_where_it_is_documented() {
    for format in [Format::Ept, SHADOW] {
        let spte = |generation| {
            let mmio = MmioSpte {
                gfn: Gfn::new(0),
                access: MmioAccess::Read,
                generation: Generation(generation),
            };
            Spte::mmio(format, mmio).raw()
        };
        let none = spte(0);
        for bit in 0..19 {
            let place = if bit < 9 { 3 + bit } else { 52 + bit - 9 };
            assert_eq!(spte(1 << bit) ^ none, 1 << place, "bit {bit} of the generation");
        }
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
            let kind = Spte::mmio(SHADOW, mmio).decode(SHADOW, 1).unwrap();
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

// REQ: GEN-1: present, with a bit set that is reserved for this address width: the processor says RSVD.
#[test]
fn hardware_faults_on_an_mmio_spte_with_the_reserved_bit() {
    for gfn in GFNS.map(Gfn::new) {
        let mmio = MmioSpte {
            gfn,
            access: MmioAccess::All,
            generation: Generation(0x2a5a5),
        };
        let word = Spte::mmio(SHADOW, mmio).raw();
        assert_eq!(word & 1, 1);
        let reserved = (1 << 52) - (1 << LAYOUT.maxphyaddr);
        assert_ne!(word & reserved, 0);
        assert!(LAYOUT.is_sound());
    }
}

fn leaves(format: Format) -> impl Iterator<Item = (u8, Leaf)> {
    const TOP: u32 = Frame::PAGES;
    let sizes = [(1, PageLevel::K4), (2, PageLevel::M2), (3, PageLevel::G1)];
    let frames = [(0, 0), (1, 0x1ff), (7, 0x200), (15, TOP - 1), (15, TOP - 512)];
    frames.into_iter().flat_map(move |(backing, page)| {
        sizes.into_iter().flat_map(move |(table, level)| {
            let page = match format {
                Format::Ept => page,
                // Hardware's large pages are aligned.
                Format::Shadow(_) => page - page % level.frames() as u32,
            };
            let rights = (0..4).map(Rights::from_bits_retain);
            let rights = rights.filter(move |r| format != Format::Ept || *r == Rights::ALL);
            rights.flat_map(move |rights| {
                Writable::ALL.map(|writable| {
                    let frame = Frame::new(BackingId(backing), page).unwrap();
                    (
                        table,
                        Leaf {
                            frame,
                            level,
                            writable,
                            rights,
                        },
                    )
                })
            })
        })
    })
}

/// As in hardware: of large pages, only the table tells the size.
fn size_elsewhere(written_for: u8, read_at: u8) -> Option<PageLevel> {
    match (written_for, read_at) {
        (3, 2) => Some(PageLevel::M2),
        (2, 3) => Some(PageLevel::G1),
        _ => None,
    }
}

#[test]
fn every_leaf_reads_back_with_the_size_of_its_table() {
    for format in [Format::Ept, SHADOW] {
        for (table, leaf) in leaves(format) {
            let spte = Spte::leaf(format, leaf);
            assert_eq!(spte.decode(format, table), Ok(SpteKind::Leaf(leaf)));
            for other in (1..=5).filter(|level| *level != table) {
                match (spte.decode(format, other), size_elsewhere(table, other)) {
                    (Ok(SpteKind::Leaf(found)), Some(level)) => assert_eq!(found, Leaf { level, ..leaf }),
                    (Err(_), None) => {}
                    // A frame of 2M need not be aligned to 1G.
                    (Err(_), Some(PageLevel::G1)) => assert_ne!(format, Format::Ept),
                    (kind, size) => panic!("{spte:?} is {kind:?} and not of {size:?}"),
                }
            }
        }
    }
}

// REQ: AT-1: W is not kept.
#[test]
fn every_access_tracked_leaf_reads_back_without_w() {
    for (table, leaf) in leaves(Format::Ept) {
        let writable = match leaf.writable {
            Writable::Now => Writable::Restorable,
            other @ (Writable::HostReadOnly | Writable::Protected | Writable::Restorable) => other,
        };
        let spte = Spte::access_tracked(leaf);
        let tracked = |level| {
            Ok(SpteKind::AccessTracked(Leaf {
                writable,
                level,
                ..leaf
            }))
        };
        assert_eq!(spte.decode(Format::Ept, table), tracked(leaf.level));
        for other in (1..=4).filter(|level| *level != table) {
            match size_elsewhere(table, other) {
                Some(level) => assert_eq!(spte.decode(Format::Ept, other), tracked(level)),
                None => assert!(spte.decode(Format::Ept, other).is_err()),
            }
        }
    }
}

// REQ: DT-3: what the processor sets in a leaf makes no other leaf of it.
#[test]
fn the_processors_bits_are_no_part_of_a_leaf() {
    for (table, leaf) in leaves(SHADOW) {
        let spte = Spte::leaf(SHADOW, leaf);
        assert_eq!(spte.touched(), Touched::Not);
        for (bits, touched) in [(1 << 5, Touched::Read), (1 << 5 | 1 << 6, Touched::Written)] {
            let used = Spte::from_raw(spte.raw() | bits);
            assert_eq!(used.decode(SHADOW, table), Ok(SpteKind::Leaf(leaf)));
            assert_eq!(used.touched(), touched);
            assert_eq!(used.untouched(), spte);
            assert_eq!(spte.touched_like(used), used);
        }
    }
}

#[test]
fn tables_are_never_below_the_lowest_level() {
    for format in [Format::Ept, SHADOW] {
        for id in [0, 1, 511, 0xffff_ffff] {
            let spte = Spte::table(format, TableId::from_raw(id));
            assert!(spte.decode(format, 1).is_err());
            for level in 2..=5 {
                assert_eq!(spte.decode(format, level), Ok(SpteKind::Table(TableId::from_raw(id))));
            }
        }
    }
}

/// What a word is, or that it is refused, depends on 24 bits and on the address: every combination of the former is
/// tried with some addresses, at every level. Every word that is something is written in one way only.
fn count_kinds(format: Format, addresses: &[u64]) -> [u64; 6] {
    let control_bits = 24;
    let volatile = match format {
        Format::Ept => 0,
        Format::Shadow(_) => 1 << 5 | 1 << 6,
    };
    let mut kinds = [0u64; 6];
    for pattern in 0..1u64 << control_bits {
        // Spread the pattern over the control bits.
        let word = pattern & 0xfff | pattern >> 12 << 52;
        for address in addresses {
            let word = word | address;
            for level in 1..=4 {
                let (kind, written) = match Spte::from_raw(word).decode(format, level) {
                    Ok(SpteKind::Empty) => (0, 0),
                    Ok(SpteKind::Table(id)) => (1, Spte::table(format, id).raw()),
                    Ok(SpteKind::Leaf(leaf)) => (2, Spte::leaf(format, leaf).raw() | word & volatile),
                    Ok(SpteKind::AccessTracked(leaf)) => (3, Spte::access_tracked(leaf).raw()),
                    Ok(SpteKind::Mmio(mmio)) => (4, Spte::mmio(format, mmio).raw()),
                    Err(bad) => (5, bad.0),
                };
                assert_eq!(written, word);
                kinds[kind] += 1;
            }
        }
    }
    kinds
}

#[test]
fn every_pattern_of_the_ept_format_is_one_kind_or_refused() {
    let addresses = [0u64, 1 << 12, 1 << 43, 1 << 44, 1 << 51, ((1 << 40) - 1) << 12];
    let kinds = count_kinds(Format::Ept, &addresses);
    assert_eq!(kinds[0], 4, "the empty word at four levels");
    // Tables have numbers of 32 bits, and no place at the lowest level.
    let tables = addresses.iter().filter(|a| **a >> 12 <= u32::MAX as u64).count() as u64;
    assert_eq!(kinds[1], 3 * tables);
    let addresses = addresses.len() as u64;
    assert_eq!(kinds[2], LEAF_LEVELS * 4 * addresses, "four states of writability");
    assert_eq!(kinds[3], LEAF_LEVELS * 3 * addresses, "three states without W");
    assert_eq!(
        kinds[4],
        (1 << 19) * 4 * addresses,
        "all generations and accesses, at one level"
    );
}

#[test]
fn every_pattern_of_the_shadow_format_is_one_kind_or_refused() {
    let base = LAYOUT.tables_base << 12;
    // A frame of any size, one of 4K only, a table, one that is too high for a table, MMIO, MMIO with a gfn too large.
    let addresses = [
        1 << 30,
        1 << 12,
        base | 5 << 12,
        1 << 50,
        1 << 51 | 1 << 47,
        1 << 51 | 1 << 48,
    ];
    let kinds = count_kinds(SHADOW, &addresses);
    assert_eq!(kinds[0], 0, "the empty word has no address");
    assert_eq!(kinds[1], 3, "one table at three levels");
    // Four states of writability, user and not, executable and not, used by the processor in four ways.
    assert_eq!(kinds[2], (LEAF_LEVELS + 1) * 4 * 4 * 4);
    assert_eq!(kinds[3], 0, "hardware has accessed bits");
    assert_eq!(
        kinds[4],
        (1 << 19) * 4,
        "all generations and accesses, at one level, of one gfn"
    );
    assert_eq!(Spte::from_raw(0).decode(SHADOW, 1), Ok(SpteKind::Empty));
}

/// 4K, 2M and 1G.
const LEAF_LEVELS: u64 = 3;
