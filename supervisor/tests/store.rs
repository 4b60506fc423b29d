//! The store: made once, shared, healed, never half.
#![allow(missing_docs)]

mod common;

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{App, Temp, child, disk_usage, noise, start, start_with};
use kitbag_format::Bundle;
use kitbag_supervisor::spawn::identity::Ids;
use kitbag_supervisor::store::collect::{Policy, collect};
use kitbag_supervisor::store::heal::{self, What};
use kitbag_supervisor::store::owned::{self, Refusal};
use kitbag_supervisor::store::place::{self, Facts};
use kitbag_supervisor::store::record::{ANY_BOOT, Record};
use kitbag_supervisor::store::unpack::Compare;
use kitbag_supervisor::store::{Store, StoreError};
use kitbag_supervisor::sys::rights;
use nix::sys::stat::{Mode, umask};

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

#[test]
fn a_first_start_unpacks_and_a_second_finds_it_right() {
    let temp = Temp::new();
    let (store, app) = (temp.store(), App::sample("1"));
    let bundle = app.pack(&temp.join("app"));
    let (tree, said) = start(&store, &bundle).unwrap();
    assert!(tree.unpacked && said.is_empty(), "{said:?}");
    app.assert_right(&tree.root);
    assert_eq!(tree.stat_of("bin/app").unwrap().ino, fs::metadata(tree.root.join("bin/app")).unwrap().ino());
    let (tree, said) = start(&store, &bundle).unwrap();
    assert!(!tree.unpacked && said.is_empty(), "{said:?}");
    assert_eq!(fs::read_dir(store.work("")).unwrap().count(), 0);
    assert_eq!(heal::verify_unpacked(&store, &bundle).unwrap(), Some(vec![]));
}

/// Damages a tree, starts, and returns what was said; the tree is right again.
fn heals(damage: impl Fn(&Path)) -> Vec<String> {
    let temp = Temp::new();
    let (store, app) = (temp.store(), App::sample("1"));
    let bundle = app.pack(&temp.join("app"));
    let root = start(&store, &bundle).unwrap().0.root;
    damage(&root);
    assert_ne!(heal::verify_unpacked(&store, &bundle).unwrap(), Some(vec![]));
    let (tree, said) = start(&store, &bundle).unwrap();
    assert!(!tree.unpacked);
    app.assert_right(&tree.root);
    let (_, quiet) = start(&store, &bundle).unwrap();
    assert!(quiet.is_empty(), "said again: {quiet:?}");
    assert_eq!(fs::read_dir(store.work("")).unwrap().count(), 0);
    said
}

