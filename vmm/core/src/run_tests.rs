// SPDX-License-Identifier: MIT OR Apache-2.0
//! The run loop against a scripted processor: what each exit leads to, and what it costs.

use crate::control::Control;
use crate::cpuid::{Cpuid, Leaf};
use crate::inject::{Event, EventKind, Exception};
use crate::mmu_client::{Mmu, MmuTransport};
use crate::platform::PlatformEvent;
use crate::run::{Stop, Vm};
use crate::testing::{Io, Log, Ram, Script};
use crate::vcpu::{Entered, Field, Gpr, cr0, cr4, efer, rflags};
use crate::{exit::EntryFailure, exit::RawExit};
use std::string::String;
use umbra_mmu_abi::{FaultOutcome, Generation, Gpa, Gva, Mmio, Reply, Request};

/// RAM below 2 MiB; MMIO above; nothing fails unless told.
struct FakeMmu {
    fail: bool,
}

impl MmuTransport for FakeMmu {
    type Error = String;
    fn call(&mut self, request: Request) -> Result<Reply, String> {
        let Request::Fault { gpa, .. } = request else {
            return Ok(Reply::Failed);
        };
        if self.fail {
            return Ok(Reply::Failed);
        }
        let mmio = Mmio {
            gfn: gpa.gfn(),
            generation: Generation(1),
            readonly_slot: false,
        };
        Ok(Reply::Fault(if gpa.raw() < 0x20_0000 {
            FaultOutcome::Resume
        } else {
            FaultOutcome::Emulate(mmio)
        }))
    }
}

type TestVm = Vm<Script, Ram, FakeMmu, Log>;

/// 64-bit mode, identity-mapped first GiB and the page 0xfee00000 at 1 GiB.
fn vm(script: impl FnOnce(&mut Script)) -> TestVm {
    let mut ram = Ram::new(0x20_0000);
    ram.put64(0x1_0000, 0x1_1003);
    ram.put64(0x1_1000, 0x1_2003);
    ram.put64(0x1_2000, 0x83);
    ram.put64(0x1_2008, 0x1_3003);
    ram.put64(0x1_3000, 0xfee0_0003);
    let mut vcpu = Script::new();
    vcpu.fields.insert(Field::GuestCr3, 0x1_0000);
    script(&mut vcpu);
    let control = Control {
        cr0: cr0::PE | cr0::PG | cr0::WP | cr0::ET,
        cr4: cr4::PAE,
        efer: efer::LME | efer::LMA | efer::NXE,
    };
    let host = |_, _| Leaf {
        eax: 0x27,
        ebx: !0,
        ecx: !0,
        edx: !0,
    };
    let cpuid = Cpuid::new(host, 50_000_000);
    let mut vm = Vm::new(
        vcpu,
        ram,
        Mmu::new(FakeMmu { fail: false }),
        Log::default(),
        cpuid,
        control,
        50_000_000,
    );
    vm.vcpu.writes.clear();
    vm
}

fn ept(gpa: u64, linear: u64, qualification: u64) -> impl FnMut(&mut Script) -> Entered {
    move |s| {
        Entered::Exit(RawExit {
            reason: 48,
            qualification,
            gpa: Gpa::new(gpa),
            linear: Gva::new(linear),
            rip: s.rip,
            rflags: s.fields[&Field::GuestRflags],
            cr3: s.fields[&Field::GuestCr3],
            ..RawExit::NONE
        })
    }
}

fn power_off(vm: &mut TestVm) {
    vm.vcpu.stay(|s| {
        s.gprs[0] = 0;
        Entered::Exit(RawExit {
            reason: 30,
            qualification: 0xf4 << 16,
            instruction_length: 1,
            rip: s.rip,
            ..RawExit::NONE
        })
    });
}

/// Runs to the test-exit port.
fn finish(mut vm: TestVm) -> TestVm {
    power_off(&mut vm);
    let stop = vm.run();
    assert_eq!(stop, Stop::TestExit(0), "{stop}");
    vm
}

