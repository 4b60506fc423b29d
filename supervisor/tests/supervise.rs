//! The supervisor with real processes, real signals and real pipes. Each test runs this very test program again as
//! the supervisor (it is told so by an environment variable) and looks at it from outside.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use kitbag_format::exit;
use kitbag_format::manifest::Restart;
use kitbag_supervisor::supervise::{Bundle, ProgramSpec, ServiceSpec, signal_number, supervise};

#[path = "supervise/descent.rs"]
mod descent;
#[path = "common/numbers.rs"]
mod numbers;
#[path = "supervise/whole.rs"]
mod whole;

/// Long enough for a loaded machine; a test that needs it has failed.
const DEADLINE: Duration = Duration::from_secs(20);
/// Carries the services, one a line, to the program that is run as the supervisor.
const SERVICES: &str = "KITBAG_TEST_SERVICES";

/// A service as a test writes it.
struct Svc {
    name: &'static str,
    program: String,
    script: String,
    restart: &'static str,
    stop: &'static str,
    timeout_ms: u64,
    cwd: &'static str,
}

/// A service that runs `script` in /bin/sh.
fn sh(name: &'static str, script: &str) -> Svc {
    Svc {
        name,
        program: "/bin/sh".into(),
        script: script.into(),
        restart: "never",
        stop: "SIGTERM",
        timeout_ms: 10_000,
        cwd: "/",
    }
}

impl Svc {
    fn restart(self, restart: &'static str) -> Self {
        Self { restart, ..self }
    }
    fn timeout_ms(self, timeout_ms: u64) -> Self {
        Self { timeout_ms, ..self }
    }
    fn line(&self) -> String {
        let timeout = self.timeout_ms.to_string();
        [self.name, &self.program, &self.script, self.restart, self.stop, &timeout, self.cwd].join("\x1f")
    }
    fn read(line: &str) -> ServiceSpec {
        let fields: Vec<&str> = line.split('\x1f').collect();
        let [name, program, script, restart, stop, timeout, cwd] = fields[..] else { panic!("{line:?}") };
        let program = ProgramSpec {
            path: Path::new(program).into(),
            argv: [program, "-c", script].map(OsString::from).into(),
            env: vec![("PATH".into(), "/usr/bin:/bin".into())].into(),
            cwd: Path::new(cwd).into(),
        };
        let mut spec = ServiceSpec::new(name, program);
        spec.rules_mut().restart = match restart {
            "always" => Restart::Always,
            "on-failure" => Restart::OnFailure,
            _ => Restart::Never,
        };
        spec.rules_mut().stop_timeout = timeout.parse().expect("milliseconds");
        spec.stop_signal = signal_number(stop).expect("a signal's name");
        spec
    }
}

/// The supervisor, if the environment asks for it; otherwise the tests whose names contain an argument.
fn main() -> ExitCode {
    if let Ok(words) = std::env::var(whole::ACTS) {
        return whole::act(&words);
    }
    if let Ok(manifest) = std::env::var(whole::MANIFEST) {
        return whole::run(&manifest).into();
    }
    if let Ok(services) = std::env::var(SERVICES) {
        let services = services.split('\x1e').filter(|line| !line.is_empty()).map(Svc::read).collect();
        return supervise(Bundle { name: "app".into(), services, ..Bundle::default() }).into();
    }
    let wanted: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let is_wanted =
        |(name, _): &&(&str, fn())| wanted.is_empty() || wanted.iter().any(|word| name.contains(word));
    let tests: Vec<_> = TESTS.iter().filter(is_wanted).collect();
    let (next, failed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some((name, test)) = tests.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let passed = std::panic::catch_unwind(test).is_ok();
                    println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
                    failed.fetch_add(usize::from(!passed), Ordering::Relaxed);
                }
            });
        }
    });
    let failed = failed.into_inner();
    println!("{} tests passed, {failed} failed", tests.len() - failed);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A test that is missing here is an unused function to the compiler.
macro_rules! tests {
    ($($($path:ident)::+,)*) => { &[$((stringify!($($path)::+), $($path)::+ as fn())),*] };
}

