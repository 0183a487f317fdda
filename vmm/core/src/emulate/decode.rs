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
        _ if code.len as usize == MAX_INSTRUCTION && code.bytes.iter().all(|b| is_prefix(*b, size)) => {
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
    /// Exactly the instruction's bytes.
    code: Code,
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
        let hit = self.entries[slot]
            .as_ref()
            .is_some_and(|e| e.rip == rip && e.size == size && e.code.len <= code.len && same_prefix(&e.code, code));
        if hit {
            self.hits += 1;
        } else {
            self.misses += 1;
            let instruction = decode(code, rip, size)?;
            let mut own = *code;
            own.len = instruction.len() as u8;
            own.bytes[own.len as usize..].fill(0);
            self.entries[slot] = Some(Entry {
                rip,
                size,
                code: own,
                instruction,
            });
        }
        match &self.entries[slot] {
            Some(e) => Ok(&e.instruction),
            None => Err(Undecodable::Invalid),
        }
    }
}

/// Does `code` start with all of `own`?
#[inline]
fn same_prefix(own: &Code, code: &Code) -> bool {
    // Two overlapping or padded 64-bit words each: instructions are at most 15 bytes.
    let word = |c: &Code, at: usize| {
        let mut w = [0; 8];
        w[..c.bytes.len().min(at + 8) - at].copy_from_slice(&c.bytes[at..c.bytes.len().min(at + 8)]);
        u64::from_le_bytes(w)
    };
    let len = u32::from(own.len);
    let low = if len >= 8 { u64::MAX } else { (1 << (8 * len)) - 1 };
    let high = if len > 8 { u64::MAX >> (64 - 8 * (len - 8)) } else { 0 };
    (word(own, 0) ^ word(code, 0)) & low == 0 && (word(own, 8) ^ word(code, 8)) & high == 0
}
