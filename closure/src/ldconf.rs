//! `ld.so.conf` with its includes (ldconfig(8)), and musl's path file.

use std::collections::HashSet;

use glob::{MatchOptions, Pattern};

use crate::root::Root;
use crate::tree::{join, parent};

/// More files than any configuration has.
const MOST_FILES: usize = 1000;
/// glob(3): a star matches neither a slash nor a leading dot.
const GLOB: MatchOptions =
    MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: true };

/// The folders of `/etc/ld.so.conf` in order, which are what `ld.so.cache` holds. Each once; none if there is no such
/// file. What ldconfig would skip is skipped: relative folders, unreadable files, `hwcap` lines.
#[must_use]
pub fn folders(root: &Root) -> Vec<Vec<u8>> {
    let mut reading = Reading { root, files: HashSet::new(), folders: Vec::new() };
    reading.file(b"/etc/ld.so.conf");
    reading.folders
}

struct Reading<'a> {
    root: &'a Root,
    files: HashSet<Vec<u8>>,
    folders: Vec<Vec<u8>>,
}

impl Reading<'_> {
    fn file(&mut self, path: &[u8]) {
        let Some(text) = self.root.read(path) else { return };
        if self.files.len() < MOST_FILES && self.files.insert(path.to_vec()) {
            text.split(|byte| *byte == b'\n').for_each(|line| self.line(line, path));
        }
    }

    fn line(&mut self, line: &[u8], file: &[u8]) {
        let line = line.split(|byte| *byte == b'#').next().unwrap_or(line).trim_ascii();
        let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        match words.next() {
            Some(b"include") => words.for_each(|pattern| self.include(pattern, file)),
            Some(b"hwcap") | None => {}
            Some(_) => self.folder(line),
        }
    }

    /// `/lib=libc6` is an old way to say what a folder holds.
    fn folder(&mut self, line: &[u8]) {
        let folder = line.split(|byte| *byte == b'=').next().unwrap_or(line).trim_ascii_end();
        let length = folder.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
        let folder = folder[..length].to_vec();
        if folder.starts_with(b"/") && !self.folders.contains(&folder) {
            self.folders.push(folder);
        }
    }

    fn include(&mut self, pattern: &[u8], file: &[u8]) {
        let pattern = match pattern {
            [b'/', ..] => pattern.to_vec(),
            _ => join(parent(file), pattern),
        };
        for path in matches(self.root, &pattern) {
            self.file(&path);
        }
    }
}

/// The paths that match an absolute pattern, sorted.
fn matches(root: &Root, pattern: &[u8]) -> Vec<Vec<u8>> {
    let mut paths = vec![Vec::new()];
    for part in pattern.split(|byte| *byte == b'/').filter(|part| !part.is_empty()) {
        let next = |folder: &Vec<u8>| match part.iter().any(|byte| b"*?[".contains(byte)) {
            true => names(root, folder, part),
            false => vec![[folder, b"/".as_slice(), part].concat()],
        };
        paths = paths.iter().flat_map(next).take(MOST_FILES).collect();
    }
    paths.retain(|path| root.find(path).is_some());
    paths.sort_unstable();
    paths
}

fn names(root: &Root, folder: &[u8], part: &[u8]) -> Vec<Vec<u8>> {
    let Ok(pattern) = Pattern::new(&String::from_utf8_lossy(part)) else { return Vec::new() };
    let names = root.list(if folder.is_empty() { b"/" } else { folder }).into_iter();
    let fits = |name: &Vec<u8>| pattern.matches_with(&String::from_utf8_lossy(name), GLOB);
    names.filter(fits).map(|name| [folder, b"/", &name].concat()).collect()
}

/// The folders of musl's `ld-musl-ARCH.path`, or those that it has without one (musl's `ldso/dynlink.c`).
#[must_use]
pub fn musl_folders(root: &Root, path_file: &[u8]) -> Vec<Vec<u8>> {
    let text = root.read(path_file);
    let text = text.as_deref().unwrap_or(b"/lib:/usr/local/lib:/usr/lib");
    let folders = text.split(|byte| b":\n".contains(byte)).filter(|folder| folder.starts_with(b"/"));
    folders.map(<[u8]>::to_vec).collect()
}
