//! A tool bundle behaves as its program, from the first start on, whatever becomes of its store.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File, FileTimes, Permissions};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use kitbag_tests::{
    App, Bundle, Cmd, Folder, Outcome, Sandbox, Tmpfs, copy, disk_usage, eventually, is_root, mounts, root,
    tools,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// What the program prints when it is started without arguments.
const RAN: &str = "HELLO 1.0.0";

/// What is left in a store's folder of unfinished work.
const NOTHING: [&str; 0] = [];

/// Like `nobody`, who has no rights.
const NOBODY: [&str; 3] = ["--reuid=65534", "--regid=65534", "--clear-groups"];

/// Bytes that do not compress.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

#[test]
fn all_arguments_pass_empty_ones_and_newlines_and_bytes_that_are_no_text() {
    let bundle = App::tool().pack();
    let odd = OsString::from_vec(b"a\xff\xfeb".to_vec());
    for _ in ["first start", "later start"] {
        let outcome = bundle.command(["", "two words", "new\nline", "--help"]).arg(&odd).run().succeeds();
        let expected =
            b"argv[1] \nargv[2] two words\nargv[3] new\nline\nargv[4] --help\nargv[5] a\xff\xfeb\n";
        let right = outcome.stdout.ends_with(expected);
        outcome.check(right, "the arguments as they were").is_quiet();
    }
}

#[test]
fn five_thousand_arguments_pass() {
    let bundle = App::tool().pack();
    for _ in ["first start", "later start"] {
        let outcome = bundle.run((1..=5000).map(|n| n.to_string())).succeeds();
        assert_eq!(outcome.stdout.iter().filter(|byte| **byte == b'\n').count(), 5001);
        outcome.prints("argv[5000] 5000\n");
    }
}

#[test]
fn arguments_of_the_manifest_come_first_with_placeholders_filled_in() {
    let app = App::new(
        "[command]\nargv = [\"bin/hello\", \"--flag\", \"${tree}/share\", \"${name}-${version}\", \"$$\", \
         \"${env.LEVEL:-low}\", \"${state}\"]\nenv = { GREETING = \"hi ${env.WHO:-you}\", EMPTY = \"\" }",
    );
    let bundle = app.program("bin/hello", kitbag_tests::hello()).pack();
    for _ in ["first start", "later start"] {
        let outcome =
            bundle.command(["--env", "GREETING", "--env", "EMPTY"]).env("WHO", "me").run().succeeds();
        let tree = bundle.sandbox.tree();
        let outcome = outcome.prints(&format!("argv[1] --flag\nargv[2] {}/share\n", tree.display()));
        let outcome = outcome.prints("argv[3] app-1.0.0\nargv[4] $\nargv[5] low\n");
        let outcome = outcome.prints(&format!("argv[6] {}\n", bundle.sandbox.state().display()));
        outcome.prints("argv[7] --env\n").prints("GREETING=hi me\nEMPTY=\n");
        bundle.command([""; 0]).env("LEVEL", "high").run().succeeds().prints("argv[5] high\n");
    }
}

#[test]
fn a_variable_without_default_that_is_not_set_is_named() {
    let app = App::new("command = [\"bin/hello\", \"${env.NEEDED}\"]\n")
        .program("bin/hello", kitbag_tests::hello());
    let bundle = app.pack();
    bundle.run([""; 0]).exits(125).says("NEEDED").prints_no("argv");
    bundle.command([""; 0]).env("NEEDED", "x").run().succeeds().prints("argv[1] x");
    bundle.run([""; 0]).exits(125).says("NEEDED").prints_no("argv");
}

#[test]
fn exit_status_and_signals_are_the_programs_own() {
    let bundle = App::tool().pack();
    for _ in ["first start", "later start"] {
        for code in [0, 1, 42, 125, 255] {
            bundle.run(["--exit", &code.to_string()]).exits(code).is_quiet();
        }
        for signal in [1, 2, 9, 11, 15] {
            bundle.run(["--signal", &signal.to_string()]).dies_by(signal).is_quiet();
        }
    }
}

#[test]
fn standard_input_and_output_are_the_programs_own() {
    let bundle = App::tool().pack();
    let bytes = noise(3_000_000, 1);
    for _ in ["first start", "later start"] {
        let outcome = bundle.command(["--cat"]).stdin(bytes.clone()).run().succeeds().is_quiet();
        let right = outcome.stdout.ends_with(&bytes);
        outcome.check(right, "the input");
    }
}

