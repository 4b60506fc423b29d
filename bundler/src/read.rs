//! Reads typed values out of TOML tables, collecting every error on the way.

use std::collections::HashSet;
use std::ops::Range;

use kitbag_format::template::Piece;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::diagnostic::{Diagnostic, near_miss};

/// A string and its place.
pub type Text = Spanned<String>;

/// A key that a table may have: its name and an example of it, for messages.
pub type Key = (&'static str, &'static str);

/// A placeholder that is filled in when a service starts, and its place.
#[derive(Debug, Clone)]
pub struct Late {
    /// `${port.NAME}` or its like, or `${instance}`.
    pub piece: Piece,
    /// Where it stands.
    pub span: Range<usize>,
    /// It is part of an address that is connected to.
    pub in_address: bool,
}

/// A table whose keys are known.
pub struct Section<'a> {
    /// How messages call it: `` `[[seed]]` ``, or "the manifest".
    title: &'a str,
    table: &'a DeTable<'a>,
    /// Where it begins.
    pub span: Range<usize>,
    keys: &'static [Key],
}

impl<'a> Section<'a> {
    /// The value of `key`, whatever its type.
    pub fn get(&self, key: &str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.table.get(key)
    }

    /// Where `key` itself stands, or the table if it does not.
    pub fn key_span(&self, key: &str) -> Range<usize> {
        self.table.get_key_value(key).map_or_else(|| self.span.clone(), |(key, _)| key.span())
    }

    /// It has a key that it may not have, which is reported.
    pub fn has_unknown(&self) -> bool {
        self.table.keys().any(|key| !self.keys.iter().any(|(known, _)| *known == key.get_ref().as_ref()))
    }

    /// How messages call it.
    pub const fn title(&self) -> &'a str {
        self.title
    }

    fn example(&self, key: &str) -> &'static str {
        self.keys.iter().find(|(name, _)| *name == key).map_or("", |(_, example)| example)
    }
}

/// Collects what is wrong with a manifest while it is read.
pub struct Reader<'a> {
    /// The whole file.
    pub text: &'a str,
    /// Keys of the top level, to tell a key that stands in the wrong table.
    top: &'static [Key],
    /// Errors so far.
    pub errors: Vec<Diagnostic>,
    /// Placeholders of the command or service that is read, to be looked up.
    pub late: Vec<Late>,
}

impl<'a> Reader<'a> {
    /// A reader of the file `text`; `top` are the keys of the manifest's top level.
    pub const fn new(text: &'a str, top: &'static [Key]) -> Self {
        Self { text, top, errors: Vec::new(), late: Vec::new() }
    }

