//! The one event loop: signals, children, timers, output. One thread, which sleeps in epoll_wait(2) alone.
//!
//! Nothing in here ends the supervisor because of an error: once services run, an error is an event that
//! [`crate::state`] answers, or a sentence on standard error.
//!
//! SIGTERM, SIGINT, SIGQUIT and SIGHUP (unless it is ignored, as under nohup(1)) stop the bundle; SIGTERM or
//! SIGINT for a second time kills. All other signals stay blocked: SIGUSR1, SIGUSR2 and SIGWINCH are not forwarded.
//! Services run in sessions of their own, so that a terminal's `^C` reaches the supervisor alone.

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use kitbag_format::exit;
use kitbag_format::manifest::Restart;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signalfd::SignalFd;

use crate::output::{Lines, Output};
use crate::spawn::{self, Program, Spawner};
use crate::state::{
    Action, Deed, End, Event, Fault, Group, Ms, Note, Outcome, Phase, Rules, Service, Stage, State, Turn,
    Whole,
};
use crate::sys::child::Files;
use crate::sys::wait::{self, Children};
use crate::sys::{self, Errno, Pid, fd, signal};

/// A service, with every template filled in.
#[derive(Debug, Clone)]
pub struct ServiceSpec {
    /// Its name, which stands before each line that it prints.
    pub name: String,
    /// Path of its program; no search in `PATH`.
    pub program: PathBuf,
    /// Its arguments, the first one included.
    pub argv: Vec<OsString>,
    /// Its complete environment.
    pub env: Vec<(OsString, OsString)>,
    /// Its working directory.
    pub cwd: PathBuf,
    /// Its user, limits and the like.
    pub setup: spawn::Setup,
    /// When it is started again.
    pub restart: Restart,
    /// The signal that asks it to stop; see [`signal_number`].
    pub stop_signal: i32,
    /// From that signal to SIGKILL.
    pub stop_timeout: Duration,
}

/// The number of a signal by its name, `SIGTERM` or `TERM`; `None` for a name that is none.
pub fn signal_number(name: &str) -> Option<i32> {
    signal::number(name)
}

/// Runs the services in the foreground until they have ended or a signal has stopped them, together with
/// all that descends from them. Returns an exit code of [`kitbag_format::exit`]: `OK` after a requested stop or
/// where all ended well, `SERVICE_FAILED` where one did not and is not started again, `FAILURE` if the
/// supervisor itself could not begin.
///
/// The caller has one thread (a second one would get the signals that are blocked here) and exits with
/// what this returns: signal mask, dispositions and the limit on open files stay changed.
pub fn supervise(bundle: &str, services: Vec<ServiceSpec>) -> u8 {
    match Supervisor::new(bundle, services) {
        Ok(supervisor) => supervisor.run(),
        Err((what, errno)) => {
            Output::new(&[]).fail(&format!("cannot supervise {bundle}: {what}: {}", errno.desc()));
            exit::FAILURE
        }
    }
}

/// Which of the loop's descriptors is ready.
#[derive(Debug, Clone, Copy)]
enum Source {
    Signals,
    /// One or more services have printed something.
    Prints,
    /// Standard output or error takes more.
    Room,
}

impl Source {
    const fn token(self) -> u64 {
        match self {
            Self::Signals => 0,
            Self::Prints => 1,
            Self::Room => 2,
        }
    }

    fn from_token(token: u64) -> Self {
        match token {
            0 => Self::Signals,
            1 => Self::Prints,
            _ => Self::Room,
        }
    }
}

/// Ready descriptors taken at a time.
const READY: usize = 64;
/// Bytes read from a service at a time.
const CHUNK: usize = 16 * 1024;
/// Ended children reaped before other events get their turn.
const REAP_BATCH: usize = 4096;

