//! sd_notify(3): what services tell of themselves.
//!
//! Each instance has a datagram socket of its own in the abstract namespace, under a random name, so that a
//! message belongs to its service whatever process of it sent it and whether that still lives; and a network
//! namespace, a chroot without folders and a full disk change nothing. Who sends has to be root, the service's user
//! or the supervisor's.
//!
//! Such names stand in `/proc/net/unix` and have no permissions, so anybody can send anything there. Descriptors are never
//! received: close(2) of one that leads to a file system which does not answer would not return (`fuse_flush`), whoever had
//! sent it. The kernel drops what is not received, without a flush, and in [`Hurry`], as sockets can linger. A barrier's
//! descriptor (sd_notify_barrier(3)) is over so when its datagram is taken. That is soon enough: what was sent before was taken before
//! it, and this one thread heeds that before it answers anybody.
//!
//! A service can send as fast as it likes: a turn takes [`TURN`] datagrams, what is left wakes the loop again after
//! others had their turn, and the kernel's queue is bounded (`net.unix.max_dgram_qlen`).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::probe::Key;
use crate::state::Ms;
use crate::sys::hurry::Hurry;
use crate::sys::{Errno, Pid, socket};

/// Datagrams taken from all services together in one [`Notify::serve`].
pub const TURN: usize = 64;
/// Datagrams taken from one service in one [`Notify::serve`].
const SHARE: usize = 16;
/// Longest datagram, systemd's `NOTIFY_BUFFER_MAX`; a longer one is ignored.
pub const LONGEST: usize = 4096;
/// The supervisor asks for another name so often if one is taken.
const NAMES: usize = 4;

/// What a service says.
#[derive(Debug)]
pub enum Message {
    /// `READY=1`: it is ready, or has reloaded.
    Ready,
    /// `RELOADING=1`: it reads its configuration anew, and says `READY=1` afterwards.
    Reloading,
    /// `STOPPING=1`: it is about to end.
    Stopping,
    /// `WATCHDOG=1`: it is alive.
    Watchdog,
    /// `WATCHDOG=trigger`: it is not well and wants to be treated so at once.
    WatchdogTrigger,
    /// `WATCHDOG_USEC=`: from now on, the longest silence; 0: as long as it likes.
    WatchdogInterval(Ms),
    /// `EXTEND_TIMEOUT_USEC=`: from now on, it needs so long to get ready or to stop.
    ExtendTimeout(Ms),
    /// `STATUS=`: a line for people. Control characters and what is not UTF-8 are replaced.
    Status(String),
    /// `ERRNO=`: why it failed.
    Errno(i32),
    /// `MAINPID=`: the process that counts. Whether it is one of the service's is for the reader to find out.
    MainPid(Pid),
}

/// A service's socket.
#[derive(Debug)]
struct Ear {
    key: Key,
    uid: u32,
    name: String,
    socket: UnixDatagram,
}

/// The sockets of all services.
#[derive(Debug)]
pub struct Notify {
    epoll: Epoll,
    /// By key.
    ears: Vec<Ear>,
    own_uid: u32,
    hurry: Hurry,
}

