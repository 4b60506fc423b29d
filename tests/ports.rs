//! Ports: which ones services get, how they are told, who finds whom, and who is kept off.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use kitbag_tests::{
    App, Bundle, Cmd, Folder, Outcome, Sandbox, eventually, fixtures, is_root, kept, kitbag, root, tools,
};
use serde_json::Value;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A bundle of `listens` with these services: name, arguments, further lines.
fn listeners(services: &[(&str, &str, &str)]) -> App {
    let tables = services.iter().map(|(name, argv, more)| {
        format!("[services.{name}]\nargv = [\"bin/listens\", {argv}]\nstop-timeout = \"5s\"\n{more}\n")
    });
    App::new(&tables.collect::<String>()).helper("listens")
}

/// One service `web` that listens at its port `http`, declared as `port`.
fn web(port: &str) -> App {
    listeners(&[("web", "\"${port.http:listen}\"", &format!("ports.http = {port}\n{READY}"))])
}

const READY: &str = "ready = { tcp = \"${port.http:address}\" }";

fn json(outcome: Outcome) -> Value {
    serde_json::from_str(&outcome.text()).unwrap_or_else(|why| panic!("{why}\n{outcome}"))
}

/// What `ports --json` says of `unit.port`.
#[track_caller]
fn port(bundle: &Bundle, name: &str) -> Value {
    let told = json(bundle.run(["ports", "--json"]).exits(0));
    let (unit, port) = name.rsplit_once('.').unwrap();
    let all = told["ports"].as_array().unwrap();
    let found = all.iter().find(|it| it["unit"] == unit && it["port"] == port);
    found.unwrap_or_else(|| panic!("{name} is not in {told}")).clone()
}

#[track_caller]
fn number(bundle: &Bundle, name: &str) -> u16 {
    port(bundle, name)["number"].as_u64().unwrap().try_into().unwrap()
}

#[track_caller]
fn unit(bundle: &Bundle, name: &str) -> Value {
    let outcome = bundle.run(["status", "--json"]);
    let told: Value = serde_json::from_str(&outcome.text()).unwrap_or_else(|why| panic!("{why}\n{outcome}"));
    told["units"].as_array().unwrap().iter().find(|unit| unit["name"] == name).unwrap().clone()
}

/// What `listens` answers at this address: its process id, and what it says.
fn answer(address: &str) -> Option<(i32, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let (pid, says) = text.trim_end_matches('\n').split_once(' ')?;
    Some((pid.parse().ok()?, says.to_owned()))
}

/// A number that nobody has at this moment, for a manifest that wants one in particular. Below those that leases choose from.
fn free_number() -> u16 {
    let own = (std::process::id() % 5000) as u16 * 2 + 9000;
    (own..20_000).find(|number| TcpListener::bind(("::", *number)).is_ok()).expect("a free port")
}

// --- Which number ---

#[test]
fn services_get_numbers_of_their_own_know_each_others_and_get_them_again() {
    let app = listeners(&[
        (
            "web",
            "\"${port.http:listen}\", \"--says\", \"${port.http} ${ports.db.main} ${ports.db.1.main:address}\"",
            &format!("ports.http = \"any\"\n{READY}"),
        ),
        ("db", "\"${port.main:listen}\"", "ports.main = \"any\"\ninstances = 2"),
    ]);
    let bundle = app.pack();
    bundle.run(["start"]).exits(0);
    let numbers = ["web.http", "db.0.main", "db.1.main"].map(|name| number(&bundle, name));
    assert_eq!(numbers.iter().collect::<BTreeSet<_>>().len(), 3, "{numbers:?}");
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
    let ephemeral: u16 = range.split_whitespace().next().unwrap().parse().unwrap();
    assert!(numbers.iter().all(|number| (20_000..ephemeral).contains(number)), "{numbers:?}, {range}");
    let [http, first, second] = numbers;
    let (_, says) = answer(&format!("127.0.0.1:{http}")).expect("it listens");
    assert_eq!(says, format!("{http} {first} 127.0.0.1:{second}"));
    for number in [first, second] {
        eventually(PATIENCE, "both listen", || answer(&format!("127.0.0.1:{number}")).is_some());
    }
    // For scripts, in the form of services(5).
    let lines = fs::read_to_string(bundle.sandbox.state().join(".kitbag/ports")).unwrap();
    assert!(lines.contains(&format!("web.http {http}/tcp\n")), "{lines}");
    bundle.run(["ports", "web"]).exits(0).prints(&format!("web.http  {http}/tcp  127.0.0.1:{http}  own"));
    bundle.run(["ports", "web.0"]).exits(0).prints(&format!("web.http  {http}/tcp  127.0.0.1:{http}  own"));
    bundle.run(["ports", "wbe"]).exits(2).says("there is no service `wbe`");
    bundle.run(["stop"]).exits(0);
    bundle.run(["ports"]).exits(9);
    let lines = fs::read_to_string(bundle.sandbox.state().join(".kitbag/ports")).unwrap();
    assert!(lines.contains(&format!("#had web.http {http}/tcp\n")), "{lines}");
    assert!(lines.lines().all(|line| line.starts_with('#')), "{lines}");
    bundle.run(["start"]).exits(0);
    assert_eq!(["web.http", "db.0.main", "db.1.main"].map(|name| number(&bundle, name)), numbers);
    // One more gets one more, and it is known.
    bundle.run(["scale", "db=3"]).exits(0);
    let third = number(&bundle, "db.2.main");
    assert!(!numbers.contains(&third));
    let events = bundle.run(["events"]).exits(0).text();
    assert!(events.contains(&format!("\"detail\":\"main is 127.0.0.1:{third}/tcp\"")), "{events}");
    bundle.run(["stop"]).exits(0);
    for number in numbers {
        TcpListener::bind(("127.0.0.1", number)).expect("the port is free");
    }
}

