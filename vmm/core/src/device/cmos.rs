// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is behind ports 0x70 and 0x71? The clock's registers and 114 bytes of memory as firmware fills them.

use super::rtc::{Register, Rtc};
use crate::time::Ticks;

/// Index of the equipment byte: an 80x87, no floppy, no keyboard or display.
const EQUIPMENT: usize = 0x14;
/// Indices of memory sizes: base in KiB; above 1 MiB in KiB (twice); above 16 MiB in 64 KiB.
const BASE_KIB: usize = 0x15;
const EXTENDED_KIB: [usize; 2] = [0x17, 0x30];
const ABOVE_16M: usize = 0x34;

/// The CMOS: a clock and a memory behind an index.
#[derive(Clone, Debug)]
pub struct Cmos {
    index: u8,
    memory: [u8; 128],
    rtc: Rtc,
}

impl Cmos {
    /// With the clock at `epoch` (seconds since 1970) at guest tick 0, in a machine of `ram_bytes` of RAM below 4 GiB.
    pub fn new(tsc_hz: u64, epoch: u64, ram_bytes: u64) -> Self {
        let mut memory = [0; 128];
        memory[EQUIPMENT] = 0x02;
        let mut put = |at: usize, value: u64| {
            let value = value.min(0xffff) as u16;
            memory[at..at + 2].copy_from_slice(&value.to_le_bytes());
        };
        put(BASE_KIB, 640);
        for at in EXTENDED_KIB {
            put(at, ram_bytes.saturating_sub(1 << 20) >> 10);
        }
        put(ABOVE_16M, ram_bytes.saturating_sub(16 << 20) >> 16);
        Self {
            index: 0,
            memory,
            rtc: Rtc::new(tsc_hz, epoch),
        }
    }

    /// Writes port 0x70. Bit 7 masks NMI; there is none.
    pub fn select(&mut self, value: u8) {
        self.index = value & 0x7f;
    }

    /// Reads port 0x71.
    pub fn read(&mut self, now: Ticks) -> u8 {
        match clock_register(self.index) {
            Some(register) => self.rtc.read(now, register),
            None => self.memory[usize::from(self.index)],
        }
    }

    /// Writes port 0x71.
    pub fn write(&mut self, now: Ticks, value: u8) {
        match clock_register(self.index) {
            Some(register) => self.rtc.write(now, register, value),
            None => self.memory[usize::from(self.index)] = value,
        }
    }

    /// The clock.
    pub fn rtc(&self) -> &Rtc {
        &self.rtc
    }

    /// The clock.
    pub fn rtc_mut(&mut self) -> &mut Rtc {
        &mut self.rtc
    }
}

fn clock_register(index: u8) -> Option<Register> {
    Some(match index {
        0x00 => Register::Seconds,
        0x01 => Register::Alarm(0),
        0x02 => Register::Minutes,
        0x03 => Register::Alarm(1),
        0x04 => Register::Hours,
        0x05 => Register::Alarm(2),
        0x06 => Register::Weekday,
        0x07 => Register::Day,
        0x08 => Register::Month,
        0x09 => Register::Year,
        0x0a => Register::A,
        0x0b => Register::B,
        0x0c => Register::C,
        0x0d => Register::D,
        0x32 => Register::Century,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(cmos: &mut Cmos, index: u8) -> u8 {
        cmos.select(index);
        cmos.read(Ticks::new(0))
    }

    #[test]
    fn memory_sizes_are_there() {
        let mut cmos = Cmos::new(1_000_000, 0, 64 << 20);
        let mut word = |at| u16::from_le_bytes([read(&mut cmos, at), read(&mut cmos, at + 1)]);
        assert_eq!((word(0x15), word(0x30), word(0x34)), (640, 63 * 1024, 48 * 16));
    }

    #[test]
    fn large_memory_saturates() {
        let mut cmos = Cmos::new(1_000_000, 0, 3 << 30);
        assert_eq!((read(&mut cmos, 0x30), read(&mut cmos, 0x31)), (0xff, 0xff));
    }

    #[test]
    fn memory_keeps_bytes_and_the_nmi_bit_is_not_part_of_the_index() {
        let mut cmos = Cmos::new(1_000_000, 0, 64 << 20);
        cmos.select(0x8f);
        cmos.write(Ticks::new(0), 0x0a);
        assert_eq!(read(&mut cmos, 0x0f), 0x0a);
        assert_eq!(read(&mut cmos, 0x0d), 0x80);
        assert_eq!(read(&mut cmos, 0x32), 0x19, "1970");
    }
}
