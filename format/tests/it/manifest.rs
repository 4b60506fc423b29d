//! What a reader makes of a manifest.

use kitbag_format::Manifest;
use kitbag_format::manifest::{Restart, Run};
use kitbag_format::port::{Bind, Protocol};
use kitbag_format::service::fault::order;
use kitbag_format::service::{LogFormat, Overlap, WhenSlow};
use serde::Serialize;
use serde_json::{Value, json};

use crate::bundle;

mod ports;

const SERVICE: &str = r#"{"name": "web", "version": "1", "services": {"web": {"argv": ["bin/web"]}}}"#;

#[test]
fn a_manifest_comes_back_as_it_was_written() {
    let manifest = bundle::manifest();
    let text = manifest.to_text();
    assert!(text.ends_with("}\n"));
    assert_eq!(Manifest::from_text(&text).expect("a manifest"), manifest);
    assert_eq!(manifest.fault(), None);
}

/// A manifest in which each field says something, as it is written.
const EVERYTHING: &str = include_str!("../fixtures/everything.json");

#[test]
fn each_field_is_read_and_written_under_its_name() {
    let manifest = Manifest::from_text(EVERYTHING).expect("a manifest");
    assert_eq!(manifest.to_text(), EVERYTHING);
    let whole: Value = serde_json::from_str(EVERYTHING).expect("JSON");
    let mut leaves = Vec::new();
    leaves_of(&whole, &mut Vec::new(), &mut leaves);
    assert!(leaves.len() > 100, "{}", leaves.len());
    for leaf in leaves {
        let mut other = whole.clone();
        let place = other.pointer_mut(&format!("/{}", leaf.join("/"))).expect("it is there");
        // What may be an object is no list of lists, and what may be a list is no object.
        *place = if place.is_null() { json!([[]]) } else { json!({"x": [], "y": []}) };
        let wrong = Manifest::from_text(&other.to_string()).expect_err(&leaf.join(".")).to_string();
        assert!(wrong.starts_with(&leaf.join(".")), "{leaf:?}: {wrong}");
    }
}

/// The ways to all values that hold no others.
fn leaves_of(value: &Value, way: &mut Vec<String>, all: &mut Vec<Vec<String>>) {
    let inside: Vec<(String, &Value)> = match value {
        Value::Object(fields) => fields.iter().map(|(name, value)| (name.clone(), value)).collect(),
        Value::Array(values) => values.iter().enumerate().map(|(at, it)| (at.to_string(), it)).collect(),
        _ => Vec::new(),
    };
    if inside.is_empty() {
        all.push(way.clone());
    }
    for (name, value) in inside {
        way.push(name);
        leaves_of(value, way, all);
        way.pop();
    }
}

