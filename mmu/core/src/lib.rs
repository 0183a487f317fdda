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
pub mod logging;
pub mod mmio;
pub mod notify;
pub mod null;
pub mod pte_list;
pub mod resize;
mod rmap;
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
use core::array;
use generation::SlotGeneration;
use host::{BackingInfo, HostLayout, HostMemory};
use invalidate::Invalidations;
use locks::{Held, LeafLock, MmuLock, SlotsArchLock, SlotsLock, Srcu};
use pte_list::{ENTRIES_PER_ADD, PteEntries};
use role::Role;
use shadow::gpte::GpteFormats;
use shadow::registers::GuestCpu;
use shadow::roots::VcpuPaging;
use slots::SlotTable;
use spte::{Format, ShadowLayout};
use stage2::{BackingShape, NoRam, Resource, Stage2, Stage2Error, TableLevel};
use sync::Epochs;
use sync::atomic::{AtomicU32, AtomicU64, Ordering};
use table::{HeapWords, TableId, Tables};
use trace::Trace;
use umbra_mmu_abi::{Generation, Gfn, PageLevel, Stat};
use vcpu::{MAX_VCPUS, Vcpu, VcpuId};

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

/// How the guest's accesses are translated, for all of a VM's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// By an EPT, which sptes mirror: from guest-physical addresses.
    Ept,
    /// By shadow pages that hardware walks, in a container of this layout: from guest-virtual addresses.
    Shadow(ShadowLayout),
}

/// The MMU of one VM. Any number of threads may use it at once; see [`locks`] for who waits for whom.
pub struct Mmu<S: Stage2> {
    mode: Mode,
    /// Which frames are behind the backings' pages.
    host: HostMemory,
    /// Who holds it changes the slots.
    slots_lock: SlotsLock<()>,
    slots_arch_lock: SlotsArchLock<()>,
    slots: Srcu<SlotTable>,
    generation: SlotGeneration,
    /// mmu_lock. Faults in EPT mode enter as readers, everything that takes sptes away as the writer.
    lock: MmuLock<Tree>,
    tables: Tables<S::Words>,
    /// In EPT mode the root of the current tree, and its `mmu_valid_gen`: changed under mmu_lock, read by walkers without it.
    root: AtomicU32,
    valid_gen: AtomicU64,
    walkers: Epochs,
    pte_entries: PteEntries,
    /// What can make a plan wrong between its making and mmu_lock.
    // REQ: PF-3
    invalidate: Invalidations,
    /// The hardware. A leaf lock: whether a leaf is mapped changes under it together with its spte.
    effects: LeafLock<S>,
    /// The guest's memory, which shadow mode reads tables in. EPT mode never looks at it.
    ram: S::Ram,
    /// In shadow mode: counts sptes that pointed at a table and do not any more. Changed under mmu_lock.
    structure: AtomicU64,
    /// The guest's processor, which shadow mode stands in for.
    guest_cpu: GuestCpu,
    /// What the vCPUs have to do before they enter the guest again (KVM: `vcpu->requests`).
    requests: [AtomicU32; MAX_VCPUS],
    stats: Stats,
    trace: Trace,
}

/// What mmu_lock guards beside the tables.
#[derive(Default)]
struct Tree {
    /// Roots of earlier generations, chained; the background zap works on the first.
    obsolete: Option<TableId>,
    /// Where the search for a table to be had goes on (KVM reclaims the pages it used least lately; which of an EPT are
    /// in use, only the processor knows).
    clock: u32,
    /// In shadow mode: all shadow pages.
    shadow: Option<shadow::pages::Pages>,
}

#[derive(Default)]
struct Stats {
    resumed: AtomicU64,
    emulated: AtomicU64,
    mapped: [AtomicU64; PageLevel::ALL.len()],
    generation_wraps: AtomicU64,
    zap_alls: AtomicU64,
}

impl Stats {
    fn mapped(&self, level: PageLevel) -> &AtomicU64 {
        &self.mapped[level as usize - 1]
    }
}

