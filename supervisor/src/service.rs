//! A service bundle: unpack, compare the whole tree, then supervise.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use kitbag_format::manifest::{Command, Manifest, Run, Service};
use kitbag_format::service::{
    self, HealthWhen, HttpProbe, LogTo, Logs, Probe, Process, ReadyWhen, Restart, Success, Task,
};

use crate::cgroup::Limits;
use crate::commands::{Failure, say};
use crate::control::Control;
use crate::cron::Expression;
use crate::environment::environment;
use crate::expand::Values;
use crate::identity::Accounts;
use crate::logs;
use crate::machine::Machine;
use crate::open::Own;
use crate::place::{self, Facts};
use crate::probe::{self, Ask};
use crate::running::background::Report;
use crate::running::{default_log_folder, note_log_folder};
use crate::spawn::Setup;
use crate::state::{Ms, Readiness, Rules, Watch};
use crate::state_folder::{self, StateLock};
use crate::store::StoreError;
use crate::supervise::{
    self, Bundle, ProgramSpec, Question, Schedule, ServiceSpec, What, When, signal_number,
};
use crate::unpack::{self, Compare, InUse, Opening};
use crate::zone::Zone;

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
    let state = state_folder::choose(&facts, &manifest.name)?;
    let lock = state_folder::lock(&state)?;
    for planted in state_folder::plant(&tree.root, &state, &manifest.seeds)? {
        say(&format!("state begins with {planted} in {}", state.display()));
    }
    let temporary = state_folder::temporary(&facts, &state, &say);
    let temporary = temporary.as_deref();
    let values = Values { tree: &tree.root, state: Some(&state), manifest: &manifest, temporary };
    let services = specs(&manifest, &values)?;
    let runtime = state_folder::runtime(&state)?;
    let logs = log_settings(&manifest.logs, &values, &runtime, setting)?;
    if let Some(files) = &logs.files {
        note_log_folder(&runtime, &files.folder)
            .map_err(StoreError::io("note the log folder in", &runtime))?;
    }
    let control = Control::bind(&runtime).map_err(StoreError::io("listen in", &runtime))?;
    if let Setting::Background(report) = setting {
        report.supervising(&runtime)?;
    }
    let bundle = Bundle {
        name: manifest.name.clone(),
        version: manifest.version.clone(),
        services,
        state_folder: state,
        log_folder: logs.files.as_ref().map(|files| files.folder.clone()),
        logs,
        tasks: Some(runtime.join("tasks")),
        stays: matches!(setting, Setting::Background(_)),
        control: Some(control),
    };
    Ok((bundle, (lock, tree.into_use())))
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
    Ok(logs::Settings::of(logs, folder, !behind))
}

