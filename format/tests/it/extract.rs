//! From a bundle to a tree.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use kitbag_format::extract::{Extraction, contents, open_dir, packed_slots, unpack_to};
use kitbag_format::slots::Paths;
use kitbag_format::{Bundle, Error};

use crate::bundle::{self, Plan, What, sample};

/// Everything below a folder: path, and contents or target.
fn tree(root: &Path) -> BTreeSet<(String, Vec<u8>)> {
    let mut all = BTreeSet::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).expect("a folder").map(|entry| entry.expect("an entry").path()) {
            let found = fs::symlink_metadata(&entry).expect("it");
            let name = entry.strip_prefix(root).expect("below").to_str().expect("UTF-8").to_owned();
            if found.is_dir() {
                all.insert((name, b"a folder".to_vec()));
                todo.push(entry);
            } else if found.is_symlink() {
                all.insert((
                    name,
                    fs::read_link(entry).expect("a link").into_os_string().into_encoded_bytes(),
                ));
            } else {
                all.insert((name, fs::read(entry).expect("a file")));
            }
        }
    }
    all
}

fn expected(plan: &Plan) -> BTreeSet<(String, Vec<u8>)> {
    let contents = |what: &What| match what {
        What::Dir => b"a folder".to_vec(),
        What::File(bytes) | What::Program(bytes) | What::Slotted(bytes, _) => bytes.clone(),
        What::Symlink(target) => target.as_bytes().to_vec(),
        What::Link(to) => match &plan.entries[*to].1 {
            What::File(bytes) | What::Program(bytes) => bytes.clone(),
            _ => panic!("a link to no file"),
        },
    };
    plan.entries.iter().map(|(path, what)| ((*path).to_owned(), contents(what))).collect()
}

#[test]
fn the_tree_is_what_was_packed() {
    let (folder, path) = sample();
    let to = folder.path().join("new/tree");
    let bytes = AtomicU64::new(0);
    let bundle = Bundle::open_path(&path).expect("the sample");
    let index = unpack_to(&bundle, &to, &|more| {
        bytes.fetch_add(more, Ordering::Relaxed);
    });
    let index = index.expect("unpacked");
    assert_eq!(tree(&to), expected(&bundle::plan()));
    assert!(bytes.into_inner() <= index.tar_length());
    let stat = |name: &str| fs::symlink_metadata(to.join(name)).expect("an entry");
    assert_eq!(stat("share/readme").ino(), stat("share/readme.2").ino());
    assert_eq!(stat("bin/app").permissions().mode() & 0o111, 0o111);
    assert_eq!(stat("share/table").permissions().mode() & 0o777, 0o644);
}

#[test]
fn a_folder_that_holds_something_is_left_alone() {
    let (folder, path) = sample();
    let bundle = Bundle::open_path(&path).expect("the sample");
    let error = unpack_to(&bundle, folder.path(), &|_| ()).expect_err("it is not empty");
    assert!(matches!(error, Error::Io { .. }) && error.to_string().contains("not empty"), "{error}");
}

#[test]
fn read_only_takes_every_write_permission() {
    let (folder, path) = sample();
    let to = folder.path().join("tree");
    fs::create_dir(&to).expect("a folder");
    run(&path, &to, true, &|_| false);
    for (name, _) in tree(&to) {
        let found = fs::symlink_metadata(to.join(&name)).expect("an entry");
        assert!(found.is_symlink() || found.mode() & 0o222 == 0, "{name} {:o}", found.mode());
    }
    for dir in ["share/deep", "share", "bin"] {
        fs::set_permissions(to.join(dir), fs::Permissions::from_mode(0o755)).expect("for the cleaning up");
    }
}

fn run(path: &Path, to: &Path, read_only: bool, present: &(dyn Fn(usize) -> bool + Sync)) {
    let bundle = Bundle::open_path(path).expect("the sample");
    let index = bundle.index().expect("its index");
    let extraction = Extraction {
        bundle: &bundle,
        index: &index,
        present,
        progress: &|_| (),
        written: &|_, _| (),
        read_only,
        paths: Paths::of_tree(to),
    };
    extraction.run(open_dir(to).expect("the folder").as_fd()).expect("unpacked");
}

