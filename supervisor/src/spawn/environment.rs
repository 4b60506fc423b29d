//! The environment of a service's program: what it inherits, what goes with its user, its env files, its manifest.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::{fmt, fs, io};

use kitbag_format::manifest::Command;
use kitbag_format::service::Process;
use kitbag_format::sort;

use crate::expand::{self, ExpandError, Values};
use crate::spawn::identity::Identity;
use crate::state_folder::TMPDIR;

/// Variables that were meant for the supervisor: what it is called; sockets that it inherited (sd_listen_fds(3)); whom it
/// tells how it is (sd_notify(3), sd_watchdog_enabled(3)), who would take a service's words for its own; what its output and
/// its stored descriptors are, which are not its services' (`JOURNAL_STREAM` and `FDSTORE` of systemd.exec(5)); and which
/// process is controlled (`MAINPID` there). What is true of services too stays, such as `INVOCATION_ID`.
const OURS: &[&str] = &[
    "KITBAG_NAME",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "FDSTORE",
    "JOURNAL_STREAM",
    "MAINPID",
    "MAINPIDFDID",
];

/// Why an environment cannot be made.
#[derive(Debug)]
pub enum EnvironmentError {
    /// A template.
    Expand(ExpandError),
    /// An env file that cannot be read.
    Read(PathBuf, io::Error),
    /// A line of an env file, from 1, that says nothing.
    Line(PathBuf, usize, Mistake),
}

/// What is wrong with a line of an env file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mistake {
    /// There is no `=`.
    NoEquals,
    /// What stands before it is no name.
    Name,
    /// A quote that nothing closes; the line is where it opens.
    Quote,
    /// Text behind a closing quote.
    AfterQuote,
    /// A zero byte, which no environment can hold.
    Nul,
}

impl fmt::Display for EnvironmentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expand(error) => error.fmt(f),
            Self::Read(path, error) => write!(
                f,
                "cannot read the env file {}: {error}; make it, or end its name with `?` in the manifest if it may \
                 be missing",
                path.display()
            ),
            Self::Line(path, line, mistake) => {
                let what = match mistake {
                    Mistake::NoEquals => "there is no `=`",
                    Mistake::Name => "a name has letters, digits and `_`, and begins with no digit",
                    Mistake::Quote => "a quote is never closed",
                    Mistake::AfterQuote => "there is more after the closing quote",
                    Mistake::Nul => "there is a zero byte",
                };
                write!(f, "{}:{line}: {what}; a line is NAME=value or NAME=\"value\"", path.display())
            }
        }
    }
}

impl std::error::Error for EnvironmentError {}

impl From<ExpandError> for EnvironmentError {
    fn from(error: ExpandError) -> Self {
        Self::Expand(error)
    }
}

/// The environment of a command, sorted by name, without what is filled in when it starts ([`expand::is_late`]). Later ones win: what the supervisor has and `pass_env` lets
/// through; TMPDIR, where that one's does not do; HOME, LOGNAME, SHELL and USER where the user is another; the env files in their order; the manifest's.
pub fn environment(
    command: &Command,
    process: &Process,
    identity: Option<&Identity>,
    values: &Values<'_>,
) -> Result<Vec<(OsString, OsString)>, EnvironmentError> {
    let passes = |name: &OsStr| {
        !OURS.iter().any(|our| name == *our)
            && process
                .pass_env
                .as_ref()
                .is_none_or(|names| names.iter().any(|passed| name == passed.as_str()))
    };
    let mut env = sort::map(expand::inherited(command).filter(|(name, _)| passes(name)));
    // The state folder is another user's where the service has its own.
    let temporary = values.temporary.filter(|_| identity.is_none());
    env.extend(temporary.map(|folder| (TMPDIR.into(), folder.into())));
    env.extend(identity.into_iter().flat_map(|identity| identity.env.iter().cloned()));
    for file in &process.env_files {
        env.extend(read(&values.text(file)?)?);
    }
    for (name, text) in &command.env {
        if expand::is_late(text) {
            env.remove(OsStr::new(name));
        } else {
            env.insert(name.into(), values.text(text)?);
        }
    }
    Ok(env.into_iter().collect())
}

/// Reads an env file; one whose name ends in `?` may be missing.
fn read(name: &OsStr) -> Result<Vec<(OsString, OsString)>, EnvironmentError> {
    let optional = name.as_bytes().strip_suffix(b"?");
    let path = Path::new(optional.map_or(name, OsStr::from_bytes));
    match fs::read(path) {
        Ok(text) => {
            parse(&text).map_err(|(line, mistake)| EnvironmentError::Line(path.into(), line, mistake))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound && optional.is_some() => Ok(Vec::new()),
        Err(error) => Err(EnvironmentError::Read(path.into(), error)),
    }
}

/// Reads lines `NAME=value`, each with an `export ` before it or not. A value is
/// - bare: to the end of the line, or to a `#` after a blank, without blanks around it;
/// - 'quoted': as it stands, over several lines too;
/// - "quoted": the same, with `\` before `"`, `\`, `$` and a back quote standing for that character.
///
/// No variable is expanded and no other `\` means anything. Empty lines and those that begin with `#` say nothing.
/// An error has the line's number.
pub fn parse(text: &[u8]) -> Result<Vec<(OsString, OsString)>, (usize, Mistake)> {
    let mut cursor = Cursor { rest: text, line: 1 };
    let mut variables = Vec::new();
    while !cursor.rest.is_empty() {
        let line = cursor.line;
        if let Some(variable) = cursor.variable().map_err(|mistake| (line, mistake))? {
            variables.push(variable);
        }
    }
    Ok(variables)
}

/// What is left of an env file.
struct Cursor<'a> {
    rest: &'a [u8],
    line: usize,
}

