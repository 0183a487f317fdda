// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where does the log go? To the root task, as messages on the supervisor endpoint.

use alloc::format;
use core::fmt;
use sel4::{MessageInfo, cap};
use umbra_description::layout;
use umbra_description::supervisor::{MAX_WORDS, Message, log_pieces};

/// Sends text to the root task; the sink of the program's log.
pub fn log(arguments: fmt::Arguments<'_>) {
    let endpoint = cap::Endpoint::from_bits(layout::mmu::SUPERVISOR);
    for piece in log_pieces(&format!("mmu: {arguments}")) {
        let mut words = [0; MAX_WORDS];
        let (label, length) = Message::Log(piece).encode(&mut words);
        sel4::with_ipc_buffer_mut(|buffer| buffer.msg_regs_mut()[..length].copy_from_slice(&words[..length]));
        endpoint.send(MessageInfo::new(label, length));
    }
}
