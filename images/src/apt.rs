// SPDX-License-Identifier: MIT OR Apache-2.0
//! How are Debian packages fetched without touching the user's system? By apt with its state in a folder of ours: the
//! machine's sources, keys and proxies, but own lists, no installed packages, and any architecture.

use anyhow::{Context, Result, bail};
use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    process::Command,
};

/// apt for one architecture.
pub struct Apt {
    architecture: String,
    config: PathBuf,
    log: PathBuf,
}

/// A package as the archive offers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Name.
    pub name: String,
    /// Version.
    pub version: String,
    /// Hash of the package file, hexadecimal.
    pub sha256: String,
    /// Its first dependency's name.
    pub first_dependency: Option<String>,
}

impl Apt {
    /// Prepares the state below `folder` (one for each architecture).
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn new(folder: &Path, architecture: &str) -> Result<Apt> {
        let folder = folder.join(architecture);
        for part in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(folder.join(part)).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        let folder = folder.canonicalize()?;
        let config = folder.join("apt.conf");
        let status = folder.join("status");
        fs::write(&status, "").with_context(|| format!("cannot write {}", status.display()))?;
        // Read after the machine's own configuration, so that this wins. Hooks of the machine would act on the machine.
        let text = format!(
            "#clear APT::Architectures;\n\
             #clear APT::Update::Pre-Invoke;\n\
             #clear APT::Update::Post-Invoke;\n\
             #clear APT::Update::Post-Invoke-Success;\n\
             #clear DPkg::Post-Invoke;\n\
             APT::Architecture \"{architecture}\";\n\
             APT::Architectures {{ \"{architecture}\"; }};\n\
             APT::Sandbox::User \"root\";\n\
             Acquire::Languages \"none\";\n\
             Acquire::Retries \"3\";\n\
             Dir::State \"{0}\";\n\
             Dir::State::status \"{0}/status\";\n\
             Dir::State::lists \"{0}/lists\";\n\
             Dir::Cache \"{0}\";\n\
             Dir::Cache::archives \"{0}/archives\";\n\
             Dir::Log \"{0}\";\n",
            folder.display()
        );
        fs::write(&config, text).with_context(|| format!("cannot write {}", config.display()))?;
        Ok(Apt {
            architecture: architecture.into(),
            config,
            log: folder.join("update.log"),
        })
    }

    /// Fetches the lists of packages.
    ///
    /// # Errors
    /// apt is missing. That some source fails is no error: what is needed may come from another; see [`Apt::update_log`].
    pub fn update(&self) -> Result<()> {
        let output = self.run("apt-get", &["update"])?;
        let text = [output.stdout, output.stderr].concat();
        fs::write(&self.log, text).with_context(|| format!("cannot write {}", self.log.display()))
    }

    /// What the last update said about failures.
    pub fn update_log(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let complaints = text
            .lines()
            .filter(|line| ["E:", "W:", "Err:"].iter().any(|start| line.starts_with(start)));
        complaints.collect::<Vec<_>>().join("\n")
    }

    /// The package in this version, or in the version that apt would install.
    ///
    /// # Errors
    /// apt is missing.
    pub fn offer(&self, name: &str, version: Option<&str>) -> Result<Option<Offer>> {
        let wanted = version.map_or(name.to_owned(), |version| format!("{name}={version}"));
        let output = self.run("apt-cache", &["--no-all-versions", "show", &wanted])?;
        // For an unknown package apt-cache fails and says so; for an unknown version too.
        Ok(parse_offer(&String::from_utf8_lossy(&output.stdout)))
    }

    /// Fetches a package file to `target`; apt checks it against its signed lists.
    ///
    /// # Errors
    /// It cannot be fetched; the text is apt's.
    pub fn download(&self, offer: &Offer, target: &Path) -> Result<()> {
        let folder = target.with_extension("download");
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let wanted = format!("{}={}", offer.name, offer.version);
        let output = self
            .command("apt-get")?
            .args(["download", &wanted])
            .current_dir(&folder)
            .output();
        let output = output.context("apt-get cannot be started")?;
        let files: Vec<PathBuf> = fs::read_dir(&folder)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .collect();
        let (true, [file]) = (output.status.success(), files.as_slice()) else {
            let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            bail!("apt cannot fetch {wanted} ({}):\n{text}", self.architecture);
        };
        fs::rename(file, target).with_context(|| format!("cannot write {}", target.display()))?;
        fs::remove_dir_all(&folder)?;
        Ok(())
    }

    fn command(&self, program: &str) -> Result<Command> {
        let mut command = Command::new(program);
        command
            .arg("-q")
            .arg("-c")
            .arg(&self.config)
            .env("LC_ALL", "C")
            .env_remove("APT_CONFIG");
        Ok(command)
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<std::process::Output> {
        match self.command(program)?.args(arguments).output() {
            Ok(output) => Ok(output),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                bail!("{program} is not installed: guests come from Debian packages, on a Debian-like machine")
            }
            Err(error) => Err(error).with_context(|| format!("{program} cannot be started")),
        }
    }
}

/// The first stanza of `apt-cache show`.
fn parse_offer(text: &str) -> Option<Offer> {
    let stanza = text.split("\n\n").next()?;
    let field = |name: &str| {
        stanza
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    };
    let first_dependency = field("Depends").and_then(|list| {
        let name = list.split([',', '|', ' ', '(', ':']).next()?;
        (!name.is_empty()).then(|| name.to_owned())
    });
    Some(Offer {
        name: field("Package")?.to_owned(),
        version: field("Version")?.to_owned(),
        sha256: field("SHA256")?.to_owned(),
        first_dependency,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offer_is_read_from_the_first_stanza() {
        let text = "Package: linux-image-cloud-amd64\nVersion: 6.1.176-1\nDepends: linux-image-6.1.0-50-cloud-amd64 (= 6.1.176-1)\n\
                    SHA256: 6f32\nDescription: x\n more\n\nPackage: other\nVersion: 1\n";
        let offer = parse_offer(text).unwrap();
        assert_eq!(
            (offer.name.as_str(), offer.version.as_str()),
            ("linux-image-cloud-amd64", "6.1.176-1")
        );
        assert_eq!(offer.sha256, "6f32");
        assert_eq!(
            offer.first_dependency.as_deref(),
            Some("linux-image-6.1.0-50-cloud-amd64")
        );
        assert_eq!(parse_offer(""), None);
        assert_eq!(
            parse_offer("Package: a\nVersion: 1\nSHA256: 2\n")
                .unwrap()
                .first_dependency,
            None
        );
    }

    #[test]
    fn configuration_keeps_everything_in_the_folder() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tmp/apt-test");
        let apt = Apt::new(&folder, "i386").unwrap();
        let output = Command::new("apt-config")
            .arg("-c")
            .arg(&apt.config)
            .arg("dump")
            .output();
        let Ok(output) = output else { return }; // not a Debian machine
        let dump = String::from_utf8(output.stdout).unwrap();
        let folder = folder.canonicalize().unwrap().join("i386");
        for name in [
            "Dir::State",
            "Dir::State::lists",
            "Dir::State::status",
            "Dir::Cache",
            "Dir::Cache::archives",
        ] {
            let line = format!("{name} \"{}", folder.display());
            assert!(dump.contains(&line), "{line} not in\n{dump}");
        }
        assert!(dump.contains("APT::Architecture \"i386\""));
        assert!(!dump.contains("Post-Invoke:"), "{dump}");
    }
}
