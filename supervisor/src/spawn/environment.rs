//! The environment of a service's program: what it inherits, what goes with its user, its manifest, and its env files.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use kitbag_format::manifest::Command;
use kitbag_format::service::Process;
use kitbag_format::sort;
use nix::fcntl::OFlag;

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

/// Bytes of the longest env file. execve(2) takes no more than 2 MiB of arguments and environment by default.
const LONGEST_FILE: u64 = 1 << 20;

/// Most variables of an env file. Each costs time at every start and every check, in the loop.
const MOST_VARIABLES: usize = 4096;

/// Variables, each with its value.
pub type Variables = Vec<(OsString, OsString)>;

/// The env files of a command. They are read at each of its starts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EnvFiles {
    /// Their paths, in their order; one that ends in `?` may be missing.
    pub paths: Vec<OsString>,
    /// Variables that the manifest sets, whatever the files say.
    pub own: Vec<OsString>,
}

/// Why env files say nothing.
#[derive(Debug)]
pub enum EnvFileError {
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
    /// There are [`MOST_VARIABLES`] before it.
    Many,
}

impl fmt::Display for EnvFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(path, error) => {
                let remedy = match error.kind() {
                    io::ErrorKind::NotFound => {
                        "make it, or end its name with `?` in the manifest if it may be missing"
                    }
                    _ => "it has to be a file of at most 1 MiB that the supervisor can read",
                };
                write!(f, "cannot read the env file {}: {error}; {remedy}", path.display())
            }
            Self::Line(path, line, mistake) => {
                let what = match mistake {
                    Mistake::NoEquals => "there is no `=`",
                    Mistake::Name => "a name has letters, digits and `_`, and begins with no digit",
                    Mistake::Quote => "a quote is never closed",
                    Mistake::AfterQuote => "there is more after the closing quote",
                    Mistake::Nul => "there is a zero byte",
                    Mistake::Many => {
                        let path = path.display();
                        return write!(
                            f,
                            "{path}:{line}: an env file has at most {MOST_VARIABLES} variables"
                        );
                    }
                };
                write!(f, "{}:{line}: {what}; a line is NAME=value or NAME=\"value\"", path.display())
            }
        }
    }
}

impl std::error::Error for EnvFileError {}

/// The environment of a command, sorted by name, without what is filled in when it starts ([`expand::is_late`]) and what
/// its env files say. Later ones win: what the supervisor has and `pass_env` lets through; TMPDIR, where that one's does not
/// do; HOME, LOGNAME, SHELL and USER where the user is another; the manifest's.
pub fn environment(
    command: &Command,
    process: &Process,
    identity: Option<&Identity>,
    values: &Values<'_>,
) -> Result<Variables, ExpandError> {
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
    for (name, text) in &command.env {
        if expand::is_late(text) {
            env.remove(OsStr::new(name));
        } else {
            env.insert(name.into(), values.text(text)?);
        }
    }
    Ok(env.into_iter().collect())
}

/// Puts variables in the places of those that have their names; later ones win. The result is sorted by name.
pub fn put(env: &mut Variables, variables: &[(OsString, OsString)]) {
    if !variables.is_empty() {
        *env = sort::map(env.drain(..).chain(variables.iter().cloned())).into_iter().collect();
    }
}

impl EnvFiles {
    /// Those of a command; `None`: it has none.
    pub fn of(
        command: &Command,
        process: &Process,
        values: &Values<'_>,
    ) -> Result<Option<Self>, ExpandError> {
        if process.env_files.is_empty() {
            return Ok(None);
        }
        let paths = process.env_files.iter().map(|file| values.text(file)).collect::<Result<_, _>>()?;
        Ok(Some(Self { paths, own: command.env.keys().map(OsString::from).collect() }))
    }

    /// What they say now, later ones last. `open` opens one: [`open_file`].
    pub fn read(&self, open: &dyn Fn(&Path) -> io::Result<File>) -> Result<Variables, EnvFileError> {
        let mut all = Vec::new();
        for path in &self.paths {
            all.extend(read(path, open)?);
        }
        all.retain(|(name, _)| !self.own.contains(name));
        Ok(all)
    }
}

/// Opens a file whose bytes are there at once: a fifo or a device could be waited for. With more flags of open(2).
pub fn open_file(path: &Path, more: OFlag) -> io::Result<File> {
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY | more;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is no regular file")) }
}

