//! What the processes of a service or task are: identity, limits, environment.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use kitbag_format::service::{LIMITS, Process};
use toml::Spanned;
use toml::de::DeValue;

use super::values::parse_size;
use super::{Key, Reader, Section, Text, inner, plain, whole};

/// Limits of getrlimit(2) that are bytes.
const LIMITS_IN_BYTES: &[&str] = &["as", "core", "data", "fsize", "memlock", "msgqueue", "rss", "stack"];

/// `memory.max`: less than this starts no program.
const MEMORY: RangeInclusive<u64> = 1 << 20..=16 << 40;

/// [`LIMITS`] as keys.
const LIMIT_KEYS: &[Key] = &{
    let mut keys = [("", "nofile = 65536"); LIMITS.len()];
    let mut number = 0;
    while number < LIMITS.len() {
        keys[number].0 = LIMITS[number];
        number += 1;
    }
    keys
};

impl Reader<'_> {
    /// What a service's or task's table says of its processes, but for `render` and `sandbox`.
    pub(super) fn process(&mut self, section: &Section<'_>) -> Process {
        let user = self.account(section, "user");
        let group = self.account(section, "group");
        let groups = self.strings(section, "groups").map(Spanned::into_inner);
        for group in groups.iter().flatten() {
            self.check_account(group, "group");
        }
        let pass_env = self.strings(section, "pass-env").map(Spanned::into_inner);
        for name in pass_env.iter().flatten() {
            let sound = !name.get_ref().is_empty() && !name.get_ref().contains(['=', '\0']);
            let fault = (!sound).then(|| "expected the name of a variable, such as `PATH`".to_owned());
            self.check(name, fault, "bad variable");
        }
        Process {
            user,
            group,
            groups: groups.as_deref().map(plain),
            umask: self.octal(section, "umask"),
            nice: self.integer(section, "nice", -20..=19),
            oom_score: self.integer(section, "oom-score", -1000..=1000),
            limits: self.limits(section),
            pass_env: pass_env.as_deref().map(plain),
            env_files: self.env_files(section),
            memory_max: self.size(section, "memory-max", MEMORY),
            pids_max: self.integer(section, "pids-max", 1..=4_194_304u32).map(u64::from),
            ..Process::default()
        }
    }

    /// A user or group, by name or number.
    fn account(&mut self, section: &Section<'_>, key: &str) -> Option<String> {
        let value = section.get(key)?;
        if let Some(number) = whole(value.get_ref()).and_then(|number| u32::try_from(number).ok()) {
            return Some(number.to_string());
        }
        let text = self.string_as(section, key, "a name or a number")?;
        self.check_account(&text, key);
        Some(text.into_inner())
    }

    fn check_account(&mut self, text: &Text, what: &str) {
        let name: &str = text.get_ref();
        let odd = |letter: char| letter.is_control() || letter.is_whitespace() || letter == ':';
        if name.is_empty() || name.len() > 256 || (name.contains(odd) && !name.contains("${")) {
            let fault = format!("expected the name or number of a {what} of the host");
            self.check(text, Some(fault), &format!("bad {what}"));
        } else {
            self.template(text);
        }
    }

    /// Permissions: octal digits in a string, or an octal number.
    pub(super) fn octal(&mut self, section: &Section<'_>, key: &str) -> Option<u32> {
        let value = section.get(key)?;
        let octal =
            value.get_ref().as_integer().filter(|number| number.radix() == 8).map(|number| number.as_str());
        let digits = octal.or_else(|| value.get_ref().as_str());
        let mask =
            digits.and_then(|digits| u32::from_str_radix(digits, 8).ok()).filter(|mask| *mask <= 0o777);
        if mask.is_none() {
            self.wrong_type(section, key, value, "octal digits in quotes, up to \"777\"");
        }
        mask
    }

    fn limits(&mut self, parent: &Section<'_>) -> BTreeMap<String, Option<u64>> {
        let mut limits = BTreeMap::new();
        let Some(table) = self.table(parent, "limits") else { return limits };
        let title = inner(parent, "limits");
        let section = self.section(&title, table.get_ref(), table.span(), LIMIT_KEYS);
        for (name, value) in table.get_ref().iter() {
            let (name, value): (&str, _) = (name.get_ref(), value);
            if LIMITS.contains(&name) {
                limits.extend(self.limit(&section, name, value).map(|limit| (name.to_owned(), limit)));
            }
        }
        limits
    }

    /// The inner `None` is "unlimited".
    fn limit(
        &mut self,
        section: &Section<'_>,
        name: &str,
        value: &Spanned<DeValue<'_>>,
    ) -> Option<Option<u64>> {
        let in_bytes = LIMITS_IN_BYTES.contains(&name);
        let number = whole(value.get_ref()).and_then(|number| u64::try_from(number).ok());
        let limit = match value.get_ref().as_str() {
            Some("unlimited") => return Some(None),
            Some(size) if in_bytes => parse_size(size),
            _ => number,
        };
        if limit.is_none() {
            let size = if in_bytes { ", a size such as \"512M\"" } else { "" };
            self.wrong_type(section, name, value, &format!("a whole number{size} or \"unlimited\""));
        }
        Some(limit).filter(Option::is_some)
    }

    fn env_files(&mut self, section: &Section<'_>) -> Vec<String> {
        let files = self.strings(section, "env-files").map(Spanned::into_inner).unwrap_or_default();
        for file in &files {
            self.place_of_host(file, &["${state}/", "${tree}/", "${env."], "bad environment file");
        }
        plain(&files)
    }

    /// Checks a path that the supervisor opens: absolute, or below what a placeholder in `bases` stands for.
    pub(super) fn place_of_host(&mut self, path: &Text, bases: &[&str], title: &str) {
        let text: &str = path.get_ref();
        if !text.starts_with('/') && !bases.iter().any(|base| text.starts_with(base)) {
            let fault = format!("expected an absolute path, or one that begins with `{}`", bases[0]);
            return self.check(path, Some(fault), title);
        }
        self.template(path);
    }
}
