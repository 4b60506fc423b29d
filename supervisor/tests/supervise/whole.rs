//! Bundles as a manifest describes them: readiness, health, needs, instances, tasks, and what they are told through
//! the control socket.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use kitbag_format::exit;
use kitbag_format::manifest::Manifest;
use kitbag_supervisor::control::{Control, client, socket};
use kitbag_supervisor::expand::Values;
use kitbag_supervisor::service::specs;
use kitbag_supervisor::snapshot::{self, Remains, Snapshot};
use kitbag_supervisor::state;
use kitbag_supervisor::status::usage::start_of_process;
use kitbag_supervisor::supervise::{Bundle, supervise};
use serde_json::{Value, json};
use tempfile::TempDir;

pub mod apart;
pub mod orders;

use super::{Running, alive, eventually, kill, number, start_command};

/// Carries the manifest to the program that is run as the supervisor.
pub const MANIFEST: &str = "KITBAG_TEST_MANIFEST";
/// Names its state folder.
const STATE: &str = "KITBAG_TEST_STATE";
/// Makes the test program a service: what it does, word for word.
pub const ACTS: &str = "KITBAG_TEST_ACTS";

/// The supervisor of the bundle that the environment describes.
pub fn run(manifest: &str) -> u8 {
    if std::env::var_os(apart::OLD_KERNEL).is_some() {
        apart::forget_landlock();
    }
    let manifest = Manifest::from_text(manifest).expect("a manifest");
    assert_eq!(manifest.fault(), None);
    let state = PathBuf::from(std::env::var_os(STATE).expect("a state folder"));
    let values = Values { tree: Path::new("/"), state: Some(&state), temporary: None, manifest: &manifest };
    supervise(Bundle {
        name: manifest.name.clone(),
        version: manifest.version.clone(),
        services: specs(&manifest, &values).unwrap_or_else(|failure| panic!("{failure}")),
        tasks: Some(state.join("tasks")),
        control: Some(Control::bind(&state).expect("a socket")),
        stays: true,
        ..Bundle::default()
    })
}

/// A service that does what the words say: `print=…`, `notify=…`, `wait=MS`, `serve=PORT FOLDER`, `exit=STATUS`,
/// `main=NAME` (it starts a process in a session of its own, which does what this variable says, and names it as the main
/// one), `own-pid=NAME` (it checks that this variable is its process id);
/// without an exit it goes on for ever.
pub fn act(words: &str) -> ExitCode {
    for word in words.split(';') {
        match word.split_once('=').expect("a word") {
            ("print", text) => println!("{text} {}", std::process::id()),
            ("notify", text) => notify(&text.replace('|', "\n")),
            ("wait", time) => std::thread::sleep(Duration::from_millis(time.parse().expect("a time"))),
            ("serve", place) => serve(place),
            ("main", name) => name_main(&std::env::var(name).expect("words")),
            ("own-pid", name) => assert_eq!(std::env::var(name), Ok(std::process::id().to_string())),
            ("exit", status) => return ExitCode::from(status.parse::<u8>().expect("a status")),
            other => panic!("{other:?}"),
        }
    }
    loop {
        std::thread::park();
    }
}

fn notify(text: &str) {
    let name = std::env::var("NOTIFY_SOCKET").expect("a socket to notify");
    let name = name.strip_prefix('@').expect("an abstract one");
    let address = SocketAddr::from_abstract_name(name).expect("a name");
    let socket = UnixDatagram::unbound().expect("a socket");
    socket.send_to_addr(text.as_bytes(), &address).expect("it is heard");
}

#[expect(clippy::zombie_processes, reason = "it outlives this process, which leaves it to the supervisor")]
fn name_main(words: &str) {
    let me = std::env::current_exe().expect("a test knows its program");
    let child = Command::new("setsid").arg(me).env(ACTS, words).spawn().expect("setsid starts");
    notify(&format!("MAINPID={}", child.id()));
}

/// Answers 200, or 503 while there is a file `sick` in the folder.
fn serve(place: &str) {
    let (port, folder) = place.split_once(' ').expect("a port and a folder");
    let listener = TcpListener::bind(("127.0.0.1", port.parse().expect("a port"))).expect("the port is free");
    for stream in listener.incoming().flatten() {
        answer(stream, Path::new(folder).join("sick").exists());
    }
}

fn answer(mut stream: TcpStream, sick: bool) {
    let _ = stream.read(&mut [0; 1024]);
    let status = if sick { "503 Service Unavailable" } else { "200 OK" };
    let _ = write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

// --- Manifests ---

/// A service that runs `script`, with what `more` says of it.
pub fn sh(script: &str, more: Value) -> Value {
    merge(json!({"argv": ["bin/sh", "-c", script], "cwd": "/"}), more)
}

/// What somebody waits for until the test lets it pass: a file, which is there when it is open.
pub struct Gate {
    pub folder: TempDir,
}

impl Gate {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a folder") }
    }

    /// Waits for it, in the words of a shell.
    pub fn waits(&self) -> String {
        format!("until [ -e {} ]; do sleep 0.01; done", self.file().display())
    }

    pub fn open(&self) {
        fs::write(self.file(), "").expect("a file");
    }

    pub fn close(&self) {
        fs::remove_file(self.file()).expect("it was open");
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("open")
    }

    /// A service that stops no sooner than this is open.
    pub fn held(&self, needs: Value) -> Value {
        let stop = self.waits();
        let script = format!("trap '{stop}; exit' TERM; echo up; while :; do sleep 0.01; done");
        sh(&script, json!({"needs": needs, "stop_timeout_ms": 60_000}))
    }
}

