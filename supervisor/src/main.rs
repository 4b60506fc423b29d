//! The runtime that every bundle starts with.

#[allow(dead_code)] // Written by a tool's full start, which comes next.
mod start_record;

/// Links the entry point in.
use kitbag_entry as _;

fn main() {}
