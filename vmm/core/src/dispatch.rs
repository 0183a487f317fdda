// SPDX-License-Identifier: MIT OR Apache-2.0
//! What does the vmm do about each exit?

use crate::control::Control;
use crate::devices::Devices;
use crate::emulate::guest::Emulated;
use crate::emulate::{Code, CodeSize, Guest, Hint, Step, Unsupported, UnsupportedCause};
use crate::entry;
use crate::exit::{CrAccess, DrAccess, EptViolation, Exit, Interruption, IoAccess, RawExit};
use crate::guest_mem::GuestMemory;
use crate::inject::{EventKind, Exception, vector};
use crate::mmu_client::MmuTransport;
use crate::msr::{Msr, classify, valid_pat};
use crate::run::{Stop, Vm};
use crate::time::Ticks;
use crate::vcpu::{AccessRights, BLOCKING_BY_MOV_SS, BLOCKING_BY_STI, Field, Gpr, Vcpu, cr0, cr4, rflags};
use alloc::boxed::Box;
use alloc::string::ToString;
use umbra_mmu_abi::{Access, FaultOutcome, Gpa};

/// Where the guest goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// At the instruction that exited (or with the event that is queued).
    Resume,
    /// After the instruction that exited.
    Skip,
    /// Where the emulator left RIP.
    Stepped,
}

type Handled = Result<Next, Box<Stop>>;

/// IA32_EFER, PDPTE registers in VMCS order.
const PDPTES: [Field; 4] = [
    Field::GuestPdpte0,
    Field::GuestPdpte1,
    Field::GuestPdpte2,
    Field::GuestPdpte3,
];

impl<V: Vcpu, M: GuestMemory, T: MmuTransport, D: Devices> Vm<V, M, T, D> {
    /// Handles one exit.
    #[inline]
    pub(crate) fn dispatch(&mut self, raw: &RawExit, now: Ticks) -> Handled {
        let exit = raw.decode();
        // The two that matter for speed come first.
        if let Exit::EptViolation(v) = exit {
            return self.ept_violation(raw, v, now);
        }
        self.livelock.progress();
        if let Exit::Io(io) = exit
            && !io.string
        {
            return Ok(self.port(io, now));
        }
        match exit {
            Exit::Io(_) => self.string_io(raw, now),
            Exit::Cpuid => Ok(self.cpuid()),
            Exit::Hlt => self.halt(raw, now),
            Exit::PreemptionTimer => {
                self.timer_expired();
                Ok(Next::Resume)
            }
            Exit::Rdmsr => self.rdmsr(),
            Exit::Wrmsr => self.wrmsr(),
            Exit::Cr(access) => self.control_register(access),
            Exit::Dr(access) => self.debug_register(access),
            // The next entry injects.
            Exit::InterruptWindow => Ok(Next::Resume),
            // Caches are the host's; PAUSE and the rest have no effect here.
            Exit::Wbinvd | Exit::Invd | Exit::Pause => Ok(Next::Skip),
            // Nothing of VMX, SMX, SGX, XSAVE and the newer instructions is offered by CPUID.
            Exit::Vmx(_)
            | Exit::Getsec
            | Exit::Rsm
            | Exit::Mwait
            | Exit::Monitor
            | Exit::Rdtscp
            | Exit::Xsetbv
            | Exit::Invpcid
            | Exit::Encls
            | Exit::Enclv
            | Exit::Rdrand
            | Exit::Rdseed
            | Exit::Xsaves
            | Exit::Xrstors
            | Exit::Pconfig
            | Exit::Umwait
            | Exit::Tpause
            | Exit::Loadiwkey => self.inject(Exception::UD),
            Exit::Rdpmc => self.inject(Exception::GP0),
            Exit::TripleFault => Err(Box::new(Stop::TripleFault(self.report()))),
            Exit::EntryFailed(why) => {
                let error = self.vcpu.read(Field::InstructionError);
                Err(Box::new(Stop::EntryFailed {
                    why,
                    error,
                    report: self.report(),
                }))
            }
            // An NMI of the host, or its interrupt: none of the guest's business.
            Exit::ExceptionOrNmi(i) if i.kind == 2 => Ok(Next::Resume),
            Exit::ExternalInterrupt => Ok(Next::Resume),
            Exit::ExceptionOrNmi(i) if i.vector == vector::DB => self.debug_exception(raw, i),
            Exit::ExceptionOrNmi(i) if i.vector == vector::AC => self.inject(Exception::with_error(vector::AC, 0)),
            Exit::EptViolation(_)
            | Exit::ExceptionOrNmi(_)
            | Exit::Init
            | Exit::Sipi { .. }
            | Exit::IoSmi
            | Exit::OtherSmi
            | Exit::NmiWindow
            | Exit::TaskSwitch(_)
            | Exit::Invlpg(_)
            | Exit::Rdtsc
            | Exit::MonitorTrap
            | Exit::TprBelowThreshold
            | Exit::ApicAccess { .. }
            | Exit::VirtualizedEoi { .. }
            | Exit::GdtrOrIdtr
            | Exit::LdtrOrTr
            | Exit::EptMisconfiguration(_)
            | Exit::ApicWrite { .. }
            | Exit::PmlFull
            | Exit::SubPagePermission
            | Exit::EnqcmdPasid
            | Exit::EnqcmdsPasid
            | Exit::BusLock
            | Exit::InstructionTimeout
            | Exit::Reserved(_) => Err(Box::new(Stop::UnknownExit(exit, self.report()))),
        }
    }

