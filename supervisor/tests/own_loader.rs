//! A dynamic program with its own loader and C library, from a bundle that the real runtime starts: it names both by
//! the tree's path, and needs nothing of the host.
#![cfg(all(target_arch = "x86_64", target_os = "linux", target_env = "gnu"))]
#![allow(missing_docs)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{App, Temp};
use kitbag_format::manifest::{self, Restart, Run, Service};
use kitbag_format::slots::{Pad, Slot};

const RUNTIME: &str = env!("CARGO_BIN_EXE_kitbag-supervisor");
/// Says which C library it has and which variables for loaders. Its interpreter has room for another path, which a
/// linker would not leave in a program; it does so in a library, and one with an interpreter is a program too.
const SOURCE: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
const char interpreter[600] __attribute__((section(".interp"))) = "/kitbag-tree/lib/ld.so";
extern char **environ;
__attribute__((force_align_arg_pointer)) void begin(void) {
    Dl_info info;
    char self[4096] = "";
    printf("libc %s\n", dladdr(puts, &info) ? info.dli_fname : "?");
    if (readlink("/proc/self/exe", self, sizeof self - 1) > 0) printf("self %s\n", self);
    for (char **variable = environ; *variable; variable++)
        if (strncmp(*variable, "LD_", 3) == 0) printf("%s\n", *variable);
    exit(0);
}
"#;
const FILLER: &str =
    "/////////////////////////////////////////////////////////////////////////////////////////////";

/// The program, its slots, its loader and its C library; `None` where there is no gcc.
struct Program {
    bytes: Vec<u8>,
    slots: Vec<Slot>,
    loader: Vec<u8>,
    libc: Vec<u8>,
}

fn compile(temp: &Temp) -> Option<Program> {
    let (source, out) = (temp.join("program.c"), temp.join("program"));
    fs::write(&source, SOURCE).unwrap();
    let rpath = format!("/kitbag-tree/lib{}", FILLER.repeat(4));
    let done = Command::new("gcc")
        .args(["-shared", "-fPIC", "-nostartfiles", "-Wl,-e,begin,--disable-new-dtags", "-o"])
        .arg(&out)
        .arg(&source)
        .arg(format!("-Wl,-rpath,{rpath}"))
        .status();
    if !done.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: a program with its own loader: there is no gcc that makes one");
        return None;
    }
    let mut bytes = fs::read(&out).unwrap();
    let find =
        |bytes: &[u8], text: &str| bytes.windows(text.len()).position(|at| at == text.as_bytes()).unwrap();
    let interpreter = find(&bytes, "/kitbag-tree/lib/ld.so\0");
    let path = find(&bytes, &rpath);
    bytes[path + "/kitbag-tree/lib".len()..path + rpath.len()].fill(0);
    let mut slots = vec![
        Slot { at: interpreter as u64, length: 600, pad: Pad::Nul },
        Slot { at: path as u64, length: rpath.len() as u32, pad: Pad::Nul },
    ];
    slots.sort_by_key(|slot| slot.at);
    let library = Command::new("gcc").arg("-print-file-name=libc.so.6").output().unwrap().stdout;
    let library = PathBuf::from(String::from_utf8(library).unwrap().trim());
    let loader = fs::read("/lib64/ld-linux-x86-64.so.2").unwrap();
    Some(Program { bytes, slots, loader, libc: fs::read(library).unwrap() })
}

impl Program {
    fn app(&self, run: Run) -> App {
        let mut app = App::new("dynamic", "1")
            .dir("bin")
            .dir("lib")
            .slotted("bin/app", &self.bytes, &self.slots)
            .program("lib/ld.so", &self.loader)
            .file("lib/libc.so.6", &self.libc);
        app.manifest.run = run;
        app
    }
}

fn command() -> manifest::Command {
    let loads = ["lib/ld.so", "lib/libc.so.6"].map(str::to_owned).to_vec();
    manifest::Command { argv: vec!["bin/app".into()], loads, ..Default::default() }
}

/// A bundle that can be executed.
fn pack(temp: &Temp, app: &App) -> PathBuf {
    let runtime = fs::read(RUNTIME).unwrap();
    let head_at = kitbag_format::elf::find_note_in(&runtime).unwrap().unwrap().start;
    let (made, bundle) = (temp.join("made"), temp.join("bundle"));
    app.pack_with(&runtime, head_at, &made);
    // Through cp(1), as no descriptor that is open for writing may be inherited by another test's child (ETXTBSY).
    assert!(Command::new("cp").arg(&made).arg(&bundle).status().unwrap().success());
    fs::set_permissions(&bundle, PermissionsExt::from_mode(0o755)).unwrap();
    bundle
}

