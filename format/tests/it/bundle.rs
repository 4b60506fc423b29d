//! A small bundle, made without kitbag's bundler: an ELF program of 9 bytes, a tree of each kind of entry.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use kitbag_format::index::{BLOCK, Entry, Index, Kind};
use kitbag_format::manifest::{Command, Manifest, Run, Seed};
use kitbag_format::slots::{Pad, Slot};
use kitbag_format::writer::Writer;
use kitbag_format::{Bundle, Digest, Error, elf};

/// x86-64 for `exit(0)`.
const PROGRAM: &[u8] = b"\xb8\x3c\x00\x00\x00\x31\xff\x0f\x05";
const ADDRESS: u64 = 0x40_0000;

/// A folder of its own for a test, removed with it.
pub fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// What the tree holds: path, contents (`None`: a folder), executable.
pub struct Plan {
    pub entries: Vec<(&'static str, What)>,
    /// Bytes of tar in each frame; the last one has the rest.
    pub cuts: Vec<usize>,
}

pub enum What {
    Dir,
    File(Vec<u8>),
    Program(Vec<u8>),
    /// A program with slots.
    Slotted(Vec<u8>, Vec<Slot>),
    Symlink(&'static str),
    Link(usize),
}

/// A tree with one of everything. Frame ends fall within headers, between a header and its file, and within files.
pub fn plan() -> Plan {
    let entries = vec![
        ("bin", What::Dir),
        ("share", What::Dir),
        ("share/deep", What::Dir),
        ("bin/latest", What::Symlink("app")),
        ("bin/app", What::Program(PROGRAM.to_vec())),
        ("share/deep/empty", What::File(Vec::new())),
        ("share/readme", What::File(b"a readme, and no more\n".to_vec())),
        ("share/readme.2", What::Link(6)),
        ("share/table", What::File((0..1500u32).flat_map(|n| n.to_le_bytes()[..2].to_vec()).collect())),
        ("share/deep/last", What::File(Vec::new())),
    ];
    Plan { entries, cuts: vec![2048, 700, 812, 4096] }
}

/// A tree with slots: in a program of one frame and in one over many, of both kinds, cut by frames' ends, and with a
/// second name.
pub fn slotted() -> Plan {
    let slot = |at, length, pad| Slot { at, length, pad };
    let mut script = b"#!/kitbag-tree/bin/sh".to_vec();
    script.resize(200, b' ');
    script.extend_from_slice(b"\necho /kitbag-tree\n");
    let mut large = vec![7; 5000];
    large[1000..1300].fill(0);
    large[1000..1029].copy_from_slice(b"/kitbag-tree:/kitbag-tree/lib");
    large[4700..5000].fill(0);
    large[4700..4716].copy_from_slice(b"/kitbag-tree/lib");
    let in_large = vec![slot(1000, 300, Pad::Nul), slot(4700, 300, Pad::Nul)];
    let entries = vec![
        ("bin", What::Dir),
        ("bin/script", What::Slotted(script, vec![slot(2, 198, Pad::Space)])),
        ("bin/large", What::Slotted(large, in_large)),
        ("bin/second", What::Link(2)),
        ("readme", What::File(b"/kitbag-tree stays".to_vec())),
    ];
    // The large one's contents begin at 2560.
    Plan { entries, cuts: vec![512 * 5 + 1020, 100, 3500, 200] }
}

/// The runtime: an ELF header, a segment to load, a note to find the head by, three sections.
pub fn runtime() -> Vec<u8> {
    let names = b"\0.note.kitbag\0.shstrtab\0";
    let (note, note_length) = (64 + 2 * 56, 20 + 1024);
    let code = note + note_length;
    let strings = code + PROGRAM.len();
    let sections = (strings + names.len()).next_multiple_of(8);
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(16, 0);
    put(
        &mut elf,
        &[(2, 2), (2, 62), (4, 1), (8, ADDRESS + code as u64), (8, 64), (8, sections as u64), (4, 0)],
    );
    put(&mut elf, &[(2, 64), (2, 56), (2, 2), (2, 64), (2, 3), (2, 2)]);
    let length = strings as u64;
    put(
        &mut elf,
        &[(4, 1), (4, 5), (8, 0), (8, ADDRESS), (8, ADDRESS), (8, length), (8, length), (8, 0x1000)],
    );
    let (at, size) = (note as u64, note_length as u64);
    put(
        &mut elf,
        &[(4, 4), (4, 4), (8, at), (8, ADDRESS + at), (8, ADDRESS + at), (8, size), (8, size), (8, 4)],
    );
    put(&mut elf, &[(4, 7), (4, 1024), (4, 1)]);
    elf.extend_from_slice(b"kitbag\0\0");
    elf.resize(code, 0);
    elf.extend_from_slice(PROGRAM);
    elf.extend_from_slice(names);
    elf.resize(sections + 64, 0);
    let header = |elf: &mut Vec<u8>, name, kind, flags, at: usize, size: usize| {
        let address = if flags == 0 { 0 } else { ADDRESS + at as u64 };
        put(elf, &[(4, name), (4, kind), (8, flags), (8, address), (8, at as u64), (8, size as u64)]);
        put(elf, &[(4, 0), (4, 0), (8, 4), (8, 0)]);
    };
    header(&mut elf, 1, 7, 2, note, note_length);
    header(&mut elf, 14, 3, 0, strings, names.len());
    elf
}

/// Appends little-endian numbers, each with its length in bytes.
fn put(out: &mut Vec<u8>, numbers: &[(usize, u64)]) {
    for (length, number) in numbers {
        out.extend_from_slice(&number.to_le_bytes()[..*length]);
    }
}

/// A ustar header of one block.
fn tar_header(path: &str, what: &What, target: &str) -> Vec<u8> {
    let (kind, mode, size) = match what {
        What::Dir => (b'5', 0o755, 0),
        What::File(bytes) => (b'0', 0o644, bytes.len()),
        What::Program(bytes) | What::Slotted(bytes, _) => (b'0', 0o755, bytes.len()),
        What::Symlink(_) => (b'2', 0o777, 0),
        What::Link(_) => (b'1', 0o644, 0),
    };
    let mut block = vec![0; BLOCK as usize];
    block[..path.len()].copy_from_slice(path.as_bytes());
    block[100..108].copy_from_slice(format!("{mode:07o}\0").as_bytes());
    block[108..124].copy_from_slice(b"0000000\x000000000\0");
    block[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    block[136..148].copy_from_slice(b"00000000000\0");
    block[148..156].fill(b' ');
    block[156] = kind;
    block[157..157 + target.len()].copy_from_slice(target.as_bytes());
    block[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// The tar and the entries of its index.
fn tar(plan: &Plan) -> (Vec<u8>, Vec<Entry>) {
    let (mut tar, mut entries) = (Vec::new(), Vec::new());
    for (path, what) in &plan.entries {
        let (kind, target, contents) = match what {
            What::Dir => (Kind::Dir, "", &[][..]),
            What::File(bytes) => (file(bytes, false, &[]), "", &bytes[..]),
            What::Program(bytes) => (file(bytes, true, &[]), "", &bytes[..]),
            What::Slotted(bytes, slots) => (file(bytes, true, slots), "", &bytes[..]),
            What::Symlink(target) => (Kind::Symlink(target.as_bytes().to_vec()), *target, &[][..]),
            What::Link(to) => (Kind::Link(*to), plan.entries[*to].0, &[][..]),
        };
        entries.push(Entry { path: path.as_bytes().to_vec(), kind, header: BLOCK as u32 });
        tar.extend(tar_header(path, what, target));
        tar.extend_from_slice(contents);
        tar.resize(tar.len().next_multiple_of(BLOCK as usize), 0);
    }
    tar.resize(tar.len() + 2 * BLOCK as usize, 0);
    (tar, entries)
}

fn file(bytes: &[u8], executable: bool, slots: &[Slot]) -> Kind {
    Kind::File { size: bytes.len() as u64, digest: Digest::of(bytes), executable, slots: slots.to_vec() }
}

pub fn manifest() -> Manifest {
    let command = Command { argv: vec!["bin/app".to_owned()], ..Command::default() };
    Manifest {
        name: "sample".to_owned(),
        version: "1.0".to_owned(),
        description: "one of everything".to_owned(),
        requires: Vec::new(),
        run: Run::Command(command),
        seeds: vec![Seed { from: "share/table".to_owned(), to: "table".to_owned() }],
        tasks: Default::default(),
        logs: Default::default(),
    }
}

/// Writes the plan's bundle.
pub fn write(path: &Path, plan: &Plan, manifest: &Manifest) -> Index {
    let runtime = runtime();
    let (tar, entries) = tar(plan);
    let head_at = elf::find_note_in(&runtime).expect("an ELF file").expect("a note").start;
    let options = fs::OpenOptions::new().read(true).write(true).create_new(true).clone();
    let mut writer =
        Writer::new(options.open(path).expect("a new file"), &runtime, head_at).expect("a writer");
    let mut rest = &tar[..];
    for length in plan.cuts.iter().copied().chain([usize::MAX]) {
        let (raw, after) = rest.split_at(length.min(rest.len()));
        rest = after;
        if raw.is_empty() {
            break;
        }
        let mut packed = Vec::with_capacity(zstd_safe::compress_bound(raw.len()));
        zstd_safe::compress(&mut packed, raw, 3).expect("room for the frame");
        let key = Digest::of(raw);
        writer.frame(&packed, raw.len() as u32, Digest::of(&packed), key).expect("a frame");
    }
    let index = Index { frames: Vec::new(), entries };
    writer.finish(index, &manifest.to_text(), manifest.is_tool()).expect("a bundle").2
}

/// The sample bundle in a folder of its own.
pub fn sample() -> (tempfile::TempDir, PathBuf) {
    let folder = folder();
    let path = folder.path().join("sample");
    write(&path, &plan(), &manifest());
    (folder, path)
}

/// Opens and checks every byte.
pub fn verify(path: &Path) -> Result<(), Error> {
    Bundle::open(File::open(path).expect("the file"))?.verify(1)
}
