//! Launches of real processes: what each stage says when it fails, and what a program finds where all went well.
//! What only root can do is tested as root; what a user cannot, as a user.

mod common;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::io::{PipeReader, Read, pipe};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use common::Temp;
use kitbag_format::service::Process;
use kitbag_supervisor::expand::Values;
use kitbag_supervisor::spawn::cgroup::{Cgroups, Limits, Unavailable};
use kitbag_supervisor::spawn::environment::{EnvFiles, environment, open_file, put};
use kitbag_supervisor::spawn::identity::{Accounts, Ids};
use kitbag_supervisor::spawn::limits::{self, Limit};
use kitbag_supervisor::spawn::{Program, Setup, Spawner};
use kitbag_supervisor::state::{Fault, Stage};
use kitbag_supervisor::sys::child::Files;
use kitbag_supervisor::sys::{Pid, fd, wait};
use nix::fcntl::OFlag;
use nix::sys::wait::{WaitStatus, waitpid};

/// The user that stands for any.
const NOBODY: Ids = Ids { uid: 65534, gid: 65534, groups: None };

/// A program to start, as tests change it.
struct Start<'a> {
    program: PathBuf,
    argv: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    cwd: PathBuf,
    setup: Setup,
    inherited: Vec<(RawFd, BorrowedFd<'a>)>,
    own_pid: &'a [&'a str],
}

fn sh<'a>(script: &str) -> Start<'a> {
    Start {
        program: "/bin/sh".into(),
        argv: ["sh", "-c", script].map(OsString::from).into(),
        env: vec![("PATH".into(), "/usr/bin:/bin".into())],
        cwd: "/".into(),
        setup: Setup::default(),
        inherited: vec![],
        own_pid: &[],
    }
}

impl Start<'_> {
    fn start(&self, spawner: &mut Spawner) -> Result<(Pid, PipeReader), Fault> {
        let (read, write) = pipe().expect("a pipe");
        let (null, write) = (fd::nothing().expect("/dev/null"), OwnedFd::from(write));
        let Self { program: path, argv, env, cwd, setup, inherited, own_pid } = self;
        let files = Files {
            stdin: null.as_fd(),
            stdout: write.as_fd(),
            stderr: write.as_fd(),
            inherited,
            limit: None,
            own_pid,
            ruleset: None,
            mark: None,
        };
        let pid = spawner.start(&Program { path, argv, env, cwd, setup }, &files)?.pid;
        Ok((pid, read))
    }

    /// What it prints, on either of its outputs.
    fn prints(&self) -> String {
        let (pid, mut read) = self.start(&mut Spawner::new()).expect("it starts");
        let mut text = String::new();
        read.read_to_string(&mut text).expect("text");
        waitpid(nix::unistd::Pid::from_raw(pid), None).expect("our child");
        text
    }

    fn fails(&self) -> (Stage, i32) {
        let fault = self.start(&mut Spawner::new()).map(|(pid, _)| pid).expect_err("a stage fails");
        (fault.stage, fault.errno)
    }
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// A field of `/proc/PID/status`.
fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name} in {status}")).trim()
}

#[test]
fn a_variable_can_hold_the_process_id_of_its_program() {
    let mut start = sh("env; exec echo $$ $LISTEN_PID $WATCHDOG_PID");
    start.own_pid = &["LISTEN_PID", "WATCHDOG_PID"];
    // What the environment says under these names is another process's; one whose name is longer stays.
    for (name, value) in [("LISTEN_PID", "1"), ("LISTEN_PIDS", "7"), ("WATCHDOG_PID", "")] {
        start.env.push((name.into(), value.into()));
    }
    let printed = start.prints();
    let (variables, ids) = printed.trim_end().rsplit_once('\n').expect("lines");
    let ids: Vec<Pid> = ids.split(' ').map(|id| id.parse().expect(&printed)).collect();
    assert!(matches!(ids[..], [a, b, c] if a == b && b == c), "{printed}");
    let named = |name: &str| variables.lines().filter(|line| line.starts_with(name)).count();
    assert_eq!(
        (named("LISTEN_PID="), named("LISTEN_PIDS=7"), named("WATCHDOG_PID=")),
        (1, 1, 1),
        "{printed}"
    );
}