/// One of a service's two outputs. The pipe outlives the process: no line is lost over a restart, and
/// a grandchild that still holds it keeps nobody waiting.
#[derive(Debug)]
struct Stream {
    read: OwnedFd,
    write: OwnedFd,
    lines: Lines,
    /// The leader has ended: an empty pipe means that its last line is complete.
    ended: bool,
}

/// A service with what belongs to it here.
#[derive(Debug)]
struct Unit {
    spec: ServiceSpec,
    rules: Rules,
    service: Service,
    /// Its process, until it is reaped.
    leader: Option<Pid>,
    /// Made at the first start.
    streams: Vec<Stream>,
}

impl Unit {
    fn new(spec: ServiceSpec) -> Self {
        let stop_timeout = Ms::try_from(spec.stop_timeout.as_millis()).unwrap_or(Ms::MAX);
        let rules = Rules { restart: spec.restart, stop_timeout };
        let service = Service::default();
        Self { spec, rules, service, leader: None, streams: Vec::new() }
    }

    fn program(&self) -> Program<'_> {
        let ServiceSpec { program: path, argv, env, cwd, setup, .. } = &self.spec;
        Program { path, argv, env, cwd, setup }
    }
}

struct Supervisor {
    bundle: String,
    units: Vec<Unit>,
    whole: Whole,
    /// The longest `stop_timeout`: what daemons left behind have, too.
    grace: Ms,
    output: Output,
    events: Epoll,
    /// The read ends of all services' pipes, apart: not reading them is taking this one out of `events`.
    prints: Epoll,
    prints_wanted: bool,
    /// Standard output and error are being polled.
    room_wanted: [bool; 2],
    signals: SignalFd,
    nothing: OwnedFd,
    spawner: Spawner,
    limit: Option<libc::rlimit>,
    /// Children that this process had before it became the supervisor; not ours to end.
    strangers: Vec<Pid>,
    /// What was left behind and has been asked to end.
    asked: Vec<Pid>,
    /// More children have ended than one batch.
    more: bool,
    origin: Instant,
    random: u32,
}

