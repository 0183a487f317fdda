// SPDX-License-Identifier: MIT OR Apache-2.0
//! How is a guest run whose own tables hardware cannot walk? Shadow paging: tables made from the guest's, kept in step.
//!
//! | question                                         | file          |
//! |--------------------------------------------------|---------------|
//! | how does the guest translate just now?           | [`registers`] |
//! | what does a guest entry say?                     | [`gpte`]      |
//! | what do the guest's tables say to an access?     | [`walk`]      |
//! | which shadow pages are there?                    | [`pages`]     |
//! | how do root registers and their writes work?     | [`roots`]     |
//! | what does a fault find, in which order?          | [`fault`]     |
//! | what do most faults come down to?                | [`usual`]     |
//! | how does a fault extend the tables?              | [`fetch`]     |
//! | which sptes are made before they are asked for?  | [`prefetch`]  |
//! | when may a shadow page be older than its source? | [`unsync`]    |
//! | how does it catch up?                            | [`sync`]      |
//! | what if the guest writes to one of its tables?   | [`write`]     |
//! | how do shadow pages go away?                     | [`zap`]       |
//! | do all these agree?                              | [`audit`]     |
//!
//! Everything here changes sptes under mmu_lock, held for writing ([`Shadow`]); only the repair of a direct leaf, and the
//! look at an MMIO spte, go without it. Host-writable and MMU-writable are kept in the sptes as in EPT mode.

mod audit;
mod fault;
mod fetch;
pub mod gpte;
mod memory;
pub(crate) mod pages;
mod prefetch;
pub mod registers;
pub mod roots;
mod sync;
#[cfg(test)]
mod tests;
mod unsync;
mod usual;
pub mod walk;
pub mod write;
mod zap;

use crate::Mmu;
use crate::locks::MmuWrite;
use crate::pte_list::{PteEntries, PteReserve};
use crate::slots::{Slot, SlotTable};
use crate::spte::{Leaf, Spte, SpteKind, Writable};
use crate::stage2::{Stage2, Unflushed};
use crate::sync::atomic::Ordering;
use crate::table::{SptePlace, TableId, Tables};
use core::cell::Cell;
use pages::Pages;
use umbra_mmu_abi::{Gfn, PageLevel};

/// mmu_lock held for writing, to work on shadow pages.
///
/// What it takes away is flushed before mmu_lock is left, and before any table is used for something else: `removed`
/// counts what processors may still hold, `dead` are the tables that wait for it ([`Shadow::commit`]).
pub(crate) struct Shadow<'a, S: Stage2> {
    pub(crate) mmu: &'a Mmu<S>,
    pub(crate) slots: &'a SlotTable,
    pub(crate) pages: &'a mut Pages,
    pub(crate) held: &'a mut MmuWrite,
    pub(crate) reserve: &'a mut PteReserve,
    pub(crate) removed: Unflushed,
    pub(crate) dead: Option<TableId>,
    /// The slot that was looked up last: the next frame is most often in it too.
    pub(crate) last: Cell<Option<&'a Slot>>,
    /// The page in which the last leaf was put.
    pub(crate) leaf_page: TableId,
}

