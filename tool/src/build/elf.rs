// SPDX-License-Identifier: MIT OR Apache-2.0
//! How is a segment added to a linked program?

use anyhow::{Context, Result, bail, ensure};
use umbra_description::layout::bundle_vaddr;

const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
const PT_LOAD: u32 = 1;
const PT_PHDR: u32 = 6;
const PF_R: u32 = 4;
const PAGE: usize = 4096;

/// One program header, with the fields that matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// `p_type`.
    pub kind: u32,
    /// `p_flags`.
    pub flags: u32,
    /// Place in the file.
    pub offset: u64,
    /// Virtual address.
    pub vaddr: u64,
    /// Bytes in the file.
    pub file_len: u64,
    /// Bytes in memory.
    pub memory_len: u64,
}

/// Adds `content` to the static ELF64 program `elf` as a read-only segment at the first page boundary after its last
/// one (`layout::bundle_vaddr`). The program headers move to the end of the file; section headers are dropped.
pub fn add_segment(elf: &[u8], content: &[u8]) -> Result<Vec<u8>> {
    let segments = segments(elf)?;
    let end = segments
        .iter()
        .filter(|segment| segment.kind == PT_LOAD)
        .map(|segment| segment.vaddr + segment.memory_len)
        .max()
        .context("the program has no segment to load")?;
    let vaddr = bundle_vaddr(end);

    // The kernel copies every header that has a length in memory, whatever its type, so a PT_PHDR that points at the
    // old place would be a copy of old headers: harmless, but no longer true. It goes.
    let old = u64_at(elf, 32)? as usize;
    let mut headers: Vec<Vec<u8>> = Vec::new();
    for (index, segment) in segments.iter().enumerate() {
        if segment.kind != PT_PHDR {
            let at = old + index * PROGRAM_HEADER;
            headers.push(elf[at..at + PROGRAM_HEADER].to_vec());
        }
    }
    let mut out = elf.to_vec();
    pad(&mut out, PAGE);
    let offset = out.len() as u64;
    out.extend_from_slice(content);
    pad(&mut out, 8);
    let table = out.len() as u64;
    let len = content.len() as u64;
    headers.push(encode(Segment {
        kind: PT_LOAD,
        flags: PF_R,
        offset,
        vaddr,
        file_len: len,
        memory_len: len,
    }));
    let count = u16::try_from(headers.len()).context("too many program headers")?;
    out.extend(headers.into_iter().flatten());

    out[32..40].copy_from_slice(&table.to_le_bytes());
    out[56..58].copy_from_slice(&count.to_le_bytes());
    // e_shoff, e_shnum, e_shstrndx.
    out[40..48].fill(0);
    out[60..64].fill(0);
    Ok(out)
}

/// The program headers of a static little-endian ELF64 program for x86-64.
pub fn segments(elf: &[u8]) -> Result<Vec<Segment>> {
    ensure!(elf.len() >= HEADER && elf.starts_with(b"\x7fELF"), "not an ELF file");
    ensure!(elf[4] == 2 && elf[5] == 1, "not a little-endian ELF64 file");
    ensure!(u16_at(elf, 18)? == 62, "not a program for x86-64");
    ensure!(u16_at(elf, 16)? == 2, "not a static program (ET_EXEC)");
    ensure!(
        usize::from(u16_at(elf, 54)?) == PROGRAM_HEADER,
        "program headers of an unknown size"
    );
    let first = usize::try_from(u64_at(elf, 32)?).context("program headers outside the file")?;
    let count = usize::from(u16_at(elf, 56)?);
    let mut all = Vec::new();
    for index in 0..count {
        let at = index
            .checked_mul(PROGRAM_HEADER)
            .and_then(|bytes| bytes.checked_add(first));
        let Some(at) = at.filter(|at| at.checked_add(PROGRAM_HEADER).is_some_and(|end| end <= elf.len())) else {
            bail!("program header {index} lies outside the file");
        };
        let segment = Segment {
            kind: u32_at(elf, at)?,
            flags: u32_at(elf, at + 4)?,
            offset: u64_at(elf, at + 8)?,
            vaddr: u64_at(elf, at + 16)?,
            file_len: u64_at(elf, at + 32)?,
            memory_len: u64_at(elf, at + 40)?,
        };
        ensure!(
            segment.file_len <= segment.memory_len || segment.kind != PT_LOAD,
            "segment {index} is longer in the file than in memory"
        );
        ensure!(
            segment
                .offset
                .checked_add(segment.file_len)
                .is_some_and(|end| end <= elf.len() as u64),
            "segment {index} lies outside the file"
        );
        ensure!(
            segment.vaddr.checked_add(segment.memory_len).is_some(),
            "segment {index} wraps"
        );
        all.push(segment);
    }
    Ok(all)
}

