//! First and later starts, and what they cost.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nix::sys::resource::{UsageWho, getrusage};

use crate::Bench;
use crate::inputs::Input;
use crate::measure::{
    Start, difference, empty, forget_removals, median, on_path, remove, shell, spread, timed, tool,
};
use crate::peers::Packer;
use crate::report::{Bar, Row};

/// A place in memory, and the place on disk.
pub fn stores(bench: &Bench) -> [(&'static str, PathBuf); 2] {
    let name = format!("kitbag-bench-{}", std::process::id());
    [("tmpfs", Path::new("/dev/shm").join(&name)), ("disk", bench.options.work.join(&name))]
}

/// A folder that is gone afterwards, with the state folder beside it.
pub struct Place(pub PathBuf);

impl Place {
    /// Makes it, empty.
    pub fn new(dir: PathBuf) -> Result<Place, String> {
        empty(&dir)?;
        Ok(Place(dir))
    }

    /// Empties it.
    pub fn wipe(&self) -> Result<(), String> {
        remove(&self.0.with_extension("state"));
        empty(&self.0)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        remove(&self.0.with_extension("state"));
        remove(&self.0);
    }
}

/// What a later start adds to the bare program, interleaved with it, and its system calls.
pub fn warm(bench: &mut Bench) -> Result<(), String> {
    for input in bench.trees(&["tiny", "medium", "large"])? {
        let place = Place::new(stores(bench)[0].1.clone())?;
        let packers = bench.packers.clone();
        let mut starts = Vec::new();
        for packer in &packers {
            let store = place.0.join(packer.name());
            empty(&store)?;
            let start = packer.start(&bench.file(packer, &input)?, &store);
            start.run().map_err(|why| format!("{}: {why}", packer.name()))?;
            // What unpacks at each start has no later starts worth 200 rounds.
            if *packer != Packer::Makeself {
                starts.push((packer.name(), start));
            }
        }
        let above = above_bare(&Start::of(&input.entry()), &starts, bench.times(400))?;
        for (at, (name, start)) in starts.iter().enumerate() {
            if at > 0 {
                bench
                    .add(Row::new("later start above bare, ms", &input.name, above[0]).peer(name, above[at]));
            } else {
                bench.add(Row::new("later start above bare, ms", &input.name, above[0]).bar(Bar::Most(0.15)));
            }
            if at == 0 && on_path("strace").is_some() {
                let calls = system_calls(start, &place.0)?;
                bench.add(
                    Row::new("system calls before the program", &input.name, calls).bar(Bar::Most(20.0)),
                );
            }
        }
    }
    if on_path("strace").is_none() {
        return Err("system calls: no strace (Debian: apt-get install strace)".to_owned());
    }
    Ok(())
}

/// Milliseconds from spawn to `main`, the bare program's subtracted.
fn above_bare(bare: &Start, starts: &[(&str, Start)], rounds: usize) -> Result<Vec<f64>, String> {
    let mut taken = vec![Vec::new(); starts.len() + 1];
    for _ in 0..rounds {
        taken[0].push(bare.run()?.main_ms);
        for ((_, start), taken) in starts.iter().zip(&mut taken[1..]) {
            taken.push(start.run()?.main_ms);
        }
    }
    let mut middle = taken.into_iter().map(median);
    let bare = middle.next().unwrap_or(f64::NAN);
    Ok(middle.map(|ms| ms - bare).collect())
}

/// All system calls from the exec of the bundle up to and with the exec of the program.
fn system_calls(start: &Start, scratch: &Path) -> Result<f64, String> {
    let log = scratch.join("strace");
    let mut traced = start.clone();
    let strace = ["strace", "-f", "-qq", "-o"].map(str::to_owned);
    traced.argv = strace.into_iter().chain([log.display().to_string()]).chain(start.argv.clone()).collect();
    traced.run()?;
    let text = std::fs::read_to_string(&log).map_err(|error| error.to_string())?;
    let call = |line: &str| {
        let line = line.split_once(' ').map_or("", |(_, rest)| rest.trim_start()).to_owned();
        line.starts_with(|c: char| c.is_ascii_lowercase()).then_some(line)
    };
    let calls: Vec<String> = text.lines().filter_map(call).collect();
    let exec = |call: &String| call.starts_with("exec") && call.contains("hello") && call.ends_with("= 0");
    // The first exec is the bundle's own.
    let program = calls.iter().skip(1).position(exec).ok_or("strace shows no exec of the program")?;
    Ok((program + 2) as f64)
}

/// First starts with an empty store, beside `zstd -dc | tar x` of the same tree.
pub fn cold(bench: &mut Bench) -> Result<(), String> {
    let [(_, memory), (_, disk)] = stores(bench);
    let inputs = bench.trees(&["medium", "large"])?;
    let memory = Place::new(memory)?;
    for input in &inputs {
        let often = bench.times(if input.name == "large" { 9 } else { 15 }).max(3);
        cold_in(bench, input, "tmpfs", &memory, often)?;
    }
    if bench.options.quick {
        bench
            .notes
            .push("first start (disk): left out by --quick, a few rounds say nothing there".to_owned());
        return Ok(());
    }
    let disk = Place::new(disk)?;
    for input in &inputs {
        bench.file(&Packer::Tools, input)?;
    }
    forget_removals();
    inputs.iter().try_for_each(|input| cold_in(bench, input, "disk", &disk, 6))
}

/// One who unpacks, and what it took.
struct Contender {
    name: &'static str,
    packer: Packer,
    ms: Vec<f64>,
    cpu: Vec<f64>,
}

impl Contender {
    fn of(packer: Packer) -> Contender {
        let name = if packer == Packer::Tools { "zstd -dc | tar x" } else { packer.name() };
        Contender { name, packer, ms: Vec::new(), cpu: Vec::new() }
    }

    /// Unpacks `file` into the empty folder `dir`.
    fn unpack(&mut self, input: &Input, file: &Path, dir: &Path) -> Result<(), String> {
        let before = children_ms();
        if self.packer == Packer::Tools {
            let unpack = || shell("zstd -dc -q \"$1\" | tar x -C \"$2\"", &[file, dir]).map(drop);
            self.ms.push(timed(unpack)? * 1e3);
        } else {
            let hello = self.packer.start(file, dir).run().map_err(|why| format!("{}: {why}", self.name))?;
            self.ms.push(hello.main_ms);
            // A start that fell back to another place, or kept its tree, would look quick.
            if !hello.exe.starts_with(dir) {
                return Err(format!(
                    "{}: it ran from {}, not below {}",
                    self.name,
                    hello.exe.display(),
                    dir.display()
                ));
            }
            if self.ms.len() == 1 && matches!(self.packer, Packer::Kitbag { .. }) {
                right(input, &hello.root())?;
            }
        }
        self.cpu.push(children_ms() - before);
        Ok(())
    }
}

/// Rounds in which everybody has every turn as often as the others. On disk each unpacks into a new folder and
/// nothing is removed before the end, and makeself is left out, because it removes its tree itself.
fn cold_in(bench: &mut Bench, input: &Input, kind: &str, place: &Place, often: usize) -> Result<(), String> {
    let disk = kind == "disk";
    let packers = bench.packers.clone().into_iter().filter(|packer| !disk || *packer != Packer::Makeself);
    let mut all: Vec<Contender> = packers.map(Contender::of).collect();
    let files = all.iter().map(|one| bench.file(&one.packer, input)).collect::<Result<Vec<_>, _>>()?;
    for round in 0..often {
        for turn in 0..all.len() {
            let at = (round + turn) % all.len();
            let dir = place.0.join(format!("{}-{round}-{at}", input.name));
            empty(&dir)?;
            if disk {
                tool(&["sync"])?;
            }
            all[at].unpack(input, &files[at], &dir)?;
            if !disk {
                remove(&dir.with_extension("state"));
                remove(&dir);
            }
        }
    }
    show(bench, input, kind, &all);
    Ok(())
}

fn show(bench: &mut Bench, input: &Input, kind: &str, all: &[Contender]) {
    let most = if kind == "tmpfs" { 0.6 } else { 1.0 };
    let ours = &all[0];
    for theirs in &all[1..] {
        let row = |unit: &str, of: fn(&Contender) -> &Vec<f64>| {
            let row =
                Row::new(&format!("first start ({kind}), {unit}"), &input.name, median(of(ours).clone()));
            let note = format!("{}; peer {}", spread(of(ours)), spread(of(theirs)));
            row.peer(theirs.name, median(of(theirs).clone())).note(note)
        };
        let (ms, cpu) = (row("ms", |one| &one.ms), row("CPU ms", |one| &one.cpu));
        if theirs.packer == Packer::Tools {
            bench.add(ms.bar(Bar::Ratio(most)));
            // Says on a busy machine what the times cannot say.
            bench.add(cpu);
        } else {
            bench.add(ms);
        }
    }
}

/// Milliseconds of CPU that all ended children have taken.
pub fn children_ms() -> f64 {
    let ms = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 * 1e3 + time.tv_usec() as f64 / 1e3;
    getrusage(UsageWho::RUSAGE_CHILDREN)
        .map_or(f64::NAN, |usage| ms(usage.user_time()) + ms(usage.system_time()))
}

/// An error if the unpacked tree is not the input.
pub fn right(input: &Input, root: &Path) -> Result<(), String> {
    match difference(&input.dir, root) {
        Some(what) => Err(format!("the tree {} is wrong: {what}", root.display())),
        None => Ok(()),
    }
}

/// Peak memory of a first start, taken by a small process between, so that nothing else counts.
pub fn memory(bench: &mut Bench) -> Result<(), String> {
    for input in bench.trees(&["medium", "large"])? {
        let place = Place::new(stores(bench)[0].1.clone())?;
        let ours = bench.ours();
        let mut start = ours.start(&bench.file(&ours, &input)?, &place.0);
        let me = std::env::current_exe().map_err(|error| error.to_string())?.display().to_string();
        start.argv = [me, METER.to_owned()].into_iter().chain(start.argv).collect();
        let out = start.command().output().map_err(|error| error.to_string())?;
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        let kib = said.lines().last().and_then(|line| line.parse::<f64>().ok()).ok_or(said)?;
        bench.add(
            Row::new("peak memory of a first start, MB", &input.name, kib * 1024.0 / 1e6)
                .bar(Bar::Most(64.0)),
        );
    }
    Ok(())
}

const METER: &str = "--peak-memory-of";

/// This program as the process between: runs what follows and prints its children's peak, in KiB.
pub fn as_meter() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    (args.next()? == METER).then_some(())?;
    let status = std::process::Command::new(args.next()?).args(args).status();
    let peak = getrusage(UsageWho::RUSAGE_CHILDREN).map_or(0, |usage| usage.max_rss());
    eprintln!("{peak}");
    Some(if status.is_ok_and(|status| status.success()) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What comparing all files of a service bundle's tree adds to its start.
pub fn compare(bench: &mut Bench) -> Result<(), String> {
    if bench.trees(&["large"])?.is_empty() {
        return Ok(());
    }
    let large = bench.inputs.tree("many")?;
    let tiny = bench.inputs.tree("tiny")?;
    let place = Place::new(stores(bench)[0].1.clone())?;
    let packer = bench.service();
    let (tiny, large) = (bench.file(&packer, &tiny)?, bench.file(&packer, &large)?);
    let (mut base, mut whole) = (Vec::new(), Vec::new());
    for _ in 0..bench.times(20) + 1 {
        base.push(service_start(&packer, &tiny, &place.0)?);
        whole.push(service_start(&packer, &large, &place.0)?);
    }
    // The first round unpacked.
    let (whole, base) = (whole.split_off(1), base.split_off(1));
    let note = format!("{}; tiny {}", spread(&whole), spread(&base));
    let ms = median(whole) - median(base);
    bench.add(Row::new("compare 20,000 files, ms", "many", ms).bar(Bar::Most(60.0)).note(note));
    Ok(())
}

fn service_start(packer: &Packer, file: &Path, store: &Path) -> Result<f64, String> {
    let mut running = packer.start(file, store).spawn()?;
    let hello = running.hello()?;
    running.terminate();
    Ok(hello.main_ms)
}
