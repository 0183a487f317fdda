// SPDX-License-Identifier: MIT OR Apache-2.0
//! Do the MMU's conformance cases pass on real capabilities?
//!
//! A root task of its own: first with address spaces, where a thread plays the guest; then, where there is VT-x, with an EPT
//! and a real guest. One line for each case and the verdict go to COM2, then the simulator is switched off.
#![no_std]
#![no_main]

extern crate alloc;

mod ept_guest;
mod memory;
mod server;
mod thread_guest;

use ept_guest::EptGuest;
use memory::Memory;
use sel4::BootInfoPtr;
use sel4_root_task::root_task;
use thread_guest::ThreadGuest;
use umbra_conformance::{Machine, cases, run};
use umbra_test_report::Report;

#[root_task(stack_size = 0x20000, heap_size = 0x200000)]
fn main(bootinfo: &BootInfoPtr) -> ! {
    let mut report = Report::new();
    let mut memory = Memory::new(bootinfo);
    let whole = memory.refused_block_leaves_memory_whole();
    report.judge("objects/refused_block_leaves_memory_whole", whole);
    let mut thread = ThreadGuest::new(&mut memory);
    all(&mut report, "vspace", &mut thread);
    let (mmu, vcpu) = thread.parts();
    server::all(&mut report, mmu, vcpu);
    match EptGuest::new(&mut memory, bootinfo) {
        Some(mut guest) => {
            all(&mut report, "ept", &mut guest);
            guest.measure(&mut report);
        }
        None => report.note("this machine has no VT-x: guests need it; the cases ran on address spaces only"),
    }
    report.finish()
}

fn all<M: Machine>(report: &mut Report, sink: &str, machine: &mut M) {
    for case in cases::<M>() {
        report.judge(format_args!("{sink}/{}", case.name), run(machine, &case));
    }
}
