// SPDX-License-Identifier: MIT OR Apache-2.0
//! The physical 16550 behind the guest's serial port: the guest does not wait for the line until a long buffer is full.

use alloc::collections::VecDeque;
use sel4::cap;
use umbra_vmm_core::platform::Console;

/// Register offsets and bits (National Semiconductor PC16550D).
mod reg {
    pub const DATA: u16 = 0;
    pub const IER: u16 = 1;
    pub const IIR: u16 = 2;
    pub const FCR: u16 = 2;
    pub const LCR: u16 = 3;
    pub const MCR: u16 = 4;
    pub const LSR: u16 = 5;

    pub const IER_RECEIVED: u8 = 1 << 0;
    pub const IER_TRANSMITTER_EMPTY: u8 = 1 << 1;
    pub const FCR_ENABLE_AND_CLEAR: u8 = 0x07;
    pub const LCR_8N1: u8 = 0x03;
    pub const LCR_DLAB: u8 = 0x80;
    /// DTR, RTS, and OUT2: on a PC it lets the interrupt through.
    pub const MCR_ON: u8 = 0x0b;
    pub const LSR_DATA_READY: u8 = 1 << 0;
    pub const LSR_TRANSMITTER_EMPTY: u8 = 1 << 5;
    pub const IIR_NONE_PENDING: u8 = 1 << 0;
}

/// Bytes that an empty transmitter takes at once.
const FIFO: usize = 16;
/// Attempts to find the UART quiet.
const ROUNDS: usize = 64;
/// Bytes that wait for the line before the guest does; and bytes from the line that wait for the guest, before more are lost
/// as in any receiver that nobody reads.
const WAITING: usize = 16 * 1024;

fn now() -> u64 {
    // SAFETY: RDTSC reads a counter; the kernel lets user programs do so.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// The line, and what waits on either side of it.
pub struct Uart {
    port: cap::IOPort,
    irq: cap::IrqHandler,
    base: u16,
    output: VecDeque<u8>,
    input: VecDeque<u8>,
    /// Bytes that the transmitter takes without being asked.
    room: usize,
    interrupts: u8,
    /// Ticks in which a working line takes something: one second.
    patience: u64,
    /// Bytes that a dead line did not take.
    lost: u64,
}

impl Uart {
    /// Programs the UART: 115200 baud, 8N1, FIFOs on, interrupt on reception.
    ///
    /// # Errors
    /// The capability does not cover the ports.
    pub fn new(port: cap::IOPort, irq: cap::IrqHandler, base: u16, tsc_hz: u64) -> sel4::Result<Self> {
        let uart = Self {
            port,
            irq,
            base,
            output: VecDeque::with_capacity(WAITING),
            input: VecDeque::with_capacity(256),
            room: 0,
            interrupts: reg::IER_RECEIVED,
            patience: tsc_hz,
            lost: 0,
        };
        for (register, value) in [
            (reg::IER, 0),
            (reg::LCR, reg::LCR_DLAB | reg::LCR_8N1),
            (reg::DATA, 1),
            (reg::IER, 0),
            (reg::LCR, reg::LCR_8N1),
            (reg::FCR, reg::FCR_ENABLE_AND_CLEAR),
            (reg::MCR, reg::MCR_ON),
            (reg::IER, reg::IER_RECEIVED),
        ] {
            port.ioport_out8(base + register, value)?;
        }
        irq.irq_handler_ack()?;
        Ok(uart)
    }

    fn read(&self, register: u16) -> u8 {
        // The capability covers all registers: `new` has used it.
        self.port.ioport_in8(self.base + register).unwrap_or(0xff)
    }

    fn write(&self, register: u16, value: u8) {
        let _ = self.port.ioport_out8(self.base + register, value);
    }

    /// Sends what the transmitter takes; asks for an interrupt exactly while something waits.
    fn push(&mut self) {
        while !self.output.is_empty() {
            if self.room == 0 {
                if self.read(reg::LSR) & reg::LSR_TRANSMITTER_EMPTY == 0 {
                    break;
                }
                self.room = FIFO;
            }
            if let Some(byte) = self.output.pop_front() {
                self.write(reg::DATA, byte);
                self.room -= 1;
            }
        }
        let waiting = if self.output.is_empty() {
            0
        } else {
            reg::IER_TRANSMITTER_EMPTY
        };
        let wanted = reg::IER_RECEIVED | waiting;
        if wanted != self.interrupts {
            self.interrupts = wanted;
            self.write(reg::IER, wanted);
        }
    }

    /// Takes what the receiver has, one FIFO at most: `service` comes again.
    fn pull(&mut self) {
        for _ in 0..FIFO {
            if self.read(reg::LSR) & reg::LSR_DATA_READY == 0 {
                return;
            }
            let byte = self.read(reg::DATA);
            if byte == 0xff && self.read(reg::LSR) == 0xff {
                return; // nothing there
            }
            if self.input.len() < WAITING {
                self.input.push_back(byte);
            }
        }
    }

    /// The interrupt came (or may have): moves bytes in both directions until the UART is quiet.
    pub fn service(&mut self) {
        // The interrupt is an edge: one that comes while it is masked, before the acknowledgement, is lost, and another
        // comes only after the request line has been low. So look again after acknowledging.
        for _ in 0..ROUNDS {
            self.pull();
            self.push();
            if self.read(reg::IIR) & reg::IIR_NONE_PENDING == 0 {
                continue;
            }
            let _ = self.irq.irq_handler_ack();
            if self.read(reg::IIR) & reg::IIR_NONE_PENDING != 0 {
                return;
            }
        }
        // A UART that is never quiet is broken or absent; the guest goes on without it.
        let _ = self.irq.irq_handler_ack();
    }

    /// Waits until fewer than `limit` bytes wait. What a line does not take for a second is lost: the guest goes on.
    fn wait_for_room(&mut self, limit: usize) {
        let mut since = now();
        while self.output.len() >= limit {
            let before = self.output.len();
            self.push();
            if self.output.len() < before {
                since = now();
            } else if now().wrapping_sub(since) > self.patience {
                if self.lost == 0 {
                    log::warn!("the serial line takes nothing: output of the guest is lost");
                }
                self.lost += before as u64;
                self.output.clear();
            }
        }
    }

    /// Waits until everything is on the line.
    pub fn drain(&mut self) {
        self.wait_for_room(1);
    }
}

/// The console of a guest.
pub enum GuestConsole {
    /// A physical line.
    Line(Uart),
    /// None: output is dropped.
    Nothing,
}

impl GuestConsole {
    /// See `Uart::service`.
    pub fn service(&mut self) {
        match self {
            Self::Line(uart) => uart.service(),
            Self::Nothing => {}
        }
    }

    /// See `Uart::drain`.
    pub fn drain(&mut self) {
        match self {
            Self::Line(uart) => uart.drain(),
            Self::Nothing => {}
        }
    }
}

impl Console for GuestConsole {
    fn put(&mut self, byte: u8) {
        match self {
            Self::Line(uart) => {
                uart.wait_for_room(WAITING);
                uart.output.push_back(byte);
                // While an interrupt is to come, it carries on.
                if uart.room > 0 || uart.interrupts & reg::IER_TRANSMITTER_EMPTY == 0 {
                    uart.push();
                }
            }
            Self::Nothing => {}
        }
    }

    fn get(&mut self) -> Option<u8> {
        match self {
            Self::Line(uart) => uart.input.pop_front(),
            Self::Nothing => None,
        }
    }
}
