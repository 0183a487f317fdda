// SPDX-License-Identifier: MIT OR Apache-2.0
//! Does a guest on shadow tables see what a processor would show it? One mechanism after the other.

use super::machine::*;
use crate::fault::ErrorCode;
use crate::role::Role;
use crate::shadow::registers::*;
use crate::sim::paging::Privilege;
use crate::stage2::GpteSize;
use umbra_mmu_abi::{Access, Gfn, SlotFlags, Stat};

const XD: u64 = 1 << 63;

/// The guest's address of the entry that maps `gva` in [`identity`]'s page table.
fn pte(gva: u64) -> u64 {
    0x4000 + 8 * (gva >> 12)
}

// REQ: SP-2, PF-1 (c), PF-1 (g)
#[test]
fn a_four_level_guest_reads_and_writes() {
    let mut machine = Machine::new(1, LONG);
    identity(&machine, ALL);
    machine.poke(0x10_0008, 0x1234);
    assert_eq!(machine.read(0, 0x10_0008), Seen::Value(0x1234));
    assert_eq!(machine.write(0, 0x10_0010, 77), Seen::Value(77));
    assert_eq!(machine.peek(0x10_0010, GpteSize::B8), 77);
    machine.audit();
}

// REQ: PF-1 (d), PF-5
#[test]
fn faults_that_the_guests_tables_explain_are_the_guests() {
    let mut machine = Machine::new(1, LONG);
    identity(&machine, ALL);
    machine.poke(pte(0x10_0000), 0);
    machine.poke(pte(0x10_1000), 0x10_1000 | P);
    machine.poke(pte(0x10_2000), 0x10_2000 | P | U | XD);
    let (p, w, u, i) = (ErrorCode::P, ErrorCode::W, ErrorCode::U, ErrorCode::I);
    assert_eq!(machine.user(0, 0x10_0000, Access::Write), Seen::Fault(u | w));
    assert_eq!(machine.user(0, 0x10_1000, Access::Read), Seen::Fault(p | u));
    assert_eq!(machine.user(0, 0x10_2000, Access::Fetch), Seen::Fault(p | u | i));
    assert_eq!(machine.write(0, 0x10_2000, 1), Seen::Fault(p | w));
    assert_eq!(machine.read(0, 0x10_1000), Seen::Value(0));
}

// REQ: PF-2: a read does not set D, and the write after it is seen.
#[test]
fn the_first_write_sets_dirty_after_a_read_has_mapped_the_page() {
    let mut machine = Machine::new(1, LONG);
    identity(&machine, ALL);
    machine.read(0, 0x10_0000);
    assert_eq!(machine.peek(pte(0x10_0000), GpteSize::B8) & (A | D), A);
    machine.write(0, 0x10_0000, 1);
    assert_eq!(machine.peek(pte(0x10_0000), GpteSize::B8) & (A | D), A | D);
    machine.audit();
}

// REQ: PF-2: prefetched sptes never hide a first access.
#[test]
fn neighbours_are_prefetched_only_if_the_guest_has_used_them() {
    let mut machine = Machine::new(1, LONG);
    identity(&machine, ALL);
    for page in 1..4 {
        machine.poke(pte(0x10_0000) + 8 * page, (0x100 + page) << 12 | ALL | A);
    }
    machine.read(0, 0x10_0000);
    let faults = machine.faults;
    for page in 1..4 {
        assert_eq!(machine.read(0, 0x10_0000 + page * 4096), Seen::Value(0));
    }
    assert_eq!(machine.faults, faults, "three faults saved");
    machine.read(0, 0x10_4000);
    assert_eq!(machine.faults, faults + 1);
    assert_eq!(machine.peek(pte(0x10_4000), GpteSize::B8) & A, A);
    // Clean pages were prefetched read-only.
    machine.write(0, 0x10_1000, 1);
    assert_eq!(machine.peek(pte(0x10_1000), GpteSize::B8) & D, D);
}

