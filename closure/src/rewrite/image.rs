//! The headers of an ELF file, and where its addresses lie in it.

use goblin::container::{Container, Ctx};
use goblin::elf::header::{ET_DYN, ET_EXEC, Header};
use goblin::elf::program_header::{PT_LOAD, ProgramHeader};
use goblin::elf::section_header::{SHT_NOBITS, SectionHeader};
use scroll::ctx::TryIntoCtx;

use super::RewriteError;
use super::tail::MARK;

/// More program headers than this are no program's, and would need `PN_XNUM` (elf(5)).
const SEGMENTS_MAX: u16 = 0xfff0;

/// A file's bytes and its headers. The headers change, the bytes do not.
pub(super) struct Image<'a> {
    pub bytes: &'a [u8],
    pub header: Header,
    pub ctx: Ctx,
    /// As the table has them; none for what is neither a program nor a library.
    pub segments: Vec<ProgramHeader>,
    /// Where everything ends that headers describe. Data may follow that the program looks for in its own file.
    pub end: u64,
}

impl<'a> Image<'a> {
    pub fn read(bytes: &'a [u8]) -> Result<Self, RewriteError> {
        let malformed = RewriteError::Malformed("header");
        let header = goblin::elf::Elf::parse_header(bytes).map_err(|_| malformed.clone())?;
        let container = header.container().map_err(|_| malformed.clone())?;
        let ctx = Ctx::new(container, header.endianness().map_err(|_| malformed.clone())?);
        let mut image = Self { bytes, header, ctx, segments: Vec::new(), end: bytes.len() as u64 };
        let is_loaded = matches!(header.e_type, ET_EXEC | ET_DYN) && header.e_phnum > 0;
        if is_loaded {
            image.segments = image.read_segments()?;
            image.end = image.read_end();
        }
        Ok(image)
    }

    fn read_segments(&self) -> Result<Vec<ProgramHeader>, RewriteError> {
        let malformed = || RewriteError::Malformed("program header table");
        let size = usize::from(self.header.e_phentsize);
        if size != ProgramHeader::size(self.ctx) || self.header.e_phnum > SEGMENTS_MAX {
            return Err(malformed());
        }
        let offset = usize::try_from(self.header.e_phoff).map_err(|_| malformed())?;
        let segments = ProgramHeader::parse(self.bytes, offset, usize::from(self.header.e_phnum), self.ctx);
        let segments = segments.map_err(|_| malformed())?;
        let is_bounded = |segment: &ProgramHeader| {
            let end = segment.p_vaddr.checked_add(segment.p_memsz);
            end.is_some_and(|end| end <= u64::MAX / 4)
                && segment.p_offset.checked_add(segment.p_filesz).is_some()
        };
        let is_loadable = |segment: &ProgramHeader| {
            segment.p_offset + segment.p_filesz <= self.bytes.len() as u64
                && segment.p_filesz <= segment.p_memsz
        };
        let good = |segment: &&ProgramHeader| {
            is_bounded(segment) && (segment.p_type != PT_LOAD || is_loadable(segment))
        };
        match segments.iter().all(|segment| good(&segment)) {
            true => Ok(segments),
            false => Err(RewriteError::Malformed("program header")),
        }
    }

    /// Without a table of sections nobody knows what of a file is more than its segments: all is taken for the ELF file.
    fn read_end(&self) -> u64 {
        let length = self.bytes.len() as u64;
        let sections = self.sections();
        let table = self.header.e_shoff + (sections.len() * usize::from(self.header.e_shentsize)) as u64;
        let filled = sections.iter().filter(|section| section.sh_type != SHT_NOBITS);
        let of_sections = filled.map(|section| section.sh_offset.saturating_add(section.sh_size));
        let of_segments = self.segments.iter().map(|segment| segment.p_offset + segment.p_filesz);
        match sections.is_empty() {
            true => length,
            false => of_sections.chain(of_segments).fold(table, u64::max).min(length),
        }
    }

    /// The first segment of a type.
    pub fn segment(&self, p_type: u32) -> Option<&ProgramHeader> {
        self.segments.iter().find(|segment| segment.p_type == p_type)
    }

