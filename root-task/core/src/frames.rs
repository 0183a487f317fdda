// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which frames a range of addresses is made of: 2M where it is aligned, 4K at both ends.

use umbra_description::{RamPages, Slot};

/// Bytes of a small frame.
pub const SMALL: u64 = 4 << 10;
/// Bytes of a large frame.
pub const LARGE: u64 = 2 << 20;

/// The frames of one range, in the order of addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Frames {
    /// 4K frames before the first 2M frame.
    pub head: u64,
    /// 2M frames.
    pub large: u64,
    /// 4K frames after the last 2M frame.
    pub tail: u64,
}

/// A frame's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Size {
    /// 4 KiB.
    Small,
    /// 2 MiB.
    Large,
}

impl Size {
    /// In bytes.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Small => SMALL,
            Self::Large => LARGE,
        }
    }
}

impl Frames {
    /// The frames of `start..start + len`, both multiples of 4K.
    pub const fn of_range(start: u64, len: u64, pages: RamPages) -> Self {
        let small_only = Self {
            head: len / SMALL,
            large: 0,
            tail: 0,
        };
        match pages {
            RamPages::Small => small_only,
            RamPages::Auto => {
                let first = start.next_multiple_of(LARGE);
                let end = start + len;
                let last = end - end % LARGE;
                if first >= last {
                    return small_only;
                }
                Self {
                    head: (first - start) / SMALL,
                    large: (last - first) / LARGE,
                    tail: (end - last) / SMALL,
                }
            }
        }
    }

    /// The frames of a memory slot.
    pub const fn of_slot(slot: &Slot) -> Self {
        Self::of_range(slot.gpa, slot.len, slot.pages)
    }

    /// The three parts: size and number of frames.
    pub const fn parts(&self) -> [(Size, u64); 3] {
        [
            (Size::Small, self.head),
            (Size::Large, self.large),
            (Size::Small, self.tail),
        ]
    }

    /// How many frames.
    pub const fn count(&self) -> u64 {
        self.head + self.large + self.tail
    }

    /// In bytes.
    pub const fn bytes(&self) -> u64 {
        (self.head + self.tail) * SMALL + self.large * LARGE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(head: u64, large: u64, tail: u64) -> Frames {
        Frames { head, large, tail }
    }

    #[test]
    fn large_frames_are_used_where_aligned() {
        let auto = |start, len| Frames::of_range(start, len, RamPages::Auto);
        assert_eq!(auto(0, 0xa_0000), frames(160, 0, 0));
        assert_eq!(auto(0x10_0000, 127 << 20), frames(256, 63, 0));
        assert_eq!(auto(0, 2 << 20), frames(0, 1, 0));
        assert_eq!(auto(0x1f_f000, 0x20_2000), frames(1, 1, 1));
        assert_eq!(auto(0x20_1000, 0x20_0000), frames(512, 0, 0));
        assert_eq!(Frames::of_range(0, 4 << 20, RamPages::Small), frames(1024, 0, 0));
    }

    #[test]
    fn every_range_is_covered_exactly() {
        for start in (0..0x60_0000).step_by(0x3_3000) {
            for len in (0x1000..0x90_0000).step_by(0x5_5000) {
                for pages in [RamPages::Auto, RamPages::Small] {
                    let frames = Frames::of_range(start, len, pages);
                    assert_eq!(frames.bytes(), len);
                    if frames.large > 0 {
                        assert_eq!((start + frames.head * SMALL) % LARGE, 0);
                        assert!(frames.head < 512 && frames.tail < 512);
                    }
                }
            }
        }
    }
}
