// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is at a host frame number? Guest memory, the tables that hardware walks, or nothing.
//!
//! One layout for both modes: page `p` of backing `b` is host frame `b << backing_shift | p`, table `t` is host frame
//! `tables_base + t`. Frames come into being, zeroed, when they are first touched.

use crate::spte::ShadowLayout;
use crate::stage2::{BackingShape, Frame, GpteSize, GuestAccess};
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::sync::{ReadGuard, RwLock};
use crate::table::{ENTRIES, TableId};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use spin::Once;
use umbra_mmu_abi::{Backing, BackingId};

pub(super) type Words = [AtomicU64; ENTRIES];

fn zeroed() -> Box<Words> {
    Box::new(core::array::from_fn(|_| AtomicU64::new(0)))
}

/// Attached and also writable, in [`Page::attached`].
const WRITABLE: u32 = 1 << 16;
/// Taken away by the host, in [`Page::attached`].
const WITHDRAWN: u32 = 1 << 31;

#[derive(Default)]
struct Page {
    words: Once<Box<Words>>,
    /// Slots that have it; above bit 16 those that have it writable; bit 31: withdrawn.
    attached: AtomicU32,
}

impl Page {
    fn words(&self) -> &Words {
        self.words.call_once(zeroed)
    }
}

/// A backing and which of its pages were written.
struct Backed {
    shape: BackingShape,
    pages: Vec<Page>,
    written: Vec<AtomicU64>,
}

/// What a host frame number names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostFrame {
    /// Guest memory.
    Ram(Frame),
    /// A table of the MMU.
    Table(TableId),
    /// Neither.
    Nothing,
}

/// All memory of a simulated machine.
pub struct SimMemory {
    layout: ShadowLayout,
    backings: Vec<Backed>,
    tables: Vec<Once<Box<Words>>>,
    flushes: AtomicU64,
    /// Held for reading by each processor for the length of an access.
    running: RwLock<()>,
}

impl fmt::Debug for SimMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimMemory")
            .field("layout", &self.layout)
            .finish_non_exhaustive()
    }
}

