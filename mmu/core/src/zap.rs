// SPDX-License-Identifier: MIT OR Apache-2.0
//! How do mappings go away? One leaf, one slot, or everything: by generation at once, then in the background.

use crate::Mmu;
use crate::spte::{Format, Spte, SpteKind};
use crate::stage2::{Stage2, TableLevel, Unflushed};
use crate::table::{ENTRIES, SptePlace, TableId};
use crate::trace::Event;
use umbra_mmu_abi::{Gfn, SlotId};

/// Steps of one background batch: so much a faulting vCPU may have to wait for.
pub const ZAP_BATCH: u32 = 64;

/// Empty sptes that count as one step.
const SCAN_PER_STEP: u32 = 64;

/// Who takes a leaf out of the hardware.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// This call.
    Unmap,
    /// The revocation of the slot, which comes next.
    Revocation,
    /// It is out already.
    Done,
}

impl<S: Stage2> Mmu<S> {
    /// Takes a leaf away: spte, reverse map, hardware.
    // REQ: RM-2
    pub(crate) fn drop_leaf(&mut self, place: SptePlace, cut: Cut) -> Unflushed {
        let leaf = match self.tables.kind(place) {
            SpteKind::Leaf(leaf) | SpteKind::AccessTracked(leaf) => leaf,
            kind @ (SpteKind::Empty | SpteKind::Table(_) | SpteKind::Mmio(_)) => {
                panic!("{place:?} is to lose a leaf and holds {kind:?}")
            }
        };
        let gfn = self.tables.gfn_of(place);
        let slot = self.slots.published().lookup(gfn).expect("a leaf lies in a slot").id;
        self.tables.set(place, Spte::EMPTY);
        let rmap = self.rmaps[slot.0 as usize].as_mut().expect("a slot has a reverse map");
        rmap.remove(&mut self.rmap_entries, gfn, leaf.level, place);
        *self.stats.mapped(leaf.level) -= 1;
        match cut {
            Cut::Unmap => self.stage2.unmap(slot, gfn, &leaf),
            Cut::Revocation | Cut::Done => Unflushed::NOTHING,
        }
    }

    /// Takes all leaves of a slot away, by its reverse map, and revokes its container. Never looks at a page that is
    /// not mapped.
    // REQ: MEM-7, SP-12
    pub(crate) fn zap_slot(&mut self, id: SlotId) -> Unflushed {
        let mut removed = Unflushed::NOTHING;
        while let Some((_, _, place)) = self.rmaps[id.0 as usize]
            .as_ref()
            .and_then(|r| r.any(&self.rmap_entries))
        {
            removed.and(self.drop_leaf(place, Cut::Revocation));
            if !self.is_obsolete(place.table) {
                removed.and(self.free_if_empty(place.table));
            }
        }
        self.invalidate_seq += 1;
        removed.and(self.stage2.revoke_slot(id));
        removed
    }

    /// Frees a table of the current tree if nothing is in it, and then those above it.
    pub(crate) fn free_if_empty(&mut self, table: TableId) -> Unflushed {
        let mut removed = Unflushed::NOTHING;
        let mut at = Some(table);
        while let Some(id) = at.filter(|id| *id != self.root && self.tables.get(*id).used() == 0) {
            at = self.tables.get(id).parent().map(|place| place.table);
            removed.and(self.free_one(id));
        }
        removed
    }

    /// Frees one empty table: the spte that points at it, its hardware table, its place in the pool.
    pub(crate) fn free_one(&mut self, id: TableId) -> Unflushed {
        let table = self.tables.get(id);
        let (handle, parent) = (table.handle(), table.parent());
        table.set_handle(None);
        if let Some(place) = parent {
            self.tables.set(place, Spte::EMPTY);
        }
        self.tables.retire(id, 0);
        self.tables.reclaim(1);
        handle.map_or(Unflushed::NOTHING, |handle| self.stage2.unlink(handle))
    }

