//! What descends from one service ends with its run: daemons in sessions of their own, whatever they have done to be
//! forgotten.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::whole::{self, App, actor, app};
use super::{alive, eventually, kill, number};
use crate::numbers::Numbers;

/// True if a program of this name is in `PATH`.
fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).exists())
}

/// A service that runs this script. In a manifest a `$` begins a placeholder, and two of them are one.
fn sh(script: &str, more: Value) -> Value {
    whole::sh(&script.replace('$', "$$"), more)
}

/// A service that starts this daemon, and goes on.
fn with_daemon(daemon: &str, more: Value) -> Value {
    sh(&format!("{daemon}\nexec sleep 1000"), more)
}

/// In a session of its own; it says who it is.
const DAEMON: &str = "setsid sh -c 'echo daemon $$; exec sleep 1000' &";

/// The daemon of a service, once it runs.
fn daemon(app: &mut App, name: &str) -> i32 {
    loop {
        let line = app.prints("daemon ");
        if line.starts_with(name) {
            return number(&line);
        }
    }
}

/// Each way to become a daemon whose tools are here, and the user that it becomes.
fn daemons() -> Vec<String> {
    let forgetful =
        "cd /; exec env -i PATH=$PATH sh -c \"echo daemon \\$\\$; exec >/dev/null 2>&1; exec sleep 1000\"";
    let mut all = vec![
        DAEMON.to_owned(),
        // daemon(7): a session, a second fork, and nothing of the environment.
        format!("setsid sh -c '({forgetful}) &' &"),
    ];
    if has("setpriv") && nix::unistd::geteuid().is_root() {
        all.push("setsid setpriv --reuid=65534 --regid=65534 --clear-groups sh -c 'echo daemon $$; exec sleep 1000' &".into());
    }
    if has("python3") {
        let script = "import os, time
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
os.environ.clear()
print(\"daemon\", os.getpid(), flush=True)
os.closerange(0, 100)
time.sleep(1000)";
        all.push(format!("{} -c '{script}'", python()));
    }
    if has("redis-server") {
        // It writes its title over its environment.
        all.push(
            "d=$(mktemp -d); redis-server --daemonize yes --port 0 --unixsocket $d/s --dir $d --pidfile $d/pid --logfile $d/log --save \"\"
            until [ -s $d/pid ]; do sleep 0.01; done; echo daemon $(cat $d/pid); rm -r $d"
                .into(),
        );
    }
    all
}

/// The interpreter itself: a wrapper may need variables that a service does not have.
fn python() -> String {
    let output = Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output();
    String::from_utf8(output.expect("it runs").stdout).expect("a path").trim().to_owned()
}

pub fn daemons_of_every_kind_end_with_their_service_alone() {
    for script in daemons() {
        let services =
            json!({"web": with_daemon(&script, json!({})), "other": with_daemon(DAEMON, json!({}))});
        let mut app = app(services, json!({}));
        let lines = [app.prints("daemon "), app.prints("daemon ")];
        let of = |name: &str| number(lines.iter().find(|line| line.starts_with(name)).expect(name));
        let (web, other) = (of("web"), of("other"));
        eventually("they came to the supervisor", || [web, other].into_iter().all(alive));
        app.post("/v1/services/web/stop");
        app.comes_to("web", "stopped");
        assert!(!alive(web), "web has stopped, and its daemon runs: {script}");
        assert!(alive(other), "another's daemon is gone: {script}");
        assert_eq!(app.state_of("other"), "ready");
        app.stops();
        assert!(!alive(other), "{script}");
    }
}

pub fn the_next_run_begins_when_the_daemons_of_the_last_are_gone() {
    // A daemon that needs a while. Whoever begins while its file is there says so.
    let script = "test -e $0/busy && exec echo too early; touch $0/busy
        setsid sh -c 'trap \"sleep 0.3; rm $0/busy; exit\" TERM; echo daemon $$; while :; do sleep 0.02; done' $0 &
        while :; do sleep 0.02; done";
    let folder = tempfile::tempdir().expect("a folder");
    let mut service = sh(script, json!({}));
    let argv = service["argv"].as_array_mut().expect("arguments");
    argv.push(json!(folder.path().to_str().expect("text")));
    let mut app = app(json!({"web": service}), json!({}));
    let mut first = daemon(&mut app, "web");
    for crash in [true, false, true] {
        if crash {
            let leader = i32::try_from(app.unit("web")["pid"].as_i64().expect("it runs")).expect("a number");
            kill(leader, "KILL");
            app.says("service web has left 1 process behind; sending SIGTERM");
        } else {
            app.post("/v1/services/web/restart");
        }
        let second = daemon(&mut app, "web");
        assert!(!alive(first));
        first = second;
    }
    app.stops();
    assert!(!folder.path().join("busy").exists());
}

pub fn a_daemon_that_ignores_its_signal_is_killed_when_the_time_is_over() {
    // It has a child in a session of its own, which comes to light when the daemon is killed.
    let script =
        "setsid sh -c 'trap \"\" TERM; setsid sh -c \"echo child \\$\\$; exec sleep 1000\" & echo daemon $$
        while :; do sleep 0.02; done' & exec sleep 1000";
    let mut app = app(json!({"web": sh(script, json!({"stop_timeout_ms": 300}))}), json!({}));
    // As a console of `exec` is: beside the service, and no descendant.
    let mut beside = Command::new("sleep").arg("1000").spawn().expect("it starts");
    let (one, other) = (number(&app.prints(" ")), number(&app.prints(" ")));
    let began = Instant::now();
    app.post("/v1/services/web/stop");
    app.says("service web did not stop within 0.3 s; sending SIGKILL");
    app.comes_to("web", "stopped");
    assert!(began.elapsed() >= Duration::from_millis(300));
    assert!(!alive(one) && !alive(other));
    let spared = beside.try_wait().expect("our child").is_none();
    let _ = beside.kill().and_then(|()| beside.wait());
    assert!(spared, "a stranger was killed");
    app.stops();
}

pub fn a_daemons_group_is_asked_once() {
    // The first of the group goes at once, and the other one comes to the supervisor in the middle of its end.
    let script = "setsid sh -c '(trap \"echo asked; sleep 0.5; exit\" TERM
        echo daemon up; while :; do sleep 0.02; done) & trap \"exit\" TERM; while :; do sleep 0.02; done' & exec sleep 1000";
    let mut app = app(json!({"web": sh(script, json!({}))}), json!({}));
    app.prints("daemon up");
    app.post("/v1/services/web/stop");
    app.comes_to("web", "stopped");
    app.prints("asked");
    let rest: Vec<String> = app.running.stdout.as_ref().expect("piped").try_iter().collect();
    assert!(!rest.iter().any(|line| line.contains("asked")), "{rest:?}");
    app.stops();
}

