//! What the kernel refuses to sandboxed programs, tried by real ones: as whoever runs the tests, and if that is root, as a user
//! too, both as a service of root's supervisor and with a supervisor of its own.

mod common;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{PipeReader, Read, pipe};
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use common::Temp;
use kitbag_format::port;
use kitbag_supervisor::expand::Values;
use kitbag_supervisor::ports::holder::listening;
use kitbag_supervisor::sandbox::watch::{Watch, Watched};
use kitbag_supervisor::sandbox::{Connect, Kernel, Paths, Sandbox};
use kitbag_supervisor::spawn::identity::Ids;
use kitbag_supervisor::spawn::{Program, Setup, Spawner};
use kitbag_supervisor::state::{Fault, Stage};
use kitbag_supervisor::sys::child::Files;
use kitbag_supervisor::sys::{Errno, Pid, fd};
use nix::sys::wait::waitpid;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

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
    inherited: Vec<(RawFd, BorrowedFd<'a>)>,
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
            inherited: &self.inherited,
            limit: None,
            own_pid: &[],
            ruleset: ruleset.map(AsFd::as_fd),
            mark: None,
        };
        let env = [("PATH".into(), "/usr/bin:/bin".into())];
        let Self { program: path, argv, setup, .. } = self;
        let started = spawner.start(&Program { path, argv, env: &env, cwd: "/".as_ref(), setup }, &files)?;
        Ok((started.pid, read))
    }

    /// What it prints, on either of its outputs.
    fn prints(&self) -> String {
        self.prints_with(self.sandbox.ruleset(Kernel::probe()).expect("it can be made").as_ref())
    }

    fn prints_with(&self, ruleset: Option<&OwnedFd>) -> String {
        let (pid, mut read) = self.start_with(&mut Spawner::new(), ruleset).expect("it starts");
        let mut text = String::new();
        read.read_to_string(&mut text).expect("text");
        waitpid(nix::unistd::Pid::from_raw(pid), None).expect("our child");
        text
    }
}

fn perl<'a>(sandbox: &'a Sandbox, script: &str) -> Start<'a> {
    let argv = ["perl", "-e", &format!("{TRIES}{script}")].map(OsString::from).into();
    Start { program: "/usr/bin/perl".into(), argv, sandbox, setup: Setup::default(), inherited: vec![] }
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

/// Runs one test in a process of its own.
fn assert_passes(mut test: Command) {
    let output = test.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains(" 1 passed"), "{output:?}");
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
    let found: Vec<u16> = listening(&[pid]).iter().map(|at| at.address.port()).collect();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL).expect("our child");
    waitpid(nix::unistd::Pid::from_raw(pid), None).expect("our child");
    match str::from_utf8(&line[..length]).expect("text") {
        "bind 0\n" => assert_eq!(found, [port]),
        refused => assert_eq!((refused, found), (&*format!("bind {}\n", libc::EACCES), vec![])),
    }
}

