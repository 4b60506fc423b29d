//! `kitbag run --hermetic`: the app reaches what is its own, what else it reached for is listed so that it can be
//! pasted, and everything else is as without it.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use kitbag_tests::{App, Cmd, Folder, Outcome, Sandbox, eventually, is_root, root, tools, unmet, workspace};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// What the report says when there is nothing to say.
const CLEAN: &str = "reached nothing outside of the bundle";

/// Like `nobody`, who has no rights.
const NOBODY: u32 = 65534;

/// One of `tests/hermetic/`, built with these flags.
fn build(source: &str, folder: &Folder, name: &str, flags: &[&str]) -> PathBuf {
    let file = folder.join(name);
    let source = workspace().join("tests/hermetic").join(source);
    let built =
        Command::new("gcc").args(["-O1", "-pthread", "-o"]).arg(&file).arg(source).args(flags).output();
    let built = built.expect("gcc");
    assert!(built.status.success(), "{built:?}");
    file
}

/// The static one.
fn reach() -> &'static Path {
    static REACH: OnceLock<(Folder, PathBuf)> = OnceLock::new();
    let (_, file) = REACH.get_or_init(|| {
        let folder = Folder::new();
        let file = build("reach.c", &folder, "reach", &["-static"]);
        (folder, file)
    });
    file
}

/// An app, and the places where it is run.
struct Run {
    app: App,
    sandbox: Sandbox,
    /// What the app does not own, with a file `data`.
    outside: Folder,
}

impl Run {
    /// A tool that works in its own tree; `top` stands above the tables of its manifest.
    fn tool(top: &str) -> Self {
        let text = format!("{top}\n[command]\nargv = [\"bin/reach\"]\ncwd = \"${{tree}}\"\n");
        Self::of(App::new(&text))
    }

    fn of(app: App) -> Self {
        let outside = Folder::new();
        fs::write(outside.join("data"), "data\n").unwrap();
        Self { app: app.program("bin/reach", reach()), sandbox: Sandbox::new(), outside }
    }

    /// The app, with these arguments.
    fn command(&self, args: &[&str]) -> Cmd {
        let run = self.sandbox.command(kitbag_tests::kitbag()).args(["run", "--hermetic"]);
        run.arg(self.app.dir()).arg("--").args(args)
    }

    #[track_caller]
    fn run(&self, args: &[&str]) -> Outcome {
        self.command(args).run()
    }

    /// A path outside, as text.
    fn outside(&self, name: &str) -> String {
        self.outside.join(name).display().to_string()
    }
}

/// True if this machine can do what is tested; else the test is unmet and has to return.
fn possible() -> bool {
    static WHY_NOT: OnceLock<Option<String>> = OnceLock::new();
    if !tools(&["gcc"]) {
        return false;
    }
    let why_not = WHY_NOT.get_or_init(|| {
        let said = Run::tool("").run(&[]).said();
        ["cannot trace", "nothing is refused"].iter().find(|text| said.contains(**text)).map(|_| said)
    });
    if let Some(why) = why_not {
        unmet(&format!("needs Landlock and ptrace: {why}"));
    }
    why_not.is_none()
}

/// The list of a report under a title, or nothing.
fn group(outcome: &Outcome, title: &str) -> String {
    let said = outcome.said();
    let rest = said.split(&format!("\n# {title}")).nth(1).unwrap_or_default();
    // The next title: a comment with a colon at its end.
    let lines = rest.lines().take_while(|line| !(line.starts_with("# ") && line.ends_with(':')));
    lines.map(|line| format!("{line}\n")).collect()
}

/// A block of kitbag.toml that takes this path along.
fn include(path: &str) -> String {
    format!("[[include]]\nfrom = \"{path}\"\nto = \"{}\"\n", path.trim_start_matches('/'))
}

