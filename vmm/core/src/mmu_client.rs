// SPDX-License-Identifier: MIT OR Apache-2.0
//! The vmm's side of the mmu: faults and slot changes over IPC, and a cache that answers repeated MMIO without it.

use core::fmt;
use umbra_mmu_abi::{
    Access, Backing, FaultOutcome, Generation, Gfn, Gpa, Mmio, Reply, Request, SlotError, SlotFlags, SlotId,
};

/// The wire to the mmu component.
pub trait MmuTransport {
    /// The wire broke.
    type Error: fmt::Display + fmt::Debug;
    /// Sends a request and waits for its reply.
    fn call(&mut self, request: Request) -> Result<Reply, Self::Error>;
}

/// The mmu did not do its part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MmuError<E> {
    /// The wire broke.
    Transport(E),
    /// It answered `Failed`; its log says why.
    Failed,
    /// It answered another question.
    Unexpected {
        /// What was asked.
        request: Request,
        /// What came.
        reply: Reply,
    },
    /// It refused a slot.
    Refused(SlotId, SlotError),
}

impl<E: fmt::Display> fmt::Display for MmuError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Transport(e) => write!(f, "cannot reach the mmu: {e}"),
            Self::Failed => f.write_str("the mmu failed; its log says why"),
            Self::Unexpected { request, reply } => write!(f, "the mmu answered {reply:?} to {request:?}"),
            Self::Refused(id, e) => write!(f, "the mmu refused slot {}: {e:?}", id.0),
        }
    }
}

const CACHED: usize = 64;

/// The mmu as the run loop uses it.
pub struct Mmu<T> {
    transport: T,
    /// Direct-mapped by gfn. An entry of another generation is dead.
    cache: [Option<Mmio>; CACHED],
    generation: Generation,
    /// Faults answered by the cache.
    pub cache_hits: u64,
    /// Faults that went over the wire.
    pub calls: u64,
}

impl<T: MmuTransport> Mmu<T> {
    /// A client that knows nothing yet.
    pub fn new(transport: T) -> Self {
        Self {
            transport,
            cache: [None; CACHED],
            generation: Generation(0),
            cache_hits: 0,
            calls: 0,
        }
    }

    /// The wire.
    pub fn transport_mut(&mut self) -> &mut T {
        &mut self.transport
    }

    /// What to do about an EPT violation.
    // REQ: GEN-7
    #[inline]
    pub fn fault(&mut self, gpa: Gpa, access: Access) -> Result<FaultOutcome, MmuError<T::Error>> {
        let gfn = gpa.gfn();
        if let Some(mmio) = &self.cache[slot_of(gfn)]
            && mmio.gfn == gfn
            && mmio.generation == self.generation
            && (!mmio.readonly_slot || access == Access::Write)
        {
            self.cache_hits += 1;
            return Ok(FaultOutcome::Emulate(*mmio));
        }
        self.ask(gpa, access)
    }

    #[cold]
    fn ask(&mut self, gpa: Gpa, access: Access) -> Result<FaultOutcome, MmuError<T::Error>> {
        self.calls += 1;
        let request = Request::Fault { gpa, access };
        match self.transport.call(request).map_err(MmuError::Transport)? {
            Reply::Fault(FaultOutcome::Resume) => Ok(FaultOutcome::Resume),
            Reply::Fault(FaultOutcome::Emulate(mmio)) if mmio.gfn == gpa.gfn() => {
                // The mmu's word on the generation is newer than ours.
                self.generation = mmio.generation;
                self.cache[slot_of(mmio.gfn)] = Some(mmio);
                Ok(FaultOutcome::Emulate(mmio))
            }
            Reply::Failed => Err(MmuError::Failed),
            reply => Err(MmuError::Unexpected { request, reply }),
        }
    }

    /// Creates, moves, re-flags or (with `npages` 0) deletes a memslot. What the cache knew is void afterwards.
    // REQ: GEN-6
    pub fn set_slot(
        &mut self,
        id: SlotId,
        base: Gfn,
        npages: u32,
        backing: Backing,
        flags: SlotFlags,
    ) -> Result<(), MmuError<T::Error>> {
        let request = Request::SetSlot {
            id,
            base,
            npages,
            backing,
            flags,
        };
        // Forgotten before the update, so that nothing survives it even if the answer is lost.
        self.cache = [None; CACHED];
        match self.transport.call(request).map_err(MmuError::Transport)? {
            Reply::Changed(generation) => {
                self.generation = generation;
                Ok(())
            }
            Reply::Refused(why) => Err(MmuError::Refused(id, why)),
            Reply::Failed => Err(MmuError::Failed),
            reply => Err(MmuError::Unexpected { request, reply }),
        }
    }
}

