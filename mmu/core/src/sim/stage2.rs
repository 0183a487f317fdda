// SPDX-License-Identifier: MIT OR Apache-2.0
//! What does an EPT hold? A second stage in memory, whose removed tables and frames are in limbo until a flush.
//!
//! Stricter than silicon: frames and tables that were removed cannot be had again before a flush, and processors may go on
//! using them ([`super::ept`]). Like seL4: a mapping is a capability's, one at a time; taking it away looks at the address
//! it was made for, and removes what is there if it is the same frame.

mod calls;

use super::ept::EptCaches;
use super::memory::SimMemory;
use crate::stage2::{BackingShape, Frame, GpteSize, GuestAccess, Stage2Error, TableHandle, TableLevel};
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
            self.flush_all();
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
        self.flush_all();
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

    /// Everything that was removed until now is out of every processor, also what somebody has an obligation for.
    fn flush_all(&mut self) {
        self.epoch += 1;
        self.limbo_frames.clear();
        for handle in self.limbo_tables.drain(..) {
            self.tables.remove(&handle);
            self.free_tables += 1;
        }
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
