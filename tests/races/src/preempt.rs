// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which interleavings of many steps are tried? All with few preemptions, in a fixed order.
//!
//! A fault takes some hundred steps, so all interleavings of two of them are out of reach. Most races need one thread to
//! be stopped at the wrong place, once or twice: every such place is tried. A thread that waits, yields or ends is no
//! preemption; who goes on then is tried in every way too.

use shuttle::scheduler::{Schedule, Scheduler, Task, TaskId};
use std::sync::{Arc, Mutex};

/// At a step, another thread than usual.
type Turn = (usize, usize);

/// Which threads are stopped where they did not ask for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// Any of them.
    All,
    /// The first that the model started: for races in which the other one takes very many steps.
    First,
}

/// A run to do.
#[derive(Clone, Default)]
struct Plan {
    turns: Vec<Turn>,
    preemptions: usize,
}

/// Depth first over all plans.
pub struct Preemptions {
    stopped: Stopped,
    bound: usize,
    /// Runs with one preemption more, chosen at random, for each run that has all that the bound allows.
    more: usize,
    random: u64,
    open: Vec<Plan>,
    now: Plan,
    /// Turns that the run could have taken, and what it would have paid.
    missed: Vec<(Turn, usize)>,
    step: usize,
    started: bool,
    /// Runs so far.
    pub runs: Arc<Mutex<usize>>,
}

impl Preemptions {
    /// All runs with `bound` preemptions at most, and `more` that have one more for each of them.
    pub fn new(stopped: Stopped, bound: usize, more: usize) -> Self {
        Self {
            stopped,
            bound,
            more,
            random: 0x9e37_79b9_7f4a_7c15,
            open: vec![Plan::default()],
            now: Plan::default(),
            missed: Vec::new(),
            step: 0,
            started: false,
            runs: Arc::default(),
        }
    }

    fn random(&mut self, below: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random % below as u64) as usize
    }

    fn with(&self, (turn, cost): (Turn, usize)) -> Plan {
        let mut plan = self.now.clone();
        plan.turns.push(turn);
        plan.preemptions += cost;
        plan
    }

    /// The run has ended: what it could have done otherwise is open.
    fn branch(&mut self) {
        let missed = std::mem::take(&mut self.missed);
        let left = self.bound.saturating_sub(self.now.preemptions);
        let (cheap, dear): (Vec<_>, Vec<_>) = missed.into_iter().partition(|(_, cost)| *cost <= left);
        if self.now.preemptions <= self.bound {
            for turn in cheap {
                self.open.push(self.with(turn));
            }
            for _ in 0..self.more {
                if !dear.is_empty() {
                    let one = dear[self.random(dear.len())];
                    self.open.push(self.with(one));
                }
            }
        }
    }
}

impl Scheduler for Preemptions {
    fn new_execution(&mut self) -> Option<Schedule> {
        if std::mem::replace(&mut self.started, true) {
            self.branch();
        }
        self.now = self.open.pop()?;
        self.step = 0;
        *self.runs.lock().unwrap() += 1;
        Some(Schedule::new(0))
    }

    fn next_task(&mut self, runnable: &[&Task], current: Option<TaskId>, yields: bool) -> Option<TaskId> {
        let step = self.step;
        self.step += 1;
        if let [only] = runnable {
            return Some(only.id());
        }
        let ids: Vec<usize> = runnable.iter().map(|task| task.id().into()).collect();
        let current: Option<usize> = current.map(usize::from);
        let goes_on = current.is_some_and(|current| ids.contains(&current)) && !yields;
        let usual = match current {
            Some(current) if goes_on => current,
            // The next one in a circle.
            Some(current) => *ids.iter().find(|id| **id > current).unwrap_or(&ids[0]),
            None => ids[0],
        };
        let chosen = match self.now.turns.iter().find(|(at, _)| *at == step) {
            Some((_, task)) => *task,
            None => usual,
        };
        let may_stop = match self.stopped {
            Stopped::All => true,
            // Task 0 is the model itself.
            Stopped::First => !goes_on || current == Some(1),
        };
        if may_stop && self.now.turns.last().is_none_or(|(at, _)| *at < step) {
            let cost = usize::from(goes_on || yields);
            let others = ids.iter().filter(|id| **id != chosen);
            self.missed.extend(others.map(|id| ((step, *id), cost)));
        }
        Some(chosen.into())
    }

    fn next_u64(&mut self) -> u64 {
        unreachable!("models make no random choices")
    }
}
