// SPDX-License-Identifier: MIT OR Apache-2.0
//! Does the serial port behave as a PC16550D with an infinitely fast line?

use super::*;
use std::{collections::VecDeque, vec::Vec};

#[derive(Default)]
struct Terminal {
    sent: Vec<u8>,
    typed: VecDeque<u8>,
    asked: usize,
}

impl Console for Terminal {
    fn put(&mut self, byte: u8) {
        self.sent.push(byte);
    }
    fn get(&mut self) -> Option<u8> {
        self.asked += 1;
        self.typed.pop_front()
    }
}

/// A port and its terminal.
struct Rig {
    uart: Uart,
    terminal: Terminal,
}

impl Rig {
    fn new() -> Self {
        Self {
            uart: Uart::new(),
            terminal: Terminal::default(),
        }
    }
    fn with_fifo() -> Self {
        let mut rig = Self::new();
        rig.write(2, 0x81); // FIFO on, trigger level 8
        rig.write(4, MCR_OUT2);
        rig
    }
    fn read(&mut self, offset: u16) -> u8 {
        self.uart.read(offset, &mut self.terminal)
    }
    fn write(&mut self, offset: u16, value: u8) -> Line {
        self.uart.write(offset, value, &mut self.terminal)
    }
    fn type_in(&mut self, text: &[u8]) -> Line {
        self.terminal.typed.extend(text);
        self.uart.input_ready(&mut self.terminal)
    }
}

#[test]
fn a_written_byte_is_sent_at_once() {
    let mut rig = Rig::new();
    assert_eq!(rig.read(5), 0x60);
    rig.write(0, b'x');
    assert_eq!(rig.terminal.sent, b"x");
    assert_eq!(rig.read(5), 0x60);
}

#[test]
fn divisor_latch_hides_data_and_ier() {
    let mut rig = Rig::new();
    rig.write(1, 0x05);
    rig.write(3, 0x83);
    rig.write(0, 1);
    rig.write(1, 2);
    assert_eq!((rig.read(0), rig.read(1)), (1, 2));
    rig.write(3, 0x03);
    assert_eq!(rig.read(1), 0x05);
    assert!(rig.terminal.sent.is_empty());
}

#[test]
fn received_data_interrupts_at_the_trigger_level() {
    let mut rig = Rig::with_fifo();
    rig.write(1, ier::RECEIVED);
    assert_eq!(rig.type_in(b"abc"), Line::High);
    assert_eq!(rig.read(2), 0xcc, "below the level: time-out");
    rig.type_in(b"defgh");
    assert_eq!(rig.read(2), 0xc4);
    let read: Vec<u8> = (0..8).map(|_| rig.read(0)).collect();
    assert_eq!(read, b"abcdefgh");
    assert_eq!((rig.read(5), rig.read(2), rig.uart.line()), (0x60, 0xc1, Line::Low));
}

#[test]
fn without_fifo_one_character_waits() {
    let mut rig = Rig::new();
    rig.write(4, MCR_OUT2);
    rig.write(1, ier::RECEIVED);
    rig.type_in(b"ab");
    assert_eq!(rig.read(2), 0x04);
    assert_eq!(rig.terminal.typed, [b'b']);
    assert_eq!((rig.read(0), rig.read(0), rig.read(5)), (b'a', b'b', 0x60));
}

#[test]
fn long_input_waits_in_the_console_and_nothing_is_lost() {
    let mut rig = Rig::with_fifo();
    let text: Vec<u8> = (0..100).collect();
    rig.type_in(&text);
    let mut got = Vec::new();
    while rig.read(5) & 1 != 0 {
        got.push(rig.read(0));
    }
    assert_eq!(got, text);
}

#[test]
fn an_empty_console_is_not_asked_again() {
    let mut rig = Rig::with_fifo();
    rig.type_in(b"a");
    let asked = rig.terminal.asked;
    for _ in 0..10 {
        rig.read(0);
        rig.read(5);
    }
    assert_eq!(rig.terminal.asked, asked);
}

#[test]
fn transmitter_interrupt_follows_each_character() {
    let mut rig = Rig::with_fifo();
    assert_eq!(
        rig.write(1, ier::THR_EMPTY),
        Line::High,
        "enabling it while empty raises it"
    );
    assert_eq!(rig.read(2), 0xc2);
    assert_eq!((rig.read(2), rig.uart.line()), (0xc1, Line::Low), "reading IIR ends it");
    assert_eq!(rig.write(0, b'a'), Line::Pulsed);
    assert_eq!(rig.write(0, b'b'), Line::Pulsed, "one ends, the next begins");
    assert_eq!(rig.read(2), 0xc2);
    assert_eq!(rig.write(1, 0), Line::Low);
}

#[test]
fn a_transmit_does_not_drop_another_interrupt() {
    let mut rig = Rig::with_fifo();
    rig.write(1, ier::THR_EMPTY | ier::RECEIVED);
    rig.type_in(b"x");
    assert_eq!(rig.write(0, b'a'), Line::High);
    assert_eq!(rig.read(2), 0xcc, "receiver before transmitter");
    rig.read(0);
    assert_eq!(rig.read(2), 0xc2, "reading the time-out did not end the transmitter's");
}

