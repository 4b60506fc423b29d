//! `exec`: a command is what the service's own processes are, and a console in the terminal that it was typed in.

use std::fs;
use std::os::unix::fs::MetadataExt;

use kitbag_tests::{App, Bundle, Cmd, Running, is_root, root, tools};
use serde_json::Value;

/// A service that sleeps, with more in its section.
fn sleeper(more: &str) -> Bundle {
    let bundle = App::service("sleeps", &[], &format!("stop-timeout = \"5s\"\n{more}")).pack();
    bundle.run(["start"]).exits(0);
    bundle
}

fn service_pid(bundle: &Bundle) -> i64 {
    let outcome = bundle.run(["status", "--json"]).exits(0);
    let status: Value = serde_json::from_str(&outcome.text()).unwrap();
    status["units"][0]["pid"].as_i64().expect("it runs")
}

/// A file in /proc of the service's process.
fn of_service(bundle: &Bundle, file: &str) -> String {
    fs::read_to_string(format!("/proc/{}/{file}", service_pid(bundle))).unwrap()
}

#[track_caller]
fn in_exec(bundle: &Bundle, script: &str) -> String {
    let outcome = bundle.run(["exec", "web", "--", "sh", "-c", script]).exits(0);
    assert_eq!(outcome.said(), "", "{outcome}");
    outcome.text()
}

/// The nineteenth field of proc_pid_stat(5).
fn nice(stat: &str) -> &str {
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    fields.split(' ').nth(19 - 3).unwrap()
}

