// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is measured in shadow mode? A 4-level guest whose page tables are warm; its memory and the MMU's tables are flat
//! arrays, so that only the core counts.

use crate::cases::{Case, case, fault_case};
use crate::count::{answered, measured, prepared};
use std::sync::atomic::{AtomicU64, Ordering};
use umbra_mmu_abi::{Backing, BackingId, Generation, Gfn, PageLevel, SlotFlags, SlotId};
use umbra_mmu_core::fault::{ErrorCode, Fault};
use umbra_mmu_core::shadow::registers::{CR0_PE, CR0_PG, CR0_WP, CR4_PAE, EFER_LMA, EFER_LME, EFER_NXE, Registers};
use umbra_mmu_core::spte::{Leaf, ShadowLayout};
use umbra_mmu_core::stage2::{
    BackingShape, FlushEpoch, Frame, GpteSize, GuestAccess, GuestRam, Observed, Stage2, Stage2Error, TableHandle,
    TableLevel, TableNeeds, Unflushed,
};
use umbra_mmu_core::table::HeapWords;
use umbra_mmu_core::vcpu::Vcpu;
use umbra_mmu_core::{Limits, Mmu, Mode};

/// The guest's tables begin here; its page tables follow the three above them.
const TABLES: u64 = 0x100;
/// Pages that the guest maps, from [`GVA`] on, to the end of its memory in turn.
const MAPPED: u64 = 4096;
const GVA: u64 = 1 << 39;

/// All cases of shadow mode.
pub const CASES: &[Case] = &[
    Case {
        reached: Some(880),
        ..fault_case("shadow fault, warm path", 700, 2048, warm_fault)
    },
    Case {
        reached: Some(3760),
        ..case(
            "shadow fault, warm path, 7 neighbours prefetched",
            2800,
            512,
            prefetching_fault,
        )
    },
    Case {
        reached: Some(1340),
        ..case("shadow fault, first write to a mapped page", 700, 2048, first_write)
    },
    Case {
        reached: Some(1970),
        ..case("shadow fault, leaf table becomes unsync", 900, 4, becomes_unsync)
    },
    case(
        "write-protecting a page, 4096 at once, shadow mode",
        20,
        4088,
        write_protect,
    ),
    Case {
        reached: Some(335),
        ..case("MMIO fault, cached in an spte, shadow mode", 60, 4000, mmio_in_spte)
    },
];

/// The guest's memory, as far as its tables reach.
struct FlatRam(Vec<AtomicU64>);

impl FlatRam {
    fn word(&self, frame: Frame, offset: u16) -> &AtomicU64 {
        &self.0[frame.page() as usize * 512 + offset as usize / 8]
    }
}

impl GuestRam for FlatRam {
    fn read(&self, frame: Frame, offset: u16, _: GpteSize) -> u64 {
        self.word(frame, offset).load(Ordering::Acquire)
    }
    fn compare_exchange(&self, frame: Frame, offset: u16, _: GpteSize, old: u64, new: u64) -> Result<(), u64> {
        let word = self.word(frame, offset);
        word.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire)
            .map(|_| ())
    }
    fn write(&self, frame: Frame, offset: u16, bytes: &[u8]) {
        let bytes = bytes.try_into().expect("entries of 8 bytes");
        self.word(frame, offset)
            .store(u64::from_le_bytes(bytes), Ordering::Release);
    }
}

/// Hardware that has forgotten everything by the time it is asked to.
struct NullShadow;

