// SPDX-License-Identifier: MIT OR Apache-2.0
//! How is the kernel built? By CMake, with a preset.

use super::Builder;
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A kernel that was built.
#[derive(Clone, Debug)]
pub struct Kernel {
    folder: PathBuf,
    preset: String,
}

impl Kernel {
    /// The preset's name.
    pub fn preset(&self) -> &str {
        &self.preset
    }

    /// Its build folder, which the `sel4-sys` crate reads.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The kernel as ELF64, for the disk image's loader.
    pub fn elf(&self) -> PathBuf {
        self.folder.join("kernel.elf")
    }

    /// The kernel as ELF32, for multiboot loaders.
    pub fn elf32(&self) -> PathBuf {
        self.folder.join("kernel32.elf")
    }
}

/// Builds the kernel of `preset`, as far as it is not up to date.
pub fn build(builder: &Builder, preset: &str) -> Result<Kernel> {
    let _turn = builder.turn()?;
    let folder = builder.paths.kernel(preset);
    let root = builder.paths.root();
    forget_if_moved(&folder)?;
    // Ninja configures again by itself when the CMake files or presets' values in the cache are out of date; a changed
    // preset is not noticed by it.
    let stamp = folder.join(".umbra-presets");
    let presets = std::fs::read(root.join("CMakePresets.json")).context("reading CMakePresets.json")?;
    if !folder.join("build.ninja").exists() || std::fs::read(&stamp).ok().as_deref() != Some(&presets[..]) {
        let mut configure = Command::new("cmake");
        configure.args(["--preset", preset]).current_dir(root);
        builder
            .steps
            .run(&format!("configuring the {preset} kernel"), &mut configure)?;
        std::fs::write(&stamp, &presets).with_context(|| format!("writing {}", stamp.display()))?;
    }
    let mut make = Command::new("cmake");
    make.args(["--build", "--preset", preset]).current_dir(root);
    builder.steps.run(&format!("building the {preset} kernel"), &mut make)?;
    let kernel = Kernel {
        folder,
        preset: preset.to_owned(),
    };
    for file in [kernel.elf(), kernel.elf32()] {
        ensure!(file.is_file(), "the kernel's build did not make {}", file.display());
    }
    Ok(kernel)
}

/// Removes a build folder that came here with a copied or renamed project folder: its files name the old place, and
/// CMake would refuse it or build over there.
fn forget_if_moved(folder: &Path) -> Result<()> {
    let Ok(cache) = std::fs::read_to_string(folder.join("CMakeCache.txt")) else {
        return Ok(());
    };
    let made_for = cache
        .lines()
        .find_map(|line| line.strip_prefix("CMAKE_CACHEFILE_DIR:INTERNAL="));
    let real = |place: &Path| place.canonicalize().ok();
    if made_for.and_then(|place| real(Path::new(place))) != real(folder) {
        std::fs::remove_dir_all(folder).with_context(|| format!("removing {}", folder.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_build_folder_from_another_place_goes() {
        let folder = std::env::temp_dir().join(format!("umbra-kernel-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let cache = |place: &Path| {
            let text = format!("# CMake\nCMAKE_CACHEFILE_DIR:INTERNAL={}\n", place.display());
            std::fs::write(folder.join("CMakeCache.txt"), text).unwrap();
        };
        forget_if_moved(&folder).unwrap();
        cache(&folder);
        forget_if_moved(&folder).unwrap();
        assert!(folder.exists(), "it belongs here");
        cache(Path::new("/old/umbra/target/kernel/vtx"));
        forget_if_moved(&folder).unwrap();
        assert!(!folder.exists());
    }
}
