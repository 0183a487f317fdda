// SPDX-License-Identifier: MIT OR Apache-2.0
//! What does a processor with an EPT keep, and what makes it forget?

use crate::fault::ErrorCode;
use crate::sim::cpu::{Cpu, Exit, Operation};
use crate::sim::ept::{EptCaches, ThroughEpt};
use crate::sim::paging::*;
use crate::sim::tlb::Forgetful;
use crate::sim::{SimStage2, Violation};
use crate::spte::{Leaf, Rights, Writable};
use crate::stage2::{BackingShape, Frame, GpteSize, GuestAccess, Stage2, TableLevel, Unflushed};
use alloc::vec;
use proptest::prelude::*;
use umbra_mmu_abi as abi;
use umbra_mmu_abi::{Backing, BackingId, Gfn, Gpa, PageLevel, SlotId};

const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const A: u64 = 0x20;
const D: u64 = 0x40;
const PS: u64 = 0x80;
const G: u64 = 0x100;
const ALL: u64 = P | W | U | A | D;
const SLOT: SlotId = SlotId(0);

/// A guest with 2M in small frames at 0, and 4M in large ones above, all mapped.
struct Guest {
    ept: SimStage2,
    caches: EptCaches,
    cpu: Cpu,
}

fn leaf(page: u32, level: PageLevel, writable: Writable) -> Leaf {
    Leaf {
        frame: Frame::new(BackingId(0), page).unwrap(),
        level,
        writable,
        rights: Rights::ALL,
    }
}

impl Guest {
    fn new(mode: PagingMode, cr4: u64, forgetful: Option<Forgetful>) -> Self {
        let shape = BackingShape {
            small_head: 512,
            large: 2,
            small_tail: 0,
        };
        let mut ept = SimStage2::new(vec![shape], 8);
        let backing = Backing {
            id: BackingId(0),
            first_page: 0,
        };
        ept.attach_slot(SLOT, backing, 512 * 3, GuestAccess::All).unwrap();
        for level in [TableLevel::Pdpt, TableLevel::Pd, TableLevel::Pt] {
            ept.link(Gfn::new(0), level).unwrap();
        }
        for page in 0..512 {
            let leaf = leaf(page, PageLevel::K4, Writable::Now);
            ept.map(SLOT, Gfn::new(page as u64), &leaf).unwrap();
        }
        for page in [512, 1024] {
            let leaf = leaf(page, PageLevel::M2, Writable::Now);
            ept.map(SLOT, Gfn::new(page as u64), &leaf).unwrap();
        }
        let mut guest = Self {
            ept,
            caches: EptCaches::default(),
            cpu: Cpu::new(Model::default(), forgetful),
        };
        let (cr4, efer) = match mode {
            PagingMode::None | PagingMode::TwoLevel => (cr4 | CR4_PSE, 0),
            PagingMode::Pae => (cr4 | CR4_PAE, EFER_NXE),
            PagingMode::FourLevel => (cr4 | CR4_PAE, EFER_NXE | EFER_LME),
            PagingMode::FiveLevel => (cr4 | CR4_PAE | CR4_LA57, EFER_NXE | EFER_LME),
        };
        let cr0 = CR0_WP | if mode == PagingMode::None { 0 } else { CR0_PG };
        guest.cpu.enter(Registers {
            cr0,
            cr4,
            efer,
            cr3: 0,
            pdptes: [0; 4],
        });
        guest
    }

