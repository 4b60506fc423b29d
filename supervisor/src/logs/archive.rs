//! Rotated files: what they are called, which are kept, and how they become small.
//!
//! `2026-11-21T10-32-15.123456Z.log` is complete; with `.zst` behind it, it is compressed. `….zst.part` is being
//! compressed, or was when the machine went down.

use kitbag_format::sort;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ruzstd::encoding::CompressionLevel;

use super::format::{Micros, STAMP, Stamp, parse_stamp};

const PLAIN: &str = ".log";
const PACKED: &str = ".log.zst";
const UNFINISHED: &str = ".log.zst.part";

/// A rotated file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rotated {
    /// When it was rotated, or a little later: no two of a folder are the same.
    pub time: Micros,
    /// It is compressed.
    pub packed: bool,
}

impl Rotated {
    /// Its name.
    pub fn name(&self) -> String {
        stem(self.time) + if self.packed { PACKED } else { PLAIN }
    }
}

/// The name of a file that is rotated at this time.
pub fn name(time: Micros) -> String {
    stem(time) + PLAIN
}

/// When a file of this name was rotated; `None`: it was not, or is compressed.
pub fn rotated_at(name: &OsStr) -> Option<Micros> {
    let (stem, kind) = name.to_str()?.split_at_checked(STAMP)?;
    (kind == PLAIN).then(|| parse_stamp(stem.as_bytes()))?
}

/// A time stamp without colons, which other systems and remote copies trip over.
fn stem(time: Micros) -> String {
    let mut stamp = Stamp::default();
    stamp.text(time).iter().map(|byte| if *byte == b':' { '-' } else { char::from(*byte) }).collect()
}

/// The rotated files of a folder, oldest first. Where a compressed one is complete, the plain one beside it does not
/// count.
pub fn rotated(folder: &Path) -> io::Result<Vec<Rotated>> {
    let mut files: Vec<Rotated> = names(folder)?
        .filter_map(|name| {
            let (stem, kind) = name.split_at_checked(STAMP)?;
            let packed = match kind {
                PLAIN => false,
                PACKED => true,
                _ => return None,
            };
            Some(Rotated { time: parse_stamp(stem.as_bytes())?, packed })
        })
        .collect();
    // Of the same time, the compressed one first.
    sort::by(&mut files, &|one, other| (one.time, !one.packed).cmp(&(other.time, !other.packed)));
    files.dedup_by_key(|file| file.time);
    Ok(files)
}

fn names(folder: &Path) -> io::Result<impl Iterator<Item = String>> {
    Ok(fs::read_dir(folder)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok()))
}

/// Removes the oldest of `files` until `count` are left.
///
/// In this order a compressor at work cannot bring one back: what it has begun goes before it gets its name, or with it; and
/// what it begins later is of a file that has no name any more, which it sees ([`pack`]).
pub fn keep(folder: &Path, files: &[Rotated], count: usize) {
    for file in &files[..files.len().saturating_sub(count)] {
        let stem = stem(file.time);
        for kind in [PLAIN, UNFINISHED, PACKED] {
            let _ = fs::remove_file(folder.join(format!("{stem}{kind}")));
        }
    }
}

/// Removes what a killed compressor has left.
pub fn remove_unfinished(folder: &Path) {
    for name in names(folder).into_iter().flatten().filter(|name| name.ends_with(UNFINISHED)) {
        let _ = fs::remove_file(folder.join(name));
    }
}

/// Compresses all rotated files of a folder that are not. A file that vanishes meanwhile was one too many.
pub fn compress_all(folder: &Path) -> io::Result<()> {
    for file in rotated(folder)?.into_iter().filter(|file| !file.packed) {
        match compress(folder, &stem(file.time)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn compress(folder: &Path, stem: &str) -> io::Result<()> {
    let path = |kind: &str| -> PathBuf { folder.join(format!("{stem}{kind}")) };
    let done = File::open(path(PLAIN)).and_then(|plain| {
        pack(plain, &path(UNFINISHED))?;
        fs::rename(path(UNFINISHED), path(PACKED))?;
        fs::remove_file(path(PLAIN))
    });
    if done.is_err() {
        let _ = fs::remove_file(path(UNFINISHED));
    }
    done
}

/// A file whose first error is kept, and which takes and gives nothing from then on: the compressor panics on errors.
struct Patient<'a> {
    file: &'a mut File,
    result: io::Result<()>,
}

impl<'a> Patient<'a> {
    const fn new(file: &'a mut File) -> Self {
        Self { file, result: Ok(()) }
    }
}

impl Read for Patient<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.file.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.result = Err(error);
                    return Ok(0);
                }
                done => return done,
            }
        }
    }
}

