//! The status as a person reads it at three in the morning: who is well, who is not and why, and what to type next.

use super::time::{rfc3339, span};
use super::usage::Session;
use super::{Kind, State, Status, Unit};
use crate::store::owned::Size;

mod advice;

/// How it is shown.
#[derive(Debug, Clone, Copy, Default)]
pub struct Look<'a> {
    /// With colours.
    pub coloured: bool,
    /// Lines are cut to this many letters; `None`: they are as long as they are.
    pub width: Option<usize>,
    /// Units that are not shown, one of which may be why another has failed.
    pub others: &'a [Unit],
    /// What services and tasks need, by name.
    pub needs: &'a [(String, Vec<String>)],
}

/// What the client adds to a unit's status.
#[derive(Debug, Clone, Default)]
pub struct Extra {
    /// All processes in the unit's session; without memory: not known.
    pub session: Session,
    /// The last line that it has printed.
    pub last_line: Option<String>,
}

/// The status as text. `extras` are the units' in the same order; `file` is what the bundle is called by.
pub fn render(status: &Status, extras: &[Extra], look: Look<'_>, file: &str) -> String {
    let mut lines = vec![headline(status)];
    let rows: Vec<[String; 6]> = status
        .units
        .iter()
        .enumerate()
        .map(|(at, unit)| row(unit, extras.get(at).map_or(0, |extra| extra.session.memory)))
        .collect();
    let title = ["NAME", "STATE", "FOR", "PID", "RESTARTS", "MEMORY"].map(str::to_owned);
    let widest = |column: usize| rows.iter().chain([&title]).map(|row| row[column].len()).max().unwrap_or(0);
    let widths: [usize; 6] = std::array::from_fn(widest);
    lines.push(columns(&title, &widths, None));
    for (at, (unit, row)) in status.units.iter().zip(&rows).enumerate() {
        lines.push(columns(row, &widths, look.coloured.then(|| colour(unit))));
        lines.extend(notes(unit, extras.get(at)));
    }
    lines.extend(advice::next(status, extras, look, file));
    lines.iter().map(|line| cut(line, look.width) + "\n").collect()
}

fn headline(status: &Status) -> String {
    let Status { bundle, version, pid, state_folder, .. } = status;
    let doing = if status.stopping { "stopping" } else { "running" };
    format!(
        "{bundle} {version}  {doing}, process {pid}, for {} (since {}), state in {}",
        span(status.for_ms),
        rfc3339(status.since),
        state_folder.display()
    )
}

fn row(unit: &Unit, memory: u64) -> [String; 6] {
    let dash = || "-".to_owned();
    [
        unit.name.clone(),
        unit.state.name().to_owned(),
        span(unit.for_ms),
        unit.pid.map_or_else(dash, |pid| pid.to_string()),
        if unit.kind == Kind::Task { runs(unit.restarts) } else { unit.restarts.to_string() },
        if memory == 0 { dash() } else { Size(memory).to_string() },
    ]
}

fn runs(count: u64) -> String {
    if count == 1 { "1 run".to_owned() } else { format!("{count} runs") }
}

/// Names to the left, numbers to the right.
fn columns(row: &[String; 6], widths: &[usize; 6], colour: Option<u8>) -> String {
    let mut line = String::new();
    for (at, (cell, width)) in row.iter().zip(widths).enumerate() {
        let cell = if at < 2 { format!("{cell:<width$}") } else { format!("{cell:>width$}") };
        let cell = match colour {
            Some(colour) if at == 1 => format!("\x1b[{colour}m{cell}\x1b[0m"),
            _ => cell,
        };
        line.push_str("  ");
        line.push_str(&cell);
    }
    line.truncate(line.trim_end().len());
    line
}

/// Green: well. Yellow: on its way. Red: not well.
const fn colour(unit: &Unit) -> u8 {
    match unit.state {
        State::Ready | State::Running | State::Idle | State::Done => 32,
        State::Waiting | State::Starting | State::Reloading | State::Stopping | State::Stopped => 33,
        State::Retrying | State::Failed => 31,
    }
}

