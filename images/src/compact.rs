// SPDX-License-Identifier: MIT OR Apache-2.0
//! What does a loader need of an ELF kernel? Its program headers and the bytes they name; the rest would only be
//! carried through disk and RAM: section headers, padding between segments, relocations behind the end, zeroes.

use object::{
    LittleEndian,
    elf::{FileHeader32, FileHeader64, PT_LOAD},
    read::elf::{FileHeader, ProgramHeader},
};
use thiserror::Error;

/// Segments keep their offset modulo this.
const PAGE: u64 = 4096;

/// Why a kernel cannot be made smaller.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum CompactError {
    /// Not ELF, or a header is damaged.
    #[error("the kernel is not a sound ELF file: {0}")]
    BadElf(String),
    /// A segment's bytes are not in the file.
    #[error("the kernel file is truncated: segment {0} is not in it")]
    Truncated(usize),
}

/// The same program with nothing but its program headers and their contents. Zeroes at the end of a loadable segment
/// are left to the loader, which clears the memory that the file does not fill.
///
/// # Errors
/// See [`CompactError`].
pub fn compact(kernel: &[u8]) -> Result<Vec<u8>, CompactError> {
    match kernel.get(4) {
        Some(1) => compact_class::<FileHeader32<LittleEndian>>(kernel, &CLASS_32),
        Some(2) => compact_class::<FileHeader64<LittleEndian>>(kernel, &CLASS_64),
        Some(_) | None => Err(CompactError::BadElf("unknown class".into())),
    }
}

/// Sizes and places of the fields that change.
struct Class {
    header: usize,
    program_header: usize,
    /// Length in bytes of offsets and addresses.
    word: usize,
    /// In the file header: e_phoff, e_shoff (words), e_shentsize (followed by e_shnum and e_shstrndx).
    phoff: usize,
    shoff: usize,
    shentsize: usize,
    /// In a program header.
    offset: usize,
    filesz: usize,
    align: usize,
}

const CLASS_32: Class = Class {
    header: 52,
    program_header: 32,
    word: 4,
    phoff: 28,
    shoff: 32,
    shentsize: 46,
    offset: 4,
    filesz: 16,
    align: 28,
};
const CLASS_64: Class = Class {
    header: 64,
    program_header: 56,
    word: 8,
    phoff: 32,
    shoff: 40,
    shentsize: 58,
    offset: 8,
    filesz: 32,
    align: 48,
};

/// A segment's bytes in the old and the new file.
struct Moved {
    old: u64,
    len: u64,
    new: u64,
}

fn compact_class<H: FileHeader<Endian = LittleEndian>>(kernel: &[u8], class: &Class) -> Result<Vec<u8>, CompactError> {
    let bad = |error: object::Error| CompactError::BadElf(error.to_string());
    let header = H::parse(kernel).map_err(bad)?;
    let endian = header.endian().map_err(bad)?;
    let programs = header.program_headers(endian, kernel).map_err(bad)?;
    let mut out = kernel[..class.header].to_vec();
    put(&mut out, class.phoff, class.word, class.header as u64);
    put(&mut out, class.shoff, class.word, 0);
    put(&mut out, class.shentsize, 6, 0);
    let old_phoff: u64 = header.e_phoff(endian).into();
    let table = old_phoff as usize..old_phoff as usize + programs.len() * class.program_header;
    out.extend(
        kernel
            .get(table)
            .ok_or_else(|| CompactError::BadElf("no program headers".into()))?,
    );

    let mut moved: Vec<Moved> = Vec::new();
    // Loadable segments first: notes and the like mostly lie in one of them.
    let is_load = |program: &H::ProgramHeader| program.p_type(endian) == PT_LOAD;
    let (loads, others): (Vec<_>, Vec<_>) = programs.iter().enumerate().partition(|(_, program)| is_load(program));
    for (index, program) in loads.into_iter().chain(others) {
        let data = program
            .data(endian, kernel)
            .map_err(|()| CompactError::Truncated(index))?;
        let old: u64 = program.p_offset(endian).into();
        let mut len = data.len() as u64;
        if is_load(program) {
            len = data
                .iter()
                .rposition(|byte| *byte != 0)
                .map_or(0, |last| last as u64 + 1);
        }
        let inside = moved
            .iter()
            .find(|load| old >= load.old && old + len <= load.old + load.len);
        let new = match inside {
            Some(load) => load.new + (old - load.old),
            None => {
                let address: u64 = program.p_vaddr(endian).into();
                let end = out.len() as u64;
                let new = end + (address.wrapping_sub(end) & (PAGE - 1));
                out.resize(new as usize, 0);
                out.extend(&data[..len as usize]);
                moved.push(Moved { old, len, new });
                new
            }
        };
        let at = class.header + index * class.program_header;
        put(&mut out, at + class.offset, class.word, new);
        put(&mut out, at + class.filesz, class.word, len);
        if is_load(program) {
            put(&mut out, at + class.align, class.word, PAGE);
        }
    }
    Ok(out)
}