#[test]
fn what_is_missing_is_refused_reported_pasted_and_then_nothing_is_missing() {
    if !possible() {
        return;
    }
    let run = Run::tool("");
    let data = run.outside("data");
    // First its own, relative to the tree, then the host's.
    let own = data.trim_start_matches('/');
    let outcome = run.run(&["read", own, "read", &data]).succeeds();
    let outcome = outcome
        .prints(&format!("read {own}: No such file"))
        .prints(&format!("read {data}: Permission denied"));
    let outcome = outcome.says("reached for 1 path outside of the bundle, 1 refused");
    assert!(group(&outcome, "Read:").contains(&include(&data)), "{outcome}");
    assert!(group(&outcome, "Read:").contains("bin/reach, refused"), "{outcome}");

    // All that was said is pasted, comments too.
    let manifest = run.app.dir().join("kitbag.toml");
    fs::write(&manifest, fs::read_to_string(&manifest).unwrap() + &outcome.said()).unwrap();
    let outcome = run.run(&["read", own]).succeeds().prints(&format!("read {own}: ok")).says(CLEAN);
    assert!(!outcome.said().contains("[["), "{outcome}");
}

#[test]
fn what_host_names_is_allowed_and_not_reported() {
    if !possible() {
        return;
    }
    let folder = Folder::new();
    let names = ["file", "folder/in", "link"].map(|name| folder.join(name));
    fs::write(&names[0], "x").unwrap();
    fs::create_dir(folder.join("folder")).unwrap();
    std::os::unix::fs::symlink("file", &names[2]).unwrap();
    let host = format!("host = [\"{0}/link\", \"{0}/folder\"]", folder.path().display());
    let run = Run::tool(&host);
    let [file, inside, link] = names.map(|name| name.display().to_string());
    let neighbour = folder.join("neighbour").display().to_string();
    let args =
        ["read", &link, "write", &file, "write", &inside, "look", &folder.path().display().to_string()];
    run.run(&args).succeeds().prints_no("denied").says(CLEAN);
    let outcome = run.run(&["write", &neighbour]).succeeds().prints("Permission denied");
    assert!(!Path::new(&neighbour).exists(), "{outcome}");
}

#[test]
fn host_wants_absolute_plain_paths_and_each_once() {
    for (host, expected) in [
        ("[\"etc\"]", "absolute path"),
        ("[\"/\"]", "absolute path"),
        ("[\"/etc/../x\"]", "without `.`"),
        ("[\"/etc/\"]", "without `.`"),
        ("[\"/etc\", \"/etc\"]", "given twice"),
        ("\"/etc\"", "a list of strings"),
    ] {
        let app = App::new(&format!("host = {host}\ncommand = [\"bin/hello\"]\n"));
        let outcome =
            app.program("bin/hello", kitbag_tests::hello()).refused(3).says("kitbag.toml:3:").says(expected);
        outcome.says("host");
    }
    let app = App::new("host = [\"/not/there\"]\ncommand = [\"bin/hello\"]\n");
    let app = app.program("bin/hello", kitbag_tests::hello());
    let folder = Folder::new();
    let outcome = app.pack_to(&folder.join("bundle"), [""; 0]).run().succeeds();
    outcome.says("warning: this machine has no `/not/there` (`host` in ").says("kitbag.toml line 3)");
}

#[test]
fn writes_are_refused_and_a_place_for_them_is_named() {
    if !possible() {
        return;
    }
    let run = Run::tool("");
    let (new, folder) = (run.outside("new"), run.outside("folder"));
    let outcome = run.run(&["write", &new, "make", &folder, "write", &run.outside("data")]).succeeds();
    let names: Vec<_> =
        fs::read_dir(run.outside.path()).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(names, ["data"], "{outcome}");
    let listed = group(&outcome, "Written to");
    for path in [&new, &folder, &run.outside("data")] {
        assert!(listed.contains(&format!("#   {path}  bin/reach, refused")), "{outcome}");
    }
    let outcome = outcome.says(&format!(
        "# host = [\"{}\", \"{}\"]",
        run.outside.path().display(),
        run.outside("data")
    ));
    assert!(!outcome.said().contains("[[include]]"), "{outcome}");
}

#[test]
fn state_and_the_temporary_folder_may_be_written_to() {
    if !possible() {
        return;
    }
    let run = Run::of(App::new(
        "[command]\nargv = [\"bin/reach\", \"write\", \"${state}/mine\", \"write\", \"${env.TMPDIR}/mine\"]\n",
    ));
    let temporary = run.sandbox.path().join("tmp");
    fs::create_dir(&temporary).unwrap();
    let outcome = run.command(&[]).env("TMPDIR", &temporary).run().succeeds();
    let outcome = outcome.prints_no("denied").prints(&temporary.display().to_string()).says(CLEAN);
    assert!(run.sandbox.state().join("mine").exists(), "{outcome}");
    assert_eq!(fs::read_dir(&temporary).unwrap().count(), 0, "the temporary folder is gone\n{outcome}");
}

