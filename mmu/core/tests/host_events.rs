// SPDX-License-Identifier: MIT OR Apache-2.0
//! May the owner of frames do what it likes while the guest runs? Take them, move them, protect, age and resize them.

mod common;

use common::*;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use umbra_mmu_abi::*;
use umbra_mmu_core::change::ChangeError;
use umbra_mmu_core::fault::{HostFault, HostNeed, Outcome};
use umbra_mmu_core::host::{HostError, PageState, SplitFor};
use umbra_mmu_core::notify::Mappings;
use umbra_mmu_core::resize::{Resize, ResizeError};

const NONE: SlotFlags = SlotFlags::empty();
const LOG: SlotFlags = SlotFlags::LOG_DIRTY;

fn needs(page: u32, need: HostNeed) -> Seen {
    let frame = frame(page);
    Seen::Host(HostFault { frame, need })
}

// REQ: HOST-1, HOST-2
#[test]
fn what_was_reclaimed_faults_until_it_is_back() {
    let mmu = mmu();
    set(&mmu, NONE);
    let mut vm = Vm::new(&mmu);
    for i in 0..4 {
        vm.write(page(BASE, i), i);
    }
    vm.write(LARGE, 9);
    mmu.reclaim(frame(1), 2).unwrap();
    assert_eq!(vm.mapped(), [2, 1]);
    vm.check();
    assert_eq!(vm.read(page(BASE, 0)), Seen::Done(0));
    assert_eq!(vm.read(page(BASE, 1)), needs(1, HostNeed::Frame));
    assert_eq!(vm.write(page(BASE, 2), 1), needs(2, HostNeed::Frame));
    mmu.give_back(frame(1), 1).unwrap();
    assert_eq!(vm.read(page(BASE, 1)), Seen::Done(1));
    assert_eq!(vm.read(page(BASE, 2)), needs(2, HostNeed::Frame));
    // A large frame goes as a whole.
    assert_eq!(mmu.reclaim(frame(9), 1), Err(HostError::PartOfLarge));
    mmu.reclaim(frame(8), 512).unwrap();
    assert_eq!(vm.mapped(), [3, 0]);
    assert_eq!(vm.read(page(LARGE, 3)), needs(11, HostNeed::Frame));
    mmu.give_back(frame(2), 6 + 512).unwrap();
    assert_eq!((vm.read(page(BASE, 2)), vm.read(LARGE)), (Seen::Done(2), Seen::Done(9)));
    vm.check();
}

// REQ: HOST-1, PF-3: nothing is mapped between start and end, wherever slots have the frames.
#[test]
fn a_pair_keeps_mappings_out_until_it_ends() {
    let mmu = mmu();
    set(&mmu, NONE);
    set_slot(&mmu, 1, Gfn::new(0x10), 4, 0, 0, NONE).unwrap();
    let mut vm = Vm::new(&mmu);
    let alias = Gfn::new(0x12);
    vm.write(page(BASE, 2), 5);
    vm.write(page(BASE, 4), 7);
    vm.read(alias);
    assert_eq!(vm.mapped(), [3, 0]);
    let pair = mmu.invalidate_start(frame(2), 1, Mappings::Present).unwrap();
    for gfn in [page(BASE, 2), alias] {
        for access in Access::ALL {
            assert_eq!(vm.fault(gfn.gpa(), access), Outcome::Resume);
        }
    }
    assert_eq!(vm.mapped(), [1, 0]);
    vm.check();
    // The frame moves: whoever looks again sees the new one.
    let memory = mmu.with_stage2(|stage2| stage2.memory().clone());
    memory.store(frame(2), 0, umbra_mmu_core::stage2::GpteSize::B8, 6);
    // Others go on.
    assert_eq!(vm.read(page(BASE, 4)), Seen::Done(7));
    mmu.invalidate_end(pair, PageState::Resident);
    assert_eq!((vm.read(page(BASE, 2)), vm.read(alias)), (Seen::Done(6), Seen::Done(6)));
    assert_eq!(vm.mapped(), [3, 0]);
    vm.check();
}

