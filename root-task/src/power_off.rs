// SPDX-License-Identifier: MIT OR Apache-2.0
//! How the machine is switched off when nothing runs any more.

use crate::{log, say};
use sel4::{cap, init_thread};
use umbra_description::PowerOff;

/// Logs the verdict and switches the machine off; where that does nothing, the root task stops for good.
pub fn done(how: PowerOff, port: Option<cap::IOPort>, status: u8) -> ! {
    say!("done status={status}");
    log::flush();
    if let Some(port) = port {
        switch_off(how, port, status);
    }
    say!("halted: it is safe to switch the machine off");
    log::flush();
    loop {
        // Never resumed: the idle thread halts the processor.
        let _ = init_thread::slot::TCB.tcb_suspend();
    }
}

fn switch_off(how: PowerOff, port: cap::IOPort, status: u8) {
    match how {
        // Bochs ends when this word was written byte by byte.
        PowerOff::Bochs => b"Shutdown".iter().for_each(|&byte| {
            let _ = port.ioport_out8(0x8900, byte);
        }),
        // isa-debug-exit: QEMU ends with status (value << 1) | 1.
        PowerOff::Qemu => {
            let _ = port.ioport_out8(0xf4, if status == 0 { 0x10 } else { 0x11 });
        }
        PowerOff::Halt => {}
    }
}
