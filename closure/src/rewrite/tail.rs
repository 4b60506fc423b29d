//! The new segment at the end of the file, and the program header that it needs.
//!
//! Where that header goes decides how the file changes. Linkers put `.interp` and notes right behind the table; those are
//! found by headers, so they move into the new segment as one piece, and the table grows over them. Where something else
//! stands there, the table itself moves. In a program the segment then has to lie as far from its place in the file as the
//! first one does: Linux before 5.18 tells a program that its table is at `first segment + e_phoff` (`AT_PHDR`, fs/binfmt_elf.c).

use std::ops::Range;

use goblin::elf::program_header::{
    PF_R, PF_W, PT_GNU_PROPERTY, PT_INTERP, PT_LOAD, PT_NOTE, PT_PHDR, ProgramHeader,
};
use goblin::elf::section_header::{SHF_ALLOC, SHT_NOBITS, SectionHeader};

use super::dynamic::Dynamic;
use super::image::Image;
use super::{DT_STRSZ, DT_STRTAB, RewriteError};

/// The end of the segment. By it a later run knows the segment as its own, and where the padding before it ends.
pub(super) const MARK: &[u8] = b"\x7fkitbag\n";

/// The smallest page, and the largest that Linux has on the machines in use (64 kB: arm64, ppc64, loongarch).
const PAGES: [u64; 2] = [4096, 65536];

/// So far the file may be extended by NULs in order to let the table move. As much as a `.bss` of this size asks for.
const HOLE_MAX: u64 = 16 << 20;

/// What stands between the parts that move with the table at most: alignment.
const GAP_MAX: u64 = 15;

/// A place in the file, and the address that it is loaded at.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub offset: u64,
    pub address: u64,
}

/// What stood at a range of the file now is elsewhere, with another size if that is known.
struct Move {
    from: Range<u64>,
    to: Place,
    size: Option<u64>,
}

/// The segment while it is filled.
pub(super) struct Tail {
    start: Place,
    bytes: Vec<u8>,
    /// Where the table of program headers is reserved in `bytes`, if it moves.
    table: Option<Place>,
    /// In order of precedence.
    moved: Vec<Move>,
    address_max: u64,
}

impl Tail {
    /// Makes the segment and its header, or goes on with the one that an earlier run made.
    pub fn open(image: &mut Image) -> Result<Self, RewriteError> {
        if let Some(own) = image.own_tail().and_then(|index| image.segments.get(index)) {
            let end = Place { offset: image.end, address: own.p_vaddr + own.p_filesz };
            return Ok(Self::at(image, end));
        }
        let behind = behind_the_table(image);
        // Of a library only its loader reads the table, by the file header.
        let moves_for_kernel = behind.is_none() && image.segment(PT_INTERP).is_some();
        let start = if moves_for_kernel { far_as_the_first(image)? } else { anywhere(image) };
        let mut tail = Self::at(image, start);
        let last = image.segments.iter().rposition(|segment| segment.p_type == PT_LOAD);
        let last = last.ok_or(RewriteError::Malformed("program header table"))?;
        image.segments.insert(last + 1, header(image, start));
        let size = (image.segments.len() * ProgramHeader::size(image.ctx)) as u64;
        match behind {
            Some(range) => tail.take_over(image, range)?,
            None => tail.table = Some(tail.push(&vec![0; size as usize], 16)?),
        }
        for segment in image.segments.iter_mut().filter(|segment| segment.p_type == PT_PHDR) {
            (segment.p_filesz, segment.p_memsz) = (size, size);
            if let Some(table) = tail.table {
                relocate(segment, table);
            }
        }
        Ok(tail)
    }

    fn at(image: &Image, start: Place) -> Self {
        let address_max = image.address_max();
        Self { start, bytes: Vec::new(), table: None, moved: Vec::new(), address_max }
    }

    /// Appends `bytes` at an alignment of up to 16 and returns where that is.
    pub fn push(&mut self, bytes: &[u8], align: u64) -> Result<Place, RewriteError> {
        let end = self.start.offset + self.bytes.len() as u64;
        let padding = end.next_multiple_of(align) - end;
        self.bytes.resize(self.bytes.len() + padding as usize, 0);
        let done = self.bytes.len() as u64;
        self.bytes.extend_from_slice(bytes);
        let place = Place { offset: self.start.offset + done, address: self.start.address + done };
        match place.address + bytes.len() as u64 <= self.address_max {
            true => Ok(place),
            false => Err(RewriteError::NoAddress),
        }
    }

