//! What is supervised: each scene is a bundle, made in the process that is the supervisor. A test names it, and may give
//! it a text.

use std::ffi::OsString;
use std::io::Write;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use kitbag_format::manifest::Restart;
use kitbag_format::service::Backoff;
use kitbag_supervisor::spawn::Setup;
use kitbag_supervisor::spawn::limits::Limit;
use kitbag_supervisor::state::{Ms, Readiness, Watch};
use kitbag_supervisor::supervise::{self, Bundle, ProgramSpec, Question, ServiceSpec, What};

use crate::harness::{MARK, SCENE};

/// The scene in which this program is a service, which tells its supervisor that it is alive.
const ALIVE: &str = "alive";

/// Supervises the scene of this name; returns its exit code.
pub fn supervise(scene: &str) -> u8 {
    let argument = std::env::var("KITBAG_TEST_ARGUMENT").unwrap_or_default();
    let services = match scene {
        "script" => vec![sh("web", &argument)],
        "moments" => moments(),
        "restarted" => vec![restarted(sh("web", &argument))],
        "stubborn" => vec![grace(sh("web", &argument), 300)],
        "two" => vec![
            restarted(sh("one", "echo one $$; exec sleep 1000")),
            restarted(sh("two", "echo two $$; exec sleep 1000")),
        ],
        "two-late" => vec![
            up_for(sh("one", "echo one $$; exec sleep 1000"), 1_000),
            needing(restarted(sh("two", "echo two $$; exec sleep 1000")), "one"),
        ],
        "newline" => vec![
            says_ready(sh("web", &argument)),
            needing(sh("next", "echo needs are met; exec sleep 1000"), "web"),
        ],
        "healthy" => vec![healthy(&argument)],
        "watchdog" => vec![watchdog()],
        "crowd" => crowd(1000, "exec sleep 1000"),
        "crash-loop" => crash_loop(&argument),
        "failing" => failing(),
        "flood" => {
            vec![sh("flood", "exec yes"), restarted(sh("web", "echo $$ >> \"$FILE\"; exec sleep 1000"))]
        }
        ALIVE => return say_alive(),
        _ => panic!("there is no scene {scene}"),
    };
    supervise::supervise(Bundle { name: "app".into(), services, ..Bundle::default() })
}

/// A service that runs this script, and is not started again.
fn sh(name: &str, script: &str) -> ServiceSpec {
    let mut spec = ServiceSpec::new(name, program("/bin/sh", &["-c", script]));
    spec.rules_mut().restart = Restart::Never;
    grace(spec, 10_000)
}

fn program(path: &str, arguments: &[&str]) -> ProgramSpec {
    let mut env = vec![(OsString::from("PATH"), "/usr/bin:/bin".into())];
    for name in [MARK, "FILE"] {
        env.extend(std::env::var_os(name).map(|value| (name.into(), value)));
    }
    let argv = [path].iter().chain(arguments).map(OsString::from).collect();
    ProgramSpec { path: Path::new(path).into(), argv, env: Rc::new(env), cwd: Path::new("/").into() }
}

fn grace(mut spec: ServiceSpec, stop_timeout: Ms) -> ServiceSpec {
    spec.rules_mut().stop_timeout = stop_timeout;
    spec
}

fn restarted(mut spec: ServiceSpec) -> ServiceSpec {
    spec.rules_mut().restart = Restart::Always;
    spec.rules_mut().backoff = Backoff { first_ms: 20, longest_ms: 100, ..Backoff::default() };
    spec
}

fn needing(mut spec: ServiceSpec, need: &str) -> ServiceSpec {
    spec.needs.push(need.into());
    spec
}

fn up_for(mut spec: ServiceSpec, time: Ms) -> ServiceSpec {
    spec.rules_mut().ready = Readiness::UpFor(time);
    spec
}

fn says_ready(mut spec: ServiceSpec) -> ServiceSpec {
    spec.newline = Some(7);
    spec.rules_mut().ready = Readiness::Told;
    spec.rules_mut().timeout = Some(500);
    spec
}