    pub fn loads(&self) -> impl DoubleEndedIterator<Item = &ProgramHeader> {
        self.segments.iter().filter(|segment| segment.p_type == PT_LOAD)
    }

    /// The sections, if there is a table of them that can be read.
    pub fn sections(&self) -> Vec<SectionHeader> {
        let size = usize::from(self.header.e_shentsize);
        let offset = usize::try_from(self.header.e_shoff).unwrap_or(usize::MAX);
        let end = offset.checked_add(size * usize::from(self.header.e_shnum));
        if size != SectionHeader::size(self.ctx) || end.is_none_or(|end| end > self.bytes.len()) {
            return Vec::new();
        }
        SectionHeader::parse(self.bytes, offset, usize::from(self.header.e_shnum), self.ctx)
            .unwrap_or_default()
    }

    /// Where the byte at an address stands in the file.
    pub fn offset_of(&self, address: u64) -> Option<u64> {
        let segment = self
            .loads()
            .find(|segment| address >= segment.p_vaddr && address - segment.p_vaddr < segment.p_filesz)?;
        Some(segment.p_offset + (address - segment.p_vaddr))
    }

    /// Which address the byte at an offset gets.
    pub fn address_of(&self, offset: u64) -> Option<u64> {
        let segment = self
            .loads()
            .find(|segment| offset >= segment.p_offset && offset - segment.p_offset < segment.p_filesz)?;
        Some(segment.p_vaddr + (offset - segment.p_offset))
    }

    /// The file's bytes in a range.
    pub fn slice(&self, offset: u64, length: u64) -> Option<&'a [u8]> {
        let start = usize::try_from(offset).ok()?;
        self.bytes.get(start..start.checked_add(usize::try_from(length).ok()?)?)
    }

    /// The NUL-terminated text at an offset, at most `most` bytes.
    pub fn text(&self, offset: u64, most: usize) -> Option<&'a [u8]> {
        let rest = self.bytes.get(usize::try_from(offset).ok()?..)?;
        let end = rest.iter().take(most).position(|&byte| byte == 0)?;
        rest.get(..end)
    }

    /// How many NULs stand at an offset, up to 64 kB.
    pub fn padding(&self, offset: u64) -> usize {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.bytes.get(offset..)).unwrap_or(&[]);
        rest.iter().take(1 << 16).take_while(|&&byte| byte == 0).count()
    }

    /// The index of the segment that an earlier run appended, if it still is the last of everything.
    pub fn own_tail(&self) -> Option<usize> {
        let index = self.segments.iter().rposition(|segment| segment.p_type == PT_LOAD)?;
        let segment = self.segments.get(index)?;
        let is_last = segment.p_offset + segment.p_filesz == self.end
            && segment.p_filesz == segment.p_memsz
            && self.loads().all(|other| other.p_vaddr <= segment.p_vaddr);
        let is_own =
            self.slice(segment.p_offset, segment.p_filesz).is_some_and(|bytes| bytes.ends_with(MARK));
        (is_last && is_own).then_some(index)
    }

    pub fn in_own_tail(&self, offset: u64) -> bool {
        let tail = self.own_tail().and_then(|index| self.segments.get(index));
        tail.is_some_and(|tail| offset >= tail.p_offset && offset < tail.p_offset + tail.p_filesz)
    }

    /// The highest address that the file's class can have.
    pub fn address_max(&self) -> u64 {
        match self.ctx.container {
            Container::Little => u64::from(u32::MAX) - 0xffff,
            Container::Big => u64::MAX / 2,
        }
    }

    /// The file header as its bytes in the file.
    pub fn encode_header(&self) -> Vec<u8> {
        let mut bytes = vec![0; Header::size(self.ctx)];
        // It knows its byte order itself, whatever is said here; fails only for too small a size.
        let _ = self.header.try_into_ctx(&mut bytes, scroll::LE);
        bytes
    }

    /// A header or an entry as its bytes in the file, of `size` bytes.
    pub fn encode<T: TryIntoCtx<Ctx>>(&self, value: T, size: usize) -> Vec<u8> {
        let mut bytes = vec![0; size];
        // Fails only if `size` is too small, which is the type's own.
        let _ = value.try_into_ctx(&mut bytes, self.ctx);
        bytes
    }
}
