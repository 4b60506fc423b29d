//! Leases: the right to a number, held from when it was bound until it is dropped.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use kitbag_format::port::Protocol;
use nix::sys::socket::{Backlog, Shutdown, listen, shutdown};

use super::range::{Pool, Range, Round};
use super::refused::Refused;
use super::sockets::{self, Listener, Name};
use super::{holder, range};
use crate::sys::Errno;

/// A protocol that has numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Net {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Net {
    /// That of a declared port; `None` for unix sockets.
    pub const fn of(protocol: Protocol) -> Option<Self> {
        match protocol {
            Protocol::Tcp => Some(Self::Tcp),
            Protocol::Udp => Some(Self::Udp),
            Protocol::Unix => None,
        }
    }

    /// As services(5) writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

impl fmt::Display for Net {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(self.name())
    }
}

/// The addresses that a port is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listen {
    /// `loopback`, 127.0.0.1.
    Loopback,
    /// `public`, all of this host.
    Public,
    /// This one.
    At(IpAddr),
}

impl Listen {
    /// Reads `loopback`, `public` or an address in numbers.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "loopback" => Some(Self::Loopback),
            "public" => Some(Self::Public),
            _ => text.parse().ok().map(Self::At),
        }
    }

    /// What a service is to listen at.
    pub const fn address(self, host: &Host) -> IpAddr {
        self.on(host.ipv6)
    }

    const fn on(self, ipv6: bool) -> IpAddr {
        match self {
            Self::Loopback => IpAddr::V4(Ipv4Addr::LOCALHOST),
            Self::Public => sockets::everywhere(ipv6),
            Self::At(address) => address,
        }
    }

    /// An address that somebody chose by its numbers, which leaves those of others alone.
    fn single(self) -> Option<IpAddr> {
        match self {
            Self::At(address) if !address.is_unspecified() => Some(address),
            _ => None,
        }
    }
}

/// Who makes the sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The service.
    Own {
        /// The number stays bound while it runs, which a service that sets `SO_REUSEADDR` does not notice.
        hold: bool,
    },
    /// The supervisor; the service inherits it.
    Inherited {
        /// Connections that wait: listen(2).
        backlog: u32,
    },
}

/// What a port is to be, beside its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Want {
    /// Its protocol.
    pub net: Net,
    /// Its addresses.
    pub listen: Listen,
    /// Whose its socket is.
    pub kind: Kind,
}

/// Where a port that has no fixed number looks for one.
#[derive(Debug, Clone, Copy)]
pub struct Search<'a> {
    /// First here, in the range or not.
    pub preferred: Option<u16>,
    /// Then here, if it is in the range: what it had the last time.
    pub remembered: Option<u16>,
    /// Then all of these.
    pub range: Range,
    /// Names the port for good: bundle, state folder, unit and port name.
    pub seed: &'a str,
}

/// What leases have to know of this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Host {
    /// It has IPv6, switched on.
    pub ipv6: bool,
    /// For ports that may have any number.
    pub pool: Pool,
}

impl Host {
    /// This one, as it is now.
    pub fn now() -> Self {
        Self { ipv6: sockets::has_ipv6(), pool: range::pool() }
    }
}

/// How hard a number is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effort {
    /// It has to be free of any trace.
    Free,
    /// Connections of an earlier listener may linger (`TIME_WAIT`).
    Lingering,
}

/// A number of this host. Ends when dropped, or with the process.
#[derive(Debug)]
pub struct Lease {
    /// Its name in the abstract namespace.
    name: Name,
    /// What is bound to it; `None` while it is lent to a service that has to have it for itself.
    socket: Option<OwnedFd>,
    number: u16,
    want: Want,
    ipv6: bool,
    is_lent: bool,
}

impl Lease {
    /// Takes this number.
    ///
    /// # Errors
    /// [`Refused::Taken`] does not know by whom; [`Refused::explained`] finds out, which takes longer.
    pub fn take(host: &Host, number: u16, want: Want) -> Result<Self, Refused> {
        Self::with(host, number, want, Effort::Lingering)
    }

