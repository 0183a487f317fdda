// SPDX-License-Identifier: MIT OR Apache-2.0
//! The guest's devices together with the physical line behind them.

use crate::console::GuestConsole;
use umbra_mmu_abi::Gpa;
use umbra_vmm_core::devices::Devices;
use umbra_vmm_core::platform::{Platform, PlatformEvent};
use umbra_vmm_core::time::Ticks;

/// The devices of this VM.
pub struct Machine(pub Platform<GuestConsole>);

impl Devices for Machine {
    #[inline]
    fn pio_read(&mut self, now: Ticks, port: u16, size: u8) -> u32 {
        self.0.pio_read(now, port, size)
    }
    #[inline]
    fn pio_write(&mut self, now: Ticks, port: u16, size: u8, value: u32) {
        self.0.pio_write(now, port, size, value);
    }
    #[inline]
    fn mmio_read(&mut self, now: Ticks, gpa: Gpa, size: u8) -> u64 {
        self.0.mmio_read(now, gpa, size)
    }
    #[inline]
    fn mmio_write(&mut self, now: Ticks, gpa: Gpa, size: u8, value: u64) {
        self.0.mmio_write(now, gpa, size, value);
    }
    #[inline]
    fn interrupt_pending(&mut self, now: Ticks) -> bool {
        self.0.interrupt_pending(now)
    }
    #[inline]
    fn acknowledge(&mut self, now: Ticks) -> u8 {
        self.0.acknowledge(now)
    }
    #[inline]
    fn next_deadline(&self, now: Ticks) -> Option<Ticks> {
        self.0.next_deadline(now)
    }
    fn backend_ready(&mut self, now: Ticks) {
        self.0.console_mut().service();
        self.0.console_input_ready(now);
    }
    #[inline]
    fn take_event(&mut self) -> Option<PlatformEvent> {
        self.0.take_event()
    }
}
