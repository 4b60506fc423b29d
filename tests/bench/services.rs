//! Supervision: memory, launch, restart, idling, logs, orphans and stop, beside other supervisors.

mod orphans;
mod peers;
mod processes;

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};

use crate::Bench;
use crate::measure::{empty, median, now, on_path, remove, shell, tool, walk};
use crate::report::{Bar, Row};
pub use orphans::orphans;
use peers::{Logs, Service, Supervisor};

/// No supervisor takes so long for anything that is measured here.
const PATIENCE: Duration = Duration::from_secs(120);
/// A report's bytes.
const RECORD: usize = 48;
/// A line that a service prints, in bytes.
const LINE: u64 = 100;
/// All of them: 256 MiB, in whole lines.
const PRINTED: u64 = (256 << 20) / LINE * LINE;

/// What a service has reported of itself.
#[derive(Debug, Clone)]
struct Report {
    kind: char,
    id: String,
    pid: i32,
    /// CLOCK_MONOTONIC, nanoseconds.
    at: i64,
}

/// A supervisor at work with its services. Dropped, all of them are gone.
struct Site {
    dir: PathBuf,
    program: PathBuf,
    reports: File,
    child: Option<Child>,
    /// When it was started.
    began: i64,
}

impl Site {
    /// An empty one, in memory, with the service's program.
    fn new() -> Result<Self, String> {
        processes::adopt();
        let dir = Path::new("/dev/shm").join(format!("kitbag-bench-services-{}", std::process::id()));
        empty(&dir)?;
        let program = dir.join("service");
        let source = crate::workspace().join("tests/bench/services/service.c");
        // glibc's start alone takes longer than any supervisor's restart.
        let cc = if on_path("musl-gcc").is_some() { "musl-gcc" } else { "cc" };
        shell(&format!("{cc} -static -Os -s -o \"$1\" \"$2\""), &[&program, &source])?;
        let fifo = dir.join("reports");
        mkfifo(&fifo, Mode::S_IRWXU).map_err(|errno| format!("{}: {errno}", fifo.display()))?;
        let open = OpenOptions::new().read(true).write(true).custom_flags(nix::libc::O_NONBLOCK).open(&fifo);
        let reports = open.map_err(|error| format!("{}: {error}", fifo.display()))?;
        Ok(Self { dir, program, reports, child: None, began: 0 })
    }

    /// Services that differ in name alone.
    fn services(&self, count: usize, mode: &[&str]) -> Vec<Service> {
        let fifo = self.dir.join("reports").display().to_string();
        let one = |number: usize| {
            let name = format!("s{number}");
            let argv = [&self.program.display().to_string(), mode[0], &fifo, &name].map(str::to_owned);
            let argv = argv.into_iter().chain(mode[1..].iter().map(|&word| word.to_owned())).collect();
            Service { name, argv }
        };
        (0..count).map(one).collect()
    }

    /// Starts the supervisor. Returns when every service has reported, with those reports.
    fn start(&mut self, who: &Supervisor, services: &[Service], logs: Logs) -> Result<Vec<Report>, String> {
        self.start_behind(&[], who, services, logs)
    }

    /// The same with words before the supervisor's command.
    fn start_behind(
        &mut self,
        before: &[&str],
        who: &Supervisor,
        services: &[Service],
        logs: Logs,
    ) -> Result<Vec<Report>, String> {
        let dir = self.dir.join("site");
        empty(&dir)?;
        let argv = who.lay_out(&dir, services, logs)?;
        if let Supervisor::Kitbag(_) = who {
            tool(&[&argv[0], "verify"])?;
            self.unpack(&argv[0])?;
        } else {
            // runsvdir waits a second if its folder is younger than that.
            std::thread::sleep(Duration::from_millis(1100));
        }
        let argv: Vec<&str> = before.iter().copied().chain(argv.iter().map(String::as_str)).collect();
        let mut command = Command::new(argv[0]);
        command.args(&argv[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.envs(self.places());
        self.began = now();
        self.child = Some(command.spawn().map_err(|error| format!("{}: {error}", argv[0]))?);
        let count = services.len();
        self.wait_for("all services run", |reports| of(reports, 'S').count() >= count)
    }

    /// Unpacks a bundle by a start that ends at once: what is measured is a later start.
    fn unpack(&mut self, bundle: &str) -> Result<(), String> {
        let mut child = Command::new(bundle)
            .envs(self.places())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("{bundle}: {error}"))?;
        self.wait_for("the first service runs", |reports| of(reports, 'S').count() > 0)?;
        let _ = kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM);
        let _ = child.wait();
        self.take();
        // What this start has printed is no part of what is measured.
        remove(&self.dir.join("site/log"));
        Ok(())
    }

