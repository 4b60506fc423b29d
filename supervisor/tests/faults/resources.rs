//! Processes and descriptors that the system does not give, and readers that have stalled.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::harness::{
    Folder, Scene, Supervisor, descriptors, eventually, has, is_root, kill, nobody, number,
};

/// Changes a limit of a running process, as prlimit(1) does. Its owner may, up to the hard limit.
fn limit(pid: i32, option: &str, owner: Option<u32>) {
    let mut command = Command::new("prlimit");
    if let Some(uid) = owner.filter(|_| is_root()) {
        command.uid(uid).gid(uid);
    }
    let status = command.args(["--pid", &pid.to_string(), option]).status().expect("prlimit");
    assert!(status.success(), "{option}");
}

pub fn a_fork_that_the_system_refuses_is_tried_again() {
    if !has("prlimit") {
        return println!("without prlimit (util-linux) this is left out");
    }
    let folder = Folder::new();
    // For root: the supervisor and one service. A user has more than that already, so that not even the first starts.
    let user = Some(nobody(2));
    let mut app = Scene::new("two").limited(&["--nproc=2:"], user, &folder.0).start();
    let sentence = app.says("could not be started: fork: ");
    assert!(sentence.contains("; starting again in 0."), "{sentence}");
    // Again, and no sooner than its delay.
    app.says("could not be started: fork: ");
    limit(app.pid(), "--nproc=4096:", user);
    app.prints("two | two");
    app.stops(Supervisor::Kitbag);
}

pub fn with_any_number_of_descriptors_it_works_or_says_why_not() {
    if !has("prlimit") {
        return println!("without prlimit (util-linux) this is left out");
    }
    let folder = Folder::new();
    let (mut refused, mut hampered, mut fine) = (0, 0, 0);
    // With 3, a program on shared libraries does not come to its first instruction.
    for most in 4..40 {
        let limits = [format!("--nofile={most}:{most}")];
        let mut app =
            Scene::new("two").limited(&limits.each_ref().map(String::as_str), None, &folder.0).start();
        let mut heard = String::new();
        eventually("it works or says why not", || {
            heard += &app.heard();
            let both = heard.contains("one | one") && heard.contains("two | two");
            both || heard.contains("could not be started")
                || heard.contains("cannot supervise")
                || app.is_over()
        });
        if heard.contains("could not be started") || heard.contains("one | one") {
            if heard.contains("could not be started") {
                hampered += 1;
                assert!(heard.contains("Too many open files"), "{most}: {heard}");
            } else {
                fine += 1;
            }
            app.stops(Supervisor::Kitbag);
        } else {
            refused += 1;
            let status = app.ended();
            heard += &app.rest().concat();
            assert!(status.code() == Some(1) || status.code() == Some(127), "{most}: {status} {heard}");
            assert!(heard.contains("Too many open files"), "{most}: {heard}");
            app.has_left_nothing();
        }
    }
    assert!(refused > 0 && hampered > 0 && fine > 0, "{refused} {hampered} {fine}");
}

pub fn descriptors_that_come_free_are_used() {
    if !has("prlimit") {
        return println!("without prlimit (util-linux) this is left out");
    }
    // The second starts when the first has been up for a second.
    let mut app = Scene::new("two-late").start();
    app.prints("one | one");
    limit(app.pid(), &format!("--nofile={}:", descriptors(app.pid())), None);
    for _ in 0..2 {
        let sentence = app.says("service two could not be started: pipes: Too many open files");
        assert!(sentence.contains("starting again in"), "{sentence}");
    }
    limit(app.pid(), "--nofile=1000:", None);
    app.prints("two | two");
    app.stops(Supervisor::Kitbag);
}

pub fn a_restart_needs_no_descriptor() {
    if !has("prlimit") {
        return println!("without prlimit (util-linux) this is left out");
    }
    let mut app = Scene::new("two").start();
    // They run beside each other: whichever says so first.
    let begun = [app.prints(" | "), app.prints(" | ")];
    let of = |name: &str| begun.iter().find(|line| line.contains(name)).expect("both begin");
    of("one | one");
    let mut pid = number(of("two | two"));
    limit(app.pid(), "--nofile=3:", None);
    for _ in 0..3 {
        kill(pid, "KILL");
        pid = number(&app.prints("two | two"));
    }
    app.stops(Supervisor::Kitbag);
}

pub fn every_service_that_cannot_start_says_its_own_reason() {
    let folder = Folder::new();
    let foreign = folder.0.join("foreign");
    fs::write(&foreign, "\u{7f}ELF of another machine").expect("it can be written");
    fs::set_permissions(&foreign, Permissions::from_mode(0o755)).expect("ours");
    let mut app = Scene::new("failing").file(&foreign).start();
    assert_eq!(app.ended().code(), Some(7));
    let said = app.rest().join("\n");
    for sentence in [
        "service missing could not be started: execute /no/such: No such file or directory",
        "service text could not be started: execute /etc/passwd: Permission denied",
        &format!(
            "service foreign could not be started: execute {}: Exec format error (for another kind of machine",
            foreign.display()
        ),
        "service arguments could not be started: arguments and environment: Invalid argument",
        "service folder could not be started: working directory /no/such: No such file or directory",
        "service limits could not be started: resource limits (cpu): Invalid argument",
        "service oom could not be started: oom score 2000: Invalid argument",
    ] {
        assert!(said.contains(sentence), "{sentence}\nis not in\n{said}");
    }
}

pub fn a_stalled_reader_of_standard_output_holds_no_restart_up() {
    let folder = Folder::new();
    let file = folder.0.join("pids");
    let mut app = Scene::new("flood").file(&file).unread().start();
    let started = || -> Vec<i32> {
        let text = fs::read_to_string(&file).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    };
    for nth in 1..=3 {
        eventually("the service runs", || started().len() == nth);
        kill(started()[nth - 1], "KILL");
    }
    app.signal("TERM");
    app.ends_with(0);
}