    fn with<T>(&mut self, run: impl FnOnce(&mut Cpu, &mut ThroughEpt<'_>) -> T) -> T {
        let mut below = ThroughEpt {
            ept: &self.ept,
            caches: &mut self.caches,
        };
        run(&mut self.cpu, &mut below)
    }

    fn access(&mut self, gva: u64, kind: abi::Access) -> Result<u64, Exit<Violation>> {
        let access = Access {
            kind,
            privilege: Privilege::Supervisor,
        };
        let operation = match kind {
            abi::Access::Read | abi::Access::Fetch => Operation::Load(GpteSize::B8),
            abi::Access::Write => Operation::Store { bytes: 8, value: 0x77 },
        };
        self.with(|cpu, below| cpu.access(below, gva, access, operation))
    }

    fn read(&mut self, gva: u64) -> Result<u64, Exit<Violation>> {
        self.access(gva, abi::Access::Read)
    }

    fn load_cr3(&mut self, cr3: u64) {
        self.with(|cpu, below| cpu.load_cr3(below, cr3)).unwrap();
    }

    /// Writes to guest memory behind the processor's back.
    fn put(&self, gpa: u64, size: GpteSize, value: u64) {
        let frame = Frame::new(BackingId(0), (gpa >> 12) as u32).unwrap();
        self.ept.memory().store(frame, (gpa & 4095) as u16, size, value);
    }

    fn get(&self, gpa: u64) -> u64 {
        let frame = Frame::new(BackingId(0), (gpa >> 12) as u32).unwrap();
        self.ept.memory().load(frame, (gpa & 4095) as u16, GpteSize::B8)
    }

    /// 4-level tables at 0x1000..0x5000 with the table of the first 2M at 0x4000; frames 0x10.. hold their own number.
    fn four_level(cr4: u64) -> Self {
        let mut guest = Self::new(PagingMode::FourLevel, cr4, None);
        for table in [0x1000, 0x2000, 0x3000] {
            guest.put(table, GpteSize::B8, (table + 0x1000) | ALL);
        }
        for page in 0x10..0x20 {
            guest.put(page << 12, GpteSize::B8, page);
        }
        guest.load_cr3(0x1000);
        guest
    }

    fn set_pte(&self, gva: u64, entry: u64) {
        self.put(0x4000 + (gva >> 12) * 8, GpteSize::B8, entry);
    }
}

const NOT_PRESENT: Exit<Violation> = Exit::PageFault {
    cr2: 0x7000,
    code: ErrorCode::empty(),
};

#[test]
fn a_translation_stays_until_its_invlpg() {
    let mut guest = Guest::four_level(0);
    assert_eq!(guest.read(0x7000), Err(NOT_PRESENT));
    guest.set_pte(0x7000, 0x10000 | ALL);
    assert_eq!(guest.read(0x7000), Ok(0x10));
    guest.set_pte(0x7000, 0x11000 | ALL);
    assert_eq!(guest.read(0x7000), Ok(0x10), "the old translation is in use");
    guest.cpu.invlpg(0x8000);
    assert_eq!(guest.read(0x7000), Ok(0x10), "another page's INVLPG");
    guest.cpu.invlpg(0x7fff);
    assert_eq!(guest.read(0x7000), Ok(0x11));
    guest.set_pte(0x7000, 0);
    assert_eq!(guest.read(0x7000), Ok(0x11));
    guest.load_cr3(0x1000);
    assert_eq!(guest.read(0x7000), Err(NOT_PRESENT));
}

#[test]
fn a_global_page_stays_over_cr3_and_goes_with_pge() {
    let mut guest = Guest::four_level(CR4_PGE);
    guest.set_pte(0x7000, 0x10000 | ALL | G);
    guest.set_pte(0x8000, 0x11000 | ALL);
    assert_eq!((guest.read(0x7000), guest.read(0x8000)), (Ok(0x10), Ok(0x11)));
    guest.set_pte(0x7000, 0);
    guest.set_pte(0x8000, 0x12000 | ALL);
    guest.load_cr3(0x1000);
    assert_eq!((guest.read(0x7000), guest.read(0x8000)), (Ok(0x10), Ok(0x12)));
    let without = Registers {
        cr4: CR4_PAE,
        ..*guest.cpu.registers()
    };
    guest.with(|cpu, below| cpu.write_control(below, without)).unwrap();
    assert_eq!(guest.read(0x7000), Err(NOT_PRESENT));
    // Without PGE, G says nothing.
    guest.set_pte(0x7000, 0x10000 | ALL | G);
    assert_eq!(guest.read(0x7000), Ok(0x10));
    guest.set_pte(0x7000, 0);
    guest.load_cr3(0x1000);
    assert_eq!(guest.read(0x7000), Err(NOT_PRESENT));
    // INVLPG takes global pages too.
    let mut guest = Guest::four_level(CR4_PGE);
    guest.set_pte(0x7000, 0x10000 | ALL | G);
    assert_eq!(guest.read(0x7000), Ok(0x10));
    guest.set_pte(0x7000, 0);
    guest.cpu.invlpg(0x7000);
    assert_eq!(guest.read(0x7000), Err(NOT_PRESENT));
}

#[test]
fn the_way_to_a_table_stays_until_any_invlpg() {
    let mut guest = Guest::four_level(0);
    guest.set_pte(0x7000, 0x10000 | ALL);
    guest.put(0x5000 + 8 * 8, GpteSize::B8, 0x11000 | ALL);
    assert_eq!(guest.read(0x7000), Ok(0x10));
    // Another page table takes the place: no translation of 0x8000 is cached, but the table above it is.
    guest.put(0x3000, GpteSize::B8, 0x5000 | ALL);
    guest.set_pte(0x8000, 0x12000 | ALL);
    assert_eq!(guest.read(0x8000), Ok(0x12));
    guest.cpu.invlpg(0xdead_b000);
    guest.cpu.invlpg(0x8000);
    assert_eq!(guest.read(0x8000), Ok(0x11));
    assert_eq!(
        guest.read(0x7000),
        Ok(0x10),
        "INVLPG of other pages takes no translation"
    );
}

#[test]
fn a_fault_forgets_what_led_to_it() {
    let mut guest = Guest::four_level(0);
    guest.set_pte(0x7000, 0x10000 | ALL & !W);
    assert_eq!(guest.read(0x7000), Ok(0x10));
    guest.set_pte(0x7000, 0x11000 | ALL);
    // The old translation denies the write; the tables allow it.
    assert_eq!(guest.access(0x7000, abi::Access::Write), Ok(0x77));
    assert_eq!(guest.get(0x11000), 0x77);
    // A processor may also fault for it, once.
    let mut guest = Guest::four_level(0);
    guest.cpu = {
        let model = Model {
            stale_denial: StaleDenial::Faults,
            ..Model::default()
        };
        let mut cpu = Cpu::new(model, None);
        cpu.enter(*guest.cpu.registers());
        cpu
    };
    guest.set_pte(0x7000, 0x10000 | ALL & !W);
    assert_eq!(guest.read(0x7000), Ok(0x10));
    guest.set_pte(0x7000, 0x11000 | ALL);
    let spurious = Exit::PageFault {
        cr2: 0x7000,
        code: ErrorCode::P | ErrorCode::W,
    };
    assert_eq!(guest.access(0x7000, abi::Access::Write), Err(spurious));
    assert_eq!(guest.access(0x7000, abi::Access::Write), Ok(0x77));
}

// REQ: PF-2
#[test]
fn the_first_write_through_a_clean_translation_sets_dirty() {
    let mut guest = Guest::four_level(0);
    guest.set_pte(0x7000, 0x10000 | ALL & !D & !A);
    assert_eq!(guest.read(0x7000), Ok(0x10));
    assert_eq!(guest.get(0x4000 + 7 * 8) & (A | D), A);
    guest.access(0x7000, abi::Access::Write).unwrap();
    assert_eq!(guest.get(0x4000 + 7 * 8) & (A | D), A | D);
    // Cleared without a flush, it stays clear: the processor knows that it has set it.
    guest.set_pte(0x7000, 0x10000 | ALL & !D);
    guest.access(0x7000, abi::Access::Write).unwrap();
    assert_eq!(guest.get(0x4000 + 7 * 8) & D, 0);
    guest.cpu.invlpg(0x7000);
    guest.access(0x7000, abi::Access::Write).unwrap();
    assert_eq!(guest.get(0x4000 + 7 * 8) & D, D);
}

// REQ: LP-1
#[test]
fn a_large_page_over_small_frames_goes_with_one_invlpg() {
    for (mode, page, entry) in [
        (PagingMode::FourLevel, 0x20_0000, 0x3008),
        (PagingMode::TwoLevel, 0x40_0000, 0x1004),
    ] {
        let mut guest = match mode {
            PagingMode::FourLevel => Guest::four_level(0),
            _ => Guest::new(mode, 0, None),
        };
        guest.cpu.flush();
        guest.load_cr3(0x1000);
        let size = match mode {
            PagingMode::FourLevel => GpteSize::B8,
            _ => GpteSize::B4,
        };
        // A page at address 0, where the EPT has small frames, and (of the 4M page) one large one.
        guest.put(entry, size, ALL | PS);
        guest.put(0x10000, GpteSize::B8, 0x10);
        guest.put(0x11000, GpteSize::B8, 0x11);
        guest.put(0x20_0000, GpteSize::B8, 0x200);
        assert_eq!(guest.read(page + 0x10000), Ok(0x10));
        assert_eq!(guest.read(page + 0x11000), Ok(0x11));
        if mode == PagingMode::TwoLevel {
            assert_eq!(guest.read(page + 0x20_0000), Ok(0x200));
        }
        let cached = guest.cpu.tlb().len();
        assert_eq!(cached, if mode == PagingMode::TwoLevel { 3 } else { 2 });
        guest.put(entry, size, 0);
        assert_eq!(guest.read(page + 0x11000), Ok(0x11));
        guest.cpu.invlpg(page + 0x12345);
        assert!(guest.cpu.tlb().is_empty(), "{mode:?}");
        guest.read(page + 0x10000).unwrap_err();
    }
}

#[test]
fn the_ept_is_used_as_it_was_until_a_flush() {
    let mut guest = Guest::new(PagingMode::None, 0, None);
    guest.put(0x10000, GpteSize::B8, 0x10);
    assert_eq!(guest.read(0x10000), Ok(0x10));
    let there = leaf(0x10, PageLevel::K4, Writable::Now);
    let mut removed = guest.ept.unmap(SLOT, Gfn::new(0x10), &there);
    assert_eq!(guest.read(0x10000), Ok(0x10), "the old mapping is in use");
    guest.ept.flush(Unflushed::NOTHING);
    assert_eq!(guest.read(0x10000), Ok(0x10), "nothing was to be flushed");
    let more = guest
        .ept
        .unmap(SLOT, Gfn::new(0x11), &leaf(0x11, PageLevel::K4, Writable::Now));
    removed.and(more);
    guest.ept.flush(removed);
    let violation = Violation {
        gpa: Gpa::new(0x10000),
        access: abi::Access::Read,
    };
    assert_eq!(guest.read(0x10000), Err(Exit::Refused(violation)));
}

#[test]
fn a_large_frame_of_the_ept_begins_anywhere_in_its_backing() {
    let shape = BackingShape {
        small_head: 6,
        large: 1,
        small_tail: 0,
    };
    let mut ept = SimStage2::new(vec![shape], 2);
    let backing = Backing {
        id: BackingId(0),
        first_page: 0,
    };
    ept.attach_slot(SLOT, backing, 518, GuestAccess::All).unwrap();
    ept.link(Gfn::new(0), TableLevel::Pdpt).unwrap();
    ept.link(Gfn::new(0), TableLevel::Pd).unwrap();
    ept.map(SLOT, Gfn::new(0), &leaf(6, PageLevel::M2, Writable::Now))
        .unwrap();
    let mut guest = Guest {
        ept,
        caches: EptCaches::default(),
        cpu: Cpu::new(Model::default(), None),
    };
    assert_eq!(guest.access(0x5008, abi::Access::Write), Ok(0x77));
    assert_eq!(guest.get(0xb008), 0x77);
    // The same through tables with a page of 2M, and with one of 4K: page directory 0x2000, in frame 6 + 2.
    guest.put(0x8000, GpteSize::B4, ALL | PS);
    guest.put(0x8004, GpteSize::B4, 0x3000 | ALL);
    guest.put(0x9000, GpteSize::B4, 0x5000 | ALL);
    guest.cpu.enter(Registers {
        cr0: CR0_PG,
        cr3: 0x2000,
        cr4: CR4_PSE,
        ..Registers::default()
    });
    for _ in 0..2 {
        assert_eq!(guest.read(0x5008), Ok(0x77));
        assert_eq!(guest.read(0x40_0008), Ok(0x77));
    }
}

// REQ: MEM-7
#[test]
#[should_panic(expected = "before the flush that ends their old use")]
fn any_page_of_a_large_frame_is_in_limbo_until_a_flush() {
    let mut guest = Guest::new(PagingMode::None, 0, None);
    core::mem::forget(guest.ept.revoke_slot(SLOT));
    let backing = Backing {
        id: BackingId(0),
        first_page: 600,
    };
    let _ = guest.ept.attach_slot(SLOT, backing, 1, GuestAccess::All);
}

#[test]
fn a_walk_that_the_ept_refuses_is_told_by_its_own_address_and_access() {
    let mut guest = Guest::four_level(0);
    guest.set_pte(0x7000, 0x10000 | P | W | U);
    let protected = leaf(4, PageLevel::K4, Writable::Protected);
    let removed = guest.ept.protect(SLOT, Gfn::new(4), &protected).unwrap();
    guest.ept.flush(removed);
    // To set the accessed flag the page table has to be written.
    let refused = |gpa, access| {
        Err(Exit::Refused(Violation {
            gpa: Gpa::new(gpa),
            access,
        }))
    };
    assert_eq!(guest.read(0x7000), refused(0x4038, abi::Access::Write));
    guest.set_pte(0x7000, 0x10000 | ALL);
    assert_eq!(guest.read(0x7000), Ok(0x10));
    let removed = guest
        .ept
        .unmap(SLOT, Gfn::new(2), &leaf(2, PageLevel::K4, Writable::Now));
    guest.ept.flush(removed);
    assert_eq!(guest.read(0x7000), refused(0x2000, abi::Access::Read));
    guest
        .ept
        .map(SLOT, Gfn::new(2), &leaf(2, PageLevel::K4, Writable::Now))
        .unwrap();
    assert_eq!(guest.read(0x7000), Ok(0x10));
    assert_eq!(guest.read(0x0001_0000_0000_0000), Err(Exit::GeneralProtection));
}

#[test]
fn pdptes_are_those_of_the_last_load() {
    let mut guest = Guest::new(PagingMode::Pae, 0, None);
    guest.put(0x1020, GpteSize::B8, 0x2000 | P);
    guest.put(0x2000, GpteSize::B8, 0x3000 | ALL);
    guest.put(0x3038, GpteSize::B8, 0x10000 | ALL);
    guest.put(0x10000, GpteSize::B8, 0x10);
    guest.load_cr3(0x1020);
    assert_eq!(guest.read(0x7000), Ok(0x10));
    guest.put(0x1020, GpteSize::B8, P | U);
    guest.cpu.invlpg(0x7000);
    assert_eq!(guest.read(0x7000), Ok(0x10), "memory is not looked at");
    let refused = guest.with(|cpu, below| cpu.load_cr3(below, 0x1020));
    assert_eq!(refused, Err(Exit::GeneralProtection), "a reserved bit");
    assert_eq!(guest.read(0x7000), Ok(0x10), "nothing has changed");
    guest.put(0x1020, GpteSize::B8, 0);
    let smep = Registers {
        cr4: CR4_PAE | CR4_SMEP,
        ..*guest.cpu.registers()
    };
    guest.with(|cpu, below| cpu.write_control(below, smep)).unwrap();
    assert_eq!(guest.read(0x7000), Err(NOT_PRESENT), "CR4.SMEP loads them too");
}

#[derive(Clone, Debug)]
enum Step {
    Access(u64, abi::Access, Privilege),
    Pte(u64, u64),
    Pde(u64),
    Cr3(u64),
    Controls(u64, u64),
    Unmap(u64),
}

fn any_access() -> impl Strategy<Value = abi::Access> {
    prop_oneof![
        Just(abi::Access::Read),
        Just(abi::Access::Write),
        Just(abi::Access::Fetch)
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let privilege = prop_oneof![
        Just(Privilege::User),
        Just(Privilege::Supervisor),
        Just(Privilege::SupervisorAc)
    ];
    let access = (0u64..16, any_access(), privilege).prop_map(|(page, kind, who)| Step::Access(page, kind, who));
    let pte = (0u64..16, 0u64..16, 0u64..8, any::<bool>(), any::<bool>()).prop_map(|(page, frame, bits, xd, g)| {
        let flags = bits | u64::from(xd) << 63 | if g { G } else { 0 };
        Step::Pte(page, (0x10 + frame) << 12 | flags)
    });
    prop_oneof![
        12 => access,
        4 => pte,
        1 => prop_oneof![Just(0x4000 | ALL), Just(0x5000 | ALL), Just(0u64), Just(0x20_0000 | ALL | PS)].prop_map(Step::Pde),
        1 => prop_oneof![Just(0x1000u64), Just(0x6000)].prop_map(Step::Cr3),
        1 => (any::<bool>(), 0u64..4).prop_map(|(wp, smxp)| Step::Controls(u64::from(wp) << 16, smxp << 20)),
        1 => (0x10u64..0x20).prop_map(Step::Unmap),
    ]
}

/// Whether this guest, which flushes as the manual asks, sees the same with these caches as with none at all.
fn same_as_without(steps: &[Step], forgetful: Option<Forgetful>) {
    let start = || {
        let mut guest = Guest::four_level(CR4_PGE);
        // A second root with a page table of its own.
        guest.put(0x6000, GpteSize::B8, 0x7000 | ALL);
        guest.put(0x7000, GpteSize::B8, 0x8000 | ALL);
        guest.put(0x8000, GpteSize::B8, 0x5000 | ALL);
        guest.cpu = Cpu::new(Model::default(), forgetful);
        let registers = Registers {
            cr0: CR0_PG | CR0_WP,
            cr3: 0x1000,
            cr4: CR4_PAE | CR4_PGE,
            efer: EFER_LME | EFER_NXE,
            pdptes: [0; 4],
        };
        guest.cpu.enter(registers);
        guest
    };
    let (mut with, mut without) = (start(), start());
    for step in steps {
        for guest in [&mut with, &mut without] {
            match *step {
                Step::Pte(page, entry) => {
                    guest.set_pte(page << 12, entry);
                    guest.cpu.invlpg(page << 12);
                }
                Step::Pde(entry) => {
                    guest.put(0x3000, GpteSize::B8, entry);
                    guest.cpu.flush();
                }
                Step::Cr3(cr3) => {
                    // Pages that are global here are not what they are there.
                    guest.cpu.flush();
                    guest.load_cr3(cr3);
                }
                Step::Controls(wp, smxp) => {
                    let registers = Registers {
                        cr0: CR0_PG | wp,
                        cr4: CR4_PAE | CR4_PGE | smxp,
                        ..*guest.cpu.registers()
                    };
                    guest.with(|cpu, below| cpu.write_control(below, registers)).unwrap();
                }
                Step::Unmap(page) => {
                    let there = leaf(page as u32, PageLevel::K4, Writable::Now);
                    let removed = guest.ept.unmap(SLOT, Gfn::new(page), &there);
                    guest.ept.flush(removed);
                    guest.ept.map(SLOT, Gfn::new(page), &there).unwrap();
                }
                Step::Access(..) => {}
            }
        }
        if let Step::Access(page, kind, privilege) = *step {
            without.cpu.flush();
            without.caches = EptCaches::default();
            let access = Access { kind, privilege };
            let operation = match kind {
                abi::Access::Read | abi::Access::Fetch => Operation::Load(GpteSize::B8),
                abi::Access::Write => Operation::Store { bytes: 8, value: page },
            };
            let expected = without.with(|cpu, below| cpu.access(below, page << 12, access, operation));
            let found = with.with(|cpu, below| cpu.access(below, page << 12, access, operation));
            assert_eq!(found, expected);
        }
    }
    for page in 0..0x20 {
        for word in 0..32 {
            let gpa = (page << 12) + word * 8;
            assert_eq!(with.get(gpa), without.get(gpa), "{gpa:#x}");
        }
    }
    assert_eq!(with.ept.memory().take_written(), without.ept.memory().take_written());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn caches_change_nothing_where_flushes_are_right(steps in prop::collection::vec(step(), 1..120), seed in 1u64..) {
        for forgetful in [None, Some(Forgetful::new(seed, 3))] {
            same_as_without(&steps, forgetful);
        }
    }
}
