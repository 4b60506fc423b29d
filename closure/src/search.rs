//! Where a loader looks for a library, in its order. Sources: ld.so(8), glibc's `elf/dl-load.c` and
//! `elf/dl-cache.c`, musl's `ldso/dynlink.c`.

use std::fmt;

use goblin::elf::header::{EM_386, EM_AARCH64, EM_ARM, EM_LOONGARCH, EM_PPC64, EM_RISCV, EM_S390, EM_X86_64};

use crate::facts::{Facts, Target};
use crate::ldconf;
use crate::root::Root;
use crate::tree::{name, parent};

/// Whose rules count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Libc {
    /// The GNU C library.
    Glibc,
    /// musl.
    Musl,
}

impl Libc {
    /// Known by the name of a program's interpreter.
    #[must_use]
    pub fn of_interpreter(path: &[u8]) -> Self {
        if name(path).starts_with(b"ld-musl-") { Self::Musl } else { Self::Glibc }
    }

    /// Known by the libc that a library needs. None if it needs none.
    #[must_use]
    pub fn of_library(facts: &Facts) -> Option<Self> {
        facts.needed.iter().find_map(|name| match name.as_slice() {
            b"libc.so" => Some(Self::Musl),
            name if name.starts_with(b"libc.musl-") => Some(Self::Musl),
            b"libc.so.6" | b"libc.so.6.1" => Some(Self::Glibc),
            _ => None,
        })
    }

    /// True if the loader itself answers to this name: musl's is the libc, and all that other systems split off.
    #[must_use]
    pub fn is_loader(self, needed: &[u8]) -> bool {
        let parts = ["libc.", "libm.", "librt.", "libdl.", "libpthread.", "libutil.", "libxnet."];
        self == Self::Musl && parts.iter().any(|part| needed.starts_with(part.as_bytes()))
    }
}

/// Why a folder is searched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum By {
    /// DT_RPATH of the object or of one that loaded it.
    Rpath,
    /// DT_RUNPATH of the object.
    Runpath,
    /// ld.so.conf, or musl's path file.
    Config,
    /// The loader's own folders.
    Default,
    /// The name is a path.
    Path,
    /// The kernel starts it.
    Interpreter,
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rpath => "RPATH",
            Self::Runpath => "RUNPATH",
            Self::Config => "the loader's configuration",
            Self::Default => "default folder",
            Self::Path => "path",
            Self::Interpreter => "PT_INTERP",
        })
    }
}

/// A loader's rules on one root, for one target.
#[derive(Debug, Clone)]
pub struct Rules {
    /// Whose rules.
    pub libc: Libc,
    /// Folders that are searched for every object, absolute paths on the root.
    pub system: Vec<(Vec<u8>, By)>,
    /// What `$LIB` stands for.
    lib: Vec<u8>,
    /// What `$PLATFORM` stands for.
    platform: Option<&'static [u8]>,
}

impl Rules {
    /// The rules of the loader at `interpreter` on a root. It need not be there.
    #[must_use]
    pub fn new(root: &Root, interpreter: &[u8], target: Target) -> Self {
        let libc = Libc::of_interpreter(interpreter);
        let defaults = default_folders(root, interpreter);
        let lib = defaults[0].strip_prefix(b"/usr/").unwrap_or(&defaults[0][1..]).to_vec();
        let system = match libc {
            Libc::Glibc => glibc_folders(root, defaults),
            Libc::Musl => {
                let folders = ldconf::musl_folders(root, &musl_path_file(interpreter));
                folders.into_iter().map(|folder| (folder, By::Config)).collect()
            }
        };
        Self { libc, system, lib, platform: platform(target) }
    }

    /// An entry of RPATH or RUNPATH, or a needed path, with `$ORIGIN`, `$LIB` and `$PLATFORM` put in. None if the
    /// loader drops it, or it is relative to the folder that a program happens to be started in.
    #[must_use]
    pub fn expand(&self, entry: &[u8], origin: &[u8]) -> Option<Vec<u8>> {
        self.replace(entry, origin).filter(|path| path.starts_with(b"/"))
    }

    /// The same for a place in a tree, whose paths are relative to it: only what begins at `$ORIGIN` is one.
    #[must_use]
    pub fn expand_in_tree(&self, entry: &[u8], origin: &[u8]) -> Option<Vec<u8>> {
        self.replace(self.after_origin(entry)?, b"").map(|rest| [origin, &rest].concat())
    }

    /// What follows `$ORIGIN` at the beginning of an entry, tokens replaced.
    #[must_use]
    pub fn from_origin(&self, entry: &[u8]) -> Option<Vec<u8>> {
        self.replace(self.after_origin(entry)?, b"")
    }

