// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which frame is behind a gfn, and with which leaf is it to be mapped? Decided on slots that do not change meanwhile.

use super::{HostFault, HostNeed};
use crate::host::{HostLayout, HostMemory, HostPage, HostView, PlainFrame, SplitFor};
use crate::resize::Resize;
use crate::slots::{Slot, SlotState};
use crate::spte::{Leaf, Rights, Writable};
use crate::stage2::{Frame, GuestAccess, TableLevel};
use umbra_mmu_abi::{Access, Gfn, PageLevel, SlotFlags};

/// What is behind a gfn that a slot has.
pub(super) enum Backed<'a> {
    /// A frame that this leaf maps.
    Frame(MapPlan<'a>),
    /// Memory that the guest may not write.
    ReadOnly,
    /// A slot of which no new mapping may be made: let the guest fault again.
    Dying,
    /// The owner of the frame has to do something first.
    Host(HostFault),
    /// The frame has the wrong size, for the dirty log.
    Resize(Frame, Resize),
}

/// One leaf to map.
#[derive(Clone, Debug)]
pub struct MapPlan<'a> {
    pub(super) slot: &'a Slot,
    /// Its first gfn.
    pub(super) at: Gfn,
    pub(super) leaf: Leaf,
    /// The guest writes where writes are logged: pages to be logged when the leaf is in place, from this one on.
    pub(super) logs: Option<(Gfn, PageLevel)>,
}

impl MapPlan<'_> {
    pub(super) fn level(&self) -> TableLevel {
        TableLevel::of_page(self.leaf.level)
    }

    /// The leaf is in place, and the guest does not run yet.
    // REQ: DT-1
    #[inline(always)]
    pub(super) fn log(&self) {
        if let Some((gfn, size)) = self.logs {
            self.log_pages(gfn, size);
        }
    }

    #[cold]
    fn log_pages(&self, gfn: Gfn, size: PageLevel) {
        for page in gfn.raw()..gfn.raw() + size.frames() {
            self.slot.data.dirty.mark(Gfn::new(page));
        }
    }
}

/// The leaf for `gfn`, if the slot is live and allows the access, and the host has the frame.
// REQ: MEM-5, MEM-6, HOST-1
#[inline]
pub(super) fn find_frame<'a>(slot: &'a Slot, host: &HostMemory, gfn: Gfn, access: Access) -> Backed<'a> {
    if slot.state == SlotState::Invalid {
        return Backed::Dying;
    }
    match host.page(slot.frame_of(gfn)) {
        HostView::Page(page) => {
            let logs = slot.flags.contains(SlotFlags::LOG_DIRTY);
            let Some(writable) = writable(slot, page.access, access, logs) else {
                return refuse_write(slot, gfn);
            };
            if page.level == PageLevel::K4 {
                let logs = (logs && access == Access::Write).then_some((gfn, PageLevel::K4));
                return frame(slot, (gfn, slot.frame_of(gfn), PageLevel::K4), writable, logs);
            }
            if let Some(mapped) = slot.whole_page(gfn, &page).filter(|_| !logs) {
                return frame(slot, mapped, writable, None);
            }
            find_large(slot, host, gfn, &page, access, writable)
        }
        other => find_unusual(slot, gfn, access, other),
    }
}

/// The leaf for `gfn` where nothing is special: a slot that is in use and has no flags, and a frame with all rights, which
/// fits as it is. As [`find_frame`] would make it, for any access.
// REQ: MEM-5, MEM-6, HOST-1
#[inline(always)]
pub(super) fn find_usual<'a>(slot: &'a Slot, host: &HostMemory, gfn: Gfn) -> Option<MapPlan<'a>> {
    if slot.state != SlotState::Live || !slot.flags.is_empty() {
        return None;
    }
    let page = slot.frame_of(gfn);
    let (at, frame, level) = match host.plain(page)? {
        PlainFrame::Small => (gfn, page, PageLevel::K4),
        PlainFrame::Large(into) => {
            let at = gfn.align_down(PageLevel::M2);
            if gfn.raw() - at.raw() != u64::from(into) || !slot.data.large.allows(PageLevel::M2, gfn) {
                return None;
            }
            (at, page.before(into), PageLevel::M2)
        }
    };
    let leaf = Leaf {
        frame,
        level,
        writable: Writable::Now,
        rights: Rights::ALL,
    };
    let logs = None;
    Some(MapPlan { slot, at, leaf, logs })
}