fn writable(path: &Path) {
    let mode = if path.is_dir() { 0o755 } else { 0o644 };
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Overwrites a file; its permissions are as before.
fn overwrite(path: &Path, content: &[u8]) {
    let mode = common::mode(path);
    writable(path);
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_changed_file_is_healed() {
    let said = heals(|root| overwrite(&root.join("share/deep/a.txt"), b"another"));
    assert_eq!(said, ["healed share/deep/a.txt: its content had changed"]);
}

#[test]
fn a_changed_file_with_size_and_mtime_put_back_is_healed() {
    let said = heals(|root| {
        let path = root.join("share/deep/a.txt");
        let mtime = fs::metadata(&path).unwrap().modified().unwrap();
        overwrite(&path, b"A TEXT");
        common::open(&path).set_modified(mtime).unwrap();
    });
    assert_eq!(said, ["healed share/deep/a.txt: its content had changed"]);
}

#[test]
fn a_changed_program_heals_with_its_second_name() {
    let said = heals(|root| overwrite(&root.join("bin/app"), b"evil"));
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(said[0].starts_with("healed bin/app:") && said[1].starts_with("healed bin/same:"), "{said:?}");
}

#[test]
fn a_deleted_file_is_healed() {
    let said = heals(|root| {
        writable(&root.join("share"));
        fs::remove_file(root.join("share/zeros")).unwrap();
    });
    assert!(said.contains(&"healed share/zeros: it had been deleted".into()), "{said:?}");
}

#[test]
fn an_emptied_file_is_healed() {
    let said = heals(|root| overwrite(&root.join("share/zeros"), b""));
    assert_eq!(said, ["healed share/zeros: it had been emptied"]);
}

#[test]
fn a_stranger_is_removed() {
    let said = heals(|root| {
        writable(root);
        fs::create_dir_all(root.join("new/deep")).unwrap();
        fs::write(root.join("new/deep/file"), "x").unwrap();
        fs::set_permissions(root, fs::Permissions::from_mode(0o555)).unwrap();
    });
    assert_eq!(said, ["removed new: it is not part of the bundle"]);
}

#[test]
fn changed_permissions_are_healed() {
    let said = heals(|root| {
        fs::set_permissions(root.join("bin/app"), fs::Permissions::from_mode(0o6755)).unwrap();
        fs::set_permissions(root.join("share"), fs::Permissions::from_mode(0o777)).unwrap();
    });
    assert!(said.contains(&"healed share: its permissions had changed".into()), "{said:?}");
    assert!(said.contains(&"healed bin/app: its permissions had changed".into()), "{said:?}");
}

#[test]
fn a_folder_that_became_a_link_is_healed_with_all_below_it() {
    let said = heals(|root| {
        writable(&root.join("share"));
        writable(&root.join("share/deep"));
        fs::rename(root.join("share/deep"), root.join("share/elsewhere")).unwrap();
        symlink("elsewhere", root.join("share/deep")).unwrap();
    });
    assert!(said.contains(&"healed share/deep: something else was in its place".into()), "{said:?}");
    assert!(said.contains(&"healed share/deep/a.txt: it had been deleted".into()), "{said:?}");
    assert!(said.contains(&"removed share/elsewhere: it is not part of the bundle".into()), "{said:?}");
}

#[test]
fn a_link_with_another_target_and_a_folder_in_a_files_place_are_healed() {
    heals(|root| {
        for name in ["bin", "share"] {
            writable(&root.join(name));
        }
        fs::remove_file(root.join("bin/also")).unwrap();
        symlink("/etc/passwd", root.join("bin/also")).unwrap();
        fs::remove_file(root.join("share/version")).unwrap();
        fs::create_dir(root.join("share/version")).unwrap();
        fs::write(root.join("share/version/x"), "x").unwrap();
    });
}

#[test]
fn all_folders_gone_are_healed() {
    heals(|root| {
        writable(root);
        for name in ["bin", "share"] {
            kitbag_supervisor::store::remove(&root.join(name)).unwrap();
        }
    });
}

#[test]
fn a_tree_that_became_a_link_is_unpacked_again() {
    let temp = Temp::new();
    let (store, app) = (temp.store(), App::sample("1"));
    let bundle = app.pack(&temp.join("app"));
    let root = start(&store, &bundle).unwrap().0.root;
    let elsewhere = temp.join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::write(elsewhere.join("mine"), "x").unwrap();
    kitbag_supervisor::store::remove(&root).unwrap();
    symlink(&elsewhere, &root).unwrap();
    let (tree, said) = start(&store, &bundle).unwrap();
    assert!(tree.unpacked);
    assert_eq!(said, ["the unpacked files are gone; they are unpacked again"]);
    app.assert_right(&tree.root);
    assert!(elsewhere.join("mine").exists());
}

#[test]
fn a_tool_compares_its_program_and_heals_everything_once_that_is_wrong() {
    let temp = Temp::new();
    let (store, app) = (temp.store(), App::sample("1"));
    let bundle = app.pack(&temp.join("app"));
    let root = start(&store, &bundle).unwrap().0.root;
    overwrite(&root.join("share/version"), b"x");
    let only = Compare::Only(&["bin/app"]);
    assert!(start_with(&store, &bundle, only).unwrap().1.is_empty());
    overwrite(&root.join("bin/app"), b"x");
    assert_eq!(start_with(&store, &bundle, only).unwrap().1.len(), 3);
    app.assert_right(&root);
}

#[test]
fn a_damaged_record_is_made_anew() {
    let temp = Temp::new();
    let (store, app) = (temp.store(), App::sample("1"));
    let bundle = app.pack(&temp.join("app"));
    let dir = start(&store, &bundle).unwrap().0.dir;
    fs::write(dir.join("record"), "").unwrap();
    overwrite(&dir.join("tree/share/version"), b"9");
    let (_, said) = start(&store, &bundle).unwrap();
    assert_eq!(said.len(), 2, "{said:?}");
    app.assert_right(&dir.join("tree"));
    assert!(start(&store, &bundle).unwrap().1.is_empty());
}

#[test]
fn another_boot_compares_digests_once_and_settles() {
    let temp = Temp::new();
    let (store, app) = (temp.store(), App::sample("1"));
    let bundle = app.pack(&temp.join("app"));
    let dir = start(&store, &bundle).unwrap().0.dir;
    let rewrite = |change: &dyn Fn(&mut Record)| {
        let mut record = Record::read(&dir, &bundle.digest()).unwrap();
        change(&mut record);
        record.write(&dir).unwrap();
    };
    rewrite(&|record| record.boot_id = [b'x'; 36]);
    let (tree, said) = start(&store, &bundle).unwrap();
    assert!(tree.boot_id == ANY_BOOT && said.is_empty(), "{said:?}");
    // What a power failure does: the content is gone, and the record shows the stat of what is there.
    overwrite(&dir.join("tree/share/zeros"), &noise(3, 200_000));
    let number =
        tree.stat_of("share/zeros").map(|_| bundle.index().unwrap().find(b"share/zeros").unwrap()).unwrap();
    let found = fs::metadata(dir.join("tree/share/zeros")).unwrap();
    rewrite(&|record| {
        record.boot_id = [b'x'; 36];
        record.stats[number].ctime = found.ctime();
        record.stats[number].ctime_ns = found.ctime_nsec() as u32;
    });
    let (tree, said) = start(&store, &bundle).unwrap();
    assert_eq!(said, ["healed share/zeros: its content had changed"]);
    assert!(tree.boot_id != ANY_BOOT || !Path::new("/proc/sys").exists());
    app.assert_right(&tree.root);
}

#[test]
fn versions_and_apps_share_what_they_have_in_common_and_records_follow() {
    let temp = Temp::new();
    let store = temp.store();
    let big = |name: &str, version: &str, changed: u64| {
        let mut app = App::new(name, version).dir("d");
        for number in 0..20 {
            app =
                app.file(&format!("d/{number}"), &noise(if number == 7 { changed } else { number }, 100_000));
        }
        app.file("d/twice", &noise(1, 100_000))
    };
    let apps = [big("a", "1", 100), big("a", "2", 200), big("b", "1", 300)];
    let bundles: Vec<Bundle> =
        (0..).zip(&apps).map(|(n, app)| app.pack(&temp.join(&format!("app{n}")))).collect();
    start(&store, &bundles[0]).unwrap();
    let one = disk_usage(&store.trees());
    for bundle in &bundles {
        start(&store, bundle).unwrap();
    }
    let three = disk_usage(&store.trees());
    assert!(three < one + 2 * 100_000 + 2 * 20_000, "{one} bytes for one, {three} for three");
    for (app, bundle) in apps.iter().zip(&bundles) {
        let dir = store.tree_dir(&bundle.digest());
        app.assert_right(&dir.join("tree"));
        let root = kitbag_format::extract::open_dir(&dir.join("tree")).unwrap();
        let record = Record::read(&dir, &bundle.digest()).unwrap();
        assert_eq!(record.differing(std::os::fd::AsFd::as_fd(&root), None), Vec::<usize>::new());
    }
}

#[test]
fn a_damaged_file_of_another_tree_is_not_shared() {
    let temp = Temp::new();
    let store = temp.store();
    let apps = [App::sample("1"), App::sample("2")];
    let bundles = [apps[0].pack(&temp.join("1")), apps[1].pack(&temp.join("2"))];
    let root = start(&store, &bundles[0]).unwrap().0.root;
    overwrite(&root.join("share/deep/a.txt"), b"A TEXT");
    let second = start(&store, &bundles[1]).unwrap().0;
    apps[1].assert_right(&second.root);
    assert_eq!(start(&store, &bundles[0]).unwrap().1, ["healed share/deep/a.txt: its content had changed"]);
}

#[test]
fn permissions_are_part_of_what_is_shared() {
    let temp = Temp::new();
    let store = temp.store();
    let apps = [App::new("a", "1").file("f", b"same"), App::new("b", "1").program("f", b"same")];
    for (number, app) in apps.iter().enumerate() {
        let bundle = app.pack(&temp.join(&number.to_string()));
        app.assert_right(&start(&store, &bundle).unwrap().0.root);
    }
}

/// A start in a process of its own: `KITBAG_TEST_STORE`, `KITBAG_TEST_BUNDLE`.
#[test]
#[ignore = "a role that other tests play in a child process"]
fn child_starts() {
    let var = |name: &str| PathBuf::from(std::env::var_os(name).unwrap());
    let store = Store::at(var("KITBAG_TEST_STORE"));
    let bundle = Bundle::open_path(&var("KITBAG_TEST_BUNDLE")).unwrap();
    let (tree, said) = start(&store, &bundle).unwrap();
    println!("unpacked={} said={said:?}", tree.unpacked);
}

fn large() -> App {
    let mut app = App::new("large", "1").dir("d");
    for number in 0..300 {
        app = app.file(&format!("d/{number}"), &noise(number, 30_000));
    }
    app
}

#[test]
fn ten_first_starts_at_once_unpack_once() {
    let temp = Temp::new();
    let (store, app) = (temp.store(), large());
    app.pack(&temp.join("app"));
    let (bundle, place) = (temp.join("app"), store.place.clone());
    let variables = [("KITBAG_TEST_STORE", place.as_path()), ("KITBAG_TEST_BUNDLE", bundle.as_path())];
    let start = || child("child_starts", &variables).stdout(Stdio::piped()).spawn().unwrap();
    let children: Vec<_> = (0..10).map(|_| start()).collect();
    let outputs: Vec<_> = children.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
    let text: String = outputs.iter().map(|out| String::from_utf8_lossy(&out.stdout).into_owned()).collect();
    assert!(outputs.iter().all(|out| out.status.success()), "{text}");
    assert_eq!(text.matches("unpacked=true said=[]").count(), 1, "{text}");
    assert_eq!(text.matches("unpacked=false said=[]").count(), 9, "{text}");
    assert_eq!(fs::read_dir(store.trees()).unwrap().count(), 1);
}

#[test]
fn a_first_start_killed_at_any_moment_leaves_nothing_that_the_next_cannot_mend() {
    let temp = Temp::new();
    let app = large();
    let bundle = app.pack(&temp.join("app"));
    let path = temp.join("app");
    let mut interrupted = 0;
    for round in 0..50u64 {
        let round_temp = Temp::below(&temp.0);
        let store = round_temp.store();
        let variables =
            [("KITBAG_TEST_STORE", store.place.as_path()), ("KITBAG_TEST_BUNDLE", path.as_path())];
        let mut child = child("child_starts", &variables).stdout(Stdio::null()).spawn().unwrap();
        // The moment is what is random here: from before the first file until after the last.
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_micros(500 + 900 * round) {
            std::hint::spin_loop();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        interrupted += usize::from(!store.tree_dir(&bundle.digest()).exists());
        let (tree, said) = start(&store, &bundle).unwrap();
        assert!(said.is_empty(), "round {round}: {said:?}");
        app.assert_right(&tree.root);
        assert_eq!(fs::read_dir(store.work("")).unwrap().count(), 0, "round {round}");
    }
    assert!(interrupted > 5, "only {interrupted} starts were interrupted");
}

#[test]
fn a_full_disk_is_named_and_leaves_nothing() {
    let temp = Temp::new();
    let mount = temp.join("small");
    fs::create_dir(&mount).unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=3m,mode=755", "kitbag-test"])
        .arg(&mount)
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: a full disk: a small tmpfs cannot be mounted here");
        return;
    }
    struct Unmount(PathBuf);
    impl Drop for Unmount {
        fn drop(&mut self) {
            let _ = std::process::Command::new("umount").arg(&self.0).status();
        }
    }
    let unmount = Unmount(mount.clone());
    let inside = Temp::below(&mount);
    let store = inside.store();
    let app = large();
    let bundle = app.pack(&temp.join("app"));
    let error = start(&store, &bundle).map(|_| ()).unwrap_err();
    assert!(matches!(error, StoreError::Full { .. }), "{error:?}");
    assert_eq!(error.exit_code(), kitbag_format::exit::NO_PLACE);
    assert!(error.to_string().contains(" gc` removes what is no longer used"), "{error}");
    assert_eq!(fs::read_dir(store.work("")).unwrap().count(), 0);
    let variable = |name: &str| (name == "KITBAG_STORE").then(|| OsString::from(&store.place));
    let facts = Facts { uid: uid(), var: &variable, passwd: vec![], bundle: None };
    let Err(StoreError::NoPlace(tried)) = place::choose(&facts, &bundle) else { panic!("it fits") };
    assert!(matches!(tried[0].verdict, Err(Refusal::Space(needs, has)) if needs > has), "{tried:?}");
    drop(inside);
    drop(unmount);
}

fn uid() -> u32 {
    nix::unistd::geteuid().as_raw()
}

/// The verdict on `KITBAG_STORE=path`.
fn verdict(path: &Path, bundle: &Bundle) -> Result<(), String> {
    let variable = |name: &str| (name == "KITBAG_STORE").then(|| OsString::from(path));
    let facts = Facts { uid: uid(), var: &variable, passwd: vec![], bundle: None };
    match place::choose(&facts, bundle) {
        Ok(_) => Ok(()),
        Err(StoreError::NoPlace(tried)) => {
            assert_eq!(tried.len(), 1, "no other place is tried: {tried:?}");
            Err(tried[0].to_string())
        }
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn hostile_places_are_refused_with_the_reason() {
    let temp = Temp::new();
    let bundle = App::sample("1").pack(&temp.join("app"));
    assert_eq!(verdict(&temp.join("deep/er/new"), &bundle), Ok(()));
    let refused = |path: &Path, why: &str| {
        let text = verdict(path, &bundle).unwrap_err();
        assert!(text.contains(why), "{text}");
    };
    refused(Path::new("relative/path"), "not an absolute path");
    refused(&temp.join("x/../y"), "without `..`");
    let planted = temp.join("planted");
    fs::create_dir(temp.join("target")).unwrap();
    symlink(temp.join("target"), &planted).unwrap();
    refused(&planted, "symbolic link");
    symlink("nowhere", temp.join("dangling")).unwrap();
    refused(&temp.join("dangling"), "symbolic link");
    refused(&temp.join("dangling/below"), "");
    fs::write(temp.join("file"), "x").unwrap();
    refused(&temp.join("file"), "not a folder");
    let open = temp.join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    refused(&open, "others can write to it (mode 0777)");
    refused(&open.join("below"), "not sticky");
    fs::set_permissions(&open, fs::Permissions::from_mode(0o1777)).unwrap();
    assert_eq!(verdict(&open.join("below"), &bundle), Ok(()));
    let inner = temp.join("inner");
    fs::create_dir_all(inner.join("v1")).unwrap();
    symlink(temp.join("target"), inner.join("v1/trees")).unwrap();
    refused(&inner, "symbolic link");
    if is_root() {
        let foreign = temp.join("foreign");
        fs::create_dir(&foreign).unwrap();
        std::os::unix::fs::chown(&foreign, Some(12345), None).unwrap();
        refused(&foreign, "belongs to user 12345");
        refused(&foreign.join("below"), "belongs to another user");
    } else {
        eprintln!("SKIPPED: a foreign owner: only root can make one");
    }
}

/// What a stranger's command says, if it does what it should.
fn as_stranger(program: &str, path: &Path) -> Result<String, String> {
    let mut command = std::process::Command::new(program);
    let output = std::os::unix::process::CommandExt::uid(&mut command, 61_236).arg(path).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

#[test]
fn nobody_else_can_open_and_so_lock_the_folder_of_a_tree() {
    let temp = Temp::new();
    let (store, app) = (temp.store(), App::sample("1"));
    let bundle = app.pack(&temp.join("app"));
    let root = start(&store, &bundle).unwrap().0.root;
    let dir = store.tree_dir(&bundle.digest());
    assert_eq!(common::mode(&dir), 0o711);
    // As trees of earlier versions have it.
    let open = || fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
    open();
    let (_, said) = start(&store, &bundle).unwrap();
    assert_eq!((common::mode(&dir), said), (0o711, vec![]));
    open();
    collect(&store, &Policy { dry_run: true, ..Policy::default() }).unwrap();
    assert_eq!(common::mode(&dir), 0o755);
    collect(&store, &Policy::default()).unwrap();
    assert_eq!(common::mode(&dir), 0o711);
    if !is_root() {
        eprintln!("SKIPPED: a stranger: only root can become one");
        return;
    }
    let refused = as_stranger("/bin/ls", &dir).unwrap_err();
    assert!(refused.contains("Permission denied"), "{refused}");
    assert_eq!(as_stranger("/bin/ls", &root), Ok("bin\nshare\n".to_owned()));
    assert_eq!(as_stranger("/bin/cat", &root.join("share/deep/a.txt")), Ok("a text".to_owned()));
}

#[test]
fn a_folder_that_another_user_slips_in_meanwhile_is_never_used() {
    if !is_root() {
        eprintln!("SKIPPED: another user: only root can become one");
        return;
    }
    let temp = Temp::new();
    let open = temp.join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o1777)).unwrap();
    let app = open.join("app");
    let he = Ids { uid: 61_236, gid: 61_236, groups: Some(vec![]) };
    let (over, begin) = (AtomicBool::new(false), Instant::now());
    let (mut refused, mut swapped) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _rights = rights::borrow(&he).unwrap();
            while !over.load(Ordering::Relaxed) {
                let _ = fs::create_dir(&app).and_then(|()| fs::remove_dir(&app));
            }
        });
        while refused < 60 && begin.elapsed() < Duration::from_secs(20) {
            match owned::folder(&app.join("state"), 0, 0o700) {
                Ok(_) if fs::symlink_metadata(&app).unwrap().uid() != 0 => swapped += 1,
                Ok(_) => {}
                Err(_) => refused += 1,
            }
            let _ = kitbag_supervisor::store::remove(&app);
        }
        over.store(true, Ordering::Relaxed);
    });
    assert!(refused > 0, "he was never in time");
    assert_eq!(swapped, 0, "of {refused} that were refused");
}