#[test]
fn port_exits_cost_no_field_access() {
    let mut vm = vm(|s| {
        s.gprs[0] = 0x1111_2222_3333_4444;
        s.exits(30, 0x3f8 << 16, 1); // OUT DX, AL
        s.exits(30, 0x3fd << 16 | 8, 2); // IN AL
        s.exits(30, 0xcfc << 16 | 0xb, 2); // IN EAX
    });
    vm.devices.answers.extend([0x60, 0x8000_0001]);
    power_off(&mut vm);
    // Let the timer be set once.
    vm.devices.deadline = Some(1_000_000_000);
    assert_eq!(vm.run(), Stop::TestExit(0));
    assert_eq!(
        vm.devices.seen[..3],
        [Io::Out(0x3f8, 1, 0x44), Io::In(0x3fd, 1), Io::In(0xcfc, 4)]
    );
    assert_eq!(vm.vcpu.rip, 0x1000 + 1 + 2 + 2 + 1);
    assert_eq!(vm.vcpu.reads, []);
    assert_eq!(vm.vcpu.writes, [Field::PreemptionTimerValue]);
}

#[test]
fn in_merges_like_hardware() {
    for (size_bits, want) in [
        (0u64, 0x1111_2222_3333_44ffu64),
        (1, 0x1111_2222_3333_ffff),
        (3, 0xffff_ffff),
    ] {
        let vm = finish(vm(|s| {
            s.gprs[0] = 0x1111_2222_3333_4444;
            s.exits(30, 0x80 << 16 | 8 | size_bits, 2);
            s.stay(move |s| {
                assert_eq!(s.gprs[0], want);
                Entered::Notified(1)
            });
        }));
        assert_eq!(vm.devices.backend_calls, 1);
    }
}

#[test]
fn a_fault_with_memory_behind_it_is_resumed() {
    let vm = finish(vm(|s| {
        s.stay(ept(0x5000, 0x5000, 0x181));
        s.stay(|s| {
            assert_eq!(s.rip, 0x1000);
            Entered::Notified(0)
        });
    }));
    assert_eq!((vm.mmu.calls, vm.vcpu.reads.len()), (1, 0));
}

#[test]
fn a_repeated_device_access_needs_one_call_and_no_write() {
    let mut v = vm(|s| {
        s.gprs[Gpr::Rbx as usize] = 0x20_0000;
        for _ in 0..5 {
            s.stay(|s| {
                s.rip = 0x1000;
                ept(0xfee0_0000, 0x20_0000, 0x182)(s)
            });
        }
    });
    v.mem.put(0x1000, &[0x89, 0x03]);
    let v = finish(v);
    assert_eq!((v.mmu.calls, v.mmu.cache_hits), (1, 4));
    assert_eq!(v.devices.seen[..5], [Io::Write(0xfee0_0000, 4, 0); 5]);
    assert_eq!(
        v.vcpu.reads,
        [Field::GuestCsAccessRights; 5],
        "the mode, and nothing else"
    );
    assert!(!v.vcpu.writes.contains(&Field::GuestRflags));
}

#[test]
fn cpuid_answers_by_policy() {
    finish(vm(|s| {
        s.gprs[Gpr::Rax as usize] = 0x15;
        s.exits(10, 0, 2);
        s.stay(|s| {
            assert_eq!((s.gprs[0], s.gprs[Gpr::Rbx as usize]), (1, 1));
            assert_eq!(s.gprs[Gpr::Rcx as usize], 50_000_000);
            assert_eq!(s.rip, 0x1002);
            Entered::Notified(0)
        });
    }));
}

#[test]
fn unknown_msrs_are_gp_and_counted() {
    let vm = finish(vm(|s| {
        s.gprs[Gpr::Rcx as usize] = 0x1234;
        s.exits(31, 0, 2);
        s.exits(32, 0, 2);
    }));
    assert_eq!(vm.vcpu.delivered, [Event::exception(Exception::GP0); 2]);
    assert_eq!((vm.msrs.absent_accesses, vm.msrs.last_absent), (2, Some(0x1234)));
    assert_eq!(vm.vcpu.rip, 0x1001, "the faulting instruction was not skipped");
}

#[test]
fn a_guest_that_sets_its_tsc_does_not_move_its_devices() {
    for value in [0, u64::MAX - 5, 1 << 40] {
        let mut v = vm(|s| {
            s.gprs[Gpr::Rcx as usize] = 0x10;
            s.gprs[Gpr::Rax as usize] = value & 0xffff_ffff;
            s.gprs[Gpr::Rdx as usize] = value >> 32;
            s.tsc = 5_000_000;
            s.exits(32, 0, 2);
            s.exits(31, 0, 2);
            s.stay(move |s| {
                let read = s.gprs[Gpr::Rdx as usize] << 32 | s.gprs[Gpr::Rax as usize];
                assert_eq!(read, value.wrapping_add(1000));
                assert_eq!(
                    s.tsc.wrapping_add(s.fields[&Field::TscOffset]),
                    value.wrapping_add(2000)
                );
                Entered::Notified(0)
            });
        });
        v.devices.deadline = Some(1_000_000_000);
        let v = finish(v);
        assert_eq!(v.devices.advanced_to, 3000, "{value:#x}");
        assert_eq!(v.devices.deadline, Some(1_000_000_000));
    }
}

