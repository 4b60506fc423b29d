//! Ports of units: taken before they start, lent to their processes, kept in between, told to whoever asks.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use kitbag_format::port::{Part as PartOf, Protocol, Reference};
use kitbag_format::sort;
use nix::unistd::{getegid, geteuid};

use crate::endpoint::Endpoint;
use crate::late::{self, Known, Late, Missing, Text};
use crate::ports::assignments::{self, Assignments};
use crate::ports::holder;
use crate::ports::lease::{Host, Kind, Lease, Net, Search, Want};
use crate::ports::looked::Looked;
use crate::ports::range::Round;
use crate::ports::refused::Refused;
use crate::ports::registry::{Entry, Found, Published, Registry};
use crate::ports::socket_folder::{SocketFolder, Wanted};
use crate::ports::unix::{self, UnixLease};
use crate::ports::watch::Watch;
use crate::probe::{self, Ask};
use crate::sandbox::{Connect, Sandbox};
use crate::snapshot;
use crate::spawn::{self, environment};
use crate::state::{Fault, Ms, Stage, State};
use crate::state_folder::{self, PART, share};
use crate::status::usage;
use crate::sys::{Errno, errno_of, rights};

use super::order::Part;
use super::spec::{PortSpec, ProgramSpec, Where, Wish};
use super::units::Id;
use super::{Source, Supervisor, readable, unit_name};

/// A port that is ours.
#[derive(Debug)]
pub enum Held {
    /// A number.
    Net(Lease),
    /// A path.
    Unix(UnixLease),
}

/// How soon telling others is tried again, where it has failed.
const AGAIN: Ms = 10_000;

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
    outer: Vec<(Outer, Result<Endpoint, String>)>,
    /// Tells that the registry has changed; there is one where ports of other bundles are named.
    watch: Option<Watch>,
    /// Who has numbers that are asked for in vain.
    looked: Looked,
    /// There is something to tell.
    changed: bool,
    /// That has failed: when it is tried again.
    again: Option<Ms>,
}

impl Ports {
    /// What is known before any port is taken.
    pub fn new(registry: Registry, folder: PathBuf) -> Self {
        let assignments = Assignments::read(&folder);
        Self { registry: Some(registry), assignments, folder: Some(folder), ..Self::default() }
    }

    /// Where a port of another bundle is, or why that is not known.
    fn outer(&self, key: &Outer) -> Option<&Result<Endpoint, String>> {
        self.outer.iter().find(|(known, _)| known == key).map(|(_, found)| found)
    }

    /// Where unix sockets lie: for services of several users, beside what is published.
    fn socket_folder(&self, several_users: bool, bundle: &str, state: &Path) -> SocketFolder {
        match self.registry.as_ref().and_then(Registry::folder).filter(|_| several_users) {
            Some(folder) => SocketFolder::shared(folder, bundle, state),
            None => SocketFolder::private(self.folder.as_deref().unwrap_or(Path::new(""))),
        }
    }
}

/// A port of another bundle: bundle, unit, port.
type Outer = (String, String, String);

fn outer_of(reference: &Reference) -> Option<Outer> {
    let Reference { bundle: Some(bundle), unit: Some(unit), port, .. } = reference else { return None };
    Some((bundle.clone(), unit.clone(), port.clone()))
}

impl Held {
    /// Where it is.
    fn endpoint(&self, spec: &PortSpec, host: &Host) -> Endpoint {
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
    fn path(&self) -> Option<&Path> {
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

    // --- What texts name ---

    /// Fills in what of a unit's program is known only now, and makes its files. The arguments, where any is filled in.
    pub(super) fn fill_in(
        &mut self,
        id: Id,
        env: &mut Vec<(OsString, OsString)>,
    ) -> Result<Option<Vec<OsString>>, Fault> {
        let spec = &self.parts[self.units[id].part].spec;
        let (late, files) = (spec.wiring().late.clone(), spec.wiring().files.clone());
        let mut argv = None;
        if let Some(late) = late {
            let mut filled = spec.program.argv.clone();
            if let Err(missing) = late.fill(&self.known(id, &|it| self.find_port(id, it)), &mut filled, env) {
                return Err(self.missing(id, &missing));
            }
            argv = Some(filled);
        }
        for file in &files {
            self.make_file(id, file)?;
        }
        Ok(argv)
    }

    fn known<'a>(&self, id: Id, port: &'a dyn Fn(&Reference) -> Option<String>) -> Known<'a> {
        Known { instance: self.units[id].instance, port }
    }

    fn fill(&self, id: Id, text: &Text) -> Result<OsString, Missing> {
        text.fill(&self.known(id, &|it| self.find_port(id, it)))
    }

    /// Those of a unit's variables that have ports in them, as far as these are there.
    pub(super) fn late_variables(&self, id: Id) -> Vec<(OsString, OsString)> {
        let late = self.parts[self.units[id].part].spec.wiring().late.iter();
        let filled = |(name, text): &(OsString, Text)| Some((name.clone(), self.fill(id, text).ok()?));
        late.flat_map(|late| &late.env).filter_map(filled).collect()
    }

