//! The entry point, and a tool's later start in one straight procedure.

use core::{arch::naked_asm, cell::UnsafeCell, ptr, slice};

use crate::{
    head,
    image::{Arena, Env, arguments, environment, guards_hold, lies_in, record_path, resolved, text},
    record::{Fields, MAX_LEN, Record},
    sys,
};

/// Seconds after which a start renews the record's modification time. The store's collector takes a record
/// for unused only when it is older by a margin.
const RENEW_AFTER: i64 = 10;

unsafe extern "C" {
    /// libc's entry point.
    fn _start() -> !;
}

/// Where the kernel begins: calls [`early`] with the stack as it was handed over, and if that returns, goes
/// on to libc's `_start` as if nothing had been here.
#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "C" fn kitbag_entry() -> ! {
    naked_asm!(
        "mov rbx, rsp", // kept across the call (System V ABI); the stack pointer is aligned to 16 here
        "mov rdi, rsp",
        "xor ebp, ebp",
        "call {early}",
        "mov rsp, rbx",
        "xor edx, edx", // the ABI's function to register with atexit: none
        "jmp {start}",
        early = sym early,
        start = sym _start,
    )
}

/// Working memory. Not on the stack, which may be small and whose every page the compiler would touch: here
/// only pages that are used cost anything, and none of it is in the file.
struct Memory {
    record: [u8; MAX_LEN],
    texts: [u8; MAX_LEN],
    pointers: [*const u8; 8192],
}
struct Once(UnsafeCell<Memory>);
// SAFETY: only `later_start` uses it, which runs once and before there can be a second thread.
unsafe impl Sync for Once {}
static MEMORY: Once = Once(UnsafeCell::new(Memory {
    record: [0; MAX_LEN],
    texts: [0; MAX_LEN],
    pointers: [ptr::null(); 8192],
}));

/// Returns where a full start is needed.
///
/// # Safety
/// `stack` is the kernel's initial stack.
unsafe extern "C" fn early(stack: *const usize) {
    // SAFETY: the caller's promise.
    unsafe { later_start(stack) };
}

/// Executes the tool, or says `None`: a full start is needed.
///
/// # Safety
/// `stack` is the kernel's initial stack, and this is called once.
unsafe fn later_start(stack: *const usize) -> Option<()> {
    let head = head::prefix();
    if !head.is_tool() {
        return None;
    }
    // SAFETY: the caller's promise.
    let caller = unsafe { Caller::read(stack) }?;
    // SAFETY: called once.
    let memory = unsafe { &mut *MEMORY.0.get() };
    let (mut texts, mut pointers) = (Arena::new(&mut memory.texts), Arena::new(&mut memory.pointers));

    // 1. The bundle has the length it was packed with.
    // SAFETY: the kernel's text.
    let bundle = unsafe { sys::stat(caller.file) }?;
    if !bundle.is_file() || bundle.size != head.file_length() {
        return None;
    }

    // 2. The record is ours alone and whole, and lies where it was written for.
    let path = record_path(&head, caller.env, caller.euid, &mut texts)?;
    // Nonblocking: a fifo in its place must not make us wait.
    // SAFETY: `record_path` ends it with a zero.
    let file = unsafe { sys::open(path.as_ptr(), sys::O_NOFOLLOW | sys::O_NONBLOCK) }?;
    let stat = sys::fstat(&file)?;
    let private = stat.is_file() && stat.links == 1 && stat.mode & 0o022 == 0;
    if !private || stat.uid as usize != caller.euid || stat.size > MAX_LEN as u64 {
        return None;
    }
    let length = sys::read(&file, &mut memory.record)?;
    let record = Record::parse(memory.record.get(..length)?, &head.0)?;
    if length as u64 != stat.size || !lies_in(path, record.folder) {
        return None;
    }

    // 3. What it was made from is as it was.
    guards_hold(record.guards, caller.env)?;
    folder_exists(record.needs)?;
    files_are_unchanged(record.files, caller.euid)?;
    boot_is_the_same(record.boot_id)?;

    // 4. The program's arguments and environment.
    let argv = arguments(record.argv, caller.more, caller.env, &mut texts, &mut pointers)?;
    let env = environment(record.env, record.flags, caller.env, &mut texts, &mut pointers)?;

    // 5. Last use, then the program.
    if !(0..RENEW_AFTER).contains(&sys::now().wrapping_sub(stat.mtime)) {
        sys::touch(&file);
    }
    let back = if record.cwd.is_empty() {
        None
    } else {
        // SAFETY: a literal with a zero at its end.
        let back = unsafe { sys::open(c".".as_ptr().cast(), sys::O_PATH) }?;
        sys::chdir(resolved(record.cwd, caller.env, &mut texts)?)?;
        Some(back)
    };
    // SAFETY: `arguments` and `environment` end both with a null pointer.
    unsafe { sys::execve(argv, env) };
    sys::fchdir(&back?);
    None
}

