//! Less of glibc: 450 kB of it are in any static program for features that this one does not use.
//!
//! glibc's start-up, `malloc` and threads refer to a few functions whose way to print a message brings stdio, which
//! brings locales, which bring iconv, which loads modules with `dlopen`. Each definition here takes the place of such a
//! function, so that the linker leaves that whole chain out. Those with a plain name are in the manual; those that
//! begin with an underscore are glibc's own and known from its source.
//!
//! `build.rs` says for which versions this holds; without this file everything works and is larger. Where the linker
//! reports a duplicate symbol, new code uses a part of glibc that is left out here. Names of hosts and users, for
//! instance, bring all of it back, and the runtime has no use for them in a chroot.
#![allow(unsafe_code, reason = "symbols that libc looks for")]

use std::arch::global_asm;
use std::ffi::{CStr, c_char, c_int, c_long, c_ulong, c_void};
use std::ptr;

use crate::unused::never_called;

unsafe extern "C" {
    // Async-signal-safe fork (POSIX.1-2024, glibc 2.34).
    safe fn _Fork() -> libc::pid_t;
    // A static text, never translated; null if there is no such error (glibc 2.32).
    safe fn strerrordesc_np(errno: c_int) -> *const c_char;
}

/// fork(2) without what glibc does for multi-threaded parents: handlers of `pthread_atfork`, of which there are none,
/// and locks of stdio. The supervisor forks with one thread, and the child only executes.
#[unsafe(no_mangle)]
extern "C" fn fork() -> libc::pid_t {
    _Fork()
}

/// strerror_r(3) as GNU has it; glibc's asks for translations.
#[unsafe(no_mangle)]
extern "C" fn __strerror_r(errno: c_int, _text: *mut c_char, _size: usize) -> *const c_char {
    let text = strerrordesc_np(errno);
    if text.is_null() { c"Unknown error".as_ptr() } else { text }
}

/// strerror_r(3) as POSIX has it, under the name that it has in libraries.
///
/// # Safety
/// `text` has room for `size` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn __xpg_strerror_r(errno: c_int, text: *mut c_char, size: usize) -> c_int {
    // SAFETY: a C string that stays.
    let message = unsafe { CStr::from_ptr(__strerror_r(errno, text, size)) }.to_bytes();
    let fits = message.len().min(size.saturating_sub(1));
    if fits < size {
        // SAFETY: the caller's promise.
        unsafe {
            ptr::copy_nonoverlapping(message.as_ptr(), text.cast(), fits);
            text.add(fits).write(0);
        }
    }
    if fits < message.len() { libc::ERANGE } else { 0 }
}

/// Where glibc finds that something in itself cannot be (assert(3)): says what and ends the process, without stdio.
///
/// # Safety
/// `expression` is a C string.
#[unsafe(no_mangle)]
unsafe extern "C" fn __assert_fail(
    expression: *const c_char,
    _: *const c_char,
    _: u32,
    _: *const c_char,
) -> ! {
    // SAFETY: the caller's promise.
    let expression = unsafe { CStr::from_ptr(expression) };
    kitbag_supervisor::commands::say(&format!("glibc: assertion failed: {}", expression.to_string_lossy()));
    std::process::abort()
}

/// pthread_setname_np(3) for the thread that calls, which is the one that std names. glibc's takes `sprintf` for it.
#[unsafe(no_mangle)]
extern "C" fn pthread_setname_np(_: libc::pthread_t, name: *const c_char) -> c_int {
    // SAFETY: std's text has a zero at its end.
    unsafe { libc::prctl(libc::PR_SET_NAME, name) }
}

/// dlsym(3) in a static program: there are no symbols. std asks for one that newer versions may have.
#[unsafe(no_mangle)]
extern "C" fn dlsym(_: *mut c_void, _: *const c_char) -> *mut c_void {
    ptr::null_mut()
}

/// strtoul(3) of a decimal number without sign, as glibc reads it in `/sys/devices/system/cpu/online` where `malloc`
/// limits its arenas. glibc's knows locales.
///
/// # Safety
/// `text` has something else after its digits; `end` is null or valid for a write.
#[unsafe(no_mangle)]
unsafe extern "C" fn strtoul(text: *const c_char, end: *mut *const c_char, _base: c_int) -> c_ulong {
    let (mut at, mut number) = (text, 0_u64);
    // SAFETY: the caller's promise: what is no digit ends the loop within the text.
    while let digit @ b'0'..=b'9' = unsafe { *at.cast::<u8>() } {
        number = number.saturating_mul(10).saturating_add(u64::from(digit - b'0'));
        // SAFETY: something follows a digit.
        at = unsafe { at.add(1) };
    }
    if !end.is_null() {
        // SAFETY: the caller's promise.
        unsafe { end.write(at) };
    }
    number
}

/// strtol(3) for limits of sysconf(3), none of which is below zero.
///
/// # Safety
/// As for [`strtoul`].
#[unsafe(no_mangle)]
unsafe extern "C" fn strtol(text: *const c_char, end: *mut *const c_char, base: c_int) -> c_long {
    // SAFETY: the caller's promise.
    unsafe { strtoul(text, end, base) }.try_into().unwrap_or(c_long::MAX)
}

/// strncmp(3). glibc has nine of them, each for other processors: 15 kB, as much as the next one's, to find a variable
/// in the environment.
///
/// # Safety
/// Both are C strings, or have `size` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn strncmp(left: *const u8, right: *const u8, size: usize) -> c_int {
    for at in 0..size {
        // SAFETY: the caller's promise; what lies before `at` is no end.
        let (left, right) = unsafe { (*left.add(at), *right.add(at)) };
        if left != right || left == 0 {
            return c_int::from(left) - c_int::from(right);
        }
    }
    0
}

/// strcmp(3).
///
/// # Safety
/// Both are C strings.
#[unsafe(no_mangle)]
unsafe extern "C" fn strcmp(left: *const u8, right: *const u8) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { strncmp(left, right, usize::MAX) }
}

/// Does nothing, where glibc prepares what is not there.
macro_rules! nothing_to_do {
    ($($name:ident: $what:literal)*) => {$(
        #[doc = $what]
        #[unsafe(no_mangle)]
        extern "C" fn $name() {}
    )*};
}

nothing_to_do! {
    _dl_init_paths: "Folders in which `dlopen` would look (elf/dl-load.c)."
    __ctype_init: "A thread's tables of letters for `isalpha` and the like (ctype/ctype-info.c)."
    _IO_enable_locks: "Locks of stdio's files, with the first thread (libio/genops.c)."
}

never_called! {
    // `malloc_stats` and `malloc_info`, in one object file with `malloc`.
    fprintf
    fwrite
    _IO_fputs
    // Stacks that a loaded library wants executable (nptl/pthread_create.c).
    __nptl_change_stack_perm
}

/// `malloc_stats` would print to it.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals, reason = "C's name")]
static stderr: usize = 0;

// A thread's state of the resolver (resolv/res_libc.c): new threads set a pointer to it that nothing here reads.
global_asm!(
    ".pushsection .tbss.__libc_resp, \"awT\", @nobits",
    ".globl __libc_resp",
    ".type __libc_resp, @object",
    ".size __libc_resp, 8",
    ".balign 8",
    "__libc_resp: .zero 8",
    ".popsection",
);
