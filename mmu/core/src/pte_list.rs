// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which sptes point here? One tagged word for none or one of them, a chain of the pool for more.
//!
//! Reverse maps have one list for each page of a slot, shadow pages one for their parents (`parent_ptes`). Everything
//! takes `&self`: the word is changed by compare-and-exchange while it names one spte at the most, and under its own lock
//! bit, a leaf lock, while it has a chain.

use crate::stage2::Resource;
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::table::{SptePlace, TableId};
use alloc::vec::Vec;
use core::ops::ControlFlow;

/// Bit 0 clear: nobody (0), or the only spte. Bit 0 set: the first entry of a chain. Bit 1: somebody changes the chain.
// REQ: SP-4, RM-1
#[derive(Debug, Default)]
pub struct PteList(AtomicU64);

const MANY: u64 = 1 << 0;
const LOCKED: u64 = 1 << 1;
const PAYLOAD_SHIFT: u32 = 2;
const INDEX_BITS: u32 = 9;

/// The number after the last entry of a chain.
const END: u32 = u32::MAX;

/// Adding one spte takes this many entries at the most.
pub const ENTRIES_PER_ADD: u32 = 2;

/// What [`PteList::add`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    /// The list was empty.
    First,
    /// It had others.
    Another,
}

/// What [`PteList::remove`] left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Nothing.
    Empty,
    /// Others.
    Others,
}

enum Kind {
    Empty,
    One(SptePlace),
    Many(u32),
}

const fn pack(place: SptePlace) -> u64 {
    // Plus one: place 0 of table 0 is not the empty word.
    ((place.table.raw() as u64) << INDEX_BITS | place.index as u64) + 1
}

const fn unpack(packed: u64) -> SptePlace {
    let raw = packed - 1;
    SptePlace {
        table: TableId::from_raw((raw >> INDEX_BITS) as u32),
        index: raw as u16 & ((1 << INDEX_BITS) - 1),
    }
}

const fn one(place: SptePlace) -> u64 {
    pack(place) << PAYLOAD_SHIFT
}

const fn many(entry: u32) -> u64 {
    (entry as u64) << PAYLOAD_SHIFT | MANY
}

const fn kind(word: u64) -> Kind {
    let payload = word >> PAYLOAD_SHIFT;
    match (payload, word & MANY) {
        (0, 0) => Kind::Empty,
        (_, 0) => Kind::One(unpack(payload)),
        (_, _) => Kind::Many(payload as u32),
    }
}

