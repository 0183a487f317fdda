// SPDX-License-Identifier: MIT OR Apache-2.0
//! Do the patches hold that have nothing to do with guests?

use crate::check;
use crate::test::{Needs, Outcome, Test};
use crate::thread::{Thread, count, registers, touch};
use crate::world::{World, refused};
use core::arch::asm;
use sel4::cap::{PageTable, SmallPage};
use sel4::init_thread::slot::VSPACE;
use sel4::sys::{self, invocation_label};
use sel4::{CapRights, Error, Fault, ObjectBlueprint, PageAttributes, TranslationTable, Word};

/// The tests.
pub const TESTS: &[Test] = &[
    Test::any("unmapping-an-unmapped-frame-replies", unmapping_twice),
    Test::any("no-user-page-below-the-hole", last_page),
    Test::any("kernel-ignores-the-direction-flag", direction_flag),
    Test::any("kernel-ignores-the-nested-task-flag", nested_task_flag),
    Test::any("fault-addresses-of-64-bits", fault_address),
    Test {
        name: "no-vcpu-without-vt-x",
        needs: Needs::NoVtx,
        body: refuses_vcpus,
    },
];

fn unmapping_twice(world: &mut World) -> Outcome {
    let page = world.page()?;
    page.cap.frame_unmap()?;
    page.cap.frame_unmap()?;
    Ok(())
}

fn last_page(world: &mut World) -> Outcome {
    const LAST: Word = 0x7fff_ffff_f000;
    let frame: SmallPage = world.make(ObjectBlueprint::SmallPage)?.cast();
    let result = frame.frame_map(VSPACE, LAST, CapRights::READ_WRITE, PageAttributes::WriteBack);
    refused(result, Error::InvalidArgument { arg: 0 })?;
    // The page below is nothing special: it lacks its tables only.
    let result = frame.frame_map(VSPACE, LAST - 0x1000, CapRights::READ_WRITE, PageAttributes::WriteBack);
    check!(
        matches!(result, Err(Error::FailedLookup { .. })),
        "the page below: {result:?}"
    );
    Ok(())
}

/// A page table is zeroed when it is unmapped. Backwards, that would be the page below it.
fn direction_flag(world: &mut World) -> Outcome {
    let memory = world.untyped(13)?;
    let below = world.page_from(memory)?;
    let table: PageTable = world.make_from(memory, ObjectBlueprint::PageTable)?.cast();
    let address = world.addresses(1024).next_multiple_of(0x20_0000);
    table.table_map(VSPACE, address)?;
    below.fill(0xa5);
    let info = sys::seL4_MessageInfo::new(invocation_label::X86PageTableUnmap, 0, 0, 0);
    let label: Word;
    // SAFETY: a Call, as in sel4-sys, with the direction flag set meanwhile.
    unsafe {
        asm!(
            "mov {stack}, rsp", "std", "syscall", "cld", "mov rsp, {stack}",
            stack = out(reg) _, in("rdx") sys::seL4_SysCall, inlateout("rdi") table.bits() => _,
            inlateout("rsi") info.words[0] => label, out("r10") _, out("r8") _, out("r9") _, out("r15") _,
            lateout("rcx") _, lateout("r11") _,
        );
    }
    check!(label >> 12 == 0, "the kernel refused: error {}", label >> 12);
    if let Some(offset) = below.first_change(0xa5) {
        check!(
            false,
            "the kernel wrote into the page below the object that it zeroed, at {offset:#x}"
        );
    }
    Ok(())
}

/// A thread that an interrupt stopped goes on by IRET, which is a fault of the kernel if the flag is set.
fn nested_task_flag(world: &mut World) -> Outcome {
    let thread = Thread::new(world)?;
    let page = world.page()?;
    thread.start(
        count,
        sys::seL4_UserContext {
            rbp: page.address(),
            ..registers()
        },
    )?;
    // Its time slice ends by an interrupt.
    sel4::yield_();
    let before = page.read(0);
    check!(before > 0, "the other thread did not run");
    // SAFETY: a Yield, as in sel4-sys, with the flag set before it. The kernel restores the flags; then it is cleared.
    unsafe {
        asm!(
            "pushfq", "or qword ptr [rsp], 0x4000", "popfq",
            "mov {stack}, rsp", "syscall", "mov rsp, {stack}",
            "pushfq", "and qword ptr [rsp], ~0x4000", "popfq",
            stack = out(reg) _, in("rdx") sys::seL4_SysYield, inlateout("rdi") 0u64 => _, inlateout("rsi") 0u64 => _,
            out("r10") _, out("r8") _, out("r9") _, out("r15") _, lateout("rcx") _, lateout("r11") _,
        );
    }
    thread.tcb.tcb_suspend()?;
    check!(page.read(0) > before, "the other thread did not go on");
    Ok(())
}

fn fault_address(world: &mut World) -> Outcome {
    const NOWHERE: Word = 0x1234_5678_9000;
    let thread = Thread::new(world)?;
    let context = sys::seL4_UserContext {
        rbp: NOWHERE,
        ..registers()
    };
    thread.start(touch, context)?;
    let (fault, _) = thread.fault();
    check!(matches!(fault, Fault::Vm { address: NOWHERE, .. }), "{fault}");
    Ok(())
}

fn refuses_vcpus(world: &mut World) -> Outcome {
    for object in [
        ObjectBlueprint::VCpu,
        ObjectBlueprint::EptPml4,
        ObjectBlueprint::EptPdpt,
        ObjectBlueprint::EptPd,
        ObjectBlueprint::EptPt,
    ] {
        refused(world.make(object), Error::InvalidArgument { arg: 0 })?;
    }
    Ok(())
}
