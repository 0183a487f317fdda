// SPDX-License-Identifier: MIT OR Apache-2.0
//! The life of a virtual CPU: enter, see why it left, let time and interrupts in, enter again, until something ends it.

use crate::clock::{Clock, PreemptionTimer};
use crate::control::Control;
use crate::cpuid::Cpuid;
use crate::devices::Devices;
use crate::dispatch::Next;
use crate::emulate::walk::{AccessKind, Paging, Privilege, walk};
use crate::emulate::{Code, Emulator, MAX_INSTRUCTION, Unsupported};
use crate::exit::{EntryFailure, Exit, RawExit};
use crate::guest_mem::GuestMemory;
use crate::inject::{Event, Exception, Merged, merge};
use crate::livelock::Livelock;
use crate::mmu_client::{Mmu, MmuTransport};
use crate::msr::Msrs;
use crate::platform::PlatformEvent;
use crate::report::Report;
use crate::vcpu::{BLOCKING_BY_MOV_SS, BLOCKING_BY_STI, Entered, Field, Vcpu, rflags};
use alloc::boxed::Box;
use alloc::string::{String, ToString};
use core::fmt;
use umbra_mmu_abi::{Gpa, Gva, PAGE_SIZE};

/// Why a virtual machine is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The guest switched itself off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest wrote to the test-exit port; the status is `(value << 1) | 1`.
    TestExit(u32),
    /// The processor shut down.
    TripleFault(Box<Report>),
    /// HLT with interrupts off: nothing can wake it.
    Halted(Box<Report>),
    /// An instruction that cannot be emulated.
    // REQ: EM-2
    EmulationFailed(Unsupported, Box<Report>),
    /// Delivering an interrupt or exception touched device memory.
    DeliveryToDevice(Gpa, Box<Report>),
    /// The same instruction faulted over and over although its mappings are in place.
    Livelock {
        /// Where the instruction is.
        rip: u64,
        /// What it touched last.
        gpa: Gpa,
        /// How often in a row.
        times: u32,
        /// Everything else.
        report: Box<Report>,
    },
    /// An exit that this vmm has no answer to.
    UnknownExit(Exit, Box<Report>),
    /// The processor refused to enter the guest.
    EntryFailed {
        /// Why.
        why: EntryFailure,
        /// The VM-instruction error field (SDM vol. 3, table 31-1).
        error: u64,
        /// The state that it refused.
        report: Box<Report>,
    },
    /// The mmu component did not do its part.
    MmuFailed(String),
    /// The virtual CPU's backend failed.
    BackendFailed(String),
}

impl Stop {
    /// The register report, where there is one.
    pub fn report(&self) -> Option<&Report> {
        match self {
            Self::TripleFault(r)
            | Self::Halted(r)
            | Self::EmulationFailed(_, r)
            | Self::DeliveryToDevice(_, r)
            | Self::Livelock { report: r, .. }
            | Self::UnknownExit(_, r)
            | Self::EntryFailed { report: r, .. } => Some(r),
            Self::PowerOff | Self::Reset | Self::TestExit(_) | Self::MmuFailed(_) | Self::BackendFailed(_) => None,
        }
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => f.write_str("the guest switched itself off"),
            Self::Reset => f.write_str("the guest asked for a reset"),
            Self::TestExit(status) => write!(f, "the guest ended a test with status {status}"),
            Self::TripleFault(r) => write!(f, "triple fault at rip {:#x}", r.rip),
            Self::Halted(r) => write!(f, "halted for ever (HLT with interrupts off) at rip {:#x}", r.rip),
            Self::EmulationFailed(what, _) => write!(f, "{what}"),
            Self::DeliveryToDevice(gpa, r) => {
                write!(
                    f,
                    "delivering an event touched gpa {gpa}, where no RAM is, at rip {:#x}",
                    r.rip
                )
            }
            Self::Livelock { rip, gpa, times, .. } => {
                write!(
                    f,
                    "the instruction at rip {rip:#x} faults for ever: gpa {gpa} mapped {times} times in a row"
                )
            }
            Self::UnknownExit(exit, r) => write!(f, "no answer to exit {exit:?} at rip {:#x}", r.rip),
            Self::EntryFailed { why, error, .. } => {
                write!(
                    f,
                    "the processor refused to enter the guest: {why:?}, VM-instruction error {error}"
                )
            }
            Self::MmuFailed(why) => f.write_str(why),
            Self::BackendFailed(why) => write!(f, "virtual CPU: {why}"),
        }
    }
}

