// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which sptes map this frame of a slot? One tagged word per gfn and size, and an index of those that are in use.

use crate::stage2::Resource;
use crate::table::{SptePlace, TableId};
use alloc::vec::Vec;
use umbra_mmu_abi::{Gfn, PageLevel};

/// Bit 0 clear: empty (0) or the only spte. Bit 0 set: the first entry of a chain in [`RmapEntries`].
// REQ: RM-1
#[derive(Clone, Copy, PartialEq, Eq, Default)]
struct Head(u64);

enum HeadKind {
    Empty,
    One(SptePlace),
    Many(u32),
}

const INDEX_BITS: u32 = 9;

impl Head {
    fn one(place: SptePlace) -> Self {
        // Plus one: place 0 of table 0 is not the empty word.
        Self((((place.table.raw() as u64) << INDEX_BITS | place.index as u64) + 1) << 1)
    }
    fn many(entry: u32) -> Self {
        Self((entry as u64) << 1 | 1)
    }
    fn kind(self) -> HeadKind {
        match (self.0, self.0 & 1) {
            (0, _) => HeadKind::Empty,
            (word, 0) => {
                let raw = (word >> 1) - 1;
                let index = raw as u16 & ((1 << INDEX_BITS) - 1);
                HeadKind::One(SptePlace {
                    table: TableId::from_raw((raw >> INDEX_BITS) as u32),
                    index,
                })
            }
            (word, _) => HeadKind::Many((word >> 1) as u32),
        }
    }
}

/// An entry of a chain, for frames that more than one spte maps.
#[derive(Clone, Copy)]
struct Entry {
    place: Option<SptePlace>,
    next: Option<u32>,
}

/// The pool of chain entries, made at start.
pub struct RmapEntries {
    entries: Vec<Entry>,
    free: Option<u32>,
    free_count: usize,
}

impl RmapEntries {
    /// A pool of `capacity` entries.
    ///
    /// # Errors
    /// Not enough memory.
    pub fn new(capacity: u32) -> Result<Self, Resource> {
        let mut entries = Vec::new();
        entries
            .try_reserve_exact(capacity as usize)
            .map_err(|_| Resource::RmapEntries)?;
        entries.extend((0..capacity).map(|i| Entry {
            place: None,
            next: (i + 1 < capacity).then_some(i + 1),
        }));
        Ok(Self {
            entries,
            free: (capacity > 0).then_some(0),
            free_count: capacity as usize,
        })
    }

    /// Entries that are left; adding one spte takes at most two.
    pub fn free_count(&self) -> usize {
        self.free_count
    }

    fn take(&mut self, place: SptePlace, next: Option<u32>) -> u32 {
        let entry = self.free.expect("entries were reserved before an spte is added");
        self.free = self.entries[entry as usize].next;
        self.free_count -= 1;
        self.entries[entry as usize] = Entry {
            place: Some(place),
            next,
        };
        entry
    }

    fn give_back(&mut self, entry: u32) {
        self.entries[entry as usize] = Entry {
            place: None,
            next: self.free,
        };
        self.free = Some(entry);
        self.free_count += 1;
    }
}

/// The reverse map of one slot for one page size.
struct Level {
    /// The first page of that size that the slot touches.
    first: u64,
    shift: u32,
    heads: Vec<Head>,
    /// Heads in use: 64 of them a word, and 64 words a word above that.
    used: [Vec<u64>; 2],
}

impl Level {
    fn new(base: Gfn, npages: u32, level: PageLevel) -> Result<Self, Resource> {
        let shift = level.frames().trailing_zeros();
        let first = base.raw() >> shift;
        let count = ((base.raw() + npages as u64 - 1) >> shift) - first + 1;
        let words = count.div_ceil(64);
        Ok(Self {
            first,
            shift,
            heads: filled(count)?,
            used: [filled(words)?, filled(words.div_ceil(64))?],
        })
    }

    fn at(&self, gfn: Gfn) -> usize {
        ((gfn.raw() >> self.shift) - self.first) as usize
    }

    fn mark(&mut self, at: usize) {
        let [words, above] = &mut self.used;
        let word = &mut words[at / 64];
        if *word == 0 {
            above[at / 4096] |= 1 << (at / 64 % 64);
        }
        *word |= 1 << (at % 64);
    }

    fn unmark(&mut self, at: usize) {
        let word = &mut self.used[0][at / 64];
        *word &= !(1 << (at % 64));
        if *word == 0 {
            self.used[1][at / 4096] &= !(1 << (at / 64 % 64));
        }
    }

    /// A head that is not empty, without looking at the empty ones.
    // REQ: SP-12
    fn any(&self) -> Option<usize> {
        let top = self.used[1].iter().position(|word| *word != 0)?;
        let middle = top * 64 + self.used[1][top].trailing_zeros() as usize;
        Some(middle * 64 + self.used[0][middle].trailing_zeros() as usize)
    }
}

fn filled<T: Clone + Default>(len: u64) -> Result<Vec<T>, Resource> {
    let mut all = Vec::new();
    all.try_reserve_exact(len as usize).map_err(|_| Resource::Memory)?;
    all.resize(len as usize, T::default());
    Ok(all)
}

/// The reverse map of one slot.
pub struct Rmap {
    small: Level,
    large: Level,
    huge: Level,
}

