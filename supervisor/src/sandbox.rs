//! What a service may do on the network and with files: the manifest's wishes -> values of this host -> a ruleset of
//! landlock(7), which the child puts on between its limits and its user.
//!
//! A ruleset is made for each launch: its rules are of the files that are at the named paths then, and an app's files are
//! replaced while it lives. What the kernel does not know is left out, and [`Kernel::misses`] says so.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::{fmt, io};

use kitbag_format::port::{self, DEVICES, Reference};
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, NetPort, PathBeneath, PathFd, PathFdError, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError,
};

use crate::expand::{ExpandError, Values};
use crate::spawn;
use crate::state::{Fault, Stage};
use crate::sys::{Errno, landlock as kernel};

pub mod watch;

/// The newest Landlock whose rules for files are used. Those of ABI 9, for connecting to unix sockets by path, are not: they
/// would break, on new kernels alone, what the manifest does not name.
const NEWEST: ABI = ABI::V8;
/// Linux 6.7.
const NETWORK_SINCE: i32 = 4;
/// Linux 5.19.
const RENAME_SINCE: i32 = 2;

/// What every program may read of the host: what the kernel shows of itself; and what C libraries and TLS look up, which is
/// no secret and without which programs fail that do well where it is missing: `EACCES` is not `ENOENT` to them. Node
/// does not start without openssl.cnf, Python's getpwuid(3) says that there is no root.
///
/// Folders stand for files that are replaced while a service runs: a rule is of a file, not of its name.
const HOST: &[&str] = &[
    "/proc",
    "/sys",
    // Names: resolv.conf(5) and where it leads to, nsswitch.conf(5).
    "/etc/resolv.conf",
    "/run/systemd/resolve",
    "/run/resolvconf",
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/gai.conf",
    "/etc/nsswitch.conf",
    "/etc/services",
    "/etc/protocols",
    // Accounts.
    "/etc/passwd",
    "/etc/group",
    // Time: tzset(3).
    "/etc/localtime",
    "/etc/timezone",
    "/usr/share/zoneinfo",
    // Libraries: ld.so(8).
    "/etc/ld.so.cache",
    // Certificates as Debian, Alpine and Fedora have them. Their keys lie beside these.
    "/etc/ssl/openssl.cnf",
    "/etc/ssl/certs",
    "/etc/ssl/cert.pem",
    "/etc/pki/tls/openssl.cnf",
    "/etc/pki/tls/certs",
    "/etc/pki/tls/cert.pem",
    "/etc/pki/ca-trust/extracted",
    "/etc/crypto-policies/back-ends",
    "/usr/share/ca-certificates",
    "/usr/local/share/ca-certificates",
];

/// What a service may do, in values of this host. The default is all that its user may.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sandbox {
    /// The TCP ports that it may bind beside port 0, for which the kernel chooses one; `None`: all.
    pub bind: Option<Vec<u16>>,
    /// The TCP ports that it may connect to, of whatever host; `None`: all.
    pub connect: Option<Vec<u16>>,
    /// The files that it may use; `None`: all.
    pub files: Option<Paths>,
}

/// The files that a service may use beside a few of each host. Each path stands for all below it too; one that is not there
/// stands for nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Paths {
    /// May be read and executed.
    pub read: Vec<PathBuf>,
    /// May be read and executed by those who know the name: a folder's content is not listed.
    pub by_name: Vec<PathBuf>,
    /// Anything may be done with these.
    pub write: Vec<PathBuf>,
}

impl Paths {
    /// True if a path is one of those that it may execute, or below one. Links on the way are not followed.
    pub fn may_execute(&self, path: &Path) -> bool {
        self.read.iter().chain(&self.by_name).chain(&self.write).any(|known| path.starts_with(known))
    }
}

/// A TCP port that a sandboxed unit may connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Connect {
    /// This number, of whatever host.
    Number(u16),
    /// That of this port.
    Port(Reference),
}

impl Connect {
    /// Reads `443`, `db.main` or `redis/cache.main`.
    pub fn parse(text: &str) -> Option<Self> {
        let port = || Reference::parse(&format!("ports.{text}")).map(Self::Port);
        text.parse().ok().map(Self::Number).or_else(port)
    }