impl Write for Patient<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.result.is_ok() {
            self.result = self.file.write_all(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Compresses a file to `to`; `NotFound` if it was removed before there was one.
fn pack(mut from: File, to: &Path) -> io::Result<()> {
    let mode = from.metadata()?.mode() & 0o777;
    // Whatever has this name, a link that somebody has left too.
    let _ = fs::remove_file(to);
    let mut to = File::options().write(true).create_new(true).mode(mode).open(to)?;
    if from.metadata()?.nlink() == 0 {
        return Err(io::ErrorKind::NotFound.into());
    }
    let (mut source, mut target) = (Patient::new(&mut from), Patient::new(&mut to));
    ruzstd::encoding::compress(&mut source, &mut target, CompressionLevel::Fastest);
    source.result.and(target.result)?;
    // The plain file goes next: this one has to be there after a power cut.
    to.sync_data()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_the_time_and_sort_by_it() {
        assert_eq!(name(1_795_257_135_123_456), "2026-11-21T10-32-15.123456Z.log");
        let times = [0, 1, 999_999, 1_000_000, 1_795_257_135_123_456, 4_107_542_400_000_000];
        assert!(times.map(name).is_sorted());
        for time in times {
            let name = name(time);
            assert_eq!(parse_stamp(name.as_bytes()), Some(time));
            assert_eq!(rotated_at(name.as_ref()), Some(time));
            assert_eq!(rotated_at(format!("{name}.zst").as_ref()), None);
        }
    }

    #[test]
    fn a_folder_is_listed_by_time_and_the_compressed_file_wins() {
        let folder = tempfile::tempdir().expect("a folder");
        let [a, b, c] = [10, 20, 30].map(stem);
        for name in
            [format!("{b}{PLAIN}"), format!("{b}{PACKED}"), format!("{a}{PACKED}"), format!("{c}{PLAIN}")]
        {
            fs::write(folder.path().join(name), "").expect("writable");
        }
        for other in ["current", "x.log", &format!("{a}{UNFINISHED}"), &format!("{a}.txt")] {
            fs::write(folder.path().join(other), "").expect("writable");
        }
        let list = |_| rotated(folder.path()).expect("readable");
        let of = |time, packed| Rotated { time, packed };
        assert_eq!(list(()), [of(10, true), of(20, true), of(30, false)]);
        keep(folder.path(), &list(()), 1);
        assert_eq!(list(()), [of(30, false)]);
        remove_unfinished(folder.path());
        assert!(!folder.path().join(format!("{a}{UNFINISHED}")).exists());
        assert!(folder.path().join("x.log").exists());
    }

    #[test]
    fn what_was_removed_while_it_was_compressed_does_not_come_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |kind: &str| folder.path().join(stem(7) + kind);
        let remove = || keep(folder.path(), &[Rotated { time: 7, packed: false }], 0);
        let left = || fs::read_dir(folder.path()).expect("readable").count();
        // Before the compressor has begun to write, and before its work gets its name.
        for begun in [false, true] {
            fs::write(path(PLAIN), "text\n").expect("writable");
            let plain = File::open(path(PLAIN)).expect("it is there");
            if begun {
                pack(plain, &path(UNFINISHED)).expect("packed");
                remove();
            } else {
                remove();
                let error = pack(plain, &path(UNFINISHED)).expect_err("it is gone");
                assert_eq!(error.kind(), io::ErrorKind::NotFound);
                fs::remove_file(path(UNFINISHED)).expect("as `compress` does");
            }
            assert_eq!(left(), 0, "{begun}");
        }
    }

    #[test]
    fn a_link_in_the_way_of_a_compressed_file_leads_nowhere() {
        let folder = tempfile::tempdir().expect("a folder");
        let precious = folder.path().join("precious");
        fs::write(&precious, "precious").expect("writable");
        fs::write(folder.path().join(name(7)), "text\n").expect("writable");
        std::os::unix::fs::symlink(&precious, folder.path().join(stem(7) + UNFINISHED)).expect("a link");
        compress_all(folder.path()).expect("compressed");
        assert_eq!(fs::read(&precious).expect("readable"), b"precious");
        let packed = folder.path().join(stem(7) + PACKED);
        assert!(fs::symlink_metadata(packed).expect("it is there").is_file());
    }

    #[test]
    fn what_is_compressed_is_what_was_there() {
        let folder = tempfile::tempdir().expect("a folder");
        let text: String =
            (0..50_000).map(|n| format!("line {n} of a log that says much the same\n")).collect();
        fs::write(folder.path().join(name(7)), &text).expect("writable");
        compress_all(folder.path()).expect("compressed");
        let files = rotated(folder.path()).expect("readable");
        assert_eq!(files, [Rotated { time: 7, packed: true }]);
        let packed = fs::read(folder.path().join(files[0].name())).expect("readable");
        assert!(packed.len() < text.len() / 3, "{} of {}", packed.len(), text.len());
        let mut unpacked = Vec::with_capacity(text.len());
        zstd_safe::decompress(&mut unpacked, &packed).map_err(zstd_safe::get_error_name).expect("zstd");
        assert!(unpacked == text.as_bytes());
    }
}
