// SPDX-License-Identifier: MIT OR Apache-2.0
//! Do the generated bindings compile, and do their functions put parameters where the kernel reads them?

mod fixture;

use fixture::{Folder, build_folder};
use std::process::Command;

/// A program around the bindings whose kernel only remembers what it was sent.
const PROGRAM: &str = r#"
#![allow(dead_code, non_camel_case_types, non_upper_case_globals, non_snake_case)]
include!("bindings.rs");
type Sent = (u64, u64, Vec<u64>, Vec<u64>);
std::thread_local! { static SENT: std::cell::RefCell<Option<Sent>> = const { std::cell::RefCell::new(None) }; }
#[derive(Debug)]
pub struct Failure;
pub struct Reply;
impl Reply { fn word(&self, index: usize) -> u64 { [10, 11, 12, 0x1_2345][index] } }
fn invoke<const C: usize, const W: usize>(service: u64, label: u64, caps: [u64; C], words: [u64; W]) -> Result<Reply, Failure> {
    SENT.set(Some((service, label, caps.to_vec(), words.to_vec())));
    Ok(Reply)
}
fn main() {
    let regs = seL4_Regs { a: 7, b: 8, c: 9 };
    let data = seL4_CapData_Guard::new(0x155).into();
    seL4_TCB_Set(5, true, 0x42, 6, seL4_CapRights::new(1, 0), data, &regs).unwrap();
    assert_eq!(SENT.take(), Some((5, invocation_label::TCBSet, vec![6], vec![0x4201, 2, 1 << 28 | 0x55, 7, 8, 9])));
    let (regs, value) = seL4_TCB_Get(5, 3).unwrap();
    assert_eq!(SENT.take(), Some((5, invocation_label::TCBGet, vec![], vec![3])));
    assert_eq!((regs.a, regs.b, regs.c, value), (10, 11, 12, 0x2345));
    assert_eq!(seL4_CapData_Badge::new(u64::MAX).words, [0xfff_ffff]);
    assert_eq!(seL4_CapData_Guard::new(3).get_Kind(), 1);
    assert_eq!(std::mem::size_of::<seL4_BootInfo>(), 1 + 3 * 9 + 8);
    assert_eq!((vcpu::VMX_GUEST_RIP, vcpu::HLT, vcpu::LAST, config::CONFIG_LIST), (0x681e, 12, 5, 3));
    println!("{} {} {} {:?}", invocation_label::TCBGet, invocation_label::VCPURead, seL4_4KObject, SYSCALLS);
}
"#;

fn run(name: &str, options: &str) -> String {
    let build = build_folder(&format!("{name}-tree"), options);
    let bindings = sel4_bindgen::generate(build.path()).unwrap();
    let out = Folder::new(name);
    out.write("bindings.rs", &bindings.source);
    out.write("main.rs", PROGRAM);
    let program = out.path().join("program");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let compiled = Command::new(rustc)
        .args(["--edition=2024", "-o"])
        .arg(&program)
        .arg(out.path().join("main.rs"))
        .output()
        .unwrap();
    assert!(
        compiled.status.success(),
        "{}",
        String::from_utf8_lossy(&compiled.stderr)
    );
    let ran = Command::new(program).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    String::from_utf8(ran.stdout).unwrap()
}

#[test]
fn release_options() {
    let found = run("release", "#define CONFIG_VTX 1\n");
    assert_eq!(found, "2 4 2 [(\"Call\", -1), (\"Send\", -2), (\"VMEnter\", -4)]\n");
}

#[test]
fn debug_options_with_huge_pages() {
    let found = run(
        "debug",
        "#define CONFIG_VTX 1\n#define CONFIG_DEBUG_BUILD 1\n#define CONFIG_HUGE_PAGE 1\n",
    );
    assert_eq!(
        found,
        "3 5 3 [(\"Call\", -1), (\"Send\", -2), (\"DebugPutChar\", -3), (\"VMEnter\", -4)]\n"
    );
}

#[test]
fn all_files_are_named_for_rebuilds() {
    let build = build_folder("files", "");
    let bindings = sel4_bindgen::generate(build.path()).unwrap();
    assert!(bindings.files.iter().all(|file| file.is_file()));
    for name in [
        "autoconf.h",
        "syscall.xml",
        "sel4.xml",
        "types_64.bf",
        "bootinfo_types.h",
        "vcpu.h",
    ] {
        assert!(bindings.files.iter().any(|file| file.ends_with(name)), "{name}");
    }
}

#[test]
fn a_missing_file_is_named() {
    let build = build_folder("missing", "");
    std::fs::remove_file(build.path().join("source/libsel4/include/sel4/errors.h")).unwrap();
    let error = sel4_bindgen::generate(build.path()).unwrap_err().to_string();
    assert!(error.contains("errors.h"), "{error}");
}

#[test]
fn another_architecture_is_refused() {
    let build = build_folder("arch", "");
    build.write("include/autoconf.h", "#define CONFIG_ARCH_ARM 1\n");
    let error = sel4_bindgen::generate(build.path()).unwrap_err().to_string();
    assert!(error.contains("autoconf.h") && error.contains("only x86_64"), "{error}");
}

#[test]
fn a_structure_with_an_unknown_member_is_refused() {
    let build = build_folder("member", "");
    build.write(
        "source/libsel4/include/sel4/shared_types.h",
        "typedef struct { strange_t x; } seL4_Odd;\n",
    );
    let error = sel4_bindgen::generate(build.path()).unwrap_err().to_string();
    assert!(error.contains("seL4_Odd"), "{error}");
}
