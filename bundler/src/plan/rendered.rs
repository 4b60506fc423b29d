//! Files that are rendered before a service starts: read when packing, so that a wrong placeholder shows now.

use std::fs;
use std::path::Path;

use kitbag_format::port::{Protocol, Reference};
use kitbag_format::service::Service;
use kitbag_format::template::{Piece, Template};

use super::Draft;
use crate::diagnostic::Diagnostic;
use crate::manifest::{Known, RenderSource, RunSource, Supervised, Wrong, broken, written};
use crate::read::Text;
use crate::tree::{Kind, Node};

/// The largest file that is rendered, in bytes.
const LARGEST: u64 = 1 << 20;

/// The variable that tells a service its only port.
const PORT: &str = "PORT";

impl Draft<'_> {
    /// Checks every file that is rendered, and references to this bundle by its own name.
    pub(super) fn rendered(&mut self, name: &str) {
        let RunSource::Services(supervised) = &self.project.manifest.run else { return };
        let known = Known::of(supervised);
        for (unit, source) in &supervised.services {
            for render in &source.renders {
                self.render(name, render, Some(unit.get_ref()), &known);
            }
        }
        for render in supervised.tasks.iter().flat_map(|(_, source)| &source.renders) {
            self.render(name, render, None, &known);
        }
        self.remarks(name, supervised);
    }

    fn remarks(&mut self, name: &str, supervised: &Supervised) {
        let line = |at: usize| format!("{} line {}", self.project.source.path, self.project.source.line(at));
        let odd = supervised.odd.iter().map(|(span, text)| format!("{text} ({})", line(span.start)));
        let own =
            supervised.elsewhere.iter().filter(|(_, reference)| reference.bundle.as_deref() == Some(name));
        let own = own.map(|(span, reference)| named_itself(reference, &line(span.start)));
        let warnings: Vec<String> = odd.chain(own).collect();
        self.warnings.extend(warnings);
    }

    fn render(&mut self, name: &str, render: &RenderSource, own: Option<&str>, known: &Known<'_>) {
        let seeds = &self.project.manifest.seeds;
        if let Some(seed) = seeds.iter().find(|seed| seed.to.get_ref() == render.to.get_ref()) {
            let title = format!("a seed and a rendered file both become `{}`", render.to.get_ref());
            let error = Diagnostic::new(title).at(render.to.span(), "before each start …");
            self.errors.push(
                error.with(seed.to.span(), "… over this, which is state").help("give one another `to`"),
            );
        }
        let Some(text) = self.text(&render.from) else { return };
        let path = render.from.get_ref();
        let template = match Template::parse(&text) {
            Ok(template) => template,
            Err(error) => {
                let (bytes, wrong) = broken(&text, &error);
                return self.in_file(render, &place(&text, bytes.start), wrong);
            }
        };
        for piece in &template.0 {
            let Piece::Port(reference) = piece else { continue };
            let place = || place(&text, text.find(&written(piece)).unwrap_or_default());
            if let Some(wrong) = known.fault(own, reference, false) {
                self.in_file(render, &place(), wrong);
            } else if reference.bundle.as_deref() == Some(name) {
                self.warnings.push(named_itself(reference, &format!("`{path}`, {}", place())));
            }
        }
    }

    fn in_file(&mut self, render: &RenderSource, place: &str, wrong: Wrong) {
        let title = format!("`{}`, {place}: {}", render.from.get_ref(), wrong.title);
        self.errors.push(Wrong { title, ..wrong }.at(render.from.span()));
    }

    /// The text of a file of the tree; `None` if there is none, which is reported, or none yet.
    fn text(&mut self, from: &Text) -> Option<String> {
        let path = from.get_ref();
        let source = match self.tree.resolve(path.as_bytes()) {
            None => {
                self.not_in_tree(path, from.span(), "text file");
                return None;
            }
            Some((_, Some(Node { kind: Kind::File { .. }, source, .. }))) => source.clone(),
            Some(_) => {
                let error = Diagnostic::new(format!("`{path}` cannot be rendered"));
                self.errors.push(error.at(from.span(), "it is a folder, not a file"));
                return None;
            }
        };
        // A program that Cargo has yet to build.
        if source.as_os_str().is_empty() {
            return None;
        }
        match read(&source) {
            Ok(text) => Some(text),
            Err(fault) => {
                let error = Diagnostic::new(format!("`{path}` cannot be rendered"));
                self.errors.push(error.at(from.span(), fault));
                None
            }
        }
    }
}

fn read(path: &Path) -> Result<String, String> {
    let shown = |error: std::io::Error| format!("{}: {error}", path.display());
    let length = fs::metadata(path).map_err(shown)?.len();
    if length > LARGEST {
        return Err(format!("it has {length} bytes; expected {LARGEST} at most"));
    }
    let bytes = fs::read(path).map_err(shown)?;
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let line = 1 + error.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count();
        format!("it is not UTF-8 text: byte {at}, in line {line}")
    })
}

/// Where byte `at` of `text` is: columns are characters.
fn place(text: &str, at: usize) -> String {
    let before = &text[..at];
    let line = 1 + before.matches('\n').count();
    let column = 1 + before.rsplit('\n').next().unwrap_or_default().chars().count();
    format!("line {line}, column {column}")
}

fn named_itself(reference: &Reference, place: &str) -> String {
    let shorter = Reference { bundle: None, default: None, ..reference.clone() };
    format!(
        "`{reference}` names this bundle itself, as another process that runs under its name: write `{shorter}` for its \
         own port ({place})"
    )
}

/// Tells a service its only number by the usual variable, unless it says itself what that is.
pub fn tell_port(service: &mut Service) {
    let numbers = service.more.ports.iter().filter(|(_, port)| port.protocol != Protocol::Unix);
    let names: Vec<&String> = numbers.map(|(name, _)| name).collect();
    if let [name] = names[..] {
        let value = format!("${{port.{name}}}");
        service.command.env.entry(PORT.to_owned()).or_insert(value);
    }
}