#[inline]
const fn slot_of(gfn: Gfn) -> usize {
    gfn.raw() as usize % CACHED
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{string::String, vec::Vec};

    /// No memory above 16 MiB; a read-only slot in the page before.
    struct Fake {
        generation: u32,
        asked: Vec<Request>,
    }

    impl MmuTransport for Fake {
        type Error = String;
        fn call(&mut self, request: Request) -> Result<Reply, String> {
            self.asked.push(request);
            Ok(match request {
                Request::Fault { gpa, access } => {
                    let rom = gpa.gfn() == Gfn::new(0xfff);
                    let mmio = Mmio {
                        gfn: gpa.gfn(),
                        generation: Generation(self.generation),
                        readonly_slot: rom,
                    };
                    Reply::Fault(if gpa.raw() >= 0x100_0000 || rom && access == Access::Write {
                        FaultOutcome::Emulate(mmio)
                    } else {
                        FaultOutcome::Resume
                    })
                }
                Request::SetSlot { .. } => {
                    self.generation += 1;
                    Reply::Changed(Generation(self.generation))
                }
                _ => Reply::Failed,
            })
        }
    }

    fn client() -> Mmu<Fake> {
        Mmu::new(Fake {
            generation: 0x7fffe,
            asked: Vec::new(),
        })
    }

    fn emulated(m: &mut Mmu<Fake>, gpa: u64, access: Access) -> bool {
        matches!(m.fault(Gpa::new(gpa), access), Ok(FaultOutcome::Emulate(_)))
    }

    // REQ: GEN-7
    #[test]
    fn repeated_mmio_needs_no_call_until_the_slots_change() {
        let mut m = client();
        for offset in [0, 4, 0xfff] {
            assert!(emulated(&mut m, 0xfee0_0000 + offset, Access::Read));
        }
        assert_eq!((m.calls, m.cache_hits), (1, 2));
        let backing = Backing {
            id: umbra_mmu_abi::BackingId(0),
            first_page: 0,
        };
        m.set_slot(SlotId(1), Gfn::new(0x100), 1, backing, SlotFlags::empty())
            .expect("accepted");
        assert!(emulated(&mut m, 0xfee0_0000, Access::Read));
        assert_eq!(m.calls, 2);
    }

    #[test]
    fn an_entry_of_an_older_generation_is_dead() {
        let mut m = client();
        assert!(emulated(&mut m, 0xfee0_0000, Access::Write));
        m.transport.generation += 1;
        assert!(emulated(&mut m, 0xfed0_1000, Access::Write));
        assert!(emulated(&mut m, 0xfee0_0000, Access::Write));
        assert_eq!(m.calls, 3, "the newer answer outdates the older entry");
    }

    // REQ: MEM-5
    #[test]
    fn a_read_of_a_read_only_slot_is_never_answered_by_its_cached_write() {
        let mut m = client();
        assert!(emulated(&mut m, 0xff_f000, Access::Write));
        assert!(!emulated(&mut m, 0xff_f000, Access::Read));
        assert!(emulated(&mut m, 0xff_f000, Access::Write));
        assert_eq!((m.calls, m.cache_hits), (2, 1));
    }

    #[test]
    fn pages_that_share_a_cache_entry_do_not_mix() {
        let mut m = client();
        assert!(emulated(&mut m, 0x100_0000, Access::Read));
        assert!(!emulated(&mut m, 0x100_0000 - 64 * 0x1000, Access::Read));
        assert!(emulated(&mut m, 0x100_0000, Access::Read));
        assert_eq!((m.calls, m.cache_hits), (2, 1));
    }

    #[test]
    fn nonsense_is_an_error_that_shows_both_sides() {
        struct Liar;
        impl MmuTransport for Liar {
            type Error = String;
            fn call(&mut self, _: Request) -> Result<Reply, String> {
                Ok(Reply::Stat(7))
            }
        }
        let e = Mmu::new(Liar)
            .fault(Gpa::new(0x1000), Access::Read)
            .expect_err("refused");
        assert!(std::format!("{e}").contains("Stat(7)"));
    }
}
