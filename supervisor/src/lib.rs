//! The runtime that every bundle starts with.

pub mod output;
pub mod spawn;
pub mod state;
pub mod supervise;
pub mod sys;
