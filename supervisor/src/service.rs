//! A service bundle: unpack, compare the whole tree, then supervise.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt::Display;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::{fs, io};

use kitbag_format::manifest::{Command, Manifest, Run, Service};
use kitbag_format::port::{self, Bind, Number, Port, Render};
use kitbag_format::service::{
    self, HealthWhen, HttpProbe, LogTo, Logs, Probe, Process, ReadyWhen, Restart, Success, Task,
};

use crate::commands::{Failure, say};
use crate::control::Control;
use crate::expand::{Values, is_late};
use crate::late::{self, Late};
use crate::logs::{self, own};
use crate::machine::Machine;
use crate::open::Own;
use crate::ports::lease::{Listen, Net};
use crate::ports::range::Range;
use crate::ports::registry::{Folders, Registry};
use crate::probe::{self, Ask};
use crate::running::background::{Report, own_log};
use crate::running::{default_log_folder, note_log_folder};
use crate::sandbox::{self, Connect};
use crate::spawn::cgroup::Limits;
use crate::spawn::environment::{EnvFiles, environment};
use crate::spawn::identity::Accounts;
use crate::spawn::{Setup, SetupError};
use crate::state::{Ms, Readiness, Rules, Watch};
use crate::state_folder::{self, StateLock, Users, share};
use crate::store::StoreError;
use crate::store::place::{self, Facts};
use crate::store::unpack::{self, Compare, InUse, Opening};
use crate::supervise::{
    self, Bundle, PortSpec, Ports, ProgramSpec, Question, Schedule, ServiceSpec, What, When, Where, Wish,
    signal_number,
};
use crate::time::cron::Expression;
use crate::time::zone::Zone;

/// Where a zone is looked up after the bundle's own.
const HOST_ZONES: &str = "/usr/share/zoneinfo";
/// A try to find out whether a service is ready may take so long.
const READY_TRY: Ms = 5_000;

