// SPDX-License-Identifier: MIT OR Apache-2.0
//! How the verdicts get out, through ports that stay when the root task has given up all others.

use alloc::string::String;
use core::fmt::{self, Write as _};
use sel4::cap::IOPort;
use sel4_root_task::Serial;
use umbra_root_task::{Failure, Kernel, cspace::CSpace};

/// COM2, the system log.
const SYSTEM_LOG: (u16, u16) = (0x2f8, 0x2ff);
/// Bochs ends when a word was written here.
const BOCHS: (u16, u16) = (0x8900, 0x8900);
/// QEMU's power management: sleep state 5.
const QEMU: (u16, u16) = (0x604, 0x605);

/// The outcome of a test.
pub type Check = Result<(), String>;

/// Prints verdicts and counts failures.
pub struct Report {
    log: Serial,
    off: [IOPort; 2],
    failed: bool,
}

impl Report {
    /// Takes its ports.
    pub fn new(kernel: &mut Kernel) -> Result<Self, Failure> {
        let mut ports = |range| {
            let slot = kernel.slot()?;
            kernel.mint_ports(range, CSpace::ROOT, slot)?;
            Ok::<_, Failure>(IOPort::from_bits(slot))
        };
        let log = Serial::new(ports(SYSTEM_LOG)?, SYSTEM_LOG.0);
        let off = [ports(BOCHS)?, ports(QEMU)?];
        log.init().map_err(Failure::kernel("set up the serial port"))?;
        Ok(Self {
            log,
            off,
            failed: false,
        })
    }

    /// Runs and judges a test.
    pub fn test(&mut self, name: &str, test: impl FnOnce() -> Check) {
        match test() {
            Ok(()) => self.print(format_args!("test {name} ... ok")),
            Err(why) => {
                self.failed = true;
                self.print(format_args!("test {name} ... FAILED: {why}"));
            }
        }
    }

    /// Prints the verdict and switches the simulator off.
    pub fn finish(mut self) -> ! {
        self.print(format_args!("umbra: done status={}", u8::from(self.failed)));
        self.log.flush();
        for byte in b"Shutdown" {
            let _ = self.off[0].ioport_out8(BOCHS.0, *byte);
        }
        let _ = self.off[1].ioport_out16(QEMU.0, 0x2000);
        loop {
            sel4::yield_();
        }
    }

    fn print(&mut self, text: fmt::Arguments<'_>) {
        // The serial port drops what it cannot send.
        let _ = writeln!(self.log, "{text}");
    }
}
