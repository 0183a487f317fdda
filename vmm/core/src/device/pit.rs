// SPDX-License-Identifier: MIT OR Apache-2.0
//! What do the three timers show at a given time? An 8254, computed from the clock, never stepped.
//!
//! Written after the 8254 data sheet (Intel 231164). Time is counted in periods of its input clock (1 193 182 Hz).

use crate::time::Ticks;

/// Frequency of the 8254's clock input in Hz.
pub const PIT_HZ: u64 = 1_193_182;

/// Converts guest ticks to 8254 clocks, without drift.
#[derive(Clone, Copy, Debug)]
pub struct PitClock {
    /// Clocks per tick, scaled by 2^56.
    clocks_per_tick: u64,
    /// Ticks per clock, scaled by 2^32, rounded up.
    ticks_per_clock: u128,
}

impl PitClock {
    /// For a TSC of `tsc_hz`, at least 1 MHz (lower values count as that).
    pub fn new(tsc_hz: u64) -> Self {
        let tsc_hz = u128::from(tsc_hz.max(1_000_000));
        let pit_hz = u128::from(PIT_HZ);
        Self {
            clocks_per_tick: ((pit_hz << 56) / tsc_hz) as u64,
            ticks_per_clock: (tsc_hz << 32).div_ceil(pit_hz),
        }
    }

    /// Whole clocks at `now`.
    pub fn at(&self, now: Ticks) -> u64 {
        ((u128::from(now.raw()) * u128::from(self.clocks_per_tick)) >> 56) as u64
    }

    /// The first tick at which `at` is `clock` or more, or up to two ticks later. `clock` is at most 2^20 ahead.
    pub fn when(&self, now: Ticks, clock: u64) -> Ticks {
        let reached = u128::from(now.raw()) * u128::from(self.clocks_per_tick);
        let missing = (u128::from(clock) << 56).saturating_sub(reached).min(1 << 80);
        let ticks = ((missing >> 24) * self.ticks_per_clock) >> 64;
        now + Ticks::new(ticks.min(u128::from(u64::MAX)) as u64) + Ticks::new(1)
    }
}

/// The counter modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    TerminalCount = 0,
    HardwareOneShot = 1,
    RateGenerator = 2,
    SquareWave = 3,
    SoftwareStrobe = 4,
    HardwareStrobe = 5,
}

impl Mode {
    fn from_control(value: u8) -> Self {
        match (value >> 1) & 7 {
            0 => Self::TerminalCount,
            1 => Self::HardwareOneShot,
            2 | 6 => Self::RateGenerator,
            3 | 7 => Self::SquareWave,
            4 => Self::SoftwareStrobe,
            _ => Self::HardwareStrobe,
        }
    }

    fn is_periodic(self) -> bool {
        matches!(self, Self::RateGenerator | Self::SquareWave)
    }

    fn is_triggered(self) -> bool {
        matches!(self, Self::HardwareOneShot | Self::HardwareStrobe)
    }
}

/// Which bytes of the count software reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Low = 1,
    High = 2,
    LowHigh = 3,
}

/// The counting element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Element {
    /// A control word came, but no count or (in triggered modes) no trigger since.
    Idle,
    /// Stopped by its gate after so many clocks.
    Held(u64),
    /// Counts down since this clock.
    Since(u64),
}

/// One of the three counters.
#[derive(Clone, Debug)]
struct Counter {
    mode: Mode,
    access: Access,
    bcd: bool,
    gate: bool,
    element: Element,
    /// Clocks of one count, 1..=65536; 0: none written yet.
    reload: u32,
    /// Written while counting: holds from the next period or trigger on.
    next_reload: Option<u32>,
    /// First byte of a two-byte write.
    low_written: Option<u8>,
    /// The next unlatched read of two returns the high byte.
    high_next: bool,
    latched: Latch,
    latched_status: Option<u8>,
}

/// A latched count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Latch {
    Empty,
    Both(u16),
    HighOnly(u8),
    LowOnly(u8),
}

