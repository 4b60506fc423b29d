//! Ports, references to them, sandboxes and rendered files, as far as the manifest's text alone shows.

use kitbag_format::port::{BACKLOG, Bind, Files, Number, Port, Protocol, Sandbox, Socket};
use kitbag_format::service::{Probe, ReadyWhen};

use super::{assert_each, assert_errors, errors, supervised, task_errors, web, web_errors};

/// What the port `p` of `web` is.
#[track_caller]
fn port(written: &str) -> Port {
    let mut service = web(&format!("[services.web.ports]\np = {written}")).service;
    service.more.ports.remove("p").expect("the port")
}

fn port_errors(written: &str) -> String {
    web_errors(&format!("[services.web.ports]\np = {written}"))
}

fn fixed(text: &str) -> Number {
    Number::Fixed(text.to_owned())
}

#[test]
fn a_readiness_descriptor_stands_behind_the_sockets() {
    let with = |number: u8| {
        format!("ready = {{ newline = {number} }}\n[services.web.ports]\na = {{ socket = true }}\nb = 80")
    };
    let text = web_errors(&with(3));
    assert!(
        text.contains("is the number of a socket that it inherits") && text.contains("expected 4 or more"),
        "{text}"
    );
    assert_eq!(web(&with(4)).service.more.ready.when, ReadyWhen::Newline(4));
}

#[test]
fn a_port_is_a_number_any_or_a_table() {
    let of = |number| Port { number, ..Port::default() };
    for (written, number) in [
        ("\"any\"", Number::Any),
        ("{}", Number::Any),
        ("{ port = \"any\" }", Number::Any),
        ("9000", fixed("9000")),
        ("65_535", fixed("65535")),
        ("\"9000\"", fixed("9000")),
        ("\"09000\"", fixed("9000")),
        ("\"${env.X:-9000}\"", fixed("${env.X:-9000}")),
        ("\"${env.X}\"", fixed("${env.X}")),
        ("\"80${env.X:-}\"", fixed("80${env.X:-}")),
        ("{ port = 9000 }", fixed("9000")),
        ("{ range = \"8000-8999\" }", Number::Range { prefer: None, low: 8000, high: 8999 }),
        (
            "{ range = \"1-65535\", prefer = 80 }",
            Number::Range { prefer: Some("80".to_owned()), low: 1, high: 65_535 },
        ),
        (
            "{ prefer = \"${env.PORT:-8080}\", range = \"8000-8999\" }",
            Number::Range { prefer: Some("${env.PORT:-8080}".to_owned()), low: 8000, high: 8999 },
        ),
    ] {
        assert_eq!(port(written), of(number), "{written}");
    }
}

#[test]
fn a_port_says_how_it_is_made_and_where() {
    let public = port("{ port = 9100, address = \"public\" }");
    assert_eq!((public.address.as_str(), public.number), ("public", fixed("9100")));
    for address in
        ["loopback", "10.0.0.7", "::1", "::", "${env.LISTEN}", "${env.LISTEN:-public}", "10.0.0.${env.N}"]
    {
        assert_eq!(port(&format!("{{ address = \"{address}\" }}")).address, address);
    }
    assert_eq!(port("{ protocol = \"udp\", port = 5353 }").protocol, Protocol::Udp);
    let udp = port("{ protocol = \"udp\", socket = true }");
    assert_eq!((udp.protocol, udp.socket), (Protocol::Udp, Some(Socket::default())));
    assert_eq!(port("{ socket = true }").socket, Some(Socket { backlog: BACKLOG, mode: 0o600 }));
    assert_eq!(port("{ socket = true, backlog = 16 }").socket, Some(Socket { backlog: 16, mode: 0o600 }));
    let unix = port("{ protocol = \"unix\", socket = true, mode = \"0660\" }");
    assert_eq!(unix.socket, Some(Socket { backlog: BACKLOG, mode: 0o660 }));
    assert_eq!(
        port("{ protocol = \"unix\", socket = true, mode = 0o666 }").socket.map(|it| it.mode),
        Some(0o666)
    );
    assert_eq!((port("{ socket = false }").socket, port("{ hold = false }").hold), (None, false));
    assert!(port("{ hold = true, socket = true }").hold);
}

