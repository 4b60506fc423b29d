//! A bundle in the background: started, looked at, told what to do, stopped; and each command's exit code.

use std::fs;
use std::time::Duration;

use kitbag_tests::{App, Bundle, Cmd, eventually};
use serde_json::Value;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A bundle of a service that sleeps.
fn sleeper() -> Bundle {
    App::service("sleeps", &[], "env = { GREETING = \"${name}\" }\nstop-timeout = \"5s\"").pack()
}

#[track_caller]
fn status(bundle: &Bundle) -> Value {
    let outcome = bundle.run(["status", "--json"]).exits(0);
    serde_json::from_str(&outcome.text()).unwrap_or_else(|why| panic!("{why}\n{outcome}"))
}

#[track_caller]
fn pid(bundle: &Bundle, unit: usize) -> i64 {
    status(bundle)["units"][unit]["pid"].as_i64().expect("it runs")
}

#[track_caller]
fn is_gone(bundle: &Bundle) {
    assert_eq!(bundle.sandbox.processes(), [0; 0], "left running");
}

#[test]
fn start_returns_when_all_is_ready_and_stop_when_all_is_gone() {
    let bundle = sleeper();
    bundle.run(["status"]).exits(9).says("is not running").says("/bundle start` starts it");
    bundle.run(["start"]).exits(0).prints("app is ready after ");
    let told = status(&bundle);
    assert_eq!((&told["bundle"], &told["ready"]), (&"app".into(), &true.into()), "{told}");
    bundle.run(["status"]).exits(0).prints("web   ready").prints("app 1.0.0  running, process ");
    bundle.run(["start"]).exits(6).says("app is running already, as process ");
    bundle.run(["start", "--oknodo"]).exits(0).prints("app is running already");
    bundle.run([""; 0]).exits(6).says("it is running already");
    bundle.run(["stop"]).exits(0).prints("app has stopped");
    is_gone(&bundle);
    bundle.run(["stop"]).exits(9).says("app is not running");
    bundle.run(["stop", "--oknodo"]).exits(0).prints("app is not running");
    assert!(!bundle.sandbox.state().join(".kitbag/control").exists(), "the socket is left behind");
}

