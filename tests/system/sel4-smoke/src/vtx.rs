// SPDX-License-Identifier: MIT OR Apache-2.0
//! Does a guest run where there is VT-x, and is it refused cleanly where there is none?

use crate::objects::Objects;
use alloc::string::String;
use sel4::cap::{EptPd, EptPdpt, EptPml4, EptPt, Notification, SmallPage, VCpu, cap_type};
use sel4::init_thread::slot;
use sel4::{
    CapRights, EptAttributes, Error, ExitMessage, GuestRegisters, ObjectBlueprint, TranslationTable, VmEntry, VmExit,
    vm_enter, vm_enter_with, vm_enter_with_rax, vm_enter_with_registers, vmcs,
};
use umbra_test_report::{Check, Report, good, same, ticks, ticks_after};

/// Where the guest's code is, in its memory and in ours.
const CODE_GPA: u64 = 0x1000;
const CODE_WINDOW: u64 = 0x60_0000_0000;
/// Where nothing is at first.
const DATA_GPA: u64 = 0x5000;
const DATA_WINDOW: u64 = CODE_WINDOW + 0x1000;

/// vmcall; mov eax, cr2; vmcall; mov [DATA_GPA], ebx; vmcall; jmp to the start.
const CODE: [u8; 20] = [
    0x0f, 0x01, 0xc1, 0x0f, 0x20, 0xd0, 0x0f, 0x01, 0xc1, 0x89, 0x1d, 0x00, 0x50, 0x00, 0x00, 0x0f, 0x01, 0xc1, 0xeb,
    0xec,
];
const FIRST_CALL: u64 = CODE_GPA;
const SECOND_CALL: u64 = CODE_GPA + 6;
const STORE: u64 = CODE_GPA + 9;
const THIRD_CALL: u64 = CODE_GPA + 15;
const VMCALL_LENGTH: u64 = 3;

/// Exit on HLT; the kernel forces what it needs.
const PRIMARY_CONTROLS: u64 = 1 << 7;
const UNRESTRICTED_GUEST: u64 = 1 << 7;

/// All tests of this file.
pub fn run(report: &mut Report, objects: &mut Objects) {
    match objects.object::<cap_type::VCpu>(ObjectBlueprint::VCpu) {
        Ok(vcpu) => {
            let mut vm = None;
            report.test("a guest is set up", || {
                Vm::new(objects, vcpu).map(|made| vm = Some(made))
            });
            if let Some(vm) = vm {
                vm.tests(report, objects);
                vm.measure(report);
            }
        }
        Err(error) => report.test("VCPU and EPT objects are refused without VT-x", || {
            same("the CPU has VT-x", cpu_has_vtx(), false)?;
            same("VCPU", error, Error::InvalidArgument { arg: 0 })?;
            let ept = objects.object::<cap_type::EptPml4>(ObjectBlueprint::EptPml4);
            same("EPT", ept, Err(Error::InvalidArgument { arg: 0 }))
        }),
    }
}

fn cpu_has_vtx() -> bool {
    // SDM vol. 2, CPUID leaf 1: ECX bit 5 is VMX.
    core::arch::x86_64::__cpuid(1).ecx & 1 << 5 != 0
}

struct Vm {
    vcpu: VCpu,
    ept: EptPml4,
    data: SmallPage,
    notification: Notification,
}

fn entry(rip: u64) -> VmEntry {
    VmEntry {
        rip,
        primary_controls: PRIMARY_CONTROLS,
        interruption_info: 0,
    }
}

/// The exit by instruction or fault that `exit` must be.
fn exited(exit: VmExit, reason: u64, rip: u64) -> Result<ExitMessage, String> {
    match exit {
        VmExit::Fault(message) => {
            same("exit reason and rip", (message.reason(), message.rip()), (reason, rip))?;
            Ok(message)
        }
        VmExit::Notification { badge, .. } => Err(alloc::format!("a notification with badge {badge}")),
    }
}

impl Vm {
    fn new(objects: &mut Objects, vcpu: VCpu) -> Result<Self, String> {
        let ept: EptPml4 = good("EPT", objects.object(ObjectBlueprint::EptPml4))?;
        good("assign", slot::ASID_POOL.asid_pool_assign_ept(ept))?;
        good("set EPT root", slot::TCB.tcb_set_ept_root(ept))?;
        good("set TCB", vcpu.vcpu_set_tcb(slot::TCB))?;
        let pdpt: EptPdpt = good("PDPT", objects.object(ObjectBlueprint::EptPdpt))?;
        good("map PDPT", pdpt.table_map(ept, 0))?;
        let pd: EptPd = good("PD", objects.object(ObjectBlueprint::EptPd))?;
        good("map PD", pd.table_map(ept, 0))?;
        let pt: EptPt = good("PT", objects.object(ObjectBlueprint::EptPt))?;
        good("map PT", pt.table_map(ept, 0))?;

        let code = guest_page(objects, CODE_WINDOW)?;
        let window = core::ptr::with_exposed_provenance_mut::<[u8; CODE.len()]>(CODE_WINDOW as usize);
        // SAFETY: guest_page mapped it there.
        unsafe { window.write_volatile(CODE) };
        let data = guest_page(objects, DATA_WINDOW)?;
        let map = code.frame_map_ept(ept, CODE_GPA, CapRights::READ_WRITE, EptAttributes::WriteBack);
        good("map code", map)?;

        let notification: Notification = good("notification", objects.object(ObjectBlueprint::Notification))?;
        good("bind", slot::TCB.tcb_bind_notification(notification))?;
        let vm = Self {
            vcpu,
            ept,
            data,
            notification,
        };
        vm.protected_mode()?;
        Ok(vm)
    }

