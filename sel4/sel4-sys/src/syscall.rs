// SPDX-License-Identifier: MIT OR Apache-2.0
//! How does a thread enter the kernel?
//!
//! x86_64, `syscall` instruction: rdx = number, rdi = capability (out: badge), rsi = message info, r10 r8 r9 r15 = message
//! registers 0 to 3. The kernel preserves the other registers except rsp, rcx, r11; the caller keeps rsp in one of them.

use crate::bindings as sys;
use core::arch::asm;

/// What a receiving system call brings.
#[derive(Clone, Copy, Debug)]
pub struct Message {
    /// Badge of the sender's capability, or of the notification.
    pub badge: u64,
    /// Label, length, capabilities.
    pub info: sys::seL4_MessageInfo,
    /// Message registers 0 to 3; the others are in the IPC buffer.
    pub mrs: [u64; 4],
}

#[inline(always)]
fn send_receive(number: i64, dest: u64, info: u64, mut mrs: [u64; 4]) -> Message {
    let badge: u64;
    let info_out: u64;
    // SAFETY: the kernel changes the named registers, and memory only through capabilities of this thread.
    unsafe {
        asm!(
            "mov {stack}, rsp",
            "syscall",
            "mov rsp, {stack}",
            stack = out(reg) _,
            in("rdx") number,
            inlateout("rdi") dest => badge,
            inlateout("rsi") info => info_out,
            inlateout("r10") mrs[0],
            inlateout("r8") mrs[1],
            inlateout("r9") mrs[2],
            inlateout("r15") mrs[3],
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    Message {
        badge,
        info: sys::seL4_MessageInfo { words: [info_out] },
        mrs,
    }
}

/// seL4_Call.
#[inline(always)]
pub fn call(dest: u64, info: sys::seL4_MessageInfo, mrs: [u64; 4]) -> Message {
    send_receive(sys::seL4_SysCall, dest, info.words[0], mrs)
}

/// seL4_ReplyRecv: answers the last caller and waits for the next message on `src`.
#[inline(always)]
pub fn reply_recv(src: u64, info: sys::seL4_MessageInfo, mrs: [u64; 4]) -> Message {
    send_receive(sys::seL4_SysReplyRecv, src, info.words[0], mrs)
}

/// seL4_VMEnter: runs the VCPU bound to this thread until it exits or the bound notification is signalled. `length` is the
/// length field of the message info: it tells the kernel which guest registers the message carries.
#[inline(always)]
pub fn vm_enter(length: u64, mrs: [u64; 4]) -> Message {
    send_receive(sys::seL4_SysVMEnter, 0, length, mrs)
}

/// seL4_Recv.
#[inline(always)]
pub fn recv(src: u64) -> Message {
    send_receive(sys::seL4_SysRecv, src, 0, [0; 4])
}

/// seL4_NBRecv: like [`recv`], but returns at once with badge 0 if nothing waits.
#[inline(always)]
pub fn nb_recv(src: u64) -> Message {
    send_receive(sys::seL4_SysNBRecv, src, 0, [0; 4])
}

/// seL4_Send.
#[inline(always)]
pub fn send(dest: u64, info: sys::seL4_MessageInfo, mrs: [u64; 4]) {
    send_receive(sys::seL4_SysSend, dest, info.words[0], mrs);
}

/// seL4_NBSend: drops the message if nobody receives.
#[inline(always)]
pub fn nb_send(dest: u64, info: sys::seL4_MessageInfo, mrs: [u64; 4]) {
    send_receive(sys::seL4_SysNBSend, dest, info.words[0], mrs);
}

/// seL4_Reply.
#[inline(always)]
pub fn reply(info: sys::seL4_MessageInfo, mrs: [u64; 4]) {
    send_receive(sys::seL4_SysReply, 0, info.words[0], mrs);
}

/// seL4_Yield.
#[inline(always)]
pub fn yield_() {
    send_receive(sys::seL4_SysYield, 0, 0, [0; 4]);
}

/// The number of the debug kernel's DebugPutChar; `None` on release kernels.
pub const DEBUG_PUT_CHAR: Option<i64> = number("DebugPutChar");

/// Prints a byte on the kernel's console. False on kernels that do not have the call.
pub fn debug_put_char(byte: u8) -> bool {
    match DEBUG_PUT_CHAR {
        Some(number) => {
            send_receive(number, byte.into(), 0, [0; 4]);
            true
        }
        None => false,
    }
}

/// The number of a system call that only some kernels have.
const fn number(name: &str) -> Option<i64> {
    let mut i = 0;
    while i < sys::SYSCALLS.len() {
        let (found, number) = sys::SYSCALLS[i];
        if equal(found.as_bytes(), name.as_bytes()) {
            return Some(number);
        }
        i += 1;
    }
    None
}

const fn equal(a: &[u8], b: &[u8]) -> bool {
    let mut i = 0;
    while i < a.len() && i < b.len() && a[i] == b[i] {
        i += 1;
    }
    i == a.len() && i == b.len()
}
