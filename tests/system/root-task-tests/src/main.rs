// SPDX-License-Identifier: MIT OR Apache-2.0
//! Do the parts of the root task agree with the kernel about memory, slots, mappings and who holds what?
#![no_std]
#![no_main]

extern crate alloc;

use alloc::{format, vec::Vec};
use sel4::{
    BootInfo, BootInfoPtr, CPtr, CapRights, Error, ObjectBlueprint,
    cap::{Endpoint, IOPort, IrqHandler, Notification, Tcb},
    init_thread::slot,
};
use sel4_root_task::root_task;
use umbra_root_core::{
    frames::Size,
    ledger::{Holder, Object, Port, Rights},
    untyped::Exhausted,
};
use umbra_root_task::{
    Failure, Kernel, audit,
    cspace::{CSpace, Slots},
    kernel::Space,
    vspace,
};
use umbra_test_report::{Check, Ports, Report, good, same};

/// The root task's own address space.
const OWN: Space = Space {
    holder: Holder::Root,
    vspace: slot::VSPACE,
};
/// Addresses that nothing else uses, in other tables than the image.
const FREE: u64 = 0x30_0000_0000;

#[root_task(stack_size = 0x10000, heap_size = 0x80000)]
fn main(bootinfo: &BootInfoPtr) -> ! {
    let mut kernel = Kernel::new(bootinfo);
    let own = Ports::minted(|range| mint(&mut kernel, range)).expect("the root task has all ports");
    let mut report = Report::with_ports(own);
    let k = &mut kernel;
    report.test("physical_addresses_are_as_foretold", || addresses(k));
    report.test("frames_are_mapped_with_missing_tables", || mappings(k));
    report.test("frames_are_filled_and_mapped_elsewhere", || filling(k));
    report.test("device_memory_is_found_behind_other_memory", || device(k, bootinfo));
    report.test("badges_arrive", || badges(k));
    report.test("ports_are_those_minted", || ports(k));
    report.test("an_interrupt_moves_to_its_owner", || interrupt(k));
    report.test("the_ledger_agrees_with_the_kernel", || ledger_agrees(k));
    report.test("a_capability_behind_the_ledgers_back_is_found", || ledger_differs(k));
    report.test("slots_end_with_an_error", slots_end);
    report.test("memory_ends_with_an_error", || memory_ends(k));
    report.test("authority_is_gone_when_dropped", || authority_ends(k));
    report.finish()
}

/// A capability of ports that stays when the root task has given up all others.
fn mint(kernel: &mut Kernel, range: (u16, u16)) -> Result<IOPort, Failure> {
    let slot = kernel.slot()?;
    kernel.mint_ports(range, CSpace::ROOT, slot)?;
    Ok(IOPort::from_bits(slot))
}

/// The pool's watermark and the kernel's are the same, whatever sizes are mixed.
fn addresses(kernel: &mut Kernel) -> Check {
    for round in 0..12u64 {
        for _ in 0..round % 3 {
            good("an endpoint", kernel.alloc_endpoint(Port::Supervisor))?;
            let _: Tcb = good("a thread", kernel.alloc(ObjectBlueprint::Tcb))?;
        }
        good("a CNode", kernel.alloc_cspace(Holder::Vmm(9), 3 + round as u8 % 5))?;
        let size = if round % 4 == 3 { Size::Large } else { Size::Small };
        for run in good("frames", kernel.alloc_frames(size, 1 + round * 7 % 11))? {
            for frame in run.iter() {
                same("physical address", frame.cap().frame_get_address(), Ok(frame.paddr))?;
            }
        }
    }
    Ok(())
}

fn mappings(kernel: &mut Kernel) -> Check {
    let places = [
        FREE,
        FREE + 0x1000,
        FREE + (2 << 20),
        FREE + (1 << 30),
        FREE + (1 << 39),
    ];
    for vaddr in places {
        let page = good("a page", kernel.alloc_page())?;
        good("mapping it", kernel.map(page, &OWN, vaddr, true))?;
        same("cleared memory", peek(vaddr), 0)?;
        poke(vaddr, vaddr);
    }
    for vaddr in places {
        same("what was written", peek(vaddr), vaddr)?;
    }
    let large = good("a large frame", kernel.alloc_frames(Size::Large, 1))?[0]
        .iter()
        .next();
    let large = large.ok_or("no large frame")?;
    good("mapping it", kernel.map(large, &OWN, FREE + (4 << 20), true))?;
    poke(FREE + (6 << 20) - 8, 7);
    same("its last word", peek(FREE + (6 << 20) - 8), 7)?;
    let again = good("a page", kernel.alloc_page())?;
    let refused = kernel.map(again, &OWN, FREE, true);
    same(
        "an address twice",
        refused,
        Err(Failure::Kernel {
            what: "map a frame",
            error: Error::DeleteFirst,
        }),
    )
}

