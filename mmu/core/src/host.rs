// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which frames are behind a backing's pages just now? The owner of memory may take them away, write-protect, split and
//! merge them at any time; faults look here without a lock.
//!
//! A change is made while `mmu_lock` is held for writing, between the start and the end of a pair of
//! [`crate::invalidate`]: a fault that looked before the change does not install what it saw.

use crate::slot_data::filled;
use crate::stage2::{BackingShape, Frame, GuestAccess, Resource};
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use alloc::vec::Vec;
use umbra_mmu_abi::{Backing, BackingId, Gfn, PageLevel};

/// What kind of memory a backing is.
// REQ: MEM-3
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackingKind {
    /// RAM of this guest alone.
    Anonymous,
    /// RAM that others use too. Their writes are not in the guest's dirty log.
    Shared,
    /// The registers of a device that the guest drives itself: always there, at one place, of one size.
    Device,
    /// A read-only image: slots on it are read-only.
    Image,
}

impl BackingKind {
    /// What a guest may do at most.
    pub const fn access(self) -> GuestAccess {
        match self {
            Self::Anonymous | Self::Shared | Self::Device => GuestAccess::All,
            Self::Image => GuestAccess::ReadExec,
        }
    }

    /// Whether its owner can do without it for a while.
    const fn can_change(self) -> bool {
        match self {
            Self::Anonymous | Self::Shared | Self::Image => true,
            Self::Device => false,
        }
    }
}

/// A backing at start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackingInfo {
    /// Its frames.
    pub shape: BackingShape,
    /// What they are.
    pub kind: BackingKind,
}

impl From<BackingShape> for BackingInfo {
    fn from(shape: BackingShape) -> Self {
        let kind = BackingKind::Anonymous;
        Self { shape, kind }
    }
}

/// What makes a large page of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostLayout {
    /// Frames of 4K and 2M that are mapped one by one (EPT mode). 1G frames are none: the kernel maps none for a guest.
    Frames,
    /// A linear container (shadow mode): every aligned run of pages is as good as a frame of that size.
    Linear,
}

/// A page of the backing, and whether it is there.
// REQ: HOST-1, HOST-2
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageState {
    /// There, with all rights of the backing.
    Resident,
    /// There, to be read only; a write has to ask the owner.
    WriteProtected,
    /// Reclaimed, on its way to another place, or in a balloon: an access has to ask the owner.
    Away,
    /// Its owner has revoked it and will not give it again.
    Revoked,
}

impl PageState {
    /// Every state.
    pub const ALL: [Self; 4] = [Self::Resident, Self::WriteProtected, Self::Away, Self::Revoked];

    /// The bits in the two bitmaps.
    const fn bits(self) -> [bool; 2] {
        match self {
            Self::Resident => [false, false],
            Self::WriteProtected => [true, false],
            Self::Away => [false, true],
            Self::Revoked => [true, true],
        }
    }

    const fn of_bits(bits: [bool; 2]) -> Self {
        match bits {
            [false, false] => Self::Resident,
            [true, false] => Self::WriteProtected,
            [false, true] => Self::Away,
            [true, true] => Self::Revoked,
        }
    }
}

/// The frame behind a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostPage {
    /// Its first page.
    pub first: Frame,
    /// Its size: the largest that can be mapped as one.
    pub level: PageLevel,
    /// What the host lets the guest do with it now.
    pub access: GuestAccess,
}

/// What is behind a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostView {
    /// A frame.
    Page(HostPage),
    /// A frame of 4K that was split off a large one for the dirty log: it may be part of one again.
    // REQ: LP-4
    Split(HostPage),
    /// A large frame that could not be split for the dirty log: all of it counts as written.
    // REQ: LP-4
    Whole(HostPage),
    /// Nothing until the owner brings it back.
    Away,
    /// Nothing for good.
    Revoked,
}

/// A frame that is there, with all rights, as it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlainFrame {
    /// Of 4K.
    Small,
    /// Of 2M, and how many pages into it.
    Large(u32),
}

/// Why the host's state did not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostError {
    /// No such pages.
    NoPages,
    /// A device's frames stay as they are.
    Device,
    /// The range cuts a 2M frame: it must be split before.
    PartOfLarge,
    /// The 512 pages are not all there with one state, or not all of this backing.
    NotUniform,
}

