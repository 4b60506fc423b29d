//! Probes: is somebody there who accepts a connection, or answers a GET as expected?
//!
//! Nothing in here waits. All connections are in one inner epoll(7), whose descriptor the loop watches. Names are not
//! looked up: an address is numeric, or `localhost`, which is `::1` and then `127.0.0.1` whatever the host's files say.

use std::fmt;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::state::Ms;
use crate::sys::{self, Errno, errno_of, socket};

/// What the loop knows a unit by.
pub type Key = u64;

/// Most bytes read of an answer.
pub const LONGEST_ANSWER: usize = 8 * 1024;
/// Connections looked at in one [`Probes::serve`].
const TURN: usize = 64;
/// Statuses that count where none are given.
const GOOD: std::ops::RangeInclusive<u16> = 200..=399;

/// Where a service listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Address {
    /// Numeric, with a port.
    Numeric(SocketAddr),
    /// `localhost` with this port: `::1`, and if that cannot be connected to, `127.0.0.1`.
    Localhost(u16),
}

impl Address {
    /// The addresses to try, in this order.
    fn first_and_next(self) -> (SocketAddr, Option<SocketAddr>) {
        match self {
            Self::Numeric(address) => (address, None),
            Self::Localhost(port) => {
                let at = |ip| SocketAddr::new(ip, port);
                (at(IpAddr::V6(Ipv6Addr::LOCALHOST)), Some(at(IpAddr::V4(Ipv4Addr::LOCALHOST))))
            }
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Numeric(address) => address.fmt(to),
            Self::Localhost(port) => write!(to, "localhost:{port}"),
        }
    }
}

/// A text that is no [`Address`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressError(String);

impl fmt::Display for AddressError {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "`{}` is no address: `127.0.0.1:8080`, `[::1]:8080` and `localhost:8080` are some", self.0)
    }
}

impl std::error::Error for AddressError {}

/// Reads `127.0.0.1:8080`, `[::1]:8080` or `localhost:8080`.
///
/// # Errors
/// Anything else: another name, no port, port 0.
pub fn parse_address(text: &str) -> Result<Address, AddressError> {
    let localhost = |text: &str| text.strip_prefix("localhost:")?.parse().ok().map(Address::Localhost);
    let address = text.parse().ok().map(Address::Numeric).or_else(|| localhost(text));
    address
        .filter(|address| address.first_and_next().0.port() != 0)
        .ok_or_else(|| AddressError(text.to_owned()))
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// A connection is accepted.
    Tcp(Address),
    /// A GET over HTTP/1.1 gets a status that counts.
    Http {
        /// Where.
        address: Address,
        /// `/healthz`, with its query if it has one.
        path: String,
        /// Statuses that count; empty: 200 to 399.
        status: Vec<u16>,
    },
}

impl Ask {
    /// The same question, elsewhere.
    #[must_use]
    pub fn at(&self, address: Address) -> Self {
        match self {
            Self::Tcp(_) => Self::Tcp(address),
            Self::Http { path, status, .. } => {
                Self::Http { address, path: path.clone(), status: status.clone() }
            }
        }
    }

    const fn address(&self) -> Address {
        match self {
            Self::Tcp(address) | Self::Http { address, .. } => *address,
        }
    }
}

/// Why a probe failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// Nobody listens there.
    Refused(SocketAddr),
    /// No connection for another reason.
    Unreachable(SocketAddr, Errno),
    /// Neither a connection nor a refusal in time.
    NoConnection(SocketAddr, Ms),
    /// Connected, but no whole status line in time.
    NoAnswer {
        /// Who was asked.
        address: SocketAddr,
        /// For what.
        path: String,
        /// The time it had.
        timeout: Ms,
    },
    /// The connection was ended before there was a whole status line: closed, or with this error.
    Ended {
        /// By whom.
        address: SocketAddr,
        /// What was asked for.
        path: String,
        /// `ECONNRESET` and its like.
        errno: Option<Errno>,
    },
    /// What came is not HTTP/1.
    NotHttp {
        /// Who sent it.
        address: SocketAddr,
        /// What was asked for.
        path: String,
    },
    /// A status that does not count.
    Status {
        /// What was asked for.
        path: String,
        /// What came.
        got: u16,
        /// What would have counted; empty: 200 to 399.
        expected: Vec<u16>,
    },
    /// A path that cannot stand in a request.
    Path(String),
    /// The supervisor could not ask: it has no descriptor or memory left.
    Own(Errno),
}

