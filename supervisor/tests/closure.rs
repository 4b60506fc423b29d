//! The closure's path: programs are shared between versions by it, and find their libraries whichever versions stay.
#![allow(missing_docs)]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant, SystemTime};

use common::{App, Temp, child, disk_usage, noise, start, start_with};
use kitbag_format::Bundle;
use kitbag_format::slots::{Pad, Slot};
use kitbag_supervisor::store::collect::{Policy, collect};
use kitbag_supervisor::store::heal;
use kitbag_supervisor::store::record::Record;
use kitbag_supervisor::store::unpack::Compare;
use kitbag_supervisor::store::{self, Store, StoreError};

const ROOM: u32 = 600;
const PROGRAM: usize = 400_000;
const LIBRARY: &str = ".kitbag/lib/libc.so.6";
/// Gives up everything that is not used.
const NONE: Policy = Policy { keep: 0, older_than: Duration::ZERO, spare: Duration::ZERO, dry_run: false };

/// A file of noise with these texts in slots of its beginning.
fn with_slots(seed: u64, length: usize, pad: Pad, texts: &[&str]) -> (Vec<u8>, Vec<Slot>) {
    let mut content = noise(seed, length);
    let mut slots = Vec::new();
    for (number, text) in (0..).zip(texts) {
        let slot = Slot { at: 100 + number * 1000, length: ROOM, pad };
        let range = slot.at as usize..slot.end() as usize;
        content[range.clone()].fill(pad.byte());
        content[range][..text.len()].copy_from_slice(text.as_bytes());
        slots.push(slot);
    }
    (content, slots)
}

/// A version of an app: a program that names its closure alone, one that also names its tree, a script, libraries.
fn app_with(version: &str, libraries: u64) -> App {
    let (loader, folder) = ("/kitbag-tree/.kitbag/lib/ld.so", "/kitbag-tree/.kitbag/lib");
    let (program, in_program) = with_slots(1, PROGRAM, Pad::Nul, &[loader, folder]);
    let (mixed, in_mixed) =
        with_slots(2, 5000, Pad::Nul, &[loader, "/kitbag-tree/lib:/kitbag-tree/.kitbag/lib"]);
    let (script, in_script) = with_slots(3, 5000, Pad::Space, &["/kitbag-tree/bin/app"]);
    App::new("shares", version)
        .dir(".kitbag")
        .dir(".kitbag/lib")
        .program(".kitbag/lib/ld.so", &noise(10, 30_000))
        .file(LIBRARY, &noise(libraries, 50_000))
        .symlink(".kitbag/lib/libc.so", "libc.so.6")
        .dir("bin")
        .slotted("bin/app", &program, &in_program)
        .link("bin/second", "bin/app")
        .slotted("bin/mixed", &mixed, &in_mixed)
        .slotted("bin/script", &script, &in_script)
        .file("version", version.as_bytes())
}

fn app(version: &str) -> App {
    app_with(version, 11)
}

/// Two versions with one closure, both started, the second one last.
struct Two {
    temp: Temp,
    store: Store,
    apps: [App; 2],
    bundles: [Bundle; 2],
}

impl Two {
    fn new() -> Self {
        let temp = Temp::new();
        let (store, apps) = (temp.store(), [app("1"), app("2")]);
        let bundles = [apps[0].pack(&temp.join("1")), apps[1].pack(&temp.join("2"))];
        let two = Self { temp, store, apps, bundles };
        for number in 0..2 {
            assert!(two.start(number).is_empty());
        }
        two
    }

    fn root(&self, number: usize) -> PathBuf {
        self.store.tree_dir(&self.bundles[number].digest()).join("tree")
    }

    /// The path of the closure.
    fn link(&self) -> PathBuf {
        self.apps[0].closure_beside(&self.root(0)).unwrap()
    }

