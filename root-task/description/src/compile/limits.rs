// SPDX-License-Identifier: MIT OR Apache-2.0
//! How large things in a `system.toml` may be.

use crate::layout;

/// Most VMs.
pub const MAX_VMS: usize = 16;
/// Most slots of a VM.
pub const MAX_SLOTS: usize = 32;
/// Most multiboot modules of a VM.
pub const MAX_MODULES: usize = 16;
/// Longest name of a VM or component, in bytes.
pub const MAX_NAME: usize = 32;
/// Longest command line, in bytes.
pub const MAX_CMDLINE: usize = 2047;
/// First guest-physical address that a VM cannot have: its RAM window in the vmm ends there.
pub const GPA_LIMIT: u64 = layout::PAYLOAD_WINDOW - layout::RAM_WINDOW;
/// Largest `memory`: RAM from 0 stays below the addresses of a PC's devices.
pub const MAX_MEMORY: u64 = 0xc000_0000;
/// Smallest `memory`: anything above the first MiB.
pub const MIN_MEMORY: u64 = 2 << 20;
/// Stacks of components, in bytes.
pub const STACK: (u64, u64) = (4 << 10, 1 << 20);
/// Heaps of components, in bytes.
pub const HEAP: (u64, u64) = (4 << 10, 128 << 20);
/// Memory for EPT objects of a VM, in bytes.
pub const TABLE_MEMORY: (u64, u64) = (64 << 10, 64 << 20);
/// The MMIO generation has 19 bits.
pub const MAX_GENERATION: u64 = (1 << 19) - 1;
/// Priorities of components: the root task has 255, the idle thread 0.
pub const PRIORITY: (u64, u64) = (1, 254);
/// Largest payload, in bytes.
pub const MAX_PAYLOAD: u64 = 1 << 30;