impl Stage2 for NullShadow {
    type Words = HeapWords;
    type Ram = FlatRam;
    fn attach_slot(&mut self, _: SlotId, _: Backing, _: u32, _: GuestAccess) -> Result<(), Stage2Error> {
        Ok(())
    }
    fn revoke_slot(&mut self, _: SlotId) -> Unflushed {
        Unflushed::NOTHING
    }
    fn reserve(&mut self, _: TableNeeds) -> Result<(), Stage2Error> {
        Ok(())
    }
    fn link(&mut self, _: Gfn, _: TableLevel) -> Result<TableHandle, Stage2Error> {
        Ok(TableHandle(0))
    }
    fn unlink(&mut self, _: TableHandle) -> Unflushed {
        Unflushed::NOTHING
    }
    fn map(&mut self, _: SlotId, _: Gfn, _: &Leaf) -> Result<(), Stage2Error> {
        Ok(())
    }
    fn unmap(&mut self, _: SlotId, _: Gfn, _: &Leaf) -> Unflushed {
        Unflushed::NOTHING
    }
    fn protect(&mut self, _: SlotId, _: Gfn, _: &Leaf) -> Result<Unflushed, Stage2Error> {
        Ok(Unflushed::NOTHING)
    }
    fn split_frame(&mut self, _: Frame) -> Result<(), Stage2Error> {
        Ok(())
    }
    fn merge_frames(&mut self, _: Frame) -> Result<(), Stage2Error> {
        Ok(())
    }
    fn flush(&mut self, removed: Unflushed) -> FlushEpoch {
        FlushEpoch(removed.settle().into())
    }
    fn observe(&mut self, _: SlotId, _: Gfn, _: &Leaf) -> Observed {
        Observed::Mapped
    }
    fn count_mapped(&mut self, _: SlotId) -> u32 {
        0
    }
}

/// A guest that runs.
pub struct Guest {
    mmu: Mmu<NullShadow>,
    vcpu: Vcpu,
    pages: u32,
}

/// A guest that has [`MAPPED`] pages, whose last-level entries have `flags`.
fn guest(flags: u64) -> Guest {
    Setup::new(MAPPED, flags).guest()
}

/// A guest before its MMU is made.
pub struct Setup {
    ram: FlatRam,
    pages: u32,
    tables: usize,
}

impl Setup {
    /// One that maps so many pages.
    pub fn new(mapped: u64, flags: u64) -> Self {
        let tables = TABLES + 3 + mapped.div_ceil(512);
        let pages = tables + mapped;
        let ram = FlatRam((0..tables as usize * 512).map(|_| AtomicU64::new(0)).collect());
        let set =
            |table: u64, index: u64, entry: u64| ram.0[(table * 512 + index) as usize].store(entry, Ordering::Relaxed);
        set(TABLES, 1, (TABLES + 1) << 12 | 0x27);
        for page in 0..mapped {
            let directory = TABLES + 2;
            set(TABLES + 1, 0, directory << 12 | 0x27);
            set(directory, page / 512, (TABLES + 3 + page / 512) << 12 | 0x27);
            let frame = match page {
                // The second page is a device's, the third the first page table itself.
                1 => 0xf_ee00,
                2 => TABLES + 3,
                _ => tables + page,
            };
            set(TABLES + 3 + page / 512, page % 512, frame << 12 | flags);
        }
        Self {
            ram,
            pages: pages as u32,
            tables: mapped.div_ceil(512) as usize + 16,
        }
    }

    /// Tables that the MMU is given.
    pub fn tables(&self) -> usize {
        self.tables
    }

    /// Runs it.
    pub fn guest(self) -> Guest {
        let shape = BackingShape {
            small_head: self.pages,
            large: 0,
            small_tail: 0,
        };
        let layout = ShadowLayout {
            backing_shift: 24,
            tables_base: 1 << 24,
            maxphyaddr: 46,
        };
        let limits = Limits {
            tables: self.tables,
            rmap_entries: 1024,
            first_generation: Generation(0),
        };
        let words = HeapWords::new(limits.tables).expect("memory for the tables");
        let mmu = Mmu::with_ram(NullShadow, self.ram, words, Mode::Shadow(layout), vec![shape], &limits);
        let mmu = mmu.expect("memory for the tables");
        let pages = self.pages;
        log(&mmu, pages, SlotFlags::empty());
        let mut vcpu = mmu.add_vcpu().expect("a virtual processor");
        let registers = Registers {
            cr0: CR0_PE | CR0_PG | CR0_WP,
            cr3: TABLES << 12,
            cr4: CR4_PAE,
            efer: EFER_LME | EFER_LMA | EFER_NXE,
        };
        mmu.restore_registers(&mut vcpu, registers)
            .expect("registers that go together");
        mmu.enter(&mut vcpu).expect("a root");
        Guest { mmu, vcpu, pages }
    }
}

