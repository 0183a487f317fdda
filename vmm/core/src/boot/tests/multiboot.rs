// SPDX-License-Identifier: MIT OR Apache-2.0
//! Is a multiboot kernel placed, and its information structure filled, as the specification says?

use super::*;

pub fn header(flags: u32) -> [u32; 3] {
    [0x1bad_b002, flags, 0_u32.wrapping_sub(0x1bad_b002).wrapping_sub(flags)]
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// An ELF kernel at 1 MiB that wants aligned modules and memory information.
pub fn kernel() -> Vec<u8> {
    let mut content = words(&header(3));
    content.resize(0x1000, 0xf4);
    elf(1, 3, 0x10_0010, &[(0x10_0000, 0x10_0000, &content, 0x3000)], None)
}

/// Not ELF: 16 bytes of something, then a header with addresses (load_end, bss_end as given).
pub fn flat(load_end: u32, bss_end: u32) -> Vec<u8> {
    let base = 0x20_0000;
    let mut file = vec![0x11; 16];
    file.extend(words(&header(0x1_0003)));
    // The image starts 8 bytes into the file.
    file.extend(words(&[base + 8, base, load_end, bss_end, base + 0x40]));
    file.resize(0x1000, 0x22);
    file
}

#[test]
fn an_elf_kernel_gets_memory_command_line_and_modules() {
    let kernel = kernel();
    let modules = [
        Module {
            data: &[1; 5000],
            cmdline: "first a=b",
        },
        Module {
            data: b"two",
            cmdline: "second",
        },
    ];
    let mut memory = Memory::pc(16);
    let entry = load(
        &mut memory,
        &Images {
            modules: &modules,
            ..images(&kernel)
        },
    )
    .unwrap();
    assert_eq!(
        (entry.mode, entry.rip, entry.rax),
        (EntryMode::Protected32, 0x10_0010, 0x2bad_b002)
    );
    check_cpu_tables(&memory, &entry);
    assert_eq!(memory.bytes(0x10_1000, 0x2000), [0; 0x2000]);

    let info = |at| memory.u32(entry.rbx + at);
    assert_eq!(info(0), 0b10_0100_1101);
    assert_eq!((info(4), info(8)), (639, 15 * 1024));
    assert_eq!(memory.text(info(16).into()), "console=ttyS0");
    assert_eq!(memory.text(info(64).into()), "umbra");
    assert_eq!(info(20), 2);
    let list = u64::from(info(24));
    let module = |i: u64| [0, 4, 8].map(|at| u64::from(memory.u32(list + 16 * i + at)));
    let [start, end, text] = module(0);
    assert_eq!(
        (start, end, memory.text(text)),
        (0x10_3000, 0x10_3000 + 5000, "first a=b")
    );
    let [start, end, text] = module(1);
    assert_eq!(
        (start, end, memory.text(text)),
        (0x10_5000, 0x10_5003, "second"),
        "page-aligned"
    );
    assert_eq!(memory.bytes(start, 3), b"two");

    let (len, map) = (u64::from(info(44)), u64::from(info(48)));
    let entries: Vec<_> = (0..len / 24)
        .map(|i| map + 24 * i)
        .map(|at| {
            (
                memory.u32(at),
                memory.u64(at + 4),
                memory.u64(at + 12),
                memory.u32(at + 20),
            )
        })
        .collect();
    assert_eq!(entries.first(), Some(&(20, 0, 0x9fc00, 1)));
    assert_eq!(entries.last(), Some(&(20, M, 15 * M, 1)));
}

#[test]
fn an_initrd_is_the_first_module() {
    let kernel = kernel();
    let mut memory = Memory::pc(16);
    let modules = [Module {
        data: b"m",
        cmdline: "m",
    }];
    let entry = load(
        &mut memory,
        &Images {
            initrd: Some(b"rd"),
            modules: &modules,
            ..images(&kernel)
        },
    )
    .unwrap();
    assert_eq!(memory.u32(entry.rbx + 20), 2);
    let list = u64::from(memory.u32(entry.rbx + 24));
    assert_eq!(memory.bytes(memory.u32(list).into(), 2), b"rd");
    assert_eq!(memory.text(memory.u32(list + 8).into()), "");
}

#[test]
fn without_modules_the_count_is_zero() {
    let kernel = kernel();
    let mut memory = Memory::pc(16);
    let entry = load(&mut memory, &images(&kernel)).unwrap();
    assert_eq!(memory.u32(entry.rbx + 20), 0);
}

#[test]
fn address_fields_place_a_flat_kernel() {
    let base = 0x20_0000_u32;
    let file = flat(base + 0x800, base + 0x2000);
    let mut memory = Memory::pc(16);
    let entry = load(&mut memory, &images(&file)).unwrap();
    assert_eq!(entry.rip, u64::from(base) + 0x40);
    assert_eq!(memory.bytes(base.into(), 0x800), &file[8..0x808]);
    assert_eq!(memory.bytes(u64::from(base) + 0x800, 0x1800), [0; 0x1800]);

    let file = flat(0, 0);
    let mut memory = Memory::pc(16);
    load(&mut memory, &images(&file)).unwrap();
    assert_eq!(
        memory.bytes(base.into(), 0xff8),
        &file[8..],
        "to the end of the file, no bss"
    );
}

#[test]
fn a_multiboot_header_goes_before_a_pvh_note() {
    let mut content = words(&header(0));
    content.resize(0x100, 0);
    let kernel = elf(1, 3, M + 0x20, &[(M, M, &content, 0x100)], Some(M + 0x10));
    let entry = load(&mut Memory::pc(16), &images(&kernel)).unwrap();
    assert_eq!((entry.rip, entry.rax), (M + 0x20, 0x2bad_b002));
}

#[test]
fn a_header_with_a_wrong_sum_or_too_far_in_is_none() {
    let mut kernel = vec![0; 8192];
    kernel[8184..8188].copy_from_slice(&0x1bad_b002_u32.to_le_bytes());
    kernel.extend(words(&header(0)));
    assert!(matches!(
        load(&mut Memory::pc(16), &images(&kernel)),
        Err(LoadError::UnknownFormat { .. })
    ));
}
