// SPDX-License-Identifier: MIT OR Apache-2.0
//! What this component tells the root task: log lines, that the guest starts, why it stopped.

use alloc::format;
use core::fmt;
use sel4::{MessageInfo, cap, with_ipc_buffer, with_ipc_buffer_mut};
use umbra_description::layout;
use umbra_description::supervisor::{MAX_WORDS, Message, StopReason, log_pieces};

fn send(message: &Message<'_>) {
    // The IPC buffer may hold the message of an exit that is not dealt with yet.
    let kept = with_ipc_buffer(|buffer| *buffer.msg_regs());
    let mut words = [0; MAX_WORDS];
    let (label, len) = message.encode(&mut words);
    with_ipc_buffer_mut(|buffer| buffer.msg_regs_mut()[..len].copy_from_slice(&words[..len]));
    cap::Endpoint::from_bits(layout::vmm::SUPERVISOR).send(MessageInfo::new(label, len));
    with_ipc_buffer_mut(|buffer| *buffer.msg_regs_mut() = kept);
}

/// Writes to the system log.
pub fn log(text: fmt::Arguments<'_>) {
    for piece in log_pieces(&format!("{text}")) {
        send(&Message::Log(piece));
    }
}

/// The guest is about to be entered for the first time.
pub fn entered(host_tsc: u64) {
    send(&Message::Entered(host_tsc));
}

/// The VM is over. The component has nothing more to do, for ever.
pub fn stopped(reason: StopReason, detail: fmt::Arguments<'_>) -> ! {
    send(&Message::Stopped {
        reason,
        detail: &format!("{detail}"),
    });
    loop {
        cap::Notification::from_bits(layout::vmm::NOTIFICATION).wait();
    }
}