#[test]
fn wrong_ports_are_told_why() {
    assert_each(
        port_errors,
        &[
            ("0", "write `\"any\"` for one that is free"),
            ("65536", "expected a number from 1 to 65535"),
            ("-1", "expected a number from 1 to 65535"),
            ("\"http\"", "expected a number from 1 to 65535"),
            ("\"anny\"", "expected `any` or a number"),
            ("\"\"", "expected a number from 1 to 65535"),
            ("\"8000-8999\"", "a range stands in a table: `{ range = \"8000-8999\" }`"),
            ("\"${env.X:-}\"", "where the variable is not set: `${env.PORT:-8080}`"),
            ("\"${env.X:-http}\"", "expected a number from 1 to 65535"),
            ("\"${tree}\"", "of the placeholders only `${env.NAME}`"),
            ("\"${port.q}\"", "`${port.q}` cannot stand here"),
            ("\"${instance}\"", "it is known only when a service starts"),
            ("\"${env.X\"", "has no closing `}`"),
            ("true", "must be a port, \"any\" or a table"),
            ("{ port = true }", "must be a port or \"any\""),
            ("{ port = 1, range = \"2-3\" }", "both `port` and `range`"),
            ("{ port = 1, prefer = 2 }", "both `port` and `prefer`"),
            ("{ prefer = 2 }", "expected `range` beside it"),
            ("{ prefer = \"any\", range = \"2-3\" }", "bad port `any`"),
            ("{ prefer = 0, range = \"2-3\" }", "bad port `0`"),
            ("{ range = \"8000\" }", "expected two numbers from 1 to 65535, such as `8000-8999`"),
            ("{ range = \"8000-\" }", "expected two numbers"),
            ("{ range = \"-8000\" }", "expected two numbers"),
            ("{ range = \"0-80\" }", "expected two numbers"),
            ("{ range = \"80-65536\" }", "expected two numbers"),
            ("{ range = \"1-2-3\" }", "expected two numbers"),
            ("{ range = \"8999-8000\" }", "it runs backwards: write `8000-8999`"),
            ("{ range = [1, 2] }", "two ports with a dash, in quotes"),
            ("{ address = \"localhost\" }", "that is `loopback`"),
            ("{ address = \"pulbic\" }", "did you mean `public`?"),
            ("{ address = \"127.0.0.1:80\" }", "expected `loopback`, `public`, or an address"),
            ("{ address = \"[::1]\" }", "write it without brackets: `::1`"),
            ("{ address = \"\" }", "expected `loopback`"),
            ("{ address = \"${env.X:-here}\" }", "expected `loopback`"),
            ("{ address = \"${state}\" }", "of the placeholders only `${env.NAME}`"),
            ("{ protocol = \"sctp\" }", "expected `tcp`, `udp` or `unix`"),
            ("{ backlog = 10 }", "`backlog` without `socket`"),
            ("{ socket = false, backlog = 10 }", "write `socket = true` beside it"),
            ("{ protocol = \"unix\", mode = \"0660\" }", "`mode` without `socket`"),
            ("{ socket = true, mode = \"0660\" }", "only a unix socket has permissions"),
            ("{ mode = \"0660\" }", "only a unix socket has permissions"),
            (
                "{ protocol = \"unix\", socket = true, mode = \"1777\" }",
                "octal digits in quotes, up to \"777\"",
            ),
            ("{ protocol = \"unix\", port = 80 }", "a unix socket is a path"),
            ("{ protocol = \"unix\", range = \"80-81\" }", "a unix socket is a path"),
            ("{ protocol = \"unix\", prefer = 80 }", "a unix socket is a path"),
            ("{ protocol = \"unix\", address = \"public\" }", "a unix socket is a path"),
            ("{ protocol = \"unix\", hold = false }", "nobody else makes a socket at that path"),
            ("{ protocol = \"udp\", socket = true, backlog = 1 }", "datagrams wait for no accept(2)"),
            ("{ protocol = \"udp\", backlog = 1 }", "datagrams wait for no accept(2)"),
            ("{ socket = true, backlog = 0 }", "a whole number from 1 to 1048576"),
            ("{ socket = true, hold = false }", "the socket that the supervisor makes holds the port"),
            ("{ socket = 1 }", "must be `true` or `false`"),
            ("{ prot = 80 }", "did you mean `port`?"),
            ("{ number = 80 }", "unknown key `number` in `[services.web.ports.p]`"),
        ],
    );
    for name in ["Http", "1st", "\"\"", "\"a.b\"", "abcdefghijklmnopqrstuvwxyz0123456"] {
        let found = web_errors(&format!("[services.web.ports]\n{name} = 80"));
        assert!(found.contains("expected small letters, digits, `_` and `-`"), "{name}\n{found}");
    }
    assert!(web_errors("ports = [80]").contains("must be a table"));
    let many: String = (0..65).map(|n| format!("p{n} = \"any\"\n")).collect();
    assert!(web_errors(&format!("[services.web.ports]\n{many}")).contains("has more than 64 ports"));
    assert!(task_errors("ports = { http = 80 }").contains("unknown key `ports` in `[tasks.backup]`"));
}

