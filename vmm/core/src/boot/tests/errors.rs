// SPDX-License-Identifier: MIT OR Apache-2.0
//! Is every malformed image refused with a text that names the part and the place?

use super::*;
use std::string::{String, ToString};

fn refusal(memory: &mut Memory, images: &Images<'_>) -> String {
    load(memory, images).expect_err("must be refused").to_string()
}

/// `kernel` with bytes replaced.
fn with(mut kernel: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    kernel[at..at + bytes.len()].copy_from_slice(bytes);
    kernel
}

fn cut(mut kernel: Vec<u8>, len: usize) -> Vec<u8> {
    kernel.truncate(len);
    kernel
}

fn check(cases: Vec<(Vec<u8>, &str)>) {
    for (kernel, text) in cases {
        assert_eq!(refusal(&mut Memory::pc(64), &images(&kernel)), text);
    }
}

#[test]
fn unknown_formats_show_how_the_file_starts() {
    let formats = "kernel: unknown format: bzImage, ELF or multiboot 1 wanted, the file starts with";
    check(vec![
        (b"hello world".to_vec(), &std::format!("{formats} 68 65 6c 6c")),
        (
            b"\x1f\x8b\x08\x00".to_vec(),
            &std::format!("{formats} 1f 8b 08 00 (gzip)"),
        ),
        (b"x".to_vec(), &std::format!("{formats} 78 00 00 00")),
        (vec![0; 10_000], &std::format!("{formats} 00 00 00 00")),
        (Vec::new(), "kernel: the file is empty"),
    ]);
}

#[test]
fn malformed_bzimages() {
    let good = || bzimage::kernel(true);
    let size = good().len();
    check(vec![
        (
            cut(good(), 0x230),
            "kernel: setup header: truncated: 0x7b bytes at offset 0x1f1, the file ends at 0x230",
        ),
        (
            cut(good(), size - 1),
            "kernel: protected-mode part: truncated: 0x8000 bytes at offset 0xa00, the file ends at 0x89ff",
        ),
        (
            cut(good(), 0x900),
            "kernel: protected-mode part: truncated: 0x8000 bytes at offset 0xa00, the file ends at 0x900",
        ),
        (
            with(good(), 0x1f1, &[0xff]),
            "kernel: protected-mode part: truncated: 0x8000 bytes at offset 0x20000, the file ends at 0x8a00",
        ),
        (
            with(good(), 0x1f4, &[0xff; 4]),
            "kernel: protected-mode part: truncated: 0xffffffff0 bytes at offset 0xa00, the file ends at 0x8a00",
        ),
        (
            with(good(), 0x206, &[1, 2]),
            "kernel: setup header: boot protocol older than 2.02: 0x201 at offset 0x206",
        ),
        (
            with(good(), 0x211, &[0]),
            "kernel: setup header: a zImage (not loaded high): 0x0 at offset 0x211",
        ),
        (
            with(good(), 0x260, &[0, 0x10, 0, 0]),
            "kernel: setup header: the kernel unpacks into less than its own size: 0x1000 at offset 0x260",
        ),
        (
            with(good(), 0x258, &[0xff; 8]),
            "kernel: unpacked: wants 0x800000 bytes at 0xffffffffffffffff, where the guest has no RAM",
        ),
        (
            with(good(), 0x258, &(u64::MAX - 0x3f_ffff).to_le_bytes()),
            "kernel: unpacked: wants 0x800000 bytes at 0xffffffffffc00000, where the guest has no RAM",
        ),
        (
            with(good(), 0x258, &0x500_u64.to_le_bytes()),
            "kernel: unpacked: wants 0x800000 bytes at 0x500, where the guest has no RAM",
        ),
        (
            with(good(), 0x260, &[0xff; 4]),
            "kernel: unpacked: wants 0xffffffff bytes at 0x1000000, where the guest has no RAM",
        ),
    ]);
}