#[test]
fn a_preferred_number_gives_way_and_a_fixed_one_says_who_has_it() {
    let number = free_number();
    let taken = TcpListener::bind(("127.0.0.1", number)).unwrap();
    let range = format!("{{ prefer = {number}, range = \"{}-{}\" }}", number + 1, number + 200);
    let other = web(&range).pack();
    other.run(["start"]).exits(0);
    assert!((number + 1..=number + 200).contains(&self::number(&other, "web.http")));
    other.run(["stop"]).exits(0);

    let fixed = web(&number.to_string()).pack();
    let refused = fixed.run(["start", "--timeout", "1s"]).exits(10);
    let who = format!("port http: port {number}/tcp is taken by process {}, `", std::process::id());
    refused.says(&who).says("stop it, or declare another number, or a range");
    assert_eq!(unit(&fixed, "web")["state"], "retrying");
    drop(taken);
    fixed.run(["wait", "--ready", "--timeout", "30s"]).exits(0);
    assert!(answer(&format!("127.0.0.1:{number}")).is_some());

    // One of ours is named, with its service.
    let late = web(&number.to_string()).pack();
    let refused =
        late.command(["start", "--timeout", "1s"]).env("KITBAG_RUN", fixed.sandbox.run()).run().exits(10);
    refused.says(&format!("port {number}/tcp is taken by service `web` of the bundle `app` (process "));
    late.run(["stop"]).exits(0);
    fixed.run(["stop"]).exits(0);
    let never = listeners(&[(
        "web",
        "\"${port.http:listen}\"",
        &format!("restart = \"never\"\nports.http = {number}"),
    )]);
    let (never, _taken) = (never.pack(), TcpListener::bind(("0.0.0.0", number)).unwrap());
    never.run(["start"]).exits(7).says(&who);
    never.run(["stop"]).exits(0);
}

#[test]
fn instances_that_would_share_a_number_or_a_file_are_refused_with_what_to_write() {
    let app = listeners(&[
        ("web", "\"${port.http:listen}\"", &format!("ports.http = {}", free_number())),
        ("conf", "\"${port.x:listen}\"", "ports.x = \"any\"\nrender = [{ from = \"web.conf\" }]"),
        (
            "many",
            "\"${port.x:listen}\"",
            "ports.x = \"any\"\nrender = [{ from = \"web.conf\", to = \"${instance}\" }]",
        ),
    ]);
    let bundle = app.file("web.conf", "nothing\n").pack();
    bundle.run(["start"]).exits(0);
    let refused = bundle.run(["scale", "web=2"]).exits(2);
    refused
        .says("cannot run 2 instances of web: the port `http` has fewer numbers")
        .says("`socket = true` in the manifest");
    let refused = bundle.run(["scale", "conf=3"]).exits(2);
    refused
        .says("cannot run 3 instances of conf: all have one file `web.conf`")
        .says("to = \"web-${instance}.conf\"");
    for whole in ["web=0", "web=1", "conf=0", "conf=1", "many=2"] {
        bundle.run(["scale", whole]).exits(0);
    }
    for name in ["web", "conf", "many.1"] {
        eventually(PATIENCE, name, || unit(&bundle, name)["state"] == "ready");
    }
    bundle.run(["stop"]).exits(0);
}

#[test]
fn a_range_of_which_all_are_taken_says_so() {
    let number = free_number();
    let taken: Vec<TcpListener> =
        (number..number + 3).filter_map(|it| TcpListener::bind(("::", it)).ok()).collect();
    let bundle = web(&format!("{{ range = \"{number}-{}\" }}", number + 2)).pack();
    let refused = bundle.run(["start", "--timeout", "1s"]).exits(10);
    let told =
        format!("all ports from {number} to {}/tcp are taken; declare a larger range, or `any`", number + 2);
    refused.says(&format!("{told}; {number} by process {}, `", std::process::id()));
    drop(taken);
    bundle.run(["wait", "--ready", "--timeout", "30s"]).exits(0);
    bundle.run(["stop"]).exits(0);
}