impl fmt::Display for Why {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(address) => write!(to, "{address} refused the connection"),
            Self::Unreachable(address, errno) => write!(to, "{address} cannot be reached: {}", errno.desc()),
            Self::NoConnection(address, timeout) => {
                write!(to, "{address} did not accept a connection within {timeout} ms")
            }
            Self::NoAnswer { address, path, timeout } => {
                write!(to, "GET {path}: {address} did not answer within {timeout} ms")
            }
            Self::Ended { address, path, errno: None } => {
                write!(to, "GET {path}: {address} closed the connection without an answer")
            }
            Self::Ended { address, path, errno: Some(Errno::ECONNRESET) } => {
                write!(to, "GET {path}: {address} reset the connection")
            }
            Self::Ended { address, path, errno: Some(errno) } => {
                write!(to, "GET {path}: the connection to {address} broke: {}", errno.desc())
            }
            Self::NotHttp { address, path } => {
                write!(to, "GET {path}: what {address} answered is not HTTP/1")
            }
            Self::Status { path, got, expected } => {
                write!(to, "GET {path} answered {got} instead of {}", Expected(expected))
            }
            Self::Path(path) => write!(
                to,
                "`{}` cannot be asked for: a path begins with `/` and has no spaces or control characters",
                path.escape_debug()
            ),
            Self::Own(errno) => write!(to, "the supervisor could not ask: {}", errno.desc()),
        }
    }
}

impl std::error::Error for Why {}

/// Statuses as people write them: `200 to 399`, `200, 204 or 301`.
struct Expected<'a>(&'a [u16]);

impl fmt::Display for Expected<'_> {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((last, others)) = self.0.split_last() else {
            return write!(to, "{} to {}", GOOD.start(), GOOD.end());
        };
        for (index, status) in others.iter().enumerate() {
            write!(to, "{}{status}", if index == 0 { "" } else { ", " })?;
        }
        write!(to, "{}{last}", if others.is_empty() { "" } else { " or " })
    }
}

/// How far a probe is.
#[derive(Debug)]
enum Stage {
    /// The kernel connects; if that fails, the next address is tried.
    Connecting { next: Option<SocketAddr> },
    /// This much of the request was sent.
    Sending { request: Vec<u8>, sent: usize },
    /// The answer so far.
    Reading { answer: Vec<u8> },
    /// The result is known and told. The rest of the answer is read until the peer closes, at most so many bytes: a
    /// server whose client hangs up in the middle of an answer complains in its log.
    Draining { room: usize },
}

/// A connection.
#[derive(Debug)]
struct Connection {
    /// Its number in the epoll set: a drained connection lives on while the next probe of its key runs.
    serial: u64,
    key: Key,
    ask: Ask,
    /// Whom it leads to.
    address: SocketAddr,
    stream: TcpStream,
    stage: Stage,
    timeout: Ms,
    deadline: Ms,
}

/// What a step of a connection came to.
enum Step {
    /// Later, when the socket is ready.
    Wait,
    /// A result; the connection is drained or, after an error, closed.
    Tell(Result<(), Why>),
    /// It is over, and all is told.
    Close,
}

/// All probes that are on their way.
#[derive(Debug)]
pub struct Probes {
    epoll: Epoll,
    /// By serial number.
    connections: Vec<Connection>,
    next_serial: u64,
}

