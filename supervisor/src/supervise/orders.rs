//! What a person orders, and what becomes of it when it cannot be done at once: what is asked for last comes about.

use crate::control::Refused;
use crate::state::{Event, State, Then};
use crate::status;
use crate::sys::signal;

use super::order::Part;
use super::spec::When;
use super::units::{Id, Intent};
use super::{Supervisor, shared};

/// Instances that a service may have.
const MOST_INSTANCES: u32 = 1_000;

impl Supervisor {
    // --- What cannot be done at once ---

    /// Remembers what a unit is to do when it can, in place of what it was to do.
    pub(super) fn intend(&mut self, id: Id, intent: Intent) {
        let before = std::mem::replace(&mut self.units[id].intent, intent);
        self.rested |= before != intent;
        self.returning |= intent.starts();
    }

    /// Starts a unit now.
    pub(super) fn start(&mut self, id: Id) {
        self.units[id].held = false;
        self.intend(id, Intent::None);
        self.feed(id, Event::Start);
    }

    /// Wants a unit to stop, after all that needs it, and then to come back or not.
    fn doom(&mut self, id: Id, comes_back: bool) {
        let unit = &mut self.units[id];
        unit.queued = false;
        let intent = match (unit.service.state.is_at_rest(), comes_back) {
            (true, false) => Intent::None,
            (true, true) => Intent::Start,
            (false, false) => Intent::Stop,
            (false, true) => Intent::Restart,
        };
        self.intend(id, intent);
    }

    /// Stops a part's units that are to be stopped, if nothing active needs them, or nothing of them runs.
    pub(super) fn stop_doomed(&mut self, part: Part) {
        let free = self.order.is_free(part);
        for id in self.parts[part].units.clone() {
            let unit = &self.units[id];
            if unit.intent.stops() && (free || unit.service.state.run().is_none()) {
                self.intend(id, unit.intent.after_the_stop());
                self.feed(id, Event::Stop);
            }
        }
    }

    pub(super) fn stop_all(&mut self) {
        for id in 0..self.units.len() {
            self.doom(id, false);
        }
        for part in 0..self.parts.len() {
            self.stop_doomed(part);
        }
    }

    pub(super) fn kill_all(&mut self) {
        for id in 0..self.units.len() {
            self.intend(id, Intent::None);
            self.feed(id, Event::Kill);
        }
    }

    // --- Orders ---

    /// Restarts the instances of all services, tasks that run, and those of the start that are not done, as a stop and a
    /// start of all would: what needs another stops before it, and starts when that is ready again.
    pub(super) fn restart_all(&mut self) -> Vec<Id> {
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
            self.doom(id, true);
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
    pub(super) fn awaited(&self, part: Part) -> Vec<Part> {
        let is_awaited = |need: &Part| self.is_on_its_way(*need);
        let direct: Vec<Part> = self.order.needs_of(part).iter().copied().filter(is_awaited).collect();
        if direct.is_empty() {
            return self.all_needs_of(part).into_iter().rev().find(is_awaited).into_iter().collect();
        }
        direct
    }

    /// Starts units, and what they need.
    pub(super) fn start_named(&mut self, name: &str) -> Result<Vec<Id>, Refused> {
        let ids = self.some_named(name)?;
        let Some(part) = ids.first().map(|id| self.units[*id].part) else { return Ok(ids) };
        for need in self.all_needs_of(part) {
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

    /// Starts a unit. One that stops comes to rest first, and one whose needs are on their way waits for them.
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
    fn all_needs_of(&self, part: Part) -> Vec<Part> {
        let mut needs = self.order.needs_first([part]);
        needs.pop();
        needs
    }

    /// What a part needs is wanted still: nothing of it is to stop as soon as it may. What is to come back then does.
    fn keep_needs(&mut self, part: Part) {
        for need in self.all_needs_of(part) {
            for id in self.parts[need].units.clone() {
                if self.units[id].intent == Intent::Stop {
                    self.intend(id, Intent::None);
                }
            }
        }
    }

    /// Stops units: a whole service or task together with what needs it, that first.
    pub(super) fn stop_named(&mut self, name: &str) -> Result<Vec<Id>, Refused> {
        let ids = self.named(name)?;
        let Some(part) = self.part(name) else {
            for &id in &ids {
                self.intend(id, Intent::None);
                self.feed(id, Event::Stop);
            }
            return Ok(ids);
        };
        self.hold(part);
        if self.parts[part].spec.schedule.is_some() && self.order.is_at_rest(part) {
            // Nothing of it is left to stop, and nobody loses it.
            return Ok(ids);
        }
        let parts = self.order.with_dependents(part);
        let mut concerned = Vec::new();
        for &one in &parts {
            for id in self.parts[one].units.clone() {
                let unit = &self.units[id];
                if (one == part && !unit.retired) || !unit.service.state.is_at_rest() {
                    concerned.push(id);
                }
                self.doom(id, false);
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
    pub(super) fn restart_named(&mut self, name: &str) -> Result<Vec<Id>, Refused> {
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

    pub(super) fn signal_named(&mut self, name: &str, number: i32) -> Result<Vec<Id>, Refused> {
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
    pub(super) fn scale(&mut self, name: &str, count: u32) -> Result<Vec<Id>, Refused> {
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

    pub(super) fn run_task(&mut self, name: &str) -> Result<Vec<Id>, Refused> {
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
}
