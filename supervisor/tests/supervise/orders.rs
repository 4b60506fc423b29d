//! Orders that cross each other: a start while something stops, two restarts at once, a signal, a scale of what is at rest.

use std::fs;

use serde_json::{Value, json};

use crate::numbers::Numbers;

use super::{App, Gate, actor, app, merge, ready, sh, task};
use crate::{alive, eventually, kill, number};

fn quick(needs: Value) -> Value {
    sh("exec sleep 1000", json!({"needs": needs}))
}

fn are(app: &App, names: &[&str], state: &str) {
    for name in names {
        app.comes_to(name, state);
    }
}

pub fn a_start_while_what_it_needs_stops_brings_both_back() {
    let gate = Gate::new();
    let mut app = app(json!({"db": gate.held(json!([])), "web": quick(json!(["db"]))}), json!({}));
    app.prints("up");
    app.comes_to("web", "ready");
    app.post("/v1/services/db/stop");
    are(&app, &["web"], "stopped");
    are(&app, &["db"], "stopping");
    app.post("/v1/services/web/start");
    gate.open();
    are(&app, &["web", "db"], "ready");
    app.stops();
}

pub fn a_restart_by_name_during_a_restart_of_all_leaves_nobody_behind() {
    let gate = Gate::new();
    let [db, one, other] = [quick(json!([])), gate.held(json!(["db"])), quick(json!(["db"]))];
    let mut app = app(json!({"db": db, "one": one, "other": other}), json!({}));
    app.prints("up");
    are(&app, &["one", "other"], "ready");
    app.post("/v1/restart");
    are(&app, &["one"], "stopping");
    app.post("/v1/services/one/restart");
    gate.open();
    let said = app.ask("GET", "/v1/wait?ready=1&timeout=20");
    assert!(said.is_good(), "{said:?}");
    are(&app, &["db", "one", "other"], "ready");
    app.stops();
}

pub fn what_is_restarted_after_its_need_was_to_stop_keeps_it() {
    let gate = Gate::new();
    let mut app = app(json!({"db": quick(json!([])), "web": gate.held(json!(["db"]))}), json!({}));
    app.prints("up");
    are(&app, &["web"], "ready");
    app.post("/v1/services/db/stop");
    are(&app, &["web"], "stopping");
    app.post("/v1/services/web/restart");
    gate.open();
    eventually("web is back", || app.unit("web")["state"] == "ready" && app.unit("web")["restarts"] == 0);
    assert_eq!(app.state_of("db"), "ready");
    // Nor is it stopped by a later stop, of what needs it alone.
    app.post("/v1/services/web/stop");
    are(&app, &["web"], "stopped");
    assert_eq!(app.state_of("db"), "ready");
    app.stops();
}

pub fn two_restarts_of_all_at_once_forget_no_task() {
    let folder = tempfile::tempdir().expect("a folder");
    let runs = folder.path().join("runs");
    let script = format!("echo x >>{0}; test $(wc -l <{0}) -ge 2 || exec sleep 1000", runs.display());
    let gate = Gate::new();
    let services = json!({"db": gate.held(json!([])), "web": quick(json!(["migrate"]))});
    let mut app = app(services, json!({"migrate": task(&script, json!({"needs": ["db"]}))}));
    app.prints("up");
    eventually("migrate runs", || runs.exists());
    app.post("/v1/restart");
    app.comes_to("migrate", "waiting");
    app.post("/v1/restart");
    gate.open();
    are(&app, &["migrate"], "done");
    are(&app, &["web"], "ready");
    assert_eq!(fs::read_to_string(&runs).expect("it ran").lines().count(), 2);
    app.stops();
}

pub fn what_ends_by_itself_while_it_waits_to_be_restarted_comes_back_once() {
    let [leaves, stops] = [Gate::new(), Gate::new()];
    let again = leaves.folder.path().join("again");
    let script = format!("[ -e {0} ] && exec sleep 1000; {1}; >{0}", again.display(), leaves.waits());
    let db = sh(&script, json!({"restart": "never"}));
    let mut app = app(json!({"db": db, "web": stops.held(json!(["db"]))}), json!({}));
    app.prints("up");
    app.post("/v1/restart");
    are(&app, &["web"], "stopping");
    leaves.open();
    eventually("db has ended and is back", || again.exists() && app.state_of("db") == "ready");
    stops.open();
    app.prints("up");
    are(&app, &["db", "web"], "ready");
    app.stops();
}

