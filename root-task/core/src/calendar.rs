// SPDX-License-Identifier: MIT OR Apache-2.0
//! What time do the registers of a PC's clock mean? (MC146818 data sheet: BCD or binary, 12 or 24 hours.)

/// The time registers of the clock, as read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClockRegisters {
    /// Register 0x00.
    pub second: u8,
    /// Register 0x02.
    pub minute: u8,
    /// Register 0x04; bit 7 is PM in 12-hour mode.
    pub hour: u8,
    /// Register 0x07.
    pub day: u8,
    /// Register 0x08.
    pub month: u8,
    /// Register 0x09: the last two digits, of this century.
    pub year: u8,
    /// Register 0x0b: bit 1 is 24-hour mode, bit 2 is binary.
    pub status_b: u8,
}

const HOURS_24: u8 = 1 << 1;
const BINARY: u8 = 1 << 2;
const PM: u8 = 1 << 7;

impl ClockRegisters {
    /// Seconds since 1970, taking the clock for UTC; `None` if the registers hold no date (an absent clock reads 0xff).
    pub fn unix_time(&self) -> Option<u64> {
        let afternoon = self.status_b & HOURS_24 == 0 && self.hour & PM != 0;
        let hour = self.number(if self.status_b & HOURS_24 == 0 {
            self.hour & !PM
        } else {
            self.hour
        })?;
        let hour = match (self.status_b & HOURS_24 == 0, hour) {
            (false, 0..=23) => hour,
            (true, 1..=12) => hour % 12 + if afternoon { 12 } else { 0 },
            (false | true, _) => return None,
        };
        let (second, minute) = (self.number(self.second)?, self.number(self.minute)?);
        let (day, month, year) = (
            self.number(self.day)?,
            self.number(self.month)?,
            2000 + self.number(self.year)?,
        );
        if second > 59
            || minute > 59
            || !(1..=12).contains(&month)
            || year > 2099
            || !(1..=month_length(year, month)).contains(&day)
        {
            return None;
        }
        let years = (1970..year).map(|y| if leap(y) { 366 } else { 365 }).sum::<u64>();
        let months = (1..month).map(|m| month_length(year, m)).sum::<u64>();
        Some((((years + months + day - 1) * 24 + hour) * 60 + minute) * 60 + second)
    }

    fn number(&self, register: u8) -> Option<u64> {
        if self.status_b & BINARY != 0 {
            return Some(register.into());
        }
        let (tens, ones) = (register >> 4, register & 0xf);
        (tens < 10 && ones < 10).then(|| u64::from(tens * 10 + ones))
    }
}

const fn leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

const fn month_length(year: u64, month: u64) -> u64 {
    match month {
        2 if leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BCD: ClockRegisters = ClockRegisters {
        second: 0x59,
        minute: 0x34,
        hour: 0x23,
        day: 0x29,
        month: 0x02,
        year: 0x24,
        status_b: HOURS_24,
    };

    #[test]
    fn bcd_and_binary_mean_the_same() {
        assert_eq!(BCD.unix_time(), Some(1_709_249_699), "2024-02-29 23:34:59");
        let binary = ClockRegisters {
            second: 59,
            minute: 34,
            hour: 23,
            day: 29,
            month: 2,
            year: 24,
            status_b: HOURS_24 | BINARY,
        };
        assert_eq!(binary.unix_time(), BCD.unix_time());
    }

    #[test]
    fn twelve_hours_have_a_noon_and_a_midnight() {
        let at = |hour| {
            ClockRegisters {
                hour,
                status_b: 0,
                ..BCD
            }
            .unix_time()
        };
        let midnight = at(0x12).unwrap();
        assert_eq!(at(0x11 | PM), BCD.unix_time());
        assert_eq!(at(0x12 | PM), Some(midnight + 12 * 3600));
        assert_eq!(at(0x01), Some(midnight + 3600));
        assert_eq!(at(0x00), None);
        assert_eq!(at(0x13), None);
    }

    #[test]
    fn what_is_no_date_is_refused() {
        let absent = ClockRegisters {
            second: 0xff,
            minute: 0xff,
            hour: 0xff,
            day: 0xff,
            month: 0xff,
            year: 0xff,
            status_b: 0xff,
        };
        let wrong = [
            absent,
            ClockRegisters::default(),
            ClockRegisters { year: 0x23, ..BCD },
            ClockRegisters { month: 0x13, ..BCD },
            ClockRegisters { day: 0x00, ..BCD },
            ClockRegisters { second: 0x60, ..BCD },
            ClockRegisters { minute: 0x6a, ..BCD },
            ClockRegisters { hour: 0x24, ..BCD },
        ];
        for registers in wrong {
            assert_eq!(registers.unix_time(), None, "{registers:x?}");
        }
    }

    #[test]
    fn every_day_of_the_century_is_a_day_after_the_one_before() {
        let midnight = ClockRegisters {
            status_b: HOURS_24 | BINARY,
            ..ClockRegisters::default()
        };

        let mut before = 946_684_800 - 86_400; // 1999-12-31
        for year in 0..100u8 {
            for month in 1..=12u8 {
                for day in 1..=month_length(2000 + u64::from(year), month.into()) as u8 {
                    let now = ClockRegisters {
                        day,
                        month,
                        year,
                        ..midnight
                    }
                    .unix_time()
                    .unwrap();
                    assert_eq!(now, before + 86_400, "{year}-{month}-{day}");
                    before = now;
                }
            }
        }
    }
}
