// SPDX-License-Identifier: MIT OR Apache-2.0
//! What does the MMU ask of its hardware? The second stage of translation, the words of tables, guest memory: as traits.

use crate::spte::Leaf;
use crate::sync::atomic::AtomicU64;
use crate::table::{ENTRIES, TableId};
use core::fmt;
use umbra_mmu_abi::{Backing, BackingId, Gfn, PageLevel, SlotId};

/// What a mapping lets the guest do. There is no "none": a kernel would map it readable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestAccess {
    /// Reads and fetches.
    ReadExec,
    /// Everything.
    All,
}

/// One 4K frame of a backing: the number that an spte carries (40 bits: 16 for the backing, 24 for the page).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frame(u64);

impl Frame {
    /// Pages that one backing can have: 64 GiB.
    pub const PAGES: u32 = 1 << 24;

    /// Page `page` of backing `id`; `None` past [`Frame::PAGES`].
    pub const fn new(id: BackingId, page: u32) -> Option<Self> {
        if page < Self::PAGES {
            Some(Self((id.0 as u64) << 24 | page as u64))
        } else {
            None
        }
    }
    /// The same for a page that is known to be below [`Frame::PAGES`].
    pub(crate) const fn of_checked(id: BackingId, page: u32) -> Self {
        debug_assert!(page < Self::PAGES);
        Self((id.0 as u64) << 24 | page as u64)
    }
    /// The backing.
    pub const fn backing(self) -> BackingId {
        BackingId((self.0 >> 24) as u16)
    }
    /// The 4K page in the backing.
    pub const fn page(self) -> u32 {
        (self.0 & (Self::PAGES - 1) as u64) as u32
    }
    /// The page that is `pages` before this one in the same backing, which has it.
    pub(crate) const fn before(self, pages: u32) -> Self {
        debug_assert!(pages <= self.page());
        Self(self.0 - pages as u64)
    }
    pub(crate) const fn raw(self) -> u64 {
        self.0
    }
    pub(crate) const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Frame({}:{:#x})", self.backing().0, self.page())
    }
}

/// The frames of a backing, in the order of their addresses: 4K, then 2M, then 4K. A 2M frame maps only as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackingShape {
    /// 4K frames before the first 2M frame.
    pub small_head: u32,
    /// 2M frames.
    pub large: u32,
    /// 4K frames after the last 2M frame.
    pub small_tail: u32,
}

impl BackingShape {
    /// Its length in 4K pages; `None` where an spte could not name them all.
    pub fn pages(&self) -> Option<u32> {
        let large = self.large.checked_mul(PageLevel::M2.frames() as u32)?;
        let pages = self.small_head.checked_add(large)?.checked_add(self.small_tail)?;
        (pages <= Frame::PAGES).then_some(pages)
    }

    /// The pages `start..end` that 2M frames make up.
    pub fn large_pages(&self) -> core::ops::Range<u32> {
        self.small_head..self.small_head + self.large * PageLevel::M2.frames() as u32
    }

    /// The number of the frame that holds `page`, counted from 0 in the order of addresses, and its size.
    #[inline]
    pub fn frame_of(&self, page: u32) -> (u32, PageLevel) {
        let large = self.large_pages();
        if page < large.start {
            (page, PageLevel::K4)
        } else if page < large.end {
            (
                large.start + (page - large.start) / PageLevel::M2.frames() as u32,
                PageLevel::M2,
            )
        } else {
            (self.small_head + self.large + (page - large.end), PageLevel::K4)
        }
    }
}

/// A level of tables: what its entries are called by Intel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum TableLevel {
    /// Page table: entries of 4K.
    Pt = 1,
    /// Page directory: entries of 2M.
    Pd = 2,
    /// Page-directory-pointer table: entries of 1G.
    Pdpt = 3,
    /// Entries of 512G; the root, but for guests with five levels.
    Pml4 = 4,
    /// Entries of 256T.
    Pml5 = 5,
}

impl TableLevel {
    /// The level of a number, 1 for the lowest.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Pt),
            2 => Some(Self::Pd),
            3 => Some(Self::Pdpt),
            4 => Some(Self::Pml4),
            5 => Some(Self::Pml5),
            _ => None,
        }
    }

    /// From the root of four levels down.
    pub const TOP_DOWN: [Self; 4] = [Self::Pml4, Self::Pdpt, Self::Pd, Self::Pt];

    /// log2 of the 4K frames under one entry.
    pub const fn entry_shift(self) -> u32 {
        (self as u32 - 1) * 9
    }

    /// The first frame under the table that holds `gfn`.
    pub const fn base(self, gfn: Gfn) -> Gfn {
        let shift = self.entry_shift() + 9;
        Gfn::new(gfn.raw() >> shift << shift)
    }

    /// The level below; `None` below [`TableLevel::Pt`].
    pub const fn below(self) -> Option<Self> {
        match self {
            Self::Pt => None,
            Self::Pd => Some(Self::Pt),
            Self::Pdpt => Some(Self::Pd),
            Self::Pml4 => Some(Self::Pdpt),
            Self::Pml5 => Some(Self::Pml4),
        }
    }

    /// The pages that entries of this level can map.
    pub const fn page(self) -> Option<PageLevel> {
        match self {
            Self::Pt => Some(PageLevel::K4),
            Self::Pd => Some(PageLevel::M2),
            Self::Pdpt => Some(PageLevel::G1),
            Self::Pml4 | Self::Pml5 => None,
        }
    }

    /// The level whose entries map pages of `page`.
    pub const fn of_page(page: PageLevel) -> Self {
        match page {
            PageLevel::K4 => Self::Pt,
            PageLevel::M2 => Self::Pd,
            PageLevel::G1 => Self::Pdpt,
        }
    }
}