#[test]
fn files_are_the_trees_the_states_and_the_named_ones() {
    let temp = Temp::new();
    let (tree, state) = (temp.join("tree"), temp.join("state"));
    for folder in [&tree, &state, &state.join("deep"), &temp.join("other"), &temp.join("spool")] {
        fs::create_dir(folder).unwrap();
        fs::set_permissions(folder, fs::Permissions::from_mode(0o777)).unwrap();
    }
    for file in ["tree/data", "state/data", "other/data", "other/named", "spool/data"] {
        fs::write(temp.join(file), "data").unwrap();
        fs::set_permissions(temp.join(file), fs::Permissions::from_mode(0o666)).unwrap();
    }
    fs::copy("/bin/true", tree.join("program")).unwrap();
    fs::copy("/bin/true", temp.join("other/program")).unwrap();
    let missing = temp.join("missing");
    let sandbox = files(&[&tree, &temp.join("other/named"), &missing], &[&state, &temp.join("spool")]);
    let place = temp.0.display();
    let expect = |script: &str, errno: i32| {
        let name = script.split_once('(').expect("a call").0.trim_end_matches('s');
        let script = script.replace('@', &place.to_string());
        assert_tries(&sandbox, &script, &[(name, errno)]);
    };
    if !Kernel::probe().has_files() {
        return eprintln!("not tried: {}", Kernel::probe());
    }
    for script in [
        "reads('@/tree/data')",
        "lists('@/tree')",
        "runs('@/tree/program')",
        "reads('@/other/named')",
        "writes('@/state/deep/new'); unlink('@/state/deep/new')",
        "writes('@/state/data')",
        "lists('@/state')",
        "moves('@/state/data', '@/state/moved'); rename('@/state/moved', '@/state/data')",
        "writes('@/spool/data')",
        "writes('/dev/null')",
        "reads('/dev/urandom')",
        "reads('/proc/self/status')",
        "reads('/etc/passwd')",
        "reads('/dev/stdin')",
    ] {
        expect(script, 0);
    }
    for script in [
        "reads('/etc/shadow')",
        "lists('/')",
        "lists('/etc')",
        "lists('/root')",
        "lists('@')",
        "reads('@/other/data')",
        "writes('@/other/named')",
        "writes('@/tree/data')",
        "writes('@/tree/new')",
        "writes('/proc/self/comm')",
        "writes('/tmp/kitbag-test-none')",
    ] {
        expect(script, libc::EACCES);
    }
    // A pipe has no place that a rule could name. It belongs to whoever made it.
    assert_eq!(perl(&sandbox, "writes('/dev/stdout')").prints(), "write 0\n");
    // What the child could not execute, perl's system() says by its exit status.
    expect("runs('@/other/program')", libc::EACCES);
    assert_eq!(fs::read(temp.join("tree/data")).unwrap(), b"data");
    // Linux 5.19 moves between folders where both may be changed; Linux 6.2 knows truncation.
    let abi = kitbag_supervisor::sys::landlock::abi().expect("it has files");
    let between = "moves('@/state/data', '@/state/deep/data'); rename('@/state/deep/data', '@/state/data')";
    expect(between, if abi >= 2 { 0 } else { libc::EXDEV });
    expect("moves('@/state/data', '@/other/data')", if abi >= 2 { libc::EACCES } else { libc::EXDEV });
    expect("cuts('@/state/data')", 0);
    expect("cuts('@/tree/data')", if abi >= 3 { libc::EACCES } else { 0 });
}

/// What replaces a named file by rename(2) is another one. What is in a named folder is all of it.
#[test]
fn a_rule_is_of_the_file_that_was_there() {
    if !Kernel::probe().has_files() {
        return;
    }
    let temp = Temp::new();
    for path in ["alone", "folder/inside"] {
        fs::create_dir_all(temp.join("folder")).unwrap();
        fs::write(temp.join(path), "first").unwrap();
    }
    let sandbox = files(&[&temp.join("alone"), &temp.join("folder")], &[]);
    let ruleset = sandbox.ruleset(Kernel::probe()).expect("it can be made");
    let place = temp.0.display();
    let start = perl(&sandbox, &format!("reads('{place}/alone'); reads('{place}/folder/inside')"));
    assert_eq!(start.prints_with(ruleset.as_ref()), "read 0\nread 0\n");
    for path in ["alone", "folder/inside"] {
        fs::write(temp.join("new"), "second").unwrap();
        fs::rename(temp.join("new"), temp.join(path)).unwrap();
    }
    assert_eq!(start.prints_with(ruleset.as_ref()), format!("read {}\nread 0\n", libc::EACCES));
    assert_eq!(start.prints(), "read 0\nread 0\n", "the next start is of what is there then");
}