#[test]
fn each_stage_says_what_failed() {
    let temp = Temp::new();
    let file = |name: &str, mode| {
        fs::write(temp.join(name), "\u{7f}ELF of another machine").unwrap();
        fs::set_permissions(temp.join(name), Permissions::from_mode(mode)).unwrap();
        Start { program: temp.join(name), ..sh("") }
    };
    assert_eq!(sh("\0").fails(), (Stage::Arguments, libc::EINVAL));
    assert_eq!(Start { cwd: "/\0none".into(), ..sh("") }.fails(), (Stage::Arguments, libc::EINVAL));
    assert_eq!(Start { program: "/none".into(), ..sh("") }.fails(), (Stage::Exec, libc::ENOENT));
    assert_eq!(file("text", 0o644).fails(), (Stage::Exec, libc::EACCES));
    assert_eq!(file("foreign", 0o755).fails(), (Stage::Exec, libc::ENOEXEC));
    assert_eq!(Start { cwd: "/none".into(), ..sh("") }.fails(), (Stage::WorkingDirectory, libc::ENOENT));
    assert_eq!(Start { cwd: "/bin/sh".into(), ..sh("") }.fails(), (Stage::WorkingDirectory, libc::ENOTDIR));
    let with = |setup| Start { setup, ..sh("") };
    let cgroup = Some(c"/none/cgroup.procs".to_owned());
    assert_eq!(with(Setup { cgroup, ..Setup::default() }).fails(), (Stage::Cgroup, libc::ENOENT));
    let oom_score = Some(2000);
    assert_eq!(with(Setup { oom_score, ..Setup::default() }).fails(), (Stage::OomScore, libc::EINVAL));
    let limits = vec![Limit { resource: libc::RLIMIT_CPU, soft: 2, hard: 1 }];
    assert_eq!(with(Setup { limits, ..Setup::default() }).fails(), (Stage::Limits, libc::EINVAL));
    let null = fd::nothing().unwrap();
    let inherited = vec![(RawFd::MAX, null.as_fd())];
    assert_eq!(Start { inherited, ..sh("") }.fails().0, Stage::StandardFiles);
}

/// Run as a user by the test below.
#[test]
#[ignore = "as a user, in a process of its own"]
fn as_a_user() {
    let with = |setup| Start { setup, ..sh("") };
    let other = Ids { uid: 0, gid: 0, groups: None };
    let all = Ids { groups: Some(vec![0]), ..other.clone() };
    let own = Ids { gid: nix::unistd::getegid().as_raw(), ..other.clone() };
    assert_eq!(with(Setup { ids: Some(all), ..Setup::default() }).fails(), (Stage::Groups, libc::EPERM));
    assert_eq!(with(Setup { ids: Some(other), ..Setup::default() }).fails(), (Stage::Group, libc::EPERM));
    assert_eq!(with(Setup { ids: Some(own), ..Setup::default() }).fails(), (Stage::User, libc::EPERM));
    assert_eq!(with(Setup { nice: Some(-5), ..Setup::default() }).fails(), (Stage::Nice, libc::EACCES));
    let oom_score = Some(-1000);
    assert_eq!(with(Setup { oom_score, ..Setup::default() }).fails(), (Stage::OomScore, libc::EACCES));
    let wanted = BTreeMap::from([("core".to_owned(), None), ("nofile".to_owned(), Some(1 << 40))]);
    let error = limits::resolve(&wanted).expect_err("above the hard limit").to_string();
    assert!(error.starts_with("limit nofile = 1099511627776 is above the hard limit"), "{error}");
    // What failed has left nothing behind.
    assert_eq!(wait::look(), wait::Children::None);
}

