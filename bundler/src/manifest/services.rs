//! `[services.NAME]`, `[tasks.NAME]` and `[logs]`: what a service bundle supervises, and how.

use std::ops::{Range, RangeInclusive};

use kitbag_format::cron::{self, CronError, Expression};
use kitbag_format::manifest::{Command, Restart, default_stop_signal, default_stop_timeout_ms};
use kitbag_format::port::{Bind, Reference};
use kitbag_format::service::fault::{
    LOG_SIZE, LONGEST_MS, MOST_INSTANCES, MOST_KEPT, SHORTEST_EVERY_MS, SHORTEST_INTERVAL_MS, is_zone,
};
use kitbag_format::service::{
    Backoff, Cron, GiveUp, LogFormat, LogTo, Logs, More, Overlap, Process, SIGNALS, Schedule, Service,
    Success, Task, WhenSlow,
};
use kitbag_format::template::Piece;
use toml::Spanned;
use toml::de::DeTable;

use super::{COMMAND, CommandSource, name_fault};
use crate::diagnostic::{Diagnostic, near_miss};
use crate::read::{Key, Reader, Section, Text, alternatives, whole};

mod needs;
mod ports;
mod probe;
mod process;
pub mod references;
mod sandbox;
mod values;

use needs::{Kind, Unit};
use references::Party;
use values::shown_ms;

/// What stands in the table of a service beside the keys of a command and of its processes.
const OF_SERVICE: &[Key] = &[
    ("restart", "restart = \"on-failure\""),
    ("restart-delay", "restart-delay = { first = \"100ms\", longest = \"30s\", stable = \"10s\" }"),
    ("give-up", "give-up = { failures = 5, within = \"60s\" }"),
    ("ready", "ready = { tcp = \"127.0.0.1:8080\" }"),
    ("health", "health = { http = \"http://127.0.0.1:8080/healthz\", interval = \"10s\" }"),
    ("instances", "instances = 4"),
    ("ports", "ports = { http = { prefer = \"${env.PORT:-8080}\", range = \"8000-8999\" } }"),
];
/// What stands in that of a task.
const OF_TASK: &[Key] = &[
    ("schedule", "schedule = \"0 3 * * *\""),
    ("every", "every = \"1h\""),
    ("on-demand", "on-demand = true"),
    ("time-zone", "time-zone = \"Europe/Berlin\""),
    ("overlap", "overlap = \"skip\""),
    ("catch-up", "catch-up = true"),
    ("timeout", "timeout = \"30m\""),
];
/// What stands in both.
const OF_BOTH: &[Key] = &[
    ("needs", "needs = [\"db\"]"),
    ("stop-signal", "stop-signal = \"SIGTERM\""),
    ("stop-timeout", "stop-timeout = \"10s\""),
    ("success", "success = [0, 2, \"SIGTERM\"]"),
    ("user", "user = \"www-data\""),
    ("group", "group = \"www-data\""),
    ("groups", "groups = [\"video\"]"),
    ("umask", "umask = \"027\""),
    ("nice", "nice = 5"),
    ("oom-score", "oom-score = 500"),
    ("limits", "limits = { nofile = 65536, core = \"unlimited\" }"),
    ("pass-env", "pass-env = [\"PATH\", \"LANG\"]"),
    ("env-files", "env-files = [\"${state}/env?\"]"),
    ("memory-max", "memory-max = \"512M\""),
    ("pids-max", "pids-max = 100"),
    ("render", "render = [{ from = \"etc/web.conf\", to = \"web.conf\" }]"),
    ("sandbox", "sandbox = { connect = [\"cache.main\", 443] }"),
];

/// Keys of `[services.NAME]`.
pub(super) const SERVICE: &[Key] =
    &join::<{ COMMAND.len() + OF_SERVICE.len() + OF_BOTH.len() }>(&[COMMAND, OF_SERVICE, OF_BOTH]);
/// Keys of `[tasks.NAME]`.
pub(super) const TASK: &[Key] =
    &join::<{ COMMAND.len() + OF_TASK.len() + OF_BOTH.len() }>(&[COMMAND, OF_TASK, OF_BOTH]);
