//! What services leave behind: orphans by the thousand, daemons, programs that fork while they are killed.

use std::thread;
use std::time::{Duration, Instant};

use crate::harness::{
    Folder, Running, Scene, Supervisor, alive, children, eventually, has, kill, marked, nobody, number,
    state, zombies,
};

/// Starts `count` processes in a group of their own whose parent goes at once, and waits until all have come to the
/// supervisor. Each waits for a line that never comes. Returns their group.
fn orphans(supervisor: Supervisor, count: usize, folder: &Folder) -> (Running, i32) {
    let pipe = folder.0.join("pipe");
    // Fifty of each parent: a shell looks through all its jobs whenever it starts one.
    let parents = count / 50;
    let script = format!(
        "mkfifo {0}; exec 9<>{0}
        setsid sh -c 'echo group $$; i=0; while [ $i -lt {parents} ]; do i=$((i+1))
            (j=0; while [ $j -lt 50 ]; do read -r _ <&9 & j=$((j+1)); done); done' &
        wait; exec 9>&-; echo made; exec sleep 1000",
        pipe.display()
    );
    let mut app = supervisor.of_script(&script).start();
    let group = number(&app.prints("group"));
    app.prints("made");
    let pid = app.pid();
    eventually("all have come to the supervisor", || children(pid).len() == count + 1);
    (app, group)
}

pub fn orphans_come_to_the_supervisor_and_are_reaped() {
    for supervisor in Supervisor::all() {
        let folder = Folder::new();
        let (mut app, group) = orphans(supervisor, 50, &folder);
        kill(-group, "TERM");
        let pid = app.pid();
        eventually("one child is left, the first", || children(pid).len() == 1);
        app.stops(supervisor);
    }
}

/// 2,000 of them, or as many as `KITBAG_TEST_ORPHANS` says: 20,000 take a machine of its own, and most of its numbers for
/// processes.
pub fn thousands_of_orphans_that_die_at_once_are_reaped() {
    let count = std::env::var("KITBAG_TEST_ORPHANS").map_or(2_000, |text| text.parse().expect("a number"));
    for supervisor in Supervisor::all() {
        let folder = Folder::new();
        let (mut app, group) = orphans(supervisor, count, &folder);
        let (pid, began) = (app.pid(), Instant::now());
        kill(-group, "KILL");
        eventually("one child is left, the first", || children(pid).len() == 1);
        println!("{supervisor:?}: {count} orphans were reaped after {:?}", began.elapsed());
        app.stops(supervisor);
    }
}

pub fn thousands_of_orphans_that_live_are_swept_at_the_stop() {
    let folder = Folder::new();
    let (mut app, _) = orphans(Supervisor::Kitbag, 5_000, &folder);
    let began = Instant::now();
    app.signal("TERM");
    app.ends_with(0);
    println!("5000 orphans were ended after {:?}", began.elapsed());
}

pub fn a_stream_of_orphans_never_makes_a_hundred_zombies() {
    // Sessions share processors evenly (sched(7), autogroups). The supervisor has one of its own, as after `start`, and
    // whoever makes orphans another: otherwise it is the scheduler that this measures.
    let stream = "setsid sh -c 'while :; do (: & : & : & :) & wait; done' & echo up $$; exec sleep 1000";
    for supervisor in Supervisor::all() {
        let mut app = supervisor.of_script(stream).in_a_session().start();
        let (first, pid) = (number(&app.prints("up")), app.pid());
        // Who has been off the processor for other programs' sake gets another try.
        let most = (0..3).map(|_| most_zombies(pid)).find(|most| *most <= 100);
        println!("{supervisor:?}: at most {most:?} zombies");
        assert!(most.is_some(), "{supervisor:?}");
        if supervisor == Supervisor::Tini {
            // It ends its own child, and leaves the others to whoever stops the container.
            let others = || marked(&app.mark).into_iter().filter(|left| ![pid, first].contains(left));
            eventually("the stream is over", || others().map(|left| kill(left, "KILL")).count() == 0);
        }
        app.stops(supervisor);
    }
}