/// How often what happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters {
    /// Exits by basic reason.
    pub exits: [u64; 80],
    /// Returns because of a notification.
    pub notified: u64,
    /// External interrupts injected.
    pub interrupts: u64,
    /// Exceptions injected.
    pub exceptions: u64,
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total: u64 = self.exits.iter().sum();
        write!(f, "{total} exits")?;
        for (reason, count) in self.exits.iter().enumerate().filter(|(_, count)| **count > 0) {
            write!(f, ", reason {reason}: {count}")?;
        }
        let Self {
            notified,
            interrupts,
            exceptions,
            ..
        } = self;
        write!(
            f,
            "; {notified} notifications, {interrupts} interrupts, {exceptions} exceptions injected"
        )
    }
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            exits: [0; 80],
            notified: 0,
            interrupts: 0,
            exceptions: 0,
        }
    }
}

/// A virtual machine with one virtual CPU.
pub struct Vm<V, M, T, D> {
    /// The processor.
    pub vcpu: V,
    /// Its RAM.
    pub mem: M,
    /// Its mmu.
    pub mmu: Mmu<T>,
    /// Its devices.
    pub devices: D,
    /// What happened so far.
    pub counters: Counters,
    /// MSR state.
    pub msrs: Msrs,
    /// The instruction emulator.
    pub emulator: Emulator,
    pub(crate) cpuid: Cpuid,
    pub(crate) control: Control,
    pub(crate) clock: Clock,
    pub(crate) debug: [u64; 8],
    pub(crate) cr8: u64,
    /// The event for the next entry.
    pub(crate) event: Option<Event>,
    timer: PreemptionTimer,
    pub(crate) livelock: Livelock,
    /// The guest can take an interrupt at the next entry (unknown after a notification: no).
    interruptible: bool,
    /// The last exit, current but for what `dispatch` changed.
    pub(crate) exit: RawExit,
}

impl<V: Vcpu, M: GuestMemory, T: MmuTransport, D: Devices> Vm<V, M, T, D> {
    /// A machine whose processor is set up (`entry::set_up` returned `control`).
    pub fn new(mut vcpu: V, mem: M, mmu: Mmu<T>, devices: D, cpuid: Cpuid, control: Control, tsc_hz: u64) -> Self {
        let clock = Clock::new(vcpu.host_tsc(), tsc_hz);
        vcpu.write(Field::TscOffset, clock.tsc_offset());
        Self {
            vcpu,
            mem,
            mmu,
            devices,
            counters: Counters::default(),
            msrs: Msrs::default(),
            emulator: Emulator::default(),
            cpuid,
            control,
            clock,
            debug: [0, 0, 0, 0, 0, 0, 0xffff_0ff0, 0x400],
            cr8: 0,
            event: None,
            timer: PreemptionTimer::new(tsc_hz),
            livelock: Livelock::default(),
            interruptible: false,
            exit: RawExit::NONE,
        }
    }

    /// Runs the guest to its end.
    pub fn run(&mut self) -> Stop {
        loop {
            if let Err(stop) = self.turn() {
                return *stop;
            }
        }
    }

    /// One stay in the guest and what it asks for.
    #[inline]
    fn turn(&mut self) -> Result<(), Box<Stop>> {
        let before = self.vcpu.host_tsc();
        self.prepare(before);
        let entered_at = before;
        let entered = self
            .vcpu
            .enter()
            .map_err(|e| Box::new(Stop::BackendFailed(e.to_string())))?;
        let host = self.vcpu.host_tsc();
        self.clock.leave(host);
        self.timer.ran(host.wrapping_sub(entered_at));
        match entered {
            Entered::Exit(raw) => {
                self.exit = raw;
                if let Some(count) = self.counters.exits.get_mut(raw.reason as u16 as usize) {
                    *count += 1;
                }
                if raw.idt_vectoring >> 31 != 0 {
                    self.take_back_event(&raw);
                }
                let now = self.clock.guest(host);
                let next = self.dispatch(&raw, now)?;
                self.finish(&raw, next);
                match self.devices.take_event() {
                    None => Ok(()),
                    Some(event) => Err(Box::new(stop_of(event))),
                }
            }
            Entered::Notified(_) => {
                self.counters.notified += 1;
                self.interruptible = false;
                self.devices.backend_ready(self.clock.guest(host));
                Ok(())
            }
        }
    }

    /// Interrupts, time and timer before an entry.
    #[inline]
    fn prepare(&mut self, host: u64) {
        let away = self.clock.away(host);
        if self.clock.enter(host) {
            self.vcpu.write(Field::TscOffset, self.clock.tsc_offset());
        }
        let now = self.clock.guest(host);
        let wanted = self.devices.interrupt_pending(now);
        if wanted && self.interruptible && self.event.is_none() {
            let vector = self.devices.acknowledge(now);
            self.counters.interrupts += 1;
            self.event = Some(Event::interrupt(vector));
            self.vcpu.set_interrupt_window(self.devices.interrupt_pending(now));
        } else {
            self.vcpu.set_interrupt_window(wanted);
        }
        if let Some(event) = self.event.take() {
            self.vcpu.set_event(Some(event));
        }
        let deadline = self.devices.next_deadline(now);
        if let Some(value) = self.timer.prepare(now, deadline, away) {
            self.vcpu.write(Field::PreemptionTimerValue, value.into());
        }
    }

