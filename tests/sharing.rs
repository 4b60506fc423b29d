//! The next version of an app with dynamic programs costs what is new in it, and needs no other version.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use kitbag_tests::{App, Bundle, Cmd, disk_usage, eventually, tools};

/// What the versions differ in, in bytes.
const ASSET: usize = 1 << 20;

/// Bytes that do not compress.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..length.div_ceil(8)).flat_map(|_| next()).take(length).collect()
}

/// A version of an app that has Redis, and an asset of its own. `run` says how it is started.
fn redis(version: u64, run: &str) -> Bundle {
    let manifest = format!(
        "name = \"app\"\nversion = \"{version}\"\n{run}\n[[include]]\nfrom = \"/usr/bin/redis-server\"\nto = \
         \"bin/redis-server\"\n[[include]]\nfrom = \"tree\"\nto = \".\"\n"
    );
    App::with_manifest(&manifest).file("asset", noise(ASSET, version)).pack()
}

const TOOL: &str = "command = [\"bin/redis-server\"]";
const SERVICE: &str = "[services.redis]
argv = [\"bin/redis-server\", \"--port\", \"0\", \"--save\", \"\", \"--unixsocket\", \"${env.SOCKET}\"]";

/// A start of `one`'s file in the sandbox of `sandbox`.
fn command(one: &Bundle, sandbox: &Bundle, args: &[&str]) -> Cmd {
    sandbox.sandbox.command(&one.file).args(args)
}

fn tree(one: &Bundle, sandbox: &Bundle) -> PathBuf {
    sandbox.sandbox.store().join("v1/trees").join(one.digest()).join("tree")
}

/// The one path of a closure in a store.
fn closure(sandbox: &Bundle) -> PathBuf {
    let all: Vec<_> = fs::read_dir(sandbox.sandbox.store().join("v1/closures")).unwrap().collect();
    assert_eq!(all.len(), 1, "{all:?}");
    all[0].as_ref().unwrap().path()
}

/// Says that a version was not used for two hours.
fn idle(one: &Bundle, sandbox: &Bundle) {
    for name in ["record", "start"] {
        if let Ok(file) = fs::File::open(tree(one, sandbox).with_file_name(name)) {
            file.set_modified(SystemTime::now() - Duration::from_secs(7200)).unwrap();
        }
    }
}

fn inode(path: &Path) -> u64 {
    fs::metadata(path).unwrap().ino()
}

#[test]
fn two_versions_that_differ_in_one_asset_take_one_and_that_asset() {
    if !tools(&["redis-server"]) {
        return;
    }
    let (one, two) = (redis(1, TOOL), redis(2, TOOL));
    let store = one.sandbox.store();
    let usage = || disk_usage([store.as_path()]);
    one.run(["--version"]).succeeds().prints("Redis server v=").is_quiet();
    let first = usage();
    command(&two, &one, &["--version"]).run().succeeds().prints("Redis server v=").is_quiet();
    let both = usage();
    let new = both - first;
    assert!(new < ASSET as u64 + 80_000, "the first takes {first} bytes, both {both}");
    let program = |bundle: &Bundle| tree(bundle, &one).join("bin/redis-server");
    assert_eq!(inode(&program(&one)), inode(&program(&two)));
    for bundle in [&one, &two, &one] {
        for _ in ["first start", "later start"] {
            command(bundle, &one, &["--version"]).run().succeeds().prints("Redis server v=").is_quiet();
        }
        command(bundle, &one, &["--kitbag", "verify", "--unpacked"]).run().succeeds();
    }
    println!("redis: {first} bytes for one version, {new} more for two");
}

#[test]
fn a_later_start_of_a_program_with_its_own_loader_is_quick_and_sees_damage_to_what_it_loads() {
    if !tools(&["redis-server", "strace"]) {
        return;
    }
    let (one, two) = (redis(1, TOOL), redis(2, TOOL));
    for bundle in [&one, &two, &one, &two] {
        command(bundle, &one, &["--version"]).run().succeeds();
    }
    let log = one.sandbox.path().join("strace");
    let start = command(&one, &one, &["--version"]);
    start.behind("strace", ["-o", log.to_str().unwrap()]).run().succeeds();
    let text = fs::read_to_string(&log).unwrap();
    let calls: Vec<&str> = text.lines().skip(1).take_while(|line| !line.starts_with("execve(")).collect();
    assert!(text.lines().filter(|line| line.starts_with("execve(")).count() == 2, "{text}");
    assert!(calls.len() < 20, "{} system calls\n{text}", calls.len());
    assert!(calls.iter().any(|line| line.contains("/v1/closures/")), "{text}");
    for bundle in [&one, &two] {
        let library = closure(&one).join(".kitbag/lib/ld-linux-x86-64.so.2");
        let (folder, modified) =
            (library.parent().unwrap(), fs::metadata(&library).unwrap().modified().unwrap());
        fs::set_permissions(folder, PermissionsExt::from_mode(0o755)).unwrap();
        let mut bytes = fs::read(&library).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        let mode = fs::metadata(&library).unwrap().permissions();
        fs::set_permissions(&library, PermissionsExt::from_mode(0o644)).unwrap();
        fs::write(&library, bytes).unwrap();
        fs::File::open(&library).unwrap().set_modified(modified).unwrap();
        fs::set_permissions(&library, mode).unwrap();
        fs::set_permissions(folder, PermissionsExt::from_mode(0o555)).unwrap();
        let start = command(bundle, &one, &["--version"]).run().succeeds();
        start
            .says("healed .kitbag/lib/ld-linux-x86-64.so.2: its content had changed")
            .prints("Redis server v=");
        command(bundle, &one, &["--version"]).run().succeeds().is_quiet();
    }
    // The link itself.
    fs::remove_file(closure(&one)).unwrap();
    command(&two, &one, &["--version"]).run().succeeds().is_quiet().prints("Redis server v=");
}

#[test]
fn an_upgraded_service_needs_nothing_of_the_version_before() {
    if !tools(&["redis-server"]) {
        return;
    }
    let (one, two) = (redis(1, SERVICE), redis(2, SERVICE));
    let ready = "ready to accept connections";
    let socket = |name: &str| one.sandbox.home().join(name);
    let mut first = one.command([""; 0]).env("SOCKET", socket("first")).start();
    first.wait_print(ready);
    // Another state: two of one app side by side.
    let second = command(&two, &one, &[]).env("SOCKET", socket("second"));
    let mut second = second.env("KITBAG_STATE", socket("other")).start();
    second.wait_print(ready);
    let gc = || command(&two, &one, &["gc", "--keep", "0", "--older-than", "0s"]).run().succeeds();
    idle(&one, &one);
    gc().prints("kept, in use");
    first.stop().exits(0);
    idle(&one, &one);
    gc();
    assert!(!tree(&one, &one).exists() && tree(&two, &one).exists());
    let supervisor = second.id();
    let child = || {
        let children = fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children")).ok()?;
        children.split(' ').next()?.parse::<i32>().ok()
    };
    // It is started anew, by its supervisor, from what is there.
    let before = child().expect("a server");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(before), nix::sys::signal::Signal::SIGKILL).unwrap();
    eventually(Duration::from_secs(30), "another server", || child().is_some_and(|id| id != before));
    second.wait_until("ready again", |running| running.text().matches(ready).count() >= 2);
    second.stop().exits(0);
    idle(&two, &one);
    gc();
    assert!(!one.sandbox.store().join("v1/closures").exists());
    assert_eq!(one.sandbox.trees().len(), 0);
}