#[test]
fn efer_is_kept_and_reaches_the_processor() {
    let vm = finish(vm(|s| {
        s.gprs[Gpr::Rcx as usize] = 0xc000_0080;
        s.gprs[Gpr::Rax as usize] = efer::LME | efer::SCE;
        s.exits(32, 0, 2);
        s.exits(31, 0, 2);
        s.stay(|s| {
            assert_eq!(s.gprs[0], efer::LME | efer::LMA | efer::SCE);
            Entered::Notified(0)
        });
    }));
    assert_eq!(vm.vcpu.fields[&Field::GuestEfer], efer::LME | efer::LMA | efer::SCE);
}

#[test]
fn interrupts_wait_for_the_guest_to_allow_them() {
    let mut v = vm(|s| {
        // Interrupts off: a window is asked for, nothing is delivered.
        s.exits(30, 0x80 << 16, 2);
        s.stay(|s| {
            assert!(s.window && s.delivered.is_empty());
            s.fields.insert(Field::GuestRflags, rflags::IF | 2);
            Entered::Exit(RawExit {
                reason: 7,
                rflags: rflags::IF | 2,
                rip: s.rip,
                ..RawExit::NONE
            })
        });
        s.stay(|s| {
            assert_eq!(s.delivered, [Event::interrupt(0x30)]);
            assert!(!s.window);
            Entered::Notified(0)
        });
    });
    v.devices.pending = Some(0x30);
    assert_eq!(finish(v).counters.interrupts, 1);
}

#[test]
fn the_shadow_of_sti_ends_with_the_instruction_that_is_skipped() {
    let mut v = vm(|s| {
        let sti = |reason, len| RawExit {
            reason,
            instruction_length: len,
            rflags: rflags::IF | 2,
            interruptibility: 1,
            ..RawExit::NONE
        };
        // An EPT fault in the shadow: still blocked.
        s.stay(move |s| {
            let Entered::Exit(raw) = ept(0x5000, 0x5000, 0x181)(s) else {
                unreachable!()
            };
            Entered::Exit(RawExit {
                rflags: rflags::IF | 2,
                interruptibility: 1,
                ..raw
            })
        });
        s.stay(move |s| {
            assert!(s.window && s.delivered.is_empty(), "blocked by STI");
            Entered::Exit(RawExit {
                rip: s.rip,
                qualification: 0x80 << 16,
                ..sti(30, 2)
            })
        });
        s.stay(|s| {
            assert_eq!(s.delivered, [Event::interrupt(0x30)]);
            assert_eq!(s.fields[&Field::GuestInterruptibility], 0);
            Entered::Notified(0)
        });
    });
    v.devices.pending = Some(0x30);
    finish(v);
}

#[test]
fn an_event_whose_delivery_faults_is_delivered_again() {
    finish(vm(|s| {
        s.fields.insert(Field::IdtVectoringErrorCode, 6);
        s.stay(|s| {
            let Entered::Exit(raw) = ept(0x5000, 0x5000, 0x182)(s) else {
                unreachable!()
            };
            Entered::Exit(RawExit {
                idt_vectoring: 0x8000_0b0e,
                ..raw
            })
        });
        s.stay(|s| {
            assert_eq!(
                s.delivered,
                [Event {
                    error: Some(6),
                    ..Event::exception(Exception::page_fault(0, 6))
                }]
            );
            Entered::Notified(0)
        });
    }));
}

#[test]
fn an_event_that_is_delivered_to_a_device_stops_the_guest() {
    let mut v = vm(|s| {
        s.stay(|s| {
            let Entered::Exit(raw) = ept(0xfee0_0000, 0x20_0000, 0x182)(s) else {
                unreachable!()
            };
            Entered::Exit(RawExit {
                idt_vectoring: 0x8000_0030,
                ..raw
            })
        });
    });
    assert!(matches!(v.run(), Stop::DeliveryToDevice(gpa, _) if gpa == Gpa::new(0xfee0_0000)));
}

