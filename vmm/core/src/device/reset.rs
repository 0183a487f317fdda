// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which writes reset the machine? Ports 0xcf9 and 0x92; the keyboard controller's pulse is in the dispatcher.

/// The keyboard controller's "pulse output line 0", which is wired to reset.
pub const KEYBOARD_PULSE_RESET: u8 = 0xfe;
/// 0xcf9: the rising edge of RST_CPU resets.
const RST_CPU: u8 = 0x04;
/// Port 0x92: fast INIT, on its rising edge.
const FAST_INIT: u8 = 0x01;

/// The two registers.
#[derive(Clone, Debug)]
pub struct ResetPorts {
    control: u8,
    port_92: u8,
}

impl Default for ResetPorts {
    /// A20 is on.
    fn default() -> Self {
        Self {
            control: 0,
            port_92: 0x02,
        }
    }
}

impl ResetPorts {
    /// Reads 0xcf9.
    pub fn read_control(&self) -> u8 {
        self.control
    }

    /// Writes 0xcf9; `true`: reset.
    pub fn write_control(&mut self, value: u8) -> bool {
        let rises = value & !self.control & RST_CPU != 0;
        self.control = value & 0x0e;
        rises
    }

    /// Reads port 0x92.
    pub fn read_92(&self) -> u8 {
        self.port_92
    }

    /// Writes port 0x92; `true`: reset. The A20 bit is kept, but A20 stays on.
    pub fn write_92(&mut self, value: u8) -> bool {
        let rises = value & !self.port_92 & FAST_INIT != 0;
        self.port_92 = value;
        rises
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_rising_edges_reset() {
        let mut ports = ResetPorts::default();
        assert!(!ports.write_control(0x02), "chooses a hard reset");
        assert!(ports.write_control(0x06));
        assert!(!ports.write_control(0x06), "no edge");
        assert_eq!(ports.read_control(), 0x06);
        assert!(!ports.write_92(0x02));
        assert!(ports.write_92(0x03));
        assert_eq!(ports.read_92(), 0x03);
    }
}
