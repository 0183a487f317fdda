// SPDX-License-Identifier: MIT OR Apache-2.0
//! Do walks of the guest's tables end as the processor's do, with its flags?

use crate::fault::ErrorCode;
use crate::role::PteAccess;
use crate::shadow::gpte::{ACCESSED, DIRTY, LARGE, NO_EXEC, PRESENT, USER, WRITE, pdpte_reserved};
use crate::shadow::registers::*;
use crate::shadow::walk::*;
use crate::stage2::GpteSize;
use core::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use umbra_mmu_abi::{Gfn, Gpa};

/// Entries by address; frames from `RAM` on have no memory, and those from `ROM` on are read-only.
#[derive(Default)]
struct Memory {
    words: RefCell<BTreeMap<u64, u64>>,
    /// Another vCPU's write, done just before the next mark.
    meanwhile: Cell<Option<(u64, u64)>>,
    marks: RefCell<std::vec::Vec<u64>>,
}

const ROM: u64 = 0x80;
const RAM: u64 = 0x100;

impl GuestTables for Memory {
    fn read(&self, gfn: Gfn, offset: u16, _: GpteSize) -> Option<u64> {
        let at = gfn.gpa().raw() + offset as u64;
        (gfn.raw() < RAM).then(|| self.words.borrow().get(&at).copied().unwrap_or(0))
    }
    fn mark(&self, gfn: Gfn, offset: u16, _: GpteSize, old: u64, new: u64) -> Marked {
        if let Some((at, value)) = self.meanwhile.take() {
            self.words.borrow_mut().insert(at, value);
        }
        let at = gfn.gpa().raw() + offset as u64;
        if gfn.raw() >= ROM {
            return Marked::ReadOnly;
        }
        let mut words = self.words.borrow_mut();
        if words.get(&at) != Some(&old) {
            return Marked::Changed;
        }
        words.insert(at, new);
        self.marks.borrow_mut().push(at);
        Marked::Done
    }
}

impl Memory {
    fn with(words: &[(u64, u64)]) -> Self {
        let memory = Self::default();
        memory.words.borrow_mut().extend(words.iter().copied());
        memory
    }
    fn word(&self, at: u64) -> u64 {
        self.words.borrow()[&at]
    }
}

const ALL: u64 = PRESENT | WRITE | USER;
const USED: u64 = ACCESSED | DIRTY;
const CPU: GuestCpu = GuestCpu {
    maxphyaddr: 40,
    features: Features::all(),
};
const LONG: Registers = Registers {
    cr0: CR0_PE | CR0_PG | CR0_WP,
    cr3: 0x1000,
    cr4: CR4_PAE,
    efer: EFER_LME | EFER_LMA | EFER_NXE,
};

fn paging(registers: Registers) -> Paging {
    Paging::new(&registers, &[0; 4], &CPU)
}

/// Four tables, at 0x1000, 0x2000, 0x3000 and 0x4000, for address 0, and a page.
fn four_levels(leaf: u64) -> Memory {
    Memory::with(&[
        (0x1000, 0x2000 | ALL),
        (0x2000, 0x3000 | ALL),
        (0x3000, 0x4000 | ALL),
        (0x4000, leaf),
    ])
}

fn code_of(result: Result<GuestWalk, NoWalk>) -> ErrorCode {
    match result {
        Err(NoWalk::Fault(code)) => code,
        other => panic!("{other:?} is no fault"),
    }
}

// REQ: PF-2
#[test]
fn a_read_that_succeeds_sets_accessed_on_the_whole_way_and_a_write_dirty_at_its_end() {
    let memory = four_levels(0x9000 | ALL);
    let found = walk(&memory, &paging(LONG), 0x123, ErrorCode::U).unwrap();
    assert_eq!((found.gpa, found.leaf), (Gpa::new(0x9123), 1));
    for at in [0x1000, 0x2000, 0x3000, 0x4000] {
        assert_eq!(memory.word(at) & USED, ACCESSED);
    }
    assert_eq!(*memory.marks.borrow(), [0x1000, 0x2000, 0x3000, 0x4000], "from the top");
    assert_eq!(
        found.access,
        PteAccess::USER | PteAccess::EXEC,
        "no spte may hide a first write"
    );
    let found = walk(&memory, &paging(LONG), 0x123, ErrorCode::U | ErrorCode::W).unwrap();
    assert_eq!(memory.word(0x3000) & USED, ACCESSED);
    assert_eq!(memory.word(0x4000) & USED, USED);
    assert_eq!(found.access, PteAccess::ALL);
}

