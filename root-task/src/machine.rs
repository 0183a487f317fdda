// SPDX-License-Identifier: MIT OR Apache-2.0
//! What one virtual machine is made of: its two components and exactly the capabilities that they need.

use crate::{
    bundle,
    cspace::CSpace,
    failure::Failure,
    guest_ram,
    kernel::Kernel,
    payload::Window,
    spawn::{self, Build, Root, Thread},
};
use alloc::{string::String, vec::Vec};
use core::fmt;
use sel4::{CNodeCapData, ObjectBlueprint, cap, init_thread};
use umbra_description::{
    MmuConfig, SinkKind, System, Vm, VmmConfig, VmmRam,
    bundle::{Bundle, BundleError},
    layout,
    supervisor::Role,
};
use umbra_root_core::{
    audit::{VmFacts, uart_irq, uart_ports},
    badge::{Kind, Source},
    elf::{ElfError, Program},
    frames::Frames,
    ledger::{Holder, Port, Rights},
};

/// Slots of a vmm's CNode: 2^this.
const VMM_CNODE_BITS: u8 = 4;
/// What the console's interrupt signals to the vmm.
const CONSOLE_BADGE: u64 = 1;

/// A VM's threads.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// The vmm; its thread is the VCPU's.
    pub vmm: Thread,
    /// The mmu.
    pub mmu: Thread,
    /// log2 of the slots of the mmu's CNode.
    mmu_cnode_bits: u8,
}

