// SPDX-License-Identifier: MIT OR Apache-2.0
//! What does a small VM look like to its guest? One virtual processor on simulated hardware, above frames of both sizes.
#![allow(dead_code, reason = "each test program uses a part of it")]

use umbra_mmu_abi::*;
use umbra_mmu_core::fault::{Fault, HostFault, Outcome};
use umbra_mmu_core::host::{BackingInfo, BackingKind};
use umbra_mmu_core::sim::SimStage2;
use umbra_mmu_core::stage2::{BackingShape, Frame, NoRam};
use umbra_mmu_core::table::HeapWords;
use umbra_mmu_core::vcpu::Vcpu;
use umbra_mmu_core::{Limits, Mmu, Mode};

/// Backing 0: 8 small frames, 4 large ones, 8 small ones. Backings 1 to 3: 64 small ones of another kind each.
pub const SHAPES: [BackingShape; 4] = [
    BackingShape {
        small_head: 8,
        large: 4,
        small_tail: 8,
    },
    SMALL,
    SMALL,
    SMALL,
];

const SMALL: BackingShape = BackingShape {
    small_head: 64,
    large: 0,
    small_tail: 0,
};

pub const KINDS: [BackingKind; 4] = [
    BackingKind::Anonymous,
    BackingKind::Shared,
    BackingKind::Device,
    BackingKind::Image,
];

/// Where a slot of the first backing begins, so that its large frames are aligned.
pub const BASE: Gfn = Gfn::new(0x400 - 8);
/// The first gfn of a large frame there.
pub const LARGE: Gfn = Gfn::new(0x400);
/// Pages of the first backing.
pub const PAGES: u32 = 8 + 4 * 512 + 8;

/// How an access of the guest ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It read this, or wrote.
    Done(u64),
    /// It is the VMM's.
    Emulate(Mmio),
    /// The owner of the frame has to do something first.
    Host(HostFault),
    /// The guest came again and again.
    Stuck,
}

/// One processor and what it shares with others.
pub struct Vm<'a> {
    pub mmu: &'a Mmu<SimStage2>,
    pub vcpu: Vcpu,
}

pub fn mmu() -> Mmu<SimStage2> {
    mmu_with(64)
}

/// The same with so many tables.
pub fn mmu_with(tables: usize) -> Mmu<SimStage2> {
    let limits = Limits {
        tables,
        ..Limits::default()
    };
    let infos: Vec<BackingInfo> = (0..4)
        .map(|i| BackingInfo {
            shape: SHAPES[i],
            kind: KINDS[i],
        })
        .collect();
    let words = HeapWords::new(limits.tables).unwrap();
    Mmu::with_ram(
        SimStage2::new(SHAPES.to_vec(), 64),
        NoRam,
        words,
        Mode::Ept,
        infos,
        &limits,
    )
    .unwrap()
}

pub fn frame(page: u32) -> Frame {
    Frame::new(BackingId(0), page).unwrap()
}

/// The frame behind a gfn of slot 0 as [`set`] makes it.
pub fn frame_of(gfn: Gfn) -> Frame {
    frame((gfn.raw() - BASE.raw()) as u32)
}

pub fn page(gfn: Gfn, more: u64) -> Gfn {
    Gfn::new(gfn.raw() + more)
}

/// Makes the first backing slot 0, at [`BASE`].
pub fn set(mmu: &Mmu<SimStage2>, flags: SlotFlags) {
    set_slot(mmu, 0, BASE, PAGES, 0, 0, flags).unwrap();
}

pub fn set_slot(
    mmu: &Mmu<SimStage2>,
    id: u16,
    base: Gfn,
    npages: u32,
    backing: u16,
    first_page: u32,
    flags: SlotFlags,
) -> Result<Generation, umbra_mmu_core::change::ChangeError> {
    let backing = Backing {
        id: BackingId(backing),
        first_page,
    };
    mmu.set_slot(SlotId(id), base, npages, backing, flags)
}

impl<'a> Vm<'a> {
    pub fn new(mmu: &'a Mmu<SimStage2>) -> Self {
        let vcpu = mmu.add_vcpu().unwrap();
        Self { mmu, vcpu }
    }

    pub fn fault(&mut self, gpa: Gpa, access: Access) -> Outcome {
        self.mmu.fault(&mut self.vcpu, &Fault::violation(gpa, access)).unwrap()
    }

    fn until_done(&mut self, gpa: Gpa, access: Access, mut act: impl FnMut(&mut SimStage2) -> Option<u64>) -> Seen {
        for _ in 0..100_000 {
            if let Some(value) = self.mmu.with_stage2(&mut act) {
                return Seen::Done(value);
            }
            match self.fault(gpa, access) {
                Outcome::Resume => {}
                Outcome::Emulate(mmio) => return Seen::Emulate(mmio),
                Outcome::Host(fault) => return Seen::Host(fault),
                other @ (Outcome::EmulateTableWrite { .. } | Outcome::Reflect(_)) => panic!("{other:?} in EPT mode"),
            }
        }
        Seen::Stuck
    }

    pub fn read(&mut self, gfn: Gfn) -> Seen {
        self.until_done(gfn.gpa(), Access::Read, |stage2| stage2.read(gfn.gpa()).ok())
    }

    pub fn write(&mut self, gfn: Gfn, value: u64) -> Seen {
        self.until_done(gfn.gpa(), Access::Write, |stage2| {
            stage2.write(gfn.gpa(), value).ok().map(|()| value)
        })
    }

    pub fn mapped(&self) -> [u64; 2] {
        [Stat::Mapped4K, Stat::Mapped2M].map(|stat| self.mmu.stat(stat))
    }

    /// Nothing is wrong, and nothing waits for a flush.
    #[track_caller]
    pub fn check(&self) {
        let audit = self.mmu.audit();
        assert_eq!((audit.first, audit.differences), (None, 0));
        assert_eq!(self.mmu.with_stage2(|stage2| stage2.unflushed()), 0);
    }

    /// The pages in the log of slot 0, which it then clears.
    #[track_caller]
    pub fn take_log(&self) -> Vec<u64> {
        let mut words = [0; PAGES.div_ceil(64) as usize];
        let count = self.mmu.get_and_clear_log(SlotId(0), 0, &mut words).unwrap();
        let pages = pages_of(&words);
        assert_eq!(pages.len(), count as usize);
        pages
    }
}

/// The pages of a log's words, from the slot's first.
pub fn pages_of(words: &[u64]) -> Vec<u64> {
    let bits = words
        .iter()
        .zip(0..)
        .flat_map(|(word, at)| (0..64).map(move |bit| (*word, at * 64 + bit)));
    bits.filter(|(word, page)| word >> (page % 64) & 1 != 0)
        .map(|(_, page)| page)
        .collect()
}

/// The same for gfns of slot 0.
pub fn pages_in_slot(gfns: &[Gfn]) -> Vec<u64> {
    gfns.iter().map(|gfn| gfn.raw() - BASE.raw()).collect()
}
