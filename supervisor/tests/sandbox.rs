//! What the kernel refuses to sandboxed programs, tried by real ones: as whoever runs the tests, and if that is root, as a user
//! too, both as a service of root's supervisor and with a supervisor of its own.

mod common;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{PipeReader, Read, pipe};
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use common::Temp;
use kitbag_format::port;
use kitbag_supervisor::expand::Values;
use kitbag_supervisor::identity::Ids;
use kitbag_supervisor::sandbox::watch::listening;
use kitbag_supervisor::sandbox::{Kernel, Paths, Sandbox, SandboxError, Wishes, needs_temporary};
use kitbag_supervisor::spawn::{Program, Setup, Spawner};
use kitbag_supervisor::state::{Fault, Stage};
use kitbag_supervisor::sys::child::Files;
use kitbag_supervisor::sys::{Errno, Pid, fd};
use nix::sys::wait::waitpid;

/// The user that stands for any.
const NOBODY: u32 = 65534;

/// Perl: each of these does one thing, and prints a line of its name and errno(3), 0 if it went well.
const TRIES: &str = r#"
use Socket; use Fcntl; $| = 1;
sub tried { my ($name, $well) = @_; print "$name ", ($well ? 0 : $! + 0), "\n" }
sub tcp { socket(my $it, AF_INET, SOCK_STREAM, $_[0] // 0) or die $!; setsockopt($it, SOL_SOCKET, SO_REUSEADDR, 1); $it }
sub at { sockaddr_in($_[0], inet_aton($_[1])) }
sub binds { my $it = tcp($_[1]); tried("bind", bind($it, at($_[0], '127.0.0.2')) && listen($it, 1)); $it }
sub connects { tried("connect", connect(tcp(), at($_[0], '127.0.0.1'))) }
sub udp { socket(my $it, AF_INET, SOCK_DGRAM, 0) or die $!; tried("udp", bind($it, at($_[0], '127.0.0.2')) && connect($it, at($_[1], '127.0.0.1'))) }
sub unix { socket(my $it, AF_UNIX, SOCK_STREAM, 0) or die $!; tried("unix", connect($it, sockaddr_un($_[0]))) }
sub reads { tried("read", sysopen(my $it, $_[0], O_RDONLY)) }
sub lists { tried("list", opendir(my $it, $_[0])) }
sub writes { tried("write", sysopen(my $it, $_[0], O_WRONLY | O_CREAT)) }
sub runs { system { $_[0] } @_; tried("run", $? == 0) }
sub moves { tried("move", rename($_[0], $_[1])) }
sub cuts { tried("cut", truncate($_[0], 0)) }
"#;

/// Where perl is on hosts that have one, with all it needs.
const HOST: &[&str] = &["/usr", "/bin", "/lib", "/lib64"];

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// What a program is started with.
struct Start<'a> {
    program: PathBuf,
    argv: Vec<OsString>,
    sandbox: &'a Sandbox,
    setup: Setup,
}

impl Start<'_> {
    fn start_by(&self, spawner: &mut Spawner) -> Result<(Pid, PipeReader), Fault> {
        let ruleset = self.sandbox.ruleset(Kernel::probe())?;
        self.start_with(spawner, ruleset.as_ref())
    }

    fn start_with(
        &self,
        spawner: &mut Spawner,
        ruleset: Option<&OwnedFd>,
    ) -> Result<(Pid, PipeReader), Fault> {
        let (read, write) = pipe().expect("a pipe");
        let (null, write) = (fd::nothing().expect("/dev/null"), OwnedFd::from(write));
        let files = Files {
            stdin: null.as_fd(),
            stdout: write.as_fd(),
            stderr: write.as_fd(),
            inherited: &[],
            limit: None,
            ruleset: ruleset.map(AsFd::as_fd),
        };
        let env = [("PATH".into(), "/usr/bin:/bin".into())];
        let Self { program: path, argv, setup, .. } = self;
        let pid = spawner.start(&Program { path, argv, env: &env, cwd: "/".as_ref(), setup }, &files)?;
        Ok((pid, read))
    }

    /// What it prints, on either of its outputs.
    fn prints(&self) -> String {
        let (pid, mut read) = self.start_by(&mut Spawner::new()).expect("it starts");
        let mut text = String::new();
        read.read_to_string(&mut text).expect("text");
        waitpid(nix::unistd::Pid::from_raw(pid), None).expect("our child");
        text
    }
}

fn perl<'a>(sandbox: &'a Sandbox, script: &str) -> Start<'a> {
    let argv = ["perl", "-e", &format!("{TRIES}{script}")].map(OsString::from).into();
    Start { program: "/usr/bin/perl".into(), argv, sandbox, setup: Setup::default() }
}

/// What came of each try, for whoever runs the tests; and if that is root, for a user, who finds the same.
fn tries(sandbox: &Sandbox, script: &str) -> Vec<(String, i32)> {
    let results = |setup| {
        let text = Start { setup, ..perl(sandbox, script) }.prints();
        let line = |line: &str| {
            let (name, errno) = line.split_once(' ').unwrap_or_else(|| panic!("{text}"));
            (name.to_owned(), errno.parse().unwrap_or_else(|_| panic!("{text}")))
        };
        text.lines().map(line).collect::<Vec<_>>()
    };
    let found = results(Setup::default());
    if is_root() {
        let ids = Some(Ids { uid: NOBODY, gid: NOBODY, groups: Some(vec![]) });
        assert_eq!(results(Setup { ids, ..Setup::default() }), found, "as a user");
    }
    found
}

