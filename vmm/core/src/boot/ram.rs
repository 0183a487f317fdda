// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which guest RAM is taken by what? Everything a loader places is claimed here first, so that nothing overlaps.

use super::{LoadError, error::Part};
use crate::guest_mem::RamRegion;
use alloc::vec::Vec;

/// RAM below holds interrupt vectors and firmware data.
pub const FIRMWARE_DATA_END: u64 = 0x1000;
/// The extended BIOS data area; conventional memory ends here.
pub const EBDA: u64 = 0x9_fc00;
/// End of the EBDA and start of the VGA hole.
pub const VGA_HOLE: u64 = 0xa_0000;
/// Where expansion cards have their ROMs.
pub const EXPANSION_ROM: u64 = 0xc_0000;
/// Firmware ROM.
pub const ROM: u64 = 0xe_0000;
/// End of the ROM and start of extended memory.
pub const HIGH_MEMORY: u64 = 0x10_0000;
/// RAM cannot lie above: the platform's registers are there.
const HIGHEST_RAM: u64 = 0xc000_0000;

const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;

/// Half-open range of guest-physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    base: u64,
    end: u64,
}

/// What the guest is told of a range of memory; numbered as E820 does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapKind {
    /// Usable.
    Ram = 1,
    /// Not usable.
    Reserved = 2,
}

/// An entry of the memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapEntry {
    /// First address.
    pub base: u64,
    /// Length in bytes.
    pub len: u64,
    /// Its use.
    pub kind: MapKind,
}

/// Which end of the free memory to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    Bottom,
    Top,
}

/// Guest RAM and what is placed in it.
pub struct Ram {
    /// RAM that kernels may use, ascending, adjacent regions joined; without the PC's firmware area.
    usable: Vec<Range>,
    /// Does anything (RAM or ROM) back all of `ROM..HIGH_MEMORY`, `EXPANSION_ROM..ROM`, the EBDA?
    has_rom: bool,
    has_expansion_rom: bool,
    has_ebda: bool,
    claims: Vec<(Part, Range)>,
    /// Bytes that will be placed after the kernel; counted when memory is too small.
    to_come: u64,
}

impl Ram {
    /// The RAM of a guest; `to_come` bytes of initrd and modules will be placed after the kernel.
    pub fn new(regions: &[RamRegion], to_come: u64) -> Self {
        let range = |region: &RamRegion| {
            let base = region.base.raw();
            Range {
                base,
                end: base.saturating_add(region.len),
            }
        };
        let joined = join(regions.iter().filter(|region| !region.readonly).map(range));
        let backed = join(regions.iter().map(range));
        let covers = |base, end| backed.iter().any(|r| r.base <= base && end <= r.end);
        let mut usable = Vec::new();
        for r in joined {
            usable.extend(non_empty(r.base, r.end.min(EBDA)));
            usable.extend(non_empty(r.base.max(HIGH_MEMORY), r.end));
        }
        let mut ram = Self {
            usable,
            has_rom: covers(ROM, HIGH_MEMORY),
            has_expansion_rom: covers(EXPANSION_ROM, ROM),
            has_ebda: covers(EBDA, VGA_HOLE),
            claims: Vec::new(),
            to_come,
        };
        ram.claims.push((
            Part::FirmwareData,
            Range {
                base: 0,
                end: FIRMWARE_DATA_END,
            },
        ));
        ram
    }

    /// Where RAM ends.
    pub fn top(&self) -> u64 {
        self.usable.last().map_or(0, |r| r.end)
    }

    /// Bytes of RAM from 1 MiB up, without a hole.
    pub fn contiguous_above_1m(&self) -> u64 {
        self.usable
            .iter()
            .find(|r| r.base == HIGH_MEMORY)
            .map_or(0, |r| r.end - r.base)
    }

    /// RAM backs the interrupt vectors and the BIOS data area.
    pub fn has_firmware_data(&self) -> bool {
        self.usable
            .first()
            .is_some_and(|r| r.base == 0 && r.end >= FIRMWARE_DATA_END)
    }

    /// Something backs the ROM area.
    pub fn has_rom(&self) -> bool {
        self.has_rom
    }

    /// Something backs the expansion ROM area.
    pub fn has_expansion_rom(&self) -> bool {
        self.has_expansion_rom
    }

    /// RAM backs the extended BIOS data area.
    pub fn has_ebda(&self) -> bool {
        self.has_ebda
    }

