//! What every file has to hold to that comes out, whatever its machine.

use goblin::elf::Elf;
use goblin::elf::dynamic::{DT_FLAGS_1, DT_RPATH, DT_RUNPATH, DT_STRTAB};
use goblin::elf::program_header::{PT_DYNAMIC, PT_INTERP, PT_LOAD, PT_PHDR, ProgramHeader};
use kitbag_closure::rewrite::{Edits, Request};

/// Compares a file with the one that it was made from.
pub fn check(old: &[u8], new: &[u8], request: &Request, edits: &Edits) {
    check_edits(old, new, edits);
    if edits.is_empty() || request.is_loader {
        return;
    }
    let elf = Elf::parse(new).expect("goblin reads it");
    let loads: Vec<&ProgramHeader> =
        elf.program_headers.iter().filter(|header| header.p_type == PT_LOAD).collect();
    check_loads(&loads, new.len() as u64);
    check_table(&elf, &loads);
    check_dynamic(&elf, new, request);
    if let Some(path) = &request.interpreter {
        let header = segment(&elf, PT_INTERP).expect("PT_INTERP");
        let bytes = mapped(&elf, new, header.p_vaddr);
        assert_eq!(header.p_filesz, header.p_memsz);
        assert!(header.p_filesz as usize <= 4096 && bytes[header.p_filesz as usize - 1] == 0);
        assert_eq!(text(bytes), path.as_slice());
        assert_eq!(text(&new[header.p_offset as usize..]), path.as_slice());
    }
}

/// Writes are sorted, apart from each other, and few within what was there. Slots lie in the file.
fn check_edits(old: &[u8], new: &[u8], edits: &Edits) {
    assert_eq!(edits.length, new.len() as u64);
    let ends = edits.writes.windows(2).all(|pair| pair[0].0 + pair[0].1.len() as u64 <= pair[1].0);
    assert!(ends, "{:?}", edits.writes);
    let pages = old.chunks(4096).zip(new.chunks(4096)).filter(|(old, new)| !new.starts_with(old));
    let changed: usize =
        pages.map(|(old, new)| old.iter().zip(new).filter(|(old, new)| old != new).count()).sum();
    assert!(changed < 4096, "{changed} bytes changed");
    assert!(
        edits.slots.iter().all(|slot| slot.at + u64::from(slot.length) < edits.length && slot.length <= 8192)
    );
}

fn check_loads(loads: &[&ProgramHeader], length: u64) {
    for load in loads {
        assert!(
            load.p_align >= 4096 && load.p_vaddr % load.p_align == load.p_offset % load.p_align,
            "{load:?}"
        );
        assert!(load.p_offset + load.p_filesz <= length);
    }
    for pair in loads.windows(2) {
        let page = if pair[1].p_flags == 6 { pair[1].p_align } else { 1 };
        assert!(pair[0].p_vaddr + pair[0].p_memsz <= pair[1].p_vaddr / page * page, "{pair:?}");
    }
}

/// The table is where `PT_PHDR`, the kernel, and kernels before 5.18 say.
fn check_table(elf: &Elf, loads: &[&ProgramHeader]) {
    let size = u64::from(elf.header.e_phnum) * u64::from(elf.header.e_phentsize);
    let at = elf.header.e_phoff;
    let load = loads.iter().find(|load| load.p_offset <= at && at + size <= load.p_offset + load.p_filesz);
    let load = load.expect("a segment holds the table of program headers");
    let address = load.p_vaddr + (at - load.p_offset);
    if segment(elf, PT_INTERP).is_some() {
        assert_eq!(address, loads[0].p_vaddr - loads[0].p_offset + at, "AT_PHDR before Linux 5.18");
    }
    let first_load = elf.program_headers.iter().position(|header| header.p_type == PT_LOAD).unwrap();
    for (index, header) in elf.program_headers.iter().enumerate() {
        assert!(index < first_load || !matches!(header.p_type, PT_PHDR | PT_INTERP) || is_library(elf));
        if header.p_type == PT_PHDR {
            assert_eq!((header.p_vaddr, header.p_filesz, header.p_offset), (address, size, at));
        }
    }
}

/// libc.so.6 is one with `PT_INTERP`.
fn is_library(elf: &Elf) -> bool {
    elf.soname.is_some()
}

fn check_dynamic(elf: &Elf, new: &[u8], request: &Request) {
    let dynamic = elf.dynamic.as_ref().expect("a dynamic section");
    let value = |tag| dynamic.dyns.iter().find(|entry| entry.d_tag == tag).map(|entry| entry.d_val);
    assert!(value(DT_FLAGS_1).is_some_and(|flags| flags & 0x800 != 0), "NODEFLIB");
    assert_eq!(value(DT_RUNPATH), None);
    let strings = value(DT_STRTAB).unwrap();
    let rpath = value(DT_RPATH).map(|offset| text(mapped(elf, new, strings + offset)));
    let wanted = request.rpath.join(&b':');
    assert_eq!(rpath, (!wanted.is_empty()).then_some(wanted.as_slice()));
    let section = elf.section_headers.iter().find(|section| section.sh_type == 6);
    let header = segment(elf, PT_DYNAMIC).unwrap();
    if let Some(section) = section {
        assert_eq!((section.sh_offset, section.sh_addr), (header.p_offset, header.p_vaddr));
    }
}

fn segment<'a>(elf: &'a Elf, p_type: u32) -> Option<&'a ProgramHeader> {
    elf.program_headers.iter().find(|header| header.p_type == p_type)
}

/// The file's bytes from an address on.
fn mapped<'a>(elf: &Elf, bytes: &'a [u8], address: u64) -> &'a [u8] {
    let load = elf.program_headers.iter().find(|load| {
        load.p_type == PT_LOAD && load.p_vaddr <= address && address < load.p_vaddr + load.p_filesz
    });
    let load = load.unwrap_or_else(|| panic!("no segment at {address:#x}"));
    &bytes[(load.p_offset + (address - load.p_vaddr)) as usize..]
}

fn text(bytes: &[u8]) -> &[u8] {
    bytes.split(|&byte| byte == 0).next().unwrap()
}

/// Where the dynamic section stands.
pub fn dynamic_range(bytes: &[u8]) -> std::ops::Range<usize> {
    let elf = Elf::parse(bytes).unwrap();
    let header = segment(&elf, PT_DYNAMIC).unwrap();
    header.p_offset as usize..(header.p_offset + header.p_filesz) as usize
}
