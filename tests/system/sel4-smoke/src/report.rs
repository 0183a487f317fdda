// SPDX-License-Identifier: MIT OR Apache-2.0
//! How does the outside learn what happened?

use core::fmt::{self, Write};
use sel4::init_thread::slot;
use sel4_root_task::{Serial, logger};

/// COM2, the system log.
const SYSTEM_LOG: u16 = 0x2f8;

/// The outcome of one check inside a test.
pub type Check = Result<(), alloc::string::String>;

/// Prints verdicts and counts failures.
pub struct Report {
    failed: u32,
}

fn print(text: fmt::Arguments<'_>) {
    let mut serial = Serial::new(slot::IO_PORT, SYSTEM_LOG);
    // The serial port drops what it cannot send.
    let _ = writeln!(serial, "{text}");
    serial.flush();
}

fn print_log(text: fmt::Arguments<'_>) {
    print(format_args!("umbra: {text}"));
}

impl Report {
    /// Sets the serial port up.
    pub fn new() -> Self {
        Serial::new(slot::IO_PORT, SYSTEM_LOG)
            .init()
            .expect("the root task has all ports");
        logger::init(print_log, log::LevelFilter::Info);
        Self { failed: 0 }
    }

    /// Runs and judges one test.
    pub fn test(&mut self, name: &str, test: impl FnOnce() -> Check) {
        match test() {
            Ok(()) => print(format_args!("test {name} ... ok")),
            Err(why) => {
                self.failed += 1;
                print(format_args!("test {name} ... FAILED: {why}"));
            }
        }
    }

    /// Prints a measurement in ticks.
    pub fn measured(&self, name: &str, ticks: u64) {
        print(format_args!("bench {name} ticks={ticks}"));
    }

    /// Prints the verdict and switches the simulator off.
    pub fn finish(self) -> ! {
        print(format_args!("umbra: done status={}", u32::from(self.failed != 0)));
        let ports = slot::IO_PORT;
        // Bochs: a word on its own port. QEMU: sleep state 5 in the power management register.
        for byte in b"Shutdown" {
            let _ = ports.ioport_out8(0x8900, *byte);
        }
        let _ = ports.ioport_out16(0x604, 0x2000);
        loop {
            sel4::yield_();
        }
    }
}

/// An error unless `found` is `wanted`.
pub fn expect<T: PartialEq + fmt::Debug>(what: &str, found: T, wanted: T) -> Check {
    if found == wanted {
        Ok(())
    } else {
        Err(alloc::format!("{what}: {found:?} instead of {wanted:?}"))
    }
}

/// An error if the kernel refused.
pub fn allowed<T>(what: &str, result: sel4::Result<T>) -> Result<T, alloc::string::String> {
    result.map_err(|error| alloc::format!("{what}: {error}"))
}

/// Ticks that `f` takes: the least of several runs.
pub fn ticks(f: impl FnMut()) -> u64 {
    ticks_after(|| {}, f)
}

/// Ticks that `f` takes, each time after `before`.
pub fn ticks_after(mut before: impl FnMut(), mut f: impl FnMut()) -> u64 {
    let mut least = u64::MAX;
    for _ in 0..16 {
        before();
        let start = timestamp();
        f();
        least = least.min(timestamp() - start);
    }
    least
}

fn timestamp() -> u64 {
    // SAFETY: reads a counter, which user programs may.
    unsafe { core::arch::x86_64::_rdtsc() }
}
