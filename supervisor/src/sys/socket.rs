//! Sockets: connections that are begun without waiting, and datagrams with what comes beside their bytes.

use std::mem::{self, MaybeUninit};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::UnixDatagram;

use super::{Errno, Pid, attempt, check, errno_of};

/// Begins a connection: done, or on its way, which the socket's readiness to be written to tells. Non-blocking and
/// close-on-exec.
pub fn connect(address: SocketAddr) -> Result<TcpStream, Errno> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: socket(2) takes numbers.
    let number = check(unsafe { libc::socket(family, kind, 0) })?;
    // SAFETY: it was made here and nobody else knows it.
    let socket = unsafe { OwnedFd::from_raw_fd(number) };
    let answer = match address {
        SocketAddr::V4(address) => begin(
            &socket,
            &libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: address.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.ip().octets()) },
                sin_zero: [0; 8],
            },
        ),
        SocketAddr::V6(address) => begin(
            &socket,
            &libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: address.port().to_be(),
                sin6_flowinfo: address.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
                sin6_scope_id: address.scope_id(),
            },
        ),
    };
    match answer {
        // EINTR: it goes on by itself (connect(2)).
        Ok(()) | Err(Errno::EINPROGRESS | Errno::EINTR) => Ok(socket.into()),
        Err(errno) => Err(errno),
    }
}

/// connect(2) with an address structure of the socket's family.
fn begin<A>(socket: &OwnedFd, address: &A) -> Result<(), Errno> {
    let length = size_of::<A>() as libc::socklen_t;
    // SAFETY: pointer and length are those of `address`, a `sockaddr` of its family, which connect(2) only reads.
    check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const *address).cast(), length) }).map(drop)
}

/// A datagram socket with this name in the abstract namespace (unix(7)), which tells who sent. Non-blocking and
/// close-on-exec.
pub fn abstract_datagrams(name: &[u8]) -> Result<UnixDatagram, Errno> {
    let address =
        std::os::unix::net::SocketAddr::from_abstract_name(name).map_err(|error| errno_of(&error))?;
    let socket = UnixDatagram::bind_addr(&address).map_err(|error| errno_of(&error))?;
    socket.set_nonblocking(true).map_err(|error| errno_of(&error))?;
    let on: libc::c_int = 1;
    // SAFETY: the option's value is an int, and pointer and length are those of one.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PASSCRED,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    })?;
    Ok(socket)
}

/// What has come with a datagram.
#[derive(Debug)]
pub struct Datagram {
    /// Bytes that were put into the buffer.
    pub length: usize,
    /// It was longer than the buffer.
    pub cut: bool,
    /// Process and user that sent it, as the kernel saw them then; they may be gone.
    pub sender: Option<(Pid, u32)>,
}

/// Room for who sent, which the kernel writes first (`__scm_recv_common` in `include/net/scm.h`), and for nothing else:
/// descriptors that there is no room for it drops without opening them here, so that this process never has to close them.
#[repr(C, align(8))]
struct Control([u8; SENDER]);

// SAFETY: CMSG_SPACE computes with numbers.
const SENDER: usize = unsafe { libc::CMSG_SPACE(size_of::<libc::ucred>() as u32) } as usize;
const _: () = assert!(align_of::<Control>() >= align_of::<libc::cmsghdr>());

/// Takes the next datagram; `None` if there is none. Descriptors that came with it are dropped, not received.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<Option<Datagram>, Errno> {
    let mut control = MaybeUninit::<Control>::uninit();
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: all-zero is a valid `msghdr`: it has numbers and pointers.
    let mut head: libc::msghdr = unsafe { mem::zeroed() };
    head.msg_iov = &raw mut part;
    head.msg_iovlen = 1;
    head.msg_control = control.as_mut_ptr().cast();
    head.msg_controllen = size_of::<Control>() as _;
    let received = attempt(|| {
        // SAFETY: `head` leads to `part`, `buffer` and `control`, all alive, writable, and as long as it says.
        let answer = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut head, libc::MSG_DONTWAIT) };
        Errno::result(answer).map(isize::cast_unsigned)
    })?;
    let Some(length) = received else { return Ok(None) };
    // MSG_CTRUNC says that descriptors were dropped.
    let cut = head.msg_flags & libc::MSG_TRUNC != 0;
    Ok(Some(Datagram { length, cut, sender: sender(&head) }))
}

/// Who sent, if the first control message says so and is whole.
fn sender(head: &libc::msghdr) -> Option<(Pid, u32)> {
    // SAFETY: recvmsg(2) has filled `head` and its control buffer, which is alive and aligned. CMSG_FIRSTHDR is null where
    // less than a header was written, and the payload is read only where all of a `ucred` was.
    unsafe {
        let message = libc::CMSG_FIRSTHDR(head);
        let it = message.as_ref()?;
        let is_sender = (it.cmsg_level, it.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_CREDENTIALS);
        let is_whole = it.cmsg_len >= libc::CMSG_LEN(size_of::<libc::ucred>() as u32) as usize
            && head.msg_controllen >= it.cmsg_len;
        let data = libc::CMSG_DATA(message).cast::<libc::ucred>();
        (is_sender && is_whole).then(|| data.read_unaligned()).map(|sender| (sender.pid, sender.uid))
    }
}

