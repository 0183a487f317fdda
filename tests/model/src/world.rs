// SPDX-License-Identifier: MIT OR Apache-2.0
//! What happens in a step, to the machine under test and to the guest that it has to look like?

use crate::judge::{Guest, Op, Seen};
use crate::layout::{LOG_DIRTY, READONLY, SLOTS, first_tables};
use crate::memory::{Page, SLOT_IDS, Slot};
use crate::oracle::{Paging, Registers, Who};
use crate::script::{Header, Step};
use std::fmt;

/// Why a step is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// In a word or two: failures of one kind are the same for the shrinker.
    pub kind: &'static str,
    /// In full.
    pub text: String,
}

impl Failure {
    /// A failure.
    pub fn new(kind: &'static str, text: impl Into<String>) -> Self {
        Self {
            kind,
            text: text.into(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.text)
    }
}

impl std::error::Error for Failure {}

/// A machine under test: processors, memory and the MMU between them.
pub trait Machine {
    /// An access of a processor, with everything that the MMU does about it.
    ///
    /// # Errors
    /// The MMU cannot go on.
    fn access(&mut self, vcpu: u8, gva: u64, who: Who, op: Op) -> Result<Seen, Failure>;
    /// Control registers are loaded; cr3 and the pdptes in any case.
    ///
    /// # Errors
    /// The MMU cannot go on.
    fn load(&mut self, vcpu: u8, regs: &Registers) -> Result<(), Failure>;
    /// A translation is to be forgotten.
    ///
    /// # Errors
    /// The MMU cannot go on.
    fn invlpg(&mut self, vcpu: u8, gva: u64) -> Result<(), Failure>;
    /// A slot is set, or deleted with `npages` 0.
    ///
    /// # Errors
    /// The MMU cannot go on.
    fn set_slot(&mut self, id: u16, slot: &Slot) -> Result<Slotted, Failure>;
    /// Whether this machine does not have what a step is about.
    fn lacks(&self, _: &Step) -> bool {
        false
    }
    /// The pages in the dirty log of a slot, cleared with `Clear::All`; `None` where nothing is logged.
    ///
    /// # Errors
    /// The MMU cannot go on.
    fn log(&mut self, id: u16, clear: Clear) -> Result<Option<Vec<u64>>, Failure>;
    /// A device writes a word.
    ///
    /// # Errors
    /// The MMU cannot go on.
    fn device(&mut self, gpa: u64, value: u64) -> Result<(), Failure>;
    /// Something that the guest must not see.
    ///
    /// # Errors
    /// The MMU cannot go on.
    fn host(&mut self, step: &Step) -> Result<(), Failure>;
    /// The pages that were written since this was last asked.
    fn take_written(&mut self) -> Vec<Page>;
    /// A word of memory.
    fn word(&mut self, page: Page, gpa: u64) -> u64;
    /// Everything compared with everything.
    ///
    /// # Errors
    /// What differs.
    fn audit(&mut self) -> Result<(), Failure>;
    /// What must hold after each step and costs little.
    ///
    /// # Errors
    /// What does not hold.
    fn check(&mut self) -> Result<(), Failure>;
}

impl<M: Machine + ?Sized> Machine for Box<M> {
    fn access(&mut self, vcpu: u8, gva: u64, who: Who, op: Op) -> Result<Seen, Failure> {
        (**self).access(vcpu, gva, who, op)
    }
    fn load(&mut self, vcpu: u8, regs: &Registers) -> Result<(), Failure> {
        (**self).load(vcpu, regs)
    }
    fn invlpg(&mut self, vcpu: u8, gva: u64) -> Result<(), Failure> {
        (**self).invlpg(vcpu, gva)
    }
    fn set_slot(&mut self, id: u16, slot: &Slot) -> Result<Slotted, Failure> {
        (**self).set_slot(id, slot)
    }
    fn lacks(&self, step: &Step) -> bool {
        (**self).lacks(step)
    }
    fn log(&mut self, id: u16, clear: Clear) -> Result<Option<Vec<u64>>, Failure> {
        (**self).log(id, clear)
    }
    fn device(&mut self, gpa: u64, value: u64) -> Result<(), Failure> {
        (**self).device(gpa, value)
    }
    fn host(&mut self, step: &Step) -> Result<(), Failure> {
        (**self).host(step)
    }
    fn take_written(&mut self) -> Vec<Page> {
        (**self).take_written()
    }
    fn word(&mut self, page: Page, gpa: u64) -> u64 {
        (**self).word(page, gpa)
    }
    fn audit(&mut self) -> Result<(), Failure> {
        (**self).audit()
    }
    fn check(&mut self) -> Result<(), Failure> {
        (**self).check()
    }
}

/// What came of a change of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slotted {
    /// It is done.
    Done,
    /// It is wrong.
    Refused,
    /// The MMU has not enough tables for it, or the backing not enough pages.
    NoRoom,
    /// Frames are being changed.
    Busy,
}

