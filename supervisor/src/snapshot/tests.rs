//! Every state is read back as it was written, whatever stands beside it; and what is not whole is refused.

use super::*;
use crate::state::{Action, DEATH_DEADLINE, Fault, Last, Outcome, Phase, Run, Stage, State, Then, Trouble};
use crate::state::{Readiness, Rules, Turn, Watch};

const RUN: Run = Run { group: 77, since: 1_000 };
const BOOT: &str = "0d4a1b7e-0000-4000-8000-000000000001";

const OUTCOMES: [Outcome; 5] =
    [Outcome::Succeeded, Outcome::Failed, Outcome::GivenUp, Outcome::NeedFailed, Outcome::Stopped];
const TROUBLES: [Trouble; 6] = [
    Trouble::NotReady,
    Trouble::Overtime,
    Trouble::Unhealthy,
    Trouble::Silent,
    Trouble::Stuck,
    Trouble::Lingering,
];
const STAGES: [Stage; 18] = [
    Stage::Ports,
    Stage::Files,
    Stage::Sandbox,
    Stage::Arguments,
    Stage::Pipes,
    Stage::Fork,
    Stage::Session,
    Stage::StandardFiles,
    Stage::Limits,
    Stage::Cgroup,
    Stage::Nice,
    Stage::OomScore,
    Stage::Groups,
    Stage::Group,
    Stage::User,
    Stage::ParentDeath,
    Stage::WorkingDirectory,
    Stage::Exec,
];

/// A variant that is added to one of these enums is an error here until it is in the lists above, or below.
const fn is_listed(outcome: Outcome, trouble: Trouble, stage: Stage, end: End, phase: Phase) {
    match outcome {
        Outcome::Succeeded | Outcome::Failed | Outcome::GivenUp | Outcome::NeedFailed | Outcome::Stopped => {}
    }
    match trouble {
        Trouble::NotReady
        | Trouble::Overtime
        | Trouble::Unhealthy
        | Trouble::Silent
        | Trouble::Stuck
        | Trouble::Lingering => {}
    }
    match stage {
        Stage::Ports
        | Stage::Files
        | Stage::Sandbox
        | Stage::Arguments
        | Stage::Pipes
        | Stage::Fork
        | Stage::Session
        | Stage::StandardFiles => {}
        Stage::Limits | Stage::Cgroup | Stage::Nice | Stage::OomScore | Stage::Groups | Stage::Group => {}
        Stage::User | Stage::ParentDeath | Stage::WorkingDirectory | Stage::Exec => {}
    }
    match end {
        End::Status(_) | End::Signal(_) | End::NotStarted(_) | End::Unseen => {}
    }
    match phase {
        Phase::Serving | Phase::Stopping { .. } | Phase::Asking { .. } => {}
        Phase::Killing { .. } | Phase::Draining { .. } | Phase::Over => {}
    }
}

/// A state is an error here until [`states`] makes it.
const fn kind(state: &State) -> usize {
    match state {
        State::New => 0,
        State::Needing => 1,
        State::Starting { .. } => 2,
        State::Executing { .. } => 3,
        State::Running { .. } => 4,
        State::Ready { .. } => 5,
        State::Leaving { .. } => 6,
        State::Stopping { .. } => 7,
        State::Killing { .. } => 8,
        State::Waiting { .. } => 9,
        State::Ended(_) => 10,
    }
}

const TIMES: [Ms; 4] = [0, 1, 1_234_567_890_123, Ms::MAX];

fn maybe(times: &[Ms]) -> Vec<Option<Ms>> {
    times.iter().copied().map(Some).chain([None]).collect()
}

/// Every state with every choice of what it holds.
fn states() -> Vec<State> {
    let mut states = vec![State::New, State::Needing, State::Executing { run: RUN }];
    let thens = TIMES.map(|at| Then::Start { at }).into_iter().chain(OUTCOMES.map(Then::End));
    let thens: Vec<Then> = thens.collect();
    for at in TIMES {
        states.push(State::Starting { since: at });
        states.push(State::Leaving { run: RUN, late_at: at });
        states.push(State::Waiting { until: at });
        for &then in &thens {
            states.push(State::Stopping { run: RUN, kill_at: at, then });
            states.push(State::Killing { run: RUN, give_up_at: at, then });
        }
    }
    for late_at in maybe(&TIMES) {
        for next in maybe(&TIMES) {
            states.push(State::Running { run: RUN, late_at, next });
            for strikes in [0, 1, u32::MAX] {
                states.push(State::Ready { run: RUN, next, strikes, reloading: late_at });
            }
        }
    }
    states.extend(OUTCOMES.map(State::Ended));
    states
}

