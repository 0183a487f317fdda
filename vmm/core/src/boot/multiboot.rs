// SPDX-License-Identifier: MIT OR Apache-2.0
//! How is a multiboot 1 kernel entered? 32-bit code with the information structure in EBX.
//!
//! Offsets and flags are those of the Multiboot Specification 0.6.96.

use super::{
    Entry, EntryMode, Images, LoadError,
    elf::{self, Elf},
    error::Part,
    file::{File, Table},
    firmware,
    ram::{EBDA, Ram},
};
use crate::guest_mem::GuestMemory;
use alloc::vec::Vec;
use umbra_mmu_abi::Gpa;

const HEADER_MAGIC: u32 = 0x1bad_b002;
const LOADER_MAGIC: u64 = 0x2bad_b002;
/// The header is in the first 8 KiB, 4-byte aligned.
const SEARCH: u64 = 8192;
/// Header flags: page-aligned modules, memory information, a video mode (none is there: what is given stands).
const KNOWN_REQUIREMENTS: u32 = 0x0007;
/// Header flags of which a loader must refuse those it does not know.
const REQUIREMENTS: u32 = 0xffff;
/// The address fields are valid.
const ADDRESSES: u32 = 1 << 16;

/// Flags of the information structure: memory sizes, command line, modules, memory map, loader name.
const INFO_FLAGS: u32 = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9;
const INFO_LEN: usize = 116;
const MODULE_LEN: usize = 16;
const MAP_ENTRY_LEN: usize = 24;
const LOADER_NAME: &str = "umbra";
const CMDLINE_MAX: u64 = 0xffff;

/// Offset of the multiboot header, if the file has one.
pub fn find_header(file: &File<'_>) -> Option<u64> {
    let word = |at| file.u32(Part::MultibootHeader, at).ok();
    (0..SEARCH.min(file.len())).step_by(4).find(|&at| {
        let sums_up = |flags: u32, checksum| HEADER_MAGIC.wrapping_add(flags).wrapping_add(checksum) == 0;
        word(at) == Some(HEADER_MAGIC)
            && at + 12 <= SEARCH
            && word(at + 4)
                .zip(word(at + 8))
                .is_some_and(|(flags, checksum)| sums_up(flags, checksum))
    })
}

/// Loads the kernel whose header is at `header`.
pub fn load(
    mem: &mut impl GuestMemory,
    ram: &mut Ram,
    file: &File<'_>,
    header: u64,
    images: &Images<'_>,
) -> Result<Entry, LoadError> {
    let part = Part::MultibootHeader;
    let flags = file.u32(part, header + 4)?;
    if flags & REQUIREMENTS & !KNOWN_REQUIREMENTS != 0 {
        let what = "requirement flags that no loader knows";
        return Err(LoadError::BadField {
            part,
            offset: header + 4,
            what,
            value: flags.into(),
        });
    }
    let entry = if flags & ADDRESSES != 0 {
        load_by_addresses(mem, ram, file, header)?
    } else if elf::is_elf(file) {
        let elf = Elf::parse(file)?;
        let entry = elf.entry()?;
        elf.load(mem, ram)?;
        entry
    } else {
        let what = "neither ELF nor address fields (flag 16)";
        return Err(LoadError::BadField {
            part,
            offset: header + 4,
            what,
            value: flags.into(),
        });
    };
    let info = write_info(mem, ram, images)?;
    Entry::new(mem, ram, EntryMode::Protected32, entry).map(|entry| Entry {
        rax: LOADER_MAGIC,
        rbx: info,
        ..entry
    })
}

