//! JSON -> values, field by field: the manifest that a bundle carries.
//!
//! `#[derive(Deserialize)]` says the same, for 60 kB more in every bundle: it makes code of its own for each field of each
//! type, and for each way that a type could come. Here a type names its fields ([`crate::object!`], [`crate::choices!`]), and
//! what reads a field is there once for each type that a field has. Writing is serde's.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, Visitor};
use serde_json::Map;
pub use serde_json::Value;

/// What can be read.
pub trait FromJson: Sized {
    /// The value that a JSON value stands for.
    ///
    /// # Errors
    /// What is expected in its place.
    fn from_json(value: &Value) -> Result<Self, Wrong>;
}

/// Where a text says something else than is expected, and what is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    /// The names on the way there, the last one first.
    way: Vec<String>,
    what: String,
}

impl Wrong {
    /// Something that is wrong here: `a whole number is expected`.
    pub fn new(what: impl Into<String>) -> Self {
        Self { way: Vec::new(), what: what.into() }
    }

    /// The same in what has this name.
    #[must_use]
    pub fn inside(mut self, name: &str) -> Self {
        self.way.push(name.to_owned());
        self
    }
}

impl fmt::Display for Wrong {
    /// `services.web.stop_timeout_ms: a whole number is expected`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way: Vec<&str> = self.way.iter().rev().map(String::as_str).collect();
        match way.is_empty() {
            true => f.write_str(&self.what),
            false => write!(f, "{}: {}", way.join("."), self.what),
        }
    }
}

impl std::error::Error for Wrong {}

/// The fields of an object. Those that nobody asks for are ignored; of those that stand twice the last one counts.
pub struct Fields<'a> {
    all: &'a Map<String, Value>,
    wrong: Option<Wrong>,
}

impl<'a> From<&'a Map<String, Value>> for Fields<'a> {
    fn from(all: &'a Map<String, Value>) -> Self {
        Self { all, wrong: None }
    }
}

impl<'a> Fields<'a> {
    /// Those of this value.
    ///
    /// # Errors
    /// It is no object.
    pub fn of(value: &'a Value) -> Result<Self, Wrong> {
        value.as_object().map(Self::from).ok_or_else(|| Wrong::new("an object is expected"))
    }

    /// Puts a field into its place, if it is there. What is wrong with it is told at the [end](Self::end).
    pub fn optional<T: FromJson>(&mut self, name: &str, place: &mut T) {
        if let Some(value) = self.find(name) {
            match T::from_json(value) {
                Ok(value) => *place = value,
                Err(wrong) => self.note(wrong, name),
            }
        }
    }

    /// The same for a field that has to be there.
    pub fn required<T: FromJson>(&mut self, name: &str, place: &mut T) {
        if !self.all.contains_key(name) {
            self.note(Wrong::new("is missing"), name);
        }
        self.optional(name, place);
    }

    /// What is looked for, unless something was wrong already. Not generic: there once.
    #[inline(never)]
    fn find(&self, name: &str) -> Option<&'a Value> {
        self.all.get(name).filter(|_| self.wrong.is_none())
    }

    #[inline(never)]
    fn note(&mut self, wrong: Wrong, name: &str) {
        self.wrong.get_or_insert(wrong.inside(name));
    }

    /// What was read, unless something was wrong.
    ///
    /// # Errors
    /// The first thing that was.
    pub fn end<T>(self, read: T) -> Result<T, Wrong> {
        self.wrong.map_or(Ok(read), Err)
    }
}

/// A choice with something to it, as serde writes an enum: `"notify"`, or `{"up-for": 5}`.
pub struct Variant<'a> {
    /// Which one.
    pub name: &'a str,
    value: &'a Value,
}

