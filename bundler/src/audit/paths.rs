//! Paths of the host that a program mentions and may open: texts of its read-only data that begin like one.

use std::collections::BTreeSet;

use goblin::elf::Elf;
use goblin::elf::program_header::{PF_W, PF_X, PT_LOAD, ProgramHeader};
use memchr::{memchr_iter, memmem};

/// The folders that a path may begin with (FHS 3.0, and where Nix and snap have theirs).
const ROOTS: &[&str] = &[
    "bin", "boot", "dev", "etc", "home", "lib", "lib32", "lib64", "media", "mnt", "nix", "opt", "proc",
    "root", "run", "sbin", "snap", "srv", "sys", "tmp", "usr", "var",
];
/// What Go and Rust put texts into has no NUL between them. These roots are told from the middle of other texts there.
const CERTAIN: &[&str] = &["etc", "usr", "var", "opt"];
/// Source files are named in messages; nobody opens them.
const SOURCES: &[&str] = &[
    ".c", ".cc", ".cpp", ".cxx", ".h", ".hh", ".hpp", ".rs", ".go", ".s", ".S", ".y", ".l", ".inc", ".inl",
    ".tcc", ".pyx", ".java", ".ml", ".f90",
];
/// The longest path that a kernel takes (PATH_MAX).
const LONGEST: usize = 4096;

/// What a path leads to, as far as a bundle is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Files that a host may have, in another version, or not at all.
    Host,
    /// The kernel's: `/proc`, `/sys`, `/dev`.
    Kernel,
    /// Where programs put what they make: `/tmp`, `/run`.
    Scratch,
}

impl Place {
    /// Of an absolute path.
    pub fn of(path: &str) -> Self {
        let below = |folder: &str| {
            path.strip_prefix(folder).is_some_and(|rest| matches!(rest.as_bytes(), [] | [b'/', ..]))
        };
        if ["/tmp", "/var/tmp", "/run", "/var/run", "/var/lock", "/dev/shm"].into_iter().any(below) {
            Self::Scratch
        } else if ["/proc", "/sys", "/dev"].into_iter().any(below) {
            Self::Kernel
        } else {
            Self::Host
        }
    }
}

/// The folder that a path is counted under: `/etc`, `/usr/share`.
pub fn group(path: &str) -> &str {
    let parts = if path.starts_with("/usr/") || path.starts_with("/var/") { 2 } else { 1 };
    path.match_indices('/').nth(parts).map_or(path, |(end, _)| &path[..end])
}

/// Every path that an ELF file mentions.
pub fn mentioned(elf: &[u8]) -> BTreeSet<String> {
    let is_run_together =
        memmem::find(elf, b"\xff Go buildinf:").is_some() || memmem::find(elf, b"/rustc/").is_some();
    constants(elf).into_iter().flat_map(|bytes| in_bytes(bytes, is_run_together)).collect()
}

/// The segments with constants: those that can neither be written nor executed, and the one with the headers, in which
/// older linkers put constants and code together.
fn constants(elf: &[u8]) -> Vec<&[u8]> {
    let is_constant = |segment: &ProgramHeader| {
        let is_plain = segment.p_flags & PF_X == 0 || segment.p_offset == 0;
        segment.p_type == PT_LOAD && segment.p_flags & PF_W == 0 && is_plain
    };
    let bytes = |segment: &ProgramHeader| {
        let start = usize::try_from(segment.p_offset).ok()?;
        elf.get(start..start.checked_add(usize::try_from(segment.p_filesz).ok()?)?)
    };
    segments(elf)
        .unwrap_or_default()
        .iter()
        .filter(|segment| is_constant(segment))
        .filter_map(bytes)
        .collect()
}

fn segments(elf: &[u8]) -> Option<Vec<ProgramHeader>> {
    let header = Elf::parse_header(elf).ok()?;
    let context = goblin::container::Ctx::new(header.container().ok()?, header.endianness().ok()?);
    let (start, count) = (usize::try_from(header.e_phoff).ok()?, usize::from(header.e_phnum));
    let table = elf.get(start..start.checked_add(count.checked_mul(ProgramHeader::size(context))?)?)?;
    ProgramHeader::parse(table, 0, count, context).ok()
}

fn in_bytes(bytes: &[u8], is_run_together: bool) -> Vec<String> {
    let begins = |at: &usize| begins(bytes, *at, is_run_together);
    memchr_iter(b'/', bytes).filter(begins).filter_map(|at| path_at(&bytes[at..], is_run_together)).collect()
}

