// SPDX-License-Identifier: MIT OR Apache-2.0
//! How is the copy of the source made in which the mutations are?

use super::list::{List, Mutation};
use super::schemata;
use crate::paths::write_if_changed;
use anyhow::{Context, Result, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Makes `copy` a workspace of the packages of `list` with all mutations in it. Files that are the same stay untouched, so
/// that cargo builds only what has changed.
pub fn make(root: &Path, copy: &Path, list: &List) -> Result<()> {
    let mut mutated: BTreeMap<&str, Vec<&Mutation>> = BTreeMap::new();
    for mutation in &list.mutation {
        mutated.entry(&mutation.file).or_default().push(mutation);
    }
    let roots: BTreeSet<PathBuf> = mutated.keys().map(|file| crate_root(file)).collect::<Result<_>>()?;
    let (mut kept, mut unfit) = (BTreeSet::new(), Vec::new());
    for folder in &list.copied {
        for file in files(&root.join(folder)).context("`copied`")? {
            let relative = file.strip_prefix(root).unwrap_or(&file).to_owned();
            let mut content = std::fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
            let mutations = relative.to_str().and_then(|name| mutated.remove(name));
            if mutations.is_some() || roots.contains(&relative) {
                let mut text = String::from_utf8(content).with_context(|| file.display().to_string())?;
                if let Some(mutations) = mutations {
                    match schemata::apply(&text, &mutations) {
                        Ok(mutated) => text = mutated,
                        Err(error) => unfit.push(error.to_string()),
                    }
                }
                if roots.contains(&relative) {
                    text = schemata::with_switch(&text);
                }
                content = text.into_bytes();
            }
            write_if_changed(&copy.join(&relative), &content)?;
            kept.insert(copy.join(relative));
        }
        remove_others(&copy.join(folder), &kept)?;
    }
    let is_package = |folder: &&String| root.join(folder).join("Cargo.toml").is_file();
    let packages: Vec<String> = list.copied.iter().filter(is_package).cloned().collect();
    for (file, mutations) in &mutated {
        unfit.push(format!(
            "mutation {:?} does not apply: there is no file {file}",
            mutations[0].name
        ));
    }
    ensure!(unfit.is_empty(), "{}", unfit.join("\n"));
    let manifest = std::fs::read_to_string(root.join("Cargo.toml")).context("reading Cargo.toml")?;
    write_if_changed(&copy.join("Cargo.toml"), workspace(&manifest, &packages)?.as_bytes())?;
    // Cargo takes out what the smaller workspace does not have, hence only a new one is copied.
    let lock = std::fs::read(root.join("Cargo.lock")).context("reading Cargo.lock")?;
    if write_if_changed(&copy.join("Cargo.lock.original"), &lock)? || !copy.join("Cargo.lock").exists() {
        write_if_changed(&copy.join("Cargo.lock"), &lock)?;
    }
    Ok(())
}

/// The crates with mutations, as the compiler calls them.
pub fn mutated_crates(root: &Path, list: &List) -> Result<Vec<String>> {
    let mut crates = Vec::new();
    for folder in &list.copied {
        let mutated = |mutation: &Mutation| Path::new(&mutation.file).starts_with(folder);
        if list.mutation.iter().any(mutated) {
            let file = root.join(folder).join("Cargo.toml");
            let text = std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
            let manifest: toml::Table = toml::from_str(&text).with_context(|| file.display().to_string())?;
            let name = manifest["package"]["name"].as_str().context("a package has a name")?;
            crates.push(name.replace('-', "_"));
        }
    }
    Ok(crates)
}

/// The root file of the crate that has `file`.
fn crate_root(file: &str) -> Result<PathBuf> {
    let path = Path::new(file);
    let source = path
        .ancestors()
        .find(|folder| folder.file_name().is_some_and(|name| name == "src"));
    let source = source.with_context(|| format!("{file} is no source file of a library"))?;
    Ok(source.join("lib.rs"))
}

/// The project's manifest with no other members than `members`, and with the dependencies on them.
fn workspace(manifest: &str, members: &[String]) -> Result<String> {
    let mut manifest: toml::Table = toml::from_str(manifest).context("Cargo.toml")?;
    let workspace = manifest.get_mut("workspace").and_then(toml::Value::as_table_mut);
    let workspace = workspace.context("Cargo.toml has no workspace")?;
    let members: Vec<toml::Value> = members.iter().map(|member| member.as_str().into()).collect();
    workspace.remove("default-members");
    workspace.remove("exclude");
    if let Some(dependencies) = workspace.get_mut("dependencies").and_then(toml::Value::as_table_mut) {
        dependencies.retain(|_, dependency| match dependency.get("path") {
            Some(path) => members.contains(path),
            None => true,
        });
    }
    workspace.insert("members".to_owned(), members.into());
    toml::to_string(&manifest).context("Cargo.toml")
}

/// All files below `folder`, without what was built; a file is its own folder.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    if folder.is_file() {
        return Ok(vec![folder.to_owned()]);
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry.with_context(|| format!("reading {}", folder.display()))?.path();
        if !path.is_dir() {
            found.push(path);
        } else if path.file_name().is_some_and(|name| name != "target") {
            found.extend(files(&path)?);
        }
    }
    Ok(found)
}

