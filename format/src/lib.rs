//! What a bundle is: one static ELF executable whose extra sections hold a manifest, an index and a
//! payload. `docs/format.md` specifies the bytes; this crate writes and reads them, for the bundler and
//! the supervisor alike. It never trusts a length it has not bounded, and it never panics on hostile bytes.

pub mod exit;
pub mod manifest;
pub mod template;
