//! The static runtime that every bundle starts with, as a library, so that its parts can be tested.

pub mod commands;
pub mod control;
pub mod endpoint;
pub mod expand;
pub mod late;
pub mod logs;
pub mod machine;
pub mod mark;
pub mod near;
pub mod notify;
pub mod open;
pub mod ports;
pub mod probe;
pub mod running;
pub mod sandbox;
pub mod service;
pub mod snapshot;
pub mod spawn;
pub mod state;
pub mod state_folder;
pub mod status;
pub mod store;
pub mod supervise;
pub mod sys;
pub mod time;
pub mod tool;
