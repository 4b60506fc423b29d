//! What is wrong with a placeholder, wherever it stands: in the manifest or in a file that is rendered.

use std::ops::Range;

use kitbag_format::port::is_port_name;
use kitbag_format::template::{NAMES, Piece, TemplateError};

use crate::diagnostic::{Diagnostic, near_miss};

/// Where placeholders can stand that are filled in when a service starts.
pub const WHERE_LATE: &str = "ports and `${instance}` can stand in `argv` and `env` of services and tasks, in `ready` and `health`, and \
                              in files that `render` makes";

/// The words of an error whose place is known to somebody else.
#[derive(Debug, PartialEq, Eq)]
pub struct Wrong {
    /// What is wrong.
    pub title: String,
    /// What stands beside the place, possibly empty.
    pub label: String,
    /// What to do, possibly empty.
    pub help: String,
}

impl Wrong {
    /// An error that says no more than its title.
    pub fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), label: String::new(), help: String::new() }
    }

    /// Adds what was expected.
    pub fn label(self, label: impl Into<String>) -> Self {
        Self { label: label.into(), ..self }
    }

    /// Adds what to do.
    pub fn help(self, help: impl Into<String>) -> Self {
        Self { help: help.into(), ..self }
    }

    /// Adds what was probably meant.
    pub fn meant(self, meant: &str) -> Self {
        self.help(format!("did you mean `{meant}`?"))
    }

    /// The error, at its place.
    pub fn at(self, span: Range<usize>) -> Diagnostic {
        let error = Diagnostic::new(self.title).at(span, self.label);
        if self.help.is_empty() { error } else { error.help(self.help) }
    }
}

/// A late placeholder as it is written: `${port.http:address}`.
pub fn written(piece: &Piece) -> String {
    match piece {
        Piece::Port(reference) => format!("${{{reference}}}"),
        _ => "${instance}".to_owned(),
    }
}

/// What is wrong with `text`, a template of which `error` was said, and the bytes of it that this is about.
pub fn broken(text: &str, error: &TemplateError) -> (Range<usize>, Wrong) {
    let unclosed = |bytes: Range<usize>| {
        let wrong = Wrong::new("`${` has no closing `}`").label("expected a `}` in here");
        (bytes, wrong.help("`$$` writes a dollar sign: `$${`"))
    };
    match error {
        TemplateError::Unclosed(at) => unclosed(*at..text.len()),
        // That brace closes something else.
        TemplateError::Unknown(at, name) if name.contains('\n') => unclosed(*at..text.len()),
        TemplateError::Unknown(at, name) => (*at..at + name.len() + "${}".len(), unknown(name)),
    }
}

fn unknown(name: &str) -> Wrong {
    let wrong = Wrong::new(format!("there is no placeholder `${{{name}}}`"));
    let variable = name.split(':').next().unwrap_or_default();
    let is_variable = |byte: u8| byte == b'_' || byte.is_ascii_uppercase() || byte.is_ascii_digit();
    if !variable.is_empty() && variable.bytes().all(is_variable) {
        return wrong.meant(&format!("${{env.{name}}}"));
    }
    if matches!(name.split(['.', ':']).next(), Some("port" | "ports")) {
        return reference(wrong, name);
    }
    match near_miss(name, NAMES.iter().copied()) {
        Some(near) => wrong.meant(&format!("${{{near}}}")),
        None => {
            let list = NAMES.iter().map(|name| format!("`${{{name}}}`")).collect::<Vec<_>>().join(", ");
            wrong.label(format!("expected one of {list}")).help("`$$` writes a dollar sign")
        }
    }
}

/// What begins as a reference to a port and is none.
fn reference(wrong: Wrong, name: &str) -> Wrong {
    const PARTS: &[&str] = &["host", "listen", "address"];
    let (head, default) = name.split_once(":-").map_or((name, ""), |(head, _)| (head, &name[head.len()..]));
    let (port, part) = head.split_once(':').unwrap_or((head, ""));
    if head.contains(':') && !PARTS.contains(&part) {
        let wrong = wrong.label("expected `:host`, `:listen` or `:address` behind the port, or nothing");
        return match near_miss(part, PARTS.iter().copied()) {
            Some(near) => wrong.meant(&format!("${{{port}:{near}{default}}}")),
            None => wrong,
        };
    }
    let behind = &name[port.len()..];
    if let Some(own) = port.strip_prefix("ports.").filter(|own| is_port_name(own)) {
        let wrong = wrong.label("expected a service and its port: `${ports.SERVICE.NAME}`");
        return wrong.help(format!("the service's own is `${{port.{own}{behind}}}`"));
    }
    if let Some((unit, other)) = port.strip_prefix("port.").and_then(|other| other.rsplit_once('.'))
        && !unit.is_empty()
        && is_port_name(other)
    {
        return wrong.meant(&format!("${{ports.{unit}.{other}{behind}}}"));
    }
    wrong.label("expected `${port.NAME}`, `${ports.SERVICE.NAME}` or `${ports.BUNDLE/SERVICE.NAME}`, all in small letters")
}
