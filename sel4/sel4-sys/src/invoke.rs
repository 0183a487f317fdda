// SPDX-License-Identifier: MIT OR Apache-2.0
//! How do an invocation's parameters get into the message, and its results out?

use crate::bindings as sys;
use crate::{REGISTER_MESSAGE_WORDS, call};
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};

/// The IPC buffer of this program's thread. A program with several threads that use message registers beyond the fourth
/// needs one program image for each, as there is no thread-local storage.
static IPC_BUFFER: AtomicPtr<sys::seL4_IPCBuffer> = AtomicPtr::new(ptr::null_mut());

/// Tells where the IPC buffer is. The runtime does this before `main`.
///
/// # Safety
/// `buffer` is the IPC buffer of the only thread, mapped as long as the program runs.
pub unsafe fn set_ipc_buffer(buffer: *mut sys::seL4_IPCBuffer) {
    IPC_BUFFER.store(buffer, Ordering::Relaxed);
}

/// The IPC buffer; null before the runtime has set it.
#[inline(always)]
pub fn ipc_buffer() -> *mut sys::seL4_IPCBuffer {
    IPC_BUFFER.load(Ordering::Relaxed)
}

/// Why an invocation did not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// A `seL4_Error`.
    pub label: u64,
    /// Message registers 0 to 3: the detail. The others are in the IPC buffer.
    pub mrs: [u64; 4],
}

/// What a successful invocation returns.
#[derive(Clone, Copy, Debug)]
pub struct Reply {
    mrs: [u64; 4],
}

impl Reply {
    /// Message register `index`.
    #[inline(always)]
    pub fn word(&self, index: usize) -> u64 {
        if index < REGISTER_MESSAGE_WORDS {
            self.mrs[index]
        } else {
            // SAFETY: the buffer is mapped (set_ipc_buffer), and the index is checked by the array access.
            unsafe { (*ipc_buffer()).msg[index] }
        }
    }
}

/// Invokes the object behind `service`. Touches the IPC buffer only for capabilities and for words beyond the fourth.
///
/// # Errors
/// What the kernel refused.
#[inline(always)]
pub fn invoke<const CAPS: usize, const WORDS: usize>(
    service: u64,
    label: u64,
    caps: [u64; CAPS],
    words: [u64; WORDS],
) -> Result<Reply, Failure> {
    const { assert!(CAPS <= sys::seL4_MsgMaxExtraCaps as usize && WORDS <= sys::seL4_MsgMaxLength as usize) };
    invoke_slice(service, label, &caps, &words)
}

/// [`invoke`] with a number of words that is known at run time only.
///
/// # Panics
/// If there are more words or capabilities than a message holds.
///
/// # Errors
/// What the kernel refused.
#[inline(always)]
pub fn invoke_slice(service: u64, label: u64, caps: &[u64], words: &[u64]) -> Result<Reply, Failure> {
    let mut mrs = [0; REGISTER_MESSAGE_WORDS];
    let in_registers = words.len().min(REGISTER_MESSAGE_WORDS);
    mrs[..in_registers].copy_from_slice(&words[..in_registers]);
    if !caps.is_empty() || words.len() > REGISTER_MESSAGE_WORDS {
        store_rest(caps, words);
    }
    let info = sys::seL4_MessageInfo::new(label, 0, caps.len() as u64, words.len() as u64);
    let message = call(service, info, mrs);
    match message.info.get_label() {
        0 => Ok(Reply { mrs: message.mrs }),
        label => Err(Failure {
            label,
            mrs: message.mrs,
        }),
    }
}

/// Puts what does not travel in registers into the IPC buffer.
#[inline(always)]
fn store_rest(caps: &[u64], words: &[u64]) {
    let buffer = ipc_buffer();
    // SAFETY: the buffer is mapped (set_ipc_buffer) and no reference into it is alive; indices are checked.
    unsafe {
        for (i, cap) in caps.iter().enumerate() {
            (*buffer).caps_or_badges[i] = *cap;
        }
        for (i, word) in words.iter().enumerate().skip(REGISTER_MESSAGE_WORDS) {
            (*buffer).msg[i] = *word;
        }
    }
}