/// What stands below a unit that is not simply well, and below one that came back.
fn notes(unit: &Unit, extra: Option<&Extra>) -> Vec<String> {
    let mut notes = Vec::new();
    let well = unit.is_ready() || unit.state == State::Running;
    // Its last end, which follows, says as much where there is no other reason.
    let end = unit.last_end.as_ref().map(|end| end.how.as_str());
    if !well
        && unit.state != State::Stopped
        && (end.is_none() || unit.reason.as_deref().is_some_and(|why| Some(why) != end))
    {
        notes.push(format!("why        {}", unit.why()));
    }
    if let Some(delay) = unit.retry_in_ms {
        let what = if unit.kind == Kind::Task { "next run" } else { "next try" };
        let clock = unit.due_at.as_ref().map_or_else(String::new, |at| format!(", at {at}"));
        notes.push(format!("{what}   in {}{clock}", span(delay)));
    }
    if let Some(end) = &unit.last_end
        && (unit.restarts > 0 || !well || unit.state == State::Idle)
        && unit.state != State::Done
    {
        // What did not come to run has not run for any time.
        let ran = if end.how.starts_with("could not be started") {
            String::new()
        } else {
            format!(" after {}", span(end.ran_ms))
        };
        notes.push(format!("last end   {}{ran}, {} ago", end.how, span(end.ago_ms)));
    }
    if let Some(pid) = extra.and_then(|extra| extra.session.halted) {
        notes.push(format!("halted     process {pid} does nothing: a signal has stopped it (SIGSTOP)"));
    }
    if let Some(says) = &unit.says {
        notes.push(format!("says       {says}"));
    }
    if let Some(line) = extra.and_then(|extra| extra.last_line.as_ref())
        && !well
    {
        notes.push(format!("last line  {line}"));
    }
    notes.into_iter().map(|note| format!("      {}", printable(&note))).collect()
}

/// What services say goes to a terminal: control characters do not.
fn printable(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect()
}

