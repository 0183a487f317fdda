// SPDX-License-Identifier: MIT OR Apache-2.0
//! How does the EPT answer the MMU? As a kernel does that checks everything, and panics where the MMU breaks its word.

use super::{Container, Entry, SimStage2, Table, index, overlaps, refused};
use crate::spte::Leaf;
use crate::stage2::{
    BackingShape, FlushEpoch, Frame, GuestAccess, NoRam, Observed, Resource, Stage2, Stage2Error, TableHandle,
    TableLevel, TableNeeds, Unflushed,
};
use crate::table::HeapWords;
use alloc::collections::BTreeMap;
use umbra_mmu_abi::{Backing, Gfn, PageLevel, SlotId};

impl Stage2 for SimStage2 {
    type Words = HeapWords;
    type Ram = NoRam;

    fn attach_slot(
        &mut self,
        slot: SlotId,
        backing: Backing,
        npages: u32,
        access: GuestAccess,
    ) -> Result<(), Stage2Error> {
        if self.containers.contains_key(&slot) {
            return Err(refused("attach of an attached slot"));
        }
        let pages = self.memory.shape(backing.id).and_then(BackingShape::pages).unwrap_or(0);
        if backing.first_page as u64 + npages as u64 > pages as u64 {
            return Err(refused("attach beyond the backing"));
        }
        let range = backing.first_page..backing.first_page + npages;
        assert!(
            !self
                .limbo_frames
                .iter()
                .any(|(f, level)| f.backing() == backing.id && overlaps(&range, f.page(), *level)),
            "frames are used again before the flush that ends their old use"
        );
        self.memory.attach(backing, npages, access);
        self.containers.insert(
            slot,
            Container {
                backing,
                npages,
                access,
                mapped: BTreeMap::new(),
            },
        );
        Ok(())
    }

    fn revoke_slot(&mut self, slot: SlotId) -> Unflushed {
        let container = self.containers.remove(&slot).expect("an attached slot");
        self.memory
            .detach(container.backing, container.npages, container.access);
        let removed = container.mapped.len() as u32;
        for (frame, (at, level)) in container.mapped {
            self.cut_leaf(at, frame, level);
        }
        self.unflushed += removed;
        Unflushed::removed(removed)
    }

    fn reserve(&mut self, tables: TableNeeds) -> Result<(), Stage2Error> {
        let wanted = u32::from(tables.pdpt) + u32::from(tables.pd) + u32::from(tables.pt);
        match wanted <= self.free_tables {
            true => Ok(()),
            false => Err(Stage2Error::Exhausted(Resource::Untyped)),
        }
    }

    fn link(&mut self, at: Gfn, level: TableLevel) -> Result<TableHandle, Stage2Error> {
        let above = match level {
            TableLevel::Pml4 | TableLevel::Pml5 => return Err(refused("link of a root")),
            TableLevel::Pdpt => TableLevel::Pml4,
            TableLevel::Pd => TableLevel::Pdpt,
            TableLevel::Pt => TableLevel::Pd,
        };
        assert!(self.free_tables > 0, "link without a reservation");
        if self.refuses() {
            return Err(refused("link, as it was told to"));
        }
        let parent = self.linked(at, above).ok_or(refused("link below nothing"))?;
        let entries = &mut self.tables.get_mut(&parent).expect("it was just found").entries;
        if entries.contains_key(&index(at, above)) {
            return Err(refused("link over something"));
        }
        let handle = TableHandle(self.next_table);
        entries.insert(index(at, above), Entry::Table(handle));
        self.next_table += 1;
        self.free_tables -= 1;
        self.tables.insert(
            handle,
            Table {
                level,
                at: level.base(at),
                entries: BTreeMap::new(),
                linked: true,
            },
        );
        Ok(handle)
    }

    fn unlink(&mut self, handle: TableHandle) -> Unflushed {
        let table = self.tables.get_mut(&handle).expect("a table that was linked");
        assert!(core::mem::replace(&mut table.linked, false), "a table is unlinked once");
        let (at, level) = (table.at, table.level);
        self.limbo_tables.push(handle);
        for (id, parent) in &mut self.tables {
            let entry = index(at, parent.level);
            if parent.level > level && parent.entries.get(&entry) == Some(&Entry::Table(handle)) && *id != handle {
                parent.entries.remove(&entry);
            }
        }
        self.unflushed += 1;
        Unflushed::removed(1)
    }

