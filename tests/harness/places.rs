//! Places where a packed file has to work: other systems, poor ones, and awkward ones.
//!
//! Other systems are trees of Debian's packages, fetched once and kept beside the test programs; a bundle starts there
//! by chroot(2), in a folder of its own.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use crate::programs::{built, lock};
use crate::sandbox::{MARK, kill_all};
use crate::{Cmd, Folder, copy, root, tools, unmet};

/// Like `nobody`, who has no rights.
const NOBODY: u32 = 65534;

/// What an older or newer system consists of here: a shell and `env` with their libc, `ldconfig`, and OpenSSL and
/// systemd's library of another version than the one that a bundle brings.
const SYSTEM: &[&str] = &["base-files", "dash", "coreutils", "libc-bin", "libssl3", "libsystemd0"];

/// A place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A chroot that holds the file alone.
    EmptyRoot,
    /// Debian 11, which has an older glibc than the build machine.
    Debian11,
    /// Debian testing, which has a newer one.
    DebianTesting,
    /// A system of busybox and musl alone.
    Busybox,
    /// /tmp and the home are mounted `noexec`.
    Noexec,
    /// The home is read-only.
    ReadOnlyHome,
    /// A user that is not root.
    NotRoot,
    /// Spaces and letters that are not ASCII in every path.
    OddPath,
    /// Moved and renamed after its first start.
    Moved,
}

impl Place {
    /// Puts a packed file there. None if that cannot be on this machine: the test is [`unmet`] and has to return.
    #[must_use]
    pub fn site(self, file: &Path) -> Option<Site> {
        if self != Self::Moved && !root("chroot, mount, setpriv") {
            return None;
        }
        let system = match self {
            Self::Debian11 => Some(debian("bullseye")?),
            Self::DebianTesting => Some(debian("testing")?),
            Self::Busybox => Some(busybox()?),
            _ => None,
        };
        let folder = system.as_ref().map_or_else(Folder::new, |root| Folder::within(&root.join("tmp")));
        let site = Site::new(self, system.unwrap_or_else(|| folder.path().to_owned()), folder);
        copy(file, &site.outside(&site.base().join(site.name)));
        site.hand_over();
        Some(site)
    }

    /// True if a program there can call `/bin/sh`.
    pub fn has_shell(self) -> bool {
        self != Self::EmptyRoot
    }

    fn is_chroot(self) -> bool {
        matches!(self, Self::EmptyRoot | Self::Debian11 | Self::DebianTesting | Self::Busybox)
    }
}

/// A packed file in its place. What still runs there when it is dropped is killed.
#[derive(Debug)]
pub struct Site {
    /// The place.
    pub place: Place,
    /// What is `/` there, if that is another one.
    root: PathBuf,
    folder: Folder,
    name: &'static str,
}

impl Site {
    fn new(place: Place, root: PathBuf, folder: Folder) -> Self {
        let site = Self { place, root, folder, name: "app" };
        for made in ["", "home", "state", "work"] {
            // An empty root holds the file alone.
            if place != Place::EmptyRoot || made == "work" {
                fs::create_dir_all(site.outside(&site.base().join(made))).expect("a folder");
            }
        }
        site
    }

    /// The folder of the site, as a program there sees it.
    fn base(&self) -> PathBuf {
        match self.place {
            Place::EmptyRoot => "/".into(),
            place if place.is_chroot() => {
                Path::new("/").join(self.folder.path().strip_prefix(&self.root).expect("inside"))
            }
            Place::OddPath => self.folder.join("Größe & Äpfel/日本 #1"),
            _ => self.folder.path().to_owned(),
        }
    }

    /// An existing folder where everything may be written, as a program there sees it.
    pub fn work(&self) -> PathBuf {
        self.base().join("work")
    }

    /// The packed file, as a program there sees it.
    pub fn file(&self) -> PathBuf {
        // In a folder where it may be executed, see `launcher`.
        let base = if self.place == Place::Noexec { "/mnt".into() } else { self.base() };
        base.join(self.name)
    }

    /// Where this process finds a path of the place.
    pub fn outside(&self, path: &Path) -> PathBuf {
        if self.place.is_chroot() {
            self.root.join(path.strip_prefix("/").expect("absolute"))
        } else {
            path.to_owned()
        }
    }

    /// The folders where bundles unpack there, as this process sees them.
    fn stores(&self) -> Vec<PathBuf> {
        // The second one is mounted for the place alone, see `launcher`.
        vec![self.folder.path().to_owned(), format!("/var/tmp/kitbag-{NOBODY}").into()]
    }