#[test]
fn hlt_sleeps_in_the_guest_and_wakes_by_the_timer() {
    let mut v = vm(|s| {
        s.fields.insert(Field::GuestRflags, rflags::IF | 2);
        s.exits(12, 0, 1);
        s.stay(|s| {
            assert_eq!(s.fields[&Field::GuestActivityState], 1);
            assert!(s.fields[&Field::PreemptionTimerValue] > 0);
            s.tsc = 1_000_000;
            Entered::Exit(RawExit {
                reason: 52,
                rflags: rflags::IF | 2,
                rip: s.rip,
                ..RawExit::NONE
            })
        });
        s.stay(|s| {
            assert_eq!((s.rip, s.delivered.as_slice()), (0x1001, &[Event::interrupt(0x30)][..]));
            Entered::Notified(0)
        });
    });
    v.devices.deadline = Some(900_000);
    finish(v);
}

#[test]
fn hlt_with_an_interrupt_waiting_does_not_sleep() {
    let mut v = vm(|s| {
        s.fields.insert(Field::GuestRflags, rflags::IF | 2);
        s.exits(12, 0, 1);
        s.stay(|s| {
            assert!(!s.fields.contains_key(&Field::GuestActivityState));
            assert_eq!(s.delivered.len(), 1);
            Entered::Notified(0)
        });
    });
    v.devices.pending = Some(0x20);
    finish(v);
}

#[test]
fn hlt_without_interrupts_is_the_end() {
    let mut v = vm(|s| s.exits(12, 0, 1));
    let stop = v.run();
    assert!(matches!(stop, Stop::Halted(_)), "{stop}");
}

#[test]
fn long_absences_do_not_pass_for_the_guest() {
    let mut v = vm(|s| s.exits(30, 0x80 << 16, 2));
    v.vcpu.tsc = 0;
    // The vmm is held up for a minute between exit and entry: the script cannot, so the clock starts late.
    v.vcpu.tsc += 3_000_000_000;
    let v = finish(v);
    assert_eq!(v.clock.hidden_gaps, 1);
    assert!(v.vcpu.writes.contains(&Field::TscOffset));
}

#[test]
fn a_triple_fault_reports_every_register() {
    let mut v = vm(|s| {
        s.gprs = core::array::from_fn(|n| 0x1_0000_0000 + n as u64);
        s.fields.insert(Field::GuestGdtrBase, 0xabcd_e000);
        s.exits(2, 0, 0);
    });
    v.mem.put(0x1000, &[0x0f, 0x0b, 0x90]);
    let stop = v.run();
    let Stop::TripleFault(report) = &stop else {
        panic!("{stop}")
    };
    let text = std::format!("{report}");
    for want in [
        "r15 000000010000000f",
        "rsp 0000000100000004",
        "gdtr 0xabcde000",
        "code 0f 0b 90",
        "TripleFault",
    ] {
        assert!(text.contains(want), "{want} is missing from\n{text}");
    }
}

// REQ: PF-5
#[test]
fn a_fault_inside_a_double_fault_is_a_triple_fault() {
    // #PF while #DF is being delivered, through the emulator's walk of tables that are gone.
    let mut v = vm(|_| {});
    v.event = Some(Event::exception(Exception::with_error(8, 0)));
    assert!(matches!(
        *v.raise(Exception::GP0).expect_err("shutdown"),
        Stop::TripleFault(_)
    ));
}

#[test]
fn unknown_exits_and_failed_entries_say_which() {
    let mut v = vm(|s| s.exits(9, 0x28, 2));
    let stop = v.run();
    assert!(std::format!("{stop}").contains("TaskSwitch"), "{stop}");
    let mut v = vm(|s| {
        s.fields.insert(Field::InstructionError, 7);
        s.exits(0x8000_0021, 0, 0);
    });
    let stop = v.run();
    assert!(
        matches!(
            stop,
            Stop::EntryFailed {
                why: EntryFailure::GuestState,
                error: 7,
                ..
            }
        ),
        "{stop}"
    );
    let mut v = vm(|s| s.exits(99, 0, 0));
    assert!(matches!(v.run(), Stop::UnknownExit(..)));
}

#[test]
fn the_mmus_failure_is_not_the_guests() {
    let mut v = vm(|s| s.stay(ept(0x5000, 0x5000, 0x181)));
    v.mmu.transport_mut().fail = true;
    assert!(matches!(v.run(), Stop::MmuFailed(_)));
}

