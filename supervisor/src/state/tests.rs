//! The transition table, and what has to hold whatever happens.

use super::*;
use std::fmt::Write;

const POLICIES: [Restart; 3] = [Restart::Always, Restart::OnFailure, Restart::Never];
const WELL: End = End::Status(0);
const BADLY: End = End::Signal(9);
const FAULT: End = End::NotStarted(Fault { stage: Stage::Exec, errno: 2 });

fn told() -> Rules {
    Rules { ready: Readiness::Told, timeout: Some(60_000), ..Rules::default() }
}

fn watched(watch: Watch) -> Rules {
    Rules { watch: Some(watch), ..told() }
}

/// The rules that the table tells apart; the first is what holds unless another is named.
fn variants() -> Vec<(&'static str, Rules)> {
    let probe = |failures| Watch::Probe { interval: 10_000, failures };
    vec![
        ("", told()),
        ("restart=on-failure", Rules { restart: Restart::OnFailure, ..told() }),
        ("restart=never", Rules { restart: Restart::Never, ..told() }),
        ("give-up=1", Rules { give_up: Some(GiveUp { failures: 1, within_ms: 60_000 }), ..told() }),
        ("ready=up-for 0", Rules { ready: Readiness::UpFor(0), ..told() }),
        ("ready=up-for 2000", Rules { ready: Readiness::UpFor(2_000), ..told() }),
        ("ready=probe", Rules { ready: Readiness::Probe { interval: 100 }, ..told() }),
        ("task", Rules { restart: Restart::Never, ready: Readiness::Done, ..told() }),
        ("watch=silence", watched(Watch::Silence(30_000))),
        ("watch=probe failures=2", watched(probe(2))),
        ("watch=probe failures=1", watched(probe(1))),
    ]
}

/// One state of each kind as they stand at time 1000, all deadlines at 1000.
fn states() -> Vec<State> {
    let (run, at) = (Run { group: 7, since: 0 }, 1000);
    let mut states = vec![
        State::New,
        State::Needing,
        State::Starting { since: 0 },
        State::Executing { run },
        State::Running { run, late_at: Some(2000), next: Some(at) },
        State::Running { run, late_at: Some(at), next: None },
        State::Ready { run, next: Some(at), strikes: 0, reloading: None },
        State::Ready { run, next: None, strikes: 0, reloading: Some(at) },
        State::Leaving { run, late_at: at },
    ];
    for then in [Then::Start { at: 2000 }, Then::Start { at }, Then::End(Outcome::Stopped)] {
        states.push(State::Stopping { run, kill_at: at, then });
        states.push(State::Killing { run, give_up_at: at, then });
    }
    states.push(State::Waiting { until: at });
    states.extend(
        [Outcome::Succeeded, Outcome::Failed, Outcome::GivenUp, Outcome::NeedFailed, Outcome::Stopped]
            .map(State::Ended),
    );
    states
}

const EVENTS: [Event; 23] = [
    Event::Start,
    Event::Restart,
    Event::NeedsMet,
    Event::NeedFailed,
    Event::Forked(7),
    Event::Executed,
    Event::SaysReady,
    Event::SaysReloading,
    Event::SaysStopping,
    Event::SaysAlive,
    Event::SaysStuck,
    Event::Extend(5_000),
    Event::Probed { well: true },
    Event::Probed { well: false },
    Event::Followed(8),
    Event::Exited(WELL),
    Event::Exited(BADLY),
    Event::Exited(FAULT),
    Event::KilledMore,
    Event::GroupGone,
    Event::Tick,
    Event::Stop,
    Event::Kill,
];

const TURNS: [Turn; 8] = [
    Turn::Stop,
    Turn::StopGently,
    Turn::AllEnded,
    Turn::KilledMore,
    Turn::NoneLeft,
    Turn::Progress,
    Turn::Drained,
    Turn::Tick,
];

fn table() -> String {
    let mut text = String::from(
        "What a service and a bundle do next. Written from supervisor/src/state.rs by its test; times in ms.\n\
         Now is 1000 and what has a deadline has reached it; jitter is 0; unless something else is said, a service\n\
         is started again always, says when it is ready (within 60000), and has 10000 to stop.\n\
         An event that is not listed changes nothing in that state.\n",
    );
    for state in states() {
        let _ = writeln!(text, "\n{state:?}");
        for event in EVENTS {
            event_lines(&mut text, state, event);
        }
    }
    text + &whole_table()
}

