// SPDX-License-Identifier: MIT OR Apache-2.0
//! What does an ELF kernel want in memory, and where does it start? Executables for i386 and amd64.

use super::{LoadError, error::Part, file::File, ram::Ram};
use crate::guest_mem::GuestMemory;
use alloc::vec::Vec;
use umbra_mmu_abi::Gpa;

const MAGIC: &[u8] = b"\x7fELF";
const ET_EXEC: u16 = 2;
const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// Owner and type of the note that names the PVH entry point (Xen's XEN_ELFNOTE_PHYS32_ENTRY).
const PVH_NOTE: (&[u8], u32) = (b"Xen\0", 18);

/// The two layouts of headers: offsets in the ELF header and in a program header.
struct Layout {
    e_phoff: u64,
    e_phentsize: u64,
    e_phnum: u64,
    phdr_len: u64,
    p_offset: u64,
    p_vaddr: u64,
    p_paddr: u64,
    p_filesz: u64,
    p_memsz: u64,
    p_align: u64,
}

const ELF32: Layout = Layout {
    e_phoff: 28,
    e_phentsize: 42,
    e_phnum: 44,
    phdr_len: 32,
    p_offset: 4,
    p_vaddr: 8,
    p_paddr: 12,
    p_filesz: 16,
    p_memsz: 20,
    p_align: 28,
};

const ELF64: Layout = Layout {
    e_phoff: 32,
    e_phentsize: 54,
    e_phnum: 56,
    phdr_len: 56,
    p_offset: 8,
    p_vaddr: 16,
    p_paddr: 24,
    p_filesz: 32,
    p_memsz: 40,
    p_align: 48,
};

/// Offset of e_entry in both layouts.
const E_ENTRY: u64 = 24;

/// The width of an ELF file's fields, and of its code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// ELFCLASS32.
    Bits32,
    /// ELFCLASS64.
    Bits64,
}

/// A PT_LOAD.
#[derive(Debug)]
struct Segment<'a> {
    number: usize,
    vaddr: u64,
    paddr: u64,
    content: &'a [u8],
    memsz: u64,
}

/// An ELF executable whose headers are in order.
#[derive(Debug)]
pub struct Elf<'a> {
    class: Class,
    entry: u64,
    segments: Vec<Segment<'a>>,
    pvh_entry: Option<u64>,
}

/// Is this an ELF file at all?
pub fn is_elf(file: &File<'_>) -> bool {
    file.bytes().starts_with(MAGIC)
}

impl<'a> Elf<'a> {
    /// Reads the headers.
    pub fn parse(file: &File<'a>) -> Result<Self, LoadError> {
        let part = Part::ElfHeader;
        let bad = |offset, what, value| {
            Err(LoadError::BadField {
                part,
                offset,
                what,
                value,
            })
        };
        let class = match file.u8(part, 4)? {
            1 => Class::Bits32,
            2 => Class::Bits64,
            other => return bad(4, "class is neither 32 nor 64 bits", other.into()),
        };
        let order = file.u8(part, 5)?;
        if order != 1 {
            return bad(5, "not little-endian", order.into());
        }
        let kind = file.u16(part, 16)?;
        if kind != ET_EXEC {
            return bad(16, "not an executable (ET_EXEC)", kind.into());
        }
        let machine = file.u16(part, 18)?;
        let right = match class {
            Class::Bits32 => EM_386,
            Class::Bits64 => EM_X86_64,
        };
        if machine != right {
            return bad(18, "machine is not x86 of this class", machine.into());
        }
        let layout = match class {
            Class::Bits32 => &ELF32,
            Class::Bits64 => &ELF64,
        };
        let mut elf = Self {
            class,
            entry: 0,
            segments: Vec::new(),
            pvh_entry: None,
        };
        elf.entry = elf.word(file, part, E_ENTRY)?;
        elf.read_program_headers(file, layout)?;
        if elf.segments.is_empty() {
            return bad(layout.e_phnum, "no segment to load (PT_LOAD)", 0);
        }
        Ok(elf)
    }

