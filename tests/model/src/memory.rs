// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is in the guest's memory, and what was in it when a processor last forgot what it knew?

use crate::layout::{LOG_DIRTY, READONLY, SHAPES};
use crate::oracle::Memory;
use std::collections::BTreeSet;

/// Words of 8 bytes in a page.
const WORDS: usize = 512;
/// Slot numbers of scripts are below this.
pub const SLOT_IDS: usize = 8;

/// A memslot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// First gfn.
    pub base: u64,
    /// 4K pages.
    pub npages: u64,
    /// Backing.
    pub backing: u16,
    /// First page there.
    pub first: u64,
    /// Bits of the flags.
    pub flags: u8,
    /// Since when its gfns mean its frames.
    pub since: u64,
}

impl Slot {
    /// Whether `gfn` lies in it.
    pub fn contains(&self, gfn: u64) -> bool {
        (self.base..self.base + self.npages).contains(&gfn)
    }

    /// Whether writes go nowhere.
    pub fn readonly(&self) -> bool {
        self.flags & READONLY != 0
    }

    /// Whether such a slot can exist, page by page.
    pub fn valid(&self) -> bool {
        let Some(shape) = SHAPES.get(self.backing as usize) else {
            return false;
        };
        let pages = shape.small_head as u64 + shape.large as u64 * 512 + shape.small_tail as u64;
        self.npages > 0 && self.first + self.npages <= pages && self.base + self.npages <= 1 << 36
    }
}

impl Slot {
    /// Whether a 2M frame lies in it in part, or not as the guest's large pages lie: such slots may be refused.
    pub fn cuts_large(&self) -> bool {
        let Some(shape) = SHAPES.get(self.backing as usize) else {
            return false;
        };
        let (head, large) = (shape.small_head as u64, shape.large as u64 * 512);
        (0..self.npages).any(|at| {
            let page = self.first + at;
            let into = page.wrapping_sub(head) % 512;
            let of_large = (head..head + large).contains(&page);
            let whole = at >= into && at - into + 512 <= self.npages && (self.base + at - into).is_multiple_of(512);
            of_large && !whole
        })
    }
}

/// A page of a backing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Page {
    /// Which backing.
    pub backing: u16,
    /// Which page.
    pub page: u32,
}

/// What a word was.
#[derive(Clone, Copy, Debug)]
struct Past {
    word: u16,
    value: u64,
    until: u64,
}

#[derive(Clone, Debug)]
struct Frames {
    words: Vec<u64>,
    past: Vec<Vec<Past>>,
    /// Pages that walks have read entries from.
    tables: Vec<bool>,
}

/// Slots and what is behind them.
#[derive(Clone, Debug)]
pub struct GuestMemory {
    frames: Vec<Frames>,
    slots: [Option<Slot>; SLOT_IDS],
    /// Pages written since the log was taken, for slots that are logged.
    written: [BTreeSet<u64>; SLOT_IDS],
    /// Pages that a write was begun to which had to start again, and then went elsewhere: they may be in the log.
    begun: [BTreeSet<u64>; SLOT_IDS],
}

/// A present entry: only such are kept in TLBs and paging-structure caches (section 4.10.2).
const PRESENT: u64 = 0x1;
/// Its accessed flag is set before it is kept, if that is possible.
const ACCESSED: u64 = 0x20;

impl GuestMemory {
    /// Empty frames, no slots.
    pub fn new() -> Self {
        let frames = SHAPES.iter().map(|shape| {
            let pages = shape.pages().expect("the layout is small") as usize;
            Frames {
                words: vec![0; pages * WORDS],
                past: vec![Vec::new(); pages],
                tables: vec![false; pages],
            }
        });
        Self {
            frames: frames.collect(),
            slots: [None; SLOT_IDS],
            written: Default::default(),
            begun: Default::default(),
        }
    }

    /// The slot of a number.
    pub fn slot(&self, id: u16) -> Option<&Slot> {
        self.slots.get(id as usize)?.as_ref()
    }

    /// Number and slot for `gfn`.
    pub fn slot_at(&self, gfn: u64) -> Option<(u16, &Slot)> {
        let slots = self.slots.iter().enumerate();
        slots
            .filter_map(|(id, slot)| Some((id as u16, slot.as_ref()?)))
            .find(|(_, slot)| slot.contains(gfn))
    }

    /// What is at `gfn`.
    pub fn page_at(&self, gfn: u64) -> Option<Page> {
        let (_, slot) = self.slot_at(gfn)?;
        let page = (slot.first + gfn - slot.base) as u32;
        Some(Page {
            backing: slot.backing,
            page,
        })
    }

    /// Whether a slot may be set so.
    pub fn accepts(&self, id: u16, new: &Slot) -> bool {
        let others = || self.slots.iter().enumerate().filter(|(other, _)| *other != id as usize);
        let free = others()
            .filter_map(|(_, slot)| slot.as_ref())
            .all(|slot| slot.base >= new.base + new.npages || new.base >= slot.base + slot.npages);
        let same = self
            .slot(id)
            .is_none_or(|old| (old.npages, old.backing, old.first) == (new.npages, new.backing, new.first));
        new.valid() && free && same
    }