/// Why a VM cannot be built.
#[derive(Debug)]
pub enum Problem {
    /// The kernel has no virtual CPUs: the processor lacks VT-x, or the firmware switched it off.
    NoVtx,
    /// The machine has less memory than the guest shall have.
    Memory {
        /// Bytes for the guest and its tables.
        need: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// The guest images cannot be mapped: the boot loader did not leave that memory out of the memory map.
    Payload(Failure),
    /// Memory, slots, or a refused kernel call.
    Failure(Failure),
    /// A component is not in the bundle, or corrupt.
    Bundle(BundleError<'static>),
    /// The bundle lacks this image.
    Missing(String),
    /// A component's ELF file is refused.
    Elf(String, ElfError),
    /// A configuration could not be written down.
    Config,
    /// The description that the audit shall compare with cannot be read.
    Policy(bundle::Problem),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoVtx => f.write_str("no VT-x on this machine: virtual machines cannot run"),
            Self::Memory { need, free } => {
                write!(
                    f,
                    "its memory takes {} MiB, {} MiB are free",
                    need.div_ceil(1 << 20),
                    free >> 20
                )
            }
            Self::Payload(failure) => write!(f, "the guest images cannot be mapped: {failure}"),
            Self::Failure(failure) => failure.fmt(f),
            Self::Bundle(error) => error.fmt(f),
            Self::Missing(image) => write!(f, "the bundle has no entry '{image}'"),
            Self::Elf(image, error) => write!(f, "component '{image}': {error}"),
            Self::Policy(problem) => problem.fmt(f),
            Self::Config => f.write_str("a component's configuration does not fit in memory"),
        }
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

impl Machine {
    /// What the audit must know of it.
    pub const fn facts(&self) -> VmFacts {
        VmFacts {
            vmm: self.vmm.facts,
            mmu: self.mmu.facts,
            mmu_cnode_bits: self.mmu_cnode_bits,
        }
    }

    /// Lets both components run.
    pub fn start(&self) -> Result<(), Failure> {
        let started = self.mmu.tcb.tcb_resume().and_then(|()| self.vmm.tcb.tcb_resume());
        started.map_err(Failure::kernel("start a component"))
    }

    /// Stops both components for good.
    pub fn stop(&self) {
        // A thread that is stopped already stays so: there is nothing to report.
        let _ = self.vmm.tcb.tcb_suspend();
        let _ = self.mmu.tcb.tcb_suspend();
    }
}

/// What all VMs are built from.
pub struct Factory<'a> {
    /// The kernel.
    pub kernel: &'a mut Kernel,
    /// The description.
    pub system: &'a System,
    /// Components' images.
    pub bundle: Bundle<'static>,
    /// Guest images.
    pub payload: Window,
    /// Where components send messages and faults.
    pub supervisor: cap::Endpoint,
    /// Ticks of the time stamp counter per second.
    pub tsc_hz: u64,
    /// What guests' clocks show at power-on, in seconds since 1970.
    pub epoch: u64,
}

impl Factory<'_> {
    /// Builds the VM with this number; nothing of it runs yet.
    pub fn machine(&mut self, number: u16) -> Result<Machine, Problem> {
        let vm = &self.system.vms[usize::from(number)];
        let need = vm.slots.iter().map(|slot| slot.len).sum::<u64>() + vm.table_memory;
        let free = self.kernel.free_memory();
        if need > free {
            return Err(Problem::Memory { need, free });
        }
        let vcpu: cap::VCpu = self.kernel.alloc(ObjectBlueprint::VCpu).map_err(no_vtx)?;
        let ept: cap::EptPml4 = self.kernel.alloc(ObjectBlueprint::EptPml4)?;
        init_thread::slot::ASID_POOL
            .asid_pool_assign_ept(ept)
            .map_err(Failure::kernel("give an EPT its number"))?;
        let requests = self.kernel.alloc_endpoint(Port::Requests(number))?;

        let vmm_component = &self.system.components[usize::from(vm.vmm)];
        let mmu_component = &self.system.components[usize::from(vm.mmu)];
        let vmm_program = self.program(&vmm_component.image)?;
        let mmu_program = self.program(&mmu_component.image)?;
        let (vmm_holder, mmu_holder) = (Holder::Vmm(number), Holder::Mmu(number));
        let vmm = Build::new(self.kernel, vmm_holder, vmm_component, &vmm_program, 0)?;
        let mmu = Build::new(
            self.kernel,
            mmu_holder,
            mmu_component,
            &mmu_program,
            vm.mmu_heap_extra(),
        )?;

        // The mmu: everything of the VM's memory, nothing else.
        let tables = powers_of_two(vm.table_memory);
        let bits = mmu_cnode_bits(vm, tables.len());
        let cspace = self.kernel.alloc_cspace(mmu_holder, bits)?;
        let top = self.mmu_top(&cspace)?;
        self.kernel
            .copy(requests.cptr(), cspace, layout::mmu::REQUESTS, Rights::READ)?;
        self.kernel.copy(ept.cptr(), cspace, layout::mmu::EPT, Rights::all())?;
        self.supervised(number, Role::Mmu, cspace, layout::mmu::SUPERVISOR, layout::mmu::FAULT)?;
        let mut next = layout::mmu::FIRST_VARIABLE;
        let mut table_slots = Vec::with_capacity(tables.len());
        for size_bits in tables {
            self.kernel.alloc_untyped(size_bits, cspace, next)?;
            table_slots.push((next, size_bits));
            next += 1;
        }
        let backings = guest_ram::provide(self.kernel, vm, &vmm.space, cspace, &mut next)?;
        let mmu_config = MmuConfig {
            vm: vm.name.clone(),
            sink: SinkKind::Ept,
            first_generation: vm.first_generation,
            tables: table_slots,
            backings,
            free_slots: (next, (1 << bits) - next),
        };
        let root = Root {
            cnode: top,
            guard: CNodeCapData::unchanged(),
            fault: layout::mmu::FAULT,
        };
        let mmu = mmu.finish(self.kernel, mmu_component, &root, &encode(&mmu_config)?)?;

        // The vmm: the VCPU, its devices, and a window to the guest's memory.
        let cspace = self.kernel.alloc_cspace(vmm_holder, VMM_CNODE_BITS)?;
        self.kernel
            .copy(requests.cptr(), cspace, layout::vmm::MMU, Rights::WRITE | Rights::GRANT)?;
        self.kernel
            .copy(vcpu.cptr(), cspace, layout::vmm::VCPU, Rights::all())?;
        self.supervised(number, Role::Vmm, cspace, layout::vmm::SUPERVISOR, layout::vmm::FAULT)?;
        self.console(vm, vmm.thread(), cspace)?;
        self.payload.map(self.kernel, &vmm.space)?;
        let thread = vmm.thread();
        let root = spawn::flat(&cspace, layout::vmm::FAULT);
        let vmm = vmm.finish(self.kernel, vmm_component, &root, &encode(&self.vmm_config(vm))?)?;
        thread
            .tcb_set_ept_root(ept)
            .and_then(|()| vcpu.vcpu_set_tcb(thread))
            .map_err(Failure::kernel("give a VCPU to its thread"))?;
        Ok(Machine {
            vmm,
            mmu,
            mmu_cnode_bits: bits,
        })
    }