impl Rmap {
    /// For a slot of `npages` > 0 from `base`: 8.1 bytes per 4K page.
    ///
    /// # Errors
    /// Not enough memory.
    pub fn new(base: Gfn, npages: u32) -> Result<Self, Resource> {
        Ok(Self {
            small: Level::new(base, npages, PageLevel::K4)?,
            large: Level::new(base, npages, PageLevel::M2)?,
            huge: Level::new(base, npages, PageLevel::G1)?,
        })
    }

    fn level(&self, level: PageLevel) -> &Level {
        match level {
            PageLevel::K4 => &self.small,
            PageLevel::M2 => &self.large,
            PageLevel::G1 => &self.huge,
        }
    }

    fn level_mut(&mut self, level: PageLevel) -> &mut Level {
        match level {
            PageLevel::K4 => &mut self.small,
            PageLevel::M2 => &mut self.large,
            PageLevel::G1 => &mut self.huge,
        }
    }

    /// Adds an spte that maps `gfn` with a page of `level`; two free entries were reserved.
    #[inline]
    pub fn add(&mut self, entries: &mut RmapEntries, gfn: Gfn, level: PageLevel, place: SptePlace) {
        let level = self.level_mut(level);
        let at = level.at(gfn);
        let head = &mut level.heads[at];
        if *head == Head::default() {
            *head = Head::one(place);
            level.mark(at);
        } else {
            *head = add_to_others(entries, *head, place);
        }
    }

    /// Removes an spte that was added.
    pub fn remove(&mut self, entries: &mut RmapEntries, gfn: Gfn, level: PageLevel, place: SptePlace) {
        let level = self.level_mut(level);
        let at = level.at(gfn);
        level.heads[at] = match level.heads[at].kind() {
            HeadKind::One(only) if only == place => Head::default(),
            HeadKind::Many(first) => remove_from_chain(entries, first, place),
            HeadKind::Empty | HeadKind::One(_) => panic!("{place:?} maps {gfn}, and the reverse map does not know"),
        };
        if level.heads[at] == Head::default() {
            level.unmark(at);
        }
    }

    /// One of the sptes that map `gfn` with a page of `level`.
    #[inline]
    pub fn first(&self, entries: &RmapEntries, gfn: Gfn, level: PageLevel) -> Option<SptePlace> {
        let page = self.level(level);
        match page.heads[page.at(gfn)] == Head::default() {
            true => None,
            false => self.places(entries, gfn, level).next(),
        }
    }

    /// The sptes that map `gfn` with a page of `level`.
    pub fn places<'a>(
        &'a self,
        entries: &'a RmapEntries,
        gfn: Gfn,
        level: PageLevel,
    ) -> impl Iterator<Item = SptePlace> + 'a {
        let level = self.level(level);
        let (one, mut next) = match level.heads[level.at(gfn)].kind() {
            HeadKind::Empty => (None, None),
            HeadKind::One(place) => (Some(place), None),
            HeadKind::Many(first) => (None, Some(first)),
        };
        one.into_iter().chain(core::iter::from_fn(move || {
            let entry = entries.entries[next? as usize];
            next = entry.next;
            entry.place
        }))
    }

    /// Some page of the slot that is mapped, with one of the sptes that do it.
    // REQ: SP-12
    pub fn any(&self, entries: &RmapEntries) -> Option<(Gfn, PageLevel, SptePlace)> {
        PageLevel::ALL.into_iter().rev().find_map(|size| {
            let level = self.level(size);
            let gfn = Gfn::new((level.first + level.any()? as u64) << level.shift);
            // The first large page may begin before the slot; `at` only looks at the page number.
            let place = self.places(entries, gfn, size).next();
            Some((gfn, size, place.expect("a head in use has an spte")))
        })
    }

    /// How many sptes there are.
    pub fn count(&self, entries: &RmapEntries) -> u32 {
        PageLevel::ALL
            .into_iter()
            .rev()
            .flat_map(|size| {
                let level = self.level(size);
                (0..level.heads.len() as u64).map(move |i| {
                    self.places(entries, Gfn::new((level.first + i) << level.shift), size)
                        .count() as u32
                })
            })
            .sum()
    }
}

#[cold]
fn add_to_others(entries: &mut RmapEntries, head: Head, place: SptePlace) -> Head {
    match head.kind() {
        HeadKind::Empty => Head::one(place),
        HeadKind::One(other) => {
            let last = entries.take(other, None);
            Head::many(entries.take(place, Some(last)))
        }
        HeadKind::Many(first) => Head::many(entries.take(place, Some(first))),
    }
}

fn remove_from_chain(entries: &mut RmapEntries, first: u32, place: SptePlace) -> Head {
    let mut before = None;
    let mut at = first;
    while entries.entries[at as usize].place != Some(place) {
        before = Some(at);
        at = entries.entries[at as usize]
            .next
            .unwrap_or_else(|| panic!("{place:?} is not in its chain"));
    }
    let next = entries.entries[at as usize].next;
    entries.give_back(at);
    let first = match before {
        Some(before) => {
            entries.entries[before as usize].next = next;
            first
        }
        None => next.expect("a chain has at least two entries"),
    };
    let last = entries.entries[first as usize];
    match (last.next, last.place) {
        (None, Some(only)) => {
            entries.give_back(first);
            Head::one(only)
        }
        _ => Head::many(first),
    }
}