/// Removes the files below `folder` that are not to be `kept`.
fn remove_others(folder: &Path, kept: &BTreeSet<PathBuf>) -> Result<()> {
    for file in files(folder)? {
        if !kept.contains(&file) {
            std::fs::remove_file(&file).with_context(|| format!("removing {}", file.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = r#"
        [workspace]
        members = ["p", "other"]
        default-members = ["p"]
        [workspace.dependencies]
        p = { path = "p" }
        other = { path = "other" }
        log = "0.4"
    "#;

    fn list(find: &str, file: &str) -> List {
        let text = format!(
            "copied = [\"p\"]\n[[mutation]]\nname = \"n\"\nbreaks = \"b\"\nrequirements = [\"SP-1\"]\nfile = \"{file}\"\n\
             find = \"{find}\"\nreplace = \"2\"\ncaught-by = {{ package = \"p\", target = \"lib\", test = \"t\" }}"
        );
        toml::from_str(&text).unwrap()
    }

    #[test]
    fn the_workspace_shrinks_to_its_members() {
        let text = workspace(MANIFEST, &["p".to_owned()]).unwrap();
        let made: toml::Table = toml::from_str(&text).unwrap();
        let workspace = &made["workspace"];
        assert_eq!(workspace["members"].as_array().unwrap().len(), 1);
        assert!(workspace.get("default-members").is_none());
        let dependencies = workspace["dependencies"].as_table().unwrap();
        assert!(dependencies.contains_key("p") && dependencies.contains_key("log"));
        assert!(!dependencies.contains_key("other"));
    }

    #[test]
    fn only_what_changed_is_written_and_what_went_is_removed() {
        let root = std::env::temp_dir().join(format!("umbra-mutants-{}", std::process::id()));
        let (source, copy) = (root.join("project"), root.join("copy"));
        for (file, text) in [
            ("Cargo.toml", MANIFEST),
            ("Cargo.lock", ""),
            ("p/Cargo.toml", ""),
            ("p/src/lib.rs", "mod deep;\n"),
            ("p/src/deep.rs", "fn f() -> u8 { 1 }\n"),
            ("p/src/old.rs", ""),
        ] {
            write_if_changed(&source.join(file), text.as_bytes()).unwrap();
        }
        make(&source, &copy, &list("1", "p/src/deep.rs")).unwrap();
        let read = |file: &str| std::fs::read_to_string(copy.join(file)).unwrap();
        assert!(read("p/src/lib.rs").contains("] mod deep;\n") && read("p/src/lib.rs").contains("fn __mutant"));
        assert!(read("p/src/deep.rs").contains("/* n */) { 2 } else { 1 })"));
        let stamp = || copy.join("p/src/deep.rs").metadata().unwrap().modified().unwrap();
        let before = stamp();
        std::fs::remove_file(source.join("p/src/old.rs")).unwrap();
        make(&source, &copy, &list("1", "p/src/deep.rs")).unwrap();
        assert_eq!(stamp(), before);
        assert!(!copy.join("p/src/old.rs").exists());
        let error = |find, file| format!("{:#}", make(&source, &copy, &list(find, file)).unwrap_err());
        assert!(error("3", "p/src/deep.rs").contains("mutation \"n\" does not apply"));
        assert!(error("1", "p/src/gone.rs").contains("there is no file p/src/gone.rs"));
        std::fs::remove_dir_all(root).unwrap();
    }
}