    /// For a user that is not root, what is there belongs to that one; a read-only home too.
    fn hand_over(&self) {
        if matches!(self.place, Place::Noexec | Place::ReadOnlyHome | Place::NotRoot | Place::OddPath) {
            for path in ["", "home", "state", "work"] {
                chown(self.base().join(path), Some(NOBODY), Some(NOBODY)).expect("chown");
            }
        }
    }

    /// `/dev/null` and `/dev/urandom` for programs that do not work without, in an empty root and in trees of packages.
    pub fn devices(&self) {
        if !self.place.is_chroot() {
            return;
        }
        let folder = self.root.join("dev");
        fs::create_dir_all(&folder).expect("dev");
        for (name, minor) in [("null", 3), ("urandom", 9)] {
            let mode = Mode::from_bits_truncate(0o666);
            // Another test may have made it; they share the tree of packages.
            let _ = mknod(&folder.join(name), SFlag::S_IFCHR, mode, makedev(1, minor));
            let _ = fs::set_permissions(folder.join(name), Permissions::from_mode(0o666));
        }
    }

    /// Gives the file another folder and another name.
    pub fn move_away(&mut self) {
        let old = self.outside(&self.file());
        self.name = "another name";
        fs::rename(old, self.outside(&self.file())).expect("rename");
    }

    /// The packed file with these arguments, started in that place, with hardly a variable set.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Cmd {
        let mut command = Cmd::new(self.file()).args(args).bare().env(MARK, self.folder.path());
        command = command.env("KITBAG_STATE", self.base().join("state"));
        if self.place.has_shell() {
            command =
                command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", self.base().join("home"));
        }
        // A place that tests share, and the machine's own. Bundles choose by themselves in others.
        if self.root != self.folder.path() || self.place == Place::Moved {
            command = command.env("KITBAG_STORE", self.base().join("store"));
        }
        let (launcher, args) = self.launcher();
        let command = if launcher.is_empty() { command } else { command.behind(&launcher, args) };
        if self.place.is_chroot() { command } else { command.cwd(self.work()) }
    }

    fn launcher(&self) -> (String, Vec<String>) {
        let nobody = format!("setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups");
        let home = self.base().join("home").display().to_string();
        let mounts = |script: &str| {
            let own = "mount -t tmpfs -o mode=1777 tmpfs /var/tmp";
            let script = format!("{own} && {script} && exec {nobody} \"$@\"");
            let all = ["--mount", "--propagation", "private", "sh", "-c", &script, "sh"];
            ("unshare".to_owned(), all.map(str::to_owned).to_vec())
        };
        let bound = |path: &str, how: &str| {
            format!("mount --bind '{path}' '{path}' && mount -o remount,bind,{how} '{path}'")
        };
        match self.place {
            Place::EmptyRoot | Place::Debian11 | Place::DebianTesting | Place::Busybox => {
                ("/usr/sbin/chroot".to_owned(), vec![self.root.display().to_string()])
            }
            Place::Noexec => {
                let folder = self.folder.path().display();
                let temporary = std::env::temp_dir().display().to_string();
                mounts(&format!("mount --bind '{folder}' /mnt && {}", bound(&temporary, "noexec")))
            }
            Place::ReadOnlyHome => mounts(&bound(&home, "ro")),
            Place::OddPath => mounts("true"),
            Place::NotRoot => ("setpriv".to_owned(), nobody.split(' ').skip(1).map(str::to_owned).collect()),
            Place::Moved => (String::new(), Vec::new()),
        }
    }

    /// Fails if a process of the place executes code of any file but those that were unpacked there.
    #[track_caller]
    pub fn maps_its_own_files_alone(&self, process: u32) {
        let maps = fs::read_to_string(format!("/proc/{process}/maps")).expect("maps");
        let executed =
            maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|mode| mode.contains('x')));
        let files: Vec<&str> = executed.filter_map(|line| line.find('/').map(|at| &line[at..])).collect();
        assert!(!files.is_empty(), "{maps}");
        let is_own = |file: &&str| self.stores().iter().any(|store| Path::new(file).starts_with(store));
        let foreign: Vec<_> = files.iter().filter(|file| !is_own(file)).collect();
        assert!(foreign.is_empty(), "foreign code in the process: {foreign:?}\n{maps}");
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        kill_all(self.folder.path());
    }
}