impl Probes {
    /// None yet.
    ///
    /// # Errors
    /// Those of epoll_create1(2).
    pub fn new() -> Result<Self, Errno> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Self { epoll, connections: Vec::new(), next_serial: 0 })
    }

    /// Ready to be read when [`Self::serve`] has something to do, but for deadlines.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }

    /// Begins a probe that may take `timeout`; an earlier one of the same key is cancelled. `Ok`: [`Self::serve`] tells
    /// the result, once, unless it is cancelled.
    ///
    /// # Errors
    /// It has failed at once, and nothing more will be told: a port of this machine where nobody listens, for one.
    pub fn start(&mut self, key: Key, ask: &Ask, now: Ms, timeout: Ms) -> Result<(), Why> {
        self.cancel(key);
        if let Ask::Http { path, .. } = ask
            && !is_path(path)
        {
            return Err(Why::Path(path.clone()));
        }
        let (first, next) = ask.address().first_and_next();
        let (address, next, stream) = connect(first, next)?;
        let serial = self.next_serial;
        self.epoll.add(&stream, interest(serial, EpollFlags::EPOLLOUT)).map_err(Why::Own)?;
        self.next_serial += 1;
        self.connections.push(Connection {
            serial,
            key,
            ask: ask.clone(),
            address,
            stream,
            stage: Stage::Connecting { next },
            timeout,
            deadline: now.saturating_add(timeout),
        });
        Ok(())
    }

    /// Ends a key's probe, if there is one; nothing is told of it.
    pub fn cancel(&mut self, key: Key) {
        let asked = |it: &Connection| it.key == key && !matches!(it.stage, Stage::Draining { .. });
        if let Some(at) = self.connections.iter().position(asked) {
            self.close(at);
        }
    }

    /// Goes on with what is ready and ends what is late; returns the results that are new. Never waits.
    pub fn serve(&mut self, now: Ms) -> Vec<(Key, Result<(), Why>)> {
        let mut told = Vec::new();
        let mut ready = [EpollEvent::empty(); TURN];
        let count = self.epoll.wait(&mut ready, EpollTimeout::ZERO).unwrap_or(0);
        for event in &ready[..count] {
            let Ok(at) = self.connections.binary_search_by_key(&event.data(), |it| it.serial) else {
                continue;
            };
            let step = self.connections[at].step(&self.epoll);
            self.conclude(at, step, &mut told);
        }
        while let Some(at) = self.connections.iter().position(|it| it.deadline <= now) {
            let step = self.connections[at].late();
            self.conclude(at, step, &mut told);
        }
        told
    }

    /// When [`Self::serve`] has something to do at the latest.
    pub fn deadline(&self) -> Option<Ms> {
        self.connections.iter().map(|it| it.deadline).min()
    }

    fn conclude(&mut self, at: usize, step: Step, told: &mut Vec<(Key, Result<(), Why>)>) {
        let drained = matches!(self.connections[at].stage, Stage::Draining { .. });
        match step {
            Step::Wait => {}
            Step::Close => self.close(at),
            Step::Tell(result) => {
                told.push((self.connections[at].key, result));
                if !drained {
                    self.close(at);
                }
            }
        }
    }

    fn close(&mut self, at: usize) {
        let connection = self.connections.remove(at);
        // Closing alone would leave it in the set while a copy is open: a child between fork and exec has one.
        let _ = self.epoll.delete(&connection.stream);
    }
}

impl Connection {
    /// Goes as far as it can without waiting.
    fn step(&mut self, epoll: &Epoll) -> Step {
        match &mut self.stage {
            Stage::Connecting { .. } => self.connected(epoll),
            Stage::Sending { .. } => self.send(epoll),
            Stage::Reading { .. } => self.read(),
            Stage::Draining { .. } => self.drain(),
        }
    }

    /// The deadline has come.
    fn late(&self) -> Step {
        let why = match (&self.stage, &self.ask) {
            (Stage::Draining { .. }, _) => return Step::Close,
            (Stage::Connecting { .. }, _) | (_, Ask::Tcp(_)) => Why::NoConnection(self.address, self.timeout),
            (_, Ask::Http { path, .. }) => {
                Why::NoAnswer { address: self.address, path: path.clone(), timeout: self.timeout }
            }
        };
        Step::Tell(Err(why))
    }

    /// The kernel has connected, or could not.
    fn connected(&mut self, epoll: &Epoll) -> Step {
        match connection_error(&self.stream) {
            None => {}
            Some(errno) => return self.try_next(errno, epoll),
        }
        match &self.ask {
            Ask::Tcp(_) => Step::Tell(Ok(())),
            Ask::Http { address, path, .. } => {
                self.stage = Stage::Sending { request: request(*address, path), sent: 0 };
                self.send(epoll)
            }
        }
    }

