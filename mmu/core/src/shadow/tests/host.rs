// SPDX-License-Identifier: MIT OR Apache-2.0
//! What do the dirty log and the owner of frames do to a guest on shadow tables? Words that hardware walks, and flushes.

use super::machine::*;
use crate::fault::{HostNeed, Outcome};
use crate::host::{PageState, SplitFor};
use crate::notify::Mappings;
use crate::resize::Resize;
use crate::stage2::{Frame, GpteSize};
use std::vec::Vec;
use umbra_mmu_abi::{BackingId, Gfn, PageLevel, SlotFlags, SlotId, Stat};

const NONE: SlotFlags = SlotFlags::empty();
/// The guest maps 2M here, as one page.
const LARGE: u64 = 2 << 20;

fn frame(gva: u64) -> Frame {
    Frame::new(BackingId(0), (gva >> 12) as u32).unwrap()
}

/// The first 2M in pages of 4K, and the next two of 2M each.
fn machine() -> Machine {
    let machine = Machine::new(2, LONG);
    identity(&machine, ALL);
    for i in 1..3 {
        machine.poke(0x3000 + 8 * i, (i * LARGE) | ALL | PS);
    }
    machine
}

fn flags(machine: &Machine, flags: SlotFlags) {
    machine.slot(0, Gfn::new(0), PAGES, 0, flags);
}

/// The logged pages that are none of the guest's tables.
fn take_log(machine: &Machine) -> Vec<u64> {
    let mut words = [0; PAGES as usize / 64];
    machine.mmu.get_and_clear_log(SlotId(0), 0, &mut words).unwrap();
    let pages = (0..PAGES as u64).filter(|page| words[*page as usize / 64] >> (page % 64) & 1 != 0);
    pages.filter(|page| *page >= 0x10).collect()
}

fn mapped(machine: &Machine) -> [u64; 2] {
    [Stat::Mapped4K, Stat::Mapped2M].map(|stat| machine.mmu.stat(stat))
}

// REQ: DT-1, DT-3, LP-4: of a large page of the guest's, single pages are logged; afterwards it is large again.
#[test]
fn writes_are_logged_page_by_page() {
    let mut machine = machine();
    machine.write(0, 0x10_0000, 1);
    machine.write(0, LARGE + 0x5000, 2);
    machine.write(1, LARGE + 0x6000, 2);
    assert_eq!(mapped(&machine)[1], 1);
    flags(&machine, SlotFlags::LOG_DIRTY);
    machine.audit();
    assert_eq!(take_log(&machine), []);
    // Processors that had the translations have them no more.
    for round in 0..3u64 {
        machine.read(0, 0x10_1000);
        machine.write(0, 0x10_0000, round);
        machine.write(1, LARGE + 0x7000, round);
        assert_eq!(take_log(&machine), [0x100, 0x207], "round {round}");
        assert_eq!(take_log(&machine), []);
        machine.audit();
    }
    assert_eq!(mapped(&machine)[1], 0);
    assert_eq!(machine.peek(LARGE + 0x7000, GpteSize::B8), 2);
    flags(&machine, NONE);
    machine.write(0, LARGE + 0x8000, 9);
    assert_eq!(mapped(&machine)[1], 1);
    machine.write(1, 0x10_0000, 9);
    machine.audit();
}

// REQ: DT-1, PF-2: the walk itself writes, to the guest's tables.
#[test]
fn accessed_and_dirty_bits_are_logged_writes() {
    let mut machine = machine();
    flags(&machine, SlotFlags::LOG_DIRTY);
    let tables = |machine: &Machine| {
        let mut words = [0; 1];
        machine.mmu.get_and_clear_log(SlotId(0), 0, &mut words).unwrap();
        words[0] & 0xffff
    };
    machine.read(0, 0x10_0000);
    assert_eq!(tables(&machine), 0b11110);
    machine.read(0, 0x10_0000);
    assert_eq!(tables(&machine), 0);
    machine.write(0, 0x10_0000, 1);
    assert_eq!(tables(&machine), 0b10000);
    machine.audit();
}

// REQ: HOST-1, PF-3: nothing is mapped between start and end, and no processor uses what it had.
#[test]
fn a_pair_keeps_mappings_out_until_it_ends() {
    for gva in [0x10_0000, LARGE + 0x3000] {
        let mut machine = machine();
        machine.write(0, gva, 5);
        machine.write(1, gva, 6);
        let pair = machine.mmu.invalidate_start(frame(gva), 1, Mappings::Present).unwrap();
        for vcpu in 0..2 {
            let who = crate::sim::paging::Privilege::Supervisor;
            let step = machine.step(vcpu, gva, umbra_mmu_abi::Access::Read, who, (GpteSize::B8, 0));
            let (address, code) = step.expect_err("the translation is gone");
            let fault = crate::fault::Fault { address, code };
            let outcome = machine.mmu.fault(&mut machine.vcpus[vcpu].0, &fault);
            assert_eq!(outcome, Ok(Outcome::Resume));
        }
        machine.audit();
        machine.memory.store(frame(gva), 0, GpteSize::B8, 7);
        machine.mmu.invalidate_end(pair, PageState::Resident);
        assert_eq!(
            (machine.read(0, gva), machine.read(1, gva)),
            (Seen::Value(7), Seen::Value(7))
        );
        machine.audit();
    }
}