    /// Starts a version, and asserts that its tree is right then, and so is what its programs name. Returns what it said.
    fn start(&self, number: usize) -> Vec<String> {
        let (tree, said) = start(&self.store, &self.bundles[number]).unwrap();
        self.apps[number].assert_right(&tree.root);
        assert!(leads_to(&self.link(), &tree.root));
        assert_eq!(tree.opened_at(LIBRARY), self.link().join(LIBRARY));
        assert_eq!(tree.opened_at("bin/app"), tree.root.join("bin/app"));
        assert_eq!(heal::verify_unpacked(&self.store, &self.bundles[number]).unwrap(), Some(vec![]));
        said
    }

    /// Says that no version was used for a while.
    fn idle(&self) {
        for bundle in &self.bundles {
            let record = self.store.tree_dir(&bundle.digest()).join("record");
            if let Ok(record) = fs::File::open(record) {
                record.set_modified(SystemTime::now() - Duration::from_secs(7200)).unwrap();
            }
        }
    }

    fn remove(&self, number: usize) {
        store::remove(&self.store.tree_dir(&self.bundles[number].digest())).unwrap();
    }
}

fn leads_to(link: &Path, root: &Path) -> bool {
    assert!(fs::symlink_metadata(link).unwrap().is_symlink());
    link.canonicalize().is_ok_and(|found| found == root)
}

fn inode(root: &Path, name: &str) -> u64 {
    fs::metadata(root.join(name)).unwrap().ino()
}

/// Does something to a file in a folder that is read-only.
fn in_writable(path: &Path, change: impl FnOnce(&Path)) {
    let parent = path.parent().unwrap();
    fs::set_permissions(parent, fs::Permissions::from_mode(0o755)).unwrap();
    change(path);
    fs::set_permissions(parent, fs::Permissions::from_mode(0o555)).unwrap();
}

