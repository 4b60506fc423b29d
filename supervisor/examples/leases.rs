//! What ports cost. `leases [COUNT] [SUPERVISORS]` leases COUNT numbers, and prints microseconds for each step; then as many
//! SUPERVISORS as it is told begin at once with 10 each, and it prints how long the slowest one took, and that no two have
//! the same.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::time::Instant;

use kitbag_format::port::Protocol;
use kitbag_supervisor::ports::lease::{Host, Kind, Lease, Listen, Net, Search, Want};
use kitbag_supervisor::ports::range::Round;
use kitbag_supervisor::ports::registry::{Entry, Folders, Published, Registry};

const WANT: Want = Want { net: Net::Tcp, listen: Listen::Loopback, kind: Kind::Own { hold: true } };

fn leases(host: &Host, seed: &str, count: usize) -> Vec<Lease> {
    let mut round = Round::default();
    let lease = |number| {
        let seed = format!("{seed} {number}");
        let search = Search { preferred: None, remembered: None, range: host.pool.range, seed: &seed };
        Lease::any(host, &search, WANT, &mut round).expect("a free number")
    };
    (0..count).map(lease).collect()
}

/// Prints what each of `count` took.
fn time<T>(what: &str, count: usize, work: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let result = work();
    let nanoseconds = began.elapsed().as_nanos() / count as u128;
    println!("{what:<40} {:>6}.{:01} µs", nanoseconds / 1_000, nanoseconds / 100 % 10);
    result
}

fn published(lease: &Lease, number: usize) -> Published {
    Published {
        unit: format!("service-{number}"),
        service: format!("service-{number}"),
        port: "http".into(),
        protocol: Protocol::Tcp,
        address: "127.0.0.1".parse().ok(),
        number: lease.number(),
        path: String::new(),
        socket: false,
    }
}

fn one(count: usize) {
    let host = time("look at the host", 1, Host::now);
    let seed = std::process::id().to_string();
    let mut all = time("lease", count, || leases(&host, &seed, count));
    time("lend and take back", count, || {
        all.iter_mut().for_each(|lease| {
            lease.lend().expect("it is held");
            lease.take_back().expect("nobody listens");
        });
    });
    let folder = std::env::temp_dir().join(format!("kitbag-leases-{}", std::process::id()));
    let folders = Folders { own: vec![("this example's", folder.clone())], root: None, shared: vec![] };
    let mut registry = Registry::open(nix::unistd::geteuid().as_raw(), folders);
    let entry = Entry {
        bundle: "leases".into(),
        version: "1.0.0".into(),
        pid: std::process::id().try_into().expect("a process id"),
        uid: nix::unistd::geteuid().as_raw(),
        state: "/srv/leases".into(),
        since: 0,
        ports: all.iter().enumerate().map(|(number, lease)| published(lease, number)).collect(),
    };
    time("publish all of them", 1, || registry.publish(&entry).expect("a folder"));
    time("find one of another bundle's", 1, || registry.find("leases", "service-0", "http"));
    let taken = all[0].number();
    let refused = time("be refused", 1, || Lease::take(&host, taken, WANT).expect_err("it is taken"));
    let refused = time("find out by whom", 1, || refused.explained(Some(&registry)));
    println!("{refused}");
    time("drop", count, || drop(all));
    drop(registry);
    let _ = std::fs::remove_dir(folder);
}

/// One of many: leases when its input says so, prints how long it took and the numbers, and keeps them until its input ends.
fn part(seed: &str) {
    let mut input = std::io::stdin();
    println!("ready");
    let _ = input.read(&mut [0]);
    let began = Instant::now();
    let host = Host::now();
    let all = leases(&host, seed, 10);
    let took = began.elapsed().as_micros();
    let numbers: Vec<String> = all.iter().map(|lease| lease.number().to_string()).collect();
    println!("{took} {}", numbers.join(" "));
    let _ = input.read_to_end(&mut Vec::new());
}

fn many(count: usize) {
    let own = std::env::current_exe().expect("/proc");
    let start = |number: usize| {
        let mut command = Command::new(&own);
        command.args(["part", &format!("{} {number}", std::process::id())]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a process")
    };
    let mut children: Vec<_> = (0..count).map(start).collect();
    let mut lines: Vec<_> = children
        .iter_mut()
        .map(|child| BufReader::new(child.stdout.take().expect("a pipe")).lines())
        .collect();
    let mut say = |at: usize| lines[at].next().and_then(Result::ok).expect("it goes on");
    (0..count).for_each(|at| drop(say(at)));
    let began = Instant::now();
    for child in &mut children {
        child.stdin.as_mut().expect("a pipe").write_all(b"\n").expect("it listens");
    }
    let said: Vec<String> = (0..count).map(&mut say).collect();
    let all = began.elapsed().as_micros();
    let slowest = said.iter().filter_map(|line| line.split(' ').next()?.parse::<u64>().ok()).max();
    let numbers: Vec<&str> = said.iter().flat_map(|line| line.split(' ').skip(1)).collect();
    let different: BTreeSet<&str> = numbers.iter().copied().collect();
    println!(
        "{count} supervisors: {} leases, {} different; the slowest {} µs, all {all} µs",
        numbers.len(),
        different.len(),
        slowest.unwrap_or_default()
    );
    for child in &mut children {
        drop(child.stdin.take());
        let _ = child.wait();
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|first| first == "part") {
        return part(args.get(1).map_or("", String::as_str));
    }
    let number = |at: usize, usual| args.get(at).and_then(|text| text.parse().ok()).unwrap_or(usual);
    kitbag_supervisor::sys::fd::raise_open_files();
    one(number(0, 1_000));
    let most = number(1, 100);
    [most.div_ceil(10), most].into_iter().for_each(many);
}