/// A service that acts; see [`act`].
pub fn actor(words: &str, more: Value) -> Value {
    let me = std::env::current_exe().expect("a test knows its program");
    let me = me.to_str().expect("a name").trim_start_matches('/').to_owned();
    merge(json!({"argv": [me], "env": {ACTS: words}, "cwd": "/"}), more)
}

fn task(script: &str, more: Value) -> Value {
    let command = json!({"argv": ["bin/sh", "-c", script], "cwd": "/"});
    let task = json!({"command": command, "stop_signal": "SIGTERM", "stop_timeout_ms": 1000});
    merge(task, more)
}

pub fn merge(mut one: Value, other: Value) -> Value {
    if let (Some(one), Value::Object(other)) = (one.as_object_mut(), other) {
        one.extend(other);
    }
    one
}

pub fn ready(when: Value) -> Value {
    json!({"ready": {"when": when, "timeout_ms": 20_000, "interval_ms": 20}})
}

/// A running bundle.
pub struct App {
    pub running: Running,
    state: TempDir,
}

pub fn app(services: Value, tasks: Value) -> App {
    app_in(tempfile::tempdir().expect("a folder"), services, tasks)
}

/// One whose supervisor has these variables.
fn app_with(services: Value, variables: &[(&str, &str)]) -> App {
    begin(tempfile::tempdir().expect("a folder"), services, json!({}), variables)
}

fn app_in(state: TempDir, services: Value, tasks: Value) -> App {
    begin(state, services, tasks, &[])
}

fn begin(state: TempDir, services: Value, tasks: Value, variables: &[(&str, &str)]) -> App {
    let manifest = json!({"name": "app", "version": "1", "services": services, "tasks": tasks});
    let mut command = Command::new(std::env::current_exe().expect("a test knows its program"));
    command.env(MANIFEST, manifest.to_string()).env(STATE, state.path());
    command.envs(variables.iter().copied());
    App { running: start_command(command), state }
}

impl App {
    pub fn ask(&self, method: &str, target: &str) -> client::Answer {
        let mut answer = None;
        eventually("the socket answers", || {
            answer = client::ask(self.state.path(), method, target, 10_000).ok();
            answer.is_some()
        });
        answer.expect("an answer")
    }

    pub fn post(&self, target: &str) {
        let answer = self.ask("POST", target);
        assert!(answer.is_good(), "{target}: {answer:?}");
    }

    pub fn unit(&self, name: &str) -> Value {
        let units = self.ask("GET", "/v1/status").value["units"].take();
        let named = |unit: &&Value| unit["name"] == name;
        units.as_array().and_then(|units| units.iter().find(named)).cloned().unwrap_or_default()
    }

    pub fn state_of(&self, name: &str) -> String {
        self.unit(name)["state"].as_str().unwrap_or("not there").to_owned()
    }

    pub fn comes_to(&self, name: &str, state: &str) {
        eventually(&format!("{name} is {state}"), || self.state_of(name) == state);
    }

    pub fn prints(&mut self, text: &str) -> String {
        self.running.prints(text)
    }

    pub fn says(&mut self, text: &str) -> String {
        self.running.says(text)
    }

    /// The body of an answer as it comes.
    fn text(&self, target: &str) -> String {
        let mut stream = socket::connect(self.state.path()).expect("somebody listens");
        let request = format!("GET {target} HTTP/1.1\r\nHost: kitbag\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("it is taken");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it is answered");
        answer.split_once("\r\n\r\n").expect("a head and a body").1.to_owned()
    }

    pub fn stops(mut self) {
        self.running.signal("TERM");
        self.running.ends_with(exit::OK);
    }

    fn file(&self, name: &str) -> PathBuf {
        self.state.path().join(name)
    }
}

// --- Order ---

pub fn services_start_after_what_they_need_and_stop_before_it() {
    let stops = |name: &str| format!("trap 'sleep 0.1; echo {name} stops; exit' TERM; echo {name} begins");
    let runs = "while :; do sleep 0.01; done";
    let services = json!({
        "db": sh(&format!("{}; sleep 0.2; echo >&3; exec 3>&-; {runs}", stops("db")), ready(json!({"newline": 3}))),
        "web": sh(&format!("{}; {runs}", stops("web")), json!({"needs": ["migrate"]})),
    });
    let tasks = json!({"migrate": task("echo migrate runs; sleep 0.1; echo migrate is done", json!({"needs": ["db"]}))});
    let mut app = app(services, tasks);
    let lines: Vec<String> =
        ["begins", "migrate runs", "is done", "begins"].iter().map(|text| app.prints(text)).collect();
    let names: Vec<&str> = lines.iter().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(names, ["db", "migrate", "migrate", "web"]);
    app.comes_to("web", "ready");
    assert_eq!(app.state_of("migrate"), "done");
    app.running.signal("TERM");
    assert!(app.prints("stops").contains("web stops"));
    assert!(app.prints("stops").contains("db stops"));
    app.running.ends_with(exit::OK);
}

