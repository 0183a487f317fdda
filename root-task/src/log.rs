// SPDX-License-Identifier: MIT OR Apache-2.0
//! The system log: every line begins with `umbra: `, nothing else writes to its port.

use core::fmt::{self, Write as _};
use sel4::cap;
use sel4_root_task::{Serial, logger};
use spin::Mutex;
use umbra_description::ComPort;
use umbra_root_core::audit::uart_ports;

static PORT: Mutex<Option<Serial>> = Mutex::new(None);

/// Logs a line.
#[macro_export]
macro_rules! say {
    ($($arg:tt)*) => { $crate::log::line(format_args!($($arg)*)) };
}

/// Logs to this port from now on, through `ports`, and sets it up.
pub fn open(ports: cap::IOPort, port: ComPort) {
    let serial = Serial::new(ports, uart_ports(port).0);
    // Without a working port there is nowhere to say so.
    let _ = serial.init();
    *PORT.lock() = Some(serial);
    logger::init(line, ::log::LevelFilter::Info);
}

/// Waits until the last byte is on its way.
pub fn flush() {
    if let Some(serial) = *PORT.lock() {
        serial.flush();
    }
}

/// Logs a line.
pub fn line(text: fmt::Arguments<'_>) {
    if let Some(serial) = PORT.lock().as_mut() {
        let _ = writeln!(serial, "umbra: {text}");
    }
}

/// Logs what a component said, each line with the VM's name, so that nothing in it can pass for a line of the root task.
pub fn of_vm(name: &str, text: &str) {
    for text in text.lines() {
        line(format_args!("vm {name}: {}", Printable(text)));
    }
}

/// Text of a component, without anything that moves a terminal's cursor.
pub struct Printable<'a>(pub &'a str);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, part) in self.0.split(|c: char| c.is_control() && c != '\t').enumerate() {
            if i > 0 {
                f.write_str("?")?;
            }
            f.write_str(part)?;
        }
        Ok(())
    }
}
