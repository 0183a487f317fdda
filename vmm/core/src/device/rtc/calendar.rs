// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which day is it so many seconds after 1970? The proleptic Gregorian calendar in UTC.

const DAY: i64 = 86_400;
/// Days of 400 years.
const ERA: i64 = 146_097;
/// From 0000-03-01 to 1970-01-01 in days.
const TO_1970: i64 = 719_468;

/// A date and time. Fields may be out of range while software writes them; `to_unix` then carries over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Civil {
    pub year: u16,
    pub month: u8,
    pub day: u8,
    pub hour: u8,
    pub minute: u8,
    pub second: u8,
}

impl Civil {
    pub fn from_unix(unix: i64) -> Self {
        let (days, time) = (unix.div_euclid(DAY), unix.rem_euclid(DAY));
        // Years start in March: the leap day is the last one.
        let shifted = days + TO_1970;
        let (era, day_of_era) = (shifted.div_euclid(ERA), shifted.rem_euclid(ERA));
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month = (5 * day_of_year + 2) / 153; // 0 is March
        let day = day_of_year - (153 * month + 2) / 5 + 1;
        let year = era * 400 + year_of_era + i64::from(month >= 10);
        Self {
            year: year.clamp(0, 9999) as u16,
            month: (if month < 10 { month + 3 } else { month - 9 }) as u8,
            day: day as u8,
            hour: (time / 3600) as u8,
            minute: (time / 60 % 60) as u8,
            second: (time % 60) as u8,
        }
    }

    fn days(&self) -> i64 {
        // A month of 0 counts as January: no month lies before it.
        let months = i64::from(self.year) * 12 + i64::from(self.month.max(1)) - 1 - 2;
        let (year, month) = (months.div_euclid(12), months.rem_euclid(12));
        let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
        let day_of_year = (153 * month + 2) / 5 + i64::from(self.day) - 1;
        era * ERA + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - TO_1970
    }

    pub fn to_unix(self) -> i64 {
        self.days() * DAY + i64::from(self.hour) * 3600 + i64::from(self.minute) * 60 + i64::from(self.second)
    }

    /// 1 is Sunday.
    pub fn weekday(&self) -> u8 {
        (self.days() + 4).rem_euclid(7) as u8 + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_days() {
        let leap = Civil {
            year: 2024,
            month: 2,
            day: 29,
            hour: 23,
            minute: 59,
            second: 58,
        };
        assert_eq!((Civil::from_unix(1_709_251_198), leap.to_unix()), (leap, 1_709_251_198));
        let first = Civil {
            year: 1970,
            month: 1,
            day: 1,
            hour: 0,
            minute: 0,
            second: 0,
        };
        assert_eq!((Civil::from_unix(0), first.weekday()), (first, 5), "a Thursday");
    }

    #[test]
    fn every_day_of_four_centuries_follows_the_day_before() {
        let lengths = |year: u16| {
            let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
            [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
        };
        let (mut year, mut month, mut day) = (1970_u16, 1_u8, 1_u8);
        for days in 0..ERA {
            let civil = Civil::from_unix(days * DAY);
            assert_eq!((civil.year, civil.month, civil.day), (year, month, day));
            assert_eq!(civil.to_unix(), days * DAY);
            assert_eq!(i64::from(civil.weekday()), (days + 4) % 7 + 1);
            day += 1;
            if day > lengths(year)[usize::from(month) - 1] {
                (day, month) = (1, month + 1);
            }
            if month > 12 {
                (month, year) = (1, year + 1);
            }
        }
    }

    #[test]
    fn fields_out_of_range_carry_over() {
        let odd = Civil {
            year: 2023,
            month: 2,
            day: 30,
            hour: 25,
            minute: 61,
            second: 61,
        };
        let right = Civil {
            year: 2023,
            month: 3,
            day: 3,
            hour: 2,
            minute: 2,
            second: 1,
        };
        assert_eq!(Civil::from_unix(odd.to_unix()), right);
    }
}