    /// The first segment of a type is now at `place`, and so is its section.
    pub fn moves(&mut self, image: &mut Image, p_type: u32, place: Place, size: u64) {
        let Some(segment) = image.segments.iter_mut().find(|segment| segment.p_type == p_type) else {
            return;
        };
        // Where it was before any move: the bytes behind the table may have taken it along.
        let was = self.moved.iter().find(|moved| {
            segment.p_offset >= moved.to.offset && segment.p_offset - moved.to.offset < range_len(&moved.from)
        });
        let from =
            was.map_or(segment.p_offset, |moved| moved.from.start + (segment.p_offset - moved.to.offset));
        self.moved.insert(0, Move { from: from..from + segment.p_filesz, to: place, size: Some(size) });
        relocate(segment, place);
        (segment.p_filesz, segment.p_memsz) = (size, size);
    }

    /// The string table of `dynamic` is now at `place`.
    pub fn moves_strings(&mut self, image: &Image, dynamic: &mut Dynamic, place: Place, size: u64) {
        let from = dynamic.strings_address().and_then(|address| image.offset_of(address)).unwrap_or(0);
        let old = dynamic.strings(image).unwrap_or_default().len() as u64;
        self.moved.push(Move { from: from..from + old, to: place, size: Some(size) });
        dynamic.set(DT_STRTAB, place.address);
        dynamic.set(DT_STRSZ, size);
    }

    /// Moves the bytes of `range` here, with the headers that lead to them.
    fn take_over(&mut self, image: &mut Image, range: Range<u64>) -> Result<(), RewriteError> {
        let bytes = image.slice(range.start, range_len(&range)).unwrap_or_default();
        // The same distance from a multiple of 16, so that what was aligned stays so.
        self.push(&[], 16)?;
        self.push(&vec![0; (range.start % 16) as usize], 1)?;
        let place = self.push(bytes, 1)?;
        for segment in image.segments.iter_mut().filter(|segment| is_movable(segment)) {
            if range.contains(&segment.p_offset) {
                let by = segment.p_offset - range.start;
                relocate(segment, Place { offset: place.offset + by, address: place.address + by });
            }
        }
        self.moved.push(Move { from: range, to: place, size: None });
        Ok(())
    }

    /// Writes segment, tables and header down. Returns the file's new size.
    pub fn close(mut self, image: &mut Image, writes: &mut Vec<(u64, Vec<u8>)>) -> Result<u64, RewriteError> {
        self.push(MARK, 1)?;
        let end = self.start.offset + self.bytes.len() as u64;
        let own = image.segments.iter_mut().rfind(|segment| segment.p_type == PT_LOAD);
        if let Some(own) = own {
            (own.p_filesz, own.p_memsz) = (end - own.p_offset, end - own.p_offset);
        }
        let size = ProgramHeader::size(image.ctx);
        let table: Vec<u8> =
            image.segments.iter().flat_map(|segment| image.encode(segment.clone(), size)).collect();
        image.header.e_phnum = u16::try_from(image.segments.len())
            .map_err(|_| RewriteError::Malformed("program header table"))?;
        match self.table {
            Some(place) => {
                let at = (place.offset - self.start.offset) as usize;
                self.bytes.splice(at..at + table.len(), table);
                image.header.e_phoff = place.offset;
            }
            None => writes.push((image.header.e_phoff, table)),
        }
        writes.push((0, image.encode_header()));
        self.write_sections(image, writes);
        // Some programs find data by the end of their file (what Bun and Deno compile), others by its place (AppImage).
        let behind = image.slice(image.end, image.bytes.len() as u64 - image.end).unwrap_or_default();
        self.bytes.extend_from_slice(behind);
        writes.push((self.start.offset, self.bytes));
        Ok(end + behind.len() as u64)
    }

    /// Sections follow what they describe. Whoever goes by sections (gdb, readelf) finds it then.
    fn write_sections(&self, image: &Image, writes: &mut Vec<(u64, Vec<u8>)>) {
        let size = SectionHeader::size(image.ctx);
        for (index, mut section) in image.sections().into_iter().enumerate() {
            if self.move_section(&mut section) {
                let at = image.header.e_shoff + (index * size) as u64;
                writes.push((at, image.encode(section, size)));
            }
        }
    }

