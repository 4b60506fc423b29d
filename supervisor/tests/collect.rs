//! Garbage collection: never what runs, and freed bytes that are true.
#![allow(missing_docs)]

mod common;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, SystemTime};

use common::{App, Temp, child, disk_usage, noise, start};
use kitbag_format::Bundle;
use kitbag_supervisor::store::Store;
use kitbag_supervisor::store::collect::{Policy, Report, collect};

/// Gives up everything that is not used.
const NONE: Policy = Policy { keep: 0, older_than: Duration::ZERO, spare: Duration::ZERO, dry_run: false };

/// Kills what a test started.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A store with versions of an app, the last one used last; none used within the last hours.
fn versions(temp: &Temp, count: u64) -> (Store, Vec<Bundle>) {
    let store = temp.store();
    let bundles: Vec<Bundle> = (0..count)
        .map(|version| {
            let app = App::new("app", &version.to_string())
                .dir("bin")
                .program("bin/sleep", &fs::read("/bin/sleep").unwrap())
                .file("common", &noise(1, 300_000))
                .file("own", &noise(100 + version, 50_000));
            let bundle = app.pack(&temp.join(&format!("app{version}")));
            start(&store, &bundle).unwrap();
            bundle
        })
        .collect();
    for (age, bundle) in bundles.iter().rev().enumerate() {
        idle(&store, bundle, Duration::from_secs(7200 + 60 * age as u64));
    }
    (store, bundles)
}

fn idle(store: &Store, bundle: &Bundle, time: Duration) {
    let record = store.tree_dir(&bundle.digest()).join("record");
    common::open(&record).set_modified(SystemTime::now() - time).unwrap();
}

fn trees(store: &Store) -> usize {
    fs::read_dir(store.trees()).unwrap().count()
}

/// One test at a time: a process that another test starts at this moment has our descriptors, locks included, until
/// it executes, and a locked tree stays.
fn alone() -> std::sync::MutexGuard<'static, ()> {
    static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn why(report: &Report, bundle: &Bundle) -> Option<&'static str> {
    report.items.iter().find(|item| item.digest == bundle.digest()).unwrap().kept
}

#[test]
fn the_last_used_stay_and_freed_bytes_are_true() {
    let _alone = alone();
    let temp = Temp::new();
    let (store, bundles) = versions(&temp, 4);
    let policy = Policy { keep: 2, spare: Duration::ZERO, ..Policy::default() };
    let before = disk_usage(&store.trees());
    let dry = collect(&store, &Policy { dry_run: true, ..policy }).unwrap();
    assert_eq!((trees(&store), disk_usage(&store.trees())), (4, before));
    let report = collect(&store, &policy).unwrap();
    assert_eq!(trees(&store), 2);
    assert_eq!(before - disk_usage(&store.trees()), report.freed);
    assert_eq!(dry.freed, report.freed);
    assert!(report.freed >= 100_000 && report.freed < 300_000, "{report}");
    for (bundle, kept) in bundles.iter().zip([false, false, true, true]) {
        assert_eq!(why(&report, bundle).is_some(), kept, "{report}");
        assert_eq!(store.place.join("v1/locks").join(bundle.digest().to_string()).exists(), kept);
    }
    assert!(report.to_string().contains("removed, "), "{report}");
}

/// A process that another test starts at this moment has our descriptors, locks included, until it executes.
fn goes_at_last(store: &Store) {
    let begin = std::time::Instant::now();
    while trees(store) > 0 {
        assert!(begin.elapsed() < Duration::from_secs(10), "{}", collect(store, &NONE).unwrap());
        collect(store, &NONE).unwrap();
    }
}

#[test]
fn a_tree_that_a_program_runs_from_stays() {
    let _alone = alone();
    let temp = Temp::new();
    let (store, bundles) = versions(&temp, 2);
    let program = store.tree_dir(&bundles[0].digest()).join("tree/bin/sleep");
    let running = Guard(std::process::Command::new(program).arg("600").spawn().unwrap());
    let report = collect(&store, &NONE).unwrap();
    assert_eq!(why(&report, &bundles[0]), Some("in use"));
    assert_eq!(trees(&store), 1);
    drop(running);
    goes_at_last(&store);
}

