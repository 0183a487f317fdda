// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which guests are there, and what are they made of? `guests.toml`, checked.

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use std::{collections::BTreeMap, path::Path};

/// The manifest, with each guest complete (`like` resolved).
#[derive(Clone, Debug)]
pub struct Manifest {
    /// The guest that is meant when none is named.
    pub default: String,
    /// Packages by the names that the manifest gives them.
    pub packages: BTreeMap<String, Package>,
    /// Contents of initial RAM disks.
    pub initramfs: BTreeMap<String, Initramfs>,
    /// Guests by name.
    pub guests: BTreeMap<String, Guest>,
}

/// A Debian binary package.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Package {
    /// Its name in the archive.
    pub name: String,
    /// The tested version.
    pub version: String,
    /// Debian's name of the architecture.
    pub architecture: String,
    /// Of the package file, hexadecimal.
    pub sha256: String,
    /// Leads to the version that replaces the tested one: this package's first dependency, or this package.
    pub current: String,
    /// SPDX expression for what is in it.
    pub licence: String,
    /// Debian source package.
    pub source: String,
}

/// What an initial RAM disk holds.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Initramfs {
    /// Come first.
    pub directories: Vec<Directory>,
    /// Character devices.
    #[serde(default)]
    pub devices: Vec<Device>,
    /// Symbolic links.
    #[serde(default)]
    pub links: Vec<Link>,
    /// Regular files.
    pub files: Vec<File>,
}

/// A directory.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Directory {
    /// Without leading slash.
    pub path: String,
    /// Permission bits.
    #[serde(default = "directory_mode")]
    pub mode: u32,
}

fn directory_mode() -> u32 {
    0o755
}

/// A character device.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// Without leading slash.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

/// A symbolic link.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// Without leading slash.
    pub path: String,
    /// What it says.
    pub target: String,
}

/// A regular file: from a package, or from the folder of the manifest.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Without leading slash.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// Role of the package (see [`Guest::packages`]).
    pub package: Option<String>,
    /// Path in that package.
    pub file: Option<String>,
    /// Path beside the manifest. A file `.asm` is assembled.
    pub source: Option<String>,
}

/// A guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guest {
    /// What it is, in a line.
    pub about: String,
    /// Packages by the roles they have.
    pub packages: BTreeMap<String, String>,
    /// Its kernel, from the package with the role `kernel`.
    pub kernel: Kernel,
    /// Name of its initial RAM disk.
    pub initramfs: Option<String>,
    /// RAM in MiB.
    pub memory_mib: u32,
    /// Regular expression for the console's last line: the guest is up.
    pub prompt: String,
    /// Command line as one would type it.
    pub plain: String,
    /// Command line for simulators.
    pub tuned: String,
}

/// Where a kernel is and what is done with it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    /// Path in the package; one `*` stands for anything but a slash.
    pub file: String,
    /// What is done with it.
    pub form: Form,
}

/// How a guest gets the kernel file of its package.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// Untouched.
    AsIs,
    /// The ELF kernel out of a bzImage, without what no loader reads.
    Vmlinux,
    /// Decompressed by gzip.
    Gunzip,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    default: String,
    package: BTreeMap<String, Package>,
    #[serde(default)]
    initramfs: BTreeMap<String, Initramfs>,
    guest: BTreeMap<String, GuestText>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct GuestText {
    like: Option<String>,
    about: Option<String>,
    packages: Option<BTreeMap<String, String>>,
    kernel: Option<Kernel>,
    initramfs: Option<String>,
    memory_mib: Option<u32>,
    prompt: Option<String>,
    plain: Option<String>,
    tuned: Option<String>,
}

