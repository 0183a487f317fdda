// SPDX-License-Identifier: MIT OR Apache-2.0
//! How does a guest of the manifest become files to boot? Its packages are fetched, checked and opened; its initial RAM
//! disk is packed. What was made once is kept.

use crate::{
    apt::Apt,
    compact::compact,
    cpio::Archive,
    deb,
    fetch::{Fetched, fetch},
    manifest::{Form, Guest, Initramfs, Manifest},
    nasm::assemble,
    test_guests::{TestGuest, build_test_guest, test_guests},
    vmlinux::extract,
};
use anyhow::{Context, Result, anyhow, bail};
use std::{
    collections::BTreeMap,
    fs,
    io::Read,
    path::{Path, PathBuf},
};

/// Part of the names of files that are kept: raise it when what is made of a package changes.
const MADE_BY: u32 = 1;

/// Guests and where they are kept.
pub struct Images {
    manifest: Manifest,
    /// Folder of the manifest.
    sources: PathBuf,
    /// Package files, apt's state, and what was made of them.
    cache: PathBuf,
}

/// A guest, ready to boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreparedGuest {
    /// Its name.
    pub name: String,
    /// bzImage, ELF (PVH or multiboot): the loader sees which.
    pub kernel: PathBuf,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Multiboot modules, with their command lines.
    pub modules: Vec<(PathBuf, String)>,
    /// Command line for simulators.
    pub tuned: String,
    /// Command line as one would type it.
    pub plain: String,
    /// RAM in bytes.
    pub memory: u64,
    /// Regular expression for the console's last line: the guest is up, and can be typed to if it listens.
    pub prompt: String,
    /// Things that the user should know: a package that is not the tested one.
    pub notices: Vec<String>,
}

impl Images {
    /// Opens the manifest in `sources` (the folder `images`); `cache` is created when needed.
    ///
    /// # Errors
    /// The manifest is wrong.
    pub fn open(sources: &Path, cache: &Path) -> Result<Images> {
        let manifest = Manifest::load(&sources.join("guests.toml"))?;
        Ok(Images {
            manifest,
            sources: sources.to_owned(),
            cache: cache.to_owned(),
        })
    }

