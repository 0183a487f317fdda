// SPDX-License-Identifier: MIT OR Apache-2.0
//! The life of a vmm: read the configuration, load the guest, run it, say how it ended.
#![no_std]
#![no_main]

extern crate alloc;

mod checksum;
mod console;
mod machine;
mod mmu_ipc;
mod ram;
mod supervisor;
mod vmenter;

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use console::{GuestConsole, Uart};
use core::arch::x86_64::__cpuid_count;
use machine::Machine;
use mmu_ipc::MmuEndpoint;
use ram::RamWindow;
use sel4::cap;
use sel4_root_task::{declare_component, logger};
use umbra_description::bundle::Bundle;
use umbra_description::supervisor::StopReason;
use umbra_description::{SlotKind, VmmConfig, layout};
use umbra_mmu_abi::{Backing, BackingId, Gfn, PAGE_SIZE, SlotFlags, SlotId};
use umbra_vmm_core::boot::{Entry, Images, Module, load};
use umbra_vmm_core::cpuid::{Cpuid, Leaf};
use umbra_vmm_core::entry;
use umbra_vmm_core::exit::EntryFailure;
use umbra_vmm_core::guest_mem::GuestMemory;
use umbra_vmm_core::mmu_client::Mmu;
use umbra_vmm_core::platform::{Platform, PlatformConfig};
use umbra_vmm_core::run::{Stop, Vm};
use umbra_vmm_core::vcpu::Vcpu;
use vmenter::KernelVcpu;

declare_component! { main = main }

type GuestVm = Vm<KernelVcpu, RamWindow, MmuEndpoint, Machine>;

fn main(config: &'static [u8]) -> ! {
    logger::init(supervisor::log, log::LevelFilter::Info);
    let config: VmmConfig = match postcard::from_bytes(config) {
        Ok(config) => config,
        Err(error) => panic!("the configuration cannot be read: {error}"),
    };
    // SAFETY: the root task maps every slot of the configuration there before it starts this program, which makes no
    // references to guest RAM.
    let mut ram = unsafe { RamWindow::new(&config.ram) };
    let mut mmu = Mmu::new(MmuEndpoint(cap::Endpoint::from_bits(layout::vmm::MMU)));
    if let Err(why) = create_slots(&mut mmu, &config) {
        supervisor::stopped(StopReason::MmuFailed, format_args!("{why}"));
    }
    let start = match load_guest(&mut ram, &config) {
        Ok(start) => start,
        Err(why) => supervisor::stopped(StopReason::LoadFailed, format_args!("{why}")),
    };
    let mut vm = assemble(&config, ram, mmu, &start);
    let now = vm.vcpu.host_tsc();
    supervisor::entered(now);
    let stop = vm.run();
    finish(&mut vm, &stop)
}

/// Tells the mmu which memory the guest has.
fn create_slots(mmu: &mut Mmu<MmuEndpoint>, config: &VmmConfig) -> Result<(), String> {
    for (n, slot) in config.ram.iter().enumerate() {
        let n = n as u16;
        let flags = match slot.kind {
            SlotKind::Ram => SlotFlags::empty(),
            SlotKind::Rom => SlotFlags::READONLY,
        };
        let base = Gfn::new(slot.gpa / PAGE_SIZE);
        let pages = u32::try_from(slot.len / PAGE_SIZE).map_err(|_| "a memory slot of more than 16 TiB".to_string())?;
        let backing = Backing {
            id: BackingId(n),
            first_page: 0,
        };
        mmu.set_slot(SlotId(n), base, pages, backing, flags)
            .map_err(|e| e.to_string())?;
    }
    Ok(())
}

