// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a component's ELF file asks for, and whether that may be given.

use alloc::vec::Vec;
use core::fmt;
use object::{
    Endianness,
    elf::{self, FileHeader64, PF_W, PF_X, PT_INTERP, PT_LOAD},
    read::elf::{FileHeader, ProgramHeader},
};
use umbra_description::layout;

/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// Programs live at and above this address.
pub const LOWEST: u64 = 0x10_0000;
/// Programs live below this address.
pub const HIGHEST: u64 = layout::IPC_BUFFER;
/// Most segments of a program.
pub const MAX_SEGMENTS: usize = 16;

/// A program that was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program<'a> {
    /// First instruction; inside an executable segment.
    pub entry: u64,
    /// In the order of addresses; no page belongs to two of them.
    pub segments: Vec<Segment<'a>>,
}

/// A part of a program's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    /// First address.
    pub vaddr: u64,
    /// Length in memory, in bytes; what `data` does not cover is zero.
    pub len: u64,
    /// Initial content from `vaddr` on.
    pub data: &'a [u8],
    /// The program may write; else it may only read and execute.
    pub writable: bool,
}

/// Why a program is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElfError {
    /// Not a little-endian ELF64 file, or its headers lie outside the file.
    Malformed,
    /// Not a static executable for x86-64 (ET_EXEC without interpreter).
    Kind,
    /// No, or more than [`MAX_SEGMENTS`], loadable segments.
    Segments(usize),
    /// A segment's content lies outside the file or is longer than the segment.
    Content(u64),
    /// A segment lies outside `LOWEST..HIGHEST`.
    Address(u64),
    /// A segment is writable and executable.
    WriteExecute(u64),
    /// A page belongs to two segments.
    SharedPage(u64),
    /// The entry point is in no executable segment.
    Entry(u64),
}

impl fmt::Display for ElfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed => f.write_str("not an ELF64 file, or cut off"),
            Self::Kind => f.write_str("not a static executable for x86-64"),
            Self::Segments(n) => write!(f, "{n} loadable segments; possible are 1 to {MAX_SEGMENTS}"),
            Self::Content(at) => write!(
                f,
                "the content of the segment at {at:#x} lies outside the file or the segment"
            ),
            Self::Address(at) => write!(f, "the segment at {at:#x} lies outside {LOWEST:#x} to {HIGHEST:#x}"),
            Self::WriteExecute(at) => write!(f, "the segment at {at:#x} is writable and executable"),
            Self::SharedPage(at) => write!(f, "the page {at:#x} belongs to two segments"),
            Self::Entry(at) => write!(f, "the entry point {at:#x} is in no executable segment"),
        }
    }
}

impl core::error::Error for ElfError {}

impl Segment<'_> {
    /// Address of its first page.
    pub const fn first_page(&self) -> u64 {
        self.vaddr - self.vaddr % PAGE
    }

    /// Address behind its last page.
    pub const fn end_page(&self) -> u64 {
        (self.vaddr + self.len).next_multiple_of(PAGE)
    }

    /// How many pages it touches.
    pub const fn pages(&self) -> u64 {
        (self.end_page() - self.first_page()) / PAGE
    }
}

impl<'a> Program<'a> {
    /// Reads and checks an ELF file.
    pub fn parse(file: &'a [u8]) -> Result<Self, ElfError> {
        let header = FileHeader64::<Endianness>::parse(file).map_err(|_| ElfError::Malformed)?;
        let endian = header.endian().map_err(|_| ElfError::Malformed)?;
        if endian != Endianness::Little {
            return Err(ElfError::Malformed);
        }
        if header.e_type(endian) != elf::ET_EXEC || header.e_machine(endian) != elf::EM_X86_64 {
            return Err(ElfError::Kind);
        }
        let headers = header.program_headers(endian, file).map_err(|_| ElfError::Malformed)?;
        if headers.iter().any(|h| h.p_type(endian) == PT_INTERP) {
            return Err(ElfError::Kind);
        }
        let mut segments = Vec::new();
        let mut executable = Vec::new();
        for header in headers
            .iter()
            .filter(|h| h.p_type(endian) == PT_LOAD && h.p_memsz(endian) > 0)
        {
            let (vaddr, len, flags) = (header.p_vaddr(endian), header.p_memsz(endian), header.p_flags(endian));
            let data = header.data(endian, file).map_err(|()| ElfError::Content(vaddr))?;
            if data.len() as u64 > len {
                return Err(ElfError::Content(vaddr));
            }
            let end = vaddr.checked_add(len).filter(|&end| vaddr >= LOWEST && end <= HIGHEST);
            let end = end.ok_or(ElfError::Address(vaddr))?;
            let writable = flags.contains(PF_W);
            if flags.contains(PF_X) {
                if writable {
                    return Err(ElfError::WriteExecute(vaddr));
                }
                executable.push(vaddr..end);
            }
            segments.push(Segment {
                vaddr,
                len,
                data,
                writable,
            });
        }
        if segments.is_empty() || segments.len() > MAX_SEGMENTS {
            return Err(ElfError::Segments(segments.len()));
        }
        segments.sort_by_key(|s| s.vaddr);
        for pair in segments.windows(2) {
            if pair[1].first_page() < pair[0].end_page() {
                return Err(ElfError::SharedPage(pair[1].first_page()));
            }
        }
        let entry = header.e_entry(endian);
        if !executable.iter().any(|range| range.contains(&entry)) {
            return Err(ElfError::Entry(entry));
        }
        Ok(Self { entry, segments })
    }

