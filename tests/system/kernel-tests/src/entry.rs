// SPDX-License-Identifier: MIT OR Apache-2.0
//! Does VMEnter do what it says, also when it cannot enter?

use crate::check;
use crate::guest;
use crate::test::{Outcome, Test};
use crate::thread::{Thread, call_and_fault, registers};
use crate::vm::{CODE, DATA, Mode, Vm};
use crate::world::World;
use sel4::init_thread::slot::TCB;
use sel4::sys;
use sel4::vmcs::{
    EPT_VIOLATION, EXCEPTION_OR_NMI, INVALID_GUEST_STATE, VMCALL, VMX_CONTROL_ENTRY_EXCEPTION_ERROR_CODE,
    VMX_CONTROL_EXCEPTION_BITMAP, VMX_CONTROL_EXIT_CONTROLS, VMX_CONTROL_PIN_EXECUTION_CONTROLS,
    VMX_CONTROL_TSC_OFFSET, VMX_DATA_EXIT_REASON, VMX_DATA_INSTRUCTION_ERROR, VMX_GUEST_ACTIVITY, VMX_GUEST_CR0,
    VMX_GUEST_PREEMPTION_TIMER_VALUE, VMX_GUEST_RFLAGS, VMX_PREEMPTION_TIMER,
};
use sel4::{Fault, GuestRegisters, ObjectBlueprint, VmExit, Word};
use umbra_test_report::timestamp;

/// The tests.
pub const TESTS: &[Test] = &[
    Test::vtx("vmenter-needs-a-vcpu", without_vcpu),
    Test::vtx("refused-entry-is-reported", refused_entry),
    Test::vtx("failed-entry-can-be-repeated", failed_entry),
    Test::vtx("activity-state-that-interrupts-end", activity),
    Test::vtx("vmenter-with-rax", with_rax),
    Test::vtx("vmenter-with-registers", with_registers),
    Test::vtx("pending-notification-keeps-registers", pending_notification),
    Test::vtx("exit-message-has-the-mode", message_mode),
    Test::vtx("exit-message-has-the-exception", message_exception),
    Test::vtx("exit-message-has-the-linear-address", message_linear),
    Test::vtx("vmcs-fields-for-a-vmm", fields),
    Test::vtx("two-guests-take-turns", two_guests),
    Test::vtx("preemption-timer-ends-a-silent-guest", preemption_timer),
];

fn without_vcpu(world: &mut World) -> Outcome {
    let thread = Thread::new(world)?;
    let page = world.page()?;
    let context = sys::seL4_UserContext {
        rbp: page.address(),
        rdx: sys::seL4_SysVMEnter as Word,
        ..registers()
    };
    thread.start(call_and_fault, context)?;
    let (fault, _) = thread.fault();
    check!(matches!(fault, Fault::UnknownSyscall { .. }), "{fault}");
    Ok(())
}

/// Reserved kind of event: VMLAUNCH fails, no exit happens.
fn refused_entry(world: &mut World) -> Outcome {
    let mut vm = Vm::new(world, Mode::Protected, guest::hypercalls())?;
    for attempt in ["first", "second"] {
        vm.entry.interruption_info = 1 << 31 | 1 << 8;
        let message = vm.enter()?;
        check!(
            message.reason() == u32::MAX.into(),
            "{attempt} entry: exit with reason {}",
            message.reason()
        );
        let error = vm.read(VMX_DATA_INSTRUCTION_ERROR)?;
        check!(
            error == 7,
            "{attempt} entry: VM-instruction error {error}, expected 7 (invalid control fields)"
        );
        vm.exits_with(VMCALL)?;
    }
    Ok(())
}

/// Invalid guest state: the entry comes back as an exit.
fn failed_entry(world: &mut World) -> Outcome {
    let mut vm = Vm::new(world, Mode::Protected, guest::hypercalls())?;
    vm.write(VMX_GUEST_RFLAGS, 0)?;
    vm.exits_with(INVALID_GUEST_STATE)?;
    vm.entry.rip = CODE;
    vm.write(VMX_GUEST_RFLAGS, 0x202)?;
    vm.exits_with(VMCALL)?;
    Ok(())
}

fn activity(world: &mut World) -> Outcome {
    let mut vm = Vm::new(world, Mode::Protected, guest::hypercalls())?;
    for (asked, expected) in [(1, 1), (2, 0), (3, 0)] {
        let written = vm.write(VMX_GUEST_ACTIVITY, asked)?;
        check!(written == expected, "activity state {asked} became {written}");
    }
    vm.exits_with(VMCALL)?;
    Ok(())
}