/// What is done with the log after it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clear {
    /// Nothing.
    Nothing,
    /// All that was read.
    All,
    /// These pages of the slot.
    Pages {
        /// First.
        first: u32,
        /// How many.
        npages: u32,
    },
}

/// How accesses ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// Reads and fetches that found a value.
    pub read: u64,
    /// Writes that were done.
    pub written: u64,
    /// Page faults of the guest.
    pub faults: u64,
    /// Accesses that the vmm emulates.
    pub mmio: u64,
}

impl Ended {
    fn count(&mut self, seen: Seen) {
        *match seen {
            Seen::Value(_) => &mut self.read,
            Seen::Stored => &mut self.written,
            Seen::Fault { .. } => &mut self.faults,
            Seen::Mmio { .. } | Seen::Blocked => &mut self.mmio,
        } += 1;
    }

    /// The sum of both.
    pub fn and(self, other: Self) -> Self {
        Self {
            read: self.read + other.read,
            written: self.written + other.written,
            faults: self.faults + other.faults,
            mmio: self.mmio + other.mmio,
        }
    }
}

/// A machine, and what it should be.
pub struct World<M> {
    /// The machine.
    pub machine: M,
    /// The guest as the manual has it.
    pub guest: Guest,
    /// Changes of the host that have begun.
    invalidating: u32,
    /// How accesses ended.
    pub ended: Ended,
    /// Steps so far.
    pub steps: u64,
    audit_every: u64,
}

impl<M: Machine> World<M> {
    /// The small guest of [`crate::layout`] in the mode of `header`; audited every `audit_every` steps.
    ///
    /// # Errors
    /// The machine does not even start.
    pub fn new(header: &Header, mut machine: M, audit_every: u64) -> Result<Self, Failure> {
        let Header::Machine { paging, vcpus, .. } = *header;
        let mut guest = Guest::new(vcpus, MAXPHYADDR);
        for (id, base, npages, backing, first, flags) in SLOTS {
            let slot = Slot {
                base,
                npages: npages.into(),
                backing,
                first: first.into(),
                flags,
                since: 0,
            };
            if machine.set_slot(id, &slot)? != Slotted::Done {
                return Err(Failure::new("slot", format!("the first slot {id} is refused")));
            }
            guest.set_slot(id, Some(slot));
        }
        let mut world = Self {
            machine,
            guest,
            invalidating: 0,
            ended: Ended::default(),
            steps: 0,
            audit_every,
        };
        for (gpa, bytes, value) in first_tables() {
            let page = world.guest.memory.page_at(gpa >> 12).expect("tables lie in a slot");
            let word = Op::Write { bytes, value }.merge(gpa, world.guest.memory.word(page, gpa));
            world.guest.poke(gpa & !7, word);
            world.machine.device(gpa & !7, word)?;
        }
        for vcpu in 0..vcpus {
            world.load(vcpu, &first_load(vcpu, paging))?;
        }
        Ok(world)
    }

