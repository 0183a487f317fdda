// SPDX-License-Identifier: MIT OR Apache-2.0
//! How do tests run code beside their own thread?

use crate::world::{PAGE, Page, World};
use core::arch::naked_asm;
use sel4::cap::{Endpoint, Tcb};
use sel4::init_thread::slot::{CNODE, VSPACE};
use sel4::{CNodeCapData, Fault, ObjectBlueprint, Received, Result, UserContext, Word};

/// As the root task's own: the scheduler takes turns.
const PRIORITY: u8 = 255;

/// A thread in this address space, with a stack, an IPC buffer and an endpoint that gets its faults.
pub struct Thread {
    /// Its thread object.
    pub tcb: Tcb,
    faults: Endpoint,
    stack: Page,
}

impl Thread {
    /// A thread that does not run yet.
    pub fn new(world: &mut World) -> Result<Self> {
        let tcb: Tcb = world.make(ObjectBlueprint::Tcb)?.cast();
        let faults: Endpoint = world.make(ObjectBlueprint::Endpoint)?.cast();
        let buffer = world.page()?;
        let stack = world.page()?;
        tcb.tcb_configure(
            faults.cptr(),
            PRIORITY,
            PRIORITY,
            CNODE,
            CNodeCapData::unchanged(),
            VSPACE,
            buffer.address(),
            buffer.cap,
        )?;
        Ok(Self { tcb, faults, stack })
    }

    /// Starts it at a function that uses no more than its stack, and nothing of the sel4 crates (they know one thread).
    pub fn start(&self, code: unsafe extern "C" fn() -> !, mut registers: UserContext) -> Result<()> {
        registers.rip = code as usize as Word;
        registers.rsp = self.stack.address() + PAGE as Word;
        registers.rflags = 0x202;
        self.tcb.tcb_write_all_registers(true, &registers)
    }

    /// Waits for its fault.
    pub fn fault(&self) -> (Fault, Received) {
        let message = self.faults.recv();
        (Fault::new(&message), message)
    }
}

/// All zero.
pub fn registers() -> UserContext {
    // SAFETY: a structure of words, for which zero is a value.
    unsafe { core::mem::zeroed() }
}

/// Makes one system call from the registers as they are, leaves the answer at [rbp], and faults: rsi, rdi, r10, r8, r9, r15.
#[unsafe(naked)]
pub unsafe extern "C" fn call_and_fault() -> ! {
    naked_asm!(
        "mov rbx, rsp",
        "syscall",
        "mov rsp, rbx",
        "mov [rbp], rsi",
        "mov [rbp + 8], rdi",
        "mov [rbp + 16], r10",
        "mov [rbp + 24], r8",
        "mov [rbp + 32], r9",
        "mov [rbp + 40], r15",
        "ud2",
    )
}

/// Counts at [rbp] for ever.
#[unsafe(naked)]
pub unsafe extern "C" fn count() -> ! {
    naked_asm!("2: inc qword ptr [rbp]", "jmp 2b")
}

/// Reads [rbp].
#[unsafe(naked)]
pub unsafe extern "C" fn touch() -> ! {
    naked_asm!("mov rax, [rbp]", "ud2")
}
