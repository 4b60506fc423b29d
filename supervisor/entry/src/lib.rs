//! The first instructions of every bundle: a tool's later start, before libc.
//!
//! The runtime is linked with `kitbag_entry` as its entry point (see `supervisor/build.rs`). Where the
//! bundle is a tool that was unpacked before and nothing has changed since, the program is executed within
//! a dozen system calls. In every other case, the unusual and the broken alike, [`early`] just returns and
//! libc's `_start` begins the ordinary runtime, which checks everything and explains what it finds.
//!
//! | file      | holds                                                                     |
//! |-----------|---------------------------------------------------------------------------|
//! | head.rs   | the bundle's head, an ELF note inside the runtime                         |
//! | record.rs | the start record: what the last full start found out, its layout          |
//! | image.rs  | record + caller's arguments and environment -> what execve takes; pure    |
//! | early.rs  | the entry point and the one procedure that joins them                     |
//! | sys.rs    | raw system calls                                                          |
//!
//! Invariant: at this point the file has not relocated itself. There are no vtables, no statics that hold
//! addresses, and no `memcpy`, `memcmp` or `strlen` (glibc's are reached through relocated pointers): hence
//! `no_builtins`, loops in place of slice comparison, and no code that could panic. What other crates can
//! reach is called through such pointers even from here, so all of it is `inline(always)`. The test
//! `supervisor/tests/later_start.rs` walks the machine code and holds this crate to it.
//!
//! On other architectures than x86-64 only [`head`] and [`record`] exist, and every start is a full one.
#![cfg_attr(not(test), no_std)]
#![no_builtins]

#[cfg(all(target_arch = "x86_64", target_os = "linux", target_pointer_width = "64"))]
mod early;
pub mod head;
pub mod image;
pub mod record;
#[cfg(all(target_arch = "x86_64", target_os = "linux", target_pointer_width = "64"))]
mod sys;

pub use head::{head, is_tool};

/// True where `a` and `b` hold the same bytes. Slice comparison would call libc's `memcmp`.
#[inline(always)]
pub(crate) fn equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a == b)
}
