// SPDX-License-Identifier: MIT OR Apache-2.0
//! Prints who holds what, and refuses to go on if that is not what the description implies.

use crate::{kernel::Kernel, say};
use alloc::vec::Vec;
use umbra_description::System;
use umbra_root_core::audit::{VmFacts, actual, compare, expect, report, shared};

/// Compares the capabilities and mappings that were handed out with what `policy` implies. False: they differ, and every
/// difference was logged.
pub fn passes(kernel: &Kernel, system: &System, policy: &System, facts: &[VmFacts]) -> bool {
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
    if differences.is_empty() && shared.is_empty() {
        say!("audit ok caps={}", ledger.handed_out());
        return true;
    }
    false
}