pub fn what_needs_a_service_that_gives_up_fails_with_the_reason() {
    let services = json!({
        "db": sh("exit 3", merge(json!({"give_up": {"failures": 2, "within_ms": 60_000}}), ready(json!({"up-for": 5000})))),
        "web": sh("echo never", json!({"needs": ["db"]})),
        "proxy": sh("echo never", json!({"needs": ["web"]})),
    });
    let mut app = app(services, json!({}));
    let line = app.says("are too many");
    assert!(line.contains("service db exited with status 3") && line.contains("2 failures"), "{line}");
    let line = app.says("service web is not started");
    assert!(line.contains("it needs db, which exited with status 3"), "{line}");
    app.says("service proxy is not started: it needs web");
    app.comes_to("db", "failed");
    assert_eq!(app.state_of("proxy"), "failed");
    // A start by hand has the whole budget again.
    app.post("/v1/services/db/start");
    app.says("starting again at once");
    app.says("are too many");
    app.stops();
}

pub fn a_stop_takes_what_needs_the_service_along_and_a_start_what_it_needs() {
    let sleeps = |more| sh("exec sleep 1000", more);
    let app = app(json!({"db": sleeps(json!({})), "web": sleeps(json!({"needs": ["db"]}))}), json!({}));
    app.comes_to("web", "ready");
    app.post("/v1/services/db/stop");
    app.comes_to("db", "stopped");
    assert_eq!(app.state_of("web"), "stopped");
    app.post("/v1/services/web/start");
    app.comes_to("web", "ready");
    assert_eq!(app.state_of("db"), "ready");
    // A need that restarts takes nobody along.
    let pid = app.unit("web")["pid"].clone();
    app.post("/v1/services/db/restart");
    eventually("db is back", || app.state_of("db") == "ready");
    assert_eq!(app.unit("web")["pid"], pid);
    app.stops();
}

pub fn a_restart_of_all_goes_by_needs_both_ways() {
    // Each says when it begins and ends, and takes its time for both.
    let script = |name: &str| {
        format!(
            "trap 'sleep 0.1; echo {name} ends; exit' TERM; echo {name} begins; sleep 0.1; echo >&3; exec 3>&-
            while :; do sleep 0.01; done"
        )
    };
    let service = |name: &str, needs: Value| {
        sh(&script(name), merge(json!({"needs": needs}), ready(json!({"newline": 3}))))
    };
    let services = json!({
        "db": service("db", json!([])),
        "web": service("web", json!(["db"])),
        "proxy": service("proxy", json!(["web"])),
        "other": service("other", json!([])),
    });
    let mut app = app(services, json!({}));
    app.comes_to("proxy", "ready");
    app.comes_to("other", "ready");
    // A shell may say, too, that its `sleep` was ended.
    let heard = |app: &mut App, count: usize| -> Vec<String> {
        let lines = std::iter::repeat_with(|| app.prints(" | "));
        let told = lines.filter(|line| line.ends_with(" begins") || line.ends_with(" ends"));
        told.take(count).filter_map(|line| Some(line.split_once(" | ")?.1.to_owned())).collect()
    };
    heard(&mut app, 4);
    app.post("/v1/restart");
    let said = app.ask("GET", "/v1/wait?ready=1&timeout=20");
    assert!(said.is_good(), "{said:?}");
    let (of_other, chain): (Vec<String>, Vec<String>) =
        heard(&mut app, 8).into_iter().partition(|line| line.starts_with("other"));
    assert_eq!(chain, ["proxy ends", "web ends", "db ends", "db begins", "web begins", "proxy begins"]);
    assert_eq!(of_other, ["other ends", "other begins"]);
    // A stop beats it: what was on its way back stays where it is, and so does what waits for it.
    app.post("/v1/restart");
    app.comes_to("proxy", "waiting");
    assert_eq!(app.unit("proxy")["waits_for"][0], "web");
    app.post("/v1/services/web/stop");
    app.comes_to("web", "stopped");
    app.comes_to("proxy", "stopped");
    app.comes_to("db", "ready");
    assert_eq!([app.state_of("web"), app.state_of("proxy")], ["stopped", "stopped"]);
    app.post("/v1/restart");
    app.running.signal("TERM");
    app.running.ends_with(exit::OK);
}

