// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is said about a component that faulted: cause and registers.

use crate::log;
use alloc::format;
use sel4::{Fault, Received, UserContext, cap};
use umbra_description::supervisor::Role;

/// Logs the fault and the registers of the thread, which stops.
pub fn report(vm: &str, role: Role, thread: cap::Tcb, message: &Received) {
    log::of_vm(vm, &format!("{role} component: {}", Fault::new(message)));
    match thread.tcb_read_all_registers(true) {
        Ok(registers) => log::of_vm(vm, &text(&registers)),
        Err(error) => log::of_vm(vm, &format!("its registers cannot be read: {error}")),
    }
}

fn text(r: &UserContext) -> alloc::string::String {
    let UserContext {
        rip,
        rsp,
        rflags,
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        ..
    } = r;
    format!(
        "  rip={rip:016x} rsp={rsp:016x} rbp={rbp:016x} flags={rflags:08x}\n\
         \x20 rax={rax:016x} rbx={rbx:016x} rcx={rcx:016x} rdx={rdx:016x}\n\
         \x20 rsi={rsi:016x} rdi={rdi:016x}  r8={r8:016x}  r9={r9:016x}\n\
         \x20 r10={r10:016x} r11={r11:016x} r12={r12:016x} r13={r13:016x}\n\
         \x20 r14={r14:016x} r15={r15:016x}"
    )
}
