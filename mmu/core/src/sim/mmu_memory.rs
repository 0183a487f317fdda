// SPDX-License-Identifier: MIT OR Apache-2.0
//! How does the MMU use the memory? Its tables, and the guest's memory where the guest's tables are.

use super::memory::{SimMemory, Words};
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
        self.0.store_bytes(frame, offset, bytes);
    }
}
