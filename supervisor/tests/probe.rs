//! Probes of real sockets: what is told, why, and when.
#![allow(missing_docs)]

use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kitbag_supervisor::probe::{Address, Ask, Key, Probes, Why, parse_address};
use kitbag_supervisor::sys::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

const PATIENCE: Duration = Duration::from_secs(20);
const KEY: Key = 7;

fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("its address");
    (listener, address)
}

fn get(address: SocketAddr, status: &[u16]) -> Ask {
    Ask::Http { address: Address::Numeric(address), path: "/healthz".into(), status: status.into() }
}

/// A server of one connection: reads a request to its end, and does with it what `then` does.
fn serve(then: impl FnOnce(TcpStream) + Send + 'static) -> (SocketAddr, JoinHandle<String>) {
    let (listener, address) = listen();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let mut request = Vec::new();
        let mut byte = [0];
        while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|length| length == 1) {
            request.push(byte[0]);
        }
        then(stream);
        String::from_utf8(request).expect("text")
    });
    (address, server)
}

/// A server that sends these pieces, each as a packet of its own.
fn answer(pieces: &'static [&'static str]) -> (SocketAddr, JoinHandle<String>) {
    serve(move |mut stream| {
        stream.set_nodelay(true).expect("an option");
        for piece in pieces {
            // The probe may have enough and hang up.
            if stream.write_all(piece.as_bytes()).is_err() {
                break;
            }
            std::thread::yield_now();
        }
    })
}

/// What the loop does: sleeps on the descriptor alone, and serves.
struct Loop {
    probes: Probes,
    began: Instant,
}

impl Loop {
    fn new() -> Self {
        Self { probes: Probes::new().expect("epoll"), began: Instant::now() }
    }

    fn now(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    fn turn(&mut self) -> Vec<(Key, Result<(), Why>)> {
        assert!(self.began.elapsed() < PATIENCE, "no result: {:?}", self.probes);
        let wait = self.probes.deadline().map_or(1000, |at| at.saturating_sub(self.now()).min(1000));
        let mut polled = [PollFd::new(self.probes.fd(), PollFlags::POLLIN)];
        poll(&mut polled, PollTimeout::from(wait as u16)).expect("poll");
        let now = self.now();
        self.probes.serve(now)
    }

    /// The result of one probe.
    fn ask(&mut self, ask: &Ask, timeout: u64) -> Result<(), Why> {
        let now = self.now();
        self.probes.start(KEY, ask, now, timeout)?;
        loop {
            let mut told = self.turn();
            assert!(told.len() <= 1, "told more than once: {told:?}");
            if let Some((key, result)) = told.pop() {
                assert_eq!(key, KEY);
                return result;
            }
        }
    }

    /// Until no connection is left.
    fn settle(&mut self) {
        while self.probes.deadline().is_some() {
            assert_eq!(self.turn(), []);
        }
    }
}

fn ask(ask: &Ask) -> Result<(), Why> {
    Loop::new().ask(ask, PATIENCE.as_millis() as u64)
}

#[test]
fn a_port_that_somebody_listens_on_is_connected_to() {
    let (_listener, address) = listen();
    assert_eq!(ask(&Ask::Tcp(Address::Numeric(address))), Ok(()));
}

#[test]
fn a_port_that_nobody_listens_on_is_refused() {
    let (listener, address) = listen();
    drop(listener);
    assert_eq!(ask(&Ask::Tcp(Address::Numeric(address))), Err(Why::Refused(address)));
    assert_eq!(ask(&get(address, &[])), Err(Why::Refused(address)));
}

#[test]
fn localhost_is_either_loopback_address() {
    let (_v4, address) = listen();
    let localhost = parse_address(&format!("localhost:{}", address.port())).expect("an address");
    assert_eq!(ask(&Ask::Tcp(localhost)), Ok(()), "IPv4 alone");
    if let Ok(v6) = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)) {
        let port = v6.local_addr().expect("its address").port();
        assert_eq!(ask(&Ask::Tcp(Address::Localhost(port))), Ok(()), "IPv6 alone");
    }
}

#[test]
fn a_status_from_200_to_399_counts() {
    let (address, server) = answer(&["HTTP/1.1 204 No Content\r\n\r\n"]);
    assert_eq!(ask(&get(address, &[])), Ok(()));
    let request = server.join().expect("the server ends");
    assert!(request.starts_with("GET /healthz HTTP/1.1\r\n"), "{request}");
    assert!(request.contains(&format!("\r\nHost: {address}\r\n")), "{request}");
    assert!(request.contains("\r\nConnection: close\r\n"), "{request}");
}

#[test]
fn another_status_does_not() {
    let (address, server) = answer(&["HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"]);
    let why = ask(&get(address, &[])).expect_err("503");
    assert_eq!(why.to_string(), "GET /healthz answered 503 instead of 200 to 399");
    server.join().expect("the server ends");
    let (address, server) = answer(&["HTTP/1.1 200 OK\r\n\r\n"]);
    let why = ask(&get(address, &[401, 403])).expect_err("200");
    assert_eq!(why.to_string(), "GET /healthz answered 200 instead of 401 or 403");
    server.join().expect("the server ends");
}

