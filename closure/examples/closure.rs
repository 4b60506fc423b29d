//! `cargo run --release --example closure -- FOLDER [ROOT]`: what a folder's ELF files need, and how long finding that took.

use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::time::Instant;
use std::{env, fs, io};

use kitbag_closure::resolve::{Addition, facts_of};
use kitbag_closure::tree::{Listing, Node};
use kitbag_closure::{Input, Member, Root, resolve};

fn add(folder: &Path, path: &[u8], tree: &mut Listing, members: &mut Vec<Member>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let (entry, source) = entry.map(|entry| (entry.path(), entry.path()))?;
        let name = entry.file_name().unwrap_or_default().as_bytes();
        let path = if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() };
        let kind = entry.symlink_metadata()?.file_type();
        if kind.is_symlink() {
            tree.add(path, Node::Link(fs::read_link(&entry)?.into_os_string().into_vec()));
        } else if kind.is_dir() {
            tree.add(path.clone(), Node::Folder);
            add(&entry, &path, tree, members)?;
        } else if kind.is_file() {
            tree.add(path.clone(), Node::File);
            match facts_of(&source) {
                Ok(Some(facts)) => members.push(Member { path, source, facts }),
                Ok(None) => {}
                Err(error) => println!("{}: {error}", source.display()),
            }
        }
    }
    Ok(())
}

fn main() -> io::Result<()> {
    let mut arguments = env::args_os().skip(1);
    let folder = fs::canonicalize(arguments.next().unwrap_or_else(|| ".".into()))?;
    let root = Root::new(arguments.next().unwrap_or_else(|| "/".into()));
    let (mut tree, mut members) = (Listing::default(), Vec::new());
    let start = Instant::now();
    add(&folder, b"", &mut tree, &mut members)?;
    let read = start.elapsed();
    let closure = resolve(&Input { members: &members, tree: &tree, root: &root, read: &facts_of });
    let took = start.elapsed();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    for (path, request) in &closure.requests {
        let rpath: Vec<String> = request.rpath.iter().map(|entry| text(entry)).collect();
        println!("{} interpreter {:?} rpath {rpath:?}", text(path), request.interpreter.as_deref().map(text));
    }
    for (path, addition) in &closure.additions {
        let what = match addition {
            Addition::File { source, .. } => source.display().to_string(),
            Addition::Link(target) => format!("link to {}", text(target)),
            Addition::Empty => "empty".to_owned(),
        };
        let last = closure.why(path).pop().map(|link| link.to_string());
        println!("+ {} = {what}: {}", text(path), last.unwrap_or_default());
    }
    for missing in &closure.missing {
        println!(
            "missing {} for {} on {} places",
            text(&missing.name),
            text(&missing.needed_by),
            missing.tried.len()
        );
    }
    for conflict in &closure.conflicts {
        println!("conflict {conflict:?}");
    }
    for unmet in &closure.unmet_versions {
        println!("{} needs {} of {}", text(&unmet.needed_by), text(&unmet.version), text(&unmet.file));
    }
    println!("{} remarks", closure.remarks.len());
    println!(
        "{} members read in {read:?}, resolved with {} additions in {:?}",
        members.len(),
        closure.additions.len(),
        took - read
    );
    Ok(())
}
