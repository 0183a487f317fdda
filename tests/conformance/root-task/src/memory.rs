// SPDX-License-Identifier: MIT OR Apache-2.0
//! What does the MMU get to work with? A CSpace of two levels, untyped memory, and the frames of the backings.

use alloc::vec::Vec;
use sel4::cap::{CNode, Cap, CapType, Untyped};
use sel4::init_thread::slot;
use sel4::{BootInfo, CNodeCapData, CPtr, CPtrWithDepth, ObjectBlueprint, Result};
use umbra_conformance::BACKINGS;
use umbra_mmu_component::frame_caps::{BackingCaps, Top};
use umbra_mmu_component::objects::Objects;
use umbra_mmu_component::stage2::{CapStage2, Space};
use umbra_mmu_core::stage2::{Resource, Stage2Error};
use umbra_mmu_core::{Limits, Mmu};

/// Untyped memory for the objects of one MMU.
const MMU_MEMORY_BITS: u8 = 19;
/// Slots for the objects of one MMU.
const MMU_SLOTS: u64 = 512;
/// log2 of the entries of the CSpace's root.
const TOP_BITS: u8 = 9;

/// Slots in order, and objects from the largest piece of RAM.
pub struct Memory {
    next_slot: u64,
    end_slot: u64,
    untyped: Untyped,
    top: Top,
    backings: Vec<BackingCaps>,
}

impl Memory {
    /// From the boot information. The CSpace of this thread gets a second level.
    pub fn new(bootinfo: &BootInfo) -> Self {
        let memory = bootinfo.untyped_caps().filter(|(_, piece)| !piece.is_device());
        let (untyped, _) = memory.max_by_key(|(_, piece)| piece.size_bits()).expect("there is RAM");
        let slots = bootinfo.empty().range();
        let nothing = Top {
            cnode: slot::CNODE,
            bits: TOP_BITS,
        };
        let backings = Vec::new();
        let mut new = Self {
            next_slot: slots.start,
            end_slot: slots.end,
            untyped,
            top: nothing,
            backings,
        };
        new.two_levels(bootinfo.init_cnode_size_bits())
            .expect("the CSpace gets a second level");
        new.backings = BACKINGS
            .into_iter()
            .map(|shape| {
                let first_slot = new.next_slot;
                let parts = [
                    (shape.small_head, false),
                    (shape.large, true),
                    (shape.small_tail, false),
                ];
                for large in parts
                    .into_iter()
                    .flat_map(|(count, large)| (0..count).map(move |_| large))
                {
                    let kind = if large {
                        ObjectBlueprint::LargePage
                    } else {
                        ObjectBlueprint::SmallPage
                    };
                    new.object::<sel4::cap::cap_type::UnspecifiedPage>(kind)
                        .expect("there is memory for a frame");
                }
                BackingCaps { first_slot, shape }
            })
            .collect();
        new
    }

    /// Entry 0 of the new root leads to the old one, so that every slot keeps its number.
    fn two_levels(&mut self, bits: u8) -> Result<()> {
        let cnode: CNode = self.object(ObjectBlueprint::CNode { size_bits: TOP_BITS })?;
        let entry = |depth| sel4::AbsoluteCPtr {
            root: cnode,
            path: CPtrWithDepth { bits: 0, depth },
        };
        let old = slot::CNODE.absolute_cptr(slot::CNODE);
        let below = CNodeCapData::new(0, u64::BITS as u8 - TOP_BITS - bits);
        entry(TOP_BITS).mint_cnode(&old, sel4::CapRights::ALL, below)?;
        let buffer = slot::IPC_BUFFER;
        let address = sel4::with_ipc_buffer(|buffer| core::ptr::from_ref(buffer) as u64);
        // The CNode resolves 9 bits and has no guard.
        let whole = CNodeCapData::unchanged();
        slot::TCB.tcb_configure(CPtr::NULL, 255, 255, cnode, whole, slot::VSPACE, address, buffer)?;
        self.top = Top { cnode, bits: TOP_BITS };
        Ok(())
    }

    /// An empty slot.
    pub fn slot<T: CapType>(&mut self) -> Cap<T> {
        assert!(self.next_slot < self.end_slot, "slots are used up");
        self.next_slot += 1;
        Cap::from_bits(self.next_slot - 1)
    }

    /// A new object.
    pub fn object<T: CapType>(&mut self, blueprint: ObjectBlueprint) -> Result<Cap<T>> {
        let cap: Cap<T> = self.slot();
        self.untyped
            .untyped_retype(blueprint, &slot::CNODE.slot(0, 0), cap.bits(), 1)?;
        Ok(cap)
    }

    /// A small block is refused for want of slots, halfway down to it; all of the memory can still be had in one piece.
    pub fn refused_block_leaves_memory_whole(&mut self) -> core::result::Result<(), &'static str> {
        const BITS: u8 = 12;
        let blueprint = ObjectBlueprint::Untyped { size_bits: BITS };
        let own: Untyped = self.object(blueprint).map_err(|_| "no memory")?;
        // One split takes two.
        let slots = self.next_slot..self.next_slot + 3;
        self.next_slot = slots.end;
        let mut objects = Objects::new(slot::CNODE, &[(own.bits(), BITS)], slots);
        match objects.take_block(BITS - 2) {
            Err(Stage2Error::Exhausted(Resource::CapSlots)) => {}
            Ok(_) | Err(_) => return Err("three slots were enough for two splits"),
        }
        let whole = objects.take_block(BITS).map_err(|_| "the memory stays split")?;
        objects.give_block(whole);
        let half = objects.take_block(BITS - 1).map_err(|_| "the slots are lost")?;
        objects.give_block(half);
        Ok(())
    }

    /// An MMU above `space`, with untyped memory of its own.
    pub fn mmu<T: Space>(&mut self, space: T) -> Mmu<CapStage2<T>> {
        let own: Untyped = self
            .object(ObjectBlueprint::Untyped {
                size_bits: MMU_MEMORY_BITS,
            })
            .expect("memory");
        let first = self.next_slot;
        self.next_slot += MMU_SLOTS;
        let objects = Objects::new(slot::CNODE, &[(own.bits(), MMU_MEMORY_BITS)], first..self.next_slot);
        let stage2 = CapStage2::new(space, slot::CNODE, self.top, objects, self.backings.clone());
        Mmu::new(
            stage2,
            BACKINGS.to_vec(),
            &Limits {
                tables: 64,
                ..Limits::default()
            },
        )
        .expect("heap for the tables")
    }
}
