//! What people are told: of whom, of which run, by which name, and in which terminal.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use kitbag_tests::{App, Bundle, Outcome, eventually, mounts, tools};
use nix::sys::signal::Signal;
use serde_json::Value;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A bundle whose service `web` is this shell script, with more in its section and after it.
fn script(text: &str, more: &str) -> Bundle {
    App::new(&format!("[services.web]\nargv = [\"bin/web\"]\n{more}\n"))
        .file("bin/web", format!("#!/bin/sh\n{text}\n"))
        .executable("bin/web")
        .pack()
}

fn json(outcome: Outcome) -> Value {
    serde_json::from_str(&outcome.text()).unwrap_or_else(|why| panic!("{why}\n{outcome}"))
}

#[track_caller]
fn stops(bundle: &Bundle) {
    bundle.run(["stop"]).exits(0);
    assert_eq!(bundle.sandbox.processes(), [0; 0], "left running");
}

#[test]
fn the_first_instance_has_two_names_and_no_name_is_suggested_in_its_own_place() {
    let bundle = script("echo instance $KITBAG_INSTANCE; exec sleep 1000", "");
    bundle.run(["start"]).exits(0);
    bundle.run(["scale", "web=3"]).exits(0);
    bundle.run(["wait", "--ready", "web.0"]).exits(0);
    let pids = || {
        let status = json(bundle.run(["status", "--json"]).exits(0));
        let units = status["units"].as_array().unwrap().iter();
        units.map(|unit| unit["pid"].as_i64().unwrap()).collect::<Vec<_>>()
    };
    let before = pids();
    bundle.run(["restart", "web.0"]).exits(0).prints("restarted: web\n");
    let after = pids();
    assert_ne!(before[0], after[0]);
    assert_eq!(before[1..], after[1..], "the others were not meant");
    bundle.run(["logs", "web.0"]).exits(0).prints("instance 0").prints_no("instance 1");
    bundle.run(["logs", "web"]).exits(0).prints("instance 0").prints("instance 2");
    bundle.run(["exec", "web.0", "--", "sh", "-c", "echo $KITBAG_INSTANCE"]).exits(0).prints("0\n");
    bundle.run(["stop", "web.0"]).exits(0).prints("stopped: web\n");
    bundle.run(["start", "web.0"]).exits(0).prints("ready: web\n");
    let refused = bundle.run(["signal", "HUP", "web.4"]).exits(2);
    refused.says("there is no web.4: web has the instances web.0 to web.2").says("`scale web=5`");
    // Of what has no instance there is still an environment.
    bundle.run(["scale", "web=0"]).exits(0);
    for name in ["web", "web.0"] {
        bundle.run(["exec", name, "--", "sh", "-c", "echo $KITBAG_INSTANCE"]).exits(0).prints("0\n");
    }
    bundle.run(["exec", "web.1", "--", "true"]).exits(2).says("web was scaled to 0 instances");
    stops(&bundle);
}

#[test]
fn status_is_of_those_who_are_named() {
    let task = "[tasks.nightly]\nargv = [\"bin/web\"]\nschedule = \"0 3 * * *\"";
    let bad = format!(
        "[services.bad]\nargv = [\"bin/web\", \"bad\"]\nrestart = \"never\"\nready = {{ up-for = \"1s\" }}\n{task}"
    );
    let bundle = script("test -z \"$1\" || exit 3; exec sleep 1000", &bad);
    bundle.run(["start"]).exits(7);
    bundle.run(["status"]).exits(7).prints("bad ").prints("web ").prints("nightly ");
    bundle.run(["status", "web"]).exits(0).prints("web ").prints_no("bad ").prints_no("next:");
    bundle.run(["status", "bad", "web"]).exits(7).prints("web ").prints("bad ").prints_no("nightly");
    let one = json(bundle.run(["status", "--json", "web.0"]).exits(0));
    assert_eq!(one["units"].as_array().unwrap().len(), 1, "{one}");
    // The clock, and how far it is from UTC.
    bundle.run(["status", "nightly"]).exits(0).prints(", at 2").prints("T03:00:00Z\n");
    bundle.run(["status", "wbe"]).exits(2).says("did you mean `web`?");
    stops(&bundle);
}

