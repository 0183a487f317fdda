// SPDX-License-Identifier: MIT OR Apache-2.0
//! Was that what a processor would have done? Every right outcome of an access, and the one that memory shows.
//!
//! A processor may use a translation that it has read, or could have read, since it last forgot it: each entry may have
//! any value that it had since then, if that value was present and accessed. What it has not read it takes from memory.
//!
//! * an access that succeeds sets A in the entries that it took from memory, and D in the last one before a write;
//! * no other bit of any entry changes, and none if the access faults;
//! * a write through an entry that was forgotten in memory needs its D flag to have been set.

use crate::memory::{GuestMemory, Page, Slot, View};
use crate::oracle::{self, Access, Controls, End, Kind, Paging, Registers, Walk, Who};
use std::collections::HashMap;

/// How an access ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// A read or fetch found this word.
    Value(u64),
    /// A write was done.
    Stored,
    /// The guest has a page fault.
    Fault {
        /// CR2.
        cr2: u64,
        /// The error code.
        code: u32,
    },
    /// The access cannot go on while the host changes the memory.
    Blocked,
    /// The vmm emulates the access.
    Mmio {
        /// The frame.
        gfn: u64,
        /// Whether it is a write to a slot that can be read.
        readonly_slot: bool,
    },
}

/// What is accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// 8 bytes are read.
    Read,
    /// 8 bytes are fetched.
    Fetch,
    /// The low `bytes` bytes of `value` are written.
    Write {
        /// 1, 2, 4 or 8.
        bytes: u8,
        /// What.
        value: u64,
    },
}

impl Op {
    /// What the page walk is for.
    pub fn kind(self) -> Kind {
        match self {
            Self::Read => Kind::Read,
            Self::Fetch => Kind::Fetch,
            Self::Write { .. } => Kind::Write,
        }
    }

    /// A word after it.
    pub fn merge(self, gpa: u64, word: u64) -> u64 {
        match self {
            Self::Read | Self::Fetch => word,
            Self::Write { bytes: 8, value } => value,
            Self::Write { bytes, value } => {
                let mask = (1u64 << (bytes * 8)) - 1;
                let shift = (gpa & 7) as u32 * 8;
                word & !(mask << shift) | (value & mask) << shift
            }
        }
    }
}

/// A processor as the manual describes it.
#[derive(Clone, Debug)]
pub struct Cpu {
    /// Its registers.
    pub regs: Registers,
    flushed: u64,
    flushed_pages: HashMap<u64, u64>,
}

/// The guest: processors and memory.
#[derive(Clone, Debug)]
pub struct Guest {
    /// Its memory.
    pub memory: GuestMemory,
    /// Its processors.
    pub cpus: Vec<Cpu>,
    now: u64,
    /// The right walks of the access that is judged.
    walks: Vec<Walk>,
}

/// What an access is judged by, beside its walk.
#[derive(Clone, Copy)]
struct Context {
    gva: u64,
    entry_bytes: u8,
    access_code: u32,
}

/// Words that an access changes.
#[derive(Clone, Debug, Default)]
struct Effect {
    words: Vec<(u64, Page, u64)>,
    /// What a word is for a moment, with its flags set, before the access itself writes it.
    before: Option<(u64, Page, u64)>,
    /// The frames that are written, changed by it or not.
    written: Vec<u64>,
    /// The frames that may have been written without a change.
    begun: Vec<u64>,
}

/// What is done about an entry that cannot be written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Refusal {
    /// Its flags stay as they are.
    Unseen,
    /// The vmm is told.
    Told,
}

/// How the flags of a walk were set.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flags {
    /// As far as they can be.
    Set,
    /// The vmm was told of an entry that cannot be written.
    Refused,
}

impl Effect {
    fn set(&mut self, memory: &GuestMemory, gpa: u64, page: Page, change: impl FnOnce(u64) -> u64) {
        let at = gpa & !7;
        match self.find(page, at) {
            Some(index) => self.words[index].2 = change(self.words[index].2),
            None => self.words.push((at, page, change(memory.word(page, at)))),
        }
    }

    fn find(&self, page: Page, at: u64) -> Option<usize> {
        self.words
            .iter()
            .position(|(gpa, other, _)| *other == page && (gpa ^ at) & 0xff8 == 0)
    }
}

