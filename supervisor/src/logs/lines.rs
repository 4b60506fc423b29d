//! Lines out of streams of bytes.
//!
//! Nobody looks at each byte: a block of whole lines is found by its last newline. What a stream has printed after
//! that is kept, and the next read is put behind it.

use memchr::{memchr, memrchr};

use super::format::Micros;
use crate::state::Ms;

/// A longer line is cut. What follows is marked as its continuation. As long as in journald.conf(5), `LineMax`: programs
/// that print JSON print long lines.
pub const LONGEST_LINE: usize = 48 * 1024;

/// One of a unit's two outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

impl Stream {
    /// Both, in the order of their descriptors.
    pub const BOTH: [Self; 2] = [Self::Out, Self::Err];

    /// `stdout`, `stderr`
    pub const fn name(self) -> &'static str {
        match self {
            Self::Out => "stdout",
            Self::Err => "stderr",
        }
    }
}

/// Lines of one stream, read at one time.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// The number of the unit that printed them.
    pub unit: usize,
    /// Where it did.
    pub stream: Stream,
    /// When they were read: microseconds since 1970 in UTC.
    pub time: Micros,
    /// Lines of at most [`LONGEST_LINE`] bytes, each ended by a newline; the last one may have none, if it was cut
    /// or has waited for its end too long.
    pub bytes: &'a [u8],
    /// The first line goes on with the stream's one before.
    pub continued: bool,
}

impl<'a> Batch<'a> {
    /// Each line without its newline, and whether it goes on with the one before.
    pub fn lines(&self) -> impl Iterator<Item = (&'a [u8], bool)> + use<'a> {
        let (mut rest, mut continued) = (self.bytes, self.continued);
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let (line, after) = match memchr(b'\n', rest) {
                Some(end) => (&rest[..end], &rest[end + 1..]),
                None => (rest, &rest[rest.len()..]),
            };
            rest = after;
            Some((line, std::mem::take(&mut continued)))
        })
    }
}

/// What a stream has printed since its last newline: at most [`LONGEST_LINE`] bytes.
#[derive(Debug, Default)]
pub struct Partial {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// They go on with a line that was written already.
    pub continued: bool,
    /// When the first of them came.
    pub since: Ms,
}

/// Cuts `bytes` into blocks of whole lines and calls `emit` for each, with true if its first line goes on with the
/// one before; returns what is left, the beginning of a line. `continued` is true if `bytes` begins in the middle of
/// a line, and afterwards if what is left does.
pub fn cut<'a>(bytes: &'a [u8], continued: &mut bool, mut emit: impl FnMut(&'a [u8], bool)) -> &'a [u8] {
    let mut rest = bytes;
    loop {
        let whole = whole_lines(rest);
        let (block, after) = rest.split_at(whole);
        if !block.is_empty() {
            emit(block, std::mem::take(continued));
        }
        if after.len() <= LONGEST_LINE {
            return after;
        }
        let (head, tail) = after.split_at(LONGEST_LINE);
        emit(head, std::mem::replace(continued, true));
        rest = tail;
    }
}

/// How much of `bytes` is whole lines, none of them too long.
fn whole_lines(bytes: &[u8]) -> usize {
    let mut whole = 0;
    // A window holds a newline, or the line that begins with it is too long or not complete.
    while let Some(last) = memrchr(b'\n', &bytes[whole..bytes.len().min(whole + LONGEST_LINE + 1)]) {
        whole += last + 1;
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines of `chunks` as a sink gets them, `+` before a continuation.
    fn lines(chunks: &[&[u8]]) -> Vec<Vec<u8>> {
        let (mut partial, mut continued, mut lines) = (Vec::new(), false, Vec::new());
        for chunk in chunks {
            partial.extend_from_slice(chunk);
            let left = cut(&partial, &mut continued, |bytes, continued| {
                let batch = Batch { unit: 0, stream: Stream::Out, time: 0, bytes, continued };
                for (line, continued) in batch.lines() {
                    lines.push([if continued { b"+" } else { &b""[..] }, line].concat());
                }
            })
            .to_vec();
            assert!(left.len() <= LONGEST_LINE);
            partial = left;
        }
        if !partial.is_empty() {
            lines.push([if continued { b"+" } else { &b""[..] }, &partial].concat());
        }
        lines
    }

    #[test]
    fn a_line_is_the_same_however_it_is_read() {
        let text = b"one\n\ntwo \xff\0\r\nrest";
        let whole = lines(&[text]);
        assert_eq!(whole, [&b"one"[..], b"", b"two \xff\0\r", b"rest"]);
        for at in 0..text.len() {
            assert_eq!(lines(&[&text[..at], &text[at..]]), whole, "cut at {at}");
        }
    }

    #[test]
    fn a_line_of_the_longest_length_is_not_cut_and_the_next_byte_is() {
        let mut line = vec![b'x'; LONGEST_LINE];
        line.push(b'\n');
        assert_eq!(lines(&[&line]), [&line[..LONGEST_LINE]]);
        line.insert(0, b'x');
        let parts = [&line[..LONGEST_LINE], b"+x"];
        assert_eq!(lines(&[&line]), parts);
        assert_eq!(lines(&[&line[..100], &line[100..]]), parts);
    }

    #[test]
    fn an_endless_line_is_passed_on_in_parts_and_not_kept() {
        let chunk = [b'x'; 1000];
        let all = lines(&[&chunk[..]; 1000]);
        assert_eq!(all.iter().flatten().filter(|byte| **byte == b'x').count(), 1_000_000);
        assert_eq!(all.iter().filter(|line| line[0] == b'+').count(), 1_000_000 / LONGEST_LINE);
    }

    #[test]
    fn lines_after_a_cut_one_are_no_continuations() {
        let long = [&[b'x'; LONGEST_LINE + 1][..], b"\nnext\n"].concat();
        assert_eq!(lines(&[&long])[1..], [b"+x".to_vec(), b"next".to_vec()]);
    }
}