pub fn a_restart_of_all_runs_a_task_of_the_start_again_if_it_has_failed() {
    let folder = tempfile::tempdir().expect("a folder");
    let mended = folder.path().join("mended");
    let script = format!("echo x >>{0}/runs; test -e {0}/mended", folder.path().display());
    let services = json!({"web": sh("exec sleep 1000", json!({"needs": ["migrate"]}))});
    let app = app(services, json!({"migrate": task(&script, json!({}))}));
    app.comes_to("web", "failed");
    fs::write(&mended, "").expect("a file");
    app.post("/v1/restart");
    app.comes_to("web", "ready");
    let runs = || fs::read_to_string(folder.path().join("runs")).expect("it ran").lines().count();
    assert_eq!((app.state_of("migrate").as_str(), runs()), ("done", 2));
    let before = app.unit("web")["pid"].clone();
    app.post("/v1/restart");
    eventually("web is another", || app.state_of("web") == "ready" && app.unit("web")["pid"] != before);
    assert_eq!(runs(), 2, "what is done is not done again");
    app.stops();
}

// --- Readiness ---

pub fn a_readiness_descriptor_that_closes_silently_is_not_ready_and_a_late_service_fails() {
    let more = json!({"ready": {"when": {"newline": 5}, "timeout_ms": 300}, "restart": "never"});
    let mut app = app(json!({"web": sh("exec 5>&-; exec sleep 1000", more)}), json!({}));
    app.comes_to("web", "starting");
    let line = app.says("was not ready within 0.3 s");
    assert!(line.contains("closed its readiness descriptor without a newline"), "{line}");
    app.comes_to("web", "failed");
    app.stops();
}

pub fn a_run_has_no_reasons_of_the_one_before() {
    let never = json!({"ready": {"when": "notify", "timeout_ms": 200}, "restart": "always"});
    let mut app = app(json!({"web": sh("exec sleep 1000", never)}), json!({}));
    for _ in 0..3 {
        let line = app.says("was not ready within");
        assert_eq!(line.matches("was not ready within").count(), 1, "{line}");
    }
    // In a run nothing is wrong yet, but that the one before was.
    eventually("another run", || {
        let unit = app.unit("web");
        unit["state"] == "starting" && unit["reason"].is_null()
    });
    let events = app.text("/v1/events?follow=0");
    assert!(!events.contains("was not ready within 0.2 s: was"), "{events}");
    app.stops();
}

pub fn a_service_tells_of_itself_by_sd_notify() {
    let words = "print=up;wait=100;notify=READY=1|STATUS=all well;wait=200;notify=RELOADING=1;wait=200;notify=READY=1";
    let app = app(json!({"web": actor(words, ready(json!("notify")))}), json!({}));
    app.comes_to("web", "starting");
    app.comes_to("web", "ready");
    assert_eq!(app.unit("web")["says"], "all well");
    app.comes_to("web", "reloading");
    app.comes_to("web", "ready");
    app.stops();
}

pub fn a_start_that_asks_for_more_time_gets_it() {
    let words = "notify=EXTEND_TIMEOUT_USEC=10000000;wait=500;notify=READY=1";
    let more = json!({"ready": {"when": "notify", "timeout_ms": 300}});
    let app = app(json!({"web": actor(words, more)}), json!({}));
    app.comes_to("web", "ready");
    assert_eq!(app.unit("web")["restarts"], 0);
    app.stops();
}

pub fn a_port_that_accepts_shows_that_a_service_is_ready() {
    let (port, folder) = (free_port(), tempfile::tempdir().expect("a folder"));
    let words = format!("wait=150;serve={port} {}", folder.path().display());
    let probe = json!({"probe": {"tcp": format!("127.0.0.1:{port}")}});
    let app = app(json!({"web": actor(&words, ready(probe))}), json!({}));
    app.comes_to("web", "starting");
    app.comes_to("web", "ready");
    app.stops();
}

pub fn a_command_shows_that_a_service_is_ready_and_one_that_hangs_does_not() {
    let state = tempfile::tempdir().expect("a folder");
    let mark = state.path().join("mark");
    let check = format!("test -e {}", mark.display());
    let probe = json!({"probe": {"command": {"argv": ["bin/sh", "-c", check]}}});
    let app = app_in(state, json!({"web": sh("exec sleep 1000", ready(probe))}), json!({}));
    eventually("a check has failed", || app.unit("web")["reason"] == "its check exited with status 1");
    assert_eq!(app.state_of("web"), "starting");
    fs::write(mark, "").expect("it can be written");
    app.comes_to("web", "ready");
    app.stops();
}

// --- Health ---

fn health(when: Value) -> Value {
    json!({"health": {
        "when": when, "interval_ms": 50, "timeout_ms": 300, "failures": 2, "kill_signal": "SIGABRT"
    }})
}

