//! What a service does next: pure values, no clock and no system call.
//!
//! [`Service::step`] takes one instance of a service, or a task, from an [`Event`] to its next [`State`] and says
//! what is to be done; [`Whole::step`] does the same for the bundle. Time comes in as milliseconds on a monotonic
//! clock. All of it is plain data, so that a supervisor's knowledge can be written down and read back by the next one.
//! The whole behaviour stands in `docs/transitions.txt`, which a test compares with this code.

use kitbag_format::service::{Backoff, GiveUp, Restart};
use serde::{Deserialize, Serialize};

mod whole;
pub use whole::{Deed, Phase, Turn, Whole};

#[cfg(test)]
mod tests;

/// Milliseconds on a monotonic clock, or a span of it.
pub type Ms = u64;

/// A process group, which is also the process id of the service's leader.
pub type Group = i32;

/// How long the kernel may take to end what got SIGKILL. A process in uninterruptible sleep may take longer;
/// nobody waits for it.
pub const DEATH_DEADLINE: Ms = 5_000;
/// A stop signal this soon after the first is the same request: a terminal's `^C` reaches a launcher and its
/// child, and launchers pass it on.
pub const SAME_REQUEST: Ms = 100;
/// After a requested stop, how long the reader of our output may leave it untouched.
pub const DRAIN_DEADLINE: Ms = 1_000;

/// How a service's process came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// It exited with this status.
    Status(i32),
    /// This signal ended it.
    Signal(i32),
    /// There was no program to run: a step on the way to it failed.
    NotStarted(Fault),
    /// Nobody knows: it ended while no supervisor was there.
    Unseen,
}

/// A failed step between the decision to start a program and its first instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// The step.
    pub stage: Stage,
    /// Why, as in errno(3).
    pub errno: i32,
}

/// The steps from the decision to start a program to its first instruction, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Its ports, or those of others that its texts name.
    Ports,
    /// Files that are made for it.
    Files,
    /// Arguments and environment as C strings (a NUL byte in one is `EINVAL`).
    Arguments,
    /// Pipes for its output.
    Pipes,
    /// clone(2)
    Fork,
    /// setsid(2)
    Session,
    /// Standard input, output and error, and what else it inherits.
    StandardFiles,
    /// setrlimit(2)
    Limits,
    /// Joining its cgroup.
    Cgroup,
    /// setpriority(2)
    Nice,
    /// `/proc/self/oom_score_adj`
    OomScore,
    /// Its sandbox: the ruleset of landlock(7), and landlock_restrict_self(2).
    Sandbox,
    /// setgroups(2)
    Groups,
    /// setgid(2)
    Group,
    /// setuid(2)
    User,
    /// prctl(2) `PR_SET_PDEATHSIG`
    ParentDeath,
    /// chdir(2)
    WorkingDirectory,
    /// execve(2)
    Exec,
}

/// How a service is treated. A task is a service that is never started again and is done when it has ended well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// When an ended service is started again.
    pub restart: Restart,
    /// Exit statuses that count as good beside 0.
    pub good_codes: Vec<u8>,
    /// Signals whose death counts as good.
    pub good_signals: Vec<i32>,
    /// How soon it is started again.
    pub backoff: Backoff,
    /// When it is not started again any more.
    pub give_up: Option<GiveUp>,
    /// What makes it ready.
    pub ready: Readiness,
    /// From its start to readiness, or a task's to its end; then it has failed.
    pub timeout: Option<Ms>,
    /// How it is watched once it is ready.
    pub watch: Option<Watch>,
    /// From its stop signal to SIGKILL.
    pub stop_timeout: Ms,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            restart: Restart::Always,
            good_codes: Vec::new(),
            good_signals: Vec::new(),
            backoff: Backoff::default(),
            give_up: None,
            ready: Readiness::UpFor(0),
            timeout: None,
            watch: None,
            stop_timeout: 10_000,
        }
    }
}

impl Rules {
    /// True for an end that counts as good.
    pub fn is_good(&self, end: End) -> bool {
        match end {
            End::Status(0) => true,
            End::Status(status) => u8::try_from(status).is_ok_and(|code| self.good_codes.contains(&code)),
            End::Signal(number) => self.good_signals.contains(&number),
            End::NotStarted(_) | End::Unseen => false,
        }
    }
}

