//! What one ELF file says of itself: what it needs, where it looks, what it provides.
//!
//! Read as a loader reads it, from program headers and the dynamic section alone, so a stripped section table hides
//! nothing. Sources: elf(5), the System V gABI, glibc's `elf/` and its `dl-load.c`.

use std::fs::File;
use std::{fmt, io};

use goblin::container::{Container, Ctx, Endian};
use goblin::elf::dynamic::{
    DF_1_PIE, DT_FLAGS_1, DT_NEEDED, DT_NULL, DT_RPATH, DT_RUNPATH, DT_SONAME, DT_STRTAB, DT_VERDEF,
    DT_VERDEFNUM, DT_VERNEED, DT_VERNEEDNUM,
};
use goblin::elf::header::{EI_OSABI, ELFMAG, ET_DYN, ET_EXEC, Header};
use goblin::elf::program_header::{PT_DYNAMIC, PT_INTERP, PT_LOAD, PT_NOTE};
use goblin::elf::{Elf, ProgramHeader};
use serde::{Deserialize, Serialize};

use crate::bytes::{Reader, Source};

/// GNU property note with properties (`PT_GNU_PROPERTY`), and the property of the least x86 level (x86-64 psABI).
const NT_GNU_PROPERTY_TYPE_0: u32 = 5;
const GNU_PROPERTY_X86_ISA_1_NEEDED: u32 = 0xc000_8002;
/// Property of the levels whose instructions occur, which may be behind a question for the processor.
const GNU_PROPERTY_X86_ISA_1_USED: u32 = 0xc001_0002;
/// GNU note with the least kernel.
const NT_GNU_ABI_TAG: u32 = 1;
/// `FDO` note about libraries that are dlopen'ed.
const NT_FDO_DLOPEN: u32 = 0x407c_0c0a;
/// A version that need not be there.
const VER_FLG_WEAK: u16 = 2;
/// The definition that names the file itself.
const VER_FLG_BASE: u16 = 1;

/// What an ELF file says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Class, byte order and machine: what all files of a process share.
    pub target: Target,
    /// `EI_OSABI`.
    pub os_abi: u8,
    /// What it is for.
    pub kind: Kind,
    /// `PT_INTERP`: the loader that the kernel starts.
    pub interpreter: Option<Vec<u8>>,
    /// True if there is a dynamic section.
    pub is_dynamic: bool,
    /// `DT_NEEDED`, in order.
    pub needed: Vec<Vec<u8>>,
    /// `DT_SONAME`.
    pub soname: Option<Vec<u8>>,
    /// `DT_RPATH`, split at colons. A tag with empty text is an empty list.
    pub rpath: Option<Vec<Vec<u8>>>,
    /// `DT_RUNPATH`, likewise. glibc ignores `DT_RPATH` where it exists.
    pub runpath: Option<Vec<Vec<u8>>>,
    /// `DT_FLAGS_1`.
    pub flags_1: u64,
    /// Libraries that it says it opens by dlopen.
    pub dlopen: Vec<Dlopen>,
    /// Versions it must find, by the library that has to define them. Weak ones are left out.
    pub version_needs: Vec<VersionNeed>,
    /// Versions it defines. Empty: it has no versions, and no loader asks for one.
    pub versions: Vec<Vec<u8>>,
    /// The least kernel, of `.note.ABI-tag`.
    pub least_kernel: Option<[u32; 3]>,
    /// Bits of x86 levels that it needs: 1 the baseline, 2 x86-64-v2, 4 v3, 8 v4.
    pub isa_needed: u32,
    /// The same bits of the levels whose instructions occur in it. Few assemblers say.
    pub isa_used: u32,
    /// True if there is a section table.
    pub has_sections: bool,
}

/// What all files of a process share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Target {
    /// True for ELFCLASS64.
    pub is_64: bool,
    /// True for ELFDATA2LSB.
    pub is_little: bool,
    /// `e_machine`.
    pub machine: u16,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = if self.is_64 { 64 } else { 32 };
        let order = if self.is_little { "" } else { ", big-endian" };
        write!(f, "{} ({bits} bits{order})", goblin::elf::header::machine_to_str(self.machine))
    }
}