/// A program in the closure of another version's tree is run by its name, and that tree is not looked through.
#[test]
fn what_is_known_by_name_is_read_and_not_listed() {
    if !Kernel::probe().has_files() {
        return;
    }
    let temp = Temp::new();
    fs::create_dir_all(temp.join("trees/other")).unwrap();
    fs::copy("/bin/true", temp.join("trees/other/program")).unwrap();
    let mut sandbox = files(&[], &[]);
    sandbox.files.as_mut().unwrap().by_name.push(temp.join("trees"));
    let place = temp.0.display();
    let script = format!(
        "reads('{place}/trees/other/program'); runs('{place}/trees/other/program'); lists('{place}/trees'); \
         lists('{place}/trees/other'); writes('{place}/trees/new')"
    );
    let refused = libc::EACCES;
    let expected = [("read", 0), ("run", 0), ("list", refused), ("list", refused), ("write", refused)];
    assert_tries(&sandbox, &script, &expected);
}

/// Everything above, by a supervisor that is a user's.
#[test]
#[ignore = "as a user, in a process of its own"]
fn as_a_user() {
    assert!(!is_root());
    a_service_binds_what_it_declares_and_what_the_kernel_chooses();
    what_a_service_starts_is_limited_as_well();
    a_service_connects_to_what_it_names();
    udp_and_unix_sockets_are_not_limited();
    mptcp_is_limited_or_seen();
    files_are_the_trees_the_states_and_the_named_ones();
    a_rule_is_of_the_file_that_was_there();
    what_is_known_by_name_is_read_and_not_listed();
    only_who_must_gives_up_privileges();
}

#[test]
fn a_users_supervisor_limits_its_services_too() {
    let temp = Temp::new();
    let mut command = common::child("as_a_user", &[]);
    if is_root() {
        // From a place that everybody can read.
        let copy = temp.join("test");
        fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
        let arguments: Vec<OsString> = command.get_args().map(OsString::from).collect();
        command = Command::new(&copy);
        command.args(arguments).uid(NOBODY).gid(NOBODY).current_dir("/").env_remove("TMPDIR");
    }
    assert_passes(command);
}

/// CAP_SYS_ADMIN restricts without no_new_privs, so that programs like sudo go on working in root's services.
#[test]
fn only_who_must_gives_up_privileges() {
    if !Kernel::probe().has_files() {
        return;
    }
    const SYS_ADMIN: u32 = 21;
    let field = |text: &str, name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
        line.unwrap_or_else(|| panic!("no {name}: {text}")).to_owned()
    };
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let capable = u64::from_str_radix(&field(&own, "CapEff"), 16).unwrap() >> SYS_ADMIN & 1 == 1;
    let before = field(&own, "NoNewPrivs") == "1";
    let sandbox = files(&[], &[]);
    let text = perl(&sandbox, "exec('cat', '/proc/self/status')").prints();
    assert_eq!(field(&text, "NoNewPrivs") == "1", before || !capable, "{text}");
    if is_root() && capable {
        let ids = Some(Ids { uid: NOBODY, gid: NOBODY, groups: Some(vec![]) });
        let start = perl(&sandbox, "exec('cat', '/proc/self/status')");
        let text = Start { setup: Setup { ids, ..Setup::default() }, ..start }.prints();
        assert_eq!(field(&text, "NoNewPrivs") == "1", before, "{text}");
        assert!(field(&text, "Uid").starts_with("65534\t65534"), "{text}");
    }
}

#[test]
fn who_starts_a_sandboxed_program_is_as_free_as_before() {
    if !has_network() {
        return;
    }
    let sandbox = Sandbox { files: files(&[], &[]).files, ..binds(&[]) };
    let own = || {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        status.lines().find(|line| line.starts_with("NoNewPrivs")).map(str::to_owned)
    };
    let before = own();
    let (_held, port) = held();
    let mut spawner = Spawner::new();
    let (pid, _read) = perl(&sandbox, "sleep 600").start_by(&mut spawner).expect("it starts");
    let free = Sandbox::default();
    let script = format!("binds({port}); lists('/etc')");
    assert_tries(&free, &script, &[("bind", 0), ("list", 0)]);
    drop(TcpListener::bind(("127.0.0.3", port)).expect("a port that the service may not have"));
    fs::read_dir("/etc").expect("a folder that it may not list");
    assert_eq!(own(), before);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL).expect("our child");
    waitpid(nix::unistd::Pid::from_raw(pid), None).expect("our child");
}

