// SPDX-License-Identifier: MIT OR Apache-2.0
//! How do requests reach the mmu component? One call of at most four words each, which the kernel's fast path carries.

use sel4::{MessageInfo, cap};
use umbra_mmu_abi::wire::{Malformed, Message};
use umbra_mmu_abi::{Reply, Request};
use umbra_vmm_core::mmu_client::MmuTransport;

/// The endpoint to this VM's mmu.
pub struct MmuEndpoint(pub cap::Endpoint);

impl MmuTransport for MmuEndpoint {
    type Error = Malformed;

    fn call(&mut self, request: Request) -> Result<Reply, Malformed> {
        let message = request.encode();
        let answer = self
            .0
            .call_with_first(MessageInfo::new(message.label, message.len), message.words);
        let len = answer.info.length();
        let mut words = answer.mrs;
        for (n, word) in words.iter_mut().enumerate() {
            // Two instructions a word; a fill of a slice that the compiler does not know calls memset.
            *word = if n < len { *word } else { 0 };
        }
        Reply::decode(&Message {
            label: answer.info.label(),
            len,
            words,
        })
    }
}
