// SPDX-License-Identifier: MIT OR Apache-2.0
//! How requests and replies travel: a label and at most four words, refused unless they mean exactly one thing.
//!
//! Label 0 means nothing on purpose: an empty message is never a request and never a reply.

use crate::{
    Access, Backing, BackingId, FaultOutcome, GENERATION_BITS, GPA_BITS, Generation, Gfn, Gpa, Mmio, Reply, Request,
    SlotError, SlotFlags, SlotId, Stat,
};
use core::fmt;

/// Words that travel in registers.
pub const MAX_WORDS: usize = 4;

/// A message as it is on the wire: anything may be in it until it is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Message {
    /// The message label: the kind.
    pub label: u64,
    /// How many of `words` were sent; more than [`MAX_WORDS`] never decodes.
    pub len: usize,
    /// The words; those from `len` on are zero.
    pub words: [u64; MAX_WORDS],
}

/// Why a message is not a request or reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// No such kind.
    Label(u64),
    /// The kind has another number of words.
    Length {
        /// The kind.
        label: u64,
        /// Words that came.
        len: usize,
    },
    /// A word has a value, or a bit, that means nothing.
    Word {
        /// The kind.
        label: u64,
        /// Which word.
        index: usize,
        /// Its value.
        value: u64,
    },
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Label(label) => write!(f, "no message has label {label}"),
            Self::Length { label, len } => write!(f, "message {label} with {len} words"),
            Self::Word { label, index, value } => write!(f, "message {label}: word {index} is {value:#x}"),
        }
    }
}

impl core::error::Error for Malformed {}

mod label {
    pub const FAULT: u64 = 1;
    pub const SET_SLOT: u64 = 2;
    pub const ZAP_ALL: u64 = 3;
    pub const AUDIT: u64 = 4;
    pub const STAT: u64 = 5;

    pub const RESUME: u64 = 1;
    pub const EMULATE: u64 = 2;
    pub const CHANGED: u64 = 3;
    pub const REFUSED: u64 = 4;
    pub const AUDITED: u64 = 5;
    pub const VALUE: u64 = 6;
    pub const FAILED: u64 = 7;
}

impl Message {
    /// A message of `words.len()` words.
    const fn of<const N: usize>(label: u64, words: [u64; N]) -> Self {
        let mut all = [0; MAX_WORDS];
        let mut i = 0;
        while i < N {
            all[i] = words[i];
            i += 1;
        }
        Self {
            label,
            len: N,
            words: all,
        }
    }

    fn words<const N: usize>(&self) -> Result<[u64; N], Malformed> {
        match self.len == N {
            true => Ok(core::array::from_fn(|i| self.words[i])),
            false => Err(Malformed::Length {
                label: self.label,
                len: self.len,
            }),
        }
    }

    fn bad(&self, index: usize) -> Malformed {
        Malformed::Word {
            label: self.label,
            index,
            value: self.words[index],
        }
    }

    /// Word `index` if it is at most `max`.
    fn at_most(&self, index: usize, max: u64) -> Result<u64, Malformed> {
        match self.words[index] <= max {
            true => Ok(self.words[index]),
            false => Err(self.bad(index)),
        }
    }

    fn u32(&self, index: usize) -> Result<u32, Malformed> {
        u32::try_from(self.words[index]).map_err(|_| self.bad(index))
    }

    fn generation(&self, index: usize) -> Result<Generation, Malformed> {
        self.at_most(index, (1 << GENERATION_BITS) - 1)
            .map(|raw| Generation(raw as u32))
    }
}

impl Request {
    /// The request on the wire.
    pub fn encode(&self) -> Message {
        match *self {
            Self::Fault { gpa, access } => Message::of(label::FAULT, [gpa.raw(), access_code(access)]),
            Self::SetSlot {
                id,
                base,
                npages,
                backing,
                flags,
            } => {
                let ids = u64::from(id.0) | u64::from(backing.id.0) << 16 | u64::from(flags.bits()) << 32;
                Message::of(
                    label::SET_SLOT,
                    [ids, base.raw(), npages.into(), backing.first_page.into()],
                )
            }
            Self::ZapAll => Message::of(label::ZAP_ALL, []),
            Self::Audit => Message::of(label::AUDIT, []),
            Self::Stat(stat) => Message::of(label::STAT, [stat as u64]),
        }
    }