impl<'a> Variant<'a> {
    /// What was chosen.
    ///
    /// # Errors
    /// It is neither a text nor an object with one field.
    pub fn of(value: &'a Value) -> Result<Self, Wrong> {
        let chosen = match value {
            Value::String(name) => Some(Self { name, value: &Value::Null }),
            Value::Object(fields) if fields.len() == 1 => {
                fields.iter().next().map(|(name, value)| Self { name, value })
            }
            _ => None,
        };
        chosen.ok_or_else(|| Wrong::new("a text, or an object with one field, is expected"))
    }

    /// What comes with it.
    ///
    /// # Errors
    /// It is something else.
    pub fn read<T: FromJson>(self) -> Result<T, Wrong> {
        T::from_json(self.value).map_err(|wrong| wrong.inside(self.name))
    }

    /// It is `value`, and nothing comes with it.
    ///
    /// # Errors
    /// Something does.
    pub fn alone<T>(self, value: T) -> Result<T, Wrong> {
        if self.value.is_null() {
            Ok(value)
        } else {
            Err(Wrong::new("nothing is expected").inside(self.name))
        }
    }

    /// It is none that is known.
    pub fn unknown(self) -> Wrong {
        unknown_word(self.name)
    }
}

/// `impl FromJson` for a struct with a default: `T { … } default { … }`. The fields of the first list have to be there; what
/// is missing of the second is as in `T::default()`. One list may be left out.
#[macro_export]
macro_rules! object {
    ($type:ident { $($required:ident),* $(,)? }) => {
        $crate::object!($type { $($required),* } default {});
    };
    ($type:ident default { $($optional:ident),* $(,)? }) => {
        $crate::object!($type {} default { $($optional),* });
    };
    ($type:ident { $($required:ident),* $(,)? } default { $($optional:ident),* $(,)? }) => {
        impl $type {
            /// Takes what belongs to it from an object that may have more.
            pub(crate) fn take(&mut self, fields: &mut $crate::json::Fields<'_>) {
                // Every field is in one of the lists.
                let Self { $($required,)* $($optional,)* } = self;
                $(fields.required(stringify!($required), $required);)*
                $(fields.optional(stringify!($optional), $optional);)*
            }
        }

        impl $crate::json::FromJson for $type {
            fn from_json(value: &$crate::json::Value) -> Result<Self, $crate::json::Wrong> {
                let mut fields = $crate::json::Fields::of(value)?;
                let mut it = Self::default();
                it.take(&mut fields);
                fields.end(it)
            }
        }
    };
}

/// `impl FromJson` and a table for an enum whose variants are words.
#[macro_export]
macro_rules! words {
    ($type:ident { $($variant:ident = $word:literal),* $(,)? }) => {
        impl $type {
            /// Its values by name.
            pub const WORDS: &[(&str, Self)] = &[$(($word, Self::$variant)),*];
        }

        impl $crate::json::FromJson for $type {
            fn from_json(value: &$crate::json::Value) -> Result<Self, $crate::json::Wrong> {
                let word = $crate::json::word(value)?;
                let known = Self::WORDS.iter().find(|(known, _)| *known == word);
                known.map(|(_, value)| *value).ok_or_else(|| $crate::json::unknown_word(word))
            }
        }
    };
}

/// `impl FromJson` for an enum whose variants come with a value, `Variant(_)`, or alone.
#[macro_export]
macro_rules! choices {
    ($type:ident { $($variant:ident $(($value:tt))? = $name:literal),* $(,)? }) => {
        impl $crate::json::FromJson for $type {
            fn from_json(value: &$crate::json::Value) -> Result<Self, $crate::json::Wrong> {
                let chosen = $crate::json::Variant::of(value)?;
                match chosen.name {
                    $($name => $crate::choices!(@read chosen $variant $($value)?),)*
                    _ => Err(chosen.unknown()),
                }
            }
        }
    };
    (@read $chosen:ident $variant:ident $value:tt) => { $chosen.read().map(Self::$variant) };
    (@read $chosen:ident $variant:ident) => { $chosen.alone(Self::$variant) };
}

