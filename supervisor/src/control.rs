//! HTTP/1.1 with JSON on a unix socket in the state folder: how things are, and what is to be done. The API is in
//! `docs/control.md`.
//!
//! The loop watches one descriptor ([`Control::fd`]) and one time ([`Control::deadline`]), and calls
//! [`Control::serve`], which never blocks. A client can do no harm but to itself: there are at most [`CLIENTS`], each has
//! bounded queues and a time by which its request, or its reading of the answer, has to come to an end.
//! Who is at the other end is asked of the kernel: our own user and root are heard, others get 403.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{getsockopt, sockopt};

use crate::ports::registry::Published;
use crate::snapshot::Snapshot;
use crate::state::Ms;
use crate::status::{Event, Status};

pub mod client;
pub mod http;
mod making;
mod routes;
pub mod socket;

use http::{Headers, Parsed};
use making::Making;
pub(crate) use routes::signal_number;
use routes::{Reply, Wait};

/// Connections at a time. A further one takes the place of the one that has asked for nothing for the longest time.
pub const CLIENTS: usize = 64;
/// Events that are kept for whoever comes later.
pub const KEPT: usize = 256;
/// From its first byte to its last, a request may take so long; and the first byte after connecting.
pub const REQUEST_TIME: Ms = 10_000;
/// An open connection may be silent for so long between two requests.
pub const IDLE_TIME: Ms = 60_000;
/// A client may leave an answer unread for so long.
pub const READ_TIME: Ms = 10_000;
/// Unread bytes of a client that follows events; with more it is dropped.
pub const UNREAD_EVENTS: usize = 256 * 1024;
/// Unread bytes of all clients; with more, requests are answered with 503.
pub const UNREAD: usize = 8 * 1024 * 1024;
/// Longest detail of an event that is kept, in bytes.
const LONGEST_DETAIL: usize = 1024;
/// Requests of one client that are answered before others get their turn.
const AT_ONCE: usize = 8;
/// Who waits for a state hears of it so much later at most: many changes are looked at together.
const LOOK_INTERVAL: Ms = 5;
/// Where no descriptor is left for a connection, the next try.
const PAUSE: Ms = 1_000;

/// What the socket needs from the loop.
pub trait App {
    /// How things are.
    fn status(&mut self) -> Status;
    /// Which ports it has.
    fn ports(&mut self) -> Vec<Published>;
    /// Begins what is asked for and returns at once.
    fn command(&mut self, command: &Command) -> Result<Accepted, Refused>;
    /// What a successor has to know.
    fn snapshot(&mut self) -> Snapshot;
    /// What a command beside a service's or task's processes needs.
    fn surroundings(&mut self, name: &str) -> Result<Surroundings, Refused>;
}

/// What is to be done. A name is a service's (all its instances), an instance's (`web.2`) or a task's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Start it if it does not run; whatever it failed at is forgotten.
    Start(String),
    /// Stop it, and do not start it again.
    Stop(String),
    /// Stop it if it runs, and start it. `None`: every service.
    Restart(Option<String>),
    /// Send it a signal, by number.
    Signal(String, i32),
    /// Let so many instances of a service run.
    Scale(String, u32),
    /// Run a task now.
    RunTask(String),
    /// Stop everything, and end.
    Shutdown,
}

/// What was begun.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Accepted {
    /// The units that it concerns.
    pub units: Vec<String>,
}

/// Why nothing was begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// There is no unit of this name.
    Unknown,
    /// It cannot be done with this unit: words after "cannot", such as `be sent signal 70`.
    Wrong(String),
    /// It cannot be done with what this is, or as the manifest is.
    Unfit {
        /// Why: `nightly is a task; only services have instances`.
        what: String,
        /// What can be done with it.
        to_fix: String,
    },
    /// Not now: a sentence, such as `the bundle is stopping`.
    Conflict(String),
}

/// What a command beside a unit's processes needs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Surroundings {
    /// The complete environment.
    pub env: Vec<(std::ffi::OsString, std::ffi::OsString)>,
    /// The working directory.
    pub cwd: PathBuf,
    /// User, group and supplementary groups; `None`: the supervisor's.
    pub identity: Option<Identity>,
    /// umask(2); `None`: the supervisor's.
    pub umask: Option<u32>,
    /// All limits by name, soft and hard; `None`: no limit.
    pub limits: Vec<(&'static str, [Option<u64>; 2])>,
    /// Its priority, -20 to 19.
    pub nice: i32,
    /// `oom_score_adj`, -1000 to 1000; `None` where there is no /proc.
    pub oom_score: Option<i32>,
    /// The folder of its cgroup, if it has one of its own.
    pub cgroup: Option<PathBuf>,
}

