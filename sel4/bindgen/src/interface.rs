// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which system calls and invocations does the kernel have, and with which numbers?

use crate::error::{Error, Result};
use crate::expr::Names;
use crate::preprocess::condition;
use roxmltree::{Document, Node};
use std::path::Path;

/// A parameter of a method.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Name.
    pub name: String,
    /// Name of its C type.
    pub kind: String,
    /// Whether the kernel returns it.
    pub output: bool,
}

/// One invocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Method {
    /// Interface, as `seL4_TCB`.
    pub interface: String,
    /// Method, as `Resume`.
    pub name: String,
    /// Name of its label, as `TCBResume`.
    pub label_name: String,
    /// Its label in this build.
    pub label: u64,
    /// Parameters in order.
    pub parameters: Vec<Parameter>,
}

/// All interfaces of a build.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interfaces {
    /// Methods by rising label.
    pub methods: Vec<Method>,
    /// Members of structures that travel as several words: (type, members).
    pub structs: Vec<(String, Vec<String>)>,
}

/// Reads the system calls of this build: (name, number). Numbers count down from -1 in the order of the file, those of
/// absent calls included.
///
/// # Errors
/// XML or a condition that is not understood.
pub fn read_syscalls(file: &Path, text: &str, names: &Names) -> Result<Vec<(String, i64)>> {
    let document = parse(file, text)?;
    let (mut syscalls, mut number) = (Vec::new(), 0);
    for group in ["api", "debug"] {
        for config in document
            .descendants()
            .filter(|node| node.has_tag_name(group))
            .flat_map(|group| group.children())
        {
            if !config.has_tag_name("config") {
                continue;
            }
            let present = applies(file, config, names)?;
            for syscall in config.children().filter(|node| node.has_tag_name("syscall")) {
                number -= 1;
                let name = attribute(file, syscall, "name")?;
                if present {
                    syscalls.push((name, number));
                }
            }
        }
    }
    if syscalls.is_empty() {
        return Err(Error::file(file, "no system calls"));
    }
    Ok(syscalls)
}

/// Adds the methods of one interface file. Labels go on where the file before ended; 0 is the invalid one.
///
/// # Errors
/// XML or a condition that is not understood.
pub fn read_interfaces(file: &Path, text: &str, names: &Names, out: &mut Interfaces) -> Result<()> {
    let document = parse(file, text)?;
    for node in document.descendants().filter(|node| node.has_tag_name("struct")) {
        let members = node.children().filter(|node| node.has_tag_name("member"));
        let members = members
            .map(|member| attribute(file, member, "name"))
            .collect::<Result<_>>()?;
        out.structs.push((attribute(file, node, "name")?, members));
    }
    for method in document.descendants().filter(|node| node.has_tag_name("method")) {
        if !applies(file, method, names)? {
            continue;
        }
        let interface = method
            .parent_element()
            .filter(|parent| parent.has_tag_name("interface"));
        let interface = interface.ok_or_else(|| error_at(file, method, "a method outside of an interface"))?;
        let mut parameters = Vec::new();
        for parameter in method.children().filter(|node| node.has_tag_name("param")) {
            let output = match attribute(file, parameter, "dir")?.as_str() {
                "in" => false,
                "out" => true,
                other => return Err(error_at(file, parameter, &format!("direction `{other}`"))),
            };
            let name = attribute(file, parameter, "name")?;
            parameters.push(Parameter {
                name,
                kind: attribute(file, parameter, "type")?,
                output,
            });
        }
        out.methods.push(Method {
            interface: attribute(file, interface, "name")?,
            name: attribute(file, method, "name")?,
            label_name: attribute(file, method, "id")?,
            label: out.methods.len() as u64 + 1,
            parameters,
        });
    }
    Ok(())
}

fn parse<'a>(file: &Path, text: &'a str) -> Result<Document<'a>> {
    // The files of the tree carry a reference to their document type; nothing of it is used.
    let options = roxmltree::ParsingOptions {
        allow_dtd: true,
        ..Default::default()
    };
    Document::parse_with_options(text, options).map_err(|error| Error::line(file, error.pos().row, error.to_string()))
}

