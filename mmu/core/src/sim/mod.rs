// SPDX-License-Identifier: MIT OR Apache-2.0
//! What if the hardware is as strict, and as stale, as the manual permits? A simulated processor with its memory.
//!
//! | question                                      | file         |
//! |-----------------------------------------------|--------------|
//! | what is at a host frame number?               | [`memory`]   |
//! | how does the MMU use it?                      | `mmu_memory` |
//! | what do control registers make of an entry?   | [`paging`]   |
//! | how are tables walked, and flags set in them? | [`walk`]     |
//! | what does a processor remember of its walks?  | [`tlb`]      |
//! | what does it do with an access?               | [`cpu`]      |
//! | what does an EPT hold?                        | `stage2`     |
//! | what does a processor remember of an EPT?     | [`ept`]      |
//! | what does hardware do in shadow mode?         | [`shadow`]   |
//! | what does the guest see of an access?         | [`machine`]  |

pub mod cpu;
pub mod ept;
pub mod machine;
pub mod memory;
mod mmu_memory;
pub mod paging;
pub mod shadow;
mod stage2;
#[cfg(test)]
mod tests;
pub mod tlb;
pub mod walk;

pub use memory::{HostFrame, SimMemory};
pub use mmu_memory::{SimRam, SimWords};
pub use shadow::SimShadow;
pub use stage2::{SimStage2, Violation};
