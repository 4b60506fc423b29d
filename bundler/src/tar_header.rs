//! Headers of the tar inside the payload: GNU format, every field that could differ between two machines fixed.

use kitbag_format::index::{BLOCK, Kind};
use tar::{EntryType, Header};

/// Modification time of everything: 1980-01-02, the first day that zip's dates hold in every time zone, so that
/// tools which put files of an unpacked tree into a zip work.
pub const MTIME: u64 = 315_619_200;

/// The blocks before an entry's contents. `link` is the target of a symbolic or hard link, else empty.
pub fn bytes(path: &[u8], kind: &Kind, link: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(BLOCK as usize);
    let mut name = path.to_vec();
    let (entry_type, mode, size) = match kind {
        Kind::Dir => {
            name.push(b'/');
            (EntryType::Directory, 0o755, 0)
        }
        Kind::File { executable, size, .. } => {
            (EntryType::Regular, if *executable { 0o755 } else { 0o644 }, *size)
        }
        Kind::Symlink(_) => (EntryType::Symlink, 0o777, 0),
        Kind::Link(_) => (EntryType::Link, 0o644, 0),
    };
    let mut header = header(entry_type, mode, size);
    let fields = header.as_gnu_mut();
    if let Some(fields) = fields {
        long_name(&mut out, EntryType::GNULongLink, link, &mut fields.linkname);
        long_name(&mut out, EntryType::GNULongName, &name, &mut fields.name);
    }
    header.set_cksum();
    out.extend_from_slice(header.as_bytes());
    out
}

fn header(entry_type: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(entry_type);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(MTIME);
    header.set_size(size);
    header
}

/// Puts `name` into `field`; one that is too long stands in an entry of its own before.
fn long_name(out: &mut Vec<u8>, entry_type: EntryType, name: &[u8], field: &mut [u8; 100]) {
    let fits = name.len().min(field.len());
    field[..fits].copy_from_slice(&name[..fits]);
    if name.len() <= field.len() {
        return;
    }
    let mut before = header(entry_type, 0o644, name.len() as u64 + 1);
    if let Some(fields) = before.as_gnu_mut() {
        fields.name[..13].copy_from_slice(b"././@LongLink");
    }
    before.set_cksum();
    out.extend_from_slice(before.as_bytes());
    out.extend_from_slice(name);
    out.push(0);
    out.resize(out.len().next_multiple_of(BLOCK as usize), 0);
}
