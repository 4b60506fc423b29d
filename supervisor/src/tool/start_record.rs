//! Writes the start record that `kitbag-entry` reads; its layout is documented in [`kitbag_entry::record`].

use std::{
    ffi::OsString,
    fs,
    io::{self, Error, ErrorKind},
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

use kitbag_entry::record::{
    BOOT_ID_LEN, CHECKED_FROM, FLAG_NO_LOADER_VARIABLES, MAGIC, MAX_LEN, PIECE_ENV, PIECE_ENV_OR, PIECE_TEXT,
    VERSION, checksum,
};

/// What a full start found out, for the later ones.
#[derive(Debug, Clone)]
pub struct StartRecord {
    /// The first 64 bytes of the bundle's head.
    pub head_prefix: [u8; kitbag_entry::head::PREFIX_LEN],
    /// The folder of this record and of `tree`: `<place>/v1/trees/<hex>`, spelled as the place's rules spell it.
    pub folder: PathBuf,
    /// Variables of the caller that `argv`, `env` or `cwd` below were made from, except those that are pieces.
    pub guards: Vec<Guard>,
    /// A folder that must exist: the state folder.
    pub needs: Option<PathBuf>,
    /// Files that are about to be executed.
    pub files: Vec<CheckedFile>,
    /// Whether the program gets those of the caller's variables that speak to dynamic loaders.
    pub keep_loader_variables: bool,
    /// The boot id in which the tree is good; `None` where it is known to be on the disk.
    pub boot_id: Option<[u8; BOOT_ID_LEN]>,
    /// The working directory; `None`: the caller's.
    pub cwd: Option<Text>,
    /// The program's absolute path, and the arguments before the caller's.
    pub argv: Vec<Text>,
    /// Variables set on top of the caller's.
    pub env: Vec<(OsString, Text)>,
}

/// A text of which parts are known at the start only.
pub type Text = Vec<Piece>;

/// A part of a [`Text`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// As it stands.
    Literal(OsString),
    /// The caller's variable of that name, and what to take where it is unset or empty; with `None` it must be set.
    Env(OsString, Option<OsString>),
}

/// A variable that must have this value, or be unset, for the record to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    /// Its name.
    pub name: OsString,
    /// Its value; `None`: unset.
    pub value: Option<OsString>,
}

impl Guard {
    /// The variable as it is now.
    pub fn now(name: &str) -> Self {
        Self { name: name.into(), value: std::env::var_os(name) }
    }
}

/// A file and how it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedFile {
    /// Absolute path.
    pub path: PathBuf,
    /// Bytes.
    pub size: u64,
    /// Inode number.
    pub inode: u64,
    /// Time of the last change of content, owner, links or permissions, in seconds since 1970.
    pub ctime: i64,
    /// Nanoseconds on top of `ctime`.
    pub ctime_nsec: i64,
}

impl CheckedFile {
    /// The file as stat(2) reports it now; links are followed, as execve(2) does.
    pub fn now(path: &Path) -> io::Result<Self> {
        let meta = fs::metadata(path)?;
        let (ctime, ctime_nsec) = (meta.ctime(), meta.ctime_nsec());
        Ok(Self { path: path.to_owned(), size: meta.size(), inode: meta.ino(), ctime, ctime_nsec })
    }
}

impl StartRecord {
    /// The record's bytes. To be written to a new file of mode 0600 or 0644, then renamed to `<folder>/start`.
    ///
    /// # Errors
    /// `InvalidInput` where a text contains a zero byte, which no system call could take; `FileTooLarge` where
    /// the record is longer than 16 KiB. Either way the tool works without a record.
    pub fn to_bytes(&self) -> io::Result<Vec<u8>> {
        let mut checked = Fields(Vec::new());
        checked.0.extend_from_slice(&self.head_prefix);
        checked.0.extend_from_slice(&self.boot_id.unwrap_or([0; BOOT_ID_LEN]));
        let flags = if self.keep_loader_variables { 0 } else { FLAG_NO_LOADER_VARIABLES };
        checked.0.extend_from_slice(&flags.to_le_bytes());
        checked.text(&self.folder)?;
        checked.text(self.needs.as_deref().unwrap_or(Path::new("")))?;
        checked.template(self.cwd.as_deref().unwrap_or_default())?;
        checked.list(&self.guards, Fields::guard)?;
        checked.list(&self.files, Fields::file)?;
        checked.list(&self.argv, |list, text| list.template(text))?;
        checked.list(&self.env, |list, (name, text)| {
            list.text(name)?;
            list.template(text)
        })?;

        let length = CHECKED_FROM + checked.0.len();
        if length > MAX_LEN {
            return Err(ErrorKind::FileTooLarge.into());
        }
        let mut bytes = Vec::with_capacity(length);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&(length as u32).to_le_bytes());
        bytes.extend_from_slice(&checksum(&checked.0).to_le_bytes());
        bytes.append(&mut checked.0);
        Ok(bytes)
    }
}

/// Fields in the making.
struct Fields(Vec<u8>);

impl Fields {
    fn string(&mut self, bytes: &[u8]) -> io::Result<()> {
        let length = u32::try_from(bytes.len()).map_err(|_| Error::from(ErrorKind::FileTooLarge))?;
        self.0.extend_from_slice(&length.to_le_bytes());
        self.0.extend_from_slice(bytes);
        self.0.push(0);
        Ok(())
    }

    /// A string without zeros.
    fn text(&mut self, text: impl AsRef<std::ffi::OsStr>) -> io::Result<()> {
        let bytes = text.as_ref().as_bytes();
        if bytes.contains(&0) {
            return Err(Error::new(ErrorKind::InvalidInput, "a text contains a zero byte"));
        }
        self.string(bytes)
    }

    /// A string that holds one field for each of `items`.
    fn list<T>(&mut self, items: &[T], write: impl Fn(&mut Self, &T) -> io::Result<()>) -> io::Result<()> {
        let mut list = Self(Vec::new());
        items.iter().try_for_each(|item| write(&mut list, item))?;
        self.string(&list.0)
    }

    fn template(&mut self, pieces: &[Piece]) -> io::Result<()> {
        self.list(pieces, |list, piece| match piece {
            Piece::Literal(text) => list.tagged(PIECE_TEXT, text),
            Piece::Env(name, None) => list.tagged(PIECE_ENV, name),
            Piece::Env(name, Some(default)) => {
                list.tagged(PIECE_ENV_OR, name)?;
                list.text(default)
            }
        })
    }

    fn tagged(&mut self, tag: u8, text: &OsString) -> io::Result<()> {
        self.0.push(tag);
        self.text(text)
    }

    fn guard(&mut self, guard: &Guard) -> io::Result<()> {
        self.0.push(u8::from(guard.value.is_some()));
        self.text(&guard.name)?;
        self.text(guard.value.clone().unwrap_or_default())
    }

    fn file(&mut self, file: &CheckedFile) -> io::Result<()> {
        self.text(&file.path)?;
        self.0.extend_from_slice(&file.size.to_le_bytes());
        self.0.extend_from_slice(&file.inode.to_le_bytes());
        self.0.extend_from_slice(&file.ctime.to_le_bytes());
        self.0.extend_from_slice(&file.ctime_nsec.to_le_bytes());
        Ok(())
    }
}

#[cfg(test)]
#[path = "start_record_tests.rs"]
mod tests;
