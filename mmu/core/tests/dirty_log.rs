// SPDX-License-Identifier: MIT OR Apache-2.0
//! Is every write in the log, and nothing else? On pages of both sizes, with one processor and with several.

mod common;

use common::*;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use umbra_mmu_abi::*;
use umbra_mmu_core::logging::LogError;
use umbra_mmu_core::resize::Resize;

const LOG: SlotFlags = SlotFlags::LOG_DIRTY;
const NONE: SlotFlags = SlotFlags::empty();

// REQ: DT-1
#[test]
fn what_is_written_is_logged_once() {
    let mmu = mmu();
    set(&mmu, NONE);
    let mut vm = Vm::new(&mmu);
    let small: Vec<Gfn> = (0..8).map(|i| page(BASE, i)).collect();
    for gfn in &small {
        vm.write(*gfn, 1);
    }
    vm.read(page(BASE, PAGES as u64 - 1));
    let mapped = vm.mapped();
    set(&mmu, LOG);
    // Re-flagging has taken nothing away, and what was written before is not in the log.
    assert_eq!(vm.mapped(), mapped);
    vm.check();
    assert_eq!(vm.take_log(), []);
    for round in 0..3u64 {
        vm.read(small[4]);
        vm.write(small[1], round);
        vm.write(small[1], round + 1);
        vm.write(small[6], round);
        assert_eq!(vm.take_log(), [1, 6], "round {round}");
        assert_eq!(vm.take_log(), []);
        vm.check();
    }
    assert_eq!(vm.mapped(), mapped);
    // A page that is mapped for the first time, by a read and by a write.
    vm.read(page(BASE, PAGES as u64 - 2));
    vm.write(page(BASE, PAGES as u64 - 3), 7);
    assert_eq!(vm.take_log(), [PAGES as u64 - 3]);
    vm.write(page(BASE, PAGES as u64 - 2), 7);
    assert_eq!(vm.take_log(), [PAGES as u64 - 2]);
    set(&mmu, NONE);
    vm.write(small[1], 9);
    assert_eq!(mmu.get_log(SlotId(0), 0, &mut [0]), Err(LogError::NotLogged));
    assert_eq!(mmu.get_log(SlotId(7), 0, &mut [0]), Err(LogError::NoSlot));
    set(&mmu, LOG);
    assert_eq!(mmu.get_log(SlotId(0), 32, &mut [0; 2]), Err(LogError::Range));
    // A log starts empty.
    assert_eq!(vm.take_log(), []);
    vm.check();
}

// REQ: DT-1: what is got stays until it is cleared; what is cleared is seen again.
#[test]
fn the_log_is_got_and_then_cleared_in_part() {
    let mmu = mmu();
    set(&mmu, LOG);
    let mut vm = Vm::new(&mmu);
    for i in [0, 2, 3, 5] {
        vm.write(page(BASE, i), i);
    }
    let mut word = [0];
    for _ in 0..2 {
        assert_eq!(mmu.get_log(SlotId(0), 0, &mut word), Ok(4));
        assert_eq!(pages_of(&word), [0, 2, 3, 5]);
    }
    // Page 4 was not written: there is nothing to clear of it.
    assert_eq!(mmu.clear_log(SlotId(0), 0, &[0b11100]), Ok(2));
    mmu.get_log(SlotId(0), 0, &mut word).unwrap();
    assert_eq!(pages_of(&word), [0, 5]);
    for i in [2, 4] {
        vm.write(page(BASE, i), 1);
    }
    assert_eq!(vm.take_log(), [0, 2, 4, 5]);
    vm.check();
}

// REQ: DT-1
#[test]
fn writes_of_devices_are_logged() {
    let mmu = mmu();
    set(&mmu, LOG);
    set_slot(&mmu, 1, Gfn::new(0x10), 4, 1, 0, NONE).unwrap();
    let vm = Vm::new(&mmu);
    let gpa = |page: u64, offset: u64| Gpa::new(BASE.gpa().raw() + page * PAGE_SIZE + offset);
    mmu.device_wrote(gpa(2, PAGE_SIZE - 1), 2);
    mmu.device_wrote(gpa(5, 0), PAGE_SIZE);
    mmu.device_wrote(gpa(7, 0), 0);
    // Before the slot, in one that is not logged, and beyond all.
    mmu.device_wrote(Gpa::new(gpa(0, 0).raw() - 8), 16);
    mmu.device_wrote(Gfn::new(0x10).gpa(), PAGE_SIZE);
    mmu.device_wrote(Gpa::new(u64::MAX), 2);
    assert_eq!(vm.take_log(), [0, 2, 3, 5]);
    assert_eq!(vm.take_log(), []);
}