impl Counter {
    fn new(mode: Mode, reload: u32, gate: bool) -> Self {
        Self {
            mode,
            access: Access::LowHigh,
            bcd: false,
            gate,
            element: if gate { Element::Since(0) } else { Element::Held(0) },
            reload,
            next_reload: None,
            low_written: None,
            high_next: false,
            latched: Latch::Empty,
            latched_status: None,
        }
    }

    /// Makes a count written during a period current if that period has ended.
    fn sync(&mut self, clock: u64) {
        if let (Element::Since(start), Some(next)) = (self.element, self.next_reload)
            && self.mode.is_periodic()
            && clock.saturating_sub(start) >= u64::from(self.reload)
        {
            self.element = Element::Since(start + u64::from(self.reload));
            self.reload = next;
            self.next_reload = None;
        }
    }

    fn elapsed(&self, clock: u64) -> Option<u64> {
        match self.element {
            Element::Idle => None,
            Element::Held(elapsed) => Some(elapsed),
            Element::Since(start) => Some(clock.saturating_sub(start)),
        }
    }

    /// The OUT pin.
    fn out(&self, clock: u64) -> bool {
        let Some(elapsed) = self.elapsed(clock) else {
            return self.mode != Mode::TerminalCount;
        };
        let reload = u64::from(self.reload);
        match self.mode {
            Mode::TerminalCount | Mode::HardwareOneShot => elapsed >= reload,
            Mode::RateGenerator => !self.gate || elapsed % reload != reload - 1,
            Mode::SquareWave => !self.gate || elapsed % reload < reload.div_ceil(2),
            Mode::SoftwareStrobe | Mode::HardwareStrobe => elapsed != reload,
        }
    }

    /// The first clock after `clock` at which OUT rises.
    fn next_rise(&self, clock: u64) -> Option<u64> {
        let Element::Since(start) = self.element else {
            return None;
        };
        let reload = u64::from(self.reload);
        match self.mode {
            Mode::TerminalCount | Mode::HardwareOneShot => Some(start + reload).filter(|&rise| rise > clock),
            Mode::RateGenerator | Mode::SquareWave => Some(start + (clock.saturating_sub(start) / reload + 1) * reload),
            Mode::SoftwareStrobe | Mode::HardwareStrobe => Some(start + reload + 1).filter(|&rise| rise > clock),
        }
    }

    /// The counting element as software reads it.
    fn count(&self, clock: u64) -> u16 {
        let reload = u64::from(self.reload);
        let Some(elapsed) = self.elapsed(clock) else {
            return self.shown(reload);
        };
        self.shown(match self.mode {
            Mode::RateGenerator => reload - elapsed % reload,
            Mode::SquareWave => {
                // Counts by two; of an odd count the high half is one clock longer.
                let high = reload.div_ceil(2);
                let at = elapsed % reload;
                (reload & !1) - 2 * if at < high { at } else { at - high }
            }
            Mode::TerminalCount | Mode::HardwareOneShot | Mode::SoftwareStrobe | Mode::HardwareStrobe => {
                let range = if self.bcd { 10_000 } else { 0x1_0000 };
                (reload + range - elapsed % range) % range
            }
        })
    }

    fn shown(&self, count: u64) -> u16 {
        if self.bcd {
            let count = count % 10_000;
            (((count / 1000) << 12) | ((count / 100 % 10) << 8) | ((count / 10 % 10) << 4) | (count % 10)) as u16
        } else {
            count as u16
        }
    }

    fn written(&self, raw: u16) -> u32 {
        let count = if self.bcd {
            [12, 8, 4, 0]
                .iter()
                .fold(0, |sum, shift| sum * 10 + u32::from((raw >> shift) & 0xf))
        } else {
            u32::from(raw)
        };
        match count {
            0 if self.bcd => 10_000,
            0 => 0x1_0000,
            count => count,
        }
    }

    fn control(&mut self, value: u8, access: Access) {
        *self = Self {
            mode: Mode::from_control(value),
            access,
            bcd: value & 1 != 0,
            gate: self.gate,
            element: Element::Idle,
            reload: 0,
            next_reload: None,
            low_written: None,
            high_next: false,
            latched: Latch::Empty,
            latched_status: None,
        };
    }

