//! Orphans: how fast who adopts them reaps them, as a subreaper and as the first process of a PID namespace.

use std::time::{Duration, Instant};

use super::peers::{Logs, Supervisor};
use super::{PATIENCE, Report, Site, of, processes, supervisors};
use crate::Bench;
use crate::measure::{median, now, spread};
use crate::report::{Bar, Row};

/// Where it stands in the tree of processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// A process like others that has asked for orphans (prctl(2) `PR_SET_CHILD_SUBREAPER`).
    Subreaper,
    /// The first one of a PID namespace, as in a container.
    First,
}

impl Place {
    const BOTH: [Self; 2] = [Self::Subreaper, Self::First];

    const fn name(self) -> &'static str {
        match self {
            Self::Subreaper => "subreaper",
            Self::First => "PID 1",
        }
    }

    /// What stands before the command.
    const fn before(self) -> &'static [&'static str] {
        match self {
            Self::Subreaper => &[],
            Self::First => &["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"],
        }
    }

    /// The supervisor, which has one child: the service.
    fn supervisor(self, site: &Site) -> Result<i32, String> {
        match self {
            Self::Subreaper => Ok(site.supervisor()),
            Self::First => processes::first_child(site.supervisor()).ok_or("unshare has no child".to_owned()),
        }
    }

    /// Those that take in orphans there: all others leave them to somebody else.
    fn takes(self, who: &Supervisor) -> bool {
        match who {
            Supervisor::Kitbag(_) | Supervisor::Dinit(_) | Supervisor::Tini | Supervisor::Nobody => true,
            Supervisor::DumbInit | Supervisor::S6 => self == Self::First,
            Supervisor::Floor | Supervisor::Runit | Supervisor::Supervisord => false,
        }
    }
}

/// 20,000 orphans end at once: until no zombie is left. And as many one after another, the most zombies seen meanwhile.
pub fn orphans(bench: &mut Bench) -> Result<(), String> {
    for place in Place::BOTH {
        if place == Place::First && !nix::unistd::geteuid().is_root() {
            return Err("a PID namespace takes root".to_owned());
        }
        let all = supervisors(bench)?.into_iter().chain(Supervisor::adopters());
        let mut all: Vec<Supervisor> = all.filter(|who| place.takes(who)).collect();
        at_once(bench, place, &all)?;
        all.retain(|who| *who != Supervisor::Nobody);
        stream(bench, place, &all)?;
    }
    Ok(())
}

fn at_once(bench: &mut Bench, place: Place, all: &[Supervisor]) -> Result<(), String> {
    let (count, rounds) = (count(bench), bench.times(7));
    let mut site = Site::new()?;
    let mut taken = vec![Vec::new(); all.len()];
    // In turn: whatever else the machine does, it does to all of them.
    for _ in 0..rounds {
        for (who, taken) in all.iter().zip(&mut taken) {
            taken.push(burst(&mut site, place, who, count)?);
        }
    }
    let what = "orphans that end at once, ms until none is left";
    let input = format!("{count}, {}", place.name());
    let Some(((_, ours), peers)) =
        all.iter().zip(&taken).collect::<Vec<_>>().split_first().map(|(a, b)| (*a, b.to_vec()))
    else {
        return Ok(());
    };
    let own = median(ours.clone());
    bench.add(Row::new(what, &input, own).bar(Bar::Most(500.0)).note(spread(ours)));
    for (who, taken) in peers {
        let row = Row::new(what, &input, own).peer(who.name(), median(taken.clone())).note(spread(taken));
        bench.add(if *who == Supervisor::Tini { row.bar(Bar::Ratio(1.0)) } else { row });
    }
    Ok(())
}

/// Milliseconds from the moment that all orphans may end.
fn burst(site: &mut Site, place: Place, who: &Supervisor, count: usize) -> Result<f64, String> {
    /// To list so many children again and again would be most of what is measured.
    const EACH: Duration = Duration::from_micros(4);
    let before = processes::tasks();
    let reports = begin(site, place, who, &["orphans", &count.to_string()], |_| {})?;
    let began = of(&reports, 'R').map(|report| report.at).max().unwrap_or_default();
    let parent = place.supervisor(site)?;
    let begin = Instant::now();
    let mut next = begin + EACH * u32::try_from(count).unwrap_or(u32::MAX);
    loop {
        // The machine's number of tasks costs nothing, but others have tasks too.
        if processes::tasks() <= before + 64 || Instant::now() >= next {
            let taken = (now() - began) as f64 / 1e6;
            let left = processes::children(parent);
            if left <= 1 {
                site.clear();
                return Ok(taken);
            }
            next = Instant::now() + EACH * u32::try_from(left).unwrap_or(u32::MAX);
        }
        if begin.elapsed() > PATIENCE {
            return Err(format!("{}: zombies stay", who.name()));
        }
        std::thread::sleep(Duration::from_micros(500));
    }
}

fn stream(bench: &mut Bench, place: Place, all: &[Supervisor]) -> Result<(), String> {
    let count = count(bench);
    let mut site = Site::new()?;
    let mut most = Vec::new();
    for who in all {
        let mut seen = 0;
        begin(&mut site, place, who, &["stream", &count.to_string()], |parent| {
            // One of them is the service.
            seen = seen.max(processes::children(parent).saturating_sub(1));
        })?;
        site.clear();
        most.push((who.name(), seen as f64));
    }
    let input = format!("{count}, {}", place.name());
    super::rows(
        bench,
        "orphans that end one after another, most seen",
        &input,
        &most,
        Some(Bar::Most(100.0)),
    );
    Ok(())
}

/// Starts a service in this mode, and calls `meanwhile` with its parent's process id until the service has
/// reported `R`; returns all reports.
fn begin(
    site: &mut Site,
    place: Place,
    who: &Supervisor,
    mode: &[&str],
    mut meanwhile: impl FnMut(i32),
) -> Result<Vec<Report>, String> {
    let services = site.services(1, mode);
    let mut reports = site.start_behind(place.before(), who, &services, Logs::None)?;
    let parent = place.supervisor(site)?;
    let begin = Instant::now();
    while of(&reports, 'R').count() == 0 {
        meanwhile(parent);
        if begin.elapsed() > PATIENCE {
            return Err(format!("{}: its service makes no orphans", who.name()));
        }
        std::thread::sleep(Duration::from_micros(500));
        reports.extend(site.take());
    }
    Ok(reports)
}

fn count(bench: &Bench) -> usize {
    if bench.options.quick { 2_000 } else { 20_000 }
}