// REQ: SP-6, SP-7: leaf tables become unsync: writes do not fault any more, and are seen after a flush.
#[test]
fn a_leaf_table_is_written_freely_and_followed_at_the_flush() {
    let mut machine = Machine::new(1, LONG);
    identity(&machine, ALL);
    machine.poke(0x20_0000 - 0x1000, 1);
    machine.poke(0x10_5000, 5);
    machine.read(0, 0x10_0000);
    // The page table, at 0x4000, is mapped by itself.
    assert_eq!(
        machine.write(0, pte(0x10_0000), 0x10_5000 | ALL | A),
        Seen::Value(0x10_5000 | ALL | A)
    );
    let faults = machine.faults;
    machine.write(0, pte(0x10_1000), 0x10_5000 | ALL | A);
    machine.write(0, pte(0x10_2000), 0x10_5000 | ALL | A);
    assert_eq!(
        (machine.faults, machine.emulated),
        (faults, 0),
        "no write is intercepted"
    );
    machine.audit();
    machine.invlpg(0, 0x10_0000);
    assert_eq!(machine.read(0, 0x10_0000), Seen::Value(5), "that address catches up");
    machine.write(0, pte(0x10_0000), 0);
    machine.load_cr3(0, 0x1000);
    assert_eq!(machine.read(0, 0x10_0000), Seen::Fault(ErrorCode::empty()));
    machine.audit();
    let faults = machine.faults;
    machine.write(0, pte(0x10_3000), 0x10_5000 | ALL | A);
    assert_eq!(
        machine.faults,
        faults + 1,
        "after the flush it is synchronised, and read-only, again"
    );
}

// REQ: SP-7: an unsync page gets another role, here by cr0.wp.
#[test]
fn another_role_of_an_unsync_table_is_up_to_date() {
    let mut machine = Machine::new(1, LONG);
    identity(&machine, ALL);
    machine.poke(0x10_5000, 5);
    machine.read(0, 0x10_0000);
    machine.write(0, pte(0x10_0000), 0x10_5000 | ALL | A);
    machine
        .mmu
        .write_cr0(&mut machine.vcpus[0].0, LONG.cr0 & !CR0_WP)
        .unwrap();
    assert_eq!(machine.read(0, 0x10_0000), Seen::Value(5));
    machine.audit();
    machine.mmu.write_cr0(&mut machine.vcpus[0].0, LONG.cr0).unwrap();
    assert_eq!(machine.read(0, 0x10_0000), Seen::Value(5));
    machine.audit();
}

// REQ: SP-6, SP-7: another vCPU's flush does not make this one's TLB older or newer than its own flush does.
#[test]
fn two_vcpus_share_shadow_pages_and_flush_by_themselves() {
    let mut machine = Machine::new(2, LONG);
    identity(&machine, ALL);
    machine.poke(0x10_5000, 5);
    machine.poke(0x10_6000, 6);
    for vcpu in 0..2 {
        machine.read(vcpu, 0x10_0000);
    }
    let pages = machine.pages();
    machine.write(0, pte(0x10_0000), 0x10_5000 | ALL | A);
    machine.invlpg(0, 0x10_0000);
    machine.invlpg(1, 0x10_0000);
    assert_eq!(machine.read(0, 0x10_0000), Seen::Value(5));
    assert_eq!(machine.read(1, 0x10_0000), Seen::Value(5));
    assert_eq!(machine.pages(), pages);
    machine.audit();
}

// REQ: SP-8: upper tables stay synchronised: a write is emulated, and its spte goes at once.
#[test]
fn a_write_to_an_upper_table_is_emulated_and_followed() {
    let mut machine = Machine::new(1, LONG);
    identity(&machine, ALL);
    machine.read(0, 0x10_0000);
    // Another page table at 0x5000.
    machine.poke(0x5000 + 8 * 0x100, 0x10_5000 | ALL);
    machine.poke(0x10_5000, 5);
    assert_eq!(machine.write(0, 0x3000 + 8, 0x5000 | ALL), Seen::Value(0x5000 | ALL));
    assert_eq!(machine.emulated, 1);
    assert_eq!(machine.read(0, 0x20_0000 + 0x10_0000), Seen::Value(5));
    assert_eq!(machine.write(0, 0x3000 + 8, 0), Seen::Value(0));
    machine.invlpg(0, 0x30_0000);
    assert_eq!(machine.read(0, 0x30_0000), Seen::Fault(ErrorCode::empty()));
    machine.audit();
}