/// Why a large frame is split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SplitFor {
    /// Its owner wants frames of 4K.
    Owner,
    /// Writes are logged page by page; later it may be one again.
    Log,
}

/// Set in a chunk's word where its frames are 4K ones.
const SMALL: u32 = 1 << 31;
/// Set beside it for [`SplitFor::Log`], and alone where that was refused.
const FOR_LOG: u32 = 1 << 30;
/// Below: how many of its pages are not [`PageState::Resident`].
const COUNT: u32 = FOR_LOG - 1;
const SPLIT_FOR_LOG: u32 = SMALL | FOR_LOG;
const CHUNK_SHIFT: u32 = PageLevel::M2.frame_shift();
const CHUNK: u32 = 1 << CHUNK_SHIFT;
/// log2 of the chunks in 1G.
const GIANT_SHIFT: u32 = PageLevel::G1.frame_shift() - CHUNK_SHIFT;

/// A 1G page that cannot be.
const NEVER: u32 = 1 << 16;

/// One backing, cut into chunks of 512 pages. 0.26 bytes for each page.
#[derive(Debug)]
struct HostBacking {
    layout: HostLayout,
    kind: BackingKind,
    shape: BackingShape,
    pages: u32,
    /// Pages that are missing before page 0, so that chunks begin where 2M frames do.
    pad: u32,
    chunks: Vec<AtomicU32>,
    /// For each 1G: chunks in it that are not one large frame with all rights.
    giants: Vec<AtomicU32>,
    states: [Vec<AtomicU64>; 2],
}

/// All backings of an MMU.
#[derive(Debug)]
pub struct HostMemory {
    backings: Vec<HostBacking>,
}

impl HostMemory {
    /// The backings, with all pages there.
    ///
    /// # Errors
    /// Not enough memory.
    ///
    /// # Panics
    /// A backing longer than [`Frame::PAGES`].
    pub fn new(layout: HostLayout, infos: &[BackingInfo]) -> Result<Self, Resource> {
        let mut backings = Vec::new();
        backings.try_reserve_exact(infos.len()).map_err(|_| Resource::Memory)?;
        for info in infos {
            backings.push(HostBacking::new(layout, info)?);
        }
        Ok(Self { backings })
    }

    fn of(&self, frame: Frame) -> &HostBacking {
        &self.backings[frame.backing().0 as usize]
    }

    /// The frames of a backing at start.
    pub fn shape(&self, id: BackingId) -> Option<BackingShape> {
        self.backings.get(id.0 as usize).map(|backing| backing.shape)
    }

    /// Whether every large frame among `npages` of `backing` can be mapped as a whole when the first page is at `base`. A
    /// linear container has none that must be.
    // REQ: LP-2
    pub fn fits(&self, backing: Backing, npages: u32, base: Gfn) -> bool {
        let of = &self.backings[backing.id.0 as usize];
        let (first, end) = (backing.first_page + of.pad, backing.first_page + npages + of.pad);
        let mut chunks = first >> CHUNK_SHIFT..end.div_ceil(CHUNK);
        let fits = |chunk: u32| {
            let start = chunk << CHUNK_SHIFT;
            let inside = first <= start && start + CHUNK <= end;
            inside && (base.raw() + (start - first) as u64).is_multiple_of(PageLevel::M2.frames())
        };
        let small = |chunk: u32| of.chunks[chunk as usize].load(Ordering::Relaxed) & SMALL != 0;
        of.layout == HostLayout::Linear || chunks.all(|chunk| small(chunk) || fits(chunk))
    }

    /// What makes a large page.
    pub fn layout(&self, id: BackingId) -> HostLayout {
        self.backings[id.0 as usize].layout
    }

    /// What a backing is made of; `None`: there is no such one.
    pub fn kind(&self, id: BackingId) -> Option<BackingKind> {
        self.backings.get(id.0 as usize).map(|backing| backing.kind)
    }

    /// How many pages a backing has.
    pub fn pages(&self, id: BackingId) -> Option<u32> {
        self.backings.get(id.0 as usize).map(|backing| backing.pages)
    }

