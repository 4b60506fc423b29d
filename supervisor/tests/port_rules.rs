//! What leases take of the kernel, a rule a test: where one of these fails, leases do not hold what they promise.
#![allow(missing_docs)]

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use kitbag_supervisor::ports::lease::Net;
use kitbag_supervisor::ports::range::{self, Range};
use kitbag_supervisor::ports::sockets::{self, Listener, open, set_reuse};
use nix::errno::Errno;
use nix::sys::socket::{Backlog, Shutdown, listen, shutdown};

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);
const ALL_V4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const ALL: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// Every address that a server may choose, as far as this host has it.
fn addresses() -> Vec<IpAddr> {
    if sockets::has_ipv6() { vec![V4, ALL_V4, V6, ALL] } else { vec![V4, ALL_V4] }
}

fn everywhere(number: u16) -> SocketAddr {
    SocketAddr::new(sockets::everywhere(sockets::has_ipv6()), number)
}

/// A number that nobody has, other tests included, held without `SO_REUSEADDR`.
fn held(name: &str) -> (u16, OwnedFd) {
    let range = Range { low: 20_000, high: 32_000 };
    let seed = format!("{name} {}", std::process::id());
    let mut numbers = range.starting_at(range::start(&seed, range));
    numbers
        .find_map(|number| Some((number, open(Net::Tcp, everywhere(number), false).ok()?)))
        .expect("a free number")
}

/// As most servers do: with `SO_REUSEADDR`, which std sets.
fn serve(address: IpAddr, number: u16) -> std::io::Result<TcpListener> {
    TcpListener::bind(SocketAddr::new(address, number))
}

/// A connection to it is accepted.
fn answers(listener: &TcpListener, to: IpAddr) -> bool {
    let number = listener.local_addr().unwrap().port();
    let to = if to == ALL || to == ALL_V4 { V4 } else { to };
    let client = TcpStream::connect_timeout(&SocketAddr::new(to, number), Duration::from_secs(5));
    client.is_ok() && listener.accept().is_ok()
}

/// Leaves a connection of the number in TIME_WAIT, on the server's side: whoever closes first has it.
fn linger(listener: &TcpListener) {
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();
    drop(server);
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    drop(client);
    let number = format!(":{:04X} ", listener.local_addr().unwrap().port());
    eventually(|| {
        let table = fs::read_to_string("/proc/net/tcp").unwrap();
        table.lines().any(|line| line.contains(&number) && line.contains(" 06 "))
    });
}

fn eventually(mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < until, "not within 10 s");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_held_number_is_nobody_elses_on_any_address() {
    let (number, _held) = held("held");
    for address in addresses() {
        assert_eq!(serve(address, number).unwrap_err().kind(), ErrorKind::AddrInUse, "{address}");
    }
}

#[test]
fn a_lent_number_can_be_bound_and_listened_at_on_each_address() {
    let (number, held) = held("lent");
    set_reuse(&held, true).unwrap();
    for address in addresses() {
        let listener = serve(address, number).unwrap();
        assert!(answers(&listener, address), "{address}");
    }
}

#[test]
fn one_that_does_not_set_the_option_cannot_bind_a_lent_number() {
    let (number, held) = held("no option");
    set_reuse(&held, true).unwrap();
    assert_eq!(open(Net::Tcp, SocketAddr::new(V4, number), false).unwrap_err(), Errno::EADDRINUSE);
}

#[test]
fn workers_that_share_a_lent_number_among_them_can_do_so() {
    use nix::sys::socket::{setsockopt, sockopt};
    let (number, held) = held("workers");
    set_reuse(&held, true).unwrap();
    let worker = |both: bool| {
        let flags = nix::sys::socket::SockFlag::SOCK_CLOEXEC;
        let kind = nix::sys::socket::SockType::Stream;
        let socket =
            nix::sys::socket::socket(nix::sys::socket::AddressFamily::Inet, kind, flags, None).unwrap();
        setsockopt(&socket, sockopt::ReusePort, &true).unwrap();
        set_reuse(&socket, both).unwrap();
        let address = nix::sys::socket::SockaddrStorage::from(SocketAddr::new(V4, number));
        nix::sys::socket::bind(socket.as_raw_fd(), &address)?;
        listen(&socket, Backlog::MAXCONN).map(|()| socket)
    };
    assert_eq!(worker(false).unwrap_err(), Errno::EADDRINUSE, "SO_REUSEPORT alone is not enough");
    let workers = [true; 3].map(|both| worker(both).unwrap());
    drop(workers);
    // The kernel remembers that they shared it, until another sort of socket is bound: that of `Lease::take_back`.
    drop(open(Net::Tcp, everywhere(number), true).unwrap());
    set_reuse(&held, false).unwrap();
    for both in [false, true] {
        assert_eq!(worker(both).unwrap_err(), Errno::EADDRINUSE);
    }
}