// REQ: HOST-1, MEM-6: a pair has one table of slots from start to end.
#[test]
fn slots_do_not_change_in_a_pair() {
    let mmu = mmu();
    set(&mmu, NONE);
    let mut vm = Vm::new(&mmu);
    vm.write(BASE, 1);
    let generation = mmu.generation();
    let pair = mmu.invalidate_start(frame(4), 2, Mappings::Present).unwrap();
    let busy = Err(ChangeError::Refused(SlotError::Busy));
    // Delete, move, other flags, the log, a new one.
    assert_eq!(set_slot(&mmu, 0, BASE, 0, 0, 0, NONE), busy);
    assert_eq!(set_slot(&mmu, 0, page(BASE, 512), PAGES, 0, 0, NONE), busy);
    assert_eq!(set_slot(&mmu, 0, BASE, PAGES, 0, 0, SlotFlags::READONLY), busy);
    assert_eq!(set_slot(&mmu, 0, BASE, PAGES, 0, 0, LOG), busy);
    assert_eq!(set_slot(&mmu, 1, Gfn::new(0x10), 4, 1, 0, NONE), busy);
    assert_eq!(
        mmu.resize(frame(8), Resize::Split(SplitFor::Owner)),
        Err(ResizeError::Busy)
    );
    assert_eq!((mmu.generation(), vm.mapped()), (generation, [1, 0]));
    vm.check();
    mmu.invalidate_end(pair, PageState::Away);
    set_slot(&mmu, 1, Gfn::new(0x10), 4, 1, 0, NONE).unwrap();
    set_slot(&mmu, 0, page(BASE, 512), PAGES, 0, 0, NONE).unwrap();
    assert_eq!(vm.read(page(BASE, 512 + 5)), needs(5, HostNeed::Frame));
    vm.check();
}

// REQ: HOST-1
#[test]
fn frames_that_are_write_protected_stay_mapped() {
    let mmu = mmu();
    set(&mmu, NONE);
    let mut vm = Vm::new(&mmu);
    vm.write(page(BASE, 1), 1);
    vm.write(LARGE, 2);
    mmu.write_protect_frames(frame(0), 8 + 512).unwrap();
    assert_eq!(vm.mapped(), [1, 1]);
    vm.check();
    assert_eq!((vm.read(page(BASE, 1)), vm.read(LARGE)), (Seen::Done(1), Seen::Done(2)));
    assert_eq!(vm.write(page(BASE, 1), 3), needs(1, HostNeed::Write));
    assert_eq!(vm.write(page(LARGE, 3), 3), needs(11, HostNeed::Write));
    // One that was not mapped before.
    assert_eq!(
        (vm.read(BASE), vm.write(BASE, 3)),
        (Seen::Done(0), needs(0, HostNeed::Write))
    );
    mmu.give_back(frame(0), 8).unwrap();
    assert_eq!(vm.write(page(BASE, 1), 3), Seen::Done(3));
    assert_eq!(vm.write(page(LARGE, 3), 3), needs(11, HostNeed::Write));
    mmu.give_back(frame(8), 512).unwrap();
    assert_eq!(vm.write(page(LARGE, 3), 3), Seen::Done(3));
    vm.check();
    // In a read-only slot a write is the VMM's, whatever the host says.
    set(&mmu, SlotFlags::READONLY);
    mmu.write_protect_frames(frame(0), 8).unwrap();
    assert!(matches!(vm.write(BASE, 3), Seen::Emulate(mmio) if mmio.readonly_slot));
    vm.check();
}

// REQ: AT-1, HOST-1, DT-3: what is used after it was made old is young, for both sizes; W comes back for writes only.
#[test]
fn what_is_used_becomes_young() {
    let mmu = mmu();
    set(&mmu, LOG);
    let mut vm = Vm::new(&mmu);
    let young = || {
        let mut found = Vec::new();
        mmu.test_and_clear_young(frame(0), PAGES, |frame, size| found.push((frame.page(), size)))
            .unwrap();
        found
    };
    vm.write(page(BASE, 1), 1);
    vm.write(page(BASE, 2), 2);
    vm.read(page(LARGE, 512));
    assert!(mmu.test_young(frame(1)) && mmu.test_young(frame(8 + 1023)) && !mmu.test_young(frame(3)));
    assert_eq!(
        young(),
        [(1, PageLevel::K4), (2, PageLevel::K4), (8 + 512, PageLevel::M2)]
    );
    vm.check();
    assert!(!mmu.test_young(frame(1)) && !mmu.test_young(frame(8 + 512)));
    assert_eq!(young(), []);
    assert_eq!(vm.take_log(), [1, 2]);
    // The next access is seen, by a fault; the mapping is the old one.
    assert_eq!(vm.read(page(BASE, 1)), Seen::Done(1));
    assert_eq!(vm.read(page(LARGE, 600)), Seen::Done(0));
    assert_eq!(vm.mapped(), [2, 1]);
    assert!(mmu.test_young(frame(1)) && !mmu.test_young(frame(2)));
    assert_eq!(young(), [(1, PageLevel::K4), (8 + 512, PageLevel::M2)]);
    assert_eq!(vm.take_log(), []);
    // W is not kept: the write after it goes through the log.
    assert_eq!(vm.write(page(BASE, 1), 9), Seen::Done(9));
    assert_eq!(vm.take_log(), [1]);
    assert_eq!(young(), [(1, PageLevel::K4)]);
    vm.check();
}

