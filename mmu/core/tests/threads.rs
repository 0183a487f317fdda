// SPDX-License-Identifier: MIT OR Apache-2.0
//! Do vCPUs that fault at the same time see their memory, whatever others change meanwhile? Real threads on simulated
//! hardware, and an audit at the end.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use umbra_mmu_abi::*;
use umbra_mmu_core::fault::{Fault, Outcome};
use umbra_mmu_core::sim::SimStage2;
use umbra_mmu_core::stage2::{BackingShape, Frame};
use umbra_mmu_core::vcpu::Vcpu;
use umbra_mmu_core::{Limits, Mmu, Requests};

const THREADS: u64 = 4;
const SHAPES: [BackingShape; 2] = [
    BackingShape {
        small_head: 2048,
        large: 4,
        small_tail: 0,
    },
    BackingShape {
        small_head: 256,
        large: 0,
        small_tail: 0,
    },
];
/// Where the first backing is, and, for others to come and go, the second.
const STEADY: u64 = 0x1_0000;
const COMING: u64 = 0x4_0100;

fn mmu(tables: usize) -> Mmu<SimStage2> {
    let limits = Limits {
        tables,
        ..Limits::default()
    };
    Mmu::new(SimStage2::new(SHAPES.to_vec(), 64), SHAPES.to_vec(), &limits).unwrap()
}

fn set(mmu: &Mmu<SimStage2>, id: u16, base: u64, npages: u32, backing: u16) {
    let backing = Backing {
        id: BackingId(backing),
        first_page: 0,
    };
    mmu.set_slot(SlotId(id), Gfn::new(base), npages, backing, SlotFlags::empty())
        .unwrap();
}

/// The guest's access, to its end; `None`: there is no memory.
fn access(mmu: &Mmu<SimStage2>, vcpu: &mut Vcpu, gfn: u64, write: Option<u64>) -> Option<u64> {
    let gpa = Gfn::new(gfn).gpa();
    // A slot that is going is not to be mapped until it is gone: the thread that deletes it has to run for that.
    let end = Instant::now() + Duration::from_secs(60);
    while Instant::now() < end {
        mmu.take_requests(vcpu);
        let tried = mmu.with_stage2(|sim| match write {
            Some(value) => sim.write(gpa, value).map(|()| value),
            None => sim.read(gpa),
        });
        let violation = match tried {
            Ok(value) => return Some(value),
            Err(violation) => violation,
        };
        match mmu
            .fault(vcpu, &Fault::violation(violation.gpa, violation.access))
            .unwrap()
        {
            // The frame is away or write-protected: its owner gives it back soon.
            Outcome::Resume | Outcome::Host(_) => thread::yield_now(),
            Outcome::Emulate(mmio) => {
                assert_eq!(mmio.gfn.raw(), gfn);
                return None;
            }
            other => panic!("{other:?} in EPT mode"),
        }
    }
    panic!("the access to {gpa} never ends");
}

struct Leaving<'a>(&'a AtomicU64);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}

/// Runs `guest` as each vCPU, and `host` until all of them are done.
fn run(mmu: &Mmu<SimStage2>, guest: impl Fn(u64, &mut Vcpu) + Sync, host: impl Fn(u64) + Sync) {
    let running = AtomicU64::new(THREADS);
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (guest, running) = (&guest, &running);
            scope.spawn(move || {
                // Also where it panics: the host would go on for ever.
                let _leaving = Leaving(running);
                guest(thread, &mut mmu.add_vcpu().unwrap());
            });
        }
        for round in 0.. {
            host(round);
            if running.load(Ordering::Acquire) == 0 && round >= 12 {
                break;
            }
            thread::yield_now();
        }
    });
    while mmu.has_background_work() {
        mmu.background();
    }
    let audit = mmu.audit();
    assert_eq!(audit.differences, 0, "{audit:?}");
    assert_eq!(mmu.with_stage2(|sim| sim.unflushed()), 0);
}

fn random(state: &mut u64) -> u64 {
    *state = state
        .wrapping_mul(6364136223846793005)
        .wrapping_add(1442695040888963407);
    *state >> 33
}

// REQ: LK-2: all of them begin with the same empty tables and map the same pages.
#[test]
fn faults_on_the_same_pages_map_each_of_them_once() {
    for _ in 0..20 {
        let mmu = mmu(64);
        set(&mmu, 0, STEADY, 2048 + 4 * 512, 0);
        run(
            &mmu,
            |thread, vcpu| {
                for i in 0..512 {
                    // Close behind each other, in each other's pages.
                    assert!(access(&mmu, vcpu, STEADY + i * 8 + thread % 2, Some(i)).is_some());
                }
            },
            |_| {},
        );
        assert_eq!(mmu.stat(Stat::Mapped4K) + mmu.stat(Stat::Mapped2M), 512 + 4);
    }
}