#[test]
fn a_library_that_is_loaded_at_run_time_is_reported() {
    if !possible() {
        return;
    }
    let folder = Folder::new();
    let program = build("reach.c", &folder, "loads", &["-DLOAD", "-ldl"]);
    let library = folder.join("libplugin.so.1");
    fs::write(folder.join("plugin.c"), "int plugin = 1;\n").unwrap();
    let made =
        Command::new("gcc").args(["-shared", "-o"]).arg(&library).arg(folder.join("plugin.c")).status();
    assert!(made.unwrap().success());
    let host = "host = [\"/lib\", \"/lib64\", \"/usr/lib\", \"/usr/lib64\", \"/etc/ld.so.cache\", \"/etc/ld.so.preload\"]\n";
    let alone = "[closure]\nenabled = false\n";
    let command = "command = [\"bin/loads\"]\n";
    let run = Run::of(App::new(&format!("{host}{command}{alone}")).program("bin/loads", &program));
    let library = library.display().to_string();
    let outcome = run.run(&["load", &library]).succeeds().prints("Permission denied");
    assert!(
        group(&outcome, "Read:").contains(&format!("# bin/loads, refused\n{}", include(&library))),
        "{outcome}"
    );

    // Without what the host has, not even the program can be executed: its loader is outside.
    let run = Run::of(App::new(&format!("{command}{alone}")).program("bin/loads", &program));
    let outcome = run.run(&["load", &library]).exits(125).says("Permission denied");
    let listed = group(&outcome, "Executed:");
    assert!(listed.contains("# bin/loads, refused\n[[include]]\nfrom = \"/lib"), "{outcome}");
}

#[test]
fn a_program_of_the_host_that_is_found_in_path_is_refused_and_reported() {
    if !possible() {
        return;
    }
    let run = Run::tool("");
    let outcome = run.command(&["find", "env"]).env("PATH", "/usr/local/bin:/usr/bin").run().succeeds();
    let outcome = outcome.prints("ran env: exit 77");
    assert!(group(&outcome, "Executed:").contains(&include("/usr/bin/env")), "{outcome}");
    // A script's interpreter is opened by the kernel: nobody asks for it.
    let script = run.app.tree("bin/script");
    fs::write(&script, "#! /usr/bin/env sh\n").unwrap();
    fs::set_permissions(&script, Permissions::from_mode(0o755)).unwrap();
    let outcome = run.run(&["run", "bin/script"]).succeeds().prints("ran bin/script: exit 77");
    let listed = group(&outcome, "Executed:");
    assert!(listed.contains(&format!("# bin/script, refused\n{}", include("/usr/bin/env"))), "{outcome}");
}

#[test]
fn threads_children_and_what_they_execute_are_followed() {
    if !possible() {
        return;
    }
    let run = Run::tool("");
    let names = ["a", "b", "c"].map(|name| run.outside(name));
    names.iter().for_each(|name| fs::write(name, name).unwrap());
    let [a, b, c] = &names;
    let args = ["threads", "16", a, "forks", "16", b, "vfork", "16", "bin/reach", "run", "bin/reach"];
    let outcome = run.run(&[&args[..], &["read", c, "executing", "bin/reach"]].concat()).exits(23);
    let outcome = outcome.prints("threads done\nforks done\nvforks done\nran bin/reach: exit 111\n");
    for name in &names {
        assert!(group(&outcome, "Read:").contains(&include(name)), "{outcome}");
    }
}

#[test]
fn many_files_of_a_folder_are_one_include_and_few_of_many_are_each_their_own() {
    if !possible() {
        return;
    }
    let run = Run::tool("");
    let (most, few) = (run.outside.dir("most"), run.outside.dir("few"));
    for number in 0..40 {
        fs::write(few.join(format!("{number}")), "x").unwrap();
        if number < 8 {
            fs::write(most.join(format!("{number}")), "x").unwrap();
        }
    }
    let paths: Vec<String> = (0..7)
        .flat_map(|number| [&most, &few].map(|folder| folder.join(format!("{number}")).display().to_string()))
        .collect();
    let args: Vec<&str> = paths.iter().flat_map(|path| ["read", path]).collect();
    let outcome = run.run(&args).succeeds();
    let blocks = outcome.said().matches("[[include]]").count();
    let outcome = outcome.check(blocks == 8, "one block for the one folder, seven for files of the other");
    let folder = format!("# 7 files, bin/reach, refused\n{}", include(&most.display().to_string()));
    assert!(group(&outcome, "Read:").contains(&folder), "{outcome}");
}