    /// What the message asks for. Whether a slot change makes sense is for the MMU to judge; here it is only
    /// readable.
    pub fn decode(message: &Message) -> Result<Self, Malformed> {
        match message.label {
            label::FAULT => {
                let [_, access] = message.words()?;
                let gpa = Gpa::new(message.at_most(0, (1 << GPA_BITS) - 1)?);
                let access = Access::ALL.into_iter().find(|a| access_code(*a) == access);
                Ok(Self::Fault {
                    gpa,
                    access: access.ok_or_else(|| message.bad(1))?,
                })
            }
            label::SET_SLOT => {
                let [ids, base, _, _] = message.words()?;
                let flags = u8::try_from(ids >> 32).ok().and_then(SlotFlags::from_bits);
                Ok(Self::SetSlot {
                    id: SlotId(ids as u16),
                    base: Gfn::new(base),
                    npages: message.u32(2)?,
                    backing: Backing {
                        id: BackingId((ids >> 16) as u16),
                        first_page: message.u32(3)?,
                    },
                    flags: flags.ok_or_else(|| message.bad(0))?,
                })
            }
            label::ZAP_ALL => message.words::<0>().map(|_| Self::ZapAll),
            label::AUDIT => message.words::<0>().map(|_| Self::Audit),
            label::STAT => {
                let [code] = message.words()?;
                let stat = Stat::ALL.into_iter().find(|s| *s as u64 == code);
                stat.map(Self::Stat).ok_or_else(|| message.bad(0))
            }
            other => Err(Malformed::Label(other)),
        }
    }
}

impl Reply {
    /// The reply on the wire.
    pub fn encode(&self) -> Message {
        match *self {
            Self::Fault(FaultOutcome::Resume) => Message::of(label::RESUME, []),
            Self::Fault(FaultOutcome::Emulate(Mmio {
                gfn,
                generation,
                readonly_slot,
            })) => Message::of(label::EMULATE, [gfn.raw(), generation.0.into(), readonly_slot.into()]),
            Self::Changed(generation) => Message::of(label::CHANGED, [generation.0.into()]),
            Self::Refused(error) => Message::of(label::REFUSED, [error as u64]),
            Self::Audited { leaves, differences } => Message::of(label::AUDITED, [leaves.into(), differences.into()]),
            Self::Stat(value) => Message::of(label::VALUE, [value]),
            Self::Failed => Message::of(label::FAILED, []),
        }
    }

    /// What the message says.
    pub fn decode(message: &Message) -> Result<Self, Malformed> {
        match message.label {
            label::RESUME => message.words::<0>().map(|_| Self::Fault(FaultOutcome::Resume)),
            label::EMULATE => {
                message.words::<3>()?;
                Ok(Self::Fault(FaultOutcome::Emulate(Mmio {
                    gfn: Gfn::new(message.at_most(0, (1 << (GPA_BITS - crate::PAGE_SHIFT)) - 1)?),
                    generation: message.generation(1)?,
                    readonly_slot: message.at_most(2, 1)? == 1,
                })))
            }
            label::CHANGED => {
                message.words::<1>()?;
                message.generation(0).map(Self::Changed)
            }
            label::REFUSED => {
                let [code] = message.words()?;
                let error = SlotError::ALL.into_iter().find(|e| *e as u64 == code);
                error.map(Self::Refused).ok_or_else(|| message.bad(0))
            }
            label::AUDITED => {
                message.words::<2>()?;
                Ok(Self::Audited {
                    leaves: message.u32(0)?,
                    differences: message.u32(1)?,
                })
            }
            label::VALUE => message.words().map(|[value]| Self::Stat(value)),
            label::FAILED => message.words::<0>().map(|_| Self::Failed),
            other => Err(Malformed::Label(other)),
        }
    }
}

const fn access_code(access: Access) -> u64 {
    match access {
        Access::Read => 0,
        Access::Write => 1,
        Access::Fetch => 2,
    }
}