/// Keys of `[logs]`.
pub(super) const LOGS: &[Key] = &[
    ("to", "to = { files = \"${state}/log\" }"),
    ("format", "format = \"json\""),
    ("max-size", "max-size = \"16M\""),
    ("max-age", "max-age = \"24h\""),
    ("keep", "keep = 5"),
    ("compress", "compress = false"),
    ("when-slow", "when-slow = \"drop\""),
];
const LOGS_TO: &[Key] = &[("files", "files = \"${state}/log\"")];
const RESTART_DELAY: &[Key] =
    &[("first", "first = \"100ms\""), ("longest", "longest = \"30s\""), ("stable", "stable = \"10s\"")];
const GIVE_UP: &[Key] = &[("failures", "failures = 5"), ("within", "within = \"60s\"")];

const DAY_MS: u64 = 24 * 60 * 60 * 1000;
/// A longer wait than a day for a process is a mistake.
const STOP: RangeInclusive<u64> = 0..=DAY_MS;
const WAIT: RangeInclusive<u64> = SHORTEST_INTERVAL_MS..=DAY_MS;
const LONG: RangeInclusive<u64> = SHORTEST_INTERVAL_MS..=LONGEST_MS;
const EVERY: RangeInclusive<u64> = SHORTEST_EVERY_MS..=LONGEST_MS;
/// What a service bundle starts.
#[derive(Debug)]
pub struct Supervised {
    /// `[services.NAME]`, at least one.
    pub services: Vec<(Text, ServiceSource)>,
    /// `[tasks.NAME]`
    pub tasks: Vec<(Text, TaskSource)>,
    /// `[logs]`
    pub logs: Logs,
    /// References to ports of other bundles, with their places.
    pub elsewhere: Vec<(Range<usize>, Reference)>,
    /// What is odd and no error, with its place.
    pub odd: Vec<(Range<usize>, String)>,
}

/// A file that is rendered.
#[derive(Debug)]
pub struct RenderSource {
    /// Path in the tree, in normal form.
    pub from: Text,
    /// Path in the state folder, in normal form.
    pub to: Text,
}

/// `[services.NAME]`
#[derive(Debug)]
pub struct ServiceSource {
    /// What it says, with empty commands.
    pub service: Service,
    /// The commands, in the order of [`Service::commands`].
    pub commands: Vec<CommandSource>,
    /// The files that are rendered for it.
    pub renders: Vec<RenderSource>,
}

/// `[tasks.NAME]`
#[derive(Debug)]
pub struct TaskSource {
    /// What it says, with an empty command.
    pub task: Task,
    /// The command.
    pub command: CommandSource,
    /// Where `time-zone` stands.
    pub zone: Option<Text>,
    /// The files that are rendered for it.
    pub renders: Vec<RenderSource>,
}

/// What a service and a task have in common.
struct Common {
    command: Option<CommandSource>,
    needs: Vec<Text>,
    stop_signal: String,
    stop_timeout_ms: u64,
    success: Success,
    process: Process,
}

/// Several lists as one.
const fn join<const N: usize>(parts: &[&[Key]]) -> [Key; N] {
    let mut all = [("", ""); N];
    let (mut part, mut at) = (0, 0);
    while part < parts.len() {
        let mut number = 0;
        while number < parts[part].len() {
            all[at] = parts[part][number];
            number += 1;
            at += 1;
        }
        part += 1;
    }
    all
}

