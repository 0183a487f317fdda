// SPDX-License-Identifier: MIT OR Apache-2.0
//! How do threads pass messages?
//!
//! Up to four words travel in CPU registers: the calls `*_with_mrs` never touch the IPC buffer, and the kernel has a fast
//! path for them (about 420 ticks for call and reply, 1060 beyond four words).

use crate::cap::{Cap, Endpoint, Notification, cap_type};
use crate::{AbsoluteCPtr, Word};
use sel4_sys as sys;

/// The number that the kernel delivers with a message, to tell senders apart.
pub type Badge = Word;

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageInfo(sys::seL4_MessageInfo);

impl MessageInfo {
    /// A message of `length` words (at most 120) without capabilities. `label` has 20 bits.
    pub const fn new(label: Word, length: usize) -> Self {
        Self(sys::seL4_MessageInfo::new(label, 0, 0, length as Word))
    }

    /// A message with `caps` capabilities (at most 3), which stand in the IPC buffer.
    pub const fn with_caps(label: Word, caps: usize, length: usize) -> Self {
        Self(sys::seL4_MessageInfo::new(label, 0, caps as Word, length as Word))
    }

    /// Meaning of the message; for a fault message, the kind of fault.
    pub const fn label(self) -> Word {
        self.0.get_label()
    }

    /// Number of words.
    pub const fn length(self) -> usize {
        self.0.get_length() as usize
    }

    /// Number of capabilities.
    pub const fn extra_caps(self) -> usize {
        self.0.get_extraCaps() as usize
    }

    /// Bit i is set if capability i arrived as a badge, because it names the very endpoint it came through.
    pub const fn caps_unwrapped(self) -> Word {
        self.0.get_capsUnwrapped()
    }

    pub(crate) const fn into_inner(self) -> sys::seL4_MessageInfo {
        self.0
    }
}

/// A message that arrived.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// Label and lengths.
    pub info: MessageInfo,
    /// Badge of the capability through which it was sent.
    pub badge: Badge,
    /// Words 0 to 3. Words beyond `info.length()` are arbitrary.
    pub mrs: [Word; 4],
}

/// The answer to a call.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Label and lengths.
    pub info: MessageInfo,
    /// Words 0 to 3. Words beyond `info.length()` are arbitrary.
    pub mrs: [Word; 4],
}

impl Received {
    fn new(message: sys::Message) -> Self {
        Self {
            info: MessageInfo(message.info),
            badge: message.badge,
            mrs: message.mrs,
        }
    }

    /// Word `index` of the message, from a register or the IPC buffer.
    pub fn word(&self, index: usize) -> Word {
        message_word(&self.mrs, index)
    }
}

impl Call {
    /// Word `index` of the answer, from a register or the IPC buffer.
    pub fn word(&self, index: usize) -> Word {
        message_word(&self.mrs, index)
    }
}

/// Word `index` of a message whose first words are `mrs`.
#[inline(always)]
pub(crate) fn message_word(mrs: &[Word; 4], index: usize) -> Word {
    match mrs.get(index) {
        Some(word) => *word,
        None => with_ipc_buffer(|buffer| buffer.msg_regs()[index]),
    }
}

/// First words of a message: N registers, the rest zero.
#[inline(always)]
fn registers<const N: usize>(words: [Word; N]) -> [Word; 4] {
    const { assert!(N <= 4, "at most four words travel in registers") };
    let mut mrs = [0; 4];
    mrs[..N].copy_from_slice(&words);
    mrs
}

/// A capability through which messages can be sent: an endpoint, or a saved reply in a slot of unknown kind.
impl Endpoint {
    /// Sends `words` and waits for the answer. 420 ticks with the answer where receiver and priorities allow the fast path.
    #[inline(always)]
    pub fn call_with_mrs<const N: usize>(self, label: Word, words: [Word; N]) -> Call {
        let message = sys::call(self.bits(), MessageInfo::new(label, N).into_inner(), registers(words));
        Call {
            info: MessageInfo(message.info),
            mrs: message.mrs,
        }
    }

    /// Sends the message in the IPC buffer and waits for the answer, which then stands in the IPC buffer.
    pub fn call(self, info: MessageInfo) -> MessageInfo {
        let message = sys::call(self.bits(), info.into_inner(), load_registers());
        store_registers(message.mrs);
        MessageInfo(message.info)
    }

    /// Sends the words of a message that is longer than the registers: `first` in registers, the others as they stand in
    /// the IPC buffer.
    #[inline(always)]
    pub fn call_with_first(self, info: MessageInfo, first: [Word; 4]) -> Call {
        let message = sys::call(self.bits(), info.into_inner(), first);
        Call {
            info: MessageInfo(message.info),
            mrs: message.mrs,
        }
    }

    /// Sends `words` and goes on when they are received.
    #[inline(always)]
    pub fn send_with_mrs<const N: usize>(self, label: Word, words: [Word; N]) {
        sys::send(self.bits(), MessageInfo::new(label, N).into_inner(), registers(words));
    }