/// All but the limit that marks the processes of a service's run, which a console is none of.
fn limits(text: &str) -> String {
    text.lines().filter(|line| !line.starts_with("Max file locks")).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_command_has_the_services_limits_priority_and_oom_score() {
    let bundle = sleeper(
        "nice = 5\noom-score = 500\numask = \"0027\"\nlimits = { nofile = 200, core = 0, stack = \"4M\" }",
    );
    assert_eq!(limits(&in_exec(&bundle, "cat /proc/self/limits")), limits(&of_service(&bundle, "limits")));
    assert_eq!(in_exec(&bundle, "cat /proc/self/oom_score_adj"), of_service(&bundle, "oom_score_adj"));
    assert_eq!(in_exec(&bundle, "ulimit -n; umask; nice"), "200\n0027\n5\n");
    assert_eq!(nice(&in_exec(&bundle, "cat /proc/self/stat")), nice(&of_service(&bundle, "stat")));
    assert_eq!(of_service(&bundle, "oom_score_adj"), "500\n", "or the comparison means nothing");
    bundle.run(["stop"]).exits(0);
}

#[test]
fn limits_that_the_manifest_does_not_name_are_those_that_the_service_has() {
    let bundle = App::service("sleeps", &[], "").pack();
    // The supervisor was started with others than whoever comes later, and raises one of its own.
    let script = format!("ulimit -Sn 300; ulimit -Sc 0; exec {} start", bundle.file.display());
    bundle.sandbox.command("/bin/sh").args(["-c", &script]).run().exits(0);
    assert_eq!(limits(&in_exec(&bundle, "cat /proc/self/limits")), limits(&of_service(&bundle, "limits")));
    assert_eq!(in_exec(&bundle, "ulimit -Sn; ulimit -Sc"), "300\n0\n");
    bundle.run(["stop"]).exits(0);
}

/// The command behind one that has taken away what it may not do, for root.
fn without_rights(command: Cmd) -> Cmd {
    if is_root() {
        let away = "-sys_resource,-sys_nice";
        command.behind("setpriv", [format!("--bounding-set={away}"), format!("--inh-caps={away}")])
    } else {
        command
    }
}

#[test]
fn what_the_caller_may_not_give_it_is_said_and_the_command_runs() {
    if !tools(&["setpriv"]) {
        return;
    }
    let bundle = sleeper("limits = { nofile = 400 }");
    let script = "ulimit -n 100; exec nice -n 7 \"$0\" exec web -- sh -c 'ulimit -n; nice; exit 3'";
    let file = bundle.file.to_str().unwrap();
    let command = bundle.sandbox.command("/bin/sh").args(["-c", script, file]);
    let outcome = without_rights(command).run().exits(3).prints("100\n7\n");
    let outcome = outcome.says("the command runs without the service's limit nofile = 400 (hard 400): ");
    let outcome = outcome.says("it has 100 (100)");
    outcome.says("the command runs without the service's nice 0: ").says("it has 7");
    bundle.run(["stop"]).exits(0);
}

// --- Whose it is ---

const NOBODY: u32 = 65534;

/// The sandbox's folders are this user's.
fn give_to_nobody(bundle: &Bundle) {
    for folder in [bundle.sandbox.path().to_owned(), bundle.sandbox.home()] {
        std::os::unix::fs::chown(folder, Some(NOBODY), Some(NOBODY)).unwrap();
    }
}

/// The command as another user, in these groups.
fn as_nobody(command: Cmd) -> Cmd {
    command.behind("setpriv", ["--reuid=65534", "--regid=65534", "--groups=54321"])
}

#[test]
fn root_beside_another_users_bundle_is_that_user() {
    if !root("another user") || !tools(&["setpriv", "id"]) {
        return;
    }
    let bundle = App::service("sleeps", &[], "stop-timeout = \"5s\"\noom-score = 500").pack();
    give_to_nobody(&bundle);
    as_nobody(bundle.command(["start"])).run().exits(0);
    assert_eq!(in_exec(&bundle, "cat /proc/self/oom_score_adj"), "500\n", "which he may set himself");
    let made = bundle.sandbox.home().join("made");
    let script = format!("id -u; id -g; id -G; touch {}", made.display());
    assert_eq!(in_exec(&bundle, &script), "65534\n65534\n65534 54321\n");
    let found = fs::metadata(made).unwrap();
    assert_eq!((found.uid(), found.gid()), (NOBODY, NOBODY));
    // Whoever started it needs no right to become himself.
    let own = as_nobody(bundle.command(["exec", "web", "--", "id", "-G"])).run().exits(0);
    assert_eq!(own.text(), "65534 54321\n");
    as_nobody(bundle.command(["stop"])).run().exits(0);
}

#[test]
fn a_service_of_roots_user_and_another_group_has_that_group_in_exec_too() {
    if !root("another group") || !tools(&["id"]) {
        return;
    }
    let bundle = sleeper("group = \"4321\"\ngroups = [\"55\"]");
    assert_eq!(in_exec(&bundle, "id -u; id -g; id -G"), "0\n4321\n4321 55\n");
    bundle.run(["stop"]).exits(0);
}

/// Answers each request as a supervisor would that lies about who its services are.
const LIAR: &str = r#"
import json, os, socket, sys
folder, cgroup = sys.argv[1:]
listener = socket.socket(socket.AF_UNIX)
listener.bind(os.path.join(folder, "control"))
listener.listen()
print("listens", flush=True)
root = {"uid": 0, "gid": 0, "groups": [0]}
limits = {"nofile": [99, 999999], "core": [0, 0]}
body = json.dumps({"environment": {"PATH": "/usr/bin:/bin"}, "identity": root, "cwd": "/", "limits": limits,
    "nice": -11, "oom_score": -999, "cgroup": cgroup})
answer = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}"
while True:
    client, _ = listener.accept()
    client.recv(4096)
    client.sendall(answer.encode())
    client.close()
"#;

