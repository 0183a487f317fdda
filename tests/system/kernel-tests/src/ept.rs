// SPDX-License-Identifier: MIT OR Apache-2.0
//! Does a guest reach the memory that it was given, and no other?

use crate::check;
use crate::guest;
use crate::test::{Failure, Outcome, Test};
use crate::vm::{DATA, Mode, Vm, map};
use crate::world::{World, refused};
use sel4::sys::{self, invocation_label};
use sel4::vmcs::{EPT_VIOLATION, VMCALL};
use sel4::{CapRights, EptAttributes, Error, GuestRegisters, ObjectBlueprint, Word};

/// The tests.
pub const TESTS: &[Test] = &[
    Test::vtx("unmap-ends-access", unmap),
    Test::vtx("revoke-ends-access", revoke),
    Test::vtx("mapept-checks-its-arguments", arguments),
    Test::vtx("mapept-needs-the-read-right", no_rights),
    Test::vtx("mapept-obeys-read-only", read_only),
    Test::vtx("no-ept-no-memory", no_ept),
];

/// Nothing is mapped here.
const HOLE: Word = 0x10_0000;

/// A guest that reads from the hole, where there is a page now; its capability.
fn reader(world: &mut World) -> Result<(Vm, sel4::cap::SmallPage), Failure> {
    let mut vm = Vm::new(world, Mode::Protected, guest::read())?;
    let frame = world.page()?;
    frame.write(0, 0x1badcafe);
    let copy = world.copy(frame.cap.cptr(), CapRights::ALL)?.cast();
    map(world, vm.ept, copy, HOLE, CapRights::READ_WRITE)?;
    vm.set(&GuestRegisters {
        rsi: HOLE,
        ..GuestRegisters::default()
    })?;
    let message = vm.exits_with(VMCALL)?;
    check!(message.rax() == 0x1badcafe, "the guest read {:#x}", message.rax());
    Ok((vm, copy))
}

fn faults(vm: &mut Vm) -> Outcome {
    let message = vm.exits_with(EPT_VIOLATION)?;
    check!(
        message.guest_physical() == HOLE,
        "violation at {:#x}",
        message.guest_physical()
    );
    check!(
        message.qualification() & 7 == 1,
        "qualification {:#x}",
        message.qualification()
    );
    Ok(())
}

fn unmap(world: &mut World) -> Outcome {
    let (mut vm, frame) = reader(world)?;
    frame.frame_unmap()?;
    faults(&mut vm)
}

fn revoke(world: &mut World) -> Outcome {
    let (mut vm, frame) = reader(world)?;
    world.delete(frame.cptr())?;
    faults(&mut vm)
}

fn arguments(world: &mut World) -> Outcome {
    let frame = world.make(ObjectBlueprint::SmallPage)?;
    let all = CapRights::ALL.into_inner().words[0];
    let result = sys::invoke(frame.bits(), invocation_label::X86PageMapEPT, [], [HOLE, all, 6]);
    check!(
        matches!(result, Err(failure) if failure.label == sys::seL4_TruncatedMessage),
        "without an EPT: {result:?}"
    );
    Ok(())
}

fn no_rights(world: &mut World) -> Outcome {
    let vm = Vm::new(world, Mode::Protected, guest::read())?;
    let frame = world.make(ObjectBlueprint::SmallPage)?;
    let none: sel4::cap::SmallPage = world.copy(frame, CapRights::NONE)?.cast();
    // In a page whose tables exist.
    let free = DATA + 0x8000;
    let map = |cap: sel4::cap::SmallPage, rights| cap.frame_map_ept(vm.ept, free, rights, EptAttributes::WriteBack);
    refused(map(none, CapRights::ALL), Error::InvalidCapability { cap: 0 })?;
    refused(map(frame.cast(), CapRights::NONE), Error::InvalidCapability { cap: 0 })?;
    map(frame.cast(), CapRights::READ)?;
    Ok(())
}

fn read_only(world: &mut World) -> Outcome {
    let mut vm = Vm::new(world, Mode::Protected, guest::write())?;
    let frame = world.page()?;
    let copy = world.copy(frame.cap.cptr(), CapRights::ALL)?.cast();
    map(world, vm.ept, copy, HOLE, CapRights::READ)?;
    vm.set(&GuestRegisters {
        rsi: HOLE,
        rax: 1,
        ..GuestRegisters::default()
    })?;
    let message = vm.exits_with(EPT_VIOLATION)?;
    check!(
        message.qualification() & 0x3f == 0x2a,
        "qualification {:#x}",
        message.qualification()
    );
    check!(frame.read(0) == 0, "the guest wrote");
    Ok(())
}

/// The EPT root is gone: not even the guest's page tables can be read.
fn no_ept(world: &mut World) -> Outcome {
    let mut vm = Vm::new(world, Mode::Protected, guest::hypercalls())?;
    vm.exits_with(VMCALL)?;
    sel4::init_thread::slot::CNODE.absolute_cptr(vm.ept).revoke()?;
    world.delete(vm.ept.cptr())?;
    vm.exits_with(EPT_VIOLATION)?;
    Ok(())
}