#[test]
fn malformed_elf_headers() {
    let good = || vmlinux::pvh(2);
    check(vec![
        (
            cut(good(), 4),
            "kernel: ELF header: truncated: 0x1 bytes at offset 0x4, the file ends at 0x4",
        ),
        (
            cut(good(), 20),
            "kernel: ELF header: truncated: 0x8 bytes at offset 0x18, the file ends at 0x14",
        ),
        (
            with(good(), 4, &[3]),
            "kernel: ELF header: class is neither 32 nor 64 bits: 0x3 at offset 0x4",
        ),
        (
            with(good(), 5, &[2]),
            "kernel: ELF header: not little-endian: 0x2 at offset 0x5",
        ),
        (
            with(good(), 16, &[3]),
            "kernel: ELF header: not an executable (ET_EXEC): 0x3 at offset 0x10",
        ),
        (
            with(good(), 18, &[183]),
            "kernel: ELF header: machine is not x86 of this class: 0xb7 at offset 0x12",
        ),
        (
            with(vmlinux::pvh(1), 18, &[62]),
            "kernel: ELF header: machine is not x86 of this class: 0x3e at offset 0x12",
        ),
        (
            with(good(), 54, &[0]),
            "kernel: ELF header: program headers are too short: 0x0 at offset 0x36",
        ),
        (
            with(good(), 56, &[0]),
            "kernel: ELF header: no segment to load (PT_LOAD): 0x0 at offset 0x38",
        ),
        (
            with(good(), 32, &0x10_0000_u64.to_le_bytes()),
            "kernel: program header 0: truncated: 0x38 bytes at offset 0x100000, the file ends at 0x3918",
        ),
        (
            with(good(), 32, &(u64::MAX - 0x40).to_le_bytes()),
            "kernel: program header 0: truncated: 0x38 bytes at offset 0xffffffffffffffbf, the file ends at 0x3918",
        ),
    ]);
}

#[test]
fn malformed_segments() {
    let good = || vmlinux::pvh(2);
    // Program header 1 is at 64 + 56.
    let field = |at: usize, value: u64| with(good(), 64 + 56 + at, &value.to_le_bytes());
    check(vec![
        (
            field(8, 0x3800),
            "kernel: segment 1: truncated: 0x800 bytes at offset 0x3800, the file ends at 0x3918",
        ),
        (
            field(8, u64::MAX),
            "kernel: segment 1: truncated: 0x800 bytes at offset 0xffffffffffffffff, the file ends at 0x3918",
        ),
        (
            field(32, 0x5001),
            "kernel: program header 1: more bytes in the file than in memory: 0x5001 at offset 0x98",
        ),
        (
            field(24, 0xa0000),
            "kernel: segment 1: wants 0x5000 bytes at 0xa0000, where the guest has no RAM",
        ),
        (
            field(24, 0xe0000),
            "kernel: segment 1: wants 0x5000 bytes at 0xe0000, where the guest has no RAM",
        ),
        (
            field(24, 0),
            "kernel: segment 1: wants 0x5000 bytes at 0x0, which overlaps firmware data",
        ),
        (
            field(24, 0xffff_ffff_8000_0000),
            "kernel: segment 1: wants 0x5000 bytes at 0xffffffff80000000, where the guest has no RAM",
        ),
        (
            field(24, u64::MAX - 0xfff),
            "kernel: segment 1: wants 0x5000 bytes at 0xfffffffffffff000, where the guest has no RAM",
        ),
        (
            field(24, 16 * M + 0x2fff),
            "kernel: segment 0: wants 0x3000 bytes at 0x1000000, which overlaps kernel: segment 1",
        ),
        (
            field(24, 64 * M),
            "kernel: segment 1: too little memory: 65 MiB needed, 64 MiB given",
        ),
        (
            field(40, 48 * M),
            "kernel: segment 1: too little memory: 65 MiB needed, 64 MiB given",
        ),
        (
            field(40, u64::MAX),
            "kernel: segment 1: wants 0xffffffffffffffff bytes at 0x1100000, where the guest has no RAM",
        ),
    ]);
}