impl Manifest {
    /// Reads and checks a manifest.
    ///
    /// # Errors
    /// The file cannot be read, or is wrong; the text says where.
    pub fn load(path: &Path) -> Result<Manifest> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Manifest::parse(&text).with_context(|| path.display().to_string())
    }

    /// Checks a manifest's text.
    ///
    /// # Errors
    /// It is wrong; the text says where.
    pub fn parse(text: &str) -> Result<Manifest> {
        let text: Text = toml::from_str(text)?;
        for (name, package) in &text.package {
            let hash = &package.sha256;
            let hexadecimal = hash.len() == 64 && hash.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            ensure!(
                hexadecimal,
                "package.{name}: sha256 is not 64 lower-case hexadecimal digits"
            );
        }
        for (name, initramfs) in &text.initramfs {
            for file in &initramfs.files {
                match (&file.package, &file.file, &file.source) {
                    (Some(_), Some(_), None) | (None, None, Some(_)) => {}
                    _ => bail!(
                        "initramfs.{name}: {} needs either package and file, or source",
                        file.path
                    ),
                }
            }
        }
        let mut guests = BTreeMap::new();
        for name in text.guest.keys() {
            let guest = complete(&text.guest, name).with_context(|| format!("guest.{name}"))?;
            check(&guest, &text).with_context(|| format!("guest.{name}"))?;
            guests.insert(name.clone(), guest);
        }
        ensure!(
            guests.contains_key(&text.default),
            "default: there is no guest {}",
            text.default
        );
        Ok(Manifest {
            default: text.default,
            packages: text.package,
            initramfs: text.initramfs,
            guests,
        })
    }

    /// A guest by its name.
    ///
    /// # Errors
    /// There is none; the text lists those that are.
    pub fn guest(&self, name: &str) -> Result<&Guest> {
        let names = || self.guests.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        self.guests.get(name).with_context(|| {
            format!(
                "there is no guest {name}; there are {}, and those of images/guests",
                names()
            )
        })
    }
}

/// A guest with what it takes over from the one it is like.
fn complete(texts: &BTreeMap<String, GuestText>, name: &str) -> Result<Guest> {
    let mut whole = texts[name].clone();
    let mut seen = vec![name.to_owned()];
    while let Some(other) = whole.like.take() {
        ensure!(!seen.contains(&other), "like: {other} is like itself");
        let base = texts
            .get(&other)
            .with_context(|| format!("like: there is no guest {other}"))?
            .clone();
        seen.push(other);
        whole = GuestText {
            like: base.like,
            about: whole.about.or(base.about),
            packages: whole.packages.or(base.packages),
            kernel: whole.kernel.or(base.kernel),
            initramfs: whole.initramfs.or(base.initramfs),
            memory_mib: whole.memory_mib.or(base.memory_mib),
            prompt: whole.prompt.or(base.prompt),
            plain: whole.plain.or(base.plain),
            tuned: whole.tuned.or(base.tuned),
        };
    }
    Ok(Guest {
        about: whole.about.context("about is missing")?,
        packages: whole.packages.context("packages is missing")?,
        kernel: whole.kernel.context("kernel is missing")?,
        initramfs: whole.initramfs,
        memory_mib: whole.memory_mib.context("memory_mib is missing")?,
        prompt: whole.prompt.context("prompt is missing")?,
        plain: whole.plain.context("plain is missing")?,
        tuned: whole.tuned.context("tuned is missing")?,
    })
}