fn start(bundle: &Path, store: &Path, arguments: &[&str]) -> (String, String) {
    let mut command = Command::new(bundle);
    command.args(arguments).env_clear().env("KITBAG_STORE", store);
    command.env("LD_LIBRARY_PATH", "/nowhere").env("LD_HOST", "x");
    let Output { status, stdout, stderr } = command.output().unwrap();
    let texts = (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
    assert!(status.success(), "{status} {texts:?}");
    texts
}

/// The only tree of a store.
fn tree(store: &Path) -> PathBuf {
    let found = fs::read_dir(store.join("v1/trees")).unwrap().next().unwrap();
    found.unwrap().path().join("tree")
}

fn expected(tree: &Path) -> String {
    format!("libc {0}/lib/libc.so.6\nself {0}/bin/app\n", tree.display())
}

#[test]
fn it_runs_where_it_is_unpacked_and_where_that_is_moved() {
    let temp = Temp::new();
    let Some(program) = compile(&temp) else { return };
    let bundle = pack(&temp, &program.app(Run::Command(command())));
    let store = temp.join("store");
    let first = start(&bundle, &store, &[]);
    assert_eq!(first, (expected(&tree(&store)), String::new()));
    assert!(tree(&store).with_file_name("start").exists());
    assert_eq!(start(&bundle, &store, &[]), first, "the later start");

    // Damage to a library, with size and time put back.
    let library = tree(&store).join("lib/libc.so.6");
    let modified = fs::metadata(&library).unwrap().modified().unwrap();
    fs::set_permissions(&library, PermissionsExt::from_mode(0o644)).unwrap();
    let mut bytes = fs::read(&library).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&library, bytes).unwrap();
    fs::set_permissions(&library, PermissionsExt::from_mode(0o444)).unwrap();
    fs::File::open(&library).unwrap().set_modified(modified).unwrap();
    let (said, healed) = start(&bundle, &store, &[]);
    assert_eq!((said, healed.as_str()), (first.0, "kitbag: healed lib/libc.so.6: its content had changed\n"));

    let moved = temp.join("moved");
    fs::rename(&store, &moved).unwrap();
    let (said, healed) = start(&bundle, &moved, &[]);
    assert_eq!(said, expected(&tree(&moved)));
    assert_eq!(healed, "kitbag: healed 1 of the files: they named another folder than their own\n");
    assert_eq!(start(&bundle, &moved, &[]), (expected(&tree(&moved)), String::new()));

    let by_hand = temp.join("by hand");
    let unpacked =
        Command::new(&bundle).current_dir(&temp.0).args(["--kitbag", "unpack", "by hand"]).status();
    assert!(unpacked.unwrap().success());
    let output = Command::new(by_hand.join("bin/app")).env_clear().output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected(&by_hand));
    let listed = start(&bundle, &moved, &["--kitbag", "list", "--long"]).0;
    let flags: Vec<&str> = listed.lines().map(|line| &line[..11]).collect();
    assert_eq!(flags, ["dr-xr-xr-x ", "-r-xr-xr-x+", "dr-xr-xr-x ", "-r-xr-xr-x ", "-r--r--r-- "]);
    let inspected = start(&bundle, &moved, &["--kitbag", "inspect", "--json"]).0;
    assert!(inspected.contains("\"slotted\": 1"), "{inspected}");
    let verified = start(&bundle, &moved, &["--kitbag", "verify", "--unpacked"]).0;
    assert!(verified.ends_with(": whole\n"), "{verified}");
}

#[test]
fn in_an_empty_root_nothing_of_the_host_is_there_to_be_used() {
    let temp = Temp::new();
    let Some(program) = compile(&temp) else { return };
    let bundle = pack(&temp, &program.app(Run::Command(command())));
    let root = temp.join("root");
    fs::create_dir(&root).unwrap();
    fs::copy(&bundle, root.join("app")).unwrap();
    for _ in 0..2 {
        let mut command = Command::new("chroot");
        let Ok(output) = command.arg(&root).arg("/app").env("KITBAG_STORE", "/kits").output() else {
            return eprintln!("SKIPPED: an empty root: there is no chroot in PATH");
        };
        let said = String::from_utf8_lossy(&output.stdout);
        if String::from_utf8_lossy(&output.stderr).contains("cannot change root") {
            return eprintln!("SKIPPED: an empty root: chroot is not allowed here");
        }
        assert!(said.starts_with("libc /kits/v1/trees/"), "{output:?}");
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    }
}

#[test]
fn where_nothing_can_be_executed_it_says_why_and_what_to_do() {
    let temp = Temp::new();
    let Some(program) = compile(&temp) else { return };
    let bundle = pack(&temp, &program.app(Run::Command(command())));
    let disk = temp.join("disk");
    fs::create_dir(&disk).unwrap();
    let mount =
        Command::new("mount").args(["-t", "tmpfs", "-o", "noexec", "kitbag-test"]).arg(&disk).status();
    if !mount.is_ok_and(|status| status.success()) {
        return eprintln!("SKIPPED: a disk that allows no exec: a tmpfs cannot be mounted here");
    }
    let store = disk.join("store");
    let output = Command::new(&bundle).env("KITBAG_STORE", &store).output().unwrap();
    assert!(Command::new("umount").arg(&disk).status().unwrap().success());
    let expected = format!(
        "kitbag: error: no folder can be used to unpack in\n  {} (KITBAG_STORE): the file system is mounted noexec\n  \
         to fix  set KITBAG_STORE to a folder of your own, on a disk that allows exec\n",
        store.display()
    );
    assert_eq!(String::from_utf8_lossy(&output.stderr), expected);
    assert_eq!(output.status.code(), Some(125));
}

#[test]
fn a_service_gets_no_variables_for_loaders() {
    let temp = Temp::new();
    let Some(program) = compile(&temp) else { return };
    let mut command = command();
    command.env.insert("LD_BIND_NOW".into(), "1".into());
    let service = Service {
        command,
        restart: Restart::Never,
        stop_signal: manifest::default_stop_signal(),
        stop_timeout_ms: manifest::default_stop_timeout_ms(),
        more: Default::default(),
    };
    let run = Run::Services(BTreeMap::from([("one".to_owned(), service)]));
    let bundle = pack(&temp, &program.app(run));
    let (said, _) = start(&bundle, &temp.join("store"), &[]);
    let lines: Vec<&str> =
        said.lines().filter_map(|line| line.split_once(" LD_")).map(|line| line.1).collect();
    assert_eq!(lines, ["BIND_NOW=1"], "{said}");
}
