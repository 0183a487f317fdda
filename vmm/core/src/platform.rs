// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which device answers at which port, and what the machine as a whole does next.

use crate::{
    device::{
        cmos::Cmos,
        pic::{Chip, PicPair},
        pit::Pit,
        pm::{PM1A_EVENT, PowerManagement, Sleep},
        reset::{KEYBOARD_PULSE_RESET, ResetPorts},
        uart::{Line, Uart},
    },
    time::Ticks,
};
use umbra_mmu_abi::Gpa;

/// The other end of the guest's serial line.
pub trait Console {
    /// Takes a byte that the guest sent.
    fn put(&mut self, byte: u8);
    /// The next byte for the guest, if there is one now.
    fn get(&mut self) -> Option<u8>;
}

/// What the guest asked of the machine as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlatformEvent {
    /// It switched itself off (ACPI S5).
    PowerOff,
    /// It reset itself (0xcf9, port 0x92, keyboard controller).
    Reset,
    /// It wrote to the test-exit port; the status is `(value << 1) | 1`.
    TestExit(u32),
}

/// What differs between machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlatformConfig {
    /// TSC ticks per second; at least 1 000 000.
    pub tsc_hz: u64,
    /// Seconds since 1970 (UTC) at guest TSC 0.
    pub epoch: u64,
    /// RAM in bytes below 4 GiB, for the CMOS.
    pub ram_bytes: u64,
    /// The test-exit port 0xf4 answers.
    pub test_exit: bool,
}

/// Accesses that no device took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AbsentAccesses {
    /// Port accesses.
    pub ports: u64,
    /// Memory-mapped accesses.
    pub mmio: u64,
}

/// A deadline that never comes.
const NEVER: Ticks = Ticks::new(u64::MAX);

const IRQ_TIMER: u8 = 0;
const IRQ_COM1: u8 = 4;
const IRQ_CLOCK: u8 = 8;

/// Port 0x61: gate of timer 2, speaker, parity and channel checks off (kept); refresh and timer 2's OUT (read only).
const CONTROL_GATE2: u8 = 0x01;
const CONTROL_KEPT: u8 = 0x0f;
const CONTROL_REFRESH: u8 = 0x10;
const CONTROL_OUT2: u8 = 0x20;

/// The test-exit port of guest kernel test suites (QEMU's isa-debug-exit).
const TEST_EXIT: u16 = 0xf4;

/// All devices of one virtual machine.
pub struct Platform<C: Console> {
    pic: PicPair,
    uart: Uart,
    pit: Pit,
    cmos: Cmos,
    pm: PowerManagement,
    reset: ResetPorts,
    /// The kept bits of port 0x61.
    control: u8,
    /// Earliest time at which the timer's or the clock's interrupt line rises.
    timer_due: Ticks,
    clock_due: Ticks,
    test_exit: bool,
    console: C,
    absent: AbsentAccesses,
    event: Option<PlatformEvent>,
}

impl<C: Console> Platform<C> {
    /// The machine at power-on.
    pub fn new(config: PlatformConfig, console: C) -> Self {
        let mut platform = Self {
            pic: PicPair::new(),
            uart: Uart::new(),
            pit: Pit::new(config.tsc_hz),
            cmos: Cmos::new(config.tsc_hz, config.epoch, config.ram_bytes),
            pm: PowerManagement::default(),
            reset: ResetPorts::default(),
            control: 0,
            timer_due: NEVER,
            clock_due: NEVER,
            test_exit: config.test_exit,
            console,
            absent: AbsentAccesses::default(),
            event: None,
        };
        platform.pic.set_line(IRQ_TIMER, platform.pit.out0(Ticks::new(0)));
        platform.schedule(Ticks::new(0));
        platform
    }

    /// `IN` of 1, 2 or 4 bytes; the value is in the low bytes, the rest is 0.
    pub fn pio_read(&mut self, now: Ticks, port: u16, size: u8) -> u32 {
        if size == 1
            && let Some(byte) = self.read_port(now, port)
        {
            return byte.into();
        }
        self.read_wide(now, port, size)
    }

    /// `OUT` of 1, 2 or 4 bytes; only the low `size` bytes of `value` count.
    pub fn pio_write(&mut self, now: Ticks, port: u16, size: u8, value: u32) {
        if port == TEST_EXIT && self.test_exit {
            let value = value & all_ones(size) as u32;
            self.event = Some(PlatformEvent::TestExit(value << 1 | 1));
        } else if size == 1 {
            let taken = self.write_port(now, port, value as u8);
            self.absent.ports += u64::from(!taken);
        } else {
            self.write_wide(now, port, size, value);
        }
    }

