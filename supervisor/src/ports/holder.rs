//! Who has a number, and what processes listen at, as far as /proc shows it to this user (proc(5)).

use kitbag_format::sort;
use std::cmp::Reverse;
use std::fmt;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::diag;
use super::lease::{Net, name};
use super::registry::{Registry, Seen};
use super::sockets::{self, Listener};
use crate::sys::Pid;

/// Most of a table of sockets that is read: 27,000 lines.
const LONGEST_TABLE: u64 = 4 << 20;
/// Most processes, and descriptors of them all together, that are looked at to find whose a socket is: two tenths
/// of a second's work.
const MOST_PROCESSES: usize = 50_000;
const MOST_LINKS: usize = 100_000;
/// Most characters of a command that are shown, and bytes that are read for it.
const LONGEST_COMMAND: usize = 80;
const LONGEST_COMMAND_LINE: u64 = 4096;
/// How far up the ancestors of a process a supervisor is looked for.
const GENERATIONS: usize = 32;

/// `TCP_LISTEN` in the kernel's `include/net/tcp_states.h`.
const LISTENS: u8 = 0x0A;
/// A socket of UDP that is bound (`TCP_CLOSE`).
const BOUND: u8 = 0x07;

/// Who has a number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// A process.
    Process(Process),
    /// One of this user; which, and what it is, only root or that user sees.
    User(u32),
    /// Nobody any more: connections of a program that has ended, and did not set `SO_REUSEADDR`, linger for a minute.
    Lingering,
}

/// A process that has a number.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Process {
    /// Its id.
    pub pid: Pid,
    /// Its command line, shortened; empty if it is not to be seen.
    pub command: String,
    /// The bundle, if it is one's.
    pub bundle: Option<String>,
    /// The bundle's service or instance that declares the number.
    pub unit: Option<String>,
    /// The bundle's user, if that is another one than this process's.
    pub user: Option<u32>,
}

impl Holder {
    /// What to do about it.
    pub(super) fn remedy(&self) -> &'static str {
        match self {
            Self::Process(Process { bundle: Some(_), .. }) => {
                "stop that one, or declare another number, or a range"
            }
            Self::Process(_) | Self::User(_) => "stop it, or declare another number, or a range",
            Self::Lingering => "wait, or declare another number, or a range",
        }
    }

    /// The process, if it is to be seen.
    pub const fn process(&self) -> Option<&Process> {
        match self {
            Self::Process(process) => Some(process),
            _ => None,
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process(process) => process.fmt(to),
            Self::User(uid) => write!(to, "a process of another user (uid {uid})"),
            Self::Lingering => to.write_str(
                "connections of a program that has ended, for a minute at most, as it does not set SO_REUSEADDR",
            ),
        }
    }
}

impl fmt::Display for Process {
    /// ``service `web` of the bundle `guestbook` (process 123, `bin/web`)``
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.bundle, &self.unit) {
            (Some(bundle), Some(unit)) => write!(to, "service `{unit}` of the bundle `{bundle}` (")?,
            (Some(bundle), None) => write!(to, "a process of the bundle `{bundle}` (")?,
            _ => {}
        }
        write!(to, "process {}", self.pid)?;
        if let Some(uid) = self.user {
            write!(to, " of uid {uid}")?;
        }
        if !self.command.is_empty() {
            write!(to, ", `{}`", self.command)?;
        }
        if self.bundle.is_some() { to.write_str(")") } else { Ok(()) }
    }
}

/// Finds out who has this number; `None` if nobody is to be seen.
pub fn of(number: u16, net: Net, registry: Option<&Registry>) -> Option<Holder> {
    let sockets = sockets_of(number, net);
    // What we have lent ourselves, another process has.
    let other = |pid: &Pid| !is_own(*pid) || sockets.is_empty();
    let asked = match sockets::who_has_name(name(net, number, None).as_bytes()) {
        Listener::Process(pid) => pid.filter(other),
        Listener::None => None,
    };
    let mut users: Vec<u32> = sockets.iter().map(|row| row.uid).chain(asked.and_then(user_of)).collect();
    users.dedup();
    let seen = registry.map(|registry| registry.of_users(&users)).unwrap_or_default();
    let known = entry_of(number, net, &seen);
    let published = || known.as_ref().map(|(seen, _)| seen.entry.pid).filter(other);
    match owner_of(&sockets).or_else(published).or(asked) {
        Some(pid) => Some(Holder::Process(process(pid, known, &seen))),
        None => match sockets.first() {
            Some(socket) => Some(Holder::User(socket.uid)),
            None => (net == Net::Tcp && lingers(number) == Some(true)).then_some(Holder::Lingering),
        },
    }
}