#[test]
fn a_user_is_told_what_only_root_can_do() {
    let mut command = common::child("as_a_user", &[]);
    if is_root() {
        // From a place that everybody can read.
        let temp = Temp::new();
        let copy = temp.join("test");
        fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
        let arguments: Vec<OsString> = command.get_args().map(OsString::from).collect();
        command = std::process::Command::new(&copy);
        command.args(arguments).uid(NOBODY.uid).gid(NOBODY.gid).current_dir("/");
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
    } else {
        assert!(command.output().unwrap().status.success());
    }
}

#[test]
fn a_program_starts_clean() {
    let text = sh("cat /proc/self/status; ps -o sid= -p $$; echo $$; env").prints();
    assert_eq!(field(&text, "SigBlk"), "0000000000000000");
    assert_eq!(field(&text, "SigIgn"), "0000000000000000", "the test harness ignores SIGPIPE");
    let rest: Vec<&str> = text.lines().rev().map(str::trim).collect();
    let pid = rest.iter().position(|line| line.parse::<u32>().is_ok()).expect("$$");
    assert_eq!(rest[pid], rest[pid + 1], "a session of its own");
    assert!(!text.contains("HOME="), "{text}");
}

#[test]
fn limits_priority_umask_and_oom_score_are_what_was_asked_for() {
    let process = Process {
        umask: Some(0o027),
        nice: Some(7),
        oom_score: Some(300),
        limits: BTreeMap::from([
            ("nofile".into(), Some(123)),
            ("core".into(), Some(0)),
            ("fsize".into(), Some(4096)),
        ]),
        ..Process::default()
    };
    let setup = resolve(&process).0;
    let script = "umask; cat /proc/self/oom_score_adj; cat /proc/self/autogroup; ulimit -n; ulimit -Hn; ulimit -f; nice";
    let text = Start { setup, ..sh(script) }.prints();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..2], ["0027", "300"], "{text}");
    assert_eq!(lines[lines.len() - 4..], ["123", "123", "8", "7"], "{text}");
    // Where there are autogroups; a user may change one each 0.1 s, and tests run beside each other.
    if is_root() && lines.len() == 7 {
        assert!(lines[2].ends_with(" nice 7"), "{text}");
    }
}

/// What a manifest's process is on this host.
fn resolve(process: &Process) -> (Setup, Option<kitbag_supervisor::spawn::identity::Identity>) {
    let app = common::App::new("app", "1");
    let values = Values { tree: "/".as_ref(), state: None, manifest: &app.manifest, temporary: None };
    Setup::resolve(process, &values, &Accounts::of_host()).expect("this host has them")
}

#[test]
fn a_user_of_this_host_has_its_groups_and_its_home() {
    if !is_root() {
        return;
    }
    let accounts = Accounts::of_host();
    assert!(accounts.identity(Some("nobody"), None, None).is_ok(), "this host has the user nobody");
    let process = Process {
        user: Some("nobody".into()),
        groups: Some(vec!["12".into(), "34".into()]),
        pass_env: Some(vec!["PATH".into()]),
        ..Process::default()
    };
    let (setup, identity) = resolve(&process);
    let Ids { uid, gid, .. } = setup.ids.clone().expect("another user");
    let app = common::App::new("app", "1");
    let values = Values { tree: "/".as_ref(), state: None, manifest: &app.manifest, temporary: None };
    let command = kitbag_format::manifest::Command::default();
    let env = environment(&command, &process, identity.as_ref(), &values).expect("no env files");
    let text = Start { setup, env, ..sh("cat /proc/self/status; env") }.prints();
    assert_eq!(field(&text, "Uid"), format!("{uid}\t{uid}\t{uid}\t{uid}"));
    assert_eq!(field(&text, "Gid"), format!("{gid}\t{gid}\t{gid}\t{gid}"));
    assert_eq!(field(&text, "Groups"), "12 34");
    assert_eq!(field(&text, "CapEff"), "0000000000000000");
    assert!(text.contains("\nUSER=nobody\n") && text.contains("\nLOGNAME=nobody\n"), "{text}");
    let names = text.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name);
    let names: std::collections::BTreeSet<&str> =
        names.filter(|name| *name != "PWD" && *name != "_").collect();
    assert_eq!(names, ["HOME", "LOGNAME", "PATH", "SHELL", "USER"].into());
}