/// What the event does under the usual rules, then under those that make a difference.
fn event_lines(text: &mut String, state: State, event: Event) {
    let mut usual = None;
    for (name, rules) in variants() {
        let mut after = Service { state, ..Service::default() };
        let actions = after.step(event, 1000, &rules, 0);
        let result = (after.state, actions);
        if usual.as_ref() == Some(&result) {
            continue;
        }
        let is_usual = usual.is_none();
        if !is_usual || result != (state, Vec::new()) {
            let _ = writeln!(text, "{}", format!("    {event:?} {name}").trim_end());
            let _ = writeln!(text, "        -> {:?}", result.0);
            for action in &result.1 {
                let _ = writeln!(text, "        {action:?}");
            }
        }
        if is_usual {
            usual = Some(result);
        }
    }
}

fn whole_table() -> String {
    let mut text =
        String::from("\n\nThe bundle. `requested` and `forced` are false before, except where shown.\n");
    let phases = [
        Phase::Serving,
        Phase::Stopping { since: 0 },
        Phase::Asking { kill_at: 1000 },
        Phase::Killing { give_up_at: 1000 },
        Phase::Draining { give_up_at: None },
        Phase::Draining { give_up_at: Some(1000) },
        Phase::Over,
    ];
    for phase in phases {
        let asked = matches!(phase, Phase::Stopping { .. } | Phase::Draining { give_up_at: Some(_) });
        for forced in [false, true] {
            if forced && !matches!(phase, Phase::Stopping { .. }) {
                continue;
            }
            let before = Whole { phase, requested: asked, forced };
            let _ = writeln!(text, "\n{phase:?} requested={asked} forced={forced}");
            for turn in TURNS {
                let (after, deed) = before.step(turn, 1000, 10_000);
                if (after, deed) != (before, None) {
                    let Whole { phase, requested, forced } = after;
                    let _ = writeln!(
                        text,
                        "    {turn:?}\n        -> {phase:?} requested={requested} forced={forced}"
                    );
                    if let Some(deed) = deed {
                        let _ = writeln!(text, "        {deed:?}");
                    }
                }
            }
        }
    }
    text
}

/// Write it anew with `KITBAG_BLESS=1 cargo test -p kitbag-supervisor transition`.
#[test]
fn the_transition_table_in_the_documentation_is_what_the_code_does() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/transitions.txt");
    let table = table();
    if std::env::var_os("KITBAG_BLESS").is_some() {
        std::fs::write(path, &table).expect("docs can be written");
    }
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(table == committed, "docs/transitions.txt is not what the code does:\n{table}");
}

/// Numbers that look random and are the same in each run (Knuth's MMIX generator).
struct Lcg(u64);

impl Lcg {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }
}

#[test]
fn whatever_happens_there_is_one_process_and_a_way_to_end_it() {
    let (mut random, variants) = (Lcg(1), variants());
    for _ in 0..4_000 {
        let rules = Rules {
            restart: POLICIES[random.below(3)],
            stop_timeout: random.below(20_000) as Ms,
            ..variants[random.below(variants.len())].1.clone()
        };
        let (mut service, mut now, mut group) = (Service::default(), 0, 100);
        for _ in 0..100 {
            now += random.below(15_000) as Ms;
            let event = EVENTS[random.below(EVENTS.len())];
            // A fork is answered for a spawn alone: the loop does so before any other event.
            if matches!(event, Event::Forked(_)) {
                continue;
            }
            let before = service.clone();
            let actions = service.step(event, now, &rules, random.below(256) as u8);
            let spawns = actions.iter().filter(|action| **action == Action::Spawn).count();
            assert!(spawns <= 1);
            if spawns == 1 {
                let gone = event == Event::GroupGone || matches!(before.state, State::Killing { .. });
                assert!(gone || before.state.run().is_none(), "a second process: {before:?} {event:?}");
                group += 1;
                assert_eq!(service.step(Event::Forked(group), now, &rules, 0), []);
                assert_eq!(service.state.run().map(|run| run.group), Some(group));
            }
            for action in actions {
                if let Action::Ask(asked) | Action::Abort(asked) | Action::Kill(asked) = action {
                    let own = before.state.run().map(|run| run.group);
                    assert_eq!(own, Some(asked), "a stranger is signalled: {before:?} {event:?}");
                }
            }
            if service.state.is_at_rest() {
                assert_eq!(service.state.deadline(), None);
            }
            if let State::Waiting { until } = service.state {
                assert!(until <= now + rules.backoff.longest_ms);
            }
        }
        end(service, now, &rules);
    }
}

