// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guest time: the host's time stamp counter plus an offset, with long absences hidden, and the timer that ends a stay.
//!
//! Devices run by guest time. The guest's TSC is guest time too, until the guest writes it: then it differs by a constant.

use crate::time::Ticks;

/// Guest time over host time.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// Guest time = host TSC + offset (wrapping).
    offset: u64,
    /// Guest TSC = guest time + adjustment (wrapping).
    adjustment: u64,
    /// Absences longer than this are hidden, in ticks.
    longest_gap: u64,
    left_at: u64,
    /// How often an absence was hidden.
    pub hidden_gaps: u64,
}

impl Clock {
    /// A clock that reads 0 now. An absence of more than a tenth of a second does not pass for the guest.
    pub fn new(host_now: u64, tsc_hz: u64) -> Self {
        Self {
            offset: host_now.wrapping_neg(),
            adjustment: 0,
            longest_gap: tsc_hz / 10,
            left_at: host_now,
            hidden_gaps: 0,
        }
    }

    /// Guest time at `host_now`.
    #[inline]
    pub fn guest(&self, host_now: u64) -> Ticks {
        Ticks::new(host_now.wrapping_add(self.offset))
    }

    /// The guest's TSC at `host_now`.
    pub fn tsc(&self, host_now: u64) -> u64 {
        host_now.wrapping_add(self.tsc_offset())
    }

    /// The value of the VMCS's TSC offset, as the processor adds it.
    pub fn tsc_offset(&self) -> u64 {
        self.offset.wrapping_add(self.adjustment)
    }

    /// The guest left.
    #[inline]
    pub fn leave(&mut self, host_now: u64) {
        self.left_at = host_now;
    }

    /// The guest is about to be entered. `true`: the offset has changed.
    #[inline]
    pub fn enter(&mut self, host_now: u64) -> bool {
        let gap = host_now.wrapping_sub(self.left_at);
        if gap <= self.longest_gap {
            return false;
        }
        self.hide(gap);
        true
    }

    #[cold]
    fn hide(&mut self, gap: u64) {
        self.offset = self.offset.wrapping_sub(gap);
        self.hidden_gaps += 1;
    }

    /// Ticks since the guest left.
    #[inline]
    pub fn away(&self, host_now: u64) -> u64 {
        host_now.wrapping_sub(self.left_at)
    }

    /// The guest wrote its TSC. Guest time goes on.
    pub fn set_tsc(&mut self, host_now: u64, value: u64) {
        self.adjustment = value.wrapping_sub(self.guest(host_now).raw());
    }
}

/// The VMX preemption timer: it counts down only while the guest runs, at the TSC's rate divided by a power of two that
/// only an MSR of the host tells. It is measured at expiries instead; until then the timer fires early. A stay looks longer
/// than the timer counted if other threads had the processor meanwhile, never shorter: the lowest measurement is right.
#[derive(Clone, Copy, Debug)]
pub struct PreemptionTimer {
    shift: u32,
    /// In ticks.
    longest_stay: u64,
    /// Guest time for which it is set; `None`: never set, or expired.
    target: Option<Ticks>,
    /// Value written.
    value: u32,
    /// Ticks outside the guest since it was set: it is late by that much.
    outside: u64,
    /// Ticks inside the guest since it was set.
    inside: u64,
}

/// Largest known rate: one count per 32 ticks.
const MAX_SHIFT: u32 = 5;
/// The timer is set again when it has become late by this many ticks.
const TOLERANCE: u64 = 20_000;
/// No stay is longer than this part of a second: a guest that never exits does not keep the processor even where the host's
/// own interrupts do not end its stay (Bochs holds them back while the guest has interrupts off).
const STAYS_PER_SECOND: u64 = 50;

impl PreemptionTimer {
    /// A timer that was never set.
    pub fn new(tsc_hz: u64) -> Self {
        Self {
            shift: MAX_SHIFT,
            longest_stay: tsc_hz / STAYS_PER_SECOND,
            target: None,
            value: 0,
            outside: 0,
            inside: 0,
        }
    }

    /// Before an entry: the value to write, if the timer has to be set. `away`: ticks spent outside the guest just now.
    #[inline]
    pub fn prepare(&mut self, now: Ticks, deadline: Option<Ticks>, away: u64) -> Option<u32> {
        self.outside += away;
        match (self.target, deadline) {
            // Early is no harm: it is set again then. Late is, beyond the tolerance.
            (Some(target), Some(d)) if target <= d && target + Ticks::new(self.outside) < d + Ticks::new(TOLERANCE) => {
                None
            }
            // Nothing to wait for: whatever was set may run out.
            (Some(_), None) => None,
            _ => {
                let longest = now + Ticks::new(self.longest_stay);
                Some(self.set(now, deadline.map_or(longest, |d| d.min(longest))))
            }
        }
    }

    fn set(&mut self, now: Ticks, target: Ticks) -> u32 {
        self.target = Some(target);
        (self.outside, self.inside) = (0, 0);
        self.value = u32::try_from((target - now).raw() >> self.shift)
            .unwrap_or(u32::MAX)
            .max(1);
        self.value
    }

    /// The guest ran for `ticks`.
    #[inline]
    pub fn ran(&mut self, ticks: u64) {
        self.inside += ticks;
    }