impl Notify {
    /// None yet.
    ///
    /// # Errors
    /// Those of epoll_create1(2).
    pub fn new() -> Result<Self, Errno> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Self {
            epoll,
            ears: Vec::new(),
            own_uid: nix::unistd::geteuid().as_raw(),
            hurry: Hurry::of_this_thread(),
        })
    }

    /// Ready to be read when [`Self::serve`] has something to do.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }

    /// Opens the socket of a service that runs as user `uid`, and returns the value of its `NOTIFY_SOCKET`. What was open
    /// under this key is closed, so that nothing an earlier run has sent comes later.
    ///
    /// # Errors
    /// Those of socket(2), bind(2) and epoll_ctl(2): no more descriptors, for one.
    pub fn open(&mut self, key: Key, uid: u32) -> Result<String, Errno> {
        self.close(key);
        let (name, socket) = bind()?;
        self.epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, key))?;
        let at = self.ears.partition_point(|ear| ear.key < key);
        self.ears.insert(at, Ear { key, uid, name, socket });
        Ok(self.address(key).unwrap_or_default())
    }

    /// The value of a service's `NOTIFY_SOCKET`, if it has a socket.
    pub fn address(&self, key: Key) -> Option<String> {
        self.ear(key).map(|ear| format!("@{}", ear.name))
    }

    /// The number of a service's socket, if it has one.
    pub fn descriptor(&self, key: Key) -> Option<i32> {
        self.ear(key).map(|ear| ear.socket.as_raw_fd())
    }

    fn ear(&self, key: Key) -> Option<&Ear> {
        self.ears.binary_search_by_key(&key, |ear| ear.key).ok().map(|at| &self.ears[at])
    }

    /// Closes a service's socket, if there is one; its senders get `ECONNREFUSED`, and barriers that wait are over.
    pub fn close(&mut self, key: Key) {
        if let Ok(at) = self.ears.binary_search_by_key(&key, |ear| ear.key) {
            let ear = self.ears.remove(at);
            // Closing alone would leave it in the set while a copy is open: a child between fork and exec has one.
            let _ = self.epoll.delete(&ear.socket);
            // Descriptors that nobody has taken go with it.
            self.hurry.run(|| drop(ear));
        }
    }

    /// Takes what has come, at most [`TURN`] datagrams: messages by service, in the order in which they were sent. Never
    /// waits.
    pub fn serve(&mut self) -> Vec<(Key, Vec<Message>)> {
        let mut ready = [EpollEvent::empty(); TURN / SHARE];
        let count = self.epoll.wait(&mut ready, EpollTimeout::ZERO).unwrap_or(0);
        let mut heard = Vec::new();
        for event in &ready[..count] {
            let key = event.data();
            let Ok(at) = self.ears.binary_search_by_key(&key, |ear| ear.key) else { continue };
            let messages = self.hurry.run(|| self.ears[at].take(self.own_uid));
            if !messages.is_empty() {
                heard.push((key, messages));
            }
        }
        heard
    }

    /// Takes what one service has sent, its share of a turn: before its end is judged.
    pub fn hear(&self, key: Key) -> Vec<Message> {
        let at = self.ears.binary_search_by_key(&key, |ear| ear.key);
        at.map_or_else(|_| Vec::new(), |at| self.hurry.run(|| self.ears[at].take(self.own_uid)))
    }
}

impl Drop for Notify {
    fn drop(&mut self) {
        let ears = std::mem::take(&mut self.ears);
        self.hurry.run(|| drop(ears));
    }
}

impl Ear {
    /// Its share of a turn. An error of the socket, of which no cause is known, ends the share.
    fn take(&self, own_uid: u32) -> Vec<Message> {
        let mut buffer = [0; LONGEST];
        let mut messages = Vec::new();
        for _ in 0..SHARE {
            let Ok(Some(datagram)) = socket::receive(self.socket.as_fd(), &mut buffer) else { break };
            if !datagram.cut && self.knows(datagram.sender, own_uid) {
                parse(&buffer[..datagram.length], &mut messages);
            }
        }
        messages
    }

    /// True for root, the service's user and the supervisor's.
    fn knows(&self, sender: Option<(Pid, u32)>, own_uid: u32) -> bool {
        sender.is_some_and(|(_, uid)| uid == 0 || uid == self.uid || uid == own_uid)
    }
}

/// A socket with a random name, and the name.
fn bind() -> Result<(String, UnixDatagram), Errno> {
    let mut last = Errno::EADDRINUSE;
    for _ in 0..NAMES {
        let mut random = [0; 16];
        socket::random(&mut random)?;
        let name = format!("kitbag/{:032x}", u128::from_ne_bytes(random));
        match socket::abstract_datagrams(name.as_bytes()) {
            Ok(socket) => return Ok((name, socket)),
            Err(Errno::EADDRINUSE) => last = Errno::EADDRINUSE,
            Err(errno) => return Err(errno),
        }
    }
    Err(last)
}

