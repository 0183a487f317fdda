// SPDX-License-Identifier: MIT OR Apache-2.0
//! How do memslots change? Checked, prepared, published; refused changes leave nothing behind.

use crate::generation::Bumped;
use crate::invalidate::Busy;
use crate::locks::{Held, InSlots};
use crate::slots::{Slot, SlotState};
use crate::stage2::{Stage2, Stage2Error};
use crate::sync::atomic::Ordering;
use crate::trace::Event;
use crate::{Mmu, Mode};
use umbra_mmu_abi::{Backing, Generation, Gfn, SlotError, SlotFlags, SlotId};

/// Why a slot did not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeError {
    /// The peer asked for something that cannot be.
    Refused(SlotError),
    /// The hardware; exhaustion has changed nothing.
    Stage2(Stage2Error),
}

impl From<SlotError> for ChangeError {
    fn from(error: SlotError) -> Self {
        Self::Refused(error)
    }
}

impl From<Stage2Error> for ChangeError {
    fn from(error: Stage2Error) -> Self {
        Self::Stage2(error)
    }
}

impl core::fmt::Display for ChangeError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Refused(error) => error.fmt(f),
            Self::Stage2(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for ChangeError {}

impl<S: Stage2> Mmu<S> {
    /// Creates, moves, re-flags or (with `npages` 0) deletes a slot, and tells the generation from then on. A slot keeps
    /// its length and backing for life.
    ///
    /// # Errors
    /// Refused or exhausted, with nothing changed.
    // REQ: MEM-1, MEM-2, MEM-6
    pub fn set_slot(
        &self,
        id: SlotId,
        base: Gfn,
        npages: u32,
        backing: Backing,
        flags: SlotFlags,
    ) -> Result<Generation, ChangeError> {
        let mut held = Held::entry();
        let mut guard = self.slots_lock.lock(&mut held);
        let held = guard.held();
        let old = self.slots.read(held).get(id).cloned();
        if npages == 0 {
            let old = old.ok_or(SlotError::NoEntry)?;
            return self.delete(held, &old);
        }
        let new = Slot::check(id, base, npages, backing, flags, &self.host, old.as_ref())?;
        {
            let published = self.slots.read(held);
            if published.overlaps(&new) {
                return Err(SlotError::Overlap.into());
            }
            let place = |slot: &Slot| (slot.base, slot.npages, slot.backing);
            let stays = old.as_ref().is_some_and(|old| place(old) == place(&new));
            // Shadow pages have a limit of their own, and room is made for them.
            if self.mode == Mode::Ept
                && !stays
                && published.tables_needed(Some(&new), &self.host) >= self.tables.capacity()
            {
                return Err(SlotError::NoSpace.into());
            }
        }
        match old {
            None => self.create(held, new),
            Some(old) if (old.npages, old.backing) != (npages, backing) => Err(SlotError::Invalid.into()),
            Some(old) if (old.base, old.flags) == (base, flags) => Ok(self.generation()),
            Some(old) if old.base == base && old.flags ^ flags == SlotFlags::LOG_DIRTY => self.relog(held, &old, flags),
            Some(old) => self.replace(held, &old, new),
        }
    }

    fn create(&self, held: &mut Held<InSlots>, new: Slot) -> Result<Generation, ChangeError> {
        self.attach(held, &new)?;
        self.generation.begin();
        let id = new.id;
        match self.publish_first(held, id, Some(new)) {
            Ok(()) => Ok(self.finish(held)),
            Err(Busy) => {
                self.generation.abandon();
                let mut stage2 = self.effects.lock(held);
                let removed = stage2.revoke_slot(id);
                stage2.flush(removed);
                Err(SlotError::Busy.into())
            }
        }
    }

    fn attach(&self, held: &mut Held<InSlots>, new: &Slot) -> Result<(), Stage2Error> {
        let mut stage2 = self.effects.lock(held);
        stage2.attach_slot(new.id, new.backing, new.npages, new.access())
    }

    /// Starts or stops the dirty log. Mappings stay.
    // REQ: DT-1, LP-4
    fn relog(&self, held: &mut Held<InSlots>, old: &Slot, flags: SlotFlags) -> Result<Generation, ChangeError> {
        let new = Slot { flags, ..old.clone() };
        let logs = flags.contains(SlotFlags::LOG_DIRTY);
        if logs {
            old.data.dirty.clear();
        }
        self.generation.begin();
        if self.publish_first(held, old.id, Some(new.clone())).is_err() {
            self.generation.abandon();
            return Err(SlotError::Busy.into());
        }
        match logs {
            true => self.start_log(held, &new),
            false => self.stop_log(held, &new),
        }
        Ok(self.finish(held))
    }

    /// Moves a slot or changes its flags: its mappings go while nobody can make new ones. What was written stays in the
    /// log.
    fn replace(&self, held: &mut Held<InSlots>, old: &Slot, new: Slot) -> Result<Generation, ChangeError> {
        self.generation.begin();
        self.retire(held, old)?;
        match self.attach(held, &new) {
            Ok(()) => {
                let log = new.data.clone();
                self.publish(held, new.id, Some(new));
                // Nobody marks the old log any more.
                // REQ: DT-1
                log.dirty.mark_all_of(&old.data.dirty);
                Ok(self.finish(held))
            }
            Err(error) => {
                // The hardware broke its word. The slot is gone, and everybody may know.
                self.publish(held, old.id, None);
                let _: Generation = self.finish(held);
                Err(error.into())
            }
        }
    }

    fn delete(&self, held: &mut Held<InSlots>, old: &Slot) -> Result<Generation, ChangeError> {
        self.generation.begin();
        self.retire(held, old)?;
        self.publish(held, old.id, None);
        Ok(self.finish(held))
    }

    /// Publishes the first table of a change.
    ///
    /// # Errors
    /// The owner of frames is between start and end of a change of them, which uses one table; nothing has changed.
    // REQ: HOST-1
    fn publish_first(&self, held: &mut Held<InSlots>, id: SlotId, new: Option<Slot>) -> Result<(), Busy> {
        let unsynchronized = {
            let mut arch = self.slots_arch_lock.lock(held);
            let mut edit = self.slots.edit(arch.held());
            let (published, copy) = edit.split();
            copy.copy_with(published, id, new);
            self.invalidate.publish(|| edit.publish())?
        };
        self.slots.synchronize(unsynchronized, held);
        Ok(())
    }

    /// Publishes the second table of a change, and waits for the readers of the one before.
    // REQ: HOST-1
    pub(crate) fn publish(&self, held: &mut Held<InSlots>, id: SlotId, new: Option<Slot>) {
        let unsynchronized = {
            let mut arch = self.slots_arch_lock.lock(held);
            let mut edit = self.slots.edit(arch.held());
            let (published, copy) = edit.split();
            copy.copy_with(published, id, new);
            self.invalidate.publish_after_pairs(|| edit.publish())
        };
        self.slots.synchronize(unsynchronized, held);
    }

    /// From here on no mapping of the slot exists, and none can come.
    ///
    /// # Errors
    /// The owner of frames is changing them; the change of the slot is abandoned.
    // REQ: MEM-6, MEM-7
    fn retire(&self, held: &mut Held<InSlots>, old: &Slot) -> Result<(), ChangeError> {
        let dying = Slot {
            state: SlotState::Invalid,
            ..old.clone()
        };
        if self.publish_first(held, old.id, Some(dying)).is_err() {
            self.generation.abandon();
            return Err(SlotError::Busy.into());
        }
        let mut section = self.slots.read(held);
        let (slots, held) = section.split();
        // In batches: faults of other slots go on in between.
        while !self.zap(slots, held, |zap| zap.slot(old)) {}
        Ok(())
    }

    /// Ends the change: the generation moves, and a wrap zaps what looks fresh and is not.
    // REQ: GEN-3, GEN-5
    fn finish(&self, held: &mut Held<InSlots>) -> Generation {
        let generation = match self.generation.finish() {
            Bumped::Next(generation) => generation,
            Bumped::Wrapped(generation) => {
                self.stats.generation_wraps.fetch_add(1, Ordering::Relaxed);
                let mut section = self.slots.read(held);
                let (slots, held) = section.split();
                self.zap(slots, held, |zap| zap.mmio());
                generation
            }
        };
        self.trace.event(|| Event::InvalidateMmio { generation });
        generation
    }
}
