// SPDX-License-Identifier: MIT OR Apache-2.0
//! Does each kernel format arrive in memory as its protocol says? Images and memory to test with.

mod bzimage;
mod errors;
mod hostile;
mod multiboot;
mod vmlinux;

use super::*;
use crate::guest_mem::{RamRegion, Unbacked};
use std::{vec, vec::Vec};

const K: u64 = 1024;
const M: u64 = 1024 * K;

/// Guest memory that counts what is done to it.
pub struct Memory {
    regions: Vec<RamRegion>,
    bytes: Vec<u8>,
    /// Ranges written.
    pub writes: Vec<(u64, u64)>,
    /// Ranges zeroed.
    pub zeroed: Vec<(u64, u64)>,
}

impl Memory {
    /// A PC with `mib` MiB and a ROM. RAM starts full of rubbish.
    pub fn pc(mib: u64) -> Self {
        Self::of(&[(0, 640 * K, false), (ram::ROM, M, true), (M, mib * M, false)])
    }

    pub fn of(regions: &[(u64, u64, bool)]) -> Self {
        let end = regions.last().map_or(0, |r| r.1);
        let regions = regions
            .iter()
            .map(|&(base, end, readonly)| RamRegion {
                base: Gpa::new(base),
                len: end - base,
                readonly,
            })
            .collect();
        Self {
            regions,
            bytes: vec![0xcc; end as usize],
            writes: Vec::new(),
            zeroed: Vec::new(),
        }
    }

    fn check(&self, gpa: Gpa, len: u64) -> Result<core::ops::Range<usize>, Unbacked> {
        let (base, end) = (gpa.raw(), gpa.raw().checked_add(len).ok_or(Unbacked { gpa, len })?);
        let mut at = base;
        for region in &self.regions {
            let region = region.base.raw()..region.base.raw() + region.len;
            if region.contains(&at) {
                at = region.end;
            }
        }
        if at >= end {
            Ok(base as usize..end as usize)
        } else {
            Err(Unbacked { gpa, len })
        }
    }

    pub fn bytes(&self, gpa: u64, len: u64) -> &[u8] {
        &self.bytes[self.check(Gpa::new(gpa), len).expect("RAM")]
    }

    pub fn u32(&self, gpa: u64) -> u32 {
        u32::from_le_bytes(self.bytes(gpa, 4).try_into().unwrap())
    }

    pub fn u64(&self, gpa: u64) -> u64 {
        u64::from_le_bytes(self.bytes(gpa, 8).try_into().unwrap())
    }

    pub fn text(&self, gpa: u64) -> &str {
        let bytes = &self.bytes[gpa as usize..];
        let len = bytes.iter().position(|&byte| byte == 0).expect("a final zero");
        core::str::from_utf8(&bytes[..len]).unwrap()
    }
}

impl GuestMemory for Memory {
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), Unbacked> {
        buf.copy_from_slice(&self.bytes[self.check(gpa, buf.len() as u64)?]);
        Ok(())
    }
    fn write(&mut self, gpa: Gpa, bytes: &[u8]) -> Result<(), Unbacked> {
        let range = self.check(gpa, bytes.len() as u64)?;
        self.bytes[range].copy_from_slice(bytes);
        self.writes.push((gpa.raw(), bytes.len() as u64));
        Ok(())
    }
    fn zero(&mut self, gpa: Gpa, len: u64) -> Result<(), Unbacked> {
        let range = self.check(gpa, len)?;
        self.bytes[range].fill(0);
        self.zeroed.push((gpa.raw(), len));
        Ok(())
    }
    fn regions(&self) -> &[RamRegion] {
        &self.regions
    }
}

pub fn images(kernel: &[u8]) -> Images<'_> {
    Images {
        kernel,
        initrd: None,
        modules: &[],
        cmdline: "console=ttyS0",
        acpi: false,
    }
}

/// The flat GDT that every protocol wants, of the entry's mode.
pub fn check_cpu_tables(memory: &Memory, entry: &Entry) {
    let gdt = entry.gdt_base.raw();
    assert_eq!(entry.gdt_limit, 0x1f);
    let code = match entry.mode {
        EntryMode::Protected32 => 0x00cf_9b00_0000_ffff,
        EntryMode::Long64 { .. } => 0x00af_9b00_0000_ffff,
    };
    assert_eq!(memory.u64(gdt + u64::from(CODE_SELECTOR)), code);
    assert_eq!(memory.u64(gdt + u64::from(DATA_SELECTOR)), 0x00cf_9300_0000_ffff);
    assert!(entry.rsp.is_multiple_of(16) && memory.check(Gpa::new(entry.rsp - 0xf00), 0xf00).is_ok());
}

/// One ELF segment: virtual and physical address, content, size in memory.
pub type Segment<'a> = (u64, u64, &'a [u8], u64);

