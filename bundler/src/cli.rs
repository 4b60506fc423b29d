//! The command line: one definition for parser, help and completions.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use clap_complete::Shell;

use crate::audit::{Level, Version};

const LONG_ABOUT: &str = "\
Packs an app, its assets and a manifest into one self-extracting static executable.

The file needs nothing on the server it is copied to: no runtime, no libraries, no shell, no container \
engine, no root. It is a tool that behaves as one program, or a service bundle that supervises several.";

const EXAMPLES: &str = "\
Examples:
  kitbag init                    write a kitbag.toml for what is in this folder
  kitbag run                     pack the app in this folder and run it here
  kitbag pack -o guestbook       pack it into the file `guestbook`
  scp guestbook server: && ssh server ./guestbook
  kitbag inspect guestbook       what is in that file";

const EXIT_CODES: &str = "\
Exit codes:
    0  done
    1  it did not work; the message says why
    2  the command line is wrong
    3  kitbag.toml, or what it names, is wrong; nothing was written
    4  the file is not a bundle, or it is damaged
    5  no folder can be used to unpack in, or the disk is full
    6  the bundle is running already
    7  a service failed, and its restart policy does not start it again
    8  audit only: the bundle asks more of a host than it may
    9  a bundle's own commands: it is not running
   10  a bundle's own commands: it runs, and was not ready or done in time
  125  a tool bundle's program could not be started
A tool bundle's exit status is its program's.";

/// Packs an app into one self-extracting static executable
#[derive(Debug, Parser)]
#[command(
    name = "kitbag",
    version,
    long_about = LONG_ABOUT,
    after_help = EXAMPLES,
    after_long_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"),
    max_term_width = 110
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write a kitbag.toml for what is in a folder, or for a program
    Init(InitArgs),
    /// Pack the app in a folder into one file
    Pack(PackArgs),
    /// Pack the app in a folder to a temporary file, and run it here
    Run(RunArgs),
    /// Show what a bundle is: manifest, digests, sizes
    Inspect(InspectArgs),
    /// List the files in a bundle
    List(ListArgs),
    /// Unpack a bundle's files into a folder
    Unpack(UnpackArgs),
    /// Check every byte of a bundle against its digests
    Verify(VerifyArgs),
    /// Tell what a bundle needs of hosts, and fail where that is too much
    Audit(AuditArgs),
    /// Print completions for a shell
    Completions(CompletionsArgs),
    /// Start a bundle so that its tracer can follow it: the first half of `run --hermetic`
    #[command(hide = true)]
    HermeticStart(HermeticStartArgs),
}

/// `kitbag init`
#[derive(Debug, Args)]
#[command(
    long_about = "Write a kitbag.toml for what is in a folder, or for a program.\n\n\
        It looks for a Cargo, Python or Node project, a jar and a program, and says what it found and guessed.",
    after_help = "Examples:\n  \
        kitbag init                this folder\n  \
        kitbag init --as node      this folder, which is a Python project too\n  \
        kitbag init /usr/bin/jq    a program; the kitbag.toml is written here"
)]
pub struct InitArgs {
    /// The app's folder, or a program or jar
    #[arg(default_value = ".", value_hint = ValueHint::AnyPath)]
    pub path: PathBuf,
    /// What to take it for [default: the first that fits]
    #[arg(long = "as", value_name = "KIND")]
    pub kind: Option<Kind>,
    /// Overwrite a kitbag.toml that is there
    #[arg(long)]
    pub force: bool,
}

/// What a folder can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// A Cargo project
    Cargo,
    /// A Python project
    Python,
    /// A Node project
    Node,
    /// A jar
    Java,
    /// A program, dynamic or static
    Elf,
}

/// `kitbag pack`
#[derive(Debug, Args)]
#[command(
    long_about = "Pack the app in a folder into one file.\n\n\
        The folder has a kitbag.toml that says what goes in and what is started. A Cargo package needs none: \
        its bins are built, statically, and its Cargo.toml gives name and version.",
    after_help = "Examples:\n  \
        kitbag pack                            this folder, into ./NAME\n  \
        kitbag pack app -o out/app             another folder, another file\n  \
        kitbag pack --dry-run                  only list what would go in\n  \
        kitbag pack --base app-1.0 -o app-1.1  take unchanged parts from an earlier bundle, which is quicker"
)]
pub struct PackArgs {
    /// The app's folder, with a kitbag.toml or a Cargo.toml
    #[arg(default_value = ".", value_hint = ValueHint::DirPath)]
    pub dir: PathBuf,
    /// The file to write [default: ./NAME, or ./NAME.kitbag where NAME is a folder]
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub output: Option<PathBuf>,
    /// zstd level from 1 (quick) to 19 (small) [default: `compression` in kitbag.toml, or 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..=19))]
    pub level: Option<i32>,
    /// An earlier bundle, to take unchanged parts from
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub base: Option<PathBuf>,
    /// Where to look for what dynamic programs need: a folder that holds another system [default: /]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub root: Option<PathBuf>,
    /// Overwrite the output file even if it is not a bundle
    #[arg(long)]
    pub force: bool,
    /// List what would go in, and write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Say nothing but warnings and errors
    #[arg(short, long)]
    pub quiet: bool,
}

