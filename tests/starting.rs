//! Commands about a running bundle that meet another one: a start while it stops, a start of the stopped, two at once, a
//! file of another version; and what each says while it waits, and where it may not look.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use kitbag_tests::{App, Bundle, Cmd, Outcome, Running, Tmpfs, eventually, is_root, mounts, tools};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use serde_json::Value;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Somebody without rights.
const NOBODY: u32 = 65534;

#[track_caller]
fn is_gone(bundle: &Bundle) {
    eventually(PATIENCE, "nothing is left running", || bundle.sandbox.processes().is_empty());
}

#[track_caller]
fn status(bundle: &Bundle) -> Value {
    let outcome = bundle.run(["status", "--json"]);
    serde_json::from_str(&outcome.text()).unwrap_or_else(|why| panic!("{why}\n{outcome}"))
}

#[track_caller]
fn supervisor(bundle: &Bundle) -> i64 {
    status(bundle)["pid"].as_i64().expect("it runs")
}

fn send(pid: i64, signal: Signal) {
    kill(Pid::from_raw(pid as i32), signal).unwrap();
}

/// A service that ends at once when it is told to, and one that takes this long.
fn slow(stop_timeout: &str) -> Bundle {
    let manifest = format!(
        "[services.quick]\nargv = [\"bin/sleeps\"]\n[services.slow]\nargv = [\"bin/ignores-term\"]\n\
         stop-timeout = \"{stop_timeout}\"\n"
    );
    App::new(&manifest).helper("sleeps").helper("ignores-term").pack()
}

/// A bundle of this version, whose service has this argument.
fn version(version: &str, argument: &str) -> Bundle {
    let manifest = format!(
        "name = \"app\"\nversion = \"{version}\"\n[[include]]\nfrom = \"tree\"\nto = \".\"\n\
         [services.web]\nargv = [\"bin/sleeps\", \"{argument}\"]\n"
    );
    App::with_manifest(&manifest).helper("sleeps").pack()
}

/// A running `stop` of all that has begun.
#[track_caller]
fn stopping(bundle: &Bundle) -> Running {
    let stop = bundle.command(["stop"]).start();
    eventually(PATIENCE, "it is stopping", || status(bundle)["stopping"] == true);
    let quick = || status(bundle)["units"][0]["state"] == "stopped";
    eventually(PATIENCE, "one of its services has stopped", quick);
    stop
}

// --- While it stops ---

#[test]
fn a_start_while_it_stops_waits_and_starts_it_again() {
    let bundle = slow("3s");
    bundle.run(["start"]).exits(0);
    let first = supervisor(&bundle);
    let stop = stopping(&bundle);
    bundle
        .run(["status"])
        .prints("stopping, process")
        .prints("start   waits until it has stopped")
        .prints_no("start quick");
    bundle.run(["wait", "--ready"]).exits(7).says("app is stopping: `").says(" start` waits for that");
    bundle.run(["start", "--timeout", "100ms"]).exits(10).says("app is stopping still, as process ");
    let start =
        bundle.run(["start"]).exits(0).says(&format!("app is stopping, as process {first}; it starts when"));
    start.prints("app is ready after ");
    // The stop has done what it was to do, whether or not it has seen the next one.
    let said = stop.ended();
    let (text, again) = (said.text() + &said.said(), said.status.code() == Some(1));
    assert!(text.contains("app has stopped"), "{said}");
    assert_eq!(again, text.contains("was started again meanwhile, as process "), "{said}");
    assert_ne!(supervisor(&bundle), first);
    let stop = stopping(&bundle);
    bundle.run(["start", "--oknodo"]).exits(0).prints("app is ready after ");
    stop.ended();
    bundle.run(["stop"]).exits(0);
    is_gone(&bundle);
}

#[test]
fn a_stop_has_an_end_when_somebody_starts_the_service_meanwhile() {
    let bundle = slow("2s");
    bundle.run(["start"]).exits(0);
    let mut stop = bundle.command(["stop", "slow"]).start();
    eventually(PATIENCE, "it is stopping", || status(&bundle)["units"][1]["state"] == "stopping");
    assert!(!stop.has_ended());
    let units = status(&bundle)["units"].clone();
    bundle.run(["start", "slow"]).exits(0);
    let stopped =
        stop.ended().exits(1).says("slow has stopped, and was started again meanwhile, as process ");
    assert_eq!(stopped.text(), "", "{stopped}");
    assert_ne!(status(&bundle)["units"][1]["pid"], units[1]["pid"]);
    bundle.run(["stop", "--timeout", "100ms", "slow"]).exits(10).says("still there: slow");
    bundle.run(["stop", "slow"]).exits(0).prints("stopped: slow");
    bundle.run(["start", "slow"]).exits(0);
    bundle.run(["stop", "--timeout", "100ms"]).exits(10).says("app is stopping still, as process ");
    bundle.run(["stop"]).exits(0).prints("app has stopped");
    is_gone(&bundle);
}

