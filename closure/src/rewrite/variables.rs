//! Environment variables that lead the bundle's programs to its data, and the names that those programs read instead.
//!
//! Whatever the app starts inherits its environment, programs of the host too. Those have data of their own, and some
//! have none but theirs: modules and locales of another C library do not do. So where a program or library of the bundle
//! asks for such a variable, it is made to ask for another one, whose name is as long and means nothing to anybody else.

use memchr::memmem;

use super::image::Image;

/// A variable under its two names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Variable {
    /// What everybody calls it.
    pub name: &'static str,
    /// What the bundle's programs call it; as many bytes.
    pub own: &'static str,
    /// Who asks for it.
    pub reader: Reader,
}

/// Who asks for a variable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    /// glibc's C library alone. It is led in any case: what leads the host's would harm it.
    Libc,
    /// An interpreter alone, whoever else speaks of it.
    Interpreter,
    /// Whatever needs that data: libraries, but also programs that are not rewritten, and scripts.
    Anyone,
}

/// The table. Sources: glibc's iconv/gconv_conf.c, locale/setlocale.c and time/tzfile.c, OpenSSL's include/internal/cryptlib.h
/// (`X509_CERT_FILE_EVP`), ncurses' tinfo/db_iterator.c, CPython's Python/initconfig.c and Lib/zoneinfo/_tzpath.py.
pub const VARIABLES: [Variable; 9] = [
    Variable { name: "GCONV_PATH", own: "KITBAGCONV", reader: Reader::Libc },
    Variable { name: "LOCPATH", own: "KITLOCS", reader: Reader::Libc },
    Variable { name: "TZDIR", own: "KITTZ", reader: Reader::Anyone },
    Variable { name: "SSL_CERT_FILE", own: "KITBAG_CAFILE", reader: Reader::Anyone },
    Variable { name: "SSL_CERT_DIR", own: "KITBAG_CADIR", reader: Reader::Anyone },
    Variable { name: "TERMINFO_DIRS", own: "KITBAGTERMDIR", reader: Reader::Anyone },
    Variable { name: "PYTHONTZPATH", own: "KITBAGTZPATH", reader: Reader::Anyone },
    Variable { name: "PYTHONNOUSERSITE", own: "KITBAGNOUSERSITE", reader: Reader::Interpreter },
    Variable { name: "PYTHONDONTWRITEBYTECODE", own: "KITBAGDONTWRITEBYTECODE", reader: Reader::Interpreter },
];

impl Variable {
    /// The variable that everybody calls `name`, if it is one of the table.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        VARIABLES.iter().find(|variable| variable.name == name)
    }

    /// Writes that give it its other name in an ELF file, wherever the name is a whole string of what is loaded.
    pub(super) fn renamed_in(&self, image: &Image, names: std::ops::Range<u64>) -> Vec<(u64, Vec<u8>)> {
        let string = [b"\0", self.name.as_bytes(), b"\0"].concat();
        let finder = memmem::Finder::new(&string);
        let mut found = Vec::new();
        for segment in image.loads() {
            let Some(bytes) = image.slice(segment.p_offset, segment.p_filesz) else { continue };
            let places = finder.find_iter(bytes).filter(|at| !self.is_counted(bytes.get(..at + 1)));
            found.extend(places.map(|at| segment.p_offset + at as u64 + 1));
        }
        found.sort_unstable();
        found.dedup();
        found.retain(|at| !names.contains(at));
        found.into_iter().map(|at| (at, self.own.as_bytes().to_vec())).collect()
    }

    /// True for a text with its length in front: a piece of compiled JavaScript and its like, which has a checksum.
    fn is_counted(&self, before: Option<&[u8]>) -> bool {
        let length = before.and_then(<[u8]>::last_chunk).map(|bytes| u32::from_le_bytes(*bytes));
        length.is_some_and(|length| length as usize == self.name.len())
    }

    /// Writes that give it its other name wherever it stands in a text, or in what an interpreter makes of one.
    #[must_use]
    pub fn renamed_in_text(&self, bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
        let places = memmem::find_iter(bytes, self.name);
        places.map(|at| (at as u64, self.own.as_bytes().to_vec())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_names_are_of_one_length_and_no_name_stands_twice() {
        let mut names: Vec<&str> =
            VARIABLES.iter().flat_map(|variable| [variable.name, variable.own]).collect();
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
        for Variable { name, own, .. } in VARIABLES {
            assert!(name.len() == own.len() && own.starts_with("KIT"), "{name} {own}");
        }
    }

    #[test]
    fn a_text_with_its_length_in_front_is_no_string() {
        let variable = Variable::named("TZDIR").unwrap();
        assert!(variable.is_counted(Some(b"TZ\0\x05\0\0\0")));
        assert!(!variable.is_counted(Some(b"UTC\0GMT\0")));
        assert!(!variable.is_counted(Some(b"\0")));
    }

    #[test]
    fn in_a_text_it_is_renamed_wherever_it_stands() {
        let variable = Variable::named("PYTHONTZPATH").unwrap();
        let writes = variable.renamed_in_text(b"get(\"PYTHONTZPATH\")  # PYTHONTZPATH");
        assert_eq!(writes, [(5, b"KITBAGTZPATH".to_vec()), (23, b"KITBAGTZPATH".to_vec())]);
    }
}
