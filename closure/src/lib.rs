//! The closure of programs: every file that they need in order to start, found as their loader would find it, and the
//! changes that make them find it in a bundle. See `docs/closure.md`.

pub mod facts;
pub mod ldconf;
pub mod resolve;
pub mod rewrite;
pub mod root;
pub mod search;