#[test]
#[ignore = "a role that another test plays in a child process"]
fn child_chooses() {
    umask(Mode::from_bits_truncate(0o077));
    let place = PathBuf::from(std::env::var_os("KITBAG_TEST_STORE").unwrap());
    let bundle =
        Bundle::open_path(&std::env::var_os("KITBAG_TEST_BUNDLE").map(PathBuf::from).unwrap()).unwrap();
    verdict(&place, &bundle).unwrap();
    owned::within(&place, Path::new("some/folders"), uid(), 0o711).unwrap();
}

#[test]
fn a_strict_umask_closes_no_folder_that_others_need() {
    let temp = Temp::new();
    App::sample("1").pack(&temp.join("app"));
    let place = temp.join("above/store");
    let (app, of) = (temp.join("app"), if is_root() { 0o755 } else { 0o700 });
    let mut child = child("child_chooses", &[("KITBAG_TEST_STORE", &*place), ("KITBAG_TEST_BUNDLE", &*app)]);
    assert!(child.stdout(Stdio::null()).status().unwrap().success());
    let modes =
        ["", "v1", "v1/trees", "v1/work", "some", "some/folders"].map(|name| common::mode(&place.join(name)));
    assert_eq!(modes, [of, of, of, of, 0o711, 0o711]);
    assert_eq!(common::mode(&temp.join("above")), of);
}