#[test]
fn a_wrong_number_is_shown_in_its_line() {
    assert_errors(
        "[services.web]\nargv = [\"a\"]\n[services.web.ports]\nhttp = { range = \"8999-8000\" }\n",
        "
error: bad range `8999-8000`
 --> kitbag.toml:4:18
  |
4 | http = { range = \"8999-8000\" }
  |                  ^^^^^^^^^^^ it runs backwards: write `8000-8999`",
    );
}

#[test]
fn instances_have_a_number_each_or_share_a_socket() {
    let of = |port: &str| web_errors(&format!("instances = 4\n[services.web.ports]\np = {port}"));
    for port in [
        "\"any\"",
        "{ range = \"8000-8003\" }",
        "{ range = \"8001-8003\", prefer = 80 }",
        "{ range = \"8001-8003\", prefer = \"${env.PORT:-80}\" }",
        "{ port = 80, socket = true }",
        "{ port = 80, protocol = \"udp\", socket = true }",
        "{ protocol = \"unix\" }",
    ] {
        assert_eq!(of(port), "", "{port}");
    }
    assert_errors(
        "[services.web]\nargv = [\"a\"]\ninstances = 4\n[services.web.ports]\nhttp = 9000\n",
        "
error: the port `http` is one number for 4 instances
 --> kitbag.toml:5:8
  |
5 | http = 9000
  |        ^^^^ two instances cannot bind one number
  |
  = help: `socket = true`: the supervisor listens, and all instances share its socket
  = help: or each has one of its own: `range = \"9000-9003\"`, or `\"any\"`",
    );
    assert!(of("{ range = \"8000-8002\" }").contains("is 3 numbers for 4 instances"));
    assert!(of("{ range = \"8000-8002\", prefer = 8001 }").contains("is 3 numbers for 4 instances"));
    assert!(of("{ port = 53, protocol = \"udp\" }").contains("is one number for 4 instances"));
    assert!(of("\"${env.X:-80}\"").contains("is one number for 4 instances"));
    assert!(of("65535").contains("each has one of its own: `\"any\"`"));
}

/// Services `web` and `api` with one port each.
fn two(web: &str, api: &str) -> String {
    format!(
        "[services.web]\nargv = [\"a\"]\nports.p = {web}\n[services.api]\nargv = [\"a\"]\nports.q = {api}\n"
    )
}

#[test]
fn two_services_do_not_want_one_number() {
    assert_errors(
        "[services.web]\nargv = [\"a\"]\n[services.web.ports]\nhttp = 8080\n[services.api]\nargv = [\"a\"]\n\
         [services.api.ports]\nmain = { port = \"8080\", address = \"public\" }\n",
        "
error: `web.http` and `api.main` have one port: 8080/tcp
 --> kitbag.toml:8:1
  |
4 | http = 8080
  | ---- this one is 8080/tcp
...
8 | main = { port = \"8080\", address = \"public\" }
  | ^^^^ this one too: a number is leased for all addresses
  |
  = help: give one of them another number, a `range`, or `\"any\"`: who needs it writes `${ports.SERVICE.NAME}`",
    );
    let own = web_errors("ports = { a = 80, b = { port = 80, address = \"::1\" } }");
    assert!(own.contains("`web.a` and `web.b` have one port: 80/tcp"), "{own}");
    let one_variable = errors(&two("\"${env.X:-80}\"", "\"${env.X:-80}\""));
    assert!(one_variable.contains("have one port: ${env.X:-80}/tcp"), "{one_variable}");
    for (web, api) in [
        ("80", "81"),
        ("80", "{ port = 80, protocol = \"udp\" }"),
        ("80", "{ prefer = 80, range = \"1-9\" }"),
        ("{ range = \"1-9\" }", "{ range = \"1-9\" }"),
        ("\"any\"", "\"any\""),
        ("{ protocol = \"unix\" }", "{ protocol = \"unix\" }"),
    ] {
        assert_eq!(errors(&two(web, api)), "", "{web} {api}");
    }
}

#[test]
fn who_prefers_what_another_has_is_told() {
    let odd = |web: &str, api: &str| supervised(&two(web, api)).odd;
    let prefers = "{ prefer = 80, range = \"1-9\" }";
    let found = odd("80", prefers);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].1, "`api.q` prefers 80 and never gets it: it is `web.p`'s");
    assert_eq!(odd(prefers, "80").len(), 1);
    assert_eq!(odd("81", prefers), []);
    assert_eq!(odd(prefers, prefers), []);
    assert_eq!(odd("{ port = 80, protocol = \"udp\" }", prefers), []);
}

