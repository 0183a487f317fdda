// SPDX-License-Identifier: MIT OR Apache-2.0
//! How does the MMU use the memory? Its tables, and the guest's memory where the guest's tables are.

use super::memory::{SimMemory, Words, update};
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
        self.0.load(frame, offset, size)
    }

    fn compare_exchange(&self, frame: Frame, offset: u16, size: GpteSize, old: u64, new: u64) -> Result<(), u64> {
        self.0.compare_exchange(frame, offset, size, old, new)
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
