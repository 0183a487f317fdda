// SPDX-License-Identifier: MIT OR Apache-2.0
//! How do mappings go away? One leaf, one slot, or everything: by generation at once, then in the background.

use crate::locks::{Before, Held, InMmu, InSection, MmuWrite, ReadsSlots};
use crate::role::Role;
use crate::slots::{Slot, SlotTable};
use crate::spte::{Format, Spte, SpteKind};
use crate::stage2::{Stage2, TableLevel, Unflushed};
use crate::sync::atomic::Ordering;
use crate::table::{ENTRIES, SptePlace, TableId};
use crate::trace::Event;
use crate::{Mmu, Mode, Requests, Tree};
use core::ops::Range;
use umbra_mmu_abi::{Gfn, PageLevel};

/// Steps of one background batch: so much a faulting vCPU may have to wait for.
pub const ZAP_BATCH: u32 = 64;

/// Leaves of a slot that go before mmu_lock is let go.
const SLOT_BATCH: u32 = 1 << 10;

/// Shadow pages of one background batch (KVM: `BATCH_ZAP_PAGES`).
pub const ZAP_PAGES: usize = 10;

/// Empty sptes that count as one step.
const SCAN_PER_STEP: u32 = 64;

/// Who takes a leaf out of the hardware.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// This call.
    Unmap,
    /// The revocation of the slot, which comes next.
    Revocation,
    /// It is out already: the owner of the frame has revoked it.
    Gone,
}

/// Pages whose sptes are changed before mmu_lock is let go: so long a fault may have to wait.
pub(crate) const PAGES_PER_BATCH: u64 = 1 << 13;

/// A range in batches of [`PAGES_PER_BATCH`].
pub(crate) fn batches(range: Range<Gfn>) -> impl Iterator<Item = Range<Gfn>> {
    let end = range.end.raw();
    (range.start.raw()..end)
        .step_by(PAGES_PER_BATCH as usize)
        .map(move |start| Gfn::new(start)..Gfn::new((start + PAGES_PER_BATCH).min(end)))
}

/// mmu_lock held for writing, to take sptes away. What was unmapped is flushed before it is left: until then nobody can
/// map anything, so no processor ever sees two translations for one address.
pub(crate) struct Zap<'a, S: Stage2> {
    pub(crate) mmu: &'a Mmu<S>,
    /// Whose leaves they are.
    pub(crate) slots: &'a SlotTable,
    pub(crate) tree: &'a mut Tree,
    pub(crate) held: &'a mut MmuWrite,
    pub(crate) removed: Unflushed,
}