#[test]
fn of_the_same_variable_the_later_source_wins() {
    let temp = Temp::new();
    fs::write(temp.join("one"), "A=one\nB=one\nC=one\nHOME=one\n").unwrap();
    fs::write(temp.join("two"), "B=two\nC=two\n").unwrap();
    let app = common::App::new("app", "1");
    let values = Values { tree: &temp.0, state: None, manifest: &app.manifest, temporary: None };
    let process = Process {
        pass_env: Some(vec!["HOME".into(), "PATH".into()]),
        env_files: ["one", "two", "three?"].map(|name| format!("${{tree}}/{name}")).into(),
        ..Process::default()
    };
    let command = kitbag_format::manifest::Command {
        env: BTreeMap::from([("C".into(), "${name}".into())]),
        ..Default::default()
    };
    let files = EnvFiles::of(&command, &process, &values).expect("no placeholder").expect("files");
    let mut env = environment(&command, &process, None, &values).expect("no placeholder");
    put(&mut env, &files.read(&|path| open_file(path, OFlag::empty())).expect("the files are right"));
    env.sort();
    let found: Vec<String> =
        env.iter().map(|(name, value)| format!("{}={}", name.display(), value.display())).collect();
    let path = std::env::var("PATH").expect("tests have it");
    assert_eq!(found, ["A=one", "B=two", "C=app", "HOME=one", &format!("PATH={path}")]);
    fs::write(temp.join("two"), "B=two\nC\n").unwrap();
    let error = files.read(&|path| open_file(path, OFlag::empty())).expect_err("line 2 is wrong").to_string();
    let expected = format!("{}/two:2: there is no `=`", temp.0.display());
    assert!(error.starts_with(&expected), "{error}");
}

#[test]
fn the_working_directory_is_entered_as_the_user() {
    if !is_root() {
        return;
    }
    let temp = Temp::new();
    fs::set_permissions(&temp.0, Permissions::from_mode(0o700)).unwrap();
    let setup = Setup { ids: Some(NOBODY), ..Setup::default() };
    let start = Start { cwd: temp.0.clone(), setup, ..sh("") };
    assert_eq!(start.fails(), (Stage::WorkingDirectory, libc::EACCES));
}

#[test]
fn a_program_of_another_user_hears_of_its_supervisors_death() {
    if !is_root() {
        return;
    }
    let setup = Setup { ids: Some(NOBODY), ..Setup::default() };
    // The signal is sent when the thread that started it ends (prctl(2)).
    let start = Start { setup, ..sh("exec sleep 600") };
    let (pid, _read) = std::thread::scope(|scope| {
        scope.spawn(|| start.start(&mut Spawner::new()).expect("it starts")).join().unwrap()
    });
    let status = waitpid(nix::unistd::Pid::from_raw(pid), None).expect("our child");
    assert!(matches!(status, WaitStatus::Signaled(_, nix::sys::signal::SIGTERM, _)), "{status:?}");
}