/// Makes the guest's only slot, or changes its flags.
fn log(mmu: &Mmu<NullShadow>, pages: u32, flags: SlotFlags) {
    let backing = Backing {
        id: BackingId(0),
        first_page: 0,
    };
    mmu.set_slot(SlotId(0), Gfn::new(0), pages, backing, flags)
        .expect("a slot");
}

impl Guest {
    /// A fault that is not counted.
    fn prepare(&mut self, page: u64, code: ErrorCode) {
        let fault = Fault {
            address: GVA + page * PageLevel::K4.bytes(),
            code,
        };
        assert!(prepared(&self.mmu, &mut self.vcpu, &fault).is_ok());
    }

    /// Faults on one of the pages that it maps.
    pub fn fault(&mut self, page: u64, code: ErrorCode) {
        let fault = Fault {
            address: GVA + page * PageLevel::K4.bytes(),
            code,
        };
        assert!(answered(&self.mmu, &mut self.vcpu, &fault).is_ok());
    }
}

/// Every page of a region whose tables are there; no neighbour can be prefetched.
fn warm_fault(count: u64) {
    let mut guest = guest(0x7);
    for table in 0..MAPPED / 512 {
        guest.prepare(table * 512 + 511, ErrorCode::W);
    }
    // As the guest's processor leaves it: pages that were used before, one in 8, so that none is a neighbour.
    for i in 0..count {
        guest.fault(8 + i + i / 500, ErrorCode::W);
    }
}

fn prefetching_fault(count: u64) {
    let mut guest = guest(0x67);
    for table in 0..MAPPED / 512 {
        guest.fault(table * 512 + 511, ErrorCode::W);
    }
    measured(|| {
        for i in 0..count {
            guest.fault(i * 8, ErrorCode::W);
        }
    });
}

fn first_write(count: u64) {
    let mut guest = guest(0x7);
    for i in 0..count {
        guest.fault(8 + i, ErrorCode::empty());
    }
    measured(|| {
        for i in 0..count {
            guest.fault(8 + i, ErrorCode::P | ErrorCode::W);
        }
    });
}

fn becomes_unsync(count: u64) {
    let mut guest = guest(0x7);
    guest.fault(2, ErrorCode::empty());
    for _ in 0..count {
        guest.mmu.flush_tlb(&mut guest.vcpu);
        guest.mmu.enter(&mut guest.vcpu).expect("a root");
        measured(|| guest.fault(2, ErrorCode::P | ErrorCode::W));
    }
}

fn mmio_in_spte(count: u64) {
    let mut guest = guest(0x67);
    guest.fault(1, ErrorCode::empty());
    let code = ErrorCode::P | ErrorCode::RSVD;
    measured(|| {
        for i in 0..count {
            // Reads and writes in turn: the vCPU remembers one of them.
            let kind = if i % 2 == 0 { ErrorCode::W } else { ErrorCode::empty() };
            guest.fault(1, code | kind);
        }
    });
}

fn write_protect(_: u64) {
    let mut guest = guest(0x67);
    (8..MAPPED).for_each(|page| guest.fault(page, ErrorCode::W));
    measured(|| log(&guest.mmu, guest.pages, SlotFlags::LOG_DIRTY));
}

/// Every page of a guest's is mapped, and then some more.
pub fn fault_beside(mapped: u64, count: u64) {
    let mut guest = Setup::new(mapped + 512, 0x7).guest();
    (8..mapped).for_each(|page| guest.fault(page, ErrorCode::W));
    // The table is there.
    guest.fault(mapped + 511, ErrorCode::W);
    measured(|| (0..count).for_each(|i| guest.fault(mapped + i, ErrorCode::W)));
}
