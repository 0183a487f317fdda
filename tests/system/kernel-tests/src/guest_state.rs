// SPDX-License-Identifier: MIT OR Apache-2.0
//! Is all of the guest's state its own: kept over exits, and hidden from others?

use crate::check;
use crate::guest;
use crate::test::{Outcome, Test};
use crate::thread::{Thread, registers, touch};
use crate::vm::{DATA, Mode, Vm};
use crate::world::World;
use sel4::vmcs::{
    CONTROL_REGISTER, VCPU_MSR_FMASK, VCPU_MSR_LSTAR, VMCALL, VMX_CONTROL_CR0_MASK,
    VMX_CONTROL_PRIMARY_PROCESSOR_CONTROLS, VMX_CONTROL_SECONDARY_PROCESSOR_CONTROLS, VMX_GUEST_CR0, VMX_GUEST_DR7,
    VMX_GUEST_MSR0, VMX_GUEST_PAT,
};
use sel4::{GuestRegisters, sys};

/// The tests.
pub const TESTS: &[Test] = &[
    Test::vtx("vmx-controls-by-whitelist", whitelist),
    Test::vtx("cr8-belongs-to-the-host", cr8),
    Test::vtx("guest-must-not-disable-the-caches", cache_disable),
    Test::vtx("guest-cr2", cr2),
    Test::vtx("guest-registers-of-64-bits", high_registers),
    Test::vtx("guests-of-64-bits", long_mode),
    Test::vtx("guest-debug-registers", dr7),
    Test::vtx("guest-system-call-msrs", msrs),
    Test::vtx("guest-gs-bases", swap_gs),
    Test::vtx("unrestricted-guests", real_mode),
    Test::vtx("guest-fpu-after-reset", fpu),
];

/// SDM vol. 3, tables 25-6 and 25-7.
fn whitelist(world: &mut World) -> Outcome {
    /// TPR shadow.
    const PRIMARY: u64 = 1 << 21;
    /// Virtual APIC accesses, APIC registers, interrupt delivery; VM functions; shadow VMCS; page-modification log; #VE.
    const SECONDARY: u64 = 1 << 0 | 1 << 8 | 1 << 9 | 1 << 13 | 1 << 14 | 1 << 17 | 1 << 18;
    let vm = Vm::new(world, Mode::Protected, guest::hypercalls())?;
    let written = vm.write(VMX_CONTROL_PRIMARY_PROCESSOR_CONTROLS, PRIMARY)?;
    check!(written & PRIMARY == 0, "primary controls {written:#x}");
    let written = vm.write(VMX_CONTROL_SECONDARY_PROCESSOR_CONTROLS, SECONDARY)?;
    check!(written & SECONDARY == 0, "secondary controls {written:#x}");
    Ok(())
}

fn cr8(world: &mut World) -> Outcome {
    for (code, kind) in [(guest::task_priority(), 1), (guest::set_task_priority(), 0)] {
        let mut vm = Vm::new(world, Mode::Long, code)?;
        let qualification = vm.exits_with(CONTROL_REGISTER)?.qualification();
        check!(
            qualification & 0x3f == kind << 4 | 8,
            "qualification {qualification:#x}"
        );
    }
    Ok(())
}

fn cache_disable(world: &mut World) -> Outcome {
    let mut vm = Vm::new(world, Mode::Protected, guest::disable_cache())?;
    let mask = vm.write(VMX_CONTROL_CR0_MASK, 0)?;
    check!(mask == 0x6000_0000, "the mask became {mask:#x}");
    vm.exits_with(CONTROL_REGISTER)?;
    Ok(())
}

/// Another thread's page fault must not show.
fn cr2(world: &mut World) -> Outcome {
    const HOST: u64 = 0xdead_0000;
    const GUEST: u64 = 0x1234_5000;
    let mut vm = Vm::new(world, Mode::Protected, guest::read_cr2())?;
    vm.set(&GuestRegisters {
        cr2: GUEST,
        ..GuestRegisters::default()
    })?;
    let thread = Thread::new(world)?;
    thread.start(
        touch,
        sys::seL4_UserContext {
            rbp: HOST,
            ..registers()
        },
    )?;
    thread.fault();
    let message = vm.exits_with(VMCALL)?;
    check!(message.rax() == GUEST, "the guest read {:#x}", message.rax());
    check!(message.cr2() == GUEST, "the exit told {:#x}", message.cr2());
    Ok(())
}

