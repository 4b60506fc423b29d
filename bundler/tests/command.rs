//! The `kitbag` command from outside: what it says and how it ends.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

fn run(kitbag: &mut Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = kitbag.output().expect("kitbag starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (status.code(), text(stdout), text(stderr))
}

fn kitbag() -> Command {
    Command::new(env!("CARGO_BIN_EXE_kitbag"))
}

fn write(path: &Path, text: &str, mode: u32) {
    fs::write(path, text).expect("a file");
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("a mode");
}

#[test]
fn a_wrong_manifest_ends_with_3_and_nothing_is_written() {
    let folder = TempDir::new().expect("a folder");
    write(&folder.path().join("kitbag.toml"), "nam = 'x'\nversion = '1'\ncommand = []\n", 0o644);
    let (code, stdout, stderr) = run(kitbag().arg("pack").current_dir(folder.path()));
    assert_eq!((code, stdout.as_str()), (Some(3), ""), "{stderr}");
    assert!(stderr.contains(" --> kitbag.toml:1:1") && stderr.contains(" --> kitbag.toml:3:11"), "{stderr}");
    assert!(!stderr.contains('\x1b'), "no colors in a pipe: {stderr}");
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1);
}

#[test]
fn a_wrong_command_line_ends_with_2() {
    let (code, _, stderr) = run(kitbag().args(["pack", "/nonexistent"]));
    assert_eq!((code, stderr.as_str()), (Some(2), "error: there is no folder `/nonexistent`\n"));
    let (code, _, stderr) = run(kitbag().args(["pack", "--levle", "3"]));
    assert_eq!(code, Some(2));
    assert!(stderr.contains("--level"), "{stderr}");
}

#[test]
fn a_build_that_fails_ends_with_1() {
    let folder = TempDir::new().expect("a folder");
    let toml = "[package]\nname = \"broken\"\nversion = \"1.0.0\"\nedition = \"2021\"\n[workspace]\n";
    write(&folder.path().join("Cargo.toml"), toml, 0o644);
    fs::create_dir(folder.path().join("src")).expect("a folder");
    write(&folder.path().join("src/main.rs"), "fn main() { nothing_there() }\n", 0o644);
    let (code, _, stderr) = run(kitbag().arg("pack").arg(folder.path()));
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("nothing_there"), "the compiler's own message: {stderr}");
    assert!(stderr.contains("error: `cargo build` of `broken` failed"), "{stderr}");
}

#[test]
fn help_has_the_exit_codes_of_the_format_crate() {
    let (code, help, _) = run(kitbag().arg("--help"));
    assert_eq!(code, Some(0));
    let source = include_str!("../../format/src/exit.rs");
    let mut codes = 0;
    for line in source.lines().filter(|line| line.starts_with("pub const")) {
        let number = line.split_once("= ").map(|(_, number)| number.trim_end_matches(';')).expect("a number");
        assert!(
            help.lines().any(|line| line.trim_start().starts_with(&format!("{number}  "))),
            "{number}: {help}"
        );
        codes += 1;
    }
    assert!(codes >= 9);
}

#[test]
fn every_command_has_help_with_an_example() {
    let (_, help, _) = run(kitbag().arg("-h"));
    for command in ["pack", "run", "inspect", "list", "unpack", "verify", "completions"] {
        assert!(help.contains(&format!("\n  {command} ")), "{help}");
        let (code, help, _) = run(kitbag().args([command, "--help"]));
        assert_eq!(code, Some(0));
        assert!(help.contains("Example") && help.contains(&format!("kitbag {command}")), "{help}");
    }
}

#[test]
fn completions_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let (code, script, _) = run(kitbag().args(["completions", shell]));
        assert_eq!(code, Some(0));
        assert!(script.contains("inspect") && script.contains("dry-run"), "{shell}");
    }
}