impl PteList {
    /// Whether nothing is in it.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.load(Ordering::SeqCst) & !LOCKED == 0
    }

    /// Adds a spte that is not in it. `reserve` was topped up with [`ENTRIES_PER_ADD`]; a list of one needs none of it.
    #[inline]
    pub fn add(&self, entries: &PteEntries, reserve: &mut PteReserve, place: SptePlace) -> Added {
        match self
            .0
            .compare_exchange(0, one(place), Ordering::SeqCst, Ordering::Relaxed)
        {
            Ok(_) => Added::First,
            Err(_) => self.add_to_others(entries, reserve, place),
        }
    }

    /// Adds a spte to a list that is empty; `false`: it is not, and nothing was done.
    #[inline]
    pub fn add_only(&self, place: SptePlace) -> bool {
        self.0
            .compare_exchange(0, one(place), Ordering::SeqCst, Ordering::Relaxed)
            .is_ok()
    }

    /// Removes a spte that is in it.
    #[inline]
    pub fn remove(&self, entries: &PteEntries, place: SptePlace) -> Left {
        match self
            .0
            .compare_exchange(one(place), 0, Ordering::SeqCst, Ordering::Relaxed)
        {
            Ok(_) => Left::Empty,
            Err(_) => self.remove_from_others(entries, place),
        }
    }

    /// One of the sptes in it.
    #[inline]
    pub fn first(&self, entries: &PteEntries) -> Option<SptePlace> {
        match kind(self.0.load(Ordering::Acquire)) {
            Kind::Empty => None,
            Kind::One(place) => Some(place),
            Kind::Many(_) => self.places(entries).next(),
        }
    }

    /// The sptes in it. A chain stays locked until the iterator is dropped: the loop must not change this very list.
    #[inline]
    pub fn places<'a>(&'a self, entries: &'a PteEntries) -> Places<'a> {
        let ended = |only| Places {
            entries,
            only,
            next: END,
            locked: None,
        };
        match kind(self.0.load(Ordering::Acquire)) {
            Kind::Empty => ended(None),
            Kind::One(place) => ended(Some(place)),
            Kind::Many(_) => self.locked_places(entries),
        }
    }

    /// The place of the only spte, as [`SptePlace::pack`] has it.
    ///
    /// # Errors
    /// There are more. For none the place is one that no table has.
    #[inline(always)]
    pub(crate) fn single(&self) -> Result<u64, ()> {
        let word = self.0.load(Ordering::Acquire);
        match word & MANY {
            0 => Ok((word >> PAYLOAD_SHIFT).wrapping_sub(1)),
            _ => Err(()),
        }
    }

    /// Calls `act` with the sptes in it until it breaks. As with [`PteList::places`], a chain is locked meanwhile.
    #[inline(always)]
    pub fn each<B>(&self, entries: &PteEntries, mut act: impl FnMut(SptePlace) -> ControlFlow<B>) -> ControlFlow<B> {
        let word = self.0.load(Ordering::Acquire);
        match word & MANY {
            0 if word >> PAYLOAD_SHIFT == 0 => ControlFlow::Continue(()),
            0 => act(unpack(word >> PAYLOAD_SHIFT)),
            _ => self.each_of_chain(entries, &mut act),
        }
    }

    #[cold]
    #[inline(never)]
    fn each_of_chain<B>(
        &self,
        entries: &PteEntries,
        act: &mut impl FnMut(SptePlace) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        self.places(entries).try_for_each(act)
    }

    #[cold]
    fn locked_places<'a>(&'a self, entries: &'a PteEntries) -> Places<'a> {
        let word = self.lock();
        let (only, next) = match kind(word) {
            Kind::Empty => (None, END),
            Kind::One(place) => (Some(place), END),
            Kind::Many(first) => (None, first),
        };
        Places {
            entries,
            only,
            next,
            locked: Some((self, word)),
        }
    }

    #[cold]
    fn add_to_others(&self, entries: &PteEntries, reserve: &mut PteReserve, place: SptePlace) -> Added {
        let (new, added) = match kind(self.lock()) {
            Kind::Empty => (one(place), Added::First),
            Kind::One(other) => {
                let last = entries.take(reserve, other, END);
                (many(entries.take(reserve, place, last)), Added::Another)
            }
            Kind::Many(first) => (many(entries.take(reserve, place, first)), Added::Another),
        };
        self.unlock(new);
        added
    }

    #[cold]
    fn remove_from_others(&self, entries: &PteEntries, place: SptePlace) -> Left {
        let (new, left) = match kind(self.lock()) {
            Kind::One(only) if only == place => (0, Left::Empty),
            Kind::Many(first) => (entries.remove_from_chain(first, place), Left::Others),
            Kind::Empty | Kind::One(_) => panic!("{place:?} is removed from a list that does not have it"),
        };
        self.unlock(new);
        left
    }

    /// Waits for the lock bit; the word that it guards is the answer.
    fn lock(&self) -> u64 {
        loop {
            let word = self.0.load(Ordering::Relaxed);
            // Who waits does not write, so that the holder's plain store ends it.
            if word & LOCKED == 0
                && (self.0)
                    .compare_exchange_weak(word, word | LOCKED, Ordering::Acquire, Ordering::Relaxed)
                    .is_ok()
            {
                return word;
            }
            crate::sync::relax();
        }
    }

    fn unlock(&self, new: u64) {
        debug_assert!(new & LOCKED == 0);
        self.0.store(new, Ordering::SeqCst);
    }
}

/// The sptes of a list; see [`PteList::places`].
pub struct Places<'a> {
    entries: &'a PteEntries,
    only: Option<SptePlace>,
    next: u32,
    locked: Option<(&'a PteList, u64)>,
}

impl Iterator for Places<'_> {
    type Item = SptePlace;

    #[inline]
    fn next(&mut self) -> Option<SptePlace> {
        if self.next == END {
            return self.only.take();
        }
        let entry = &self.entries.entries[self.next as usize];
        self.next = entry.next.load(Ordering::Relaxed);
        Some(entry.place())
    }
}

impl Drop for Places<'_> {
    #[inline]
    fn drop(&mut self) {
        if let Some((list, word)) = self.locked {
            list.unlock(word);
        }
    }
}

/// An entry of a chain. Its chain's lock bit guards it, or the free list has it.
#[derive(Debug)]
struct Entry {
    place: AtomicU64,
    next: AtomicU32,
}

impl Entry {
    fn place(&self) -> SptePlace {
        unpack(self.place.load(Ordering::Relaxed))
    }
}