    /// Does a step.
    ///
    /// # Errors
    /// What is wrong after it.
    pub fn step(&mut self, step: &Step) -> Result<(), Failure> {
        self.steps += 1;
        if self.machine.lacks(step) {
            return Ok(());
        }
        match *step {
            Step::Read { vcpu, gva, who } => self.access(vcpu, gva, who, Op::Read)?,
            Step::Fetch { vcpu, gva, who } => self.access(vcpu, gva, who, Op::Fetch)?,
            Step::Write {
                vcpu,
                gva,
                who,
                bytes,
                value,
            } => self.access(vcpu, gva, who, Op::Write { bytes, value })?,
            Step::Load { vcpu, .. } => self.load(vcpu, step)?,
            Step::Invlpg { vcpu, gva } => {
                self.guest.invlpg(vcpu, gva);
                self.machine.invlpg(vcpu, gva)?;
            }
            Step::Slot {
                id,
                base,
                npages,
                backing,
                first,
                flags,
            } => {
                let slot = Slot {
                    base,
                    npages: npages.into(),
                    backing,
                    first: first.into(),
                    flags,
                    since: 0,
                };
                self.set_slot(id, &slot)?;
            }
            Step::TakeLog { id } => self.log(id, Clear::All)?,
            Step::ReadLog { id } => self.log(id, Clear::Nothing)?,
            Step::ClearLog { id, first, npages } => self.log(id, Clear::Pages { first, npages })?,
            Step::Device { gpa, value } => {
                let at = self.guest.memory.page_at(gpa >> 12);
                // Devices stay away from tables: the MMU does not see what they write there.
                if at.is_some_and(|page| !self.guest.memory.is_table(page)) {
                    self.guest.poke(gpa, value);
                    self.machine.device(gpa, value)?;
                }
            }
            Step::InvalidateStart { .. } => {
                self.invalidating += 1;
                self.machine.host(step)?;
            }
            Step::InvalidateEnd {} if self.invalidating == 0 => {}
            Step::InvalidateEnd {} => {
                self.invalidating -= 1;
                self.machine.host(step)?;
            }
            Step::Age { .. }
            | Step::Reclaim { .. }
            | Step::Protect { .. }
            | Step::SplitForLog { .. }
            | Step::Split { .. }
            | Step::Collapse { .. }
            | Step::Limit { .. }
            | Step::Shrink { .. }
            | Step::ZapAll {}
            | Step::Background {} => self.machine.host(step)?,
        }
        self.machine.check()?;
        match self.steps % self.audit_every {
            0 => self.audit(),
            _ => Ok(()),
        }
    }

    /// Compares everything: the MMU with itself, and what was written with what should have been.
    ///
    /// # Errors
    /// What differs.
    pub fn audit(&mut self) -> Result<(), Failure> {
        self.machine.audit()?;
        for page in self.machine.take_written() {
            self.compare(page)?;
        }
        Ok(())
    }

    /// The same for all memory, written or not.
    ///
    /// # Errors
    /// What differs.
    pub fn audit_all(&mut self) -> Result<(), Failure> {
        self.audit()?;
        let pages: Vec<Page> = self.guest.memory.pages().map(|(page, _)| page).collect();
        pages.into_iter().try_for_each(|page| self.compare(page))
    }

    fn compare(&mut self, page: Page) -> Result<(), Failure> {
        for gpa in (0..4096).step_by(8) {
            let (real, right) = (self.machine.word(page, gpa), self.guest.memory.word(page, gpa));
            if real != right {
                let text = format!("byte {gpa:#x} of {page:x?} begins {real:#x}, not {right:#x}");
                return Err(Failure::new("memory", text));
            }
        }
        Ok(())
    }

    fn access(&mut self, vcpu: u8, gva: u64, who: Who, op: Op) -> Result<(), Failure> {
        let Self {
            machine,
            guest,
            invalidating,
            ended,
            ..
        } = self;
        let gva = linear(guest.cpus[vcpu as usize].regs.paging, gva);
        let mut seen = machine.access(vcpu, gva, who, op)?;
        while seen == Seen::Blocked {
            // The host has to end what it has begun, and the access goes on.
            if *invalidating == 0 {
                return Err(Failure::new("blocked", format!("the access to {gva:#x} never ends")));
            }
            *invalidating -= 1;
            machine.host(&Step::InvalidateEnd {})?;
            seen = machine.access(vcpu, gva, who, op)?;
        }
        ended.count(seen);
        let judged = guest.judge(vcpu, gva, who, op, seen, &mut |page, gpa| machine.word(page, gpa));
        judged.map_err(|text| Failure::new("access", text))
    }

