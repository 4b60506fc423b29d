//! glibc's own paths of the host, that no flag of a program keeps it from: two of its loader, two of its C library.
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

/// How the paths end where glibc's `iconv` finds modules, which it loads by these paths, whatever libc they were made
/// for (iconv/gconv_conf.c, iconv/gconv_cache.c). GCONV_PATH still leads to others.
const MODULES: [&str; 2] = ["/gconv", "/gconv/gconv-modules.cache"];

/// A device, below which there can be no file, with a name as long as `/usr/lib`.
const DEVICE: &[u8] = b"/dev/tty";

/// Writes that lead these paths of a C library to nowhere. Length and end stay, as other strings may share them.
pub(super) fn without_modules(bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
    let found =
        MODULES.iter().flat_map(|end| strings_with_end(bytes, end).into_iter().map(move |at| (end, at)));
    let replaced = found.filter_map(|(end, (at, old))| {
        let slashes = (old.len() - end.len()).checked_sub(DEVICE.len())?;
        let new = [DEVICE, &vec![b'/'; slashes], end.as_bytes()].concat();
        (new != old).then_some((at as u64, new))
    });
    replaced.collect()
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