/// Writes over a file, which has its size, its permissions and its time of change of content again.
fn overwrite(path: &Path) {
    let (mode, modified) = (common::mode(path), fs::metadata(path).unwrap().modified().unwrap());
    let mut content = fs::read(path).unwrap();
    *content.last_mut().unwrap() ^= 1;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(path, content).unwrap();
    common::open(path).set_modified(modified).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// One test at a time: a process that another test starts at this moment has our descriptors, locks included, until
/// it executes, and a locked tree stays.
fn alone() -> std::sync::MutexGuard<'static, ()> {
    static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[test]
fn versions_with_one_closure_share_their_programs() {
    let _alone = alone();
    let temp = Temp::new();
    let (store, apps) = (temp.store(), [app("1"), app("2")]);
    let mut usage = Vec::new();
    let roots = apps.each_ref().map(|app| {
        let bundle = app.pack(&temp.join(&app.manifest.version));
        let (tree, said) = start(&store, &bundle).unwrap();
        assert!(tree.unpacked && said.is_empty(), "{said:?}");
        usage.push(disk_usage(&store.place.join("v1")));
        tree.root
    });
    for (app, root) in apps.iter().zip(&roots) {
        app.assert_right(root);
        let link = app.closure_beside(root).unwrap();
        let program = fs::read(root.join("bin/app")).unwrap();
        assert!(program[100..].starts_with(link.join(".kitbag/lib/ld.so\0").as_os_str().as_encoded_bytes()));
        assert!(link.join(LIBRARY).exists());
    }
    for name in ["bin/app", "bin/second", LIBRARY, ".kitbag/lib/ld.so"] {
        assert_eq!(inode(&roots[0], name), inode(&roots[1], name), "{name}");
    }
    for name in ["bin/mixed", "bin/script", "version"] {
        assert_ne!(inode(&roots[0], name), inode(&roots[1], name), "{name} names its tree, or differs");
    }
    assert!(usage[1] - usage[0] < 70_000, "{usage:?}: the second one costs more than what is new in it");
    // Records followed: nothing was said, and nothing is to be compared.
    for root in &roots {
        let record = Record::parse(&fs::read(root.with_file_name("record")).unwrap()).unwrap();
        let folder = kitbag_format::extract::open_dir(root).unwrap();
        assert_eq!(record.differing(std::os::fd::AsFd::as_fd(&folder), None), Vec::<usize>::new());
    }
}

#[test]
fn another_closure_has_another_path_and_nothing_is_shared_that_names_it() {
    let _alone = alone();
    let two = Two::new();
    let other = app_with("3", 12);
    let bundle = other.pack(&two.temp.join("3"));
    let (tree, said) = start(&two.store, &bundle).unwrap();
    assert!(said.is_empty(), "{said:?}");
    other.assert_right(&tree.root);
    assert_ne!(other.closure_beside(&tree.root).unwrap(), two.link());
    assert_ne!(inode(&tree.root, "bin/app"), inode(&two.root(0), "bin/app"));
    assert_eq!(inode(&tree.root, ".kitbag/lib/ld.so"), inode(&two.root(0), ".kitbag/lib/ld.so"));
    assert_eq!(fs::read_dir(two.store.closures()).unwrap().count(), 2);
    for number in [0, 1, 0] {
        assert!(two.start(number).is_empty());
    }
}

#[test]
fn what_names_no_closure_gets_none() {
    let _alone = alone();
    let temp = Temp::new();
    let store = temp.store();
    let (program, slots) = with_slots(1, 5000, Pad::Nul, &["/kitbag-tree/lib/ld.so"]);
    let plain = App::new("plain", "1").dir(".kitbag").dir(".kitbag/lib").file(LIBRARY, b"x");
    let leaves = App::new("leaves", "1")
        .dir(".kitbag")
        .dir(".kitbag/lib")
        .symlink(".kitbag/lib/x", "../../version")
        .slotted("app", &program, &slots)
        .file("version", b"1");
    let apps = [App::sample("1"), App::new("own", "1").slotted("app", &program, &slots), plain, leaves];
    for app in &apps {
        let bundle = app.pack(&temp.join(&app.manifest.name));
        let tree = start(&store, &bundle).unwrap().0;
        app.assert_right(&tree.root);
        assert!(!store.closures().exists(), "{}", app.manifest.name);
        assert!(!store.place.join("v1/locks/closures").exists(), "{}", app.manifest.name);
    }
}

#[test]
fn damage_to_the_closure_is_healed_by_either_version() {
    let _alone = alone();
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 5] = [
        ("it had been deleted", |path| in_writable(path, |path| fs::remove_file(path).unwrap())),
        ("it had been emptied", |path| {
            fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
            fs::write(path, "").unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(0o444)).unwrap();
        }),
        ("its content had changed", overwrite),
        ("its content had changed", |path| {
            in_writable(path, |path| {
                let other = path.with_file_name("other");
                fs::write(&other, noise(77, 50_000)).unwrap();
                fs::set_permissions(&other, fs::Permissions::from_mode(0o444)).unwrap();
                fs::rename(other, path).unwrap();
            });
        }),
        ("something else was in its place", |path| {
            in_writable(path, |path| {
                fs::remove_file(path).unwrap();
                fs::create_dir(path).unwrap();
            });
        }),
    ];
    for (what, damage) in damages {
        for (led_to, first) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let two = Two::new();
            assert!(two.start(led_to).is_empty());
            damage(&two.link().join(LIBRARY));
            let findings = heal::verify_unpacked(&two.store, &two.bundles[first]).unwrap().unwrap();
            assert!(findings.iter().any(|found| found.path == LIBRARY.as_bytes()), "{what}: {findings:?}");
            let said: Vec<String> =
                [first, 1 - first].into_iter().flat_map(|number| two.start(number)).collect();
            let healed = format!("healed {LIBRARY}: {what}");
            assert!(said.contains(&healed), "{what}, led to {led_to}, first {first}: {said:?}");
            for number in [0, 1, 0, 1] {
                assert!(two.start(number).is_empty(), "said again");
            }
        }
    }
}