/// Children that have ended and are not reaped: the most that were seen at once in two seconds.
fn most_zombies(supervisor: i32) -> usize {
    let (began, mut most) = (Instant::now(), 0);
    while began.elapsed() < Duration::from_secs(2) {
        most = zombies(supervisor).max(most);
        thread::sleep(Duration::from_millis(4));
    }
    most
}

pub fn a_daemon_in_a_session_of_its_own_is_ended_with_the_bundle() {
    // Two forks and a session, as daemon(7) has it; nothing of its parent's is open, and its folder is another.
    let daemon = "cd /; exec </dev/null 2>/dev/null; (sh -c \"echo daemon \\$\\$; exec >/dev/null; exec sleep 1000\" &)";
    let script = format!("setsid sh -c '{daemon}' & wait; echo parent gone; exec sleep 1000");
    for supervisor in Supervisor::all() {
        let mut app = supervisor.of_script(&script).start();
        let daemon = number(&app.prints("daemon"));
        let pid = app.pid();
        eventually("the supervisor is its parent", || state(daemon).is_some_and(|(_, parent)| parent == pid));
        match supervisor {
            Supervisor::Kitbag => {
                app.signal("TERM");
                app.ends_with(0);
                assert!(!alive(daemon));
            }
            Supervisor::Tini => {
                kill(daemon, "KILL");
                eventually("it is reaped", || !alive(daemon));
                // Whoever started it may be on its way out still, and tini does not wait for that.
                eventually("tini and its child are left", || marked(&app.mark).len() == 2);
                app.stops(supervisor);
            }
        }
    }
}

/// Stops a scene whose script forks on and on, as a user who may have so many processes.
fn bomb(script: &str, most: u32, user: u32) {
    if !has("perl") || !has("prlimit") || !crate::harness::is_root() {
        println!("this needs perl, prlimit and root: a limit on processes counts all of a user's");
        return;
    }
    let folder = Folder::new();
    let limit = format!("--nproc={most}:{most}");
    let mut app = Scene::new("stubborn").argument(script).limited(&[&limit], Some(user), &folder.0).start();
    app.prints("up");
    thread::sleep(Duration::from_millis(300)); // it forks; how long does not matter
    let began = Instant::now();
    app.signal("TERM");
    app.ends_with(0);
    println!("{most} processes that fork were gone after {:?}", began.elapsed());
    let said = app.rest().join("\n");
    assert!(!said.contains("did not end after SIGKILL"), "{said}");
}

pub fn a_program_that_forks_while_it_is_killed_is_gone() {
    // In each process: a child, half of them in sessions of their own, that does the same. All are deaf to SIGTERM.
    let script =
        "exec perl -e '$SIG{TERM} = \"IGNORE\"; $SIG{CHLD} = \"IGNORE\"; use POSIX; $| = 1; print \"up\\n\";
        while (1) { select undef, undef, undef, 0.005; my $pid = fork; next if !defined $pid;
        if (!$pid) { POSIX::setsid() if rand() < 0.5 } }'";
    bomb(script, 60, nobody(0));
}

pub fn a_chain_of_processes_that_fork_away_from_each_signal_is_gone() {
    // Each makes its successor in another session and goes: no process lives for long enough to be looked up twice.
    let script = "perl -e '$SIG{TERM} = \"IGNORE\"; use POSIX; $| = 1; print \"up\\n\";
        while (1) { my $pid = fork; exit if $pid; POSIX::setsid() if defined $pid }' & exec sleep 1000";
    bomb(script, 60, nobody(1));
}

pub fn busy_bombs_with_a_session_for_each_process_are_gone() {
    // Eight at once, which do nothing but fork. Each process is a session, and so has its share of the processors: the
    // supervisor's is one of hundreds. Half of all end at once, so that there is always room for others.
    let script = "i=0; while [ $i -lt 8 ]; do i=$((i+1)); setsid perl -e '$SIG{TERM} = \"IGNORE\"; $SIG{CHLD} = \"IGNORE\";
        use POSIX; while (1) { my $pid = fork; next if $pid; if (defined $pid) { POSIX::setsid(); exit if rand() < 0.5 } }' &
        done; echo up; exec sleep 1000";
    bomb(script, 400, nobody(2));
}
