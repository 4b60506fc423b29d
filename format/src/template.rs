//! Placeholders in argv, environment, working directory and whatever else is a template.
//!
//! | placeholder           | stands for                                                            |
//! |-----------------------|-----------------------------------------------------------------------|
//! | `${tree}`             | the unpacked tree, an absolute path, read-only                        |
//! | `${state}`            | the app's state folder, an absolute path, writable                    |
//! | `${name}` `${version}`| the bundle's                                                          |
//! | `${env.NAME}`         | the host's environment variable; an error where it is not set         |
//! | `${env.NAME:-TEXT}`   | the same, with TEXT where it is not set or empty                      |
//! | `${instance}`         | the index of the service's instance, from 0                           |
//! | `${port.NAME}`        | a port of the service: see [`crate::port`]                            |
//! | `${ports.SERVICE.NAME}` | one of another service                                              |
//! | `${ports.BUNDLE/SERVICE.NAME}` | one of another bundle                                        |
//! | `$$`                  | a dollar sign                                                         |
//!
//! A `$` before anything else stands for itself, so shell-like text passes unharmed.

use std::fmt;

use crate::port::Reference;

/// A parsed template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(pub Vec<Piece>);

/// A part of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Text as it stands.
    Text(String),
    /// `${tree}`
    Tree,
    /// `${state}`
    State,
    /// `${name}`
    Name,
    /// `${version}`
    Version,
    /// `${env.NAME}`, with a default or not.
    Env(String, Option<String>),
    /// `${instance}`
    Instance,
    /// `${port.NAME}` and its like.
    Port(Reference),
}

/// Why a template cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TemplateError {
    /// `${` without `}`. Byte offset of the `$`.
    Unclosed(usize),
    /// `${…}` with a name that is not in the table. Byte offset of the `$`, and the name.
    Unknown(usize, String),
}

impl fmt::Display for TemplateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unclosed(_) => write!(f, "`${{` has no closing `}}`"),
            Self::Unknown(_, name) => write!(f, "there is no placeholder `${{{name}}}`"),
        }
    }
}

impl std::error::Error for TemplateError {}

/// The placeholders, for messages.
pub const NAMES: &[&str] = &[
    "tree",
    "state",
    "name",
    "version",
    "env.NAME",
    "env.NAME:-TEXT",
    "instance",
    "port.NAME",
    "ports.SERVICE.NAME",
    "ports.BUNDLE/SERVICE.NAME",
];

impl Template {
    /// Parses `text`.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let mut pieces = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            let offset = text.len() - rest.len() + at;
            literal.push_str(&rest[..at]);
            let after = &rest[at + 1..];
            if let Some(body) = after.strip_prefix('{') {
                let end = body.find('}').ok_or(TemplateError::Unclosed(offset))?;
                if !literal.is_empty() {
                    pieces.push(Piece::Text(std::mem::take(&mut literal)));
                }
                pieces.push(
                    Piece::named(&body[..end])
                        .ok_or_else(|| TemplateError::Unknown(offset, body[..end].to_owned()))?,
                );
                rest = &body[end + 1..];
            } else {
                literal.push('$');
                rest = after.strip_prefix('$').unwrap_or(after);
            }
        }
        literal.push_str(rest);
        if !literal.is_empty() || pieces.is_empty() {
            pieces.push(Piece::Text(literal));
        }
        Ok(Self(pieces))
    }
}

impl Piece {
    /// True for what is known only when a service is about to start.
    pub const fn is_late(&self) -> bool {
        matches!(self, Self::Instance | Self::Port(_))
    }

    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "tree" => Self::Tree,
            "state" => Self::State,
            "name" => Self::Name,
            "version" => Self::Version,
            "instance" => Self::Instance,
            _ if name.starts_with("port.") || name.starts_with("ports.") => {
                Self::Port(Reference::parse(name)?)
            }
            _ => {
                let (variable, default) = match name.strip_prefix("env.")?.split_once(":-") {
                    Some((variable, default)) => (variable, Some(default.to_owned())),
                    None => (&name["env.".len()..], None),
                };
                let word = |byte: u8| byte == b'_' || byte.is_ascii_alphanumeric();
                if variable.is_empty() || !variable.bytes().all(word) {
                    return None;
                }
                Self::Env(variable.to_owned(), default)
            }
        })
    }
}