pub fn a_task_leaves_nothing_behind() {
    let command =
        json!({"argv": ["bin/sh", "-c", format!("{DAEMON} sleep 0.1").replace('$', "$$")], "cwd": "/"});
    let tasks = json!({"job": {"command": command, "stop_signal": "SIGTERM", "stop_timeout_ms": 1000}});
    let mut app = app(json!({"web": sh("exec sleep 1000", json!({}))}), tasks);
    let daemon = daemon(&mut app, "job");
    app.comes_to("job", "done");
    assert!(!alive(daemon));
    app.stops();
}

pub fn without_its_mark_a_daemon_is_swept_with_the_bundle() {
    // Whoever lowers the limit that carries the mark is known by his session alone.
    let script = "(ulimit -x 7; sh -c 'echo same $$; exec sleep 1000' & setsid sh -c 'echo daemon $$; exec sleep 1000' &)
        exec sleep 1000";
    let (bash, marked) =
        (Path::new("/bin/bash"), fs::read_to_string("/proc/self/limits").unwrap_or_default());
    if !bash.exists() || !marked.contains("Max file locks") {
        return println!("without bash and /proc this is left out");
    }
    let mut service = sh(script, json!({}));
    service["argv"][0] = json!("bin/bash");
    let mut app = app(json!({"web": service}), json!({}));
    let lines = [app.prints(" "), app.prints(" ")];
    let of = |name: &str| number(lines.iter().find(|line| line.contains(name)).expect(name));
    let (same, daemon) = (of("same"), of("daemon"));
    app.post("/v1/services/web/stop");
    app.comes_to("web", "stopped");
    assert!(!alive(same));
    assert!(alive(daemon));
    app.running.signal("TERM");
    app.says("1 process left behind by services; sending SIGTERM");
    app.running.ends_with(0);
    assert!(!alive(daemon));
}

// --- MAINPID= ---

/// The process of a service, as status has it.
fn pid(app: &App, name: &str) -> Option<i64> {
    app.unit(name)["pid"].as_i64()
}

pub fn a_daemon_that_its_service_names_is_the_services_process() {
    let env = json!({"KITBAG_TEST_ACTS": "main=MAIN;exit=0", "MAIN": "print=main;notify=READY=1"});
    let more = json!({"env": env, "ready": {"when": "notify", "timeout_ms": 20_000}});
    let mut app = app(json!({"web": actor("", more)}), json!({}));
    let first = number(&app.prints("main"));
    app.comes_to("web", "ready");
    eventually("its first process has ended", || pid(&app, "web") == Some(first.into()));
    assert_eq!(app.unit("web")["restarts"], 0);
    kill(first, "KILL");
    app.says("service web was ended by SIGKILL");
    let second = number(&app.prints("main"));
    app.comes_to("web", "ready");
    assert_ne!(first, second);
    app.post("/v1/services/web/stop");
    app.comes_to("web", "stopped");
    assert!(!alive(second));
    app.stops();
}

