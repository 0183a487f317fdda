// SPDX-License-Identifier: MIT OR Apache-2.0
//! Do the devices, wired together, look like a PC to a guest?

use super::*;
use proptest::prelude::*;
use std::vec::Vec;

const HZ: u64 = 1_193_182_000;
/// Ticks of one 8254 clock.
const CLOCK: u64 = 1000;

#[derive(Default)]
struct Terminal {
    sent: Vec<u8>,
    typed: Vec<u8>,
}

impl Console for Terminal {
    fn put(&mut self, byte: u8) {
        self.sent.push(byte);
    }
    fn get(&mut self) -> Option<u8> {
        (!self.typed.is_empty()).then(|| self.typed.remove(0))
    }
}

fn platform() -> Platform<Terminal> {
    configured(false)
}

fn configured(test_exit: bool) -> Platform<Terminal> {
    let config = PlatformConfig {
        tsc_hz: HZ,
        epoch: 1_795_305_598,
        ram_bytes: 64 << 20,
        test_exit,
    };
    Platform::new(config, Terminal::default())
}

fn t(raw: u64) -> Ticks {
    Ticks::new(raw)
}

fn out(platform: &mut Platform<Terminal>, now: u64, writes: &[(u16, u8)]) {
    for &(port, value) in writes {
        platform.pio_write(t(now), port, 1, value.into());
    }
}

/// As Linux's init_8259A(), then the mask of the first chip.
fn init_pic(platform: &mut Platform<Terminal>, mask: u8) {
    let second = [(0xa0, 0x11), (0xa1, 0x38), (0xa1, 2), (0xa1, 1), (0xa1, 0xfe)];
    out(
        platform,
        0,
        &[(0x20, 0x11), (0x21, 0x30), (0x21, 4), (0x21, 1), (0x21, mask)],
    );
    out(platform, 0, &second);
}

#[test]
fn absent_ports_read_all_ones_and_are_counted() {
    let mut platform = platform();
    for (size, ones) in [(1, 0xff), (2, 0xffff), (4, 0xffff_ffff)] {
        assert_eq!(platform.pio_read(t(0), 0x2f8, size), ones);
        assert_eq!(platform.pio_read(t(0), 0xcf8, size) | 0xff00, ones | 0xff00);
    }
    assert_eq!(platform.pio_read(t(0), 0x64, 1), 0xff, "no keyboard controller");
    platform.pio_write(t(0), 0x2f8, 1, 0);
    assert_eq!(platform.mmio_read(t(0), Gpa::new(0xfee0_0000), 4), 0xffff_ffff);
    assert_eq!(platform.mmio_read(t(0), Gpa::new(0xfee0_0000), 8), u64::MAX);
    platform.mmio_write(t(0), Gpa::new(0xfec0_0000), 4, 0);
    assert_eq!(platform.absent_accesses().mmio, 3);
    assert!(platform.absent_accesses().ports >= 5);
}

#[test]
fn there_is_no_pci_to_find() {
    let mut platform = platform();
    // Linux's pci_check_type1() and pci_check_type2().
    platform.pio_write(t(0), 0xcfb, 1, 1);
    platform.pio_write(t(0), 0xcf8, 4, 0x8000_0000);
    assert_ne!(platform.pio_read(t(0), 0xcf8, 4), 0x8000_0000);
    out(&mut platform, 0, &[(0xcfb, 0), (0xcf8, 0), (0xcfa, 0)]);
    assert_ne!(
        (platform.pio_read(t(0), 0xcf8, 1), platform.pio_read(t(0), 0xcfa, 1)),
        (0, 0)
    );
    assert_eq!(platform.pio_read(t(0), 0xcfc, 4), 0xffff_ffff);
    assert_eq!(platform.take_event(), None, "0xcf9 saw no rising reset bit");
}

#[test]
fn wide_accesses_are_split_into_bytes() {
    let mut platform = platform();
    platform.pio_write(t(0), 0x21, 2, 0x1234);
    assert_eq!(platform.pio_read(t(0), 0x21, 1), 0x34);
    platform.pio_write(t(0), 0x70, 2, 0x5a0f);
    assert_eq!(platform.pio_read(t(0), 0x71, 1), 0x5a);
    assert_eq!(
        platform.pio_read(t(0), 0xffff, 4),
        0xff,
        "the last port has no neighbour"
    );
}