/// What makes a running service ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// It has run for so long.
    UpFor(Ms),
    /// It says so: by a newline, or by `READY=1`.
    Told,
    /// A probe succeeds.
    Probe {
        /// From an answer to the next try.
        interval: Ms,
    },
    /// Nothing: it is a task, whose good end is what others wait for.
    Done,
}

/// How a ready service is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watch {
    /// It gives a sign of life within each such span.
    Silence(Ms),
    /// A probe succeeds.
    Probe {
        /// From an answer to the next try.
        interval: Ms,
        /// So many failures in a row are one too many.
        failures: u32,
    },
}

impl Watch {
    /// From readiness to the first look.
    const fn span(self) -> Ms {
        match self {
            Self::Silence(span) | Self::Probe { interval: span, .. } => span,
        }
    }
}

/// One life of a service's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Its process group.
    pub group: Group,
    /// When it was started.
    pub since: Ms,
}

/// Where a service stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Not started yet.
    New,
    /// It is to start, and what it needs is not ready.
    Needing,
    /// To be forked.
    Starting {
        /// Since when.
        since: Ms,
    },
    /// Forked; the program's exec is not known to have worked.
    Executing {
        /// Its process.
        run: Run,
    },
    /// The program runs and is not ready. A task stays here until its end.
    Running {
        /// Its process.
        run: Run,
        /// When this has taken too long.
        late_at: Option<Ms>,
        /// When it is ready, or probed; `None` while a probe is asking.
        next: Option<Ms>,
    },
    /// The program runs and is ready.
    Ready {
        /// Its process.
        run: Run,
        /// When it is probed, or has been silent too long; `None` while a probe is asking.
        next: Option<Ms>,
        /// Probes that failed in a row.
        strikes: u32,
        /// It has said that it reloads; when that has taken too long.
        reloading: Option<Ms>,
    },
    /// It has said that it stops by itself.
    Leaving {
        /// Its process.
        run: Run,
        /// When this has taken too long.
        late_at: Ms,
    },
    /// Its process group was asked to end: on request, because it failed, or because its leader ended and left
    /// others behind.
    Stopping {
        /// Its process.
        run: Run,
        /// When it gets SIGKILL.
        kill_at: Ms,
        /// What follows when the group is gone.
        then: Then,
    },
    /// Its process group got SIGKILL.
    Killing {
        /// Its process.
        run: Run,
        /// When nobody waits for it any longer.
        give_up_at: Ms,
        /// What follows when the group is gone.
        then: Then,
    },
    /// Nothing runs; it starts again when the time has come.
    Waiting {
        /// When.
        until: Ms,
    },
    /// Nothing runs and nothing is going to, until somebody starts it.
    Ended(Outcome),
}

/// What follows a stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Then {
    /// Another start.
    Start {
        /// Not before this time.
        at: Ms,
    },
    /// Rest.
    End(Outcome),
}

impl Then {
    fn with_times(self, to: &dyn Fn(Ms) -> Ms) -> Self {
        match self {
            Self::Start { at } => Self::Start { at: to(at) },
            Self::End(_) => self,
        }
    }
}

/// How a service came to rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Its last run ended well and its restart policy asks for no other.
    Succeeded,
    /// Its last run failed and its restart policy asks for no other.
    Failed,
    /// It failed too often within too short a time.
    GivenUp,
    /// What it needs has failed.
    NeedFailed,
    /// It was told to stop.
    Stopped,
}

impl Outcome {
    /// True for the ways to fail.
    pub const fn is_failure(self) -> bool {
        matches!(self, Self::Failed | Self::GivenUp | Self::NeedFailed)
    }
}

