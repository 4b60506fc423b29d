//! Services are kept apart by the kernel; what it does not refuse is said once, and watched.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::late::{self, Text};
use crate::ports::lease::Net;
use crate::ports::range;
use crate::sandbox::watch::{Watch, Watched};
use crate::sandbox::{Connect, Paths, Sandbox};
use crate::spawn;
use crate::state::{Fault, Ms, Stage, State};
use crate::status::usage;
use crate::sys::Errno;

use super::Supervisor;
use super::order::Part;
use super::ports::Held;
use super::spec::{PortSpec, Where, Wish};
use super::units::Id;

/// From readiness to a look at a unit, so that many are looked at together: each look reads the host's table of sockets.
const SOON: Ms = 300;
/// From there to another one, and then between two, where the kernel refuses no port.
const LATER: Ms = 2_000;
const OFTEN: Ms = 60_000;
/// Units that are looked at in one turn of the loop, about 0.1 ms each.
const MOST: usize = 64;

/// What was seen of services that listen, and when that is looked at again.
#[derive(Debug, Default)]
pub struct Apart {
    watch: Watch,
    /// Who has become ready, or was asked how it is.
    wanted: BTreeSet<Id>,
    /// When these are looked at.
    at: Option<Ms>,
    /// When all are, in turn: only where the kernel refuses no port.
    next: Option<Ms>,
    /// Whose turn it is then.
    turn: Id,
}

impl Apart {
    /// When units are looked at although nothing happens.
    pub fn deadline(&self) -> Option<Ms> {
        self.at.into_iter().chain(self.next).min()
    }

    fn want(&mut self, id: Id, at: Ms) {
        self.wanted.insert(id);
        self.at = Some(self.at.map_or(at, |earlier| earlier.min(at)));
    }
}

impl Supervisor {
    /// What a unit's sandbox lets through, with today's ports.
    pub(super) fn sandbox(&mut self, id: Id) -> Result<Sandbox, Fault> {
        let own = self.own_numbers(id);
        let spec = &self.parts[self.units[id].part].spec;
        let bind = spec.wiring().binds_declared.then(|| own.clone());
        let mut files = spec.wiring().paths.clone();
        if let Some(files) = &mut files {
            // It makes its sockets there.
            let unix = self.units[id].ports.iter().flatten().filter_map(Held::path);
            for folder in unix.filter_map(Path::parent) {
                if !files.may_write(folder) {
                    files.write.push(folder.to_owned());
                }
            }
        }
        let Some(wanted) = spec.wiring().connect.clone() else {
            return Ok(Sandbox { bind, connect: None, files });
        };
        // A service may always connect to its own ports.
        let mut connect = own;
        for one in wanted {
            match one {
                Connect::Number(number) => connect.push(number),
                Connect::Port(reference) => {
                    let text = Text(vec![late::Piece::Port(reference)]);
                    let found = self.fill(id, &text).map_err(|missing| self.missing(id, &missing))?;
                    // Of a unix socket it is a path, which is no matter of ports.
                    connect.extend(found.to_str().and_then(|text| text.parse::<u16>().ok()));
                }
            }
        }
        Ok(Sandbox { bind, connect: Some(connect), files })
    }

    /// The numbers of a unit's own TCP ports.
    pub(super) fn own_numbers(&self, id: Id) -> Vec<u16> {
        let unit = &self.units[id];
        let held = unit.ports.iter().chain(&self.parts[unit.part].sockets).flatten();
        held.filter_map(|held| match held {
            Held::Net(lease) if lease.net() == Net::Tcp => Some(lease.number()),
            _ => None,
        })
        .collect()
    }

    /// Says what of the services' sandboxes this kernel does not keep, and whether its numbers are safe.
    pub(super) fn tell_what_is_not_kept(&mut self) {
        let specs = || self.parts.iter().map(|members| &members.spec);
        let asked = Sandbox {
            bind: specs().any(|spec| spec.wiring().binds_declared).then(Vec::new),
            connect: specs().any(|spec| spec.wiring().connect.is_some()).then(Vec::new),
            files: specs().any(|spec| spec.wiring().paths.is_some()).then(Paths::default),
        };
        if let Some(text) = self.kernel.misses(&asked) {
            self.logs.say(&format!("not all of the services' sandboxes holds: {text}"));
        }
        let any = |port: &PortSpec| matches!(port.place, Where::Net { wish: Wish::Any, .. });
        if self.host.pool.inside && specs().any(|spec| spec.wiring().ports.iter().any(any)) {
            self.logs.say(
                "this host gives nearly all port numbers to outgoing connections (net.ipv4.ip_local_port_range), which may \
                 take a service's port while it does not run",
            );
        }
    }

