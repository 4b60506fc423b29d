//! The first instructions of every bundle: a tool's later start, before libc.
#![no_std]
