// SPDX-License-Identifier: MIT OR Apache-2.0
//! How do capabilities make a second stage? Frames map through their slot's container, tables come from a pool.
//!
//! The kernel flushes with every change that it makes, so a flush here only counts. What the audit can see of the kernel:
//! whether each capability of a slot maps something; that a leaf's capability names the frame that the backing has there;
//! and that its address is taken (another capability to the same frame cannot be mapped there). Writability cannot be seen.

use crate::frame_caps::{BackingCaps, Container, Top, page};
use crate::objects::Objects;
use alloc::vec::Vec;
use sel4::{CapRights, ObjectBlueprint, cap};
use umbra_mmu_abi::{Backing, Gfn, SlotId};
use umbra_mmu_core::spte::Leaf;
use umbra_mmu_core::stage2::{
    FlushEpoch, GuestAccess, NoRam, Observed, Resource, Stage2, Stage2Error, TableHandle, TableLevel, TableNeeds,
    Unflushed,
};
use umbra_mmu_core::table::HeapWords;

/// What differs between an EPT and a VSpace. Addresses are guest-physical, in bytes.
pub trait Space {
    /// Maps a frame.
    ///
    /// # Errors
    /// The kernel's.
    fn map_frame(&self, frame: cap::UnspecifiedPage, gpa: u64, access: GuestAccess) -> sel4::Result<()>;

    /// Whether the capability maps something. Nothing changes: the map that is tried names `not_a_root` as its root, which
    /// the kernel looks at after the frame.
    fn is_mapped(&self, frame: cap::UnspecifiedPage, not_a_root: cap::CNode) -> bool;

    /// The kind of object for a level.
    fn blueprint(&self, level: TableLevel) -> ObjectBlueprint;

    /// Puts a table in its place.
    ///
    /// # Errors
    /// The kernel's.
    fn map_table(&self, slot: u64, level: TableLevel, gpa: u64) -> sel4::Result<()>;

    /// Takes it out again and clears it.
    ///
    /// # Errors
    /// The kernel's.
    fn unmap_table(&self, slot: u64, level: TableLevel) -> sel4::Result<()>;
}

/// A table object; it is made once and used again.
struct Table {
    slot: u64,
    level: TableLevel,
}

/// The second stage of one VM.
pub struct CapStage2<T: Space> {
    space: T,
    cnode: cap::CNode,
    top: Top,
    objects: Objects,
    backings: Vec<BackingCaps>,
    containers: Vec<Option<Container>>,
    tables: Vec<Table>,
    /// Tables that are not linked, by level.
    free_tables: [Vec<u32>; 3],
    epoch: u64,
}

/// The kernel refused what was believed to be possible.
pub(crate) fn refused(operation: &'static str) -> impl FnOnce(sel4::Error) -> Stage2Error {
    move |error| match error {
        sel4::Error::NotEnoughMemory { .. } => Stage2Error::Exhausted(Resource::Untyped),
        error => {
            log::error!("the kernel refused to {operation}: {error}");
            Stage2Error::Refused {
                operation,
                code: code(&error),
            }
        }
    }
}

/// The kernel's number of an error (seL4_Error).
fn code(error: &sel4::Error) -> u64 {
    match error {
        sel4::Error::InvalidArgument { .. } => 1,
        sel4::Error::InvalidCapability { .. } => 2,
        sel4::Error::IllegalOperation => 3,
        sel4::Error::RangeError { .. } => 4,
        sel4::Error::AlignmentError => 5,
        sel4::Error::FailedLookup { .. } => 6,
        sel4::Error::TruncatedMessage => 7,
        sel4::Error::DeleteFirst => 8,
        sel4::Error::RevokeFirst => 9,
        sel4::Error::NotEnoughMemory { .. } => 10,
        sel4::Error::Unknown { label } => *label,
    }
}

const fn pool(level: TableLevel) -> usize {
    match level {
        TableLevel::Pt => 0,
        TableLevel::Pd => 1,
        TableLevel::Pdpt => 2,
        TableLevel::Pml4 | TableLevel::Pml5 => panic!("the root is linked for good"),
    }
}