impl<'a> Cursor<'a> {
    /// One line, or several where a quote goes on.
    fn variable(&mut self) -> Result<Option<(OsString, OsString)>, Mistake> {
        let line = self.peek_line().trim_ascii();
        if line.is_empty() || line.starts_with(b"#") {
            self.take_line();
            return Ok(None);
        }
        let equals = self.peek_line().iter().position(|byte| *byte == b'=').ok_or(Mistake::NoEquals)?;
        let name = self.take(equals).trim_ascii();
        let name = match name.strip_prefix(b"export") {
            Some(rest) if rest.starts_with(b" ") || rest.starts_with(b"\t") => rest.trim_ascii(),
            _ => name,
        };
        if !is_name(name) {
            return Err(Mistake::Name);
        }
        let name = OsString::from_vec(name.to_vec());
        self.take(1);
        let value = self.value()?;
        if value.contains(&0) {
            return Err(Mistake::Nul);
        }
        Ok(Some((name, OsString::from_vec(value))))
    }

    fn value(&mut self) -> Result<Vec<u8>, Mistake> {
        let line = self.peek_line();
        let blanks = line.len() - line.trim_ascii_start().len();
        match line.get(blanks) {
            Some(quote @ (b'"' | b'\'')) => {
                let quote = *quote;
                self.take(blanks + 1);
                self.quoted(quote)
            }
            _ => Ok(bare(self.take_line()).to_vec()),
        }
    }

    /// To the closing quote, and the rest of its line, which may be a comment.
    fn quoted(&mut self, quote: u8) -> Result<Vec<u8>, Mistake> {
        let mut value = Vec::new();
        loop {
            match *self.rest {
                [] => return Err(Mistake::Quote),
                [byte, ..] if byte == quote => break,
                [b'\\', escaped @ (b'"' | b'\\' | b'$' | b'`'), ..] if quote == b'"' => {
                    value.push(escaped);
                    self.take(2);
                }
                [byte, ..] => {
                    value.push(byte);
                    self.take(1);
                }
            }
        }
        self.take(1);
        let after = self.take_line();
        if bare(after).is_empty() { Ok(value) } else { Err(Mistake::AfterQuote) }
    }

    /// To the end of the line, that not included.
    fn peek_line(&self) -> &'a [u8] {
        self.rest.split(|byte| *byte == b'\n').next().unwrap_or_default()
    }

    /// The same, and goes on to the next line.
    fn take_line(&mut self) -> &'a [u8] {
        let length = self.peek_line().len();
        let line = self.take(length + 1);
        line.strip_suffix(b"\n").unwrap_or(line)
    }

    fn take(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at(length.min(self.rest.len()));
        self.rest = rest;
        self.line += taken.iter().filter(|byte| **byte == b'\n').count();
        taken
    }
}

/// A value without quotes: a `#` begins a comment where a blank stands before it, or nothing.
fn bare(text: &[u8]) -> &[u8] {
    let comment =
        (0..text.len()).find(|&at| text[at] == b'#' && text[..at].last().is_none_or(u8::is_ascii_whitespace));
    text[..comment.unwrap_or(text.len())].trim_ascii()
}

fn is_name(name: &[u8]) -> bool {
    let part = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    name.first().is_some_and(|first| !first.is_ascii_digit()) && name.iter().all(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Variables as `NAME=value`.
    fn read(text: &str) -> Vec<String> {
        let variables = parse(text.as_bytes()).unwrap();
        variables.iter().map(|(name, value)| format!("{}={}", name.display(), value.display())).collect()
    }

    fn mistake(text: &str) -> (usize, Mistake) {
        parse(text.as_bytes()).unwrap_err()
    }

    #[test]
    fn lines_are_read_as_a_shell_would_without_expanding() {
        let text =
            "# a comment\n\nA=1\nexport B=two words \n C = 3 # why\r\nD=\nE=a#b\nF=$HOME\\n\nexport=7\nG=x=y";
        assert_eq!(
            read(text),
            ["A=1", "B=two words", "C=3", "D=", "E=a#b", "F=$HOME\\n", "export=7", "G=x=y"]
        );
        assert_eq!(read("A=# nothing\nB=\n"), ["A=", "B="]);
    }

    #[test]
    fn quotes_keep_what_is_in_them() {
        assert_eq!(read("A=' # $x\\\" '"), ["A= # $x\\\" "]);
        assert_eq!(read(r#"A="\"\\\$\`\n"  # why"#), [r#"A="\$`\n"#]);
        assert_eq!(read("KEY=\"one\ntwo\n\"\nB=2"), ["KEY=one\ntwo\n", "B=2"]);
    }

    #[test]
    fn a_mistake_has_the_number_of_its_line() {
        assert_eq!(mistake("A=1\nnonsense\n"), (2, Mistake::NoEquals));
        assert_eq!(mistake("A='1\n2'\n3B=1"), (3, Mistake::Name));
        assert_eq!(mistake("\nA=\"1\nB=2\n"), (2, Mistake::Quote));
        assert_eq!(mistake("A='1'2"), (1, Mistake::AfterQuote));
        assert_eq!(mistake("A=\0"), (1, Mistake::Nul));
    }

    #[test]
    fn only_a_file_with_a_question_mark_may_be_missing() {
        assert_eq!(super::read(OsStr::new("/none/there?")).unwrap(), []);
        let error = super::read(OsStr::new("/none/there")).unwrap_err();
        assert!(error.to_string().starts_with("cannot read the env file /none/there: "), "{error}");
    }
}
