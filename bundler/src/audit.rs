//! `kitbag audit`: what a bundle needs of the hosts that it will run on, before it ships.

mod contents;
mod gate;
mod limits;
mod paths;
mod process;
mod report;
mod survey;

use globset::{Glob, GlobSetBuilder};
use kitbag_format::exit;
use kitbag_format::report::json_text;

pub use limits::{Level, Version};

use crate::cli::AuditArgs;
use crate::diagnostic::Failure;
use crate::inspect;
use gate::Limits;
use report::Report;
use survey::Survey;

/// `kitbag audit`. A broken limit is a [`Failure`] with exit code `AUDIT`.
pub fn audit(args: &AuditArgs) -> Result<(), Failure> {
    let limits = limits(args)?;
    let survey =
        Survey::of(&inspect::open(&args.file)?).map_err(|error| inspect::failure(&args.file, &error))?;
    let findings = gate::check(&survey, &limits);
    let report = Report { survey: &survey, findings: &findings };
    let text = if args.json { json_text(&report.to_json()) } else { report.to_text() };
    crate::print(text.as_bytes())?;
    match findings.len() {
        0 => Ok(()),
        count => {
            let (limits, are) = if count == 1 { ("finding", "keeps") } else { ("findings", "keep") };
            let title = format!("{}: {count} {limits} {are} it from passing", args.file.display());
            Err(Failure::new(exit::AUDIT, title))
        }
    }
}

fn limits(args: &AuditArgs) -> Result<Limits, Failure> {
    let wrong = |error: globset::Error| Failure::new(exit::USAGE, format!("--allow: {error}"));
    let mut allow = GlobSetBuilder::new();
    for pattern in &args.allow {
        allow.add(Glob::new(pattern).map_err(wrong)?);
    }
    Ok(Limits {
        kernel: args.kernel,
        cpu: args.cpu,
        glibc: args.glibc,
        allow: allow.build().map_err(wrong)?,
        self_contained: args.self_contained,
    })
}
