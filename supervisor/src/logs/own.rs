//! The file that standard output and error are in the background: what the supervisor says.

use std::fs;
use std::path::{Path, PathBuf};

use crate::state_folder;
use crate::store::StoreError;
use crate::sys::background;

/// With more bytes in it, it is put aside.
const FULL: u64 = 1 << 20;

/// Makes the file of this name what standard output and error are, and standard input empty. A full one is put aside
/// before: with `.1` behind its name, in place of the one before.
pub fn begin(path: &Path) -> Result<(), StoreError> {
    if fs::metadata(path).is_ok_and(|found| found.len() > FULL) {
        let mut aside = path.as_os_str().to_owned();
        aside.push(".1");
        let _ = fs::rename(path, aside);
    }
    let log = state_folder::append_to(path)?;
    background::redirect(&log.into()).map_err(StoreError::sys("write to", path))
}

/// How full it is.
#[derive(Debug)]
pub struct Own {
    path: PathBuf,
    size: u64,
}

impl Own {
    /// After [`begin`].
    pub fn new(path: PathBuf) -> Self {
        let size = fs::metadata(&path).map_or(0, |found| found.len());
        Self { path, size }
    }

    /// So many bytes more were written, whole lines. Where no new one can be had, this one goes on.
    pub fn grows(&mut self, bytes: usize) {
        self.size += bytes as u64;
        if self.size > FULL {
            self.size = 0;
            let _ = begin(&self.path);
        }
    }
}