bitflags::bitflags! {
    /// What a vCPU has to do before it enters the guest again.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Requests: u32 {
        /// Its root registers point at a tree that is no more (KVM: `KVM_REQ_MMU_FREE_OBSOLETE_ROOTS`).
        const RELOAD_ROOTS = 1 << 0;
        /// Translations went that its TLB may hold.
        const FLUSH = 1 << 1;
    }
}

impl<S: Stage2> Mmu<S> {
    /// An MMU in EPT mode without slots above `stage2`, whose root table is empty.
    ///
    /// # Errors
    /// The limits do not fit into memory.
    pub fn new(stage2: S, backings: Vec<BackingShape>, limits: &Limits) -> Result<Self, Stage2Error>
    where
        S: Stage2<Words = HeapWords, Ram = NoRam>,
    {
        let words = HeapWords::new(limits.tables.max(2)).map_err(Stage2Error::Exhausted)?;
        Self::with_ram(stage2, NoRam, words, Mode::Ept, backings, limits).map_err(Stage2Error::Exhausted)
    }

    /// An MMU without slots, whose tables are all of `words`.
    ///
    /// # Errors
    /// The limits do not fit into memory.
    pub fn with_ram(
        stage2: S,
        ram: S::Ram,
        words: S::Words,
        mode: Mode,
        backings: Vec<impl Into<BackingInfo>>,
        limits: &Limits,
    ) -> Result<Self, Resource> {
        let backings: Vec<BackingInfo> = backings.into_iter().map(Into::into).collect();
        let host_layout = match mode {
            Mode::Ept => HostLayout::Frames,
            Mode::Shadow(_) => HostLayout::Linear,
        };
        let tables = match mode {
            Mode::Ept => Tables::new(words, Format::Ept)?,
            Mode::Shadow(layout) => Tables::new(words, Format::Shadow(layout))?,
        };
        let root = match mode {
            Mode::Ept => tables
                .take(&mut Held::entry(), Gfn::new(0), Role::ept(TableLevel::Pml4), 0)
                .ok_or(Resource::Tables)?,
            // Each vCPU has its own; this one is empty, for a guest whose cr3 names no memory.
            Mode::Shadow(_) => tables
                .take(
                    &mut Held::entry(),
                    Gfn::new(0),
                    Role::new().with_level(1).with_invalid(true),
                    0,
                )
                .ok_or(Resource::Tables)?,
        };
        let shadow = match mode {
            Mode::Ept => None,
            Mode::Shadow(layout) => {
                assert!(layout.is_sound(), "{layout:?} has addresses that do not fit");
                Some(shadow::pages::Pages::new(tables.capacity(), &GuestCpu::default())?)
            }
        };
        Ok(Self {
            mode,
            ram,
            host: HostMemory::new(host_layout, &backings)?,
            structure: AtomicU64::new(0),
            guest_cpu: GuestCpu::default(),
            slots_lock: SlotsLock::default(),
            slots_arch_lock: SlotsArchLock::default(),
            slots: Srcu::new(SlotTable::with_room()?, SlotTable::with_room()?),
            generation: SlotGeneration::new(limits.first_generation),
            lock: MmuLock::new(Tree {
                obsolete: None,
                clock: 0,
                shadow,
            }),
            tables,
            root: AtomicU32::new(root.raw()),
            valid_gen: AtomicU64::new(0),
            walkers: Epochs::new(),
            // Each vCPU keeps as many as one more spte may take.
            pte_entries: PteEntries::new(limits.rmap_entries + ENTRIES_PER_ADD * MAX_VCPUS as u32)?,
            invalidate: Invalidations::default(),
            effects: LeafLock::new(stage2),
            requests: array::from_fn(|_| AtomicU32::new(0)),
            stats: Stats::default(),
            trace: Trace::default(),
        })
    }

