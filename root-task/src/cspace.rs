// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which slots are free, and how is a slot of any CNode named?

use crate::failure::Failure;
use alloc::vec::Vec;
use core::ops::Range;
use sel4::{AbsoluteCPtr, CPtr, cap, init_thread};
use umbra_root_core::ledger::Holder;

/// The empty slots of the root task's CNode.
#[derive(Clone, Debug)]
pub struct Slots {
    free: Range<u64>,
    returned: Vec<u64>,
}

impl Slots {
    /// These slots are empty.
    pub const fn new(free: Range<u64>) -> Self {
        Self {
            free,
            returned: Vec::new(),
        }
    }

    /// One slot.
    pub fn take(&mut self) -> Result<u64, Failure> {
        match self.returned.pop() {
            Some(slot) => Ok(slot),
            None => self.take_run(1),
        }
    }

    /// The first of `count` slots side by side.
    pub fn take_run(&mut self, count: u64) -> Result<u64, Failure> {
        let left = self.free.end - self.free.start;
        if count > left {
            return Err(Failure::Slots { wanted: count, left });
        }
        let first = self.free.start;
        self.free.start += count;
        Ok(first)
    }

    /// The slot is empty again.
    pub fn give_back(&mut self, slot: u64) {
        self.returned.push(slot);
    }
}

/// A CNode, by the capability that the root task has to it, and who uses it as (part of) its CSpace.
#[derive(Clone, Copy, Debug)]
pub struct CSpace {
    /// For the ledger.
    pub holder: Holder,
    cnode: cap::CNode,
    /// log2 of its slots; 64 bits of the root task's own stand for its guard and slots together.
    bits: u8,
    /// What the ledger adds to slot numbers: a holder can have several CNodes.
    offset: u64,
}

impl CSpace {
    /// The root task's own.
    pub const ROOT: Self = Self {
        holder: Holder::Root,
        cnode: init_thread::slot::CNODE,
        bits: 64,
        offset: 0,
    };

    /// One of 2^`bits` slots without a guard, that the root task made for `holder`; `offset` tells its slots in the
    /// ledger from those of the holder's other CNodes.
    pub(crate) const fn of(holder: Holder, cnode: cap::CNode, bits: u8, offset: u64) -> Self {
        Self {
            holder,
            cnode,
            bits,
            offset,
        }
    }

    /// The CNode.
    pub const fn cnode(&self) -> cap::CNode {
        self.cnode
    }

    /// log2 of its slots.
    pub const fn bits(&self) -> u8 {
        self.bits
    }

    /// A slot as the kernel takes it.
    pub fn slot(&self, slot: u64) -> AbsoluteCPtr {
        match self.holder {
            Holder::Root => self.cnode.absolute_cptr(CPtr::from_bits(slot)),
            Holder::Vmm(_) | Holder::Mmu(_) => self.cnode.slot(slot, self.bits),
        }
    }

    /// The CNode itself as a retype takes it.
    pub(crate) fn whole(&self) -> AbsoluteCPtr {
        self.cnode.slot(0, 0)
    }

    /// A slot as the ledger takes it.
    pub(crate) const fn ledger_slot(&self, slot: u64) -> u64 {
        self.offset + slot
    }
}