    /// Flat 32-bit segments, no paging.
    fn protected_mode(&self) -> Check {
        let selectors = (vmcs::VMX_GUEST_ES_SELECTOR..).step_by(2).take(6);
        for (i, selector) in (0..).zip(selectors) {
            let is_code = selector == vmcs::VMX_GUEST_CS_SELECTOR;
            self.set(selector, if is_code { 8 } else { 16 })?;
            self.set(vmcs::VMX_GUEST_ES_BASE + 2 * i, 0)?;
            self.set(vmcs::VMX_GUEST_ES_LIMIT + 2 * i, 0xffff_ffff)?;
            self.set(
                vmcs::VMX_GUEST_ES_ACCESS_RIGHTS + 2 * i,
                if is_code { 0xc09b } else { 0xc093 },
            )?;
        }
        for (field, value) in [
            (vmcs::VMX_GUEST_LDTR_ACCESS_RIGHTS, 0x1_0000),
            (vmcs::VMX_GUEST_TR_SELECTOR, 0x18),
            (vmcs::VMX_GUEST_TR_ACCESS_RIGHTS, 0x8b),
            (vmcs::VMX_GUEST_TR_LIMIT, 0x67),
            (vmcs::VMX_GUEST_RFLAGS, 2),
            (vmcs::VMX_GUEST_RSP, 0x3000),
            (vmcs::VMX_CONTROL_SECONDARY_PROCESSOR_CONTROLS, UNRESTRICTED_GUEST),
            (vmcs::VMX_GUEST_CR0, 0x31),
            (vmcs::VMX_GUEST_CR4, 0),
            (vmcs::VMX_CONTROL_CR4_MASK, 1 << 13),
        ] {
            self.set(field, value)?;
        }
        Ok(())
    }

    fn set(&self, field: u64, value: u64) -> Check {
        good("VMCS write", self.vcpu.vcpu_write_vmcs(field, value)).map(drop)
    }

    fn tests(&self, report: &mut Report, objects: &mut Objects) {
        report.test("a guest runs and exits at its hypercall", || {
            let exit = exited(vm_enter(entry(FIRST_CALL)), vmcs::VMCALL, FIRST_CALL)?;
            same("instruction length", exit.instruction_length(), VMCALL_LENGTH)?;
            same("rsp, cs base", (exit.rsp(), exit.cs_base()), (0x3000, 0))?;
            same(
                "access rights",
                (exit.cs_access_rights(), exit.ss_access_rights()),
                (0xc09b, 0xc093),
            )?;
            same("efer", exit.efer(), 0)?;
            same("cr0", exit.cr0() & 0x8000_0001, 1)
        });
        report.test("an entry sets all, some or no registers", || self.registers());
        report.test("the guest sees the CR2 that an entry sets", || {
            let registers = GuestRegisters {
                cr2: 0x1234_5678,
                ..GuestRegisters::default()
            };
            let exit = vm_enter_with_registers(entry(FIRST_CALL + VMCALL_LENGTH), &registers);
            let exit = exited(exit, vmcs::VMCALL, SECOND_CALL)?;
            same("rax, cr2", (exit.rax(), exit.cr2()), (0x1234_5678, 0x1234_5678))
        });
        report.test(
            "an EPT violation tells its address; with a frame there the guest goes on",
            || self.violation(),
        );
        report.test("a signal ends the entry with its badge", || self.signalled(objects));
        report.test("a VMCS field keeps its value, an unknown one is refused", || {
            self.set(vmcs::VMX_GUEST_RSP, 0x2ff0)?;
            let read = |field| self.vcpu.vcpu_read_vmcs(field);
            same("RSP", read(vmcs::VMX_GUEST_RSP), Ok(0x2ff0))?;
            same("host RIP", read(vmcs::VMX_HOST_RIP), Err(Error::IllegalOperation))
        });
    }

