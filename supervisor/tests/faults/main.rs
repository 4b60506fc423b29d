//! What a supervisor has to survive: resources that end, storms of signals and of children, programs that do not want
//! to end. Each test runs this very test program again as the supervisor of a named scene and looks at it from outside;
//! tests of signals and reaping run against `tini -s` too, which shows that it is not the tests that are peculiar.
#![allow(missing_docs)]

mod crowds;
mod harness;
mod readiness;
mod reaping;
mod resources;
mod scenes;
mod signals;

use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use harness::SCENE;

/// A test that is missing here is an unused function to the compiler.
macro_rules! tests {
    ($($module:ident::$name:ident,)*) => { &[$((stringify!($name), $module::$name as fn())),*] };
}

const TESTS: &[(&str, fn())] = tests![
    signals::signals_at_every_moment_of_start_and_stop_end_it_well,
    signals::a_storm_of_sigchld_holds_nothing_up,
    signals::a_stop_asked_for_by_signal_is_passed_on,
    signals::a_stopped_service_is_found_by_its_health_check_and_started_again,
    signals::a_stopped_service_with_a_watchdog_is_started_again,
    signals::a_stopped_service_that_ignores_term_is_killed,
    reaping::orphans_come_to_the_supervisor_and_are_reaped,
    reaping::a_daemon_in_a_session_of_its_own_is_ended_with_the_bundle,
    readiness::a_newline_is_readiness_and_a_silent_end_of_the_pipe_is_not,
    resources::a_fork_that_the_system_refuses_is_tried_again,
    resources::with_any_number_of_descriptors_it_works_or_says_why_not,
    resources::descriptors_that_come_free_are_used,
    resources::a_restart_needs_no_descriptor,
    resources::every_service_that_cannot_start_says_its_own_reason,
    resources::a_stalled_reader_of_standard_output_holds_no_restart_up,
];

/// These want the machine for themselves: what they measure depends on who else runs.
const ALONE: &[(&str, fn())] = tests![
    reaping::a_program_that_forks_while_it_is_killed_is_gone,
    reaping::a_chain_of_processes_that_fork_away_from_each_signal_is_gone,
    reaping::busy_bombs_with_a_session_for_each_process_are_gone,
    crowds::a_thousand_services_start_and_a_hundred_come_back_and_all_stop,
    crowds::a_crash_loop_of_many_takes_bounded_time_and_memory,
    reaping::thousands_of_orphans_that_die_at_once_are_reaped,
    reaping::thousands_of_orphans_that_live_are_swept_at_the_stop,
    reaping::a_stream_of_orphans_never_makes_a_hundred_zombies,
];

/// Most tests wait most of the time.
const AT_ONCE: usize = 4;

/// The supervisor, if the environment asks for it; otherwise the tests whose names contain an argument.
fn main() -> ExitCode {
    if let Ok(scene) = std::env::var(SCENE) {
        return scenes::supervise(&scene).into();
    }
    let wanted: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let is_wanted =
        |(name, _): &&(&str, fn())| wanted.is_empty() || wanted.iter().any(|word| name.contains(word));
    let mut failed = run(TESTS.iter().filter(is_wanted).collect(), AT_ONCE);
    {
        let _turn = harness::turn();
        failed += run(ALONE.iter().filter(is_wanted).collect(), 1);
    }
    println!("{failed} tests failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs tests, so many beside each other, and says how many have failed.
fn run(tests: Vec<&(&str, fn())>, at_once: usize) -> usize {
    let (next, failed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                while let Some((name, test)) = tests.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let began = Instant::now();
                    let passed = std::panic::catch_unwind(test).is_ok();
                    let result = if passed { "ok" } else { "FAILED" };
                    println!("test {name} ... {result} ({:.1} s)", began.elapsed().as_secs_f32());
                    failed.fetch_add(usize::from(!passed), Ordering::Relaxed);
                }
            });
        }
    });
    failed.into_inner()
}