    /// What is behind a page of a backing.
    // REQ: PF-1
    #[inline(always)]
    pub fn page(&self, frame: Frame) -> HostView {
        let backing = self.of(frame);
        let chunk = (frame.page() + backing.pad) >> CHUNK_SHIFT;
        match backing.chunks[chunk as usize].load(Ordering::Acquire) {
            // The usual one first.
            SMALL => HostView::Page(HostPage {
                first: frame,
                level: PageLevel::K4,
                access: backing.kind.access(),
            }),
            0 if backing.layout == HostLayout::Frames => HostView::Page(HostPage {
                first: Frame::of_checked(frame.backing(), (chunk << CHUNK_SHIFT) - backing.pad),
                level: PageLevel::M2,
                access: backing.kind.access(),
            }),
            word => backing.page(frame, word),
        }
    }

    /// Whether the page is there with all rights, as far as a look at its chunk tells: `false` says nothing.
    #[inline(always)]
    pub fn is_plain(&self, frame: Frame) -> bool {
        let backing = self.of(frame);
        let chunk = (frame.page() + backing.pad) >> CHUNK_SHIFT;
        let word = backing.chunks[chunk as usize].load(Ordering::Acquire);
        word & !SMALL == 0 && backing.kind.access() == GuestAccess::All
    }

    /// The size of the frame behind a page, if nothing is special about it: it is there, with all rights, as it was made.
    #[inline(always)]
    pub fn plain(&self, frame: Frame) -> Option<PlainFrame> {
        let backing = self.of(frame);
        let at = frame.page() + backing.pad;
        let word = backing.chunks[(at >> CHUNK_SHIFT) as usize].load(Ordering::Acquire);
        match (word, backing.layout) {
            _ if backing.kind.access() != GuestAccess::All => None,
            (SMALL, _) => Some(PlainFrame::Small),
            (0, HostLayout::Frames) => Some(PlainFrame::Large(at & (CHUNK - 1))),
            _ => None,
        }
    }

    /// The state of one page.
    pub fn state(&self, frame: Frame) -> PageState {
        self.of(frame).state(frame.page())
    }

    /// Whether the page lies in a chunk that is one large frame.
    pub fn is_large(&self, frame: Frame) -> bool {
        let backing = self.of(frame);
        backing.chunks[((frame.page() + backing.pad) >> CHUNK_SHIFT) as usize].load(Ordering::Acquire) & SMALL == 0
    }

    /// Checks that `pages` from `first` may change. In [`HostLayout::Frames`], a range begins and ends where frames do.
    ///
    /// # Errors
    /// See [`HostError`].
    pub fn check(&self, first: Frame, pages: u32) -> Result<(), HostError> {
        let backing = self
            .backings
            .get(first.backing().0 as usize)
            .ok_or(HostError::NoPages)?;
        let end = first.page().checked_add(pages).filter(|end| *end <= backing.pages);
        let end = end.filter(|_| pages > 0).ok_or(HostError::NoPages)?;
        if !backing.kind.can_change() {
            return Err(HostError::Device);
        }
        let cuts = |page: u32| {
            let at = page + backing.pad;
            let cut = backing.layout == HostLayout::Frames && !at.is_multiple_of(CHUNK);
            cut && backing.chunks[(at >> CHUNK_SHIFT) as usize].load(Ordering::Relaxed) & SMALL == 0
        };
        match cuts(first.page()) || end < backing.pages && cuts(end) {
            true => Err(HostError::PartOfLarge),
            false => Ok(()),
        }
    }

    /// Says in which state `pages` from `first` are from now on.
    ///
    /// # Errors
    /// See [`HostMemory::check`]; nothing has changed.
    // REQ: HOST-1, HOST-2
    pub fn set_state(&self, first: Frame, pages: u32, state: PageState) -> Result<(), HostError> {
        self.check(first, pages)?;
        let backing = self.of(first);
        for page in first.page()..first.page() + pages {
            backing.set_state(page, state);
        }
        Ok(())
    }

