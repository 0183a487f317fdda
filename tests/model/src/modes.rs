// SPDX-License-Identifier: MIT OR Apache-2.0
//! On which machines does the model run? Every paging mode above an EPT and above shadow tables.

use crate::oracle::Paging;
use crate::run::Plan;
use crate::script::{Engine, Header};

/// A mode of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    /// Its name on the command line.
    pub name: &'static str,
    /// Of the MMU.
    pub engine: Engine,
    /// In which the guest's processors start.
    pub paging: Paging,
}

impl Mode {
    /// Every mode.
    pub const ALL: [Self; 10] = [
        Self::new("ept-off", Engine::Ept, Paging::Off),
        Self::new("ept-two-level", Engine::Ept, Paging::TwoLevel),
        Self::new("ept-pae", Engine::Ept, Paging::Pae),
        Self::new("ept-four-level", Engine::Ept, Paging::FourLevel),
        Self::new("ept-five-level", Engine::Ept, Paging::FiveLevel),
        Self::new("shadow-off", Engine::Shadow, Paging::Off),
        Self::new("shadow-two-level", Engine::Shadow, Paging::TwoLevel),
        Self::new("shadow-pae", Engine::Shadow, Paging::Pae),
        Self::new("shadow-four-level", Engine::Shadow, Paging::FourLevel),
        Self::new("shadow-five-level", Engine::Shadow, Paging::FiveLevel),
    ];

    const fn new(name: &'static str, engine: Engine, paging: Paging) -> Self {
        Self { name, engine, paging }
    }

    /// The mode of a name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.name == name)
    }

    /// Machines of this mode: the generation is about to wrap, and tables are as few as scripts can do with.
    pub const fn plan(self, seed: u64, steps: u64) -> Plan {
        Plan {
            header: Header::Machine {
                engine: self.engine,
                paging: self.paging,
                vcpus: 3,
                tables: match self.engine {
                    Engine::Ept => 32,
                    Engine::Shadow => 64,
                },
                generation: 0x7fff0,
            },
            seed,
            steps,
            length: 10_000,
            audit_every: 500,
        }
    }
}
