// SPDX-License-Identifier: MIT OR Apache-2.0
//! Is a bzImage placed, and boot_params filled, as the Linux boot protocol says?

use super::*;

/// The header of a relocatable kernel of protocol 2.15 as Debian's are: 4 setup sectors, unpacks to 16 MiB.
pub fn kernel(long: bool) -> Vec<u8> {
    let mut file = vec![0; 5 * 512];
    let mut put = |at: usize, field: &[u8]| file[at..at + field.len()].copy_from_slice(field);
    put(0x1f1, &[4]);
    put(0x1f4, &(0x8000_u32 / 16).to_le_bytes());
    put(0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(0x202, b"HdrS");
    put(0x206, &0x20f_u16.to_le_bytes());
    put(0x211, &[1]);
    put(0x214, &0x10_0000_u32.to_le_bytes());
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes());
    put(0x230, &0x20_0000_u32.to_le_bytes());
    put(0x234, &[1, 21]);
    put(0x236, &u16::from(long).to_le_bytes());
    put(0x238, &2047_u32.to_le_bytes());
    put(0x258, &(16 * M).to_le_bytes());
    put(0x260, &(8 * M as u32).to_le_bytes());
    file.extend((0..0x8000).map(|i| (i * 7) as u8));
    file
}

fn content() -> Vec<u8> {
    kernel(false)[5 * 512..].to_vec()
}

#[test]
fn a_64_bit_kernel_is_entered_in_long_mode_at_its_preferred_address() {
    let kernel = kernel(true);
    let initrd = vec![0x5a; 5000];
    let mut memory = Memory::pc(64);
    let entry = load(
        &mut memory,
        &Images {
            initrd: Some(&initrd),
            ..images(&kernel)
        },
    )
    .unwrap();
    assert_eq!(entry.rip, 16 * M + 0x200);
    assert_eq!(memory.bytes(16 * M, 0x8000), content());
    check_cpu_tables(&memory, &entry);

    let params = entry.rsi;
    assert_eq!(memory.bytes(params + 0x202, 4), b"HdrS");
    assert_eq!(memory.bytes(params + 0x210, 2), [0xff, 1]);
    assert_eq!(memory.text(memory.u32(params + 0x228).into()), "console=ttyS0");
    let (base, len) = (u64::from(memory.u32(params + 0x218)), memory.u32(params + 0x21c));
    assert_eq!((base, len), (64 * M - 8 * K, 5000), "at the top of RAM");
    assert_eq!(memory.bytes(base, 5000), initrd);
    let e820: Vec<(u64, u64, u32)> = (0..u64::from(memory.bytes(params + 0x1e8, 1)[0]))
        .map(|i| params + 0x2d0 + 20 * i)
        .map(|at| (memory.u64(at), memory.u64(at + 8), memory.u32(at + 16)))
        .collect();
    assert_eq!(
        e820,
        [
            (0, 0x9fc00, 1),
            (0x9fc00, 0x400, 2),
            (0xe0000, 0x20000, 2),
            (M, 63 * M, 1)
        ]
    );
}

#[test]
fn the_identity_map_covers_4_gib() {
    let kernel = kernel(true);
    let mut memory = Memory::pc(64);
    let entry = load(&mut memory, &images(&kernel)).unwrap();
    let EntryMode::Long64 { cr3 } = entry.mode else {
        panic!("{:?}", entry.mode)
    };
    for gpa in [0, 0x1000, 16 * M, 0x7fe0_1234, 0xffff_fff0] {
        let mut table = cr3.raw();
        for shift in [39, 30] {
            let pte = memory.u64(table + 8 * ((gpa >> shift) & 511));
            assert_eq!(pte & 0xfff, 3);
            table = pte & !0xfff;
        }
        let pte = memory.u64(table + 8 * ((gpa >> 21) & 511));
        assert_eq!(pte, (gpa & !0x1f_ffff) | 0x83);
    }
}

#[test]
fn a_kernel_without_a_64_bit_entry_is_entered_in_protected_mode() {
    let kernel = kernel(false);
    let mut memory = Memory::pc(64);
    let entry = load(&mut memory, &images(&kernel)).unwrap();
    assert_eq!((entry.mode, entry.rip), (EntryMode::Protected32, 16 * M));
    assert_eq!(
        memory.u32(entry.rsi + 0x214),
        16 * M as u32,
        "code32_start is where it was loaded"
    );
    check_cpu_tables(&memory, &entry);
}

#[test]
fn a_kernel_that_cannot_move_is_loaded_at_1_mib() {
    let mut kernel = kernel(false);
    kernel[0x234] = 0;
    let mut memory = Memory::pc(64);
    let entry = load(&mut memory, &images(&kernel)).unwrap();
    assert_eq!(entry.rip, M);
    assert_eq!(memory.bytes(M, 0x8000), content());
}

#[test]
fn an_old_kernel_gets_the_limits_of_its_protocol() {
    let mut kernel = kernel(true);
    kernel[0x206..0x208].copy_from_slice(&0x202_u16.to_le_bytes());
    kernel[0x201] = 0x22;
    let mut memory = Memory::pc(64);
    let entry = load(&mut memory, &images(&kernel)).unwrap();
    assert_eq!(
        (entry.mode, entry.rip),
        (EntryMode::Protected32, M),
        "fields of later protocols are not read"
    );
    let long = "x".repeat(256);
    let refused = load(
        &mut memory,
        &Images {
            cmdline: &long,
            ..images(&kernel)
        },
    );
    assert_eq!(refused, Err(LoadError::CommandLineTooLong { len: 256, max: 255 }));
}

#[test]
fn the_initrd_stays_below_the_kernels_limit() {
    let mut kernel = kernel(true);
    kernel[0x22c..0x230].copy_from_slice(&(15 * M as u32 - 1).to_le_bytes());
    let mut memory = Memory::pc(64);
    let initrd = vec![1; 100];
    let entry = load(
        &mut memory,
        &Images {
            initrd: Some(&initrd),
            ..images(&kernel)
        },
    )
    .unwrap();
    assert_eq!(u64::from(memory.u32(entry.rsi + 0x218)), 15 * M - 4 * K);
}

#[test]
fn the_kernel_is_copied_once_and_nothing_is_zeroed() {
    let kernel = kernel(true);
    let mut memory = Memory::pc(64);
    load(&mut memory, &images(&kernel)).unwrap();
    let high: Vec<_> = memory.writes.iter().filter(|(base, _)| *base >= M).collect();
    assert_eq!(high, [&(16 * M, 0x8000)]);
    assert!(
        memory.zeroed.iter().all(|(_, len)| *len == 1),
        "only final zeros: {:?}",
        memory.zeroed
    );
}

#[test]
fn boot_params_tell_where_acpi_is() {
    let kernel = kernel(true);
    let mut memory = Memory::pc(64);
    let entry = load(
        &mut memory,
        &Images {
            acpi: true,
            ..images(&kernel)
        },
    )
    .unwrap();
    assert_eq!(memory.u64(entry.rsi + 0x70), 0xe0000);
}