    /// The 2M frame behind `frame` is 512 frames of 4K from now on.
    ///
    /// # Errors
    /// It is no 2M frame.
    // REQ: HOST-2
    pub fn split(&self, frame: Frame, why: SplitFor) -> Result<(), HostError> {
        let (backing, chunk) = self.whole_chunk(frame)?;
        let small = match why {
            SplitFor::Owner => SMALL,
            SplitFor::Log => SMALL | FOR_LOG,
        };
        match backing.chunks[chunk].load(Ordering::Relaxed) & SMALL {
            0 => {
                backing.change(chunk, |word| word | small);
                Ok(())
            }
            _ => Err(HostError::NotUniform),
        }
    }

    /// The frames of 4K around `frame` stay as they are, whatever they were split for; a whole one may be split again.
    pub fn keep(&self, frame: Frame) {
        if let Ok((backing, chunk)) = self.whole_chunk(frame) {
            backing.change(chunk, |word| word & !FOR_LOG);
        }
    }

    /// The large frame around `frame` cannot be split for the dirty log.
    pub fn keep_whole(&self, frame: Frame) {
        if let Ok((backing, chunk)) = self.whole_chunk(frame) {
            backing.change(chunk, |word| word | FOR_LOG);
        }
    }

    /// The 512 frames of 4K around `frame` are one of 2M from now on.
    ///
    /// # Errors
    /// They are one already, or in different states.
    // REQ: HOST-2
    pub fn collapse(&self, frame: Frame) -> Result<(), HostError> {
        let (backing, chunk) = self.whole_chunk(frame)?;
        if !self.is_large(frame) && backing.is_uniform(chunk) {
            backing.change(chunk, |word| word & COUNT);
            return Ok(());
        }
        Err(HostError::NotUniform)
    }

    /// The first page of the 512 around `frame`, which the backing has all.
    ///
    /// # Errors
    /// It has not.
    pub fn chunk_of(&self, frame: Frame) -> Result<Frame, HostError> {
        let (backing, chunk) = self.whole_chunk(frame)?;
        let first = ((chunk as u32) << CHUNK_SHIFT) - backing.pad;
        Ok(Frame::of_checked(frame.backing(), first))
    }

    fn whole_chunk(&self, frame: Frame) -> Result<(&HostBacking, usize), HostError> {
        let backing = self
            .backings
            .get(frame.backing().0 as usize)
            .ok_or(HostError::NoPages)?;
        if !backing.kind.can_change() {
            return Err(HostError::Device);
        }
        let start = (frame.page() + backing.pad) & !(CHUNK - 1);
        let whole = backing.pad <= start && start + CHUNK <= backing.pad + backing.pages;
        match whole {
            true => Ok((backing, (start >> CHUNK_SHIFT) as usize)),
            false => Err(HostError::NoPages),
        }
    }
}

impl HostBacking {
    fn new(layout: HostLayout, info: &BackingInfo) -> Result<Self, Resource> {
        let pages = info.shape.pages().expect("a backing is not longer than sptes can name");
        let (pad, large) = match layout {
            HostLayout::Frames => (info.shape.small_head.wrapping_neg() % CHUNK, info.shape.large_pages()),
            HostLayout::Linear => (0, 0..pages & !(CHUNK - 1)),
        };
        let chunks: Vec<AtomicU32> = filled((pad + pages).div_ceil(CHUNK).into())?;
        let giants: Vec<AtomicU32> = filled((chunks.len() as u64).div_ceil(1 << GIANT_SHIFT))?;
        let words = (pages as u64).div_ceil(64);
        let large = large.start + pad..large.end + pad;
        for (at, chunk) in chunks.iter().enumerate() {
            if !large.contains(&((at as u32) << CHUNK_SHIFT)) {
                chunk.store(SMALL, Ordering::Relaxed);
                giants[at >> GIANT_SHIFT].fetch_add(1, Ordering::Relaxed);
            }
        }
        for (at, giant) in giants.iter().enumerate() {
            let whole = (at + 1) << GIANT_SHIFT <= chunks.len();
            // One that nothing takes back: there are no frames of 1G.
            if !whole || layout == HostLayout::Frames {
                giant.fetch_add(NEVER, Ordering::Relaxed);
            }
        }
        Ok(Self {
            layout,
            kind: info.kind,
            shape: info.shape,
            pages,
            pad,
            chunks,
            giants,
            states: [filled(words)?, filled(words)?],
        })
    }

