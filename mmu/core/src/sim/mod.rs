// SPDX-License-Identifier: MIT OR Apache-2.0
//! What if the hardware is as strict, and as stale, as the manual permits? A simulated processor with its memory.
//!
//! | question                                          | file        |
//! |---------------------------------------------------|-------------|
//! | what is at a host frame number?                   | [`memory`]  |
//! | who uses it, and what may they touch?             | [`users`]   |
//! | what do control registers make of an entry?       | [`paging`]  |
//! | how are tables walked, and flags set in them?     | [`walk`]    |
//! | what does an EPT hold, and what do caches of it?  | `stage2`    |

pub mod memory;
pub mod paging;
mod stage2;
#[cfg(test)]
mod tests;
pub mod users;
pub mod walk;

pub use memory::{HostFrame, SimMemory};
pub use stage2::{SimStage2, Violation};
pub use users::{HostTables, SimRam, SimWords};