// REQ: DT-1, MEM-1: the log is of the guest's writes, not of a place or of other flags.
#[test]
fn the_log_survives_a_move_and_other_flags() {
    let mmu = mmu();
    set(&mmu, LOG);
    let mut vm = Vm::new(&mmu);
    vm.write(page(BASE, 3), 1);
    set(&mmu, LOG | SlotFlags::READONLY);
    vm.check();
    vm.read(page(BASE, 3));
    set_slot(&mmu, 0, page(BASE, 0x1000), PAGES, 0, 0, LOG).unwrap();
    vm.write(page(BASE, 0x1006), 1);
    assert_eq!(vm.take_log(), [3, 6]);
    vm.check();
}

// REQ: LP-4, DT-1: a large page is read as a whole, and split by its first write; the log names the page.
#[test]
fn a_logged_write_splits_a_large_page() {
    let mmu = mmu();
    set(&mmu, NONE);
    let mut vm = Vm::new(&mmu);
    vm.write(page(LARGE, 5), 55);
    vm.write(page(LARGE, 512 + 5), 66);
    assert_eq!(vm.mapped(), [0, 2]);
    set(&mmu, LOG);
    assert_eq!((vm.mapped(), vm.take_log()), ([0, 2], vec![]));
    assert_eq!(vm.read(page(LARGE, 5)), Seen::Done(55));
    assert_eq!(vm.mapped(), [0, 2]);
    vm.write(page(LARGE, 7), 77);
    assert_eq!(vm.mapped(), [1, 1]);
    assert_eq!(vm.take_log(), pages_in_slot(&[page(LARGE, 7)]));
    assert_eq!(
        (vm.read(page(LARGE, 5)), vm.read(page(LARGE, 7))),
        (Seen::Done(55), Seen::Done(77))
    );
    vm.write(page(LARGE, 8), 88);
    assert_eq!(vm.take_log(), pages_in_slot(&[page(LARGE, 8)]));
    assert_eq!(vm.mapped(), [3, 1]);
    vm.check();
    // When the log stops the small ones go, and the next fault has a large frame made again.
    set(&mmu, NONE);
    assert_eq!(vm.mapped(), [0, 1]);
    assert_eq!(vm.read(page(LARGE, 8)), Seen::Done(88));
    assert_eq!(vm.mapped(), [0, 2]);
    vm.write(page(LARGE, 512 + 6), 1);
    vm.write(page(LARGE, 6), 1);
    assert_eq!(vm.mapped(), [0, 2]);
    vm.check();
}

// REQ: LP-4
#[test]
fn large_pages_are_split_at_once_on_request() {
    let mmu = mmu();
    set(&mmu, NONE);
    let mut vm = Vm::new(&mmu);
    vm.write(LARGE, 1);
    assert_eq!(mmu.split_for_log(SlotId(0)), Ok(0), "nothing is logged");
    set(&mmu, LOG);
    assert_eq!(mmu.split_for_log(SlotId(0)), Ok(4));
    assert_eq!((mmu.split_for_log(SlotId(0)), vm.mapped()), (Ok(0), [0, 0]));
    assert_eq!(vm.read(page(LARGE, 1)), Seen::Done(0));
    assert_eq!((vm.read(LARGE), vm.mapped()), (Seen::Done(1), [2, 0]));
    assert_eq!(vm.take_log(), []);
    vm.check();
    set(&mmu, NONE);
    assert_eq!((vm.read(LARGE), vm.mapped()), (Seen::Done(1), [0, 1]));
    vm.check();
}

