// SPDX-License-Identifier: MIT OR Apache-2.0
//! What do the small steps of shadow paging promise, each by itself? Steps between which others may run are made by hand.

use super::machine::*;
use crate::fault::ErrorCode;
use crate::host::HostView;
use crate::locks::Held;
use crate::shadow::fetch::{Fetched, Target, Wish};
use crate::shadow::memory::GuestMemory;
use crate::shadow::registers::Registers;
use crate::shadow::walk::walk;
use crate::stage2::{Frame, GpteSize};
use umbra_mmu_abi::{Access, BackingId, Gfn, SlotFlags, SlotId};

/// The guest's address of the entry that maps `gva` in [`identity`]'s page table.
fn pte(gva: u64) -> u64 {
    0x4000 + 8 * (gva >> 12)
}

/// A frame without memory.
const DEVICE: u64 = 0xfee0_0000;
const PAGE: u64 = 0x10_0000;

fn machine() -> Machine {
    let machine = Machine::new(1, LONG);
    identity(&machine, ALL);
    machine
}

/// Logs writes to the guest's memory.
fn log(machine: &Machine) {
    machine.slot(0, Gfn::new(0), PAGES, 0, SlotFlags::LOG_DIRTY);
}

/// The pages that were written since the log was last taken.
fn logged(machine: &Machine) -> std::vec::Vec<u64> {
    let mut words = [0; PAGES as usize / 64];
    machine.mmu.get_and_clear_log(SlotId(0), 0, &mut words).unwrap();
    let pages = (0..PAGES as u64).filter(|page| words[*page as usize / 64] >> (page % 64) & 1 != 0);
    pages.collect()
}

// REQ: PF-2: an entry that another vCPU has changed since it was walked makes no spte.
#[test]
fn an_entry_is_read_again_before_an_spte_is_made_of_it() {
    let mut machine = machine();
    machine.read(0, PAGE);
    let gva = PAGE + 0x20_0000;
    machine.poke(0x3008, 0x5000 | ALL);
    machine.poke(0x5000 + 8 * 0x100, PAGE | ALL);
    let Machine { mmu, vcpus, memory, .. } = &mut machine;
    let vcpu = &mut vcpus[0].0;
    let (paging, root) = (vcpu.paging().paging, vcpu.paging().root(gva).unwrap());
    let mut held = Held::entry();
    let mut section = mmu.slots.read(&mut held);
    let (slots, held) = section.split();
    let seen = walk(&GuestMemory::new(mmu, slots), &paging, gva, ErrorCode::empty()).unwrap();
    let slot = slots.lookup(seen.gfn).unwrap();
    let HostView::Page(host) = mmu.host().page(slot.frame_of(seen.gfn)) else {
        panic!("all memory is there")
    };
    let frame = Frame::new(BackingId(0), 5).unwrap();
    let mut fetch = || {
        mmu.with_shadow(slots, held, &mut vcpu.reserve, |shadow| {
            assert!(shadow.make_room());
            shadow.fetch(&paging, root, gva, &seen, Target::Page(slot, host), Wish::Read)
        })
    };
    // The other's write has reached memory, its emulation not the sptes.
    memory.store(frame, 8 * 0x100, GpteSize::B8, 0x10_5000 | ALL);
    assert_eq!(fetch(), Fetched::Changed);
    // Flags alone are no change.
    memory.store(frame, 8 * 0x100, GpteSize::B8, PAGE | ALL | A | D);
    assert_eq!(fetch(), Fetched::Mapped);
}

// REQ: GEN-1, RM-3: CVE-2026-23401, by a guest that maps a device where its old translation is still in use.
#[test]
fn a_device_takes_the_place_of_a_leaf_with_its_reverse_map() {
    let mut machine = machine();
    machine.read(0, PAGE);
    machine.write(0, pte(PAGE), DEVICE | ALL | A | D);
    // The read-only leaf of the clean page is still there, for there was no flush.
    assert_eq!(machine.read(0, PAGE), Seen::Value(0));
    assert_eq!(machine.write(0, PAGE, 1), Seen::Mmio(Gfn::new(DEVICE >> 12)));
    machine.audit();
}

