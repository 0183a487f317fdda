// SPDX-License-Identifier: MIT OR Apache-2.0
//! What becomes of a VCPU, its thread and its memory when one of them goes away?

use crate::check;
use crate::guest;
use crate::test::{Failure, Outcome, Test};
use crate::thread::{Thread, call_and_fault, registers};
use crate::vm::{CODE, DATA, Mode, Vm};
use crate::world::{Page, World};
use sel4::cap::{IOPort, Tcb, Untyped, VCpu};
use sel4::init_thread::slot::IO_PORT;
use sel4::vmcs::VMCALL;
use sel4::{CapRights, Fault, GuestRegisters, ObjectBlueprint, Word, sys};

/// The tests.
pub const TESTS: &[Test] = &[
    Test::vtx("deleted-vcpu-is-forgotten-by-io-ports", io_ports),
    Test::vtx("deleted-vcpu-is-forgotten-by-the-fpu", fpu),
    Test::vtx("deleted-thread-leaves-its-vcpu", deleted_thread),
    Test::vtx("suspended-guest-goes-on", suspended),
    Test::vtx("losing-the-vcpu-ends-vmenter", lost_vcpu),
];

/// A VCPU has 16 KiB.
const VCPU_BITS: u8 = 14;

/// A guest whose VCPU has memory of its own.
fn guest_in(world: &mut World, code: &[u8]) -> Result<(Vm, Untyped), Failure> {
    let memory = world.untyped(VCPU_BITS)?;
    let vcpu: VCpu = world.make_from(memory, ObjectBlueprint::VCpu)?.cast();
    Ok((Vm::with_vcpu(world, vcpu, Mode::Protected, code)?, memory))
}

/// Deletes the VCPU and makes pages of its memory, filled with a byte.
fn reuse(world: &mut World, vm: &Vm, memory: Untyped, byte: u8) -> Result<[Page; 4], Failure> {
    world.delete(vm.vcpu.cptr())?;
    let mut pages = [world.page_from(memory)?; 4];
    for page in &mut pages[1..] {
        *page = world.page_from(memory)?;
    }
    for page in &pages {
        page.fill(byte);
    }
    Ok(pages)
}

fn unchanged(pages: &[Page], byte: u8) -> Outcome {
    for (i, page) in pages.iter().enumerate() {
        if let Some(offset) = page.first_change(byte) {
            check!(
                false,
                "the kernel wrote to {:#x} of the freed memory",
                i * crate::world::PAGE + offset
            );
        }
    }
    Ok(())
}

fn io_ports(world: &mut World) -> Outcome {
    let (mut vm, memory) = guest_in(world, guest::hypercalls())?;
    vm.exits_with(VMCALL)?;
    let port: IOPort = world.copy(IO_PORT.cptr(), CapRights::ALL)?.cast();
    vm.vcpu.vcpu_enable_io_port(port, 0x80, 0x8f)?;
    let pages = reuse(world, &vm, memory, 0)?;
    world.delete(port.cptr())?;
    unchanged(&pages, 0)
}

fn fpu(world: &mut World) -> Outcome {
    let (mut vm, memory) = guest_in(world, guest::use_fpu())?;
    vm.exits_with(VMCALL)?;
    let pages = reuse(world, &vm, memory, 0xcc)?;
    // SAFETY: resets the x87 FPU, which this program does not use.
    unsafe { core::arch::asm!("fninit") };
    unchanged(&pages, 0xcc)
}

fn deleted_thread(world: &mut World) -> Outcome {
    let memory = world.untyped(12)?;
    let tcb: Tcb = world.make_from(memory, ObjectBlueprint::Tcb)?.cast();
    let vcpu: VCpu = world.make(ObjectBlueprint::VCpu)?.cast();
    vcpu.vcpu_set_tcb(tcb)?;
    world.delete(tcb.cptr())?;
    let page = world.page_from(memory)?;
    page.fill(0xff);
    world.delete(vcpu.cptr())?;
    unchanged(&[page], 0xff)
}

/// A thread inside VMEnter whose guest counts.
fn counting(world: &mut World) -> Result<(Thread, Vm, Page), Failure> {
    let vm = Vm::new(world, Mode::Protected, guest::count())?;
    let thread = Thread::new(world)?;
    vm.run_by(thread.tcb)?;
    vm.set(&GuestRegisters {
        rbx: DATA,
        ..GuestRegisters::default()
    })?;
    let answer = world.page()?;
    let rdx = sys::seL4_SysVMEnter as Word;
    thread.start(
        call_and_fault,
        sys::seL4_UserContext {
            rbp: answer.address(),
            rdx,
            r10: CODE,
            ..registers()
        },
    )?;
    sel4::yield_();
    check!(vm.page(DATA).read32(4) > 0, "the guest did not run");
    Ok((thread, vm, answer))
}

fn suspended(world: &mut World) -> Outcome {
    let (thread, vm, _) = counting(world)?;
    thread.tcb.tcb_suspend()?;
    let turns = vm.page(DATA).read32(4);
    thread.tcb.tcb_resume()?;
    sel4::yield_();
    thread.tcb.tcb_suspend()?;
    check!(vm.page(DATA).read32(4) > turns, "the guest did not go on");
    let starts = vm.page(DATA).read32(0);
    check!(starts == 1, "the guest started {starts} times");
    Ok(())
}

fn lost_vcpu(world: &mut World) -> Outcome {
    let (thread, vm, answer) = counting(world)?;
    world.delete(vm.vcpu.cptr())?;
    let (fault, _) = thread.fault();
    check!(matches!(fault, Fault::UserException { number: 6, .. }), "{fault}");
    let (result, reason) = (answer.read(0), answer.read(40));
    check!(
        (result, reason) == (1, u32::MAX.into()),
        "VMEnter returned {result}, reason {reason:#x}"
    );
    Ok(())
}
