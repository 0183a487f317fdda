// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where the root task's own bundle is, and what it must contain.

use core::fmt;
use sel4::BootInfo;
use umbra_description::{
    System,
    bundle::{Bundle, BundleError},
    layout,
};

/// Name of the entry that says what to build.
pub const SYSTEM: &str = "system";
/// Name of the entry that the audit compares with, if it shall be another one than [`SYSTEM`].
pub const POLICY: &str = "policy";

unsafe extern "C" {
    /// The end of the linked program.
    static _end: u8;
}

/// Why there is no system to build.
#[derive(Clone, Copy, Debug)]
pub enum Problem {
    /// Nothing was attached to the root task.
    Nothing,
    /// What was attached is no bundle, or lacks an entry, or an entry is corrupt.
    Bundle(BundleError<'static>),
    /// This entry is no system description, or of another version of the program.
    Description(&'static str),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("no bundle is attached to the root task"),
            Self::Bundle(error) => error.fmt(f),
            Self::Description(name) => write!(f, "the bundle's entry '{name}' is no description of this version"),
        }
    }
}

impl From<BundleError<'static>> for Problem {
    fn from(error: BundleError<'static>) -> Self {
        Self::Bundle(error)
    }
}

/// The bundle behind the program.
pub fn open(bootinfo: &BootInfo) -> Result<Bundle<'static>, Problem> {
    let start = layout::bundle_vaddr((&raw const _end) as u64);
    // The kernel puts the IPC buffer on the page behind the image.
    let end = bootinfo.ipc_buffer().expose_provenance() as u64;
    let len = end.checked_sub(start).filter(|&len| len > 0).ok_or(Problem::Nothing)?;
    // SAFETY: the kernel maps all pages of the image, which goes on to the IPC buffer; nothing of the program is behind
    // its end, and nobody writes there.
    let bytes =
        unsafe { core::slice::from_raw_parts(core::ptr::with_exposed_provenance::<u8>(start as usize), len as usize) };
    Ok(Bundle::new(bytes)?)
}

/// The description in the entry `name`.
pub fn description(bundle: &Bundle<'static>, name: &'static str) -> Result<System, Problem> {
    let bytes = bundle.find(name)?.verify()?;
    postcard::from_bytes(bytes).map_err(|_| Problem::Description(name))
}

/// The description that the audit compares with.
pub fn policy(bundle: &Bundle<'static>) -> Result<Option<System>, Problem> {
    match bundle.find(POLICY) {
        Ok(_) => description(bundle, POLICY).map(Some),
        Err(_) => Ok(None),
    }
}