pub fn a_start_of_what_is_just_failing_fails_nobody_who_waits_for_it() {
    let gate = Gate::new();
    let mark = gate.folder.path().join("second");
    // The first run is never ready, and takes its time to end; the second one is.
    let script = format!(
        "[ -e {0} ] && {{ echo >&3; exec sleep 1000; }}; >{0}; trap '{1}; exit' TERM; while :; do sleep 0.01; done",
        mark.display(),
        gate.waits()
    );
    let db = json!({"ready": {"when": {"newline": 3}, "timeout_ms": 500, "interval_ms": 20}, "restart": "never",
                    "stop_timeout_ms": 60_000});
    let app = app(json!({"db": sh(&script, db), "web": quick(json!(["db"]))}), json!({}));
    are(&app, &["db"], "stopping");
    are(&app, &["web"], "waiting");
    app.post("/v1/services/db/start");
    gate.open();
    are(&app, &["db", "web"], "ready");
    app.stops();
}

pub fn a_run_of_a_task_that_is_restarted_is_no_second_one() {
    let [stops, ends] = [Gate::new(), Gate::new()];
    let script = format!("trap '{}; exit' TERM; echo begins; {}", stops.waits(), ends.waits());
    let job = task(&script, json!({"overlap": "replace", "stop_timeout_ms": 60_000}));
    let mut app = app(json!({"web": quick(json!([]))}), json!({"job": job}));
    app.prints("begins");
    app.post("/v1/restart");
    are(&app, &["job"], "stopping");
    app.post("/v1/tasks/job/run");
    stops.open();
    app.prints("begins");
    ends.open();
    are(&app, &["job"], "done");
    assert_eq!(app.unit("job")["restarts"], 2, "it has run twice");
    app.stops();
}

pub fn what_is_restarted_with_all_is_restarted_whatever_is_asked_for_beside_it() {
    for order in ["/v1/services/web/restart", "/v1/services/web/scale?instances=3", "/v1/services/web/start"]
    {
        let gate = Gate::new();
        let mut app = app(json!({"db": quick(json!([])), "web": gate.held(json!(["db"]))}), json!({}));
        app.prints("up");
        let pid = app.unit("db")["pid"].clone();
        app.post("/v1/restart");
        are(&app, &["web"], "stopping");
        app.post(order);
        gate.open();
        let said = app.ask("GET", "/v1/wait?ready=1&timeout=20");
        assert!(said.is_good(), "{order}: {said:?}");
        assert_ne!(app.unit("db")["pid"], pid, "{order}: db was to be restarted, too");
        app.stops();
    }
}

pub fn who_is_wanted_again_is_not_stopped_by_an_earlier_stop() {
    let gates = [Gate::new(), Gate::new()];
    let web = merge(gates[0].held(json!([])), json!({"instances": 2}));
    let mut app = app(json!({"web": web, "proxy": gates[1].held(json!(["web"]))}), json!({}));
    (0..3).for_each(|_| _ = app.prints("up"));
    app.post("/v1/services/web/scale?instances=1");
    are(&app, &["web.1"], "stopping");
    app.post("/v1/services/web/stop");
    are(&app, &["proxy"], "stopping");
    app.post("/v1/services/web/scale?instances=2");
    gates[1].open();
    are(&app, &["proxy"], "stopped");
    gates[0].open();
    are(&app, &["web.1"], "ready");
    app.stops();
}

