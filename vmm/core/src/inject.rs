// SPDX-License-Identifier: MIT OR Apache-2.0
//! Events for the guest: their VMCS form, and what becomes of an exception while another event is being delivered.

/// Exception vectors.
pub mod vector {
    #![allow(missing_docs)]
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const NMI: u8 = 2;
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const UD: u8 = 6;
    pub const NM: u8 = 7;
    pub const DF: u8 = 8;
    pub const TS: u8 = 10;
    pub const NP: u8 = 11;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const AC: u8 = 17;
    pub const MC: u8 = 18;
}

/// A fault that an instruction raises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// The vector.
    pub vector: u8,
    /// Its error code, for vectors that have one.
    pub error: Option<u32>,
    /// For #PF: the linear address for CR2.
    pub cr2: Option<u64>,
}

impl Exception {
    /// #DE.
    pub const DE: Self = Self::plain(vector::DE);
    /// #DB.
    pub const DB: Self = Self::plain(vector::DB);
    /// #UD.
    pub const UD: Self = Self::plain(vector::UD);
    /// #GP(0).
    pub const GP0: Self = Self::with_error(vector::GP, 0);
    /// #SS(0).
    pub const SS0: Self = Self::with_error(vector::SS, 0);

    const fn plain(vector: u8) -> Self {
        Self {
            vector,
            error: None,
            cr2: None,
        }
    }
    /// An exception with an error code.
    pub const fn with_error(vector: u8, error: u32) -> Self {
        Self {
            vector,
            error: Some(error),
            cr2: None,
        }
    }
    /// #PF at a linear address.
    pub const fn page_fault(cr2: u64, error: u32) -> Self {
        Self {
            vector: vector::PF,
            error: Some(error),
            cr2: Some(cr2),
        }
    }
    /// As real mode delivers it: without an error code.
    pub const fn in_real_mode(self) -> Self {
        Self { error: None, ..self }
    }
}

/// Interruption types (SDM vol. 3, table 25-17).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum EventKind {
    ExternalInterrupt = 0,
    Nmi = 2,
    HardwareException = 3,
    SoftwareInterrupt = 4,
    PrivilegedSoftwareException = 5,
    SoftwareException = 6,
}

/// An event to deliver at the next entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// What it is.
    pub kind: EventKind,
    /// The vector.
    pub vector: u8,
    /// Error code to push.
    pub error: Option<u32>,
    /// For software events: length of the instruction, in bytes.
    pub instruction_length: u32,
}

impl Event {
    /// An external interrupt.
    pub const fn interrupt(vector: u8) -> Self {
        Self {
            kind: EventKind::ExternalInterrupt,
            vector,
            error: None,
            instruction_length: 0,
        }
    }
    /// A non-maskable interrupt.
    pub const NMI: Self = Self {
        kind: EventKind::Nmi,
        vector: vector::NMI,
        error: None,
        instruction_length: 0,
    };

    /// An exception.
    pub const fn exception(e: Exception) -> Self {
        Self {
            kind: EventKind::HardwareException,
            vector: e.vector,
            error: e.error,
            instruction_length: 0,
        }
    }

    /// The VM-entry interruption-information field.
    pub const fn entry_info(self) -> u32 {
        let error = if self.error.is_some() { 1 << 11 } else { 0 };
        1 << 31 | error | (self.kind as u32) << 8 | self.vector as u32
    }

    /// The event of an IDT-vectoring information field, to be delivered again; `error` and `length` are the fields beside
    /// it. `None`: nothing was under way, or a type that the manual reserves.
    pub const fn from_vectoring(info: u32, error: u32, length: u32) -> Option<Self> {
        if info >> 31 == 0 {
            return None;
        }
        let kind = match info >> 8 & 7 {
            0 => EventKind::ExternalInterrupt,
            2 => EventKind::Nmi,
            3 => EventKind::HardwareException,
            4 => EventKind::SoftwareInterrupt,
            5 => EventKind::PrivilegedSoftwareException,
            6 => EventKind::SoftwareException,
            _ => return None,
        };
        let error = if info & (1 << 11) != 0 { Some(error) } else { None };
        Some(Self {
            kind,
            vector: info as u8,
            error,
            instruction_length: length,
        })
    }
}

