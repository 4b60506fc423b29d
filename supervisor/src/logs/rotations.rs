//! Hears of rotations, by inotify(7): each has its event, even if its file is gone again when the event is taken.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};

use super::archive;
use super::format::Micros;
use crate::sys::Errno;

/// What was heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// This unit has a file that was rotated at this time.
    Rotated(usize, Micros),
    /// Nothing more is heard of this unit: its folder is gone.
    Gone(usize),
    /// More has happened than was noted, to whichever unit.
    Lost,
}

/// The ear. Without inotify (each user has a limited number) it is deaf.
#[derive(Debug, Default)]
pub struct Rotations {
    inotify: Option<Inotify>,
    watched: Vec<(WatchDescriptor, usize)>,
}

impl Rotations {
    /// One that watches nothing yet.
    pub fn new() -> Self {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).ok();
        Self { inotify, watched: Vec::new() }
    }

    /// Hears of this unit's rotations from now on; true if so.
    pub fn watch(&mut self, unit: usize, folder: &Path) -> bool {
        let Some(inotify) = &self.inotify else { return false };
        let flags = AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_ONLYDIR;
        let watched = inotify.add_watch(folder, flags).map(|descriptor| {
            // The kernel's number for a folder that is watched already is the same.
            self.watched.retain(|(known, other)| *known != descriptor && *other != unit);
            self.watched.push((descriptor, unit));
        });
        watched.is_ok()
    }

    /// Wakes [`Self::wait`] when another unit gets its folder in this one.
    pub fn watch_units(&self, folder: &Path) {
        if let Some(inotify) = &self.inotify {
            let _ = inotify.add_watch(folder, AddWatchFlags::IN_CREATE | AddWatchFlags::IN_ONLYDIR);
        }
    }

    /// What has happened since, in order.
    pub fn take(&mut self) -> Vec<News> {
        let mut news = Vec::new();
        loop {
            let events = match self.inotify.as_ref().map(Inotify::read_events) {
                Some(Ok(events)) if !events.is_empty() => events,
                Some(Err(Errno::EINTR)) => continue,
                _ => return news,
            };
            for event in events {
                if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                    news.push(News::Lost);
                }
                let Some((_, unit)) = self.watched.iter().find(|(known, _)| *known == event.wd) else {
                    continue;
                };
                if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                    news.push(News::Gone(*unit));
                    self.watched.retain(|(known, _)| *known != event.wd);
                } else if let Some(time) = event.name.as_deref().and_then(archive::rotated_at) {
                    news.push(News::Rotated(*unit, time));
                }
            }
        }
    }

    /// Waits until there is something to take, or so long.
    ///
    /// # Errors
    /// Those of poll(2).
    pub fn wait(&self, time: Duration) -> io::Result<()> {
        let Some(inotify) = &self.inotify else {
            std::thread::sleep(time);
            return Ok(());
        };
        let timeout = PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)], timeout) {
            Err(errno) if errno != Errno::EINTR => Err(errno.into()),
            _ => Ok(()),
        }
    }
}
