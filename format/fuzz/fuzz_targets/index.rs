//! Any bytes as an index. The first eight are the payload's length; half the inputs get the one that fits.
#![no_main]

use kitbag_format::Index;
use kitbag_format::index::{Kind, is_normal, stays_inside};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((length, bytes)) = input.split_first_chunk() else { return };
    let Ok(index) = Index::parse(bytes, u64::from_le_bytes(*length)) else { return };
    let mut end = 0;
    for (entry, span) in index.entries.iter().zip(index.spans()) {
        assert!(is_normal(&entry.path));
        assert!(span.start >= end && span.end <= index.tar_length());
        end = span.end;
        match &entry.kind {
            Kind::Symlink(target) => assert!(stays_inside(&entry.path, target)),
            Kind::Link(to) => assert!(matches!(index.entries[*to].kind, Kind::File { .. })),
            Kind::Dir | Kind::File { .. } => {}
        }
        let mut filled = 0;
        for slot in entry.slots() {
            assert!(slot.at >= filled && slot.length > 0 && slot.end() <= entry.size());
            filled = slot.end();
        }
    }
    let frames: u64 = index.frames.iter().map(|frame| u64::from(frame.raw)).sum();
    assert_eq!(frames, index.tar_length());
    // Written again it is the same index, if not the same bytes: a number may have been written too long.
    let length = index.frames.iter().map(|frame| u64::from(frame.packed)).sum();
    assert_eq!(Index::parse(&index.to_bytes(), length).ok().as_ref(), Some(&index));
    let _ = (index.payload_digest(), index.content_length(), index.file(0));
});