/// What the processor does about an exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merged {
    /// Deliver this event.
    Deliver(Event),
    /// Shut down.
    TripleFault,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    PageFault,
    DoubleFault,
}

const fn class(vector: u8) -> Class {
    match vector {
        vector::DE | vector::TS | vector::NP | vector::SS | vector::GP => Class::Contributory,
        vector::PF => Class::PageFault,
        vector::DF => Class::DoubleFault,
        _ => Class::Benign,
    }
}

/// `second` happens while `first` is being delivered (SDM vol. 3, table 6-5).
// REQ: PF-5
pub fn merge(first: Option<Event>, second: Exception) -> Merged {
    let deliver = Merged::Deliver(Event::exception(second));
    let Some(first) = first else { return deliver };
    if first.kind != EventKind::HardwareException {
        // Interrupts, NMIs and software interrupts are benign: the second is handled, and IRET finds the first again
        // only where it is level-triggered or re-executed.
        return deliver;
    }
    match (class(first.vector), class(second.vector)) {
        (Class::DoubleFault, Class::Contributory | Class::PageFault | Class::DoubleFault) => Merged::TripleFault,
        (Class::Contributory, Class::Contributory) | (Class::PageFault, Class::Contributory | Class::PageFault) => {
            Merged::Deliver(Event::exception(Exception::with_error(vector::DF, 0)))
        }
        (Class::Benign | Class::Contributory | Class::PageFault | Class::DoubleFault, _) => deliver,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ex(vector: u8) -> Exception {
        Exception {
            vector,
            error: matches!(vector, 8 | 10..=14 | 17).then_some(0),
            cr2: None,
        }
    }

    // REQ: PF-5
    #[test]
    fn nested_faults_follow_the_manuals_table() {
        // Rows: first; columns: second. b: benign, c: contributory, p: page fault. d: double fault, x: shutdown, -: serial.
        let vectors = [
            (vector::UD, 'b'),
            (vector::GP, 'c'),
            (vector::DE, 'c'),
            (vector::PF, 'p'),
            (vector::DF, 'f'),
        ];
        for (first, a) in vectors {
            for (second, b) in vectors {
                if second == vector::DF && first != vector::DF {
                    continue; // raised by nothing but a merge
                }
                let want = match (a, b) {
                    ('c', 'c') | ('p', 'c') | ('p', 'p') => Merged::Deliver(Event::exception(ex(vector::DF))),
                    ('f', 'c' | 'p' | 'f') => Merged::TripleFault,
                    _ => Merged::Deliver(Event::exception(ex(second))),
                };
                assert_eq!(
                    merge(Some(Event::exception(ex(first))), ex(second)),
                    want,
                    "{first} then {second}"
                );
            }
        }
    }

    // REQ: PF-5
    #[test]
    fn a_fault_while_an_interrupt_is_delivered_is_delivered_itself() {
        let pf = Exception::page_fault(0x1234, 2);
        assert_eq!(
            merge(Some(Event::interrupt(0x30)), pf),
            Merged::Deliver(Event::exception(pf))
        );
        assert_eq!(merge(None, pf), Merged::Deliver(Event::exception(pf)));
    }

    #[test]
    fn entry_information_fields() {
        assert_eq!(Event::interrupt(0x30).entry_info(), 0x8000_0030);
        assert_eq!(Event::NMI.entry_info(), 0x8000_0202);
        assert_eq!(Event::exception(Exception::page_fault(0, 6)).entry_info(), 0x8000_0b0e);
        assert_eq!(Event::exception(Exception::UD).entry_info(), 0x8000_0306);
    }

    #[test]
    fn vectoring_information_comes_back_as_the_same_event() {
        for e in [
            Event::interrupt(0x20),
            Event::NMI,
            Event::exception(Exception::page_fault(0, 7)),
            Event {
                kind: EventKind::SoftwareInterrupt,
                vector: 0x80,
                error: None,
                instruction_length: 2,
            },
            Event {
                kind: EventKind::SoftwareException,
                vector: 3,
                error: None,
                instruction_length: 1,
            },
        ] {
            let back = Event::from_vectoring(e.entry_info(), e.error.unwrap_or(0), e.instruction_length);
            assert_eq!(back, Some(e));
        }
        assert_eq!(Event::from_vectoring(0x20, 0, 0), None);
        assert_eq!(Event::from_vectoring(0x8000_0720, 0, 0), None);
    }
}
