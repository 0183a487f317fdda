// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is a test, where can it run, and how does it fail?

use crate::world::World;
use alloc::format;
use alloc::string::String;
use core::fmt;

/// Why a test failed.
pub struct Failure(pub String);

impl From<sel4::Error> for Failure {
    fn from(error: sel4::Error) -> Self {
        Self(format!("the kernel refused: {error}"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a test returns.
pub type Outcome = Result<(), Failure>;

/// Ends the test unless a condition holds.
#[macro_export]
macro_rules! check {
    ($condition:expr, $($why:tt)*) => {
        if !$condition {
            return Err($crate::test::Failure(alloc::format!($($why)*)));
        }
    };
}

/// What the machine must have for a test.
#[derive(Clone, Copy)]
pub enum Needs {
    /// Anything will do.
    Nothing,
    /// VT-x.
    Vtx,
    /// No VT-x.
    NoVtx,
}

/// A test.
pub struct Test {
    /// Its name: what must hold.
    pub name: &'static str,
    /// Where it can run.
    pub needs: Needs,
    /// The test.
    pub body: fn(&mut World) -> Outcome,
}

impl Test {
    /// A test of VCPUs and EPTs.
    pub const fn vtx(name: &'static str, body: fn(&mut World) -> Outcome) -> Self {
        let needs = Needs::Vtx;
        Self { name, needs, body }
    }

    /// A test for every machine.
    pub const fn any(name: &'static str, body: fn(&mut World) -> Outcome) -> Self {
        let needs = Needs::Nothing;
        Self { name, needs, body }
    }
}
