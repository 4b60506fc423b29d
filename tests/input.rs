//! What lies in people's folders: each packs and unpacks right, or is refused with the reason.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kitbag_tests::{App, Cmd, Folder, Tmpfs, disk_usage, eventually, mounts, root, same_tree};
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

/// Packs, unpacks with `kitbag` and with the bundle itself, starts it, and compares each with what went in.
#[track_caller]
fn round_trip(app: &App) {
    let bundle = app.pack();
    let home = bundle.sandbox.home();
    Cmd::kitbag(["unpack"]).arg(&bundle.file).arg(home.join("a")).run().succeeds();
    same_tree(&app.tree(""), &home.join("a"));
    bundle.run(["--kitbag", "unpack", "b"]).succeeds();
    same_tree(&app.tree(""), &home.join("b"));
    bundle.run([""; 0]).succeeds().prints("HELLO").is_quiet();
    same_tree(&app.tree(""), &bundle.sandbox.tree());
    bundle.run(["--kitbag", "verify", "--unpacked"]).succeeds();
}

#[test]
fn names_with_spaces_newlines_and_bytes_that_are_no_text() {
    let app = App::tool()
        .file("share/two words", "1")
        .file("share/new\nline", "2")
        .file("share/-rf", "3")
        .file("share/*?[a]$HOME", "4")
        .file(Path::new("share").join(OsStr::from_bytes(b"no\xfft\xfeext")), "5")
        .file("share/\u{202e}right to left é", "6")
        .file(format!("share/{}", "n".repeat(255)), "7")
        .file("share/\\back\\slash", "8");
    round_trip(&app);
}

#[test]
fn empty_files_empty_folders_and_executables() {
    let app = App::tool().file("share/empty", "").file("share/script", "#!/bin/sh\n");
    fs::set_permissions(app.tree("share/script"), Permissions::from_mode(0o755)).unwrap();
    fs::create_dir_all(app.tree("share/empty-folder/below")).unwrap();
    round_trip(&app);
}

#[test]
fn links_that_stay_in_the_tree() {
    let app = App::tool().file("share/deep/notes.txt", "notes");
    symlink("deep/notes.txt", app.tree("share/file")).unwrap();
    symlink("deep", app.tree("share/folder")).unwrap();
    symlink("../bin/hello", app.tree("share/up")).unwrap();
    symlink("../../bin/hello", app.tree("share/deep/up-twice")).unwrap();
    symlink("folder/notes.txt", app.tree("share/through")).unwrap();
    round_trip(&app);
}

#[test]
fn a_link_to_nothing_is_packed_with_a_warning() {
    let app = App::tool();
    symlink("nothing", app.tree("dangling")).unwrap();
    let folder = Folder::new();
    app.pack_to(&folder.join("bundle"), [""; 0]).run().succeeds().says("warning").says("dangling");
    Cmd::kitbag(["unpack"]).arg(folder.join("bundle")).arg(folder.join("out")).run().succeeds();
    assert_eq!(fs::read_link(folder.join("out/dangling")).unwrap(), Path::new("nothing"));
}

#[test]
fn links_that_leave_the_tree_are_refused() {
    for target in ["/etc/passwd", "../outside", "../../../../etc/passwd", "bin/../../outside"] {
        let app = App::tool();
        symlink(target, app.tree("escapes")).unwrap();
        app.refused(3).says("escapes").says("help");
    }
}

#[test]
fn setuid_and_setgid_files_are_refused() {
    for mode in [0o4755, 0o2755] {
        let app = App::tool().file("bin/special", "x");
        fs::set_permissions(app.tree("bin/special"), Permissions::from_mode(mode)).unwrap();
        app.refused(3).says("bin/special").says("chmod");
    }
}

#[test]
fn fifos_and_sockets_are_refused_without_waiting_for_them() {
    let app = App::tool();
    nix::unistd::mkfifo(&app.tree("fifo"), Mode::S_IRWXU).unwrap();
    app.refused(3).says("fifo").says("exclude it");
    let app = App::tool();
    let _socket = UnixListener::bind(app.tree("socket")).unwrap();
    app.refused(3).says("a socket").says("exclude it");
}

#[test]
fn devices_are_refused() {
    if !root("make a device") {
        return;
    }
    let app = App::tool();
    mknod(&app.tree("null"), SFlag::S_IFCHR, Mode::S_IRWXU, makedev(1, 3)).unwrap();
    app.refused(3).says("a device").says("exclude it");
}

#[test]
fn what_is_excluded_may_be_anything() {
    let app = App::with_manifest(
        "name = \"app\"\nversion = \"1.0.0\"\nexclude = [\"fifo\"]\ncommand = [\"bin/hello\"]\n\
         [[include]]\nfrom = \"tree\"\nto = \".\"\n",
    );
    let app = app.program("bin/hello", kitbag_tests::hello());
    nix::unistd::mkfifo(&app.tree("fifo"), Mode::S_IRWXU).unwrap();
    app.pack().run([""; 0]).succeeds().prints("HELLO");
}

