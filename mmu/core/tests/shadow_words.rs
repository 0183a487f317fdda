// SPDX-License-Identifier: MIT OR Apache-2.0
//! Does the dirty log lose W of every spte, and nothing else, where the tables of shadow mode lie in a row?

use umbra_mmu_abi::{Backing, BackingId, Generation, Gfn, SlotFlags, SlotId, Stat};
use umbra_mmu_core::fault::{ErrorCode, Fault, Outcome};
use umbra_mmu_core::null::NullStage2;
use umbra_mmu_core::shadow::registers::{CR0_PE, Registers};
use umbra_mmu_core::spte::ShadowLayout;
use umbra_mmu_core::stage2::{BackingShape, NoRam};
use umbra_mmu_core::table::HeapWords;
use umbra_mmu_core::{Limits, Mmu, Mode};

const PAGES: u32 = 700;
const BASE: u64 = 0x1000;

// REQ: DT-1, SP-12: a guest without paging, whose pages are of 4K because they are not aligned; two of three are mapped.
#[test]
fn the_log_takes_w_from_every_spte_and_gives_it_back() {
    let limits = Limits {
        tables: 32,
        rmap_entries: 64,
        first_generation: Generation(0),
    };
    let layout = ShadowLayout {
        backing_shift: 24,
        tables_base: 1 << 24,
        maxphyaddr: 46,
    };
    let shape = BackingShape {
        small_head: PAGES + 1,
        large: 0,
        small_tail: 0,
    };
    let words = HeapWords::new(limits.tables).unwrap();
    let mode = Mode::Shadow(layout);
    let mmu = Mmu::with_ram(NullStage2::default(), NoRam, words, mode, vec![shape], &limits).unwrap();
    let (id, first_page) = (BackingId(0), 1);
    let slot = |flags| {
        mmu.set_slot(SlotId(3), Gfn::new(BASE), PAGES, Backing { id, first_page }, flags)
            .unwrap()
    };
    slot(SlotFlags::empty());
    let mut vcpu = mmu.add_vcpu().unwrap();
    let registers = Registers {
        cr0: CR0_PE,
        cr3: 0,
        cr4: 0,
        efer: 0,
    };
    mmu.restore_registers(&mut vcpu, registers).unwrap();
    mmu.enter(&mut vcpu).unwrap();
    let mut write = |page: u32, code| {
        let address = (BASE + u64::from(page)) << 12;
        let outcome = mmu.fault(&mut vcpu, &Fault { address, code });
        assert_eq!(outcome, Ok(Outcome::Resume), "page {page}");
    };
    (0..PAGES)
        .filter(|page| page % 3 != 0)
        .for_each(|page| write(page, ErrorCode::W));
    let mapped = mmu.stat(Stat::Mapped4K);
    slot(SlotFlags::LOG_DIRTY);
    let mut log = vec![0; PAGES.div_ceil(64) as usize];
    assert_eq!(mmu.get_and_clear_log(SlotId(3), 0, &mut log), Ok(0));
    for page in (0..PAGES).filter(|page| page % 5 == 1 && page % 3 != 0) {
        write(page, ErrorCode::W | ErrorCode::P);
        // It was there, without W.
        assert_eq!(mmu.stat(Stat::Mapped4K), mapped);
    }
    mmu.get_and_clear_log(SlotId(3), 0, &mut log).unwrap();
    for page in 0..PAGES {
        let logged = log[page as usize / 64] >> (page % 64) & 1 != 0;
        assert_eq!(logged, page % 5 == 1 && page % 3 != 0, "page {page}");
    }
    // Taking the log has taken W again.
    write(1, ErrorCode::W | ErrorCode::P);
    assert_eq!(mmu.get_and_clear_log(SlotId(3), 0, &mut log), Ok(1));
    let audit = mmu.audit();
    assert!(audit.first.is_none(), "{audit:?}");
}
