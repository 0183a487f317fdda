// SPDX-License-Identifier: MIT OR Apache-2.0
//! How does a leaf get into the tables and the hardware, while others do the same beside it?
//!
//! Tables are put in place by compare-and-exchange; who loses uses the winner's. Whether a leaf is mapped changes under the
//! `effects` lock together with its spte, so that inside it a present leaf is a mapped leaf:
//! ```text
//! install                             restore W (no mmu_lock)        zap (mmu_lock for writing: not beside an install)
//! -------                             -----------------------        ---
//! effects: spte = leaf, if empty      spte: W, if still this leaf    effects: spte = empty
//!          map it                     effects: whatever leaf the              unmap what it was
//!          spte = empty, if refused            spte is now, so be
//!                                              the mapping's rights
//! ```

use super::FaultError;
use super::classify::LEVELS;
use super::plan::MapPlan;
use crate::Mmu;
use crate::locks::{Before, FreeLeaf, Held, InMmu, InSection};
use crate::pte_list::{ENTRIES_PER_ADD, PteReserve};
use crate::role::Role;
use crate::slots::{Slot, SlotTable};
use crate::spte::{Format, Leaf, Spte, SpteKind};
use crate::stage2::{Resource, Stage2, Stage2Error, TableLevel, TableNeeds, Unflushed};
use crate::sync::atomic::Ordering;
use crate::table::{SptePlace, TableId};
use crate::trace::Event;
use crate::vcpu::{TableCache, Vcpu};
use crate::zap::Zap;
use umbra_mmu_abi::{Gfn, PageLevel};

/// How an installation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Installed {
    /// The spte is in place.
    Done,
    /// Somebody was faster, or has made the plan void.
    Overtaken,
    /// Something has to be done first, without mmu_lock or with all of it.
    Blocked(Blocked),
}

/// What stands between a plan and its spte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blocked {
    /// So many tables have to be drawn.
    Tables(usize),
    /// A table of smaller pages is where the leaf is to be.
    Over(TableId),
    /// A larger leaf is where a table is to be.
    Below(SptePlace),
}

impl<S: Stage2> Mmu<S> {
    /// Makes the tables that are missing, and puts the leaf in place.
    ///
    /// # Errors
    /// As [`Mmu::install`].
    #[cold]
    #[inline(never)]
    pub(super) fn install_below(
        &self,
        held: &mut Held<InMmu>,
        vcpu: &mut Vcpu,
        plan: &MapPlan<'_>,
    ) -> Result<Installed, Stage2Error> {
        match self.extend(held, &mut vcpu.cache, plan.at, plan.level()) {
            Ok((place, old)) => self.install(held, &mut vcpu.reserve, plan, place, old),
            Err(blocked) => Ok(Installed::Blocked(blocked)),
        }
    }

    /// Puts the leaf in place, where `old` was when the caller looked. The caller has seen, under mmu_lock, that nothing was
    /// invalidated since the leaf was planned, and that the place is in the current tree.
    ///
    /// # Errors
    /// The hardware's: the leaf is nowhere, but tables may be.
    // REQ: PF-1, LK-2
    #[inline(always)]
    pub(super) fn install(
        &self,
        held: &mut Held<InMmu>,
        reserve: &mut PteReserve,
        plan: &MapPlan<'_>,
        place: SptePlace,
        old: Spte,
    ) -> Result<Installed, Stage2Error> {
        if !old.is_empty()
            && let Some(installed) = self.install_over(held, plan, place, old)?
        {
            return Ok(installed);
        }
        let data = &plan.slot.data;
        let former = data.first(&self.pte_entries, plan.at, plan.leaf.level);
        if let Some(former) = former
            && !self.is_obsolete(former.table)
        {
            // Another fault is about to say so, or to take it back.
            return Ok(Installed::Overtaken);
        }
        let mut stage2 = self.effects.lock(held);
        let taken = former.and_then(|former| self.take_from_obsolete(&mut stage2, plan.slot, plan.at, former));
        let mapped = self.map_at(&mut stage2, plan, place, old);
        drop(stage2);
        if let (Some(leaf), Some(former)) = (taken, former) {
            data.remove(&self.pte_entries, plan.at, leaf.level, former);
            self.stats.mapped(leaf.level).fetch_sub(1, Ordering::Relaxed);
        }
        match mapped? {
            Installed::Done => {}
            other @ (Installed::Overtaken | Installed::Blocked(_)) => return Ok(other),
        }
        data.add(&self.pte_entries, reserve, plan.at, plan.leaf.level, place);
        self.stats.mapped(plan.leaf.level).fetch_add(1, Ordering::Relaxed);
        self.trace.event(|| Event::Map {
            gfn: plan.at,
            level: plan.leaf.level,
        });
        plan.log();
        Ok(Installed::Done)
    }

