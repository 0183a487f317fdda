// SPDX-License-Identifier: MIT OR Apache-2.0
//! In which message word, at which bit, does each parameter of an invocation stand?

use crate::interface::{Method, Parameter};
use crate::types::{Transport, Types};

/// A place in a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Message register (the first one, if the value takes several).
    pub word: u32,
    /// Lowest bit in it.
    pub bit: u32,
    /// Number of bits.
    pub bits: u32,
}

/// Where the parameters of a method stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// Extra capabilities, in order.
    pub capabilities: Vec<&'a Parameter>,
    /// Values sent.
    pub inputs: Vec<(&'a Parameter, Transport, Place)>,
    /// Values returned.
    pub outputs: Vec<(&'a Parameter, Transport, Place)>,
}

impl Message<'_> {
    /// Number of message registers sent.
    pub fn input_words(&self) -> u32 {
        self.inputs
            .last()
            .map_or(0, |(_, _, place)| place.word + place.bits.div_ceil(64))
    }
}

/// Places the parameters of `method`: each at the next bit that is a multiple of its own size, as libsel4 does.
///
/// # Errors
/// The name of a type that is not known.
pub fn place<'a>(method: &'a Method, types: &Types<'_>) -> Result<Message<'a>, String> {
    let mut message = Message {
        capabilities: Vec::new(),
        inputs: Vec::new(),
        outputs: Vec::new(),
    };
    let (mut input_bits, mut output_bits) = (0, 0);
    for parameter in &method.parameters {
        let transport = types.transport(&parameter.kind);
        let transport = transport.ok_or_else(|| format!("type {} is not known", parameter.kind))?;
        let bits = match transport {
            Transport::Capability if !parameter.output => {
                message.capabilities.push(parameter);
                continue;
            }
            Transport::Capability | Transport::Bitfield => 64,
            Transport::Bool => 1,
            Transport::Integer(bits) => bits,
            Transport::Words(words) => words * 64,
        };
        let (list, used) = if parameter.output {
            (&mut message.outputs, &mut output_bits)
        } else {
            (&mut message.inputs, &mut input_bits)
        };
        let at = u32::next_multiple_of(*used, bits.min(64));
        *used = at + bits;
        list.push((
            parameter,
            transport,
            Place {
                word: at / 64,
                bit: at % 64,
                bits,
            },
        ));
    }
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bitfield::Bitfields;
    use crate::header::Declarations;
    use crate::interface::Interfaces;

    #[test]
    fn small_values_share_a_word_and_large_ones_start_a_new_one() {
        let declarations = Declarations {
            aliases: [
                ("seL4_Word", "unsigned long"),
                ("seL4_Uint8", "unsigned char"),
                ("seL4_CNode", "seL4_CPtr"),
            ]
            .map(|(name, kind)| (name.to_owned(), kind.to_owned()))
            .to_vec(),
            ..Declarations::default()
        };
        let interfaces = Interfaces {
            structs: vec![("regs".into(), vec!["a".into(); 3])],
            ..Interfaces::default()
        };
        let types = Types {
            declarations: &declarations,
            bitfields: &Bitfields::default(),
            interfaces: &interfaces,
        };
        let parameter = |kind: &str, output| Parameter {
            name: kind.to_owned(),
            kind: kind.to_owned(),
            output,
        };
        let method = Method {
            interface: "seL4_TCB".into(),
            name: "Test".into(),
            label_name: "TCBTest".into(),
            label: 1,
            parameters: vec![
                parameter("seL4_Bool", false),
                parameter("seL4_CNode", false),
                parameter("seL4_Uint8", false),
                parameter("seL4_Word", false),
                parameter("regs", true),
                parameter("seL4_Uint8", true),
            ],
        };
        let message = place(&method, &types).unwrap();
        let places = |list: &[(&Parameter, Transport, Place)]| {
            list.iter()
                .map(|(_, _, place)| (place.word, place.bit, place.bits))
                .collect::<Vec<_>>()
        };
        assert_eq!(places(&message.inputs), [(0, 0, 1), (0, 8, 8), (1, 0, 64)]);
        assert_eq!(places(&message.outputs), [(0, 0, 192), (3, 0, 8)]);
        assert_eq!((message.capabilities.len(), message.input_words()), (1, 2));

        let odd = Method {
            parameters: vec![parameter("strange", false)],
            ..method
        };
        assert_eq!(place(&odd, &types), Err("type strange is not known".to_owned()));
    }
}
