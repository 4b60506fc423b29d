//! What services print, line by line under their names, and what the supervisor says, within bounded memory.
//!
//! The policy where standard output is slower than the services is *block*: their pipes are not read until it has
//! caught up, and a service that prints more waits. Nothing is lost. The supervisor's own sentences go to
//! standard error and never wait: those that do not fit are counted, and the count is said.

use std::ffi::OsStr;
use std::io::IsTerminal;
use std::os::fd::BorrowedFd;

use crate::state::Ms;
use crate::sys::Errno;
use crate::sys::fd::{self, Target};

/// A longer line is cut; what follows has `+` instead of `|` after the name.
pub const LONGEST_LINE: usize = 8 * 1024;
/// With this much unwritten, services' pipes are not read.
const FULL: usize = 128 * 1024;
/// Room above [`FULL`] that is kept for the supervisor's own sentences.
const RESERVE: usize = 64 * 1024;
/// A destination that failed, a full disk say, is tried again after this time.
const RETRY_AFTER: Ms = 1_000;

/// What stands before each line of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prefix {
    line: Vec<u8>,
    continuation: Vec<u8>,
}

impl Prefix {
    /// A prefix for each name, all of the same width; colours tell neighbours apart.
    pub fn all(names: &[&str], coloured: bool) -> Vec<Self> {
        /// Cyan, yellow, green, magenta, blue, red.
        const COLOURS: [u8; 6] = [36, 33, 32, 35, 34, 31];
        let width = names.iter().map(|name| name.len()).max().unwrap_or(0);
        let prefix = |name: &str, mark: char, colour: u8| {
            if coloured {
                format!("\x1b[{colour}m{name:width$} {mark}\x1b[0m ")
            } else {
                format!("{name:width$} {mark} ")
            }
        };
        let both = |(name, colour): (&&str, u8)| Self {
            line: prefix(name, '|', colour).into_bytes(),
            continuation: prefix(name, '+', colour).into_bytes(),
        };
        names.iter().zip(COLOURS.into_iter().cycle()).map(both).collect()
    }
}

/// Cuts a stream of bytes into lines. Holds at most [`LONGEST_LINE`] bytes.
#[derive(Debug, Default)]
pub struct Lines {
    partial: Vec<u8>,
    continued: bool,
}

impl Lines {
    /// Appends the lines that `bytes` completes to `out`, each with its prefix; keeps the rest.
    pub fn feed(&mut self, bytes: &[u8], prefix: &Prefix, out: &mut Vec<u8>) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            match piece.split_last() {
                Some((b'\n', line)) => {
                    let rest = self.cut(line, prefix, out);
                    self.emit(rest, false, prefix, out);
                }
                _ => {
                    let rest = self.cut(piece, prefix, out);
                    self.partial.extend_from_slice(rest);
                }
            }
        }
    }

    /// Appends the last line if it has no newline.
    pub fn finish(&mut self, prefix: &Prefix, out: &mut Vec<u8>) {
        if !self.partial.is_empty() {
            self.emit(&[], false, prefix, out);
        }
        self.continued = false;
        self.partial = Vec::new();
    }

    /// Emits what is beyond the longest line and returns what fits.
    fn cut<'a>(&mut self, mut line: &'a [u8], prefix: &Prefix, out: &mut Vec<u8>) -> &'a [u8] {
        while self.partial.len() + line.len() > LONGEST_LINE {
            let (head, tail) = line.split_at(LONGEST_LINE - self.partial.len());
            self.emit(head, true, prefix, out);
            line = tail;
        }
        line
    }

    fn emit(&mut self, end: &[u8], to_be_continued: bool, prefix: &Prefix, out: &mut Vec<u8>) {
        out.extend_from_slice(if self.continued { &prefix.continuation } else { &prefix.line });
        out.extend_from_slice(&self.partial);
        out.extend_from_slice(end);
        out.push(b'\n');
        self.partial.clear();
        self.continued = to_be_continued;
    }
}

/// What happened to a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    /// Nobody reads it any more.
    Closed,
    /// It cannot be written to now.
    Failing(Errno),
    /// It can be again; so many bytes were lost.
    Recovered(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    Good,
    Failing { retry_at: Ms, lost: usize },
    Closed,
}

/// A destination with what is to be written there.
#[derive(Debug)]
struct Sink {
    target: Target,
    queue: Vec<u8>,
    sent: usize,
    health: Health,
}

