// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which interrupt comes next? Two cascaded 8259A controllers with edge/level control registers.
//!
//! Written after the 8259A data sheet (Intel 231468); ELCR after the 82371AB's (PIIX4).

/// Input of the first chip on which the second one reports.
const CASCADE: u8 = 2;
/// Inputs whose trigger mode software may choose (ELCR); the others are edges by wiring.
const ELCR_CHOICE: [u8; 2] = [0xf8, 0xde];

/// One of the two chips.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chip {
    /// IRQ 0-7, ports 0x20 and 0x21.
    First = 0,
    /// IRQ 8-15, ports 0xa0 and 0xa1.
    Second = 1,
}

/// The word that the initialisation sequence expects next at the data port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Init {
    /// Power-on: no ICW1 yet; never interrupts.
    Never,
    Icw2,
    Icw3,
    Icw4,
    /// Operational: the data port is the mask.
    Ready,
}

/// What the next read of the command port returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReadBack {
    Irr,
    Isr,
}

#[derive(Clone, Debug)]
struct Pic8259 {
    /// Levels of the inputs.
    lines: u8,
    /// Requests: latched edges, and for level inputs the level.
    irr: u8,
    /// In service.
    isr: u8,
    /// Masked.
    imr: u8,
    /// Level-triggered inputs.
    elcr: u8,
    /// ICW1.LTIM: all inputs are level-triggered.
    all_level: bool,
    /// ICW2.
    vector_base: u8,
    init: Init,
    icw1_single: bool,
    icw1_needs_icw4: bool,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    special_mask: bool,
    special_fully_nested: bool,
    /// The input of lowest priority; 7 unless rotated.
    lowest: u8,
    read_back: ReadBack,
    /// OCW3.P: the next read is an INTA.
    poll: bool,
}

impl Pic8259 {
    const fn new() -> Self {
        Self {
            lines: 0,
            irr: 0,
            isr: 0,
            imr: 0,
            elcr: 0,
            all_level: false,
            vector_base: 0,
            init: Init::Never,
            icw1_single: false,
            icw1_needs_icw4: false,
            auto_eoi: false,
            rotate_on_auto_eoi: false,
            special_mask: false,
            special_fully_nested: false,
            lowest: 7,
            read_back: ReadBack::Irr,
            poll: false,
        }
    }

    fn is_level(&self, bit: u8) -> bool {
        self.all_level || self.elcr & bit != 0
    }

    fn set_line(&mut self, input: u8, high: bool) {
        let bit = 1 << input;
        if high {
            if self.is_level(bit) || self.lines & bit == 0 {
                self.irr |= bit;
            }
            self.lines |= bit;
        } else {
            // A request withdrawn before its INTA is gone, edge or level.
            self.lines &= !bit;
            self.irr &= !bit;
        }
    }

    /// The input of highest priority among `set`.
    fn first_of(&self, set: u8) -> Option<u8> {
        if set == 0 {
            return None;
        }
        let top = (self.lowest + 1) & 7;
        Some((set.rotate_right(top.into()).trailing_zeros() as u8 + top) & 7)
    }

    fn rank(&self, input: u8) -> u8 {
        input.wrapping_sub(self.lowest + 1) & 7
    }

    /// The input whose request is to be served now.
    fn request(&self, is_first: bool) -> Option<u8> {
        if self.init != Init::Ready {
            return None;
        }
        let wanted = self.first_of(self.irr & !self.imr)?;
        let mut blocking = self.isr;
        if self.special_mask {
            blocking &= !self.imr;
        }
        if self.special_fully_nested && is_first {
            blocking &= !(1 << CASCADE);
        }
        match self.first_of(blocking) {
            Some(served) if self.rank(served) <= self.rank(wanted) => None,
            Some(_) | None => Some(wanted),
        }
    }

    /// INTA: moves `input` from requested to in service.
    fn take(&mut self, input: u8) {
        let bit = 1 << input;
        if !self.is_level(bit) {
            self.irr &= !bit;
        }
        if self.auto_eoi {
            if self.rotate_on_auto_eoi {
                self.lowest = input;
            }
        } else {
            self.isr |= bit;
        }
    }

