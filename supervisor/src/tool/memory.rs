//! A tool that is one static program, started from memory where no folder allows exec.

use std::ffi::CStr;
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;

use kitbag_format::index::Kind;
use kitbag_format::manifest::{Command, Manifest};
use kitbag_format::{Bundle, Error, elf, extract};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::expand;

/// Name of the file in memory, as /proc shows it.
const NAME: &CStr = c"kitbag";
/// `MFD_EXEC`, since Linux 6.3: some systems forbid exec where it is not asked for (memfd_create(2)).
const MFD_EXEC: MFdFlags = MFdFlags::from_bits_retain(0x10);

/// Puts the program into a file in memory. `None` where the bundle holds more than the program, the program needs
/// an interpreter or names its tree, or the command needs a tree or a state folder.
pub fn program(bundle: &Bundle, manifest: &Manifest, command: &Command) -> Result<Option<OwnedFd>, Error> {
    let index = bundle.index()?;
    let mut files = index.entries.iter().enumerate().filter(|(_, entry)| entry.kind != Kind::Dir);
    let (Some((alone, program)), None) = (files.next(), files.next()) else { return Ok(None) };
    let needs_tree = !program.slots().is_empty() || expand::uses_tree(command);
    if needs_tree || !manifest.seeds.is_empty() || expand::uses_state(command) {
        return Ok(None);
    }
    let contents = extract::contents(bundle, &index, alone)?;
    if elf::needs_interpreter(&contents) {
        return Ok(None);
    }
    let file = memfd_create(NAME, MFdFlags::MFD_CLOEXEC | MFD_EXEC)
        .or_else(|_| memfd_create(NAME, MFdFlags::MFD_CLOEXEC))
        .map_err(|errno| Error::io("make a file in memory")(errno.into()))?;
    let mut file = File::from(file);
    file.write_all(&contents).map_err(Error::io("write to memory"))?;
    Ok(Some(file.into()))
}
