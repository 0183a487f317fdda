// SPDX-License-Identifier: MIT OR Apache-2.0
//! Is memory where its number says, and is every write to it recorded?

use crate::sim::{HostFrame, SimMemory, SimRam, SimWords};
use crate::stage2::{BackingShape, Frame, GpteSize, GuestAccess, GuestRam, TableWords};
use crate::sync::atomic::Ordering;
use crate::table::TableId;
use alloc::sync::Arc;
use alloc::vec;
use umbra_mmu_abi::{Backing, BackingId};

fn memory() -> Arc<SimMemory> {
    let shape = BackingShape {
        small_head: 3,
        large: 1,
        small_tail: 0,
    };
    SimMemory::new(SimMemory::layout_for(46), &[shape, shape], 4)
}

fn frame(backing: u16, page: u32) -> Frame {
    Frame::new(BackingId(backing), page).unwrap()
}

#[test]
fn a_host_frame_is_ram_a_table_or_nothing() {
    let memory = memory();
    assert_eq!(memory.at(0), HostFrame::Ram(frame(0, 0)));
    assert_eq!(memory.at(1 << 24 | 514), HostFrame::Ram(frame(1, 514)));
    assert_eq!(memory.at(515), HostFrame::Nothing);
    assert_eq!(memory.at(2 << 24), HostFrame::Nothing);
    assert_eq!(memory.at(64 << 24 | 3), HostFrame::Table(TableId::from_raw(3)));
    assert_eq!(memory.at(64 << 24 | 4), HostFrame::Nothing);
}

#[test]
fn tables_are_shared_with_whoever_walks_them() {
    let memory = memory();
    let words = SimWords(memory.clone());
    assert_eq!(words.capacity(), 4);
    words.words(TableId::from_raw(2))[7].store(9, Ordering::Relaxed);
    assert_eq!(memory.table(TableId::from_raw(2))[7].load(Ordering::Relaxed), 9);
    assert_eq!(memory.table(TableId::from_raw(1))[7].load(Ordering::Relaxed), 0);
}

#[test]
fn entries_of_four_bytes_leave_their_neighbour_alone() {
    let memory = memory();
    let ram = SimRam(memory.clone());
    let at = frame(1, 5);
    memory.store(at, 16, GpteSize::B8, 0x1111_1111_2222_2222);
    assert_eq!(ram.read(at, 16, GpteSize::B4), 0x2222_2222);
    assert_eq!(
        ram.compare_exchange(at, 20, GpteSize::B4, 0x1111_1111, 0x3333_3333),
        Ok(())
    );
    assert_eq!(
        ram.compare_exchange(at, 20, GpteSize::B4, 0x1111_1111, 4),
        Err(0x3333_3333)
    );
    assert_eq!(ram.read(at, 16, GpteSize::B8), 0x3333_3333_2222_2222);
    memory.store(at, 16, GpteSize::B4, 7);
    assert_eq!(memory.load(at, 16, GpteSize::B8), 0x3333_3333_0000_0007);
}

#[test]
fn bytes_are_written_wherever_they_begin() {
    let memory = memory();
    let ram = SimRam(memory.clone());
    let at = frame(0, 0);
    ram.write(at, 5, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    assert_eq!(memory.load(at, 0, GpteSize::B8), 0x0302_0100_0000_0000);
    assert_eq!(memory.load(at, 8, GpteSize::B8), 0x0b0a_0908_0706_0504);
    assert_eq!(memory.load(at, 16, GpteSize::B8), 12);
}

// REQ: DT-1
#[test]
fn every_kind_of_write_is_recorded_once() {
    let memory = memory();
    let ram = SimRam(memory.clone());
    assert_eq!(memory.take_written(), vec![]);
    memory.store(frame(1, 64), 0, GpteSize::B4, 1);
    ram.write(frame(0, 3), 0, &[1]);
    ram.compare_exchange(frame(0, 514), 8, GpteSize::B8, 0, 0x20).unwrap();
    ram.compare_exchange(frame(0, 7), 8, GpteSize::B8, 1, 0x20).unwrap_err();
    ram.read(frame(0, 1), 0, GpteSize::B8);
    memory.copy(frame(0, 3), frame(0, 9));
    assert_eq!(memory.take_written(), vec![frame(0, 3), frame(0, 514), frame(1, 64)]);
    assert_eq!(memory.take_written(), vec![]);
    assert_eq!(memory.load(frame(0, 9), 0, GpteSize::B8), 1);
}

#[test]
fn a_frame_is_attached_as_often_as_slots_have_it() {
    let memory = memory();
    let backing = Backing {
        id: BackingId(0),
        first_page: 2,
    };
    let at = frame(0, 3);
    assert_eq!(memory.attached(at), None);
    memory.attach(backing, 4, GuestAccess::ReadExec);
    memory.attach(backing, 2, GuestAccess::All);
    assert_eq!(memory.attached(at), Some(GuestAccess::All));
    assert_eq!(memory.attached(frame(0, 4)), Some(GuestAccess::ReadExec));
    memory.detach(backing, 2, GuestAccess::All);
    assert_eq!(memory.attached(at), Some(GuestAccess::ReadExec));
    memory.detach(backing, 4, GuestAccess::ReadExec);
    assert_eq!(memory.attached(at), None);
    assert_eq!(memory.attached(frame(1, 600)), None);
}
