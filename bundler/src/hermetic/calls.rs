//! The system calls that name a path, where in their arguments it stands, and what they want with it.

use std::ffi::c_long;

use libc::{
    SYS_acct, SYS_bind, SYS_chdir, SYS_chroot, SYS_connect, SYS_execve, SYS_execveat, SYS_faccessat,
    SYS_faccessat2, SYS_fchmodat, SYS_fchownat, SYS_getxattr, SYS_inotify_add_watch, SYS_lgetxattr,
    SYS_linkat, SYS_listxattr, SYS_llistxattr, SYS_lremovexattr, SYS_lsetxattr, SYS_mkdirat, SYS_mknodat,
    SYS_mount, SYS_name_to_handle_at, SYS_newfstatat, SYS_open_tree, SYS_openat, SYS_openat2, SYS_pivot_root,
    SYS_readlinkat, SYS_removexattr, SYS_renameat2, SYS_setxattr, SYS_statfs, SYS_statx, SYS_swapon,
    SYS_symlinkat, SYS_truncate, SYS_umount2, SYS_unlinkat, SYS_utimensat,
};

/// What a system call wants with a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To open it; the flags of open(2) say what for. They stand in this argument.
    Open(usize),
    /// The same, with the flags in the `struct open_how` that this argument points to (openat2(2)).
    OpenHow(usize),
    /// To know of it, as stat(2) does.
    Look,
    /// To know of the link itself.
    LookAtLink,
    /// To execute it.
    Execute,
    /// To change it, or the folder it lies in.
    Change,
    /// To use it as the address of a socket: a `struct sockaddr`, with its length in the next argument.
    Address,
}

/// A path among a system call's arguments.
#[derive(Debug, Clone, Copy)]
pub struct Argument {
    /// Which argument is the path.
    pub path: usize,
    /// Which argument is the descriptor of the folder that a relative path begins at; else the working directory.
    pub folder: Option<usize>,
    /// What it is wanted for.
    pub purpose: Purpose,
}

/// A system call that names paths.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    /// Its number on this architecture.
    pub number: c_long,
    /// The paths.
    pub paths: &'static [Argument],
}

/// The path in argument `path`, relative to the working directory.
const fn here(path: usize, purpose: Purpose) -> Argument {
    Argument { path, folder: None, purpose }
}

/// The path in argument `path`, relative to the descriptor in the argument before.
const fn at(path: usize, purpose: Purpose) -> Argument {
    Argument { path, folder: Some(path - 1), purpose }
}

macro_rules! calls {
    ($($number:expr => [$($argument:expr),*];)*) => {
        &[$(Call { number: $number, paths: &[$($argument),*] }),*]
    };
}

use Purpose::{Address, Change, Execute, Look, LookAtLink, Open, OpenHow};

/// Those that every architecture has; every other way to name a path is made of them by libc.
const CALLS: &[Call] = calls! {
    SYS_openat => [at(1, Open(2))];
    SYS_openat2 => [at(1, OpenHow(2))];
    SYS_open_tree => [at(1, Look)];
    SYS_execve => [here(0, Execute)];
    SYS_execveat => [at(1, Execute)];
    SYS_newfstatat => [at(1, Look)];
    SYS_statx => [at(1, Look)];
    SYS_statfs => [here(0, Look)];
    SYS_faccessat => [at(1, Look)];
    SYS_faccessat2 => [at(1, Look)];
    SYS_readlinkat => [at(1, LookAtLink)];
    SYS_chdir => [here(0, Look)];
    SYS_chroot => [here(0, Look)];
    SYS_inotify_add_watch => [here(1, Look)];
    SYS_name_to_handle_at => [at(1, Look)];
    SYS_getxattr => [here(0, Look)];
    SYS_lgetxattr => [here(0, LookAtLink)];
    SYS_listxattr => [here(0, Look)];
    SYS_llistxattr => [here(0, LookAtLink)];
    SYS_setxattr => [here(0, Change)];
    SYS_lsetxattr => [here(0, Change)];
    SYS_removexattr => [here(0, Change)];
    SYS_lremovexattr => [here(0, Change)];
    SYS_mkdirat => [at(1, Change)];
    SYS_mknodat => [at(1, Change)];
    SYS_unlinkat => [at(1, Change)];
    SYS_renameat2 => [at(1, Change), at(3, Change)];
    SYS_linkat => [at(1, Look), at(3, Change)];
    SYS_symlinkat => [at(2, Change)];
    SYS_truncate => [here(0, Change)];
    SYS_fchmodat => [at(1, Change)];
    SYS_fchownat => [at(1, Change)];
    SYS_utimensat => [at(1, Change)];
    SYS_mount => [here(0, Look), here(1, Change)];
    SYS_umount2 => [here(0, Change)];
    SYS_pivot_root => [here(0, Change), here(1, Change)];
    SYS_swapon => [here(0, Change)];
    SYS_acct => [here(0, Change)];
    SYS_connect => [here(1, Address)];
    SYS_bind => [here(1, Address)];
    // fchmodat2(2), since Linux 6.6, has one number everywhere.
    452 => [at(1, Change)];
};

/// Those that only the older architectures have.
#[cfg(target_arch = "x86_64")]
const OLD: &[Call] = {
    use libc::{
        SYS_access, SYS_chmod, SYS_chown, SYS_creat, SYS_futimesat, SYS_lchown, SYS_link, SYS_lstat,
        SYS_mkdir, SYS_mknod, SYS_open, SYS_readlink, SYS_rename, SYS_renameat, SYS_rmdir, SYS_stat,
        SYS_symlink, SYS_unlink, SYS_utime, SYS_utimes,
    };
    calls! {
        SYS_open => [here(0, Open(1))];
        SYS_creat => [here(0, Change)];
        SYS_stat => [here(0, Look)];
        SYS_lstat => [here(0, LookAtLink)];
        SYS_access => [here(0, Look)];
        SYS_readlink => [here(0, LookAtLink)];
        SYS_mkdir => [here(0, Change)];
        SYS_mknod => [here(0, Change)];
        SYS_rmdir => [here(0, Change)];
        SYS_unlink => [here(0, Change)];
        SYS_rename => [here(0, Change), here(1, Change)];
        SYS_renameat => [at(1, Change), at(3, Change)];
        SYS_link => [here(0, Look), here(1, Change)];
        SYS_symlink => [here(1, Change)];
        SYS_chmod => [here(0, Change)];
        SYS_chown => [here(0, Change)];
        SYS_lchown => [here(0, Change)];
        SYS_utime => [here(0, Change)];
        SYS_utimes => [here(0, Change)];
        SYS_futimesat => [at(1, Change)];
    }
};
/// renameat(2), which `libc` leaves out here (asm-generic/unistd.h).
#[cfg(target_arch = "aarch64")]
const OLD: &[Call] = calls! { 38 => [at(1, Change), at(3, Change)]; };
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const OLD: &[Call] = &[];

/// All of them.
pub fn all() -> impl Iterator<Item = &'static Call> {
    CALLS.iter().chain(OLD)
}

/// The one with this number.
pub fn find(number: u64) -> Option<&'static Call> {
    all().find(|call| u64::try_from(call.number) == Ok(number))
}
