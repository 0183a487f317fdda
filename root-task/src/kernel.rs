// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every kernel call that changes who holds what, written down in the ledger when it has succeeded.
//!
//! Usable alone by any root task: `Kernel::new(bootinfo)`, then `alloc` (in `untyped`), `copy`, `map` (in `vspace`).

use crate::{
    cspace::{CSpace, Slots},
    failure::Failure,
    objects::{full, rights_of},
};
use alloc::vec::Vec;
use sel4::{BootInfo, CNodeCapData, CPtr, CapRights, IoApicPin, cap, init_thread::slot as init};
use umbra_root_core::{
    ledger::{Cap, Holder, Ledger, Object, Rights},
    untyped::{Pool, Untyped},
};

/// The kernel as the root task sees it: memory, slots, and what was handed out.
#[derive(Debug)]
pub struct Kernel {
    pub(crate) memory: Pool,
    pub(crate) slots: Slots,
    pub(crate) ledger: Ledger,
    pub(crate) cspaces: Vec<CSpace>,
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

    fn record_copy(&mut self, from: CPtr, to: CSpace, slot: u64, change: impl FnOnce(Cap) -> Cap) {
        // A capability that the ledger does not know (of the boot information) is nobody's business but the root task's.
        if let Some(cap) = self.ledger.get(Holder::Root, from.bits()) {
            self.ledger.put(to.holder, to.ledger_slot(slot), 1, change(cap));
        }
    }
}
