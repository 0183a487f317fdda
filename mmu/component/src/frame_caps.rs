// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which capability maps a page of a slot? One copy of each frame's capability, in a CNode that is the slot's own.
//!
//! Copies of a frame capability are no parents of each other, so none of them can be revoked. The CNode can: it is the only
//! child of a block of untyped memory, and revoking that block deletes the CNode with all capabilities in it, which ends
//! their mappings. Entry i of the CNode is for frame i of the slot, whether it is mapped or not: finding it is arithmetic,
//! and there is nothing to leak.
//!
//! ```text
//! untyped block ──▶ CNode of the slot ──▶ frame 0, frame 1, …   (copies; each maps at most once)
//!      revoke ═══════════╧═══════════════════╧═════▶ no mapping of the slot is left
//! ```

use crate::objects::{Block, Objects};
use crate::stage2::refused;
use sel4::{AbsoluteCPtr, CPtr, CPtrWithDepth, CapRights, ObjectBlueprint, cap};
use umbra_mmu_abi::Backing;
use umbra_mmu_core::stage2::{BackingShape, Frame, GuestAccess, Stage2Error};

/// The root of the CSpace: entry 0 leads to the program's own CNode, the others are for slots.
#[derive(Clone, Copy, Debug)]
pub struct Top {
    /// The CNode.
    pub cnode: cap::CNode,
    /// log2 of its entries.
    pub bits: u8,
}

impl Top {
    /// Copies a capability of the program's own CNode into entry `entry`, which no slot uses, where each lookup of it takes
    /// one step instead of two (45 ticks). The answer is its number there: bits below an entry are ignored.
    ///
    /// # Errors
    /// The kernel's.
    pub fn shortcut(self, own: cap::CNode, slot: u64, entry: u64) -> sel4::Result<u64> {
        let from = own.absolute_cptr(CPtr::from_bits(slot));
        self.cnode.slot(entry, self.bits).copy(&from, CapRights::ALL)?;
        Ok(entry << (u64::BITS - u32::from(self.bits)))
    }
}

/// A range of frames that was given to this program.
#[derive(Clone, Copy, Debug)]
pub struct BackingCaps {
    /// The slot of the first frame's capability; the others follow.
    pub first_slot: u64,
    /// How large the frames are.
    pub shape: BackingShape,
}

/// The capabilities of one slot.
pub struct Container {
    block: Block,
    top: Top,
    /// The entry of the CSpace's root.
    entry: u64,
    /// log2 of the CNode's entries.
    bits: u8,
    backing: BackingCaps,
    /// The first frame and how many there are, counted over the whole backing.
    frames: core::ops::Range<u32>,
}

impl Container {
    /// Makes the CNode in entry `entry` of the CSpace's root and fills it.
    ///
    /// # Errors
    /// Exhausted; nothing is left behind.
    pub fn new(
        objects: &mut Objects,
        top: Top,
        entry: u64,
        caps: BackingCaps,
        backing: Backing,
        npages: u32,
        access: GuestAccess,
    ) -> Result<Self, Stage2Error> {
        let (first, _) = caps.shape.frame_of(backing.first_page);
        let (last, _) = caps.shape.frame_of(backing.first_page + npages - 1);
        let frames = first..last + 1;
        // At least one bit: a CNode of one entry is none.
        let bits = (frames.end - frames.start).next_power_of_two().trailing_zeros().max(1) as u8;
        let blueprint = ObjectBlueprint::CNode { size_bits: bits };
        let block = objects.take_block(blueprint.physical_size_bits())?;
        let root = top.cnode.slot(0, 0);
        let container = Self {
            block,
            top,
            entry,
            bits,
            backing: caps,
            frames,
        };
        let made = objects
            .untyped(block)
            .untyped_retype(blueprint, &root, entry, 1)
            .map_err(refused("make a CNode"));
        let filled = made.and_then(|()| container.fill(objects, access));
        match filled {
            Ok(()) => Ok(container),
            Err(error) => {
                container.revoke(objects);
                Err(error)
            }
        }
    }

    fn fill(&self, objects: &Objects, access: GuestAccess) -> Result<(), Stage2Error> {
        let rights = rights(access);
        for frame in self.frames.clone() {
            let to = self.place(frame);
            to.copy(&objects.slot(self.original(frame)), rights)
                .map_err(refused("copy a frame capability"))?;
        }
        Ok(())
    }

    /// Deletes every capability of the slot, and with them every mapping.
    // REQ: MEM-7
    pub fn revoke(self, objects: &mut Objects) {
        objects.give_block(self.block);
    }

    /// The capability for the frame that begins with `frame`, if it is one of the slot's.
    pub fn cap(&self, frame: Frame) -> Option<cap::UnspecifiedPage> {
        let (number, _) = self.backing.shape.frame_of(frame.page());
        self.frames.contains(&number).then(|| self.cap_of(number))
    }

    /// The slot of the capability that this one was copied from.
    pub fn original_of(&self, frame: Frame) -> u64 {
        self.original(self.backing.shape.frame_of(frame.page()).0)
    }

    /// All capabilities of the slot.
    pub fn caps(&self) -> impl Iterator<Item = cap::UnspecifiedPage> + '_ {
        self.frames.clone().map(|number| self.cap_of(number))
    }

    fn original(&self, number: u32) -> u64 {
        self.backing.first_slot + u64::from(number)
    }

    /// An invocation resolves bits until it meets something that is no CNode; the bits below are ignored.
    fn cap_of(&self, number: u32) -> cap::UnspecifiedPage {
        let unused = u64::BITS - u32::from(self.top.bits + self.bits);
        cap::UnspecifiedPage::from_bits(self.path(number) << unused)
    }

    fn place(&self, number: u32) -> AbsoluteCPtr {
        let path = CPtrWithDepth {
            bits: self.path(number),
            depth: self.top.bits + self.bits,
        };
        AbsoluteCPtr {
            root: self.top.cnode,
            path,
        }
    }

    fn path(&self, number: u32) -> u64 {
        self.entry << self.bits | u64::from(number - self.frames.start)
    }
}

/// What a mapping needs of its capability.
pub const fn rights(access: GuestAccess) -> CapRights {
    match access {
        GuestAccess::ReadExec => CapRights::READ,
        GuestAccess::All => CapRights::READ_WRITE,
    }
}

/// A capability in a slot of the program's own CNode.
pub const fn page(slot: u64) -> cap::UnspecifiedPage {
    cap::UnspecifiedPage::from_bits(slot)
}
