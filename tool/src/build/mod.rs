// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is built, from which sources, in which order?

pub mod description;
pub mod image;
pub mod kernel;
pub mod program;
pub mod spec;

pub use crate::paths::write_if_changed;
pub use kernel::Kernel;

use crate::paths::Paths;
use crate::step::Steps;

/// What every build step needs.
#[derive(Clone, Debug)]
pub struct Builder {
    /// Where everything is.
    pub paths: Paths,
    /// Where steps are shown.
    pub steps: Steps,
}

impl Builder {
    /// For the project at `paths`.
    pub fn new(paths: Paths) -> Self {
        let steps = Steps::new(&paths);
        Self { paths, steps }
    }
}
