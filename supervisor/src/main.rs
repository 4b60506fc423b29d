//! The runtime that every bundle starts with.
fn main() {}
