//! Standard output, line by line under the units' names, and what the supervisor says, within bounded memory.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::IsTerminal;
use std::os::fd::BorrowedFd;

use kitbag_format::service::WhenSlow;

use super::format::{self, Stamp, wall_clock};
use super::lines::{Batch, Stream};
use super::own::Own;
use super::sink::Sink;
use crate::state::Ms;
use crate::sys::Errno;
use crate::sys::fd::{self, Target};

/// With this much unwritten, units' pipes are not read, or what they print is dropped.
const FULL: usize = 128 * 1024;
/// Room above [`FULL`] that is kept for the supervisor's own sentences.
const RESERVE: usize = 64 * 1024;
/// A destination that failed, a full disk say, is tried again after this time.
const RETRY_AFTER: Ms = 1_000;

/// What stands before each line of a unit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Prefix {
    line: Vec<u8>,
    continuation: Vec<u8>,
}

impl Prefix {
    /// The name, filled up to `width`; colours tell neighbours apart.
    fn new(name: &str, number: usize, width: usize, coloured: bool) -> Self {
        /// Cyan, yellow, green, magenta, blue, red.
        const COLOURS: [u8; 6] = [36, 33, 32, 35, 34, 31];
        let colour = COLOURS[number % COLOURS.len()];
        let prefix = |mark: char| {
            if coloured {
                format!("\x1b[{colour}m{name:width$} {mark}\x1b[0m ")
            } else {
                format!("{name:width$} {mark} ")
            }
        };
        Self { line: prefix('|').into_bytes(), continuation: prefix('+').into_bytes() }
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

/// A descriptor with what is to be written there.
#[derive(Debug)]
struct Queue {
    target: Target,
    bytes: Vec<u8>,
    sent: usize,
    /// Bytes that were written since somebody looked.
    written: usize,
    health: Health,
}

impl Queue {
    fn new(number: i32) -> Self {
        Self {
            target: Target::inherited(number),
            bytes: Vec::new(),
            sent: 0,
            written: 0,
            health: Health::Good,
        }
    }

    fn waiting(&self) -> usize {
        self.bytes.len() - self.sent
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
            match self.target.write(&self.bytes[self.sent..]) {
                Ok(None) => break,
                Ok(Some(length)) => {
                    progress = true;
                    self.sent += length;
                    self.written += length;
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
        self.bytes.clear();
        self.sent = 0;
    }

    /// Forgets what was written, and gives back memory that a flood took.
    fn compact(&mut self) {
        if self.waiting() == 0 {
            self.clear();
            self.bytes.shrink_to(FULL);
        } else if self.sent >= FULL / 2 {
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
    }
}

/// A unit that prints here.
#[derive(Debug, Default)]
struct Unit {
    name: String,
    prefix: Prefix,
    /// Lines that were dropped and not yet reported.
    dropped: u64,
}

/// What goes to standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Carries {
    /// All that services print, which is nowhere else.
    #[default]
    All,
    /// The same, which is in files as well.
    Copies,
    /// In the background: what the supervisor says. It is `supervisor.log`, and the services have files.
    Own,
}

/// Standard output and standard error.
#[derive(Debug)]
pub struct Standard {
    /// What is lost where standard output fails.
    pub carries: Carries,
    out: Queue,
    /// `None` where it is the same file as `out`: two queues would tear each other's lines.
    err: Option<Queue>,
    /// The file that both are in the background.
    own: Option<Own>,
    units: Vec<Unit>,
    /// Of the widest name.
    width: usize,
    coloured: bool,
    /// A terminal gets nothing to obey but colours.
    is_terminal: bool,
    json: bool,
    when_slow: WhenSlow,
    stamp: Stamp,
    unsaid: u32,
    news: VecDeque<String>,
}

impl Standard {
    /// The inherited ones. Colours: on a terminal, unless `NO_COLOR` is set (<https://no-color.org>).
    pub fn new(json: bool, when_slow: WhenSlow, own: Option<Own>) -> Self {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").as_deref() == Some(OsStr::new("dumb"));
        Self {
            carries: Carries::default(),
            out: Queue::new(1),
            err: (!fd::same(fd::stdout(), fd::stderr())).then(|| Queue::new(2)),
            own,
            units: Vec::new(),
            width: 0,
            coloured: !plain && std::io::stdout().is_terminal(),
            is_terminal: std::io::stdout().is_terminal(),
            json,
            when_slow,
            stamp: Stamp::default(),
            unsaid: 0,
            news: VecDeque::new(),
        }
    }

    /// Queues a sentence of the supervisor's own.
    pub fn say(&mut self, sentence: &str) {
        let room = if self.err.is_some() { RESERVE } else { FULL + RESERVE };
        let queue = self.err.as_mut().unwrap_or(&mut self.out);
        if queue.waiting() > room {
            self.unsaid = self.unsaid.saturating_add(1);
            return;
        }
        if self.unsaid > 0 {
            let missing =
                format!("kitbag: {} messages are missing here: nobody read them in time\n", self.unsaid);
            queue.bytes.extend_from_slice(missing.as_bytes());
        }
        self.unsaid = 0;
        for part in ["kitbag: ", sentence, "\n"] {
            queue.bytes.extend_from_slice(part.as_bytes());
        }
    }

    /// True if nothing waits for standard error.
    pub fn has_said_all(&self) -> bool {
        self.err.as_ref().is_none_or(|err| err.waiting() == 0)
    }

    /// What to poll for writing the supervisor's own sentences, where that is not [`Sink::pollable`].
    pub fn pollable_for_own(&self) -> Option<BorrowedFd<'_>> {
        self.err.as_ref().map(|err| err.target.pollable())
    }

    /// Names are as wide as the widest: all are made anew where that is another one now.
    fn align(&mut self) {
        let width = self.units.iter().map(|unit| unit.name.len()).max().unwrap_or(0);
        if std::mem::replace(&mut self.width, width) != width {
            (0..self.units.len()).for_each(|number| self.name(number));
        }
    }

    fn name(&mut self, number: usize) {
        let unit = &mut self.units[number];
        // The first number is the supervisor's own, which has no colour.
        unit.prefix = Prefix::new(&unit.name, number.saturating_sub(1), self.width, self.coloured);
    }

    fn write(&mut self, batch: &Batch<'_>) {
        let Some(unit) = self.units.get(batch.unit) else { return };
        let out = &mut self.out.bytes;
        if self.json {
            let stamp = self.stamp.text(batch.time);
            for (line, continued) in batch.lines() {
                format::json(out, stamp, &unit.name, batch, line, continued);
            }
            return;
        }
        for (line, continued) in batch.lines() {
            out.extend_from_slice(if continued { &unit.prefix.continuation } else { &unit.prefix.line });
            if self.is_terminal {
                format::visible(out, line);
            } else {
                out.extend_from_slice(line);
            }
            out.push(b'\n');
        }
    }

    fn report_dropped(&mut self) {
        for number in 0..self.units.len() {
            let dropped = std::mem::take(&mut self.units[number].dropped);
            if dropped > 0 {
                let text = format!("kitbag: {dropped} lines were dropped here: nobody read them in time");
                let (stream, time) = (Stream::Err, wall_clock());
                self.write(&Batch { unit: number, stream, time, bytes: text.as_bytes(), continued: false });
            }
        }
    }

    fn tell(&mut self, trouble: Trouble) {
        let (what, lost) = match self.carries {
            Carries::All => ("standard output", "what services print is discarded"),
            Carries::Copies => ("standard output", "what services print is in their files alone"),
            Carries::Own => (
                "supervisor.log",
                "what services print has files of its own, and what the supervisor says, too",
            ),
        };
        self.news.push_back(match trouble {
            Trouble::Closed => format!("{what} is closed; {lost}"),
            Trouble::Failing(errno) => format!("{what} cannot be written ({}) for now; {lost}", errno.desc()),
            Trouble::Recovered(lost) => format!("{what} can be written again; {lost} bytes were lost"),
        });
    }
}

impl Sink for Standard {
    fn add(&mut self, unit: usize, name: &str) {
        if self.units.len() <= unit {
            self.units.resize_with(unit + 1, Unit::default);
        }
        let before = std::mem::replace(&mut self.units[unit].name, name.to_owned());
        self.name(unit);
        if name.len() > self.width || before.len() == self.width {
            self.align();
        }
    }

    fn remove(&mut self, unit: usize, _now: Ms) {
        if let Some(unit) = self.units.get_mut(unit)
            && std::mem::take(unit).name.len() == self.width
        {
            self.align();
        }
    }

    fn take(&mut self, batch: &Batch<'_>, _now: Ms) {
        if self.when_slow == WhenSlow::Drop && self.out.waiting() >= FULL {
            if let Some(unit) = self.units.get_mut(batch.unit) {
                unit.dropped += batch.lines().count() as u64;
            }
            return;
        }
        self.write(batch);
    }

    fn flush(&mut self, now: Ms) -> bool {
        let was_full = self.out.waiting() >= FULL;
        let (mut progress, trouble) = self.out.flush(now);
        if let Some(trouble) = trouble {
            self.tell(trouble);
        }
        if was_full && self.out.waiting() < FULL {
            self.report_dropped();
            progress |= self.out.flush(now).0;
        }
        if let Some(err) = &mut self.err {
            // Nobody is left to be told.
            let _ = err.flush(now);
        }
        if let Some(own) = &mut self.own {
            own.grows(std::mem::take(&mut self.out.written));
        }
        progress
    }

    fn backlog(&self) -> usize {
        self.out.waiting()
    }

    fn is_full(&self) -> bool {
        self.when_slow == WhenSlow::Block && self.out.waiting() >= FULL
    }

    fn pollable(&self) -> Option<BorrowedFd<'_>> {
        Some(self.out.target.pollable())
    }

    fn news(&mut self) -> Option<String> {
        self.news.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standard(json: bool, names: &[&str]) -> Standard {
        let mut standard = Standard::new(json, WhenSlow::Drop, None);
        standard.coloured = false;
        names.iter().enumerate().for_each(|(unit, name)| standard.add(unit + 1, name));
        standard
    }

    fn batch(unit: usize, bytes: &[u8]) -> Batch<'_> {
        Batch { unit, stream: Stream::Out, time: 0, bytes, continued: true }
    }

    #[test]
    fn names_are_padded_to_the_longest_and_continuations_marked() {
        let mut standard = standard(false, &["web", "worker"]);
        standard.take(&batch(1, b"a\nb\n"), 0);
        assert_eq!(standard.out.bytes, b"web    + a\nweb    | b\n");
        standard.remove(2, 0);
        standard.take(&batch(1, b"c"), 0);
        assert!(standard.out.bytes.ends_with(b"\nweb + c\n"));
    }

    #[test]
    fn a_unit_that_comes_or_goes_has_no_other_named_anew() {
        let mut standard = standard(false, &["worker", "web"]);
        let places = |standard: &Standard| -> Vec<*const u8> {
            standard.units[1..3].iter().map(|unit| unit.prefix.line.as_ptr()).collect()
        };
        let before = places(&standard);
        standard.add(3, "mail");
        standard.add(4, "backup");
        standard.remove(3, 0);
        standard.remove(4, 0);
        assert_eq!(places(&standard), before);
        standard.add(3, "scheduler");
        standard.take(&batch(2, b"a\n"), 0);
        assert_eq!(standard.out.bytes, b"web       + a\n");
        standard.add(3, "web.1");
        standard.take(&batch(3, b"b\n"), 0);
        assert!(standard.out.bytes.ends_with(b"\nweb.1  + b\n"));
    }

    #[test]
    fn colours_are_around_the_name_alone() {
        assert_eq!(Prefix::new("web", 0, 3, true).line, b"\x1b[36mweb |\x1b[0m ");
    }

    #[test]
    fn what_is_dropped_is_counted() {
        let mut standard = standard(false, &["web"]);
        standard.out.bytes = vec![b'x'; FULL];
        standard.take(&batch(1, b"a\nb\nc"), 0);
        assert_eq!(standard.units[1].dropped, 3);
        standard.out.clear();
        standard.report_dropped();
        assert_eq!(
            String::from_utf8_lossy(&standard.out.bytes),
            "web | kitbag: 3 lines were dropped here: nobody read them in time\n"
        );
    }

    #[test]
    fn a_failure_says_what_is_lost_by_it() {
        let mut standard = standard(false, &[]);
        for (carries, said) in [
            (
                Carries::All,
                "standard output cannot be written (No space left on device) for now; what services print is discarded",
            ),
            (
                Carries::Copies,
                "standard output cannot be written (No space left on device) for now; what services print is in their files alone",
            ),
            (
                Carries::Own,
                "supervisor.log cannot be written (No space left on device) for now; what services print has files of its own, and what the supervisor says, too",
            ),
        ] {
            standard.carries = carries;
            standard.tell(Trouble::Failing(Errno::ENOSPC));
            assert_eq!(standard.news().as_deref(), Some(said));
        }
    }

    #[test]
    fn json_lines_have_the_name() {
        let mut standard = standard(true, &["web"]);
        standard.take(&batch(1, b"a\n"), 0);
        let value: serde_json::Value = serde_json::from_slice(&standard.out.bytes).expect("JSON");
        assert_eq!(value["service"], "web");
    }
}