#[test]
fn damage_to_the_link_is_mended_without_a_word() {
    let _alone = alone();
    let two = Two::new();
    let link = two.link();
    let elsewhere = two.temp.join("elsewhere");
    fs::create_dir_all(elsewhere.join(".kitbag/lib")).unwrap();
    let lead_to = |target: &Path| {
        store::remove(&link).unwrap();
        symlink(target, &link).unwrap();
    };
    let damages: [&dyn Fn(); 6] = [
        &|| fs::remove_file(&link).unwrap(),
        &|| assert!(store::remove(&two.store.closures()).is_ok()),
        &|| lead_to(Path::new("nowhere")),
        &|| lead_to(&elsewhere),
        &|| {
            store::remove(&link).unwrap();
            fs::create_dir_all(link.join(".kitbag/lib")).unwrap();
        },
        &|| fs::create_dir(link.with_extension("new")).unwrap(),
    ];
    for (number, damage) in damages.iter().enumerate() {
        for version in 0..2 {
            damage();
            if number < 5 {
                let found = heal::verify_unpacked(&two.store, &two.bundles[version]).unwrap().unwrap();
                assert!(!found.is_empty(), "damage {number}");
            }
            // A tool's start, too.
            let only = Compare::Only(&["bin/app", LIBRARY]);
            assert!(start_with(&two.store, &two.bundles[version], only).unwrap().1.is_empty());
            assert!(leads_to(&link, &two.root(version)), "damage {number}");
            assert!(two.start(version).is_empty());
        }
    }
    assert!(elsewhere.join(".kitbag/lib").exists());
}

#[test]
fn a_removed_version_hands_the_closure_over_and_the_last_one_takes_it_along() {
    let _alone = alone();
    for (led_to, goes) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
        let two = Two::new();
        assert!(two.start(led_to).is_empty());
        two.idle();
        let stays = 1 - goes;
        let record = two.store.tree_dir(&two.bundles[stays].digest()).join("record");
        common::open(&record).set_modified(SystemTime::now()).unwrap();
        let before = disk_usage(&two.store.trees());
        let report = collect(&two.store, &NONE).unwrap();
        assert_eq!(before - disk_usage(&two.store.trees()), report.freed, "{report}");
        assert!(!two.root(goes).exists() && two.root(stays).exists(), "{report}");
        assert!(leads_to(&two.link(), &two.root(stays)), "led to {led_to}, {goes} goes");
        assert!(two.link().join(LIBRARY).exists());
        assert!(two.start(stays).is_empty());
        two.idle();
        let report = collect(&two.store, &NONE).unwrap();
        assert!(!two.root(stays).exists(), "{report}");
        assert!(!two.store.closures().exists(), "{report}");
        assert_eq!(fs::read_dir(two.store.place.join("v1/locks")).unwrap().count(), 0);
        for number in 0..2 {
            assert!(two.start(number).is_empty(), "unpacked again");
        }
    }
}

/// Kills what a test started.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_tree_whose_libraries_a_program_of_another_one_has_open_stays() {
    let _alone = alone();
    let two = Two::new();
    assert!(two.start(0).is_empty());
    two.idle();
    // What a program of the second version does, by the link, which leads to the first.
    let library = common::open(&two.link().join(LIBRARY));
    let running = Guard(std::process::Command::new("/bin/sleep").arg("600").stdin(library).spawn().unwrap());
    let report = collect(&two.store, &NONE).unwrap();
    assert!(two.root(0).exists() && !two.root(1).exists(), "{report}");
    assert!(two.link().join(LIBRARY).exists());
    drop(running);
    collect(&two.store, &NONE).unwrap();
    assert!(!two.root(0).exists() && !two.store.closures().exists());
}

#[test]
fn a_collection_mends_links_of_trees_that_somebody_removed_and_sweeps_the_rest() {
    let _alone = alone();
    let two = Two::new();
    two.remove(1);
    assert!(!two.link().exists());
    let strangers = ["probe", "x.new"].map(|name| two.store.closures().join(name));
    symlink("../trees", &strangers[0]).unwrap();
    fs::create_dir(&strangers[1]).unwrap();
    collect(&two.store, &Policy::default()).unwrap();
    assert!(leads_to(&two.link(), &two.root(0)));
    assert!(strangers.iter().all(|path| fs::symlink_metadata(path).is_err()));
    two.remove(0);
    collect(&two.store, &Policy::default()).unwrap();
    assert!(!two.store.closures().exists());
}