pub fn a_stop_of_a_task_that_is_done_takes_nobody_along() {
    let migrate = task("exit 0", json!({}));
    let app = app(json!({"web": quick(json!(["migrate"]))}), json!({"migrate": migrate}));
    are(&app, &["web"], "ready");
    let said = app.ask("POST", "/v1/services/migrate/stop");
    assert_eq!(said.value["units"], json!(["migrate"]), "{said:?}");
    assert_eq!((app.state_of("migrate").as_str(), app.state_of("web").as_str()), ("done", "ready"));
    app.stops();
}

pub fn a_task_that_was_stopped_is_not_started_by_its_schedule_until_somebody_starts_it() {
    let every = |script: &str| task(script, json!({"schedule": {"every": 1000}}));
    let tasks = json!({"tick": every("echo tick"), "other": every("exit 0")});
    let mut app = app(json!({"web": quick(json!([]))}), tasks);
    app.prints("tick");
    for back in ["/v1/services/tick/start", "/v1/tasks/tick/run", "/v1/restart"] {
        app.post("/v1/services/tick/stop");
        are(&app, &["tick"], "stopped");
        let (runs, due) = (app.unit("tick")["restarts"].clone(), app.unit("tick")["due_at"].clone());
        assert_eq!(due, Value::Null);
        if back.ends_with("start") {
            let others = || app.unit("other")["restarts"].as_u64().expect("a number");
            let before = others();
            eventually("its time has come, as that of one like it", || others() > before + 1);
            assert_eq!((&app.unit("tick")["restarts"], app.state_of("tick").as_str()), (&runs, "stopped"));
        }
        while let Some(Ok(_)) = app.running.stdout.as_ref().map(|lines| lines.try_recv()) {}
        app.post(back);
        // By itself, too.
        (0..2).for_each(|_| _ = app.prints("tick"));
    }
    app.stops();
}

pub fn a_restart_of_what_was_stopped_starts_what_it_needs() {
    let app = app(json!({"db": quick(json!([])), "web": quick(json!(["db"]))}), json!({}));
    are(&app, &["web"], "ready");
    app.post("/v1/services/db/stop");
    are(&app, &["db", "web"], "stopped");
    app.post("/v1/services/web/restart");
    are(&app, &["db", "web"], "ready");
    app.stops();
}

pub fn an_instance_cannot_be_scaled() {
    let app = app(json!({"web": merge(quick(json!([])), json!({"instances": 3}))}), json!({}));
    are(&app, &["web.2"], "ready");
    let said = app.ask("POST", "/v1/services/web.0/scale?instances=2");
    assert_eq!((said.code, &said.value["error"]), (400, &json!("web.0 is one instance of web")), "{said:?}");
    assert_eq!(app.ask("POST", "/v1/services/wbe/scale?instances=2").code, 404);
    app.stops();
}

pub fn who_was_scaled_away_is_not_stopped_again() {
    let app = app(json!({"web": merge(quick(json!([])), json!({"instances": 3}))}), json!({}));
    app.comes_to("web.2", "ready");
    app.post("/v1/services/web.2/stop");
    app.comes_to("web.2", "stopped");
    app.post("/v1/services/web/scale?instances=1");
    let said = app.ask("GET", "/v1/wait?ended=1&unit=web.1&timeout=20");
    assert!(said.is_good() || said.code == 404, "{said:?}");
    let said = app.ask("POST", "/v1/services/web/stop");
    assert_eq!(said.value["units"], json!(["web.0"]), "{said:?}");
    app.post("/v1/services/web/scale?instances=3");
    are(&app, &["web.1", "web.2"], "ready");
    app.stops();
}

pub fn a_signal_is_for_the_main_process_and_a_pause_for_all() {
    let script =
        "trap 'echo got HUP' HUP; sleep 1000 & child=$!; echo up $child; while :; do wait $child; done";
    let mut app = app(json!({"web": sh(script, json!({}))}), json!({}));
    let child = number(&app.prints("up "));
    app.post("/v1/services/web/signal?signal=HUP");
    app.prints("got HUP");
    assert!(alive(child), "what was meant for its parent has reached it");
    let halted =
        |pid: i32| fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|it| it.contains(") T "));
    app.post("/v1/services/web/signal?signal=STOP");
    eventually("both are stopped", || {
        halted(child) && halted(app.unit("web")["pid"].as_i64().unwrap() as i32)
    });
    app.post("/v1/services/web/signal?signal=CONT");
    eventually("both go on", || !halted(child));
    app.stops();
}

