// SPDX-License-Identifier: MIT OR Apache-2.0
//! What does the MMU's core cost? Instructions counted by valgrind, bytes counted by an allocator: exact and repeatable.
//!
//! `cargo run --release -p umbra-bench` counts every case and compares it with its budget; `-- growth` adds how costs
//! grow (minutes), and `-- write FOLDER` does both and writes the table and the plots. The hardware below does nothing,
//! so that only the core counts. The exit status is 1 where something is above its budget.

mod cases;
mod count;
mod memory;
mod plot;
mod report;
mod scaling;
mod shadow;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["--case", name] => return run_case(name),
        ["--growth", name, at] => return run_growth(name, at),
        [] => report::budgets(),
        ["growth"] => report::budgets().and_then(|mut report| {
            report.grow()?;
            Ok(report)
        }),
        ["write", folder] => report::write(folder.as_ref()),
        _ => Err("usage: umbra-bench [growth | write FOLDER]".to_owned()),
    };
    match result {
        Ok(report) => {
            print!("{}", report.text());
            ExitCode::from(u8::from(!report.within()))
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

/// One case, for valgrind.
fn run_case(name: &str) -> ExitCode {
    let case = cases::CASES
        .iter()
        .chain(shadow::CASES)
        .find(|case| case.name == name)
        .expect("a case");
    (case.run)(case.count);
    ExitCode::SUCCESS
}

/// One point of a growth, for valgrind.
fn run_growth(name: &str, at: &str) -> ExitCode {
    let growth = scaling::GROWTH
        .iter()
        .find(|growth| growth.name == name)
        .expect("a growth");
    (growth.run)(at.parse().expect("a number"), growth.count);
    ExitCode::SUCCESS
}