/// An ELF executable; with a PVH note if an entry is given for it.
pub fn elf(class: u8, machine: u16, entry: u64, segments: &[Segment<'_>], pvh: Option<u64>) -> Vec<u8> {
    let wide = class == 2;
    let (header_len, phdr_len) = if wide { (64, 56) } else { (52, 32) };
    let count = segments.len() + usize::from(pvh.is_some());
    let mut file = vec![0; header_len + phdr_len * count];
    let word = |file: &mut Vec<u8>, at: usize, value: u64| {
        let bytes = value.to_le_bytes();
        let len = if wide { 8 } else { 4 };
        file[at..at + len].copy_from_slice(&bytes[..len]);
    };
    file[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', class, 1]);
    file[6] = 1;
    file[16] = 2;
    file[18..20].copy_from_slice(&machine.to_le_bytes());
    word(&mut file, 24, entry);
    word(&mut file, if wide { 32 } else { 28 }, header_len as u64);
    let counts = if wide { 54 } else { 42 };
    file[counts..counts + 2].copy_from_slice(&(phdr_len as u16).to_le_bytes());
    file[counts + 2..counts + 4].copy_from_slice(&(count as u16).to_le_bytes());
    let mut note = Vec::new();
    if let Some(pvh) = pvh {
        // A foreign note first: it must be stepped over.
        note.extend([[5, 0, 0, 0], [3, 0, 0, 0], [1, 0, 0, 0]].concat());
        note.extend(b"Other\0\0\0abc\0");
        let desc = if wide { 8_u32 } else { 4 };
        note.extend([4_u32, desc, 18].map(u32::to_le_bytes).concat());
        note.extend(b"Xen\0");
        note.extend(&pvh.to_le_bytes()[..desc as usize]);
    }
    let note_segment = pvh.map(|_| (4_u32, (0, 0, &note[..], note.len() as u64)));
    let all = segments.iter().map(|&segment| (1_u32, segment)).chain(note_segment);
    for (i, (kind, (vaddr, paddr, content, memsz))) in all.enumerate() {
        let at = header_len + phdr_len * i;
        let offset = file.len() as u64;
        file[at..at + 4].copy_from_slice(&kind.to_le_bytes());
        let fields = if wide {
            [8, 16, 24, 32, 40, 48]
        } else {
            [4, 8, 12, 16, 20, 28]
        };
        for (field, value) in fields
            .iter()
            .zip([offset, vaddr, paddr, content.len() as u64, memsz, 4])
        {
            word(&mut file, at + field, value);
        }
        file.extend(content);
    }
    file
}

#[test]
fn firmware_data_areas_are_filled() {
    let mut memory = Memory::pc(8);
    load(&mut memory, &images(&multiboot::kernel())).unwrap();
    assert_eq!(memory.u32(0x400) & 0xffff, 0x3f8);
    assert_eq!(memory.u32(0x40e) & 0xffff, 0x9fc0);
    assert_eq!(memory.u32(0x413) & 0xffff, 639);
    assert_eq!(memory.bytes(0x9fc00, 1), [1]);
}

#[test]
fn an_expansion_rom_area_reads_as_an_empty_bus() {
    let mut memory = Memory::of(&[(0, 640 * K, false), (0xc0000, M, true), (M, 8 * M, false)]);
    load(&mut memory, &images(&multiboot::kernel())).unwrap();
    assert!(memory.bytes(0xc0000, 0x20000).iter().all(|&byte| byte == 0xff));
    assert_ne!(memory.bytes(0xe0000, 1), [0xff]);
}

#[test]
fn acpi_tables_are_in_the_rom_or_in_the_ebda() {
    let kernel = vmlinux::pvh(2);
    let with_acpi = Images {
        acpi: true,
        ..images(&kernel)
    };
    let mut with_rom = Memory::pc(32);
    let entry = load(&mut with_rom, &with_acpi).unwrap();
    assert_eq!(with_rom.u64(entry.rbx + 32), 0xe0000);
    assert_eq!(with_rom.bytes(0xe0000, 8), b"RSD PTR ");

    let mut without = Memory::of(&[(0, 640 * K, false), (M, 32 * M, false)]);
    let entry = load(&mut without, &with_acpi).unwrap();
    let rsdp = without.u64(entry.rbx + 32);
    assert!((0x9fc00..0xa0000).contains(&rsdp) && rsdp.is_multiple_of(16));
    assert_eq!(without.bytes(rsdp, 8), b"RSD PTR ");

    let mut none = Memory::pc(32);
    let entry = load(&mut none, &images(&kernel)).unwrap();
    assert_eq!(none.u64(entry.rbx + 32), 0);
    assert_ne!(none.bytes(0xe0000, 8), b"RSD PTR ");
}
