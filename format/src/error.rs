//! What can be wrong with a bundle.

use std::{fmt, io};

use crate::layout::PartKind;

/// Why a file cannot be used as a bundle. Absent, cut short, grown, rewritten, damaged, too new and
/// senseless are different things, and each has its name.
#[derive(Debug)]
pub enum Error {
    /// There is no bundle in the file: it is something else, or a runtime with nothing packed.
    NotABundle(&'static str),
    /// The file ends early. Lengths in bytes.
    Truncated {
        /// What the head says.
        expected: u64,
        /// What is there.
        found: u64,
    },
    /// Something was appended. Lengths in bytes.
    Appended {
        /// What the head says.
        expected: u64,
        /// What is there.
        found: u64,
    },
    /// `strip`, `objcopy` or the like wrote the file anew.
    Rewritten,
    /// Bytes differ from their digest.
    Damaged {
        /// Where.
        part: Region,
        /// Offset in the file of the bytes whose digest is wrong, and their number.
        at: (u64, u64),
    },
    /// The bundle needs a reader that knows this.
    TooNew(String),
    /// The bytes are what was packed, but they make no sense: a hostile or broken packer.
    Malformed {
        /// Where.
        part: Region,
        /// What is wrong.
        what: &'static str,
    },
    /// The system said no.
    Io {
        /// What was being done, as the words after "cannot".
        doing: String,
        /// Why it failed.
        source: io::Error,
    },
}

/// A stretch of the file, for messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Region {
    /// The head, which everything else hangs on.
    Head,
    /// A part that the head lists.
    Part(PartKind),
    /// One frame of the payload, by number.
    Frame(usize),
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Head => f.write_str("head"),
            Self::Part(kind) => f.write_str(kind.name()),
            Self::Frame(number) => write!(f, "payload (frame {number})"),
        }
    }
}

impl Error {
    /// For `map_err`: names what was being done.
    pub fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }

    /// A word for scripts, stable between versions.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::NotABundle(_) => "not-a-bundle",
            Self::Truncated { .. } => "truncated",
            Self::Appended { .. } => "appended",
            Self::Rewritten => "rewritten",
            Self::Damaged { .. } => "damaged",
            Self::TooNew(_) => "too-new",
            Self::Malformed { .. } => "malformed",
            Self::Io { .. } => "io",
        }
    }

    /// What a person can do about it; empty where the message says it all.
    pub const fn advice(&self) -> &'static str {
        match self {
            Self::NotABundle(_) => "name a file that `kitbag pack` wrote",
            Self::Truncated { .. } => "copy the file again; the copy was cut short",
            Self::Appended { .. } => "copy the file again, or cut it to its length with `truncate -s`",
            Self::Rewritten => {
                "use the file as `kitbag pack` wrote it; strip the program before packing instead"
            }
            Self::Damaged { .. } => "copy the file again from where it is whole",
            Self::TooNew(_) => "use the bundle's own commands, or a newer kitbag",
            Self::Malformed { .. } => "do not run this file; ask who packed it",
            Self::Io { .. } => "",
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotABundle(why) => write!(f, "not a bundle: {why}"),
            Self::Truncated { expected, found } => {
                write!(f, "truncated: it has {found} of {expected} bytes")
            }
            Self::Appended { expected, found } => {
                write!(f, "appended to: it has {found} bytes, {} more than were packed", found - expected)
            }
            Self::Rewritten => write!(f, "rewritten by strip, objcopy or the like"),
            Self::Damaged { part, at: (offset, length) } => write!(
                f,
                "damaged: its {part} is not what was packed (within the {length} bytes at offset {offset})"
            ),
            Self::TooNew(what) => write!(f, "too new for this reader: {what}"),
            Self::Malformed { part, what } => write!(f, "malformed: its {part} {what}"),
            Self::Io { doing, source } => write!(f, "cannot {doing}: {source}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}
