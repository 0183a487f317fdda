// SPDX-License-Identifier: MIT OR Apache-2.0
//! Does everybody hold exactly what the description of the system implies, and does memory belong to one VM only?

// REQ: X-4

mod expect;
mod isolation;

pub use expect::{Program, VmFacts, expect, power_off_ports, uart_irq, uart_ports};
pub use isolation::{Shared, shared};

use crate::{
    frames::Size,
    ledger::{Holder, Ledger, Object, Port, Rights},
};
use alloc::{collections::BTreeMap, string::String, vec::Vec};
use core::fmt::{self, Write as _};
use umbra_description::{System, layout};

/// Stacks begin above this address.
const STACK_LOWEST: u64 = layout::STACK_TOP - (128 << 20);

/// A thing that a holder has some amount of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Item {
    /// Capabilities; the amount is how many.
    Cap(Object, Rights, Badge),
    /// Untyped memory; the amount is in bytes.
    Untyped,
    /// Mapped memory; the amount is in bytes.
    Mapped(Area, Access),
}

/// A capability's badge; 0: none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Badge(pub u64);

/// What a mapping is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Area {
    /// The program's segments.
    Program,
    /// The IPC buffer.
    IpcBuffer,
    /// What the component is told at start.
    Config,
    /// The stack.
    Stack,
    /// The heap.
    Heap,
    /// Memory of the guest.
    Guest,
    /// Guest images.
    Payload,
}

/// How memory is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// Read and execute.
    ReadOnly,
    /// Read, write and execute.
    ReadWrite,
}

impl Access {
    const fn new(writable: bool) -> Self {
        if writable { Self::ReadWrite } else { Self::ReadOnly }
    }
}

impl Area {
    /// The area that an address of a component belongs to.
    pub const fn of(vaddr: u64) -> Self {
        match vaddr {
            ..layout::IPC_BUFFER => Self::Program,
            layout::IPC_BUFFER..layout::CONFIG => Self::IpcBuffer,
            layout::CONFIG..STACK_LOWEST => Self::Config,
            STACK_LOWEST..layout::STACK_TOP => Self::Stack,
            layout::STACK_TOP..layout::RAM_WINDOW => Self::Heap,
            layout::RAM_WINDOW..layout::PAYLOAD_WINDOW => Self::Guest,
            layout::PAYLOAD_WINDOW.. => Self::Payload,
        }
    }
}

/// Amounts of items by holder.
pub type Distribution = BTreeMap<(Holder, Item), u64>;

/// What the ledger says that everybody has. Of the root task, which made everything, only authority over what is not yet
/// handed out counts: untyped memory, I/O ports, interrupts, domains.
pub fn actual(ledger: &Ledger) -> Distribution {
    let mut sum = Distribution::new();
    for run in ledger
        .caps()
        .iter()
        .filter(|run| run.holder != Holder::Root || is_authority(run.cap.object))
    {
        let (item, amount) = match run.cap.object {
            Object::Untyped { bits, device: false } => (Item::Untyped, run.count << bits),
            object => (Item::Cap(object, run.cap.rights, Badge(run.cap.badge)), run.count),
        };
        *sum.entry((run.holder, item)).or_default() += amount;
    }
    for mapping in ledger.mappings() {
        let item = Item::Mapped(Area::of(mapping.vaddr), Access::new(mapping.writable));
        *sum.entry((mapping.holder, item)).or_default() += mapping.len;
    }
    sum
}

const fn is_authority(object: Object) -> bool {
    match object {
        Object::Untyped { .. }
        | Object::IoPorts { .. }
        | Object::IrqHandler(_)
        | Object::IrqControl
        | Object::AsidControl
        | Object::Domain => true,
        Object::Frame { .. }
        | Object::CNode { .. }
        | Object::Tcb
        | Object::VSpace
        | Object::PageTable
        | Object::EptRoot
        | Object::Vcpu
        | Object::Endpoint(_)
        | Object::Notification
        | Object::AsidPool => false,
    }
}

/// A difference between what somebody has and what the description implies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Who.
    pub holder: Holder,
    /// Of what.
    pub item: Item,
    /// How much of it the holder has.
    pub has: u64,
    /// How much the description implies.
    pub should: u64,
}

/// All differences, in the order of holders.
pub fn compare(has: &Distribution, should: &Distribution) -> Vec<Difference> {
    let mut keys: Vec<_> = has.keys().chain(should.keys()).collect();
    keys.sort();
    keys.dedup();
    let amount = |of: &Distribution, key| of.get(key).copied().unwrap_or(0);
    keys.into_iter()
        .filter(|key| amount(has, key) != amount(should, key))
        .map(|key| Difference {
            holder: key.0,
            item: key.1,
            has: amount(has, key),
            should: amount(should, key),
        })
        .collect()
}