/// What is wrong with a word that [`crate::words!`] does not list.
pub fn unknown_word(word: &str) -> Wrong {
    Wrong::new(format!("`{word}` is not known here"))
}

/// The text that a value is.
///
/// # Errors
/// It is something else.
pub fn word(value: &Value) -> Result<&str, Wrong> {
    value.as_str().ok_or_else(|| Wrong::new("a text is expected"))
}

impl FromJson for String {
    fn from_json(value: &Value) -> Result<Self, Wrong> {
        word(value).map(str::to_owned)
    }
}

impl FromJson for bool {
    fn from_json(value: &Value) -> Result<Self, Wrong> {
        value.as_bool().ok_or_else(|| Wrong::new("true or false is expected"))
    }
}

/// A whole number that has room in 64 bits, with a sign or without.
fn whole(value: &Value) -> Result<i128, Wrong> {
    let number = value.as_u64().map(i128::from).or_else(|| value.as_i64().map(i128::from));
    number.ok_or_else(|| Wrong::new("a whole number is expected"))
}

fn out_of_range() -> Wrong {
    Wrong::new("the number is too large or too small")
}

macro_rules! numbers {
    ($($type:ident)*) => {$(
        impl FromJson for $type {
            fn from_json(value: &Value) -> Result<Self, Wrong> {
                Self::try_from(whole(value)?).map_err(|_| out_of_range())
            }
        }
    )*};
}

numbers!(u8 u16 u32 u64 i8 i16);

impl<T: FromJson> FromJson for Option<T> {
    fn from_json(value: &Value) -> Result<Self, Wrong> {
        if value.is_null() { Ok(None) } else { T::from_json(value).map(Some) }
    }
}

impl<T: FromJson> FromJson for Vec<T> {
    fn from_json(value: &Value) -> Result<Self, Wrong> {
        let values = value.as_array().ok_or_else(|| Wrong::new("a list is expected"))?;
        let mut list = Self::with_capacity(values.len());
        for value in values {
            let at = list.len();
            list.push(T::from_json(value).map_err(|wrong| wrong.inside(&at.to_string()))?);
        }
        Ok(list)
    }
}

impl<T: FromJson> FromJson for BTreeMap<String, T> {
    fn from_json(value: &Value) -> Result<Self, Wrong> {
        let mut map = Self::new();
        for (name, value) in Fields::of(value)?.all {
            map.insert(name.clone(), T::from_json(value).map_err(|wrong| wrong.inside(name))?);
        }
        Ok(map)
    }
}

