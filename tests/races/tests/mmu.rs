// SPDX-License-Identifier: MIT OR Apache-2.0
//! Does the whole MMU keep its promises when vCPUs fault while others fault, zap, and change slots?
#![cfg(all(feature = "shuttle", not(feature = "loom")))]

use shuttle::thread;
use std::sync::Arc;
use umbra_mmu_abi::{Access, Backing, BackingId, Generation, Gfn, SlotFlags, SlotId, Stat};
use umbra_mmu_core::fault::{Fault, Outcome};
use umbra_mmu_core::host::PageState;
use umbra_mmu_core::notify::Mappings;
use umbra_mmu_core::sim::{SimStage2, Violation};
use umbra_mmu_core::stage2::{BackingShape, Frame, GpteSize};
use umbra_mmu_core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use umbra_mmu_core::vcpu::Vcpu;
use umbra_mmu_core::{Limits, Mmu};
use umbra_races::explore;
use umbra_races::preempt::Stopped;

const SHAPES: [BackingShape; 1] = [BackingShape {
    small_head: 4,
    large: 0,
    small_tail: 0,
}];
const BASE: Gfn = Gfn::new(0x100);
const SLOT: SlotId = SlotId(0);
/// What guests write.
const WRITTEN: u64 = 7;

/// An MMU whose slot 0 has one page, [`BASE`].
struct World {
    mmu: Mmu<SimStage2>,
}

/// How the guest's access ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// In memory.
    Done,
    /// There is none.
    Emulated,
    /// The host has the frame.
    Away,
}

impl World {
    fn new(tables: u32, flags: SlotFlags) -> Arc<Self> {
        let limits = Limits {
            tables: tables as usize,
            rmap_entries: 8,
            // Far from the wrap, at which all MMIO sptes go.
            first_generation: Generation(8),
        };
        let mmu = Mmu::new(SimStage2::new(SHAPES.to_vec(), 2 * tables), SHAPES.to_vec(), &limits).unwrap();
        let world = Self { mmu };
        world.create(SLOT, BASE, 0, flags);
        Arc::new(world)
    }

    /// A slot of one page.
    fn create(&self, id: SlotId, base: Gfn, page: u32, flags: SlotFlags) {
        let backing = Backing {
            id: BackingId(0),
            first_page: page,
        };
        self.mmu.set_slot(id, base, 1, backing, flags).unwrap();
    }

    fn vcpu(&self) -> Vcpu {
        self.mmu.add_vcpu().unwrap()
    }

    fn delete(&self, id: SlotId) {
        let backing = Backing {
            id: BackingId(0),
            first_page: 0,
        };
        self.mmu.set_slot(id, BASE, 0, backing, SlotFlags::empty()).unwrap();
    }

    /// The guest accesses the page, if the hardware translates it.
    fn touch(&self, gfn: Gfn, access: Access) -> Result<(), Violation> {
        self.mmu.with_stage2(|hardware| match access {
            Access::Write => hardware.write(gfn.gpa(), WRITTEN),
            Access::Read | Access::Fetch => hardware.read(gfn.gpa()).map(|_| ()),
        })
    }

    /// The guest accesses the page once; it faults until that is answered.
    fn access(&self, vcpu: &mut Vcpu, gfn: Gfn, access: Access) -> Ended {
        for _ in 0..20 {
            let Err(violation) = self.touch(gfn, access) else {
                return Ended::Done;
            };
            let fault = Fault::violation(violation.gpa, violation.access);
            match self.mmu.fault(vcpu, &fault).unwrap() {
                // Others may have what it takes just now.
                Outcome::Resume => thread::yield_now(),
                Outcome::Emulate(_) => return Ended::Emulated,
                Outcome::Host(_) => return Ended::Away,
                other => panic!("{other:?} in EPT mode"),
            }
        }
        panic!("{gfn} is never mapped")
    }

    /// A fault that is not tried again: where there is no table for it, none is waited for.
    fn fault_once(&self, vcpu: &mut Vcpu, gfn: Gfn, access: Access) {
        self.mmu.fault(vcpu, &Fault::violation(gfn.gpa(), access)).unwrap();
    }

