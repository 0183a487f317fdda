// SPDX-License-Identifier: MIT OR Apache-2.0
//! Does the clock behave as the MC146818's data sheet says?

use super::*;

const HZ: u64 = 1_000_000_000;
/// 2026-11-21 23:59:58, a Saturday.
const SATURDAY: u64 = 1_795_305_598;

fn at(ms: u64) -> Ticks {
    Ticks::new(ms * (HZ / 1000))
}

fn time(rtc: &mut Rtc, now: Ticks) -> [u8; 8] {
    use Register::*;
    [Century, Year, Month, Day, Weekday, Hours, Minutes, Seconds].map(|field| rtc.read(now, field))
}

#[test]
fn shows_the_time_in_bcd_and_runs() {
    let mut rtc = Rtc::new(HZ, SATURDAY);
    assert_eq!(time(&mut rtc, at(0)), [0x20, 0x26, 0x11, 0x21, 7, 0x23, 0x59, 0x58]);
    assert_eq!(time(&mut rtc, at(2500)), [0x20, 0x26, 0x11, 0x22, 1, 0x00, 0x00, 0x00]);
}

#[test]
fn binary_and_12_hour_modes() {
    let mut rtc = Rtc::new(HZ, SATURDAY);
    rtc.write(at(0), Register::B, B_BINARY);
    assert_eq!(time(&mut rtc, at(0)), [20, 26, 11, 21, 7, 11 | 0x80, 59, 58]);
    assert_eq!(rtc.read(at(2000), Register::Hours), 12, "midnight is 12 am");
    rtc.write(at(2000), Register::B, 0);
    assert_eq!(
        rtc.read(at(2000 + 12 * 3_600_000), Register::Hours),
        0x92,
        "noon is 12 pm"
    );
}

#[test]
fn update_in_progress_covers_the_end_of_each_second() {
    let mut rtc = Rtc::new(HZ, SATURDAY);
    for (us, busy) in [
        (0, false),
        (500_000, false),
        (999_700, false),
        (999_800, true),
        (999_999, true),
        (1_000_000, false),
    ] {
        assert_eq!(rtc.read(Ticks::new(us * 1000), Register::A) & A_UIP != 0, busy, "{us}");
    }
}

#[test]
fn software_sets_the_clock_under_set() {
    let mut rtc = Rtc::new(HZ, 0);
    rtc.write(at(0), Register::B, B_SET | B_24H);
    for (field, value) in [
        (Register::Century, 0x20),
        (Register::Year, 0x24),
        (Register::Month, 0x02),
        (Register::Day, 0x29),
        (Register::Hours, 0x12),
        (Register::Minutes, 0x34),
        (Register::Seconds, 0x56),
    ] {
        rtc.write(at(0), field, value);
    }
    assert_eq!(
        time(&mut rtc, at(5000)),
        [0x20, 0x24, 0x02, 0x29, 5, 0x12, 0x34, 0x56],
        "stands still"
    );
    assert_eq!(rtc.read(at(5_999), Register::A) & A_UIP, 0, "and never updates");
    rtc.write(at(5000), Register::B, B_24H);
    assert_eq!(time(&mut rtc, at(9000)), [0x20, 0x24, 0x02, 0x29, 5, 0x12, 0x35, 0x00]);
}

#[test]
fn software_sets_one_field_of_a_running_clock() {
    let mut rtc = Rtc::new(HZ, SATURDAY);
    rtc.write(at(0), Register::Hours, 0x05);
    assert_eq!(rtc.read(at(0), Register::Hours), 0x05);
    assert_eq!(rtc.read(at(0), Register::Minutes), 0x59);
}

#[test]
fn flags_are_set_by_time_and_cleared_by_reading() {
    let mut rtc = Rtc::new(HZ, SATURDAY);
    assert_eq!(rtc.read(at(0), Register::C), 0);
    assert_eq!(
        rtc.read(at(1500), Register::C),
        B_UPDATE | C_PERIODIC,
        "no interrupt: not enabled"
    );
    assert_eq!(rtc.read(at(1500), Register::C), 0);
    assert!(!rtc.irq());
}

#[test]
fn update_interrupt_comes_every_second_and_waits_for_its_reader() {
    let mut rtc = Rtc::new(HZ, SATURDAY);
    assert_eq!(rtc.next_irq(), None);
    rtc.write(at(100), Register::B, B_24H | B_UPDATE);
    assert_eq!(rtc.next_irq(), Some(at(1000)));
    rtc.sync(at(1000));
    assert!(rtc.irq());
    assert_eq!(rtc.next_irq(), None);
    rtc.sync(at(7300));
    assert_eq!(rtc.read(at(7300), Register::C) & (C_IRQ | B_UPDATE), C_IRQ | B_UPDATE);
    assert!(!rtc.irq());
    assert_eq!(rtc.next_irq(), Some(at(8000)), "missed ones are not made up for");
}

#[test]
fn periodic_interrupt_has_the_rate_of_register_a() {
    let mut rtc = Rtc::new(HZ, SATURDAY);
    rtc.write(at(0), Register::A, 0x2f);
    rtc.write(at(0), Register::B, B_24H | C_PERIODIC);
    assert_eq!(rtc.next_irq(), Some(at(500)), "2 Hz");
    rtc.sync(at(500));
    assert_eq!(rtc.read(at(500), Register::C), C_IRQ | C_PERIODIC);
    rtc.write(at(500), Register::A, 0x26);
    assert_eq!(rtc.next_irq(), Some(Ticks::new(500_976_563)), "1024 Hz");
    rtc.write(at(500), Register::A, 0x21);
    assert_eq!(rtc.next_irq(), Some(Ticks::new(503_906_250)), "256 Hz");
}

#[test]
fn alarm_matches_its_second_and_wildcards_repeat() {
    let mut rtc = Rtc::new(HZ, SATURDAY);
    for (field, value) in [(0, 0x00), (1, 0x00), (2, 0x00)] {
        rtc.write(at(0), Register::Alarm(field), value);
    }
    rtc.write(at(0), Register::B, B_24H | B_ALARM);
    rtc.sync(at(1000));
    assert!(!rtc.irq(), "23:59:59");
    rtc.sync(at(2000));
    assert_eq!(rtc.read(at(2000), Register::C) & (C_IRQ | B_ALARM), C_IRQ | B_ALARM);
    rtc.sync(at(60_000));
    assert!(!rtc.irq(), "once a day");
    rtc.write(at(60_000), Register::Alarm(2), 0xff);
    rtc.write(at(60_000), Register::Alarm(1), 0xc0);
    rtc.sync(at(62_000));
    assert!(rtc.irq(), "each minute");
}

#[test]
fn an_alarm_in_a_gap_of_days_is_found() {
    let mut rtc = Rtc::new(HZ, SATURDAY);
    for (field, value) in [(0, 0x57), (1, 0x59), (2, 0x23)] {
        rtc.write(at(0), Register::Alarm(field), value);
    }
    assert_eq!(rtc.read(at(5 * 86_400_000), Register::C) & B_ALARM, B_ALARM);
}

#[test]
fn register_d_is_valid_and_its_bit_6_clear() {
    let mut rtc = Rtc::new(HZ, SATURDAY);
    rtc.write(at(0), Register::D, 0xff);
    assert_eq!(rtc.read(at(0), Register::D), 0x80);
}