#[test]
fn the_timer_interrupts_at_its_deadline() {
    let mut platform = platform();
    init_pic(&mut platform, 0xfe);
    out(&mut platform, 0, &[(0x43, 0x34), (0x40, 0xe8), (0x40, 0x03)]);
    let due = platform.next_deadline(t(0)).expect("a periodic timer");
    assert!(due.raw().abs_diff(1001 * CLOCK) <= 3, "{due:?}");
    assert!(!platform.interrupt_pending(t(due.raw() - 3)));
    assert!(platform.interrupt_pending(due));
    assert_eq!(platform.acknowledge(due), 0x30);
    assert!(!platform.interrupt_pending(due));
    out(&mut platform, due.raw(), &[(0x20, 0x20)]);
    assert!(!platform.interrupt_pending(due));
    let next = platform.next_deadline(t(0)).unwrap();
    assert!((next - due).raw().abs_diff(1000 * CLOCK) <= 3);
}

#[test]
fn a_guest_that_slept_through_ticks_gets_one() {
    let mut platform = platform();
    init_pic(&mut platform, 0xfe);
    out(&mut platform, 0, &[(0x43, 0x34), (0x40, 0xe8), (0x40, 0x03)]);
    let late = 100_500 * CLOCK;
    assert_eq!(platform.acknowledge(t(late)), 0x30);
    out(&mut platform, late, &[(0x20, 0x20)]);
    assert!(!platform.interrupt_pending(t(late)));
}

#[test]
fn a_slow_guest_does_not_lose_its_tick() {
    let mut platform = platform();
    init_pic(&mut platform, 0xfe);
    out(&mut platform, 0, &[(0x43, 0x36), (0x40, 0xe8), (0x40, 0x03)]);
    // After the first rise the square wave is low from clock 1501 on.
    assert!(platform.interrupt_pending(t(1100 * CLOCK)));
    assert!(platform.interrupt_pending(t(1700 * CLOCK)));
    assert_eq!(platform.acknowledge(t(1700 * CLOCK)), 0x30);
}

#[test]
fn a_masked_or_pending_timer_has_no_deadline() {
    let mut platform = platform();
    assert_eq!(platform.next_deadline(t(0)), None, "interrupts are not set up");
    init_pic(&mut platform, 0xff);
    assert_eq!(platform.next_deadline(t(0)), None);
    out(&mut platform, 0, &[(0x21, 0xfe)]);
    let due = platform.next_deadline(t(0)).unwrap();
    platform.advance(due);
    assert_eq!(platform.next_deadline(t(0)), None, "a second tick would change nothing");
    platform.acknowledge(due);
    assert!(platform.next_deadline(t(0)).is_some());
}

#[test]
fn unmasking_shows_a_tick_that_came_meanwhile() {
    let mut platform = platform();
    init_pic(&mut platform, 0xff);
    out(&mut platform, 0, &[(0x43, 0x34), (0x40, 0xe8), (0x40, 0x03)]);
    out(&mut platform, 5000 * CLOCK, &[(0x21, 0xfe)]);
    assert!(platform.interrupt_pending(t(5000 * CLOCK)));
}

#[test]
fn stopping_the_timer_withdraws_its_request() {
    let mut platform = platform();
    init_pic(&mut platform, 0xfe);
    out(&mut platform, 0, &[(0x43, 0x34), (0x40, 0xe8), (0x40, 0x03)]);
    assert!(platform.interrupt_pending(t(5000 * CLOCK)));
    // Linux's pit_shutdown(): mode 0 holds OUT low.
    out(&mut platform, 5000 * CLOCK, &[(0x43, 0x30), (0x40, 0), (0x40, 0)]);
    assert!(!platform.interrupt_pending(t(5000 * CLOCK)));
}

#[test]
fn linux_one_shot_timer_fires_for_each_count() {
    let mut platform = platform();
    init_pic(&mut platform, 0xfe);
    out(&mut platform, 0, &[(0x43, 0x38)]);
    for round in 0..5 {
        let start = round * 10_000 * CLOCK;
        out(&mut platform, start, &[(0x40, 0xd0), (0x40, 0x07)]);
        let due = platform.next_deadline(t(0)).unwrap();
        assert!(
            (due.raw() - start).abs_diff(2002 * CLOCK) <= CLOCK + 3,
            "{round}: {due:?}"
        );
        assert_eq!(platform.acknowledge(due), 0x30);
        out(&mut platform, due.raw(), &[(0x20, 0x60)]);
        assert_eq!(platform.next_deadline(t(0)), None);
    }
}

