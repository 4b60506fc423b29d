//! Exit codes of `kitbag` and of a bundle's own commands. A tool bundle's exit status is its program's.

/// Done.
pub const OK: u8 = 0;
/// It did not work; the message says why.
pub const FAILURE: u8 = 1;
/// The command line is wrong.
pub const USAGE: u8 = 2;
/// `kitbag.toml`, or what it names, is wrong. Nothing was written.
pub const MANIFEST: u8 = 3;
/// The file is not a bundle, or it is damaged.
pub const DAMAGED: u8 = 4;
/// No folder can be used to unpack in, or for state, or the disk is full.
pub const NO_PLACE: u8 = 5;
/// The bundle is running already.
pub const RUNNING: u8 = 6;
/// A service ended and its restart policy does not start it again, with failure.
pub const SERVICE_FAILED: u8 = 7;
/// `kitbag audit`: the bundle asks more of a host than it may.
pub const AUDIT: u8 = 8;
/// The bundle is not running: there is nobody to ask.
pub const NOT_RUNNING: u8 = 9;
/// It runs, and is not ready; or a time that was given was over before what was waited for had come.
pub const NOT_READY: u8 = 10;
/// A tool bundle's program could not be started.
pub const NOT_STARTED: u8 = 125;