    /// Takes a number that is free. Of a range, those are left out that this round has found taken, and gets to know
    /// more of them.
    ///
    /// # Errors
    /// [`Refused::NoneFree`], or what the system cannot do for any number.
    pub fn any(host: &Host, search: &Search<'_>, want: Want, round: &mut Round) -> Result<Self, Refused> {
        let remembered = search.remembered.filter(|number| search.range.has(*number));
        for number in search.preferred.into_iter().chain(remembered) {
            match Self::with(host, number, want, Effort::Lingering) {
                Err(Refused::Taken { .. } | Refused::Forbidden { .. }) => {}
                other => return other.inspect(|_| round.skip(want.net, number)),
            }
        }
        let Range { low, high } = search.range;
        for number in search.range.starting_at(range::start(search.seed, search.range)) {
            if round.skips(want.net, number) {
                continue;
            }
            match Self::with(host, number, want, Effort::Free) {
                Err(Refused::Taken { .. } | Refused::Forbidden { .. }) => round.skip(want.net, number),
                other => return other.inspect(|_| round.skip(want.net, number)),
            }
        }
        Err(Refused::NoneFree { low, high, net: want.net })
    }

    fn with(host: &Host, number: u16, want: Want, effort: Effort) -> Result<Self, Refused> {
        if number == 0 {
            return Err(Refused::Io("take port 0", Errno::EINVAL));
        }
        let refused = |errno| Refused::of(errno, number, want.net, want.listen.address(host));
        let name = take_name(number, want).map_err(|errno| match errno {
            Errno::EADDRINUSE => refused(errno),
            _ => Refused::Io("take a port's name, which is a unix socket", errno),
        })?;
        let held = hold(host.ipv6, number, want, effort).map_err(refused)?;
        let socket = match want.kind {
            Kind::Inherited { .. } => at_its_address(host, held, number, want).map_err(refused)?,
            Kind::Own { .. } => held,
        };
        Ok(Self { name, socket: Some(socket), number, want, ipv6: host.ipv6, is_lent: false })
    }

    /// The number.
    pub const fn number(&self) -> u16 {
        self.number
    }

    /// The numbers of its descriptors: its name, its socket.
    pub fn descriptors(&self) -> [Option<RawFd>; 2] {
        [self.name.number(), self.socket.as_ref().map(AsRawFd::as_raw_fd)]
    }

    /// True while its service may bind it.
    pub const fn is_lent(&self) -> bool {
        self.is_lent
    }

    /// Its protocol.
    pub const fn net(&self) -> Net {
        self.want.net
    }

    /// Lets a service bind the number: to be called before its exec. Others that set `SO_REUSEADDR` could bind it too until
    /// the service listens, but for the supervisors of other bundles, which see the name.
    pub fn lend(&mut self) -> Result<(), Refused> {
        self.name.clear_askers();
        match (self.want.kind, self.want.net) {
            (Kind::Inherited { .. }, _) => return Ok(()),
            (Kind::Own { hold: true }, Net::Tcp) => {
                if let Some(socket) = &self.socket {
                    sockets::set_reuse(socket, true).map_err(|errno| self.refused(errno))?;
                }
            }
            // Sockets of UDP with SO_REUSEADDR would each get a part of what is sent.
            (Kind::Own { .. }, _) => self.socket = None,
        }
        self.is_lent = true;
        Ok(())
    }

    /// Holds the number again: to be called when the service's processes are gone.
    ///
    /// # Errors
    /// [`Refused::Taken`] where a process has kept the service's socket, or another has come meanwhile. It stays lent;
    /// this can be tried again.
    pub fn take_back(&mut self) -> Result<(), Refused> {
        self.name.clear_askers();
        if !self.is_lent {
            return Ok(());
        }
        match &self.socket {
            Some(socket) => {
                // Fails if anybody listens, and shares the number with what is left of connections. It also ends what the
                // kernel grants to more sockets with SO_REUSEPORT where there were some.
                let address = held_address(self.ipv6, self.number, self.want);
                let probe = sockets::open(Net::Tcp, address, true).map_err(|errno| self.refused(errno))?;
                sockets::set_reuse(socket, false).map_err(|errno| self.refused(errno))?;
                drop(probe);
            }
            None => {
                let held = hold(self.ipv6, self.number, self.want, Effort::Lingering);
                self.socket = Some(held.map_err(|errno| self.refused(errno))?);
            }
        }
        self.is_lent = false;
        Ok(())
    }