    fn missing(&mut self, id: Id, missing: &Missing) -> Fault {
        let why = self.why_missing(&missing.0);
        self.trouble(id, Stage::Ports, Errno::ENOENT, why)
    }

    fn why_missing(&self, reference: &Reference) -> String {
        match outer_of(reference).and_then(|key| self.ports.outer(&key)) {
            Some(Err(why)) => why.clone(),
            _ => format!("`${{{reference}}}` has no port now; `status` shows why"),
        }
    }

    fn make_file(&mut self, id: Id, file: &late::File) -> Result<(), Fault> {
        let filled = self.fill(id, &file.to).and_then(|to| Ok((to, self.fill(id, &file.content)?)));
        let (to, content) = filled.map_err(|missing| self.missing(id, &missing))?;
        let to = Path::new(&to);
        self.make_with_its_rights(id, to, &content).map_err(|error| {
            self.trouble(id, Stage::Files, errno_of(&error), format!("write {}: {error}", to.display()))
        })
    }

    /// Makes a file with the rights of the unit's user, who may have put something in its way; root's where nobody can have.
    fn make_with_its_rights(&self, id: Id, to: &Path, content: &OsString) -> io::Result<()> {
        let ids = self.parts[self.units[id].part].spec.setup.ids.as_ref();
        if let Some(ids) = ids.filter(|ids| self.is_shared && ids.uid != 0) {
            let _rights = rights::borrow(ids)?;
            share::his_folders(&self.state_folder, to, ids.uid)?;
            return write_file(to, content, None);
        }
        if self.is_shared {
            share::roots_folders(&self.state_folder, to)?;
        }
        write_file(to, content, ids.map(|ids| (ids.uid, ids.gid)))
    }

    /// What a reference in a text of this unit stands for now.
    fn find_port(&self, id: Id, reference: &Reference) -> Option<String> {
        let endpoint = match (outer_of(reference), &reference.unit) {
            (Some(key), _) => self.ports.outer(&key)?.as_ref().ok()?.clone(),
            (None, Some(unit)) => self.endpoint(*self.named(unit).ok()?.first()?, &reference.port)?,
            (None, None) => self.endpoint(id, &reference.port)?,
        };
        Some(endpoint.text(reference.part))
    }

    /// Where a unit's port is.
    fn endpoint(&self, id: Id, port: &str) -> Option<Endpoint> {
        let unit = &self.units[id];
        let members = &self.parts[unit.part];
        let at = members.spec.wiring().ports.iter().position(|it| it.name == port)?;
        let spec = &members.spec.wiring().ports[at];
        let held = if spec.socket.is_some() { &members.sockets } else { &unit.ports };
        Some(held.get(at)?.as_ref()?.endpoint(spec, &self.host))
    }

    /// A probe of the network whose address is known only now.
    pub(super) fn late_ask(&self, id: Id, ask: &Ask, address: &Text) -> Result<Ask, String> {
        let text = self.fill(id, address).map_err(|missing| self.why_missing(&missing.0))?;
        let address = probe::parse_address(&text.to_string_lossy()).map_err(|error| error.to_string())?;
        Ok(ask.at(address))
    }

    /// A probe's program of which something is known only now.
    pub(super) fn late_program(
        &self,
        id: Id,
        program: &ProgramSpec,
        late: &Late,
    ) -> Result<ProgramSpec, String> {
        let mut filled = program.clone();
        let env = std::rc::Rc::make_mut(&mut filled.env);
        environment::put(env, &self.units[id].from_files);
        let known = |it: &Reference| self.find_port(id, it);
        late.fill(&self.known(id, &known), &mut filled.argv, env)
            .map_err(|missing| self.why_missing(&missing.0))?;
        Ok(filled)
    }

    // --- Other bundles ---

    /// True if a part's units wait for ports of other bundles, which is noted.
    pub(super) fn waits_outside(&mut self, part: Part) -> bool {
        let missing = self.missing_outside(part);
        let Some((_, why)) = missing.first() else { return false };
        for &id in &self.parts[part].units {
            let unit = &mut self.units[id];
            if unit.service.state == State::Needing {
                unit.reason = Some(why.clone());
            }
        }
        true
    }

    /// What a part needs of other bundles that is not there now: its name, and why.
    pub(super) fn missing_outside(&self, part: Part) -> Vec<(String, String)> {
        let missing = |reference: &Reference| {
            let key = outer_of(reference)?;
            let why = self.ports.outer(&key)?.as_ref().err()?.clone();
            Some((format!("{}/{}.{}", key.0, key.1, key.2), why))
        };
        self.parts[part].spec.wiring().outer.iter().filter_map(missing).collect()
    }

