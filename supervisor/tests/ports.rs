//! Leases of ports: nobody else gets one, nobody waits for one, and who has it is told.
#![allow(missing_docs)]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{Temp, mode};
use kitbag_format::port::Socket;
use kitbag_supervisor::ports::holder::{self, Holder};
use kitbag_supervisor::ports::lease::{Host, Kind, Lease, Listen, Net, Search, Want};
use kitbag_supervisor::ports::range::{Range, Round};
use kitbag_supervisor::ports::refused::{PathFault, Refused};
use kitbag_supervisor::ports::sockets;
use kitbag_supervisor::ports::unix::{self, UnixLease};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const OWN: Want = Want { net: Net::Tcp, listen: Listen::Loopback, kind: Kind::Own { hold: true } };
const INHERITED: Want = Want { kind: Kind::Inherited { backlog: 64 }, ..OWN };
const NOBODY: u32 = 65534;

fn here() -> Host {
    static HERE: std::sync::OnceLock<Host> = std::sync::OnceLock::new();
    *HERE.get_or_init(Host::now)
}

/// A seed that no other test has.
fn seed() -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    format!("{} {}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

fn any(want: Want) -> Lease {
    let seed = seed();
    let search = Search { preferred: None, remembered: None, range: here().pool.range, seed: &seed };
    Lease::any(&here(), &search, want, &mut Round::default()).unwrap()
}

/// Where leases of [`any`] number do not come.
const ASIDE: Range = Range { low: 12_000, high: 19_900 };

/// A number of these that is free, or was a moment ago.
fn free_of(range: Range) -> u16 {
    let seed = seed();
    let search = Search { preferred: None, remembered: None, range, seed: &seed };
    Lease::any(&here(), &search, OWN, &mut Round::default()).unwrap().number()
}

fn free() -> u16 {
    free_of(ASIDE)
}

fn at(number: u16) -> SocketAddr {
    SocketAddr::new(LOOPBACK, number)
}

/// Holds other tests up: between fork and exec the child of one has a copy of the sockets of all others.
fn alone() -> std::sync::MutexGuard<'static, ()> {
    static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn eventually(mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < until, "not within 20 s");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// This program again, in another role, until it is dropped. Its standard input tells it to go on.
struct Role {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Role {
    fn start(mut command: Command, role: &str, variables: &[(&str, String)]) -> Self {
        command.args([role, "--exact", "--ignored", "--nocapture", "--test-threads=1"]);
        command.envs(variables.iter().map(|(name, value)| (*name, value)));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { input: child.stdin.take(), child, output }
    }

    fn new(role: &str, variables: &[(&str, String)]) -> Self {
        Self::start(Command::new(std::env::current_exe().unwrap()), role, variables)
    }

    /// As the user nobody, who need not be able to get at this program's path.
    fn as_nobody(role: &str, variables: &[(&str, String)]) -> Self {
        let mut command = Command::new("/proc/self/exe");
        command.uid(NOBODY).gid(NOBODY).current_dir("/");
        Self::start(command, role, variables)
    }

    fn pid(&self) -> i32 {
        self.child.id().try_into().unwrap()
    }

    /// What it says next.
    fn says(&mut self) -> String {
        let mut line = String::new();
        while self.output.read_line(&mut line).unwrap() > 0 {
            // The harness writes its own in front.
            if let Some((_, said)) = line.split_once("says: ") {
                return said.trim_end().to_owned();
            }
            line.clear();
        }
        panic!("it has ended without a word");
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn ends(mut self) {
        drop(self.input.take());
        let mut rest = String::new();
        self.output.read_to_string(&mut rest).unwrap();
        assert!(self.child.wait().unwrap().success(), "{rest}");
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The process that has what was refused.
fn process_of(refused: &Refused) -> i32 {
    refused.holder().and_then(Holder::process).unwrap_or_else(|| panic!("{refused:?}")).pid
}

fn say(words: &str) {
    println!("says: {words}");
}

/// Until the parent says so, or is gone.
fn wait_for_parent() {
    let _ = std::io::stdin().read(&mut [0]);
}

fn variable<T: std::str::FromStr>(name: &str) -> T {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| panic!("{name} is for a role"))
}

/// A program that has a number: `listens`, or has `bound` it and does not listen, with SO_REUSEADDR.
#[test]
#[ignore = "a role"]
fn has_a_number() {
    let number: u16 = variable("NUMBER");
    let socket = sockets::open(Net::Tcp, at(number), true).unwrap();
    if variable::<String>("HOW") == "listens" {
        nix::sys::socket::listen(&socket, nix::sys::socket::Backlog::MAXCONN).unwrap();
    }
    say("it is there");
    wait_for_parent();
}

fn program(how: &str, number: u16) -> Role {
    let mut role = Role::new("has_a_number", &[("NUMBER", number.to_string()), ("HOW", how.into())]);
    role.says();
    role
}

/// A supervisor with so many leases.
#[test]
#[ignore = "a role"]
fn leases() {
    let (count, first): (usize, String) = (variable("COUNT"), variable("SEED"));
    say("ready");
    wait_for_parent();
    let host = here();
    let mut round = Round::default();
    let (began, spent) = (Instant::now(), Spent::now());
    let mut all = Vec::new();
    for number in 0..count {
        let seed = format!("{first} {number}");
        let search = Search { preferred: None, remembered: None, range: host.pool.range, seed: &seed };
        all.push(Lease::any(&host, &search, OWN, &mut round).unwrap());
    }
    let took = began.elapsed().as_micros();
    let own = spent.so_far().as_micros();
    let numbers: Vec<_> = all.iter().map(|lease| lease.number().to_string()).collect();
    say(&format!("{took} {own} {}", numbers.join(" ")));
    // The parent kills it, or goes.
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

/// What one may not do who is not root.
#[test]
#[ignore = "a role"]
fn binds_a_low_number() {
    say(&Lease::take(&here(), variable("NUMBER"), OWN).unwrap_err().to_string());
}

#[test]
fn a_leased_number_is_nobody_elses_until_it_is_lent_and_again_after() {
    let _alone = alone();
    let mut lease = any(OWN);
    let number = lease.number();
    for _ in 0..3 {
        assert_eq!(TcpListener::bind(at(number)).unwrap_err().kind(), ErrorKind::AddrInUse);
        assert!(matches!(Lease::take(&here(), number, OWN), Err(Refused::Taken { .. })));
        lease.lend().unwrap();
        let service = TcpListener::bind(at(number)).unwrap();
        TcpStream::connect(at(number)).unwrap();
        assert!(matches!(Lease::take(&here(), number, OWN), Err(Refused::Taken { .. })), "lent to another");
        drop(service);
        lease.take_back().unwrap();
        lease.take_back().unwrap();
    }
    drop(lease);
    Lease::take(&here(), number, OWN).unwrap();
}

#[test]
fn while_it_is_lent_and_nobody_listens_no_supervisor_gets_it_either() {
    let _alone = alone();
    let mut lease = any(OWN);
    lease.lend().unwrap();
    assert!(matches!(Lease::take(&here(), lease.number(), OWN), Err(Refused::Taken { .. })));
}

#[test]
fn connections_of_a_service_that_linger_hinder_neither_its_restart_nor_the_next_start() {
    let _alone = alone();
    let mut lease = any(OWN);
    let number = lease.number();
    for _ in 0..2 {
        lease.lend().unwrap();
        let service = TcpListener::bind(at(number)).unwrap();
        let mut client = TcpStream::connect(at(number)).unwrap();
        // The server closes first, so that the connection lingers on its side.
        drop(service.accept().unwrap());
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
        drop((client, service));
        lease.take_back().unwrap();
    }
    drop(lease);
    let search = Search { preferred: None, remembered: Some(number), range: here().pool.range, seed: "x" };
    let again = Lease::any(&here(), &search, OWN, &mut Round::default()).unwrap();
    assert_eq!(again.number(), number);
    assert_eq!(TcpListener::bind(at(number)).unwrap_err().kind(), ErrorKind::AddrInUse);
}

#[test]
fn a_number_that_lingers_without_the_option_says_so() {
    let _alone = alone();
    let number = free();
    let socket = sockets::open(Net::Tcp, at(number), false).unwrap();
    nix::sys::socket::listen(&socket, nix::sys::socket::Backlog::MAXCONN).unwrap();
    let server = TcpListener::from(socket);
    let client = TcpStream::connect(at(number)).unwrap();
    drop(server.accept().unwrap());
    drop((client, server));
    let refused = Lease::take(&here(), number, OWN).unwrap_err().explained(None);
    assert_eq!(refused.holder(), Some(&Holder::Lingering));
    assert!(refused.to_string().contains("for a minute at most"), "{refused}");
}

#[test]
fn a_program_that_has_bound_it_and_does_not_listen_yet_has_it() {
    let _alone = alone();
    let number = free();
    let program = program("bound", number);
    assert!(matches!(Lease::take(&here(), number, OWN), Err(Refused::Taken { .. })));
    program.ends();
    eventually(|| Lease::take(&here(), number, OWN).is_ok());
}

#[test]
fn who_has_a_number_is_named_with_process_and_command() {
    let _alone = alone();
    let number = free();
    let program = program("listens", number);
    let refused = Lease::take(&here(), number, OWN).unwrap_err().explained(None);
    assert_eq!(process_of(&refused), program.pid());
    let text = refused.to_string();
    let begins = format!("port {number}/tcp is taken by process {}, `", program.pid());
    assert!(text.starts_with(&begins) && text.contains("has_a_number"), "{text}");
    assert!(text.ends_with("stop it, or declare another number, or a range"), "{text}");
}

#[test]
fn a_supervisor_that_has_published_nothing_is_named_by_its_socket() {
    let _alone = alone();
    let mut supervisor = Role::new("leases", &[("COUNT", "1".into()), ("SEED", seed())]);
    supervisor.says();
    supervisor.input.as_mut().unwrap().write_all(b"\n").unwrap();
    let said = supervisor.says();
    let number = said.rsplit(' ').next().unwrap().parse().unwrap();
    // More often than connections fit into its queue: then it is unknown, and never waited for.
    for _ in 0..5 {
        let refused = Lease::take(&here(), number, OWN).unwrap_err().explained(None);
        assert_eq!(process_of(&refused), supervisor.pid());
    }
    let began = Instant::now();
    for _ in 0..40 {
        let _ = Lease::take(&here(), number, OWN).unwrap_err().explained(None).to_string();
    }
    assert!(began.elapsed() < Duration::from_secs(10));
    drop(supervisor);
}

#[test]
fn a_process_of_another_user_is_told_with_what_may_be_seen_of_it() {
    let _alone = alone();
    if !nix::unistd::geteuid().is_root() {
        return println!("not root: not tested");
    }
    let number = free();
    let _roots = program("listens", number);
    let mut nobody = Role::as_nobody("asks_who_has_it", &[("NUMBER", number.to_string())]);
    let text = nobody.says();
    assert!(text.contains("taken by a process of another user (uid 0)"), "{text}");
    nobody.ends();
}

#[test]
fn a_supervisor_of_another_user_is_named_by_its_socket() {
    let _alone = alone();
    if !nix::unistd::geteuid().is_root() {
        return println!("not root: not tested");
    }
    let lease = any(OWN);
    let mut nobody = Role::as_nobody("asks_who_has_it", &[("NUMBER", lease.number().to_string())]);
    let text = nobody.says();
    let begins = format!("port {}/tcp is taken by process {}, `", lease.number(), std::process::id());
    assert!(text.starts_with(&begins), "{text}");
    nobody.ends();
}

#[test]
#[ignore = "a role"]
fn asks_who_has_it() {
    say(&Lease::take(&here(), variable("NUMBER"), OWN).unwrap_err().explained(None).to_string());
}

#[test]
fn a_port_that_was_taken_between_two_starts_becomes_another_and_a_fixed_one_says_by_whom() {
    let _alone = alone();
    let (seed, range) = (seed(), here().pool.range);
    let search = Search { preferred: None, remembered: None, range, seed: &seed };
    let first = Lease::any(&here(), &search, OWN, &mut Round::default()).unwrap().number();
    let program = program("listens", first);
    let search = Search { remembered: Some(first), ..search };
    let second = Lease::any(&here(), &search, OWN, &mut Round::default()).unwrap();
    assert_ne!(second.number(), first);
    let refused = Lease::take(&here(), first, OWN).unwrap_err().explained(None);
    assert_eq!(process_of(&refused), program.pid());
    program.ends();
    drop(second);
    eventually(|| Lease::any(&here(), &search, OWN, &mut Round::default()).unwrap().number() == first);
}

#[test]
fn a_child_that_keeps_a_dead_services_socket_is_named_and_the_port_comes_back_with_its_end() {
    let _alone = alone();
    let mut lease = any(OWN);
    lease.lend().unwrap();
    let child = program("listens", lease.number());
    for _ in 0..2 {
        let refused = lease.take_back().unwrap_err().explained(None);
        assert_eq!(process_of(&refused), child.pid(), "{refused}");
    }
    assert!(matches!(Lease::take(&here(), lease.number(), OWN), Err(Refused::Taken { .. })));
    child.kill();
    lease.take_back().unwrap();
    assert_eq!(TcpListener::bind(at(lease.number())).unwrap_err().kind(), ErrorKind::AddrInUse);
}

#[test]
fn a_port_that_is_not_held_is_the_services_alone_and_comes_back() {
    let _alone = alone();
    for (net, hold) in [(Net::Tcp, false), (Net::Udp, true), (Net::Udp, false)] {
        let want = Want { net, kind: Kind::Own { hold }, ..OWN };
        let mut lease = any(want);
        let number = lease.number();
        assert_eq!(sockets::open(net, at(number), true).unwrap_err(), nix::errno::Errno::EADDRINUSE);
        lease.lend().unwrap();
        // Without SO_REUSEADDR.
        let service = sockets::open(net, at(number), false).unwrap();
        assert!(matches!(lease.take_back(), Err(Refused::Taken { .. })), "{net}: its process is not gone");
        assert!(matches!(Lease::take(&here(), number, want), Err(Refused::Taken { .. })));
        drop(service);
        lease.take_back().unwrap();
        assert_eq!(sockets::open(net, at(number), true).unwrap_err(), nix::errno::Errno::EADDRINUSE);
    }
}

#[test]
fn port_0_is_none() {
    let _alone = alone();
    let refused = Lease::take(&here(), 0, OWN).unwrap_err();
    assert_eq!(refused.to_string(), "cannot take port 0: Invalid argument");
}

#[test]
fn a_number_of_tcp_and_the_same_of_udp_are_two() {
    let _alone = alone();
    let tcp = any(OWN);
    let udp = Lease::take(&here(), tcp.number(), Want { net: Net::Udp, ..OWN }).unwrap();
    assert_eq!(udp.number(), tcp.number());
    let refused = Lease::take(&here(), udp.number(), Want { net: Net::Udp, ..OWN }).unwrap_err();
    assert!(refused.to_string().starts_with(&format!("port {}/udp is taken", udp.number())), "{refused}");
}

#[test]
fn clients_of_an_inherited_socket_wait_while_no_service_runs() {
    let _alone = alone();
    let lease = any(INHERITED);
    let to = at(lease.number());
    assert!(TcpStream::connect(to).is_err(), "before it listens");
    lease.listen().unwrap();
    let service = || TcpListener::from(lease.listener().unwrap().try_clone_to_owned().unwrap());
    let first = service();
    drop(first);
    let mut client = TcpStream::connect(to).unwrap();
    lease.listen().unwrap();
    service().accept().unwrap().0.write_all(b"!").unwrap();
    let mut answer = [0];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"!");
    assert_eq!(TcpListener::bind(to).unwrap_err().kind(), ErrorKind::AddrInUse);
}

#[test]
fn an_inherited_socket_of_a_stopped_service_refuses_and_keeps_its_number() {
    let _alone = alone();
    let lease = any(INHERITED);
    let to = at(lease.number());
    lease.unlisten().unwrap();
    for _ in 0..3 {
        lease.listen().unwrap();
        let service = TcpListener::from(lease.listener().unwrap().try_clone_to_owned().unwrap());
        let mut served = TcpStream::connect(to).unwrap();
        // Its end lingers on the service's side.
        drop(service.accept().unwrap());
        assert_eq!(served.read(&mut [0]).unwrap(), 0);
        drop((served, service));
        let waiting = TcpStream::connect(to).unwrap();
        lease.unlisten().unwrap();
        lease.unlisten().unwrap();
        assert_eq!(TcpStream::connect(to).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        assert_eq!(TcpListener::bind(to).unwrap_err().kind(), ErrorKind::AddrInUse);
        drop(waiting);
    }
    let number = lease.number();
    drop(lease);
    Lease::take(&here(), number, INHERITED).unwrap();
}

#[test]
fn an_inherited_socket_is_at_its_own_address_alone() {
    let _alone = alone();
    let host = here();
    for listen in [Listen::Loopback, Listen::Public, Listen::At("127.0.0.2".parse().unwrap())] {
        let lease = any(Want { listen, ..INHERITED });
        let socket = TcpListener::from(lease.listener().unwrap().try_clone_to_owned().unwrap());
        assert_eq!(socket.local_addr().unwrap(), SocketAddr::new(listen.address(&host), lease.number()));
    }
    let lease = any(Want { net: Net::Udp, ..INHERITED });
    lease.listen().unwrap();
    let socket = UdpSocket::from(lease.listener().unwrap().try_clone_to_owned().unwrap());
    UdpSocket::bind(at(0)).unwrap().send_to(b"hello", at(lease.number())).unwrap();
    let mut buffer = [0; 8];
    assert_eq!(socket.recv(&mut buffer).unwrap(), 5);
}

#[test]
fn single_addresses_share_a_number_with_each_other_and_not_with_all() {
    let _alone = alone();
    let want = |text: &str| Want { listen: Listen::parse(text).unwrap(), ..OWN };
    let mut one = any(want("127.0.0.2"));
    let number = one.number();
    one.lend().unwrap();
    let _other = Lease::take(&here(), number, want("127.0.0.3")).unwrap();
    for text in ["127.0.0.2", "loopback", "public", "0.0.0.0"] {
        let refused = Lease::take(&here(), number, want(text));
        assert!(matches!(refused, Err(Refused::Taken { .. })), "{text}: {refused:?}");
    }
    let mut all = any(OWN);
    all.lend().unwrap();
    assert!(matches!(Lease::take(&here(), all.number(), want("127.0.0.2")), Err(Refused::Taken { .. })));
}

#[test]
fn an_address_that_this_host_does_not_have_is_said() {
    let _alone = alone();
    let number = free();
    for kind in [OWN.kind, INHERITED.kind] {
        let listen = Listen::parse("203.0.113.7").unwrap();
        let refused = Lease::take(&here(), number, Want { listen, kind, ..OWN }).unwrap_err();
        assert!(refused.to_string().starts_with("203.0.113.7 cannot be listened at: "), "{refused}");
    }
}

#[test]
fn preferred_comes_first_then_what_it_had_then_the_range() {
    let _alone = alone();
    let (host, seed) = (here(), seed());
    let take = |preferred, remembered, range| {
        let search = Search { preferred, remembered, range, seed: &seed };
        Lease::any(&host, &search, OWN, &mut Round::default()).unwrap()
    };
    let range = ASIDE;
    let (outside, inside) = (free_of(Range { low: 10_000, high: 11_900 }), free());
    let only = |number| Range { low: number, high: number };
    assert_eq!(take(Some(outside), Some(inside), range).number(), outside);
    let _preferred = take(Some(outside), None, range);
    assert_eq!(take(Some(outside), Some(inside), range).number(), inside);
    assert_eq!(take(None, Some(outside), only(inside)).number(), inside, "it left the range");
    let numbers = [0; 3].map(|_| take(None, None, range).number());
    assert_eq!(numbers, [numbers[0]; 3], "the same each time");
}

#[test]
fn a_range_of_which_all_are_taken_says_so() {
    let _alone = alone();
    let host = here();
    let mut round = Round::default();
    // A run of numbers that are free.
    let range = (0..).find_map(|_| {
        let low = free();
        let range = Range { low, high: low.checked_add(4)? };
        let all: Result<Vec<_>, _> = range.starting_at(low).map(|it| Lease::take(&host, it, OWN)).collect();
        all.is_ok().then_some(range)
    });
    let range = range.unwrap();
    let search = |seed| Search { preferred: None, remembered: None, range, seed };
    let all: Vec<_> = ["a", "b", "c", "d", "e"]
        .map(|seed| Lease::any(&host, &search(seed), OWN, &mut round).unwrap())
        .into();
    let numbers: BTreeSet<u16> = all.iter().map(Lease::number).collect();
    assert_eq!(numbers.len(), 5);
    for round in [&mut round, &mut Round::default()] {
        let refused = Lease::any(&host, &search("f"), OWN, round).unwrap_err();
        assert_eq!(refused, Refused::NoneFree { low: range.low, high: range.high, net: Net::Tcp });
        assert!(refused.to_string().contains(&format!("from {} to {}/tcp", range.low, range.high)));
    }
    drop(all);
    Lease::any(&host, &search("f"), OWN, &mut Round::default()).unwrap();
}

#[test]
fn a_number_that_only_root_may_bind_tells_the_three_ways_out() {
    let _alone = alone();
    if !nix::unistd::geteuid().is_root() {
        return println!("not root: not tested");
    }
    let first = kitbag_supervisor::ports::refused::first_for_all();
    let Some(number) = (1..first).rev().find(|number| Lease::take(&here(), *number, OWN).is_ok()) else {
        return println!("everybody may bind any number here: not tested");
    };
    let mut nobody = Role::as_nobody("binds_a_low_number", &[("NUMBER", number.to_string())]);
    let text = nobody.says();
    for words in ["forwarded", "sysctl net.ipv4.ip_unprivileged_port_start=", "start this as root with `user"]
    {
        assert!(text.contains(words), "{text}");
    }
    nobody.ends();
}

#[test]
fn without_ipv6_ports_are_those_of_ipv4() {
    let _alone = alone();
    let host = Host { ipv6: false, ..here() };
    assert_eq!(Listen::Public.address(&host), IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let number = free();
    for kind in [OWN.kind, INHERITED.kind] {
        for listen in [Listen::Loopback, Listen::Public] {
            let mut lease = Lease::take(&host, number, Want { listen, kind, ..OWN }).unwrap();
            assert_eq!(TcpListener::bind(at(number)).unwrap_err().kind(), ErrorKind::AddrInUse);
            lease.lend().unwrap();
            lease.take_back().unwrap();
        }
    }
    let _listener = TcpListener::bind(at(number)).unwrap();
    assert!(matches!(Lease::take(&host, number, OWN), Err(Refused::Taken { .. })));
}

/// In a network namespace of its own, where IPv6 is switched off.
#[test]
#[ignore = "a role"]
fn has_no_ipv6() {
    let host = here();
    assert!(!host.ipv6);
    let mut lease = any(Want { listen: Listen::Public, ..OWN });
    assert_eq!(Listen::Public.address(&host), IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    lease.lend().unwrap();
    let service = TcpListener::bind(SocketAddr::new(Listen::Public.address(&host), lease.number())).unwrap();
    TcpStream::connect(at(lease.number())).unwrap();
    drop(service);
    lease.take_back().unwrap();
    let six = Lease::take(&host, free(), Want { listen: Listen::parse("::1").unwrap(), ..OWN }).unwrap_err();
    assert!(matches!(six, Refused::Address(..)), "{six}");
    say("all is well");
}

#[test]
fn where_ipv6_is_switched_off_leases_work() {
    let _alone = alone();
    let off = "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6 && ip link set lo up && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["-n", "sh", "-c", off, "sh"]).arg(std::env::current_exe().unwrap());
    let possible = Command::new("unshare").args(["-n", "sh", "-c", off, "sh", "true"]).output();
    if !possible.is_ok_and(|output| output.status.success()) {
        return println!("no network namespace to be had: not tested");
    }
    let mut role = Role::start(command, "has_no_ipv6", &[]);
    assert_eq!(role.says(), "all is well");
    role.ends();
}

#[test]
fn what_processes_listen_at_is_found() {
    let _alone = alone();
    let number = free();
    let program = program("listens", number);
    let udp = UdpSocket::bind(at(0)).unwrap();
    let own = i32::try_from(std::process::id()).unwrap();
    let found: Vec<String> = holder::listening(&[program.pid()]).iter().map(ToString::to_string).collect();
    assert_eq!(found, [format!("127.0.0.1:{number}/tcp")]);
    let all = holder::listening(&[program.pid(), own]);
    let has = |pid, net, address| all.iter().any(|it| (it.pid, it.net, it.address) == (pid, net, address));
    assert!(has(program.pid(), Net::Tcp, at(number)));
    assert!(has(own, Net::Udp, udp.local_addr().unwrap()));
    assert_eq!(holder::listening(&[]), []);
    assert_eq!(holder::listening(&[i32::MAX]), []);
}

#[test]
fn a_supervisor_killed_leaves_no_lease() {
    let _alone = alone();
    let mut supervisor = Role::new("leases", &[("COUNT", "3".into()), ("SEED", seed())]);
    supervisor.says();
    supervisor.input.as_mut().unwrap().write_all(b"\n").unwrap();
    let said = supervisor.says();
    let numbers: Vec<u16> = said.split(' ').skip(2).map(|number| number.parse().unwrap()).collect();
    for number in &numbers {
        assert!(matches!(Lease::take(&here(), *number, OWN), Err(Refused::Taken { .. })));
    }
    supervisor.kill();
    for number in numbers {
        Lease::take(&here(), number, OWN).unwrap();
    }
}

/// Time on a processor that this thread has had since: whatever else the machine does is not in it.
struct Spent(Duration);

impl Spent {
    fn clock() -> Duration {
        nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
    }

    fn now() -> Self {
        Self(Self::clock())
    }

    fn so_far(&self) -> Duration {
        Self::clock() - self.0
    }
}

/// So many supervisors that begin at once; their numbers, and the longest time that one of them took, and had on a
/// processor, in µs.
fn crowd(count: usize, each: usize, seed: impl Fn(usize) -> String) -> (Vec<u16>, [u64; 2]) {
    let start = |at| Role::new("leases", &[("COUNT", each.to_string()), ("SEED", seed(at))]);
    let mut crowd: Vec<Role> = (0..count).map(start).collect();
    crowd.iter_mut().for_each(|role| assert_eq!(role.says(), "ready"));
    crowd.iter_mut().for_each(|role| role.input.as_mut().unwrap().write_all(b"\n").unwrap());
    let mut numbers = Vec::new();
    let mut longest = [0; 2];
    for role in &mut crowd {
        let said = role.says();
        let mut words = said.split(' ');
        for most in &mut longest {
            *most = words.next().unwrap().parse::<u64>().unwrap().max(*most);
        }
        numbers.extend(words.map(|number| number.parse::<u16>().unwrap()));
    }
    (numbers, longest)
}

#[test]
fn a_hundred_supervisors_at_once_do_not_collide() {
    let _alone = alone();
    const EACH: usize = 10;
    let seed = seed();
    let (numbers, longest) = crowd(100, EACH, |at| format!("{seed} {at}"));
    let different: BTreeSet<u16> = numbers.iter().copied().collect();
    assert_eq!((numbers.len(), different.len()), (100 * EACH, 100 * EACH));
    let (_, few) = crowd(10, EACH, |at| format!("{seed} few {at}"));
    println!("10 leases each, [time, processor] of the slowest in µs: of 10 {few:?}, of 100 {longest:?}");
    assert!(longest[1] < 100_000, "{longest:?} µs for {EACH} leases");
    assert!(
        longest[1] < 10 * few[1].max(1_000),
        "one of 100 has as much to do as one of 10: {few:?}, {longest:?}"
    );
}

#[test]
fn supervisors_that_look_for_the_same_numbers_do_not_collide_either() {
    let _alone = alone();
    let seed = seed();
    let (numbers, _) = crowd(30, 3, |_| seed.clone());
    let different: BTreeSet<u16> = numbers.iter().copied().collect();
    assert_eq!((numbers.len(), different.len()), (90, 90));
}

#[test]
fn a_thousand_leases_take_less_than_a_second() {
    let _alone = alone();
    let host = here();
    let seed = seed();
    let mut round = Round::default();
    let spent = Spent::now();
    let mut all = Vec::new();
    for number in 0..1_000 {
        let seed = format!("{seed} {number}");
        let search = Search { preferred: None, remembered: None, range: host.pool.range, seed: &seed };
        all.push(Lease::any(&host, &search, OWN, &mut round).unwrap());
    }
    let took = spent.so_far();
    println!("a lease: {} µs", took.as_micros() / 1_000);
    let spent = Spent::now();
    for lease in &mut all {
        lease.lend().unwrap();
        lease.take_back().unwrap();
    }
    println!("lent and taken back: {} µs", spent.so_far().as_micros() / 1_000);
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[test]
fn a_nearly_full_range_is_gone_through_once_in_a_round() {
    let _alone = alone();
    let host = here();
    let seed = seed();
    // Room for 800; beside them, what other tests have.
    let range = Range { low: host.pool.range.high - 900, high: host.pool.range.high };
    let mut round = Round::default();
    let spent = Spent::now();
    let mut take = |number| {
        let seed = format!("{seed} {number}");
        let search = Search { preferred: None, remembered: None, range, seed: &seed };
        Lease::any(&host, &search, OWN, &mut round)
    };
    let all: Vec<_> = (0..800).map(|number| take(number).unwrap()).collect();
    let full: Vec<_> = (800..3_000).map(take).collect();
    assert!(full.iter().any(|lease| matches!(lease, Err(Refused::NoneFree { .. }))));
    let took = spent.so_far();
    println!("3,000 leases asked of 901 numbers: {took:?}");
    assert!(took < Duration::from_secs(2), "{took:?}");
    drop((all, full));
}

#[test]
fn a_stale_socket_makes_way_and_the_path_goes_with_the_lease() {
    let _alone = alone();
    let temp = Temp::new();
    let path = unix::path(&temp.0, "web.2", "rpc");
    assert_eq!(path, temp.join("web.2.rpc.sock"));
    drop(UnixListener::bind(&path).unwrap());
    let options = Socket { backlog: 8, mode: 0o660 };
    let mut lease = UnixLease::take(path.clone(), Some(options), None).unwrap();
    assert_eq!(mode(&path), 0o660);
    assert_eq!(UnixStream::connect(&path).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    for _ in 0..2 {
        lease.listen().unwrap();
        let mut client = UnixStream::connect(&path).unwrap();
        let service = UnixListener::from(lease.listener().unwrap().try_clone_to_owned().unwrap());
        service.accept().unwrap().0.write_all(b"!").unwrap();
        client.read_exact(&mut [0]).unwrap();
        drop(service);
        lease.unlisten().unwrap();
        assert!(UnixStream::connect(&path).is_err());
    }
    lease.listen().unwrap();
    // One that a process of the service has kept is in nobody's way.
    let kept = lease.listener().unwrap().try_clone_to_owned().unwrap();
    lease.unlisten().unwrap();
    lease.listen().unwrap();
    drop(kept);
    fs::remove_file(&path).unwrap();
    lease.listen().unwrap();
    UnixStream::connect(&path).unwrap();
    drop(lease);
    assert!(!path.exists());
}

#[test]
#[ignore = "a role"]
fn listens_at_a_path() {
    let _listener = UnixListener::bind(variable::<String>("AT")).unwrap();
    say("it is there");
    wait_for_parent();
}

#[test]
fn a_path_of_a_service_is_cleared_and_one_that_is_kept_is_told() {
    let _alone = alone();
    let temp = Temp::new();
    let path = temp.join("web.rpc.sock");
    let lease = UnixLease::take(path.clone(), None, None).unwrap();
    assert!(lease.listener().is_none() && !path.exists());
    lease.lend().unwrap();
    let mut service = Role::new("listens_at_a_path", &[("AT", path.display().to_string())]);
    service.says();
    let refused = lease.take_back().unwrap_err();
    assert_eq!(process_of(&refused), service.pid(), "{refused}");
    service.kill();
    assert!(path.exists());
    lease.take_back().unwrap();
    assert!(!path.exists());
}

#[test]
fn a_path_that_cannot_be_a_sockets_is_refused() {
    let _alone = alone();
    let temp = Temp::new();
    let long = temp.join(&"x".repeat(120));
    let refused = UnixLease::take(long, None, None).unwrap_err();
    assert!(refused.to_string().contains("the 107 bytes that an address holds; KITBAG_STATE"), "{refused}");
    let file = temp.join("file");
    fs::write(&file, "precious").unwrap();
    let refused = UnixLease::take(file.clone(), Some(Socket::default()), None).unwrap_err();
    assert!(matches!(refused, Refused::Path(_, PathFault::NotASocket)), "{refused}");
    assert_eq!(fs::read(&file).unwrap(), b"precious");
    // Somebody else's socket behind a link is not asked, and the link stays.
    let (socket, link) = (temp.join("precious.sock"), temp.join("link.sock"));
    let listener = UnixListener::bind(&socket).unwrap();
    listener.set_nonblocking(true).unwrap();
    std::os::unix::fs::symlink(&socket, &link).unwrap();
    for how in [None, Some(Socket::default())] {
        let refused = UnixLease::take(link.clone(), how, None).unwrap_err();
        assert!(matches!(refused, Refused::Path(_, PathFault::NotASocket)), "{refused}");
    }
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    assert!(link.is_symlink());
    let nowhere = UnixLease::take(temp.join("none/x.sock"), Some(Socket::default()), None).unwrap_err();
    assert!(matches!(nowhere, Refused::Path(_, PathFault::Io(_))), "{nowhere}");
    assert!(Path::new(&file).exists());
    fs::set_permissions(&temp.0, fs::Permissions::from_mode(0o755)).unwrap();
}