// REQ: PF-2
#[test]
fn a_walk_that_faults_sets_nothing() {
    for (leaf, code) in [
        (0, ErrorCode::U),
        (0x9000 | PRESENT | USER, ErrorCode::U | ErrorCode::W),
    ] {
        let memory = four_levels(leaf);
        let _: ErrorCode = code_of(walk(&memory, &paging(LONG), 0, code));
        assert!(memory.marks.borrow().is_empty());
    }
}

// REQ: PF-2: the guest's other vCPU takes the page away between the read and the mark.
#[test]
fn an_entry_that_changes_during_the_walk_is_walked_again() {
    let memory = four_levels(0x9000 | ALL);
    memory.meanwhile.set(Some((0x4000, 0x5000 | ALL)));
    let found = walk(&memory, &paging(LONG), 0, ErrorCode::W).unwrap();
    assert_eq!(found.gpa, Gpa::new(0x5000));
    assert_eq!(memory.word(0x4000), 0x5000 | ALL | USED);

    let memory = four_levels(0x9000 | ALL);
    memory.meanwhile.set(Some((0x4000, 0)));
    assert_eq!(code_of(walk(&memory, &paging(LONG), 0, ErrorCode::W)), ErrorCode::W);
    assert_eq!(memory.word(0x4000), 0, "the flags of a page that is gone stay clear");
}

// REQ: PF-2
#[test]
fn tables_in_read_only_memory_keep_their_flags_and_translate() {
    let rom = ROM << 12;
    let memory = Memory::with(&[
        (0x1000, rom | ALL),
        (rom, 0x3000 | ALL),
        (0x3000, 0x4000 | ALL),
        (0x4000, 0x9000 | ALL),
    ]);
    let found = walk(&memory, &paging(LONG), 0, ErrorCode::W).unwrap();
    assert_eq!((found.gpa, found.access), (Gpa::new(0x9000), PteAccess::ALL));
    assert_eq!(memory.word(rom) & USED, 0);
    assert_eq!(memory.word(0x3000) & USED, ACCESSED);
}

// REQ: PF-1: the exact error code, for every access and what the entries forbid.
#[test]
fn error_codes_are_those_of_the_processor() {
    let walk_leaf = |leaf, registers, code| walk(&four_levels(leaf), &paging(registers), 0, code);
    let (p, w, u, i) = (ErrorCode::P, ErrorCode::W, ErrorCode::U, ErrorCode::I);
    let page = 0x9000;
    assert_eq!(code_of(walk_leaf(0, LONG, u | w)), u | w);
    assert_eq!(code_of(walk_leaf(page | PRESENT, LONG, u)), p | u);
    assert_eq!(code_of(walk_leaf(page | PRESENT | USER, LONG, w)), p | w);
    assert_eq!(code_of(walk_leaf(page | ALL | NO_EXEC, LONG, u | i)), p | u | i);
    assert_eq!(
        code_of(walk_leaf(page | ALL | 1 << 45, LONG, w)),
        p | w | ErrorCode::RSVD
    );
    assert!(walk_leaf(page | ALL | 1 << 62, LONG, w).is_ok(), "ignored in long mode");
    // Without NX and SMEP a fetch looks like a read, and bit 63 is reserved.
    let plain = Registers {
        efer: EFER_LME | EFER_LMA,
        ..LONG
    };
    assert_eq!(code_of(walk_leaf(page | PRESENT, plain, u | i)), p | u);
    assert_eq!(
        code_of(walk_leaf(page | ALL | NO_EXEC, plain, u)),
        p | u | ErrorCode::RSVD
    );
    // No memory answers all ones.
    assert_eq!(
        code_of(walk(&Memory::with(&[(0x1000, RAM << 12 | ALL)]), &paging(LONG), 0, u)),
        p | u | ErrorCode::RSVD
    );
}