#[test]
fn sockets_the_kernels_files_and_what_is_nowhere_have_lists_of_their_own() {
    if !possible() {
        return;
    }
    let run = Run::tool("");
    let socket = run.outside("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    let args =
        ["connect", &socket, "read", "/proc/cpuinfo", "read", "/proc/self/status", "read", "/nowhere/x"];
    let outcome =
        run.run(&[&args[..], &["read", "/dev/null", "read", "/dev/stdin", "look", "/"]].concat()).succeeds();
    assert!(group(&outcome, "Sockets:").contains(&format!("#   {socket}  bin/reach")), "{outcome}");
    assert_eq!(
        group(&outcome, "Of the kernel").lines().nth(1),
        Some("#   /proc/cpuinfo  bin/reach"),
        "{outcome}"
    );
    assert!(group(&outcome, "Not there").contains("#   /nowhere/x  bin/reach"), "{outcome}");
    let quiet = ["/dev/null", "/dev/stdin", "/proc/self"].iter().all(|path| !outcome.said().contains(path));
    let outcome = outcome.check(quiet, "nothing of what every program has").prints("read /dev/null: ok");
    outcome
        .prints("read /proc/cpuinfo: ok")
        .prints("read /proc/self/status: ok")
        .prints("read /dev/stdin: ok");
}

#[test]
fn exit_status_and_signals_are_the_apps_own() {
    if !possible() {
        return;
    }
    let run = Run::tool("");
    for code in [0, 1, 42, 255] {
        run.run(&["exit", &code.to_string()]).exits(code).says(CLEAN);
    }
    for signal in [2, 9, 11, 15, 40] {
        run.run(&["kill", &signal.to_string()]).dies_by(signal).says(CLEAN);
    }
    run.run(&["realtime"]).succeeds().prints("realtime came");
    run.command(&["read", "/dev/stdin"])
        .stdin("text")
        .run()
        .succeeds()
        .prints("read /dev/stdin: ok")
        .says(CLEAN);
}

#[test]
fn a_tool_gets_the_signals_that_are_sent_to_kitbag() {
    if !possible() {
        return;
    }
    let run = Run::tool("");
    for (signal, name) in [(Signal::SIGINT, "INT"), (Signal::SIGTERM, "TERM")] {
        let mut running = run.command(&["wait"]).start();
        running.wait_print("ready");
        running.signal(signal);
        running.ended().succeeds().prints(&format!("got {name}")).says(CLEAN);
    }
    assert_eq!(run.sandbox.processes(), [0; 0], "left running");
}

/// The letter that /proc has for a process's state.
fn state(pid: i32) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    text.rsplit(") ").next().unwrap_or_default().chars().take(1).collect()
}

#[test]
fn a_stopped_app_stays_stopped_until_it_is_continued() {
    if !possible() {
        return;
    }
    let run = Run::tool("");
    let running = run.command(&["stop", "exit", "5"]).start();
    let app = || {
        let exe =
            |pid: &i32| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe.ends_with("bin/reach"));
        run.sandbox.processes().into_iter().find(exe)
    };
    eventually(Duration::from_secs(20), "the app is stopped", || app().is_some_and(is_listening));
    let pid = app().unwrap();
    assert!(["t", "T"].contains(&state(pid).as_str()), "{}", state(pid));
    assert_eq!(running.text(), "", "it goes on by itself");
    kill(Pid::from_raw(pid), Signal::SIGCONT).unwrap();
    running.ended().exits(5).prints("goes on").says(CLEAN);
}

/// True for a process that is stopped by a signal, not by its tracer: the tracer waits for others.
fn is_listening(pid: i32) -> bool {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let tracer =
        text.lines().find_map(|line| line.strip_prefix("TracerPid:\t")).and_then(|pid| pid.parse().ok());
    ["t", "T"].contains(&state(pid).as_str()) && tracer.is_some_and(|tracer: i32| state(tracer) == "S")
}

