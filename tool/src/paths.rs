// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where are the project's files and the folders that the tool writes?

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};

/// The project folder, and what is derived from it.
#[derive(Clone, Debug)]
pub struct Paths {
    root: PathBuf,
}

impl Paths {
    /// From `UMBRA_ROOT` (set by the `umbra` stub), else the nearest folder upwards that holds the workspace.
    pub fn find() -> Result<Self> {
        if let Some(root) = std::env::var_os("UMBRA_ROOT") {
            return Self::at(Path::new(&root));
        }
        let here = std::env::current_dir().context("the current folder")?;
        for folder in here.ancestors() {
            if folder.join("tool/Cargo.toml").is_file() && folder.join("root-task").is_dir() {
                return Self::at(folder);
            }
        }
        bail!(
            "not inside the project: {} and the folders above hold no tool/Cargo.toml",
            here.display()
        )
    }

    /// For a known project folder.
    pub fn at(root: &Path) -> Result<Self> {
        let root = root
            .canonicalize()
            .with_context(|| format!("the project folder {}", root.display()))?;
        Ok(Self { root })
    }

    /// The project folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Everything that is built: `target/`.
    pub fn target(&self) -> PathBuf {
        self.root.join("target")
    }

    /// Build folder of a kernel preset.
    pub fn kernel(&self, preset: &str) -> PathBuf {
        self.target().join("kernel").join(preset)
    }

    /// Output of steps, one file each.
    pub fn logs(&self) -> PathBuf {
        self.target().join("umbra/logs")
    }

    /// Images that the tool puts together.
    pub fn images(&self) -> PathBuf {
        self.target().join("umbra/images")
    }

    /// A folder for an image that only this process uses. What processes left behind that were killed goes.
    pub fn own_image(&self, label: &str) -> PathBuf {
        forget_images_of_the_dead(&self.images());
        self.images().join(format!("{label}.{}", std::process::id()))
    }

    /// A fresh folder for one run of a simulator, named for people: `label`, then the process and a counter.
    pub fn new_run(&self, label: &str) -> Result<PathBuf> {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let id = format!(
            "{label}-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let runs = self.target().join("run");
        forget_old_runs(&runs);
        let folder = runs.join(id);
        if folder.exists() {
            std::fs::remove_dir_all(&folder).with_context(|| format!("removing {}", folder.display()))?;
        }
        std::fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        Ok(folder)
    }
}

/// Run folders that are kept, the newest.
const KEPT_RUNS: usize = 60;

/// Removes the oldest folders. A simulator that still runs there keeps its open files; one that is this old is long over.
fn forget_old_runs(runs: &Path) {
    let Ok(entries) = std::fs::read_dir(runs) else { return };
    let mut folders: Vec<_> = entries
        .flatten()
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    folders.sort();
    let surplus = folders.len().saturating_sub(KEPT_RUNS);
    for (_, folder) in &folders[..surplus] {
        let _ = std::fs::remove_dir_all(folder);
    }
}

/// Removes folders of images whose process is gone.
fn forget_images_of_the_dead(images: &Path) {
    let Ok(entries) = std::fs::read_dir(images) else { return };
    for entry in entries.flatten() {
        let owner = entry.path().extension().and_then(|id| id.to_str()?.parse::<u32>().ok());
        if owner.is_some_and(|id| !Path::new(&format!("/proc/{id}")).exists()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Writes `content` unless the file holds it already (so that later steps see an unchanged time stamp).
/// Returns whether it wrote. The file is replaced at once: a reader sees the old or the new content.
pub fn write_if_changed(path: &Path, content: &[u8]) -> Result<bool> {
    if std::fs::read(path).is_ok_and(|old| old == content) {
        return Ok(false);
    }
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    }
    let draft = path.with_file_name(format!(
        ".{}.{}",
        path.file_name().unwrap_or_default().to_string_lossy(),
        std::process::id()
    ));
    std::fs::write(&draft, content).with_context(|| format!("writing {}", draft.display()))?;
    std::fs::rename(&draft, path).with_context(|| format!("writing {}", path.display()))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unchanged_content_keeps_the_time_stamp() {
        let folder = std::env::temp_dir().join(format!("umbra-paths-{}", std::process::id()));
        let file = folder.join("deep/file");
        assert!(write_if_changed(&file, b"one").unwrap());
        assert!(!write_if_changed(&file, b"one").unwrap());
        assert!(write_if_changed(&file, b"two").unwrap());
        assert_eq!(std::fs::read(&file).unwrap(), b"two");
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn only_images_of_processes_that_ended_go() {
        let root = std::env::temp_dir().join(format!("umbra-images-{}", std::process::id()));
        // Above the largest process id that Linux gives.
        let images = root.join("target/umbra/images");
        let (dead, shared) = (images.join("case.4194305"), images.join("suite"));
        std::fs::create_dir_all(&dead).unwrap();
        std::fs::create_dir_all(&shared).unwrap();
        let paths = Paths::at(&root).unwrap();
        let own = paths.own_image("case");
        std::fs::create_dir_all(&own).unwrap();
        paths.own_image("other");
        assert!(!dead.exists() && shared.exists() && own.exists());
        std::fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_folder_outside_the_project_is_refused() {
        assert!(Paths::at(Path::new("/nonexistent/umbra")).is_err());
    }
}