    /// The same MMU for a guest whose processor is `cpu`; nothing has asked about it yet. Shadow mode only looks at it.
    #[must_use]
    pub fn with_guest_cpu(mut self, cpu: GuestCpu) -> Self {
        if let Some(pages) = &mut self.lock.get_mut().shadow {
            pages.formats = GpteFormats::new(&cpu);
        }
        Self { guest_cpu: cpu, ..self }
    }

    /// One more virtual processor; `None`: there are [`MAX_VCPUS`]. It stays for as long as the MMU.
    pub fn add_vcpu(&self) -> Option<Vcpu> {
        let walker = self.walkers.walker()?;
        let paging = match self.mode {
            Mode::Ept => None,
            Mode::Shadow(_) => Some(VcpuPaging::new(&self.guest_cpu)),
        };
        Some(Vcpu::new(VcpuId::new(walker.slot() as u8), walker, paging))
    }

    /// Takes what a vCPU was asked to do before it enters the guest. In EPT mode the hardware's root stays, and there is
    /// nothing more to it.
    pub fn take_requests(&self, vcpu: &Vcpu) -> Requests {
        let word = &self.requests[vcpu.id().index()];
        if word.load(Ordering::Relaxed) == 0 {
            return Requests::empty();
        }
        Requests::from_bits_retain(word.swap(0, Ordering::AcqRel))
    }

    /// Asks every vCPU.
    fn request_all(&self, what: Requests) {
        for word in &self.requests[..self.walkers.given()] {
            word.fetch_or(what.bits(), Ordering::AcqRel);
        }
    }

    /// How this MMU translates.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The guest's memory.
    pub fn ram(&self) -> &S::Ram {
        &self.ram
    }

    /// The hardware below, for what the MMU does not do itself.
    pub fn stage2_mut(&mut self) -> &mut S {
        self.effects.get_mut()
    }

    /// Uses the hardware below while nobody else does.
    pub fn with_stage2<R>(&self, act: impl FnOnce(&mut S) -> R) -> R {
        let mut held = Held::entry();
        act(&mut self.effects.lock(&mut held))
    }

    /// Looks at the published memslots, which do not change meanwhile. `look` must not change a slot.
    pub fn with_slots<R>(&self, look: impl FnOnce(&SlotTable) -> R) -> R {
        let mut held = Held::entry();
        look(&self.slots.read(&mut held))
    }

    /// The memslot generation that cached knowledge must carry.
    pub fn generation(&self) -> Generation {
        self.generation.current()
    }

    /// The event trace.
    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    /// A counter.
    pub fn stat(&self, stat: Stat) -> u64 {
        let counter = match stat {
            Stat::Resumed => &self.stats.resumed,
            Stat::Emulated => &self.stats.emulated,
            Stat::Mapped4K => self.stats.mapped(PageLevel::K4),
            Stat::Mapped2M => self.stats.mapped(PageLevel::M2),
            Stat::GenerationWraps => &self.stats.generation_wraps,
            Stat::ZapAlls => &self.stats.zap_alls,
        };
        counter.load(Ordering::Relaxed)
    }

    /// The root of the current tree. It may be an old one by the time it is used, unless mmu_lock is held.
    #[inline]
    fn root(&self) -> TableId {
        TableId::from_raw(self.root.load(Ordering::Acquire))
    }

    /// `mmu_valid_gen`, for tables that are made under mmu_lock.
    fn valid_gen(&self) -> u64 {
        self.valid_gen.load(Ordering::Relaxed)
    }

    /// One leaf of `level` more.
    fn count_mapped(&self, level: PageLevel) {
        self.stats.mapped(level).fetch_add(1, Ordering::Relaxed);
    }

    /// One less.
    fn count_unmapped(&self, level: PageLevel) {
        self.stats.mapped(level).fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether a table belongs to an earlier `mmu_valid_gen`.
    #[inline]
    fn is_obsolete(&self, table: TableId) -> bool {
        self.tables.get(table).valid_gen() != self.valid_gen.load(Ordering::Acquire)
    }
}
