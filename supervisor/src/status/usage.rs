//! What processes use, from proc(5). Where there is no /proc, nothing is known.

use std::fs;

use crate::state::Ms;
use crate::sys::{self, Pid};

/// What a process uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Resident memory in bytes, shared pages counted in full.
    pub memory: u64,
    /// Processor time, that of children it has waited for included.
    pub cpu_ms: Ms,
}

/// What we need of proc_pid_stat(5).
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    session: Pid,
    /// A signal has stopped it.
    is_halted: bool,
    /// When it was started, in ticks since the machine was.
    start: u64,
    usage: Usage,
}

/// What one process uses; `None` if it is no more, or if there is no /proc.
pub fn of_process(pid: Pid) -> Option<Usage> {
    stat(pid).map(|stat| stat.usage)
}

/// When a process was started, in clock ticks since the machine was (proc_pid_stat(5), field 22): together with its id,
/// this names it for as long as the machine runs. `None` if it is no more, or if there is no /proc.
pub fn start_of_process(pid: Pid) -> Option<u64> {
    stat(pid).map(|stat| stat.start)
}

/// The same of a process that was started after `before` ([`sys::boot_ticks`]). If the clock has not ticked since, that is
/// the answer: looking into /proc costs both the one who looks and whoever reaps the process.
pub fn start_since(pid: Pid, before: Option<u64>) -> Option<u64> {
    before.filter(|_| before == sys::boot_ticks()).or_else(|| start_of_process(pid))
}

/// How soon this process is chosen when memory is short (proc_pid_oom_score_adj(5)); `None` where there is no /proc.
pub fn own_oom_score() -> Option<i32> {
    fs::read_to_string("/proc/self/oom_score_adj").ok()?.trim().parse().ok()
}

/// What the processes of a session come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Session {
    /// Memory in bytes: of each process its proportional share (PSS) where /proc tells it to us, its resident memory
    /// otherwise.
    pub memory: u64,
    /// One of them that a signal has stopped (SIGSTOP of signal(7)): it runs when it gets SIGCONT.
    pub halted: Option<Pid>,
}

/// Sessions by their ids, in that order. Looks at every process of the machine: for a client, which may take its time.
pub fn of_sessions(sessions: &[Pid]) -> Vec<Session> {
    let mut found = vec![Session::default(); sessions.len()];
    let names = fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.file_name());
    for pid in names.filter_map(|name| name.to_str()?.parse::<Pid>().ok()) {
        let Some(stat) = stat(pid) else { continue };
        if let Some(at) = sessions.iter().position(|session| *session == stat.session) {
            found[at].memory += share(pid).unwrap_or(stat.usage.memory);
            found[at].halted = found[at].halted.or(stat.is_halted.then_some(pid));
        }
    }
    found
}

/// Most processes that are looked for, and most threads that are asked for their children.
const MOST: usize = 1_000;
const MOST_THREADS: usize = 4_000;

/// A process and all that descends from it and has not been orphaned, itself first; as far as /proc tells
/// (`CONFIG_PROC_CHILDREN`).
pub fn descent(pid: Pid) -> Vec<Pid> {
    let (mut all, mut threads_left) = (vec![pid], MOST_THREADS);
    let mut next = 0;
    while let Some(&parent) = all.get(next).filter(|_| all.len() < MOST) {
        let threads = fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten();
        for thread in threads.take(threads_left) {
            threads_left -= 1;
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            all.extend(children.split_ascii_whitespace().filter_map(|pid| pid.parse::<Pid>().ok()));
            all.truncate(MOST);
        }
        next += 1;
    }
    all
}

fn stat(pid: Pid) -> Option<Stat> {
    parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The name in parentheses may hold anything; what follows it is numbers.
fn parse(text: &str) -> Option<Stat> {
    let fields: Vec<&str> = text.rsplit_once(") ")?.1.split_ascii_whitespace().collect();
    // Counted from the third field of the manual, the state.
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    let ticks = (14..=17).map(number).sum::<Option<u64>>()?;
    let memory = number(24)?.saturating_mul(sys::page_size());
    Some(Stat {
        session: fields.get(6 - 3)?.parse().ok()?,
        is_halted: fields.first() == Some(&"T"),
        start: number(22)?,
        usage: Usage { memory, cpu_ms: ticks.saturating_mul(1000) / sys::ticks_per_second() },
    })
}

/// The proportional share of a process, in bytes. Needs the rights to trace it.
fn share(pid: Pid) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_anything_in_it_does_not_shift_the_fields() {
        let text = "7 (a) b (c) S 1 7 6 0 -1 4 0 0 0 0 100 50 25 25 20 0 1 0 9 99 3 18446744073709551615 1";
        let stat = parse(text).expect("it is whole");
        assert_eq!((stat.session, stat.start, stat.is_halted), (6, 9, false));
        assert!(parse(&text.replace(") S", ") T")).is_some_and(|stat| stat.is_halted));
        assert_eq!(stat.usage.cpu_ms, 200_000 / sys::ticks_per_second());
        assert_eq!(stat.usage.memory, 3 * sys::page_size());
        assert!(parse("7 (a) S 1").is_none() && parse("").is_none());
    }

    #[test]
    fn a_start_is_known_without_looking_or_by_looking() {
        for _ in 0..20 {
            let before = sys::boot_ticks();
            let mut child = std::process::Command::new("/bin/true").spawn().expect("it starts");
            let pid = child.id().cast_signed();
            let known = (start_since(pid, before), start_since(pid, Some(0)));
            child.wait().expect("it ends");
            assert!(known.0.is_some() && known.0 == known.1, "{known:?}");
        }
    }

    #[test]
    fn this_process_uses_memory() {
        let own = std::process::id().cast_signed();
        assert!(of_process(own).is_some_and(|usage| usage.memory > 100_000));
        let session = stat(own).expect("it runs").session;
        assert!(of_sessions(&[session, -1])[0].memory > 100_000);
    }
}
