//! A client of the socket: one request a connection. It blocks, so the supervisor itself never uses it.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use serde_json::Value;

use super::{Identity, http, socket};
use crate::state::Ms;
use crate::sys::socket::groups_of_peer;
use crate::sys::{Pid, fd};

/// How long a running bundle may take to answer what it can answer at once.
pub const PATIENCE: Ms = 10_000;
/// The longest answer; one of 10,000 units has 5 MB.
const LONGEST_ANSWER: u64 = 64 << 20;

/// An answer: its status code, its JSON, and who has given it.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// 200 and its like.
    pub code: u16,
    /// The body; null if it is no JSON.
    pub value: Value,
    /// The process that listens, as the kernel numbers it here: in another PID namespace it has another number there.
    /// `None` if it is not seen from here.
    pub peer: Option<Pid>,
    /// Who that is, as the kernel knows him.
    pub identity: Identity,
}

impl Answer {
    /// True if it was done, or begun.
    pub const fn is_good(&self) -> bool {
        self.code < 300
    }

    /// What went wrong, and what to do, as it was answered.
    pub fn fault(&self) -> String {
        let text = |key: &str| self.value[key].as_str().unwrap_or("it does not say").to_owned();
        format!("{}\n  to fix  {}", text("error"), text("to_fix"))
    }
}

/// Asks whoever listens in `folder`. Waits for `patience` at most while nothing comes.
pub fn ask(folder: &Path, method: &str, target: &str, patience: Ms) -> io::Result<Answer> {
    let mut stream = send(folder, method, target)?;
    let (peer, identity) = peer(&stream)?;
    stream.set_read_timeout(Some(Duration::from_millis(patience.max(1))))?;
    let mut bytes = Vec::new();
    Read::by_ref(&mut stream).take(LONGEST_ANSWER).read_to_end(&mut bytes)?;
    let (code, body) = http::parse_response(&bytes).ok_or(io::ErrorKind::UnexpectedEof)?;
    let value = serde_json::from_slice(body).unwrap_or(Value::Null);
    Ok(Answer { code, value, peer, identity })
}

/// Who listens at the other end: what it says of itself does not count. A kernel that does not tell groups tells none.
fn peer(stream: &UnixStream) -> io::Result<(Option<Pid>, Identity)> {
    let peer = getsockopt(stream, PeerCredentials)?;
    let groups = groups_of_peer(stream.as_fd()).unwrap_or_default();
    let identity = Identity { uid: peer.uid(), gid: peer.gid(), groups: Some(groups) };
    Ok((Some(peer.pid()).filter(|pid| *pid > 0), identity))
}

/// Asks for a stream, and passes on what comes, line by line, until its end, until `each` returns false, or until nobody
/// reads standard output any more.
pub fn follow(folder: &Path, target: &str, mut each: impl FnMut(&[u8]) -> bool) -> io::Result<()> {
    let mut stream = send(folder, "GET", target)?;
    let mut bytes = Vec::new();
    let mut chunk = [0; 8 * 1024];
    let mut in_body = false;
    while fd::wait_to_read(stream.as_fd(), io::stdout().as_fd()) {
        match stream.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(length) => bytes.extend_from_slice(&chunk[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(error),
        }
        if !in_body {
            let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
            bytes.drain(..end + 4);
            in_body = true;
        }
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = bytes.drain(..=end).collect();
            if !each(&line) {
                return Ok(());
            }
        }
    }
    Ok(())
}

fn send(folder: &Path, method: &str, target: &str) -> io::Result<UnixStream> {
    let mut stream = socket::connect(folder)?;
    let request = format!("{method} {target} HTTP/1.1\r\nHost: kitbag\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    Ok(stream)
}
