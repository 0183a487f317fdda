// SPDX-License-Identifier: MIT OR Apache-2.0
//! Is anything lost while a running guest is copied, page by page, and its owner takes frames away and brings them back?
//!
//! Several vCPUs write, each words of its own, and read back what they wrote. The copy follows the dirty log only; when the
//! guest has stopped, one more round has to make it equal.

use crate::change::ChangeError;
use crate::fault::{FaultError, HostFault, HostNeed};
use crate::host::PageState;
use crate::notify::Mappings;
use crate::shadow::registers as guest;
use crate::sim::cpu::Operation;
use crate::sim::machine::{Ended, EptVcpu, Request, ShadowVcpu};
use crate::sim::paging::{Access, CR0_PG, CR0_WP, CR4_PAE, EFER_LME, EFER_NXE, Model, Privilege, Registers};
use crate::sim::shadow::Staleness;
use crate::sim::tlb::Forgetful;
use crate::sim::{SimMemory, SimRam, SimShadow, SimStage2, SimWords};
use crate::stage2::{BackingShape, Frame, GpteSize, Stage2};
use crate::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use crate::{Limits, Mmu, Mode};
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;
use umbra_mmu_abi as abi;
use umbra_mmu_abi::{Backing, BackingId, Gfn, SlotError, SlotFlags, SlotId};

const SHAPE: BackingShape = BackingShape {
    small_head: 64,
    large: 2,
    small_tail: 8,
};
const PAGES: u32 = 64 + 1024 + 8;
/// So that large frames can be large pages.
const BASE: u64 = 512 - 64;
const SLOT: SlotId = SlotId(0);
/// Where in each page the vCPUs' words are: in a table, entries that nobody uses.
const WORDS_AT: u64 = 0x800;
const WORDS: usize = PAGES.div_ceil(64) as usize;

/// A vCPU of an MMU in either mode.
trait Guest<S: Stage2>: Send {
    fn access(&mut self, mmu: &Mmu<S>, request: &Request) -> Result<Ended, FaultError>;
}

impl Guest<SimStage2> for EptVcpu {
    fn access(&mut self, mmu: &Mmu<SimStage2>, request: &Request) -> Result<Ended, FaultError> {
        Self::access(self, mmu, request)
    }
}

impl Guest<SimShadow> for ShadowVcpu {
    fn access(&mut self, mmu: &Mmu<SimShadow>, request: &Request) -> Result<Ended, FaultError> {
        Self::access(self, mmu, request)
    }
}

/// A machine, and the owner of its memory.
struct Machine<S: Stage2> {
    mmu: Mmu<S>,
    memory: Arc<SimMemory>,
    /// The owner of the frames does one thing at a time.
    owner: Mutex<()>,
}

impl<S: Stage2> Machine<S> {
    fn new(mmu: Mmu<S>, memory: Arc<SimMemory>) -> Self {
        let owner = Mutex::new(());
        Self { mmu, memory, owner }
    }
}

fn frame(page: u32) -> Frame {
    Frame::new(BackingId(0), page).unwrap()
}