fn with_rax(world: &mut World) -> Outcome {
    let mut vm = Vm::new(world, Mode::Protected, guest::hypercalls())?;
    vm.set(&GuestRegisters {
        rax: 1,
        rbx: 2,
        ..GuestRegisters::default()
    })?;
    let exit = sel4::vm_enter_with_rax(vm.entry, 0x1234_5678);
    let message = vm.exited(exit)?;
    check!(message.reason() == VMCALL, "exit with reason {}", message.reason());
    check!(
        (message.rax(), message.rbx()) == (0x1234_5678, 2),
        "RAX {:#x} RBX {:#x}",
        message.rax(),
        message.rbx()
    );
    vm.entry.rip += message.instruction_length();
    let message = vm.exits_with(VMCALL)?;
    check!(
        message.rax() == 0x1234_5678,
        "without registers: RAX {:#x}",
        message.rax()
    );
    Ok(())
}

fn with_registers(world: &mut World) -> Outcome {
    let mut vm = Vm::new(world, Mode::Long, guest::hypercalls())?;
    let wanted = GuestRegisters::from_words(core::array::from_fn(|i| 0xabc0_0000_0000 + i as Word));
    let exit = sel4::vm_enter_with_registers(vm.entry, &wanted);
    let message = vm.exited(exit)?;
    check!(message.reason() == VMCALL, "exit with reason {}", message.reason());
    check!(
        message.registers() == wanted,
        "the guest had {:x?}",
        message.registers()
    );
    Ok(())
}

/// VMEnter takes the registers over and comes back at once; the next one carries none.
fn pending_notification(world: &mut World) -> Outcome {
    let mut vm = Vm::new(world, Mode::Protected, guest::hypercalls())?;
    let notification: sel4::cap::Notification = world.make(ObjectBlueprint::Notification)?.cast();
    TCB.tcb_bind_notification(notification)?;
    notification.signal();
    let exit = sel4::vm_enter_with_rax(vm.entry, 0x77);
    TCB.tcb_unbind_notification()?;
    let VmExit::Notification { entry, .. } = exit else {
        return Err(crate::test::Failure(
            "VMEnter did not come back with the notification".into(),
        ));
    };
    check!(entry == vm.entry, "VMEnter gave back {entry:x?}");
    let message = vm.exits_with(VMCALL)?;
    check!(message.rax() == 0x77, "RAX {:#x}", message.rax());
    Ok(())
}

/// Words of the exit message beyond the registers, see kernel-config/README.md.
fn word(index: u64) -> Word {
    sel4::with_ipc_buffer(|buffer| buffer.msg_regs()[index as usize])
}

fn message_mode(world: &mut World) -> Outcome {
    let mut vm = Vm::new(world, Mode::Long, guest::hypercalls())?;
    vm.exits_with(VMCALL)?;
    let found: [Word; 6] = core::array::from_fn(|i| word(sys::SEL4_VMENTER_FAULT_RSP_MR + i as Word));
    // RSP, CR0, CR4 (VMXE is forced), EFER, access rights of CS and SS, base of CS
    let expected = [DATA + 0x1000, 0x8001_0031, 0x2020, 0x501, 0xa09b | 0xc093 << 32, 0];
    check!(found == expected, "{found:x?} instead of {expected:x?}");
    Ok(())
}

fn message_exception(world: &mut World) -> Outcome {
    let mut vm = Vm::new(world, Mode::Protected, guest::invalid())?;
    vm.write(VMX_CONTROL_EXCEPTION_BITMAP, 1 << 6 | 1 << 13)?;
    vm.exits_with(EXCEPTION_OR_NMI)?;
    let found = word(sys::SEL4_VMENTER_FAULT_INTERRUPTION_MR);
    // #UD: valid, hardware exception, no error code.
    check!(
        found & 0xffff_ffff == 0x8000_0306,
        "interruption information {found:#x}"
    );
    // An injected interrupt without an IDT is a general-protection fault with an error code, while it is delivered.
    vm.entry.rip = CODE;
    vm.entry.interruption_info = 1 << 31 | 4 << 8 | 0x80;
    vm.write(sel4::vmcs::VMX_CONTROL_ENTRY_INSTRUCTION_LENGTH, 2)?;
    vm.exits_with(EXCEPTION_OR_NMI)?;
    let found = word(sys::SEL4_VMENTER_FAULT_INTERRUPTION_MR);
    check!(
        found == 0x8000_0b0d | (0x80 * 8 + 2) << 32,
        "interruption information {found:#x}"
    );
    let found = word(sys::SEL4_VMENTER_FAULT_IDT_VECTORING_MR);
    check!(
        found & 0xffff_ffff == 0x8000_0480,
        "IDT-vectoring information {found:#x}"
    );
    Ok(())
}