    fn write(&mut self, clock: u64, value: u8) {
        match (self.access, self.low_written) {
            (Access::Low, _) => self.load(clock, u16::from(value)),
            (Access::High, _) => self.load(clock, u16::from(value) << 8),
            (Access::LowHigh, None) => {
                self.low_written = Some(value);
                if self.mode == Mode::TerminalCount {
                    self.element = Element::Idle; // the first byte disables counting and OUT
                }
            }
            (Access::LowHigh, Some(low)) => {
                self.low_written = None;
                self.load(clock, u16::from_le_bytes([low, value]));
            }
        }
    }

    fn load(&mut self, clock: u64, raw: u16) {
        let count = self.written(raw);
        let starts = if self.gate {
            Element::Since(clock + 1)
        } else {
            Element::Held(0)
        };
        match self.mode {
            Mode::TerminalCount | Mode::SoftwareStrobe => {
                self.reload = count;
                self.element = starts;
            }
            Mode::RateGenerator | Mode::SquareWave => {
                // A period of 1 is illegal; it behaves as the shortest legal one.
                let count = count.max(2);
                match self.element {
                    Element::Idle | Element::Held(_) => {
                        self.reload = count;
                        self.element = starts;
                    }
                    Element::Since(start) => {
                        // Takes effect at the end of the period that runs now.
                        let period = u64::from(self.reload);
                        let periods = clock.saturating_sub(start) / period;
                        self.element = Element::Since(start + periods * period);
                        self.next_reload = Some(count);
                    }
                }
            }
            Mode::HardwareOneShot | Mode::HardwareStrobe => match self.element {
                Element::Idle => self.reload = count,
                Element::Held(_) | Element::Since(_) => self.next_reload = Some(count),
            },
        }
    }

    fn set_gate(&mut self, clock: u64, gate: bool) {
        if gate == self.gate {
            return;
        }
        self.gate = gate;
        if self.reload == 0 {
            return;
        }
        if self.mode.is_triggered() {
            if gate {
                self.reload = self.next_reload.take().unwrap_or(self.reload);
                self.element = Element::Since(clock + 1);
            }
        } else if self.mode.is_periodic() {
            if gate {
                self.reload = self.next_reload.take().unwrap_or(self.reload);
                self.element = Element::Since(clock + 1);
            } else {
                self.element = Element::Held(self.elapsed(clock).unwrap_or(0) % u64::from(self.reload));
            }
        } else {
            self.element = match self.element {
                Element::Held(elapsed) if gate => Element::Since(clock.saturating_sub(elapsed)),
                Element::Since(start) if !gate => Element::Held(clock.saturating_sub(start)),
                other => other,
            };
        }
    }

    fn latch_count(&mut self, clock: u64) {
        if self.latched == Latch::Empty {
            let count = self.count(clock);
            let [low, high] = count.to_le_bytes();
            self.latched = match self.access {
                Access::Low => Latch::LowOnly(low),
                Access::High => Latch::HighOnly(high),
                Access::LowHigh => Latch::Both(count),
            };
        }
    }

    fn latch_status(&mut self, clock: u64) {
        if self.latched_status.is_none() {
            let not_loaded = match self.element {
                Element::Idle => true,
                Element::Held(_) => false,
                Element::Since(start) => clock < start,
            };
            let null_count = not_loaded || self.next_reload.is_some();
            self.latched_status = Some(
                u8::from(self.out(clock)) << 7
                    | u8::from(null_count) << 6
                    | (self.access as u8) << 4
                    | (self.mode as u8) << 1
                    | u8::from(self.bcd),
            );
        }
    }

    fn read(&mut self, clock: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        match self.latched {
            Latch::Empty => {}
            Latch::Both(count) => {
                let [low, high] = count.to_le_bytes();
                self.latched = Latch::HighOnly(high);
                return low;
            }
            Latch::HighOnly(byte) | Latch::LowOnly(byte) => {
                self.latched = Latch::Empty;
                return byte;
            }
        }
        let [low, high] = self.count(clock).to_le_bytes();
        match self.access {
            Access::Low => low,
            Access::High => high,
            Access::LowHigh => {
                self.high_next = !self.high_next;
                if self.high_next { low } else { high }
            }
        }
    }
}

