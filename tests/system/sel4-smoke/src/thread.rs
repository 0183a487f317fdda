// SPDX-License-Identifier: MIT OR Apache-2.0
//! How do the tests start a second thread in their own address space?
//!
//! It must not touch the IPC buffer of the crate, which is the main thread's: it uses register messages only.

use crate::objects::Objects;
use alloc::boxed::Box;
use alloc::string::String;
use sel4::cap::{CPtr, Tcb};
use sel4::init_thread::slot;
use sel4::{CNodeCapData, ObjectBlueprint, UserContext};
use umbra_test_report::good;

/// What the thread runs.
pub type Body = extern "C" fn(argument: u64) -> !;

const STACK_WORDS: usize = 2048;
const PRIORITY: u8 = 255;

/// Starts a thread. Its faults go to `fault_endpoint` (null: nowhere). The stack is never freed.
pub fn start(objects: &mut Objects, body: Body, argument: u64, fault_endpoint: CPtr) -> Result<Tcb, String> {
    let tcb: Tcb = good("retype", objects.object(ObjectBlueprint::Tcb))?;
    let buffer = good("retype", objects.object(ObjectBlueprint::SmallPage))?;
    let unused_address = 0x50_0000_0000 + tcb.bits() * 0x1000;
    objects.map(buffer, unused_address)?;
    let unchanged = CNodeCapData::unchanged();
    let configured = tcb.tcb_configure(
        fault_endpoint,
        PRIORITY,
        PRIORITY,
        slot::CNODE,
        unchanged,
        slot::VSPACE,
        unused_address,
        buffer,
    );
    good("configure", configured)?;
    let stack = Box::leak(Box::new([0u128; STACK_WORDS / 2]));
    let top = (&raw mut *stack).addr() + size_of_val(stack);
    // SAFETY: all zeroes are valid registers.
    let mut registers: UserContext = unsafe { core::mem::zeroed() };
    registers.rip = body as usize as u64;
    // As after a call: the return address below a 16-byte boundary.
    registers.rsp = top as u64 - 8;
    registers.rdi = argument;
    registers.rflags = 2;
    good("write registers", tcb.tcb_write_all_registers(true, &registers))?;
    Ok(tcb)
}
