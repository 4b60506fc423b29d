//! Raw system calls of x86-64 Linux, as syscall(2) and the kernel's `syscall_64.tbl` have them.

use core::{arch::asm, mem::MaybeUninit, ptr};

/// `struct stat` of x86-64 (asm/stat.h).
#[repr(C)]
pub struct Stat {
    _dev: u64,
    pub inode: u64,
    pub links: u64,
    pub mode: u32,
    pub uid: u32,
    _gid_rdev: [u64; 2],
    pub size: u64,
    _blocks_atime: [u64; 4],
    pub mtime: i64,
    _mtime_nsec: u64,
    pub ctime: i64,
    pub ctime_nsec: u64,
    _unused: [u64; 3],
}
const _: () = assert!(size_of::<Stat>() == 144 && core::mem::offset_of!(Stat, ctime) == 104);

impl Stat {
    pub fn is_file(&self) -> bool {
        self.mode & 0o17_0000 == 0o10_0000
    }
    pub fn is_dir(&self) -> bool {
        self.mode & 0o17_0000 == 0o4_0000
    }
}

/// An open file, closed when dropped.
pub struct Fd(usize);

impl Drop for Fd {
    fn drop(&mut self) {
        // SAFETY: this value owns the descriptor.
        unsafe { call(3, [self.0, 0, 0, 0]) };
    }
}

pub const O_NONBLOCK: usize = 0o4000;
pub const O_NOFOLLOW: usize = 0o40_0000;
pub const O_PATH: usize = 0o1000_0000;
const O_CLOEXEC: usize = 0o200_0000;
const AT_FDCWD: usize = -100_isize as usize;

/// System call `number`; `None` where it failed.
///
/// # Safety
/// Pointers among the arguments are what that system call takes.
unsafe fn call(number: usize, [a, b, c, d]: [usize; 4]) -> Option<usize> {
    let result: isize;
    // SAFETY: the convention of syscall(2); the kernel changes rax, rcx, r11 and the memory it was given.
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => result, in("rdi") a, in("rsi") b, in("rdx") c,
             in("r10") d, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    usize::try_from(result).ok()
}

/// openat(2) for reading, close-on-exec, with `flags`.
///
/// # Safety
/// `path` has a zero at its end.
pub unsafe fn open(path: *const u8, flags: usize) -> Option<Fd> {
    // SAFETY: the caller's promise.
    unsafe { call(257, [AT_FDCWD, path as usize, flags | O_CLOEXEC, 0]) }.map(Fd)
}

/// read(2), once.
pub fn read(file: &Fd, buffer: &mut [u8]) -> Option<usize> {
    // SAFETY: the kernel writes inside `buffer`.
    unsafe { call(0, [file.0, buffer.as_mut_ptr() as usize, buffer.len(), 0]) }
}

/// stat(2).
///
/// # Safety
/// `path` has a zero at its end.
pub unsafe fn stat(path: *const u8) -> Option<Stat> {
    // SAFETY: the caller's promise.
    unsafe { stat_call(4, path as usize) }
}

/// fstat(2).
pub fn fstat(file: &Fd) -> Option<Stat> {
    // SAFETY: the argument is a descriptor.
    unsafe { stat_call(5, file.0) }
}

/// # Safety
/// `number` is stat or fstat and `what` its first argument.
#[inline(always)]
unsafe fn stat_call(number: usize, what: usize) -> Option<Stat> {
    let mut stat = MaybeUninit::<Stat>::uninit();
    // SAFETY: the kernel fills the whole structure where it reports success.
    unsafe {
        call(number, [what, stat.as_mut_ptr() as usize, 0, 0])?;
        Some(stat.assume_init())
    }
}

/// time(2): seconds since 1970.
pub fn now() -> i64 {
    // SAFETY: a null pointer is allowed.
    unsafe { call(201, [0; 4]) }.unwrap_or(0) as i64
}

/// Sets the file's times to now: utimensat(2) on the descriptor itself.
pub fn touch(file: &Fd) {
    // SAFETY: null path and times are allowed. A failure (a read-only disk) is no reason not to start.
    unsafe { call(280, [file.0, 0, 0, 0]) };
}

/// chdir(2).
pub fn chdir(path: &[u8]) -> Option<()> {
    path.last().filter(|last| **last == 0)?;
    // SAFETY: just checked.
    unsafe { call(80, [path.as_ptr() as usize, 0, 0, 0]) }.map(drop)
}

/// fchdir(2).
pub fn fchdir(folder: &Fd) {
    // SAFETY: the argument is a descriptor. Nothing can be done about a failure here.
    unsafe { call(81, [folder.0, 0, 0, 0]) };
}

/// execve(2); returns only where it failed.
///
/// # Safety
/// Both vectors end with a null pointer, and every text in them with a zero.
pub unsafe fn execve(argv: &[*const u8], env: &[*const u8]) {
    let program = argv.first().copied().unwrap_or(ptr::null());
    // SAFETY: the caller's promise.
    unsafe { call(59, [program as usize, argv.as_ptr() as usize, env.as_ptr() as usize, 0]) };
}