fn filling(kernel: &mut Kernel) -> Check {
    let page = good("a page", kernel.alloc_page())?;
    good("filling it", vspace::fill(kernel, page, |bytes| bytes.fill(0x5a)))?;
    let copy = good("a copy", kernel.duplicate(page))?;
    good("mapping it", kernel.map(page, &OWN, FREE + 0x10_0000, false))?;
    good("mapping the copy", kernel.map(copy, &OWN, FREE + 0x18_0000, true))?;
    same("its content", peek(FREE + 0x10_0000), 0x5a5a_5a5a_5a5a_5a5a)?;
    poke(FREE + 0x18_0000, 1);
    same("one memory", peek(FREE + 0x10_0000), 1)
}

fn device(kernel: &mut Kernel, bootinfo: &BootInfo) -> Check {
    let large = bootinfo
        .untyped_list()
        .iter()
        .find(|desc| desc.is_device() && desc.size_bits() >= 24);
    let base = large.ok_or("no device memory of 16 MiB")?.paddr();
    for (offset, size) in [
        (0x3000, Size::Small),
        (0x60_0000, Size::Large),
        (0x80_0000, Size::Small),
    ] {
        let frame = good("a device frame", kernel.alloc_device_frame(base + offset, size))?;
        same("its address", frame.cap().frame_get_address(), Ok(base + offset))?;
    }
    for (paddr, size, bits) in [(base + 0x3000, Size::Small, 12), (base + 0x60_0000, Size::Large, 21)] {
        let refused = kernel.alloc_device_frame(paddr, size).map(|frame| frame.paddr);
        same(
            "a frame twice",
            refused,
            Err(Failure::Memory(Exhausted::Device { paddr, bits })),
        )?;
    }
    Ok(())
}

fn badges(kernel: &mut Kernel) -> Check {
    let notification: Notification = good("a notification", kernel.alloc(ObjectBlueprint::Notification))?;
    for badge in [1, 0x80] {
        let slot = good("a slot", kernel.slot())?;
        good(
            "a badge",
            kernel.mint(notification.cptr(), CSpace::ROOT, slot, Rights::WRITE, badge),
        )?;
        Notification::from_bits(slot).signal();
    }
    same("both badges", notification.poll(), 0x81)
}

fn ports(kernel: &mut Kernel) -> Check {
    let slot = good("a slot", kernel.slot())?;
    good("ports", kernel.mint_ports((0x2f8, 0x2fb), CSpace::ROOT, slot))?;
    let ports = IOPort::from_bits(slot);
    for port in 0x2f8..=0x2fb {
        good("a port of it", ports.ioport_in8(port))?;
    }
    for port in [0, 0x2f7, 0x2fc, 0xffff] {
        same("another port", ports.ioport_in8(port), Err(Error::IllegalOperation))?;
    }
    Ok(())
}

fn interrupt(kernel: &mut Kernel) -> Check {
    let notification: Notification = good("a notification", kernel.alloc(ObjectBlueprint::Notification))?;
    let owner = good("a CNode", kernel.alloc_cspace(Holder::Vmm(8), 4))?;
    good("the interrupt", kernel.issue_irq(5, notification, owner, 6))?;
    let recorded = kernel.ledger().get(Holder::Vmm(8), 6).map(|cap| cap.object);
    same("the ledger", recorded, Some(Object::IrqHandler(5)))?;
    // Only one may have it.
    let twice = kernel.issue_irq(5, notification, owner, 7);
    let what = "hand out an interrupt";
    same(
        "the same interrupt again",
        twice,
        Err(Failure::Kernel {
            what,
            error: Error::RevokeFirst,
        }),
    )?;
    // It is in the owner's CNode and works from there.
    let back = good("a slot", kernel.slot())?;
    let copied = CSpace::ROOT.slot(back).move_(&owner.slot(6));
    good("taking it back", copied)?;
    good("using it", IrqHandler::from_bits(back).irq_handler_ack())
}

fn ledger_agrees(kernel: &mut Kernel) -> Check {
    let before = audit::unrecorded(kernel).len();
    let owner = good("a CNode", kernel.alloc_cspace(Holder::Mmu(3), 6))?;
    let endpoint: Endpoint = good("an endpoint", kernel.alloc_endpoint(Port::Requests(3)))?;
    let page = good("a page", kernel.alloc_page())?;
    good("a copy", kernel.copy(endpoint.cptr(), owner, 2, Rights::READ))?;
    good("a badge", kernel.mint(endpoint.cptr(), owner, 3, Rights::WRITE, 77))?;
    good(
        "a frame",
        kernel.copy(CPtr::from_bits(page.slot), owner, 63, Rights::READ),
    )?;
    good("untyped memory", kernel.alloc_untyped(14, owner, 40))?;
    same("differences", audit::unrecorded(kernel).len(), before)?;
    let cap = kernel
        .ledger()
        .get(Holder::Mmu(3), 3)
        .ok_or("slot 3 is not in the ledger")?;
    same("badge and rights", (cap.badge, cap.rights), (77, Rights::WRITE))?;
    let cap = kernel
        .ledger()
        .get(Holder::Mmu(3), 63)
        .ok_or("slot 63 is not in the ledger")?;
    same(
        "address and rights",
        (cap.paddr, cap.rights),
        (page.paddr, Rights::READ),
    )
}

