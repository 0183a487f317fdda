// SPDX-License-Identifier: MIT OR Apache-2.0
//! Does the MMU keep its promises however its threads interleave? Models of races, run on the code itself.
//!
//! ```text
//! cargo test -p umbra-races --features loom      # parts of the MMU; every interleaving, weak memory
//! cargo test -p umbra-races --features shuttle   # the whole MMU; chosen interleavings, repeatable
//! ```
//! A model is a closure that makes its world, starts two or three threads, and asserts what has to be true in the end.
//! It is run again and again, each time with another interleaving.

/// Runs `model` in every interleaving with at most `preemptions` switches that no thread asked for.
#[cfg(feature = "loom")]
pub fn explore(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 20_000;
    builder.check(model);
}