// REQ: SP-9
#[test]
fn a_table_that_is_flooded_with_writes_is_unmapped() {
    let mut machine = Machine::new(1, LONG);
    identity(&machine, ALL);
    machine.poke(0x2000 + 8, 0x6000 | ALL);
    machine.poke(0x6000, 0x5000 | ALL);
    machine.poke(0x5000, 0x10_5000 | ALL);
    machine.read(0, 1 << 30);
    let shadowed = |machine: &Machine, gfn| machine.shadowed(Gfn::new(gfn));
    assert!(shadowed(&machine, 6));
    let mut emulated = 0;
    for i in 0..16 {
        machine.write(0, 0x6008 + 8 * i, 0);
        emulated = machine.emulated;
    }
    assert!(
        (3..8).contains(&emulated),
        "{emulated} writes were emulated before the page went"
    );
    assert!(!shadowed(&machine, 6));
    assert_eq!(
        machine.read(0, 1 << 30),
        Seen::Value(0),
        "and it comes back when it is used"
    );
    machine.audit();
}

// REQ: SP-9
#[test]
fn a_write_that_no_entry_looks_like_unmaps_the_page_at_once() {
    let mut machine = Machine::new(1, LONG);
    identity(&machine, ALL);
    machine.read(0, 0);
    assert!(machine.shadowed(Gfn::new(3)));
    machine.device_write(0, 0x3ffc, &[0; 2]);
    assert!(!machine.shadowed(Gfn::new(3)));
    machine.audit();
}

// REQ: PF-4
#[test]
fn without_wp_the_supervisor_writes_and_the_user_reads() {
    for cr4 in [0, CR4_SMEP] {
        let mut machine = Machine::new(
            1,
            Registers {
                cr0: LONG.cr0 & !CR0_WP,
                cr4: LONG.cr4 | cr4,
                ..LONG
            },
        );
        identity(&machine, P | U);
        for _ in 0..2 {
            assert_eq!(machine.write(0, 0x10_0000, 9), Seen::Value(9), "u=0, w=1");
            assert_eq!(machine.user(0, 0x10_0000, Access::Read), Seen::Value(9), "u=1, w=0");
            machine.audit();
            assert_eq!(
                machine.user(0, 0x10_0000, Access::Write),
                Seen::Fault(ErrorCode::P | ErrorCode::W | ErrorCode::U)
            );
            machine.write(0, 0x10_0000, 9);
            assert_eq!(machine.user(0, 0x10_0000, Access::Fetch), Seen::Value(9));
            machine.write(0, 0x10_0000, 9);
            // Now the page looks like the supervisor's.
            let fetch = machine.access(0, 0x10_0000, Access::Fetch, Privilege::Supervisor, (GpteSize::B8, 0));
            match cr4 {
                0 => assert_eq!(fetch, Seen::Value(9)),
                _ => assert_eq!(fetch, Seen::Fault(ErrorCode::P | ErrorCode::I)),
            }
        }
    }
}

// REQ: PF-4: a page that was given to the supervisor is no way around SMAP.
#[test]
fn without_wp_smap_still_binds_the_supervisor() {
    let mut machine = Machine::new(
        1,
        Registers {
            cr0: LONG.cr0 & !CR0_WP,
            cr4: LONG.cr4 | CR4_SMAP,
            ..LONG
        },
    );
    identity(&machine, P | U);
    let access = |machine: &mut Machine, kind, who| machine.access(0, 0x10_0000, kind, who, (GpteSize::B8, 9));
    assert_eq!(
        access(&mut machine, Access::Write, Privilege::SupervisorAc),
        Seen::Value(9)
    );
    assert_eq!(machine.peek(0x10_0000, GpteSize::B8), 9);
    let (p, w) = (ErrorCode::P, ErrorCode::W);
    assert_eq!(
        access(&mut machine, Access::Write, Privilege::Supervisor),
        Seen::Fault(p | w)
    );
    assert_eq!(
        access(&mut machine, Access::Read, Privilege::Supervisor),
        Seen::Fault(p)
    );
    assert_eq!(
        access(&mut machine, Access::Read, Privilege::SupervisorAc),
        Seen::Value(9)
    );
    machine.audit();
}

