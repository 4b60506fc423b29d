//! The last of what a check prints: a sentence about its failure.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::notify::printable;
use crate::sys::{Errno, fd};

/// Bytes kept of it.
const KEPT: usize = 512;
/// Reads that empty a pipe of the usual size (pipe(7): 64 kB).
const READS: usize = 17;

/// What a check prints, from the pipe that is its standard output and error.
#[derive(Debug)]
pub struct Tail {
    pipe: OwnedFd,
    bytes: Vec<u8>,
}

impl Tail {
    /// A new one, and the end that the check gets.
    ///
    /// # Errors
    /// Those of pipe2(2).
    pub fn new() -> Result<(Self, OwnedFd), Errno> {
        let (pipe, write) = fd::pipe()?;
        Ok((Self { pipe, bytes: Vec::new() }, write))
    }

    /// Ready to be read when [`Self::read`] has something to do.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }

    /// Reads once, without waiting; how much. `None`: nothing more will come.
    pub fn read(&mut self) -> Option<usize> {
        let mut buffer = [0; 4096];
        let length = match fd::read(self.fd(), &mut buffer) {
            Ok(Some(0)) | Err(_) => return None,
            Ok(length) => length.unwrap_or(0),
        };
        self.bytes.extend_from_slice(&buffer[..length]);
        let surplus = self.bytes.len().saturating_sub(KEPT);
        self.bytes.drain(..surplus);
        Some(length)
    }

    /// Its last line that is not blank, as far as it has come; control characters and what is no UTF-8 are replaced.
    pub fn last_line(mut self) -> Option<String> {
        for _ in 0..READS {
            if self.read().is_none_or(|length| length == 0) {
                break;
            }
        }
        let mut lines = self.bytes.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
        lines.rfind(|line| !line.is_empty()).map(printable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Write;

    fn last_line(printed: &[u8]) -> Option<String> {
        let (mut tail, write) = Tail::new().expect("a pipe");
        let mut write = File::from(write);
        for part in printed.chunks(4000) {
            write.write_all(part).expect("there is room");
            assert_eq!(tail.read(), Some(part.len()));
            assert!(tail.bytes.len() <= KEPT);
        }
        drop(write);
        tail.last_line()
    }

    #[test]
    fn the_last_line_that_says_something_is_kept() {
        assert_eq!(last_line(b""), None);
        assert_eq!(last_line(b" \n\n"), None);
        assert_eq!(
            last_line(b"one\ntwo: \x1b[31mno\xff \r\n\n").as_deref(),
            Some("two: \u{fffd}[31mno\u{fffd}")
        );
        let long = [&[b'x'; 30_000][..], b"y"].concat();
        let kept = last_line(&long).expect("a line");
        assert!(kept.len() == KEPT && kept.ends_with("xy"), "{kept}");
    }
}
