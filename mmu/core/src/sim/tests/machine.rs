// SPDX-License-Identifier: MIT OR Apache-2.0
//! Does a guest run on a processor and the MMU together?

use crate::fault::{ErrorCode, FaultError};
use crate::shadow::registers::{self as guest, Features, GuestCpu};
use crate::sim::cpu::Operation;
use crate::sim::machine::{Ended, EptVcpu, Request, ShadowVcpu};
use crate::sim::paging::*;
use crate::sim::shadow::Staleness;
use crate::sim::tlb::Forgetful;
use crate::sim::{SimMemory, SimRam, SimShadow, SimStage2, SimWords};
use crate::stage2::{BackingShape, Frame, GpteSize};
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::{Limits, Mmu};
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use std::thread;
use std::time::Duration;
use umbra_mmu_abi as abi;
use umbra_mmu_abi::{Backing, BackingId, Gfn, SlotFlags, SlotId};

const ALL: u64 = 7;
const PAGES: u32 = 64;

fn ept_machine() -> (Mmu<SimStage2>, Arc<SimMemory>) {
    let shape = BackingShape {
        small_head: PAGES,
        large: 0,
        small_tail: 0,
    };
    let memory = SimMemory::new(SimMemory::layout_for(46), &[shape], 0);
    let stage2 = SimStage2::with_memory(memory.clone(), 64);
    let mmu = Mmu::new(stage2, vec![shape], &Limits::default()).unwrap();
    set_slot(&mmu, 0, 0, 0, PAGES / 2, SlotFlags::empty());
    (mmu, memory)
}

fn set_slot(mmu: &Mmu<SimStage2>, id: u16, base: u64, first_page: u32, npages: u32, flags: SlotFlags) {
    let backing = Backing {
        id: BackingId(0),
        first_page,
    };
    mmu.set_slot(SlotId(id), Gfn::new(base), npages, backing, flags)
        .unwrap();
}

fn vcpu(mmu: &Mmu<SimStage2>, registers: Registers, forgetful: Option<Forgetful>) -> EptVcpu {
    let mut vcpu = EptVcpu::new(mmu.add_vcpu().unwrap(), Model::default(), forgetful);
    vcpu.reset(registers);
    vcpu
}

const NO_PAGING: Registers = Registers {
    cr0: 0,
    cr3: 0,
    cr4: 0,
    efer: 0,
    pdptes: [0; 4],
};

fn request(gva: u64, kind: abi::Access, value: u64) -> Request {
    Request {
        gva,
        access: Access {
            kind,
            privilege: Privilege::Supervisor,
        },
        operation: match kind {
            abi::Access::Read | abi::Access::Fetch => Operation::Load(GpteSize::B8),
            abi::Access::Write => Operation::Store { bytes: 8, value },
        },
    }
}

fn read(gva: u64) -> Request {
    request(gva, abi::Access::Read, 0)
}

fn write(gva: u64, value: u64) -> Request {
    request(gva, abi::Access::Write, value)
}

#[test]
fn memory_comes_when_it_is_touched_and_goes_with_its_slot() {
    let (mmu, _) = ept_machine();
    let mut cpu = vcpu(&mmu, NO_PAGING, None);
    assert_eq!(cpu.access(&mmu, &write(0x5008, 42)), Ok(Ended::Done(42)));
    let mut other = vcpu(&mmu, NO_PAGING, None);
    assert_eq!(other.access(&mmu, &read(0x5008)), Ok(Ended::Done(42)));
    set_slot(&mmu, 0, 0, 0, 0, SlotFlags::empty());
    for cpu in [&mut cpu, &mut other] {
        match cpu.access(&mmu, &read(0x5008)) {
            Ok(Ended::Emulate(mmio)) => assert_eq!((mmio.gfn, mmio.readonly_slot), (Gfn::new(5), false)),
            other => panic!("the slot is gone: {other:?}"),
        }
    }
    set_slot(&mmu, 0, 0x10, 0, PAGES / 2, SlotFlags::READONLY);
    assert_eq!(cpu.access(&mmu, &read(0x1_5008)), Ok(Ended::Done(42)));
    match cpu.access(&mmu, &write(0x1_5008, 1)) {
        Ok(Ended::Emulate(mmio)) => assert!(mmio.readonly_slot),
        other => panic!("the slot is read-only: {other:?}"),
    }
}