/// The same with names that need no `to_owned`.
fn assert_tries(sandbox: &Sandbox, script: &str, expected: &[(&str, i32)]) {
    let expected: Vec<(String, i32)> =
        expected.iter().map(|(name, errno)| ((*name).to_owned(), *errno)).collect();
    assert_eq!(tries(sandbox, script), expected, "{script}");
}

/// A port of 127.0.0.1 that nobody else takes meanwhile. What is tried is 127.0.0.2's, which is free then: for Landlock,
/// a port is a number.
fn held() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let port = listener.local_addr().expect("it is bound").port();
    (listener, port)
}

/// A sandbox with these ports to bind.
fn binds(ports: &[u16]) -> Sandbox {
    Sandbox { bind: Some(ports.to_vec()), ..Sandbox::default() }
}

/// One with these files, and those that perl needs.
fn files(read: &[&Path], write: &[&Path]) -> Sandbox {
    let own = |paths: &[&Path]| paths.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>();
    let read = HOST.iter().map(PathBuf::from).chain(own(read)).collect();
    Sandbox { files: Some(Paths { read, by_name: vec![], write: own(write) }), ..Sandbox::default() }
}

/// True where ports can be limited. Where not, this says so.
fn has_network() -> bool {
    let has = Kernel::probe().has_network();
    if !has {
        eprintln!("not tried: {}", Kernel::probe());
    }
    has
}

#[test]
fn a_service_binds_what_it_declares_and_what_the_kernel_chooses() {
    if !has_network() {
        return;
    }
    let ((_one, declared), (_two, other)) = (held(), held());
    let script = format!("binds({declared}); binds({other}); binds(0)");
    assert_tries(&binds(&[declared]), &script, &[("bind", 0), ("bind", libc::EACCES), ("bind", 0)]);
    assert_tries(&binds(&[]), &script, &[("bind", libc::EACCES), ("bind", libc::EACCES), ("bind", 0)]);
    let open = Sandbox::default();
    assert!(open.is_open() && open.ruleset(Kernel::probe()).unwrap().is_none());
    assert_tries(&open, &script, &[("bind", 0), ("bind", 0), ("bind", 0)]);
}

#[test]
fn what_a_service_starts_is_limited_as_well() {
    if !has_network() {
        return;
    }
    let (_held, other) = held();
    let again = format!("my $t = q({TRIES}); my $s = $t . 'binds({other}); binds(0)';");
    let expected = [("bind", libc::EACCES), ("bind", 0)];
    let sandbox = binds(&[]);
    assert_tries(&sandbox, &format!("{again} if (fork) {{ wait }} else {{ eval $s; exit }}"), &expected);
    assert_tries(&sandbox, &format!("{again} system('perl', '-e', $s)"), &expected);
    assert_tries(
        &sandbox,
        &format!("{again} exec('setsid', 'sh', '-c', 'perl -e \"$0\" & wait', $s)"),
        &expected,
    );
}

#[test]
fn a_service_connects_to_what_it_names() {
    if !has_network() {
        return;
    }
    let ((_one, named), (_two, other)) = (held(), held());
    let script = format!("connects({named}); connects({other}); binds(0)");
    let limited = Sandbox { connect: Some(vec![named]), ..Sandbox::default() };
    assert_tries(&limited, &script, &[("connect", 0), ("connect", libc::EACCES), ("bind", 0)]);
    let alone = Sandbox { connect: Some(vec![]), ..Sandbox::default() };
    assert_tries(&alone, &script, &[("connect", libc::EACCES), ("connect", libc::EACCES), ("bind", 0)]);
    assert_tries(&binds(&[]), &script, &[("connect", 0), ("connect", 0), ("bind", 0)]);
}

/// Landlock has no rules for these: docs/ports.md says so.
#[test]
fn udp_and_unix_sockets_are_not_limited() {
    let temp = Temp::new();
    let path = temp.join("socket");
    let _listener = UnixListener::bind(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    let ((_one, one), (_two, other)) = (held(), held());
    let sandbox = Sandbox { connect: Some(vec![]), ..binds(&[]) };
    let sandbox = Sandbox { files: files(&[], &[]).files, ..sandbox };
    let script = format!("udp({one}, {other}); unix('{}')", path.display());
    assert_tries(&sandbox, &script, &[("udp", 0), ("unix", 0)]);
}

/// Linux before 6.14 limits sockets of MPTCP too. Where it does not, a look at the sockets shows them.
#[test]
fn mptcp_is_limited_or_seen() {
    const MPTCP: i32 = 262;
    if !has_network()
        || !fs::read_to_string("/proc/sys/net/mptcp/enabled").is_ok_and(|text| text.trim() == "1")
    {
        return;
    }
    let (_held, port) = held();
    let sandbox = binds(&[]);
    let start = perl(&sandbox, &format!("my $it = binds({port}, {MPTCP}); sleep 600"));
    let (pid, mut read) = start.start_by(&mut Spawner::new()).expect("it starts");
    let mut line = [0; 64];
    let length = read.read(&mut line).expect("it prints");
    let found: Vec<u16> = listening(&[pid]).iter().map(|at| at.number).collect();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL).expect("our child");
    waitpid(nix::unistd::Pid::from_raw(pid), None).expect("our child");
    match str::from_utf8(&line[..length]).expect("text") {
        "bind 0\n" => assert_eq!(found, [port]),
        refused => assert_eq!((refused, found), (&*format!("bind {}\n", libc::EACCES), vec![])),
    }
}