/// What the kernel put on the stack (System V ABI, "Initial Stack and Register State"; getauxval(3)).
struct Caller {
    /// The arguments after the program's name.
    more: &'static [*const u8],
    env: Env<'static>,
    /// The path that was executed.
    file: *const u8,
    euid: usize,
}

impl Caller {
    /// `None` where only a full start will do: no name, `--kitbag…` as first argument, a setuid program.
    ///
    /// # Safety
    /// `stack` is the kernel's initial stack.
    unsafe fn read(stack: *const usize) -> Option<Self> {
        // SAFETY: the layout of that stack: argc, argc pointers, null, pointers, null, pairs up to key 0.
        // The texts live as long as the process.
        unsafe {
            let (_name, more) = slice::from_raw_parts(stack.add(1).cast(), *stack).split_first()?;
            if more.first().is_some_and(|first| is_ours(text(*first))) {
                return None;
            }
            let variables = stack.add(*stack + 2);
            let mut count = 0;
            while *variables.add(count) != 0 {
                count += 1;
            }
            let env = Env::new(slice::from_raw_parts(variables.cast(), count));
            let (mut file, mut euid, mut secure) = (None, None, None);
            let mut pair = variables.add(count + 1);
            while *pair != 0 {
                let value = *pair.add(1);
                match *pair {
                    12 => euid = Some(value),              // AT_EUID
                    23 => secure = Some(value),            // AT_SECURE
                    31 => file = Some(value as *const u8), // AT_EXECFN
                    _ => {}
                }
                pair = pair.add(2);
            }
            (secure? == 0).then_some(Self { more, env, file: file?, euid: euid? })
        }
    }
}

/// True for an argument that speaks to kitbag and not to the tool.
fn is_ours(argument: &[u8]) -> bool {
    argument.get(..8).is_some_and(|start| crate::equal(start, b"--kitbag"))
}

/// `Some` where `path`, with a zero at its end, is a folder or empty.
fn folder_exists(path: &[u8]) -> Option<()> {
    // SAFETY: `Fields::path` has seen the zero.
    (path.len() <= 1 || unsafe { sys::stat(path.as_ptr()) }?.is_dir()).then_some(())
}

/// `Some` where every file is the caller's and has the recorded size, inode and ctime: a change of content
/// cannot hide from ctime.
fn files_are_unchanged(mut files: Fields, euid: usize) -> Option<()> {
    while !files.is_empty() {
        // SAFETY: `Fields::path` has seen the zero.
        let stat = unsafe { sys::stat(files.path()?.as_ptr()) }?;
        let same = files.u64()? == stat.size
            && files.u64()? == stat.inode
            && files.u64()? as i64 == stat.ctime
            && files.u64()? == stat.ctime_nsec;
        if !same || !stat.is_file() || stat.uid as usize != euid {
            return None;
        }
    }
    Some(())
}

/// `Some` where the system was not started again since, or `recorded` is zero: nothing depends on it.
fn boot_is_the_same(recorded: &[u8]) -> Option<()> {
    if recorded.iter().all(|byte| *byte == 0) {
        return Some(());
    }
    let mut current = [0; crate::record::BOOT_ID_LEN];
    // SAFETY: a literal with a zero at its end.
    let file = unsafe { sys::open(c"/proc/sys/kernel/random/boot_id".as_ptr().cast(), 0) }?;
    sys::read(&file, &mut current)?;
    crate::equal(&current, recorded).then_some(())
}
