// SPDX-License-Identifier: MIT OR Apache-2.0
//! What does an EPT hold? A second stage in memory, whose removed tables and frames are in limbo until a flush.
//!
//! Stricter than silicon: frames and tables that were removed cannot be had again before a flush, and processors may go on
//! using them ([`super::ept`]). Like seL4: a mapping is a capability's, one at a time; taking
//! it away looks at the address it was made for, and removes what is there if it is the same frame.

use super::ept::EptCaches;
use super::memory::SimMemory;
use crate::spte::Leaf;
use crate::stage2::{
    BackingShape, FlushEpoch, Frame, GpteSize, GuestAccess, NoRam, Observed, Resource, Stage2, Stage2Error,
    TableHandle, TableLevel, TableNeeds, Unflushed,
};
use crate::table::HeapWords;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use umbra_mmu_abi::{Access, Backing, Gfn, Gpa, PageLevel, SlotId};

/// The guest's access was not translated (an EPT violation).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The address.
    pub gpa: Gpa,
    /// The access.
    pub access: Access,
}

/// An entry of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    Table(TableHandle),
    Leaf {
        frame: Frame,
        level: PageLevel,
        access: GuestAccess,
    },
}

#[derive(Debug)]
struct Table {
    level: TableLevel,
    at: Gfn,
    entries: BTreeMap<u16, Entry>,
    linked: bool,
}

/// The capabilities of one slot: where each is mapped, by its first page in the backing.
#[derive(Debug)]
struct Container {
    backing: Backing,
    npages: u32,
    access: GuestAccess,
    mapped: BTreeMap<Frame, (Gfn, PageLevel)>,
}

/// The simulated hardware, its guest's memory included.
#[derive(Debug)]
pub struct SimStage2 {
    memory: Arc<SimMemory>,
    containers: BTreeMap<SlotId, Container>,
    /// The root is table 0.
    tables: BTreeMap<TableHandle, Table>,
    next_table: u32,
    free_tables: u32,
    /// Cut off and not flushed: kept with their content, because a processor may still walk them.
    limbo_tables: Vec<TableHandle>,
    limbo_frames: Vec<(Frame, PageLevel)>,
    /// First pages of 2M frames that were split, and of those that were made of small ones: others are as their backing's
    /// shape says.
    resized: BTreeMap<Frame, PageLevel>,
    unflushed: u32,
    epoch: u64,
    /// Of the processor that [`SimStage2::read`] and [`SimStage2::write`] are the accesses of.
    caches: EptCaches,
    /// Maps and links until one is refused.
    refuse_in: Option<u32>,
}

pub(super) const ROOT: TableHandle = TableHandle(0);

impl SimStage2 {
    /// Hardware with these backings (zeroed) and `tables` tables besides the root.
    pub fn new(shapes: Vec<BackingShape>, tables: u32) -> Self {
        Self::with_memory(SimMemory::new(SimMemory::layout_for(46), &shapes, 0), tables)
    }

    /// The same above memory that others use as well.
    pub fn with_memory(memory: Arc<SimMemory>, tables: u32) -> Self {
        let root = Table {
            level: TableLevel::Pml4,
            at: Gfn::new(0),
            entries: BTreeMap::new(),
            linked: true,
        };
        Self {
            memory,
            containers: BTreeMap::new(),
            tables: BTreeMap::from([(ROOT, root)]),
            next_table: 1,
            free_tables: tables,
            limbo_tables: Vec::new(),
            limbo_frames: Vec::new(),
            resized: BTreeMap::new(),
            unflushed: 0,
            epoch: 0,
            caches: EptCaches::default(),
            refuse_in: None,
        }
    }

    /// The guest reads 8 bytes.
    ///
    /// # Errors
    /// Nothing translates the address, or not for a read.
    pub fn read(&mut self, gpa: Gpa) -> Result<u64, Violation> {
        let frame = self.translate(gpa, Access::Read)?;
        Ok(self.memory.load(frame, gpa.offset() as u16 & !7, GpteSize::B8))
    }

