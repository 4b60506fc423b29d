//! What every destination of lines is to the rest.

use std::os::fd::BorrowedFd;

use super::lines::Batch;
use crate::state::Ms;
use crate::sys::Pid;

/// A destination of what units print.
///
/// No call waits. What a destination does not take at once it keeps, within bounds of its own: [`Sink::is_full`]
/// then asks for a pause, or it drops lines, counts them, and writes the count as soon as it can.
pub trait Sink: std::fmt::Debug {
    /// A unit of this number prints from now on.
    fn add(&mut self, unit: usize, name: &str);

    /// It does no more: what belongs to it is written and closed.
    fn remove(&mut self, unit: usize, now: Ms);

    /// Takes lines.
    fn take(&mut self, batch: &Batch<'_>, now: Ms);

    /// Writes what can be written now, and does what [`Sink::deadline`] has asked for; true if the
    /// destination took something that had waited.
    fn flush(&mut self, now: Ms) -> bool;

    /// Bytes that wait to be written.
    fn backlog(&self) -> usize {
        0
    }

    /// True if nothing more should be printed for now.
    fn is_full(&self) -> bool {
        false
    }

    /// What becomes ready, for writing, when a backlog can go on. The same descriptor for the sink's life.
    fn pollable(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// When [`Sink::flush`] is to be called if nothing else happens.
    fn deadline(&self) -> Option<Ms> {
        None
    }

    /// A sentence that the supervisor is to say, if there is one.
    fn news(&mut self) -> Option<String> {
        None
    }

    /// The last sentence of a supervisor's own that it holds, of whichever supervisor. May wait for a disk: for the
    /// beginning.
    fn last_own(&self) -> Option<String> {
        None
    }

    /// A child process that works for the sink.
    fn child(&self) -> Option<Pid> {
        None
    }

    /// This child has ended with this result; true if it was the sink's.
    fn child_ended(&mut self, _pid: Pid, _well: bool, _now: Ms) -> bool {
        false
    }
}
