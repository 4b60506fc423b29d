//! What execve(2) takes, made from a record and the caller's arguments and environment. No system calls.

use core::{mem, ptr};

use crate::{
    equal,
    head::Prefix,
    record::{FILE_NAME, FLAG_NO_LOADER_VARIABLES, FOLDER, Fields, PIECE_ENV, PIECE_ENV_OR, PIECE_TEXT},
};

/// Where the store lies for root, if nothing else is said.
const ROOT_PLACE: &[u8] = b"/var/cache/kitbag";

/// Hands out zero-terminated runs of `T` from a buffer: texts and vectors of pointers.
pub struct Arena<'b, T> {
    rest: &'b mut [T],
    used: usize,
}

impl<'b, T: Copy> Arena<'b, T> {
    /// An arena over all of `buffer`.
    #[inline(always)]
    pub fn new(buffer: &'b mut [T]) -> Self {
        Self { rest: buffer, used: 0 }
    }

    /// Appends to the current run; `None` where the buffer is full.
    #[inline(always)]
    pub fn push(&mut self, items: &[T]) -> Option<()> {
        let end = self.used.checked_add(items.len())?;
        let free = self.rest.get_mut(self.used..end)?;
        for (to, from) in free.iter_mut().zip(items) {
            *to = *from;
        }
        self.used = end;
        Some(())
    }

    /// Ends the current run with `last` and hands it out.
    #[inline(always)]
    pub fn finish(&mut self, last: T) -> Option<&'b [T]> {
        self.push(&[last])?;
        let (run, rest) = mem::take(&mut self.rest).split_at_mut_checked(mem::take(&mut self.used))?;
        self.rest = rest;
        Some(run)
    }
}

/// The caller's environment, `NAME=value` each, in the order of the kernel.
#[derive(Clone, Copy)]
pub struct Env<'a>(&'a [*const u8]);

impl<'a> Env<'a> {
    /// # Safety
    /// Each pointer leads to a text with a zero at its end that lives and stays as it is for `'a`.
    #[inline(always)]
    pub unsafe fn new(entries: &'a [*const u8]) -> Self {
        Self(entries)
    }

    /// The value of the first variable `name`, as getenv(3) finds it.
    #[inline(always)]
    pub fn get(&self, name: &[u8]) -> Option<&'a [u8]> {
        // SAFETY: the promise made to `new`.
        self.0.iter().find_map(|entry| unsafe { value(*entry, name) }.map(|value| unsafe { text(value) }))
    }
}

/// The value in `entry` if it is the variable `name`.
///
/// # Safety
/// `entry` leads to a text with a zero at its end.
#[inline(always)]
unsafe fn value(entry: *const u8, name: &[u8]) -> Option<*const u8> {
    let mut at = entry;
    for expected in name.iter().chain(b"=") {
        // SAFETY: `at` has not passed the text's zero: no name contains one, so the first mismatch is there.
        if unsafe { *at } != *expected || *expected == 0 {
            return None;
        }
        // SAFETY: `at` was not at the zero.
        at = unsafe { at.add(1) };
    }
    Some(at)
}

/// The bytes before the zero.
///
/// # Safety
/// `start` leads to a text with a zero at its end that lives for `'a`.
#[inline(always)]
pub unsafe fn text<'a>(start: *const u8) -> &'a [u8] {
    let mut length = 0;
    // SAFETY: no byte after the zero is read.
    while unsafe { *start.add(length) } != 0 {
        length += 1;
    }
    // SAFETY: the bytes just read.
    unsafe { core::slice::from_raw_parts(start, length) }
}

/// The path of the start record, with a zero at its end: the place of the store by its first rules
/// (`docs/format.md`), then the digest. `None` where these rules name no place, and the fallbacks begin.
#[inline(always)]
pub fn record_path<'b>(head: &Prefix, env: Env, euid: usize, out: &mut Arena<'b, u8>) -> Option<&'b [u8]> {
    let variable = |name| env.get(name).filter(|value| !value.is_empty());
    let absolute = |value: &[u8]| value.first() == Some(&b'/');
    let (base, below): (&[u8], &[u8]) = if let Some(place) = variable(b"KITBAG_STORE") {
        (place, b"")
    } else if euid == 0 {
        (ROOT_PLACE, b"")
    } else if let Some(cache) = variable(b"XDG_CACHE_HOME").filter(|value| absolute(value)) {
        (cache, b"/kitbag")
    } else {
        (variable(b"HOME")?, b"/.cache/kitbag")
    };
    if !absolute(base) {
        return None;
    }
    out.push(match base.split_last() {
        Some((b'/', parent)) => parent,
        _ => base,
    })?;
    out.push(below)?;
    out.push(FOLDER)?;
    for byte in head.digest() {
        let digit = |value: u8| value + if value < 10 { b'0' } else { b'a' - 10 };
        out.push(&[digit(byte >> 4), digit(byte & 15)])?;
    }
    out.push(FILE_NAME)?;
    out.finish(0)
}

/// True where `path` is the record's own, that is, lies in `folder`.
#[inline(always)]
pub fn lies_in(path: &[u8], folder: &[u8]) -> bool {
    path.split_at_checked(folder.len())
        .is_some_and(|(start, name)| equal(start, folder) && equal(name, b"/start\0"))
}

/// `Some` where the environment agrees with all guards.
#[inline(always)]
pub fn guards_hold(mut guards: Fields, env: Env) -> Option<()> {
    while !guards.is_empty() {
        let (set, name, expected) = (guards.u8()?, guards.string()?, guards.string()?);
        let agrees = match env.get(name) {
            Some(value) => set == 1 && equal(value, expected),
            None => set == 0,
        };
        if !agrees {
            return None;
        }
    }
    Some(())
}