/// The services and tasks of a service bundle, with every template filled in and every name looked up on this host.
///
/// # Errors
/// What this host does not have: a user, an environment file, a time zone.
pub fn specs(manifest: &Manifest, values: &Values) -> Result<Vec<ServiceSpec>, Failure> {
    let Run::Services(services) = &manifest.run else { return Ok(Vec::new()) };
    let maker = Maker {
        values,
        accounts: Accounts::of_host(),
        paths: RefCell::default(),
        last_env: RefCell::default(),
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
}

impl Maker<'_> {
    fn service(&self, name: &str, service: &Service) -> Result<ServiceSpec, Failure> {
        let more = &service.more;
        let (mut spec, program) = self.spec(name, &service.command, &more.process)?;
        let program = |command: &Command| -> Result<ProgramSpec, Failure> {
            Ok(ProgramSpec { env: program.env.clone(), ..self.program(command)? })
        };
        spec.stop_signal = signal(&service.stop_signal, libc::SIGTERM);
        spec.needs.clone_from(&more.needs);
        spec.instances = more.instances;
        spec.rules = Rules {
            restart: service.restart,
            backoff: more.backoff,
            give_up: more.give_up,
            timeout: Some(more.ready.timeout_ms),
            stop_timeout: service.stop_timeout_ms,
            ..rules(&more.success)
        };
        let interval = more.ready.interval_ms;
        spec.rules.ready = match &more.ready.when {
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
                spec.ready = Some(self.question(name, probe, READY_TRY, &program)?);
                Readiness::Probe { interval }
            }
        };
        if let Some(health) = &more.health {
            spec.abort_signal = signal(&health.kill_signal, libc::SIGABRT);
            let interval = health.interval_ms;
            spec.rules.watch = Some(match &health.when {
                HealthWhen::Watchdog => {
                    spec.notify = true;
                    Watch::Silence(interval)
                }
                HealthWhen::Probe(probe) => {
                    spec.health = Some(self.question(name, probe, health.timeout_ms, &program)?);
                    Watch::Probe { interval, failures: health.failures }
                }
            });
        }
        Ok(spec)
    }

    fn task(&self, name: &str, task: &Task) -> Result<ServiceSpec, Failure> {
        let (mut spec, _) = self.spec(name, &task.command, &task.process)?;
        spec.stop_signal = signal(&task.stop_signal, libc::SIGTERM);
        spec.needs.clone_from(&task.needs);
        spec.rules = Rules {
            restart: Restart::Never,
            ready: Readiness::Done,
            timeout: task.timeout_ms,
            stop_timeout: task.stop_timeout_ms,
            ..rules(&task.success)
        };
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
        Ok(spec)
    }

    /// What services and tasks have in common.
    fn spec(
        &self,
        name: &str,
        command: &Command,
        process: &Process,
    ) -> Result<(ServiceSpec, ProgramSpec), Failure> {
        let (setup, identity) =
            Setup::resolve(process, self.values, &self.accounts).map_err(wrong("service", name))?;
        let env =
            environment(command, process, identity.as_ref(), self.values).map_err(wrong("service", name))?;
        let program = ProgramSpec { env: self.shared(env), ..self.program(command)? };
        let mut spec = ServiceSpec::new(name, program.clone());
        spec.setup = setup;
        spec.limits = Limits { memory: process.memory_max, pids: process.pids_max };
        Ok((spec, program))
    }

    /// The same environment as the last one's, if it is.
    fn shared(&self, env: Vec<(OsString, OsString)>) -> Rc<Vec<(OsString, OsString)>> {
        let mut last = self.last_env.borrow_mut();
        if **last != env {
            *last = Rc::new(env);
        }
        Rc::clone(&last)
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

    /// A command without its environment.
    fn program(&self, command: &Command) -> Result<ProgramSpec, Failure> {
        let path = self.path(&self.values.program(command));
        let mut argv = vec![path.as_os_str().to_owned()];
        for argument in command.argv.iter().skip(1) {
            argv.push(self.values.text(argument)?);
        }
        let cwd = match &command.cwd {
            Some(cwd) => self.path(Path::new(&self.values.text(cwd)?)),
            None => self.path(self.values.tree),
        };
        Ok(ProgramSpec { path, argv, env: Rc::default(), cwd })
    }

    fn question(
        &self,
        name: &str,
        probe: &Probe,
        timeout: Ms,
        program: &dyn Fn(&Command) -> Result<ProgramSpec, Failure>,
    ) -> Result<Box<Question>, Failure> {
        let address = |text: &str| -> Result<probe::Address, Failure> {
            let text = self.values.text(text)?;
            probe::parse_address(&text.to_string_lossy()).map_err(wrong("service", name))
        };
        let what = match probe {
            Probe::Tcp(text) => What::Network(Ask::Tcp(address(text)?)),
            Probe::Http(HttpProbe { address: text, path, status }) => {
                let path = self.values.text(path)?.to_string_lossy().into_owned();
                What::Network(Ask::Http { address: address(text)?, path, status: status.clone() })
            }
            Probe::Command(command) => {
                let mut program = program(command)?;
                for (name, text) in &command.env {
                    let env = Rc::make_mut(&mut program.env);
                    env.retain(|(known, _)| known != name.as_str());
                    env.push((name.into(), self.values.text(text)?));
                }
                What::Program(program)
            }
        };
        Ok(Box::new(Question { what, timeout }))
    }

    fn zone(&self, name: &str) -> Result<Zone, crate::zone::ZoneError> {
        let tz = std::env::var("TZ").ok();
        let folders = [self.values.tree.join("usr/share/zoneinfo"), PathBuf::from(HOST_ZONES)];
        Zone::load(name, tz.as_deref(), &folders)
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