#[test]
fn a_store_without_links_names_the_tree_as_before() {
    let _alone = alone();
    let temp = Temp::new();
    let store = temp.store();
    fs::write(store.closures(), "no folder").unwrap();
    let apps = [app("1"), app("2")];
    let bundles = apps.each_ref().map(|app| app.pack(&temp.join(&app.manifest.version)));
    let check = |number: usize| {
        let (tree, said) = start(&store, &bundles[number]).unwrap();
        let program = fs::read(tree.root.join("bin/app")).unwrap();
        assert!(program[100..].starts_with(tree.root.as_os_str().as_encoded_bytes()));
        apps[number].assert_right(&tree.root);
        assert_eq!(tree.opened_at(LIBRARY), tree.root.join(LIBRARY));
        assert_eq!(heal::verify_unpacked(&store, &bundles[number]).unwrap(), Some(vec![]));
        said
    };
    for number in [0, 1, 0, 1] {
        assert!(check(number).is_empty());
    }
    let root = |number: usize| store.tree_dir(&bundles[number].digest()).join("tree");
    assert_ne!(inode(&root(0), "bin/app"), inode(&root(1), "bin/app"));
    overwrite(&root(0).join("bin/app"));
    assert_eq!(check(0).len(), 2, "the program and its second name");
    // With its record a tree loses what it was filled with; now there can be links.
    fs::remove_file(store.closures()).unwrap();
    assert!(check_quiet(&store, &bundles[1]), "its record says how it is filled");
    fs::remove_file(root(1).with_file_name("record")).unwrap();
    let said = start(&store, &bundles[1]).unwrap().1;
    assert_eq!(said[1], "healed 3 of the files: they named another folder than their own", "{said:?}");
    apps[1].assert_right(&root(1));
    assert!(check_quiet(&store, &bundles[1]) && check_quiet(&store, &bundles[0]));
}

fn check_quiet(store: &Store, bundle: &Bundle) -> bool {
    start(store, bundle).unwrap().1.is_empty()
}

#[test]
fn a_store_that_cannot_be_written_to_serves_versions_that_share() {
    let _alone = alone();
    let two = Two::new();
    // The lock cannot be had, as on a disk that is mounted read-only; the link leads to the second version.
    let lock = two.store.place.join("v1/locks/closures");
    fs::remove_file(&lock).unwrap();
    fs::create_dir(&lock).unwrap();
    for bundle in &two.bundles {
        assert!(check_quiet(&two.store, bundle));
    }
    assert!(leads_to(&two.link(), &two.root(1)));
    // What would be executed is not what was compared.
    in_writable(&two.root(1).join(LIBRARY), |path| fs::remove_file(path).unwrap());
    let error = start(&two.store, &two.bundles[0]).map(|_| ()).unwrap_err();
    assert!(error.to_string().starts_with("cannot lock "), "{error}");
    fs::remove_dir(&lock).unwrap();
    assert!(two.start(0).is_empty());
}

#[test]
fn versions_that_could_not_share_their_libraries_run_by_turns() {
    let _alone = alone();
    let temp = Temp::new();
    let (store, apps) = (temp.store(), [app("1"), app("2")]);
    let bundles = [apps[0].pack(&temp.join("1")), apps[1].pack(&temp.join("2"))];
    let first = start(&store, &bundles[0]).unwrap().0;
    // Without its record it gives nothing away.
    fs::remove_file(first.dir.join("record")).unwrap();
    let (apps, root) = (apps, first.root.clone());
    drop(first);
    let second = start(&store, &bundles[1]).unwrap().0;
    assert_ne!(inode(&root, LIBRARY), inode(&second.root, LIBRARY));
    drop(second);
    start(&store, &bundles[0]).unwrap();
    let two = Two { temp, store, apps, bundles };
    for number in [0, 1, 0, 1] {
        assert!(two.start(number).is_empty());
    }
}