#[test]
fn what_the_app_leaves_behind_is_ended_and_named() {
    if !possible() {
        return;
    }
    let run = Run::tool("");
    run.run(&["orphan", "exit", "3"])
        .exits(3)
        .says("Still running when the app had ended, killed: bin/reach (");
    assert_eq!(run.sandbox.processes(), [0; 0], "left running");
}

#[test]
fn a_service_bundle_reports_when_it_is_interrupted() {
    if !possible() {
        return;
    }
    let outside = Folder::new();
    let data = outside.join("data").display().to_string();
    fs::write(&data, "x").unwrap();
    let more = "restart = \"never\"\nenv = { HERE = \"${state}\" }";
    let run = Run::of(App::new(&format!(
        "[services.web]\nargv = [\"bin/reach\", \"read\", \"{data}\", \"wait\"]\n{more}\n\
         [services.other]\nargv = [\"bin/reach\", \"wait\"]\n"
    )));
    let mut running = run.command(&[]).start();
    running.wait_print("web   | read");
    running.wait_until("both are ready", |running| running.text().matches("ready").count() == 2);
    running.signal(Signal::SIGINT);
    let outcome = running.ended().exits(0).prints(&format!("web   | read {data}: Permission denied"));
    assert!(group(&outcome, "Read:").contains(&include(&data)), "{outcome}");
    // What the runtime does for itself is nobody's business.
    let outcome = outcome.says("reached for 1 path");
    assert!(!outcome.said().contains("/etc/passwd"), "{outcome}");
    assert_eq!(run.sandbox.processes(), [0; 0], "left running");
}

/// A 32-bit program that exits with status 9: `mov eax, 1; mov bl, 9; int 0x80`.
fn narrow() -> Vec<u8> {
    const CODE: [u8; 9] = [0xb8, 1, 0, 0, 0, 0xb3, 9, 0xcd, 0x80];
    const BASE: u32 = 0x0804_8000;
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    let halves = |halves: &[u16]| halves.iter().flat_map(|half| half.to_le_bytes()).collect::<Vec<u8>>();
    let size = 84 + CODE.len() as u32;
    [
        b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec(),
        halves(&[2, 3]),
        words(&[1, BASE + 84, 52, 0, 0]),
        halves(&[52, 32, 1, 0, 0, 0]),
        words(&[1, 0, BASE, BASE, size, size, 5, 0x1000]),
        CODE.to_vec(),
    ]
    .concat()
}

#[test]
fn programs_whose_calls_are_not_seen_and_those_that_lose_their_rights_are_named() {
    if !possible() {
        return;
    }
    let run = Run::tool("");
    let folder = Folder::new();
    let program = folder.join("setuid");
    kitbag_tests::copy(reach(), &program);
    fs::set_permissions(&program, Permissions::from_mode(0o4755)).unwrap();
    let program = program.display().to_string();
    let run = Run { app: App::new(&format!("host = [\"{program}\"]\ncommand = [\"bin/reach\"]\n")), ..run };
    let run = Run { app: run.app.program("bin/reach", reach()), ..run };
    let outcome = run.run(&["run", &program]).succeeds().prints("exit 111").says(CLEAN);
    outcome.says(&format!("# Setuid programs, run without their rights (no_new_privs): {program}\n"));

    let run = Run::tool("");
    let program = run.app.tree("bin/narrow");
    fs::write(&program, narrow()).unwrap();
    fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    if Cmd::new(&program).try_run().is_err() {
        unmet("needs a kernel that runs 32-bit programs");
        return;
    }
    let outcome = run.run(&["run", "bin/narrow"]).succeeds().prints("ran bin/narrow: exit 9").says(CLEAN);
    outcome.says("# 32-bit programs, what they reach for is not listed: bin/narrow\n");
}

#[test]
fn a_status_is_not_lost_where_sigchld_is_ignored() {
    if !possible() {
        return;
    }
    let run = Run::tool("");
    let caller = ["-c", "trap '' CHLD; exec \"$@\"", "sh"];
    run.command(&["exit", "4"]).behind("sh", caller).run().exits(4).says(CLEAN);
    run.command(&["kill", "15"]).behind("sh", caller).run().dies_by(15).says(CLEAN);
}

