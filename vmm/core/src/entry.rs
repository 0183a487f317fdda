// SPDX-License-Identifier: MIT OR Apache-2.0
//! The virtual CPU before its first instruction: processor state and VM-execution controls.

use crate::boot::{Entry, EntryMode};
use crate::control::{CR0_OWNED, CR4_OWNED, Control, hardware_cr0, hardware_cr4};
use crate::inject::vector;
use crate::vcpu::{AccessRights, Field, Gpr, SegReg, Segment, Vcpu, cr0, cr4, efer, rflags};

/// Pin-based controls: external interrupts and NMIs exit, virtual NMIs, preemption timer.
pub const PIN_BASED: u32 = 1 << 0 | 1 << 3 | 1 << 5 | 1 << 6;
/// Primary controls: TSC offset; HLT, MWAIT, RDPMC, MOV to and from CR8, MOV DR and MONITOR exit; the I/O and MSR bitmaps
/// and the secondary controls are in force. Without the CR8 exits a guest would write the physical TPR.
pub const PRIMARY: u32 =
    1 << 3 | 1 << 7 | 1 << 10 | 1 << 11 | 1 << 19 | 1 << 20 | 1 << 23 | 1 << 25 | 1 << 28 | 1 << 29 | 1 << 31;
/// Primary control: exit as soon as an interrupt can be taken.
pub const INTERRUPT_WINDOW: u32 = 1 << 2;
/// Secondary controls: EPT, VPID, WBINVD exits, unrestricted guest.
pub const SECONDARY: u32 = 1 << 1 | 1 << 5 | 1 << 6 | 1 << 7;
/// Exit controls that the vmm wants beyond the kernel's: keep the preemption timer's value.
pub const EXIT: u32 = 1 << 22;
/// Exceptions that exit. #DB, so that the guest finds in its DR6 what happened; it and #AC also because each may happen again
/// while it is delivered: the processor would go round for ever, without an exit and deaf to the host's interrupts.
pub const EXCEPTIONS: u32 = 1 << vector::DB | 1 << vector::AC;

const CODE_32: u32 = 0xc09b;
const CODE_64: u32 = 0xa09b;
const DATA: u32 = 0xc093;
/// A busy 32-bit (or 64-bit) TSS.
const TSS: u32 = 0x8b;
const LDT_UNUSABLE: u32 = 1 << 16;
/// IA32_PAT at reset.
const PAT: u64 = 0x0007_0406_0007_0406;

/// Puts the processor into the state that the loader asks for; the registers that the vmm keeps are returned.
pub fn set_up<V: Vcpu>(vcpu: &mut V, entry: &Entry) -> Control {
    let (control, code, cr3) = match entry.mode {
        EntryMode::Protected32 => (
            Control {
                cr0: cr0::PE | cr0::ET,
                cr4: 0,
                efer: 0,
            },
            CODE_32,
            0,
        ),
        EntryMode::Long64 { cr3 } => (
            Control {
                cr0: cr0::PE | cr0::ET | cr0::PG,
                cr4: cr4::PAE,
                efer: efer::LME | efer::LMA,
            },
            CODE_64,
            cr3.raw(),
        ),
    };
    controls(vcpu);
    for seg in SegReg::ALL {
        let flat = |selector, rights| Segment {
            selector,
            base: 0,
            limit: u32::MAX,
            rights: AccessRights(rights),
        };
        let value = match seg {
            SegReg::Cs => flat(0x10, code),
            SegReg::Es | SegReg::Ss | SegReg::Ds | SegReg::Fs | SegReg::Gs => flat(0x18, DATA),
            SegReg::Ldtr => Segment {
                limit: 0,
                ..flat(0, LDT_UNUSABLE)
            },
            SegReg::Tr => Segment {
                limit: 0x67,
                ..flat(0, TSS)
            },
        };
        vcpu.set_segment(seg, value);
    }
    let fields = [
        (Field::GuestGdtrBase, entry.gdt_base.raw()),
        (Field::GuestGdtrLimit, entry.gdt_limit.into()),
        (Field::GuestIdtrBase, 0),
        (Field::GuestIdtrLimit, 0),
        (Field::GuestPat, PAT),
        (Field::GuestDebugctl, 0),
        (Field::GuestDr7, 0x400),
        (Field::GuestSysenterCs, 0),
        (Field::GuestSysenterEsp, 0),
        (Field::GuestSysenterEip, 0),
        (Field::GuestInterruptibility, 0),
        (Field::GuestActivityState, 0),
        (Field::GuestPendingDebugExceptions, 0),
        (Field::GuestRflags, rflags::FIXED),
        (Field::GuestCr3, cr3),
    ];
    for (field, value) in fields {
        vcpu.write(field, value);
    }
    write_cr0(vcpu, control.cr0);
    write_cr4(vcpu, control.cr4);
    vcpu.write(Field::GuestEfer, control.efer);
    for r in Gpr::ALL {
        vcpu.set_gpr(r, 0);
    }
    vcpu.set_gpr(Gpr::Rsp, entry.rsp);
    vcpu.set_gpr(Gpr::Rax, entry.rax);
    vcpu.set_gpr(Gpr::Rbx, entry.rbx);
    vcpu.set_gpr(Gpr::Rsi, entry.rsi);
    vcpu.set_cr2(0);
    vcpu.set_rip(entry.rip);
    control
}

fn controls<V: Vcpu>(vcpu: &mut V) {
    let fields = [
        (Field::PinBasedControls, PIN_BASED.into()),
        (Field::PrimaryControls, PRIMARY.into()),
        (Field::SecondaryControls, SECONDARY.into()),
        (Field::ExceptionBitmap, EXCEPTIONS.into()),
        (Field::Cr0GuestHostMask, CR0_OWNED),
        (Field::Cr4GuestHostMask, CR4_OWNED),
    ];
    for (field, value) in fields {
        vcpu.write(field, value);
    }
    let exit = vcpu.read(Field::ExitControls);
    vcpu.write(Field::ExitControls, exit | u64::from(EXIT));
}

/// Writes CR0: what hardware runs with and what the guest reads.
pub fn write_cr0<V: Vcpu>(vcpu: &mut V, value: u64) {
    vcpu.write(Field::GuestCr0, hardware_cr0(value));
    vcpu.write(Field::Cr0ReadShadow, value);
}

/// Writes CR4: what hardware runs with and what the guest reads.
pub fn write_cr4<V: Vcpu>(vcpu: &mut V, value: u64) {
    vcpu.write(Field::GuestCr4, hardware_cr4(value));
    vcpu.write(Field::Cr4ReadShadow, value);
}
