//! The few bytes of an ELF file that change, so that it finds its loader and libraries in the bundle alone.

/// How a text in a packed file spells the folder that the bundle is unpacked to.
pub const TREE: &str = "/kitbag-tree";

/// What has to change in one file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    /// The new PT_INTERP, as it goes into the file: `/kitbag-tree/.kitbag/lib/ld-linux-x86-64.so.2`.
    pub interpreter: Option<Vec<u8>>,
    /// The new DT_RPATH: `/kitbag-tree/lib` in programs, `$ORIGIN/../x.libs` in libraries. Empty: none.
    pub rpath: Vec<Vec<u8>>,
    /// True for glibc's loader itself, which must not read the host's ld.so.cache and ld.so.preload.
    pub is_loader: bool,
}
