// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the run loop needs of the devices behind ports and MMIO.

use crate::platform::{Console, Platform, PlatformEvent};
use crate::time::Ticks;
use umbra_mmu_abi::Gpa;

/// All devices of a virtual machine.
pub trait Devices {
    /// Reads a port; `size` is 1, 2 or 4.
    fn pio_read(&mut self, now: Ticks, port: u16, size: u8) -> u32;
    /// Writes a port.
    fn pio_write(&mut self, now: Ticks, port: u16, size: u8, value: u32);
    /// Reads device memory, 1, 2, 4 or 8 bytes; all ones where no device is.
    fn mmio_read(&mut self, now: Ticks, gpa: Gpa, size: u8) -> u64;
    /// Writes device memory; dropped where no device is.
    fn mmio_write(&mut self, now: Ticks, gpa: Gpa, size: u8, value: u64);
    /// Does the interrupt controller ask for an interrupt? Timers catch up with `now` first.
    fn interrupt_pending(&mut self, now: Ticks) -> bool;
    /// Takes it: the vector.
    fn acknowledge(&mut self, now: Ticks) -> u8;
    /// When `interrupt_pending` may change by time alone.
    fn next_deadline(&self, now: Ticks) -> Option<Ticks>;
    /// Somebody signalled the vmm (a console interrupt): look at the back ends.
    fn backend_ready(&mut self, now: Ticks);
    /// An event since the last call.
    fn take_event(&mut self) -> Option<PlatformEvent>;
}

impl<C: Console> Devices for Platform<C> {
    #[inline]
    fn pio_read(&mut self, now: Ticks, port: u16, size: u8) -> u32 {
        Platform::pio_read(self, now, port, size)
    }
    #[inline]
    fn pio_write(&mut self, now: Ticks, port: u16, size: u8, value: u32) {
        Platform::pio_write(self, now, port, size, value);
    }
    #[inline]
    fn mmio_read(&mut self, now: Ticks, gpa: Gpa, size: u8) -> u64 {
        Platform::mmio_read(self, now, gpa, size)
    }
    #[inline]
    fn mmio_write(&mut self, now: Ticks, gpa: Gpa, size: u8, value: u64) {
        Platform::mmio_write(self, now, gpa, size, value);
    }
    #[inline]
    fn interrupt_pending(&mut self, now: Ticks) -> bool {
        Platform::interrupt_pending(self, now)
    }
    #[inline]
    fn acknowledge(&mut self, now: Ticks) -> u8 {
        Platform::acknowledge(self, now)
    }
    #[inline]
    fn next_deadline(&self, now: Ticks) -> Option<Ticks> {
        Platform::next_deadline(self, now)
    }
    fn backend_ready(&mut self, now: Ticks) {
        self.console_input_ready(now);
    }
    #[inline]
    fn take_event(&mut self) -> Option<PlatformEvent> {
        Platform::take_event(self)
    }
}
