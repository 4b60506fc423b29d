//! glibc's loader: two paths of the host that no flag of a program keeps it from.
//!
//! With `DF_1_NODEFLIB` it still takes from ld.so.cache what lies in folders of ld.so.conf, and it loads what
//! ld.so.preload names, in every program (elf/dl-cache.c, elf/rtld.c).

use goblin::elf::program_header::PT_NOTE;
use scroll::Pread;

use super::Edits;
use super::image::Image;

/// How a host path ends; and what takes its place: below a device there can be no file.
const PATHS: [(&str, &str); 2] =
    [("/ld.so.cache", "/dev/null/cache"), ("/ld.so.preload", "/dev/null/preload")];

/// A path that is longer than this is none.
const PATH_MAX: usize = 4096;

/// Replaces the two paths, wherever one is a whole string. A musl loader has neither.
pub(super) fn patch(image: &Image) -> Edits {
    let mut edits = Edits {
        length: image.bytes.len() as u64,
        writes: Vec::new(),
        slots: Vec::new(),
        unpatched: Vec::new(),
    };
    for (end, new) in PATHS {
        let found = strings_with_end(image.bytes, end);
        let fits = found.iter().all(|(_, old)| old.len() >= new.len());
        let is_patched = image.bytes.windows(new.len() + 1).any(|window| is_string(window, new));
        if (found.is_empty() && !is_patched && is_glibc(image)) || !fits {
            edits.unpatched.push(end);
        }
        for (at, old) in found.into_iter().filter(|(_, old)| old.len() >= new.len()) {
            edits.writes.push((at as u64, super::padded(new.as_bytes(), old.len())));
        }
    }
    edits.writes.sort_unstable();
    edits
}

fn is_string(window: &[u8], text: &str) -> bool {
    window.strip_prefix(text.as_bytes()) == Some(b"\0")
}

/// Offset and text of each NUL-terminated string that is an absolute path and ends so.
fn strings_with_end<'a>(bytes: &'a [u8], end: &str) -> Vec<(usize, &'a [u8])> {
    let ends = bytes.windows(end.len() + 1).enumerate().filter(|(_, window)| is_string(window, end));
    ends.filter_map(|(at, _)| {
        let head = bytes.get(at.saturating_sub(PATH_MAX)..at)?;
        let start = at - head.iter().rev().take_while(|&&byte| byte.is_ascii_graphic()).count();
        let text = bytes.get(start..at + end.len())?;
        let is_whole = start == 0 || bytes.get(start - 1) == Some(&0);
        (is_whole && text.starts_with(b"/")).then_some((start, text))
    })
    .collect()
}

/// True if there is glibc's note that says which kernel it needs at least (`NT_GNU_ABI_TAG`), or its build attributes'
/// owner: musl writes no notes of that owner but the linker's build id.
fn is_glibc(image: &Image) -> bool {
    let is_note = |segment: &&goblin::elf::ProgramHeader| segment.p_type == PT_NOTE;
    image.segments.iter().filter(is_note).any(|segment| {
        image.slice(segment.p_offset, segment.p_filesz).is_some_and(|notes| has_abi_tag(image, notes))
    })
}

fn has_abi_tag(image: &Image, mut notes: &[u8]) -> bool {
    const NT_GNU_ABI_TAG: u32 = 1;
    let le = image.ctx.le;
    let word = |notes: &[u8], at: usize| notes.pread_with::<u32>(at, le).ok();
    while let (Some(name), Some(content), Some(kind)) = (word(notes, 0), word(notes, 4), word(notes, 8)) {
        if kind == NT_GNU_ABI_TAG && notes.get(12..16) == Some(b"GNU\0") {
            return true;
        }
        let sizes = [name, content].map(|size| u64::from(size).next_multiple_of(4));
        let next = usize::try_from(12 + sizes.iter().sum::<u64>()).unwrap_or(usize::MAX);
        notes = notes.get(next..).unwrap_or(&[]);
    }
    false
}
