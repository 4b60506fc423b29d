//! Compared with what the real loader says, on all programs of this machine.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use kitbag_closure::facts::Kind;
use kitbag_closure::resolve::{Addition, facts_of};
use kitbag_closure::tree::{Listing, Node};
use kitbag_closure::{Closure, Input, Member, Root, resolve};

/// The closure of one program that is included alone.
fn closure_of(program: &Path) -> Option<Closure> {
    let source = fs::canonicalize(program).ok()?;
    let facts = facts_of(&source).ok()??;
    if facts.kind != Kind::Program {
        return None;
    }
    let path = [b"bin/", source.file_name()?.as_bytes()].concat();
    let mut tree = Listing::default();
    tree.add(path.clone(), Node::File);
    let members = [Member { path, source, facts }];
    Some(resolve(&Input { members: &members, tree: &tree, root: &Root::new("/"), read: &facts_of }))
}

/// The files that the loader says it would load, links followed; and whether it finds all.
fn said_by_loader(program: &Path, interpreter: &Path) -> Option<(BTreeSet<PathBuf>, bool)> {
    let output = Command::new(interpreter)
        .env("LD_TRACE_LOADED_OBJECTS", "1")
        .arg(program)
        .env_remove("LD_LIBRARY_PATH")
        .env_remove("LD_PRELOAD")
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let paths = text.lines().filter_map(|line| {
        let path = line.split_once(" => ").map_or(line, |(_, path)| path);
        let path = path.trim().split(" (0x").next()?;
        path.starts_with('/').then(|| fs::canonicalize(path).expect("what the loader found"))
    });
    Some((paths.collect(), !text.contains("not found")))
}

/// What comes along. A loader does not list what libc opens by itself later, unless something else needs it too.
fn added(closure: &Closure) -> BTreeSet<PathBuf> {
    let loaded: BTreeSet<&Vec<u8>> = closure.loads.values().flatten().collect();
    let listed = |path: &Vec<u8>| !path.ends_with(b"/libgcc_s.so.1") || loaded.contains(path);
    let file = |addition: &Addition| match addition {
        Addition::File { origin, .. } => Some(PathBuf::from(OsStr::from_bytes(origin))),
        Addition::Link(_) | Addition::Empty => None,
    };
    closure
        .additions
        .iter()
        .filter(|(path, _)| listed(path))
        .filter_map(|(_, addition)| file(addition))
        .collect()
}

#[test]
fn every_program_of_this_machine_gets_what_its_loader_finds() {
    let folders = env::var("KITBAG_TEST_PROGRAMS")
        .unwrap_or_else(|_| "/usr/bin:/usr/sbin:/usr/libexec:/usr/local/bin".to_owned());
    let (mut compared, mut wrong) = (0, Vec::new());
    let entries = folders.split(':').filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
    let programs: BTreeSet<PathBuf> =
        entries.filter_map(|entry| fs::canonicalize(entry.path()).ok()).collect();
    for program in programs {
        let Some(closure) = closure_of(&program) else { continue };
        let facts = facts_of(&program).expect("read before").expect("ELF");
        let interpreter = facts.interpreter.expect("a program's");
        if interpreter.windows(7).any(|part| part == b"ld-musl") {
            continue;
        }
        let Some((said, complete)) = said_by_loader(&program, Path::new(OsStr::from_bytes(&interpreter)))
        else {
            continue;
        };
        let found = added(&closure);
        compared += 1;
        if found != said || closure.missing.is_empty() != complete {
            let only = |one: &BTreeSet<PathBuf>, other: &BTreeSet<PathBuf>| {
                one.difference(other).cloned().collect::<Vec<_>>()
            };
            wrong.push(format!(
                "{}: only here {:?}, only there {:?}, missing {:?}",
                program.display(),
                only(&found, &said),
                only(&said, &found),
                closure.missing
            ));
        }
        if !closure.conflicts.is_empty() || !closure.unmet_versions.is_empty() {
            wrong.push(format!(
                "{}: {:?} {:?}",
                program.display(),
                closure.conflicts,
                closure.unmet_versions
            ));
        }
    }
    println!("{compared} programs compared");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(compared > 0, "no dynamic program on this machine");
}