fn message_linear(world: &mut World) -> Outcome {
    let mut vm = Vm::new(world, Mode::Protected, guest::read())?;
    // The second 4 MiB of linear addresses are the second of guest-physical ones; 0x400123 is not mapped.
    vm.set(&GuestRegisters {
        rsi: 0x40_0123,
        ..GuestRegisters::default()
    })?;
    let message = vm.exits_with(EPT_VIOLATION)?;
    check!(
        message.guest_physical() == 0x40_0123,
        "guest-physical address {:#x}",
        message.guest_physical()
    );
    let found = word(sys::SEL4_VMENTER_FAULT_GUEST_LINEAR_MR);
    check!(found == 0x40_0123, "linear address {found:#x}");
    Ok(())
}

fn fields(world: &mut World) -> Outcome {
    /// Primary control: use the TSC offset.
    const TSC_OFFSETTING: Word = 1 << 3;
    let mut vm = Vm::new(world, Mode::Protected, guest::read_tsc())?;
    vm.write(VMX_CONTROL_ENTRY_EXCEPTION_ERROR_CODE, 0x18)?;
    check!(
        vm.read(VMX_CONTROL_ENTRY_EXCEPTION_ERROR_CODE)? == 0x18,
        "the error code was not kept"
    );
    let now = timestamp();
    vm.write(VMX_CONTROL_TSC_OFFSET, now.wrapping_neg())?;
    vm.entry.primary_controls = TSC_OFFSETTING;
    let message = vm.exits_with(VMCALL)?;
    let seen = message.rdx() << 32 | message.rax() & 0xffff_ffff;
    check!(seen < 1_000_000, "the guest read {seen} from the time stamp counter");
    check!(
        vm.read(VMX_DATA_EXIT_REASON)? == VMCALL,
        "the exit reason cannot be read"
    );
    check!(
        vm.read(VMX_GUEST_CR0)? == 0x8000_0031,
        "CR0 is {:#x}",
        vm.read(VMX_GUEST_CR0)?
    );
    Ok(())
}

/// One guest counts for its thread's time slices, the other makes hypercalls for ours.
fn two_guests(world: &mut World) -> Outcome {
    let mut counter = Vm::new(world, Mode::Protected, guest::count())?;
    let thread = Thread::new(world)?;
    counter.run_by(thread.tcb)?;
    counter.set(&GuestRegisters {
        rbx: DATA,
        ..GuestRegisters::default()
    })?;
    counter.entry.rip = CODE;
    let mut caller = Vm::new(world, Mode::Protected, guest::hypercalls())?;
    caller.set(&GuestRegisters {
        rbx: 0x1111,
        ..GuestRegisters::default()
    })?;
    let context = sys::seL4_UserContext {
        rdx: sys::seL4_SysVMEnter as Word,
        r10: CODE,
        ..registers()
    };
    thread.start(call_and_fault, context)?;
    let mut last = 0;
    for turn in 0..3 {
        sel4::yield_();
        let turns = u64::from(counter.page(DATA).read32(4));
        check!(turns > last, "turn {turn}: the other guest did not get on");
        last = turns;
        for _ in 0..10 {
            let message = caller.exits_with(VMCALL)?;
            check!(message.rbx() == 0x1111, "turn {turn}: RBX {:#x}", message.rbx());
        }
    }
    thread.tcb.tcb_suspend()?;
    let starts = counter.page(DATA).read32(0);
    check!(starts == 1, "the other guest started {starts} times");
    Ok(())
}

/// Interrupts off and no exit of its own: only the timer ends its turn, in Bochs too.
fn preemption_timer(world: &mut World) -> Outcome {
    const ACTIVATE: Word = 1 << 6;
    const SAVE: Word = 1 << 22;
    let mut vm = Vm::new(world, Mode::Protected, guest::count())?;
    vm.set(&GuestRegisters {
        rbx: DATA,
        ..GuestRegisters::default()
    })?;
    vm.write(VMX_GUEST_RFLAGS, 2)?;
    let pin = vm.write(VMX_CONTROL_PIN_EXECUTION_CONTROLS, ACTIVATE)?;
    let exit = vm.write(VMX_CONTROL_EXIT_CONTROLS, SAVE)?;
    check!(
        pin & ACTIVATE != 0 && exit & SAVE != 0,
        "pin controls {pin:#x}, exit controls {exit:#x}"
    );
    vm.write(VMX_GUEST_PREEMPTION_TIMER_VALUE, 10_000)?;
    vm.exits_with(VMX_PREEMPTION_TIMER)?;
    check!(vm.page(DATA).read32(4) > 0, "the guest did not run");
    Ok(())
}
