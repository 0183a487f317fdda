// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where are the sptes? A pool of 512-entry tables, made at start; nothing here allocates later.

use crate::spte::{BadSpte, Spte, SpteKind};
use crate::stage2::{Resource, TableHandle, TableLevel};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};
use umbra_mmu_abi::Gfn;

/// Entries of a table.
pub const ENTRIES: usize = 512;

/// A table of the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TableId(u32);

impl TableId {
    /// The number that an spte carries.
    pub const fn raw(self) -> u32 {
        self.0
    }
    /// From an spte; the pool panics on a number that it never gave out.
    pub const fn from_raw(raw: u32) -> Self {
        Self(raw)
    }
    const fn at(self) -> usize {
        self.0 as usize
    }
}

/// The place of one spte (KVM: `sptep`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SptePlace {
    /// The table.
    pub table: TableId,
    /// The entry, 0..512.
    pub index: u16,
}

/// What a table is for (KVM: `role`); shadow paging adds to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Role {
    /// Its level.
    pub level: TableLevel,
}

/// What is known about a table besides its words (KVM: `kvm_mmu_page`).
#[derive(Debug)]
pub struct Table {
    /// The first frame that it translates.
    pub gfn: Gfn,
    /// What it is for.
    pub role: Role,
    /// `mmu_valid_gen` when it was made; another number than the MMU's makes it obsolete.
    pub valid_gen: u64,
    /// The spte that points here; the root has none.
    pub parent: Option<SptePlace>,
    /// Hardware's table for it. MMIO sptes alone need none.
    pub handle: Option<TableHandle>,
    /// Entries that are not empty.
    pub used: u16,
    /// Entries that map something.
    pub leaves: u16,
    /// Holds MMIO sptes, or did since they were last zapped.
    // REQ: GEN-8
    pub mmio_cached: bool,
    /// Where the background zap goes on.
    pub cursor: u16,
    /// In the list of `mmio_cached` tables, or (`next`) in the free list or the list of obsolete roots.
    prev: Option<TableId>,
    next: Option<TableId>,
}

/// A list through the tables themselves.
#[derive(Debug, Default)]
struct List {
    head: Option<TableId>,
    tail: Option<TableId>,
}

/// The pool.
pub struct Tables {
    tables: Vec<Table>,
    words: Vec<[AtomicU64; ENTRIES]>,
    free: Option<TableId>,
    free_count: usize,
    mmio: List,
}

impl Tables {
    /// A pool of `capacity` tables of 4 KiB.
    ///
    /// # Errors
    /// Not enough memory.
    pub fn new(capacity: usize) -> Result<Self, Resource> {
        let mut tables = Vec::new();
        let mut words = Vec::new();
        tables.try_reserve_exact(capacity).map_err(|_| Resource::Tables)?;
        words.try_reserve_exact(capacity).map_err(|_| Resource::Tables)?;
        for id in 0..capacity {
            words.push([const { AtomicU64::new(0) }; ENTRIES]);
            tables.push(Table {
                gfn: Gfn::new(0),
                role: Role { level: TableLevel::Pt },
                valid_gen: 0,
                parent: None,
                handle: None,
                used: 0,
                leaves: 0,
                mmio_cached: false,
                cursor: 0,
                prev: None,
                next: (id + 1 < capacity).then(|| TableId(id as u32 + 1)),
            });
        }
        let free = (capacity > 0).then_some(TableId(0));
        Ok(Self {
            tables,
            words,
            free,
            free_count: capacity,
            mmio: List::default(),
        })
    }

    /// Tables that [`Tables::take`] can give.
    pub fn free_count(&self) -> usize {
        self.free_count
    }

    /// Tables in all.
    pub fn capacity(&self) -> usize {
        self.tables.len()
    }

    /// What is known about a table.
    pub fn get(&self, id: TableId) -> &Table {
        &self.tables[id.at()]
    }

    /// The same, to change it. Words and counts change by [`Tables::set`] only.
    pub fn get_mut(&mut self, id: TableId) -> &mut Table {
        &mut self.tables[id.at()]
    }