#[test]
fn taken_back_a_number_is_held_and_its_listener_goes_on() {
    let (number, held) = held("taken back");
    set_reuse(&held, true).unwrap();
    let listener = serve(V4, number).unwrap();
    set_reuse(&held, false).unwrap();
    assert!(answers(&listener, V4));
    drop(listener);
    for address in addresses() {
        assert_eq!(serve(address, number).unwrap_err().kind(), ErrorKind::AddrInUse, "{address}");
    }
}

#[test]
fn a_listener_on_any_address_is_found_with_the_option_and_without() {
    for address in addresses() {
        let (number, free) = held("found");
        drop(free);
        let listener = serve(address, number).unwrap();
        for reuse in [false, true] {
            assert_eq!(
                open(Net::Tcp, everywhere(number), reuse).unwrap_err(),
                Errno::EADDRINUSE,
                "{address}"
            );
        }
        drop(listener);
        open(Net::Tcp, everywhere(number), false).unwrap();
    }
}

#[test]
fn what_lingers_of_a_server_with_the_option_is_no_obstacle_with_it() {
    let (number, free) = held("lingers");
    drop(free);
    let listener = serve(V4, number).unwrap();
    linger(&listener);
    drop(listener);
    assert_eq!(open(Net::Tcp, everywhere(number), false).unwrap_err(), Errno::EADDRINUSE);
    let shared = open(Net::Tcp, everywhere(number), true).unwrap();
    // Once it is cleared nobody gets in.
    set_reuse(&shared, false).unwrap();
    for address in addresses() {
        assert_eq!(serve(address, number).unwrap_err().kind(), ErrorKind::AddrInUse, "{address}");
    }
}

#[test]
fn what_lingers_of_a_server_without_the_option_is_one() {
    let (number, socket) = held("stays");
    listen(&socket, Backlog::MAXCONN).unwrap();
    let listener = TcpListener::from(socket);
    let to = SocketAddr::new(V4, number);
    let client = TcpStream::connect(to).unwrap();
    drop(listener.accept().unwrap());
    drop((client, listener));
    assert_eq!(open(Net::Tcp, everywhere(number), true).unwrap_err(), Errno::EADDRINUSE);
}

#[test]
fn connections_get_the_option_from_the_listener_as_it_is_when_they_come() {
    let (number, socket) = held("connections");
    set_reuse(&socket, true).unwrap();
    listen(&socket, Backlog::MAXCONN).unwrap();
    let listener = TcpListener::from(socket);
    let client = TcpStream::connect(SocketAddr::new(V4, number)).unwrap();
    drop(listener.accept().unwrap());
    drop((client, listener));
    open(Net::Tcp, everywhere(number), true).unwrap();
}

#[test]
fn a_listener_that_is_shut_down_keeps_its_number_and_can_listen_again() {
    let (number, socket) = held("shut down");
    set_reuse(&socket, true).unwrap();
    let to = SocketAddr::new(V4, number);
    for _ in 0..3 {
        listen(&socket, Backlog::MAXCONN).unwrap();
        let mut waiting = TcpStream::connect(to).unwrap();
        shutdown(socket.as_raw_fd(), Shutdown::Read).unwrap();
        let refused = TcpStream::connect(to).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        assert_eq!(
            waiting.read(&mut [0]).unwrap_err().kind(),
            ErrorKind::ConnectionReset,
            "who waited is told"
        );
        set_reuse(&socket, false).unwrap();
        assert_eq!(serve(V4, number).unwrap_err().kind(), ErrorKind::AddrInUse);
        set_reuse(&socket, true).unwrap();
    }
    assert_eq!(shutdown(socket.as_raw_fd(), Shutdown::Read), Err(Errno::ENOTCONN), "it does not listen");
    listen(&socket, Backlog::MAXCONN).unwrap();
    assert!(answers(&TcpListener::from(socket), V4));
}