#[test]
fn the_candidates_come_in_order_with_their_reasons() {
    let temp = Temp::new();
    let bundle = App::sample("1").pack(&temp.join("app"));
    let home = temp.join("home");
    fs::create_dir(&home).unwrap();
    let passwd = format!("root:x:0:0::/root:/bin/sh\nme:x:{}:1::{}:/bin/sh\n", uid(), home.display());
    let own_file = temp.join("app");
    let relative = |name: &str| (name == "XDG_CACHE_HOME").then(|| OsString::from("relative"));
    let facts = Facts { uid: uid(), var: &relative, passwd: passwd.into_bytes(), bundle: Some(&own_file) };
    if is_root() {
        eprintln!("SKIPPED: a user's candidates: this is root");
        assert_eq!(facts.passwd_home(), Some("/root".into()));
        return;
    }
    let (store, tried) = place::choose(&facts, &bundle).unwrap();
    assert_eq!(store.place, home.join(".cache/kitbag"));
    let why: Vec<&str> = tried.iter().map(|candidate| candidate.why).collect();
    assert_eq!(why, ["KITBAG_STORE", "XDG_CACHE_HOME", "HOME", "home folder in /etc/passwd"]);
    assert!(matches!(tried[1].verdict, Err(Refusal::NotAbsolute)));
}

