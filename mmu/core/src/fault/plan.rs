// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which frame is behind a gfn, and with which leaf is it to be mapped? Decided on slots that do not change meanwhile.

use crate::slots::{Slot, SlotState};
use crate::spte::{Leaf, Rights, Writable};
use crate::stage2::{GuestAccess, TableLevel};
use umbra_mmu_abi::{Access, Gfn, SlotFlags};

/// What is behind a gfn that a slot has.
pub(super) enum Backed<'a> {
    /// A frame that this leaf maps.
    Frame(MapPlan<'a>),
    /// Memory that the guest may not write.
    ReadOnly,
    /// A slot of which no new mapping may be made: let the guest fault again.
    Dying,
}

/// One leaf to map.
#[derive(Clone, Debug)]
pub struct MapPlan<'a> {
    pub(super) slot: &'a Slot,
    /// Its first gfn.
    pub(super) at: Gfn,
    pub(super) leaf: Leaf,
    /// The guest writes: where writes are logged, to be logged when the leaf is in place.
    pub(super) logs: Option<Gfn>,
}

impl MapPlan<'_> {
    pub(super) fn level(&self) -> TableLevel {
        TableLevel::of_page(self.leaf.level)
    }

    /// The leaf is in place, and the guest does not run yet.
    // REQ: DT-1
    #[inline]
    pub(super) fn log(&self) {
        if let Some(gfn) = self.logs {
            self.slot.data.dirty.mark(gfn);
        }
    }
}

/// The leaf for `gfn`, if the slot is live and allows the access.
// REQ: MEM-5, MEM-6
#[inline(always)]
pub(super) fn find_frame(slot: &Slot, gfn: Gfn, access: Access) -> Backed<'_> {
    if slot.state == SlotState::Invalid {
        return Backed::Dying;
    }
    let logging = slot.flags.contains(SlotFlags::LOG_DIRTY);
    let writable = match (slot.access(), access) {
        (GuestAccess::ReadExec, Access::Write) => return Backed::ReadOnly,
        (GuestAccess::ReadExec, Access::Read | Access::Fetch) => Writable::HostReadOnly,
        // The first write has to be seen.
        (GuestAccess::All, Access::Read | Access::Fetch) if logging => Writable::Restorable,
        (GuestAccess::All, Access::Read | Access::Write | Access::Fetch) => Writable::Now,
    };
    let (at, frame, level) = slot.page_at(gfn);
    let leaf = Leaf {
        frame,
        level,
        writable,
        rights: Rights::ALL,
    };
    let logs = (logging && access == Access::Write).then_some(gfn);
    Backed::Frame(MapPlan { slot, at, leaf, logs })
}