#[test]
fn a_tree_that_is_a_working_folder_or_has_an_open_file_stays() {
    let _alone = alone();
    let temp = Temp::new();
    let (store, bundles) = versions(&temp, 3);
    let root = |number: usize| store.tree_dir(&bundles[number].digest()).join("tree");
    let sleep = || std::process::Command::new("/bin/sleep");
    let folder = Guard(sleep().arg("600").current_dir(root(0)).spawn().unwrap());
    let file = Guard(sleep().arg("600").stdin(common::open(&root(1).join("own"))).spawn().unwrap());
    let report = collect(&store, &NONE).unwrap();
    assert_eq!(why(&report, &bundles[0]), Some("in use"));
    assert_eq!(why(&report, &bundles[1]), Some("in use"));
    assert_eq!(why(&report, &bundles[2]), None);
    drop((folder, file));
}

#[test]
fn a_tree_that_was_just_started_stays() {
    let _alone = alone();
    let temp = Temp::new();
    let (store, bundles) = versions(&temp, 1);
    fs::write(store.tree_dir(&bundles[0].digest()).join("start"), "x").unwrap();
    assert_eq!(why(&collect(&store, &NONE).unwrap(), &bundles[0]), Some("used a moment ago"));
    assert_eq!(trees(&store), 1);
}

/// Holds a tree as a service bundle does, until its input ends.
#[test]
#[ignore = "a role that another test plays in a child process"]
fn child_holds() {
    let var = |name: &str| PathBuf::from(std::env::var_os(name).unwrap());
    let bundle = Bundle::open_path(&var("KITBAG_TEST_BUNDLE")).unwrap();
    let store = Store::at(var("KITBAG_TEST_STORE"));
    let tree = start(&store, &bundle).unwrap().0;
    println!("holding");
    let _ = std::io::stdin().read(&mut [0]);
    drop(tree);
}

#[test]
fn a_tree_that_a_service_bundle_holds_stays() {
    let _alone = alone();
    let temp = Temp::new();
    let (store, bundles) = versions(&temp, 2);
    let path = temp.join("app0");
    let variables: [(&str, &Path); 2] = [("KITBAG_TEST_STORE", &store.place), ("KITBAG_TEST_BUNDLE", &path)];
    let mut command = child("child_holds", &variables);
    let mut holder = Guard(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap());
    let mut said = String::new();
    let mut output = holder.0.stdout.take().unwrap();
    while !said.contains("holding") {
        let mut byte = [0];
        assert_eq!(output.read(&mut byte).unwrap(), 1, "the holder ended: {said}");
        said.push(char::from(byte[0]));
    }
    let report = collect(&store, &NONE).unwrap();
    assert_eq!(why(&report, &bundles[0]), Some("in use"), "{report}");
    assert_eq!(trees(&store), 1);
    drop(holder);
    collect(&store, &NONE).unwrap();
    assert_eq!(trees(&store), 0);
}

#[test]
fn what_is_left_of_dead_processes_goes_and_of_living_ones_stays() {
    let _alone = alone();
    let temp = Temp::new();
    let (store, bundles) = versions(&temp, 1);
    let digest = bundles[0].digest();
    for name in [format!("{digest}"), format!("{digest}.heal"), "unknown".into()] {
        fs::create_dir_all(store.work(&name).join("tree")).unwrap();
        fs::write(store.work(&name).join("tree/file"), noise(1, 10_000)).unwrap();
    }
    let lock = store.try_lock(&digest).unwrap().unwrap();
    collect(&store, &Policy::default()).unwrap();
    assert_eq!(fs::read_dir(store.work("")).unwrap().count(), 2);
    drop(lock);
    assert!(collect(&store, &Policy::default()).unwrap().freed > 20_000);
    assert_eq!(fs::read_dir(store.work("")).unwrap().count(), 0);
    assert_eq!(trees(&store), 1);
}

#[test]
fn after_a_collection_the_sharing_trees_are_found_right_without_a_word() {
    let _alone = alone();
    let temp = Temp::new();
    let (store, bundles) = versions(&temp, 2);
    collect(&store, &Policy { keep: 1, spare: Duration::ZERO, ..Policy::default() }).unwrap();
    assert_eq!(trees(&store), 1);
    let (tree, said) = start(&store, &bundles[1]).unwrap();
    assert!(!tree.unpacked && said.is_empty(), "{said:?}");
}

#[test]
fn a_first_start_collects_by_itself() {
    let _alone = alone();
    let temp = Temp::new();
    let (store, bundles) = versions(&temp, 4);
    for bundle in &bundles {
        idle(&store, bundle, Duration::from_secs(100_000));
    }
    let next = App::new("app", "next").file("x", b"x").pack(&temp.join("next"));
    start(&store, &next).unwrap();
    assert_eq!(trees(&store), 3);
}