    fn inject(&mut self, e: Exception) -> Handled {
        let real = self.control.cr0 & cr0::PE == 0;
        self.raise(if real { e.in_real_mode() } else { e })?;
        Ok(Next::Resume)
    }

    /// IN and OUT.
    #[inline]
    fn port(&mut self, io: IoAccess, now: Ticks) -> Next {
        let rax = self.vcpu.gpr(Gpr::Rax);
        let mask = u32::MAX >> (32 - 8 * u32::from(io.size));
        if io.input {
            let value = self.devices.pio_read(now, io.port, io.size) & mask;
            // A 32-bit destination clears the upper half.
            let kept = if io.size == 4 { 0 } else { rax & !u64::from(mask) };
            self.vcpu.set_gpr(Gpr::Rax, kept | u64::from(value));
        } else {
            self.devices.pio_write(now, io.port, io.size, rax as u32 & mask);
        }
        Next::Skip
    }

    /// INS and OUTS: hardware has checked the port, the emulator does the memory side.
    fn string_io(&mut self, raw: &RawExit, now: Ticks) -> Handled {
        self.emulate(raw, None, now)
    }

    #[inline]
    fn ept_violation(&mut self, raw: &RawExit, v: EptViolation, now: Ticks) -> Handled {
        match self.mmu.fault(v.gpa, v.access) {
            Ok(FaultOutcome::Resume) => match self.livelock.resumed(raw.rip, v.gpa) {
                None => Ok(Next::Resume),
                Some(times) => {
                    let report = self.report();
                    Err(Box::new(Stop::Livelock {
                        rip: raw.rip,
                        gpa: v.gpa,
                        times,
                        report,
                    }))
                }
            },
            Ok(FaultOutcome::Emulate(_)) => {
                self.livelock.progress();
                if raw.idt_vectoring >> 31 != 0 {
                    return Err(Box::new(Stop::DeliveryToDevice(v.gpa, self.report())));
                }
                if v.access == Access::Fetch && v.final_access {
                    return Err(self.fetch_outside_ram(v.gpa));
                }
                let hint = match v.linear {
                    Some(linear) if v.final_access => Some(Hint {
                        linear,
                        gpa: v.gpa,
                        write: v.access == Access::Write,
                    }),
                    _ => None,
                };
                self.emulate(raw, hint, now)
            }
            Err(e) => Err(Box::new(Stop::MmuFailed(e.to_string()))),
        }
    }

