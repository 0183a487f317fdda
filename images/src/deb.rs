// SPDX-License-Identifier: MIT OR Apache-2.0
//! How does one file come out of a Debian package? A package is an `ar` archive with a compressed `tar` archive in it.

use anyhow::{Context, Result, bail};
use std::io::Read;

const MAGIC: &[u8] = b"!<arch>\n";
const HEADER: usize = 60;

/// The content of the first regular file whose path matches `pattern`: no leading slash, at most one `*` in it, which
/// stands for anything but a slash. Also its path.
///
/// # Errors
/// The package is damaged, or has no such file.
pub fn file(package: &[u8], pattern: &str) -> Result<(String, Vec<u8>)> {
    let (member, data) = data_member(package)?;
    let stream: Box<dyn Read> = match member.strip_prefix("data.tar").unwrap_or_default() {
        "" => Box::new(data),
        ".gz" => Box::new(flate2::read::GzDecoder::new(data)),
        ".xz" => Box::new(lzma_rust2::XzReader::new(data, false)),
        ".zst" => Box::new(ruzstd::decoding::StreamingDecoder::new(data).context("zstd")?),
        other => bail!("the package's data is compressed in an unknown way: {other}"),
    };
    let mut archive = tar::Archive::new(stream);
    for entry in archive.entries().context("the package's data is no tar archive")? {
        let mut entry = entry.context("the package's data is damaged")?;
        let path = entry
            .path()
            .context("a path in the package")?
            .to_string_lossy()
            .into_owned();
        let path = path.trim_start_matches("./").to_owned();
        if entry.header().entry_type().is_file() && matches(pattern, &path) {
            let mut content = Vec::new();
            entry
                .read_to_end(&mut content)
                .with_context(|| format!("{path} in the package is damaged"))?;
            return Ok((path, content));
        }
    }
    bail!("the package has no file {pattern}")
}

/// Name and content of the member that holds the files.
fn data_member(package: &[u8]) -> Result<(&str, &[u8])> {
    let mut rest = package.strip_prefix(MAGIC).context("this is no Debian package")?;
    while rest.len() >= HEADER {
        let (header, after) = rest.split_at(HEADER);
        let text = std::str::from_utf8(header).context("the package's member header is damaged")?;
        if !text.ends_with("`\n") {
            bail!("the package's member header is damaged");
        }
        let name = text[..16].trim_end().trim_end_matches('/');
        let length: usize = text[48..58].trim_end().parse().context("a member's length")?;
        let content = after
            .get(..length)
            .with_context(|| format!("the package is truncated in {name}"))?;
        if name.starts_with("data.tar") {
            return Ok((name, content));
        }
        rest = after.get(length.next_multiple_of(2)..).unwrap_or_default();
    }
    bail!("the package has no member data.tar")
}

fn matches(pattern: &str, path: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == path,
        Some((start, end)) => path
            .strip_prefix(start)
            .and_then(|rest| rest.strip_suffix(end))
            .is_some_and(|middle| !middle.contains('/')),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn package(member: &str, data: &[u8]) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        for (name, content) in [("debian-binary", b"2.0\n1".as_slice()), (member, data)] {
            writeln!(
                out,
                "{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`",
                0,
                0,
                0,
                100644,
                content.len()
            )
            .unwrap();
            out.extend(content);
            if content.len() % 2 == 1 {
                out.push(b'\n');
            }
        }
        out
    }

    fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, content) in files {
            let mut header = tar::Header::new_ustar();
            header.set_size(content.len() as u64);
            header.set_cksum();
            builder.append_data(&mut header, path, *content).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn finds_the_file_in_plain_and_compressed_data() {
        let tar = tar_of(&[("./boot/config-1", b"no"), ("./boot/vmlinuz-1", b"kernel")]);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&tar).unwrap();
        for package in [
            package("data.tar", &tar),
            package("data.tar.gz", &gzip.finish().unwrap()),
        ] {
            let found = file(&package, "boot/vmlinuz-*").unwrap();
            assert_eq!(found, ("boot/vmlinuz-1".to_owned(), b"kernel".to_vec()));
        }
    }

    #[test]
    fn damage_is_named() {
        let refused = |package: &[u8]| file(package, "x").unwrap_err().to_string();
        assert_eq!(refused(b"hello"), "this is no Debian package");
        let good = package("data.tar", &tar_of(&[("y", b"")]));
        assert_eq!(refused(&good), "the package has no file x");
        assert_eq!(refused(&good[..300]), "the package is truncated in data.tar");
        assert_eq!(
            refused(&package("data.tar.lz", b"")),
            "the package's data is compressed in an unknown way: .lz"
        );
        assert_eq!(
            refused(&package("control.tar", b"")),
            "the package has no member data.tar"
        );
    }

    #[test]
    fn star_stops_at_a_slash() {
        assert!(matches("boot/vmlinuz-*", "boot/vmlinuz-6.1"));
        assert!(matches("boot/gnumach-*.gz", "boot/gnumach-1.8-486.gz"));
        assert!(!matches("boot/*", "boot/grub/x"));
        assert!(!matches("boot/vmlinuz-*", "lib/vmlinuz-6.1"));
    }
}