// REQ: HOST-1, HOST-2, AT-1
#[test]
fn frames_that_nobody_uses_are_reclaimed_first() {
    let mmu = mmu();
    set(&mmu, NONE);
    let mut vm = Vm::new(&mmu);
    for i in 0..8 {
        vm.write(page(BASE, i), i);
    }
    vm.write(LARGE, 1);
    vm.write(page(LARGE, 512), 1);
    mmu.test_and_clear_young(frame(0), PAGES, |_, _| {}).unwrap();
    vm.read(page(BASE, 3));
    vm.read(page(LARGE, 5));
    let mut taken = Vec::new();
    let mut reclaim = |wanted| {
        taken.clear();
        let pages = mmu
            .reclaim_old(frame(0), PAGES, wanted, |frame, _| taken.push(frame.page()))
            .unwrap();
        (pages, taken.clone())
    };
    assert_eq!(reclaim(3), (3, vec![0, 1, 2]));
    assert_eq!(reclaim(5), (4 + 512, vec![4, 5, 6, 7, 8 + 512]));
    assert_eq!((vm.mapped(), mmu.host().state(frame(8))), ([1, 1], PageState::Resident));
    assert_eq!(vm.read(page(BASE, 3)), Seen::Done(3));
    assert_eq!(vm.read(BASE), needs(0, HostNeed::Frame));
    assert_eq!(vm.read(page(LARGE, 513)), needs(8 + 513, HostNeed::Frame));
    vm.check();
}

// REQ: HOST-2, MEM-7: the capabilities go first, and then the MMU hears of it.
#[test]
fn revoked_frames_are_gone_for_good() {
    let mmu = mmu();
    set(&mmu, NONE);
    let mut vm = Vm::new(&mmu);
    for gfn in [BASE, page(BASE, 1), LARGE] {
        vm.write(gfn, 1);
    }
    mmu.with_stage2(|stage2| stage2.revoke_frames(frame(1), 7 + 512));
    assert!(mmu.audit().differences > 0);
    mmu.frames_revoked(frame(1), 7 + 512).unwrap();
    vm.check();
    assert_eq!(vm.mapped(), [1, 0]);
    assert_eq!(vm.read(page(BASE, 1)), needs(1, HostNeed::Revoked));
    assert_eq!(vm.write(page(LARGE, 9), 1), needs(8 + 9, HostNeed::Revoked));
    assert_eq!(vm.read(BASE), Seen::Done(1));
    set_slot(&mmu, 0, BASE, 0, 0, 0, NONE).unwrap();
    vm.check();
}

// REQ: HOST-2
#[test]
fn a_balloon_takes_what_slots_have() {
    let mmu = mmu();
    set(&mmu, NONE);
    let mut vm = Vm::new(&mmu);
    vm.write(page(BASE, 7), 1);
    // Two pages before the slot have no frame to give.
    assert_eq!(mmu.balloon(Gfn::new(BASE.raw() - 2), 10), Ok(8));
    assert_eq!(vm.read(page(BASE, 7)), needs(7, HostNeed::Frame));
    assert_eq!(mmu.balloon(page(LARGE, 1), 1), Err(HostError::PartOfLarge));
    mmu.resize(frame(8), Resize::Split(SplitFor::Owner)).unwrap();
    assert_eq!(mmu.balloon(page(LARGE, 1), 1), Ok(1));
    assert_eq!(
        (vm.read(LARGE), vm.read(page(LARGE, 1))),
        (Seen::Done(0), needs(9, HostNeed::Frame))
    );
    mmu.give_back(frame(9), 1).unwrap();
    assert_eq!(vm.read(page(LARGE, 1)), Seen::Done(0));
    vm.check();
}