/// `web` with ports `http`, `admin` and others, a service `cache`, three instances of `node`, a task; and a line in
/// `web`'s table.
fn family(line: &str) -> String {
    errors(&family_text(line))
}

fn family_text(line: &str) -> String {
    format!(
        "name = \"app\"\n[services.web]\nargv = [\"bin/web\"]\n{line}\n[services.web.ports]\nhttp = 8080\nadmin = \"any\"\n\
         rpc = {{ protocol = \"unix\" }}\n[services.cache]\nargv = [\"a\"]\nports = {{ main = \"any\", dns = {{ protocol = \"udp\" }} }}\n\
         [services.node]\nargv = [\"a\"]\ninstances = 3\nports.p2p = \"any\"\n[services.quiet]\nargv = [\"a\"]\n\
         [tasks.migrate]\nargv = [\"a\"]\n"
    )
}

#[test]
fn ports_are_named_in_commands_and_probes() {
    for text in [
        "${port.http}",
        "--listen=${port.http:listen}",
        "${port.rpc}",
        "${ports.cache.main:address}",
        "${ports.node.p2p}",
        "${ports.node.2.p2p:host}",
        "${ports.redis/cache.main:address:-127.0.0.1:6379}",
        "${ports.1.2/a.b}",
        "web-${instance}",
        "$${port.none}",
    ] {
        for line in [
            format!("env = {{ A = \"{text}\" }}"),
            format!("ready = {{ command = [\"bin/check\", \"{text}\"] }}"),
            format!("health = {{ command = {{ argv = [\"bin/check\"], env = {{ A = \"{text}\" }} }} }}"),
        ] {
            assert_eq!(family(&line), "", "{line}");
        }
        let argv = family_text("").replace("[\"bin/web\"]", &format!("[\"bin/web\", \"{text}\"]"));
        assert_eq!(errors(&argv), "", "{argv}");
    }
    let task = family_text("") + "env = { CACHE = \"${ports.cache.main}\", N = \"${instance}\" }\n";
    assert_eq!(errors(&task), "");
}