#[test]
fn words_are_read_as_they_are_written() {
    fn same<T: Serialize>(words: &[(&str, T)]) {
        for (word, value) in words {
            assert_eq!(serde_json::to_value(value).expect("JSON"), *word);
        }
    }
    same(Restart::WORDS);
    same(Overlap::WORDS);
    same(LogFormat::WORDS);
    same(WhenSlow::WORDS);
    same(Protocol::WORDS);
    same(Bind::WORDS);
    for (from, to) in [
        (r#""when": "watchdog""#, r#""when": {"watchdog": 1}"#),
        (r#""to": {"#, r#""to": "syslog", "x": {"#),
        (r#""overlap": "queue""#, r#""overlap": "wait""#),
    ] {
        assert!(Manifest::from_text(&EVERYTHING.replacen(from, to, 1)).is_err(), "{to}");
    }
    for (from, to) in [
        (r#""files": "${state}/log""#, r#""stdout": null"#),
        (r#""tcp": "[::1]:5432""#, r#""command": {"argv": []}"#),
        (r#""schedule": {"#, r#""schedule": {"every": 5}, "x": {"#),
        (r#""schedule": {"#, r#""schedule": "asked", "x": {"#),
    ] {
        let text = EVERYTHING.replacen(from, to, 1);
        let manifest = Manifest::from_text(&text).unwrap_or_else(|wrong| panic!("{to}: {wrong}"));
        assert_eq!(Manifest::from_text(&manifest.to_text()).as_ref(), Ok(&manifest), "{to}");
        assert_ne!(manifest.to_text(), EVERYTHING, "{to}");
    }
}

#[test]
fn unknown_fields_are_ignored_and_defaults_filled_in() {
    let later = SERVICE.replace("\"version\"", "\"mood\": {\"x\": [1]}, \"version\"");
    let manifest = Manifest::from_text(&later).expect("a later manifest");
    assert_eq!(manifest, Manifest::from_text(SERVICE).expect("a manifest"));
    let text = manifest.to_text();
    assert!(text.contains("\"stop_signal\": \"SIGTERM\"") && text.contains("\"stop_timeout_ms\": 10000"));
    assert!(text.contains("\"restart\": \"always\""));
}

#[test]
fn a_manifest_that_starts_nothing_or_both_kinds_is_refused() {
    assert!(Manifest::from_text(r#"{"name": "web", "version": "1"}"#).is_err());
    let empty = Manifest::from_text(r#"{"name": "web", "version": "1", "services": {}}"#).expect("parses");
    assert_eq!(empty.fault(), Some("has no program, or a path that leaves the tree"));
    let none =
        Manifest::from_text(r#"{"name": "web", "version": "1", "command": {"argv": []}}"#).expect("parses");
    assert!(none.fault().is_some());
    assert!(Manifest::from_text(&"[".repeat(100_000)).is_err());
}

#[test]
fn a_text_that_would_take_much_memory_is_refused_and_what_nobody_asks_for_takes_none() {
    let with = |count: usize| {
        let unknown = format!("\"x\": [{}0], \"version\"", "{\"a\":0},".repeat(count));
        SERVICE.replacen("\"version\"", &unknown, 1)
    };
    assert_eq!(Manifest::from_text(&with(10_000)), Manifest::from_text(SERVICE));
    let wrong = Manifest::from_text(&with(1 << 18)).expect_err("too many objects").to_string();
    assert!(wrong.contains("is not so long"), "{wrong}");
    assert!(Manifest::from_text(&format!("{SERVICE}{}", " ".repeat(32 << 20))).is_err());
}

#[test]
fn names_and_paths_that_lead_elsewhere_are_refused() {
    for (from, to) in [
        ("\"name\": \"web\"", "\"name\": \"../../etc\""),
        ("\"name\": \"web\"", "\"name\": \"..\""),
        ("\"name\": \"web\"", "\"name\": \"\""),
        ("\"version\": \"1\"", "\"version\": \"1/../../x\""),
        ("\"version\": \"1\"", "\"version\": \"\\u001b[2J\""),
        ("{\"web\":", "{\"we\\nb\":"),
        ("bin/web", "/bin/sh"),
        ("bin/web", "../sh"),
        ("\"services\"", "\"seeds\": [{\"from\": \"a\", \"to\": \"../b\"}], \"services\""),
        ("\"services\"", "\"seeds\": [{\"from\": \"/etc/passwd\", \"to\": \"b\"}], \"services\""),
    ] {
        let text = SERVICE.replacen(from, to, 1);
        assert_ne!(text, SERVICE);
        let manifest = Manifest::from_text(&text).expect("it parses");
        assert!(manifest.fault().is_some(), "{text}");
    }
}

/// The service with `more` in it, and what else the manifest has.
fn fault_of(more: &str, beside: &str) -> Option<&'static str> {
    let text = format!(
        r#"{{"name": "web", "version": "1", "services": {{"web": {{"argv": ["bin/web"] {more}}}}} {beside}}}"#
    );
    Manifest::from_text(&text).unwrap_or_else(|error| panic!("{error}\n{text}")).fault()
}

/// A task `t` with `more` in it.
fn task(more: &str) -> String {
    format!(
        r#", "tasks": {{"t": {{"command": {{"argv": ["bin/t"]}}, "stop_signal": "SIGTERM", "stop_timeout_ms": 1 {more}}}}}"#
    )
}

#[test]
fn services_tasks_and_logs_of_any_sound_kind_are_taken() {
    for more in [
        "",
        r#", "needs": ["t"], "instances": 1000, "give_up": {"failures": 1, "within_ms": 1}"#,
        r#", "ready": {"when": "notify"}, "success": {"codes": [2], "signals": ["SIGHUP"]}"#,
        r#", "ready": {"when": {"probe": {"http": {"address": "127.0.0.1:1", "path": "/x"}}}}"#,
        r#", "process": {"umask": 511, "nice": -20, "limits": {"nofile": 1, "core": null}, "env_files": ["${state}/x?"]}"#,
    ] {
        assert_eq!(fault_of(more, &task("")), None, "{more}");
    }
    let cron =
        task(r#", "schedule": {"cron": {"expression": "0 3 * * *", "zone": "America/Argentina/Ushuaia"}}"#);
    assert_eq!(fault_of("", &cron), None);
    assert_eq!(fault_of("", &task(r#", "schedule": {"every": 1000}, "needs": ["web"]"#)), None);
    assert_eq!(fault_of("", r#", "logs": {"to": {"files": "/var/log/x"}, "keep": 0}"#), None);
}

#[test]
fn needs_lead_to_an_end() {
    let fault = Some("has a service that needs what is not there, or that needs itself in the end");
    assert_eq!(fault_of(r#", "needs": ["nothing"]"#, ""), fault);
    assert_eq!(fault_of(r#", "needs": ["web"]"#, ""), fault);
    assert_eq!(fault_of(r#", "needs": ["t"]"#, &task(r#", "needs": ["web"]"#)), fault);
    assert_eq!(fault_of(r#", "needs": ["t"]"#, &task(r#", "schedule": {"every": 1000}"#)), fault);
    assert_eq!(fault_of(r#", "needs": ["t"]"#, &task(r#", "schedule": "asked""#)), fault);
    assert_eq!(fault_of(r#", "needs": ["t", "t"]"#, &task("")), None, "twice is once");
}

#[test]
fn an_order_has_needs_first() {
    let services: Vec<String> = (0..2000)
        .map(|n| {
            format!(
                r#""s{n}": {{"argv": ["x"], "needs": [{}]}}"#,
                if n < 1999 { format!("\"s{}\"", n + 1) } else { String::new() }
            )
        })
        .collect();
    let text = format!(r#"{{"name": "web", "version": "1", "services": {{{}}}}}"#, services.join(","));
    let manifest = Manifest::from_text(&text).expect("a manifest");
    assert_eq!(manifest.fault(), None);
    let Run::Services(services) = &manifest.run else { panic!("{manifest:?}") };
    let order = order(services, &manifest.tasks).expect("an order");
    assert_eq!((order.len(), order[0], order[1999]), (2000, "s1999", "s0"));
    let ring = text.replace(r#""argv": ["x"], "needs": []"#, r#""argv": ["x"], "needs": ["s7"]"#);
    assert!(Manifest::from_text(&ring).expect("a manifest").fault().is_some());
}

#[test]
fn a_name_that_is_an_instances_is_refused() {
    let with = |name: &str| {
        let other = format!("\"services\": {{\"{name}\": {{\"argv\": [\"bin/web\"]}}, ");
        Manifest::from_text(&SERVICE.replacen("\"services\": {", &other, 1)).expect("a manifest").fault()
    };
    assert_eq!(with("web.1"), Some("has a name that stands for an instance of another service"));
    assert!(with("web.1000").is_some());
    for name in ["web.x", "web.1x", "db.1", "web-1"] {
        assert_eq!(with(name), None, "{name}");
    }
}

#[test]
fn settings_that_would_harm_a_supervisor_are_refused() {
    for more in [
        r#", "instances": 0"#,
        r#", "instances": 1001"#,
        r#", "stop_signal": "SIGNOTHING""#,
        r#", "stop_timeout_ms": 18446744073709551615"#,
        r#", "success": {"signals": ["x"]}"#,
        r#", "backoff": {"first_ms": 0}"#,
        r#", "backoff": {"first_ms": 100, "longest_ms": 10}"#,
        r#", "give_up": {"failures": 0, "within_ms": 1}"#,
        r#", "ready": {"timeout_ms": 0}"#,
        r#", "ready": {"when": {"newline": 1}}"#,
        r#", "ready": {"when": {"up-for": 99999999999999}}"#,
        r#", "ready": {"when": {"probe": {"tcp": "127.0.0.1:1"}}, "interval_ms": 0}"#,
        r#", "ready": {"when": {"probe": {"tcp": ""}}}"#,
        r#", "ready": {"when": {"probe": {"http": {"address": "127.0.0.1:1", "path": "/ HTTP/1.1\r\n\r\n"}}}}"#,
        r#", "ready": {"when": {"probe": {"http": {"address": "127.0.0.1:1\r\n", "path": "/"}}}}"#,
        r#", "ready": {"when": {"probe": {"command": {"argv": ["/bin/sh"]}}}}"#,
        r#", "health": {"when": "watchdog", "interval_ms": 0, "timeout_ms": 1, "failures": 1, "kill_signal": "SIGABRT"}"#,
        r#", "health": {"when": "watchdog", "interval_ms": 50, "timeout_ms": 1, "failures": 0, "kill_signal": "SIGABRT"}"#,
        r#", "process": {"umask": 512}"#,
        r#", "process": {"nice": 20}"#,
        r#", "process": {"oom_score": 1001}"#,
        r#", "process": {"limits": {"x": 1}}"#,
        r#", "process": {"user": "a\nb"}"#,
        r#", "process": {"pass_env": ["A=B"]}"#,
        r#", "process": {"env_files": [""]}"#,
        r#", "process": {"pids_max": 0}"#,
    ] {
        assert!(fault_of(more, "").is_some(), "{more}");
    }
    for beside in [
        task(r#", "schedule": {"every": 0}"#),
        task(r#", "schedule": {"cron": {"expression": "", "zone": "UTC"}}"#),
        task(r#", "schedule": {"cron": {"expression": "* * * * *", "zone": "../../etc/passwd"}}"#),
        task(r#", "schedule": {"cron": {"expression": "* * * * *", "zone": "/etc/passwd"}}"#),
        task(r#", "timeout_ms": 0"#),
        task("").replace("bin/t", "../t"),
        task("").replace("\"t\"", "\"web\""),
        task("").replace("\"t\"", "\"../t\""),
        r#", "logs": {"max_size": 1}"#.to_owned(),
        r#", "logs": {"keep": 4294967295}"#.to_owned(),
        r#", "logs": {"max_age_ms": 0}"#.to_owned(),
        r#", "logs": {"to": {"files": ""}}"#.to_owned(),
    ] {
        assert!(fault_of("", &beside).is_some(), "{beside}");
    }
}

#[test]
fn services_without_number_are_refused() {
    let services: Vec<String> =
        (0..11).map(|n| format!(r#""s{n}": {{"argv": ["x"], "instances": 1000}}"#)).collect();
    let text = format!(r#"{{"name": "web", "version": "1", "services": {{{}}}}}"#, services.join(","));
    let fault = Manifest::from_text(&text).expect("a manifest").fault();
    assert_eq!(fault, Some("has more services than a supervisor takes"));
    let tool = format!(r#"{{"name": "web", "version": "1", "command": {{"argv": ["x"]}} {}}}"#, task(""));
    assert_eq!(Manifest::from_text(&tool).expect("a manifest").fault(), Some("has tasks and is a tool"));
}