pub fn a_service_that_fails_its_checks_is_ended_and_started_again() {
    let (port, folder) = (free_port(), tempfile::tempdir().expect("a folder"));
    let words = format!("print=up;serve={port} {}", folder.path().display());
    let http = json!({"probe": {"http": {"address": format!("localhost:{port}"), "path": "/healthz"}}});
    let more = merge(ready(http.clone()), health(http));
    let mut app = app(json!({"web": actor(&words, more)}), json!({}));
    let first = number(&app.prints("up"));
    app.comes_to("web", "ready");
    fs::write(folder.path().join("sick"), "").expect("it can be written");
    let line = app.says("failed 2 checks in a row");
    assert!(line.contains("503") && line.contains("starting again at once"), "{line}");
    fs::remove_file(folder.path().join("sick")).expect("it can be removed");
    assert_ne!(number(&app.prints("up")), first);
    assert!(!alive(first));
    app.comes_to("web", "ready");
    let how = "failed 2 checks in a row, and was ended by SIGABRT";
    assert_eq!(app.unit("web")["last_end"]["how"], how);
    // One that is stopped answers nothing.
    let second = app.unit("web")["pid"].as_i64().expect("it runs");
    kill(i32::try_from(second).expect("a process id"), "STOP");
    app.says("failed 2 checks in a row");
    app.prints("up");
    app.stops();
}

pub fn what_a_failing_check_says_is_told() {
    // More than a pipe holds, and more than once: nobody waits for the check, and it waits for nobody.
    let check = "yes noise | head -c 300000; echo replica is 90 s behind >&2; echo; exit 3";
    let probe = json!({"probe": {"command": {"argv": ["bin/sh", "-c", check]}}});
    let mut more = merge(json!({"restart": "never"}), health(probe));
    more["health"]["timeout_ms"] = json!(10_000);
    let mut app = app(json!({"web": sh("exec sleep 1000", more)}), json!({}));
    let reason = "its check exited with status 3: replica is 90 s behind";
    app.says(&format!("service web failed 2 checks in a row: {reason}; ending it"));
    app.comes_to("web", "failed");
    assert_eq!(app.unit("web")["reason"], format!("failed 2 checks in a row: {reason}"));
    app.stops();
}

pub fn a_check_that_hangs_is_a_failed_one() {
    let probe = json!({"probe": {"command": {"argv": ["bin/sh", "-c", "sleep 1000 & wait"]}}});
    let mut app = app(json!({"web": sh("exec sleep 1000", health(probe))}), json!({}));
    assert!(app.says("failed 2 checks in a row").contains("its check took too long"));
    app.stops();
}

pub fn a_silent_service_is_ended_by_its_watchdog() {
    let words = "own-pid=WATCHDOG_PID;notify=READY=1;notify=WATCHDOG=1;wait=30;notify=WATCHDOG=1;print=up";
    let more = merge(
        ready(json!("notify")),
        json!({"health": {
            "when": "watchdog", "interval_ms": 200, "timeout_ms": 1, "failures": 1, "kill_signal": "SIGQUIT"
        }}),
    );
    let mut app = app(json!({"web": actor(words, more)}), json!({}));
    app.prints("up");
    app.says("service web gave no sign of life for 0.2 s; ending it; starting again");
    app.prints("up");
    let how = "gave no sign of life for 0.2 s, and was ended by SIGQUIT";
    assert_eq!(app.unit("web")["last_end"]["how"], how);
    app.stops();
}

// --- Instances ---

pub fn instances_are_numbered_and_scaled_while_they_run() {
    let script = "echo instance $KITBAG_INSTANCE; exec sleep 1000";
    let mut app = app(json!({"web": sh(script, json!({"instances": 2}))}), json!({}));
    let mut seen = [app.prints("instance"), app.prints("instance")];
    seen.sort();
    assert!(seen[0].contains("web.0") && seen[0].ends_with("instance 0"), "{seen:?}");
    assert!(seen[1].contains("web.1") && seen[1].ends_with("instance 1"), "{seen:?}");
    app.post("/v1/services/web/scale?instances=4");
    app.comes_to("web.3", "ready");
    app.post("/v1/services/web/scale?instances=1");
    for name in ["web.3", "web.2", "web.1"] {
        app.comes_to(name, "not there");
    }
    assert_eq!(app.state_of("web.0"), "ready");
    app.post("/v1/services/web/scale?instances=2");
    app.comes_to("web.1", "ready");
    let refused = app.ask("POST", "/v1/services/web.3/restart");
    assert_eq!(refused.code, 404);
    assert!(
        refused.fault().contains("there is no web.3: web has the instances web.0 to web.1"),
        "{refused:?}"
    );
    app.stops();
}

// --- Tasks ---

pub fn a_task_runs_on_its_interval_and_when_somebody_asks_and_its_result_is_kept() {
    let tasks = json!({
        "often": task("echo often runs", json!({"schedule": {"every": 1000}})),
        "asked": task("echo asked runs; exit 4", json!({"schedule": "asked"})),
    });
    let mut app = app(json!({"web": sh("exec sleep 1000", json!({}))}), tasks);
    app.prints("often runs");
    app.prints("often runs");
    assert_eq!(app.state_of("asked"), "idle");
    app.post("/v1/tasks/asked/run");
    app.prints("asked runs");
    app.comes_to("asked", "failed");
    eventually("its result is kept", || {
        let record = fs::read_to_string(app.file("tasks/asked")).unwrap_or_default();
        record.contains("well=false") && record.contains("how=exited with status 4")
    });
    app.post("/v1/tasks/asked/run");
    app.prints("asked runs");
    app.stops();
}

