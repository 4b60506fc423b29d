//! What people are told, and how the states of [`crate::state`] are called.

use crate::spawn::{self, Setup};
use crate::state::{End, Fault, Ms, Next, Note, Outcome, Stage, State, Trouble, Watch};
use crate::status;
use crate::sys::{Errno, signal};

use super::spec::{ProgramSpec, ServiceSpec};
use super::units::Unit;

/// What a unit's state is called.
pub fn state(state: &State, is_task: bool) -> status::State {
    match *state {
        State::New if is_task => status::State::Idle,
        State::New => status::State::Stopped,
        State::Needing => status::State::Waiting,
        State::Starting { .. } | State::Executing { .. } => status::State::Starting,
        State::Running { .. } if is_task => status::State::Running,
        State::Running { .. } => status::State::Starting,
        State::Ready { reloading: Some(_), .. } => status::State::Reloading,
        State::Ready { .. } => status::State::Ready,
        State::Leaving { .. } | State::Stopping { .. } | State::Killing { .. } => status::State::Stopping,
        State::Waiting { .. } => status::State::Retrying,
        State::Ended(Outcome::Succeeded) => status::State::Done,
        State::Ended(Outcome::Stopped) => status::State::Stopped,
        State::Ended(Outcome::Failed | Outcome::GivenUp | Outcome::NeedFailed) => status::State::Failed,
    }
}

/// True if a unit that moves so has another run before it.
pub fn begins_anew(before: &State, after: &State) -> bool {
    let begins = matches!(after, State::Needing | State::Starting { .. });
    begins && std::mem::discriminant(before) != std::mem::discriminant(after)
}

/// The last sentence of a supervisor that comes to its end, with its exit code.
pub fn ending(bundle: &str, version: &str, code: u8) -> String {
    format!("{bundle} {version} ends, process {}{ENDING}{code}", std::process::id())
}

/// True for what [`ending`] said.
pub fn is_ending(sentence: &str) -> bool {
    sentence.contains(ENDING)
}

const ENDING: &str = ", exit code ";

/// What is said of a unit.
pub fn sentence(unit: &Unit, spec: &ServiceSpec, note: Note) -> String {
    let who = format!("{} {}", spec.kind(), unit.name);
    match note {
        Note::Ended { after, next, .. } => {
            let reason = reason(unit, spec, note).unwrap_or_default();
            let after = match note {
                Note::Ended { end: End::NotStarted(_), .. } => String::new(),
                _ => format!(" after {}", seconds(after)),
            };
            format!("{who} {reason}{after}{}", follows(spec, next))
        }
        Note::Failing { next, .. } => {
            let reason = reason(unit, spec, note).unwrap_or_default();
            format!("{who} {reason}; ending it{}", follows(spec, next))
        }
        Note::Overdue => {
            format!("{who} did not stop within {}; sending SIGKILL", seconds(spec.rules.stop_timeout))
        }
        Note::Undead => format!("{who} did not end after SIGKILL; leaving it behind"),
        Note::NeedFailed => {
            format!("{who} is not started: {}", unit.reason.as_deref().unwrap_or("what it needs has failed"))
        }
        Note::ReloadLate => format!("{who} did not say that its reload is done; it counts as ready again"),
    }
}

/// Why a unit stands where this leads it, as a clause; `None`: the note does not say.
pub fn reason(unit: &Unit, spec: &ServiceSpec, note: Note) -> Option<String> {
    match note {
        Note::Ended { end: End::NotStarted(fault), .. } => Some(unit_not_started(unit, spec, fault)),
        Note::Ended { end, .. } => Some(how_unit(unit, end)),
        Note::Failing { trouble, .. } => Some(why(unit, spec, trouble)),
        Note::Overdue | Note::Undead | Note::NeedFailed | Note::ReloadLate => None,
    }
}

fn why(unit: &Unit, spec: &ServiceSpec, trouble: Trouble) -> String {
    let found = match trouble {
        Trouble::NotReady | Trouble::Unhealthy => unit.reason.as_deref(),
        _ => None,
    };
    let text = self::trouble(spec, trouble);
    match found {
        Some(found) => format!("{text}: {found}"),
        None => text,
    }
}

