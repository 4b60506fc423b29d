//! What to type next: about the cause, and not about what it keeps from starting.

use kitbag_format::sort;

use super::{Extra, Look};
use crate::state::Ms;
use crate::status::{Kind, State, Status, Unit};

/// A run that ends badly in this time may have been refused something by its sandbox.
const SOON: Ms = 3_000;
/// Who starts for longer than this is worth a look.
const SLOW: Ms = 10_000;

/// Commands, with what they are for.
type Lines = Vec<(String, String)>;

/// What to type next, for the unit that is not well and that others wait for, or else for the first one. `file` is what the
/// bundle is called by.
pub fn next(status: &Status, extras: &[Extra], look: Look<'_>, file: &str) -> Vec<String> {
    let all: Vec<&Unit> = status.units.iter().chain(look.others).collect();
    let mut lines = Lines::new();
    let mut line = |command: String, about: &str| lines.push((format!("{file} {command}"), about.to_owned()));
    if status.stopping {
        line("start".to_owned(), "waits until it has stopped, and starts it again");
    } else if let Some(unit) = foremost(&status.units, &all) {
        of_unwell(unit, &mut line);
        let starts = starts_after(unit, &status.units, &all);
        let starts = needs_first(with_needs(starts, look.needs, &all), look.needs);
        if !starts.is_empty() {
            let about = match unit.failed_need.as_deref() {
                Some(need) => format!("{need} had failed, and this has not been started since"),
                None => format!("then this, which needs {}", unit.service),
            };
            line(format!("start {}", starts.join(" ")), &about);
        }
    } else if let Some((unit, _)) =
        status.units.iter().zip(extras).find(|(_, extra)| extra.session.halted.is_some())
    {
        line(format!("signal CONT {}", unit.name), "lets it run on; with `health` this is noticed");
    } else if let Some(unit) = status.units.iter().find(|unit| unit.state == State::Stopped) {
        of_stopped(unit, &mut line);
    }
    let width = lines.iter().map(|(command, _)| command.len()).max().unwrap_or(0);
    let shown = lines.iter().map(|(command, about)| format!("  {command:width$}   {about}"));
    if lines.is_empty() { Vec::new() } else { std::iter::once("next:".to_owned()).chain(shown).collect() }
}

