// SPDX-License-Identifier: MIT OR Apache-2.0
//! An mmu component that checks what the root task gave it, and then serves or faults as its vmm asks.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::format;
use sel4::{
    CPtr, CapRights, EptAttributes, Error, ObjectBlueprint, Result, TranslationTable,
    cap::{CNode, Endpoint, EptPd, EptPdpt, EptPml4, EptPt, LargePage, SmallPage, Untyped},
    sys,
};
use sel4_root_task::{declare_component, logger};
use umbra_description::{
    MmuConfig,
    layout::{RAM_WINDOW, mmu},
    supervisor::{MAX_WORDS, Message},
};

declare_component! { main = main }

/// Labels of requests.
const ANSWER: u64 = 1;
const FAULT: u64 = 2;
const READ_GUEST: u64 = 3;

fn main(config: &'static [u8]) -> ! {
    logger::init(|text| say(&format!("{text}")), log::LevelFilter::Info);
    let config: MmuConfig = postcard::from_bytes(config).expect("the configuration is that of an mmu");
    match check(&config) {
        Ok(()) => say("mmu: as described"),
        Err((what, outcome)) => say(&format!("mmu: {what} gave {outcome:?}")),
    }
    let requests = Endpoint::from_bits(mmu::REQUESTS);
    let mut request = requests.recv();
    loop {
        match request.info.label() {
            ANSWER => {}
            FAULT => divide_by_zero(),
            READ_GUEST => read_guest(),
            other => panic!("no request {other}"),
        }
        request = requests.reply_recv_with_mrs(ANSWER, [request.mrs[0] + 1]);
    }
}

/// Uses every kind of capability once, and some that it must not have. What went wrong, if anything.
fn check(config: &MmuConfig) -> core::result::Result<(), (&'static str, Result<()>)> {
    let own = CNode::from_bits(mmu::CNODE);
    let (first_free, free) = config.free_slots;
    let last = first_free + free - 1;
    let place = |slot| own.absolute_cptr(CPtr::from_bits(slot));
    let good = |what, outcome: Result<()>| outcome.map_err(|error| (what, Err(error)));

    // Tables out of its own memory, in its own slots.
    let memory = Untyped::from_bits(config.tables[0].0);
    let kinds = [ObjectBlueprint::EptPdpt, ObjectBlueprint::EptPd, ObjectBlueprint::EptPt];
    for (slot, kind) in (first_free..).zip(kinds) {
        good("an EPT table", memory.untyped_retype(kind, &own.slot(0, 0), slot, 1))?;
    }
    let ept = EptPml4::from_bits(mmu::EPT);
    good("an EPT PDPT", EptPdpt::from_bits(first_free).table_map(ept, 0))?;
    good(
        "an EPT page directory",
        EptPd::from_bits(first_free + 1).table_map(ept, 0),
    )?;
    good("an EPT page table", EptPt::from_bits(first_free + 2).table_map(ept, 0))?;

    // Frames: the first of each backing, in order; the last free slot takes a copy, so does the root of its CSpace.
    for backing in &config.backings {
        if backing.small_head > 0 {
            let frame = SmallPage::from_bits(backing.first_slot);
            good(
                "a small frame",
                frame.frame_map_ept(ept, 0, CapRights::READ_WRITE, EptAttributes::WriteBack),
            )?;
            good("unmapping it", frame.frame_unmap())?;
        }
        if backing.large > 0 {
            let frame = LargePage::from_bits(backing.first_slot + u64::from(backing.small_head));
            good(
                "a large frame",
                frame.frame_map_ept(ept, 1 << 30, CapRights::READ, EptAttributes::WriteBack),
            )
            .or_else(|(what, outcome)| match outcome {
                // There is no page directory for this address, which shows that it is a frame of 2M.
                Err(Error::FailedLookup { .. }) => Ok(()),
                other => Err((what, other)),
            })?;
        }
    }
    let frame = place(config.backings[0].first_slot);
    good("the last free slot", place(last).copy(&frame, CapRights::READ))?;
    let top = CNode::from_bits(mmu::TOP).slot(511, mmu::TOP_BITS as u8);
    good("the root of its CSpace", top.copy(&frame, CapRights::READ))?;

    // What it must not be able to do: send requests to itself, reach beyond its slots, use what others have.
    let bad = |what, outcome: Result<()>| if outcome.is_ok() { Err((what, outcome)) } else { Ok(()) };
    if Endpoint::from_bits(mmu::REQUESTS)
        .call_with_mrs(ANSWER, [])
        .info
        .label()
        != sys::seL4_InvalidCapability
    {
        return Err(("a request to itself", Ok(())));
    }
    bad("a slot beyond its CNode", place(last + 1).copy(&frame, CapRights::READ))?;
    for slot in (mmu::FAULT + 1)..mmu::FIRST_VARIABLE {
        bad("an unused slot", place(last - 1).copy(&place(slot), CapRights::READ))?;
    }
    Ok(())
}

/// The mmu holds its guest's frames, but nothing maps them into it: where the vmm has them, there is nothing.
fn read_guest() {
    let window = core::ptr::with_exposed_provenance::<u64>(RAM_WINDOW as usize);
    // SAFETY: nothing refers to memory there; the read faults, which is what was asked for.
    say(&format!("mmu: read {:#x}", unsafe { window.read_volatile() }));
}

fn divide_by_zero() {
    // SAFETY: raises a divide error and changes nothing but the registers named; the thread ends there.
    unsafe { core::arch::asm!("xor edx, edx", "mov eax, 4660", "div rdx", out("eax") _, out("edx") _) }
}

fn say(text: &str) {
    let mut words = [0; MAX_WORDS];
    let (label, length) = Message::Log(text).encode(&mut words);
    sel4::with_ipc_buffer_mut(|buffer| buffer.msg_regs_mut()[..length].copy_from_slice(&words[..length]));
    Endpoint::from_bits(mmu::SUPERVISOR).send(sel4::MessageInfo::new(label, length));
}