// REQ: SP-2
#[test]
fn guests_of_every_mode_run_above_an_ept() {
    for mode in PagingMode::ALL {
        let (mmu, memory) = ept_machine();
        let put = |gpa: u64, size, entry: u64| {
            let frame = Frame::new(BackingId(0), (gpa >> 12) as u32).unwrap();
            memory.store(frame, (gpa & 4095) as u16, size, entry);
        };
        let (cr4, efer) = match mode {
            PagingMode::None | PagingMode::TwoLevel => (0, 0),
            PagingMode::Pae => (CR4_PAE, EFER_NXE),
            PagingMode::FourLevel => (CR4_PAE, EFER_NXE | EFER_LME),
            PagingMode::FiveLevel => (CR4_PAE | CR4_LA57, EFER_NXE | EFER_LME),
        };
        // Tables 1, 2, ... one below another; page 0x3000 of the last is page 0x9000.
        let last = match mode {
            PagingMode::None => 0,
            PagingMode::Pae => 3,
            PagingMode::TwoLevel | PagingMode::FourLevel | PagingMode::FiveLevel => mode.top() as u64,
        };
        let size = match mode {
            PagingMode::TwoLevel => GpteSize::B4,
            PagingMode::None | PagingMode::Pae | PagingMode::FourLevel | PagingMode::FiveLevel => GpteSize::B8,
        };
        for table in 1..last {
            let flags = if mode == PagingMode::Pae && table == 1 { 1 } else { ALL };
            put(table << 12, size, (table + 1) << 12 | flags);
        }
        put((last << 12) + 3 * mode.entry(), size, 0x9000 | ALL);
        put(0x9008, GpteSize::B8, 77);
        let registers = Registers {
            cr0: if mode == PagingMode::None { 0 } else { CR0_PG | CR0_WP },
            cr4,
            efer,
            ..NO_PAGING
        };
        let mut cpu = vcpu(&mmu, registers, None);
        assert_eq!(cpu.load_cr3(&mmu, 0x1000), Ok(Ended::Done(0)));
        let gva = if mode == PagingMode::None { 0x9008 } else { 0x3008 };
        assert_eq!(cpu.access(&mmu, &read(gva)), Ok(Ended::Done(77)), "{mode:?}");
        assert_eq!(cpu.access(&mmu, &write(gva, 78)), Ok(Ended::Done(78)), "{mode:?}");
        let fault = Ended::PageFault {
            cr2: 0x4000,
            code: ErrorCode::W,
        };
        let found = cpu.access(&mmu, &write(0x4000, 1));
        match mode {
            PagingMode::None => assert_eq!(found, Ok(Ended::Done(1))),
            _ => assert_eq!(found, Ok(fault)),
        }
        assert_eq!(memory.load(Frame::new(BackingId(0), 9).unwrap(), 8, GpteSize::B8), 78);
    }
}

// REQ: LK-2
#[test]
fn many_vcpus_run_while_slots_come_and_go() {
    const ROUNDS: u64 = 3000;
    let (mmu, memory) = ept_machine();
    let cpus: Vec<_> = (0..3u64)
        .map(|id| vcpu(&mmu, NO_PAGING, (id == 2).then(|| Forgetful::new(7, 5))))
        .collect();
    thread::scope(|scope| {
        for (id, mut cpu) in cpus.into_iter().enumerate() {
            let mmu = &mmu;
            scope.spawn(move || {
                let mut last = [0; 8];
                for round in 0..ROUNDS {
                    // A word of its own in each page, so that what it wrote last is what it has to find.
                    let page = (round * 7 + id as u64 * 3) % 8;
                    let gva = (page << 12) + id as u64 * 8;
                    assert_eq!(cpu.access(mmu, &read(gva)), Ok(Ended::Done(last[page as usize])));
                    assert_eq!(cpu.access(mmu, &write(gva, round)), Ok(Ended::Done(round)));
                    last[page as usize] = round;
                    // A slot that comes and goes: memory or no memory, and nothing else.
                    match cpu.access(mmu, &write(0x4_0000 + page * 0x1000, 1)) {
                        Ok(Ended::Done(_) | Ended::Emulate(_) | Ended::Stuck) => {}
                        other => panic!("{other:?}"),
                    }
                }
            });
        }
        scope.spawn(|| {
            for round in 0..200u64 {
                set_slot(&mmu, 1, 0x40, 32, 8, SlotFlags::empty());
                set_slot(&mmu, 1, 0x40, 32, 0, SlotFlags::empty());
                if round % 8 == 0 {
                    mmu.zap_all();
                }
                mmu.background();
            }
        });
    });
    assert_eq!(memory.attached(Frame::new(BackingId(0), 32).unwrap()), None);
}

