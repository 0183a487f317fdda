// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where is the guest's memory, for those who read its tables and write for it? From gfn to slot to frame.

use super::walk::{GuestTables, Marked};
use super::write::NotWritten;
use crate::Mmu;
use crate::fault::{HostFault, HostNeed};
use crate::host::{HostPage, HostView};
use crate::role::PteAccess;
use crate::slots::{Slot, SlotState, SlotTable};
use crate::spte::MmioAccess;
use crate::stage2::{Frame, GpteSize, GuestAccess, GuestRam, Stage2};
use core::cell::Cell;
use umbra_mmu_abi::{Access, Gfn, SlotFlags};

/// What an MMIO spte keeps of the access.
pub(super) const fn mmio_access(access: PteAccess) -> MmioAccess {
    match (access.contains(PteAccess::WRITE), access.contains(PteAccess::USER)) {
        (false, false) => MmioAccess::Read,
        (true, false) => MmioAccess::Write,
        (false, true) => MmioAccess::User,
        (true, true) => MmioAccess::All,
    }
}

/// The guest's memory through one table of slots.
pub(super) struct GuestMemory<'a, S: Stage2> {
    mmu: &'a Mmu<S>,
    slots: &'a SlotTable,
    /// What a walk needs of the owner of a frame before it can be trusted.
    // REQ: HOST-1
    pub need: Cell<Option<(Gfn, HostFault)>>,
    /// The slot that was looked up last.
    last: Cell<Option<&'a Slot>>,
}

impl<'a, S: Stage2> GuestMemory<'a, S> {
    pub fn new(mmu: &'a Mmu<S>, slots: &'a SlotTable) -> Self {
        Self {
            mmu,
            slots,
            need: Cell::new(None),
            last: Cell::new(None),
        }
    }

    /// The live slot of a frame, and the frame, if the host has it there.
    #[inline]
    pub fn find(&self, gfn: Gfn) -> Option<(&'a Slot, Frame)> {
        let slot = match self.last.get() {
            Some(slot) if slot.contains(gfn) => slot,
            Some(_) | None => {
                let slot = self.slots.lookup(gfn).filter(|slot| slot.state == SlotState::Live)?;
                self.last.set(Some(slot));
                slot
            }
        };
        Some((slot, slot.frame_of(gfn)))
    }

    /// The slot of a frame, also one that is going.
    #[inline]
    pub fn slot(&self, gfn: Gfn) -> Option<&'a Slot> {
        match self.last.get() {
            Some(slot) if slot.contains(gfn) => Some(slot),
            Some(_) | None => self.slots.lookup(gfn),
        }
    }

    /// The slot that was looked up last.
    pub fn last(&self) -> Option<&'a Slot> {
        self.last.get()
    }

    /// The same for a write.
    ///
    /// # Errors
    /// There is no memory that can be written, or its owner has to do something before.
    pub fn find_writable(&self, gfn: Gfn) -> Result<(&'a Slot, Frame), NotWritten> {
        let (slot, frame) = self.find(gfn).ok_or(NotWritten::NoMemory)?;
        if slot.flags.contains(SlotFlags::READONLY) {
            return Err(NotWritten::NoMemory);
        }
        if self.mmu.host.is_plain(frame) {
            return Ok((slot, frame));
        }
        match access(&self.mmu.host.page(frame), Access::Write) {
            Ok(_) => Ok((slot, frame)),
            Err(need) => Err(NotWritten::Host(HostFault { frame, need })),
        }
    }
}

/// The host's page, if it allows an access to the slot's memory; else what its owner has to do.
// REQ: HOST-1
pub(super) fn access(view: &HostView, access: Access) -> Result<HostPage, HostNeed> {
    match *view {
        HostView::Page(page) | HostView::Split(page) | HostView::Whole(page) => match (page.access, access) {
            (GuestAccess::ReadExec, Access::Write) => Err(HostNeed::Write),
            (GuestAccess::ReadExec, Access::Read | Access::Fetch) | (GuestAccess::All, _) => Ok(page),
        },
        HostView::Away => Err(HostNeed::Frame),
        HostView::Revoked => Err(HostNeed::Revoked),
    }
}

impl<S: Stage2> Mmu<S> {
    /// An entry of the guest's.
    #[inline]
    pub(super) fn read_guest(&self, frame: Frame, offset: u16, size: GpteSize) -> u64 {
        self.ram.read(frame, offset, size)
    }
}

impl<S: Stage2> GuestTables for GuestMemory<'_, S> {
    #[inline]
    fn read(&self, gfn: Gfn, offset: u16, size: GpteSize) -> Option<u64> {
        let (_, frame) = self.find(gfn)?;
        if self.mmu.host.is_plain(frame) {
            return Some(self.mmu.ram.read(frame, offset, size));
        }
        match access(&self.mmu.host.page(frame), Access::Read) {
            Ok(_) => Some(self.mmu.ram.read(frame, offset, size)),
            Err(need) => {
                self.need.set(Some((gfn, HostFault { frame, need })));
                None
            }
        }
    }

    // REQ: PF-2, DT-1
    fn mark(&self, gfn: Gfn, offset: u16, size: GpteSize, old: u64, new: u64) -> Marked {
        let (slot, frame) = match self.find_writable(gfn) {
            Ok(found) => found,
            Err(NotWritten::NoMemory) => return Marked::ReadOnly,
            Err(NotWritten::Host(fault)) => {
                self.need.set(Some((gfn, fault)));
                return Marked::ReadOnly;
            }
        };
        match self.mmu.ram.compare_exchange(frame, offset, size, old, new) {
            Ok(()) => {
                if slot.flags.contains(SlotFlags::LOG_DIRTY) {
                    slot.data.dirty.mark(gfn);
                }
                Marked::Done
            }
            Err(_) => Marked::Changed,
        }
    }
}