fn encode(segment: Segment) -> Vec<u8> {
    let mut out = Vec::with_capacity(PROGRAM_HEADER);
    out.extend(segment.kind.to_le_bytes());
    out.extend(segment.flags.to_le_bytes());
    let words = [
        segment.offset,
        segment.vaddr,
        segment.vaddr,
        segment.file_len,
        segment.memory_len,
        PAGE as u64,
    ];
    out.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    out
}

fn pad(out: &mut Vec<u8>, align: usize) {
    out.resize(out.len().next_multiple_of(align), 0);
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16> {
    Ok(u16::from_le_bytes(array(bytes, at)?))
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32> {
    Ok(u32::from_le_bytes(array(bytes, at)?))
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64> {
    Ok(u64::from_le_bytes(array(bytes, at)?))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N]> {
    bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk::<N>())
        .copied()
        .context("the ELF file is cut off")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program with a PT_PHDR, code, and data with a tail that is zero.
    fn program() -> Vec<u8> {
        let segments = [
            Segment {
                kind: PT_PHDR,
                flags: 4,
                offset: 64,
                vaddr: 0x40_0040,
                file_len: 168,
                memory_len: 168,
            },
            Segment {
                kind: PT_LOAD,
                flags: 5,
                offset: 0,
                vaddr: 0x40_0000,
                file_len: 0x300,
                memory_len: 0x300,
            },
            Segment {
                kind: PT_LOAD,
                flags: 6,
                offset: 0x300,
                vaddr: 0x40_1300,
                file_len: 0x10,
                memory_len: 0x5001,
            },
        ];
        let mut elf = vec![0; HEADER];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[16..20].copy_from_slice(&[2, 0, 62, 0]);
        elf[24..32].copy_from_slice(&0x40_0100u64.to_le_bytes());
        elf[32..40].copy_from_slice(&64u64.to_le_bytes());
        elf[40..48].copy_from_slice(&0x310u64.to_le_bytes());
        elf[54..58].copy_from_slice(&[56, 0, 3, 0]);
        elf[60..62].copy_from_slice(&[7, 0]);
        elf.extend(segments.into_iter().flat_map(encode));
        elf.resize(0x310, 0xcc);
        elf
    }

    #[test]
    fn the_new_segment_follows_the_last_one_and_nothing_else_moves() {
        let before = program();
        let content: Vec<u8> = (0..9000u32).map(|i| i as u8).collect();
        let after = add_segment(&before, &content).unwrap();
        let old = segments(&before).unwrap();
        let new = segments(&after).unwrap();
        assert_eq!(new[..2], old[1..], "loaded segments are unchanged, PT_PHDR is gone");
        let added = new[2];
        assert_eq!((added.kind, added.flags, added.vaddr), (PT_LOAD, PF_R, 0x40_7000));
        assert_eq!((added.file_len, added.memory_len), (9000, 9000));
        assert_eq!(added.offset % PAGE as u64, 0);
        assert_eq!(after[added.offset as usize..][..9000], content);
        assert_eq!(after[24..32], before[24..32], "the entry point stays");
        assert_eq!(after[HEADER..before.len()], before[HEADER..]);
        assert_eq!(after[40..48], [0; 8], "no section headers");
    }

    #[test]
    fn a_second_segment_follows_the_first() {
        let once = add_segment(&program(), &[1; 4096]).unwrap();
        let twice = add_segment(&once, &[2; 10]).unwrap();
        assert_eq!(segments(&twice).unwrap()[3].vaddr, 0x40_8000);
    }

    #[test]
    fn every_truncation_and_foreign_file_is_refused() {
        let whole = program();
        for len in 0..whole.len() {
            assert!(add_segment(&whole[..len], &[1]).is_err(), "{len} bytes");
        }
        for (at, value) in [(0, 0), (4, 1), (5, 2), (16, 3), (18, 3), (54, 32), (33, 0xff)] {
            let mut bad = whole.clone();
            bad[at] = value;
            assert!(add_segment(&bad, &[1]).is_err(), "byte {at} = {value}");
        }
    }
}
