//! Sockets of a number, and names in the abstract namespace.

use std::fs::{self, OpenOptions};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, UnixAddr, accept4, bind, connect,
    getsockopt, listen, socket, sockopt,
};

use super::lease::Net;
use crate::sys::hurry::Hurry;
use crate::sys::{Errno, Pid};

/// Connections to a name that wait until its holder clears them away.
const ASKERS: i32 = 16;
/// Non-zero where IPv6 is switched off (`Documentation/networking/ip-sysctl.rst`).
const IPV6_OFF: &str = "/proc/sys/net/ipv6/conf/all/disable_ipv6";

/// True if this host has IPv6, and it is not switched off.
pub fn has_ipv6() -> bool {
    let off = fs::read_to_string(IPV6_OFF).is_ok_and(|text| text.trim() != "0");
    !off && open(Net::Tcp, SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0), false).is_ok()
}

/// Every address of this host: of IPv6 and IPv4 at once, or of IPv4 alone.
pub const fn everywhere(ipv6: bool) -> IpAddr {
    if ipv6 { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) }
}

/// A socket bound to this address, close-on-exec; `[::]` is that of IPv4 as well (ipv6(7), `IPV6_V6ONLY`). With `reuse`
/// it shares the number with others that have `SO_REUSEADDR` as long as none of them listens (socket(7)).
pub fn open(net: Net, address: SocketAddr, reuse: bool) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let kind = if net == Net::Tcp { SockType::Stream } else { SockType::Datagram };
    let opened = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
    if address.is_ipv6() {
        nix::sys::socket::setsockopt(&opened, sockopt::Ipv6V6Only, &false)?;
    }
    if reuse {
        set_reuse(&opened, true)?;
    }
    bind(opened.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(opened)
}

/// Sets or clears `SO_REUSEADDR`.
pub fn set_reuse(of: &impl AsFd, reuse: bool) -> Result<(), Errno> {
    nix::sys::socket::setsockopt(of, sockopt::ReuseAddr, &reuse)
}

/// Lets a socket that nobody reads hold next to nothing.
pub fn keep_small(of: &impl AsFd) {
    // The kernel raises it to its least, which takes a datagram or two.
    let _ = nix::sys::socket::setsockopt(of, sockopt::RcvBuf, &0);
}

/// A name in the abstract namespace that is ours: whoever connects is told this process's id.
///
/// Anybody can, and pass descriptors that nobody takes. They go with the connection, in [`Hurry`].
#[derive(Debug)]
pub struct Name(Option<OwnedFd>);

impl Name {
    /// Takes a name, and listens there.
    ///
    /// # Errors
    /// `EADDRINUSE`: it is somebody's. And those of socket(2).
    pub fn take(name: &[u8]) -> Result<Self, Errno> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let opened = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        bind(opened.as_raw_fd(), &UnixAddr::new_abstract(name)?)?;
        listen(&opened, Backlog::new(ASKERS)?)?;
        Ok(Self(Some(opened)))
    }

    /// The number of the descriptor that has it.
    pub fn number(&self) -> Option<RawFd> {
        self.0.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Lets those go who have asked, so that there is room for the next. No more than there is room for: who asks without
    /// pause is not waited for.
    pub fn clear_askers(&self) {
        let Some(name) = self.number() else { return };
        let askers = (0..=ASKERS).map_while(|_| accept4(name, SockFlag::SOCK_CLOEXEC).ok());
        let mut askers = askers.peekable();
        if askers.peek().is_some() {
            Hurry::of_this_thread().run(|| askers.for_each(|asker| _ = nix::unistd::close(asker)));
        }
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        Hurry::of_this_thread().run(|| drop(self.0.take()));
    }
}

/// Who listens at this address of unix(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listener {
    /// Nobody.
    None,
    /// This process, or it did when it called listen(2); its id is not known here where it is in another namespace.
    Process(Option<Pid>),
}

/// Asks who has this name in the abstract namespace.
pub fn who_has_name(name: &[u8]) -> Listener {
    UnixAddr::new_abstract(name).map_or(Listener::None, |address| who_listens(&address))
}

/// Asks who listens at this path. A link in its place is not followed, whoever has put it there.
pub fn who_listens_at(path: &Path) -> Listener {
    let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    let Ok(file) = OpenOptions::new().read(true).custom_flags(flags).open(path) else {
        return Listener::None;
    };
    // proc(5): this leads to what was opened, and to nothing else.
    let opened = format!("/proc/self/fd/{}", file.as_raw_fd());
    UnixAddr::new(opened.as_str()).map_or(Listener::None, |address| who_listens(&address))
}

/// Asks who listens there, without waiting.
pub fn who_listens(address: &UnixAddr) -> Listener {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let Ok(asker) = socket(AddressFamily::Unix, SockType::Stream, flags, None) else {
        return Listener::None;
    };
    match connect(asker.as_raw_fd(), address) {
        Ok(()) => {
            let peer = getsockopt(&asker, sockopt::PeerCredentials).ok();
            Listener::Process(peer.map(|peer| peer.pid()).filter(|pid| *pid > 0))
        }
        // Its queue is full; or it is of another kind, or not ours to ask.
        Err(Errno::EAGAIN | Errno::EPROTOTYPE | Errno::EACCES | Errno::EPERM) => Listener::Process(None),
        Err(_) => Listener::None,
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;
    use std::net::TcpStream;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixStream};
    use std::time::Instant;

    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

    use super::*;
    use crate::sys::hurry::tests::lingering;

    #[test]
    fn a_lingering_socket_that_who_asks_passes_holds_nothing_up() {
        let name = format!("kitbag/test/lingering/{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        let ask = || -> (UnixStream, TcpStream) {
            let asker = UnixStream::connect_addr(&address).expect("somebody listens");
            let (socket, other) = lingering();
            let passed = [socket.as_raw_fd()];
            let with = [ControlMessage::ScmRights(&passed)];
            let (part, flags) = ([IoSlice::new(b"x")], MsgFlags::empty());
            sendmsg::<UnixAddr>(asker.as_raw_fd(), &part, &with, flags, None).expect("it is passed");
            (asker, other)
        };
        let held = Name::take(name.as_bytes()).expect("it is nobody's");
        let begin = Instant::now();
        let askers = [ask(), ask()];
        held.clear_askers();
        let late = [ask(), ask()];
        drop(held);
        assert!(begin.elapsed().as_secs() < 10, "it took {:?}", begin.elapsed());
        drop((askers, late));
    }
}