impl Guest {
    /// `vcpus` processors without paging, and no slots.
    pub fn new(vcpus: u8, maxphyaddr: u32) -> Self {
        let cpu = Cpu {
            regs: Registers {
                paging: Paging::Off,
                cr3: 0,
                pdptes: [0; 4],
                controls: Controls::empty(),
                maxphyaddr,
            },
            flushed: 0,
            flushed_pages: HashMap::new(),
        };
        Self {
            memory: GuestMemory::new(),
            cpus: vec![cpu; vcpus as usize],
            now: 1,
            walks: Vec::new(),
        }
    }

    fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    /// The oldest time that any processor may know something of.
    fn oldest(&self) -> u64 {
        self.cpus.iter().map(|cpu| cpu.flushed).min().unwrap_or(0)
    }

    /// A processor's registers are loaded; it forgets everything. `false`: a general protection fault, nothing done.
    pub fn load(&mut self, vcpu: u8, paging: Paging, controls: Controls, cr3: u64) -> bool {
        let maxphyaddr = self.cpus[vcpu as usize].regs.maxphyaddr;
        let mut pdptes = [0; 4];
        if paging == Paging::Pae {
            for (at, pdpte) in (0..).zip(&mut pdptes) {
                let gpa = (cr3 & 0xffff_ffe0) + at * 8;
                // A read that nobody answers gives all ones.
                *pdpte = self
                    .memory
                    .page_at(gpa >> 12)
                    .map_or(u64::MAX, |page| self.memory.word(page, gpa));
            }
            if pdptes
                .iter()
                .any(|pdpte| oracle::pdpte_reserved(maxphyaddr, *pdpte) != 0)
            {
                return false;
            }
        }
        let now = self.tick();
        let cpu = &mut self.cpus[vcpu as usize];
        cpu.regs = Registers {
            paging,
            cr3,
            pdptes,
            controls,
            maxphyaddr,
        };
        cpu.flushed = now;
        cpu.flushed_pages.clear();
        true
    }

    /// A processor forgets the page of an address.
    pub fn invlpg(&mut self, vcpu: u8, gva: u64) {
        let now = self.tick();
        self.cpus[vcpu as usize].flushed_pages.insert(gva >> 12, now);
    }

    /// A slot is set or deleted.
    pub fn set_slot(&mut self, id: u16, new: Option<Slot>) {
        let since = self.tick();
        let kept = match (self.memory.slot(id), &new) {
            (Some(old), Some(new)) if old.base == new.base => Some(old.since),
            _ => None,
        };
        let since = kept.unwrap_or(since);
        self.memory.set_slot(id, new.map(|new| Slot { since, ..new }));
    }

    /// Somebody writes to memory: a device or a loader.
    pub fn poke(&mut self, gpa: u64, value: u64) {
        let (now, oldest) = (self.tick(), self.oldest());
        if let Some(page) = self.memory.page_at(gpa >> 12) {
            self.memory.write(page, gpa, value, now, oldest);
            self.memory.log(gpa >> 12);
        }
    }

    /// Where an address of a processor leads by the tables in memory.
    pub fn translate(&self, vcpu: u8, gva: u64, access: Access) -> Walk {
        let view = View {
            memory: &self.memory,
            since: u64::MAX,
        };
        oracle::translate(&view, &self.cpus[vcpu as usize].regs, gva, access)
    }

    /// Judges an access that has happened; `real` reads memory as it is now. On success, this memory is the same.
    ///
    /// # Errors
    /// What would have been right.
    pub fn judge(
        &mut self,
        vcpu: u8,
        gva: u64,
        who: Who,
        op: Op,
        seen: Seen,
        real: &mut dyn FnMut(Page, u64) -> u64,
    ) -> Result<(), String> {
        let cpu = &self.cpus[vcpu as usize];
        let access = Access { kind: op.kind(), who };
        let page_flushed = cpu.flushed_pages.get(&(gva >> 12)).copied().unwrap_or(0);
        let view = View {
            memory: &self.memory,
            since: cpu.flushed.max(page_flushed),
        };
        let context = Context {
            gva,
            entry_bytes: cpu.regs.paging.entry_bytes(),
            access_code: oracle::access_code(&cpu.regs, access),
        };
        let mut walks = std::mem::take(&mut self.walks);
        walks.clear();
        oracle::walks(&view, &self.cpus[vcpu as usize].regs, gva, access, &mut |walk| {
            walks.push(*walk)
        });
        for used in walks.iter().flat_map(|walk| walk.used()) {
            if let Some(page) = self.memory.page_at(used.gpa >> 12) {
                self.memory.mark_table(page);
            }
        }
        for walk in walks.iter().filter(|_| walks.len() > 1) {
            // Each may have been begun, and may have begun to write flags.
            let End::Page { gpa } = walk.end else { continue };
            if let Op::Write { .. } = op {
                self.memory.log_begun(gpa >> 12);
            }
            for (used, flagged) in walk.used().iter().zip(walk.flagged(op.kind())) {
                if used.value != flagged.value {
                    self.memory.log_begun(used.gpa >> 12);
                }
            }
        }
        let judged = self.explained(&walks, context, op, seen, real);
        self.walks = walks;
        let effect = judged?;
        let (now, oldest) = (self.tick(), self.oldest());
        for (gpa, page, value) in effect.before.into_iter().chain(effect.words) {
            self.memory.write(page, gpa, value, now, oldest);
        }
        for gfn in effect.written {
            self.memory.log(gfn);
        }
        for gfn in effect.begun {
            self.memory.log_begun(gfn);
        }
        if let Seen::Fault { .. } = seen {
            // Section 4.10.4.1: a page fault forgets the address.
            self.cpus[vcpu as usize].flushed_pages.insert(gva >> 12, now);
        }
        Ok(())
    }

