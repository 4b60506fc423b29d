//! The file `ports` in the supervisor's own folder: the numbers that its ports have, and had the last time.
//!
//! It has the form of services(5), for scripts:
//!
//! ```text
//! web.http 20123/tcp
//! # rpc.main /srv/notes/.kitbag/run/rpc.main.sock
//! #had web.2.http 20124/tcp
//! ```
//!
//! What is no such line is skipped when it is read, whatever it is, and gone when it is written.

use kitbag_format::sort;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use super::lease::Net;
use crate::state_folder;

/// The file's name.
pub const NAME: &str = "ports";
/// What is longer is not read further.
const LONGEST: u64 = 1 << 20;
/// Most numbers that are kept in mind.
const MOST: usize = 10_000;
/// What a line begins with whose port is not leased now.
const HAD: &str = "#had ";

/// A port's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Assigned {
    number: u16,
    net: Net,
    is_leased: bool,
}

/// The numbers of ports, by `UNIT.PORT`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Assignments {
    numbers: BTreeMap<String, Assigned>,
    /// Unix sockets, which need no memory.
    paths: BTreeMap<String, String>,
}

impl Assignments {
    /// Those of the last time, none of them leased yet. A file that is not there, or not readable, has none.
    pub fn read(folder: &Path) -> Self {
        let bytes = state_folder::read(&folder.join(NAME), LONGEST).unwrap_or_default();
        Self::parse(&bytes)
    }

    fn parse(bytes: &[u8]) -> Self {
        // A last line without its end may have lost digits.
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(&[][..], |end| &bytes[..end]);
        let lines = whole.split(|byte| *byte == b'\n').filter_map(|line| std::str::from_utf8(line).ok());
        let numbers = lines.filter_map(line).take(MOST);
        Self { numbers: sort::map(numbers), paths: BTreeMap::new() }
    }

    /// What this port has, or had the last time.
    pub fn number(&self, unit: &str, port: &str, net: Net) -> Option<u16> {
        let found = self.numbers.get(&format!("{unit}.{port}"))?;
        (found.net == net).then_some(found.number)
    }

    /// It has this one now.
    pub fn lease(&mut self, unit: &str, port: &str, net: Net, number: u16) {
        let name = format!("{unit}.{port}");
        if self.numbers.len() < MOST || self.numbers.contains_key(&name) {
            self.numbers.insert(name, Assigned { number, net, is_leased: true });
        }
    }

    /// It has this path now.
    pub fn place(&mut self, unit: &str, port: &str, path: &Path) {
        self.paths.insert(format!("{unit}.{port}"), path.display().to_string());
    }

    /// It has none any more, and would like the same again.
    pub fn free(&mut self, unit: &str, port: &str) {
        let name = format!("{unit}.{port}");
        self.paths.remove(&name);
        if let Some(assigned) = self.numbers.get_mut(&name) {
            assigned.is_leased = false;
        }
    }

    /// None has any more, and each would like the same again. False if none had.
    pub fn free_all(&mut self) -> bool {
        let mut any = !std::mem::take(&mut self.paths).is_empty();
        for assigned in self.numbers.values_mut() {
            any |= std::mem::take(&mut assigned.is_leased);
        }
        any
    }

    /// Writes the file, whole or not at all.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        let part = folder.join(format!(".{NAME}.part"));
        let mut file = state_folder::create(&part)?;
        file.write_all(self.text().as_bytes())?;
        fs::rename(part, folder.join(NAME))
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for (name, Assigned { number, net, is_leased }) in &self.numbers {
            let had = if *is_leased { "" } else { HAD };
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{had}{name} {number}/{net}");
        }
        for (name, path) in &self.paths {
            let _ = writeln!(text, "# {name} {}", path.escape_debug());
        }
        text
    }
}

