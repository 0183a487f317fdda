// SPDX-License-Identifier: MIT OR Apache-2.0
//! How does the guest switch itself off? The fixed power management registers of ACPI (ACPI 6.5, 4.8.3).

/// First port: PM1a_STS (2 bytes) and PM1a_EN (2 bytes).
pub const PM1A_EVENT: u16 = 0x600;
/// PM1a_CNT (2 bytes).
pub const PM1A_CONTROL: u16 = 0x604;
/// SLP_TYP of the S5 state, as the DSDT's \_S5 says; 0 because small guests write 0x2000 to 0x604 without looking.
pub const SLEEP_TYPE_S5: u8 = 0;

/// PM1_CNT: SCI_EN. There is no SMI to hand over from: always set.
const SCI_EN: u16 = 1;
/// PM1_CNT, second byte: SLP_TYP and SLP_EN.
const SLP_TYP_SHIFT: u8 = 2;
const SLP_EN: u8 = 0x20;

/// The registers. No event ever happens, so that the SCI (IRQ 9) is never raised.
#[derive(Clone, Debug, Default)]
pub struct PowerManagement {
    enable: [u8; 2],
    control: u16,
}

/// What a write asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sleep {
    /// Nothing.
    Stay,
    /// S5: off.
    Off,
}

impl PowerManagement {
    /// Reads the byte at `PM1A_EVENT + offset` (0-5).
    pub fn read(&self, offset: u16) -> u8 {
        match offset {
            2 | 3 => self.enable[usize::from(offset & 1)],
            4 => (self.control | SCI_EN) as u8,
            5 => (self.control >> 8) as u8,
            _ => 0, // status: nothing happened
        }
    }

    /// Writes the byte at `PM1A_EVENT + offset` (0-5).
    pub fn write(&mut self, offset: u16, value: u8) -> Sleep {
        match offset {
            2 | 3 => self.enable[usize::from(offset & 1)] = value,
            4 => self.control = self.control & 0xff00 | u16::from(value & 0x02), // BM_RLD; GBL_RLS is write-only
            5 => {
                self.control = self.control & 0x00ff | u16::from(value & !SLP_EN) << 8;
                if value & SLP_EN != 0 && (value >> SLP_TYP_SHIFT) & 7 == SLEEP_TYPE_S5 {
                    return Sleep::Off;
                }
            }
            _ => {}
        }
        Sleep::Stay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acpi_mode_is_always_on() {
        let mut pm = PowerManagement::default();
        pm.write(4, 0);
        assert_eq!(pm.read(4) & 1, 1);
    }

    #[test]
    fn only_s5_with_sleep_enable_switches_off() {
        let mut pm = PowerManagement::default();
        assert_eq!(pm.write(5, 0), Sleep::Stay, "the type alone");
        assert_eq!(
            pm.write(5, SLP_EN | 3 << SLP_TYP_SHIFT),
            Sleep::Stay,
            "S3 is not offered"
        );
        assert_eq!(pm.read(5), 3 << SLP_TYP_SHIFT, "SLP_EN reads 0");
        assert_eq!(pm.write(5, SLP_EN), Sleep::Off);
    }

    #[test]
    fn enables_keep_and_status_stays_clear() {
        let mut pm = PowerManagement::default();
        pm.write(2, 0x20);
        pm.write(3, 0x01);
        pm.write(0, 0xff);
        assert_eq!([0, 1, 2, 3].map(|at| pm.read(at)), [0, 0, 0x20, 0x01]);
    }
}
