// SPDX-License-Identifier: MIT OR Apache-2.0
//! What components tell the root task: messages on their supervisor endpoint, and why a VM stopped.
//!
//! A message is one `Send` (never a `Call`: the capability carries no grant). On the wire: the label says which
//! message; `Log` is a length in bytes and the text; `Stopped` is code, value, length and text; `Entered` is ticks.

use core::{fmt, str::FromStr};

/// Message labels.
pub mod label {
    /// A line (or several) for the system log.
    pub const LOG: u64 = 1;
    /// The VM stopped; the vmm does nothing more.
    pub const STOPPED: u64 = 2;
    /// The vmm is about to enter its guest for the first time.
    pub const ENTERED: u64 = 3;
}

/// Words in a message, at most (seL4_MsgMaxLength).
pub const MAX_WORDS: usize = 120;
/// Bytes of text in one `Log`; longer text is sent in several.
pub const MAX_LOG: usize = (MAX_WORDS - 1) * 8;
/// Bytes of detail in one `Stopped`; the rest is cut off.
pub const MAX_DETAIL: usize = (MAX_WORDS - 3) * 8;

/// Which of a VM's two components.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The virtual machine monitor.
    Vmm,
    /// The memory virtualisation server.
    Mmu,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vmm => "vmm",
            Self::Mmu => "mmu",
        })
    }
}

/// Why a VM stopped. Its text (`Display`, `FromStr`) is what the system log shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StopReason {
    /// The guest switched itself off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest wrote this value to the test-exit port; 0 is success.
    TestExit(u32),
    /// The guest's processor shut down.
    TripleFault,
    /// The guest halted with interrupts off, so nothing can wake it.
    Halted,
    /// The vmm could not load the kernel, initrd or modules.
    LoadFailed,
    /// The emulator met an instruction that it cannot emulate.
    EmulationFailed,
    /// The processor reported an exit reason that the vmm does not know.
    UnknownExit(u32),
    /// The mmu answered `Failed`, or something other than what was asked.
    MmuFailed,
    /// A component faulted; said by the root task.
    ComponentFault(Role),
}

impl StopReason {
    /// The code and value of the message.
    pub const fn to_wire(self) -> (u64, u64) {
        match self {
            Self::PowerOff => (1, 0),
            Self::Reset => (2, 0),
            Self::TestExit(value) => (3, value as u64),
            Self::TripleFault => (4, 0),
            Self::Halted => (5, 0),
            Self::LoadFailed => (6, 0),
            Self::EmulationFailed => (7, 0),
            Self::UnknownExit(reason) => (8, reason as u64),
            Self::MmuFailed => (9, 0),
            Self::ComponentFault(Role::Vmm) => (10, 0),
            Self::ComponentFault(Role::Mmu) => (10, 1),
        }
    }

    /// The reason of a code and value; `None` for an unknown code or an impossible value.
    pub fn from_wire(code: u64, value: u64) -> Option<Self> {
        let number = u32::try_from(value).ok()?;
        let reason = match code {
            1 => Self::PowerOff,
            2 => Self::Reset,
            3 => Self::TestExit(number),
            4 => Self::TripleFault,
            5 => Self::Halted,
            6 => Self::LoadFailed,
            7 => Self::EmulationFailed,
            8 => Self::UnknownExit(number),
            9 => Self::MmuFailed,
            10 if number == 1 => Self::ComponentFault(Role::Mmu),
            10 => Self::ComponentFault(Role::Vmm),
            _ => return None,
        };
        (reason.to_wire() == (code, value)).then_some(reason)
    }

    /// The guest ended as it wanted to: switched off, rebooted, or reported success.
    pub const fn is_clean(self) -> bool {
        match self {
            Self::PowerOff | Self::Reset | Self::TestExit(0) => true,
            Self::TestExit(_)
            | Self::TripleFault
            | Self::Halted
            | Self::LoadFailed
            | Self::EmulationFailed
            | Self::UnknownExit(_)
            | Self::MmuFailed
            | Self::ComponentFault(_) => false,
        }
    }