/// The address fields ("a.out kludge"); the entry point.
fn load_by_addresses(
    mem: &mut impl GuestMemory,
    ram: &mut Ram,
    file: &File<'_>,
    header: u64,
) -> Result<u64, LoadError> {
    let part = Part::MultibootHeader;
    let field = |at| file.u32(part, header + at).map(u64::from);
    let bad = |at, what, value| {
        Err(LoadError::BadField {
            part,
            offset: header + at,
            what,
            value,
        })
    };
    let (header_addr, load_addr) = (field(12)?, field(16)?);
    let (load_end, bss_end, entry) = (field(20)?, field(24)?, field(28)?);
    let Some(content_at) = header_addr
        .checked_sub(load_addr)
        .and_then(|before| header.checked_sub(before))
    else {
        return bad(16, "load_addr is not where the file's content can begin", load_addr);
    };
    let len = match load_end {
        0 => file.len() - content_at,
        end if end > load_addr => end - load_addr,
        end => return bad(20, "load_end_addr before load_addr", end),
    };
    let content = file.range(Part::MultibootImage, content_at, len)?;
    let mem_len = match bss_end {
        0 => len,
        end if end >= load_addr + len => end - load_addr,
        end => return bad(24, "bss_end_addr before load_end_addr", end),
    };
    if entry < load_addr || entry - load_addr >= mem_len {
        return bad(28, "entry_addr is outside the image", entry);
    }
    ram.claim(Part::MultibootImage, load_addr, mem_len)?;
    mem.write(Gpa::new(load_addr), content)?;
    if mem_len > len {
        mem.zero(Gpa::new(load_addr + len), mem_len - len)?;
    }
    Ok(entry)
}

/// Places modules, command lines and the information structure; its address.
fn write_info(mem: &mut impl GuestMemory, ram: &mut Ram, images: &Images<'_>) -> Result<u64, LoadError> {
    let initrd = images.initrd.map(|data| (Part::Initrd, data, ""));
    let modules = images
        .modules
        .iter()
        .enumerate()
        .map(|(i, m)| (Part::Module(i), m.data, m.cmdline));
    let modules: Vec<(Part, &[u8], &str)> = initrd.into_iter().chain(modules).collect();
    let mut list = Table::new(modules.len() * MODULE_LEN);
    for (i, &(part, data, cmdline)) in modules.iter().enumerate() {
        let len = data.len() as u64;
        let base = ram.place_behind(part, len)?;
        mem.write(Gpa::new(base), data)?;
        let cmdline = firmware::write_cmdline(mem, ram, cmdline, CMDLINE_MAX)?;
        list.put_u32(i * MODULE_LEN, base as u32);
        list.put_u32(i * MODULE_LEN + 4, (base + len) as u32);
        list.put_u32(i * MODULE_LEN + 8, cmdline as u32);
    }
    let list = firmware::write_table(mem, ram, &list)?;

    let map = ram.map();
    let mut memmap = Table::new(map.len() * MAP_ENTRY_LEN);
    for (i, entry) in map.iter().enumerate() {
        let at = i * MAP_ENTRY_LEN;
        memmap.put_u32(at, MAP_ENTRY_LEN as u32 - 4); // the size field does not count itself
        memmap.put_u64(at + 4, entry.base);
        memmap.put_u64(at + 12, entry.len);
        memmap.put_u32(at + 20, entry.kind as u32);
    }
    let memmap_at = firmware::write_table(mem, ram, &memmap)?;
    let cmdline = firmware::write_cmdline(mem, ram, images.cmdline, CMDLINE_MAX)?;
    let name = firmware::write_cmdline(mem, ram, LOADER_NAME, CMDLINE_MAX)?;

    let mut info = Table::new(INFO_LEN);
    info.put_u32(0, INFO_FLAGS);
    info.put_u32(4, (EBDA >> 10) as u32);
    info.put_u32(8, (ram.contiguous_above_1m() >> 10) as u32);
    info.put_u32(16, cmdline as u32);
    info.put_u32(20, modules.len() as u32);
    info.put_u32(24, list as u32);
    info.put_u32(44, memmap.bytes().len() as u32);
    info.put_u32(48, memmap_at as u32);
    info.put_u32(64, name as u32);
    firmware::write_table(mem, ram, &info)
}