// --- Several at once ---

#[test]
fn of_many_starts_at_once_one_starts_it_and_the_others_say_so() {
    let bundle = App::service("sleeps", &[], "").pack();
    for oknodo in [&["start", "--oknodo"][..], &["start"]] {
        let all: Vec<Running> = (0..12).map(|_| bundle.command(oknodo).start()).collect();
        let mut first = 0;
        for outcome in all.into_iter().map(Running::ended) {
            if outcome.text().contains("app is ready after ") {
                first += 1;
                outcome.exits(0);
            } else if oknodo.len() > 1 {
                outcome.exits(0).prints("app is running already, as process ");
            } else {
                outcome.exits(6).says("app is running already, as process ");
            }
        }
        assert_eq!(first, 1);
        bundle.run(["stop"]).exits(0);
        is_gone(&bundle);
    }
}

#[test]
fn a_file_of_another_version_says_what_runs_and_what_to_type() {
    let (old, new, build) = (version("1.0.0", "1"), version("2.0.0", "1"), version("1.0.0", "2"));
    old.run(["start"]).exits(0);
    old.run(["status"]).exits(0).prints_no("what runs is");
    for (other, this) in [(&new, "2.0.0"), (&build, "another build of 1.0.0")] {
        let ask = |args: &[&str]| old.sandbox.command(&other.file).args(args).run();
        let pid = supervisor(&old);
        let runs = format!("what runs is app 1.0.0, as process {pid}, and this file is {this}");
        let file = other.file.display();
        ask(&["status"]).exits(0).prints(&runs).prints(&format!("{file} stop`, then `"));
        ask(&["restart"]).exits(1).says(&runs).says("nothing was restarted").says(&format!("{file} start`"));
        ask(&["restart", "web"]).exits(0).says(&runs).prints("restarted: web");
        ask(&["start"]).exits(6).says("app is running already").says(&runs);
        ask(&["start", "--oknodo"]).exits(0).says(&runs);
        assert_eq!(supervisor(&old), pid);
    }
    // What it says is to be typed works.
    let ask = |args: &[&str]| old.sandbox.command(&new.file).args(args).run();
    ask(&["stop"]).exits(0);
    ask(&["start"]).exits(0);
    assert_eq!(status(&old)["version"], "2.0.0");
    ask(&["stop"]).exits(0);
    is_gone(&old);
}

// --- Ready, and then not ---

#[test]
fn a_service_that_dies_when_it_has_just_started_is_not_ready() {
    let bundle = App::service("crashes-at-once", &[], "restart = \"never\"").pack();
    bundle
        .run(["start"])
        .exits(7)
        .says("web is not ready (failed): exited with status 3")
        .says("goes on running");
    bundle.run(["start", "web"]).exits(7).says("web is not ready (failed)");
    bundle.run(["restart", "web"]).exits(7).says("web is not ready (failed)");
    bundle.run(["restart"]).exits(7).says("web is not ready (failed)");
    bundle.run(["stop"]).exits(0);
    is_gone(&bundle);
    // One that is started again and again.
    let bundle = App::service("crashes-at-once", &[], "").pack();
    let start = bundle.run(["start"]).exits(7).says("web is not ready (retrying)");
    assert_eq!(start.text(), "", "{start}");
    bundle.run(["start", "web"]).exits(7).says("web is not ready (retrying)");
    bundle.run(["stop"]).exits(0);
    is_gone(&bundle);
}

#[test]
fn a_service_that_shows_that_it_is_ready_is_not_looked_at_twice() {
    let time = |more: &str| {
        let bundle = App::service("sleeps", &[], more).helper("exits-zero").pack();
        let mut best = Duration::MAX;
        for _ in 0..10 {
            bundle.run(["start"]).exits(0);
            let begin = Instant::now();
            bundle.run(["start", "--oknodo"]).exits(0);
            bundle.run(["restart", "web"]).exits(0);
            best = best.min(begin.elapsed());
            bundle.run(["stop"]).exits(0);
        }
        is_gone(&bundle);
        best
    };
    let shown = time("ready = { command = [\"bin/exits-zero\"] }");
    let unproven = time("");
    let settled = Duration::from_millis(100);
    assert!(unproven >= settled, "it has run for a moment: {unproven:?}");
    assert!(shown + settled / 2 < unproven, "{shown:?}, and {unproven:?} with a second look");
}

