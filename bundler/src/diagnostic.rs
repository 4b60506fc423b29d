//! Errors with the place shown, and what ends a command.

use std::fmt;
use std::ops::Range;

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};
use kitbag_format::exit;

/// More than this many errors are counted, not shown.
const SHOWN: usize = 20;

/// A text file that errors point into.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Source {
    /// Its path, for people.
    pub path: String,
    /// What it says.
    pub text: String,
}

impl Source {
    /// Number of the line that byte `offset` stands in, from 1.
    pub fn line(&self, offset: usize) -> usize {
        1 + self.text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
    }
}

/// One error: what is wrong, where, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    title: String,
    marks: Vec<Mark>,
    help: Vec<String>,
}

/// A place in the source, as a range of bytes, and what is to be said of it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mark {
    span: Range<usize>,
    label: String,
    kind: AnnotationKind,
}

impl Diagnostic {
    /// An error that has no place yet. `title` is one line without a full stop.
    pub fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), marks: Vec::new(), help: Vec::new() }
    }

    /// Points at the bytes `span` of the source; `label`, possibly empty, stands beside them.
    pub fn at(mut self, span: Range<usize>, label: impl Into<String>) -> Self {
        self.marks.push(Mark { span, label: label.into(), kind: AnnotationKind::Primary });
        self
    }

    /// Points at a second place that has to do with it.
    pub fn with(mut self, span: Range<usize>, label: impl Into<String>) -> Self {
        self.marks.push(Mark { span, label: label.into(), kind: AnnotationKind::Context });
        self
    }

    /// Adds a line on what to do.
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help.push(help.into());
        self
    }

    /// Adds "did you mean" where there is a near miss.
    pub fn near(self, near: Option<&str>) -> Self {
        match near {
            Some(near) => self.help(format!("did you mean `{near}`?")),
            None => self,
        }
    }

    fn position(&self) -> usize {
        self.marks.first().map_or(usize::MAX, |mark| mark.span.start)
    }

    fn group<'a>(&'a self, source: Option<&'a Source>) -> Group<'a> {
        let mut group = Group::with_title(Level::ERROR.primary_title(self.title.as_str()));
        match source {
            Some(source) if self.marks.is_empty() => {
                group = group.element(Origin::path(source.path.as_str()));
            }
            Some(source) => group = group.element(self.snippet(source)),
            None => {}
        }
        group.elements(self.help.iter().map(|help| Level::HELP.message(help.as_str())))
    }

    fn snippet<'a>(&'a self, source: &'a Source) -> Snippet<'a, annotate_snippets::Annotation<'a>> {
        let end = source.text.len();
        Snippet::source(source.text.as_str()).path(source.path.as_str()).annotations(self.marks.iter().map(
            |mark| {
                let span = mark.span.start.min(end)..mark.span.end.min(end);
                let label = Some(mark.label.as_str()).filter(|label| !label.is_empty());
                mark.kind.span(span).label(label)
            },
        ))
    }
}

/// What ends a command: every error found, and the exit code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    code: u8,
    source: Option<Source>,
    diagnostics: Vec<Diagnostic>,
}

impl Failure {
    /// A failure of one sentence, with an exit code of [`kitbag_format::exit`].
    pub fn new(code: u8, title: impl Into<String>) -> Self {
        Self { code, source: None, diagnostics: vec![Diagnostic::new(title)] }
    }

    /// Adds a line on what to do.
    pub fn help(mut self, help: impl Into<String>) -> Self {
        if let Some(last) = self.diagnostics.pop() {
            self.diagnostics.push(last.help(help));
        }
        self
    }

    /// Everything that is wrong with a manifest, in the order of the file ([`exit::MANIFEST`]).
    pub fn manifest(source: Source, mut diagnostics: Vec<Diagnostic>) -> Self {
        diagnostics.sort_by_key(Diagnostic::position);
        Self { code: exit::MANIFEST, source: Some(source), diagnostics }
    }

    /// The exit code, one of [`kitbag_format::exit`].
    pub const fn code(&self) -> u8 {
        self.code
    }

    /// The message, with a newline at its end; `color` adds escape sequences for a terminal.
    pub fn render(&self, color: bool) -> String {
        let renderer = if color { Renderer::styled() } else { Renderer::plain() };
        let mut text = String::new();
        for diagnostic in self.diagnostics.iter().take(SHOWN) {
            if !text.is_empty() {
                text.push('\n');
            }
            text.push_str(&renderer.render(&[diagnostic.group(self.source.as_ref())]));
            text.push('\n');
        }
        if let Some(more @ 1..) = self.diagnostics.len().checked_sub(SHOWN) {
            text.push_str(&format!("\n… and {more} more errors\n"));
        }
        text
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for Failure {}

/// The candidate nearest to `word`, where one is near enough to be meant: a third of its letters may differ.
pub fn near_miss<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let allowed = (word.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}
