// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where do log messages go?

use core::fmt;
use log::{LevelFilter, Log, Metadata, Record};
use spin::Mutex;

/// Takes one message, without its line end. The program decides how it travels.
pub type Sink = fn(fmt::Arguments<'_>);

static SINK: Mutex<Option<Sink>> = Mutex::new(None);

struct Logger;

/// Sends messages of the `log` crate up to `level`, and the panic message, to `sink`. May be called again.
pub fn init(sink: Sink, level: LevelFilter) {
    *SINK.lock() = Some(sink);
    // Fails only if it is set already, which is our own doing.
    let _ = log::set_logger(&Logger);
    log::set_max_level(level);
}

/// Sends one message to the sink; to the debug kernel's console if there is none.
pub fn print(message: fmt::Arguments<'_>) {
    // Copied: the sink may panic, and the panic handler prints.
    let sink = *SINK.lock();
    match sink {
        Some(sink) => sink(message),
        None => crate::debug_println!("{message}"),
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        match record.level() {
            log::Level::Error => print(format_args!("error: {}", record.args())),
            log::Level::Warn => print(format_args!("warning: {}", record.args())),
            log::Level::Info => print(*record.args()),
            log::Level::Debug | log::Level::Trace => print(format_args!("{}: {}", record.target(), record.args())),
        }
    }

    fn flush(&self) {}
}