type Setup<T> = Result<T, (&'static str, Errno)>;

impl Supervisor {
    fn new(bundle: &str, services: Vec<ServiceSpec>) -> Setup<Self> {
        fd::sanitise();
        let spawner = Spawner::new();
        let strangers = if wait::look() == Children::None { Vec::new() } else { wait::children() };
        let signals = signal::take().map_err(|errno| ("signals", errno))?;
        let epoll = || Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(|errno| ("epoll", errno));
        let (events, prints) = (epoll()?, epoll()?);
        events.add(&signals, readable(Source::Signals.token())).map_err(|errno| ("epoll", errno))?;
        events.add(&prints.0, readable(Source::Prints.token())).map_err(|errno| ("epoll", errno))?;
        let nothing = fd::nothing().map_err(|errno| ("standard input", errno))?;
        let names: Vec<&str> = services.iter().map(|spec| spec.name.as_str()).collect();
        let mut output = Output::new(&names);
        if let Err(errno) = sys::become_subreaper() {
            // Linux before 3.4: process groups alone find what services leave behind.
            output.say(&format!("cannot adopt orphaned processes: {}", errno.desc()));
        }
        let units: Vec<Unit> = services.into_iter().map(Unit::new).collect();
        Ok(Self {
            bundle: bundle.to_owned(),
            grace: units.iter().map(|unit| unit.rules.stop_timeout).max().unwrap_or(0),
            units,
            whole: Whole::default(),
            output,
            events,
            prints,
            prints_wanted: true,
            room_wanted: [false; 2],
            signals,
            nothing,
            spawner,
            limit: fd::raise_open_files(),
            strangers,
            asked: Vec::new(),
            more: false,
            origin: Instant::now(),
            random: std::process::id() | 1,
        })
    }

    /// The loop.
    fn run(mut self) -> u8 {
        self.feed_all(Event::Start);
        loop {
            self.settle();
            self.write();
            if self.whole.phase == Phase::Over {
                return self.exit_code();
            }
            self.wait();
            self.tick();
        }
    }

    /// Milliseconds since the supervisor began, on the monotonic clock.
    fn now(&self) -> Ms {
        Ms::try_from(self.origin.elapsed().as_millis()).unwrap_or(Ms::MAX)
    }

    /// xorshift32, for the jitter of delays.
    const fn jitter(&mut self) -> u8 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 17;
        self.random ^= self.random << 5;
        (self.random >> 24) as u8
    }

    // --- Waiting ---

    /// Sleeps until something happens, and takes it. Ended children come first: no signal of a later
    /// request can then reach a process id that is another's already.
    fn wait(&mut self) {
        let mut ready = [EpollEvent::empty(); READY];
        let Ok(count) = self.events.wait(&mut ready, self.timeout()) else {
            return; // EINTR, after a SIGSTOP
        };
        let sources = || ready.iter().take(count).map(|event| Source::from_token(event.data()));
        if self.more || sources().any(|source| matches!(source, Source::Signals)) {
            self.take_signals();
        }
        for source in sources() {
            match source {
                Source::Prints => self.take_prints(),
                // `write` follows, whatever happened.
                Source::Room | Source::Signals => {}
            }
        }
    }

    fn timeout(&self) -> EpollTimeout {
        let units = self.units.iter().filter_map(|unit| unit.service.state.deadline());
        let next = match units.chain(self.whole.deadline()).min() {
            _ if self.more => 0,
            None => return EpollTimeout::NONE,
            Some(at) => at.saturating_sub(self.now()),
        };
        EpollTimeout::try_from(i32::try_from(next).unwrap_or(i32::MAX)).unwrap_or(EpollTimeout::NONE)
    }

    fn tick(&mut self) {
        let now = self.now();
        for index in 0..self.units.len() {
            if self.units[index].service.state.deadline().is_some_and(|at| at <= now) {
                self.feed(index, Event::Tick);
            }
        }
        if self.whole.deadline().is_some_and(|at| at <= now) {
            self.turn(Turn::Tick);
        }
    }

    // --- Services ---

    fn feed_all(&mut self, event: Event) {
        for index in 0..self.units.len() {
            self.feed(index, event);
        }
    }

    /// Takes a service through an event, and does what its state asks for.
    fn feed(&mut self, index: usize, event: Event) {
        let (now, jitter) = (self.now(), self.jitter());
        let Some(unit) = self.units.get_mut(index) else { return };
        let (next, actions) = unit.service.step(event, now, &unit.rules, jitter);
        unit.service = next;
        for action in actions {
            match action {
                Action::Spawn => self.spawn(index),
                Action::Ask(group) => self.ask(index, group),
                Action::Kill(group) => self.signal(index, group, libc::SIGKILL),
                Action::Say(note) => self.say(index, note),
            }
        }
    }

    fn spawn(&mut self, index: usize) {
        match self.launch(index) {
            Ok(pid) => {
                self.feed(index, Event::Forked(pid));
                self.feed(index, Event::Executed);
            }
            Err(fault) => self.feed(index, Event::Exited(End::NotStarted(fault))),
        }
    }

    fn launch(&mut self, index: usize) -> Result<Pid, Fault> {
        let pipes = |errno| spawn::fault(Stage::Pipes, errno);
        self.open_streams(index).map_err(pipes)?;
        let unit = &mut self.units[index];
        let [stdout, stderr] = &unit.streams[..] else { return Err(pipes(Errno::EMFILE)) };
        let files = Files {
            stdin: &self.nothing,
            stdout: &stdout.write,
            stderr: &stderr.write,
            inherited: &[],
            limit: self.limit,
        };
        let pid = self.spawner.start(&unit.program(), &files)?;
        unit.leader = Some(pid);
        Ok(pid)
    }

    /// Makes the pipes for a service's output, unless it has them.
    fn open_streams(&mut self, index: usize) -> Result<(), Errno> {
        let unit = &mut self.units[index];
        while unit.streams.len() < 2 {
            let (read, write) = fd::pipe()?;
            self.prints.add(&read, readable((index * 2 + unit.streams.len()) as u64))?;
            unit.streams.push(Stream { read, write, lines: Lines::default(), ended: false });
        }
        Ok(())
    }

    /// Sends a service's stop signal to its group, and SIGCONT, as a stopped process acts on nothing else.
    fn ask(&mut self, index: usize, group: Group) {
        let signal = self.units[index].spec.stop_signal;
        self.signal(index, group, signal);
        self.signal(index, group, libc::SIGCONT);
    }

    /// Sends a signal to a service's group while its id is certain to be the service's: as long as
    /// a child of ours is in it. A child that has not come to setsid(2) yet has no group.
    fn signal(&self, index: usize, group: Group, number: i32) {
        let leader = self.units[index].leader;
        if leader.is_none() && !wait::has_children(group) {
            return;
        }
        if signal::send_group(group, number).is_err()
            && let Some(pid) = leader
        {
            let _ = signal::send(pid, number);
        }
    }

    // --- Signals and children ---

    fn take_signals(&mut self) {
        let mut turns = Vec::new();
        while let Ok(Some(info)) = self.signals.read_signal() {
            let number = info.ssi_signo.cast_signed();
            match number {
                libc::SIGTERM | libc::SIGINT => turns.push((number, Turn::Stop)),
                libc::SIGQUIT | libc::SIGHUP => turns.push((number, Turn::StopGently)),
                _ => {}
            }
        }
        self.reap();
        for (number, turn) in turns {
            if self.whole.phase == Phase::Serving {
                let name = signal::name(number).unwrap_or("");
                self.output.say(&format!("stopping {} (SIG{name})", self.bundle));
            }
            self.turn(turn);
        }
    }

    /// Reaps every child that has ended, ours and those that came to us.
    fn reap(&mut self) {
        self.more = true;
        let mut reaped = false;
        for _ in 0..REAP_BATCH {
            let Children::Ended(pid, end) = wait::look() else {
                self.more = false;
                break;
            };
            let leader_of = self.units.iter().position(|unit| unit.leader == Some(pid));
            if let Some(index) = leader_of {
                self.leader_ended(index, end);
            }
            wait::reap(pid);
            reaped = true;
            if let Some(index) = leader_of {
                self.units[index].leader = None;
            }
            self.strangers.retain(|stranger| *stranger != pid);
            self.asked.retain(|asked| *asked != pid);
        }
        self.find_groups_gone();
        if reaped {
            self.sweep();
        }
    }

    /// A service's process has ended and is not reaped: until then its group's id is its own.
    fn leader_ended(&mut self, index: usize, end: End) {
        self.drain(index);
        self.feed(index, Event::Exited(end));
    }

    /// A stop ends with the group, not with its leader.
    fn find_groups_gone(&mut self) {
        for index in 0..self.units.len() {
            let unit = &self.units[index];
            if let (State::Stopping { group, .. } | State::Killing { group, .. }, None) =
                (unit.service.state, unit.leader)
                && !wait::has_children(group)
            {
                self.feed(index, Event::GroupGone);
            }
        }
    }

    // --- The bundle ---

    /// Takes the bundle through an event, and does what its state asks for.
    fn turn(&mut self, turn: Turn) {
        let now = self.now();
        let (next, deed) = self.whole.step(turn, now, self.grace);
        self.whole = next;
        match deed {
            Some(Deed::StopAll) => self.feed_all(Event::Stop),
            Some(Deed::KillAll) => {
                self.output.say("asked again; sending SIGKILL");
                self.feed_all(Event::Kill);
            }
            Some(Deed::AskLeft) => self.sweep_saying("sending SIGTERM"),
            Some(Deed::KillLeft) => self.sweep_saying("sending SIGKILL"),
            Some(Deed::GiveUp) => {
                let count = self.left().len();
                self.output.say(&format!("{} did not end after SIGKILL", processes(count)));
            }
            None => {}
        }
    }

    /// Finds out what has come about for the bundle as a whole.
    fn settle(&mut self) {
        loop {
            let before = self.whole.phase;
            match before {
                Phase::Serving | Phase::Stopping { .. } if self.all_ended() => self.turn(Turn::AllEnded),
                Phase::Asking { .. } | Phase::Killing { .. } if self.none_left() => self.turn(Turn::NoneLeft),
                Phase::Draining { .. } if self.drained() => self.turn(Turn::Drained),
                _ => {}
            }
            if self.whole.phase == before {
                return;
            }
        }
    }

    fn all_ended(&self) -> bool {
        self.units.iter().all(|unit| matches!(unit.service.state, State::Ended(_)))
    }

    fn none_left(&self) -> bool {
        match wait::look() {
            Children::None => true,
            _ if self.strangers.is_empty() => false,
            _ => self.left().is_empty(),
        }
    }

    /// Children of ours that services left behind.
    fn left(&self) -> Vec<Pid> {
        let mut children = wait::children();
        children.retain(|pid| !self.strangers.contains(pid));
        children
    }

    fn sweep_saying(&mut self, what: &str) {
        let left = self.left();
        if !left.is_empty() {
            self.output.say(&format!("{} left behind by services; {what}", processes(left.len())));
        }
        self.sweep();
    }

    /// Signals what services left behind. Its own children come to us when it ends: the sweep goes
    /// on with each that is reaped, until none is left.
    fn sweep(&mut self) {
        match self.whole.phase {
            Phase::Asking { .. } => {
                for pid in self.left() {
                    if !self.asked.contains(&pid) {
                        self.asked.push(pid);
                        signal_left(pid, libc::SIGTERM);
                        signal_left(pid, libc::SIGCONT);
                    }
                }
            }
            Phase::Killing { .. } => self.left().into_iter().for_each(|pid| signal_left(pid, libc::SIGKILL)),
            Phase::Serving | Phase::Stopping { .. } | Phase::Draining { .. } | Phase::Over => {}
        }
    }

    fn exit_code(&self) -> u8 {
        let failed = |unit: &Unit| unit.service.state == State::Ended(Outcome::Failed);
        if !self.whole.requested && self.units.iter().any(failed) { exit::SERVICE_FAILED } else { exit::OK }
    }

    // --- Output ---

    /// Reads from each service that has printed something, in turn.
    fn take_prints(&mut self) {
        let mut ready = [EpollEvent::empty(); READY];
        let count = self.prints.wait(&mut ready, EpollTimeout::ZERO).unwrap_or(0);
        for event in ready.iter().take(count) {
            if self.output.is_full() {
                return;
            }
            let token = usize::try_from(event.data()).unwrap_or(usize::MAX);
            self.read(token / 2, token % 2);
        }
    }

    /// Reads once from one of a service's outputs; true if there was something.
    fn read(&mut self, index: usize, which: usize) -> bool {
        let Some(stream) = self.units.get_mut(index).and_then(|unit| unit.streams.get_mut(which)) else {
            return false;
        };
        let mut buffer = [0; CHUNK];
        if let Ok(Some(length @ 1..)) = fd::read(stream.read.as_fd(), &mut buffer) {
            self.output.print(index, &mut stream.lines, &buffer[..length]);
            return true;
        }
        if stream.ended {
            stream.ended = false;
            self.output.finish(index, &mut stream.lines);
        }
        false
    }

    /// Reads what an ended service has left in its pipes, before its end is told. What does not fit
    /// now, or is still being written by others, comes later.
    fn drain(&mut self, index: usize) {
        for which in 0..self.units[index].streams.len() {
            self.units[index].streams[which].ended = true;
            while !self.output.is_full() && self.read(index, which) {}
        }
    }

    /// True if no output is left. Nobody writes any more: what has no newline is complete.
    fn drained(&mut self) -> bool {
        let mut ready = [EpollEvent::empty(); 1];
        if self.prints.wait(&mut ready, EpollTimeout::ZERO).unwrap_or(0) > 0 {
            return false;
        }
        for (index, unit) in self.units.iter_mut().enumerate() {
            for stream in &mut unit.streams {
                self.output.finish(index, &mut stream.lines);
            }
        }
        self.write();
        self.output.is_empty() == [true; 2]
    }

    /// Writes what there is to write, and decides what to wait for next.
    fn write(&mut self) {
        if self.output.flush(self.now()) && matches!(self.whole.phase, Phase::Draining { .. }) {
            self.turn(Turn::Progress);
        }
        let wanted = !self.output.is_full();
        if wanted != self.prints_wanted {
            let done = if wanted {
                self.events.add(&self.prints.0, readable(Source::Prints.token()))
            } else {
                self.events.delete(&self.prints.0)
            };
            if done.is_ok() {
                self.prints_wanted = wanted;
            }
        }
        let empty = self.output.is_empty();
        for (which, target) in self.output.pollable().into_iter().enumerate() {
            let (Some(target), wanted) = (target, !empty[which]) else { continue };
            if wanted != self.room_wanted[which] {
                // A file that cannot be polled never leaves anything to wait for.
                let writable = EpollEvent::new(EpollFlags::EPOLLOUT, Source::Room.token());
                let done =
                    if wanted { self.events.add(target, writable) } else { self.events.delete(target) };
                if done.is_ok() {
                    self.room_wanted[which] = wanted;
                }
            }
        }
    }

    fn say(&mut self, index: usize, note: Note) {
        let sentence = sentence(&self.units[index].spec, note);
        self.output.say(&sentence);
    }
}