// --- Words on the way ---

#[test]
fn a_start_tells_what_it_waits_for_and_that_it_goes_on_after_an_interrupt() {
    let never = "ready = { notify = true, timeout = \"1h\" }\nstop-timeout = \"5s\"";
    let bundle = App::service("sleeps", &[], never).pack();
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut start = bundle.command(["start"]).start();
        start.wait_say("still waiting: web is not ready (starting)");
        start.signal(signal);
        let said = start.ended().dies_by(signal as i32).says("it goes on in the background: `");
        assert_eq!(said.said().matches("still waiting").count(), 1, "{said}");
        bundle.run(["status"]).exits(0).prints("web   starting");
        bundle.run(["stop"]).exits(0);
        is_gone(&bundle);
    }
}

#[test]
fn what_is_to_be_typed_is_about_the_same_copy() {
    let bundle = App::service("sleeps", &[], "").pack();
    let place = bundle.sandbox.path().join("it's here");
    let run = |args: &[&str]| bundle.command(args).env("KITBAG_NAME", "r3").env("KITBAG_STATE", &place).run();
    let file = bundle.file.display();
    let words = format!(
        "KITBAG_NAME=r3 KITBAG_STATE='{}' {file} ",
        place.display().to_string().replace('\'', r"'\''")
    );
    run(&["status"]).exits(9).says(&format!("`{words}start` starts it")).says(&place.display().to_string());
    run(&["start"]).exits(0);
    run(&["stop", "web"]).exits(0);
    let shown = run(&["status"]).exits(0).text();
    let next = shown.split("next:\n").nth(1).unwrap().split("   it was told").next().unwrap().trim();
    assert_eq!(next, format!("{words}start web"), "{shown}");
    // Typed so, without the variables of this copy, it does what it says.
    let shell = bundle.sandbox.command("/bin/sh").args(["-c", next]).env_remove("KITBAG_STATE");
    shell.run().exits(0).prints("ready: web");
    run(&["stop"]).exits(0);
    is_gone(&bundle);
    bundle.run(["help"]).exits(0).prints("KITBAG_NAME ").prints("KITBAG_RUN ");
}

#[test]
fn a_supervisor_that_does_not_answer_keeps_no_wait_longer_than_its_time() {
    let bundle = App::service("sleeps", &[], "").pack();
    bundle.run(["start"]).exits(0);
    let pid = supervisor(&bundle);
    send(pid, Signal::SIGSTOP);
    for command in
        [&["wait", "--ready"][..], &["stop"], &["stop", "web"], &["restart"], &["start", "--oknodo"]]
    {
        let begin = Instant::now();
        let outcome = bundle.command(command.iter().chain(&["--timeout", "1s"])).run();
        outcome.exits(10).says("does not answer").says(&format!("`kill -CONT {pid}` wakes it"));
        assert!(begin.elapsed() < Duration::from_secs(5), "{command:?} took {:?}", begin.elapsed());
    }
    send(pid, Signal::SIGCONT);
    // What was asked meanwhile is not done: nobody waits for it any more. Or it is; both are an end.
    eventually(PATIENCE, "it has ended", || matches!(bundle.run(["stop"]).status.code(), Some(0 | 9)));
    is_gone(&bundle);
}

#[test]
fn a_socket_that_somebody_has_removed_is_said_with_what_ends_what_runs() {
    let bundle = App::service("sleeps", &[], "").pack();
    bundle.run(["start"]).exits(0);
    let pid = supervisor(&bundle);
    let socket = bundle.sandbox.state().join(".kitbag/control");
    fs::remove_file(&socket).unwrap();
    let outcome = bundle.run(["stop", "--timeout", "1s"]).exits(1);
    let outcome = outcome.says(&format!("its socket {} is gone", socket.display()));
    let outcome = outcome.says(&format!("`kill {pid}` stops what runs, then `"));
    assert!(!outcome.said().contains("CONT"), "{outcome}");
    send(pid, Signal::SIGTERM);
    eventually(PATIENCE, "it has ended", || bundle.run(["status"]).status.code() == Some(9));
    bundle.run(["start"]).exits(0);
    bundle.run(["stop"]).exits(0);
    is_gone(&bundle);
}

// --- Where it may not look, or write ---

