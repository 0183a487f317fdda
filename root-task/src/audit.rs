// SPDX-License-Identifier: MIT OR Apache-2.0
//! Prints who holds what, and refuses to go on if that is not what the description implies.

use crate::{failure::Failure, kernel::Kernel, say};
use alloc::{vec, vec::Vec};
use core::fmt;
use umbra_description::System;
use umbra_root_core::{
    audit::{VmFacts, actual, compare, expect, report, shared},
    ledger::Holder,
};

/// Compares the capabilities and mappings that were handed out with what `policy` implies, and the ledger of them with the
/// kernel's own slots. False: they differ, and every difference was logged.
pub fn passes(kernel: &mut Kernel, system: &System, policy: &System, facts: &[VmFacts]) -> bool {
    let unrecorded = unrecorded(kernel);
    let ledger = kernel.ledger();
    let has = actual(ledger);
    for line in report(system, &has) {
        say!("audit {line}");
    }
    let facts: Vec<VmFacts> = facts.iter().copied().take(policy.vms.len()).collect();
    let differences = compare(&has, &expect(policy, &facts));
    for difference in &differences {
        say!("audit FAILED: {}", difference.display(system));
    }
    let shared = shared(ledger);
    for memory in &shared {
        say!("audit FAILED: {}", memory.display(system));
    }
    for place in &unrecorded {
        say!("audit FAILED: {place}");
    }
    if differences.is_empty() && shared.is_empty() && unrecorded.is_empty() {
        say!("audit ok caps={}", ledger.handed_out());
        return true;
    }
    false
}

/// Slots of components where ledger and kernel disagree.
pub fn unrecorded(kernel: &mut Kernel) -> Vec<Unrecorded> {
    let mut found = Vec::new();
    for cspace in kernel.cspaces().to_vec() {
        let count = 1u64 << cspace.bits();
        let mut recorded = vec![false; count as usize];
        let first = cspace.ledger_slot(0);
        for run in kernel.ledger().caps().iter().filter(|run| run.holder == cspace.holder) {
            for slot in run.slot.max(first)..(run.slot + run.count).min(first + count) {
                recorded[(slot - first) as usize] = true;
            }
        }
        for (slot, recorded) in (0..).zip(recorded) {
            let outcome = kernel.is_occupied(cspace, slot);
            if outcome != Ok(recorded) {
                found.push(Unrecorded {
                    holder: cspace.holder,
                    slot,
                    recorded,
                    outcome,
                });
            }
        }
    }
    found
}

/// A slot where ledger and kernel disagree.
#[derive(Clone, Copy, Debug)]
pub struct Unrecorded {
    /// Whose slot.
    pub holder: Holder,
    /// Its number in its CNode.
    pub slot: u64,
    /// The ledger has a capability there.
    pub recorded: bool,
    /// Whether the kernel has one.
    pub outcome: Result<bool, Failure>,
}

impl fmt::Display for Unrecorded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            holder,
            slot,
            recorded,
            outcome,
        } = self;
        match outcome {
            Ok(occupied) => {
                write!(
                    f,
                    "{holder:?} slot {slot}: in the ledger: {recorded}, in the kernel: {occupied}"
                )
            }
            Err(failure) => write!(f, "{holder:?} slot {slot}: {failure}"),
        }
    }
}