/// One line per holder: everything it has.
pub fn report<'a>(system: &'a System, has: &'a Distribution) -> impl Iterator<Item = String> + use<'a> {
    let mut holders: Vec<Holder> = has.keys().map(|(holder, _)| *holder).collect();
    holders.dedup();
    holders.into_iter().map(move |holder| {
        let mut line = String::new();
        let items = has
            .range((holder, FIRST_ITEM)..)
            .take_while(move |((h, _), _)| *h == holder);
        for (i, ((_, item), amount)) in items.enumerate() {
            // Writing to a string cannot fail.
            let _ = match i {
                0 => write!(line, "{}: {}", Named(system, holder), Amount(system, *item, *amount)),
                _ => write!(line, ", {}", Amount(system, *item, *amount)),
            };
        }
        line
    })
}

/// Smaller than every other item.
const FIRST_ITEM: Item = Item::Cap(Object::Untyped { bits: 0, device: false }, Rights::empty(), Badge(0));

/// A holder, by the name of its VM.
pub struct Named<'a>(pub &'a System, pub Holder);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.1 {
            Holder::Root => f.write_str("root task"),
            Holder::Vmm(vm) => write!(f, "{} vmm", vm_name(self.0, vm)),
            Holder::Mmu(vm) => write!(f, "{} mmu", vm_name(self.0, vm)),
        }
    }
}

impl Difference {
    /// As a sentence.
    pub fn display<'a>(&'a self, system: &'a System) -> impl fmt::Display + 'a {
        let (has, should) = (self.has, self.should);
        let of = move |amount| Amount(system, self.item, amount);
        fmt::from_fn(move |f| {
            let who = Named(system, self.holder);
            match (has, should) {
                (_, 0) => write!(f, "{who} has {}, the description implies none", of(has)),
                (0, _) => write!(f, "{who} lacks {}", of(should)),
                _ => write!(f, "{who} has {}, the description implies {}", of(has), of(should)),
            }
        })
    }
}

struct Amount<'a>(&'a System, Item, u64);

impl fmt::Display for Amount<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(system, item, amount) = self;
        match item {
            Item::Untyped => write!(f, "untyped {}", Bytes(*amount)),
            Item::Mapped(area, access) => {
                let what = match area {
                    Area::Program => "program",
                    Area::IpcBuffer => "IPC buffer",
                    Area::Config => "configuration",
                    Area::Stack => "stack",
                    Area::Heap => "heap",
                    Area::Guest => "guest memory",
                    Area::Payload => "payload",
                };
                let access = match access {
                    Access::ReadOnly => "r-",
                    Access::ReadWrite => "rw",
                };
                write!(f, "mapped {what} {} {access}", Bytes(*amount))
            }
            Item::Cap(object, rights, badge) => {
                if *amount != 1 {
                    write!(f, "{amount} x ")?;
                }
                object_name(f, system, *object)?;
                match object {
                    Object::Frame { .. } | Object::Endpoint(_) | Object::Notification => write!(f, " {rights}")?,
                    Object::Untyped { .. }
                    | Object::CNode { .. }
                    | Object::Tcb
                    | Object::VSpace
                    | Object::PageTable
                    | Object::EptRoot
                    | Object::Vcpu
                    | Object::IoPorts { .. }
                    | Object::IrqHandler(_)
                    | Object::IrqControl
                    | Object::AsidControl
                    | Object::AsidPool
                    | Object::Domain => {}
                }
                if badge.0 != 0 {
                    write!(f, " badge {:#x}", badge.0)?;
                }
                Ok(())
            }
        }
    }
}

fn object_name(f: &mut fmt::Formatter<'_>, system: &System, object: Object) -> fmt::Result {
    let kind = |device| if device { "device " } else { "" };
    match object {
        Object::Untyped { bits, device } => write!(f, "{}untyped 2^{bits}", kind(device)),
        Object::Frame {
            size: Size::Small,
            device,
        } => write!(f, "{}frame 4K", kind(device)),
        Object::Frame {
            size: Size::Large,
            device,
        } => write!(f, "{}frame 2M", kind(device)),
        Object::CNode { bits } => write!(f, "cnode 2^{bits}"),
        Object::Tcb => f.write_str("tcb"),
        Object::VSpace => f.write_str("vspace"),
        Object::PageTable => f.write_str("page table"),
        Object::EptRoot => f.write_str("ept root"),
        Object::Vcpu => f.write_str("vcpu"),
        Object::Endpoint(Port::Supervisor) => f.write_str("endpoint supervisor"),
        Object::Endpoint(Port::Requests(vm)) => write!(f, "endpoint mmu of {}", vm_name(system, vm)),
        Object::Notification => f.write_str("notification"),
        Object::IoPorts { first, last } => write!(f, "io-ports {first:#x}-{last:#x}"),
        Object::IrqHandler(pin) => write!(f, "irq {pin}"),
        Object::IrqControl => f.write_str("irq control"),
        Object::AsidControl => f.write_str("asid control"),
        Object::AsidPool => f.write_str("asid pool"),
        Object::Domain => f.write_str("domain control"),
    }
}

fn vm_name(system: &System, vm: u16) -> &str {
    system.vms.get(usize::from(vm)).map_or("?", |vm| &vm.name)
}

struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            n if n.is_multiple_of(1 << 20) => write!(f, "{}M", n >> 20),
            n if n.is_multiple_of(1 << 10) => write!(f, "{}K", n >> 10),
            n => write!(f, "{n}"),
        }
    }
}

#[cfg(test)]
mod tests;