/// What an ELF file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Started through its interpreter.
    Program,
    /// A program without: static, or static-pie.
    Static,
    /// Loaded by a loader, or a loader. A static-pie whose linker did not mark it looks like a library without needs.
    Library,
    /// Never loaded: an object file, a core dump.
    Other,
}

/// A library that is opened by dlopen, says the file (<https://systemd.io/ELF_DLOPEN_METADATA/>).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dlopen {
    /// What it is for.
    pub feature: Option<String>,
    /// How much it is missed.
    pub priority: Priority,
    /// Names, the best first. One is enough.
    pub sonames: Vec<String>,
}

/// How much a library is missed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// The program does not work without.
    Required,
    /// By default it should be there.
    #[default]
    Recommended,
    /// Only some want it.
    Suggested,
}

/// Versions that one library has to define.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionNeed {
    /// The library's name, one of `needed`.
    pub library: Vec<u8>,
    /// The versions.
    pub versions: Vec<Vec<u8>>,
}

/// Why a file that begins as ELF does cannot be read.
#[derive(Debug)]
pub enum ElfError {
    /// The system said no.
    Io(io::Error),
    /// The header makes no sense.
    Header(&'static str),
    /// Something lies outside of the file.
    OutOfBounds {
        /// Where it would be.
        offset: u64,
        /// Its length.
        length: usize,
    },
    /// An address that no segment of the file has.
    Unmapped(u64),
    /// A text without end.
    Endless {
        /// Where it begins.
        offset: u64,
    },
    /// More entries than any real file has.
    TooMuch,
}

impl From<io::Error> for ElfError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl fmt::Display for ElfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => error.fmt(f),
            Self::Header(what) => write!(f, "its ELF header is broken: {what}"),
            Self::OutOfBounds { offset, length } => {
                write!(f, "its ELF headers point to {length} bytes at {offset}, which it has not")
            }
            Self::Unmapped(address) => {
                write!(f, "its dynamic section points to address {address:#x}, which no segment has")
            }
            Self::Endless { offset } => write!(f, "the text at {offset} has no end"),
            Self::TooMuch => f.write_str("its ELF headers lead to more entries than any real file has"),
        }
    }
}

impl std::error::Error for ElfError {}

impl Facts {
    /// Reads a file that is in memory. None if it is no ELF file.
    pub fn read(bytes: &[u8]) -> Result<Option<Self>, ElfError> {
        Self::from(Source::Memory(bytes))
    }

    /// Reads a file on disk: headers, the dynamic section, its texts and notes, and nothing else of it.
    pub fn of_file(file: &File) -> Result<Option<Self>, ElfError> {
        Self::from(Source::Disk(file))
    }

    fn from(source: Source<'_>) -> Result<Option<Self>, ElfError> {
        let mut reader = Reader::new(source)?;
        let start = reader.start(64)?;
        if !start.starts_with(ELFMAG) {
            return Ok(None);
        }
        let header =
            Elf::parse_header(start).map_err(|_| ElfError::Header("cut short, or of no known class"))?;
        let class = header.container().map_err(|_| ElfError::Header("no known class"))?;
        reader.order = header.endianness().map_err(|_| ElfError::Header("no known byte order"))?;
        let segments = segments(&mut reader, &header, class)?;
        let mut facts = Self::of_header(&header, class, reader.order);
        if matches!(header.e_type, ET_EXEC | ET_DYN) {
            Image { reader, segments, wide: class.is_big() }.fill(&mut facts)?;
            facts.kind = facts.kind_of(header.e_type);
        }
        Ok(Some(facts))
    }

    fn of_header(header: &Header, class: Container, order: Endian) -> Self {
        let target =
            Target { is_64: class.is_big(), is_little: order == Endian::Little, machine: header.e_machine };
        Self {
            target,
            os_abi: header.e_ident[EI_OSABI],
            kind: Kind::Other,
            interpreter: None,
            is_dynamic: false,
            needed: Vec::new(),
            soname: None,
            rpath: None,
            runpath: None,
            flags_1: 0,
            dlopen: Vec::new(),
            version_needs: Vec::new(),
            versions: Vec::new(),
            least_kernel: None,
            isa_needed: 0,
            isa_used: 0,
            has_sections: header.e_shoff != 0 && header.e_shnum != 0,
        }
    }

