//! What README.md and docs/ tell people to type works as it stands there.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use kitbag_tests::{App, Bundle, Cmd, Folder, Sandbox, copy, guestbook, page, same_tree, tools, workspace};
use nix::sys::signal::Signal;

/// The blocks of a document that are in this language.
fn blocks(document: &str, language: &str) -> Vec<String> {
    let text = fs::read_to_string(workspace().join(document)).unwrap();
    let begin = format!("```{language}\n");
    text.split(&begin).skip(1).filter_map(|rest| rest.split("```").next()).map(str::to_owned).collect()
}

#[test]
fn the_readmes_first_command_builds_packs_and_serves_a_page() {
    let blocks = blocks("README.md", "sh");
    assert_eq!(blocks[0], "cargo run --release -- run fixtures/guestbook\n");
    // Built before, so that what follows waits for a server and not for a compiler.
    let _ = (kitbag_tests::kitbag(), guestbook());
    let sandbox = Sandbox::new();
    let start = Cmd::new("sh").args(["-c", &format!("exec {}", blocks[0].trim())]).cwd(workspace());
    let start = start.env_remove("KITBAG_GC").env("XDG_CACHE_HOME", sandbox.path().join("cache"));
    let mut running = start.env("KITBAG_STORE", sandbox.store()).env("KITBAG_STATE", sandbox.state()).start();
    let said = running.wait_print("/\n");
    let url = said.split("http://").nth(1).unwrap().split('/').next().unwrap();
    let page = page::get(url, "/");
    assert!(page.starts_with("HTTP/1.1 200 OK\r\n") && page.contains("<html"), "{page}");
    // `^C`, as the read-me says.
    running.signal(Signal::SIGINT);
    running.ended().exits(0);
}

#[test]
fn the_readmes_second_command_is_there_and_executable() {
    assert_eq!(blocks("README.md", "sh")[1], "tests/run\n");
    let mode = fs::metadata(workspace().join("tests/run")).unwrap().permissions().mode();
    assert_eq!(mode & 0o111, 0o111);
}

#[test]
fn the_readmes_manifest_packs_and_starts() {
    let app = App::with_manifest(&blocks("README.md", "toml")[0]);
    fs::create_dir(app.dir().join("bin")).unwrap();
    copy(&kitbag_tests::helper("sleeps"), &app.dir().join("bin/notes"));
    let bundle = app.pack();
    let mut running = bundle.command([""; 0]).start();
    running.wait_print("web | sleeps: ready");
    running.stop().exits(0);
}

/// A tree with something of everything.
fn app() -> (App, Bundle) {
    let app = App::tool().file("share/notes.txt", "notes\n").file("share/empty", "");
    std::os::unix::fs::symlink("notes.txt", app.tree("share/link")).unwrap();
    let bundle = app.pack();
    (app, bundle)
}

/// The document's first two blocks get the tree of the file `app` back, each in a folder that holds it alone.
#[test]
fn the_formats_ways_by_hand_get_everything_back() {
    if !tools(&["objcopy", "zstd", "tar", "grep", "od", "bash"]) {
        return;
    }
    let (app, bundle) = app();
    for script in &blocks("docs/format.md", "sh")[..2] {
        let folder = Folder::new();
        copy(&bundle.file, &folder.join("app"));
        let outcome = Cmd::new("bash").args(["-euc", script]).cwd(folder.path()).run().succeeds();
        outcome.prints("\"name\": \"app\"");
        same_tree(&app.tree(""), &folder.join("tree"));
        Cmd::kitbag(["verify"]).arg(folder.join("app")).run().succeeds();
    }
}

#[test]
fn the_operators_commands_work() {
    let bundle = guestbook();
    let folder = bundle.sandbox.path().join("here");
    fs::create_dir(&folder).unwrap();
    copy(&bundle.file, &folder.join("guestbook"));
    let all = blocks("docs/operations.md", "sh").concat();
    let commands: Vec<&str> = all.lines().filter(|line| line.starts_with("./guestbook ")).collect();
    assert!(commands.len() >= 2, "{all}");
    for command in commands {
        bundle.sandbox.command("sh").args(["-c", command]).cwd(&folder).run().succeeds();
    }
}

#[test]
fn every_command_that_help_names_has_help_of_its_own() {
    let help = Cmd::kitbag(["--help"]).run().succeeds();
    for command in ["init", "pack", "run", "inspect", "list", "unpack", "verify", "completions"] {
        assert!(help.text().contains(&format!("\n  {command} ")), "{command}\n{help}");
        Cmd::kitbag([command, "--help"]).run().succeeds().prints("Example").prints("Usage:");
    }
    for shell in ["bash", "zsh", "fish"] {
        Cmd::kitbag(["completions", shell]).run().succeeds().prints("kitbag");
    }
}

#[test]
fn the_exit_codes_of_help_are_those_of_the_operators_table() {
    let help = Cmd::kitbag(["--help"]).run().succeeds().text();
    let listed = help.split("Exit codes:").nth(1).unwrap();
    let of_help: Vec<u32> =
        listed.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect();
    let table = fs::read_to_string(workspace().join("docs/operations.md")).unwrap();
    let table = table.split("## Exit codes").nth(1).unwrap().split("\n## ").next().unwrap().to_owned();
    let of_table: Vec<u32> =
        table.lines().filter_map(|line| line.split('|').nth(1)?.trim().parse().ok()).collect();
    assert_eq!(of_help, of_table);
}

/// The texts of all Rust files below a folder.
fn sources(folder: &std::path::Path, text: &mut String) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if entry.file_type().unwrap().is_dir() {
            sources(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&fs::read_to_string(&path).unwrap());
        }
    }
}

#[test]
fn every_test_that_the_architecture_names_point_by_point_exists() {
    let document = fs::read_to_string(workspace().join("docs/architecture.md")).unwrap();
    let section = document.split("## Supervision, point by point").nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let points: Vec<u32> =
        section.lines().filter_map(|line| line.split('|').nth(1)?.trim().parse().ok()).collect();
    assert_eq!(points, (1..=71).collect::<Vec<_>>());
    let mut code = String::new();
    for folder in ["supervisor/src", "supervisor/tests", "tests"] {
        sources(&workspace().join(folder), &mut code);
    }
    // A test's name is a sentence.
    let names: Vec<&str> = section
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|word| word.matches('_').count() >= 3 && !word.contains(['/', '.', ':']))
        .collect();
    assert!(names.len() > 60, "{names:?}");
    let missing: Vec<&&str> = names.iter().filter(|name| !code.contains(&format!("fn {name}()"))).collect();
    assert!(missing.is_empty(), "no test has these names: {missing:?}");
}
