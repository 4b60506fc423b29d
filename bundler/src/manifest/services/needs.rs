//! Whether services and tasks can be started in an order that suits all of them.

use std::collections::BTreeMap;

use crate::diagnostic::{Diagnostic, near_miss};
use crate::read::{Text, alternatives};

/// What can need, and be needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A service.
    Service,
    /// A task that runs at the start.
    First,
    /// A task that runs on a schedule.
    Scheduled,
    /// A task that runs when somebody asks.
    Asked,
}

/// A service or a task.
#[derive(Debug)]
pub struct Unit {
    /// Its name.
    pub name: Text,
    /// What it is.
    pub kind: Kind,
    /// What it needs.
    pub needs: Vec<Text>,
}

/// Adds to `errors` what makes an order impossible: two units of one name, or one's for another's instance, unknown needs,
/// needs that are never fulfilled, circles.
pub fn check(units: &[Unit], errors: &mut Vec<Diagnostic>) {
    let mut known: BTreeMap<&str, usize> = BTreeMap::new();
    for (number, unit) in units.iter().enumerate() {
        if let Some(first) = known.insert(unit.name.get_ref(), number) {
            errors.push(one_name(&units[first], unit));
        }
    }
    errors.extend(units.iter().filter_map(|unit| of_instance(unit, units)));
    let find = |need: &Text| known.get(need.get_ref().as_str()).copied();
    for unit in units {
        errors.extend(unit.needs.iter().filter_map(|need| match find(need) {
            None => Some(unknown(unit, need, &known)),
            Some(number) => never_done(units[number].kind, need),
        }));
    }
    let needs: Vec<Vec<usize>> =
        units.iter().map(|unit| unit.needs.iter().filter_map(find).collect()).collect();
    errors.extend(circles(&needs).iter().map(|circle| circle_error(units, circle)));
}

fn one_name(service: &Unit, task: &Unit) -> Diagnostic {
    Diagnostic::new(format!("a service and a task are both called `{}`", task.name.get_ref()))
        .at(task.name.span(), "the task")
        .with(service.name.span(), "the service")
        .help("give one of them another name: `needs` and commands know both by it")
}

/// A name such as `web.1` beside a service `web`, however many instances of that there are.
fn of_instance(unit: &Unit, units: &[Unit]) -> Option<Diagnostic> {
    let name = unit.name.get_ref();
    let (service, index) = name.rsplit_once('.')?;
    let is_index = !index.is_empty() && index.bytes().all(|byte| byte.is_ascii_digit());
    let is_service = |unit: &&Unit| matches!(unit.kind, Kind::Service) && unit.name.get_ref() == service;
    let service = units.iter().find(is_service).filter(|_| is_index)?;
    let error = Diagnostic::new(format!(
        "`{name}` stands for an instance of the service `{}`",
        service.name.get_ref()
    ))
    .at(unit.name.span(), format!("as `{0}.0` and so on do, however many run", service.name.get_ref()))
    .with(service.name.span(), "the service")
    .help(format!("rename one of them, such as `{}`", name.replace('.', "-")));
    Some(error)
}

fn unknown(unit: &Unit, need: &Text, known: &BTreeMap<&str, usize>) -> Diagnostic {
    let name: &str = need.get_ref();
    let others = || known.keys().copied().filter(|other| *other != unit.name.get_ref().as_str());
    let error = Diagnostic::new(format!("`{}` needs `{name}`, which does not exist", unit.name.get_ref()));
    match near_miss(name, others()) {
        Some(near) => error.at(need.span(), "").near(Some(near)),
        None if others().next().is_none() => error.at(need.span(), "there is no other service and no task"),
        None => error.at(need.span(), format!("expected {}", alternatives(others().take(20)))),
    }
}

/// A need that is fulfilled at no certain time.
fn never_done(kind: Kind, need: &Text) -> Option<Diagnostic> {
    let when = match kind {
        Kind::Service | Kind::First => return None,
        Kind::Scheduled => "runs on a schedule",
        Kind::Asked => "runs only when somebody asks",
    };
    let name = need.get_ref();
    let error = Diagnostic::new(format!("nothing can wait for task `{name}`, which {when}"))
        .at(need.span(), "it would wait for ever, or for hours")
        .help(
            "a task without `schedule`, `every` and `on-demand` runs once at the start, before what needs it",
        );
    Some(error)
}

fn circle_error(units: &[Unit], circle: &[usize]) -> Diagnostic {
    let ring: Vec<String> = circle
        .iter()
        .chain(circle.first())
        .map(|number| format!("`{}`", units[*number].name.get_ref()))
        .collect();
    if let [one] = circle {
        let unit = &units[*one];
        let error = Diagnostic::new(format!("{} needs itself", ring[0]));
        return mark(error, unit, unit).help("leave it out");
    }
    let mut error = Diagnostic::new(format!("services that wait for each other: {}", ring.join(" needs ")));
    for (place, number) in circle.iter().enumerate() {
        let next = circle[(place + 1) % circle.len()];
        error = mark(error, &units[*number], &units[next]);
    }
    error.help("leave one of these needs out: none of them could start first")
}

/// Points at the place where `unit` needs `other`.
fn mark(error: Diagnostic, unit: &Unit, other: &Unit) -> Diagnostic {
    let need = unit.needs.iter().find(|need| need.get_ref() == other.name.get_ref());
    match need {
        Some(need) => error.at(need.span(), ""),
        None => error,
    }
}

/// Circles in a graph, each as the numbers of its nodes in order; no node is in two of them.
fn circles(needs: &[Vec<usize>]) -> Vec<Vec<usize>> {
    let mut circles = Vec::new();
    // Nodes from which everything has been seen.
    let mut done = vec![false; needs.len()];
    for start in 0..needs.len() {
        // The way from the start, each with the number of its needs that have been gone along.
        let mut way: Vec<(usize, usize)> = vec![(start, 0)];
        while let Some((node, gone)) = way.last_mut() {
            let (node, next) = (*node, needs[*node].get(*gone).copied());
            *gone += 1;
            if done[node] || next.is_none() {
                done[node] = true;
                way.pop();
                continue;
            }
            let Some(next) = next else { continue };
            match way.iter().position(|(other, _)| *other == next) {
                Some(at) if !way[at..].iter().any(|(node, _)| done[*node]) => {
                    let circle: Vec<usize> = way[at..].iter().map(|(node, _)| *node).collect();
                    circle.iter().for_each(|node| done[*node] = true);
                    circles.push(circle);
                }
                Some(_) => {}
                None if !done[next] => way.push((next, 0)),
                None => {}
            }
        }
    }
    circles
}
