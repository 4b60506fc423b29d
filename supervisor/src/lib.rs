//! The static runtime that every bundle starts with, as a library, so that its parts can be tested.

pub mod closure;
pub mod collect;
pub mod commands;
pub mod expand;
pub mod heal;
pub mod memory;
pub mod open;
pub mod output;
pub mod owned;
pub mod place;
pub mod record;
pub mod service;
pub mod share;
pub mod spawn;
pub mod start_record;
pub mod state;
pub mod state_folder;
pub mod store;
pub mod supervise;
pub mod sys;
pub mod tool;
pub mod unpack;
