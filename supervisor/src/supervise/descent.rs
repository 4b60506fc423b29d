//! All that descends from a unit, wherever it has gone, and the proof at the end of a run that none of it is left.
//!
//! Whoever loses its parent becomes our child (prctl(2), `PR_SET_CHILD_SUBREAPER`). So when a unit's leader is reaped, each
//! process that descends from it has one of our children above it, or is one; where no child of ours is the unit's, nothing
//! is. Children that are nobody's leader are known by their mark ([`crate::mark`]), or by their session, which is the
//! leader's, or by their cgroup where it has one. They are listed once in a turn of the loop, for all units that are being
//! ended, and not at all while none is.
//!
//! What a unit has left behind is asked to end when the unit is, or when it comes to us after that, and is killed
//! when the unit is. As it may fork faster than it is killed, it is stopped first.

use kitbag_format::sort;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use crate::mark::Marks;
use crate::state::{Event, State};
use crate::status::usage;
use crate::sys::wait;
use crate::sys::{self, Errno, Pid, Resource, signal, socket};

use super::children::signal_groups;
use super::units::{Id, Whose};
use super::{Supervisor, words};

/// What carries the marks.
const MARK: Resource = libc::RLIMIT_LOCKS;
/// Passes over all processes in order to stop what forks on and on. The second or third finds nobody, most of the time, and
/// what the last one leaves is found in the next turn. No time is set: what it starves holds it up until it is stopped.
const PASSES: usize = 16;

/// A child that came to us when its parent ended.
#[derive(Debug, Clone, Copy)]
struct Orphan {
    /// Whose it is; `None`: nobody knows, or nobody waits for it any more.
    unit: Option<Id>,
    told: Told,
}

/// What an orphan was told to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Told {
    Nothing,
    End,
    Die,
}

/// What is known of units' descents.
#[derive(Debug, Default)]
pub struct Descent {
    marks: Option<Marks>,
    /// Units whose run is being ended.
    ending: BTreeSet<Id>,
    /// The children that came to us, as far as they were looked at.
    orphans: BTreeMap<Pid, Orphan>,
    /// Groups of orphans that were asked to end, each with its unit. Who is asked twice may take it for a threat.
    asked: BTreeSet<(Id, Pid)>,
    /// Something may have changed for a unit that is being ended.
    due: bool,
}

impl Descent {
    /// Of a supervisor that has not started anything.
    pub fn new() -> Self {
        let mut random = [0; 8];
        let marks = socket::random(&mut random).ok().and_then(|()| {
            let hard = sys::limit_of(0, MARK).ok()?.1;
            Marks::new(u64::from_ne_bytes(random), hard)
        });
        Self { marks, ..Self::default() }
    }

    /// The marks, for a successor.
    pub const fn marks(&self) -> Option<Marks> {
        self.marks
    }

    /// What marks a process as this unit's.
    pub fn mark(&self, unit: Id) -> Option<libc::rlimit> {
        let (rlim_cur, rlim_max) = self.marks?.of(unit);
        Some(libc::rlimit { rlim_cur, rlim_max })
    }

    /// A child was reaped: if it was the last one of a unit that is being ended, so is that unit.
    pub fn reaped(&mut self, pid: Pid) {
        self.orphans.remove(&pid);
        self.due |= !self.ending.is_empty();
    }

    /// A unit went from one state to another.
    pub fn moved(&mut self, id: Id, before: &State, after: &State) {
        let is_ending = |state: &State| matches!(state, State::Stopping { .. } | State::Killing { .. });
        if is_ending(after) {
            self.ending.insert(id);
            self.due = true;
        } else if is_ending(before) {
            self.ending.remove(&id);
            self.asked.retain(|(unit, _)| *unit != id);
            // Those that did not even end after SIGKILL.
            for orphan in self.orphans.values_mut().filter(|orphan| orphan.unit == Some(id)) {
                orphan.unit = None;
            }
        }
    }

    /// The unit that a process is marked as.
    fn marked(&self, pid: Pid) -> Option<Id> {
        self.marks?.unit(sys::limit_of(pid, MARK).ok()?)
    }

    /// The same, of a child that may have another user by now.
    fn marked_child(&self, pid: Pid) -> Option<Id> {
        match sys::limit_of(pid, MARK) {
            Err(Errno::EPERM) => self.marks?.unit(told_limit(pid)?),
            limit => self.marks?.unit(limit.ok()?),
        }
    }
}

impl Supervisor {
    /// True if a unit's descent has to be looked at.
    pub(super) fn is_descent_due(&self) -> bool {
        self.descent.due
    }

    /// Asks what units that are being ended have left behind to end, too, or kills it; and tells those of whom nothing
    /// is left.
    pub(super) fn look_at_descent(&mut self) {
        self.descent.due = false;
        if self.descent.ending.is_empty() {
            return;
        }
        let open = match self.list.told() {
            Some(children) => self.look_at_children(children),
            None => self.open_groups(),
        };
        for id in self.descent.ending.clone() {
            if self.units[id].leader.is_none() && !open.contains(&id) {
                self.feed(id, Event::GroupGone);
            }
        }
    }