// REQ: PF-4
#[test]
fn smep_smap_and_wp_bind_the_supervisor() {
    let page = |bits| four_levels(0x9000 | PRESENT | bits);
    let with = |cr0: u64, cr4: u64| {
        paging(Registers {
            cr0: LONG.cr0 & !CR0_WP | cr0,
            cr4: LONG.cr4 | cr4,
            ..LONG
        })
    };
    let ok = |memory: Memory, paging: Paging, code| walk(&memory, &paging, 0, code).is_ok();
    assert!(ok(page(USER), with(0, 0), ErrorCode::W), "wp=0");
    assert!(
        !ok(page(USER), with(0, 0), ErrorCode::W | ErrorCode::U),
        "wp=0 is not for user mode"
    );
    assert!(!ok(page(USER), with(CR0_WP, 0), ErrorCode::W));
    assert!(!ok(page(USER), with(CR0_WP, CR4_SMEP), ErrorCode::I));
    assert!(ok(page(USER), with(CR0_WP, CR4_SMEP), ErrorCode::I | ErrorCode::U));
    assert!(ok(page(0), with(CR0_WP, CR4_SMEP), ErrorCode::I));
    assert!(!ok(page(USER), with(CR0_WP, CR4_SMAP), ErrorCode::empty()));
    assert!(ok(page(USER), with(CR0_WP, CR4_SMAP), ErrorCode::AC));
    assert!(ok(page(USER), with(CR0_WP, CR4_SMAP), ErrorCode::U));
    assert!(
        !ok(page(USER), with(0, CR4_SMAP), ErrorCode::W),
        "SMAP binds without WP too"
    );
    let code = code_of(walk(&page(0), &with(0, CR4_SMAP), 0, ErrorCode::U | ErrorCode::AC));
    assert_eq!(code, ErrorCode::P | ErrorCode::U, "AC is not pushed");
}

// REQ: SP-2
#[test]
fn two_level_tables_have_1024_entries_and_pages_of_4m() {
    let registers = Registers {
        cr0: CR0_PE | CR0_PG,
        cr3: 0x1018,
        cr4: CR4_PSE,
        efer: EFER_NXE,
    };
    let gva = 0x80c0_5678;
    // Entry 0x203 of the directory; bits 39:32 of the page's address are in 20:13.
    let large = 0x7bc0_0000 | 0xa5 << 13 | ALL | LARGE;
    let memory = Memory::with(&[(0x1000 + 4 * 0x203, large)]);
    let found = walk(&memory, &paging(registers), gva, ErrorCode::empty()).unwrap();
    assert_eq!((found.gpa, found.leaf), (Gpa::new(0xa5_7bc0_5678), 2));
    // Bit 21 is reserved in it, and so is bit 20 where addresses have 39 bits.
    let memory = Memory::with(&[(0x1000 + 4 * 0x203, large | 1 << 21)]);
    assert!(code_of(walk(&memory, &paging(registers), gva, ErrorCode::empty())).contains(ErrorCode::RSVD));
    let narrow = GuestCpu { maxphyaddr: 39, ..CPU };
    let memory = Memory::with(&[(0x1000 + 4 * 0x203, large)]);
    let code = code_of(walk(
        &memory,
        &Paging::new(&registers, &[0; 4], &narrow),
        gva,
        ErrorCode::empty(),
    ));
    assert!(code.contains(ErrorCode::RSVD));
    // Without PSE the bit means nothing: a table.
    let small = Registers { cr4: 0, ..registers };
    let memory = Memory::with(&[
        (0x1000 + 4 * 0x203, 0x2000 | LARGE | ALL),
        (0x2000 + 4 * 5, 0x9000 | ALL),
    ]);
    let found = walk(&memory, &paging(small), gva, ErrorCode::empty()).unwrap();
    assert_eq!((found.gpa, found.leaf), (Gpa::new(0x9678), 1));
}

