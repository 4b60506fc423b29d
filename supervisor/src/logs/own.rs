//! The file that standard output and error are in the background: what the supervisor says.

use std::fs;
use std::path::{Path, PathBuf};

use kitbag_format::service::{LogTo, Logs};

use crate::state_folder;
use crate::store::StoreError;
use crate::sys::background;

/// So many bytes of what the supervisor says are enough.
const ENOUGH: u64 = 1 << 20;

/// With more bytes in it, it is put aside: if the services print here, when it is as large as a file of theirs may be.
pub const fn full(logs: &Logs) -> u64 {
    match logs.to {
        LogTo::Stdout => logs.max_size,
        LogTo::Auto | LogTo::Files(_) => ENOUGH,
    }
}

/// Makes the file of this name what standard output and error are, and standard input empty. One with more than `full`
/// bytes is put aside before: with `.1` behind its name, in place of the one before.
pub fn begin(path: &Path, full: u64) -> Result<(), StoreError> {
    if fs::metadata(path).is_ok_and(|found| found.len() > full) {
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
    full: u64,
    size: u64,
}

impl Own {
    /// After [`begin`].
    pub fn new(path: PathBuf, full: u64) -> Self {
        let size = fs::metadata(&path).map_or(0, |found| found.len());
        Self { path, full, size }
    }

    /// So many bytes more were written, whole lines. Where no new one can be had, this one goes on.
    pub fn grows(&mut self, bytes: usize) {
        self.size += bytes as u64;
        if self.size > self.full {
            self.size = 0;
            let _ = begin(&self.path, self.full);
        }
    }
}
