// SPDX-License-Identifier: MIT OR Apache-2.0
//! Are the simulated processors right, without any MMU? Else nothing that they test is.

use umbra_model::machine::flat::Flat;
use umbra_model::oracle::Paging;
use umbra_model::run::Plan;
use umbra_model::script::{Engine, Header};

fn run(paging: Paging) {
    let plan = Plan {
        header: Header::Machine {
            engine: Engine::Ept,
            paging,
            vcpus: 3,
            tables: 64,
            generation: 0,
        },
        seed: 77,
        steps: 200_000,
        length: 20_000,
        audit_every: 1000,
    };
    let start = std::time::Instant::now();
    match plan.run(3000, || Flat::new(3, Flat::model())) {
        Ok(summary) => println!("{paging:?}: {summary:?} {:?}", start.elapsed()),
        Err(found) => panic!("{}\n{}", found.failure, found.script),
    }
}

#[test]
fn without_paging() {
    run(Paging::Off);
}

#[test]
fn with_two_levels() {
    run(Paging::TwoLevel);
}

#[test]
fn with_pae() {
    run(Paging::Pae);
}

#[test]
fn with_four_levels() {
    run(Paging::FourLevel);
}

#[test]
fn with_five_levels() {
    run(Paging::FiveLevel);
}