#[test]
fn the_process_in_the_background_holds_nothing_of_its_starter() {
    let bundle = sleeper();
    let lock = bundle.sandbox.path().join("lock");
    let script = format!("exec 9>{}; exec {} start", lock.display(), bundle.file.display());
    bundle.sandbox.command("/bin/sh").args(["-c", &script]).run().exits(0);
    let supervisor = status(&bundle)["pid"].as_i64().unwrap();
    let links: Vec<String> = fs::read_dir(format!("/proc/{supervisor}/fd"))
        .unwrap()
        .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
        .map(|path| path.display().to_string())
        .collect();
    assert!(!links.iter().any(|link| *link == lock.display().to_string()), "{links:?}");
    assert!(
        links.iter().filter(|link| link.ends_with("/.kitbag/log/supervisor.log")).count() == 2,
        "{links:?}"
    );
    assert_eq!(fs::read_link(format!("/proc/{supervisor}/cwd")).unwrap().to_str(), Some("/"));
    let stat = fs::read_to_string(format!("/proc/{supervisor}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    assert_ne!(fields[3], supervisor.to_string(), "it leads its session, and could get a terminal");
    assert_eq!(fields[4], "0", "it has a terminal");
    bundle.run(["stop"]).exits(0);
    is_gone(&bundle);
}

/// What its caller has closed of the standard files.
const NO_FILES: [&str; 3] = ["-c", "exec \"$@\" <&- >&- 2>&-", "sh"];

/// The numbers 0 to 2 of the process that a bundle's lock file names are `/dev/null` or `others`, and the file holds
/// nothing but that.
#[track_caller]
fn keeps_its_numbers(bundle: &Bundle, others: &str) {
    let lock = bundle.sandbox.state().join(".kitbag.lock");
    let pid = status(bundle)["pid"].to_string();
    assert_eq!(fs::read_to_string(lock).unwrap(), format!("{pid}\n"));
    for (number, expected) in ["/dev/null", others, others].iter().enumerate() {
        let found = fs::read_link(format!("/proc/{pid}/fd/{number}")).unwrap();
        assert!(found.to_str().unwrap().ends_with(expected), "{number} is {}", found.display());
    }
}

#[test]
fn what_its_caller_has_closed_becomes_no_other_file() {
    let bundle = sleeper();
    bundle.command(["start"]).behind("sh", NO_FILES).run().exits(0);
    keeps_its_numbers(&bundle, "/.kitbag/log/supervisor.log");
    let seen = bundle.sandbox.path().join("seen");
    let file = |number: u8| format!("\"$(readlink /proc/$$/fd/{number})\"");
    let list =
        format!("set -- {} {} {}; printf '%s\\n' \"$@\" > {}", file(0), file(1), file(2), seen.display());
    let list = ["exec", "web", "--", "/bin/sh", "-c", &list];
    bundle.command(list).behind("sh", NO_FILES).run().exits(0);
    assert_eq!(fs::read_to_string(seen).unwrap(), "/dev/null\n".repeat(3));
    bundle.command(["stop"]).behind("sh", NO_FILES).run().exits(0);
    is_gone(&bundle);

    // In front it says there what it has to say.
    let running = bundle.command([""; 0]).behind("sh", NO_FILES).start();
    eventually(PATIENCE, "it runs", || bundle.run(["status"]).status.success());
    keeps_its_numbers(&bundle, "/dev/null");
    bundle.run(["stop"]).exits(0);
    running.ended().exits(0);
    is_gone(&bundle);
}

#[test]
fn a_start_that_fails_says_so_where_it_was_typed() {
    let more = "restart = \"never\"\nready = { up-for = \"1s\" }";
    let bundle = App::service("crashes-at-once", &[], more).pack();
    let outcome = bundle.run(["start"]).exits(7).says("web is not ready (failed): exited with status 3");
    outcome.says("app goes on running").says(" stop` ends it");
    // It is there to be looked at, and to be told to try again.
    bundle
        .run(["status"])
        .exits(7)
        .prints("web   failed")
        .prints("last end   exited with status 3")
        .prints("restart web");
    bundle.run(["start", "web"]).exits(7).says("web is not ready (failed)");
    bundle.run(["wait", "--ready"]).exits(7);
    bundle.run(["stop"]).exits(0);
    is_gone(&bundle);
    let well = App::service("exits-zero", &[], "restart = \"never\"").pack();
    // It may be over before anybody has looked.
    well.run(["start"]).exits(0);
    eventually(PATIENCE, "all of it ends by itself", || well.sandbox.processes().is_empty());
    let bundle = sleeper();
    fs::write(bundle.sandbox.state(), "a file").unwrap();
    bundle.run(["start"]).exits(5).says("no folder can be used for state");
}

#[test]
fn services_are_told_what_to_do_by_name() {
    let bundle = sleeper();
    bundle.run(["start"]).exits(0);
    let first = pid(&bundle, 0);
    bundle.run(["restart", "web"]).exits(0).prints("restarted: web");
    let second = pid(&bundle, 0);
    assert_ne!(first, second);
    bundle.run(["signal", "KILL", "web"]).exits(0);
    eventually(PATIENCE, "it is back", || pid_now(&bundle).is_some_and(|pid| pid != second));
    bundle.run(["wait", "--ready", "--timeout", "20s"]).exits(0).is_quiet();
    let told = status(&bundle);
    assert_eq!(told["units"][0]["last_end"]["how"], "was ended by SIGKILL", "{told}");
    bundle.run(["events"]).exits(0).prints("\"event\":\"ready\"").prints("was ended by SIGKILL");
    bundle.run(["scale", "web=3"]).exits(0);
    bundle.run(["wait", "--ready"]).exits(0);
    bundle.run(["status"]).exits(0).prints("web.2");
    bundle.run(["stop", "web.1"]).exits(0).prints("stopped: web.1");
    bundle.run(["start", "web.1"]).exits(0).prints("ready: web.1");
    bundle.run(["scale", "web=1"]).exits(0);
    bundle
        .run(["stop", "wbe"])
        .exits(2)
        .says("there is no service or task `wbe`")
        .says("did you mean `web`?");
    bundle.run(["signal", "NOPE", "web"]).exits(2).says("there is no signal `NOPE`");
    bundle.run(["scale", "web"]).exits(2).says("scale web=3");
    bundle.run(["run-task"]).exits(2).says("run-task NAME");
    bundle.run(["wait"]).exits(2).says("wait --ready");
    bundle.run(["statsu"]).exits(2).says("did you mean `status`?");
    bundle.run(["stop"]).exits(0);
    is_gone(&bundle);
}

fn pid_now(bundle: &Bundle) -> Option<i64> {
    status(bundle)["units"][0]["pid"].as_i64()
}

#[test]
fn exec_runs_beside_a_service_with_its_environment_and_folder() {
    let bundle = sleeper();
    bundle.run(["exec", "web", "--", "true"]).exits(9);
    bundle.run(["start"]).exits(0);
    let tree = bundle.sandbox.tree();
    let script = "echo $GREETING $1; pwd; cat; exit 33";
    let outcome =
        bundle.command(["exec", "web", "--", "sh", "-c", script, "sh", "--help"]).stdin("typed").run();
    outcome.exits(33).prints(&format!("app --help\n{}\ntyped", tree.display()));
    bundle.run(["exec", "web", "/bin/false"]).exits(1).is_quiet();
    bundle.run(["exec", "web", "--", "no-such-program"]).exits(125).says("cannot start no-such-program");
    bundle.run(["exec", "wbe", "true"]).exits(2).says("did you mean `web`?");
    bundle.run(["exec", "web"]).exits(2).says("exec web -- sh");
    bundle.run(["stop"]).exits(0);
    is_gone(&bundle);
}

#[test]
fn events_are_followed_until_their_reader_goes() {
    let bundle = sleeper();
    bundle.run(["start"]).exits(0);
    let mut events = bundle.command(["events", "-f"]).start();
    events.wait_print("\"event\":\"ready\"");
    bundle.run(["restart"]).exits(0);
    events.wait_print("\"event\":\"stopping\"");
    bundle.run(["stop"]).exits(0);
    // The stream ends with the bundle.
    events.ended().exits(0);
    is_gone(&bundle);
}

#[test]
fn what_is_printed_in_the_background_is_kept_and_shown() {
    let bundle = App::service("prints", &["1000"], "restart = \"never\"").pack();
    bundle.run(["start"]).exits(0);
    // What is kept is there afterwards.
    eventually(PATIENCE, "it has ended", || bundle.sandbox.processes().is_empty());
    let lines = bundle.run(["logs", "-n", "3", "web"]).exits(0);
    lines.prints("line 998\n").prints("line 1000\n").prints_no("line 997\n");
    bundle.run(["logs", "wbe"]).exits(2).says("did you mean `web`?");
    // What the supervisor said of it stands between what others printed.
    bundle.run(["logs"]).exits(0).prints("web     | ").prints("service web exited with status 0");
}

#[test]
fn a_stop_of_what_has_ended_returns_when_what_needs_it_has() {
    let more = "stop-timeout = \"1s\"\nneeds = [\"db\"]\n[services.db]\nargv = [\"bin/crashes-after\", \"300\"]\nrestart = \"never\"";
    let bundle = App::service("ignores-term", &[], more).helper("crashes-after").pack();
    let _ = bundle.run(["start"]);
    let states = || {
        let status: Value = serde_json::from_str(&bundle.run(["status", "--json"]).text()).expect("JSON");
        let units = status["units"].as_array().expect("units").clone();
        units.iter().map(|unit| unit["state"].as_str().expect("a state").to_owned()).collect::<Vec<_>>()
    };
    eventually(PATIENCE, "db has crashed beside web", || states() == ["failed", "ready"]);
    bundle.run(["stop", "db"]).exits(0);
    assert_eq!(states()[1], "stopped");
    bundle.run(["stop"]).exits(0);
    is_gone(&bundle);
}

#[test]
fn what_is_printed_to_nobodys_standard_output_is_kept_as_long_as_logs_are() {
    // 6 MB, which is more than what the supervisor itself may say.
    let more = "restart = \"never\"\n[logs]\nto = \"stdout\"";
    let bundle = App::service("prints", &["500000"], more).pack();
    bundle.run(["start"]).exits(0);
    eventually(PATIENCE, "it has ended", || bundle.sandbox.processes().is_empty());
    let log = bundle.sandbox.state().join(".kitbag/log/supervisor.log");
    let log = fs::read_to_string(log).unwrap();
    let numbers = log.lines().filter_map(|line| line.split("line ").nth(1)?.parse::<u64>().ok());
    assert!(numbers.eq(1..=500_000), "each line is there");
}

#[test]
fn a_bundle_in_the_foreground_is_asked_the_same_way() {
    let bundle = sleeper();
    let running = bundle.command([""; 0]).start();
    eventually(PATIENCE, "it answers", || bundle.run(["wait", "--ready"]).status.success());
    bundle.run(["stop"]).exits(0);
    running.ended().exits(0);
    is_gone(&bundle);
}

#[test]
fn a_supervisor_that_does_not_answer_is_named_and_a_killed_one_is_not_running() {
    let bundle = sleeper();
    bundle.run(["start"]).exits(0);
    let supervisor = status(&bundle)["pid"].as_i64().unwrap().to_string();
    Cmd::new("/bin/kill").args(["-KILL", &supervisor]).run().exits(0);
    eventually(PATIENCE, "its services have ended", || bundle.sandbox.processes().is_empty());
    bundle.run(["status"]).exits(9);
    // The socket that it left is no obstacle.
    bundle.run(["start"]).exits(0);
    bundle.run(["stop"]).exits(0);
    is_gone(&bundle);
}

#[test]
fn a_tool_has_none_of_these_commands() {
    let tool = App::tool().pack();
    tool.run(["--kitbag", "status"]).exits(2).says("is for bundles of services");
    let help = tool.run(["--kitbag", "help"]).exits(0);
    help.prints_no("run-task");
    let help = sleeper().run(["help"]).exits(0);
    help.prints("run-task NAME").prints("9 not running");
}
