// SPDX-License-Identifier: MIT OR Apache-2.0
//! Do the inputs that the fuzzer has found interesting still pass?

use std::path::{Path, PathBuf};

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

/// A byte of two hexadecimal digits.
fn byte(digits: &[u8]) -> u8 {
    u8::from_str_radix(str::from_utf8(digits).unwrap(), 16).unwrap()
}

/// Runs every input of a target's corpus, and the beginnings of them.
#[test]
fn the_corpora_pass() {
    for (name, target) in umbra_fuzz::TARGETS {
        let file = corpus().join(name).with_extension("txt");
        let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        assert!(!text.is_empty(), "{} is empty", file.display());
        for line in text.lines() {
            println!("{name} {line}");
            let input: Vec<u8> = line.as_bytes().chunks(2).map(byte).collect();
            target(&input);
            target(&input[..input.len() / 2]);
        }
    }
}

/// Each corpus belongs to a target.
#[test]
fn every_corpus_has_a_target() {
    for entry in std::fs::read_dir(corpus()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        assert!(
            umbra_fuzz::TARGETS.iter().any(|(target, _)| *target == name),
            "{name} is no target"
        );
    }
}

/// Inputs without any structure, the same each time.
#[test]
fn arbitrary_bytes_pass() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        // xorshift64*
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
    };
    for (_, target) in umbra_fuzz::TARGETS {
        for _ in 0..500 {
            let length = next() as usize % 300;
            let input: Vec<u8> = (0..length).map(|_| next() as u8).collect();
            target(&input);
        }
    }
}
