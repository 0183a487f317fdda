// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where are the sptes? A pool of 512-entry tables, made at start; nothing here allocates later.
//!
//! Words and what is known about each table are atomics: processors, walkers without the lock and faults under the read
//! side of mmu_lock use them at the same time. Who may change what:
//!
//! | what                            | changed by                                                         |
//! |---------------------------------|--------------------------------------------------------------------|
//! | a word, from empty to something | compare-and-exchange under the read side of mmu_lock               |
//! | a word, W or R X restored       | compare-and-exchange, no lock                                      |
//! | a word, to something smaller    | exchange, under mmu_lock                                           |
//! | counts                          | whoever changed the word, after it                                 |
//! | gfn, role, valid_gen, parents   | the one who took the table, before a word leads to it; then mmu_lock |
//! | free list, list of MMIO tables  | their own leaf locks (KVM: `tdp_mmu_pages_lock`)                   |

use crate::locks::{Before, FreeLeaf, Held, LeafLock};
use crate::pte_list::PteList;
use crate::role::Role;
use crate::spte::{BadSpte, Format, Spte, SpteKind};
use crate::stage2::{Resource, TableHandle, TableLevel, TableWords};
use crate::sync::Epoch;
use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use alloc::vec::Vec;
use umbra_mmu_abi::Gfn;

/// Entries of a table.
pub const ENTRIES: usize = 512;

/// A table of the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SptePlace {
    /// The table.
    pub table: TableId,
    /// The entry, 0..512.
    pub index: u16,
}

impl SptePlace {
    const INDEX_BITS: u32 = 9;

    /// The place as a number below 2^41.
    pub const fn pack(self) -> u64 {
        (self.table.0 as u64) << Self::INDEX_BITS | self.index as u64
    }

    /// The place of a number that [`SptePlace::pack`] made.
    pub const fn unpack(raw: u64) -> Self {
        Self {
            table: TableId((raw >> Self::INDEX_BITS) as u32),
            index: raw as u16 & ((1 << Self::INDEX_BITS) - 1),
        }
    }
}

/// A link of a list through the tables; also an optional handle.
struct Link(AtomicU32);

const NONE: u32 = u32::MAX;

impl Link {
    fn none() -> Self {
        Self(AtomicU32::new(NONE))
    }
    fn get(&self) -> Option<u32> {
        match self.0.load(Ordering::Relaxed) {
            NONE => None,
            some => Some(some),
        }
    }
    fn set(&self, to: Option<u32>) {
        self.0.store(to.unwrap_or(NONE), Ordering::Relaxed);
    }
    fn table(&self) -> Option<TableId> {
        self.get().map(TableId)
    }
    fn set_table(&self, to: Option<TableId>) {
        self.set(to.map(|id| id.0));
    }
}

/// What is known about a table besides its words (KVM: `kvm_mmu_page`).
pub struct Table {
    gfn: AtomicU64,
    role: AtomicU32,
    /// The level of the role, for whoever needs nothing else of it.
    level: AtomicU32,
    valid_gen: AtomicU64,
    parent_ptes: PteList,
    handle: Link,
    /// Words that are not empty; above bit 16 those that map a frame.
    counts: AtomicU32,
    mmio_cached: AtomicBool,
    cursor: AtomicU32,
    /// In the list of tables with MMIO sptes, or (`next`) in the free list, the retired ones, or the obsolete roots.
    prev: Link,
    next: Link,
    /// When it was retired.
    epoch: AtomicU64,
}

/// The `valid_gen` of a table that was cut off: that of no MMU.
const RETIRED: u64 = u64::MAX;

/// One leaf in [`Table::counts`].
const LEAF: u32 = 1 << 16;

impl Table {
    fn new() -> Self {
        Self {
            gfn: AtomicU64::new(0),
            role: AtomicU32::new(0),
            level: AtomicU32::new(TableLevel::Pt as u32),
            valid_gen: AtomicU64::new(0),
            parent_ptes: PteList::default(),
            handle: Link::none(),
            counts: AtomicU32::new(0),
            mmio_cached: AtomicBool::new(false),
            cursor: AtomicU32::new(0),
            prev: Link::none(),
            next: Link::none(),
            epoch: AtomicU64::new(0),
        }
    }