    fn move_section(&self, section: &mut SectionHeader) -> bool {
        let is_loaded = section.sh_flags & u64::from(SHF_ALLOC) != 0 && section.sh_type != SHT_NOBITS;
        let Some(end) = section.sh_offset.checked_add(section.sh_size).filter(|_| is_loaded) else {
            return false;
        };
        let has = |moved: &&Move| section.sh_offset >= moved.from.start && end <= moved.from.end;
        let Some(moved) = self.moved.iter().filter(|_| section.sh_size > 0).find(has) else { return false };
        let by = section.sh_offset - moved.from.start;
        section.sh_offset = moved.to.offset + by;
        section.sh_addr = moved.to.address + by;
        section.sh_size = moved.size.unwrap_or(section.sh_size);
        true
    }
}

fn range_len(range: &Range<u64>) -> u64 {
    range.end.saturating_sub(range.start)
}

fn relocate(segment: &mut ProgramHeader, place: Place) {
    segment.p_offset = place.offset;
    (segment.p_vaddr, segment.p_paddr) = (place.address, place.address);
}

/// Readable and writable: the loader writes into dynamic sections.
fn header(image: &Image, place: Place) -> ProgramHeader {
    ProgramHeader {
        p_type: PT_LOAD,
        p_flags: PF_R | PF_W,
        p_offset: place.offset,
        p_vaddr: place.address,
        p_paddr: place.address,
        p_filesz: 0,
        p_memsz: 0,
        p_align: align(image),
    }
}

/// Parts that are found by their header alone.
fn is_movable(segment: &ProgramHeader) -> bool {
    matches!(segment.p_type, PT_INTERP | PT_NOTE | PT_GNU_PROPERTY) && segment.p_filesz > 0
}

/// What stands directly behind the table, if it can move and leaves room for one header more.
fn behind_the_table(image: &Image) -> Option<Range<u64>> {
    let size = ProgramHeader::size(image.ctx) as u64;
    let start = image.header.e_phoff + image.segments.len() as u64 * size;
    let mut end = start;
    while end < start + size {
        let next = image.segments.iter().filter(|segment| is_movable(segment) && segment.p_offset >= end);
        let next = next.min_by_key(|segment| segment.p_offset)?;
        let gap = next.p_offset - end;
        if gap > GAP_MAX || (image.padding(end) as u64) < gap {
            return None;
        }
        end = next.p_offset + next.p_filesz;
        // Others that begin in it may reach further.
        let inside = image.segments.iter().filter(|segment| is_movable(segment));
        let inside = inside.filter(|segment| (next.p_offset..end).contains(&segment.p_offset));
        end = inside.map(|segment| segment.p_offset + segment.p_filesz).max().unwrap_or(end);
    }
    let is_loaded =
        |load: &ProgramHeader| load.p_offset <= image.header.e_phoff && end <= load.p_offset + load.p_filesz;
    let is_apart = image.segments.iter().all(|segment| {
        let ends = segment.p_offset + segment.p_filesz;
        let covers = ends <= start || segment.p_offset >= end || segment.p_filesz == 0;
        covers
            || segment.p_type == PT_LOAD
            || (is_movable(segment) && segment.p_offset >= start && ends <= end)
    });
    (image.loads().any(is_loaded) && is_apart).then_some(start..end)
}

/// The alignment of the new segment: that of the others, but no more than pages need.
fn align(image: &Image) -> u64 {
    let [least, most] = PAGES;
    let largest = image.loads().map(|load| load.p_align).max().unwrap_or(0);
    if largest.is_power_of_two() { largest.clamp(least, most) } else { least }
}

/// The first address behind everything, on a new page; and the first offset.
fn ends(image: &Image) -> Place {
    let address = image.loads().map(|load| load.p_vaddr + load.p_memsz).max().unwrap_or(0);
    let offset = (image.bytes.len() as u64).next_multiple_of(16);
    Place { offset, address: address.next_multiple_of(align(image)) }
}

/// Right at the file's end, at the next address that suits.
fn anywhere(image: &Image) -> Place {
    let Place { offset, address } = ends(image);
    Place { offset, address: address + offset % align(image) }
}

/// Where address and offset are as far apart as in the first segment.
fn far_as_the_first(image: &Image) -> Result<Place, RewriteError> {
    let malformed = RewriteError::Malformed("program header");
    let first = image.loads().next().ok_or(malformed.clone())?;
    let distance =
        first.p_vaddr.checked_sub(first.p_offset).filter(|by| by % align(image) == 0).ok_or(malformed)?;
    let ends = ends(image);
    let offset = ends.offset.max(ends.address.saturating_sub(distance));
    let address = offset.checked_add(distance).ok_or(RewriteError::NoAddress)?;
    match offset - ends.offset {
        hole if hole > HOLE_MAX => Err(RewriteError::NoRoom(hole)),
        _ => Ok(Place { offset, address }),
    }
}
