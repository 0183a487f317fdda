// SPDX-License-Identifier: MIT OR Apache-2.0
//! Is a missing flush of the MMU's own tables seen, and a processor that leaves its container?

use crate::sim::SimMemory;
use crate::sim::cpu::{Cpu, Exit, Operation};
use crate::sim::paging::*;
use crate::sim::shadow::{HostTables, SimShadow, Staleness};
use crate::stage2::{BackingShape, Frame, GpteSize, GuestAccess, Stage2, Unflushed};
use crate::sync::atomic::Ordering;
use crate::table::TableId;
use alloc::sync::Arc;
use core::convert::Infallible;
use umbra_mmu_abi as abi;
use umbra_mmu_abi::{Backing, BackingId, SlotId};

const ALL: u64 = 0x67;

/// Tables 0 to 3 are the levels from the top; the slot has pages 0..8.
struct Hardware {
    memory: Arc<SimMemory>,
    container: SimShadow,
    cpu: Cpu,
    staleness: Staleness,
}

impl Hardware {
    fn new(staleness: Staleness) -> Self {
        let shape = BackingShape {
            small_head: 16,
            large: 0,
            small_tail: 0,
        };
        let memory = SimMemory::new(SimMemory::layout_for(46), &[shape], 5);
        let mut container = SimShadow::new(memory.clone());
        let backing = Backing {
            id: BackingId(0),
            first_page: 0,
        };
        container.attach_slot(SlotId(1), backing, 8, GuestAccess::All).unwrap();
        let root = memory.layout().table_address(TableId::from_raw(0));
        let mut cpu = Cpu::new(Model::default(), None);
        cpu.enter(Registers {
            cr0: CR0_PG | CR0_WP,
            cr3: root,
            cr4: CR4_PAE,
            efer: EFER_LME | EFER_NXE,
            pdptes: [0; 4],
        });
        let hardware = Self {
            memory,
            container,
            cpu,
            staleness,
        };
        for table in 0..3 {
            hardware.set(
                table,
                0,
                hardware.memory.layout().table_address(TableId::from_raw(table + 1)) | ALL,
            );
        }
        for page in 0..16 {
            let frame = Frame::new(BackingId(0), page).unwrap();
            hardware.memory.store(frame, 0, GpteSize::B8, page as u64);
            hardware.set(3, page as usize, (page as u64) << 12 | ALL);
        }
        hardware
    }

    fn set(&self, table: u32, index: usize, entry: u64) {
        self.memory.table(TableId::from_raw(table))[index].store(entry, Ordering::Relaxed);
    }

    fn access(&mut self, gva: u64, kind: abi::Access) -> Result<u64, Exit<Infallible>> {
        let mut below = HostTables {
            memory: &self.memory,
            staleness: self.staleness,
        };
        let access = Access {
            kind,
            privilege: Privilege::User,
        };
        let operation = match kind {
            abi::Access::Read | abi::Access::Fetch => Operation::Load(GpteSize::B8),
            abi::Access::Write => Operation::Store { bytes: 8, value: 0x77 },
        };
        self.cpu.access(&mut below, gva, access, operation)
    }

    fn read(&mut self, gva: u64) -> u64 {
        self.access(gva, abi::Access::Read).unwrap()
    }
}

#[test]
fn a_flush_of_all_processors_reaches_each_before_its_next_access() {
    let mut hardware = Hardware::new(Staleness::Used);
    assert_eq!(hardware.read(0x3000), 3);
    hardware.set(3, 3, 0x4000 | ALL);
    assert_eq!(hardware.read(0x3000), 3, "the old translation is in use");
    hardware.container.flush(Unflushed::NOTHING);
    assert_eq!(hardware.read(0x3000), 3, "nothing was to be flushed");
    hardware.container.flush(Unflushed::removed(1));
    assert_eq!(hardware.read(0x3000), 4);
}