// REQ: SP-1: what one role may, another may not.
#[test]
fn sptes_of_one_role_are_not_found_in_another() {
    let mut machine = Machine::new(2, LONG);
    identity(&machine, P | U);
    machine
        .mmu
        .write_cr0(&mut machine.vcpus[0].0, LONG.cr0 & !CR0_WP)
        .unwrap();
    assert_eq!(machine.write(0, 0x10_0000, 9), Seen::Value(9));
    assert_eq!(machine.write(1, 0x10_0000, 8), Seen::Fault(ErrorCode::P | ErrorCode::W));
    machine.mmu.write_cr0(&mut machine.vcpus[0].0, LONG.cr0).unwrap();
    assert_eq!(machine.write(0, 0x10_0000, 8), Seen::Fault(ErrorCode::P | ErrorCode::W));
    // NX means nothing, or is reserved, without efer.nxe.
    machine.load_cr3(0, 0x1000);
    machine.device_write(0, pte(0x10_1000), &(0x10_1000 | ALL | XD).to_le_bytes());
    assert_eq!(machine.read(0, 0x10_1000), Seen::Value(0));
    machine
        .mmu
        .write_efer(&mut machine.vcpus[0].0, LONG.efer & !EFER_NXE)
        .unwrap();
    assert_eq!(machine.read(0, 0x10_1000), Seen::Fault(ErrorCode::P | ErrorCode::RSVD));
    machine.audit();
}

// REQ: LP-1, LP-2
#[test]
fn large_guest_pages_are_mapped_as_large_as_all_allow() {
    let mut machine = Machine::new(1, LONG);
    identity(&machine, ALL);
    // 2M at 4M, of 2M in the host; and one that the host has only in 4K.
    machine.poke(0x3000 + 8, 0x40_0000 | ALL | PS);
    machine.poke(0x40_5678, 0x77);
    assert_eq!(machine.read(0, 0x20_5678), Seen::Value(0x77));
    assert_eq!(machine.mmu.stat(Stat::Mapped2M), 1);
    let faults = machine.faults;
    assert_eq!(machine.read(0, 0x3f_f000), Seen::Value(0));
    assert_eq!(machine.faults, faults);
    machine.audit();
    // A table in it ends that: its frame is read-only now, in pages of 4K.
    machine.device_write(0, 0x2000 + 16, &(0x40_0000 | ALL).to_le_bytes());
    machine.device_write(0, 0x40_0000, &(0x40_1000 | ALL).to_le_bytes());
    machine.device_write(0, 0x40_1000, &(0x10_0000 | ALL).to_le_bytes());
    assert_eq!(machine.read(0, 2 << 30), Seen::Value(0));
    assert_eq!(machine.write(0, 0x20_5678, 0x78), Seen::Value(0x78));
    assert_eq!(machine.mmu.stat(Stat::Mapped2M), 0);
    machine.write(0, 0x20_0000, 0);
    assert_eq!(machine.emulated, 1, "the table of 1G is written through the large page");
    assert_eq!(machine.read(0, 2 << 30), Seen::Fault(ErrorCode::empty()));
    machine.audit();
}

// REQ: LP-1: a page of 1G on a host of 2M.
#[test]
fn a_page_of_1g_is_split_by_direct_pages() {
    let mut machine = Machine::new(1, LONG);
    identity(&machine, ALL);
    machine.poke(0x2000 + 8, ALL | PS);
    machine.poke(0x60_0008, 6);
    assert_eq!(machine.read(0, 0x4060_0008), Seen::Value(6));
    assert_eq!(machine.mmu.stat(Stat::Mapped2M), 1);
    assert_eq!(machine.read(0, 0x7fff_f000), Seen::Mmio(Gfn::new(0x3_ffff)));
    machine.audit();
}

