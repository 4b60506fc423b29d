//! What a bundle is: one static ELF executable whose extra sections hold a manifest, an index and a
//! payload. `docs/format.md` specifies the bytes; this crate writes and reads them, for the bundler and
//! the supervisor alike. It never trusts a length it has not bounded, and it never panics on hostile bytes.

pub mod cron;
pub mod digest;
pub mod elf;
pub mod error;
pub mod exit;
pub mod extract;
pub mod index;
pub mod json;
pub mod layout;
pub mod manifest;
pub mod parallel;
pub mod port;
pub mod reader;
pub mod report;
pub mod service;
pub mod slots;
pub mod sort;
pub mod template;
pub mod writer;

pub use digest::Digest;
pub use error::Error;
pub use index::Index;
pub use manifest::Manifest;
pub use reader::Bundle;
