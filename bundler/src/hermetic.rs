//! `kitbag run --hermetic`: the app reaches its bundle, its state and what `host` names, and nothing else of this
//! machine; what else it reached for is listed when it has ended.
//!
//! Landlock (landlock(7)) refuses, in [`start`]; ptrace(2) with a seccomp filter that stops at system calls with
//! paths sees them, in [`tracer`]. Neither needs root or namespaces.

mod allowed;
mod calls;
mod ptrace;
mod report;
mod seen;
pub mod start;
mod tracer;

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::{env, thread};

use kitbag_format::template::{Piece, Template};
use kitbag_format::{Digest, exit};
use nix::errno::Errno;
use nix::sys::ptrace::{Options, seize};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::SignalsInfo;
use signal_hook::iterator::exfiltrator::WithOrigin;
use signal_hook::low_level::siginfo::{Cause, Sent};
use signal_hook::low_level::{emulate_default_handler, raise};
use tempfile::TempDir;

use crate::cache;
use crate::diagnostic::Failure;
use crate::plan::Plan;
use allowed::Allowed;
use ptrace::Report;
use tracer::{End, Tracer};

/// Runs the bundle of `plan`, which has this digest, with `args`; reports on stderr, and ends with the app's status.
/// Returns only if it could not be run.
pub fn run(plan: &Plan, digest: &Digest, args: &[OsString]) -> Result<(), Failure> {
    let places = Places::new(plan)?;
    let kitbag = env::current_exe().map_err(|error| failed("find kitbag's own file", error))?;
    let mut command = places.command(&kitbag, plan, args);
    if File::open("/dev/tty").is_err() {
        // Whoever signals the whole group means the app once. With a terminal, it has to be in the terminal's group.
        command.process_group(0);
    }
    let child = command.spawn().map_err(|error| failed("start the app", error))?;
    let app = Pid::from_raw(child.id().cast_signed());
    let end = trace(app, &places, plan, digest, &kitbag);
    if end.is_err() {
        let _ = kill(app, Signal::SIGKILL);
    }
    drop(places);
    end.map(finish)
}

/// Takes hold of the app, which waits for that; follows it to its end; reports.
fn trace(app: Pid, places: &Places, plan: &Plan, digest: &Digest, kitbag: &Path) -> Result<End, Failure> {
    match ptrace::wait_stop(app).map_err(|error| failed("start the app", error))? {
        // It has said why.
        Report::Exited(status) => return Ok(End::Exited(status)),
        Report::Killed(signal) => return Ok(End::Killed(signal)),
        _ => {}
    }
    let options = Options::PTRACE_O_TRACESYSGOOD
        | Options::PTRACE_O_TRACESECCOMP
        | Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_TRACEVFORK
        | Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEEXEC
        | Options::PTRACE_O_EXITKILL;
    seize(app, options).map_err(no_tracing)?;
    pass_signals_on(app).map_err(|error| failed("take signals", error))?;
    kill(app, Signal::SIGCONT).map_err(|errno| failed("start the app", errno.into()))?;
    let allowed = places.allowed(plan, digest);
    let (end, seen) = Tracer::new(app, &allowed, &[&plan.output, kitbag])
        .follow()
        .map_err(|error| failed("follow the app", error).help("it takes Linux 5.3 or newer"))?;
    if seen.started || !seen.touched.is_empty() {
        // Nobody is left to hear that stderr is gone.
        let _ = io::stderr().write_all(report::render(&seen).as_bytes());
    }
    Ok(end)
}

/// Where the app's things are.
struct Places {
    store: PathBuf,
    state: Option<PathBuf>,
    temporary: TempDir,
}

impl Places {
    /// Makes them, where the runtime would: Landlock can allow only what is there.
    fn new(plan: &Plan) -> Result<Self, Failure> {
        let root = geteuid().is_root();
        let store = env::var_os("KITBAG_STORE").filter(|value| !value.is_empty()).map(PathBuf::from);
        let store = store.unwrap_or_else(|| {
            if root { "/var/cache/kitbag".into() } else { cache::folder("").components().collect() }
        });
        make(&store, if root { 0o755 } else { 0o700 })?;
        let state = if uses_state(plan) { state(&plan.manifest.name, root) } else { None };
        if let Some(state) = &state {
            make(state, 0o700)?;
        }
        let temporary = tempfile::Builder::new().prefix("kitbag-hermetic-").tempdir();
        let temporary = temporary.map_err(|error| failed("make a temporary folder", error))?;
        Ok(Self { store, state, temporary })
    }