/// Reads an env file; one whose name ends in `?` may be missing.
fn read(name: &OsStr, open: &dyn Fn(&Path) -> io::Result<File>) -> Result<Variables, EnvFileError> {
    let optional = name.as_bytes().strip_suffix(b"?");
    let path = Path::new(optional.map_or(name, OsStr::from_bytes));
    match open(path).and_then(whole) {
        Ok(text) => parse(&text).map_err(|(line, mistake)| EnvFileError::Line(path.into(), line, mistake)),
        Err(error) if error.kind() == io::ErrorKind::NotFound && optional.is_some() => Ok(Vec::new()),
        Err(error) => Err(EnvFileError::Read(path.into(), error)),
    }
}

fn whole(file: File) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    file.take(LONGEST_FILE + 1).read_to_end(&mut text)?;
    if text.len() as u64 > LONGEST_FILE { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(text) }
}

/// Reads lines `NAME=value`, each with an `export ` before it or not. A value is
/// - bare: to the end of the line, or to a `#` after a blank, without blanks around it;
/// - 'quoted': as it stands, over several lines too;
/// - "quoted": the same, with `\` before `"`, `\`, `$` and a back quote standing for that character.
///
/// No variable is expanded and no other `\` means anything. Empty lines and those that begin with `#` say nothing.
/// An error has the line's number.
pub fn parse(text: &[u8]) -> Result<Variables, (usize, Mistake)> {
    let mut cursor = Cursor { rest: text, line: 1 };
    let mut variables = Vec::new();
    while !cursor.rest.is_empty() {
        let line = cursor.line;
        if let Some(variable) = cursor.variable().map_err(|mistake| (line, mistake))? {
            if variables.len() == MOST_VARIABLES {
                return Err((line, Mistake::Many));
            }
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
    use std::io::Write;

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
    fn an_env_file_has_so_many_variables_and_no_more() {
        let lines = |count| (0..count).map(|at| format!("# {at}\n\nA{at}=\n")).collect::<String>();
        assert_eq!(read(&lines(4096)).len(), 4096);
        assert_eq!(mistake(&lines(4097)), (3 * 4097, Mistake::Many));
        // The names do not matter.
        assert_eq!(mistake(&"A=1\n".repeat(200_000)), (4097, Mistake::Many));
        let error = EnvFileError::Line("env".into(), 4097, Mistake::Many).to_string();
        assert_eq!(error, "env:4097: an env file has at most 4096 variables");
    }

    #[test]
    fn only_a_file_with_a_question_mark_may_be_missing() {
        let read = |path: &str| super::read(OsStr::new(path), &|path| open_file(path, OFlag::empty()));
        assert_eq!(read("/none/there?").unwrap(), []);
        let error = read("/none/there").unwrap_err().to_string();
        assert!(error.starts_with("cannot read the env file /none/there: "), "{error}");
        assert!(error.ends_with("; make it, or end its name with `?` in the manifest if it may be missing"));
    }

    #[test]
    fn only_a_small_regular_file_is_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("env");
        let read = || {
            super::read(path.as_os_str(), &|path| open_file(path, OFlag::empty()))
                .map_err(|error| error.to_string())
        };
        // Nobody will ever write to it.
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("a fifo");
        assert!(read().unwrap_err().contains("it is no regular file; it has to be a file of at most 1 MiB"));
        std::fs::remove_file(&path).expect("it is there");
        let file = File::create(&path).expect("a file");
        (&file).write_all(b"A=1\nB=").expect("room");
        assert_eq!(read(), Ok(vec![("A".into(), "1".into()), ("B".into(), "".into())]));
        file.set_len(LONGEST_FILE + 1).expect("a hole");
        assert!(read().unwrap_err().contains("file too large"));
        drop(folder);
    }

    #[test]
    fn the_manifest_has_the_last_word_and_a_later_file_the_one_before() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name).into_os_string();
        std::fs::write(path("one"), "A=one\nB=one\nC=one\n").expect("a file");
        std::fs::write(path("two"), "B=two\n").expect("a file");
        let files = EnvFiles { paths: vec![path("one"), path("two"), path("no?")], own: vec!["C".into()] };
        let mut env = vec![("A".into(), "base".into()), ("C".into(), "manifest".into())];
        put(&mut env, &files.read(&|path| open_file(path, OFlag::empty())).expect("they are right"));
        let shown: Vec<String> =
            env.iter().map(|(name, value)| format!("{}={}", name.display(), value.display())).collect();
        assert_eq!(shown, ["A=one", "B=two", "C=manifest"]);
    }
}