    #[cold]
    fn fetch_outside_ram(&mut self, gpa: Gpa) -> Box<Stop> {
        let report = self.report();
        let rights = AccessRights(self.vcpu.read(Field::GuestCsAccessRights) as u32);
        let size = match (self.control.long_mode() && rights.long(), rights.db()) {
            (true, _) => CodeSize::Bits64,
            (false, true) => CodeSize::Bits32,
            (false, false) => CodeSize::Bits16,
        };
        let cause = UnsupportedCause::FetchOutsideRam(gpa);
        let what = Unsupported {
            cause,
            rip: report.rip,
            code: Code::EMPTY,
            size,
        };
        Box::new(Stop::EmulationFailed(what, report))
    }

    fn emulate(&mut self, raw: &RawExit, hint: Option<Hint>, now: Ticks) -> Handled {
        let paging = self.paging(raw.cr3);
        let mut guest = Guest::new(
            &mut self.vcpu,
            &mut self.mem,
            &mut self.devices,
            now,
            paging,
            raw.rflags,
            hint,
        );
        match self.emulator.run(&mut guest) {
            Emulated::Stepped(Step::Done) => Ok(Next::Stepped),
            Emulated::Stepped(Step::Again) => Ok(Next::Resume),
            Emulated::Fault(e) => self.inject(e),
            Emulated::Unsupported(what) => Err(Box::new(Stop::EmulationFailed(what, self.report()))),
        }
    }

    fn cpuid(&mut self) -> Next {
        let (leaf, subleaf) = (self.vcpu.gpr(Gpr::Rax) as u32, self.vcpu.gpr(Gpr::Rcx) as u32);
        let l = self.cpuid.query(leaf, subleaf);
        self.vcpu.set_gpr(Gpr::Rax, l.eax.into());
        self.vcpu.set_gpr(Gpr::Rbx, l.ebx.into());
        self.vcpu.set_gpr(Gpr::Rcx, l.ecx.into());
        self.vcpu.set_gpr(Gpr::Rdx, l.edx.into());
        Next::Skip
    }

    /// HLT: the processor sleeps in the guest, until the timer or an interrupt of the host that signals the vmm.
    fn halt(&mut self, raw: &RawExit, now: Ticks) -> Handled {
        const HLT: u64 = 1;
        if raw.rflags & rflags::IF == 0 {
            return Err(Box::new(Stop::Halted(self.report())));
        }
        if !self.devices.interrupt_pending(now) {
            self.vcpu.write(Field::GuestActivityState, HLT);
        }
        Ok(Next::Skip)
    }

    fn rdmsr(&mut self) -> Handled {
        let number = self.vcpu.gpr(Gpr::Rcx) as u32;
        let value = match classify(number) {
            Msr::Tsc => self.clock.tsc(self.vcpu.host_tsc()),
            Msr::Efer => self.control.efer,
            Msr::Pat => self.vcpu.read(Field::GuestPat),
            Msr::Kept(which) => self.msrs.kept(which),
            Msr::Fixed(value) | Msr::ReadOnly(value) => value,
            Msr::Absent => {
                self.msrs.count_absent(number);
                return self.inject(Exception::GP0);
            }
        };
        self.vcpu.set_gpr(Gpr::Rax, value & 0xffff_ffff);
        self.vcpu.set_gpr(Gpr::Rdx, value >> 32);
        Ok(Next::Skip)
    }

    fn wrmsr(&mut self) -> Handled {
        let number = self.vcpu.gpr(Gpr::Rcx) as u32;
        let value = (self.vcpu.gpr(Gpr::Rdx) << 32) | (self.vcpu.gpr(Gpr::Rax) & 0xffff_ffff);
        match classify(number) {
            Msr::Tsc => {
                let host = self.vcpu.host_tsc();
                self.clock.set_tsc(host, value);
                self.vcpu.write(Field::TscOffset, self.clock.tsc_offset());
            }
            Msr::Efer => match self.control.write_efer(value) {
                Ok(next) => self.switch(next),
                Err(e) => return self.inject(e),
            },
            Msr::Pat if valid_pat(value) => self.vcpu.write(Field::GuestPat, value),
            Msr::Pat | Msr::ReadOnly(_) => return self.inject(Exception::GP0),
            Msr::Kept(which) => self.msrs.set_kept(which, value),
            Msr::Fixed(_) => {}
            Msr::Absent => {
                self.msrs.count_absent(number);
                return self.inject(Exception::GP0);
            }
        }
        Ok(Next::Skip)
    }