fn high_registers(world: &mut World) -> Outcome {
    let mut vm = Vm::new(world, Mode::Long, guest::high_registers())?;
    let registers = vm.exits_with(VMCALL)?.registers();
    let expected = [8, 9, 10, 11, 12, 13, 14, 0xf5f5_f5f5_f5f5_f5f5];
    check!(registers.r8_r15 == expected, "R8 to R15 are {:x?}", registers.r8_r15);
    check!(registers.rax == 0x1_0000_0001_0000, "RAX is {:#x}", registers.rax);
    let sum = vm.exits_with(VMCALL)?.rax();
    check!(
        sum == expected.iter().fold(0u64, |a, b| a.wrapping_add(*b)),
        "after the exit their sum was {sum:#x}"
    );
    Ok(())
}

fn long_mode(world: &mut World) -> Outcome {
    let mut vm = Vm::new(world, Mode::Long, guest::high_registers())?;
    let pat = vm.read(VMX_GUEST_PAT)?;
    check!(pat == 0x0007_0406_0007_0406, "PAT is {pat:#x}");
    let message = vm.exits_with(VMCALL)?;
    check!(message.rax() == 0x1_0000_0001_0000, "RAX is {:#x}", message.rax());
    Ok(())
}

fn dr7(world: &mut World) -> Outcome {
    let mut vm = Vm::new(world, Mode::Protected, guest::debug_register())?;
    vm.exits_with(VMCALL)?;
    let kept = vm.read(VMX_GUEST_DR7)?;
    check!(kept == 0x700, "the exit saved {kept:#x}");
    let read = vm.exits_with(VMCALL)?.rax();
    check!(read == 0x700, "the guest wrote 0x700 and read {read:#x} after an exit");
    Ok(())
}

fn msrs(world: &mut World) -> Outcome {
    const LSTAR: u64 = 0xffff_8000_1234_5678;
    let mut vm = Vm::new(world, Mode::Protected, guest::write_lstar())?;
    vm.exits_with(VMCALL)?;
    let lstar = vm.read(VMX_GUEST_MSR0 + VCPU_MSR_LSTAR)?;
    check!(lstar == LSTAR, "LSTAR is {lstar:#x}");
    let fmask = vm.read(VMX_GUEST_MSR0 + VCPU_MSR_FMASK)?;
    check!(fmask == 0x200, "FMASK is {fmask:#x}");
    let message = vm.exits_with(VMCALL)?;
    let read = message.rdx() << 32 | message.rax() & 0xffff_ffff;
    check!(read == LSTAR, "the guest read {read:#x}");
    // A value that the CPU would refuse is made one that it takes.
    let written = vm.write(VMX_GUEST_MSR0 + VCPU_MSR_LSTAR, 0x8000_0000_0000)?;
    check!(written == 0xffff_8000_0000_0000, "LSTAR became {written:#x}");
    vm.entry.rip -= 3;
    vm.exits_with(VMCALL)?;
    Ok(())
}

fn swap_gs(world: &mut World) -> Outcome {
    let mut vm = Vm::new(world, Mode::Long, guest::swap_gs())?;
    vm.page(DATA).write(0, 0x600d);
    vm.exits_with(VMCALL)?;
    let read = vm.exits_with(VMCALL)?.rax();
    check!(read == 0x600d, "the guest read {read:#x} through GS");
    Ok(())
}

fn real_mode(world: &mut World) -> Outcome {
    let mut vm = Vm::new(world, Mode::Real, guest::real_mode())?;
    let cr0 = vm.read(VMX_GUEST_CR0)?;
    check!(cr0 & 0x8000_0001 == 0, "CR0 is {cr0:#x}");
    let message = vm.exits_with(VMCALL)?;
    check!(message.rbx() & 0xffff == 0x1234, "RBX is {:#x}", message.rbx());
    Ok(())
}

fn fpu(world: &mut World) -> Outcome {
    let mut vm = Vm::new(world, Mode::Protected, guest::fpu_state())?;
    vm.set(&GuestRegisters {
        rbx: DATA,
        ..GuestRegisters::default()
    })?;
    vm.exits_with(VMCALL)?;
    let (control, mxcsr) = (vm.page(DATA).read32(0), vm.page(DATA).read32(4));
    check!(
        (control, mxcsr) == (0x37f, 0x1f80),
        "control word {control:#x}, MXCSR {mxcsr:#x}"
    );
    Ok(())
}