    /// The socket that services inherit; `None` where they make their own.
    pub fn listener(&self) -> Option<BorrowedFd<'_>> {
        match self.want.kind {
            Kind::Inherited { .. } => self.socket.as_ref().map(AsFd::as_fd),
            Kind::Own { .. } => None,
        }
    }

    /// Lets clients connect, and wait until a service takes their connections. Again: nothing changes. A socket of UDP takes
    /// datagrams in any case.
    pub fn listen(&self) -> Result<(), Refused> {
        self.name.clear_askers();
        let (Some(socket), Kind::Inherited { backlog }, Net::Tcp) =
            (&self.socket, self.want.kind, self.want.net)
        else {
            return Ok(());
        };
        // Connections get it from here. Without it they would keep the number for a minute after their end.
        sockets::set_reuse(socket, true)
            .and_then(|()| listen(socket, queue(backlog)))
            .map_err(|errno| self.refused(errno))
    }

    /// Refuses clients, those in the queue too, and keeps the number.
    pub fn unlisten(&self) -> Result<(), Refused> {
        let (Some(socket), Kind::Inherited { .. }, Net::Tcp) = (&self.socket, self.want.kind, self.want.net)
        else {
            return Ok(());
        };
        // ENOTCONN: it did not listen.
        match shutdown(socket.as_raw_fd(), Shutdown::Read) {
            Ok(()) | Err(Errno::ENOTCONN) => {}
            Err(errno) => return Err(self.refused(errno)),
        }
        sockets::set_reuse(socket, false).map_err(|errno| self.refused(errno))
    }

    fn refused(&self, errno: Errno) -> Refused {
        Refused::of(errno, self.number, self.want.net, self.want.listen.on(self.ipv6))
    }
}

/// A length for listen(2), at most what nix passes on; the kernel lowers it to `net.core.somaxconn`.
pub(super) fn queue(backlog: u32) -> Backlog {
    i32::try_from(backlog).ok().and_then(|length| Backlog::new(length).ok()).unwrap_or(Backlog::MAXCONN)
}

/// The name of a number in the abstract namespace. One for a single address stands beside those of others.
pub(super) fn name(net: Net, number: u16, address: Option<IpAddr>) -> String {
    match address {
        Some(address) => format!("kitbag/port/{net}/{number}/{address}"),
        None => format!("kitbag/port/{net}/{number}"),
    }
}

/// Takes the number's name.
fn take_name(number: u16, want: Want) -> Result<Name, Errno> {
    let single = want.listen.single();
    let taken = Name::take(name(want.net, number, single).as_bytes())?;
    // Who has the number everywhere has it there too.
    if single.is_some() && sockets::who_has_name(name(want.net, number, None).as_bytes()) != Listener::None {
        return Err(Errno::EADDRINUSE);
    }
    Ok(taken)
}

/// Where a number is held: everywhere, so that nobody else has it on any address of either family, unless it is for a
/// single one.
fn held_address(ipv6: bool, number: u16, want: Want) -> SocketAddr {
    let address = match want.listen {
        Listen::At(address) => address,
        Listen::Loopback | Listen::Public => sockets::everywhere(ipv6),
    };
    SocketAddr::new(address, number)
}

/// Binds the address that is to be listened at, where it is another than that of the socket which has found out that
/// the number is free everywhere.
fn at_its_address(host: &Host, held: OwnedFd, number: u16, want: Want) -> Result<OwnedFd, Errno> {
    if want.listen != Listen::Loopback {
        return Ok(held);
    }
    sockets::set_reuse(&held, true)?;
    let socket = sockets::open(want.net, SocketAddr::new(want.listen.address(host), number), true)?;
    sockets::set_reuse(&socket, false)?;
    Ok(socket)
}

/// Binds a number so that nobody else can.
///
/// What lingers of a TCP listener's connections lets nobody bind without `SO_REUSEADDR`, and neither does a program that
/// has bound the number and not called listen(2) yet: so where the plain way fails, that there is something lingering
/// tells one from the other.
fn hold(ipv6: bool, number: u16, want: Want, effort: Effort) -> Result<OwnedFd, Errno> {
    let address = held_address(ipv6, number, want);
    match sockets::open(want.net, address, false) {
        Err(Errno::EADDRINUSE) if want.net == Net::Tcp && effort == Effort::Lingering => {
            let shared = sockets::open(Net::Tcp, address, true)?;
            if holder::lingers(number) == Some(false) {
                return Err(Errno::EADDRINUSE);
            }
            sockets::set_reuse(&shared, false)?;
            Ok(shared)
        }
        Ok(socket) => {
            if want.net == Net::Udp && matches!(want.kind, Kind::Own { .. }) {
                sockets::keep_small(&socket);
            }
            Ok(socket)
        }
        other => other,
    }
}
