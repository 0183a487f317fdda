// SPDX-License-Identifier: MIT OR Apache-2.0
//! What can be wrong with a `system.toml`, each with its place.

use std::{fmt, string::String, vec::Vec};

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// Counted from 1.
    pub line: usize,
    /// In characters, counted from 1.
    pub column: usize,
    /// What is wrong.
    pub reason: Reason,
}

/// What is wrong, in the order of checks: text, keys and types, single values, values against each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Not TOML.
    Syntax(String),
    /// No such key in this table.
    UnknownKey {
        /// The key.
        key: String,
        /// The table, as `[[vm]]`.
        table: String,
        /// Keys that may be there.
        known: Vec<&'static str>,
    },
    /// The table lacks a key.
    MissingKey {
        /// The key.
        key: &'static str,
        /// The table, as `[[vm]]`.
        table: String,
    },
    /// A value of another type.
    WrongType {
        /// The key.
        key: String,
        /// What it must be.
        expected: &'static str,
        /// What it is.
        found: &'static str,
    },
    /// Not a size: a number of bytes, or a string like "64K", "128M", "1G".
    BadSize(String),
    /// Not one of the words that the key takes.
    BadChoice {
        /// The key.
        key: &'static str,
        /// The value.
        found: String,
        /// What it may be.
        allowed: Vec<&'static str>,
    },
    /// Not a name: 1 to `max` of the characters a-z 0-9 `-` `_` `.`.
    BadName {
        /// The key.
        key: &'static str,
        /// The value.
        found: String,
        /// Longest, in bytes.
        max: usize,
    },
    /// A text is too long.
    TooLong {
        /// The key.
        key: &'static str,
        /// Its length in bytes.
        len: usize,
        /// Longest, in bytes.
        max: usize,
    },
    /// A control character in a command line.
    ControlCharacter(&'static str),
    /// A number or size outside its range.
    OutOfRange {
        /// The key.
        key: &'static str,
        /// The value.
        found: u64,
        /// Smallest allowed.
        min: u64,
        /// Largest allowed.
        max: u64,
    },
    /// A size or address that is not a multiple of `align`.
    Unaligned {
        /// The key.
        key: &'static str,
        /// The value.
        found: u64,
        /// What it must be a multiple of.
        align: u64,
    },
    /// Too many of something.
    TooMany {
        /// Of what.
        what: &'static str,
        /// Most.
        max: usize,
    },
    /// A VM names a component that is not described.
    UnknownComponent {
        /// The name.
        name: String,
        /// Those described.
        known: Vec<String>,
    },
    /// A VM names a device that the system does not have.
    UnknownDevice {
        /// The name.
        name: String,
        /// Those it has.
        known: Vec<&'static str>,
    },
    /// A name is used twice.
    Duplicate {
        /// What is named.
        what: &'static str,
        /// The name.
        name: String,
        /// Line of the first use.
        first: usize,
    },
    /// A serial port has two owners.
    PortTaken {
        /// The port.
        port: &'static str,
        /// Who has it.
        owner: String,
        /// Line where that is said.
        line: usize,
    },
    /// `shares-log` is set, but console and log are not the same port.
    NothingShared,
    /// A VM has no memory.
    NoMemory,
    /// A VM has `memory` or `pages` beside `[[vm.slot]]`.
    MemoryAndSlots {
        /// Which of the two keys.
        key: &'static str,
    },
    /// Two memory slots overlap.
    SlotOverlap {
        /// First common address.
        gpa: u64,
        /// Line of the other slot.
        other: usize,
    },
    /// A slot reaches beyond the guest-physical addresses that a VM can have.
    SlotBeyond {
        /// End of the slot.
        end: u64,
        /// First address that a guest cannot have.
        limit: u64,
    },
    /// No slot of RAM at guest-physical address 0, where a PC has some.
    NoLowRam,
    /// Describes no VM.
    NoVm,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Syntax(message) => f.write_str(message),
            Self::UnknownKey { key, table, known } => {
                write!(f, "{table} has no key '{key}'; known: {}", known.join(", "))
            }
            Self::MissingKey { key, table } => write!(f, "{table} lacks the key '{key}'"),
            Self::WrongType { key, expected, found } => write!(f, "'{key}' must be {expected}, not {found}"),
            Self::BadSize(found) => {
                write!(
                    f,
                    "'{found}' is no size: a number of bytes, or a string like \"64K\", \"128M\", \"1G\""
                )
            }
            Self::BadChoice { key, found, allowed } => {
                write!(f, "'{key}' cannot be '{found}'; possible: {}", allowed.join(", "))
            }
            Self::BadName { key, found, .. } if found.is_empty() => write!(f, "'{key}' is empty"),
            Self::BadName { key, found, max } => {
                write!(
                    f,
                    "'{key}' cannot be '{found}': 1 to {max} of the characters a-z 0-9 - _ ."
                )
            }
            Self::TooLong { key, len, max } => write!(f, "'{key}' has {len} bytes, at most {max} are possible"),
            Self::ControlCharacter(key) => write!(f, "'{key}' contains a control character"),
            Self::OutOfRange { key, found, min, max } => {
                write!(
                    f,
                    "'{key}' is {found} ({found:#x}), possible is {min} ({min:#x}) to {max} ({max:#x})"
                )
            }
            Self::Unaligned { key, found, align } => {
                write!(f, "'{key}' is {found:#x}, which is no multiple of {align:#x}")
            }
            Self::TooMany { what, max } => write!(f, "too many {what}: at most {max} are possible"),
            Self::UnknownComponent { name, known } => {
                write!(f, "no component is called '{name}'; described: {}", known.join(", "))
            }
            Self::UnknownDevice { name, known } => {
                write!(f, "the system has no device '{name}'; it has: {}", known.join(", "))
            }
            Self::Duplicate { what, name, first } => {
                write!(f, "two {what} are called '{name}'; the first is in line {first}")
            }
            Self::PortTaken { port, owner, line } => write!(f, "{port} already belongs to {owner} (line {line})"),
            Self::NothingShared => f.write_str("'shares-log' is set, but 'console' and 'log' are different ports"),
            Self::NoMemory => f.write_str("the VM has no memory: write 'memory = \"128M\"' or [[vm.slot]]"),
            Self::MemoryAndSlots { key } => {
                write!(
                    f,
                    "'{key}' cannot stand beside [[vm.slot]]: the slots are all the memory there is"
                )
            }
            Self::SlotOverlap { gpa, other } => {
                write!(
                    f,
                    "the slot overlaps the slot of line {other} at guest-physical address {gpa:#x}"
                )
            }
            Self::SlotBeyond { end, limit } => {
                write!(
                    f,
                    "the slot ends at {end:#x}; guest-physical addresses end at {limit:#x}"
                )
            }
            Self::NoLowRam => f.write_str("no RAM slot begins at guest-physical address 0"),
            Self::NoVm => f.write_str("the system has no [[vm]]"),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}: {}", self.line, self.column, self.reason)
    }
}

impl std::error::Error for Error {}

/// Everything that is wrong with a file, in the order of lines; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Errors(pub Vec<Error>);

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            error.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Errors {}

/// Collects errors by byte offset; offsets become lines and columns at the end.
#[derive(Default)]
pub(super) struct Sink(Vec<(usize, Reason)>);

impl Sink {
    pub(super) fn push(&mut self, at: usize, reason: Reason) {
        self.0.push((at, reason));
    }

    /// `value`, unless something was pushed.
    pub(super) fn finish<T>(mut self, text: &str, value: T) -> Result<T, Errors> {
        if self.0.is_empty() {
            return Ok(value);
        }
        self.0.sort_by_key(|(at, _)| *at);
        let place = |(at, reason)| {
            let (line, column) = position(text, at);
            Error { line, column, reason }
        };
        Err(Errors(self.0.into_iter().map(place).collect()))
    }
}

/// Line and column of a byte offset, both counted from 1.
pub(super) fn position(text: &str, at: usize) -> (usize, usize) {
    let before = &text[..text.floor_char_boundary(at)];
    let line_start = before.rfind('\n').map_or(0, |i| i + 1);
    (
        before.matches('\n').count() + 1,
        before[line_start..].chars().count() + 1,
    )
}
