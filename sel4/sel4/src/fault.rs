// SPDX-License-Identifier: MIT OR Apache-2.0
//! What does the message of a faulting thread say?

use crate::{LookupFailure, Received, Word};
use core::fmt;
use sel4_sys as sys;

/// A thread's fault, as its fault endpoint receives it. An answer with label 0 lets the thread go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A capability that the thread used does not exist.
    Cap {
        /// Instruction.
        ip: Word,
        /// Address of the capability.
        cptr: Word,
        /// Whether it was used for receiving.
        in_receive_phase: bool,
        /// Where the search ended.
        failure: LookupFailure,
    },
    /// A system call number that the kernel does not know.
    UnknownSyscall {
        /// Instruction.
        ip: Word,
        /// Stack pointer.
        sp: Word,
        /// The number.
        number: Word,
    },
    /// A processor exception.
    UserException {
        /// Instruction.
        ip: Word,
        /// Stack pointer.
        sp: Word,
        /// RFLAGS.
        flags: Word,
        /// Vector: 0 divide error, 6 invalid opcode, 13 general protection.
        number: Word,
        /// Error code.
        code: Word,
    },
    /// An address that is not mapped, or not for this access.
    Vm {
        /// Instruction.
        ip: Word,
        /// Address.
        address: Word,
        /// Whether it was the instruction itself.
        instruction: bool,
        /// The processor's page fault error code.
        code: Word,
    },
    /// A label that is no fault of this kernel.
    Unknown {
        /// The label.
        label: Word,
    },
}

impl Fault {
    /// Decodes a message that arrived on a fault endpoint.
    pub fn new(message: &Received) -> Self {
        let word = |index: Word| message.word(index as usize);
        match message.info.label() {
            sys::seL4_Fault_CapFault => Self::Cap {
                ip: word(sys::seL4_CapFault_IP),
                cptr: word(sys::seL4_CapFault_Addr),
                in_receive_phase: word(sys::seL4_CapFault_InRecvPhase) != 0,
                failure: LookupFailure::read(sys::seL4_CapFault_LookupFailureType as usize, |index| {
                    message.word(index)
                }),
            },
            sys::seL4_Fault_UnknownSyscall => Self::UnknownSyscall {
                ip: word(sys::seL4_UnknownSyscall_FaultIP),
                sp: word(sys::seL4_UnknownSyscall_SP),
                number: word(sys::seL4_UnknownSyscall_Syscall),
            },
            sys::seL4_Fault_UserException => Self::UserException {
                ip: word(sys::seL4_UserException_FaultIP),
                sp: word(sys::seL4_UserException_SP),
                flags: word(sys::seL4_UserException_FLAGS),
                number: word(sys::seL4_UserException_Number),
                code: word(sys::seL4_UserException_Code),
            },
            sys::seL4_Fault_VMFault => Self::Vm {
                ip: word(sys::seL4_VMFault_IP),
                address: word(sys::seL4_VMFault_Addr),
                instruction: word(sys::seL4_VMFault_PrefetchFault) != 0,
                code: word(sys::seL4_VMFault_FSR),
            },
            label => Self::Unknown { label },
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cap {
                ip,
                cptr,
                in_receive_phase,
                failure,
            } => {
                let phase = if *in_receive_phase { "receive" } else { "send" };
                write!(f, "capability fault at {ip:#x}: slot {cptr:#x} ({phase}): {failure}")
            }
            Self::UnknownSyscall { ip, sp, number } => {
                write!(f, "unknown system call {number:#x} at {ip:#x}, sp {sp:#x}")
            }
            Self::UserException {
                ip,
                sp,
                flags,
                number,
                code,
            } => {
                write!(
                    f,
                    "exception {number} (code {code:#x}) at {ip:#x}, sp {sp:#x}, flags {flags:#x}"
                )
            }
            Self::Vm {
                ip,
                address,
                instruction,
                code,
            } => {
                let kind = match (instruction, code & 2 != 0) {
                    (true, _) => "instruction fetch from",
                    (false, true) => "write to",
                    (false, false) => "read of",
                };
                write!(f, "page fault at {ip:#x}: {kind} {address:#x} (code {code:#x})")
            }
            Self::Unknown { label } => write!(f, "unknown fault {label}"),
        }
    }
}