#[test]
fn a_program_gets_the_descriptors_it_was_promised_and_no_other() {
    let pipes: Vec<(PipeReader, OwnedFd)> =
        (0..9).map(|_| pipe().map(|(read, write)| (read, write.into())).expect("a pipe")).collect();
    // With three, they go through the slots; with nine, the child copies the table.
    for count in [0, 3, 9] {
        // Each at the number that another one has here: whoever goes first has to make room.
        let numbers = pipes.iter().take(count).map(|(_, write)| write.as_raw_fd()).cycle().skip(1);
        let inherited: Vec<_> = numbers.zip(pipes[..count].iter().map(|(_, write)| write.as_fd())).collect();
        let echo: String =
            inherited.iter().map(|(number, _)| format!("echo {number} >/proc/self/fd/{number}\n")).collect();
        let wanted: std::collections::BTreeSet<RawFd> =
            inherited.iter().map(|(number, _)| *number).chain(0..=2).collect();
        let text = Start { inherited: inherited.clone(), ..sh(&format!("ls /proc/$$/fd; {echo}")) }.prints();
        let found: std::collections::BTreeSet<RawFd> =
            text.lines().map(|line| line.parse().expect(&text)).collect();
        assert_eq!(found, wanted);
        for ((mut read, _), (number, _)) in pipes.iter().map(|(read, write)| (read, write)).zip(&inherited) {
            let mut bytes = [0; 8];
            let length = read.read(&mut bytes).expect("it was written to");
            assert_eq!(str::from_utf8(&bytes[..length]), Ok(&format!("{number}\n")[..]));
        }
    }
}

#[test]
fn a_pipe_that_its_program_closes_is_at_its_end_here() {
    let mut spawner = Spawner::new();
    let (mut read, write) = pipe().expect("a pipe");
    let start =
        Start { inherited: vec![(7, write.as_fd())], ..sh("echo ready >&7; exec 7>&-; exec sleep 600") };
    let (pid, _output) = start.start(&mut spawner).expect("it starts");
    drop(start);
    drop(write);
    let mut text = String::new();
    read.read_to_string(&mut text).expect("text");
    assert_eq!(text, "ready\n");
    let pid = nix::unistd::Pid::from_raw(pid);
    nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL).expect("our child");
    waitpid(pid, None).expect("our child");
}

/// A folder that looks like a cgroup.
fn fake_cgroup(temp: &Temp, controllers: &str) -> PathBuf {
    let own = temp.join("cgroup");
    fs::create_dir_all(&own).unwrap();
    fs::write(own.join("cgroup.controllers"), controllers).unwrap();
    own
}

#[test]
fn a_units_cgroup_has_its_limits() {
    let temp = Temp::new();
    let own = fake_cgroup(&temp, "cpu memory pids\n");
    let limits = Limits { memory: Some(64 << 20), pids: Some(20) };
    let cgroups = Cgroups::enter_at(own.clone(), 77, limits).expect("it is ready");
    let written = |path: &str| fs::read_to_string(own.join(path)).unwrap();
    assert_eq!(written("kitbag-77/cgroup.procs"), "77");
    assert_eq!(written("cgroup.subtree_control"), "+memory +pids");
    let unit = cgroups.unit("web.2", limits).expect("a unit");
    assert_eq!(written("kitbag-77.web.2/memory.max"), "67108864");
    assert_eq!(written("kitbag-77.web.2/pids.max"), "20");
    let events = |text| fs::write(own.join("kitbag-77.web.2/memory.events"), text).unwrap();
    events("low 0\noom 2\noom_kill 1\noom_group_kill 0\n");
    assert_eq!(unit.short_of_memory(), [2, 1]);
    assert!(unit.has_reached_memory([1, 0]));
    assert!(!unit.has_reached_memory([2, 0]), "it was the machine's memory");
    assert!(!unit.has_reached_memory([1, 1]), "nothing was killed");
    let procs = unit.procs().expect("a path");
    assert_eq!(procs.to_str().unwrap(), own.join("kitbag-77.web.2/cgroup.procs").to_str().unwrap());
}

#[test]
fn a_controller_that_is_not_delegated_is_named() {
    let temp = Temp::new();
    let own = fake_cgroup(&temp, "cpu pids\n");
    let limits = Limits { memory: Some(1 << 20), pids: None };
    let error = Cgroups::enter_at(own.clone(), 77, limits).expect_err("there is no memory controller");
    assert!(matches!(&error, Unavailable::Controller("memory", _)), "{error:?}");
    assert!(!own.join("kitbag-77").exists());
}

