//! What units print, from their pipes to where it is kept, and what the supervisor says; in bounded memory.
//!
//! A unit's pipes outlive its processes, so no line is lost over a restart, and a grandchild that still holds one
//! keeps nobody waiting. All units share one buffer: what was read is cut into lines and handed to each [`Sink`]
//! before the next read. Between reads a unit has at most the beginning of a line, and all together have no more
//! than [`HELD`].
//!
//! Where a destination is slower than the units, the policy is *block* or *drop* ([`WhenSlow`]). With *block* no pipe
//! is read until it has caught up, and a unit that prints more waits; with *drop* lines are counted instead, and the
//! count is written. The supervisor's own sentences go to standard error and never wait: those that do not fit are
//! counted, and the count is said. A destination that fails stops no unit.

pub mod archive;
pub mod files;
pub mod format;
pub mod lines;
pub mod own;
pub mod reader;
pub mod rotations;
pub mod sink;
pub mod standard;

use std::io::IsTerminal;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

pub use kitbag_format::service::{LogFormat, WhenSlow};
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use self::files::Files;
use self::lines::{Batch, LONGEST_LINE, Partial, Stream, cut};
use self::own::Own;
use self::sink::Sink;
use self::standard::{Carries, Standard};
use crate::state::Ms;
use crate::sys::fd::{self, Target};
use crate::sys::{Errno, Pid};

/// The name that the supervisor's own sentences have in log files. No service's begins with `_`.
pub const OWN_NAME: &str = "_kitbag";
/// A line without an end is passed on after this time.
pub const PARTIAL_AFTER: Ms = 2_000;
/// Beginnings of lines that are kept, of all units together.
const HELD: usize = 2 << 20;
/// Bytes read at a time.
const READ: usize = 256 * 1024;
/// Bytes read before other events get their turn.
const TURN: usize = 1 << 20;
/// Ready pipes taken at a time.
const READY: usize = 64;
/// A pipe that was found half full gets this size, which saves its writer and us many changes of turns…
const LARGE_PIPE: i32 = 1 << 20;
/// …while there are not more than so many: what all pipes of a user may hold is limited (pipe(7)).
const LARGE_PIPES: usize = 16;
/// The size that pipes have.
const PIPE: usize = 64 * 1024;
/// An ended unit's pipes are read so often before its end is told.
const DRAIN: usize = 32;
/// The supervisor's number as a sink's unit; the loop's units come after it.
const OWN: usize = 0;

/// What becomes of the lines.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Units' lines do not go to standard output.
    pub quiet: bool,
    /// On standard output lines are JSON objects.
    pub json: bool,
    /// What happens where standard output is slower than the units.
    pub when_slow: WhenSlow,
    /// Lines go to files as well.
    pub files: Option<files::Settings>,
    /// In the background: the file that standard output and error are, and how many bytes are enough for it.
    pub own: Option<(PathBuf, u64)>,
}

impl Settings {
    /// What a manifest says. Files go to `folder`, the manifest's with its template filled in or the default one; with
    /// `None` there are none. In the foreground lines are shown as well, as JSON if that is the format and nobody
    /// reads them on a terminal.
    pub fn of(logs: &kitbag_format::service::Logs, folder: Option<PathBuf>, is_foreground: bool) -> Self {
        let files = folder.map(|folder| files::Settings {
            folder,
            state: None,
            guarded: false,
            format: logs.format,
            max_size: logs.max_size,
            max_age: logs.max_age_ms,
            keep: logs.keep as usize,
            compress: logs.compress,
        });
        Self {
            quiet: !is_foreground && files.is_some(),
            json: logs.format == LogFormat::Json && !std::io::stdout().is_terminal(),
            when_slow: logs.when_slow,
            files,
            own: None,
        }
    }
}

/// One of a unit's outputs.
#[derive(Debug)]
struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    partial: Partial,
    /// What is left in it of runs that have ended, in bytes of each, the oldest first: after those its last line is
    /// complete, and what follows is the next one's.
    ends: Vec<usize>,
    is_large: bool,
}

impl Pipe {
    fn new(read: OwnedFd, write: OwnedFd) -> Self {
        Self { read, write, partial: Partial::default(), ends: Vec::new(), is_large: false }
    }

    /// How much it can hold.
    const fn size(&self) -> usize {
        if self.is_large { LARGE_PIPE as usize } else { PIPE }
    }
}