    /// The first frame that it translates.
    #[inline]
    pub fn gfn(&self) -> Gfn {
        Gfn::new(self.gfn.load(Ordering::Relaxed))
    }
    /// What it is for.
    #[inline]
    pub fn role(&self) -> Role {
        Role::from_bits(self.role.load(Ordering::Relaxed))
    }
    /// Whether it is for the entries of `level` from `gfn` on.
    #[inline]
    pub fn translates(&self, level: TableLevel, gfn: Gfn) -> bool {
        self.gfn() == gfn && self.level.load(Ordering::Relaxed) == level as u32
    }
    /// The level of its role.
    #[inline]
    pub fn level(&self) -> TableLevel {
        let number = self.level.load(Ordering::Relaxed) as u8;
        TableLevel::from_number(number).expect("a role has a level from 1 to 5")
    }
    #[inline]
    fn level_number(&self) -> u8 {
        self.level.load(Ordering::Relaxed) as u8
    }
    /// Gives it another role, as its `invalid` bit.
    pub fn set_role(&self, role: Role) {
        self.role.store(role.into_bits(), Ordering::Relaxed);
        self.level.store(role.level().into(), Ordering::Relaxed);
    }
    /// `mmu_valid_gen` when it was made; another number than the MMU's makes it obsolete.
    #[inline]
    pub fn valid_gen(&self) -> u64 {
        self.valid_gen.load(Ordering::Relaxed)
    }
    /// The sptes that point here. In a tree it is one, and a root has none.
    // REQ: SP-4
    #[inline]
    pub fn parent_ptes(&self) -> &PteList {
        &self.parent_ptes
    }
    /// Hardware's table for it. MMIO sptes alone need none. Changes under the `effects` lock. Who sees it sees what the
    /// table was made for, too.
    #[inline]
    pub fn handle(&self) -> Option<TableHandle> {
        match self.handle.0.load(Ordering::Acquire) {
            NONE => None,
            some => Some(TableHandle(some)),
        }
    }
    /// Changes [`Table::handle`].
    pub fn set_handle(&self, handle: Option<TableHandle>) {
        self.handle
            .0
            .store(handle.map_or(NONE, |handle| handle.0), Ordering::Release);
    }
    /// Entries that are not empty.
    pub fn used(&self) -> u16 {
        self.counts.load(Ordering::Relaxed) as u16
    }
    /// Entries that map something.
    pub fn leaves(&self) -> u16 {
        (self.counts.load(Ordering::Relaxed) >> 16) as u16
    }
    /// Holds MMIO sptes, or did since they were last zapped.
    // REQ: GEN-8
    #[inline]
    pub fn mmio_cached(&self) -> bool {
        self.mmio_cached.load(Ordering::Relaxed)
    }
    /// Where the background zap goes on.
    pub fn cursor(&self) -> u16 {
        self.cursor.load(Ordering::Relaxed) as u16
    }
    /// Moves [`Table::cursor`].
    pub fn set_cursor(&self, at: u16) {
        self.cursor.store(at.into(), Ordering::Relaxed);
    }

    #[inline]
    fn count(&self, format: Format, old: Spte, new: Spte) {
        let weight = |spte: Spte| match (spte.is_empty(), spte.is_frame(format)) {
            (true, _) => 0,
            (false, false) => 1,
            (false, true) => 1 + LEAF,
        };
        let change = weight(new).wrapping_sub(weight(old));
        if change != 0 {
            self.counts.fetch_add(change, Ordering::Relaxed);
        }
    }
}

/// A list through the tables themselves.
#[derive(Debug, Default)]
struct List {
    head: Option<TableId>,
    tail: Option<TableId>,
}

/// Tables that are in no tree (KVM: what `tdp_mmu_pages_lock` guards).
#[derive(Debug)]
struct Unused {
    free: Option<TableId>,
    /// Cut off, in the order of their epochs: a walker may still be in them.
    retired: List,
    counts: UnusedCounts,
}

/// How many tables are in no tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct UnusedCounts {
    /// In the pool.
    pub free: usize,
    /// Drawn by a fault that has not used them yet.
    pub drawn: usize,
    /// Cut off, and not to be had before all walkers of then have left.
    pub retired: usize,
}

impl UnusedCounts {
    /// All of them.
    pub const fn all(self) -> usize {
        self.free + self.drawn + self.retired
    }
}

/// Words on the heap.
pub struct HeapWords(Vec<[AtomicU64; ENTRIES]>);

impl HeapWords {
    /// `capacity` empty tables of 4 KiB.
    ///
    /// # Errors
    /// Not enough memory.
    pub fn new(capacity: usize) -> Result<Self, Resource> {
        let mut words = Vec::new();
        words.try_reserve_exact(capacity).map_err(|_| Resource::Tables)?;
        words.resize_with(capacity, || core::array::from_fn(|_| AtomicU64::new(0)));
        Ok(Self(words))
    }
}

