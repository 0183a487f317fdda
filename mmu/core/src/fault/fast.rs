// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which faults need no plan? Those that the spte alone answers.

use super::{Class, FaultError, Walk};
use crate::Mmu;
use crate::spte::{Format, Leaf, Spte, Writable};
use crate::stage2::Stage2;
use crate::zap::Cut;
use umbra_mmu_abi::{FaultOutcome, Gpa, Mmio};

/// Faults in a row at one address that is mapped.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spurious {
    gpa: Option<Gpa>,
    times: u32,
}

/// So many of them are no coincidence, however many vCPUs there are.
const LOOPING: u32 = 256;

impl<S: Stage2> Mmu<S> {
    /// Answers the fault without the slow path, if that can be done.
    // REQ: PF-1, GEN-4
    #[inline(never)]
    pub(super) fn fast(&mut self, walk: &Walk, class: &Class, gpa: Gpa) -> Result<Option<FaultOutcome>, FaultError> {
        match *class {
            Class::Miss => Ok(None),
            Class::MmioCached => Ok(Some(self.emulate(self.mmio(gpa.gfn())))),
            Class::ReadOnlyWrite => {
                let mmio = Mmio {
                    readonly_slot: true,
                    ..self.mmio(gpa.gfn())
                };
                Ok(Some(self.emulate(mmio)))
            }
            Class::Spurious => {
                let times = if self.spurious.gpa == Some(gpa) {
                    self.spurious.times + 1
                } else {
                    1
                };
                self.spurious = Spurious { gpa: Some(gpa), times };
                match times >= LOOPING {
                    true => Err(FaultError::Looping { gpa, times }),
                    false => Ok(Some(self.resume())),
                }
            }
            Class::Restore(leaf) => {
                self.restore(walk, leaf)?;
                Ok(Some(self.resume()))
            }
        }
    }

    /// Makes a leaf present again, and writable as far as its slot is; where that is refused, the leaf
    /// is gone. Hardware has no way to change a mapping in place.
    fn restore(&mut self, walk: &Walk, old: Leaf) -> Result<(), FaultError> {
        let gfn = self.tables.gfn_of(walk.place);
        let slot = self.slots.published().lookup(gfn).expect("a leaf lies in a slot").id;
        let writable = if old.writable == Writable::HostReadOnly {
            old.writable
        } else {
            Writable::Now
        };
        let new = Leaf { writable, ..old };
        let mut removed = self.stage2.unmap(slot, gfn, &old);
        let mapped = self.stage2.map(slot, gfn, &new);
        match mapped {
            Ok(()) => {
                self.tables.set(walk.place, Spte::leaf(Format::Ept, new));
            }
            Err(_) => {
                // The hardware has neither of them, so the spte and its reverse map go too.
                removed.and(self.drop_leaf(walk.place, Cut::Done));
                removed.and(self.free_if_empty(walk.place.table));
                self.invalidate_seq += 1;
            }
        }
        self.stage2.flush(removed);
        Ok(mapped?)
    }
}
