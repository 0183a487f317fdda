// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who uses the memory, and what may they touch? The MMU its tables and the guest's memory; a processor the tables.

use super::memory::{HostFrame, SimMemory, Words, compare_exchange_entry, read_entry, update};
use super::walk::Memory;
use crate::stage2::{Frame, GpteSize, GuestRam, TableWords};
use crate::table::TableId;
use alloc::sync::Arc;

/// The memory as the MMU's tables.
#[derive(Clone, Debug)]
pub struct SimWords(pub Arc<SimMemory>);

impl TableWords for SimWords {
    fn words(&self, table: TableId) -> &Words {
        self.0.table(table)
    }
    fn capacity(&self) -> usize {
        self.0.tables()
    }
}

/// The memory as the MMU reads and changes the guest's tables.
#[derive(Clone, Debug)]
pub struct SimRam(pub Arc<SimMemory>);

impl GuestRam for SimRam {
    fn read(&self, frame: Frame, offset: u16, size: GpteSize) -> u64 {
        read_entry(self.0.ram(frame), offset, size)
    }

    fn compare_exchange(&self, frame: Frame, offset: u16, size: GpteSize, old: u64, new: u64) -> Result<(), u64> {
        compare_exchange_entry(self.0.ram(frame), offset, size, old, new)?;
        self.0.mark_written(frame);
        Ok(())
    }

    fn write(&self, frame: Frame, offset: u16, bytes: &[u8]) {
        let words = self.0.ram(frame);
        for (at, chunk) in pieces(offset, bytes) {
            let shift = at as u32 % 8 * 8;
            let mut value = 0;
            let mut mask = 0;
            for (index, byte) in chunk.iter().enumerate() {
                value |= (*byte as u64) << (shift + index as u32 * 8);
                mask |= 0xff << (shift + index as u32 * 8);
            }
            update(words, at & !7, GpteSize::B8, |now| Ok(now & !mask | value))
                .expect("a write does not look at what is there");
        }
        self.0.mark_written(frame);
    }
}

/// Bytes at `offset`, cut at each multiple of 8.
fn pieces(offset: u16, bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut at = offset;
    let mut rest = bytes;
    core::iter::from_fn(move || {
        let room = 8 - at as usize % 8;
        let (piece, after) = rest.split_at(room.min(rest.len()));
        rest = after;
        let place = at;
        at += piece.len() as u16;
        (!piece.is_empty()).then_some((place, piece))
    })
}

/// Tables in host memory, as a processor walks them that has been given their root.
///
/// Reading or changing what is no table panics: a processor has been led out of the tables, and could be led anywhere.
pub struct HostTables<'a>(pub &'a SimMemory);

impl HostTables<'_> {
    fn words(&self, address: u64) -> &Words {
        match self.0.at(address >> 12) {
            HostFrame::Table(id) => self.0.table(id),
            other @ (HostFrame::Ram(_) | HostFrame::Nothing) => {
                panic!("the processor walks {other:?} at {address:#x}, which is no table of the MMU")
            }
        }
    }
}

impl Memory for HostTables<'_> {
    type Refused = core::convert::Infallible;

    fn read(&mut self, address: u64, size: GpteSize) -> Result<u64, Self::Refused> {
        Ok(read_entry(self.words(address), (address & 4095) as u16, size))
    }

    fn compare_exchange(&mut self, address: u64, size: GpteSize, old: u64, new: u64) -> Result<bool, Self::Refused> {
        let words = self.words(address);
        Ok(compare_exchange_entry(words, (address & 4095) as u16, size, old, new).is_ok())
    }
}
