// SPDX-License-Identifier: MIT OR Apache-2.0
//! What does a processor remember of its walks? Everything, until it is told to forget; or less, as it pleases.
//!
//! SDM vol. 3, section 4.10. The TLB keeps each translation at its full size, so that one page of a large page brings the
//! whole into it. The paging-structure caches keep what leads to each table. Both are without limit: a processor may
//! forget at any time ([`Forgetful`]), but nobody may rely on it.

use super::paging::{Allowed, PagingMode};
use super::walk::{Below, StructureCaches};
use alloc::collections::BTreeMap;

/// A translation in the TLB. With an EPT below it is a combined mapping (section 29.4.1): both translations in one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cached {
    /// The host address of the first byte of this part of the page.
    pub host: u64,
    /// log2 of the bytes of this part: the smaller of the page of the tables and that of the EPT.
    pub shift: u32,
    /// log2 of the bytes of the page that the tables map.
    pub page_shift: u32,
    /// What the tables allow.
    pub allowed: Allowed,
    /// The dirty flag was set.
    pub dirty: bool,
    /// The EPT allows writes.
    pub writable_below: bool,
    /// A global page: a load of CR3 leaves it.
    pub global: bool,
}

/// A processor that forgets at random; the same for the same seed.
#[derive(Clone, Copy, Debug)]
pub struct Forgetful {
    state: u64,
    one_in: u32,
}

impl Forgetful {
    /// Forgets one in `one_in` entries that it looks for, and now and then everything.
    pub const fn new(seed: u64, one_in: u32) -> Self {
        // Xorshift stays at 0 for ever.
        let state = if seed == 0 { 1 } else { seed };
        Self { state, one_in }
    }

    fn next(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }
}

/// Sizes of the parts that the TLB keeps, largest first: 1G, 2M, 4K. A 4M page is two parts.
const SHIFTS: [u32; 3] = [30, 21, 12];

/// The caches of one processor.
#[derive(Debug, Default)]
pub struct Tlb {
    /// By size and linear page number.
    pages: [BTreeMap<u64, Cached>; 3],
    /// By level of the entry, from 2, and the part of the linear address above what is under one entry.
    structures: [BTreeMap<u64, Below>; 4],
    forgetful: Option<Forgetful>,
}

impl Tlb {
    /// Empty; what it forgets by itself is up to `forgetful`.
    pub fn new(forgetful: Option<Forgetful>) -> Self {
        Self {
            forgetful,
            ..Self::default()
        }
    }

    /// Translations in it.
    pub fn len(&self) -> usize {
        self.pages.iter().map(BTreeMap::len).sum()
    }

    /// Whether it holds no translations.
    pub fn is_empty(&self) -> bool {
        self.pages.iter().all(BTreeMap::is_empty)
    }

    /// The translation of `gva`, if it is known.
    pub fn lookup(&mut self, gva: u64) -> Option<Cached> {
        self.forget(gva);
        let mut found = SHIFTS.iter().zip(&self.pages);
        found.find_map(|(shift, pages)| pages.get(&(gva >> shift)).copied())
    }

    /// Keeps a translation of `gva`, instead of any that it has.
    pub fn insert(&mut self, gva: u64, cached: Cached) {
        self.remove(gva);
        let at = SHIFTS.iter().position(|shift| *shift == cached.shift);
        let at = at.unwrap_or_else(|| panic!("no part of a page has 1 << {} bytes", cached.shift));
        self.pages[at].insert(gva >> cached.shift, cached);
    }

    /// Forgets the translations of `gva` itself.
    pub fn remove(&mut self, gva: u64) {
        for (shift, pages) in SHIFTS.iter().zip(&mut self.pages) {
            pages.remove(&(gva >> shift));
        }
    }

    /// INVLPG: every part of the page that `gva` is in, global or not, and the whole of the paging-structure caches.
    pub fn invlpg(&mut self, gva: u64) {
        self.forget_structures();
        self.forget_page(gva);
    }

    /// INVVPID of one address: the same parts, and of the paging-structure caches what leads to them.
    pub fn invvpid(&mut self, gva: u64, mode: PagingMode) {
        self.faulted(gva, mode);
        self.forget_page(gva);
    }

    fn forget_page(&mut self, gva: u64) {
        self.remove(gva);
        for page_shift in [21, 22, 30] {
            let first = gva >> page_shift << page_shift;
            for (shift, pages) in SHIFTS.iter().zip(&mut self.pages) {
                if *shift >= page_shift {
                    continue;
                }
                let parts = first >> shift..(first >> shift) + (1 << (page_shift - shift));
                while let Some(part) = first_of(pages, parts.clone(), page_shift) {
                    pages.remove(&part);
                }
            }
        }
    }

    /// A page fault, or an EPT violation, at `gva`: what was used to translate it (the end of section 4.10.4.1).
    pub fn faulted(&mut self, gva: u64, mode: PagingMode) {
        self.remove(gva);
        for level in 2..=5 {
            self.structures[level as usize - 2].remove(&(gva >> mode.shift(level)));
        }
    }

    /// A load of CR3: all but global pages, and the whole of the paging-structure caches.
    pub fn load_cr3(&mut self) {
        self.forget_structures();
        for pages in &mut self.pages {
            pages.retain(|_, cached| cached.global);
        }
    }

    /// Everything.
    pub fn flush(&mut self) {
        self.forget_structures();
        self.pages.iter_mut().for_each(BTreeMap::clear);
    }

    fn forget_structures(&mut self) {
        self.structures.iter_mut().for_each(BTreeMap::clear);
    }

    fn forget(&mut self, gva: u64) {
        let Some(forgetful) = &mut self.forgetful else {
            return;
        };
        let dice = forgetful.next();
        if !dice.is_multiple_of(forgetful.one_in as u64) {
            return;
        }
        match dice >> 32 & 15 {
            0 => self.flush(),
            1..6 => self.forget_structures(),
            _ => self.remove(gva),
        }
    }
}

/// The first part of a page of `1 << page_shift` bytes among `parts`.
fn first_of(pages: &BTreeMap<u64, Cached>, parts: core::ops::Range<u64>, page_shift: u32) -> Option<u64> {
    let mut of_page = pages.range(parts).filter(|(_, cached)| cached.page_shift == page_shift);
    of_page.next().map(|(part, _)| *part)
}

impl StructureCaches for Tlb {
    fn lookup(&mut self, gva: u64, mode: PagingMode) -> Option<(u8, Below)> {
        (2..=mode.top()).find_map(|level| {
            let below = self.structures[level as usize - 2].get(&(gva >> mode.shift(level)))?;
            Some((level - 1, *below))
        })
    }

    fn fill(&mut self, gva: u64, mode: PagingMode, level: u8, below: Below) {
        self.structures[level as usize - 2].insert(gva >> mode.shift(level), below);
    }
}
