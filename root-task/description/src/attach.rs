// SPDX-License-Identifier: MIT OR Apache-2.0
//! How the root task's ELF file gets its bundle: one more read-only segment right behind the image in memory.
//!
//! The kernel reserves, clears and maps everything between an image's lowest and highest address, so the bundle must
//! follow without a gap: at `layout::bundle_vaddr`.

use crate::layout;
use std::{fmt, vec::Vec};

const PHDR_LEN: usize = 56;
const EHDR_LEN: usize = 64;
const PT_LOAD: u32 = 1;
const PF_R: u32 = 4;
const PAGE: u64 = 4096;

/// Why a bundle cannot be attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachError {
    /// Not a little-endian ELF64 executable for x86-64.
    NotElf,
    /// The program headers lie outside the file, or there are none to load.
    ProgramHeaders,
}

impl fmt::Display for AttachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotElf => "the root task is not a little-endian ELF64 executable for x86-64",
            Self::ProgramHeaders => "the root task has no loadable segments, or they lie outside the file",
        })
    }
}

impl std::error::Error for AttachError {}

/// The ELF file `root` with `bundle` as an additional segment at the first page boundary after its image. Section
/// headers are dropped: nothing that boots reads them.
pub fn attach_bundle(root: &[u8], bundle: &[u8]) -> Result<Vec<u8>, AttachError> {
    if root.len() < EHDR_LEN || root[..6] != *b"\x7fELF\x02\x01" || root[16..20] != [2, 0, 0x3e, 0] {
        return Err(AttachError::NotElf);
    }
    let table = word(root, 32) as usize;
    let count = usize::from(u16::from_le_bytes([root[56], root[57]]));
    let old = table.checked_add(count * PHDR_LEN).and_then(|end| root.get(table..end));
    let old = old.ok_or(AttachError::ProgramHeaders)?;

    let (mut image_end, mut file_end) = (0, 0);
    let mut headers = Vec::new();
    for header in old.chunks(PHDR_LEN) {
        let kind = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        if kind != PT_LOAD {
            continue;
        }
        let (offset, vaddr, filesz, memsz) = (word(header, 8), word(header, 16), word(header, 32), word(header, 40));
        let end = offset
            .checked_add(filesz)
            .filter(|&end| end <= root.len() as u64 && filesz <= memsz);
        file_end = end.ok_or(AttachError::ProgramHeaders)?.max(file_end);
        image_end = vaddr
            .checked_add(memsz)
            .ok_or(AttachError::ProgramHeaders)?
            .max(image_end);
        headers.extend_from_slice(header);
    }
    if headers.is_empty() {
        return Err(AttachError::ProgramHeaders);
    }

    let mut out = root[..(file_end as usize).max(EHDR_LEN)].to_vec();
    out.resize(out.len().next_multiple_of(8), 0);
    let new_table = out.len() as u64;
    let loads = headers.len() / PHDR_LEN + 1;
    let vaddr = layout::bundle_vaddr(image_end);
    let offset = (new_table + (loads * PHDR_LEN) as u64).next_multiple_of(PAGE);
    let len = bundle.len() as u64;
    headers.extend_from_slice(&PT_LOAD.to_le_bytes());
    headers.extend_from_slice(&PF_R.to_le_bytes());
    for field in [offset, vaddr, vaddr, len, len, PAGE] {
        headers.extend_from_slice(&field.to_le_bytes());
    }
    out.extend_from_slice(&headers);
    out.resize(offset as usize, 0);
    out.extend_from_slice(bundle);

    out[32..40].copy_from_slice(&new_table.to_le_bytes());
    out[40..48].fill(0); // e_shoff
    out[56..58].copy_from_slice(&(loads as u16).to_le_bytes());
    out[60..64].fill(0); // e_shnum, e_shstrndx
    Ok(out)
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    /// An executable with two segments (text; data with bss) and a header of another kind.
    fn elf() -> Vec<u8> {
        let mut out = vec![0; EHDR_LEN];
        out[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        out[16..20].copy_from_slice(&[2, 0, 0x3e, 0]);
        out[24..32].copy_from_slice(&0x40_1000u64.to_le_bytes());
        out[32..40].copy_from_slice(&64u64.to_le_bytes());
        out[56..58].copy_from_slice(&3u16.to_le_bytes());
        let gnu_stack = 0x6474_e551u32;
        for (kind, offset, vaddr, filesz, memsz) in [
            (PT_LOAD, 0, 0x40_0000, 0x300, 0x300),
            (gnu_stack, 0, 0, 0, 0),
            (PT_LOAD, 0x300, 0x40_2300, 0x10, 0x5001),
        ] {
            out.extend_from_slice(&kind.to_le_bytes());
            out.extend_from_slice(&6u32.to_le_bytes());
            for field in [offset, vaddr, vaddr, filesz, memsz, 4096u64] {
                out.extend_from_slice(&field.to_le_bytes());
            }
        }
        out.resize(0x310, 0x55);
        out.extend_from_slice(b"debug sections");
        out
    }

    #[test]
    fn the_bundle_follows_the_image_at_the_next_page() {
        let out = attach_bundle(&elf(), b"BUNDLE").unwrap();
        let (table, count) = (word(&out, 32) as usize, usize::from(out[56]));
        assert_eq!(count, 3);
        let last = &out[table + 2 * PHDR_LEN..][..PHDR_LEN];
        assert_eq!(last[..8], [1, 0, 0, 0, 4, 0, 0, 0]);
        // The image ends at 0x407301.
        assert_eq!((word(last, 16), word(last, 32), word(last, 40)), (0x40_8000, 6, 6));
        let offset = word(last, 8) as usize;
        assert_eq!(&out[offset..], b"BUNDLE");
        assert_eq!(offset % 4096, 0);
        assert_eq!(out[24..32], elf()[24..32], "entry point");
        assert_eq!(&out[0x300..0x310], &[0x55; 16], "contents stay where they were");
        assert!(!out.windows(5).any(|w| w == b"debug"));
    }

    #[test]
    fn what_is_no_executable_is_refused() {
        assert_eq!(attach_bundle(b"", b""), Err(AttachError::NotElf));
        assert_eq!(attach_bundle(&[0; 64], b""), Err(AttachError::NotElf));
        let mut object_file = elf();
        object_file[16] = 1;
        assert_eq!(attach_bundle(&object_file, b""), Err(AttachError::NotElf));
        for len in EHDR_LEN..0x310 {
            assert_eq!(
                attach_bundle(&elf()[..len], b""),
                Err(AttachError::ProgramHeaders),
                "{len}"
            );
        }
        let mut none = elf();
        none[56] = 0;
        assert_eq!(attach_bundle(&none, b""), Err(AttachError::ProgramHeaders));
    }
}
