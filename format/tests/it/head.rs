//! The head's rules, one by one.

use kitbag_format::layout::{HEAD_LEN, Head, Part, PartKind};
use kitbag_format::{Digest, Error};

const PART: usize = 64;

fn head() -> Head {
    let kinds =
        [PartKind::Runtime, PartKind::Payload, PartKind::Index, PartKind::Manifest, PartKind::Sections];
    let parts = kinds.iter().enumerate().map(|(number, kind)| Part {
        kind: *kind,
        flags: 0,
        offset: number as u64 * 100,
        length: 100,
        digest: Digest::of(&[number as u8]),
    });
    Head { refuse: 0, hints: 1, file_length: 500, digest: Digest::default(), parts: parts.collect() }
}

/// The head's bytes with some overwritten, and the digest made right again.
fn with(patches: &[(usize, &[u8])]) -> [u8; HEAD_LEN] {
    let mut bytes = head().to_bytes().0;
    for (at, new) in patches {
        bytes[*at..*at + new.len()].copy_from_slice(new);
    }
    bytes[32..64].fill(0);
    let digest = Digest::of(&bytes);
    bytes[32..64].copy_from_slice(&digest.0);
    bytes
}

fn error(bytes: &[u8; HEAD_LEN]) -> String {
    Head::parse(bytes).expect_err("an error").to_string()
}

fn at(part: usize, field: usize) -> usize {
    PART + part * PART + field
}

#[test]
fn a_head_comes_back_as_it_was_written() {
    let (bytes, digest) = head().to_bytes();
    assert_eq!(Head::parse(&bytes).expect("a head"), Head { digest, ..head() });
    assert_eq!(bytes, with(&[]));
}

#[test]
fn a_bare_runtime_is_not_a_bundle() {
    assert!(matches!(Head::parse(&[0; HEAD_LEN]), Err(Error::NotABundle(_))));
}

#[test]
fn every_flipped_bit_is_damage() {
    let bytes = head().to_bytes().0;
    for bit in 0..HEAD_LEN * 8 {
        let mut spoiled = bytes;
        spoiled[bit / 8] ^= 1 << (bit % 8);
        assert!(matches!(Head::parse(&spoiled), Err(Error::Damaged { .. })), "bit {bit}");
    }
}

#[test]
fn a_later_version_an_unknown_need_and_an_unknown_part_to_refuse_are_too_new() {
    let part = |flags: u32| {
        let mut bytes = [0; PART];
        bytes[0] = 77;
        bytes[4..8].copy_from_slice(&flags.to_le_bytes());
        bytes[8..16].copy_from_slice(&500u64.to_le_bytes());
        bytes
    };
    assert!(error(&with(&[(8, &[2])])).contains("too new for this reader: its format is version 2"));
    assert!(error(&with(&[(12, &[4])])).contains("it needs features 0x4"));
    assert!(error(&with(&[(20, &[6]), (at(5, 0), &part(1))])).contains("it has a part of kind 77"));
    let ignored = with(&[(20, &[6]), (at(5, 0), &part(2)), (16, &[0xff; 4])]);
    assert_eq!(Head::parse(&ignored).expect("unknown hints, flags and parts are ignored").parts.len(), 6);
}

#[test]
fn senseless_lists_of_parts_are_malformed() {
    let manifest_twice = [(at(2, 0), &[4u8][..])];
    let payload_first = [(at(0, 0), &[2u8][..]), (at(1, 0), &[1])];
    let huge = [(at(4, 16), &[0xff; 8][..])];
    for (patches, what) in [
        (&[(20, &[16u8][..])][..], "lists too many parts"),
        (&[(at(1, 8), &[101])], "has parts that overlap or leave a gap"),
        (&[(at(1, 16), &[99])], "has parts that overlap or leave a gap"),
        (&huge, "has a part without end"),
        (&[(24, &[0xff])], "has parts that do not fill the file"),
        (&[(at(4, 0), &[99])], "lacks a part, or has it twice"),
        (&manifest_twice, "lacks a part, or has it twice"),
        (&payload_first, "does not begin with the runtime"),
        (&[(20, &[0]), (24, &[0; 8])], "does not begin with the runtime"),
    ] {
        assert_eq!(error(&with(patches)), format!("malformed: its head {what}"));
    }
}