#[test]
fn the_working_directory_is_the_callers() {
    let bundle = App::tool().pack();
    let folder = Folder::new();
    for _ in ["first start", "later start"] {
        let outcome = bundle.command(["--cwd"]).cwd(folder.path()).run().succeeds();
        outcome.prints(&format!("cwd {}\n", folder.path().display()));
    }
}

#[test]
fn the_environment_passes() {
    let bundle = App::tool().pack();
    for _ in ["first start", "later start"] {
        let start =
            bundle.command(["--env", "MINE", "--env", "HOME", "--env", "NOT_MINE"]).env("MINE", "a b");
        let home = bundle.sandbox.home();
        start.run().succeeds().prints(&format!("MINE=a b\nHOME={}\nNOT_MINE is not set\n", home.display()));
    }
}

#[test]
fn it_runs_by_a_relative_path_by_a_link_and_through_path() {
    let bundle = App::tool().pack();
    let folder = bundle.sandbox.path();
    symlink("bundle", folder.join("link")).unwrap();
    let command = |program: &str| bundle.sandbox.command(program).cwd(folder);
    for _ in ["first start", "later start"] {
        command("./bundle").run().succeeds().prints(RAN);
        command("./link").run().succeeds().prints(RAN);
        command("/bin/sh").args(["-c", "link"]).env("PATH", folder).run().succeeds().prints(RAN);
        command("./bundle").called("another name").run().succeeds().prints(RAN);
        command("./bundle").called("").run().succeeds().prints(RAN);
    }
}

#[test]
fn no_process_of_ours_stays() {
    let bundle = App::tool().pack();
    for _ in ["first start", "later start"] {
        let mut running = bundle.command(["--cat"]).start();
        running.feed(b"x");
        let id = running.id();
        // The very process that was started becomes the program.
        eventually(Duration::from_secs(20), "the process is the program", || {
            fs::read_link(format!("/proc/{id}/exe")).is_ok_and(|exe| exe.ends_with("tree/bin/hello"))
        });
        assert_eq!(bundle.sandbox.processes(), [id as i32]);
        for open in fs::read_dir(format!("/proc/{id}/fd")).unwrap().flatten() {
            let path = fs::read_link(open.path()).unwrap();
            assert!(!path.starts_with(bundle.sandbox.path()), "{} is still open", path.display());
        }
        running.close();
        running.ended().succeeds();
    }
}

/// Blocked and ignored signals of a process, without 32 and 33: glibc's threads use these for themselves.
fn signals(id: u32) -> [u64; 2] {
    let text = fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    ["SigBlk:", "SigIgn:"].map(|name| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap() & !(3 << 31)
    })
}

#[test]
fn the_program_finds_signals_as_its_caller_left_them() {
    let bundle = App::tool().pack();
    for ignored in ["", "PIPE", "HUP", "CHLD"] {
        let caller = format!("trap '' {ignored}; exec \"$@\"");
        let caller = if ignored.is_empty() { "exec \"$@\"" } else { &caller };
        let start = |command: Cmd| command.behind("sh", ["-c", caller, "sh"]).start();
        let bare = start(Cmd::new(kitbag_tests::hello()).arg("--cat"));
        let packed = start(bundle.command(["--cat"]));
        for (running, program) in [(&bare, "bin/hello"), (&packed, "tree/bin/hello")] {
            eventually(Duration::from_secs(20), "the program runs", || {
                fs::read_link(format!("/proc/{}/exe", running.id())).is_ok_and(|exe| exe.ends_with(program))
            });
        }
        assert_eq!(signals(bare.id()), signals(packed.id()), "with {ignored:?} ignored");
    }
}

#[test]
fn the_program_finds_closed_what_its_caller_has_closed() {
    let bundle = App::tool().pack();
    for start in ["first", "later"] {
        let closed = bundle.command(["--cat"]).behind("sh", ["-c", "exec \"$@\" <&-", "sh"]).run();
        closed.exits(111).says("hello: read: Bad file descriptor").check(true, start);
    }
}

