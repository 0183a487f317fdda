// SPDX-License-Identifier: MIT OR Apache-2.0
//! What may an owner do with frames that an EPT maps, and what is refused?

use crate::sim::SimStage2;
use crate::spte::{Leaf, Rights, Writable};
use crate::stage2::{BackingShape, Frame, GuestAccess, Stage2, TableLevel, Unflushed};
use alloc::vec;
use umbra_mmu_abi::{Backing, BackingId, Gfn, Gpa, PageLevel, SlotId};

const SLOT: SlotId = SlotId(3);

fn frame(page: u32) -> Frame {
    Frame::new(BackingId(0), page).unwrap()
}

fn leaf(page: u32, level: PageLevel) -> Leaf {
    Leaf {
        frame: frame(page),
        level,
        writable: Writable::Now,
        rights: Rights::ALL,
    }
}

/// 512 small frames, then two large ones; tables for the first 2M.
fn hardware() -> SimStage2 {
    let shape = BackingShape {
        small_head: 512,
        large: 2,
        small_tail: 0,
    };
    let mut ept = SimStage2::new(vec![shape], 8);
    let backing = Backing {
        id: BackingId(0),
        first_page: 0,
    };
    ept.attach_slot(SLOT, backing, 512 * 3, GuestAccess::All).unwrap();
    for level in [TableLevel::Pdpt, TableLevel::Pd, TableLevel::Pt] {
        ept.link(Gfn::new(0), level).unwrap();
    }
    ept
}

// REQ: HOST-2
#[test]
fn a_large_frame_becomes_small_ones_and_one_again() {
    let mut ept = hardware();
    ept.map(SLOT, Gfn::new(512), &leaf(512, PageLevel::M2)).unwrap();
    ept.write(Gpa::new(0x20_3000), 9).unwrap();
    let removed = ept.unmap(SLOT, Gfn::new(512), &leaf(512, PageLevel::M2));
    ept.flush(removed);
    ept.map(SLOT, Gfn::new(3), &leaf(515, PageLevel::K4)).unwrap_err();
    ept.resize(frame(512), PageLevel::K4).unwrap();
    ept.resize(frame(512), PageLevel::K4).unwrap_err();
    ept.resize(frame(600), PageLevel::M2).unwrap_err();
    ept.map(SLOT, Gfn::new(512), &leaf(512, PageLevel::M2)).unwrap_err();
    ept.map(SLOT, Gfn::new(3), &leaf(515, PageLevel::K4)).unwrap();
    assert_eq!(ept.read(Gpa::new(0x3000)), Ok(9), "the content stays");
    // The other large frame is what it was.
    ept.map(SLOT, Gfn::new(1024), &leaf(1024, PageLevel::M2)).unwrap();
    let removed = ept.unmap(SLOT, Gfn::new(3), &leaf(515, PageLevel::K4));
    ept.flush(removed);
    ept.resize(frame(512), PageLevel::M2).unwrap();
    ept.map(SLOT, Gfn::new(512), &leaf(512, PageLevel::M2)).unwrap();
    assert_eq!(ept.read(Gpa::new(0x20_3000)), Ok(9));
    // Small frames that never were a large one can become one too.
    ept.resize(frame(0), PageLevel::M2).unwrap();
    ept.map(SLOT, Gfn::new(0), &leaf(0, PageLevel::K4)).unwrap_err();
}

#[test]
#[should_panic(expected = "changes its size while it is mapped")]
fn a_mapped_frame_keeps_its_size() {
    let mut ept = hardware();
    ept.map(SLOT, Gfn::new(512), &leaf(512, PageLevel::M2)).unwrap();
    let _ = ept.resize(frame(512), PageLevel::K4);
}

#[test]
#[should_panic(expected = "changes its size before the flush")]
fn a_frame_in_limbo_keeps_its_size() {
    let mut ept = hardware();
    ept.map(SLOT, Gfn::new(7), &leaf(7, PageLevel::K4)).unwrap();
    core::mem::forget(ept.unmap(SLOT, Gfn::new(7), &leaf(7, PageLevel::K4)));
    let _ = ept.resize(frame(0), PageLevel::M2);
}

// REQ: HOST-2, MEM-7
#[test]
fn revoked_frames_are_mapped_nowhere_until_they_are_given_back() {
    let mut ept = hardware();
    ept.map(SLOT, Gfn::new(7), &leaf(7, PageLevel::K4)).unwrap();
    ept.map(SLOT, Gfn::new(8), &leaf(8, PageLevel::K4)).unwrap();
    ept.read(Gpa::new(0x7000)).unwrap();
    ept.revoke_frames(frame(7), 1);
    assert_eq!(ept.count_mapped(SLOT), 1);
    ept.read(Gpa::new(0x7000)).unwrap_err();
    ept.read(Gpa::new(0x8000)).unwrap();
    ept.map(SLOT, Gfn::new(7), &leaf(7, PageLevel::K4)).unwrap_err();
    ept.memory().restore(frame(7));
    ept.map(SLOT, Gfn::new(7), &leaf(7, PageLevel::K4)).unwrap();
    ept.read(Gpa::new(0x7000)).unwrap();
    ept.flush(Unflushed::NOTHING);
}