fn readable(token: u64) -> EpollEvent {
    EpollEvent::new(EpollFlags::EPOLLIN, token)
}

/// Signals an unreaped child, and the group that it is in, which is not ours.
fn signal_left(pid: Pid, number: i32) {
    let _ = match wait::group_of(pid) {
        Some(group) if group > 1 && group != wait::own_group() => signal::send_group(group, number),
        _ => signal::send(pid, number),
    };
}

// --- Sentences ---

fn sentence(spec: &ServiceSpec, note: Note) -> String {
    let name = &spec.name;
    match note {
        Note::Ended { end, after, again } => {
            let next = match again {
                Some(delay) => format!("starting again in {}", seconds(delay)),
                None => "it is not started again".to_owned(),
            };
            format!("service {name} {}; {next}", ended(spec, end, after))
        }
        Note::Overdue => {
            let timeout = Ms::try_from(spec.stop_timeout.as_millis()).unwrap_or(Ms::MAX);
            format!("service {name} did not stop within {}; sending SIGKILL", seconds(timeout))
        }
        Note::Undead => format!("service {name} did not end after SIGKILL; leaving it behind"),
    }
}

fn ended(spec: &ServiceSpec, end: End, after: Ms) -> String {
    match end {
        End::Status(status) => format!("exited with status {status} after {}", seconds(after)),
        End::Signal(number) => {
            let name =
                signal::name(number).map_or_else(|| format!("signal {number}"), |name| format!("SIG{name}"));
            format!("was ended by {name} after {}", seconds(after))
        }
        End::NotStarted(Fault { stage, errno }) => {
            let ServiceSpec { program: path, argv, env, cwd, setup, .. } = spec;
            let what = spawn::stage_name(stage, &Program { path, argv, env, cwd, setup });
            format!("could not be started: {what}: {}", Errno::from_raw(errno).desc())
        }
    }
}

/// `1.2 s`
fn seconds(time: Ms) -> String {
    let tenths = time.saturating_add(50) / 100;
    format!("{}.{} s", tenths / 10, tenths % 10)
}

fn processes(count: usize) -> String {
    if count == 1 { "1 process".to_owned() } else { format!("{count} processes") }
}
