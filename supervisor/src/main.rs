//! The runtime that every bundle starts with: open, unpack, start. A tool's later start has happened before
//! this, in `kitbag-entry`.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(kitbag_supervisor::commands::main())
}