#[test]
fn a_jump_to_a_device_is_an_error_that_names_the_address() {
    let mut v = vm(|s| {
        s.rip = 0x20_0000;
        s.stay(ept(0xfee0_0000, 0x20_0000, 0x184));
    });
    let stop = v.run();
    assert!(matches!(stop, Stop::EmulationFailed(..)), "{stop}");
    assert!(std::format!("{stop}").contains("0xfee00000"), "{stop}");
}

#[test]
fn touching_every_unmapped_page_reads_ones_and_goes_on() {
    let mut v = vm(|s| {
        for n in 0..1000u64 {
            s.gprs[Gpr::Rbx as usize] = 0x20_0000;
            s.stay(move |s| {
                s.rip = 0x1000;
                ept(0x1_0000_0000 + (n << 12), 0x20_0000, 0x181)(s)
            });
        }
    });
    v.mem.put(0x1000, &[0x48, 0x8b, 0x03]);
    let v = finish(v);
    assert_eq!(v.emulator.emulated, 1000);
}

#[test]
fn a_guest_that_faults_for_ever_is_stopped() {
    let mut v = vm(|s| {
        for _ in 0..2000 {
            s.stay(ept(0x5000, 0x5000, 0x181));
        }
    });
    let stop = v.run();
    assert!(matches!(stop, Stop::Livelock { rip: 0x1000, .. }), "{stop}");
    assert!(v.vcpu.entries < 500);
}

#[test]
fn page_tables_on_a_device_end_in_the_guests_own_fault() {
    // CR3 points outside RAM: the walk's read exits, every entry reads as ones, so the guest gets a reserved-bit fault.
    let vm = finish(vm(|s| {
        s.fields.insert(Field::GuestCr3, 0xfee0_0000);
        s.stay(ept(0xfee0_0000, 0x1000, 0x081));
    }));
    assert_eq!(
        vm.vcpu.delivered,
        [Event::exception(Exception::page_fault(0x1000, 0x19))]
    );
    assert_eq!(vm.vcpu.cr2, 0x1000);
}

#[test]
fn paging_can_be_switched_off_and_on() {
    let mut v = vm(|s| {
        // From compatibility mode.
        s.set_code_rights(0xc09b);
        s.gprs[Gpr::Rax as usize] = cr0::PE | cr0::ET;
        s.exits(28, 0, 3);
        s.stay(|s| {
            assert_eq!(s.fields[&Field::GuestEfer] & efer::LMA, 0);
            assert_eq!(s.fields[&Field::GuestCr0] & (cr0::PG | cr0::NE), cr0::NE);
            assert_eq!(s.fields[&Field::Cr0ReadShadow], cr0::PE | cr0::ET);
            assert!(s.writes.contains(&Field::GuestCr3), "translations are flushed");
            s.gprs[Gpr::Rax as usize] = cr0::PE | cr0::PG;
            Entered::Exit(RawExit {
                reason: 28,
                instruction_length: 3,
                rip: s.rip,
                ..RawExit::NONE
            })
        });
    });
    v.mem.put(0x1000, &[0x0f, 0x22, 0xc0]);
    let v = finish(v);
    assert!(v.control.long_mode());
    assert_eq!(v.vcpu.rip, 0x1000 + 3 + 3 + 1);
}

#[test]
fn bits_that_the_guest_owns_survive_writes_to_other_registers() {
    const OWN_CR4: u64 = cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::PGE;
    finish(vm(|s| {
        // The guest sets bits of its own, which does not exit, and writes something that does.
        s.stay(|s| {
            *s.fields.get_mut(&Field::GuestCr4).expect("set") |= OWN_CR4;
            *s.fields.get_mut(&Field::GuestCr0).expect("set") |= cr0::TS | cr0::MP;
            s.gprs[Gpr::Rcx as usize] = 0xc000_0080;
            s.gprs[Gpr::Rax as usize] = efer::LME | efer::SCE;
            s.gprs[Gpr::Rdx as usize] = 0;
            s.exits(32, 0, 2);
            s.stays.pop_back().expect("queued")(s)
        });
        s.stay(|s| {
            assert_eq!(s.fields[&Field::GuestCr4] & OWN_CR4, OWN_CR4, "after a write to EFER");
            assert_ne!(s.fields[&Field::GuestCr0] & cr0::TS, 0, "after a write to EFER");
            s.gprs[Gpr::Rax as usize] = cr0::PE | cr0::PG | cr0::TS | cr0::MP; // clears WP
            s.exits(28, 0, 3);
            s.stays.pop_back().expect("queued")(s)
        });
        s.stay(|s| {
            assert_eq!(s.fields[&Field::GuestCr4] & OWN_CR4, OWN_CR4, "after a write to CR0");
            *s.fields.get_mut(&Field::GuestCr0).expect("set") &= !cr0::TS;
            s.gprs[Gpr::Rax as usize] = cr4::PAE | cr4::PSE | OWN_CR4;
            s.exits(28, 4, 3);
            s.stays.pop_back().expect("queued")(s)
        });
        s.stay(|s| {
            assert_eq!(s.fields[&Field::GuestCr0] & cr0::TS, 0, "after a write to CR4");
            assert_eq!(s.fields[&Field::GuestCr4] & (OWN_CR4 | cr4::PSE), OWN_CR4 | cr4::PSE);
            Entered::Notified(0)
        });
    }));
}

