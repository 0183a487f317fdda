// SPDX-License-Identifier: MIT OR Apache-2.0
//! Does nothing fail any more that failed once? Every script in `scripts/`, with an audit after each step.

use std::path::Path;
use umbra_model::machine::machine;
use umbra_model::run::replay;
use umbra_model::script::Script;

#[test]
fn every_script_replays() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts");
    let mut count = 0;
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let script: Script = std::fs::read_to_string(&path).unwrap().parse().unwrap();
        println!("{}", path.display());
        if let Err((at, failure)) = replay(&script, 1, machine(&script.header)) {
            panic!("{} fails at step {at}: {failure}", path.display());
        }
        count += 1;
    }
    assert!(count >= 5, "there are {count} scripts");
}