    /// What the first walk changes that explains everything. The access may have been begun with another one, which set
    /// its flags, and had to start again: an EPT violation, for one, makes the processor forget what it used.
    fn explained(
        &self,
        walks: &[Walk],
        context: Context,
        op: Op,
        seen: Seen,
        real: &mut dyn FnMut(Page, u64) -> u64,
    ) -> Result<Effect, String> {
        let mut others = Effect::default();
        let begun = walks.iter().filter(|walk| matches!(walk.end, End::Page { .. }));
        for walk in begun.filter(|_| walks.len() > 1) {
            let _: Result<Flags, _> = self.flag(&mut others, walk, op, seen, (context.entry_bytes, Refusal::Unseen));
        }
        // Where other walks lead nothing is written.
        let leads = |walk: &Walk| match walk.end {
            End::Page { gpa } => self.memory.page_at(gpa >> 12).map(|page| (page, gpa & !7)),
            End::Fault { .. } | End::NoMemory { .. } => None,
        };
        let targets: Vec<(Page, u64)> = match walks.len() {
            1 => Vec::new(),
            _ => walks.iter().filter_map(leads).collect(),
        };
        let mut explain_as = |walk: &Walk, refusal: Refusal| {
            let mut effect = self.expected(walk, context, op, seen, refusal)?;
            for (gpa, page, value) in &others.words {
                let flags = real(*page, *gpa) & value & !self.memory.word(*page, *gpa);
                let at = effect.find(*page, *gpa);
                if flags & !at.map_or(0, |at| effect.words[at].2) != 0 {
                    effect.set(&self.memory, *gpa, *page, |word| word | flags);
                    effect.written.push(gpa >> 12);
                }
            }
            for (page, gpa) in &targets {
                effect.set(&self.memory, *gpa, *page, |word| word);
            }
            let mut words = effect.words.iter();
            let same = words.all(|(gpa, page, value)| real(*page, *gpa) == *value);
            same.then_some(effect).ok_or("memory is different")
        };
        let mut explain = |walk: &Walk| explain_as(walk, Refusal::Unseen).or_else(|_| explain_as(walk, Refusal::Told));
        let mut found: Option<Effect> = None;
        for effect in walks.iter().filter_map(|walk| explain(walk).ok()) {
            match &mut found {
                None => found = Some(effect),
                // A write of what was there already could have gone to either place.
                Some(found) => found.written.retain(|gfn| effect.written.contains(gfn)),
            }
        }
        if let Some(effect) = found {
            return Ok(effect);
        }
        let mut text = format!("{seen:x?} is not right:");
        for walk in walks {
            let why = explain(walk).err().unwrap_or_default();
            text += &format!("\n  {:x?} by {:x?}: {why}", walk.end, walk.used());
        }
        Err(text)
    }