impl TableWords for HeapWords {
    #[inline]
    fn words(&self, table: TableId) -> &[AtomicU64; ENTRIES] {
        &self.0[table.at()]
    }
    fn capacity(&self) -> usize {
        self.0.len()
    }
    #[inline]
    fn in_a_row(&self) -> Option<&[AtomicU64]> {
        Some(self.0.as_flattened())
    }
}

/// Takes W, and nothing else, from a leaf; the leaf that is left, if it had W. See [`Tables::take_write`].
// REQ: DT-3
#[inline(always)]
pub(crate) fn take_write(word: &AtomicU64) -> Option<Spte> {
    let old = Spte::from_raw(word.load(Ordering::Acquire));
    if !old.has_write() {
        return None;
    }
    word.fetch_and(!Spte::WRITE, Ordering::AcqRel);
    Some(old.without_write())
}

/// Takes back what [`take_write`] did: the hardware did not follow.
#[cold]
pub(crate) fn give_write(word: &AtomicU64) {
    word.fetch_or(Spte::WRITE, Ordering::AcqRel);
}

/// The pool.
pub struct Tables<W: TableWords = HeapWords> {
    tables: Vec<Table>,
    words: W,
    format: Format,
    unused: LeafLock<Unused>,
    /// As [`Unused`] has them, for whoever wants an idea without the lock.
    free_count: AtomicUsize,
    mmio: LeafLock<List>,
}

impl<W: TableWords> Tables<W> {
    /// A pool of all tables that `words` has; they are empty. Their words are those of `format`.
    ///
    /// # Errors
    /// Not enough memory.
    pub fn new(words: W, format: Format) -> Result<Self, Resource> {
        let capacity = words.capacity();
        let mut tables = Vec::new();
        tables.try_reserve_exact(capacity).map_err(|_| Resource::Tables)?;
        tables.resize_with(capacity, Table::new);
        for id in 1..capacity {
            tables[id - 1].next.set(Some(id as u32));
        }
        let counts = UnusedCounts {
            free: capacity,
            ..UnusedCounts::default()
        };
        let unused = Unused {
            free: (capacity > 0).then_some(TableId(0)),
            retired: List::default(),
            counts,
        };
        Ok(Self {
            tables,
            words,
            format,
            unused: LeafLock::new(unused),
            free_count: AtomicUsize::new(capacity),
            mmio: LeafLock::default(),
        })
    }

    /// Tables that [`Tables::draw`] can give.
    pub fn free_count(&self) -> usize {
        self.free_count.load(Ordering::Relaxed)
    }

    /// The tables that are in no tree.
    pub fn unused<P: Before<FreeLeaf>>(&self, held: &mut Held<P>) -> UnusedCounts {
        self.unused.lock(held).counts
    }

    /// Whose words the tables hold.
    #[inline]
    pub fn format(&self) -> Format {
        self.format
    }

    /// Tables in all.
    pub fn capacity(&self) -> usize {
        self.tables.len()
    }

    /// What is known about a table.
    #[inline]
    pub fn get(&self, id: TableId) -> &Table {
        &self.tables[id.at()]
    }

    /// The words of a table, for what reads many.
    #[inline]
    pub fn words(&self, id: TableId) -> &[AtomicU64; ENTRIES] {
        self.words.words(id)
    }

    /// A table out of the pool, with nothing in it and nothing known about it: for [`Tables::init`] or
    /// [`Tables::put_back`].
    // REQ: SP-11
    pub fn draw<P: Before<FreeLeaf>>(&self, held: &mut Held<P>) -> Option<TableId> {
        let mut unused = self.unused.lock(held);
        let id = unused.free?;
        unused.free = self.get(id).next.table();
        self.get(id).next.set(None);
        unused.counts.free -= 1;
        unused.counts.drawn += 1;
        self.free_count.store(unused.counts.free, Ordering::Relaxed);
        Some(id)
    }

    /// A drawn table that was not used.
    pub fn put_back<P: Before<FreeLeaf>>(&self, held: &mut Held<P>, id: TableId) {
        let mut unused = self.unused.lock(held);
        self.get(id).next.set_table(unused.free);
        unused.free = Some(id);
        unused.counts.drawn -= 1;
        unused.counts.free += 1;
        self.free_count.store(unused.counts.free, Ordering::Relaxed);
    }

    /// Makes a drawn table ready. No word leads to it yet.
    pub fn init<P: Before<FreeLeaf>>(&self, held: &mut Held<P>, id: TableId, gfn: Gfn, role: Role, valid_gen: u64) {
        let table = self.get(id);
        debug_assert!(table.used() == 0 && table.handle().is_none() && !table.mmio_cached());
        table.gfn.store(gfn.raw(), Ordering::Relaxed);
        table.valid_gen.store(valid_gen, Ordering::Relaxed);
        table.set_role(role);
        debug_assert!(table.parent_ptes.is_empty());
        table.set_cursor(0);
        self.unused.lock(held).counts.drawn -= 1;
    }