    /// Some libraries, glibc's among them, have an interpreter so that they can be run to print their version.
    fn kind_of(&self, e_type: u16) -> Kind {
        let marked = self.flags_1 & DF_1_PIE != 0;
        let named = self.soname.is_some() && !marked && e_type == ET_DYN;
        match (e_type, &self.interpreter) {
            (_, Some(_)) if !named => Kind::Program,
            (ET_EXEC, _) => Kind::Static,
            _ if marked && self.needed.is_empty() => Kind::Static,
            _ => Kind::Library,
        }
    }

    /// The least level of x86-64 that it says it needs, from 1 (the baseline) to 4. None if it does not say.
    #[must_use]
    pub fn x86_level(&self) -> Option<u32> {
        level(self.isa_needed)
    }

    /// The greatest level whose instructions occur in it. It may ask the processor before it uses them.
    #[must_use]
    pub fn x86_level_used(&self) -> Option<u32> {
        level(self.isa_used)
    }

    /// The list of folders that counts for musl, and in the object itself for glibc: RUNPATH, else RPATH.
    #[must_use]
    pub fn own_path(&self) -> &[Vec<u8>] {
        self.runpath.as_ref().or(self.rpath.as_ref()).map_or(&[], Vec::as_slice)
    }
}

/// The greatest level of these bits.
fn level(bits: u32) -> Option<u32> {
    (bits & 0xf).checked_ilog2().map(|bit| bit + 1)
}

fn segments(
    reader: &mut Reader<'_>,
    header: &Header,
    class: Container,
) -> Result<Vec<ProgramHeader>, ElfError> {
    let (context, count) = (Ctx::new(class, reader.order), usize::from(header.e_phnum));
    let size = ProgramHeader::size(context);
    if count > 0 && usize::from(header.e_phentsize) != size {
        return Err(ElfError::Header("program headers of another size"));
    }
    let table = reader.get(header.e_phoff, count * size)?;
    ProgramHeader::parse(table, 0, count, context).map_err(|_| ElfError::Header("program headers"))
}

/// What is known to be opened by dlopen without a note: glibc opens the unwinder when a thread is cancelled or exits
/// early, and aborts where there is none (its misc/unwind-link.c).
fn unnoted(facts: &Facts) -> Option<Dlopen> {
    let is_glibc = facts.soname.as_deref() == Some(b"libc.so.6");
    is_glibc.then(|| Dlopen {
        feature: Some("threads that are cancelled".to_owned()),
        priority: Priority::Recommended,
        sonames: vec!["libgcc_s.so.1".to_owned()],
    })
}

/// A file whose segments are known.
struct Image<'a> {
    reader: Reader<'a>,
    segments: Vec<ProgramHeader>,
    /// True for ELFCLASS64.
    wide: bool,
}