#[test]
#[should_panic(expected = "a flush is missing")]
fn another_frame_without_a_flush_is_seen() {
    let mut hardware = Hardware::new(Staleness::Refused);
    hardware.read(0x3000);
    hardware.set(3, 3, 0x4000 | ALL);
    hardware.read(0x3000);
}

#[test]
#[should_panic(expected = "a flush is missing")]
fn fewer_rights_without_a_flush_are_seen() {
    let mut hardware = Hardware::new(Staleness::Refused);
    hardware.read(0x3000);
    hardware.set(3, 3, 0x3000 | ALL & !2);
    hardware.read(0x3000);
}

#[test]
#[should_panic(expected = "a flush is missing")]
fn a_dirty_flag_cleared_without_a_flush_is_seen() {
    let mut hardware = Hardware::new(Staleness::Refused);
    hardware.read(0x3000);
    hardware.set(3, 3, 0x3000 | ALL & !0x40);
    hardware.read(0x3000);
}

#[test]
#[should_panic(expected = "a flush is missing")]
fn a_table_that_is_somebody_elses_now_is_seen() {
    let mut hardware = Hardware::new(Staleness::Refused);
    hardware.read(0x3000);
    // Its place has another table, and it has another use; only the way to it is cached for this page.
    hardware.set(2, 0, hardware.memory.layout().table_address(TableId::from_raw(4)) | ALL);
    hardware.set(4, 4, 0x4000 | ALL);
    hardware.set(3, 4, 0x5000 | ALL);
    hardware.read(0x4000);
}

#[test]
fn more_rights_and_other_pages_need_no_flush() {
    let mut hardware = Hardware::new(Staleness::Refused);
    hardware.set(3, 3, 0x3000 | ALL & !2);
    assert_eq!(hardware.read(0x3000), 3);
    hardware.set(3, 3, 0x3000 | ALL);
    hardware.set(3, 5, 0);
    assert_eq!(hardware.read(0x3000), 3);
    hardware.access(0x3000, abi::Access::Write).unwrap();
    hardware.access(0x5000, abi::Access::Read).unwrap_err();
}

#[test]
#[should_panic(expected = "no table of the MMU")]
fn tables_are_never_guest_memory() {
    let mut hardware = Hardware::new(Staleness::Refused);
    hardware.set(2, 0, 0x3000 | ALL);
    hardware.read(0x3000);
}

#[test]
#[should_panic(expected = "reaches Table")]
fn guests_never_reach_tables() {
    let mut hardware = Hardware::new(Staleness::Refused);
    let table = hardware.memory.layout().table_address(TableId::from_raw(2));
    hardware.set(3, 3, table | ALL);
    hardware.read(0x3000);
}

// REQ: MEM-7
#[test]
#[should_panic(expected = "attached as None")]
fn frames_without_a_slot_are_out_of_reach() {
    let mut hardware = Hardware::new(Staleness::Used);
    hardware.read(0x8000);
}

#[test]
#[should_panic(expected = "which no slot has: a flush is missing")]
fn frames_of_a_slot_that_is_gone_are_out_of_reach() {
    let mut hardware = Hardware::new(Staleness::Refused);
    hardware.read(0x3000);
    core::mem::forget(hardware.container.revoke_slot(SlotId(1)));
    hardware.read(0x3000);
}

#[test]
#[should_panic(expected = "which no slot has")]
fn frames_that_the_host_withdrew_are_out_of_reach() {
    let mut hardware = Hardware::new(Staleness::Refused);
    hardware.read(0x3000);
    hardware.memory.withdraw(Frame::new(BackingId(0), 3).unwrap());
    hardware.read(0x3000);
}

#[test]
#[should_panic(expected = "before the flush that ends their old use")]
fn frames_are_in_limbo_until_a_flush() {
    let mut hardware = Hardware::new(Staleness::Used);
    core::mem::forget(hardware.container.revoke_slot(SlotId(1)));
    let backing = Backing {
        id: BackingId(0),
        first_page: 7,
    };
    let _ = hardware.container.attach_slot(SlotId(2), backing, 4, GuestAccess::All);
}