    /// Puts the leaf into an spte that still is `old`, and then into the hardware.
    #[inline(always)]
    fn map_at(
        &self,
        stage2: &mut S,
        plan: &MapPlan<'_>,
        place: SptePlace,
        old: Spte,
    ) -> Result<Installed, Stage2Error> {
        if self.tables.get(place.table).handle().is_none() {
            self.link(stage2, place.table)?;
        }
        let new = Spte::leaf(Format::Ept, plan.leaf);
        if self.tables.compare_exchange(place, old, new).is_err() {
            return Ok(Installed::Overtaken);
        }
        match stage2.map(plan.slot.id, plan.at, &plan.leaf) {
            Ok(()) => Ok(Installed::Done),
            Err(error) => {
                self.tables.set(place, Spte::EMPTY);
                Err(error)
            }
        }
    }

    /// The spte of `level` for `gfn` and what is in it, with all tables above it.
    ///
    /// # Errors
    /// The cache has fewer tables than it takes, or a leaf is in the way.
    #[inline]
    pub(crate) fn extend(
        &self,
        held: &mut Held<InMmu>,
        cache: &mut TableCache,
        gfn: Gfn,
        level: TableLevel,
    ) -> Result<(SptePlace, Spte), Blocked> {
        let end = level as usize - 1;
        let mut table = self.root();
        let (mut at, mut shift) = (3, TableLevel::Pml4.entry_shift());
        loop {
            let place = SptePlace {
                table,
                index: (gfn.raw() >> shift) as u16 & 0x1ff,
            };
            let spte = self.tables.read(place);
            if at == end {
                return Ok((place, spte));
            }
            table = match spte.peek_table(Format::Ept) {
                Some(next) => next,
                None if spte.is_empty() => self.add_table(held, cache, place, LEVELS[at - 1], gfn, level)?,
                None => return Err(Blocked::Below(place)),
            };
            (at, shift) = (at - 1, shift - 9);
        }
    }

    /// Puts a table at `place`, which was empty. Somebody else may be faster; then it is theirs.
    #[cold]
    fn add_table(
        &self,
        held: &mut Held<InMmu>,
        cache: &mut TableCache,
        place: SptePlace,
        level: TableLevel,
        gfn: Gfn,
        wanted: TableLevel,
    ) -> Result<TableId, Blocked> {
        let missing = level as usize - wanted as usize + 1;
        let Some(id) = cache.pop() else {
            return Err(Blocked::Tables(missing));
        };
        let valid_gen = self.valid_gen.load(Ordering::Relaxed);
        self.tables.init(held, id, level.base(gfn), Role::ept(level), valid_gen);
        let parents = self.tables.get(id).parent_ptes();
        // A list of one takes nothing of a reserve.
        parents.add(&self.pte_entries, &mut PteReserve::default(), place);
        match self
            .tables
            .compare_exchange(place, Spte::EMPTY, Spte::table(Format::Ept, id))
        {
            Ok(()) => Ok(id),
            Err(other) => {
                parents.remove(&self.pte_entries, place);
                self.tables.withdraw(held, id);
                cache.push(id);
                other.peek_table(Format::Ept).ok_or(Blocked::Below(place))
            }
        }
    }