#[test]
fn a_store_named_with_a_slash_at_its_end_serves_later_starts_as_quickly() {
    if !tools(&["strace"]) {
        return;
    }
    let bundle = App::tool().pack();
    let store = format!("{}/", bundle.sandbox.store().display());
    bundle.command([""; 0]).env("KITBAG_STORE", &store).run().succeeds();
    let log = bundle.sandbox.path().join("log");
    let start = bundle.command([""; 0]).env("KITBAG_STORE", &store);
    start.behind("strace", ["-f", "-o", log.to_str().unwrap()]).run().succeeds();
    let text = fs::read_to_string(log).unwrap();
    let before = text.lines().skip(1).take_while(|line| !line.contains("execve(")).count();
    assert!(before <= 20, "{before} system calls\n{text}");
}

#[test]
fn a_later_start_takes_at_most_20_system_calls_before_the_program() {
    if !tools(&["strace"]) {
        return;
    }
    let bundle = App::tool().file("share/noise", noise(2_000_000, 2)).pack();
    bundle.run([""; 0]).succeeds().prints(RAN);
    let log = bundle.sandbox.path().join("log");
    let traced = bundle.command(["traced"]).behind("strace", ["-f", "-o", log.to_str().unwrap()]).run();
    let traced = traced.succeeds().prints("argv[1] traced");
    let text = fs::read_to_string(log).unwrap();
    let execs: Vec<usize> =
        text.lines().enumerate().filter(|(_, l)| l.contains("execve(")).map(|(n, _)| n).collect();
    assert_eq!(execs.len(), 2, "the bundle and the program are executed\n{text}\n{traced}");
    let before = execs[1] - execs[0] - 1;
    assert!(before <= 20, "{before} system calls before the program's execve\n{text}");
}

#[test]
fn its_own_commands_are_behind_kitbag() {
    let bundle = App::tool().file("share/notes.txt", "notes").pack();
    bundle.run(["--kitbag", "help"]).succeeds().prints("app 1.0.0").prints("FILE --kitbag gc");
    bundle.run(["--kitbag"]).succeeds().prints("Usage:");
    bundle.run(["--kitbag", "--version"]).succeeds().prints("app 1.0.0\n");
    bundle.run(["--kitbag", "inspect"]).succeeds().prints(&bundle.digest()).prints("unpacks in");
    let json = bundle.run(["--kitbag", "inspect", "--json"]).succeeds();
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["digest"], bundle.digest());
    let list = bundle.run(["--kitbag", "list"]).succeeds().text();
    assert_eq!(list, Cmd::kitbag(["list"]).arg(&bundle.file).run().succeeds().text());
    assert!(list.contains("share/notes.txt\n"));
    bundle.run(["--kitbag", "verify"]).succeeds().prints("whole").prints(&bundle.digest());
    bundle.run(["--kitbag", "unpack", "out"]).succeeds();
    assert_eq!(fs::read(bundle.sandbox.home().join("out/share/notes.txt")).unwrap(), b"notes");
    bundle.run(["--kitbag", "gc"]).succeeds();
    bundle.run(["--kitbag", "verfy"]).exits(2).says("did you mean `verify`?");
    bundle.run(["--kitbag", "list", "--lnog"]).exits(2);
    bundle.run(["--kitbag", "gc", "--older-than", "soon"]).exits(2).says("30d");
}

#[test]
fn what_only_looks_makes_nothing() {
    let bundle = App::tool().pack();
    for command in ["help", "inspect", "list", "verify", "gc"] {
        bundle.run(["--kitbag", command]).succeeds();
        assert!(!bundle.sandbox.store().exists(), "`--kitbag {command}` made the store");
    }
    let left = fs::read_dir(bundle.sandbox.home()).unwrap().count();
    assert_eq!(left, 0, "in the home folder");
}

#[test]
fn the_tree_is_read_only_and_the_same_for_a_later_start() {
    let bundle = App::tool().file("share/notes.txt", "notes").pack();
    bundle.run([""; 0]).succeeds();
    let tree = bundle.sandbox.tree();
    for path in ["bin/hello", "share/notes.txt", "share", "bin", "."] {
        let mode = fs::metadata(tree.join(path)).unwrap().mode();
        assert_eq!(mode & 0o222, 0, "{path} has mode {mode:o}");
    }
    assert!(fs::metadata(tree.join("bin/hello")).unwrap().mode() & 0o111 != 0);
    assert!(fs::metadata(tree.join("share/notes.txt")).unwrap().mode() & 0o111 == 0);
    let inode = fs::metadata(tree.join("bin/hello")).unwrap().ino();
    bundle.run([""; 0]).succeeds().prints(RAN).is_quiet();
    assert_eq!(fs::metadata(bundle.sandbox.tree().join("bin/hello")).unwrap().ino(), inode);
}