    fn after_origin<'a>(&self, entry: &'a [u8]) -> Option<&'a [u8]> {
        let (token, rest) = token(entry.strip_prefix(b"$")?);
        (token == b"ORIGIN" && (rest.is_empty() || rest.starts_with(b"/"))).then_some(rest)
    }

    fn replace(&self, text: &[u8], origin: &[u8]) -> Option<Vec<u8>> {
        let mut pieces = text.split(|byte| *byte == b'$');
        let mut result = pieces.next()?.to_vec();
        for piece in pieces {
            let (token, rest) = token(piece);
            match (token, self.libc) {
                (b"ORIGIN", _) => result.extend_from_slice(origin),
                (b"LIB", Libc::Glibc) => result.extend_from_slice(&self.lib),
                (b"PLATFORM", Libc::Glibc) => result.extend_from_slice(self.platform?),
                (_, Libc::Musl) => return None,
                (_, Libc::Glibc) => {
                    result.push(b'$');
                    result.extend_from_slice(piece);
                    continue;
                }
            }
            result.extend_from_slice(rest);
        }
        Some(result)
    }
}

/// The name after a dollar sign, with or without braces, and what follows.
fn token(text: &[u8]) -> (&[u8], &[u8]) {
    let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    let braced = text.strip_prefix(b"{");
    let name = braced.unwrap_or(text);
    let (name, rest) = name.split_at(name.iter().position(|byte| !is_name(byte)).unwrap_or(name.len()));
    match (braced, rest.strip_prefix(b"}")) {
        (None, _) => (name, rest),
        (Some(_), Some(rest)) => (name, rest),
        (Some(_), None) => (b"", text),
    }
}

/// ldconfig takes the configured folders first, then its own two; the loader its own, all of them, last.
fn glibc_folders(root: &Root, defaults: Vec<Vec<u8>>) -> Vec<(Vec<u8>, By)> {
    let configured = ldconf::folders(root).into_iter().map(|folder| (folder, By::Config));
    configured.chain(defaults.into_iter().map(|folder| (folder, By::Default))).collect()
}

/// The folders that a glibc was built for, told by where its loader is: its own folder under `/` and under `/usr`; a
/// multiarch one is followed by the plain ones.
fn default_folders(root: &Root, interpreter: &[u8]) -> Vec<Vec<u8>> {
    let real = root.find(interpreter).map_or_else(|| interpreter.to_vec(), |found| found.path);
    let own = match parent(&real) {
        folder @ [b'/', _, ..] => folder,
        _ => b"/lib",
    };
    let short = own.strip_prefix(b"/usr").filter(|rest| rest.starts_with(b"/")).unwrap_or(own);
    let mut folders = vec![short.to_vec(), [b"/usr", short].concat()];
    let multiarch = name(short).windows(7).any(|part| part == b"-linux-");
    if multiarch {
        folders.extend([b"/lib".to_vec(), b"/usr/lib".to_vec()]);
    }
    folders
}

/// `<prefix>/etc/ld-musl-ARCH.path`; the prefix is the loader's path without its last two parts.
#[must_use]
pub fn musl_path_file(interpreter: &[u8]) -> Vec<u8> {
    let loader = name(interpreter);
    let loader = loader.split(|byte| *byte == b'.').next().unwrap_or(loader);
    [parent(parent(interpreter)), b"/etc/", loader, b".path"].concat()
}

/// Where a target's glibc has its loader, by its ABI. For libraries that no program decides about.
#[must_use]
pub fn usual_interpreter(libc: Libc, target: Target) -> Vec<u8> {
    let (glibc, musl): (&[u8], &[u8]) = match (target.machine, target.is_64) {
        (EM_X86_64, true) => (b"/lib64/ld-linux-x86-64.so.2", b"x86_64"),
        (EM_X86_64, false) => (b"/libx32/ld-linux-x32.so.2", b"x32"),
        (EM_386, _) => (b"/lib/ld-linux.so.2", b"i386"),
        (EM_AARCH64, _) => (b"/lib/ld-linux-aarch64.so.1", b"aarch64"),
        (EM_ARM, _) => (b"/lib/ld-linux-armhf.so.3", b"armhf"),
        (EM_RISCV, _) => (b"/lib/ld-linux-riscv64-lp64d.so.1", b"riscv64"),
        (EM_PPC64, _) => (b"/lib64/ld64.so.2", b"powerpc64le"),
        (EM_S390, _) => (b"/lib/ld64.so.1", b"s390x"),
        (EM_LOONGARCH, _) => (b"/lib64/ld-linux-loongarch-lp64d.so.1", b"loongarch64"),
        _ => (b"/lib/ld.so.1", b"unknown"),
    };
    match libc {
        Libc::Glibc => glibc.to_vec(),
        Libc::Musl => [b"/lib/ld-musl-", musl, b".so.1"].concat(),
    }
}

/// What the kernel says in AT_PLATFORM. glibc on some x86 processors says `haswell` instead, which a closure that does
/// not depend on the machine cannot follow.
fn platform(target: Target) -> Option<&'static [u8]> {
    match target.machine {
        EM_X86_64 => Some(b"x86_64"),
        EM_386 => Some(b"i686"),
        EM_AARCH64 => Some(b"aarch64"),
        EM_ARM => Some(b"v7l"),
        _ => None,
    }
}