// REQ: DT-1, SP-8: whoever writes: the guest the first time and again, an emulated instruction, a device.
#[test]
fn every_write_is_in_the_log() {
    let mut machine = machine();
    machine.read(0, PAGE);
    log(&machine);
    logged(&machine);
    for _ in 0..2 {
        machine.read(0, PAGE);
        assert_eq!(logged(&machine), []);
        machine.write(0, PAGE, 1);
        // The first time, D is set in the guest's table.
        let pages = logged(&machine);
        assert!(pages.contains(&(PAGE >> 12)), "{pages:x?}");
    }
    machine.device_write(0, 0x12_3000, &[1; 8]);
    assert_eq!(logged(&machine), [0x123]);
    machine.write(0, 0x3000 + 8 * 9, 0);
    // Flags of the guest's entries are written too, in page 4.
    assert_eq!(logged(&machine), [3, 4]);
    machine.audit();
}

// REQ: DT-2: an spte of an indirect page may be for another gfn by now.
#[test]
fn only_direct_pages_get_w_back_without_the_lock() {
    let mut machine = machine();
    machine.write(0, PAGE, 1);
    log(&machine);
    logged(&machine);
    let state = machine.vcpus[0].0.paging();
    let (paging, root) = (state.paging, state.root(PAGE).unwrap());
    let (place, spte) = machine.mmu.leaf_of(root, 4, PAGE);
    let (mut held, code) = (Held::entry(), ErrorCode::P | ErrorCode::W);
    let section = machine.mmu.slots.read(&mut held);
    assert!(!machine.mmu.fast_shadow_fault(&section, &paging, place, spte, code));
    drop(section);
    assert_eq!(machine.mmu.tables.read(place), spte);
    machine.write(0, PAGE, 1);
    assert_eq!(logged(&machine), [PAGE >> 12]);
}

// REQ: DT-2, PF-1: user mode does not get W in a page of the supervisor, which is direct because it is part of a large one.
#[test]
fn a_write_that_is_forbidden_changes_nothing() {
    let mut machine = machine();
    machine.poke(0x3008, 0x20_0000 | P | W | PS | A | D);
    log(&machine);
    assert_eq!(machine.read(0, 0x20_1000), Seen::Value(0));
    logged(&machine);
    let code = ErrorCode::P | ErrorCode::W | ErrorCode::U;
    assert_eq!(machine.user(0, 0x20_1000, Access::Write), Seen::Fault(code));
    assert_eq!(logged(&machine), []);
    machine.write(0, 0x20_1000, 1);
    assert_eq!(logged(&machine), [0x201]);
}

// REQ: SP-5, SP-11
#[test]
fn a_root_in_use_is_not_evicted() {
    let mut machine = machine();
    machine.read(0, PAGE);
    let root = machine.vcpus[0].0.paging().root(PAGE).unwrap();
    let Machine { mmu, vcpus, .. } = &mut machine;
    let mut held = Held::entry();
    let mut section = mmu.slots.read(&mut held);
    let (slots, held) = section.split();
    let zapped = mmu.with_shadow(slots, held, &mut vcpus[0].0.reserve, |shadow| shadow.zap_oldest(100));
    assert!(zapped && !mmu.tables.get(root).role().invalid());
    drop(section);
    assert_eq!(machine.pages(), 1);
    assert_eq!(machine.read(0, PAGE), Seen::Value(0));
    machine.audit();
}

// REQ: SP-9: between its writes the table is used, so it is one.
#[test]
fn a_table_that_is_used_is_not_flooded() {
    let mut machine = machine();
    for i in 0..12 {
        machine.write(0, 0x3000 + 8 * (i + 1), (0x20_0000 * (i + 1)) | ALL | PS | A | D);
        assert!(machine.shadowed(Gfn::new(3)), "after {i} writes");
        machine.read(0, 0x8_0000 + i * 0x8000);
    }
    assert_eq!(machine.emulated, 12);
    machine.audit();
}

// REQ: SP-7: an address that was never translated sees the table as it is, although another one goes through it unflushed.
#[test]
fn an_unsync_table_that_gets_another_parent_is_up_to_date() {
    let mut machine = machine();
    machine.poke(0x3008, 0x4000 | ALL);
    machine.poke(0x10_5000, 5);
    machine.read(0, PAGE);
    machine.write(0, pte(PAGE), 0x10_5000 | ALL | A | D);
    // The other way to the table begins with another of its entries.
    assert_eq!(machine.read(0, 0x28_0000), Seen::Value(0));
    assert_eq!(machine.read(0, PAGE + 0x20_0000), Seen::Value(5));
    machine.audit();
}

