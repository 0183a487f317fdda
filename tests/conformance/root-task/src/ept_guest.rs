// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who is the guest where there is VT-x? Two instructions in 64-bit mode, in memory that the MMU does not know.
//!
//! Its code and page tables lie at 512 GiB, below another entry of the EPT's root than all cases; its linear addresses are
//! its physical ones.

use crate::memory::Memory;
use crate::thread_guest::mapping_cap;
use core::cell::UnsafeCell;
use sel4::cap::{EptPd, EptPdpt, EptPml4, EptPt, SmallPage, VCpu};
use sel4::init_thread::slot;
use sel4::vmcs::{self, EPT_VIOLATION, VMCALL};
use sel4::{
    BootInfo, CapRights, EptAttributes, Error, ExitMessage, GuestRegisters, ObjectBlueprint, TranslationTable, VmEntry,
    VmExit, vm_enter_with_registers,
};
use umbra_conformance::{BACKINGS, Faulted, Machine, SMALL};
use umbra_mmu_abi::{Access, Backing, Gfn, Gpa, SlotFlags, SlotId};
use umbra_mmu_component::ept::Ept;
use umbra_mmu_component::stage2::CapStage2;
use umbra_mmu_core::Mmu;
use umbra_mmu_core::fault::{Fault, Outcome};
use umbra_mmu_core::vcpu::Vcpu;
use umbra_test_report::{Report, timestamp};

/// Guest-physical address of the hidden pages: page map, two directory-pointer tables, code.
const HIDDEN: u64 = 1 << 39;
const PAGES: usize = 4;
const CODE: u64 = HIDDEN + 3 * 4096;
/// Offsets of the two programs in the code page. rbx: address; rcx: value.
const READ: u64 = 0;
const WRITE: u64 = 16;
/// mov rcx, [rbx]; vmcall
const READ_CODE: [u8; 6] = [0x48, 0x8b, 0x0b, 0x0f, 0x01, 0xc1];
/// mov [rbx], rcx; vmcall
const WRITE_CODE: [u8; 6] = [0x48, 0x89, 0x0b, 0x0f, 0x01, 0xc1];
/// Present and writable; the same for a page of 1 GiB.
const TABLE: u64 = 0b11;
const HUGE: u64 = 0b1000_0011;
/// HLT exits; the rest is the kernel's choice.
const PRIMARY: u64 = 1 << 7;

#[repr(C, align(4096))]
struct Pages(UnsafeCell<[[u64; 512]; PAGES]>);

// SAFETY: this program has one thread that uses it, and the guest.
unsafe impl Sync for Pages {}

static PAGES_OF_GUEST: Pages = Pages(UnsafeCell::new([[0; 512]; PAGES]));

unsafe extern "C" {
    /// The lowest address of the program.
    static __executable_start: u8;
}

/// The MMU above the EPT of a virtual CPU.
pub struct EptGuest {
    mmu: Mmu<CapStage2<Ept>>,
    vcpu: Vcpu,
}

impl EptGuest {
    /// Makes the guest; `None`: the machine has no VT-x.
    pub fn new(memory: &mut Memory, bootinfo: &BootInfo) -> Option<Self> {
        let vcpu: VCpu = match memory.object(ObjectBlueprint::VCpu) {
            Ok(vcpu) => vcpu,
            Err(Error::InvalidArgument { arg: 0 }) => return None,
            Err(error) => panic!("no virtual CPU: {error}"),
        };
        let ept = make_ept(memory, vcpu).unwrap_or_else(|error| panic!("no EPT: {error}"));
        fill();
        hide(memory, bootinfo, ept).unwrap_or_else(|error| panic!("no memory for the guest's code: {error}"));
        registers(vcpu).unwrap_or_else(|error| panic!("no state for the virtual CPU: {error}"));
        let mmu = memory.mmu(Ept(ept));
        let vcpu = mmu.add_vcpu().expect("the first virtual processor");
        Some(Self { mmu, vcpu })
    }