fn dice(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// Counts down when a thread ends, also by a panic.
struct Running<'a>(&'a AtomicU32);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<S: Stage2 + Send> Machine<S>
where
    S::Words: Sync,
    S::Ram: Sync,
{
    fn set_flags(&self, flags: SlotFlags) {
        let backing = Backing {
            id: BackingId(0),
            first_page: 0,
        };
        loop {
            match self.mmu.set_slot(SLOT, Gfn::new(BASE), PAGES, backing, flags) {
                Ok(_) => return,
                // The owner is between a start and an end.
                Err(ChangeError::Refused(SlotError::Busy)) => thread::yield_now(),
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// The owner changes one small page: nobody reaches it between start and end.
    fn change(&self, page: u32, act: impl FnOnce(Frame), state: PageState) {
        let _owner = self.owner.lock();
        // A part of a large frame is none of its own: then nothing happens.
        if let Ok(pair) = self.mmu.invalidate_start(frame(page), 1, Mappings::Present) {
            act(frame(page));
            self.mmu.invalidate_end(pair, state);
        }
    }

    fn bring_back(&self, fault: &HostFault) {
        assert_eq!(fault.need, HostNeed::Frame, "nothing else is taken");
        self.change(
            fault.frame.page(),
            |frame| self.memory.restore(frame),
            PageState::Resident,
        );
    }

    /// Does one access of the guest, and what its owner has to do for it.
    fn access(&self, guest: &mut impl Guest<S>, request: &Request) -> u64 {
        loop {
            match guest.access(&self.mmu, request).unwrap() {
                Ended::Done(value) => return value,
                Ended::Host(fault) => self.bring_back(&fault),
                Ended::Stuck => thread::yield_now(),
                other => panic!("{other:?} of {request:?}"),
            }
        }
    }

    /// What one vCPU does: words `id` of pages, which nobody else writes.
    fn run(&self, guest: &mut impl Guest<S>, id: u64, rounds: u64) {
        let mut state = id + 1;
        let mut wrote = vec![0; PAGES as usize];
        for round in 1..=rounds {
            let seed = dice(&mut state);
            // Most of it in a few pages, so that there is something to fight for.
            let page = match seed >> 32 & 7 {
                0 => seed % PAGES as u64,
                1..4 => 60 + seed % 8,
                _ => 4 + seed % 8,
            };
            let gva = ((BASE + page) << 12) + WORDS_AT + id * 8;
            let request = |kind, operation| Request {
                gva,
                access: Access {
                    kind,
                    privilege: Privilege::Supervisor,
                },
                operation,
            };
            let load = request(abi::Access::Read, Operation::Load(GpteSize::B8));
            let found = self.access(guest, &load);
            assert_eq!(
                found, wrote[page as usize],
                "vCPU {id} reads page {page} in round {round}"
            );
            if seed >> 40 & 1 == 0 {
                let store = Operation::Store { bytes: 8, value: round };
                self.access(guest, &request(abi::Access::Write, store));
                wrote[page as usize] = round;
            }
        }
    }

    /// One round of the copy; the answer is how many pages it was.
    fn copy_logged(&self, copy: &mut [[u64; 512]], manual: bool) -> u32 {
        let mut log = [0; WORDS];
        let pages = match manual {
            false => self.mmu.get_and_clear_log(SLOT, 0, &mut log).unwrap(),
            true => {
                self.mmu.get_log(SLOT, 0, &mut log).unwrap();
                self.mmu.clear_log(SLOT, 0, &log).unwrap()
            }
        };
        for (page, copy) in copy.iter_mut().enumerate() {
            if log[page / 64] >> (page % 64) & 1 != 0 {
                *copy = self.content(page as u32);
            }
        }
        pages
    }

    fn content(&self, page: u32) -> [u64; 512] {
        let words = self.memory.ram(frame(page));
        core::array::from_fn(|word| words[word].load(Ordering::Acquire))
    }

    fn migrate<G: Guest<S>>(&self, guests: Vec<G>, rounds: u64) {
        self.set_flags(SlotFlags::empty());
        let running = AtomicU32::new(guests.len() as u32);
        let copying = AtomicBool::new(false);
        let mut copy = vec![[0; 512]; PAGES as usize];
        let mut copied = 0;
        thread::scope(|scope| {
            for (id, mut guest) in guests.into_iter().enumerate() {
                let running = &running;
                let copying = &copying;
                scope.spawn(move || {
                    let _running = Running(running);
                    while !copying.load(Ordering::Relaxed) {
                        thread::yield_now();
                    }
                    self.run(&mut guest, id as u64, rounds);
                });
            }
            scope.spawn(|| {
                let mut state = 77;
                while running.load(Ordering::Relaxed) > 0 {
                    let seed = dice(&mut state);
                    let page = 2 + (seed % 12) as u32;
                    self.change(page, |frame| self.memory.withdraw(frame), PageState::Away);
                    if seed >> 20 & 7 == 0 {
                        self.mmu.test_and_clear_young(frame(0), PAGES, |_, _| {}).unwrap();
                    }
                    thread::sleep(Duration::from_micros(30));
                }
            });
            // On and off: large pages are split, and made again.
            loop {
                self.set_flags(SlotFlags::LOG_DIRTY);
                for (page, copy) in copy.iter_mut().enumerate() {
                    *copy = self.content(page as u32);
                }
                copying.store(true, Ordering::Relaxed);
                for round in 0..20 {
                    copied += self.copy_logged(&mut copy, round % 2 == 0);
                    thread::sleep(Duration::from_micros(100));
                }
                if running.load(Ordering::Relaxed) == 0 {
                    break;
                }
                self.set_flags(SlotFlags::empty());
            }
        });
        copied += self.copy_logged(&mut copy, false);
        for (page, copy) in copy.iter().enumerate() {
            assert!(
                *copy == self.content(page as u32),
                "page {page} was written and is not in the log"
            );
        }
        assert!(copied > 0, "the log had something");
        assert_eq!(self.copy_logged(&mut copy, true), 0, "nobody writes any more");
        let audit = self.mmu.audit();
        assert_eq!(audit.differences, 0, "{audit:?}");
    }
}

/// How the guest translates.
#[derive(Clone, Copy)]
enum Tables {
    None,
    /// 4-level paging, all of its memory mapped to itself. Its tables are in pages that its owner takes as well.
    FourLevel,
}

impl Tables {
    /// Makes the guest's tables: in pages 0 to 4.
    fn make(self, memory: &SimMemory) {
        const ALL: u64 = 7;
        const LARGE: u64 = 0x80;
        let put = |table: u32, index: u64, entry| memory.store(frame(table), index as u16 * 8, GpteSize::B8, entry);
        let table = |page: u64| (BASE + page) << 12 | ALL;
        match self {
            Self::None => {}
            Self::FourLevel => {
                put(0, 0, table(1));
                put(1, 0, table(2));
                put(2, 0, table(3));
                put(2, 1, 512 << 12 | ALL | LARGE);
                put(2, 2, 1024 << 12 | ALL | LARGE);
                put(2, 3, table(4));
                for page in 0..64 {
                    put(3, BASE + page, table(page));
                }
                for page in 0..8 {
                    put(4, page, table(64 + 1024 + page));
                }
            }
        }
    }

    fn registers(self) -> Registers {
        match self {
            Self::None => Registers::default(),
            Self::FourLevel => Registers {
                cr0: CR0_PG | CR0_WP,
                cr3: BASE << 12,
                cr4: CR4_PAE,
                efer: EFER_LME | EFER_NXE,
                pdptes: [0; 4],
            },
        }
    }
}

fn ept(tables: Tables) {
    let memory = SimMemory::new(SimMemory::layout_for(46), &[SHAPE], 0);
    tables.make(&memory);
    let stage2 = SimStage2::with_memory(memory.clone(), 64);
    let mmu = Mmu::new(stage2, vec![SHAPE], &Limits::default()).unwrap();
    let guests = (0..3)
        .map(|id| {
            let forgetful = (id == 1).then(|| Forgetful::new(3, 7));
            let mut guest = EptVcpu::new(mmu.add_vcpu().unwrap(), Model::default(), forgetful);
            guest.reset(tables.registers());
            guest
        })
        .collect();
    Machine::new(mmu, memory).migrate(guests, 15_000);
}

fn shadow(guest_tables: Tables) {
    let tables = 64;
    let memory = SimMemory::new(SimMemory::layout_for(46), &[SHAPE], tables);
    guest_tables.make(&memory);
    let limits = Limits {
        tables,
        rmap_entries: 4096,
        ..Limits::default()
    };
    let mmu = Mmu::with_ram(
        SimShadow::new(memory.clone()),
        SimRam(memory.clone()),
        SimWords(memory.clone()),
        Mode::Shadow(*memory.layout()),
        vec![SHAPE],
        &limits,
    );
    let mmu = mmu.unwrap();
    let Registers {
        cr0, cr3, cr4, efer, ..
    } = guest_tables.registers();
    let registers = guest::Registers {
        cr0: cr0 | guest::CR0_PE,
        cr3,
        cr4,
        efer: efer | if efer & EFER_LME != 0 { guest::EFER_LMA } else { 0 },
    };
    let guests = (0..3)
        .map(|id| {
            let forgetful = (id == 1).then(|| Forgetful::new(3, 7));
            let vcpu = mmu.add_vcpu().unwrap();
            let mut vcpu = ShadowVcpu::new(vcpu, memory.clone(), Model::default(), forgetful, Staleness::Used);
            let ended = vcpu.write_registers(|vcpu| mmu.restore_registers(vcpu, registers));
            assert_eq!(ended, Ended::Done(0));
            vcpu
        })
        .collect();
    Machine::new(mmu, memory).migrate(guests, 15_000);
}

// REQ: DT-1, HOST-1, LP-4, LK-2
#[test]
fn nothing_is_lost_in_ept_mode() {
    ept(Tables::None);
}

// REQ: DT-1, HOST-1, LP-4, LK-2
#[test]
fn nothing_is_lost_in_ept_mode_with_tables_of_the_guest() {
    ept(Tables::FourLevel);
}

// REQ: DT-1, HOST-1, LP-4
#[test]
fn nothing_is_lost_in_shadow_mode() {
    shadow(Tables::None);
}

// REQ: DT-1, HOST-1, LP-4, PF-2, SP-8
#[test]
fn nothing_is_lost_in_shadow_mode_with_tables_of_the_guest() {
    shadow(Tables::FourLevel);
}
