//! Ports of units: taken before they start, lent to their processes, kept in between.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use kitbag_format::port::Part as PartOf;
use nix::unistd::{getegid, geteuid};

use crate::endpoint::Endpoint;
use crate::ports::assignments::Assignments;
use crate::ports::holder;
use crate::ports::lease::{Host, Kind, Lease, Search, Want};
use crate::ports::looked::Looked;
use crate::ports::range::Round;
use crate::ports::refused::Refused;
use crate::ports::registry::Registry;
use crate::ports::socket_folder::{SocketFolder, Wanted};
use crate::ports::unix::{self, UnixLease};
use crate::ports::watch::Watch;
use crate::snapshot;
use crate::spawn;
use crate::state::{Fault, Ms, Stage, State};
use crate::status::usage;
use crate::sys::Errno;

use super::order::Part;
use super::outside::Outer;
use super::spec::{PortSpec, Where, Wish};
use super::units::Id;
use super::{Supervisor, unit_name};

/// A port that is ours.
#[derive(Debug)]
pub enum Held {
    /// A number.
    Net(Lease),
    /// A path.
    Unix(UnixLease),
}

/// What is known of ports beside those that units and services hold.
#[derive(Debug, Default)]
pub struct Ports {
    /// Where this bundle is known on the host; `None`: nowhere.
    pub registry: Option<Registry>,
    /// What had which number the last time.
    pub assignments: Assignments,
    /// The supervisor's own folder, where that is written down; `None`: nowhere.
    pub folder: Option<PathBuf>,
    /// Where unix sockets lie; known when the first ports are taken.
    sockets: Option<SocketFolder>,
    /// Ports of other bundles that texts name: where they are, or why that is not known.
    pub(super) outer: Vec<(Outer, Result<Endpoint, String>)>,
    /// Tells that the registry has changed; there is one where ports of other bundles are named.
    pub(super) watch: Option<Watch>,
    /// Who has numbers that are asked for in vain.
    looked: Looked,
    /// There is something to tell.
    pub(super) changed: bool,
    /// Others could not be told the last time.
    pub(super) untold: bool,
    /// It could not be written down the last time.
    pub(super) unwritten: bool,
    /// When what has failed is tried again.
    pub(super) again: Option<Ms>,
}

impl Ports {
    /// What is known before any port is taken.
    pub fn new(registry: Registry, folder: PathBuf) -> Self {
        let assignments = Assignments::read(&folder);
        Self { registry: Some(registry), assignments, folder: Some(folder), ..Self::default() }
    }

    /// Where unix sockets lie: for services of several users, beside what is published.
    fn socket_folder(&self, several_users: bool, bundle: &str, state: &Path) -> SocketFolder {
        match self.registry.as_ref().and_then(Registry::folder).filter(|_| several_users) {
            Some(folder) => SocketFolder::shared(folder, bundle, state),
            None => SocketFolder::private(self.folder.as_deref().unwrap_or(Path::new(""))),
        }
    }
}

impl Held {
    /// Where it is.
    pub(super) fn endpoint(&self, spec: &PortSpec, host: &Host) -> Endpoint {
        match (self, &spec.place) {
            (Self::Net(lease), Where::Net { listen, .. }) => {
                Endpoint::Network(SocketAddr::new(listen.address(host), lease.number()))
            }
            (Self::Net(lease), Where::Unix) => Endpoint::Network(SocketAddr::from(([0; 4], lease.number()))),
            (Self::Unix(lease), _) => Endpoint::Unix(lease.path().to_owned()),
        }
    }

    /// What a successor has to know of it.
    pub(super) fn remember(&self) -> snapshot::Port {
        match self {
            Self::Net(lease) => {
                let [name, socket] = lease.descriptors();
                snapshot::Port { number: Some(lease.number()), name, socket, is_lent: lease.is_lent() }
            }
            Self::Unix(lease) => snapshot::Port {
                number: None,
                name: None,
                socket: lease.listener().map(|socket| socket.as_raw_fd()),
                is_lent: false,
            },
        }
    }

    /// Where a unix socket is.
    pub(super) fn path(&self) -> Option<&Path> {
        match self {
            Self::Net(_) => None,
            Self::Unix(lease) => Some(lease.path()),
        }
    }

    pub(super) fn listener(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Net(lease) => lease.listener(),
            Self::Unix(lease) => lease.listener(),
        }
    }

    fn lend(&mut self) -> Result<(), Refused> {
        match self {
            Self::Net(lease) => lease.lend(),
            Self::Unix(lease) => lease.lend(),
        }
    }

    fn take_back(&mut self) -> Result<(), Refused> {
        match self {
            Self::Net(lease) => lease.take_back(),
            Self::Unix(lease) => lease.take_back(),
        }
    }

    fn listen(&mut self) -> Result<(), Refused> {
        match self {
            Self::Net(lease) => lease.listen(),
            Self::Unix(lease) => lease.listen(),
        }
    }

    fn unlisten(&mut self) -> Result<(), Refused> {
        match self {
            Self::Net(lease) => lease.unlisten(),
            Self::Unix(lease) => lease.unlisten(),
        }
    }
}

