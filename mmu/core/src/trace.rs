// SPDX-License-Identifier: MIT OR Apache-2.0
//! What happened lately? A ring of the last events, off until somebody wants it.

use crate::mmio::MmioCheck;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, Ordering};
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

/// The ring, behind a leaf lock that is taken only while somebody wants events.
// REQ: GEN-8
#[derive(Default)]
pub struct Trace {
    on: AtomicBool,
    ring: Mutex<Ring>,
}

struct Ring {
    events: [Option<Event>; LENGTH],
    next: usize,
}

impl Default for Ring {
    fn default() -> Self {
        Self {
            events: [None; LENGTH],
            next: 0,
        }
    }
}

impl Trace {
    /// Starts with an empty ring.
    pub fn start(&self) {
        *self.ring.lock() = Ring::default();
        self.on.store(true, Ordering::Release);
    }

    /// Stops and forgets.
    pub fn stop(&self) {
        self.on.store(false, Ordering::Release);
        *self.ring.lock() = Ring::default();
    }

    /// Whether somebody wants events.
    #[inline]
    pub(crate) fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn event(&self, event: impl FnOnce() -> Event) {
        if self.on.load(Ordering::Relaxed) {
            self.keep(event());
        }
    }

    #[cold]
    fn keep(&self, event: Event) {
        let mut ring = self.ring.lock();
        let at = ring.next % LENGTH;
        ring.events[at] = Some(event);
        ring.next += 1;
    }

    /// The events in the ring, oldest first.
    pub fn events(&self) -> impl Iterator<Item = Event> {
        let ring = self.ring.lock();
        let (events, next) = (ring.events, ring.next);
        (0..LENGTH).filter_map(move |i| events[(next + i) % LENGTH])
    }
}
