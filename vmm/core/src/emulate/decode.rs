// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which instruction do these bytes mean? Decoding, with a small cache for instructions that exit again and again.

use super::{Code, CodeSize, MAX_INSTRUCTION};
use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction};

/// Why bytes are no instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undecodable {
    /// The bytes end too early.
    Truncated,
    /// #UD: invalid, or a prefix that it must not have.
    Invalid,
}

/// Decodes the instruction at `rip`.
pub fn decode(code: &Code, rip: u64, size: CodeSize) -> Result<Instruction, Undecodable> {
    let mut decoder = Decoder::with_ip(size.bits(), code.as_slice(), rip, DecoderOptions::NONE);
    let instruction = decoder.decode();
    if !instruction.is_invalid() {
        return Ok(instruction);
    }
    match decoder.last_error() {
        DecoderError::NoMoreBytes => Err(Undecodable::Truncated),
        // Nothing but prefixes: the sixteenth byte would exceed the longest instruction.
        _ if code.len as usize == MAX_INSTRUCTION && code.as_slice().iter().all(|b| is_prefix(*b, size)) => {
            Err(Undecodable::Truncated)
        }
        _ => Err(Undecodable::Invalid),
    }
}

fn is_prefix(byte: u8, size: CodeSize) -> bool {
    matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3)
        || size == CodeSize::Bits64 && byte & 0xf0 == 0x40
}

#[derive(Clone, Copy)]
struct Entry {
    rip: u64,
    size: CodeSize,
    /// The instruction's bytes as a number, and which bits of it are the instruction's.
    code: u128,
    mask: u128,
    len: u8,
    instruction: Instruction,
}

const ENTRIES: usize = 32;

/// Decoded instructions by address, mode and bytes. The bytes are compared each time, so self-modifying code and changed
/// page tables need no invalidation.
pub struct DecodeCache {
    entries: [Option<Entry>; ENTRIES],
    /// Lookups that found their instruction.
    pub hits: u64,
    /// Lookups that had to decode.
    pub misses: u64,
}

impl Default for DecodeCache {
    fn default() -> Self {
        Self {
            entries: [None; ENTRIES],
            hits: 0,
            misses: 0,
        }
    }
}

impl DecodeCache {
    /// The instruction at `rip` whose bytes start `code`.
    pub fn get(&mut self, code: &Code, rip: u64, size: CodeSize) -> Result<&Instruction, Undecodable> {
        let slot = (rip ^ rip >> 5) as usize % ENTRIES;
        let number = u128::from_le_bytes(code.bytes);
        let hit = self.entries[slot]
            .as_ref()
            .is_some_and(|e| e.rip == rip && e.size == size && e.len <= code.len && (number ^ e.code) & e.mask == 0);
        if hit {
            self.hits += 1;
        } else {
            self.misses += 1;
            let instruction = decode(code, rip, size)?;
            let len = instruction.len() as u8;
            let mask = u128::MAX >> (128 - 8 * u32::from(len));
            self.entries[slot] = Some(Entry {
                rip,
                size,
                code: number,
                mask,
                len,
                instruction,
            });
        }
        match &self.entries[slot] {
            Some(e) => Ok(&e.instruction),
            None => Err(Undecodable::Invalid),
        }
    }
}
