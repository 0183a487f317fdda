// SPDX-License-Identifier: MIT OR Apache-2.0
//! Does the MMU keep its promises whatever guests, hosts and vmms do, in any order?

use crate::bytes::Bytes;
use crate::steps;
use umbra_model::machine::machine;
use umbra_model::world::World;

/// So many steps of one input at the most.
const STEPS: usize = 300;
/// Audits are so many steps apart.
const AUDIT_EVERY: u64 = 16;

/// A machine in the mode that the first byte says, and one step after the other. Each access is what a processor would make of
/// it, each slot change is accepted or refused as it should be, nothing stays unflushed, and audits find nothing.
pub fn operations(input: &[u8]) {
    let mut bytes = Bytes(input);
    let header = steps::header(steps::mode(&mut bytes));
    let mut world = World::new(&header, machine(&header), AUDIT_EVERY).unwrap_or_else(|failure| panic!("{failure}"));
    for at in 0..STEPS {
        if bytes.is_empty() {
            break;
        }
        let step = steps::step(&mut bytes, &world.guest);
        if let Err(failure) = world.step(&step) {
            panic!("step {at}, {step}: {failure}");
        }
    }
    if let Err(failure) = world.audit() {
        panic!("in the end: {failure}");
    }
}