    #[cold]
    fn write_wide(&mut self, now: Ticks, port: u16, size: u8, value: u32) {
        // The ISA bus splits a wide access into bytes at consecutive ports.
        let bytes = value.to_le_bytes();
        let mut taken = false;
        for (port, &byte) in (port..=u16::MAX).zip(&bytes[..usize::from(size.min(4))]) {
            taken |= self.write_port(now, port, byte);
        }
        self.absent.ports += u64::from(!taken);
    }

    /// A load of 1, 2, 4 or 8 bytes from where no memory is; the value is in the low bytes, the rest is 0.
    pub fn mmio_read(&mut self, _now: Ticks, _gpa: Gpa, size: u8) -> u64 {
        self.absent.mmio += 1;
        all_ones(size)
    }

    /// A store of 1, 2, 4 or 8 bytes to where no memory is.
    pub fn mmio_write(&mut self, _now: Ticks, _gpa: Gpa, _size: u8, _value: u64) {
        self.absent.mmio += 1;
    }

    /// The interrupt controller asks for the processor's attention (its INT output).
    pub fn interrupt_pending(&mut self, now: Ticks) -> bool {
        self.advance(now);
        self.pic.int()
    }

    /// The processor takes the interrupt (an INTA cycle): its vector.
    pub fn acknowledge(&mut self, now: Ticks) -> u8 {
        self.advance(now);
        self.pic.acknowledge()
    }

    /// When `interrupt_pending` may change by time alone, `now` at the earliest; `None`: never.
    pub fn next_deadline(&self, now: Ticks) -> Option<Ticks> {
        let timer = if self.pic.wants_edge(IRQ_TIMER) {
            self.timer_due
        } else {
            NEVER
        };
        let clock = if self.pic.wants_edge(IRQ_CLOCK) {
            self.clock_due
        } else {
            NEVER
        };
        Some(timer.min(clock))
            .filter(|&due| due != NEVER)
            .map(|due| due.max(now))
    }

    /// Brings the interrupt lines to `now`. Other calls do so themselves where it matters.
    pub fn advance(&mut self, now: Ticks) {
        if now >= self.timer_due {
            self.catch_up(now);
        }
        if now >= self.clock_due {
            self.cmos.rtc_mut().sync(now);
            self.drive_clock();
        }
    }

    /// The console may have input.
    pub fn console_input_ready(&mut self, _now: Ticks) {
        let line = self.uart.input_ready(&mut self.console);
        self.drive_com1(line);
    }

    /// What the guest asked for since the last call.
    pub fn take_event(&mut self) -> Option<PlatformEvent> {
        self.event.take()
    }

    /// How many accesses found nothing.
    pub fn absent_accesses(&self) -> AbsentAccesses {
        self.absent
    }

    /// The console.
    pub fn console_mut(&mut self) -> &mut C {
        &mut self.console
    }

    /// `None`: nothing is there.
    #[inline]
    fn read_port(&mut self, now: Ticks, port: u16) -> Option<u8> {
        Some(match port {
            0x3f8..=0x3ff => {
                let byte = self.uart.read(port & 7, &mut self.console);
                self.drive_com1(self.uart.line());
                byte
            }
            0x40..=0x42 => self.pit.read(now, usize::from(port & 3)),
            0x61 => self.read_control(now),
            0x20 | 0x21 | 0xa0 | 0xa1 => self.read_pic(now, port),
            0x71 => {
                let byte = self.cmos.read(now);
                self.drive_clock();
                byte
            }
            0x92 => self.reset.read_92(),
            0x4d0 => self.pic.read_elcr(Chip::First),
            0x4d1 => self.pic.read_elcr(Chip::Second),
            0x600..=0x605 => self.pm.read(port - PM1A_EVENT),
            0xcf9 => self.reset.read_control(),
            _ => return None,
        })
    }

    #[cold]
    fn read_wide(&mut self, now: Ticks, port: u16, size: u8) -> u32 {
        let mut bytes = [0; 4];
        let mut taken = false;
        for (port, byte) in (port..=u16::MAX).zip(&mut bytes[..usize::from(size.min(4))]) {
            let read = self.read_port(now, port);
            taken |= read.is_some();
            *byte = read.unwrap_or(0xff);
        }
        self.absent.ports += u64::from(!taken);
        u32::from_le_bytes(bytes)
    }

