//! Services are kept apart by the kernel; what it does not refuse is said once, and watched.

use crate::ports::range;
use crate::sandbox::watch::{Watch, Watched};
use crate::sandbox::{Paths, Sandbox};
use crate::state::{Ms, State};
use crate::status::usage;

use super::Supervisor;
use super::units::Id;

/// How soon after a service is ready it is looked at once more, and how often then, where the kernel refuses no port.
const SOON: Ms = 2_000;
const OFTEN: Ms = 60_000;
/// Units that are looked at in one turn of the loop, about 0.1 ms each.
const MOST: usize = 64;

/// What was seen of services that listen, and when that is looked at again.
#[derive(Debug, Default)]
pub struct Apart {
    watch: Watch,
    /// Only where the kernel refuses no port.
    next: Option<Ms>,
    /// Whose turn it is then.
    turn: Id,
}

impl Apart {
    /// When units are looked at although nothing happens.
    pub const fn deadline(&self) -> Option<Ms> {
        self.next
    }
}

impl Supervisor {
    /// Says what of the services' sandboxes this kernel does not keep.
    pub(super) fn tell_what_is_not_kept(&mut self) {
        let specs = || self.parts.iter().map(|members| &members.spec);
        let asked = Sandbox {
            bind: specs().any(|spec| spec.binds_declared).then(Vec::new),
            connect: specs().any(|spec| spec.connect.is_some()).then(Vec::new),
            files: specs().any(|spec| spec.paths.is_some()).then(Paths::default),
        };
        if let Some(text) = self.kernel.misses(&asked) {
            self.logs.say(&format!("not all of the services' sandboxes holds: {text}"));
        }
    }

    /// A unit has become ready.
    pub(super) fn watch_ready(&mut self, id: Id) {
        self.look_at_sockets(&[id]);
        if self.refuses_no_port() && self.is_watched(id) {
            let soon = self.now().saturating_add(SOON);
            self.apart.next = Some(self.apart.next.map_or(soon, |next| next.min(soon)));
        }
    }

    /// A unit is asked for its health, which is a time to look at its sockets too.
    pub(super) fn watch_asked(&mut self, id: Id) {
        if self.refuses_no_port() {
            self.look_at_sockets(&[id]);
        }
    }

    /// Looks at the units whose turn it is.
    pub(super) fn watch_turn(&mut self) {
        let all: Vec<Id> = (0..self.units.len()).filter(|id| self.is_watched(*id)).collect();
        let first = all.partition_point(|id| *id < self.apart.turn);
        let turn: Vec<Id> = all[first..].iter().chain(&all[..first]).take(MOST).copied().collect();
        self.apart.turn = turn.last().map_or(0, |last| last + 1);
        self.apart.next = (!turn.is_empty()).then(|| self.now().saturating_add(OFTEN));
        self.look_at_sockets(&turn);
    }

    /// Looks at all, for somebody who asks for ports.
    pub(super) fn watch_some(&mut self) {
        let all: Vec<Id> = (0..self.units.len()).take(MOST).collect();
        self.look_at_sockets(&all);
    }

    fn refuses_no_port(&self) -> bool {
        !self.kernel.has_network()
    }

    /// True for a unit that is ready and may bind what it declares.
    fn is_watched(&self, id: Id) -> bool {
        let unit = &self.units[id];
        let ready = matches!(unit.service.state, State::Ready { .. });
        ready && unit.leader.is_some() && self.parts[unit.part].spec.binds_declared
    }

    fn look_at_sockets(&mut self, ids: &[Id]) {
        let ids: Vec<Id> = ids.iter().copied().filter(|id| self.is_watched(*id)).collect();
        if ids.is_empty() {
            return;
        }
        let chosen = range::ephemeral();
        for id in ids {
            let pids = self.units[id].leader.map(usage::descent).unwrap_or_default();
            let declared = self.own_numbers(id);
            let unit = &self.units[id].name;
            let units = [Watched { unit, pids: &pids, declared: &declared }];
            for stray in self.apart.watch.look(&units, &(chosen.low..=chosen.high)) {
                self.logs.say(&stray.to_string());
            }
        }
    }
}