impl Supervisor {
    // --- Taking ---

    /// Takes the ports of all units before the first one starts, so that each finds the others'. Fixed numbers
    /// come first, since a service that may have any number must not get another one's.
    pub(super) fn begin_ports(&mut self) {
        let several_users = (0..self.parts.len()).any(|part| self.owner(part).is_some());
        self.ports.sockets = Some(self.ports.socket_folder(several_users, &self.bundle, &self.state_folder));
        let mut round = Round::default();
        for fixed in [true, false] {
            for id in 0..self.units.len() {
                for at in 0..self.parts[self.units[id].part].spec.wiring().ports.len() {
                    if self.is_fixed(id, at) == fixed {
                        // Its start tries again, and tells why not.
                        let _ = self.take_port(id, at, &mut round);
                    }
                }
            }
        }
        self.look_outside();
        self.tell_ports();
    }

    /// The user and group of a part, if those are not the supervisor's.
    fn owner(&self, part: Part) -> Option<(u32, u32)> {
        let ids = self.parts[part].spec.setup.ids.as_ref().map(|ids| (ids.uid, ids.gid));
        ids.filter(|ids| *ids != (geteuid().as_raw(), getegid().as_raw()))
    }

    fn is_fixed(&self, id: Id, at: usize) -> bool {
        let spec = &self.parts[self.units[id].part].spec.wiring().ports[at];
        matches!(spec.place, Where::Net { wish: Wish::Fixed(_), .. })
    }

    /// Takes those of a unit's ports that it does not have yet, and listens where it inherits a socket.
    pub(super) fn take_ports(&mut self, id: Id) -> Result<(), Fault> {
        let part = self.units[id].part;
        if self.parts[part].spec.wiring().ports.is_empty() {
            return Ok(());
        }
        let mut round = Round::default();
        for at in 0..self.parts[part].spec.wiring().ports.len() {
            let taken = self.take_port(id, at, &mut round);
            let listens = taken.and_then(|()| match &mut self.parts[part].sockets.get_mut(at) {
                Some(Some(socket)) => socket.listen(),
                _ => Ok(()),
            });
            if let Err(refused) = listens {
                let refused = self.explained(refused);
                let name = &self.parts[part].spec.wiring().ports[at].name;
                return Err(self.trouble(
                    id,
                    Stage::Ports,
                    Errno::EADDRINUSE,
                    format!("port {name}: {refused}"),
                ));
            }
        }
        Ok(())
    }

    fn take_port(&mut self, id: Id, at: usize, round: &mut Round) -> Result<(), Refused> {
        let unit = &self.units[id];
        let (part, instance) = (unit.part, unit.instance);
        let spec = &self.parts[part].spec;
        let count = spec.wiring().ports.len();
        let port = &spec.wiring().ports[at];
        let shared = port.socket.is_some();
        let held = if shared { &mut self.parts[part].sockets } else { &mut self.units[id].ports };
        held.resize_with(count, || None);
        if held[at].is_some() {
            return Ok(());
        }
        let spec = &self.parts[part].spec;
        let (port, unit) =
            (&spec.wiring().ports[at], if shared { spec.name.clone() } else { unit_name(spec, instance) });
        let remembered =
            port.place.net().and_then(|net| self.ports.assignments.number(&unit, &port.name, net));
        let held = self.made(part, port, &unit, remembered, round)?;
        let endpoint = held.endpoint(port, &self.host);
        let news = match &held {
            Held::Net(lease) => (remembered != Some(lease.number()))
                .then(|| format!("{} is {}/{}", port.name, endpoint.text(PartOf::Listen), lease.net())),
            Held::Unix(_) => None,
        };
        match &held {
            Held::Net(lease) => {
                self.ports.looked.forget(lease.number(), lease.net());
                self.ports.assignments.lease(&unit, &port.name, lease.net(), lease.number());
            }
            Held::Unix(lease) => self.ports.assignments.place(&unit, &port.name, lease.path()),
        }
        let place = if shared { &mut self.parts[part].sockets } else { &mut self.units[id].ports };
        place[at] = Some(held);
        self.ports.changed = true;
        if let Some(news) = news {
            self.publish(unit, "port".to_owned(), news);
        }
        Ok(())
    }

    fn made(
        &self,
        part: Part,
        port: &PortSpec,
        unit: &str,
        remembered: Option<u16>,
        round: &mut Round,
    ) -> Result<Held, Refused> {
        let Where::Net { net, listen, wish, hold } = port.place else {
            return self.made_unix(part, port, unit).map(Held::Unix);
        };
        let kind = match port.socket {
            Some(socket) => Kind::Inherited { backlog: socket.backlog },
            None => Kind::Own { hold },
        };
        let want = Want { net, listen, kind };
        let (preferred, range) = match wish {
            Wish::Fixed(number) => return Lease::take(&self.host, number, want).map(Held::Net),
            Wish::Any => (None, self.host.pool.range),
            Wish::Range(preferred, range) => (preferred, range),
        };
        let seed = format!("{}\0{}\0{unit}\0{}", self.bundle, self.state_folder.display(), port.name);
        let search = Search { preferred, remembered, range, seed: &seed };
        Lease::any(&self.host, &search, want, round).map(Held::Net)
    }

