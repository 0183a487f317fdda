// SPDX-License-Identifier: MIT OR Apache-2.0
//! The audit against a ledger that is right, and against every way to make it wrong.

use super::*;
use crate::{
    badge::{Kind, Source},
    frames::Frames,
    ledger::{Cap, Mapping},
};
use std::{string::ToString, vec::Vec};
use umbra_description::{Payload, SlotKind, compile::compile, supervisor::Role};

const TWO_VMS: &str = r#"
power-off = "bochs"
component.vmm = { image = "v", priority = 1, heap = "2M" }
component.mmu = { image = "m", priority = 2, stack = "16K" }
[[vm]]
name = "a"
memory = "32M"
console = "com1"
boot.kernel = "k"
[[vm]]
name = "b"
boot.kernel = "k"
[[vm.slot]]
gpa = 0
length = "8M"
"#;

fn system() -> System {
    let mut system = compile(TWO_VMS).unwrap();
    system.payload = Some(Payload {
        paddr: 0x200_0000,
        len: 0x20_0123,
    });
    system
}

fn facts() -> Vec<VmFacts> {
    let program = Program {
        read_only: 0x3000,
        writable: 0x2000,
        config: 0x1000,
    };
    [VmFacts {
        vmm: program,
        mmu: program,
        mmu_cnode_bits: 12,
    }; 2]
        .to_vec()
}

/// Hands out by hand what the root task hands out by kernel calls.
struct Hand {
    ledger: Ledger,
    next_paddr: u64,
}

impl Hand {
    fn cap(&mut self, holder: Holder, slot: u64, object: Object, rights: Rights, badge: u64) {
        self.ledger.put(
            holder,
            slot,
            1,
            Cap {
                object,
                rights,
                badge,
                paddr: 0,
            },
        );
    }

    fn map(&mut self, holder: Holder, vaddr: u64, len: u64, writable: bool) -> u64 {
        let paddr = self.next_paddr;
        self.next_paddr += len + 0x1000;
        self.ledger.map(Mapping {
            holder,
            vaddr,
            paddr,
            len,
            writable,
        });
        paddr
    }

    fn component(&mut self, holder: Holder, vm: u16, role: Role, stack: u64, heap: u64) {
        let supervisor = Object::Endpoint(Port::Supervisor);
        let message = Source {
            vm,
            role,
            kind: Kind::Message,
        };
        self.cap(holder, 3, supervisor, Rights::WRITE, message.to_badge());
        let fault = Source {
            kind: Kind::Fault,
            ..message
        };
        self.cap(holder, 8, supervisor, Rights::WRITE | Rights::GRANT, fault.to_badge());
        self.map(holder, 0x40_0000, 0x3000, false);
        self.map(holder, 0x40_3000, 0x2000, true);
        self.map(holder, layout::CONFIG, 0x1000, false);
        self.map(holder, layout::IPC_BUFFER, 0x1000, true);
        self.map(holder, layout::STACK_TOP - stack, stack, true);
        self.map(holder, layout::HEAP, heap, true);
    }

    fn all(system: &System) -> Ledger {
        let mut hand = Self {
            ledger: Ledger::new(),
            next_paddr: 0x1000_0000,
        };
        let all = Rights::all();
        hand.cap(Holder::Root, 1, Object::Tcb, all, 0);
        hand.cap(
            Holder::Root,
            7,
            Object::IoPorts {
                first: 0x2f8,
                last: 0x2ff,
            },
            all,
            0,
        );
        hand.cap(
            Holder::Root,
            8,
            Object::IoPorts {
                first: 0x8900,
                last: 0x8900,
            },
            all,
            0,
        );
        for (n, vm) in system.vms.iter().enumerate() {
            let n = n as u16;
            let (vmm, mmu) = (Holder::Vmm(n), Holder::Mmu(n));
            hand.component(vmm, n, Role::Vmm, 0x1_0000, 2 << 20);
            hand.component(mmu, n, Role::Mmu, 0x4000, (1 << 20) + vm.mmu_heap_extra());
            hand.cap(
                vmm,
                2,
                Object::Endpoint(Port::Requests(n)),
                Rights::WRITE | Rights::GRANT,
                0,
            );
            hand.cap(vmm, 4, Object::Vcpu, all, 0);
            hand.cap(vmm, 7, Object::Notification, Rights::READ, 0);
            if n == 0 {
                hand.cap(
                    vmm,
                    5,
                    Object::IoPorts {
                        first: 0x3f8,
                        last: 0x3ff,
                    },
                    all,
                    0,
                );
                hand.cap(vmm, 6, Object::IrqHandler(4), all, 0);
            }
            hand.cap(mmu, 1, Object::CNode { bits: 12 }, all, 0);
            hand.cap(mmu, 1 << 32, Object::CNode { bits: 12 }, all, 0);
            hand.cap(mmu, 5, Object::CNode { bits: 9 }, all, 0);
            hand.cap(mmu, 2, Object::Endpoint(Port::Requests(n)), Rights::READ, 0);
            hand.cap(mmu, 4, Object::EptRoot, all, 0);
            let untyped = Object::Untyped {
                bits: 12,
                device: false,
            };
            for i in 0..vm.table_memory >> 12 {
                let paddr = 0x8000_0000 + u64::from(n) * 0x1000_0000 + i * 4096;
                hand.ledger.put(
                    mmu,
                    100 + i,
                    1,
                    Cap {
                        object: untyped,
                        rights: all,
                        badge: 0,
                        paddr,
                    },
                );
            }
            let mut slot = 100_000;
            for ram in &vm.slots {
                hand.next_paddr = hand.next_paddr.next_multiple_of(2 << 20) + ram.gpa % (2 << 20);
                let mut paddr = hand.map(vmm, layout::RAM_WINDOW + ram.gpa, ram.len, true);
                let rights = match ram.kind {
                    SlotKind::Ram => Rights::READ | Rights::WRITE,
                    SlotKind::Rom => Rights::READ,
                };
                for (size, count) in Frames::of_slot(ram).parts() {
                    let object = Object::Frame { size, device: false };
                    hand.ledger.put(
                        mmu,
                        slot,
                        count,
                        Cap {
                            object,
                            rights,
                            badge: 0,
                            paddr,
                        },
                    );
                    slot += count;
                    paddr += count * size.bytes();
                }
            }
            hand.ledger.map(Mapping {
                holder: vmm,
                vaddr: layout::PAYLOAD_WINDOW,
                paddr: 0x200_0000,
                len: 0x20_1000,
                writable: false,
            });
        }
        hand.ledger
    }
}