/// Where the services run.
pub enum Setting<'a> {
    /// In front of whoever started them.
    Foreground,
    /// Behind whoever started them, who waits for this report.
    Background(&'a Report),
    /// On the machine whose first process this is.
    Machine(&'a Machine),
}

/// Runs the bundle's services until they end or are asked to. Returns the exit code.
pub fn run(own: &Own, setting: &Setting<'_>) -> Result<u8, Failure> {
    if own.bundle.is_tool() {
        return Ok(0);
    }
    let (bundle, held) = prepare(own, setting)?;
    let code = supervise::supervise(bundle);
    // The kernel gives it back when this process is gone, not a moment earlier: `stop` waits for that.
    std::mem::forget(held);
    Ok(code)
}

/// All that has to be done before services run, and what has to be held while they do. What only this needs to
/// know, the manifest and the list of files, is forgotten when it returns.
fn prepare(own: &Own, setting: &Setting<'_>) -> Result<(Bundle, (StateLock, InUse)), Failure> {
    let manifest = own.bundle.manifest()?;
    if let Setting::Machine(machine) = setting {
        machine.name(&manifest.name);
    }
    let facts = Facts::of_process(Some(&own.path));
    let (store, _) = place::choose(&facts, &own.bundle)?;
    let opening =
        Opening { bundle: &own.bundle, manifest: &manifest, compare: Compare::Everything, say: &say };
    let tree = unpack::open_tree(&store, &opening)?;
    tree.touch();
    let name = state_folder::name(&facts, &manifest.name)?;
    let new = share::missing_above(&facts);
    let state = state_folder::choose(&facts, &name)?;
    let lock = state_folder::lock(&state)?;
    let runtime = state_folder::runtime(&state)?;
    let temporary = state_folder::temporary(&facts, &state, &say);
    let temporary = temporary.as_deref();
    let values = Values { tree: &tree.root, state: Some(&state), manifest: &manifest, temporary };
    let services = specs(&manifest, &values)?;
    let users = Users::beside(&state, services.iter().filter_map(|spec| spec.setup.ids.as_ref()));
    share::share(&state, &users, &new, &say)
        .map_err(StoreError::io("let services with a user write in", &state))?;
    for planted in state_folder::plant(&tree.root, &state, &manifest.seeds, &users)? {
        say(&format!("state begins with {planted} in {}", state.display()));
    }
    let mut logs = log_settings(&manifest.logs, &values, &runtime, setting)?;
    if let Some(files) = logs.files.as_mut().filter(|_| users != Users::Own) {
        files.folder = share::log_folder(&state, &files.folder, &users)
            .map_err(StoreError::io("keep logs in", &files.folder))?;
        files.guarded = true;
    }
    if let Some(files) = &mut logs.files {
        files.state = Some(state.clone()).filter(|state| files.folder.starts_with(state));
        note_log_folder(&runtime, &files.folder)
            .map_err(StoreError::io("note the log folder in", &runtime))?;
    }
    let control = Control::bind(&runtime).map_err(StoreError::io("listen in", &runtime))?;
    if let (Setting::Background(report), Some((log, enough))) = (setting, &logs.own) {
        report.supervising(log, *enough)?;
    }
    let ports = ports(&facts, &services, &runtime);
    let bundle = Bundle {
        name,
        version: manifest.version.clone(),
        services,
        state_folder: state,
        log_folder: logs.files.as_ref().map(|files| files.folder.clone()),
        logs,
        tasks: Some(runtime.join("tasks")),
        ports,
        stays: matches!(setting, Setting::Background(_)),
        control: Some(control),
    };
    Ok((bundle, (lock, tree.into_use())))
}

/// What is known of ports before any is taken. Without a registry the services run all the same.
fn ports(facts: &Facts, services: &[ServiceSpec], runtime: &Path) -> Ports {
    let concerned = |spec: &ServiceSpec| !spec.wiring().ports.is_empty() || !spec.references().is_empty();
    if !services.iter().any(concerned) {
        return Ports::default();
    }
    let registry = Registry::open(facts.uid, Folders::of(facts));
    if registry.folder().is_none() {
        say("other bundles do not see this one's ports:");
        registry.tried().iter().for_each(|tried| say(&format!("  {tried}")));
    }
    Ports::new(registry, runtime.to_owned())
}

/// What becomes of what services print: in front, it is shown; behind, it goes to files.
fn log_settings(
    logs: &Logs,
    values: &Values<'_>,
    runtime: &Path,
    setting: &Setting<'_>,
) -> Result<logs::Settings, Failure> {
    let behind = matches!(setting, Setting::Background(_));
    let folder = match &logs.to {
        LogTo::Auto if behind => Some(default_log_folder(runtime)),
        LogTo::Auto | LogTo::Stdout => None,
        LogTo::Files(folder) => Some(PathBuf::from(values.text(folder)?)),
    };
    let own = behind.then(|| (own_log(runtime), own::full(logs)));
    Ok(logs::Settings { own, ..logs::Settings::of(logs, folder, !behind) })
}

/// The services and tasks of a service bundle, with every template filled in and every name looked up on this host.
///
/// # Errors
/// What this host does not have, such as a time zone. A user or an env file that is missing fails its service alone.
pub fn specs(manifest: &Manifest, values: &Values) -> Result<Vec<ServiceSpec>, Failure> {
    let Run::Services(services) = &manifest.run else { return Ok(Vec::new()) };
    let maker = Maker {
        values,
        accounts: Accounts::of_host(),
        paths: RefCell::default(),
        last_env: RefCell::default(),
        last_rules: RefCell::default(),
        last_setup: RefCell::default(),
    };
    let services = services.iter().map(|(name, service)| maker.service(name, service));
    let tasks = manifest.tasks.iter().map(|(name, task)| maker.task(name, task));
    services.chain(tasks).collect()
}

/// Makes specs of what the manifest says.
struct Maker<'a> {
    values: &'a Values<'a>,
    accounts: Accounts,
    paths: RefCell<BTreeSet<Rc<Path>>>,
    last_env: RefCell<Rc<Vec<(OsString, OsString)>>>,
    last_rules: RefCell<Rc<Rules>>,
    last_setup: RefCell<Rc<Setup>>,
}

/// The last one of its kind, if this is equal: most of a thousand services are.
fn shared<T: PartialEq>(last: &RefCell<Rc<T>>, new: T) -> Rc<T> {
    let mut last = last.borrow_mut();
    if **last != new {
        *last = Rc::new(new);
    }
    Rc::clone(&last)
}