/// W of the leaf; `None`: the write is not allowed.
#[inline(always)]
fn writable(slot: &Slot, host: GuestAccess, access: Access, logs: bool) -> Option<Writable> {
    match (slot.access(), host, access) {
        (GuestAccess::ReadExec, _, Access::Write) | (_, GuestAccess::ReadExec, Access::Write) => None,
        (GuestAccess::ReadExec, _, _) | (_, GuestAccess::ReadExec, _) => Some(Writable::HostReadOnly),
        // The first write has to be seen.
        (GuestAccess::All, GuestAccess::All, Access::Read | Access::Fetch) if logs => Some(Writable::Restorable),
        (GuestAccess::All, GuestAccess::All, Access::Read | Access::Write | Access::Fetch) => Some(Writable::Now),
    }
}

#[inline(always)]
fn frame(
    slot: &Slot,
    (at, frame, level): (Gfn, Frame, PageLevel),
    writable: Writable,
    logs: Option<(Gfn, PageLevel)>,
) -> Backed<'_> {
    let leaf = Leaf {
        frame,
        level,
        writable,
        rights: Rights::ALL,
    };
    Backed::Frame(MapPlan { slot, at, leaf, logs })
}

#[cold]
fn refuse_write(slot: &Slot, gfn: Gfn) -> Backed<'_> {
    match slot.access() {
        GuestAccess::ReadExec => Backed::ReadOnly,
        GuestAccess::All => Backed::Host(HostFault {
            frame: slot.frame_of(gfn),
            need: HostNeed::Write,
        }),
    }
}

/// A page of a large frame. Where writes are logged it is mapped to be read only, and split by the first write.
// REQ: LP-2, LP-4
#[inline(never)]
fn find_large<'a>(
    slot: &'a Slot,
    host: &HostMemory,
    gfn: Gfn,
    page: &HostPage,
    access: Access,
    mut writable: Writable,
) -> Backed<'a> {
    let logs = slot.flags.contains(SlotFlags::LOG_DIRTY) && writable > Writable::HostReadOnly;
    let run = host.layout(slot.backing.id) == HostLayout::Linear;
    let most = if logs && run { PageLevel::K4 } else { page.level };
    let (at, first, level) = slot.largest_page(gfn, page, most);
    let cut = !run && level < page.level;
    if cut || logs && level > PageLevel::K4 && access == Access::Write {
        let why = if logs { SplitFor::Log } else { SplitFor::Owner };
        return Backed::Resize(slot.frame_of(gfn), Resize::Split(why));
    }
    if logs && level > PageLevel::K4 {
        writable = Writable::Protected;
    }
    let logs = (logs && access == Access::Write).then_some((at, level));
    frame(slot, (at, first, level), writable, logs)
}

#[cold]
fn find_unusual(slot: &Slot, gfn: Gfn, access: Access, view: HostView) -> Backed<'_> {
    let logs = slot.flags.contains(SlotFlags::LOG_DIRTY);
    let asks = |need| {
        let frame = slot.frame_of(gfn);
        Backed::Host(HostFault { frame, need })
    };
    let page = match view {
        HostView::Away => return asks(HostNeed::Frame),
        HostView::Revoked => return asks(HostNeed::Revoked),
        HostView::Split(_) if !logs => return Backed::Resize(slot.frame_of(gfn), Resize::Merge),
        HostView::Page(page) | HostView::Split(page) | HostView::Whole(page) => page,
    };
    let Some(mut writable) = writable(slot, page.access, access, logs) else {
        return refuse_write(slot, gfn);
    };
    let mapped @ (at, _, level) = slot.largest_page(gfn, &page, page.level);
    // The fast path would log one page of a large frame.
    if level > PageLevel::K4 && writable == Writable::Restorable {
        writable = Writable::Protected;
    }
    let logs = (logs && access == Access::Write).then_some((at, level));
    frame(slot, mapped, writable, logs)
}
