// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which sptes are made before they are asked for? The neighbours of one that was: a walk that is saved later.
//!
//! Only from entries whose accessed bit is set: hardware that walks an spte sets no bit in the guest's entry, and the guest
//! would never learn of the access. And only what needs nothing else to change: no table becomes unsync for it.

use super::Shadow;
use super::fetch::Wish;
use super::gpte::{ACCESSED, PRESENT};
use super::sync::Source;
use crate::host::HostView;
use crate::pte_list::ENTRIES_PER_ADD;
use crate::role::PteAccess;
use crate::slots::SlotState;
use crate::stage2::Stage2;
use crate::sync::atomic::Ordering;
use crate::table::{ENTRIES, SptePlace};
use umbra_mmu_abi::{Gfn, PageLevel};

/// Sptes of an aligned group that are looked at together: one cache line of the guest's table.
const GROUP: u16 = 8;

impl<S: Stage2> Shadow<'_, S> {
    /// Fills the empty neighbours of `place`, an spte of level 1.
    // REQ: PF-2
    #[inline]
    pub(super) fn prefetch(&mut self, source: Option<&Source>, place: SptePlace) {
        let first = place.index / GROUP * GROUP;
        let words = self.tables().words(place.table);
        for index in first..first + GROUP {
            if words[index as usize & (ENTRIES - 1)].load(Ordering::Relaxed) == 0 {
                self.prefetch_from(source, SptePlace { index, ..place });
            }
        }
    }

    /// Makes the spte of one entry of level 1, if it is empty and that can be done.
    pub(super) fn prefetch_one(&mut self, place: SptePlace) {
        let source = self.source(place.table);
        if self.tables().read(place).is_empty() {
            self.prefetch_from(source.as_ref(), place);
        }
    }

    #[inline]
    fn prefetch_from(&mut self, source: Option<&Source>, place: SptePlace) {
        match source {
            Some(source) => {
                let gpte = self.entry(source, place.index);
                // Most neighbours of a page that is used for the first time were not used either.
                if gpte & (PRESENT | ACCESSED) == PRESENT | ACCESSED {
                    self.prefetch_used(source, place, gpte);
                }
            }
            None => self.prefetch_direct(place),
        }
    }

    #[inline(never)]
    fn prefetch_used(&mut self, source: &Source, place: SptePlace, gpte: u64) {
        let format = self.pages.formats.of(source.role);
        if format.is_used(1, gpte) {
            let access = format.leaf_access(source.role.access(), gpte);
            self.prefetch_leaf(place, format.page(1, gpte), access);
        }
    }

    #[inline(never)]
    fn prefetch_direct(&mut self, place: SptePlace) {
        let role = self.tables().get(place.table).role();
        if role.direct() {
            self.prefetch_leaf(place, self.tables().gfn_of(place), role.access());
        }
    }

    fn prefetch_leaf(&mut self, place: SptePlace, gfn: Gfn, access: PteAccess) {
        if self.reserve.count() < ENTRIES_PER_ADD {
            return;
        }
        let Some(slot) = self.slot(gfn).filter(|slot| slot.state == SlotState::Live) else {
            return;
        };
        // Nobody has looked at the host's page of this gfn before mmu_lock was taken; one that is going is left alone.
        // REQ: PF-3
        if self.mmu.invalidate.must_retry(self.mmu.invalidate.seq(), gfn) {
            return;
        }
        if let HostView::Page(host) | HostView::Split(host) | HostView::Whole(host) =
            self.mmu.host.page(slot.frame_of(gfn))
        {
            self.set_leaf(place, slot, host.access, PageLevel::K4, gfn, access, Wish::Prefetch);
        }
    }
}