    /// The event whose delivery the exit interrupted is delivered again.
    #[cold]
    fn take_back_event(&mut self, raw: &RawExit) {
        let error = if raw.idt_vectoring & (1 << 11) != 0 {
            self.vcpu.read(Field::IdtVectoringErrorCode)
        } else {
            0
        };
        self.event = Event::from_vectoring(raw.idt_vectoring, error as u32, raw.instruction_length);
    }

    /// Moves past the instruction or not, and notes whether the guest can be interrupted now.
    #[inline]
    fn finish(&mut self, raw: &RawExit, next: Next) {
        let blocking = raw.interruptibility & (BLOCKING_BY_STI | BLOCKING_BY_MOV_SS);
        let skipped = match next {
            Next::Resume => false,
            Next::Skip => {
                let rip = self.vcpu.rip().wrapping_add(raw.instruction_length.into());
                self.vcpu.set_rip(if self.control.long_mode() {
                    rip
                } else {
                    rip & 0xffff_ffff
                });
                true
            }
            Next::Stepped => true,
        };
        if skipped && blocking != 0 {
            self.vcpu.write(
                Field::GuestInterruptibility,
                u64::from(raw.interruptibility & !blocking),
            );
        }
        if skipped && raw.rflags & rflags::TF != 0 {
            self.single_step();
        }
        self.interruptible = raw.rflags & rflags::IF != 0 && (blocking == 0 || skipped);
    }

    /// The instruction that the vmm completed was to be followed by a debug trap.
    #[cold]
    fn single_step(&mut self) {
        const BS: u64 = 1 << 14;
        self.vcpu.write(Field::GuestPendingDebugExceptions, BS);
    }

    /// Queues an exception; `Err`: the processor shuts down.
    // REQ: PF-5
    pub(crate) fn raise(&mut self, e: Exception) -> Result<(), Box<Stop>> {
        self.counters.exceptions += 1;
        if let Some(cr2) = e.cr2 {
            self.vcpu.set_cr2(cr2);
        }
        match merge(self.event.take(), e) {
            Merged::Deliver(event) => {
                self.event = Some(event);
                Ok(())
            }
            Merged::TripleFault => Err(Box::new(Stop::TripleFault(self.report()))),
        }
    }

    /// The registers that decide how addresses translate now.
    pub(crate) fn paging(&self, cr3: u64) -> Paging {
        let Control { cr0, cr4, efer } = self.control;
        Paging {
            cr0,
            cr3,
            cr4,
            efer,
            phys_bits: self.cpuid.phys_bits(),
        }
    }

    /// How often an absence was hidden from the guest.
    pub fn hidden_gaps(&self) -> u64 {
        self.clock.hidden_gaps
    }

    /// Everything about the guest as it is.
    #[cold]
    pub fn report(&mut self) -> Box<Report> {
        let mut report = Report::collect(&mut self.vcpu, self.exit, Code::EMPTY);
        report.code = self.code_at(report.linear_rip(), report.cr[2]);
        report
    }

    /// Instruction bytes at a linear address, as far as they are mapped and in RAM.
    fn code_at(&mut self, linear: Gva, cr3: u64) -> Code {
        let paging = self.paging(cr3);
        let mut code = Code::EMPTY;
        while (code.len as usize) < MAX_INSTRUCTION {
            let at = linear.raw().wrapping_add(code.len.into());
            let who = Privilege::Supervisor { ac: true };
            let Ok(gpa) = walk(&mut self.mem, &paging, Gva::new(at), AccessKind::Read, who) else {
                break;
            };
            let start = code.len as usize;
            let end = MAX_INSTRUCTION.min(start + (PAGE_SIZE - gpa.offset()) as usize);
            if self.mem.read(gpa, &mut code.bytes[start..end]).is_err() {
                break;
            }
            code.len = end as u8;
        }
        code
    }
}

impl<V: Vcpu, M: GuestMemory, T: MmuTransport, D: Devices> Vm<V, M, T, D> {
    /// The preemption timer ran out.
    pub(crate) fn timer_expired(&mut self) {
        self.timer.expired();
    }
}

fn stop_of(event: PlatformEvent) -> Stop {
    match event {
        PlatformEvent::PowerOff => Stop::PowerOff,
        PlatformEvent::Reset => Stop::Reset,
        PlatformEvent::TestExit(status) => Stop::TestExit(status),
    }
}
