//! Which ports this bundle has, told to other bundles and to its next start.

use std::io;

use kitbag_format::port::Protocol;
use nix::unistd::geteuid;

use crate::endpoint::Endpoint;
use crate::ports::assignments;
use crate::ports::lease::Net;
use crate::ports::registry::{Entry, Published, Registry};
use crate::state::Ms;
use crate::sys::{Errno, errno_of};

use super::Supervisor;
use super::ports::Held;
use super::spec::{PortSpec, Where};

/// How soon telling others is tried again, where it has failed.
const AGAIN: Ms = 10_000;

impl Supervisor {
    /// Writes down which ports this bundle has, for its next start and for others, if that has changed.
    pub(super) fn tell_ports(&mut self) {
        let now = self.now();
        let is_due = self.ports.again.is_some_and(|at| at <= now);
        let has_changed = std::mem::take(&mut self.ports.changed);
        if !has_changed && !is_due {
            return;
        }
        self.ports.again = None;
        if has_changed || self.ports.untold {
            self.tell_others(now);
        }
        if has_changed || self.ports.unwritten {
            self.write_down(now);
        }
    }

    /// Where that fails it is said once, and tried again if it may be another time.
    fn tell_others(&mut self, now: Ms) {
        let entry = self.entry();
        let told = self.ports.registry.as_mut().map_or(Ok(()), |registry| registry.publish(&entry));
        let is_news = !std::mem::replace(&mut self.ports.untold, told.is_err());
        let Err(error) = told else { return };
        // There is no folder, or this is more than others read.
        if ![Errno::ENOTDIR, Errno::EFBIG].contains(&errno_of(&error)) {
            self.ports.again = Some(now.saturating_add(AGAIN));
        }
        if is_news {
            self.say_unseen(&error);
        }
    }

    fn write_down(&mut self, now: Ms) {
        self.look_at_state();
        let Some(folder) = &self.ports.folder else { return };
        let written = self.ports.assignments.write(folder);
        let is_news = !std::mem::replace(&mut self.ports.unwritten, written.is_err());
        let Err(error) = written else { return };
        self.ports.again = Some(now.saturating_add(AGAIN));
        if is_news {
            let file = folder.join(assignments::NAME);
            self.logs.say(&format!("the next start may get other ports: {}: {error}", file.display()));
        }
    }

    /// When telling others is tried again.
    pub(super) const fn ports_deadline(&self) -> Option<Ms> {
        self.ports.again
    }

    /// The supervisor ends, and with it every lease: the file says so.
    pub(super) fn leave_ports(&mut self) {
        if let Some(folder) = &self.ports.folder
            && self.ports.assignments.free_all()
        {
            // What cannot be written now could not be written before, which was said.
            let _ = self.ports.assignments.write(folder);
        }
    }

    /// Tells others again, if what they were told is gone.
    pub(super) fn mend_registry(&mut self) {
        let entry = self.entry();
        if let Some(Err(error)) = self.ports.registry.as_mut().map(|registry| registry.mend(&entry)) {
            self.say_unseen(&error);
        }
    }

    /// Says where telling others has failed. Where there is no folder for that, the start has said so.
    fn say_unseen(&mut self, error: &io::Error) {
        if let Some(folder) = self.ports.registry.as_ref().and_then(Registry::folder) {
            let place = folder.display().to_string();
            self.logs.say(&format!("other bundles do not see this one's ports: {place}: {error}"));
        }
    }

    fn entry(&self) -> Entry {
        Entry {
            bundle: self.bundle.clone(),
            version: self.version.clone(),
            pid: std::process::id().cast_signed(),
            uid: geteuid().as_raw(),
            state: self.state_folder.to_string_lossy().into_owned(),
            since: u64::try_from(self.began.0 / 1000).unwrap_or(0),
            ports: self.published(),
        }
    }

    /// The ports of all units, those of several instances once.
    pub(super) fn published(&self) -> Vec<Published> {
        let mut ports = Vec::new();
        for members in &self.parts {
            for (at, spec) in members.spec.wiring().ports.iter().enumerate() {
                if let Some(Some(held)) = members.sockets.get(at) {
                    ports.push(self.described(&members.spec.name, &members.spec.name, spec, held));
                }
                for &id in &members.units {
                    if let Some(Some(held)) = self.units[id].ports.get(at) {
                        ports.push(self.described(&self.units[id].name, &members.spec.name, spec, held));
                    }
                }
            }
        }
        ports
    }

    fn described(&self, unit: &str, service: &str, spec: &PortSpec, held: &Held) -> Published {
        let protocol = match &spec.place {
            Where::Net { net: Net::Tcp, .. } => Protocol::Tcp,
            Where::Net { net: Net::Udp, .. } => Protocol::Udp,
            Where::Unix => Protocol::Unix,
        };
        let (address, number, path) = match held.endpoint(spec, &self.host) {
            Endpoint::Network(address) => (Some(address.ip()), address.port(), String::new()),
            Endpoint::Unix(path) => (None, 0, path.to_string_lossy().into_owned()),
        };
        Published {
            unit: unit.to_owned(),
            service: service.to_owned(),
            port: spec.name.clone(),
            protocol,
            address,
            number,
            path,
            socket: spec.socket.is_some(),
        }
    }
}