/// Reads a map of this name entry by entry: of the text, one of them alone is ever there as a JSON value. Those of a thousand
/// services would leave memory behind that is full of holes.
pub struct Entries<T>(&'static str, PhantomData<T>);

impl<T> Entries<T> {
    /// Of the map that is told by this name.
    pub const fn named(name: &'static str) -> Self {
        Self(name, PhantomData)
    }
}

impl<'de, T: FromJson> DeserializeSeed<'de> for Entries<T> {
    type Value = BTreeMap<String, T>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, T: FromJson> Visitor<'de> for Entries<T> {
    type Value = BTreeMap<String, T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries = BTreeMap::new();
        while let Some(name) = map.next_key::<String>()? {
            let value = map.next_value::<Value>()?;
            let read = T::from_json(&value);
            let read = read.map_err(|wrong| A::Error::custom(wrong.inside(&name).inside(self.0)))?;
            entries.insert(name, read);
        }
        Ok(entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, PartialEq)]
    struct Thing {
        name: String,
        size: u8,
        near: Option<i8>,
        all: Vec<Colour>,
        more: More,
    }

    #[derive(Debug, PartialEq)]
    struct More {
        deep: bool,
        count: u64,
    }

    impl Default for More {
        fn default() -> Self {
            Self { deep: true, count: 7 }
        }
    }

    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Colour {
        Red,
        DarkBlue,
    }

    #[derive(Debug, PartialEq)]
    enum Kind {
        None,
        Of(u16),
    }

    object!(Thing { name } default { size, near, all, more });
    object!(More default { deep, count });
    words!(Colour { Red = "red", DarkBlue = "dark-blue" });

    choices!(Kind { None = "none", Of(_) = "of" });

    fn from_text<T: FromJson>(text: &str) -> Result<T, Wrong> {
        T::from_json(&serde_json::from_str(text).map_err(|error| Wrong::new(error.to_string()))?)
    }

    fn wrong<T: FromJson + fmt::Debug>(text: &str) -> String {
        from_text::<T>(text).expect_err(text).to_string()
    }

    #[test]
    fn what_is_missing_has_its_default_and_what_is_unknown_is_ignored() {
        let least = Thing { name: "a".into(), size: 0, near: None, all: vec![], more: More::default() };
        assert_eq!(from_text(r#"{"name": "a"}"#), Ok(least));
        let text = r#"{"size": 255, "near": -128, "x": [{}], "all": ["red", "dark-blue"], "more": {"deep": false},
                       "name": "b"}"#;
        let (all, more) = (vec![Colour::Red, Colour::DarkBlue], More { deep: false, count: 7 });
        assert_eq!(from_text(text), Ok(Thing { name: "b".into(), size: 255, near: Some(-128), all, more }));
        assert_eq!(from_text::<Thing>(r#"{"name": "a", "near": null}"#).map(|it| it.near), Ok(None));
    }

    #[test]
    fn what_is_wrong_is_told_with_the_way_there() {
        for (text, expected) in [
            ("[]", "an object is expected"),
            ("{}", "name: is missing"),
            (r#"{"name": 1}"#, "name: a text is expected"),
            (r#"{"name": null}"#, "name: a text is expected"),
            (r#"{"name": "a", "size": 256}"#, "size: the number is too large or too small"),
            (r#"{"name": "a", "size": -1}"#, "size: the number is too large or too small"),
            (r#"{"name": "a", "size": 1.5}"#, "size: a whole number is expected"),
            (r#"{"name": "a", "size": null}"#, "size: a whole number is expected"),
            (r#"{"name": "a", "near": 128}"#, "near: the number is too large or too small"),
            (r#"{"name": "a", "all": {}}"#, "all: a list is expected"),
            (r#"{"name": "a", "all": ["red", "green"]}"#, "all.1: `green` is not known here"),
            (r#"{"name": "a", "more": {"deep": 1}}"#, "more.deep: true or false is expected"),
            (
                r#"{"name": "a", "more": {"count": 18446744073709551616}}"#,
                "more.count: a whole number is expected",
            ),
        ] {
            assert_eq!(wrong::<Thing>(text), expected, "{text}");
        }
        assert_eq!(wrong::<BTreeMap<String, u8>>(r#"{"a": 1, "b": []}"#), "b: a whole number is expected");
        assert!(wrong::<Thing>(r#"{"name": "a""#).contains("line 1"));
        assert!(wrong::<Thing>(&"[".repeat(100_000)).contains("recursion"));
    }

    #[test]
    fn a_choice_has_a_name_and_may_have_a_value() {
        assert_eq!(from_text(r#""none""#), Ok(Kind::None));
        assert_eq!(from_text(r#"{"of": 5}"#), Ok(Kind::Of(5)));
        for (text, expected) in [
            (r#"{"none": 1}"#, "none: nothing is expected"),
            (r#""of""#, "of: a whole number is expected"),
            (r#"{"of": "x"}"#, "of: a whole number is expected"),
            (r#"{"of": 1, "none": 2}"#, "a text, or an object with one field, is expected"),
            ("{}", "a text, or an object with one field, is expected"),
            ("3", "a text, or an object with one field, is expected"),
            (r#""some""#, "`some` is not known here"),
        ] {
            assert_eq!(wrong::<Kind>(text), expected, "{text}");
        }
    }
}