/// The supplementary groups of the process that a unix socket is connected to, as they were when that one began to listen
/// (`SO_PEERGROUPS`, Linux 4.13).
pub fn groups_of_peer(socket: BorrowedFd<'_>) -> Result<Vec<u32>, Errno> {
    let mut groups = vec![0_u32; 32];
    loop {
        let mut length = size_of_val(groups.as_slice()) as libc::socklen_t;
        // SAFETY: `groups` is writable for the length that is passed, and the kernel writes whole `gid_t`s.
        let answer = check(unsafe {
            let to = groups.as_mut_ptr().cast();
            libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERGROUPS, to, &raw mut length)
        });
        let count = length as usize / size_of::<u32>();
        match answer {
            // The length is then the one that is needed.
            Err(Errno::ERANGE) if count > groups.len() => groups.resize(count, 0),
            Err(errno) => return Err(errno),
            Ok(_) => {
                groups.truncate(count);
                return Ok(groups);
            }
        }
    }
}

/// Fills `bytes` at random without ever waiting: before the kernel has gathered randomness (getrandom(2)), which on a
/// small machine's first seconds is so, they are what it has by then.
pub fn random(bytes: &mut [u8]) -> Result<(), Errno> {
    let try_with = |flags, bytes: &mut [u8]| {
        // SAFETY: pointer and length are those of `bytes`.
        let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), flags) };
        // Up to 256 bytes come whole.
        Errno::result(got).map(drop)
    };
    // GRND_INSECURE is Linux 5.6's.
    try_with(libc::GRND_INSECURE, bytes).or_else(|_| try_with(libc::GRND_NONBLOCK, bytes))
}

/// Room for the descriptors that a test sends.
#[cfg(test)]
#[repr(C, align(8))]
struct Passed([u8; 2048]);

/// Sends bytes and descriptors to an abstract datagram socket, as sd_notify(3) does.
#[cfg(test)]
pub fn send(from: &UnixDatagram, to: &[u8], bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let address = std::os::unix::net::SocketAddr::from_abstract_name(to).map_err(|error| errno_of(&error))?;
    from.connect_addr(&address).map_err(|error| errno_of(&error))?;
    let numbers: Vec<i32> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
    let size = size_of_val(numbers.as_slice()) as u32;
    let mut control = Passed([0; 2048]);
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: all-zero is a valid `msghdr`.
    let mut head: libc::msghdr = unsafe { mem::zeroed() };
    head.msg_iov = &raw mut part;
    head.msg_iovlen = 1;
    if !numbers.is_empty() {
        assert!(numbers.len() <= 253, "SCM_MAX_FD in include/net/scm.h");
        head.msg_control = (&raw mut control).cast();
        // SAFETY: CMSG_SPACE computes; the first header lies in `control`, which has room for 253 numbers.
        unsafe {
            head.msg_controllen = libc::CMSG_SPACE(size) as _;
            let message = libc::CMSG_FIRSTHDR(&raw const head);
            (*message).cmsg_level = libc::SOL_SOCKET;
            (*message).cmsg_type = libc::SCM_RIGHTS;
            (*message).cmsg_len = libc::CMSG_LEN(size) as _;
            std::ptr::copy_nonoverlapping(numbers.as_ptr().cast(), libc::CMSG_DATA(message), size as usize);
        }
    }
    // SAFETY: `head` leads to `part`, `bytes` and `control`, which are alive; sendmsg(2) only reads them.
    Errno::result(unsafe { libc::sendmsg(from.as_raw_fd(), &raw const head, libc::MSG_NOSIGNAL) }).map(drop)
}

/// Lets a listener have one connection that was not accepted; the kernel does not answer a second one.
#[cfg(test)]
pub fn shorten_queue(listener: &std::net::TcpListener) {
    // SAFETY: listen(2) takes numbers.
    check(unsafe { libc::listen(listener.as_raw_fd(), 0) }).expect("a second listen shortens the queue");
}

/// A socket of 127.0.0.1 that is connected to itself.
#[cfg(test)]
pub fn connected_to_itself() -> TcpStream {
    // SAFETY: socket(2) takes numbers, and what it made is known to nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0)) };
    let mut address = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes([127, 0, 0, 1]) },
        sin_zero: [0; 8],
    };
    let length = size_of::<libc::sockaddr_in>() as libc::socklen_t;
    // SAFETY: pointer and length are those of `address`, which bind(2) only reads.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) })
        .expect("a free port");
    let stream = TcpStream::from(socket);
    address.sin_port = stream.local_addr().expect("its address").port().to_be();
    // SAFETY: as above, for connect(2).
    check(unsafe { libc::connect(stream.as_raw_fd(), (&raw const address).cast(), length) }).expect("itself");
    stream
}
