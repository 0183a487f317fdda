// SPDX-License-Identifier: MIT OR Apache-2.0
//! Instruction emulation: fetch → decode → find operands → execute, on behalf of a guest that touched a device.
//!
//! A guest fault (`Abort::Fault`) leaves nothing half done; what cannot be emulated is an error that names the instruction.

pub mod alu;
pub mod cpu;
pub mod decode;
pub mod execute;
pub mod guest;
pub mod operand;
pub mod string;
pub mod walk;

use crate::inject::Exception;
use core::fmt;
use umbra_mmu_abi::Gpa;

pub use cpu::{Cpu, Mode};
pub use decode::DecodeCache;
pub use execute::{Step, execute};
pub use guest::{Emulator, Guest, Hint};

/// Default operand and address size of the code segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CodeSize {
    /// Real mode, or a 16-bit segment.
    Bits16,
    /// A 32-bit segment.
    Bits32,
    /// A 64-bit segment.
    Bits64,
}

impl CodeSize {
    /// In bits.
    pub const fn bits(self) -> u32 {
        match self {
            Self::Bits16 => 16,
            Self::Bits32 => 32,
            Self::Bits64 => 64,
        }
    }
}

/// Why an instruction did not complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abort {
    /// The guest is to blame: inject this.
    Fault(Exception),
    /// The emulator does not know the instruction or this form of it.
    Unsupported,
    /// Its bytes are where no RAM is.
    FetchOutsideRam(Gpa),
}

/// Longest instruction, in bytes.
pub const MAX_INSTRUCTION: usize = 15;

/// Instruction bytes as far as they could be fetched.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Code {
    /// The bytes; those from `len` on mean nothing.
    pub bytes: [u8; 16],
    /// How many are valid.
    pub len: u8,
}

impl Code {
    /// None.
    pub const EMPTY: Self = Self { bytes: [0; 16], len: 0 };

    /// The valid ones.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len as usize]
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.len == 0 {
            return f.write_str("(unreadable)");
        }
        for (n, b) in self.as_slice().iter().enumerate() {
            write!(f, "{}{b:02x}", if n == 0 { "" } else { " " })?;
        }
        Ok(())
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{self}]")
    }
}

/// An instruction that could not be emulated: what it was and where.
// REQ: EM-2
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsupported {
    /// `Abort::Unsupported` or `FetchOutsideRam`.
    pub cause: UnsupportedCause,
    /// Where.
    pub rip: u64,
    /// Its bytes.
    pub code: Code,
    /// In which kind of code segment.
    pub size: CodeSize,
}

/// What is unsupported about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnsupportedCause {
    /// The instruction.
    Instruction,
    /// Its place: no RAM there.
    FetchOutsideRam(Gpa),
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cause {
            UnsupportedCause::Instruction => {
                let bits = self.size.bits();
                write!(
                    f,
                    "cannot emulate the instruction [{}] at rip {:#x} ({bits}-bit code)",
                    self.code, self.rip
                )
            }
            UnsupportedCause::FetchOutsideRam(gpa) => {
                write!(
                    f,
                    "the guest executes at rip {:#x}, gpa {gpa}, where no RAM is",
                    self.rip
                )
            }
        }
    }
}

impl core::error::Error for Unsupported {}

#[cfg(test)]
mod tests;