#[test]
fn out2_gates_the_interrupt() {
    let mut rig = Rig::new();
    assert_eq!(rig.write(1, ier::THR_EMPTY), Line::Low);
    assert_eq!(rig.write(4, MCR_OUT2), Line::High);
    assert_eq!(rig.write(4, MCR_OUT2 | MCR_LOOP), Line::Low);
}

#[test]
fn loopback_returns_data_and_modem_lines() {
    let mut rig = Rig::new();
    rig.write(4, MCR_LOOP | 0x0a);
    assert_eq!(rig.read(6) & 0xf0, 0x90, "RTS and OUT2 come back as CTS and DCD");
    rig.write(0, b'!');
    assert_eq!((rig.read(5) & 1, rig.read(0)), (1, b'!'));
    assert!(rig.terminal.sent.is_empty());
    rig.type_in(b"later");
    assert_eq!(rig.read(5) & 1, 0, "the line is cut off");
    rig.write(4, 0);
    assert_eq!(rig.read(0), b'l');
}

#[test]
fn loopback_overrun_and_break_are_line_status_interrupts() {
    let mut rig = Rig::with_fifo();
    rig.write(4, MCR_LOOP);
    rig.write(1, ier::LINE_STATUS | ier::RECEIVED);
    for byte in 0..17 {
        rig.write(0, byte);
    }
    assert_eq!(rig.read(2), 0xc6, "before received data");
    assert_eq!(rig.read(5) & 0x13, 0x03);
    assert_eq!(rig.read(2), 0xc4);
    rig.write(2, 0x83);
    rig.write(3, LCR_BREAK);
    assert_eq!(rig.read(5) & 0x13, 0x11);
}

#[test]
fn modem_changes_are_reported_once() {
    let mut rig = Rig::new();
    rig.write(1, ier::MODEM_STATUS);
    rig.write(4, MCR_LOOP);
    assert_eq!(rig.read(2), 0x00);
    assert_eq!(rig.read(6), 0x0b, "CTS, DSR and DCD fell");
    assert_eq!((rig.read(2), rig.read(6)), (0x01, 0x00));
    rig.write(4, MCR_LOOP | 0x04);
    assert_eq!(rig.read(6), 0x40, "a rising ring is no change");
    rig.write(4, MCR_LOOP);
    assert_eq!(rig.read(6), 0x04, "its end is");
}

#[test]
fn fifo_reset_discards_what_was_received() {
    let mut rig = Rig::with_fifo();
    rig.type_in(b"old");
    rig.write(2, 0x83);
    assert_eq!(rig.read(5) & 1, 0);
    rig.type_in(b"new");
    rig.write(2, 0x00);
    assert_eq!(rig.read(5) & 1, 0, "leaving FIFO mode discards as well");
}

#[test]
fn scratch_keeps_what_is_written_and_status_registers_do_not() {
    let mut rig = Rig::new();
    rig.write(7, 0xa5);
    rig.write(5, 0);
    rig.write(6, 0);
    assert_eq!((rig.read(7), rig.read(5), rig.read(6)), (0xa5, 0x60, 0xb0));
}

/// The steps of Linux's autoconfig() (drivers/tty/serial/8250/8250_port.c) in their order.
#[test]
fn linux_autoconfig_finds_a_16550a() {
    let mut rig = Rig::new();
    rig.write(1, 0);
    assert_eq!(rig.read(1) & 0x0f, 0);
    rig.write(1, 0x0f);
    assert_eq!(rig.read(1) & 0x0f, 0x0f);
    rig.write(1, 0xff);
    assert_eq!(rig.read(1), 0x0f, "no XScale UUE bit");
    rig.write(1, 0);
    rig.write(4, MCR_LOOP | 0x0a);
    assert_eq!(rig.read(6) & 0xf0, 0x90);
    rig.write(4, 0);
    rig.write(3, 0xbf);
    rig.write(2, 0);
    rig.write(3, 0);
    rig.write(2, 0x01);
    assert_eq!(rig.read(2) >> 6, 3, "FIFOs that work");
    rig.write(3, LCR_DLAB);
    assert_ne!(rig.read(2), 0, "no EFR");
    rig.write(3, 0xbf);
    assert_ne!(rig.read(2), 0, "no EFR in mode B either");
    rig.write(3, 0);
    rig.write(2, 0x21);
    assert_eq!(rig.read(2) >> 5, 6);
    rig.write(3, LCR_DLAB);
    rig.write(2, 0x21);
    assert_eq!(rig.read(2) >> 5, 6, "no 64-byte FIFO");
    rig.write(3, 0);
    // The transmitter interrupt test of serial8250_do_startup().
    for _ in 0..2 {
        rig.write(1, ier::THR_EMPTY);
        assert_eq!(rig.read(2) & 1, 0);
        rig.write(1, 0);
    }
}
