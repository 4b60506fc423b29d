//! What services print: from their pipes to the output, as far as that takes it.

use std::os::fd::{AsFd, OwnedFd};

use nix::sys::epoll::{EpollEvent, EpollFlags, EpollTimeout};

use crate::output::Lines;
use crate::state::{Phase, Turn};
use crate::sys::{Errno, fd};

use super::units::Id;
use super::{READY, Source, Supervisor, readable};

/// Bytes read from a service at a time.
const CHUNK: usize = 16 * 1024;

/// One of a unit's two outputs. The pipe outlives the process: no line is lost over a restart, and
/// a grandchild that still holds it keeps nobody waiting.
#[derive(Debug)]
pub struct Stream {
    read: OwnedFd,
    /// What the unit's processes get.
    pub write: OwnedFd,
    lines: Lines,
    /// The leader has ended: an empty pipe means that its last line is complete.
    ended: bool,
}

impl Supervisor {
    /// Makes the pipes for a unit's output, unless it has them.
    pub(super) fn open_streams(&mut self, id: Id) -> Result<(), Errno> {
        let unit = &mut self.units[id];
        while unit.streams.len() < 2 {
            let (read, write) = fd::pipe()?;
            self.prints.add(&read, readable((id * 2 + unit.streams.len()) as u64))?;
            unit.streams.push(Stream { read, write, lines: Lines::default(), ended: false });
        }
        Ok(())
    }

    /// Reads from each service that has printed something, in turn.
    pub(super) fn take_prints(&mut self) {
        let mut ready = [EpollEvent::empty(); READY];
        let count = self.prints.wait(&mut ready, EpollTimeout::ZERO).unwrap_or(0);
        for event in ready.iter().take(count) {
            if self.output.is_full() {
                return;
            }
            let token = usize::try_from(event.data()).unwrap_or(usize::MAX);
            self.read(token / 2, token % 2);
        }
    }

    /// Reads once from one of a service's outputs; true if there was something.
    pub(super) fn read(&mut self, index: usize, which: usize) -> bool {
        let Some(stream) = self.units.get_mut(index).and_then(|unit| unit.streams.get_mut(which)) else {
            return false;
        };
        let mut buffer = [0; CHUNK];
        if let Ok(Some(length @ 1..)) = fd::read(stream.read.as_fd(), &mut buffer) {
            self.output.print(index, &mut stream.lines, &buffer[..length]);
            return true;
        }
        if stream.ended {
            stream.ended = false;
            self.output.finish(index, &mut stream.lines);
        }
        false
    }

    /// Reads what an ended service has left in its pipes, before its end is told. What does not fit
    /// now, or is still being written by others, comes later.
    pub(super) fn drain(&mut self, index: usize) {
        for which in 0..self.units[index].streams.len() {
            self.units[index].streams[which].ended = true;
            while !self.output.is_full() && self.read(index, which) {}
        }
    }

    /// True if no output is left. Nobody writes any more: what has no newline is complete.
    pub(super) fn drained(&mut self) -> bool {
        let mut ready = [EpollEvent::empty(); 1];
        if self.prints.wait(&mut ready, EpollTimeout::ZERO).unwrap_or(0) > 0 {
            return false;
        }
        for (index, unit) in self.units.iter_mut().enumerate() {
            for stream in &mut unit.streams {
                self.output.finish(index, &mut stream.lines);
            }
        }
        self.write();
        self.output.is_empty() == [true; 2]
    }

    /// Writes what there is to write, and decides what to wait for next.
    pub(super) fn write(&mut self) {
        if self.output.flush(self.now()) && matches!(self.whole.phase, Phase::Draining { .. }) {
            self.turn(Turn::Progress);
        }
        let wanted = !self.output.is_full();
        if wanted != self.prints_wanted {
            let done = if wanted {
                self.events.add(&self.prints.0, readable(Source::Prints.token()))
            } else {
                self.events.delete(&self.prints.0)
            };
            if done.is_ok() {
                self.prints_wanted = wanted;
            }
        }
        let empty = self.output.is_empty();
        for (which, target) in self.output.pollable().into_iter().enumerate() {
            let (Some(target), wanted) = (target, !empty[which]) else { continue };
            if wanted != self.room_wanted[which] {
                // A file that cannot be polled never leaves anything to wait for.
                let writable = EpollEvent::new(EpollFlags::EPOLLOUT, Source::Room.token());
                let done =
                    if wanted { self.events.add(target, writable) } else { self.events.delete(target) };
                if done.is_ok() {
                    self.room_wanted[which] = wanted;
                }
            }
        }
    }
}
