//! What a service does next: pure values, no clock and no system call.
//!
//! [`Service::step`] takes one service from an [`Event`] to its next [`State`] and says what is to be done;
//! [`Whole::step`] does the same for the bundle. Time comes in as milliseconds on a monotonic clock. All of
//! it is plain data, so that a supervisor's knowledge can be written down and read back by the next one.
//! The whole behaviour stands in `docs/transitions.txt`, which a test compares with this code.

use kitbag_format::manifest::Restart;

/// Milliseconds on a monotonic clock, or a span of it.
pub type Ms = u64;

/// A process group, which is also the process id of the service's leader.
pub type Group = i32;

/// Delay before the first restart; each further one doubles it.
pub const FIRST_DELAY: Ms = 100;
/// The delay grows no further.
pub const LONGEST_DELAY: Ms = 30_000;
/// A service that ran this long starts with [`FIRST_DELAY`] again.
pub const STABLE_AFTER: Ms = 10_000;
/// How long the kernel may take to end what got SIGKILL. A process in uninterruptible sleep may take longer;
/// nobody waits for it.
pub const DEATH_DEADLINE: Ms = 5_000;
/// A stop signal this soon after the first is the same request: a terminal's `^C` reaches a launcher and its
/// child, and launchers pass it on.
pub const SAME_REQUEST: Ms = 100;
/// After a requested stop, how long the reader of our output may leave it untouched.
pub const DRAIN_DEADLINE: Ms = 1_000;

/// How a service's process came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It exited with this status.
    Status(i32),
    /// This signal ended it.
    Signal(i32),
    /// There was no program to run: a step on the way to it failed.
    NotStarted(Fault),
}

impl End {
    /// True for exit status 0 alone.
    pub const fn well(self) -> bool {
        matches!(self, Self::Status(0))
    }
}

/// A failed step between the decision to start a program and its first instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// The step.
    pub stage: Stage,
    /// Why, as in errno(3).
    pub errno: i32,
}

/// The steps from the decision to start a program to its first instruction, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
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

/// How a service is treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// When an ended service is started again.
    pub restart: Restart,
    /// From its stop signal to SIGKILL.
    pub stop_timeout: Ms,
}

/// Where a service stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Not started yet.
    New,
    /// To be forked.
    Starting {
        /// Since when.
        since: Ms,
    },
    /// Forked; the program's exec is not known to have worked.
    Executing {
        /// Its process group.
        group: Group,
        /// Since when.
        since: Ms,
    },
    /// The program runs.
    Running {
        /// Its process group.
        group: Group,
        /// Since when.
        since: Ms,
    },
    /// Its process group was asked to end: on request, or because its leader ended and left others behind.
    Stopping {
        /// Its process group.
        group: Group,
        /// When it gets SIGKILL.
        kill_at: Ms,
        /// What follows when the group is gone.
        then: Then,
    },
    /// Its process group got SIGKILL.
    Killing {
        /// Its process group.
        group: Group,
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
    /// Nothing runs and nothing is going to.
    Ended(Outcome),
}

/// What follows a stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// Another start.
    Start {
        /// Not before this time.
        at: Ms,
    },
    /// Rest.
    End(Outcome),
}

/// How a service came to rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Its last run ended well and its restart policy asks for no other.
    Succeeded,
    /// Its last run failed and its restart policy asks for no other.
    Failed,
    /// It was told to stop.
    Stopped,
}

/// What happens to a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Somebody wants it to run.
    Start,
    /// Its process was forked.
    Forked(Group),
    /// Its program's first instruction is next.
    Executed,
    /// Its leader ended, or did not come to life.
    Exited(End),
    /// No process of its group is left.
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
    /// Fork its process; answered by [`Event::Forked`] or [`Event::Exited`].
    Spawn,
    /// Send its stop signal to its group, and SIGCONT after it.
    Ask(Group),
    /// Send SIGKILL to its group.
    Kill(Group),
    /// Tell the person in front.
    Say(Note),
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
        /// The delay before its next start, if there is one.
        again: Option<Ms>,
    },
    /// It did not stop in time and gets SIGKILL.
    Overdue,
    /// It did not even end after SIGKILL.
    Undead,
}

