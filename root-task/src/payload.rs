// SPDX-License-Identifier: MIT OR Apache-2.0
//! How guest images that the loader left in RAM get into each vmm: device memory, mapped read-only, never copied.

use crate::{
    failure::Failure,
    kernel::{Kernel, Space},
    untyped::Frame,
};
use alloc::vec::Vec;
use umbra_description::{Payload, RamPages, layout};
use umbra_root_core::frames::{Frames, SMALL};

/// The payload's frames, for any number of vmms.
pub struct Window {
    frames: Vec<Frame>,
    mapped: bool,
}

impl Window {
    /// Takes the payload's memory: 2M frames where aligned.
    pub fn new(kernel: &mut Kernel, payload: Option<Payload>) -> Result<Self, Failure> {
        let mut frames = Vec::new();
        if let Some(Payload { paddr, len }) = payload {
            let mut at = paddr;
            for (size, count) in Frames::of_range(paddr, len.next_multiple_of(SMALL), RamPages::Auto).parts() {
                for _ in 0..count {
                    frames.push(kernel.alloc_device_frame(at, size)?);
                    at += size.bytes();
                }
            }
        }
        Ok(Self { frames, mapped: false })
    }

    /// Maps it at `layout::PAYLOAD_WINDOW`.
    pub fn map(&mut self, kernel: &mut Kernel, space: &Space) -> Result<(), Failure> {
        let mut vaddr = layout::PAYLOAD_WINDOW;
        for &frame in &self.frames {
            let frame = if self.mapped { kernel.duplicate(frame)? } else { frame };
            kernel.map(frame, space, vaddr, false)?;
            vaddr += frame.size.bytes();
        }
        self.mapped = true;
        Ok(())
    }
}