fn put(out: &mut [u8], at: usize, len: usize, value: u64) {
    out[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A 64-bit ELF file with (type, file offset, address, data, memory size) and junk between and behind.
    fn elf(segments: &[(u32, u64, u64, &[u8], u64)]) -> Vec<u8> {
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(16, 0);
        file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
        for word in [0x10_0000u64, 64, 0x7777] {
            file.extend(word.to_le_bytes());
        }
        file.extend([0; 4]);
        for half in [64, 56, segments.len() as u16, 64, 5, 4] {
            file.extend(half.to_le_bytes());
        }
        for (kind, offset, address, data, mem_len) in segments {
            file.extend(kind.to_le_bytes());
            file.extend(5u32.to_le_bytes());
            for word in [*offset, *address, *address, data.len() as u64, *mem_len, 0x20_0000] {
                file.extend(word.to_le_bytes());
            }
        }
        file.resize(0x9000, 0xee);
        for (_, offset, _, data, _) in segments {
            file[*offset as usize..][..data.len()].copy_from_slice(data);
        }
        file
    }

    /// (type, address, data, memory size) of each program header.
    fn segments(file: &[u8]) -> Vec<(u32, u64, Vec<u8>, u64)> {
        let header = FileHeader64::<LittleEndian>::parse(file).unwrap();
        let programs = header.program_headers(LittleEndian, file).unwrap();
        let read = |program: &object::elf::ProgramHeader64<LittleEndian>| {
            let data = program.data(LittleEndian, file).unwrap().to_vec();
            (
                program.p_type(LittleEndian).0,
                program.p_paddr(LittleEndian),
                data,
                program.p_memsz(LittleEndian),
            )
        };
        programs.iter().map(read).collect()
    }

    #[test]
    fn segments_stay_and_the_rest_goes() {
        let text = [&[1; 3000][..], b"note", &[2; 2000]].concat();
        let old = elf(&[
            (4, 0x2000 + 3000, 0x10_0bb8, b"note", 4),
            (1, 0x2000, 0x10_0000, &text, 0x2000),
            (1, 0x5000, 0x20_0000, &[3, 3, 0, 0, 0], 4096),
            (1, 0x6000, 0x30_0000, &[0; 64], 4096),
        ]);
        let new = compact(&old).unwrap();
        assert_eq!(
            segments(&new),
            [
                (4, 0x10_0bb8, b"note".to_vec(), 4),
                (1, 0x10_0000, text, 0x2000),
                (1, 0x20_0000, vec![3, 3], 4096),
                (1, 0x30_0000, vec![], 4096),
            ]
        );
        assert!(new.len() < 0x4100, "{:#x}", new.len());
        assert!(!new.windows(8).any(|bytes| bytes == [0xee; 8]), "padding is left");
        assert_eq!(compact(&new).unwrap(), new, "nothing more to gain");
    }

    #[test]
    fn damage_is_named() {
        let mut old = elf(&[(1, 0x8f00, 0x10_0000, &[1; 256], 256)]);
        assert!(compact(&old).is_ok());
        old.truncate(0x8fff);
        assert_eq!(compact(&old), Err(CompactError::Truncated(0)));
        assert!(matches!(compact(b"\x7fELF\x02"), Err(CompactError::BadElf(_))));
        assert!(matches!(compact(b""), Err(CompactError::BadElf(_))));
    }
}