    /// The units that have a child of ours left in their group: where nothing better is known.
    fn open_groups(&self) -> BTreeSet<Id> {
        let is_open =
            |id: &Id| self.units[*id].service.state.run().is_some_and(|run| wait::has_children(run.group));
        sort::set(self.descent.ending.iter().copied().filter(is_open))
    }

    // --- MAINPID= ---

    /// A unit says which of its processes counts (sd_notify(3)). Until its leader has ended, that one does: it is the
    /// other one's parent, or grandparent, and knows more about it.
    pub(super) fn name_main(&mut self, id: Id, pid: Pid) {
        let unit = &mut self.units[id];
        // Said once in a run, whatever else it names.
        if unit.main.replace(pid).is_none() && !self.is_of(id, pid) {
            let kind = self.parts[self.units[id].part].spec.kind();
            let name = &self.units[id].name;
            self.logs
                .say(&format!("{kind} {name} says that its main process is {pid}, which is none of its own"));
        }
    }

    /// True if a process descends from the unit, as far as its mark and its session tell.
    fn is_of(&self, id: Id, pid: Pid) -> bool {
        match self.descent.marked_child(pid) {
            Some(unit) => unit == id,
            None => wait::session_of(pid) == self.units[id].service.state.run().map(|run| run.group),
        }
    }

    /// A unit's leader has ended. If it has named another process, which has become our child by now, that one takes its
    /// place, and the leader is reaped.
    pub(super) fn follow(&mut self, id: Id, leader: Pid) -> bool {
        let Some(main) = self.units[id].main.filter(|main| *main != leader) else { return false };
        let fits = wait::is_child(main) && self.pids.get(main).is_none() && self.is_of(id, main);
        let Some(group) = wait::group_of(main).filter(|_| fits && !self.descent.ending.contains(&id)) else {
            return false;
        };
        wait::reap(leader);
        self.pids.remove(leader);
        self.pids.insert(main, Whose::Leader(id));
        self.descent.orphans.remove(&main);
        self.units[id].leader = Some(main);
        self.units[id].start = usage::start_of_process(group);
        self.feed(id, Event::Followed(group));
        true
    }

    // --- What is left ---

    /// A unit's run is over. If its leader is there still, it has not even ended after SIGKILL: it is nobody's from now on,
    /// and its end is not that of the next run.
    pub(super) fn leave_behind(&mut self, id: Id) {
        if let Some(leader) = self.units[id].leader.take() {
            self.pids.remove(leader);
            self.descent.orphans.insert(leader, Orphan { unit: None, told: Told::Die });
        }
    }

    /// Does what is to be done about our children, and returns the units that have some.
    fn look_at_children(&mut self, children: Vec<Pid>) -> BTreeSet<Id> {
        let (mut open, mut doomed) = (BTreeSet::new(), Vec::new());
        let mut asked = BTreeMap::<Id, Vec<Pid>>::new();
        for pid in children {
            if self.pids.get(pid).is_some() {
                continue;
            }
            let Some(orphan) = self.orphan(pid) else { continue };
            let Some(id) = orphan.unit.filter(|id| self.descent.ending.contains(id)) else { continue };
            open.insert(id);
            let told = match self.units[id].service.state {
                State::Killing { .. } => Told::Die,
                _ => Told::End,
            };
            if orphan.told >= told {
                continue;
            }
            self.descent.orphans.insert(pid, Orphan { told, ..orphan });
            match told {
                Told::Die => doomed.push(pid),
                _ => asked.entry(id).or_default().push(pid),
            }
        }
        for (id, orphans) in asked {
            self.ask_orphans(id, &orphans);
        }
        if !doomed.is_empty() {
            self.kill_orphans(&doomed);
            let units = doomed.iter().filter_map(|pid| self.descent.orphans.get(pid)?.unit);
            for id in sort::set(units) {
                self.feed(id, Event::KilledMore);
            }
        }
        open
    }

    /// What is known of a child that is nobody's leader; `None`: it is no unit's, for certain.
    fn orphan(&mut self, pid: Pid) -> Option<Orphan> {
        if let Some(orphan) = self.descent.orphans.get(&pid) {
            return Some(*orphan);
        }
        if self.strangers.contains(&pid) || self.logs.children().any(|child| child == pid) {
            return None;
        }
        let unit = self.descent.marked_child(pid).filter(|id| *id < self.units.len());
        let unit = unit.or_else(|| self.unit_of_cgroup(pid)).or_else(|| self.unit_of_session(pid));
        let orphan = Orphan { unit, told: Told::Nothing };
        self.descent.orphans.insert(pid, orphan);
        Some(orphan)
    }