    /// The other address of `localhost`, if it was not tried yet.
    fn try_next(&mut self, errno: Errno, epoll: &Epoll) -> Step {
        let next = match &mut self.stage {
            Stage::Connecting { next } => next.take(),
            _ => None,
        };
        let Some(next) = next else { return Step::Tell(Err(no_connection(self.address, errno))) };
        let stream = match connect(next, None) {
            Ok((_, _, stream)) => stream,
            Err(why) => return Step::Tell(Err(why)),
        };
        let _ = epoll.delete(&self.stream);
        (self.stream, self.address) = (stream, next);
        match epoll.add(&self.stream, interest(self.serial, EpollFlags::EPOLLOUT)) {
            Ok(()) => Step::Wait,
            Err(errno) => Step::Tell(Err(Why::Own(errno))),
        }
    }

    fn send(&mut self, epoll: &Epoll) -> Step {
        let Stage::Sending { request, sent } = &mut self.stage else { return Step::Wait };
        match attempt(|| self.stream.write(&request[*sent..])) {
            Ok(Some(length)) => *sent += length,
            Ok(None) => return Step::Wait,
            Err(errno) => return self.ended(Some(errno)),
        }
        if *sent < request.len() {
            return Step::Wait;
        }
        self.stage = Stage::Reading { answer: Vec::new() };
        match epoll.modify(&self.stream, &mut interest(self.serial, EpollFlags::EPOLLIN)) {
            Ok(()) => Step::Wait,
            Err(errno) => Step::Tell(Err(Why::Own(errno))),
        }
    }

    fn read(&mut self) -> Step {
        let Stage::Reading { answer } = &mut self.stage else { return Step::Wait };
        let mut buffer = [0; LONGEST_ANSWER];
        match attempt(|| self.stream.read(&mut buffer[answer.len()..])) {
            Ok(Some(0)) => return self.ended(None),
            Ok(Some(length)) => {
                let from = answer.len();
                answer.extend_from_slice(&buffer[from..from + length]);
            }
            Ok(None) => return Step::Wait,
            Err(errno) => return self.ended(Some(errno)),
        }
        let room = LONGEST_ANSWER - answer.len();
        match status(answer) {
            Answer::Status(got) => {
                self.stage = Stage::Draining { room };
                Step::Tell(self.judge(got))
            }
            Answer::Partial if room > 0 => Step::Wait,
            Answer::Partial | Answer::NotHttp => self.not_http(),
        }
    }

    fn drain(&mut self) -> Step {
        let Stage::Draining { room } = &mut self.stage else { return Step::Wait };
        let mut buffer = [0; LONGEST_ANSWER];
        match attempt(|| self.stream.read(&mut buffer[..*room])) {
            // With no room left, too.
            Ok(Some(0)) | Err(_) => return Step::Close,
            Ok(Some(length)) => *room -= length,
            Ok(None) => {}
        }
        Step::Wait
    }

    fn judge(&self, got: u16) -> Result<(), Why> {
        match &self.ask {
            Ask::Http { path, status, .. } if !counts(got, status) => {
                Err(Why::Status { path: path.clone(), got, expected: status.clone() })
            }
            _ => Ok(()),
        }
    }

    fn ended(&self, errno: Option<Errno>) -> Step {
        Step::Tell(Err(Why::Ended { address: self.address, path: self.path(), errno }))
    }

    fn not_http(&self) -> Step {
        Step::Tell(Err(Why::NotHttp { address: self.address, path: self.path() }))
    }

    fn path(&self) -> String {
        match &self.ask {
            Ask::Http { path, .. } => path.clone(),
            Ask::Tcp(_) => String::new(),
        }
    }
}

fn interest(serial: u64, flags: EpollFlags) -> EpollEvent {
    EpollEvent::new(flags, serial)
}