/// However the ruleset comes to the child: through the slots that are kept for launches, through a copy of the table, and
/// from the number that another descriptor has to get.
#[test]
fn a_program_inherits_no_ruleset() {
    let Some(ruleset) = binds(&[]).ruleset(Kernel::probe()).expect("it can be made") else { return };
    let (open, null) = (Sandbox::default(), fd::nothing().expect("/dev/null"));
    let (_held, port) = held();
    for count in [0, 1, 9] {
        let numbers: Vec<RawFd> = (ruleset.as_raw_fd()..).take(count).collect();
        let inherited: Vec<_> = numbers.iter().map(|number| (*number, null.as_fd())).collect();
        let list = "exec('sh', '-c', 'ls /proc/$$/fd; :')";
        let start = Start { inherited, ..perl(&open, &format!("binds({port}); {list}")) };
        let text = start.prints_with(Some(&ruleset));
        let mut found: Vec<&str> = text.lines().collect();
        assert_eq!(found.remove(0), format!("bind {}", libc::EACCES), "{text}");
        let mut found: Vec<RawFd> = found.iter().map(|line| line.parse().expect(&text)).collect();
        found.sort_unstable();
        assert_eq!(found, (0..=2).chain(numbers).collect::<Vec<_>>(), "{count}");
    }
}

#[test]
fn a_sandbox_that_the_kernel_refuses_is_a_failed_stage() {
    let sandbox = Sandbox::default();
    let start = perl(&sandbox, "");
    let null = fd::nothing().expect("/dev/null");
    let fault = start.start_with(&mut Spawner::new(), Some(&null)).map(drop).expect_err("it is no ruleset");
    assert_eq!(fault.stage, Stage::Sandbox);
    if Kernel::probe().has_files() {
        assert_eq!(fault.errno, libc::EBADFD);
    }
}

/// Run by the test below: it takes all descriptors that there are.
#[test]
#[ignore = "in a process of its own"]
fn without_descriptors() {
    let (sandbox, kernel) = (files(&[], &[]), Kernel::probe());
    let mut all: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    let out = Err(Fault { stage: Stage::Sandbox, errno: libc::EMFILE });
    assert_eq!(sandbox.ruleset(kernel).map(drop), out, "no ruleset can be made");
    all.pop();
    assert_eq!(sandbox.ruleset(kernel).map(drop), out, "no path can be opened for it");
    all.pop();
    // One for the ruleset, and one for a path at a time: nothing stays open.
    for _ in 0..3 {
        assert_eq!(sandbox.ruleset(kernel).map(|ruleset| ruleset.is_some()), Ok(true));
    }
}

#[test]
fn a_ruleset_that_cannot_be_made_is_a_failed_stage() {
    if Kernel::probe().has_files() {
        let child = common::child("without_descriptors", &[]);
        let mut limited = Command::new("/bin/sh");
        limited
            .args(["-c", "ulimit -n 64; exec \"$0\" \"$@\""])
            .arg(child.get_program())
            .args(child.get_args());
        assert_passes(limited);
    }
}

