//! The commands about a bundle as scripts type them, and operators at three in the morning.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::time::Duration;

use kitbag_tests::{App, Bundle, Cmd, eventually, is_root, tools};
use serde_json::Value;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Somebody without rights.
const NOBODY: u32 = 65534;

#[track_caller]
fn is_gone(bundle: &Bundle) {
    assert_eq!(bundle.sandbox.processes(), [0; 0], "left running");
}

/// Two services and a task.
fn shop() -> Bundle {
    let sleeps = |header: &str, more: &str| format!("[{header}]\nargv = [\"bin/sleeps\"]\n{more}\n");
    let manifest = [
        sleeps("services.db", "stop-timeout = \"5s\""),
        sleeps("services.web", "stop-timeout = \"5s\""),
        sleeps("tasks.tidy", "on-demand = true"),
    ];
    App::new(&manifest.concat()).helper("sleeps").pack()
}

#[track_caller]
fn status(bundle: &Bundle) -> Value {
    let outcome = bundle.run(["status", "--json"]).exits(0);
    serde_json::from_str(&outcome.text()).unwrap_or_else(|why| panic!("{why}\n{outcome}"))
}

#[track_caller]
fn state(bundle: &Bundle, unit: &str) -> String {
    let status = status(bundle);
    let found = status["units"].as_array().unwrap().iter().find(|found| found["name"] == unit);
    found.map_or("not there", |unit| unit["state"].as_str().unwrap()).to_owned()
}

/// A command whose standard output is a device that is full.
fn into_full(bundle: &Bundle, command: &str) -> Cmd {
    let script = format!("exec {} {command} > /dev/full", bundle.file.display());
    bundle.sandbox.command("/bin/sh").args(["-c", &script])
}

// --- Exit codes ---

#[test]
fn what_does_not_run_is_told_so_by_every_command() {
    let bundle = shop();
    // Before its first start, and after it.
    for _ in 0..2 {
        for command in [
            &["status"][..],
            &["status", "--json"],
            &["stop"],
            &["stop", "web"],
            &["start", "web"],
            &["restart"],
            &["restart", "web"],
            &["events"],
            &["events", "-f"],
            &["wait", "--ready"],
            &["wait", "--ready", "--timeout", "1h", "web"],
            &["scale", "web=2"],
            &["signal", "HUP", "web"],
            &["run-task", "tidy", "--wait"],
            &["exec", "web", "--", "true"],
        ] {
            let outcome = bundle.run(command).exits(9).says("app is not running").says("/bundle start`");
            assert_eq!(outcome.text(), "", "{outcome}");
        }
        bundle.run(["start"]).exits(0);
        bundle.run(["stop"]).exits(0);
    }
    is_gone(&bundle);
}