impl Maker<'_> {
    fn service(&self, name: &str, service: &Service) -> Result<ServiceSpec, Failure> {
        let more = &service.more;
        let (mut spec, program) = self.spec(name, &service.command, &more.process)?;
        let has_files = spec.wiring().env_files.is_some();
        let beside = Beside { env: program.env, has_files, late: spec.wiring().late.clone() };
        spec.stop_signal = signal(&service.stop_signal, libc::SIGTERM);
        spec.needs.clone_from(&more.needs);
        spec.instances = more.instances;
        if !more.ports.is_empty() {
            let ports = more.ports.iter().map(|(port, it)| self.port(name, port, it));
            spec.wiring_mut().ports = ports.collect::<Result<_, _>>()?;
        }
        let mut rules = Rules {
            restart: service.restart,
            backoff: more.backoff,
            give_up: more.give_up,
            timeout: Some(more.ready.timeout_ms),
            stop_timeout: service.stop_timeout_ms,
            ..rules(&more.success)
        };
        let interval = more.ready.interval_ms;
        rules.ready = match &more.ready.when {
            ReadyWhen::UpFor(span) => Readiness::UpFor(*span),
            ReadyWhen::Newline(number) => {
                spec.newline = Some(i32::from(*number));
                Readiness::Told
            }
            ReadyWhen::Notify => {
                spec.notify = true;
                Readiness::Told
            }
            ReadyWhen::Probe(probe) => {
                spec.ready = Some(self.question(name, probe, READY_TRY, &beside)?);
                Readiness::Probe { interval }
            }
        };
        if let Some(health) = &more.health {
            spec.abort_signal = signal(&health.kill_signal, libc::SIGABRT);
            let interval = health.interval_ms;
            rules.watch = Some(match &health.when {
                HealthWhen::Watchdog => {
                    spec.notify = true;
                    Watch::Silence(interval)
                }
                HealthWhen::Probe(probe) => {
                    spec.health = Some(self.question(name, probe, health.timeout_ms, &beside)?);
                    Watch::Probe { interval, failures: health.failures }
                }
            });
        }
        spec.rules = shared(&self.last_rules, rules);
        note_outer(&mut spec);
        Ok(spec)
    }

    /// A declared port.
    fn port(&self, service: &str, name: &str, port: &Port) -> Result<PortSpec, Failure> {
        let fault = |what: String| Failure::Service(format!("service {service}: port {name}: {what}"));
        // 0 is any, as it is for bind(2): `PORT=0`.
        let number = |text: &String| -> Result<Option<u16>, Failure> {
            let text = self.values.text(text)?.to_string_lossy().into_owned();
            match text.parse() {
                Ok(number) => Ok(Some(number).filter(|number| *number > 0)),
                Err(_) => Err(fault(format!("`{text}` is not a number from 0 to 65535"))),
            }
        };
        let Some(net) = Net::of(port.protocol) else {
            return Ok(PortSpec { name: name.to_owned(), place: Where::Unix, socket: port.socket });
        };
        let address = self.values.text(&port.address)?.to_string_lossy().into_owned();
        let listen = Listen::parse(&address).ok_or_else(|| {
            fault(format!("`{address}` is no address: expected `loopback`, `public`, or one in numbers"))
        })?;
        let wish = match &port.number {
            Number::Any => Wish::Any,
            Number::Fixed(text) => number(text)?.map_or(Wish::Any, Wish::Fixed),
            Number::Range { prefer, low, high } => {
                let preferred = prefer.as_ref().map(number).transpose()?.flatten();
                Wish::Range(preferred, Range { low: *low, high: *high })
            }
        };
        let place = Where::Net { net, listen, wish, hold: port.hold };
        Ok(PortSpec { name: name.to_owned(), place, socket: port.socket })
    }

    fn task(&self, name: &str, task: &Task) -> Result<ServiceSpec, Failure> {
        let (mut spec, _) = self.spec(name, &task.command, &task.process)?;
        spec.stop_signal = signal(&task.stop_signal, libc::SIGTERM);
        spec.needs.clone_from(&task.needs);
        spec.rules = Rc::new(Rules {
            restart: Restart::Never,
            ready: Readiness::Done,
            timeout: task.timeout_ms,
            stop_timeout: task.stop_timeout_ms,
            ..rules(&task.success)
        });
        let when = match &task.schedule {
            service::Schedule::Start => When::Start,
            service::Schedule::Asked => When::Asked,
            service::Schedule::Every(span) => When::Every(*span),
            service::Schedule::Cron(cron) => {
                let expression = Expression::parse(&cron.expression).map_err(wrong("task", name))?;
                let zone = self.zone(&cron.zone).map_err(wrong("task", name))?;
                When::Cron(Box::new((expression, zone)))
            }
        };
        spec.schedule = Some(Schedule { when, overlap: task.overlap, catch_up: task.catch_up });
        note_outer(&mut spec);
        Ok(spec)
    }

    /// What services and tasks have in common.
    fn spec(
        &self,
        name: &str,
        command: &Command,
        process: &Process,
    ) -> Result<(ServiceSpec, ProgramSpec), Failure> {
        let (setup, identity, unfit) = match Setup::resolve(process, self.values, &self.accounts) {
            Ok((setup, identity)) => (setup, identity, None),
            // Others can run without it.
            Err(SetupError::Identity(error)) if error.is_missing() => (
                Setup::default(),
                None,
                Some(format!("{error}; then start {} anew", self.values.manifest.name)),
            ),
            Err(error) => return Err(wrong("service", name)(error)),
        };
        let paths = self.paths_of(name, &process.sandbox)?;
        let temporary = paths.as_ref().and_then(|paths| self.temporary(paths));
        let values = Values { temporary: temporary.as_deref().or(self.values.temporary), ..*self.values };
        let env =
            environment(command, process, identity.as_ref(), &values).map_err(wrong("service", name))?;
        let (program, late) = self.program(command)?;
        let mut spec = ServiceSpec::new(name, program);
        spec.program.env = shared(&self.last_env, env);
        let program = spec.program.clone();
        if !late.is_empty() {
            spec.wiring_mut().late = Some(Rc::new(late));
        }
        if !process.render.is_empty() {
            spec.wiring_mut().files = self.files(name, &process.render)?;
        }
        if let Some(why) = unfit {
            spec.wiring_mut().unfit = Some(why.into());
        }
        if let Some(files) = EnvFiles::of(command, process, &values).map_err(wrong("service", name))? {
            spec.wiring_mut().env_files = Some(files);
        }
        self.limit(name, &mut spec, &process.sandbox)?;
        if paths.is_some() {
            spec.wiring_mut().paths = paths;
        }
        spec.setup = shared(&self.last_setup, setup);
        spec.limits = Limits { memory: process.memory_max, pids: process.pids_max };
        Ok((spec, program))
    }

    /// What it may do.
    fn limit(&self, name: &str, spec: &mut ServiceSpec, asked: &port::Sandbox) -> Result<(), Failure> {
        if asked.bind == Bind::Declared {
            spec.wiring_mut().binds_declared = true;
        }
        let connect = |text: &String| {
            Connect::parse(text)
                .ok_or_else(|| wrong("service", name)(format!("`sandbox.connect`: `{text}` is no port")))
        };
        if let Some(all) = &asked.connect {
            spec.wiring_mut().connect = Some(all.iter().map(connect).collect::<Result<_, _>>()?);
        }
        Ok(())
    }

    /// The files that it may use; `None`: all.
    fn paths_of(&self, name: &str, asked: &port::Sandbox) -> Result<Option<sandbox::Paths>, Failure> {
        // <place>/v1/trees/<digest>/tree
        let trees = self.values.tree.ancestors().nth(2);
        let paths = asked.files.as_ref().map(|files| sandbox::Paths::resolve(files, self.values, trees));
        paths.transpose().map_err(wrong("service", name))
    }

    /// A folder for temporary files, where these rules leave it no usual one.
    fn temporary(&self, paths: &sandbox::Paths) -> Option<PathBuf> {
        let state = self.values.state.filter(|_| paths.needs_temporary())?;
        state_folder::temporary_in(state, nix::unistd::geteuid().as_raw())
    }

    /// The same path as another service's, if one has it.
    fn path(&self, path: &Path) -> Rc<Path> {
        let mut paths = self.paths.borrow_mut();
        if let Some(known) = paths.get(path) {
            return Rc::clone(known);
        }
        let new: Rc<Path> = path.into();
        paths.insert(Rc::clone(&new));
        new
    }

    /// A command without its environment, and what of it is filled in when it starts, variables too.
    fn program(&self, command: &Command) -> Result<(ProgramSpec, Late), Failure> {
        let path = self.path(&self.values.program(command));
        let mut argv = vec![path.as_os_str().to_owned()];
        let mut late = Late::default();
        for argument in command.argv.iter().skip(1) {
            let text = self.values.late(argument)?;
            match text.plain() {
                Some(known) => argv.push(known.to_owned()),
                None => {
                    late.argv.push((argv.len(), text));
                    argv.push(OsString::new());
                }
            }
        }
        for (name, text) in command.env.iter().filter(|(_, text)| is_late(text)) {
            late.env.push((name.into(), self.values.late(text)?));
        }
        let cwd = match &command.cwd {
            Some(cwd) => self.path(Path::new(&self.values.text(cwd)?)),
            None => self.path(self.values.tree),
        };
        Ok((ProgramSpec { path, argv, env: Rc::default(), cwd }, late))
    }

    /// The files that are made before each start, read once.
    fn files(&self, name: &str, render: &[Render]) -> Result<Vec<late::File>, Failure> {
        let file = |it: &Render| -> Result<late::File, Failure> {
            let from = self.values.tree.join(&it.from);
            let text = read_text(&from).map_err(|error| {
                wrong("service", name)(format!("cannot read {}: {error}", from.display()))
            })?;
            let state = self.values.state.unwrap_or(Path::new(""));
            let mut to = late::Text::from(state.join("").into_os_string());
            to.0.extend(self.values.late(&it.to)?.0);
            Ok(late::File { to, content: Rc::new(self.values.late(&text)?) })
        };
        render.iter().map(file).collect()
    }

    fn question(
        &self,
        name: &str,
        probe: &Probe,
        timeout: Ms,
        beside: &Beside,
    ) -> Result<Box<Question>, Failure> {
        let network = |text: &str, ask: &dyn Fn(probe::Address) -> Ask| -> Result<What, Failure> {
            let text = self.values.late(text)?;
            match text.plain() {
                Some(known) => {
                    let address = probe::parse_address(&known.to_string_lossy());
                    Ok(What::Network(ask(address.map_err(wrong("service", name))?)))
                }
                // Of which one only the rest counts.
                None => Ok(What::Late(ask(probe::Address::Localhost(0)), text)),
            }
        };
        let what = match probe {
            Probe::Tcp(text) => network(text, &Ask::Tcp)?,
            Probe::Http(HttpProbe { address, path, status }) => {
                let path = self.values.text(path)?.to_string_lossy().into_owned();
                network(address, &|address| Ask::Http {
                    address,
                    path: path.clone(),
                    status: status.clone(),
                })?
            }
            Probe::Command(command) => {
                let (program, mut own) = self.program(command)?;
                let mut program = ProgramSpec { env: beside.env.clone(), ..program };
                for (name, text) in command.env.iter().filter(|(_, text)| !is_late(text)) {
                    if beside.has_files {
                        // After those, as it has the last word.
                        own.env.push((name.into(), self.values.text(text)?.into()));
                        continue;
                    }
                    let env = Rc::make_mut(&mut program.env);
                    env.retain(|(known, _)| known != name.as_str());
                    env.push((name.into(), self.values.text(text)?));
                }
                match beside.late_with(own, &command.env) {
                    None => What::Program(program),
                    Some(late) => What::LateProgram(program, late),
                }
            }
        };
        Ok(Box::new(Question { what, timeout }))
    }

    fn zone(&self, name: &str) -> Result<Zone, crate::time::zone::ZoneError> {
        let tz = std::env::var("TZ").ok();
        let folders = [self.values.tree.join("usr/share/zoneinfo"), PathBuf::from(HOST_ZONES)];
        Zone::load(name, tz.as_deref(), &folders)
    }
}

