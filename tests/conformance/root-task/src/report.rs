// SPDX-License-Identifier: MIT OR Apache-2.0
//! How does the outside learn what happened?

use core::fmt::{self, Write};
use sel4::init_thread::slot;
use sel4_root_task::{Serial, logger};
use umbra_conformance::Failure;

/// COM2, the system log.
const SYSTEM_LOG: u16 = 0x2f8;

/// Prints verdicts and counts failures.
pub struct Report {
    failed: u32,
}

fn print(text: fmt::Arguments<'_>) {
    let mut serial = Serial::new(slot::IO_PORT, SYSTEM_LOG);
    // A serial port has no errors to report.
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

    /// Prints the verdict of a case.
    pub fn judge(&mut self, sink: &str, name: &str, result: Result<(), Failure>) {
        match result {
            Ok(()) => print(format_args!("test {sink}/{name} ... ok")),
            Err(failure) => {
                self.failed += 1;
                print(format_args!("test {sink}/{name} ... FAILED: {failure}"));
            }
        }
    }

    /// Prints something worth knowing.
    pub fn note(&self, text: &str) {
        print_log(format_args!("{text}"));
    }

    /// Prints a measurement in ticks.
    pub fn measured(&self, name: &str, ticks: u64) {
        print(format_args!("bench {name} ticks={ticks}"));
    }

    /// Prints the verdict and switches the simulator off.
    pub fn finish(self) -> ! {
        print(format_args!("umbra: done status={}", u32::from(self.failed != 0)));
        let ports = slot::IO_PORT;
        // Bochs: a word on its own port. QEMU: its debug exit device, and sleep state 5 in the power management register.
        for byte in b"Shutdown" {
            let _ = ports.ioport_out8(0x8900, *byte);
        }
        let _ = ports.ioport_out32(0xf4, 0x10);
        let _ = ports.ioport_out16(0x604, 0x2000);
        loop {
            sel4::yield_();
        }
    }
}