/// From any state, a stop and the passing of time lead to rest, with SIGKILL for what is left on the way.
fn end(mut service: Service, mut now: Ms, rules: &Rules) {
    let resting = matches!(service.state, State::Ended(_));
    let _ = service.step(Event::Stop, now, rules, 0);
    for _ in 0..3 {
        if let Some(at) = service.state.deadline() {
            now = now.max(at);
            let actions = service.step(Event::Tick, now, rules, 0);
            assert!(!actions.contains(&Action::Spawn), "a start during a stop: {service:?}");
        }
    }
    let stopped = service.state == State::Ended(Outcome::Stopped);
    assert!(stopped || (resting && matches!(service.state, State::Ended(_))), "{service:?}");
}

/// The service after these events at these times, from the very beginning.
fn after(rules: &Rules, events: &[(Ms, Event)]) -> Service {
    let mut service = Service::default();
    for (now, event) in events {
        let _ = service.step(*event, *now, rules, 0);
    }
    service
}

/// From the beginning to the program's first instruction, at time 0.
const UP: [(Ms, Event); 4] =
    [(0, Event::Start), (0, Event::NeedsMet), (0, Event::Forked(7)), (0, Event::Executed)];

fn up_then(rules: &Rules, events: &[(Ms, Event)]) -> Service {
    after(rules, &[&UP[..], events].concat())
}

#[test]
fn a_fork_that_nobody_waits_for_is_killed() {
    let mut service = after(&told(), &[(0, Event::Start), (0, Event::NeedsMet), (0, Event::Stop)]);
    assert_eq!(service.step(Event::Forked(7), 0, &told(), 0), [Action::Kill(7)]);
    let _ = service.step(Event::GroupGone, 0, &told(), 0);
    assert_eq!(service.state, State::Ended(Outcome::Stopped));
}

#[test]
fn the_first_restart_is_immediate_then_the_delay_doubles_and_a_stable_run_resets_it() {
    let (rules, mut now) = (Rules::default(), 0);
    let mut service = up_then(&rules, &[]);
    let mut run = |service: &mut Service, ran: Ms| {
        now += ran;
        let _ = service.step(Event::Exited(BADLY), now, &rules, 0);
        let mut actions = service.step(Event::GroupGone, now, &rules, 0);
        let until = service.state.deadline().unwrap_or(now);
        let delay = until - now;
        now = until;
        actions.extend(service.step(Event::Tick, now, &rules, 0));
        assert_eq!(actions, [Action::Spawn]);
        for event in [Event::Forked(7), Event::Executed] {
            let _ = service.step(event, now, &rules, 0);
        }
        delay
    };
    let delays: Vec<Ms> = (0..12).map(|_| run(&mut service, 5)).collect();
    assert_eq!(delays, [0, 100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000]);
    assert_eq!([run(&mut service, rules.backoff.stable_ms), run(&mut service, 5)], [0, 100]);
    assert_eq!(service.restarts, 14);
    let backoff = rules.backoff;
    assert_eq!([delay(&backoff, 1, 255), delay(&backoff, u32::MAX, 255)], [124, backoff.longest_ms]);
    let huge = Backoff { first_ms: u64::MAX, longest_ms: u64::MAX, stable_ms: 0 };
    assert_eq!(delay(&huge, 3, 255), u64::MAX);
}

#[test]
fn what_cannot_be_started_is_never_tried_again_at_once() {
    let service = after(&told(), &[(0, Event::Start), (0, Event::NeedsMet), (0, Event::Exited(FAULT))]);
    assert_eq!(service.state, State::Waiting { until: 100 });
}

#[test]
fn a_leader_can_leave_its_place_to_another_process_whose_end_is_the_runs() {
    let mut service = up_then(&told(), &[(5, Event::SaysReady), (10, Event::Followed(8))]);
    assert!(matches!(service.state, State::Ready { run: Run { group: 8, since: 0 }, .. }), "{service:?}");
    assert_eq!(service.step(Event::Stop, 20, &told(), 0), [Action::Ask(8)]);
    let asked = service.clone();
    assert_eq!(service.step(Event::Followed(9), 30, &told(), 0), []);
    assert_eq!(service, asked);
}

