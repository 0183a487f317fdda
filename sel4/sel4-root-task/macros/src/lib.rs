// SPDX-License-Identifier: MIT OR Apache-2.0
//! What does `#[root_task]` add to a function?

use proc_macro::{TokenStream, TokenTree};

/// Makes a function `fn(&BootInfoPtr) -> !` the entry of a root task. Arguments, both optional:
/// `stack_size = BYTES` (64 KiB), `heap_size = BYTES` (0).
#[proc_macro_attribute]
pub fn root_task(arguments: TokenStream, function: TokenStream) -> TokenStream {
    let mut tokens = function.clone().into_iter();
    let name = loop {
        match tokens.next() {
            Some(TokenTree::Ident(word)) if word.to_string() == "fn" => break tokens.next(),
            Some(_) => {}
            None => break None,
        }
    };
    let Some(TokenTree::Ident(name)) = name else {
        return "compile_error!(\"#[root_task] belongs on a function\");"
            .parse()
            .unwrap_or_default();
    };
    let call = format!("::sel4_root_task::declare_root_task! {{ main = {name}, {arguments} }}");
    let call: TokenStream = match call.parse() {
        Ok(call) => call,
        Err(error) => {
            return format!("compile_error!({:?});", error.to_string())
                .parse()
                .unwrap_or_default();
        }
    };
    function.into_iter().chain(call).collect()
}
