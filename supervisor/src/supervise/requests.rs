//! What may be asked of the running bundle, and what it tells of itself.

use crate::control::{Accepted, App, Command, Identity, Refused, Surroundings};
use crate::ports::registry::Published;
use crate::snapshot::Snapshot;
use crate::spawn::Setup;
use crate::spawn::{environment, limits};
use crate::state::{End, Ms, Outcome, Phase, State, Turn};
use crate::status::{self, Ended, Kind, Status, UnixMs, usage};
use crate::sys;
use kitbag_format::sort;

use super::order::Part;
use super::spec::When;
use super::units::{Id, Unit};
use super::{Supervisor, schedule, unix_ms, words};

impl App for Supervisor {
    fn status(&mut self) -> Status {
        let mut units: Vec<status::Unit> =
            (0..self.units.len()).filter(|id| self.is_shown(*id)).map(|id| self.unit_status(id)).collect();
        sort::by(&mut units, &|one, other| {
            (&one.service, one.instance).cmp(&(&other.service, other.instance))
        });
        Status {
            bundle: self.bundle.clone(),
            version: self.version.clone(),
            pid: std::process::id().cast_signed(),
            since: self.began.0,
            for_ms: self.now().saturating_sub(self.began.1),
            stopping: self.whole.phase != Phase::Serving,
            state_folder: self.state_folder.clone(),
            log_folder: self.log_folder.clone(),
            units,
        }
    }

    fn command(&mut self, command: &Command) -> Result<Accepted, Refused> {
        if self.whole.phase != Phase::Serving && !matches!(command, Command::Signal(..) | Command::Shutdown) {
            return Err(Refused::Conflict("the bundle is stopping".to_owned()));
        }
        let concerned = match command {
            Command::Start(name) => self.start_named(name)?,
            Command::Stop(name) => self.stop_named(name)?,
            Command::Restart(None) => self.restart_all(),
            Command::Restart(Some(name)) => self.restart_named(name)?,
            Command::Signal(name, number) => self.signal_named(name, *number)?,
            Command::Scale(name, count) => self.scale(name, *count)?,
            Command::RunTask(name) => self.run_task(name)?,
            Command::Shutdown => {
                self.logs.say(&format!("stopping {} (on request)", self.bundle));
                self.turn(Turn::StopGently);
                (0..self.units.len()).collect()
            }
        };
        self.follow_up();
        Ok(Accepted { units: concerned.into_iter().map(|id| self.units[id].name.clone()).collect() })
    }

    fn ports(&mut self) -> Vec<Published> {
        self.mend_registry();
        self.watch_some();
        self.published()
    }

    fn snapshot(&mut self) -> Snapshot {
        self.remember()
    }

    fn surroundings(&mut self, name: &str) -> Result<Surroundings, Refused> {
        let id = self.beside(name).ok_or(Refused::Unknown)?;
        let unit = &self.units[id];
        let spec = &self.parts[unit.part].spec;
        if let Some(why) = &spec.wiring().unfit {
            return Err(Refused::Conflict(format!("{name} cannot be started: {why}")));
        }
        let mut env = spec.program.env.to_vec();
        let said = self.said_by_files(id);
        environment::put(&mut env, &said.map_err(|error| Refused::Conflict(error.to_string()))?);
        if spec.schedule.is_none() {
            env.retain(|(known, _)| known != "KITBAG_INSTANCE");
            env.push(("KITBAG_INSTANCE".into(), unit.instance.to_string().into()));
        }
        env.extend(self.late_variables(id));
        let identity = spec.setup.ids.as_ref().map(|ids| Identity {
            uid: ids.uid,
            gid: ids.gid,
            groups: ids.groups.clone(),
        });
        Ok(Surroundings {
            env,
            cwd: spec.program.cwd.to_path_buf(),
            identity,
            umask: spec.setup.umask,
            limits: self.limits_of(&spec.setup),
            nice: spec.setup.nice.map_or_else(sys::priority, i32::from),
            oom_score: spec.setup.oom_score.map(i32::from).or_else(usage::own_oom_score),
            cgroup: unit.cgroup.as_ref().map(|cgroup| cgroup.path().to_owned()),
        })
    }
}

