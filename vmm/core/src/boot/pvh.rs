// SPDX-License-Identifier: MIT OR Apache-2.0
//! How is a kernel entered by its PVH note? 32-bit code with `struct hvm_start_info` in EBX (Xen, docs/misc/pvh.pandoc).

use super::{
    Entry, EntryMode, Images, LoadError,
    elf::{Class, Elf},
    error::Part,
    file::Table,
    firmware, linux,
    ram::Ram,
};
use crate::guest_mem::GuestMemory;
use umbra_mmu_abi::Gpa;

const MAGIC: u32 = 0x336e_c578;
const VERSION: u32 = 1;
const START_INFO_LEN: usize = 56;
const MODULE_LEN: usize = 32;
const MAP_ENTRY_LEN: usize = 24;

/// The interface has no limit of its own for command lines; the low memory has.
const CMDLINE_MAX: u64 = 0xffff;
/// Linux maps this much before it looks for its initrd.
const INITRD_LAST_32: u64 = 0x37ff_ffff;
const INITRD_LAST_64: u64 = 0x7fff_ffff;

/// Loads an ELF kernel that has a PVH note naming `entry`.
pub fn load(
    mem: &mut impl GuestMemory,
    ram: &mut Ram,
    elf: &Elf<'_>,
    entry: u64,
    images: &Images<'_>,
    rsdp: Option<u64>,
) -> Result<Entry, LoadError> {
    let entry = elf.check_entry(entry)?;
    elf.load(mem, ram)?;
    let last = match elf.class() {
        Class::Bits32 => INITRD_LAST_32,
        Class::Bits64 => INITRD_LAST_64,
    };
    let count = usize::from(images.initrd.is_some()) + images.modules.len();
    let mut modules = Table::new(count * MODULE_LEN);
    let mut put = |i: usize, base: u64, len: usize, cmdline: u64| {
        modules.put_u64(i * MODULE_LEN, base);
        modules.put_u64(i * MODULE_LEN + 8, len as u64);
        modules.put_u64(i * MODULE_LEN + 16, cmdline);
    };
    let mut next = 0;
    if let Some(initrd) = images.initrd {
        put(next, linux::place_initrd(mem, ram, initrd, last)?, initrd.len(), 0);
        next += 1;
    }
    for (i, module) in images.modules.iter().enumerate() {
        let base = ram.place_top(Part::Module(i), module.data.len() as u64, last + 1)?;
        mem.write(Gpa::new(base), module.data)?;
        let cmdline = firmware::write_cmdline(mem, ram, module.cmdline, CMDLINE_MAX)?;
        put(next + i, base, module.data.len(), cmdline);
    }
    let modlist = if count == 0 {
        0
    } else {
        firmware::write_table(mem, ram, &modules)?
    };
    let cmdline = firmware::write_cmdline(mem, ram, images.cmdline, CMDLINE_MAX)?;

    let map = ram.map();
    let mut memmap = Table::new(map.len() * MAP_ENTRY_LEN);
    for (i, entry) in map.iter().enumerate() {
        memmap.put_u64(i * MAP_ENTRY_LEN, entry.base);
        memmap.put_u64(i * MAP_ENTRY_LEN + 8, entry.len);
        memmap.put_u32(i * MAP_ENTRY_LEN + 16, entry.kind as u32);
    }
    let memmap = firmware::write_table(mem, ram, &memmap)?;

    let mut info = Table::new(START_INFO_LEN);
    info.put_u32(0, MAGIC);
    info.put_u32(4, VERSION);
    info.put_u32(12, count as u32);
    info.put_u64(16, modlist);
    info.put_u64(24, cmdline);
    info.put_u64(32, rsdp.unwrap_or(0));
    info.put_u64(40, memmap);
    info.put_u32(48, map.len() as u32);
    let info = firmware::write_table(mem, ram, &info)?;
    Entry::new(mem, ram, EntryMode::Protected32, entry).map(|entry| Entry { rbx: info, ..entry })
}
