// SPDX-License-Identifier: MIT OR Apache-2.0
//! What time is it for the guest, and which clock interrupts are due? The clock half of an MC146818.
//!
//! Written after the MC146818A data sheet (Motorola, 1984). The clock is computed from the guest's TSC when it is read.

use crate::time::Ticks;
use calendar::Civil;

mod calendar;

/// Register A: update in progress.
const A_UIP: u8 = 0x80;
/// Register B: SET, the interrupt enables, binary mode, 24-hour mode.
const B_SET: u8 = 0x80;
const B_UPDATE: u8 = 0x10;
const B_ALARM: u8 = 0x20;
const B_BINARY: u8 = 0x04;
const B_24H: u8 = 0x02;
/// The interrupt flags of register C, at the places of their enables in B.
const FLAGS: u8 = 0x70;
const C_PERIODIC: u8 = 0x40;
const C_IRQ: u8 = 0x80;
/// Register D: valid RAM and time.
const D_VALID: u8 = 0x80;
/// An alarm field with both top bits set matches everything.
const ALARM_ANY: u8 = 0xc0;
/// UIP rises at least 244 µs before the update.
const UIP_PER_SECOND: u64 = 1_000_000 / 244;

/// A register of the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// Seconds, 0x00.
    Seconds,
    /// Minutes, 0x02.
    Minutes,
    /// Hours, 0x04.
    Hours,
    /// Day of the week, 0x06.
    Weekday,
    /// Day of the month, 0x07.
    Day,
    /// Month, 0x08.
    Month,
    /// Year in the century, 0x09.
    Year,
    /// Century, 0x32.
    Century,
    /// Alarm fields, 0x01 0x03 0x05: 0 seconds, 1 minutes, 2 hours.
    Alarm(usize),
    /// Register A, 0x0a.
    A,
    /// Register B, 0x0b.
    B,
    /// Register C, 0x0c.
    C,
    /// Register D, 0x0d.
    D,
}

/// The clock.
#[derive(Clone, Debug)]
pub struct Rtc {
    tsc_hz: u64,
    /// Seconds since 1970 at guest tick 0 (moves when the guest sets its clock).
    epoch: i64,
    /// While SET: the time registers as software sees and writes them.
    frozen: Option<Civil>,
    a: u8,
    b: u8,
    flags: u8,
    alarm: [u8; 3],
    /// Flags are right up to here.
    synced: Ticks,
}

impl Rtc {
    /// A clock that shows `epoch` (seconds since 1970, UTC) at guest tick 0: BCD, 24 hours, interrupts off.
    pub fn new(tsc_hz: u64, epoch: u64) -> Self {
        Self {
            tsc_hz: tsc_hz.max(1),
            epoch: i64::try_from(epoch).unwrap_or(0),
            frozen: None,
            a: 0x26,
            b: B_24H,
            flags: 0,
            alarm: [0; 3],
            synced: Ticks::new(0),
        }
    }

    /// Reads a register.
    pub fn read(&mut self, now: Ticks, register: Register) -> u8 {
        match register {
            Register::A => self.a | if self.updating(now) { A_UIP } else { 0 },
            Register::B => self.b,
            Register::C => {
                self.sync(now);
                let c = self.flags | if self.irq() { C_IRQ } else { 0 };
                self.flags = 0;
                c
            }
            Register::D => D_VALID,
            Register::Alarm(field) => self.alarm[field],
            field => {
                let civil = self.civil(now);
                self.field(&civil, field)
            }
        }
    }

    /// Writes a register.
    pub fn write(&mut self, now: Ticks, register: Register, value: u8) {
        self.sync(now);
        match register {
            Register::A => self.a = value & !A_UIP,
            Register::B => self.write_b(now, value),
            Register::C | Register::D => {} // for reading
            Register::Alarm(field) => self.alarm[field] = value,
            field => {
                let mut civil = self.civil(now);
                self.set_field(&mut civil, field, value);
                if self.frozen.is_some() {
                    self.frozen = Some(civil);
                } else {
                    self.set(now, &civil);
                }
            }
        }
    }

    /// The interrupt output, as of the last `sync`.
    pub fn irq(&self) -> bool {
        self.flags & self.b & FLAGS != 0
    }

    /// When the interrupt output may rise.
    pub fn next_irq(&self) -> Option<Ticks> {
        if self.irq() {
            return None;
        }
        let period = self
            .period_hz()
            .filter(|_| self.b & C_PERIODIC != 0)
            .map(|hz| self.next_multiple(hz));
        let runs = self.b & B_SET == 0 && self.b & (B_UPDATE | B_ALARM) != 0;
        let second = runs.then(|| self.next_multiple(1));
        period.into_iter().chain(second).min()
    }

    /// Sets the flags of what happened up to `now`.
    pub fn sync(&mut self, now: Ticks) {
        if now <= self.synced {
            return;
        }
        if let Some(hz) = self.period_hz()
            && self.multiples(now, hz) != self.multiples(self.synced, hz)
        {
            self.flags |= C_PERIODIC;
        }
        let (before, after) = (self.unix(self.synced), self.unix(now));
        if before != after && self.b & B_SET == 0 {
            self.flags |= B_UPDATE;
            if self.flags & B_ALARM == 0 && self.alarm_in(before + 1, after) {
                self.flags |= B_ALARM;
            }
        }
        self.synced = now;
    }

