// SPDX-License-Identifier: MIT OR Apache-2.0
//! What does each way through the kernel cost? In ticks of the time stamp counter, the smallest of many tries.

use crate::guest;
use crate::test::Failure;
use crate::vm::{Mode, Vm};
use crate::world::World;
use sel4::vmcs::VMX_GUEST_RSP;
use sel4::{GuestRegisters, VmEntry, VmExit};
use umbra_test_report::{Report, timestamp};

const TRIES: usize = 50;

/// Measures and prints everything.
pub fn all(world: &mut World, report: &Report, started: u64) {
    report.line(format_args!(
        "measure: root task started {started} ticks after power-on"
    ));
    if let Err(Failure(why)) = entries(world, report) {
        report.line(format_args!("measure: stopped: {why}"));
    }
}

fn entries(world: &mut World, report: &Report) -> Result<(), Failure> {
    let vm = Vm::new(world, Mode::Long, guest::hypercalls())?;
    let print = |what: &str, run: &mut dyn FnMut()| {
        let best = (0..TRIES)
            .map(|_| {
                let before = timestamp();
                run();
                timestamp() - before
            })
            .min();
        report.line(format_args!("measure: {what} {} ticks", best.unwrap_or(0)));
    };
    let mut entry = vm.entry;
    print("two readings of the counter", &mut || {});
    print("VMEnter to VMCALL and back", &mut || next(&mut entry, sel4::vm_enter));
    print("the same with a new RAX", &mut || {
        next(&mut entry, |e| sel4::vm_enter_with_rax(e, 1))
    });
    let registers = GuestRegisters::default();
    print("the same with 16 registers", &mut || {
        next(&mut entry, |e| sel4::vm_enter_with_registers(e, &registers))
    });
    print("WriteRegisters, then VMEnter", &mut || {
        // A failure would show in the entries before.
        let _ = vm.set(&registers);
        next(&mut entry, sel4::vm_enter);
    });
    print("ReadVMCS", &mut || {
        let _ = vm.read(VMX_GUEST_RSP);
    });
    Ok(())
}

fn next(entry: &mut VmEntry, enter: impl FnOnce(VmEntry) -> VmExit) {
    if let VmExit::Fault(message) = enter(*entry) {
        *entry = message.entry();
        entry.rip += message.instruction_length();
    }
}