#[test]
fn malformed_notes_and_entries() {
    let good = || vmlinux::pvh(2);
    // The notes are behind both segments: 24 bytes of another's, then ours.
    let notes = good().len() - 24 - 24;
    check(vec![
        (
            with(good(), notes, &[0xff; 4]),
            "kernel: note in segment 2: truncated: 0x10000000f bytes at offset 0x38e8, the file ends at 0x3918",
        ),
        (
            with(good(), notes + 24 + 4, &[16]),
            "kernel: note in segment 2: truncated: 0x20 bytes at offset 0x3900, the file ends at 0x3918",
        ),
        (
            with(good(), notes + 24 + 4, &[2]),
            "kernel: note in segment 2: the PVH entry is neither 4 nor 8 bytes: 0x2 at offset 0x3904",
        ),
        (
            vmlinux::kernel(2, Some(M)),
            "kernel: ELF header: the entry point is in no segment: 0x100000 at offset 0x18",
        ),
        (
            elf(2, 62, 0x42, &[(M, M, &[0; 16], 16)], None),
            "kernel: ELF header: the entry point is in no segment: 0x42 at offset 0x18",
        ),
    ]);
}

#[test]
fn malformed_multiboot() {
    let flagged = |flags: u32| {
        let header = multiboot::header(flags).map(u32::to_le_bytes).concat();
        with(multiboot::kernel(), 52 + 32, &header)
    };
    let base = 0x20_0000;
    let good = || multiboot::flat(base + 0x800, base + 0x2000);
    let field = |at: usize, value: u32| with(good(), 16 + at, &value.to_le_bytes());
    let headed_text = with(vec![0; 64], 0, &multiboot::header(0).map(u32::to_le_bytes).concat());
    check(vec![
        (
            flagged(0x08),
            "kernel: multiboot header: requirement flags that no loader knows: 0x8 at offset 0x58",
        ),
        (
            headed_text,
            "kernel: multiboot header: neither ELF nor address fields (flag 16): 0x0 at offset 0x4",
        ),
        (
            cut(good(), 40),
            "kernel: multiboot header: truncated: 0x4 bytes at offset 0x28, the file ends at 0x28",
        ),
        (
            field(12, base - 1),
            "kernel: multiboot header: load_addr is not where the file's content can begin: 0x200000 at offset 0x20",
        ),
        (
            field(12, base + 17),
            "kernel: multiboot header: load_addr is not where the file's content can begin: 0x200000 at offset 0x20",
        ),
        (
            field(20, base),
            "kernel: multiboot header: load_end_addr before load_addr: 0x200000 at offset 0x24",
        ),
        (
            field(20, base + 0x1000),
            "kernel: multiboot image: truncated: 0x1000 bytes at offset 0x8, the file ends at 0x1000",
        ),
        (
            field(24, base + 1),
            "kernel: multiboot header: bss_end_addr before load_end_addr: 0x200001 at offset 0x28",
        ),
        (
            field(28, base + 0x2000),
            "kernel: multiboot header: entry_addr is outside the image: 0x202000 at offset 0x2c",
        ),
        (
            field(24, 0xffff_f000),
            "kernel: multiboot image: wants 0xffdff000 bytes at 0x200000, where the guest has no RAM",
        ),
    ]);
}

#[test]
fn too_little_memory_says_how_much_would_do_and_that_much_does() {
    let initrd = vec![0; 3 * M as usize];
    // A bzImage unpacks to 16..24 MiB.
    let kernel = bzimage::kernel(true);
    let all = Images {
        initrd: Some(&initrd),
        ..images(&kernel)
    };
    assert_eq!(
        refusal(&mut Memory::pc(20), &all),
        "kernel: unpacked: too little memory: 27 MiB needed, 20 MiB given"
    );
    assert_eq!(
        refusal(&mut Memory::pc(8), &all),
        "kernel: unpacked: too little memory: 27 MiB needed, 8 MiB given"
    );
    assert!(load(&mut Memory::pc(27), &all).is_ok());

    let kernel = vmlinux::pvh(1);
    let all = Images {
        initrd: Some(&initrd),
        ..images(&kernel)
    };
    assert_eq!(
        refusal(&mut Memory::pc(17), &all),
        "kernel: segment 1: too little memory: 21 MiB needed, 17 MiB given"
    );
    assert!(load(&mut Memory::pc(21), &all).is_ok());
}