/// Makes folders of long names one in the other, from within, as no path may be longer than PATH_MAX; a file
/// stands in the last one. Returns its path.
fn deep(root: &Path, levels: usize, length: usize) -> PathBuf {
    let name = "d".repeat(length);
    let script = format!(
        "i=0; while [ $i -lt {levels} ]; do mkdir {name} && cd -P {name} || exit 1; i=$((i+1)); done; echo deep > file"
    );
    Cmd::new("bash").args(["-c", &script]).cwd(root).run().succeeds();
    let below: PathBuf = std::iter::repeat_n(name.as_str(), levels).collect();
    below.join("file")
}

#[test]
fn a_path_of_3000_bytes_packs_and_unpacks() {
    let app = App::tool();
    let path = deep(&app.tree(""), 15, 199);
    assert!(path.as_os_str().len() > 3000);
    let bundle = app.pack();
    bundle.run([""; 0]).succeeds().prints("HELLO").is_quiet();
    assert_eq!(fs::read(bundle.sandbox.tree().join(&path)).unwrap(), b"deep\n");
    bundle.run(["--kitbag", "verify", "--unpacked"]).succeeds();
}

#[test]
fn paths_too_long_for_a_tree_are_refused_also_those_longer_than_path_max() {
    let app = App::tool();
    deep(&app.tree(""), 17, 199);
    app.refused(3).says("3072");
    let app = App::tool();
    deep(&app.tree(""), 30, 199);
    app.refused(3).says("3072");
    // Removal from outside would need the path, too.
    Cmd::new("rm").args(["-rf", "tree"]).cwd(app.dir()).run().succeeds();
}

#[test]
fn twenty_thousand_small_files() {
    let app = App::tool();
    for folder in 0..100 {
        fs::create_dir_all(app.tree(format!("share/{folder}"))).unwrap();
        for file in 0..200 {
            fs::write(app.tree(format!("share/{folder}/{file}")), format!("{folder} {file}")).unwrap();
        }
    }
    let bundle = app.pack();
    bundle.run([""; 0]).succeeds().prints("HELLO").is_quiet();
    same_tree(&app.tree(""), &bundle.sandbox.tree());
}

#[test]
fn a_sparse_file_of_5_gb_packs_and_unpacks_sparse_and_right() {
    const SIZE: u64 = 5 << 30;
    let app = App::tool();
    let marks = [(0, "first"), (3 << 30, "middle"), (SIZE - 4, "last")];
    let file = File::create(app.tree("sparse")).unwrap();
    file.set_len(SIZE).unwrap();
    marks.iter().for_each(|(at, text)| file.write_all_at(text.as_bytes(), *at).unwrap());
    let begin = Instant::now();
    let bundle = app.pack();
    assert!(fs::metadata(&bundle.file).unwrap().len() < 10_000_000);
    let out = bundle.sandbox.home().join("out");
    Cmd::kitbag(["unpack"]).arg(&bundle.file).arg(&out).run().succeeds();
    bundle.run([""; 0]).succeeds().prints("HELLO").is_quiet();
    for tree in [&out, &bundle.sandbox.tree()] {
        let path = tree.join("sparse");
        assert_eq!(fs::metadata(&path).unwrap().len(), SIZE);
        let usage = disk_usage([path.as_path()]);
        assert!(usage < 100_000_000, "{usage} bytes on the disk");
        let file = File::open(path).unwrap();
        for (at, text) in marks {
            let mut found = vec![0; text.len()];
            file.read_exact_at(&mut found, at).unwrap();
            assert_eq!(found, text.as_bytes());
        }
    }
    assert!(begin.elapsed() < Duration::from_secs(120), "it took {:?}", begin.elapsed());
}

#[test]
fn several_names_of_one_file_are_packed_once() {
    let noise: Vec<u8> = (0..1_000_000u32)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).rotate_left(n % 29).to_le_bytes())
        .collect();
    let app = App::tool().file("share/one", noise);
    let alone = fs::metadata(&app.pack().file).unwrap().len();
    for name in ["two", "three", "four"] {
        fs::hard_link(app.tree("share/one"), app.tree("share").join(name)).unwrap();
    }
    let bundle = app.pack();
    let linked = fs::metadata(&bundle.file).unwrap().len();
    assert!(linked < alone + 10_000, "{alone} bytes with one name, {linked} with four");
    bundle.run([""; 0]).succeeds();
    same_tree(&app.tree(""), &bundle.sandbox.tree());
}