    fn is_logged(&self, id: SlotId, gfn: Gfn) -> bool {
        self.mmu
            .with_slots(|slots| slots.get(id).unwrap().data.dirty.is_marked(gfn))
    }

    /// The frame behind [`BASE`].
    fn frame() -> Frame {
        Frame::new(BackingId(0), 0).unwrap()
    }

    /// What is in that frame.
    fn content(&self) -> u64 {
        self.mmu
            .with_stage2(|hardware| hardware.memory().load(Self::frame(), 0, GpteSize::B8))
    }

    /// Whether the log has the page at [`BASE`]; it is there no more.
    fn take_log(&self) -> bool {
        let mut words = [0];
        self.mmu.get_and_clear_log(SLOT, 0, &mut words).unwrap();
        words[0] & 1 != 0
    }

    fn check(&self) {
        let audit = self.mmu.audit();
        assert_eq!(audit.differences, 0, "{:?}", audit.first);
        let unflushed = self.mmu.with_stage2(|hardware| hardware.unflushed());
        assert_eq!(unflushed, 0, "nobody will flush that");
    }
}

/// Starts a thread with a vCPU of its own.
fn with_vcpu(world: &Arc<World>, act: impl FnOnce(&World, &mut Vcpu) + Send + 'static) -> thread::JoinHandle<()> {
    let (world, mut vcpu) = (world.clone(), world.vcpu());
    thread::spawn(move || act(&world, &mut vcpu))
}

fn join(threads: impl IntoIterator<Item = thread::JoinHandle<()>>) {
    for thread in threads {
        thread.join().unwrap();
    }
}

/// Both look at an empty tree, both make tables, one of them installs the leaf.
// REQ: LK-2, LK-3
#[test]
fn two_faults_on_one_gfn_make_one_mapping() {
    explore(Stopped::All, 1, || {
        let world = World::new(8, SlotFlags::empty());
        join([Access::Read, Access::Write].map(|access| {
            with_vcpu(&world, move |world, vcpu| {
                assert_eq!(world.access(vcpu, BASE, access), Ended::Done);
            })
        }));
        assert_eq!(world.mmu.stat(Stat::Mapped4K), 1);
        world.check();
    });
}

/// ```text
/// fault                           slot change
/// -----                           -----------
/// find the slot, plan
///                                 delete the slot, zap what it maps
/// install?
/// ```
/// After the change nobody reaches the frame, and another slot may have it.
// REQ: LK-3, MEM-6
#[test]
fn a_deleted_slot_is_not_mapped_by_a_fault_that_found_it() {
    explore(Stopped::All, 0, || {
        let world = World::new(8, SlotFlags::empty());
        let deleted = Arc::new(AtomicBool::new(false));
        let faults = with_vcpu(&world, {
            let deleted = deleted.clone();
            move |world, vcpu| {
                for _ in 0..2 {
                    let after = deleted.load(Ordering::SeqCst);
                    let ended = world.access(vcpu, BASE, Access::Write);
                    assert!(!after || ended == Ended::Emulated, "the slot was deleted before");
                }
            }
        });
        let changes = with_vcpu(&world, move |world, _| {
            world.delete(SLOT);
            deleted.store(true, Ordering::SeqCst);
            // Its frame is used again: the hardware objects if a processor can still reach it.
            world.create(SlotId(1), Gfn::new(0x200), 0, SlotFlags::empty());
        });
        join([faults, changes]);
        assert!(world.touch(BASE, Access::Read).is_err());
        world.check();
    });
}

