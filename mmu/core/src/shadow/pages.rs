// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which shadow pages are there? Found by (gfn, role), by how lately they were used, and by the slot of their guest table.
//!
//! A shadow page is a table of the pool, and what is here is what only shadow paging knows about it (the rest of KVM's
//! `kvm_mmu_page` is in [`crate::table`]). All of it is guarded by mmu_lock, held for writing.

use super::gpte::GpteFormats;
use super::registers::GuestCpu;
use crate::role::Role;
use crate::slots::MAX_SLOTS;
use crate::stage2::Resource;
use crate::table::{ENTRIES, TableId};
use alloc::vec::Vec;
use umbra_mmu_abi::{Gfn, SlotId};

/// No page.
const NONE: u32 = u32::MAX;

/// Faults that are as good as simultaneous to the order of use.
const NEARLY: u32 = 16;

/// Lists that a page may be in, all doubly linked.
#[derive(Clone, Copy)]
enum Through {
    /// From the most to the least recently used (KVM: `active_mmu_pages`).
    Use = 0,
    /// Of those whose guest table lies in one slot.
    Slot = 1,
}

#[derive(Clone, Copy)]
struct Links {
    prev: u32,
    next: u32,
}

const UNLINKED: Links = Links { prev: NONE, next: NONE };

/// What is known about one shadow page beside its table.
#[derive(Clone)]
pub(crate) struct Page {
    links: [Links; 2],
    hash_next: u32,
    /// Its array of gfns; a direct page has none.
    gfns: u32,
    slot: Option<SlotId>,
    /// Root registers, of whatever vCPU, that point here: it cannot be freed.
    // REQ: SP-5
    pub root_count: u32,
    /// Its sptes may be older than the guest's table. Level 1 only.
    // REQ: SP-6
    pub unsync: bool,
    /// Emulated writes to the guest's table since it was last used.
    // REQ: SP-9
    pub write_flooding_count: u8,
    /// [`Pages::clock`] when it came to the front of the list of use.
    touched: u32,
    /// Bits in the bitmap.
    // REQ: SP-6
    pub unsync_children: u16,
    /// Sptes through which an unsync page may be reached.
    pub unsync_child_bitmap: [u64; ENTRIES / 64],
}

impl Page {
    const NEW: Self = Self {
        links: [UNLINKED; 2],
        hash_next: NONE,
        gfns: NONE,
        slot: None,
        root_count: 0,
        unsync: false,
        write_flooding_count: 0,
        touched: 0,
        unsync_children: 0,
        unsync_child_bitmap: [0; ENTRIES / 64],
    };

    /// Notes that an unsync page may be reached through `index`; `true`: the first one.
    pub fn mark_child(&mut self, index: u16) -> bool {
        let (word, bit) = (&mut self.unsync_child_bitmap[index as usize / 64], 1 << (index % 64));
        if *word & bit != 0 {
            return false;
        }
        *word |= bit;
        self.unsync_children += 1;
        self.unsync_children == 1
    }

    /// No unsync page is reached through `index` any more.
    pub fn clear_child(&mut self, index: u16) {
        let (word, bit) = (&mut self.unsync_child_bitmap[index as usize / 64], 1 << (index % 64));
        if *word & bit != 0 {
            *word &= !bit;
            self.unsync_children -= 1;
        }
    }

    /// The first marked entry from `from` on.
    pub fn next_child(&self, from: u16) -> Option<u16> {
        let mut at = from as usize;
        while at < ENTRIES {
            let word = self.unsync_child_bitmap[at / 64] >> (at % 64);
            if word != 0 {
                return Some((at + word.trailing_zeros() as usize) as u16);
            }
            at = (at / 64 + 1) * 64;
        }
        None
    }
}

#[derive(Clone, Copy)]
struct List {
    head: u32,
    tail: u32,
}

const EMPTY: List = List { head: NONE, tail: NONE };

/// All shadow pages of one VM.
pub(crate) struct Pages {
    pages: Vec<Page>,
    /// Chains by hash of the gfn: the roles of one gfn are found together.
    buckets: Vec<u32>,
    used: List,
    slots: Vec<List>,
    gfns: GfnArrays,
    count: usize,
    /// Counts faults.
    clock: u32,
    /// KVM: `n_max_mmu_pages`.
    // REQ: SP-11
    pub limit: usize,
    /// What the guest's entries mean.
    pub formats: GpteFormats,
}

