//! From the decision to start a unit to its running program.

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};

use kitbag_format::port::FIRST_SOCKET;
use nix::fcntl::OFlag;

use crate::snapshot::Process;
use crate::spawn::cgroup::{self, Cgroups, Limits};
use crate::spawn::environment::{self, EnvFileError, Variables};
use crate::spawn::{self, Setup};
use crate::state::{End, Event, Fault, Ms, Stage, Watch};
use crate::state_folder::share;
use crate::sys::child::Files;
use crate::sys::{Errno, fd};

use super::order::Part;
use super::ports::Held;
use super::spec::{ProgramSpec, ServiceSpec};
use super::tail::Tail;
use super::units::{Helper, Id, Whose};
use super::{Source, Supervisor, readable};

impl Supervisor {
    pub(super) fn spawn(&mut self, id: Id) {
        match self.launch(id) {
            Ok(Process { pid, start }) => {
                self.units[id].leader = Some(pid);
                self.units[id].start = start;
                self.pids.insert(pid, Whose::Leader(id));
                self.note_begin(id);
                self.feed(id, Event::Forked(pid));
                self.feed(id, Event::Executed);
            }
            Err(fault) => {
                self.run_over(id);
                self.note_refused(id, fault);
                self.feed(id, Event::Exited(End::NotStarted(fault)));
            }
        }
    }

    /// A unit's run is over, or has not come about: what it was connected by is closed, and its ports are ours.
    pub(super) fn run_over(&mut self, id: Id) {
        self.leave_behind(id);
        self.close_newline(id);
        self.notify.close(id as u64);
        let unit = &mut self.units[id];
        (unit.says, unit.main, unit.ruleset) = (None, None, None);
        self.take_ports_back(id);
    }

    fn launch(&mut self, id: Id) -> Result<Process, Fault> {
        let pipes = |errno| spawn::fault(Stage::Pipes, errno);
        self.units[id].trouble = None;
        self.look_at_state();
        self.is_fit(id)?;
        self.read_env_files(id)?;
        self.take_ports(id)?;
        let newline = self.open_newline(id).map_err(pipes)?;
        let mut env = self.environment(id).map_err(pipes)?;
        let late_argv = self.fill_in(id, &mut env)?;
        self.name_sockets(id, &mut env);
        let ruleset = self.sandbox(id)?.ruleset(self.kernel)?;
        self.lend_ports(id);
        self.open_cgroup(id);
        let mark = self.mark(id);
        let [stdout, stderr] = self.logs.open(id).map_err(pipes)?;
        let unit = &mut self.units[id];
        let spec = &self.parts[unit.part].spec;
        let newline = newline.iter().zip(spec.newline).map(|(fd, number)| (number, fd.as_fd()));
        let sockets = self.parts[unit.part].sockets.iter().flatten().filter_map(Held::listener);
        let sockets = (FIRST_SOCKET as i32..).zip(sockets);
        let inherited: Vec<_> = sockets.chain(newline).collect();
        // Without them, what a service starts would take its watchdog, and its sockets, for its own: sd_listen_fds(3).
        let watched = matches!(spec.rules.watch, Some(Watch::Silence(_))).then_some("WATCHDOG_PID");
        let own_pid: Vec<&str> =
            watched.into_iter().chain(spec.has_sockets().then_some("LISTEN_PID")).collect();
        let files = Files {
            stdin: self.nothing.as_fd(),
            stdout,
            stderr,
            inherited: &inherited,
            limit: self.limit,
            own_pid: &own_pid,
            ruleset: ruleset.as_ref().map(AsFd::as_fd),
            mark,
        };
        let joined = unit.cgroup.as_ref().map(|cgroup| {
            unit.short_of_memory = cgroup.short_of_memory();
            Setup { cgroup: cgroup.procs(), ..Setup::clone(&spec.setup) }
        });
        let setup = joined.as_ref().unwrap_or(&spec.setup);
        let mut program = spec.program.program(&env, setup);
        program.argv = late_argv.as_deref().unwrap_or(program.argv);
        let started = self.spawner.start(&program, &files)?;
        self.keep_ruleset(id, ruleset);
        Ok(started)
    }

    /// True for all that this host has what a unit's manifest asks for.
    fn is_fit(&mut self, id: Id) -> Result<(), Fault> {
        match self.parts[self.units[id].part].spec.wiring().unfit.as_deref().map(str::to_owned) {
            Some(why) => Err(self.trouble(id, Stage::User, Errno::ENOENT, why)),
            None => Ok(()),
        }
    }

    /// Reads what a unit's env files say now.
    fn read_env_files(&mut self, id: Id) -> Result<(), Fault> {
        match self.env_files(id) {
            Ok(said) => self.units[id].from_files = said.into(),
            Err(error) => return Err(self.trouble(id, Stage::Files, Errno::EINVAL, error.to_string())),
        }
        Ok(())
    }

    /// What a unit's env files say.
    fn env_files(&self, id: Id) -> Result<Variables, EnvFileError> {
        let spec = &self.parts[self.units[id].part].spec;
        let Some(files) = &spec.wiring().env_files else { return Ok(Vec::new()) };
        let user = spec.setup.ids.as_ref().filter(|ids| ids.uid != 0);
        files.read(&|path| {
            if self.is_shared && path.starts_with(&self.state_folder) {
                share::open(&self.state_folder, path, user)
            } else {
                environment::open_file(path, OFlag::empty())
            }
        })
    }