    fn map(&mut self, slot: SlotId, at: Gfn, leaf: &Leaf) -> Result<(), Stage2Error> {
        if self.refuses() {
            return Err(refused("map, as it was told to"));
        }
        let container = self.containers.get(&slot).ok_or(refused("map of no slot"))?;
        let first = container.backing.first_page;
        let range = first..first + container.npages;
        if leaf.frame.backing() != container.backing.id || !range.contains(&leaf.frame.page()) {
            return Err(refused("map of a foreign frame"));
        }
        if self.size_of(leaf.frame) != leaf.level {
            return Err(refused("map of a frame of another size"));
        }
        let pages = leaf.frame.page()..leaf.frame.page() + leaf.level.frames() as u32;
        let mut frames = pages.filter_map(|page| Frame::new(leaf.frame.backing(), page));
        if frames.any(|frame| self.memory.attached(frame).is_none()) {
            return Err(refused("map of a frame that was withdrawn"));
        }
        if container.mapped.contains_key(&leaf.frame) {
            return Err(refused("map of a mapped frame"));
        }
        if at.align_down(leaf.level) != at {
            return Err(refused("map at an unaligned address"));
        }
        let level = TableLevel::of_page(leaf.level);
        let table = self.linked(at, level).ok_or(refused("map without a table"))?;
        let entries = &mut self.tables.get_mut(&table).expect("it was just found").entries;
        if entries.contains_key(&index(at, level)) {
            return Err(refused("map over something"));
        }
        let access = match (container.access, leaf.access()) {
            (GuestAccess::All, GuestAccess::All) => GuestAccess::All,
            (GuestAccess::ReadExec, _) | (_, GuestAccess::ReadExec) => GuestAccess::ReadExec,
        };
        entries.insert(
            index(at, level),
            Entry::Leaf {
                frame: leaf.frame,
                level: leaf.level,
                access,
            },
        );
        let container = self.containers.get_mut(&slot).expect("it was just found");
        container.mapped.insert(leaf.frame, (at, leaf.level));
        Ok(())
    }

    fn unmap(&mut self, slot: SlotId, at: Gfn, leaf: &Leaf) -> Unflushed {
        let container = self.containers.get_mut(&slot).expect("an attached slot");
        let was = container.mapped.remove(&leaf.frame);
        assert_eq!(was, Some((at, leaf.level)), "what is unmapped was mapped there");
        self.cut_leaf(at, leaf.frame, leaf.level);
        self.unflushed += 1;
        Unflushed::removed(1)
    }

    fn protect(&mut self, slot: SlotId, at: Gfn, leaf: &Leaf) -> Result<Unflushed, Stage2Error> {
        if self.refuses() {
            return Err(refused("protect, as it was told to"));
        }
        let container = self.containers.get(&slot).expect("an attached slot");
        if container.mapped.get(&leaf.frame) != Some(&(at, leaf.level)) {
            return Err(refused("protect of what is not mapped"));
        }
        let wanted = match (container.access, leaf.access()) {
            (GuestAccess::All, GuestAccess::All) => GuestAccess::All,
            (GuestAccess::ReadExec, _) | (_, GuestAccess::ReadExec) => GuestAccess::ReadExec,
        };
        let there = self.leaf_place(at).and_then(|(table, index)| {
            let entries = &mut self.tables.get_mut(&table).expect("it was just found").entries;
            entries.get_mut(&index)
        });
        match there {
            Some(Entry::Leaf { frame, access, .. }) if *frame == leaf.frame => {
                if core::mem::replace(access, wanted) == wanted {
                    return Ok(Unflushed::NOTHING);
                }
                self.unflushed += 1;
                Ok(Unflushed::removed(1))
            }
            // Below a table that was cut off: its rights matter to nobody.
            Some(_) | None => Ok(Unflushed::NOTHING),
        }
    }

    fn split_frame(&mut self, first: Frame) -> Result<(), Stage2Error> {
        self.resize(first, PageLevel::K4)
    }

    fn merge_frames(&mut self, first: Frame) -> Result<(), Stage2Error> {
        self.resize(first, PageLevel::M2)
    }

    fn flush(&mut self, removed: Unflushed) -> FlushEpoch {
        let settled = removed.settle();
        self.unflushed = self.unflushed.checked_sub(settled).expect("an obligation is met once");
        if settled > 0 {
            self.flush_all();
        }
        FlushEpoch(self.epoch)
    }

    fn observe(&mut self, slot: SlotId, at: Gfn, leaf: &Leaf) -> Observed {
        let mapped = self
            .containers
            .get(&slot)
            .and_then(|c| c.mapped.get(&leaf.frame))
            .is_some();
        let there = self
            .leaf_place(at)
            .map(|(table, index)| self.tables[&table].entries[&index]);
        match there {
            Some(Entry::Leaf { frame, level, access })
                if mapped && (frame, level, access) == (leaf.frame, leaf.level, leaf.access()) =>
            {
                Observed::Mapped
            }
            Some(_) => Observed::Different,
            None => Observed::Unmapped,
        }
    }

    fn count_mapped(&mut self, slot: SlotId) -> u32 {
        self.containers
            .get(&slot)
            .map_or(0, |container| container.mapped.len() as u32)
    }
}