#[test]
fn ends_that_count_as_good_are_no_failure() {
    let rules = Rules { restart: Restart::OnFailure, good_codes: vec![3], good_signals: vec![15], ..told() };
    for (end, outcome) in [
        (End::Status(3), Some(Outcome::Succeeded)),
        (End::Signal(15), Some(Outcome::Succeeded)),
        (End::Status(259), None),
        (End::Signal(3), None),
    ] {
        let service = up_then(&rules, &[(5, Event::Exited(end)), (5, Event::GroupGone)]);
        let rest = matches!(service.state, State::Ended(_)).then_some(Outcome::Succeeded);
        assert_eq!(rest, outcome, "{end:?} {service:?}");
    }
}

#[test]
fn too_many_failures_give_up_and_a_start_by_hand_begins_anew() {
    let rules = Rules {
        give_up: Some(GiveUp { failures: 3, within_ms: 1_000 }),
        backoff: Backoff { first_ms: 1, longest_ms: 1, stable_ms: 10_000 },
        ..Rules::default()
    };
    let crash = |service: &mut Service, now: Ms| {
        for event in [Event::Tick, Event::Forked(7), Event::Executed, Event::Exited(BADLY), Event::GroupGone]
        {
            let _ = service.step(event, now, &rules, 0);
        }
    };
    // Failures that are too far apart never do.
    let mut service = after(&rules, &UP[..2]);
    for now in [0, 600, 1_200, 1_800] {
        crash(&mut service, now);
        assert!(!service.state.is_at_rest(), "at {now}: {service:?}");
    }
    crash(&mut service, 2_100);
    assert_eq!(service.state, State::Ended(Outcome::GivenUp));
    let _ = service.step(Event::Start, 2_200, &rules, 0);
    assert_eq!((service.state, service.failures, service.recent.len()), (State::Needing, 0, 0));
    let _ = service.step(Event::NeedsMet, 2_200, &rules, 0);
    for now in [2_300, 2_400] {
        crash(&mut service, now);
        assert!(!service.state.is_at_rest(), "at {now}: {service:?}");
    }
    // A good end is no failure, however often it comes.
    let mut service = after(&rules, &UP);
    for now in 0..10 {
        for event in [Event::Exited(WELL), Event::GroupGone, Event::Start, Event::Forked(7)] {
            let _ = service.step(event, now, &rules, 0);
        }
    }
    assert!(!service.state.is_at_rest());
}

#[test]
fn a_service_that_is_not_ready_in_time_has_failed_and_may_ask_for_more_time() {
    let late = [(60_000, Event::Tick)];
    let service = up_then(&told(), &late);
    assert!(matches!(service.state, State::Stopping { then: Then::Start { .. }, .. }), "{service:?}");
    assert_eq!(service.last.and_then(|last| last.trouble), Some(Trouble::NotReady));
    let service = up_then(&told(), &[&[(50_000, Event::Extend(20_000))], &late[..]].concat());
    assert_eq!(service.state.deadline(), Some(70_000));
    let service = up_then(&told(), &[&[(50_000, Event::SaysReady)], &late[..]].concat());
    assert!(service.state.is_good());
}

#[test]
fn a_service_that_stays_up_is_ready_then() {
    let rules = Rules { ready: Readiness::UpFor(2_000), timeout: Some(1_000), ..Rules::default() };
    assert!(!up_then(&rules, &[(1_999, Event::Tick)]).state.is_good());
    assert!(up_then(&rules, &[(2_000, Event::Tick)]).state.is_good());
}