/// Adds the messages of one datagram, line by line. What is unknown, or has a value that it cannot have, is ignored.
fn parse(datagram: &[u8], messages: &mut Vec<Message>) {
    for line in datagram.split(|byte| *byte == b'\n') {
        let mut halves = line.splitn(2, |byte| *byte == b'=');
        let (Some(name), Some(value)) = (halves.next(), halves.next()) else { continue };
        let message = match (name, value) {
            (b"READY", b"1") => Some(Message::Ready),
            (b"RELOADING", b"1") => Some(Message::Reloading),
            (b"STOPPING", b"1") => Some(Message::Stopping),
            (b"WATCHDOG", b"1") => Some(Message::Watchdog),
            (b"WATCHDOG", b"trigger") => Some(Message::WatchdogTrigger),
            (b"WATCHDOG_USEC", _) => number(value).map(milliseconds).map(Message::WatchdogInterval),
            (b"EXTEND_TIMEOUT_USEC", _) => number(value).map(milliseconds).map(Message::ExtendTimeout),
            (b"STATUS", _) => Some(Message::Status(printable(value))),
            (b"ERRNO", _) => number(value).map(Message::Errno),
            (b"MAINPID", _) => number(value).filter(|pid| *pid > 0).map(Message::MainPid),
            _ => None,
        };
        messages.extend(message);
    }
}

fn number<N: std::str::FromStr>(value: &[u8]) -> Option<N> {
    str::from_utf8(value).ok()?.parse().ok()
}

/// Rounded up: half a millisecond is not nothing.
fn milliseconds(microseconds: u64) -> Ms {
    microseconds.div_ceil(1000)
}

