// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which version of a package is used? The tested one if it can be had, else the archive's current one, with a notice.

use crate::{
    apt::{Apt, Offer},
    manifest::Package,
};
use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// A package file that was checked.
pub struct Fetched {
    /// Where it is.
    pub path: PathBuf,
    /// First digits of its hash: names what is made of it.
    pub key: String,
    /// It is not the tested version.
    pub notice: Option<String>,
}

/// Where packages come from: apt, for one architecture.
pub trait Archive {
    /// Looks what is there now.
    fn update(&self) -> Result<()>;
    /// What the last update complained about.
    fn complaints(&self) -> String;
    /// The package in this version, or in the current one.
    fn offer(&self, name: &str, version: Option<&str>) -> Result<Option<Offer>>;
    /// Writes the package file to `target`.
    fn download(&self, offer: &Offer, target: &Path) -> Result<()>;
}

impl Archive for Apt {
    fn update(&self) -> Result<()> {
        Apt::update(self)
    }

    fn complaints(&self) -> String {
        self.update_log()
    }

    fn offer(&self, name: &str, version: Option<&str>) -> Result<Option<Offer>> {
        Apt::offer(self, name, version)
    }

    fn download(&self, offer: &Offer, target: &Path) -> Result<()> {
        Apt::download(self, offer, target)
    }
}

/// The package file in `folder`; `open` the archive only if it is not there yet.
///
/// # Errors
/// It cannot be had, or is not what its hash says.
pub fn fetch<A: Archive>(
    package: &Package,
    folder: &Path,
    open: impl FnOnce() -> Result<A>,
    progress: &dyn Fn(&str),
) -> Result<Fetched> {
    let tested = package_path(folder, &package.name, &package.version, &package.architecture);
    if check_hash(&tested, &package.sha256).is_ok() {
        return Ok(Fetched {
            path: tested,
            key: key(&package.sha256),
            notice: None,
        });
    }
    let archive = open()?;
    let mut failure = None;
    // First with the lists that are there, then with fresh ones: old lists name files that are gone.
    for fresh in [false, true] {
        if fresh {
            progress(&format!("fetching the package lists for {}", package.architecture));
            archive.update()?;
        }
        let Some(offer) = archive.offer(&package.name, Some(&package.version))? else {
            continue;
        };
        ensure!(
            offer.sha256 == package.sha256,
            "the archive's {} {} is not the tested one: sha256 {} instead of {}",
            offer.name,
            offer.version,
            offer.sha256,
            package.sha256
        );
        match download(&archive, &offer, &tested, &package.architecture, progress) {
            Ok(()) => {
                return Ok(Fetched {
                    path: tested,
                    key: key(&offer.sha256),
                    notice: None,
                });
            }
            Err(error) => failure = Some(error),
        }
    }
    let current = fetch_current(package, folder, &archive, progress);
    match failure {
        Some(failure) => current.map_err(|error| failure.context(format!("{error:#}"))),
        None => current,
    }
}

fn fetch_current<A: Archive>(
    package: &Package,
    folder: &Path,
    archive: &A,
    progress: &dyn Fn(&str),
) -> Result<Fetched> {
    let mut offer = archive.offer(&package.current, None)?;
    if package.current != package.name
        && let Some(name) = offer.as_ref().and_then(|meta| meta.first_dependency.clone())
    {
        offer = archive.offer(&name, None)?; // a meta package: what it depends on is meant
    }
    let Some(offer) = offer else {
        bail!(
            "neither {} {} nor its replacement {} is in this machine's apt sources ({})\n{}",
            package.name,
            package.version,
            package.current,
            package.architecture,
            archive.complaints()
        );
    };
    let path = package_path(folder, &offer.name, &offer.version, &package.architecture);
    if check_hash(&path, &offer.sha256).is_err() {
        download(archive, &offer, &path, &package.architecture, progress)?;
    }
    let notice = format!(
        "{} {} is no longer in the archive: using {} {}, which was not tested",
        package.name, package.version, offer.name, offer.version
    );
    Ok(Fetched {
        path,
        key: key(&offer.sha256),
        notice: Some(notice),
    })
}

fn download<A: Archive>(
    archive: &A,
    offer: &Offer,
    path: &Path,
    architecture: &str,
    progress: &dyn Fn(&str),
) -> Result<()> {
    progress(&format!("fetching {} {} ({architecture})", offer.name, offer.version));
    archive.download(offer, path)?;
    check_hash(path, &offer.sha256)
}

fn package_path(folder: &Path, name: &str, version: &str, architecture: &str) -> PathBuf {
    folder.join(format!("{name}_{}_{architecture}.deb", version.replace(':', "%3a")))
}

