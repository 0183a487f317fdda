// SPDX-License-Identifier: MIT OR Apache-2.0
//! What does the guest's fault find? A walk of the sptes, and what it means for this access.

use crate::Mmu;
use crate::spte::{Leaf, Spte, SpteKind, Writable};
use crate::stage2::{Stage2, TableLevel};
use crate::table::{SptePlace, TableId};
use umbra_mmu_abi::{Access, Gfn};

/// The tables from the root down to where the walk ended.
#[derive(Clone, Copy, Debug)]
pub struct Walk {
    /// By level, the root last; those below `level` mean nothing.
    tables: [TableId; 4],
    /// Level of the last table.
    pub level: TableLevel,
    /// The spte at which the walk ended: it points at no table.
    pub place: SptePlace,
    /// What is in it.
    pub spte: Spte,
}

impl Walk {
    /// The table of `level` on the way, if the walk came so far.
    pub fn table(&self, level: TableLevel) -> Option<TableId> {
        (level >= self.level).then(|| self.tables[level as usize - 1])
    }
}

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Nothing, or nothing valid: the slow path.
    Miss,
    /// A valid MMIO spte.
    MmioCached,
    /// A leaf that allows the access: somebody else fixed it, or hardware has forgotten it.
    Spurious,
    /// A write to a leaf of a read-only slot.
    ReadOnlyWrite,
    /// A leaf that may become writable, or present again.
    Restore(Leaf),
}

impl<S: Stage2> Mmu<S> {
    /// Walks the current tables to the spte that translates `gfn`.
    #[inline]
    pub(crate) fn walk(&self, gfn: Gfn) -> Walk {
        let mut tables = [self.root; 4];
        let mut level = TableLevel::Pml4;
        let mut table = self.root;
        loop {
            tables[level as usize - 1] = table;
            let place = self.tables.place(table, level, gfn);
            let spte = self.tables.read(place);
            match (level.below(), spte.peek_table()) {
                (Some(below), Some(next)) => (level, table) = (below, next),
                _ => {
                    return Walk {
                        tables,
                        level,
                        place,
                        spte,
                    };
                }
            }
        }
    }

    /// What the spte at the end of the walk means for `access`.
    pub(crate) fn classify(&mut self, walk: &Walk, gfn: Gfn, access: Access) -> Class {
        if walk.spte.is_empty() {
            return Class::Miss;
        }
        let kind = self.tables.kind(walk.place);
        match kind {
            SpteKind::Empty => Class::Miss,
            SpteKind::Table(id) => panic!("the walk for {gfn} ended at table {id:?}"),
            SpteKind::Mmio(_) => match self.check_mmio(kind, gfn) {
                crate::mmio::MmioCheck::Emulate => Class::MmioCached,
                crate::mmio::MmioCheck::Invalid => Class::Miss,
                crate::mmio::MmioCheck::Retry => Class::Spurious,
                crate::mmio::MmioCheck::Bug => panic!("the MMIO spte at {gfn} is for another frame: {kind:?}"),
            },
            SpteKind::AccessTracked(leaf) => Class::Restore(leaf),
            SpteKind::Leaf(leaf) => match (access, leaf.writable) {
                (Access::Read | Access::Fetch, _) | (Access::Write, Writable::Now) => Class::Spurious,
                (Access::Write, Writable::HostReadOnly) => Class::ReadOnlyWrite,
                (Access::Write, Writable::Protected | Writable::Restorable) => Class::Restore(leaf),
            },
        }
    }
}