/// Reads `web.http 20123/tcp`, as one of the last time.
fn line(text: &str) -> Option<(String, Assigned)> {
    let mut words = text.strip_prefix(HAD).unwrap_or(text).split_ascii_whitespace();
    let name =
        words.next().filter(|name| !name.starts_with('#') && name.contains('.') && name.len() <= 256)?;
    let (number, net) = words.next()?.split_once('/')?;
    let net = match net {
        "tcp" => Net::Tcp,
        "udp" => Net::Udp,
        _ => return None,
    };
    let number = number.parse().ok().filter(|number| *number > 0)?;
    Some((name.to_owned(), Assigned { number, net, is_leased: false }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_leased_is_told_from_had() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut ports = Assignments::default();
        ports.lease("web", "http", Net::Tcp, 20_123);
        ports.lease("web.2", "http", Net::Tcp, 20_124);
        ports.lease("dns", "dns", Net::Udp, 5_353);
        ports.place("rpc", "main", Path::new("/s\n/rpc.main.sock"));
        ports.free("web.2", "http");
        ports.write(folder.path()).expect("it is written");
        let mut ended = ports.clone();
        assert!(ended.free_all() && !ended.free_all());
        assert_eq!(
            ended.text(),
            "#had dns.dns 5353/udp\n#had web.2.http 20124/tcp\n#had web.http 20123/tcp\n"
        );
        let text = fs::read_to_string(folder.path().join(NAME)).expect("it is there");
        let lines = "dns.dns 5353/udp\n#had web.2.http 20124/tcp\nweb.http 20123/tcp\n# rpc.main /s\\n/rpc.main.sock\n";
        assert_eq!(text, lines);
        let mut read = Assignments::read(folder.path());
        assert_eq!(read.number("web", "http", Net::Tcp), Some(20_123));
        assert_eq!(read.number("web.2", "http", Net::Tcp), Some(20_124));
        assert_eq!(read.number("dns", "dns", Net::Udp), Some(5_353));
        assert_eq!(read.number("dns", "dns", Net::Tcp), None, "of the other protocol");
        assert_eq!(read.number("rpc", "main", Net::Tcp), None);
        assert!(read.text().lines().all(|line| line.starts_with(HAD)), "nothing is leased yet");
        read.lease("web", "http", Net::Tcp, 20_125);
        assert_eq!(read.number("web", "http", Net::Tcp), Some(20_125));
    }

    #[test]
    fn garbage_is_skipped_and_a_cut_line_is_not_believed() {
        let text =
            b"\xff\xfe\nweb.http 20123/tcp\nssh 22/tcp\nweb.x 0/tcp\nweb.y 70000/tcp\nweb.z 1/sctp\nweb.a\n\
            #web.b 7/tcp\n  web.c\t20124/udp alias # note\n\0\0\nweb.d 2012";
        let ports = Assignments::parse(text);
        assert_eq!(ports.numbers.len(), 2);
        assert_eq!(ports.number("web", "c", Net::Udp), Some(20_124));
        assert_eq!(Assignments::parse(b"").numbers.len(), 0);
        assert_eq!(Assignments::parse(b"web.http 20123/tcp").numbers.len(), 0);
    }

    #[test]
    fn a_file_that_is_not_there_or_a_folder_has_none() {
        let folder = tempfile::tempdir().expect("a folder");
        assert_eq!(Assignments::read(folder.path()), Assignments::default());
        fs::create_dir(folder.path().join(NAME)).expect("a folder in its place");
        assert_eq!(Assignments::read(folder.path()), Assignments::default());
        assert!(Assignments::default().write(folder.path()).is_err());
    }

    #[test]
    fn a_huge_file_is_read_to_its_bound() {
        let lines: String = (0..200_000).fold(String::new(), |mut text, at| {
            let _ = writeln!(text, "u{at}.p {}/tcp", 1 + at % 60_000);
            text
        });
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join(NAME), &lines).expect("it is written");
        assert_eq!(Assignments::read(folder.path()).numbers.len(), MOST);
    }
}
