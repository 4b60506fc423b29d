//! Ports, sandboxes and rendered files in a manifest.

use kitbag_format::Manifest;
use kitbag_format::manifest::Run;
use kitbag_format::port::{Bind, Files, Number, Port, Protocol, Render, Sandbox, Socket};
use kitbag_format::report;
use kitbag_format::service::More;

use super::{SERVICE, fault_of, task};

fn more(manifest: &mut Manifest) -> &mut More {
    let Run::Services(services) = &mut manifest.run else { panic!("a service bundle") };
    &mut services.get_mut("web").expect("the service").more
}

/// One of each kind.
fn ports() -> Vec<(&'static str, Port)> {
    let of = |number| Port { number, ..Port::default() };
    let range =
        |prefer: Option<&str>| Number::Range { prefer: prefer.map(str::to_owned), low: 8000, high: 8999 };
    vec![
        ("admin", Port::default()),
        ("app", Port { socket: Some(Socket { backlog: 1024, mode: 0o600 }), ..Port::default() }),
        ("dns", Port { protocol: Protocol::Udp, ..of(Number::Fixed("5353".to_owned())) }),
        ("http", of(range(Some("${env.PORT:-8080}")))),
        ("metrics", Port { address: "public".to_owned(), hold: false, ..of(range(None)) }),
        (
            "own",
            Port {
                address: "${env.LISTEN:-::1}".to_owned(),
                ..of(Number::Fixed("${env.X:-9000}".to_owned()))
            },
        ),
        (
            "rpc",
            Port {
                protocol: Protocol::Unix,
                socket: Some(Socket { backlog: 1 << 20, mode: 0o777 }),
                ..Port::default()
            },
        ),
    ]
}

#[test]
fn ports_sandboxes_and_rendered_files_come_back_as_they_were_written() {
    let mut manifest = Manifest::from_text(SERVICE).expect("a manifest");
    let web = more(&mut manifest);
    web.ports = ports().into_iter().map(|(name, port)| (name.to_owned(), port)).collect();
    let strings = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    let render = |from: &str, to: &str| Render { from: from.to_owned(), to: to.to_owned() };
    web.process.render = vec![render("etc/a.conf", "a.conf"), render("b", "conf/b-${instance}")];
    web.process.sandbox = Sandbox {
        bind: Bind::Declared,
        connect: Some(strings(&["web.admin", "web.2.admin", "redis/cache.main", "443", "65535"])),
        files: Some(Files {
            read: strings(&["/etc/hosts", "${env.HOME}/x"]),
            write: strings(&["${state}/y"]),
        }),
    };
    assert_eq!(manifest.fault(), None);
    assert_eq!(Manifest::from_text(&manifest.to_text()).expect("a manifest"), manifest);
}

#[test]
fn a_port_that_says_nothing_is_any_of_tcp_on_loopback() {
    let text = SERVICE.replace("[\"bin/web\"]", "[\"bin/web\"], \"ports\": {\"http\": {}}");
    let mut manifest = Manifest::from_text(&text).expect("a manifest");
    assert_eq!(more(&mut manifest).ports["http"], Port::default());
    assert_eq!(Port::default().number, Number::Any);
    assert_eq!((Port::default().protocol, Port::default().address.as_str()), (Protocol::Tcp, "loopback"));
}