impl Sink {
    fn new(number: i32) -> Self {
        Self { target: Target::inherited(number), queue: Vec::new(), sent: 0, health: Health::Good }
    }

    fn waiting(&self) -> usize {
        self.queue.len() - self.sent
    }

    /// Writes what the destination takes; true if it took some, and what happened to it.
    fn flush(&mut self, now: Ms) -> (bool, Option<Trouble>) {
        if let Health::Failing { retry_at, lost } = self.health
            && now < retry_at
        {
            self.health = Health::Failing { retry_at, lost: lost + self.waiting() };
            self.clear();
        }
        if self.health == Health::Closed {
            self.clear();
        }
        let (mut progress, mut trouble) = (false, None);
        while self.waiting() > 0 {
            match self.target.write(&self.queue[self.sent..]) {
                Ok(None) => break,
                Ok(Some(length)) => {
                    progress = true;
                    self.sent += length;
                    if let Health::Failing { lost, .. } = self.health {
                        self.health = Health::Good;
                        trouble = Some(Trouble::Recovered(lost));
                    }
                }
                Err(errno) => {
                    trouble = self.fail(errno, now).or(trouble);
                    self.clear();
                }
            }
        }
        self.compact();
        (progress, trouble)
    }

    fn fail(&mut self, errno: Errno, now: Ms) -> Option<Trouble> {
        if matches!(errno, Errno::EPIPE | Errno::ECONNRESET | Errno::EBADF) {
            self.health = Health::Closed;
            return Some(Trouble::Closed);
        }
        let (before, first) = match self.health {
            Health::Failing { lost, .. } => (lost, false),
            Health::Good | Health::Closed => (0, true),
        };
        self.health = Health::Failing { retry_at: now + RETRY_AFTER, lost: before + self.waiting() };
        first.then_some(Trouble::Failing(errno))
    }

    fn clear(&mut self) {
        self.queue.clear();
        self.sent = 0;
    }

    /// Forgets what was written, and gives back memory that a flood took.
    fn compact(&mut self) {
        if self.waiting() == 0 {
            self.clear();
            self.queue.shrink_to(FULL);
        } else if self.sent >= FULL / 2 {
            self.queue.drain(..self.sent);
            self.sent = 0;
        }
    }
}

/// Standard output and standard error.
#[derive(Debug)]
pub struct Output {
    out: Sink,
    /// `None` where it is the same file as `out`: two queues would tear each other's lines.
    err: Option<Sink>,
    prefixes: Vec<Prefix>,
    unsaid: u32,
}

impl Output {
    /// The inherited ones, for services of these names. Colours: on a terminal, unless `NO_COLOR` is set
    /// (<https://no-color.org>).
    pub fn new(names: &[&str]) -> Self {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").as_deref() == Some(OsStr::new("dumb"));
        let coloured = !plain && std::io::stdout().is_terminal();
        Self {
            out: Sink::new(1),
            err: (!fd::same(fd::stdout(), fd::stderr())).then(|| Sink::new(2)),
            prefixes: Prefix::all(names, coloured),
            unsaid: 0,
        }
    }

    /// Takes one more service, under the next number.
    pub fn add(&mut self, name: &str) {
        self.prefixes.extend(Prefix::all(&[name], false));
    }

    /// Queues what service number `service` printed.
    pub fn print(&mut self, service: usize, lines: &mut Lines, bytes: &[u8]) {
        if let Some(prefix) = self.prefixes.get(service) {
            lines.feed(bytes, prefix, &mut self.out.queue);
        }
    }

    /// Queues the line that service number `service` left without a newline.
    pub fn finish(&mut self, service: usize, lines: &mut Lines) {
        if let Some(prefix) = self.prefixes.get(service) {
            lines.finish(prefix, &mut self.out.queue);
        }
    }

    /// Queues a sentence of the supervisor's own.
    pub fn say(&mut self, sentence: &str) {
        let room = if self.err.is_some() { RESERVE } else { FULL + RESERVE };
        let unsaid = self.unsaid;
        let sink = self.err.as_mut().unwrap_or(&mut self.out);
        if sink.waiting() > room {
            self.unsaid = unsaid.saturating_add(1);
            return;
        }
        if unsaid > 0 {
            let missing = format!("kitbag: {unsaid} messages are missing here: nobody read them in time\n");
            sink.queue.extend_from_slice(missing.as_bytes());
        }
        self.unsaid = 0;
        for part in ["kitbag: ", sentence, "\n"] {
            sink.queue.extend_from_slice(part.as_bytes());
        }
    }