pub fn a_task_that_is_due_while_it_runs_is_left_out_queued_or_replaced() {
    let slow = |overlap: &str, seconds: &str| {
        let script = format!("echo {overlap} begins; sleep {seconds}; echo {overlap} ends");
        task(&script, json!({"schedule": {"every": 1000}, "overlap": overlap}))
    };
    let tasks =
        json!({"skip": slow("skip", "1.5"), "queue": slow("queue", "1.5"), "replace": slow("replace", "10")});
    let mut app = app(json!({"web": sh("exec sleep 1000", json!({}))}), tasks);
    app.says("task skip is due and still runs; this run is left out");
    app.prints("skip ends");
    // The one that waits begins when the other has ended; never two at once.
    let mut before = None;
    for _ in 0..4 {
        let begins = app.prints("queue ").contains("begins");
        assert_ne!(before, Some(begins), "two at once");
        before = Some(begins);
    }
    app.prints("replace begins");
    app.prints("replace begins");
    app.stops();
}

pub fn a_task_that_takes_too_long_is_ended() {
    let tasks = json!({"slow": task("exec sleep 1000", json!({"timeout_ms": 200}))});
    let mut app = app(json!({"web": sh("echo never", json!({"needs": ["slow"]}))}), tasks);
    app.says("task slow took longer than 0.2 s; ending it");
    app.says("service web is not started: it needs slow, which took longer than 0.2 s");
    app.stops();
}

pub fn a_missed_run_is_caught_up() {
    let state = tempfile::tempdir().expect("a folder");
    fs::create_dir(state.path().join("tasks")).expect("a folder");
    let yesterday = "began=86400\nended=86500\nwell=true\nhow=exited with status 0\n";
    fs::write(state.path().join("tasks/backup"), yesterday).expect("a record");
    let cron = json!({"cron": {"expression": "0 3 * * *", "zone": "UTC"}});
    let tasks = json!({"backup": task("echo backup runs", json!({"schedule": cron, "catch_up": true}))});
    let mut app = app_in(state, json!({"web": sh("exec sleep 1000", json!({}))}), tasks);
    app.says("task backup was due while nothing ran; starting it now");
    app.prints("backup runs");
    app.comes_to("backup", "idle");
    assert!(app.unit("backup")["retry_in_ms"].as_u64().is_some_and(|left| left <= 86_400_000));
    app.stops();
}

// --- Requests ---

pub fn a_stop_by_hand_is_immediate_in_every_state() {
    let state = tempfile::tempdir().expect("a folder");
    let services = json!({
        "slow": sh("exec sleep 1000", ready(json!({"newline": 3}))),
        "needing": sh("echo never", json!({"needs": ["slow"]})),
        "crashing": sh("exit 1", json!({"backoff": {"first_ms": 600_000, "longest_ms": 600_000, "stable_ms": 60_000}})),
    });
    let app = app_in(state, services, json!({}));
    app.comes_to("crashing", "retrying");
    app.comes_to("needing", "waiting");
    assert_eq!(app.unit("needing")["waits_for"][0], "slow");
    let asked = Instant::now();
    for name in ["crashing", "needing", "slow"] {
        app.post(&format!("/v1/services/{name}/stop"));
        app.comes_to(name, "stopped");
    }
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    app.stops();
}

pub fn restarts_are_one_at_a_time_and_a_stop_beats_them() {
    let gate = Gate::new();
    let mut app = app(json!({"web": gate.held(json!([]))}), json!({}));
    app.prints("up");
    for _ in 0..3 {
        app.post("/v1/services/web/restart");
    }
    gate.open();
    app.prints("up");
    app.comes_to("web", "ready");
    gate.close();
    app.post("/v1/services/web/restart");
    app.post("/v1/services/web/stop");
    gate.open();
    app.comes_to("web", "stopped");
    app.post("/v1/services/web/start");
    // Three restarts at once were one, and the fourth was none.
    app.prints("up");
    app.comes_to("web", "ready");
    let rest: Vec<String> = app.running.stdout.as_ref().expect("piped").try_iter().collect();
    assert!(rest.iter().all(|line| !line.contains("up")), "{rest:?}");
    app.stops();
}

pub fn a_signal_reaches_the_service() {
    let script = "trap 'echo got USR1' USR1; echo up; while :; do sleep 0.01; done";
    let mut app = app(json!({"web": sh(script, json!({}))}), json!({}));
    app.prints("up");
    app.post("/v1/services/web/signal?signal=USR1");
    app.prints("got USR1");
    app.stops();
}

// --- What a successor has to know ---

