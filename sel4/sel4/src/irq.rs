// SPDX-License-Identifier: MIT OR Apache-2.0
//! How do interrupts reach a program?

use crate::cap::{IrqControl, IrqHandler, Notification};
use crate::{AbsoluteCPtr, Result, Word};
use sel4_sys as sys;

/// A line of an I/O APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoApicPin {
    /// Which I/O APIC, from 0.
    pub ioapic: Word,
    /// Which of its pins.
    pub pin: Word,
    /// Whether the line is level-triggered, not edge-triggered.
    pub level_triggered: bool,
    /// Whether it is active low, not active high.
    pub active_low: bool,
}

impl IrqControl {
    /// Makes the handler of an I/O APIC line and puts its capability at `destination`. `vector` is a free number from 0
    /// to 109 by which the kernel knows the interrupt.
    ///
    /// # Errors
    /// `RangeError` for an argument out of range, `RevokeFirst` if the vector is taken, `DeleteFirst` if the slot is.
    pub fn irq_control_get_ioapic(self, pin: IoApicPin, vector: Word, destination: &AbsoluteCPtr) -> Result<()> {
        let AbsoluteCPtr { root, path } = destination;
        Ok(sys::seL4_IRQControl_GetIOAPIC(
            self.bits(),
            root.bits(),
            path.bits,
            Word::from(path.depth),
            pin.ioapic,
            pin.pin,
            Word::from(pin.level_triggered),
            Word::from(pin.active_low),
            vector,
        )?)
    }
}

impl IrqHandler {
    /// Signals `notification` (with its badge) at every interrupt.
    ///
    /// # Errors
    /// `InvalidCapability` if it is none, or without write right.
    pub fn irq_handler_set_notification(self, notification: Notification) -> Result<()> {
        Ok(sys::seL4_IRQHandler_SetNotification(self.bits(), notification.bits())?)
    }

    /// Lets the next interrupt through.
    ///
    /// # Errors
    /// None of a handler capability that exists.
    pub fn irq_handler_ack(self) -> Result<()> {
        Ok(sys::seL4_IRQHandler_Ack(self.bits())?)
    }

    /// Ends the signals.
    ///
    /// # Errors
    /// None of a handler capability that exists.
    pub fn irq_handler_clear(self) -> Result<()> {
        Ok(sys::seL4_IRQHandler_Clear(self.bits())?)
    }
}