    fn control_register(&mut self, access: CrAccess) -> Handled {
        match access {
            CrAccess::Write { cr: 0, gpr } => {
                let value = self.source(gpr);
                self.write_cr0(value)
            }
            CrAccess::Write { cr: 4, gpr } => {
                let value = self.source(gpr);
                match self.control.write_cr4(value) {
                    Ok(next) => self.change_mode(next, entry::write_cr4, value),
                    Err(e) => self.inject(e),
                }
            }
            // There is no local APIC: the task priority has no effect but can be read back.
            CrAccess::Write { cr: 8, gpr } => {
                let value = self.source(gpr);
                if value > 15 {
                    return self.inject(Exception::GP0);
                }
                self.cr8 = value;
                Ok(Next::Skip)
            }
            CrAccess::Read { cr: 8, gpr } => {
                let value = self.cr8;
                self.vcpu.set_gpr(gpr, value);
                Ok(Next::Skip)
            }
            CrAccess::Lmsw(value) => {
                // Loads PE, MP, EM, TS; cannot clear PE.
                let old = self.visible_cr0();
                self.write_cr0((old & !0xe) | u64::from(value & 0xf))
            }
            CrAccess::Clts => {
                let old = self.visible_cr0();
                self.write_cr0(old & !cr0::TS)
            }
            CrAccess::Write { .. } | CrAccess::Read { .. } => {
                Err(Box::new(Stop::UnknownExit(Exit::Cr(access), self.report())))
            }
        }
    }

    /// The value of a MOV to a control or debug register: 64 bits in 64-bit mode, else 32.
    fn source(&mut self, gpr: Gpr) -> u64 {
        let value = self.vcpu.gpr(gpr);
        if self.long_code() { value } else { value & 0xffff_ffff }
    }

    fn long_code(&mut self) -> bool {
        self.control.long_mode() && AccessRights(self.vcpu.read(Field::GuestCsAccessRights) as u32).long()
    }

    /// Is the privilege level not 0? It is SS.DPL; in real mode everybody is privileged.
    fn user_mode(&mut self) -> bool {
        let protected = self.control.cr0 & cr0::PE != 0;
        protected && AccessRights(self.vcpu.read(Field::GuestSsAccessRights) as u32).dpl() != 0
    }

    /// CR0 as the guest reads it: its own bits from the processor, the others from the shadow.
    fn visible_cr0(&mut self) -> u64 {
        let own = self.vcpu.read(Field::GuestCr0) & !crate::control::CR0_OWNED;
        own | (self.control.cr0 & crate::control::CR0_OWNED)
    }

    fn write_cr0(&mut self, value: u64) -> Handled {
        let long_code = self.long_code();
        match self.control.write_cr0(value, long_code) {
            Ok(next) => self.change_mode(next, entry::write_cr0, next.cr0),
            Err(e) => self.inject(e),
        }
    }

    /// After a MOV to CR0 or CR4: PAE paging loads its PDPTEs, which may fault. Then `write` brings `value` to the register
    /// that the guest wrote; the other one must keep the bits that the guest owns, which `Control` does not follow.
    fn change_mode(&mut self, next: Control, write: fn(&mut V, u64), value: u64) -> Handled {
        let pae = next.pae_paging() && (!self.control.pae_paging() || next.translation_changed(&self.control));
        if pae {
            let cr3 = self.vcpu.read(Field::GuestCr3);
            let Some(pdptes) = self.load_pdptes(cr3) else {
                return self.inject(Exception::GP0);
            };
            for (field, value) in PDPTES.into_iter().zip(pdptes) {
                self.vcpu.write(field, value);
            }
        }
        write(&mut self.vcpu, value);
        self.switch(next);
        Ok(Next::Skip)
    }