/// `kitbag run`
#[derive(Debug, Args)]
#[command(
    long_about = "Pack the app in a folder to a temporary file, and run it here.\n\n\
        What stands after `--` goes to the app. The exit status is the app's.\n\n\
        With --hermetic the app reaches nothing but its bundle, its state, a temporary folder and what `host` in \
        kitbag.toml names. When it has ended, stderr gets a list of what else it reached for, as lines for \
        kitbag.toml.",
    after_help = "Examples:\n  \
        kitbag run                   this folder\n  \
        kitbag run app -- --help     another folder, with an argument for its program\n  \
        kitbag run --hermetic        what does the app use that is not in its bundle?"
)]
pub struct RunArgs {
    /// The app's folder, with a kitbag.toml or a Cargo.toml
    #[arg(default_value = ".", value_hint = ValueHint::DirPath)]
    pub dir: PathBuf,
    /// Keep the app from everything that is not in its bundle, and list what it reached for
    #[arg(long)]
    pub hermetic: bool,
    /// Arguments for the app
    #[arg(last = true, value_name = "ARGS")]
    pub args: Vec<OsString>,
}

/// `kitbag hermetic-start`, which `kitbag run --hermetic` starts itself.
#[derive(Debug, Args)]
pub struct HermeticStartArgs {
    /// A file or folder to do anything with
    #[arg(long = "use", value_name = "PATH")]
    pub used: Vec<PathBuf>,
    /// A file or folder to read, and to execute from
    #[arg(long = "read", value_name = "PATH")]
    pub read: Vec<PathBuf>,
    /// The bundle
    pub file: PathBuf,
    /// Arguments for the app
    #[arg(last = true, value_name = "ARGS")]
    pub args: Vec<OsString>,
}

/// `kitbag inspect`
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  kitbag inspect guestbook\n  kitbag inspect --json guestbook | jq .manifest\n  \
        kitbag inspect --why .kitbag/lib/libssl.so.3 app"
)]
pub struct InspectArgs {
    /// The bundle
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// As JSON, for programs
    #[arg(long)]
    pub json: bool,
    /// Tell why the file at this path of the tree is in the bundle, or each one of this name
    #[arg(long, value_name = "PATH", conflicts_with = "json")]
    pub why: Option<String>,
}

/// `kitbag list`
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  kitbag list --long guestbook")]
pub struct ListArgs {
    /// The bundle
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// With kind, size and digest
    #[arg(short, long)]
    pub long: bool,
}

/// `kitbag unpack`
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  kitbag unpack guestbook /tmp/look")]
pub struct UnpackArgs {
    /// The bundle
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// The folder to unpack into, new or empty [default: ./NAME-VERSION]
    #[arg(value_hint = ValueHint::DirPath)]
    pub dir: Option<PathBuf>,
}

/// `kitbag verify`
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  kitbag verify guestbook && scp guestbook server:")]
pub struct VerifyArgs {
    /// The bundle
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
}

/// `kitbag audit`
#[derive(Debug, Args)]
#[command(
    long_about = "Tell what a bundle needs of hosts, and fail where that is too much.\n\n\
        Verifies the file first. Without options it passes when its programs are for one machine and take no loader, \
        no library, and for what is started no interpreter from the host. What it needs in kernel and processor is \
        told, and held against a limit where one is given.",
    after_help = "Examples:\n  \
        kitbag audit app && scp app server:           does it run anywhere?\n  \
        kitbag audit app --kernel 4.18 --cpu x86-64   the oldest server there is\n  \
        kitbag audit app --glibc 2.31                 programs may use the host's glibc\n  \
        kitbag audit app --json | jq .mentions        paths of the host that programs mention"
)]
pub struct AuditArgs {
    /// The bundle
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// As JSON, for programs, with every path
    #[arg(long)]
    pub json: bool,
    /// The oldest kernel it has to run on, such as 4.18
    #[arg(long, value_name = "VERSION")]
    pub kernel: Option<Version>,
    /// The least processor it has to run on: x86-64, x86-64-v2, x86-64-v3, x86-64-v4
    #[arg(long, value_name = "LEVEL")]
    pub cpu: Option<Level>,
    /// The oldest glibc of hosts, such as 2.31: programs may use it
    #[arg(long, value_name = "VERSION", conflicts_with = "self_contained")]
    pub glibc: Option<Version>,
    /// A loader, library or interpreter that every host has: a pattern for its path or its name
    #[arg(long, value_name = "PATTERN")]
    pub allow: Vec<String>,
    /// No executable script may need the host's interpreter, whether it is started or not
    #[arg(long)]
    pub self_contained: bool,
}

/// `kitbag completions`
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  kitbag completions bash > ~/.local/share/bash-completion/completions/kitbag"
)]
pub struct CompletionsArgs {
    /// The shell
    pub shell: Shell,
}
