// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the root task does once all VMs run: it listens, logs, and stops what has ended or faulted.

use crate::{fault, log, machine::Machine, say};
use alloc::vec::Vec;
use sel4::{Received, cap};
use umbra_description::{
    System,
    supervisor::{MAX_LOG, MAX_WORDS, Message, Role, StopReason},
};
use umbra_root_core::badge::{Kind, Source};

/// Serves all VMs until the last one has stopped. True: every one of them ended as its guest wanted.
pub fn until_all_stopped(system: &System, machines: &[Machine], supervisor: cap::Endpoint) -> bool {
    let mut ends: Vec<Option<StopReason>> = machines.iter().map(|_| None).collect();
    while ends.contains(&None) {
        let message = supervisor.recv();
        let Some(source) = Source::from_badge(message.badge) else {
            continue;
        };
        let number = usize::from(source.vm);
        let (Some(machine), Some(end)) = (machines.get(number), ends.get_mut(number)) else {
            continue;
        };
        let name = &system.vms[number].name;
        let stopped = match source.kind {
            Kind::Message => said(name, source.role, &message),
            Kind::Fault => {
                let thread = match source.role {
                    Role::Vmm => machine.vmm.tcb,
                    Role::Mmu => machine.mmu.tcb,
                };
                fault::report(name, source.role, thread, &message);
                say!("vm {name} stopped: {}", StopReason::ComponentFault(source.role));
                Some(StopReason::ComponentFault(source.role))
            }
        };
        if let Some(reason) = stopped {
            machine.stop();
            // The first reason counts: a component that faults while its VM is being stopped changes nothing.
            end.get_or_insert(reason);
        }
    }
    ends.iter().flatten().all(|reason| reason.is_clean())
}

/// Logs what a component said; returns why its VM stopped, if that is what it said.
fn said(name: &str, role: Role, message: &Received) -> Option<StopReason> {
    let mut words = [0; MAX_WORDS];
    let length = message.info.length().min(MAX_WORDS);
    for (i, word) in words[..length].iter_mut().enumerate() {
        *word = message.word(i);
    }
    let mut text = [0; MAX_LOG];
    match Message::decode(message.info.label(), &words[..length], &mut text) {
        Ok(Message::Log(text)) => {
            log::of_vm(name, text);
            None
        }
        Ok(Message::Entered(ticks)) => {
            say!("vm {name}: entered ticks={ticks}");
            None
        }
        Ok(Message::Stopped { reason, detail }) => {
            let mut lines = detail.lines();
            match lines.next() {
                Some(first) => say!("vm {name} stopped: {reason} {}", log::Printable(first)),
                None => say!("vm {name} stopped: {reason}"),
            }
            lines.for_each(|line| log::of_vm(name, line));
            Some(reason)
        }
        Err(malformed) => {
            say!("vm {name}: {role} component sent a malformed message: {malformed}");
            None
        }
    }
}
