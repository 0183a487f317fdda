// SPDX-License-Identifier: MIT OR Apache-2.0
//! Do the parts that faults and the host change at the same time keep what they know, in every interleaving?
#![cfg(feature = "loom")]

use loom::thread;
use std::collections::BTreeSet;
use std::sync::Arc;
use umbra_mmu_abi::{BackingId, Gfn, PageLevel};
use umbra_mmu_core::dirty::DirtyLog;
use umbra_mmu_core::invalidate::Invalidations;
use umbra_mmu_core::locks::{Held, MmuLock};
use umbra_mmu_core::pte_list::{ENTRIES_PER_ADD, PteEntries, PteList, PteReserve};
use umbra_mmu_core::role::Role;
use umbra_mmu_core::spte::{Format, Leaf, Rights, ShadowLayout, Spte, Writable};
use umbra_mmu_core::stage2::{Frame, TableLevel};
use umbra_mmu_core::sync::atomic::{AtomicU64, Ordering};
use umbra_mmu_core::table::{HeapWords, SptePlace, TableId, Tables};
use umbra_races::explore;

fn place(index: u16) -> SptePlace {
    SptePlace {
        table: TableId::from_raw(1),
        index,
    }
}

/// Reverse maps of two frames, and what one thread does to them.
struct Lists {
    entries: PteEntries,
    lists: [PteList; 2],
}

impl Lists {
    fn new(capacity: u32) -> Arc<Self> {
        Arc::new(Self {
            entries: PteEntries::new(capacity).unwrap(),
            lists: Default::default(),
        })
    }
    fn add(&self, list: usize, index: u16) {
        let mut reserve = PteReserve::default();
        self.entries.top_up(&mut reserve, ENTRIES_PER_ADD).unwrap();
        self.lists[list].add(&self.entries, &mut reserve, place(index));
        self.entries.release(&mut reserve);
    }
    fn remove(&self, list: usize, index: u16) {
        self.lists[list].remove(&self.entries, place(index));
    }
    fn sptes(&self, list: usize) -> BTreeSet<u16> {
        self.lists[list]
            .places(&self.entries)
            .map(|place| place.index)
            .collect()
    }
}

/// Two faults map one frame for the first time.
// REQ: RM-1
#[test]
fn two_sptes_of_one_frame_are_both_in_its_list() {
    explore(3, || {
        let lists = Lists::new(4);
        let other = thread::spawn({
            let lists = lists.clone();
            move || lists.add(0, 2)
        });
        lists.add(0, 1);
        other.join().unwrap();
        assert_eq!(lists.sptes(0), [1, 2].into());
        assert_eq!(lists.entries.free_count(), 2);
    });
}

/// A chain shrinks to one spte, which needs no entry, while another one is added.
// REQ: RM-1
#[test]
fn an_spte_is_added_while_another_one_goes() {
    explore(3, || {
        let lists = Lists::new(6);
        lists.add(0, 1);
        lists.add(0, 2);
        let other = thread::spawn({
            let lists = lists.clone();
            move || lists.add(0, 3)
        });
        lists.remove(0, 2);
        other.join().unwrap();
        assert_eq!(lists.sptes(0), [1, 3].into());
        assert_eq!(lists.entries.free_count(), 4);
    });
}

/// One fault looks at the first free entry; before it takes it, another thread takes two and gives the first back.
// REQ: RM-1
#[test]
fn an_entry_that_left_and_came_back_is_not_taken_for_one_that_stayed() {
    explore(3, || {
        let lists = Lists::new(6);
        lists.add(0, 1);
        lists.add(1, 11);
        let other = thread::spawn({
            let lists = lists.clone();
            move || {
                lists.add(1, 12);
                lists.add(1, 13);
                lists.remove(1, 12);
            }
        });
        lists.add(0, 2);
        other.join().unwrap();
        assert_eq!((lists.sptes(0), lists.sptes(1)), ([1, 2].into(), [11, 13].into()));
        assert_eq!(lists.entries.free_count(), 2);
    });
}

/// Two vCPUs write to pages of one word of the log while somebody takes it.
// REQ: DT-1, DT-3
#[test]
fn a_mark_is_in_one_answer_or_still_in_the_log() {
    explore(4, || {
        let log = Arc::new(DirtyLog::new(Gfn::new(0), 64).unwrap());
        let writes = thread::spawn({
            let log = log.clone();
            move || log.mark(Gfn::new(1))
        });
        log.mark(Gfn::new(0));
        let taken = log.take(0, u64::MAX);
        writes.join().unwrap();
        assert_eq!(taken & 1, 1, "it was marked before");
        assert_eq!(taken | log.get(0), 0b11);
        assert_eq!(taken & log.get(0), 0, "taken and still there");
    });
}

