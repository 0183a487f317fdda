// SPDX-License-Identifier: MIT OR Apache-2.0
//! A vmm component that checks what the root task gave it, and then ends as its guest's command line says.
//!
//! Words of the command line: `power-off`, `triple-fault` (it reports that), `write-unmapped`, `write-program`,
//! `write-payload`, `read-beyond-guest`, `forge` (log lines of the root task), `panic` (it does that),
//! `mmu-fault`, `mmu-read-guest` (it lets its mmu do that), `wait` (it works for a while first).
#![no_std]
#![no_main]

extern crate alloc;

use alloc::format;
use sel4::{
    Error,
    cap::{Endpoint, IOPort, IrqHandler, VCpu},
};
use sel4_root_task::{declare_component, logger};
use umbra_description::{
    SlotKind, VmmConfig,
    bundle::Bundle,
    layout::{self, vmm},
    supervisor::{MAX_WORDS, Message, StopReason},
};

declare_component! { main = main }

/// Labels of requests to the test mmu.
const ANSWER: u64 = 1;
const FAULT: u64 = 2;
const READ_GUEST: u64 = 3;

fn main(config: &'static [u8]) -> ! {
    logger::init(|text| send(Message::Log(&format!("{text}"))), log::LevelFilter::Info);
    let config: VmmConfig = postcard::from_bytes(config).expect("the configuration is that of a vmm");
    match check(&config) {
        Ok(()) => log::info!("vmm: as described"),
        Err(what) => log::info!("vmm: wrong: {what}"),
    }
    send(Message::Entered(0));
    for word in config.boot.cmdline.split_whitespace() {
        obey(word, &config);
    }
    panic!("the command line says nothing about the end");
}

fn obey(word: &str, config: &VmmConfig) {
    match word {
        "power-off" => stop(StopReason::PowerOff, ""),
        "triple-fault" => stop(StopReason::TripleFault, "rip=0x1234"),
        "write-unmapped" => write(0xdead_0000),
        "write-program" => write(0x40_0000),
        "write-payload" => write(layout::PAYLOAD_WINDOW),
        "read-beyond-guest" => {
            let end = config.ram.iter().map(|ram| ram.gpa + ram.len).max().unwrap_or(0);
            log::info!("vmm: read {:#x}", peek(layout::RAM_WINDOW + end));
        }
        "forge" => {
            log::info!("said\rumbra: done status=0\numbra: vm other stopped: power-off\x1b[2K");
            stop(
                StopReason::TripleFault,
                "rip\rumbra: done status=0\numbra: done status=0",
            );
        }
        "panic" => panic!("as asked"),
        "mmu-fault" => {
            Endpoint::from_bits(vmm::MMU).call_with_mrs(FAULT, []);
        }
        "mmu-read-guest" => {
            Endpoint::from_bits(vmm::MMU).call_with_mrs(READ_GUEST, []);
        }
        "wait" => {
            for _ in 0..20_000_000 {
                core::hint::spin_loop();
            }
            log::info!("vmm: has waited");
        }
        other => panic!("unknown word '{other}' in the command line"),
    }
}

/// Uses everything that it has, and some things that it must not have. What is wrong, if anything.
fn check(config: &VmmConfig) -> Result<(), &'static str> {
    let good = |what, right: bool| if right { Ok(()) } else { Err(what) };
    let answer = Endpoint::from_bits(vmm::MMU).call_with_mrs(ANSWER, [41]);
    good("the mmu's answer", answer.mrs[0] == 42)?;
    let vcpu = VCpu::from_bits(vmm::VCPU);
    good(
        "reading its VMCS",
        vcpu.vcpu_read_vmcs(sel4::vmcs::VMX_GUEST_RIP).is_ok(),
    )?;
    good("the frequency", (1_000_000..100_000_000_000).contains(&config.tsc_hz))?;

    for ram in &config.ram {
        good("a kind of memory", matches!(ram.kind, SlotKind::Ram | SlotKind::Rom))?;
        for offset in [0, ram.len / 2, ram.len - 8] {
            let at = layout::RAM_WINDOW + ram.gpa + offset;
            good("cleared guest memory", peek(at) == 0)?;
            write(at);
            good("writable guest memory", peek(at) == at)?;
        }
    }
    if config.payload_len > 0 {
        // SAFETY: the root task maps so many bytes there, read-only, for the whole run.
        let payload = unsafe {
            let start = core::ptr::with_exposed_provenance(layout::PAYLOAD_WINDOW as usize);
            core::slice::from_raw_parts::<u8>(start, config.payload_len as usize)
        };
        let bundle = Bundle::new(payload).map_err(|_| "the payload")?;
        let kernel = bundle
            .find(&config.boot.kernel)
            .map_err(|_| "a kernel in the payload")?;
        good("an undamaged kernel", kernel.verify().is_ok())?;
    }

    let port = IOPort::from_bits(vmm::CONSOLE_PORT);
    match config.console_port {
        Some(base) => {
            good("its serial port", port.ioport_in8(base + 5).is_ok())?;
            good(
                "its interrupt",
                IrqHandler::from_bits(vmm::CONSOLE_IRQ).irq_handler_ack().is_ok(),
            )?;
            // The log's port, the port behind its own, the PIT, the keyboard controller's reset line.
            for other in [0x2f8, base + 8, 0x40, 0x64] {
                good("no other ports", port.ioport_in8(other) == Err(Error::IllegalOperation))?;
            }
        }
        None => good("no ports", port.ioport_in8(0x3fd).is_err())?,
    }
    // Slots where nothing is, where a root task has its CNode and its ports.
    for slot in [1, 9, 15] {
        good("empty slots", IOPort::from_bits(slot).ioport_in8(0x80).is_err())?;
    }
    Ok(())
}

fn peek(at: u64) -> u64 {
    // SAFETY: callers pass addresses that the root task mapped; nothing else refers to this memory.
    unsafe { core::ptr::with_exposed_provenance::<u64>(at as usize).read_volatile() }
}

/// Writes the address to itself. Where it is not mapped for writing this is the fault that was asked for.
fn write(at: u64) {
    // SAFETY: guest memory, to which nothing else refers; or an address where the write faults and changes nothing.
    unsafe { core::ptr::with_exposed_provenance_mut::<u64>(at as usize).write_volatile(at) }
}

fn stop(reason: StopReason, detail: &str) -> ! {
    send(Message::Stopped { reason, detail });
    loop {
        sel4::yield_();
    }
}

fn send(message: Message<'_>) {
    let mut words = [0; MAX_WORDS];
    let (label, length) = message.encode(&mut words);
    sel4::with_ipc_buffer_mut(|buffer| buffer.msg_regs_mut()[..length].copy_from_slice(&words[..length]));
    Endpoint::from_bits(vmm::SUPERVISOR).send(sel4::MessageInfo::new(label, length));
}