impl State {
    /// When [`Event::Tick`] changes this state, if it ever does.
    pub const fn deadline(&self) -> Option<Ms> {
        match *self {
            Self::Stopping { kill_at: at, .. }
            | Self::Killing { give_up_at: at, .. }
            | Self::Waiting { until: at } => Some(at),
            Self::New
            | Self::Starting { .. }
            | Self::Executing { .. }
            | Self::Running { .. }
            | Self::Ended(_) => None,
        }
    }

    /// The process group that exists in this state.
    pub const fn group(&self) -> Option<Group> {
        match *self {
            Self::Executing { group, .. }
            | Self::Running { group, .. }
            | Self::Stopping { group, .. }
            | Self::Killing { group, .. } => Some(group),
            Self::New | Self::Starting { .. } | Self::Waiting { .. } | Self::Ended(_) => None,
        }
    }
}

/// All that a supervisor remembers about a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Service {
    /// Where it stands.
    pub state: State,
    /// Ends in a row, none after [`STABLE_AFTER`]: what the delay grows with.
    pub failures: u32,
}

impl Default for Service {
    fn default() -> Self {
        Self { state: State::New, failures: 0 }
    }
}

impl Service {
    /// The service after `event` at time `now`, and what is to be done, in this order.
    /// `jitter` (any number, best a random one) lengthens a delay by up to a quarter.
    #[must_use]
    pub fn step(self, event: Event, now: Ms, rules: &Rules, jitter: u8) -> (Self, Vec<Action>) {
        let same = (self, Vec::new());
        match (self.state, event) {
            (State::New | State::Waiting { .. } | State::Ended(_), Event::Start) => self.start(now),
            (State::Stopping { .. } | State::Killing { .. }, Event::Start) => {
                (self.followed_by(Then::Start { at: now }), Vec::new())
            }
            (State::Starting { .. } | State::Executing { .. } | State::Running { .. }, Event::Start) => same,

            (State::Starting { since }, Event::Forked(group)) => {
                (self.to(State::Executing { group, since }), Vec::new())
            }
            // A process that nobody is waiting for any more.
            (State::New | State::Waiting { .. } | State::Ended(_), Event::Forked(group)) => {
                let then = match self.state {
                    State::Waiting { until } => Then::Start { at: until },
                    _ => Then::End(Outcome::Stopped),
                };
                self.kill(group, now, then)
            }
            (
                State::Executing { .. }
                | State::Running { .. }
                | State::Stopping { .. }
                | State::Killing { .. },
                Event::Forked(_),
            ) => same,

            (State::Executing { group, since }, Event::Executed) => {
                (self.to(State::Running { group, since }), Vec::new())
            }
            (
                State::New
                | State::Starting { .. }
                | State::Running { .. }
                | State::Stopping { .. }
                | State::Killing { .. }
                | State::Waiting { .. }
                | State::Ended(_),
                Event::Executed,
            ) => same,

            (State::Starting { since }, Event::Exited(end)) => {
                let (next, then, note) = self.judge(end, since, now, rules, jitter);
                (next.settle(then), vec![note])
            }
            (State::Executing { group, since } | State::Running { group, since }, Event::Exited(end)) => {
                let (next, then, note) = self.judge(end, since, now, rules, jitter);
                let kill_at = now.saturating_add(rules.stop_timeout);
                (next.to(State::Stopping { group, kill_at, then }), vec![note, Action::Ask(group)])
            }
            (
                State::New
                | State::Stopping { .. }
                | State::Killing { .. }
                | State::Waiting { .. }
                | State::Ended(_),
                Event::Exited(_),
            ) => same,

            (State::Stopping { then, .. } | State::Killing { then, .. }, Event::GroupGone) => {
                (self.settle(then), Vec::new())
            }
            (
                State::New
                | State::Starting { .. }
                | State::Executing { .. }
                | State::Running { .. }
                | State::Waiting { .. }
                | State::Ended(_),
                Event::GroupGone,
            ) => same,

            (State::Waiting { until }, Event::Tick) if until <= now => self.start(now),
            (State::Stopping { group, kill_at, then }, Event::Tick) if kill_at <= now => {
                let (next, mut actions) = self.kill(group, now, then);
                actions.insert(0, Action::Say(Note::Overdue));
                (next, actions)
            }
            (State::Killing { give_up_at, then, .. }, Event::Tick) if give_up_at <= now => {
                (self.settle(then), vec![Action::Say(Note::Undead)])
            }
            (
                State::New
                | State::Starting { .. }
                | State::Executing { .. }
                | State::Running { .. }
                | State::Stopping { .. }
                | State::Killing { .. }
                | State::Waiting { .. }
                | State::Ended(_),
                Event::Tick,
            ) => same,

            (State::Executing { group, .. } | State::Running { group, .. }, Event::Stop) => {
                let kill_at = now.saturating_add(rules.stop_timeout);
                let then = Then::End(Outcome::Stopped);
                (self.to(State::Stopping { group, kill_at, then }), vec![Action::Ask(group)])
            }
            (State::Executing { group, .. } | State::Running { group, .. }, Event::Kill)
            | (State::Stopping { group, .. }, Event::Kill) => {
                self.kill(group, now, Then::End(Outcome::Stopped))
            }
            (State::Stopping { .. }, Event::Stop) | (State::Killing { .. }, Event::Stop | Event::Kill) => {
                (self.followed_by(Then::End(Outcome::Stopped)), Vec::new())
            }
            // A fork under way is answered by `Forked`, which finds nobody waiting.
            (State::New | State::Starting { .. } | State::Waiting { .. }, Event::Stop | Event::Kill) => {
                (self.to(State::Ended(Outcome::Stopped)), Vec::new())
            }
            (State::Ended(_), Event::Stop | Event::Kill) => same,
        }
    }

