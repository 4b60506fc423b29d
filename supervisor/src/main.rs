//! The runtime that every bundle starts with: open, unpack, start. A tool's later start has happened before
//! this, in `kitbag-entry`.
//!
//! `main` is C's and not Rust's. Rust's start-up code would open /dev/null for a standard descriptor that is
//! closed, which a tool's program must find so, and abort where there is no /dev; it would ignore SIGPIPE, which
//! such a program must find as its caller left it too; and it brings 45 kB of glibc along.
#![no_main]
#![allow(unsafe_code, reason = "the symbol that libc calls")]

#[cfg(all(less_glibc, panic = "abort"))]
#[path = "sys/glibc.rs"]
mod glibc;
#[cfg(all(target_env = "gnu", panic = "abort"))]
#[path = "sys/unused.rs"]
mod unused;

use std::ffi::{CStr, OsStr, OsString, c_char, c_int};
use std::os::unix::ffi::OsStrExt;

/// What libc calls.
#[unsafe(no_mangle)]
extern "C" fn main(count: c_int, arguments: *const *const c_char) -> c_int {
    // Before any other file is opened. A tool's program finds closed what its caller has closed.
    kitbag_supervisor::sys::fd::fill_standard(kitbag_entry::is_tool());
    let argument = |number: c_int| -> OsString {
        // SAFETY: the C standard (5.1.2.2.1): `arguments` has `count` texts that end with a zero.
        let text = unsafe { CStr::from_ptr(*arguments.add(number as usize)) };
        OsStr::from_bytes(text.to_bytes()).to_owned()
    };
    c_int::from(kitbag_supervisor::commands::main((1..count).map(argument).collect()))
}
