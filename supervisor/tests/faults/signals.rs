//! Signals to the supervisor at every moment, and services that a signal has stopped.

use std::time::{Duration, Instant};
use std::{fs, thread};

use crate::harness::{
    Folder, Lcg, Running, Scene, Supervisor, alive, children, died_of, eventually, kill, number, state,
};

/// Signals that end who does nothing about them, as a supervisor does before it is one.
const ENDING: [&str; 5] = ["TERM", "INT", "HUP", "QUIT", "USR1"];

pub fn signals_at_every_moment_of_start_and_stop_end_it_well() {
    // A dozen at a time: each waits most of the time.
    let early: usize = thread::scope(|scope| {
        let rounds = |first: u64| (first..100).step_by(12).filter(|round| storm(*round)).count();
        let threads: Vec<_> = (0..12).map(|first| scope.spawn(move || rounds(first))).collect();
        threads.into_iter().map(|thread| thread.join().expect("each round passes")).sum()
    });
    assert!(early < 50, "{early} of 100 rounds were over before there was a supervisor: they show nothing");
}

/// One round: up to ten signals within 300 ms after the launch, then a stop. True if the process was ended before it was
/// a supervisor.
fn storm(round: u64) -> bool {
    let mut random = Lcg(round);
    for _ in 0..3 {
        random.below(2);
    }
    let mut app = Scene::new("moments").start();
    let began = Instant::now();
    let mut moments: Vec<u64> = (0..random.below(11)).map(|_| random.below(300) as u64).collect();
    moments.sort_unstable();
    for moment in moments {
        thread::sleep(Duration::from_millis(moment).saturating_sub(began.elapsed()));
        app.signal(["TERM", "INT", "HUP", "QUIT", "CHLD", "USR1", "CONT", "WINCH"][random.below(8)]);
    }
    app.signal("TERM");
    let status = app.ended();
    let early = died_of(status, &ENDING);
    assert!(early || status.code() == Some(0), "round {round}: {status}: {:?}", app.rest());
    app.has_left_nothing();
    early
}

pub fn a_storm_of_sigchld_holds_nothing_up() {
    for supervisor in Supervisor::all() {
        let mut app = supervisor.of_script("echo up $$; exec sleep 1000").start();
        let pid = number(&app.prints("up"));
        for _ in 0..100_000 {
            app.signal("CHLD");
        }
        assert!(alive(pid), "{supervisor:?}");
        app.stops(supervisor);
    }
}

pub fn a_stop_asked_for_by_signal_is_passed_on() {
    for supervisor in Supervisor::all() {
        let script = "trap 'echo got it; exit 143' TERM; echo up; while :; do sleep 0.02; done";
        let mut app = supervisor.of_script(script).start();
        app.prints("up");
        app.signal("TERM");
        app.prints("got it");
        app.ended();
        app.has_left_nothing();
    }
}

/// Stops the process for which `up` stands, waits for another one, and says what was said of the first.
fn hung(app: &mut Running, said: &str) -> String {
    let first = number(&app.prints("up"));
    kill(first, "STOP");
    eventually("it is stopped", || matches!(state(first), Some(('T', _)) | None));
    let sentence = app.says(said);
    assert_ne!(number(&app.prints("up")), first);
    eventually("the first one is gone", || !alive(first));
    sentence
}

pub fn a_stopped_service_is_found_by_its_health_check_and_started_again() {
    let folder = Folder::new();
    let file = folder.0.join("alive");
    let mut app = Scene::new("healthy").argument(file.to_str().expect("text")).start();
    let sentence = hung(&mut app, "ending it");
    assert!(sentence.contains("web failed 2 checks in a row: its check took too long"), "{sentence}");
    app.stops(Supervisor::Kitbag);
    assert!(fs::exists(folder.0.as_path()).expect("ours"));
}

pub fn a_stopped_service_with_a_watchdog_is_started_again() {
    let mut app = Scene::new("watchdog").start();
    let sentence = hung(&mut app, "ending it");
    assert!(sentence.contains("web gave no sign of life for 1.0 s"), "{sentence}");
    app.stops(Supervisor::Kitbag);
}

pub fn a_stopped_service_that_ignores_term_is_killed() {
    let mut app =
        Scene::new("stubborn").argument("trap '' TERM; echo up $$; kill -STOP $$; sleep 1000").start();
    let pid = number(&app.prints("up"));
    eventually("it is stopped", || matches!(state(pid), Some(('T', _))));
    // What it has started meanwhile is stopped as well.
    children(pid).into_iter().for_each(|child| kill(child, "STOP"));
    app.signal("TERM");
    app.says("web did not stop within 0.3 s; sending SIGKILL");
    app.ends_with(0);
}