    const fn to(self, state: State) -> Self {
        Self { state, ..self }
    }

    fn start(self, now: Ms) -> (Self, Vec<Action>) {
        (self.to(State::Starting { since: now }), vec![Action::Spawn])
    }

    fn kill(self, group: Group, now: Ms, then: Then) -> (Self, Vec<Action>) {
        let give_up_at = now.saturating_add(DEATH_DEADLINE);
        (self.to(State::Killing { group, give_up_at, then }), vec![Action::Kill(group)])
    }

    /// The same stop, with another sequel.
    const fn followed_by(self, then: Then) -> Self {
        match self.state {
            State::Stopping { group, kill_at, .. } => self.to(State::Stopping { group, kill_at, then }),
            State::Killing { group, give_up_at, .. } => self.to(State::Killing { group, give_up_at, then }),
            _ => self,
        }
    }

    const fn settle(self, then: Then) -> Self {
        match then {
            Then::Start { at } => self.to(State::Waiting { until: at }),
            Then::End(outcome) => self.to(State::Ended(outcome)),
        }
    }

    /// What the restart policy makes of an end that nobody asked for.
    fn judge(mut self, end: End, since: Ms, now: Ms, rules: &Rules, jitter: u8) -> (Self, Then, Action) {
        let after = now.saturating_sub(since);
        if after >= STABLE_AFTER {
            self.failures = 0;
        }
        let again = match rules.restart {
            Restart::Always => true,
            Restart::OnFailure => !end.well(),
            Restart::Never => false,
        };
        let (then, again) = if again {
            let delay = delay(self.failures, jitter);
            self.failures = self.failures.saturating_add(1);
            (Then::Start { at: now.saturating_add(delay) }, Some(delay))
        } else {
            (Then::End(if end.well() { Outcome::Succeeded } else { Outcome::Failed }), None)
        };
        (self, then, Action::Say(Note::Ended { end, after, again }))
    }
}