/// A table of the hardware, as [`Stage2::link`] named it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TableHandle(pub u32);

/// How many hardware tables a plan will link, by level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct TableNeeds {
    /// Page-directory-pointer tables.
    pub pdpt: u8,
    /// Page directories.
    pub pd: u8,
    /// Page tables.
    pub pt: u8,
}

impl TableNeeds {
    /// Nothing at all.
    pub const NONE: Self = Self { pdpt: 0, pd: 0, pt: 0 };
}

/// What ran out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// The MMU's own tables of sptes.
    Tables,
    /// Heap for a slot's reverse map.
    Memory,
    /// Descriptors of reverse maps with more than one entry.
    RmapEntries,
    /// Capability slots.
    CapSlots,
    /// Untyped memory for hardware tables or capability slots.
    Untyped,
}

/// The hardware could not do it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage2Error {
    /// Something ran out; nothing has changed.
    Exhausted(Resource),
    /// The hardware refused what the MMU believed possible: the operation and its error code.
    Refused {
        /// Which operation.
        operation: &'static str,
        /// The hardware's own code for it.
        code: u64,
    },
}

impl Stage2Error {
    /// Frames have the sizes that they were given.
    const NO_RESIZE: Self = Self::Refused {
        operation: "a change of frames' sizes",
        code: 0,
    };
}

impl fmt::Display for Stage2Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exhausted(resource) => write!(f, "out of {resource:?}"),
            Self::Refused { operation, code } => write!(f, "{operation} was refused with {code}"),
        }
    }
}

impl core::error::Error for Stage2Error {}

/// Translations were removed that a processor may still hold. To be given to [`Stage2::flush`].
#[must_use = "a processor may still use what was unmapped"]
#[derive(Debug)]
pub struct Unflushed {
    removed: u32,
}

impl Unflushed {
    /// Nothing was removed.
    pub const NOTHING: Self = Self { removed: 0 };

    /// For implementations of [`Stage2`]: `removed` mappings or tables went.
    pub const fn removed(removed: u32) -> Self {
        Self { removed }
    }

    /// Adds another obligation to this one.
    pub fn and(&mut self, mut other: Self) {
        self.removed = self.removed.saturating_add(core::mem::take(&mut other.removed));
    }

    /// How many removals wait.
    pub const fn count(&self) -> u32 {
        self.removed
    }

    /// For implementations of [`Stage2::flush`]: the obligation is met.
    pub fn settle(mut self) -> u32 {
        core::mem::take(&mut self.removed)
    }
}

impl Drop for Unflushed {
    fn drop(&mut self) {
        debug_assert!(
            self.removed == 0,
            "{} removed translations were never flushed",
            self.removed
        );
    }
}

/// Everything removed before this point is out of every processor: its frames and tables may be used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FlushEpoch(pub u64);

/// What hardware really holds for one leaf, as far as it can be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Observed {
    /// Mapped, and nothing that can be seen contradicts the leaf.
    Mapped,
    /// Not mapped.
    Unmapped,
    /// Mapped, but not as the leaf says.
    Different,
}

/// Second-stage translation: EPT objects, a VSpace, or a simulation. A slot's mappings are one revocable container.
///
/// Tables form a tree whose root always exists. `link` and `map` find the tables above in place; `unlink` may cut off
/// a table with content, which is then out of reach and is unmapped and unlinked later, piece by piece.
///
/// In shadow mode hardware walks the MMU's own tables, and only `attach_slot`, `revoke_slot` and `flush` are called.
pub trait Stage2 {
    /// Where the words of tables are: on the heap, or where a processor walks them.
    type Words: TableWords;
    /// The guest's memory, for shadow mode; [`NoRam`] where there is none.
    type Ram: GuestRam;

    /// Prepares a container for the mappings of `slot`: `npages` from `backing` at the most with `access`.
    ///
    /// # Errors
    /// Exhaustion, with nothing changed. For a slot of the same length that was just revoked there is always enough.
    fn attach_slot(
        &mut self,
        slot: SlotId,
        backing: Backing,
        npages: u32,
        access: GuestAccess,
    ) -> Result<(), Stage2Error>;

    /// Destroys the container: after the flush no mapping of the slot is left, whatever the MMU believes.
    // REQ: MEM-7
    fn revoke_slot(&mut self, slot: SlotId) -> Unflushed;