    /// Bytes of memory (whole pages) that the program may only read, and that it may also write.
    pub fn bytes(&self) -> (u64, u64) {
        let sum = |writable| {
            self.segments
                .iter()
                .filter(|s| s.writable == writable)
                .map(|s| s.pages() * PAGE)
                .sum()
        };
        (sum(false), sum(true))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{vec, vec::Vec};

    type Ph = (u32, u32, u64, u64, u64, u64); // type, flags, offset, vaddr, filesz, memsz

    const TEXT: Ph = (PT_LOAD.0, 5, 0x1000, 0x40_1000, 0x100, 0x100);
    const DATA: Ph = (PT_LOAD.0, 6, 0x1100, 0x40_2100, 0x40, 0x3000);

    fn file(headers: &[Ph]) -> Vec<u8> {
        let mut out = vec![0u8; 64];
        out[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        out[16..24].copy_from_slice(&[2, 0, 0x3e, 0, 1, 0, 0, 0]);
        out[24..32].copy_from_slice(&0x40_1010u64.to_le_bytes());
        out[32..40].copy_from_slice(&64u64.to_le_bytes());
        out[52..58].copy_from_slice(&[64, 0, 56, 0, headers.len() as u8, 0]);
        for &(kind, flags, offset, vaddr, filesz, memsz) in headers {
            out.extend_from_slice(&kind.to_le_bytes());
            out.extend_from_slice(&flags.to_le_bytes());
            for field in [offset, vaddr, vaddr, filesz, memsz, 4096] {
                out.extend_from_slice(&field.to_le_bytes());
            }
        }
        out.resize(0x1100, 0xaa);
        out.resize(0x1140, 0xbb);
        out
    }

    #[test]
    fn a_right_program_is_read() {
        let file = file(&[DATA, TEXT]);
        let program = Program::parse(&file).unwrap();
        assert_eq!(program.entry, 0x40_1010);
        let [text, data] = &program.segments[..] else {
            panic!("two segments")
        };
        assert_eq!(
            (text.vaddr, text.len, text.data, text.writable),
            (0x40_1000, 0x100, &[0xaa; 0x100][..], false)
        );
        assert_eq!(
            (data.vaddr, data.len, data.data, data.writable),
            (0x40_2100, 0x3000, &[0xbb; 0x40][..], true)
        );
        assert_eq!(
            (data.first_page(), data.end_page(), data.pages()),
            (0x40_2000, 0x40_6000, 4)
        );
        assert_eq!(program.bytes(), (0x1000, 0x4000));
    }

    #[test]
    fn wrong_programs_are_refused_with_the_reason() {
        let with = |change: fn(&mut Ph, &mut Ph)| {
            let (mut text, mut data) = (TEXT, DATA);
            change(&mut text, &mut data);
            Program::parse(&file(&[text, data])).unwrap_err()
        };
        assert_eq!(with(|_, d| d.2 = 0x1101), ElfError::Content(0x40_2100));
        assert_eq!(with(|_, d| d.2 = u64::MAX), ElfError::Content(0x40_2100));
        assert_eq!(with(|_, d| d.5 = 0x3f), ElfError::Content(0x40_2100));
        assert_eq!(with(|_, d| d.5 = u64::MAX), ElfError::Address(0x40_2100));
        assert_eq!(with(|_, d| d.5 = HIGHEST), ElfError::Address(0x40_2100));
        assert_eq!(with(|t, _| t.3 = 0x1000), ElfError::Address(0x1000));
        assert_eq!(with(|_, d| d.1 = 7), ElfError::WriteExecute(0x40_2100));
        assert_eq!(with(|_, d| d.3 = 0x40_1f00), ElfError::SharedPage(0x40_1000));
        assert_eq!(with(|t, _| t.1 = 4), ElfError::Entry(0x40_1010));
        assert_eq!(with(|t, _| t.3 = 0x50_0000), ElfError::Entry(0x40_1010));
        assert_eq!(with(|t, _| t.0 = PT_INTERP.0), ElfError::Kind);
        assert_eq!(Program::parse(&file(&[])), Err(ElfError::Segments(0)));
        let many: Vec<Ph> = (0..17)
            .map(|i| (PT_LOAD.0, 5, 0, 0x40_0000 + i * 0x1000, 1, 1))
            .collect();
        assert_eq!(Program::parse(&file(&many)), Err(ElfError::Segments(17)));
    }

    #[test]
    fn other_files_are_refused() {
        assert_eq!(Program::parse(b""), Err(ElfError::Malformed));
        assert_eq!(Program::parse(b"#!/bin/sh"), Err(ElfError::Malformed));
        let mut shared = file(&[TEXT, DATA]);
        shared[16] = 3;
        assert_eq!(Program::parse(&shared), Err(ElfError::Kind));
        let mut arm = file(&[TEXT, DATA]);
        arm[18] = 0xb7;
        assert_eq!(Program::parse(&arm), Err(ElfError::Kind));
        let mut narrow = file(&[TEXT, DATA]);
        narrow[4] = 1;
        assert_eq!(Program::parse(&narrow), Err(ElfError::Malformed));
        let mut big_endian = file(&[TEXT, DATA]);
        big_endian[5] = 2;
        assert!(Program::parse(&big_endian).is_err());
    }

    #[test]
    fn every_truncation_is_refused() {
        let whole = file(&[TEXT, DATA]);
        for len in 0..whole.len() {
            assert!(Program::parse(&whole[..len]).is_err(), "{len}");
        }
    }

    #[test]
    fn no_damage_makes_it_panic() {
        let whole = file(&[TEXT, DATA]);
        for at in 0..64 + 2 * 56 {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut bad = whole.clone();
                bad[at] = value;
                if let Ok(program) = Program::parse(&bad) {
                    for s in &program.segments {
                        assert!(s.vaddr >= LOWEST && s.vaddr + s.len <= HIGHEST && s.data.len() as u64 <= s.len);
                    }
                }
            }
        }
    }
}