/// What happens to a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Somebody wants it to run.
    Start,
    /// Somebody wants it to end and to run again.
    Restart,
    /// All that it needs is ready.
    NeedsMet,
    /// Something that it needs has failed for good.
    NeedFailed,
    /// Its process was forked.
    Forked(Group),
    /// Its program's first instruction is next.
    Executed,
    /// It says that it is ready.
    SaysReady,
    /// It says that it reads its configuration again; it says so when that is done, too.
    SaysReloading,
    /// It says that it stops by itself.
    SaysStopping,
    /// It gives a sign of life.
    SaysAlive,
    /// It says that it is stuck.
    SaysStuck,
    /// It asks for so much more time, from now.
    Extend(Ms),
    /// What a probe found.
    Probed {
        /// It succeeded.
        well: bool,
    },
    /// Its leader ended, and left its place to another process, which is in this group.
    Followed(Group),
    /// Its leader ended, or did not come to life.
    Exited(End),
    /// More of what descends from it was found, and has got SIGKILL.
    KilledMore,
    /// No process of its group is left, nor any that descends from it.
    GroupGone,
    /// The time of [`State::deadline`] may have come.
    Tick,
    /// Somebody wants it to stop.
    Stop,
    /// Somebody wants it to stop now.
    Kill,
}

/// What is to be done for a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Find out whether all that it needs is ready; answered by [`Event::NeedsMet`] or [`Event::NeedFailed`],
    /// now or later.
    Need,
    /// Fork its process; answered by [`Event::Forked`] or [`Event::Exited`].
    Spawn,
    /// Probe it; answered by [`Event::Probed`] while it is in this state.
    Probe,
    /// Send its stop signal to its group, and SIGCONT after it.
    Ask(Group),
    /// Send the signal for a hung process to its group, and SIGCONT after it.
    Abort(Group),
    /// Send SIGKILL to its group.
    Kill(Group),
    /// Tell the person in front.
    Say(Note),
}

/// Why a running process is ended without anybody having asked for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trouble {
    /// It was not ready in time.
    NotReady,
    /// A task took too long.
    Overtime,
    /// Probes failed too often.
    Unhealthy,
    /// It has given no sign of life for too long.
    Silent,
    /// It said so itself.
    Stuck,
    /// It said that it stops, and does not.
    Lingering,
}

/// What follows the end of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// A start after this delay.
    Again(Ms),
    /// Nothing, by its restart policy.
    Rest,
    /// Nothing: it has failed too often.
    GivenUp,
}

/// What a person is told about a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Note {
    /// Its run ended without being asked to.
    Ended {
        /// How.
        end: End,
        /// How long it ran.
        after: Ms,
        /// What follows.
        next: Next,
    },
    /// Its run is being ended.
    Failing {
        /// Why.
        trouble: Trouble,
        /// How long it ran.
        after: Ms,
        /// What follows.
        next: Next,
    },
    /// It did not stop in time and gets SIGKILL.
    Overdue,
    /// It did not even end after SIGKILL.
    Undead,
    /// It is not started, as what it needs has failed.
    NeedFailed,
    /// It did not say that its reload is done; nothing follows.
    ReloadLate,
}

impl State {
    /// When [`Event::Tick`] changes this state, if it ever does.
    pub fn deadline(&self) -> Option<Ms> {
        match *self {
            Self::Running { late_at: one, next: other, .. }
            | Self::Ready { next: one, reloading: other, .. } => one.into_iter().chain(other).min(),
            Self::Leaving { late_at: at, .. }
            | Self::Stopping { kill_at: at, .. }
            | Self::Killing { give_up_at: at, .. }
            | Self::Waiting { until: at } => Some(at),
            Self::New | Self::Needing | Self::Starting { .. } | Self::Executing { .. } | Self::Ended(_) => {
                None
            }
        }
    }

    /// The process that exists in this state.
    pub const fn run(&self) -> Option<Run> {
        match *self {
            Self::Executing { run }
            | Self::Running { run, .. }
            | Self::Ready { run, .. }
            | Self::Leaving { run, .. }
            | Self::Stopping { run, .. }
            | Self::Killing { run, .. } => Some(run),
            Self::New | Self::Needing | Self::Starting { .. } | Self::Waiting { .. } | Self::Ended(_) => None,
        }
    }

    /// The process that exists in this state and is not being ended.
    const fn live(&self) -> Option<Run> {
        match *self {
            Self::Stopping { .. } | Self::Killing { .. } => None,
            _ => self.run(),
        }
    }

