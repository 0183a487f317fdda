// SPDX-License-Identifier: MIT OR Apache-2.0
//! Do the inputs that the fuzzer has found interesting still pass?

use std::path::Path;

/// Runs every file of a target's corpus, and the beginnings of them.
#[test]
fn the_corpora_pass() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for (name, target) in umbra_fuzz::TARGETS {
        let folder = corpus.join(name);
        let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        files.sort();
        assert!(!files.is_empty(), "{} is empty", folder.display());
        for file in &files {
            println!("{}", file.display());
            let input = std::fs::read(file).unwrap();
            target(&input);
            for length in [input.len() / 4, input.len() / 2, input.len().saturating_sub(1)] {
                target(&input[..length]);
            }
        }
    }
}

/// Each folder of inputs belongs to a target.
#[test]
fn every_corpus_has_a_target() {
    for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
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
        for _ in 0..2000 {
            let length = next() as usize % 300;
            let input: Vec<u8> = (0..length).map(|_| next() as u8).collect();
            target(&input);
        }
    }
}
