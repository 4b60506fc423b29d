//! What a test needs of the machine. One that could not run is counted and named, never silently passed.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::{env, thread};

use crate::Folder;

/// Says that the test of this thread did not run, and why: on standard output, and as a line in the file that
/// `KITBAG_TESTS_NOT_RUN` names. Where `CI` is `true`, that is a failure.
pub fn unmet(why: &str) {
    let line = format!("NOT RUN {}: {why}", thread::current().name().unwrap_or("?"));
    println!("{line}");
    if let Some(path) = env::var_os("KITBAG_TESTS_NOT_RUN") {
        let file = OpenOptions::new().create(true).append(true).open(path);
        file.and_then(|mut file| writeln!(file, "{line}")).expect("the list of tests that did not run");
    }
    assert!(env::var_os("CI").is_none_or(|ci| ci != "true"), "{line}");
}

/// True if all these commands are installed; else the test is [`unmet`] and has to return.
#[must_use]
pub fn tools(names: &[&str]) -> bool {
    let missing: Vec<&str> = names.iter().copied().filter(|name| !is_installed(name)).collect();
    if !missing.is_empty() {
        unmet(&format!("needs {}", missing.join(", ")));
    }
    missing.is_empty()
}

fn is_installed(name: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| folder.join(name).is_file())
}

/// True for the superuser.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// True for the superuser; else the test is [`unmet`] and has to return. `what` it is needed for.
#[must_use]
pub fn root(what: &str) -> bool {
    if !is_root() {
        unmet(&format!("needs root: {what}"));
    }
    is_root()
}

/// True if file systems can be mounted; else the test is [`unmet`] and has to return.
#[must_use]
pub fn mounts() -> bool {
    let folder = Folder::new();
    let can = is_root() && try_mount(folder.path());
    if !can {
        unmet("needs root: mount");
    }
    can
}

fn try_mount(path: &Path) -> bool {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    let made = mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), Some("size=64k"));
    made.is_ok() && umount2(path, MntFlags::MNT_DETACH).is_ok()
}