// REQ: LK-2, ZAP-1, ZAP-2, ZAP-3, MEM-6: and everything else happens meanwhile.
#[test]
fn guests_see_their_memory_while_everything_is_zapped_and_slots_come_and_go() {
    let mmu = mmu(40);
    set(&mmu, 0, STEADY, 2048 + 4 * 512, 0);
    set(&mmu, 1, COMING, 256, 1);
    let (there, seen) = (AtomicBool::new(true), AtomicU64::new(0));
    run(
        &mmu,
        |thread, vcpu| {
            let mut state = thread + 1;
            let mut own = vec![0u64; 2048 + 4 * 512];
            for step in 0..6000u64 {
                // Every page has one writer.
                let page = random(&mut state) % (own.len() as u64 / THREADS) * THREADS + thread;
                if random(&mut state).is_multiple_of(2) {
                    own[page as usize] = step + 1;
                    assert_eq!(access(&mmu, vcpu, STEADY + page, Some(step + 1)), Some(step + 1));
                } else {
                    assert_eq!(access(&mmu, vcpu, STEADY + page, None), Some(own[page as usize]));
                }
                // A slot that comes and goes: memory, or none.
                let coming = COMING + random(&mut state) % 256;
                if access(&mmu, vcpu, coming, Some(step)).is_some() {
                    seen.fetch_add(1, Ordering::Relaxed);
                }
                // No memory, in tables of their own.
                assert_eq!(
                    access(&mmu, vcpu, 0x100_0000 + (random(&mut state) % 64) * 512, None),
                    None
                );
            }
        },
        |round| {
            if round % 3 == 0 {
                mmu.zap_all();
            }
            mmu.background();
            if !there.swap(true, Ordering::Relaxed) {
                set(&mmu, 1, COMING, 256, 1);
            } else if round % 2 == 0 {
                there.store(false, Ordering::Relaxed);
                set(&mmu, 1, COMING, 0, 1);
            }
        },
    );
    assert!(seen.into_inner() > 0, "the slot was never there");
    assert!(mmu.stat(Stat::GenerationWraps) > 0);
}

// REQ: LK-2, DT-1, AT-1, HOST-1, HOST-2: no write is missing in the log, and every page has what was written last, while
// frames grow old, are taken away and given back, and the log is read.
#[test]
fn writes_are_logged_and_kept_while_frames_come_and_go() {
    const PAGES: u64 = 256;
    let mmu = mmu(40);
    let backing = Backing {
        id: BackingId(1),
        first_page: 0,
    };
    let base = Gfn::new(COMING);
    mmu.set_slot(SlotId(1), base, PAGES as u32, backing, SlotFlags::LOG_DIRTY)
        .unwrap();
    let first = Frame::new(BackingId(1), 0).unwrap();
    // Writes that were begun and that are done, by page; and up to which of them the log has told.
    let [begun, done, told] = [const { [const { AtomicU64::new(0) }; PAGES as usize] }; 3];
    let read_log = || {
        // What is done before the log is read is in this log or one before; what is begun after it, in one to come.
        let before: Vec<u64> = done.iter().map(|done| done.load(Ordering::SeqCst)).collect();
        let mut log = [0; PAGES as usize / 64];
        mmu.get_and_clear_log(SlotId(1), 0, &mut log).unwrap();
        for page in 0..PAGES as usize {
            if log[page / 64] & 1 << (page % 64) != 0 {
                told[page].store(begun[page].load(Ordering::SeqCst), Ordering::SeqCst);
            }
            let told = told[page].load(Ordering::SeqCst);
            assert!(told >= before[page], "a write to page {page} is in no log");
        }
    };
    run(
        &mmu,
        |thread, vcpu| {
            let mut state = thread + 77;
            let mut own = vec![0u64; PAGES as usize];
            for step in 0..4000u64 {
                let page = random(&mut state) % (PAGES / THREADS) * THREADS + thread;
                if random(&mut state).is_multiple_of(2) {
                    own[page as usize] = step + 1;
                    begun[page as usize].fetch_add(1, Ordering::SeqCst);
                    assert_eq!(access(&mmu, vcpu, COMING + page, Some(step + 1)), Some(step + 1));
                    done[page as usize].fetch_add(1, Ordering::SeqCst);
                } else {
                    assert_eq!(access(&mmu, vcpu, COMING + page, None), Some(own[page as usize]));
                }
            }
        },
        |round| {
            let frame = Frame::new(BackingId(1), (round as u32 * 48) % PAGES as u32).unwrap();
            let pages = 16;
            match round % 5 {
                0 => mmu.test_and_clear_young(first, PAGES as u32, |_, _| {}).unwrap(),
                1 => {
                    mmu.reclaim(frame, pages).unwrap();
                    mmu.give_back(frame, pages).unwrap();
                }
                2 => {
                    mmu.write_protect_frames(frame, pages).unwrap();
                    mmu.give_back(frame, pages).unwrap();
                }
                3 => mmu.zap_all(),
                _ => read_log(),
            }
            mmu.background();
        },
    );
    read_log();
}

// REQ: ZAP-1: every vCPU is told, once.
#[test]
fn zap_all_asks_every_vcpu_to_reload_its_roots() {
    let mmu = mmu(40);
    let vcpus = [(); 3].map(|()| mmu.add_vcpu().unwrap());
    for vcpu in &vcpus {
        assert_eq!(mmu.take_requests(vcpu), Requests::empty());
    }
    mmu.zap_all();
    for vcpu in &vcpus {
        assert_eq!(mmu.take_requests(vcpu), Requests::RELOAD_ROOTS);
        assert_eq!(mmu.take_requests(vcpu), Requests::empty());
    }
}