    fn program(&self, image: &str) -> Result<Program<'static>, Problem> {
        let entry = self.bundle.find(image).map_err(|_| Problem::Missing(image.into()))?;
        let file = entry.verify().map_err(Problem::Bundle)?;
        Program::parse(file).map_err(|error| Problem::Elf(image.into(), error))
    }

    /// The root of an mmu's CSpace: entry 0 leads to `own` with a guard of zeros.
    fn mmu_top(&mut self, own: &CSpace) -> Result<cap::CNode, Failure> {
        let top_bits = layout::mmu::TOP_BITS as u8;
        let top = self.kernel.alloc_cspace(own.holder, top_bits)?;
        let below_top = CNodeCapData::new(0, 64 - top_bits - own.bits());
        self.kernel.mint_cnode(own.cnode(), top, 0, below_top)?;
        self.kernel.mint_cnode(
            own.cnode(),
            *own,
            layout::mmu::CNODE,
            CNodeCapData::whole_cspace(own.bits()),
        )?;
        self.kernel
            .copy(top.cnode().cptr(), *own, layout::mmu::TOP, Rights::all())?;
        Ok(top.cnode())
    }

    fn supervised(&mut self, vm: u16, role: Role, to: CSpace, message: u64, fault: u64) -> Result<(), Failure> {
        let badge = |kind| Source { vm, role, kind }.to_badge();
        let supervisor = self.supervisor.cptr();
        self.kernel
            .mint(supervisor, to, message, Rights::WRITE, badge(Kind::Message))?;
        // The kernel delivers a fault only through a capability that could also grant.
        self.kernel
            .mint(supervisor, to, fault, Rights::WRITE | Rights::GRANT, badge(Kind::Fault))
    }

    /// A notification for the vmm's thread; with a console, the UART's ports and interrupt.
    fn console(&mut self, vm: &Vm, thread: cap::Tcb, cspace: CSpace) -> Result<(), Failure> {
        let notification: cap::Notification = self.kernel.alloc(ObjectBlueprint::Notification)?;
        thread
            .tcb_bind_notification(notification)
            .map_err(Failure::kernel("bind a notification"))?;
        self.kernel
            .copy(notification.cptr(), cspace, layout::vmm::NOTIFICATION, Rights::READ)?;
        if let Some(port) = vm.console {
            let slot = self.kernel.slot()?;
            self.kernel
                .mint(notification.cptr(), CSpace::ROOT, slot, Rights::WRITE, CONSOLE_BADGE)?;
            let signal = cap::Notification::from_bits(slot);
            self.kernel
                .mint_ports(uart_ports(port), cspace, layout::vmm::CONSOLE_PORT)?;
            self.kernel
                .issue_irq(uart_irq(port), signal, cspace, layout::vmm::CONSOLE_IRQ)?;
        }
        Ok(())
    }

    fn vmm_config(&self, vm: &Vm) -> VmmConfig {
        VmmConfig {
            vm: vm.name.clone(),
            boot: vm.boot.clone(),
            ram: vm
                .slots
                .iter()
                .map(|s| VmmRam {
                    gpa: s.gpa,
                    len: s.len,
                    kind: s.kind,
                })
                .collect(),
            payload_len: self.system.payload.map_or(0, |payload| payload.len),
            console_port: vm.console.map(|port| uart_ports(port).0),
            test_exit: vm.test_exit,
            tsc_hz: self.tsc_hz,
            epoch: self.epoch,
        }
    }
}

/// The kernel refuses to make VCPUs where it cannot run them.
fn no_vtx(failure: Failure) -> Problem {
    match failure {
        Failure::Kernel {
            error: sel4::Error::InvalidArgument { .. },
            ..
        } => Problem::NoVtx,
        Failure::Kernel { .. } | Failure::Memory(_) | Failure::Slots { .. } => Problem::Failure(failure),
    }
}

fn encode(config: &impl serde::Serialize) -> Result<Vec<u8>, Problem> {
    postcard::to_allocvec(config).map_err(|_| Problem::Config)
}

/// Sizes (log2) of untyped objects that together have `bytes`, a multiple of 4K, the largest first.
fn powers_of_two(bytes: u64) -> Vec<u8> {
    (0..64).rev().filter(|bit| bytes & (1 << bit) != 0).collect()
}

/// Room for all copies of frames, and for what the mmu makes: tables, and some slots for each memslot.
fn mmu_cnode_bits(vm: &Vm, untypeds: usize) -> u8 {
    let frames: u64 = vm.slots.iter().map(|slot| Frames::of_slot(slot).count()).sum();
    let made = vm.table_memory / 4096 + 8 * vm.slots.len() as u64 + 64;
    let slots = layout::mmu::FIRST_VARIABLE + untypeds as u64 + frames + made;
    slots.next_power_of_two().ilog2() as u8
}
