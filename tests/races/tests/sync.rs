// SPDX-License-Identifier: MIT OR Apache-2.0
//! Do epochs and published copies keep their promises in every interleaving?
#![cfg(feature = "loom")]
// The checker's cell is not `Sync`, because it is there to find out.
#![allow(clippy::arc_with_non_send_sync)]

use loom::cell::UnsafeCell;
use loom::thread;
use std::sync::Arc;
use umbra_mmu_core::sync::atomic::{AtomicU64, Ordering};
use umbra_mmu_core::sync::{Epoch, Epochs, Published, RwLock};
use umbra_races::explore;

/// A node that one word links. The checker sees who touches it while another thread uses it for something else.
struct Node {
    epochs: Epochs,
    linked: AtomicU64,
    node: UnsafeCell<()>,
    retired: AtomicU64,
}

impl Node {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            epochs: Epochs::new(),
            linked: AtomicU64::new(1),
            node: UnsafeCell::new(()),
            retired: AtomicU64::new(0),
        })
    }
    fn walk(&self, times: u32) {
        let mut walker = self.epochs.walker().unwrap();
        for _ in 0..times {
            let _walking = self.epochs.enter(&mut walker);
            if self.linked.load(Ordering::Relaxed) == 1 {
                self.node.with(|_| ());
            }
        }
    }
    fn unlink(&self) -> Epoch {
        self.linked.store(0, Ordering::Relaxed);
        self.epochs.retire()
    }
    fn reuse_if_safe(&self, retired: Epoch) {
        if self.epochs.is_safe(retired) {
            self.node.with_mut(|_| ());
        }
    }
}

/// A table is freed and handed out again while a walker without locks is on its way.
// REQ: LK-2
#[test]
fn a_freed_node_is_not_reused_under_a_walker() {
    explore(4, || {
        let node = Node::new();
        let walks = thread::spawn({
            let node = node.clone();
            move || node.walk(2)
        });
        let retired = node.unlink();
        node.reuse_if_safe(retired);
        walks.join().unwrap();
        assert!(node.epochs.is_safe(retired), "nobody walks any more");
    });
}

/// The same, but another thread looks whether it is safe, and may find what a third one found before.
// REQ: LK-2
#[test]
fn whoever_reuses_a_freed_node_waits_for_its_walkers() {
    explore(2, || {
        let node = Node::new();
        let walks = thread::spawn({
            let node = node.clone();
            move || node.walk(1)
        });
        let looks = thread::spawn({
            let node = node.clone();
            move || {
                node.epochs.safe_epoch();
                // Acquire: as a list of free tables, behind its lock.
                match node.retired.load(Ordering::Acquire) {
                    0 => {}
                    retired => node.reuse_if_safe(Epoch::from_raw(retired)),
                }
            }
        });
        let retired = node.unlink();
        node.retired.store(retired.raw(), Ordering::Release);
        walks.join().unwrap();
        looks.join().unwrap();
    });
}

/// A slot was deleted, everybody who could see it has been waited for: nobody finds it any more.
// REQ: LK-1
#[test]
fn no_reader_sees_an_old_table_after_synchronize() {
    explore(3, || {
        let table = Arc::new(Published::new(0_u64, 0));
        let newest = Arc::new(AtomicU64::new(0));
        let reads = thread::spawn({
            let (table, newest) = (table.clone(), newest.clone());
            move || {
                let least = newest.load(Ordering::Acquire);
                let section = table.read();
                assert!(*section >= least, "{} was read after {least}", *section);
            }
        });
        for value in 1..=2 {
            let mut edit = table.edit();
            *edit = value;
            let unsynchronized = edit.publish();
            table.synchronize(unsynchronized);
            newest.store(value, Ordering::Release);
        }
        reads.join().unwrap();
        assert_eq!(*table.read(), 2);
    });
}

/// What a section found is still in use by somebody when the slot's data are taken away.
// REQ: LK-1
#[test]
fn synchronize_waits_for_sections_that_began_before() {
    explore(3, || {
        let table = Arc::new((Published::new(true, true), UnsafeCell::new(())));
        let reads = thread::spawn({
            let table = table.clone();
            move || {
                let section = table.0.read();
                if *section {
                    table.1.with(|_| ());
                }
            }
        });
        let mut edit = table.0.edit();
        *edit = false;
        let unsynchronized = edit.publish();
        table.0.synchronize(unsynchronized);
        table.1.with_mut(|_| ());
        reads.join().unwrap();
    });
}

/// Reading and writing are the checker's; this shows that the facade passes them on.
#[test]
fn a_lock_of_the_facade_is_a_lock() {
    explore(3, || {
        let lock = Arc::new(RwLock::new([0_u64; 2]));
        let writes = thread::spawn({
            let lock = lock.clone();
            move || {
                let mut guard = lock.write();
                guard[0] += 1;
                thread::yield_now();
                guard[1] += 1;
            }
        });
        let seen = *lock.read();
        assert_eq!(seen[0], seen[1]);
        writes.join().unwrap();
    });
}

/// What is no part of `sync` is seen by no checker, so nothing that threads share may be made otherwise.
// REQ: LK-3
#[test]
fn all_that_threads_share_comes_from_the_facade() {
    fn look(folder: &std::path::Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                if !path.ends_with("src/sync") && !path.ends_with("tests") {
                    look(&path, found);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
                let foreign = ["core::sync::", "spin::", "core::hint::spin_loop"];
                // A frame of the simulation is made when it is first used, by whoever.
                let code = code.replace("use spin::Once;", "");
                let uses = foreign.iter().filter(|word| code.contains(*word));
                found.extend(uses.map(|word| format!("{}: {word}", path.display())));
            }
        }
    }
    let core = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../mmu/core/src");
    let mut found = Vec::new();
    look(&core, &mut found);
    assert!(found.is_empty(), "{found:#?}");
}