/// True if a path may begin at this slash: one of the roots follows, and what stands before does not belong to it.
fn begins(bytes: &[u8], at: usize, is_run_together: bool) -> bool {
    let Some(root) = root(&bytes[at..]) else { return false };
    let Some(before) = at.checked_sub(1).and_then(|before| bytes.get(before)) else { return true };
    // As in a list of folders, an assignment, a message.
    let separates = *before < b' ' || b" :=,;\"'`(<>|".contains(before) || *before == 0x7f;
    separates || (is_run_together && CERTAIN.contains(&root))
}

/// The root that a text begins with, when more follows.
fn root(text: &[u8]) -> Option<&'static str> {
    let rest = text.get(1..)?;
    let is_next =
        |root: &&&str| rest.strip_prefix(root.as_bytes()).is_some_and(|rest| rest.starts_with(b"/"));
    ROOTS.iter().find(is_next).copied()
}

/// The path that begins a text, unless it is noise: a root alone, a source file, a header.
fn path_at(text: &[u8], is_run_together: bool) -> Option<String> {
    let text = &text[..text.len().min(LONGEST)];
    let ends = |at: usize| {
        let byte = text[at];
        byte <= b' '
            || byte == 0x7f
            || b"\"'`<>|;,:()\\".contains(&byte)
            || (byte == b'/' && text.get(at + 1) == Some(&b'/'))
    };
    let next = |at: usize| {
        is_run_together && at > 0 && root(&text[at..]).is_some_and(|root| CERTAIN.contains(&root))
    };
    let end = (0..text.len()).find(|at| ends(*at) || (text[*at] == b'/' && next(*at))).unwrap_or(text.len());
    let path = str::from_utf8(&text[..end]).ok()?.trim_end_matches(['/', '.', '*', '?', '!', ']', '}']);
    let name = path.rsplit('/').next()?;
    // Where nothing ends a text, a source file of Rust is told by its folder.
    let is_source = SOURCES.iter().any(|end| name.ends_with(end)) || path.contains("cargo/registry/");
    let is_header = path.starts_with("/usr/include") || path.starts_with("/usr/src");
    let is_loader = name.starts_with("ld-linux") || name.starts_with("ld-musl-");
    // `/dev/null/…` is what kitbag puts into glibc's loader, a path that cannot be.
    let is_ours = path.starts_with("/dev/null/");
    let is_noise = path.matches('/').count() < 2 || is_source || is_header || is_loader || is_ours;
    (!is_noise).then(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &[u8], is_run_together: bool) -> Vec<String> {
        in_bytes(text, is_run_together)
    }

    #[test]
    fn texts_lists_and_messages_mention_paths() {
        let text = b"\0/etc/passwd\0/usr/bin:/bin/sh\0cannot open /var/lib/app/db: %s\0PATH=/opt/x/bin\0";
        let expected = ["/etc/passwd", "/usr/bin", "/bin/sh", "/var/lib/app/db", "/opt/x/bin"];
        assert_eq!(found(text, false), expected);
    }

    #[test]
    fn what_no_program_opens_is_no_path() {
        let texts: [&[u8]; 9] = [
            b"\0/usr/include/stdio.h\0",
            b"\0/home/me/app/main.c\0",
            b"\0http://host/usr/share/x\0",
            b"\0share/etc/app\0",
            b"\0/etc\0/usr/\0",
            b"\0/lib64/ld-linux-x86-64.so.2\0",
            b"\0a/b\0//\0/\0",
            b"\0-I/usr/lib/x\0",
            b"\0/kitbag-tree/etc/x\0",
        ];
        for text in texts {
            assert_eq!(found(text, false), [""; 0], "{}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn texts_without_an_end_are_cut_where_the_next_path_begins() {
        let text = b"no such host/etc/resolv.conf/etc/hosts/usr/share/zoneinfo/UTCsrc/sys/unix";
        assert_eq!(found(text, true)[..2], ["/etc/resolv.conf", "/etc/hosts"]);
        assert_eq!(found(text, false), [""; 0]);
    }

    #[test]
    fn a_path_is_counted_under_its_first_folders() {
        assert_eq!(group("/etc/ssl/certs"), "/etc");
        assert_eq!(group("/usr/share/zoneinfo"), "/usr/share");
        assert_eq!(group("/usr/bin"), "/usr/bin");
        assert_eq!(Place::of("/var/tmp/x"), Place::Scratch);
        assert_eq!(Place::of("/proc/self/exe"), Place::Kernel);
        assert_eq!(Place::of("/process/x"), Place::Host);
    }

    #[test]
    fn broken_headers_mention_nothing() {
        assert!(mentioned(b"\x7fELF").is_empty());
        let mut bytes = std::fs::read("/proc/self/exe").unwrap()[..4096].to_vec();
        bytes[32..40].fill(0xff);
        assert!(mentioned(&bytes).is_empty());
    }
}