/// Run by the test below: system calls of Landlock answer as those of an old kernel do.
#[test]
#[ignore = "in a process of its own"]
fn without_landlock() {
    let calls =
        [libc::SYS_landlock_create_ruleset, libc::SYS_landlock_add_rule, libc::SYS_landlock_restrict_self];
    let filter = SeccompFilter::new(
        calls.map(|call| (call, vec![])).into(),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::ENOSYS.cast_unsigned()),
        std::env::consts::ARCH.try_into().expect("a known architecture"),
    );
    let program: BpfProgram = filter.and_then(TryInto::try_into).expect("a filter");
    let newer = Kernel::probe();
    seccompiler::apply_filter(&program).expect("seccomp");
    let kernel = Kernel::probe();
    assert_eq!(kernel, Kernel::of(Err(Errno::ENOSYS)));
    let (_held, port) = held();
    let sandbox = Sandbox { files: files(&[], &[]).files, connect: Some(vec![]), ..binds(&[]) };
    let text = kernel.misses(&sandbox).expect("all of it");
    let expected = "this kernel has no Landlock (Linux 6.7): binding undeclared ports is reported, not refused; \
                    `connect` is not limited; files are not limited";
    assert_eq!(text, expected);
    // Also where somebody believes that there is more.
    for kernel in [kernel, newer] {
        assert!(sandbox.ruleset(kernel).expect("no error").is_none());
    }
    let start = perl(&sandbox, &format!("my $it = binds({port}); sleep 600"));
    let (pid, mut read) = start.start_by(&mut Spawner::new()).expect("it starts");
    let mut line = [0; 64];
    let length = read.read(&mut line).expect("it prints");
    assert_eq!(&line[..length], b"bind 0\n");
    let found = Watch::default().look(&[Watched { unit: "web", pids: &[pid], declared: &[] }], &(0..=0));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL).expect("our child");
    waitpid(nix::unistd::Pid::from_raw(pid), None).expect("our child");
    let text: Vec<String> = found.iter().map(ToString::to_string).collect();
    let expected = format!("web (pid {pid}) listens on 127.0.0.2:{port}, a port that it does not declare: ");
    assert!(text.len() == 1 && text[0].starts_with(&expected), "{text:?}");
}

#[test]
fn without_landlock_services_run_and_are_watched() {
    assert_passes(common::child("without_landlock", &[]));
}

#[test]
fn older_kernels_keep_what_they_know() {
    let all = Sandbox { files: files(&[], &[]).files, connect: Some(vec![]), ..binds(&[]) };
    let (ports, files) = (binds(&[]), files(&[], &[]));
    let of = |abi| Kernel::of(Ok(abi));
    let no_ports = "this kernel's Landlock knows files, and no ports (Linux 6.7): ";
    let reported = "binding undeclared ports is reported, not refused";
    assert_eq!(of(3).misses(&all), Some(format!("{no_ports}{reported}; `connect` is not limited")));
    assert_eq!(of(3).misses(&ports), Some(format!("{no_ports}{reported}")));
    assert_eq!((of(3).misses(&files), of(4).misses(&all), of(99).misses(&all)), (None, None, None));
    let moved = of(1).misses(&files).expect("no moves between folders");
    assert!(moved.ends_with("no file can be moved to another folder (Linux 5.19 can)"), "{moved}");
    assert_eq!(Kernel::of(Err(Errno::ENOSYS)).misses(&Sandbox::default()), None);
    for errno in [Errno::EOPNOTSUPP, Errno::EPERM, Errno::EINVAL] {
        let text = Kernel::of(Err(errno)).misses(&ports).expect("all of it");
        assert!(text.ends_with(&format!(": {reported}")) && text.contains("Landlock"), "{text}");
    }
    assert!(ports.ruleset(of(3)).expect("no error").is_none(), "ports are not known");
    // A kernel of now as each of the older ones: rules for files that it did not know are left out.
    if let Ok(newest) = kitbag_supervisor::sys::landlock::abi() {
        let (_held, port) = held();
        for abi in 1..=newest {
            let ruleset = all.ruleset(of(abi)).expect("no error").expect("files at least");
            let text = perl(&all, &format!("binds({port}); lists('/etc')")).prints_with(Some(&ruleset));
            let bound = if abi < 4 { 0 } else { libc::EACCES };
            assert_eq!(text, format!("bind {bound}\nlist {}\n", libc::EACCES), "{abi}");
        }
    }
}