/// Who a process is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Identity {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups; `None`: the supervisor's.
    pub groups: Option<Vec<u32>>,
}

/// The socket, its clients, and the last events.
pub struct Control {
    epoll: Epoll,
    listener: UnixListener,
    path: PathBuf,
    clients: Vec<Option<Client>>,
    kept: VecDeque<Event>,
    /// No connection is taken until then.
    paused_until: Option<Ms>,
    /// Something has happened that may end a wait.
    changed: bool,
    /// When waits were looked at.
    looked_at: Ms,
    /// There is more to do than fits into one turn.
    again: bool,
    /// How things are in this turn, if somebody needed to know: made once for all who do.
    seen: Option<Status>,
}

/// Names the listener among ready descriptors; clients have their index.
const LISTENER: u64 = u64::MAX;

impl Control {
    /// Makes the socket in `folder`, which belongs to us alone, in place of one that an earlier supervisor left
    /// behind. The caller holds the state's lock: nobody else listens there.
    pub fn bind(folder: &Path) -> io::Result<Self> {
        let listener = socket::bind(folder)?;
        listener.set_nonblocking(true)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
        Ok(Self {
            epoll,
            listener,
            path: folder.join(socket::NAME),
            clients: Vec::new(),
            kept: VecDeque::new(),
            paused_until: None,
            changed: false,
            looked_at: 0,
            again: false,
            seen: None,
        })
    }

    /// Readable when [`Self::serve`] has something to do.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }

    /// The number of the socket that is listened at.
    pub fn listener(&self) -> i32 {
        self.listener.as_raw_fd()
    }

    /// When [`Self::serve`] has something to do whatever happens; 0: at once.
    pub fn deadline(&self) -> Option<Ms> {
        if self.again {
            return Some(0);
        }
        let waits = self.clients().any(|client| matches!(client.mode, Mode::Wait(_)));
        let look = (self.changed && waits).then_some(self.looked_at + LOOK_INTERVAL);
        let clients = self.clients().filter_map(|client| client.timer);
        clients.chain(look).chain(self.paused_until).min()
    }

    /// Tells everybody who follows events, and keeps the event for those who come later.
    pub fn publish(&mut self, event: &Event) {
        let mut event = event.clone();
        let fits = |end: &usize| event.detail.is_char_boundary(*end);
        let end = (0..=LONGEST_DETAIL.min(event.detail.len())).rev().find(fits).unwrap_or(0);
        event.detail.truncate(end);
        self.changed = true;
        let mut line = None;
        for client in self.clients.iter_mut().flatten() {
            if matches!(client.mode, Mode::Events) {
                client.outbox.extend_from_slice(line.get_or_insert_with(|| line_of(&event)).as_bytes());
                self.again = true;
            }
        }
        if self.kept.len() == KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(event);
    }