    /// What is where the leaf is to be. `None`: it can be replaced.
    #[cold]
    fn install_over(
        &self,
        held: &mut Held<InMmu>,
        plan: &MapPlan<'_>,
        place: SptePlace,
        old: Spte,
    ) -> Result<Option<Installed>, Stage2Error> {
        match old.peek(Format::Ept, plan.level() as u8) {
            // Stale, for the slot is there.
            Ok(SpteKind::Empty | SpteKind::Mmio(_)) => Ok(None),
            Ok(SpteKind::Table(table)) => Ok(Some(Installed::Blocked(Blocked::Over(table)))),
            Ok(SpteKind::AccessTracked(_)) => Ok(Some(Installed::Overtaken)),
            Ok(SpteKind::Leaf(leaf)) if leaf.frame == plan.leaf.frame && leaf.writable < plan.leaf.writable => {
                let new = Spte::leaf(Format::Ept, plan.leaf);
                if self.tables.compare_exchange(place, old, new).is_err() {
                    return Ok(Some(Installed::Overtaken));
                }
                plan.log();
                self.converge(&mut self.effects.lock(held), plan.slot, plan.at, place)?;
                Ok(Some(Installed::Done))
            }
            Ok(SpteKind::Leaf(_)) => Ok(Some(Installed::Overtaken)),
            Err(bad) => panic!("{place:?} holds {:#x}, which is no spte", bad.0),
        }
    }

    /// Gives the mapping at `place` the rights that its spte has now, if it is a leaf of the current tree. Many may come
    /// with many reasons; the last one leaves hardware and spte equal.
    ///
    /// # Errors
    /// The hardware has no such mapping any more; neither does the spte from now on. The reverse map does: see
    /// [`Zap::lost`].
    #[inline]
    pub(crate) fn converge(&self, stage2: &mut S, slot: &Slot, gfn: Gfn, place: SptePlace) -> Result<(), Stage2Error> {
        if self.is_obsolete(place.table) {
            return Ok(());
        }
        let (spte, level) = (self.tables.read(place), self.tables.get(place.table).level());
        let (true, Some(size)) = (spte.is_leaf(), level.page()) else {
            return Ok(());
        };
        let leaf = spte.known_leaf(size);
        match stage2.protect(slot.id, gfn, &leaf) {
            Ok(removed) => {
                stage2.flush(removed);
                Ok(())
            }
            Err(error) => {
                self.tables.set(place, Spte::EMPTY);
                Err(error)
            }
        }
    }

    /// Takes the mapping of a frame out of a tree of an earlier `mmu_valid_gen`: hardware maps it once for each slot. Others
    /// may want the same; who takes the leaf out of the spte unmaps it, and tells the reverse map.
    #[cold]
    fn take_from_obsolete(&self, stage2: &mut S, slot: &Slot, gfn: Gfn, place: SptePlace) -> Option<Leaf> {
        let level = self.tables.get(place.table).level() as u8;
        let (leaf, removed): (Leaf, Unflushed) = match self.tables.set(place, Spte::EMPTY).peek(Format::Ept, level) {
            Ok(SpteKind::Leaf(leaf)) => (leaf, stage2.unmap(slot.id, gfn, &leaf)),
            Ok(SpteKind::AccessTracked(leaf)) => (leaf, Unflushed::NOTHING),
            Ok(SpteKind::Empty) => return None,
            Ok(kind @ (SpteKind::Table(_) | SpteKind::Mmio(_))) => {
                panic!("{gfn} is mapped by {place:?}, which holds {kind:?}")
            }
            Err(bad) => panic!("{gfn} is mapped by {place:?}, which holds {:#x}", bad.0),
        };
        // Before the new translation: a processor never sees two for one address.
        stage2.flush(removed);
        Some(leaf)
    }

    /// Gives `table` and those above it their hardware tables, from the top. All that it takes is reserved first.
    #[cold]
    fn link(&self, stage2: &mut S, table: TableId) -> Result<(), Stage2Error> {
        let mut way = [None; 4];
        let mut needs = TableNeeds::NONE;
        let mut at = Some(table);
        while let Some(id) = at.filter(|id| self.tables.get(*id).handle().is_none()) {
            let table = self.tables.get(id);
            match table.level() {
                TableLevel::Pt => needs.pt += 1,
                TableLevel::Pd => needs.pd += 1,
                TableLevel::Pdpt => needs.pdpt += 1,
                TableLevel::Pml4 | TableLevel::Pml5 => break,
            }
            way[table.level() as usize - 1] = Some(id);
            at = table.parent_ptes().first(&self.pte_entries).map(|place| place.table);
        }
        stage2.reserve(needs)?;
        for id in way.into_iter().rev().flatten() {
            let table = self.tables.get(id);
            let handle = stage2.link(table.gfn(), table.level())?;
            table.set_handle(Some(handle));
        }
        Ok(())
    }

