//! The static runtime that every bundle starts with, as a library, so that its parts can be tested.

pub mod collect;
pub mod heal;
pub mod owned;
pub mod parallel;
pub mod place;
pub mod record;
pub mod share;
pub mod state_folder;
pub mod store;
pub mod unpack;