#[test]
fn probes_go_on_until_one_succeeds_and_a_row_of_failures_ends_it_later() {
    let rules = Rules {
        ready: Readiness::Probe { interval: 100 },
        watch: Some(Watch::Probe { interval: 1_000, failures: 2 }),
        ..told()
    };
    let mut service = after(&rules, &UP[..3]);
    assert_eq!(service.step(Event::Executed, 0, &rules, 0), [Action::Probe]);
    assert_eq!(service.state.deadline(), rules.timeout, "nothing but the timeout while it asks");
    assert_eq!(service.step(Event::Probed { well: false }, 50, &rules, 0), []);
    assert_eq!(service.step(Event::Tick, 150, &rules, 0), [Action::Probe]);
    assert_eq!(service.step(Event::Probed { well: true }, 160, &rules, 0), []);
    assert!(service.state.is_good());
    let probes = [(1_160, false), (2_160, true), (3_160, false)];
    for (now, well) in probes {
        assert_eq!(service.step(Event::Tick, now, &rules, 0), [Action::Probe]);
        assert_eq!(service.step(Event::Probed { well }, now, &rules, 0), []);
    }
    assert_eq!(service.step(Event::Tick, 4_160, &rules, 0), [Action::Probe]);
    let actions = service.step(Event::Probed { well: false }, 4_160, &rules, 0);
    let said = Note::Failing { trouble: Trouble::Unhealthy, after: 4_160, next: Next::Again(0) };
    assert_eq!(actions, [Action::Say(said), Action::Abort(7)]);
    // The end that follows is part of the same failure.
    assert_eq!(service.step(Event::Exited(End::Signal(6)), 4_170, &rules, 0), []);
    assert_eq!(service.step(Event::GroupGone, 4_170, &rules, 0), [Action::Spawn]);
    let last = service.last.expect("a run has ended");
    assert_eq!((last.trouble, last.end), (Some(Trouble::Unhealthy), Some(End::Signal(6))));
    assert_eq!(service.failures, 1);
}

#[test]
fn a_watchdog_wants_a_sign_of_life_in_each_span() {
    let rules = watched(Watch::Silence(1_000));
    let ready = [(100, Event::SaysReady), (900, Event::SaysAlive)];
    let service = up_then(&rules, &ready);
    assert_eq!(service.state.deadline(), Some(1_900));
    let mut service = up_then(&rules, &ready);
    let actions = service.step(Event::Tick, 1_900, &rules, 0);
    assert!(actions.contains(&Action::Abort(7)), "{actions:?}");
    let mut service = up_then(&rules, &ready);
    assert!(service.step(Event::SaysStuck, 950, &rules, 0).contains(&Action::Abort(7)));
}

#[test]
fn a_stop_beats_a_restart_and_what_is_asked_for_last_counts() {
    let restart = [(10, Event::SaysReady), (20, Event::Restart)];
    let service = up_then(&told(), &restart);
    assert!(matches!(service.state, State::Stopping { then: Then::Start { at: 20 }, .. }));
    let gone = |more: &[(Ms, Event)]| {
        let end = [(40, Event::Exited(WELL)), (40, Event::GroupGone)];
        up_then(&told(), &[&restart, more, &end[..]].concat()).state
    };
    assert_eq!(gone(&[]), State::Starting { since: 40 });
    assert_eq!(gone(&[(30, Event::Restart)]), State::Starting { since: 40 }, "one restart, not two");
    assert_eq!(gone(&[(30, Event::Stop)]), State::Ended(Outcome::Stopped));
    assert_eq!(gone(&[(30, Event::Stop), (35, Event::Start)]), State::Starting { since: 40 });
}

#[test]
fn a_stop_is_immediate_where_nothing_runs() {
    let crash = [(5, Event::Exited(BADLY)), (5, Event::GroupGone)];
    let waiting = [&UP[..], &crash, &UP[2..], &crash].concat();
    assert!(matches!(after(&told(), &waiting).state, State::Waiting { .. }));
    for events in [&UP[..1], &UP[..2], &waiting] {
        let stopped = after(&told(), &[events, &[(6, Event::Stop)]].concat());
        assert_eq!(stopped.state, State::Ended(Outcome::Stopped), "{events:?}");
    }
}

#[test]
fn a_stop_of_the_whole_comes_to_its_end_by_time_alone() {
    for stop in [Turn::Stop, Turn::StopGently] {
        let (mut whole, mut now) = (Whole::default().step(stop, 0, 500).0, 0);
        whole = whole.step(Turn::AllEnded, now, 500).0;
        while let Some(at) = whole.deadline() {
            assert!(at >= now);
            now = at;
            whole = whole.step(Turn::Tick, now, 500).0;
        }
        assert_eq!((whole.phase, now), (Phase::Over, 500 + DEATH_DEADLINE + DRAIN_DEADLINE));
    }
}