impl Supervisor {
    /// True but for what `scale` has ended. The first instance stands for a service that has none.
    fn is_shown(&self, id: Id) -> bool {
        let unit = &self.units[id];
        let stands_in = unit.instance == 0 && self.parts[unit.part].wanted == 0;
        !unit.retired || !unit.service.state.is_at_rest() || stands_in
    }

    pub(super) fn serve_control(&mut self) {
        if let Some(mut control) = self.control.take() {
            control.serve(self.now(), self);
            self.control = Some(control);
            self.publish_rest();
        }
    }

    /// Every limit that a process with this setup has: what the manifest says, else the supervisor's, which was another
    /// one on open files when it began.
    fn limits_of(&self, setup: &Setup) -> Vec<(&'static str, [Option<u64>; 2])> {
        let finite = |value: libc::rlim_t| (value != libc::RLIM_INFINITY).then_some(value);
        let of = |resource| {
            let own =
                || self.limit.filter(|_| resource == libc::RLIMIT_NOFILE).or_else(|| sys::limit(resource));
            setup
                .limits
                .iter()
                .find(|limit| limit.resource == resource)
                .map(|limit| limit.rlimit())
                .or_else(own)
        };
        let named = |&(name, resource)| {
            of(resource).map(|limit| (name, [finite(limit.rlim_cur), finite(limit.rlim_max)]))
        };
        limits::NAMES.iter().filter_map(named).collect()
    }

    /// The units of this name: a service's instances, a task, or one instance.
    pub(super) fn named(&self, name: &str) -> Result<Vec<Id>, Refused> {
        if let Some(part) = self.part(name) {
            let wanted = self.parts[part].wanted as usize;
            return Ok(self.parts[part].units.iter().take(wanted).copied().collect());
        }
        let instance = || {
            let (service, instance) = name.rsplit_once('.')?;
            let members = &self.parts[self.part(service)?];
            let instance = instance.parse::<usize>().ok().filter(|it| *it < members.wanted as usize)?;
            members.units.get(instance).copied()
        };
        instance().map(|id| vec![id]).ok_or(Refused::Unknown)
    }

    /// The unit that a command runs beside: the first of this name, which stands for a service that was scaled to 0, too.
    fn beside(&self, name: &str) -> Option<Id> {
        let first = |name| self.parts[self.part(name)?].units.first().copied();
        match self.named(name) {
            Ok(ids) => ids.first().copied().or_else(|| first(name)),
            Err(_) => name.strip_suffix(".0").and_then(first),
        }
    }

    /// The same, refused where that is none: of a service that was scaled to 0.
    pub(super) fn some_named(&self, name: &str) -> Result<Vec<Id>, Refused> {
        let ids = self.named(name)?;
        if ids.is_empty() {
            return Err(Refused::Conflict(format!("{name} was scaled to 0 instances; scale it to more")));
        }
        Ok(ids)
    }

    pub(super) fn part(&self, name: &str) -> Option<Part> {
        self.parts.iter().position(|members| members.spec.name == name)
    }

    // --- Status ---

    fn unit_status(&self, id: Id) -> status::Unit {
        let (now, wall) = (self.now(), unix_ms());
        let unit = &self.units[id];
        let members = &self.parts[unit.part];
        let schedule = members.spec.schedule.as_ref();
        let state = unit.service.state;
        let retry = match state {
            State::Waiting { until } => Some(until.saturating_sub(now)),
            _ if state.is_at_rest() && !unit.held => members.plan.in_ms(now, wall),
            _ => None,
        };
        let returns = unit.intent.starts() && state.is_at_rest();
        let waits_for = match state {
            State::Needing => {
                let outside = self.missing_outside(unit.part).into_iter().map(|(name, _)| name);
                self.order.open_needs(unit.part).map(|part| self.name_of(part)).chain(outside).collect()
            }
            _ if returns => self.awaited(unit.part).into_iter().map(|part| self.name_of(part)).collect(),
            _ => Vec::new(),
        };
        status::Unit {
            name: unit.name.clone(),
            service: members.spec.name.clone(),
            instance: schedule.is_none().then_some(unit.instance),
            kind: if schedule.is_some() { Kind::Task } else { Kind::Service },
            awaited: schedule.is_none_or(|schedule| matches!(schedule.when, When::Start)) && !unit.retired,
            state: self.state_word(unit),
            since: unit.since.0,
            for_ms: now.saturating_sub(unit.since.1),
            pid: unit.leader.filter(|_| state.run().is_some()),
            restarts: u64::from(schedule.map_or(unit.service.restarts, |_| members.plan.runs)),
            last_end: self.last_end(unit, now, wall),
            retry_in_ms: retry,
            due_at: schedule
                .filter(|_| state.is_at_rest() && !unit.held)
                .and_then(|it| members.plan.due_at(it, now, wall)),
            limited: self.is_limited(unit.part),
            waits_for,
            failed_need: unit
                .failed_need
                .filter(|_| state == State::Ended(Outcome::NeedFailed))
                .map(|need| self.units[need].name.clone()),
            reason: unit.reason.clone(),
            says: unit.says.as_deref().map(str::to_owned),
        }
    }

