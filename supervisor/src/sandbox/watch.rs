//! Who listens where, from proc(5): what is left to do where Landlock cannot refuse, on kernels that have none and with
//! sockets of MPTCP, which Linux 6.14 and later leave out of its rules (and which Go 1.24 makes of every listener).
//!
//! A look asks for the sockets that listen, and reads the descriptors of the processes that it is about. Nothing is kept open
//! between looks.

use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;

use crate::ports::holder::{self, Listening};
use crate::ports::lease::Net;
use crate::sys::Pid;

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
        write!(
            f,
            "{unit} (pid {}) listens on {}, a port that it does not declare: add it to the service's `ports`, or \
             allow all by `bind = \"any\"` in its `sandbox`",
            at.pid, at.address
        )
    }
}

/// What listens on undeclared ports, each said once for as long as it does.
#[derive(Debug, Default)]
pub struct Watch {
    said: Vec<(String, SocketAddr)>,
}

impl Watch {
    /// Looks at these units, and returns what the last look at each has not shown. Ports of the range that the kernel
    /// chooses from are nobody's to declare.
    pub fn look(&mut self, units: &[Watched<'_>], chosen: &RangeInclusive<u16>) -> Vec<Stray> {
        let mut new = Vec::new();
        for Watched { unit, pids, declared } in units {
            let mut found = holder::listening(pids);
            let is_stray = |number: u16| !declared.contains(&number) && !chosen.contains(&number);
            found.retain(|at| at.net == Net::Tcp && is_stray(at.address.port()));
            let key = |at: &Listening| ((*unit).to_owned(), at.address);
            let now: Vec<_> = found.iter().map(key).collect();
            self.said.retain(|said| said.0 != *unit || now.contains(said));
            for at in found {
                if !self.said.contains(&key(&at)) {
                    self.said.push(key(&at));
                    new.push(Stray { unit: (*unit).to_owned(), at });
                }
            }
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn what_listens_undeclared_is_said_once_for_as_long_as_it_does() {
        let sockets = ["127.0.0.1:0", "[::1]:0"].map(|address| TcpListener::bind(address).expect("loopback"));
        let [four, six] = [&sockets[0], &sockets[1]].map(|socket| socket.local_addr().unwrap());
        let own = std::process::id().cast_signed();
        let mut watch = Watch::default();
        // Other tests listen too, and at any time.
        let mut new = |declared: &[u16], chosen: RangeInclusive<u16>| {
            let units = [Watched { unit: "web.2", pids: &[own], declared }];
            let all = watch.look(&units, &chosen).into_iter();
            all.filter(|stray| [four, six].contains(&stray.at.address)).collect::<Vec<_>>()
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
}