#[test]
fn a_supervisor_that_lies_gets_nothing_of_roots_rights() {
    if !root("another user") || !tools(&["setpriv", "id", "python3"]) {
        return;
    }
    let bundle = App::service("sleeps", &[], "").pack();
    give_to_nobody(&bundle);
    as_nobody(bundle.command(["start"])).run().exits(0);
    as_nobody(bundle.command(["stop"])).run().exits(0);
    let precious = bundle.sandbox.path().join("cgroup.procs");
    fs::write(&precious, "precious").unwrap();
    std::os::unix::fs::chown(&precious, Some(NOBODY), None).unwrap();
    let (kitbag, cgroup) = (bundle.sandbox.state().join(".kitbag"), bundle.sandbox.path());
    let _ = fs::remove_file(kitbag.join("control"));
    let liar = bundle.sandbox.command("python3").args(["-c", LIAR]).arg(&kitbag).arg(cgroup);
    let mut liar = as_nobody(liar).start();
    liar.wait_print("listens");
    let script = "ulimit -n 5000; exec \"$0\" exec web -- sh -c 'id -u; nice; cat /proc/self/oom_score_adj; ulimit -Hn; ulimit -c'";
    let file = bundle.file.to_str().unwrap();
    let root = bundle.sandbox.command("/bin/sh").args(["-c", script, file]);
    let own_score = fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    let outcome = root.run().exits(0);
    let outcome = outcome.says("the command runs without the service's cgroup").says("it is no cgroup");
    let outcome =
        outcome.says("without the service's nice -11: ").says("without the service's oom score -999: ");
    let outcome = outcome.says("limit nofile = 99 (hard 999999): ").says("it has 99 (5000)");
    assert_eq!(outcome.text(), format!("65534\n0\n{own_score}5000\n0\n"));
    assert_eq!(fs::read_to_string(precious).unwrap(), "precious");
}

// --- Terminals ---

/// A shell in a terminal, typed at through a pipe.
struct Console(Running);

impl Console {
    fn of(bundle: &Bundle, command: &str) -> Self {
        let line = format!("exec {} exec web -- {command}", bundle.file.display());
        let script = bundle.sandbox.command("script").args(["-qec", &line, "/dev/null"]).env("TERM", "dumb");
        Self(script.start())
    }

    fn types(&mut self, text: &str) {
        self.0.feed(text.as_bytes());
    }

    /// Types a line, and waits for what it makes the shell print.
    #[track_caller]
    fn answers(&mut self, line: &str, answer: &str) {
        self.types(&format!("{line}\n"));
        self.0.wait_print(answer);
    }
}

#[track_caller]
fn has_job_control(bundle: &Bundle) {
    let mut console = Console::of(bundle, "sh -i");
    console.answers("echo sum $((40+2))", "sum 42");
    // It is in front when it says so.
    console.answers("sh -c 'echo is $((1+1)) up; exec sleep 1000'", "is 2 up");
    console.types("\x1a");
    console.0.wait_print("Stopped");
    console.answers("echo back $((1+2))", "back 3");
    console.answers("kill -CONT %1; sh -c 'echo is $((2+2)) up'; fg", "is 4 up");
    console.0.wait_until("the job is in front", |running| running.text().matches("sleep 1000").count() >= 3);
    console.types("\x03");
    console.answers("echo status $?", "status 130");
    console.types("exit 7\n");
    let outcome = console.0.ended().exits(7);
    outcome.prints_no("job control").prints_no("cannot access");
}

#[test]
fn a_shell_has_job_control() {
    if !tools(&["script"]) {
        return;
    }
    let bundle = sleeper("");
    has_job_control(&bundle);
    bundle.run(["stop"]).exits(0);
    assert_eq!(bundle.sandbox.processes(), [0; 0], "left running");
}

#[test]
fn a_shell_of_another_user_has_job_control() {
    if !root("another user") || !tools(&["script"]) {
        return;
    }
    let bundle = sleeper("user = \"65534\"\ngroup = \"65534\"");
    let mut console = Console::of(&bundle, "sh -i");
    console.answers("id -u", "65534");
    console.types("exit\n");
    console.0.ended().exits(0);
    has_job_control(&bundle);
    bundle.run(["stop"]).exits(0);
}

#[test]
fn an_interpreter_is_interactive() {
    if !tools(&["script", "python3"]) {
        return;
    }
    let bundle = sleeper("");
    let mut console = Console::of(&bundle, "env TERM=dumb PYTHON_BASIC_REPL=1 python3 -q");
    console
        .answers("import os; print('tty', os.isatty(0), os.tcgetpgrp(0) == os.getpgrp())", "tty True True");
    console.types("import time; print('sleeps', 6 * 7); time.sleep(1000)\n");
    console.0.wait_print("sleeps 42");
    console.types("\x03");
    console.0.wait_print("KeyboardInterrupt");
    console.types("raise SystemExit(5)\n");
    console.0.ended().exits(5);
    bundle.run(["stop"]).exits(0);
}