// REQ: HOST-2, LP-1, LP-2: the frame behind a large mapping is replaced; what it holds stays.
#[test]
fn frames_are_split_and_merged_under_the_guest() {
    let mmu = mmu();
    set(&mmu, NONE);
    let mut vm = Vm::new(&mmu);
    vm.write(page(LARGE, 3), 3);
    mmu.resize(frame(99), Resize::Split(SplitFor::Owner)).unwrap();
    assert_eq!((vm.mapped(), vm.read(page(LARGE, 3))), ([0, 0], Seen::Done(3)));
    vm.write(page(LARGE, 4), 4);
    assert_eq!(vm.mapped(), [2, 0]);
    vm.check();
    let again = mmu.resize(frame(99), Resize::Split(SplitFor::Owner));
    assert_eq!(again, Err(ResizeError::Host(HostError::NotUniform)));
    // A slot that has a part of it, at another place, and not alone: nobody could map that out of a large frame.
    set_slot(&mmu, 1, Gfn::new(0x10), 4, 0, 20, NONE).unwrap();
    assert_eq!(mmu.resize(frame(8), Resize::Merge), Err(ResizeError::Slot(SlotId(1))));
    set_slot(&mmu, 1, Gfn::new(0x10), 0, 0, 0, NONE).unwrap();
    mmu.reclaim(frame(30), 1).unwrap();
    assert_eq!(
        mmu.resize(frame(8), Resize::Merge),
        Err(ResizeError::Host(HostError::NotUniform))
    );
    mmu.give_back(frame(30), 1).unwrap();
    mmu.with_stage2(|stage2| stage2.refuse_after(0));
    assert!(matches!(
        mmu.resize(frame(8), Resize::Merge),
        Err(ResizeError::Stage2(_))
    ));
    assert_eq!((vm.read(page(LARGE, 4)), vm.mapped()), (Seen::Done(4), [1, 0]));
    mmu.resize(frame(8), Resize::Merge).unwrap();
    assert_eq!(
        (vm.read(page(LARGE, 3)), vm.read(page(LARGE, 4))),
        (Seen::Done(3), Seen::Done(4))
    );
    assert_eq!(vm.mapped(), [0, 1]);
    vm.check();
    // Merged, it may not be cut by a slot.
    let cut = set_slot(&mmu, 1, Gfn::new(0x10), 4, 0, 20, NONE);
    assert_eq!(cut, Err(ChangeError::Refused(SlotError::Invalid)));
    // What has no 512 pages is no large frame.
    assert_eq!(
        mmu.resize(frame(3), Resize::Merge),
        Err(ResizeError::Host(HostError::NoPages))
    );
}

// REQ: LP-2, LP-3: a write-protected page inside splits the large page that would cover it.
#[test]
fn a_reason_against_large_sptes_is_kept() {
    let mmu = mmu();
    set(&mmu, NONE);
    let mut vm = Vm::new(&mmu);
    mmu.with_slots(|slots| slots.get(SlotId(0)).unwrap().data.large.disallow(page(LARGE, 9)));
    vm.write(page(LARGE, 3), 3);
    vm.write(page(LARGE, 512), 3);
    assert_eq!(vm.mapped(), [1, 1]);
    vm.check();
}

// REQ: MEM-3
#[test]
fn kinds_of_backings_have_rights() {
    let mmu = mmu();
    let mut vm = Vm::new(&mmu);
    let at = |backing: u16| Gfn::new(0x100 * u64::from(backing));
    let of = |backing: u16| umbra_mmu_core::stage2::Frame::new(BackingId(backing), 0).unwrap();
    for backing in 1..3 {
        set_slot(&mmu, backing, at(backing), 64, backing, 0, NONE).unwrap();
        assert_eq!(vm.write(at(backing), 1), Seen::Done(1));
    }
    let refused = Err(ChangeError::Refused(SlotError::Invalid));
    assert_eq!(set_slot(&mmu, 3, at(3), 64, 3, 0, NONE), refused);
    set_slot(&mmu, 3, at(3), 64, 3, 0, SlotFlags::READONLY).unwrap();
    assert_eq!(vm.read(at(3)), Seen::Done(0));
    assert!(matches!(vm.write(at(3), 1), Seen::Emulate(mmio) if mmio.readonly_slot));
    // A device's frames stay; those of the others go.
    assert_eq!(mmu.reclaim(of(2), 1), Err(HostError::Device));
    for backing in [1, 3] {
        mmu.reclaim(of(backing), 1).unwrap();
        let need = HostNeed::Frame;
        assert_eq!(
            vm.read(at(backing)),
            Seen::Host(HostFault {
                frame: of(backing),
                need
            })
        );
    }
    vm.check();
}