    /// What `walk` changes, if it explains what was seen.
    fn expected(
        &self,
        walk: &Walk,
        Context {
            gva,
            entry_bytes,
            access_code,
        }: Context,
        op: Op,
        seen: Seen,
        refusal: Refusal,
    ) -> Result<Effect, &'static str> {
        let mut effect = Effect::default();
        // A table without memory: its entries are all ones, or the vmm learns that there is none.
        let blank = |gpa: u64| self.memory.slot_at(gpa >> 12).is_none();
        if let Some(used) = walk.used().iter().find(|used| blank(used.gpa)) {
            // In 4 bytes no bit of all ones is reserved; the guest may be told all the same that it has no table.
            let rsvd = Seen::Fault {
                cr2: gva,
                code: access_code | oracle::code::P | oracle::code::RSVD,
            };
            if seen == rsvd || self.is_mmio(seen, used.gpa, false).is_ok() {
                return Ok(effect);
            }
        }
        match walk.end {
            End::Fault { code } => {
                if seen != (Seen::Fault { cr2: gva, code }) {
                    return Err("another outcome");
                }
                for used in walk.used() {
                    self.unchanged(&mut effect, used.gpa);
                }
            }
            End::NoMemory { .. } => unreachable!("a read that nobody answers gives all ones"),
            End::Page { gpa } => {
                let flags = self.flag(&mut effect, walk, op, seen, (entry_bytes, refusal))?;
                match (self.memory.slot_at(gpa >> 12), op) {
                    _ if flags == Flags::Refused => {}
                    (None, _) => self.is_mmio(seen, gpa, false)?,
                    (Some((_, slot)), Op::Write { .. }) if slot.readonly() => self.is_mmio(seen, gpa, true)?,
                    (Some(_), Op::Write { .. }) => {
                        let page = self.memory.page_at(gpa >> 12).expect("a slot has pages");
                        effect.before = effect.find(page, gpa & !7).map(|at| effect.words[at]);
                        effect.set(&self.memory, gpa, page, |word| op.merge(gpa, word));
                        effect.written.push(gpa >> 12);
                        if seen != Seen::Stored {
                            return Err("it stores");
                        }
                    }
                    (Some(_), Op::Read | Op::Fetch) => {
                        let page = self.memory.page_at(gpa >> 12).expect("a slot has pages");
                        effect.set(&self.memory, gpa, page, |word| word);
                        let at = effect.find(page, gpa & !7).expect("just set");
                        if seen != Seen::Value(effect.words[at].2) {
                            return Err("another value");
                        }
                    }
                }
            }
        }
        Ok(effect)
    }

    fn is_mmio(&self, seen: Seen, gpa: u64, readonly_slot: bool) -> Result<(), &'static str> {
        let gfn = gpa >> 12;
        match seen == (Seen::Mmio { gfn, readonly_slot }) {
            true => Ok(()),
            false => Err("the vmm emulates it"),
        }
    }

    fn unchanged(&self, effect: &mut Effect, gpa: u64) {
        if let Some(page) = self.memory.page_at(gpa >> 12) {
            effect.set(&self.memory, gpa, page, |word| word);
        }
    }

    /// Adds the accessed and dirty flags that the walk sets.
    fn flag(
        &self,
        effect: &mut Effect,
        walk: &Walk,
        op: Op,
        seen: Seen,
        (entry_bytes, refusal): (u8, Refusal),
    ) -> Result<Flags, &'static str> {
        const DIRTY: u64 = 0x40;
        let last = walk.used().len().wrapping_sub(1);
        for (at, (used, flagged)) in walk.used().iter().zip(walk.flagged(op.kind())).enumerate() {
            let Some((_, slot)) = self.memory.slot_at(used.gpa >> 12) else {
                continue;
            };
            let page = self.memory.page_at(used.gpa >> 12).expect("a slot has pages");
            let (shift, mask) = match entry_bytes {
                4 => ((used.gpa & 4) * 8, u64::from(u32::MAX)),
                _ => (0, u64::MAX),
            };
            let current = self.memory.word(page, used.gpa) >> shift & mask == used.value;
            if current && !slot.readonly() {
                let flags = (flagged.value ^ used.value) << shift;
                let mut before = 0;
                effect.set(&self.memory, used.gpa, page, |word| {
                    before = word;
                    word | flags
                });
                match flags & !before {
                    // Already set, through another entry of this walk that is in the same place.
                    0 if flags != 0 => effect.begun.push(used.gpa >> 12),
                    0 => {}
                    _ => effect.written.push(used.gpa >> 12),
                }
            } else {
                // Where an entry cannot be written the vmm may get to see it; those above have their flags by then.
                let told = refusal == Refusal::Told && flagged.value != used.value;
                if told && self.is_mmio(seen, used.gpa, true).is_ok() {
                    return Ok(Flags::Refused);
                }
                if !current && at == last && op.kind() == Kind::Write && used.value & DIRTY == 0 {
                    return Err("D is set before a write");
                }
                self.unchanged(effect, used.gpa);
            }
        }
        Ok(Flags::Set)
    }
}