/// A terminal that shows it is not to be steered by it.
pub fn printable(value: &[u8]) -> String {
    let shown = |letter: char| if letter.is_control() { char::REPLACEMENT_CHARACTER } else { letter };
    String::from_utf8_lossy(value).chars().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::hurry::tests::lingering;
    use std::io::Read;
    use std::os::fd::AsFd;

    /// A sender as a service has it.
    struct Sender(UnixDatagram, String);

    impl Sender {
        fn to(socket: &str) -> Self {
            Self(
                UnixDatagram::unbound().expect("a socket"),
                socket.strip_prefix('@').expect(socket).to_owned(),
            )
        }

        fn send(&self, text: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
            socket::send(&self.0, self.1.as_bytes(), text, fds)
        }
    }

    fn own_uid() -> u32 {
        nix::unistd::geteuid().as_raw()
    }

    /// What one datagram says.
    fn heard(text: &[u8]) -> Vec<Message> {
        let mut notify = Notify::new().expect("epoll");
        let sender = Sender::to(&notify.open(3, own_uid()).expect("a socket"));
        sender.send(text, &[]).expect("it is sent");
        let mut heard = notify.serve();
        match heard.pop() {
            Some((3, messages)) if heard.is_empty() => messages,
            None => Vec::new(),
            other => panic!("{other:?}, {heard:?}"),
        }
    }

    fn shown(messages: &[Message]) -> String {
        format!("{messages:?}")
    }

    /// True when no write end of this pipe is open any more.
    fn is_closed(mut read: &std::io::PipeReader) -> bool {
        let mut polled = [nix::poll::PollFd::new(read.as_fd(), nix::poll::PollFlags::POLLIN)];
        let ready = nix::poll::poll(&mut polled, nix::poll::PollTimeout::ZERO).expect("poll");
        ready == 1 && read.read(&mut [0]).is_ok_and(|length| length == 0)
    }

    #[test]
    fn all_fields_of_a_datagram_are_read_in_order() {
        let text = b"RELOADING=1\nMONOTONIC_USEC=5\nREADY=1\nSTOPPING=1\nWATCHDOG=1\nWATCHDOG=trigger\nWATCHDOG_USEC=2500\n\
            EXTEND_TIMEOUT_USEC=1000000\nSTATUS=up, 3 clients\nERRNO=2\nMAINPID=17\nX_OWN=1\nFDSTORE=1\nBUSERROR=x\n";
        assert_eq!(
            shown(&heard(text)),
            "[Reloading, Ready, Stopping, Watchdog, WatchdogTrigger, WatchdogInterval(3), ExtendTimeout(1000), \
             Status(\"up, 3 clients\"), Errno(2), MainPid(17)]"
        );
    }

    #[test]
    fn what_cannot_be_is_ignored() {
        for text in [
            "",
            "\n\n",
            "READY",
            "READY=0",
            "READY=1 ",
            " READY=1",
            "ready=1",
            "MAINPID=0",
            "MAINPID=-4",
            "MAINPID=x",
            "WATCHDOG_USEC=-1",
            "EXTEND_TIMEOUT_USEC=99999999999999999999",
            "BARRIER=1",
            "=1",
            "ERRNO=",
        ] {
            assert_eq!(shown(&heard(text.as_bytes())), "[]", "{text:?}");
        }
        assert_eq!(shown(&heard(b"\xff\0=\xff\nREADY=1")), "[Ready]");
    }

    #[test]
    fn a_status_cannot_steer_a_terminal() {
        let said = heard(b"STATUS=\x1b[2Jgood \xff\tk\xc3\xb6nig");
        assert_eq!(shown(&said), "[Status(\"\u{fffd}[2Jgood \u{fffd}\u{fffd}k\u{f6}nig\")]");
    }

    #[test]
    fn a_datagram_that_is_too_long_is_ignored() {
        let mut text = b"READY=1\nSTATUS=".to_vec();
        text.resize(LONGEST, b'x');
        assert_eq!(heard(&text).len(), 2);
        text.push(b'x');
        assert_eq!(shown(&heard(&text)), "[]");
    }

    #[test]
    fn a_barrier_is_over_when_its_message_was_taken() {
        let mut notify = Notify::new().expect("epoll");
        let sender = Sender::to(&notify.open(1, own_uid()).expect("a socket"));
        let (read, write) = std::io::pipe().expect("a pipe");
        sender.send(b"READY=1", &[]).expect("it is sent");
        sender.send(b"BARRIER=1", &[write.as_fd()]).expect("it is sent");
        drop(write);
        assert!(!is_closed(&read), "it was over before it was taken");
        assert_eq!(format!("{:?}", notify.serve()), "[(1, [Ready])]");
        assert!(is_closed(&read));
    }

    #[test]
    fn descriptors_are_dropped_and_what_came_with_them_is_heard() {
        let mut notify = Notify::new().expect("epoll");
        let sender = Sender::to(&notify.open(1, own_uid()).expect("a socket"));
        let (read, write) = std::io::pipe().expect("a pipe");
        let many = [write.as_fd(); 253];
        let long = [b'x'; LONGEST + 1];
        sender.send(b"FDSTORE=1\nFDNAME=x\nREADY=1", &many).expect("it is sent");
        sender.send(b"BARRIER=1\nSTOPPING=1", &[write.as_fd(), write.as_fd()]).expect("it is sent");
        sender.send(&long, &[write.as_fd()]).expect("it is sent");
        drop(write);
        assert_eq!(format!("{:?}", notify.serve()), "[(1, [Ready, Stopping])]");
        assert!(is_closed(&read));
    }

    #[test]
    fn no_descriptor_is_ever_received() {
        let (name, ear) = bind().expect("a socket");
        let sender = Sender::to(&format!("@{name}"));
        let own = Pid::try_from(std::process::id()).expect("a process id");
        for count in [0, 1, 2, 253] {
            let (read, write) = std::io::pipe().expect("a pipe");
            sender.send(b"READY=1", &vec![write.as_fd(); count]).expect("it is sent");
            drop(write);
            let datagram = socket::receive(ear.as_fd(), &mut [0; 8]).expect("no error").expect("a datagram");
            assert_eq!(ends_here(&read), 1, "{count} sent: {datagram:?}");
            assert!(is_closed(&read), "{count} sent");
            assert_eq!((datagram.length, datagram.cut), (7, false));
            assert_eq!(datagram.sender, Some((own, own_uid())));
        }
    }

    #[test]
    fn a_lingering_socket_that_somebody_passes_holds_nothing_up() {
        let mut notify = Notify::new().expect("epoll");
        let sender = Sender::to(&notify.open(1, own_uid()).expect("a socket"));
        let begin = std::time::Instant::now();
        let mut others = Vec::new();
        let mut pass = || {
            let pairs = [lingering(), lingering()];
            sender.send(b"READY=1", &[pairs[0].0.as_fd(), pairs[1].0.as_fd()]).expect("it is sent");
            others.extend(pairs.map(|(_, other)| other));
        };
        pass();
        pass();
        assert_eq!(format!("{:?}", notify.serve()), "[(1, [Ready, Ready])]");
        pass();
        assert_eq!(format!("{:?}", notify.hear(1)), "[Ready]");
        pass();
        notify.close(1);
        assert!(begin.elapsed().as_secs() < 10, "it took {:?}", begin.elapsed());
    }

    /// Descriptors of this process that are ends of this pipe.
    fn ends_here(read: &std::io::PipeReader) -> usize {
        let target = |path: std::path::PathBuf| std::fs::read_link(path).ok();
        let pipe = target(format!("/proc/self/fd/{}", read.as_raw_fd()).into()).expect("it is open");
        let open = std::fs::read_dir("/proc/self/fd").expect("/proc").flatten();
        open.filter(|entry| target(entry.path()).as_ref() == Some(&pipe)).count()
    }

    #[test]
    fn a_closed_socket_ends_its_barriers_and_says_nothing_more() {
        let mut notify = Notify::new().expect("epoll");
        let first = Sender::to(&notify.open(1, own_uid()).expect("a socket"));
        let (read, write) = std::io::pipe().expect("a pipe");
        first.send(b"READY=1", &[]).expect("it is sent");
        first.send(b"BARRIER=1", &[write.as_fd()]).expect("it is sent");
        drop(write);
        let second = Sender::to(&notify.open(1, own_uid()).expect("another socket"));
        assert_ne!(first.1, second.1);
        assert!(is_closed(&read));
        assert_eq!(first.send(b"READY=1", &[]), Err(Errno::ECONNREFUSED));
        assert!(notify.serve().is_empty());
        second.send(b"STOPPING=1", &[]).expect("it is sent");
        assert_eq!(format!("{:?}", notify.serve()), "[(1, [Stopping])]");
        notify.close(1);
        notify.close(1);
    }

    #[test]
    fn a_flood_leaves_the_others_their_turn() {
        let mut notify = Notify::new().expect("epoll");
        let mut senders: Vec<Sender> =
            (0..20).map(|key| Sender::to(&notify.open(key, own_uid()).expect("a socket"))).collect();
        let quiet = senders.pop().expect("twenty");
        for sender in &senders {
            sender.0.set_nonblocking(true).expect("an option");
        }
        let flood = || senders.iter().for_each(|sender| while sender.send(b"WATCHDOG=1", &[]).is_ok() {});
        flood();
        quiet.send(b"READY=1", &[]).expect("it is sent");
        let mut turns = 0;
        loop {
            turns += 1;
            assert!(turns <= 20, "the quiet one is never heard");
            let heard = notify.serve();
            assert!(heard.iter().map(|(_, messages)| messages.len()).sum::<usize>() <= TURN);
            if heard.iter().any(|(key, _)| *key == 19) {
                return;
            }
            flood();
        }
    }

    #[test]
    fn strangers_are_not_heard() {
        let said = |sender| {
            Ear {
                key: 1,
                uid: 1000,
                name: String::new(),
                socket: socket::abstract_datagrams(b"").expect("a socket"),
            }
            .knows(sender, 500)
        };
        for (uid, expected) in [(0, true), (500, true), (1000, true), (1001, false), (65534, false)] {
            assert_eq!(said(Some((1, uid))), expected, "{uid}");
        }
        assert!(!said(None));
    }
}