const TESTS: &[(&str, fn())] = tests![
    output_comes_with_the_services_names_and_an_end_of_all_with_their_result,
    a_service_that_fails_for_good_is_the_bundles_result,
    no_service_is_no_failure,
    a_crash_loop_slows_down,
    on_failure_starts_again_until_it_ends_well,
    a_service_killed_by_a_signal_comes_back,
    a_real_time_signal_ends_a_service_like_any_other,
    a_program_that_is_not_there_is_named_and_tried_again,
    every_stage_of_a_start_says_what_failed,
    a_service_starts_clean,
    a_stop_is_asked_with_the_services_own_signal,
    a_service_that_ignores_term_is_killed_when_its_time_is_over,
    a_second_request_kills_at_once,
    a_stop_during_the_delay_is_immediate,
    a_stopped_process_stops_too,
    a_stop_ends_with_the_group_not_with_its_leader,
    a_member_of_the_group_that_ignores_term_is_killed,
    a_daemon_left_behind_is_swept,
    a_killed_supervisor_takes_its_services_along,
    a_hangup_stops_and_user_signals_do_nothing,
    an_ignored_hangup_stays_ignored,
    a_thousand_orphans_leave_no_zombie,
    a_flood_into_a_slow_reader_is_complete_and_needs_little_memory,
    a_reader_that_has_stalled_holds_no_stop_up,
    a_closed_standard_output_is_said_once_and_services_go_on,
    closed_standard_files_do_not_end_up_in_a_service,
    whole::orders::a_start_while_what_it_needs_stops_brings_both_back,
    whole::orders::a_restart_by_name_during_a_restart_of_all_leaves_nobody_behind,
    whole::orders::what_is_restarted_after_its_need_was_to_stop_keeps_it,
    whole::orders::two_restarts_of_all_at_once_forget_no_task,
    whole::orders::what_ends_by_itself_while_it_waits_to_be_restarted_comes_back_once,
    whole::orders::a_start_of_what_is_just_failing_fails_nobody_who_waits_for_it,
    whole::orders::a_run_of_a_task_that_is_restarted_is_no_second_one,
    whole::orders::what_is_restarted_with_all_is_restarted_whatever_is_asked_for_beside_it,
    whole::orders::who_is_wanted_again_is_not_stopped_by_an_earlier_stop,
    whole::orders::a_stop_of_a_task_that_is_done_takes_nobody_along,
    whole::orders::a_task_that_was_stopped_is_not_started_by_its_schedule_until_somebody_starts_it,
    whole::orders::a_restart_of_what_was_stopped_starts_what_it_needs,
    whole::orders::an_instance_cannot_be_scaled,
    whole::orders::who_was_scaled_away_is_not_stopped_again,
    whole::orders::a_signal_is_for_the_main_process_and_a_pause_for_all,
    whole::orders::a_start_that_fails_tells_why_and_not_that_its_descriptor_was_closed,
    whole::orders::what_was_said_in_time_is_heard_after_a_stall,
    whole::orders::a_long_row_of_needs_is_restarted_in_a_moment,
    whole::orders::whatever_was_asked_before_what_is_asked_last_comes_about,
    whole::services_start_after_what_they_need_and_stop_before_it,
    whole::what_needs_a_service_that_gives_up_fails_with_the_reason,
    whole::a_stop_takes_what_needs_the_service_along_and_a_start_what_it_needs,
    whole::a_restart_of_all_goes_by_needs_both_ways,
    whole::a_restart_of_all_runs_a_task_of_the_start_again_if_it_has_failed,
    whole::a_readiness_descriptor_that_closes_silently_is_not_ready_and_a_late_service_fails,
    whole::a_run_has_no_reasons_of_the_one_before,
    whole::a_service_tells_of_itself_by_sd_notify,
    whole::a_start_that_asks_for_more_time_gets_it,
    whole::a_port_that_accepts_shows_that_a_service_is_ready,
    whole::a_command_shows_that_a_service_is_ready_and_one_that_hangs_does_not,
    whole::a_service_that_fails_its_checks_is_ended_and_started_again,
    whole::what_a_failing_check_says_is_told,
    whole::a_check_that_hangs_is_a_failed_one,
    whole::a_silent_service_is_ended_by_its_watchdog,
    whole::instances_are_numbered_and_scaled_while_they_run,
    whole::a_task_runs_on_its_interval_and_when_somebody_asks_and_its_result_is_kept,
    whole::a_task_that_is_due_while_it_runs_is_left_out_queued_or_replaced,
    whole::a_task_that_takes_too_long_is_ended,
    whole::a_missed_run_is_caught_up,
    whole::a_stop_by_hand_is_immediate_in_every_state,
    whole::restarts_are_one_at_a_time_and_a_stop_beats_them,
    whole::a_signal_reaches_the_service,
    descent::daemons_of_every_kind_end_with_their_service_alone,
    descent::the_next_run_begins_when_the_daemons_of_the_last_are_gone,
    descent::a_daemon_that_ignores_its_signal_is_killed_when_the_time_is_over,
    descent::a_daemons_group_is_asked_once,
    descent::a_task_leaves_nothing_behind,
    descent::without_its_mark_a_daemon_is_swept_with_the_bundle,
    descent::a_daemon_that_its_service_names_is_the_services_process,
    descent::a_successor_takes_its_predecessors_place_when_that_one_ends,
    descent::a_stranger_is_nobodys_main_process,
    descent::whatever_is_left_behind_ends_with_its_service_alone,
    whole::a_snapshot_of_units_in_many_states_says_what_status_says,
    whole::a_thousand_services_start_and_stop,
    whole::a_service_comes_back_at_once,
    whole::where_descriptors_are_short_services_wait_and_come_when_there_are_some,
    whole::apart::a_service_binds_its_own_port_and_no_other,
    whole::apart::without_landlock_it_is_said_once_and_strays_are_reported,
    whole::apart::a_check_is_limited_as_its_service_is,
    whole::apart::a_limited_service_writes_to_its_state_and_has_its_temporary_files_there,
];