impl SimMemory {
    /// Backings of these shapes and `tables` tables, at the places that `layout` has for them.
    ///
    /// # Panics
    /// They do not fit there.
    pub fn new(layout: ShadowLayout, shapes: &[BackingShape], tables: usize) -> Arc<Self> {
        assert!((shapes.len() as u64) << layout.backing_shift <= layout.tables_base);
        let backed = |shape: &BackingShape| {
            let pages = shape.pages().expect("a backing is not longer than frames are numbered");
            assert!(pages <= 1 << layout.backing_shift);
            Backed {
                shape: *shape,
                pages: (0..pages).map(|_| Page::default()).collect(),
                written: (0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            }
        };
        Arc::new(Self {
            layout,
            backings: shapes.iter().map(backed).collect(),
            tables: (0..tables).map(|_| Once::new()).collect(),
            flushes: AtomicU64::new(0),
            running: RwLock::new(()),
        })
    }

    /// A layout that any backings fit into, up to 64 of them.
    pub const fn layout_for(maxphyaddr: u8) -> ShadowLayout {
        ShadowLayout {
            backing_shift: 24,
            tables_base: 64 << 24,
            maxphyaddr,
        }
    }

    /// Where everything is.
    pub fn layout(&self) -> &ShadowLayout {
        &self.layout
    }

    /// The shape of a backing.
    pub fn shape(&self, id: BackingId) -> Option<&BackingShape> {
        self.backings.get(id.0 as usize).map(|backing| &backing.shape)
    }

    /// What is at a host frame number.
    pub fn at(&self, hfn: u64) -> HostFrame {
        if let Some(table) = hfn.checked_sub(self.layout.tables_base) {
            return match table < self.tables.len() as u64 {
                true => HostFrame::Table(TableId::from_raw(table as u32)),
                false => HostFrame::Nothing,
            };
        }
        match self.layout.frame(hfn) {
            Some(frame) if self.page(frame).is_some() => HostFrame::Ram(frame),
            Some(_) | None => HostFrame::Nothing,
        }
    }

    fn page(&self, frame: Frame) -> Option<&Page> {
        self.backings
            .get(frame.backing().0 as usize)?
            .pages
            .get(frame.page() as usize)
    }

    fn existing(&self, frame: Frame) -> &Page {
        self.page(frame)
            .unwrap_or_else(|| panic!("{frame:?} is used, and there is no such frame"))
    }

    /// The words of a frame.
    ///
    /// # Panics
    /// There is no such frame.
    pub fn ram(&self, frame: Frame) -> &Words {
        self.existing(frame).words()
    }

    /// Tables that there are.
    pub fn tables(&self) -> usize {
        self.tables.len()
    }

    /// The words of a table.
    ///
    /// # Panics
    /// There is no such table.
    pub fn table(&self, id: TableId) -> &Words {
        let table = &self.tables[id.raw() as usize];
        table.call_once(zeroed)
    }

    /// Records that the guest, or somebody for it, wrote to a frame.
    pub fn mark_written(&self, frame: Frame) {
        let written = &self.backings[frame.backing().0 as usize].written[frame.page() as usize / 64];
        let bit = 1 << (frame.page() % 64);
        if written.load(Ordering::Relaxed) & bit == 0 {
            written.fetch_or(bit, Ordering::Relaxed);
        }
    }

    /// The frames that were written since this was last called, in order: the truth that a dirty log is compared with.
    pub fn take_written(&self) -> Vec<Frame> {
        let mut frames = Vec::new();
        for (id, backing) in self.backings.iter().enumerate() {
            for (at, word) in backing.written.iter().enumerate() {
                let mut bits = word.swap(0, Ordering::Relaxed);
                while bits != 0 {
                    let page = at as u32 * 64 + bits.trailing_zeros();
                    frames.extend(Frame::new(BackingId(id as u16), page));
                    bits &= bits - 1;
                }
            }
        }
        frames
    }

    /// What is `offset` bytes into a frame.
    pub fn load(&self, frame: Frame, offset: u16, size: GpteSize) -> u64 {
        read_entry(self.ram(frame), offset, size)
    }

    /// The guest writes `offset` bytes into a frame.
    pub fn store(&self, frame: Frame, offset: u16, size: GpteSize, value: u64) {
        update(self.ram(frame), offset, size, |_| Ok(value)).expect("a write does not look at what is there");
        self.mark_written(frame);
    }

    /// The guest, or somebody for it, writes bytes; those in one word of 8 at once.
    pub fn store_bytes(&self, frame: Frame, offset: u16, bytes: &[u8]) {
        let words = self.ram(frame);
        for (at, chunk) in pieces(offset, bytes) {
            let shift = at as u32 % 8 * 8;
            let mut value = 0;
            let mut mask = 0;
            for (index, byte) in chunk.iter().enumerate() {
                value |= (*byte as u64) << (shift + index as u32 * 8);
                mask |= 0xff << (shift + index as u32 * 8);
            }
            update(words, at & !7, GpteSize::B8, |now| Ok(now & !mask | value))
                .expect("a write does not look at what is there");
        }
        self.mark_written(frame);
    }

    /// Replaces the entry `offset` bytes into a frame if it is `old`; the guest's processor, or somebody for it, wrote.
    ///
    /// # Errors
    /// What is there instead.
    pub fn compare_exchange(&self, frame: Frame, offset: u16, size: GpteSize, old: u64, new: u64) -> Result<(), u64> {
        compare_exchange_entry(self.ram(frame), offset, size, old, new)?;
        self.mark_written(frame);
        Ok(())
    }

    /// Copies what is in one frame to another, as the host does when it moves a page; the guest wrote nothing.
    pub fn copy(&self, from: Frame, to: Frame) {
        for (from, to) in self.ram(from).iter().zip(self.ram(to)) {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    /// A slot gets these frames.
    pub fn attach(&self, backing: Backing, npages: u32, access: GuestAccess) {
        self.count(backing, npages, access, |count, by| {
            count.fetch_add(by, Ordering::Relaxed);
        });
    }

    /// A slot loses these frames.
    pub fn detach(&self, backing: Backing, npages: u32, access: GuestAccess) {
        self.count(backing, npages, access, |count, by| {
            count.fetch_sub(by, Ordering::Relaxed);
        });
    }

    fn count(&self, backing: Backing, npages: u32, access: GuestAccess, change: impl Fn(&AtomicU32, u32)) {
        let by = match access {
            GuestAccess::ReadExec => 1,
            GuestAccess::All => 1 | WRITABLE,
        };
        let first = backing.first_page as usize;
        for page in &self.backings[backing.id.0 as usize].pages[first..first + npages as usize] {
            change(&page.attached, by);
        }
    }

    /// What any slot lets the guest do with a frame; nothing, if the host has withdrawn it.
    pub fn attached(&self, frame: Frame) -> Option<GuestAccess> {
        match self.page(frame)?.attached.load(Ordering::Relaxed) {
            0 | WITHDRAWN.. => None,
            1..WRITABLE => Some(GuestAccess::ReadExec),
            WRITABLE..WITHDRAWN => Some(GuestAccess::All),
        }
    }

    /// The host takes a frame away: from now on, whoever reaches it breaks isolation.
    pub fn withdraw(&self, frame: Frame) {
        self.existing(frame).attached.fetch_or(WITHDRAWN, Ordering::Relaxed);
    }

    /// Whether the host has taken a frame away.
    pub fn is_withdrawn(&self, frame: Frame) -> bool {
        self.existing(frame).attached.load(Ordering::Relaxed) >= WITHDRAWN
    }

    /// The host gives a frame back.
    pub fn restore(&self, frame: Frame) {
        self.existing(frame).attached.fetch_and(!WITHDRAWN, Ordering::Relaxed);
    }

    /// What a processor holds during an access, if others may flush meanwhile.
    pub fn access(&self) -> ReadGuard<'_, ()> {
        self.running.read()
    }

    /// How many flushes of all processors the owner of hardware-walked tables has asked for.
    pub fn flushes(&self) -> u64 {
        self.flushes.load(Ordering::Acquire)
    }

    /// One more: each processor forgets everything before its next access. Those that are in one are waited for, as an
    /// inter-processor interrupt does.
    pub fn flush(&self) -> u64 {
        let _nobody = self.running.write();
        self.flushes.fetch_add(1, Ordering::AcqRel) + 1
    }
}

/// The entry `offset` bytes into a page.
pub(super) fn read_entry(words: &Words, offset: u16, size: GpteSize) -> u64 {
    let word = words[offset as usize / 8].load(Ordering::Acquire);
    match size {
        GpteSize::B8 => word,
        GpteSize::B4 => word >> (offset as u32 % 8 * 8) & 0xffff_ffff,
    }
}

/// Changes the bytes `offset..` of a page to what `change` makes of the entry there.
fn update(
    words: &Words,
    offset: u16,
    size: GpteSize,
    mut change: impl FnMut(u64) -> Result<u64, u64>,
) -> Result<(), u64> {
    assert!((offset as usize).is_multiple_of(size as usize), "an entry is aligned");
    let shift = match size {
        GpteSize::B8 => 0,
        GpteSize::B4 => offset as u32 % 8 * 8,
    };
    let mask = match size {
        GpteSize::B8 => u64::MAX,
        GpteSize::B4 => 0xffff_ffff << shift,
    };
    let word = &words[offset as usize / 8];
    let mut seen = word.load(Ordering::Acquire);
    loop {
        let new = seen & !mask | change((seen & mask) >> shift)? << shift & mask;
        match word.compare_exchange(seen, new, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return Ok(()),
            Err(now) => seen = now,
        }
    }
}

/// Replaces the entry `offset` bytes into a page if it is `old`.
pub(super) fn compare_exchange_entry(
    words: &Words,
    offset: u16,
    size: GpteSize,
    old: u64,
    new: u64,
) -> Result<(), u64> {
    update(words, offset, size, |now| if now == old { Ok(new) } else { Err(now) })
}

/// Bytes at `offset`, cut at each multiple of 8.
fn pieces(offset: u16, bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut at = offset;
    let mut rest = bytes;
    core::iter::from_fn(move || {
        let room = 8 - at as usize % 8;
        let (piece, after) = rest.split_at(room.min(rest.len()));
        rest = after;
        let place = at;
        at += piece.len() as u16;
        (!piece.is_empty()).then_some((place, piece))
    })
}
