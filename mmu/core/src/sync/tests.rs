// SPDX-License-Identifier: MIT OR Apache-2.0
//! Do the locks, epochs and published copies do what they say, with real threads too?

use super::atomic::{AtomicBool, AtomicU64, Ordering};
use super::*;
use std::thread;
use std::time::Duration;
use std::vec::Vec;

#[test]
fn a_walker_keeps_what_was_retired_after_it_began() {
    let epochs = Epochs::new();
    let (mut one, mut two) = (epochs.walker().unwrap(), epochs.walker().unwrap());
    let before = epochs.retire();
    let walking = epochs.enter(&mut one);
    let during = epochs.retire();
    let later = epochs.enter(&mut two);
    assert!(epochs.is_safe(before) && !epochs.is_safe(during));
    drop(walking);
    assert!(epochs.is_safe(during), "the second walker began after it was retired");
    let last = epochs.retire();
    assert!(!epochs.is_safe(last));
    drop(later);
    assert!(epochs.is_safe(last) && epochs.is_safe(Epoch::ZERO));
}

#[test]
fn there_are_so_many_walkers() {
    let epochs = Epochs::new();
    let mut walkers: Vec<_> = core::iter::from_fn(|| epochs.walker()).collect();
    assert_eq!(walkers.len(), MAX_WALKERS);
    let last = epochs.enter(walkers.last_mut().unwrap());
    let retired = epochs.retire();
    assert!(!epochs.is_safe(retired), "the last walker counts too");
    drop(last);
    assert!(epochs.is_safe(retired));
}

#[test]
fn an_edit_is_seen_when_it_is_published() {
    let table = Published::new([1], [1]);
    let before = table.read();
    let mut edit = table.edit();
    edit[0] = 2;
    assert_eq!(*table.read(), [1]);
    let unsynchronized = edit.publish();
    assert_eq!((*table.read(), *before), ([2], [1]));
    drop(before);
    table.synchronize(unsynchronized);
    let mut edit = table.edit();
    assert_eq!(edit.split(), (&[2], &mut [1]));
}

#[test]
fn a_reader_does_not_see_an_old_table_after_synchronize() {
    let table = Published::new(0_u64, 0);
    let (newest, done) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let least = newest.load(Ordering::SeqCst);
                    let seen = *table.read();
                    assert!(seen >= least, "{seen} was read after {least} was out everywhere");
                }
            });
        }
        for value in 1..=20_000 {
            let mut edit = table.edit();
            *edit = value;
            let unsynchronized = edit.publish();
            table.synchronize(unsynchronized);
            newest.store(value, Ordering::SeqCst);
        }
        done.store(true, Ordering::Relaxed);
    });
}

/// One node of two words, which agree whenever it is linked: a walker that found it linked must see no reuse.
#[test]
fn what_a_walker_sees_is_not_reused() {
    let epochs = Epochs::new();
    let (linked, done) = (AtomicU64::new(0), AtomicBool::new(false));
    let node = [const { AtomicU64::new(0) }; 2];
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut walker = epochs.walker().unwrap();
            while !done.load(Ordering::Relaxed) {
                let _walking = epochs.enter(&mut walker);
                if linked.load(Ordering::Acquire) == 1 {
                    let first = node[0].load(Ordering::Acquire);
                    assert_eq!(first, node[1].load(Ordering::Acquire), "reused under the walker");
                }
            }
        });
        for round in 0..20_000 {
            for word in &node {
                word.store(round, Ordering::Release);
            }
            linked.store(1, Ordering::Release);
            linked.store(0, Ordering::Release);
            let retired = epochs.retire();
            while !epochs.is_safe(retired) {
                thread::yield_now();
            }
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn neither_readers_nor_writers_starve() {
    const ROUNDS: u64 = 20;
    let lock = RwLock::new(0_u64);
    let (writers, done) = (AtomicU64::new(2), AtomicBool::new(false));
    let stay = Duration::from_micros(200);
    thread::scope(|scope| {
        // Three readers that come back at once: somebody is always inside.
        for _ in 0..3 {
            scope.spawn(|| {
                let mut entered = 0;
                while entered < ROUNDS || !done.load(Ordering::Relaxed) {
                    let guard = lock.read();
                    thread::sleep(stay);
                    drop(guard);
                    entered += 1;
                }
            });
        }
        // Two writers that come back at once as well, until all three are through.
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..ROUNDS {
                    let mut guard = lock.write();
                    thread::sleep(stay);
                    *guard += 1;
                }
                if writers.fetch_sub(1, Ordering::Relaxed) == 1 {
                    done.store(true, Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(*lock.read(), 2 * ROUNDS);
}

// REQ: SP-10
#[test]
fn no_reader_sees_half_of_a_word() {
    let words = [const { AtomicU64::new(0) }; 8];
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..2_000_000_u64 {
                // Both halves of a value that is never torn are alike.
                let half = u64::from(round as u32);
                words[round as usize % 8].store(half << 32 | half, Ordering::Relaxed);
            }
            done.store(true, Ordering::Release);
        });
        while !done.load(Ordering::Acquire) {
            for word in &words {
                let seen = word.load(Ordering::Relaxed);
                assert_eq!(
                    seen >> 32,
                    seen & 0xffff_ffff,
                    "{seen:#x} is half of one value and half of another"
                );
            }
        }
    });
}
