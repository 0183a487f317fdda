// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which device answers at which port, and what the machine as a whole does next.

use crate::time::Ticks;
use umbra_mmu_abi::Gpa;

/// The other end of the guest's serial line.
pub trait Console {
    /// Takes a byte that the guest sent.
    fn put(&mut self, byte: u8);
    /// The next byte for the guest, if there is one now.
    fn get(&mut self) -> Option<u8>;
}

/// What the guest asked of the machine as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlatformEvent {
    /// It switched itself off (ACPI S5).
    PowerOff,
    /// It reset itself (0xcf9, port 0x92, keyboard controller).
    Reset,
    /// It wrote to the test-exit port; the status is `(value << 1) | 1`.
    TestExit(u32),
}

/// What differs between machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlatformConfig {
    /// TSC ticks per second; at least 1 000 000.
    pub tsc_hz: u64,
    /// Seconds since 1970 (UTC) at guest TSC 0.
    pub epoch: u64,
    /// RAM in bytes below 4 GiB, for the CMOS.
    pub ram_bytes: u64,
    /// The test-exit port 0xf4 answers.
    pub test_exit: bool,
}

/// Accesses that no device took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AbsentAccesses {
    /// Port accesses.
    pub ports: u64,
    /// Memory-mapped accesses.
    pub mmio: u64,
}

/// All devices of one virtual machine.
pub struct Platform<C: Console> {
    config: PlatformConfig,
    console: C,
    absent: AbsentAccesses,
    event: Option<PlatformEvent>,
}

impl<C: Console> Platform<C> {
    /// The machine at power-on.
    pub fn new(config: PlatformConfig, console: C) -> Self {
        Self {
            config,
            console,
            absent: AbsentAccesses::default(),
            event: None,
        }
    }

    /// `IN` of 1, 2 or 4 bytes; the value is in the low bytes, the rest is 0.
    pub fn pio_read(&mut self, now: Ticks, port: u16, size: u8) -> u32 {
        let _ = (now, port);
        self.absent.ports += 1;
        u32::MAX >> (32 - 8 * u32::from(size))
    }

    /// `OUT` of 1, 2 or 4 bytes; only the low `size` bytes of `value` count.
    pub fn pio_write(&mut self, now: Ticks, port: u16, size: u8, value: u32) {
        let _ = (now, port, size, value, self.config);
        self.absent.ports += 1;
    }

    /// A load of 1, 2, 4 or 8 bytes from where no memory is; the value is in the low bytes, the rest is 0.
    pub fn mmio_read(&mut self, now: Ticks, gpa: Gpa, size: u8) -> u64 {
        let _ = (now, gpa);
        self.absent.mmio += 1;
        u64::MAX >> (64 - 8 * u32::from(size))
    }

    /// A store of 1, 2, 4 or 8 bytes to where no memory is.
    pub fn mmio_write(&mut self, now: Ticks, gpa: Gpa, size: u8, value: u64) {
        let _ = (now, gpa, size, value);
        self.absent.mmio += 1;
    }

    /// The interrupt controller asks for the processor's attention (its INT output).
    pub fn interrupt_pending(&mut self, now: Ticks) -> bool {
        let _ = now;
        false
    }

    /// The processor takes the interrupt (an INTA cycle): its vector.
    pub fn acknowledge(&mut self, now: Ticks) -> u8 {
        let _ = now;
        0
    }

    /// When `interrupt_pending` may change by time alone; `None`: never.
    pub fn next_deadline(&self, now: Ticks) -> Option<Ticks> {
        let _ = now;
        None
    }

    /// Brings all devices to `now`. Other calls do so themselves where it matters.
    pub fn advance(&mut self, now: Ticks) {
        let _ = now;
    }

    /// The console may have input.
    pub fn console_input_ready(&mut self, now: Ticks) {
        let _ = (now, self.console.get());
    }

    /// What the guest asked for since the last call.
    pub fn take_event(&mut self) -> Option<PlatformEvent> {
        self.event.take()
    }

    /// How many accesses found nothing.
    pub fn absent_accesses(&self) -> AbsentAccesses {
        self.absent
    }

    /// The console.
    pub fn console_mut(&mut self) -> &mut C {
        &mut self.console
    }
}