    /// The port, if it is one by name.
    pub const fn reference(&self) -> Option<&Reference> {
        match self {
            Self::Port(reference) => Some(reference),
            Self::Number(_) => None,
        }
    }
}

impl Paths {
    /// What the manifest names, with the bundle's tree and state. `trees` is the folder with the trees of all bundles, where
    /// the tree's programs name their libraries by the closure's path: that leads to the tree of the version that was started
    /// last.
    pub fn resolve(
        files: &port::Files,
        values: &Values<'_>,
        trees: Option<&Path>,
    ) -> Result<Self, ExpandError> {
        let path = |text: &String| values.text(text).map(PathBuf::from);
        let mut read: Vec<PathBuf> = files.read.iter().map(path).collect::<Result<_, _>>()?;
        let mut write: Vec<PathBuf> = files.write.iter().map(path).collect::<Result<_, _>>()?;
        read.push(values.tree.to_owned());
        write.extend(values.state.map(Path::to_owned));
        // Where it may write it may put a link that leads elsewhere: what lies below needs no rule of its own, and gets none.
        let is_below = |path: &PathBuf| write.iter().any(|other| path != other && path.starts_with(other));
        read.retain(|path| !is_below(path));
        let write = write.iter().filter(|path| !is_below(path)).cloned().collect();
        Ok(Self { read, by_name: trees.into_iter().map(Path::to_owned).collect(), write })
    }

    /// True for what lies in a folder that may be written.
    pub fn may_write(&self, path: &Path) -> bool {
        self.write.iter().any(|folder| path.starts_with(folder))
    }

    /// True if TMPDIR has to be a folder of the state, as the service may not write to /tmp.
    pub fn needs_temporary(&self) -> bool {
        !self.write.iter().any(|path| Path::new("/tmp").starts_with(path))
    }
}

impl Sandbox {
    /// True if it limits nothing.
    pub const fn is_open(&self) -> bool {
        self.bind.is_none() && self.connect.is_none() && self.files.is_none()
    }

    /// What of it this kernel can keep, as a ruleset for one launch; `None` if that is nothing.
    ///
    /// Opens the named paths without reading them: one below a network file system whose server is gone is waited for.
    pub fn ruleset(&self, kernel: Kernel) -> Result<Option<OwnedFd>, Fault> {
        self.made(kernel).map_err(|errno| spawn::fault(Stage::Sandbox, errno))
    }

    fn made(&self, kernel: Kernel) -> Result<Option<OwnedFd>, Errno> {
        let files = self.files.as_ref().filter(|_| kernel.has_files());
        let mut network = BitFlags::<AccessNet>::EMPTY;
        if kernel.has_network() {
            network |= self.bind.as_ref().map_or(BitFlags::EMPTY, |_| AccessNet::BindTcp.into());
            network |= self.connect.as_ref().map_or(BitFlags::EMPTY, |_| AccessNet::ConnectTcp.into());
        }
        if files.is_none() && network.is_empty() {
            return Ok(None);
        }
        let mut ruleset = Ruleset::default();
        if files.is_some() {
            ruleset = ruleset.handle_access(AccessFs::from_all(kernel.files())).map_err(errno)?;
        }
        if !network.is_empty() {
            ruleset = ruleset.handle_access(network).map_err(errno)?;
        }
        let mut ruleset = ruleset.create().map_err(errno)?;
        if network.contains(AccessNet::BindTcp) {
            ruleset = add_ports(ruleset, self.bind.iter().flatten().chain(&[0]), AccessNet::BindTcp)?;
        }
        if network.contains(AccessNet::ConnectTcp) {
            ruleset = add_ports(ruleset, self.connect.iter().flatten(), AccessNet::ConnectTcp)?;
        }
        if let Some(paths) = files {
            ruleset = add_files(ruleset, paths, kernel.files())?;
        }
        Ok(ruleset.into())
    }
}

fn add_ports<'a>(
    ruleset: RulesetCreated,
    ports: impl Iterator<Item = &'a u16>,
    access: AccessNet,
) -> Result<RulesetCreated, Errno> {
    ports
        .into_iter()
        .try_fold(ruleset, |ruleset, port| ruleset.add_rule(NetPort::new(*port, access)).map_err(errno))
}