pub fn a_start_that_fails_tells_why_and_not_that_its_descriptor_was_closed() {
    let more = merge(ready(json!({"newline": 3})), json!({"restart": "never"}));
    let web = merge(sh("", more), json!({"argv": ["no/such/program"]}));
    let app = app(json!({"web": web, "after": quick(json!(["web"]))}), json!({}));
    are(&app, &["web", "after"], "failed");
    for name in ["web", "after"] {
        let unit = app.unit(name);
        let told = format!("{} {}", unit["reason"], unit["last_end"]["how"]);
        assert!(told.contains("execute /no/such/program: No such file"), "{unit}");
        assert!(!told.contains("descriptor"), "{unit}");
    }
    app.stops();
}

pub fn what_was_said_in_time_is_heard_after_a_stall() {
    let words = format!("notify=READY=1{}", ";wait=50;notify=WATCHDOG=1".repeat(200));
    let more = json!({"health": {"when": "watchdog", "interval_ms": 400, "timeout_ms": 400, "failures": 1,
                                  "kill_signal": "SIGKILL"},
                      "ready": {"when": "notify"}});
    let names: Vec<String> = (0..8).map(|number| format!("web-{number}")).collect();
    let services: serde_json::Map<String, Value> =
        names.iter().map(|name| (name.clone(), actor(&words, more.clone()))).collect();
    let app = app(Value::Object(services), json!({}));
    names.iter().for_each(|name| app.comes_to(name, "ready"));
    app.running.signal("STOP");
    // As long as it takes for each of them to seem silent.
    std::thread::sleep(std::time::Duration::from_millis(600));
    app.running.signal("CONT");
    for name in &names {
        let unit = app.unit(name);
        assert_eq!((&unit["state"], &unit["restarts"]), (&json!("ready"), &json!(0)), "{unit}");
    }
    app.stops();
}

pub fn a_long_row_of_needs_is_restarted_in_a_moment() {
    const COUNT: usize = 600;
    let names: Vec<String> = (0..COUNT).map(|number| format!("s{number:03}")).collect();
    let service = |number: usize| {
        let needs = number.checked_sub(1).map(|before| names[before].clone());
        json!({"argv": ["bin/sleep", "1000"], "cwd": "/", "needs": needs.into_iter().collect::<Vec<_>>()})
    };
    let services: serde_json::Map<String, Value> =
        (0..COUNT).map(|number| (names[number].clone(), service(number))).collect();
    let app = app(Value::Object(services), json!({}));
    let last = &names[COUNT - 1];
    app.comes_to(last, "ready");
    let pids = [app.unit("s000")["pid"].clone(), app.unit(last)["pid"].clone()];
    app.post("/v1/restart");
    eventually("all are back", || app.unit(last)["state"] == "ready" && app.unit(last)["pid"] != pids[1]);
    assert_ne!(app.unit("s000")["pid"], pids[0]);
    app.stops();
}

// --- At random ---

const SERVICES: [&str; 7] = ["db", "cache", "web", "proxy", "leaves", "fails", "victim"];

/// An order, or a crash; what is refused is refused.
fn something(app: &App, numbers: &mut Numbers) -> String {
    let name = numbers
        .one(&["db", "cache", "web", "web.0", "web.1", "proxy", "leaves", "migrate", "fails", "victim"]);
    let target = match numbers.below(9) {
        0 | 1 => format!("/v1/services/{name}/start"),
        2 | 3 => format!("/v1/services/{name}/stop"),
        4 => format!("/v1/services/{name}/restart"),
        5 => "/v1/restart".to_owned(),
        6 => format!("/v1/services/web/scale?instances={}", numbers.below(4)),
        7 => "/v1/tasks/migrate/run".to_owned(),
        _ => {
            if let Some(pid) = app.unit(name)["pid"].as_i64() {
                kill(pid as i32, "KILL");
            }
            return format!("kill {name}");
        }
    };
    let answer = app.ask("POST", &target);
    assert!(answer.is_good() || [404, 409].contains(&answer.code), "{target}: {answer:?}");
    target
}

