// SPDX-License-Identifier: MIT OR Apache-2.0
//! What does the kernel that is built offer, in its own words?
//!
//! Names are those of libsel4. Everything but the system call instruction itself and the message transport is generated
//! from the tree in `SEL4_BUILD_DIR` (see `sel4-bindgen`).
#![no_std]

mod invoke;
mod syscall;

pub use invoke::{Failure, Reply, invoke, invoke_slice, ipc_buffer, set_ipc_buffer};
pub use syscall::{
    DEBUG_PUT_CHAR, Message, call, debug_put_char, nb_recv, nb_send, recv, reply, reply_recv, send, vm_enter, yield_,
};

#[allow(
    missing_docs,
    non_camel_case_types,
    non_upper_case_globals,
    non_snake_case,
    clippy::all,
    clippy::pedantic
)]
mod bindings {
    include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
}
pub use bindings::*;

/// Number of message registers that are CPU registers.
pub const REGISTER_MESSAGE_WORDS: usize = 4;
