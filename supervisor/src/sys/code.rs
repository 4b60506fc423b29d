//! Giving back memory that starting took and supervising does not need.

use std::ptr;

use super::{Errno, check};

/// Gives free memory back to the kernel: malloc_trim(3). Unpacking and reading manifests leave some.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes a number; it is malloc's own business what is free.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Lets go of the pages of our program that are mapped and cannot be written to: those that are run again come back
/// from the file, sixteen at a time (`fault_around_bytes`). Opening, unpacking and starting use most of the code, and
/// supervising a fifth of it.
pub fn release() -> Result<(), Errno> {
    for (start, length) in read_only() {
        // SAFETY: madvise(2) MADV_DONTNEED on a private mapping of a file that nothing has written to: what is read
        // there afterwards is what was there before.
        check(unsafe {
            libc::madvise(ptr::with_exposed_provenance_mut(start), length, libc::MADV_DONTNEED)
        })?;
    }
    Ok(())
}

/// Address and length of each segment that the kernel has mapped from our file without the right to write: elf(5).
fn read_only() -> Vec<(usize, usize)> {
    // SAFETY: getauxval(3) reads numbers that the kernel has left.
    let (headers, count, page) = unsafe {
        (libc::getauxval(libc::AT_PHDR), libc::getauxval(libc::AT_PHNUM), libc::getauxval(libc::AT_PAGESZ))
    };
    if headers == 0 || page == 0 {
        return Vec::new();
    }
    // SAFETY: AT_PHDR is where the kernel has mapped AT_PHNUM program headers, for as long as the program runs.
    let headers_there = unsafe {
        std::slice::from_raw_parts(
            ptr::with_exposed_provenance::<libc::Elf64_Phdr>(headers as usize),
            count as usize,
        )
    };
    let Some(own) = headers_there.iter().find(|header| header.p_type == libc::PT_PHDR) else {
        return Vec::new();
    };
    let base = headers.wrapping_sub(own.p_vaddr);
    let fixed =
        |header: &&libc::Elf64_Phdr| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0;
    let pages = |header: &libc::Elf64_Phdr| {
        let start = base.wrapping_add(header.p_vaddr) / page * page;
        let end = base.wrapping_add(header.p_vaddr).wrapping_add(header.p_memsz).next_multiple_of(page);
        (start as usize, (end - start) as usize)
    };
    headers_there.iter().filter(fixed).map(pages).collect()
}