#[test]
fn limits_whose_controller_is_there_hold_without_the_others() {
    let temp = Temp::new();
    let own = fake_cgroup(&temp, "cpu pids\n");
    let limits = Limits { memory: Some(1 << 20), pids: Some(3) };
    let cgroups = Cgroups::enter_at(own.clone(), 77, limits).expect("it is ready");
    let missing = cgroups.missing().expect("memory");
    assert!(matches!(&missing, Unavailable::Controller("memory", _)), "{missing:?}");
    assert_eq!(fs::read_to_string(own.join("cgroup.subtree_control")).unwrap(), "+pids");
    let unit = cgroups.unit("web", limits).expect("a unit");
    assert_eq!(fs::read_to_string(unit.path().join("pids.max")).unwrap(), "3");
    assert!(!unit.path().join("memory.max").exists());
}

/// The real thing, as far as this machine has it: joining before exec, killing all at once, removing.
#[test]
fn a_real_cgroup_holds_and_ends_what_joined_it() {
    let mounts = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(PathBuf::from);
    let Some(mount) = mounts.into_iter().find(|mount| mount.join("cgroup.controllers").exists()) else {
        return;
    };
    let own = mount.join(format!("kitbag-test-{}", std::process::id()));
    if fs::create_dir(&own).is_err() {
        return;
    }
    // Somebody else takes the supervisor's part: this process has other tests in it.
    let (stand_in, _read) = sh("exec sleep 600").start(&mut Spawner::new()).expect("it starts");
    let cgroups = Cgroups::enter_at(own.clone(), stand_in, Limits::default()).expect("it is ours");
    let unit = cgroups.unit("web", Limits::default()).expect("it is ours");
    let setup = Setup { cgroup: unit.procs(), ..Setup::default() };
    let start = Start { setup, ..sh("cat /proc/self/cgroup; sleep 600 & exec sleep 600") };
    let (pid, mut read) = start.start(&mut Spawner::new()).expect("it starts");
    let mut bytes = [0; 4096];
    let length = read.read(&mut bytes).expect("it prints");
    let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
    assert!(text.contains(&format!("kitbag-{stand_in}.web\n")), "{text}");
    assert_eq!(unit.is_populated(), Some(true));
    assert_eq!(cgroups.unit_of(pid).as_deref(), Some("web"));
    assert_eq!(cgroups.unit_of(stand_in), None);
    assert!(unit.remove().is_err(), "a process is in it");
    unit.kill().expect("Linux 5.14");
    waitpid(nix::unistd::Pid::from_raw(pid), None).expect("our child");
    let until = Instant::now() + Duration::from_secs(20);
    while unit.is_populated() == Some(true) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
    unit.remove().expect("nothing is in it");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(stand_in), nix::sys::signal::SIGKILL)
        .expect("our child");
    waitpid(nix::unistd::Pid::from_raw(stand_in), None).expect("our child");
    fs::remove_dir(own.join(format!("kitbag-{stand_in}"))).expect("it is empty");
    fs::remove_dir(own).expect("it is empty");
}

/// `cargo test --release -p kitbag-supervisor --test spawn -- --ignored --nocapture launches`
#[test]
#[ignore = "a measurement"]
fn a_thousand_launches() {
    let program = std::env::var_os("KITBAG_BENCH_PROGRAM").unwrap_or_else(|| "/bin/true".into());
    let mut spawner = Spawner::new();
    let mut open = Vec::new();
    for services in [0, 1000] {
        while open.len() < services {
            open.push([pipe().expect("a pipe"), pipe().expect("a pipe")]);
        }
        let start = Start { program: program.clone().into(), argv: vec!["true".into()], ..sh("") };
        for _ in 0..3 {
            let began = Instant::now();
            for _ in 0..1000 {
                let (pid, _read) = start.start(&mut spawner).expect("it starts");
                waitpid(nix::unistd::Pid::from_raw(pid), None).expect("our child");
            }
            println!("{services} services' pipes open: {:?} a launch", began.elapsed() / 1000);
        }
    }
}