    /// The guest writes 8 bytes.
    ///
    /// # Errors
    /// Nothing translates the address, or not for a write.
    pub fn write(&mut self, gpa: Gpa, value: u64) -> Result<(), Violation> {
        let frame = self.translate(gpa, Access::Write)?;
        self.memory.store(frame, gpa.offset() as u16 & !7, GpteSize::B8, value);
        Ok(())
    }

    fn translate(&mut self, gpa: Gpa, access: Access) -> Result<Frame, Violation> {
        let mut caches = core::mem::take(&mut self.caches);
        let found = caches.translate(self, gpa, access);
        self.caches = caches;
        found.map(|found| found.frame_at(gpa.gfn()))
    }

    /// The memory.
    pub fn memory(&self) -> &Arc<SimMemory> {
        &self.memory
    }

    /// Breaks the hardware behind the MMU's back: the leaf at `gfn` goes, flushed.
    pub fn lose_mapping(&mut self, gfn: Gfn) {
        if let Some((handle, index)) = self.leaf_place(gfn) {
            if let Some(table) = self.tables.get_mut(&handle) {
                table.entries.remove(&index);
            }
            self.epoch += 1;
        }
    }

    /// The owner of `pages` frames from `first` revokes them: every mapping of them goes, flushed, behind the MMU's back,
    /// and whoever reaches them from now on breaks isolation. [`SimMemory::restore`] gives them back.
    pub fn revoke_frames(&mut self, first: Frame, pages: u32) {
        let range = first.page()..first.page() + pages;
        let mut gone = Vec::new();
        for container in self.containers.values_mut() {
            container.mapped.retain(|frame, (at, level)| {
                let hit = frame.backing() == first.backing() && overlaps(&range, frame.page(), *level);
                if hit {
                    gone.push((*at, *frame, *level));
                }
                !hit
            });
        }
        for (at, frame, level) in gone {
            self.cut_leaf(at, frame, level);
        }
        self.epoch += 1;
        for frame in range.filter_map(|page| Frame::new(first.backing(), page)) {
            self.memory.withdraw(frame);
        }
    }

    /// The size of the frame that holds a page.
    fn size_of(&self, frame: Frame) -> PageLevel {
        let shape = self.memory.shape(frame.backing()).expect("an attached backing");
        let chunk = chunk_of(shape, frame);
        let resized = chunk.and_then(|chunk| self.resized.get(&chunk));
        resized.copied().unwrap_or(shape.frame_of(frame.page()).1)
    }

    /// The 512 pages from `first` are of frames of another size from now on; their content stays.
    ///
    /// # Errors
    /// They are not what they should be before.
    ///
    /// # Panics
    /// One of them is still mapped, or may be in use by a processor.
    pub fn resize(&mut self, first: Frame, to: PageLevel) -> Result<(), Stage2Error> {
        if self.refuses() {
            return Err(refused("resize, as it was told to"));
        }
        let shape = self.memory.shape(first.backing()).expect("a backing that there is");
        let size = PageLevel::M2.frames() as u32;
        let range = first.page()..first.page() + size;
        if chunk_of(shape, first) != Some(first) || Some(range.end) > shape.pages() {
            return Err(refused("resize of what is no 2M page"));
        }
        if self.size_of(first) == to {
            return Err(refused("resize to the size that it has"));
        }
        let of_range =
            |frame: &Frame, level| frame.backing() == first.backing() && overlaps(&range, frame.page(), level);
        let mut mapped = self.containers.values().flat_map(|container| &container.mapped);
        if let Some((frame, at)) = mapped.find(|(frame, (_, level))| of_range(frame, *level)) {
            panic!("{frame:?} changes its size while it is mapped at {at:?}");
        }
        if let Some((frame, _)) = self.limbo_frames.iter().find(|(frame, level)| of_range(frame, *level)) {
            panic!("{frame:?} changes its size before the flush that ends its use");
        }
        self.resized.insert(first, to);
        Ok(())
    }