#[test]
fn what_makes_no_sense_is_wrong_use_with_one_way_to_fix_it() {
    let bundle = shop();
    bundle.run(["start"]).exits(0);
    for (command, said) in [
        (&["start", "wbe"][..], "did you mean `web`?"),
        (&["stop", "wbe"], "did you mean `web`?"),
        (&["restart", "nosuch"], "there are: db, tidy, web"),
        (&["wait", "--ready", "wbe"], "did you mean `web`?"),
        (&["wait"], "`wait --ready`"),
        (&["wait", "--ready", "--timeout", "soon"], "`soon` is not a time"),
        (&["signal", "NOSUCH", "web"], "there is no signal `NOSUCH`"),
        (&["signal", "HUP", "wbe"], "did you mean `web`?"),
        (&["exec", "wbe", "true"], "did you mean `web`?"),
        (&["run-task", "web"], "web is a service; only tasks are run once"),
        (&["run-task", "web"], "`restart web` in any case"),
        (&["run-task", "tdy"], "did you mean `tidy`?"),
        (&["scale", "tidy=2"], "tidy is a task; only services have instances"),
        (&["scale", "tidy=2"], "`run-task tidy` runs it now"),
        (&["scale", "wbe=2"], "did you mean `web`?"),
        (&["scale", "web"], "`scale web=3`"),
        (&["scale", "web=-1"], "`scale web=3`"),
        (&["scale", "web=1001"], "more than 1000 instances"),
        (&["scale", "web=4000000000"], "more than 1000 instances"),
        (&["status", "wbe"], "did you mean `web`?"),
        (&["status", "web", "wbe"], "did you mean `web`?"),
        (&["restart", "web.4"], "there is no web.4: web has one instance, web.0"),
        (&["restart", "web.4"], "`scale web=5`"),
        (&["logs", "-n", "abc"], "-n: `abc` is not a number of lines, as in `logs -n 50`"),
        (&["status", ""], "a name is empty"),
        (&["wait", "--ready", ""], "a name is empty"),
        (&["logs", ""], "a name is empty"),
        (&["stop", ""], "a name is empty"),
        (&["stop", "web", ""], "a name is empty"),
        (&["restart", ""], "a name is empty"),
        (&["run-task", ""], "a name is empty"),
        (&["exec", "", "true"], "a name is empty"),
    ] {
        let outcome = bundle.run(command).exits(2).says(said);
        assert_eq!(outcome.said().matches("to fix").count(), 1, "{outcome}");
    }
    // Nothing has come of any of it.
    assert_eq!((state(&bundle, "web"), state(&bundle, "tidy")), ("ready".into(), "idle".into()));
    bundle.run(["stop"]).exits(0);
    is_gone(&bundle);
}

#[test]
fn a_name_that_does_not_exist_keeps_the_others_from_being_touched() {
    let bundle = shop();
    bundle.run(["start"]).exits(0);
    let before = status(&bundle);
    for command in [
        &["stop", "web", "dbb"][..],
        &["restart", "web", "dbb"],
        &["signal", "KILL", "web", "dbb"],
        &["scale", "web=0", "dbb=1"],
    ] {
        bundle.run(command).exits(2).says("did you mean `db`?");
    }
    let after = status(&bundle);
    for unit in 0..3 {
        let of =
            |status: &Value| (status["units"][unit]["pid"].clone(), status["units"][unit]["state"].clone());
        assert_eq!(of(&before), of(&after));
    }
    bundle.run(["stop"]).exits(0);
    is_gone(&bundle);
}

#[test]
fn a_wait_is_over_when_its_time_is_and_says_who_is_not_ready() {
    let never = "ready = { notify = true, timeout = \"1h\" }\nstop-timeout = \"5s\"";
    let bundle = App::service("sleeps", &[], never).pack();
    bundle
        .run(["start", "--timeout", "100ms"])
        .exits(10)
        .says("web is not ready (starting)")
        .says("goes on running");
    bundle.run(["wait", "--ready", "--timeout", "0"]).exits(10).says("web is not ready (starting)");
    bundle.run(["wait", "--ready", "--timeout", "100ms", "web"]).exits(10);
    bundle.run(["start"]).exits(6);
    bundle.run(["start", "--oknodo", "--timeout", "100ms"]).exits(10);
    bundle.run(["stop", "web"]).exits(0);
    // It will not be by itself: nobody waits for the time to pass.
    bundle.run(["wait", "--ready", "--timeout", "1h"]).exits(7).says("it was told to stop");
    bundle.run(["stop"]).exits(0);
    is_gone(&bundle);
}

#[test]
fn who_does_not_wait_longer_for_a_task_is_told_what_to_type() {
    let bundle = shop();
    bundle.run(["start"]).exits(0);
    let waited = bundle.run(["run-task", "tidy", "--wait", "--timeout", "300ms"]).exits(10);
    waited.says("task tidy still runs").says(" status tidy`").says(" logs -f tidy`").says(" stop tidy`");
    bundle.run(["status", "tidy"]).exits(0).prints("running");
    bundle.run(["stop", "tidy"]).exits(0);
    bundle.run(["stop"]).exits(0);
    is_gone(&bundle);
}