impl<T: Space> CapStage2<T> {
    /// A second stage in `space`, whose root is empty. `cnode` is the program's CNode, which `objects` fills.
    pub fn new(space: T, cnode: cap::CNode, top: Top, objects: Objects, backings: Vec<BackingCaps>) -> Self {
        // Entry 0 of the CSpace's root is the program's own.
        let containers = (1..1usize << top.bits).map(|_| None).collect();
        let free_tables = [const { Vec::new() }; 3];
        Self {
            space,
            cnode,
            top,
            objects,
            backings,
            containers,
            tables: Vec::new(),
            free_tables,
            epoch: 0,
        }
    }

    /// The address space below.
    pub fn space(&self) -> &T {
        &self.space
    }

    /// The capability that maps the frame of `leaf` for `slot`.
    ///
    /// # Panics
    /// The slot is not attached, or has no such frame.
    pub fn frame_cap(&self, slot: SlotId, leaf: &Leaf) -> cap::UnspecifiedPage {
        let container = self.containers[slot.0 as usize].as_ref().expect("the slot is attached");
        container
            .cap(leaf.frame)
            .unwrap_or_else(|| panic!("{:?} is not in slot {}", leaf.frame, slot.0))
    }

    fn reserve_level(&mut self, level: TableLevel, wanted: u8) -> Result<(), Stage2Error> {
        while self.free_tables[pool(level)].len() < wanted as usize {
            let blueprint = self.space.blueprint(level);
            let slot = self.objects.take_slot()?;
            let block = match self.objects.take_block(blueprint.physical_size_bits()) {
                Ok(block) => block,
                Err(error) => {
                    self.objects.give_slot(slot);
                    return Err(error);
                }
            };
            let root = self.cnode.slot(0, 0);
            let made = self.objects.untyped(block).untyped_retype(blueprint, &root, slot, 1);
            if let Err(error) = made.map_err(refused("make a table")) {
                self.objects.give_block(block);
                self.objects.give_slot(slot);
                return Err(error);
            }
            self.free_tables[pool(level)].push(self.tables.len() as u32);
            self.tables.push(Table { slot, level });
        }
        Ok(())
    }

    /// Whether something is mapped at `at`, found out with another capability to the same frame.
    fn is_taken(&mut self, slot: SlotId, at: Gfn, leaf: &Leaf) -> Result<bool, Stage2Error> {
        let container = self.containers[slot.0 as usize].as_ref().expect("the slot is attached");
        let original = self.objects.slot(container.original_of(leaf.frame));
        let spare = self.objects.take_slot()?;
        let place = self.objects.slot(spare);
        let copied = place
            .copy(&original, CapRights::READ)
            .map_err(refused("copy a frame capability"));
        let tried = copied.map(|()| self.space.map_frame(page(spare), at.gpa().raw(), GuestAccess::ReadExec));
        // Deleting the copy ends its mapping, if it has one.
        place
            .delete()
            .unwrap_or_else(|error| panic!("own slot {spare} cannot be emptied: {error}"));
        self.objects.give_slot(spare);
        tried.map(|tried| matches!(tried, Err(sel4::Error::DeleteFirst)))
    }
}

impl<T: Space> Stage2 for CapStage2<T> {
    type Words = HeapWords;
    type Ram = NoRam;

    fn attach_slot(
        &mut self,
        slot: SlotId,
        backing: Backing,
        npages: u32,
        access: GuestAccess,
    ) -> Result<(), Stage2Error> {
        let caps = self.backings[backing.id.0 as usize];
        let entry = u64::from(slot.0) + 1;
        let container = Container::new(&mut self.objects, self.top, entry, caps, backing, npages, access)?;
        let old = self.containers[slot.0 as usize].replace(container);
        assert!(old.is_none(), "slot {} was attached twice", slot.0);
        Ok(())
    }

