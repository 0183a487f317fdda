// SPDX-License-Identifier: MIT OR Apache-2.0
//! Through which ports does a test say its verdicts, and end the simulator?

use core::fmt::{Arguments, Write};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use sel4::Result;
use sel4::cap::IOPort;
use sel4::init_thread::slot::IO_PORT;
use sel4_root_task::Serial;

/// COM2, the system log.
const SYSTEM_LOG: (u16, u16) = (0x2f8, 0x2ff);
/// Bochs ends when a word was written here.
const BOCHS: (u16, u16) = (0x8900, 0x8900);
/// QEMU's isa-debug-exit.
const QEMU_EXIT: (u16, u16) = (0xf4, 0xf7);
/// QEMU's power management: sleep state 5 ends one that was started without isa-debug-exit.
const QEMU_SLEEP: (u16, u16) = (0x604, 0x605);

/// The capability of the system log's ports: panics print too, and have nothing else to go by.
static LOG: AtomicU64 = AtomicU64::new(0);
/// The last line has no end yet.
static OPEN: AtomicBool = AtomicBool::new(false);

/// Capabilities of all ports that a report needs.
#[derive(Clone, Copy)]
pub struct Ports {
    log: IOPort,
    bochs: IOPort,
    qemu_exit: IOPort,
    qemu_sleep: IOPort,
}

impl Ports {
    /// What a root task starts with.
    pub const ALL: Self = Self {
        log: IO_PORT,
        bochs: IO_PORT,
        qemu_exit: IO_PORT,
        qemu_sleep: IO_PORT,
    };

    /// A capability from `mint` for each range, from its first to its last port.
    ///
    /// # Errors
    /// Those of `mint`.
    pub fn minted<E>(
        mut mint: impl FnMut((u16, u16)) -> core::result::Result<IOPort, E>,
    ) -> core::result::Result<Self, E> {
        Ok(Self {
            log: mint(SYSTEM_LOG)?,
            bochs: mint(BOCHS)?,
            qemu_exit: mint(QEMU_EXIT)?,
            qemu_sleep: mint(QEMU_SLEEP)?,
        })
    }

    /// Sets the serial port up; from now on it takes what is printed.
    pub(crate) fn set_up(&self) -> Result<()> {
        LOG.store(self.log.bits(), Ordering::Relaxed);
        serial().init()
    }

    /// Ends the simulator. Errors are ignored: on another machine nobody listens at these ports.
    pub(crate) fn switch_off(&self, status: u8) -> ! {
        for byte in b"Shutdown" {
            let _ = self.bochs.ioport_out8(BOCHS.0, *byte);
        }
        let _ = self.qemu_exit.ioport_out32(QEMU_EXIT.0, 0x10 | u32::from(status));
        let _ = self.qemu_sleep.ioport_out16(QEMU_SLEEP.0, 0x2000);
        loop {
            sel4::yield_();
        }
    }
}

/// Prints text and waits until it is out.
pub(crate) fn print(text: Arguments<'_>) {
    let mut tail = Tail {
        serial: serial(),
        open: false,
    };
    // A serial port drops what it cannot send.
    let _ = tail.write_fmt(text);
    tail.serial.flush();
    OPEN.store(tail.open, Ordering::Relaxed);
}

/// Whether the last text was no whole line.
pub(crate) fn line_is_open() -> bool {
    OPEN.load(Ordering::Relaxed)
}

fn serial() -> Serial {
    Serial::new(IOPort::from_bits(LOG.load(Ordering::Relaxed)), SYSTEM_LOG.0)
}

/// Remembers how the text ended.
struct Tail {
    serial: Serial,
    open: bool,
}

impl Write for Tail {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        if let Some(last) = text.as_bytes().last() {
            self.open = *last != b'\n';
        }
        self.serial.write_str(text)
    }
}
