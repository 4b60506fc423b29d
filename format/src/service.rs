//! What a service bundle's manifest says of its services, tasks and logs, every default made explicit.
//!
//! Strings that the supervisor fills in when it starts are templates (see [`crate::template`]): those of a
//! [`Command`], addresses of probes, user, group and paths. Times are milliseconds.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::json::{Fields, FromJson, Value, Wrong};
use crate::manifest::{Command, default_stop_signal, default_stop_timeout_ms};
use crate::port::{Port, Render, Sandbox};
use crate::{choices, object, words};

/// What a reader refuses.
pub mod fault;

/// Signals by name, as signal(7) lists them for Linux.
pub const SIGNALS: &[&str] = &[
    "SIGHUP",
    "SIGINT",
    "SIGQUIT",
    "SIGILL",
    "SIGTRAP",
    "SIGABRT",
    "SIGBUS",
    "SIGFPE",
    "SIGKILL",
    "SIGUSR1",
    "SIGSEGV",
    "SIGUSR2",
    "SIGPIPE",
    "SIGALRM",
    "SIGTERM",
    "SIGSTKFLT",
    "SIGCHLD",
    "SIGCONT",
    "SIGSTOP",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
    "SIGURG",
    "SIGXCPU",
    "SIGXFSZ",
    "SIGVTALRM",
    "SIGPROF",
    "SIGWINCH",
    "SIGIO",
    "SIGPWR",
    "SIGSYS",
];

/// Names in [`Process::limits`]: those of getrlimit(2) without `RLIMIT_`, lower case.
pub const LIMITS: &[&str] = &[
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// A supervised program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Service {
    /// What is started.
    #[serde(flatten)]
    pub command: Command,
    /// When it is started again.
    pub restart: Restart,
    /// Signal that asks it to stop, by name: `SIGTERM`.
    pub stop_signal: String,
    /// How long it may take to stop before `SIGKILL`.
    pub stop_timeout_ms: u64,
    /// The rest, each with a default.
    #[serde(flatten)]
    pub more: More,
}

impl FromJson for Service {
    fn from_json(value: &Value) -> Result<Self, Wrong> {
        let mut fields = Fields::of(value)?;
        let mut it = Self {
            command: Command::default(),
            restart: Restart::default(),
            stop_signal: default_stop_signal(),
            stop_timeout_ms: default_stop_timeout_ms(),
            more: More::default(),
        };
        let Self { command, restart, stop_signal, stop_timeout_ms, more } = &mut it;
        command.take(&mut fields);
        fields.optional("restart", restart);
        fields.optional("stop_signal", stop_signal);
        fields.optional("stop_timeout_ms", stop_timeout_ms);
        more.take(&mut fields);
        fields.end(it)
    }
}

impl Service {
    /// What is started, and the programs that probe it.
    pub fn commands(&self) -> Vec<&Command> {
        let ready = match &self.more.ready.when {
            ReadyWhen::Probe(probe) => Some(probe),
            _ => None,
        };
        let health = self.more.health.as_ref().and_then(|health| match &health.when {
            HealthWhen::Probe(probe) => Some(probe),
            HealthWhen::Watchdog => None,
        });
        let probes = ready.into_iter().chain(health).filter_map(|probe| match probe {
            Probe::Command(command) => Some(command),
            Probe::Tcp(_) | Probe::Http(_) => None,
        });
        std::iter::once(&self.command).chain(probes).collect()
    }

    /// The same, to change them.
    pub fn commands_mut(&mut self) -> Vec<&mut Command> {
        let ready = match &mut self.more.ready.when {
            ReadyWhen::Probe(probe) => Some(probe),
            _ => None,
        };
        let health = self.more.health.as_mut().and_then(|health| match &mut health.when {
            HealthWhen::Probe(probe) => Some(probe),
            HealthWhen::Watchdog => None,
        });
        let probes = ready.into_iter().chain(health).filter_map(|probe| match probe {
            Probe::Command(command) => Some(command),
            Probe::Tcp(_) | Probe::Http(_) => None,
        });
        std::iter::once(&mut self.command).chain(probes).collect()
    }
}

/// What a service's table may leave out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct More {
    /// Ends that count as good beside exit status 0.
    pub success: Success,
    /// How soon it is started again.
    pub backoff: Backoff,
    /// When it is not started again any more; `None`: never.
    pub give_up: Option<GiveUp>,
    /// When it counts as ready.
    pub ready: Ready,
    /// How it is watched while it runs.
    pub health: Option<Health>,
    /// Services and tasks that have to be ready, or done, before it is started; it is stopped before them.
    pub needs: Vec<String>,
    /// How many of it run, each with its index from 0 in `KITBAG_INSTANCE`.
    pub instances: u32,
    /// The ports that it listens on, by name; see [`crate::port::is_port_name`].
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<String, Port>,
    /// What its processes are.
    pub process: Process,
}

object!(More default { success, backoff, give_up, ready, health, needs, instances, ports, process });

impl Default for More {
    fn default() -> Self {
        Self {
            success: Success::default(),
            backoff: Backoff::default(),
            give_up: None,
            ready: Ready::default(),
            health: None,
            needs: Vec::new(),
            instances: 1,
            ports: BTreeMap::new(),
            process: Process::default(),
        }
    }
}