    /// The same state with `to` of each time.
    fn with_times(self, to: &dyn Fn(Ms) -> Ms) -> Self {
        let of_run = |run: Run| Run { since: to(run.since), ..run };
        match self {
            Self::New | Self::Needing | Self::Ended(_) => self,
            Self::Starting { since } => Self::Starting { since: to(since) },
            Self::Executing { run } => Self::Executing { run: of_run(run) },
            Self::Running { run, late_at, next } => {
                Self::Running { run: of_run(run), late_at: late_at.map(to), next: next.map(to) }
            }
            Self::Ready { run, next, strikes, reloading } => {
                let (next, reloading) = (next.map(to), reloading.map(to));
                Self::Ready { run: of_run(run), next, strikes, reloading }
            }
            Self::Leaving { run, late_at } => Self::Leaving { run: of_run(run), late_at: to(late_at) },
            Self::Stopping { run, kill_at, then } => {
                Self::Stopping { run: of_run(run), kill_at: to(kill_at), then: then.with_times(to) }
            }
            Self::Killing { run, give_up_at, then } => {
                Self::Killing { run: of_run(run), give_up_at: to(give_up_at), then: then.with_times(to) }
            }
            Self::Waiting { until } => Self::Waiting { until: to(until) },
        }
    }

    /// True if nothing runs and nothing is going to by itself.
    pub const fn is_at_rest(&self) -> bool {
        matches!(self, Self::New | Self::Ended(_))
    }

    /// True if what waits for it may go on.
    pub const fn is_good(&self) -> bool {
        matches!(self, Self::Ready { .. } | Self::Ended(Outcome::Succeeded))
    }

    /// True if what waits for it waits in vain.
    pub const fn has_failed(&self) -> bool {
        matches!(self, Self::Ended(outcome) if outcome.is_failure())
    }
}

/// The last run that came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Last {
    /// When it was started.
    pub since: Ms,
    /// When it ended, or when its end was decided.
    pub at: Ms,
    /// Why it was ended, unless it was asked to or ended by itself.
    pub trouble: Option<Trouble>,
    /// How its process ended, once that is known.
    pub end: Option<End>,
}

/// All that a supervisor remembers about a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Where it stands.
    pub state: State,
    /// Ends in a row, none after a stable run: what the delay grows with.
    pub failures: u32,
    /// Times of the failures that [`Rules::give_up`] still counts, oldest first; never more than it allows.
    pub recent: Vec<Ms>,
    /// Starts that its restart policy has asked for.
    pub restarts: u32,
    /// Its last run.
    pub last: Option<Last>,
}

impl Default for Service {
    fn default() -> Self {
        Self { state: State::New, failures: 0, recent: Vec::new(), restarts: 0, last: None }
    }
}

/// What a step is taken with.
#[derive(Debug, Clone, Copy)]
struct With<'a> {
    now: Ms,
    rules: &'a Rules,
    jitter: u8,
}

impl With<'_> {
    const fn in_(&self, span: Ms) -> Ms {
        self.now.saturating_add(span)
    }
}

impl Service {
    /// Takes the service through `event` at time `now`, and returns what is to be done, in this order.
    /// `jitter` (any number, best a random one) lengthens a delay by up to a quarter.
    #[must_use]
    pub fn step(&mut self, event: Event, now: Ms, rules: &Rules, jitter: u8) -> Vec<Action> {
        let with = &With { now, rules, jitter };
        match event {
            Event::Start => self.wanted(with),
            Event::Restart => self.restart(with),
            Event::NeedsMet => self.needs_met(with),
            Event::NeedFailed => self.need_failed(),
            Event::Forked(group) => self.forked(group, with),
            Event::Executed => self.executed(with),
            Event::SaysReady => self.says_ready(with),
            Event::SaysReloading => self.says_reloading(with),
            Event::SaysStopping => self.says_stopping(with),
            Event::SaysAlive => self.says_alive(with),
            Event::SaysStuck => self.says_stuck(with),
            Event::Extend(span) => self.extend(with.in_(span)),
            Event::Probed { well } => self.probed(well, with),
            Event::Followed(group) => self.followed(group),
            Event::Exited(end) => self.exited(end, with),
            Event::KilledMore => self.killed_more(with),
            Event::GroupGone => self.group_gone(with),
            Event::Tick => self.tick(with),
            Event::Stop => self.stop(with),
            Event::Kill => self.kill_now(with),
        }
    }

