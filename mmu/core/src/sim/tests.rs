// SPDX-License-Identifier: MIT OR Apache-2.0
//! Does the simulated processor do what the manual says, and keep what the manual lets it keep?

mod cpu;
mod machine;
mod memory;
mod migration;
mod shadow;
mod stage2;
mod walker;