impl Image<'_> {
    fn fill(mut self, facts: &mut Facts) -> Result<(), ElfError> {
        let segments = std::mem::take(&mut self.segments);
        let places: Vec<&ProgramHeader> = segments.iter().filter(|segment| segment.p_filesz > 0).collect();
        self.segments = segments.iter().filter(|segment| segment.p_type == PT_LOAD).cloned().collect();
        for segment in places {
            match segment.p_type {
                PT_INTERP if facts.interpreter.is_none() => {
                    facts.interpreter = Some(self.reader.text(segment.p_offset)?);
                }
                PT_DYNAMIC if !facts.is_dynamic => self.dynamic(segment, facts)?,
                PT_NOTE => self.notes(segment, facts)?,
                _ => {}
            }
        }
        facts.dlopen.extend(unnoted(facts));
        Ok(())
    }

    /// Where the bytes at an address are in the file, and surely in it: what is added to that cannot overflow.
    fn offset(&self, address: u64) -> Result<u64, ElfError> {
        let inside = |segment: &&ProgramHeader| {
            address.checked_sub(segment.p_vaddr).is_some_and(|distance| distance < segment.p_filesz)
        };
        let segment = self.segments.iter().find(inside).ok_or(ElfError::Unmapped(address))?;
        let offset = segment.p_offset.checked_add(address - segment.p_vaddr);
        offset.filter(|offset| self.reader.holds(*offset)).ok_or(ElfError::Unmapped(address))
    }

    fn dynamic(&mut self, segment: &ProgramHeader, facts: &mut Facts) -> Result<(), ElfError> {
        facts.is_dynamic = true;
        let entries = self.entries(segment)?;
        let value =
            |wanted: u64| entries.iter().rev().find(|(tag, _)| *tag == wanted).map(|(_, value)| *value);
        facts.flags_1 = value(DT_FLAGS_1).unwrap_or(0);
        let Some(texts) = value(DT_STRTAB) else { return Ok(()) };
        for (_, at) in entries.iter().filter(|(tag, _)| *tag == DT_NEEDED) {
            facts.needed.push(self.text(texts, *at)?);
        }
        let mut optional = |tag| value(tag).map(|at| self.text(texts, at)).transpose();
        facts.soname = optional(DT_SONAME)?;
        facts.rpath = optional(DT_RPATH)?.map(|text| folders(&text));
        facts.runpath = optional(DT_RUNPATH)?.map(|text| folders(&text));
        if let (Some(at), Some(count)) = (value(DT_VERNEED), value(DT_VERNEEDNUM)) {
            facts.version_needs = self.version_needs(at, count, texts)?;
        }
        if let (Some(at), Some(count)) = (value(DT_VERDEF), value(DT_VERDEFNUM)) {
            facts.versions = self.versions(at, count, texts)?;
        }
        Ok(())
    }

    /// The dynamic section up to its end: tags and values.
    fn entries(&mut self, segment: &ProgramHeader) -> Result<Vec<(u64, u64)>, ElfError> {
        let start = self.offset(segment.p_vaddr).unwrap_or(segment.p_offset);
        let size = if self.wide { 8 } else { 4 };
        let mut entries = Vec::new();
        for number in 0..segment.p_filesz / (2 * size) {
            let at = start.saturating_add(number * 2 * size);
            let tag = self.reader.word(at, self.wide)?;
            if tag == DT_NULL {
                break;
            }
            entries.push((tag, self.reader.word(at.saturating_add(size), self.wide)?));
        }
        Ok(entries)
    }

    /// A text of the table at address `texts`, by its address: loaders do not mind where the table ends, and a search
    /// path that was put into a segment of its own (`rewrite.rs`) lies behind that.
    fn text(&mut self, texts: u64, at: u64) -> Result<Vec<u8>, ElfError> {
        let address = texts.checked_add(at).ok_or(ElfError::Unmapped(at))?;
        let offset = self.offset(address)?;
        self.reader.text(offset)
    }

    fn version_needs(&mut self, address: u64, count: u64, texts: u64) -> Result<Vec<VersionNeed>, ElfError> {
        let (mut at, mut needs) = (self.offset(address)?, Vec::new());
        for _ in 0..count {
            let number = self.reader.u16(at + 2)?;
            let library = u64::from(self.reader.u32(at + 4)?);
            let first = u64::from(self.reader.u32(at + 8)?);
            let library = self.text(texts, library)?;
            let versions = self.needed_versions(at + first, number, texts)?;
            needs.push(VersionNeed { library, versions });
            match self.reader.u32(at + 12)? {
                0 => break,
                next => at += u64::from(next),
            }
        }
        Ok(needs)
    }

    fn needed_versions(&mut self, mut at: u64, count: u16, texts: u64) -> Result<Vec<Vec<u8>>, ElfError> {
        let mut versions = Vec::new();
        for _ in 0..count {
            let name = u64::from(self.reader.u32(at + 8)?);
            if self.reader.u16(at + 4)? & VER_FLG_WEAK == 0 {
                versions.push(self.text(texts, name)?);
            }
            match self.reader.u32(at + 12)? {
                0 => break,
                next => at += u64::from(next),
            }
        }
        Ok(versions)
    }

    fn versions(&mut self, address: u64, count: u64, texts: u64) -> Result<Vec<Vec<u8>>, ElfError> {
        let (mut at, mut versions) = (self.offset(address)?, Vec::new());
        for _ in 0..count {
            let first = at + u64::from(self.reader.u32(at + 12)?);
            if self.reader.u16(at + 2)? & VER_FLG_BASE == 0 {
                let name = u64::from(self.reader.u32(first)?);
                versions.push(self.text(texts, name)?);
            }
            match self.reader.u32(at + 16)? {
                0 => break,
                next => at += u64::from(next),
            }
        }
        Ok(versions)
    }

    fn notes(&mut self, segment: &ProgramHeader, facts: &mut Facts) -> Result<(), ElfError> {
        let align = if segment.p_align == 8 { 8 } else { 4 };
        let up = |length: u64| length.next_multiple_of(align);
        let end = segment
            .p_offset
            .checked_add(segment.p_filesz)
            .ok_or(ElfError::Header("a segment without end"))?;
        let mut at = segment.p_offset;
        while end - at >= 12 {
            let name = u64::from(self.reader.u32(at)?);
            let length = u64::from(self.reader.u32(at + 4)?);
            let kind = self.reader.u32(at + 8)?;
            let content = at + up(12 + name);
            if content.checked_add(length).is_none_or(|last| last > end) {
                break;
            }
            self.note((kind, at + 12, name), content, length, facts)?;
            at = content.saturating_add(up(length)).min(end);
        }
        Ok(())
    }

    fn note(&mut self, of: (u32, u64, u64), at: u64, length: u64, facts: &mut Facts) -> Result<(), ElfError> {
        let (kind, owner, owner_length) = of;
        if owner_length != 4 {
            return Ok(());
        }
        let is_gnu = self.reader.get(owner, 4)? == b"GNU\0";
        let is_fdo = self.reader.get(owner, 4)? == b"FDO\0";
        match kind {
            NT_GNU_ABI_TAG if is_gnu && length >= 16 => {
                let mut part = |number: u64| self.reader.u32(at + 4 * number);
                let (is_linux, kernel) = (part(0)? == 0, [part(1)?, part(2)?, part(3)?]);
                facts.least_kernel = is_linux.then_some(kernel);
            }
            NT_GNU_PROPERTY_TYPE_0 if is_gnu => self.properties(at, length, facts)?,
            NT_FDO_DLOPEN if is_fdo => {
                let text = self.reader.get(at, usize::try_from(length).unwrap_or(usize::MAX))?;
                facts.dlopen.extend(dlopen(text));
            }
            _ => {}
        }
        Ok(())
    }

    fn properties(&mut self, start: u64, length: u64, facts: &mut Facts) -> Result<(), ElfError> {
        let (mut at, end) = (start, start + length);
        while end.saturating_sub(at) >= 12 {
            let size = u64::from(self.reader.u32(at + 4)?);
            match self.reader.u32(at)? {
                GNU_PROPERTY_X86_ISA_1_NEEDED if size == 4 => facts.isa_needed |= self.reader.u32(at + 8)?,
                GNU_PROPERTY_X86_ISA_1_USED if size == 4 => facts.isa_used |= self.reader.u32(at + 8)?,
                _ => {}
            }
            at += 8 + size.next_multiple_of(if self.wide { 8 } else { 4 });
        }
        Ok(())
    }
}

/// A list of folders, as in RPATH.
fn folders(text: &[u8]) -> Vec<Vec<u8>> {
    if text.is_empty() { Vec::new() } else { text.split(|byte| *byte == b':').map(<[u8]>::to_vec).collect() }
}

/// One entry of the note, other keys ignored.
#[derive(Deserialize)]
struct Entry {
    soname: Vec<String>,
    feature: Option<String>,
    #[serde(default)]
    priority: Priority,
}

/// What the note says. It is a hint that no loader reads: one that makes no sense is none.
fn dlopen(text: &[u8]) -> Vec<Dlopen> {
    let text = text.split(|byte| *byte == 0).next().unwrap_or(text);
    let entries: Vec<Entry> = serde_json::from_slice(text).unwrap_or_default();
    let dlopen =
        |entry: Entry| Dlopen { feature: entry.feature, priority: entry.priority, sonames: entry.soname };
    entries.into_iter().map(dlopen).collect()
}
