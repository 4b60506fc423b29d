//! The dynamic section: what stays, what changes, whether it still fits in its place.

use std::ops::Range;

use goblin::elf::dynamic::{
    DF_1_PIE, DT_DEBUG, DT_FLAGS_1, DT_NEEDED, DT_NULL, DT_RPATH, DT_RUNPATH, DT_SONAME, Dyn,
};
use goblin::elf::program_header::{PT_DYNAMIC, PT_INTERP};
use scroll::Pread;

use super::image::Image;
use super::{DT_STRSZ, DT_STRTAB, RPATH_MAX, RewriteError};

/// No folder that the host's loader knows by itself is searched for what this object needs (glibc's elf/dl-load.c).
pub(super) const DF_1_NODEFLIB: u64 = 0x800;

/// The entries before the terminating `DT_NULL`, and the room that they have in the file.
#[derive(Default)]
pub(super) struct Dynamic {
    entries: Vec<Dyn>,
    offset: u64,
    capacity: usize,
}

impl Dynamic {
    /// Reads the section by its segment. Empty if there is none.
    pub fn read(image: &Image) -> Result<Self, RewriteError> {
        let Some(segment) = image.segment(PT_DYNAMIC).filter(|segment| segment.p_filesz > 0) else {
            return Ok(Self::default());
        };
        let malformed = || RewriteError::Malformed("dynamic section");
        // What is mapped counts, as for the loader.
        let is_mapped = image.offset_of(segment.p_vaddr) == Some(segment.p_offset);
        let bytes =
            image.slice(segment.p_offset, segment.p_filesz).filter(|_| is_mapped).ok_or_else(malformed)?;
        let size = Dyn::size(image.ctx.container);
        let all = bytes.chunks_exact(size).map_while(|chunk| chunk.pread_with::<Dyn>(0, image.ctx).ok());
        let entries: Vec<Dyn> = all.take_while(|entry| entry.d_tag != DT_NULL).collect();
        Ok(Self { entries, offset: segment.p_offset, capacity: bytes.len() / size })
    }

    pub fn is_empty(&self) -> bool {
        self.capacity == 0
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Entries that there is room for in the file, with the terminating one.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// False also for a section without `DT_NULL`, as GNU ld makes it with `--spare-dynamic-tags=0`.
    pub fn fits(&self) -> bool {
        self.entries.len() < self.capacity
    }

    fn value(&self, tag: u64) -> Option<u64> {
        // The loader keeps the last one of a tag.
        self.entries.iter().rev().find(|entry| entry.d_tag == tag).map(|entry| entry.d_val)
    }

    /// True for a static program that relocates itself: it names no interpreter, needs nothing, has no name that
    /// others could need, and is marked as a program (`DT_DEBUG` is what linkers give to programs alone).
    pub fn is_static(&self, image: &Image) -> bool {
        let is_program = self.value(DT_FLAGS_1).is_some_and(|flags| flags & DF_1_PIE != 0)
            || self.value(DT_DEBUG).is_some();
        let is_alone = self.value(DT_NEEDED).is_none() && self.value(DT_SONAME).is_none();
        image.segment(PT_INTERP).is_none() && is_alone && is_program
    }

    /// True for glibc's C library.
    pub fn is_libc(&self, image: &Image) -> bool {
        let at = self.value(DT_SONAME).and_then(|at| usize::try_from(at).ok());
        let soname = at.and_then(|at| self.strings(image)?.get(at..));
        soname.is_some_and(|soname| soname.starts_with(b"libc.so.6\0"))
    }

    /// Where the present search path stands in the file, and its text. `DT_RUNPATH` hides `DT_RPATH`.
    pub fn rpath<'a>(&self, image: &Image<'a>) -> Option<(u64, &'a [u8])> {
        let value = self.value(DT_RUNPATH).or_else(|| self.value(DT_RPATH))?;
        let offset = image.offset_of(self.value(DT_STRTAB)?.checked_add(value)?)?;
        Some((offset, image.text(offset, RPATH_MAX)?))
    }