#[test]
fn a_service_that_is_scaled_to_nothing_is_still_known() {
    let bundle = shop();
    bundle.run(["start"]).exits(0);
    bundle.run(["scale", "web=0"]).exits(0);
    eventually(PATIENCE, "it has ended", || state(&bundle, "web") == "stopped");
    let shown = bundle.run(["status"]).exits(0);
    shown.prints("scale web=1").prints("it was scaled to 0 instances");
    bundle.run(["start", "web"]).exits(1).says("web was scaled to 0 instances; scale it to more");
    bundle.run(["restart", "web"]).exits(1).says("web was scaled to 0 instances");
    bundle.run(["signal", "HUP", "web"]).exits(1).says("web does not run");
    bundle.run(["stop", "web"]).exits(0);
    // The bundle is ready without it, and itself it is not.
    bundle.run(["wait", "--ready"]).exits(0);
    bundle.run(["wait", "--ready", "web"]).exits(7).says("it was scaled to 0 instances");
    bundle.run(["logs", "-n", "1", "web"]).exits(0).prints("sleeps: stopped");
    bundle.run(["scale", "web=2"]).exits(0);
    bundle.run(["wait", "--ready", "web"]).exits(0);
    assert_eq!((state(&bundle, "web"), state(&bundle, "web.1")), ("ready".into(), "ready".into()));
    bundle.run(["stop"]).exits(0);
    is_gone(&bundle);
}

// --- Help ---

#[test]
fn each_command_says_what_it_means() {
    let bundle = shop();
    let all = bundle.run(["help"]).exits(0).text();
    let usages: Vec<&str> = all.lines().filter_map(|line| line.strip_prefix("  FILE ")).collect();
    assert!(usages.len() > 15 && usages[0] == "[run]", "{all}");
    for usage in &usages[1..] {
        let name = usage.split(' ').next().unwrap();
        for asked in [&[name, "--help"][..], &[name, "-h"]] {
            let outcome = bundle.run(asked).exits(0).is_quiet().prints(&format!("FILE {usage}\n    "));
            assert_eq!(outcome.text().lines().count(), 2, "{outcome}");
        }
    }
    bundle.run(["run", "--help"]).exits(0).prints("FILE [run]\n");
    bundle.run(["status", "web", "--json", "--help"]).exits(0).prints("FILE status ");
    bundle.run(["stats", "--help"]).exits(2).says("did you mean `status`?");
    // What is started is asked itself.
    bundle.run(["start"]).exits(0);
    for words in [&["exec", "web", "--"][..], &["exec", "web"]] {
        let ask = words.iter().chain(&["/bin/sh", "-c", "echo asked $1", "sh", "--help"]);
        bundle.run(ask).exits(0).prints("asked --help\n");
    }
    bundle.run(["stop"]).exits(0);
    is_gone(&bundle);
    let tool = App::tool().pack();
    tool.run(["--kitbag", "verify", "--help"]).exits(0).prints("FILE --kitbag verify [--unpacked]\n    ");
    tool.run(["--kitbag", "status", "--help"]).exits(2).says("is for bundles of services");
    tool.run(["--help"]).succeeds().prints("argv[1] --help");
}

// --- A file that is not there any more ---

#[test]
fn a_bundle_whose_file_was_deleted_is_asked_by_its_process() {
    let bundle = shop();
    bundle.run(["start"]).exits(0);
    let pid = status(&bundle)["pid"].as_i64().unwrap();
    assert_eq!(
        fs::read_to_string(bundle.sandbox.state().join(".kitbag.lock")).unwrap().trim(),
        pid.to_string()
    );
    fs::remove_file(&bundle.file).unwrap();
    let program = format!("/proc/{pid}/exe");
    let ask = |args: &[&str]| bundle.sandbox.command(&program).args(args).run();
    ask(&["status"]).exits(0).prints("web   ready");
    ask(&["restart", "web"]).exits(0);
    ask(&["exec", "web", "--", "true"]).exits(0);
    ask(&["verify"]).exits(0);
    ask(&["stop"]).exits(0).prints("app has stopped");
    is_gone(&bundle);
}

