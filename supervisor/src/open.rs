//! Own file -> verified Bundle.

use std::fs::File;
use std::path::{Path, PathBuf};

use kitbag_format::{Bundle, Error};

use crate::sys;

/// The running file, open, and the path it was started by.
pub struct Own {
    /// The bundle.
    pub bundle: Bundle,
    /// Where it is, for messages and for folders beside it.
    pub path: PathBuf,
}

/// Opens the file that is running: through /proc where it is mounted, else by the path that was executed.
pub fn own() -> Result<Own, Error> {
    let link = Path::new("/proc/self/exe");
    let executed = sys::executed_path();
    let path = std::fs::read_link(link).ok().or_else(|| executed.clone()).unwrap_or_default();
    let file = File::open(link).or_else(|_| File::open(executed.as_deref().unwrap_or(link)));
    let bundle = Bundle::open(file.map_err(Error::io(format!("open {}", path.display())))?)?;
    let head = kitbag_entry::head();
    if head[32..64] != bundle.digest().0 && head != [0; kitbag_entry::head::HEAD_LEN] {
        return Err(Error::io(format!("open {}", path.display()))(std::io::Error::other(
            "another file has taken its place since it was started; start it again",
        )));
    }
    bundle.verify_program()?;
    Ok(Own { bundle, path })
}

/// The first bytes of the running head, which a start record repeats.
pub fn head_prefix() -> [u8; kitbag_entry::head::PREFIX_LEN] {
    let mut prefix = [0; kitbag_entry::head::PREFIX_LEN];
    prefix.copy_from_slice(&kitbag_entry::head()[..kitbag_entry::head::PREFIX_LEN]);
    prefix
}
