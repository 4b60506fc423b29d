//! A wrong manifest: exit status 3, the line, what was meant; nothing is written.

use kitbag_tests::{App, Folder};

/// Packing an app with this manifest is refused, and the message has all these texts.
#[track_caller]
fn refused(manifest: &str, expected: &[&str]) {
    let app = App::with_manifest(manifest).program("bin/hello", kitbag_tests::hello());
    let outcome = app.refused(3);
    for text in expected {
        assert!(outcome.said().contains(text), "expected `{text}`\n{outcome}");
    }
}

const INCLUDE: &str = "[[include]]\nfrom = \"tree\"\nto = \".\"\n";

#[test]
fn an_unknown_key_is_shown_with_its_line_and_the_near_miss() {
    refused("nmae = \"app\"\n", &["kitbag.toml:1:1", "`nmae`", "did you mean `name`?"]);
    let text = format!("name = \"app\"\nversion = \"1\"\ncommand = [\"bin/hello\"]\n{INCLUDE}form = \"x\"\n");
    refused(&text, &["kitbag.toml:7:1", "did you mean `from`?"]);
}

#[test]
fn a_wrong_type_is_shown_with_what_was_expected() {
    refused("name = \"app\"\nversion = 1\n", &["kitbag.toml:2:11", "expected a string"]);
}

#[test]
fn a_program_that_is_missing_is_shown_with_the_one_that_was_meant() {
    let text = format!("name = \"app\"\nversion = \"1\"\ncommand = [\"bin/helo\"]\n{INCLUDE}");
    refused(&text, &["kitbag.toml:3", "bin/helo", "did you mean `bin/hello`?"]);
}

#[test]
fn a_schedule_that_the_supervisor_would_refuse_is_shown_where_it_stands() {
    let before = "name = \"app\"\nversion = \"1\"\n[services.web]\nargv = [\"bin/hello\"]\n";
    let schedule = |text: &str| {
        format!("{before}[tasks.tidy]\nargv = [\"bin/hello\"]\nschedule = \"{text}\"\n{INCLUDE}")
    };
    let refused = |text, why| refused(&schedule(text), &["kitbag.toml:7:12", "bad schedule", why]);
    refused("0 25 * * *", "`25`, hour, is not from 0 to 23");
    refused("*/90 * * * *", "the step of `*/90`, minute, is not from 1 to 59");
    refused("0 0 30,31 feb *", "there is no day 30 in that month");
    refused("@dayly", "expected `@daily` or five fields");
}

#[test]
fn a_missing_file_is_shown_with_the_one_that_was_meant() {
    let text = "name = \"app\"\nversion = \"1\"\ncommand = [\"bin/hello\"]\n[[include]]\nfrom = \"tre\"\nto = \".\"\n";
    refused(text, &["kitbag.toml:5", "`tre`", "did you mean `tree`?"]);
}

#[test]
fn paths_that_escape_the_tree_are_refused() {
    for to in ["../out", "/etc/cron.d", "a/../../b", ""] {
        let text = format!(
            "name = \"app\"\nversion = \"1\"\ncommand = [\"bin/hello\"]\n[[include]]\nfrom = \"tree\"\nto = \"{to}\"\n"
        );
        refused(&text, &["kitbag.toml:6"]);
    }
    let text = format!("name = \"app\"\nversion = \"1\"\ncommand = [\"../../bin/sh\"]\n{INCLUDE}");
    refused(&text, &["kitbag.toml:3"]);
    let text = format!("name = \"app\"\nversion = \"1\"\ncommand = [\"/bin/sh\"]\n{INCLUDE}");
    refused(&text, &["kitbag.toml:3"]);
}

#[test]
fn two_files_for_one_place_are_refused() {
    let text = format!(
        "name = \"app\"\nversion = \"1\"\ncommand = [\"bin/hello\"]\n{INCLUDE}[[include]]\nfrom = \"kitbag.toml\"\nto = \"bin/hello\"\n"
    );
    refused(&text, &["kitbag.toml:8", "bin/hello"]);
}

#[test]
fn an_empty_command_is_refused() {
    refused(
        &format!("name = \"app\"\nversion = \"1\"\ncommand = []\n{INCLUDE}"),
        &["kitbag.toml:3", "empty"],
    );
}

#[test]
fn a_seed_that_is_not_in_the_tree_is_refused() {
    let text = format!(
        "name = \"app\"\nversion = \"1\"\ncommand = [\"bin/hello\"]\n{INCLUDE}[[seed]]\nfrom = \"bin/helo\"\n"
    );
    refused(&text, &["kitbag.toml:8", "did you mean `bin/hello`?"]);
}

#[test]
fn an_unknown_placeholder_is_refused() {
    let text = format!("name = \"app\"\nversion = \"1\"\ncommand = [\"bin/hello\", \"${{tre}}\"]\n{INCLUDE}");
    refused(&text, &["kitbag.toml:3", "tre"]);
}