/// Whose a process is, as /proc tells.
fn user_of(pid: Pid) -> Option<u32> {
    Some(fs::metadata(format!("/proc/{pid}")).ok()?.uid())
}

fn is_own(pid: Pid) -> bool {
    Pid::try_from(std::process::id()) == Ok(pid)
}

/// A process as a holder.
pub(super) fn of_process(pid: Pid) -> Holder {
    let command = command(pid).unwrap_or_default();
    Holder::Process(Process { pid, command, ..Process::default() })
}

/// Who has published this number, and for which unit.
fn entry_of(number: u16, net: Net, seen: &[Seen]) -> Option<(&Seen, &str)> {
    seen.iter().find_map(|seen| {
        let port = seen.entry.ports.iter().find(|port| port.number == number && port.net() == Some(net))?;
        Some((seen, port.unit.as_str()))
    })
}

fn process(pid: Pid, known: Option<(&Seen, &str)>, seen: &[Seen]) -> Process {
    let command = command(pid).unwrap_or_default();
    let above = ancestors(pid);
    // Who has published it need not be who has it: a service of another may have been quicker.
    let owner = seen.iter().find(|seen| above.contains(&seen.entry.pid));
    let unit = known.filter(|(known, _)| owner.is_none_or(|owner| owner.entry.pid == known.entry.pid));
    Process {
        pid,
        command,
        bundle: owner.map(|owner| owner.entry.bundle.clone()),
        unit: unit.filter(|_| owner.is_some()).map(|(_, unit)| unit.to_owned()),
        user: owner.map(|owner| owner.entry.uid).filter(|uid| *uid != nix::unistd::geteuid().as_raw()),
    }
}

/// The process and those that it descends from.
fn ancestors(pid: Pid) -> Vec<Pid> {
    let parent = |pid: &Pid| parent_of(*pid).filter(|parent| *parent > 1);
    std::iter::successors(Some(pid), parent).take(GENERATIONS).collect()
}

/// The parent in `/proc/PID/stat`, whose second field, the name, may have anything in it.
fn parent_of(pid: Pid) -> Option<Pid> {
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let end = text.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(text.get(end + 1..)?).ok()?;
    rest.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// What a process was started as, for people: the program without its folder, on one line, shortened.
fn command(pid: Pid) -> Option<String> {
    let mut bytes = Vec::new();
    let file = File::open(format!("/proc/{pid}/cmdline")).ok()?;
    file.take(LONGEST_COMMAND_LINE).read_to_end(&mut bytes).ok()?;
    if bytes.is_empty() {
        bytes = fs::read(format!("/proc/{pid}/comm")).ok()?;
    }
    let text = String::from_utf8_lossy(&bytes);
    let (program, arguments) = text.trim_end_matches(['\0', '\n']).split_once('\0').unwrap_or((&text, ""));
    let program = program.trim_end_matches(['\0', '\n']).rsplit('/').next().unwrap_or_default();
    let text = [program, arguments].join(" ").replace('\0', " ");
    let mut shown: String = text.trim_end().escape_debug().take(LONGEST_COMMAND).collect();
    if text.chars().count() > LONGEST_COMMAND {
        shown.push('…');
    }
    Some(shown)
}

/// A line of a table of sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) address: SocketAddr,
    pub(super) state: u8,
    pub(super) uid: u32,
    pub(super) inode: u64,
}

const TABLES: [(Net, &str); 4] = [
    (Net::Tcp, "/proc/net/tcp"),
    (Net::Tcp, "/proc/net/tcp6"),
    (Net::Udp, "/proc/net/udp"),
    (Net::Udp, "/proc/net/udp6"),
];

