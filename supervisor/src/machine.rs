//! The bundle as the first process of a machine: what init(8) does before and after the services.
//!
//! `FILE` alone in an initramfs, as `/init`, is a whole system: it mounts the kernel's file systems, brings up the
//! loopback device, supervises, and powers off when its services have ended or were asked to. Only the first
//! process of the machine does so. That of a PID namespace, a container's, finds everything made, and just exits.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot, set_cad_enabled};
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, getpid, sethostname};

use crate::commands::say;
use crate::sys;

/// What the kernel's PID namespace of the machine itself is called: `PROC_PID_INIT_INO` in linux/proc_ns.h.
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";

/// A file system that the kernel offers, and where programs expect it (hier(7)).
struct Mount {
    kind: &'static str,
    at: &'static str,
    flags: MsFlags,
    options: Option<&'static str>,
}

const fn kernel(kind: &'static str, at: &'static str) -> Mount {
    let flags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);
    Mount { kind, at, flags, options: None }
}

const fn memory(at: &'static str, options: &'static str) -> Mount {
    let flags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);
    Mount { kind: "tmpfs", at, flags, options: Some(options) }
}

/// In this order: some lie in others.
const MOUNTS: &[Mount] = &[
    kernel("proc", "/proc"),
    kernel("sysfs", "/sys"),
    Mount { kind: "devtmpfs", at: "/dev", flags: MsFlags::MS_NOSUID, options: None },
    Mount {
        kind: "devpts",
        at: "/dev/pts",
        flags: MsFlags::MS_NOSUID,
        options: Some("mode=0620,ptmxmode=0666"),
    },
    memory("/dev/shm", "mode=1777"),
    memory("/run", "mode=0755"),
    memory("/tmp", "mode=1777"),
    kernel("cgroup2", "/sys/fs/cgroup"),
];

/// The machine that this process is the first of. It is switched off by [`Machine::power_off`].
pub struct Machine(());

/// Gets the machine ready, if this is its first process. Errors are said, and nothing ends because of them: an app
/// that does not need what failed runs all the same.
pub fn begin() -> Option<Machine> {
    if getpid().as_raw() != 1 || !is_first() {
        return None;
    }
    for mount in MOUNTS {
        if let Err(errno) = mount.make() {
            say(&format!("cannot mount {} at {}: {}", mount.kind, mount.at, errno.desc()));
        }
    }
    open_console();
    // Ctrl-Alt-Del becomes a SIGINT to us, which stops the services: reboot(2).
    if let Err(errno) = set_cad_enabled(false) {
        say(&format!("cannot catch Ctrl-Alt-Del: {}", errno.desc()));
    }
    if let Err(errno) = sys::net::loopback_up() {
        say(&format!("cannot bring up the loopback device: {}", errno.desc()));
    }
    Some(Machine(()))
}

/// False in a PID namespace below the machine's. Where there is no /proc, the first process mounts it to look.
fn is_first() -> bool {
    let here = || fs::read_link("/proc/self/ns/pid");
    let found = here().or_else(|_| {
        // In somebody's namespace this fails for want of rights, or shows another name.
        MOUNTS[0].make().map_err(io::Error::from)?;
        here()
    });
    found.is_ok_and(|name| name.as_os_str() == FIRST_PID_NAMESPACE)
}

impl Mount {
    fn make(&self) -> Result<(), Errno> {
        let at = Path::new(self.at);
        // In /sys the kernel has made it, and nobody else can.
        let _ = fs::create_dir_all(at);
        if is_mounted(at) {
            return Ok(());
        }
        mount(Some(self.kind), at, Some(self.kind), self.flags, self.options)
    }
}

/// True if another file system is there already, an initramfs's or the kernel's own: it is left as it is.
fn is_mounted(at: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|found| found.dev()).ok();
    at.parent().and_then(device) != device(at)
}

/// Where the initramfs has no /dev/console, the kernel starts its first process without standard files.
fn open_console() {
    let Ok(console) = OpenOptions::new().read(true).write(true).open("/dev/console") else { return };
    let console = console.as_fd();
    let done = dup2_stdin(console).and_then(|()| dup2_stdout(console)).and_then(|()| dup2_stderr(console));
    if let Err(errno) = done {
        say(&format!("cannot use /dev/console: {}", errno.desc()));
    }
}

impl Machine {
    /// Names the machine after the app, unless somebody has named it.
    pub fn name(&self, name: &str) {
        let unnamed = nix::unistd::gethostname().is_ok_and(|host| host.is_empty() || host == "(none)");
        if unnamed && let Err(errno) = sethostname(name) {
            say(&format!("cannot name the machine: {}", errno.desc()));
        }
    }

    /// Writes everything to the disks, and switches the machine off. The kernel would panic if its first process
    /// exited, so this never returns.
    pub fn power_off(self) -> ! {
        // What drivers still print comes after our last line.
        nix::unistd::sync();
        let Err(errno) = reboot(RebootMode::RB_POWER_OFF);
        say(&format!("cannot power off: {}; halting", errno.desc()));
        let Err(_) = reboot(RebootMode::RB_HALT_SYSTEM);
        loop {
            nix::unistd::pause();
        }
    }
}