/// When an ended service is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// Whatever its exit status.
    #[default]
    Always,
    /// Unless its end counts as a success.
    OnFailure,
    /// Never.
    Never,
}

words!(Restart { Always = "always", OnFailure = "on-failure", Never = "never" });

/// Ends that count as good beside exit status 0.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Success {
    /// Exit statuses.
    pub codes: Vec<u8>,
    /// Signals, by name.
    pub signals: Vec<String>,
}

object!(Success default { codes, signals });

/// How soon a service is started again. The first restart after a stable run is immediate; the next waits for
/// `first_ms`, and each further one twice as long, lengthened by up to a quarter at random.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Backoff {
    /// The first delay.
    pub first_ms: u64,
    /// The longest delay.
    pub longest_ms: u64,
    /// A run this long is stable: the next restart is immediate again.
    pub stable_ms: u64,
}

object!(Backoff default { first_ms, longest_ms, stable_ms });

impl Default for Backoff {
    fn default() -> Self {
        Self { first_ms: 100, longest_ms: 30_000, stable_ms: 10_000 }
    }
}

/// So many failures within so long, and the service is *failed* until somebody starts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct GiveUp {
    /// Failures.
    pub failures: u32,
    /// Within this time.
    pub within_ms: u64,
}

object!(GiveUp { failures, within_ms });

/// When a service counts as ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ready {
    /// What shows it.
    pub when: ReadyWhen,
    /// From its start, which is after its needs were ready; then it counts as failed.
    pub timeout_ms: u64,
    /// Between two tries of a probe.
    pub interval_ms: u64,
}

object!(Ready default { when, timeout_ms, interval_ms });

impl Default for Ready {
    fn default() -> Self {
        Self { when: ReadyWhen::default(), timeout_ms: 60_000, interval_ms: 100 }
    }
}

/// What shows that a service is ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReadyWhen {
    /// It has run for so long; 0: its program was executed.
    UpFor(u64),
    /// It has written a newline to this inherited descriptor, 3 or more (s6's protocol,
    /// <https://skarnet.org/software/s6/notifywhenup.html>).
    Newline(u8),
    /// It has sent `READY=1` to `NOTIFY_SOCKET`: sd_notify(3).
    Notify,
    /// The probe succeeds.
    Probe(Probe),
}

choices!(ReadyWhen { UpFor(_) = "up-for", Newline(_) = "newline", Notify = "notify", Probe(_) = "probe" });

impl Default for ReadyWhen {
    fn default() -> Self {
        Self::UpFor(0)
    }
}

/// A question to a running service from outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Probe {
    /// A connection to this address, `127.0.0.1:8080` or `[::1]:8080`, is accepted.
    Tcp(String),
    /// A GET gets one of these statuses.
    Http(HttpProbe),
    /// The program exits with status 0.
    Command(Command),
}

choices!(Probe { Tcp(_) = "tcp", Http(_) = "http", Command(_) = "command" });

/// GET over HTTP/1.1.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct HttpProbe {
    /// `127.0.0.1:8080`
    pub address: String,
    /// `/healthz`
    pub path: String,
    /// Statuses that count; empty: 200 to 399.
    pub status: Vec<u16>,
}

object!(HttpProbe { address, path } default { status });

/// How a running service is watched. What fails so is killed and started again by its restart policy, as after
/// a crash.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Health {
    /// What shows that it is well.
    pub when: HealthWhen,
    /// Between two probes. For [`HealthWhen::Watchdog`]: the longest silence.
    pub interval_ms: u64,
    /// How long one probe may take.
    pub timeout_ms: u64,
    /// Failures in a row.
    pub failures: u32,
    /// What a hung process gets first, for a core or a stack trace: `SIGABRT`. `SIGKILL` follows after the stop timeout.
    pub kill_signal: String,
}

object!(Health { when, interval_ms, timeout_ms, failures, kill_signal });

/// What shows that a running service is well.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum HealthWhen {
    /// It sends `WATCHDOG=1` to `NOTIFY_SOCKET` within the interval: sd_notify(3), `WATCHDOG_USEC`.
    #[default]
    Watchdog,
    /// The probe succeeds.
    Probe(Probe),
}

choices!(HealthWhen { Watchdog = "watchdog", Probe(_) = "probe" });

/// What the processes of a service or task are.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Process {
    /// User, by name in the host's passwd(5) or by number; `None`: the supervisor's.
    pub user: Option<String>,
    /// Group, by name or number; `None`: the user's.
    pub group: Option<String>,
    /// Supplementary groups; `None`: those of the user in group(5).
    pub groups: Option<Vec<String>>,
    /// umask(2); `None`: the supervisor's.
    pub umask: Option<u32>,
    /// nice(2), -20 to 19.
    pub nice: Option<i8>,
    /// `/proc/self/oom_score_adj`, -1000 to 1000; `None`: the one that the supervisor was started with.
    pub oom_score: Option<i16>,
    /// Soft and hard limits by their name in getrlimit(2) without `RLIMIT_`, lower case; `None`: unlimited.
    pub limits: BTreeMap<String, Option<u64>>,
    /// What it inherits from the supervisor's environment: everything, or these names alone.
    pub pass_env: Option<Vec<String>>,
    /// Files with lines `NAME=value`, later ones win; a name that ends in `?` may be missing.
    pub env_files: Vec<String>,
    /// `memory.max` of its cgroup in bytes, where cgroup v2 is delegated.
    pub memory_max: Option<u64>,
    /// `pids.max` of its cgroup.
    pub pids_max: Option<u64>,
    /// Files that are made for it before each start.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub render: Vec<Render>,
    /// What it may do.
    pub sandbox: Sandbox,
}