/// Something of each kind: what heeds its signal and what does not, what waits for another, what crashes, what leaves
/// daemons behind.
fn moments() -> Vec<ServiceSpec> {
    vec![
        sh("plain", "exec sleep 1000"),
        grace(sh("stubborn", "trap '' TERM INT HUP QUIT; while :; do sleep 0.02; done"), 100),
        needing(sh("late", "exec sleep 1000"), "plain"),
        restarted(sh("crashing", "sleep 0.02; exit 1")),
        grace(sh("parent", "setsid sh -c 'sleep 1000 & sleep 1000' & exec sleep 1000"), 100),
    ]
}

/// It removes a file and expects its service to make it again.
fn healthy(file: &str) -> ServiceSpec {
    let mut spec = restarted(sh("web", &format!("echo up $$; while :; do : > {file}; sleep 0.02; done")));
    let check = format!("rm -f {file}; until [ -e {file} ]; do sleep 0.02; done");
    spec.health =
        Some(Box::new(Question { what: What::Program(program("/bin/sh", &["-c", &check])), timeout: 1_000 }));
    spec.rules_mut().watch = Some(Watch::Probe { interval: 20, failures: 2 });
    spec
}

fn watchdog() -> ServiceSpec {
    let me = std::env::current_exe().expect("a test knows its program");
    let mut spec = restarted(ServiceSpec::new("web", program(me.to_str().expect("text"), &[])));
    Rc::make_mut(&mut spec.program.env).push((SCENE.into(), ALIVE.into()));
    spec.notify = true;
    spec.rules_mut().ready = Readiness::Told;
    spec.rules_mut().watch = Some(Watch::Silence(1_000));
    spec
}

/// The service of that: ready, and then alive again and again.
fn say_alive() -> u8 {
    let name = std::env::var("NOTIFY_SOCKET").expect("it is set");
    let address = SocketAddr::from_abstract_name(name.trim_start_matches('@')).expect("an address");
    let socket = UnixDatagram::unbound().expect("a socket");
    let say = |text: &str| socket.send_to_addr(text.as_bytes(), &address).expect("somebody listens");
    say("READY=1");
    println!("up {}", std::process::id());
    std::io::stdout().flush().expect("a pipe");
    loop {
        say("WATCHDOG=1");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn crowd(count: usize, script: &str) -> Vec<ServiceSpec> {
    (0..count).map(|number| restarted(sh(&format!("s{number}"), script))).collect()
}

/// So many services that end at once and start again as soon as they may.
fn crash_loop(count: &str) -> Vec<ServiceSpec> {
    let mut services = crowd(count.parse().expect("a number"), "");
    for spec in &mut services {
        spec.program = program("/bin/false", &[]);
        spec.rules_mut().backoff = Backoff { first_ms: 50, longest_ms: 100, ..Backoff::default() };
    }
    services
}

/// Services none of which can be started, each at another stage.
fn failing() -> Vec<ServiceSpec> {
    let text = std::env::var("FILE").expect("a file that is no program of this machine");
    let of = |name: &str, program: ProgramSpec| {
        let mut spec = ServiceSpec::new(name, program);
        spec.rules_mut().restart = Restart::Never;
        spec
    };
    let mut folder = of("folder", program("/bin/true", &[]));
    folder.program.cwd = Path::new("/no/such").into();
    let mut limits = of("limits", program("/bin/true", &[]));
    let wrong = vec![Limit { resource: libc::RLIMIT_CPU, soft: 2, hard: 1 }];
    limits.setup = Rc::new(Setup { limits: wrong, ..Setup::default() });
    let mut oom = of("oom", program("/bin/true", &[]));
    oom.setup = Rc::new(Setup { oom_score: Some(2000), ..Setup::default() });
    vec![
        of("missing", program("/no/such", &[])),
        of("text", program("/etc/passwd", &[])),
        of("foreign", program(&text, &[])),
        of("arguments", program("/bin/true", &["\0"])),
        folder,
        limits,
        oom,
    ]
}