#[test]
fn a_moved_store_is_filled_in_anew_with_its_closures() {
    let _alone = alone();
    let mut two = Two::new();
    let (old, moved) = (two.store.place.clone(), two.temp.join("moved"));
    fs::rename(&old, &moved).unwrap();
    two.store = Store::at(moved);
    for number in 0..2 {
        let said = two.start(number);
        assert_eq!(said, ["healed 4 of the files: they named another folder than their own"]);
        assert!(two.start(number).is_empty());
    }
    let program = fs::read(two.root(0).join("bin/app")).unwrap();
    assert!(program[100..].starts_with(two.link().as_os_str().as_encoded_bytes()));
}

/// A disk with room for so many files, which is unmounted in the end.
struct Disk(PathBuf);

impl Disk {
    /// `None` where nothing can be mounted.
    fn mount(at: PathBuf, files: usize) -> Option<Self> {
        fs::create_dir_all(&at).unwrap();
        let disk = Self(at);
        disk.set("mode=755", files).then_some(disk)
    }

    fn set(&self, options: &str, files: usize) -> bool {
        let mut mount = std::process::Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", &format!("{options},nr_inodes={files}"), "kitbag-test"])
            .arg(&self.0);
        mount.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Every call that makes a file fails in turn.
#[test]
fn a_disk_that_is_full_at_any_moment_leaves_nothing_that_the_next_start_cannot_mend() {
    let _alone = alone();
    let temp = Temp::new();
    let apps = [app("1"), app("2")];
    let bundles = [apps[0].pack(&temp.join("1")), apps[1].pack(&temp.join("2"))];
    let mut full = 0;
    for files in 8..70 {
        let Some(disk) = Disk::mount(temp.join("disk"), files) else {
            return eprintln!("SKIPPED: a full disk: a small tmpfs cannot be mounted here");
        };
        let store = Store::at(disk.0.join("store"));
        if ["v1/trees", "v1/locks", "v1/work"]
            .iter()
            .any(|n| fs::create_dir_all(store.place.join(n)).is_err())
        {
            continue;
        }
        for bundle in &bundles {
            match start(&store, bundle) {
                Ok((_, said)) => assert!(said.is_empty(), "{files}: {said:?}"),
                Err(StoreError::Full { .. }) => full += 1,
                Err(error) => assert!(error.is_full(), "{files}: {error}"),
            }
        }
        assert!(disk.set("remount", 1000));
        for (app, bundle) in apps.iter().zip(&bundles).chain(apps.iter().zip(&bundles)) {
            let (tree, said) = start(&store, bundle).unwrap();
            assert!(said.is_empty(), "{files}: {said:?}");
            app.assert_right(&tree.root);
            assert!(leads_to(&app.closure_beside(&tree.root).unwrap(), &tree.root), "{files}");
        }
        assert_eq!(fs::read_dir(store.work("")).unwrap().count(), 0, "{files}");
    }
    assert!(full > 20, "only {full} starts found the disk full");
}

/// A start in a process of its own: `KITBAG_TEST_STORE`, `KITBAG_TEST_BUNDLE`.
#[test]
#[ignore = "a role that other tests play in a child process"]
fn child_starts() {
    let var = |name: &str| PathBuf::from(std::env::var_os(name).unwrap());
    let bundle = Bundle::open_path(&var("KITBAG_TEST_BUNDLE")).unwrap();
    let (tree, said) = start(&Store::at(var("KITBAG_TEST_STORE")), &bundle).unwrap();
    assert!(tree.opened_at(LIBRARY).exists());
    println!("unpacked={} said={said:?}", tree.unpacked);
}

/// Collects over and over, until its input ends.
#[test]
#[ignore = "a role that another test plays in a child process"]
fn child_collects() {
    let store = Store::at(PathBuf::from(std::env::var_os("KITBAG_TEST_STORE").unwrap()));
    let ended = std::thread::spawn(|| std::io::Read::read(&mut std::io::stdin(), &mut [0]));
    while !ended.is_finished() {
        collect(&store, &NONE).unwrap();
    }
}

fn starting(store: &Store, bundle: &Path) -> std::process::Command {
    child("child_starts", &[("KITBAG_TEST_STORE", &store.place), ("KITBAG_TEST_BUNDLE", bundle)])
}

#[test]
fn first_starts_of_many_versions_at_once_beside_a_collection() {
    let _alone = alone();
    let temp = Temp::new();
    let store = temp.store();
    let apps: Vec<App> = (0..5).map(|version| app(&version.to_string())).collect();
    let paths: Vec<PathBuf> = apps.iter().map(|app| temp.join(&app.manifest.version)).collect();
    let bundles: Vec<Bundle> = apps.iter().zip(&paths).map(|(app, path)| app.pack(path)).collect();
    let mut collector = child("child_collects", &[("KITBAG_TEST_STORE", store.place.as_path())]);
    let collector = Guard(collector.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap());
    for round in 0..5 {
        let spawn = |path: &PathBuf| starting(&store, path).stdout(Stdio::piped()).spawn().unwrap();
        let children: Vec<Child> = paths.iter().chain(&paths).map(spawn).collect();
        for child in children {
            let output = child.wait_with_output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && text.contains("said=[]"), "round {round}: {text}");
        }
        // From now on the collection takes some; the next round, which begins meanwhile, makes them anew.
        for bundle in &bundles[round % 3..] {
            let record = store.tree_dir(&bundle.digest()).join("record");
            if let Ok(record) = fs::File::open(record) {
                record.set_modified(SystemTime::now() - Duration::from_secs(60)).unwrap();
            }
        }
        let begin = Instant::now();
        while bundles.iter().all(|bundle| store.tree_dir(&bundle.digest()).exists()) {
            assert!(begin.elapsed() < Duration::from_secs(30), "round {round}: nothing was collected");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    drop(collector);
    for (app, bundle) in apps.iter().zip(&bundles) {
        let (tree, said) = start(&store, bundle).unwrap();
        assert!(said.is_empty() && tree.opened_at(LIBRARY).exists(), "{said:?}");
        app.assert_right(&tree.root);
    }
}

#[test]
fn a_start_killed_at_any_moment_beside_another_version_leaves_nothing_that_the_next_cannot_mend() {
    let _alone = alone();
    let temp = Temp::new();
    let apps = [app("1"), app("2")];
    let paths = [temp.join("1"), temp.join("2")];
    let bundles = [apps[0].pack(&paths[0]), apps[1].pack(&paths[1])];
    let mut interrupted = 0;
    for round in 0..60u64 {
        let round_temp = Temp::below(&temp.0);
        let store = round_temp.store();
        start(&store, &bundles[0]).unwrap();
        let mut child = starting(&store, &paths[1]).stdout(Stdio::null()).spawn().unwrap();
        // The moment is what is random here: from before the first file until after the last.
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_micros(500 + 300 * round) {
            std::hint::spin_loop();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        interrupted += usize::from(!store.tree_dir(&bundles[1].digest()).exists());
        for number in [round as usize % 2, 1 - round as usize % 2] {
            let (tree, said) = start(&store, &bundles[number]).unwrap();
            assert!(said.is_empty(), "round {round}: {said:?}");
            apps[number].assert_right(&tree.root);
            assert!(leads_to(&apps[number].closure_beside(&tree.root).unwrap(), &tree.root));
        }
        assert_eq!(fs::read_dir(store.work("")).unwrap().count(), 0, "round {round}");
        collect(&store, &Policy::default()).unwrap();
        assert_eq!(fs::read_dir(store.closures()).unwrap().count(), 1, "round {round}");
    }
    assert!(interrupted > 5, "only {interrupted} starts were interrupted");
}