object!(Process default {
    user, group, groups, umask, nice, oom_score, limits, pass_env, env_files, memory_max, pids_max, render, sandbox,
});

/// A program that runs to its end: once before others, on a schedule, or when somebody asks.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Task {
    /// What is started.
    pub command: Command,
    /// When.
    pub schedule: Schedule,
    /// Services and tasks that have to be ready, or done, before it is started.
    pub needs: Vec<String>,
    /// What happens when it is due and still runs.
    pub overlap: Overlap,
    /// Run it at the start if it was due while nothing ran.
    pub catch_up: bool,
    /// After this time it is stopped; `None`: it may take for ever.
    pub timeout_ms: Option<u64>,
    /// Signal that asks it to stop, by name.
    pub stop_signal: String,
    /// How long it may take to stop before `SIGKILL`.
    pub stop_timeout_ms: u64,
    /// Ends that count as good beside exit status 0.
    pub success: Success,
    /// What its processes are.
    pub process: Process,
}

object!(Task { command, stop_signal, stop_timeout_ms } default {
    schedule, needs, overlap, catch_up, timeout_ms, success, process,
});

/// When a task runs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// When the bundle starts, before what needs it; and when somebody asks.
    #[default]
    Start,
    /// When somebody asks.
    Asked,
    /// By a crontab(5) expression.
    Cron(Cron),
    /// So long after the start, and after each beginning of a run.
    Every(u64),
}

choices!(Schedule { Start = "start", Asked = "asked", Cron(_) = "cron", Every(_) = "every" });

/// A crontab(5) expression.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Cron {
    /// Five fields, or `@daily` and its like.
    pub expression: String,
    /// `UTC`, `local` (the host's), or a name such as `Europe/Berlin`, looked up in the bundle's time zones, then the host's.
    pub zone: String,
}

object!(Cron { expression, zone });

/// What happens when a task is due and still runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Overlap {
    /// This run is left out, which is said.
    #[default]
    Skip,
    /// It runs when the other has ended; one waits at most.
    Queue,
    /// The other is stopped first.
    Replace,
}

words!(Overlap { Skip = "skip", Queue = "queue", Replace = "replace" });

/// What becomes of what services print.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Logs {
    /// Where it goes. In the foreground it is shown as well.
    pub to: LogTo,
    /// How a line is written.
    pub format: LogFormat,
    /// A file is rotated when it has this many bytes…
    pub max_size: u64,
    /// …or is this old; `None`: however old.
    pub max_age_ms: Option<u64>,
    /// Rotated files that are kept, for each service.
    pub keep: u32,
    /// Rotated files are compressed (zstd).
    pub compress: bool,
    /// What happens where the destination is slower than the service.
    pub when_slow: WhenSlow,
}

object!(Logs default { to, format, max_size, max_age_ms, keep, compress, when_slow });

impl Default for Logs {
    fn default() -> Self {
        Self {
            to: LogTo::default(),
            format: LogFormat::default(),
            max_size: 16 << 20,
            max_age_ms: None,
            keep: 5,
            compress: true,
            when_slow: WhenSlow::default(),
        }
    }
}

/// Where the logs go.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogTo {
    /// Files in `log/` of the state folder, in the background; in the foreground, standard output alone.
    #[default]
    Auto,
    /// Files in this folder, a template, always.
    Files(String),
    /// Standard output alone.
    Stdout,
}

choices!(LogTo { Auto = "auto", Files(_) = "files", Stdout = "stdout" });

/// How a line is written to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// RFC 3339 in UTC with microseconds, and the line.
    #[default]
    Stamped,
    /// The line alone.
    Plain,
    /// An object with `time`, `service`, `stream`, `text`.
    Json,
}

words!(LogFormat { Stamped = "stamped", Plain = "plain", Json = "json" });

/// What happens where the destination is slower than the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhenSlow {
    /// The service waits: its pipe is not read.
    #[default]
    Block,
    /// Lines are dropped, counted, and the count is written.
    Drop,
}

words!(WhenSlow { Block = "block", Drop = "drop" });

/// A path of which each instance has its own: `web.conf` as `web-${instance}.conf`.
#[must_use]
pub fn with_instance(path: &str) -> String {
    let name = path.rfind('/').map_or(0, |at| at + 1);
    let end = path[name..].rfind('.').filter(|at| *at > 0).map_or(path.len(), |at| name + at);
    let mut path = path.to_owned();
    path.insert_str(end, "-${instance}");
    path
}
