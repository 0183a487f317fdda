// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is each kernel patch for? One test for each that can be shown from user level; it fails, or hangs, without the patch.
#![no_std]
#![no_main]

extern crate alloc;

mod entry;
mod ept;
mod guest;
mod guest_state;
mod host;
mod lifetime;
mod measure;
mod ports;
mod test;
mod thread;
mod vm;
mod world;

use sel4::BootInfoPtr;
use sel4_root_task::root_task;
use test::{Needs, Test};
use umbra_test_report::{Report, timestamp};
use world::World;

#[root_task(stack_size = 0x20000, heap_size = 0x40000)]
fn main(bootinfo: &BootInfoPtr) -> ! {
    let started = timestamp();
    let mut report = Report::new();
    let mut world = World::new(bootinfo);
    let vtx = world.has_vtx();
    let suites: [&[Test]; 6] = [
        host::TESTS,
        ept::TESTS,
        entry::TESTS,
        guest_state::TESTS,
        ports::TESTS,
        lifetime::TESTS,
    ];
    for test in suites.into_iter().flatten() {
        match (test.needs, vtx) {
            (Needs::Vtx, false) => report.not_run(test.name, "no VT-x"),
            (Needs::NoVtx, true) => report.not_run(test.name, "there is VT-x"),
            (Needs::Nothing, _) | (Needs::Vtx, true) | (Needs::NoVtx, false) => {
                report.test_announced(test.name, || (test.body)(&mut world));
            }
        }
    }
    if vtx {
        measure::all(&mut world, &report, started);
    }
    report.finish()
}