    /// The timer ran out.
    pub fn expired(&mut self) {
        self.target = None;
        // Short stays say more about entry and exit than about the timer.
        if self.shift > 0 && self.value >= 256 {
            let ratio = self.inside.saturating_mul(3) / (2 * u64::from(self.value));
            self.shift = ratio.max(1).ilog2().min(self.shift);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_absences_pass_and_long_ones_do_not() {
        let mut c = Clock::new(1000, 50_000_000);
        assert_eq!(c.guest(1000), Ticks::new(0));
        c.leave(2000);
        assert!(!c.enter(2000 + 5_000_000), "100 ms pass");
        c.leave(10_000_000);
        assert!(c.enter(1_000_000_000));
        assert_eq!(
            c.guest(1_000_000_000),
            Ticks::new(10_000_000 - 1000),
            "no time has passed"
        );
    }

    #[test]
    fn the_guest_sets_its_counter() {
        let mut c = Clock::new(1000, 50_000_000);
        for value in [42, 0, u64::MAX - 3, 1 << 63] {
            c.set_tsc(5000, value);
            assert_eq!(c.tsc(5010), value.wrapping_add(10));
            assert_eq!(c.tsc_offset(), value.wrapping_sub(5000));
            assert_eq!(c.guest(5010), Ticks::new(4010), "devices do not notice");
        }
        c.leave(10_000);
        assert!(c.enter(1_000_000_000));
        assert_eq!(
            c.tsc(1_000_000_000),
            (1u64 << 63) + 5000,
            "absences are hidden all the same"
        );
    }

    /// Simulates a guest that only computes, on a processor with this rate; returns when the deadline was noticed.
    fn noticed(rate_shift: u32, deadline: u64) -> u64 {
        let mut t = PreemptionTimer::new(50_000_000);
        let (mut now, mut count, mut stays) = (0u64, 0u64, 0);
        while now < deadline {
            stays += 1;
            assert!(stays < 10, "the timer fires over and over");
            if let Some(v) = t.prepare(Ticks::new(now), Some(Ticks::new(deadline)), 500) {
                count = v.into();
            }
            let inside = count << rate_shift;
            now += inside + 500;
            t.ran(inside);
            t.expired();
        }
        now
    }

    #[test]
    fn deadlines_are_met_whatever_the_timers_rate() {
        for shift in 0..=5 {
            let at = noticed(shift, 200_000);
            assert!(at < 200_000 + 7_000, "rate 1/{}: noticed at {at}", 1 << shift);
        }
    }

    #[test]
    fn no_stay_is_endless() {
        for deadline in [None, Some(Ticks::new(u64::MAX / 2))] {
            let mut t = PreemptionTimer::new(50_000_000);
            let mut now = 0;
            for _ in 0..10 {
                let value = t
                    .prepare(Ticks::new(now), deadline, 500)
                    .expect("set after each expiry");
                assert!(u64::from(value) << t.shift <= t.longest_stay);
                now += u64::from(value) + 500;
                t.ran(value.into());
                t.expired();
            }
        }
    }

    #[test]
    fn a_timer_set_for_a_stay_does_not_miss_the_deadline_behind_it() {
        let mut t = PreemptionTimer::new(50_000_000);
        let d = Ticks::new(t.longest_stay + 5000);
        t.prepare(Ticks::new(0), Some(d), 0).expect("set for the longest stay");
        assert_eq!(t.prepare(Ticks::new(10), Some(d), 10), None);
        let late = TOLERANCE + 6000;
        assert!(
            t.prepare(Ticks::new(late), Some(d), late).is_some(),
            "it would fire after the deadline"
        );
    }

    #[test]
    fn a_measurement_while_others_had_the_processor_does_not_stay() {
        // The timer counts in the guest only; what looks like a long stay was mostly somebody else's.
        let mut t = PreemptionTimer::new(50_000_000);
        let mut now = 0;
        let value = t.prepare(Ticks::new(now), Some(Ticks::new(100_000)), 0).expect("set");
        now += 40 * u64::from(value);
        t.ran(40 * u64::from(value));
        t.expired();
        let mut expiries = 0;
        for _ in 0..20 {
            let deadline = now + 100_000;
            while now < deadline {
                let value = t
                    .prepare(Ticks::new(now), Some(Ticks::new(deadline)), 500)
                    .expect("set");
                now += u64::from(value) + 500; // a timer at the full rate
                t.ran(value.into());
                t.expired();
                expiries += 1;
            }
        }
        assert!(expiries < 60, "{expiries} expiries for 20 deadlines");
    }

    #[test]
    fn an_unchanged_deadline_costs_no_write_until_the_timer_is_late() {
        let mut t = PreemptionTimer::new(50_000_000);
        let d = Some(Ticks::new(1_000_000));
        assert!(t.prepare(Ticks::new(0), d, 0).is_some());
        let mut writes = 0;
        for n in 1..=100u64 {
            writes += u32::from(t.prepare(Ticks::new(n * 1000), d, 1000).is_some());
        }
        assert_eq!(writes, 5);
        assert!(
            t.prepare(Ticks::new(100_000), Some(Ticks::new(900_000)), 10).is_some(),
            "another deadline"
        );
    }
}
