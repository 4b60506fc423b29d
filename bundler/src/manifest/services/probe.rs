//! `ready` and `health`: how a service shows that it is up, and that it is well.

use std::net::SocketAddr;

use kitbag_format::manifest::Command;
use kitbag_format::port::{Part, Reference};
use kitbag_format::service::fault::is_url_path;
use kitbag_format::service::{Health, HealthWhen, HttpProbe, Probe, Ready, ReadyWhen};
use kitbag_format::template::{Piece, Template};

use super::{
    CommandSource, DAY_MS, Diagnostic, Key, LONG, Reader, Section, Text, WAIT, alternatives, inner,
    near_miss, whole,
};

/// Keys of `ready`.
pub const READY: &[Key] = &[
    ("notify", "notify = true"),
    ("newline", "newline = 3"),
    ("up-for", "up-for = \"2s\""),
    ("tcp", "tcp = \"127.0.0.1:8080\""),
    ("http", "http = \"http://127.0.0.1:8080/healthz\""),
    ("command", "command = [\"bin/check\"]"),
    ("status", "status = [200]"),
    ("timeout", "timeout = \"60s\""),
    ("interval", "interval = \"100ms\""),
];
/// Keys of `health`.
pub const HEALTH: &[Key] = &[
    ("tcp", "tcp = \"127.0.0.1:8080\""),
    ("http", "http = \"http://127.0.0.1:8080/healthz\""),
    ("command", "command = [\"bin/check\"]"),
    ("watchdog", "watchdog = \"30s\""),
    ("status", "status = [200]"),
    ("interval", "interval = \"10s\""),
    ("timeout", "timeout = \"2s\""),
    ("failures", "failures = 3"),
    ("kill-signal", "kill-signal = \"SIGABRT\""),
];

const READY_KINDS: &[&str] = &["notify", "newline", "up-for", "tcp", "http", "command"];
const HEALTH_KINDS: &[&str] = &["tcp", "http", "command", "watchdog"];
const PROBES: &[&str] = &["tcp", "http", "command"];

const HEALTH_INTERVAL_MS: u64 = 10_000;
const HEALTH_TIMEOUT_MS: u64 = 2_000;
const HEALTH_FAILURES: u32 = 3;
/// sd_notify(3) leaves a core, as systemd does.
const HEALTH_SIGNAL: &str = "SIGABRT";

/// What an address is, for messages.
const ADDRESS: &str = "expected an address and a port, such as `127.0.0.1:8080` or `[::1]:8080`";