pub fn a_successor_takes_its_predecessors_place_when_that_one_ends() {
    let env = json!({"KITBAG_TEST_ACTS": "main=MAIN;notify=READY=1;print=old", "MAIN": "print=new"});
    let more = json!({"env": env, "ready": {"when": "notify", "timeout_ms": 20_000}});
    let mut app = app(json!({"web": actor("", more)}), json!({}));
    let lines = [app.prints(" "), app.prints(" ")];
    let of = |name: &str| number(lines.iter().find(|line| line.contains(name)).expect(name));
    app.comes_to("web", "ready");
    assert_eq!(pid(&app, "web"), Some(of("old").into()), "both live");
    kill(of("old"), "KILL");
    eventually("the new one has taken over", || pid(&app, "web") == Some(of("new").into()));
    assert_eq!((app.state_of("web").as_str(), app.unit("web")["restarts"].as_i64()), ("ready", Some(0)));
    app.stops();
    assert!(!alive(of("new")));
}

pub fn a_stranger_is_nobodys_main_process() {
    let more = json!({"ready": {"when": "notify", "timeout_ms": 20_000}, "restart": "never"});
    let words = format!("notify=MAINPID={}|READY=1;print=up", std::process::id());
    let mut app = app(json!({"web": actor(&words, more)}), json!({}));
    app.says(&format!("service web says that its main process is {}, which is none", std::process::id()));
    let leader = number(&app.prints("up"));
    app.comes_to("web", "ready");
    assert_eq!(pid(&app, "web"), Some(leader.into()));
    kill(leader, "KILL");
    app.comes_to("web", "failed");
    app.stops();
}

// --- At random ---

/// What a program may leave behind, and do with it.
const LEAVES: [&str; 8] = [
    "sleep 1000 &",
    "(sleep 1000 &)",
    "setsid sleep 1000 &",
    "setsid sh -c '(sleep 1000 &); exec sleep 1000' &",
    "setsid sh -c '(setsid sleep 1000 &); exit' &",
    "(trap '' TERM; exec sleep 1000) &",
    "setsid sh -c 'trap \"\" TERM; while :; do sleep 0.02; done' &",
    "setsid sh -c 'while :; do (setsid sleep 0.05 &); sleep 0.01; done' &",
];

/// The processes whose environment says that they are of this service.
fn processes_of(name: &str) -> Vec<i32> {
    let wanted = format!("KITBAG_TEST_OF={name}");
    let is_its = |pid: &i32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|one| one == wanted.as_bytes())
    };
    let entries = fs::read_dir("/proc").expect("it is mounted").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(is_its).collect()
}

/// Whatever services leave behind, and whoever dies meanwhile: what has stopped has left nothing, and took nothing along.
fn leaves_at_random(seed: u64) {
    let numbers = &mut Numbers::new(seed);
    let names: Vec<String> = (0..4).map(|number| format!("s{number}")).collect();
    let mark = |name: &str| format!("{name}-{}-{seed}", std::process::id());
    let mut service = |name: &String| {
        let lines: Vec<&str> = (0..1 + numbers.below(3)).map(|_| numbers.one(&LEAVES)).collect();
        let end = numbers.one(&["exec sleep 1000", "exec sleep 1000", "sleep 0.2; exit 1"]);
        let more = json!({
            "env": {"KITBAG_TEST_OF": mark(name)}, "stop_timeout_ms": 200,
            "backoff": {"first_ms": 10, "longest_ms": 20, "stable_ms": 10_000},
        });
        (name.clone(), sh(&format!("{}\n{end}", lines.join("\n")), more))
    };
    let mut services: serde_json::Map<String, Value> = names.iter().map(&mut service).collect();
    services.insert("steady".into(), with_daemon(DAEMON, json!({"env": {"KITBAG_TEST_OF": mark("steady")}})));
    let mut app = app(Value::Object(services), json!({}));
    let steady = daemon(&mut app, "steady");
    for _ in 0..3 {
        for _ in 0..numbers.below(12) {
            let name = &names[numbers.below(names.len())];
            match numbers.below(4) {
                0 => app.post(&format!("/v1/services/{name}/restart")),
                1 => app.post(&format!("/v1/services/{name}/start")),
                2 => {
                    let all = processes_of(&mark(name));
                    if !all.is_empty() {
                        kill(numbers.one(&all), "KILL");
                    }
                }
                _ => std::thread::sleep(Duration::from_millis(numbers.below(100) as u64)),
            }
        }
        for name in &names {
            app.post(&format!("/v1/services/{name}/stop"));
            app.comes_to(name, "stopped");
            let left = processes_of(&mark(name));
            assert!(left.is_empty(), "seed {seed}: {name} has stopped, and {left:?} are left");
        }
        assert!(alive(steady), "seed {seed}: another's daemon is gone");
        for name in &names {
            app.post(&format!("/v1/services/{name}/start"));
        }
    }
    app.stops();
    for name in names.iter().map(String::as_str).chain(["steady"]) {
        let left = processes_of(&mark(name));
        assert!(left.is_empty(), "seed {seed}: all has stopped, and {left:?} of {name} are left");
    }
}

pub fn whatever_is_left_behind_ends_with_its_service_alone() {
    Numbers::seeds().into_iter().for_each(leaves_at_random);
}
