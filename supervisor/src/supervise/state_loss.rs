//! A state folder that somebody has removed, or put another one in the place of, while its bundle runs.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::Supervisor;
use crate::state_folder;

/// What tells a folder from another one of its name: its file system, and its number there.
pub type Identity = (u64, u64);

/// That of the folder at `path`; `None` if there is none.
pub fn identity(path: &Path) -> Option<Identity> {
    fs::metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

impl Supervisor {
    /// Before something is written there: says it, once, if the state folder is not the one that this began with. One that
    /// is gone is made again, so that what comes next can be written.
    pub(super) fn look_at_state(&mut self) {
        let now = identity(&self.state_folder);
        if self.state_identity.is_none() || now == self.state_identity {
            return;
        }
        self.state_identity = None;
        let what = if now.is_some() { "is another one now" } else { "is gone" };
        let made = state_folder::make_again(&self.state_folder);
        let lost =
            made.map_or_else(|error| format!("{error}"), |()| "it goes on with an empty one".to_owned());
        self.logs.say(&format!(
            "the state folder {} {what}, removed while this runs, as process {}: {lost}; no command finds this any more: \
             end it with `kill`, and start it again",
            self.state_folder.display(),
            std::process::id()
        ));
    }
}