    // REQ: MEM-7
    fn revoke_slot(&mut self, slot: SlotId) -> Unflushed {
        let container = self.containers[slot.0 as usize].take().expect("the slot is attached");
        container.revoke(&mut self.objects);
        Unflushed::removed(1)
    }

    #[inline]
    fn reserve(&mut self, tables: TableNeeds) -> Result<(), Stage2Error> {
        if tables == TableNeeds::NONE {
            return Ok(());
        }
        self.reserve_level(TableLevel::Pdpt, tables.pdpt)?;
        self.reserve_level(TableLevel::Pd, tables.pd)?;
        self.reserve_level(TableLevel::Pt, tables.pt)
    }

    fn link(&mut self, at: Gfn, level: TableLevel) -> Result<TableHandle, Stage2Error> {
        let id = self.free_tables[pool(level)]
            .pop()
            .expect("a table was reserved before it is linked");
        let linked = self
            .space
            .map_table(self.tables[id as usize].slot, level, at.gpa().raw());
        match linked.map_err(refused("link a table")) {
            Ok(()) => Ok(TableHandle(id)),
            Err(error) => {
                self.free_tables[pool(level)].push(id);
                Err(error)
            }
        }
    }

    fn unlink(&mut self, table: TableHandle) -> Unflushed {
        let Table { slot, level } = self.tables[table.0 as usize];
        let unlinked = self.space.unmap_table(slot, level);
        unlinked.unwrap_or_else(|error| panic!("the kernel refused to unlink a {level:?}: {error}"));
        self.free_tables[pool(level)].push(table.0);
        Unflushed::removed(1)
    }

    #[inline]
    fn map(&mut self, slot: SlotId, at: Gfn, leaf: &Leaf) -> Result<(), Stage2Error> {
        let frame = self.frame_cap(slot, leaf);
        self.space
            .map_frame(frame, at.gpa().raw(), leaf.access())
            .map_err(refused("map a frame"))
    }

    fn unmap(&mut self, slot: SlotId, _at: Gfn, leaf: &Leaf) -> Unflushed {
        let unmapped = self.frame_cap(slot, leaf).frame_unmap();
        unmapped.unwrap_or_else(|error| panic!("the kernel refused to unmap a frame: {error}"));
        Unflushed::removed(1)
    }

    // The kernel maps a capability that maps nothing; changing rights in place is not among its operations.
    fn protect(&mut self, slot: SlotId, at: Gfn, leaf: &Leaf) -> Result<Unflushed, Stage2Error> {
        let removed = self.unmap(slot, at, leaf);
        match self.map(slot, at, leaf) {
            Ok(()) => Ok(removed),
            Err(error) => {
                self.flush(removed);
                Err(error)
            }
        }
    }

    fn flush(&mut self, removed: Unflushed) -> FlushEpoch {
        removed.settle();
        self.epoch += 1;
        FlushEpoch(self.epoch)
    }

    // REQ: RM-3
    fn observe(&mut self, slot: SlotId, at: Gfn, leaf: &Leaf) -> Observed {
        let Some(container) = &self.containers[slot.0 as usize] else {
            return Observed::Unmapped;
        };
        let (Some(frame), original) = (container.cap(leaf.frame), container.original_of(leaf.frame)) else {
            return Observed::Different;
        };
        if !self.space.is_mapped(frame, self.cnode) {
            return Observed::Unmapped;
        }
        let same = match (frame.frame_get_address(), page(original).frame_get_address()) {
            (Ok(mapped), Ok(given)) => mapped == given,
            (Err(_), _) | (_, Err(_)) => false,
        };
        match self.is_taken(slot, at, leaf) {
            Ok(true) if same => Observed::Mapped,
            Ok(true | false) | Err(_) => Observed::Different,
        }
    }

    // REQ: RM-3
    fn count_mapped(&mut self, slot: SlotId) -> u32 {
        let Some(container) = &self.containers[slot.0 as usize] else {
            return 0;
        };
        container
            .caps()
            .filter(|frame| self.space.is_mapped(*frame, self.cnode))
            .count() as u32
    }
}
