// SPDX-License-Identifier: MIT OR Apache-2.0
//! The MMU itself: memslots, sptes, reverse maps, generations. Knows no seL4; its hardware is a trait.
//!
//! | question                                  | file           |
//! |-------------------------------------------|----------------|
//! | which memory does the guest have?         | [`slots`]      |
//! | what does an spte say?                    | [`spte`]       |
//! | what is a table for?                      | [`role`]       |
//! | where are the sptes?                      | [`table`]      |
//! | what is known about a slot's pages?       | [`slot_data`]  |
//! | where may a large spte be?                | [`large`]      |
//! | which frames are there just now?          | [`host`]       |
//! | is what a fault saw still true?           | [`invalidate`] |
//! | which pages were written?                 | [`dirty`]      |
//! | which sptes map a frame?                  | [`rmap`]       |
//! | which sptes point here?                   | [`pte_list`]   |
//! | what happens on a fault?                  | [`fault`]      |
//! | what if hardware cannot walk the guest's?  | [`shadow`]     |
//! | is cached MMIO knowledge still true?      | [`mmio`]       |
//! | which state of the slots does it mean?    | [`generation`] |
//! | what belongs to one virtual processor?    | [`vcpu`]       |
//! | how do slots change?                      | [`change`]     |
//! | how do mappings go away?                  | [`zap`]        |
//! | who may hold which lock, in what order?   | [`locks`]      |
//! | what do threads share?                    | [`sync`]       |
//! | is everything as it should be?            | [`audit`]      |
//! | what does the hardware have to do?        | [`stage2`]     |
//! | what if the hardware is strict?           | [`sim`]        |
//! | what if there is none?                    | [`null`]       |
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod audit;
pub mod change;
pub mod dirty;
pub mod fault;
pub mod generation;
pub mod host;
pub mod invalidate;
pub mod large;
pub mod locks;
pub mod mmio;
pub mod null;
pub mod pte_list;
pub mod rmap;
pub mod role;
pub mod shadow;
pub mod sim;
pub mod slot_data;
pub mod slots;
pub mod spte;
pub mod stage2;
pub mod sync;
pub mod table;
#[cfg(test)]
mod tests;
pub mod trace;
pub mod vcpu;
pub mod zap;

use alloc::vec::Vec;
use rmap::{Rmap, RmapEntries};
use slots::{MAX_SLOTS, SlotTable, Slots};
use stage2::{BackingShape, Resource, Stage2, Stage2Error, TableLevel};
use table::{HeapWords, Role, TableId, Tables};
use trace::Trace;
use umbra_mmu_abi::{Generation, Gfn, PageLevel, Stat};

/// What an [`Mmu`] is made for.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Tables of sptes, 4 KiB each, the roots included.
    pub tables: usize,
    /// Entries for frames that more than one spte maps; direct tables need a few only.
    pub rmap_entries: u32,
    /// First value of the memslot generation.
    pub first_generation: Generation,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            tables: 256,
            rmap_entries: 64,
            first_generation: generation::GENERATION_FIRST,
        }
    }
}

/// The MMU of one VM.
pub struct Mmu<S: Stage2> {
    stage2: S,
    backings: Vec<BackingShape>,
    slots: Slots,
    rmaps: Vec<Option<Rmap>>,
    rmap_entries: RmapEntries,
    tables: Tables<S::Words>,
    root: TableId,
    /// KVM: `mmu_valid_gen`.
    valid_gen: u64,
    /// Roots of earlier generations, chained; the background zap works on the first.
    obsolete: Option<TableId>,
    /// Counts everything that can make a plan wrong (KVM: `mmu_invalidate_seq`).
    // REQ: PF-3
    invalidate_seq: u64,
    spurious: fault::Spurious,
    stats: Stats,
    trace: Trace,
}

#[derive(Default)]
struct Stats {
    resumed: u64,
    emulated: u64,
    mapped_4k: u64,
    mapped_2m: u64,
    mapped_1g: u64,
    generation_wraps: u64,
    zap_alls: u64,
}

impl Stats {
    fn mapped(&mut self, level: PageLevel) -> &mut u64 {
        match level {
            PageLevel::K4 => &mut self.mapped_4k,
            PageLevel::M2 => &mut self.mapped_2m,
            PageLevel::G1 => &mut self.mapped_1g,
        }
    }
}

impl<S: Stage2> Mmu<S> {
    /// An MMU in EPT mode without slots above `stage2`, whose root table is empty.
    ///
    /// # Errors
    /// The limits do not fit into memory.
    pub fn new(stage2: S, backings: Vec<BackingShape>, limits: &Limits) -> Result<Self, Stage2Error>
    where
        S: Stage2<Words = HeapWords>,
    {
        let make = || -> Result<_, Resource> {
            let mut rmaps = Vec::new();
            rmaps.try_reserve_exact(MAX_SLOTS).map_err(|_| Resource::Memory)?;
            rmaps.resize_with(MAX_SLOTS, || None);
            let tables = Tables::new(HeapWords::new(limits.tables.max(2))?)?;
            Ok((
                rmaps,
                tables,
                RmapEntries::new(limits.rmap_entries)?,
                Slots::new(limits.first_generation)?,
            ))
        };
        let (rmaps, tables, rmap_entries, slots) = make().map_err(Stage2Error::Exhausted)?;
        let level = TableLevel::Pml4;
        let root = tables
            .take(Gfn::new(0), Role { level }, 0)
            .expect("the pool has two tables at least");
        Ok(Self {
            stage2,
            backings,
            slots,
            rmaps,
            rmap_entries,
            tables,
            root,
            valid_gen: 0,
            obsolete: None,
            invalidate_seq: 0,
            spurious: fault::Spurious::default(),
            stats: Stats::default(),
            trace: Trace::default(),
        })
    }

    /// The hardware below.
    pub fn stage2(&self) -> &S {
        &self.stage2
    }

    /// The hardware below, for what the MMU does not do itself.
    pub fn stage2_mut(&mut self) -> &mut S {
        &mut self.stage2
    }

    /// The published memslots.
    pub fn slots(&self) -> &SlotTable {
        self.slots.published()
    }

    /// The memslot generation that cached knowledge must carry.
    pub fn generation(&self) -> Generation {
        self.slots.generation().current()
    }

    /// The event trace.
    pub fn trace(&mut self) -> &mut Trace {
        &mut self.trace
    }

    /// A counter.
    pub fn stat(&self, stat: Stat) -> u64 {
        match stat {
            Stat::Resumed => self.stats.resumed,
            Stat::Emulated => self.stats.emulated,
            Stat::Mapped4K => self.stats.mapped_4k,
            Stat::Mapped2M => self.stats.mapped_2m,
            Stat::GenerationWraps => self.stats.generation_wraps,
            Stat::ZapAlls => self.stats.zap_alls,
        }
    }

    /// Whether a table belongs to an earlier `mmu_valid_gen`.
    fn is_obsolete(&self, table: TableId) -> bool {
        self.tables.get(table).valid_gen() != self.valid_gen
    }
}