#[test]
fn probes_ask_ports() {
    for address in [
        "${port.http:address}",
        "${port.http:listen}",
        "127.0.0.1:${port.http}",
        "localhost:${port.http}",
        "${port.http:host}:${port.http}",
        "${ports.cache.main:address}",
        "${ports.redis/cache.main:address:-127.0.0.1:6379}",
    ] {
        assert_eq!(family(&format!("ready = {{ tcp = \"{address}\" }}")), "", "{address}");
        assert_eq!(
            family(&format!("health = {{ http = \"http://{address}/healthz?a=/b\" }}")),
            "",
            "{address}"
        );
    }
    let service =
        web("ports.http = \"any\"\nready = { http = \"http://${port.http:address}/healthz\" }").service;
    let ReadyWhen::Probe(Probe::Http(probe)) = service.more.ready.when else { panic!("{service:?}") };
    assert_eq!((probe.address.as_str(), probe.path.as_str()), ("${port.http:address}", "/healthz"));
    let elsewhere = supervised(
        "[services.web]\nargv = [\"a\"]\nready = { http = \"http://${ports.redis/cache.main:address}\" }\n",
    );
    let ReadyWhen::Probe(Probe::Http(probe)) = &elsewhere.services[0].1.service.more.ready.when else {
        panic!("{elsewhere:?}")
    };
    assert_eq!((probe.address.as_str(), probe.path.as_str()), ("${ports.redis/cache.main:address}", "/"));
    assert_each(
        family,
        &[
            ("ready = { tcp = \"${port.http}\" }", "expected an address and a port: `${port.http:address}`"),
            ("ready = { http = \"http://${port.http:host}/\" }", "and a port: `${port.http:address}`"),
            ("ready = { tcp = \"${port.http:address}:80\" }", "expected an address and a port"),
            ("ready = { tcp = \"${ports.redis/a.b:address:-redis}\" }", "expected an address and a port"),
            ("ready = { tcp = \"${port.htp:address}\" }", "did you mean `${port.http:address}`?"),
            ("ready = { tcp = \"${port.rpc:address}\" }", "a probe cannot ask `rpc`: it speaks unix"),
            ("health = { tcp = \"${ports.cache.dns:address}\" }", "it speaks udp"),
            ("health = { http = \"http://${port.http:address}/${port.http}\" }", "without placeholders"),
        ],
    );
}

#[test]
fn references_lead_to_ports_that_are_declared() {
    assert_each(
        |text| family(&format!("env = {{ A = \"{text}\" }}")),
        &[
            ("${port.htpp}", "did you mean `${port.http}`?"),
            ("${port.htpp:listen}", "did you mean `${port.http:listen}`?"),
            ("${port.metrics}", "expected `admin`, `http` or `rpc`"),
            ("${ports.cache.mian:host}", "did you mean `${ports.cache.main:host}`?"),
            ("${ports.cahce.main}", "did you mean `${ports.cache.main}`?"),
            ("${ports.cache.http}", "`cache` declares no port `http`"),
            ("${ports.redis.main}", "expected `cache`, `node` or `web`"),
            ("${ports.redis.main}", "another bundle's is `${ports.BUNDLE/redis.main}`"),
            ("${ports.quiet.http}", "write `[services.quiet.ports]` and below it `http = \"any\"`"),
            ("${ports.migrate.http}", "`migrate` is a task"),
            ("${ports.node.3.p2p}", "they are numbered from 0 to 2"),
            ("${ports.web.1.http}", "only one runs: `${ports.web.http}`"),
            ("${port.http:-80}", "the default of `${port.http:-80}` has no effect"),
            ("${ports.cache.main:-80}", "write `${ports.cache.main}`"),
            ("${port.http:adress}", "did you mean `${port.http:address}`?"),
            ("${port.http:port}", "expected `:host`, `:listen` or `:address`"),
            ("${ports.http}", "the service's own is `${port.http}`"),
            ("${port.cache.main}", "did you mean `${ports.cache.main}`?"),
            ("${port.HTTP}", "all in small letters"),
            ("${port}", "expected `${port.NAME}`, `${ports.SERVICE.NAME}`"),
            ("${port:listen}", "expected `${port.NAME}`"),
            ("${instances}", "did you mean `${instance}`?"),
        ],
    );
    let task = family_text("") + "env = { A = \"${port.http}\" }\n";
    let found = errors(&task);
    assert!(
        found.contains("a task declares no ports") && found.contains("`${ports.SERVICE.http}`"),
        "{found}"
    );
}