fn ends() -> Vec<Option<End>> {
    let faults = STAGES.map(|stage| End::NotStarted(Fault { stage, errno: 2 }));
    let ends = [End::Status(0), End::Status(-1), End::Signal(64), End::Unseen].into_iter().chain(faults);
    ends.map(Some).chain([None]).collect()
}

fn lasts() -> Vec<Option<Last>> {
    let mut lasts = vec![None];
    for trouble in TROUBLES.map(Some).into_iter().chain([None]) {
        lasts.extend(ends().into_iter().map(|end| Some(Last { since: 1, at: 2, trouble, end })));
    }
    lasts
}

fn unit(service: Service) -> Unit {
    Unit {
        instance: 3,
        number: 17,
        main: Some(9),
        ports: vec![None, Some(Port { number: Some(8080), name: Some(11), socket: None, is_lent: true })],
        leader: service.state.run().map(|run| Process { pid: run.group, start: Some(u64::MAX) }),
        service,
        reaped: false,
        intent: Intent::Restart,
        queued: true,
        held: true,
        since: (-5, 7),
        failed_need: Some(4),
        reason: Some("\"quoted\" \u{1b} ü\n{\"}".into()),
        says: Some(String::new()),
        helper: Some((Process { pid: 5, start: None }, 9)),
        cgroup: Some("/sys/fs/cgroup/a".into()),
        short_of_memory: [2, u64::MAX],
        out_of_memory: true,
        notify_socket: Some("@kitbag/00".into()),
        descriptors: Descriptors { stdout: Some([3, 4]), stderr: None, newline: Some(9), notify: None },
    }
}

fn snapshot(units: Vec<Unit>, whole: Whole) -> Snapshot {
    let socket = Port { number: None, name: None, socket: Some(12), is_lent: false };
    let sockets = vec![Some(socket)];
    let part = Part { name: "web".into(), wanted: 1, plan: Plan::default(), sockets, units };
    Snapshot {
        bundle: "shop".into(),
        version: "1.2".into(),
        taken: Moment { boot: BOOT.into(), wall: 1_000_000, now: 50_000 },
        supervisor: Process { pid: 12, start: Some(34) },
        since: (900_000, 40_000),
        whole,
        stays: true,
        open_files: Some([1_024, u64::MAX]),
        strangers: vec![6],
        control: Some(8),
        marks: Marks::new(5, u64::MAX),
        parts: vec![part],
    }
}

