// SPDX-License-Identifier: MIT OR Apache-2.0
//! How objects are made of untyped memory: which capability is retyped, where the object lands, what the ledger gets.

use crate::{
    cspace::CSpace,
    failure::Failure,
    kernel::{Kernel, Space},
    objects::{full, name_of, object_of},
};
use alloc::vec::Vec;
use sel4::{ObjectBlueprint, cap, init_thread::slot as init};
use umbra_root_core::{
    frames::Size,
    ledger::{Holder, Object, Port},
    untyped::Run,
};

/// Frames of one size in consecutive slots of the root task, with consecutive physical addresses.
#[derive(Clone, Copy, Debug)]
pub struct FrameRun {
    /// First slot.
    pub slot: u64,
    /// First physical address.
    pub paddr: u64,
    /// How many.
    pub count: u64,
    /// Their size.
    pub size: Size,
}

/// One frame.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// Its slot in the root task's CNode.
    pub slot: u64,
    /// Its physical address.
    pub paddr: u64,
    /// Its size.
    pub size: Size,
}

impl FrameRun {
    /// One by one.
    pub fn iter(self) -> impl Iterator<Item = Frame> {
        (0..self.count).map(move |i| Frame {
            slot: self.slot + i,
            paddr: self.paddr + i * self.size.bytes(),
            size: self.size,
        })
    }
}

impl Frame {
    /// The capability.
    pub const fn cap(&self) -> cap::UnspecifiedPage {
        cap::UnspecifiedPage::from_bits(self.slot)
    }
}

impl Kernel {
    /// A new object (no frame, endpoint or CNode: see the other functions), its capability in a slot of the root task.
    pub fn alloc<T: sel4::CapType>(&mut self, blueprint: ObjectBlueprint) -> Result<sel4::Cap<T>, Failure> {
        let slot = self.slots.take()?;
        self.make(blueprint, object_of(blueprint), CSpace::ROOT, slot, 1)?;
        Ok(sel4::Cap::from_bits(slot))
    }

    /// A new endpoint.
    pub fn alloc_endpoint(&mut self, port: Port) -> Result<cap::Endpoint, Failure> {
        let slot = self.slots.take()?;
        self.make(ObjectBlueprint::Endpoint, Object::Endpoint(port), CSpace::ROOT, slot, 1)?;
        Ok(cap::Endpoint::from_bits(slot))
    }

    /// A new CNode of 2^`bits` slots for `holder`.
    pub fn alloc_cspace(&mut self, holder: Holder, bits: u8) -> Result<CSpace, Failure> {
        let cnode = self.alloc(ObjectBlueprint::CNode { size_bits: bits })?;
        // A holder's further CNodes stand in the ledger with an offset.
        let before = self.cspaces.iter().filter(|cspace| cspace.holder == holder).count() as u64;
        let cspace = CSpace::of(holder, cnode, bits, before << 32);
        self.cspaces.push(cspace);
        Ok(cspace)
    }

    /// A new address space for `holder`.
    pub fn alloc_space(&mut self, holder: Holder) -> Result<Space, Failure> {
        let vspace: cap::VSpace = self.alloc(ObjectBlueprint::VSpace)?;
        init::ASID_POOL
            .asid_pool_assign(vspace)
            .map_err(Failure::kernel("give an address space its number"))?;
        Ok(Space { holder, vspace })
    }

    /// `count` new frames, cleared: as few runs as memory allows.
    pub fn alloc_frames(&mut self, size: Size, count: u64) -> Result<Vec<FrameRun>, Failure> {
        let blueprint = match size {
            Size::Small => ObjectBlueprint::SmallPage,
            Size::Large => ObjectBlueprint::LargePage,
        };
        let first = self.slots.take_run(count)?;
        let mut runs = Vec::new();
        let mut slot = first;
        while slot < first + count {
            let wanted = (first + count - slot).min(cap::Untyped::MAX_OBJECTS);
            let run = self.memory.take(blueprint.physical_size_bits(), wanted)?;
            self.retype(
                blueprint,
                Object::Frame { size, device: false },
                CSpace::ROOT,
                slot,
                run,
            )?;
            runs.push(FrameRun {
                slot,
                paddr: run.paddr,
                count: run.count,
                size,
            });
            slot += run.count;
        }
        Ok(runs)
    }

    /// One new frame of 4K.
    pub fn alloc_page(&mut self) -> Result<Frame, Failure> {
        let runs = self.alloc_frames(Size::Small, 1)?;
        Ok(Frame {
            slot: runs[0].slot,
            paddr: runs[0].paddr,
            size: Size::Small,
        })
    }

    /// A frame of the device memory at `paddr`; it keeps its content.
    pub fn alloc_device_frame(&mut self, paddr: u64, size: Size) -> Result<Frame, Failure> {
        let (blueprint, bits) = match size {
            Size::Small => (ObjectBlueprint::SmallPage, 12),
            Size::Large => (ObjectBlueprint::LargePage, 21),
        };
        let mut skipped = Vec::new();
        let run = self.memory.take_device(paddr, bits, |bits| skipped.push(bits))?;
        let mut at = paddr - skipped.iter().map(|bits| 1u64 << bits).sum::<u64>();
        for bits in skipped {
            let slot = self.slots.take()?;
            let piece = Run {
                untyped: run.untyped,
                paddr: at,
                count: 1,
            };
            let object = Object::Untyped { bits, device: true };
            self.retype(
                ObjectBlueprint::Untyped { size_bits: bits },
                object,
                CSpace::ROOT,
                slot,
                piece,
            )?;
            at += 1 << bits;
        }
        let slot = self.slots.take()?;
        self.retype(blueprint, Object::Frame { size, device: true }, CSpace::ROOT, slot, run)?;
        Ok(Frame { slot, paddr, size })
    }

    /// Untyped memory of 2^`bits` bytes, its capability in a slot of `to`.
    pub fn alloc_untyped(&mut self, bits: u8, to: CSpace, slot: u64) -> Result<(), Failure> {
        let object = Object::Untyped { bits, device: false };
        self.make(ObjectBlueprint::Untyped { size_bits: bits }, object, to, slot, 1)
    }

    pub(crate) fn make(
        &mut self,
        blueprint: ObjectBlueprint,
        object: Object,
        to: CSpace,
        slot: u64,
        count: u64,
    ) -> Result<(), Failure> {
        let run = self.memory.take(blueprint.physical_size_bits(), count)?;
        self.retype(blueprint, object, to, slot, run)
    }

    fn retype(
        &mut self,
        blueprint: ObjectBlueprint,
        object: Object,
        to: CSpace,
        slot: u64,
        run: Run,
    ) -> Result<(), Failure> {
        cap::Untyped::from_bits(run.untyped)
            .untyped_retype(blueprint, &to.whole(), slot, run.count)
            .map_err(Failure::kernel(name_of(blueprint)))?;
        let paddr = if object.memory() == 0 { 0 } else { run.paddr };
        self.ledger
            .put(to.holder, to.ledger_slot(slot), run.count, full(object, paddr));
        Ok(())
    }
}
