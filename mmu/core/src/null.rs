// SPDX-License-Identifier: MIT OR Apache-2.0
//! What does the core do and cost alone? A second stage that does nothing.

use crate::spte::Leaf;
use crate::stage2::{
    FlushEpoch, Frame, GuestAccess, NoRam, Observed, Stage2, Stage2Error, TableHandle, TableLevel, TableNeeds,
    Unflushed,
};
use crate::table::HeapWords;
use umbra_mmu_abi::{Backing, Gfn, SlotId};

/// Hardware that agrees to everything, and allocates nothing.
#[derive(Debug, Default)]
pub struct NullStage2(u32);

impl Stage2 for NullStage2 {
    type Words = HeapWords;
    type Ram = NoRam;

    fn attach_slot(&mut self, _: SlotId, _: Backing, _: u32, _: GuestAccess) -> Result<(), Stage2Error> {
        Ok(())
    }
    fn revoke_slot(&mut self, _: SlotId) -> Unflushed {
        Unflushed::NOTHING
    }
    fn reserve(&mut self, _: TableNeeds) -> Result<(), Stage2Error> {
        Ok(())
    }
    fn link(&mut self, _: Gfn, _: TableLevel) -> Result<TableHandle, Stage2Error> {
        self.0 += 1;
        Ok(TableHandle(self.0))
    }
    fn unlink(&mut self, _: TableHandle) -> Unflushed {
        Unflushed::NOTHING
    }
    fn map(&mut self, _: SlotId, _: Gfn, _: &Leaf) -> Result<(), Stage2Error> {
        Ok(())
    }
    fn unmap(&mut self, _: SlotId, _: Gfn, _: &Leaf) -> Unflushed {
        Unflushed::NOTHING
    }
    fn protect(&mut self, _: SlotId, _: Gfn, _: &Leaf) -> Result<Unflushed, Stage2Error> {
        Ok(Unflushed::NOTHING)
    }
    fn split_frame(&mut self, _: Frame) -> Result<(), Stage2Error> {
        Ok(())
    }
    fn merge_frames(&mut self, _: Frame) -> Result<(), Stage2Error> {
        Ok(())
    }
    fn flush(&mut self, removed: Unflushed) -> FlushEpoch {
        FlushEpoch(removed.settle().into())
    }
    fn observe(&mut self, _: SlotId, _: Gfn, _: &Leaf) -> Observed {
        Observed::Mapped
    }
    fn count_mapped(&mut self, _: SlotId) -> u32 {
        0
    }
}