/// Appends the text that `template` stands for. `None` where a variable without default is unset.
#[inline(always)]
fn resolve(template: &[u8], env: Env, out: &mut Arena<u8>) -> Option<()> {
    let mut pieces = Fields(template);
    while !pieces.is_empty() {
        let (kind, name) = (pieces.u8()?, pieces.string()?);
        if kind == PIECE_TEXT {
            out.push(name)?;
        } else if kind == PIECE_ENV {
            out.push(env.get(name)?)?;
        } else if kind == PIECE_ENV_OR {
            let default = pieces.string()?;
            out.push(env.get(name).filter(|value| !value.is_empty()).unwrap_or(default))?;
        } else {
            return None;
        }
    }
    Some(())
}

/// The text that `template` stands for, with a zero at its end.
#[inline(always)]
pub fn resolved<'b>(template: &[u8], env: Env, texts: &mut Arena<'b, u8>) -> Option<&'b [u8]> {
    resolve(template, env, texts)?;
    texts.finish(0)
}

/// The program's arguments: the record's, then `more`. A null pointer ends them.
#[inline(always)]
pub fn arguments<'b>(
    mut argv: Fields,
    more: &[*const u8],
    env: Env,
    texts: &mut Arena<'b, u8>,
    out: &mut Arena<'b, *const u8>,
) -> Option<&'b [*const u8]> {
    while !argv.is_empty() {
        let argument = resolved(argv.string()?, env, texts)?;
        out.push(&[argument.as_ptr()])?;
    }
    out.push(more)?;
    out.finish(ptr::null())
}

/// The program's environment: the caller's without what the record sets and what its flags keep back, then what it
/// sets. A null pointer ends it.
#[inline(always)]
pub fn environment<'b>(
    mut set: Fields,
    flags: u32,
    env: Env,
    texts: &mut Arena<'b, u8>,
    out: &mut Arena<'b, *const u8>,
) -> Option<&'b [*const u8]> {
    for entry in env.0 {
        let kept_back = flags & FLAG_NO_LOADER_VARIABLES != 0 && speaks_to_loaders(*entry);
        if !kept_back && !sets(set, *entry)? {
            out.push(&[*entry])?;
        }
    }
    while !set.is_empty() {
        texts.push(set.string()?)?;
        texts.push(b"=")?;
        out.push(&[resolved(set.string()?, env, texts)?.as_ptr()])?;
    }
    out.finish(ptr::null())
}

/// True where the variable in `entry`, which is one of an [`Env`], begins with `LD_` (ld.so(8)).
#[inline(always)]
fn speaks_to_loaders(entry: *const u8) -> bool {
    // SAFETY: an entry of an `Env` is a text with a zero at its end. None is read past the first difference.
    let byte = |at: usize| unsafe { *entry.add(at) };
    byte(0) == b'L' && byte(1) == b'D' && byte(2) == b'_'
}

/// True where one of the variables in `set` is the one in `entry`, which is one of an [`Env`].
#[inline(always)]
fn sets(mut set: Fields, entry: *const u8) -> Option<bool> {
    while !set.is_empty() {
        let (name, _template) = (set.string()?, set.string()?);
        // SAFETY: an entry of an `Env` is a text with a zero at its end.
        if unsafe { value(entry, name) }.is_some() {
            return Some(true);
        }
    }
    Some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(variables: &[&str], euid: usize) -> Option<String> {
        let texts: Vec<String> = variables.iter().map(|text| format!("{text}\0")).collect();
        let entries: Vec<*const u8> = texts.iter().map(|text| text.as_ptr()).collect();
        let mut head = [0; 64];
        head[32..].fill(0xa9);
        let mut buffer = [0; 256];
        // SAFETY: `texts` has zeros at its ends and outlives this call.
        let env = unsafe { Env::new(&entries) };
        let path = record_path(&Prefix(head), env, euid, &mut Arena::new(&mut buffer))?;
        let (zero, path) = path.split_last()?;
        assert_eq!(*zero, 0);
        let place = str::from_utf8(path).ok()?.strip_suffix("/start")?.strip_suffix(&"a9".repeat(32))?;
        Some(place.strip_suffix("/v1/trees/")?.to_owned())
    }

    #[test]
    fn the_place_follows_the_rules_in_their_order() {
        let all = ["HOME=/h", "XDG_CACHE_HOME=/x", "KITBAG_STORE=/k/"];
        assert_eq!(path(&all, 1000).as_deref(), Some("/k"));
        assert_eq!(path(&all[..2], 0).as_deref(), Some("/var/cache/kitbag"));
        assert_eq!(path(&all[..2], 1000).as_deref(), Some("/x/kitbag"));
        assert_eq!(path(&all[..1], 1000).as_deref(), Some("/h/.cache/kitbag"));
        assert_eq!(path(&["HOME=/h", "XDG_CACHE_HOME=x"], 1000).as_deref(), Some("/h/.cache/kitbag"));
        assert_eq!(path(&["HOME=/", "KITBAG_STORE="], 1000).as_deref(), Some("/.cache/kitbag"));
    }

    #[test]
    fn no_place_where_the_rules_name_none() {
        for variables in [&["KITBAG_STORE=k", "HOME=/h"][..], &["HOME=h"], &["HOME="], &["HOMES=/h"], &[]] {
            assert_eq!(path(variables, 1000), None, "{variables:?}");
        }
        assert_eq!(path(&[&format!("HOME=/{}", "h".repeat(256))], 1000), None);
    }
}