impl<'a, S: Stage2> Shadow<'a, S> {
    fn tables(&self) -> &'a Tables<S::Words> {
        &self.mmu.tables
    }

    fn entries(&self) -> &'a PteEntries {
        &self.mmu.pte_entries
    }

    /// The slot of a frame, also one that is going.
    #[inline]
    fn slot(&self, gfn: Gfn) -> Option<&'a Slot> {
        match self.last.get() {
            Some(slot) if slot.contains(gfn) => Some(slot),
            Some(_) | None => {
                let slot = self.slots.lookup(gfn)?;
                self.last.set(Some(slot));
                Some(slot)
            }
        }
    }

    /// What an spte says. Hardware may have set its A and D.
    fn kind(&self, place: SptePlace, spte: Spte) -> SpteKind {
        let level = self.tables().get(place.table).role().level();
        match spte.peek(self.tables().format(), level) {
            Ok(kind) => kind,
            Err(bad) => panic!("{place:?} holds {:#x}, which is no spte", bad.0),
        }
    }

    /// The gfn that an spte translates.
    // REQ: RM-2, SP-3
    fn gfn_of(&self, place: SptePlace) -> Gfn {
        match self.pages.gfns(place.table) {
            Some(gfns) => Gfn::new(gfns[place.index as usize]),
            None => self.tables().gfn_of(place),
        }
    }

    /// Takes away what is at a place: from its reverse map, or from the parents of the page that it points at.
    // REQ: DT-3, RM-1
    fn zap_spte(&mut self, place: SptePlace) {
        let old = self.tables().set(place, Spte::EMPTY);
        match self.kind(place, old) {
            SpteKind::Empty => {}
            // The processor keeps no translation that faults.
            SpteKind::Mmio(_) => {}
            SpteKind::Leaf(leaf) => {
                self.removed.and(Unflushed::removed(1));
                self.forget_leaf(place, leaf.level);
            }
            SpteKind::Table(child) => {
                self.restructured();
                self.removed.and(Unflushed::removed(1));
                self.tables().get(child).parent_ptes().remove(self.entries(), place);
                self.pages.get_mut(place.table).clear_child(place.index);
            }
            SpteKind::AccessTracked(leaf) => panic!("{place:?} is tracked without hardware's bits: {leaf:?}"),
        }
    }

    /// An spte does not point at its table any more, or a page is not to be used.
    fn restructured(&self) {
        self.mmu.structure.fetch_add(1, Ordering::Release);
    }

    fn forget_leaf(&mut self, place: SptePlace, level: PageLevel) {
        let gfn = self.gfn_of(place);
        let slot = self.slot(gfn).expect("a leaf lies in a slot");
        slot.data.remove(self.entries(), gfn, level, place);
        self.mmu.count_unmapped(level);
    }

    /// Takes W away from every spte that maps the frame of `gfn`, and the right to get it back without mmu_lock.
    // REQ: SP-8, MEM-2
    fn write_protect(&mut self, gfn: Gfn) {
        let slots = self.slots;
        for gfn in slots.aliases(gfn) {
            self.write_protect_gfn(gfn);
        }
    }

    fn write_protect_gfn(&mut self, gfn: Gfn) {
        let Some(slot) = self.slot(gfn) else { return };
        let (tables, entries) = (self.tables(), self.entries());
        for size in PageLevel::ALL {
            for place in slot.data.places(entries, gfn, size) {
                let old = tables.read(place);
                let SpteKind::Leaf(leaf) = self.kind(place, old) else {
                    panic!("{place:?} is in a reverse map and holds {old:?}")
                };
                match leaf.writable {
                    Writable::HostReadOnly | Writable::Protected => {}
                    Writable::Restorable | Writable::Now => self.change_leaf(
                        place,
                        Leaf {
                            writable: Writable::Protected,
                            ..leaf
                        },
                    ),
                }
            }
        }
    }

    /// Replaces a leaf by one of the same frame. A and D stay as the processor set them, up to this moment.
    // REQ: DT-3
    fn change_leaf(&mut self, place: SptePlace, new: Leaf) {
        let (tables, new) = (self.tables(), Spte::leaf(self.tables().format(), new));
        let mut old = tables.read(place);
        // The processor, or a fast fault, sets bits meanwhile.
        while let Err(now) = tables.compare_exchange(place, old, new.touched_like(old)) {
            old = now;
        }
        let SpteKind::Leaf(old) = self.kind(place, old) else {
            panic!("{place:?} is no leaf any more")
        };
        let SpteKind::Leaf(new) = self.kind(place, new) else {
            panic!("{place:?} becomes no leaf")
        };
        let fewer = !new.rights.contains(old.rights) || old.writable == Writable::Now && new.writable != Writable::Now;
        if fewer {
            self.removed.and(Unflushed::removed(1));
        }
    }
}
