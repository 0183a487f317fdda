// SPDX-License-Identifier: MIT OR Apache-2.0
//! What does a processor remember of an EPT, and how does the guest's memory look through it?
//!
//! SDM vol. 3, section 29.4: guest-physical mappings and the paging-structure caches of the EPT, kept until INVEPT. An
//! EPT violation invalidates what translated the address (29.4.3.1).

use super::cpu::{HostPage, Physical};
use super::memory::SimMemory;
use super::paging::Paging;
use super::stage2::{Entry, ROOT, SimStage2, Violation};
use super::walk::{Memory, Translation};
use crate::slots::GFN_LIMIT;
use crate::stage2::{Frame, GpteSize, GuestAccess, TableHandle, TableLevel};
use alloc::collections::BTreeMap;
use umbra_mmu_abi::{Access, Gfn, Gpa, PageLevel};

/// A leaf of the EPT as a processor remembers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EptPage {
    at: Gfn,
    frame: Frame,
    level: PageLevel,
    access: GuestAccess,
}

impl EptPage {
    /// The frame behind `gfn`, which the leaf covers.
    pub(super) fn frame_at(&self, gfn: Gfn) -> Frame {
        let into = (gfn.raw() - self.at.raw()) as u32;
        let frame = Frame::new(self.frame.backing(), self.frame.page() + into);
        frame.expect("a leaf ends within its backing")
    }

    fn permits(&self, access: Access) -> bool {
        match (access, self.access) {
            (Access::Write, GuestAccess::ReadExec) => false,
            (Access::Read | Access::Fetch, _) | (Access::Write, GuestAccess::All) => true,
        }
    }
}

/// Tables below the root, lowest first: the key of what leads to them is the gfn without what they translate.
const TABLES: [TableLevel; 3] = [TableLevel::Pt, TableLevel::Pd, TableLevel::Pdpt];
const PAGES: [PageLevel; 3] = [PageLevel::G1, PageLevel::M2, PageLevel::K4];

/// What one processor has cached of the EPT.
#[derive(Debug, Default)]
pub struct EptCaches {
    /// By size and first gfn.
    pages: [BTreeMap<Gfn, EptPage>; 3],
    /// By level and first gfn.
    tables: [BTreeMap<Gfn, TableHandle>; 3],
    flushes: u64,
}

impl EptCaches {
    /// As a processor does it: caches first, however old.
    pub(super) fn translate(&mut self, ept: &SimStage2, gpa: Gpa, access: Access) -> Result<EptPage, Violation> {
        if self.flushes != ept.flushes() {
            *self = Self {
                flushes: ept.flushes(),
                ..Self::default()
            };
        }
        let gfn = gpa.gfn();
        if gfn.raw() >= GFN_LIMIT {
            return Err(Violation { gpa, access });
        }
        let mut known = PAGES.iter().zip(&self.pages);
        let known = known.find_map(|(level, pages)| pages.get(&gfn.align_down(*level)).copied());
        match known.or_else(|| self.walk(ept, gfn)) {
            Some(page) if page.permits(access) => Ok(page),
            Some(_) | None => {
                self.forget(gfn);
                Err(Violation { gpa, access })
            }
        }
    }

    fn walk(&mut self, ept: &SimStage2, gfn: Gfn) -> Option<EptPage> {
        let mut known = TABLES.iter().zip(&self.tables);
        let known = known.find_map(|(level, tables)| tables.get(&level.base(gfn)).map(|table| (*level, *table)));
        let (mut level, mut table) = known.unwrap_or((TableLevel::Pml4, ROOT));
        loop {
            match ept.entry(table, gfn)? {
                Entry::Leaf { frame, level, access } => {
                    let at = gfn.align_down(level);
                    let page = EptPage {
                        at,
                        frame,
                        level,
                        access,
                    };
                    let size = PAGES
                        .iter()
                        .position(|size| *size == level)
                        .expect("every size is listed");
                    self.pages[size].insert(at, page);
                    return Some(page);
                }
                Entry::Table(below) => {
                    level = level.below().expect("a page table has no tables below");
                    table = below;
                    let at = TABLES.iter().position(|l| *l == level).expect("every level is listed");
                    self.tables[at].insert(level.base(gfn), below);
                }
            }
        }
    }

    fn forget(&mut self, gfn: Gfn) {
        for (level, pages) in PAGES.iter().zip(&mut self.pages) {
            pages.remove(&gfn.align_down(*level));
        }
        for (level, tables) in TABLES.iter().zip(&mut self.tables) {
            tables.remove(&level.base(gfn));
        }
    }
}

/// The guest's memory as one processor sees it through the EPT: what its walker reads, and where its accesses go.
#[derive(Debug)]
pub struct ThroughEpt<'a> {
    /// The EPT.
    pub ept: &'a SimStage2,
    /// What this processor remembers of it.
    pub caches: &'a mut EptCaches,
}

impl ThroughEpt<'_> {
    fn frame(&mut self, address: u64, access: Access) -> Result<Frame, Violation> {
        let gpa = Gpa::new(address);
        let page = self.caches.translate(self.ept, gpa, access)?;
        let frame = page.frame_at(gpa.gfn());
        let withdrawn = self.ept.memory().is_withdrawn(frame);
        assert!(!withdrawn, "a walk reaches {frame:?}, which the host has withdrawn");
        Ok(frame)
    }
}

/// The walk of the guest's tables: reads, and writes where a flag is to be set (section 29.3.3.2).
impl Memory for ThroughEpt<'_> {
    type Refused = Violation;

    fn read(&mut self, address: u64, size: GpteSize) -> Result<u64, Violation> {
        let frame = self.frame(address, Access::Read)?;
        Ok(self.ept.memory().load(frame, (address & 4095) as u16, size))
    }

    fn compare_exchange(&mut self, address: u64, size: GpteSize, old: u64, new: u64) -> Result<bool, Violation> {
        let frame = self.frame(address, Access::Write)?;
        let offset = (address & 4095) as u16;
        Ok(self
            .ept
            .memory()
            .compare_exchange(frame, offset, size, old, new)
            .is_ok())
    }
}

impl Physical for ThroughEpt<'_> {
    fn flushes(&self) -> u64 {
        self.ept.flushes()
    }

    fn host(&mut self, address: u64, kind: Access) -> Result<HostPage, Violation> {
        let page = self.caches.translate(self.ept, Gpa::new(address), kind)?;
        Ok(HostPage {
            host: self.memory().layout().hfn(page.frame) << 12,
            shift: 12 + page.level.frames().trailing_zeros(),
            writable: page.permits(Access::Write),
        })
    }

    /// The tables are the guest's: when to flush is its own business.
    fn verify(&self, _: &Paging, _: u64, _: &Translation) {}

    fn memory(&self) -> &SimMemory {
        self.ept.memory()
    }
}
