// SPDX-License-Identifier: MIT OR Apache-2.0
//! Why a guest image could not be loaded: which part of which file, and where.

use crate::guest_mem::Unbacked;
use core::fmt;

/// A part of an image file, or a thing in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The kernel file as a whole.
    Kernel,
    /// The setup header of a bzImage.
    SetupHeader,
    /// The part of a bzImage behind its setup sectors.
    ProtectedModeKernel,
    /// The memory that a bzImage unpacks itself into.
    UnpackedKernel,
    /// The ELF header.
    ElfHeader,
    /// A program header, by number.
    ProgramHeader(usize),
    /// The content of a program header, by number.
    Segment(usize),
    /// A note in the content of a program header, by the header's number.
    Note(usize),
    /// The multiboot header.
    MultibootHeader,
    /// The image that a multiboot header's address fields describe.
    MultibootImage,
    /// The initial RAM disk.
    Initrd,
    /// A module, by number.
    Module(usize),
    /// A command line.
    CommandLine,
    /// Tables that the loader makes for the kernel.
    BootData,
    /// The interrupt vectors and the data area of a PC's firmware.
    FirmwareData,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel => f.write_str("kernel"),
            Self::SetupHeader => f.write_str("kernel: setup header"),
            Self::ProtectedModeKernel => f.write_str("kernel: protected-mode part"),
            Self::UnpackedKernel => f.write_str("kernel: unpacked"),
            Self::ElfHeader => f.write_str("kernel: ELF header"),
            Self::ProgramHeader(n) => write!(f, "kernel: program header {n}"),
            Self::Segment(n) => write!(f, "kernel: segment {n}"),
            Self::Note(n) => write!(f, "kernel: note in segment {n}"),
            Self::MultibootHeader => f.write_str("kernel: multiboot header"),
            Self::MultibootImage => f.write_str("kernel: multiboot image"),
            Self::Initrd => f.write_str("initrd"),
            Self::Module(n) => write!(f, "module {n}"),
            Self::CommandLine => f.write_str("command line"),
            Self::BootData => f.write_str("boot tables"),
            Self::FirmwareData => f.write_str("firmware data"),
        }
    }
}

/// Why a guest cannot be booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadError {
    /// Neither bzImage, ELF nor multiboot.
    UnknownFormat {
        /// The file's first bytes.
        start: [u8; 4],
        /// What the file seems to be instead.
        looks_like: Option<&'static str>,
    },
    /// A file without content.
    Empty {
        /// Which.
        part: Part,
    },
    /// The file ends inside a part.
    Truncated {
        /// Which part.
        part: Part,
        /// Its offset in the file.
        offset: u64,
        /// Its length in bytes.
        len: u64,
        /// Length of the file.
        file_len: u64,
    },
    /// A field has a value that cannot be.
    BadField {
        /// The part that has the field.
        part: Part,
        /// Offset of the field in the file.
        offset: u64,
        /// What is wrong.
        what: &'static str,
        /// The value.
        value: u64,
    },
    /// Memory is wanted where the guest has no RAM, and more RAM would not help.
    OutsideRam {
        /// What for.
        part: Part,
        /// First address.
        base: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Two things want the same memory.
    Overlap {
        /// The later one.
        part: Part,
        /// The earlier one.
        with: Part,
        /// First address of the later one.
        base: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// RAM must reach further.
    TooLittleMemory {
        /// What did not fit.
        part: Part,
        /// Where RAM must end at least, in bytes.
        need: u64,
        /// Where it ends.
        have: u64,
    },
    /// No free RAM of that length is left below an address that the kernel or the firmware interface demands.
    NoRoomBelow {
        /// What for.
        part: Part,
        /// Its length in bytes.
        len: u64,
        /// The limit.
        limit: u64,
    },
    /// The command line is longer than the kernel takes.
    CommandLineTooLong {
        /// Its length in bytes.
        len: u64,
        /// What the kernel takes.
        max: u64,
    },
    /// A command line has a zero byte inside.
    CommandLineHasNul {
        /// Where, in bytes.
        at: u64,
    },
    /// This kernel format has no modules.
    NoModules,
    /// Guest memory refused an access although its regions cover it.
    Memory(Unbacked),
}

impl From<Unbacked> for LoadError {
    fn from(refused: Unbacked) -> Self {
        Self::Memory(refused)
    }
}

/// Bytes in MiB, for people.
struct Mib(u64);

impl fmt::Display for Mib {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.0.div_ceil(1 << 20))
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownFormat { start, looks_like } => {
                write!(
                    f,
                    "kernel: unknown format: bzImage, ELF or multiboot 1 wanted, the file starts with"
                )?;
                for byte in start {
                    write!(f, " {byte:02x}")?;
                }
                match looks_like {
                    Some(kind) => write!(f, " ({kind})"),
                    None => Ok(()),
                }
            }
            Self::Empty { part } => write!(f, "{part}: the file is empty"),
            Self::Truncated {
                part,
                offset,
                len,
                file_len,
            } => {
                write!(
                    f,
                    "{part}: truncated: {len:#x} bytes at offset {offset:#x}, the file ends at {file_len:#x}"
                )
            }
            Self::BadField {
                part,
                offset,
                what,
                value,
            } => {
                write!(f, "{part}: {what}: {value:#x} at offset {offset:#x}")
            }
            Self::OutsideRam { part, base, len } => {
                write!(
                    f,
                    "{part}: wants {len:#x} bytes at {base:#x}, where the guest has no RAM"
                )
            }
            Self::Overlap { part, with, base, len } => {
                write!(f, "{part}: wants {len:#x} bytes at {base:#x}, which overlaps {with}")
            }
            Self::TooLittleMemory { part, need, have } => {
                write!(
                    f,
                    "{part}: too little memory: {} needed, {} given",
                    Mib(*need),
                    Mib(*have)
                )
            }
            Self::NoRoomBelow { part, len, limit } => {
                write!(f, "{part}: no room for {len:#x} bytes below {limit:#x}")
            }
            Self::CommandLineTooLong { len, max } => {
                write!(f, "command line: {len} bytes, the kernel takes {max}")
            }
            Self::CommandLineHasNul { at } => write!(f, "command line: zero byte at offset {at}"),
            Self::NoModules => f.write_str("module 0: this kernel format takes no modules"),
            Self::Memory(refused) => write!(f, "guest memory: {refused}"),
        }
    }
}

impl core::error::Error for LoadError {}
