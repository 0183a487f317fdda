// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every kernel call that changes who holds what, written down in the ledger when it has succeeded.
//!
//! Usable alone by any root task: `Kernel::new(bootinfo)`, then `alloc`, `copy`, `map`.

use crate::{
    cspace::{CSpace, Slots},
    failure::Failure,
};
use alloc::vec::Vec;
use sel4::{BootInfo, CNodeCapData, CPtr, CapRights, IoApicPin, ObjectBlueprint, cap, init_thread::slot as init};
use umbra_root_core::{
    frames::{SMALL, Size},
    ledger::{Cap, Holder, Ledger, Mapping, Object, Port, Rights},
    untyped::{Pool, Run, Untyped},
};

/// The kernel as the root task sees it: memory, slots, and what was handed out.
#[derive(Debug)]
pub struct Kernel {
    memory: Pool,
    slots: Slots,
    ledger: Ledger,
    cspaces: Vec<CSpace>,
}

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

/// An address space that the root task made.
#[derive(Clone, Copy, Debug)]
pub struct Space {
    /// Whose it is.
    pub holder: Holder,
    /// Its root.
    pub vspace: cap::VSpace,
}

impl Kernel {
    /// Takes over what the kernel gave to the root task.
    pub fn new(bootinfo: &BootInfo) -> Self {
        let memory = bootinfo
            .untyped_caps()
            .map(|(cap, desc)| Untyped::new(cap.bits(), desc.paddr(), desc.size_bits(), desc.is_device()));
        let memory = Pool::new(memory);
        let mut ledger = Ledger::new();
        for untyped in memory.iter() {
            let object = Object::Untyped {
                bits: untyped.bits,
                device: untyped.device,
            };
            ledger.put(Holder::Root, untyped.slot, 1, full(object, untyped.paddr));
        }
        let cnode = Object::CNode {
            bits: bootinfo.init_cnode_size_bits(),
        };
        for (slot, object) in [
            (init::TCB.bits(), Object::Tcb),
            (init::CNODE.bits(), cnode),
            (init::VSPACE.bits(), Object::VSpace),
            (init::IRQ_CONTROL.bits(), Object::IrqControl),
            (init::ASID_CONTROL.bits(), Object::AsidControl),
            (init::ASID_POOL.bits(), Object::AsidPool),
            (init::IO_PORT.bits(), Object::IoPorts { first: 0, last: 0xffff }),
            (init::DOMAIN_SET.bits(), Object::Domain),
        ] {
            ledger.put(Holder::Root, slot, 1, full(object, 0));
        }
        Self {
            memory,
            slots: Slots::new(bootinfo.empty().range()),
            ledger,
            cspaces: Vec::new(),
        }
    }

    /// What was handed out.
    pub const fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Bytes of ordinary memory that are free.
    pub fn free_memory(&self) -> u64 {
        self.memory.free()
    }

    /// An empty slot of the root task.
    pub fn slot(&mut self) -> Result<u64, Failure> {
        self.slots.take()
    }

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

    /// All CNodes made for others.
    pub fn cspaces(&self) -> &[CSpace] {
        &self.cspaces
    }