    fn run(&mut self, program: u64, gpa: Gpa, value: u64) -> Result<u64, Faulted> {
        let mut entry = VmEntry {
            rip: CODE + program,
            primary_controls: PRIMARY,
            interruption_info: 0,
        };
        let registers = GuestRegisters {
            rbx: gpa.raw(),
            rcx: value,
            ..GuestRegisters::default()
        };
        loop {
            match vm_enter_with_registers(entry, &registers) {
                VmExit::Fault(exit) => return outcome(&exit),
                VmExit::Notification { entry: again, .. } => entry = again,
            }
        }
    }

    /// Ticks of what a guest sees: an access that faults, is mapped and retried.
    pub fn measure(&mut self, report: &mut Report) {
        let base = Gfn::new(0x400);
        let pages = BACKINGS[SMALL.0 as usize].small_head;
        let backing = Backing {
            id: SMALL,
            first_page: 0,
        };
        self.mmu
            .set_slot(SlotId(0), base, pages, backing, SlotFlags::empty())
            .expect("a slot");
        let touch = |this: &mut Self, page: u64| {
            let gpa = Gfn::new(base.raw() + page).gpa();
            let start = timestamp();
            let faulted = this.write(gpa, 1).expect_err("a fresh page");
            let exited = timestamp();
            let fault = Fault::violation(faulted.gpa, faulted.access);
            assert_eq!(this.mmu.fault(&mut this.vcpu, &fault), Ok(Outcome::Resume));
            let mapped = timestamp();
            this.write(gpa, 1).expect("a mapped page");
            (mapped - exited, timestamp() - start)
        };
        // The first one also makes tables.
        touch(self, 0);
        let all = (1..u64::from(pages)).map(|page| touch(self, page));
        let (fault, total) = all.fold((u64::MAX, u64::MAX), |a, b| (a.0.min(b.0), a.1.min(b.1)));
        report.measured("ept-fault-in-the-mmu", fault);
        report.measured("ept-fault-with-both-entries", total);
        let backing = Backing {
            id: SMALL,
            first_page: 0,
        };
        let start = timestamp();
        self.mmu
            .set_slot(SlotId(0), base, 0, backing, SlotFlags::empty())
            .expect("a slot to delete");
        report.measured("delete-slot-of-32-mapped-pages", timestamp() - start);
    }
}

/// SDM vol. 3, table 29-7: bits 0 to 2 of the qualification are the access that faulted.
fn outcome(exit: &ExitMessage) -> Result<u64, Faulted> {
    match exit.reason() {
        VMCALL => Ok(exit.rcx()),
        EPT_VIOLATION => {
            let access = match exit.qualification() & 0b111 {
                0b001 => Access::Read,
                0b100 => Access::Fetch,
                _ => Access::Write,
            };
            Err(Faulted {
                gpa: Gpa::new(exit.guest_physical()),
                access,
            })
        }
        _ => panic!("the guest made an exit that it has no cause for: {exit:?}"),
    }
}

fn make_ept(memory: &mut Memory, vcpu: VCpu) -> sel4::Result<EptPml4> {
    let ept: EptPml4 = memory.object(ObjectBlueprint::EptPml4)?;
    slot::ASID_POOL.asid_pool_assign_ept(ept)?;
    slot::TCB.tcb_set_ept_root(ept)?;
    vcpu.vcpu_set_tcb(slot::TCB)?;
    Ok(ept)
}

/// Writes the guest's tables and code.
fn fill() {
    // SAFETY: the guest does not run yet, and nothing else refers to the pages.
    let [map, low, high, code] = unsafe { &mut *PAGES_OF_GUEST.0.get() };
    map[0] = (HIDDEN + 4096) | TABLE;
    map[1] = (HIDDEN + 2 * 4096) | TABLE;
    for (i, entry) in low.iter_mut().enumerate() {
        *entry = (i as u64) << 30 | HUGE;
    }
    high[0] = HIDDEN | HUGE;
    for (at, program) in [(READ, READ_CODE), (WRITE, WRITE_CODE)] {
        let mut word = [0; 8];
        word[..program.len()].copy_from_slice(&program);
        code[at as usize / 8] = u64::from_le_bytes(word);
    }
}