impl Pages {
    /// Room for `tables` shadow pages.
    ///
    /// # Errors
    /// Not enough memory.
    pub fn new(tables: usize, cpu: &GuestCpu) -> Result<Self, Resource> {
        let buckets = tables.next_power_of_two();
        Ok(Self {
            pages: filled(tables, Page::NEW)?,
            buckets: filled(buckets, NONE)?,
            used: EMPTY,
            slots: filled(MAX_SLOTS, EMPTY)?,
            gfns: GfnArrays::new(tables)?,
            count: 0,
            clock: 0,
            limit: tables,
            formats: GpteFormats::new(cpu),
        })
    }

    pub fn get(&self, id: TableId) -> &Page {
        &self.pages[id.raw() as usize]
    }

    pub fn get_mut(&mut self, id: TableId) -> &mut Page {
        &mut self.pages[id.raw() as usize]
    }

    /// How many there are, those that are zapped and still a root among them.
    pub fn count(&self) -> usize {
        self.count
    }

    fn bucket(&self, gfn: Gfn) -> usize {
        let hash = gfn.raw().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        hash as usize & (self.buckets.len() - 1)
    }

    /// The pages whose gfn has the same hash; the caller looks at the gfns.
    // REQ: SP-1
    #[inline]
    pub fn same_hash(&self, gfn: Gfn) -> impl Iterator<Item = TableId> + '_ {
        let mut at = self.buckets[self.bucket(gfn)];
        core::iter::from_fn(move || {
            let id = (at != NONE).then_some(at)?;
            at = self.pages[id as usize].hash_next;
            Some(TableId::from_raw(id))
        })
    }

    /// A table becomes a shadow page, the most recently used one. `slot` has its guest table; a direct page has none.
    pub fn insert(&mut self, id: TableId, gfn: Gfn, role: Role, slot: Option<SlotId>) {
        let bucket = self.bucket(gfn);
        let gfns = match role.direct() {
            true => NONE,
            // There are as many arrays as tables.
            false => self.gfns.take(),
        };
        *self.get_mut(id) = Page {
            hash_next: core::mem::replace(&mut self.buckets[bucket], id.raw()),
            gfns,
            slot,
            touched: self.clock,
            ..Page::NEW
        };
        self.push_front(Through::Use, id.raw());
        if slot.is_some() {
            self.push_front(Through::Slot, id.raw());
        }
        self.count += 1;
    }

    /// It is never found again, and not in its slot's list.
    pub fn hide(&mut self, id: TableId, gfn: Gfn) {
        let bucket = self.bucket(gfn);
        let next = self.get(id).hash_next;
        let mut at = self.buckets[bucket];
        if at == id.raw() {
            self.buckets[bucket] = next;
        } else {
            while self.pages[at as usize].hash_next != id.raw() {
                at = self.pages[at as usize].hash_next;
            }
            self.pages[at as usize].hash_next = next;
        }
        if self.get(id).slot.is_some() {
            self.unlink(Through::Slot, id.raw());
            self.get_mut(id).slot = None;
        }
    }

    /// A hidden page is an unused table again.
    pub fn remove(&mut self, id: TableId) {
        self.unlink(Through::Use, id.raw());
        let page = self.get_mut(id);
        let gfns = core::mem::replace(&mut page.gfns, NONE);
        *page = Page::NEW;
        if gfns != NONE {
            self.gfns.give_back(gfns);
        }
        self.count -= 1;
    }

    /// Chains a page that was zapped before another; nothing finds it any more.
    pub fn chain_dead(&mut self, id: TableId, next: Option<TableId>) {
        self.get_mut(id).hash_next = next.map_or(NONE, TableId::raw);
    }

    /// The page chained after this one.
    pub fn dead_after(&self, id: TableId) -> Option<TableId> {
        self.id(self.get(id).hash_next)
    }

    /// One more fault.
    pub fn tick(&mut self) {
        self.clock = self.clock.wrapping_add(1);
    }

    /// It was used just now: to the front, if it did not come there within the last [`NEARLY`] faults.
    // REQ: SP-11
    #[inline]
    pub fn touch(&mut self, id: TableId) {
        let clock = self.clock;
        let page = self.get_mut(id);
        page.write_flooding_count = 0;
        if clock.wrapping_sub(page.touched) >= NEARLY {
            self.move_to_front(id);
        }
    }

    #[inline(never)]
    fn move_to_front(&mut self, id: TableId) {
        self.get_mut(id).touched = self.clock;
        self.unlink(Through::Use, id.raw());
        self.push_front(Through::Use, id.raw());
    }

    /// The page that was not used for longest.
    // REQ: SP-11
    pub fn oldest(&self) -> Option<TableId> {
        self.id(self.used.tail)
    }

    /// The one that was used next after that.
    pub fn used_after(&self, id: TableId) -> Option<TableId> {
        self.id(self.get(id).links[Through::Use as usize].prev)
    }

    /// A page whose guest table lies in a slot.
    pub fn any_in_slot(&self, slot: SlotId) -> Option<TableId> {
        self.id(self.slots[slot.0 as usize].head)
    }

    /// All pages, the least recently used first.
    pub fn iter(&self) -> impl Iterator<Item = TableId> + '_ {
        core::iter::successors(self.oldest(), |id| self.used_after(*id))
    }

    /// The gfns of an indirect page's sptes; `None` for a direct one.
    // REQ: SP-3, RM-2
    #[inline]
    pub fn gfns(&self, id: TableId) -> Option<&[u64; ENTRIES]> {
        self.gfns.arrays.get(self.get(id).gfns as usize)
    }

    /// Remembers the gfn of an spte; a direct page's is known.
    #[inline]
    pub fn set_gfn(&mut self, id: TableId, index: u16, gfn: Gfn) {
        let array = self.get(id).gfns;
        if let Some(gfns) = self.gfns.arrays.get_mut(array as usize) {
            gfns[index as usize] = gfn.raw();
        }
    }

    /// Arrays of gfns that are in use.
    pub fn gfn_arrays(&self) -> usize {
        self.gfns.arrays.len() - self.gfns.free.len()
    }

    fn id(&self, raw: u32) -> Option<TableId> {
        (raw != NONE).then(|| TableId::from_raw(raw))
    }

    fn list(&mut self, through: Through, at: u32) -> &mut List {
        match through {
            Through::Use => &mut self.used,
            Through::Slot => {
                let slot = self.pages[at as usize]
                    .slot
                    .expect("only pages of a slot are in such a list");
                &mut self.slots[slot.0 as usize]
            }
        }
    }

    fn links(&mut self, through: Through, at: u32) -> &mut Links {
        &mut self.pages[at as usize].links[through as usize]
    }

    fn push_front(&mut self, through: Through, at: u32) {
        let list = self.list(through, at);
        let next = core::mem::replace(&mut list.head, at);
        if next == NONE {
            list.tail = at;
        } else {
            self.links(through, next).prev = at;
        }
        *self.links(through, at) = Links { prev: NONE, next };
    }

    fn unlink(&mut self, through: Through, at: u32) {
        let Links { prev, next } = core::mem::replace(self.links(through, at), UNLINKED);
        match prev {
            NONE => self.list(through, at).head = next,
            _ => self.links(through, prev).next = next,
        }
        match next {
            NONE => self.list(through, at).tail = prev,
            _ => self.links(through, next).prev = prev,
        }
    }
}

/// Arrays of 512 gfns, one for each indirect page, made at start.
// REQ: SP-3, SP-11
struct GfnArrays {
    arrays: Vec<[u64; ENTRIES]>,
    free: Vec<u32>,
}

impl GfnArrays {
    fn new(count: usize) -> Result<Self, Resource> {
        let mut free = filled(count, 0)?;
        for (i, slot) in free.iter_mut().enumerate() {
            *slot = i as u32;
        }
        Ok(Self {
            arrays: filled(count, [0; ENTRIES])?,
            free,
        })
    }

    fn take(&mut self) -> u32 {
        self.free.pop().expect("there is an array for every table")
    }

    fn give_back(&mut self, array: u32) {
        self.free.push(array);
    }
}

fn filled<T: Clone>(len: usize, value: T) -> Result<Vec<T>, Resource> {
    let mut all = Vec::new();
    all.try_reserve_exact(len).map_err(|_| Resource::Memory)?;
    all.resize(len, value);
    Ok(all)
}