/// Makes a file of a tree writable for `change`, then gives it its permissions back.
fn tamper(path: &Path, change: impl FnOnce(&Path)) {
    let folder = path.parent().unwrap();
    fs::set_permissions(folder, Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    change(path);
    if path.exists() {
        fs::set_permissions(path, Permissions::from_mode(0o555)).unwrap();
    }
    fs::set_permissions(folder, Permissions::from_mode(0o555)).unwrap();
}

fn change_a_byte(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    fs::write(path, bytes).unwrap();
}

/// The next start heals the program and says so; the one after it has nothing to say.
#[track_caller]
fn healed(what: impl FnOnce(&Path)) {
    let bundle = App::tool().file("share/a", noise(500_000, 3)).pack();
    bundle.run([""; 0]).succeeds().prints(RAN);
    let program = bundle.sandbox.tree().join("bin/hello");
    tamper(&program, what);
    bundle.run([""; 0]).succeeds().prints(RAN).says("bin/hello");
    assert_eq!(fs::read(&program).unwrap(), fs::read(kitbag_tests::hello()).unwrap());
    bundle.run([""; 0]).succeeds().prints(RAN).is_quiet();
    bundle.run(["--kitbag", "verify", "--unpacked"]).succeeds();
}

#[test]
fn a_program_that_was_changed_is_healed_and_said() {
    healed(change_a_byte);
}

#[test]
fn a_program_that_was_changed_with_size_and_mtime_put_back_is_healed_and_said() {
    healed(|program| {
        let before = fs::metadata(program).unwrap();
        change_a_byte(program);
        let file = File::options().write(true).open(program).unwrap();
        let times = FileTimes::new()
            .set_modified(before.modified().unwrap())
            .set_accessed(before.accessed().unwrap());
        file.set_times(times).unwrap();
        assert_eq!(fs::metadata(program).unwrap().len(), before.len());
    });
}

#[test]
fn a_program_that_was_deleted_is_healed_and_said() {
    healed(|program| fs::remove_file(program).unwrap());
}

#[test]
fn a_program_that_was_emptied_is_healed_and_said() {
    healed(|program| fs::write(program, "").unwrap());
}

#[test]
fn a_store_that_was_deleted_is_filled_again() {
    let bundle = App::tool().pack();
    bundle.run([""; 0]).succeeds().prints(RAN);
    // Trees are read-only, for their owner too.
    Cmd::new("chmod").arg("-R").arg("u+w").arg(bundle.sandbox.store()).run().succeeds();
    Cmd::new("rm").arg("-rf").arg(bundle.sandbox.store()).run().succeeds();
    bundle.run([""; 0]).succeeds().prints(RAN).is_quiet();
}

#[test]
fn a_store_that_was_moved_is_used_where_it_is() {
    let bundle = App::tool().pack();
    bundle.run([""; 0]).succeeds().prints(RAN);
    let moved = bundle.sandbox.path().join("moved");
    fs::rename(bundle.sandbox.store(), &moved).unwrap();
    for _ in ["first start there", "later start there"] {
        let outcome = bundle.command(["x"]).env("KITBAG_STORE", &moved).run().succeeds();
        outcome.prints(moved.to_str().unwrap());
    }
    assert!(!bundle.sandbox.store().exists());
}

#[test]
fn a_copied_store_is_compared_before_it_is_used() {
    let bundle = App::tool().pack();
    bundle.run([""; 0]).succeeds().prints(RAN);
    let copied = bundle.sandbox.path().join("copied");
    Cmd::new("cp").arg("-a").arg(bundle.sandbox.store()).arg(&copied).run().succeeds();
    let program = copied.join("v1/trees").join(bundle.digest()).join("tree/bin/hello");
    tamper(&program, change_a_byte);
    bundle.command([""; 0]).env("KITBAG_STORE", &copied).run().succeeds().prints(RAN).says("bin/hello");
}

#[test]
fn verify_unpacked_finds_what_a_start_of_a_tool_does_not_look_at() {
    let bundle = App::tool().file("share/notes.txt", "notes").pack();
    bundle.run([""; 0]).succeeds();
    tamper(&bundle.sandbox.tree().join("share/notes.txt"), |path| fs::write(path, "other").unwrap());
    bundle.run(["--kitbag", "verify", "--unpacked"]).exits(4).prints("share/notes.txt");
}

#[test]
fn ten_first_starts_at_once_are_right_and_make_one_copy() {
    let app = App::tool().file("share/noise", noise(20_000_000, 4));
    let alone = app.pack();
    alone.run([""; 0]).succeeds();
    let expected = disk_usage([alone.sandbox.store().as_path()]);
    let bundle = alone.fresh();
    thread::scope(|scope| {
        for _ in 0..10 {
            scope.spawn(|| bundle.run([""; 0]).succeeds().prints(RAN).is_quiet());
        }
    });
    let store = bundle.sandbox.store();
    let usage = disk_usage([store.as_path()]);
    assert!(usage.abs_diff(expected) < 100_000, "{usage} bytes, alone {expected}");
    assert_eq!(bundle.sandbox.work(), NOTHING);
}

#[test]
fn killed_at_50_moments_of_the_first_start_the_next_start_is_right_and_nothing_is_left_behind() {
    let mut app = App::tool().file("share/noise", noise(12_000_000, 5));
    for number in 0..1500 {
        app = app.file(format!("many/{}/{number}", number % 40), noise(2000 + number, number as u64));
    }
    let bundle = app.file("share/more", noise(12_000_000, 6)).pack();
    let whole = bundle.fresh();
    let begin = Instant::now();
    whole.run([""; 0]).succeeds();
    let mut span = begin.elapsed();
    let mut unfinished = 0;
    for moment in 0..50u32 {
        let one = Sandbox::new();
        let running = one.command(&bundle.file).arg("--cat").start();
        // Spread over the span, which follows what a first start takes now.
        thread::sleep(span * (moment * 37 % 50) / 50);
        running.signal(Signal::SIGKILL);
        running.ended().dies_by(9);
        let late = !one.trees().is_empty();
        unfinished += u32::from(!late);
        span = if late { span * 3 / 4 } else { span * 21 / 20 };
        one.command(&bundle.file).run().succeeds().prints(RAN);
        assert_eq!(one.work(), NOTHING, "left behind by moment {moment}");
        let tree = one.tree();
        if moment % 10 == 0 {
            kitbag_tests::same_tree(&whole.sandbox.tree(), &tree);
        }
    }
    assert!(unfinished >= 5, "only {unfinished} of 50 were killed while they unpacked");
}

#[test]
fn where_the_set_place_has_no_exec_a_lone_static_program_runs_from_memory() {
    if !mounts() {
        return;
    }
    let noexec = Tmpfs::new("size=32m", true);
    let bundle = App::tool().pack();
    let start = || bundle.command(["from memory"]).env("KITBAG_STORE", noexec.path().join("store"));
    start().run().succeeds().prints("argv[1] from memory");
    let more = App::tool().file("share/notes.txt", "needs a tree").pack();
    let outcome = more.command([""; 0]).env("KITBAG_STORE", noexec.path().join("store")).run();
    outcome.exits(125).says("noexec").says("KITBAG_STORE");
}

#[test]
fn where_a_place_has_no_exec_the_next_one_is_taken() {
    if !mounts() || !tools(&["setpriv"]) {
        return;
    }
    let noexec = Tmpfs::new("size=32m,mode=1777", true);
    let bundle = App::tool().file("share/notes.txt", "needs a tree").pack();
    let home = bundle.sandbox.path().join("nobody");
    fs::create_dir(&home).unwrap();
    std::os::unix::fs::chown(&home, Some(65534), Some(65534)).unwrap();
    let cache = noexec.path().join("cache");
    fs::create_dir(&cache).unwrap();
    std::os::unix::fs::chown(&cache, Some(65534), Some(65534)).unwrap();
    let start = |args: &[&str]| {
        let start =
            bundle.command(args).env_remove("KITBAG_STORE").env("HOME", &home).env("XDG_CACHE_HOME", &cache);
        start.behind("setpriv", NOBODY).cwd("/").run()
    };
    for _ in ["first start", "later start"] {
        start(&["next place"]).succeeds().prints(&format!("argv[0] {}/.cache/kitbag", home.display()));
    }
    start(&["--kitbag", "inspect"]).succeeds().prints("noexec");
}

#[test]
fn with_a_read_only_home_or_none_a_fallback_is_taken() {
    if !root("start as another user") || !tools(&["setpriv"]) {
        return;
    }
    let bundle = App::tool().pack();
    let folder = bundle.sandbox.path().join("beside");
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, Permissions::from_mode(0o777)).unwrap();
    copy(&bundle.file, &folder.join("bundle"));
    // A user without an entry in /etc/passwd, and an id of our own for the fallback in /var/tmp.
    let user = format!("{}", 2_000_000_000 + std::process::id());
    let start = |home: Option<&str>| {
        let start = bundle.sandbox.command(folder.join("bundle")).arg("x").env_remove("KITBAG_STORE");
        let start = match home {
            Some(home) => start.env("HOME", home),
            None => start.env_remove("HOME"),
        };
        start
            .behind("setpriv", [&*format!("--reuid={user}"), "--regid=65534", "--clear-groups"])
            .cwd("/")
            .run()
    };
    let fallback = PathBuf::from(format!("/var/tmp/kitbag-{user}"));
    let read_only = bundle.sandbox.home();
    for _ in ["first start", "later start"] {
        for home in [Some(read_only.to_str().unwrap()), Some("/nonexistent"), Some("relative"), None] {
            let outcome = start(home);
            assert!(outcome.status.success(), "{outcome}");
            outcome.prints(&format!("argv[0] {}", fallback.display()));
        }
    }
    fs::remove_dir_all(fallback).unwrap();
}

