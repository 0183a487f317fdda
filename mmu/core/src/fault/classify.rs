// SPDX-License-Identifier: MIT OR Apache-2.0
//! What does the guest's fault find? A walk of the sptes, and what it means for this access.

use crate::Mmu;
use crate::generation::Stamp;
use crate::mmio::MmioCheck;
use crate::slots::GFN_LIMIT;
use crate::spte::{Format, Leaf, Spte, SpteKind, Writable};
use crate::stage2::{Stage2, TableLevel};
use crate::sync::atomic::Ordering;
use crate::table::{ENTRIES, SptePlace, Table, TableId};
use umbra_mmu_abi::{Access, Gfn, Mmio};

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

/// The table in which a walk ended: the next one mostly ends there too (KVM has no such thing: its walk begins at the top
/// each time).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Near {
    table: TableId,
    level: TableLevel,
    /// log2 of the frames under one entry.
    shift: u32,
    /// The first gfn that it translates.
    first: Gfn,
}

impl Near {
    /// No table: this one would begin beyond every gfn.
    pub(crate) const NOWHERE: Self = Self {
        table: TableId::from_raw(0),
        level: TableLevel::Pt,
        shift: 0,
        first: Gfn::new(1 << 63),
    };

    /// The entry for `gfn`, if the table has one.
    #[inline(always)]
    fn place(&self, gfn: Gfn) -> Option<SptePlace> {
        let index = gfn.raw().wrapping_sub(self.first.raw()) >> self.shift;
        self.at(index)
    }

    /// The same, if the table is one of the lowest level.
    #[inline(always)]
    fn lowest_place(&self, gfn: Gfn) -> Option<SptePlace> {
        let index = gfn.raw().wrapping_sub(self.first.raw());
        self.at(index).filter(|_| self.level == TableLevel::Pt)
    }

    #[inline(always)]
    fn at(&self, index: u64) -> Option<SptePlace> {
        let table = self.table;
        (index < ENTRIES as u64).then_some(SptePlace {
            table,
            index: index as u16,
        })
    }
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

    /// Where the walk may end, by the table in which the last one of this vCPU did. [`Mmu::is_near_current`] says whether it
    /// does. `None`: no table translates such a gfn.
    #[inline(always)]
    pub(super) fn walk_near(&self, near: &mut Near, gfn: Gfn) -> Option<Walk> {
        if let Some(place) = near.place(gfn) {
            let spte = self.tables.read(place);
            if spte.peek_table(Format::Ept).is_none() {
                let level = near.level;
                return Some(Walk { level, place, spte });
            }
        }
        if gfn.raw() >= GFN_LIMIT {
            return None;
        }
        self.seek(near, gfn);
        let index = (gfn.raw() >> near.shift) as u16 % ENTRIES as u16;
        let table = near.table;
        let place = SptePlace { table, index };
        Some(Walk {
            level: near.level,
            place,
            spte: self.tables.read(place),
        })
    }

    /// Whether the walk from the root ends in this table, too. The caller is inside a walk, or holds mmu_lock.
    ///
    /// A table that hardware has is in a tree, and of the current generation it is in the current tree, where the walk from
    /// the root finds it for what it was made for. It is not used for anything else before mmu_lock is left; nor before the
    /// walk ends:
    /// ```text
    /// this walk                        who frees the table, and who takes it again
    /// ---------                        --------------------------------------------
    /// enter, fence                     hardware's table goes, and then
    /// hardware's table?                retire: its epoch; fence: is everybody out who entered before?
    /// made for this gfn?               made for another gfn, and then hardware's table
    /// ```
    /// Whoever is not waited for by the right side sees that hardware's table is gone; or that of the next use, and then
    /// which gfn that is for.
    #[inline(always)]
    pub(super) fn is_near_current(&self, near: &Near, table: &Table) -> bool {
        let linked = table.handle().is_some();
        linked
            && table.translates(near.level, near.first)
            && table.valid_gen() == self.valid_gen.load(Ordering::Acquire)
    }

    /// An MMIO spte in the table where the last walk of this vCPU ended. Whether that still is the table for `gfn` does not
    /// matter: the word names its frame and the state of the slots, and is true wherever it stands.
    // REQ: GEN-4
    #[inline(always)]
    pub(super) fn near_mmio(&self, near: &Near, gfn: Gfn, stamp: Stamp) -> Option<Mmio> {
        let spte = self.tables.read(near.lowest_place(gfn)?);
        match spte.is_empty() {
            true => None,
            false => self.fresh_mmio(spte, gfn, stamp),
        }
    }

    /// Walks from the root.
    #[cold]
    #[inline(never)]
    fn seek(&self, near: &mut Near, gfn: Gfn) {
        let walk = self.walk(gfn);
        *near = Near {
            table: walk.place.table,
            level: walk.level,
            shift: walk.level.entry_shift(),
            first: walk.level.base(gfn),
        };
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