fn read_back(snapshot: &Snapshot) -> Snapshot {
    let text = snapshot.to_text();
    Snapshot::from_text(&text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

#[test]
fn every_state_is_read_back_as_it_was_written() {
    is_listed(Outcome::Failed, Trouble::Stuck, Stage::Exec, End::Unseen, Phase::Over);
    let mut services: Vec<Service> =
        states().into_iter().map(|state| Service { state, ..Service::default() }).collect();
    let mut kinds: Vec<usize> = services.iter().map(|service| kind(&service.state)).collect();
    kinds.sort_unstable();
    kinds.dedup();
    assert_eq!(kinds, (0..=10).collect::<Vec<_>>());
    services.extend(lasts().into_iter().map(|last| Service {
        last,
        failures: u32::MAX,
        restarts: 1,
        recent: TIMES.to_vec(),
        ..Service::default()
    }));
    // Each by itself, so that a failure names it; and all in one.
    for service in &services {
        let one = snapshot(vec![unit(service.clone())], Whole::default());
        assert_eq!(read_back(&one), one);
    }
    let all = snapshot(services.into_iter().map(unit).collect(), Whole::default());
    assert!(all.parts[0].units.len() > 300);
    assert_eq!(read_back(&all), all);
    assert_eq!(all.clone().at(&all.taken), all, "the same moment changes nothing");
}

#[test]
fn every_phase_of_the_bundle_is_read_back() {
    let mut phases = vec![Phase::Serving, Phase::Over, Phase::Draining { give_up_at: None }];
    for at in TIMES {
        phases.extend([
            Phase::Stopping { since: at },
            Phase::Asking { kill_at: at },
            Phase::Killing { give_up_at: at },
            Phase::Draining { give_up_at: Some(at) },
        ]);
    }
    for phase in phases {
        for (requested, forced) in [(false, false), (true, false), (true, true)] {
            let one = snapshot(Vec::new(), Whole { phase, requested, forced });
            assert_eq!(read_back(&one), one);
        }
    }
}

/// xorshift64
fn random(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed
}

fn rules(seed: &mut u64) -> Rules {
    let ready =
        [Readiness::UpFor(0), Readiness::UpFor(20), Readiness::Told, Readiness::Probe { interval: 7 }];
    let watch = [None, Some(Watch::Silence(30)), Some(Watch::Probe { interval: 9, failures: 2 })];
    Rules {
        ready: ready[(random(seed) % 4) as usize],
        watch: watch[(random(seed) % 3) as usize],
        timeout: Some(40),
        stop_timeout: 25,
        give_up: Some(kitbag_format::service::GiveUp { failures: 3, within_ms: 200 }),
        ..Rules::default()
    }
}

fn event(seed: &mut u64) -> Event {
    let group = 1 + (random(seed) % 1_000) as i32;
    let fault = Fault { stage: Stage::Exec, errno: 2 };
    let events = [
        Event::Start,
        Event::Restart,
        Event::NeedsMet,
        Event::NeedFailed,
        Event::Forked(group),
        Event::Executed,
        Event::SaysReady,
        Event::SaysReloading,
        Event::SaysStopping,
        Event::SaysAlive,
        Event::SaysStuck,
        Event::Extend(group as u64),
        Event::Probed { well: true },
        Event::Probed { well: false },
        Event::Exited(End::Status(group & 1)),
        Event::Exited(End::NotStarted(fault)),
        Event::Exited(End::Unseen),
        Event::GroupGone,
        Event::Tick,
        Event::Stop,
        Event::Kill,
    ];
    events[(random(seed) % events.len() as u64) as usize]
}

#[test]
fn a_service_that_is_written_down_and_read_back_at_any_moment_goes_on_the_same_way() {
    for seed in 1..=100 {
        let (mut seed, mut now) = (seed * 0x9e37_79b9, 1_000);
        let rules = rules(&mut seed);
        let (mut one, mut other) = (Service::default(), Service::default());
        for _ in 0..100 {
            now += random(&mut seed) % 12;
            let event = event(&mut seed);
            let done = one.step(event, now, &rules, 3);
            assert_eq!(other.step(event, now, &rules, 3), done, "{event:?}");
            let read = read_back(&snapshot(vec![unit(other)], Whole::default()));
            other = read.parts[0].units[0].service.clone();
            assert_eq!(other, one, "after {event:?}");
        }
    }
}

#[test]
fn a_bundle_that_is_written_down_and_read_back_at_any_moment_goes_on_the_same_way() {
    let turns = [
        Turn::Stop,
        Turn::StopGently,
        Turn::AllEnded,
        Turn::NoneLeft,
        Turn::Progress,
        Turn::Drained,
        Turn::Tick,
    ];
    for seed in 1..=200 {
        let (mut seed, mut now) = (seed * 0x9e37_79b9, 0);
        let (mut one, mut other) = (Whole::default(), Whole::default());
        for _ in 0..30 {
            now += random(&mut seed) % 3_000;
            let turn = turns[(random(&mut seed) % 7) as usize];
            let (next, done) = one.step(turn, now, 500);
            assert_eq!(other.step(turn, now, 500), (next, done));
            one = next;
            other = read_back(&snapshot(Vec::new(), next)).whole;
        }
    }
}

#[test]
fn keys_of_a_later_version_are_passed_over() {
    let one = snapshot(vec![unit(Service::default())], Whole::default());
    let text = one.to_text();
    let body = text.lines().nth(1).expect("two lines");
    let more = body
        .replacen("{\"bundle\"", "{\"new\":[{\"a\":1}],\"bundle\"", 1)
        .replacen("{\"instance\"", "{\"colour\":\"red\",\"instance\"", 1)
        .replacen("\"service\":{", "\"service\":{\"mood\":null,", 1);
    assert!(["\"new\"", "\"colour\"", "\"mood\""].iter().all(|key| more.contains(key)), "{more}");
    assert_eq!(Snapshot::from_text(&signed(VERSION, &more)), Ok(one));
}

fn signed(version: u32, body: &str) -> String {
    format!("{{\"kitbag_snapshot\":{version},\"digest\":\"{}\"}}\n{body}\n", Digest::of(body.as_bytes()))
}

#[test]
fn a_text_that_is_cut_anywhere_is_refused() {
    let text = snapshot(vec![unit(Service::default())], Whole::default()).to_text();
    let head = text.find('\n').expect("two lines");
    for end in (0..text.len()).filter(|end| text.is_char_boundary(*end)) {
        let expected = if end <= head { SnapshotError::NotOne } else { SnapshotError::Damaged };
        assert_eq!(Snapshot::from_text(&text[..end]), Err(expected), "cut at {end} of {}", text.len());
    }
}

#[test]
fn a_text_of_which_one_byte_was_changed_is_refused() {
    let text = snapshot(vec![unit(Service::default())], Whole::default()).to_text();
    let head = text.find('\n').expect("two lines");
    for at in 0..text.len() {
        let mut bytes = text.clone().into_bytes();
        bytes[at] = if bytes[at] == b'1' { b'2' } else { b'1' };
        let Ok(changed) = String::from_utf8(bytes) else { continue };
        let error = Snapshot::from_text(&changed).expect_err(&changed);
        if at > head {
            assert_eq!(error, SnapshotError::Damaged, "at {at}");
        }
    }
}

#[test]
fn what_is_no_snapshot_or_another_versions_is_named() {
    let text = snapshot(Vec::new(), Whole::default()).to_text();
    let body = text.lines().nth(1).expect("two lines");
    let other = VERSION + 1;
    assert_eq!(Snapshot::from_text(&signed(other, body)), Err(SnapshotError::Version(other)));
    for other in ["", "{}\n{}\n", "\n\n", "hello\nworld\n", "[1]\n"] {
        assert_eq!(Snapshot::from_text(other), Err(SnapshotError::NotOne), "{other:?}");
    }
    let without = body.replacen("\"bundle\":\"shop\",", "", 1);
    let error = Snapshot::from_text(&signed(VERSION, &without)).expect_err("a key is missing");
    assert!(error.to_string().contains("missing field `bundle`"), "{error}");
}

fn ready(next: Option<Ms>) -> Service {
    Service { state: State::Ready { run: RUN, next, strikes: 1, reloading: None }, ..Service::default() }
}

#[test]
fn a_process_of_another_start_time_is_not_the_one_that_was_started() {
    let unit = Unit { leader: Some(Process { pid: 77, start: Some(500) }), ..unit(ready(None)) };
    let found = |start: Option<u64>| unit.remains(&move |pid| start.filter(|_| pid == 77));
    assert_eq!(found(Some(500)), Remains::Leader);
    assert_eq!(found(Some(501)), Remains::Nothing);
    assert_eq!(found(None), Remains::Group);
    let reaped = Unit { reaped: true, ..unit.clone() };
    assert_eq!(reaped.remains(&|_| None), Remains::Group);
    assert_eq!(reaped.remains(&|_| Some(500)), Remains::Nothing, "within one tick, and yet another");
    // Without a start time nothing is certain, so nothing is signalled.
    let unknown = Unit { leader: Some(Process { pid: 77, start: None }), ..unit.clone() };
    assert_eq!(unknown.remains(&|_| Some(500)), Remains::Nothing);
    let resting = Unit { service: Service::default(), leader: None, ..unit };
    assert_eq!(resting.remains(&|_| Some(500)), Remains::NoRun);
}

#[test]
fn a_process_that_has_gone_meanwhile_is_treated_by_the_restart_policy() {
    let rules = Rules::default();
    let mut service = ready(None);
    let mut done = Vec::new();
    for event in unit(service.clone()).missed(Remains::Nothing) {
        done.extend(service.step(*event, 60_000, &rules, 0));
    }
    assert!(!done.iter().any(|action| matches!(action, Action::Kill(_))), "{done:?}");
    assert!(done.contains(&Action::Spawn), "{done:?}");
    assert_eq!(service.last.and_then(|last| last.end), Some(End::Unseen));
    assert_eq!(unit(ready(None)).missed(Remains::Leader), []);
    assert_eq!(unit(ready(None)).missed(Remains::Group), [Event::Exited(End::Unseen)]);
}

#[test]
fn after_another_start_of_the_machine_nothing_is_alive_and_times_are_as_long_ago() {
    let waiting =
        Service { state: State::Waiting { until: 51_000 }, recent: vec![49_000], ..Service::default() };
    let never = State::Ready { run: RUN, next: None, strikes: 0, reloading: Some(Ms::MAX) };
    let never = Service { state: never, ..Service::default() };
    let stopping = Whole { phase: Phase::Stopping { since: 50_000 }, requested: true, forced: false };
    let before = snapshot(vec![unit(ready(Some(50_500))), unit(waiting), unit(never)], stopping);
    // 10 s later by the wall clock, 30 s after the start.
    let moment = Moment { boot: "another".into(), wall: 1_010_000, now: 30_000 };
    let after = before.clone().at(&moment);
    assert_eq!((after.whole, &after.taken, after.control), (Whole::default(), &moment, None));
    assert_eq!(after.since, (900_000, 10_000), "20 s ago");
    let units = &after.parts[0].units;
    for unit in units {
        assert_eq!((unit.leader, unit.helper, &unit.cgroup, &unit.notify_socket), (None, None, &None, &None));
        assert_eq!(unit.descriptors, Descriptors::default());
    }
    assert_eq!(units[0].remains(&|_| Some(u64::MAX)), Remains::Nothing);
    assert_eq!(units[1].service.state, State::Waiting { until: 21_000 }, "it was due 9 s ago");
    assert_eq!(units[1].service.recent, [19_000]);
    assert_eq!(units[2].service.state.deadline(), Some(Ms::MAX));
    // A clock that was put back, or an unknown start of the machine, invents no time.
    let back = before.clone().at(&Moment { wall: 0, ..moment.clone() });
    assert_eq!(back.parts[0].units[1].service.state, State::Waiting { until: 31_000 });
    let unknown = Moment { boot: String::new(), ..moment };
    let twice = Snapshot { taken: unknown.clone(), ..before }.at(&unknown);
    assert!(twice.parts[0].units.iter().all(|unit| unit.leader.is_none()));
}

#[test]
fn what_an_earlier_supervisor_had_begun_is_done_again() {
    let probed = Rules {
        ready: Readiness::Probe { interval: 5 },
        watch: Some(Watch::Probe { interval: 5, failures: 2 }),
        ..Rules::default()
    };
    let resume = |state: State| {
        let mut service = Service { state, ..Service::default() };
        let done = service.resume(60_000, &probed);
        (done, service.state)
    };
    let running = State::Running { run: RUN, late_at: Some(70_000), next: None };
    assert_eq!(resume(running), (vec![Action::Probe], running));
    assert_eq!(resume(ready(None).state).0, [Action::Probe], "nobody would ever ask again");
    assert_eq!(resume(ready(Some(60_001)).state).0, [], "its time will come");
    assert_eq!(resume(State::Needing).0, [Action::Need]);
    assert_eq!(resume(State::Starting { since: 1 }).0, [Action::Spawn]);
    let (done, state) = resume(State::Executing { run: RUN });
    assert!(done == [Action::Probe] && matches!(state, State::Running { .. }), "{done:?} {state:?}");
    let then = Then::End(Outcome::Stopped);
    assert_eq!(resume(State::Stopping { run: RUN, kill_at: 1, then }).0, []);
    let killing = State::Killing { run: RUN, give_up_at: 60_000 + DEATH_DEADLINE, then };
    assert_eq!(resume(killing).0, [Action::Kill(77)]);
    let told = Rules { ready: Readiness::Told, ..Rules::default() };
    let mut service = Service { state: running, ..Service::default() };
    assert_eq!(service.resume(60_000, &told), [], "it says so itself");
}
