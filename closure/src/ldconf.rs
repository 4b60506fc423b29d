//! `ld.so.conf` with its includes (ldconfig(8)), and musl's path file.