const SHADOW_PAGES: u32 = 64;

fn shadow_machine(tables: usize) -> (Mmu<SimShadow>, Arc<SimMemory>) {
    let shape = BackingShape {
        small_head: SHADOW_PAGES,
        large: 0,
        small_tail: 0,
    };
    let memory = SimMemory::new(SimMemory::layout_for(46), &[shape], tables);
    let limits = Limits {
        tables,
        rmap_entries: 4096,
        ..Limits::default()
    };
    let mmu = Mmu::with_ram(
        SimShadow::new(memory.clone()),
        SimRam(memory.clone()),
        SimWords(memory.clone()),
        crate::Mode::Shadow(*memory.layout()),
        vec![shape],
        &limits,
    );
    let mmu = mmu.unwrap().with_guest_cpu(GuestCpu {
        maxphyaddr: 46,
        features: Features::all(),
    });
    let backing = Backing {
        id: BackingId(0),
        first_page: 0,
    };
    mmu.set_slot(SlotId(0), Gfn::new(0), SHADOW_PAGES / 2, backing, SlotFlags::empty())
        .unwrap();
    (mmu, memory)
}

fn shadow_vcpu(
    mmu: &Mmu<SimShadow>,
    memory: &Arc<SimMemory>,
    registers: guest::Registers,
    staleness: Staleness,
    forgetful: Option<Forgetful>,
) -> ShadowVcpu {
    let vcpu = mmu.add_vcpu().unwrap();
    let mut vcpu = ShadowVcpu::new(vcpu, memory.clone(), Model::default(), forgetful, staleness);
    let ended = vcpu.write_registers(|vcpu| mmu.restore_registers(vcpu, registers));
    assert_eq!(ended, Ended::Done(0));
    vcpu
}

/// Tables 1, 2, ... one below another; page 0x3000 of the last is page 0x9000. The registers for them.
fn chain_of_tables(memory: &SimMemory, mode: PagingMode) -> guest::Registers {
    let put = |gpa: u64, size, entry: u64| {
        let frame = Frame::new(BackingId(0), (gpa >> 12) as u32).unwrap();
        memory.store(frame, (gpa & 4095) as u16, size, entry);
    };
    let last = match mode {
        PagingMode::None => 0,
        PagingMode::Pae => 3,
        PagingMode::TwoLevel | PagingMode::FourLevel | PagingMode::FiveLevel => mode.top() as u64,
    };
    let size = match mode {
        PagingMode::TwoLevel => GpteSize::B4,
        PagingMode::None | PagingMode::Pae | PagingMode::FourLevel | PagingMode::FiveLevel => GpteSize::B8,
    };
    for table in 1..last {
        let flags = if mode == PagingMode::Pae && table == 1 { 1 } else { ALL };
        put(table << 12, size, (table + 1) << 12 | flags);
    }
    if last > 0 {
        put((last << 12) + 3 * mode.entry(), size, 0x9000 | ALL);
    }
    let long = guest::EFER_LME | guest::EFER_LMA | guest::EFER_NXE;
    let (cr4, efer) = match mode {
        PagingMode::None | PagingMode::TwoLevel => (0, 0),
        PagingMode::Pae => (CR4_PAE, EFER_NXE),
        PagingMode::FourLevel => (CR4_PAE, long),
        PagingMode::FiveLevel => (CR4_PAE | CR4_LA57, long),
    };
    guest::Registers {
        cr0: guest::CR0_PE | if mode == PagingMode::None { 0 } else { CR0_PG | CR0_WP },
        cr3: 0x1000,
        cr4,
        efer,
    }
}