    /// Takes connections, reads, answers and writes as far as that goes without waiting.
    pub fn serve(&mut self, now: Ms, app: &mut dyn App) {
        self.again = false;
        let mut ready = [EpollEvent::empty(); CLIENTS + 1];
        let count = self.epoll.wait(&mut ready, EpollTimeout::ZERO).unwrap_or(0);
        let mut has_guests = false;
        for event in ready.iter().take(count) {
            match usize::try_from(event.data()) {
                Ok(index) if event.data() != LISTENER => self.listen_to(index, event.events(), now),
                _ => has_guests = true,
            }
        }
        // Afterwards: what is said of a client's place is not about who gets it next.
        if has_guests {
            self.accept(now);
        }
        if self.paused_until.is_some_and(|until| until <= now) {
            self.paused_until = None;
            let _ = self.epoll.add(&self.listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER));
        }
        let look = self.changed && self.looked_at + LOOK_INTERVAL <= now;
        if look {
            self.changed = false;
            self.looked_at = now;
        }
        for index in 0..self.clients.len() {
            if let Some(mut client) = self.clients[index].take() {
                if self.attend(&mut client, look, now, app) && self.watch(&mut client, index) {
                    self.clients[index] = Some(client);
                } else {
                    // Before it is closed: a child forked meanwhile may hold it, and keep it in the poll set.
                    let _ = self.epoll.delete(&client.stream);
                }
            }
        }
        self.seen = None;
        self.make(now, app);
        while self.clients.last().is_some_and(Option::is_none) {
            self.clients.pop();
        }
    }

    /// Goes on with one answer in the making: the one that was begun, else that of who has waited for the longest time.
    fn make(&mut self, now: Ms, app: &mut dyn App) {
        let order = |client: &Client| match &client.mode {
            Mode::Making { making, .. } => Some((making.is_none(), client.since)),
            _ => None,
        };
        let waiting = self.clients.iter().enumerate();
        let waiting = waiting.filter_map(|(index, client)| Some((order(client.as_ref()?)?, index)));
        let Some((_, index)) = waiting.min() else { return };
        self.again = true;
        let is_full = self.is_full();
        if let Some(client) = &mut self.clients[index] {
            client.make(now, is_full, app);
        }
    }

    /// True if clients have left so many answers unread that there shall be no more.
    fn is_full(&self) -> bool {
        self.clients().map(Client::unread).sum::<usize>() > UNREAD
    }

    fn clients(&self) -> impl Iterator<Item = &Client> {
        self.clients.iter().flatten()
    }

    fn accept(&mut self, now: Ms) {
        for _ in 0..CLIENTS {
            match self.listener.accept() {
                Ok((stream, _)) => self.welcome(stream, now),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(_) => {
                    // No descriptor is left (EMFILE): asked again at once, it would say so for ever.
                    let _ = self.epoll.delete(&self.listener);
                    self.paused_until = Some(now + PAUSE);
                    return;
                }
            }
        }
    }

    fn welcome(&mut self, stream: UnixStream, now: Ms) {
        if stream.set_nonblocking(true).is_err() {
            return;
        }
        let own = nix::unistd::geteuid().as_raw();
        let peer = getsockopt(&stream, sockopt::PeerCredentials).map(|peer| peer.uid());
        let allowed = peer.is_ok_and(|peer| peer == own || peer == 0);
        let Some(index) = self.place() else { return };
        let interest = EpollFlags::EPOLLIN;
        if self.epoll.add(&stream, EpollEvent::new(interest, index as u64)).is_ok() {
            self.clients[index] = Some(Client::new(stream, allowed, interest, now));
        }
    }

    /// A free place, or that of the client who has kept us waiting for a request for the longest time.
    fn place(&mut self) -> Option<usize> {
        if let Some(index) = self.clients.iter().position(Option::is_none) {
            return Some(index);
        }
        if self.clients.len() < CLIENTS {
            self.clients.push(None);
            return Some(self.clients.len() - 1);
        }
        let silent = self.clients.iter().enumerate().filter_map(|(index, client)| {
            let client = client.as_ref().filter(|client| client.is_silent())?;
            Some((client.since, index))
        });
        let (_, index) = silent.min()?;
        if let Some(client) = self.clients[index].take() {
            let _ = self.epoll.delete(&client.stream);
        }
        Some(index)
    }

    /// Reads what a client has sent, and notices that it has gone.
    fn listen_to(&mut self, index: usize, flags: EpollFlags, now: Ms) {
        let Some(client) = self.clients.get_mut(index).and_then(Option::as_mut) else { return };
        if flags.intersects(EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR) {
            client.gone = true;
        }
        if matches!(client.mode, Mode::Request) {
            client.read(now);
        }
    }

    /// Answers, writes, and decides whether the connection goes on.
    fn attend(&mut self, client: &mut Client, look: bool, now: Ms, app: &mut dyn App) -> bool {
        if let Mode::Wait(wait) = &client.mode
            && (look || wait.until <= now)
            && let Some((code, value)) =
                wait.look(self.seen.get_or_insert_with(|| app.status()), wait.until <= now)
        {
            let keep_alive = wait.keep_alive;
            client.mode = Mode::Request;
            client.answer(&Reply::Json(code, value), keep_alive);
        }
        let mut answered = 0;
        while client.write(now) && answered < AT_ONCE && client.is_heard() {
            if !self.answer_next(client, now, app) {
                break;
            }
            answered += 1;
        }
        if !client.write(now) {
            return false;
        }
        if answered == AT_ONCE && client.is_heard() && !client.inbox.is_empty() {
            self.again = true;
            return true;
        }
        match client.mode {
            Mode::Events => !client.gone && client.unread() <= UNREAD_EVENTS && client.is_in_time(now),
            Mode::Making { .. } | Mode::Wait(_) => !client.gone,
            Mode::Request if client.unread() > 0 => client.is_in_time(now),
            Mode::Request => !(client.last || client.gone || client.ended) && self.in_time(client, now),
        }
    }

    /// A client whose request does not come to an end is told so.
    fn in_time(&self, client: &mut Client, now: Ms) -> bool {
        if client.is_in_time(now) {
            return true;
        }
        if !client.inbox.is_empty() {
            client.refuse(408, "the request did not come to its end in 10 s", "send it again, whole");
            let _ = client.write(now);
        }
        false
    }

    /// Answers the request that a client has sent; false if there is no whole one.
    fn answer_next(&mut self, client: &mut Client, now: Ms, app: &mut dyn App) -> bool {
        match http::parse(&client.inbox) {
            Parsed::Partial(expects_continue) => {
                if expects_continue && !client.continued {
                    client.continued = true;
                    client.outbox.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
                }
                false
            }
            Parsed::Bad(bad) => {
                let (code, what, to_fix) = bad.answer();
                client.refuse(code, what, to_fix);
                true
            }
            Parsed::Request(request, length) => {
                client.inbox.drain(..length);
                client.continued = false;
                client.timer = Some(now + if client.inbox.is_empty() { IDLE_TIME } else { REQUEST_TIME });
                client.since = now;
                if !client.allowed {
                    client.refuse(
                        403,
                        "this socket is for the bundle's own user and root",
                        "ask one of them",
                    );
                } else if self.is_full() {
                    client.refuse_unread();
                } else {
                    self.obey(client, &request, now, app);
                }
                true
            }
        }
    }

    fn obey(&mut self, client: &mut Client, request: &http::Request, now: Ms, app: &mut dyn App) {
        match routes::route(request, app, &mut self.seen) {
            Reply::Wait(mut wait) => {
                wait.until = now.saturating_add(wait.until);
                match wait.look(self.seen.get_or_insert_with(|| app.status()), wait.until <= now) {
                    Some((code, value)) => client.answer(&Reply::Json(code, value), request.keep_alive),
                    None => {
                        client.timer = Some(wait.until);
                        client.mode = Mode::Wait(wait);
                    }
                }
            }
            Reply::Events { follow } => {
                let lines: String = self.kept.iter().map(line_of).collect();
                if follow {
                    client.outbox.extend_from_slice(&http::stream_head(routes::JSON_LINES));
                    client.outbox.extend_from_slice(lines.as_bytes());
                    client.timer = None;
                    client.mode = Mode::Events;
                } else {
                    client.answer(&Reply::Text(routes::JSON_LINES, lines), request.keep_alive);
                }
            }
            Reply::Making(begin) => {
                client.timer = None;
                client.mode = Mode::Making { begin, making: None, keep_alive: request.keep_alive };
            }
            reply => client.answer(&reply, request.keep_alive),
        }
    }

    /// Polls a client for what is wanted of it next.
    fn watch(&self, client: &mut Client, index: usize) -> bool {
        let mut wanted = EpollFlags::empty();
        wanted.set(EpollFlags::EPOLLIN, client.is_heard() && !client.ended);
        wanted.set(EpollFlags::EPOLLOUT, client.unread() > 0);
        if wanted == client.interest {
            return true;
        }
        client.interest = wanted;
        self.epoll.modify(&client.stream, &mut EpollEvent::new(wanted, index as u64)).is_ok()
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn line_of(event: &Event) -> String {
    format!("{}\n", event.to_json())
}

/// What a client is doing.
enum Mode {
    /// It asks and is answered.
    Request,
    /// It follows events until it goes.
    Events,
    /// Its answer is being made.
    Making {
        /// Begins it. One is made at a time, so that those to come need no memory.
        begin: fn(&mut dyn App) -> Making,
        /// The answer, once it was begun.
        making: Option<Making>,
        /// The connection goes on after it.
        keep_alive: bool,
    },
    /// It waits for a state.
    Wait(Wait),
}

struct Client {
    stream: UnixStream,
    /// It is our own user, or root.
    allowed: bool,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
    /// How much of `outbox` it has taken.
    sent: usize,
    mode: Mode,
    /// When its time is over.
    timer: Option<Ms>,
    /// When it connected, or asked for something.
    since: Ms,
    interest: EpollFlags,
    /// It got `100 Continue` for the request that is coming.
    continued: bool,
    /// It will send nothing more.
    ended: bool,
    /// It reads nothing more either.
    gone: bool,
    /// Nothing is to follow the answer.
    last: bool,
}

impl Client {
    const fn new(stream: UnixStream, allowed: bool, interest: EpollFlags, now: Ms) -> Self {
        Self {
            stream,
            allowed,
            inbox: Vec::new(),
            outbox: Vec::new(),
            sent: 0,
            mode: Mode::Request,
            timer: Some(now + REQUEST_TIME),
            since: now,
            interest,
            continued: false,
            ended: false,
            gone: false,
            last: false,
        }
    }

    const fn unread(&self) -> usize {
        self.outbox.len() - self.sent
    }

    /// True if its next request is wanted: the answer to the last one has left us.
    const fn is_heard(&self) -> bool {
        matches!(self.mode, Mode::Request) && self.unread() == 0 && !self.last
    }

    /// True if nothing is under way for it.
    const fn is_silent(&self) -> bool {
        matches!(self.mode, Mode::Request) && self.unread() == 0
    }

    fn is_in_time(&self, now: Ms) -> bool {
        self.timer.is_none_or(|timer| now < timer)
    }

    /// Reads as much as a request may have.
    fn read(&mut self, now: Ms) {
        let mut chunk = [0; 8 * 1024];
        while self.inbox.len() <= http::LONGEST_HEAD + http::LONGEST_BODY {
            match self.stream.read(&mut chunk) {
                Ok(0) => {
                    self.ended = true;
                    return;
                }
                Ok(length) => {
                    if self.inbox.is_empty() {
                        self.timer = Some(now + REQUEST_TIME);
                    }
                    self.inbox.extend_from_slice(&chunk[..length]);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.ended = true;
                    self.gone = true;
                    return;
                }
            }
        }
    }

    /// Writes what it takes; false if it takes nothing any more.
    fn write(&mut self, now: Ms) -> bool {
        while self.unread() > 0 {
            match self.stream.write(&self.outbox[self.sent..]) {
                Ok(length) => {
                    self.sent += length;
                    self.timer = match self.mode {
                        _ if self.unread() > 0 => Some(now + READ_TIME),
                        Mode::Request if self.inbox.is_empty() => Some(now + IDLE_TIME),
                        Mode::Request => Some(now + REQUEST_TIME),
                        Mode::Events => None,
                        Mode::Making { .. } | Mode::Wait(_) => self.timer,
                    };
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.timer.is_none() {
                        self.timer = Some(now + READ_TIME);
                    }
                    self.outbox.drain(..self.sent);
                    self.sent = 0;
                    return true;
                }
                Err(_) => return false,
            }
        }
        self.outbox = Vec::new();
        self.sent = 0;
        true
    }

    /// Begins its answer, or goes on with it; done, it is on its way.
    fn make(&mut self, now: Ms, is_full: bool, app: &mut dyn App) {
        let Mode::Making { begin, making, keep_alive } = &mut self.mode else { return };
        if making.is_none() && is_full {
            self.mode = Mode::Request;
            self.refuse_unread();
            return;
        }
        let since = Instant::now();
        if !making.get_or_insert_with(|| begin(app)).go_on(since) {
            return;
        }
        let (keep_alive, making) = (*keep_alive, making.take());
        self.mode = Mode::Request;
        self.last |= !keep_alive;
        let (content_type, text) = making.map(Making::finish).unwrap_or_default();
        self.timer = Some(now + READ_TIME);
        self.outbox = http::response(200, Headers::of(content_type), text.as_bytes(), keep_alive);
        // Its end is noticed at the next turn.
        let _ = self.write(now);
    }

    fn refuse_unread(&mut self) {
        self.refuse(503, "clients have not read their answers", "try again later");
    }

    fn answer(&mut self, reply: &Reply, keep_alive: bool) {
        self.last |= !keep_alive;
        let (code, headers, body) = reply.parts();
        self.outbox.extend_from_slice(&http::response(code, headers, body.as_bytes(), keep_alive));
    }

    /// The last answer: what it sends next cannot be understood, or is not wanted.
    fn refuse(&mut self, code: u16, what: &str, to_fix: &str) {
        self.inbox = Vec::new();
        self.answer(&routes::error(code, what, to_fix), false);
    }
}
