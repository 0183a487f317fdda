// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which untyped capability the next object comes from, and at which physical address it will be.
//!
//! The kernel allocates from an untyped by a watermark that only goes up, aligned to the object's size. The pool keeps
//! the same watermark, so it knows before the kernel does what fits and where it lands.

use alloc::vec::Vec;
use core::fmt;

/// log2 of the smallest untyped object, in bytes.
pub const MIN_BITS: u8 = 4;

/// One untyped capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Untyped {
    /// Its slot.
    pub slot: u64,
    /// First physical address.
    pub paddr: u64,
    /// log2 of its size in bytes.
    pub bits: u8,
    /// Memory outside the kernel's window: never cleared, only frames can be made of it.
    pub device: bool,
    /// Bytes from the start that are in use.
    used: u64,
}

/// Objects that one retype creates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Slot of the untyped capability to retype.
    pub untyped: u64,
    /// Physical address of the first object; the others follow.
    pub paddr: u64,
    /// How many objects.
    pub count: u64,
}

/// Why there is no memory for an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exhausted {
    /// No untyped has room for an object of 2^`bits` bytes.
    Memory {
        /// log2 of the object's size.
        bits: u8,
        /// Bytes free in all untypeds together, in pieces that are too small.
        free: u64,
    },
    /// No device untyped holds this range, or another object took it.
    Device {
        /// First physical address asked for.
        paddr: u64,
        /// log2 of the object's size.
        bits: u8,
    },
}

impl fmt::Display for Exhausted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory { bits, free } => {
                write!(
                    f,
                    "out of memory: no room for an object of 2^{bits} bytes; {free:#x} bytes free in small pieces"
                )
            }
            Self::Device { paddr, bits } => {
                write!(
                    f,
                    "no free device memory of 2^{bits} bytes at physical address {paddr:#x}"
                )
            }
        }
    }
}

impl core::error::Error for Exhausted {}

impl Untyped {
    /// An untyped from which nothing was made yet.
    pub const fn new(slot: u64, paddr: u64, bits: u8, device: bool) -> Self {
        Self {
            slot,
            paddr,
            bits,
            device,
            used: 0,
        }
    }

    /// Bytes above the watermark.
    pub const fn free(&self) -> u64 {
        (1 << self.bits) - self.used
    }

    /// Offset of the next object of 2^`bits` bytes, and how many fit from there.
    const fn fit(&self, bits: u8) -> (u64, u64) {
        if bits > self.bits {
            return (0, 0);
        }
        // An untyped is aligned to its size, so alignment of the offset is alignment of the address.
        let start = self.used.next_multiple_of(1 << bits);
        (start, ((1 << self.bits) - start) >> bits)
    }
}

/// All untyped capabilities of a task.
#[derive(Clone, Debug, Default)]
pub struct Pool {
    list: Vec<Untyped>,
}