    fn made_unix(&self, part: Part, port: &PortSpec, unit: &str) -> Result<UnixLease, Refused> {
        let (service, owner) = (self.parts[part].spec.name.as_str(), self.owner(part));
        let wanted = Wanted { service, owner, is_inherited: port.socket.is_some() };
        let folder = self.ports.sockets.as_ref().map(|folder| folder.of(wanted)).transpose()?;
        let path = unix::path(&folder.unwrap_or_default(), unit, &port.name);
        UnixLease::take(path, port.socket, owner)
    }

    /// The same, with who it is that has the number.
    #[inline(never)] // One copy: it is large, and rare.
    fn explained(&mut self, refused: Refused) -> String {
        let now = self.now();
        let Ports { looked, registry, .. } = &mut self.ports;
        looked.explained(refused, now, |number, net| holder::of(number, net, registry.as_ref()))
    }

    /// Notes why a unit cannot be started.
    pub(super) fn trouble(&mut self, id: Id, stage: Stage, errno: Errno, why: String) -> Fault {
        self.units[id].trouble = Some(why.into());
        spawn::fault(stage, errno)
    }

    // --- While a unit runs, and after ---

    /// Lets a unit's program bind its ports; right before it is executed.
    pub(super) fn lend_ports(&mut self, id: Id) {
        for held in self.units[id].ports.iter_mut().flatten() {
            // Where that fails, so will the program, and say so.
            let _ = held.lend();
        }
    }

    /// Keeps others off a unit's ports again: nothing of it runs.
    pub(super) fn take_ports_back(&mut self, id: Id) {
        for at in 0..self.units[id].ports.len() {
            let Some(held) = &mut self.units[id].ports[at] else { continue };
            if let Err(refused) = held.take_back() {
                let refused = self.explained(refused);
                let unit = &self.units[id];
                let port = &self.parts[unit.part].spec.wiring().ports[at].name;
                self.logs.say(&format!("port {port} of {} is not free again: {refused}", unit.name));
            }
        }
    }

    /// A unit has come to another state.
    pub(super) fn ports_after(&mut self, id: Id, after: State) {
        let part = self.units[id].part;
        if self.parts[part].spec.wiring().ports.is_empty() {
            return;
        }
        if !after.is_at_rest() {
            return;
        }
        let at_rest = |id: &Id| self.units[*id].service.state.is_at_rest();
        if self.parts[part].units.iter().all(at_rest) {
            // Nobody would take connections.
            for socket in self.parts[part].sockets.iter_mut().flatten() {
                let _ = socket.unlisten();
            }
        }
    }

    /// A unit is no more: others may have its ports.
    pub(super) fn give_ports_up(&mut self, id: Id) {
        if self.units[id].ports.is_empty() {
            return;
        }
        self.units[id].ports.clear();
        let unit = &self.units[id];
        for port in &self.parts[unit.part].spec.wiring().ports {
            if port.socket.is_none() {
                self.ports.assignments.free(&unit.name, &port.name);
            }
        }
        self.ports.changed = true;
    }

    /// Names the sockets that a unit inherits, as sd_listen_fds_with_names(3) finds them. `LISTEN_PID` is the child's to set.
    pub(super) fn name_sockets(&self, id: Id, env: &mut Vec<(OsString, OsString)>) {
        let spec = &self.parts[self.units[id].part].spec;
        let names: Vec<&str> = spec
            .wiring()
            .ports
            .iter()
            .filter(|port| port.socket.is_some())
            .map(|port| port.name.as_str())
            .collect();
        if !names.is_empty() {
            env.push(("LISTEN_FDS".into(), names.len().to_string().into()));
            env.push(("LISTEN_FDNAMES".into(), names.join(":").into()));
        }
    }

    // --- What was found ---

    /// Notes where a unit that is not ready does listen, for a person who wonders.
    pub(super) fn note_listening(&mut self, id: Id) {
        let unit = &self.units[id];
        let Some(leader) = unit.leader.filter(|_| !self.parts[unit.part].spec.wiring().ports.is_empty())
        else {
            return;
        };
        let found = holder::listening(&usage::descent(leader));
        let all: Vec<String> = found.iter().take(5).map(ToString::to_string).collect();
        let listens = if all.is_empty() {
            "it listens nowhere".to_owned()
        } else {
            format!("it listens at {}", all.join(", "))
        };
        let unit = &mut self.units[id];
        unit.reason = Some(match unit.reason.take() {
            Some(reason) => format!("{reason}; {listens}"),
            None => listens,
        });
    }
}