/// A number for each page that its content says.
const SALT: u64 = 0x1234_5678_0000;

// REQ: HOST-1, HOST-2, MEM-4, MEM-6, PF-3, LK-2: three processors use memory of both sizes while its owner does everything that
// it can, and slots come, go, move and are logged. The simulated hardware finds any use of a frame after its end.
#[test]
fn everything_at_once_leaves_the_guest_its_memory() {
    const MOVED: Gfn = Gfn::new(0x1_0000);
    let mmu = mmu();
    set(&mmu, NONE);
    let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for thread in 0..3u64 {
            let (mmu, stop, done) = (&mmu, &stop, &done);
            scope.spawn(move || {
                let mut vm = Vm::new(mmu);
                let mut random = thread + 1;
                while !stop.load(Ordering::Relaxed) {
                    random = random
                        .wrapping_mul(6364136223846793005)
                        .wrapping_add(1442695040888963407);
                    let near = random >> 60 & 1 == 0;
                    let at = (random >> 33) % if near { 16 } else { u64::from(PAGES) };
                    let gfn = match random >> 40 & 7 {
                        0 => page(MOVED, at % 8),
                        _ => page(BASE, at),
                    };
                    let seen = match random >> 50 & 1 {
                        0 => vm.write(gfn, gfn.raw() % 8 + SALT),
                        _ => vm.read(gfn),
                    };
                    match seen {
                        // Nobody writes anything else there, whoever moves it where.
                        Seen::Done(value) => {
                            assert!(value == 0 || value == gfn.raw() % 8 + SALT, "{value:#x} at {gfn}")
                        }
                        Seen::Emulate(_) | Seen::Host(_) | Seen::Stuck => thread::yield_now(),
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let mut random = 77u64;
        let mut next = |below: u32| {
            random = random
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (random >> 33) as u32 % below
        };
        let mut rounds = 0;
        while rounds < 2000 || done.load(Ordering::Relaxed) < 20_000 {
            rounds += 1;
            let (first, pages) = match next(3) {
                0 => (next(8), 1),
                1 => (8 + 512 * next(4), 512),
                _ => (8 + next(4 * 512), 1),
            };
            let first = frame(first);
            // Each may be refused, by sizes or by each other.
            match next(12) {
                0 | 1 => {
                    let _ = mmu.reclaim(first, pages);
                }
                2..=4 => {
                    let _ = mmu.give_back(first, pages);
                }
                5 => {
                    let _ = mmu.write_protect_frames(first, pages);
                }
                6 => {
                    let _ = mmu.test_and_clear_young(frame(0), PAGES, |_, _| {});
                }
                7 => {
                    let _ = mmu.resize(first, Resize::Split(SplitFor::Owner));
                }
                8 => {
                    let _ = mmu.resize(first, Resize::Merge);
                }
                9 => {
                    let flags = [NONE, LOG, SlotFlags::READONLY, LOG][next(4) as usize];
                    {
                        let _ = set_slot(&mmu, 0, BASE, PAGES, 0, 0, flags);
                    };
                    if flags == LOG {
                        let mut words = [0; PAGES.div_ceil(64) as usize];
                        {
                            let _ = mmu.get_and_clear_log(SlotId(0), 0, &mut words);
                        };
                    }
                }
                10 => {
                    let pages = [0, 8][next(2) as usize];
                    {
                        let _ = set_slot(&mmu, 1, MOVED, pages, 1, 0, NONE);
                    };
                }
                _ => {
                    mmu.zap_all();
                    mmu.background();
                }
            }
            if next(50) == 0 {
                {
                    let _ = mmu.give_back(frame(0), PAGES);
                };
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    while mmu.has_background_work() {
        mmu.background();
    }
    set(&mmu, NONE);
    mmu.give_back(frame(0), PAGES).unwrap();
    let mut vm = Vm::new(&mmu);
    vm.check();
    for at in 0..u64::from(PAGES) {
        assert!(matches!(vm.read(page(BASE, at)), Seen::Done(_)));
    }
    vm.check();
}