/// The unit to be mended first: what has failed by itself comes before what it keeps from starting, and what has failed
/// for good before what is tried again.
fn foremost<'a>(shown: &'a [Unit], all: &[&'a Unit]) -> Option<&'a Unit> {
    let failed = |unit: &&Unit| unit.state == State::Failed;
    let by_itself = |unit: &&Unit| unit.state == State::Failed && unit.failed_need.is_none();
    let slow = |unit: &&Unit| unit.state == State::Starting && unit.for_ms > SLOW;
    let victim = || shown.iter().find(failed).map(|unit| cause_of(unit, all));
    let retrying = || shown.iter().find(|unit| unit.state == State::Retrying);
    shown.iter().find(by_itself).or_else(victim).or_else(retrying).or_else(|| shown.iter().find(slow))
}

/// This unit, what keeps it from starting, what keeps that, and so on: the cause is the last one, and may be the only one.
fn chain<'a>(unit: &'a Unit, all: &[&'a Unit]) -> Vec<&'a Unit> {
    let (mut chain, mut last) = (vec![unit], unit);
    while chain.len() <= all.len()
        && let Some(name) = last.failed_need.as_deref()
        && let Some(need) = all.iter().find(|it| it.name == name || it.service == name)
        && !need.is_ready()
    {
        chain.push(need);
        last = need;
    }
    chain
}

fn cause_of<'a>(unit: &'a Unit, all: &[&'a Unit]) -> &'a Unit {
    chain(unit, all).last().copied().unwrap_or(unit)
}

/// The services to be started once the cause is mended, the nearest first: those that it keeps from
/// starting, up to those that are shown, and itself if something did that to it which is well again.
fn starts_after(cause: &Unit, shown: &[Unit], all: &[&Unit]) -> Vec<String> {
    let from = usize::from(cause.failed_need.is_none());
    let mut found: Vec<(usize, &str)> = Vec::new();
    for unit in shown.iter().filter(|unit| unit.state == State::Failed) {
        let chain = chain(unit, all);
        if chain.last().is_some_and(|last| last.name == cause.name) {
            found.extend(chain.iter().rev().map(|unit| unit.service.as_str()).enumerate().skip(from));
        }
    }
    sort::by(&mut found, &|one, other| one.0.cmp(&other.0));
    let mut names: Vec<String> = Vec::new();
    for (_, name) in found {
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    names
}

/// What this service or task needs.
fn needs_of<'a>(name: &str, needs: &'a [(String, Vec<String>)]) -> &'a [String] {
    needs.iter().find(|(known, _)| known == name).map_or(&[], |(_, needs)| needs)
}

/// The names, and those of what they need that was not started either: a unit says one need that has failed, and may have
/// more.
fn with_needs(mut names: Vec<String>, needs: &[(String, Vec<String>)], all: &[&Unit]) -> Vec<String> {
    let is_victim = |name: &String| all.iter().any(|it| it.service == *name && it.failed_need.is_some());
    let mut at = 0;
    while let Some(name) = names.get(at) {
        for need in needs_of(name, needs) {
            if is_victim(need) && !names.contains(need) {
                names.push(need.clone());
            }
        }
        at += 1;
    }
    names
}

/// The names in an order in which they can be started.
fn needs_first(mut names: Vec<String>, needs: &[(String, Vec<String>)]) -> Vec<String> {
    let mut order = Vec::new();
    while !names.is_empty() {
        let is_next = |name: &String| !needs_of(name, needs).iter().any(|need| names.contains(need));
        // The others are a circle, which no bundle has that was packed.
        let next = names.iter().position(is_next).unwrap_or(0);
        order.push(names.remove(next));
    }
    order
}

fn of_unwell(unit: &Unit, line: &mut dyn FnMut(String, &str)) {
    let name = &unit.name;
    match unit.state {
        // It was not started, so it has printed nothing.
        State::Failed if unit.failed_need.is_some() => return,
        State::Failed | State::Retrying => {}
        State::Starting if unit.for_ms > SLOW => {}
        State::Stopped => return of_stopped(unit, line),
        // It is on its way.
        _ => return,
    }
    line(format!("logs -n 50 {name}"), "what it printed before");
    match unit.kind {
        Kind::Service => line(format!("restart {name}"), "try now, with a clean slate"),
        Kind::Task => line(format!("run-task {name} --wait"), "try again"),
    }
    if unit.limited && ends_at_once(unit) {
        let about = format!(
            "what is started so is not limited by [{}s.{}.sandbox], which may have refused something: docs/sandbox.md",
            unit.kind.name(),
            unit.service
        );
        line(format!("exec {name} -- COMMAND"), &about);
    }
}

fn of_stopped(unit: &Unit, line: &mut dyn FnMut(String, &str)) {
    if unit.has_no_instance() {
        line(format!("scale {}=1", unit.service), "it was scaled to 0 instances");
    } else {
        line(format!("start {}", unit.name), "it was told to stop; this starts it");
    }
}

/// True for a bad end soon after the start, as of a program that was refused something that it needs.
fn ends_at_once(unit: &Unit) -> bool {
    unit.last_end.as_ref().is_some_and(|end| !end.well && end.ran_ms < SOON)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(name: &str, state: State, reason: &str) -> Unit {
        let need = reason.strip_prefix("it needs ").and_then(|rest| rest.split(',').next());
        let failed_need = need.map(str::to_owned);
        let reason = Some(reason.to_owned()).filter(|reason| !reason.is_empty());
        let service = name.to_owned();
        Unit { name: name.into(), service, awaited: true, state, reason, failed_need, ..Unit::default() }
    }

    fn task(name: &str, state: State, reason: &str) -> Unit {
        Unit { kind: Kind::Task, ..unit(name, state, reason) }
    }

    /// The commands, one a line.
    fn advised(units: Vec<Unit>, others: &[Unit]) -> String {
        let status = Status { units, ..Status::default() };
        let extras = vec![Extra::default(); status.units.len()];
        let web = vec!["migrate".to_owned()];
        let app = vec!["migrate".to_owned(), "web".to_owned()];
        let needs = [("app".to_owned(), app), ("web".to_owned(), web)];
        let lines = next(&status, &extras, Look { others, needs: &needs, ..Look::default() }, "./shop");
        let commands = lines.iter().skip(1).map(|line| line.trim().split("   ").next().unwrap_or_default());
        commands.map(|command| command.strip_prefix("./shop ").expect("the file").to_owned() + "\n").collect()
    }

    #[test]
    fn causes_come_before_victims_and_victims_in_the_order_of_their_needs() {
        let chain = || {
            vec![
                unit(
                    "app",
                    State::Failed,
                    "it needs web, which was not started: it needs migrate, which exited",
                ),
                unit("best", State::Retrying, ""),
                task("migrate", State::Failed, "exited with status 4"),
                unit("web", State::Failed, "it needs migrate, which exited with status 4"),
            ]
        };
        let expected = "logs -n 50 migrate\nrun-task migrate --wait\nstart web app\n";
        assert_eq!(advised(chain(), &[]), expected);
        // It needs both, and says one.
        let mut both = chain();
        both[0] = unit("app", State::Failed, "it needs migrate, which exited with status 4");
        assert_eq!(advised(both.clone(), &[]), expected);
        let app = both.remove(0);
        assert_eq!(advised(vec![app], &both), expected);
        // Who asks for the last of them alone.
        let mut others = chain();
        let app = others.remove(0);
        assert_eq!(
            advised(vec![app], &others),
            "logs -n 50 migrate\nrun-task migrate --wait\nstart web app\n"
        );
        // The cause is gone, and they have not been started again.
        let mut units = chain();
        units[2] = task("migrate", State::Done, "");
        assert_eq!(advised(units.clone(), &[]), "start web app\n");
        units[2] = task("migrate", State::Stopped, "");
        assert_eq!(advised(units, &[]), "start migrate\nstart web app\n");
    }

    #[test]
    fn what_has_failed_for_good_comes_before_what_is_tried_again() {
        let units = vec![unit("a", State::Retrying, ""), unit("b", State::Failed, "exited with status 3")];
        assert_eq!(advised(units, &[]), "logs -n 50 b\nrestart b\n");
        let cause = unit("b", State::Retrying, "");
        let victim = unit("c", State::Failed, "it needs b, which exited with status 3");
        assert_eq!(
            advised(vec![unit("a", State::Retrying, ""), cause, victim], &[]),
            "logs -n 50 b\nrestart b\nstart c\n"
        );
    }

    #[test]
    fn of_many_instances_the_service_is_named_and_a_need_that_is_not_there_is_none() {
        let instance = |index| {
            let reason = "it needs db.1, which exited with status 3";
            Unit { service: "web".into(), ..unit(&format!("web.{index}"), State::Failed, reason) }
        };
        let db = Unit { service: "db".into(), ..unit("db.1", State::Failed, "exited with status 3") };
        let units = vec![db, instance(0), instance(1)];
        assert_eq!(advised(units, &[]), "logs -n 50 db.1\nrestart db.1\nstart web\n");
        assert_eq!(advised(vec![instance(1)], &[]), "start web\n");
        // A circle has an end.
        let circle = [
            unit("a", State::Failed, "it needs b, which x"),
            unit("b", State::Failed, "it needs a, which x"),
        ];
        assert!(!advised(circle.to_vec(), &[]).is_empty());
    }
}
