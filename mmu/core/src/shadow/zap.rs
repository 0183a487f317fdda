// SPDX-License-Identifier: MIT OR Apache-2.0
//! How do shadow pages go away? Zapped: nothing leads to them; flushed: no processor is in them; then freed. And who goes
//! when there are too many.

use super::Shadow;
use super::pages::Pages;
use crate::locks::Held;
use crate::pte_list::PteReserve;
use crate::slots::Slot;
use crate::spte::Spte;
use crate::stage2::{Stage2, Unflushed};
use crate::sync::atomic::Ordering;
use crate::table::{ENTRIES, SptePlace, TableId};
use crate::trace::Event;
use crate::zap::Zap;
use crate::{Mmu, Requests};
use core::cell::Cell;
use umbra_mmu_abi::{Gfn, PageLevel};

/// Shadow pages that one fault can make at the most, roots included: four of a PAE guest, or a path of five levels with
/// the pages that split a large one.
pub(super) const TABLES_PER_FAULT: usize = 8;

/// Entries of lists that one fault can take: two for each page on its way, and for its leaf. Prefetching takes of what is
/// left.
pub(super) const ENTRIES_PER_FAULT: u32 = 14;

impl<S: Stage2> Shadow<'_, S> {
    /// Takes a page apart. It is never found again. A root that a vCPU has stays, as an empty table, until the vCPU has
    /// another one.
    // REQ: SP-5
    pub(crate) fn zap_page(&mut self, id: TableId) {
        let table = self.tables().get(id);
        let role = table.role();
        if role.invalid() {
            return;
        }
        self.restructured();
        for index in 0..ENTRIES as u16 {
            if table.used() == 0 {
                break;
            }
            let place = SptePlace { table: id, index };
            if !self.tables().read(place).is_empty() {
                self.zap_spte(place);
            }
        }
        while let Some(place) = table.parent_ptes().first(self.entries()) {
            self.tables().set(place, Spte::EMPTY);
            table.parent_ptes().remove(self.entries(), place);
            self.pages.get_mut(place.table).clear_child(place.index);
            self.removed.and(Unflushed::removed(1));
        }
        self.unaccount(id);
        self.pages.hide(id, table.gfn());
        self.pages.get_mut(id).unsync = false;
        table.set_role(role.with_invalid(true));
        match self.pages.get(id).root_count {
            0 => self.bury(id),
            _ => self.mmu.request_all(Requests::RELOAD_ROOTS),
        }
    }

    /// A zapped page that no root register names is freed with the next [`Shadow::commit`].
    pub(super) fn bury(&mut self, id: TableId) {
        self.pages.chain_dead(id, self.dead);
        self.dead = Some(id);
    }

    /// Processors forget what was taken away; then the tables of zapped pages are free.
    pub(crate) fn commit(&mut self) {
        if self.removed.count() > 0 {
            let removed = core::mem::replace(&mut self.removed, Unflushed::NOTHING);
            self.mmu.effects.lock(self.held).flush(removed);
        }
        while let Some(id) = self.dead {
            self.dead = self.pages.dead_after(id);
            self.pages.remove(id);
            self.tables().retire(self.held, id, self.mmu.walkers.retire());
        }
    }

    /// Makes sure that a fault cannot run out: zaps the least recently used pages until there is room. `false`: there is none
    /// yet, because walkers are still in tables that were freed; try again.
    // REQ: SP-11
    #[inline]
    pub(super) fn make_room(&mut self) -> bool {
        let entries = self.entries().top_up(self.reserve, ENTRIES_PER_FAULT).is_ok();
        let tables = self.tables().free_count() >= TABLES_PER_FAULT;
        let within = self.pages.count() + TABLES_PER_FAULT <= self.pages.limit;
        entries && tables && within || self.make_room_by_zapping()
    }

    #[cold]
    fn make_room_by_zapping(&mut self) -> bool {
        loop {
            let safe = self.mmu.walkers.safe_epoch();
            self.tables().reclaim(self.held, safe);
            let unused = self.tables().unused(self.held);
            let entries = self.entries().top_up(self.reserve, ENTRIES_PER_FAULT).is_ok();
            let tables = unused.free >= TABLES_PER_FAULT;
            let within = self.pages.count() + TABLES_PER_FAULT <= self.pages.limit;
            if entries && tables && within {
                return true;
            }
            // What waits for walkers is as good as free, and they are never long.
            let enough = entries && within && unused.free + unused.retired >= TABLES_PER_FAULT;
            if enough || !self.zap_oldest(TABLES_PER_FAULT) {
                // Roots in use may be more than the limit.
                return entries && tables;
            }
        }
    }

    /// Zaps up to `count` pages, the least recently used first and no root that a vCPU has; `false`: there is none.
    // REQ: SP-11
    pub(super) fn zap_oldest(&mut self, count: usize) -> bool {
        let mut zapped = 0;
        let mut at = self.pages.oldest();
        while let Some(id) = at.filter(|_| zapped < count) {
            at = self.pages.used_after(id);
            if self.pages.get(id).root_count == 0 && !self.tables().get(id).role().invalid() {
                self.zap_page(id);
                zapped += 1;
            }
        }
        self.commit();
        zapped > 0
    }

    /// Frees pages of earlier generations, `batch` at the most; `false`: there are none. They are the oldest ones: nobody
    /// uses a page of an earlier generation.
    // REQ: ZAP-2
    pub(crate) fn zap_obsolete(&mut self, batch: usize) -> bool {
        let mut zapped = 0;
        let mut at = self.pages.oldest();
        while let Some(id) = at.filter(|id| zapped < batch && self.mmu.is_obsolete(*id)) {
            at = self.pages.used_after(id);
            if !self.tables().get(id).role().invalid() {
                self.zap_page(id);
                zapped += 1;
            }
        }
        self.commit();
        zapped > 0
    }

    /// The next generation starts. O(1): each vCPU gets new roots, and nothing of the old generation is found.
    // REQ: ZAP-1, ZAP-3
    pub(crate) fn zap_all(&mut self) {
        let valid_gen = self.mmu.valid_gen() + 1;
        self.mmu.valid_gen.store(valid_gen, Ordering::Release);
        self.restructured();
        self.removed.and(Unflushed::removed(1));
        self.mmu.trace.event(|| Event::ZapAll { valid_gen });
    }

    /// Takes all sptes away that map `start..end` of a slot, by its reverse map, and the pages that shadow tables there:
    /// what they are made from cannot be looked at any more.
    // REQ: HOST-1, SP-12
    pub(crate) fn zap_range(&mut self, slot: &Slot, start: Gfn, end: Gfn) {
        self.zap_tables_in(slot, start, end);
        for size in PageLevel::ALL {
            let mut from = start;
            while let Some(gfn) = slot.data.next_mapped(size, from, end) {
                while let Some(place) = slot.data.first(self.entries(), gfn, size) {
                    self.zap_spte(place);
                }
                from = Gfn::new(gfn.raw() + size.frames());
            }
        }
    }

    /// Regions of 2M without shadowed tables are passed over by their count.
    fn zap_tables_in(&mut self, slot: &Slot, start: Gfn, end: Gfn) {
        let mut at = start;
        while at < end {
            if slot.data.large.allows(PageLevel::M2, at) {
                at = Gfn::new(at.align_down(PageLevel::M2).raw() + PageLevel::M2.frames());
                continue;
            }
            loop {
                let page = self.pages_of(at).next();
                let Some(id) = page else { break };
                self.zap_page(id);
            }
            at = Gfn::new(at.raw() + 1);
        }
    }

    /// All that there is of a slot goes: sptes that map it, and the pages that shadow tables in it.
    // REQ: MEM-6, SP-12
    pub(crate) fn zap_slot(&mut self, slot: &Slot) {
        self.zap_range(slot, slot.base, slot.end());
        while let Some(id) = self.pages.any_in_slot(slot.id) {
            self.zap_page(id);
        }
        let mut stage2 = self.mmu.effects.lock(self.held);
        self.removed.and(stage2.revoke_slot(slot.id));
    }

    /// Empties the MMIO sptes of every page that has some.
    // REQ: GEN-5, GEN-8
    pub(crate) fn zap_mmio(&mut self) -> (u32, u32) {
        let (mut pages, mut sptes) = (0, 0);
        while let Some(table) = self.tables().oldest_mmio(self.held) {
            for index in 0..ENTRIES as u16 {
                let place = SptePlace { table, index };
                if self.tables().read(place).is_mmio(self.tables().format()) {
                    self.zap_spte(place);
                    sptes += 1;
                }
            }
            self.tables().unmark_mmio(self.held, table);
            pages += 1;
        }
        (pages, sptes)
    }
}