    /// Begins to look for ports of other bundles, if any are named.
    fn look_outside(&mut self) {
        let references = self.parts.iter().flat_map(|members| members.spec.references());
        let keys = sort::set(references.filter_map(outer_of));
        self.ports.outer = keys.into_iter().map(|key| (key, Err(String::new()))).collect();
        if self.ports.outer.is_empty() {
            return;
        }
        let watch = self.ports.registry.as_ref().map(Registry::watch);
        match watch {
            Some(Ok(watch)) if self.events.add(&watch, readable(Source::Registry.token())).is_ok() => {
                self.ports.watch = Some(watch);
            }
            _ => {
                self.logs.say("ports of other bundles are looked for once: their registry cannot be watched")
            }
        }
        self.find_outside();
    }

    /// The registry has changed.
    pub(super) fn take_registry(&mut self) {
        if !self.ports.watch.as_mut().is_some_and(Watch::changed) {
            return;
        }
        self.find_outside();
        for part in 0..self.parts.len() {
            if !self.parts[part].spec.wiring().outer.is_empty() {
                self.check_needs(part);
            }
        }
    }

    /// Looks for the ports of other bundles, and tells which have come or moved.
    fn find_outside(&mut self) {
        for at in 0..self.ports.outer.len() {
            let (key, before) = &self.ports.outer[at];
            let found = self.look_up(key);
            if let Ok(endpoint) = &found
                && before.as_ref() != Ok(endpoint)
            {
                let (bundle, unit, port) = key;
                let news = format!("{bundle}/{unit}.{port} is {}", endpoint.text(PartOf::Address));
                self.publish(String::new(), "port".to_owned(), news);
            }
            self.ports.outer[at].1 = found;
        }
    }

    fn look_up(&self, (bundle, unit, port): &Outer) -> Result<Endpoint, String> {
        let Some(registry) = &self.ports.registry else {
            return Err("this bundle sees no other: no folder can be used for the registry".to_owned());
        };
        match registry.find(bundle, unit, port) {
            Found::One(port) => Ok(endpoint_of(&port)),
            Found::NoBundle => Err(format!(
                "it waits for the port {port} of {unit} in the bundle {bundle}, which does not run here as this user or \
                 root; `ports --host` shows who runs"
            )),
            Found::NoPort(names) => Err(format!(
                "it waits for the port {port} of {unit} in the bundle {bundle}, which runs and has none of that name{}",
                if names.is_empty() { String::new() } else { format!(", but {}", names.join(", ")) }
            )),
            Found::Ambiguous(states) => Err(format!(
                "{} bundles called {bundle} run here, with their state in {}; start one with KITBAG_NAME=OTHER to tell \
                 them apart",
                states.len(),
                states.join(", ")
            )),
        }
    }

    // --- Telling ---

    /// Writes down which ports this bundle has, for its next start and for others, if that has changed.
    pub(super) fn tell_ports(&mut self) {
        let now = self.now();
        let is_due = self.ports.again.is_some_and(|at| at <= now);
        if !std::mem::take(&mut self.ports.changed) && !is_due {
            return;
        }
        // Said once, however often it fails.
        let is_news = self.ports.again.take().is_none();
        let entry = self.entry();
        if let Some(Err(error)) = self.ports.registry.as_mut().map(|registry| registry.publish(&entry)) {
            self.ports.again = Some(now.saturating_add(AGAIN));
            if is_news {
                self.say_unseen(&error);
            }
        }
        if let Some(folder) = &self.ports.folder
            && let Err(error) = self.ports.assignments.write(folder)
        {
            self.ports.again = Some(now.saturating_add(AGAIN));
            if is_news {
                let file = folder.join(assignments::NAME);
                self.logs.say(&format!("the next start may get other ports: {}: {error}", file.display()));
            }
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

    // --- What it may do ---

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

fn endpoint_of(port: &Published) -> Endpoint {
    match port.address {
        Some(address) => Endpoint::Network(SocketAddr::new(address, port.number)),
        None => Endpoint::Unix(port.path.clone().into()),
    }
}

/// Writes a file in one step, for its owner alone.
fn write_file(path: &Path, content: &OsString, owner: Option<(u32, u32)>) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder)?;
    let create = |part: PathBuf| {
        let made = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part);
        made.map(|file| (file, part))
    };
    // The name that a supervisor that was killed has used too, and another where somebody else has this one.
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let part = folder.join(format!("{PART}{name}"));
    let _ = fs::remove_file(&part);
    let (mut file, part) = create(part).or_else(|_| create(state_folder::part_in(folder)))?;
    let written = file.write_all(content.as_encoded_bytes());
    let owned = written.and_then(|()| match owner {
        Some((uid, gid)) => std::os::unix::fs::fchown(&file, Some(uid), Some(gid)),
        None => Ok(()),
    });
    owned.and_then(|()| fs::rename(&part, path)).inspect_err(|_| _ = fs::remove_file(&part))
}
