// SPDX-License-Identifier: MIT OR Apache-2.0
//! What does the guest's serial port answer? A 16550A whose line is infinitely fast.
//!
//! Written after the PC16550D data sheet (National Semiconductor, 1995). A character is sent the moment it is written,
//! and the four character times of the receiver's time-out are over at once. The receiver takes a character from
//! the console only when it has room: nothing overruns.

use crate::platform::Console;

const FIFO_SIZE: usize = 16;

/// Interrupt enable bits.
mod ier {
    pub const RECEIVED: u8 = 0x01;
    pub const THR_EMPTY: u8 = 0x02;
    pub const LINE_STATUS: u8 = 0x04;
    pub const MODEM_STATUS: u8 = 0x08;
    pub const ALL: u8 = 0x0f;
}

/// Interrupt identification, in the order of priority.
mod iir {
    pub const LINE_STATUS: u8 = 0x06;
    pub const RECEIVED: u8 = 0x04;
    pub const TIMEOUT: u8 = 0x0c;
    pub const THR_EMPTY: u8 = 0x02;
    pub const MODEM_STATUS: u8 = 0x00;
    pub const NONE: u8 = 0x01;
    pub const FIFO_ENABLED: u8 = 0xc0;
}

/// Line control: the divisor latch is at offsets 0 and 1.
const LCR_DLAB: u8 = 0x80;
/// Line control: send a break.
const LCR_BREAK: u8 = 0x40;
/// Line status: data ready, overrun, break, transmitter empty (holding register, shift register).
const LSR_READY: u8 = 0x01;
const LSR_OVERRUN: u8 = 0x02;
const LSR_BREAK: u8 = 0x10;
const LSR_SENT: u8 = 0x60;
/// Modem control: loopback; OUT2 gates the interrupt on a PC.
const MCR_LOOP: u8 = 0x10;
const MCR_OUT2: u8 = 0x08;
/// Modem status of a console that listens: CTS, DSR, DCD.
const MSR_CONNECTED: u8 = 0xb0;

/// What an access did to the interrupt line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// It is low.
    Low,
    /// It is high.
    High,
    /// It fell and rose again: one interrupt ended and another one began.
    Pulsed,
}

/// A 16550A.
#[derive(Clone, Debug)]
pub struct Uart {
    ier: u8,
    lcr: u8,
    mcr: u8,
    scratch: u8,
    divisor: [u8; 2],
    /// Overrun and break; the rest of LSR is computed.
    lsr_errors: u8,
    /// MSR: lines in the high half, what changed since the last read in the low half.
    msr: u8,
    fifo_enabled: bool,
    /// Characters in the receiver FIFO that raise "received data".
    trigger: usize,
    rx: [u8; FIFO_SIZE],
    rx_first: usize,
    rx_len: usize,
    /// The console had more than the receiver could take.
    more: bool,
    thr_empty: bool,
}

impl Default for Uart {
    fn default() -> Self {
        Self::new()
    }
}

impl Uart {
    /// After master reset.
    pub const fn new() -> Self {
        Self {
            ier: 0,
            lcr: 0,
            mcr: 0,
            scratch: 0,
            divisor: [0; 2],
            lsr_errors: 0,
            msr: MSR_CONNECTED,
            fifo_enabled: false,
            trigger: 1,
            rx: [0; FIFO_SIZE],
            rx_first: 0,
            rx_len: 0,
            more: false,
            thr_empty: false,
        }
    }

    /// Reads register `offset` (0-7).
    pub fn read(&mut self, offset: u16, console: &mut impl Console) -> u8 {
        match offset {
            0 if self.dlab() => self.divisor[0],
            0 => self.read_rbr(console),
            1 if self.dlab() => self.divisor[1],
            1 => self.ier,
            2 => self.read_iir(),
            3 => self.lcr,
            4 => self.mcr,
            5 => {
                let lsr = LSR_SENT | self.lsr_errors | if self.rx_len > 0 { LSR_READY } else { 0 };
                self.lsr_errors = 0;
                lsr
            }
            6 => {
                let msr = self.msr;
                self.msr &= 0xf0;
                msr
            }
            _ => self.scratch,
        }
    }

    /// Writes register `offset` (0-7).
    pub fn write(&mut self, offset: u16, value: u8, console: &mut impl Console) -> Line {
        match offset {
            0 if self.dlab() => self.divisor[0] = value,
            0 => return self.write_thr(value, console),
            1 if self.dlab() => self.divisor[1] = value,
            1 => {
                let newly = value & !self.ier;
                self.ier = value & ier::ALL;
                // Enabling the interrupt while the register is empty raises it (it always is).
                self.thr_empty |= newly & ier::THR_EMPTY != 0;
            }
            2 => self.write_fcr(value, console),
            3 => self.write_lcr(value),
            4 => {
                self.mcr = value & 0x1f;
                self.update_msr();
                if !self.looped() {
                    self.fill(console);
                }
            }
            5 | 6 => {} // LSR and MSR are for reading
            _ => self.scratch = value,
        }
        self.line()
    }

