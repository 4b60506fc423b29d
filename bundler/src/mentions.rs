//! Which variables a file names: those of [`VARIABLES`] that anyone may ask for.
//!
//! Whoever is not made to ask for such a variable by its other name needs it under its own one. What a file asks for
//! nobody can tell, but it has to name it: in its code, in its constants, or in a text.

use std::sync::LazyLock;

use aho_corasick::{AhoCorasick, MatchKind};
use kitbag_closure::rewrite::{Reader, VARIABLES, Variable};
use serde::{Deserialize, Serialize};

/// Endings of files that people read, and programs do not.
const DOCUMENTS: [&[u8]; 5] = [b".md", b".rst", b".txt", b".html", b".h"];

/// The variables that are looked for.
static WATCHED: LazyLock<Vec<&Variable>> =
    LazyLock::new(|| VARIABLES.iter().filter(|variable| variable.reader == Reader::Anyone).collect());

/// Their names, all at once. No name is part of another one; this kind of match is the one with vector instructions.
static FINDER: LazyLock<Option<AhoCorasick>> = LazyLock::new(|| {
    let names = WATCHED.iter().map(|variable| variable.name);
    AhoCorasick::builder().match_kind(MatchKind::LeftmostFirst).build(names).ok()
});

/// A set of variables: a bit for each that is watched.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mentions(u8);

impl Mentions {
    /// Those that `bytes` name, anywhere.
    pub fn of(bytes: &[u8]) -> Self {
        let found = FINDER.iter().flat_map(|finder| finder.find_iter(bytes));
        Self(found.fold(0, |bits, found| bits | 1 << found.pattern().as_usize()))
    }

    /// True if `variable` is among them.
    pub fn has(self, variable: &Variable) -> bool {
        let number = WATCHED.iter().position(|one| *one == variable);
        number.is_some_and(|number| self.0 >> number & 1 == 1)
    }

    const fn join(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// The mentions of a file that is read in pieces.
#[derive(Default)]
pub struct Watch {
    /// What was found so far.
    pub found: Mentions,
    /// The end of the last piece: a name may stand across two.
    end: Vec<u8>,
}

impl Watch {
    /// Looks at the next piece.
    pub fn see(&mut self, piece: &[u8]) {
        let longest = WATCHED.iter().map(|variable| variable.name.len()).max().unwrap_or(0);
        self.end.extend_from_slice(&piece[..piece.len().min(longest)]);
        self.found.join(Mentions::of(&self.end));
        self.found.join(Mentions::of(piece));
        self.end.clear();
        self.end.extend_from_slice(&piece[piece.len().saturating_sub(longest)..]);
    }
}

/// True if the file at `path` can ask for what it names.
pub fn may_ask(path: &[u8], variable: &Variable) -> bool {
    WATCHED.contains(&variable) && !DOCUMENTS.iter().any(|ending| path.ends_with(ending))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(mentions: Mentions) -> Vec<&'static str> {
        VARIABLES.iter().filter(|one| mentions.has(one)).map(|one| one.name).collect()
    }

    #[test]
    fn names_are_found_wherever_they_stand() {
        // As in a Go program, whose strings stand side by side.
        assert_eq!(
            named(Mentions::of(b"unsetSSL_CERT_FILESSL_CERT_DIRx")),
            ["SSL_CERT_FILE", "SSL_CERT_DIR"]
        );
        assert_eq!(named(Mentions::of(b"os.environ['TZDIR']")), ["TZDIR"]);
        assert!(named(Mentions::of(b"SSL_CERT TERMINFO TZ_DIR")).is_empty());
    }

    #[test]
    fn a_name_across_two_pieces_is_found() {
        let mut watch = Watch::default();
        for piece in [&b"a long first piece, and then PYTHON"[..], b"TZPATH, and ", b"SSL_CE", b"RT_FILE"] {
            watch.see(piece);
        }
        assert_eq!(named(watch.found), ["SSL_CERT_FILE", "PYTHONTZPATH"]);
    }

    #[test]
    fn what_people_read_asks_for_nothing() {
        let zones = Variable::named("TZDIR").unwrap();
        assert!(may_ask(b"app/zones.py", zones) && may_ask(b"bin/zones", zones));
        assert!(!may_ask(b"share/doc/README.md", zones));
        assert!(!may_ask(b"lib/site.py", Variable::named("PYTHONNOUSERSITE").unwrap()));
    }
}