/// The delay before a start that follows `failures` failed ones, lengthened by up to a quarter.
fn delay(failures: u32, jitter: u8) -> Ms {
    let grown = FIRST_DELAY.checked_shl(failures.min(32)).unwrap_or(LONGEST_DELAY).min(LONGEST_DELAY);
    (grown + grown * Ms::from(jitter) / 1024).min(LONGEST_DELAY)
}

/// Where the bundle stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Services run, or wait to.
    Serving,
    /// Every service was told to stop.
    Stopping {
        /// Since when.
        since: Ms,
    },
    /// No service is left. What they left behind was asked to end.
    Asking {
        /// When that gets SIGKILL.
        kill_at: Ms,
    },
    /// What the services left behind gets SIGKILL.
    Killing {
        /// When nobody waits for it any longer.
        give_up_at: Ms,
    },
    /// No process is left. What they printed is written out.
    Draining {
        /// When the rest is dropped: after a stop. Otherwise the reader may take its time.
        give_up_at: Option<Ms>,
    },
    /// Nothing is left to do.
    Over,
}

/// All that a supervisor remembers beside its services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Whole {
    /// Where the bundle stands.
    pub phase: Phase,
    /// Somebody asked for the stop.
    pub requested: bool,
    /// Somebody asked twice.
    pub forced: bool,
}

impl Default for Whole {
    fn default() -> Self {
        Self { phase: Phase::Serving, requested: false, forced: false }
    }
}

/// What happens to the bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// SIGTERM or SIGINT: asked for a second time, it forces.
    Stop,
    /// SIGHUP or SIGQUIT, which never forces: a closing terminal sends more than one signal.
    StopGently,
    /// No service runs or is going to.
    AllEnded,
    /// No child process is left.
    NoneLeft,
    /// The reader of our output took some.
    Progress,
    /// All output is written.
    Drained,
    /// The time of [`Whole::deadline`] may have come.
    Tick,
}

/// What is to be done for the bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// [`Event::Stop`] to every service.
    StopAll,
    /// [`Event::Kill`] to every service.
    KillAll,
    /// SIGTERM and SIGCONT to what the services left behind, now and whenever more of it comes to light.
    AskLeft,
    /// SIGKILL to it, now and whenever more of it comes to light.
    KillLeft,
    /// Say that some of it could not be ended.
    GiveUp,
}

impl Whole {
    /// The bundle after `turn` at time `now`, and what is to be done. `grace` is how long
    /// what services left behind has between SIGTERM and SIGKILL.
    #[must_use]
    pub fn step(self, turn: Turn, now: Ms, grace: Ms) -> (Self, Option<Deed>) {
        let asked = Self { requested: true, ..self };
        match (self.phase, turn) {
            (Phase::Serving, Turn::Stop | Turn::StopGently) => {
                (asked.to(Phase::Stopping { since: now }), Some(Deed::StopAll))
            }
            (Phase::Stopping { since }, Turn::Stop) if now.saturating_sub(since) >= SAME_REQUEST => {
                (Self { forced: true, ..asked }, Some(Deed::KillAll))
            }
            (Phase::Stopping { .. }, Turn::Stop | Turn::StopGently) => (asked, None),
            (Phase::Asking { .. }, Turn::Stop) => asked.kill(now),
            (Phase::Asking { .. }, Turn::StopGently)
            | (Phase::Killing { .. }, Turn::Stop | Turn::StopGently) => (asked, None),
            (Phase::Draining { .. }, Turn::Stop | Turn::StopGently) => (asked.to(Phase::Over), None),

            (Phase::Serving | Phase::Stopping { .. }, Turn::AllEnded) if self.forced => self.kill(now),
            (Phase::Serving | Phase::Stopping { .. }, Turn::AllEnded) => {
                let kill_at = now.saturating_add(grace);
                (self.to(Phase::Asking { kill_at }), Some(Deed::AskLeft))
            }
            (
                Phase::Asking { .. } | Phase::Killing { .. } | Phase::Draining { .. } | Phase::Over,
                Turn::AllEnded,
            ) => (self, None),

            (Phase::Asking { .. } | Phase::Killing { .. }, Turn::NoneLeft) => (self.drain(now), None),
            (
                Phase::Serving | Phase::Stopping { .. } | Phase::Draining { .. } | Phase::Over,
                Turn::NoneLeft,
            ) => (self, None),

            (Phase::Draining { .. }, Turn::Progress) => (self.drain(now), None),
            (Phase::Draining { .. }, Turn::Drained) => (self.to(Phase::Over), None),
            (
                Phase::Serving
                | Phase::Stopping { .. }
                | Phase::Asking { .. }
                | Phase::Killing { .. }
                | Phase::Over,
                Turn::Progress | Turn::Drained,
            ) => (self, None),

            (Phase::Asking { kill_at }, Turn::Tick) if kill_at <= now => self.kill(now),
            (Phase::Killing { give_up_at }, Turn::Tick) if give_up_at <= now => {
                (self.drain(now), Some(Deed::GiveUp))
            }
            (Phase::Draining { give_up_at: Some(at) }, Turn::Tick) if at <= now => {
                (self.to(Phase::Over), None)
            }
            (
                Phase::Serving
                | Phase::Stopping { .. }
                | Phase::Asking { .. }
                | Phase::Killing { .. }
                | Phase::Draining { .. }
                | Phase::Over,
                Turn::Tick,
            ) => (self, None),

            (Phase::Over, Turn::Stop | Turn::StopGently) => (self, None),
        }
    }

