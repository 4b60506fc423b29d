//! `kitbag run`: the developer's loop. Packs to a file in the user's cache, one a project and overwritten each
//! time, so that the next run takes over what did not change; then becomes that bundle.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use kitbag_format::{Bundle, Digest, exit};

use crate::cache;
use crate::cli::RunArgs;
use crate::diagnostic::Failure;
use crate::executable::Base;
use crate::hermetic;
use crate::pack;
use crate::plan::{PlanOptions, plan};
use crate::progress::Progress;
use crate::scan::Memory;

/// A project's file goes when it was not packed for so long.
const UNUSED: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Packs and runs. Returns only if that fails.
pub fn run(args: &RunArgs) -> Result<(), Failure> {
    let output = place(&args.dir)?;
    let memory = Memory::load(output.clone());
    let options = PlanOptions { output: Some(output.clone()), quiet: false, root: None };
    let mut plan = plan(&args.dir, &options)?;
    let memory = memory.join().unwrap_or_default();
    let scan = pack::completed(&mut plan, &memory)?;
    let base = Bundle::open_path(&output).and_then(Base::new).ok();
    let written = pack::write(&plan, &scan, base.as_ref(), &memory, &Progress::new("packing", false))?;
    if args.hermetic {
        return hermetic::run(&plan, &written.digest, &args.args);
    }
    let error = Command::new(&output).args(&args.args).exec();
    Err(Failure::new(exit::NOT_STARTED, format!("cannot run {}: {error}", output.display())))
}

/// The file for the project in `dir`.
fn place(dir: &Path) -> Result<PathBuf, Failure> {
    let whole = fs::canonicalize(dir).map_err(|error| {
        Failure::new(exit::USAGE, format!("cannot open the folder {}: {error}", dir.display()))
    })?;
    let folder = cache::folder("run");
    cache::forget(&folder, UNUSED);
    fs::create_dir_all(&folder).map_err(|error| {
        Failure::new(exit::NO_PLACE, format!("cannot make the folder {}: {error}", folder.display()))
    })?;
    let name = whole.file_name().map_or_else(|| "app".into(), |name| name.to_string_lossy().into_owned());
    Ok(folder.join(format!("{name}-{}", Digest::of(whole.as_os_str().as_bytes()).short())))
}