    /// Takes memory that must be at `base`.
    pub fn claim(&mut self, part: Part, base: u64, len: u64) -> Result<(), LoadError> {
        let outside = LoadError::OutsideRam { part, base, len };
        let end = base.checked_add(len).ok_or(outside)?;
        if !self.usable.iter().any(|r| r.base <= base && end <= r.end) {
            // More RAM helps if the range starts in RAM or above it, below the platform's registers.
            let more_ram_helps = base >= HIGH_MEMORY && end > self.top() && end <= HIGHEST_RAM;
            return Err(if more_ram_helps {
                self.too_little(part, end, 0)
            } else {
                outside
            });
        }
        let taken = self.claims.iter().find(|(_, r)| r.base < end && base < r.end);
        if let Some(&(with, _)) = taken {
            return Err(LoadError::Overlap { part, with, base, len });
        }
        self.claims.push((part, Range { base, end }));
        Ok(())
    }

    /// Takes memory in the first 640 KiB.
    pub fn place_low(&mut self, part: Part, len: u64) -> Result<u64, LoadError> {
        self.find(From::Bottom, len, 0, EBDA)
            .map(|base| self.take(part, base, len))
            .ok_or(LoadError::NoRoomBelow { part, len, limit: EBDA })
    }

    /// Takes the lowest pages behind everything that was placed above 1 MiB so far.
    pub fn place_behind(&mut self, part: Part, len: u64) -> Result<u64, LoadError> {
        let from = self.highest_claim().max(HIGH_MEMORY);
        self.find(From::Bottom, len, from, self.top())
            .map(|base| self.take(part, base, len))
            .ok_or_else(|| self.too_little(part, from, len))
    }

    /// Takes the highest pages below `limit`.
    pub fn place_top(&mut self, part: Part, len: u64, limit: u64) -> Result<u64, LoadError> {
        if let Some(base) = self.find(From::Top, len, HIGH_MEMORY, limit) {
            return Ok(self.take(part, base, len));
        }
        let from = self.highest_claim().max(HIGH_MEMORY);
        let end = from.saturating_add(len);
        if end > limit {
            Err(LoadError::NoRoomBelow { part, len, limit })
        } else {
            Err(self.too_little(part, from, len))
        }
    }

    /// The memory map that the guest sees.
    pub fn map(&self) -> Vec<MapEntry> {
        let entry = |range: Range, kind| MapEntry {
            base: range.base,
            len: range.end - range.base,
            kind,
        };
        let mut map: Vec<MapEntry> = self.usable.iter().map(|&r| entry(r, MapKind::Ram)).collect();
        if self.has_ebda {
            map.push(entry(
                Range {
                    base: EBDA,
                    end: VGA_HOLE,
                },
                MapKind::Reserved,
            ));
        }
        map.push(entry(
            Range {
                base: ROM,
                end: HIGH_MEMORY,
            },
            MapKind::Reserved,
        ));
        map.sort_by_key(|entry| entry.base);
        map
    }

    fn take(&mut self, part: Part, base: u64, len: u64) -> u64 {
        self.claims.push((part, Range { base, end: base + len }));
        base
    }

    fn highest_claim(&self) -> u64 {
        self.claims
            .iter()
            .map(|(_, r)| r.end)
            .max()
            .unwrap_or(0)
            .next_multiple_of(PAGE)
    }

    fn too_little(&self, part: Part, from: u64, len: u64) -> LoadError {
        let more = self.to_come.max(len);
        let need = from
            .saturating_add(more)
            .checked_next_multiple_of(MIB)
            .unwrap_or(u64::MAX);
        LoadError::TooLittleMemory {
            part,
            need,
            have: self.top(),
        }
    }

    /// The lowest or highest page-aligned free range of `len` bytes in `low..high`.
    fn find(&self, from: From, len: u64, low: u64, high: u64) -> Option<u64> {
        let mut claims: Vec<Range> = self.claims.iter().map(|&(_, r)| r).collect();
        claims.sort_by_key(|r| r.base);
        let mut found = None;
        for region in &self.usable {
            let end = region.end.min(high);
            let mut at = region.base.max(low);
            // Gaps between claims, then the rest of the region.
            let stops = claims.iter().copied().chain([Range { base: end, end }]);
            for claim in stops {
                if let Some(base) = fit(from, at, claim.base.min(end), len) {
                    found = Some(base);
                    if from == From::Bottom {
                        return found;
                    }
                }
                at = at.max(claim.end);
            }
        }
        found
    }
}

fn fit(from: From, start: u64, end: u64, len: u64) -> Option<u64> {
    let base = match from {
        From::Bottom => start.checked_next_multiple_of(PAGE)?,
        From::Top => end.checked_sub(len)? & !(PAGE - 1),
    };
    (base >= start && base.checked_add(len)? <= end).then_some(base)
}

fn non_empty(base: u64, end: u64) -> Option<Range> {
    (base < end).then_some(Range { base, end })
}

/// Joins adjacent ranges of an ascending sequence.
fn join(ranges: impl Iterator<Item = Range>) -> Vec<Range> {
    let mut joined: Vec<Range> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if last.end == range.base => last.end = range.end,
            Some(_) | None => joined.push(range),
        }
    }
    joined
}

#[cfg(test)]
#[path = "ram_tests.rs"]
mod tests;