fn add_files(mut ruleset: RulesetCreated, paths: &Paths, abi: ABI) -> Result<RulesetCreated, Errno> {
    let all = AccessFs::from_all(abi);
    let read = AccessFs::from_read(abi);
    let show: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::ReadDir;
    let device = (show | AccessFs::WriteFile | AccessFs::Truncate | AccessFs::IoctlDev) & all;
    let named = |paths: &'static [&str]| paths.iter().map(Path::new);
    let own = |paths| <[PathBuf]>::iter(paths).map(PathBuf::as_path);
    let rules = own(&paths.read).map(|path| (path, read));
    let rules = rules.chain(own(&paths.by_name).map(|path| (path, AccessFs::Execute | AccessFs::ReadFile)));
    let rules = rules.chain(own(&paths.write).map(|path| (path, all)));
    let rules = rules.chain(named(DEVICES).map(|path| (path, device)));
    for (path, access) in rules.chain(named(HOST).map(|path| (path, show))) {
        if let Some(file) = open(path)? {
            ruleset = ruleset.add_rule(PathBeneath::new(file, access)).map_err(errno)?;
        }
    }
    Ok(ruleset)
}

/// The file for a rule; `None` if it is not there, or not for us to see.
fn open(path: &Path) -> Result<Option<PathFd>, Errno> {
    match PathFd::new(path) {
        Ok(file) => Ok(Some(file)),
        Err(PathFdError::OpenCall { source, .. }) => match source.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES | Errno::ELOOP | Errno::ENAMETOOLONG) => {
                Ok(None)
            }
            errno => Err(errno.unwrap_or(Errno::EINVAL)),
        },
        Err(_) => Err(Errno::EINVAL),
    }
}

fn errno(error: RulesetError) -> Errno {
    Errno::from_raw(*landlock::Errno::from(error))
}

/// What this kernel can keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernel {
    /// The version of its Landlock; or why there is none, as in errno(3).
    abi: Result<i32, Errno>,
}

impl Kernel {
    /// Asks the kernel.
    pub fn probe() -> Self {
        Self { abi: kernel::abi() }
    }

    /// One with this version, or none for this reason. A higher version than the kernel's is the kernel's.
    pub const fn of(abi: Result<i32, Errno>) -> Self {
        Self { abi }
    }

    /// Linux 5.13: files can be limited.
    pub const fn has_files(self) -> bool {
        matches!(self.abi, Ok(1..))
    }

    /// Linux 6.7: ports can be.
    pub const fn has_network(self) -> bool {
        matches!(self.abi, Ok(NETWORK_SINCE..))
    }

    /// What of a sandbox this kernel cannot keep, and what happens instead, as a sentence without a stop; `None` if it
    /// keeps all.
    pub fn misses(self, sandbox: &Sandbox) -> Option<String> {
        let mut lost = Vec::new();
        if !self.has_network() {
            lost.extend(sandbox.bind.as_ref().map(|_| "binding undeclared ports is reported, not refused"));
            lost.extend(sandbox.connect.as_ref().map(|_| "`connect` is not limited"));
        }
        if sandbox.files.is_some() {
            lost.extend((!self.has_files()).then_some("files are not limited"));
            let old = matches!(self.abi, Ok(1..RENAME_SINCE));
            lost.extend(old.then_some("no file can be moved to another folder (Linux 5.19 can)"));
        }
        (!lost.is_empty()).then(|| format!("{self}: {}", lost.join("; ")))
    }

    /// The rules for files that it knows.
    fn files(self) -> ABI {
        match self.abi {
            Ok(abi) if abi < NEWEST as i32 => ABI::from(abi),
            Ok(_) => NEWEST,
            Err(_) => ABI::Unsupported,
        }
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.abi {
            Ok(NETWORK_SINCE..) => f.write_str("this kernel's Landlock knows files and TCP ports"),
            Ok(_) => f.write_str("this kernel's Landlock knows files, and no ports (Linux 6.7)"),
            Err(Errno::ENOSYS) => f.write_str("this kernel has no Landlock (Linux 6.7)"),
            Err(Errno::EOPNOTSUPP) => f.write_str(
                "this kernel has Landlock, and it is not enabled (`lsm=landlock,…` on its command line)",
            ),
            Err(Errno::EPERM) => f.write_str("Landlock is forbidden here (a container's seccomp filter)"),
            Err(errno) => write!(f, "Landlock does not answer: {}", io::Error::from(errno)),
        }
    }
}