impl Reader<'_> {
    /// `ready` of a service, and the command of its probe.
    pub(super) fn ready(&mut self, service: &Section<'_>) -> (Ready, Option<CommandSource>) {
        let mut ready = Ready::default();
        let Some(value) = service.get("ready") else { return (ready, None) };
        let Some(table) = value.get_ref().as_table() else {
            match value.get_ref().as_str() {
                Some("notify") => ready.when = ReadyWhen::Notify,
                _ => self.wrong_type(service, "ready", value, "\"notify\" or a table"),
            }
            return (ready, None);
        };
        let title = inner(service, "ready");
        let section = self.section(&title, table, value.span(), READY);
        let timeout = self.duration(&section, "timeout", LONG);
        let interval = self.duration(&section, "interval", WAIT);
        ready.timeout_ms = timeout.unwrap_or(ready.timeout_ms);
        ready.interval_ms = interval.unwrap_or(ready.interval_ms);
        let Some(kind) = self.one_kind(&section, READY_KINDS) else { return (ready, None) };
        if !PROBES.contains(&kind) {
            self.idle(&section, "interval", "only a probe is tried again");
        }
        let mut command = None;
        match kind {
            "notify" => {
                if self.boolean(&section, kind) == Some(false) {
                    self.idle(&section, kind, "expected `true`");
                }
                ready.when = ReadyWhen::Notify;
            }
            "newline" => {
                let descriptor = self.integer(&section, kind, 3..=u8::MAX);
                ready.when = ReadyWhen::Newline(descriptor.unwrap_or(3));
            }
            "up-for" => {
                self.idle(&section, "timeout", "nothing is waited for");
                let time = self.duration(&section, kind, 0..=DAY_MS).unwrap_or_default();
                ready.when = ReadyWhen::UpFor(time);
                ready.timeout_ms += time;
            }
            _ => {
                let probe;
                (probe, command) = self.probe(&section, kind);
                ready.when = probe.map_or(ready.when, ReadyWhen::Probe);
            }
        }
        (ready, command)
    }

    /// `health` of a service, and the command of its probe.
    pub(super) fn health(&mut self, service: &Section<'_>) -> (Option<Health>, Option<CommandSource>) {
        let Some(table) = self.table(service, "health") else { return (None, None) };
        let title = inner(service, "health");
        let section = self.section(&title, table.get_ref(), table.span(), HEALTH);
        let interval = self.duration(&section, "interval", WAIT);
        let timeout = self.duration(&section, "timeout", WAIT);
        let failures = self.integer(&section, "failures", 1..=1_000);
        let signal = self.signal_of(&section, "kill-signal");
        let health = |when| Health {
            when,
            interval_ms: interval.unwrap_or(HEALTH_INTERVAL_MS),
            timeout_ms: timeout.unwrap_or(HEALTH_TIMEOUT_MS),
            failures: failures.unwrap_or(HEALTH_FAILURES),
            kill_signal: signal.unwrap_or_else(|| HEALTH_SIGNAL.to_owned()),
        };
        let Some(kind) = self.one_kind(&section, HEALTH_KINDS) else { return (None, None) };
        if kind != "watchdog" {
            let (probe, command) = self.probe(&section, kind);
            return (probe.map(|probe| health(HealthWhen::Probe(probe))), command);
        }
        for key in ["interval", "timeout", "failures"] {
            self.idle(&section, key, "`watchdog` says how long the service may be silent");
        }
        let silence = self.duration(&section, kind, WAIT);
        let health = Health { failures: 1, ..health(HealthWhen::Watchdog) };
        (silence.map(|interval_ms| Health { interval_ms, ..health }), None)
    }

    /// The one of `kinds` that the table has; everything else is an error.
    fn one_kind(&mut self, section: &Section<'_>, kinds: &[&'static str]) -> Option<&'static str> {
        let there: Vec<&'static str> =
            kinds.iter().copied().filter(|kind| section.get(kind).is_some()).collect();
        match there[..] {
            // The one that was meant may be misspelt.
            [] if section.has_unknown() => return None,
            [] => {
                let error = Diagnostic::new(format!("{} does not say what is looked at", section.title()))
                    .at(section.span.clone(), format!("expected {}", alternatives(kinds.iter().copied())));
                self.errors.push(error);
                return None;
            }
            [_] => {}
            [one, other, ..] => self.both(section, one, other),
        }
        let kind = there[0];
        if kind != "http" {
            self.idle(section, "status", "only `http` has a status");
        }
        Some(kind)
    }

    fn probe(&mut self, section: &Section<'_>, kind: &str) -> (Option<Probe>, Option<CommandSource>) {
        match kind {
            "command" => {
                let value = section.get(kind);
                let command = value.and_then(|value| self.command_value(section, kind, value));
                (command.is_some().then(|| Probe::Command(Command::default())), command)
            }
            "http" => (self.http(section).map(Probe::Http), None),
            _ => {
                let address = self.string_as(section, kind, "an address and a port, in quotes");
                (address.and_then(|text| self.address(&text, text.get_ref())).map(Probe::Tcp), None)
            }
        }
    }

    fn http(&mut self, section: &Section<'_>) -> Option<HttpProbe> {
        let status = self.statuses(section);
        let url = self.string_as(section, "http", "an address that begins with `http://`, in quotes")?;
        let text: &str = url.get_ref();
        let Some(rest) = text.strip_prefix("http://") else {
            let fault = if text.starts_with("https://") {
                "a probe speaks no TLS: ask a port without it, or use `tcp` or `command`"
            } else {
                "expected `http://` at its beginning, such as `http://127.0.0.1:8080/healthz`"
            };
            self.check(&url, Some(fault.to_owned()), "bad address");
            return None;
        };
        let (address, path) = split_path(rest);
        if path.contains("${") || !is_url_path(path) {
            let fault = "expected a path of printing ASCII letters, without placeholders";
            self.check(&url, Some(fault.to_owned()), "bad address");
            return None;
        }
        let address = self.address(&url, address)?;
        Some(HttpProbe { address, path: path.to_owned(), status })
    }

    fn statuses(&mut self, section: &Section<'_>) -> Vec<u16> {
        let Some(value) = section.get("status") else { return Vec::new() };
        let Some(items) = value.get_ref().as_array() else {
            self.wrong_type(section, "status", value, "a list of HTTP statuses");
            return Vec::new();
        };
        let mut statuses = Vec::new();
        for item in items.iter() {
            let status = whole(item.get_ref()).and_then(|number| u16::try_from(number).ok());
            match status.filter(|status| (100..=599).contains(status)) {
                Some(status) => statuses.push(status),
                None => self.wrong_type(section, "status", item, "an HTTP status from 100 to 599"),
            }
        }
        statuses
    }

    /// The address `written`, which is part of `text`.
    fn address(&mut self, text: &Text, written: &str) -> Option<String> {
        let before = self.errors.len();
        if self.late_template(text, true) {
            self.check(text, address_fault(written), "bad address");
        }
        (self.errors.len() == before).then(|| written.to_owned())
    }
}

