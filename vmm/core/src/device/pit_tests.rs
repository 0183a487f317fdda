// SPDX-License-Identifier: MIT OR Apache-2.0
//! Do the timers behave as the 8254's data sheet says?

use super::*;
use std::vec::Vec;

/// A TSC of which one tick is one clock of the 8254 makes the arithmetic visible.
const HZ: u64 = PIT_HZ;

fn t(clock: u64) -> Ticks {
    Ticks::new(clock)
}

/// Programs counter `n` with `mode`, low byte then high byte, at clock 0.
fn set(pit: &mut Pit, n: usize, mode: u8, count: u16) {
    pit.write_control(t(0), (n as u8) << 6 | 0x30 | mode << 1);
    for byte in count.to_le_bytes() {
        pit.write(t(0), n, byte);
    }
}

fn count(pit: &mut Pit, n: usize, clock: u64) -> u16 {
    pit.write_control(t(clock), (n as u8) << 6);
    u16::from_le_bytes([pit.read(t(clock), n), pit.read(t(clock), n)])
}

fn status(pit: &mut Pit, n: usize, clock: u64) -> u8 {
    pit.write_control(t(clock), 0xe0 | 2 << n);
    pit.read(t(clock), n)
}

#[test]
fn clock_neither_drifts_nor_jumps() {
    for hz in [1_000_000, 2_400_000_000, 50_000_000, 3_999_999_937] {
        let clock = PitClock::new(hz);
        let year = 365 * 86_400;
        let exact = year * PIT_HZ;
        let shown = clock.at(Ticks::new(year * hz));
        assert!(exact.abs_diff(shown) <= 1, "{hz}: {exact} {shown}");
    }
}

#[test]
fn deadlines_are_reached_and_not_early() {
    let clock = PitClock::new(2_399_999_999);
    for now in [0, 1, 999, 123_456_789_012_345] {
        for wait in [1, 2, 999, 65_536] {
            let now = Ticks::new(now);
            let target = clock.at(now) + wait;
            let when = clock.when(now, target);
            assert!(clock.at(when) >= target);
            assert!(clock.at(Ticks::new(when.raw() - 3)) < target);
        }
    }
}

#[test]
fn terminal_count_rises_once_after_n_plus_one_clocks() {
    let mut pit = Pit::new(HZ);
    set(&mut pit, 0, 0, 100);
    assert!(!pit.out0(t(100)));
    assert!(pit.out0(t(101)));
    assert!(!pit.take_rise(t(100)));
    assert!(pit.take_rise(t(5000)));
    assert!(!pit.take_rise(t(500_000)));
    assert_eq!(pit.next_rise(t(500_000)), None);
}

#[test]
fn terminal_count_keeps_counting_below_zero() {
    let mut pit = Pit::new(HZ);
    set(&mut pit, 0, 0, 100);
    assert_eq!(count(&mut pit, 0, 41), 60);
    assert_eq!(count(&mut pit, 0, 102), 0xffff);
}

#[test]
fn rate_generator_counts_n_to_1_and_repeats() {
    let mut pit = Pit::new(HZ);
    set(&mut pit, 0, 2, 10);
    let seen: Vec<u16> = (1..=22).map(|clock| count(&mut pit, 0, clock)).collect();
    let period: Vec<u16> = (1..=10).rev().collect();
    assert_eq!(seen[..20], [period.clone(), period].concat());
    assert!(
        pit.out0(t(9)) && !pit.out0(t(10)) && pit.out0(t(11)),
        "low while the count is 1"
    );
}

#[test]
fn square_wave_counts_by_two_and_is_high_for_half() {
    let mut pit = Pit::new(HZ);
    set(&mut pit, 0, 3, 8);
    let seen: Vec<u16> = (1..=8).map(|clock| count(&mut pit, 0, clock)).collect();
    assert_eq!(seen, [8, 6, 4, 2, 8, 6, 4, 2]);
    let out: Vec<bool> = (1..=8).map(|clock| pit.out0(t(clock))).collect();
    assert_eq!(out, [true, true, true, true, false, false, false, false]);
    set(&mut pit, 0, 3, 5);
    let out: Vec<bool> = (1..=5).map(|clock| pit.out0(t(clock))).collect();
    assert_eq!(
        out,
        [true, true, true, false, false],
        "an odd count is high one clock longer"
    );
    let seen: Vec<u16> = (1..=5).map(|clock| count(&mut pit, 0, clock)).collect();
    assert_eq!(seen, [4, 2, 0, 4, 2]);
}

