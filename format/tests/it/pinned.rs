//! Old files stay readable: bundles written by earlier versions, as they were, with their digests.

use std::path::{Path, PathBuf};

use kitbag_format::manifest::Run;
use kitbag_format::{Bundle, extract};

use crate::bundle;

/// Written by the first version of format 1 from [`bundle::plan`]. Never written again: a change that needs
/// another file needs another version of the format.
const V1_DIGEST: &str = "9eea8b97290cae4eec11d279823dcb8084802767d3ffeb28a239b6f6fb7f0e16";

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

#[test]
fn a_bundle_of_format_1_is_read() {
    let bundle = Bundle::open_path(&fixture("v1.bundle")).expect("a bundle");
    assert_eq!(bundle.digest().to_string(), V1_DIGEST);
    bundle.verify(1).expect("a whole one");
    assert_eq!(bundle.manifest().expect("its manifest"), bundle::manifest());
    let index = bundle.index().expect("its index");
    for (number, (path, what)) in bundle::plan().entries.iter().enumerate() {
        assert_eq!(index.entries[number].path, path.as_bytes());
        if let bundle::What::File(bytes) | bundle::What::Program(bytes) = what {
            assert_eq!(extract::contents(&bundle, &index, number).expect("its contents"), *bytes);
        }
    }
}

/// The bytes that the writer makes: the frames aside, which are the compressor's, they may not change either.
#[test]
fn format_1_is_written_as_it_was() {
    let (_folder, path) = bundle::sample();
    let (now, then) = (
        Bundle::open_path(&path).expect("a bundle"),
        Bundle::open_path(&fixture("v1.bundle")).expect("a bundle"),
    );
    assert_eq!(now.manifest_text().expect("a text"), then.manifest_text().expect("a text"));
    assert_eq!(now.index().expect("an index").entries, then.index().expect("an index").entries);
    assert_eq!(now.runtime().expect("a runtime").len(), then.runtime().expect("a runtime").len());
    if now.index().expect("an index").frames == then.index().expect("an index").frames {
        assert_eq!(now.digest(), then.digest());
    }
}

/// `cargo test -p kitbag-format --test it -- --ignored write_seeds` makes the fuzz targets' first inputs.
#[test]
#[ignore = "writes files"]
fn write_seeds() {
    let (_folder, path) = bundle::sample();
    let bundle = Bundle::open_path(&path).expect("the sample");
    write_seed("sample", &path);
    write("manifest", "sample", bundle.manifest_text().expect("its manifest").as_bytes());
    let (folder, mut manifest) = (bundle::folder(), bundle::manifest());
    let path = folder.path().join("slotted");
    if let Run::Command(command) = &mut manifest.run {
        command.loads = vec!["bin/large".to_owned()];
    }
    bundle::write(&path, &bundle::slotted(), &manifest);
    write_seed("slotted", &path);
    write("manifest", "slotted", manifest.to_text().as_bytes());
}

fn write_seed(name: &str, path: &Path) {
    let index = Bundle::open_path(path).expect("a bundle").index().expect("its index");
    let payload: u64 = index.frames.iter().map(|frame| u64::from(frame.packed)).sum();
    write("index", name, &[&payload.to_le_bytes()[..], &index.to_bytes()].concat());
    write("bundle", name, &std::fs::read(path).expect("the bundle"));
}

fn write(target: &str, name: &str, bytes: &[u8]) {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    std::fs::create_dir_all(&dir).and_then(|()| std::fs::write(dir.join(name), bytes)).expect("a seed");
}
