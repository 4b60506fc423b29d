//! What the packer may not read.
//!
//! Alone in its file: it runs a program it has just written, and a fork of another test at that moment would
//! keep it open for writing (ETXTBSY).

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

/// `nobody`, who may not read what others keep to themselves.
const NOBODY: u32 = 65534;

fn write(path: &Path, text: &str, mode: u32) {
    fs::write(path, text).expect("a file");
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("a mode");
}

/// Runs as another user where the tests run as root, to whom nothing is unreadable.
#[test]
fn a_file_that_cannot_be_read_is_an_error() {
    let folder = TempDir::new().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("a mode");
    let command = path("kitbag");
    fs::copy(env!("CARGO_BIN_EXE_kitbag"), &command).expect("a copy that everybody reaches");
    fs::create_dir(path("files")).expect("a folder");
    fs::create_dir(path("files/closed")).expect("a folder");
    write(&path("files/tool"), "", 0o755);
    write(&path("files/secret"), "", 0o000);
    fs::set_permissions(path("files/closed"), fs::Permissions::from_mode(0o000)).expect("a mode");
    let manifest = "name = 'x'\nversion = '1'\ncommand = ['files/tool']\n[[include]]\nfrom = 'files'\n";
    write(&path("kitbag.toml"), manifest, 0o644);

    let mut kitbag = Command::new(&command);
    if fs::metadata(&command).expect("its owner").uid() == 0 {
        kitbag.uid(NOBODY).gid(NOBODY);
    }
    let output =
        kitbag.args(["pack", "--dry-run"]).current_dir(folder.path()).output().expect("kitbag starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    for name in ["files/secret", "files/closed"] {
        assert!(stderr.contains(&format!("error: cannot be read: `{name}`")), "{stderr}");
    }
    assert!(stderr.contains("Permission denied (os error 13)"), "{stderr}");
    fs::set_permissions(path("files/closed"), fs::Permissions::from_mode(0o755)).expect("a mode");
}
