// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is done with arbitrary bytes? One function for each fuzz target.

mod bytes;
mod decode;
mod guest_tables;
mod operations;
mod steps;

/// What is done with an input. It panics when something is wrong.
pub type Target = fn(&[u8]);

/// The targets by name. The fuzzer's programs (cargo-fuzz/) and the replay of the corpora call the same functions.
pub const TARGETS: [(&str, Target); 3] = [
    ("decode", decode::decode),
    ("guest-tables", guest_tables::guest_tables),
    ("operations", operations::operations),
];

/// Runs one target by its name.
pub fn target(name: &str, input: &[u8]) {
    let target = TARGETS.iter().find(|(other, _)| *other == name);
    target.expect("a target of that name").1(input);
}