// REQ: HOST-1, HOST-2: a page, and a table of the guest's.
#[test]
fn the_owner_is_asked_for_frames_that_are_away() {
    let mut machine = machine();
    machine.write(0, 0x10_0000, 5);
    for (away, touched) in [(0x10_0000, 0x10_0000), (0x4000, 0x10_0000), (0x1000, 0x10_0000)] {
        machine.mmu.reclaim(frame(away), 1).unwrap();
        machine.audit();
        machine.asked = 0;
        assert_eq!(machine.read(0, touched), Seen::Value(5));
        assert!(machine.asked > 0, "{away:#x}");
        machine.audit();
    }
    // A large spte goes where a part of it goes, and comes as small ones.
    machine.write(0, LARGE + 0x5000, 6);
    machine.mmu.reclaim(frame(LARGE + 0x9000), 1).unwrap();
    assert_eq!(machine.read(0, LARGE + 0x5000), Seen::Value(6));
    assert_eq!(mapped(&machine)[1], 0);
    machine.audit();
    machine.mmu.give_back(frame(LARGE + 0x9000), 1).unwrap();
    machine.mmu.reclaim(frame(LARGE), 512).unwrap();
    machine.mmu.give_back(frame(LARGE), 512).unwrap();
    assert_eq!(machine.read(0, LARGE + 0x5000), Seen::Value(6));
    assert_eq!(mapped(&machine)[1], 1);
    machine.audit();
}

// REQ: HOST-1
#[test]
fn a_write_to_a_protected_frame_asks_its_owner() {
    let mut machine = machine();
    machine.write(0, LARGE + 0x5000, 6);
    machine.mmu.write_protect_frames(frame(LARGE + 0x5000), 1).unwrap();
    assert_eq!(machine.read(0, LARGE + 0x5000), Seen::Value(6));
    assert_eq!(machine.asked, 0);
    machine.write(0, LARGE + 0x6000, 7);
    assert_eq!((machine.asked, mapped(&machine)[1]), (0, 0));
    machine.audit();
    assert_eq!(machine.write(0, LARGE + 0x5000, 8), Seen::Value(8));
    assert_eq!(machine.asked, 1);
    machine.audit();
}

// REQ: HOST-1, DT-3: the processor's own accessed bits tell, whichever virtual processor used the page.
#[test]
fn what_is_used_becomes_young() {
    let mut machine = machine();
    let young = |machine: &Machine| {
        let mut found = Vec::new();
        let all = (Frame::new(BackingId(0), 0).unwrap(), PAGES);
        machine
            .mmu
            .test_and_clear_young(all.0, all.1, |frame, size| found.push((frame.page(), size)))
            .unwrap();
        found.retain(|(page, _)| *page >= 0x100);
        found
    };
    machine.write(0, 0x10_0000, 1);
    machine.read(1, LARGE + 0x5000);
    let both = [(0x100, PageLevel::K4), (0x200, PageLevel::M2)];
    assert_eq!(young(&machine), both);
    assert_eq!(young(&machine), []);
    machine.faults = 0;
    machine.read(1, LARGE + 0x5000);
    assert!(machine.mmu.test_young(frame(LARGE)) && !machine.mmu.test_young(frame(0x10_0000)));
    machine.read(0, 0x10_0000);
    assert_eq!(young(&machine), both);
    // Hardware sets the bits: no exit is taken for it.
    assert_eq!(machine.faults, 0);
    machine.audit();
}

// REQ: HOST-2, LP-1
#[test]
fn a_split_page_is_mapped_by_smaller_sptes() {
    let mut machine = machine();
    machine.write(0, LARGE + 0x5000, 6);
    machine
        .mmu
        .resize(frame(LARGE), Resize::Split(SplitFor::Owner))
        .unwrap();
    assert_eq!(
        (machine.read(0, LARGE + 0x5000), mapped(&machine)[1]),
        (Seen::Value(6), 0)
    );
    machine.write(1, 2 * LARGE, 6);
    assert_eq!(mapped(&machine)[1], 1);
    machine.audit();
    machine.mmu.resize(frame(LARGE), Resize::Merge).unwrap();
    assert_eq!(
        (machine.read(0, LARGE + 0x5000), mapped(&machine)[1]),
        (Seen::Value(6), 2)
    );
    machine.audit();
}

// REQ: HOST-2, MEM-7
#[test]
fn a_revoked_frame_is_lost() {
    let mut machine = machine();
    machine.write(0, 0x10_0000, 5);
    machine.mmu.frames_revoked(frame(0x10_0000), 1).unwrap();
    let fault = crate::fault::Fault {
        address: 0x10_0000,
        code: crate::fault::ErrorCode::empty(),
    };
    let outcome = machine.mmu.fault(&mut machine.vcpus[0].0, &fault);
    assert!(matches!(outcome, Ok(Outcome::Host(host)) if host.need == HostNeed::Revoked));
    machine.audit();
}