    /// A table out of the pool, or one that all walkers have left.
    pub(crate) fn draw<P: Before<FreeLeaf>>(&self, held: &mut Held<P>) -> Option<TableId> {
        self.tables.draw(held).or_else(|| {
            self.tables.reclaim(held, self.walkers.safe_epoch());
            self.tables.draw(held)
        })
    }

    /// Draws tables until `cache` has enough for a spte of `level` at `gfn`: as many as the walk saw missing. `false`:
    /// others have them just now.
    ///
    /// # Errors
    /// There are none left.
    // REQ: SP-11
    #[cold]
    #[inline(never)]
    pub(super) fn top_up(
        &self,
        slots: &SlotTable,
        held: &mut Held<InSection>,
        cache: &mut TableCache,
        gfn: Gfn,
        level: TableLevel,
        mut missing: usize,
    ) -> Result<bool, Stage2Error> {
        while cache.len() < missing {
            if let Some(id) = self.draw(held) {
                cache.push(id);
                continue;
            }
            // Slots are accepted only if their tables fit, so caches, obsolete tables or other faults have the room.
            let drawn = cache.len();
            let others = self.zap(slots, held, |zap| {
                if zap.make_room(gfn) {
                    return 1;
                }
                // Others may have made the tables meanwhile.
                missing = (self.walk(gfn).level as usize).saturating_sub(level as usize);
                self.tables.unused(zap.held).all() - drawn
            });
            if others == 0 && drawn < missing {
                return Err(Stage2Error::Exhausted(Resource::Tables));
            }
            match self.draw(held) {
                Some(id) => cache.push(id),
                // Others have drawn what there is, or walkers are still in it, and they may wait for this fault's
                // tables in turn: the guest comes again.
                None if others > 0 && self.tables.unused(held).all() > drawn => return Ok(false),
                None => {}
            }
        }
        Ok(true)
    }

    /// Puts tables back that were drawn and not used.
    pub(super) fn put_back(&self, cache: &mut TableCache) {
        let mut held = Held::entry();
        while let Some(id) = cache.pop() {
            self.tables.put_back(&mut held, id);
        }
    }

    /// What reverse maps may need for one more spte.
    #[inline]
    pub(super) fn top_up_entries(&self, reserve: &mut PteReserve) -> Result<(), FaultError> {
        self.pte_entries
            .top_up(reserve, ENTRIES_PER_ADD)
            .map_err(|resource| Stage2Error::Exhausted(resource).into())
    }
}

impl<S: Stage2> Zap<'_, S> {
    /// Cleans up after an installation that the hardware refused: what the reverse map knows of the page and no spte, and
    /// tables that nothing is in. Tables go with their last leaf, so nobody else would free those.
    pub(crate) fn refused(&mut self, slot: &Slot, gfn: Gfn, size: PageLevel) {
        let tables = &self.mmu.tables;
        let places = || slot.data.places(&self.mmu.pte_entries, gfn, size);
        while let Some(place) = { places().find(|place| tables.read(*place).is_empty()) } {
            self.forget(slot, gfn, size, place);
        }
        self.unused(gfn);
    }

    /// Cleans up after a leaf that the hardware did not have any more: see [`Mmu::converge`]. Others may have done it.
    pub(crate) fn lost(&mut self, slot: &Slot, gfn: Gfn, size: PageLevel, place: SptePlace) {
        let empty = self.mmu.tables.read(place).is_empty();
        let known = slot.data.places(&self.mmu.pte_entries, gfn, size).any(|p| p == place);
        if empty && known {
            self.forget(slot, gfn, size, place);
            if !self.mmu.is_obsolete(place.table) {
                self.free_if_empty(place.table);
            }
        }
    }
}
