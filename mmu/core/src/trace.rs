// SPDX-License-Identifier: MIT OR Apache-2.0
//! What happened lately? A ring of the last events, off until somebody wants it.

use crate::mmio::MmioCheck;
use umbra_mmu_abi::{Generation, Gfn, PageLevel};

/// Something worth seeing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// An MMIO spte was written (KVM: `mark_mmio_spte`).
    MarkMmio {
        /// For this frame.
        gfn: Gfn,
        /// Under this generation.
        generation: Generation,
    },
    /// An MMIO spte was looked at (KVM: `check_mmio_spte`).
    CheckMmio {
        /// Of this frame.
        gfn: Gfn,
        /// The spte's generation.
        spte: Generation,
        /// The slots' generation.
        slots: Generation,
        /// What came out.
        result: MmioCheck,
    },
    /// The generation moved on: every MMIO spte is stale from here.
    InvalidateMmio {
        /// The new number.
        generation: Generation,
    },
    /// The generation wrapped and MMIO sptes were zapped.
    ZapMmio {
        /// Tables that were visited.
        tables: u32,
        /// Sptes that went.
        sptes: u32,
    },
    /// A leaf was mapped.
    Map {
        /// Its first frame.
        gfn: Gfn,
        /// Its size.
        level: PageLevel,
    },
    /// Everything was zapped by generation.
    ZapAll {
        /// The new `mmu_valid_gen`.
        valid_gen: u64,
    },
}

const LENGTH: usize = 64;

/// The ring.
// REQ: GEN-8
#[derive(Default)]
pub struct Trace {
    ring: Option<[Option<Event>; LENGTH]>,
    next: usize,
}

impl Trace {
    /// Starts with an empty ring.
    pub fn start(&mut self) {
        *self = Self {
            ring: Some([None; LENGTH]),
            next: 0,
        };
    }

    /// Stops and forgets.
    pub fn stop(&mut self) {
        *self = Self::default();
    }

    #[inline]
    pub(crate) fn event(&mut self, event: impl FnOnce() -> Event) {
        if let Some(ring) = &mut self.ring {
            ring[self.next % LENGTH] = Some(event());
            self.next += 1;
        }
    }

    /// The events in the ring, oldest first.
    pub fn events(&self) -> impl Iterator<Item = Event> + '_ {
        let ring = self.ring.as_ref().map_or(&[][..], |ring| &ring[..]);
        (0..ring.len()).filter_map(move |i| ring[(self.next + i) % LENGTH])
    }
}
