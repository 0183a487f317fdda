// SPDX-License-Identifier: MIT OR Apache-2.0
//! What are a guest's files? `prepare CACHE-FOLDER OUT-FOLDER GUEST…` makes them.

use anyhow::Result;
use std::path::Path;
use umbra_images::guests::Images;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [cache, out, names @ ..] = arguments.as_slice() else {
        anyhow::bail!("usage: prepare CACHE-FOLDER OUT-FOLDER GUEST...");
    };
    let images = Images::open(Images::own_folder(), Path::new(cache))?;
    for name in names {
        let guest = images.prepare(name, &Path::new(out).join(name), &|step| eprintln!("{name}: {step}"))?;
        println!("{guest:#?}");
    }
    Ok(())
}