// REQ: SP-7: a flush that loads no cr3.
#[test]
fn unsync_tables_are_followed_at_a_flush_of_the_tlb() {
    let mut machine = machine();
    machine.poke(0x10_5000, 5);
    machine.read(0, PAGE);
    machine.write(0, pte(PAGE), 0x10_5000 | ALL | A | D);
    assert_eq!(machine.read(0, PAGE), Seen::Value(0));
    machine.mmu.flush_tlb(&mut machine.vcpus[0].0);
    assert_eq!(machine.read(0, PAGE), Seen::Value(5));
    machine.audit();
}

// REQ: PF-2, SP-7: a guest that looks which pages are in use finds out.
#[test]
fn an_entry_that_the_guest_has_made_old_is_walked_again() {
    let mut machine = machine();
    machine.read(0, PAGE);
    machine.write(0, pte(PAGE), PAGE | ALL);
    machine.load_cr3(0, 0x1000);
    machine.read(0, PAGE);
    assert_eq!(machine.peek(pte(PAGE), GpteSize::B8), PAGE | ALL | A);
    machine.audit();
}

// REQ: SP-7, DT-3: rights go, what the processor did with the leaf stays known.
#[test]
fn a_leaf_that_loses_rights_at_a_flush_stays_young() {
    let mut machine = machine();
    machine.write(0, PAGE, 1);
    // Makes the table unsync.
    machine.write(0, pte(PAGE), PAGE | P | U | A | D);
    assert_eq!(machine.write(0, PAGE, 2), Seen::Value(2), "not flushed yet");
    machine.load_cr3(0, 0x1000);
    let fault = Seen::Fault(ErrorCode::P | ErrorCode::W);
    machine.mmu.enter(&mut machine.vcpus[0].0).unwrap();
    assert!(
        machine
            .mmu
            .test_young(Frame::new(BackingId(0), (PAGE >> 12) as u32).unwrap())
    );
    assert_eq!(machine.write(0, PAGE, 3), fault);
    machine.audit();
}

// REQ: GEN-7: two address spaces with different devices at one address.
#[test]
fn a_device_of_another_address_space_is_not_remembered() {
    let mut machine = machine();
    let (here, there) = (DEVICE | ALL | A, (DEVICE + 0x1000) | ALL | A);
    machine.poke(pte(PAGE), here);
    for (at, next) in [(0x5000, 0x6000), (0x6000, 0x7000), (0x7000, 0x8000)] {
        machine.poke(at, next | ALL);
    }
    machine.poke(0x8000 + 8 * (PAGE >> 12), there);
    for _ in 0..2 {
        for (cr3, device) in [(0x1000, here), (0x5000, there)] {
            machine.load_cr3(0, cr3);
            for _ in 0..2 {
                assert_eq!(machine.read(0, PAGE), Seen::Mmio(Gfn::new(device >> 12)));
            }
        }
    }
}

// REQ: GEN-7
#[test]
fn invlpg_forgets_a_remembered_device_of_that_address_only() {
    let mut machine = machine();
    machine.poke(pte(PAGE), DEVICE | ALL | A);
    let stamp = machine.mmu.generation.cacheable().unwrap();
    let remembered = |machine: &Machine| {
        let code = ErrorCode::P | ErrorCode::RSVD;
        machine.vcpus[0].0.mmio.get(PAGE >> 12, code.bits(), stamp)
    };
    machine.read(0, PAGE);
    machine.invlpg(0, PAGE + 0x1000);
    assert_eq!(remembered(&machine), Some(Gfn::new(DEVICE >> 12)));
    machine.invlpg(0, PAGE + 8);
    assert_eq!(remembered(&machine), None);
}

// REQ: EM-1: cr3 may point at any 32 bytes of a page.
#[test]
fn pdptes_are_read_where_cr3_points() {
    let mut machine = Machine::new(1, PAE);
    identity(&machine, ALL);
    machine.poke(0x1fe0, 0x3000 | P);
    machine.poke(0x10_0000, 7);
    let registers = Registers { cr3: 0x1fe0, ..PAE };
    machine
        .mmu
        .restore_registers(&mut machine.vcpus[0].0, registers)
        .unwrap();
    assert_eq!(machine.vcpus[0].0.pdptes(), [0x3000 | P, 0, 0, 0]);
    assert_eq!(machine.read(0, PAGE), Seen::Value(7));
}
