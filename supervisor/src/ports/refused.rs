//! Why there is no lease, in a sentence that says what to do.

use std::fmt;
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;

use super::holder::{self, Holder};
use super::lease::Net;
use super::registry::Registry;
use crate::sys::Errno;

/// The first number that everybody may bind (ip(7)).
const FIRST: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
/// What it is where nobody has set it.
const USUAL_FIRST: u16 = 1024;

/// Why there is no lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// Somebody has it.
    Taken {
        /// The number.
        number: u16,
        /// Its protocol.
        net: Net,
        /// Who; `None`: not looked for, or not to be seen.
        holder: Option<Box<Holder>>,
    },
    /// All of a range are taken.
    NoneFree {
        /// The first.
        low: u16,
        /// The last.
        high: u16,
        /// Of this protocol.
        net: Net,
    },
    /// This user may not bind it.
    Forbidden {
        /// The number.
        number: u16,
        /// The first one that everybody may bind.
        first: u16,
    },
    /// This host does not have the address.
    Address(IpAddr, Errno),
    /// The path of a unix socket cannot be used.
    Path(PathBuf, PathFault),
    /// The system cannot do it now.
    Io(&'static str, Errno),
}

/// What is wrong with the path of a unix socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathFault {
    /// It does not fit into an address, which holds so many bytes (unix(7)).
    TooLong(usize),
    /// Something else is there.
    NotASocket,
    /// This process listens there.
    Taken(Option<Box<Holder>>),
    /// The system said no.
    Io(Errno),
}

impl Refused {
    /// What an error of bind(2) means.
    pub(super) fn of(errno: Errno, number: u16, net: Net, address: IpAddr) -> Self {
        match errno {
            Errno::EADDRINUSE => Self::Taken { number, net, holder: None },
            Errno::EACCES if number < first_for_all() => Self::Forbidden { number, first: first_for_all() },
            Errno::EADDRNOTAVAIL | Errno::EINVAL | Errno::EAFNOSUPPORT => Self::Address(address, errno),
            _ => Self::Io("bind a port", errno),
        }
    }

    /// The same, with who it is that has the number. Reads /proc: milliseconds, where there are
    /// thousands of processes a tenth of a second.
    #[must_use]
    pub fn explained(self, registry: Option<&Registry>) -> Self {
        match self {
            Self::Taken { number, net, holder: None } => {
                Self::Taken { number, net, holder: holder::of(number, net, registry).map(Box::new) }
            }
            other => other,
        }
    }

    /// Who has the number, if it is taken and that is known.
    pub fn holder(&self) -> Option<&Holder> {
        match self {
            Self::Taken { holder, .. } | Self::Path(_, PathFault::Taken(holder)) => holder.as_deref(),
            _ => None,
        }
    }
}

/// The first number that every user may bind.
pub fn first_for_all() -> u16 {
    let text = fs::read_to_string(FIRST).unwrap_or_default();
    text.trim().parse().unwrap_or(USUAL_FIRST)
}

impl fmt::Display for Refused {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Taken { number, net, holder } => {
                write!(to, "port {number}/{net} is taken")?;
                match holder {
                    Some(holder) => write!(to, " by {holder}; {}", holder.remedy()),
                    None => to.write_str(
                        " by a process that is not to be seen from here; declare another number, or a range",
                    ),
                }
            }
            Self::NoneFree { low, high, net } => {
                write!(to, "all ports from {low} to {high}/{net} are taken; declare a larger range, or `any`")
            }
            Self::Forbidden { number, first } => write!(
                to,
                "port {number} is below {first} (net.ipv4.ip_unprivileged_port_start), and this user may not bind it; \
                 declare another number and have {number} forwarded to it, or let all users bind it by `sysctl \
                 net.ipv4.ip_unprivileged_port_start={number}`, or start this as root with `user = \"…\"` in the manifest"
            ),
            Self::Address(address, errno) => write!(
                to,
                "{address} cannot be listened at: {}; `ip address` shows what this host has, `loopback` and `public` \
                 are always there",
                errno.desc()
            ),
            Self::Path(path, fault) => write!(to, "the socket {}: {fault}", path.display()),
            Self::Io(what, errno) => write!(to, "cannot {what}: {}", errno.desc()),
        }
    }
}

impl fmt::Display for PathFault {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong(most) => write!(
                to,
                "its path has more than the {most} bytes that an address holds; KITBAG_STATE names a state folder with \
                 a shorter one"
            ),
            Self::NotASocket => to.write_str("something else is there; move it away"),
            Self::Taken(Some(holder)) => write!(to, "{holder} listens there; {}", holder.remedy()),
            Self::Taken(None) => to.write_str("a process listens there; stop it"),
            Self::Io(errno) => to.write_str(errno.desc()),
        }
    }
}

impl std::error::Error for Refused {}
