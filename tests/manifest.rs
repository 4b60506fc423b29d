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