#[test]
fn another_version_of_a_bundle_stops_the_one_that_runs() {
    let bundle = shop();
    bundle.run(["start"]).exits(0);
    fs::remove_file(&bundle.file).unwrap();
    let other = App::service("sleeps", &["2"], "").pack();
    fs::rename(&other.file, &bundle.file).unwrap();
    bundle.run(["status"]).exits(0).prints("db    ready");
    bundle.run(["start"]).exits(6);
    bundle.run(["stop"]).exits(0);
    is_gone(&bundle);
}

// --- Where nothing can be written ---

#[test]
fn a_home_that_cannot_be_written_to_is_said_with_what_to_do() {
    if is_root() && !tools(&["setpriv"]) {
        return;
    }
    let bundle = shop();
    let home = bundle.sandbox.path().join("locked");
    fs::create_dir(&home).unwrap();
    fs::set_permissions(&home, Permissions::from_mode(0o555)).unwrap();
    for path in [bundle.sandbox.path(), bundle.file.as_path()] {
        fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    }
    let store = bundle.sandbox.path().join("own-store");
    fs::create_dir(&store).unwrap();
    if is_root() {
        chown(&store, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let run = |args: &[&str]| {
        let command = bundle.command(args).env_remove("KITBAG_STATE").env("KITBAG_STORE", &store);
        let command = command.env("HOME", &home).cwd("/");
        let user = [format!("--reuid={NOBODY}"), format!("--regid={NOBODY}"), "--clear-groups".into()];
        if is_root() { command.behind("setpriv", user).run() } else { command.run() }
    };
    let started = run(&["start"]).exits(5).says("locked/.local/state/kitbag/app");
    started.says("KITBAG_STATE");
    run(&["status"]).exits(9);
    run(&["inspect"]).exits(0);
    is_gone(&bundle);
}

// --- Output that nobody takes ---

#[test]
fn output_that_cannot_be_written_is_an_error_and_a_reader_that_has_gone_is_none() {
    let bundle = shop();
    bundle.run(["start"]).exits(0);
    for command in
        ["status", "status --json", "logs", "events", "events -f", "logs -f", "help", "restart web"]
    {
        into_full(&bundle, command).run().exits(1).says("cannot write to stdout: No space left on device");
    }
    for command in ["status", "logs", "events", "events -f", "logs -f", "logs -n 1"] {
        // With SIGPIPE ignored, as programs do that start others.
        let script = format!("trap '' PIPE; ({} {command}; echo it is $? >&2) | :", bundle.file.display());
        let outcome = bundle.sandbox.command("/bin/sh").args(["-c", &script]).within(PATIENCE).run();
        outcome.exits(0).says("it is 0");
    }
    bundle.run(["stop"]).exits(0);
    is_gone(&bundle);
}

#[test]
fn a_command_whose_output_is_read_by_nobody_holds_nothing_up() {
    let bundle = shop();
    bundle.run(["start"]).exits(0);
    // `sleep` reads nothing: the pipe fills (64 KiB), and `events -f` waits.
    let script = format!("{} events -f | sleep 1000", bundle.file.display());
    let stuck = bundle.sandbox.command("/bin/sh").args(["-c", &script]).start();
    for _ in 0..3 {
        for (web, db) in [(60, 60), (1, 1)] {
            bundle.run(["scale", &format!("web={web}"), &format!("db={db}")]).exits(0);
            bundle.run(["wait", "--ready"]).exits(0);
        }
    }
    // As many as it is told of, and many more than fit.
    let text = bundle.run(["events"]).exits(0).text();
    assert!(text.lines().count() == 256 && text.len() > 20_000, "{} bytes", text.len());
    bundle.run(["stop"]).exits(0);
    drop(stuck);
    eventually(PATIENCE, "nothing is left", || bundle.sandbox.processes().is_empty());
}

// --- Logs ---

#[test]
fn a_service_that_has_printed_nothing_is_no_mistake() {
    let bundle = App::service("exits-zero", &[], "restart = \"never\"").pack();
    bundle.run(["start"]).exits(0);
    eventually(PATIENCE, "it has ended", || bundle.sandbox.processes().is_empty());
    let outcome = bundle.run(["logs", "web"]).exits(0).says("web printed nothing");
    assert_eq!(outcome.text(), "", "{outcome}");
    bundle.run(["logs", "wbe"]).exits(2).says("did you mean `web`?");
}

#[test]
fn who_prints_for_the_first_time_joins_those_who_are_followed() {
    let bundle = shop();
    bundle.run(["start"]).exits(0);
    let mut all = bundle.command(["logs", "-f"]).start();
    let mut web = bundle.command(["logs", "-f", "-n", "0", "web"]).start();
    let mut tidy = bundle.command(["logs", "-f", "tidy"]).start();
    tidy.wait_say("tidy printed nothing");
    all.wait_print("web     | ");
    bundle.run(["scale", "web=2"]).exits(0);
    bundle.run(["run-task", "tidy"]).exits(0);
    all.wait_print("web.1   | ");
    all.wait_print("tidy    | ");
    web.wait_print("sleeps: ready");
    tidy.wait_print("sleeps: ready");
    for following in [all, web, tidy] {
        following.signal(nix::sys::signal::Signal::SIGTERM);
        following.ended().dies_by(15);
    }
    bundle.run(["stop"]).exits(0);
    is_gone(&bundle);
}

#[test]
fn a_count_of_lines_may_be_nothing_and_not_less() {
    let bundle = App::service("prints", &["20"], "restart = \"never\"").pack();
    bundle.run(["start"]).exits(0);
    eventually(PATIENCE, "it has ended", || bundle.sandbox.processes().is_empty());
    assert_eq!(bundle.run(["logs", "-n", "0", "web"]).exits(0).text(), "");
    assert_eq!(bundle.run(["logs", "-n", "2", "web"]).exits(0).text().lines().count(), 2);
    bundle.run(["logs", "-n", "-1"]).exits(2);
    bundle.run(["logs", "-n", "many"]).exits(2);
}

#[test]
fn logs_are_found_where_they_were_written_when_nothing_runs_any_more() {
    let more = "restart = \"never\"\n[logs]\nto = { files = \"${env.LOGS}/shop\" }";
    let bundle = App::service("prints", &["20"], more).pack();
    let place = bundle.sandbox.path().join("var");
    bundle.command(["start"]).env("LOGS", &place).run().exits(0);
    eventually(PATIENCE, "it has ended", || bundle.sandbox.processes().is_empty());
    assert!(place.join("shop/web/current").is_file());
    // The variable is not there any more, nor is the default place.
    bundle.run(["logs", "-n", "1", "web"]).exits(0).prints("line 20\n").prints_no("line 19\n");
    let other = bundle.sandbox.path().join("other");
    bundle.command(["start"]).env("LOGS", &other).run().exits(0);
    eventually(PATIENCE, "it has ended", || bundle.sandbox.processes().is_empty());
    fs::remove_dir_all(&place).unwrap();
    bundle.run(["logs", "-n", "1", "web"]).exits(0).prints("line 20\n");
}

#[test]
fn logs_are_found_below_a_state_folder_of_ones_own() {
    let bundle = App::service("prints", &["20"], "restart = \"never\"").pack();
    let state = bundle.sandbox.path().join("elsewhere");
    bundle.command(["start"]).env("KITBAG_STATE", &state).run().exits(0);
    eventually(PATIENCE, "it has ended", || bundle.sandbox.processes().is_empty());
    let logs = bundle.command(["logs", "-n", "1", "web"]).env("KITBAG_STATE", &state).run().exits(0);
    logs.prints("line 20\n");
    bundle.run(["logs"]).exits(9).says("app is not running");
}