fn differences(ledger: &Ledger) -> Vec<std::string::String> {
    let system = system();
    let list = compare(&actual(ledger), &expect(&system, &facts()));
    list.iter().map(|d| d.display(&system).to_string()).collect()
}

#[test]
fn a_right_distribution_has_no_difference() {
    let ledger = Hand::all(&system());
    assert_eq!(differences(&ledger), [""; 0]);
    assert_eq!(shared(&ledger), []);
}

#[test]
fn a_system_without_vms_started_leaves_the_root_task_its_ports() {
    let expected = expect(&system(), &[]);
    assert!(expected.keys().all(|(holder, _)| *holder == Holder::Root));
    assert_eq!(expected.len(), 2);
}

// REQ: X-4
#[test]
fn whatever_is_missing_is_named() {
    let right = Hand::all(&system());
    let mut kinds = std::collections::BTreeSet::new();
    for run in right.caps() {
        let mut ledger = right.clone();
        let cap = ledger.remove(run.holder, run.slot).unwrap();
        let list = differences(&ledger);
        if run.holder == Holder::Root && cap.object == Object::Tcb {
            assert_eq!(list, [""; 0]);
            continue;
        }
        assert_eq!(list.len(), 1, "{cap:?}");
        kinds.insert(std::format!("{:?}", std::mem::discriminant(&cap.object)));
    }
    assert!(kinds.len() >= 8);
    let mut ledger = right.clone();
    ledger.remove(Holder::Vmm(0), 5);
    assert_eq!(differences(&ledger), ["a vmm lacks io-ports 0x3f8-0x3ff"]);
}

#[test]
fn whatever_is_too_much_is_named() {
    let with = |holder, object, rights, badge| {
        let mut ledger = Hand::all(&system());
        ledger.put(
            holder,
            999,
            1,
            Cap {
                object,
                rights,
                badge,
                paddr: 0xffff_0000,
            },
        );
        let list = differences(&ledger);
        assert_eq!(list.len(), 1);
        list[0].clone()
    };
    let all = Rights::all();
    assert_eq!(
        with(Holder::Vmm(1), Object::IoPorts { first: 0, last: 0xffff }, all, 0),
        "b vmm has io-ports 0x0-0xffff, the description implies none"
    );
    assert_eq!(
        with(Holder::Mmu(0), Object::Vcpu, all, 0),
        "a mmu has vcpu, the description implies none"
    );
    assert_eq!(
        with(Holder::Vmm(0), Object::Endpoint(Port::Requests(1)), Rights::WRITE, 7),
        "a vmm has endpoint mmu of b -w- badge 0x7, the description implies none"
    );
    assert_eq!(
        with(Holder::Root, Object::IrqControl, all, 0),
        "root task has irq control, the description implies none"
    );
    assert_eq!(
        with(
            Holder::Root,
            Object::Untyped {
                bits: 20,
                device: false
            },
            all,
            0
        ),
        "root task has untyped 1M, the description implies none"
    );
    let frame = Object::Frame {
        size: Size::Large,
        device: false,
    };
    assert_eq!(
        with(Holder::Mmu(1), frame, Rights::READ | Rights::WRITE, 0),
        "b mmu has 5 x frame 2M rw-, the description implies 4 x frame 2M rw-"
    );
}

