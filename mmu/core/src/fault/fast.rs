// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which faults need no mmu_lock? Those that the spte alone answers.

use super::{Class, Fault, FaultError, Outcome, Walk};
use crate::Mmu;
use crate::locks::{Held, InSection};
use crate::slots::{Slot, SlotTable};
use crate::spte::{Format, Leaf, Spte, Writable};
use crate::stage2::{GuestAccess, Stage2, Stage2Error};
use crate::table::SptePlace;
use crate::vcpu::Spurious;
use umbra_mmu_abi::{Access, Gfn, Mmio, SlotFlags};

/// So many faults in a row at one address that is mapped are no coincidence: whoever maps it just now is waited for.
const LOOPING: u32 = 256;

impl<S: Stage2> Mmu<S> {
    /// Answers the fault without mmu_lock, if that can be done. The caller is inside a walk, whose end this is, and in a
    /// read-side section: what the walk found lies in a slot that cannot be replaced by another before the section ends.
    // REQ: PF-1, DT-2, AT-1
    #[inline(never)]
    pub(super) fn fast(
        &self,
        slots: &SlotTable,
        held: &mut Held<InSection>,
        spurious: &mut Spurious,
        walk: &Walk,
        fault: &Fault,
    ) -> Result<Option<Outcome>, FaultError> {
        let gfn = fault.gfn();
        let access = fault.code.access();
        match self.classify(walk, gfn, access) {
            Class::Slow => Ok(None),
            // Where the slot could be written, the host does not let it just now.
            Class::ReadOnlyWrite if slots.lookup(gfn).is_none_or(|slot| slot.access() == GuestAccess::All) => Ok(None),
            Class::ReadOnlyWrite => Ok(Some(self.emulate(Mmio {
                readonly_slot: true,
                ..self.mmio(gfn)
            }))),
            Class::Spurious => self.spurious(held, spurious, fault).map(Some),
            Class::RestoreWrite(leaf) => {
                let restored = match slots.lookup(gfn) {
                    Some(slot) => {
                        let writable = Writable::Now;
                        let word = Spte::leaf(Format::Ept, Leaf { writable, ..leaf });
                        self.restore_write(held, slot, walk, word, gfn)
                    }
                    None => Ok(()),
                };
                self.restored(slots, held, walk.place, gfn, leaf, restored)
            }
            Class::RestoreAccess(leaf) => {
                let restored = match slots.lookup(gfn) {
                    Some(slot) => self.restore_access(held, slot, walk, leaf, gfn, access),
                    None => Ok(()),
                };
                self.restored(slots, held, walk.place, gfn, leaf, restored)
            }
        }
    }

    /// Sets W again (`word`), if the spte is still the one that was looked at. Its table is not used for another gfn while the walk
    /// lasts, and the same word at the same place is the same frame: however often it was zapped and mapped again
    /// meanwhile, it may have W.
    // REQ: DT-2, DT-3
    #[inline(always)]
    pub(super) fn restore_write(
        &self,
        held: &mut Held<InSection>,
        slot: &Slot,
        walk: &Walk,
        word: Spte,
        gfn: Gfn,
    ) -> Result<(), Stage2Error> {
        if !self.tables.exchange_leaf(walk.place, walk.spte, word) {
            // The guest comes back to whatever is there now.
            return Ok(());
        }
        // After W: see the dirty log.
        log_write(slot, gfn);
        let at = self.tables.gfn_of(walk.place);
        self.converge(&mut self.effects.lock(held), slot, at, walk.place)
    }

    /// Makes a leaf present again, which hardware does not have while it is not. W comes back for a write only, through
    /// the dirty log.
    // REQ: AT-1, DT-3
    fn restore_access(
        &self,
        held: &mut Held<InSection>,
        slot: &Slot,
        walk: &Walk,
        old: Leaf,
        gfn: Gfn,
        access: Access,
    ) -> Result<(), Stage2Error> {
        let writable = match (access, old.writable) {
            (Access::Write, Writable::Restorable | Writable::Now) => Writable::Now,
            (Access::Read | Access::Fetch, Writable::Now) => Writable::Restorable,
            (Access::Read | Access::Write | Access::Fetch, other) => other,
        };
        let new = Leaf { writable, ..old };
        let mut stage2 = self.effects.lock(held);
        // Under the lock: the tables of an earlier generation are not hardware's any more.
        let word = Spte::leaf(Format::Ept, new);
        if self.is_obsolete(walk.place.table) || self.tables.compare_exchange(walk.place, walk.spte, word).is_err() {
            return Ok(());
        }
        let at = self.tables.gfn_of(walk.place);
        if let Err(error) = stage2.map(slot.id, at, &new) {
            self.tables.set(walk.place, Spte::EMPTY);
            return Err(error);
        }
        drop(stage2);
        if writable == Writable::Now {
            log_write(slot, gfn);
        }
        Ok(())
    }

    /// The guest comes again; where the hardware refused, everybody forgets the leaf first.
    pub(super) fn restored(
        &self,
        slots: &SlotTable,
        held: &mut Held<InSection>,
        place: SptePlace,
        gfn: Gfn,
        leaf: Leaf,
        restored: Result<(), Stage2Error>,
    ) -> Result<Option<Outcome>, FaultError> {
        if let (Err(_), Some(slot)) = (restored, slots.lookup(gfn)) {
            let at = gfn.align_down(leaf.level);
            self.zap(slots, held, |zap| zap.lost(slot, at, leaf.level, place));
        }
        restored?;
        Ok(Some(self.resume()))
    }

    /// The spte allows the access. Another fault may be about to map it; it is waited for before anybody is blamed.
    #[cold]
    pub(super) fn spurious(
        &self,
        held: &mut Held<InSection>,
        spurious: &mut Spurious,
        fault: &Fault,
    ) -> Result<Outcome, FaultError> {
        if self.invalidate.is_active() {
            // The owner of a frame takes its time, and that is no fault of the hardware.
            // REQ: HOST-1
            return Ok(self.resume());
        }
        let times = spurious.count(fault.address);
        if times == LOOPING {
            drop(self.lock.write(held));
        }
        match times < 2 * LOOPING {
            true => Ok(self.resume()),
            false => Err(FaultError::Looping {
                gpa: fault.gpa(),
                times,
            }),
        }
    }
}

/// Logs a write where the slot wants that.
// REQ: DT-1
#[inline]
fn log_write(slot: &Slot, gfn: Gfn) {
    if slot.flags.contains(SlotFlags::LOG_DIRTY) {
        slot.data.dirty.mark(gfn);
    }
}