/// Maps them, below tables of their own.
fn hide(memory: &mut Memory, bootinfo: &BootInfo, ept: EptPml4) -> sel4::Result<()> {
    memory
        .object::<sel4::cap::cap_type::EptPdpt>(ObjectBlueprint::EptPdpt)
        .and_then(|t: EptPdpt| t.table_map(ept, HIDDEN))?;
    memory
        .object::<sel4::cap::cap_type::EptPd>(ObjectBlueprint::EptPd)
        .and_then(|t: EptPd| t.table_map(ept, HIDDEN))?;
    memory
        .object::<sel4::cap::cap_type::EptPt>(ObjectBlueprint::EptPt)
        .and_then(|t: EptPt| t.table_map(ept, HIDDEN))?;
    let image = (&raw const __executable_start) as u64 & !0xfff;
    for page in 0..PAGES as u64 {
        let address = PAGES_OF_GUEST.0.get() as u64 + page * 4096;
        let frame = bootinfo.image_frame(image, address).expect("the page is in the image");
        let copy: SmallPage = memory.slot();
        let place = slot::CNODE.absolute_cptr(copy);
        place.copy(&slot::CNODE.absolute_cptr(frame), CapRights::READ_WRITE)?;
        copy.frame_map_ept(
            ept,
            HIDDEN + page * 4096,
            CapRights::READ_WRITE,
            EptAttributes::WriteBack,
        )?;
    }
    Ok(())
}

/// 64-bit mode with flat segments.
fn registers(vcpu: VCpu) -> sel4::Result<()> {
    // ES, CS, SS, DS, FS, GS: the fields of the next segment are 2 further.
    for i in 0..6 {
        vcpu.vcpu_write_vmcs(vmcs::VMX_GUEST_ES_SELECTOR + 2 * i, if i == 1 { 8 } else { 16 })?;
        vcpu.vcpu_write_vmcs(vmcs::VMX_GUEST_ES_BASE + 2 * i, 0)?;
        vcpu.vcpu_write_vmcs(vmcs::VMX_GUEST_ES_LIMIT + 2 * i, 0xffff_ffff)?;
        vcpu.vcpu_write_vmcs(
            vmcs::VMX_GUEST_ES_ACCESS_RIGHTS + 2 * i,
            if i == 1 { 0xa09b } else { 0xc093 },
        )?;
    }
    let fields = [
        (vmcs::VMX_GUEST_LDTR_ACCESS_RIGHTS, 1 << 16),
        (vmcs::VMX_GUEST_TR_ACCESS_RIGHTS, 0x8b),
        (vmcs::VMX_GUEST_TR_LIMIT, 0x67),
        (vmcs::VMX_GUEST_RFLAGS, 2),
        (vmcs::VMX_GUEST_RSP, 0),
        (vmcs::VMX_CONTROL_CR0_MASK, 0),
        (vmcs::VMX_CONTROL_CR4_MASK, 1 << 13),
        // PE, ET, NE, WP, PG
        (vmcs::VMX_GUEST_CR0, 0x8001_0031),
        (vmcs::VMX_GUEST_CR3, HIDDEN),
        // PAE
        (vmcs::VMX_GUEST_CR4, 0x20),
        // LME, LMA
        (vmcs::VMX_GUEST_EFER, 0x500),
    ];
    for (field, value) in fields {
        vcpu.vcpu_write_vmcs(field, value)?;
    }
    Ok(())
}

impl Machine for EptGuest {
    type Stage2 = CapStage2<Ept>;

    fn mmu(&self) -> &Mmu<Self::Stage2> {
        &self.mmu
    }

    fn parts(&mut self) -> (&Mmu<Self::Stage2>, &mut Vcpu) {
        (&self.mmu, &mut self.vcpu)
    }

    fn read(&mut self, gpa: Gpa) -> Result<u64, Faulted> {
        self.run(READ, gpa, 0)
    }

    fn write(&mut self, gpa: Gpa, value: u64) -> Result<(), Faulted> {
        self.run(WRITE, gpa, value).map(|_| ())
    }

    fn lose_mapping(&mut self, slot: SlotId, gfn: Gfn) {
        mapping_cap(&self.mmu, slot, gfn)
            .frame_unmap()
            .expect("the frame is mapped");
    }
}
