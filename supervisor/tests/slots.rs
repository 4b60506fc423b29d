//! Files that name their tree: filled in where the tree is, compared, healed, never shared.
#![allow(missing_docs)]

mod common;

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use common::{App, Temp, child, noise, start, start_with};
use kitbag_format::Bundle;
use kitbag_format::slots::{Pad, Slot};
use kitbag_supervisor::store::heal::{self, What};
use kitbag_supervisor::store::place::{self, Facts};
use kitbag_supervisor::store::record::{ANY_BOOT, Record};
use kitbag_supervisor::store::unpack::Compare;
use kitbag_supervisor::store::{Store, StoreError};
use kitbag_supervisor::tool::memory;

const ROOM: u32 = 400;

/// A file of noise with these slots, each with this text in it.
fn with_slots(seed: u64, length: usize, texts: &[(u64, Pad, &str)]) -> (Vec<u8>, Vec<Slot>) {
    let mut content = noise(seed, length);
    let slots: Vec<Slot> =
        texts.iter().map(|(at, pad, _)| Slot { at: *at, length: ROOM, pad: *pad }).collect();
    for (slot, (_, pad, text)) in slots.iter().zip(texts) {
        let range = slot.at as usize..slot.end() as usize;
        content[range.clone()].fill(pad.byte());
        content[range][..text.len()].copy_from_slice(text.as_bytes());
    }
    (content, slots)
}

/// A program in one frame, one over three with a slot across a cut, a script, a second name, a library.
fn app(version: &str) -> App {
    let (small, in_small) = with_slots(1, 3000, &[(500, Pad::Nul, "/kitbag-tree/lib/ld.so")]);
    // A frame has 64 KiB: this file begins at 5 KiB of the first, and its second slot lies across the end of it.
    let across = (64 << 10) - (5 << 10) - 100;
    let texts = [(0, Pad::Nul, "/kitbag-tree/lib"), (across, Pad::Nul, "/kitbag-tree:/kitbag-tree/lib:/x")];
    let (large, in_large) = with_slots(2, 140_000, &texts);
    let (script, in_script) = with_slots(3, 900, &[(2, Pad::Space, "/kitbag-tree/bin/app")]);
    App::new("slots", version)
        .dir("bin")
        .dir("lib")
        .slotted("bin/app", &small, &in_small)
        .slotted("bin/large", &large, &in_large)
        .slotted("bin/script", &script, &in_script)
        .link("bin/second", "bin/large")
        .file("lib/lib.so", &noise(4, 50_000))
        .file("version", version.as_bytes())
}

fn set_up() -> (Temp, Store, App, Bundle) {
    let temp = Temp::new();
    let (store, app) = (temp.store(), app("1"));
    let bundle = app.pack(&temp.join("app"));
    (temp, store, app, bundle)
}

