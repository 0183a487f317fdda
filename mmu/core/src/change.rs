// SPDX-License-Identifier: MIT OR Apache-2.0
//! How do memslots change? Checked, prepared, published; refused changes leave nothing behind.

use crate::Mmu;
use crate::generation::Bumped;
use crate::locks::{Held, InSlots};
use crate::slots::{Slot, SlotState};
use crate::stage2::{Stage2, Stage2Error};
use crate::sync::atomic::Ordering;
use crate::trace::Event;
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
            return Ok(self.delete(held, &old));
        }
        let new = Slot::check(id, base, npages, backing, flags, &self.backings)?;
        {
            let published = self.slots.read(held);
            if published.overlaps(&new) {
                return Err(SlotError::Overlap.into());
            }
            if published.tables_needed(Some(&new)) >= self.tables.capacity() {
                return Err(SlotError::NoSpace.into());
            }
        }
        match old {
            None => self.create(held, new),
            Some(old) if (old.npages, old.backing) != (npages, backing) => Err(SlotError::Invalid.into()),
            Some(old) if (old.base, old.flags) == (base, flags) => Ok(self.generation()),
            Some(old) => self.replace(held, &old, new),
        }
    }

    fn create(&self, held: &mut Held<InSlots>, new: Slot) -> Result<Generation, ChangeError> {
        self.attach(held, &new)?;
        self.generation.begin();
        self.publish(held, new.id, Some(new));
        Ok(self.finish(held))
    }

    fn attach(&self, held: &mut Held<InSlots>, new: &Slot) -> Result<(), Stage2Error> {
        let mut stage2 = self.effects.lock(held);
        stage2.attach_slot(new.id, new.backing, new.npages, new.access())
    }

    /// Moves a slot or changes its flags: its mappings go while nobody can make new ones.
    fn replace(&self, held: &mut Held<InSlots>, old: &Slot, new: Slot) -> Result<Generation, ChangeError> {
        self.generation.begin();
        self.retire(held, old);
        match self.attach(held, &new) {
            Ok(()) => {
                self.publish(held, new.id, Some(new));
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

    fn delete(&self, held: &mut Held<InSlots>, old: &Slot) -> Generation {
        self.generation.begin();
        self.retire(held, old);
        self.publish(held, old.id, None);
        self.finish(held)
    }

    /// Publishes the table with `id` replaced, and waits for the readers of the one before.
    pub(crate) fn publish(&self, held: &mut Held<InSlots>, id: SlotId, new: Option<Slot>) {
        let unsynchronized = {
            let mut arch = self.slots_arch_lock.lock(held);
            let mut edit = self.slots.edit(arch.held());
            let (published, copy) = edit.split();
            copy.copy_with(published, id, new);
            edit.publish()
        };
        self.slots.synchronize(unsynchronized, held);
    }

    /// From here on no mapping of the slot exists, and none can come.
    // REQ: MEM-6, MEM-7
    fn retire(&self, held: &mut Held<InSlots>, old: &Slot) {
        let dying = Slot {
            state: SlotState::Invalid,
            ..old.clone()
        };
        self.publish(held, old.id, Some(dying));
        let mut section = self.slots.read(held);
        let (slots, held) = section.split();
        self.zap(slots, held, |zap| zap.slot(old));
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