    /// Reads what follows `stopped: ` in the log: the reason, and the detail after it.
    pub fn split(text: &str) -> Option<(Self, &str)> {
        let (word, rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        let (argument, after) = rest.split_once(' ').unwrap_or((rest, ""));
        let plain = |reason| Some((reason, rest));
        match word {
            "power-off" => plain(Self::PowerOff),
            "reset" => plain(Self::Reset),
            "triple-fault" => plain(Self::TripleFault),
            "halted" => plain(Self::Halted),
            "load-failed" => plain(Self::LoadFailed),
            "emulation-failed" => plain(Self::EmulationFailed),
            "mmu-failed" => plain(Self::MmuFailed),
            "test-exit" => Some((Self::TestExit(argument.parse().ok()?), after)),
            "unknown-exit" => Some((Self::UnknownExit(argument.parse().ok()?), after)),
            "component-fault" => match argument {
                "vmm" => Some((Self::ComponentFault(Role::Vmm), after)),
                "mmu" => Some((Self::ComponentFault(Role::Mmu), after)),
                _ => None,
            },
            _ => None,
        }
    }
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => f.write_str("power-off"),
            Self::Reset => f.write_str("reset"),
            Self::TestExit(value) => write!(f, "test-exit {value}"),
            Self::TripleFault => f.write_str("triple-fault"),
            Self::Halted => f.write_str("halted"),
            Self::LoadFailed => f.write_str("load-failed"),
            Self::EmulationFailed => f.write_str("emulation-failed"),
            Self::UnknownExit(reason) => write!(f, "unknown-exit {reason}"),
            Self::MmuFailed => f.write_str("mmu-failed"),
            Self::ComponentFault(role) => write!(f, "component-fault {role}"),
        }
    }
}

/// The text is no stop reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownReason;

impl FromStr for StopReason {
    type Err = UnknownReason;

    fn from_str(text: &str) -> Result<Self, UnknownReason> {
        match Self::split(text) {
            Some((reason, "")) => Ok(reason),
            Some(_) | None => Err(UnknownReason),
        }
    }
}

/// A message from a component.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// For the system log.
    Log(&'a str),
    /// The VM stopped.
    Stopped {
        /// Why.
        reason: StopReason,
        /// More about it, in words.
        detail: &'a str,
    },
    /// The guest is entered for the first time, at this value of the time stamp counter.
    Entered(u64),
}

/// The words are no message; a component's bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// Unknown label.
    Label(u64),
    /// Fewer words than the message needs.
    Short,
    /// Unknown code or value of a stop reason.
    Reason(u64, u64),
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Label(label) => write!(f, "message with unknown label {label}"),
            Self::Short => f.write_str("message is too short"),
            Self::Reason(code, value) => write!(f, "unknown stop reason {code}, {value}"),
        }
    }
}

impl<'a> Message<'a> {
    /// Writes the message into `words`; returns label and number of words. Text that does not fit is cut off.
    pub fn encode(&self, words: &mut [u64; MAX_WORDS]) -> (u64, usize) {
        match *self {
            Self::Log(text) => (label::LOG, pack(text, words)),
            Self::Stopped { reason, detail } => {
                (words[0], words[1]) = reason.to_wire();
                (label::STOPPED, 2 + pack(detail, &mut words[2..]))
            }
            Self::Entered(ticks) => {
                words[0] = ticks;
                (label::ENTERED, 1)
            }
        }
    }