/// A start with this store is refused, the reason is said, and the program does not run.
#[track_caller]
fn store_refused(bundle: &Bundle, store: &Path, reason: &str) -> Outcome {
    let outcome = bundle.command([""; 0]).env("KITBAG_STORE", store).run();
    outcome.exits(125).prints_no(RAN).says("KITBAG_STORE").says(reason)
}

#[test]
fn a_store_that_others_could_have_planted_is_refused_with_the_reason() {
    // One that needs a tree: a lone static program would start from memory.
    let bundle = App::tool().file("share/notes.txt", "needs a tree").pack();
    let folder = bundle.sandbox.path();
    store_refused(&bundle, Path::new("relative/store"), "not an absolute path");
    let writable = folder.join("writable");
    fs::create_dir(&writable).unwrap();
    fs::set_permissions(&writable, Permissions::from_mode(0o777)).unwrap();
    store_refused(&bundle, &writable, "others can write to it");
    store_refused(&bundle, &writable.join("below"), "writable");
    let planted = folder.join("planted");
    fs::create_dir(folder.join("elsewhere")).unwrap();
    symlink("elsewhere", &planted).unwrap();
    store_refused(&bundle, &planted, "symbolic link");
    assert_eq!(fs::read_dir(folder.join("elsewhere")).unwrap().count(), 0);
    fs::write(folder.join("file"), "").unwrap();
    store_refused(&bundle, &folder.join("file"), "not a folder");
    if is_root() {
        let foreign = folder.join("foreign");
        fs::create_dir(&foreign).unwrap();
        std::os::unix::fs::chown(&foreign, Some(12345), Some(12345)).unwrap();
        store_refused(&bundle, &foreign, "belongs to user 12345");
    }
}

