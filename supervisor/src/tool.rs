//! A tool's full start: unpack, write down what a later start needs, become the program.

use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::{env, io};

use kitbag_format::manifest::{Command, Manifest};
use nix::unistd::execve;

use crate::commands::{Failure, say};
use crate::expand::{self, Values};
use crate::open::{self, Own};
use crate::place::{self, Facts};
use crate::start_record::{CheckedFile, Guard, StartRecord};
use crate::store::StoreError;
use crate::unpack::{self, Compare, Opening, Tree};
use crate::{memory, state_folder};

/// Variables that decide where the state folder is.
const STATE_NAMED_BY: [&str; 3] = ["KITBAG_STATE", "XDG_STATE_HOME", "HOME"];

/// Becomes the program; returns only why it could not.
pub fn start(own: &Own, arguments: &[OsString]) -> Result<(), Failure> {
    let manifest = own.bundle.manifest()?;
    let kitbag_format::manifest::Run::Command(command) = &manifest.run else { return Ok(()) };
    let facts = Facts::of_process(Some(&own.path));
    let (store, _) = match place::choose(&facts, &own.bundle) {
        Err(StoreError::NoPlace(tried)) => {
            return match memory::program(&own.bundle, command)? {
                Some(program) => from_memory(program, command, &manifest, arguments),
                None => Err(StoreError::NoPlace(tried).into()),
            };
        }
        other => other?,
    };
    let program = command.argv.first().map_or("", String::as_str);
    let compare = Compare::Only(&[program]);
    let opening = Opening { bundle: &own.bundle, manifest: &manifest, compare, say: &say };
    let tree = unpack::open_tree(&store, &opening)?;
    let state = state(&facts, &manifest, command, &tree)?;
    let values = Values { tree: &tree.root, state: state.as_deref(), manifest: &manifest };
    if let Some(record) = record(&facts, &tree, &values, command, &own.bundle.digest().to_string())? {
        // Without it the next start is a full one too; nothing else depends on it.
        let _ = tree.write_start(&record);
    }
    become_program(values.program(command), command, &values, arguments)
}

fn state(
    facts: &Facts,
    manifest: &Manifest,
    command: &Command,
    tree: &Tree,
) -> Result<Option<PathBuf>, Failure> {
    if manifest.seeds.is_empty() && !expand::uses_state(command) {
        return Ok(None);
    }
    let state = state_folder::choose(facts, &manifest.name)?;
    state_folder::plant(&tree.root, &state, &manifest.seeds)?;
    Ok(Some(state))
}

/// What a later start needs; `None` where it would not look for it, or could not use it.
fn record(
    facts: &Facts,
    tree: &Tree,
    values: &Values,
    command: &Command,
    digest: &str,
) -> Result<Option<Vec<u8>>, Failure> {
    let Some(folder) = spelled_folder(facts, digest).filter(|folder| is_same(folder, &tree.dir)) else {
        return Ok(None);
    };
    let mut argv = vec![values.pieces(&values.program(command).to_string_lossy().replace('$', "$$"))?];
    for argument in command.argv.iter().skip(1) {
        argv.push(values.pieces(argument)?);
    }
    let mut variables = Vec::new();
    for (name, text) in &command.env {
        variables.push((name.into(), values.pieces(text)?));
    }
    let guards = if values.state.is_some() { STATE_NAMED_BY.map(Guard::now).to_vec() } else { Vec::new() };
    let Ok(program) = CheckedFile::now(&values.program(command)) else { return Ok(None) };
    let record = StartRecord {
        head_prefix: open::head_prefix(),
        folder,
        guards,
        needs: values.state.map(Path::to_owned),
        files: vec![program],
        boot_id: Some(tree.boot_id).filter(|id| id.iter().any(|byte| *byte != 0)),
        cwd: command.cwd.as_deref().map(|cwd| values.pieces(cwd)).transpose()?,
        argv,
        env: variables,
    };
    Ok(record.to_bytes().ok())
}

/// The tree's folder as a later start spells it; see `docs/architecture.md`.
fn spelled_folder(facts: &Facts, digest: &str) -> Option<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
    let place = match (set("KITBAG_STORE"), facts.uid, set("XDG_CACHE_HOME"), set("HOME")) {
        (Some(place), ..) => place,
        (None, 0, ..) => "/var/cache/kitbag".into(),
        (None, _, Some(cache), _) => joined(cache, "/kitbag"),
        (None, _, None, Some(home)) => joined(home, "/.cache/kitbag"),
        (None, _, None, None) => return None,
    };
    place.as_bytes().starts_with(b"/").then(|| joined(place, &format!("/v1/trees/{digest}")).into())
}

fn joined(path: OsString, more: &str) -> OsString {
    let mut bytes = path.into_vec();
    bytes.extend_from_slice(more.as_bytes());
    OsString::from_vec(bytes)
}

fn is_same(one: &Path, other: &Path) -> bool {
    one.canonicalize().is_ok_and(|one| other.canonicalize().is_ok_and(|other| one == other))
}

/// The one program of a bundle, from memory: there is no tree, and nothing that needs one.
fn from_memory(
    program: PathBuf,
    command: &Command,
    manifest: &Manifest,
    arguments: &[OsString],
) -> Result<(), Failure> {
    let values = Values { tree: Path::new("/nonexistent"), state: None, manifest };
    become_program(program, command, &values, arguments)
}

fn become_program(
    program: PathBuf,
    command: &Command,
    values: &Values,
    arguments: &[OsString],
) -> Result<(), Failure> {
    let mut argv = vec![program.clone().into_os_string()];
    for argument in command.argv.iter().skip(1) {
        argv.push(values.text(argument)?);
    }
    argv.extend_from_slice(arguments);
    let mut variables: Vec<OsString> = env::vars_os()
        .filter(|(name, _)| name.to_str().is_none_or(|name| !command.env.contains_key(name)))
        .map(|(name, value)| variable(name, &value))
        .collect();
    for (name, text) in &command.env {
        variables.push(variable(name.into(), &values.text(text)?));
    }
    if let Some(cwd) = &command.cwd {
        let cwd = values.text(cwd)?;
        env::set_current_dir(&cwd).map_err(|error| Failure::NotStarted { program: cwd.into(), error })?;
    }
    // Plainly, without a library's preparations: signals are as the caller left them.
    let error = execute(&program, &argv, &variables);
    Err(Failure::NotStarted { program, error })
}

fn variable(mut name: OsString, value: &OsStr) -> OsString {
    name.push("=");
    name.push(value);
    name
}

fn execute(program: &Path, argv: &[OsString], env: &[OsString]) -> io::Error {
    let texts = |texts: &[OsString]| {
        texts.iter().map(|text| CString::new(text.as_bytes())).collect::<Result<Vec<_>, _>>()
    };
    let prepared =
        CString::new(program.as_os_str().as_bytes()).and_then(|path| Ok((path, texts(argv)?, texts(env)?)));
    match prepared {
        Ok((path, argv, env)) => match execve(&path, &argv, &env) {
            Ok(never) => match never {},
            Err(errno) => errno.into(),
        },
        Err(error) => error.into(),
    }
}