#[test]
fn where_tracing_is_forbidden_that_is_said_and_nothing_stays() {
    if !possible() || !tools(&["strace"]) {
        return;
    }
    let run = Run::tool("");
    // Who is traced already cannot be traced by another.
    let outcome = run.command(&["exit", "0"]).behind("strace", ["-f", "-o", "/dev/null"]).run().exits(1);
    outcome.says("cannot run hermetically: cannot trace the app: ").says("strace or a debugger");
    assert_eq!(run.sandbox.processes(), [0; 0], "left running");
}

#[test]
fn without_landlock_nothing_is_refused_and_all_is_listed() {
    if !possible() {
        return;
    }
    let folder = Folder::new();
    let without = build("without.c", &folder, "without", &[]).display().to_string();
    let loads = build("reach.c", &folder, "loads", &["-DLOAD", "-ldl"]);
    let run = Run::tool("[closure]\nenabled = false\n");
    let run = Run { app: run.app.program("bin/loads", &loads), ..run };
    let (data, new) = (run.outside("data"), run.outside("new"));
    // landlock_create_ruleset, ENOSYS
    let no_landlock = ["444", "38"];
    let args = ["read", &data, "write", &new, "run", "bin/loads", "find", "env"];
    let outcome = run.command(&args).behind(&without, no_landlock).run().succeeds();
    let outcome = outcome.says("this kernel has no Landlock (Linux 5.13): nothing is refused, only listed");
    let outcome = outcome
        .prints(&format!("read {data}: ok\nwrite {new}: ok\nran bin/loads: exit 111\n"))
        .prints("ran env: exit 0");
    let outcome = outcome.says("outside of the bundle, 0 refused.");
    assert!(group(&outcome, "Read:").contains(&format!("# bin/reach\n{}", include(&data))), "{outcome}");
    assert!(group(&outcome, "Read:").contains("libc.so"), "{outcome}");
    assert!(group(&outcome, "Written to").contains(&format!("#   {new}  bin/reach\n")), "{outcome}");
    let executed = group(&outcome, "Executed:");
    assert!(executed.contains("# bin/reach\n[[include]]\nfrom = \"/usr/bin/env\""), "{outcome}");
    // The kernel alone opens a loader.
    assert!(executed.contains("bin/loads\n[[include]]\nfrom = \"/lib"), "{outcome}");
}

#[test]
fn a_container_that_forbids_ptrace_is_guessed() {
    if !possible() {
        return;
    }
    let folder = Folder::new();
    let without = build("without.c", &folder, "without", &[]).display().to_string();
    let run = Run::tool("");
    // ptrace, EPERM
    let number = if cfg!(target_arch = "x86_64") { "101" } else { "117" };
    let outcome = run.command(&["exit", "0"]).behind(&without, [number, "1"]).run().exits(1);
    outcome.says("cannot trace the app: Operation not permitted").says("a container may forbid ptrace");
    assert_eq!(run.sandbox.processes(), [0; 0], "left running");
}

#[test]
fn kitbag_killed_takes_the_app_with_it() {
    if !possible() {
        return;
    }
    let run = Run::tool("");
    // Nobody is left to remove the app's temporary folder.
    let mut running = run.command(&["wait"]).env("TMPDIR", run.sandbox.path()).start();
    running.wait_print("ready");
    running.signal(Signal::SIGKILL);
    running.ended().dies_by(9);
    eventually(Duration::from_secs(20), "nothing runs", || run.sandbox.processes().is_empty());
}

#[test]
fn another_user_than_root_can_do_it() {
    if !possible() || !root("start as another user") || !tools(&["setpriv"]) {
        return;
    }
    assert!(is_root());
    let run = Run::tool("");
    for folder in [run.sandbox.path(), &run.sandbox.home()] {
        chown(folder, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let user = format!("--reuid={NOBODY}");
    let data = run.outside("data");
    let args = ["read", &data, "forks", "3", &data, "run", "bin/reach"];
    let nobody = [&user, &format!("--regid={NOBODY}"), "--clear-groups"];
    let outcome = run.command(&args).behind("setpriv", nobody).run().succeeds();
    let outcome =
        outcome.prints(&format!("read {data}: Permission denied")).prints("ran bin/reach: exit 111");
    assert!(group(&outcome, "Read:").contains(&include(&data)), "{outcome}");
}