/// Whatever was asked before, in whatever order and however fast: what is asked for last comes about.
fn orders_at_random(seed: u64) {
    let numbers = &mut Numbers::new(seed);
    let takes_its_time = |name: &str| {
        format!(
            "trap 'sleep 0.03; exit' TERM; sleep 0.02; echo >&3; exec 3>&-; echo {name}; while :; do sleep 0.01; done"
        )
    };
    let backoff = json!({"first_ms": 10, "longest_ms": 50, "stable_ms": 10_000});
    let service = |name: &str, needs: Value| {
        sh(
            &takes_its_time(name),
            merge(ready(json!({"newline": 3})), json!({"needs": needs, "backoff": backoff})),
        )
    };
    let leaves = sh("sleep 0.05; exit 1", json!({"needs": ["cache"], "backoff": backoff}));
    let services = json!({
        "db": service("db", json!([])),
        "cache": quick(json!([])),
        "web": merge(service("web", json!(["cache", "migrate"])), json!({"instances": 2})),
        "proxy": service("proxy", json!(["web"])),
        "leaves": leaves,
        "fails": sh("sleep 0.05; exit 1", merge(ready(json!({"newline": 3})), json!({"restart": "never"}))),
        "victim": quick(json!(["cache", "fails"])),
    });
    let app = app(services, json!({"migrate": task("sleep 0.05", json!({"needs": ["db"]}))}));
    let mut told = Vec::new();
    let come = |told: &[String], what: &str, units: &[(&str, &[&str])]| {
        let until = std::time::Instant::now() + crate::DEADLINE;
        loop {
            let status = app.ask("GET", "/v1/status").value;
            let all = status["units"].as_array().expect("units");
            let wrong = |(name, states): &&(&str, &[&str])| {
                let mut named = all.iter().filter(|unit| unit["service"] == *name).peekable();
                named.peek().is_none()
                    || !named.all(|unit| states.iter().any(|state| unit["state"] == *state))
            };
            let wrong: Vec<&str> = units.iter().filter(wrong).map(|(name, _)| *name).collect();
            if wrong.is_empty() {
                return;
            }
            assert!(
                std::time::Instant::now() < until,
                "seed {seed}: after {what}, {wrong:?} are not as they should be:\n{status:#}\nbefore: {told:#?}"
            );
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    };
    let rest: &[&str] = &["stopped", "done", "failed"];
    for round in 0..6 {
        for _ in 0..4 + numbers.below(16) {
            told.push(something(&app, numbers));
            if numbers.below(3) == 0 {
                std::thread::sleep(std::time::Duration::from_millis(numbers.below(60) as u64));
            }
        }
        app.post("/v1/services/web/scale?instances=2");
        let all: &[(&str, &[&str])] = &[
            ("db", &["ready"]),
            ("cache", &["ready"]),
            ("web", &["ready"]),
            ("proxy", &["ready"]),
            ("migrate", &["done"]),
        ];
        if round % 2 == 0 {
            app.post("/v1/restart");
            come(&told, "a restart of all", all);
            come(&told, "a restart of all", &[("fails", &["failed"]), ("victim", &["failed"])]);
        } else {
            let name = numbers.one(&["db", "web"]);
            app.post(&format!("/v1/services/{name}/stop"));
            come(&told, &format!("a stop of {name}"), &[("web", rest), ("proxy", rest), (name, rest)]);
            app.post("/v1/services/proxy/start");
            come(&told, "a start of proxy", all);
        }
        told.clear();
    }
    app.post("/v1/services/db/stop");
    app.post("/v1/services/cache/stop");
    come(&told, "a stop of the first", &SERVICES.map(|name| (name, rest)));
    app.stops();
}

pub fn whatever_was_asked_before_what_is_asked_last_comes_about() {
    Numbers::seeds().into_iter().for_each(orders_at_random);
}