/// What a probe's program has of its service's.
struct Beside {
    env: Rc<Vec<(OsString, OsString)>>,
    /// Variables of its service's env files join it when it starts.
    has_files: bool,
    late: Option<Rc<Late>>,
}

impl Beside {
    /// What is filled in of a probe's program: its own, and its service's variables that it does not set.
    fn late_with(&self, mut own: Late, set: &BTreeMap<String, String>) -> Option<Rc<Late>> {
        let of_service = self.late.iter().flat_map(|late| &late.env);
        let inherited =
            of_service.filter(|(name, _)| !name.to_str().is_some_and(|name| set.contains_key(name)));
        own.env.extend(inherited.cloned());
        (!own.is_empty()).then(|| Rc::new(own))
    }
}

/// The longest text with placeholders, in bytes.
const LONGEST_TEXT: u64 = 1 << 20;

/// A text of the tree.
fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    fs::File::open(path)?.take(LONGEST_TEXT + 1).read_to_string(&mut text)?;
    if text.len() as u64 > LONGEST_TEXT { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(text) }
}

/// Notes which ports of other bundles a service or task cannot be started without.
fn note_outer(spec: &mut ServiceSpec) {
    let outer = late::outer(&spec.references());
    if !outer.is_empty() {
        spec.wiring_mut().outer = outer;
    }
}

/// Rules with these ends as good.
fn rules(success: &Success) -> Rules {
    Rules {
        good_codes: success.codes.clone(),
        good_signals: success.signals.iter().filter_map(|name| signal_number(name)).collect(),
        ..Rules::default()
    }
}

/// The number of a signal; the bundler has made sure that the name is one.
fn signal(name: &str, default: i32) -> i32 {
    signal_number(name).unwrap_or(default)
}

/// Marks an error with the service or task that it is about.
fn wrong<E: Display>(kind: &'static str, name: &str) -> impl Fn(E) -> Failure {
    move |error| Failure::Service(format!("{kind} {name}: {error}"))
}
