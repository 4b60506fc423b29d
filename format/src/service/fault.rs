//! What a reader refuses in services, tasks and logs, so that a supervisor can trust the rest: a hostile manifest
//! must neither make it spin nor lead it to another path.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use super::{
    Health, HealthWhen, HttpProbe, LIMITS, LogTo, Logs, Probe, Process, ReadyWhen, SIGNALS, Schedule,
    Service, Success, Task,
};
use crate::index::is_normal;
use crate::manifest::{Manifest, Run};
use crate::port::{self, Number, Port, Reference, Render, Sandbox};
use crate::template::{Piece, Template};

/// The most services and tasks together, each instance counted.
pub const MOST_UNITS: u64 = 10_000;
/// The most instances of one service.
pub const MOST_INSTANCES: u32 = 1_000;
/// The longest time that a manifest can name: a leap year, in milliseconds.
pub const LONGEST_MS: u64 = 366 * 24 * 60 * 60 * 1000;
/// The shortest time between two tries of a probe, in milliseconds: what is shorter keeps the processor busy.
pub const SHORTEST_INTERVAL_MS: u64 = 10;
/// The shortest time between two runs of a task, in milliseconds.
pub const SHORTEST_EVERY_MS: u64 = 1_000;
/// What a log file may grow to, in bytes, before it is rotated.
pub const LOG_SIZE: RangeInclusive<u64> = 4096..=1 << 40;
/// The most rotated log files that are kept.
pub const MOST_KEPT: u32 = 1_000;

/// The most ports of one service, and the most of a bundle, each instance counted.
pub const MOST_PORTS: (usize, u64) = (64, 10_000);

/// The largest backlog of a socket: listen(2) takes an int, and no kernel lets more wait.
pub const MOST_WAITING: u32 = 1 << 20;

/// The folder of the state folder that is the supervisor's.
pub const RESERVED: &str = ".kitbag";

/// The longest template of a number or an address, in bytes.
const LONGEST_TEXT: usize = 256;

/// A time that is not zero.
const TIME: RangeInclusive<u64> = 1..=LONGEST_MS;
const INTERVAL: RangeInclusive<u64> = SHORTEST_INTERVAL_MS..=LONGEST_MS;

/// What is wrong with the services, tasks and logs of `manifest`, as words after "its manifest", or `None`.
pub(crate) fn fault(manifest: &Manifest) -> Option<&'static str> {
    let Run::Services(services) = &manifest.run else {
        return (!manifest.tasks.is_empty()).then_some("has tasks and is a tool");
    };
    if services.is_empty() {
        return Some("has no service");
    }
    let instances = services.values().map(|service| u64::from(service.more.instances));
    if instances.sum::<u64>() + manifest.tasks.len() as u64 > MOST_UNITS {
        return Some("has more services than a supervisor takes");
    }
    let ports = services
        .values()
        .map(|service| service.more.ports.len() as u64 * u64::from(service.more.instances.max(1)));
    if ports.sum::<u64>() > MOST_PORTS.1 {
        return Some("has more ports than a supervisor takes");
    }
    if manifest.tasks.keys().any(|name| services.contains_key(name)) {
        return Some("has a service and a task of one name");
    }
    if services.keys().chain(manifest.tasks.keys()).any(|name| is_instance(name, services)) {
        return Some("has a name that stands for an instance of another service");
    }
    if !services.values().all(is_service) {
        return Some("has a service with a setting out of its bounds");
    }
    if !manifest.tasks.values().all(is_task) {
        return Some("has a task with a setting out of its bounds");
    }
    if !is_logs(&manifest.logs) {
        return Some("has a setting of logs out of its bounds");
    }
    if order(services, &manifest.tasks).is_none() {
        return Some("has a service that needs what is not there, or that needs itself in the end");
    }
    None
}

/// True for `web.1` where there is a service `web`, however many instances of it there are now.
fn is_instance(name: &str, services: &BTreeMap<String, Service>) -> bool {
    name.rsplit_once('.').is_some_and(|(service, index)| {
        !index.is_empty() && index.bytes().all(|byte| byte.is_ascii_digit()) && services.contains_key(service)
    })
}