    fn load(&mut self, vcpu: u8, step: &Step) -> Result<(), Failure> {
        let Step::Load {
            paging, controls, cr3, ..
        } = *step
        else {
            unreachable!("a load is asked for")
        };
        // The PDPTE registers are read from memory, which the host may be changing.
        while paging == Paging::Pae && self.invalidating > 0 {
            self.invalidating -= 1;
            self.machine.host(&Step::InvalidateEnd {})?;
        }
        // A general protection fault changes nothing, and the MMU is not asked.
        if self.guest.load(vcpu, paging, controls, cr3) {
            let regs = self.guest.cpus[vcpu as usize].regs;
            self.machine.load(vcpu, &regs)?;
        }
        Ok(())
    }

    fn set_slot(&mut self, id: u16, slot: &Slot) -> Result<(), Failure> {
        let memory = &self.guest.memory;
        let delete = slot.npages == 0;
        let known = slot.flags & !(LOG_DIRTY | READONLY) == 0 && usize::from(id) < SLOT_IDS;
        let wanted = known
            && if delete {
                memory.slot(id).is_some()
            } else {
                memory.accepts(id, slot)
            };
        let slotted = self.machine.set_slot(id, slot)?;
        let right = match slotted {
            Slotted::Done => wanted,
            Slotted::Refused => !wanted || !delete && slot.cuts_large(),
            Slotted::NoRoom => !delete,
            Slotted::Busy => self.invalidating > 0,
        };
        if !right {
            let text = format!("slot {id} as {slot:x?} is right: {wanted}, and came to {slotted:?}");
            return Err(Failure::new("slot", text));
        }
        if slotted == Slotted::Done {
            self.guest.set_slot(id, (!delete).then_some(*slot));
        }
        Ok(())
    }

    /// The log has what was written, and no page more.
    fn log(&mut self, id: u16, clear: Clear) -> Result<(), Failure> {
        let real = self.machine.log(id, clear)?;
        let logged = self
            .guest
            .memory
            .slot(id)
            .is_some_and(|slot| slot.flags & LOG_DIRTY != 0);
        let begun = self.guest.memory.begun(id).clone();
        let wanted = logged.then(|| self.guest.memory.written(id));
        let right = match (&real, &wanted) {
            (Some(real), Some(wanted)) => {
                let all = wanted.iter().all(|page| real.contains(page));
                all && real.iter().all(|page| wanted.contains(page) || begun.contains(page))
            }
            (None, None) => true,
            (None, Some(_)) | (Some(_), None) => false,
        };
        if !right {
            return Err(Failure::new(
                "log",
                format!("of slot {id} is {real:x?}, not {wanted:x?}"),
            ));
        }
        if let Some(wanted) = wanted {
            match clear {
                Clear::Nothing => {}
                Clear::All => wanted.clear(),
                Clear::Pages { first, npages } => {
                    wanted.retain(|page| !(first.into()..first as u64 + npages as u64).contains(page));
                }
            }
        }
        Ok(())
    }
}

/// Physical addresses of guests have so many bits.
pub const MAXPHYADDR: u32 = 40;

/// How processor `vcpu` starts.
fn first_load(vcpu: u8, paging: Paging) -> Step {
    use crate::oracle::Controls;
    Step::Load {
        vcpu,
        paging,
        controls: Controls::WP | Controls::NXE | Controls::PSE,
        cr3: crate::layout::roots(paging)[0],
    }
}

/// The linear address that a processor makes of `gva` in its mode: 32 bits, or a canonical address.
pub fn linear(paging: Paging, gva: u64) -> u64 {
    let bits = match paging {
        Paging::Off | Paging::TwoLevel | Paging::Pae => return gva & 0xffff_ffff,
        Paging::FourLevel => 48,
        Paging::FiveLevel => 57,
    };
    ((gva << (64 - bits)) as i64 >> (64 - bits)) as u64
}
