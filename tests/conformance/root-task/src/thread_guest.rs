// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who plays the guest where there is no VT-x? A thread that makes one access and ends with an invalid instruction.

use crate::memory::Memory;
use core::arch::global_asm;
use sel4::cap::{Endpoint, Tcb};
use sel4::init_thread::slot;
use sel4::{CNodeCapData, CPtr, Fault, ObjectBlueprint, cap};
use umbra_conformance::{Faulted, Machine};
use umbra_mmu_abi::{Access, Gfn, Gpa, SlotId};
use umbra_mmu_component::stage2::{CapStage2, Space};
use umbra_mmu_component::vspace::Window;
use umbra_mmu_core::Mmu;
use umbra_mmu_core::host::HostView;
use umbra_mmu_core::spte::{Leaf, Rights, Writable};
use umbra_mmu_core::stage2::Stage2;
use umbra_mmu_core::vcpu::Vcpu;

// rbx: address; rcx: value. Both end with an exception that this program receives.
global_asm!(
    ".globl thread_guest_read",
    "thread_guest_read: mov rcx, [rbx]",
    "ud2",
    ".globl thread_guest_write",
    "thread_guest_write: mov [rbx], rcx",
    "ud2",
);

unsafe extern "C" {
    fn thread_guest_read();
    fn thread_guest_write();
}

/// Where guest-physical 0 is: the second entry of the address space's root.
const WINDOW: u64 = Window::BYTES;
/// Bit 1 of a page fault's error code: a write. SDM vol. 3, figure 4-12.
const WRITE: u64 = 1 << 1;
/// Vector of an invalid instruction.
const INVALID_OPCODE: u64 = 6;

/// The MMU above a window of this program's address space, and the thread.
pub struct ThreadGuest {
    mmu: Mmu<CapStage2<Window>>,
    vcpu: Vcpu,
    thread: Tcb,
    faults: Endpoint,
}

impl ThreadGuest {
    /// Makes the thread; it shares this program's address space and capabilities.
    pub fn new(memory: &mut Memory) -> Self {
        let window = Window::new(slot::VSPACE, WINDOW);
        let thread: Tcb = memory.object(ObjectBlueprint::Tcb).expect("memory for a thread");
        let faults: Endpoint = memory
            .object(ObjectBlueprint::Endpoint)
            .expect("memory for an endpoint");
        let fault = CPtr::from_bits(faults.bits());
        let whole = CNodeCapData::unchanged();
        // It never makes a system call, so it has no IPC buffer.
        let configured = thread.tcb_configure(fault, 100, 0, slot::CNODE, whole, slot::VSPACE, 0, slot::IPC_BUFFER);
        configured.expect("a thread of this program's own");
        let mmu = memory.mmu(window);
        Self {
            vcpu: mmu.add_vcpu().expect("the first virtual processor"),
            mmu,
            thread,
            faults,
        }
    }

    /// Runs one access to its end; the answer is RCX then.
    fn run(&mut self, stub: unsafe extern "C" fn(), gpa: Gpa, value: u64) -> Result<u64, Faulted> {
        let window = *self.mmu.stage2_mut().space();
        let address = window.vaddr(gpa.raw()).expect("the cases stay below 512 GiB");
        let mut registers = self
            .thread
            .tcb_read_all_registers(true)
            .expect("a thread of this program's own");
        (registers.rip, registers.rbx, registers.rcx) = (stub as *const () as u64, address, value);
        registers.rflags = 0x202;
        self.thread
            .tcb_write_all_registers(true, &registers)
            .expect("the thread waits in a fault");
        match Fault::new(&self.faults.recv()) {
            Fault::UserException {
                number: INVALID_OPCODE, ..
            } => Ok(self.thread.tcb_read_all_registers(false).expect("the thread waits").rcx),
            Fault::Vm {
                address: reported,
                instruction: false,
                code,
                ..
            } => {
                let access = if code & WRITE != 0 { Access::Write } else { Access::Read };
                assert_eq!(reported, address, "a fault elsewhere");
                Err(Faulted { gpa, access })
            }
            fault => panic!("the thread that plays the guest: {fault}"),
        }
    }
}

impl Machine for ThreadGuest {
    type Stage2 = CapStage2<Window>;

    fn mmu(&self) -> &Mmu<Self::Stage2> {
        &self.mmu
    }

    fn parts(&mut self) -> (&Mmu<Self::Stage2>, &mut Vcpu) {
        (&self.mmu, &mut self.vcpu)
    }

    fn read(&mut self, gpa: Gpa) -> Result<u64, Faulted> {
        self.run(thread_guest_read, gpa, 0)
    }

    fn write(&mut self, gpa: Gpa, value: u64) -> Result<(), Faulted> {
        self.run(thread_guest_write, gpa, value).map(|_| ())
    }

    fn lose_mapping(&mut self, slot: SlotId, gfn: Gfn) {
        mapping_cap(&self.mmu, slot, gfn)
            .frame_unmap()
            .expect("the frame is mapped");
    }
}

/// The capability behind the mapping of `gfn` in a slot.
pub fn mapping_cap<T: Space>(mmu: &Mmu<CapStage2<T>>, id: SlotId, gfn: Gfn) -> cap::UnspecifiedPage
where
    CapStage2<T>: Stage2,
{
    let slot = mmu.with_slots(|slots| slots.get(id).cloned());
    let frame = slot.expect("a slot of that number").frame_of(gfn);
    let HostView::Page(page) = mmu.host().page(frame) else {
        panic!("{frame:?} is not there as it was at start");
    };
    let leaf = Leaf {
        frame: page.first,
        level: page.level,
        writable: Writable::Now,
        rights: Rights::ALL,
    };
    mmu.with_stage2(|stage2| stage2.frame_cap(id, &leaf))
}
