// SPDX-License-Identifier: MIT OR Apache-2.0
//! What does the guest's fault find? A walk of the sptes, and what it means for this access.

use crate::Mmu;
use crate::mmio::MmioCheck;
use crate::spte::{Format, Leaf, Spte, SpteKind, Writable};
use crate::stage2::{Stage2, TableLevel};
use crate::table::SptePlace;
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

pub(super) const LEVELS: [TableLevel; 4] = [TableLevel::Pt, TableLevel::Pd, TableLevel::Pdpt, TableLevel::Pml4];

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Nothing, or nothing valid, or a leaf that takes the slow path to allow the access.
    Slow,
    /// A leaf that allows the access: somebody else fixed it, or hardware has forgotten it.
    Spurious,
    /// A write to a leaf of a read-only slot.
    ReadOnlyWrite,
    /// A leaf whose W may be set again.
    RestoreWrite(Leaf),
    /// A leaf that is not present, to see this access.
    RestoreAccess(Leaf),
}

impl<S: Stage2> Mmu<S> {
    /// Walks the current tables to the spte that translates `gfn`. The tables stay what they are while the caller is
    /// [inside](crate::sync::Walking), or holds mmu_lock; the words may change at any time.
    #[inline]
    pub(crate) fn walk(&self, gfn: Gfn) -> Walk {
        let mut table = self.root();
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

    /// What the spte at the end of the walk means for `access`.
    #[inline(never)]
    pub(crate) fn classify(&self, walk: &Walk, gfn: Gfn, access: Access) -> Class {
        let kind = match walk.spte.peek(Format::Ept, walk.level as u8) {
            Ok(kind) => kind,
            Err(bad) => panic!("{:?} holds {:#x}, which is no spte", walk.place, bad.0),
        };
        match kind {
            SpteKind::Empty => Class::Slow,
            SpteKind::Table(id) => panic!("the walk for {gfn} ended at table {id:?}"),
            SpteKind::Mmio(_) => match self.check_mmio(kind, gfn) {
                // It was stale when the walk looked at it, or the slots have just come to rest.
                MmioCheck::Emulate | MmioCheck::Invalid => Class::Slow,
                MmioCheck::Retry => Class::Spurious,
                MmioCheck::Bug => panic!("the MMIO spte at {gfn} is for another frame: {kind:?}"),
            },
            SpteKind::AccessTracked(leaf) => Class::RestoreAccess(leaf),
            SpteKind::Leaf(leaf) => match (access, leaf.writable) {
                (Access::Read | Access::Fetch, _) | (Access::Write, Writable::Now) => Class::Spurious,
                (Access::Write, Writable::HostReadOnly) => Class::ReadOnlyWrite,
                (Access::Write, Writable::Restorable) => Class::RestoreWrite(leaf),
                (Access::Write, Writable::Protected) => Class::Slow,
            },
        }
    }
}