/// Calls `each` with the lines of a table, as long as it goes on. False if not all of it could be read.
fn rows(table: &str, mut each: impl FnMut(Row) -> ControlFlow<()>) -> bool {
    let Ok(file) = File::open(table) else { return false };
    let mut lines = BufReader::with_capacity(64 << 10, file.take(LONGEST_TABLE));
    let mut line = Vec::with_capacity(256);
    loop {
        line.clear();
        match lines.read_until(b'\n', &mut line) {
            Ok(0) => return lines.get_ref().limit() > 0,
            Ok(_) => {}
            Err(_) => return false,
        }
        // The first line has the names of columns.
        if let Some(row) = row(&line)
            && each(row).is_break()
        {
            return true;
        }
    }
}

/// Those who listen, or for UDP are bound. The kernel writes listeners of TCP first.
fn bound(net: Net, table: &str, mut each: impl FnMut(Row)) {
    if net == Net::Tcp
        && let Some(found) = diag::listening(table.ends_with('6'))
    {
        return found.into_iter().for_each(each);
    }
    let wanted = if net == Net::Tcp { LISTENS } else { BOUND };
    rows(table, |row| match row.state == wanted {
        true => {
            each(row);
            ControlFlow::Continue(())
        }
        false if net == Net::Tcp => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    });
}

/// Reads a line: `sl local remote st tx:rx tr:tm retrnsmt uid timeout inode …`.
fn row(line: &[u8]) -> Option<Row> {
    let mut fields = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    let (address, number) = fields.nth(1)?.split_once(':')?;
    let state = u8::from_str_radix(fields.nth(1)?, 16).ok()?;
    let uid = fields.nth(3)?.parse().ok()?;
    let inode = fields.nth(1)?.parse().ok()?;
    let address = SocketAddr::new(ip(address)?, u16::from_str_radix(number, 16).ok()?);
    Some(Row { address, state, uid, inode })
}

/// An address as the kernel writes it: words of 32 bits as this machine has them in memory.
fn ip(text: &str) -> Option<IpAddr> {
    let word = |at: usize| u32::from_str_radix(text.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    if text.len() == 8 {
        return Some(Ipv4Addr::from(word(0)?).into());
    }
    let mut bytes = [0_u8; 16];
    for (at, part) in bytes.chunks_exact_mut(4).enumerate() {
        part.copy_from_slice(&word(8 * at)?);
    }
    (text.len() == 32).then(|| Ipv6Addr::from(bytes).into())
}

/// The sockets that have this number.
fn sockets_of(number: u16, net: Net) -> Vec<Row> {
    let mut found = Vec::new();
    for (_, table) in TABLES.into_iter().filter(|(of, _)| *of == net) {
        bound(net, table, |row| {
            if row.address.port() == number {
                found.push(row);
            }
        });
    }
    found
}

/// True if connections of a listener that is gone have this number still, and nobody listens; `None` where that cannot be
/// seen.
pub(super) fn lingers(number: u16) -> Option<bool> {
    let mut there = false;
    let mut listens = false;
    let mut is_whole = true;
    for (_, table) in TABLES.into_iter().filter(|(of, _)| *of == Net::Tcp) {
        // Without IPv6 there is no table of it.
        is_whole &= !Path::new(table).exists() && table.ends_with('6')
            || rows(table, |row| {
                if row.address.port() == number {
                    there = true;
                    listens |= row.state == LISTENS;
                }
                ControlFlow::Continue(())
            });
    }
    (there || is_whole).then_some(there && !listens)
}

/// The process that has one of these sockets; of several that inherit it from each other the first.
fn owner_of(sockets: &[Row]) -> Option<Pid> {
    let wanted: Vec<u64> = sockets.iter().map(|row| row.inode).filter(|inode| *inode != 0).collect();
    let uid = sockets.first().filter(|_| !wanted.is_empty())?.uid;
    let has = |pid: Pid, left: &mut usize| {
        let mut has = false;
        *left = left.saturating_sub(inodes(pid, *left, |inode| has |= wanted.contains(&inode)));
        has
    };
    let mut left = MOST_LINKS;
    let found = processes(uid).into_iter().find(|pid| has(*pid, &mut left))?;
    ancestors(found).into_iter().take_while(|pid| *pid == found || has(*pid, &mut left)).last()
}

/// All processes: the user's before others, and late ones, which have taken something just now, before early ones.
fn processes(uid: u32) -> Vec<Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = entries.filter_map(|entry| {
        let pid: Pid = entry.file_name().to_str()?.parse().ok()?;
        Some((entry.metadata().ok()?.uid() != uid, Reverse(pid)))
    });
    let mut processes: Vec<_> = processes.take(MOST_PROCESSES).collect();
    sort::sort(&mut processes);
    processes.into_iter().map(|(_, Reverse(pid))| pid).collect()
}

