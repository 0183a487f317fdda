// SPDX-License-Identifier: MIT OR Apache-2.0
//! How do the verdicts of a root task that tests reach whoever started the machine?
//!
//! One line for each test goes to COM2, then `umbra: done status=S`; then the simulator is switched off.
#![no_std]

extern crate alloc;

pub mod check;
mod ports;
mod ticks;

pub use check::{Check, good, same};
pub use ports::Ports;
pub use ticks::{ticks, ticks_after, timestamp};

use core::fmt::{Arguments, Display};
use sel4_root_task::logger;

/// Prints verdicts and counts failures.
pub struct Report {
    ports: Ports,
    failed: u32,
}

impl Report {
    /// Sets the serial port up, with the right to all ports that a root task starts with.
    pub fn new() -> Self {
        Self::with_ports(Ports::ALL)
    }

    /// The same with ports that stay when the root task gives up the others. From now on messages of the `log` crate and of
    /// panics go to the port too.
    pub fn with_ports(ports: Ports) -> Self {
        ports.set_up().expect("the root task has the system log's ports");
        logger::init(note, log::LevelFilter::Info);
        Self { ports, failed: 0 }
    }

    /// Runs and judges a test.
    pub fn test(&mut self, name: &str, test: impl FnOnce() -> Check) {
        self.judge(name, test());
    }

    /// The same, but the name is printed first, so that a kernel that hangs tells where.
    pub fn test_announced<W: Display>(&mut self, name: &str, test: impl FnOnce() -> Result<(), W>) {
        announce(name);
        self.verdict(test());
    }

    /// Prints the verdict of a test.
    pub fn judge<W: Display>(&mut self, name: impl Display, result: Result<(), W>) {
        announce(name);
        self.verdict(result);
    }

    fn verdict<W: Display>(&mut self, result: Result<(), W>) {
        match result {
            Ok(()) => self.line(format_args!("ok")),
            Err(why) => {
                self.failed += 1;
                self.line(format_args!("FAILED: {why}"));
            }
        }
    }

    /// Says why a test cannot run here.
    pub fn not_run(&self, name: &str, why: &str) {
        self.line(format_args!("test {name} ... not run: {why}"));
    }

    /// Prints something worth knowing.
    pub fn note(&self, text: &str) {
        note(format_args!("{text}"));
    }

    /// Prints a measurement in ticks.
    pub fn measured(&self, name: &str, ticks: u64) {
        self.line(format_args!("bench {name} ticks={ticks}"));
    }

    /// Prints a line as it is.
    pub fn line(&self, text: Arguments<'_>) {
        ports::print(format_args!("{text}\n"));
    }

    /// Prints the verdict and switches the simulator off.
    pub fn finish(self) -> ! {
        let status = u8::from(self.failed != 0);
        self.line(format_args!("umbra: done status={status}"));
        self.ports.switch_off(status)
    }
}

impl Default for Report {
    fn default() -> Self {
        Self::new()
    }
}

fn announce(name: impl Display) {
    ports::print(format_args!("test {name} ... "));
}

/// A message, on a line of its own even if a test's name waits for its verdict.
fn note(text: Arguments<'_>) {
    let end = if ports::line_is_open() { "\n" } else { "" };
    ports::print(format_args!("{end}umbra: {text}\n"));
}