    /// Sets or deletes a slot.
    pub fn set_slot(&mut self, id: u16, new: Option<Slot>) {
        let logged = |slot: &Option<Slot>| slot.is_some_and(|slot| slot.flags & LOG_DIRTY != 0);
        let old = std::mem::replace(&mut self.slots[id as usize], new);
        if !(logged(&old) && logged(&new)) {
            self.written[id as usize].clear();
            self.begun[id as usize].clear();
        }
    }

    /// The word at an address that is a multiple of 8.
    pub fn word(&self, page: Page, gpa: u64) -> u64 {
        self.frames[page.backing as usize].words[page.page as usize * WORDS + (gpa as usize >> 3 & (WORDS - 1))]
    }

    /// Writes a word; the old one ends at `now`. Kept as long as a processor may know it: since `oldest`.
    pub fn write(&mut self, page: Page, gpa: u64, value: u64, now: u64, oldest: u64) {
        let word = gpa as usize >> 3 & (WORDS - 1);
        let frames = &mut self.frames[page.backing as usize];
        let old = std::mem::replace(&mut frames.words[page.page as usize * WORDS + word], value);
        if old != value && (old | old >> 32) & PRESENT != 0 {
            let past = &mut frames.past[page.page as usize];
            if past.len() >= 16 {
                past.retain(|past| past.until > oldest);
            }
            past.push(Past {
                word: word as u16,
                value: old,
                until: now,
            });
        }
    }

    /// A walk reads entries there.
    pub fn mark_table(&mut self, page: Page) {
        self.frames[page.backing as usize].tables[page.page as usize] = true;
    }

    /// Whether a walk has ever read entries there.
    pub fn is_table(&self, page: Page) -> bool {
        self.frames[page.backing as usize].tables[page.page as usize]
    }

    /// Remembers that `gfn` was written, for the log.
    pub fn log(&mut self, gfn: u64) {
        Self::mark(&self.slots, &mut self.written, gfn);
    }

    /// Remembers that a write to `gfn` was begun.
    pub fn log_begun(&mut self, gfn: u64) {
        Self::mark(&self.slots, &mut self.begun, gfn);
    }

    fn mark(slots: &[Option<Slot>], marks: &mut [BTreeSet<u64>], gfn: u64) {
        let slots = slots.iter().zip(marks);
        for (slot, marks) in slots.filter_map(|(slot, marks)| Some((slot.as_ref()?, marks))) {
            if slot.contains(gfn) && slot.flags & LOG_DIRTY != 0 {
                marks.insert(gfn - slot.base);
            }
        }
    }

    /// Pages that may be in the log without having been written.
    pub fn begun(&self, id: u16) -> &BTreeSet<u64> {
        &self.begun[id as usize % SLOT_IDS]
    }

    /// Pages written since the log was taken.
    pub fn written(&mut self, id: u16) -> &mut BTreeSet<u64> {
        &mut self.written[id as usize]
    }

    /// All pages, for a comparison.
    pub fn pages(&self) -> impl Iterator<Item = (Page, &[u64])> {
        self.frames.iter().zip(0u16..).flat_map(|(frames, backing)| {
            let pages = frames.words.chunks_exact(WORDS).zip(0u32..);
            pages.map(move |(words, page)| (Page { backing, page }, words))
        })
    }
}

impl Default for GuestMemory {
    fn default() -> Self {
        Self::new()
    }
}

/// Memory as a processor may see it that forgot everything at `since`.
pub struct View<'a> {
    /// The memory.
    pub memory: &'a GuestMemory,
    /// The last flush.
    pub since: u64,
}

impl Memory for View<'_> {
    fn entry(&self, gpa: u64, bytes: u8, each: &mut dyn FnMut(u64)) {
        let Some((_, slot)) = self.memory.slot_at(gpa >> 12) else {
            // A bus without anybody.
            return each(if bytes == 4 { u32::MAX.into() } else { u64::MAX });
        };
        let page = Page {
            backing: slot.backing,
            page: (slot.first + (gpa >> 12) - slot.base) as u32,
        };
        let part = |word: u64| match bytes {
            4 => word >> ((gpa as u32 & 4) * 8) & u64::from(u32::MAX),
            _ => word,
        };
        let now = part(self.memory.word(page, gpa));
        each(now);
        let past = &self.memory.frames[page.backing as usize].past[page.page as usize];
        if past.is_empty() {
            return;
        }
        let since = self.since.max(slot.since);
        let word = (gpa >> 3) as u16 & (WORDS as u16 - 1);
        let kept = if slot.readonly() { PRESENT } else { PRESENT | ACCESSED };
        let mut seen = [now; 8];
        let mut count = 1;
        for past in past.iter().filter(|past| past.word == word && past.until > since) {
            let value = part(past.value);
            if value & kept == kept && !seen[..count].contains(&value) {
                seen[count] = value;
                count = (count + 1).min(seen.len() - 1);
                each(value);
            }
        }
    }
}