    /// An empty table, with nothing pointing at it yet. The caller has looked at [`Tables::free_count`].
    pub fn take(&mut self, gfn: Gfn, role: Role, valid_gen: u64) -> TableId {
        let id = self.free.expect("a table was reserved before it is taken");
        let table = &mut self.tables[id.at()];
        self.free = table.next.take();
        self.free_count -= 1;
        *table = Table {
            gfn,
            role,
            valid_gen,
            parent: None,
            handle: None,
            used: 0,
            leaves: 0,
            mmio_cached: false,
            cursor: 0,
            prev: None,
            next: None,
        };
        id
    }

    /// Gives an empty, unlinked table back.
    pub fn give_back(&mut self, id: TableId) {
        self.unmark_mmio(id);
        let table = &mut self.tables[id.at()];
        assert_eq!(
            (table.used, table.handle),
            (0, None),
            "a table goes back empty and without a hardware table"
        );
        table.next = self.free;
        self.free = Some(id);
        self.free_count += 1;
    }

    /// The word at a place.
    #[inline]
    pub fn read(&self, place: SptePlace) -> Spte {
        Spte::from_raw(self.words[place.table.at()][place.index as usize].load(Ordering::Relaxed))
    }

    /// What the word at a place says.
    ///
    /// # Errors
    /// It is no spte of that level.
    pub fn decode(&self, place: SptePlace) -> Result<SpteKind, BadSpte> {
        self.read(place).decode(self.get(place.table).role.level as u8)
    }

    /// What the word at a place says; every word in a table was written by [`Tables::set`].
    #[inline]
    pub fn kind(&self, place: SptePlace) -> SpteKind {
        let spte = self.read(place);
        match spte.peek(self.get(place.table).role.level as u8) {
            Ok(kind) => kind,
            Err(bad) => panic!("{place:?} holds {:#x}, which is no spte", bad.0),
        }
    }

    /// Replaces a word by one exchange and keeps the counts; the old word is the answer.
    #[inline]
    pub fn set(&mut self, place: SptePlace, new: Spte) -> Spte {
        let word = &self.words[place.table.at()][place.index as usize];
        let old = Spte::from_raw(word.swap(new.raw(), Ordering::AcqRel));
        let table = &mut self.tables[place.table.at()];
        if !new.is_empty() {
            table.used += 1;
            table.leaves += u16::from(new.is_frame());
        }
        if !old.is_empty() {
            table.used -= 1;
            table.leaves -= u16::from(old.is_frame());
        }
        old
    }

    /// The gfn that an spte of a direct table translates.
    // REQ: RM-2
    pub fn gfn_of(&self, place: SptePlace) -> Gfn {
        let table = self.get(place.table);
        Gfn::new(table.gfn.raw() + ((place.index as u64) << table.role.level.entry_shift()))
    }

    /// The entry of `table` that translates `gfn`.
    #[inline]
    pub fn place(&self, table: TableId, level: TableLevel, gfn: Gfn) -> SptePlace {
        SptePlace {
            table,
            index: (gfn.raw() >> level.entry_shift()) as u16 & (ENTRIES as u16 - 1),
        }
    }

    /// Puts a table on the list of those that hold MMIO sptes.
    // REQ: GEN-8
    pub fn mark_mmio(&mut self, id: TableId) {
        if self.tables[id.at()].mmio_cached {
            return;
        }
        let tail = self.mmio.tail.replace(id);
        match tail {
            Some(tail) => self.tables[tail.at()].next = Some(id),
            None => self.mmio.head = Some(id),
        }
        let table = &mut self.tables[id.at()];
        table.mmio_cached = true;
        table.prev = tail;
        table.next = None;
    }

    /// Takes a table off that list.
    pub fn unmark_mmio(&mut self, id: TableId) {
        let table = &mut self.tables[id.at()];
        if !core::mem::take(&mut table.mmio_cached) {
            return;
        }
        let (prev, next) = (table.prev.take(), table.next.take());
        match prev {
            Some(prev) => self.tables[prev.at()].next = next,
            None => self.mmio.head = next,
        }
        match next {
            Some(next) => self.tables[next.at()].prev = prev,
            None => self.mmio.tail = prev,
        }
    }

    /// The table that has been on that list for longest.
    pub fn oldest_mmio(&self) -> Option<TableId> {
        self.mmio.head
    }

    /// Chains an obsolete root before another.
    pub fn chain(&mut self, id: TableId, next: Option<TableId>) {
        self.tables[id.at()].next = next;
    }

    /// The root chained after this one.
    pub fn chained(&self, id: TableId) -> Option<TableId> {
        self.get(id).next
    }
}
