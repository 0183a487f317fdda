// SPDX-License-Identifier: MIT OR Apache-2.0
//! Does the server answer whatever comes, and only in the ways of the wire format?

use umbra_conformance::{Failure, Found, SMALL};
use umbra_mmu_abi::wire::Message;
use umbra_mmu_abi::{Access, Backing, FaultOutcome, Gfn, Reply, Request, SlotError, SlotFlags, SlotId, Stat};
use umbra_mmu_component::serve::answer;
use umbra_mmu_core::Mmu;
use umbra_mmu_core::stage2::Stage2;
use umbra_mmu_core::vcpu::Vcpu;
use umbra_test_report::Report;

/// Runs all tests of this file on an MMU without slots, and leaves it so.
pub fn all<S: Stage2>(report: &mut Report, mmu: &Mmu<S>, vcpu: &mut Vcpu) {
    report.judge("server/requests_are_answered_by_value", requests(mmu, vcpu));
    // Each refusal is a line of the log; there are some hundred.
    log::set_max_level(log::LevelFilter::Off);
    let noise = noise(mmu, vcpu);
    log::set_max_level(log::LevelFilter::Info);
    report.judge("server/malformed_messages_fail_and_change_nothing", noise);
}

fn expect(expected: &'static str, line: u32, holds: bool, found: u64) -> Result<(), Failure> {
    match holds {
        true => Ok(()),
        false => Err(Failure {
            expected,
            at: (file!(), line),
            found: Found::Number(found),
        }),
    }
}

fn ask<S: Stage2>(mmu: &Mmu<S>, vcpu: &mut Vcpu, request: Request) -> Result<Reply, Failure> {
    let reply = answer(mmu, vcpu, &request.encode());
    // What travels is what was meant.
    expect(
        "a reply of the wire format",
        line!(),
        Reply::decode(&reply.encode()) == Ok(reply),
        0,
    )?;
    Ok(reply)
}

fn slot(id: u16, npages: u32) -> Request {
    let backing = Backing {
        id: SMALL,
        first_page: 0,
    };
    Request::SetSlot {
        id: SlotId(id),
        base: Gfn::new(0x400),
        npages,
        backing,
        flags: SlotFlags::empty(),
    }
}

fn requests<S: Stage2>(mmu: &Mmu<S>, vcpu: &mut Vcpu) -> Result<(), Failure> {
    let fault = |gfn| Request::Fault {
        gpa: Gfn::new(gfn).gpa(),
        access: Access::Write,
    };
    let created = ask(mmu, vcpu, slot(0, 4))?;
    expect(
        "a changed slot",
        line!(),
        created == Reply::Changed(mmu.generation()),
        0,
    )?;
    let overlap = ask(mmu, vcpu, slot(1, 4))?;
    expect("a refusal", line!(), overlap == Reply::Refused(SlotError::Overlap), 1)?;
    let mapped = ask(mmu, vcpu, fault(0x400))?;
    expect(
        "a mapped page",
        line!(),
        mapped == Reply::Fault(FaultOutcome::Resume),
        2,
    )?;
    let emulated = ask(mmu, vcpu, fault(0x404))?;
    let is_mmio = matches!(emulated, Reply::Fault(FaultOutcome::Emulate(mmio)) if mmio.gfn == Gfn::new(0x404));
    expect("an emulation", line!(), is_mmio, 3)?;
    let count = ask(mmu, vcpu, Request::Stat(Stat::Mapped4K))?;
    expect("one mapped page", line!(), count == Reply::Stat(1), 4)?;
    let audit = ask(mmu, vcpu, Request::Audit)?;
    expect(
        "a clean audit",
        line!(),
        audit
            == Reply::Audited {
                leaves: 1,
                differences: 0,
            },
        5,
    )?;
    let zapped = ask(mmu, vcpu, Request::ZapAll)?;
    expect("a zap", line!(), zapped == Reply::Changed(mmu.generation()), 6)?;
    while mmu.has_background_work() {
        mmu.background();
    }
    let deleted = ask(mmu, vcpu, slot(0, 0))?;
    expect(
        "a deleted slot",
        line!(),
        deleted == Reply::Changed(mmu.generation()),
        7,
    )?;
    let missing = ask(mmu, vcpu, slot(0, 0))?;
    expect(
        "no slot to delete",
        line!(),
        missing == Reply::Refused(SlotError::NoEntry),
        8,
    )
}

fn noise<S: Stage2>(mmu: &Mmu<S>, vcpu: &mut Vcpu) -> Result<(), Failure> {
    let before = mmu.generation();
    let samples = [0, 1, 2, 7, 1 << 16, 1 << 32, 1 << 34, 1 << 52, u64::MAX];
    for label in (0..9).chain([1 << 19, u64::MAX]) {
        for len in 0..=5 {
            for a in samples {
                for b in samples {
                    let message = Message {
                        label,
                        len,
                        words: [a, b, b, a],
                    };
                    if Request::decode(&message).is_ok() {
                        continue;
                    }
                    let failed = answer(mmu, vcpu, &message) == Reply::Failed;
                    expect("a failure for a malformed message", line!(), failed, label)?;
                }
            }
        }
    }
    expect(
        "an unchanged generation",
        line!(),
        mmu.generation() == before,
        mmu.generation().0.into(),
    )?;
    let audit = mmu.audit();
    expect(
        "a clean audit",
        line!(),
        audit.differences == 0,
        audit.differences.into(),
    )
}