#[test]
fn a_number_below_those_for_all_tells_an_ordinary_user_three_ways_out() {
    if !root("becoming another user") || !tools(&["setpriv"]) {
        return;
    }
    let bundle = web("81").pack();
    for folder in [bundle.sandbox.path().to_owned(), bundle.sandbox.home()] {
        std::os::unix::fs::chown(folder, Some(65534), Some(65534)).unwrap();
    }
    let refused = bundle
        .command(["start", "--timeout", "1s"])
        .behind("setpriv", ["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .run()
        .exits(10);
    refused
        .says("port 81 is below 1024 (net.ipv4.ip_unprivileged_port_start)")
        .says("have 81 forwarded to it")
        .says("sysctl net.ipv4.ip_unprivileged_port_start=81")
        .says("start this as root with `user = ");
    bundle
        .command(["stop"])
        .behind("setpriv", ["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .run()
        .exits(0);
}

#[test]
fn a_number_is_kept_while_its_service_does_not_run() {
    let bundle = web("\"any\"").pack();
    bundle.run(["start"]).exits(0);
    let number = number(&bundle, "web.http");
    bundle.run(["stop", "web"]).exits(0);
    // Also for those who set SO_REUSEADDR, as std does.
    let error = TcpListener::bind(("127.0.0.1", number)).expect_err("it is held");
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    assert!(TcpStream::connect(("127.0.0.1", number)).is_err(), "nobody listens");
    bundle.run(["start", "web"]).exits(0);
    assert!(answer(&format!("127.0.0.1:{number}")).is_some());
    bundle.run(["stop"]).exits(0);
}

#[test]
fn a_hundred_copies_at_once_have_a_number_each() {
    const COPIES: usize = 100;
    let bundle = web("\"any\"").pack();
    bundle.run(["inspect"]).exits(0);
    let state = |copy: usize| bundle.sandbox.path().join(format!("state-{copy}"));
    let command = |copy: usize, word: &str| {
        bundle
            .command([word])
            .env("KITBAG_STATE", state(copy))
            .env("KITBAG_NAME", format!("copy-{copy}"))
            .within(PATIENCE * 2)
    };
    // Unpacked once.
    command(0, "start").run().exits(0);
    let running: Vec<_> = (1..COPIES).map(|copy| command(copy, "start").start()).collect();
    running.into_iter().for_each(|it| _ = it.ended().exits(0));
    let all = json(command(0, "ports").args(["--host", "--json"]).run().exits(0));
    let numbers: BTreeSet<u64> = all["bundles"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|bundle| bundle["ports"].as_array().unwrap())
        .map(|port| port["number"].as_u64().unwrap())
        .collect();
    assert_eq!(numbers.len(), COPIES, "{all}");
    let stopping: Vec<_> = (0..COPIES).map(|copy| command(copy, "stop").start()).collect();
    stopping.into_iter().for_each(|it| _ = it.ended().exits(0));
    let left: Vec<_> =
        fs::read_dir(bundle.sandbox.run()).unwrap().flatten().map(|it| it.file_name()).collect();
    assert_eq!(left, [""; 0], "the registry is empty");
}

// --- Handing over ---

#[test]
fn the_one_port_of_a_service_is_in_the_variable_port() {
    let app = App::new(&format!(
        "[services.web]\nargv = [\"bin/python3\", \"serve.py\"]\nports.http = \"any\"\n{READY}\n"
    ));
    if !tools(&["python3.11"]) {
        return;
    }
    let serve = "import os, http.server as h\nh.ThreadingHTTPServer((\"127.0.0.1\", int(os.environ[\"PORT\"])), h.SimpleHTTPRequestHandler).serve_forever()\n";
    let app = with_python(app).file("serve.py", serve);
    let bundle = app.pack();
    bundle.run(["start"]).exits(0);
    let page = get(number(&bundle, "web.http"), "/");
    assert!(page.starts_with("HTTP/1.0 200 OK"), "{page}");
    bundle
        .run(["exec", "web", "--", "/bin/sh", "-c", "echo $PORT"])
        .exits(0)
        .prints(&number(&bundle, "web.http").to_string());
    bundle.run(["stop"]).exits(0);
}

#[test]
fn arguments_have_placeholders() {
    if !tools(&["python3.11"]) {
        return;
    }
    let manifest = "[services.web]\nargv = [\"bin/python3\", \"-m\", \"http.server\", \"--bind\", \"${port.http:host}\", \"${port.http}\"]\n\
         ports.http = { range = \"8000-8999\" }\nready = { http = \"http://${port.http:address}/\" }\n";
    let bundle = with_python(App::new(manifest)).pack();
    bundle.run(["start"]).exits(0);
    assert!((8000..=8999).contains(&number(&bundle, "web.http")));
    bundle.run(["stop"]).exits(0);
}

#[test]
fn redis_and_nginx_read_files_that_were_rendered_for_them() {
    if !tools(&["redis-server", "nginx"]) {
        return;
    }
    let manifest = r#"
name = "app"
version = "1.0.0"
[[include]]
from = "tree"
to = "."
[[include]]
from = "/usr/bin/redis-server"
to = "bin/redis-server"
[[include]]
from = "/usr/sbin/nginx"
to = "bin/nginx"
[services.cache]
argv = ["bin/redis-server", "${state}/redis.conf"]
ports.main = "any"
render = [{ from = "redis.conf", to = "redis.conf" }]
ready = { tcp = "${port.main:address}" }
[services.front]
argv = ["bin/nginx", "-e", "stderr", "-p", "${state}", "-c", "${state}/nginx.conf"]
ports.http = "any"
ports.admin = "any"
render = [{ from = "nginx.conf", to = "nginx.conf" }]
ready = { http = "http://${port.http:address}/" }
"#;
    let app = App::with_manifest(manifest)
        .file("redis.conf", "bind ${port.main:host}\nport ${port.main}\nsave \"\"\ndir ${state}\n")
        .file("nginx.conf", NGINX);
    let bundle = app.pack();
    bundle.run(["start"]).exits(0);
    let [front, admin] = ["front.http", "front.admin"].map(|name| number(&bundle, name));
    let page = get(front, "/");
    assert!(page.ends_with(&format!("host 127.0.0.1, cache {}", number(&bundle, "cache.main"))), "{page}");
    assert!(get(admin, "/").contains("admin"));
    let mut cache = TcpStream::connect(("127.0.0.1", number(&bundle, "cache.main"))).unwrap();
    cache.write_all(b"PING\r\n").unwrap();
    let mut pong = [0; 7];
    cache.read_exact(&mut pong).unwrap();
    assert_eq!(&pong, b"+PONG\r\n");
    // Nobody else may read what may have secrets in it.
    use std::os::unix::fs::PermissionsExt;
    let mode = fs::metadata(bundle.sandbox.state().join("redis.conf")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    bundle.run(["stop"]).exits(0);
}

/// `$host` is nginx's own; only `${…}` is a placeholder.
const NGINX: &str = "daemon off; master_process off; pid ${state}/nginx.pid; error_log stderr;
events {}
http {
    access_log off;
    client_body_temp_path ${state}/body; proxy_temp_path ${state}/proxy; fastcgi_temp_path ${state}/fastcgi;
    uwsgi_temp_path ${state}/uwsgi; scgi_temp_path ${state}/scgi;
    server { listen ${port.http:listen}; location / { return 200 \"host $host, cache ${ports.cache.main}\"; } }
    server { listen ${port.admin:listen}; location / { return 200 admin; } }
}
";

#[test]
fn gunicorn_takes_the_socket_that_it_inherits() {
    if !tools(&["python3.11"]) {
        return;
    }
    let made = kept("venv-of-ports", |venv| {
        let script =
            "python3.11 -m venv \"$0\" && \"$0\"/bin/pip install -q --disable-pip-version-check gunicorn";
        let made = Cmd::new("bash").args(["-c", script]).arg(venv).within(PATIENCE * 4).run();
        made.status.success().then_some(()).ok_or_else(|| made.to_string())
    });
    let Some(venv) = made else { return };
    let manifest = format!(
        "name = \"app\"\nversion = \"1\"\n[app.python]\ninterpreter = \"/usr/bin/python3.11\"\nvenv = \"{}\"\nproject = \"tree\"\n[services.web]\n\
         argv = [\"bin/python3\", \"-m\", \"gunicorn\", \"--workers\", \"2\", \"shop:app\"]\n\
         ports.http = {{ socket = true }}\nready = {{ http = \"http://${{port.http:address}}/\" }}\n",
        venv.display()
    );
    let app = App::with_manifest(&manifest).file("shop.py", SHOP);
    let bundle = app.pack();
    bundle.run(["start"]).exits(0);
    let page = get(number(&bundle, "web.http"), "/");
    // Its own choice would be port 8000.
    assert!(page.contains("sold"), "{page}");
    bundle.run(["ports"]).exits(0).prints("inherited");
    bundle.run(["stop"]).exits(0);
}

const SHOP: &str = "def app(environ, start):\n    start('200 OK', [])\n    return [b'sold']\n";

#[test]
fn an_inherited_socket_refuses_nobody_while_its_service_is_killed_again_and_again() {
    let app = listeners(&[(
        "web",
        "\"inherited\"",
        "instances = 2\nports.http = { socket = true }\nrestart-delay = { first = \"1ms\", longest = \"20ms\" }",
    )]);
    let bundle = app.pack();
    bundle.run(["start"]).exits(0);
    let address = format!("127.0.0.1:{}", number(&bundle, "web.http"));
    let (stop, refused, served) =
        (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let client = {
        let (stop, refused, served, address) =
            (stop.clone(), refused.clone(), served.clone(), address.clone());
        thread::spawn(move || {
            let mut pids = BTreeSet::new();
            while !stop.load(Ordering::Relaxed) {
                // A connection that was taken dies with who took it; one that waits does not.
                match TcpStream::connect(&address) {
                    Err(_) => _ = refused.fetch_add(1, Ordering::Relaxed),
                    Ok(_) => {
                        if let Some((pid, _)) = answer(&address) {
                            pids.insert(pid);
                            served.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            }
            pids
        })
    };
    for _ in 0..10 {
        let before = served.load(Ordering::Relaxed);
        for name in ["web.0", "web.1"] {
            if let Some(pid) = unit(&bundle, name)["pid"].as_i64() {
                let _ = nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(pid as i32),
                    nix::sys::signal::Signal::SIGKILL,
                );
            }
        }
        eventually(PATIENCE, "served again", || served.load(Ordering::Relaxed) > before + 5);
    }
    stop.store(true, Ordering::Relaxed);
    let pids = client.join().unwrap();
    assert_eq!(refused.load(Ordering::Relaxed), 0, "connections were refused");
    assert!(pids.len() > 5, "many processes took connections: {pids:?}");
    // Stopped, nobody waits in vain; and nobody else gets the number.
    bundle.run(["stop", "web"]).exits(0);
    assert!(TcpStream::connect(&address).is_err());
    assert!(TcpListener::bind(&address).is_err());
    bundle.run(["start", "web"]).exits(0);
    assert!(answer(&address).is_some());
    bundle.run(["stop"]).exits(0);
}

#[test]
fn sockets_of_all_kinds_are_inherited_by_name() {
    let ports = "ports.admin = { socket = true }\nports.rpc = { protocol = \"unix\", socket = true, mode = \"0660\" }\n\
                 ready = { tcp = \"${port.admin:address}\" }";
    let app = listeners(&[("web", "\"inherited\", \"--says\", \"${port.rpc}\"", ports)]);
    let bundle = app.pack();
    bundle.run(["start"]).exits(0);
    bundle.run(["logs", "web"]).exits(0).prints("listens: inherited 2 sockets: admin:rpc");
    let path = PathBuf::from(port(&bundle, "web.rpc")["path"].as_str().unwrap().to_owned());
    let mut text = String::new();
    UnixStream::connect(&path).unwrap().read_to_string(&mut text).unwrap();
    assert!(text.ends_with(&format!(" {}\n", path.display())), "{text}");
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    bundle.run(["stop"]).exits(0);
    assert!(!path.exists(), "the socket is left behind");
}

/// The path of a unix socket.
#[track_caller]
fn socket_path(bundle: &Bundle, name: &str) -> PathBuf {
    PathBuf::from(port(bundle, name)["path"].as_str().unwrap())
}

#[test]
fn services_of_several_users_reach_each_others_sockets_and_change_none() {
    if !root("services of other users") {
        return;
    }
    // One whose sockets anybody may connect to, one whose group may, and three of yet other users that try.
    let app = listeners(&[
        (
            "own",
            "\"${port.main}\"",
            "user = 4711\ngroup = 4711\numask = \"000\"\nports.main = { protocol = \"unix\" }",
        ),
        (
            "handed",
            "\"inherited\"",
            "user = 4712\ngroup = 4712\nports.main = { protocol = \"unix\", socket = true, mode = \"0660\" }",
        ),
        ("stranger", "\"${port.x:listen}\", \"--asks\", \"${ports.own.main}\"", OTHER),
        (
            "member",
            "\"${port.x:listen}\", \"--asks\", \"${ports.handed.main}\"",
            &format!("groups = [\"4712\"]\n{OTHER}"),
        ),
        ("refused", "\"${port.x:listen}\", \"--asks\", \"${ports.handed.main}\"", OTHER),
    ]);
    let bundle = app.pack();
    bundle.run(["start"]).exits(0);
    let [own, handed] = ["own.main", "handed.main"].map(|name| socket_path(&bundle, name));
    let says = |service: &str, text: &str| {
        eventually(PATIENCE, text, || bundle.run(["logs", service]).text().contains(text));
    };
    says("stranger", &format!("{} answers", own.display()));
    says("member", &format!("{} answers", handed.display()));
    says("refused", &format!("{} does not answer: Permission denied", handed.display()));
    // Whose they are. Nobody can swap a socket but the service that made it, and root.
    use std::os::unix::fs::MetadataExt;
    let of = |path: &Path| {
        let found = fs::symlink_metadata(path).unwrap();
        (found.uid(), found.gid(), found.mode() & 0o7777)
    };
    assert_eq!(of(&handed), (4712, 4712, 0o660));
    assert_eq!(of(own.parent().unwrap()), (4711, 4711, 0o711));
    let folder = handed.parent().unwrap();
    assert_eq!((of(folder), own.parent().unwrap().parent()), ((0, 0, 0o711), Some(folder)));
    assert!(folder.starts_with(bundle.sandbox.run()), "{}", folder.display());
    // A link that the service leaves in its socket's place is not followed, and not replaced.
    let elsewhere = bundle.sandbox.home().join("precious.sock");
    let listener = std::os::unix::net::UnixListener::bind(&elsewhere).unwrap();
    listener.set_nonblocking(true).unwrap();
    fs::remove_file(&own).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &own).unwrap();
    bundle.run(["stop", "own"]).exits(0);
    bundle.run(["logs"]).prints("something else is there; move it away");
    assert!(listener.accept().is_err(), "root has followed the link");
    assert!(elsewhere.exists() && fs::symlink_metadata(&own).is_ok());
    fs::remove_file(&own).unwrap();
    bundle.run(["start", "own"]).exits(0);
    eventually(PATIENCE, "it listens again", || UnixStream::connect(&own).is_ok());
    bundle.run(["stop"]).exits(0);
    assert!(!folder.exists(), "{} is left behind", folder.display());
}

/// Of a user that has nothing.
const OTHER: &str = "user = 4713\ngroup = 4713\nports.x = \"any\"";

#[test]
fn a_service_of_another_user_whose_files_are_limited_makes_its_socket() {
    if !root("a service of another user") {
        return;
    }
    let more = "user = 4711\ngroup = 4711\nports.main = { protocol = \"unix\" }\nsandbox = { files = true }";
    let bundle = listeners(&[("web", "\"${port.main}\"", more)]).pack();
    bundle.run(["start"]).exits(0);
    let path = socket_path(&bundle, "web.main");
    eventually(PATIENCE, "it listens", || UnixStream::connect(&path).is_ok());
    bundle.run(["stop"]).exits(0);
}

#[test]
fn a_udp_port_is_the_services_while_it_runs() {
    if !tools(&["python3.11"]) {
        return;
    }
    let manifest = "[services.echo]\nargv = [\"bin/python3\", \"echo.py\", \"${port.dns}\"]\nports.dns = { protocol = \"udp\" }\n";
    let echo = "import socket, sys\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.bind((\"127.0.0.1\", int(sys.argv[1])))\nwhile True:\n    data, peer = s.recvfrom(99)\n    s.sendto(data, peer)\n";
    let bundle = with_python(App::new(manifest)).file("echo.py", echo).pack();
    bundle.run(["start"]).exits(0);
    let number = number(&bundle, "echo.dns");
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    socket.connect(("127.0.0.1", number)).unwrap();
    let mut heard = [0; 9];
    eventually(PATIENCE, "an echo", || socket.send(b"hello").is_ok() && socket.recv(&mut heard).is_ok());
    bundle.run(["stop", "echo"]).exits(0);
    assert!(UdpSocket::bind(("127.0.0.1", number)).is_err(), "it is held");
    bundle.run(["stop"]).exits(0);
    UdpSocket::bind(("127.0.0.1", number)).expect("it is free");
}

// --- Finding ---

#[test]
fn a_bundle_waits_for_the_port_of_another_one_and_starts_when_it_comes() {
    let front = listeners(&[(
        "front",
        "\"${port.http:listen}\", \"--says\", \"${ports.cache/cache.main:address}\"",
        &format!("ports.http = \"any\"\n{READY}"),
    )])
    .pack();
    let waiting = front.run(["start", "--timeout", "500ms"]).exits(10);
    waiting.says("it waits for the port main of cache in the bundle cache, which does not run here");
    assert_eq!(unit(&front, "front")["state"], "waiting");
    assert_eq!(unit(&front, "front")["waits_for"], serde_json::json!(["cache/cache.main"]));
    let cache = listeners(&[("cache", "\"${port.main:listen}\"", "ports.main = \"any\"")]).pack();
    let beside = |word: &str| {
        cache.command([word]).env("KITBAG_RUN", front.sandbox.run()).env("KITBAG_NAME", "cache").run()
    };
    beside("start").exits(0);
    front.run(["wait", "--ready", "--timeout", "30s"]).exits(0);
    let says = answer(&format!("127.0.0.1:{}", number(&front, "front.http"))).unwrap().1;
    assert_eq!(says, format!("127.0.0.1:{}", number_beside(&cache, &front)));
    let host = json(front.run(["ports", "--host", "--json"]).exits(0));
    let names: BTreeSet<&str> =
        host["bundles"].as_array().unwrap().iter().map(|bundle| bundle["bundle"].as_str().unwrap()).collect();
    assert_eq!(names, BTreeSet::from(["app", "cache"]), "{host}");
    let events = front.run(["events"]).exits(0).text();
    assert!(events.contains("cache/cache.main is 127.0.0.1:"), "{events}");
    let begins = |line: &&str| line.contains("\"unit\":\"front\"") && line.contains("\"starting\"");
    let begins: Vec<&str> = events.lines().filter(begins).collect();
    assert!(begins.len() == 1 && !begins[0].contains("does not run here"), "it was found: {begins:?}");
    // A killed supervisor's entry disappears by itself.
    let pid =
        json(cache.command(["status", "--json"]).env("KITBAG_NAME", "cache").run())["pid"].as_i64().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), nix::sys::signal::Signal::SIGKILL)
        .unwrap();
    eventually(PATIENCE, "one bundle", || {
        let host = json(front.run(["ports", "--host", "--json"]).exits(0));
        host["bundles"].as_array().unwrap().len() == 1
    });
    front.run(["stop"]).exits(0);
}

#[track_caller]
fn number_beside(cache: &Bundle, front: &Bundle) -> u64 {
    let all = json(
        cache
            .command(["ports", "--json"])
            .env("KITBAG_RUN", front.sandbox.run())
            .env("KITBAG_NAME", "cache")
            .run(),
    );
    all["ports"][0]["number"].as_u64().unwrap()
}

#[test]
fn without_a_bundle_its_default_is_taken() {
    let app = listeners(&[(
        "web",
        "\"${port.http:listen}\", \"--says\", \"${ports.none/db.main:-5432} ${ports.none/db.main:address:-}.\"",
        &format!("ports.http = \"any\"\n{READY}"),
    )]);
    let bundle = app.pack();
    bundle.run(["start"]).exits(0);
    assert_eq!(answer(&format!("127.0.0.1:{}", number(&bundle, "web.http"))).unwrap().1, "5432 .");
    bundle.run(["stop"]).exits(0);
}

#[test]
fn a_further_copy_has_a_name_and_a_state_of_its_own() {
    let bundle = web("\"any\"").pack();
    let second = |word: &str| {
        let command = bundle.command([word]).env_remove("KITBAG_STATE").env("KITBAG_NAME", "second");
        command.env("XDG_STATE_HOME", bundle.sandbox.path().join("states"))
    };
    bundle.run(["start"]).exits(0);
    second("start").run().exits(0).prints("second is ready");
    let host = bundle.run(["ports", "--host"]).exits(0);
    host.prints("app 1.0.0     web.http").text();
    second("status").run().exits(0).prints("second 1.0.0  running");
    second("stop").run().exits(0).prints("second has stopped");
    bundle.run(["status"]).exits(0);
    bundle.run(["stop"]).exits(0);
    bundle
        .command(["start"])
        .env("KITBAG_NAME", "No Name")
        .run()
        .exits(2)
        .says("`No Name` is no name for a bundle");
    if is_root() {
        // Root's is by convention.
        let _ = fs::remove_dir_all("/var/lib/kitbag/second");
    }
}

#[test]
fn three_bundles_that_need_each_other_are_started_by_one_command() {
    if !tools(&["redis-server"]) {
        return;
    }
    let sandbox = Sandbox::new();
    let folder = sandbox.path().join("together");
    let together = fixtures().join("together");
    let command = |script: &str| {
        let command = sandbox
            .command(together.join(script))
            .arg(&folder)
            .within(PATIENCE * 5)
            .env_remove("KITBAG_STATE");
        let path = std::env::var_os("PATH").unwrap_or_default();
        let command = command.env("KITBAG", kitbag()).env("PATH", path);
        command
            .env("RUSTUP_HOME", rust("RUSTUP_HOME", ".rustup"))
            .env("CARGO_HOME", rust("CARGO_HOME", ".cargo"))
    };
    let up = command("up").run().succeeds();
    let text = up.text();
    let line = |name: &str| {
        text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name}\n{up}")).to_owned()
    };
    let address = |line: String| line.split_whitespace().nth(4).unwrap().to_owned();
    let (first, second) = (line("guestbook 1"), line("guestbook-next 2"));
    assert!(first.starts_with("guestbook 1.0.0") && second.starts_with("guestbook-next 2.0.0"), "{up}");
    line("redis 7");
    let (first, second) = (address(first), address(second));
    let ask = |address: &str| get(address.rsplit_once(':').unwrap().1.parse().unwrap(), "/");
    let page = ask(&first);
    assert!(page.contains(&format!("<a href=\"http://{second}/\">The other book</a>")), "{page}");
    assert!(page.contains("1 visit<"), "{page}");
    let page = ask(&second);
    assert!(page.contains(&format!("<a href=\"http://{first}/\">")) && page.contains("2 visits<"), "{page}");
    // A fourth that tries to take a taken port says who has it.
    let number = first.rsplit_once(':').unwrap().1;
    let fourth = web(number).pack();
    let refused =
        fourth.command(["start", "--timeout", "1s"]).env("KITBAG_RUN", sandbox.run()).run().exits(10);
    refused.says(&format!("port {number}/tcp is taken by service `web` of the bundle `guestbook` (process "));
    fourth.run(["stop"]).exits(0);
    command("down").run().exits(0);
}

/// Where cargo and rustup keep what they have, whatever HOME is.
fn rust(variable: &str, below_home: &str) -> PathBuf {
    let home = || Path::new(&std::env::var_os("HOME").unwrap_or_default()).join(below_home);
    std::env::var_os(variable).map_or_else(home, PathBuf::from)
}

// --- Keeping apart ---

/// Whether this kernel refuses ports (Linux 6.7, landlock(7)).
fn kernel_refuses() -> bool {
    let lsm = fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut parts = release.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    version >= (6, 7) && (lsm.is_empty() || lsm.contains("landlock"))
}

#[test]
fn a_service_binds_what_it_declares_and_no_neighbours_port() {
    let number = free_number();
    let also = format!("\"${{port.http:listen}}\", \"--also\", \"127.0.0.1:{number}\"");
    let more = format!("ports.http = \"any\"\n{READY}\n");
    let bundle = listeners(&[("web", &also, &more)]).pack();
    bundle.run(["start"]).exits(0);
    let logs = || bundle.run(["logs"]).text() + &bundle.run(["logs"]).said();
    if kernel_refuses() {
        eventually(PATIENCE, "refused", || {
            logs().contains(&format!("listens: not at 127.0.0.1:{number}: Permission denied"))
        });
    } else {
        eventually(PATIENCE, "said", || {
            logs().contains(&format!("listens on 127.0.0.1:{number}, a port that it does not declare"))
        });
    }
    bundle.run(["stop"]).exits(0);
    let open =
        listeners(&[("web", &also, &format!("{more}\n[services.web.sandbox]\nbind = \"any\""))]).pack();
    open.run(["start"]).exits(0);
    eventually(PATIENCE, "allowed", || {
        open.run(["logs"]).text().contains(&format!("listens: also at 127.0.0.1:{number}"))
    });
    open.run(["stop"]).exits(0);
}

#[test]
fn who_listens_elsewhere_is_told_where() {
    let number = free_number();
    let app = listeners(&[(
        "web",
        &format!("\"127.0.0.1:{number}\""),
        "restart = \"never\"\nports.http = \"any\"\nready = { tcp = \"${port.http:address}\", timeout = \"1s\" }\n\
         [services.web.sandbox]\nbind = \"any\"",
    )]);
    let bundle = app.pack();
    let failed = bundle.run(["start"]).exits(7);
    failed.says("was not ready within 1.0 s: ").says(&format!("it listens at 127.0.0.1:{number}"));
    bundle.run(["stop"]).exits(0);
}

#[test]
fn a_child_that_keeps_a_dead_services_socket_is_ended_before_the_next_start() {
    let app = listeners(&[(
        "web",
        "\"${port.http:listen}\", \"--keeps\"",
        &format!("ports.http = \"any\"\n{READY}"),
    )]);
    let bundle = app.pack();
    bundle.run(["start"]).exits(0);
    let address = format!("127.0.0.1:{}", number(&bundle, "web.http"));
    let (first, _) = answer(&address).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(first), nix::sys::signal::Signal::SIGKILL).unwrap();
    eventually(PATIENCE, "another process answers", || answer(&address).is_some_and(|(pid, _)| pid != first));
    bundle.run(["stop"]).exits(0);
    assert_eq!(bundle.sandbox.processes(), [0; 0], "left running");
    TcpListener::bind(&address).expect("it is free");
}

#[test]
fn a_sandbox_shows_a_service_its_own_files_alone() {
    if !kernel_refuses() || !tools(&["python3.11"]) {
        return;
    }
    let secret = Folder::new();
    fs::write(secret.join("secret"), "x").unwrap();
    let look = format!(
        "import os, tempfile\nfor path in ['{}', '/etc/shadow', os.environ['STATE'] + '/own', os.path.abspath(__file__)]:\n\
         \x20   try:\n        open(path, 'a+' if path.endswith('own') else 'r'); print('open', os.path.basename(path), flush=True)\n\
         \x20   except OSError as e: print('no', os.path.basename(path), e.errno, flush=True)\n\
         tempfile.TemporaryFile(); print('temporary', flush=True)\n",
        secret.join("secret").display()
    );
    let manifest = "[services.look]\nargv = [\"bin/python3\", \"look.py\"]\nenv = { STATE = \"${state}\", PYTHONHOME = \"${tree}/usr\" }\nrestart = \"never\"\n[services.look.sandbox]\nfiles = true\n";
    let bundle = with_python(App::new(manifest)).file("look.py", look).pack();
    let outcome = bundle.run([""; 0]).exits(0);
    outcome
        .prints("no secret 13")
        .prints("no shadow 13")
        .prints("open own")
        .prints("open look.py")
        .prints("temporary");
}

// --- What is needed ---

/// The same with Debian's Python in it.
fn with_python(app: App) -> App {
    let manifest = app.dir().join("kitbag.toml");
    let text = fs::read_to_string(&manifest).unwrap();
    let python = "[[include]]\nfrom = \"/usr/bin/python3.11\"\nto = \"bin/python3\"\n[[include]]\nfrom = \"/usr/lib/python3.11\"\n\
                  to = \"usr/lib/python3.11\"\nexclude = [\"__pycache__\", \"/test\", \"/config-*\", \"sitecustomize.py\", \"/lib2to3\", \"/idlelib\"]\n";
    let at = text.find("\n[[include]]").unwrap() + 1;
    fs::write(&manifest, format!("{}{python}{}", &text[..at], &text[at..])).unwrap();
    app
}

/// The response to a GET.
fn get(port: u16, path: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n").unwrap();
    let mut response = String::new();
    let _ = stream.read_to_string(&mut response);
    response
}

#[test]
fn a_thousand_ports_start_and_the_same_ones_come_back() {
    let ports: String = (0..50).map(|at| format!("ports.p{at} = \"any\"\n")).collect();
    let app = App::new(&format!("[services.many]\nargv = [\"bin/sleeps\"]\ninstances = 20\n{ports}"))
        .helper("sleeps");
    let bundle = app.pack();
    bundle.run(["start"]).exits(0);
    bundle.run(["stop"]).exits(0);
    let begin = Instant::now();
    bundle.run(["start"]).exits(0);
    let took = begin.elapsed();
    let all = json(bundle.run(["ports", "--json"]).exits(0));
    let numbers: BTreeSet<u64> =
        all["ports"].as_array().unwrap().iter().map(|port| port["number"].as_u64().unwrap()).collect();
    assert_eq!(numbers.len(), 1000);
    bundle.run(["stop"]).exits(0);
    // The benchmark has the figure; this is a bound for slow machines and unoptimized programs.
    assert!(took < Duration::from_secs(20), "{took:?}");
}

#[test]
fn a_registry_that_somebody_has_named_and_cannot_be_used_is_named_once() {
    let bundle = web("\"any\"").pack();
    let file = bundle.sandbox.path().join("file");
    fs::write(&file, "").unwrap();
    let command = |word: &str| bundle.command([word]).env("KITBAG_RUN", &file);
    command("ports")
        .args(["--host"])
        .run()
        .exits(0)
        .says(&format!("not read: {} (KITBAG_RUN): it is not a folder", file.display()));
    command("start").run().exits(0);
    let log = bundle.run(["logs", "_kitbag"]).text();
    assert!(!log.contains("do not see this one's ports"), "{log}");
    command("stop").run().exits(0);
}
