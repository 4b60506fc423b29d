//! Processes as /proc shows them.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Whoever loses its parent comes to this process: nothing that is started escapes.
pub fn adopt() {
    nix::sys::prctl::set_child_subreaper(true).expect("a kernel with subreapers");
}

/// Every descendant, zombies too.
pub fn descendants(root: i32) -> Vec<i32> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for pid in pids() {
        if let Some(parent) = parent(pid) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let (mut found, mut todo) = (Vec::new(), vec![root]);
    while let Some(pid) = todo.pop() {
        let next = children.remove(&pid).unwrap_or_default();
        found.extend(&next);
        todo.extend(next);
    }
    found
}

fn pids() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").expect("/proc");
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

fn parent(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// True if its program is this file.
pub fn runs(pid: i32, program: &Path) -> bool {
    fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == program)
}

/// True if its program's file has this name, wherever it lies: one in a bundle's tree.
pub fn runs_named(pid: i32, name: &str) -> bool {
    fs::read_link(format!("/proc/{pid}/exe"))
        .is_ok_and(|exe| exe.file_name().is_some_and(|file| file == name))
}

/// Its share of memory, in bytes (proc(5), `smaps_rollup`).
pub fn pss(pid: i32) -> u64 {
    1024 * field(&format!("/proc/{pid}/smaps_rollup"), "Pss:")
}

/// The most memory that it had resident, in bytes.
pub fn peak(pid: i32) -> u64 {
    1024 * field(&format!("/proc/{pid}/status"), "VmHWM:")
}

/// How often it has gone to sleep.
pub fn switches(pid: i32) -> u64 {
    field(&format!("/proc/{pid}/status"), "voluntary_ctxt_switches:")
}

fn field(file: &str, name: &str) -> u64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or(0)
}

/// All tasks of the machine, zombies too.
pub fn tasks() -> usize {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let tasks = text.split_whitespace().nth(3).and_then(|word| word.split_once('/')?.1.parse().ok());
    tasks.unwrap_or(0)
}

/// The first child of a process with one thread, if it has any (proc(5), `children`).
pub fn first_child(pid: i32) -> Option<i32> {
    children_of(pid).split_whitespace().next()?.parse().ok()
}

/// How many children it has, ended ones too.
pub fn children(pid: i32) -> usize {
    children_of(pid).split_whitespace().count()
}

fn children_of(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default()
}

/// Reaps what has come to this process.
pub fn reap() {
    let ended = || waitpid(None, Some(WaitPidFlag::WNOHANG));
    while !matches!(ended(), Ok(WaitStatus::StillAlive) | Err(_)) {}
}

/// Kills every descendant of this process, parents first, until none is left.
pub fn kill_descendants() {
    let begin = Instant::now();
    loop {
        let all = descendants(std::process::id().cast_signed());
        if all.is_empty() || begin.elapsed() > Duration::from_secs(60) {
            return;
        }
        for pid in all {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        reap();
        std::thread::sleep(Duration::from_millis(5));
    }
}
