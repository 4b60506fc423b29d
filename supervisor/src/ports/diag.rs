//! The sockets of TCP that listen, by sock_diag(7). The tables in /proc/net have them too; reading one, the kernel goes
//! through all places where connections could be, on a machine with much memory for milliseconds, though there be none.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

use super::holder::Row;

/// `TCP_LISTEN` of include/net/tcp_states.h.
const LISTEN: u8 = 10;
/// linux/sock_diag.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// Bytes of `struct nlmsghdr`, `struct inet_diag_req_v2` and `struct inet_diag_msg` (linux/netlink.h, linux/inet_diag.h).
const HEADER: usize = 16;
const REQUEST: usize = 56;
const ANSWER: usize = 72;
/// Bytes that the kernel sends at a time, at most (netlink(7)).
const BUFFER: usize = 32 << 10;

/// Those of IPv4, or of IPv6; `None` where the kernel has no such service (`CONFIG_INET_DIAG`), or this process may not use it.
pub(super) fn listening(is_ipv6: bool) -> Option<Vec<Row>> {
    let family = if is_ipv6 { libc::AF_INET6 } else { libc::AF_INET } as u8;
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkSockDiag).ok()?;
    send(socket.as_raw_fd(), &request(family), MsgFlags::MSG_DONTWAIT).ok()?;
    let mut rows = Vec::new();
    while !answers(&receive(&socket)?, &mut rows)? {}
    Some(rows)
}

fn request(family: u8) -> [u8; HEADER + REQUEST] {
    let mut bytes = [0; HEADER + REQUEST];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, &((HEADER + REQUEST) as u32).to_ne_bytes());
    put(4, &SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    put(6, &((libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16).to_ne_bytes());
    put(HEADER, &[family, libc::IPPROTO_TCP as u8]);
    put(HEADER + 4, &(1_u32 << LISTEN).to_ne_bytes());
    bytes
}

/// What is there: the kernel makes each part before it has been asked for.
fn receive(socket: &OwnedFd) -> Option<Vec<u8>> {
    let mut bytes = vec![0; BUFFER];
    let length = recv(socket.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT).ok()?;
    bytes.truncate(length);
    Some(bytes)
}

/// Adds the sockets in a part of the answer. True if it was the last one, `None` if the kernel refuses.
fn answers(mut part: &[u8], rows: &mut Vec<Row>) -> Option<bool> {
    while !part.is_empty() {
        let length = usize::try_from(u32_at(part, 0)?).ok()?;
        let body = part.get(HEADER..length)?;
        match u16::from_ne_bytes(*part.get(4..)?.first_chunk()?) {
            SOCK_DIAG_BY_FAMILY => rows.push(row(body)?),
            kind if i32::from(kind) == libc::NLMSG_DONE => return Some(true),
            _ => return None,
        }
        part = part.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(false)
}

fn row(message: &[u8]) -> Option<Row> {
    let message = message.get(..ANSWER)?;
    let number = u16::from_be_bytes(*message.get(4..)?.first_chunk()?);
    let ip: IpAddr = match i32::from(*message.first()?) {
        libc::AF_INET => Ipv4Addr::from(*message.get(8..)?.first_chunk::<4>()?).into(),
        _ => Ipv6Addr::from(*message.get(8..)?.first_chunk::<16>()?).into(),
    };
    Some(Row {
        address: SocketAddr::new(ip, number),
        state: LISTEN,
        uid: u32_at(message, 64)?,
        inode: u32_at(message, 68)?.into(),
    })
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_socket_that_listens_is_found() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let address = listener.local_addr().expect("it is bound");
            let link = std::fs::read_link(format!("/proc/self/fd/{}", listener.as_raw_fd())).expect("/proc");
            let Some(rows) = listening(address.is_ipv6()) else { return };
            let found: Vec<Row> = rows.into_iter().filter(|row| row.address == address).collect();
            let [Row { state: LISTEN, uid, inode, .. }] = found[..] else { panic!("{found:?}") };
            assert_eq!(uid, nix::unistd::geteuid().as_raw());
            assert_eq!(link.to_str(), Some(&*format!("socket:[{inode}]")));
        }
    }

    #[test]
    fn answers_that_are_cut_are_none() {
        let whole = [&88_u32.to_ne_bytes()[..], &20_u16.to_ne_bytes(), &[0; 82]].concat();
        let mut rows = Vec::new();
        assert_eq!((answers(&whole, &mut rows), rows.len()), (Some(false), 1));
        for length in 1..whole.len() {
            assert_eq!(answers(&whole[..length], &mut Vec::new()), None, "{length}");
        }
        assert_eq!(answers(&[0; 16], &mut Vec::new()), None, "a length of nothing");
    }
}
