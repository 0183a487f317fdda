// SPDX-License-Identifier: MIT OR Apache-2.0
//! How is a disk image made by hand? `mkdisk OUT-FOLDER KERNEL ROOT-TASK CMDLINE [PAYLOAD]` writes disk.img and rom.bin.

use anyhow::{Context, Result, bail};
use std::{fs, path::Path};
use umbra_images::{disk::BootImage, loader::Loader};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (out, kernel, root_task, cmdline, payload) = match arguments.as_slice() {
        [out, kernel, root, cmdline] => (out, kernel, root, cmdline, None),
        [out, kernel, root, cmdline, payload] => (out, kernel, root, cmdline, Some(payload)),
        _ => bail!("usage: mkdisk OUT-FOLDER KERNEL ROOT-TASK CMDLINE [PAYLOAD]"),
    };
    let read = |name: &String| fs::read(name).with_context(|| name.clone());
    let (kernel, root_task) = (read(kernel)?, read(root_task)?);
    let payload = payload.map(read).transpose()?.unwrap_or_default();
    let loader = Loader::assemble(Path::new(out))?;
    let image = BootImage {
        kernel: &kernel,
        root_task: &root_task,
        payload: &payload,
        payload_paddr: 32 << 20,
        cmdline,
    };
    let disk = image.build(&loader)?;
    fs::write(Path::new(out).join("disk.img"), &disk.bytes)?;
    fs::write(Path::new(out).join("rom.bin"), &loader.option_rom)?;
    println!(
        "cylinders={} module={:#x?} hole={:#x?}",
        disk.cylinders, disk.module, disk.hole
    );
    Ok(())
}