    /// Does `calls` more maps and links, and refuses the one after them.
    pub fn refuse_after(&mut self, calls: u32) {
        self.refuse_in = Some(calls);
    }

    /// Whether the call that is being made is the one to refuse.
    fn refuses(&mut self) -> bool {
        let now = self.refuse_in == Some(0);
        self.refuse_in = self.refuse_in.and_then(|calls| calls.checked_sub(1));
        now
    }

    /// Tables that can still be linked.
    pub fn free_tables(&self) -> u32 {
        self.free_tables
    }

    /// Removals that no flush has covered.
    pub fn unflushed(&self) -> u32 {
        self.unflushed
    }

    /// How many flushes there have been: a processor that has seen fewer forgets everything before it goes on.
    pub fn flushes(&self) -> u64 {
        self.epoch
    }

    /// The entry for `gfn` in a table that a processor knows of.
    ///
    /// # Panics
    /// The table has been freed: the processor ought not to know of it any more.
    pub(super) fn entry(&self, handle: TableHandle, gfn: Gfn) -> Option<Entry> {
        let table = self.tables.get(&handle);
        let table = table.unwrap_or_else(|| panic!("a processor walks {handle:?} for {gfn}, which is free"));
        table.entries.get(&index(gfn, table.level)).copied()
    }

    /// The linked table of `level` that covers `gfn`; the kernel's own walk, which no cache misleads.
    fn linked(&self, gfn: Gfn, level: TableLevel) -> Option<TableHandle> {
        let mut handle = ROOT;
        loop {
            let table = &self.tables[&handle];
            if table.level == level {
                return Some(handle);
            }
            match table.entries.get(&index(gfn, table.level))? {
                Entry::Table(below) => handle = *below,
                Entry::Leaf { .. } => return None,
            }
        }
    }

    fn leaf_place(&self, gfn: Gfn) -> Option<(TableHandle, u16)> {
        [TableLevel::Pdpt, TableLevel::Pd, TableLevel::Pt]
            .into_iter()
            .find_map(|level| {
                let handle = self.linked(gfn, level)?;
                let index = index(gfn, level);
                match self.tables[&handle].entries.get(&index)? {
                    Entry::Leaf { .. } => Some((handle, index)),
                    Entry::Table(_) => None,
                }
            })
    }

    /// Removes the leaf at `at` if it maps `frame`, whoever put it there.
    fn cut_leaf(&mut self, at: Gfn, frame: Frame, level: PageLevel) {
        self.limbo_frames.push((frame, level));
        let Some((handle, index)) = self.leaf_place(at) else {
            return;
        };
        let table = self.tables.get_mut(&handle).expect("it was just found");
        if matches!(table.entries[&index], Entry::Leaf { frame: f, level: l, .. } if (f, l) == (frame, level)) {
            table.entries.remove(&index);
        }
    }
}

fn index(gfn: Gfn, level: TableLevel) -> u16 {
    (gfn.raw() >> level.entry_shift() & 511) as u16
}

/// The first page of the 2M page that a frame is in, as 2M frames of its backing lie; none before the first of them.
fn chunk_of(shape: &BackingShape, frame: Frame) -> Option<Frame> {
    let size = PageLevel::M2.frames() as u32;
    let into = frame.page().checked_sub(shape.small_head % size)?;
    Frame::new(frame.backing(), frame.page() - into % size)
}

/// Whether a page of a leaf at `page` is in `range`.
fn overlaps(range: &core::ops::Range<u32>, page: u32, level: PageLevel) -> bool {
    page < range.end && range.start < page + level.frames() as u32
}

const fn refused(operation: &'static str) -> Stage2Error {
    Stage2Error::Refused { operation, code: 0 }
}

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
            // Everything that was removed until now is covered, also what others still have an obligation for.
            self.epoch += 1;
            self.limbo_frames.clear();
            for handle in self.limbo_tables.drain(..) {
                self.tables.remove(&handle);
                self.free_tables += 1;
            }
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