impl Pool {
    /// A pool of these capabilities.
    pub fn new(untypeds: impl IntoIterator<Item = Untyped>) -> Self {
        Self {
            list: untypeds.into_iter().collect(),
        }
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Untyped> {
        self.list.iter()
    }

    /// Bytes of ordinary memory that are free.
    pub fn free(&self) -> u64 {
        self.list.iter().filter(|u| !u.device).map(Untyped::free).sum()
    }

    /// Room for up to `count` objects of 2^`bits` bytes, side by side: all of them from the fullest untyped that holds
    /// them; else as many as the emptiest one holds.
    pub fn take(&mut self, bits: u8, count: u64) -> Result<Run, Exhausted> {
        let candidates = self.list.iter_mut().filter(|u| !u.device && u.fit(bits).1 > 0);
        // The best is the one with the fewest objects to spare; of those that hold too few, the one that holds most.
        let best = candidates.min_by_key(|u| {
            let fits = u.fit(bits).1;
            if fits >= count {
                (0, u.free())
            } else {
                (1, u64::MAX - fits)
            }
        });
        let Some(untyped) = best else {
            return Err(Exhausted::Memory {
                bits,
                free: self.free(),
            });
        };
        let (start, fits) = untyped.fit(bits);
        let count = count.min(fits);
        untyped.used = start + (count << bits);
        Ok(Run {
            untyped: untyped.slot,
            paddr: untyped.paddr + start,
            count,
        })
    }

    /// The device memory at `paddr`, which must be aligned to its size.
    ///
    /// The watermark can only go up: `skipped` is called with the sizes (log2) of untyped objects that must be made of the
    /// same untyped first, in this order, to reach `paddr`.
    pub fn take_device(&mut self, paddr: u64, bits: u8, mut skipped: impl FnMut(u8)) -> Result<Run, Exhausted> {
        let refused = Exhausted::Device { paddr, bits };
        let size = 1u64 << bits;
        if !paddr.is_multiple_of(size) {
            return Err(refused);
        }
        let holds = |u: &&mut Untyped| {
            u.device && paddr >= u.paddr + u.used && paddr - u.paddr <= (1 << u.bits) - size && bits <= u.bits
        };
        let untyped = self.list.iter_mut().find(holds).ok_or(refused)?;
        let target = paddr - untyped.paddr;
        while untyped.used < target {
            let aligned = if untyped.used == 0 {
                63
            } else {
                untyped.used.trailing_zeros()
            };
            let bits = aligned.min((target - untyped.used).ilog2());
            if bits < u32::from(MIN_BITS) {
                return Err(refused);
            }
            skipped(bits as u8);
            untyped.used += 1 << bits;
        }
        untyped.used = target + size;
        Ok(Run {
            untyped: untyped.slot,
            paddr,
            count: 1,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{vec, vec::Vec};

    fn pool(list: &[(u64, u64, u8, bool)]) -> Pool {
        Pool::new(
            list.iter()
                .map(|&(slot, paddr, bits, device)| Untyped::new(slot, paddr, bits, device)),
        )
    }

    #[test]
    fn the_smallest_untyped_that_holds_everything_is_used() {
        let mut pool = pool(&[
            (1, 0x100_0000, 24, false),
            (2, 0x1000, 12, false),
            (3, 0x1_0000, 16, false),
        ]);
        assert_eq!(
            pool.take(12, 1),
            Ok(Run {
                untyped: 2,
                paddr: 0x1000,
                count: 1
            })
        );
        assert_eq!(
            pool.take(12, 16),
            Ok(Run {
                untyped: 3,
                paddr: 0x1_0000,
                count: 16
            })
        );
        assert_eq!(
            pool.take(12, 1),
            Ok(Run {
                untyped: 1,
                paddr: 0x100_0000,
                count: 1
            })
        );
    }

    #[test]
    fn objects_are_aligned_to_their_size() {
        let mut pool = pool(&[(1, 0x100_0000, 24, false)]);
        pool.take(4, 1).unwrap();
        assert_eq!(pool.take(12, 1).unwrap().paddr, 0x100_1000);
        assert_eq!(pool.take(21, 1).unwrap().paddr, 0x120_0000);
        assert_eq!(pool.take(4, 1).unwrap().paddr, 0x140_0000);
        assert_eq!(
            pool.take(21, 9),
            Ok(Run {
                untyped: 1,
                paddr: 0x160_0000,
                count: 5
            })
        );
    }

    #[test]
    fn a_run_that_fits_nowhere_is_begun_where_most_fits() {
        let mut pool = pool(&[(1, 0x10_0000, 20, false), (2, 0x20_0000, 21, false)]);
        assert_eq!(
            pool.take(12, 1000),
            Ok(Run {
                untyped: 2,
                paddr: 0x20_0000,
                count: 512
            })
        );
        assert_eq!(
            pool.take(12, 488),
            Ok(Run {
                untyped: 1,
                paddr: 0x10_0000,
                count: 256
            })
        );
        assert_eq!(pool.take(12, 232), Err(Exhausted::Memory { bits: 12, free: 0 }));
    }

    #[test]
    fn exhaustion_says_what_is_left() {
        let mut pool = pool(&[(1, 0x1_0000, 16, false), (2, 0, 30, true)]);
        assert_eq!(
            pool.take(21, 1),
            Err(Exhausted::Memory {
                bits: 21,
                free: 0x1_0000
            })
        );
        assert_eq!(
            pool.take(17, 1),
            Err(Exhausted::Memory {
                bits: 17,
                free: 0x1_0000
            })
        );
        assert_eq!(pool.take(16, 2).unwrap().count, 1);
        assert_eq!(pool.take(4, 1), Err(Exhausted::Memory { bits: 4, free: 0 }));
    }

    #[test]
    fn device_memory_is_found_by_address_and_never_used_for_objects() {
        let mut pool = pool(&[(1, 0x200_0000, 25, true), (2, 0x400_0000, 21, true)]);
        let none = |_| panic!("nothing to skip");
        assert_eq!(pool.take(12, 1), Err(Exhausted::Memory { bits: 12, free: 0 }));
        assert_eq!(
            pool.take_device(0x200_0000, 21, none),
            Ok(Run {
                untyped: 1,
                paddr: 0x200_0000,
                count: 1
            })
        );
        assert_eq!(
            pool.take_device(0x220_0000, 21, none),
            Ok(Run {
                untyped: 1,
                paddr: 0x220_0000,
                count: 1
            })
        );
        assert_eq!(pool.take_device(0x400_0000, 21, none).unwrap().untyped, 2);
        // Taken, unaligned, not there, larger than what is there.
        for (paddr, bits) in [
            (0x200_0000, 21),
            (0x240_1000, 21),
            (0x500_0000, 12),
            (0x400_0000, 22),
            (0x600_0000, 12),
        ] {
            assert_eq!(
                pool.take_device(paddr, bits, none),
                Err(Exhausted::Device { paddr, bits })
            );
        }
    }

    #[test]
    fn skipping_makes_aligned_pieces_up_to_the_target() {
        let mut pool = pool(&[(1, 0x200_0000, 25, true)]);
        pool.take_device(0x200_0000, 12, |_| panic!()).unwrap();
        let mut skipped = vec![];
        let run = pool.take_device(0x260_0000, 21, |bits| skipped.push(bits)).unwrap();
        assert_eq!(run.paddr, 0x260_0000);
        // 0x1000 up to 0x200000 in growing pieces, then one of 4 MiB.
        let expected: Vec<u8> = (12..21).chain([22 - 1, 22 - 1]).collect();
        let total: u64 = skipped.iter().map(|b| 1u64 << b).sum();
        assert_eq!(total, 0x60_0000 - 0x1000);
        assert_eq!(skipped.len(), expected.len() - usize::from(skipped.contains(&22)));
        let mut at = 0x1000u64;
        for bits in skipped {
            assert_eq!(at % (1 << bits), 0);
            at += 1 << bits;
        }
    }

    /// Random requests never overlap, never leave an untyped, and stop only when nothing fits.
    #[test]
    fn random_requests_never_overlap() {
        let mut random = 0x1234_5678_9abc_def1u64;
        let mut next = move |below: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % below
        };
        for _ in 0..200 {
            let list: Vec<_> = (0..1 + next(6))
                .map(|i| (i, (i + 1) << 26, 12 + next(13) as u8, false))
                .collect();
            let mut pool = pool(&list);
            let mut taken: Vec<(u64, u64)> = vec![];
            loop {
                let bits = 4 + next(18) as u8;
                match pool.take(bits, 1 + next(20)) {
                    Ok(run) => {
                        let (start, end) = (run.paddr, run.paddr + (run.count << bits));
                        assert_eq!(start % (1 << bits), 0);
                        let (_, base, size, _) = list[run.untyped as usize];
                        assert!(start >= base && end <= base + (1 << size) && run.count > 0);
                        assert!(taken.iter().all(|&(s, e)| end <= s || start >= e));
                        taken.push((start, end));
                    }
                    Err(_) if bits == 4 => break,
                    Err(_) => {}
                }
            }
            assert_eq!(pool.free(), 0);
        }
    }
}