    // --- Another supervisor ---

    /// The same service with `to` of each time: those of another clock.
    #[must_use]
    pub fn with_times(self, to: &dyn Fn(Ms) -> Ms) -> Self {
        Self {
            state: self.state.with_times(to),
            recent: self.recent.into_iter().map(to).collect(),
            last: self.last.map(|last| Last { since: to(last.since), at: to(last.at), ..last }),
            ..self
        }
    }

    /// Goes on where an earlier supervisor stood, and returns what has to be done again: what that one had begun, and
    /// what only it would have been told. Whether the process is still there is told by [`Event::Exited`] afterwards.
    #[must_use]
    pub fn resume(&mut self, now: Ms, rules: &Rules) -> Vec<Action> {
        let asks = matches!(rules.ready, Readiness::Probe { .. });
        let watches = matches!(rules.watch, Some(Watch::Probe { .. }));
        match self.state {
            State::Needing => vec![Action::Need],
            State::Starting { .. } => vec![Action::Spawn],
            State::Executing { .. } => self.executed(&With { now, rules, jitter: 0 }),
            State::Running { next: None, .. } if asks => vec![Action::Probe],
            State::Ready { next: None, .. } if watches => vec![Action::Probe],
            // It may have died before it did. A stop signal is not repeated: to some programs two are a demand.
            State::Killing { run, .. } => vec![Action::Kill(run.group)],
            _ => Vec::new(),
        }
    }

    // --- What somebody wants ---

    /// A start by hand never spends the budget of restarts; it begins it anew.
    fn forgive(&mut self) {
        self.failures = 0;
        self.recent.clear();
    }

    fn wanted(&mut self, with: &With<'_>) -> Vec<Action> {
        match self.state {
            State::New | State::Ended(_) => {
                self.forgive();
                self.state = State::Needing;
                vec![Action::Need]
            }
            State::Waiting { .. } => {
                self.forgive();
                self.begin(with)
            }
            State::Stopping { .. } | State::Killing { .. } => {
                self.forgive();
                self.followed_by(Then::Start { at: with.now })
            }
            _ => Vec::new(),
        }
    }

    fn restart(&mut self, with: &With<'_>) -> Vec<Action> {
        match self.state.live() {
            Some(run) => {
                self.forgive();
                self.end(run, Then::Start { at: with.now }, with)
            }
            None => self.wanted(with),
        }
    }

    fn stop(&mut self, with: &With<'_>) -> Vec<Action> {
        let then = Then::End(Outcome::Stopped);
        match self.state {
            State::Stopping { .. } | State::Killing { .. } => self.followed_by(then),
            _ => match self.state.live() {
                Some(run) => self.end(run, then, with),
                None => self.stay_stopped(),
            },
        }
    }

    fn kill_now(&mut self, with: &With<'_>) -> Vec<Action> {
        let then = Then::End(Outcome::Stopped);
        match self.state {
            State::Killing { .. } => self.followed_by(then),
            _ => match self.state.run() {
                Some(run) => self.kill(run, then, with),
                None => self.stay_stopped(),
            },
        }
    }

    /// Nothing runs. A fork under way is answered by `Forked`, which finds nobody waiting.
    fn stay_stopped(&mut self) -> Vec<Action> {
        if !matches!(self.state, State::Ended(_)) {
            self.state = State::Ended(Outcome::Stopped);
        }
        Vec::new()
    }

    // --- From the start to readiness ---

    fn needs_met(&mut self, with: &With<'_>) -> Vec<Action> {
        if self.state == State::Needing { self.begin(with) } else { Vec::new() }
    }

    fn need_failed(&mut self) -> Vec<Action> {
        if self.state != State::Needing {
            return Vec::new();
        }
        self.state = State::Ended(Outcome::NeedFailed);
        vec![Action::Say(Note::NeedFailed)]
    }

    fn begin(&mut self, with: &With<'_>) -> Vec<Action> {
        self.state = State::Starting { since: with.now };
        vec![Action::Spawn]
    }