    /// Sends the message in the IPC buffer and goes on when it is received.
    pub fn send(self, info: MessageInfo) {
        sys::send(self.bits(), info.into_inner(), load_registers());
    }

    /// Sends `words` if somebody receives now.
    #[inline(always)]
    pub fn nb_send_with_mrs<const N: usize>(self, label: Word, words: [Word; N]) {
        sys::nb_send(self.bits(), MessageInfo::new(label, N).into_inner(), registers(words));
    }

    /// Waits for a message. Words beyond the fourth stand in the IPC buffer ([`Received::word`]).
    #[inline(always)]
    pub fn recv(self) -> Received {
        Received::new(sys::recv(self.bits()))
    }

    /// Takes a message if one waits; else the badge is 0 and the length 0.
    #[inline(always)]
    pub fn nb_recv(self) -> Received {
        Received::new(sys::nb_recv(self.bits()))
    }

    /// Answers the last caller with `words` and waits for the next message.
    #[inline(always)]
    pub fn reply_recv_with_mrs<const N: usize>(self, label: Word, words: [Word; N]) -> Received {
        Received::new(sys::reply_recv(
            self.bits(),
            MessageInfo::new(label, N).into_inner(),
            registers(words),
        ))
    }

    /// Answers the last caller with the message in the IPC buffer and waits for the next one.
    pub fn reply_recv(self, info: MessageInfo) -> Received {
        Received::new(sys::reply_recv(self.bits(), info.into_inner(), load_registers()))
    }
}

impl Notification {
    /// Sets the bits of this capability's badge and wakes who waits.
    #[inline(always)]
    pub fn signal(self) {
        sys::send(self.bits(), MessageInfo::new(0, 0).into_inner(), [0; 4]);
    }

    /// Waits until a bit is set; takes all bits.
    #[inline(always)]
    pub fn wait(self) -> Badge {
        sys::recv(self.bits()).badge
    }

    /// Takes all bits without waiting; 0 if none is set.
    #[inline(always)]
    pub fn poll(self) -> Badge {
        sys::nb_recv(self.bits()).badge
    }
}

/// Answers the last caller, without waiting.
pub fn reply<const N: usize>(label: Word, words: [Word; N]) {
    sys::reply(MessageInfo::new(label, N).into_inner(), registers(words));
}

/// Lets other threads of the same priority run.
pub fn yield_() {
    sys::yield_();
}

fn load_registers() -> [Word; 4] {
    with_ipc_buffer(|buffer| [0, 1, 2, 3].map(|i| buffer.msg_regs()[i]))
}

fn store_registers(mrs: [Word; 4]) {
    with_ipc_buffer_mut(|buffer| buffer.msg_regs_mut()[..4].copy_from_slice(&mrs));
}

/// The thread's IPC buffer. Message registers 0 to 3 live in CPU registers: their places in it are used only by the calls
/// that say so. Every call with more than four words or with capabilities overwrites it.
#[repr(transparent)]
pub struct IpcBuffer(sys::seL4_IPCBuffer);

impl IpcBuffer {
    /// All message registers.
    pub fn msg_regs(&self) -> &[Word; sys::seL4_MsgMaxLength as usize] {
        &self.0.msg
    }

    /// All message registers.
    pub fn msg_regs_mut(&mut self) -> &mut [Word; sys::seL4_MsgMaxLength as usize] {
        &mut self.0.msg
    }

    /// Capabilities to send, or badges of unwrapped ones that arrived.
    pub fn caps_or_badges_mut(&mut self) -> &mut [Word; sys::seL4_MsgMaxExtraCaps as usize] {
        &mut self.0.caps_or_badges
    }

    /// Where a capability that comes with a message goes.
    pub fn set_recv_slot(&mut self, slot: &AbsoluteCPtr) {
        self.0.receiveCNode = slot.root.bits();
        self.0.receiveIndex = slot.path.bits;
        self.0.receiveDepth = Word::from(slot.path.depth);
    }
}

/// Runs `f` on the IPC buffer, which `f` must not use for calls.
#[inline(always)]
pub fn with_ipc_buffer<T>(f: impl FnOnce(&IpcBuffer) -> T) -> T {
    // SAFETY: the runtime set the pointer; the only thread is inside f, and IpcBuffer is a transparent wrapper.
    f(unsafe { &*sys::ipc_buffer().cast::<IpcBuffer>() })
}

/// Runs `f` on the IPC buffer, which `f` must not use for calls or for another access.
#[inline(always)]
pub fn with_ipc_buffer_mut<T>(f: impl FnOnce(&mut IpcBuffer) -> T) -> T {
    // SAFETY: as in with_ipc_buffer.
    f(unsafe { &mut *sys::ipc_buffer().cast::<IpcBuffer>() })
}

impl Cap<cap_type::Unspecified> {
    /// Answers through a reply capability that [`AbsoluteCPtr::save_caller`] put here.
    pub fn send_reply<const N: usize>(self, label: Word, words: [Word; N]) {
        sys::send(self.bits(), MessageInfo::new(label, N).into_inner(), registers(words));
    }
}