#[test]
fn port_61_shows_timer_2_and_the_refresh() {
    let mut platform = platform();
    out(&mut platform, 0, &[(0x61, 0x01), (0x43, 0xb0), (0x42, 100), (0x42, 0)]);
    assert_eq!(platform.pio_read(t(0), 0x61, 1) & 0x2f, 0x01);
    assert_eq!(platform.pio_read(t(102 * CLOCK), 0x61, 1) & 0x2f, 0x21);
    let refresh: Vec<u32> = (0..4)
        .map(|i| platform.pio_read(t(i * 18 * CLOCK + 500), 0x61, 1) & 0x10)
        .collect();
    assert_eq!(refresh, [0, 0x10, 0, 0x10]);
}

#[test]
fn serial_input_and_output_interrupt_on_irq_4() {
    let mut platform = platform();
    init_pic(&mut platform, 0xef);
    out(&mut platform, 0, &[(0x3fa, 0x01), (0x3fc, 0x08), (0x3f9, 0x01)]);
    platform.console_mut().typed.extend(b"ls");
    platform.console_input_ready(t(0));
    assert_eq!(platform.acknowledge(t(0)), 0x34);
    assert_eq!(platform.pio_read(t(0), 0x3f8, 1), u32::from(b'l'));
    assert_eq!(platform.pio_read(t(0), 0x3f8, 1), u32::from(b's'));
    out(&mut platform, 0, &[(0x20, 0x64)]);
    assert!(!platform.interrupt_pending(t(0)));
    out(&mut platform, 0, &[(0x3f9, 0x03)]);
    assert_eq!(platform.acknowledge(t(0)), 0x34);
    assert_eq!(platform.pio_read(t(0), 0x3fa, 1), 0xc2);
    out(&mut platform, 0, &[(0x3f8, b'o'), (0x3f8, b'k'), (0x20, 0x64)]);
    assert_eq!(platform.console_mut().sent, b"ok");
    assert_eq!(platform.acknowledge(t(0)), 0x34, "each character makes a new edge");
}

#[test]
fn the_clock_interrupts_on_irq_8() {
    let mut platform = platform();
    init_pic(&mut platform, 0xfb);
    out(&mut platform, 0, &[(0x70, 0x0b), (0x71, 0x12)]);
    let due = platform.next_deadline(t(0)).unwrap();
    assert_eq!(due, t(HZ));
    assert_eq!(platform.acknowledge(due), 0x38);
    out(&mut platform, HZ, &[(0xa0, 0x20), (0x20, 0x20), (0x70, 0x0c)]);
    assert_eq!(platform.next_deadline(t(0)), None, "until register C is read");
    assert_eq!(platform.pio_read(due, 0x71, 1) & 0x90, 0x90);
    assert_eq!(platform.next_deadline(t(0)), Some(t(2 * HZ)));
}

#[test]
fn power_off_and_resets_are_events() {
    let cases: [(&[(u16, u8)], _); 6] = [
        (&[(0x604, 0x00), (0x605, 0x20)], Some(PlatformEvent::PowerOff)),
        (&[(0x64, 0xfe)], Some(PlatformEvent::Reset)),
        (&[(0x64, 0xaa)], None),
        (&[(0xcf9, 0x02), (0xcf9, 0x06)], Some(PlatformEvent::Reset)),
        (&[(0x92, 0x03)], Some(PlatformEvent::Reset)),
        (&[(0xf4, 0x01)], None),
    ];
    for (writes, event) in cases {
        let mut platform = platform();
        out(&mut platform, 0, writes);
        assert_eq!(platform.take_event(), event, "{writes:x?}");
        assert_eq!(platform.take_event(), None);
    }
    let mut platform = platform();
    platform.pio_write(t(0), 0x604, 2, 0x2000);
    assert_eq!(platform.take_event(), Some(PlatformEvent::PowerOff));
}

