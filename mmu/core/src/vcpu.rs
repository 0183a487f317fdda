// SPDX-License-Identifier: MIT OR Apache-2.0
//! What does the MMU keep for one virtual processor? What only its own faults use, so that no lock is needed.

use crate::fault::Near;
use crate::generation::Stamp;
use crate::pte_list::PteReserve;
use crate::shadow::roots::VcpuPaging;
use crate::slots::NearSlot;
use crate::sync::{MAX_WALKERS, Walker};
use crate::table::TableId;
use umbra_mmu_abi::Gfn;

/// Virtual processors of one VM.
pub const MAX_VCPUS: usize = MAX_WALKERS;

/// The number of a virtual processor, below [`MAX_VCPUS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct VcpuId(u8);

impl VcpuId {
    /// Number `id`.
    ///
    /// # Panics
    /// It is not below [`MAX_VCPUS`].
    pub const fn new(id: u8) -> Self {
        assert!((id as usize) < MAX_VCPUS);
        Self(id)
    }
    /// As an index, below [`MAX_VCPUS`].
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A virtual processor as its owner holds it. Whoever has it is the only one who faults for it.
#[derive(Debug)]
pub struct Vcpu {
    pub(crate) id: VcpuId,
    /// The right to walk tables without a lock.
    pub(crate) walker: Walker,
    pub(crate) cache: TableCache,
    pub(crate) reserve: PteReserve,
    pub(crate) mmio: MmioCache,
    pub(crate) spurious: Spurious,
    /// Where its last fault was: the next one is mostly a neighbour.
    pub(crate) near: Near,
    pub(crate) near_slot: NearSlot,
    /// In shadow mode: its registers and roots.
    pub(crate) paging: Option<VcpuPaging>,
}

impl Vcpu {
    /// With nothing in its caches.
    pub(crate) fn new(id: VcpuId, walker: Walker, paging: Option<VcpuPaging>) -> Self {
        Self {
            id,
            walker,
            cache: TableCache::new(),
            reserve: PteReserve::default(),
            mmio: MmioCache::EMPTY,
            spurious: Spurious::NONE,
            near: Near::NOWHERE,
            near_slot: NearSlot::default(),
            paging,
        }
    }

    /// Its number.
    pub const fn id(&self) -> VcpuId {
        self.id
    }
}

/// Tables that were drawn before mmu_lock was taken, so that nothing can run out under it.
// REQ: SP-11
#[derive(Debug)]
pub(crate) struct TableCache {
    tables: [Option<TableId>; Self::CAPACITY],
    len: usize,
}

impl TableCache {
    /// Tables below a root that one fault can need, for a guest with five levels.
    pub(crate) const CAPACITY: usize = 5;

    const fn new() -> Self {
        Self {
            tables: [None; Self::CAPACITY],
            len: 0,
        }
    }

    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn push(&mut self, table: TableId) {
        self.tables[self.len] = Some(table);
        self.len += 1;
    }

    pub(crate) fn pop(&mut self) -> Option<TableId> {
        self.len = self.len.checked_sub(1)?;
        self.tables[self.len].take()
    }
}

/// The last access that had no memory behind it.
// REQ: GEN-7
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MmioCache {
    /// The page of the address that faulted: guest-virtual in shadow mode, else guest-physical. No page at first.
    page: u64,
    /// Its frame.
    gfn: Gfn,
    /// What was tried, as bits of the error code.
    access: u32,
    stamp: Stamp,
}

impl MmioCache {
    const EMPTY: Self = Self {
        page: u64::MAX,
        gfn: Gfn::new(0),
        access: 0,
        stamp: Stamp::NEVER,
    };

    /// Remembers that `page` is `gfn`, and has no memory, as of `stamp`.
    pub(crate) fn fill(&mut self, page: u64, gfn: Gfn, access: u32, stamp: Stamp) {
        *self = Self {
            page,
            gfn,
            access,
            stamp,
        };
    }

    /// The frame, if this very access was made last and no slot has changed since.
    #[inline]
    pub(crate) fn get(&self, page: u64, access: u32, stamp: Stamp) -> Option<Gfn> {
        let same = self.page == page && self.access == access && self.stamp == stamp;
        same.then_some(self.gfn)
    }

    /// Forgets everything: cr3 was loaded.
    pub(crate) fn drop_all(&mut self) {
        *self = Self::EMPTY;
    }

    /// Forgets `page`: invlpg.
    pub(crate) fn drop_page(&mut self, page: u64) {
        if self.page == page {
            self.drop_all();
        }
    }
}

/// Faults in a row at one address that is mapped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spurious {
    at: u64,
    times: u32,
}

impl Spurious {
    const NONE: Self = Self { at: 0, times: 0 };

    /// Counts one more at `at`; how many there were.
    pub(crate) fn count(&mut self, at: u64) -> u32 {
        self.times = if self.at == at { self.times + 1 } else { 1 };
        self.at = at;
        self.times
    }
}
