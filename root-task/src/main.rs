// SPDX-License-Identifier: MIT OR Apache-2.0
//! The order of a boot, and nothing else.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::vec::Vec;
use sel4::{BootInfoPtr, cap, init_thread};
use sel4_root_task::root_task;
use umbra_description::{ComPort, System};
use umbra_root_core::{
    audit::{power_off_ports, uart_ports},
    ledger::Port,
};
use umbra_root_task::{
    Failure, Kernel, audit, bundle,
    cspace::CSpace,
    log,
    machine::{Factory, Machine, Problem},
    payload::Window,
    power_off, rtc, say, supervise, tsc,
};

#[root_task(stack_size = 0x10000, heap_size = 0x60000)]
fn main(bootinfo: &BootInfoPtr) -> ! {
    let begun = tsc::now();
    // Until the description says which port it is.
    log::open(init_thread::slot::IO_PORT, ComPort::Com2);
    let mut kernel = Kernel::new(bootinfo);
    let (system, bundle) = match read(bootinfo) {
        Ok(found) => found,
        Err(problem) => panic!("{problem}"),
    };
    let off = match take_ports(&mut kernel, &system) {
        Ok(off) => off,
        Err(failure) => panic!("{failure}"),
    };
    let (name, free, vms) = (&system.name, kernel.free_memory() >> 20, system.vms.len());
    say!("system {name}: {free} MiB free, VMs described: {vms}, root task ticks={begun}");
    let status = match run(&mut kernel, &system, bundle) {
        Ok(clean) => u8::from(!clean),
        Err(Stop { vm: None, problem }) => {
            say!("{problem}");
            1
        }
        Err(Stop {
            vm: Some(name),
            problem,
        }) => {
            say!("vm {name} cannot be built: {problem}");
            1
        }
    };
    power_off::done(system.power_off, off, status)
}

type Bundle = umbra_description::bundle::Bundle<'static>;

fn read(bootinfo: &BootInfoPtr) -> Result<(System, Bundle), bundle::Problem> {
    let bundle = bundle::open(bootinfo)?;
    Ok((bundle::description(&bundle, bundle::SYSTEM)?, bundle))
}

/// Keeps the ports of the log and those that switch the machine off; all others go when start-up is over.
fn take_ports(kernel: &mut Kernel, system: &System) -> Result<Option<cap::IOPort>, Failure> {
    let slot = kernel.slot()?;
    kernel.mint_ports(uart_ports(system.log), CSpace::ROOT, slot)?;
    log::open(cap::IOPort::from_bits(slot), system.log);
    let Some(ports) = power_off_ports(system.power_off) else {
        return Ok(None);
    };
    let slot = kernel.slot()?;
    kernel.mint_ports(ports, CSpace::ROOT, slot)?;
    Ok(Some(cap::IOPort::from_bits(slot)))
}

/// Why no VM was started.
struct Stop<'a> {
    /// The VM that cannot be built, if it is one's fault.
    vm: Option<&'a str>,
    problem: Problem,
}

impl From<Problem> for Stop<'_> {
    fn from(problem: Problem) -> Self {
        Self { vm: None, problem }
    }
}

impl From<Failure> for Stop<'_> {
    fn from(failure: Failure) -> Self {
        Problem::from(failure).into()
    }
}

/// What guests' clocks show where the machine has none: 2026-01-01, in seconds since 1970.
const NO_CLOCK: u64 = 1_767_225_600;

/// Builds, audits, starts and supervises all VMs. True: all of them ended as their guests wanted.
fn run<'a>(kernel: &mut Kernel, system: &'a System, bundle: Bundle) -> Result<bool, Stop<'a>> {
    let tsc_hz = tsc::frequency(init_thread::slot::IO_PORT).map_err(Failure::kernel("read the PIT"))?;
    let clock = rtc::unix_time(init_thread::slot::IO_PORT).map_err(Failure::kernel("read the clock"))?;
    let epoch = clock.unwrap_or_else(|| {
        say!("the clock of this machine shows no date: guests start at 2026-01-01");
        NO_CLOCK
    });
    let supervisor = kernel.alloc_endpoint(Port::Supervisor)?;
    let payload = Window::new(kernel, system.payload).map_err(Problem::Payload)?;
    let mut factory = Factory {
        kernel,
        system,
        bundle,
        payload,
        supervisor,
        tsc_hz,
        epoch,
    };
    let mut machines: Vec<Machine> = Vec::new();
    for (number, vm) in system.vms.iter().enumerate() {
        let machine = factory.machine(number as u16).map_err(|problem| match problem {
            Problem::NoVtx => Stop::from(problem),
            _ => Stop {
                vm: Some(&vm.name),
                problem,
            },
        })?;
        machines.push(machine);
    }

    kernel.drop_authority()?;
    let facts: Vec<_> = machines.iter().map(Machine::facts).collect();
    let policy = bundle::policy(&bundle).map_err(Problem::Policy)?;
    if !audit::passes(kernel, system, policy.as_ref().unwrap_or(system), &facts) {
        return Ok(false);
    }
    for machine in &machines {
        machine.start()?;
    }
    say!("ready vms={} ticks={}", machines.len(), tsc::now());
    Ok(supervise::until_all_stopped(system, &machines, supervisor))
}
