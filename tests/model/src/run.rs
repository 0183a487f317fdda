// SPDX-License-Identifier: MIT OR Apache-2.0
//! How are many steps run, and what is left of a failure? Scripts that fail are kept, and shrunk.

use crate::generate::Generator;
use crate::script::{Header, Script, Step};
use crate::shrink::shrink;
use crate::world::{Ended, Failure, Machine, World};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs a script as it is.
///
/// # Errors
/// What failed; the last step run was `steps[failure.0]`.
pub fn replay<M: Machine>(script: &Script, audit_every: u64, machine: M) -> Result<(), (usize, Failure)> {
    let mut world = World::new(&script.header, machine, audit_every).map_err(|failure| (0, failure))?;
    for (at, step) in script.steps.iter().enumerate() {
        world.step(step).map_err(|failure| (at, failure))?;
    }
    let last = script.steps.len().saturating_sub(1);
    world.audit_all().map_err(|failure| (last, failure))
}

/// The same, where a panic is a failure too: `None` if nothing fails.
pub fn failure_of<M: Machine>(
    script: &Script,
    audit_every: u64,
    machine: impl FnOnce() -> M,
) -> Option<(usize, Failure)> {
    let run = AssertUnwindSafe(|| replay(script, audit_every, machine()));
    match catch_unwind(run) {
        Ok(result) => result.err(),
        Err(payload) => Some((script.steps.len().saturating_sub(1), panicked(&*payload))),
    }
}

fn panicked(payload: &(dyn std::any::Any + Send)) -> Failure {
    let text = payload.downcast_ref::<String>().cloned();
    let text = text.or_else(|| payload.downcast_ref::<&str>().map(|text| text.to_string()));
    Failure::new("panic", text.unwrap_or_default())
}

/// What a run did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Steps.
    pub steps: u64,
    /// Accesses, of all steps.
    pub accesses: u64,
    /// How they ended.
    pub ended: Ended,
    /// Slot changes and other steps of the host.
    pub host: u64,
}

impl Summary {
    fn count(&mut self, step: &Step) {
        self.steps += 1;
        match step {
            Step::Read { .. } | Step::Write { .. } | Step::Fetch { .. } => self.accesses += 1,
            Step::Load { .. } | Step::Invlpg { .. } => {}
            Step::Slot { .. }
            | Step::TakeLog { .. }
            | Step::ReadLog { .. }
            | Step::ClearLog { .. }
            | Step::Device { .. }
            | Step::Age { .. }
            | Step::InvalidateStart { .. }
            | Step::InvalidateEnd {}
            | Step::Reclaim { .. }
            | Step::Protect { .. }
            | Step::SplitForLog { .. }
            | Step::Split { .. }
            | Step::Collapse { .. }
            | Step::Limit { .. }
            | Step::Shrink { .. }
            | Step::ZapAll {}
            | Step::Background {} => self.host += 1,
        }
    }
}

/// Random runs of one machine: `steps` in all, a fresh machine after each `length` of them.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// The machine.
    pub header: Header,
    /// The seed of the first run; the others follow.
    pub seed: u64,
    /// Steps in all.
    pub steps: u64,
    /// Steps of one machine: failures are found in scripts of this length at most.
    pub length: u64,
    /// Audits are so many steps apart.
    pub audit_every: u64,
}

/// A failure and the shortest script for it that was found.
#[derive(Clone, Debug)]
pub struct Found {
    /// The failure of the short script.
    pub failure: Failure,
    /// The seed of its run.
    pub seed: u64,
    /// The script.
    pub script: Script,
}

impl Plan {
    /// Runs until something fails.
    ///
    /// # Errors
    /// The failure, shrunk with at most `tries` replays.
    pub fn run<M: Machine>(&self, tries: u32, machine: impl Fn() -> M) -> Result<Summary, Box<Found>> {
        self.run_noting(&mut |_, _| {}, tries, machine)
    }

    /// The same, with a call of `note` before each machine starts and before each step, with the machine's seed.
    ///
    /// # Errors
    /// The failure, shrunk with at most `tries` replays.
    pub fn run_noting<M: Machine>(
        &self,
        note: &mut dyn FnMut(u64, Option<&Step>),
        tries: u32,
        machine: impl Fn() -> M,
    ) -> Result<Summary, Box<Found>> {
        let mut summary = Summary::default();
        let mut seed = self.seed;
        while summary.steps < self.steps {
            let length = self.length.min(self.steps - summary.steps);
            let mut script = Script {
                header: self.header,
                steps: Vec::new(),
            };
            note(seed, None);
            let mut count = |step: &Step| {
                script.steps.push(*step);
                summary.count(step);
                note(seed, Some(step));
            };
            let run = AssertUnwindSafe(|| self.once(seed, length, &mut count, machine()));
            let failed = match catch_unwind(run) {
                Ok(result) => {
                    summary.ended = summary.ended.and(result.as_ref().copied().unwrap_or_default());
                    result.err()
                }
                Err(payload) => Some(panicked(&*payload)),
            };
            if let Some(failure) = failed {
                return Err(Box::new(self.found(failure, seed, script, tries, &machine)));
            }
            seed = seed.wrapping_add(1);
        }
        Ok(summary)
    }

    fn once<M: Machine>(
        &self,
        seed: u64,
        length: u64,
        count: &mut dyn FnMut(&Step),
        machine: M,
    ) -> Result<Ended, Failure> {
        let mut generator = Generator::new(&self.header, seed);
        let mut world = World::new(&self.header, machine, self.audit_every)?;
        for _ in 0..length {
            let step = generator.next(&world.guest);
            count(&step);
            world.step(&step)?;
        }
        world.audit_all()?;
        Ok(world.ended)
    }

    fn found<M: Machine>(
        &self,
        failure: Failure,
        seed: u64,
        script: Script,
        tries: u32,
        machine: &impl Fn() -> M,
    ) -> Found {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        // An audit after each step tells where it begins; without, only when it shows.
        let every = |script: &Script| if script.steps.len() < 200 { 1 } else { self.audit_every };
        let again = |script: &Script| failure_of(script, every(script), machine);
        let same = |script: &Script| again(script).is_some_and(|(_, other)| other.kind == failure.kind);
        let script = shrink(&script, tries, same);
        let failure = again(&script).map_or(failure, |(_, failure)| failure);
        std::panic::set_hook(hook);
        Found { failure, seed, script }
    }
}