#[test]
fn links_planted_inside_the_store_are_not_followed() {
    let bundle = App::tool().file("share/notes.txt", "needs a tree").pack();
    let elsewhere = bundle.sandbox.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let store = bundle.sandbox.store();
    fs::create_dir_all(store.join("v1")).unwrap();
    symlink(&elsewhere, store.join("v1/trees")).unwrap();
    store_refused(&bundle, &store, "symbolic link");
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
}

#[test]
fn without_a_usable_place_the_exit_status_of_its_own_commands_says_so() {
    let bundle = App::tool().file("share/notes.txt", "needs a tree").pack();
    let start = bundle.command([""; 0]).env("KITBAG_STORE", "/proc/nowhere").run();
    start.exits(125).says("/proc/nowhere").says("to fix");
}

/// A folder that holds this file alone; `chroot` there starts it as `/bundle`.
fn alone(bundle: &Bundle) -> Folder {
    let folder = Folder::new();
    copy(&bundle.file, &folder.join("bundle"));
    folder
}

#[test]
fn it_runs_as_root_in_a_chroot_that_holds_the_file_alone() {
    if !root("chroot") || !tools(&["chroot"]) {
        return;
    }
    let bundle = App::tool().file("share/notes.txt", "notes").pack();
    let folder = alone(&bundle);
    for _ in ["first start", "later start"] {
        let start = Cmd::new("/bundle").args(["alone", "--exit", "7"]).bare();
        let outcome = start.behind("/usr/sbin/chroot", [folder.path()]).run();
        outcome.exits(7).is_quiet().prints("argv[1] alone").prints("argv[0] /var/cache/kitbag/v1/trees/");
    }
}