/// Entries that somebody may take without asking again (KVM: `mmu_pte_list_desc_cache`). A vCPU tops its own up before
/// it takes a lock, so that nothing runs out later.
// REQ: SP-11
#[derive(Debug, Default)]
pub struct PteReserve(u32);

impl PteReserve {
    /// How many are left.
    pub const fn count(&self) -> u32 {
        self.0
    }
}

/// The pool of chain entries, made at start. Its free list takes no lock.
#[derive(Debug)]
pub struct PteEntries {
    entries: Vec<Entry>,
    /// The first free entry in the low half. The high half counts the changes: an entry that left and came back between
    /// a look and an exchange does not pass for one that stayed.
    free: AtomicU64,
    /// Free entries that nobody has reserved.
    available: AtomicU32,
}

impl PteEntries {
    /// A pool of `capacity` entries of 16 bytes.
    ///
    /// # Errors
    /// Not enough memory.
    pub fn new(capacity: u32) -> Result<Self, Resource> {
        let mut entries = Vec::new();
        entries
            .try_reserve_exact(capacity as usize)
            .map_err(|_| Resource::RmapEntries)?;
        entries.extend((0..capacity).map(|i| Entry {
            place: AtomicU64::new(0),
            next: AtomicU32::new(if i + 1 < capacity { i + 1 } else { END }),
        }));
        Ok(Self {
            entries,
            free: AtomicU64::new(if capacity > 0 { 0 } else { END as u64 }),
            available: AtomicU32::new(capacity),
        })
    }

    /// Entries that can still be reserved.
    pub fn free_count(&self) -> usize {
        self.available.load(Ordering::Relaxed) as usize
    }

    /// Makes `reserve` hold `wanted` entries at least.
    ///
    /// # Errors
    /// The pool has fewer; `reserve` is what it was.
    #[inline]
    pub fn top_up(&self, reserve: &mut PteReserve, wanted: u32) -> Result<(), Resource> {
        match wanted.saturating_sub(reserve.0) {
            0 => Ok(()),
            missing => self.reserve_more(reserve, missing),
        }
    }

    #[cold]
    fn reserve_more(&self, reserve: &mut PteReserve, missing: u32) -> Result<(), Resource> {
        self.available
            .fetch_update(Ordering::Acquire, Ordering::Relaxed, |free| free.checked_sub(missing))
            .map_err(|_| Resource::RmapEntries)?;
        reserve.0 += missing;
        Ok(())
    }

    /// Gives up what is left of a reservation.
    pub fn release(&self, reserve: &mut PteReserve) {
        self.available
            .fetch_add(core::mem::take(&mut reserve.0), Ordering::Release);
    }

    fn take(&self, reserve: &mut PteReserve, place: SptePlace, next: u32) -> u32 {
        reserve.0 = reserve
            .0
            .checked_sub(1)
            .expect("entries were reserved before an spte is added");
        let mut head = self.free.load(Ordering::Acquire);
        let taken = loop {
            let first = head as u32;
            // Reservations never exceed the entries in the list.
            assert_ne!(first, END, "reserved entries are in the free list");
            let second = self.entries[first as usize].next.load(Ordering::Relaxed);
            match self.exchange_free(head, second) {
                Ok(()) => break first,
                Err(now) => head = now,
            }
        };
        let entry = &self.entries[taken as usize];
        entry.place.store(pack(place), Ordering::Relaxed);
        entry.next.store(next, Ordering::Relaxed);
        taken
    }

    fn give_back(&self, entry: u32) {
        let mut head = self.free.load(Ordering::Relaxed);
        loop {
            self.entries[entry as usize].next.store(head as u32, Ordering::Relaxed);
            match self.exchange_free(head, entry) {
                Ok(()) => break,
                Err(now) => head = now,
            }
        }
        // After it is in the list: what can be reserved can be taken.
        self.available.fetch_add(1, Ordering::Release);
    }

    fn exchange_free(&self, head: u64, first: u32) -> Result<(), u64> {
        let changes = (head >> 32).wrapping_add(1) << 32;
        self.free
            .compare_exchange(head, changes | first as u64, Ordering::AcqRel, Ordering::Acquire)
            .map(|_| ())
    }

