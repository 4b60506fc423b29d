//! `kitbag inspect`, `list`, `unpack`, `verify`: through the same reader as the runtime.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use kitbag_format::report::{self, Summary};
use kitbag_format::{Bundle, Error, exit, extract};

use crate::diagnostic::{Failure, near_miss};
use crate::origin::Origins;
use crate::progress::Progress;

/// Opens a bundle.
pub fn open(path: &Path) -> Result<Bundle, Failure> {
    Bundle::open_path(path).map_err(|error| failure(path, &error))
}

/// What a format error means to a person.
pub fn failure(path: &Path, error: &Error) -> Failure {
    let code = if matches!(error, Error::Io { .. }) { exit::FAILURE } else { exit::DAMAGED };
    let failure = Failure::new(code, format!("{}: {error}", path.display()));
    if error.advice().is_empty() { failure } else { failure.help(error.advice()) }
}

/// `kitbag inspect`
pub fn inspect(path: &Path, json: bool) -> Result<(), Failure> {
    let fail = |error: Error| failure(path, &error);
    let bundle = open(path)?;
    let summary = Summary::of(&bundle).map_err(fail)?;
    let origins = Origins::of(&bundle).map_err(fail)?;
    if json {
        let mut value = summary.to_json();
        value["origins"] = origins.to_json();
        return crate::print(report::json_text(&value).as_bytes());
    }
    crate::print((summary.to_text() + &origins.to_text()).as_bytes())
}

/// `kitbag inspect --why`
pub fn why(path: &Path, wanted: &str) -> Result<(), Failure> {
    let origins =
        open(path).and_then(|bundle| Origins::of(&bundle).map_err(|error| failure(path, &error)))?;
    let text = origins.why(wanted).ok_or_else(|| {
        let none = format!("{}: there is no `{wanted}` in its tree", path.display());
        let near = near_miss(wanted, origins.paths());
        let failure = Failure::new(exit::USAGE, none);
        failure.help(near.map_or_else(
            || format!("`kitbag list {}` shows what is", path.display()),
            |near| format!("did you mean `{near}`?"),
        ))
    })?;
    crate::print(text.as_bytes())
}

/// `kitbag list`
pub fn list(path: &Path, long: bool) -> Result<(), Failure> {
    let index = open(path)?.index().map_err(|error| failure(path, &error))?;
    crate::print(&report::list(&index, long))
}

/// `kitbag unpack`
pub fn unpack(path: &Path, dir: Option<&Path>) -> Result<(), Failure> {
    let fail = |error: Error| failure(path, &error);
    let bundle = open(path)?;
    let manifest = bundle.manifest().map_err(fail)?;
    let named = || PathBuf::from(format!("{}-{}", manifest.name, manifest.version));
    let dir = dir.map_or_else(named, Path::to_owned);
    let all = bundle.index().map_err(fail)?.tar_length();
    let (progress, done) = (Progress::new("unpacking", false), AtomicU64::new(0));
    let index = extract::unpack_to(&bundle, &dir, &|bytes| {
        progress.set(done.fetch_add(bytes, Ordering::Relaxed) + bytes, all);
    });
    progress.finish();
    let index = index.map_err(fail)?;
    let line = format!(
        "{}  {} in {} entries\n",
        dir.display(),
        report::bytes(index.content_length()),
        index.entries.len()
    );
    crate::print(line.as_bytes())
}

/// `kitbag verify`
pub fn verify(path: &Path) -> Result<(), Failure> {
    let bundle = open(path)?;
    bundle.verify(extract::threads_for(bundle.head().file_length)).map_err(|error| failure(path, &error))?;
    crate::print(format!("{}: whole, digest {}\n", path.display(), bundle.digest()).as_bytes())
}