    /// Says a last sentence, as far as standard error takes it now.
    pub fn fail(mut self, sentence: &str) {
        self.say(sentence);
        self.flush(0);
    }

    /// Writes what the destinations take; true if standard output took some.
    pub fn flush(&mut self, now: Ms) -> bool {
        let (progress, trouble) = self.out.flush(now);
        match trouble {
            Some(Trouble::Closed) => self.say("standard output is closed; what services print is discarded"),
            Some(Trouble::Failing(errno)) => self.say(&format!(
                "standard output cannot be written ({}); what services print is discarded until it can",
                errno.desc()
            )),
            Some(Trouble::Recovered(lost)) => {
                self.say(&format!("standard output can be written again; {lost} bytes were lost"));
            }
            None => {}
        }
        if let Some(err) = &mut self.err {
            // Nobody is left to be told.
            let _ = err.flush(now);
        }
        progress
    }

    /// True if services' pipes are not to be read.
    pub fn is_full(&self) -> bool {
        self.out.waiting() >= FULL
    }

    /// True if standard output, standard error has nothing to write.
    pub fn is_empty(&self) -> [bool; 2] {
        [self.out.waiting() == 0, self.err.as_ref().is_none_or(|err| err.waiting() == 0)]
    }

    /// What to poll for writing: standard output, standard error.
    pub fn pollable(&self) -> [Option<BorrowedFd<'_>>; 2] {
        [Some(self.out.target.pollable()), self.err.as_ref().map(|err| err.target.pollable())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(chunks: &[&[u8]], finish: bool) -> Vec<u8> {
        let prefix = &Prefix::all(&["web", "worker"], false)[0];
        let (mut lines, mut out) = (Lines::default(), Vec::new());
        for chunk in chunks {
            lines.feed(chunk, prefix, &mut out);
        }
        if finish {
            lines.finish(prefix, &mut out);
        }
        out
    }

    #[test]
    fn names_are_padded_to_the_longest() {
        assert_eq!(printed(&[b"a\n"], false), b"web    | a\n");
    }

    #[test]
    fn a_line_is_the_same_however_it_is_read() {
        let text = b"one\n\ntwo \xff\0\r\nrest";
        let whole = printed(&[text], true);
        assert_eq!(whole, b"web    | one\nweb    | \nweb    | two \xff\0\r\nweb    | rest\n");
        for cut in 0..text.len() {
            assert_eq!(printed(&[&text[..cut], &text[cut..]], true), whole, "cut at {cut}");
        }
    }

    #[test]
    fn a_partial_line_waits_for_its_end() {
        assert_eq!(printed(&[b"no newline"], false), b"");
    }

    #[test]
    fn a_line_of_the_longest_length_is_not_cut_and_the_next_byte_is() {
        let mut line = vec![b'x'; LONGEST_LINE];
        line.push(b'\n');
        assert_eq!(printed(&[&line], false), [b"web    | ", &line[..]].concat());
        line.insert(0, b'x');
        let cut = [b"web    | ", &line[1..], b"web    + x\n"].concat();
        assert_eq!(printed(&[&line], false), cut);
        assert_eq!(printed(&[&line[..100], &line[100..]], false), cut);
    }

    #[test]
    fn an_endless_line_is_passed_on_in_parts_and_not_kept() {
        let prefix = &Prefix::all(&["web"], false)[0];
        let (mut lines, mut out) = (Lines::default(), Vec::new());
        for _ in 0..100 {
            lines.feed(&[b'x'; 1000], prefix, &mut out);
            assert!(lines.partial.len() <= LONGEST_LINE);
        }
        lines.finish(prefix, &mut out);
        assert_eq!(out.iter().filter(|byte| **byte == b'x').count(), 100_000);
        assert_eq!(out.split(|byte| *byte == b'\n').filter(|line| line.starts_with(b"web + ")).count(), 12);
    }

    #[test]
    fn colours_are_around_the_name_alone() {
        let prefix = &Prefix::all(&["web"], true)[0];
        assert_eq!(prefix.line, b"\x1b[36mweb |\x1b[0m ");
    }
}
