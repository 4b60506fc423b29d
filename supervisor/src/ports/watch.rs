//! Hears of changes in folders, by inotify(7).

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};

use crate::sys::Errno;

/// A watch of folders, which need not be there yet.
#[derive(Debug)]
pub struct Watch {
    inotify: Inotify,
    folders: Vec<PathBuf>,
    watched: HashMap<WatchDescriptor, PathBuf>,
}

impl Watch {
    /// Watches these.
    ///
    /// # Errors
    /// Those of inotify_init1(2): too many of this user's, for one.
    pub fn new<'a>(folders: impl Iterator<Item = &'a Path>) -> Result<Self, Errno> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let mut watch =
            Self { inotify, folders: folders.map(Path::to_owned).collect(), watched: HashMap::new() };
        watch.add();
        Ok(watch)
    }

    /// Takes what has happened; true if a file has come, changed or gone, so that it is worth to look again. A file whose
    /// writer has died counts as one that changed; its lock may be there for another moment.
    pub fn changed(&mut self) -> bool {
        let mut changed = false;
        loop {
            let events = match self.inotify.read_events() {
                Ok(events) if !events.is_empty() => events,
                Err(Errno::EINTR) => continue,
                _ => break,
            };
            for event in events {
                let Some(at) = self.watched.get(&event.wd) else { continue };
                let in_folder = self.folders.contains(at);
                let named = || event.name.as_ref().map(|name| at.join(name));
                let leads =
                    || named().is_some_and(|path| self.folders.iter().any(|it| it.starts_with(&path)));
                let hidden =
                    event.name.as_ref().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
                changed |= if in_folder { !hidden } else { leads() };
                if event.mask.intersects(AddWatchFlags::IN_IGNORED) {
                    self.watched.remove(&event.wd);
                }
            }
        }
        self.add();
        changed
    }

    /// Watches the folders, or the nearest ones above those that are not there.
    fn add(&mut self) {
        let files = AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF;
        let above = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_DELETE_SELF;
        let mut needed = Vec::new();
        for folder in &self.folders {
            for path in folder.ancestors() {
                let wanted = if path == folder { files } else { above };
                let flags = wanted | AddWatchFlags::IN_ONLYDIR;
                if let Ok(descriptor) = self.inotify.add_watch(path, flags) {
                    needed.push((descriptor, path.to_owned()));
                    break;
                }
            }
        }
        self.watched.retain(|descriptor, _| {
            let keep = needed.iter().any(|(needed, _)| needed == descriptor);
            if !keep {
                let _ = self.inotify.rm_watch(*descriptor);
            }
            keep
        });
        self.watched.extend(needed);
    }
}

impl AsFd for Watch {
    /// Ready to be read when [`Self::changed`] has something to take.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}