#[test]
fn pae_paging_loads_its_pdptes_or_faults() {
    for (pdpte, good) in [(0x1_1001u64, true), (0x1_1003, false)] {
        let mut v = vm(|s| {
            s.set_code_rights(0xc09b);
            s.gprs[Gpr::Rax as usize] = cr0::PE | cr0::PG;
            s.exits(28, 0, 3);
        });
        v.control = Control {
            cr0: cr0::PE,
            cr4: cr4::PAE,
            efer: 0,
        };
        v.mem.put64(0x1_0000, pdpte);
        for n in 1..4 {
            v.mem.put64(0x1_0000 + 8 * n, 0);
        }
        let v = finish(v);
        assert_eq!(v.control.pae_paging(), good);
        if good {
            assert_eq!(v.vcpu.fields[&Field::GuestPdpte0], pdpte);
        } else {
            assert_eq!(v.vcpu.delivered, [Event::exception(Exception::GP0)]);
        }
    }
}

#[test]
fn vmx_instructions_do_not_exist() {
    for reason in [18, 27, 36, 39, 51, 55] {
        let vm = finish(vm(|s| s.exits(reason, 0, 3)));
        assert_eq!(vm.vcpu.delivered, [Event::exception(Exception::UD)], "reason {reason}");
    }
}

#[test]
fn debug_registers_keep_values_and_stay_virtual() {
    finish(vm(|s| {
        s.gprs[Gpr::Rdx as usize] = 0x1234;
        s.exits(29, 0x203, 3); // MOV DR3, RDX
        s.exits(29, 0x313, 3); // MOV RBX, DR3
        s.stay(|s| {
            assert_eq!(s.gprs[Gpr::Rbx as usize], 0x1234);
            Entered::Notified(0)
        });
    }));
}

#[test]
fn debug_registers_are_for_the_kernel_of_the_guest() {
    // MOV DR exits before the processor looks at the privilege level (SDM vol. 3, section 26.1.1).
    for qualification in [0x203, 0x313] {
        let vm = finish(vm(|s| {
            s.gprs[Gpr::Rdx as usize] = 0x1234;
            s.set_code_rights(0xa0fb);
            s.fields.insert(Field::GuestSsAccessRights, 0xc0f3);
            s.exits(29, qualification, 3);
        }));
        assert_eq!(
            vm.vcpu.delivered,
            [Event::exception(Exception::GP0)],
            "{qualification:#x}"
        );
        assert_eq!((vm.debug[3], vm.vcpu.gprs[Gpr::Rbx as usize]), (0, 0));
    }
    // ... and before it looks at CR4.DE, which takes DR4 and DR5 away.
    let vm = finish(vm(|s| {
        *s.fields.get_mut(&Field::GuestCr4).expect("set") |= cr4::DE;
        s.exits(29, 0x314, 3);
    }));
    assert_eq!(vm.vcpu.delivered, [Event::exception(Exception::UD)]);
}

/// An exit because of an exception.
fn exception(interruption: u32, qualification: u64) -> impl FnMut(&mut Script) -> Entered {
    move |s| {
        Entered::Exit(RawExit {
            reason: 0,
            interruption,
            qualification,
            instruction_length: 1,
            rip: s.rip,
            rflags: s.fields[&Field::GuestRflags],
            ..RawExit::NONE
        })
    }
}

