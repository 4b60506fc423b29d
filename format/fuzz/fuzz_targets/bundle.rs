//! Any bytes as a file. As hardly any mutation survives the digests, a second round makes them right: the
//! hostile packer.
#![no_main]

use std::fs::File;
use std::io::Write;
use std::ops::Range;

use kitbag_format::layout::{HEAD_LEN, MAGIC};
use kitbag_format::report::{Summary, list};
use kitbag_format::{Bundle, Digest, Index, extract};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    read(input);
    if let Some(forged) = forge(input) {
        read(&forged);
    }
});

/// All that is done with a file of unknown origin.
fn read(bytes: &[u8]) {
    let Some(file) = file_of(bytes) else { return };
    let Ok(bundle) = Bundle::open(file) else { return };
    let _ = (bundle.verify(1), bundle.runtime(), Summary::of(&bundle).map(|summary| summary.to_text()));
    let Ok(index) = bundle.index() else { return };
    let _ = list(&index, true);
    let small = index.tar_length() < 1 << 20 && index.entries.len() < 50;
    if !small {
        return;
    }
    for number in 0..index.entries.len() {
        let _ = extract::contents(&bundle, &index, number);
    }
    let _ = extract::packed_slots(&bundle, &index, &|_| true);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let inside = folder.path().join("inside");
    let _ = extract::unpack_to(&bundle, &inside, &|_| ());
    let beside = std::fs::read_dir(folder.path()).expect("the folder").count();
    assert!(beside <= 1, "something was written beside the tree");
}

fn file_of(bytes: &[u8]) -> Option<File> {
    let mut file = tempfile::tempfile().ok()?;
    file.write_all(bytes).ok()?;
    Some(file)
}

/// The same bytes with every digest made right, of the frames too, as far as the head's list of parts and the index
/// make sense.
fn forge(input: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = input.to_vec();
    let at = bytes.windows(8).position(|window| window == MAGIC)?;
    let mut head: [u8; HEAD_LEN] = *bytes.get(at..)?.first_chunk()?;
    bytes[at..at + HEAD_LEN].fill(0);
    let length = bytes.len() as u64;
    head[24..32].copy_from_slice(&length.to_le_bytes());
    let payload_digest = forge_index(&mut bytes, &head);
    for part in head[64..].as_chunks_mut::<64>().0 {
        let digest = match (part[0], payload_digest) {
            (2, Some(digest)) => Some(digest),
            _ => bytes.get(range(part)).map(Digest::of),
        };
        if let Some(digest) = digest {
            part[32..].copy_from_slice(&digest.0);
        }
    }
    head[32..64].fill(0);
    let digest = Digest::of(&head);
    head[32..64].copy_from_slice(&digest.0);
    bytes[at..at + HEAD_LEN].copy_from_slice(&head);
    Some(bytes)
}

/// Makes the frames' digests in the index right. Returns the payload's.
fn forge_index(bytes: &mut [u8], head: &[u8; HEAD_LEN]) -> Option<Digest> {
    let part = |kind| head[64..].as_chunks::<64>().0.iter().find(|part| part[0] == kind).map(range);
    let (payload, place) = (part(2)?, part(3)?);
    let mut index = Index::parse(bytes.get(place.clone())?, payload.len() as u64).ok()?;
    let mut rest = bytes.get(payload)?;
    for frame in &mut index.frames {
        let (packed, after) = rest.split_at_checked(frame.packed as usize)?;
        (frame.digest, rest) = (Digest::of(packed), after);
    }
    let (written, old) = (index.to_bytes(), bytes.get_mut(place)?);
    (written.len() == old.len()).then(|| old.copy_from_slice(&written))?;
    Some(index.payload_digest())
}

/// Where a part says that it is.
fn range(part: &[u8; 64]) -> Range<usize> {
    let number = |at: usize| part[at..].first_chunk().copied().map_or(0, u64::from_le_bytes) as usize;
    number(8)..number(8).saturating_add(number(16))
}