// REQ: LP-1: 4M pages as two of 2M.
#[test]
fn a_page_of_4m_is_two_of_2m() {
    let mut machine = Machine::new(1, TWO_LEVEL);
    machine.poke_sized(0x1000, GpteSize::B4, 0x80_0000 | ALL | PS);
    machine.poke_sized(0x1004, GpteSize::B4, 0x2000 | ALL);
    machine.poke_sized(0x2ffc, GpteSize::B4, 0x9000 | ALL);
    machine.poke(0x80_0010, 1);
    machine.poke(0xa0_0010, 2);
    machine.poke(0x9000, 3);
    assert_eq!(machine.read(0, 0x10), Seen::Value(1));
    assert_eq!(machine.mmu.stat(Stat::Mapped2M), 1);
    assert_eq!(machine.read(0, 0x20_0010), Seen::Value(2));
    assert_eq!(machine.mmu.stat(Stat::Mapped2M), 2);
    assert_eq!(
        machine.read(0, 0x7f_f000),
        Seen::Value(3),
        "the second half of a page table"
    );
    // Both sptes of the entry go.
    machine.device_write(0, 0x1000, &0u32.to_le_bytes());
    assert_eq!(machine.mmu.stat(Stat::Mapped2M), 0);
    machine.audit();
}

// REQ: GEN-1, PF-1 (a), PF-1 (f): the second access is answered from the spte.
#[test]
fn devices_are_found_by_reserved_bits() {
    let mut machine = Machine::new(1, LONG);
    identity(&machine, ALL);
    machine.poke(pte(0x10_0000), 0xfee0_0000 | ALL);
    machine.poke(pte(0x10_1000), 0xfee0_1000 | P | A);
    assert_eq!(machine.read(0, 0x10_0000), Seen::Mmio(Gfn::new(0xfee00)));
    let fault = machine.step(0, 0x10_0000, Access::Read, Privilege::Supervisor, (GpteSize::B8, 0));
    assert_eq!(fault, Err((0x10_0000, ErrorCode::P | ErrorCode::RSVD)));
    assert_eq!(machine.read(0, 0x10_0000), Seen::Mmio(Gfn::new(0xfee00)));
    // What the guest's entries forbid is its own fault all the same, and D is set before a write.
    assert_eq!(machine.read(0, 0x10_1000), Seen::Mmio(Gfn::new(0xfee01)));
    let (p, w, u) = (ErrorCode::P, ErrorCode::W, ErrorCode::U);
    assert_eq!(machine.user(0, 0x10_1000, Access::Read), Seen::Fault(p | u));
    assert_eq!(machine.write(0, 0x10_1000, 1), Seen::Fault(p | w));
    assert_eq!(machine.peek(pte(0x10_0000), GpteSize::B8) & D, 0);
    assert_eq!(machine.write(0, 0x10_0000, 1), Seen::Mmio(Gfn::new(0xfee00)));
    assert_eq!(machine.peek(pte(0x10_0000), GpteSize::B8) & D, D);
    machine.audit();
    // A slot comes: what was cached is stale by its generation.
    machine.slot(3, Gfn::new(0xfee00), 4, 1, SlotFlags::READONLY);
    assert_eq!(machine.read(0, 0x10_0000), Seen::Value(0));
    machine.audit();
}

// REQ: GEN-7
#[test]
fn a_remembered_device_is_forgotten_with_the_translation() {
    let mut machine = Machine::new(1, LONG);
    identity(&machine, ALL);
    machine.poke(pte(0x10_0000), 0xfee0_0000 | ALL | A | D);
    for _ in 0..3 {
        assert_eq!(machine.read(0, 0x10_0000), Seen::Mmio(Gfn::new(0xfee00)));
    }
    machine.write(0, pte(0x10_0000), 0xfee0_3000 | ALL | A | D);
    machine.invlpg(0, 0x10_0000);
    assert_eq!(machine.read(0, 0x10_0000), Seen::Mmio(Gfn::new(0xfee03)));
    machine.write(0, pte(0x10_0000), 0x10_0000 | ALL | A | D);
    machine.load_cr3(0, 0x1000);
    assert_eq!(machine.read(0, 0x10_0000), Seen::Value(0));
}