/// Most tests wait most of the time.
const AT_ONCE: usize = 4;

struct Running {
    child: Child,
    stdout: Option<Receiver<String>>,
    stderr: Receiver<String>,
    /// Everything that has been seen, for a failing test's message.
    seen: Vec<String>,
}

fn command(services: &[Svc]) -> Command {
    let me = std::env::current_exe().expect("a test knows its program");
    let mut command = Command::new(me);
    let lines: Vec<String> = services.iter().map(Svc::line).collect();
    command.env(SERVICES, lines.join("\x1e")).stdin(Stdio::null()).stderr(Stdio::piped());
    command
}

fn lines(stream: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
            if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                return;
            }
        }
    });
    receiver
}

fn start(services: &[Svc]) -> Running {
    start_command(command(services))
}

fn start_command(mut command: Command) -> Running {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the supervisor starts");
    let stdout = child.stdout.take().map(lines);
    let stderr = lines(child.stderr.take().expect("piped"));
    Running { child, stdout, stderr, seen: Vec::new() }
}

impl Running {
    fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    fn signal(&self, name: &str) {
        kill(self.pid(), name);
    }

    /// Waits for a line of standard output, or of standard error, that contains `text`.
    fn line_of(&mut self, stderr: bool, text: &str) -> String {
        let until = Instant::now() + DEADLINE;
        loop {
            let source = if stderr { &self.stderr } else { self.stdout.as_ref().expect("stdout is piped") };
            match source.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if line.contains(text) {
                        return line;
                    }
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    panic!("no line with {text:?} (stderr: {stderr}); seen: {:#?}", self.seen)
                }
            }
        }
    }

    fn prints(&mut self, text: &str) -> String {
        self.line_of(false, text)
    }

    fn says(&mut self, text: &str) -> String {
        self.line_of(true, text)
    }

    fn status(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("the supervisor ends", || {
            status = self.child.try_wait().expect("our child");
            status.is_some()
        });
        status.expect("it has ended")
    }

    fn ends_with(&mut self, code: u8) {
        let status = self.status();
        let rest: Vec<String> = self.stderr.iter().collect();
        assert_eq!(status.code(), Some(i32::from(code)), "{status}; seen: {:#?}, then {rest:#?}", self.seen);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // TERM twice, SAME_REQUEST apart, ends everything; a supervisor that cannot do that is killed.
        for _ in 0..60 {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            self.signal("TERM");
            thread::sleep(Duration::from_millis(120));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn kill(pid: i32, name: &str) {
    let _ =
        Command::new("/bin/kill").args(["-s", name, "--", &pid.to_string()]).stderr(Stdio::null()).status();
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < until, "not in time: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// The number after the last blank.
fn number(line: &str) -> i32 {
    line.rsplit(' ').next().and_then(|word| word.trim().parse().ok()).unwrap_or_else(|| panic!("{line:?}"))
}

fn alive(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// State letter, parent and group of each process.
fn processes() -> Vec<(i32, char, i32)> {
    let of = |pid: i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let mut fields = stat.rsplit_once(") ")?.1.split(' ');
        Some((pid, fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
    };
    let entries = fs::read_dir("/proc").expect("a /proc").filter_map(Result::ok);
    entries.filter_map(|entry| of(entry.file_name().to_str()?.parse().ok()?)).collect()
}

/// Kilobytes, of a field of /proc/PID/status.
fn memory(pid: i32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap_or("0 0 kB");
    line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or(0)
}

// --- Running and ending ---

fn output_comes_with_the_services_names_and_an_end_of_all_with_their_result() {
    let mut app = start(&[sh("web", "echo hello; echo oops >&2; printf partial"), sh("worker", "exit 0")]);
    let mut printed: Vec<String> = app.stdout.take().expect("piped").iter().collect();
    printed.retain(|line| line.contains('|'));
    printed.sort();
    assert_eq!(printed, ["web    | hello", "web    | oops", "web    | partial"]);
    app.ends_with(exit::OK);
}

fn a_service_that_fails_for_good_is_the_bundles_result() {
    let mut app = start(&[sh("bad", "exit 3"), sh("good", "exit 0")]);
    assert!(app.says("service bad").contains("exited with status 3 after 0."));
    app.ends_with(exit::SERVICE_FAILED);
}

fn no_service_is_no_failure() {
    start(&[]).ends_with(exit::OK);
}

fn a_crash_loop_slows_down() {
    let mut app = start(&[sh("web", "exit 3").restart("always")]);
    assert!(app.says("service web exited with status 3").ends_with("starting again at once"));
    let delays: Vec<f64> = (0..4)
        .map(|_| {
            let line = app.says("service web exited with status 3");
            let text = line.rsplit_once("starting again in ").expect("a delay").1;
            text.trim_end_matches(" s").parse().expect("seconds")
        })
        .collect();
    assert!(delays[0] <= 0.2 && delays.windows(2).all(|pair| pair[0] < pair[1]), "{delays:?}");
    app.signal("TERM");
    app.ends_with(exit::OK);
}

fn on_failure_starts_again_until_it_ends_well() {
    let mark = std::env::temp_dir().join(format!("kitbag-on-failure-{}", std::process::id()));
    let script = format!("test -e {0} && exit 0; : > {0}; exit 1", mark.display());
    let mut app = start(&[sh("once", &script).restart("on-failure")]);
    app.says("exited with status 1");
    app.ends_with(exit::OK);
    let _ = fs::remove_file(mark);
}

fn a_service_killed_by_a_signal_comes_back() {
    let mut app = start(&[sh("web", "echo pid $$; exec sleep 1000").restart("always")]);
    let first = number(&app.prints("pid"));
    kill(first, "KILL");
    app.says("service web was ended by SIGKILL");
    assert_ne!(number(&app.prints("pid")), first);
}

fn a_real_time_signal_ends_a_service_like_any_other() {
    let mut app = start(&[sh("web", "kill -s RTMIN+3 $$ || kill -37 $$")]);
    app.says("was ended by signal 37");
    app.ends_with(exit::SERVICE_FAILED);
}

// --- Starting ---

fn a_program_that_is_not_there_is_named_and_tried_again() {
    let mut app = start(&[Svc { program: "/no/such".into(), ..sh("web", "") }.restart("always")]);
    for _ in 0..2 {
        let line = app.says("could not be started");
        assert!(line.contains("execute /no/such: No such file") && line.contains("starting again"), "{line}");
    }
    app.signal("TERM");
    app.ends_with(exit::OK);
}

fn every_stage_of_a_start_says_what_failed() {
    let not_executable = Svc { program: "/etc/passwd".into(), ..sh("a", "") };
    let mut app = start(&[not_executable]);
    assert!(app.says("service a").contains("execute /etc/passwd: Permission denied"));
    app.ends_with(exit::SERVICE_FAILED);
    let mut app = start(&[Svc { cwd: "/no/such", ..sh("b", "") }]);
    assert!(app.says("service b").contains("working directory /no/such: No such file"));
    app.ends_with(exit::SERVICE_FAILED);
}

fn a_service_starts_clean() {
    // Its own session and group, nothing ignored, nothing blocked, no descriptor but 0, 1 and 2, its environment.
    let script = "read -r _ _ _ _ group session _ < /proc/$$/stat; echo ids $(($$ - group)) $(($$ - session)); \
                  grep -E '^Sig(Ign|Blk)' /proc/self/status; cd /proc/$$/fd; echo fds *; \
                  echo input $(wc -c); env";
    let mut command = command(&[sh("web", script)]);
    // Inherited by the supervisor: an open file, and ignored signals.
    command.stdout(Stdio::piped());
    let shell = format!(
        "trap '' USR1 QUIT PIPE; exec 7</dev/null; exec {}",
        command.get_program().to_str().expect("a name")
    );
    let services =
        command.get_envs().find_map(|(name, value)| (name == SERVICES).then_some(value?.to_owned()));
    let mut child = Command::new("/bin/sh")
        .args(["-c", &shell])
        .env(SERVICES, services.expect("set"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("a shell");
    let (stdout, stderr) = (child.stdout.take().map(lines), lines(child.stderr.take().expect("piped")));
    let mut app = Running { child, stdout, stderr, seen: Vec::new() };
    app.prints("ids 0 0");
    for field in ["SigBlk", "SigIgn"] {
        let line = app.prints(field);
        assert!(line.ends_with("0000000000000000"), "{line}");
    }
    // 3 is the shell's own: the folder that it lists.
    let open = app.prints("fds");
    assert!(open.trim_end().ends_with("fds 0 1 2 3"), "{open}");
    app.prints("input 0");
    let environment: HashSet<String> = app.stdout.take().expect("piped").iter().collect();
    assert!(environment.contains("web | PATH=/usr/bin:/bin"), "{environment:?}");
    assert!(!environment.iter().any(|line| line.contains(SERVICES)), "{environment:?}");
    app.ends_with(exit::OK);
}

// --- Stopping ---

fn a_stop_is_asked_with_the_services_own_signal() {
    let script =
        "trap 'echo got INT; exit 0' INT; trap 'echo got TERM' TERM; echo up; while :; do sleep 0.05; done";
    let mut app = start(&[Svc { stop: "INT", ..sh("web", script) }]);
    app.prints("up");
    app.signal("TERM");
    assert!(app.says("stopping").contains("stopping app (SIGTERM)"));
    app.prints("got INT");
    app.ends_with(exit::OK);
}

fn a_service_that_ignores_term_is_killed_when_its_time_is_over() {
    let mut app =
        start(&[sh("web", "trap '' TERM; echo up $$; while :; do sleep 0.05; done").timeout_ms(300)]);
    let pid = number(&app.prints("up"));
    let asked = Instant::now();
    app.signal("TERM");
    app.says("service web did not stop within 0.3 s; sending SIGKILL");
    assert!(asked.elapsed() >= Duration::from_millis(290), "{:?}", asked.elapsed());
    app.ends_with(exit::OK);
    assert!(!alive(pid));
}

fn a_second_request_kills_at_once() {
    let mut app =
        start(&[sh("web", "trap '' TERM; echo up; while :; do sleep 0.05; done").timeout_ms(600_000)]);
    app.prints("up");
    app.signal("TERM");
    app.says("stopping");
    thread::sleep(Duration::from_millis(150)); // SAME_REQUEST
    app.signal("INT");
    app.says("asked again");
    app.ends_with(exit::OK);
}

fn a_stop_during_the_delay_is_immediate() {
    let mut app = start(&[sh("web", "exit 1").restart("always")]);
    // The fourth delay is 0.8 to 1 second, the fifth 1.6 to 2.
    loop {
        let line = app.says("starting again");
        if line.contains("in 1.") || line.contains("in 2.0") {
            break;
        }
    }
    let asked = Instant::now();
    app.signal("TERM");
    app.ends_with(exit::OK);
    assert!(asked.elapsed() < Duration::from_millis(700), "{:?}", asked.elapsed());
}

fn a_stopped_process_stops_too() {
    let mut app = start(&[sh("web", "echo up $$; kill -s STOP $$; sleep 1000")]);
    let pid = number(&app.prints("up"));
    eventually("it is stopped", || processes().iter().any(|&(id, state, _)| id == pid && state == 'T'));
    app.signal("TERM");
    app.ends_with(exit::OK);
}

fn a_stop_ends_with_the_group_not_with_its_leader() {
    // The leader goes at once; another of its group takes TERM and needs a while.
    let script = "(trap 'sleep 0.3; echo member done; exit' TERM; echo member up; while :; do sleep 0.02; done) & \
                  trap 'exit 0' TERM; while :; do sleep 0.02; done";
    let mut app = start(&[sh("web", script)]);
    app.prints("member up");
    app.signal("TERM");
    app.prints("member done");
    app.ends_with(exit::OK);
}

fn a_member_of_the_group_that_ignores_term_is_killed() {
    let script = "(trap '' TERM; echo member up; while :; do sleep 0.02; done) & sleep 1000";
    let mut app = start(&[sh("web", script).timeout_ms(200)]);
    app.prints("member up");
    app.signal("TERM");
    app.says("did not stop within 0.2 s");
    app.ends_with(exit::OK);
}

fn a_daemon_left_behind_is_swept() {
    let script = "setsid sh -c 'trap \"\" TERM; echo daemon $$; while :; do sleep 0.05; done' & sleep 0.2";
    let mut app = start(&[sh("web", script).timeout_ms(200)]);
    let pid = number(&app.prints("daemon"));
    app.says("service web has left 1 process behind; sending SIGTERM");
    app.says("service web did not stop within 0.2 s; sending SIGKILL");
    app.ends_with(exit::OK);
    assert!(!alive(pid));
}

fn a_killed_supervisor_takes_its_services_along() {
    let mut app = start(&[sh("web", "echo pid $$; exec sleep 1000")]);
    let pid = number(&app.prints("pid"));
    app.signal("KILL");
    assert_eq!(app.status().signal(), Some(9));
    eventually("the service is gone", || !alive(pid));
}

fn a_hangup_stops_and_user_signals_do_nothing() {
    let mut app = start(&[sh("web", "echo up; exec sleep 1000")]);
    app.prints("up");
    app.signal("USR1");
    app.signal("WINCH");
    app.signal("HUP");
    app.says("stopping app (SIGHUP)");
    app.ends_with(exit::OK);
}

fn an_ignored_hangup_stays_ignored() {
    let mut inner = command(&[sh("web", "echo up; exec sleep 1000")]);
    let mut nohup = Command::new("/bin/sh");
    nohup.args(["-c", "trap '' HUP; exec \"$0\""]).arg(inner.get_program());
    for (name, value) in inner.get_envs() {
        nohup.env(name, value.expect("set"));
    }
    inner.env_remove(SERVICES);
    let mut child = nohup.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a shell");
    let (stdout, stderr) = (child.stdout.take().map(lines), lines(child.stderr.take().expect("piped")));
    let mut app = Running { child, stdout, stderr, seen: Vec::new() };
    app.prints("up");
    app.signal("HUP");
    app.signal("TERM");
    // Signals are taken in the order of their numbers: HUP, 1, would have come first.
    assert!(app.says("stopping").ends_with("(SIGTERM)"));
    app.ends_with(exit::OK);
}

// --- Orphans ---

fn a_thousand_orphans_leave_no_zombie() {
    let script =
        "i=0; while [ $i -lt 1000 ]; do (sleep 0.3 &) ; i=$((i+1)); done; echo made; exec sleep 1000";
    let mut app = start(&[sh("web", script)]);
    app.prints("made");
    let supervisor = app.pid();
    let children = || processes().into_iter().filter(|&(_, _, parent)| parent == supervisor).count();
    eventually("one child is left, the service", || children() == 1);
    app.signal("TERM");
    app.ends_with(exit::OK);
}

// --- Output ---

fn a_flood_into_a_slow_reader_is_complete_and_needs_little_memory() {
    const BYTES: u64 = 100_000_000;
    let script = format!("head -c {BYTES} /dev/zero | tr '\\0' x | fold -w 99");
    let mut command = command(&[sh("web", &script)]);
    let mut child = command.stdout(Stdio::piped()).spawn().expect("the supervisor starts");
    let (mut stdout, stderr) =
        (child.stdout.take().expect("piped"), lines(child.stderr.take().expect("piped")));
    let mut app = Running { child, stdout: None, stderr, seen: Vec::new() };
    // Nobody reads at first: the service has to wait.
    thread::sleep(Duration::from_millis(300));
    let (mut buffer, mut payload, mut peak) = (vec![0; 1 << 16], 0, 0);
    loop {
        match stdout.read(&mut buffer).expect("a pipe") {
            0 => break,
            length => {
                payload += buffer[..length].iter().filter(|byte| **byte == b'x').count() as u64;
                peak = memory(app.pid(), "VmHWM").max(peak);
            }
        }
    }
    app.ends_with(exit::OK);
    assert_eq!(payload, BYTES);
    println!("peak of the supervisor under a flood: {peak} kB");
    assert!((1..20_000).contains(&peak), "{peak} kB");
}

fn a_reader_that_has_stalled_holds_no_stop_up() {
    let mut command = command(&[sh("web", "yes")]);
    let mut child = command.stdout(Stdio::piped()).spawn().expect("the supervisor starts");
    let (stdout, stderr) = (child.stdout.take(), lines(child.stderr.take().expect("piped")));
    let mut app = Running { child, stdout: None, stderr, seen: Vec::new() };
    let flood = || processes().iter().any(|&(_, state, parent)| parent == app.pid() && state == 'S');
    eventually("the service waits", flood);
    app.signal("TERM");
    app.ends_with(exit::OK);
    drop(stdout);
}

fn a_closed_standard_output_is_said_once_and_services_go_on() {
    let mut app = start(&[sh("web", "echo up; while sleep 0.05; do echo again; done")]);
    app.prints("up");
    let mut child = command(&[sh("web", "while sleep 0.02; do echo again; done")])
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    drop(child.stdout.take());
    let stderr = lines(child.stderr.take().expect("piped"));
    let mut deaf = Running { child, stdout: None, stderr, seen: Vec::new() };
    deaf.says("standard output is closed");
    deaf.signal("TERM");
    let rest: Vec<String> = deaf.stderr.iter().collect();
    assert_eq!(rest, ["kitbag: stopping app (SIGTERM)"]);
    deaf.ends_with(exit::OK);
}

fn closed_standard_files_do_not_end_up_in_a_service() {
    let mut command = command(&[sh("web", "ls -l /proc/$$/fd > /dev/null; exit 0")]);
    let mut child = Command::new("/bin/sh");
    child.arg0("sh").args(["-c", "exec \"$0\" \"$@\" <&- >&-"]).arg(command.get_program());
    child.args(command.get_args());
    for (name, value) in command.get_envs() {
        child.env(name, value.expect("set"));
    }
    let mut child = child.stderr(Stdio::piped()).spawn().expect("a shell");
    let stderr = lines(child.stderr.take().expect("piped"));
    Running { child, stdout: None, stderr, seen: Vec::new() }.ends_with(exit::OK);
    command.env_remove(SERVICES);
}
