// SPDX-License-Identifier: MIT OR Apache-2.0
//! When may a shadow page be older than the guest's table? While it is unsync: as a TLB may be, until the guest flushes.
//!
//! A guest table that is shadowed is read-only to the guest ("synchronised"), so that every write to it is seen. For leaf
//! tables there is the other way: the page is marked unsync and the guest writes as it likes; the page catches up when the
//! guest says that it wants its writes to be seen (cr3 load, TLB flush, invlpg). Upper tables stay synchronised: a stale
//! entry there would hide the unsync pages below.
//!
//! `unsync_children` and the bitmap of each page lead from a root to every unsync page below it: a bit that is set may be
//! of an spte without unsync pages, never the other way round.
//!
//! Whoever makes a page unsync holds mmu_lock for writing, and so does whoever looks: KVM's mmu_unsync_pages_lock is for
//! faults under the read side, of which none maps a guest table here.

use super::Shadow;
use crate::slots::Slot;
use crate::stage2::Stage2;
use crate::table::{SptePlace, TableId};
use umbra_mmu_abi::Gfn;

/// What may be done about shadow pages of a frame that is to be mapped writable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unsync {
    /// Those of level 1 become unsync.
    Allowed,
    /// Nothing: no access wants the spte.
    Unwanted,
    /// Nothing, and pages that are unsync count as well: sptes are being compared with the guest's entries, and those
    /// pages may be the next to be synchronised.
    Synchronising,
}

/// The frame must stay read-only to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MustProtect;

impl<S: Stage2> Shadow<'_, S> {
    /// The indirect shadow pages of a guest table: in any role and under each gfn of its frame, of this generation or an
    /// earlier one that a vCPU may still walk.
    // REQ: MEM-2
    pub(super) fn pages_of(&self, gfn: Gfn) -> impl Iterator<Item = TableId> + '_ {
        self.slots.aliases(gfn).flat_map(move |gfn| {
            self.pages.same_hash(gfn).filter(move |id| {
                let table = self.tables().get(*id);
                table.gfn() == gfn && !table.role().direct()
            })
        })
    }

    /// Makes sure that the guest may write to `gfn`: nothing shadows it, or only leaf tables, which become unsync.
    ///
    /// # Errors
    /// It must not.
    // REQ: SP-6, PF-1 (h)
    #[inline(always)]
    pub(super) fn allow_writes(&mut self, slot: &Slot, gfn: Gfn, unsync: Unsync) -> Result<(), MustProtect> {
        // Every shadowed table counts against large pages around its gfn: one look for almost all frames.
        match !self.slots.shares_frames() && slot.data.large.allows(umbra_mmu_abi::PageLevel::M2, gfn) {
            true => Ok(()),
            false => self.allow_writes_beside_tables(gfn, unsync),
        }
    }

    #[inline(never)]
    fn allow_writes_beside_tables(&mut self, gfn: Gfn, unsync: Unsync) -> Result<(), MustProtect> {
        let mut synchronised = false;
        for id in self.pages_of(gfn) {
            if self.tables().get(id).role().level() > 1 {
                return Err(MustProtect);
            }
            synchronised |= unsync == Unsync::Synchronising || !self.pages.get(id).unsync;
        }
        match (synchronised, unsync) {
            (false, _) => Ok(()),
            (true, Unsync::Unwanted | Unsync::Synchronising) => Err(MustProtect),
            (true, Unsync::Allowed) => loop {
                let synchronised = self.pages_of(gfn).find(|id| !self.pages.get(*id).unsync);
                let Some(id) = synchronised else { break Ok(()) };
                self.unsync_page(id);
            },
        }
    }

    // REQ: SP-6
    fn unsync_page(&mut self, id: TableId) {
        debug_assert_eq!(
            self.tables().get(id).role().level(),
            1,
            "only leaf tables may be unsync"
        );
        self.pages.get_mut(id).unsync = true;
        self.mark_parents(id);
    }

    /// Every page from which `id` can be reached learns of it. A page that knew of another one has told its own parents.
    fn mark_parents(&mut self, id: TableId) {
        let table = self.tables().get(id);
        for place in table.parent_ptes().places(self.entries()) {
            self.mark_child(place);
        }
    }

    /// Through `place` an unsync page can be reached.
    pub(super) fn mark_child(&mut self, place: SptePlace) {
        if self.pages.get_mut(place.table).mark_child(place.index) {
            self.mark_parents(place.table);
        }
    }
}
