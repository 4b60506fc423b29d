//! The closure of programs: every file that they need in order to start, found as their loader would find it, and the
//! changes that make them find it in a bundle. See `docs/closure.md`.
//!
//! [`facts`] reads one file, [`root`] and [`tree`] look things up, [`search`] knows where a loader looks, `process`
//! fills one process as the loader does, [`resolve`](mod@resolve) does that for all that goes into a bundle.

mod bytes;
mod closure;
pub mod facts;
pub mod ldconf;
mod lookup;
mod placing;
mod process;
mod replay;
pub mod resolve;
pub mod rewrite;
pub mod root;
pub mod search;
pub mod tree;

pub use facts::{ElfError, Facts};
pub use placing::FOLDER;
pub use resolve::{Closure, Input, Member, resolve};
pub use root::Root;