/// Every subset of the files left out: the others are made, what is present is not touched.
#[test]
fn what_is_present_is_left_alone() {
    let (folder, path) = sample();
    let plan = bundle::plan();
    let is_file = |number: &usize| matches!(plan.entries[*number].1, What::File(_) | What::Program(_));
    let files: Vec<usize> = (0..plan.entries.len()).filter(is_file).collect();
    for subset in 0..1u32 << files.len() {
        let present = |number: usize| {
            files.iter().position(|file| *file == number).is_some_and(|bit| subset & (1 << bit) != 0)
        };
        let to = folder.path().join(format!("tree-{subset}"));
        let mut expected = expected(&plan);
        for dir in ["bin", "share", "share/deep"] {
            fs::create_dir_all(to.join(dir)).expect("a folder");
        }
        for number in files.iter().filter(|number| present(**number)) {
            let path = plan.entries[*number].0;
            fs::write(to.join(path), "mine").expect("a file");
            let second = if path == "share/readme" { "share/readme.2" } else { path };
            expected.retain(|(name, _)| name != path && name != second);
            expected.extend([(path.to_owned(), b"mine".to_vec()), (second.to_owned(), b"mine".to_vec())]);
        }
        run(&path, &to, false, &present);
        assert_eq!(tree(&to), expected, "subset {subset:b}");
    }
}

#[test]
fn contents_of_one_file_come_without_unpacking() {
    let (_folder, path) = sample();
    let bundle = Bundle::open_path(&path).expect("the sample");
    let index = bundle.index().expect("its index");
    for (number, (_, what)) in bundle::plan().entries.iter().enumerate() {
        let found = contents(&bundle, &index, number).expect("its contents");
        match what {
            What::File(bytes) | What::Program(bytes) => assert_eq!(found, *bytes),
            _ => assert!(found.is_empty()),
        }
    }
}

/// A file over many frames, mostly zeros; frames are written by several threads in any order.
#[test]
fn a_large_file_is_put_together_and_its_zeros_are_holes() {
    const FRAME: usize = 1 << 20;
    let mut bytes = vec![0; 12 * FRAME + 777];
    bytes[5 * FRAME - 3..5 * FRAME + 9].copy_from_slice(b"across a cut");
    bytes.extend_from_slice(b"the end");
    let entries = vec![
        ("before", What::File(b"before".to_vec())),
        ("large", What::Program(bytes)),
        ("zeros", What::File(vec![0; 3 * FRAME])),
        ("after", What::File(b"after".to_vec())),
    ];
    let plan = Plan { entries, cuts: vec![FRAME; 15] };
    let folder = bundle::folder();
    let (path, to) = (folder.path().join("large"), folder.path().join("tree"));
    bundle::write(&path, &plan, &bundle::manifest());
    let bundle = Bundle::open_path(&path).expect("a bundle");
    bundle.verify(2).expect("a whole one");
    unpack_to(&bundle, &to, &|_| ()).expect("unpacked");
    assert_eq!(tree(&to), expected(&plan));
    let large = fs::metadata(to.join("large")).expect("the file");
    assert_eq!(large.permissions().mode() & 0o777, 0o755 & large.permissions().mode());
    assert!(large.blocks() * 512 < large.len(), "{} blocks", large.blocks());
}

/// The index decides what is written, and it cannot name a place outside; should the folder hold a link by the
/// time of unpacking, the link is not followed out of it either.
#[test]
fn nothing_is_written_through_a_link_in_a_files_place() {
    let (folder, path) = sample();
    let (to, outside) = (folder.path().join("tree"), folder.path().join("outside"));
    for dir in ["bin", "share/deep"] {
        fs::create_dir_all(to.join(dir)).expect("a folder");
    }
    fs::write(&outside, "untouched").expect("a file");
    std::os::unix::fs::symlink(&outside, to.join("share/table")).expect("a link");
    let bundle = Bundle::open_path(&path).expect("the sample");
    let index = bundle.index().expect("its index");
    let extraction = Extraction {
        bundle: &bundle,
        index: &index,
        present: &|_| false,
        progress: &|_| (),
        written: &|_, _| (),
        read_only: true,
        paths: Paths::of_tree(&to),
    };
    let error = extraction.run(open_dir(&to).expect("the folder").as_fd()).expect_err("something is there");
    assert!(error.to_string().contains("`share/table`"), "{error}");
    assert_eq!(fs::read(&outside).expect("the file"), b"untouched");
}

#[test]
fn a_frame_of_another_length_than_the_index_says_is_malformed() {
    let (_folder, path) = sample();
    let bundle = Bundle::open_path(&path).expect("the sample");
    for change in [1i64, -1] {
        let mut index = bundle.index().expect("its index");
        index.frames[1].raw = (i64::from(index.frames[1].raw) + change) as u32;
        index.frames[2].raw = (i64::from(index.frames[2].raw) - change) as u32;
        let numbers = 0..index.entries.len();
        let errors: Vec<Error> =
            numbers.filter_map(|number| contents(&bundle, &index, number).err()).collect();
        assert!(!errors.is_empty() && errors.iter().all(|error| matches!(error, Error::Malformed { .. })));
    }
}