    /// The unit whose cgroup a child is in: a way out of it takes rights that few have.
    fn unit_of_cgroup(&self, pid: Pid) -> Option<Id> {
        let name = self.cgroups.as_ref()?.unit_of(pid)?;
        self.units.iter().position(|unit| unit.name == name)
    }

    /// The unit whose leader has made the session that a child is in. While it is, the session's number is not given to
    /// another.
    fn unit_of_session(&self, pid: Pid) -> Option<Id> {
        let session = wait::session_of(pid)?;
        self.units.iter().position(|unit| unit.service.state.run().is_some_and(|run| run.group == session))
    }

    /// Asks orphans to end, and the groups that they are in: all of each descends from the unit, as its session does. The
    /// unit's own group was asked before.
    fn ask_orphans(&mut self, id: Id, orphans: &[Pid]) {
        let unit = &self.units[id];
        let spec = &self.parts[unit.part].spec;
        let own = unit.service.state.run().map(|run| run.group);
        let others: Vec<_> = orphans
            .iter()
            .map(|pid| (*pid, wait::group_of(*pid)))
            .filter(|(_, group)| *group != own)
            .collect();
        if others.is_empty() {
            return;
        }
        if unit.leader.is_none() && !self.descent.asked.iter().any(|(asked, _)| *asked == id) {
            let (kind, count) = (spec.kind(), words::processes(others.len()));
            let signal = words::signal(spec.stop_signal);
            self.logs.say(&format!("{kind} {} has left {count} behind; sending {signal}", unit.name));
        }
        for (pid, group) in others {
            let group = group.filter(|group| *group > 1 && *group != wait::own_group());
            if !self.descent.asked.insert((id, group.unwrap_or(pid))) {
                continue;
            }
            for number in [spec.stop_signal, libc::SIGCONT] {
                let _ = match group {
                    Some(group) => signal::send_group(group, number),
                    None => signal::send(pid, number),
                };
            }
        }
    }

    /// Kills orphans, and all that is marked as theirs whose run gets SIGKILL.
    fn kill_orphans(&self, doomed: &[Pid]) {
        for &id in &self.descent.ending {
            if let (State::Killing { .. }, Some(cgroup)) =
                (self.units[id].service.state, &self.units[id].cgroup)
            {
                // What is in it is gone with one write; what has left it, or all where there is none, is not.
                let _ = cgroup.kill();
            }
        }
        let is_doomed = |id: Id| {
            let state = self.units.get(id).map(|unit| unit.service.state);
            matches!(state, Some(State::Killing { .. }))
        };
        kill_all(doomed, |pid| self.descent.marked(pid).is_some_and(is_doomed));
    }

    /// Kills children that nobody knows, and all that is marked as a unit's.
    pub(super) fn kill_left(&self, left: &[Pid]) {
        kill_all(left, |pid| self.descent.marked(pid).is_some());
        signal_groups(left, &[libc::SIGKILL]);
    }
}

/// Kills these children of ours, and every process that is wanted. Each is stopped first, until no other is found: who is
/// stopped does not fork, so that fewer are found each time, however fast they were. A process that is being forked gets the
/// next number, or one further on, so that one pass, in rising order, finds most of what is born meanwhile.
fn kill_all(children: &[Pid], is_wanted: impl Fn(Pid) -> bool) {
    let (mut known, mut others) = (sort::set(children.iter().copied()), Vec::new());
    for child in children {
        let _ = signal::send(*child, libc::SIGSTOP);
    }
    let own = std::process::id().cast_signed();
    for _ in 0..PASSES {
        let before = others.len();
        for pid in processes().filter(|pid| *pid > 1 && *pid != own) {
            if !known.contains(&pid) && signal::send_if(pid, libc::SIGSTOP, &is_wanted) {
                known.insert(pid);
                others.push(pid);
            }
        }
        if others.len() == before {
            break;
        }
    }
    // The youngest first, most of them: a group that loses its last parent outside of it is continued (_exit(2)).
    for pid in others.iter().rev() {
        signal::send_if(*pid, libc::SIGKILL, &is_wanted);
    }
    for child in children {
        let _ = signal::send(*child, libc::SIGKILL);
    }
}

/// All processes, in rising order; none where there is no /proc.
fn processes() -> impl Iterator<Item = Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The limit that carries marks, as proc_pid_limits(5) tells it of every user's processes.
fn told_limit(pid: Pid) -> Option<(u64, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Max file locks"))?;
    let mut values = line.split_ascii_whitespace().map(|word| word.parse().unwrap_or(u64::MAX));
    Some((values.next()?, values.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_and_prlimit_tell_the_same() {
        let own = std::process::id().cast_signed();
        assert_eq!(told_limit(own), sys::limit_of(own, MARK).ok());
        assert!(processes().any(|pid| pid == own));
    }
}