    fn forked(&mut self, group: Group, with: &With<'_>) -> Vec<Action> {
        let then = match self.state {
            State::Starting { since } => {
                self.state = State::Executing { run: Run { group, since } };
                return Vec::new();
            }
            // A process that nobody is waiting for any more.
            State::Waiting { until } => Then::Start { at: until },
            State::New | State::Needing | State::Ended(_) => Then::End(Outcome::Stopped),
            _ => return Vec::new(),
        };
        self.kill(Run { group, since: with.now }, then, with)
    }

    fn executed(&mut self, with: &With<'_>) -> Vec<Action> {
        let State::Executing { run } = self.state else { return Vec::new() };
        let late_at = with.rules.timeout.map(|timeout| run.since.saturating_add(timeout));
        match with.rules.ready {
            Readiness::UpFor(0) => self.is_ready(run, with),
            // It needs no other limit.
            Readiness::UpFor(span) => {
                self.state = State::Running { run, late_at: None, next: Some(with.in_(span)) };
                Vec::new()
            }
            Readiness::Told | Readiness::Done => {
                self.state = State::Running { run, late_at, next: None };
                Vec::new()
            }
            Readiness::Probe { .. } => {
                self.state = State::Running { run, late_at, next: None };
                vec![Action::Probe]
            }
        }
    }

    fn is_ready(&mut self, run: Run, with: &With<'_>) -> Vec<Action> {
        let next = with.rules.watch.map(|watch| with.in_(watch.span()));
        self.state = State::Ready { run, next, strikes: 0, reloading: None };
        Vec::new()
    }

    // --- What it says ---