/// Address and path of a URL without its scheme. A `/` in a placeholder separates nothing.
fn split_path(rest: &str) -> (&str, &str) {
    let mut depth = 0;
    let slash = rest.char_indices().find(|(_, letter)| {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        *letter == '/' && depth == 0
    });
    slash.map_or((rest, "/"), |(at, _)| rest.split_at(at))
}

/// True for numbers, or `localhost`, with a port: nobody asks a name server while services run.
fn is_address(text: &str) -> bool {
    match text.strip_prefix("localhost:") {
        Some(port) => port.parse::<u16>().is_ok_and(|port| port != 0),
        None => text.parse::<SocketAddr>().is_ok_and(|address| address.port() != 0),
    }
}

/// What is wrong with an address, if anything. Where the host's environment is part of it, there must be some text
/// that makes it one; whatever ports there are, it must be one.
fn address_fault(address: &str) -> Option<String> {
    let pieces = Template::parse(address).map(|template| template.0).unwrap_or_default();
    let known =
        |piece: &Piece| matches!(piece, Piece::Text(_) | Piece::Env(..) | Piece::Port(_) | Piece::Instance);
    let is_open = |piece: &&Piece| matches!(piece, Piece::Env(_, default) if default.as_deref().unwrap_or("").is_empty());
    if !pieces.iter().all(known) {
        return Some("of the placeholders only `${env.NAME}` and ports can be part of it".to_owned());
    }
    if pieces.iter().filter(is_open).count() > 1 {
        return None;
    }
    // With the ports, and without those that have a default.
    let with = |open: &str, defaults: bool| -> String {
        let text = |piece: &Piece| match piece {
            Piece::Text(text) => text.clone(),
            Piece::Env(_, Some(default)) if !default.is_empty() => default.clone(),
            Piece::Port(Reference { default: Some(default), .. }) if defaults => default.clone(),
            Piece::Port(reference) => sample(reference.part).to_owned(),
            Piece::Instance => "1".to_owned(),
            _ => open.to_owned(),
        };
        pieces.iter().map(text).collect()
    };
    let sound = |open: &str| [false, true].into_iter().all(|defaults| is_address(&with(open, defaults)));
    if ["1", "127.0.0.1", "[::1]", "127.0.0.1:1"].into_iter().any(sound) {
        return None;
    }
    if let [Piece::Port(reference)] = &pieces[..]
        && reference.default.is_none()
    {
        let whole = Piece::Port(Reference { part: Part::Address, ..reference.clone() });
        return Some(format!("expected an address and a port: `{}`", super::super::written(&whole)));
    }
    let written = with("", false);
    let host = written.rsplit_once(':').map_or(written.as_str(), |(host, _)| host);
    if near_miss(host, ["localhost"]).is_none() && host.contains(|letter: char| letter.is_ascii_alphabetic())
    {
        return Some(format!("{ADDRESS}; of names only `localhost` is known: a probe asks no name server"));
    }
    Some(ADDRESS.to_owned())
}

/// What a reference can put into an address.
const fn sample(part: Part) -> &'static str {
    match part {
        Part::Number => "1",
        Part::Host => "127.0.0.1",
        Part::Listen | Part::Address => "127.0.0.1:1",
    }
}
