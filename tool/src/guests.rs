// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which guests are there, and how do their files become part of a system?

use crate::build::Builder;
use crate::build::program::read;
use crate::build::spec::Guest;
use anyhow::{Context, Result};
use std::sync::{Mutex, PoisonError};
use umbra_images::guests::Images;

/// The guest of `umbra run`.
pub const DEFAULT: &str = "debian-amd64";

fn images(builder: &Builder) -> Result<Images> {
    Images::open(
        &builder.paths.root().join("images"),
        &builder.paths.target().join("umbra/cache"),
    )
}

/// Gets the files of the guest `name`: from the cache, from its packages, or by building them.
pub fn load(builder: &Builder, name: &str, plain: bool) -> Result<Guest> {
    // Cases run side by side and may want the same guest.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let images = images(builder)?;
    let folder = builder.paths.target().join("umbra/guests").join(name);
    let prepared = builder.steps.work(&format!("preparing the guest {name}"), |shown| {
        images.prepare(name, &folder, &|step| shown.progress(step))
    })?;
    for notice in &prepared.notices {
        eprintln!("umbra: NOTICE: {notice}");
    }
    let modules = prepared
        .modules
        .iter()
        .map(|(path, cmdline)| Ok((read(path)?, cmdline.clone())));
    Ok(Guest {
        name: prepared.name,
        kernel: read(&prepared.kernel)?,
        initrd: prepared.initrd.as_deref().map(read).transpose()?,
        modules: modules.collect::<Result<_>>()?,
        cmdline: if plain { prepared.plain } else { prepared.tuned },
        memory: format!("{}K", prepared.memory >> 10),
        prompt: Some(prepared.prompt),
        test_exit: false,
    })
}

/// Prints the guests.
pub fn list(builder: &Builder) -> Result<()> {
    let images = images(builder)?;
    let manifest = images.manifest();
    let width = manifest.guests.keys().map(String::len).max().unwrap_or(0);
    for (name, guest) in &manifest.guests {
        let mark = if *name == manifest.default { " (default)" } else { "" };
        println!("{name:width$}  {}{mark}", guest.about);
    }
    manifest
        .guests
        .get(DEFAULT)
        .context("the default guest is not in the manifest")
        .map(drop)
}
