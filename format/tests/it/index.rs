//! The index: what is written comes back, and every rule that a hostile one breaks.

use kitbag_format::index::{BLOCK, Entry, Frame, Index, Kind, MAX_FRAME, MAX_PATH, is_normal, stays_inside};
use kitbag_format::slots::{MAX_SLOT, MAX_SLOTS, Pad, Slot};
use kitbag_format::{Digest, Error};

/// An index written by hand.
#[derive(Default, Clone)]
struct Raw(Vec<u8>);

impl Raw {
    fn number(mut self, mut number: u64) -> Self {
        while number >= 0x80 {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
        self
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn frame(self, packed: u64, raw: u64) -> Self {
        self.number(packed).number(raw).bytes(&[7; 64])
    }

    /// The beginning of an entry, which shares nothing with the one before.
    fn entry(self, tag: u8, path: &[u8]) -> Self {
        self.bytes(&[tag]).number(0).number(path.len() as u64).bytes(path).number(1)
    }

    fn file(self, path: &[u8], size: u64) -> Self {
        self.entry(1, path).number(size).bytes(&[9; 32])
    }

    /// A program with slots: gap, length and padding each.
    fn slotted(self, path: &[u8], size: u64, slots: &[(u64, u64, u8)]) -> Self {
        let raw = self.entry(6, path).number(size).bytes(&[9; 32]).number(slots.len() as u64);
        slots.iter().fold(raw, |raw, (gap, length, pad)| raw.number(*gap).number(*length).bytes(&[*pad]))
    }

    fn symlink(self, path: &[u8], target: &[u8]) -> Self {
        self.entry(3, path).number(target.len() as u64).bytes(target)
    }

    fn link(self, path: &[u8], back: u64) -> Self {
        self.entry(4, path).number(back)
    }
}

/// A payload of 100 bytes in one frame that holds `count` entries with `contents` bytes of padded contents.
fn of(count: u64, contents: u64) -> Raw {
    Raw::default().number(1).frame(100, (count + 2) * BLOCK + contents).number(count)
}

fn parse(raw: &Raw) -> Result<Index, Error> {
    Index::parse(&raw.0, 100)
}

#[track_caller]
fn refused(raw: &Raw, what: &str) {
    let error = parse(raw).expect_err(what);
    assert!(matches!(error, Error::Malformed { .. }), "{error:?}");
    assert_eq!(error.to_string(), format!("malformed: its index {what}"));
}

fn entry(path: &str, kind: Kind) -> Entry {
    Entry { path: path.into(), kind, header: 512 }
}

fn file(size: u64, executable: bool) -> Kind {
    Kind::File { size, digest: Digest::of(&size.to_le_bytes()), executable, slots: vec![] }
}

fn slotted(size: u64, executable: bool) -> Kind {
    let slots =
        vec![Slot { at: 0, length: 2, pad: Pad::Nul }, Slot { at: size - 300, length: 300, pad: Pad::Space }];
    Kind::File { size, digest: Digest::of(&size.to_le_bytes()), executable, slots }
}

fn sound() -> Index {
    let frame = |packed, raw| Frame { packed, raw, digest: Digest::of(b"packed"), key: Digest::of(b"raw") };
    let entries = vec![
        entry("a", Kind::Dir),
        entry("a/b", Kind::Dir),
        entry("a/b/up", Kind::Symlink(b"../../x".to_vec())),
        Entry { header: 1536, ..entry("a/b/one", file(1, false)) },
        entry("a/b/one more", file(513, true)),
        entry("a/b/other name", Kind::Link(4)),
        entry("empty", file(0, false)),
        entry("script", slotted(302, false)),
        entry("slotted", slotted(1000, true)),
    ];
    Index { frames: vec![frame(60, 4000), frame(40, 5728)], entries }
}

#[test]
fn an_index_comes_back_as_it_was_written() {
    let index = sound();
    assert_eq!(index.tar_length(), 9728);
    assert_eq!(Index::parse(&index.to_bytes(), 100).expect("a sound index"), index);
    let spans: Vec<_> = index.spans().collect();
    assert_eq!(spans[3..7], [3072..3073, 4096..4609, 5632..5632, 6144..6144]);
    assert_eq!(index.content_length(), 514 + 1302);
    assert_eq!(index.file(5), index.file(4));
    assert_eq!(index.find(b"a/b/other name"), Some(5));
}

#[test]
fn an_index_without_files_is_sound() {
    let raw = Raw::default().number(1).frame(100, 1024).number(0);
    assert_eq!(parse(&raw).expect("a tar that is empty").tar_length(), 1024);
}

#[test]
fn an_index_cut_short_or_with_more_behind_it_is_refused() {
    let bytes = sound().to_bytes();
    for length in 0..bytes.len() {
        assert!(Index::parse(&bytes[..length], 100).is_err(), "{length} of {} bytes", bytes.len());
    }
    refused(&of(1, 0).entry(0, b"a").bytes(&[0]), "has bytes behind its end");
}

#[test]
fn numbers_that_do_not_fit_are_refused() {
    refused(&Raw(vec![0xff; 10]), "has a number that is too large");
    refused(&Raw([[0x80; 9].as_slice(), &[2]].concat()), "has a number that is too large");
    refused(&Raw::default().number(u64::MAX), "ends early");
    refused(&Raw::default().number(2).frame(100, 1024), "ends early");
    refused(&Raw::default().number(1).frame(100, 1024).number(u64::MAX / 4), "ends early");
    refused(&of(1, 0).bytes(&[0]).number(0).number(MAX_PATH as u64 + 1), "has a name that is too long");
    refused(&of(1, 0).bytes(&[0]).number(0).number(3).bytes(b"ab"), "ends early");
    let header = of(1, 0).bytes(&[0]).number(0).number(1).bytes(b"a").number(u64::MAX / 2);
    refused(&header, "has a header without end");
}

#[test]
fn frames_of_impossible_lengths_are_refused() {
    let frame = |packed, raw| Raw::default().number(1).frame(packed, raw).number(0);
    for (packed, raw) in [(100, 0), (100, u64::from(MAX_FRAME) + 1), (100 + 1024, 99), (u64::MAX, 1024)] {
        refused(&frame(packed, raw), "has a frame of an impossible length");
    }
    refused(&frame(99, 1024), "has frames that do not fill the payload");
    refused(&frame(100, 1023), "has frames that do not fill the tar");
}

#[test]
fn files_whose_lengths_overflow_are_refused() {
    let wrong = "has frames that do not fill the tar";
    refused(&of(1, 512).file(b"a", 513), wrong);
    refused(&of(2, 0).file(b"a", 1 << 62).file(b"b", 1 << 62), wrong);
    let endless = "has files without end";
    refused(&of(1, 0).file(b"a", u64::MAX), endless);
    refused(&of(1, 0).file(b"a", u64::MAX - 511), endless);
    refused(&of(2, 0).file(b"a", 1 << 63).file(b"b", 1 << 63), endless);
    // 2^64 - 512 + 512 * 3 wraps to exactly the frames' 1024.
    let wrapping = Raw::default().number(1).frame(100, 1024).number(1).file(b"a", u64::MAX - 1023);
    refused(&wrapping, endless);
}

#[test]
fn paths_that_are_not_plain_are_refused() {
    let wrong = "has a path that is not plain: empty, absolute, or with `.` or `..`";
    let long = [b'x'; 256];
    for path in
        [&b""[..], b"/", b"/a", b".", b"..", b"../a", b"a/", b"a//b", b"a/../b", b"a/./b", b"a\0b", &long]
    {
        refused(&of(1, 0).entry(0, path), wrong);
        assert!(!is_normal(path));
    }
    for path in [&b"a"[..], b"...", b"a/..b", b"\xff\xfe/\n", &long[..255]] {
        assert!(is_normal(path), "{path:?}");
    }
}

#[test]
fn a_path_may_share_no_more_than_there_is_and_not_grow_without_bound() {
    let shared = of(2, 0).entry(0, b"abc").bytes(&[0]).number(4).number(1).bytes(b"d").number(1);
    refused(&shared, "shares more of a path than there is");
    let grown = of(2, 0).entry(0, &[b'x'; MAX_PATH]);
    let grown = grown.bytes(&[0]).number(MAX_PATH as u64).number(1).bytes(b"y").number(1);
    refused(&grown, "has a path that is too long");
}

#[test]
fn a_few_bytes_cannot_ask_for_much_memory() {
    // Each entry repeats a path of 3,000 bytes and takes 6 bytes itself.
    let count = 300_000;
    let mut raw = Raw::default().number(1).frame(100, 1024).number(count).entry(0, &[b'x'; 3000]);
    for _ in 1..count {
        raw = raw.bytes(&[0]).number(2999).number(1).bytes(b"y").number(1);
    }
    refused(&raw, "has a path that is too long");
    let many = Raw::default().number(1).frame(100, 1024).number((4 << 20) + 1).bytes(&[0; 5 << 22]);
    refused(&many, "has too many entries");
}

#[test]
fn entries_below_what_is_no_folder_or_twice_in_one_place_are_refused() {
    let orphan = "has an entry below something that is no folder";
    refused(&of(1, 0).entry(0, b"a/b"), orphan);
    refused(&of(2, 512).file(b"a", 1).file(b"a/b", 1), orphan);
    refused(&of(2, 0).symlink(b"a", b"b").entry(0, b"a/b"), orphan);
    refused(&of(2, 0).entry(0, b"a/b").entry(0, b"a"), orphan);
    refused(&of(2, 0).entry(0, b"a").symlink(b"a", b"b"), "has two entries for one path");
    refused(&of(2, 0).file(b"a", 0).file(b"a", 0), "has two entries for one path");
}

#[test]
fn symbolic_links_out_of_the_tree_are_refused() {
    let leaves = "has a symbolic link that leaves the tree";
    for target in [&b""[..], b"/", b"/etc/passwd", b"..", b"../a", b"b/..", b"b/../../c", b"x\0"] {
        refused(&of(1, 0).symlink(b"a", target), leaves);
    }
    refused(&of(2, 0).entry(0, b"d").symlink(b"d/a", b"../.."), leaves);
    refused(&of(2, 0).entry(0, b"d").symlink(b"d/a", b".././../x"), leaves);
    for (path, target) in [(&b"a"[..], &b"b"[..]), (b"a", b"."), (b"d/a", b"../x/y"), (b"d/a", b".//../x")] {
        assert!(stays_inside(path, target));
    }
    parse(&of(2, 0).symlink(b"a", b"b").symlink(b"b", b"a"))
        .expect("a cycle harms nobody but who follows it");
}

#[test]
fn second_names_lead_back_to_a_file() {
    refused(&of(1, 0).link(b"a", 0), "has a link to nothing");
    refused(&of(1, 0).link(b"a", 1), "has a link to nothing");
    refused(&of(2, 0).file(b"a", 0).link(b"b", u64::MAX), "has a link to nothing");
    refused(&of(2, 0).entry(0, b"a").link(b"b", 1), "has a link to what is no file");
    refused(&of(2, 0).symlink(b"a", b"x").link(b"b", 1), "has a link to what is no file");
    refused(&of(3, 0).file(b"a", 0).link(b"b", 1).link(b"c", 1), "has a link to what is no file");
    parse(&of(2, 0).file(b"a", 0).link(b"b", 1)).expect("a second name");
}

#[test]
fn slots_that_are_not_in_their_file_are_refused() {
    let parse = |size, slots: &[_]| parse(&of(1, 1024).slotted(b"a", size, slots));
    let slots = |gap| vec![(gap, 100, 0), (0, 900, 1)];
    assert_eq!(parse(1000, &slots(0)).expect("all of it").entries[0].slots()[1].at, 100);
    let wrong = "malformed: its index has a slot of an impossible length or place";
    let most = u64::from(MAX_SLOT);
    for one in [slots(1), vec![(u64::MAX, 1, 0)], vec![(1, u64::MAX, 0)], vec![(0, 0, 0)], vec![(0, 1001, 0)]]
    {
        assert_eq!(parse(1000, &one).expect_err("a slot outside").to_string(), wrong, "{one:?}");
    }
    refused(&of(1, 8704).slotted(b"a", 8704, &[(0, most + 1, 0)]), &wrong["malformed: its index ".len()..]);
    refused(&of(1, 512).slotted(b"a", 1, &[(0, 1, 2)]), "has a slot of an unknown kind");
    let count = "has a file with no slots or too many";
    refused(&of(1, 512).slotted(b"a", 500, &[(0, 1, 0); MAX_SLOTS + 1]), count);
    refused(&of(1, 512).slotted(b"a", 500, &[]).bytes(&[0; 3]), count);
    refused(&of(1, 512).entry(5, b"a").number(500).bytes(&[9; 32]).number(1 << 40), "ends early");
}

#[test]
fn slots_of_many_files_are_bounded_together() {
    let files = (1 << 16) / MAX_SLOTS as u64 + 1;
    let all = |files: u64| {
        (0..files).fold(of(files, files * 512), |raw, n| {
            raw.slotted(format!("{n:05}").as_bytes(), 64, &[(0, 1, 0); MAX_SLOTS])
        })
    };
    refused(&all(files), "has too many slots");
    parse(&all(files - 1)).expect("as many as there may be");
}

#[test]
fn a_writer_with_slots_in_disorder_writes_what_is_refused() {
    let mut index = sound();
    let Kind::File { slots, .. } = &mut index.entries[8].kind else { panic!("a file") };
    slots.reverse();
    assert!(Index::parse(&index.to_bytes(), 100).is_err());
}

#[test]
fn entries_of_an_unknown_kind_are_refused() {
    for tag in 7..=255 {
        refused(&of(1, 0).entry(tag, b"a"), "has an entry of an unknown kind");
    }
}

#[test]
fn every_flipped_byte_of_an_index_is_an_error_or_another_sound_index() {
    let bytes = sound().to_bytes();
    for at in 0..bytes.len() {
        for flip in 1..=255 {
            let mut spoiled = bytes.clone();
            spoiled[at] ^= flip;
            if let Ok(index) = Index::parse(&spoiled, 100) {
                let end = index.spans().last().map(|span| span.end.next_multiple_of(BLOCK) + 2 * BLOCK);
                assert_eq!(end, Some(index.tar_length()));
            }
        }
    }
}