    /// Takes [`Tables::init`] back: the table is drawn, and nothing leads to it.
    pub fn withdraw<P: Before<FreeLeaf>>(&self, held: &mut Held<P>, id: TableId) {
        debug_assert!(self.get(id).used() == 0 && self.get(id).parent_ptes.is_empty());
        self.unused.lock(held).counts.drawn += 1;
    }

    /// [`Tables::draw`] and [`Tables::init`].
    pub fn take<P: Before<FreeLeaf>>(
        &self,
        held: &mut Held<P>,
        gfn: Gfn,
        role: Role,
        valid_gen: u64,
    ) -> Option<TableId> {
        let id = self.draw(held)?;
        self.init(held, id, gfn, role, valid_gen);
        Some(id)
    }

    /// Gives an empty table back that no word leads to any more since `epoch`; it is handed out again when every walker
    /// that was on its way then has left.
    pub fn retire<P: Before<FreeLeaf>>(&self, held: &mut Held<P>, id: TableId, epoch: Epoch) {
        self.unmark_mmio(held, id);
        let table = self.get(id);
        assert_eq!(
            (table.used(), table.handle()),
            (0, None),
            "a table goes back empty and without a hardware table"
        );
        table.epoch.store(epoch.raw(), Ordering::Relaxed);
        table.valid_gen.store(RETIRED, Ordering::Relaxed);
        table.next.set(None);
        let mut unused = self.unused.lock(held);
        match unused.retired.tail.replace(id) {
            Some(tail) => self.get(tail).next.set_table(Some(id)),
            None => unused.retired.head = Some(id),
        }
        unused.counts.retired += 1;
    }

    /// Frees what was retired before `safe`; how many tables.
    pub fn reclaim<P: Before<FreeLeaf>>(&self, held: &mut Held<P>, safe: Epoch) -> usize {
        let mut reclaimed = 0;
        let mut unused = self.unused.lock(held);
        while let Some(id) = unused.retired.head {
            let table = self.get(id);
            if table.epoch.load(Ordering::Relaxed) >= safe.raw() {
                break;
            }
            unused.retired.head = table.next.table();
            if unused.retired.head.is_none() {
                unused.retired.tail = None;
            }
            table.next.set_table(unused.free);
            unused.free = Some(id);
            reclaimed += 1;
        }
        unused.counts.free += reclaimed;
        unused.counts.retired -= reclaimed;
        self.free_count.store(unused.counts.free, Ordering::Relaxed);
        reclaimed
    }

    #[inline]
    fn word(&self, place: SptePlace) -> &AtomicU64 {
        &self.words.words(place.table)[place.index as usize]
    }

    /// The word at a place. What it leads to is initialised.
    #[inline]
    pub fn read(&self, place: SptePlace) -> Spte {
        Spte::from_raw(self.word(place).load(Ordering::Acquire))
    }

    /// What the word at a place says.
    ///
    /// # Errors
    /// It is no spte of that level.
    pub fn decode(&self, place: SptePlace) -> Result<SpteKind, BadSpte> {
        self.read(place)
            .decode(self.format, self.get(place.table).level_number())
    }

    /// What the word at a place says; every word in a table was written by this type.
    #[inline]
    pub fn kind(&self, place: SptePlace) -> SpteKind {
        let spte = self.read(place);
        match spte.peek(self.format, self.get(place.table).level_number()) {
            Ok(kind) => kind,
            Err(bad) => panic!("{place:?} holds {:#x}, which is no spte", bad.0),
        }
    }

    /// Replaces a word by one exchange and keeps the counts; the old word, with whatever others set in it, is the
    /// answer.
    // REQ: DT-3
    #[inline]
    pub fn set(&self, place: SptePlace, new: Spte) -> Spte {
        let old = Spte::from_raw(self.word(place).swap(new.raw(), Ordering::AcqRel));
        self.get(place.table).count(self.format, old, new);
        old
    }

    /// Replaces a word if it is still `old`, and keeps the counts.
    ///
    /// # Errors
    /// What is there instead.
    // REQ: DT-3
    #[inline]
    pub fn compare_exchange(&self, place: SptePlace, old: Spte, new: Spte) -> Result<(), Spte> {
        self.word(place)
            .compare_exchange(old.raw(), new.raw(), Ordering::AcqRel, Ordering::Acquire)
            .map(|_| self.get(place.table).count(self.format, old, new))
            .map_err(Spte::from_raw)
    }