    /// `false`: nothing is there.
    #[inline]
    fn write_port(&mut self, now: Ticks, port: u16, value: u8) -> bool {
        match port {
            0x3f8..=0x3ff => {
                let line = self.uart.write(port & 7, value, &mut self.console);
                self.drive_com1(line);
            }
            0x40..=0x43 => self.write_pit(now, port, value),
            0x20 | 0x21 | 0xa0 | 0xa1 => self.write_pic(now, port, value),
            0x61 => {
                self.control = value & CONTROL_KEPT;
                self.pit.set_gate2(now, value & CONTROL_GATE2 != 0);
            }
            0x64 if value == KEYBOARD_PULSE_RESET => self.event = Some(PlatformEvent::Reset),
            0x70 => self.cmos.select(value),
            0x71 => {
                self.cmos.write(now, value);
                self.drive_clock();
            }
            // Diagnostics and DMA pages: written for a delay, or by a driver for hardware that is not there.
            0x80..=0x8f => {}
            0x92 => self.reset_if(|ports| ports.write_92(value)),
            0x4d0 => self.pic.write_elcr(Chip::First, value),
            0x4d1 => self.pic.write_elcr(Chip::Second, value),
            0x600..=0x605 => match self.pm.write(port - PM1A_EVENT, value) {
                Sleep::Stay => {}
                Sleep::Off => self.event = Some(PlatformEvent::PowerOff),
            },
            0xcf9 => self.reset_if(|ports| ports.write_control(value)),
            _ => return false,
        }
        true
    }

    fn reset_if(&mut self, write: impl FnOnce(&mut ResetPorts) -> bool) {
        if write(&mut self.reset) {
            self.event = Some(PlatformEvent::Reset);
        }
    }

    fn read_control(&mut self, now: Ticks) -> u8 {
        let refresh = if self.pit.refresh(now) { CONTROL_REFRESH } else { 0 };
        let out2 = if self.pit.out2(now) { CONTROL_OUT2 } else { 0 };
        self.control | refresh | out2
    }

    fn read_pic(&mut self, now: Ticks, port: u16) -> u8 {
        self.advance(now);
        let chip = chip_at(port);
        if port & 1 == 0 {
            self.pic.read_command(chip)
        } else {
            self.pic.read_data(chip)
        }
    }

    fn write_pic(&mut self, now: Ticks, port: u16, value: u8) {
        self.advance(now);
        let chip = chip_at(port);
        if port & 1 == 0 {
            self.pic.write_command(chip, value)
        } else {
            self.pic.write_data(chip, value)
        }
    }

    fn write_pit(&mut self, now: Ticks, port: u16, value: u8) {
        self.catch_up(now);
        match port & 3 {
            3 => self.pit.write_control(now, value),
            counter => self.pit.write(now, counter.into(), value),
        }
        self.pic.set_line(IRQ_TIMER, self.pit.out0(now));
        self.schedule(now);
    }

    fn drive_com1(&mut self, line: Line) {
        match line {
            Line::Low => self.pic.set_line(IRQ_COM1, false),
            Line::High => self.pic.set_line(IRQ_COM1, true),
            Line::Pulsed => {
                self.pic.set_line(IRQ_COM1, false);
                self.pic.set_line(IRQ_COM1, true);
            }
        }
    }

    fn drive_clock(&mut self) {
        self.pic.set_line(IRQ_CLOCK, self.cmos.rtc().irq());
        self.clock_due = self.cmos.rtc().next_irq().unwrap_or(NEVER);
    }

    /// However many ticks were missed, the timer's line rises once. It stays high until the next rise or the next
    /// programming, so that a tick is not lost to a guest that is slow to take it.
    fn catch_up(&mut self, now: Ticks) {
        if self.pit.take_rise(now) {
            self.pic.set_line(IRQ_TIMER, false);
            self.pic.set_line(IRQ_TIMER, true);
        }
        self.schedule(now);
    }

    fn schedule(&mut self, now: Ticks) {
        self.timer_due = self.pit.next_rise(now).unwrap_or(NEVER);
    }
}

fn chip_at(port: u16) -> Chip {
    if port & 0x80 == 0 { Chip::First } else { Chip::Second }
}

/// What a bus returns where nothing drives it: `size` bytes of ones.
fn all_ones(size: u8) -> u64 {
    match size {
        0 => 0,
        1..8 => (1 << (8 * size)) - 1,
        _ => u64::MAX,
    }
}

#[cfg(test)]
#[path = "platform_tests.rs"]
mod tests;
