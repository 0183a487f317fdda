// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a component is told at start: postcard in its configuration pages (see `layout`).

use crate::{GuestBoot, SlotKind};
use alloc::{string::String, vec::Vec};
use serde::{Deserialize, Serialize};

/// What an mmu component is told. Its capability slots are those of `layout::mmu`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MmuConfig {
    /// The VM's name, for the log.
    pub vm: String,
    /// Where mappings go.
    pub sink: SinkKind,
    /// First value of the MMIO generation.
    pub first_generation: Option<u32>,
    /// Untyped capabilities for EPT objects: slot and log2 of the size in bytes.
    pub tables: Vec<(u64, u8)>,
    /// Ranges of frames, indexed by `BackingId`.
    pub backings: Vec<MmuBacking>,
    /// Empty slots of the component's CNode: first and how many.
    pub free_slots: (u64, u64),
}

/// Where an mmu component maps frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SinkKind {
    /// EPT objects of a VM.
    Ept,
}

/// One range of guest frames, as capabilities in consecutive slots: `small_head` 4K frames, `large` 2M frames,
/// `small_tail` 4K frames, in the order of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MmuBacking {
    /// First capability slot.
    pub first_slot: u64,
    /// 4K frames before the first 2M frame.
    pub small_head: u32,
    /// 2M frames.
    pub large: u32,
    /// 4K frames after the last 2M frame.
    pub small_tail: u32,
}

/// What a vmm component is told. Its capability slots are those of `layout::vmm`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmmConfig {
    /// The VM's name, for the log.
    pub vm: String,
    /// What to boot.
    pub boot: GuestBoot,
    /// Guest RAM, slot by slot; slot `i` has `SlotId(i)` and `BackingId(i)`.
    pub ram: Vec<VmmRam>,
    /// Length of the payload bundle mapped at `layout::PAYLOAD_WINDOW`; 0: none.
    pub payload_len: u64,
    /// I/O ports of the physical UART behind the guest's; its capability is `layout::vmm::CONSOLE_PORT`.
    pub console_port: Option<u16>,
    /// The test-exit port answers.
    pub test_exit: bool,
    /// Ticks of the time stamp counter per second.
    pub tsc_hz: u64,
    /// What the guest's clock shows at power-on, in seconds since 1970.
    pub epoch: u64,
}

/// A slot of guest RAM, mapped at `layout::RAM_WINDOW + gpa` in the vmm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmmRam {
    /// First guest-physical address.
    pub gpa: u64,
    /// Length in bytes.
    pub len: u64,
    /// RAM or ROM.
    pub kind: SlotKind,
}
