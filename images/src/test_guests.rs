// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which small guests of our own are there, and how are they built? Each file of `guests/` is one behaviour.

use crate::nasm::assemble_with;
use anyhow::{Context, Result, bail, ensure};
use std::{fs, path::Path};

/// RAM of a test guest that asks for none.
const MEMORY_MIB: u32 = 16;
/// Matches the first line that any test guest prints.
const ANY_LINE: &str = "^guest: ";

/// What the head of a guest's file says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestGuest {
    /// The file's name without its end.
    pub name: String,
    /// The question that it answers.
    pub about: String,
    /// RAM in MiB (`; memory: 48`).
    pub memory_mib: u32,
    /// Command line (`; cmdline: …`).
    pub cmdline: String,
    /// Regular expression for the console: the guest wants input, or is up (`; prompt: …`).
    pub prompt: String,
}

/// All test guests in `sources` (the folder `images`), by name.
///
/// # Errors
/// The folder cannot be read, or a file's head is wrong.
pub fn test_guests(sources: &Path) -> Result<Vec<TestGuest>> {
    let folder = sources.join("guests");
    let mut guests = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "asm") {
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            guests.push(parse_head(&name, &text).with_context(|| path.display().to_string())?);
        }
    }
    guests.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(guests)
}

/// Builds one into the file `out` (an ELF32 executable with a multiboot header); intermediate files lie beside it.
///
/// # Errors
/// There is no such guest; nasm is missing or refuses it.
pub fn build_test_guest(sources: &Path, name: &str, out: &Path) -> Result<()> {
    let folder = sources.join("guests");
    if !folder.join(format!("{name}.asm")).is_file() {
        bail!("there is no test guest {name} in {}", folder.display());
    }
    let library = folder.join("lib");
    let define = format!("-DGUEST=\"{name}.asm\"");
    assemble_with(&library.join("guest.asm"), &[&library, &folder], &[&define], out)
        .with_context(|| format!("test guest {name}"))?;
    Ok(())
}

/// The comment at the start: licence, then the question, then keys.
fn parse_head(name: &str, text: &str) -> Result<TestGuest> {
    let mut head = text.lines().map_while(|line| line.strip_prefix(';')).map(str::trim);
    ensure!(
        head.next().is_some_and(|line| line.starts_with("SPDX")),
        "the first line names no licence"
    );
    let about = head.next().context("the second line asks no question")?.to_owned();
    let mut guest = TestGuest {
        name: name.into(),
        about,
        memory_mib: MEMORY_MIB,
        cmdline: String::new(),
        prompt: ANY_LINE.into(),
    };
    for line in head {
        match line.split_once(": ") {
            Some(("memory", value)) => guest.memory_mib = value.parse().context("memory")?,
            Some(("cmdline", value)) => guest.cmdline = value.into(),
            Some(("prompt", value)) => guest.prompt = value.into(),
            Some(_) | None => {} // more of the comment
        }
    }
    Ok(guest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use object::read::elf::FileHeader;

    fn own() -> &'static Path {
        Path::new(env!("CARGO_MANIFEST_DIR"))
    }

    #[test]
    fn head_is_read() {
        let text =
            "; SPDX-License-Identifier: MIT\n; Does it?\n; More: of it.\n; memory: 48\n; prompt: ^x\n\n; memory: 1\n";
        let guest = parse_head("a", text).unwrap();
        assert_eq!(
            (guest.about.as_str(), guest.memory_mib, guest.prompt.as_str()),
            ("Does it?", 48, "^x")
        );
        assert_eq!(parse_head("a", "; SPDX\n; Q\nmain:\n").unwrap().memory_mib, MEMORY_MIB);
        assert!(parse_head("a", "main:\n").is_err());
        assert!(parse_head("a", "; SPDX\n; Q\n; memory: much\n").is_err());
    }

    #[test]
    fn each_is_a_multiboot_program() {
        if std::process::Command::new("nasm").arg("-v").output().is_err() {
            return; // building needs it, and says so
        }
        let out = own().join("../target/tmp/test-guests");
        fs::create_dir_all(&out).unwrap();
        let guests = test_guests(own()).unwrap();
        assert!(guests.len() > 20);
        for guest in guests {
            let file = out.join(&guest.name);
            build_test_guest(own(), &guest.name, &file).unwrap();
            let bytes = fs::read(&file).unwrap();
            let elf = object::elf::FileHeader32::<object::LittleEndian>::parse(bytes.as_slice()).unwrap();
            assert!(
                elf.program_headers(object::LittleEndian, bytes.as_slice())
                    .unwrap()
                    .len()
                    == 1
            );
            let magic = 0x1bad_b002u32.to_le_bytes();
            assert!(
                bytes[..bytes.len().min(8192)]
                    .windows(4)
                    .step_by(4)
                    .any(|word| word == magic),
                "{}",
                guest.name
            );
        }
    }

    #[test]
    fn unknown_guest_is_refused() {
        let error = build_test_guest(own(), "nonesuch", Path::new("/nonexistent")).unwrap_err();
        assert!(error.to_string().starts_with("there is no test guest nonesuch in "));
    }
}