    /// The four PDPTEs, or `None` where one sets reserved bits (SDM vol. 3, section 4.4.1). Outside RAM they read as ones.
    fn load_pdptes(&self, cr3: u64) -> Option<[u64; 4]> {
        let reserved = !((1u64 << self.cpuid.phys_bits()) - 1) | 0x1e6;
        let mut raw = [0xff; 32];
        // On failure the ones stay, as an absent bus would answer.
        let _ = self.mem.read(Gpa::new(cr3 & 0xffff_ffe0), &mut raw);
        let mut out = [0; 4];
        for (entry, bytes) in out.iter_mut().zip(raw.chunks_exact(8)) {
            *entry = bytes.iter().rev().fold(0, |v, b| v << 8 | u64::from(*b));
            if *entry & 1 != 0 && *entry & reserved != 0 {
                return None;
            }
        }
        Some(out)
    }

    /// Makes `next` the state of the processor, except for CR0 and CR4.
    fn switch(&mut self, next: Control) {
        let before = self.control;
        self.control = next;
        if next.efer != before.efer {
            self.vcpu.write(Field::GuestEfer, next.efer);
        }
        if next.translation_changed(&before) {
            // Writing CR3 flushes the guest's translations, as MOV to CR0, CR4 and EFER must.
            let cr3 = self.vcpu.read(Field::GuestCr3);
            self.vcpu.write(Field::GuestCr3, cr3);
        }
    }

    /// #DB goes on to the guest, with its reason in DR6 (the qualification has its format). INT1 is an event of its own kind:
    /// the guest finds the instruction after it.
    #[cold]
    fn debug_exception(&mut self, raw: &RawExit, i: Interruption) -> Handled {
        const REASONS: u64 = 0xe00f;
        const BREAKPOINTS: u64 = 0xf;
        self.debug[6] = (self.debug[6] & !BREAKPOINTS) | (raw.qualification & REASONS);
        let blocking = raw.interruptibility & (BLOCKING_BY_STI | BLOCKING_BY_MOV_SS);
        if blocking != 0 {
            // Delivery ends the shadow anyway; an entry with it would have to bring a second single step.
            let open = u64::from(raw.interruptibility & !blocking);
            self.vcpu.write(Field::GuestInterruptibility, open);
        }
        self.raise(Exception::DB)?;
        if i.kind == EventKind::PrivilegedSoftwareException as u8
            && let Some(event) = &mut self.event
        {
            event.kind = EventKind::PrivilegedSoftwareException;
            event.instruction_length = raw.instruction_length;
        }
        Ok(Next::Resume)
    }

    /// Debug registers keep their values; breakpoints do not fire, and the host's registers stay out of reach.
    fn debug_register(&mut self, access: DrAccess) -> Handled {
        let DrAccess { dr, read, gpr } = access;
        // The exit comes before the checks that MOV DR makes (SDM vol. 3, section 26.1.1).
        if self.user_mode() {
            return self.inject(Exception::GP0);
        }
        if matches!(dr, 4 | 5) && self.vcpu.read(Field::GuestCr4) & cr4::DE != 0 {
            return self.inject(Exception::UD);
        }
        // Without CR4.DE, DR4 and DR5 are other names of DR6 and DR7.
        let slot = if matches!(dr, 4 | 5) { dr + 2 } else { dr } as usize;
        if read {
            let value = self.debug[slot];
            self.vcpu.set_gpr(gpr, value);
            return Ok(Next::Skip);
        }
        let value = self.source(gpr);
        self.debug[slot] = match slot {
            6 if value >> 32 != 0 => return self.inject(Exception::GP0),
            7 if value >> 32 != 0 => return self.inject(Exception::GP0),
            6 => (value & 0xe00f) | 0xffff_0ff0,
            7 => (value & 0xffff_2fff) | 0x400,
            _ => value,
        };
        Ok(Next::Skip)
    }
}