    /// When [`Turn::Tick`] changes this state, if it ever does.
    pub const fn deadline(&self) -> Option<Ms> {
        match self.phase {
            Phase::Asking { kill_at: at } | Phase::Killing { give_up_at: at } => Some(at),
            Phase::Draining { give_up_at } => give_up_at,
            Phase::Serving | Phase::Stopping { .. } | Phase::Over => None,
        }
    }

    const fn to(self, phase: Phase) -> Self {
        Self { phase, ..self }
    }

    const fn kill(self, now: Ms) -> (Self, Option<Deed>) {
        let give_up_at = now.saturating_add(DEATH_DEADLINE);
        (self.to(Phase::Killing { give_up_at }), Some(Deed::KillLeft))
    }

    fn drain(self, now: Ms) -> Self {
        let give_up_at = self.requested.then(|| now.saturating_add(DRAIN_DEADLINE));
        self.to(Phase::Draining { give_up_at })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write;

    const POLICIES: [Restart; 3] = [Restart::Always, Restart::OnFailure, Restart::Never];
    const RUN: Rules = Rules { restart: Restart::Always, stop_timeout: 10_000 };
    const WELL: End = End::Status(0);
    const BADLY: End = End::Signal(9);
    const FAULT: End = End::NotStarted(Fault { stage: Stage::Exec, errno: 2 });

    /// One state of each kind as they stand at time 1000, all deadlines at 1000.
    fn states() -> Vec<State> {
        let (group, since, at) = (7, 0, 1000);
        let mut states = vec![
            State::New,
            State::Starting { since },
            State::Executing { group, since },
            State::Running { group, since },
        ];
        for then in [Then::Start { at: 2000 }, Then::End(Outcome::Stopped)] {
            states.push(State::Stopping { group, kill_at: at, then });
            states.push(State::Killing { group, give_up_at: at, then });
        }
        states.push(State::Waiting { until: at });
        states.extend([Outcome::Succeeded, Outcome::Failed, Outcome::Stopped].map(State::Ended));
        states
    }

    const EVENTS: [Event; 10] = [
        Event::Start,
        Event::Forked(7),
        Event::Executed,
        Event::Exited(WELL),
        Event::Exited(BADLY),
        Event::Exited(FAULT),
        Event::GroupGone,
        Event::Tick,
        Event::Stop,
        Event::Kill,
    ];

    const TURNS: [Turn; 7] = [
        Turn::Stop,
        Turn::StopGently,
        Turn::AllEnded,
        Turn::NoneLeft,
        Turn::Progress,
        Turn::Drained,
        Turn::Tick,
    ];

    fn table() -> String {
        let mut text = String::from(
            "What a service and a bundle do next. Written from supervisor/src/state.rs by its test; times in ms.\n\
             Now is 1000 and what has a deadline has reached it; stop_timeout is 10000; jitter is 0.\n\
             An event that is not listed changes nothing in that state.\n",
        );
        for state in states() {
            let _ = writeln!(text, "\n{state:?}");
            for event in EVENTS {
                let ends = matches!(event, Event::Exited(_));
                let told_apart = ends
                    && matches!(
                        state,
                        State::Starting { .. } | State::Executing { .. } | State::Running { .. }
                    );
                for restart in if told_apart { &POLICIES[..] } else { &POLICIES[..1] } {
                    let before = Service { state, failures: 0 };
                    let (after, actions) = before.step(event, 1000, &Rules { restart: *restart, ..RUN }, 0);
                    if (after, actions.is_empty()) == (before, true) {
                        continue;
                    }
                    let policy = if told_apart { format!(" restart={restart:?}") } else { String::new() };
                    let _ = writeln!(text, "    {event:?}{policy}\n        -> {:?}", after.state);
                    for action in actions {
                        let _ = writeln!(text, "        {action:?}");
                    }
                }
            }
        }
        text + &whole_table()
    }

    fn whole_table() -> String {
        let mut text =
            String::from("\n\nThe bundle. `requested` and `forced` are false before, except where shown.\n");
        let phases = [
            Phase::Serving,
            Phase::Stopping { since: 0 },
            Phase::Asking { kill_at: 1000 },
            Phase::Killing { give_up_at: 1000 },
            Phase::Draining { give_up_at: None },
            Phase::Draining { give_up_at: Some(1000) },
            Phase::Over,
        ];
        for phase in phases {
            let asked = matches!(phase, Phase::Stopping { .. } | Phase::Draining { give_up_at: Some(_) });
            for forced in [false, true] {
                if forced && !matches!(phase, Phase::Stopping { .. }) {
                    continue;
                }
                let before = Whole { phase, requested: asked, forced };
                let _ = writeln!(text, "\n{phase:?} requested={asked} forced={forced}");
                for turn in TURNS {
                    let (after, deed) = before.step(turn, 1000, 10_000);
                    if (after, deed) != (before, None) {
                        let Whole { phase, requested, forced } = after;
                        let _ = writeln!(
                            text,
                            "    {turn:?}\n        -> {phase:?} requested={requested} forced={forced}"
                        );
                        if let Some(deed) = deed {
                            let _ = writeln!(text, "        {deed:?}");
                        }
                    }
                }
            }
        }
        text
    }

    /// Write it anew with `KITBAG_BLESS=1 cargo test -p kitbag-supervisor transition`.
    #[test]
    fn the_transition_table_in_the_documentation_is_what_the_code_does() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/transitions.txt");
        let table = table();
        if std::env::var_os("KITBAG_BLESS").is_some() {
            std::fs::write(path, &table).expect("docs can be written");
        }
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        assert!(table == committed, "docs/transitions.txt is not what the code does:\n{table}");
    }