fn overwrite(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mode = common::mode(path);
    let mut content = fs::read(path).unwrap();
    change(&mut content);
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_slot_lies_across_two_frames() {
    let (_temp, _store, _app, bundle) = set_up();
    let index = bundle.index().unwrap();
    let file = index.find(b"bin/large").unwrap();
    let slot = index.slots(file)[1];
    let start = index.spans().nth(file).unwrap().start;
    let mut ends = index.frames.iter().scan(0, |end, frame| {
        *end += u64::from(frame.raw);
        Some(*end)
    });
    assert!(ends.any(|end| start + slot.at < end && end < start + slot.end()));
}

#[test]
fn a_tree_names_its_own_place_in_each_store() {
    let (temp, store, app, bundle) = set_up();
    for name in ["another", "third with spaces"] {
        let other = Store::at(temp.join(name));
        for folder in ["v1/trees", "v1/locks", "v1/work"] {
            fs::create_dir_all(other.place.join(folder)).unwrap();
        }
        let started = start(&other, &bundle);
        if name.contains(' ') {
            let error = started.map(|_| ()).unwrap_err().to_string();
            assert!(error.contains("`bin/script`: it has ' ' in it"), "{error}");
            assert_eq!(fs::read_dir(other.work("")).unwrap().count(), 0);
        } else {
            app.assert_right(&started.unwrap().0.root);
        }
    }
    let (tree, said) = start(&store, &bundle).unwrap();
    assert!(tree.unpacked && said.is_empty(), "{said:?}");
    app.assert_right(&tree.root);
    let script = String::from_utf8_lossy(&fs::read(tree.root.join("bin/script")).unwrap()[2..]).into_owned();
    assert!(script.starts_with(&format!("{}/bin/app ", tree.root.display())));
    assert_eq!(heal::verify_unpacked(&store, &bundle).unwrap(), Some(vec![]));
    let (tree, said) = start(&store, &bundle).unwrap();
    assert!(!tree.unpacked && said.is_empty(), "{said:?}");
}

#[test]
fn damage_is_found_in_and_beside_slots_and_healed() {
    let (_temp, store, app, bundle) = set_up();
    let root = start(&store, &bundle).unwrap().0.root;
    let elsewhere = |count| format!("healed {count} of the files: they named another folder than their own");
    let flip = |at: usize| move |content: &mut Vec<u8>| content[at] ^= 1;
    for (name, at, expected) in [
        ("bin/app", 499, vec!["healed bin/app: its content had changed".to_owned()]),
        ("bin/app", 900, vec!["healed bin/app: its content had changed".to_owned()]),
        ("bin/app", 501, vec![elsewhere(1)]),
        ("bin/app", 899, vec![elsewhere(1)]),
        ("bin/script", 300, vec![elsewhere(1)]),
        ("bin/large", 20, vec![elsewhere(2)]),
        (
            "bin/second",
            130_000,
            vec![
                "healed bin/large: its content had changed".to_owned(),
                "healed bin/second: its content had changed".to_owned(),
            ],
        ),
    ] {
        overwrite(&root.join(name), flip(at));
        let found = heal::verify_unpacked(&store, &bundle).unwrap().unwrap();
        assert_eq!(found.len(), if name == "bin/large" || name == "bin/second" { 2 } else { 1 }, "{found:?}");
        let (tree, said) = start(&store, &bundle).unwrap();
        assert_eq!(said, expected, "{name} {at}");
        app.assert_right(&tree.root);
        assert!(start(&store, &bundle).unwrap().1.is_empty());
    }
    // Neither the packed text nor another tree's path is right here.
    overwrite(&root.join("bin/app"), |content| content[500..522].copy_from_slice(b"/kitbag-tree/lib/ld.so"));
    let found = heal::verify_unpacked(&store, &bundle).unwrap().unwrap();
    assert_eq!((found.len(), found[0].what), (1, What::Elsewhere));
    start(&store, &bundle).unwrap();
    app.assert_right(&root);
}

#[test]
fn without_a_record_the_packed_file_says_what_is_right() {
    let (_temp, store, app, bundle) = set_up();
    let dir = start(&store, &bundle).unwrap().0.dir;
    let lost = "the record of the unpacked files was damaged; every file is compared".to_owned();
    fs::write(dir.join("record"), "").unwrap();
    let inode = fs::metadata(dir.join("tree/bin/app")).unwrap().ino();
    assert_eq!(start(&store, &bundle).unwrap().1, std::slice::from_ref(&lost));
    assert_eq!(fs::metadata(dir.join("tree/bin/app")).unwrap().ino(), inode, "it was right");
    fs::remove_file(dir.join("record")).unwrap();
    overwrite(&dir.join("tree/bin/app"), |content| content[2999] ^= 1);
    let said = start(&store, &bundle).unwrap().1;
    assert_eq!(said, [lost, "healed bin/app: its content had changed".to_owned()]);
    app.assert_right(&dir.join("tree"));
    assert!(start(&store, &bundle).unwrap().1.is_empty());
}

#[test]
fn another_boot_finds_filled_files_right() {
    let (_temp, store, app, bundle) = set_up();
    let dir = start(&store, &bundle).unwrap().0.dir;
    let mut record = Record::read(&dir, &bundle.digest()).unwrap();
    record.boot_id = [b'x'; 36];
    record.write(&dir).unwrap();
    let (tree, said) = start(&store, &bundle).unwrap();
    assert!(tree.boot_id == ANY_BOOT && said.is_empty(), "{said:?}");
    app.assert_right(&tree.root);
}

#[test]
fn a_store_that_was_moved_is_filled_in_anew() {
    let (temp, store, app, bundle) = set_up();
    let first = start(&store, &bundle).unwrap().0;
    let library = fs::metadata(first.root.join("lib/lib.so")).unwrap().ino();
    first.write_start(b"a start record").unwrap();
    drop(first);
    let moved = Store::at(temp.join("moved"));
    fs::rename(&store.place, &moved.place).unwrap();
    assert_eq!(heal::verify_unpacked(&moved, &bundle).unwrap().unwrap().len(), 4);
    // A tool's start too, which compares its program only: that has not changed since.
    let (tree, said) = start_with(&moved, &bundle, Compare::Only(&["bin/app"])).unwrap();
    assert_eq!(said, ["healed 4 of the files: they named another folder than their own"]);
    assert!(!tree.dir.join("start").exists(), "the other path's start record is gone");
    app.assert_right(&tree.root);
    assert_eq!(fs::metadata(tree.root.join("lib/lib.so")).unwrap().ino(), library, "the rest is as it was");
    assert!(start(&moved, &bundle).unwrap().1.is_empty());
    drop(tree);
    fs::rename(&moved.place, &store.place).unwrap();
    assert_eq!(start(&store, &bundle).unwrap().1.len(), 1);
    app.assert_right(&store.tree_dir(&bundle.digest()).join("tree"));
}

#[test]
fn a_tree_without_slots_may_move() {
    let temp = Temp::new();
    let (store, app) = (temp.store(), App::sample("1"));
    let bundle = app.pack(&temp.join("app"));
    start(&store, &bundle).unwrap();
    let moved = Store::at(temp.join("moved"));
    fs::rename(&store.place, &moved.place).unwrap();
    let (tree, said) = start(&moved, &bundle).unwrap();
    assert!(said.is_empty() && !tree.unpacked, "{said:?}");
}

#[test]
fn what_names_a_tree_is_not_shared_with_another() {
    let (temp, store, first, bundle) = set_up();
    let one = start(&store, &bundle).unwrap().0;
    // The third has the packed bytes of `bin/app` as a file without slots.
    let (packed, _) = with_slots(1, 3000, &[(500, Pad::Nul, "/kitbag-tree/lib/ld.so")]);
    let (second, third) = (app("2"), App::new("third", "1").program("copy", &packed));
    let others = [(&second, "2"), (&third, "3")].map(|(app, name)| app.pack(&temp.join(name)));
    let trees = others.each_ref().map(|bundle| start(&store, bundle).unwrap().0);
    second.assert_right(&trees[0].root);
    third.assert_right(&trees[1].root);
    first.assert_right(&one.root);
    let inode = |root: &Path, name: &str| fs::metadata(root.join(name)).unwrap().ino();
    assert_ne!(inode(&one.root, "bin/app"), inode(&trees[0].root, "bin/app"));
    assert_eq!(inode(&one.root, "lib/lib.so"), inode(&trees[0].root, "lib/lib.so"));
    for bundle in [&bundle, &others[0], &others[1]] {
        assert!(start(&store, bundle).unwrap().1.is_empty());
        assert_eq!(heal::verify_unpacked(&store, bundle).unwrap(), Some(vec![]));
    }
}

#[test]
fn a_place_whose_path_does_not_fit_is_passed_over_with_the_reason() {
    let (temp, _store, _app, bundle) = set_up();
    let choose = |name: &str, path: PathBuf| {
        let home = temp.join("home");
        fs::create_dir_all(&home).unwrap();
        let var = move |asked: &str| match asked {
            "HOME" => Some(OsString::from(&home)),
            _ => (asked == name).then(|| OsString::from(&path)),
        };
        // Not root's rules, where the user is root: it has a fixed place.
        let uid = nix::unistd::geteuid().as_raw();
        place::choose(&Facts { uid, var: &var, passwd: vec![], bundle: None }, &bundle).map(|chosen| chosen.0)
    };
    let long = temp.join(&"long/".repeat(50)).join("path");
    let Err(error) = choose("KITBAG_STORE", long.clone()) else { panic!("it fits") };
    let text = error.to_string();
    let length = long.as_os_str().len();
    // Two of it go into 399 bytes with `:/lib:/x`, and `/v1/trees/`, a digest and `/tree` are 79 of each.
    let expected = format!(
        "(KITBAG_STORE): its path cannot go into `bin/large`: it has {length} bytes, and {} is the most that fits; \
         choose a shorter one",
        (399 - ":/lib:/x".len()) / 2 - 79
    );
    assert!(text.contains(&expected), "{text}");
    assert!(text.contains("set KITBAG_STORE to a folder of your own"), "{text}");
    assert_eq!(error.exit_code(), kitbag_format::exit::NO_PLACE);
    assert_eq!(choose("KITBAG_STORE", temp.join("fits")).unwrap().place, temp.join("fits"));
    let Err(StoreError::NoPlace(tried)) = choose("KITBAG_STORE", temp.join("co:lon")) else {
        panic!("it fits")
    };
    assert!(
        tried[0].to_string().ends_with("`bin/app`: it has ':' in it; choose one without"),
        "{}",
        tried[0]
    );
    if nix::unistd::geteuid().is_root() {
        return eprintln!("SKIPPED: the next place: root has no home's");
    }
    assert!(choose("XDG_CACHE_HOME", temp.join("co:lon")).unwrap().place.starts_with(temp.join("home")));
}

#[test]
fn a_moved_store_whose_path_does_not_fit_is_an_error_and_stays() {
    let (temp, store, app, bundle) = set_up();
    start(&store, &bundle).unwrap();
    let moved = Store::at(temp.join("co:lon"));
    fs::rename(&store.place, &moved.place).unwrap();
    let error = start(&moved, &bundle).map(|_| ()).unwrap_err().to_string();
    let expected = format!(
        "no folder can be used to unpack in\n  {} (where the store is now): its path cannot go into `bin/app`: it \
         has ':' in it; choose one without\n  to fix  set KITBAG_STORE to a folder of your own",
        moved.place.display()
    );
    assert!(error.starts_with(&expected), "{error}");
    fs::rename(&moved.place, &store.place).unwrap();
    start(&store, &bundle).unwrap();
    app.assert_right(&store.tree_dir(&bundle.digest()).join("tree"));
}

/// A start in a process of its own: `KITBAG_TEST_STORE`, `KITBAG_TEST_BUNDLE`.
#[test]
#[ignore = "a role that other tests play in a child process"]
fn child_starts() {
    let var = |name: &str| PathBuf::from(std::env::var_os(name).unwrap());
    let bundle = Bundle::open_path(&var("KITBAG_TEST_BUNDLE")).unwrap();
    let (tree, said) = start(&Store::at(var("KITBAG_TEST_STORE")), &bundle).unwrap();
    println!("unpacked={} said={said:?}", tree.unpacked);
}

#[test]
fn ten_first_starts_at_once_fill_once() {
    let (temp, store, app, bundle) = set_up();
    let file = temp.join("app");
    let variables = [("KITBAG_TEST_STORE", store.place.as_path()), ("KITBAG_TEST_BUNDLE", file.as_path())];
    let spawn = || child("child_starts", &variables).stdout(Stdio::piped()).spawn().unwrap();
    let children: Vec<_> = (0..10).map(|_| spawn()).collect();
    let outputs: Vec<_> = children.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
    let text: String = outputs.iter().map(|out| String::from_utf8_lossy(&out.stdout).into_owned()).collect();
    assert_eq!(text.matches("unpacked=true said=[]").count(), 1, "{text}");
    assert_eq!(text.matches("unpacked=false").count(), 9, "{text}");
    assert!(!text.contains("healed"), "{text}");
    app.assert_right(&store.tree_dir(&bundle.digest()).join("tree"));
}

/// A program in memory has no tree that it could name.
#[test]
fn what_names_its_tree_does_not_start_from_memory() {
    let temp = Temp::new();
    let mut content = common::runtime().0;
    let slots = [Slot { at: content.len() as u64, length: ROOM, pad: Pad::Nul }];
    content.extend_from_slice(b"/kitbag-tree/share");
    content.resize(slots[0].end() as usize, 0);
    let apps = [App::new("a", "1").dir("bin").program("bin/app", &content), App::new("b", "1").dir("bin")];
    let [plain, slotted] = apps;
    for (app, starts) in [(plain, true), (slotted.slotted("bin/app", &content, &slots), false)] {
        let bundle = app.pack(&temp.join(&app.manifest.name));
        let (_, command) = app.manifest.commands()[0];
        let program = memory::program(&bundle, &app.manifest, command).unwrap();
        assert_eq!(program.is_some(), starts, "{}", app.manifest.name);
    }
}

#[test]
fn a_tools_libraries_are_compared_with_its_program() {
    let (_temp, store, app, bundle) = set_up();
    let root = start(&store, &bundle).unwrap().0.root;
    overwrite(&root.join("lib/lib.so"), |content| content[7] ^= 1);
    assert!(start_with(&store, &bundle, Compare::Only(&["bin/app"])).unwrap().1.is_empty());
    let (_, said) = start_with(&store, &bundle, Compare::Only(&["bin/app", "lib/lib.so"])).unwrap();
    assert_eq!(said, ["healed lib/lib.so: its content had changed"]);
    app.assert_right(&root);
}
