//! Every byte of a small bundle flipped, every length of it cut, and what else copies and tools do to files.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use kitbag_format::layout::{HEAD_LEN, Head};
use kitbag_format::{Bundle, Digest, Error, elf};

use crate::bundle::{self, sample, verify};

#[track_caller]
fn named(path: &Path) -> &'static str {
    verify(path).expect_err("an error").name()
}

#[test]
fn the_sample_is_whole() {
    let (_folder, path) = sample();
    let bundle = Bundle::open_path(&path).expect("a bundle");
    bundle.verify(4).expect("a whole one");
    assert_eq!(bundle.manifest().expect("a manifest"), bundle::manifest());
    assert_eq!(bundle.index().expect("an index").frames.len(), 5);
    assert!(bundle.is_tool());
    assert_eq!(bundle.head().file_length, fs::metadata(&path).expect("the file").len());
}

#[test]
fn equal_inputs_make_equal_bytes() {
    let ((_one, one), (_two, two)) = (sample(), sample());
    assert_eq!(fs::read(one).expect("one"), fs::read(two).expect("the other"));
}

/// Exhaustive: no byte of the file is outside of every digest, wherever it lies and whatever it becomes.
#[test]
fn every_flipped_byte_is_found() {
    let (_folder, path) = sample();
    let bytes = fs::read(&path).expect("the sample");
    let file = File::options().write(true).open(&path).expect("the sample");
    for (at, byte) in bytes.iter().enumerate() {
        for flip in [0x01, 0x80, 0xff] {
            file.write_all_at(&[byte ^ flip], at as u64).expect("a flip");
            let error = verify(&path).expect_err("a flipped byte");
            assert_eq!(error.name(), "damaged", "byte {at} ^ {flip:#x}: {error}");
        }
        file.write_all_at(&[*byte], at as u64).expect("the byte back");
    }
    verify(&path).expect("all bytes are back");
}

#[test]
fn every_cut_is_found() {
    let (_folder, path) = sample();
    let whole = fs::metadata(&path).expect("the sample").len();
    let file = File::options().write(true).open(&path).expect("the sample");
    let head_end =
        elf::find_note_in(&fs::read(&path).expect("the sample")).expect("ELF").expect("a note").end;
    for length in (0..whole).rev() {
        file.set_len(length).expect("a cut");
        let error = verify(&path).expect_err("a cut file");
        match error {
            // Within the head, only the ELF header says how long the file should be at least.
            Error::Truncated { expected, .. } if length < head_end => assert!(expected > length),
            Error::Truncated { expected, found } => assert_eq!((expected, found), (whole, length)),
            Error::NotABundle(_) => assert!(length < head_end, "{length}: {error}"),
            other => panic!("{length} of {whole} bytes: {other}"),
        }
    }
}

#[test]
fn appended_bytes_are_found() {
    let (_folder, path) = sample();
    let bytes = fs::read(&path).expect("the sample");
    for more in [1, 512, 100_000] {
        fs::write(&path, [&bytes[..], &vec![0; more]].concat()).expect("more");
        assert_eq!(named(&path), "appended");
    }
}

#[test]
fn a_file_written_anew_by_another_tool_is_told_from_damage() {
    let (_folder, path) = sample();
    let mut bytes = fs::read(&path).expect("the sample");
    bytes.truncate(bytes.len() - 64);
    let moved = elf::section_table(&bytes) - 64;
    bytes[40..48].copy_from_slice(&moved.to_le_bytes());
    fs::write(&path, bytes).expect("what strip leaves");
    assert_eq!(named(&path), "rewritten");
}

#[test]
fn what_is_no_bundle_is_named_so() {
    let folder = bundle::folder();
    let path = folder.path().join("file");
    let mut other_note = bundle::runtime();
    let at = elf::find_note_in(&other_note).expect("ELF").expect("a note").start as usize;
    other_note[at - 8..at].copy_from_slice(b"GNU\0GNU\0");
    for bytes in [&b""[..], b"#!/bin/sh\n", &bundle::runtime(), &other_note, &[0x7f; 5000]] {
        fs::write(&path, bytes).expect("a file");
        assert_eq!(named(&path), "not-a-bundle");
    }
    assert!(matches!(Bundle::open_path(folder.path()), Err(Error::NotABundle(_))));
    assert!(matches!(Bundle::open_path(&folder.path().join("none")), Err(Error::Io { .. })));
}

/// A hostile packer: digests that are right over contents that make no sense.
#[test]
fn manifests_that_make_no_sense_are_malformed() {
    for (patch, what) in [
        (("\"sample\"", "\"../../\""), "malformed"),
        (("\"sample\"", "sample\":"), "malformed"),
        (("\"command\"", "\"comman_\""), "malformed"),
        (("\"requires\": []", "\"requires\":[7]"), "malformed"),
    ] {
        let (_folder, path) = sample();
        forge(&path, |manifest| {
            *manifest = manifest.replacen(patch.0, patch.1, 1);
        });
        let bundle = Bundle::open_path(&path).expect("its digests are right");
        assert_eq!(bundle.manifest().expect_err("an error").name(), what, "{}", patch.1);
    }
}

#[test]
fn a_manifest_that_requires_more_than_is_known_is_too_new() {
    let (_folder, path) = sample();
    forge(&path, |manifest| {
        let short = manifest.replacen("\"requires\": []", "\"requires\":[\"\"]", 1);
        *manifest = short.replacen("one of everything", "one of everythin", 1);
    });
    assert_eq!(named(&path), "too-new");
}

#[test]
fn the_manifest_and_the_head_agree_on_what_the_file_is() {
    let (_folder, path) = sample();
    patch_head(&path, |head| head[16] = 0);
    assert_eq!(named(&path), "malformed");
}

/// Changes the manifest, keeping its length, and makes all digests right.
fn forge(path: &Path, change: impl Fn(&mut String)) {
    let bundle = Bundle::open_path(path).expect("the sample");
    let part = bundle.head().parts[3].clone();
    let mut text = bundle.manifest_text().expect("its manifest");
    change(&mut text);
    assert_eq!(text.len() as u64, part.length, "{text}");
    File::options()
        .write(true)
        .open(path)
        .expect("it")
        .write_all_at(text.as_bytes(), part.offset)
        .expect("forged");
    patch_head(path, |head| {
        head[64 + 3 * 64 + 32..64 + 4 * 64].copy_from_slice(&Digest::of(text.as_bytes()).0)
    });
}

fn patch_head(path: &Path, change: impl Fn(&mut [u8])) {
    let mut bytes = fs::read(path).expect("the bundle");
    let at = elf::find_note_in(&bytes).expect("ELF").expect("a note").start as usize;
    let head = &mut bytes[at..at + HEAD_LEN];
    change(head);
    head[32..64].fill(0);
    let digest = Digest::of(head);
    head[32..64].copy_from_slice(&digest.0);
    Head::parse((&*head).try_into().expect("1,024 bytes")).expect("a right digest");
    fs::write(path, bytes).expect("forged");
}