fn ledger_differs(kernel: &mut Kernel) -> Check {
    let before = audit::unrecorded(kernel).len();
    let owner = good("a CNode", kernel.alloc_cspace(Holder::Vmm(5), 4))?;
    let page = good("a page", kernel.alloc_page())?;
    // A capability that the ledger does not know.
    good(
        "a copy",
        owner.slot(11).copy(&CSpace::ROOT.slot(page.slot), CapRights::ALL),
    )?;
    let found = audit::unrecorded(kernel);
    same("differences", found.len(), before + 1)?;
    let last = found.last().ok_or("no difference")?;
    same(
        "the place",
        (last.holder, last.slot, last.recorded),
        (Holder::Vmm(5), 11, false),
    )?;
    good("deleting it", owner.slot(11).delete())?;
    // A capability that only the ledger knows.
    good(
        "a copy",
        kernel.copy(CPtr::from_bits(page.slot), owner, 12, Rights::READ),
    )?;
    good("deleting it", owner.slot(12).delete())?;
    let found = audit::unrecorded(kernel);
    let last = found.last().ok_or("no difference")?;
    same(
        "the place",
        (last.holder, last.slot, last.recorded),
        (Holder::Vmm(5), 12, true),
    )
}

fn slots_end() -> Check {
    let mut slots = Slots::new(100..105);
    same("a run", slots.take_run(3), Ok(100))?;
    same(
        "a run that is too long",
        slots.take_run(3),
        Err(Failure::Slots { wanted: 3, left: 2 }),
    )?;
    same("a slot", slots.take(), Ok(103))?;
    slots.give_back(101);
    same("a slot that came back", slots.take(), Ok(101))?;
    same("the last slot", slots.take(), Ok(104))?;
    same("no slot", slots.take(), Err(Failure::Slots { wanted: 1, left: 0 }))
}

/// Everything can be used up; the error comes from the pool, never from the kernel.
fn memory_ends(kernel: &mut Kernel) -> Check {
    for (size, bits) in [(Size::Large, 21), (Size::Small, 12)] {
        let error = loop {
            if let Err(error) = kernel.alloc_frames(size, 16) {
                break error;
            }
        };
        match error {
            Failure::Memory(Exhausted::Memory { bits: asked, .. }) if asked == bits => {}
            other => return Err(format!("{size:?} frames ended with {other:?}")),
        }
    }
    let left = kernel.free_memory();
    if left < 1 << 20 {
        Ok(())
    } else {
        Err(format!("{left:#x} bytes were left"))
    }
}

fn authority_ends(kernel: &mut Kernel) -> Check {
    good("dropping it", kernel.drop_authority())?;
    same("free memory", kernel.free_memory(), 0)?;
    let refused = kernel.alloc_endpoint(Port::Supervisor).map(|endpoint| endpoint.bits());
    same(
        "an object",
        refused,
        Err(Failure::Memory(Exhausted::Memory { bits: 4, free: 0 })),
    )?;
    same("all ports", slot::IO_PORT.ioport_in8(0x2fd).is_err(), true)?;
    let authority: Vec<_> = kernel
        .ledger()
        .caps()
        .iter()
        .filter(|run| run.holder == Holder::Root)
        .filter(|run| {
            matches!(
                run.cap.object,
                Object::Untyped { .. } | Object::IrqControl | Object::Domain
            )
        })
        .collect();
    same("authority in the ledger", authority.len(), 0)?;
    for slot in [
        slot::IRQ_CONTROL.bits(),
        slot::ASID_CONTROL.bits(),
        slot::DOMAIN_SET.bits(),
        slot::IO_PORT.bits(),
    ] {
        same("a slot of it", kernel.is_occupied(CSpace::ROOT, slot), Ok(false))?;
    }
    same(
        "its own thread",
        kernel.is_occupied(CSpace::ROOT, slot::TCB.bits()),
        Ok(true),
    )
}

fn peek(vaddr: u64) -> u64 {
    // SAFETY: tests pass addresses that they have mapped; nothing else refers to this memory.
    unsafe { core::ptr::with_exposed_provenance::<u64>(vaddr as usize).read_volatile() }
}

fn poke(vaddr: u64, value: u64) {
    // SAFETY: as in peek; mapped for writing.
    unsafe { core::ptr::with_exposed_provenance_mut::<u64>(vaddr as usize).write_volatile(value) }
}