#[test]
fn software_strobe_is_low_for_one_clock() {
    let mut pit = Pit::new(HZ);
    set(&mut pit, 0, 4, 10);
    assert!(pit.out0(t(10)) && !pit.out0(t(11)) && pit.out0(t(12)));
    assert!(!pit.take_rise(t(11)));
    assert!(pit.take_rise(t(12)));
    assert!(!pit.take_rise(t(100_000)));
}

#[test]
fn late_ticks_coalesce_and_the_grid_stays() {
    let mut pit = Pit::new(HZ);
    set(&mut pit, 0, 2, 1000);
    pit.take_rise(t(0));
    assert!(!pit.take_rise(t(1000)));
    assert!(pit.take_rise(t(1001)));
    assert!(pit.take_rise(t(987_654)), "986 ticks late: one interrupt");
    assert!(!pit.take_rise(t(987_655)));
    let next = pit.next_rise(t(987_655)).unwrap();
    assert!(next.raw().abs_diff(988_001) <= 3, "{next:?}: the grid has not moved");
}

#[test]
fn a_new_count_waits_for_the_end_of_the_period() {
    let mut pit = Pit::new(HZ);
    set(&mut pit, 0, 2, 100);
    // In period 50 (clocks 5001..5101).
    for byte in 10_u16.to_le_bytes() {
        pit.write(t(5050), 0, byte);
    }
    assert_eq!(count(&mut pit, 0, 5060), 41);
    assert_eq!(status(&mut pit, 0, 5060) & 0x40, 0x40, "null count");
    assert_eq!(count(&mut pit, 0, 5101), 10);
    assert_eq!(count(&mut pit, 0, 5112), 9);
    assert_eq!(status(&mut pit, 0, 5112) & 0x40, 0);
}

#[test]
fn a_count_of_zero_is_65536() {
    let mut pit = Pit::new(HZ);
    set(&mut pit, 0, 2, 0);
    pit.take_rise(t(0));
    assert!(!pit.take_rise(t(65_536)));
    assert!(pit.take_rise(t(65_537)));
}

#[test]
fn an_illegal_count_of_one_does_not_divide_by_zero_or_storm() {
    let mut pit = Pit::new(HZ);
    for mode in 0..8 {
        set(&mut pit, 0, mode, 1);
        pit.take_rise(t(100));
        count(&mut pit, 0, 100);
        pit.next_rise(t(100));
    }
}

#[test]
fn latch_holds_until_read_and_a_second_one_is_ignored() {
    let mut pit = Pit::new(HZ);
    set(&mut pit, 0, 2, 1000);
    pit.write_control(t(101), 0x00);
    pit.write_control(t(500), 0x00);
    assert_eq!(u16::from_le_bytes([pit.read(t(600), 0), pit.read(t(700), 0)]), 900);
    assert_eq!(pit.read(t(801), 0), 200, "not latched any more");
}

#[test]
fn one_byte_access_modes() {
    let mut pit = Pit::new(HZ);
    pit.write_control(t(0), 0x14); // counter 0, low byte only, mode 2
    pit.write(t(0), 0, 200);
    assert_eq!(pit.read(t(101), 0), 100);
    pit.write_control(t(0), 0x24); // high byte only
    pit.write(t(0), 0, 2);
    assert_eq!(pit.read(t(101), 0), (412 >> 8) as u8);
}

#[test]
fn read_back_returns_status_then_count_of_the_chosen_counters() {
    let mut pit = Pit::new(HZ);
    set(&mut pit, 0, 2, 1000);
    set(&mut pit, 1, 3, 500);
    pit.write_control(t(101), 0xc2 | 0x04);
    assert_eq!(pit.read(t(300), 0), 0x80 | 0x30 | 2 << 1);
    assert_eq!(u16::from_le_bytes([pit.read(t(300), 0), pit.read(t(300), 0)]), 900);
    assert_eq!(pit.read(t(300), 1), 0x80 | 0x30 | 3 << 1);
    assert_eq!(u16::from_le_bytes([pit.read(t(300), 1), pit.read(t(300), 1)]), 300);
}

