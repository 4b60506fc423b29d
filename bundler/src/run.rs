//! `kitbag run`: the developer's loop. Packs to a file in the user's cache, one a project and overwritten each
//! time, so that the next run takes over what did not change; then becomes that bundle.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use kitbag_format::{Bundle, Digest, exit};

use crate::cli::RunArgs;
use crate::diagnostic::Failure;
use crate::executable::Base;
use crate::pack;
use crate::plan::PlanOptions;
use crate::progress::Progress;

/// Packs and runs. Returns only if that fails.
pub fn run(args: &RunArgs) -> Result<(), Failure> {
    let output = place(&args.dir)?;
    let plan = pack::planned(&args.dir, &PlanOptions { output: Some(output.clone()), quiet: false })?;
    let base = Bundle::open_path(&output).and_then(Base::new).ok();
    pack::write(&plan, base.as_ref(), &Progress::new("packing", false))?;
    let error = Command::new(&output).args(&args.args).exec();
    Err(Failure::new(exit::NOT_STARTED, format!("cannot run {}: {error}", output.display())))
}

/// The file for the project in `dir`.
fn place(dir: &Path) -> Result<PathBuf, Failure> {
    let whole = fs::canonicalize(dir).map_err(|error| {
        Failure::new(exit::USAGE, format!("cannot open the folder {}: {error}", dir.display()))
    })?;
    let folder = cache().join("kitbag/run");
    fs::create_dir_all(&folder).map_err(|error| {
        Failure::new(exit::NO_PLACE, format!("cannot make the folder {}: {error}", folder.display()))
    })?;
    let name = whole.file_name().map_or_else(|| "app".into(), |name| name.to_string_lossy().into_owned());
    Ok(folder.join(format!("{name}-{}", Digest::of(whole.as_os_str().as_bytes()).short())))
}

/// The user's cache folder; XDG Base Directory Specification 0.8.
fn cache() -> PathBuf {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .unwrap_or_else(std::env::temp_dir)
}