#[test]
fn an_answer_may_come_in_pieces() {
    let pieces = &["H", "TTP/", "1.1", " ", "2", "00", " O", "K\r", "\n", "\r\n"];
    let (address, server) = answer(pieces);
    assert_eq!(ask(&get(address, &[])), Ok(()));
    server.join().expect("the server ends");
}

#[test]
fn what_is_not_http_is_said_to_be() {
    let (address, server) = answer(&["SSH-2.0-OpenSSH_9\r\n"]);
    assert_eq!(ask(&get(address, &[])), Err(Why::NotHttp { address, path: "/healthz".into() }));
    server.join().expect("the server ends");
}

#[test]
fn an_end_without_an_answer_is_said() {
    let (address, server) = answer(&[]);
    let why = ask(&get(address, &[])).expect_err("nothing");
    assert_eq!(why, Why::Ended { address, path: "/healthz".into(), errno: None });
    server.join().expect("the server ends");
}

#[test]
fn a_reset_is_said() {
    // Unread bytes at its close make the kernel reset the connection.
    let (listener, address) = listen();
    let server = std::thread::spawn(move || {
        let (stream, _) = listener.accept().expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.peek(&mut [0]).expect("the request comes");
    });
    let why = ask(&get(address, &[])).expect_err("a reset");
    assert_eq!(why, Why::Ended { address, path: "/healthz".into(), errno: Some(Errno::ECONNRESET) });
    assert_eq!(why.to_string(), format!("GET /healthz: {address} reset the connection"));
    server.join().expect("the server ends");
}

#[test]
fn silence_ends_with_its_time() {
    let (listener, address) = listen();
    let mut looped = Loop::new();
    let began = Instant::now();
    let why = looped.ask(&get(address, &[]), 150).expect_err("silence");
    assert!(began.elapsed() >= Duration::from_millis(149), "too early: {:?}", began.elapsed());
    assert_eq!(why, Why::NoAnswer { address, path: "/healthz".into(), timeout: 150 });
    assert_eq!(looped.probes.deadline(), None);
    drop(listener);
}

#[test]
fn a_server_that_never_ends_its_status_line_is_not_read_for_ever() {
    let (address, server) = serve(|mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 ");
        while stream.write_all(&[b'x'; 1024]).is_ok() {}
    });
    assert_eq!(ask(&get(address, &[])), Err(Why::NotHttp { address, path: "/healthz".into() }));
    server.join().expect("the server ends");
}

#[test]
fn an_answer_is_read_to_its_end_so_that_the_server_sees_no_error() {
    let (address, server) = serve(|mut stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").expect("the head is taken");
        for _ in 0..4 {
            std::thread::sleep(Duration::from_millis(5));
            stream.write_all(&[b'x'; 1024]).expect("the body is taken");
        }
        stream.shutdown(std::net::Shutdown::Write).expect("an end");
        assert_eq!(stream.read(&mut [0]).expect("no reset"), 0);
    });
    let mut looped = Loop::new();
    assert_eq!(looped.ask(&get(address, &[]), 10_000), Ok(()));
    looped.settle();
    server.join().expect("the server saw no error");
}

#[test]
fn an_endless_body_is_not_read_for_ever() {
    let (address, server) = serve(|mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
        while stream.write_all(&[b'x'; 1024]).is_ok() {}
    });
    let mut looped = Loop::new();
    assert_eq!(looped.ask(&get(address, &[]), 10_000), Ok(()));
    looped.settle();
    server.join().expect("the server ends");
    assert!(looped.began.elapsed() < Duration::from_secs(9), "it was read until its time was over");
}

#[test]
fn nothing_is_told_of_a_cancelled_probe() {
    let (listener, address) = listen();
    let mut looped = Loop::new();
    looped.probes.start(KEY, &get(address, &[]), 0, 50).expect("it begins");
    looped.probes.cancel(KEY);
    assert_eq!(looped.probes.deadline(), None);
    assert_eq!(looped.probes.serve(1000), []);
    // A second one takes the place of the first.
    looped.probes.start(KEY, &get(address, &[]), 0, 50).expect("it begins");
    looped.probes.start(KEY, &Ask::Tcp(Address::Numeric(address)), 0, u64::MAX).expect("it begins");
    let told = loop {
        let told = looped.turn();
        if !told.is_empty() {
            break told;
        }
    };
    assert_eq!(told, [(KEY, Ok(()))]);
    drop(listener);
}

#[test]
fn many_at_once_are_told_apart() {
    let (_listener, good) = listen();
    let (closed, bad) = listen();
    drop(closed);
    let mut looped = Loop::new();
    let mut told = Vec::new();
    for key in 0..200 {
        let address = Address::Numeric(if key % 2 == 0 { good } else { bad });
        if let Err(why) = looped.probes.start(key, &Ask::Tcp(address), 0, PATIENCE.as_millis() as u64) {
            told.push((key, Err(why)));
        }
    }
    while told.len() < 200 {
        told.extend(looped.turn());
    }
    told.sort_by_key(|(key, _)| *key);
    for (expected, (key, result)) in (0..).zip(told) {
        assert_eq!(key, expected);
        assert_eq!(result.is_ok(), key % 2 == 0, "{key}: {result:?}");
    }
    assert_eq!(looped.probes.deadline(), None);
}
