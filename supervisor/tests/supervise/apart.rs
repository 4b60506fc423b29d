//! Services that are kept apart, and what is done where the kernel cannot.

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

use super::*;

/// Has the supervisor find a kernel without Landlock.
pub const OLD_KERNEL: &str = "KITBAG_TEST_OLD_KERNEL";

/// From now on, Landlock is not there.
pub fn forget_landlock() {
    let calls =
        [libc::SYS_landlock_create_ruleset, libc::SYS_landlock_add_rule, libc::SYS_landlock_restrict_self];
    let arch = std::env::consts::ARCH.try_into().expect("a known architecture");
    let absent = SeccompAction::Errno(libc::ENOSYS.cast_unsigned());
    let filter =
        SeccompFilter::new(calls.map(|call| (call, vec![])).into(), SeccompAction::Allow, absent, arch);
    let program: BpfProgram = filter.and_then(TryInto::try_into).expect("a filter");
    seccompiler::apply_filter(&program).expect("seccomp");
}

/// A port that is free, and none of those that the kernel chooses or a supervisor gives.
fn low_port() -> u16 {
    let first = 10_000 + u16::try_from(std::process::id() % 8_000).expect("it is small");
    (first..20_000).find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).expect("one is free")
}

/// A service that declares the port `main`, listens where it is told, and may do what `sandbox` says.
fn web(listens: &str, sandbox: Value) -> Value {
    let process = json!({"process": {"sandbox": sandbox}, "ports": {"main": {}}});
    actor(&format!("print=begins;serve={listens} /none"), process)
}

pub fn a_service_binds_its_own_port_and_no_other() {
    if !kitbag_supervisor::sandbox::Kernel::probe().has_network() {
        return;
    }
    let (other, free) = (low_port(), json!({"bind": "any"}));
    let declared = json!({"bind": "declared"});
    let once = json!({"restart": "never"});
    let services = json!({
        "good": web("${port.main}", declared.clone()),
        "bad": merge(web(&other.to_string(), declared), once),
        "free": web(&other.to_string(), free),
    });
    let mut app = app(services, json!({}));
    app.comes_to("bad", "failed");
    app.comes_to("good", "ready");
    eventually("free listens", || TcpStream::connect(("127.0.0.1", other)).is_ok());
    let ports = app.ask("GET", "/v1/ports").value;
    let good = ports["ports"]
        .as_array()
        .expect("ports")
        .iter()
        .find(|port| port["unit"] == "good")
        .expect("its port");
    let good = u16::try_from(good["number"].as_u64().expect("a number")).expect("a port");
    eventually("good listens", || TcpStream::connect(("127.0.0.1", good)).is_ok());
    app.running.signal("TERM");
    app.running.ends_with(exit::OK);
    let seen = app.running.seen.join("\n") + &app.running.stderr.iter().collect::<Vec<_>>().join("\n");
    assert!(!seen.contains("does not declare"), "{seen}");
}

pub fn without_landlock_it_is_said_once_and_strays_are_reported() {
    let other = low_port();
    let declared = json!({"bind": "declared", "connect": ["443"]});
    let services = json!({"web": web(&other.to_string(), declared)});
    let mut app = app_with(services, &[(OLD_KERNEL, "1")]);
    let line = app.says("this kernel has no Landlock");
    assert!(
        line.contains("binding undeclared ports is reported, not refused; `connect` is not limited"),
        "{line}"
    );
    let line = app.says("does not declare");
    let pid = app.unit("web")["pid"].clone();
    assert!(line.contains(&format!("web (pid {pid}) listens on 127.0.0.1:{other},")), "{line}");
    // It was said, and is not said again.
    for _ in 0..3 {
        app.ask("GET", "/v1/ports");
    }
    app.running.signal("TERM");
    app.running.ends_with(exit::OK);
    let rest: Vec<String> = app.running.stderr.iter().filter(|line| line.contains("declare")).collect();
    assert!(rest.is_empty(), "{rest:?}");
}

pub fn a_check_is_limited_as_its_service_is() {
    if !kitbag_supervisor::sandbox::Kernel::probe().has_files() {
        return;
    }
    let elsewhere = tempfile::tempdir().expect("a folder");
    let other = elsewhere.path().join("other");
    let check = format!("echo x >${{state}}/$0 && ! echo x >{}", other.display());
    let asks = |name: &str| json!({"probe": {"command": {"argv": ["bin/sh", "-c", check, name]}}});
    let limited = json!({"process": {"sandbox": {"files": {}}}});
    let checked = merge(ready(asks("ready")), health(asks("health")));
    let sleeps = |more| sh("exec sleep 1000", more);
    let services = json!({"web": sleeps(merge(limited, checked)), "free": sleeps(ready(asks("free")))});
    let app = app(services, json!({}));
    app.comes_to("web", "ready");
    eventually("its health is asked", || app.state.path().join("health").exists());
    let restarts = app.unit("web")["restarts"].clone();
    assert_eq!((app.state_of("web").as_str(), restarts), ("ready", json!(0)));
    // Without limits it writes where the other may not, and so has failed.
    eventually("a check has failed", || app.unit("free")["reason"] == "its check exited with status 1");
    assert!(other.exists());
    app.stops();
}

pub fn a_limited_service_writes_to_its_state_and_has_its_temporary_files_there() {
    if !kitbag_supervisor::sandbox::Kernel::probe().has_files() {
        return;
    }
    let elsewhere = tempfile::tempdir().expect("a folder");
    let script = format!(
        "echo x >${{state}}/own && echo own; echo x >{0}/other || echo no other; mktemp; sleep 1000",
        elsewhere.path().display()
    );
    let more = json!({"process": {"sandbox": {"files": {}}}});
    let mut app = app(json!({"web": sh(&script, more)}), json!({}));
    app.prints("own");
    app.prints("no other");
    let line = app.prints("/tmp.");
    let folder = app.state.path().join("tmp");
    assert!(line.contains(folder.to_str().expect("a name")), "{line}");
    assert_eq!(fs::read_dir(elsewhere.path()).expect("a folder").count(), 0);
    app.stops();
}
