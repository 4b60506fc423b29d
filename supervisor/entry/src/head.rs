//! The bundle's head: 1,024 bytes in an ELF note of the runtime, zero until `kitbag pack` patches the file.
//! `docs/format.md` specifies them.

use core::ptr::read_volatile;

/// Bytes in a head.
pub const HEAD_LEN: usize = 1024;
/// Bytes of the head that a start record repeats: all but the table of parts, the bundle digest included.
pub const PREFIX_LEN: usize = 64;
/// What a bundle's head begins with.
pub const HEAD_MAGIC: [u8; 8] = *b"\x89KITBAG\n";
/// The version of the format that this crate knows.
pub const FORMAT_VERSION: u32 = 1;
/// Bit of the hints: the bundle is a tool.
pub const HINT_TOOL: u32 = 1;

/// An ELF note (elf(5), `Elf64_Nhdr`), whose description is the head.
#[repr(C, align(4))]
struct Note {
    name_len: u32,
    desc_len: u32,
    kind: u32,
    name: [u8; 8],
    desc: [u8; HEAD_LEN],
}

/// The note that every runtime carries. Its allocated section lies in the first pages of the file, so the
/// kernel has mapped it before the first instruction runs.
#[used]
#[unsafe(link_section = ".note.kitbag")]
static NOTE: Note =
    Note { name_len: 7, desc_len: HEAD_LEN as u32, kind: 1, name: *b"kitbag\0\0", desc: [0; HEAD_LEN] };

/// Where the head lies. Not simply `&raw const NOTE.desc`, for which compilers may load an address that is only
/// right after relocation.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[inline(always)]
fn address() -> *const u8 {
    let note: *const Note;
    // SAFETY: computes an address, relative to this instruction.
    unsafe {
        core::arch::asm!("lea {}, [rip + {}]", out(reg) note, sym NOTE, options(nomem, nostack, preserves_flags));
        (&raw const (*note).desc).cast()
    }
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn address() -> *const u8 {
    (&raw const NOTE.desc).cast()
}

/// The first `N` bytes of the head, as they stand in the file that is running.
#[inline(always)]
fn first<const N: usize>() -> [u8; N] {
    const { assert!(N <= HEAD_LEN) };
    let mut bytes = [0; N];
    let head = address();
    for (at, byte) in bytes.iter_mut().enumerate() {
        // SAFETY: `at` < N <= HEAD_LEN, all inside NOTE.desc. Volatile, because the file is patched after
        // the compiler has seen nothing but zeros here.
        *byte = unsafe { read_volatile(head.add(at)) };
    }
    bytes
}

/// The head of the running file; all zero in a runtime that no bundle was made from.
#[inline(never)]
pub fn head() -> [u8; HEAD_LEN] {
    first()
}

/// True if a tool was packed into the running file, as its head says: for who asks before the bundle was looked at.
pub fn is_tool() -> bool {
    Prefix(first()).hints() & HINT_TOOL != 0
}

/// The part of the head that a start record repeats.
#[cfg(any(test, all(target_arch = "x86_64", target_os = "linux", target_pointer_width = "64")))]
pub(crate) fn prefix() -> Prefix {
    Prefix(first())
}

/// The first 64 bytes of a head.
#[derive(Clone, Copy)]
pub struct Prefix(pub [u8; PREFIX_LEN]);

impl Prefix {
    /// True for a tool bundle of a format without unknown requirements.
    #[inline(always)]
    pub fn is_tool(&self) -> bool {
        crate::equal(self.part::<0, 8>(), &HEAD_MAGIC)
            && u32::from_le_bytes(*self.part::<8, 4>()) == FORMAT_VERSION
            && u32::from_le_bytes(*self.part::<12, 4>()) == 0
            && self.hints() & HINT_TOOL != 0
    }

    /// What the packer has noted for who reads no further.
    #[inline(always)]
    fn hints(&self) -> u32 {
        u32::from_le_bytes(*self.part::<16, 4>())
    }

    /// The length of the bundle's file in bytes.
    #[inline(always)]
    pub fn file_length(&self) -> u64 {
        u64::from_le_bytes(*self.part::<24, 8>())
    }

    /// The bundle digest.
    #[inline(always)]
    pub fn digest(&self) -> &[u8; 32] {
        self.part::<32, 32>()
    }

    #[inline(always)]
    fn part<const AT: usize, const LEN: usize>(&self) -> &[u8; LEN] {
        const { assert!(AT + LEN <= PREFIX_LEN) };
        // SAFETY: the assertion above, at compile time; an array of bytes has no alignment.
        unsafe { &*self.0.as_ptr().add(AT).cast() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_runtime_has_a_zero_head_and_is_no_tool() {
        assert_eq!(head(), [0; HEAD_LEN]);
        assert!(!prefix().is_tool());
    }

    #[test]
    fn a_tool_is_known_by_magic_version_requirements_and_hint() {
        let mut head = [0; PREFIX_LEN];
        head[..8].copy_from_slice(&HEAD_MAGIC);
        head[8] = 1;
        head[16] = 1;
        head[24..32].copy_from_slice(&0x1234_5678_9abc_u64.to_le_bytes());
        head[32..].fill(0xd1);
        assert!(Prefix(head).is_tool());
        assert_eq!(Prefix(head).file_length(), 0x1234_5678_9abc);
        assert_eq!(Prefix(head).digest(), &[0xd1; 32]);
        for (at, byte) in [(0, 0), (8, 2), (12, 1), (16, 2)] {
            let mut other = head;
            other[at] = byte;
            assert!(!Prefix(other).is_tool(), "byte {at} = {byte}");
        }
    }
}