/// A processor that walks the tables sets D in a leaf that the MMU takes away or makes clean. A write that it let through
/// is in what the MMU finds, or was made with the leaf that is there afterwards.
///
/// ```text
/// processor                       MMU
/// ---------                       ---
///                                 read the spte: not dirty
/// D, by one exchange
/// (the guest writes)
///                                 store the new spte: D is lost
/// ```
// REQ: LK-3, DT-3
#[test]
fn a_dirty_bit_that_a_processor_sets_is_not_lost() {
    const DIRTY: u64 = 1 << 6;
    let layout = ShadowLayout {
        backing_shift: 20,
        tables_base: 1 << 30,
        maxphyaddr: 40,
    };
    let format = Format::Shadow(layout);
    let leaf = Spte::leaf(
        format,
        Leaf {
            frame: Frame::new(BackingId(0), 3).unwrap(),
            level: PageLevel::K4,
            writable: Writable::Now,
            rights: Rights::ALL,
        },
    );
    for zap in [true, false] {
        explore(3, move || {
            let tables = Tables::new(HeapWords::new(2).unwrap(), format).unwrap();
            let role = Role::ept(TableLevel::Pt);
            let table = tables.take(&mut Held::entry(), Gfn::new(0), role, 0).unwrap();
            let place = SptePlace { table, index: 1 };
            tables.set(place, leaf);
            let tables = Arc::new(tables);
            let writes = thread::spawn({
                let tables = tables.clone();
                move || {
                    let word = &tables.words(table)[1];
                    let seen = word.load(Ordering::Relaxed);
                    let order = Ordering::AcqRel;
                    seen & 1 != 0
                        && word
                            .compare_exchange(seen, seen | DIRTY, order, Ordering::Relaxed)
                            .is_ok()
                }
            });
            let old = match zap {
                true => tables.set(place, Spte::EMPTY),
                false => tables.clear(place, DIRTY | 2),
            };
            let written = writes.join().unwrap();
            let left = tables.read(place).raw();
            assert!(!written || (old.raw() | left) & DIRTY != 0, "a write is lost");
        });
    }
}

/// The host moves a page. A fault looks where it is, and installs what it saw if it may.
///
/// ```text
/// fault                           host
/// -----                           ----
/// seq, look: the old frame
///                                 lock: begin, zap; unlock
///                                 the page moves
///                                 lock: end; unlock
/// lock: must retry?
/// ```
// REQ: LK-3, PF-3, HOST-1
#[test]
fn a_frame_that_was_seen_before_an_invalidation_is_not_installed() {
    const PAGE: Gfn = Gfn::new(5);
    struct World {
        invalidate: Invalidations,
        mmu_lock: MmuLock<()>,
        /// Where the page is.
        frame: AtomicU64,
        /// The spte: a frame, or 0.
        spte: AtomicU64,
    }
    explore(3, || {
        let world = Arc::new(World {
            invalidate: Invalidations::default(),
            mmu_lock: MmuLock::new(()),
            frame: AtomicU64::new(1),
            spte: AtomicU64::new(0),
        });
        let faults = thread::spawn({
            let world = world.clone();
            move || {
                let seq = world.invalidate.seq();
                let frame = world.frame.load(Ordering::Relaxed);
                let mut held = Held::entry();
                let _mmu = world.mmu_lock.read(&mut held);
                if !world.invalidate.must_retry(seq, PAGE) {
                    world.spte.store(frame, Ordering::Relaxed);
                }
            }
        });
        let mut held = Held::entry();
        let pair = world.invalidate.enter();
        {
            let _mmu = world.mmu_lock.write(&mut held);
            world.invalidate.begin(PAGE, Gfn::new(6));
            world.spte.store(0, Ordering::Relaxed);
        }
        world.frame.store(2, Ordering::Relaxed);
        {
            let _mmu = world.mmu_lock.write(&mut held);
            world.invalidate.end();
        }
        world.invalidate.leave(pair);
        faults.join().unwrap();
        assert_ne!(
            world.spte.load(Ordering::Relaxed),
            1,
            "mapped where the page is not any more"
        );
    });
}

/// A pair of an invalidation uses one table of slots; a slot change waits for it.
// REQ: HOST-1, LK-1
#[test]
fn no_table_of_slots_is_published_inside_a_pair() {
    explore(3, || {
        let world = Arc::new((Invalidations::default(), AtomicU64::new(1)));
        let changes = thread::spawn({
            let world = world.clone();
            move || world.0.publish_after_pairs(|| world.1.store(2, Ordering::Relaxed))
        });
        let pair = world.0.enter();
        let start = world.1.load(Ordering::Relaxed);
        thread::yield_now();
        assert_eq!(world.1.load(Ordering::Relaxed), start);
        world.0.leave(pair);
        changes.join().unwrap();
        assert_eq!(world.1.load(Ordering::Relaxed), 2);
    });
}