    /// True if the kernel refuses a part's units something that their user may do.
    pub(super) fn is_limited(&self, part: Part) -> bool {
        let wiring = self.parts[part].spec.wiring();
        let network = wiring.binds_declared || wiring.connect.is_some();
        (network && self.kernel.has_network()) || (wiring.paths.is_some() && self.kernel.has_files())
    }

    /// Notes that a program may not have been executed because of its unit's sandbox. The file says what executes it: the
    /// kernel's answer is the same whether a script or its interpreter is refused.
    pub(super) fn note_refused(&mut self, id: Id, fault: Fault) {
        let unit = &self.units[id];
        let spec = &self.parts[unit.part].spec;
        let (true, Some(paths)) = (self.kernel.has_files(), &spec.wiring().paths) else { return };
        if fault != spawn::fault(Stage::Exec, Errno::EACCES) {
            return;
        }
        let path = &spec.program.path;
        let outside = interpreter(path).filter(|it| !paths.may_execute(it));
        let what = match outside {
            Some(it) => format!("its interpreter {}, and what that needs, has", it.display()),
            None => "what executes it, such as its loader, has".to_owned(),
        };
        let text = format!(
            "execute {}: {}; [{}s.{}.sandbox] limits its files: {what} to be in `read`",
            path.display(),
            Errno::EACCES.desc(),
            spec.kind(),
            spec.name
        );
        self.units[id].trouble = Some(text.into());
    }

    /// A unit has become ready.
    pub(super) fn watch_ready(&mut self, id: Id) {
        if !self.is_watched(id) {
            return;
        }
        let now = self.now();
        self.apart.want(id, now.saturating_add(SOON));
        if self.refuses_no_port() {
            let later = now.saturating_add(LATER);
            self.apart.next = Some(self.apart.next.map_or(later, |next| next.min(later)));
        }
    }

    /// A unit is asked for its health, which is a time to look at its sockets too.
    pub(super) fn watch_asked(&mut self, id: Id) {
        if self.refuses_no_port() && self.is_watched(id) {
            let at = self.now().saturating_add(SOON);
            self.apart.want(id, at);
        }
    }

    /// Looks at the units whose time, or whose turn, it is.
    pub(super) fn watch_due(&mut self) {
        let now = self.now();
        let due = |at: Option<Ms>| at.is_some_and(|at| at <= now);
        if due(self.apart.at) {
            let ids: Vec<Id> = self.apart.wanted.iter().take(MOST).copied().collect();
            self.apart.wanted.retain(|id| !ids.contains(id));
            self.apart.at = (!self.apart.wanted.is_empty()).then_some(now);
            self.look_at_sockets(&ids);
        }
        if due(self.apart.next) {
            self.watch_turn();
        }
    }

    fn watch_turn(&mut self) {
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
        ready && unit.leader.is_some() && self.parts[unit.part].spec.wiring().binds_declared
    }

    fn look_at_sockets(&mut self, ids: &[Id]) {
        let ids: Vec<Id> = ids.iter().copied().filter(|id| self.is_watched(*id)).collect();
        if ids.is_empty() {
            return;
        }
        let pids = |id: &Id| self.units[*id].leader.map(usage::descent).unwrap_or_default();
        let looked: Vec<_> = ids.iter().map(|id| (*id, pids(id), self.own_numbers(*id))).collect();
        let watched: Vec<Watched<'_>> = looked
            .iter()
            .map(|(id, pids, declared)| Watched { unit: &self.units[*id].name, pids, declared })
            .collect();
        let chosen = range::ephemeral();
        for stray in self.apart.watch.look(&watched, &(chosen.low..=chosen.high)) {
            let sentence = stray.to_string();
            self.logs.say(&sentence);
            self.publish(stray.unit, "port".to_owned(), sentence);
        }
    }
}

/// The interpreter that a script names in its first line (execve(2)); `None`: it is no script.
fn interpreter(path: &Path) -> Option<PathBuf> {
    /// The kernel reads as much.
    const LONGEST: u64 = 256;
    let mut head = Vec::new();
    File::open(path).ok()?.take(LONGEST).read_to_end(&mut head).ok()?;
    let line = head.split(|byte| *byte == b'\n').next()?.strip_prefix(b"#!")?.trim_ascii();
    let end = line.iter().position(u8::is_ascii_whitespace).unwrap_or(line.len());
    Some(OsStr::from_bytes(&line[..end]).into())
}