    /// Replaces a leaf by another leaf, if it still is `old`: a word of the same kind, so that no count changes.
    // REQ: DT-3
    #[inline(always)]
    pub fn exchange_leaf(&self, place: SptePlace, old: Spte, new: Spte) -> bool {
        self.word(place)
            .compare_exchange(old.raw(), new.raw(), Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    /// Puts a leaf at an empty place of `table`; `false`: it is empty no more.
    #[inline(always)]
    pub fn fill(&self, place: SptePlace, table: &Table, leaf: Spte) -> bool {
        let filled = self
            .word(place)
            .compare_exchange(0, leaf.raw(), Ordering::AcqRel, Ordering::Relaxed)
            .is_ok();
        if filled {
            table.counts.fetch_add(1 + LEAF, Ordering::Relaxed);
        }
        filled
    }

    /// Clears bits of a leaf that do not change what kind of word it is; the old word is the answer. Where none of them
    /// is set, nothing is written.
    // REQ: DT-3
    #[inline(always)]
    pub fn clear(&self, place: SptePlace, bits: u64) -> Spte {
        let word = self.word(place);
        let old = word.load(Ordering::Acquire);
        match old & bits {
            0 => Spte::from_raw(old),
            _ => Spte::from_raw(word.fetch_and(!bits, Ordering::AcqRel)),
        }
    }

    /// All words, for [`take_write`].
    #[inline]
    pub(crate) fn in_a_row(&self) -> Option<&[AtomicU64]> {
        self.words.in_a_row()
    }

    /// Takes W, and what of `bits` stands for who may set it again, from a leaf; the leaf that is left, if it had W. Who
    /// sets W again meanwhile, without mmu_lock, does so after this, and tells the hardware after this.
    // REQ: DT-3
    #[inline(always)]
    pub fn take_write(&self, place: SptePlace, bits: u64) -> Option<Spte> {
        let word = self.word(place);
        let old = word.load(Ordering::Acquire);
        if old & bits == 0 {
            return None;
        }
        word.fetch_and(!bits, Ordering::AcqRel);
        Spte::from_raw(old).has_write().then_some(Spte::from_raw(old & !bits))
    }

    /// The gfn that an spte of a direct table translates.
    // REQ: RM-2
    #[inline]
    pub fn gfn_of(&self, place: SptePlace) -> Gfn {
        let table = self.get(place.table);
        Gfn::new(table.gfn().raw() + ((place.index as u64) << table.level().entry_shift()))
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
    pub fn mark_mmio<P: Before<FreeLeaf>>(&self, held: &mut Held<P>, id: TableId) {
        let table = self.get(id);
        if table.mmio_cached() {
            return;
        }
        let mut list = self.mmio.lock(held);
        if table.mmio_cached.swap(true, Ordering::Relaxed) {
            return;
        }
        let tail = list.tail.replace(id);
        match tail {
            Some(tail) => self.get(tail).next.set_table(Some(id)),
            None => list.head = Some(id),
        }
        table.prev.set_table(tail);
        table.next.set(None);
    }

    /// Takes a table off that list.
    pub fn unmark_mmio<P: Before<FreeLeaf>>(&self, held: &mut Held<P>, id: TableId) {
        let table = self.get(id);
        if !table.mmio_cached() {
            return;
        }
        let mut list = self.mmio.lock(held);
        if !table.mmio_cached.swap(false, Ordering::Relaxed) {
            return;
        }
        let (prev, next) = (table.prev.table(), table.next.table());
        table.prev.set(None);
        table.next.set(None);
        match prev {
            Some(prev) => self.get(prev).next.set_table(next),
            None => list.head = next,
        }
        match next {
            Some(next) => self.get(next).prev.set_table(prev),
            None => list.tail = prev,
        }
    }

    /// The table that has been on that list for longest.
    pub fn oldest_mmio<P: Before<FreeLeaf>>(&self, held: &mut Held<P>) -> Option<TableId> {
        self.mmio.lock(held).head
    }

    /// Moves the oldest of that list to its end.
    pub fn requeue_mmio<P: Before<FreeLeaf>>(&self, held: &mut Held<P>, id: TableId) {
        self.unmark_mmio(held, id);
        self.mark_mmio(held, id);
    }

    /// Chains an obsolete root before another.
    pub fn chain(&self, id: TableId, next: Option<TableId>) {
        self.get(id).next.set_table(next);
    }

    /// The root chained after this one.
    pub fn chained(&self, id: TableId) -> Option<TableId> {
        self.get(id).next.table()
    }
}
