//! The start record: what a tool's full start found out, for its later starts to check and use.
//!
//! It lies beside the unpacked tree, `<place>/v1/trees/<bundle digest, 64 hex>/start`; a regular file of the
//! user who runs the bundle, with one link, writable by nobody else, replaced by rename. Its modification
//! time is the bundle's last use: a later start renews it when it is 10 seconds old. It is a cache: whatever
//! does not match leads to a full start, which writes it anew. Layout, version 1, little-endian, unaligned:
//!
//! | at  | bytes | what                                                                                     |
//! |-----|-------|------------------------------------------------------------------------------------------|
//! | 0   | 8     | magic: 89 `KSTART` 0A                                                                    |
//! | 8   | 4     | version of this layout: 1                                                                |
//! | 12  | 4     | length of the record in bytes, at most 16,384                                            |
//! | 16  | 8     | checksum: FNV-1a, 64 bits, of all bytes from 24 on; finds damage, not malice             |
//! | 24  | 64    | the first 64 bytes of the bundle's head                                                  |
//! | 88  | 36    | boot id in which the record is good; zero: in any (the tree is known to be on the disk)  |
//! | 124 | 4     | flags: 1: no variable of the caller that begins with `LD_` is passed on; no other is set |
//! | 128 |       | seven *strings*: folder, needs, cwd, guards, files, argv, env                            |
//!
//! A *string* is its length in 4 bytes, its bytes, and a zero byte that the length does not count.
//!
//! - `folder`: the absolute path of the folder that holds the tree and this record
//! - `needs`: a path that must be a folder (the state folder); empty: none
//! - `cwd`: a *template*, the working directory; empty: the caller's
//! - `guards`: each one byte (1: set, 0: unset), string name, string value. The caller's environment must
//!   agree: what the resolved text below was made from
//! - `files`: each string path, then 8 bytes each of size, inode, ctime in seconds, ctime's nanoseconds.
//!   Compared with stat(2). Device numbers are left out: they may change from boot to boot
//! - `argv`: each a string that holds a *template*. The program's absolute path first; the caller's
//!   arguments follow the last
//! - `env`: each string name, string with a *template*: set on top of the caller's environment
//!
//! A *template* is a sequence of pieces, each a byte and strings: `t` text; `e` the variable of that name,
//! which must be set; `d` the variable of that name and the text to take where it is unset or empty.

use crate::{equal, head::PREFIX_LEN};

/// What a start record begins with.
pub const MAGIC: [u8; 8] = *b"\x89KSTART\n";
/// The version of this layout.
pub const VERSION: u32 = 1;
/// The longest record in bytes; a tool that needs more has no record.
pub const MAX_LEN: usize = 16 << 10;
/// Where the checksummed bytes begin.
pub const CHECKED_FROM: usize = 24;
/// Bytes in a boot id, as `/proc/sys/kernel/random/boot_id` shows it.
pub const BOOT_ID_LEN: usize = 36;
/// Name of the record in its folder, with the slash.
pub const FILE_NAME: &[u8] = b"/start";
/// Between the place of the store and the digest.
pub const FOLDER: &[u8] = b"/v1/trees/";
/// The flag that keeps the caller's `LD_` variables from the program: it comes with its own loader.
pub const FLAG_NO_LOADER_VARIABLES: u32 = 1;
/// Kinds of piece: text.
pub const PIECE_TEXT: u8 = b't';
/// Kinds of piece: a variable that must be set.
pub const PIECE_ENV: u8 = b'e';
/// Kinds of piece: a variable with a default.
pub const PIECE_ENV_OR: u8 = b'd';

/// FNV-1a, 64 bits: any one changed byte changes it.
#[inline(always)]
pub fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// A record whose checksum is right. The lists are read with [`Fields`] when they are used.
pub struct Record<'a> {
    /// The boot id, or zeros.
    pub boot_id: &'a [u8],
    /// What else is to be done.
    pub flags: u32,
    /// The folder, without the zero at its end.
    pub folder: &'a [u8],
    /// The folder that must exist, with the zero at its end.
    pub needs: &'a [u8],
    /// Template of the working directory.
    pub cwd: &'a [u8],
    /// Variables that must be as they were.
    pub guards: Fields<'a>,
    /// Files that must be as they were.
    pub files: Fields<'a>,
    /// Templates of the arguments.
    pub argv: Fields<'a>,
    /// Names and templates of the environment.
    pub env: Fields<'a>,
}

impl<'a> Record<'a> {
    /// Reads a whole record; `None` if it is damaged, of another version, or for another bundle than the one
    /// whose head begins with `head`.
    #[inline(always)]
    pub fn parse(bytes: &'a [u8], head: &[u8; PREFIX_LEN]) -> Option<Self> {
        let mut rest = Fields(bytes);
        let right = equal(rest.bytes(MAGIC.len())?, &MAGIC)
            && rest.u32()? == VERSION
            && rest.u32()? as usize == bytes.len()
            && rest.u64()? == checksum(rest.0)
            && equal(rest.bytes(PREFIX_LEN)?, head);
        if !right {
            return None;
        }
        let boot_id = rest.bytes(BOOT_ID_LEN)?;
        let flags = rest.u32()?;
        if flags & !FLAG_NO_LOADER_VARIABLES != 0 {
            return None;
        }
        let record = Self {
            boot_id,
            flags,
            folder: rest.string()?,
            needs: rest.path()?,
            cwd: rest.string()?,
            guards: Fields(rest.string()?),
            files: Fields(rest.string()?),
            argv: Fields(rest.string()?),
            env: Fields(rest.string()?),
        };
        rest.is_empty().then_some(record)
    }
}

/// A cursor over fields; each method takes one off the front, or says `None` where the bytes end too early.
#[derive(Clone, Copy)]
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    /// True when all have been taken.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next `count` bytes.
    #[inline(always)]
    pub fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    /// One byte.
    #[inline(always)]
    pub fn u8(&mut self) -> Option<u8> {
        self.bytes(1)?.first().copied()
    }

    /// Four bytes.
    #[inline(always)]
    pub fn u32(&mut self) -> Option<u32> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_le_bytes(*taken))
    }

    /// Eight bytes.
    #[inline(always)]
    pub fn u64(&mut self) -> Option<u64> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*taken))
    }

    /// A string with the zero at its end, for system calls.
    #[inline(always)]
    pub fn path(&mut self) -> Option<&'a [u8]> {
        let length = self.u32()? as usize;
        let taken = self.bytes(length.checked_add(1)?)?;
        (*taken.last()? == 0).then_some(taken)
    }

    /// A string without the zero at its end.
    #[inline(always)]
    pub fn string(&mut self) -> Option<&'a [u8]> {
        Some(self.path()?.split_last()?.1)
    }
}
