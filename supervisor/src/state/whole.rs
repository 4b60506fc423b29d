//! What the bundle as a whole does next, beside its services.

use serde::{Deserialize, Serialize};

use super::{DEATH_DEADLINE, DRAIN_DEADLINE, Ms, SAME_REQUEST};

/// Where the bundle stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
    /// More of what services left behind was found, and has got SIGKILL.
    KilledMore,
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
    /// [`super::Event::Stop`] to every service.
    StopAll,
    /// [`super::Event::Kill`] to every service.
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

            (Phase::Killing { .. }, Turn::KilledMore) => (self.kill(now).0, None),
            (
                Phase::Serving
                | Phase::Stopping { .. }
                | Phase::Asking { .. }
                | Phase::Draining { .. }
                | Phase::Over,
                Turn::KilledMore,
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
