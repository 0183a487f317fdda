// SPDX-License-Identifier: MIT OR Apache-2.0
//! How does a program write to a 16550 UART through its I/O port capability?

use core::fmt;
use sel4::Result;
use sel4::cap::IOPort;

/// Registers, relative to the base port.
mod register {
    /// Data; divisor low byte while DLAB is set.
    pub const DATA: u16 = 0;
    /// Interrupt enable; divisor high byte while DLAB is set.
    pub const IER: u16 = 1;
    /// FIFO control.
    pub const FCR: u16 = 2;
    /// Line control.
    pub const LCR: u16 = 3;
    /// Modem control.
    pub const MCR: u16 = 4;
    /// Line status.
    pub const LSR: u16 = 5;
}

/// 8 data bits, no parity, one stop bit.
const LCR_8N1: u8 = 3;
const LCR_DLAB: u8 = 0x80;
/// Enable and clear both FIFOs.
const FCR_RESET: u8 = 7;
/// DTR, RTS; OUT2 lets the interrupt out.
const MCR_ON: u8 = 0xb;
const LSR_DATA_READY: u8 = 1;
const LSR_TRANSMITTER_EMPTY: u8 = 0x20;
/// Bytes that the transmitter takes at once when it is empty.
const FIFO_SIZE: usize = 16;

/// A UART. Errors of the port capability (it does not cover the port) drop the byte: there is nowhere to report them.
#[derive(Clone, Copy, Debug)]
pub struct Serial {
    port: IOPort,
    base: u16,
}

impl Serial {
    /// The UART at `base` (COM1: 0x3f8, COM2: 0x2f8) behind `port`, as it is set up now.
    pub const fn new(port: IOPort, base: u16) -> Self {
        Self { port, base }
    }

    /// Sets it to 115200 baud, 8N1, FIFOs on, interrupts off. Release kernels leave this to us.
    ///
    /// # Errors
    /// The capability does not cover the ports.
    pub fn init(&self) -> Result<()> {
        self.write(register::IER, 0)?;
        self.write(register::LCR, LCR_DLAB)?;
        self.write(register::DATA, 1)?;
        self.write(register::IER, 0)?;
        self.write(register::LCR, LCR_8N1)?;
        self.write(register::FCR, FCR_RESET)?;
        self.write(register::MCR, MCR_ON)
    }

    /// Writes bytes as they are, in pieces of the FIFO's size: each byte costs one system call.
    pub fn write_bytes(&self, bytes: &[u8]) {
        for piece in bytes.chunks(FIFO_SIZE) {
            self.wait_empty();
            for byte in piece {
                // Dropped on error, see above.
                let _ = self.write(register::DATA, *byte);
            }
        }
    }

    /// Waits until everything written has left the FIFO.
    pub fn flush(&self) {
        self.wait_empty();
    }

    /// A byte that has arrived.
    pub fn read_byte(&self) -> Option<u8> {
        let status = self.port.ioport_in8(self.base + register::LSR).ok()?;
        if status & LSR_DATA_READY == 0 {
            return None;
        }
        self.port.ioport_in8(self.base + register::DATA).ok()
    }

    fn wait_empty(&self) {
        // Bounded, so that a UART that is not there does not hang the program: 115200 baud send a FIFO in 1.4 ms.
        for _ in 0..100_000 {
            match self.port.ioport_in8(self.base + register::LSR) {
                Ok(status) if status & LSR_TRANSMITTER_EMPTY == 0 => {}
                Ok(_) | Err(_) => return,
            }
        }
    }

    fn write(&self, register: u16, value: u8) -> Result<()> {
        self.port.ioport_out8(self.base + register, value)
    }
}

impl fmt::Write for Serial {
    /// Line ends become CR LF.
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut first = true;
        for line in text.split('\n') {
            if !first {
                self.write_bytes(b"\r\n");
            }
            first = false;
            if !line.is_empty() {
                self.write_bytes(line.as_bytes());
            }
        }
        Ok(())
    }
}