impl<S: Stage2> Mmu<S> {
    /// Takes mmu_lock for writing and does `work` on the sptes of the slots that are published.
    pub(crate) fn zap<P: Before<InMmu>, R>(
        &self,
        slots: &SlotTable,
        held: &mut Held<P>,
        work: impl FnOnce(&mut Zap<'_, S>) -> R,
    ) -> R {
        let mut guard = self.lock.write(held);
        let (tree, held) = guard.split();
        let mut zap = Zap {
            mmu: self,
            slots,
            tree,
            held,
            removed: Unflushed::NOTHING,
        };
        let result = work(&mut zap);
        zap.flush();
        result
    }

    /// [`Mmu::zap`] from a place without a read-side section.
    pub(crate) fn zap_in_section<P: ReadsSlots<Section = InSection>, R>(
        &self,
        held: &mut Held<P>,
        work: impl FnOnce(&mut Zap<'_, S>) -> R,
    ) -> R {
        let mut section = self.slots.read(held);
        let (slots, held) = section.split();
        self.zap(slots, held, work)
    }

    /// Makes every mapping unreachable in O(1): the next generation starts with an empty root. The old tables are freed
    /// by [`Mmu::background`].
    // REQ: ZAP-1, ZAP-3
    pub fn zap_all(&self) {
        self.stats.zap_alls.fetch_add(1, Ordering::Relaxed);
        let mut held = Held::entry();
        if let Mode::Shadow(_) = self.mode {
            self.zap_in_section(&mut held, |zap| zap.shadow(|shadow| shadow.zap_all()));
            return self.request_all(Requests::RELOAD_ROOTS);
        }
        // Other vCPUs may have drawn the last tables; they use them, or put them back.
        while !self.zap_in_section(&mut held, |zap| zap.all()) {
            crate::sync::relax();
        }
        self.request_all(Requests::RELOAD_ROOTS);
    }

    /// Whether [`Mmu::background`] has something to do.
    pub fn has_background_work(&self) -> bool {
        let mut held = Held::entry();
        let tree = self.lock.read(&mut held);
        let pages = tree.shadow.as_ref().is_some_and(|pages| self.has_obsolete_pages(pages));
        tree.obsolete.is_some() || pages
    }

    /// One bounded batch of the work that zap-all left over.
    // REQ: ZAP-2
    pub fn background(&self) {
        if self.has_background_work() {
            self.zap_in_section(&mut Held::entry(), |zap| {
                if zap.shadow(|shadow| shadow.zap_obsolete(ZAP_PAGES)).is_none() {
                    zap.obsolete(ZAP_BATCH);
                }
            });
        }
    }
}

impl<S: Stage2> Zap<'_, S> {
    /// Meets the obligation so far.
    pub(crate) fn flush(&mut self) {
        if self.removed.count() > 0 {
            let removed = core::mem::replace(&mut self.removed, Unflushed::NOTHING);
            self.mmu.effects.lock(self.held).flush(removed);
        }
    }

    /// Takes a leaf away: spte, hardware, reverse map. `slot` is the one that it lies in.
    // REQ: RM-2, DT-3
    pub(crate) fn leaf(&mut self, slot: &Slot, place: SptePlace, cut: Cut) {
        let Mmu { tables, effects, .. } = self.mmu;
        let gfn = tables.gfn_of(place);
        let leaf = {
            let mut stage2 = effects.lock(self.held);
            let level = tables.get(place.table).level() as u8;
            // What a fault restored without mmu_lock until now is in the old word; later it finds no leaf.
            match tables.set(place, Spte::EMPTY).peek(Format::Ept, level) {
                Ok(SpteKind::Leaf(leaf)) => {
                    match cut {
                        Cut::Unmap => self.removed.and(stage2.unmap(slot.id, gfn, &leaf)),
                        Cut::Revocation | Cut::Gone => {}
                    }
                    Some(leaf)
                }
                Ok(SpteKind::AccessTracked(leaf)) => Some(leaf),
                // A fault that was refused by the hardware has emptied it, and knows.
                Ok(SpteKind::Empty) => None,
                Ok(kind @ (SpteKind::Table(_) | SpteKind::Mmio(_))) => {
                    panic!("{place:?} is to lose a leaf and holds {kind:?}")
                }
                Err(bad) => panic!("{place:?} is to lose a leaf and holds {:#x}", bad.0),
            }
        };
        let level = leaf.map(|leaf| leaf.level).or(tables.get(place.table).level().page());
        let level = level.expect("a leaf is in a table of a page size");
        self.forget(slot, gfn, level, place);
    }

    /// Takes a place that holds no leaf any more out of the reverse map.
    pub(crate) fn forget(&mut self, slot: &Slot, gfn: Gfn, level: PageLevel, place: SptePlace) {
        slot.data.remove(&self.mmu.pte_entries, gfn, level, place);
        self.mmu.stats.mapped(level).fetch_sub(1, Ordering::Relaxed);
    }

    /// The same for a leaf whose slot has to be looked up.
    pub(crate) fn leaf_of_some_slot(&mut self, place: SptePlace) {
        let gfn = self.mmu.tables.gfn_of(place);
        let slots = self.slots;
        let slot = slots.lookup(gfn).expect("a leaf lies in a slot");
        self.leaf(slot, place, Cut::Unmap);
    }

    /// Takes leaves of a slot away, by its reverse map, and with the last one revokes its container. Never looks at a page
    /// that is not mapped. `false`: there are more. The slot is Invalid, so there will be no new ones meanwhile.
    // REQ: MEM-7, SP-12
    pub(crate) fn slot(&mut self, slot: &Slot) -> bool {
        self.mmu.invalidate.bump();
        if self.shadow(|shadow| shadow.zap_slot(slot)).is_some() {
            return true;
        }
        let mut leaves = 0;
        for size in PageLevel::ALL {
            let mut from = slot.base;
            while let Some(gfn) = slot.data.next_mapped(size, from, slot.end()) {
                while let Some(place) = slot.data.first(&self.mmu.pte_entries, gfn, size) {
                    if leaves == SLOT_BATCH {
                        return false;
                    }
                    leaves += 1;
                    self.leaf(slot, place, Cut::Revocation);
                    if !self.mmu.is_obsolete(place.table) {
                        self.free_if_empty(place.table);
                    }
                }
                from = gfn.max(from);
            }
        }
        let mut stage2 = self.mmu.effects.lock(self.held);
        self.removed.and(stage2.revoke_slot(slot.id));
        true
    }

    /// Frees a table of the current tree if nothing is in it, and then those above it.
    pub(crate) fn free_if_empty(&mut self, table: TableId) {
        let root = self.mmu.root();
        let mut at = Some(table);
        while let Some(id) = at.filter(|id| *id != root && self.mmu.tables.get(*id).used() == 0) {
            at = self.parent(id).map(|place| place.table);
            self.free_one(id);
        }
    }

    fn parent(&self, id: TableId) -> Option<SptePlace> {
        self.mmu.tables.get(id).parent_ptes().first(&self.mmu.pte_entries)
    }

    /// Frees one empty table: the spte that points at it, its hardware table, its place in the pool once all walkers have
    /// left.
    pub(crate) fn free_one(&mut self, id: TableId) {
        let Mmu { tables, .. } = self.mmu;
        let table = tables.get(id);
        if let Some(place) = self.parent(id) {
            table.parent_ptes().remove(&self.mmu.pte_entries, place);
            tables.set(place, Spte::EMPTY);
        }
        self.unlink(id);
        tables.retire(self.held, id, self.mmu.walkers.retire());
    }

    fn unlink(&mut self, id: TableId) {
        let table = self.mmu.tables.get(id);
        let mut stage2 = self.mmu.effects.lock(self.held);
        if let Some(handle) = table.handle() {
            table.set_handle(None);
            self.removed.and(stage2.unlink(handle));
        }
    }

    /// Removes a table of the current tree with all that is in it.
    pub(crate) fn table(&mut self, table: TableId) {
        for index in 0..ENTRIES as u16 {
            let place = SptePlace { table, index };
            match self.mmu.tables.kind(place) {
                SpteKind::Empty => {}
                SpteKind::Mmio(_) => {
                    self.mmu.tables.set(place, Spte::EMPTY);
                }
                SpteKind::Leaf(_) | SpteKind::AccessTracked(_) => self.leaf_of_some_slot(place),
                SpteKind::Table(below) => self.table(below),
            }
        }
        self.free_one(table);
    }

    /// Makes the place of a leaf of `level` at `gfn` free: a table of smaller pages goes with all in it, or a larger leaf.
    // REQ: LP-4
    pub(crate) fn in_the_way(&mut self, gfn: Gfn, level: TableLevel) {
        let walk = self.mmu.walk(gfn);
        if walk.level > level && walk.spte.is_frame(Format::Ept) {
            self.leaf_of_some_slot(walk.place);
            self.free_if_empty(walk.place.table);
        } else if walk.level < level {
            let mut table = walk.place.table;
            while let Some(above) = self.parent(table)
                && self.mmu.tables.get(above.table).level() <= level
                && self.mmu.tables.get(table).level() < level
            {
                if self.mmu.tables.get(above.table).level() == level {
                    self.table(table);
                    break;
                }
                table = above.table;
            }
        }
    }

    /// Frees the tables on the way to `gfn` that nothing is in.
    pub(crate) fn unused(&mut self, gfn: Gfn) {
        let walk = self.mmu.walk(gfn);
        self.free_if_empty(walk.place.table);
    }

    /// The next generation starts; `false`: no table is left for its root just now, but soon.
    fn all(&mut self) -> bool {
        let mmu = self.mmu;
        let old = mmu.root();
        if mmu.tables.get(old).used() == 0 {
            return true;
        }
        mmu.invalidate.bump();
        let Some(root) = mmu.draw(self.held) else {
            // One batch, and mmu_lock is let go before the next.
            return !self.make_room(Gfn::new(u64::MAX)) && self.empty(old);
        };
        let valid_gen = mmu.valid_gen.load(Ordering::Relaxed) + 1;
        mmu.tables
            .init(self.held, root, Gfn::new(0), Role::ept(TableLevel::Pml4), valid_gen);
        // Faults that restore a leaf without mmu_lock look at valid_gen inside `effects`: they see it, or are done with
        // the hardware before its root loses its entries.
        mmu.valid_gen.store(valid_gen, Ordering::Release);
        mmu.root.store(root.raw(), Ordering::Release);
        // "Reloading the roots": hardware's root stays, and loses its entries, one for each 512 GiB in use.
        let mut entries = mmu.tables.get(old).used();
        for index in 0..ENTRIES as u16 {
            if entries == 0 {
                break;
            }
            let spte = mmu.tables.read(SptePlace { table: old, index });
            if let Some(table) = spte.peek_table(Format::Ept) {
                entries -= 1;
                self.unlink(table);
            }
        }
        // An earlier zap goes on later, where it was.
        mmu.tables.chain(old, self.tree.obsolete);
        self.tree.obsolete = Some(old);
        mmu.trace.event(|| Event::ZapAll { valid_gen });
        true
    }

    /// Zaps all of a tree at once, where no table is left for a second root: large pages that were split may have taken
    /// what was kept for it. `false`: others have drawn some, which they use or put back.
    #[cold]
    fn empty(&mut self, root: TableId) -> bool {
        let tables = &self.mmu.tables;
        if tables.unused(self.held).all() > 0 {
            return false;
        }
        for index in 0..ENTRIES as u16 {
            if let Some(below) = tables.read(SptePlace { table: root, index }).peek_table(Format::Ept) {
                self.table(below);
            }
        }
        true
    }

    /// Frees a table, of an earlier generation or one that only caches MMIO and does not translate `keep`; `false`: there
    /// is none.
    pub(crate) fn make_room(&mut self, keep: Gfn) -> bool {
        self.evict_mmio_table(keep) || self.obsolete(ZAP_BATCH)
    }

    /// Zaps a table of leaves of the current tree that is not on the way to `keep`, in turn; `false`: there is none. What
    /// it mapped is mapped again when the guest comes to it.
    // REQ: SP-11
    pub(crate) fn evict_leaf_table(&mut self, keep: Gfn) -> bool {
        let tables = &self.mmu.tables;
        let capacity = tables.capacity() as u32;
        for step in 0..capacity {
            let id = TableId::from_raw((self.tree.clock + step) % capacity);
            let table = tables.get(id);
            let here = table.level().base(keep) == table.gfn();
            let last = table.level() == TableLevel::Pt || table.leaves() == table.used();
            if table.leaves() > 0 && last && !here && !self.mmu.is_obsolete(id) {
                self.tree.clock = (id.raw() + 1) % capacity;
                let above = self.parent(id).map(|place| place.table);
                self.table(id);
                if let Some(above) = above {
                    self.free_if_empty(above);
                }
                return true;
            }
        }
        false
    }

    /// At most `steps` steps on the trees of earlier generations; `false`: there was nothing to do.
    pub(crate) fn obsolete(&mut self, steps: u32) -> bool {
        let Some(root) = self.tree.obsolete else { return false };
        let Mmu { tables, .. } = self.mmu;
        let mut budget = steps * SCAN_PER_STEP;
        let mut table = self.deepest(root);
        while budget > 0 {
            let place = SptePlace {
                table,
                index: tables.get(table).cursor(),
            };
            if place.index as usize == ENTRIES || tables.get(table).used() == 0 {
                budget = budget.saturating_sub(SCAN_PER_STEP);
                let parent = self.parent(table);
                let next = tables.chained(table);
                if parent.is_none() {
                    // The list through `next` ends here before the pool uses it again.
                    tables.chain(table, None);
                }
                self.free_one(table);
                match parent {
                    Some(place) => table = place.table,
                    None => {
                        self.tree.obsolete = next;
                        match next {
                            Some(root) => table = self.deepest(root),
                            None => break,
                        }
                    }
                }
                continue;
            }
            budget -= 1;
            match tables.kind(place) {
                SpteKind::Empty => {}
                SpteKind::Mmio(_) => {
                    tables.set(place, Spte::EMPTY);
                }
                SpteKind::Leaf(_) | SpteKind::AccessTracked(_) => {
                    budget = budget.saturating_sub(SCAN_PER_STEP);
                    self.leaf_of_some_slot(place);
                }
                SpteKind::Table(below) => {
                    // Its turn first; this entry goes when it is freed.
                    table = below;
                    continue;
                }
            }
            tables.get(table).set_cursor(place.index + 1);
        }
        true
    }

    /// The table below `root` at which the work stopped.
    fn deepest(&self, root: TableId) -> TableId {
        let mut table = root;
        loop {
            let at = self.mmu.tables.get(table);
            if at.cursor() as usize == ENTRIES || at.level() == TableLevel::Pt {
                return table;
            }
            let index = at.cursor();
            match self.mmu.tables.read(SptePlace { table, index }).peek_table(Format::Ept) {
                Some(below) => table = below,
                None => return table,
            }
        }
    }
}
