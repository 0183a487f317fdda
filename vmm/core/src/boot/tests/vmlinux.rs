// SPDX-License-Identifier: MIT OR Apache-2.0
//! Is an ELF kernel placed by its program headers and entered by its note, or else as Linux?

use super::*;

pub const I386: (u8, u16) = (1, 3);
pub const AMD64: (u8, u16) = (2, 62);

/// Two segments linked high, loaded at 16 MiB; the second has bss.
pub fn pvh(class: u8) -> Vec<u8> {
    kernel(class, Some(16 * M + 0x10))
}

pub fn kernel(class: u8, note: Option<u64>) -> Vec<u8> {
    let (class, machine) = if class == 1 { I386 } else { AMD64 };
    let link = if class == 1 { 0xc000_0000 } else { 0xffff_ffff_8000_0000 };
    let segments: [Segment<'_>; 2] = [
        (link + 16 * M, 16 * M, &[0xaa; 0x3000], 0x3000),
        (link + 17 * M, 17 * M, &[0xbb; 0x800], 0x5000),
    ];
    elf(class, machine, 16 * M + 0x40, &segments, note)
}

fn check_segments(memory: &Memory) {
    assert_eq!(memory.bytes(16 * M, 0x3000), [0xaa; 0x3000]);
    assert_eq!(memory.bytes(17 * M, 0x800), [0xbb; 0x800]);
    assert_eq!(memory.bytes(17 * M + 0x800, 0x4800), [0; 0x4800]);
    let high =
        |ranges: &[(u64, u64)]| -> Vec<_> { ranges.iter().copied().filter(|r| r.0 >= M && r.0 < 63 * M).collect() };
    assert_eq!(
        high(&memory.writes),
        [(16 * M, 0x3000), (17 * M, 0x800)],
        "one copy per segment"
    );
    assert_eq!(
        high(&memory.zeroed),
        [(17 * M + 0x800, 0x4800)],
        "only the bss is zeroed"
    );
}

#[test]
fn a_pvh_note_gives_a_32_bit_entry_and_start_info() {
    for class in [1, 2] {
        let kernel = pvh(class);
        let initrd = [7; 4097];
        let mut memory = Memory::pc(64);
        let entry = load(
            &mut memory,
            &Images {
                initrd: Some(&initrd),
                ..images(&kernel)
            },
        )
        .unwrap();
        assert_eq!((entry.mode, entry.rip), (EntryMode::Protected32, 16 * M + 0x10));
        check_segments(&memory);
        check_cpu_tables(&memory, &entry);
        let info = entry.rbx;
        assert_eq!([0, 4, 8, 12].map(|at| memory.u32(info + at)), [0x336e_c578, 1, 0, 1]);
        assert_eq!(memory.text(memory.u64(info + 24)), "console=ttyS0");
        let module = memory.u64(info + 16);
        assert_eq!([0, 8, 16].map(|at| memory.u64(module + at)), [64 * M - 8 * K, 4097, 0]);
        assert_eq!(memory.bytes(64 * M - 8 * K, 4097), initrd);
        let (map, entries) = (memory.u64(info + 40), memory.u32(info + 48));
        let last = map + 24 * u64::from(entries - 1);
        assert_eq!(
            (memory.u64(last), memory.u64(last + 8), memory.u32(last + 16)),
            (M, 63 * M, 1)
        );
    }
}

#[test]
fn pvh_modules_follow_the_initrd() {
    let kernel = pvh(2);
    let modules = [
        Module {
            data: b"one",
            cmdline: "first",
        },
        Module { data: b"", cmdline: "" },
    ];
    let mut memory = Memory::pc(64);
    let entry = load(
        &mut memory,
        &Images {
            initrd: Some(b"rd"),
            modules: &modules,
            ..images(&kernel)
        },
    )
    .unwrap();
    assert_eq!(memory.u32(entry.rbx + 12), 3);
    let list = memory.u64(entry.rbx + 16);
    assert_eq!(memory.bytes(memory.u64(list), 2), b"rd");
    assert_eq!(memory.bytes(memory.u64(list + 32), 3), b"one");
    assert_eq!(memory.text(memory.u64(list + 48)), "first");
}

#[test]
fn without_a_note_it_is_entered_as_linux() {
    for (class, long) in [(1, false), (2, true)] {
        let kernel = kernel(class, None);
        let mut memory = Memory::pc(64);
        let entry = load(&mut memory, &images(&kernel)).unwrap();
        assert_eq!(entry.rip, 16 * M + 0x40);
        assert_eq!(matches!(entry.mode, EntryMode::Long64 { .. }), long);
        check_segments(&memory);
        check_cpu_tables(&memory, &entry);
        assert_eq!(memory.bytes(entry.rsi + 0x1fe, 2), [0x55, 0xaa]);
        assert_eq!(memory.bytes(entry.rsi + 0x202, 6), b"HdrS\x0f\x02");
        assert_eq!(memory.bytes(entry.rsi + 0x210, 2), [0xff, 1]);
        assert_eq!(memory.bytes(entry.rsi + 0x1e8, 1), [4]);
    }
}

#[test]
fn a_virtual_entry_point_becomes_physical() {
    let segments: [Segment<'_>; 1] = [(0xc100_0000, 16 * M, &[0; 64], 64)];
    let kernel = elf(1, 3, 0xc100_0020, &segments, None);
    let entry = load(&mut Memory::pc(64), &images(&kernel)).unwrap();
    assert_eq!(entry.rip, 16 * M + 0x20);
}

#[test]
fn a_kernel_in_low_memory_pushes_the_tables_aside() {
    let segments: [Segment<'_>; 1] = [(0x1000, 0x1000, &[0x90; 0x6000], 0x6000)];
    let kernel = elf(2, 62, 0x1000, &segments, None);
    let mut memory = Memory::pc(64);
    let entry = load(&mut memory, &images(&kernel)).unwrap();
    assert_eq!(memory.bytes(0x1000, 0x6000), [0x90; 0x6000]);
    assert!(entry.rsi >= 0x7000 && entry.gdt_base.raw() >= 0x7000);
}