/// A gfn without a slot is cached as MMIO while a slot for it is made.
// REQ: GEN-6, LK-3
#[test]
fn a_new_slot_is_seen_by_a_fault_that_did_not_find_it() {
    explore(Stopped::All, 0, || {
        let world = World::new(8, SlotFlags::empty());
        let (gfn, made) = (Gfn::new(0x101), Arc::new(AtomicBool::new(false)));
        let faults = with_vcpu(&world, {
            let made = made.clone();
            move |world, vcpu| {
                for _ in 0..2 {
                    let after = made.load(Ordering::SeqCst);
                    let ended = world.access(vcpu, gfn, Access::Write);
                    assert!(!after || ended == Ended::Done, "the slot was there before");
                }
                assert!(!made.load(Ordering::SeqCst) || world.access(vcpu, gfn, Access::Write) == Ended::Done);
            }
        });
        let changes = with_vcpu(&world, move |world, _| {
            world.create(SlotId(1), gfn, 1, SlotFlags::empty());
            made.store(true, Ordering::SeqCst);
        });
        join([faults, changes]);
        world.check();
    });
}

/// Everything is zapped while the guest writes to a page that is to be restored without mmu_lock: its W, or all of it.
fn write_while_everything_is_zapped(old: bool) {
    explore(Stopped::First, 0, move || {
        let world = World::new(8, SlotFlags::LOG_DIRTY);
        let mut vcpu = world.vcpu();
        world.access(&mut vcpu, BASE, Access::Read);
        if old {
            world.mmu.test_and_clear_young(World::frame(), 1, |_, _| {}).unwrap();
        }
        let faults = with_vcpu(&world, |world, vcpu| {
            assert_eq!(world.access(vcpu, BASE, Access::Write), Ended::Done);
        });
        let zaps = with_vcpu(&world, |world, _| world.mmu.zap_all());
        join([faults, zaps]);
        while world.mmu.has_background_work() {
            world.mmu.background();
        }
        assert!(world.is_logged(SLOT, BASE), "a write was lost");
        assert_eq!(world.access(&mut vcpu, BASE, Access::Write), Ended::Done);
        world.check();
    });
}

// REQ: LK-2, LK-3, ZAP-1, ZAP-2
#[test]
fn w_is_restored_while_everything_is_zapped() {
    write_while_everything_is_zapped(false);
}

// REQ: LK-2, LK-3, ZAP-1, AT-1
#[test]
fn an_old_leaf_is_restored_while_everything_is_zapped() {
    write_while_everything_is_zapped(true);
}

/// Where the pages of these models lie: each has a page table of its own below one directory, at the same index.
const fn apart(n: u64) -> Gfn {
    Gfn::new(BASE.raw() + 512 * n)
}

/// A world whose only table that anybody can get is that of slot 0, once it is freed: slot 1 keeps the directory,
/// MMIO sptes have the rest.
fn world_without_tables(vcpu: &mut Option<Vcpu>) -> Arc<World> {
    let world = World::new(8, SlotFlags::LOG_DIRTY);
    world.create(SlotId(1), apart(1), 1, SlotFlags::empty());
    let vcpu = vcpu.insert(world.vcpu());
    for (gfn, ended) in [
        (BASE, Ended::Done),
        (apart(1), Ended::Done),
        (apart(4), Ended::Emulated),
        (apart(5), Ended::Emulated),
        (apart(6), Ended::Emulated),
    ] {
        assert_eq!(world.access(vcpu, gfn, Access::Read), ended);
    }
    world
}

/// The fast fix exchanges an spte if it is still the one that it saw. Meanwhile its table may have been freed and used for
/// another gfn that maps the same frame: the word would be the same, and a write to the other gfn lost (ABA).
///
/// ```text
/// fast fix for A                  others
/// --------------                  ------
/// walk to A's spte: frame 0
///                                 slot of A goes and comes back: its table is freed
///                                 B is mapped to frame 0, in the same table
/// set W if it is still frame 0
/// log A
/// ```
// REQ: LK-3, DT-2
#[test]
fn a_table_that_a_fast_fix_looks_at_is_not_used_for_another_gfn() {
    explore(Stopped::First, 0, || {
        let mut vcpu = None;
        let world = world_without_tables(&mut vcpu);
        let faults = with_vcpu(&world, |world, vcpu| {
            world.access(vcpu, BASE, Access::Write);
        });
        let reuses = with_vcpu(&world, |world, vcpu| {
            world.delete(SLOT);
            world.create(SLOT, BASE, 0, SlotFlags::LOG_DIRTY);
            world.create(SlotId(2), apart(2), 0, SlotFlags::LOG_DIRTY);
            world.fault_once(vcpu, apart(2), Access::Read);
        });
        join([faults, reuses]);
        for (id, gfn) in [(SLOT, BASE), (SlotId(2), apart(2))] {
            if world.touch(gfn, Access::Write).is_ok() {
                assert!(world.is_logged(id, gfn), "a write to {gfn} is lost");
            }
        }
        world.check();
    });
}