    fn read_program_headers(&mut self, file: &File<'a>, layout: &Layout) -> Result<(), LoadError> {
        let part = Part::ElfHeader;
        let first = self.word(file, part, layout.e_phoff)?;
        let size = u64::from(file.u16(part, layout.e_phentsize)?);
        let count = usize::from(file.u16(part, layout.e_phnum)?);
        if size < layout.phdr_len && count > 0 {
            let what = "program headers are too short";
            return Err(LoadError::BadField {
                part,
                offset: layout.e_phentsize,
                what,
                value: size,
            });
        }
        for number in 0..count {
            let part = Part::ProgramHeader(number);
            let truncated = LoadError::Truncated {
                part,
                offset: first,
                len: size,
                file_len: file.len(),
            };
            let at = first.checked_add(number as u64 * size).ok_or(truncated)?;
            file.range(part, at, layout.phdr_len)?;
            match file.u32(part, at)? {
                PT_LOAD => self.read_load(file, layout, number, at)?,
                PT_NOTE => self.read_notes(file, layout, number, at)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn read_load(&mut self, file: &File<'a>, layout: &Layout, number: usize, at: u64) -> Result<(), LoadError> {
        let part = Part::ProgramHeader(number);
        let filesz = self.word(file, part, at + layout.p_filesz)?;
        let memsz = self.word(file, part, at + layout.p_memsz)?;
        if filesz > memsz {
            let what = "more bytes in the file than in memory";
            return Err(LoadError::BadField {
                part,
                offset: at + layout.p_filesz,
                what,
                value: filesz,
            });
        }
        if memsz == 0 {
            return Ok(());
        }
        let content = file.range(
            Part::Segment(number),
            self.word(file, part, at + layout.p_offset)?,
            filesz,
        )?;
        let vaddr = self.word(file, part, at + layout.p_vaddr)?;
        let paddr = self.word(file, part, at + layout.p_paddr)?;
        self.segments.push(Segment {
            number,
            vaddr,
            paddr,
            content,
            memsz,
        });
        Ok(())
    }

    fn read_notes(&mut self, file: &File<'a>, layout: &Layout, number: usize, at: u64) -> Result<(), LoadError> {
        let header = Part::ProgramHeader(number);
        let offset = self.word(file, header, at + layout.p_offset)?;
        let len = self.word(file, header, at + layout.p_filesz)?;
        let align = if self.word(file, header, at + layout.p_align)? == 8 {
            8
        } else {
            4
        };
        file.range(Part::Segment(number), offset, len)?;
        let part = Part::Note(number);
        let mut note = 0;
        while note + 12 <= len {
            let at = offset + note;
            let name_len = u64::from(file.u32(part, at)?);
            let desc_len = u64::from(file.u32(part, at + 4)?);
            let kind = file.u32(part, at + 8)?;
            let desc = 12 + name_len.next_multiple_of(align);
            if note + desc + desc_len > len {
                return Err(LoadError::Truncated {
                    part,
                    offset: at,
                    len: desc + desc_len,
                    file_len: offset + len,
                });
            }
            let name = file.range(part, at + 12, name_len)?;
            if (name, kind) == PVH_NOTE {
                self.pvh_entry = Some(match desc_len {
                    4 => file.u32(part, at + desc)?.into(),
                    8 => file.u64(part, at + desc)?,
                    other => {
                        let what = "the PVH entry is neither 4 nor 8 bytes";
                        return Err(LoadError::BadField {
                            part,
                            offset: at + 4,
                            what,
                            value: other,
                        });
                    }
                });
            }
            note += desc + desc_len.next_multiple_of(align);
        }
        Ok(())
    }

    /// An address-sized field.
    fn word(&self, file: &File<'_>, part: Part, offset: u64) -> Result<u64, LoadError> {
        match self.class {
            Class::Bits32 => file.u32(part, offset).map(u64::from),
            Class::Bits64 => file.u64(part, offset),
        }
    }

    /// 32 or 64 bits.
    pub fn class(&self) -> Class {
        self.class
    }

    /// The PVH entry point, if a note names one.
    pub fn pvh_entry(&self) -> Option<u64> {
        self.pvh_entry
    }

    /// Physical address of the entry point. Kernels that are linked at virtual addresses may name a virtual one.
    pub fn entry(&self) -> Result<u64, LoadError> {
        self.check_entry(self.entry).or_else(|error| {
            let virtual_home = self
                .segments
                .iter()
                .find(|s| self.entry.checked_sub(s.vaddr).is_some_and(|at| at < s.memsz));
            match virtual_home {
                Some(s) => self.check_entry(s.paddr.wrapping_add(self.entry - s.vaddr)),
                None => Err(error),
            }
        })
    }

    /// `entry`, if a segment has it and 32-bit code can jump there.
    pub fn check_entry(&self, entry: u64) -> Result<u64, LoadError> {
        let inside = self
            .segments
            .iter()
            .any(|s| entry.checked_sub(s.paddr).is_some_and(|at| at < s.memsz));
        if inside && entry <= u64::from(u32::MAX) {
            return Ok(entry);
        }
        let what = "the entry point is in no segment";
        Err(LoadError::BadField {
            part: Part::ElfHeader,
            offset: E_ENTRY,
            what,
            value: entry,
        })
    }

    /// Places all segments at their physical addresses; zeroes only what the file does not fill.
    pub fn load(&self, mem: &mut impl GuestMemory, ram: &mut Ram) -> Result<(), LoadError> {
        // The highest one first: if memory is too small, it says how much is needed.
        let mut by_end: Vec<&Segment<'_>> = self.segments.iter().collect();
        by_end.sort_by_key(|s| core::cmp::Reverse(s.paddr.saturating_add(s.memsz)));
        for s in by_end {
            ram.claim(Part::Segment(s.number), s.paddr, s.memsz)?;
        }
        for s in &self.segments {
            mem.write(Gpa::new(s.paddr), s.content)?;
            let filled = s.content.len() as u64;
            if filled < s.memsz {
                mem.zero(Gpa::new(s.paddr + filled), s.memsz - filled)?;
            }
        }
        Ok(())
    }
}
