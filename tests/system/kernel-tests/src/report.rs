// SPDX-License-Identifier: MIT OR Apache-2.0
//! How do verdicts reach whoever started the machine, and how is it switched off?

use crate::world::World;
use alloc::format;
use alloc::string::String;
use core::fmt::{Arguments, Write};
use sel4::init_thread::slot::IO_PORT;
use sel4_root_task::{Serial, logger};

/// The system log.
const COM2: u16 = 0x2f8;
/// Bochs ends when it reads the word "Shutdown" here.
const BOCHS_PORT: u16 = 0x8900;
/// QEMU's isa-debug-exit.
const QEMU_PORT: u16 = 0xf4;

/// Why a test failed.
pub struct Failure(pub String);

impl From<sel4::Error> for Failure {
    fn from(error: sel4::Error) -> Self {
        Self(format!("the kernel refused: {error}"))
    }
}

/// What a test returns.
pub type Outcome = Result<(), Failure>;

/// Ends the test unless a condition holds.
#[macro_export]
macro_rules! check {
    ($condition:expr, $($why:tt)*) => {
        if !$condition {
            return Err($crate::report::Failure(alloc::format!($($why)*)));
        }
    };
}

/// What the machine must have for a test.
#[derive(Clone, Copy)]
pub enum Needs {
    /// Anything will do.
    Nothing,
    /// VT-x.
    Vtx,
    /// No VT-x.
    NoVtx,
}

/// A test.
pub struct Test {
    /// Its name: what must hold.
    pub name: &'static str,
    /// Where it can run.
    pub needs: Needs,
    /// The test.
    pub body: fn(&mut World) -> Outcome,
}

impl Test {
    /// A test of VCPUs and EPTs.
    pub const fn vtx(name: &'static str, body: fn(&mut World) -> Outcome) -> Self {
        let needs = Needs::Vtx;
        Self { name, needs, body }
    }

    /// A test for every machine.
    pub const fn any(name: &'static str, body: fn(&mut World) -> Outcome) -> Self {
        let needs = Needs::Nothing;
        Self { name, needs, body }
    }
}

/// Counts and prints verdicts.
pub struct Report {
    failed: usize,
}

impl Report {
    /// Sets up the serial port and the panic message.
    pub fn new() -> Self {
        // Without the port there is nobody to tell.
        let _ = serial().init();
        logger::init(panicked, log::LevelFilter::Info);
        Self { failed: 0 }
    }

    /// Prints a line.
    pub fn line(&self, text: Arguments<'_>) {
        line(text);
    }

    /// Says why a test cannot run here.
    pub fn not_run(&self, test: &Test, why: &str) {
        line(format_args!("test {} ... not run: {why}", test.name));
    }

    /// Runs a test. Its name is printed first, so that a kernel that hangs tells where.
    pub fn run(&mut self, test: &Test, world: &mut World) {
        let mut serial = serial();
        // Serial never fails: bytes that cannot be sent are dropped.
        let _ = write!(serial, "test {} ... ", test.name);
        match (test.body)(world) {
            Ok(()) => line(format_args!("ok")),
            Err(Failure(why)) => {
                self.failed += 1;
                line(format_args!("FAILED: {why}"));
            }
        }
    }

    /// Prints the verdict and switches the machine off.
    pub fn finish(self) -> ! {
        done(u8::from(self.failed > 0))
    }
}

fn serial() -> Serial {
    Serial::new(IO_PORT, COM2)
}

fn line(text: Arguments<'_>) {
    // See Report::run.
    let _ = writeln!(serial(), "{text}");
}

fn panicked(text: Arguments<'_>) {
    line(format_args!("\numbra: {text}"));
    done(1)
}

fn done(status: u8) -> ! {
    line(format_args!("umbra: done status={status}"));
    serial().flush();
    for byte in b"Shutdown" {
        // On another machine nobody listens at these ports.
        let _ = IO_PORT.ioport_out8(BOCHS_PORT, *byte);
    }
    let _ = IO_PORT.ioport_out32(QEMU_PORT, status.into());
    loop {
        sel4::yield_();
    }
}