    fn says_ready(&mut self, with: &With<'_>) -> Vec<Action> {
        match &mut self.state {
            State::Running { run, .. } if with.rules.ready == Readiness::Told => {
                let run = *run;
                self.is_ready(run, with)
            }
            State::Ready { reloading, .. } => {
                *reloading = None;
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    fn says_reloading(&mut self, with: &With<'_>) -> Vec<Action> {
        if let State::Ready { reloading, .. } = &mut self.state {
            *reloading = Some(with.in_(with.rules.timeout.unwrap_or(Ms::MAX)));
        }
        Vec::new()
    }

    fn says_stopping(&mut self, with: &With<'_>) -> Vec<Action> {
        if let State::Running { run, .. } | State::Ready { run, .. } = self.state {
            self.state = State::Leaving { run, late_at: with.in_(with.rules.stop_timeout) };
        }
        Vec::new()
    }

    fn says_alive(&mut self, with: &With<'_>) -> Vec<Action> {
        if let (State::Ready { next, .. }, Some(Watch::Silence(span))) = (&mut self.state, with.rules.watch) {
            *next = Some(with.in_(span));
        }
        Vec::new()
    }

    fn says_stuck(&mut self, with: &With<'_>) -> Vec<Action> {
        match self.state {
            State::Running { run, .. } | State::Ready { run, .. } | State::Leaving { run, .. } => {
                self.fail(run, Trouble::Stuck, with)
            }
            _ => Vec::new(),
        }
    }

    /// sd_notify(3), `EXTEND_TIMEOUT_USEC`: for start, reload and stop, whichever is going on.
    fn extend(&mut self, until: Ms) -> Vec<Action> {
        match &mut self.state {
            State::Running { late_at: Some(at), .. }
            | State::Ready { reloading: Some(at), .. }
            | State::Leaving { late_at: at, .. }
            | State::Stopping { kill_at: at, .. } => *at = until.max(*at),
            _ => {}
        }
        Vec::new()
    }

    fn probed(&mut self, well: bool, with: &With<'_>) -> Vec<Action> {
        match (&mut self.state, with.rules.ready, with.rules.watch) {
            (State::Running { run, next, .. }, Readiness::Probe { interval }, _) => {
                let run = *run;
                if well {
                    return self.is_ready(run, with);
                }
                *next = Some(with.in_(interval));
            }
            (State::Ready { run, next, strikes, .. }, _, Some(Watch::Probe { interval, failures })) => {
                *strikes = if well { 0 } else { strikes.saturating_add(1) };
                let (run, unhealthy) = (*run, *strikes >= failures.max(1));
                *next = Some(with.in_(interval));
                if unhealthy {
                    return self.fail(run, Trouble::Unhealthy, with);
                }
            }
            _ => {}
        }
        Vec::new()
    }

    // --- Time ---

    fn tick(&mut self, with: &With<'_>) -> Vec<Action> {
        let due = |at: Option<Ms>| at.is_some_and(|at| at <= with.now);
        match self.state {
            State::Waiting { until } if until <= with.now => self.begin(with),
            State::Running { run, late_at, .. } if due(late_at) => {
                let task = with.rules.ready == Readiness::Done;
                self.fail(run, if task { Trouble::Overtime } else { Trouble::NotReady }, with)
            }
            State::Running { run, late_at, next } if due(next) => match with.rules.ready {
                Readiness::UpFor(_) => self.is_ready(run, with),
                _ => {
                    self.state = State::Running { run, late_at, next: None };
                    vec![Action::Probe]
                }
            },
            State::Ready { run, next, strikes, reloading } if due(reloading) => {
                self.state = State::Ready { run, next, strikes, reloading: None };
                vec![Action::Say(Note::ReloadLate)]
            }
            State::Ready { run, next, strikes, reloading } if due(next) => match with.rules.watch {
                Some(Watch::Silence(_)) => self.fail(run, Trouble::Silent, with),
                _ => {
                    self.state = State::Ready { run, next: None, strikes, reloading };
                    vec![Action::Probe]
                }
            },
            State::Leaving { run, late_at } if late_at <= with.now => {
                self.fail(run, Trouble::Lingering, with)
            }
            State::Stopping { run, kill_at, then } if kill_at <= with.now => {
                let mut actions = self.kill(run, then, with);
                actions.insert(0, Action::Say(Note::Overdue));
                actions
            }
            State::Killing { give_up_at, then, .. } if give_up_at <= with.now => {
                let mut actions = self.settle(then, with);
                actions.insert(0, Action::Say(Note::Undead));
                actions
            }
            _ => Vec::new(),
        }
    }

    // --- The end of a run ---

    /// The same run with another leader. What is being ended has none any more: that one is asked to end like the rest.
    const fn followed(&mut self, group: Group) -> Vec<Action> {
        if let State::Executing { run }
        | State::Running { run, .. }
        | State::Ready { run, .. }
        | State::Leaving { run, .. } = &mut self.state
        {
            run.group = group;
        }
        Vec::new()
    }

    fn exited(&mut self, end: End, with: &With<'_>) -> Vec<Action> {
        let since = match self.state {
            State::Starting { since } => since,
            State::Stopping { .. } | State::Killing { .. } => {
                self.note_end(end, with.now);
                return Vec::new();
            }
            _ => match self.state.live() {
                Some(run) => run.since,
                None => return Vec::new(),
            },
        };
        let (then, next) = self.judge(Some(end), since, with);
        self.last = Some(Last { since, at: with.now, trouble: None, end: Some(end) });
        let mut actions = vec![Action::Say(Note::Ended { end, after: with.now.saturating_sub(since), next })];
        actions.extend(match self.state.live() {
            Some(run) => self.end_with(run, then, Action::Ask(run.group), with),
            None => self.settle(then, with),
        });
        actions
    }

    /// The process has ended that a request, or trouble, was ending.
    fn note_end(&mut self, end: End, now: Ms) {
        let since = self.state.run().map_or(now, |run| run.since);
        match &mut self.last {
            Some(last) if last.since == since => last.end = last.end.or(Some(end)),
            last => *last = Some(Last { since, at: now, trouble: None, end: Some(end) }),
        }
    }

    /// The kernel has as long for the last of them as for the first.
    const fn killed_more(&mut self, with: &With<'_>) -> Vec<Action> {
        if let State::Killing { give_up_at, .. } = &mut self.state {
            *give_up_at = with.in_(DEATH_DEADLINE);
        }
        Vec::new()
    }

    fn group_gone(&mut self, with: &With<'_>) -> Vec<Action> {
        match self.state {
            State::Stopping { then, .. } | State::Killing { then, .. } => self.settle(then, with),
            _ => Vec::new(),
        }
    }

    /// Ends a run that goes wrong, which counts as a failure like a crash.
    fn fail(&mut self, run: Run, trouble: Trouble, with: &With<'_>) -> Vec<Action> {
        let (then, next) = self.judge(None, run.since, with);
        self.last = Some(Last { since: run.since, at: with.now, trouble: Some(trouble), end: None });
        let after = with.now.saturating_sub(run.since);
        let action = match trouble {
            Trouble::Unhealthy | Trouble::Silent | Trouble::Stuck => Action::Abort(run.group),
            Trouble::NotReady | Trouble::Overtime | Trouble::Lingering => Action::Ask(run.group),
        };
        let mut actions = vec![Action::Say(Note::Failing { trouble, after, next })];
        actions.extend(self.end_with(run, then, action, with));
        actions
    }

    fn end(&mut self, run: Run, then: Then, with: &With<'_>) -> Vec<Action> {
        self.end_with(run, then, Action::Ask(run.group), with)
    }

    fn end_with(&mut self, run: Run, then: Then, action: Action, with: &With<'_>) -> Vec<Action> {
        self.state = State::Stopping { run, kill_at: with.in_(with.rules.stop_timeout), then };
        vec![action]
    }

    fn kill(&mut self, run: Run, then: Then, with: &With<'_>) -> Vec<Action> {
        self.state = State::Killing { run, give_up_at: with.in_(DEATH_DEADLINE), then };
        vec![Action::Kill(run.group)]
    }

    /// The same stop, with another sequel.
    const fn followed_by(&mut self, sequel: Then) -> Vec<Action> {
        if let State::Stopping { then, .. } | State::Killing { then, .. } = &mut self.state {
            *then = sequel;
        }
        Vec::new()
    }

    fn settle(&mut self, then: Then, with: &With<'_>) -> Vec<Action> {
        match then {
            Then::Start { at } if at <= with.now => return self.begin(with),
            Then::Start { at } => self.state = State::Waiting { until: at },
            Then::End(outcome) => self.state = State::Ended(outcome),
        }
        Vec::new()
    }

    /// What the restart policy makes of an end that nobody asked for; `None`: of trouble.
    fn judge(&mut self, end: Option<End>, since: Ms, with: &With<'_>) -> (Then, Next) {
        let &With { now, rules, jitter } = with;
        let good = end.is_some_and(|end| rules.is_good(end));
        if now.saturating_sub(since) >= rules.backoff.stable_ms {
            self.failures = 0;
        }
        let again = match rules.restart {
            Restart::Always => true,
            Restart::OnFailure => !good,
            Restart::Never => false,
        };
        if !again {
            return (Then::End(if good { Outcome::Succeeded } else { Outcome::Failed }), Next::Rest);
        }
        if !good && self.spends_the_last(now, rules.give_up) {
            return (Then::End(Outcome::GivenUp), Next::GivenUp);
        }
        // Nothing ran: whatever is missing is hardly there in the next millisecond.
        if matches!(end, Some(End::NotStarted(_))) {
            self.failures = self.failures.max(1);
        }
        let delay = delay(&rules.backoff, self.failures, jitter);
        self.failures = self.failures.saturating_add(1);
        self.restarts = self.restarts.saturating_add(1);
        (Then::Start { at: with.in_(delay) }, Next::Again(delay))
    }

    /// Counts a failure; true if that is one too many.
    fn spends_the_last(&mut self, now: Ms, rule: Option<GiveUp>) -> bool {
        let Some(GiveUp { failures, within_ms }) = rule else { return false };
        self.recent.retain(|at| now.saturating_sub(*at) < within_ms);
        self.recent.push(now);
        self.recent.len() >= failures.max(1) as usize
    }
}

/// The delay before a start that follows `failures` others in a row: none for the first, then doubling from the first
/// delay to the longest, lengthened by up to a quarter.
fn delay(backoff: &Backoff, failures: u32, jitter: u8) -> Ms {
    let longest = backoff.longest_ms.max(backoff.first_ms);
    let Some(doublings) = failures.checked_sub(1) else { return 0 };
    let grown = 1_u64
        .checked_shl(doublings)
        .and_then(|factor| backoff.first_ms.checked_mul(factor))
        .unwrap_or(longest)
        .min(longest);
    grown
        .saturating_add(grown / 1024 * Ms::from(jitter) + grown % 1024 * Ms::from(jitter) / 1024)
        .min(longest)
}
