// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which steps does a failure need? Delta debugging: steps go, the largest pieces first, while it fails the same way.

use crate::script::{Header, Script, Step};

/// The shortest script found that `fails` still, none of whose steps can go alone. `fails` is asked `tries` times at
/// the most.
pub fn shrink(script: &Script, tries: u32, mut fails: impl FnMut(&Script) -> bool) -> Script {
    let mut best = script.clone();
    let mut left = tries;
    let mut attempt = |best: &mut Script, candidate: Script| {
        left = left.saturating_sub(1);
        let better = left > 0 && fails(&candidate);
        if better {
            *best = candidate;
        }
        better
    };
    let mut piece = best.steps.len().div_ceil(2).max(1);
    loop {
        let mut at = best.steps.len();
        let mut shorter = false;
        // From the end: what comes late depends on what comes early.
        while at > 0 {
            let start = at.saturating_sub(piece);
            let mut steps = best.steps.clone();
            steps.drain(start..at.min(steps.len()));
            shorter |= attempt(
                &mut best,
                Script {
                    steps,
                    ..best_header(script)
                },
            );
            at = start.min(best.steps.len());
        }
        match (piece, shorter) {
            (1, false) => break,
            (1, true) => {}
            (_, _) => piece = piece.div_ceil(2),
        }
    }
    // Then each step as simple as it can be.
    for at in 0..best.steps.len() {
        for simple in simpler(&best.steps[at]) {
            let mut candidate = best.clone();
            candidate.steps[at] = simple;
            attempt(&mut best, candidate);
        }
    }
    best
}

fn best_header(script: &Script) -> Script {
    let Header::Machine { .. } = script.header;
    Script {
        header: script.header,
        steps: Vec::new(),
    }
}

/// Steps that say less.
fn simpler(step: &Step) -> Vec<Step> {
    use crate::oracle::Who::Supervisor;
    match *step {
        Step::Write {
            vcpu,
            gva,
            who,
            bytes,
            value,
        } => {
            let with = |vcpu, who, value| Step::Write {
                vcpu,
                gva,
                who,
                bytes,
                value,
            };
            vec![
                with(0, who, value),
                with(vcpu, Supervisor, value),
                with(vcpu, who, 0),
                with(vcpu, who, value & !0xf18),
            ]
        }
        Step::Read { gva, who, vcpu } => vec![
            Step::Read { vcpu: 0, gva, who },
            Step::Read {
                vcpu,
                gva,
                who: Supervisor,
            },
        ],
        Step::Fetch { vcpu, gva, who } => vec![Step::Read { vcpu, gva, who }],
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_failure_does_not_need_goes() {
        let header = "machine engine=ept paging=off vcpus=0x1 tables=0x10 generation=0x0"
            .parse()
            .unwrap();
        let limits = |range: core::ops::Range<u32>| range.map(|tables| Step::Limit { tables }).collect();
        let script = Script {
            header,
            steps: limits(0..1000),
        };
        let needed = [Step::Limit { tables: 17 }, Step::Limit { tables: 700 }];
        let mut asked = 0;
        let short = shrink(&script, 10_000, |script| {
            asked += 1;
            needed.iter().all(|step| script.steps.contains(step))
        });
        assert_eq!(short.steps, needed);
        assert!(asked < 200, "{asked}");
    }
}