#[test]
fn a_record_with_any_byte_flipped_or_cut_is_refused_and_never_panics() {
    let temp = Temp::new();
    let store = temp.store();
    let bundle = App::sample("1").pack(&temp.join("app"));
    let dir = start(&store, &bundle).unwrap().0.dir;
    let bytes = fs::read(dir.join("record")).unwrap();
    let record = Record::parse(&bytes).unwrap();
    assert_eq!(record.to_bytes(), bytes);
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 0x41;
        assert_eq!(Record::parse(&flipped), None, "byte {at}");
        assert_eq!(Record::parse(&bytes[..at]), None, "cut at {at}");
        // With a right checksum: anything but a panic.
        let sum = kitbag_format::Digest::of(&flipped[40..]);
        flipped[8..40].copy_from_slice(&sum.0);
        let _ = Record::parse(&flipped);
    }
}

#[test]
fn nothing_recorded_hides_a_finding() {
    let temp = Temp::new();
    let store = temp.store();
    let bundle = App::sample("1").pack(&temp.join("app"));
    assert_eq!(heal::verify_unpacked(&store, &bundle).unwrap(), None);
    let root = start(&store, &bundle).unwrap().0.root;
    overwrite(&root.join("share/version"), b"2");
    let found = heal::verify_unpacked(&store, &bundle).unwrap().unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].path.as_slice(), found[0].what), (&b"share/version"[..], What::Changed));
}