    /// What a command beside a unit gets of its env files: what its process has, or would have.
    pub(super) fn said_by_files(&self, id: Id) -> Result<Variables, EnvFileError> {
        let unit = &self.units[id];
        if unit.service.state.run().is_some() { Ok(unit.from_files.to_vec()) } else { self.env_files(id) }
    }

    /// What marks a unit's processes, unless its manifest has another use for that limit.
    fn mark(&self, id: Id) -> Option<libc::rlimit> {
        let limits = &self.parts[self.units[id].part].spec.setup.limits;
        let is_used = limits.iter().any(|limit| limit.resource == libc::RLIMIT_LOCKS);
        self.descent.mark(id).filter(|_| !is_used)
    }

    /// Makes the pipe for a unit's newline, if it shows that it is ready so, and returns its end.
    fn open_newline(&mut self, id: Id) -> Result<Option<OwnedFd>, Errno> {
        self.close_newline(id);
        if self.parts[self.units[id].part].spec.newline.is_none() {
            return Ok(None);
        }
        let (read, write) = fd::pipe()?;
        self.events.add(&read, readable(Source::Newline(id).token()))?;
        self.units[id].newline = Some(read);
        Ok(Some(write))
    }

    /// The unit's environment, with what is its own.
    fn environment(&mut self, id: Id) -> Result<Vec<(OsString, OsString)>, Errno> {
        let unit = &self.units[id];
        let spec = &self.parts[unit.part].spec;
        let mut env = spec.program.env.to_vec();
        environment::put(&mut env, &unit.from_files);
        let mut set = |name: &str, value: String| {
            env.retain(|(known, _)| known != name);
            env.push((name.into(), value.into()));
        };
        if spec.schedule.is_none() {
            set("KITBAG_INSTANCE", unit.instance.to_string());
        }
        if spec.notify {
            let uid = spec.setup.ids.as_ref().map_or_else(|| nix::unistd::geteuid().as_raw(), |ids| ids.uid);
            set("NOTIFY_SOCKET", self.notify.open(id as u64, uid)?);
        }
        if let Some(Watch::Silence(span)) = spec.rules.watch {
            set("WATCHDOG_USEC", span.saturating_mul(1000).to_string());
        }
        Ok(env)
    }

    /// Starts a program that asks how a unit is. Of what it prints, the last is kept, if there is a descriptor left for it.
    pub(super) fn start_helper(&mut self, id: Id, program: &ProgramSpec, late_at: Ms) -> Result<(), Fault> {
        let setup = &self.parts[self.units[id].part].spec.setup;
        let nothing = self.nothing.as_fd();
        let (tail, write) = Tail::new().ok().unzip();
        let output = write.as_ref().map_or(nothing, AsFd::as_fd);
        let files = Files {
            stdin: nothing,
            stdout: output,
            stderr: output,
            inherited: &[],
            limit: self.limit,
            own_pid: &[],
            ruleset: self.units[id].ruleset.as_ref().map(AsFd::as_fd),
            mark: self.mark(id),
        };
        let Process { pid, start } = self.spawner.start(&program.program(&program.env, setup), &files)?;
        self.pids.insert(pid, Whose::Helper(id));
        let watched = |tail: &Tail| self.events.add(tail.fd(), readable(Source::Check(id).token())).is_ok();
        let tail = tail.filter(watched);
        let unit = &mut self.units[id];
        unit.helper = Some(Box::new(Helper { pid, start, late_at, tail }));
        self.timers.set(id, unit);
        Ok(())
    }

    /// Moves to a cgroup where units can have limits, if one wants them.
    pub(super) fn enter_cgroup(&mut self, specs: &[ServiceSpec]) {
        let limits = specs.iter().fold(Limits::default(), |all, spec| Limits {
            memory: all.memory.or(spec.limits.memory),
            pids: all.pids.or(spec.limits.pids),
        });
        if limits == Limits::default() {
            return;
        }
        match Cgroups::enter(limits) {
            Ok(cgroups) => {
                if let Some(missing) = cgroups.missing() {
                    self.logs.say(&format!("some limits do not hold: {missing}"));
                }
                self.cgroups = Some(cgroups);
            }
            Err(error) => self.logs.say(&format!("limits on memory and processes do not hold: {error}")),
        }
    }

    /// Makes the cgroup of a unit that has limits.
    pub(super) fn cgroup_of(&mut self, part: Part, name: &str) -> Option<cgroup::Unit> {
        let limits = self.parts[part].spec.limits;
        let cgroups = self.cgroups.as_ref().filter(|_| limits != Limits::default())?;
        match cgroups.unit(name, limits) {
            Ok(unit) => Some(unit),
            Err(error) => {
                self.logs.say(&format!("the limits of {name} do not hold: {error}"));
                None
            }
        }
    }

    /// Makes a unit's cgroup anew if its last run has left it so that none can join it.
    fn open_cgroup(&mut self, id: Id) {
        let unit = &self.units[id];
        // What is in it all the same keeps it: then the start fails, and says so.
        if unit.cgroup.as_ref().is_some_and(|cgroup| cgroup.is_shut() && cgroup.remove().is_ok()) {
            let name = unit.name.clone();
            self.units[id].cgroup = self.cgroup_of(unit.part, &name);
        }
    }

    /// Removes the cgroups, all of whose processes have ended, and leaves our own.
    pub(super) fn leave_cgroups(&mut self) {
        for unit in &mut self.units {
            if let Some(cgroup) = unit.cgroup.take() {
                // One that is not empty stays; the next start of the same name uses it.
                let _ = cgroup.remove();
            }
        }
        if let Some(cgroups) = self.cgroups.take() {
            cgroups.leave(std::process::id().cast_signed());
        }
    }
}
