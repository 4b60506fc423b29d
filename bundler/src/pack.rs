//! `kitbag pack`: plan, then payload and executable, then a line that names the bundle.

use std::fs;
use std::io::{self, Write};
use std::mem;
use std::path::Path;

use kitbag_format::report::bytes;
use kitbag_format::{Bundle, Error, exit};

use crate::cli::PackArgs;
use crate::complete::{self, Scan};
use crate::diagnostic::Failure;
use crate::executable::{self, Base, Written};
use crate::inspect;
use crate::plan::{Plan, PlanKind, PlanOptions, plan};
use crate::progress::Progress;
use crate::scan::Memory;
use crate::tree;

/// Does what the command line says.
pub fn pack(args: &PackArgs) -> Result<(), Failure> {
    let memory = args.output.clone().map(Memory::load);
    let options = PlanOptions { output: args.output.clone(), quiet: args.quiet, root: args.root.clone() };
    let mut plan = plan(&args.dir, &options)?;
    if let Some(level) = args.level {
        plan.compression = level;
    }
    let memory = memory.unwrap_or_else(|| Memory::load(plan.output.clone())).join().unwrap_or_default();
    let scan = completed(&mut plan, &memory)?;
    if args.dry_run {
        return crate::print(listing(&plan).as_bytes());
    }
    let before = check_output(&plan.output, args.force)?;
    let base = match &args.base {
        Some(path) => Some(
            inspect::open(path)
                .and_then(|bundle| Base::new(bundle).map_err(|e| inspect::failure(path, &e)))?,
        ),
        None => before.and_then(|bundle| Base::new(bundle).ok()),
    };
    let progress = Progress::new("packing", args.quiet);
    let written = write(&plan, &scan, base.as_ref(), &memory, &progress)?;
    if !args.quiet {
        crate::print(summary(&plan, &written, &progress).as_bytes())?;
    }
    // The process ends now; taking all this apart would take a tenth of its time.
    mem::forget((plan, scan, memory, base, written));
    Ok(())
}

/// Completes the plan, and prints the warnings.
pub fn completed(plan: &mut Plan, memory: &Memory) -> Result<Scan, Failure> {
    let scan = complete::complete(plan, memory);
    for warning in &plan.warnings {
        let _ = writeln!(io::stderr(), "warning: {warning}");
    }
    for note in &plan.notes {
        let _ = writeln!(io::stderr(), "note: {note}");
    }
    scan
}

/// Writes the bundle of `plan` to its place.
pub fn write(
    plan: &Plan,
    scan: &Scan,
    base: Option<&Base>,
    memory: &Memory,
    progress: &Progress,
) -> Result<Written, Failure> {
    let written = executable::write(plan, scan, base, memory, &|done, all| progress.set(done, all));
    progress.finish();
    written.map_err(|failure| match failure {
        executable::Failure::Input(input) => {
            Failure::new(exit::MANIFEST, format!("cannot pack {}: {}", input.path.display(), input.why))
        }
        executable::Failure::Bundle(error) if is_full(&error) => {
            Failure::new(exit::NO_PLACE, format!("{}: {error}", plan.output.display()))
                .help("nothing was written; free some space, or name another place with `-o FILE`")
        }
        executable::Failure::Bundle(error) => {
            Failure::new(exit::FAILURE, format!("{}: {error}", plan.output.display()))
                .help("nothing was written")
        }
    })
}

fn is_full(error: &Error) -> bool {
    let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded, io::ErrorKind::FileTooLarge];
    matches!(error, Error::Io { source, .. } if full.contains(&source.kind()))
}

/// What is at the output's place must be nothing, or a bundle, which is returned if it is whole.
fn check_output(output: &Path, force: bool) -> Result<Option<Bundle>, Failure> {
    let Ok(metadata) = fs::metadata(output) else { return Ok(None) };
    let shown = output.display();
    if metadata.is_dir() {
        return Err(Failure::new(exit::USAGE, format!("cannot write {shown}: it is a folder"))
            .help("name a file: `-o FILE`"));
    }
    match Bundle::open_path(output) {
        Ok(bundle) => Ok(Some(bundle)),
        Err(Error::NotABundle(why)) if !force => {
            Err(Failure::new(exit::FAILURE, format!("will not overwrite {shown}: {why}"))
                .help("name another file with `-o FILE`, or overwrite it with `--force`"))
        }
        Err(_) => Ok(None),
    }
}

fn summary(plan: &Plan, written: &Written, progress: &Progress) -> String {
    let frames = written.index.frames.len();
    let reused = if written.reused > 0 {
        format!(", {} of {frames} frames taken over", written.reused)
    } else {
        String::new()
    };
    format!(
        "{}  {} {}  {} in {:.1} s{reused}\ndigest  {}\n",
        plan.output.display(),
        plan.manifest.name,
        plan.manifest.version,
        bytes(written.length),
        progress.elapsed().as_secs_f64(),
        written.digest,
    )
}

/// What `--dry-run` prints: the manifest that would travel, and the tree.
fn listing(plan: &Plan) -> String {
    let mut text = plan.manifest.to_text();
    text.push_str(&format!("to be written: {} (zstd level {})\n", plan.output.display(), plan.compression));
    for entry in &plan.entries {
        let path = entry.shown();
        let line = match &entry.kind {
            PlanKind::Dir => format!("{path}/"),
            PlanKind::File { source, .. } => format!("{path}  <- {}", source.display()),
            PlanKind::Symlink { target } => format!("{path} -> {}", tree::shown(target)),
        };
        text.push_str(&line);
        text.push('\n');
    }
    text
}
