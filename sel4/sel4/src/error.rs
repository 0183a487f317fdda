// SPDX-License-Identifier: MIT OR Apache-2.0
//! Why did the kernel refuse an invocation?

use crate::Word;
use core::fmt;
use sel4_sys as sys;

/// The outcome of an invocation.
pub type Result<T> = core::result::Result<T, Error>;

/// What the kernel refused, with all the detail that it gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// Argument number `arg` (from 0, extra capabilities not counted) has a bad value.
    InvalidArgument {
        /// Number of the argument.
        arg: Word,
    },
    /// Capability number `cap` of the message is wrong: 0 is the invoked one, 1 the first extra one.
    InvalidCapability {
        /// Number of the capability.
        cap: Word,
    },
    /// The object does not do this, or not in this state.
    IllegalOperation,
    /// A value is outside of what is allowed.
    RangeError {
        /// Smallest allowed value.
        min: Word,
        /// Largest allowed value.
        max: Word,
    },
    /// An address or an object is not aligned to its size.
    AlignmentError,
    /// A capability or a paging level was not found.
    FailedLookup {
        /// Whether it was the source of a copy, not its destination.
        source: bool,
        /// Where the search ended.
        failure: LookupFailure,
    },
    /// The message has too few words or capabilities.
    TruncatedMessage,
    /// The destination is occupied: a slot that is not empty, an address that is mapped.
    DeleteFirst,
    /// The object has children.
    RevokeFirst,
    /// An untyped object is too small for what was asked.
    NotEnoughMemory {
        /// Bytes that it still has.
        left: Word,
    },
    /// A code that this version of the interface does not know.
    Unknown {
        /// The message's label.
        label: Word,
    },
}

/// Where the search for a capability (or for a paging structure) ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LookupFailure {
    /// The root of the CSpace (VSpace) is not one.
    InvalidRoot,
    /// The slot (entry) is empty.
    MissingCapability {
        /// Bits of the address that were not used yet. The kernel tells the EPT levels apart only roughly.
        bits_left: Word,
    },
    /// The address has too many or too few bits.
    DepthMismatch {
        /// Bits of the address that were not used yet.
        bits_left: Word,
        /// Bits that the CNode at this place takes.
        bits_found: Word,
    },
    /// The guard of a CNode differs from the address.
    GuardMismatch {
        /// Bits of the address that were not used yet.
        bits_left: Word,
        /// The CNode's guard.
        guard_found: Word,
        /// Bits of that guard.
        bits_found: Word,
    },
    /// A code that this version of the interface does not know.
    Unknown {
        /// The code.
        code: Word,
    },
}

impl LookupFailure {
    /// From a message whose register `first` holds the kind of failure; `word` reads a message register.
    pub(crate) fn read(first: usize, word: impl Fn(usize) -> Word) -> Self {
        match word(first) {
            sys::seL4_InvalidRoot => Self::InvalidRoot,
            sys::seL4_MissingCapability => Self::MissingCapability {
                bits_left: word(first + 1),
            },
            sys::seL4_DepthMismatch => Self::DepthMismatch {
                bits_left: word(first + 1),
                bits_found: word(first + 2),
            },
            sys::seL4_GuardMismatch => Self::GuardMismatch {
                bits_left: word(first + 1),
                guard_found: word(first + 2),
                bits_found: word(first + 3),
            },
            code => Self::Unknown { code },
        }
    }
}

impl From<sys::Failure> for Error {
    #[cold]
    fn from(failure: sys::Failure) -> Self {
        let mrs = failure.mrs;
        match failure.label {
            sys::seL4_InvalidArgument => Self::InvalidArgument { arg: mrs[0] },
            sys::seL4_InvalidCapability => Self::InvalidCapability { cap: mrs[0] },
            sys::seL4_IllegalOperation => Self::IllegalOperation,
            sys::seL4_RangeError => Self::RangeError {
                min: mrs[0],
                max: mrs[1],
            },
            sys::seL4_AlignmentError => Self::AlignmentError,
            sys::seL4_FailedLookup => {
                let failure = LookupFailure::read(1, |index| crate::ipc::message_word(&mrs, index));
                Self::FailedLookup {
                    source: mrs[0] != 0,
                    failure,
                }
            }
            sys::seL4_TruncatedMessage => Self::TruncatedMessage,
            sys::seL4_DeleteFirst => Self::DeleteFirst,
            sys::seL4_RevokeFirst => Self::RevokeFirst,
            sys::seL4_NotEnoughMemory => Self::NotEnoughMemory { left: mrs[0] },
            label => Self::Unknown { label },
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidArgument { arg } => write!(f, "argument {arg} is invalid"),
            Self::InvalidCapability { cap } => write!(f, "capability {cap} is invalid"),
            Self::IllegalOperation => f.write_str("the operation is not allowed now"),
            Self::RangeError { min, max } => write!(f, "a value is outside of {min:#x}..={max:#x}"),
            Self::AlignmentError => f.write_str("a value is not aligned"),
            Self::FailedLookup { source, failure } => {
                write!(
                    f,
                    "lookup of the {} failed: {failure}",
                    if *source { "source" } else { "destination" }
                )
            }
            Self::TruncatedMessage => f.write_str("the message is too short"),
            Self::DeleteFirst => f.write_str("the destination is occupied"),
            Self::RevokeFirst => f.write_str("the object has children"),
            Self::NotEnoughMemory { left } => write!(f, "not enough memory: {left} bytes left"),
            Self::Unknown { label } => write!(f, "unknown error {label}"),
        }
    }
}

impl fmt::Display for LookupFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidRoot => f.write_str("the root is none"),
            Self::MissingCapability { bits_left } => write!(f, "nothing there, {bits_left} bits left"),
            Self::DepthMismatch { bits_left, bits_found } => {
                write!(f, "{bits_left} bits left, but {bits_found} bits found")
            }
            Self::GuardMismatch {
                bits_left,
                guard_found,
                bits_found,
            } => {
                write!(
                    f,
                    "{bits_left} bits left, but guard {guard_found:#x} of {bits_found} bits found"
                )
            }
            Self::Unknown { code } => write!(f, "unknown lookup failure {code}"),
        }
    }
}

impl core::error::Error for Error {}