#[test]
fn debug_exceptions_tell_the_guest_why() {
    let db = Event::exception(Exception::DB);
    let icebp = Event {
        kind: EventKind::PrivilegedSoftwareException,
        instruction_length: 1,
        ..db
    };
    // A single step in the shadow of STI, then INT1.
    let vm = finish(vm(|s| {
        s.fields.insert(Field::GuestRflags, rflags::TF | rflags::IF | 2);
        s.stay(|s| {
            let Entered::Exit(raw) = exception(0x8000_0301, 1 << 14)(s) else {
                unreachable!()
            };
            Entered::Exit(RawExit {
                interruptibility: 1,
                ..raw
            })
        });
        s.stay(move |s| {
            assert_eq!(s.delivered, [db]);
            // With TF set, an entry in the shadow must have a single step pending (SDM vol. 3, section 27.3.1.5).
            assert_eq!(s.fields[&Field::GuestInterruptibility], 0);
            s.exits(29, 0x316, 3); // MOV RBX, DR6
            s.stays.pop_back().expect("queued")(s)
        });
        s.stay(|s| {
            assert_eq!(s.gprs[Gpr::Rbx as usize], 0xffff_4ff0);
            exception(0x8000_0501, 0)(s)
        });
        s.stay(move |s| {
            assert_eq!(s.delivered, [db, icebp]);
            Entered::Notified(0)
        });
    }));
    assert_eq!(vm.counters.exceptions, 2);
}

#[test]
fn the_vmm_stands_between_exceptions_that_could_nest_for_ever() {
    // #AC while #AC is delivered: the processor would go round without an exit and without taking interrupts.
    let alignment = Exception::with_error(17, 0);
    let vm = finish(vm(|s| {
        s.stay(exception(0x8000_0b11, 0));
        for _ in 0..3 {
            s.stay(|s| {
                let Entered::Exit(raw) = exception(0x8000_0b11, 0)(s) else {
                    unreachable!()
                };
                Entered::Exit(RawExit {
                    idt_vectoring: 0x8000_0b11,
                    ..raw
                })
            });
        }
    }));
    assert_eq!(vm.vcpu.delivered, [Event::exception(alignment); 4]);
    assert_eq!(crate::entry::EXCEPTIONS, 1 << 1 | 1 << 17);
}

#[test]
fn device_events_end_the_machine() {
    for (event, want) in [
        (PlatformEvent::PowerOff, Stop::PowerOff),
        (PlatformEvent::Reset, Stop::Reset),
    ] {
        let mut v = vm(|s| s.exits(30, 0x604 << 16, 2));
        v.devices.event = Some(event);
        assert_eq!(v.run(), want);
    }
}

#[test]
fn string_output_goes_through_the_emulator() {
    let mut v = vm(|s| {
        s.gprs[Gpr::Rcx as usize] = 2;
        s.gprs[Gpr::Rsi as usize] = 0x6000;
        s.gprs[Gpr::Rdx as usize] = 0x3f8;
        s.stay(|s| {
            Entered::Exit(RawExit {
                reason: 30,
                qualification: 0x3f8 << 16 | 0x30,
                instruction_length: 2,
                rip: s.rip,
                cr3: 0x1_0000,
                ..RawExit::NONE
            })
        });
    });
    v.mem.put(0x1000, &[0xf3, 0x6e]);
    v.mem.put(0x6000, b"hi");
    let v = finish(v);
    assert_eq!(
        v.devices.seen[..2],
        [Io::Out(0x3f8, 1, b'h'.into()), Io::Out(0x3f8, 1, b'i'.into())]
    );
}

/// What an entry checks of the guest's state and of the event (SDM vol. 3, sections 27.2.1.3 and 27.3.1), as far as the vmm
/// makes it.
fn entry_checks(v: &mut Script) {
    let delivered = v.delivered.pop();
    let field = |f| v.fields.get(&f).copied().unwrap_or(0);
    let (cr0, cr4, efer) = (field(Field::GuestCr0), field(Field::GuestCr4), field(Field::GuestEfer));
    assert!(
        cr0 & cr0::PG == 0 || cr0 & cr0::PE != 0,
        "paging without protection: {cr0:#x}"
    );
    let lma = efer & efer::LMA != 0;
    assert_eq!(
        lma,
        efer & efer::LME != 0 && cr0 & cr0::PG != 0,
        "efer {efer:#x} cr0 {cr0:#x}"
    );
    assert!(!lma || cr4 & cr4::PAE != 0, "long mode without PAE");
    assert_eq!(cr4 & (cr4::VMXE | cr4::MCE), cr4::VMXE);
    let shadow = field(Field::GuestInterruptibility) & 3;
    let flags = field(Field::GuestRflags);
    if let Some(e) = delivered {
        let with_error = matches!(e.vector, 8 | 10..=14 | 17) && e.kind == EventKind::HardwareException;
        assert_eq!(
            e.error.is_some(),
            with_error && cr0 & cr0::PE != 0,
            "{e:?} cr0 {cr0:#x}"
        );
        if e.kind == EventKind::ExternalInterrupt {
            assert!(
                flags & rflags::IF != 0 && shadow == 0,
                "{e:?} flags {flags:#x} shadow {shadow}"
            );
        }
    }
    let pending = field(Field::GuestPendingDebugExceptions) >> 14 & 1 != 0;
    if shadow != 0 || field(Field::GuestActivityState) == 1 {
        assert_eq!(pending, flags & rflags::TF != 0, "single step pending");
    }
}

