// SPDX-License-Identifier: MIT OR Apache-2.0
//! How does a plan become real? What it needs is reserved first; then each step is one that cannot run out.

use super::plan::Preparation;
use super::{FaultError, MapPlan};
use crate::Mmu;
use crate::spte::{Format, Spte, SpteKind};
use crate::stage2::{Resource, Stage2, Stage2Error, TableLevel, Unflushed};
use crate::table::{ENTRIES, Role, SptePlace, TableId};
use crate::trace::Event;
use crate::zap::{Cut, ZAP_BATCH};
use umbra_mmu_abi::Gfn;

/// Whether the plan was still good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Applied {
    /// The leaf is in place.
    Mapped,
    /// Something was invalidated since the plan was made: nothing was done.
    Stale,
}

impl<S: Stage2> Mmu<S> {
    /// Does the usual plan. All that it can run out of is asked for first.
    ///
    /// # Errors
    /// Exhausted, or refused by the hardware: nothing has changed.
    // REQ: PF-1, PF-3
    #[inline(always)]
    pub(super) fn apply(&mut self, plan: &MapPlan, place: SptePlace) -> Result<Applied, FaultError> {
        if plan.seq != self.invalidate_seq {
            return Ok(Applied::Stale);
        }
        if self.rmap_entries.free_count() < 2 {
            return Err(Stage2Error::Exhausted(Resource::RmapEntries).into());
        }
        self.stage2.map(plan.slot, plan.at, &plan.leaf)?;
        let old = self.tables.set(place, Spte::leaf(Format::Ept, plan.leaf));
        debug_assert!(!old.is_frame(Format::Ept), "a leaf was overwritten at {}", plan.at);
        let rmap = self.rmaps[plan.slot.0 as usize]
            .as_mut()
            .expect("a slot has a reverse map");
        rmap.add(&mut self.rmap_entries, plan.at, plan.leaf.level, place);
        *self.stats.mapped(plan.leaf.level) += 1;
        self.trace.event(|| Event::Map {
            gfn: plan.at,
            level: plan.leaf.level,
        });
        Ok(Applied::Mapped)
    }

    /// Does a plan that needs more than its place.
    ///
    /// # Errors
    /// As [`Mmu::apply`]; what the leaf was to replace may be gone.
    #[cold]
    #[inline(never)]
    pub(super) fn apply_prepared(
        &mut self,
        plan: &MapPlan,
        what: Preparation,
        gfn: Gfn,
    ) -> Result<Applied, FaultError> {
        self.reserve(what, gfn)?;
        if plan.seq != self.invalidate_seq {
            return Ok(Applied::Stale);
        }
        let prepared = self.prepare(plan.at, TableLevel::of_page(plan.leaf.level), what);
        // What the preparation took away is of this plan's own knowledge.
        let seq = self.invalidate_seq;
        let applied = prepared.and_then(|place| self.apply(&MapPlan { seq, ..plan.clone() }, place));
        if applied.is_err() {
            self.free_unused(plan.at);
        }
        applied
    }

    /// Frees the tables on the way to `gfn` that nothing is in. Nobody else would: tables go with their last leaf.
    fn free_unused(&mut self, gfn: Gfn) {
        let removed = self.free_if_empty(self.walk(gfn).place.table);
        self.invalidate_seq += 1;
        self.stage2.flush(removed);
    }

    /// Gets everything that the preparation takes. It may have to make room, which makes the plan stale.
    fn reserve(&mut self, what: Preparation, gfn: Gfn) -> Result<(), FaultError> {
        while self.tables.free_count() < what.tables {
            // Slots are accepted only if their tables fit, so either caches or obsolete tables take the room.
            if !self.evict_mmio_table(gfn) && !self.zap_obsolete(ZAP_BATCH) {
                return Err(Stage2Error::Exhausted(Resource::Tables).into());
            }
        }
        if self.rmap_entries.free_count() < 2 {
            return Err(Stage2Error::Exhausted(Resource::RmapEntries).into());
        }
        Ok(self.stage2.reserve(what.hardware)?)
    }

    /// Removes what the leaf takes the place of, and makes the table for it with all above.
    fn prepare(&mut self, at: Gfn, level: TableLevel, what: Preparation) -> Result<SptePlace, FaultError> {
        let mut removed = Unflushed::NOTHING;
        if let Some(place) = what.obsolete {
            assert!(
                self.is_obsolete(place.table),
                "{at} is mapped by {place:?}, and the walk missed it"
            );
            removed.and(self.drop_leaf(place, Cut::Unmap));
        }
        if let Some(table) = what.over {
            removed.and(self.zap_table(table));
        }
        if removed.count() > 0 {
            // Before the new translation: a processor never sees two for one address.
            self.stage2.flush(removed);
        }
        let table = self.table_for(at, level);
        self.link_down_to(table)?;
        Ok(self.tables.place(table, level, at))
    }

    /// The table of `level` for `gfn`, made with all above it; free ones were counted before.
    pub(crate) fn table_for(&mut self, gfn: Gfn, level: TableLevel) -> TableId {
        let mut table = self.root;
        let mut at = TableLevel::Pml4;
        while let Some(below) = at.below().filter(|_| at > level) {
            let place = self.tables.place(table, at, gfn);
            table = match self.tables.kind(place) {
                SpteKind::Table(next) => next,
                SpteKind::Empty => {
                    let next = self.take(below.base(gfn), below);
                    self.tables.get(next).set_parent(Some(place));
                    self.tables.set(place, Spte::table(Format::Ept, next));
                    next
                }
                kind @ (SpteKind::Leaf(_) | SpteKind::AccessTracked(_) | SpteKind::Mmio(_)) => {
                    panic!("a table is wanted at {gfn}, where {kind:?} is")
                }
            };
            at = below;
        }
        table
    }

    /// An empty table; free ones were counted before.
    pub(crate) fn take(&mut self, gfn: Gfn, level: TableLevel) -> TableId {
        let table = self.tables.take(gfn, Role { level }, self.valid_gen);
        table.expect("a table was reserved before it is taken")
    }

    /// Gives `table` and those above it their hardware tables, from the top.
    fn link_down_to(&mut self, table: TableId) -> Result<(), FaultError> {
        let mut way = [None; 4];
        let mut at = Some(table);
        while let Some(id) = at {
            let table = self.tables.get(id);
            way[table.role().level as usize - 1] = Some(id);
            at = table.parent().map(|place| place.table);
        }
        for id in way.into_iter().rev().flatten() {
            let table = self.tables.get(id);
            if table.handle().is_none() && table.role().level != TableLevel::Pml4 {
                let handle = self.stage2.link(table.gfn(), table.role().level)?;
                self.tables.get(id).set_handle(Some(handle));
            }
        }
        Ok(())
    }

    /// Removes a lowest-level table of the current tree with all that is in it.
    fn zap_table(&mut self, table: TableId) -> Unflushed {
        let mut removed = Unflushed::NOTHING;
        for index in 0..ENTRIES as u16 {
            let place = SptePlace { table, index };
            match self.tables.kind(place) {
                SpteKind::Empty => {}
                SpteKind::Mmio(_) => {
                    self.tables.set(place, Spte::EMPTY);
                }
                SpteKind::Leaf(_) | SpteKind::AccessTracked(_) => removed.and(self.drop_leaf(place, Cut::Unmap)),
                SpteKind::Table(id) => panic!("table {id:?} below a lowest-level table"),
            }
        }
        removed.and(self.free_one(table));
        removed
    }
}