/// `[logs]` go to what is none of these names.
fn unknown_log_to(text: &Text, names: &[(&'static str, bool)]) -> Diagnostic {
    let names = names.iter().map(|(name, _)| *name);
    let error = Diagnostic::new(format!("unknown `to` `{}`", text.get_ref()))
        .at(text.span(), "expected `auto`, `stdout` or a table `{ files = \"…\" }`");
    match near_miss(text.get_ref(), names) {
        Some(near) => error.near(Some(near)),
        None => error.help("for a folder with files, write `to = { files = \"${state}/log\" }`"),
    }
}

impl Reader<'_> {
    /// Reports tables that mean nothing where nothing is supervised.
    pub(super) fn need_services(&mut self, top: &Section<'_>) {
        for key in ["tasks", "logs"] {
            if top.get(key).is_some() {
                let error = Diagnostic::new(format!("`{key}` without `services`"))
                    .at(top.key_span(key), "only a service bundle has a supervisor")
                    .help("write a table for each service: `[services.web]`");
                self.errors.push(error);
            }
        }
    }

    /// Services, tasks and logs; `None` if a service or task is wrong.
    pub(super) fn supervised(&mut self, top: &Section<'_>) -> Option<Supervised> {
        let mut units = Vec::new();
        let mut parties = Vec::new();
        let services = self.named(top, "services", |reader, name, table, span| {
            let (service, needs, party) = reader.service(name, table, span);
            units.push(Unit { name: name.clone(), kind: Kind::Service, needs });
            parties.push(party);
            service
        });
        let tasks = self.named(top, "tasks", |reader, name, table, span| {
            let (task, kind, needs, party) = reader.task(name, table, span);
            units.push(Unit { name: name.clone(), kind, needs });
            parties.push(party);
            task
        });
        let logs = self.logs(top);
        needs::check(&units, &mut self.errors);
        let odd = references::check(&parties, &mut self.errors);
        if services.is_empty() && top.get("services").is_some_and(|value| value.get_ref().is_table()) {
            let error = Diagnostic::new("`services` names no service").at(top.key_span("services"), "");
            self.errors.push(error.help("write a table for each: `[services.web]`"));
            return None;
        }
        let services = services.into_iter().map(|(name, service)| Some((name, service?)));
        let tasks = tasks.into_iter().map(|(name, task)| Some((name, task?)));
        let services: Vec<(Text, ServiceSource)> = services.collect::<Option<_>>()?;
        let tasks: Vec<(Text, TaskSource)> = tasks.collect::<Option<_>>()?;
        let of_tasks = tasks.iter().flat_map(|(_, task)| &task.renders);
        let renders = services.iter().flat_map(|(_, service)| &service.renders).chain(of_tasks);
        self.unique("the rendered file", renders.map(|render| &render.to));
        Some(Supervised { services, tasks, logs, elsewhere: elsewhere(&parties), odd })
    }

    /// The tables in table `key`, by name.
    fn named<T>(
        &mut self,
        top: &Section<'_>,
        key: &str,
        mut read: impl FnMut(&mut Self, &Text, &DeTable<'_>, Range<usize>) -> Option<T>,
    ) -> Vec<(Text, Option<T>)> {
        let Some(table) = self.table(top, key) else { return Vec::new() };
        let what = key.trim_end_matches('s');
        let mut all = Vec::new();
        for (name, value) in table.get_ref().iter() {
            let name = Spanned::new(name.span(), name.get_ref().clone().into_owned());
            self.check(&name, name_fault(name.get_ref()), &format!("bad {what} name"));
            let read = match value.get_ref().as_table() {
                Some(table) => read(self, &name, table, value.span()),
                None => {
                    let error = Diagnostic::new(format!("{what} `{}` must be a table", name.get_ref()))
                        .at(value.span(), format!("expected a table, found {}", value.get_ref().type_str()))
                        .help(format!("write `[{key}.{}]` and `argv` below it", name.get_ref()));
                    self.errors.push(error);
                    None
                }
            };
            all.push((name, read));
        }
        all
    }

    fn service(
        &mut self,
        name: &Text,
        table: &DeTable<'_>,
        span: Range<usize>,
    ) -> (Option<ServiceSource>, Vec<Text>, Party) {
        let title = format!("`[services.{}]`", name.get_ref());
        let section = self.section(&title, table, span, SERVICE);
        let common = self.common(&section);
        let (ready, ready_command) = self.ready(&section);
        let (health, health_command) = self.health(&section);
        let late = std::mem::take(&mut self.late);
        let instances = self.integer(&section, "instances", 1..=MOST_INSTANCES).unwrap_or(1);
        let ports = self.ports(&section, instances);
        self.meets_no_socket(&section, &ready.when, &ports.all);
        let bind = if ports.all.is_empty() { Bind::Any } else { Bind::Declared };
        let (sandbox, connect) = self.sandbox(&section, bind);
        let renders = self.render(&section, instances);
        let more = More {
            success: common.success,
            backoff: self.restart_delay(&section),
            give_up: self.give_up(&section),
            ready,
            health,
            needs: plain(&common.needs),
            instances,
            ports: ports.all.clone(),
            process: Process { render: sandbox::renders(&renders), sandbox, ..common.process },
        };
        let service = Service {
            command: Command::default(),
            restart: self.choice(&section, "restart", Restart::WORDS).unwrap_or_default(),
            stop_signal: common.stop_signal,
            stop_timeout_ms: common.stop_timeout_ms,
            more,
        };
        let source = common.command.map(|command| {
            let commands = [Some(command), ready_command, health_command].into_iter().flatten().collect();
            ServiceSource { service, commands, renders }
        });
        let party = Party { name: name.clone(), ports: Some(ports), instances, late, connect };
        (source, common.needs, party)
    }

    fn task(
        &mut self,
        name: &Text,
        table: &DeTable<'_>,
        span: Range<usize>,
    ) -> (Option<TaskSource>, Kind, Vec<Text>, Party) {
        let title = format!("`[tasks.{}]`", name.get_ref());
        let section = self.section(&title, table, span, TASK);
        let common = self.common(&section);
        let late = std::mem::take(&mut self.late);
        let (schedule, zone) = self.schedule(&section);
        let (sandbox, connect) = self.sandbox(&section, Bind::Any);
        let renders = self.render(&section, 1);
        let kind = match (section.get("schedule").or(section.get("every")), &schedule) {
            (Some(_), _) => Kind::Scheduled,
            (None, Schedule::Asked) => Kind::Asked,
            _ => Kind::First,
        };
        let task = Task {
            command: Command::default(),
            schedule,
            needs: plain(&common.needs),
            overlap: self.choice(&section, "overlap", Overlap::WORDS).unwrap_or_default(),
            catch_up: self.boolean(&section, "catch-up").unwrap_or_default(),
            timeout_ms: self.duration(&section, "timeout", LONG),
            stop_signal: common.stop_signal,
            stop_timeout_ms: common.stop_timeout_ms,
            success: common.success,
            process: Process { render: sandbox::renders(&renders), sandbox, ..common.process },
        };
        let source = common.command.map(|command| TaskSource { task, command, zone, renders });
        let party = Party { name: name.clone(), ports: None, instances: 1, late, connect };
        (source, kind, common.needs, party)
    }

    fn common(&mut self, section: &Section<'_>) -> Common {
        let needs = self.strings(section, "needs").map(Spanned::into_inner).unwrap_or_default();
        self.unique("the need", needs.iter());
        Common {
            command: self.command(section),
            needs,
            stop_signal: self.signal_of(section, "stop-signal").unwrap_or_else(default_stop_signal),
            stop_timeout_ms: self
                .duration(section, "stop-timeout", STOP)
                .unwrap_or_else(default_stop_timeout_ms),
            success: self.success(section),
            process: self.process(section),
        }
    }

    fn restart_delay(&mut self, service: &Section<'_>) -> Backoff {
        let mut backoff = Backoff::default();
        let Some(table) = self.table(service, "restart-delay") else { return backoff };
        let title = inner(service, "restart-delay");
        let section = self.section(&title, table.get_ref(), table.span(), RESTART_DELAY);
        let first = self.duration(&section, "first", 1..=LONGEST_MS);
        let longest = self.duration(&section, "longest", 1..=LONGEST_MS);
        backoff.first_ms = first.unwrap_or(backoff.first_ms);
        backoff.longest_ms = longest.unwrap_or_else(|| backoff.longest_ms.max(backoff.first_ms));
        backoff.stable_ms = self.duration(&section, "stable", 0..=LONGEST_MS).unwrap_or(backoff.stable_ms);
        if backoff.longest_ms < backoff.first_ms {
            let error = Diagnostic::new(format!("`longest` in {title} is shorter than `first`"))
                .at(section.key_span("longest"), format!("expected {} or more", shown_ms(backoff.first_ms)));
            self.errors.push(error);
        }
        backoff
    }

    fn give_up(&mut self, service: &Section<'_>) -> Option<GiveUp> {
        let table = self.table(service, "give-up")?;
        let title = inner(service, "give-up");
        let section = self.section(&title, table.get_ref(), table.span(), GIVE_UP);
        self.require(&section, "failures");
        self.require(&section, "within");
        let failures = self.integer(&section, "failures", 1..=10_000);
        let within_ms = self.duration(&section, "within", LONG);
        Some(GiveUp { failures: failures?, within_ms: within_ms? })
    }

    /// Exit statuses and signals that count as good.
    fn success(&mut self, section: &Section<'_>) -> Success {
        let mut success = Success::default();
        let Some(value) = section.get("success") else { return success };
        let Some(items) = value.get_ref().as_array() else {
            self.wrong_type(section, "success", value, "a list of exit statuses and signals");
            return success;
        };
        for item in items.iter() {
            match (whole(item.get_ref()).map(u8::try_from), self.text_of(item)) {
                // It is one anyway.
                (Some(Ok(0)), _) => {}
                (Some(Ok(code)), _) => success.codes.push(code),
                (_, Some(text)) => success.signals.extend(self.signal(&text)),
                _ => self.wrong_type(
                    section,
                    "success",
                    item,
                    "an exit status from 0 to 255 or a signal's name",
                ),
            }
        }
        success
    }

    fn schedule(&mut self, section: &Section<'_>) -> (Schedule, Option<Text>) {
        let expression = self.string(section, "schedule");
        let every = self.duration(section, "every", EVERY);
        let asked = self.boolean(section, "on-demand").unwrap_or_default();
        let zone = self.string(section, "time-zone");
        if let Some(expression) = &expression {
            self.check(expression, cron_fault(expression.get_ref()), "bad schedule");
        }
        if let Some(zone) = &zone {
            let fault = (!is_zone(zone.get_ref()))
                .then(|| "expected `UTC`, `local`, or a name such as `Europe/Berlin`".to_owned());
            self.check(zone, fault, "bad time zone");
        }
        let when: Vec<&str> =
            ["schedule", "every"].into_iter().filter(|key| section.get(key).is_some()).collect();
        let when: Vec<&str> = when.into_iter().chain(asked.then_some("on-demand")).collect();
        if let [one, other, ..] = when[..] {
            self.both(section, one, other);
        }
        if section.get("schedule").is_none() {
            for (key, why) in [
                ("time-zone", "only `schedule` names times of day"),
                ("catch-up", "only with `schedule` a run can have been missed"),
            ] {
                self.idle(section, key, why);
            }
        }
        let schedule = match (expression, every) {
            (Some(expression), _) => {
                let zone = zone.as_ref().map_or("UTC", |zone| zone.get_ref()).to_owned();
                Schedule::Cron(Cron { expression: expression.into_inner(), zone })
            }
            (None, Some(every)) => Schedule::Every(every),
            (None, None) if asked => Schedule::Asked,
            (None, None) => Schedule::Start,
        };
        (schedule, zone)
    }

    fn logs(&mut self, top: &Section<'_>) -> Logs {
        let defaults = Logs::default();
        let Some(table) = self.table(top, "logs") else { return defaults };
        let section = self.section("`[logs]`", table.get_ref(), table.span(), LOGS);
        Logs {
            to: self.log_to(&section).unwrap_or(defaults.to),
            format: self.choice(&section, "format", LogFormat::WORDS).unwrap_or(defaults.format),
            max_size: self.size(&section, "max-size", LOG_SIZE).unwrap_or(defaults.max_size),
            max_age_ms: self.duration(&section, "max-age", 1_000..=LONGEST_MS),
            keep: self.integer(&section, "keep", 0..=MOST_KEPT).unwrap_or(defaults.keep),
            compress: self.boolean(&section, "compress").unwrap_or(defaults.compress),
            when_slow: self.choice(&section, "when-slow", WhenSlow::WORDS).unwrap_or(defaults.when_slow),
        }
    }

    fn log_to(&mut self, logs: &Section<'_>) -> Option<LogTo> {
        const NAMES: &[(&str, bool)] = &[("auto", true), ("stdout", false)];
        let value = logs.get("to")?;
        let Some(table) = value.get_ref().as_table() else {
            if let Some(text) = self.text_of(value) {
                let found = NAMES.iter().find(|(name, _)| name == text.get_ref());
                if found.is_none() {
                    self.errors.push(unknown_log_to(&text, NAMES));
                }
                return found.map(|(_, auto)| if *auto { LogTo::Auto } else { LogTo::Stdout });
            }
            self.wrong_type(logs, "to", value, "`\"auto\"`, `\"stdout\"` or a table");
            return None;
        };
        let section = self.section("`[logs.to]`", table, value.span(), LOGS_TO);
        self.require(&section, "files");
        let folder = self.string(&section, "files")?;
        self.place_of_host(&folder, &["${state}/", "${env."], "bad folder for logs");
        Some(LogTo::Files(folder.into_inner()))
    }

    fn signal_of(&mut self, section: &Section<'_>, key: &str) -> Option<String> {
        let text = self.string_as(section, key, "the name of a signal")?;
        self.signal(&text)
    }

    /// A signal's full name, whether written with `SIG` or without.
    fn signal(&mut self, text: &Text) -> Option<String> {
        let written: &str = text.get_ref();
        let full = if written.starts_with("SIG") { written.to_owned() } else { format!("SIG{written}") };
        if SIGNALS.contains(&full.as_str()) {
            return Some(full);
        }
        let error = Diagnostic::new(format!("unknown signal `{written}`"))
            .at(text.span(), "expected a name of signal(7), such as `SIGTERM`")
            .near(near_miss(&full.to_uppercase().replacen("SIGSIG", "SIG", 1), SIGNALS.iter().copied()));
        self.errors.push(error);
        None
    }

    /// Reports two keys of which one alone makes sense.
    fn both(&mut self, section: &Section<'_>, one: &str, other: &str) {
        let error = Diagnostic::new(format!("both `{one}` and `{other}` in {}", section.title()))
            .at(section.key_span(one), "")
            .at(section.key_span(other), "")
            .help("keep one of them");
        self.errors.push(error);
    }

    /// Reports `key`, if it is there, as one that changes nothing.
    fn idle(&mut self, section: &Section<'_>, key: &str, why: &str) {
        if section.get(key).is_some() {
            let error = Diagnostic::new(format!("`{key}` in {} has no effect", section.title()))
                .at(section.key_span(key), why)
                .help("leave it out");
            self.errors.push(error);
        }
    }
}

/// What is wrong with a crontab(5) expression, if anything.
fn cron_fault(text: &str) -> Option<String> {
    let error = Expression::parse(text).err()?;
    let near = match &error {
        CronError::Word(word) => near_miss(word, cron::words()).filter(|_| word != "@reboot"),
        _ => None,
    };
    Some(near.map_or_else(|| error.to_string(), |near| format!("expected `{near}` or five fields")))
}

/// How messages call the table `key` in `section`: `` `[services.web.ready]` ``.
fn inner(section: &Section<'_>, key: &str) -> String {
    let title = section.title();
    format!("{}.{key}]`", title.trim_end_matches("]`"))
}

/// The references of `parties` to ports of other bundles.
fn elsewhere(parties: &[Party]) -> Vec<(Range<usize>, Reference)> {
    let late = parties.iter().flat_map(|party| &party.late);
    let written = late.filter_map(|late| match &late.piece {
        Piece::Port(reference) => Some((late.span.clone(), reference.clone())),
        _ => None,
    });
    let connect = parties.iter().flat_map(|party| &party.connect);
    let connect = connect
        .filter_map(|entry| Some((entry.span(), Reference::parse(&format!("ports.{}", entry.get_ref()))?)));
    written.chain(connect).filter(|(_, reference)| reference.bundle.is_some()).collect()
}

fn plain(texts: &[Text]) -> Vec<String> {
    texts.iter().map(|text| text.get_ref().clone()).collect()
}

/// Every list of keys, for the test of the reference.
#[cfg(test)]
pub(super) fn key_lists() -> [&'static [Key]; 11] {
    let (port, sandbox, render) = (ports::PORT, sandbox::SANDBOX, sandbox::RENDER);
    [SERVICE, TASK, LOGS, LOGS_TO, RESTART_DELAY, GIVE_UP, probe::READY, probe::HEALTH, port, sandbox, render]
}

#[cfg(test)]
mod tests;