    /// The folder that belongs to this crate: manifest, files of initial RAM disks, test guests.
    #[must_use]
    pub fn own_folder() -> &'static Path {
        Path::new(env!("CARGO_MANIFEST_DIR"))
    }

    /// The manifest.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The small guests of our own, for tests.
    ///
    /// # Errors
    /// Their folder cannot be read, or a file's head is wrong.
    pub fn test_guests(&self) -> Result<Vec<TestGuest>> {
        test_guests(&self.sources)
    }

    /// Makes a guest's files in `out`, which is created: of a guest of the manifest, or of a test guest. `progress` hears
    /// of steps that take long.
    ///
    /// # Errors
    /// There is no such guest, or a package cannot be had or is damaged.
    pub fn prepare(&self, name: &str, out: &Path, progress: &dyn Fn(&str)) -> Result<PreparedGuest> {
        let Some(guest) = self.manifest.guests.get(name) else {
            return self.prepare_test_guest(name, out);
        };
        for folder in [out, &self.cache.join("packages"), &self.cache.join("files")] {
            fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        // Two commands at once must not spoil each other's state.
        let lock = fs::File::create(self.cache.join("lock")).context("cannot create the cache's lock")?;
        lock.lock().context("cannot lock the cache")?;
        let mut packages = BTreeMap::new();
        for (role, package) in &guest.packages {
            let package_text = &self.manifest.packages[package];
            let apt = || Apt::new(&self.cache.join("apt"), &package_text.architecture);
            let fetched = fetch(package_text, &self.cache.join("packages"), apt, progress);
            packages.insert(role.as_str(), fetched.with_context(|| format!("package {package}"))?);
        }
        let kernel = self.kernel(guest, &packages["kernel"], progress)?;
        let kernel_path = out.join("kernel");
        write_if_changed(&kernel_path, &kernel)?;
        let mut initrd = None;
        if let Some(name) = &guest.initramfs {
            let path = out.join("initrd");
            write_if_changed(&path, &self.pack(&self.manifest.initramfs[name], &packages)?)?;
            initrd = Some(path);
        }
        Ok(PreparedGuest {
            name: name.into(),
            kernel: kernel_path,
            initrd,
            modules: Vec::new(),
            tuned: guest.tuned.clone(),
            plain: guest.plain.clone(),
            memory: u64::from(guest.memory_mib) << 20,
            prompt: guest.prompt.clone(),
            notices: packages.into_values().filter_map(|package| package.notice).collect(),
        })
    }

    fn prepare_test_guest(&self, name: &str, out: &Path) -> Result<PreparedGuest> {
        let Some(guest) = self.test_guests()?.into_iter().find(|guest| guest.name == name) else {
            // Not one of ours either: say which there are.
            return Err(self
                .manifest
                .guest(name)
                .err()
                .unwrap_or_else(|| anyhow!("there is no guest {name}")));
        };
        fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
        let kernel = out.join("kernel");
        build_test_guest(&self.sources, name, &kernel)?;
        Ok(PreparedGuest {
            name: name.into(),
            kernel,
            initrd: None,
            modules: Vec::new(),
            tuned: guest.cmdline.clone(),
            plain: guest.cmdline,
            memory: u64::from(guest.memory_mib) << 20,
            prompt: guest.prompt,
            notices: Vec::new(),
        })
    }

    fn kernel(&self, guest: &Guest, package: &Fetched, progress: &dyn Fn(&str)) -> Result<Vec<u8>> {
        let packaged = || self.file(package, &guest.kernel.file, progress);
        match guest.kernel.form {
            Form::AsIs => packaged(),
            Form::Vmlinux => self.kept(&format!("{}-vmlinux", package.key), || {
                let bzimage = packaged()?;
                progress("decompressing the kernel");
                Ok(compact(&extract(&bzimage)?)?)
            }),
            Form::Gunzip => self.kept(&format!("{}-gunzip", package.key), || {
                let mut kernel = Vec::new();
                let packed = packaged()?;
                flate2::read::GzDecoder::new(packed.as_slice())
                    .read_to_end(&mut kernel)
                    .with_context(|| format!("{} is no gzip file", guest.kernel.file))?;
                Ok(kernel)
            }),
        }
    }

    fn pack(&self, initramfs: &Initramfs, packages: &BTreeMap<&str, Fetched>) -> Result<Vec<u8>> {
        let mut archive = Archive::default();
        for directory in &initramfs.directories {
            archive.directory(&directory.path, directory.mode)?;
        }
        for device in &initramfs.devices {
            archive.character_device(&device.path, device.mode, device.major, device.minor)?;
        }
        for link in &initramfs.links {
            archive.link(&link.path, &link.target)?;
        }
        for file in &initramfs.files {
            let content = match (&file.package, &file.file, &file.source) {
                (Some(role), Some(pattern), _) => self.file(&packages[role.as_str()], pattern, &|_| ())?,
                // A program of ours, without a C library.
                (_, _, Some(source)) if source.ends_with(".asm") => {
                    let name = source.replace('/', "_");
                    assemble(&self.sources.join(source), &self.cache.join("files").join(name))?
                }
                (_, _, Some(source)) => {
                    let path = self.sources.join(source);
                    fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?
                }
                _ => bail!("{} has no content", file.path), // the manifest is checked for this
            };
            archive.file(&file.path, file.mode, &content)?;
        }
        Ok(archive.finish())
    }

    /// A file out of a package.
    fn file(&self, package: &Fetched, pattern: &str, progress: &dyn Fn(&str)) -> Result<Vec<u8>> {
        let name = pattern.replace(['/', '*'], "_");
        self.kept(&format!("{}-{name}", package.key), || {
            progress(&format!(
                "opening {}",
                package.path.file_name().unwrap_or_default().to_string_lossy()
            ));
            let bytes = fs::read(&package.path).with_context(|| format!("cannot read {}", package.path.display()))?;
            let (_, content) = deb::file(&bytes, pattern).with_context(|| package.path.display().to_string())?;
            Ok(content)
        })
    }

    /// What `make` gave when it was called for this name first.
    fn kept(&self, name: &str, make: impl FnOnce() -> Result<Vec<u8>>) -> Result<Vec<u8>> {
        let path = self.cache.join("files").join(format!("{name}.{MADE_BY}"));
        if let Ok(content) = fs::read(&path) {
            return Ok(content);
        }
        let content = make()?;
        let unfinished = path.with_extension("unfinished");
        fs::write(&unfinished, &content).with_context(|| format!("cannot write {}", unfinished.display()))?;
        fs::rename(&unfinished, &path)?;
        Ok(content)
    }
}

/// Keeps the file's time when nothing changes, for whoever builds from it.
fn write_if_changed(path: &Path, content: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|old| old == content) {
        return Ok(());
    }
    fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}