/// The fault of a manifest whose service has the port `p`.
fn port_fault(name: &str, port: &str) -> Option<&'static str> {
    fault_of(&format!(r#", "ports": {{"{name}": {port}}}"#), "")
}

#[test]
fn ports_that_no_supervisor_could_lease_are_refused() {
    for sound in [
        r#"{"number": {"fixed": "1"}}"#,
        r#"{"number": {"fixed": "${env.A}${env.B}"}}"#,
        r#"{"number": {"range": {"low": 1, "high": 1}}}"#,
        r#"{"address": "${env.A}"}"#,
        r#"{"later": true}"#,
    ] {
        assert_eq!(port_fault("p", sound), None, "{sound}");
    }
    for hostile in [
        r#"{"number": {"fixed": ""}}"#,
        r#"{"number": {"fixed": "0"}}"#,
        r#"{"number": {"fixed": "65536"}}"#,
        r#"{"number": {"fixed": "+80"}}"#,
        r#"{"number": {"fixed": "http"}}"#,
        r#"{"number": {"fixed": "80\n"}}"#,
        r#"{"number": {"fixed": "${env.A"}}"#,
        r#"{"number": {"fixed": "${nothing}"}}"#,
        r#"{"number": {"fixed": "${port.p}"}}"#,
        r#"{"number": {"fixed": "${instance}"}}"#,
        r#"{"number": {"range": {"low": 0, "high": 1}}}"#,
        r#"{"number": {"range": {"low": 2, "high": 1}}}"#,
        r#"{"number": {"range": {"low": 1, "high": 2, "prefer": "0"}}}"#,
        r#"{"number": {"range": {"low": 1, "high": 2, "prefer": "${"}}}"#,
        r#"{"address": ""}"#,
        r#"{"address": "example.org"}"#,
        r#"{"address": "127.0.0.1:80"}"#,
        r#"{"address": "${port.p:host}"}"#,
        r#"{"address": "${x}"}"#,
        r#"{"socket": {"backlog": 0, "mode": 384}}"#,
        r#"{"socket": {"backlog": 4294967295, "mode": 384}}"#,
        r#"{"socket": {"backlog": 1, "mode": 2541}}"#,
    ] {
        assert!(port_fault("p", hostile).is_some(), "{hostile}");
    }
    let long = format!(r#"{{"number": {{"fixed": "{}1"}}}}"#, "0".repeat(256));
    assert!(port_fault("p", &long).is_some());
    for name in ["", "P", "1", "a.b", "a/b", "..", "a\\nb", "abcdefghijklmnopqrstuvwxyz0123456"] {
        assert!(port_fault(name, "{}").is_some(), "{name}");
    }
}

#[test]
fn ports_without_number_are_refused() {
    let of = |count: usize, instances: u32| {
        let ports: Vec<String> = (0..count).map(|n| format!(r#""p{n}": {{}}"#)).collect();
        fault_of(&format!(r#", "instances": {instances}, "ports": {{{}}}"#, ports.join(",")), "")
    };
    assert_eq!((of(64, 1), of(10, 1000)), (None, None));
    assert!(of(65, 1).is_some());
    assert_eq!(of(11, 1000), Some("has more ports than a supervisor takes"));
}

#[test]
fn sandboxes_and_rendered_files_that_lead_elsewhere_are_refused() {
    for process in [
        r#"{"sandbox": {"connect": [""]}}"#,
        r#"{"sandbox": {"connect": ["0"]}}"#,
        r#"{"sandbox": {"connect": ["65536"]}}"#,
        r#"{"sandbox": {"connect": ["-1"]}}"#,
        r#"{"sandbox": {"connect": ["main"]}}"#,
        r#"{"sandbox": {"connect": ["../x/cache.main"]}}"#,
        r#"{"sandbox": {"connect": ["cache.main:address"]}}"#,
        r#"{"sandbox": {"connect": ["cache.main:-80"]}}"#,
        r#"{"sandbox": {"connect": ["cache.main\n"]}}"#,
        r#"{"sandbox": {"connect": ["${ports.cache.main}"]}}"#,
        r#"{"sandbox": {"files": {"read": [""]}}}"#,
        r#"{"sandbox": {"files": {"read": ["/a\u0000b"]}}}"#,
        r#"{"sandbox": {"files": {"write": ["${state"]}}}"#,
        r#"{"sandbox": {"files": {"write": ["/run/${port.http}"]}}}"#,
        r#"{"sandbox": {"files": {"write": ["/run/${instance}"]}}}"#,
        r#"{"render": [{"from": "../x", "to": "x"}]}"#,
        r#"{"render": [{"from": "/etc/passwd", "to": "x"}]}"#,
        r#"{"render": [{"from": "x", "to": "../x"}]}"#,
        r#"{"render": [{"from": "x", "to": "/etc/x"}]}"#,
        r#"{"render": [{"from": "x", "to": ""}]}"#,
        r#"{"render": [{"from": "x", "to": ".kitbag/ports"}]}"#,
        r#"{"render": [{"from": "x", "to": ".kitbag"}]}"#,
        r#"{"render": [{"from": "x", "to": "${state}"}]}"#,
        r#"{"render": [{"from": "x", "to": "${env.A}"}]}"#,
        r#"{"render": [{"from": "x", "to": "${port.a}"}]}"#,
        r#"{"render": [{"from": "x", "to": "${"}]}"#,
    ] {
        let process = format!(r#", "process": {process}"#);
        assert!(fault_of(&process, "").is_some(), "{process}");
        assert!(fault_of("", &task(&process)).is_some(), "a task's: {process}");
    }
    let unknown =
        SERVICE.replace("[\"bin/web\"]", r#"["bin/web"], "process": {"sandbox": {"bind": "some"}}"#);
    assert!(Manifest::from_text(&unknown).is_err(), "a bind that a reader does not know limits nothing");
}

#[test]
fn a_report_shows_ports_in_words() {
    let words: Vec<String> =
        ports().iter().map(|(name, port)| format!("{name}: {}", report::port(port))).collect();
    assert_eq!(
        words,
        [
            "admin: any/tcp, loopback",
            "app: any/tcp, loopback, inherited",
            "dns: 5353/udp, loopback",
            "http: 8000-8999/tcp, ${env.PORT:-8080} first, loopback",
            "metrics: 8000-8999/tcp, public",
            "own: ${env.X:-9000}/tcp, ${env.LISTEN:-::1}",
            "rpc: unix, inherited",
        ]
    );
}
