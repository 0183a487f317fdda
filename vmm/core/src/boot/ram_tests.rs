// SPDX-License-Identifier: MIT OR Apache-2.0
//! Does placement keep things apart, and does it say what is missing?

use super::*;
use umbra_mmu_abi::Gpa;

const K: u64 = 1024;
const M: u64 = 1024 * K;

fn region(base: u64, end: u64, readonly: bool) -> RamRegion {
    RamRegion {
        base: Gpa::new(base),
        len: end - base,
        readonly,
    }
}

/// A PC of 64 MiB with a ROM.
fn pc() -> Ram {
    Ram::new(
        &[
            region(0, 640 * K, false),
            region(ROM, M, true),
            region(M, 64 * M, false),
        ],
        3 * M,
    )
}

#[test]
fn the_map_tells_ram_and_reserves_firmware() {
    let map: Vec<_> = pc().map().iter().map(|e| (e.base, e.base + e.len, e.kind)).collect();
    let wanted = [
        (0, EBDA, MapKind::Ram),
        (EBDA, VGA_HOLE, MapKind::Reserved),
        (ROM, M, MapKind::Reserved),
        (M, 64 * M, MapKind::Ram),
    ];
    assert_eq!(map, wanted);
}

#[test]
fn one_contiguous_slot_looks_the_same_to_the_guest() {
    let flat = Ram::new(&[region(0, 64 * M, false)], 0);
    assert_eq!(flat.map(), pc().map());
    assert!(flat.has_rom() && flat.has_ebda());
}

#[test]
fn adjacent_slots_are_one_region() {
    let mut ram = Ram::new(
        &[
            region(0, 640 * K, false),
            region(M, 2 * M, false),
            region(2 * M, 4 * M, false),
        ],
        0,
    );
    assert_eq!(ram.claim(Part::Kernel, 2 * M - K, 2 * K), Ok(()));
    assert!(!ram.has_rom());
}

#[test]
fn claims_do_not_overlap() {
    let mut ram = pc();
    ram.claim(Part::Segment(0), 2 * M, M).unwrap();
    let (base, len) = (3 * M - 1, 1);
    assert_eq!(
        ram.claim(Part::Segment(1), base, len),
        Err(LoadError::Overlap {
            part: Part::Segment(1),
            with: Part::Segment(0),
            base,
            len
        })
    );
    assert_eq!(ram.claim(Part::Segment(1), 3 * M, M), Ok(()), "touching is fine");
}

#[test]
fn claims_outside_ram_say_whether_more_would_help() {
    let part = Part::Segment(0);
    for (base, len) in [
        (u64::MAX, 2),
        (700 * K, 4),
        (EBDA, 1),
        (ROM, 16),
        (1 << 32, 1),
        (HIGHEST_RAM, 1),
    ] {
        assert_eq!(
            pc().claim(part, base, len),
            Err(LoadError::OutsideRam { part, base, len })
        );
    }
    for (base, len) in [(64 * M, M), (60 * M, 5 * M)] {
        // 65 MiB for the segment and 3 MiB that are to come.
        let need = 68 * M;
        assert_eq!(
            pc().claim(part, base, len),
            Err(LoadError::TooLittleMemory {
                part,
                need,
                have: 64 * M
            })
        );
    }
}

#[test]
fn low_data_fills_gaps_from_the_bottom() {
    let mut ram = pc();
    assert_eq!(ram.place_low(Part::BootData, 16), Ok(0x1000));
    ram.claim(Part::Segment(0), 0x3000, 0x1000).unwrap();
    assert_eq!(ram.place_low(Part::BootData, 0x1000), Ok(0x2000));
    assert_eq!(ram.place_low(Part::BootData, 0x1001), Ok(0x4000));
    let (part, len, limit) = (Part::CommandLine, 640 * K, EBDA);
    assert_eq!(
        ram.place_low(part, len),
        Err(LoadError::NoRoomBelow { part, len, limit })
    );
}

#[test]
fn the_top_is_taken_first_and_a_limit_is_kept() {
    let mut ram = pc();
    ram.claim(Part::Kernel, 16 * M, 8 * M).unwrap();
    assert_eq!(ram.place_top(Part::Initrd, M + 1, u64::MAX), Ok(63 * M - 4 * K));
    assert_eq!(
        ram.place_top(Part::Module(0), M, 20 * M),
        Ok(15 * M),
        "below the kernel"
    );
    let (part, len, limit) = (Part::Module(1), 15 * M, 20 * M);
    assert_eq!(
        ram.place_top(part, len, limit),
        Err(LoadError::NoRoomBelow { part, len, limit })
    );
}

#[test]
fn an_initrd_that_does_not_fit_says_how_much_memory_would_do() {
    let mut ram = pc();
    ram.claim(Part::Kernel, 16 * M, 40 * M).unwrap();
    let part = Part::Initrd;
    let short = LoadError::TooLittleMemory {
        part,
        need: 76 * M,
        have: 64 * M,
    };
    assert_eq!(ram.place_top(part, 20 * M, u64::MAX), Err(short));
    assert_eq!(ram.place_behind(part, 20 * M), Err(short));
    assert_eq!(ram.place_behind(part, 8 * M), Ok(56 * M));
}

#[test]
fn no_ram_at_all_is_no_panic() {
    let mut ram = Ram::new(&[], 0);
    assert!(ram.place_low(Part::BootData, 1).is_err());
    assert!(ram.place_top(Part::Initrd, 1, u64::MAX).is_err());
    assert!(ram.place_behind(Part::Initrd, u64::MAX).is_err());
    assert_eq!(ram.map().len(), 1);
}
