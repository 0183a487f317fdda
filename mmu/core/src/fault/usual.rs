// SPDX-License-Identifier: MIT OR Apache-2.0
//! What do most faults come down to? An MMIO spte, a leaf that has lost W to the dirty log, or an empty spte of a page that
//! can be mapped at once: in one straight line, which begins where the last fault of the vCPU was. It decides nothing that
//! the general way would decide otherwise, and leaves to it whatever is not usual.

use super::classify::Near;
use super::plan::{MapPlan, find_usual};
use super::{Fault, FaultError, Outcome};
use crate::Mmu;
use crate::locks::{Held, InSection};
use crate::slots::{Slot, SlotTable};
use crate::spte::{Format, Leaf, Spte};
use crate::stage2::{Stage2, Stage2Error, TableLevel};
use crate::sync::atomic::Ordering;
use crate::table::SptePlace;
use crate::trace::Event;
use crate::vcpu::{MmioCache, Vcpu};
use umbra_mmu_abi::{Access, Gfn, PAGE_SHIFT, PageLevel};

impl<S: Stage2> Mmu<S> {
    /// Answers a fault in EPT mode.
    ///
    /// # Errors
    /// As [`Mmu::fault`].
    // REQ: PF-1, PF-3, GEN-4
    #[inline(never)]
    pub(super) fn usual(&self, vcpu: &mut Vcpu, fault: &Fault) -> Result<Outcome, FaultError> {
        'unusual: {
            let gfn = fault.gfn();
            let seq = self.invalidate.seq();
            let walking = self.walkers.enter(&mut vcpu.walker);
            let Some(walk) = self.walk_near(&mut vcpu.near, gfn) else {
                break 'unusual;
            };
            if walk.spte.is_mmio(Format::Ept) {
                // (a)
                match self.usual_mmio(&mut vcpu.mmio, fault, seq) {
                    Some(answer) => return answer,
                    None => break 'unusual,
                }
            }
            let table = self.tables.get(walk.place.table);
            let mut held = Held::entry();
            let mut section = self.slots.read(&mut held);
            let (slots, held) = section.split();
            let Some(slot) = slots.lookup_near(gfn, &mut vcpu.near_slot) else {
                break 'unusual;
            };
            if !walk.spte.is_empty() {
                // (b)
                let restored = walk
                    .spte
                    .with_write_restored()
                    .filter(|_| fault.code.access() == Access::Write);
                match (restored, walk.level.page()) {
                    (Some(word), Some(level)) if self.is_near_current(&vcpu.near, table) => {
                        return match self.restore_write(held, slot, &walk, word, gfn) {
                            Ok(()) => Ok(self.resume()),
                            Err(error) => {
                                self.restore_refused(slots, held, walk.place, gfn, word.known_leaf(level), error)
                            }
                        };
                    }
                    (Some(_) | None, _) => break 'unusual,
                }
            }
            // (e)
            let Some(MapPlan { at, leaf, .. }) = find_usual(slot, &self.host, gfn) else {
                break 'unusual;
            };
            // (g)
            if walk.level != TableLevel::of_page(leaf.level) {
                break 'unusual;
            }
            let mut guard = self.lock.read(held);
            if self.invalidate.must_retry_page(seq, at, leaf.level) || !self.is_near_current(&vcpu.near, table) {
                break 'unusual;
            }
            // The reverse map first: who finds the place there, and nothing in it, comes again.
            if !slot.data.add_only(at, leaf.level, walk.place) {
                break 'unusual;
            }
            let mut stage2 = self.effects.lock(guard.held());
            if !self.tables.fill(walk.place, table, Spte::leaf(Format::Ept, leaf)) {
                drop(stage2);
                self.take_back(slot, at, leaf.level, walk.place);
                break 'unusual;
            }
            if let Err(error) = stage2.map(slot.id, at, &leaf) {
                self.tables.set(walk.place, Spte::EMPTY);
                drop(stage2);
                self.take_back(slot, at, leaf.level, walk.place);
                drop(guard);
                return self.refused(slots, held, (slot, at, leaf.level), error);
            }
            drop(stage2);
            let level = leaf.level;
            self.stats.mapped(level).fetch_add(1, Ordering::Relaxed);
            self.trace.event(|| Event::Map { gfn: at, level });
            drop(walking);
            return Ok(self.resume());
        }
        // Should it have been a wrong guess, the next one is better.
        vcpu.near = Near::NOWHERE;
        self.handle(vcpu, fault)
    }

    /// (a), (f) Where an MMIO spte was found: whether it still is true; if the slots have changed, it is made so.
    // REQ: GEN-4, GEN-6
    #[inline(never)]
    fn usual_mmio(&self, cache: &mut MmioCache, fault: &Fault, seq: u64) -> Option<Result<Outcome, FaultError>> {
        let (gfn, stamp) = (fault.gfn(), self.generation.cacheable()?);
        let walk = self.walk(gfn);
        let answer = match self.fresh_mmio(walk.spte, gfn, stamp) {
            Some(mmio) => self.answer_cached(mmio),
            None => {
                let mut held = Held::entry();
                let mut section = self.slots.read(&mut held);
                let (slots, held) = section.split();
                if slots.lookup(gfn).is_some() {
                    return None;
                }
                let mut guard = self.lock.read(held);
                // The walk lasts: a table that has left the tree is obsolete, and no other.
                if self.invalidate.must_retry(seq, gfn) || self.is_obsolete(walk.place.table) {
                    return None;
                }
                Ok(self.emulate(self.replace_mmio(guard.held(), &walk, gfn, stamp)?))
            }
        };
        cache.fill(fault.address >> PAGE_SHIFT, gfn, fault.code.bits(), stamp);
        Some(answer)
    }

    #[cold]
    #[inline(never)]
    fn restore_refused(
        &self,
        slots: &SlotTable,
        held: &mut Held<InSection>,
        place: SptePlace,
        gfn: Gfn,
        leaf: Leaf,
        error: Stage2Error,
    ) -> Result<Outcome, FaultError> {
        self.restored(slots, held, place, gfn, leaf, Err(error))?;
        Err(error.into())
    }

    /// Takes a place out of the reverse map that has not become a leaf.
    #[cold]
    #[inline(never)]
    fn take_back(&self, slot: &Slot, at: Gfn, level: PageLevel, place: SptePlace) {
        slot.data.remove(&self.pte_entries, at, level, place);
    }

    /// The hardware refused the plan: nothing of it stays.
    #[cold]
    #[inline(never)]
    pub(super) fn refused<T>(
        &self,
        slots: &SlotTable,
        held: &mut Held<InSection>,
        (slot, at, level): (&Slot, Gfn, PageLevel),
        error: Stage2Error,
    ) -> Result<T, FaultError> {
        self.zap(slots, held, |zap| zap.refused(slot, at, level));
        Err(error.into())
    }
}