    /// The word of the chain that starts at `first`, without `place`.
    fn remove_from_chain(&self, first: u32, place: SptePlace) -> u64 {
        let entry = |at: u32| &self.entries[at as usize];
        let next_of = |at: u32| entry(at).next.load(Ordering::Relaxed);
        let (mut before, mut at) = (END, first);
        while entry(at).place() != place {
            before = at;
            at = next_of(at);
            assert_ne!(at, END, "{place:?} is not in its chain");
        }
        let next = next_of(at);
        let first = if before == END {
            next
        } else {
            entry(before).next.store(next, Ordering::Relaxed);
            first
        };
        self.give_back(at);
        if next_of(first) == END {
            let only = entry(first).place();
            self.give_back(first);
            return one(only);
        }
        many(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;
    use std::thread;

    fn place(i: u32) -> SptePlace {
        SptePlace {
            table: TableId::from_raw(i / 3),
            index: (i * 7 % 512) as u16,
        }
    }

    // REQ: RM-1, SP-4: sets of any size, against a plain set; one spte takes no entry of the pool.
    #[test]
    fn a_list_holds_any_number_of_sptes() {
        let entries = PteEntries::new(64).unwrap();
        let mut reserve = PteReserve::default();
        let lists: [PteList; 4] = Default::default();
        let mut wanted: [BTreeSet<SptePlace>; 4] = Default::default();
        let mut random = 12345u32;
        for _ in 0..10_000 {
            random = random.wrapping_mul(1664525).wrapping_add(1013904223);
            let (at, i) = ((random >> 8) as usize % 4, (random >> 16) % 12);
            let (list, set) = (&lists[at], &mut wanted[at]);
            if set.remove(&place(i)) {
                let left = if set.is_empty() { Left::Empty } else { Left::Others };
                assert_eq!(list.remove(&entries, place(i)), left);
            } else {
                entries.top_up(&mut reserve, ENTRIES_PER_ADD).unwrap();
                let added = if set.is_empty() { Added::First } else { Added::Another };
                assert_eq!(list.add(&entries, &mut reserve, place(i)), added);
                set.insert(place(i));
            }
            let mut chained = 0;
            for (list, set) in lists.iter().zip(&wanted) {
                let found: BTreeSet<_> = list.places(&entries).collect();
                assert_eq!((&found, list.is_empty()), (set, set.is_empty()));
                assert_eq!(
                    list.first(&entries).map(|first| set.contains(&first)),
                    (!set.is_empty()).then_some(true)
                );
                chained += if set.len() > 1 { set.len() } else { 0 };
            }
            assert_eq!(entries.free_count() + reserve.count() as usize, 64 - chained);
        }
    }

    // REQ: SP-11
    #[test]
    fn a_reservation_is_kept_for_its_owner() {
        let entries = PteEntries::new(3).unwrap();
        let (mut mine, mut yours) = Default::default();
        let list = PteList::default();
        entries.top_up(&mut mine, 2).unwrap();
        assert_eq!(entries.top_up(&mut yours, 2), Err(Resource::RmapEntries));
        assert_eq!((yours.count(), entries.free_count()), (0, 1));
        list.add(&entries, &mut mine, place(1));
        list.add(&entries, &mut mine, place(2));
        assert_eq!((mine.count(), entries.free_count()), (0, 1));
        list.remove(&entries, place(1));
        assert_eq!(entries.free_count(), 3);
        entries.top_up(&mut yours, 2).unwrap();
        entries.release(&mut yours);
        assert_eq!((yours.count(), entries.free_count()), (0, 3));
    }

    // REQ: RM-1, LK-2: threads add to and remove from the same lists at the same time.
    #[test]
    fn lists_of_many_threads_lose_nothing() {
        let entries = PteEntries::new(4 * 24).unwrap();
        let lists: [PteList; 3] = Default::default();
        thread::scope(|scope| {
            for thread in 0..4u32 {
                let (entries, lists) = (&entries, &lists);
                scope.spawn(move || {
                    let mut reserve = PteReserve::default();
                    let mut mine = [false; 3 * 8];
                    let mut random = thread + 1;
                    for _ in 0..20_000 {
                        random = random.wrapping_mul(1664525).wrapping_add(1013904223);
                        let i = (random >> 16) % 24;
                        let (list, place) = (&lists[i as usize % 3], place(thread * 24 + i));
                        let here = &mut mine[i as usize];
                        if *here {
                            list.remove(entries, place);
                        } else {
                            entries.top_up(&mut reserve, ENTRIES_PER_ADD).unwrap();
                            list.add(entries, &mut reserve, place);
                        }
                        *here = !*here;
                        assert_eq!(list.places(entries).any(|found| found == place), *here);
                    }
                    for i in (0..24).filter(|i| mine[*i as usize]) {
                        lists[i as usize % 3].remove(entries, place(thread * 24 + i));
                    }
                    entries.release(&mut reserve);
                });
            }
        });
        assert!(lists.iter().all(PteList::is_empty));
        assert_eq!(entries.free_count(), 4 * 24);
    }
}