// REQ: EM-2
#[test]
fn random_exits_never_panic_and_never_make_a_state_that_cannot_be_entered() {
    let mut seed = 0x2545_f491_4f6c_dd1du64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let (mut stops, mut events) = (0, 0);
    for _ in 0..2000 {
        let mut v = vm(|s| *s.fields.get_mut(&Field::GuestCr4).expect("set") |= cr4::VMXE);
        for _ in 0..200 {
            let reasons = [
                0, 7, 10, 12, 28, 28, 28, 29, 30, 30, 31, 32, 32, 48, 48, 52, 55, 9, 13, 54,
            ];
            let reason = reasons[random() as usize % reasons.len()];
            let gprs: [u64; 16] = core::array::from_fn(|_| match random() % 4 {
                0 => random(),
                1 => 0xc000_0080,
                2 => random() & 0xffff_ffff,
                _ => random() & (cr0::PG | cr0::PE | cr0::WP | cr4::PAE | cr4::PSE | efer::LME | efer::SCE),
            });
            let qualification = match reason {
                28 => (random() & 0xff30) | [0, 4, 8][random() as usize % 3],
                29 => random() & 0xf17,
                30 => (random() & 0xffff_0018) | [0, 1, 3][random() as usize % 3],
                48 => [0x181, 0x182, 0x184, 0x81][random() as usize % 4],
                _ => random(),
            };
            let gpa = if random() & 1 == 0 {
                random() % 0x20_0000
            } else {
                0xfee0_0000
            };
            let (interruption, vectoring) = (
                [0x8000_0301, 0x8000_0501, 0x8000_0b11, 0x8000_0202][random() as usize % 4],
                [0, 0, 0, 0x8000_0030, 0x8000_0b0e][random() as usize % 5],
            );
            let mut flags = 2 | random() & (rflags::IF | rflags::TF);
            let delivering = reason == 48 && vectoring != 0;
            let shadow = if delivering {
                0
            } else {
                (random() & 3).min(2) * (random() & 1)
            };
            if shadow == 1 || delivering {
                flags |= rflags::IF;
            }
            let pause = random() % 1_000_000;
            v.vcpu.stay(move |s| {
                entry_checks(s);
                s.tsc += pause;
                s.gprs = gprs;
                s.rip = 0x1000;
                // What the processor saves.
                let stepping = shadow != 0 && flags & rflags::TF != 0;
                for (field, value) in [
                    (Field::GuestRflags, flags),
                    (Field::GuestInterruptibility, shadow),
                    (Field::GuestPendingDebugExceptions, u64::from(stepping) << 14),
                    (Field::GuestActivityState, 0),
                ] {
                    s.fields.insert(field, value);
                }
                Entered::Exit(RawExit {
                    reason,
                    qualification,
                    instruction_length: 3,
                    gpa: Gpa::new(gpa),
                    linear: Gva::new(0x20_0000),
                    rip: s.rip,
                    rflags: flags,
                    interruptibility: shadow as u32,
                    cr3: 0x1_0000,
                    interruption,
                    idt_vectoring: if reason == 48 { vectoring } else { 0 },
                })
            });
        }
        v.mem.put(0x1000, &[0x89, 0x03]); // mov [rbx], eax
        v.devices.deadline = Some(random() % 10_000_000);
        let stop = v.run();
        if !matches!(stop, Stop::BackendFailed(_)) {
            stops += 1;
        }
        events += v.counters.exceptions + v.counters.interrupts;
    }
    assert!(stops > 100 && events > 1000, "{stops} stops, {events} events");
}