/// A line cut to a width in letters; escapes take none.
fn cut(line: &str, width: Option<usize>) -> String {
    let Some(width) = width else { return line.to_owned() };
    let (mut out, mut shown, mut escape) = (String::new(), 0, false);
    for letter in line.chars() {
        let is_escape = escape || letter == '\x1b';
        if is_escape || shown < width {
            out.push(letter);
        }
        shown += usize::from(!is_escape);
        escape = is_escape && letter != 'm';
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::Ended;
    use super::*;

    fn night() -> (Status, Vec<Extra>) {
        let web = Unit {
            name: "web".into(),
            service: "web".into(),
            state: State::Ready,
            for_ms: 7_500_000,
            pid: Some(4713),
            ..Unit::default()
        };
        let worker = Unit {
            name: "worker.1".into(),
            service: "worker".into(),
            state: State::Retrying,
            for_ms: 700,
            restarts: 17,
            retry_in_ms: Some(2_300),
            last_end: Some(Ended {
                how: "exited with status 3".into(),
                ago_ms: 700,
                ran_ms: 120,
                ..Ended::default()
            }),
            ..Unit::default()
        };
        let status = Status {
            bundle: "shop".into(),
            version: "1.2".into(),
            pid: 4711,
            since: 1_795_255_923_000,
            for_ms: 7_600_000,
            state_folder: "/var/lib/kitbag/shop".into(),
            units: vec![web, worker],
            ..Status::default()
        };
        let line = Some("cannot connect \x1b[2J to db".to_owned());
        let web = Session { memory: 12_300_000, halted: None };
        let extras = [(web, None), (Session::default(), line)];
        (status, extras.map(|(session, last_line)| Extra { session, last_line }).into())
    }

    #[test]
    fn a_bad_night_is_told_on_one_screen() {
        let (status, extras) = night();
        let expected = "\
shop 1.2  running, process 4711, for 2 h 6 min (since 2026-11-21T10:12:03.000Z), state in /var/lib/kitbag/shop
  NAME      STATE            FOR   PID  RESTARTS   MEMORY
  web       ready     2 h 5 min  4713         0  12.3 MB
  worker.1  retrying     700 ms     -        17        -
      next try   in 2.3 s
      last end   exited with status 3 after 120 ms, 700 ms ago
      last line  cannot connect  [2J to db
next:
  ./shop logs -n 50 worker.1   what it printed before
  ./shop restart worker.1      try now, with a clean slate
";
        let expected = expected.replace("STATE            FOR", "STATE           FOR");
        assert_eq!(render(&status, &extras, Look::default(), "./shop"), expected);
    }

    #[test]
    fn what_is_limited_and_ends_at_once_is_told_so() {
        let (mut status, extras) = night();
        let limited =
            |status: &Status| render(status, &extras, Look::default(), "./shop").contains("sandbox");
        assert!(!limited(&status));
        status.units[1].limited = true;
        let text = render(&status, &extras, Look::default(), "./shop");
        assert!(text.contains("\n  ./shop exec worker.1 -- COMMAND  "), "{text}");
        assert!(text.contains("not limited by [services.worker.sandbox], which may have refused"), "{text}");
        status.units[1].last_end.as_mut().expect("an end").ran_ms = 60_000;
        assert!(!limited(&status), "it would have been refused before");
    }

    #[test]
    fn a_process_that_a_signal_has_stopped_is_told_with_what_wakes_it() {
        let (mut status, mut extras) = night();
        extras[0].session.halted = Some(4714);
        let shown = |status: &Status| render(status, &extras, Look::default(), "./shop");
        assert!(
            shown(&status).contains("4713         0  12.3 MB\n      halted     process 4714 does nothing: ")
        );
        assert!(!shown(&status).contains("signal CONT"), "what is failing comes first");
        status.units.pop();
        assert!(
            shown(&status).contains("\nnext:\n  ./shop signal CONT web   lets it run on"),
            "{}",
            shown(&status)
        );
    }

    #[test]
    fn a_next_run_has_its_time_on_the_clock() {
        let (mut status, extras) = night();
        let task = Unit { name: "nightly".into(), kind: Kind::Task, state: State::Idle, ..Unit::default() };
        let due_at = Some("2026-11-30T03:00:00+01:00".into());
        status.units[0] = Unit { retry_in_ms: Some(7_500_000), due_at, ..task };
        let text = render(&status, &extras, Look::default(), "./shop");
        assert!(text.contains("next run   in 2 h 5 min, at 2026-11-30T03:00:00+01:00\n"), "{text}");
    }

    #[test]
    fn who_stops_is_not_told_to_start_a_service() {
        let (mut status, extras) = night();
        (status.units[1].state, status.units[1].awaited) = (State::Stopped, true);
        let shown = |status: &Status| render(status, &extras, Look::default(), "./shop");
        assert!(shown(&status).ends_with("  ./shop start worker.1   it was told to stop; this starts it\n"));
        status.stopping = true;
        let end = "next:\n  ./shop start   waits until it has stopped, and starts it again\n";
        assert!(shown(&status).ends_with(end), "{}", shown(&status));
    }

    #[test]
    fn a_narrow_terminal_gets_short_lines_and_whole_escapes() {
        let (status, extras) = night();
        let text =
            render(&status, &extras, Look { coloured: true, width: Some(24), ..Look::default() }, "./shop");
        assert!(text.contains("\x1b[31mretrying\x1b[0m"), "{text:?}");
        for line in text.lines() {
            let bare = line.replace("\x1b[32m", "").replace("\x1b[31m", "").replace("\x1b[0m", "");
            assert!(bare.chars().count() <= 24 && !bare.contains('\x1b'), "{line:?}");
        }
    }
}
