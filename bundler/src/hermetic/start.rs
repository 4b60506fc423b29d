//! The process that becomes the app: waits for its tracer, gives up what it may not use, executes the bundle.

use std::fs;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use kitbag_format::exit;
use kitbag_format::port::DEVICES;
use landlock::{
    ABI, Access, AccessFs, BitFlags, LandlockStatus, RestrictionStatus, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, path_beneath_rules,
};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, raise};
use seccompiler::sock_filter;

use super::calls;
use crate::cli::HermeticStartArgs;
use crate::diagnostic::Failure;

/// The newest Landlock that is known here; what the kernel has of it is used.
const NEWEST: ABI = ABI::V9;

/// Becomes the bundle; returns only why it could not.
pub fn start(args: &HermeticStartArgs) -> Result<(), Failure> {
    let failed = |what: &str, why: &dyn std::fmt::Display| {
        Failure::new(exit::NOT_STARTED, format!("cannot start the app hermetically: {what}: {why}"))
    };
    let Some(native) = NATIVE else {
        return Err(failed("seccomp", &"kitbag does not know the system calls of this architecture"));
    };
    // Until the tracer has taken hold and sends SIGCONT. If it is killed before, nobody would.
    set_pdeathsig(Signal::SIGKILL).map_err(|errno| failed("prctl", &errno))?;
    raise(Signal::SIGSTOP).map_err(|errno| failed("stop", &errno))?;
    set_pdeathsig(None).map_err(|errno| failed("prctl", &errno))?;
    let status = restrict(args).map_err(|error| failed("Landlock", &error))?;
    if status.ruleset == RulesetStatus::NotEnforced {
        let why = match status.landlock {
            LandlockStatus::NotEnabled => "this kernel has Landlock, and it is not enabled",
            _ => "this kernel has no Landlock (Linux 5.13)",
        };
        let _ = writeln!(io::stderr(), "kitbag: {why}: nothing is refused, only listed");
    }
    seccompiler::apply_filter(&filter(native)).map_err(|error| failed("seccomp", &error))?;
    let error = Command::new(&args.file).args(&args.args).exec();
    Err(failed(&args.file.display().to_string(), &error))
}

/// Landlock: this process and all it starts reach what is named, and nothing else.
fn restrict(args: &HermeticStartArgs) -> Result<RestrictionStatus, RulesetError> {
    let all = AccessFs::from_all(NEWEST);
    let devices = AccessFs::ReadFile
        | AccessFs::ReadDir
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::IoctlDev;
    let sys: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::ReadDir;
    Ruleset::default()
        .handle_access(all)?
        .scope(Scope::AbstractUnixSocket)?
        .create()?
        .add_rules(path_beneath_rules(&args.used, all))?
        .add_rules(path_beneath_rules(&args.read, AccessFs::from_read(NEWEST)))?
        .add_rules(path_beneath_rules(DEVICES, devices))?
        // What the kernel shows of itself.
        .add_rules(path_beneath_rules(["/proc"], devices))?
        .add_rules(path_beneath_rules(["/sys"], sys))?
        .add_rules(path_beneath_rules(inherited(), devices))?
        .restrict_self()
}

/// The files behind the standard descriptors, which a program may open again as /dev/stdin and its like. Pipes have no
/// place that a rule could name, and need none.
fn inherited() -> impl Iterator<Item = PathBuf> {
    let links = (0..3).filter_map(|number| fs::read_link(format!("/proc/self/fd/{number}")).ok());
    links.filter(|path| path.is_absolute())
}

/// A seccomp filter (seccomp(2)): a system call that names a path is reported to the tracer, every other one goes
/// ahead. One of another architecture (32-bit programs) is not looked at: its numbers mean something else.
fn filter(native: u32) -> Vec<sock_filter> {
    // Offsets in `struct seccomp_data`.
    const NUMBER: u32 = 0;
    const ARCHITECTURE: u32 = 4;
    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    let step =
        |code: u32, k: u32, skip_unless: u8| sock_filter { code: code as u16, jt: 0, jf: skip_unless, k };
    let mut program = vec![
        step(LOAD, ARCHITECTURE, 0),
        sock_filter { code: IF_EQUAL as u16, jt: 1, jf: 0, k: native },
        step(RETURN, libc::SECCOMP_RET_ALLOW, 0),
        step(LOAD, NUMBER, 0),
    ];
    for number in calls::all().filter_map(|call| u32::try_from(call.number).ok()) {
        program.push(step(IF_EQUAL, number, 1));
        program.push(step(RETURN, libc::SECCOMP_RET_TRACE, 0));
    }
    program.push(step(RETURN, libc::SECCOMP_RET_ALLOW, 0));
    program
}

/// linux/audit.h: the ELF machine, 64 bits, little-endian. `None` on architectures that nobody has tried.
const NATIVE: Option<u32> = if cfg!(target_arch = "x86_64") {
    Some(libc::EM_X86_64 as u32 | 0xc000_0000)
} else if cfg!(target_arch = "aarch64") {
    Some(libc::EM_AARCH64 as u32 | 0xc000_0000)
} else {
    None
};