    /// Reads a message; its text is built in `text`. Bytes that are not UTF-8 end the text.
    pub fn decode(label: u64, words: &[u64], text: &'a mut [u8; MAX_LOG]) -> Result<Self, Malformed> {
        match label {
            label::LOG => Ok(Self::Log(unpack(words, text)?)),
            label::STOPPED => {
                let [code, value, rest @ ..] = words else {
                    return Err(Malformed::Short);
                };
                let reason = StopReason::from_wire(*code, *value).ok_or(Malformed::Reason(*code, *value))?;
                Ok(Self::Stopped {
                    reason,
                    detail: unpack(rest, text)?,
                })
            }
            label::ENTERED => words.first().map(|&ticks| Self::Entered(ticks)).ok_or(Malformed::Short),
            other => Err(Malformed::Label(other)),
        }
    }
}

/// Cuts `text` into pieces that one `Log` holds, at line ends where possible, never inside a character.
pub fn log_pieces(mut text: &str) -> impl Iterator<Item = &str> {
    core::iter::from_fn(move || {
        if text.is_empty() {
            return None;
        }
        let fits = floor_char_boundary(text, MAX_LOG);
        let cut = match text[..fits].rfind('\n') {
            Some(end) if fits < text.len() => end + 1,
            Some(_) | None => fits,
        };
        let (piece, rest) = text.split_at(cut);
        text = rest;
        Some(piece)
    })
}

/// Packs a length and bytes into words, as many as fit; returns the number of words used.
fn pack(text: &str, words: &mut [u64]) -> usize {
    let len = floor_char_boundary(text, (words.len() - 1) * 8);
    let bytes = &text.as_bytes()[..len];
    words[0] = len as u64;
    for (word, chunk) in words[1..].iter_mut().zip(bytes.chunks(8)) {
        let mut buffer = [0; 8];
        buffer[..chunk.len()].copy_from_slice(chunk);
        *word = u64::from_le_bytes(buffer);
    }
    1 + len.div_ceil(8)
}

fn unpack<'a>(words: &[u64], text: &'a mut [u8; MAX_LOG]) -> Result<&'a str, Malformed> {
    let (&len, words) = words.split_first().ok_or(Malformed::Short)?;
    let len = usize::try_from(len)
        .ok()
        .filter(|&len| len.div_ceil(8) <= words.len())
        .ok_or(Malformed::Short)?;
    for (chunk, word) in text.chunks_mut(8).zip(words) {
        chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
    }
    let bytes = text.get(..len).ok_or(Malformed::Short)?;
    Ok(match core::str::from_utf8(bytes) {
        Ok(whole) => whole,
        Err(error) => core::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or(""),
    })
}

