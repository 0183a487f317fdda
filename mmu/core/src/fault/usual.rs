// SPDX-License-Identifier: MIT OR Apache-2.0
//! What do most faults come down to? An MMIO spte that holds, or an empty spte of a page that can be mapped at once: in one
//! straight line. It decides nothing that [`Mmu::fault`] would decide otherwise, and leaves to it whatever is not usual.

use super::plan::{Backed, MapPlan, find_frame};
use super::{Fault, FaultError, Outcome};
use crate::Mmu;
use crate::locks::{Held, InSection};
use crate::slots::{GFN_LIMIT, SlotTable};
use crate::spte::{Format, Spte};
use crate::stage2::{Stage2, Stage2Error};
use crate::sync::atomic::Ordering;
use crate::table::SptePlace;
use crate::trace::Event;
use crate::vcpu::Vcpu;
use umbra_mmu_abi::PAGE_SHIFT;

impl<S: Stage2> Mmu<S> {
    /// Answers the fault if it is one of those; `None` has changed nothing.
    ///
    /// # Errors
    /// The hardware refused the mapping.
    // REQ: PF-1, PF-3, GEN-4
    #[inline(never)]
    pub(super) fn usual(&self, vcpu: &mut Vcpu, fault: &Fault) -> Result<Option<Outcome>, FaultError> {
        let gfn = fault.gfn();
        if gfn.raw() >= GFN_LIMIT {
            return Ok(None);
        }
        let seq = self.invalidate.seq();
        let stamp = self.generation.cacheable();
        let walking = self.walkers.enter(&mut vcpu.walker);
        let walk = self.walk(gfn);
        if !walk.spte.is_empty() {
            // (a)
            let Some((mmio, stamp)) = self.fresh_mmio(walk.spte, gfn, stamp).zip(stamp) else {
                return Ok(None);
            };
            vcpu.mmio
                .fill(fault.address >> PAGE_SHIFT, gfn, fault.code.bits(), stamp);
            return Ok(Some(self.emulate(mmio)));
        }
        let mut held = Held::entry();
        let mut section = self.slots.read(&mut held);
        let (slots, held) = section.split();
        // (e)
        let Some(slot) = slots.lookup(gfn) else {
            return Ok(None);
        };
        let Backed::Frame(plan) = find_frame(slot, &self.host, gfn, fault.code.access()) else {
            return Ok(None);
        };
        // (g)
        if walk.level != plan.level() {
            return Ok(None);
        }
        let mut guard = self.lock.read(held);
        let table = self.tables.get(walk.place.table);
        // Nor has the table left the tree: it would be obsolete, and while the walk lasts it is no other.
        let current = table.valid_gen() == self.valid_gen.load(Ordering::Relaxed);
        let stale = self.invalidate.must_retry_page(seq, plan.at, plan.leaf.level);
        if stale || !current || table.handle().is_none() {
            return Ok(None);
        }
        // The reverse map first: who finds the place there, and nothing in it, comes again.
        if !plan.slot.data.add_only(plan.at, plan.leaf.level, walk.place) {
            return Ok(None);
        }
        let mut stage2 = self.effects.lock(guard.held());
        let filled = self.tables.fill(walk.place, Spte::leaf(Format::Ept, plan.leaf));
        if !filled {
            drop(stage2);
            self.take_back(&plan, walk.place);
            return Ok(None);
        }
        if let Err(error) = stage2.map(plan.slot.id, plan.at, &plan.leaf) {
            self.tables.set(walk.place, Spte::EMPTY);
            drop(stage2);
            self.take_back(&plan, walk.place);
            drop(guard);
            return self.refused(slots, held, &plan, error);
        }
        drop(stage2);
        self.stats.mapped(plan.leaf.level).fetch_add(1, Ordering::Relaxed);
        self.trace.event(|| Event::Map {
            gfn: plan.at,
            level: plan.leaf.level,
        });
        plan.log();
        drop(walking);
        Ok(Some(self.resume()))
    }

    /// Takes a place out of the reverse map that has not become a leaf.
    #[cold]
    fn take_back(&self, plan: &MapPlan<'_>, place: SptePlace) {
        let data = &plan.slot.data;
        data.remove(&self.pte_entries, plan.at, plan.leaf.level, place);
    }

    /// The hardware refused the plan: nothing of it stays.
    #[cold]
    #[inline(never)]
    pub(super) fn refused<T>(
        &self,
        slots: &SlotTable,
        held: &mut Held<InSection>,
        plan: &MapPlan<'_>,
        error: Stage2Error,
    ) -> Result<T, FaultError> {
        self.zap(slots, held, |zap| zap.refused(plan.slot, plan.at, plan.leaf.level));
        Err(error.into())
    }
}
