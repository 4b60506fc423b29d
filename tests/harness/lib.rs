//! The harness of the black-box suite: an [`App`] is packed by the real `kitbag` to a [`Bundle`], which is started
//! in a [`Sandbox`] of its own. Everything is waited for with a deadline, and everything that was started or made
//! is gone when its guard is dropped.

mod app;
mod command;
mod files;
mod needs;
pub mod page;
mod places;
mod programs;
mod running;
mod sandbox;

pub use app::App;
pub use command::{Cmd, Outcome, eventually};
pub use files::{Folder, Tmpfs, disk_usage, same_tree, snapshot};
pub use needs::{is_root, mounts, root, tools, unmet};
pub use places::{Place, Site, kept};
pub use programs::{built, fixtures, guestbook, hello, helper, kitbag, workspace};
pub use running::Running;
pub use sandbox::{Bundle, Sandbox, copy};