/// Runs it as a user who is not root.
fn as_user(command: Cmd) -> Outcome {
    let user = [format!("--reuid={NOBODY}"), format!("--regid={NOBODY}"), "--clear-groups".into()];
    if is_root() { command.behind("setpriv", user).run() } else { command.run() }
}

#[test]
fn who_may_not_look_is_told_so_and_not_that_nothing_runs() {
    if is_root() && !tools(&["setpriv"]) {
        return;
    }
    let bundle = App::service("sleeps", &[], "").pack();
    let closed = bundle.sandbox.path().join("closed");
    let state = closed.join("state");
    fs::create_dir(&closed).unwrap();
    for path in [bundle.sandbox.path(), bundle.file.as_path()] {
        fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    }
    let own = |args: &[&str]| bundle.command(args).env("KITBAG_STATE", &state).run();
    own(&["status"]).exits(9).says(&format!("app is not running: no state is in {}", state.display()));
    own(&["start"]).exits(0);
    let look = |folder: &Path, mode: u32| {
        fs::set_permissions(folder, Permissions::from_mode(mode)).unwrap();
        for args in [&["status"][..], &["stop"], &["stop", "--oknodo"], &["wait", "--ready"]] {
            let outcome = as_user(bundle.command(args).env("KITBAG_STATE", &state).cwd("/"));
            outcome.exits(1).says(&format!("cannot look into {}: Permission denied", state.display()));
        }
        fs::set_permissions(folder, Permissions::from_mode(0o755)).unwrap();
    };
    // The path; and the folder itself, which is private as it is made. A lock that may be seen and not opened:
    // others may look at the folder's names.
    look(&closed, 0o600);
    look(&state, 0o600);
    if is_root() {
        look(&state, 0o755);
    }
    fs::set_permissions(&state, Permissions::from_mode(0o700)).unwrap();
    own(&["stop"]).exits(0);
    own(&["stop"]).exits(9).says(&format!("with its state in {}", state.display()));
    is_gone(&bundle);
}

#[test]
fn logs_that_may_not_be_seen_are_not_said_to_be_none() {
    if is_root() && !tools(&["setpriv"]) {
        return;
    }
    let bundle = App::service("prints", &["3"], "restart = \"never\"").pack();
    let state = bundle.sandbox.path().join("state");
    for path in [bundle.sandbox.path(), bundle.file.as_path()] {
        fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    }
    let command = |args: &[&str]| bundle.command(args).env("KITBAG_STATE", &state).cwd("/");
    command(&["start"]).run().exits(0);
    eventually(PATIENCE, "it has ended", || bundle.sandbox.processes().is_empty());
    let set = |path: &Path, mode: u32| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    let own = state.join(".kitbag");
    let web = own.join("log/web");
    for path in [&state, &own, &own.join("log"), &own.join("log/_kitbag"), &web] {
        set(path, 0o755);
    }
    for file in [web.join("current"), own.join("log/_kitbag/current")] {
        set(&file, 0o644);
    }
    as_user(command(&["logs"])).exits(0).prints("app 1.0.0 begins").prints("| line 3\n");
    for closed in [own.clone(), own.join("log")] {
        set(&closed, 0);
        for args in [&["logs"][..], &["logs", "-f", "web"]] {
            let why = format!("cannot look into {}: Permission denied", closed.display());
            as_user(command(args)).exits(1).says(&why);
        }
        set(&closed, 0o755);
    }
    // One of several: the others are shown.
    for (closed, mode) in [(web.clone(), 0o755), (web.join("current"), 0o644)] {
        set(&closed, 0);
        let why = format!("kitbag: cannot read {}: Permission denied", web.join("current").display());
        as_user(command(&["logs"])).exits(0).prints("app 1.0.0 begins").prints(&why).prints_no("line 3");
        set(&closed, mode);
    }
}

#[test]
fn state_that_cannot_be_written_is_no_place_with_ways_out() {
    if is_root() && !tools(&["setpriv"]) {
        return;
    }
    let bundle = App::service("sleeps", &[], "").pack();
    for path in [bundle.sandbox.path(), bundle.file.as_path()] {
        fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    }
    let (state, store) = (bundle.sandbox.state(), bundle.sandbox.path().join("own-store"));
    for folder in [&state, &store] {
        fs::create_dir(folder).unwrap();
        if is_root() {
            chown(folder, Some(NOBODY), Some(NOBODY)).unwrap();
        }
    }
    fs::set_permissions(&state, Permissions::from_mode(0o500)).unwrap();
    for args in [&["start"][..], &[]] {
        let outcome = as_user(bundle.command(args).env("KITBAG_STORE", &store).cwd("/"));
        outcome
            .exits(5)
            .says(&format!("{} (this app's state): Permission denied", state.display()))
            .says("KITBAG_STATE");
    }
    is_gone(&bundle);
}

