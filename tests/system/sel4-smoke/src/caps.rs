// SPDX-License-Identifier: MIT OR Apache-2.0
//! Do capabilities, rights and the kernel's errors arrive as they are?

use crate::objects::Objects;
use sel4::cap::{Endpoint, Untyped, cap_type};
use sel4::init_thread::slot;
use sel4::{BootInfo, CapRights, Error, LookupFailure, ObjectBlueprint};
use umbra_test_report::{Check, Report, good, same, ticks, ticks_after};

/// All tests of this file.
pub fn run(report: &mut Report, objects: &mut Objects, bootinfo: &BootInfo) {
    report.test("boot information is sound", || sound(bootinfo));
    report.test("errors keep the kernel's detail", || errors(objects));
    report.test("copies die with a revocation", || revocation(objects));
    report.test("a port register keeps what is written", port);
    let page = objects
        .object::<cap_type::SmallPage>(ObjectBlueprint::SmallPage)
        .expect("memory for a page");
    let copy = objects.slot::<cap_type::SmallPage>();
    let (from, to) = (slot::CNODE.absolute_cptr(page), slot::CNODE.absolute_cptr(copy));
    let delete = || to.delete().expect("delete");
    let make = || to.copy(&from, CapRights::ALL).expect("copy");
    report.measured("copy of a capability", ticks_after(delete, make));
    delete();
    report.measured("deletion of a copy", ticks_after(make, delete));
    let memory: Untyped = objects
        .object(ObjectBlueprint::Untyped { size_bits: 12 })
        .expect("memory");
    let revoke = || slot::CNODE.absolute_cptr(memory).revoke().expect("revoke");
    let retype = || {
        let made = memory.untyped_retype(ObjectBlueprint::Tcb, &Objects::cnode(), copy.bits(), 1);
        made.expect("retype");
    };
    report.measured("retype of a thread", ticks_after(revoke, retype));
    report.measured(
        "invocation with 2 words (port out)",
        ticks(|| slot::IO_PORT.ioport_out8(0x2ff, 1).expect("out")),
    );
    report.measured("invocation with 1 result (frame address)", {
        ticks(|| {
            page.frame_get_address().expect("address");
        })
    });
}

fn sound(bootinfo: &BootInfo) -> Check {
    let memory = bootinfo.untyped_caps().filter(|(_, piece)| !piece.is_device());
    let bytes: u64 = memory.map(|(_, piece)| 1 << piece.size_bits()).sum();
    same("at least 64 MiB of RAM", bytes >= 64 << 20, true)?;
    // Not so for devices above 512 GiB, which the kernel's own window does not reach.
    let aligned = |piece: &sel4::UntypedDesc| piece.is_device() || piece.paddr().is_multiple_of(1 << piece.size_bits());
    same("RAM is aligned", bootinfo.untyped_list().iter().all(aligned), true)?;
    same("one CPU", bootinfo.num_nodes(), 1)?;
    same(
        "slots",
        bootinfo.empty().range().end,
        1 << bootinfo.init_cnode_size_bits(),
    )?;
    log::info!(
        "{} MiB of RAM in {} untyped objects, {} empty slots, TSC {} MHz",
        bytes >> 20,
        bootinfo.untyped().len(),
        bootinfo.empty().len(),
        bootinfo.tsc_mhz(),
    );
    Ok(())
}

fn errors(objects: &mut Objects) -> Check {
    let cnode = Objects::cnode();
    let small: Untyped = good("retype", objects.object(ObjectBlueprint::Untyped { size_bits: 13 }))?;
    let target = objects.slot::<cap_type::Unspecified>().bits();
    let retype = |blueprint, slot, count| small.untyped_retype(blueprint, &cnode, slot, count);
    same(
        "too large",
        retype(ObjectBlueprint::LargePage, target, 1),
        Err(Error::NotEnoughMemory { left: 1 << 13 }),
    )?;
    same(
        "occupied",
        retype(ObjectBlueprint::Endpoint, slot::TCB.bits(), 1),
        Err(Error::DeleteFirst),
    )?;
    let none = retype(ObjectBlueprint::Endpoint, target, 0);
    same(
        "no object",
        none,
        Err(Error::RangeError {
            min: 1,
            max: Untyped::MAX_OBJECTS,
        }),
    )?;
    let endpoint: Endpoint = good("retype", objects.object(ObjectBlueprint::Endpoint))?;
    let (empty, to) = (
        objects.slot::<cap_type::Unspecified>(),
        objects.slot::<cap_type::Unspecified>(),
    );
    let copied = slot::CNODE
        .absolute_cptr(to)
        .copy(&slot::CNODE.absolute_cptr(empty), CapRights::ALL);
    let missing = Error::FailedLookup {
        source: true,
        failure: LookupFailure::MissingCapability { bits_left: 64 },
    };
    same("copy of nothing", copied, Err(missing))?;
    let mut deep = slot::CNODE.absolute_cptr(endpoint);
    deep.path.depth = 3;
    let copied = slot::CNODE.absolute_cptr(to).copy(&deep, CapRights::ALL);
    let failure = match copied {
        Err(Error::FailedLookup { source: true, failure }) => failure,
        other => return Err(alloc::format!("a shallow address: {other:?}")),
    };
    let guard = matches!(
        failure,
        LookupFailure::GuardMismatch {
            bits_left: 3,
            guard_found: 0,
            ..
        }
    );
    same("a shallow address meets the guard", guard, true)
}

fn revocation(objects: &mut Objects) -> Check {
    let small: Untyped = good("retype", objects.object(ObjectBlueprint::Untyped { size_bits: 12 }))?;
    let page = objects.slot::<cap_type::SmallPage>();
    let retype = || small.untyped_retype(ObjectBlueprint::SmallPage, &Objects::cnode(), page.bits(), 1);
    good("retype", retype())?;
    same("no room for two", retype().is_err(), true)?;
    let copy = objects.slot::<cap_type::SmallPage>();
    let cptr = |cap| slot::CNODE.absolute_cptr(cap);
    good("copy", cptr(copy).copy(&cptr(page), CapRights::READ))?;
    same("same frame", copy.frame_get_address(), page.frame_get_address())?;
    good("revoke", slot::CNODE.absolute_cptr(small).revoke())?;
    same("the copy is gone", copy.frame_get_address().is_err(), true)?;
    good("the memory is free again", retype())
}

fn port() -> Check {
    const SCRATCH: u16 = 0x2ff;
    for value in [0x5a, 0xa5] {
        good("out", slot::IO_PORT.ioport_out8(SCRATCH, value))?;
        same(
            "scratch register",
            good("in", slot::IO_PORT.ioport_in8(SCRATCH))?,
            value,
        )?;
    }
    Ok(())
}
