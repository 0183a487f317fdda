// SPDX-License-Identifier: MIT OR Apache-2.0
//! Does the guest see a processor, whatever it and the host do? Random steps in every mode.

use umbra_model::machine::machine;
use umbra_model::modes::Mode;

const STEPS: u64 = 200_000;

fn run(name: &str) {
    let plan = Mode::named(name).unwrap().plan(1, STEPS);
    let start = std::time::Instant::now();
    match plan.run(3000, || machine(&plan.header)) {
        Ok(summary) => println!("{name}: {summary:?} {:?}", start.elapsed()),
        Err(found) => panic!("{}\n{}", found.failure, found.script),
    }
}

macro_rules! modes {
    ($($name:ident: $mode:literal;)*) => { $(
        #[test]
        fn $name() {
            run($mode);
        }
    )* };
}

modes! {
    ept_without_paging: "ept-off";
    ept_two_levels: "ept-two-level";
    ept_pae: "ept-pae";
    ept_four_levels: "ept-four-level";
    ept_five_levels: "ept-five-level";
    shadow_without_paging: "shadow-off";
    shadow_two_levels: "shadow-two-level";
    shadow_pae: "shadow-pae";
    shadow_four_levels: "shadow-four-level";
    shadow_five_levels: "shadow-five-level";
}