#[test]
fn a_disk_that_fills_while_packing_is_left_without_a_half_file() {
    if !mounts() {
        return;
    }
    let disk = Tmpfs::new("size=6m", false);
    let noise: Vec<u8> = (0..4_000_000u32)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).rotate_left(n % 29).to_le_bytes())
        .collect();
    let app = App::tool().file("share/noise", noise);
    let outcome = app.pack_to(&disk.path().join("bundle"), [""; 0]).run().exits(5);
    outcome.says("No space left").says("nothing was written");
    assert_eq!(fs::read_dir(disk.path()).unwrap().count(), 0);
    // What was there before is there after.
    let small = App::tool();
    small.pack_to(&disk.path().join("bundle"), [""; 0]).run().succeeds();
    let before = fs::read(disk.path().join("bundle")).unwrap();
    app.pack_to(&disk.path().join("bundle"), [""; 0]).run().exits(5);
    assert!(fs::read(disk.path().join("bundle")).unwrap() == before);
    assert_eq!(fs::read_dir(disk.path()).unwrap().count(), 1);
}

#[test]
fn a_file_that_is_no_bundle_is_not_overwritten_unless_forced() {
    let (app, folder) = (App::tool(), Folder::new());
    let output = folder.join("precious");
    fs::write(&output, "work of years").unwrap();
    app.pack_to(&output, [""; 0]).run().exits(1).says("will not overwrite").says("--force");
    assert_eq!(fs::read(&output).unwrap(), b"work of years");
    app.pack_to(&output, ["--force"]).run().succeeds();
    app.pack_to(&output, [""; 0]).run().succeeds();
    app.pack_to(folder.path(), ["--force"]).run().exits(2).says("it is a folder");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_bundle_that_runs_can_be_packed_over() {
    let app = App::tool();
    let bundle = app.pack();
    let mut running = bundle.command(["--cat"]).start();
    running.wait_until("it runs", |running| {
        fs::read_link(format!("/proc/{}/exe", running.id())).is_ok_and(|exe| exe.ends_with("tree/bin/hello"))
    });
    fs::write(app.tree("more"), "more").unwrap();
    app.pack_to(&bundle.file, [""; 0]).run().succeeds();
    running.close();
    running.ended().succeeds();
    bundle.run([""; 0]).succeeds().prints("HELLO");
}

#[test]
fn interrupted_while_packing_it_leaves_nothing() {
    let (app, folder) = (App::tool(), Folder::new());
    // Large enough that it takes a while, and a hole costs no disk.
    File::create(app.tree("large")).unwrap().set_len(8 << 30).unwrap();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
        let mut running = app.pack_to(&folder.join("bundle"), [""; 0]).start();
        let id = running.id();
        eventually(Duration::from_secs(30), "it packs", || {
            assert!(!running.has_ended(), "it was too quick to be interrupted");
            let open = fs::read_dir(format!("/proc/{id}/fd")).into_iter().flatten().flatten();
            open.filter_map(|fd| fs::read_link(fd.path()).ok()).any(|path| path.ends_with("large"))
        });
        running.signal(signal);
        running.ended().dies_by(signal as i32);
        let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(left.is_empty(), "{left:?} after {signal}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    if !root("pack as another user") {
        return;
    }
    let app = App::tool().file("share/secret", "secret");
    fs::set_permissions(app.tree("share/secret"), Permissions::from_mode(0o600)).unwrap();
    let folder = Folder::new();
    kitbag_tests::copy(kitbag_tests::kitbag(), &folder.join("kitbag"));
    let out = folder.dir("out");
    fs::set_permissions(&out, Permissions::from_mode(0o777)).unwrap();
    let pack = Cmd::new(folder.join("kitbag")).arg("pack").arg(app.dir()).arg("-o").arg(out.join("bundle"));
    let pack = pack.behind("setpriv", ["--reuid=65534", "--regid=65534", "--clear-groups"]);
    pack.run().exits(3).says("share/secret").says("Permission denied");
    assert_eq!(fs::read_dir(out).unwrap().count(), 0);
}

#[test]
fn an_output_in_a_folder_that_is_not_there_is_named() {
    let folder = Folder::new();
    let outcome = App::tool().pack_to(&folder.join("no/such/bundle"), [""; 0]).run();
    outcome.exits(1).says("no/such").says("No such file");
}

#[test]
fn the_bundle_may_be_written_into_the_folder_that_is_packed() {
    let app = App::tool();
    let output = app.tree("bundle");
    app.pack_to(&output, [""; 0]).run().succeeds();
    let first = fs::read(&output).unwrap();
    app.pack_to(&output, [""; 0]).run().succeeds();
    assert!(fs::read(&output).unwrap() == first, "a bundle does not hold its own last version");
    assert!(fs::metadata(&output).unwrap().mode() & 0o111 != 0);
}

#[test]
fn unpacking_over_what_is_there_is_refused() {
    let bundle = App::tool().pack();
    let out = bundle.sandbox.home().join("out");
    fs::create_dir(&out).unwrap();
    let mut file = File::create(out.join("mine")).unwrap();
    file.write_all(b"mine").unwrap();
    for outcome in
        [Cmd::kitbag(["unpack"]).arg(&bundle.file).arg(&out).run(), bundle.run(["--kitbag", "unpack", "out"])]
    {
        let failed = !outcome.status.success();
        outcome.check(failed, "failure").says("out");
    }
    assert_eq!(fs::read_dir(&out).unwrap().count(), 1);
}