    fn icw1(&mut self, value: u8) {
        // Edge detectors are cleared: an input that is high must fall and rise again.
        self.all_level = value & 0x08 != 0;
        let level = if self.all_level { 0xff } else { self.elcr };
        self.irr = self.lines & level;
        self.isr = 0;
        self.imr = 0;
        self.lowest = 7;
        self.special_mask = false;
        self.special_fully_nested = false;
        self.auto_eoi = false;
        self.rotate_on_auto_eoi = false;
        self.read_back = ReadBack::Irr;
        self.poll = false;
        self.icw1_single = value & 0x02 != 0;
        self.icw1_needs_icw4 = value & 0x01 != 0;
        self.init = Init::Icw2;
    }

    fn ocw2(&mut self, value: u8) {
        let level = value & 7;
        // R, SL, EOI.
        match value >> 5 {
            0b000 => self.rotate_on_auto_eoi = false,
            0b100 => self.rotate_on_auto_eoi = true,
            0b001 => {
                self.end_highest();
            }
            0b101 => {
                if let Some(ended) = self.end_highest() {
                    self.lowest = ended;
                }
            }
            0b011 => self.isr &= !(1 << level),
            0b111 => {
                self.isr &= !(1 << level);
                self.lowest = level;
            }
            0b110 => self.lowest = level,
            _ => {} // 0b010: no operation
        }
    }

    /// Non-specific EOI. In special mask mode it leaves levels alone that are masked.
    fn end_highest(&mut self) -> Option<u8> {
        let candidates = if self.special_mask {
            self.isr & !self.imr
        } else {
            self.isr
        };
        let ended = self.first_of(candidates)?;
        self.isr &= !(1 << ended);
        Some(ended)
    }

    fn ocw3(&mut self, value: u8) {
        if value & 0x40 != 0 {
            self.special_mask = value & 0x20 != 0;
        }
        if value & 0x04 != 0 {
            self.poll = true;
        } else if value & 0x02 != 0 {
            self.read_back = if value & 0x01 != 0 {
                ReadBack::Isr
            } else {
                ReadBack::Irr
            };
        }
    }

    fn write_command(&mut self, value: u8) {
        if value & 0x10 != 0 {
            self.icw1(value);
        } else if value & 0x08 != 0 {
            self.ocw3(value);
        } else {
            self.ocw2(value);
        }
    }

    fn write_data(&mut self, value: u8) {
        let after_icw3 = if self.icw1_needs_icw4 { Init::Icw4 } else { Init::Ready };
        match self.init {
            Init::Never | Init::Ready => self.imr = value,
            Init::Icw2 => {
                self.vector_base = value & 0xf8;
                self.init = if self.icw1_single { after_icw3 } else { Init::Icw3 };
            }
            // The cascade is wired: what software says about it changes nothing.
            Init::Icw3 => self.init = after_icw3,
            Init::Icw4 => {
                self.auto_eoi = value & 0x02 != 0;
                self.special_fully_nested = value & 0x10 != 0;
                self.init = Init::Ready;
            }
        }
    }
}

/// Both chips as the PC wires them.
#[derive(Clone, Debug)]
pub struct PicPair {
    chips: [Pic8259; 2],
    /// INT output of the first chip.
    int: bool,
}

impl Default for PicPair {
    fn default() -> Self {
        Self::new()
    }
}

impl PicPair {
    /// At power-on: silent until initialised.
    pub const fn new() -> Self {
        Self {
            chips: [Pic8259::new(), Pic8259::new()],
            int: false,
        }
    }

    /// Drives an interrupt line (0-15; 2 is the cascade and ignored).
    pub fn set_line(&mut self, irq: u8, high: bool) {
        let (chip, input) = if irq < 8 {
            (Chip::First, irq)
        } else {
            (Chip::Second, irq & 7)
        };
        let pic = &mut self.chips[chip as usize];
        if irq == CASCADE || (pic.lines & (1 << input) != 0) == high {
            return;
        }
        pic.set_line(input, high);
        self.update();
    }

