//! kitbag's own folder in the user's cache, and how it stays small.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use kitbag_format::Digest;

/// The folder `name` of kitbag's cache (XDG Base Directory Specification 0.8): `~/.cache/kitbag/NAME`.
pub fn folder(name: &str) -> PathBuf {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")));
    cache.unwrap_or_else(std::env::temp_dir).join("kitbag").join(name)
}

/// Removes the files of a folder that nobody has written for so long.
pub fn forget(folder: &Path, age: Duration) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let modified =
            entry.metadata().ok().filter(|found| found.is_file()).and_then(|found| found.modified().ok());
        if modified.and_then(|modified| modified.elapsed().ok()).is_some_and(|idle| idle > age) {
            // Somebody else's clean-up may have been quicker.
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Removes the folders in a folder that nobody has used for so long; whoever uses one sets its time.
pub fn forget_folders(folder: &Path, age: Duration) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let modified =
            entry.metadata().ok().filter(|found| found.is_dir()).and_then(|found| found.modified().ok());
        if modified.and_then(|modified| modified.elapsed().ok()).is_some_and(|idle| idle > age) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// A file with this text; the same one each time.
pub fn text(text: &str) -> io::Result<PathBuf> {
    let folder = folder("text");
    let path = folder.join(Digest::of(text.as_bytes()).short());
    if fs::read(&path).is_ok_and(|there| there == text.as_bytes()) {
        return Ok(path);
    }
    fs::create_dir_all(&folder)?;
    let mut file = tempfile::NamedTempFile::new_in(&folder)?;
    file.write_all(text.as_bytes())?;
    file.persist(&path)?;
    Ok(path)
}