/// The names of all services and tasks, each after what it needs; `None` if one needs what is not there, a task that
/// does not run at the start, or in the end itself.
pub fn order<'m>(
    services: &'m BTreeMap<String, Service>,
    tasks: &'m BTreeMap<String, Task>,
) -> Option<Vec<&'m str>> {
    let of_services =
        services.iter().map(|(name, service)| (name.as_str(), service.more.needs.as_slice(), true));
    let of_tasks = tasks
        .iter()
        .map(|(name, task)| (name.as_str(), task.needs.as_slice(), task.schedule == Schedule::Start));
    let nodes: Vec<(&str, &[String], bool)> = of_services.chain(of_tasks).collect();
    // A map's names are sorted.
    let (first, second) = nodes.split_at(services.len());
    let search = |nodes: &[(&str, &[String], bool)], name: &str| {
        nodes.binary_search_by(|(other, ..)| (*other).cmp(name)).ok()
    };
    let find =
        |name: &str| search(first, name).or_else(|| search(second, name).map(|at| services.len() + at));
    // Kahn's algorithm: what waits for nothing comes next, and what needs it waits for one less.
    let mut waits = vec![0usize; nodes.len()];
    let mut needed_by = vec![Vec::new(); nodes.len()];
    for (number, (_, needs, _)) in nodes.iter().enumerate() {
        for need in *needs {
            let at = find(need)?;
            if !nodes[at].2 {
                return None;
            }
            needed_by[at].push(number);
            waits[number] += 1;
        }
    }
    let mut order: Vec<usize> = (0..nodes.len()).filter(|number| waits[*number] == 0).collect();
    let mut next = 0;
    while let Some(number) = order.get(next).copied() {
        next += 1;
        for waiting in std::mem::take(&mut needed_by[number]) {
            waits[waiting] -= 1;
            if waits[waiting] == 0 {
                order.push(waiting);
            }
        }
    }
    (order.len() == nodes.len()).then(|| order.into_iter().map(|number| nodes[number].0).collect())
}

fn is_service(service: &Service) -> bool {
    let more = &service.more;
    let backoff = &more.backoff;
    let ready = match &more.ready.when {
        ReadyWhen::UpFor(time) => *time <= LONGEST_MS,
        ReadyWhen::Newline(descriptor) => {
            let sockets = more.ports.values().filter(|port| port.socket.is_some()).count();
            usize::from(*descriptor) >= port::FIRST_SOCKET + sockets
        }
        ReadyWhen::Notify => true,
        ReadyWhen::Probe(probe) => is_probe(probe) && INTERVAL.contains(&more.ready.interval_ms),
    };
    is_stop(&service.stop_signal, service.stop_timeout_ms)
        && is_success(&more.success)
        && TIME.contains(&backoff.first_ms)
        && (backoff.first_ms..=LONGEST_MS).contains(&backoff.longest_ms)
        && backoff.stable_ms <= LONGEST_MS
        && more.give_up.is_none_or(|rule| rule.failures >= 1 && TIME.contains(&rule.within_ms))
        && ready
        && TIME.contains(&more.ready.timeout_ms)
        && more.health.as_ref().is_none_or(is_health)
        && (1..=MOST_INSTANCES).contains(&more.instances)
        && more.ports.len() <= MOST_PORTS.0
        && more.ports.iter().all(|(name, port)| port::is_port_name(name) && is_port(port))
        && is_process(&more.process)
}

fn is_task(task: &Task) -> bool {
    let schedule = match &task.schedule {
        Schedule::Start | Schedule::Asked => true,
        Schedule::Every(time) => (SHORTEST_EVERY_MS..=LONGEST_MS).contains(time),
        Schedule::Cron(cron) => is_line(&cron.expression, 256) && is_zone(&cron.zone),
    };
    schedule
        && task.timeout_ms.is_none_or(|time| TIME.contains(&time))
        && is_stop(&task.stop_signal, task.stop_timeout_ms)
        && is_success(&task.success)
        && is_process(&task.process)
}

fn is_logs(logs: &Logs) -> bool {
    let to = match &logs.to {
        LogTo::Auto | LogTo::Stdout => true,
        LogTo::Files(folder) => is_text(folder),
    };
    to && LOG_SIZE.contains(&logs.max_size)
        && logs.max_age_ms.is_none_or(|age| (1_000..=LONGEST_MS).contains(&age))
        && logs.keep <= MOST_KEPT
}

fn is_stop(signal: &str, timeout_ms: u64) -> bool {
    SIGNALS.contains(&signal) && timeout_ms <= LONGEST_MS
}

fn is_success(success: &Success) -> bool {
    success.signals.iter().all(|signal| SIGNALS.contains(&signal.as_str()))
}

fn is_health(health: &Health) -> bool {
    let when = match &health.when {
        HealthWhen::Watchdog => true,
        HealthWhen::Probe(probe) => is_probe(probe) && TIME.contains(&health.timeout_ms),
    };
    when && INTERVAL.contains(&health.interval_ms)
        && health.failures >= 1
        && SIGNALS.contains(&health.kill_signal.as_str())
}

