//! Who listens where, from proc(5): what is left to do where Landlock cannot refuse, on kernels that have none and with
//! sockets of MPTCP, which Linux 6.14 and later leave out of its rules (and which Go 1.24 makes of every listener).
//!
//! A look reads the table of sockets that listen, and the descriptors of the processes that it is asked about. Nothing is
//! kept open between looks.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;

use kitbag_format::port::Protocol;

use crate::sys::Pid;

/// `TCP_LISTEN` of include/net/tcp_states.h, as the tables have it.
const LISTEN: &str = "0A";

/// A socket that listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listening {
    /// A process that has it.
    pub pid: Pid,
    /// What is spoken there.
    pub protocol: Protocol,
    /// Where.
    pub address: IpAddr,
    /// The port's number.
    pub number: u16,
}

/// The TCP sockets of these processes that listen, each with the first process that has it, in the order of `pids`. A
/// process that has ended, or that is not ours to look at, has none.
pub fn listening(pids: &[Pid]) -> Vec<Listening> {
    listening_in(&table(), pids)
}

fn listening_in(table: &BTreeMap<u64, SocketAddr>, pids: &[Pid]) -> Vec<Listening> {
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    for pid in pids {
        for inode in sockets(*pid) {
            if let Some(address) = table.get(&inode).filter(|_| seen.insert(inode)) {
                let (address, number) = (address.ip(), address.port());
                found.push(Listening { pid: *pid, protocol: Protocol::Tcp, address, number });
            }
        }
    }
    found
}

/// Where each socket of this network namespace listens, by its inode.
fn table() -> BTreeMap<u64, SocketAddr> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].into_iter().filter_map(|path| File::open(path).ok());
    tables.flat_map(|table| entries(BufReader::new(table))).collect()
}

/// The listening sockets of a table. They come first (Linux, Documentation/networking/proc_net_tcp.rst), so that a
/// hundred thousand connections behind them are not read.
fn entries(table: impl BufRead) -> impl Iterator<Item = (u64, SocketAddr)> {
    table.lines().skip(1).map_while(|line| entry(&line.ok()?))
}

/// A line of a listening socket: its inode and address.
fn entry(line: &str) -> Option<(u64, SocketAddr)> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (ip, port) = fields.next()?.split_once(':')?;
    let listens = fields.nth(1)? == LISTEN;
    let inode = fields.nth(5)?.parse().ok()?;
    let address = SocketAddr::new(ip_address(ip)?, u16::from_str_radix(port, 16).ok()?);
    listens.then_some((inode, address))
}

/// An address as the kernel prints it: 32 bits at a time, each a number of this machine's byte order.
fn ip_address(hex: &str) -> Option<IpAddr> {
    let mut bytes = [0; 16];
    let words = hex.len().checked_div(8).filter(|words| words * 8 == hex.len() && matches!(words, 1 | 4))?;
    for (at, word) in bytes.chunks_exact_mut(4).take(words).enumerate() {
        let number = u32::from_str_radix(hex.get(at * 8..at * 8 + 8)?, 16).ok()?;
        word.copy_from_slice(&number.to_ne_bytes());
    }
    match words {
        1 => Some(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).into()),
        _ => Some(Ipv6Addr::from(bytes).into()),
    }
}

/// The inodes of a process's sockets.
fn sockets(pid: Pid) -> impl Iterator<Item = u64> {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let links = files.filter_map(|file| fs::read_link(file.path()).ok());
    links.filter_map(|link| link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok())
}

/// A unit whose ports are looked at.
#[derive(Debug, Clone, Copy)]
pub struct Watched<'a> {
    /// Its name: `web`, `web.2`.
    pub unit: &'a str,
    /// Its processes.
    pub pids: &'a [Pid],
    /// The TCP ports that it declares.
    pub declared: &'a [u16],
}

/// A unit listens where it said nothing of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stray {
    /// Its name.
    pub unit: String,
    /// Where.
    pub at: Listening,
}

impl fmt::Display for Stray {
    /// A sentence for the log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { unit, at } = self;
        let address = SocketAddr::new(at.address, at.number);
        write!(
            f,
            "{unit} (pid {}) listens on {address}, a port that it does not declare: add it to the service's `ports`, or \
             allow all by `bind = \"any\"` in its `sandbox`",
            at.pid
        )
    }
}