#[test]
fn toml_that_is_none_is_shown_with_its_line() {
    refused("name = \"app\"\nversion =\n", &["kitbag.toml:2"]);
}

#[test]
fn all_errors_are_shown_at_once() {
    refused(
        "nmae = \"app\"\nversion = 1\ncommand = []\n",
        &["kitbag.toml:1:1", "kitbag.toml:2:11", "kitbag.toml:3:11"],
    );
}

#[test]
fn a_folder_without_a_manifest_is_named() {
    let folder = Folder::new();
    let outcome = kitbag_tests::Cmd::kitbag(["pack"]).arg(folder.path()).run();
    let failed = matches!(outcome.status.code(), Some(2 | 3));
    outcome.check(failed, "exit status 2 or 3").says("kitbag.toml");
}

/// A service bundle of `bin/hello` with `lines` in `web`'s table, and a service `cache` with a port.
fn served(lines: &str) -> String {
    format!(
        "name = \"app\"\nversion = \"1\"\n{INCLUDE}[services.web]\nargv = [\"bin/hello\"]\n{lines}\n[services.cache]\n\
         argv = [\"bin/hello\"]\nports.main = 6379\n"
    )
}

#[test]
fn two_services_with_one_port_are_refused() {
    let lines = "ports.http = { port = 6379, address = \"public\" }";
    refused(&served(lines), &["kitbag.toml:11:7", "`web.http` and `cache.main` have one port: 6379/tcp"]);
}

#[test]
fn a_port_that_nobody_declares_is_refused_with_the_one_that_was_meant() {
    refused(
        &served("env = { CACHE = \"redis://${ports.cache.mian:address}/\" }"),
        &[
            "kitbag.toml:8:26",
            "`cache` declares no port `mian`",
            "did you mean `${ports.cache.main:address}`?",
        ],
    );
    refused(
        &served("ready = { tcp = \"${port.http:address}\" }"),
        &["kitbag.toml:8", "`web` declares no port `http`", "write `[services.web.ports]`"],
    );
    refused(&served("sandbox.connect = [\"chache.main\"]"), &["kitbag.toml:8", "did you mean `cache.main`?"]);
}

#[test]
fn a_port_for_fewer_than_all_instances_is_refused_with_both_ways_out() {
    let lines = "instances = 2\nports.http = 8080";
    refused(&served(lines), &["kitbag.toml:9", "`socket = true`", "`range = \"8080-8081\"`"]);
}

#[test]
fn a_port_where_none_can_be_known_is_refused() {
    refused(
        &served("cwd = \"${port.http}\""),
        &["kitbag.toml:8", "cannot stand here", "can stand in `argv` and `env`"],
    );
    let tool =
        format!("name = \"app\"\nversion = \"1\"\ncommand = [\"bin/hello\", \"${{port.http}}\"]\n{INCLUDE}");
    refused(&tool, &["kitbag.toml:3", "only a service has ports"]);
}

#[test]
fn a_wrong_placeholder_in_a_rendered_file_is_shown_with_its_line_and_column() {
    let app = |from: &str| {
        let manifest =
            served(&format!("render = [{{ from = \"{from}\", to = \"web.conf\" }}]\nports.http = \"any\""));
        let app = App::with_manifest(&manifest).program("bin/hello", kitbag_tests::hello());
        app.file("etc/web.conf", "listen ${port.http:listen};\n  cache ${ports.cahce.main};\n")
    };
    let outcome = app("etc/web.conf").refused(3);
    outcome.says("kitbag.toml:8:20").says("`etc/web.conf`, line 2, column 9: there is no service `cahce`");
    app("etc/web.cnf").refused(3).says("did you mean `etc/web.conf`?");
}

#[test]
fn inspect_shows_ports() {
    let lines = "instances = 2\nports = { http = { prefer = \"${env.PORT:-8080}\", range = \"8000-8999\" }, app = { socket = true } }";
    let app = App::with_manifest(&served(lines)).program("bin/hello", kitbag_tests::hello());
    let bundle = app.pack();
    let shown = |outcome: kitbag_tests::Outcome| {
        outcome
            .succeeds()
            .prints("app: any/tcp, loopback, inherited\n")
            .prints("http: 8000-8999/tcp, ${env.PORT:-8080} first, loopback\n")
            .prints("main: 6379/tcp, loopback\n");
    };
    shown(bundle.run(["inspect"]));
    shown(kitbag_tests::Cmd::kitbag(["inspect"]).arg(&bundle.file).run());
    let json = bundle.run(["inspect", "--json"]).succeeds().text();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let web = &json["manifest"]["services"]["cache"];
    assert_eq!(web["env"]["PORT"], "${port.main}");
    assert_eq!(web["ports"]["main"]["number"]["fixed"], "6379");
    assert_eq!(web["process"]["sandbox"]["bind"], "declared");
}