// REQ: GEN-5, GEN-8, MEM-7: slots come and go, through a wrap of the generation, around a running guest.
#[test]
fn slot_changes_take_their_sptes_and_shadow_pages_along() {
    let mut machine = Machine::new(2, LONG);
    identity(&machine, ALL);
    // A page table in memory that will go.
    machine.poke(0x3000 + 8, 0x200_0000 | ALL);
    machine.poke(pte(0x10_0000), ROM.gpa().raw() | ALL);
    for round in 0..6 {
        assert_eq!(machine.read(0, 0x10_0000), Seen::Value(0), "round {round}");
        assert_eq!(machine.read(1, 0x20_0000), Seen::Fault(ErrorCode::empty()));
        assert!(matches!(machine.write(0, 0x10_0000, 1), Seen::ReadOnly(ROM)));
        machine.remove_slot(1, ROM, 1);
        machine.audit();
        assert_eq!(machine.read(0, 0x10_0000), Seen::Mmio(ROM));
        // No memory for the table: all ones.
        assert_eq!(machine.read(1, 0x20_0000), Seen::Fault(ErrorCode::P | ErrorCode::RSVD));
        machine.slot(1, ROM, 64, 1, SlotFlags::READONLY);
    }
    assert!(machine.mmu.stat(Stat::GenerationWraps) > 0);
    machine.audit();
}

// REQ: SP-5, ZAP-1, ZAP-2: roots that vCPUs use outlive a zap, as empty tables, until they are reloaded.
#[test]
fn zap_all_makes_new_roots_and_frees_the_old_ones_later() {
    let mut machine = Machine::new(2, LONG);
    identity(&machine, ALL);
    for vcpu in 0..2 {
        machine.read(vcpu, 0x10_0000);
    }
    let pages = machine.pages();
    machine.mmu.zap_all();
    assert_eq!(machine.read(0, 0x10_0000), Seen::Value(0));
    assert_eq!(machine.pages(), 2 * pages, "nothing old is found");
    machine.audit();
    while machine.mmu.has_background_work() {
        machine.mmu.background();
    }
    assert_eq!(machine.pages(), pages + 1, "the other vCPU's root stays");
    machine.audit();
    machine.read(1, 0x10_0000);
    assert_eq!(machine.pages(), pages);
    machine.audit();
}

// REQ: ZAP-2: a batch is bounded.
#[test]
fn a_background_batch_frees_some_pages_only() {
    let mut machine = Machine::new(1, LONG);
    identity(&machine, ALL);
    for region in 0..40 {
        machine.poke(0x2000 + 8 * (1 + region), 0x3000 | P | W | (region & 1) << 2);
        machine.poke(0x1000 + 8 * (1 + region), 0x2000 | P | W | (region & 1) << 2);
        machine.read(0, (1 + region) << 39);
    }
    machine.mmu.zap_all();
    machine.read(0, 0);
    let before = machine.pages();
    machine.mmu.background();
    let freed = before - machine.pages();
    assert!((1..=crate::zap::ZAP_PAGES).contains(&freed), "{freed} of {before}");
    machine.audit();
}

// REQ: SP-11: the least recently used page goes first; a fault never fails for want of tables.
#[test]
fn a_guest_with_more_tables_than_there_is_room_for_runs() {
    let mut machine = Machine::new(1, LONG);
    identity(&machine, ALL);
    // 400 page tables at 0x100.., each with one page.
    for i in 0..400u64 {
        let table = 0x10_0000 + i * 0x1000;
        machine.poke(0x6000 + 8 * i, table | ALL);
        machine.poke(table, 0x8000 | ALL);
    }
    machine.poke(0x2000 + 8, 0x6000 | ALL);
    for round in 0..2 {
        for i in 0..400 {
            assert_eq!(machine.read(0, (1 << 30) + (i << 21)), Seen::Value(0), "round {round}");
        }
        machine.audit();
    }
    // The last ones are still there.
    let faults = machine.faults;
    for i in 300..400 {
        machine.read(0, (1 << 30) + (i << 21));
    }
    assert_eq!(machine.faults, faults);
    // A lower limit takes effect at once.
    machine.mmu.set_shadow_page_limit(32);
    assert!(machine.pages() <= 32);
    machine.audit();
    machine.read(0, 1 << 30);
    machine.audit();
}

// REQ: SP-4, SP-11: chains of the reverse map run out, and old pages go for them.
#[test]
fn a_frame_that_is_mapped_more_often_than_there_are_entries_is_no_failure() {
    let limits = crate::Limits {
        tables: 256,
        rmap_entries: 128,
        ..crate::Limits::default()
    };
    let mut machine = Machine::with_limits(1, LONG, &limits);
    identity(&machine, ALL);
    machine.poke(0x2000 + 8, 0x6000 | ALL);
    for i in 0..200u64 {
        let table = 0x10_0000 + i * 0x1000;
        machine.poke(0x6000 + 8 * i, table | ALL);
        machine.poke(table, 0x8000 | ALL);
    }
    for i in 0..200 {
        assert_eq!(machine.read(0, (1 << 30) + (i << 21)), Seen::Value(0));
    }
    machine.audit();
}