    /// Makes every mapping unreachable in O(1): the next generation starts with an empty root. The old tables are freed
    /// by [`Mmu::background`].
    // REQ: ZAP-1, ZAP-3
    pub fn zap_all(&mut self) {
        self.stats.zap_alls += 1;
        if self.tables.get(self.root).used() == 0 {
            return;
        }
        while self.tables.free_count() == 0 {
            let progress = self.zap_obsolete(ZAP_BATCH) || self.evict_mmio_table(Gfn::new(u64::MAX));
            assert!(
                progress,
                "the pool has room for the tables of all slots and a second root"
            );
        }
        let old = self.root;
        self.valid_gen += 1;
        self.invalidate_seq += 1;
        self.root = self.take(Gfn::new(0), TableLevel::Pml4);
        // "Reloading the roots": hardware's root stays, and loses its entries, one for each 512 GiB in use.
        let mut removed = Unflushed::NOTHING;
        let mut entries = self.tables.get(old).used();
        for index in 0..ENTRIES as u16 {
            if entries == 0 {
                break;
            }
            if let Some(table) = self
                .tables
                .read(SptePlace { table: old, index })
                .peek_table(Format::Ept)
            {
                entries -= 1;
                let table = self.tables.get(table);
                let handle = table.handle();
                table.set_handle(None);
                removed.and(handle.map_or(Unflushed::NOTHING, |handle| self.stage2.unlink(handle)));
            }
        }
        self.stage2.flush(removed);
        // An earlier zap goes on later, where it was.
        self.tables.chain(old, self.obsolete);
        self.obsolete = Some(old);
        let valid_gen = self.valid_gen;
        self.trace.event(|| Event::ZapAll { valid_gen });
    }

    /// Whether [`Mmu::background`] has something to do.
    pub fn has_background_work(&self) -> bool {
        self.obsolete.is_some()
    }

    /// One bounded batch of the work that zap-all left over.
    // REQ: ZAP-2
    pub fn background(&mut self) {
        self.zap_obsolete(ZAP_BATCH);
    }

    /// At most `steps` steps; `false`: there was nothing to do.
    pub(crate) fn zap_obsolete(&mut self, steps: u32) -> bool {
        let Some(root) = self.obsolete else { return false };
        let mut removed = Unflushed::NOTHING;
        let mut budget = steps * SCAN_PER_STEP;
        let mut table = self.deepest(root);
        // A plan may have counted on one of the leaves.
        self.invalidate_seq += 1;
        while budget > 0 {
            let place = SptePlace {
                table,
                index: self.tables.get(table).cursor(),
            };
            if place.index as usize == ENTRIES || self.tables.get(table).used() == 0 {
                budget = budget.saturating_sub(SCAN_PER_STEP);
                let parent = self.tables.get(table).parent();
                let next = self.tables.chained(table);
                removed.and(self.free_obsolete(table));
                match parent {
                    Some(place) => table = place.table,
                    None => {
                        self.obsolete = next;
                        match next {
                            Some(root) => table = self.deepest(root),
                            None => break,
                        }
                    }
                }
                continue;
            }
            budget -= 1;
            match self.tables.kind(place) {
                SpteKind::Empty => {}
                SpteKind::Mmio(_) => {
                    self.tables.set(place, Spte::EMPTY);
                }
                SpteKind::Leaf(_) | SpteKind::AccessTracked(_) => {
                    budget = budget.saturating_sub(SCAN_PER_STEP);
                    removed.and(self.drop_leaf(place, Cut::Unmap));
                }
                SpteKind::Table(below) => {
                    // Its turn first; this entry goes when it is freed.
                    table = below;
                    continue;
                }
            }
            self.tables.get(table).set_cursor(place.index + 1);
        }
        self.stage2.flush(removed);
        true
    }

    /// The table below `root` at which the work stopped.
    fn deepest(&self, root: TableId) -> TableId {
        let mut table = root;
        loop {
            let at = self.tables.get(table);
            if at.cursor() as usize == ENTRIES || at.role().level == TableLevel::Pt {
                return table;
            }
            match self
                .tables
                .read(SptePlace {
                    table,
                    index: at.cursor(),
                })
                .peek_table(Format::Ept)
            {
                Some(below) => table = below,
                None => return table,
            }
        }
    }

    fn free_obsolete(&mut self, table: TableId) -> Unflushed {
        // The list through `next` ends here before the pool uses it again.
        if self.tables.get(table).parent().is_none() {
            self.tables.chain(table, None);
        }
        self.free_one(table)
    }
}