    /// What is behind a page of a chunk with this word.
    fn page(&self, frame: Frame, word: u32) -> HostView {
        let at = frame.page() + self.pad;
        let page = |level: PageLevel, access| {
            let into = at & (level.frames() as u32 - 1);
            let first = Frame::of_checked(frame.backing(), frame.page() - into);
            HostPage { first, level, access }
        };
        let access = self.kind.access();
        if word == 0 {
            let giant = &self.giants[at as usize >> (CHUNK_SHIFT + GIANT_SHIFT)];
            return match giant.load(Ordering::Acquire) {
                0 => HostView::Page(page(PageLevel::G1, access)),
                _ => HostView::Page(page(PageLevel::M2, access)),
            };
        }
        // A large frame changes as a whole; of a mere run, each page.
        let whole = word & !FOR_LOG == CHUNK && self.layout == HostLayout::Frames;
        let level = if whole { PageLevel::M2 } else { PageLevel::K4 };
        match (word, self.state(frame.page())) {
            (SPLIT_FOR_LOG, _) => HostView::Split(page(PageLevel::K4, access)),
            (FOR_LOG, _) => HostView::Whole(page(PageLevel::M2, access)),
            (_, PageState::Resident) => HostView::Page(page(PageLevel::K4, access)),
            (_, PageState::WriteProtected) => HostView::Page(page(level, GuestAccess::ReadExec)),
            (_, PageState::Away) => HostView::Away,
            (_, PageState::Revoked) => HostView::Revoked,
        }
    }

    fn state(&self, page: u32) -> PageState {
        let bit = |of: &Vec<AtomicU64>| of[page as usize / 64].load(Ordering::Acquire) >> (page % 64) & 1 != 0;
        PageState::of_bits([bit(&self.states[0]), bit(&self.states[1])])
    }

    fn set_state(&self, page: u32, state: PageState) {
        let old = self.state(page);
        for (of, bit) in self.states.iter().zip(state.bits()) {
            let (word, mask) = (&of[page as usize / 64], 1 << (page % 64));
            match bit {
                true => word.fetch_or(mask, Ordering::AcqRel),
                false => word.fetch_and(!mask, Ordering::AcqRel),
            };
        }
        let exceptions = |state| u32::from(state != PageState::Resident);
        let chunk = ((page + self.pad) >> CHUNK_SHIFT) as usize;
        self.change(chunk, |word| word + exceptions(state) - exceptions(old));
    }

    /// Changes a chunk's word, and the count of its 1G with it. `mmu_lock` keeps other changes out.
    fn change(&self, chunk: usize, to: impl FnOnce(u32) -> u32) {
        let old = self.chunks[chunk].load(Ordering::Relaxed);
        let new = to(old);
        let giant = &self.giants[chunk >> GIANT_SHIFT];
        // The count is never too low, also for those who look meanwhile.
        if old == 0 && new != 0 {
            giant.fetch_add(1, Ordering::AcqRel);
        }
        self.chunks[chunk].store(new, Ordering::Release);
        if old != 0 && new == 0 {
            giant.fetch_sub(1, Ordering::AcqRel);
        }
    }