    /// The INT output: the processor is asked to run an INTA cycle.
    pub fn int(&self) -> bool {
        self.int
    }

    /// A further edge on `irq` could change the INT output: it is neither masked nor already requested.
    pub fn wants_edge(&self, irq: u8) -> bool {
        let (pic, bit) = if irq < 8 {
            (&self.chips[0], 1 << irq)
        } else {
            (&self.chips[1], 1 << (irq & 7))
        };
        let cascade_masked = irq >= 8 && self.chips[0].imr & (1 << CASCADE) != 0;
        pic.init == Init::Ready && (pic.imr | pic.irr) & bit == 0 && !cascade_masked
    }

    /// The INTA cycle: the vector of the interrupt to run. Without a request it is the spurious one (input 7).
    pub fn acknowledge(&mut self) -> u8 {
        let vector = match self.chips[0].request(true) {
            None => self.chips[0].vector_base + 7,
            Some(input) => {
                self.chips[0].take(input);
                if input == CASCADE {
                    self.acknowledge_second()
                } else {
                    self.chips[0].vector_base + input
                }
            }
        };
        self.update();
        vector
    }

    fn acknowledge_second(&mut self) -> u8 {
        let second = &mut self.chips[1];
        let input = second.request(false);
        if let Some(input) = input {
            second.take(input);
        }
        // The second chip's INT falls with INTA, so that its next request is an edge again.
        self.chips[0].set_line(CASCADE, false);
        self.chips[1].vector_base + input.unwrap_or(7)
    }

    /// Reads port 0x20 or 0xa0.
    pub fn read_command(&mut self, chip: Chip) -> u8 {
        if self.chips[chip as usize].poll {
            return self.poll(chip);
        }
        let pic = &self.chips[chip as usize];
        match pic.read_back {
            ReadBack::Irr => pic.irr,
            ReadBack::Isr => pic.isr,
        }
    }

    /// Reads port 0x21 or 0xa1: the mask.
    pub fn read_data(&mut self, chip: Chip) -> u8 {
        if self.chips[chip as usize].poll {
            return self.poll(chip);
        }
        self.chips[chip as usize].imr
    }

    /// The poll command: bit 7 and the level, which is taken as by INTA; 0 without a request.
    fn poll(&mut self, chip: Chip) -> u8 {
        let pic = &mut self.chips[chip as usize];
        pic.poll = false;
        let Some(input) = pic.request(chip == Chip::First) else {
            return 0;
        };
        pic.take(input);
        if chip == Chip::Second {
            self.chips[0].set_line(CASCADE, false);
        }
        self.update();
        0x80 | input
    }

    /// Writes port 0x20 or 0xa0: ICW1, OCW2, OCW3.
    pub fn write_command(&mut self, chip: Chip, value: u8) {
        self.chips[chip as usize].write_command(value);
        self.update();
    }

    /// Writes port 0x21 or 0xa1: ICW2-4, OCW1.
    pub fn write_data(&mut self, chip: Chip, value: u8) {
        self.chips[chip as usize].write_data(value);
        self.update();
    }

    /// Reads port 0x4d0 or 0x4d1: bit set = level-triggered.
    pub fn read_elcr(&self, chip: Chip) -> u8 {
        self.chips[chip as usize].elcr
    }

    /// Writes port 0x4d0 or 0x4d1.
    pub fn write_elcr(&mut self, chip: Chip, value: u8) {
        let pic = &mut self.chips[chip as usize];
        pic.elcr = value & ELCR_CHOICE[chip as usize];
        pic.irr |= pic.lines & pic.elcr;
        self.update();
    }

    fn update(&mut self) {
        let second = self.chips[1].request(false).is_some();
        if second != (self.chips[0].lines & (1 << CASCADE) != 0) {
            self.chips[0].set_line(CASCADE, second);
        }
        self.int = self.chips[0].request(true).is_some();
    }
}

#[cfg(test)]
#[path = "pic_tests.rs"]
mod tests;
