// SPDX-License-Identifier: MIT OR Apache-2.0
//! What does the guest see of an access in the end? The processor and the MMU take turns until it is done.
//!
//! A vCPU here is a processor and what the MMU keeps for it. Each can have a thread of its own; they share the MMU.

mod ept;
mod shadow;

pub use ept::EptVcpu;
pub use shadow::ShadowVcpu;

use super::cpu::Operation;
use super::paging::Access;
use crate::fault::{ErrorCode, FaultError, HostFault};
use umbra_mmu_abi::Mmio;

/// Faults of one access, one after another, after which no progress is to be expected. A page of tables can be missing at
/// each level of both translations, and each may have to be made writable once more.
const FAULTS: u32 = 64;

/// How an access, or the load of a register, ended for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It happened; the value of a read.
    Done(u64),
    /// The guest's own page fault.
    PageFault {
        /// For CR2.
        cr2: u64,
        /// What the processor pushes.
        code: ErrorCode,
    },
    /// The guest's own general protection fault.
    GeneralProtection,
    /// No memory is there: the VMM emulates it.
    Emulate(Mmio),
    /// The owner of the frame has to do something first.
    Host(HostFault),
    /// The MMU wants it tried again, every time: the host is changing this memory.
    Stuck,
}

/// What a guest does with memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Where.
    pub gva: u64,
    /// Who, and with which rights.
    pub access: Access,
    /// What is moved.
    pub operation: Operation,
}

/// What the MMU made of a fault.
enum Next {
    Again,
    Ended(Ended),
}

/// Runs `attempt` until it has ended.
fn until_done(mut attempt: impl FnMut() -> Result<Next, FaultError>) -> Result<Ended, FaultError> {
    for _ in 0..FAULTS {
        match attempt()? {
            Next::Again => {}
            Next::Ended(ended) => return Ok(ended),
        }
    }
    Ok(Ended::Stuck)
}
