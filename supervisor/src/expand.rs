//! Templates -> text: what `${tree}`, `${state}` and the others stand for in this start.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use kitbag_format::manifest::{Command, LOADER_VARIABLES, Manifest};
use kitbag_format::template::{Piece, Template, TemplateError};

use crate::late;
use crate::state_folder::TMPDIR;
use crate::tool::start_record;

/// What the placeholders stand for.
pub struct Values<'a> {
    /// `${tree}`
    pub tree: &'a Path,
    /// `${state}`, where anything uses it.
    pub state: Option<&'a Path>,
    /// `${name}` and `${version}`.
    pub manifest: &'a Manifest,
    /// What TMPDIR is to be, where the caller's does not do; see [`crate::state_folder::temporary`].
    pub temporary: Option<&'a Path>,
}

/// Why a text cannot be expanded.
#[derive(Debug)]
pub enum ExpandError {
    /// A packer that did not check its manifest.
    Template(TemplateError),
    /// `${env.NAME}` without default, and the variable is not set.
    Unset(String),
    /// `${port.NAME}` or its like where no port is known.
    Late(String),
}

impl fmt::Display for ExpandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Template(error) => write!(f, "the bundle's manifest is wrong: {error}"),
            Self::Late(text) => {
                write!(f, "the bundle's manifest is wrong: `{text}` cannot have a port in it")
            }
            Self::Unset(name) => {
                write!(
                    f,
                    "the environment variable {name} is not set, and it has no default; set it: {name}=…"
                )
            }
        }
    }
}

impl std::error::Error for ExpandError {}

/// True if a command's argv, environment or working directory has `${state}`.
pub fn uses_state(command: &Command) -> bool {
    uses(command, &Piece::State)
}

/// True if they have `${tree}`.
pub fn uses_tree(command: &Command) -> bool {
    uses(command, &Piece::Tree)
}

fn uses(command: &Command, piece: &Piece) -> bool {
    let texts = command.argv.iter().chain(command.env.values()).chain(&command.cwd);
    texts.into_iter().any(|text| Template::parse(text).is_ok_and(|template| template.0.contains(piece)))
}

/// True if a text has a placeholder that is filled in when a unit starts.
pub fn is_late(text: &str) -> bool {
    Template::parse(text).is_ok_and(|template| template.0.iter().any(Piece::is_late))
}

impl Values<'_> {
    /// All but the variables expanded: what a later start can use without this one's work.
    pub fn pieces(&self, text: &str) -> Result<start_record::Text, ExpandError> {
        let template = Template::parse(text).map_err(ExpandError::Template)?;
        if template.0.iter().any(Piece::is_late) {
            return Err(ExpandError::Late(text.to_owned()));
        }
        Ok(template.0.into_iter().map(|piece| self.piece(piece)).collect())
    }

    fn piece(&self, piece: Piece) -> start_record::Piece {
        let literal = |text: &OsStr| start_record::Piece::Literal(text.to_owned());
        match piece {
            Piece::Text(text) => literal(OsStr::new(&text)),
            Piece::Tree => literal(self.tree.as_os_str()),
            Piece::State => literal(self.state.map_or(OsStr::new(""), Path::as_os_str)),
            Piece::Name => literal(OsStr::new(&self.manifest.name)),
            Piece::Version => literal(OsStr::new(&self.manifest.version)),
            Piece::Env(name, default) => start_record::Piece::Env(name.into(), default.map(OsString::from)),
            // Not here: see `pieces`.
            Piece::Instance | Piece::Port(_) => literal(OsStr::new("")),
        }
    }

    /// The text, of which ports and the instance's index are filled in later.
    pub fn late(&self, text: &str) -> Result<late::Text, ExpandError> {
        let template = Template::parse(text).map_err(ExpandError::Template)?;
        let mut late = late::Text::default();
        for piece in template.0 {
            match piece {
                Piece::Instance => late.0.push(late::Piece::Instance),
                Piece::Port(reference) => late.0.push(late::Piece::Port(reference)),
                known => late.push(resolve(&vec![self.piece(known)])?),
            }
        }
        Ok(late)
    }

    /// The text, with this process's environment.
    pub fn text(&self, text: &str) -> Result<OsString, ExpandError> {
        resolve(&self.pieces(text)?)
    }

    /// The program's path: argv's first is one in the tree.
    pub fn program(&self, command: &Command) -> PathBuf {
        self.tree.join(command.argv.first().map_or("", String::as_str))
    }

    /// The variables of this process that a tool's program gets: [`inherited`], and TMPDIR where the caller's does not do.
    pub fn inherited(&self, command: &Command) -> impl Iterator<Item = (OsString, OsString)> {
        let own = self.temporary.map(|folder| (TMPDIR.into(), folder.into()));
        let is_replaced = own.is_some();
        inherited(command).filter(move |(name, _)| !is_replaced || name != TMPDIR).chain(own)
    }
}

/// The variables of this process that a command's program inherits. One that comes with its libraries gets none that
/// would make its loader take the host's.
pub fn inherited(command: &Command) -> impl Iterator<Item = (OsString, OsString)> {
    let foreign =
        |name: &OsStr| !command.loads.is_empty() && name.as_bytes().starts_with(LOADER_VARIABLES.as_bytes());
    std::env::vars_os().filter(move |(name, _)| !foreign(name))
}

/// Fills in the variables. An empty one counts as unset where there is a default.
pub fn resolve(text: &start_record::Text) -> Result<OsString, ExpandError> {
    let mut out = OsString::new();
    for piece in text {
        match piece {
            start_record::Piece::Literal(text) => out.push(text),
            start_record::Piece::Env(name, default) => {
                let set = std::env::var_os(name).filter(|value| default.is_none() || !value.is_empty());
                match set.or_else(|| default.clone()) {
                    Some(value) => out.push(value),
                    None => return Err(ExpandError::Unset(name.to_string_lossy().into_owned())),
                }
            }
        }
    }
    Ok(out)
}