// REQ: LP-4, DT-1: an owner who cannot split costs precision, and no write.
#[test]
fn a_large_page_that_cannot_be_split_is_logged_as_a_whole() {
    let mmu = mmu();
    set(&mmu, LOG);
    let mut vm = Vm::new(&mmu);
    let all: Vec<u64> = (0..512).map(|i| LARGE.raw() - BASE.raw() + i).collect();
    assert_eq!(vm.read(LARGE), Seen::Done(0));
    mmu.with_stage2(|stage2| stage2.refuse_after(0));
    vm.write(page(LARGE, 7), 77);
    for round in 1..4 {
        assert_eq!((vm.mapped(), vm.take_log()), ([0, 1], all.clone()), "round {round}");
        assert_eq!(vm.take_log(), []);
        vm.check();
        vm.write(page(LARGE, round), round);
    }
    assert_eq!(vm.read(page(LARGE, 7)), Seen::Done(77));
    // Other frames are split.
    vm.take_log();
    vm.write(page(LARGE, 512), 1);
    assert_eq!(vm.take_log(), pages_in_slot(&[page(LARGE, 512)]));
    vm.check();
}

// REQ: LP-4, SP-11: a page table that the pool cannot spare is not needed.
#[test]
fn a_large_page_stays_whole_where_tables_are_few() {
    // The root, a PDPT, a PD, the page tables of the small pages at both ends, and one more: the fourth frame stays.
    let mmu = mmu_with(1 + 1 + 1 + 2 + 4);
    set(&mmu, LOG);
    let mut vm = Vm::new(&mmu);
    for large in 0..4 {
        assert_eq!(vm.write(page(LARGE, large * 512 + 9), large), Seen::Done(large));
    }
    for at in 0..u64::from(PAGES) {
        assert!(matches!(vm.read(page(BASE, at)), Seen::Done(_)), "page {at}");
    }
    let log = vm.take_log();
    let in_frame = |frame: u64| log.iter().filter(|at| (**at - 8) / 512 == frame).count();
    assert_eq!([0, 1, 2, 3].map(in_frame), [1, 1, 1, 512]);
    vm.check();
}

// REQ: DT-1, DT-2, DT-3, LP-4: a copy that is made while three processors write, from the log alone, is whole in the end.
#[test]
fn a_copy_by_the_log_misses_no_write() {
    const THREADS: u64 = 3;
    let mmu = mmu();
    set(&mmu, LOG);
    let gfns: Vec<Gfn> = (0..8)
        .chain([8, 9, 72, 519, 520, 1031])
        .map(|i| page(BASE, i))
        .collect();
    let (stop, written) = (AtomicBool::new(false), AtomicU64::new(0));
    let copied = thread::scope(|scope| {
        let writers: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (mmu, gfns, stop, written) = (&mmu, &gfns, &stop, &written);
                scope.spawn(move || {
                    let mut vm = Vm::new(mmu);
                    let mut value = thread;
                    while !stop.load(Ordering::Relaxed) {
                        value += THREADS;
                        let gfn = gfns[(value * 7 % gfns.len() as u64) as usize];
                        assert_eq!(vm.write(gfn, value), Seen::Done(value));
                        written.fetch_add(1, Ordering::Relaxed);
                        if value % 64 == 0 {
                            thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        let vm = Vm::new(&mmu);
        let mut copy = vec![0; PAGES as usize];
        let copy_logged = |copy: &mut Vec<u64>| {
            for at in vm.take_log() {
                let memory = mmu.with_stage2(|stage2| stage2.memory().clone());
                copy[at as usize] = memory.load(frame(at as u32), 0, umbra_mmu_core::stage2::GpteSize::B8);
            }
        };
        let mut round = 0;
        while written.load(Ordering::Relaxed) < 30_000 || round < 400 {
            round += 1;
            match round % 40 {
                // Other changes meanwhile, which must not lose a write either.
                10 => {
                    let _ = mmu.resize(frame_of(LARGE), Resize::Merge);
                }
                20 => {
                    mmu.test_and_clear_young(frame(0), PAGES, |_, _| {}).unwrap();
                }
                30 => mmu.zap_all(),
                _ => copy_logged(&mut copy),
            }
            while mmu.has_background_work() {
                mmu.background();
            }
        }
        stop.store(true, Ordering::Relaxed);
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        copy_logged(&mut copy);
        copy
    });
    let mut vm = Vm::new(&mmu);
    for gfn in gfns {
        let at = gfn.raw() - BASE.raw();
        assert_eq!(vm.read(gfn), Seen::Done(copied[at as usize]), "page {at}");
    }
    vm.check();
}