    /// Takes `table` for one with `keys`; every other key in it is an error.
    pub fn section<'b>(
        &mut self,
        title: &'b str,
        table: &'b DeTable<'b>,
        span: Range<usize>,
        keys: &'static [Key],
    ) -> Section<'b> {
        for key in table.keys() {
            let name: &str = key.get_ref();
            if !keys.iter().any(|(known, _)| *known == name) {
                self.unknown_key(title, name, key.span(), keys);
            }
        }
        Section { title, table, span, keys }
    }

    /// Takes `table` for one whose keys are names that the manifest chooses.
    pub const fn free_section<'b>(
        &self,
        title: &'b str,
        table: &'b DeTable<'b>,
        span: Range<usize>,
    ) -> Section<'b> {
        Section { title, table, span, keys: &[] }
    }

    fn unknown_key(&mut self, title: &str, name: &str, span: Range<usize>, keys: &'static [Key]) {
        let mut error = Diagnostic::new(format!("unknown key `{name}` in {title}"));
        let list = keys.iter().map(|(known, _)| format!("`{known}`")).collect::<Vec<_>>().join(", ");
        if let Some(near) = near_miss(name, keys.iter().map(|(known, _)| *known)) {
            error = error.at(span, "").near(Some(near));
        } else if self.top.iter().any(|(known, _)| *known == name) {
            error = error
                .at(span, format!("expected one of {list}"))
                .help(format!("write `{name}` above the first line that begins with `[`"));
        } else {
            error = error.at(span, format!("expected one of {list}"));
        }
        self.errors.push(error);
    }

    /// Reports that `value` is not `expected`.
    pub fn wrong_type(
        &mut self,
        section: &Section<'_>,
        key: &str,
        value: &Spanned<DeValue<'_>>,
        expected: &str,
    ) {
        let found = value.get_ref().type_str();
        let written = self.text.get(value.span()).unwrap_or_default();
        let named = if found == "integer" { format!("`{written}`") } else { with_article(found) };
        let mut error = Diagnostic::new(format!("`{key}` in {} must be {expected}", section.title))
            .at(value.span(), format!("expected {expected}, found {named}"));
        if expected.starts_with("a string") && matches!(found, "integer" | "float" | "boolean" | "datetime") {
            error = error.help(format!("put it in quotes: `\"{written}\"`"));
        } else if !section.example(key).is_empty() {
            error = error.help(format!("for example `{}`", section.example(key)));
        }
        self.errors.push(error);
    }

    /// Reports that a table lacks `key`, if it does.
    pub fn require(&mut self, section: &Section<'_>, key: &str) {
        if section.get(key).is_none() {
            let error = Diagnostic::new(format!("{} has no `{key}`", section.title))
                .at(section.span.clone(), format!("expected `{key}` in here"))
                .help(format!("for example `{}`", section.example(key)));
            self.errors.push(error);
        }
    }

    /// A string; `None` if there is none, or something else (then an error is noted).
    pub fn string(&mut self, section: &Section<'_>, key: &str) -> Option<Text> {
        self.string_as(section, key, "a string")
    }

    /// The same for a string of a certain form, which messages call `expected`.
    pub fn string_as(&mut self, section: &Section<'_>, key: &str, expected: &str) -> Option<Text> {
        let value = section.get(key)?;
        let text = self.text_of(value);
        if text.is_none() {
            self.wrong_type(section, key, value, expected);
        }
        text
    }

    /// One of `choices` by its name.
    pub fn choice<T: Copy>(
        &mut self,
        section: &Section<'_>,
        key: &str,
        choices: &[(&'static str, T)],
    ) -> Option<T> {
        let text = self.string(section, key)?;
        let written: &str = text.get_ref();
        if let Some((_, choice)) = choices.iter().find(|(name, _)| *name == written) {
            return Some(*choice);
        }
        let names = || choices.iter().map(|(name, _)| *name);
        let error = Diagnostic::new(format!("unknown `{key}` `{written}`"))
            .at(text.span(), format!("expected {}", alternatives(names())))
            .near(near_miss(written, names()));
        self.errors.push(error);
        None
    }

    /// The string that `value` is.
    pub fn text_of(&self, value: &Spanned<DeValue<'_>>) -> Option<Text> {
        let text = value.get_ref().as_str()?;
        Some(Spanned::new(value.span(), text.to_owned()))
    }

    /// `true` or `false`.
    pub fn boolean(&mut self, section: &Section<'_>, key: &str) -> Option<bool> {
        let value = section.get(key)?;
        let boolean = value.get_ref().as_bool();
        if boolean.is_none() {
            self.wrong_type(section, key, value, "`true` or `false`");
        }
        boolean
    }

    /// A whole number within `range`.
    pub fn integer<T>(
        &mut self,
        section: &Section<'_>,
        key: &str,
        range: std::ops::RangeInclusive<T>,
    ) -> Option<T>
    where
        T: Copy + PartialOrd + std::fmt::Display + TryFrom<i64>,
    {
        let value = section.get(key)?;
        let number = whole(value.get_ref()).and_then(|number| T::try_from(number).ok());
        let number = number.filter(|number| range.contains(number));
        if number.is_none() {
            let expected = format!("a whole number from {} to {}", range.start(), range.end());
            self.wrong_type(section, key, value, &expected);
        }
        number
    }

    /// A list of strings.
    pub fn strings(&mut self, section: &Section<'_>, key: &str) -> Option<Spanned<Vec<Text>>> {
        let value = section.get(key)?;
        let Some(items) = value.get_ref().as_array() else {
            self.wrong_type(section, key, value, "a list of strings");
            return None;
        };
        let mut texts = Vec::new();
        for item in items.iter() {
            match self.text_of(item) {
                Some(text) => texts.push(text),
                None => self.wrong_type(section, key, item, "a string in a list of strings"),
            }
        }
        (texts.len() == items.len()).then(|| Spanned::new(value.span(), texts))
    }

    /// A table of strings.
    pub fn string_map(&mut self, section: &Section<'_>, key: &str) -> Vec<(Text, Text)> {
        let Some(value) = section.get(key) else { return Vec::new() };
        let Some(table) = value.get_ref().as_table() else {
            self.wrong_type(section, key, value, "a table of strings");
            return Vec::new();
        };
        let mut pairs = Vec::new();
        for (name, value) in table.iter() {
            match self.text_of(value) {
                Some(text) => {
                    pairs.push((Spanned::new(name.span(), name.get_ref().clone().into_owned()), text));
                }
                None => self.wrong_type(section, name.get_ref(), value, "a string"),
            }
        }
        pairs
    }

    /// A table.
    pub fn table<'b>(&mut self, section: &Section<'b>, key: &str) -> Option<Spanned<&'b DeTable<'b>>> {
        let value = section.get(key)?;
        let table = value.get_ref().as_table();
        if table.is_none() {
            self.wrong_type(section, key, value, "a table");
        }
        Some(Spanned::new(value.span(), table?))
    }

    /// A list of tables, as `[[key]]` writes it.
    pub fn tables<'b>(&mut self, section: &Section<'b>, key: &str) -> Vec<Spanned<&'b DeTable<'b>>> {
        let Some(value) = section.get(key) else { return Vec::new() };
        let Some(items) = value.get_ref().as_array() else {
            self.wrong_type(section, key, value, "a list of tables");
            return Vec::new();
        };
        let mut tables = Vec::new();
        for item in items.iter() {
            match item.get_ref().as_table() {
                Some(table) => tables.push(Spanned::new(item.span(), table)),
                None => self.wrong_type(section, key, item, "a table in a list of tables"),
            }
        }
        tables
    }

    /// Bytes of the file where `part` stands within `span`, or all of `span`.
    pub fn within(&self, span: Range<usize>, part: &str) -> Range<usize> {
        let written = self.text.get(span.clone()).unwrap_or_default();
        match written.find(part) {
            Some(at) => span.start + at..span.start + at + part.len(),
            None => span,
        }
    }

    /// Reports the second of two equal strings; `what` names their kind.
    pub fn unique<'t>(&mut self, what: &str, texts: impl Iterator<Item = &'t Text>) {
        let mut seen: HashSet<&str> = HashSet::new();
        for text in texts {
            if !seen.insert(text.get_ref()) {
                let error = Diagnostic::new(format!("{what} `{}` is given twice", text.get_ref()))
                    .at(text.span(), "the second one");
                self.errors.push(error);
            }
        }
    }
}

/// The whole number that `value` is.
pub fn whole(value: &DeValue<'_>) -> Option<i64> {
    let integer = value.as_integer()?;
    i64::from_str_radix(integer.as_str(), integer.radix()).ok()
}

/// "`a`, `b` or `c`"
pub fn alternatives<'t>(names: impl Iterator<Item = &'t str>) -> String {
    let mut names: Vec<String> = names.map(|name| format!("`{name}`")).collect();
    match (names.pop(), names.is_empty()) {
        (None, _) => String::new(),
        (Some(last), true) => last,
        (Some(last), false) => format!("{} or {last}", names.join(", ")),
    }
}

fn with_article(noun: &str) -> String {
    let article = if noun.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {noun}")
}