#[test]
fn null_count_until_a_count_is_loaded() {
    let mut pit = Pit::new(HZ);
    pit.write_control(t(0), 0x30);
    assert_eq!(status(&mut pit, 0, 5), 0x40 | 0x30, "OUT is low");
    pit.write(t(5), 0, 100);
    pit.write(t(5), 0, 0);
    assert_eq!(status(&mut pit, 0, 7), 0x30);
}

#[test]
fn bcd_counts_decimally() {
    let mut pit = Pit::new(HZ);
    pit.write_control(t(0), 0x35);
    for byte in 0x1000_u16.to_le_bytes() {
        pit.write(t(0), 0, byte);
    }
    assert_eq!(count(&mut pit, 0, 2), 0x0999);
    assert_eq!(status(&mut pit, 0, 2) & 1, 1);
}

#[test]
fn gate2_stops_and_continues_terminal_count() {
    let mut pit = Pit::new(HZ);
    set(&mut pit, 2, 0, 100);
    assert_eq!(count(&mut pit, 2, 1000), 100, "the gate is low");
    pit.set_gate2(t(1000), true);
    assert_eq!(count(&mut pit, 2, 1040), 60);
    pit.set_gate2(t(1040), false);
    assert_eq!(count(&mut pit, 2, 3000), 60);
    pit.set_gate2(t(3000), true);
    assert!(!pit.out2(t(3059)) && pit.out2(t(3060)));
}

#[test]
fn gate2_restarts_the_periodic_modes_and_forces_out_high() {
    let mut pit = Pit::new(HZ);
    pit.set_gate2(t(0), true);
    set(&mut pit, 2, 3, 100);
    assert!(!pit.out2(t(60)));
    pit.set_gate2(t(60), false);
    assert!(pit.out2(t(60)));
    pit.set_gate2(t(1000), true);
    assert_eq!(count(&mut pit, 2, 1001), 100);
}

#[test]
fn gate2_triggers_the_one_shot_again_and_again() {
    let mut pit = Pit::new(HZ);
    set(&mut pit, 2, 1, 50);
    assert!(pit.out2(t(500)), "armed");
    for start in [1000, 2000] {
        pit.set_gate2(t(start), true);
        assert!(!pit.out2(t(start + 1)) && !pit.out2(t(start + 50)) && pit.out2(t(start + 51)));
        pit.set_gate2(t(start + 100), false);
    }
}

#[test]
fn refresh_toggles_every_15_microseconds() {
    let pit = Pit::new(HZ);
    let toggles = (0..18_000)
        .filter(|&clock| pit.refresh(t(clock)) != pit.refresh(t(clock + 1)))
        .count();
    assert!((999..=1000).contains(&toggles), "{toggles}");
}

/// Linux's quick_pit_calibrate() and pit_calibrate_tsc(): counter 2 in mode 0, seen by its high byte and by port 0x61.
#[test]
fn linux_calibration_sees_the_right_frequency() {
    const TSC: u64 = 2_400_000_000;
    let mut pit = Pit::new(TSC);
    pit.set_gate2(Ticks::new(0), true);
    pit.write_control(Ticks::new(0), 0xb0);
    pit.write(Ticks::new(0), 2, 0xff);
    pit.write(Ticks::new(0), 2, 0xff);
    let mut first_change = [0; 256];
    let mut now = 0;
    while now < TSC / 20 {
        pit.read(Ticks::new(now), 2);
        let msb = usize::from(pit.read(Ticks::new(now), 2));
        if first_change[msb] == 0 {
            first_change[msb] = now.max(1);
        }
        now += 2000;
    }
    let clocks = 100 * 256;
    let ticks = first_change[0xff - 110] - first_change[0xff - 10];
    let khz = ticks * PIT_HZ / clocks / 1000;
    assert!(khz.abs_diff(TSC / 1000) < TSC / 1000 / 500, "{khz} kHz");
}
