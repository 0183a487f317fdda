// SPDX-License-Identifier: MIT OR Apache-2.0
//! Do threads, messages, signals and faults work?

use crate::objects::Objects;
use crate::thread::start;
use sel4::cap::{CPtr, Endpoint, Notification};
use sel4::init_thread::slot;
use sel4::{CapRights, Fault, MessageInfo, ObjectBlueprint, with_ipc_buffer_mut};
use umbra_test_report::{Check, Report, good, same, ticks};

const LABEL: u64 = 0x1234;
const BADGE: u64 = 77;
/// Beyond the CNode.
const UNKNOWN_SLOT: u64 = 1 << 40;

/// All tests of this file.
pub fn run(report: &mut Report, objects: &mut Objects) {
    let endpoint = objects
        .object::<sel4::cap::cap_type::Endpoint>(ObjectBlueprint::Endpoint)
        .expect("an endpoint");
    let badged: Endpoint = objects.slot();
    report.test("a message of four words comes back with its label and badge", || {
        let minted = slot::CNODE.absolute_cptr(badged);
        good(
            "mint",
            minted.mint(&slot::CNODE.absolute_cptr(endpoint), CapRights::ALL, BADGE),
        )?;
        start(objects, echo, endpoint.bits(), CPtr::NULL)?;
        let answer = badged.call_with_mrs(LABEL, [1, 2, 3, u64::MAX]);
        same("label", answer.info.label(), LABEL + 1)?;
        same("words", answer.mrs, [2, 3, 4, BADGE])
    });
    report.measured(
        "call and answer, 4 words",
        ticks(|| {
            badged.call_with_mrs(LABEL, [1, 2, 3, 4]);
        }),
    );
    report.test("a longer message keeps its length", || {
        with_ipc_buffer_mut(|buffer| buffer.msg_regs_mut()[4..9].copy_from_slice(&[5, 6, 7, 8, 9]));
        let answer = badged.call_with_first(MessageInfo::new(LABEL, 9), [1, 2, 3, 9]);
        same("words", answer.mrs, [2, 3, 9, BADGE])
    });
    report.test("registers are written and read back, all of them", || {
        registers(objects)
    });
    report.test("a notification collects its badges", || signals(objects));
    report.test("a page fault is reported with its address", || {
        faulting(objects, read_word, 0xdead_0000, |fault| {
            matches!(
                fault,
                Fault::Vm {
                    address: 0xdead_0000,
                    instruction: false,
                    ..
                }
            )
        })
    });
    report.test("an invalid opcode is reported with its vector", || {
        faulting(objects, invalid_opcode, 0, |fault| {
            matches!(fault, Fault::UserException { number: 6, .. })
        })
    });
    report.test("an unknown capability is reported with its slot", || {
        faulting(objects, call_nothing, UNKNOWN_SLOT, |fault| {
            matches!(
                fault,
                Fault::Cap {
                    cptr: UNKNOWN_SLOT,
                    in_receive_phase: false,
                    ..
                }
            )
        })
    });
    report.test("an overflow of the main stack meets its guard page", || {
        let local = 0u8;
        let top = (&raw const local).addr().next_multiple_of(4096) as u64;
        let guard = top - crate::STACK_SIZE as u64 - 8;
        faulting(
            objects,
            read_word,
            guard,
            |fault| matches!(fault, Fault::Vm { address, .. } if *address == guard),
        )?;
        // The word above belongs to the stack.
        let lowest = core::ptr::with_exposed_provenance::<u64>(guard as usize + 8);
        // SAFETY: the lowest word of this thread's own stack, which is mapped.
        unsafe { lowest.read_volatile() };
        Ok(())
    });
}

/// Answers each message: words plus one, the fourth replaced by the badge (the third by the length of long messages).
extern "C" fn echo(endpoint: u64) -> ! {
    let endpoint = Endpoint::from_bits(endpoint);
    let mut message = endpoint.recv();
    loop {
        let [a, b, c, _] = message.mrs;
        let third = if message.info.length() > 4 {
            message.info.length() as u64
        } else {
            c + 1
        };
        message = endpoint.reply_recv_with_mrs(message.info.label() + 1, [a + 1, b + 1, third, message.badge]);
    }
}

extern "C" fn read_word(address: u64) -> ! {
    let address = core::ptr::with_exposed_provenance::<u64>(address as usize);
    // SAFETY: the read is meant to fault; the thread does not go on.
    unsafe { address.read_volatile() };
    wait_forever()
}

extern "C" fn invalid_opcode(_: u64) -> ! {
    // SAFETY: ud2 only raises the exception.
    unsafe { core::arch::asm!("ud2", options(noreturn)) }
}

extern "C" fn call_nothing(slot: u64) -> ! {
    Endpoint::from_bits(slot).call_with_mrs(0, []);
    wait_forever()
}

extern "C" fn wait_forever_body(_: u64) -> ! {
    wait_forever()
}

fn wait_forever() -> ! {
    loop {
        core::hint::spin_loop();
    }
}

fn faulting(
    objects: &mut Objects,
    body: extern "C" fn(u64) -> !,
    argument: u64,
    right: impl FnOnce(&Fault) -> bool,
) -> Check {
    let endpoint: Endpoint = good("retype", objects.object(ObjectBlueprint::Endpoint))?;
    let tcb = start(objects, body, argument, endpoint.cptr())?;
    let fault = Fault::new(&endpoint.recv());
    good("suspend", tcb.tcb_suspend())?;
    if right(&fault) {
        Ok(())
    } else {
        Err(alloc::format!("{fault}"))
    }
}

fn registers(objects: &mut Objects) -> Check {
    let tcb = start(objects, wait_forever_body, 0, CPtr::NULL)?;
    let mut wanted = good("read", tcb.tcb_read_all_registers(true))?;
    (wanted.rax, wanted.rbx, wanted.rcx, wanted.rdx) = (1, 2, 3, 4);
    (wanted.rsi, wanted.rdi, wanted.rbp, wanted.r15) = (5, 6, 7, 15);
    good("write", tcb.tcb_write_all_registers(false, &wanted))?;
    let found = good("read", tcb.tcb_read_all_registers(true))?;
    same("rip, rsp", (found.rip, found.rsp), (wanted.rip, wanted.rsp))?;
    same("rax to rdx", (found.rax, found.rbx, found.rcx, found.rdx), (1, 2, 3, 4))?;
    same(
        "the others",
        (found.rsi, found.rdi, found.rbp, found.r15),
        (5, 6, 7, 15),
    )
}

fn signals(objects: &mut Objects) -> Check {
    let plain: Notification = good("retype", objects.object(ObjectBlueprint::Notification))?;
    let from = slot::CNODE.absolute_cptr(plain);
    let badged = [1, 4].map(|badge| {
        let copy: Notification = objects.slot();
        slot::CNODE
            .absolute_cptr(copy)
            .mint(&from, CapRights::WRITE, badge)
            .map(|()| copy)
    });
    same("nothing yet", plain.poll(), 0)?;
    for copy in badged {
        good("mint", copy)?.signal();
    }
    same("both", plain.wait(), 5)?;
    same("taken", plain.poll(), 0)
}