#[test]
fn other_rights_are_two_differences() {
    let mut ledger = Hand::all(&system());
    let cap = ledger.remove(Holder::Vmm(0), 3).unwrap();
    ledger.put(
        Holder::Vmm(0),
        3,
        1,
        Cap {
            rights: Rights::WRITE | Rights::GRANT,
            ..cap
        },
    );
    assert_eq!(
        differences(&ledger),
        [
            "a vmm lacks endpoint supervisor -w- badge 0x4",
            "a vmm has endpoint supervisor -wg badge 0x4, the description implies none"
        ]
    );
}

#[test]
fn a_writable_payload_is_a_difference() {
    let mut ledger = Hand::all(&system());
    let (vaddr, paddr) = (layout::PAYLOAD_WINDOW + 0x100_0000, 0x300_0000);
    ledger.map(Mapping {
        holder: Holder::Vmm(0),
        vaddr,
        paddr,
        len: 0x1000,
        writable: true,
    });
    assert_eq!(
        differences(&ledger),
        ["a vmm has mapped payload 4K rw, the description implies none"]
    );
}

// REQ: X-4
#[test]
fn memory_of_another_vm_is_found_whatever_the_counts_say() {
    let system = system();
    let right = Hand::all(&system);
    let frames = |holder| {
        *right
            .caps()
            .iter()
            .find(|r| {
                r.holder == holder && r.cap.object.memory() == 4096 && matches!(r.cap.object, Object::Frame { .. })
            })
            .unwrap()
    };
    // The mmu of a gets a frame of b instead of its own: the counts stay right.
    let (own, other) = (
        frames(Holder::Mmu(0)),
        right.caps().iter().rfind(|r| r.holder == Holder::Mmu(1)).unwrap(),
    );
    let mut ledger = right.clone();
    ledger.remove(own.holder, own.slot).unwrap();
    ledger.put(
        own.holder,
        own.slot,
        1,
        Cap {
            paddr: other.cap.paddr + 0x3000,
            ..own.cap
        },
    );
    assert_eq!(differences(&ledger), [""; 0]);
    let found = shared(&ledger);
    assert_eq!(found.len(), 2, "with the mmu of b and with the vmm of b");
    assert!(found.iter().all(|s| s.paddr == other.cap.paddr + 0x3000));
    let text = found[0].display(&system).to_string();
    assert!(text.contains("share memory at") && text.contains("a mmu"), "{text}");
}

#[test]
fn private_memory_is_private() {
    let right = Hand::all(&system());
    let heap = |holder| {
        *right
            .mappings()
            .iter()
            .find(|m| m.holder == holder && m.vaddr == layout::HEAP)
            .unwrap()
    };
    // The vmm's heap within reach of its own mmu, as a mapping and as a capability.
    let stolen = heap(Holder::Vmm(0));
    let mut ledger = right.clone();
    ledger.map(Mapping {
        holder: Holder::Mmu(0),
        vaddr: 0x7800_0000,
        ..stolen
    });
    assert_eq!(shared(&ledger).len(), 1);
    let mut ledger = right.clone();
    let object = Object::Frame {
        size: Size::Large,
        device: false,
    };
    ledger.put(
        Holder::Mmu(0),
        5000,
        1,
        Cap {
            object,
            rights: Rights::READ,
            badge: 0,
            paddr: stolen.paddr,
        },
    );
    let [found] = shared(&ledger)[..] else { panic!("one") };
    assert_eq!(
        (found.paddr, found.holders),
        (stolen.paddr, (Holder::Mmu(0), Holder::Vmm(0)))
    );
}

#[test]
fn the_report_has_a_line_per_holder() {
    let system = system();
    let has = actual(&Hand::all(&system));
    let lines: Vec<_> = report(&system, &has).collect();
    assert_eq!(lines.len(), 5);
    assert_eq!(lines[0], "root task: io-ports 0x2f8-0x2ff, io-ports 0x8900-0x8900");
    assert!(
        lines[1].starts_with("a vmm: ") && lines[1].contains("vcpu") && lines[1].contains("irq 4"),
        "{}",
        lines[1]
    );
    assert!(
        lines[4].starts_with("b mmu: ") && lines[4].contains("4 x frame 2M rw-"),
        "{}",
        lines[4]
    );
}

#[test]
fn areas_follow_the_layout() {
    for (vaddr, area) in [
        (0x40_0000, Area::Program),
        (layout::IPC_BUFFER, Area::IpcBuffer),
        (layout::CONFIG, Area::Config),
        (layout::STACK_TOP - 1, Area::Stack),
        (layout::HEAP, Area::Heap),
        (layout::RAM_WINDOW, Area::Guest),
        (layout::PAYLOAD_WINDOW, Area::Payload),
    ] {
        assert_eq!(Area::of(vaddr), area, "{vaddr:#x}");
    }
}
