//! Ports in the manifest that travels, and files that are rendered.

use std::fs;

use kitbag_format::manifest::{Manifest, Run, Service};

use super::{Folder, services};
use crate::plan::Plan;

/// A plan of `web`, with these lines in its table, and a file `bin/web.conf` of this text.
fn with(lines: &str, conf: &[u8]) -> Result<Plan, String> {
    let folder = Folder::new();
    folder.file("bin/web.conf", 0o644);
    fs::write(folder.path("bin/web.conf"), conf).expect("a file");
    folder.plan_all(&services(&format!(
        "[services.web]\nargv = [\"bin/app\"]\n{lines}\n[services.cache]\nargv = [\"bin/app\"]\nports.main = \"any\"\n"
    )))
}

fn web(manifest: &Manifest) -> &Service {
    let Run::Services(services) = &manifest.run else { panic!("{manifest:?}") };
    &services["web"]
}

/// What `PORT` is for a service with these lines, and for its probe.
fn told(lines: &str) -> Option<String> {
    let plan = with(&format!("ready = {{ command = [\"bin/app\"] }}\n{lines}"), b"").expect("a plan");
    let commands = web(&plan.manifest).commands();
    let ports: Vec<_> = commands.iter().map(|command| command.env.get("PORT").cloned()).collect();
    assert_eq!((ports.len(), &ports[0]), (2, &ports[1]), "a probe knows the same");
    ports[0].clone()
}

#[test]
fn an_only_number_is_told_by_the_usual_variable() {
    let http = Some("${port.http}".to_owned());
    assert_eq!(told(""), None);
    assert_eq!(told("ports.http = \"any\""), http);
    assert_eq!(told("ports.http = { protocol = \"udp\" }"), http);
    assert_eq!(told("ports = { http = 80, rpc = { protocol = \"unix\" } }"), http);
    assert_eq!(told("ports = { http = 80, admin = \"any\" }"), None, "which of them is not for us to say");
    assert_eq!(told("ports.rpc = { protocol = \"unix\" }"), None);
    assert_eq!(told("ports.http = 80\nenv = { PORT = \"\" }"), Some(String::new()));
}

#[test]
fn ports_travel_with_every_default_made_explicit() {
    let plan = with(
        "render = [{ from = \"bin/web.conf\", to = \"web.conf\" }]\n[services.web.ports]\nhttp = 80\n\
         app = { socket = true }\n[services.web.sandbox]\nconnect = [\"cache.main\"]",
        b"",
    )
    .expect("a plan");
    let text = plan.manifest.to_text();
    for part in [
        "\"fixed\": \"80\"",
        "\"backlog\": 4096",
        "\"address\": \"loopback\"",
        "\"bind\": \"declared\"",
        "\"cache.main\"",
        "\"to\": \"web.conf\"",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    let again = Manifest::from_text(&text).expect("a manifest");
    assert_eq!((&again, again.fault()), (&plan.manifest, None));
}

const RENDER: &str = "render = [{ from = \"bin/web.conf\", to = \"web.conf\" }]\nports.http = 80";

#[test]
fn a_file_that_is_rendered_names_ports_that_are_there() {
    let sound = "listen ${port.http:listen};\ncache ${ports.cache.main} in ${state};\n# $host costs $$5\n\
                 other ${ports.redis/cache.main:address:-none} ${instance} ${env.HOME:-/}\n";
    let plan = with(RENDER, sound.as_bytes()).expect("a plan");
    assert_eq!(plan.warnings, [""; 0]);
    for (text, expected) in [
        (
            "a\n  b ä ${port.htpp}",
            &["`bin/web.conf`, line 2, column 7: `web` declares no port", "`${port.http}`?"][..],
        ),
        ("${ports.cahce.main}", &["line 1, column 1: there is no service `cahce`", "${ports.cache.main}"]),
        (
            "\n\nx${host}",
            &["`bin/web.conf`, line 3, column 2: there is no placeholder `${host}`", "`$$` writes"],
        ),
        ("x\n${ y\n}", &["line 2, column 1: `${` has no closing `}`", "`$$` writes a dollar sign"]),
        ("x ${port.http", &["line 1, column 3: `${` has no closing `}`"]),
        ("${port.http:-1}", &["has no effect"]),
    ] {
        let error = with(RENDER, text.as_bytes()).expect_err("a wrong file");
        assert!(error.contains("kitbag.toml:"), "{error}");
        for expected in expected {
            assert!(error.contains(expected), "{text}\nexpected: {expected}\nfound: {error}");
        }
    }
}

#[test]
fn what_is_rendered_is_a_text_of_the_tree() {
    let error = with(RENDER, b"abc\n\xff").expect_err("no text");
    assert!(error.contains("`bin/web.conf` cannot be rendered"), "{error}");
    assert!(error.contains("it is not UTF-8 text: byte 4, in line 2"), "{error}");
    assert!(with(RENDER, &[b'x'; 1 << 20]).is_ok(), "1 MiB is not too large");
    let error = with(RENDER, &[b'x'; (1 << 20) + 1]).expect_err("too large");
    assert!(error.contains("it has 1048577 bytes; expected 1048576 at most"), "{error}");
    let error = with(&RENDER.replace("bin/web.conf", "bin/web.cnf"), b"").expect_err("not there");
    assert!(error.contains("there is no `bin/web.cnf` in the tree"), "{error}");
    assert!(error.contains("did you mean `bin/web.conf`?"), "{error}");
    let error = with(&RENDER.replace("bin/web.conf", "bin"), b"").expect_err("a folder");
    assert!(error.contains("it is a folder, not a file"), "{error}");
}

#[test]
fn a_task_has_files_but_no_port_of_its_own() {
    let lines = "[tasks.t]\nargv = [\"bin/app\"]\nrender = [{ from = \"bin/web.conf\" }]\n";
    let plan = with(lines, b"${ports.cache.main}").expect("a plan");
    assert_eq!(plan.manifest.tasks["t"].process.render[0].to, "web.conf");
    let error = with(lines, b"${port.main}").expect_err("a task has none");
    assert!(error.contains("`bin/web.conf`, line 1, column 1: `${port.main}` in a task"), "{error}");
}

#[test]
fn state_is_not_rendered_over() {
    let seed = "[[seed]]\nfrom = \"bin/app\"\nto = \"web.conf\"\n";
    let error = with(&format!("{RENDER}\n{seed}"), b"").expect_err("one place for two");
    assert!(error.contains("a seed and a rendered file both become `web.conf`"), "{error}");
}

#[test]
fn a_bundle_that_names_itself_gets_a_warning() {
    let itself = |lines: &str, conf: &str| with(lines, conf.as_bytes()).expect("a plan").warnings.join("\n");
    let found = itself("env = { A = \"${ports.app/cache.main}\" }", "");
    assert!(found.contains("`ports.app/cache.main` names this bundle itself"), "{found}");
    assert!(found.contains("write `ports.cache.main`") && found.contains("line "), "{found}");
    let found = itself(RENDER, "x\n${ports.app/cache.main}");
    assert!(found.contains("(`bin/web.conf`, line 2, column 1)"), "{found}");
    assert!(itself("sandbox.connect = [\"app/cache.main\"]", "").contains("names this bundle itself"));
    assert_eq!(itself("env = { A = \"${ports.other/cache.main}\" }", ""), "");
    let prefers = itself("ports = { a = 80, b = { prefer = 80, range = \"8000-8999\" } }", "");
    assert!(prefers.contains("`web.b` prefers 80 and never gets it: it is `web.a`'s ("), "{prefers}");
}