    /// The console may have input.
    pub fn input_ready(&mut self, console: &mut impl Console) -> Line {
        self.more = true;
        self.fill(console);
        self.line()
    }

    /// The interrupt line as the PC wires it: through OUT2.
    pub fn line(&self) -> Line {
        let enabled = self.mcr & (MCR_OUT2 | MCR_LOOP) == MCR_OUT2;
        if enabled && self.interrupt() != iir::NONE {
            Line::High
        } else {
            Line::Low
        }
    }

    fn dlab(&self) -> bool {
        self.lcr & LCR_DLAB != 0
    }

    fn looped(&self) -> bool {
        self.mcr & MCR_LOOP != 0
    }

    fn capacity(&self) -> usize {
        if self.fifo_enabled { FIFO_SIZE } else { 1 }
    }

    /// The pending interrupt of highest priority.
    fn interrupt(&self) -> u8 {
        if self.ier == 0 {
            return iir::NONE;
        }
        if self.ier & ier::LINE_STATUS != 0 && self.lsr_errors != 0 {
            return iir::LINE_STATUS;
        }
        if self.ier & ier::RECEIVED != 0 && self.rx_len > 0 {
            return if self.rx_len >= self.trigger {
                iir::RECEIVED
            } else {
                iir::TIMEOUT
            };
        }
        if self.ier & ier::THR_EMPTY != 0 && self.thr_empty {
            return iir::THR_EMPTY;
        }
        if self.ier & ier::MODEM_STATUS != 0 && self.msr & 0x0f != 0 {
            return iir::MODEM_STATUS;
        }
        iir::NONE
    }

    fn read_iir(&mut self) -> u8 {
        let id = self.interrupt();
        if id == iir::THR_EMPTY {
            self.thr_empty = false;
        }
        id | if self.fifo_enabled { iir::FIFO_ENABLED } else { 0 }
    }

    fn read_rbr(&mut self, console: &mut impl Console) -> u8 {
        let byte = self.rx[self.rx_first];
        if self.rx_len > 0 {
            self.rx_first = (self.rx_first + 1) % FIFO_SIZE;
            self.rx_len -= 1;
            if self.rx_len == 0 && self.more {
                self.fill(console);
            }
        }
        byte
    }

    fn write_thr(&mut self, value: u8, console: &mut impl Console) -> Line {
        self.thr_empty = false;
        let between = self.line();
        if self.looped() {
            self.receive(value);
        } else {
            console.put(value);
        }
        self.thr_empty = true;
        match (between, self.line()) {
            (Line::Low, Line::High) => Line::Pulsed,
            (_, after) => after,
        }
    }

    fn write_fcr(&mut self, value: u8, console: &mut impl Console) {
        let enable = value & 0x01 != 0;
        // Bits 1 and 2 clear a FIFO; so does changing between FIFO and character mode.
        if value & 0x02 != 0 && enable || enable != self.fifo_enabled {
            self.rx_len = 0;
        }
        if value & 0x04 != 0 && enable || enable != self.fifo_enabled {
            self.thr_empty = true;
        }
        self.fifo_enabled = enable;
        self.trigger = if enable {
            [1, 4, 8, 14][usize::from(value >> 6)]
        } else {
            1
        };
        if self.more && self.rx_len < self.capacity() {
            self.fill(console);
        }
    }

    fn write_lcr(&mut self, value: u8) {
        let starts_break = value & !self.lcr & LCR_BREAK != 0;
        self.lcr = value;
        if starts_break && self.looped() {
            self.receive(0);
            self.lsr_errors |= LSR_BREAK;
        }
    }

    /// Modem lines come from the console, or in loopback from our own outputs.
    fn update_msr(&mut self) {
        let lines = if self.looped() {
            let [dtr, rts, out1, out2] = [0, 1, 2, 3].map(|bit| (self.mcr >> bit) & 1);
            rts << 4 | dtr << 5 | out1 << 6 | out2 << 7
        } else {
            MSR_CONNECTED
        };
        let changed = (self.msr ^ lines) >> 4;
        // The ring indicator reports its trailing edge only.
        let ring_rose = changed & 0x4 != 0 && lines & 0x40 != 0;
        let changed = if ring_rose { changed & !0x4 } else { changed };
        self.msr = lines | (self.msr & 0x0f) | changed;
    }

    fn receive(&mut self, byte: u8) {
        if self.rx_len == self.capacity() {
            self.lsr_errors |= LSR_OVERRUN;
            if !self.fifo_enabled {
                self.rx[self.rx_first] = byte; // character mode: the older character is lost
            }
            return;
        }
        self.rx[(self.rx_first + self.rx_len) % FIFO_SIZE] = byte;
        self.rx_len += 1;
    }

    fn fill(&mut self, console: &mut impl Console) {
        while self.more && !self.looped() && self.rx_len < self.capacity() {
            match console.get() {
                Some(byte) => self.receive(byte),
                None => self.more = false,
            }
        }
    }
}

#[cfg(test)]
#[path = "uart_tests.rs"]
mod tests;