#[test]
fn clients_wait_in_the_queue_while_nobody_accepts() {
    let (number, socket) = held("queue");
    listen(&socket, Backlog::MAXCONN).unwrap();
    let acceptor = TcpListener::from(socket.try_clone().unwrap());
    drop(acceptor);
    let mut clients: Vec<_> =
        (0..20).map(|_| TcpStream::connect(SocketAddr::new(V4, number)).unwrap()).collect();
    clients.iter_mut().for_each(|client| client.write_all(b"?").unwrap());
    let next = TcpListener::from(socket);
    for _ in &clients {
        let (mut server, _) = next.accept().unwrap();
        let mut asked = [0];
        server.read_exact(&mut asked).unwrap();
        server.write_all(b"!").unwrap();
    }
    for client in &mut clients {
        let mut answer = [0];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"!");
    }
}

#[test]
fn datagrams_with_the_option_share_a_number_and_without_it_they_do_not() {
    let (number, _held) = held("datagrams");
    let one = open(Net::Udp, everywhere(number), true).unwrap();
    let other = open(Net::Udp, SocketAddr::new(V4, number), true).unwrap();
    drop((one, other));
    let _held = open(Net::Udp, everywhere(number), false).unwrap();
    for address in addresses() {
        let address = SocketAddr::new(address, number);
        assert_eq!(open(Net::Udp, address, true).unwrap_err(), Errno::EADDRINUSE, "{address}");
        assert_eq!(UdpSocket::bind(address).unwrap_err().kind(), ErrorKind::AddrInUse, "{address}");
    }
}

#[test]
fn a_name_in_the_abstract_namespace_is_one_process_s_which_is_told() {
    let name = format!("kitbag/test/{}", std::process::id());
    let own = i32::try_from(std::process::id()).unwrap();
    assert_eq!(sockets::who_has_name(name.as_bytes()), Listener::None);
    let held = sockets::Name::take(name.as_bytes()).unwrap();
    assert_eq!(sockets::Name::take(name.as_bytes()).unwrap_err(), Errno::EADDRINUSE);
    assert_eq!(sockets::who_has_name(name.as_bytes()), Listener::Process(Some(own)));
    // Those who have asked and went wait in the queue: it fills, and is cleared.
    for _ in 0..100 {
        sockets::who_has_name(name.as_bytes());
    }
    assert_eq!(sockets::who_has_name(name.as_bytes()), Listener::Process(None));
    held.clear_askers();
    assert_eq!(sockets::who_has_name(name.as_bytes()), Listener::Process(Some(own)));
    drop(held);
    drop(sockets::Name::take(name.as_bytes()).unwrap());
}

#[test]
fn the_ephemeral_range_is_not_in_the_pool() {
    let pool = range::pool();
    let Ok(text) = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range") else { return };
    let numbers: Vec<u16> = text.split_ascii_whitespace().map(|number| number.parse().unwrap()).collect();
    let [low, high] = numbers[..] else { panic!("{text}") };
    assert_eq!(pool.inside, pool.range.low <= high && low <= pool.range.high);
}

#[test]
fn a_lock_for_writing_shows_to_whoever_can_read() {
    use nix::fcntl::{FcntlArg, fcntl};
    let lock = |kind: i32| libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let file = File::create(&path).unwrap();
    let reader = File::open(&path).unwrap();
    let shows = || {
        let mut asked = lock(libc::F_RDLCK);
        fcntl(&reader, FcntlArg::F_OFD_GETLK(&mut asked)).unwrap();
        asked.l_type != libc::F_UNLCK as i16
    };
    assert!(!shows());
    fcntl(&file, FcntlArg::F_OFD_SETLK(&lock(libc::F_WRLCK))).unwrap();
    assert!(shows());
    drop(file);
    assert!(!shows());
    let refused = fcntl(&reader, FcntlArg::F_OFD_SETLK(&lock(libc::F_WRLCK)));
    assert_eq!(refused, Err(Errno::EBADF), "one that may only read cannot feign it");
}