    /// What starts the bundle; see [`start`].
    fn command(&self, kitbag: &Path, plan: &Plan, args: &[OsString]) -> Command {
        let mut command = Command::new(kitbag);
        command.arg("hermetic-start").arg("--read").arg(&plan.output);
        let used = [&self.store, self.temporary.path()].into_iter().map(Path::new);
        for path in used.chain(self.state.as_deref()).chain(plan.host.iter().map(PathBuf::as_path)) {
            command.arg("--use").arg(path);
        }
        command.arg(&plan.output).arg("--").args(args);
        command.env("KITBAG_STORE", &self.store).env("TMPDIR", self.temporary.path());
        if let Some(state) = &self.state {
            command.env("KITBAG_STATE", state);
        }
        command
    }

    fn allowed(&self, plan: &Plan, digest: &Digest) -> Allowed {
        let own = self.state.as_deref().into_iter().chain([self.temporary.path()]);
        Allowed::new(&self.store, &digest.to_string(), own.chain(plan.host.iter().map(PathBuf::as_path)))
    }
}

/// True if the bundle has a state folder: one of services always, a tool where it is named.
fn uses_state(plan: &Plan) -> bool {
    let commands = plan.manifest.commands();
    let mut texts = commands
        .iter()
        .flat_map(|(_, command)| command.argv.iter().chain(command.env.values()).chain(&command.cwd));
    let uses = |text: &String| Template::parse(text).is_ok_and(|template| template.0.contains(&Piece::State));
    !plan.manifest.is_tool() || !plan.manifest.seeds.is_empty() || texts.any(uses)
}

/// The state folder, as docs/operations.md says; `None` where only the runtime can tell.
fn state(name: &str, root: bool) -> Option<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(state) = set("KITBAG_STATE") {
        return Some(state);
    }
    if root {
        return Some(Path::new("/var/lib/kitbag").join(name));
    }
    let home = || set("HOME").map(|home| home.join(".local/state"));
    set("XDG_STATE_HOME").or_else(home).map(|folder| folder.join("kitbag").join(name))
}

/// Makes a folder; one that is there, or that the runtime will complain of, is left alone.
fn make(folder: &Path, mode: u32) -> Result<(), Failure> {
    if !folder.is_absolute() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(mode).create(folder).map_err(|error| {
        Failure::new(exit::NO_PLACE, format!("cannot make the folder {}: {error}", folder.display()))
    })
}

/// From now on, what other processes send to kitbag goes to the app. A terminal sends `^C` to both by itself.
fn pass_signals_on(app: Pid) -> io::Result<()> {
    // Whoever starts kitbag with SIGCHLD ignored would have the kernel throw the app's status away (wait(2)).
    signal_hook::flag::register(SIGCHLD, Arc::default())?;
    let mut signals = SignalsInfo::<WithOrigin>::new([SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2])?;
    thread::spawn(move || {
        for origin in &mut signals {
            if let (Cause::Sent(Sent::User | Sent::TKill | Sent::Queue), Ok(signal)) =
                (origin.cause, Signal::try_from(origin.signal))
            {
                // It may just have ended.
                let _ = kill(app, signal);
            }
        }
    });
    Ok(())
}

/// Ends as the app has ended.
fn finish(end: End) {
    match end {
        End::Exited(status) => std::process::exit(status),
        End::Killed(signal) => {
            // The app's core is the one that matters.
            let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
            let _ = emulate_default_handler(signal);
            // It knows no real-time signals; their default is to end the process.
            let _ = raise(signal);
            std::process::exit(128 + signal)
        }
    }
}

fn failed(what: &str, error: io::Error) -> Failure {
    Failure::new(exit::FAILURE, format!("cannot run hermetically: cannot {what}: {error}"))
}

/// Why ptrace(2) is forbidden.
fn no_tracing(errno: Errno) -> Failure {
    let failure = failed("trace the app", errno.into());
    let scope = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    match scope.trim() {
        "2" => failure
            .help("kernel.yama.ptrace_scope is 2: only root may trace; `sysctl kernel.yama.ptrace_scope=1` lets users"),
        "3" => failure.help("kernel.yama.ptrace_scope is 3: nobody may trace until the machine is started anew"),
        _ => failure
            .help("a container may forbid ptrace: `--cap-add=SYS_PTRACE`, or a seccomp profile that allows it")
            .help("strace or a debugger may trace it already"),
    }
}