    /// Makes sure that these tables can be linked without running out.
    ///
    /// # Errors
    /// Exhaustion; what was obtained stays for later.
    fn reserve(&mut self, tables: TableNeeds) -> Result<(), Stage2Error>;

    /// Puts an empty table of `level` (not the root) at the place that covers `at`.
    ///
    /// # Errors
    /// Refused: the reservation or the place was not what the caller said.
    fn link(&mut self, at: Gfn, level: TableLevel) -> Result<TableHandle, Stage2Error>;

    /// Cuts a table off; the hardware's object may be used again after the flush.
    fn unlink(&mut self, table: TableHandle) -> Unflushed;

    /// Maps a leaf of `slot`, whose first page is `base`, at `at`.
    ///
    /// # Errors
    /// Refused: the place is taken, the tables are not there, or the container has this frame mapped already.
    fn map(&mut self, slot: SlotId, at: Gfn, leaf: &Leaf) -> Result<(), Stage2Error>;

    /// Takes a leaf of `slot` away again. It may hang below a table that was cut off.
    fn unmap(&mut self, slot: SlotId, at: Gfn, leaf: &Leaf) -> Unflushed;

    /// Changes the rights of a mapping of `slot` in place, to those of `leaf`; frame and place are the same. To be asked
    /// for what hardware has already changes nothing.
    ///
    /// # Errors
    /// Refused: the hardware has no such mapping any more.
    fn protect(&mut self, slot: SlotId, at: Gfn, leaf: &Leaf) -> Result<Unflushed, Stage2Error>;

    /// Replaces the 2M frame that begins with page `first` by 512 frames of 4K with the same content. Nothing maps it.
    ///
    /// # Errors
    /// Exhausted, or not possible: the frame is what it was.
    // REQ: HOST-2
    fn split_frame(&mut self, first: Frame) -> Result<(), Stage2Error> {
        let _ = first;
        Err(Stage2Error::NO_RESIZE)
    }

    /// Replaces the 512 frames of 4K that begin with page `first` by one of 2M with the same content. Nothing maps them.
    ///
    /// # Errors
    /// Exhausted, or not possible: the frames are what they were.
    // REQ: HOST-2
    fn merge_frames(&mut self, first: Frame) -> Result<(), Stage2Error> {
        let _ = first;
        Err(Stage2Error::NO_RESIZE)
    }

    /// Meets the obligation.
    fn flush(&mut self, removed: Unflushed) -> FlushEpoch;

    /// What is really there for `leaf` at `at`.
    // REQ: RM-3
    fn observe(&mut self, slot: SlotId, at: Gfn, leaf: &Leaf) -> Observed;

    /// How many mappings the container of `slot` really holds, whether the MMU knows them or not.
    // REQ: RM-3
    fn count_mapped(&mut self, slot: SlotId) -> u32;
}

/// The words of all tables, 512 a table. Nobody but the MMU changes them, except for the bits that a processor sets.
// REQ: SP-10
pub trait TableWords {
    /// The words of one table; it panics on a number at or past the capacity.
    fn words(&self, table: TableId) -> &[AtomicU64; ENTRIES];
    /// Tables that there are.
    fn capacity(&self) -> usize;
    /// All words in a row, where they lie so: the word of a place at the number that [`SptePlace::pack`] makes of it.
    ///
    /// [`SptePlace::pack`]: crate::table::SptePlace::pack
    #[inline]
    fn in_a_row(&self) -> Option<&[AtomicU64]> {
        None
    }
}

/// How large a guest's table entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GpteSize {
    /// 4 bytes: 32-bit paging without PAE.
    B4 = 4,
    /// 8 bytes: all others.
    B8 = 8,
}

/// The guest's memory as its tables are read and written: each access is one of the processor's, whole or not at all.
pub trait GuestRam {
    /// Reads the entry `offset` bytes into a frame.
    fn read(&self, frame: Frame, offset: u16, size: GpteSize) -> u64;

    /// Replaces it by `new` if it is `old`.
    ///
    /// # Errors
    /// What is there instead.
    fn compare_exchange(&self, frame: Frame, offset: u16, size: GpteSize, old: u64, new: u64) -> Result<(), u64>;

    /// Writes bytes, for an emulated instruction; naturally aligned ones of 1, 2, 4 or 8 at once.
    fn write(&self, frame: Frame, offset: u16, bytes: &[u8]);
}

/// The guest memory of an MMU that never looks at it: EPT mode.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoRam;

impl GuestRam for NoRam {
    fn read(&self, frame: Frame, _: u16, _: GpteSize) -> u64 {
        panic!("{frame:?} is read, and EPT mode reads no guest memory")
    }
    fn compare_exchange(&self, frame: Frame, _: u16, _: GpteSize, _: u64, _: u64) -> Result<(), u64> {
        panic!("{frame:?} is changed, and EPT mode changes no guest memory")
    }
    fn write(&self, frame: Frame, _: u16, _: &[u8]) {
        panic!("{frame:?} is written, and EPT mode writes no guest memory")
    }
}
