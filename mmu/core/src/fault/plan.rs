// SPDX-License-Identifier: MIT OR Apache-2.0
//! What has to be done about a miss? Decided on an immutable view; nothing changes here.

use super::Walk;
use crate::Mmu;
use crate::slots::SlotState;
use crate::spte::{Leaf, Writable};
use crate::stage2::{GuestAccess, Stage2, TableLevel, TableNeeds};
use crate::table::{SptePlace, TableId};
use umbra_mmu_abi::{Access, Gfn, Mmio, SlotId};

/// What to do.
#[derive(Clone, Debug)]
pub enum Plan {
    /// A slot of which no new mapping may be made: let the guest fault again.
    Retry,
    /// Emulate, nothing to remember.
    Emulate(Mmio),
    /// No memory: emulate, and remember it in an MMIO spte.
    CacheMmio(Mmio),
    /// Map a frame.
    Map(MapPlan),
}

/// One leaf to map, and all that it takes.
#[derive(Clone, Debug)]
pub struct MapPlan {
    /// What `invalidate_seq` was: the plan is void when it moves.
    // REQ: PF-3
    pub(super) seq: u64,
    pub(super) slot: SlotId,
    pub(super) at: Gfn,
    pub(super) leaf: Leaf,
    pub(super) place: Place,
}

/// Where the leaf goes.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    /// Here, as it is: the usual case.
    Ready(SptePlace),
    /// Something has to be made, or taken away, before.
    Prepare(Preparation),
}

/// What stands between a plan and its leaf.
#[derive(Clone, Copy, Debug)]
pub struct Preparation {
    /// Tables of sptes to take.
    pub(super) tables: usize,
    /// Hardware tables to link.
    pub(super) hardware: TableNeeds,
    /// A table of smaller pages in the place of the leaf, to be zapped.
    pub(super) over: Option<TableId>,
    /// A leaf of an earlier `mmu_valid_gen` that still holds the slot's capability for this frame.
    pub(super) obsolete: Option<SptePlace>,
}

impl<S: Stage2> Mmu<S> {
    /// Plans the slow path for a miss.
    // REQ: PF-1
    #[inline(always)]
    pub(super) fn plan(&self, walk: &Walk, gfn: Gfn, access: Access) -> Plan {
        let Some(slot) = self.slots.published().lookup(gfn) else {
            return Plan::CacheMmio(self.mmio(gfn));
        };
        // REQ: MEM-6
        if slot.state == SlotState::Invalid {
            return Plan::Retry;
        }
        // REQ: MEM-5
        let writable = match (slot.access(), access) {
            (GuestAccess::ReadExec, Access::Write) => {
                return Plan::Emulate(Mmio {
                    readonly_slot: true,
                    ..self.mmio(gfn)
                });
            }
            (GuestAccess::ReadExec, Access::Read | Access::Fetch) => Writable::HostReadOnly,
            (GuestAccess::All, Access::Read | Access::Write | Access::Fetch) => Writable::Now,
        };
        let (at, frame, level) = slot.page_at(gfn);
        let rmap = self.rmaps[slot.id.0 as usize]
            .as_ref()
            .expect("a slot has a reverse map");
        let obsolete = rmap.first(&self.rmap_entries, at, level);
        let wanted = TableLevel::of_page(level);
        // A hardware table hangs below others, as far as the current tree goes.
        let linked = self.tables.get(walk.place.table).handle.is_some();
        let place = match walk.level == wanted && linked && obsolete.is_none() {
            true => Place::Ready(walk.place),
            false => Place::Prepare(self.preparation(walk, wanted, obsolete)),
        };
        let leaf = Leaf { frame, level, writable };
        Plan::Map(MapPlan {
            seq: self.invalidate_seq,
            slot: slot.id,
            at,
            leaf,
            place,
        })
    }

    #[cold]
    fn preparation(&self, walk: &Walk, wanted: TableLevel, obsolete: Option<SptePlace>) -> Preparation {
        let (tables, hardware) = self.needs(walk, wanted);
        let over = wanted.below().and_then(|below| self.on_the_way(walk, below));
        Preparation {
            tables,
            hardware,
            over,
            obsolete,
        }
    }

    /// The tables of sptes, and of hardware, that are missing between the root and `down_to`.
    fn needs(&self, walk: &Walk, down_to: TableLevel) -> (usize, TableNeeds) {
        let (mut tables, mut hardware) = (0, TableNeeds::NONE);
        for level in TableLevel::TOP_DOWN.into_iter().filter(|level| *level >= down_to) {
            let table = self.on_the_way(walk, level);
            tables += usize::from(table.is_none());
            if table.is_none_or(|id| self.tables.get(id).handle.is_none()) {
                match level {
                    TableLevel::Pml4 => {}
                    TableLevel::Pdpt => hardware.pdpt += 1,
                    TableLevel::Pd => hardware.pd += 1,
                    TableLevel::Pt => hardware.pt += 1,
                }
            }
        }
        (tables, hardware)
    }
}