/// The 8254 of the PC: counter 0 is IRQ 0, counter 1 was memory refresh, counter 2 is gated by port 0x61.
#[derive(Clone, Debug)]
pub struct Pit {
    clock: PitClock,
    counters: [Counter; 3],
    /// Up to this clock rises of counter 0's OUT are reported.
    reported: u64,
}

impl Pit {
    /// As firmware leaves it: counter 0 at 18.2 Hz, counter 1 at the refresh rate, counter 2 stopped.
    pub fn new(tsc_hz: u64) -> Self {
        Self {
            clock: PitClock::new(tsc_hz),
            counters: [
                Counter::new(Mode::SquareWave, 0x1_0000, true),
                Counter::new(Mode::RateGenerator, 18, true),
                Counter::new(Mode::SquareWave, 0x1_0000, false),
            ],
            reported: 0,
        }
    }

    /// Reads port 0x40 + `counter` (0-2).
    pub fn read(&mut self, now: Ticks, counter: usize) -> u8 {
        let clock = self.clock.at(now);
        let counter = &mut self.counters[counter];
        counter.sync(clock);
        counter.read(clock)
    }

    /// Writes port 0x40 + `counter` (0-2).
    pub fn write(&mut self, now: Ticks, counter: usize, value: u8) {
        let clock = self.clock.at(now);
        let counter = &mut self.counters[counter];
        counter.sync(clock);
        counter.write(clock, value);
    }

    /// Writes port 0x43: a control word, a latch command or a read-back command.
    pub fn write_control(&mut self, now: Ticks, value: u8) {
        let clock = self.clock.at(now);
        for counter in &mut self.counters {
            counter.sync(clock);
        }
        if value >> 6 == 3 {
            let selected = (1..).zip(&mut self.counters).filter(|(bit, _)| value & (1 << bit) != 0);
            for (_, counter) in selected {
                if value & 0x20 == 0 {
                    counter.latch_count(clock);
                }
                if value & 0x10 == 0 {
                    counter.latch_status(clock);
                }
            }
            return;
        }
        let counter = &mut self.counters[usize::from(value >> 6)];
        match (value >> 4) & 3 {
            0 => counter.latch_count(clock),
            1 => counter.control(value, Access::Low),
            2 => counter.control(value, Access::High),
            _ => counter.control(value, Access::LowHigh),
        }
    }

    /// Drives counter 2's gate.
    pub fn set_gate2(&mut self, now: Ticks, gate: bool) {
        let clock = self.clock.at(now);
        self.counters[2].sync(clock);
        self.counters[2].set_gate(clock, gate);
    }

    /// Counter 2's gate.
    pub fn gate2(&self) -> bool {
        self.counters[2].gate
    }

    /// Counter 2's OUT pin.
    pub fn out2(&mut self, now: Ticks) -> bool {
        let clock = self.clock.at(now);
        self.counters[2].sync(clock);
        self.counters[2].out(clock)
    }

    /// The memory refresh signal: toggles every 18 clocks (15 µs), whatever counter 1 is set to.
    pub fn refresh(&self, now: Ticks) -> bool {
        (self.clock.at(now) / 18) & 1 != 0
    }

    /// Counter 0's OUT pin: the level of IRQ 0.
    pub fn out0(&self, now: Ticks) -> bool {
        self.counters[0].out(self.clock.at(now))
    }

    /// Has counter 0's OUT risen since the last call? However often: a guest that was away is not flooded.
    pub fn take_rise(&mut self, now: Ticks) -> bool {
        let clock = self.clock.at(now);
        let rose = self.counters[0]
            .next_rise(self.reported)
            .is_some_and(|rise| rise <= clock);
        self.reported = clock;
        self.counters[0].sync(clock);
        rose
    }

    /// When `take_rise` will be true; reckoned from the last call of it.
    pub fn next_rise(&self, now: Ticks) -> Option<Ticks> {
        self.counters[0]
            .next_rise(self.reported)
            .map(|clock| self.clock.when(now, clock))
    }
}

#[cfg(test)]
#[path = "pit_tests.rs"]
mod tests;