/// What is polled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Prints,
    /// Standard error takes more.
    Own,
    /// A sink does.
    Sink(usize),
}

impl Source {
    const fn token(self) -> u64 {
        match self {
            Self::Prints => 0,
            Self::Own => 1,
            Self::Sink(number) => 2 + number as u64,
        }
    }
}

/// All pipes and all destinations.
#[derive(Debug)]
pub struct Logs {
    events: Epoll,
    /// The read ends of all pipes, apart: not reading them is taking this one out of `events`.
    prints: Epoll,
    prints_wanted: bool,
    standard: Standard,
    /// Standard output is the first of the sinks, and somebody may see it.
    is_shown: bool,
    sinks: Vec<Box<dyn Sink>>,
    /// What is polled for writing.
    polled: Vec<Source>,
    units: Vec<Option<[Option<Pipe>; 2]>>,
    /// [`LONGEST_LINE`] bytes for the beginning of a line, before those of a read.
    buffer: Vec<u8>,
    held: usize,
    /// When the oldest beginning of a line is passed on; earlier than it is, perhaps.
    partial_at: Option<Ms>,
    large_pipes: usize,
    now: Ms,
}

impl Logs {
    /// Standard output and error as they were inherited, and what `settings` asks for.
    pub fn new(settings: Settings) -> Result<Self, Errno> {
        let logs_own = settings.quiet;
        let epoll = || Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC);
        let (events, prints) = (epoll()?, epoll()?);
        events.add(&prints.0, EpollEvent::new(EpollFlags::EPOLLIN, Source::Prints.token()))?;
        let mut logs = Self {
            events,
            prints,
            prints_wanted: true,
            standard: Standard::new(
                settings.json,
                settings.when_slow,
                settings.own.map(|(path, full)| Own::new(path, full)),
            ),
            is_shown: !settings.quiet && !fd::is_nothing(fd::stdout()),
            sinks: Vec::new(),
            polled: Vec::new(),
            units: Vec::new(),
            buffer: vec![0; LONGEST_LINE + READ],
            held: 0,
            partial_at: None,
            large_pipes: 0,
            now: 0,
        };
        if let Some(settings) = settings.files {
            logs.standard.carries = if logs_own { Carries::Own } else { Carries::Copies };
            logs.add_sink(Box::new(Files::new(settings)));
        }
        Ok(logs)
    }

    /// Adds a destination; before the first unit.
    pub fn add_sink(&mut self, mut sink: Box<dyn Sink>) {
        sink.add(OWN, OWN_NAME);
        self.sinks.push(sink);
    }

    /// What is ready when [`Logs::serve`] has something to do.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.events.0.as_fd()
    }

    /// When [`Logs::serve`] is to be called if nothing else happens.
    pub fn deadline(&self) -> Option<Ms> {
        let sinks = self.sinks.iter().filter_map(|sink| sink.deadline());
        sinks.chain(self.partial_at).min()
    }

    // --- Units ---

    /// The unit of this number, the loop's own, is called so from now on.
    pub fn add_unit(&mut self, unit: usize, name: &str) {
        if self.units.len() <= unit {
            self.units.resize_with(unit + 1, || None);
        }
        if self.units[unit].is_none() {
            self.units[unit] = Some([None, None]);
        }
        self.all_sinks(|sink| sink.add(unit + 1, name));
    }

    /// The unit is no more. What it has left in its pipes is written; who still holds them gets EPIPE.
    pub fn remove_unit(&mut self, unit: usize, now: Ms) {
        self.now = now;
        for stream in Stream::BOTH {
            self.note_end(unit, stream);
            let mut left = self.pipe(unit, stream).map_or(0, |pipe| pipe.size());
            // Also where a destination is full: it is the last that it has to hold of this one.
            while left > 0 {
                let read = self.pull(unit, stream, now);
                left = if read == 0 { 0 } else { left.saturating_sub(read) };
                self.flush(now);
            }
            self.finish(unit, stream, false);
        }
        if let Some(pipes) = self.units.get_mut(unit).and_then(Option::take) {
            for pipe in pipes.iter().flatten() {
                // Before it is closed: a child forked meanwhile may hold the same pipe, and keep it in the poll set.
                let _ = self.prints.delete(&pipe.read);
                self.large_pipes -= usize::from(pipe.is_large);
            }
            self.all_sinks(|sink| sink.remove(unit + 1, now));
        }
    }

    /// The ends of a unit's pipes that its processes write to: standard output, standard error. Made at the first
    /// call. They are close-on-exec.
    pub fn open(&mut self, unit: usize) -> Result<[BorrowedFd<'_>; 2], Errno> {
        let pipes = self.units.get_mut(unit).and_then(Option::as_mut).ok_or(Errno::ENOENT)?;
        for (which, place) in pipes.iter_mut().enumerate() {
            if place.is_none() {
                let (read, write) = fd::pipe()?;
                self.prints.add(&read, EpollEvent::new(EpollFlags::EPOLLIN, (unit * 2 + which) as u64))?;
                *place = Some(Pipe::new(read, write));
            }
        }
        match pipes {
            [Some(out), Some(err)] => Ok([out.write.as_fd(), err.write.as_fd()]),
            _ => Err(Errno::EMFILE),
        }
    }

    /// The numbers of a unit's pipes, for standard output and standard error: where it is read, and where its processes
    /// write.
    pub fn descriptors(&self, unit: usize) -> [Option<[i32; 2]>; 2] {
        let numbers = |pipe: &Pipe| [pipe.read.as_raw_fd(), pipe.write.as_raw_fd()];
        let pipes = self.units.get(unit).and_then(Option::as_ref);
        pipes.map_or([None; 2], |pipes| pipes.each_ref().map(|pipe| pipe.as_ref().map(numbers)))
    }

    /// A unit's process has ended: reads what it has left in its pipes, before its end is told. What does not fit now,
    /// or is still being written by others, comes later.
    pub fn ended(&mut self, unit: usize, now: Ms) {
        self.now = now;
        for stream in Stream::BOTH {
            self.note_end(unit, stream);
            for _ in 0..DRAIN {
                if self.is_full() || self.pull(unit, stream, now) == 0 {
                    break;
                }
                self.flush(now);
            }
        }
    }

    /// A run ends with what is in its pipe now.
    fn note_end(&mut self, unit: usize, stream: Stream) {
        let Some(pipe) = self.pipe(unit, stream) else { return };
        let unread = fd::unread(pipe.read.as_fd());
        let of_run = unread.saturating_sub(pipe.ends.iter().sum());
        if unread == 0 {
            pipe.ends.clear();
            self.finish(unit, stream, false);
        } else if of_run > 0 {
            pipe.ends.push(of_run);
        }
    }

    // --- Reading and writing ---

    /// Reads from units that have printed something, in turn, and writes; never waits. True if a destination that
    /// had a backlog took some of it.
    pub fn serve(&mut self, now: Ms) -> bool {
        self.now = now;
        self.read(now);
        if self.partial_at.is_some_and(|at| at <= now) {
            self.pass_partials_on(now);
        }
        self.flush(now)
    }

    /// Each ready pipe once, until the turn is over; epoll(7) begins with another one next time.
    fn read(&mut self, now: Ms) {
        let mut ready = [EpollEvent::empty(); READY];
        let count = self.prints.wait(&mut ready, EpollTimeout::ZERO).unwrap_or(0);
        let mut read = 0;
        for event in ready.iter().take(count) {
            if self.is_full() || read >= TURN {
                return;
            }
            let token = usize::try_from(event.data()).unwrap_or(usize::MAX);
            read += self.pull(token / 2, Stream::BOTH[token % 2], now);
        }
    }

    /// Reads once from one of a unit's outputs, of one run, and hands it on; how many bytes.
    fn pull(&mut self, unit: usize, stream: Stream, now: Ms) -> usize {
        let mut buffer = std::mem::take(&mut self.buffer);
        let read = self.read_pipe(unit, stream, &mut buffer);
        if let Some((from, to)) = read {
            self.hand_on(unit, stream, &buffer[from..to], now);
        }
        self.buffer = buffer;
        if let Some(pipe) = self.pipe(unit, stream)
            && pipe.ends.first() == Some(&0)
        {
            pipe.ends.remove(0);
            self.finish(unit, stream, false);
        }
        read.map_or(0, |(_, to)| to - LONGEST_LINE)
    }

    /// Puts what a pipe holds into the buffer, behind the line that it goes on with; from where to where.
    fn read_pipe(&mut self, unit: usize, stream: Stream, buffer: &mut [u8]) -> Option<(usize, usize)> {
        let (large_pipes, now) = (self.large_pipes, self.now);
        let pipe = self.pipe(unit, stream)?;
        let most = pipe.ends.first().map_or(READ, |left| READ.min(*left));
        let place = &mut buffer[LONGEST_LINE..][..most];
        let Ok(Some(length @ 1..)) = fd::read(pipe.read.as_fd(), place) else { return None };
        if let Some(left) = pipe.ends.first_mut() {
            *left -= length;
        }
        let partial = std::mem::take(&mut pipe.partial.bytes);
        if partial.is_empty() {
            pipe.partial.since = now;
        }
        let from = LONGEST_LINE - partial.len();
        buffer[from..LONGEST_LINE].copy_from_slice(&partial);
        // A pipe counts pages, and a write seldom fills its last one: few bytes may be a full pipe.
        let grown = length >= PIPE / 2 && !pipe.is_large && large_pipes < LARGE_PIPES;
        if grown {
            // Where it is not allowed, it goes on as it is.
            pipe.is_large = fcntl(&pipe.read, FcntlArg::F_SETPIPE_SZ(LARGE_PIPE)).is_ok();
        }
        let grew = grown && pipe.is_large;
        self.large_pipes += usize::from(grew);
        self.held -= partial.len();
        Some((from, LONGEST_LINE + length))
    }

    /// Cuts what was read into lines, and keeps the beginning of the last one.
    fn hand_on(&mut self, unit: usize, stream: Stream, bytes: &[u8], now: Ms) {
        let time = format::wall_clock();
        let Some(pipe) = self.pipe(unit, stream) else { return };
        let mut continued = pipe.partial.continued;
        let left = cut(bytes, &mut continued, |bytes, continued| {
            self.take(&Batch { unit: unit + 1, stream, time, bytes, continued });
        });
        let Some(pipe) = self.pipe(unit, stream) else { return };
        // One that goes on growing waits for no longer than any other.
        let since = if left.len() == bytes.len() { pipe.partial.since } else { now };
        pipe.partial = Partial { bytes: left.to_vec(), continued, since };
        self.held += left.len();
        if self.held > HELD {
            self.finish(unit, stream, true);
        } else if !left.is_empty() {
            let at = since + PARTIAL_AFTER;
            self.partial_at = Some(self.partial_at.map_or(at, |earlier| earlier.min(at)));
        }
    }

    /// Hands on the beginning of a line that a stream has printed. The rest may follow.
    fn finish(&mut self, unit: usize, stream: Stream, may_go_on: bool) {
        let Some(pipe) = self.pipe(unit, stream) else { return };
        let Partial { bytes, continued, .. } = std::mem::take(&mut pipe.partial);
        pipe.partial.continued = may_go_on && (continued || !bytes.is_empty());
        self.held -= bytes.len();
        if !bytes.is_empty() {
            self.take(&Batch {
                unit: unit + 1,
                stream,
                time: format::wall_clock(),
                bytes: &bytes,
                continued,
            });
        }
    }

    fn pass_partials_on(&mut self, now: Ms) {
        self.partial_at = None;
        for unit in 0..self.units.len() {
            for stream in Stream::BOTH {
                let Some(partial) = self.pipe(unit, stream).map(|pipe| &pipe.partial) else { continue };
                let at = partial.since + PARTIAL_AFTER;
                if partial.bytes.is_empty() {
                    continue;
                } else if at <= now {
                    self.finish(unit, stream, true);
                } else {
                    self.partial_at = Some(self.partial_at.map_or(at, |earlier| earlier.min(at)));
                }
            }
        }
    }

    fn take(&mut self, batch: &Batch<'_>) {
        let now = self.now;
        self.all_sinks(|sink| sink.take(batch, now));
    }

    /// Writes what the destinations take; true if one took some of a backlog.
    pub fn flush(&mut self, now: Ms) -> bool {
        self.now = now;
        let mut progress = self.standard.flush(now);
        for sink in &mut self.sinks {
            progress |= sink.flush(now);
        }
        while let Some(news) = self.news() {
            self.say(&news);
            self.standard.flush(now);
        }
        self.poll();
        progress
    }

    fn news(&mut self) -> Option<String> {
        self.standard.news().or_else(|| self.sinks.iter_mut().find_map(|sink| sink.news()))
    }

    /// Decides what to wait for next.
    fn poll(&mut self) {
        let wanted = !self.is_full();
        if wanted != self.prints_wanted {
            let event = EpollEvent::new(EpollFlags::EPOLLIN, Source::Prints.token());
            let done = if wanted {
                self.events.add(&self.prints.0, event)
            } else {
                self.events.delete(&self.prints.0)
            };
            if done.is_ok() {
                self.prints_wanted = wanted;
            }
        }
        let mut polled = std::mem::take(&mut self.polled);
        let mut want = |source, target: Option<BorrowedFd<'_>>, wanted| {
            let (Some(target), is_polled) = (target, polled.contains(&source)) else { return };
            // A file that cannot be polled never leaves anything to wait for.
            if wanted && !is_polled {
                let event = EpollEvent::new(EpollFlags::EPOLLOUT, source.token());
                if self.events.add(target, event).is_ok() {
                    polled.push(source);
                }
            } else if !wanted && is_polled && self.events.delete(target).is_ok() {
                polled.retain(|other| *other != source);
            }
        };
        want(Source::Own, self.standard.pollable_for_own(), !self.standard.has_said_all());
        want(Source::Sink(0), self.standard.pollable(), self.standard.backlog() > 0);
        for (number, sink) in self.sinks.iter().enumerate() {
            want(Source::Sink(number + 1), sink.pollable(), sink.backlog() > 0);
        }
        self.polled = polled;
    }

    /// True if pipes are not to be read.
    fn is_full(&self) -> bool {
        (self.is_shown && self.standard.is_full()) || self.sinks.iter().any(|sink| sink.is_full())
    }

    /// True if nothing is left in any pipe and nothing waits to be written. To be asked when nobody prints any more:
    /// what has no newline is complete then.
    pub fn drained(&mut self, now: Ms) -> bool {
        let mut ready = [EpollEvent::empty(); 1];
        if self.prints.wait(&mut ready, EpollTimeout::ZERO).unwrap_or(0) > 0 {
            return false;
        }
        for unit in 0..self.units.len() {
            for stream in Stream::BOTH {
                self.finish(unit, stream, false);
            }
        }
        self.flush(now);
        self.standard.backlog() == 0
            && self.standard.has_said_all()
            && self.sinks.iter().all(|sink| sink.backlog() == 0)
    }

    // --- The supervisor's own ---

    /// Says a sentence of the supervisor's own: on standard error, and in every sink.
    pub fn say(&mut self, sentence: &str) {
        self.standard.say(sentence);
        self.note(sentence);
    }

    /// The last sentence that was said in the files, by whichever supervisor; `None` if there is none.
    pub fn last_noted(&self) -> Option<String> {
        self.sinks.iter().find_map(|sink| sink.last_own())
    }

    /// The same in every sink alone: for who reads what happened, not for who looks on.
    pub fn note(&mut self, sentence: &str) {
        let (time, now) = (format::wall_clock(), self.now);
        let batch =
            Batch { unit: OWN, stream: Stream::Err, time, bytes: sentence.as_bytes(), continued: false };
        for sink in &mut self.sinks {
            sink.take(&batch, now);
        }
    }

    /// The child processes that work for sinks: no service's, and nothing to wait for at the end.
    pub fn children(&self) -> impl Iterator<Item = Pid> {
        self.sinks.iter().filter_map(|sink| sink.child())
    }

    /// A child has ended, well or not; true if it was one of [`Logs::children`].
    pub fn child_ended(&mut self, pid: Pid, well: bool, now: Ms) -> bool {
        self.sinks.iter_mut().any(|sink| sink.child_ended(pid, well, now))
    }

    fn all_sinks(&mut self, mut each: impl FnMut(&mut dyn Sink)) {
        if self.is_shown {
            each(&mut self.standard);
        }
        for sink in &mut self.sinks {
            each(&mut **sink);
        }
    }

    fn pipe(&mut self, unit: usize, stream: Stream) -> Option<&mut Pipe> {
        self.units.get_mut(unit)?.as_mut()?[stream as usize].as_mut()
    }
}

/// Says a sentence of the supervisor's own where there are no [`Logs`] yet, as far as standard error takes it now.
pub fn fail(sentence: &str) {
    let _ = Target::inherited(2).write(format!("kitbag: {sentence}\n").as_bytes());
}