#[test]
fn it_runs_as_anybody_in_a_chroot_that_holds_the_file_alone_where_the_folder_is_writable() {
    if !root("chroot") || !tools(&["chroot"]) {
        return;
    }
    let bundle = App::tool().file("share/notes.txt", "notes").pack();
    let folder = alone(&bundle);
    std::os::unix::fs::chown(folder.path(), Some(65534), Some(65534)).unwrap();
    for _ in ["first start", "later start"] {
        let start = Cmd::new("/bundle").args(["alone", "--exit", "7"]).bare();
        let chroot = ["--userspec=65534:65534", folder.path().to_str().unwrap()];
        start.behind("/usr/sbin/chroot", chroot).run().exits(7).is_quiet().prints("argv[1] alone");
    }
}

#[test]
fn a_rust_program_packed_without_a_word_runs_in_the_chroot_too() {
    if !root("chroot") || !tools(&["chroot"]) {
        return;
    }
    let bundle = App::at(&kitbag_tests::fixtures().join("hello-rust")).pack();
    let folder = alone(&bundle);
    for _ in ["first start", "later start"] {
        let start = Cmd::new("/bundle").bare().stdin("Uryyb").behind("/usr/sbin/chroot", [folder.path()]);
        let outcome = start.run().succeeds().is_quiet();
        assert_eq!(outcome.text(), "Hello");
    }
}

#[test]
fn two_versions_share_what_did_not_change() {
    let app =
        App::tool().file("share/large", noise(30_000_000, 7)).file("share/changes", noise(1_000_000, 8));
    let app = (0..200).fold(app, |app, n| app.file(format!("many/{n}"), noise(5000, n)));
    let (first, sandbox) = (app.pack(), Sandbox::new());
    fs::write(app.tree("share/changes"), noise(1_000_000, 9)).unwrap();
    let second = app.pack();
    assert_ne!(first.digest(), second.digest());
    sandbox.command(&first.file).run().succeeds();
    let store = sandbox.store();
    let one = disk_usage([store.as_path()]);
    sandbox.command(&second.file).run().succeeds();
    let both = disk_usage([store.as_path()]);
    let most = (one + 1_000_000) * 103 / 100;
    assert!(both <= most, "{one} bytes for one version, {both} for both; {most} are the most");
    // Sharing leaves both right: a new name of a file must not look like a change of it.
    sandbox.command(&first.file).run().succeeds().prints(RAN).is_quiet();
    sandbox.command(&second.file).run().succeeds().prints(RAN).is_quiet();
    sandbox.command(&first.file).args(["--kitbag", "verify", "--unpacked"]).run().succeeds();
}

/// Moves the last use of every tree in the store back by an hour.
fn age(sandbox: &Sandbox) {
    let then = SystemTime::now() - Duration::from_secs(3600);
    for tree in sandbox.trees() {
        for name in ["start", "record"] {
            if let Ok(file) = File::open(tree.join(name)) {
                file.set_modified(then).unwrap();
            }
        }
    }
}

