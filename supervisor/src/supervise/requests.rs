//! What may be asked of the running bundle, and what it tells of itself.

use crate::control::{Accepted, App, Command, Identity, Refused, Surroundings};
use crate::ports::registry::Published;
use crate::snapshot::Snapshot;
use crate::spawn::Setup;
use crate::spawn::{environment, limits};
use crate::state::{End, Event, Ms, Outcome, Phase, State, Then, Turn};
use crate::status::{self, Ended, Kind, Status, UnixMs, usage};
use crate::sys::{self, signal};
use kitbag_format::sort;

use super::order::Part;
use super::spec::When;
use super::units::{Id, Intent, Unit};
use super::{Supervisor, schedule, shared, unix_ms, words};

/// Instances that a service may have.
const MOST_INSTANCES: u32 = 1_000;

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
    fn some_named(&self, name: &str) -> Result<Vec<Id>, Refused> {
        let ids = self.named(name)?;
        if ids.is_empty() {
            return Err(Refused::Conflict(format!("{name} was scaled to 0 instances; scale it to more")));
        }
        Ok(ids)
    }

    fn part(&self, name: &str) -> Option<Part> {
        self.parts.iter().position(|members| members.spec.name == name)
    }

    /// Restarts the instances of all services, tasks that run, and those of the start that are not done, as a stop and a
    /// start of all would: what needs another stops before it, and starts when that is ready again.
    fn restart_all(&mut self) -> Vec<Id> {
        let restarts = |id: &Id| {
            let unit = &self.units[*id];
            let state = unit.service.state;
            !unit.retired
                && match &self.parts[unit.part].spec.schedule {
                    None => true,
                    Some(schedule) if matches!(schedule.when, When::Start) => {
                        unit.intent.starts() || !state.is_good()
                    }
                    Some(_) => !state.is_at_rest(),
                }
        };
        let ids: Vec<Id> = (0..self.units.len()).filter(restarts).collect();
        self.units.iter_mut().for_each(|unit| unit.held = false);
        for &id in &ids {
            self.doom(id);
            self.intend(id, if self.units[id].intent.stops() { Intent::Restart } else { Intent::Start });
        }
        for part in 0..self.parts.len() {
            self.stop_doomed(part);
        }
        ids
    }

    /// Starts what is on its way back, as far as it may.
    pub(super) fn bring_back(&mut self) {
        self.returning = false;
        let mut waits = vec![false; self.parts.len()];
        let mut comes = vec![false; self.parts.len()];
        // What is needed comes first: what needs one that has failed would fail once more before that is under way.
        for part in self.order.needs_first(0..self.parts.len()) {
            let is_awaited = |need: &Part| comes[*need] || (waits[*need] && self.order.is_at_rest(*need));
            waits[part] = self.order.needs_of(part).iter().any(is_awaited);
            for id in self.parts[part].units.clone() {
                let unit = &self.units[id];
                if !unit.intent.starts() {
                    continue;
                }
                if unit.service.state.is_at_rest() && !waits[part] {
                    self.start(id);
                } else {
                    self.returning = true;
                }
            }
            comes[part] = self.is_on_its_way(part);
        }
    }

    /// True if a part is about to stop, or to start again.
    fn is_on_its_way(&self, part: Part) -> bool {
        self.parts[part].units.iter().any(|id| {
            let unit = &self.units[*id];
            unit.intent.starts() || (unit.intent.stops() && !unit.service.state.is_at_rest())
        })
    }

    /// What a part on its way back waits for: of what it needs, or else the next beyond that.
    fn awaited(&self, part: Part) -> Vec<Part> {
        let is_awaited = |need: &Part| self.is_on_its_way(*need);
        let direct: Vec<Part> = self.order.needs_of(part).iter().copied().filter(is_awaited).collect();
        if direct.is_empty() {
            return self.needs_of(part).into_iter().rev().find(is_awaited).into_iter().collect();
        }
        direct
    }

    /// Starts units, and what they need.
    fn start_named(&mut self, name: &str) -> Result<Vec<Id>, Refused> {
        let ids = self.some_named(name)?;
        let Some(part) = ids.first().map(|id| self.units[*id].part) else { return Ok(ids) };
        for need in self.needs_of(part) {
            for id in self.parts[need].units.clone() {
                let unit = &self.units[id];
                if unit.retired || unit.intent.starts() {
                    continue;
                }
                if unit.service.state.is_good() {
                    self.intend(id, Intent::None);
                } else {
                    self.start_when_it_may(id);
                }
            }
        }
        for &id in &ids {
            self.start_when_it_may(id);
        }
        Ok(ids)
    }

    /// Starts a unit. One that stops comes to rest first, and one whose needs are on their way waits for
    /// them.
    fn start_when_it_may(&mut self, id: Id) {
        let unit = &self.units[id];
        let state = unit.service.state;
        if unit.intent.starts() {
            // It comes by itself.
        } else if matches!(
            state,
            State::Stopping { then: Then::End(_), .. } | State::Killing { then: Then::End(_), .. }
        ) {
            self.intend(id, Intent::Start);
            // If it was failing, that is no end for who waits for it.
            self.feed(id, Event::Stop);
        } else if state.is_at_rest() && !self.awaited(unit.part).is_empty() {
            self.intend(id, Intent::Start);
        } else {
            self.start(id);
        }
    }

    /// What a part needs, directly or not; what is needed stands before what needs it.
    fn needs_of(&self, part: Part) -> Vec<Part> {
        let mut needs = self.order.needs_first([part]);
        needs.pop();
        needs
    }

    /// What a part needs is wanted still: nothing of it is to stop as soon as it may. What is to come back then does.
    fn keep_needs(&mut self, part: Part) {
        for need in self.needs_of(part) {
            for id in self.parts[need].units.clone() {
                if self.units[id].intent == Intent::Stop {
                    self.intend(id, Intent::None);
                }
            }
        }
    }

    /// Stops units: a whole service or task together with what needs it, that first.
    fn stop_named(&mut self, name: &str) -> Result<Vec<Id>, Refused> {
        let ids = self.named(name)?;
        let Some(part) = self.part(name) else {
            for &id in &ids {
                self.intend(id, Intent::None);
                self.feed(id, Event::Stop);
            }
            return Ok(ids);
        };
        if self.parts[part].spec.schedule.is_some() && self.order.is_at_rest(part) {
            self.hold(part);
            return Ok(ids);
        }
        self.hold(part);
        let parts = self.order.with_dependents(part);
        let mut concerned = Vec::new();
        for &one in &parts {
            for id in self.parts[one].units.clone() {
                let unit = &self.units[id];
                if (one == part && !unit.retired) || !unit.service.state.is_at_rest() {
                    concerned.push(id);
                }
                self.doom(id);
            }
        }
        for one in parts {
            self.stop_doomed(one);
        }
        Ok(concerned)
    }

    /// The schedule of a task that was told to stop starts it no more.
    fn hold(&mut self, part: Part) {
        if !self.repeated.contains(&part) {
            return;
        }
        for id in self.parts[part].units.clone() {
            let was_held = std::mem::replace(&mut self.units[id].held, true);
            if !was_held && self.order.is_at_rest(part) {
                self.tell_state(id, status::State::Stopped);
            }
        }
    }

    /// Restarts units alone. What does not run is started, as [`Self::start_named`] does it.
    fn restart_named(&mut self, name: &str) -> Result<Vec<Id>, Refused> {
        let ids = self.some_named(name)?;
        if ids.iter().all(|id| self.units[*id].service.state.run().is_none()) {
            return self.start_named(name);
        }
        for &id in &ids {
            self.units[id].held = false;
            let part = self.units[id].part;
            self.keep_needs(part);
            if self.units[id].intent.starts() {
                // It is restarted by itself.
            } else if self.awaited(part).is_empty() {
                self.intend(id, Intent::None);
                self.feed(id, Event::Restart);
            } else {
                self.intend(id, Intent::Start);
                self.feed(id, Event::Stop);
            }
        }
        Ok(ids)
    }

    fn signal_named(&mut self, name: &str, number: i32) -> Result<Vec<Id>, Refused> {
        if !(1..=signal::LAST).contains(&number) {
            return Err(Refused::Wrong(format!("be sent signal {number}")));
        }
        let mut ids = self.named(name)?;
        ids.retain(|id| self.units[*id].service.state.run().is_some());
        if ids.is_empty() {
            return Err(Refused::Conflict(format!("{name} does not run")));
        }
        for &id in &ids {
            let unit = &self.units[id];
            match (number, unit.leader, unit.service.state.run()) {
                // Of these the whole of it is meant.
                (libc::SIGSTOP | libc::SIGCONT, _, Some(run)) => self.signal(id, run.group, number),
                (_, Some(leader), _) => _ = signal::send(leader, number),
                // What its main process has left behind.
                (_, None, Some(run)) => self.signal(id, run.group, number),
                (_, None, None) => {}
            }
            let name = signal::name(number).map_or_else(|| number.to_string(), |name| format!("SIG{name}"));
            self.publish(self.units[id].name.clone(), "signal".to_owned(), name);
        }
        Ok(ids)
    }

    /// Lets so many instances run: retires those of the highest index, or makes new ones.
    fn scale(&mut self, name: &str, count: u32) -> Result<Vec<Id>, Refused> {
        let Some(part) = self.part(name) else {
            let unit = self.named(name)?.first().map(|id| &self.units[*id]);
            let service = unit.map_or("", |unit| self.parts[unit.part].spec.name.as_str());
            return Err(Refused::Unfit {
                what: format!("{name} is one instance of {service}"),
                to_fix: format!("`scale {service}=N` says how many of them there are"),
            });
        };
        if self.parts[part].spec.schedule.is_some() {
            return Err(Refused::Unfit {
                what: format!("{name} is a task; only services have instances"),
                to_fix: format!("`run-task {name}` runs it now"),
            });
        }
        if count > MOST_INSTANCES {
            return Err(Refused::Wrong(format!("have more than {MOST_INSTANCES} instances")));
        }
        if let Some((why, remedy)) = shared::by(&self.parts[part].spec, count, &self.state_folder) {
            let what = format!("cannot run {count} instances of {name}: {why}");
            return Err(Refused::Unfit { what, to_fix: remedy });
        }
        let before = self.parts[part].wanted;
        if count > before {
            self.keep_needs(part);
        }
        self.parts[part].wanted = count;
        for instance in (count..before).rev() {
            self.retire(self.parts[part].units[instance as usize]);
        }
        for instance in before..count {
            let id = match self.parts[part].units.get(instance as usize) {
                Some(&id) => self.revive(id),
                None => self.add_unit(part, instance),
            };
            self.start_when_it_may(id);
        }
        // Who waits may have to wait for more now, or for less.
        self.touched.push_back(part);
        self.publish(name.to_owned(), "scaled".to_owned(), format!("{before} to {count}"));
        Ok(self.parts[part].units.iter().take(count as usize).copied().collect())
    }

    fn retire(&mut self, id: Id) {
        self.intend(id, Intent::None);
        let unit = &mut self.units[id];
        unit.retired = true;
        self.order.retire(unit.part, &unit.service.state);
        if unit.service.state.is_at_rest() {
            self.gone(id);
        } else {
            self.feed(id, Event::Stop);
        }
    }

    fn revive(&mut self, id: Id) -> Id {
        self.intend(id, Intent::None);
        let unit = &mut self.units[id];
        unit.retired = false;
        self.order.revive(unit.part, &unit.service.state);
        self.logs.add_unit(id, &unit.name);
        id
    }

    fn run_task(&mut self, name: &str) -> Result<Vec<Id>, Refused> {
        let part = self.part(name).ok_or(Refused::Unknown)?;
        if self.parts[part].spec.schedule.is_none() {
            return Err(Refused::Unfit {
                what: format!("{name} is a service; only tasks are run once"),
                to_fix: format!("`start {name}` starts it if it does not run, `restart {name}` in any case"),
            });
        }
        let overlaps = self.parts[part].units.iter().any(|id| !self.units[*id].service.state.is_at_rest());
        let skips = self.parts[part]
            .spec
            .schedule
            .as_ref()
            .is_some_and(|schedule| schedule.overlap == kitbag_format::service::Overlap::Skip);
        if overlaps && skips {
            return Err(Refused::Conflict(format!("{name} runs already")));
        }
        let ids = self.parts[part].units.clone();
        ids.iter().for_each(|id| self.units[*id].held = false);
        self.due(part);
        Ok(ids)
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

    /// Why what needs this part is not started.
    pub(super) fn failed_need(&self, need: Part) -> String {
        let members = &self.parts[need];
        let failed = |id: &&Id| self.units[**id].service.state.has_failed();
        let unit = members.units.iter().find(failed).map(|id| &self.units[*id]);
        let name = unit.map_or(members.spec.name.as_str(), |unit| unit.name.as_str());
        let given_up = unit.is_some_and(|unit| unit.service.state == State::Ended(Outcome::NeedFailed));
        match unit.and_then(|unit| unit.reason.as_deref()) {
            Some(reason) if given_up => format!("it needs {name}, which was not started: {reason}"),
            Some(reason) => format!("it needs {name}, which {reason}"),
            None => format!("it needs {name}, which has failed"),
        }
    }
}