#[test]
fn test_exit_answers_only_if_asked_for() {
    for (size, value, status) in [(1, 0x110, 0x21), (4, 0x110, 0x221), (4, u32::MAX, u32::MAX)] {
        let mut platform = configured(true);
        platform.pio_write(t(0), 0xf4, size, value);
        assert_eq!(platform.take_event(), Some(PlatformEvent::TestExit(status)));
    }
    let mut platform = platform();
    platform.pio_write(t(0), 0xf4, 4, 1);
    assert_eq!((platform.take_event(), platform.absent_accesses().ports), (None, 1));
}

#[test]
fn reading_the_clock_takes_no_waiting() {
    let mut platform = platform();
    let mut read = |index| {
        platform.pio_write(t(0), 0x70, 1, index);
        platform.pio_read(t(0), 0x71, 1)
    };
    assert_eq!(read(0x0a) & 0x80, 0, "no update in progress");
    assert_eq!(
        [0x32, 9, 8, 7, 4, 2, 0].map(&mut read),
        [0x20, 0x26, 0x11, 0x21, 0x23, 0x59, 0x58]
    );
}

/// Ports that a random guest hits often enough.
const PORTS: &[u16] = &[
    0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1, 0x40, 0x41, 0x42, 0x43, 0x61, 0x64, 0x70, 0x71, 0x80, 0x92, 0xf4, 0x3f8,
    0x3f9, 0x3fa, 0x3fb, 0x3fc, 0x3fd, 0x3fe, 0x3ff, 0x600, 0x602, 0x604, 0xcf8, 0xcf9, 0xffff,
];

#[derive(Clone, Debug)]
enum Step {
    Read(u16, u8),
    Write(u16, u8, u32),
    Wait(u64),
    Interrupt,
    Type(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let port = prop_oneof![9 => prop::sample::select(PORTS), 1 => any::<u16>()];
    let size = prop::sample::select(&[1_u8, 1, 1, 2, 4][..]);
    prop_oneof![
        4 => (port.clone(), size.clone()).prop_map(|(port, size)| Step::Read(port, size)),
        8 => (port, size, any::<u32>()).prop_map(|(port, size, value)| Step::Write(port, size, value)),
        2 => prop_oneof![0..5000_u64, 0..HZ * 3, any::<u64>()].prop_map(Step::Wait),
        2 => Just(Step::Interrupt),
        1 => any::<u8>().prop_map(Step::Type),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a guest does to ports at whatever times: no panic, values within their size, deadlines that work.
    #[test]
    fn random_port_traffic_is_harmless(steps in prop::collection::vec(step(), 1..400)) {
        let mut platform = configured(true);
        let mut now = 0_u64;
        for step in steps {
            match step {
                Step::Read(port, size) => {
                    let value = platform.pio_read(t(now), port, size);
                    prop_assert_eq!(u64::from(value) & !all_ones(size), 0);
                }
                Step::Write(port, size, value) => platform.pio_write(t(now), port, size, value),
                Step::Wait(ticks) => now = now.saturating_add(ticks),
                Step::Interrupt => if platform.interrupt_pending(t(now)) {
                    platform.acknowledge(t(now));
                },
                Step::Type(byte) => {
                    platform.console_mut().typed.push(byte);
                    platform.console_input_ready(t(now));
                }
            }
            platform.advance(t(now));
            if let Some(due) = platform.next_deadline(t(now)) {
                prop_assert!(due > t(now) || now == u64::MAX, "a deadline in the past would spin: {:?} {}", due, now);
            }
            platform.take_event();
        }
    }

    /// Whoever steps the clock finely and whoever jumps see the same counter.
    #[test]
    fn the_timer_does_not_depend_on_how_often_it_is_looked_at(
        mode in 0_u8..6, reload in any::<u16>(), looks in prop::collection::vec(1..100_000_u64, 1..30),
    ) {
        let run = |looks: &[u64], total: u64| {
            let mut platform = platform();
            init_pic(&mut platform, 0xff);
            let [low, high] = reload.to_le_bytes();
            out(&mut platform, 0, &[(0x43, 0x30 | mode << 1), (0x40, low), (0x40, high)]);
            let mut now = 0;
            for look in looks {
                now += look * CLOCK;
                platform.advance(t(now));
            }
            out(&mut platform, total, &[(0x43, 0x00), (0x20, 0x0a)]);
            [0x40, 0x40, 0x20].map(|port| platform.pio_read(t(total), port, 1))
        };
        let total = looks.iter().sum::<u64>() * CLOCK;
        prop_assert_eq!(run(&looks, total), run(&[], total));
    }
}