#[test]
fn state_on_a_disk_that_is_read_only_is_no_place_with_ways_out() {
    if !mounts() {
        return;
    }
    let bundle = App::service("sleeps", &[], "").pack();
    let disk = Tmpfs::new("size=1m", false);
    fs::set_permissions(disk.path(), Permissions::from_mode(0o700)).unwrap();
    Cmd::new("mount").args(["-o", "remount,ro"]).arg(disk.path()).run().exits(0);
    for args in [&["start"][..], &[]] {
        let outcome = bundle.command(args).env("KITBAG_STATE", disk.path()).run();
        outcome.exits(5).says("the file system is read-only").says("to fix").says("set KITBAG_STATE");
    }
    is_gone(&bundle);
}

#[test]
fn a_pipe_or_a_link_in_place_of_the_supervisors_log_is_refused_at_once() {
    let bundle = App::service("sleeps", &[], "").pack();
    let log = bundle.sandbox.state().join(".kitbag/log/supervisor.log");
    fs::create_dir_all(log.parent().unwrap()).unwrap();
    fs::set_permissions(bundle.sandbox.state(), Permissions::from_mode(0o700)).unwrap();
    let refused = || {
        let outcome = bundle.command(["start"]).within(PATIENCE).run().exits(1);
        outcome.says(&format!("cannot write to {}: it is no regular file", log.display()));
        is_gone(&bundle);
    };
    mkfifo(&log, Mode::S_IRWXU).unwrap();
    refused();
    let reader = fs::OpenOptions::new().read(true).write(true).open(&log).unwrap();
    refused();
    drop(reader);
    fs::remove_file(&log).unwrap();
    let elsewhere = bundle.sandbox.path().join("elsewhere");
    symlink(&elsewhere, &log).unwrap();
    refused();
    assert!(!elsewhere.exists());
    fs::remove_file(&log).unwrap();
    bundle.run(["start"]).exits(0);
    bundle.run(["stop"]).exits(0);
    is_gone(&bundle);
}

#[test]
fn the_supervisors_log_is_put_aside_while_it_runs() {
    let bundle = App::service(
        "exits-zero",
        &[],
        "restart = \"always\"\nrestart-delay = { first = \"10ms\", longest = \"10ms\" }",
    )
    .pack();
    let log = bundle.sandbox.state().join(".kitbag/log/supervisor.log");
    fs::create_dir_all(log.parent().unwrap()).unwrap();
    fs::set_permissions(bundle.sandbox.state(), Permissions::from_mode(0o700)).unwrap();
    // Not full at the start.
    fs::write(&log, vec![b'\n'; (1 << 20) - 100]).unwrap();
    let _ = bundle.run(["start", "--timeout", "1s"]);
    let aside = log.with_extension("log.1");
    eventually(PATIENCE, "it is put aside", || aside.exists());
    bundle.run(["stop"]).exits(0);
    let said = fs::read_to_string(&log).unwrap();
    assert!(said.contains("stopping app (on request)\n") && said.len() < 100_000, "{said}");
    let before = fs::read(&aside).unwrap();
    assert!(before.len() > 1 << 20 && before.ends_with(b"\n"), "{} bytes", before.len());
    is_gone(&bundle);
}

#[test]
fn a_pipe_in_place_of_a_record_holds_nothing_up() {
    let manifest = "[services.web]\nargv = [\"bin/sleeps\"]\n[tasks.tidy]\nargv = [\"bin/exits-zero\"]\non-demand = true\n";
    let bundle = App::new(manifest).helper("sleeps").helper("exits-zero").pack();
    let tasks = bundle.sandbox.state().join(".kitbag/tasks");
    fs::create_dir_all(&tasks).unwrap();
    fs::set_permissions(bundle.sandbox.state(), Permissions::from_mode(0o700)).unwrap();
    for name in ["tidy", ".tidy.part"] {
        mkfifo(&tasks.join(name), Mode::S_IRWXU).unwrap();
    }
    bundle.command(["start"]).within(PATIENCE).run().exits(0);
    bundle.command(["run-task", "tidy", "--wait"]).within(PATIENCE).run().exits(0);
    eventually(PATIENCE, "the run is remembered", || tasks.join("tidy").is_file());
    bundle.run(["stop"]).exits(0);
    is_gone(&bundle);
}
