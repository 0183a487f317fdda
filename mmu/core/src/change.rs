// SPDX-License-Identifier: MIT OR Apache-2.0
//! How do memslots change? Checked, prepared, published; refused changes leave nothing behind.

use crate::Mmu;
use crate::generation::Bumped;
use crate::rmap::Rmap;
use crate::slots::{Slot, SlotState};
use crate::stage2::{Stage2, Stage2Error};
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
        &mut self,
        id: SlotId,
        base: Gfn,
        npages: u32,
        backing: Backing,
        flags: SlotFlags,
    ) -> Result<Generation, ChangeError> {
        let old = self.slots.published().get(id).copied();
        if npages == 0 {
            let old = old.ok_or(SlotError::NoEntry)?;
            return Ok(self.delete(&old));
        }
        let new = Slot::check(id, base, npages, backing, flags, &self.backings)?;
        let published = self.slots.published();
        if published.overlaps(&new) {
            return Err(SlotError::Overlap.into());
        }
        if published.tables_needed(Some(&new)) >= self.tables.capacity() {
            return Err(SlotError::NoSpace.into());
        }
        match old {
            None => self.create(new),
            Some(old) if (old.npages, old.backing) != (npages, backing) => Err(SlotError::Invalid.into()),
            Some(old) if old == new => Ok(self.generation()),
            Some(old) => self.replace(&old, new),
        }
    }

    fn create(&mut self, new: Slot) -> Result<Generation, ChangeError> {
        let rmap = Rmap::new(new.base, new.npages).map_err(Stage2Error::Exhausted)?;
        self.stage2.attach_slot(new.id, new.backing, new.npages, new.access())?;
        self.rmaps[new.id.0 as usize] = Some(rmap);
        self.slots.begin();
        self.slots.publish(new.id, Some(new));
        Ok(self.finish())
    }

    /// Moves a slot or changes its flags: its mappings go while nobody can make new ones.
    fn replace(&mut self, old: &Slot, new: Slot) -> Result<Generation, ChangeError> {
        let rmap = Rmap::new(new.base, new.npages).map_err(Stage2Error::Exhausted)?;
        self.slots.begin();
        self.retire(old);
        let attached = self.stage2.attach_slot(new.id, new.backing, new.npages, new.access());
        match attached {
            Ok(()) => {
                self.rmaps[new.id.0 as usize] = Some(rmap);
                self.slots.publish(new.id, Some(new));
                Ok(self.finish())
            }
            Err(error) => {
                // The hardware broke its word. The slot is gone, and everybody may know.
                self.rmaps[old.id.0 as usize] = None;
                self.slots.publish(old.id, None);
                let _: Generation = self.finish();
                Err(error.into())
            }
        }
    }

    fn delete(&mut self, old: &Slot) -> Generation {
        self.slots.begin();
        self.retire(old);
        self.rmaps[old.id.0 as usize] = None;
        self.slots.publish(old.id, None);
        self.finish()
    }

    /// From here on no mapping of the slot exists, and none can come.
    // REQ: MEM-6, MEM-7
    fn retire(&mut self, old: &Slot) {
        self.slots.publish(
            old.id,
            Some(Slot {
                state: SlotState::Invalid,
                ..*old
            }),
        );
        let removed = self.zap_slot(old.id);
        self.stage2.flush(removed);
    }

    /// Ends the change: the generation moves, and a wrap zaps what looks fresh and is not.
    // REQ: GEN-3, GEN-5
    fn finish(&mut self) -> Generation {
        self.invalidate_seq += 1;
        let generation = match self.slots.finish() {
            Bumped::Next(generation) => generation,
            Bumped::Wrapped(generation) => {
                self.stats.generation_wraps += 1;
                let removed = self.zap_mmio();
                self.stage2.flush(removed);
                generation
            }
        };
        self.trace.event(|| Event::InvalidateMmio { generation });
        generation
    }
}