fn key(sha256: &str) -> String {
    sha256[..16].to_owned()
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn check_hash(path: &Path, sha256: &str) -> Result<()> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let found = hash(&bytes);
    ensure!(
        found == sha256,
        "{} is damaged: its sha256 is {found}, not {sha256}",
        path.display()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// What the archive holds: (name, version, first dependency); a package's content is "name version".
    struct Fake {
        before: Vec<(&'static str, &'static str, Option<&'static str>)>,
        after: Vec<(&'static str, &'static str, Option<&'static str>)>,
        updated: Cell<bool>,
        /// Downloads give this instead.
        wrong: Option<&'static str>,
    }

    impl Archive for Fake {
        fn update(&self) -> Result<()> {
            self.updated.set(true);
            Ok(())
        }

        fn complaints(&self) -> String {
            "E: one source failed".into()
        }

        fn offer(&self, name: &str, version: Option<&str>) -> Result<Option<Offer>> {
            let now = if self.updated.get() { &self.after } else { &self.before };
            let found = now
                .iter()
                .find(|(have, at, _)| *have == name && version.is_none_or(|version| *at == version));
            Ok(found.map(|(name, version, dependency)| Offer {
                name: (*name).into(),
                version: (*version).into(),
                sha256: hash(format!("{name} {version}").as_bytes()),
                first_dependency: dependency.map(Into::into),
            }))
        }

        fn download(&self, offer: &Offer, target: &Path) -> Result<()> {
            let there = &self.after;
            ensure!(
                there
                    .iter()
                    .any(|(name, version, _)| *name == offer.name && *version == offer.version),
                "404"
            );
            let content = self
                .wrong
                .map_or(format!("{} {}", offer.name, offer.version), Into::into);
            Ok(fs::write(target, content)?)
        }
    }

    fn fake(
        before: &[(&'static str, &'static str, Option<&'static str>)],
        after: &[(&'static str, &'static str, Option<&'static str>)],
    ) -> Fake {
        Fake {
            before: before.to_vec(),
            after: after.to_vec(),
            updated: Cell::new(false),
            wrong: None,
        }
    }

    fn package() -> Package {
        Package {
            name: "kernel-1".into(),
            version: "1:1.0".into(),
            architecture: "amd64".into(),
            sha256: hash(b"kernel-1 1:1.0"),
            current: "kernel".into(),
            licence: "GPL-2.0-only".into(),
            source: "kernel".into(),
        }
    }

    fn folder(name: &str) -> PathBuf {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../target/tmp/fetch-test")
            .join(name);
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        path
    }

    const TESTED: (&str, &str, Option<&str>) = ("kernel-1", "1:1.0", None);
    const META: (&str, &str, Option<&str>) = ("kernel", "2", Some("kernel-2"));
    const NEXT: (&str, &str, Option<&str>) = ("kernel-2", "2.0", None);

    #[test]
    fn tested_version_is_fetched_once() {
        let folder = folder("once");
        let archive = fake(&[], &[TESTED, META, NEXT]);
        let first = fetch(&package(), &folder, || Ok(archive), &|_| ()).unwrap();
        assert_eq!(first.path.file_name().unwrap(), "kernel-1_1%3a1.0_amd64.deb");
        assert!(first.notice.is_none());
        let closed = || -> Result<Fake> { bail!("the archive is not needed") };
        assert_eq!(fetch(&package(), &folder, closed, &|_| ()).unwrap().path, first.path);
    }

    #[test]
    fn damaged_file_is_fetched_again() {
        let folder = folder("damaged");
        let path = folder.join("kernel-1_1%3a1.0_amd64.deb");
        fs::write(&path, "something else").unwrap();
        fetch(&package(), &folder, || Ok(fake(&[TESTED], &[TESTED])), &|_| ()).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "kernel-1 1:1.0");
    }

    #[test]
    fn current_version_comes_with_a_notice() {
        // Old lists still name the tested version, whose file is gone.
        for before in [&[][..], &[TESTED]] {
            let folder = folder("current");
            let found = fetch(&package(), &folder, || Ok(fake(before, &[META, NEXT])), &|_| ()).unwrap();
            assert_eq!(found.path.file_name().unwrap(), "kernel-2_2.0_amd64.deb");
            let notice = "kernel-1 1:1.0 is no longer in the archive: using kernel-2 2.0, which was not tested";
            assert_eq!(found.notice.as_deref(), Some(notice));
            // No network: what was fetched does.
            let mut offline = fake(before, &[META, NEXT]);
            offline.wrong = Some("nothing");
            fetch(&package(), &folder, || Ok(offline), &|_| ()).unwrap();
        }
    }

    #[test]
    fn what_cannot_be_had_is_said() {
        let folder = folder("gone");
        let refused = |archive: Fake| {
            format!(
                "{:#}",
                fetch(&package(), &folder, || Ok(archive), &|_| ())
                    .err()
                    .expect("an error")
            )
        };
        assert_eq!(
            refused(fake(&[], &[])),
            "neither kernel-1 1:1.0 nor its replacement kernel is in this machine's apt sources (amd64)\n\
             E: one source failed"
        );
        let mut wrong = fake(&[TESTED], &[TESTED]);
        wrong.wrong = Some("other content");
        assert!(refused(wrong).contains("is damaged: its sha256 is "));
        let mut changed = package();
        changed.sha256 = hash(b"what was tested");
        let archive = fake(&[TESTED], &[TESTED]);
        let error = fetch(&changed, &folder, || Ok(archive), &|_| ())
            .err()
            .expect("an error");
        assert!(
            error
                .to_string()
                .starts_with("the archive's kernel-1 1:1.0 is not the tested one: sha256 ")
        );
    }
}