/// A command's program is looked at with all others.
fn is_probe(probe: &Probe) -> bool {
    match probe {
        Probe::Tcp(address) => is_line(address, 1024),
        Probe::Http(HttpProbe { address, path, status }) => {
            is_line(address, 1024) && is_url_path(path) && status.iter().all(|it| (100..=599).contains(it))
        }
        Probe::Command(_) => true,
    }
}

fn is_process(process: &Process) -> bool {
    let groups = process.groups.iter().flatten();
    let names = process.user.iter().chain(&process.group).chain(groups);
    names.clone().all(|name| is_line(name, 256))
        && process.umask.is_none_or(|mask| mask <= 0o777)
        && process.nice.is_none_or(|nice| (-20..=19).contains(&nice))
        && process.oom_score.is_none_or(|score| (-1000..=1000).contains(&score))
        && process.limits.keys().all(|name| LIMITS.contains(&name.as_str()))
        && process.pass_env.iter().flatten().all(|name| !name.is_empty() && !name.contains(['=', '\0']))
        && process.env_files.iter().all(|file| is_text(file))
        && process.memory_max != Some(0)
        && process.pids_max != Some(0)
        && process.render.iter().all(is_render)
        && is_sandbox(&process.sandbox)
}

fn is_port(port: &Port) -> bool {
    let number = match &port.number {
        Number::Any => true,
        Number::Fixed(text) => is_number(text),
        Number::Range { prefer, low, high } => {
            prefer.as_deref().is_none_or(is_number) && *low >= 1 && low <= high
        }
    };
    let address = is_line(&port.address, LONGEST_TEXT)
        && early(&port.address).is_some_and(|pieces| match &pieces[..] {
            [Piece::Text(text)] => port::is_listen_address(text),
            _ => true,
        });
    number
        && address
        && port
            .socket
            .is_none_or(|socket| (1..=MOST_WAITING).contains(&socket.backlog) && socket.mode <= 0o777)
}

/// A template of a number; where it has no placeholder, the number is one of a port.
fn is_number(text: &str) -> bool {
    is_line(text, LONGEST_TEXT)
        && early(text).is_some_and(|pieces| match &pieces[..] {
            [Piece::Text(text)] => is_port_number(text),
            _ => true,
        })
}

/// Digits of a number from 1 to 65535.
fn is_port_number(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok_and(|number| number != 0)
}

/// The pieces of a template that is filled in once, before any service starts; `None` for any other.
fn early(text: &str) -> Option<Vec<Piece>> {
    let pieces = Template::parse(text).ok()?.0;
    (!pieces.iter().any(Piece::is_late)).then_some(pieces)
}

/// A file made in the state folder, outside of what the supervisor keeps there; of the placeholders its place has the
/// instance alone.
fn is_render(render: &Render) -> bool {
    let to = Template::parse(&render.to).is_ok_and(|template| {
        template.0.iter().all(|piece| matches!(piece, Piece::Text(_) | Piece::Instance))
    });
    to && is_normal(render.from.as_bytes())
        && is_normal(render.to.as_bytes())
        && render.to.split('/').next() != Some(RESERVED)
}

fn is_sandbox(sandbox: &Sandbox) -> bool {
    let files = sandbox.files.iter().flat_map(|files| files.read.iter().chain(&files.write));
    files.into_iter().all(|path| is_text(path) && early(path).is_some())
        && sandbox.connect.iter().flatten().all(|entry| is_goal(entry))
}

/// A number, or a reference to a port without `${ports.` and `}` around it: `cache.main`, `redis/cache.main`.
fn is_goal(entry: &str) -> bool {
    is_port_number(entry)
        || Reference::parse(&format!("ports.{entry}"))
            .is_some_and(|reference| reference.default.is_none() && !entry.contains(':'))
}

/// True for what can stand in a request's first line.
pub fn is_url_path(path: &str) -> bool {
    path.starts_with('/') && path.len() <= 1024 && path.bytes().all(|byte| byte.is_ascii_graphic())
}

/// True for the name of a time zone: `UTC`, `Europe/Berlin`, `Etc/GMT+1`; it becomes part of a path.
pub fn is_zone(name: &str) -> bool {
    let part = |part: &str| {
        part.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic())
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-_".contains(&byte))
    };
    name.len() <= 64 && name.split('/').all(part)
}

/// Text of one line that is there.
fn is_line(text: &str, longest: usize) -> bool {
    (1..=longest).contains(&text.len()) && !text.contains(char::is_control)
}

/// A template that is there, for a path.
fn is_text(text: &str) -> bool {
    !text.is_empty() && !text.contains('\0')
}
