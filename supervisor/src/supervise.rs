//! The one event loop: signals, children, timers, probes, requests, output. One thread, which sleeps in
//! epoll_wait(2) alone.
//!
//! Nothing in here ends the supervisor because of an error: once services run, an error is an event that
//! [`crate::state`] answers, or a sentence on standard error. What one event costs does not grow with the number of
//! services: processes and times are found in sorted order, and [`order::Order`] knows whom a change concerns.
//!
//! SIGTERM, SIGINT, SIGQUIT and SIGHUP (unless it is ignored, as under nohup(1)) stop the bundle; SIGTERM or
//! SIGINT for a second time kills. All other signals stay blocked: SIGUSR1, SIGUSR2 and SIGWINCH are not forwarded.
//! Services run in sessions of their own, so that a terminal's `^C` reaches the supervisor alone.

use std::collections::{BTreeSet, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use kitbag_format::exit;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signalfd::SignalFd;
use nix::sys::timerfd::TimerFd;

use crate::control::Control;
use crate::logs::{self, Logs};
use crate::notify::Notify;
use crate::ports::lease::Host;
use crate::probe::Probes;
use crate::sandbox::Kernel;
use crate::spawn::Spawner;
use crate::spawn::cgroup::Cgroups;
use crate::state::{Action, Deed, Event, Group, Ms, Note, Outcome, Phase, State, Trouble, Turn, Whole};
use crate::state_folder::Users;
use crate::status::{self, UnixMs, usage};
use crate::sys::wait::{self, Children, List};
use crate::sys::{self, Errno, Pid, fd, signal};

mod apart;
mod children;
mod descent;
mod launch;
pub mod order;
mod orders;
mod outside;
pub mod ports;
mod published;
mod remember;
mod requests;
pub mod schedule;
mod shared;
pub mod spec;
mod state_loss;
mod tail;
mod tasks;
mod texts;
pub mod units;
mod watching;
mod words;

use descent::Descent;
use order::{Needs, Order, Part};
pub use ports::Ports;
use schedule::Plan;
pub use spec::{PortSpec, ProgramSpec, Question, Schedule, ServiceSpec, What, When, Where, Wish};
use units::{Id, Members, Pids, Timers, Unit};

/// What is supervised.
#[derive(Default)]
pub struct Bundle {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its services and tasks.
    pub services: Vec<ServiceSpec>,
    /// The app's state folder, for whoever asks.
    pub state_folder: PathBuf,
    /// What becomes of what services print.
    pub logs: logs::Settings,
    /// Where its logs are, for whoever asks.
    pub log_folder: Option<PathBuf>,
    /// Where records of tasks are kept; `None`: nowhere.
    pub tasks: Option<PathBuf>,
    /// Where its ports are known, and what had which.
    pub ports: Ports,
    /// Go on when services have failed for good: somebody may look at them, and start them again.
    pub stays: bool,
    /// Where it is asked.
    pub control: Option<Control>,
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
pub fn supervise(bundle: Bundle) -> u8 {
    let name = bundle.name.clone();
    match Supervisor::new(bundle) {
        Ok(supervisor) => supervisor.run(),
        Err((what, errno)) => {
            logs::fail(&format!("cannot supervise {name}: {what}: {}", errno.desc()));
            exit::FAILURE
        }
    }
}

/// Which of the loop's descriptors is ready.
#[derive(Debug, Clone, Copy)]
enum Source {
    Signals,
    /// Services have printed something, or a destination takes more of it.
    Logs,
    /// A probe of the network has come to its end.
    Probes,
    /// A service says something by sd_notify(3).
    Notify,
    /// A task is due by the wall clock, or that was set.
    Clock,
    /// Somebody asks for something.
    Control,
    /// Another bundle's ports have changed.
    Registry,
    /// A service says that it is ready by a newline.
    Newline(Id),
    /// What checks a service prints something.
    Check(Id),
}

impl Source {
    const fn token(self) -> u64 {
        match self {
            Self::Signals => 0,
            Self::Logs => 1,
            Self::Registry => 2,
            Self::Probes => 3,
            Self::Notify => 4,
            Self::Clock => 5,
            Self::Control => 6,
            Self::Newline(id) => 8 + 2 * id as u64,
            Self::Check(id) => 9 + 2 * id as u64,
        }
    }

    fn from_token(token: u64) -> Self {
        match token {
            0 => Self::Signals,
            1 => Self::Logs,
            2 => Self::Registry,
            3 => Self::Probes,
            4 => Self::Notify,
            5 => Self::Clock,
            6 => Self::Control,
            _ => {
                let id = usize::try_from(token.saturating_sub(8) / 2).unwrap_or(usize::MAX);
                if token.is_multiple_of(2) { Self::Newline(id) } else { Self::Check(id) }
            }
        }
    }
}

/// Ready descriptors taken at a time.
const READY: usize = 64;

struct Supervisor {
    bundle: String,
    version: String,
    state_folder: PathBuf,
    /// Of that folder, as it was at the start; `None` when it has been said that it is not that any more.
    state_identity: Option<state_loss::Identity>,
    /// Other users than this one write there.
    is_shared: bool,
    log_folder: Option<PathBuf>,
    /// Services and tasks.
    parts: Vec<Members>,
    units: Vec<Unit>,
    order: Order,
    /// Units that are not at rest.
    active: usize,
    whole: Whole,
    stays: bool,
    /// The longest `stop_timeout`: what daemons left behind have, too.
    grace: Ms,

    timers: Timers,
    pids: Pids,
    /// Our children, as the kernel lists them.
    list: List,
    /// What descends from units.
    descent: Descent,
    /// Parts whose neighbours have to be looked at.
    touched: VecDeque<Part>,
    /// Tasks that start once more.
    again: VecDeque<Id>,
    /// Some unit may be on its way back: it starts when it is at rest, and what it needs is not about to stop or to start.
    returning: bool,
    /// One has come to rest, or was told something else, since those were looked at.
    rested: bool,

    logs: Logs,
    events: Epoll,
    signals: SignalFd,
    probes: Probes,
    notify: Notify,
    ports: Ports,
    /// What leases know of this host.
    host: Host,
    /// What the kernel can refuse.
    kernel: Kernel,
    /// Where services listen.
    apart: apart::Apart,
    /// Goes off when a task is due by the wall clock; there is one where a task has such a schedule.
    clock: Option<TimerFd>,
    /// Tasks that come due by themselves.
    repeated: Vec<Part>,
    /// Where records of tasks are kept.
    tasks: Option<PathBuf>,
    /// Taken out while it is served.
    control: Option<Control>,
    /// What has happened while a request was served.
    unpublished: Vec<status::Event>,
    nothing: OwnedFd,
    spawner: Spawner,
    cgroups: Option<Cgroups>,
    limit: Option<libc::rlimit>,
    /// Children that this process had before it became the supervisor; not ours to end.
    strangers: Vec<Pid>,
    /// What was left behind and has been asked to end, or killed.
    asked: BTreeSet<Pid>,
    /// More children have ended than one batch.
    more: bool,
    /// There is something to be read from services, or a destination takes more.
    printed: bool,
    /// What starting took was given back.
    slim: bool,
    /// When the supervision began: on the wall clock, and on ours.
    began: (UnixMs, Ms),
    /// What names this process and this start of the machine: [`crate::snapshot`].
    boot: String,
    start: Option<u64>,
    listener: Option<i32>,
    random: u32,
}

type Begun<T> = Result<T, (&'static str, Errno)>;

impl Supervisor {
    fn new(bundle: Bundle) -> Begun<Self> {
        fd::sanitise();
        let spawner = Spawner::new();
        let list = List::open();
        let strangers = if wait::look() == Children::None { Vec::new() } else { list.children() };
        let signals = signal::take().map_err(|errno| ("signals", errno))?;
        let failed = |errno| ("epoll", errno);
        let events = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failed)?;
        let logs = Logs::new(bundle.logs).map_err(failed)?;
        let probes = Probes::new().map_err(failed)?;
        let notify = Notify::new().map_err(failed)?;
        let watched = [
            (signals.as_fd(), Source::Signals),
            (logs.fd(), Source::Logs),
            (probes.fd(), Source::Probes),
            (notify.fd(), Source::Notify),
        ];
        let control = bundle.control.iter().map(|control| (control.fd(), Source::Control));
        for (descriptor, source) in watched.into_iter().chain(control) {
            events.add(descriptor, readable(source.token())).map_err(failed)?;
        }
        let listener = bundle.control.as_ref().map(Control::listener);
        let nothing = fd::nothing().map_err(|errno| ("standard input", errno))?;
        let all_ids = bundle.services.iter().filter_map(|spec| spec.setup.ids.as_ref());
        let is_shared = Users::beside(&bundle.state_folder, all_ids) != Users::Own;
        let mut supervisor = Self {
            bundle: bundle.name,
            version: bundle.version,
            state_identity: state_loss::identity(&bundle.state_folder),
            state_folder: bundle.state_folder,
            is_shared,
            log_folder: bundle.log_folder,
            parts: Vec::new(),
            units: Vec::new(),
            order: Order::default(),
            active: 0,
            whole: Whole::default(),
            stays: bundle.stays,
            grace: 0,
            timers: Timers::default(),
            pids: Pids::default(),
            list,
            descent: Descent::new(),
            touched: VecDeque::new(),
            again: VecDeque::new(),
            returning: false,
            rested: false,
            logs,
            events,
            signals,
            probes,
            notify,
            ports: bundle.ports,
            host: Host::now(),
            kernel: Kernel::probe(),
            apart: apart::Apart::default(),
            clock: None,
            repeated: Vec::new(),
            tasks: bundle.tasks,
            control: bundle.control,
            unpublished: Vec::new(),
            nothing,
            spawner,
            cgroups: None,
            limit: fd::raise_open_files(),
            strangers,
            asked: BTreeSet::new(),
            more: false,
            printed: false,
            slim: false,
            began: (unix_ms(), sys::monotonic_ms()),
            boot: remember::boot(),
            start: usage::start_of_process(std::process::id().cast_signed()),
            listener,
            random: std::process::id() | 1,
        };
        supervisor.adopt(bundle.services);
        if let Err(errno) = sys::become_subreaper() {
            // Linux before 3.4: process groups alone find what services leave behind.
            supervisor.logs.say(&format!("cannot adopt orphaned processes: {}", errno.desc()));
        }
        Ok(supervisor)
    }

    /// Takes the bundle's services and tasks, with a unit for each instance.
    fn adopt(&mut self, specs: Vec<ServiceSpec>) {
        let part_of = |name: &String| specs.iter().position(|spec| spec.name == *name);
        // The bundler, and `Manifest::fault`, refuse needs that are not there.
        let needs = specs.iter().map(|spec| spec.needs.iter().filter_map(part_of).collect()).collect();
        self.order = Order::new(needs);
        self.grace = specs.iter().map(|spec| spec.rules.stop_timeout).max().unwrap_or(0);
        self.enter_cgroup(&specs);
        for spec in specs {
            let wanted = spec.instances;
            let (plan, remembered) = (Plan::default(), None);
            let (units, sockets) = (Vec::with_capacity(wanted as usize), Vec::new());
            self.parts.push(Members { spec, units, wanted, sockets, plan, remembered });
            let part = self.parts.len() - 1;
            for instance in 0..wanted {
                self.add_unit(part, instance);
            }
        }
    }

    /// Makes a unit; it has not been started.
    fn add_unit(&mut self, part: Part, instance: u32) -> Id {
        let id = self.units.len();
        let since = (unix_ms(), self.now());
        let members = &mut self.parts[part];
        let mut unit = Unit::new(part, instance, unit_name(&members.spec, instance), since);
        members.units.push(id);
        self.order.add(part, &unit.service.state);
        unit.cgroup = self.cgroup_of(part, &unit.name);
        self.logs.add_unit(id, &unit.name);
        self.units.push(unit);
        id
    }

    /// The loop.
    fn run(mut self) -> u8 {
        self.say_beginning();
        self.tell_what_is_not_kept();
        self.start_all();
        loop {
            self.settle();
            self.tell_ports();
            self.publish_rest();
            self.write();
            if self.whole.phase == Phase::Over {
                self.leave_ports();
                self.leave_cgroups();
                self.logs.note(&words::ending(&self.bundle, &self.version, self.exit_code()));
                return self.exit_code();
            }
            self.wait();
            self.tick();
        }
    }

    /// Begins the supervisor's own log; and tells there if the one before has no end.
    fn say_beginning(&mut self) {
        let mut text = format!(
            "{} {} begins, process {}, state in {}",
            self.bundle,
            self.version,
            std::process::id(),
            self.state_folder.display()
        );
        if self.logs.last_noted().is_some_and(|last| !words::is_ending(&last)) {
            text += "; the supervisor before it has noted no end: it was killed, the machine went down, or its state folder was \
                 removed while it ran, which it may do still";
        }
        self.logs.note(&text);
    }

    /// Milliseconds of `CLOCK_MONOTONIC`, so that a successor's are the same.
    fn now(&self) -> Ms {
        sys::monotonic_ms()
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
        self.slim_down();
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
                Source::Probes => self.take_probes(),
                Source::Notify => self.take_messages(),
                Source::Newline(id) => self.take_newline(id),
                Source::Check(id) => self.take_check(id),
                Source::Clock => self.take_clock(),
                Source::Control => self.serve_control(),
                Source::Registry => self.take_registry(),
                // `write` follows, whatever happened.
                Source::Logs => self.printed = true,
                Source::Signals => {}
            }
        }
    }

    /// Gives back, once, the memory that only starting needed: when nothing is under way and nothing is soon to come.
    fn slim_down(&mut self) {
        /// A time in which a person would say that nothing happens.
        const LONG: Ms = 50;
        let soon = self.now().saturating_add(LONG);
        if self.slim || self.more || self.next_deadline().is_some_and(|at| at < soon) {
            return;
        }
        self.slim = true;
        // What cannot be given back costs memory and nothing else.
        sys::code::trim();
        let _ = sys::code::release();
    }

    fn timeout(&self) -> EpollTimeout {
        let next = match self.next_deadline() {
            _ if self.more => 0,
            None => return EpollTimeout::NONE,
            Some(at) => at.saturating_sub(self.now()),
        };
        EpollTimeout::try_from(i32::try_from(next).unwrap_or(i32::MAX)).unwrap_or(EpollTimeout::NONE)
    }

    /// When something is to be done even if nothing happens.
    fn next_deadline(&self) -> Option<Ms> {
        let control = self.control.as_ref().and_then(Control::deadline);
        let times = [
            self.timers.next(),
            self.whole.deadline(),
            self.probes.deadline(),
            self.logs.deadline(),
            control,
            self.next_task(),
            self.apart.deadline(),
            self.ports_deadline(),
        ];
        times.into_iter().flatten().min()
    }

    fn tick(&mut self) {
        let now = self.now();
        let due = |at: Option<Ms>| at.is_some_and(|at| at <= now);
        for id in self.timers.due(now) {
            // What it has said in time counts, however late we come to it.
            self.hear(id);
            self.feed(id, Event::Tick);
            self.end_slow_helper(id);
        }
        if due(self.probes.deadline()) {
            self.take_probes();
        }
        if due(self.apart.deadline()) {
            self.watch_due();
        }
        if due(self.next_task()) {
            self.look_at_tasks();
        }
        if due(self.control.as_ref().and_then(Control::deadline)) {
            self.serve_control();
        }
        if due(self.whole.deadline()) {
            self.turn(Turn::Tick);
        }
    }

    // --- Units ---

    /// Takes a unit through an event, and does what its state asks for.
    fn feed(&mut self, id: Id, event: Event) {
        let (now, jitter) = (self.now(), self.jitter());
        let Some(unit) = self.units.get_mut(id) else { return };
        let before = unit.service.state;
        let spec = &self.parts[unit.part].spec;
        let actions = unit.service.step(event, now, &spec.rules, jitter);
        if actions
            .iter()
            .any(|it| matches!(it, Action::Say(Note::Failing { trouble: Trouble::NotReady, .. })))
        {
            self.note_listening(id);
        }
        let unit = &mut self.units[id];
        let spec = &self.parts[unit.part].spec;
        let begins = words::begins_anew(&before, &unit.service.state);
        if begins {
            // What was the matter with it before.
            unit.reason = None;
        }
        // Before others are told of its new state: they are told why, too.
        let note = actions.iter().find_map(|action| match action {
            Action::Say(note) => Some(*note),
            _ => None,
        });
        let sentence = note.map(|note| words::sentence(unit, spec, note));
        if let Some(reason) = note.and_then(|note| words::reason(unit, spec, note)) {
            unit.reason = Some(reason);
        }
        self.moved(id, before);
        if begins {
            // Why the run before has ended was told with the state.
            self.units[id].reason = None;
        }
        for action in actions {
            match action {
                Action::Need => self.check_needs(self.units[id].part),
                Action::Spawn => self.spawn(id),
                Action::Probe => self.probe(id),
                Action::Ask(group) => self.ask(id, group, false),
                Action::Abort(group) => self.ask(id, group, true),
                Action::Kill(group) => self.signal(id, group, libc::SIGKILL),
                Action::Say(_) => self.logs.say(sentence.as_deref().unwrap_or_default()),
            }
        }
    }

    /// Does what follows from a unit's new state for others.
    fn moved(&mut self, id: Id, before: State) {
        let unit = &mut self.units[id];
        let after = unit.service.state;
        if after == before {
            return;
        }
        self.timers.set(id, unit);
        if before.run().is_some() && after.run().is_none() {
            self.run_over(id);
        }
        let unit = &self.units[id];
        self.descent.moved(id, &before, &after);
        self.rested |= after.is_at_rest();
        self.active = self.active + usize::from(!after.is_at_rest()) - usize::from(!before.is_at_rest());
        let (part, retired) = (unit.part, unit.retired);
        if self.order.moved(part, &before, &after, retired) {
            self.touched.push_back(part);
        }
        self.stop_watching(id, before, after);
        self.ports_after(id, after);
        if matches!(after, State::Ready { .. }) && !matches!(before, State::Ready { .. }) {
            self.watch_ready(id);
        }
        if let State::Ended(_) = after {
            self.ended(id, before);
            if retired {
                self.gone(id);
            }
        }
        let is_task = self.parts[part].spec.schedule.is_some();
        let (old, new) = (words::state(&before, is_task), words::state(&after, is_task));
        if old != new {
            self.units[id].since = (unix_ms(), self.now());
            self.tell_state(id, new);
        }
    }

    /// A retired unit is at rest: what it had is given back.
    fn gone(&mut self, id: Id) {
        self.give_ports_up(id);
        self.logs.remove_unit(id, self.now());
    }

    /// Tells whoever listens that a unit has come to another state.
    fn tell_state(&mut self, id: Id, state: status::State) {
        if matches!(state, status::State::Ready | status::State::Done) {
            self.units[id].reason = None;
        }
        let unit = &self.units[id];
        let detail = unit.reason.clone().unwrap_or_default();
        self.publish(unit.name.clone(), state.name().to_owned(), detail);
    }

    /// Everything that happens comes by here.
    fn publish(&mut self, unit: String, event: String, detail: String) {
        let event = status::Event { at: unix_ms(), unit, event, detail };
        match &mut self.control {
            Some(control) => control.publish(&event),
            // It is serving.
            None => self.unpublished.push(event),
        }
    }

    fn publish_rest(&mut self) {
        if let Some(control) = &mut self.control {
            for event in self.unpublished.drain(..) {
                control.publish(&event);
            }
        } else {
            self.unpublished.clear();
        }
    }

    /// Looks at the neighbours of whatever has changed, and at theirs, until nothing changes any more.
    fn follow_up(&mut self) {
        loop {
            if let Some(part) = self.touched.pop_front() {
                for dependent in self.order.needed_by(part).to_vec() {
                    self.check_needs(dependent);
                }
                for need in self.order.freed_by(part) {
                    self.stop_doomed(need);
                }
            } else if let Some(id) = self.again.pop_front() {
                self.start(id);
            } else if std::mem::take(&mut self.rested) && self.returning {
                self.bring_back();
            } else {
                return;
            }
        }
    }

    /// Starts the units of a part that wait for its needs, if these are ready, and fails them if one has failed.
    fn check_needs(&mut self, part: Part) {
        let event = match self.order.needs(part) {
            Needs::Open => return,
            Needs::Met if self.waits_outside(part) => return,
            Needs::Met => Event::NeedsMet,
            Needs::Failed(_) => Event::NeedFailed,
        };
        for id in self.parts[part].units.clone() {
            if self.units[id].service.state == State::Needing {
                if let Needs::Failed(need) = self.order.needs(part) {
                    let (need, why) = self.failed_need(need);
                    let unit = &mut self.units[id];
                    (unit.failed_need, unit.reason) = (need, Some(why));
                }
                self.feed(id, event);
            }
        }
    }

    /// Starts every service, and the tasks that belong to the start.
    fn start_all(&mut self) {
        self.begin_ports();
        self.begin_tasks();
        for part in 0..self.parts.len() {
            let schedule = self.parts[part].spec.schedule.as_ref();
            if schedule.is_none_or(|schedule| matches!(schedule.when, When::Start)) {
                for id in self.parts[part].units.clone() {
                    self.feed(id, Event::Start);
                }
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
            Some(Deed::StopAll) => self.stop_all(),
            Some(Deed::KillAll) => {
                self.logs.say("asked again; sending SIGKILL");
                self.kill_all();
            }
            Some(Deed::AskLeft) => self.sweep_saying("sending SIGTERM"),
            Some(Deed::KillLeft) => {
                self.asked.clear();
                self.sweep_saying("sending SIGKILL");
            }
            Some(Deed::GiveUp) => {
                let count = self.left().len();
                self.logs.say(&format!("{} did not end after SIGKILL", words::processes(count)));
            }
            None => {}
        }
    }

    /// Finds out what has come about for the bundle as a whole.
    fn settle(&mut self) {
        loop {
            self.follow_up();
            while self.is_descent_due() {
                self.look_at_descent();
                self.follow_up();
            }
            let before = self.whole.phase;
            match before {
                Phase::Serving if self.has_nothing_to_do() => self.turn(Turn::AllEnded),
                Phase::Stopping { .. } if self.active == 0 => self.turn(Turn::AllEnded),
                Phase::Asking { .. } | Phase::Killing { .. } if self.none_left() => self.turn(Turn::NoneLeft),
                Phase::Draining { .. } if self.logs.drained(self.now()) => self.turn(Turn::Drained),
                _ => {}
            }
            if self.whole.phase == before {
                return;
            }
        }
    }

    /// True if all has ended and nothing starts by itself. What somebody has stopped may be started again; so may what has
    /// failed, where somebody can find out.
    fn has_nothing_to_do(&self) -> bool {
        let waits = |unit: &Unit| match unit.service.state {
            State::Ended(Outcome::Stopped) => true,
            state => self.stays && state.has_failed(),
        };
        self.active == 0 && self.repeated.is_empty() && !self.units.iter().any(waits)
    }

    fn exit_code(&self) -> u8 {
        let failed = |unit: &Unit| {
            let schedule = self.parts[unit.part].spec.schedule.as_ref();
            let counts = schedule.is_none_or(|schedule| matches!(schedule.when, When::Start));
            counts && unit.service.state.has_failed()
        };
        if !self.whole.requested && self.units.iter().any(failed) { exit::SERVICE_FAILED } else { exit::OK }
    }

    /// Takes what services have printed, and writes what there is to write.
    fn write(&mut self) {
        let now = self.now();
        let due = std::mem::take(&mut self.printed) || self.logs.deadline().is_some_and(|at| at <= now);
        let progress = if due { self.logs.serve(now) } else { self.logs.flush(now) };
        if progress && matches!(self.whole.phase, Phase::Draining { .. }) {
            self.turn(Turn::Progress);
        }
    }

    /// Sends a unit's stop signal, or the one for a process that hangs, to its group; and SIGCONT, as a stopped
    /// process acts on nothing else.
    fn ask(&mut self, id: Id, group: Group, hangs: bool) {
        let spec = &self.parts[self.units[id].part].spec;
        let number = if hangs { spec.abort_signal } else { spec.stop_signal };
        self.signal(id, group, number);
        self.signal(id, group, libc::SIGCONT);
    }

    /// Sends a signal to a unit's group while its id is certain to be the unit's: as long as a child of ours is in it.
    fn signal(&self, id: Id, group: Group, number: i32) {
        let leader = self.units[id].leader;
        // The number may be another unit's by now, which has children, too.
        let is_others = || self.pids.get(group).is_some();
        let is_ours = leader == Some(group) || (!is_others() && wait::has_children(group));
        let sent = is_ours && signal::send_group(group, number).is_ok();
        // One that was not started here may have left the group.
        if let Some(pid) = leader
            && (!sent || (pid != group && wait::group_of(pid) != Some(group)))
        {
            let _ = signal::send(pid, number);
        }
    }
}

/// Milliseconds of the Unix epoch, by the wall clock.
fn unix_ms() -> UnixMs {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// `web`, or `web.2` where there are several.
fn unit_name(spec: &ServiceSpec, instance: u32) -> String {
    if spec.instances == 1 && instance == 0 { spec.name.clone() } else { format!("{}.{instance}", spec.name) }
}

fn readable(token: u64) -> EpollEvent {
    EpollEvent::new(EpollFlags::EPOLLIN, token)
}