/// All names that a guest uses exist.
fn check(guest: &Guest, text: &Text) -> Result<()> {
    ensure!(guest.memory_mib > 0, "memory_mib is 0");
    ensure!(
        guest.packages.contains_key("kernel"),
        "packages: no package has the role kernel"
    );
    for (role, package) in &guest.packages {
        ensure!(
            text.package.contains_key(package),
            "packages: {role}: there is no package {package}"
        );
    }
    if let Some(name) = &guest.initramfs {
        let initramfs = text
            .initramfs
            .get(name)
            .with_context(|| format!("there is no initramfs {name}"))?;
        for role in initramfs.files.iter().filter_map(|file| file.package.as_ref()) {
            ensure!(
                guest.packages.contains_key(role),
                "packages: initramfs.{name} needs one with the role {role}"
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = r#"
        default = "a"
        [package.k]
        name = "k"
        version = "1"
        architecture = "amd64"
        sha256 = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
        current = "k"
        licence = "GPL-2.0-only"
        source = "k"
        [initramfs.i]
        directories = [{ path = "bin" }]
        files = [{ path = "bin/k", mode = 0o755, package = "kernel", file = "boot/k" }]
        [guest.a]
        about = "one"
        packages = { kernel = "k" }
        kernel = { file = "boot/k", form = "as-is" }
        initramfs = "i"
        memory_mib = 64
        prompt = "x"
        plain = "p"
        tuned = "t"
        [guest.b]
        like = "a"
        memory_mib = 32
    "#;

    fn refused(from: &str, to: &str) -> String {
        assert!(SAMPLE.contains(from));
        format!("{:#}", Manifest::parse(&SAMPLE.replace(from, to)).unwrap_err())
    }

    #[test]
    fn like_takes_over_what_is_not_said() {
        let manifest = Manifest::parse(SAMPLE).unwrap();
        let (a, b) = (manifest.guest("a").unwrap(), manifest.guest("b").unwrap());
        assert_eq!((a.memory_mib, b.memory_mib), (64, 32));
        assert_eq!(
            Guest {
                memory_mib: 64,
                ..b.clone()
            },
            *a
        );
        assert_eq!(
            manifest.guest("c").unwrap_err().to_string(),
            "there is no guest c; there are a, b, and those of images/guests"
        );
    }

    #[test]
    fn wrong_manifests_are_refused_with_the_place() {
        assert_eq!(
            refused("like = \"a\"", "like = \"b\""),
            "guest.b: like: b is like itself"
        );
        assert_eq!(
            refused("like = \"a\"", "like = \"z\""),
            "guest.b: like: there is no guest z"
        );
        assert_eq!(
            refused("default = \"a\"", "default = \"z\""),
            "default: there is no guest z"
        );
        assert_eq!(refused("prompt = \"x\"", ""), "guest.a: prompt is missing");
        assert_eq!(
            refused("{ kernel = \"k\" }", "{ x = \"k\" }"),
            "guest.a: packages: no package has the role kernel"
        );
        let other_role = refused("package = \"kernel\"", "package = \"z\"");
        assert_eq!(other_role, "guest.a: packages: initramfs.i needs one with the role z");
        assert_eq!(
            refused("{ kernel = \"k\" }", "{ kernel = \"z\" }"),
            "guest.a: packages: kernel: there is no package z"
        );
        assert_eq!(
            refused("initramfs = \"i\"", "initramfs = \"z\""),
            "guest.a: there is no initramfs z"
        );
        assert_eq!(
            refused("0123456789a", "x"),
            "package.k: sha256 is not 64 lower-case hexadecimal digits"
        );
        let neither = refused("package = \"kernel\", file = \"boot/k\"", "file = \"boot/k\"");
        assert_eq!(neither, "initramfs.i: bin/k needs either package and file, or source");
        let unknown = refused("memory_mib = 64", "memory_mb = 64");
        assert!(
            unknown.contains("unknown field `memory_mb`") && unknown.contains("line"),
            "{unknown}"
        );
    }

    #[test]
    fn our_own_manifest_is_right() {
        let manifest = Manifest::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("guests.toml")).unwrap();
        assert_eq!(manifest.default, "debian-amd64");
        for name in [
            "debian-amd64",
            "debian-amd64-bzimage",
            "debian-i386",
            "debian-i386-bzimage",
            "gnumach",
        ] {
            manifest.guest(name).unwrap();
        }
        assert_eq!(
            manifest.guest("debian-i386-bzimage").unwrap().packages["kernel"],
            "linux-i386"
        );
        assert_eq!(manifest.guest("debian-i386-bzimage").unwrap().kernel.form, Form::AsIs);
    }
}