/// Slots that show the frame of [`BASE`] elsewhere, each with a page table of its own.
fn aliases() -> impl Iterator<Item = (SlotId, Gfn)> {
    (2..7).map(|id| (SlotId(id), apart(id as u64)))
}

/// A world whose tables are as many as its slots can need, and one; [`BASE`] is mapped.
fn world_with_aliases() -> Arc<World> {
    let world = World::new(10, SlotFlags::LOG_DIRTY);
    for (id, gfn) in aliases() {
        world.create(id, gfn, 0, SlotFlags::LOG_DIRTY);
    }
    assert_eq!(world.access(&mut world.vcpu(), BASE, Access::Read), Ended::Done);
    world
}

/// Everything is zapped, the old tables are freed, and all tables are used again: for other gfns of the same frame.
fn use_all_tables_again(world: &World, vcpu: &mut Vcpu) {
    world.mmu.zap_all();
    while world.mmu.has_background_work() {
        world.mmu.background();
    }
    // Tables that are free already go to MMIO sptes first.
    for gfn in [apart(7), apart(8)].into_iter().chain(aliases().map(|(_, gfn)| gfn)) {
        world.fault_once(vcpu, gfn, Access::Read);
    }
}

/// The same race, with a zap-all, which waits for no reader of the slots: only the walk keeps the table.
///
/// ```text
/// fast fix for A                  others
/// --------------                  ------
/// walk to A's spte: frame 0
///                                 all is zapped, and A's table is freed
///                                 B is mapped to frame 0, in the same table
/// set W if it is still frame 0
/// log A
/// ```
// REQ: LK-2, LK-3, DT-2
#[test]
fn a_table_that_zap_all_frees_is_not_used_again_before_a_fast_fix_is_done() {
    explore(Stopped::First, 0, || {
        let world = world_with_aliases();
        let faults = with_vcpu(&world, |world, vcpu| {
            world.fault_once(vcpu, BASE, Access::Write);
        });
        let reuses = with_vcpu(&world, use_all_tables_again);
        join([faults, reuses]);
        for (id, gfn) in aliases() {
            if world.touch(gfn, Access::Write).is_ok() {
                assert!(world.is_logged(id, gfn), "a write to {gfn} is lost");
            }
        }
        world.check();
    });
}

/// The same for a leaf that is not present, to see the next access: it would come back for another gfn.
// REQ: LK-2, LK-3, AT-1
#[test]
fn a_table_that_zap_all_frees_is_not_used_again_before_a_leaf_is_present_again() {
    explore(Stopped::First, 0, || {
        let world = world_with_aliases();
        world.mmu.test_and_clear_young(World::frame(), 1, |_, _| {}).unwrap();
        let faults = with_vcpu(&world, |world, vcpu| {
            world.fault_once(vcpu, BASE, Access::Read);
        });
        let aged = Arc::new(AtomicBool::new(false));
        let reuses = with_vcpu(&world, {
            let aged = aged.clone();
            move |world, vcpu| {
                use_all_tables_again(world, vcpu);
                world.mmu.test_and_clear_young(World::frame(), 1, |_, _| {}).unwrap();
                aged.store(true, Ordering::SeqCst);
            }
        });
        join([faults, reuses]);
        assert!(aged.load(Ordering::SeqCst));
        for (_, gfn) in aliases() {
            assert!(
                world.touch(gfn, Access::Read).is_err(),
                "nobody has accessed {gfn} since it was aged"
            );
        }
        world.check();
    });
}

