// SPDX-License-Identifier: MIT OR Apache-2.0
//! What time is it? The PC's clock, read once at start-up.

use sel4::cap;
use umbra_root_core::calendar::ClockRegisters;

const INDEX: u16 = 0x70;
const DATA: u16 = 0x71;
/// Status register A, bit 7: the clock is changing its registers.
const UPDATING: u8 = 1 << 7;
/// An update takes 2 ms at most; a port access takes about a microsecond.
const TRIES: u32 = 20_000;

/// Seconds since 1970, or `None` where there is no clock that shows a date. `ports` covers the clock.
pub fn unix_time(ports: cap::IOPort) -> sel4::Result<Option<u64>> {
    let register = |index: u8| -> sel4::Result<u8> {
        ports.ioport_out8(INDEX, index)?;
        ports.ioport_in8(DATA)
    };
    let mut last = None;
    for _ in 0..TRIES {
        if register(0x0a)? & UPDATING != 0 {
            continue;
        }
        let now = ClockRegisters {
            second: register(0x00)?,
            minute: register(0x02)?,
            hour: register(0x04)?,
            day: register(0x07)?,
            month: register(0x08)?,
            year: register(0x09)?,
            status_b: register(0x0b)?,
        };
        // Twice the same: no update came between the registers.
        if last == Some(now) {
            return Ok(now.unix_time());
        }
        last = Some(now);
    }
    Ok(None)
}