    /// What a unit's state is called. A task that comes due again is idle between its runs.
    fn state_word(&self, unit: &Unit) -> status::State {
        let schedule = self.parts[unit.part].spec.schedule.as_ref();
        match words::state(&unit.service.state, schedule.is_some()) {
            _ if unit.intent.starts() && unit.service.state.is_at_rest() => status::State::Waiting,
            _ if unit.held && unit.service.state.is_at_rest() => status::State::Stopped,
            status::State::Done if schedule.is_some_and(|it| !matches!(it.when, When::Start)) => {
                status::State::Idle
            }
            word => word,
        }
    }

    fn last_end(&self, unit: &Unit, now: Ms, wall: UnixMs) -> Option<Ended> {
        let Some(last) = unit.service.last else { return self.remembered_end(unit, wall) };
        let end = last.end.or_else(|| last.trouble.map(|_| End::Signal(0)))?;
        let ago = now.saturating_sub(last.at);
        let spec = &self.parts[unit.part].spec;
        let how = match end {
            End::NotStarted(fault) => words::unit_not_started(unit, spec, fault),
            End::Signal(0) => "is being ended".to_owned(),
            _ => words::how_unit(unit, end),
        };
        // What was wrong first; the signal only followed from it.
        let how = match last.trouble {
            Some(trouble) => format!("{}, and {how}", words::trouble(spec, trouble)),
            None => how,
        };
        Some(Ended {
            how,
            at: wall - i64::try_from(ago).unwrap_or(0),
            ago_ms: ago,
            ran_ms: last.at.saturating_sub(last.since),
            well: last.trouble.is_none() && spec.rules.is_good(end),
        })
    }

    /// The end of a task's run before the supervisor was started.
    fn remembered_end(&self, unit: &Unit, wall: UnixMs) -> Option<Ended> {
        let record = self.parts[unit.part].remembered.as_ref()?;
        let ended = record.ended?;
        Some(Ended {
            how: record.how.clone(),
            at: ended.saturating_mul(1000),
            ago_ms: schedule::elapsed(ended, wall / 1000),
            ran_ms: schedule::elapsed(record.began, ended),
            well: record.well,
        })
    }

    fn name_of(&self, part: Part) -> String {
        self.parts[part].spec.name.clone()
    }

    /// The unit of this part that has failed, and why what needs the part is not started.
    pub(super) fn failed_need(&self, need: Part) -> (Option<Id>, String) {
        let members = &self.parts[need];
        let failed = |id: &Id| self.units[*id].service.state.has_failed();
        let id = members.units.iter().copied().find(failed);
        let unit = id.map(|id| &self.units[id]);
        let name = unit.map_or(members.spec.name.as_str(), |unit| unit.name.as_str());
        let given_up = unit.is_some_and(|unit| unit.service.state == State::Ended(Outcome::NeedFailed));
        let why = match unit.and_then(|unit| unit.reason.as_deref()) {
            Some(reason) if given_up => format!("it needs {name}, which was not started: {reason}"),
            Some(reason) => format!("it needs {name}, which {reason}"),
            None => format!("it needs {name}, which has failed"),
        };
        (id, why)
    }
}
