// SPDX-License-Identifier: MIT OR Apache-2.0
//! What `system.toml` implies: every capability and mapping that each holder has once all VMs are started.

use super::{Access, Area, Badge, Distribution, Item};
use crate::{
    badge::{Kind, Source},
    frames::{Frames, SMALL, Size},
    ledger::{Holder, Object, Port, Rights},
};
use umbra_description::{ComPort, PowerOff, SlotKind, System, layout, supervisor::Role};

/// What is not in the description but in the programs themselves: sizes in memory, whole pages, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Program {
    /// Segments that may only be read.
    pub read_only: u64,
    /// Segments that may be written.
    pub writable: u64,
    /// Configuration.
    pub config: u64,
}

/// The programs of one VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VmFacts {
    /// Its vmm.
    pub vmm: Program,
    /// Its mmu.
    pub mmu: Program,
    /// log2 of the slots of the mmu's CNode.
    pub mmu_cnode_bits: u8,
}

/// I/O ports of a serial port.
pub const fn uart_ports(port: ComPort) -> (u16, u16) {
    match port {
        ComPort::Com1 => (0x3f8, 0x3ff),
        ComPort::Com2 => (0x2f8, 0x2ff),
    }
}

/// The interrupt of a serial port.
pub const fn uart_irq(port: ComPort) -> u8 {
    match port {
        ComPort::Com1 => 4,
        ComPort::Com2 => 3,
    }
}

/// I/O ports that switch the machine off.
pub const fn power_off_ports(power_off: PowerOff) -> Option<(u16, u16)> {
    match power_off {
        PowerOff::Bochs => Some((0x8900, 0x8900)),
        PowerOff::Qemu => Some((0xf4, 0xf4)),
        PowerOff::Halt => None,
    }
}

/// The distribution that `system` implies; `facts` has one entry per VM that was started (none where there is no VT-x).
pub fn expect(system: &System, facts: &[VmFacts]) -> Distribution {
    let mut all = Expected(Distribution::new());
    all.io_ports(Holder::Root, uart_ports(system.log));
    if let Some(ports) = power_off_ports(system.power_off) {
        all.io_ports(Holder::Root, ports);
    }
    for (number, facts) in facts.iter().enumerate() {
        all.vmm(system, number as u16, facts);
        all.mmu(system, number as u16, facts);
    }
    all.0
}

struct Expected(Distribution);

impl Expected {
    fn vmm(&mut self, system: &System, number: u16, facts: &VmFacts) {
        let (holder, vm) = (Holder::Vmm(number), &system.vms[usize::from(number)]);
        self.endpoints(
            holder,
            Source {
                vm: number,
                role: Role::Vmm,
                kind: Kind::Message,
            },
        );
        let requests = Object::Endpoint(Port::Requests(number));
        self.cap(holder, requests, Rights::WRITE | Rights::GRANT);
        self.cap(holder, Object::Vcpu, Rights::all());
        self.cap(holder, Object::Notification, Rights::READ);
        if let Some(port) = vm.console {
            self.io_ports(holder, uart_ports(port));
            self.cap(holder, Object::IrqHandler(uart_irq(port)), Rights::all());
        }
        self.program(holder, system, vm.vmm, 0, &facts.vmm);
        let ram = vm.slots.iter().map(|slot| slot.len).sum();
        self.mapped(holder, Area::Guest, Access::ReadWrite, ram);
        if let Some(payload) = system.payload {
            self.mapped(
                holder,
                Area::Payload,
                Access::ReadOnly,
                payload.len.next_multiple_of(SMALL),
            );
        }
    }

    fn mmu(&mut self, system: &System, number: u16, facts: &VmFacts) {
        let (holder, vm) = (Holder::Mmu(number), &system.vms[usize::from(number)]);
        self.endpoints(
            holder,
            Source {
                vm: number,
                role: Role::Mmu,
                kind: Kind::Message,
            },
        );
        self.cap(holder, Object::Endpoint(Port::Requests(number)), Rights::READ);
        self.cap(holder, Object::EptRoot, Rights::all());
        self.add(holder, Item::Untyped, vm.table_memory);
        // Its own CNode: once for itself to name, once below the root of its CSpace.
        self.cap(
            holder,
            Object::CNode {
                bits: facts.mmu_cnode_bits,
            },
            Rights::all(),
        );
        self.cap(
            holder,
            Object::CNode {
                bits: facts.mmu_cnode_bits,
            },
            Rights::all(),
        );
        self.cap(
            holder,
            Object::CNode {
                bits: layout::mmu::TOP_BITS as u8,
            },
            Rights::all(),
        );
        for slot in &vm.slots {
            let rights = match slot.kind {
                SlotKind::Ram => Rights::READ | Rights::WRITE,
                SlotKind::Rom => Rights::READ,
            };
            let frames = Frames::of_slot(slot);
            for (size, count) in [(Size::Small, frames.head + frames.tail), (Size::Large, frames.large)] {
                self.add(
                    holder,
                    Item::Cap(Object::Frame { size, device: false }, rights, Badge(0)),
                    count,
                );
            }
        }
        self.program(holder, system, vm.mmu, vm.mmu_heap_extra(), &facts.mmu);
    }

    /// Messages and faults to the root task.
    fn endpoints(&mut self, holder: Holder, message: Source) {
        let fault = Source {
            kind: Kind::Fault,
            ..message
        };
        let supervisor = Object::Endpoint(Port::Supervisor);
        self.add(
            holder,
            Item::Cap(supervisor, Rights::WRITE, Badge(message.to_badge())),
            1,
        );
        self.add(
            holder,
            Item::Cap(supervisor, Rights::WRITE | Rights::GRANT, Badge(fault.to_badge())),
            1,
        );
    }

    fn program(&mut self, holder: Holder, system: &System, component: u16, heap_extra: u64, program: &Program) {
        let component = &system.components[usize::from(component)];
        self.mapped(holder, Area::Program, Access::ReadOnly, program.read_only);
        self.mapped(holder, Area::Program, Access::ReadWrite, program.writable);
        self.mapped(holder, Area::Config, Access::ReadOnly, program.config);
        self.mapped(holder, Area::IpcBuffer, Access::ReadWrite, SMALL);
        self.mapped(holder, Area::Stack, Access::ReadWrite, component.stack);
        self.mapped(holder, Area::Heap, Access::ReadWrite, component.heap + heap_extra);
    }

    fn io_ports(&mut self, holder: Holder, (first, last): (u16, u16)) {
        self.cap(holder, Object::IoPorts { first, last }, Rights::all());
    }

    fn cap(&mut self, holder: Holder, object: Object, rights: Rights) {
        self.add(holder, Item::Cap(object, rights, Badge(0)), 1);
    }

    fn mapped(&mut self, holder: Holder, area: Area, access: Access, len: u64) {
        self.add(holder, Item::Mapped(area, access), len);
    }

    fn add(&mut self, holder: Holder, item: Item, amount: u64) {
        if amount > 0 {
            *self.0.entry((holder, item)).or_default() += amount;
        }
    }
}
