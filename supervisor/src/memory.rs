//! A tool that is one static program, started from memory where no folder allows exec.

use std::os::fd::AsRawFd;
use std::path::PathBuf;

use kitbag_format::index::Kind;
use kitbag_format::manifest::Command;
use kitbag_format::{Bundle, Error};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::expand;

/// Puts the program into a file in memory. `None` where the bundle holds more than the program, the program
/// needs an interpreter, or the command needs a tree or a state folder. The path is one through /proc.
pub fn program(bundle: &Bundle, command: &Command) -> Result<Option<PathBuf>, Error> {
    let index = bundle.index()?;
    let mut files = index.entries.iter().enumerate().filter(|(_, entry)| entry.kind != Kind::Dir);
    let alone = match (files.next(), files.next()) {
        (Some((number, _)), None) => number,
        _ => return Ok(None),
    };
    if expand::uses_state(command) || expand::uses_tree(command) {
        return Ok(None);
    }
    let contents = kitbag_format::extract::contents(bundle, &index, alone)?;
    if kitbag_format::elf::needs_interpreter(&contents) {
        return Ok(None);
    }
    let name = c"kitbag";
    // Kernels before 6.3 do not know MFD_EXEC, and have nothing to allow.
    let exec = MFdFlags::from_bits_retain(0x10);
    let file = memfd_create(name, MFdFlags::empty() | exec)
        .or_else(|_| memfd_create(name, MFdFlags::empty()))
        .map_err(|errno| Error::io("make a file in memory")(errno.into()))?;
    let mut file = std::fs::File::from(file);
    std::io::Write::write_all(&mut file, &contents).map_err(Error::io("write to memory"))?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    // Open until execve has read it; it closes by itself with the program, which inherits it once.
    std::mem::forget(file);
    Ok(Some(path))
}