/// Begins to connect to the first address, or where that fails at once, to the next; what is left to try comes back.
fn connect(
    first: SocketAddr,
    next: Option<SocketAddr>,
) -> Result<(SocketAddr, Option<SocketAddr>, TcpStream), Why> {
    match (socket::connect(first), next) {
        (Ok(stream), next) => Ok((first, next, stream)),
        (Err(_), Some(next)) => connect(next, None),
        (Err(errno), None) => Err(no_connection(first, errno)),
    }
}

fn no_connection(address: SocketAddr, errno: Errno) -> Why {
    match errno {
        Errno::ECONNREFUSED => Why::Refused(address),
        Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOBUFS => Why::Own(errno),
        _ => Why::Unreachable(address, errno),
    }
}

/// Why a socket that the kernel is done with is not connected.
///
/// Where nobody listens on a port of the range for outgoing connections, a connection can meet itself: the kernel
/// gives it that very port, and TCP allows both ends to begin. Nobody accepted that one.
fn connection_error(stream: &TcpStream) -> Option<Errno> {
    match (stream.take_error(), stream.local_addr(), stream.peer_addr()) {
        (Ok(Some(error)) | Err(error), _, _) => Some(errno_of(&error)),
        (_, Ok(own), Ok(peer)) if own == peer => Some(Errno::ECONNREFUSED),
        (_, _, Err(error)) => Some(errno_of(&error)),
        _ => None,
    }
}

/// One call, again if a signal interrupted it; `None` if it would wait.
fn attempt(mut call: impl FnMut() -> std::io::Result<usize>) -> Result<Option<usize>, Errno> {
    sys::attempt(|| call().map_err(|error| errno_of(&error)))
}

/// What can stand in a request line without changing the request.
fn is_path(path: &str) -> bool {
    path.starts_with('/') && path.bytes().all(|byte| byte > b' ' && byte != 0x7f)
}

fn request(address: Address, path: &str) -> Vec<u8> {
    format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: kitbag\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    )
    .into_bytes()
}

fn counts(got: u16, expected: &[u16]) -> bool {
    if expected.is_empty() { GOOD.contains(&got) } else { expected.contains(&got) }
}

/// What an answer says so far.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// More has to come.
    Partial,
    /// It does not begin as an answer of HTTP/1 does.
    NotHttp,
    /// The final status.
    Status(u16),
}

/// The status of an answer of which this much has come: that of the first status line (RFC 9112, section 4) that is not
/// interim, 100 to 199 (RFC 9110, section 15.2).
fn status(mut answer: &[u8]) -> Answer {
    loop {
        match status_line(answer) {
            Answer::Status(100..=199) => match after_headers(answer) {
                Some(rest) => answer = rest,
                None => return Answer::Partial,
            },
            other => return other,
        }
    }
}

/// The status line at the beginning of `answer`; a lone newline ends it too (RFC 9112, section 2.2).
fn status_line(answer: &[u8]) -> Answer {
    /// A letter stands for itself, `0` for a digit.
    const SHAPE: &[u8] = b"HTTP/1.0 000";
    let fits = |(byte, shape): (&u8, &u8)| {
        if *shape == b'0' { byte.is_ascii_digit() } else { byte == shape }
    };
    if !answer.iter().zip(SHAPE).all(fits) {
        return Answer::NotHttp;
    }
    let Some((head, rest)) = answer.split_at_checked(SHAPE.len()) else { return Answer::Partial };
    match rest.first() {
        Some(b' ' | b'\r' | b'\n') if rest.contains(&b'\n') => {}
        Some(b' ' | b'\r') | None => return Answer::Partial,
        Some(_) => return Answer::NotHttp,
    }
    let number = head[9..].iter().fold(0, |number, digit| number * 10 + u16::from(digit - b'0'));
    if number < 100 { Answer::NotHttp } else { Answer::Status(number) }
}

