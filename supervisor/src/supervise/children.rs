//! Signals to us, and our children: who has ended, and what services left behind.

use std::collections::BTreeSet;
use std::os::fd::AsFd;

use crate::state::{End, Event, Phase, State, Turn};
use crate::sys::wait::{self, Children};
use crate::sys::{Pid, signal};

use super::units::{Id, Whose};
use super::{Supervisor, words};

/// Ended children reaped before other events get their turn.
const REAP_BATCH: usize = 4096;

impl Supervisor {
    pub(super) fn take_signals(&mut self) {
        let mut turns = Vec::new();
        for number in signal::pending(self.signals.as_fd()) {
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
                self.logs.say(&format!("stopping {} (SIG{name})", self.bundle));
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
            self.child_ended(pid, end);
            reaped = true;
        }
        if reaped {
            self.sweep();
        }
    }

    /// A child has ended and is not reaped: until then its id, and its group's, is its own.
    fn child_ended(&mut self, pid: Pid, end: End) {
        let whose = self.pids.get(pid);
        match whose {
            Some(Whose::Leader(id)) => {
                self.hear(id);
                if self.follow(id, pid) {
                    return;
                }
                self.logs.ended(id, self.now());
                self.note_memory(id, end);
                self.feed(id, Event::Exited(end));
                wait::reap(pid);
                self.pids.remove(pid);
                self.units[id].leader = None;
                self.descent.reaped(pid);
            }
            Some(Whose::Helper(id)) => {
                // What it may have started, too.
                let _ = signal::send_group(pid, libc::SIGKILL);
                wait::reap(pid);
                self.pids.remove(pid);
                self.helper_ended(id, pid, end);
            }
            None => {
                self.logs.child_ended(pid, end == End::Status(0), self.now());
                wait::reap(pid);
                self.strangers.retain(|stranger| *stranger != pid);
                self.asked.remove(&pid);
                self.descent.reaped(pid);
            }
        }
    }

    /// Finds out whether a unit's end, unless it is a good one or was asked for, comes of its memory limit.
    fn note_memory(&mut self, id: Id, end: End) {
        let unit = &mut self.units[id];
        let is_asked = matches!(unit.service.state, State::Stopping { .. } | State::Killing { .. });
        let is_wanted = is_asked || self.parts[unit.part].spec.rules.is_good(end);
        let cgroup = unit.cgroup.as_ref().filter(|_| !is_wanted);
        unit.out_of_memory = cgroup.is_some_and(|cgroup| cgroup.has_reached_memory(unit.short_of_memory));
    }

    // --- What services left behind ---

    pub(super) fn none_left(&self) -> bool {
        match wait::look() {
            Children::None => true,
            _ if self.strangers.is_empty() && self.logs.children().next().is_none() => false,
            _ => self.left().is_empty(),
        }
    }

    /// Children of ours that services left behind.
    pub(super) fn left(&self) -> Vec<Pid> {
        let mut children = self.list.children();
        children
            .retain(|pid| !self.strangers.contains(pid) && !self.logs.children().any(|child| child == *pid));
        children
    }

    pub(super) fn sweep_saying(&mut self, what: &str) {
        let left = self.left();
        if !left.is_empty() {
            let count = words::processes(left.len());
            self.logs.say(&format!("{count} left behind by services; {what}"));
        }
        self.sweep();
    }

    /// Signals what services left behind, each process once. Its own children come to us when it ends: the sweep goes
    /// on with each that is reaped, until none is left.
    fn sweep(&mut self) {
        if !matches!(self.whole.phase, Phase::Asking { .. } | Phase::Killing { .. }) {
            return;
        }
        let mut new = self.left();
        new.retain(|pid| self.asked.insert(*pid));
        match self.whole.phase {
            Phase::Asking { .. } => signal_groups(&new, &[libc::SIGTERM, libc::SIGCONT]),
            _ if !new.is_empty() => {
                self.kill_left(&new);
                self.turn(Turn::KilledMore);
            }
            _ => {}
        }
    }
}

/// Signals unreaped children, and the groups that they are in, which are not ours. Each group is signalled once: that
/// alone takes a time that grows with its members.
pub(super) fn signal_groups(children: &[Pid], numbers: &[i32]) {
    let (own, mut groups) = (wait::own_group(), BTreeSet::new());
    for pid in children {
        let group = wait::group_of(*pid).filter(|group| *group > 1 && *group != own);
        if group.is_some_and(|group| !groups.insert(group)) {
            continue;
        }
        for number in numbers {
            let _ = match group {
                Some(group) => signal::send_group(group, *number),
                None => signal::send(*pid, *number),
            };
        }
    }
}