/// Not a claim but a figure: `cargo test --release -- --ignored --nocapture compares_20000`.
#[test]
#[ignore = "a measurement"]
fn measure_compares_20000_files() {
    let temp = Temp::below(Path::new(&std::env::var("KITBAG_TEST_PLACE").unwrap_or("/dev/shm".into())));
    let store = temp.store();
    let make = |version: &str| {
        let mut app = App::new("many", version).file("version", version.as_bytes());
        for dir in 0..200 {
            app = app.dir(&format!("package-number-{dir}")).dir(&format!("package-number-{dir}/lib"));
            for file in 0..100 {
                let path = format!("package-number-{dir}/lib/module-{file}.js");
                app = app.file(&path, &noise(dir * 100 + file, 3_000));
            }
        }
        app
    };
    for version in ["1", "2", "3"] {
        let bundle = make(version).pack(&temp.join("app"));
        let begin = Instant::now();
        drop(start(&store, &bundle).unwrap());
        println!("version {version}: first start {:?}", begin.elapsed());
        let mut times: Vec<Duration> = (0..15)
            .map(|_| {
                let begin = Instant::now();
                assert!(start(&store, &bundle).unwrap().1.is_empty());
                begin.elapsed()
            })
            .collect();
        times.sort();
        println!("version {version}: later start, median {:?}, worst {:?}", times[7], times[14]);
        let tool: Vec<Duration> = (0..5)
            .map(|_| {
                let begin = Instant::now();
                start_with(&store, &bundle, Compare::Only(&["version"])).unwrap();
                begin.elapsed()
            })
            .collect();
        println!("version {version}: later start that compares one file {tool:?}");
    }
}