/// A walker has read the spte that leads to a table. Before it goes on, the table is freed, and holds MMIO sptes of other
/// gfns.
// REQ: LK-2, LK-3
#[test]
fn a_table_that_a_walker_is_in_is_not_used_again() {
    explore(Stopped::First, 0, || {
        let mut vcpu = None;
        let world = world_without_tables(&mut vcpu);
        let faults = with_vcpu(&world, |world, vcpu| {
            world.access(vcpu, BASE, Access::Write);
        });
        let reuses = with_vcpu(&world, |world, vcpu| {
            world.delete(SLOT);
            world.fault_once(vcpu, apart(3), Access::Read);
            world.create(SLOT, BASE, 0, SlotFlags::LOG_DIRTY);
        });
        join([faults, reuses]);
        world.check();
    });
}

/// Somebody copies the guest's memory while it writes: takes the log, then copies the pages that are in it, twice. What is
/// in no copy has to be in the log, and the next write has to be seen.
fn copy_while_the_guest_writes(world: &Arc<World>, mut before_copies: impl FnMut(&World, &mut Vcpu) + Send + 'static) {
    let writes = with_vcpu(world, |world, vcpu| {
        assert_eq!(world.access(vcpu, BASE, Access::Write), Ended::Done);
    });
    let copied = Arc::new(AtomicU64::new(0));
    let copies = with_vcpu(world, {
        let copied = copied.clone();
        move |world, vcpu| {
            before_copies(world, vcpu);
            for _ in 0..2 {
                if world.take_log() {
                    copied.store(world.content(), Ordering::SeqCst);
                }
            }
        }
    });
    join([writes, copies]);
    let in_copy = copied.load(Ordering::SeqCst) == WRITTEN;
    assert!(
        in_copy || world.is_logged(SLOT, BASE),
        "a write is in no copy and not in the log"
    );
    world.take_log();
    assert!(
        world.touch(BASE, Access::Write).is_err(),
        "the next write would not be seen"
    );
    world.check();
}

/// ```text
/// fast fix                        take the log
/// --------                        ------------
/// W again, by one exchange
///                                 take the marks; W goes; flush
/// mark the page
/// hardware: what the spte says
/// (the guest writes)
///                                 copy the marked pages
/// ```
// REQ: LK-3, DT-1, DT-2
#[test]
fn a_write_is_in_the_copy_or_in_the_log() {
    explore(Stopped::All, 2, || {
        let world = World::new(8, SlotFlags::LOG_DIRTY);
        world.access(&mut world.vcpu(), BASE, Access::Read);
        copy_while_the_guest_writes(&world, |_, _| ());
    });
}

/// The same where the write has to map the page first, and another vCPU reads it.
// REQ: LK-3, DT-1
#[test]
fn a_write_that_maps_a_page_is_in_the_copy_or_in_the_log() {
    explore(Stopped::All, 0, || {
        let world = World::new(8, SlotFlags::LOG_DIRTY);
        copy_while_the_guest_writes(&world, |world, vcpu| {
            assert_eq!(world.access(vcpu, BASE, Access::Read), Ended::Done);
        });
    });
}

/// A fault has walked to a table that only caches MMIO, to such an spte or to an empty one. Before it installs its leaf
/// there, the table goes to a fault that has none.
// REQ: LK-2, LK-3
#[test]
fn a_leaf_is_not_put_into_a_table_that_was_cut_off() {
    for page in [0, 1] {
        explore(Stopped::First, 0, move || {
            let mut vcpu = None;
            let world = world_without_tables(&mut vcpu);
            let gfn = Gfn::new(apart(4).raw() + page);
            world.create(SlotId(2), gfn, 2, SlotFlags::empty());
            world.create(SlotId(3), apart(7), 3, SlotFlags::empty());
            let faults = with_vcpu(&world, move |world, vcpu| {
                assert_eq!(world.access(vcpu, gfn, Access::Read), Ended::Done);
            });
            let evicts = with_vcpu(&world, |world, vcpu| {
                world.fault_once(vcpu, apart(7), Access::Read);
            });
            join([faults, evicts]);
            world.check();
        });
    }
}

