//! The `kitbag` command: parses the command line, does one thing, says what went wrong, and ends with a code
//! of [`kitbag_format::exit`].

mod audit;
mod cache;
mod cargo;
mod cli;
mod complete;
mod diagnostic;
mod executable;
mod frames;
mod hermetic;
mod init;
mod inspect;
mod manifest;
mod mentions;
mod origin;
mod pack;
mod payload;
mod plan;
mod preset;
mod progress;
mod read;
mod run;
mod scan;
mod script;
mod sets;
mod tar_header;
mod tree;

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use kitbag_format::exit;

use cli::{Cli, Command};
use diagnostic::Failure;

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
        Command::Init(args) => init::init(&args),
        Command::Pack(args) => pack::pack(&args),
        Command::Run(args) => run::run(&args),
        Command::Inspect(args) => match &args.why {
            Some(path) => inspect::why(&args.file, path),
            None => inspect::inspect(&args.file, args.json),
        },
        Command::List(args) => inspect::list(&args.file, args.long),
        Command::Unpack(args) => inspect::unpack(&args.file, args.dir.as_deref()),
        Command::Verify(args) => inspect::verify(&args.file),
        Command::Audit(args) => audit::audit(&args),
        Command::Completions(args) => {
            let mut script = Vec::new();
            clap_complete::generate(args.shell, &mut Cli::command(), "kitbag", &mut script);
            print(&script)
        }
        Command::HermeticStart(args) => hermetic::start::start(&args),
    }
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