// REQ: SP-2
#[test]
fn guests_of_every_mode_run_above_shadow_pages() {
    for mode in PagingMode::ALL {
        let (mmu, memory) = shadow_machine(64);
        let registers = chain_of_tables(&memory, mode);
        memory.store(Frame::new(BackingId(0), 9).unwrap(), 8, GpteSize::B8, 77);
        let mut cpu = shadow_vcpu(&mmu, &memory, registers, Staleness::Refused, None);
        let gva = if mode == PagingMode::None { 0x9008 } else { 0x3008 };
        assert_eq!(cpu.access(&mmu, &read(gva)), Ok(Ended::Done(77)), "{mode:?}");
        assert_eq!(cpu.access(&mmu, &write(gva, 78)), Ok(Ended::Done(78)), "{mode:?}");
        let found = cpu.access(&mmu, &write(0x4000, 1));
        match mode {
            PagingMode::None => assert_eq!(found, Ok(Ended::Done(1))),
            _ => assert_eq!(
                found,
                Ok(Ended::PageFault {
                    cr2: 0x4000,
                    code: ErrorCode::W,
                })
            ),
        }
        assert_eq!(memory.load(Frame::new(BackingId(0), 9).unwrap(), 8, GpteSize::B8), 78);
        // Where there is no slot there is a device.
        if mode == PagingMode::None {
            match cpu.access(&mmu, &read(0x5_0000)) {
                Ok(Ended::Emulate(mmio)) => assert_eq!(mmio.gfn, Gfn::new(0x50)),
                other => panic!("{other:?}"),
            }
        }
    }
}

/// One of those that a test waits for, also if it panics.
struct Running<'a>(&'a AtomicU32);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Goes on where the host was faster: it zaps all the time.
fn persist(mut access: impl FnMut() -> Result<Ended, FaultError>) -> Result<Ended, FaultError> {
    let mut ended = access();
    while ended == Ok(Ended::Stuck) {
        ended = access();
    }
    ended
}

/// Each vCPU remaps pages of its own, with the INVLPG that is due, while the host takes the tables away from under all of
/// them; what it wrote last is what it has to find.
// REQ: LK-2, SP-7
#[test]
fn many_vcpus_change_their_tables_while_the_host_zaps() {
    const ROUNDS: u64 = 2000;
    for mode in [
        PagingMode::TwoLevel,
        PagingMode::Pae,
        PagingMode::FourLevel,
        PagingMode::FiveLevel,
    ] {
        let (mmu, memory) = shadow_machine(64);
        let registers = chain_of_tables(&memory, mode);
        let last = match mode {
            PagingMode::Pae => 3,
            _ => mode.top() as u64,
        };
        // The last table maps itself at page 0x1f000, for the guest to change it.
        let (size, bytes) = match mode {
            PagingMode::TwoLevel => (GpteSize::B4, 4),
            _ => (GpteSize::B8, 8),
        };
        let table = Frame::new(BackingId(0), last as u32).unwrap();
        memory.store(table, (0x1f * mode.entry()) as u16, size, last << 12 | ALL);
        let cpus: Vec<_> = (0..3u64)
            .map(|id| {
                let forgetful = (id == 2).then(|| Forgetful::new(7, 5));
                shadow_vcpu(&mmu, &memory, registers, Staleness::Used, forgetful)
            })
            .collect();
        let running = AtomicU32::new(cpus.len() as u32);
        thread::scope(|scope| {
            for (id, mut cpu) in cpus.into_iter().enumerate() {
                let (mmu, running) = (&mmu, &running);
                scope.spawn(move || {
                    let _running = Running(running);
                    // Frames 0x10.. and pages 0x4.. of its own.
                    let id = id as u64;
                    let (frame, page) = (0x10 + id * 4, 4 + id * 2);
                    let mut held = [0; 4];
                    for round in 0..ROUNDS {
                        let at = (round / 3 % 4) as usize;
                        let gva = (page + round % 2) << 12;
                        let entry = (frame + at as u64) << 12 | ALL;
                        let change = Request {
                            operation: Operation::Store { bytes, value: entry },
                            ..write(0x1_f000 + (page + round % 2) * mode.entry(), 0)
                        };
                        assert_eq!(persist(|| cpu.access(mmu, &change)), Ok(Ended::Done(entry)), "{mode:?}");
                        cpu.invlpg(mmu, gva);
                        assert_eq!(
                            cpu.access(mmu, &read(gva)),
                            Ok(Ended::Done(held[at])),
                            "{mode:?} {round}"
                        );
                        let found = persist(|| cpu.access(mmu, &write(gva, round)));
                        assert_eq!(found, Ok(Ended::Done(round)), "{mode:?}");
                        held[at] = round;
                    }
                });
            }
            scope.spawn(|| {
                while running.load(Ordering::Relaxed) > 0 {
                    mmu.zap_all();
                    mmu.background();
                    thread::sleep(Duration::from_micros(50));
                }
            });
        });
        assert_eq!(mmu.audit().differences, 0, "{mode:?}");
    }
}