    fn unix(&self, now: Ticks) -> i64 {
        self.epoch.saturating_add_unsigned(now.raw() / self.tsc_hz)
    }

    fn civil(&self, now: Ticks) -> Civil {
        self.frozen.unwrap_or_else(|| Civil::from_unix(self.unix(now)))
    }

    fn set(&mut self, now: Ticks, civil: &Civil) {
        self.epoch = civil.to_unix().saturating_sub_unsigned(now.raw() / self.tsc_hz);
    }

    /// The last 244 µs of each second.
    fn updating(&self, now: Ticks) -> bool {
        self.frozen.is_none() && now.raw() % self.tsc_hz >= self.tsc_hz - self.tsc_hz / UIP_PER_SECOND
    }

    fn write_b(&mut self, now: Ticks, value: u8) {
        let civil = self.civil(now);
        self.b = value;
        if value & B_SET != 0 {
            self.frozen = Some(civil);
        } else if self.frozen.take().is_some() {
            self.set(now, &civil);
        }
    }

    /// Rate of the periodic interrupt: RS of register A with the usual 32 768 Hz time base.
    fn period_hz(&self) -> Option<u64> {
        match self.a & 0x0f {
            0 => None,
            rate @ (1 | 2) => Some(512 >> rate),
            rate => Some(65_536 >> rate),
        }
    }

    fn multiples(&self, now: Ticks, hz: u64) -> u128 {
        u128::from(now.raw()) * u128::from(hz) / u128::from(self.tsc_hz)
    }

    /// The first tick after `synced` at which another 1/`hz` second is over.
    fn next_multiple(&self, hz: u64) -> Ticks {
        let next = self.multiples(self.synced, hz) + 1;
        let ticks = (next * u128::from(self.tsc_hz)).div_ceil(u128::from(hz));
        Ticks::new(u64::try_from(ticks).unwrap_or(u64::MAX))
    }

    /// Does the alarm match a second in `from..=to`?
    fn alarm_in(&self, from: i64, to: i64) -> bool {
        let wanted = |field: usize| {
            let raw = self.alarm[field];
            let value = if field == 2 {
                self.decode_hour(raw)
            } else {
                self.decode(raw)
            };
            (raw & ALARM_ANY != ALARM_ANY).then_some(value)
        };
        let [second, minute, hour] = [wanted(0), wanted(1), wanted(2)];
        // One day holds every time of day.
        (from..=to.min(from.saturating_add(86_399))).any(|unix| {
            let time = unix.rem_euclid(86_400) as u32;
            second.is_none_or(|second| u32::from(second) == time % 60)
                && minute.is_none_or(|minute| u32::from(minute) == time / 60 % 60)
                && hour.is_none_or(|hour| u32::from(hour) == time / 3600)
        })
    }

    fn field(&self, civil: &Civil, field: Register) -> u8 {
        match field {
            Register::Seconds => self.encode(civil.second),
            Register::Minutes => self.encode(civil.minute),
            Register::Hours => self.encode_hour(civil.hour),
            Register::Weekday => self.encode(civil.weekday()),
            Register::Day => self.encode(civil.day),
            Register::Month => self.encode(civil.month),
            Register::Year => self.encode((civil.year % 100) as u8),
            Register::Century => self.encode((civil.year / 100) as u8),
            Register::Alarm(_) | Register::A | Register::B | Register::C | Register::D => 0,
        }
    }

    fn set_field(&self, civil: &mut Civil, field: Register, raw: u8) {
        let value = self.decode(raw);
        match field {
            Register::Seconds => civil.second = value,
            Register::Minutes => civil.minute = value,
            Register::Hours => civil.hour = self.decode_hour(raw),
            Register::Day => civil.day = value,
            Register::Month => civil.month = value,
            Register::Year => civil.year = civil.year / 100 * 100 + u16::from(value),
            Register::Century => civil.year = civil.year % 100 + u16::from(value) * 100,
            // The day of the week follows from the date.
            Register::Weekday | Register::Alarm(_) | Register::A | Register::B | Register::C | Register::D => {}
        }
    }

    fn encode(&self, value: u8) -> u8 {
        if self.b & B_BINARY != 0 {
            value
        } else {
            ((value / 10) << 4) | (value % 10)
        }
    }

    fn decode(&self, raw: u8) -> u8 {
        if self.b & B_BINARY != 0 {
            raw
        } else {
            (raw >> 4) * 10 + (raw & 0x0f)
        }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.b & B_24H != 0 {
            return self.encode(hour);
        }
        let afternoon = if hour >= 12 { 0x80 } else { 0 };
        self.encode(if hour.is_multiple_of(12) { 12 } else { hour % 12 }) | afternoon
    }

    fn decode_hour(&self, raw: u8) -> u8 {
        if self.b & B_24H != 0 {
            return self.decode(raw);
        }
        self.decode(raw & 0x7f) % 12 + if raw & 0x80 != 0 { 12 } else { 0 }
    }
}

#[cfg(test)]
#[path = "rtc_tests.rs"]
mod tests;