    fn places(&self) -> [(&'static str, PathBuf); 2] {
        [("KITBAG_STORE", self.dir.join("site/store")), ("KITBAG_STATE", self.dir.join("site/state"))]
    }

    /// What has been reported since the last call.
    fn take(&mut self) -> Vec<Report> {
        let mut bytes = Vec::new();
        let mut buffer = [0; RECORD * 1024];
        while let Ok(length @ 1..) = self.reports.read(&mut buffer) {
            bytes.extend_from_slice(&buffer[..length]);
        }
        bytes.chunks_exact(RECORD).filter_map(parse).collect()
    }

    /// Gathers reports until there are enough.
    fn wait_for(&mut self, what: &str, enough: impl Fn(&[Report]) -> bool) -> Result<Vec<Report>, String> {
        let (begin, mut reports) = (Instant::now(), Vec::new());
        while !enough(&reports) {
            if begin.elapsed() > PATIENCE {
                return Err(format!("not so within {PATIENCE:?}: {what}"));
            }
            // The time stamps are the services' own: looking rarely disturbs least.
            std::thread::sleep(Duration::from_millis(2));
            reports.extend(self.take());
        }
        Ok(reports)
    }

    fn supervisor(&self) -> i32 {
        self.child.as_ref().map_or(0, |child| child.id().cast_signed())
    }

    /// The supervisor's processes: all descendants but the services.
    fn overhead(&self) -> Vec<i32> {
        let mut all = processes::descendants(std::process::id().cast_signed());
        all.retain(|pid| !processes::runs(*pid, &self.program) && !processes::runs_named(*pid, "service"));
        all
    }

    /// Ends everything.
    fn clear(&mut self) {
        processes::kill_descendants();
        if let Some(mut child) = self.child.take() {
            let _ = child.wait();
        }
        self.take();
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.clear();
        remove(&self.dir);
    }
}

fn parse(record: &[u8]) -> Option<Report> {
    let mut words = std::str::from_utf8(record).ok()?.split_whitespace();
    Some(Report {
        kind: words.next()?.chars().next()?,
        id: words.next()?.to_owned(),
        pid: words.next()?.parse().ok()?,
        at: words.next()?.parse().ok()?,
    })
}

fn of(reports: &[Report], kind: char) -> impl Iterator<Item = &Report> {
    reports.iter().filter(move |report| report.kind == kind)
}

fn pause(seconds: f64) {
    std::thread::sleep(Duration::from_secs_f64(seconds));
}

fn supervisors(bench: &Bench) -> Result<Vec<Supervisor>, String> {
    let crate::peers::Packer::Kitbag { command, .. } = bench.ours() else {
        return Err("no kitbag".to_owned());
    };
    Ok(Supervisor::all(Path::new(&command)))
}

/// Ours beside each peer that could be measured, the first with the bar.
fn rows(bench: &mut Bench, what: &str, input: &str, figures: &[(&'static str, f64)], bar: Option<Bar>) {
    let Some(((_, ours), peers)) = figures.split_first() else { return };
    let own = Row::new(what, input, *ours);
    match bar {
        Some(Bar::Ratio(most)) => {
            // The demand names one peer; without it there is nothing to be measured against.
            for (name, figure) in peers {
                let row = Row::new(what, input, *ours).peer(name, *figure);
                bench.add(if *name == "dinit" { row.bar(Bar::Ratio(most)) } else { row });
            }
        }
        _ => {
            bench.add(if let Some(bar) = bar { own.bar(bar) } else { own });
            for (name, figure) in peers {
                bench.add(Row::new(what, input, *ours).peer(name, *figure));
            }
        }
    }
}

/// Memory of the supervisor, and the time from its start until all services run.
pub fn scale(bench: &mut Bench) -> Result<(), String> {
    let counts: &[(usize, f64)] =
        if bench.options.quick { &[(1, 0.8), (100, 1.2)] } else { &[(1, 0.8), (100, 1.2), (1000, 3.0)] };
    if peers::dinit().is_none() {
        bench.notes.push(
            "dinit: neither on PATH nor in BENCH_DINIT; Debian does not have it. Launching 1,000 services has no bar \
             without it"
                .to_owned(),
        );
    }
    let mut site = Site::new()?;
    for &(count, most) in counts {
        let (mut memory, mut launch) = (Vec::new(), Vec::new());
        for who in supervisors(bench)? {
            let services = site.services(count, &["run"]);
            let rounds = bench.times(if count == 1 { 9 } else { 3 });
            let (mut pss, mut taken) = (Vec::new(), Vec::new());
            for _ in 0..rounds {
                let reports = site.start(&who, &services, Logs::None)?;
                let last = reports.iter().map(|report| report.at).max().unwrap_or_default();
                taken.push((last - site.began) as f64 / 1e6);
                pause(0.5);
                pss.push(site.overhead().into_iter().map(processes::pss).sum::<u64>() as f64 / 1e6);
                site.clear();
            }
            memory.push((who.name(), median(pss)));
            launch.push((who.name(), median(taken)));
        }
        let input = format!("{count} services");
        rows(bench, "supervisor's memory (PSS), MB", &input, &memory, Some(Bar::Most(most)));
        let bar = match count {
            1 => Some(Bar::Most(3.0)),
            1000 => Some(Bar::Ratio(1.0)),
            _ => None,
        };
        rows(bench, "launch until all run, ms", &input, &launch, bar);
    }
    Ok(())
}

/// From SIGKILL to the first instruction of the next run, of services that had been up for two seconds.
pub fn restart(bench: &mut Bench) -> Result<(), String> {
    let mut site = Site::new()?;
    let (mut middle, mut late) = (Vec::new(), Vec::new());
    for who in supervisors(bench)? {
        let kills = bench.times(60);
        let services = site.services(kills, &["run"]);
        let mut pids: HashMap<String, i32> = HashMap::new();
        for report in site.start(&who, &services, Logs::None)? {
            pids.insert(report.id.clone(), report.pid);
        }
        pause(2.5);
        let mut taken = Vec::new();
        for service in &services {
            let began = now();
            let _ = kill(Pid::from_raw(pids[&service.name]), Signal::SIGKILL);
            let reports = site.wait_for("it is started again", |reports| of(reports, 'S').count() > 0)?;
            taken.push((reports[0].at - began) as f64 / 1e6);
            pause(0.01);
        }
        site.clear();
        taken.sort_by(f64::total_cmp);
        middle.push((who.name(), median(taken.clone())));
        late.push((who.name(), taken[(taken.len() * 99 / 100).min(taken.len() - 1)]));
    }
    rows(bench, "restart after SIGKILL, settled, ms", "median", &middle, Some(Bar::Most(0.8)));
    rows(bench, "restart after SIGKILL, settled, ms", "99 of 100", &late, Some(Bar::Most(5.0)));
    Ok(())
}

/// Ten seconds in which nothing happens, and then the end.
pub fn idle(bench: &mut Bench) -> Result<(), String> {
    if on_path("strace").is_none() {
        return Err("no strace (Debian: apt-get install strace)".to_owned());
    }
    let mut site = Site::new()?;
    let (mut calls, mut wakes, mut stop) = (Vec::new(), Vec::new(), Vec::new());
    for who in supervisors(bench)? {
        let services = site.services(100, &["run"]);
        site.start(&who, &services, Logs::None)?;
        pause(2.0);
        let mine = site.overhead();
        let before: u64 = mine.iter().copied().map(processes::switches).sum();
        pause(10.0);
        let after: u64 = mine.iter().copied().map(processes::switches).sum();
        wakes.push((who.name(), (after - before) as f64));
        calls.push((who.name(), system_calls(&site, &mine)?));
        site.clear();
    }
    let all = supervisors(bench)?;
    let mut taken = vec![Vec::new(); all.len()];
    for _ in 0..bench.times(7) {
        for (who, taken) in all.iter().zip(&mut taken) {
            let services = site.services(100, &["run"]);
            site.start(who, &services, Logs::None)?;
            pause(0.5);
            taken.extend(stopped(&mut site, who)?);
            site.clear();
        }
    }
    let ends = all.iter().zip(taken).filter(|(_, taken)| !taken.is_empty());
    stop.extend(ends.map(|(who, taken)| (who.name(), median(taken))));
    rows(bench, "idle for 10 s: system calls", "100 services", &calls, Some(Bar::Most(0.0)));
    rows(bench, "idle for 10 s: wake-ups", "100 services", &wakes, Some(Bar::Most(0.0)));
    rows(bench, "stop, ms", "100 services", &stop, Some(Bar::Most(30.0)));
    Ok(())
}

/// System calls within ten seconds. The one that each process sleeps in does not count.
fn system_calls(site: &Site, pids: &[i32]) -> Result<f64, String> {
    let log = site.dir.join("strace");
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-ttt", "-o"]).arg(&log);
    // A thousand arguments are too many for no supervisor here: with 100 services it has 201 processes at most.
    for pid in pids {
        strace.args(["-p", &pid.to_string()]);
    }
    let mut tracer = strace.stderr(Stdio::null()).spawn().map_err(|error| format!("strace: {error}"))?;
    // To be attached to interrupts a process in its sleep, and it looks around.
    pause(1.0);
    let attached = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    pause(10.0);
    let _ = kill(Pid::from_raw(tracer.id().cast_signed()), Signal::SIGINT);
    let _ = tracer.wait();
    let text = std::fs::read_to_string(&log).map_err(|error| error.to_string())?;
    let slept = |line: &&str| {
        ["<unfinished ...>", "<detached ...>", "resumed>", "restart_syscall", "ERESTART", "EINTR"]
            .iter()
            .any(|mark| line.contains(mark))
    };
    let later = |line: &&str| {
        let time = line.split_whitespace().nth(1).and_then(|word| word.parse::<f64>().ok());
        time.is_some_and(|time| time > attached)
    };
    Ok(text.lines().filter(later).filter(|line| !slept(line)).count() as f64)
}

/// From the request until the supervisor and every service have gone. None where it leaves services behind.
fn stopped(site: &mut Site, who: &Supervisor) -> Result<Option<f64>, String> {
    let how = match who {
        Supervisor::Runit => Signal::SIGHUP,
        _ => Signal::SIGTERM,
    };
    let began = now();
    let _ = kill(Pid::from_raw(site.supervisor()), how);
    while now() - began < 20_000_000_000 {
        if let Some(child) = &mut site.child {
            let _ = child.try_wait();
        }
        processes::reap();
        if processes::descendants(std::process::id().cast_signed()).is_empty() {
            return Ok(Some((now() - began) as f64 / 1e6));
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    Ok(None)
}

/// One service prints 256 MiB as lines of 100 bytes, into files that are rotated.
pub fn logs(bench: &mut Bench) -> Result<(), String> {
    let mut site = Site::new()?;
    for (logs, input, least) in
        [(Logs::Stamped, "with time stamps", 400.0), (Logs::Plain, "without time stamps", 1000.0)]
    {
        let (mut speed, mut memory) = (Vec::new(), Vec::new());
        for who in supervisors(bench)?.into_iter().filter(|who| who.can(logs)) {
            let (mut fast, mut peak) = (Vec::new(), Vec::new());
            for _ in 0..bench.times(3) {
                let services = site.services(1, &["print", &PRINTED.to_string()]);
                let mut reports = site.start(&who, &services, logs)?;
                if of(&reports, 'D').count() == 0 {
                    reports.extend(site.wait_for("all is printed", |reports| of(reports, 'D').count() > 0)?);
                }
                let at = |kind| of(&reports, kind).map(|report| report.at).max().unwrap_or_default();
                written(&site.dir.join("site/log"))?;
                fast.push(PRINTED as f64 / 1e6 / ((at('D') - at('S')) as f64 / 1e9));
                peak.push(site.overhead().into_iter().map(processes::peak).max().unwrap_or(0) as f64 / 1e6);
                site.clear();
            }
            let name = if who == Supervisor::Floor { "cat" } else { who.name() };
            speed.push((name, median(fast)));
            memory.push((name, median(peak)));
        }
        rows(bench, "log of 100-byte lines, MB/s", input, &speed, Some(Bar::Least(least)));
        rows(bench, "memory of the supervisor meanwhile, MB", input, &memory, Some(Bar::Most(8.0)));
    }
    Ok(())
}

/// Waits until every line is in the files, as it was printed; an error if one is missing or another.
fn written(folder: &Path) -> Result<(), String> {
    let line: Vec<u8> = (0..LINE - 1).map(|at| b'a' + (at % 26) as u8).collect();
    let begin = Instant::now();
    loop {
        let mut files = walk(folder);
        // What kitbag says itself has a folder of its own; svlogd's settings are beside its logs.
        files.retain(|path| {
            path.is_file() && !path.starts_with(folder.join("_kitbag")) && !path.ends_with("config")
        });
        let bytes: u64 = files.iter().map(|file| file.metadata().map_or(0, |data| data.len())).sum();
        if bytes >= PRINTED {
            let whole: u64 = files.iter().map(|file| whole_lines(file, &line)).sum::<Result<_, _>>()?;
            if whole * LINE == PRINTED {
                return Ok(());
            }
        }
        if begin.elapsed() > PATIENCE {
            return Err(format!("{}: lines are missing, there are {bytes} bytes", folder.display()));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Lines of a file, each of which has to end with `line`.
fn whole_lines(file: &Path, line: &[u8]) -> Result<u64, String> {
    let bytes = std::fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let mut lines = bytes.split_inclusive(|byte| *byte == b'\n').filter_map(|text| text.strip_suffix(b"\n"));
    let mut count = 0;
    match lines.find(|text| {
        count += 1;
        !text.ends_with(line)
    }) {
        None => Ok(count),
        Some(other) => Err(format!("{}: `{}`", file.display(), String::from_utf8_lossy(other))),
    }
}
