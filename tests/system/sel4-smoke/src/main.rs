// SPDX-License-Identifier: MIT OR Apache-2.0
//! Do the seL4 crates do on the real kernel what they say?
//!
//! A root task of its own. It prints one line for each test and the verdict on COM2, then switches the simulator off.
#![no_std]
#![no_main]

extern crate alloc;

mod caps;
mod memory;
mod objects;
mod thread;
mod threads;
mod vtx;

use objects::Objects;
use sel4::BootInfoPtr;
use sel4_root_task::root_task;
use umbra_test_report::Report;

/// The guard test computes the guard's address from it.
const STACK_SIZE: usize = 0x1_0000;

#[root_task(stack_size = STACK_SIZE, heap_size = 0x10_0000)]
fn main(bootinfo: &BootInfoPtr) -> ! {
    let mut report = Report::new();
    let mut objects = Objects::new(bootinfo);
    memory::run(&mut report, &mut objects);
    caps::run(&mut report, &mut objects, bootinfo);
    threads::run(&mut report, &mut objects);
    vtx::run(&mut report, &mut objects);
    report.finish()
}