impl<S: Stage2> Mmu<S> {
    /// Shadow pages that there are; 0 in EPT mode.
    pub fn shadow_pages(&self) -> usize {
        let mut held = Held::entry();
        self.lock.read(&mut held).shadow.as_ref().map_or(0, Pages::count)
    }

    /// Changes how many shadow pages there may be (KVM: `KVM_SET_NR_MMU_PAGES`). The least recently used go until there
    /// are no more. One fault needs [`TABLES_PER_FAULT`], besides the roots.
    // REQ: SP-11
    pub fn set_shadow_page_limit(&self, pages: usize) {
        self.zap_in_section(&mut Held::entry(), |zap| {
            zap.shadow(|shadow| {
                shadow.pages.limit = pages.clamp(2 * TABLES_PER_FAULT, shadow.tables().capacity());
                while shadow.pages.count() > shadow.pages.limit && shadow.zap_oldest(TABLES_PER_FAULT) {}
            })
        });
    }

    /// Whether there are pages of earlier generations to free.
    pub(crate) fn has_obsolete_pages(&self, pages: &Pages) -> bool {
        let mut obsolete = pages.iter().take_while(|id| self.is_obsolete(*id));
        obsolete.any(|id| !self.tables.get(id).role().invalid())
    }
}

impl<S: Stage2> Zap<'_, S> {
    /// Does `work` on shadow pages; `None`, and nothing, in EPT mode.
    pub(crate) fn shadow<R>(&mut self, work: impl FnOnce(&mut Shadow<'_, S>) -> R) -> Option<R> {
        let pages = self.tree.shadow.as_mut()?;
        let mut reserve = PteReserve::default();
        let mut shadow = Shadow {
            mmu: self.mmu,
            slots: self.slots,
            pages,
            held: self.held,
            reserve: &mut reserve,
            removed: Unflushed::NOTHING,
            dead: None,
            last: Cell::new(None),
            leaf_page: self.mmu.root(),
        };
        let result = work(&mut shadow);
        shadow.commit();
        self.mmu.pte_entries.release(&mut reserve);
        Some(result)
    }
}