fn applies(file: &Path, node: Node<'_, '_>, names: &Names) -> Result<bool> {
    match node.attribute("condition") {
        None | Some("") => Ok(true),
        Some(text) => condition(text, names).map_err(|reason| error_at(file, node, &format!("condition: {reason}"))),
    }
}

fn attribute(file: &Path, node: Node<'_, '_>, name: &str) -> Result<String> {
    let value = node.attribute(name).filter(|value| !value.is_empty());
    let missing = || error_at(file, node, &format!("<{}> has no {name}", node.tag_name().name()));
    value.map(str::to_owned).ok_or_else(missing)
}

fn error_at(file: &Path, node: Node<'_, '_>, reason: &str) -> Error {
    Error::line(file, node.document().text_pos_at(node.range().start).row, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYSCALLS: &str = r#"<syscalls><api><config><syscall name="Call"/><syscall name="Send"/></config></api>
        <debug><config condition="defined CONFIG_DEBUG"><syscall name="PutChar"/></config>
        <config condition="CONFIG_NODES > 1"><syscall name="Never"/></config>
        <config condition="defined CONFIG_VTX"><syscall name="VMEnter"/></config></debug></syscalls>"#;

    const METHODS: &str = r#"<api><struct name="regs"><member name="a"/><member name="b"/></struct>
        <interface name="seL4_TCB"><method id="TCBOne" name="One"/>
        <method id="TCBTwo" name="Two" condition="defined(CONFIG_DEBUG)"/>
        <method id="TCBThree" name="Three"><param dir="in" name="x" type="seL4_Word"/><param dir="out" name="y" type="regs"/>
        </method></interface></api>"#;

    fn names(options: &[&str]) -> Names {
        let mut names = Names::default();
        for option in options {
            names.define(option, "1");
        }
        names
    }

    #[test]
    fn syscalls_follow_the_options_but_not_their_numbers() {
        let file = Path::new("syscall.xml");
        let number = |options: &[&str]| {
            let syscalls = read_syscalls(file, SYSCALLS, &names(options)).unwrap();
            syscalls
                .into_iter()
                .find(|(name, _)| name == "VMEnter")
                .map(|(_, number)| number)
        };
        assert_eq!(number(&[]), None);
        assert_eq!(number(&["CONFIG_VTX"]), Some(-5));
        assert_eq!(number(&["CONFIG_VTX", "CONFIG_DEBUG"]), Some(-5));
    }

    #[test]
    fn labels_follow_the_options_and_go_on_over_files() {
        let file = Path::new("a.xml");
        let labels = |options: &[&str]| {
            let mut out = Interfaces::default();
            read_interfaces(file, METHODS, &names(options), &mut out).unwrap();
            read_interfaces(file, METHODS, &names(options), &mut out).unwrap();
            out.methods
                .iter()
                .map(|method| (method.name.clone(), method.label))
                .collect::<Vec<_>>()
        };
        let plain = [("One", 1), ("Three", 2), ("One", 3), ("Three", 4)].map(|(name, label)| (name.to_owned(), label));
        assert_eq!(labels(&[]), plain);
        assert_eq!(labels(&["CONFIG_DEBUG"])[2], ("Three".to_owned(), 3));
    }

    #[test]
    fn mistakes_name_the_line() {
        let file = Path::new("a.xml");
        for (text, line, reason) in [
            ("<api>\n<method id='a' name='b'/></api>", 2, "outside"),
            (
                "<api><interface name='i'>\n\n<method id='a'/></interface></api>",
                3,
                "no name",
            ),
            (
                "<api><interface name='i'><method id='a' name='b'>\n<param dir='up' name='x' type='y'/></method></interface></api>",
                2,
                "`up`",
            ),
            (
                "<api><interface name='i'>\n<method id='a' name='b' condition='1 +'/></interface></api>",
                2,
                "condition",
            ),
            ("<api>", 1, ""),
        ] {
            let error = read_interfaces(file, text, &names(&[]), &mut Interfaces::default())
                .unwrap_err()
                .to_string();
            assert!(
                error.starts_with(&format!("a.xml:{line}: ")) && error.contains(reason),
                "{text}: {error}"
            );
        }
        assert!(read_syscalls(file, "<syscalls/>", &names(&[])).is_err());
    }
}
