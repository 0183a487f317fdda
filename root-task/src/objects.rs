// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the ledger writes about a new object, and how its rights and name are said to the kernel and to people.

use sel4::{CapRights, ObjectBlueprint};
use umbra_root_core::{
    frames::Size,
    ledger::{Cap, Object, Port, Rights},
};

/// A capability with all rights, as the kernel creates it.
pub(crate) const fn full(object: Object, paddr: u64) -> Cap {
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

pub(crate) fn rights_of(rights: Rights) -> CapRights {
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

pub(crate) const fn object_of(blueprint: ObjectBlueprint) -> Object {
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

pub(crate) const fn name_of(blueprint: ObjectBlueprint) -> &'static str {
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
