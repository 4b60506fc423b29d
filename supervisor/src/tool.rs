//! A tool's full start: unpack, write down what a later start needs, become the program.

pub mod memory;
pub mod start_record;

use std::convert::Infallible;
use std::ffi::{CString, OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::{env, io};

use kitbag_format::Error;
use kitbag_format::manifest::{Command, Manifest};
use nix::unistd::{execve, fexecve};

use crate::commands::{Failure, say};
use crate::expand::{self, Values};
use crate::open::{self, Own};
use crate::state_folder;
use crate::state_folder::TMPDIR;
use crate::state_folder::Users;
use crate::store::StoreError;
use crate::store::place::{self, Facts};
use crate::store::unpack::{self, Compare, Opening, Tree};
use crate::tool::start_record::{CheckedFile, Guard, Piece, StartRecord};

/// Variables that decide where the state folder is.
const STATE_NAMED_BY: [&str; 3] = ["KITBAG_STATE", "XDG_STATE_HOME", "HOME"];

/// Of a program's loader and libraries so many are compared in a later start, which shall take the same time for
/// any program.
const CHECKED_LOADS: usize = 8;

/// Becomes the program; returns only why it could not.
pub fn start(own: &Own, arguments: &[OsString]) -> Result<(), Failure> {
    let manifest = own.bundle.manifest()?;
    let kitbag_format::manifest::Run::Command(command) = &manifest.run else { return Ok(()) };
    let facts = Facts::of_process(Some(&own.path));
    let (store, _) = match place::choose(&facts, &own.bundle) {
        Err(StoreError::NoPlace(tried)) if !place::is_mistake(&tried) => {
            return match memory::program(&own.bundle, &manifest, command)? {
                Some(program) => from_memory(program, command, &manifest, arguments),
                None => Err(StoreError::NoPlace(tried).into()),
            };
        }
        other => other?,
    };
    let executed: Vec<&str> = command.argv.iter().take(1).chain(&command.loads).map(String::as_str).collect();
    let compare = Compare::Only(&executed);
    let opening = Opening { bundle: &own.bundle, manifest: &manifest, compare, say: &say };
    let tree = unpack::open_tree(&store, &opening)?;
    let state = state(&facts, &manifest, command, &tree)?;
    let temporary = state.as_deref().and_then(|state| state_folder::temporary(&facts, state, &say));
    let (state, temporary) = (state.as_deref(), temporary.as_deref());
    let values = Values { tree: &tree.root, state, manifest: &manifest, temporary };
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
    let (seeds, users) = (&manifest.seeds, Users::beside(&state, std::iter::empty()));
    let _alone = if seeds.is_empty() { None } else { Some(state_folder::wait_to_plant(&state, &users)?) };
    state_folder::plant(&tree.root, &state, seeds, &users)?;
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
    let mut guards =
        if values.state.is_some() { STATE_NAMED_BY.map(Guard::now).to_vec() } else { Vec::new() };
    if values.state.is_some() && !state_folder::has_temporary() {
        guards.push(Guard::now(TMPDIR));
    }
    let mut variables = Vec::new();
    if let Some(folder) = values.temporary.filter(|_| !command.env.contains_key(TMPDIR)) {
        variables.push((TMPDIR.into(), vec![Piece::Literal(folder.into())]));
    }
    for (name, text) in &command.env {
        variables.push((name.into(), values.pieces(text)?));
    }
    let program = command.argv.iter().take(1).map(|path| tree.root.join(path));
    let loads = command.loads.iter().take(CHECKED_LOADS).map(|path| tree.opened_at(path));
    let mut files = Vec::new();
    for path in program.chain(loads) {
        let Ok(file) = CheckedFile::now(&path) else { return Ok(None) };
        files.push(file);
    }
    let record = StartRecord {
        head_prefix: open::head_prefix(),
        folder,
        guards,
        needs: values.temporary.or(values.state).map(Path::to_owned),
        files,
        keep_loader_variables: command.loads.is_empty(),
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
    let absolute = |name: &str| set(name).filter(|value| value.as_bytes().starts_with(b"/"));
    let place = match (set("KITBAG_STORE"), facts.uid, absolute("XDG_CACHE_HOME"), absolute("HOME")) {
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
    if bytes.last() == Some(&b'/') {
        bytes.pop();
    }
    bytes.extend_from_slice(more.as_bytes());
    OsString::from_vec(bytes)
}

fn is_same(one: &Path, other: &Path) -> bool {
    one.canonicalize().is_ok_and(|one| other.canonicalize().is_ok_and(|other| one == other))
}

/// The one program of a bundle, from memory: there is no tree, and nothing that needs one.
fn from_memory(
    file: OwnedFd,
    command: &Command,
    manifest: &Manifest,
    arguments: &[OsString],
) -> Result<(), Failure> {
    let values = Values { tree: Path::new("/"), state: None, manifest, temporary: None };
    let program = PathBuf::from(command.argv.first().map_or("", String::as_str));
    let image = Image::new(&program, command, &values, arguments)?;
    let error = image.execute(|image| fexecve(&file, &image.argv, &image.env));
    Err(Failure::NotStarted { program, error })
}

fn become_program(
    program: PathBuf,
    command: &Command,
    values: &Values,
    arguments: &[OsString],
) -> Result<(), Failure> {
    let image = Image::new(&program, command, values, arguments)?;
    // Plainly, without a library's preparations: signals are as the caller left them.
    let error = image.execute(|image| execve(&image.argv[0], &image.argv, &image.env));
    Err(Failure::NotStarted { program, error })
}

/// What execve(2) takes.
struct Image {
    argv: Vec<CString>,
    env: Vec<CString>,
    cwd: Option<OsString>,
}

impl Image {
    fn new(
        program: &Path,
        command: &Command,
        values: &Values,
        arguments: &[OsString],
    ) -> Result<Self, Failure> {
        let mut argv = vec![text(program.as_os_str().to_owned())?];
        for argument in command.argv.iter().skip(1) {
            argv.push(text(values.text(argument)?)?);
        }
        for argument in arguments {
            argv.push(text(argument.clone())?);
        }
        let kept = values
            .inherited(command)
            .filter(|(name, _)| name.to_str().is_none_or(|name| !command.env.contains_key(name)));
        let mut variables =
            kept.map(|(name, value)| text(variable(name, &value))).collect::<Result<Vec<_>, _>>()?;
        for (name, value) in &command.env {
            variables.push(text(variable(name.into(), &values.text(value)?))?);
        }
        let cwd = command.cwd.as_deref().map(|cwd| values.text(cwd)).transpose()?;
        Ok(Self { argv, env: variables, cwd })
    }

    /// Returns only the reason why there is no program.
    fn execute(&self, execute: impl FnOnce(&Self) -> nix::Result<Infallible>) -> io::Error {
        if let Some(Err(error)) = self.cwd.as_ref().map(env::set_current_dir) {
            return error;
        }
        match execute(self) {
            Ok(never) => match never {},
            Err(errno) => errno.into(),
        }
    }
}

fn text(text: OsString) -> Result<CString, Failure> {
    CString::new(text.into_vec())
        .map_err(|error| Failure::Bundle(Error::io("use a text with a zero in it")(error.into())))
}

fn variable(mut name: OsString, value: &OsStr) -> OsString {
    name.push("=");
    name.push(value);
    name
}
