// SPDX-License-Identifier: MIT OR Apache-2.0
//! Does a guest use I/O ports itself exactly as long as the capability is there?

use crate::guest;
use crate::test::{Outcome, Test};
use crate::vm::{Mode, Vm};
use crate::world::World;
use sel4::CapRights;
use sel4::cap::IOPort;
use sel4::init_thread::slot::IO_PORT;
use sel4::vmcs::{IO, VMCALL};

/// The tests.
pub const TESTS: &[Test] = &[
    Test::vtx("io-ports-are-closed", closed),
    Test::vtx("io-port-range-to-the-end", to_the_end),
    Test::vtx("io-ports-close-with-their-capability", close_with_capability),
];

/// The port that the guest reads.
const PORT: u16 = 0x80;

fn closed(world: &mut World) -> Outcome {
    Vm::new(world, Mode::Protected, guest::read_port())?.exits_with(IO)?;
    Ok(())
}

fn to_the_end(world: &mut World) -> Outcome {
    let mut vm = Vm::new(world, Mode::Protected, guest::read_port())?;
    vm.vcpu.vcpu_enable_io_port(IO_PORT, 0, 0xffff)?;
    vm.exits_with(VMCALL)?;
    vm.vcpu.vcpu_disable_io_port(0, 0xffff)?;
    vm.entry.rip = crate::vm::CODE;
    vm.exits_with(IO)?;
    Ok(())
}

fn close_with_capability(world: &mut World) -> Outcome {
    for entered_before in [false, true] {
        let mut vm = Vm::new(world, Mode::Protected, guest::read_port())?;
        if entered_before {
            vm.exits_with(IO)?;
            vm.entry.rip = crate::vm::CODE;
        }
        let port: IOPort = world.copy(IO_PORT.cptr(), CapRights::ALL)?.cast();
        vm.vcpu.vcpu_enable_io_port(port, PORT, PORT)?;
        world.delete(port.cptr())?;
        vm.exits_with(IO)?;
    }
    Ok(())
}
