//! The loop as its clients see it: status, commands, events.

use std::path::PathBuf;

use super::{End, Event, Ms, Outcome, Phase, Service, State, Supervisor, Turn, Unit, ended};
use crate::control::{Accepted, App, Command, Control, Refused, Surroundings};
use crate::status::{self, Ended, Status, time};

/// What is supervised, for people.
#[derive(Default)]
pub struct Bundle {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Where its state is.
    pub state_folder: PathBuf,
    /// Where its logs are.
    pub log_folder: Option<PathBuf>,
    /// Where it is asked.
    pub control: Option<Control>,
}

/// What is remembered of a unit for people alone.
#[derive(Debug, Default)]
pub(super) struct Story {
    since: Ms,
    restarts: u64,
    last_end: Option<(Ms, Ended)>,
}

impl Supervisor {
    /// Serves the control socket.
    pub(super) fn serve(&mut self) {
        if let Some(mut control) = self.control.take() {
            control.serve(self.now(), self);
            self.control = Some(control);
        }
    }

    /// Tells the news to those who follow.
    pub(super) fn publish(&mut self) {
        let news = std::mem::take(&mut self.news);
        if let Some(control) = &mut self.control {
            news.iter().for_each(|event| control.publish(event));
        }
    }

    /// Notes what has become of a unit.
    pub(super) fn remember(&mut self, index: usize, before: &Service, event: Event, now: Ms) {
        let unit = &mut self.units[index];
        if let Event::Exited(end) = event {
            let how = how(unit, end);
            let ran_ms = now.saturating_sub(unit.story.since);
            let told = Ended { how, at: time::now(), ran_ms, well: end.well(), ..Ended::default() };
            unit.story.last_end = Some((now, told));
        }
        if state_of(&before.state) == state_of(&unit.service.state) {
            return;
        }
        unit.story.since = now;
        let state = state_of(&unit.service.state);
        if matches!(before.state, State::Waiting { .. }) && state == status::State::Starting {
            unit.story.restarts += 1;
        }
        let detail = match &unit.story.last_end {
            Some((_, end)) if state == status::State::Retrying || state == status::State::Failed => {
                end.how.clone()
            }
            _ => String::new(),
        };
        let unit = unit.spec.name.clone();
        self.news.push(status::Event { at: time::now(), unit, event: state.name().to_owned(), detail });
    }

    fn named(&self, name: &str) -> Vec<usize> {
        (0..self.units.len()).filter(|index| self.units[*index].spec.name == name).collect()
    }

    fn feed_named(&mut self, name: &str, event: Event) -> Result<Accepted, Refused> {
        let indices = self.named(name);
        if indices.is_empty() {
            return Err(Refused::Unknown);
        }
        indices.iter().for_each(|index| self.feed(*index, event));
        Ok(self.accepted(&indices))
    }

    fn accepted(&self, indices: &[usize]) -> Accepted {
        Accepted { units: indices.iter().map(|index| self.units[*index].spec.name.clone()).collect() }
    }
}

impl App for Supervisor {
    fn status(&mut self) -> Status {
        let (now, wall) = (self.now(), time::now());
        let at = |then: Ms| wall - now.saturating_sub(then).cast_signed();
        let unit = |unit: &Unit| status::Unit {
            name: unit.spec.name.clone(),
            service: unit.spec.name.clone(),
            instance: Some(0),
            kind: status::Kind::Service,
            awaited: true,
            state: state_of(&unit.service.state),
            since: at(unit.story.since),
            for_ms: now.saturating_sub(unit.story.since),
            pid: unit.leader,
            restarts: unit.story.restarts,
            last_end: unit
                .story
                .last_end
                .as_ref()
                .map(|(then, end)| Ended { ago_ms: now.saturating_sub(*then), ..end.clone() }),
            retry_in_ms: match unit.service.state {
                State::Waiting { until } => Some(until.saturating_sub(now)),
                _ => None,
            },
            ..status::Unit::default()
        };
        Status {
            bundle: self.bundle.name.clone(),
            version: self.bundle.version.clone(),
            pid: std::process::id().cast_signed(),
            since: at(0),
            for_ms: now,
            stopping: self.whole.phase != Phase::Serving,
            state_folder: self.bundle.state_folder.clone(),
            log_folder: self.bundle.log_folder.clone(),
            units: self.units.iter().map(unit).collect(),
        }
    }

    fn command(&mut self, command: &Command) -> Result<Accepted, Refused> {
        if self.whole.phase != Phase::Serving && *command != Command::Shutdown {
            return Err(Refused::Conflict("the bundle is stopping".to_owned()));
        }
        match command {
            Command::Start(name) => self.feed_named(name, Event::Start),
            Command::Stop(name) => self.feed_named(name, Event::Stop),
            Command::Restart(Some(name)) => {
                self.feed_named(name, Event::Stop)?;
                self.feed_named(name, Event::Start)
            }
            Command::Restart(None) => {
                self.feed_all(Event::Stop);
                self.feed_all(Event::Start);
                Ok(self.accepted(&(0..self.units.len()).collect::<Vec<_>>()))
            }
            Command::Signal(name, number) => {
                let indices = self.named(name);
                if indices.is_empty() {
                    return Err(Refused::Unknown);
                }
                for index in &indices {
                    if let Some(pid) = self.units[*index].leader {
                        let _ = crate::sys::signal::send(pid, *number);
                    }
                }
                Ok(self.accepted(&indices))
            }
            Command::Scale(name, _) | Command::RunTask(name) if self.named(name).is_empty() => {
                Err(Refused::Unknown)
            }
            Command::Scale(name, _) => Err(Refused::Wrong(format!("scale {name}: not built yet"))),
            Command::RunTask(name) => Err(Refused::Wrong(format!("run {name}: it is a service"))),
            Command::Shutdown => {
                self.turn(Turn::StopGently);
                Ok(Accepted::default())
            }
        }
    }

    fn surroundings(&mut self, name: &str) -> Option<Surroundings> {
        let spec = &self.units[*self.named(name).first()?].spec;
        Some(Surroundings { env: spec.env.clone(), cwd: spec.cwd.clone(), ..Surroundings::default() })
    }
}

/// How it ended, in words.
fn how(unit: &Unit, end: End) -> String {
    let sentence = ended(&unit.spec, end, 0);
    sentence.strip_suffix(" after 0.0 s").map_or(sentence.clone(), str::to_owned)
}

const fn state_of(state: &State) -> status::State {
    match state {
        State::New => status::State::Waiting,
        State::Starting { .. } | State::Executing { .. } => status::State::Starting,
        State::Running { .. } => status::State::Ready,
        State::Stopping { .. } | State::Killing { .. } => status::State::Stopping,
        State::Waiting { .. } => status::State::Retrying,
        State::Ended(Outcome::Succeeded) => status::State::Done,
        State::Ended(Outcome::Failed) => status::State::Failed,
        State::Ended(Outcome::Stopped) => status::State::Stopped,
    }
}