// REQ: SP-3
#[test]
fn direct_pages_have_no_array_of_gfns() {
    let mut machine = Machine::new(
        1,
        Registers {
            cr0: CR0_PE,
            ..Registers::default()
        },
    );
    assert_eq!(machine.read(0, 0x10_0000), Seen::Value(0));
    assert_eq!(machine.read(0, 0xfee0_0000), Seen::Mmio(Gfn::new(0xfee00)));
    assert!(machine.pages() >= 5);
    assert_eq!(machine.gfn_arrays(), 0);
    machine.audit();
}

// REQ: EM-1, SP-2
#[test]
fn a_guest_turns_paging_on_and_off() {
    let mut machine = Machine::new(
        1,
        Registers {
            cr0: CR0_PE,
            ..Registers::default()
        },
    );
    identity(&machine, ALL);
    machine.poke(pte(0x10_0000), 0x10_1000 | ALL);
    machine.poke(0x10_1000, 7);
    assert_eq!(machine.read(0, 0x10_0000), Seen::Value(0));
    let vcpu = |machine: &mut Machine, act: fn(&crate::Mmu<_>, &mut crate::vcpu::Vcpu)| {
        act(&machine.mmu, &mut machine.vcpus[0].0)
    };
    vcpu(&mut machine, |mmu, vcpu| mmu.write_cr3(vcpu, 0x1000).unwrap());
    vcpu(&mut machine, |mmu, vcpu| mmu.write_cr4(vcpu, CR4_PAE).unwrap());
    vcpu(&mut machine, |mmu, vcpu| mmu.write_efer(vcpu, EFER_LME).unwrap());
    vcpu(&mut machine, |mmu, vcpu| mmu.write_cr0(vcpu, CR0_PE | CR0_PG).unwrap());
    assert_eq!(machine.read(0, 0x10_0000), Seen::Value(7));
    vcpu(&mut machine, |mmu, vcpu| mmu.write_cr0(vcpu, CR0_PE).unwrap());
    assert_eq!(machine.read(0, 0x10_0000), Seen::Value(0));
    machine.audit();
}

// REQ: EM-1
#[test]
fn pdptes_are_loaded_with_cr3_and_not_before() {
    let mut machine = Machine::new(
        1,
        Registers {
            cr0: CR0_PE,
            cr4: CR4_PAE,
            ..Registers::default()
        },
    );
    machine.poke(0x1020, 0x2000 | P);
    machine.poke(0x2000, 0x3000 | ALL);
    machine.poke(0x3000 + 8, 0x9000 | ALL);
    machine.poke(0x9000, 9);
    let vcpu = &mut machine.vcpus[0].0;
    machine.mmu.write_cr3(vcpu, 0x1020).unwrap();
    machine.mmu.write_cr0(vcpu, CR0_PE | CR0_PG).unwrap();
    assert_eq!(machine.read(0, 0x1000), Seen::Value(9));
    // A write to the table of pdptes changes nothing until the next load.
    machine.device_write(0, 0x1020, &0u64.to_le_bytes());
    assert_eq!(machine.read(0, 0x1000), Seen::Value(9));
    machine.load_cr3(0, 0x1020);
    assert_eq!(machine.read(0, 0x1000), Seen::Fault(ErrorCode::empty()));
    machine.device_write(0, 0x1020, &(P | W).to_le_bytes());
    let refused = machine.mmu.write_cr3(&mut machine.vcpus[0].0, 0x1020);
    assert_eq!(refused, Err(crate::shadow::roots::NotLoaded::GeneralProtection));
    machine.audit();
}

// REQ: SP-10: words of sptes are single atomics: tables hold nothing that two accesses make up.
#[test]
fn an_spte_is_one_atomic_word() {
    assert_eq!(size_of::<crate::spte::Spte>(), 8);
    assert_eq!(align_of::<crate::sync::atomic::AtomicU64>(), 8);
    assert_eq!(size_of::<Role>(), 4);
}
