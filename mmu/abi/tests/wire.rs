// SPDX-License-Identifier: MIT OR Apache-2.0
//! Does every message mean exactly one thing? Encodings decode to what was meant, and noise is refused.

use proptest::prelude::*;
use umbra_mmu_abi::wire::{MAX_WORDS, Malformed, Message};
use umbra_mmu_abi::*;

fn access() -> impl Strategy<Value = Access> {
    proptest::sample::select(&Access::ALL[..])
}

fn generation() -> impl Strategy<Value = Generation> {
    (0..1u32 << GENERATION_BITS).prop_map(Generation)
}

fn request() -> impl Strategy<Value = Request> {
    prop_oneof![
        (0..1u64 << GPA_BITS, access()).prop_map(|(gpa, access)| Request::Fault {
            gpa: Gpa::new(gpa),
            access
        }),
        (
            any::<u16>(),
            any::<u64>(),
            any::<u32>(),
            any::<u16>(),
            any::<u32>(),
            0..4u8
        )
            .prop_map(|(id, base, npages, backing, first_page, flags)| Request::SetSlot {
                id: SlotId(id),
                base: Gfn::new(base),
                npages,
                backing: Backing {
                    id: BackingId(backing),
                    first_page
                },
                flags: SlotFlags::from_bits(flags).unwrap(),
            }),
        Just(Request::ZapAll),
        Just(Request::Audit),
        proptest::sample::select(&Stat::ALL[..]).prop_map(Request::Stat),
    ]
}

fn reply() -> impl Strategy<Value = Reply> {
    prop_oneof![
        Just(Reply::Fault(FaultOutcome::Resume)),
        (0..1u64 << 40, generation(), any::<bool>()).prop_map(|(gfn, generation, readonly_slot)| {
            Reply::Fault(FaultOutcome::Emulate(Mmio {
                gfn: Gfn::new(gfn),
                generation,
                readonly_slot,
            }))
        }),
        generation().prop_map(Reply::Changed),
        proptest::sample::select(&SlotError::ALL[..]).prop_map(Reply::Refused),
        (any::<u32>(), any::<u32>()).prop_map(|(leaves, differences)| Reply::Audited { leaves, differences }),
        any::<u64>().prop_map(Reply::Stat),
        Just(Reply::Failed),
    ]
}

/// Noise that often comes close to a message: small labels, right lengths, words of few bits.
fn noise() -> impl Strategy<Value = Message> {
    let word = prop_oneof![any::<u64>(), 0..8u64, (0..64u32).prop_map(|bit| 1u64 << bit)];
    let label = prop_oneof![any::<u64>(), 0..9u64];
    (label, 0..=MAX_WORDS + 2, proptest::array::uniform4(word)).prop_map(|(label, len, words)| {
        let mut words = words;
        words.iter_mut().skip(len).for_each(|w| *w = 0);
        Message { label, len, words }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn every_request_survives_the_wire(request in request()) {
        let message = request.encode();
        prop_assert!(message.len <= MAX_WORDS);
        prop_assert!(message.words[message.len..].iter().all(|w| *w == 0));
        prop_assert_eq!(Request::decode(&message), Ok(request));
    }

    #[test]
    fn every_reply_survives_the_wire(reply in reply()) {
        let message = reply.encode();
        prop_assert!(message.words[message.len..].iter().all(|w| *w == 0));
        prop_assert_eq!(Reply::decode(&message), Ok(reply));
    }

    /// Refused, or the one message that encodes to these very words: no bit is ignored.
    #[test]
    fn noise_is_refused_or_exact(message in noise()) {
        if let Ok(request) = Request::decode(&message) {
            prop_assert_eq!(request.encode(), message);
        }
        if let Ok(reply) = Reply::decode(&message) {
            prop_assert_eq!(reply.encode(), message);
        }
    }
}

#[test]
fn an_empty_message_means_nothing() {
    assert_eq!(Request::decode(&Message::default()), Err(Malformed::Label(0)));
    assert_eq!(Reply::decode(&Message::default()), Err(Malformed::Label(0)));
}

#[test]
fn the_refusal_names_the_place() {
    let mut fault = Request::Fault {
        gpa: Gpa::new(0x1000),
        access: Access::Read,
    }
    .encode();
    fault.words[1] = 3;
    assert_eq!(
        Request::decode(&fault),
        Err(Malformed::Word {
            label: 1,
            index: 1,
            value: 3
        })
    );
    fault.len = 5;
    assert_eq!(Request::decode(&fault), Err(Malformed::Length { label: 1, len: 5 }));
    let mut beyond = Request::Fault {
        gpa: Gpa::new(0),
        access: Access::Read,
    }
    .encode();
    beyond.words[0] = 1 << GPA_BITS;
    assert_eq!(
        Request::decode(&beyond),
        Err(Malformed::Word {
            label: 1,
            index: 0,
            value: 1 << GPA_BITS
        })
    );
}
