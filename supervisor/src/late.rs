//! Texts that are filled in when a unit starts: its ports, those of others and its index are known no earlier.

use std::ffi::{OsStr, OsString};
use std::rc::Rc;

use kitbag_format::port::Reference;
use kitbag_format::sort;

/// A text of which everything else is known.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Text(pub Vec<Piece>);

/// A part of a [`Text`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// As it stands.
    Literal(OsString),
    /// The index of the unit among its service's.
    Instance,
    /// A port.
    Port(Reference),
}

/// What is known when a unit starts.
pub struct Known<'a> {
    /// The unit's index.
    pub instance: u32,
    /// What a reference stands for, its default aside; `None`: there is no such port now.
    pub port: &'a dyn Fn(&Reference) -> Option<String>,
}

/// A port that a text needs and that is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing(pub Reference);

/// What of a program is filled in when it starts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Late {
    /// Arguments, by their place in argv.
    pub argv: Vec<(usize, Text)>,
    /// Variables.
    pub env: Vec<(OsString, Text)>,
}

/// A file that is made before each start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Its path.
    pub to: Text,
    /// What is in it.
    pub content: Rc<Text>,
}

impl From<OsString> for Text {
    fn from(text: OsString) -> Self {
        Self(vec![Piece::Literal(text)])
    }
}

impl Text {
    /// Adds what is known.
    pub fn push(&mut self, text: OsString) {
        match self.0.last_mut() {
            Some(Piece::Literal(before)) => before.push(text),
            _ => self.0.push(Piece::Literal(text)),
        }
    }

    /// The whole text.
    ///
    /// # Errors
    /// The first port that is not there and has no default.
    pub fn fill(&self, known: &Known<'_>) -> Result<OsString, Missing> {
        let mut out = OsString::new();
        for piece in &self.0 {
            match piece {
                Piece::Literal(text) => out.push(text),
                Piece::Instance => out.push(known.instance.to_string()),
                Piece::Port(reference) => {
                    let found = (known.port)(reference).or_else(|| reference.default.clone());
                    out.push(found.ok_or_else(|| Missing(reference.clone()))?);
                }
            }
        }
        Ok(out)
    }

    /// The text, if all of it is known.
    pub fn plain(&self) -> Option<&OsStr> {
        match &self.0[..] {
            [] => Some(OsStr::new("")),
            [Piece::Literal(text)] => Some(text),
            _ => None,
        }
    }

    /// The ports that it names.
    pub fn references(&self) -> impl Iterator<Item = &Reference> {
        self.0.iter().filter_map(|piece| match piece {
            Piece::Port(reference) => Some(reference),
            _ => None,
        })
    }
}

impl Late {
    /// True if there is nothing to fill in.
    pub const fn is_empty(&self) -> bool {
        self.argv.is_empty() && self.env.is_empty()
    }

    /// Adds the ports that it names.
    pub fn references<'a>(&'a self, all: &mut Vec<&'a Reference>) {
        for (_, text) in &self.argv {
            all.extend(text.references());
        }
        for (_, text) in &self.env {
            all.extend(text.references());
        }
    }

    /// Puts the arguments and variables in their places.
    ///
    /// # Errors
    /// See [`Text::fill`].
    pub fn fill(
        &self,
        known: &Known<'_>,
        argv: &mut [OsString],
        env: &mut Vec<(OsString, OsString)>,
    ) -> Result<(), Missing> {
        for (at, text) in &self.argv {
            if let Some(argument) = argv.get_mut(*at) {
                *argument = text.fill(known)?;
            }
        }
        for (name, text) in &self.env {
            let value = text.fill(known)?;
            env.retain(|(known, _)| known != name);
            env.push((name.clone(), value));
        }
        Ok(())
    }
}

/// Ports of other bundles without which these texts cannot be filled in, each once.
pub fn outer(references: &[&Reference]) -> Vec<Reference> {
    let needed = references.iter().filter(|it| it.bundle.is_some() && it.default.is_none());
    sort::set(needed.map(|it| (*it).clone())).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(text: &str) -> Piece {
        Piece::Port(Reference::parse(text).unwrap())
    }

    fn literal(text: &str) -> Piece {
        Piece::Literal(text.into())
    }

    #[test]
    fn a_text_has_its_ports_and_its_index() {
        let text = Text(vec![literal("a"), Piece::Instance, literal(":"), port("port.http")]);
        let find = |reference: &Reference| (reference.port == "http").then(|| "8080".to_owned());
        let known = Known { instance: 2, port: &find };
        assert_eq!(text.fill(&known).unwrap(), "a2:8080");
        assert_eq!(text.plain(), None);
        let missing = Text(vec![port("ports.db.main")]).fill(&known).unwrap_err();
        assert_eq!(missing.0.to_string(), "ports.db.main");
        let default = Text(vec![port("ports.x/db.main:-5432")]);
        assert_eq!(default.fill(&known).unwrap(), "5432");
    }

    #[test]
    fn a_variable_takes_the_place_of_an_inherited_one() {
        let find = |_: &Reference| Some("8080".to_owned());
        let known = Known { instance: 0, port: &find };
        let late = Late {
            argv: vec![(1, Text(vec![literal("--port="), port("port.http")]))],
            env: vec![("PORT".into(), Text(vec![port("port.http")]))],
        };
        let mut argv = vec!["web".into(), "".into()];
        let mut env = vec![("PORT".into(), "1".into()), ("A".into(), "b".into())];
        late.fill(&known, &mut argv, &mut env).unwrap();
        assert_eq!(argv, ["web", "--port=8080"]);
        assert_eq!(env, [("A".into(), "b".into()), ("PORT".into(), OsString::from("8080"))]);
    }

    #[test]
    fn only_what_has_no_default_is_waited_for() {
        let texts =
            [Text(vec![port("ports.a/b.c"), port("ports.b.c"), port("ports.a/b.c"), port("ports.z/b.c:-1")])];
        let references: Vec<&Reference> = texts.iter().flat_map(Text::references).collect();
        let outer = outer(&references);
        assert_eq!(outer.iter().map(ToString::to_string).collect::<Vec<_>>(), ["ports.a/b.c"]);
    }
}