/// Calls `each` with the inodes of a process's sockets, as far as this user may see them. Looks at so many descriptors at
/// most, and tells how many those were.
fn inodes(pid: Pid, most: usize, mut each: impl FnMut(u64)) -> usize {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return 0 };
    let links = entries.flatten().take(most).map(|entry| fs::read_link(entry.path()));
    links.map(|link| link.ok().and_then(|link| socket_inode(&link)).map(&mut each)).count()
}

/// The number in `socket:[4711]`.
fn socket_inode(link: &Path) -> Option<u64> {
    link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// A socket that a process listens at, or for UDP has bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listening {
    /// The process; the first of those asked for that has it.
    pub pid: Pid,
    /// Its protocol.
    pub net: Net,
    /// Where.
    pub address: SocketAddr,
}

impl fmt::Display for Listening {
    /// `127.0.0.1:8080/tcp`
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{}/{}", self.address, self.net)
    }
}

/// What these processes listen at, sorted, each once. Connected sockets of UDP are none.
pub fn listening(pids: &[Pid]) -> Vec<Listening> {
    let (mut owners, mut left): (Vec<(u64, Pid)>, usize) = (Vec::new(), MOST_LINKS);
    for &pid in pids {
        left = left.saturating_sub(inodes(pid, left, |inode| owners.push((inode, pid))));
    }
    sort::by(&mut owners, &|(one, _), (other, _)| one.cmp(other));
    let mut found = Vec::new();
    for (net, table) in if owners.is_empty() { &TABLES[..0] } else { &TABLES[..] } {
        bound(*net, table, |row| {
            let at = owners.partition_point(|(inode, _)| *inode < row.inode);
            if let Some((_, pid)) = owners.get(at).filter(|(inode, _)| *inode == row.inode) {
                found.push(Listening { pid: *pid, net: *net, address: row.address });
            }
        });
    }
    sort::by(&mut found, &|one, other| {
        (one.net, one.address, one.pid).cmp(&(other.net, other.address, other.pid))
    });
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_tables_are_read() {
        let line = b"   1: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4711 1 0";
        let address = "127.0.0.1:8080".parse().expect("an address");
        assert_eq!(row(line), Some(Row { address, state: LISTENS, uid: 1000, inode: 4711 }));
        let line = b" 2: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 9 1";
        assert_eq!(row(line).map(|row| row.address), "[::1]:80".parse().ok());
    }

    #[test]
    fn what_is_no_line_is_none() {
        for line in [
            &b"  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode"[..],
            b"",
            b"1:",
            b"1: 0100007F 0:0 0A 0:0 0:0 0 0 0 1",
            b"1: 0100007F:1F90 0:0 ZZ 0:0 0:0 0 0 0 1",
            b"1: 0100007F00:1F90 0:0 0A 0:0 0:0 0 0 0 1",
            b"1: 0100007F:1F90 0:0 0A 0:0 0:0 0 -1 0 1",
            b"\xff\xfe",
        ] {
            assert_eq!(row(line), None, "{}", String::from_utf8_lossy(line));
        }
    }

    #[test]
    fn a_process_has_ancestors_and_a_command() {
        let own = Pid::try_from(std::process::id()).expect("an id");
        let above = ancestors(own);
        assert_eq!(above.first(), Some(&own));
        assert!(command(own).is_some_and(|command| !command.is_empty()));
        assert_eq!(command(Pid::MAX), None);
        assert_eq!(ancestors(Pid::MAX), [Pid::MAX]);
    }
}
