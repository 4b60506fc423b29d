//! Tasks: when they run, what happens when they still do, and what is remembered of it.

use kitbag_format::service::Overlap;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use crate::state::{Event, Ms, Phase, State};
use crate::sys::Errno;

use super::order::Part;
use super::schedule::{self, Plan, Record};
use super::spec::{Schedule, When};
use super::units::{Id, Intent};
use super::{Source, Supervisor, readable, unix_ms, words};

impl Supervisor {
    /// Makes the plan of each task, and starts those that were missed and shall be caught up.
    pub(super) fn begin_tasks(&mut self) {
        let (now, time) = (self.now(), unix_ms() / 1000);
        for part in 0..self.parts.len() {
            let spec = &self.parts[part].spec;
            let Some(schedule) = &spec.schedule else { continue };
            let folder = self.tasks.as_ref();
            let (last, since) =
                folder.map_or((None, None), |folder| schedule::read_record(folder, &spec.name));
            if let Some(folder) = folder.filter(|_| since.is_none() && schedule.catch_up) {
                // Where it cannot be written the first run's record cannot be either, which is said then.
                let _ = schedule::write_known(folder, &spec.name, time);
            }
            let (plan, missed) = Plan::begin(schedule, now, time, since);
            if schedule.when.is_repeated() {
                self.repeated.push(part);
            }
            self.parts[part].plan = plan;
            self.parts[part].remembered = last.map(Box::new);
            if missed {
                let name = &self.parts[part].spec.name;
                self.logs.say(&format!("task {name} was due while nothing ran; starting it now"));
                self.due(part);
            }
        }
        self.watch_clock();
    }

    /// When a task is due by our clock.
    pub(super) fn next_task(&self) -> Option<Ms> {
        if self.whole.phase != Phase::Serving {
            return None;
        }
        self.repeated.iter().filter_map(|part| self.parts[*part].plan.at).min()
    }

    /// Sets the wall clock's timer to the first task that is due by it. It also goes off when the clock is set.
    fn watch_clock(&mut self) {
        let next = self.repeated.iter().filter_map(|part| self.parts[*part].plan.at_time).min();
        let Some(next) = next else { return };
        if self.clock.is_none() {
            let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
            let made = TimerFd::new(ClockId::CLOCK_REALTIME, flags).and_then(|timer| {
                self.events.add(&timer, readable(Source::Clock.token()))?;
                Ok(timer)
            });
            match made {
                Ok(timer) => self.clock = Some(timer),
                Err(errno) => {
                    self.logs.say(&format!("tasks do not run on their schedule: timer: {}", errno.desc()));
                    return;
                }
            }
        }
        let at = Expiration::OneShot(TimeSpec::new(next, 0));
        let flags = TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET;
        let set = self.clock.as_ref().map_or(Ok(()), |timer| timer.set(at, flags));
        if set == Err(Errno::ECANCELED) {
            // The clock was set since it was looked at.
            self.look_at_tasks();
        } else if let Err(errno) = set {
            self.logs.say(&format!("tasks do not run on their schedule: timer: {}", errno.desc()));
        }
    }

    /// The wall clock's timer went off, or the clock was set (`ECANCELED`): either way, it is looked at.
    pub(super) fn take_clock(&mut self) {
        if let Some(timer) = &self.clock {
            let mut buffer = [0; 8];
            let _ = nix::unistd::read(timer, &mut buffer);
        }
        self.look_at_tasks();
    }

    /// Starts the tasks that are due.
    pub(super) fn look_at_tasks(&mut self) {
        if self.whole.phase != Phase::Serving {
            return;
        }
        let (now, time) = (self.now(), unix_ms() / 1000);
        for part in self.repeated.clone() {
            let members = &mut self.parts[part];
            let Some(schedule) = &members.spec.schedule else { continue };
            let is_held = members.units.first().is_some_and(|id| self.units[*id].held);
            if members.plan.look(schedule, now, time) && !is_held {
                self.due(part);
            }
        }
        self.watch_clock();
    }

    /// A task is due. What happens if it still runs is its own choice.
    pub(super) fn due(&mut self, part: Part) {
        let (Some(&id), Some(schedule)) = (self.parts[part].units.first(), &self.parts[part].spec.schedule)
        else {
            return;
        };
        let overlap = schedule.overlap;
        if self.units[id].service.state.is_at_rest() {
            self.start(id);
            return;
        }
        match overlap {
            Overlap::Skip => {
                let name = self.units[id].name.clone();
                self.logs.say(&format!("task {name} is due and still runs; this run is left out"));
                self.publish(name, "skipped".to_owned(), "it still runs".to_owned());
            }
            Overlap::Queue => self.units[id].queued = true,
            // It runs again by itself.
            Overlap::Replace if self.units[id].intent.starts() => {}
            Overlap::Replace => {
                self.intend(id, Intent::None);
                self.feed(id, Event::Restart);
            }
        }
    }

    /// A unit's process was started: a task's is written down.
    pub(super) fn note_begin(&mut self, id: Id) {
        let now = self.now();
        let members = &mut self.parts[self.units[id].part];
        let Some(schedule) = &members.spec.schedule else { return };
        members.plan.began(schedule, now);
        self.write_record(id, &Record { began: unix_ms() / 1000, ..Record::default() });
    }

    /// A unit has come to rest: a task's result is written down, and one that waits for its turn gets it.
    pub(super) fn ended(&mut self, id: Id, before: State) {
        let unit = &mut self.units[id];
        if self.parts[unit.part].spec.schedule.is_none() {
            return;
        }
        if std::mem::take(&mut unit.queued) {
            self.again.push_back(id);
        }
        let Some(last) = unit.service.last.filter(|_| before.run().is_some()) else { return };
        let now = self.now();
        let since = |at: Ms| (unix_ms() - i64::try_from(now.saturating_sub(at)).unwrap_or(0)) / 1000;
        let unit = &self.units[id];
        let spec = &self.parts[unit.part].spec;
        let record = Record {
            began: since(last.since),
            ended: Some(unix_ms() / 1000),
            how: last.end.map_or_else(|| "was given up".to_owned(), words::how),
            well: last.trouble.is_none() && last.end.is_some_and(|end| spec.rules.is_good(end)),
        };
        self.write_record(id, &record);
    }

    fn write_record(&mut self, id: Id, record: &Record) {
        let spec = &self.parts[self.units[id].part].spec;
        let keeps = |schedule: &Schedule| !matches!(schedule.when, When::Start);
        let Some(folder) = self.tasks.as_ref().filter(|_| spec.schedule.as_ref().is_some_and(keeps)) else {
            return;
        };
        if let Err(error) = schedule::write_record(folder, &spec.name, record) {
            let place = folder.join(&spec.name);
            self.logs.say(&format!(
                "the last run of task {} is not remembered: {}: {error}",
                spec.name,
                place.display()
            ));
        }
    }
}