    /// The string table, if it is one.
    pub fn strings<'a>(&self, image: &Image<'a>) -> Option<&'a [u8]> {
        let bytes = image.slice(image.offset_of(self.value(DT_STRTAB)?)?, self.value(DT_STRSZ)?)?;
        bytes.ends_with(b"\0").then_some(bytes)
    }

    /// Where the string table stands in the file: names of symbols.
    pub fn strings_range(&self, image: &Image) -> Range<u64> {
        let at = self.value(DT_STRTAB).and_then(|address| image.offset_of(address)).unwrap_or(0);
        at..at.saturating_add(self.value(DT_STRSZ).unwrap_or(0))
    }

    /// With `DF_1_NODEFLIB`, and one `DT_RPATH` or no search path at all. Entries that go leave their places to new
    /// ones; what then is left over is closed up.
    pub fn changed(mut self, has_rpath: bool) -> Self {
        let mut free: Vec<usize> = Vec::new();
        for (index, entry) in self.entries.iter().enumerate() {
            if matches!(entry.d_tag, DT_RPATH | DT_RUNPATH) {
                free.push(index);
            }
        }
        free.reverse();
        if has_rpath {
            self.put(&mut free, DT_RPATH, 0);
        }
        if self.value(DT_FLAGS_1).is_none() {
            self.put(&mut free, DT_FLAGS_1, 0);
        }
        for index in free {
            self.entries.remove(index);
        }
        let flags = self.entries.iter_mut().filter(|entry| entry.d_tag == DT_FLAGS_1);
        flags.for_each(|entry| entry.d_val |= DF_1_NODEFLIB);
        self
    }

    fn put(&mut self, free: &mut Vec<usize>, d_tag: u64, d_val: u64) {
        let entry = Dyn { d_tag, d_val };
        match free.pop().and_then(|index| self.entries.get_mut(index)) {
            Some(old) => *old = entry,
            None => self.entries.push(entry),
        }
    }

    /// Sets the first entry of a tag.
    pub fn set(&mut self, tag: u64, value: u64) {
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.d_tag == tag) {
            entry.d_val = value;
        }
    }

    /// Has `DT_RPATH` lead to the text at an address. No loader bounds that offset by `DT_STRSZ`.
    pub fn set_rpath(&mut self, address: u64) -> Result<(), RewriteError> {
        let offset = self.value(DT_STRTAB).and_then(|strings| address.checked_sub(strings));
        self.set(DT_RPATH, offset.ok_or(RewriteError::Malformed("string table"))?);
        Ok(())
    }

    /// Where the string table is.
    pub fn strings_address(&self) -> Option<u64> {
        self.value(DT_STRTAB)
    }

    /// The entries as bytes, with `DT_NULL` up to `count` of them.
    pub fn encode(&self, image: &Image, count: usize) -> Vec<u8> {
        let size = Dyn::size(image.ctx.container);
        let mut bytes: Vec<u8> =
            self.entries.iter().flat_map(|entry| image.encode(entry.clone(), size)).collect();
        bytes.resize(bytes.len().max(count * size), 0);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(tags: &[(u64, u64)], has_rpath: bool) -> Vec<(u64, u64)> {
        let entries = tags.iter().map(|&(d_tag, d_val)| Dyn { d_tag, d_val }).collect();
        let dynamic = Dynamic { entries, offset: 0, capacity: 9 }.changed(has_rpath);
        dynamic.entries.iter().map(|entry| (entry.d_tag, entry.d_val)).collect()
    }

    #[test]
    fn tags_change_in_their_places() {
        assert_eq!(changed(&[(DT_RUNPATH, 7), (4, 1)], true), [(DT_RPATH, 0), (4, 1), (DT_FLAGS_1, 0x800)]);
        assert_eq!(changed(&[(DT_RUNPATH, 7), (4, 1)], false), [(DT_FLAGS_1, 0x800), (4, 1)]);
        assert_eq!(changed(&[(DT_FLAGS_1, 1), (DT_RPATH, 7), (4, 1)], false), [(DT_FLAGS_1, 0x801), (4, 1)]);
        let both = [(DT_RPATH, 7), (1, 1), (DT_RUNPATH, 8), (4, 1)];
        assert_eq!(changed(&both, true), [(DT_RPATH, 0), (1, 1), (DT_FLAGS_1, 0x800), (4, 1)]);
        assert_eq!(changed(&[], true), [(DT_RPATH, 0), (DT_FLAGS_1, 0x800)]);
    }
}