/// What follows the empty line after the headers.
fn after_headers(answer: &[u8]) -> Option<&[u8]> {
    let mut rest = answer;
    loop {
        let end = rest.iter().position(|byte| *byte == b'\n')?;
        let (line, after) = rest.split_at(end + 1);
        if matches!(line, b"\n" | b"\r\n") {
            return Some(after);
        }
        rest = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_numeric_or_localhost() {
        for text in ["127.0.0.1:8080", "[::1]:8080", "localhost:8080", "0.0.0.0:1"] {
            assert_eq!(parse_address(text).expect(text).to_string(), text);
        }
        for text in [
            "",
            ":80",
            "80",
            "localhost",
            "localhost:",
            "example.com:80",
            "::1:80",
            "127.0.0.1:0",
            "localhost:0",
            "127.0.0.1:65536",
            "http://127.0.0.1:80",
            "127.1:80",
        ] {
            assert!(parse_address(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_status_line_is_read_from_any_split() {
        let answer = b"HTTP/1.1 503 Service Unavailable\r\nServer: x\r\n\r\n";
        let end = answer.iter().position(|byte| *byte == b'\n').expect("a line");
        for length in 0..answer.len() {
            let expected = if length > end { Answer::Status(503) } else { Answer::Partial };
            assert_eq!(status(&answer[..length]), expected, "{length} bytes");
        }
    }

    #[test]
    fn interim_answers_are_passed_over() {
        let answer = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 204\r\n";
        assert_eq!(status(answer), Answer::Status(204));
        for length in 0..answer.len() {
            assert_eq!(status(&answer[..length]), Answer::Partial, "{length} bytes");
        }
    }

    #[test]
    fn what_is_not_http_is_known_from_its_first_bytes() {
        for answer in
            ["S", "HTTQ", "HTTP/2.0 200", "HTTP/1.1  20", "HTTP/1.1 20x", "HTTP/1.1 2000", "HTTP/1.1 099\r\n"]
        {
            assert_eq!(status(answer.as_bytes()), Answer::NotHttp, "{answer}");
        }
        assert_eq!(status(b"HTTP/1.0 200\n"), Answer::Status(200));
    }

    #[test]
    fn a_path_cannot_become_a_second_request() {
        let ask = |path: &str| Ask::Http {
            address: Address::Localhost(1),
            path: path.to_owned(),
            status: Vec::new(),
        };
        let mut probes = Probes::new().expect("epoll");
        for path in ["", "healthz", "/a b", "/a\r\nHost: x"] {
            assert_eq!(probes.start(1, &ask(path), 0, 1), Err(Why::Path(path.to_owned())));
        }
    }

    #[test]
    fn a_connection_to_itself_is_a_refusal() {
        let stream = socket::connected_to_itself();
        assert_eq!(connection_error(&stream), Some(Errno::ECONNREFUSED));
    }

    #[test]
    fn a_listener_that_takes_no_more_is_late() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        socket::shorten_queue(&listener);
        let address = listener.local_addr().expect("its address");
        // One waits to be accepted; the kernel leaves a second one without an answer.
        let _first = TcpStream::connect(address).expect("the first connects");
        let mut probes = Probes::new().expect("epoll");
        let ask = Ask::Tcp(Address::Numeric(address));
        assert_eq!(probes.start(1, &ask, 1000, 300), Ok(()));
        assert_eq!(probes.serve(1299), []);
        assert_eq!(probes.deadline(), Some(1300));
        assert_eq!(probes.serve(1300), [(1, Err(Why::NoConnection(address, 300)))]);
        assert_eq!(probes.deadline(), None);
    }

    #[test]
    fn reasons_are_sentences() {
        let address: SocketAddr = "127.0.0.1:8080".parse().expect("an address");
        let path = || "/healthz".to_owned();
        assert_eq!(Why::Refused(address).to_string(), "127.0.0.1:8080 refused the connection");
        let status = |expected| Why::Status { path: path(), got: 503, expected };
        assert_eq!(status(vec![]).to_string(), "GET /healthz answered 503 instead of 200 to 399");
        assert_eq!(status(vec![204]).to_string(), "GET /healthz answered 503 instead of 204");
        assert_eq!(
            status(vec![200, 204, 301]).to_string(),
            "GET /healthz answered 503 instead of 200, 204 or 301"
        );
        assert_eq!(
            Why::NoAnswer { address, path: path(), timeout: 1500 }.to_string(),
            "GET /healthz: 127.0.0.1:8080 did not answer within 1500 ms"
        );
    }
}