fn floor_char_boundary(text: &str, limit: usize) -> usize {
    text.floor_char_boundary(limit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{string::String, string::ToString, vec::Vec};

    const ALL: [StopReason; 13] = [
        StopReason::PowerOff,
        StopReason::Reset,
        StopReason::TestExit(0),
        StopReason::TestExit(u32::MAX),
        StopReason::TripleFault,
        StopReason::Halted,
        StopReason::LoadFailed,
        StopReason::EmulationFailed,
        StopReason::UnknownExit(0),
        StopReason::UnknownExit(65),
        StopReason::MmuFailed,
        StopReason::ComponentFault(Role::Vmm),
        StopReason::ComponentFault(Role::Mmu),
    ];

    #[test]
    fn every_reason_survives_wire_and_text() {
        for reason in ALL {
            let (code, value) = reason.to_wire();
            assert_eq!(StopReason::from_wire(code, value), Some(reason));
            assert_eq!(reason.to_string().parse(), Ok(reason));
            let line = std::format!("{reason} rip=0x10 why not");
            assert_eq!(StopReason::split(&line), Some((reason, "rip=0x10 why not")));
        }
    }

    #[test]
    fn codes_and_texts_are_different() {
        for (i, a) in ALL.iter().enumerate() {
            for b in &ALL[..i] {
                assert_ne!(a.to_wire(), b.to_wire());
                assert_ne!(a.to_string(), b.to_string());
            }
        }
    }

    #[test]
    fn unknown_codes_values_and_texts_are_refused() {
        assert_eq!(StopReason::from_wire(0, 0), None);
        assert_eq!(StopReason::from_wire(11, 0), None);
        assert_eq!(StopReason::from_wire(1, 1), None);
        assert_eq!(StopReason::from_wire(10, 2), None);
        assert_eq!(StopReason::from_wire(3, 1 << 32), None);
        for text in [
            "",
            "poweroff",
            "test-exit",
            "test-exit x",
            "component-fault",
            "component-fault root",
            "reset x",
        ] {
            assert_eq!(text.parse::<StopReason>(), Err(UnknownReason), "{text}");
        }
    }

    #[test]
    fn only_these_ends_are_clean() {
        let clean: Vec<_> = ALL.into_iter().filter(|r| r.is_clean()).collect();
        assert_eq!(
            clean,
            [StopReason::PowerOff, StopReason::Reset, StopReason::TestExit(0)]
        );
    }

    #[test]
    fn messages_survive_the_wire() {
        let long = "x".repeat(MAX_LOG);
        let detail = "y".repeat(MAX_DETAIL);
        let mut messages = std::vec![
            Message::Entered(u64::MAX),
            Message::Log(""),
            Message::Log("ä"),
            Message::Log(&long)
        ];
        for reason in ALL {
            messages.push(Message::Stopped {
                reason,
                detail: "rip=0x1234",
            });
            messages.push(Message::Stopped {
                reason,
                detail: &detail,
            });
        }
        for message in messages {
            let mut words = [0; MAX_WORDS];
            let (label, n) = message.encode(&mut words);
            assert_eq!(Message::decode(label, &words[..n], &mut [0; MAX_LOG]), Ok(message));
        }
    }

    #[test]
    fn text_that_is_too_long_is_cut_at_a_character() {
        let long = "ä".repeat(MAX_LOG);
        let mut words = [0; MAX_WORDS];
        let (label, n) = Message::Log(&long).encode(&mut words);
        assert_eq!(n, MAX_WORDS);
        assert_eq!(
            Message::decode(label, &words, &mut [0; MAX_LOG]),
            Ok(Message::Log(&long[..MAX_LOG]))
        );
    }

    #[test]
    fn hostile_words_are_refused() {
        let mut text = [0; MAX_LOG];
        assert_eq!(Message::decode(0, &[], &mut text), Err(Malformed::Label(0)));
        assert_eq!(Message::decode(label::LOG, &[], &mut text), Err(Malformed::Short));
        assert_eq!(Message::decode(label::LOG, &[9, 0], &mut text), Err(Malformed::Short));
        assert_eq!(
            Message::decode(label::LOG, &[u64::MAX, 0], &mut text),
            Err(Malformed::Short)
        );
        assert_eq!(
            Message::decode(label::STOPPED, &[1, 0], &mut text),
            Err(Malformed::Short)
        );
        assert_eq!(
            Message::decode(label::STOPPED, &[99, 0, 0], &mut text),
            Err(Malformed::Reason(99, 0))
        );
        assert_eq!(Message::decode(label::ENTERED, &[], &mut text), Err(Malformed::Short));
        let latin1 = u64::from_le_bytes(*b"ab\xff\0\0\0\0\0");
        assert_eq!(
            Message::decode(label::LOG, &[3, latin1], &mut text),
            Ok(Message::Log("ab"))
        );
    }

    #[test]
    fn long_logs_are_cut_at_lines() {
        let line = std::format!("{}\n", "z".repeat(99));
        let text = line.repeat(30);
        let pieces: Vec<&str> = log_pieces(&text).collect();
        assert!(pieces.iter().all(|p| p.len() <= MAX_LOG && p.ends_with('\n')));
        assert_eq!(pieces.concat(), text);
        let wall: String = "ä".repeat(1000);
        assert_eq!(log_pieces(&wall).collect::<Vec<_>>().concat(), wall);
        assert_eq!(log_pieces("").count(), 0);
    }
}
