// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which sptes are made before they are asked for? The neighbours of one that was: a walk that is saved later.
//!
//! Only from entries whose accessed bit is set: hardware that walks an spte sets no bit in the guest's entry, and the guest
//! would never learn of the access. And only what needs nothing else to change: no table becomes unsync for it.

use super::Shadow;
use super::fetch::Wish;
use crate::host::HostView;
use crate::slots::SlotState;
use crate::stage2::Stage2;
use crate::table::SptePlace;
use umbra_mmu_abi::{Gfn, PageLevel};

/// Sptes of an aligned group that are looked at together: one cache line of the guest's table.
const GROUP: u16 = 8;

impl<S: Stage2> Shadow<'_, S> {
    /// Fills the empty neighbours of `place`, an spte of level 1.
    // REQ: PF-2
    pub(super) fn prefetch(&mut self, place: SptePlace) {
        let first = place.index / GROUP * GROUP;
        for index in (first..first + GROUP).filter(|index| *index != place.index) {
            self.prefetch_one(SptePlace { index, ..place });
        }
    }

    /// Makes the spte of one entry of level 1, if it is empty and that can be done.
    pub(super) fn prefetch_one(&mut self, place: SptePlace) {
        if !self.tables().read(place).is_empty() || self.reserve.count() < crate::pte_list::ENTRIES_PER_ADD {
            return;
        }
        let role = self.tables().get(place.table).role();
        let (gfn, access) = match self.source(place.table) {
            Some(source) => {
                let gpte = self.entry(&source, place.index);
                if !source.format.is_used(1, gpte) {
                    return;
                }
                (
                    source.format.page(1, gpte),
                    source.format.leaf_access(role.access(), gpte),
                )
            }
            None if role.direct() => (self.tables().gfn_of(place), role.access()),
            None => return,
        };
        self.prefetch_leaf(place, gfn, access);
    }

    fn prefetch_leaf(&mut self, place: SptePlace, gfn: Gfn, access: crate::role::PteAccess) {
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
            self.set_leaf(place, slot, host, PageLevel::K4, gfn, access, Wish::Prefetch);
        }
    }
}
