//! The `kitbag` command: parses the command line, does one thing, says what went wrong, and ends with a code
//! of [`kitbag_format::exit`].

mod cargo;
mod cli;
mod diagnostic;
mod manifest;
mod plan;
mod read;
mod tree;

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use kitbag_format::exit;

use cli::{Cli, Command, PackArgs};
use diagnostic::Failure;
use plan::{Plan, PlanKind, PlanOptions, plan};

/// The runtime that every bundle starts with; the build script builds it.
pub static RUNTIME: &[u8] = include_bytes!(env!("KITBAG_RUNTIME"));

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::from(exit::OK),
        Err(failure) => {
            // Nobody is left to hear that stderr is gone.
            let _ = io::stderr().write_all(failure.render(is_colored()).as_bytes());
            ExitCode::from(failure.code())
        }
    }
}

/// Does what the command line says.
fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Pack(args) => pack(&args),
        Command::Run(args) => Err(not_here("run", &args.dir)),
        Command::Inspect(args) => Err(not_here("inspect", &args.file)),
        Command::List(args) => Err(not_here("list", &args.file)),
        Command::Unpack(args) => Err(not_here("unpack", &args.file)),
        Command::Verify(args) => Err(not_here("verify", &args.file)),
        Command::Completions(args) => {
            let mut script = Vec::new();
            clap_complete::generate(args.shell, &mut Cli::command(), "kitbag", &mut script);
            print(&script)
        }
    }
}

fn pack(args: &PackArgs) -> Result<(), Failure> {
    let options = PlanOptions { output: args.output.clone(), quiet: args.quiet };
    let plan = plan(&args.dir, &options)?;
    for warning in &plan.warnings {
        let _ = writeln!(io::stderr(), "warning: {warning}");
    }
    if args.dry_run {
        return print(listing(&plan).as_bytes());
    }
    Err(not_here("pack", &args.dir))
}

fn not_here(command: &str, what: &Path) -> Failure {
    Failure::new(exit::FAILURE, format!("`kitbag {command} {}` is not there yet", what.display()))
}

/// What `pack --dry-run` prints: the manifest that would travel, and the tree.
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

/// Writes to stdout; a reader that has gone (`| head`) is no failure.
fn print(bytes: &[u8]) -> Result<(), Failure> {
    match io::stdout().write_all(bytes) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(exit::FAILURE, format!("cannot write to stdout: {error}")))
        }
        _ => Ok(()),
    }
}

/// Colors are for terminals whose user did not say no (<https://no-color.org>).
fn is_colored() -> bool {
    let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    wanted && io::stderr().is_terminal()
}