/// A page is made old while the guest uses it; whoever uses it after that makes it young again.
// REQ: LK-3, AT-1
#[test]
fn a_page_that_is_used_after_it_became_old_is_young() {
    explore(Stopped::All, 0, || {
        let world = World::new(8, SlotFlags::LOG_DIRTY);
        let mut vcpu = world.vcpu();
        world.access(&mut vcpu, BASE, Access::Read);
        world.mmu.test_and_clear_young(World::frame(), 1, |_, _| {}).unwrap();
        let old = Arc::new(AtomicBool::new(false));
        let used_after = Arc::new(AtomicBool::new(false));
        let uses = with_vcpu(&world, {
            let (old, used_after) = (old.clone(), used_after.clone());
            move |world, vcpu| {
                for access in [Access::Read, Access::Write] {
                    let after = old.load(Ordering::SeqCst);
                    assert_eq!(world.access(vcpu, BASE, access), Ended::Done);
                    used_after.fetch_or(after, Ordering::SeqCst);
                }
            }
        });
        let ages = with_vcpu(&world, move |world, _| {
            world.mmu.test_and_clear_young(World::frame(), 1, |_, _| {}).unwrap();
            old.store(true, Ordering::SeqCst);
        });
        join([uses, ages]);
        let young = world.mmu.test_young(World::frame());
        assert!(young || !used_after.load(Ordering::SeqCst), "it was used and is old");
        assert!(world.is_logged(SLOT, BASE), "the write is not logged");
        world.check();
    });
}

/// The owner takes an old frame away while the guest uses it again: what the walk saw is not brought back.
// REQ: LK-3, AT-1, HOST-1
#[test]
fn an_old_leaf_that_goes_is_not_restored() {
    explore(Stopped::All, 0, || {
        let world = World::new(8, SlotFlags::empty());
        let mut vcpu = world.vcpu();
        world.access(&mut vcpu, BASE, Access::Read);
        // The table stays where it is.
        world.create(SlotId(1), Gfn::new(BASE.raw() + 1), 1, SlotFlags::empty());
        world.access(&mut vcpu, Gfn::new(BASE.raw() + 1), Access::Read);
        world.mmu.test_and_clear_young(World::frame(), 1, |_, _| {}).unwrap();
        let uses = with_vcpu(&world, |world, vcpu| {
            world.access(vcpu, BASE, Access::Read);
        });
        let takes = with_vcpu(&world, |world, _| {
            world.mmu.reclaim(World::frame(), 1).unwrap();
            assert!(
                world.touch(BASE, Access::Read).is_err(),
                "the guest uses a frame that is away"
            );
        });
        join([uses, takes]);
        assert!(world.touch(BASE, Access::Read).is_err());
        world.check();
    });
}

/// Between start and end of an invalidation nobody maps the frame, and after it nobody maps what was there before.
///
/// ```text
/// fault                           host
/// -----                           ----
/// seq; the frame is there
///                                 start: in progress; zap; flush
/// must retry?                     (the frame is used for something else)
///                                 end: away; seq moves
/// must retry?
/// ```
// REQ: LK-3, PF-3, HOST-1
#[test]
fn a_frame_is_not_mapped_while_its_owner_changes_it() {
    explore(Stopped::All, 0, || {
        let world = World::new(8, SlotFlags::empty());
        let faults = with_vcpu(&world, |world, vcpu| {
            world.fault_once(vcpu, BASE, Access::Write);
            let _ = world.touch(BASE, Access::Write);
        });
        let changes = with_vcpu(&world, |world, _| {
            let mmu = &world.mmu;
            let pair = mmu.invalidate_start(World::frame(), 1, Mappings::Present).unwrap();
            let memory = mmu.with_stage2(|hardware| hardware.memory().clone());
            // Whoever reaches it from here on breaks isolation.
            memory.withdraw(World::frame());
            assert!(world.touch(BASE, Access::Read).is_err(), "mapped inside a pair");
            mmu.invalidate_end(pair, PageState::Away);
            assert!(world.touch(BASE, Access::Read).is_err(), "mapped after the pair");
        });
        join([faults, changes]);
        assert!(world.touch(BASE, Access::Read).is_err(), "mapped where nothing is");
        world.check();
    });
}