#[test]
fn gc_removes_what_is_not_used_and_keeps_what_runs() {
    let app = App::tool().file("share/noise", noise(1_000_000, 10));
    let (first, sandbox) = (app.pack(), Sandbox::new());
    fs::write(app.tree("share/noise"), noise(1_000_000, 11)).unwrap();
    let second = app.pack();
    sandbox.command(&first.file).run().succeeds();
    let mut running = sandbox.command(&second.file).arg("--cat").start();
    running.feed(b"x");
    let id = running.id();
    eventually(Duration::from_secs(20), "the program runs", || {
        fs::read_link(format!("/proc/{id}/exe")).is_ok_and(|exe| exe.ends_with("tree/bin/hello"))
    });
    age(&sandbox);
    let gc =
        |args: &[&str]| sandbox.command(&first.file).args(["--kitbag", "gc"]).args(args).run().succeeds();
    gc(&["--keep", "0", "--dry-run"]).prints("would be removed").prints("in use");
    assert_eq!(sandbox.trees().len(), 2, "a dry run removes nothing");
    gc(&["--keep", "2"]).prints("among the last used");
    assert_eq!(sandbox.trees().len(), 2, "two are to be kept");
    let before = disk_usage([sandbox.store().as_path()]);
    gc(&["--older-than", "0s"]).prints("removed").prints("in use").prints("freed");
    assert_eq!(sandbox.trees().len(), 1, "what is running is kept");
    assert!(sandbox.trees()[0].ends_with(second.digest()));
    assert!(disk_usage([sandbox.store().as_path()]) + 900_000 < before);
    running.close();
    running.ended().succeeds();
    age(&sandbox);
    gc(&["--older-than", "0s"]).prints("removed");
    assert_eq!(sandbox.trees().len(), 0);
    sandbox.command(&second.file).run().succeeds().prints(RAN);
}

#[test]
fn the_store_is_bounded_without_anybody_asking() {
    let sandbox = Sandbox::new();
    let app = App::tool();
    for version in 0..6 {
        fs::create_dir_all(app.tree("share")).unwrap();
        fs::write(app.tree("share/version"), version.to_string()).unwrap();
        let bundle = app.pack();
        age(&sandbox);
        sandbox.command(&bundle.file).run().succeeds();
    }
    let trees: BTreeSet<PathBuf> = sandbox.trees().into_iter().collect();
    assert!(trees.len() <= 4, "{} trees of six versions", trees.len());
}

#[test]
fn a_full_disk_at_the_first_start_is_said_and_the_next_start_works_when_there_is_room() {
    if !mounts() {
        return;
    }
    let disk = Tmpfs::new("size=12m", false);
    let bundle = App::tool().file("share/noise", noise(8_000_000, 12)).pack();
    let start = || bundle.command([""; 0]).env("KITBAG_STORE", disk.path().join("store")).run();
    let ballast = disk.path().join("ballast");
    fs::write(&ballast, vec![1; 6_000_000]).unwrap();
    let full = start().exits(125).prints_no(RAN).says("needs 8.");
    full.says(&format!("make room on the disk of {} (8.", disk.path().join("store").display()))
        .says("or set KITBAG_STORE to a folder of your own, on a disk that has it and allows exec");
    fs::remove_file(&ballast).unwrap();
    start().succeeds().prints(RAN);
    let work = disk.path().join("store/v1/work");
    assert_eq!(fs::read_dir(work).unwrap().count(), 0, "left behind");
}

#[test]
fn a_tool_that_is_stopped_while_it_unpacks_leaves_nothing_that_stays() {
    let bundle = App::tool().file("share/noise", noise(30_000_000, 13)).pack();
    let running = bundle.command([""; 0]).start();
    let work = bundle.sandbox.store().join("v1/work");
    eventually(Duration::from_secs(20), "it unpacks", || {
        fs::read_dir(&work).is_ok_and(|all| all.count() > 0)
    });
    let _ = kill(Pid::from_raw(running.id() as i32), Signal::SIGINT);
    let ended = running.ended();
    assert!(!ended.status.success() || ended.text().contains(RAN), "{ended}");
    bundle.run([""; 0]).succeeds().prints(RAN);
    assert_eq!(bundle.sandbox.work(), NOTHING);
}

#[test]
fn memory_while_unpacking_is_bounded() {
    if !tools(&["python3"]) {
        return;
    }
    let bundle = App::tool().file("share/noise", noise(150_000_000, 14)).pack();
    let script = "import os,sys,resource\npid=os.fork()\nif pid==0:\n os.execv(sys.argv[1],sys.argv[1:])\n\
                  os.waitpid(pid,0)\nprint(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)";
    let outcome = bundle.command(["--exit", "0"]).behind("python3", ["-c", script]).run().succeeds();
    let kilobytes: u64 = outcome.text().lines().last().unwrap().parse().unwrap();
    assert!(kilobytes <= 64_000, "{kilobytes} kB at most\n{outcome}");
}