// REQ: SP-2, EM-1
#[test]
fn pae_walks_start_at_the_pdptes_that_were_loaded() {
    let registers = Registers {
        cr0: CR0_PE | CR0_PG,
        cr3: 0x1000,
        cr4: CR4_PAE,
        efer: 0,
    };
    let pdptes = [0, 0x2000 | PRESENT, 0, 0];
    let paging = Paging::new(&registers, &pdptes, &CPU);
    let memory = Memory::with(&[(0x2000 + 8, 0x60_0000 | ALL | LARGE)]);
    let found = walk(&memory, &paging, 0x4020_0abc, ErrorCode::empty()).unwrap();
    assert_eq!((found.gpa, found.leaf), (Gpa::new(0x60_0abc), 2));
    assert_eq!(code_of(walk(&memory, &paging, 0xc000_0000, ErrorCode::U)), ErrorCode::U);
    // Bits 52 to 62 are reserved here, and ignored in long mode.
    let memory = Memory::with(&[(0x2000 + 8, 0x60_0000 | ALL | LARGE | 1 << 52)]);
    assert!(code_of(walk(&memory, &paging, 0x4020_0000, ErrorCode::empty())).contains(ErrorCode::RSVD));
    assert_eq!(pdpte_reserved(PRESENT | WRITE, &CPU), WRITE);
    assert_eq!(pdpte_reserved(PRESENT | 1 << 40, &CPU), 1 << 40);
    assert_eq!(pdpte_reserved(WRITE, &CPU), 0);
}

// REQ: SP-2
#[test]
fn five_levels_and_pages_of_1g() {
    let five = Registers {
        cr4: CR4_PAE | CR4_LA57,
        ..LONG
    };
    let gva = 3 << 48 | 1 << 30 | 0x1234_5678;
    let memory = Memory::with(&[
        (0x1000 + 8 * 3, 0x2000 | ALL),
        (0x2000, 0x3000 | ALL),
        (0x3000 + 8, 0x1_c000_0000 | ALL | LARGE),
    ]);
    let found = walk(&memory, &paging(five), gva, ErrorCode::empty()).unwrap();
    assert_eq!((found.gpa, found.leaf, found.top), (Gpa::new(0x1_d234_5678), 3, 5));
    assert_eq!(
        (
            found.table(3, &paging(five).format),
            found.table(5, &paging(five).format)
        ),
        (Gfn::new(3), Gfn::new(1))
    );
}

// REQ: EM-1
#[test]
fn registers_refuse_what_the_processor_refuses_and_tell_when_pdptes_load() {
    let off = Registers { cr0: CR0_PE, ..LONG };
    assert_eq!(LONG.mode(), GuestMode::FourLevel);
    assert_eq!(
        LONG.with_cr4(0, &CPU),
        Err(GeneralProtection),
        "PAE is needed in long mode"
    );
    assert_eq!(LONG.with_cr4(CR4_PAE | CR4_LA57, &CPU), Err(GeneralProtection));
    assert_eq!(
        LONG.with_efer(EFER_NXE, &CPU),
        Err(GeneralProtection),
        "LME is fixed while paging"
    );
    assert_eq!(LONG.with_cr0(CR0_PG, &CPU), Err(GeneralProtection), "PG needs PE");
    let off = off.with_cr0(CR0_PE, &CPU).unwrap();
    assert_eq!((off.mode(), off.efer & EFER_LMA), (GuestMode::None, 0));
    assert_eq!(
        off.with_cr0(CR0_PE | CR0_PG, &CPU).map(|r| r.mode()),
        Ok(GuestMode::FourLevel)
    );
    let pae = Registers { efer: 0, ..off }.with_cr0(CR0_PE | CR0_PG, &CPU).unwrap();
    assert_eq!(pae.mode(), GuestMode::Pae);
    assert!(pae.loads_pdptes(&off));
    assert!(!pae.loads_pdptes(&pae));
    assert!(pae.with_cr4(CR4_PAE | CR4_PGE, &CPU).unwrap().loads_pdptes(&pae));
    assert!(!pae.with_cr0(pae.cr0 | CR0_WP, &CPU).unwrap().loads_pdptes(&pae));
}