    fn registers(&self) -> Check {
        let words = core::array::from_fn(|i| 0x1_0000_0001 * (i as u64 + 1));
        let all = GuestRegisters::from_words(words);
        let exit = exited(
            vm_enter_with_registers(entry(FIRST_CALL), &all),
            vmcs::VMCALL,
            FIRST_CALL,
        )?;
        same("all", exit.registers(), all)?;
        same("each", core::array::from_fn(|i| exit.gpr(i)), words)?;
        same("rax, rbp", (exit.rax(), exit.rbp()), (words[0], words[6]))?;

        let exit = exited(vm_enter_with_rax(entry(FIRST_CALL), 99), vmcs::VMCALL, FIRST_CALL)?;
        same("rax", exit.registers(), GuestRegisters { rax: 99, ..all })?;

        let exit = exited(vm_enter_with(entry(FIRST_CALL), [1, 2, 3, 4]), vmcs::VMCALL, FIRST_CALL)?;
        let four = GuestRegisters {
            rax: 1,
            rbx: 2,
            rcx: 3,
            rdx: 4,
            ..all
        };
        same("four", exit.registers(), four)?;

        let exit = exited(vm_enter(entry(FIRST_CALL)), vmcs::VMCALL, FIRST_CALL)?;
        same("none", exit.registers(), four)?;

        good("write registers", self.vcpu.vcpu_write_registers(&all))?;
        let exit = exited(vm_enter(entry(FIRST_CALL)), vmcs::VMCALL, FIRST_CALL)?;
        // The invocation does not carry CR2.
        same("written", exit.registers(), GuestRegisters { cr2: four.cr2, ..all })
    }

    fn violation(&self) -> Check {
        let exit = exited(vm_enter_with(entry(STORE), [0, 0xabcd]), vmcs::EPT_VIOLATION, STORE)?;
        same(
            "address",
            (exit.guest_physical(), exit.guest_linear()),
            (DATA_GPA, DATA_GPA),
        )?;
        same("a write", exit.qualification() & 7, 2)?;
        let map = self
            .data
            .frame_map_ept(self.ept, DATA_GPA, CapRights::READ_WRITE, EptAttributes::WriteBack);
        good("map", map)?;
        exited(vm_enter(exit.entry()), vmcs::VMCALL, THIRD_CALL)?;
        let window = core::ptr::with_exposed_provenance::<u32>(DATA_WINDOW as usize);
        // SAFETY: the page is mapped there.
        same("what the guest wrote", unsafe { window.read_volatile() }, 0xabcd)?;
        good("unmap", self.data.frame_unmap())?;
        exited(vm_enter(entry(STORE)), vmcs::EPT_VIOLATION, STORE).map(drop)
    }

    fn signalled(&self, objects: &mut Objects) -> Check {
        const BADGE: u64 = 0x11;
        let badged: Notification = objects.slot();
        let minted = slot::CNODE.absolute_cptr(badged);
        good(
            "mint",
            minted.mint(&slot::CNODE.absolute_cptr(self.notification), CapRights::WRITE, BADGE),
        )?;
        badged.signal();
        match vm_enter(entry(FIRST_CALL)) {
            VmExit::Notification { badge, entry } => same("badge, rip", (badge, entry.rip), (BADGE, FIRST_CALL)),
            VmExit::Fault(exit) => Err(alloc::format!("{exit:?}")),
        }
    }

    fn measure(&self, report: &mut Report) {
        let at = entry(FIRST_CALL);
        let registers = GuestRegisters::default();
        report.measured("exit and entry", ticks(|| drop_exit(vm_enter(at))));
        report.measured("exit and entry with RAX", ticks(|| drop_exit(vm_enter_with_rax(at, 1))));
        report.measured(
            "exit and entry with 4 registers",
            ticks(|| drop_exit(vm_enter_with(at, [1, 2, 3, 4]))),
        );
        report.measured("exit and entry with all registers", {
            ticks(|| drop_exit(vm_enter_with_registers(at, core::hint::black_box(&registers))))
        });
        report.measured(
            "write registers",
            ticks(|| self.vcpu.vcpu_write_registers(&registers).expect("registers")),
        );
        let field = vmcs::VMX_GUEST_RSP;
        report.measured("read VMCS", ticks(|| assert!(self.vcpu.vcpu_read_vmcs(field).is_ok())));
        report.measured(
            "write VMCS",
            ticks(|| assert!(self.vcpu.vcpu_write_vmcs(field, 0x3000).is_ok())),
        );
        let map = || {
            let mapped = self
                .data
                .frame_map_ept(self.ept, DATA_GPA, CapRights::READ_WRITE, EptAttributes::WriteBack);
            mapped.expect("map");
        };
        let unmap = || self.data.frame_unmap().expect("unmap");
        report.measured("map in an EPT", ticks_after(unmap, map));
        unmap();
        report.measured("unmap from an EPT", ticks_after(map, unmap));
    }
}

fn drop_exit(exit: VmExit) {
    match exit {
        VmExit::Fault(message) => assert_eq!(message.reason(), vmcs::VMCALL, "{message:?}"),
        VmExit::Notification { badge, .. } => panic!("a notification with badge {badge}"),
    }
}

/// A frame that is mapped at `window` here, and whose capability is free to be mapped in the guest.
fn guest_page(objects: &mut Objects, window: u64) -> Result<SmallPage, String> {
    let frame = good("frame", objects.object(ObjectBlueprint::SmallPage))?;
    objects.map(frame, window)?;
    let copy: SmallPage = objects.slot();
    let copied = slot::CNODE
        .absolute_cptr(copy)
        .copy(&slot::CNODE.absolute_cptr(frame), CapRights::ALL);
    good("copy", copied)?;
    Ok(copy)
}
