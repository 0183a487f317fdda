// SPDX-License-Identifier: MIT OR Apache-2.0
//! Does the MMU keep its promises however its threads interleave? Models of races, run on the code itself.
//!
//! ```text
//! cargo test -p umbra-races --features loom      # parts of the MMU; every interleaving, weak memory
//! cargo test -p umbra-races --features shuttle   # the whole MMU; all interleavings with few preemptions
//! ```
//! A model is a closure that makes its world, starts two or three threads, and asserts what has to be true in the end.
//! It is run again and again, each time with another interleaving. `tests/mutations` shows of each model that it fails
//! when what it guards is taken away.

#[cfg(feature = "shuttle")]
pub mod preempt;

/// Runs `model` in every interleaving with at most `preemptions` switches that no thread asked for.
#[cfg(feature = "loom")]
pub fn explore(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 20_000;
    builder.check(model);
}

/// Runs `model` in every interleaving in which the `stopped` threads are preempted once at most; for each of those in
/// `more` with one preemption more.
#[cfg(all(feature = "shuttle", not(feature = "loom")))]
pub fn explore(stopped: preempt::Stopped, more: usize, model: impl Fn() + Sync + Send + 'static) {
    let scheduler = preempt::Preemptions::new(stopped, 1, more);
    let runs = scheduler.runs.clone();
    let mut config = shuttle::Config::new();
    config.stack_size = 0x2_0000;
    config.silence_warnings = true;
    // Runs are in a fixed order, so a failure comes again.
    config.failure_persistence = shuttle::FailurePersistence::None;
    config.max_steps = shuttle::MaxSteps::FailAfter(1_000_000);
    shuttle::Runner::new(scheduler, config).run(model);
    let runs = *runs.lock().unwrap();
    println!("{runs} interleavings");
}
