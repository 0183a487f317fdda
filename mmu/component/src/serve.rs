// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is answered to the vmm? Each request is decoded, done by the core, and answered in at most four words.

use sel4::{Received, Word, cap};
use umbra_mmu_abi::wire::{MAX_WORDS, Message};
use umbra_mmu_abi::{FaultOutcome, Reply, Request};
use umbra_mmu_core::Mmu;
use umbra_mmu_core::change::ChangeError;
use umbra_mmu_core::fault::{Fault, Outcome};
use umbra_mmu_core::stage2::Stage2;
use umbra_mmu_core::vcpu::Vcpu;

/// Serves requests for ever.
pub fn serve<S: Stage2>(requests: cap::Endpoint, mmu: &Mmu<S>, vcpu: &mut Vcpu) -> ! {
    let mut received = requests.recv();
    loop {
        let reply = answer(mmu, vcpu, &message(&received)).encode();
        // One bounded batch of what zap-all left over: so much a vCPU may have to wait for.
        // REQ: ZAP-2
        if mmu.has_background_work() {
            mmu.background();
        }
        received = reply_recv(requests, &reply);
    }
}

/// Answers one message, whatever it is.
pub fn answer<S: Stage2>(mmu: &Mmu<S>, vcpu: &mut Vcpu, message: &Message) -> Reply {
    let request = match Request::decode(message) {
        Ok(request) => request,
        Err(malformed) => {
            log::warn!("refused: {malformed}");
            return Reply::Failed;
        }
    };
    match request {
        Request::Fault { gpa, access } => match mmu.fault(vcpu, &Fault::violation(gpa, access)) {
            Ok(Outcome::Resume) => Reply::Fault(FaultOutcome::Resume),
            Ok(Outcome::Emulate(mmio)) => Reply::Fault(FaultOutcome::Emulate(mmio)),
            // Nobody has asked for the frame: the system's owners of memory do not, yet.
            Ok(Outcome::Host(fault)) => {
                log::error!("{access:?} at {gpa}: {fault:?}");
                Reply::Failed
            }
            Ok(outcome @ (Outcome::EmulateTableWrite { .. } | Outcome::Reflect(_))) => {
                panic!("{outcome:?} at {gpa}: in EPT mode the guest's tables are its own business")
            }
            Err(error) => {
                log::error!("{access:?} at {gpa}: {error}");
                Reply::Failed
            }
        },
        Request::SetSlot {
            id,
            base,
            npages,
            backing,
            flags,
        } => match mmu.set_slot(id, base, npages, backing, flags) {
            Ok(generation) => Reply::Changed(generation),
            Err(error) => {
                log::warn!("slot {} at {}, {npages} pages: {error}", id.0, base.gpa());
                match error {
                    ChangeError::Refused(error) => Reply::Refused(error),
                    ChangeError::Stage2(_) => Reply::Failed,
                }
            }
        },
        Request::ZapAll => {
            mmu.zap_all();
            Reply::Changed(mmu.generation())
        }
        Request::Audit => {
            let audit = mmu.audit();
            if let Some(first) = audit.first {
                log::error!("audit: {} differences, the first: {first:x?}", audit.differences);
            }
            Reply::Audited {
                leaves: audit.leaves,
                differences: audit.differences,
            }
        }
        Request::Stat(stat) => Reply::Stat(mmu.stat(stat)),
    }
}

/// The message of the registers; words that were not sent are zero.
fn message(received: &Received) -> Message {
    let len = received.info.length();
    let mut words = received.mrs;
    for (n, word) in words.iter_mut().enumerate() {
        // Two instructions a word; a fill of a slice that the compiler does not know calls memset.
        *word = if n < len { *word } else { 0 };
    }
    Message {
        label: received.info.label(),
        len,
        words,
    }
}

fn reply_recv(requests: cap::Endpoint, reply: &Message) -> Received {
    const { assert!(MAX_WORDS == 4) };
    let Message {
        label,
        len,
        words: [a, b, c, d],
    } = *reply;
    let label: Word = label;
    match len {
        0 => requests.reply_recv_with_mrs(label, []),
        1 => requests.reply_recv_with_mrs(label, [a]),
        2 => requests.reply_recv_with_mrs(label, [a, b]),
        3 => requests.reply_recv_with_mrs(label, [a, b, c]),
        _ => requests.reply_recv_with_mrs(label, [a, b, c, d]),
    }
}