    fn is_uniform(&self, chunk: usize) -> bool {
        let first = ((chunk as u32) << CHUNK_SHIFT) - self.pad;
        let state = self.state(first);
        (first..first + CHUNK).all(|page| self.state(page) == state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use PageState::{Away, Resident, Revoked, WriteProtected};

    const LARGE: u32 = CHUNK;

    fn frame(page: u32) -> Frame {
        Frame::new(BackingId(0), page).unwrap()
    }

    fn host(layout: HostLayout, small_head: u32, large: u32, small_tail: u32) -> HostMemory {
        let shape = BackingShape {
            small_head,
            large,
            small_tail,
        };
        HostMemory::new(layout, &[shape.into()]).unwrap()
    }

    fn first_and_level(host: &HostMemory, page: u32) -> (u32, PageLevel) {
        match host.page(frame(page)) {
            HostView::Page(page) => (page.first.page(), page.level),
            other @ (HostView::Split(_) | HostView::Whole(_) | HostView::Away | HostView::Revoked) => {
                panic!("page {page} is {other:?}")
            }
        }
    }

    #[test]
    fn frames_have_the_sizes_of_their_backing() {
        for (head, tail) in [(0, 0), (4, 600), (511, 1), (513, 0)] {
            let shape = BackingShape {
                small_head: head,
                large: 3,
                small_tail: tail,
            };
            let host = host(HostLayout::Frames, head, 3, tail);
            for page in 0..shape.pages().unwrap() {
                let (_, level) = shape.frame_of(page);
                let into = if level == PageLevel::M2 {
                    (page - head) % LARGE
                } else {
                    0
                };
                assert_eq!(first_and_level(&host, page), (page - into, level), "{head} {page}");
            }
        }
    }

    // REQ: LP-1: a run of pages is as large as its alignment allows, and the backing's end.
    #[test]
    fn runs_of_a_linear_container_have_every_size() {
        let giant = 1 << 18;
        let host = host(HostLayout::Linear, 5, 0, 2 * giant + 3 * LARGE + 7 - 5);
        assert_eq!(first_and_level(&host, giant + 77), (giant, PageLevel::G1));
        assert_eq!(
            first_and_level(&host, 2 * giant + 513),
            (2 * giant + 512, PageLevel::M2)
        );
        let last = 2 * giant + 3 * LARGE + 6;
        assert_eq!(first_and_level(&host, last), (last, PageLevel::K4));
        host.split(frame(giant + 1), SplitFor::Owner).unwrap();
        assert_eq!(first_and_level(&host, giant + 1), (giant + 1, PageLevel::K4));
        assert_eq!(first_and_level(&host, giant + 512).1, PageLevel::M2);
        assert_eq!(first_and_level(&host, 3).1, PageLevel::G1);
        host.collapse(frame(giant + 1)).unwrap();
        assert_eq!(first_and_level(&host, giant + 512).1, PageLevel::G1);
    }

    // REQ: HOST-1, HOST-2: random changes against a plain list of states.
    #[test]
    fn pages_are_what_was_said_of_them() {
        let pages = 4 * LARGE + 100;
        let host = host(HostLayout::Linear, pages, 0, 0);
        let mut states = std::vec![Resident; pages as usize];
        let mut random = 99u32;
        let mut next = |below: u32| {
            random = random.wrapping_mul(1664525).wrapping_add(1013904223);
            (random >> 8) % below
        };
        for _ in 0..300 {
            let first = next(pages);
            let scale = next(11);
            let len = (1 + next(1 << scale)).min(pages - first);
            let state = PageState::ALL[next(4) as usize % 4];
            host.set_state(frame(first), len, state).unwrap();
            states[first as usize..(first + len) as usize].fill(state);
            for (page, state) in (0..).zip(&states) {
                assert_eq!(host.state(frame(page)), *state);
                let chunk = (page & !(LARGE - 1)) as usize;
                let plain = states.get(chunk..chunk + LARGE as usize);
                let level = match plain.is_some_and(|all| all.iter().all(|state| *state == Resident)) {
                    true => PageLevel::M2,
                    false => PageLevel::K4,
                };
                let view = |access| {
                    let first = frame(page & !(level.frames() as u32 - 1));
                    HostView::Page(HostPage { first, level, access })
                };
                let wanted = match state {
                    Resident => view(GuestAccess::All),
                    WriteProtected => view(GuestAccess::ReadExec),
                    Away => HostView::Away,
                    Revoked => HostView::Revoked,
                };
                assert_eq!(host.page(frame(page)), wanted);
            }
        }
        host.set_state(frame(0), pages, Resident).unwrap();
        assert_eq!(first_and_level(&host, 600), (512, PageLevel::M2));
    }

    // REQ: HOST-2
    #[test]
    fn a_large_frame_goes_as_a_whole_or_is_split_before() {
        let host = host(HostLayout::Frames, 4, 2, 4);
        let whole = 4 + LARGE;
        for (first, pages) in [(5, 1), (whole + 1, LARGE - 1), (0, 5), (whole - 1, 2)] {
            assert_eq!(
                host.set_state(frame(first), pages, Away),
                Err(HostError::PartOfLarge),
                "{first}"
            );
        }
        host.set_state(frame(whole), LARGE, WriteProtected).unwrap();
        let page = HostPage {
            first: frame(whole),
            level: PageLevel::M2,
            access: GuestAccess::ReadExec,
        };
        assert_eq!(host.page(frame(whole + 9)), HostView::Page(page));
        host.set_state(frame(whole), LARGE, Resident).unwrap();
        host.split(frame(whole + 3), SplitFor::Owner).unwrap();
        host.set_state(frame(whole + 1), 1, Away).unwrap();
        assert_eq!(host.page(frame(whole + 1)), HostView::Away);
        assert_eq!(first_and_level(&host, whole), (whole, PageLevel::K4));
        assert_eq!(host.collapse(frame(whole)), Err(HostError::NotUniform));
        host.set_state(frame(whole + 1), 1, Resident).unwrap();
        host.collapse(frame(whole)).unwrap();
        assert_eq!(first_and_level(&host, whole + 1), (whole, PageLevel::M2));
        assert_eq!(host.chunk_of(frame(whole + 77)), Ok(frame(whole)));
        // The first and the last four pages are no part of 512 that could be one.
        assert_eq!(host.collapse(frame(1)), Err(HostError::NoPages));
        assert_eq!(
            host.split(frame(4 + 2 * LARGE), SplitFor::Owner),
            Err(HostError::NoPages)
        );
        assert_eq!(host.set_state(frame(0), 9 + 2 * LARGE, Away), Err(HostError::NoPages));
    }

    // REQ: LP-4
    #[test]
    fn what_was_split_for_the_log_says_so_until_it_is_one_again() {
        let host = host(HostLayout::Frames, 0, 2, 0);
        host.split(frame(0), SplitFor::Log).unwrap();
        let page = |page| HostPage {
            first: frame(page),
            level: PageLevel::K4,
            access: GuestAccess::All,
        };
        assert_eq!(host.page(frame(7)), HostView::Split(page(7)));
        host.set_state(frame(7), 1, Away).unwrap();
        assert_eq!(
            (host.page(frame(7)), host.page(frame(8))),
            (HostView::Away, HostView::Page(page(8)))
        );
        host.set_state(frame(7), 1, Resident).unwrap();
        host.collapse(frame(7)).unwrap();
        assert_eq!(first_and_level(&host, 7), (0, PageLevel::M2));
        host.split(frame(512), SplitFor::Log).unwrap();
        host.keep(frame(600));
        assert_eq!(host.page(frame(513)), HostView::Page(page(513)));
        host.keep_whole(frame(3));
        let whole = HostPage {
            level: PageLevel::M2,
            ..page(0)
        };
        assert_eq!(host.page(frame(77)), HostView::Whole(whole));
        host.keep(frame(77));
        assert_eq!(host.page(frame(77)), HostView::Page(whole));
    }

    // REQ: MEM-3
    #[test]
    fn kinds_of_memory_have_rights() {
        let shape = BackingShape {
            small_head: 8,
            large: 0,
            small_tail: 0,
        };
        let kinds =
            [BackingKind::Image, BackingKind::Device, BackingKind::Shared].map(|kind| BackingInfo { shape, kind });
        let host = HostMemory::new(HostLayout::Frames, &kinds).unwrap();
        let at = |id: u16| Frame::new(BackingId(id), 3).unwrap();
        let access = |id| match host.page(at(id)) {
            HostView::Page(page) => page.access,
            other => panic!("nothing was taken away: {other:?}"),
        };
        assert_eq!(
            [0, 1, 2].map(access),
            [GuestAccess::ReadExec, GuestAccess::All, GuestAccess::All]
        );
        assert_eq!(host.set_state(at(1), 1, Away), Err(HostError::Device));
        assert_eq!(host.set_state(at(2), 1, WriteProtected), Ok(()));
        assert_eq!(access(2), GuestAccess::ReadExec);
        assert_eq!((host.kind(BackingId(3)), host.pages(BackingId(2))), (None, Some(8)));
        assert_eq!(
            host.set_state(Frame::new(BackingId(3), 0).unwrap(), 1, Away),
            Err(HostError::NoPages)
        );
    }
}