#[test]
fn what_a_manifest_names_becomes_paths_of_this_host() {
    let app = common::App::new("app", "1");
    let values =
        Values { tree: "/t".as_ref(), state: Some("/s".as_ref()), manifest: &app.manifest, temporary: None };
    let resolve =
        |files: &port::Files| Paths::resolve(files, &values, Some("/store/trees".as_ref())).expect("paths");
    let paths = |all: &[&str]| all.iter().map(PathBuf::from).collect::<Vec<_>>();
    let mut asked =
        port::Files { read: vec!["/etc/${name}.conf".into()], write: vec!["/var/${name}".into()] };
    let found = resolve(&asked);
    let expected = Paths {
        read: paths(&["/etc/app.conf", "/t"]),
        by_name: paths(&["/store/trees"]),
        write: paths(&["/var/app", "/s"]),
    };
    assert_eq!(found, expected);
    assert!(found.needs_temporary());
    asked.write.push("/tmp".to_owned());
    assert!(!resolve(&asked).needs_temporary());
    asked.read.extend(["/s/conf".to_owned(), "/var/app/x".to_owned(), "/tmp2".to_owned()]);
    asked.write.extend(["${state}/data".to_owned(), "/tmp/x/y".to_owned()]);
    let found = resolve(&asked);
    assert_eq!(
        (found.read, found.write),
        (paths(&["/etc/app.conf", "/tmp2", "/t"]), paths(&["/var/app", "/tmp", "/s"]))
    );
    asked.read.push("${env.KITBAG_TESTS_NOT_SET}".to_owned());
    Paths::resolve(&asked, &values, None).expect_err("there is no such variable");
    assert!(Sandbox::default().is_open() && !files(&[], &[]).is_open());
}

#[test]
fn what_a_service_may_connect_to_is_a_number_or_a_port_by_name() {
    assert_eq!(Connect::parse("443"), Some(Connect::Number(443)));
    let cache = Connect::parse("redis/cache.main").expect("a port");
    assert_eq!(cache.reference().expect("by name").to_string(), "ports.redis/cache.main");
    for wrong in ["", "65536", "-1", "cache", "redis/cache"] {
        assert_eq!(Connect::parse(wrong), None, "{wrong}");
    }
}

/// `cargo test --release -p kitbag-supervisor --test sandbox -- --ignored --nocapture launches`
#[test]
#[ignore = "a measurement"]
fn what_launches_cost() {
    let port_of = |number: u16| binds(&[8000 + number, 9000]);
    let kinds = [
        ("none", Sandbox::default()),
        ("ports", port_of(1)),
        ("ports and files", Sandbox { files: files(&[], &[]).files, ..port_of(2) }),
    ];
    let mut spawner = Spawner::new();
    for (name, sandbox) in kinds.iter().chain(&kinds) {
        let argv = vec!["true".into()];
        let start = Start { program: "/bin/true".into(), argv, ..perl(sandbox, "") };
        let began = Instant::now();
        for _ in 0..1000 {
            let (pid, _read) = start.start_by(&mut spawner).expect("it starts");
            waitpid(nix::unistd::Pid::from_raw(pid), None).expect("our child");
        }
        let all = began.elapsed() / 1000;
        let began = Instant::now();
        (0..1000).for_each(|_| drop(sandbox.ruleset(Kernel::probe()).expect("it can be made")));
        println!("{name}: {all:?} a launch, {:?} of it for the ruleset", began.elapsed() / 1000);
    }
    let began = Instant::now();
    (0..1000).for_each(|_| drop(listening(&[std::process::id().cast_signed()])));
    println!("a look at one process: {:?}", began.elapsed() / 1000);
}