/// What listens on undeclared ports, each said once for as long as it does.
#[derive(Debug, Default)]
pub struct Watch {
    said: BTreeSet<(String, IpAddr, u16)>,
}

impl Watch {
    /// Looks at these units, and returns what the last look at each has not shown. Ports of the range that the kernel
    /// chooses from are nobody's to declare.
    pub fn look(&mut self, units: &[Watched<'_>], chosen: &RangeInclusive<u16>) -> Vec<Stray> {
        let table = table();
        let mut new = Vec::new();
        for Watched { unit, pids, declared } in units {
            let mut found = listening_in(&table, pids);
            found.retain(|at| !declared.contains(&at.number) && !chosen.contains(&at.number));
            let key = |at: &Listening| ((*unit).to_owned(), at.address, at.number);
            let now: BTreeSet<_> = found.iter().map(key).collect();
            self.said.retain(|said| said.0 != *unit || now.contains(said));
            let unsaid = found.into_iter().filter(|at| self.said.insert(key(at)));
            new.extend(unsaid.map(|at| Stray { unit: (*unit).to_owned(), at }));
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn tables_are_read_as_far_as_sockets_listen() {
        let header = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";
        let line = |address: &str, state: &str, inode: u32| {
            format!(
                "   0: {address} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000     0        0 {inode} 1 0\n"
            )
        };
        let loopback = format!("{:08X}:1F90", u32::from_ne_bytes([127, 0, 0, 1]));
        let v6 = format!("{:024}{:08X}:0050", 0, u32::from_ne_bytes([0, 0, 0, 1]));
        let text = [
            header,
            &line(&loopback, "0A", 7),
            &line(&v6, "0A", 8),
            &line(&v6, "01", 9),
            &line(&v6, "0A", 9),
        ];
        let found: Vec<(u64, String)> =
            entries(text.concat().as_bytes()).map(|(inode, address)| (inode, address.to_string())).collect();
        assert_eq!(found, [(7, "127.0.0.1:8080".to_owned()), (8, "[::1]:80".to_owned())]);
        assert_eq!(entries("".as_bytes()).count(), 0);
        for odd in [
            "",
            "0:",
            "0: 7F:1F90 0:0 0A 0 0 0 0 0 7",
            "0: 0100007F:XX 0:0 0A 0 0 0 0 0 7",
            "0: \u{e9}100007:1 0:0 0A 0 0 0 0 0 7",
        ] {
            assert_eq!(entry(odd), None, "{odd}");
        }
    }

    #[test]
    fn what_listens_undeclared_is_said_once_for_as_long_as_it_does() {
        let sockets = ["127.0.0.1:0", "[::1]:0"].map(|address| TcpListener::bind(address).expect("loopback"));
        let [four, six] = [&sockets[0], &sockets[1]].map(|socket| socket.local_addr().unwrap());
        let own = std::process::id().cast_signed();
        let mine: Vec<_> = listening(&[own, own]).into_iter().filter(|at| at.number == four.port()).collect();
        let expected =
            Listening { pid: own, protocol: Protocol::Tcp, address: four.ip(), number: four.port() };
        assert_eq!(mine, [expected]);
        let mut watch = Watch::default();
        // Other tests listen too, and at any time.
        let mut new = |declared: &[u16], chosen: RangeInclusive<u16>| {
            let units = [Watched { unit: "web.2", pids: &[own], declared }];
            let all = watch.look(&units, &chosen).into_iter();
            all.filter(|stray| stray.at.number == four.port() || stray.at.number == six.port())
                .collect::<Vec<_>>()
        };
        assert_eq!(new(&[four.port(), six.port()], 0..=0), []);
        assert_eq!(new(&[], 1..=u16::MAX), [], "the kernel has chosen them");
        let found = new(&[six.port()], 0..=0);
        let text = format!("web.2 (pid {own}) listens on {four}, a port that it does not declare: add it");
        assert!(found.len() == 1 && found[0].to_string().starts_with(&text), "{found:?}");
        assert_eq!(new(&[six.port()], 0..=0), [], "it was said");
        assert_eq!(new(&[four.port()], 0..=0).len(), 1, "the other one");
        assert_eq!(new(&[], 0..=0).len(), 1, "the first was declared in between");
    }

    #[test]
    fn nobody_listens_where_nobody_is() {
        assert_eq!(listening(&[]), []);
        assert_eq!(listening(&[-1, i32::MAX]), []);
    }
}
