// SPDX-License-Identifier: MIT OR Apache-2.0
//! What does the guest's fault find? A walk of the sptes, and what it means for this access.

use crate::Mmu;
use crate::spte::{Format, Leaf, Spte, SpteKind, Writable};
use crate::stage2::{Stage2, TableLevel};
use crate::table::{SptePlace, TableId};
use umbra_mmu_abi::{Access, Gfn};

/// Where the walk from the root ended.
#[derive(Clone, Copy, Debug)]
pub struct Walk {
    /// Level of the last table.
    pub level: TableLevel,
    /// The spte at which the walk ended: it points at no table.
    pub place: SptePlace,
    /// What is in it.
    pub spte: Spte,
}

const LEVELS: [TableLevel; 4] = [TableLevel::Pt, TableLevel::Pd, TableLevel::Pdpt, TableLevel::Pml4];

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
        let mut table = self.root;
        // Index of the level, and the position of its index in the gfn.
        let (mut at, mut shift) = (3, TableLevel::Pml4.entry_shift());
        loop {
            let place = SptePlace {
                table,
                index: (gfn.raw() >> shift) as u16 & 0x1ff,
            };
            let spte = self.tables.read(place);
            match spte.peek_table(Format::Ept) {
                Some(next) if at > 0 => (table, at, shift) = (next, at - 1, shift - 9),
                Some(_) | None => {
                    return Walk {
                        level: LEVELS[at],
                        place,
                        spte,
                    };
                }
            }
        }
    }

    /// The table of `level` on the way of a walk, if it came so far.
    #[inline]
    pub(crate) fn on_the_way(&self, walk: &Walk, level: TableLevel) -> Option<TableId> {
        let mut table = walk.place.table;
        let mut at = walk.level as u8;
        if at > level as u8 {
            return None;
        }
        while at < level as u8 {
            table = self
                .tables
                .get(table)
                .parent()
                .expect("only the root has no parent")
                .table;
            at += 1;
        }
        Some(table)
    }

    /// What the spte at the end of the walk means for `access`.
    #[inline(never)]
    pub(crate) fn classify(&mut self, walk: &Walk, gfn: Gfn, access: Access) -> Class {
        if walk.spte.is_empty() {
            return Class::Miss;
        }
        let kind = match walk.spte.peek(Format::Ept, walk.level as u8) {
            Ok(kind) => kind,
            Err(bad) => panic!("{:?} holds {:#x}, which is no spte", walk.place, bad.0),
        };
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