#[test]
fn a_reference_that_leads_nowhere_is_shown() {
    assert_errors(
        "[services.web]\nargv = [\"a\", \"--db=${ports.db.main:address}\"]\n[services.dbs]\nargv = [\"a\"]\nports.main = \"any\"\n",
        "
error: there is no service `db`
 --> kitbag.toml:2:20
  |
2 | argv = [\"a\", \"--db=${ports.db.main:address}\"]
  |                    ^^^^^^^^^^^^^^^^^^^^^^^^
  |
  = help: did you mean `${ports.dbs.main:address}`?",
    );
}

#[test]
fn what_is_read_before_a_service_starts_names_no_port() {
    assert_each(
        family,
        &[
            ("cwd = \"${port.http}\"", "`${port.http}` cannot stand here"),
            ("cwd = \"${state}/${instance}\"", "`${instance}` cannot stand here"),
            ("user = \"${ports.cache.main}\"", "can stand in `argv` and `env` of services and tasks"),
            ("env-files = [\"/etc/${instance}\"]", "cannot stand here"),
            ("health = { command = { argv = [\"a\"], cwd = \"${port.http}\" } }", "cannot stand here"),
            ("sandbox.read = [\"/run/${port.http}\"]", "cannot stand here"),
        ],
    );
    let seed = family_text("") + "[[seed]]\nfrom = \"share/x\"\nto = \"x-${instance}\"\n";
    assert!(errors(&seed).contains("`${instance}` cannot stand here"), "{}", errors(&seed));
    assert!(errors(&seed).contains("can stand in `argv` and `env` of services and tasks"));
    let logs = family_text("") + "[logs]\nto = { files = \"/var/log/${instance}\" }\n";
    assert!(errors(&logs).contains("`${instance}` cannot stand here"));
    for tool in [
        "command = [\"bin/a\", \"${port.http}\"]\n",
        "[command]\nargv = [\"bin/a\"]\nenv = { A = \"${port.http}\" }\n",
    ] {
        assert!(errors(tool).contains("only a service has ports and instances"), "{}", errors(tool));
    }
    assert!(errors("command = [\"bin/a\", \"${instance}\"]\n").contains("only a service has ports"));
}

#[test]
fn a_sandbox_limits_ports_and_files() {
    let sandbox = |lines: &str| web(lines).service.more.process.sandbox;
    assert_eq!(sandbox(""), Sandbox::default());
    assert_eq!(sandbox("ports.http = 80").bind, Bind::Declared);
    assert_eq!(sandbox("ports.http = 80\nsandbox.bind = \"any\"").bind, Bind::Any);
    assert_eq!(sandbox("sandbox.bind = \"declared\"").bind, Bind::Declared);
    assert_eq!(sandbox("ports.http = 80\nsandbox = { files = false }").files, None);
    assert_eq!(sandbox("sandbox.files = true").files, Some(Files::default()));
    let files = sandbox(
        "sandbox = { read = [\"/etc/hosts\", \"${env.HOME}/x\"], write = [\"${state}\", \"${tree}/y\"] }",
    );
    let strings = |texts: [&str; 2]| texts.map(str::to_owned).to_vec();
    let expected =
        Files { read: strings(["/etc/hosts", "${env.HOME}/x"]), write: strings(["${state}", "${tree}/y"]) };
    assert_eq!(files.files, Some(expected));
    let connect =
        sandbox("ports.http = 80\nsandbox.connect = [\"web.http\", \"redis/cache.main\", 443, \"0080\"]")
            .connect;
    assert_eq!(connect.unwrap_or_default(), ["web.http", "redis/cache.main", "443", "80"]);
    assert_eq!(sandbox("sandbox.connect = []").connect, Some(Vec::new()));
    let task =
        "[services.a]\nargv = [\"a\"]\nports.p = 1\n[tasks.t]\nargv = [\"b\"]\nsandbox.connect = [\"a.p\"]\n";
    let sandbox = &supervised(task).tasks[0].1.task.process.sandbox;
    assert_eq!((sandbox.bind, sandbox.connect.clone()), (Bind::Any, Some(vec!["a.p".to_owned()])));
}

#[test]
fn no_port_is_proposed_that_is_not_there() {
    let of = |ports: &str, entry: &str| {
        errors(&format!(
            "[services.a]\nargv = [\"a\"]\nsandbox = {{ connect = [\"{entry}\"] }}\n[services.a.ports]\n{ports}"
        ))
    };
    let text = of("", "x.y");
    assert!(!text.contains("did you mean") && text.contains("no service declares a port"), "{text}");
    let text = of("http = \"any\"", "x.y");
    assert!(!text.contains("did you mean") && text.contains("expected `a`"), "{text}");
    let text = of("http = \"any\"", "x.htp");
    assert!(text.contains("did you mean `a.http`?"), "{text}");
}

#[test]
fn wrong_sandboxes_are_told_why() {
    assert_each(
        |line| family(&format!("[services.web.sandbox]\n{line}")),
        &[
            ("bind = \"none\"", "expected `any` or `declared`"),
            ("conect = []", "did you mean `connect`?"),
            ("connect = 443", "must be a list of ports"),
            ("connect = [true]", "a port or a number in a list of ports"),
            ("connect = [0]", "expected a number from 1 to 65535"),
            ("connect = [65536]", "expected a number from 1 to 65535"),
            ("connect = [-1]", "expected a number from 1 to 65535"),
            ("connect = [443, \"443\"]", "the port `443` is given twice"),
            ("connect = [\"https\"]", "expected `SERVICE.PORT`, `BUNDLE/SERVICE.PORT` or a number"),
            ("connect = [\"cache.main:address\"]", "`cache.main:address` names no port"),
            ("connect = [\"${ports.cache.main}\"]", "expected `SERVICE.PORT`"),
            ("connect = [\"cache.mian\"]", "did you mean `cache.main`?"),
            ("connect = [\"cahce.main\"]", "did you mean `cache.main`?"),
            ("connect = [\"redis.main\"]", "another bundle's is `BUNDLE/redis.main`"),
            ("connect = [\"migrate.main\"]", "`migrate` is a task"),
            ("connect = [\"cache.dns\"]", "it speaks udp, and `connect` limits TCP alone"),
            ("connect = [\"web.rpc\"]", "it speaks unix"),
            ("read = [\"etc/hosts\"]", "expected an absolute path, or one that begins with `${state}`"),
            ("write = [\"${name}/x\"]", "expected an absolute path"),
            ("write = \"/var\"", "must be a list of strings"),
            ("files = \"yes\"", "must be `true` or `false`"),
            ("files = false\nread = [\"/etc\"]", "both `files = false` and `read`"),
        ],
    );
}

#[test]
fn files_are_rendered_to_the_state_folder() {
    let text = "[services.web]\nargv = [\"a\"]\ninstances = 2\n\
                render = [{ from = \"etc/web.conf\", to = \"conf/web-${instance}.conf\" }]\n\
                [[tasks.t.render]]\nfrom = \"etc/t.conf\"\n[tasks.t]\nargv = [\"b\"]\n";
    let all = supervised(text);
    let of_service = &all.services[0].1.service.more.process.render[0];
    assert_eq!(
        (of_service.from.as_str(), of_service.to.as_str()),
        ("etc/web.conf", "conf/web-${instance}.conf")
    );
    let of_task = &all.tasks[0].1.task.process.render[0];
    assert_eq!((of_task.from.as_str(), of_task.to.as_str()), ("etc/t.conf", "t.conf"));
    assert_each(
        web_errors,
        &[
            ("render = [{ to = \"x\" }]", "`[services.web.render]` has no `from`"),
            ("render = { from = \"x\" }", "must be a list of tables"),
            ("render = [{ from = \"/etc/x\" }]", "expected a path relative to the tree"),
            ("render = [{ from = \"x\", to = \"../x\" }]", "`..` may lead out of the state folder"),
            ("render = [{ from = \"x\", too = \"y\" }]", "did you mean `to`?"),
            ("render = [{ from = \"x\", to = \"${state}/x\" }]", "only `${instance}` can be part of it"),
            ("render = [{ from = \"x-${instance}\", to = \"x\" }]", "it is taken as it stands"),
            ("render = [{ from = \"x\", to = \"${port.http}\" }]", "only `${instance}` can be part of it"),
            ("render = [{ from = \"x\", to = \"${instnce}\" }]", "did you mean `${instance}`?"),
            ("render = [{ from = \"x\", to = \".kitbag/ports\" }]", "that folder is the supervisor's"),
            ("render = [{ from = \"a/x\" }, { from = \"b/x\" }]", "the rendered file `x` is given twice"),
            ("instances = 2\nrender = [{ from = \"x.conf\" }]", "for example `to = \"x-${instance}.conf\"`"),
            ("instances = 2\nrender = [{ from = \"x\", to = \"a.b/x\" }]", "`to = \"a.b/x-${instance}\"`"),
        ],
    );
    let two = text.replace("from = \"etc/t.conf\"", "from = \"x\"\nto = \"conf/web-${instance}.conf\"");
    assert!(errors(&two).contains("the rendered file `conf/web-${instance}.conf` is given twice"));
}
