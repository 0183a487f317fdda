// SPDX-License-Identifier: MIT OR Apache-2.0
//! What has to be done about a miss? Decided on an immutable view; nothing changes here.

use super::Walk;
use crate::Mmu;
use crate::slots::{Slot, SlotState};
use crate::spte::{Leaf, Rights, Writable};
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
    /// Map a frame at this place, as it is: the usual case.
    Map(MapPlan, SptePlace),
    /// Map a frame, but something has to be made, or taken away, before.
    Prepare(MapPlan, Preparation),
}

/// One leaf to map.
#[derive(Clone, Debug)]
pub struct MapPlan {
    /// What `invalidate_seq` was: the plan is void when it moves.
    // REQ: PF-3
    pub(super) seq: u64,
    pub(super) slot: SlotId,
    pub(super) at: Gfn,
    pub(super) leaf: Leaf,
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
        match self.plan_usual(walk, gfn, access) {
            Some((map, place)) => Plan::Map(map, place),
            None => self.plan_unusual(walk, gfn, access),
        }
    }

    /// The plan where a slot has the frame and everything that it takes is in place.
    #[inline(always)]
    pub(super) fn plan_usual(&self, walk: &Walk, gfn: Gfn, access: Access) -> Option<(MapPlan, SptePlace)> {
        let slot = self.slots.published().lookup(gfn)?;
        let map = self.map_plan(slot, gfn, access)?;
        let rmap = self.rmaps[slot.id.0 as usize].as_ref()?;
        let unmapped = rmap.first(&self.rmap_entries, map.at, map.leaf.level).is_none();
        // A hardware table hangs below others, as far as the current tree goes.
        let linked = self.tables.get(walk.place.table).handle().is_some();
        let ready = walk.level == TableLevel::of_page(map.leaf.level) && linked && unmapped;
        ready.then_some((map, walk.place))
    }

    #[cold]
    #[inline(never)]
    pub(super) fn plan_unusual(&self, walk: &Walk, gfn: Gfn, access: Access) -> Plan {
        let Some(slot) = self.slots.published().lookup(gfn) else {
            return Plan::CacheMmio(self.mmio(gfn));
        };
        // REQ: MEM-6
        if slot.state == SlotState::Invalid {
            return Plan::Retry;
        }
        let Some(map) = self.map_plan(slot, gfn, access) else {
            return Plan::Emulate(Mmio {
                readonly_slot: true,
                ..self.mmio(gfn)
            });
        };
        let rmap = self.rmaps[slot.id.0 as usize]
            .as_ref()
            .expect("a slot has a reverse map");
        let obsolete = rmap.first(&self.rmap_entries, map.at, map.leaf.level);
        let what = self.preparation(walk, TableLevel::of_page(map.leaf.level), obsolete);
        Plan::Prepare(map, what)
    }

    /// The leaf for `gfn`, if the slot is live and allows the access.
    // REQ: MEM-5
    #[inline(always)]
    fn map_plan(&self, slot: &Slot, gfn: Gfn, access: Access) -> Option<MapPlan> {
        let writable = match (slot.access(), access) {
            (GuestAccess::ReadExec, Access::Write) => return None,
            (GuestAccess::ReadExec, Access::Read | Access::Fetch) => Writable::HostReadOnly,
            (GuestAccess::All, Access::Read | Access::Write | Access::Fetch) => Writable::Now,
        };
        let (at, frame, level) = slot.page_at(gfn);
        let leaf = Leaf {
            frame,
            level,
            writable,
            rights: Rights::ALL,
        };
        let live = slot.state == SlotState::Live;
        live.then_some(MapPlan {
            seq: self.invalidate_seq,
            slot: slot.id,
            at,
            leaf,
        })
    }

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
            if table.is_none_or(|id| self.tables.get(id).handle().is_none()) {
                match level {
                    TableLevel::Pml4 | TableLevel::Pml5 => {}
                    TableLevel::Pdpt => hardware.pdpt += 1,
                    TableLevel::Pd => hardware.pd += 1,
                    TableLevel::Pt => hardware.pt += 1,
                }
            }
        }
        (tables, hardware)
    }
}
