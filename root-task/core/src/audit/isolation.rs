// SPDX-License-Identifier: MIT OR Apache-2.0
//! Is any physical memory within reach of two holders that have nothing to share?
//!
//! Counting capabilities cannot see that a frame was given to the wrong VM; physical addresses can. Two holders may share
//! guest memory if they serve the same VM, and the payload if both only read it. Nothing else is shared.

use super::Area;
use crate::ledger::{Holder, Ledger, Object, Rights};
use alloc::vec::Vec;
use core::fmt;
use umbra_description::System;

/// Memory that two holders reach and should not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shared {
    /// First common physical address.
    pub paddr: u64,
    /// Who reaches it.
    pub holders: (Holder, Holder),
}

impl Shared {
    /// As a sentence.
    pub fn display<'a>(&'a self, system: &'a System) -> impl fmt::Display + 'a {
        let name = |holder| super::Named(system, holder);
        fmt::from_fn(move |f| {
            write!(
                f,
                "{} and {} share memory at {:#x}",
                name(self.holders.0),
                name(self.holders.1),
                self.paddr
            )
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    Private,
    Guest(u16),
    Payload,
}

#[derive(Clone, Copy)]
struct Reach {
    start: u64,
    end: u64,
    holder: Holder,
    writable: bool,
    purpose: Use,
}

impl Reach {
    fn may_share(&self, other: &Self) -> bool {
        match (self.purpose, other.purpose) {
            (Use::Payload, Use::Payload) => !self.writable && !other.writable,
            (Use::Guest(a), Use::Guest(b)) => a == b,
            (Use::Private | Use::Guest(_) | Use::Payload, _) => self.holder == other.holder,
        }
    }
}

/// All memory that is shared and should not be. Capabilities of the root task do not count: it made everything.
pub fn shared(ledger: &Ledger) -> Vec<Shared> {
    let mut all = reaches(ledger);
    all.sort_by_key(|reach| reach.start);
    let mut found = Vec::new();
    let mut open: Vec<Reach> = Vec::new();
    for reach in all {
        open.retain(|earlier| earlier.end > reach.start);
        for earlier in &open {
            if !earlier.may_share(&reach) {
                found.push(Shared {
                    paddr: reach.start,
                    holders: (earlier.holder, reach.holder),
                });
            }
        }
        open.push(reach);
    }
    found
}

fn reaches(ledger: &Ledger) -> Vec<Reach> {
    let mut all = Vec::new();
    for run in ledger.caps().iter().filter(|run| run.holder != Holder::Root) {
        let len = run.cap.object.memory() * run.count;
        if len == 0 {
            continue;
        }
        let purpose = match (run.cap.object, run.holder) {
            (Object::Frame { .. }, Holder::Mmu(vm)) => Use::Guest(vm),
            _ => Use::Private,
        };
        let writable = run.cap.rights.contains(Rights::WRITE);
        all.push(Reach {
            start: run.cap.paddr,
            end: run.cap.paddr + len,
            holder: run.holder,
            writable,
            purpose,
        });
    }
    for mapping in ledger.mappings() {
        let purpose = match (Area::of(mapping.vaddr), mapping.holder) {
            (Area::Guest, Holder::Vmm(vm)) => Use::Guest(vm),
            (Area::Payload, Holder::Vmm(_)) => Use::Payload,
            _ => Use::Private,
        };
        let (start, end) = (mapping.paddr, mapping.paddr + mapping.len);
        all.push(Reach {
            start,
            end,
            holder: mapping.holder,
            writable: mapping.writable,
            purpose,
        });
    }
    all
}