/// A bundle with slots in a folder of its own.
fn slotted() -> (tempfile::TempDir, Bundle) {
    let folder = bundle::folder();
    let path = folder.path().join("slotted");
    bundle::write(&path, &bundle::slotted(), &bundle::manifest());
    (folder, Bundle::open_path(&path).expect("a bundle"))
}

#[test]
fn slots_hold_the_folder_that_was_unpacked_into() {
    let (folder, bundle) = slotted();
    bundle.verify(1).expect("a whole bundle");
    for name in ["here", "deep/er", &"long".repeat(20)] {
        let to = folder.path().join(name);
        unpack_to(&bundle, &to, &|_| ()).expect("unpacked");
        let tree = to.to_str().expect("a text");
        let script = fs::read_to_string(to.join("bin/script")).expect("a script");
        let line = format!("#!{tree}/bin/sh");
        assert_eq!(script, format!("{line:200}\necho /kitbag-tree\n"));
        let large = fs::read(to.join("bin/large")).expect("a program");
        let text = |at: usize, text: String| assert_eq!(large[at..at + 300], *padded(&text), "{text}");
        text(1000, format!("{tree}:{tree}/lib"));
        text(4700, format!("{tree}/lib"));
        assert!(large[..1000].iter().chain(&large[1300..4700]).all(|byte| *byte == 7));
        assert_eq!(fs::read(to.join("bin/second")).expect("its second name"), large);
        assert_eq!(fs::read(to.join("readme")).expect("a readme"), b"/kitbag-tree stays");
        assert_eq!(fs::metadata(to.join("bin/large")).expect("it").permissions().mode() & 0o111, 0o111);
    }
}

#[test]
fn a_folder_whose_path_does_not_fit_is_refused_before_anything_is_made() {
    let (folder, bundle) = slotted();
    let long = "l".repeat(200);
    let above = folder.path().as_os_str().len();
    let why = |file: &str, why: String| format!("its path cannot go into `{file}`: it has {why}");
    for (name, expected) in [
        ("white space", why("bin/script", "' ' in it; choose one without".into())),
        ("co:lon", why("bin/large", "':' in it; choose one without".into())),
        (
            &long,
            // 198 bytes without `/bin/sh`.
            why(
                "bin/script",
                format!("{} bytes, and 191 is the most that fits; choose a shorter one", above + 201),
            ),
        ),
    ] {
        let to = folder.path().join(name);
        let error = unpack_to(&bundle, &to, &|_| ()).expect_err("it does not fit").to_string();
        assert_eq!(error, format!("cannot unpack into {}: {expected}", to.display()));
        assert!(!to.exists());
    }
}

#[test]
fn packed_slots_come_without_unpacking() {
    let (_folder, bundle) = slotted();
    let index = bundle.index().expect("its index");
    let packed = packed_slots(&bundle, &index, &|_| true).expect("all slots");
    let expected = [
        (1, 198, "/kitbag-tree/bin/sh"),
        (2, 300, "/kitbag-tree:/kitbag-tree/lib"),
        (2, 300, "/kitbag-tree/lib"),
    ];
    for ((file, bytes), (number, length, text)) in packed.iter().zip(expected) {
        assert_eq!((*file, bytes.len()), (number, length));
        assert_eq!(String::from_utf8_lossy(bytes).trim_end_matches(['\0', ' ']), text);
    }
    assert_eq!(packed_slots(&bundle, &index, &|number| number == 2).expect("its slots"), packed[1..]);
}

#[test]
fn slotted_files_that_are_present_are_left_alone() {
    let (folder, bundle) = slotted();
    let (to, index) = (folder.path().join("tree"), bundle.index().expect("its index"));
    fs::create_dir_all(to.join("bin")).expect("a folder");
    fs::write(to.join("bin/large"), "mine").expect("a file");
    let extraction = Extraction {
        bundle: &bundle,
        index: &index,
        present: &|number| number == 2,
        progress: &|_| (),
        written: &|_, _| (),
        read_only: true,
        paths: Paths::of_tree(Path::new("/elsewhere")),
    };
    extraction.run(open_dir(&to).expect("the folder").as_fd()).expect("unpacked");
    assert_eq!(fs::read(to.join("bin/large")).expect("the file"), b"mine");
    assert!(fs::read(to.join("bin/script")).expect("a script").starts_with(b"#!/elsewhere/bin/sh  "));
    assert_eq!(fs::metadata(to.join("bin/script")).expect("it").permissions().mode() & 0o777, 0o555);
    fs::set_permissions(to.join("bin"), fs::Permissions::from_mode(0o755)).expect("for the cleaning up");
}

fn padded(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.resize(300, 0);
    bytes
}