/// The lines below `next:`, as they are typed, without what they are for.
fn advised(status: &Outcome) -> Vec<String> {
    let text = status.text();
    let lines = text.lines().skip_while(|line| *line != "next:").skip(1);
    lines.map(|line| line.trim().split("   ").next().unwrap().to_owned()).collect()
}

#[test]
fn what_is_advised_is_about_the_cause_and_mends_it_when_it_is_typed() {
    let text = "case $1 in
        again) exit 3 ;;
        migrate) test -e \"$STATE/mended\" || { echo no table; exit 4; } ;;
        *) exec sleep 1000 ;;
    esac";
    let more = "needs = [\"migrate\", \"zone\"]
        [services.zone]
        argv = [\"bin/web\"]
        needs = [\"migrate\"]
        [services.again]
        argv = [\"bin/web\", \"again\"]
        restart-delay = { first = \"1h\", longest = \"1h\" }
        [tasks.migrate]
        argv = [\"bin/web\", \"migrate\"]
        env = { STATE = \"${state}\" }";
    let bundle = script(text, more);
    bundle.run(["start"]).exits(7);
    let status = bundle.run(["status"]).exits(7);
    let file = bundle.file.display();
    let typed = ["logs -n 50 migrate", "run-task migrate --wait", "start zone web"];
    let called = format!("KITBAG_STATE={} {file}", bundle.sandbox.state().display());
    assert_eq!(advised(&status), typed.map(|line| format!("{called} {line}")), "{status}");
    // Of one that is named, its cause is not shown, and all the same the cause.
    let one = bundle.run(["status", "web"]).exits(7).prints_no("  migrate ");
    assert_eq!(advised(&one), advised(&status), "{one}");
    fs::write(bundle.sandbox.state().join("mended"), "").unwrap();
    let shell = |line: &String| bundle.sandbox.command("/bin/sh").args(["-c", line]).run().exits(0);
    let said: Vec<Outcome> = advised(&status).iter().map(shell).collect();
    assert!(said[0].text().contains("no table"), "{}", said[0]);
    let status = bundle.run(["status"]).exits(0).prints("web      ready").prints("zone     ready");
    // Now it is the one that is tried again.
    assert_eq!(advised(&status)[0], format!("{called} logs -n 50 again"), "{status}");
    stops(&bundle);
}

#[test]
fn what_is_said_last_is_of_this_run() {
    let text = "test -e \"$STATE/quiet\" || echo an earlier run; exit 3";
    let more = "restart = \"never\"\nready = { up-for = \"1s\" }\nenv = { STATE = \"${state}\" }";
    let bundle = script(text, more);
    bundle.run(["start"]).exits(7).says("web | ").says("an earlier run");
    stops(&bundle);
    fs::write(bundle.sandbox.state().join("quiet"), "").unwrap();
    let quiet = bundle.run(["start"]).exits(7);
    let quiet = quiet.says("web printed nothing in this run");
    assert!(!quiet.said().contains("an earlier run"), "{quiet}");
    let again = bundle.run(["wait", "--ready"]).exits(7);
    assert!(!again.said().contains("an earlier run"), "{again}");
    bundle.run(["status"]).exits(7).prints_no("last line");
    stops(&bundle);
}

#[test]
fn the_supervisors_own_log_has_its_beginning_and_its_end() {
    let bundle = script("exec sleep 1000", "");
    bundle.run(["start"]).exits(0);
    let state = bundle.sandbox.state();
    let begins =
        format!("! app 1.0.0 begins, process {}, state in {}\n", supervisor(&bundle), state.display());
    bundle.run(["logs", "_kitbag"]).exits(0).prints(&begins);
    let pid = supervisor(&bundle);
    stops(&bundle);
    let ends = format!("! app 1.0.0 ends, process {pid}, exit code 0\n");
    bundle.run(["logs", "-n", "1", "_kitbag"]).exits(0).prints(&ends);
    // One that ended is not missed, and one that was killed is.
    bundle.run(["start"]).exits(0);
    bundle.run(["logs", "_kitbag"]).exits(0).prints_no("has noted no end");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(supervisor(&bundle)), nix::sys::signal::SIGKILL)
        .unwrap();
    eventually(PATIENCE, "all is gone", || bundle.sandbox.processes().is_empty());
    bundle.run(["start"]).exits(0);
    bundle.run(["logs", "_kitbag"]).exits(0).prints("has noted no end: it was killed");
    stops(&bundle);
}

fn supervisor(bundle: &Bundle) -> i32 {
    let pid = json(bundle.run(["status", "--json"]).exits(0))["pid"].as_i64();
    pid.and_then(|pid| i32::try_from(pid).ok()).expect("it runs")
}

#[test]
fn a_state_folder_that_is_removed_while_it_is_used_is_made_again_for_its_user_alone_and_said_once() {
    let manifest = "[services.web]\nargv = [\"bin/sleeps\"]\n[tasks.often]\nargv = [\"bin/exits-zero\"]\n\
                    every = \"1s\"\n[logs]\nto = { files = \"${state}/log\" }\n";
    let bundle = App::new(manifest).helper("sleeps").helper("exits-zero").pack();
    let mut running = bundle.command([""; 0]).start();
    eventually(PATIENCE, "it runs", || bundle.run(["status"]).status.success());
    let state = bundle.sandbox.state();
    fs::remove_dir_all(&state).unwrap();
    let record = state.join(".kitbag/tasks/often");
    eventually(PATIENCE, "a run is remembered again", || record.exists());
    running.wait_say("is gone, removed while this runs");
    // Two more runs say nothing more.
    for _ in 0..2 {
        fs::remove_file(&record).unwrap();
        eventually(PATIENCE, "another run is remembered", || record.exists());
    }
    for folder in [state.clone(), state.join(".kitbag")] {
        let mode = fs::metadata(&folder).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "{}", folder.display());
    }
    running.signal(Signal::SIGTERM);
    let outcome = running.ended().exits(0);
    assert_eq!(outcome.said().matches("removed while this runs").count(), 1, "{outcome}");
}

#[test]
fn a_terminal_obeys_no_service() {
    if !tools(&["script"]) {
        return;
    }
    let text = r"printf '\033[2J\033]0;title\007\033[31mred\n'; exec sleep 1000";
    let bundle = script(text, "");
    bundle.run(["start"]).exits(0);
    eventually(PATIENCE, "it prints", || bundle.run(["logs", "web"]).text().contains("red"));
    // A pipe gets each byte.
    bundle.run(["logs", "web"]).exits(0).prints("\x1b[2J\x1b]0;title\x07\x1b[31mred\n");
    let line = format!("'{}' logs web", bundle.file.display());
    let seen = bundle.sandbox.command("script").args(["-qec", &line, "/dev/null"]).run().exits(0);
    seen.prints("^[[2J^[]0;title^G\x1b[31mred\x1b[0m\r\n").prints_no("\x1b[2J");
    stops(&bundle);
    // In the foreground, too.
    let line = format!("exec '{}'", bundle.file.display());
    let mut shown = bundle.sandbox.command("script").args(["-qec", &line, "/dev/null"]).start();
    shown.wait_print("^[[2J^[]0;title^G\x1b[31mred\x1b[0m");
    bundle.run(["stop"]).exits(0);
    shown.ended();
}

#[test]
fn logs_of_what_runs_in_the_foreground_are_said_to_be_from_before() {
    let bundle = script("echo hello; exec sleep 1000", "");
    let mut shown = bundle.command([""; 0]).start();
    shown.wait_print("hello");
    let says =
        format!("app runs in the foreground, as process {}, and what it prints goes there; ", shown.id());
    bundle.run(["logs"]).exits(0).says(&format!("{says}nothing is kept here\n"));
    bundle.run(["stop"]).exits(0);
    shown.ended();
    bundle.run(["start"]).exits(0);
    eventually(PATIENCE, "it prints", || bundle.run(["logs", "web"]).text().contains("hello"));
    let quiet = bundle.run(["logs", "web"]).exits(0);
    assert!(!quiet.said().contains("foreground"), "{quiet}");
    stops(&bundle);
    let mut shown = bundle.command([""; 0]).start();
    shown.wait_print("hello");
    let says =
        format!("as process {}, and what it prints goes there; the lines here are from before\n", shown.id());
    bundle.run(["logs", "web"]).exits(0).prints("hello").says(&says);
    let mut follows = bundle.command(["logs", "-f", "web"]).start();
    follows.wait_say(&says);
    drop(follows);
    bundle.run(["stop"]).exits(0);
    shown.ended();
}

#[test]
fn where_the_manifest_wants_logs_on_standard_output_they_are_looked_for_there() {
    let bundle = script("echo hello; exec sleep 1000", "[logs]\nto = \"stdout\"");
    bundle.run(["start"]).exits(0);
    let log = bundle.sandbox.state().join(".kitbag/log/supervisor.log");
    let says = format!("goes to its standard output, in the background to {}; ", log.display());
    bundle.run(["logs"]).exits(0).says(&says);
    eventually(PATIENCE, "it is there", || fs::read_to_string(&log).unwrap().contains("hello"));
    stops(&bundle);
}

#[test]
fn json_lines_stay_json_with_several_units() {
    let logs = "[services.other]\nargv = [\"bin/web\"]\n[logs]\nformat = \"json\"";
    let bundle = script("echo hello; exec sleep 1000", logs);
    bundle.run(["start"]).exits(0);
    let lines = || {
        let text = bundle.run(["logs"]).exits(0).text();
        let line =
            |line: &str| serde_json::from_str::<Value>(line).unwrap_or_else(|why| panic!("{why}: {line}"));
        text.lines().map(line).collect::<Vec<_>>()
    };
    eventually(PATIENCE, "both print", || lines().len() >= 3);
    // What a killed supervisor left.
    let log = bundle.sandbox.state().join(".kitbag/log/other/current");
    let mut whole = fs::read(&log).unwrap();
    whole.extend_from_slice(b"{\"time\":\"20\n");
    fs::write(&log, whole).unwrap();
    let lines = lines();
    let of = |name: &str| lines.iter().filter(|line| line["service"] == name).count();
    assert_eq!((of("web"), of("other")), (1, 2), "{lines:?}");
    stops(&bundle);
}

#[test]
fn a_follower_of_a_flood_has_each_line_or_is_told_what_is_missing() {
    const LINES: u64 = 200_000;
    for (keep, is_complete) in [(1000, true), (1, false)] {
        let logs = format!("[logs]\nmax-size = \"16K\"\nkeep = {keep}\n");
        let more = format!("restart = \"never\"\n[services.stays]\nargv = [\"bin/sleeps\"]\n{logs}");
        let bundle = App::service("prints", &[&LINES.to_string()], &more).helper("sleeps").pack();
        bundle.run(["start"]).exits(0);
        eventually(PATIENCE, "it has ended", || bundle.run(["status", "web"]).text().contains(" done "));
        // The last line of the first run, then all of the second one.
        let mut follower = bundle.command(["logs", "-n", "1", "-f", "web"]).start();
        let end = format!("line {LINES}\n");
        follower.wait_print(&end);
        bundle.run(["start", "web"]).exits(0);
        follower.wait_until("the second end", |follower| follower.text().matches(&end).count() == 2);
        let text = follower.text();
        let (mut last, mut told) = (LINES - 1, false);
        for line in text.lines() {
            if line.contains("went here before anybody could read them") {
                told = true;
            } else if let Some(number) = line.rsplit_once("line ").and_then(|(_, it)| it.parse::<u64>().ok())
            {
                assert!(told || number == last % LINES + 1, "after {last}: {line}");
                (last, told) = (number, false);
            }
        }
        assert!(!is_complete || !text.contains("went here"), "nothing was removed");
        drop(follower);
        bundle.run(["stop"]).exits(0);
        // A compressor is not waited for.
        eventually(PATIENCE, "nothing is left", || bundle.sandbox.processes().is_empty());
    }
}

#[test]
fn logs_of_more_units_than_files_may_be_open_are_shown() {
    let bundle = script("exec sleep 1000", "");
    bundle.run(["start"]).exits(0);
    for number in 0..100 {
        let folder = bundle.sandbox.state().join(format!(".kitbag/log/unit{number}"));
        fs::create_dir(&folder).unwrap();
        let line = format!("2026-11-21T11:53:35.655765Z | line of {number}\n");
        fs::write(folder.join("current"), line).unwrap();
    }
    let limited = |limit: &str, args: &[&str]| {
        let script = format!("ulimit {limit} 64; exec \"$0\" \"$@\"");
        bundle.command(args).behind("/bin/sh", ["-c", &script])
    };
    // Whoever may not have more at all; and who follows them all.
    limited("-n", &["logs", "-n", "1000"]).run().exits(0).prints("| line of 0\n").prints("| line of 99\n");
    let mut follows = limited("-S -n", &["logs", "-f", "-n", "1000"]).start();
    follows.wait_print("| line of 99\n");
    bundle.run(["stop"]).exits(0);
    follows.wait_print("ends, process ");
    follows.signal(Signal::SIGTERM);
    follows.ended();
    assert_eq!(bundle.sandbox.processes(), [0; 0], "left running");
}

#[test]
fn who_is_refused_something_by_its_sandbox_is_told_so() {
    let more = "restart = \"never\"\n[services.web.sandbox]\nfiles = true";
    let bundle = script("exec sleep 1000", more);
    let started = bundle.run(["start"]);
    if started.status.success() {
        return kitbag_tests::unmet("Landlock limits no files here");
    }
    let why = "Permission denied; [services.web.sandbox] limits its files: its interpreter /bin/sh, and what that needs, \
               has to be in `read`";
    started.says(why);
    let status = bundle.run(["status"]).exits(7);
    status.prints(why).prints("exec web -- COMMAND").prints("not limited by [services.web.sandbox]");
    stops(&bundle);
}

#[test]
fn memory_is_not_that_of_other_processes_with_the_same_numbers() {
    if !mounts() || !tools(&["unshare"]) {
        return;
    }
    let bundle = script("exec sleep 1000", "");
    // The first process of a PID namespace; /proc is ours.
    let line = format!("exec '{}'", bundle.file.display());
    let inside = ["--pid", "--fork", "--kill-child", "/bin/sh", "-c", &line];
    let running = bundle.sandbox.command("unshare").args(inside).start();
    eventually(PATIENCE, "it is ready", || bundle.run(["wait", "--ready"]).status.success());
    let told = json(bundle.run(["status", "--json"]).exits(0));
    let pid = told["units"][0]["pid"].as_i64().unwrap();
    assert!(pid < 100 && told["pid"].as_i64().unwrap() < 100, "numbers of its own: {told}");
    let status = bundle.run(["status"]).exits(0).text();
    let row = status.lines().find(|line| line.starts_with("  web ")).unwrap();
    assert!(row.ends_with(" -"), "{status}");
    bundle.run(["stop"]).exits(0);
    running.ended();
}