/// What was wrong with a run that had to be ended.
pub fn trouble(spec: &ServiceSpec, trouble: Trouble) -> String {
    let timeout = || seconds(spec.rules.timeout.unwrap_or_default());
    match (trouble, spec.rules.watch) {
        (Trouble::NotReady, _) => format!("was not ready within {}", timeout()),
        (Trouble::Overtime, _) => format!("took longer than {}", timeout()),
        (Trouble::Unhealthy, Some(Watch::Probe { failures: count @ 2.., .. })) => {
            format!("failed {count} checks in a row")
        }
        (Trouble::Unhealthy, _) => "failed a check".to_owned(),
        (Trouble::Silent, Some(Watch::Silence(span))) => {
            format!("gave no sign of life for {}", seconds(span))
        }
        (Trouble::Silent, _) => "gave no sign of life".to_owned(),
        (Trouble::Stuck, _) => "said that it is stuck".to_owned(),
        (Trouble::Lingering, _) => {
            format!("said that it stops, and did not within {}", seconds(spec.rules.stop_timeout))
        }
    }
}

/// What follows the end of a run, after what happened.
fn follows(spec: &ServiceSpec, next: Next) -> String {
    match next {
        Next::Again(0) => "; starting again at once".to_owned(),
        Next::Again(delay) => format!("; starting again in {}", seconds(delay)),
        Next::Rest if spec.schedule.is_some() => String::new(),
        Next::Rest => "; it is not started again".to_owned(),
        Next::GivenUp => {
            let (count, within) =
                spec.rules.give_up.map_or((0, 0), |give_up| (give_up.failures, give_up.within_ms));
            format!("; {count} failures within {} are too many, it is not started again", seconds(within))
        }
    }
}

/// How a process ended.
pub fn how(end: End) -> String {
    match end {
        End::Unseen => "ended while nobody saw it".to_owned(),
        End::Status(status) => format!("exited with status {status}"),
        End::Signal(number) => format!("was ended by {}", signal(number)),
        End::NotStarted(Fault { stage, errno }) => {
            format!("could not be started: {stage:?}: {}", Errno::from_raw(errno).desc())
        }
    }
}

/// How a unit's process ended, and whether that was for its memory limit.
pub fn how_unit(unit: &Unit, end: End) -> String {
    let why = if unit.out_of_memory { " (its cgroup has reached its memory limit)" } else { "" };
    format!("{}{why}", how(end))
}

/// Why a unit did not come to run: what was found about its user, ports, files or sandbox, or what the failed stage says.
pub fn unit_not_started(unit: &Unit, spec: &ServiceSpec, fault: Fault) -> String {
    match (&unit.trouble, fault.stage) {
        (Some(trouble), Stage::Ports | Stage::Files | Stage::User | Stage::Exec) => {
            format!("could not be started: {trouble}")
        }
        _ => not_started(&spec.program, &spec.setup, fault),
    }
}

/// A signal's name, if it has one.
pub fn signal(number: i32) -> String {
    signal::name(number).map_or_else(|| format!("signal {number}"), |name| format!("SIG{name}"))
}

/// Why a program did not come to run.
pub fn not_started(program: &ProgramSpec, setup: &Setup, fault: Fault) -> String {
    let what = spawn::stage_name(fault.stage, &program.program(&[], setup));
    let hint = spawn::hint(fault).map_or_else(String::new, |hint| format!(" ({hint})"));
    format!("could not be started: {what}: {}{hint}", errno(fault.errno))
}

/// An errno(3) in words.
pub fn errno(number: i32) -> &'static str {
    Errno::from_raw(number).desc()
}

/// `1.2 s`
pub fn seconds(time: Ms) -> String {
    let tenths = time.saturating_add(50) / 100;
    format!("{}.{} s", tenths / 10, tenths % 10)
}

/// `1 process`
pub fn processes(count: usize) -> String {
    if count == 1 { "1 process".to_owned() } else { format!("{count} processes") }
}
