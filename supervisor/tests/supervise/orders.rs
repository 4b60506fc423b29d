//! Orders that cross each other: a start while something stops, two restarts at once, a signal, a scale of what is at rest.

use std::fs;

use serde_json::{Value, json};

use super::{App, Gate, actor, app, merge, ready, sh, task};
use crate::{alive, eventually, number};

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
    app.comes_to("migrate", "running");
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