#[test]
fn initrds_and_modules_that_do_not_fit() {
    let kernel = bzimage::kernel(true);
    let big = vec![0; 50 * M as usize];
    let too_big = Images {
        initrd: Some(&big),
        ..images(&kernel)
    };
    assert_eq!(
        refusal(&mut Memory::pc(64), &too_big),
        "initrd: too little memory: 74 MiB needed, 64 MiB given"
    );
    assert!(load(&mut Memory::pc(74), &too_big).is_ok());
    let limited = with(kernel.clone(), 0x22c, &(17 * M as u32).to_le_bytes());
    assert_eq!(
        refusal(
            &mut Memory::pc(64),
            &Images {
                initrd: Some(&big[..16 * M as usize]),
                ..images(&limited)
            }
        ),
        "initrd: no room for 0x1000000 bytes below 0x1100001"
    );
    assert_eq!(
        refusal(
            &mut Memory::pc(64),
            &Images {
                initrd: Some(&[]),
                ..images(&kernel)
            }
        ),
        "initrd: the file is empty"
    );
    let modules = [
        Module {
            data: &big,
            cmdline: "",
        },
        Module {
            data: &big[..15 * M as usize],
            cmdline: "",
        },
    ];
    assert_eq!(
        refusal(
            &mut Memory::pc(64),
            &Images {
                modules: &modules,
                ..images(&multiboot::kernel())
            }
        ),
        "module 1: too little memory: 117 MiB needed, 64 MiB given"
    );
    assert_eq!(
        refusal(
            &mut Memory::pc(64),
            &Images {
                modules: &modules,
                ..images(&kernel)
            }
        ),
        "module 0: this kernel format takes no modules"
    );
}

#[test]
fn command_lines_that_do_not_fit() {
    let kernel = bzimage::kernel(true);
    let long = "x".repeat(2048);
    assert_eq!(
        refusal(
            &mut Memory::pc(64),
            &Images {
                cmdline: &long,
                ..images(&kernel)
            }
        ),
        "command line: 2048 bytes, the kernel takes 2047"
    );
    assert_eq!(
        refusal(
            &mut Memory::pc(64),
            &Images {
                cmdline: "a\0b",
                ..images(&kernel)
            }
        ),
        "command line: zero byte at offset 1"
    );
    let huge = "x".repeat(0xffff);
    let mut modules = vec![
        Module {
            data: b"",
            cmdline: &huge
        };
        12
    ];
    assert_eq!(
        refusal(
            &mut Memory::pc(64),
            &Images {
                modules: &modules,
                ..images(&multiboot::kernel())
            }
        ),
        "command line: no room for 0x10000 bytes below 0x9fc00"
    );
    modules.truncate(2);
    assert!(
        load(
            &mut Memory::pc(64),
            &Images {
                modules: &modules,
                ..images(&multiboot::kernel())
            }
        )
        .is_ok()
    );
}

#[test]
fn machines_without_low_memory() {
    let kernel = bzimage::kernel(true);
    for regions in [
        &[][..],
        &[(M, 64 * M, false)],
        &[(0x800, 640 * K, false), (M, 64 * M, false)],
    ] {
        assert_eq!(
            refusal(&mut Memory::of(regions), &images(&kernel)),
            "firmware data: wants 0x1000 bytes at 0x0, where the guest has no RAM"
        );
    }
    assert_eq!(
        refusal(
            &mut Memory::of(&[(0, 0x2000, false), (M, 64 * M, false)]),
            &Images {
                acpi: true,
                ..images(&kernel)
            }
        ),
        "firmware data: wants 0x400 bytes at 0x9fc00, where the guest has no RAM"
    );
}