    /// Whether the kernel has a capability in this slot. Changes nothing, whatever is there.
    pub fn is_occupied(&mut self, cspace: CSpace, slot: u64) -> Result<bool, Failure> {
        // The kernel looks at the destination first; the source, an empty slot, ends the copy in any case.
        let empty = self.slots.take()?;
        let outcome = cspace.slot(slot).copy(&CSpace::ROOT.slot(empty), CapRights::NONE);
        self.slots.give_back(empty);
        match outcome {
            Err(sel4::Error::DeleteFirst) => Ok(true),
            Err(sel4::Error::FailedLookup { source: true, .. }) => Ok(false),
            Err(error) => Err(Failure::Kernel {
                what: "look at a slot",
                error,
            }),
            Ok(()) => unreachable!("an empty slot was copied"),
        }
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

    /// Copies a capability of the root task to a slot of `to`, with at most these rights.
    pub fn copy(&mut self, from: CPtr, to: CSpace, slot: u64, rights: Rights) -> Result<(), Failure> {
        let source = CSpace::ROOT.slot(from.bits());
        to.slot(slot)
            .copy(&source, rights_of(rights))
            .map_err(Failure::kernel("copy a capability"))?;
        self.record_copy(from, to, slot, |cap| Cap {
            rights: cap.rights & rights,
            ..cap
        });
        Ok(())
    }

    /// Copies an endpoint or notification capability and gives the copy a badge.
    pub fn mint(&mut self, from: CPtr, to: CSpace, slot: u64, rights: Rights, badge: u64) -> Result<(), Failure> {
        let source = CSpace::ROOT.slot(from.bits());
        to.slot(slot)
            .mint(&source, rights_of(rights), badge)
            .map_err(Failure::kernel("mint a badge"))?;
        self.record_copy(from, to, slot, |cap| Cap {
            rights: cap.rights & rights,
            badge,
            ..cap
        });
        Ok(())
    }

    /// Copies a CNode capability with a guard.
    pub fn mint_cnode(&mut self, from: cap::CNode, to: CSpace, slot: u64, guard: CNodeCapData) -> Result<(), Failure> {
        let source = CSpace::ROOT.slot(from.bits());
        to.slot(slot)
            .mint_cnode(&source, CapRights::ALL, guard)
            .map_err(Failure::kernel("give a CNode a guard"))?;
        self.record_copy(from.cptr(), to, slot, |cap| cap);
        Ok(())
    }

    /// The right to use the I/O ports `first..=last`.
    pub fn mint_ports(&mut self, (first, last): (u16, u16), to: CSpace, slot: u64) -> Result<(), Failure> {
        // The kernel's io_port_capdata: first port in bits 31:16, last port in bits 15:0.
        let data = sel4::sys::seL4_CapData_t {
            words: [u64::from(first) << 16 | u64::from(last)],
        };
        let (target, source) = (to.slot(slot), CSpace::ROOT.slot(init::IO_PORT.bits()));
        sel4::sys::seL4_CNode_Mint(
            target.root.bits(),
            target.path.bits,
            target.path.depth,
            source.root.bits(),
            source.path.bits,
            source.path.depth,
            CapRights::ALL.into_inner(),
            data,
        )
        .map_err(|failure| Failure::kernel("hand out I/O ports")(failure.into()))?;
        self.ledger.put(
            to.holder,
            to.ledger_slot(slot),
            1,
            full(Object::IoPorts { first, last }, 0),
        );
        Ok(())
    }

    /// The right to handle the ISA interrupt `irq` (edge, active high), which signals `notification`.
    pub fn issue_irq(
        &mut self,
        irq: u8,
        notification: cap::Notification,
        to: CSpace,
        slot: u64,
    ) -> Result<(), Failure> {
        let what = Failure::kernel("hand out an interrupt");
        let own = self.slots.take()?;
        let pin = IoApicPin {
            ioapic: 0,
            pin: irq.into(),
            level_triggered: false,
            active_low: false,
        };
        let place = CSpace::ROOT.slot(own);
        init::IRQ_CONTROL
            .irq_control_get_ioapic(pin, irq.into(), &place)
            .and_then(|()| cap::IrqHandler::from_bits(own).irq_handler_set_notification(notification))
            .and_then(|()| to.slot(slot).move_(&place))
            .map_err(what)?;
        self.slots.give_back(own);
        self.ledger
            .put(to.holder, to.ledger_slot(slot), 1, full(Object::IrqHandler(irq), 0));
        Ok(())
    }

    /// Deletes a capability of the root task.
    pub fn delete(&mut self, slot: u64) -> Result<(), Failure> {
        CSpace::ROOT
            .slot(slot)
            .delete()
            .map_err(Failure::kernel("delete a capability"))?;
        self.ledger.remove(Holder::Root, slot);
        Ok(())
    }

    /// Gives up what only start-up needs: untyped memory, all I/O ports but those minted, interrupts, ASIDs, domains.
    pub fn drop_authority(&mut self) -> Result<(), Failure> {
        let is_authority = |object| match object {
            Object::Untyped { .. } | Object::IrqControl | Object::AsidControl | Object::Domain => true,
            Object::IoPorts { first, last } => (first, last) == (0, 0xffff),
            Object::Frame { .. }
            | Object::CNode { .. }
            | Object::Tcb
            | Object::VSpace
            | Object::PageTable
            | Object::EptRoot
            | Object::Vcpu
            | Object::Endpoint(_)
            | Object::Notification
            | Object::IrqHandler(_)
            | Object::AsidPool => false,
        };
        let runs = self
            .ledger
            .caps()
            .iter()
            .filter(|run| run.holder == Holder::Root && is_authority(run.cap.object));
        let slots: Vec<u64> = runs.flat_map(|run| run.slot..run.slot + run.count).collect();
        for slot in slots {
            self.delete(slot)?;
        }
        self.memory = Pool::default();
        Ok(())
    }

    /// Maps a frame of the root task's at `vaddr` and makes the tables that are missing. The capability is used up.
    pub fn map(&mut self, frame: Frame, space: &Space, vaddr: u64, writable: bool) -> Result<(), Failure> {
        self.map_unrecorded(frame, space.vspace, vaddr, writable)?;
        let (paddr, len) = (frame.paddr, frame.size.bytes());
        self.ledger.map(Mapping {
            holder: space.holder,
            vaddr,
            paddr,
            len,
            writable,
        });
        Ok(())
    }

    /// Maps a frame for a while: the caller unmaps it.
    pub(crate) fn map_unrecorded(
        &mut self,
        frame: Frame,
        vspace: cap::VSpace,
        vaddr: u64,
        writable: bool,
    ) -> Result<(), Failure> {
        crate::vspace::map(frame.cap(), vspace, vaddr, writable, |blueprint| {
            let slot = self.slots.take()?;
            self.make(blueprint, Object::PageTable, CSpace::ROOT, slot, 1)?;
            Ok(CPtr::from_bits(slot))
        })
    }

    /// A further capability to a frame, to map it once more.
    pub fn duplicate(&mut self, frame: Frame) -> Result<Frame, Failure> {
        let slot = self.slots.take()?;
        self.copy(
            CPtr::from_bits(frame.slot),
            CSpace::ROOT,
            slot,
            Rights::READ | Rights::WRITE,
        )?;
        Ok(Frame { slot, ..frame })
    }

    fn make(
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

    fn record_copy(&mut self, from: CPtr, to: CSpace, slot: u64, change: impl FnOnce(Cap) -> Cap) {
        // A capability that the ledger does not know (of the boot information) is nobody's business but the root task's.
        if let Some(cap) = self.ledger.get(Holder::Root, from.bits()) {
            self.ledger.put(to.holder, to.ledger_slot(slot), 1, change(cap));
        }
    }
}

/// A capability with all rights, as the kernel creates it.
const fn full(object: Object, paddr: u64) -> Cap {
    let rights = match object {
        Object::Frame { .. } => Rights::READ.union(Rights::WRITE),
        Object::Untyped { .. }
        | Object::CNode { .. }
        | Object::Tcb
        | Object::VSpace
        | Object::PageTable
        | Object::EptRoot
        | Object::Vcpu
        | Object::Endpoint(_)
        | Object::Notification
        | Object::IoPorts { .. }
        | Object::IrqHandler(_)
        | Object::IrqControl
        | Object::AsidControl
        | Object::AsidPool
        | Object::Domain => Rights::all(),
    };
    Cap {
        object,
        rights,
        badge: 0,
        paddr,
    }
}

fn rights_of(rights: Rights) -> CapRights {
    let pairs = [
        (Rights::READ, CapRights::READ),
        (Rights::WRITE, CapRights::WRITE),
        (Rights::GRANT, CapRights::GRANT),
    ];
    pairs
        .iter()
        .filter(|(r, _)| rights.contains(*r))
        .fold(CapRights::NONE, |sum, (_, right)| sum.union(*right))
}

const fn object_of(blueprint: ObjectBlueprint) -> Object {
    match blueprint {
        ObjectBlueprint::Untyped { size_bits } => Object::Untyped {
            bits: size_bits,
            device: false,
        },
        ObjectBlueprint::CNode { size_bits } => Object::CNode { bits: size_bits },
        ObjectBlueprint::Tcb => Object::Tcb,
        ObjectBlueprint::Endpoint => Object::Endpoint(Port::Supervisor),
        ObjectBlueprint::Notification => Object::Notification,
        ObjectBlueprint::VSpace => Object::VSpace,
        ObjectBlueprint::SmallPage => Object::Frame {
            size: Size::Small,
            device: false,
        },
        ObjectBlueprint::LargePage => Object::Frame {
            size: Size::Large,
            device: false,
        },
        ObjectBlueprint::VCpu => Object::Vcpu,
        ObjectBlueprint::EptPml4 => Object::EptRoot,
        ObjectBlueprint::Pdpt
        | ObjectBlueprint::PageDirectory
        | ObjectBlueprint::PageTable
        | ObjectBlueprint::EptPdpt
        | ObjectBlueprint::EptPd
        | ObjectBlueprint::EptPt => Object::PageTable,
    }
}

const fn name_of(blueprint: ObjectBlueprint) -> &'static str {
    match blueprint {
        ObjectBlueprint::Untyped { .. } => "make untyped memory",
        ObjectBlueprint::CNode { .. } => "make a CNode",
        ObjectBlueprint::Tcb => "make a thread",
        ObjectBlueprint::Endpoint => "make an endpoint",
        ObjectBlueprint::Notification => "make a notification",
        ObjectBlueprint::VSpace => "make an address space",
        ObjectBlueprint::Pdpt => "make a PDPT",
        ObjectBlueprint::PageDirectory => "make a page directory",
        ObjectBlueprint::PageTable => "make a page table",
        ObjectBlueprint::SmallPage => "make 4K frames",
        ObjectBlueprint::LargePage => "make 2M frames",
        ObjectBlueprint::VCpu => "make a VCPU",
        ObjectBlueprint::EptPml4 => "make an EPT root",
        ObjectBlueprint::EptPdpt => "make an EPT PDPT",
        ObjectBlueprint::EptPd => "make an EPT page directory",
        ObjectBlueprint::EptPt => "make an EPT page table",
    }
}

/// Pages of 4K in `len` bytes.
pub const fn pages(len: u64) -> u64 {
    len.div_ceil(SMALL)
}