/// What `status` calls a state of the machine, of services and of tasks that do not come again.
fn word(state: state::State, is_task: bool) -> &'static str {
    use state::{Outcome, State};
    match state {
        State::New if is_task => "idle",
        State::New | State::Ended(Outcome::Stopped) => "stopped",
        State::Needing => "waiting",
        State::Starting { .. } | State::Executing { .. } => "starting",
        State::Running { .. } => {
            if is_task {
                "running"
            } else {
                "starting"
            }
        }
        State::Ready { reloading: Some(_), .. } => "reloading",
        State::Ready { .. } => "ready",
        State::Leaving { .. } | State::Stopping { .. } | State::Killing { .. } => "stopping",
        State::Waiting { .. } => "retrying",
        State::Ended(Outcome::Succeeded) => "done",
        State::Ended(_) => "failed",
    }
}

pub fn a_snapshot_of_units_in_many_states_says_what_status_says() {
    let stubborn =
        sh("trap '' TERM; echo deaf; while :; do sleep 0.05; done", json!({"stop_timeout_ms": 60_000}));
    let backoff = json!({"backoff": {"first_ms": 600_000, "longest_ms": 600_000, "stable_ms": 600_000}});
    let speaks = "notify=READY=1|STATUS=all \"well\";wait=100;notify=RELOADING=1";
    let services = json!({
        "web": sh("exec sleep 1000", json!({"instances": 3})),
        "late": actor("print=up", ready(json!("notify"))),
        "line": sh("exec sleep 1000", ready(json!({"newline": 3}))),
        "speaks": actor(speaks, ready(json!("notify"))),
        "waits": sh("echo never", json!({"needs": ["late"]})),
        "crashes": sh("exit 3", backoff),
        "fails": sh("exit 4", json!({"restart": "never"})),
        "ends": sh("exit 0", json!({"restart": "never"})),
        "halts": sh("exec sleep 1000", json!({})),
        "leaves": sh("trap '' TERM; sleep 1000 & exit 0", json!({"restart": "never", "stop_timeout_ms": 60_000})),
        "deaf": stubborn,
    });
    let tasks = json!({
        "often": task("echo never", json!({"schedule": {"every": 3_600_000}})),
        "works": task("exec sleep 1000", json!({})),
    });
    let mut app = app(services, tasks);
    app.prints("deaf");
    app.post("/v1/services/halts/stop");
    app.post("/v1/services/deaf/stop");
    app.post("/v1/services/web/scale?instances=2");
    for (name, state) in [
        ("web.0", "ready"),
        ("web.2", "not there"),
        ("late", "starting"),
        ("line", "starting"),
        ("speaks", "reloading"),
        ("waits", "waiting"),
        ("crashes", "retrying"),
        ("fails", "failed"),
        ("ends", "done"),
        ("halts", "stopped"),
        ("deaf", "stopping"),
        ("leaves", "stopping"),
        ("often", "idle"),
        ("works", "running"),
    ] {
        app.comes_to(name, state);
    }
    let text = app.text("/v1/snapshot");
    let snapshot = Snapshot::from_text(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    assert_eq!(snapshot.to_text(), text);
    let status = app.ask("GET", "/v1/status").value;
    assert_eq!((&snapshot.bundle[..], &snapshot.version[..]), ("app", "1"));
    assert_eq!(i64::from(snapshot.supervisor.pid), status["pid"]);
    assert_eq!(snapshot.supervisor.start, start_of_process(app.running.pid()));
    assert_eq!(snapshot.parts.iter().map(|part| part.units.len()).sum::<usize>(), 15, "with the retired one");
    for shown in status["units"].as_array().expect("units") {
        let part = snapshot.parts.iter().find(|part| shown["service"] == part.name[..]).expect("its part");
        let is_task = shown["kind"] == "task";
        let unit = &part.units[usize::try_from(shown["instance"].as_u64().unwrap_or(0)).expect("a number")];
        let what = format!("{shown}\n{unit:?}");
        assert_eq!(word(unit.service.state, is_task), shown["state"], "{what}");
        let pid = unit.leader.filter(|_| !unit.reaped).map(|leader| leader.pid);
        assert_eq!(json!(pid), shown["pid"], "{what}");
        let (_, since) = unit.since;
        let shown_for = shown["for_ms"].as_u64().expect("a time");
        assert!(
            snapshot.taken.now - since <= shown_for && shown_for < snapshot.taken.now - since + 10_000,
            "{what}"
        );
        assert_eq!((json!(unit.says), json!(unit.reason)), (shown["says"].clone(), shown["reason"].clone()));
        let runs = if is_task { part.plan.runs } else { unit.service.restarts };
        assert_eq!(json!(runs), shown["restarts"], "{what}");
        let last = unit.service.last.and_then(|last| last.end).is_some();
        assert_eq!(last, shown["last_end"].is_object(), "{what}");
        check_run(unit, pid);
    }
    let named = |name: &str| snapshot.parts.iter().find(|part| part.name == name).expect("a part");
    assert_eq!((named("web").wanted, named("web").units.len()), (2, 3));
    assert!(named("often").plan.at.is_some_and(|at| at > snapshot.taken.now + 3_500_000));
    assert!(named("line").units[0].descriptors.newline.is_some());
    let [speaks] = &named("speaks").units[..] else { panic!("one") };
    assert_eq!(speaks.says.as_deref(), Some("all \"well\""));
    assert!(speaks.notify_socket.as_ref().is_some_and(|name| name.starts_with("@kitbag/")));
    assert!(speaks.descriptors.notify.is_some());
    // Its leader has ended; one of its group does not.
    let [leaves] = &named("leaves").units[..] else { panic!("one") };
    assert!(leaves.reaped && leaves.remains(&start_of_process) == Remains::Group, "{leaves:?}");
    // To the same supervisor, or one after it, the same is true; to another start of the machine nothing lives.
    assert_eq!(snapshot.clone().at(&snapshot.taken), snapshot);
    let other = snapshot::Moment { boot: "another".into(), ..snapshot.taken.clone() };
    let units = snapshot.clone().at(&other).parts.into_iter().flat_map(|part| part.units);
    assert!(units.into_iter().all(|unit| unit.leader.is_none()));
    app.running.signal("KILL");
    let units = || snapshot.parts.iter().flat_map(|part| &part.units);
    eventually("no leader is left", || {
        // `deaf` has no ear for the signal that comes with the supervisor's death.
        let deaf = named("deaf").units[0].leader.expect("it runs").pid;
        kill(deaf, "KILL");
        units().all(|unit| unit.remains(&start_of_process) != Remains::Leader)
    });
    for group in units().filter_map(|unit| unit.service.state.run()) {
        kill(-group.group, "KILL");
    }
}

/// A unit's run as a successor would find it: the very process, with a start time by which a later one of the same
/// number would not be taken for it, and descriptors that are the supervisor's.
fn check_run(unit: &snapshot::Unit, pid: Option<i32>) {
    let Some(pid) = pid else { return };
    let start = unit.leader.and_then(|leader| leader.start);
    assert!(start.is_some() && start == start_of_process(pid), "{unit:?}");
    assert_eq!(unit.remains(&start_of_process), Remains::Leader);
    assert_eq!(unit.remains(&|_| start.map(|start| start + 1)), Remains::Nothing);
    let ends = unit.descriptors.stdout.expect("it has printed or can");
    assert!(ends.iter().all(|number| *number > 2), "{unit:?}");
}

// --- Many, and too few ---

pub fn a_thousand_services_start_and_stop() {
    let services: serde_json::Map<String, Value> = (0..100)
        .map(|index| (format!("s{index}"), sh("exec sleep 1000", json!({"instances": 10}))))
        .collect();
    let began = Instant::now();
    let app = app(services.into(), json!({}));
    let units = |app: &App, state: &str| {
        let status = app.ask("GET", "/v1/status").value;
        status["units"]
            .as_array()
            .map_or(0, |units| units.iter().filter(|unit| unit["state"] == state).count())
    };
    eventually("all are ready", || units(&app, "ready") == 1000);
    println!("1000 services are ready after {:?}", began.elapsed());
    println!("the supervisor has {} kB with them", super::memory(app.running.pid(), "VmRSS"));
    let began = Instant::now();
    app.stops();
    println!("1000 services have stopped after {:?}", began.elapsed());
}

pub fn a_service_comes_back_at_once() {
    let words = "print=up";
    let more = json!({"backoff": {"first_ms": 100, "longest_ms": 30_000, "stable_ms": 1}});
    let mut app = app(json!({"web": actor(words, more)}), json!({}));
    let mut pid = number(&app.prints("up"));
    let mut times: Vec<Duration> = (0..15)
        .map(|_| {
            std::thread::sleep(Duration::from_millis(5));
            let began = Instant::now();
            kill(pid, "KILL");
            pid = number(&app.prints("up"));
            began.elapsed()
        })
        .collect();
    times.sort();
    println!("from kill(1) to the first line of the next life: {:?}", times[7]);
    assert!(times[7] < Duration::from_millis(90), "no delay: {times:?}");
    app.stops();
}

pub fn where_descriptors_are_short_services_wait_and_come_when_there_are_some() {
    let state = tempfile::tempdir().expect("a folder");
    let services: serde_json::Map<String, Value> =
        (0..12).map(|index| (format!("s{index:02}"), sh("exec sleep 1000", json!({})))).collect();
    let manifest = json!({"name": "app", "version": "1", "services": services});
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "ulimit -n 50; exec \"$0\""]).arg(std::env::current_exe().expect("a program"));
    command.env(MANIFEST, manifest.to_string()).env(STATE, state.path());
    let mut app = App { running: start_command(command), state };
    let line = app.says("could not be started: pipes");
    assert!(line.contains("Too many open files") && line.contains("starting again in"), "{line}");
    // The others run, the loop goes on, and the end is an orderly one.
    app.says("could not be started: pipes");
    app.running.signal("TERM");
    app.running.ends_with(exit::OK);
}