fn load_guest(ram: &mut RamWindow, config: &VmmConfig) -> Result<Entry, String> {
    // SAFETY: the root task maps that many bytes there, read-only, for as long as this program runs.
    let payload =
        unsafe { core::slice::from_raw_parts(layout::PAYLOAD_WINDOW as *const u8, config.payload_len as usize) };
    let bundle = Bundle::new(payload).map_err(|e| e.to_string())?;
    let find = |name: &str| {
        let checked = bundle.find(name).and_then(|entry| entry.verify_with(checksum::crc32c));
        checked.map_err(|e| e.to_string())
    };
    let boot = &config.boot;
    let initrd = boot.initrd.as_deref().map(find).transpose()?;
    let modules = boot
        .modules
        .iter()
        .map(|module| {
            Ok(Module {
                data: find(&module.image)?,
                cmdline: &module.cmdline,
            })
        })
        .collect::<Result<Vec<_>, String>>()?;
    let images = Images {
        kernel: find(&boot.kernel)?,
        initrd,
        modules: &modules,
        cmdline: &boot.cmdline,
        acpi: true,
    };
    load(ram, &images).map_err(|e| e.to_string())
}

fn assemble(config: &VmmConfig, ram: RamWindow, mmu: Mmu<MmuEndpoint>, start: &Entry) -> GuestVm {
    let ram_bytes = ram
        .regions()
        .iter()
        .map(|r| r.base.raw() + r.len)
        .filter(|end| *end <= 1 << 32)
        .max()
        .unwrap_or(0);
    let platform = PlatformConfig {
        tsc_hz: config.tsc_hz,
        epoch: config.epoch,
        ram_bytes,
        test_exit: config.test_exit,
    };
    let machine = Machine(Platform::new(platform, console(config)));
    let mut vcpu = KernelVcpu::new(cap::VCpu::from_bits(layout::vmm::VCPU));
    let control = entry::set_up(&mut vcpu, start);
    let cpuid = Cpuid::new(host_cpuid, config.tsc_hz);
    Vm::new(vcpu, ram, mmu, machine, cpuid, control, config.tsc_hz)
}

fn console(config: &VmmConfig) -> GuestConsole {
    let Some(base) = config.console_port else {
        return GuestConsole::Nothing;
    };
    let port = cap::IOPort::from_bits(layout::vmm::CONSOLE_PORT);
    let irq = cap::IrqHandler::from_bits(layout::vmm::CONSOLE_IRQ);
    match Uart::new(port, irq, base, config.tsc_hz) {
        Ok(uart) => GuestConsole::Line(uart),
        Err(error) => panic!("the console at port {base:#x} cannot be used: {error}"),
    }
}

fn host_cpuid(leaf: u32, subleaf: u32) -> Leaf {
    let l = __cpuid_count(leaf, subleaf);
    Leaf {
        eax: l.eax,
        ebx: l.ebx,
        ecx: l.ecx,
        edx: l.edx,
    }
}

/// Reports how the guest ended.
fn finish(vm: &mut GuestVm, stop: &Stop) -> ! {
    vm.devices.0.console_mut().drain();
    log::info!("{}", vm.counters);
    log::info!(
        "{} device accesses without a call of the mmu, {} calls; {} gaps of time hidden",
        vm.mmu.cache_hits,
        vm.mmu.calls,
        vm.hidden_gaps()
    );
    if let Some(report) = stop.report() {
        log::error!("{stop}");
        log::info!("{report}");
    }
    let reason = match stop {
        Stop::PowerOff => StopReason::PowerOff,
        Stop::Reset => StopReason::Reset,
        Stop::TestExit(status) => StopReason::TestExit(status >> 1),
        Stop::TripleFault(_) => StopReason::TripleFault,
        Stop::Halted(_) => StopReason::Halted,
        Stop::EmulationFailed(..) | Stop::DeliveryToDevice(..) | Stop::Livelock { .. } => StopReason::EmulationFailed,
        Stop::UnknownExit(_, report) => StopReason::UnknownExit(report.exit.reason & 0xffff),
        Stop::EntryFailed { why, .. } => StopReason::UnknownExit(match why {
            EntryFailure::GuestState => 33,
            EntryFailure::MsrLoading(_) => 34,
            EntryFailure::MachineCheck => 41,
            EntryFailure::Other(reason) => (*reason).into(),
            EntryFailure::Instruction => 0xffff,
        }),
        Stop::MmuFailed(_) => StopReason::MmuFailed,
        Stop::BackendFailed(why) => panic!("virtual CPU: {why}"),
    };
    supervisor::stopped(reason, format_args!("{stop}"))
}
