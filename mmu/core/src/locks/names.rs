// SPDX-License-Identifier: MIT OR Apache-2.0
//! What became of each lock, counter and bit that KVM's locking documentation names? `docs/locking.md` says it in words.

use super::{MmuLock, SlotsArchLock, SlotsLock, Srcu};
use crate::invalidate::Invalidations;
use crate::spte::Writable;
use crate::table::Tables;
use crate::vcpu::Vcpu;
use core::any::type_name;

/// What does the same work here.
#[derive(Clone, Copy, Debug)]
pub enum Counterpart {
    /// This type, by its path.
    Type(fn() -> &'static str),
    /// There is nothing to protect.
    Nothing,
}

impl Counterpart {
    /// The type's name without path and parameters.
    pub fn name(self) -> Option<&'static str> {
        match self {
            Self::Type(path) => {
                let path = path().split('<').next()?;
                path.rsplit("::").next()
            }
            Self::Nothing => None,
        }
    }
}

use Counterpart::{Nothing, Type};

/// Every name, in the order of the table in the document.
// REQ: LK-4
pub const COUNTERPARTS: [(&str, Counterpart); 18] = [
    ("kvm_lock", Nothing),
    ("kvm_count_lock", Nothing),
    ("vcpu->mutex", Type(type_name::<Vcpu>)),
    ("slots_lock", Type(type_name::<SlotsLock<()>>)),
    ("slots_arch_lock", Type(type_name::<SlotsArchLock<()>>)),
    ("srcu", Type(type_name::<Srcu<()>>)),
    ("mn_active_invalidate_count", Type(type_name::<Invalidations>)),
    ("mn_invalidate_lock", Type(type_name::<Invalidations>)),
    ("mn_memslots_update_rcuwait", Type(type_name::<Invalidations>)),
    ("mmu_lock", Type(type_name::<MmuLock<()>>)),
    ("tdp_mmu_pages_lock", Type(type_name::<Tables>)),
    ("mmu_unsync_pages_lock", Nothing),
    ("Host-writable", Type(type_name::<Writable>)),
    ("MMU-writable", Type(type_name::<Writable>)),
    ("irq_lock", Nothing),
    ("hv_lock", Nothing),
    ("tsc_write_lock", Nothing),
    ("wakeup_vcpus_on_cpu_lock", Nothing),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    const DOCUMENT: &str = include_str!("../../../../docs/locking.md");

    /// Cells of the table's rows, the first one without its code marks.
    fn rows() -> Vec<Vec<&'static str>> {
        let table = DOCUMENT
            .split("## KVM's names")
            .nth(1)
            .expect("the document has the table");
        let lines = table.lines().skip_while(|line| !line.starts_with("|---"));
        lines
            .skip(1)
            .take_while(|line| line.starts_with('|'))
            .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
            .collect()
    }

    // REQ: LK-4
    #[test]
    fn every_name_of_the_locking_documentation_has_its_row() {
        let rows = rows();
        let names: Vec<_> = rows.iter().map(|row| row[0].trim_matches('`')).collect();
        let wanted: Vec<_> = COUNTERPARTS.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, wanted);
        for (row, (name, counterpart)) in rows.iter().zip(COUNTERPARTS) {
            let [_, here, protects, order] = row[..] else {
                panic!("{name}: {} cells", row.len())
            };
            match counterpart.name() {
                Some(kind) => {
                    assert!(here.contains(kind), "{name}: {kind} is not named");
                    assert!(
                        !protects.is_empty() && !order.is_empty(),
                        "{name}: what, and in which order?"
                    );
                }
                // Why there is none takes more than a word.
                None => assert!(
                    here.starts_with("none") && protects.split_whitespace().count() > 5,
                    "{name}: why is there none?"
                ),
            }
        }
    }
}