/// A tree of Debian's packages of another release.
fn debian(suite: &str) -> Option<PathBuf> {
    system(suite, SYSTEM, |tree| {
        // Modules are asked first, as in many systems; one is there.
        fs::write(tree.join("etc/nsswitch.conf"), "passwd: compat systemd files\n").expect("nsswitch.conf");
        fs::write(tree.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").expect("passwd");
        // What the package's script would do: the loader's cache, so that there is one to be led astray by.
        let made = Command::new("chroot").arg(tree).args(["/sbin/ldconfig"]).status();
        assert!(made.is_ok_and(|status| status.success()), "ldconfig in {}", tree.display());
        if !tree.join("bin/sh").exists() {
            symlink("dash", tree.join("bin/sh")).expect("a link");
        }
    })
}

/// A tree with busybox, by every name that tests call it, and musl.
fn busybox() -> Option<PathBuf> {
    system("testing", &["busybox-static", "musl"], |tree| {
        let program = ["bin/busybox", "usr/bin/busybox"].map(|path| tree.join(path));
        let program = program.iter().find(|path| path.exists()).expect("busybox");
        for name in ["sh", "env", "echo", "cat"] {
            let link = program.with_file_name(name);
            let _ = fs::remove_file(&link);
            symlink("busybox", link).expect("a link");
        }
    })
}

/// A file system of these packages and all that they depend on, but for busybox and musl, which get nothing else.
fn system(suite: &str, packages: &[&str], finish: impl Fn(&Path)) -> Option<PathBuf> {
    if !tools(&["apt-get", "dpkg-deb", "tar", "chroot"]) {
        return None;
    }
    kept(&format!("debian-{suite}-{}", packages[0]), |tree| {
        for folder in ["bin", "sbin", "lib", "lib64"] {
            fs::create_dir_all(tree.join("usr").join(folder)).expect("a folder");
            symlink(format!("usr/{folder}"), tree.join(folder)).expect("a link");
        }
        unpack(suite, packages, tree)?;
        let shared = tree.join("tmp");
        fs::create_dir_all(&shared).expect("tmp");
        fs::set_permissions(&shared, Permissions::from_mode(0o1777)).expect("chmod");
        finish(tree);
        Ok(())
    })
}

/// A folder that is made once for all test processes and kept beside the test programs; under another name when what
/// makes it changes. None if it could not be made:
/// the test is [`unmet`] and has to return.
pub fn kept(name: &str, make: impl FnOnce(&Path) -> Result<(), String>) -> Option<PathBuf> {
    let _lock = lock();
    let (folder, done) = (built().join(name), built().join(format!("{name}.done")));
    if !done.exists() {
        // What an interrupted test has left.
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).expect("a folder");
        if let Err(why) = make(&folder) {
            unmet(&format!("{name} could not be made: {why}"));
            return None;
        }
        fs::write(done, "").expect("a mark");
    }
    Some(folder)
}

/// Fetches by apt, with lists and state of its own, and unpacks without running anything of the packages.
fn unpack(suite: &str, packages: &[&str], tree: &Path) -> Result<(), String> {
    let work = Folder::new();
    let (at, tree) = (work.path().display(), tree.display());
    let script = format!(
        "set -eu
         mkdir -p '{at}/state/lists/partial' '{at}/cache/archives/partial'
         : >'{at}/status'
         apt() {{
             apt-get -qq -o Dir::State='{at}/state' -o Dir::State::status='{at}/status' -o Dir::Cache='{at}/cache' \\
                 -o Dir::Etc::sourcelist='{at}/list' -o Dir::Etc::sourceparts=- -o APT::Sandbox::User=root \\
                 -o Acquire::Languages=none -o APT::Install-Recommends=0 -o Acquire::Retries=3 \\
                 -o Acquire::Check-Valid-Until=false \"$@\"
         }}
         # Old releases move to the second one.
         for archive in deb archive; do
             echo 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]' \\
                 \"http://$archive.debian.org/debian {suite} main\" >'{at}/list'
             if apt update; then break; fi
         done
         cd '{at}/cache/archives'
         {fetch}
         for package in *.deb; do
             dpkg-deb --fsys-tarfile \"$package\" | tar -x --keep-directory-symlink -C '{tree}'
         done",
        fetch = match packages {
            ["busybox-static", ..] => format!("apt download {}", packages.join(" ")),
            // OpenSSL 3 is called otherwise in newer releases, and not there in older ones.
            _ => format!(
                "apt install --download-only --assume-yes {} ||
                 apt install --download-only --assume-yes {}",
                packages.join(" "),
                packages.iter().filter(|name| **name != "libssl3").copied().collect::<Vec<_>>().join(" ")
            ),
        }
    );
    let done = Command::new("bash").args(["-c", &script]).output().map_err(|error| error.to_string())?;
    done.status.success().then_some(()).ok_or_else(|| String::from_utf8_lossy(&done.stderr).into_owned())
}
