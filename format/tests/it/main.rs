//! The format from outside: a small bundle made here, and every way to spoil one.

mod bundle;
mod extract;
mod head;
mod index;
mod manifest;
mod pinned;
mod slots;
mod spoiled;