    /// Numbers that look random and are the same in each run (Knuth's MMIX generator).
    struct Lcg(u64);

    impl Lcg {
        fn below(&mut self, limit: usize) -> usize {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) as usize % limit
        }
    }

    #[test]
    fn whatever_happens_there_is_one_process_and_a_way_to_end_it() {
        let mut random = Lcg(1);
        for _ in 0..2_000 {
            let rules =
                Rules { restart: POLICIES[random.below(3)], stop_timeout: random.below(20_000) as Ms };
            let (mut service, mut now, mut group) = (Service::default(), 0, 100);
            for _ in 0..100 {
                now += random.below(15_000) as Ms;
                let event = EVENTS[random.below(EVENTS.len())];
                // A fork is answered for a spawn alone: the loop does so before any other event.
                let (before, (after, actions)) = match event {
                    Event::Forked(_) => continue,
                    _ => (service, service.step(event, now, &rules, random.below(256) as u8)),
                };
                let spawns = actions.iter().filter(|action| **action == Action::Spawn).count();
                assert!(spawns <= 1);
                if spawns == 1 {
                    assert_eq!(before.state.group(), None, "a second process: {before:?} {event:?}");
                    group += 1;
                    service = after.step(Event::Forked(group), now, &rules, 0).0;
                    assert_eq!(service.state.group(), Some(group));
                } else {
                    service = after;
                }
                for action in actions {
                    if let Action::Ask(asked) | Action::Kill(asked) = action {
                        assert_eq!(
                            before.state.group(),
                            Some(asked),
                            "a stranger is signalled: {before:?} {event:?}"
                        );
                    }
                }
                if matches!(service.state, State::New | State::Ended(_)) {
                    assert_eq!(service.state.deadline(), None);
                }
                if let State::Waiting { until } = service.state {
                    assert!(until <= now + LONGEST_DELAY);
                }
            }
            end(service, now, &rules);
        }
    }

    /// From any state, a stop and the passing of time lead to rest, with SIGKILL for what is left on the way.
    fn end(service: Service, mut now: Ms, rules: &Rules) {
        let resting = matches!(service.state, State::Ended(_));
        let (mut service, _) = service.step(Event::Stop, now, rules, 0);
        for _ in 0..3 {
            if let Some(at) = service.state.deadline() {
                now = now.max(at);
                let (next, actions) = service.step(Event::Tick, now, rules, 0);
                assert!(!actions.contains(&Action::Spawn), "a start during a stop: {service:?}");
                service = next;
            }
        }
        let stopped = service.state == State::Ended(Outcome::Stopped);
        assert!(stopped || (resting && matches!(service.state, State::Ended(_))), "{service:?}");
    }

    #[test]
    fn a_fork_that_nobody_waits_for_is_killed() {
        let (service, _) = Service::default().step(Event::Start, 0, &RUN, 0);
        let (service, _) = service.step(Event::Stop, 0, &RUN, 0);
        let (service, actions) = service.step(Event::Forked(7), 0, &RUN, 0);
        assert_eq!(actions, [Action::Kill(7)]);
        assert_eq!(service.step(Event::GroupGone, 0, &RUN, 0).0.state, State::Ended(Outcome::Stopped));
    }

    #[test]
    fn the_delay_doubles_to_its_limit_and_a_stable_run_resets_it() {
        let mut service = Service::default();
        let mut delays = Vec::new();
        let mut now = 0;
        let mut run = |service: &mut Service, ran: Ms| {
            for event in [Event::Start, Event::Forked(7), Event::Executed] {
                *service = service.step(event, now, &RUN, 0).0;
            }
            now += ran;
            *service = service.step(Event::Exited(BADLY), now, &RUN, 0).0;
            *service = service.step(Event::GroupGone, now, &RUN, 0).0;
            let until = service.state.deadline().expect("it waits");
            let delay = until - now;
            now = until;
            delay
        };
        for _ in 0..11 {
            delays.push(run(&mut service, 5));
        }
        assert_eq!(delays, [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000]);
        assert_eq!(run(&mut service, STABLE_AFTER), FIRST_DELAY);
        assert_eq!(delay(0, 255), 124);
        assert_eq!(delay(u32::MAX, 255), LONGEST_DELAY);
    }

    #[test]
    fn a_stop_of_the_whole_comes_to_its_end_by_time_alone() {
        for stop in [Turn::Stop, Turn::StopGently] {
            let (mut whole, mut now) = (Whole::default().step(stop, 0, 500).0, 0);
            whole = whole.step(Turn::AllEnded, now, 500).0;
            while let Some(at) = whole.deadline() {
                assert!(at >= now);
                now = at;
                whole = whole.step(Turn::Tick, now, 500).0;
            }
            assert_eq!((whole.phase, now), (Phase::Over, 500 + DEATH_DEADLINE + DRAIN_DEADLINE));
        }
    }
}
