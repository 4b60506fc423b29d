use toml::Spanned;
use toml::de::DeTable;

use super::read;
use crate::diagnostic::{Failure, Source};

/// What is wrong with the manifest `text`, as it is shown; empty if nothing is.
pub(super) fn errors(text: &str) -> String {
    let table = DeTable::parse(text).expect("the test writes TOML");
    let (_, errors) = read(text, &Spanned::new(table.span(), table.get_ref()));
    if errors.is_empty() {
        return String::new();
    }
    let source = Source { path: "kitbag.toml".to_owned(), text: text.to_owned() };
    Failure::manifest(source, errors).render(false)
}

/// Asserts that `text` has the one error `expected`; indentation of the literal is that of the output.
#[track_caller]
pub(super) fn assert_errors(text: &str, expected: &str) {
    let found = errors(text);
    assert_eq!(found.trim_end(), expected.trim(), "\n--- found\n{found}\n--- expected\n{expected}");
}

#[test]
fn an_unknown_key_has_a_near_miss() {
    assert_errors(
        "nmae = \"x\"\n",
        "
error: unknown key `nmae` in the manifest
 --> kitbag.toml:1:1
  |
1 | nmae = \"x\"
  | ^^^^
  |
  = help: did you mean `name`?",
    );
}

#[test]
fn a_key_of_the_top_that_fell_into_a_table_is_told_where_it_belongs() {
    assert_errors(
        "[[include]]\nfrom = \"x\"\ncommand = [\"x\"]\n",
        "
error: unknown key `command` in `[[include]]`
 --> kitbag.toml:3:1
  |
3 | command = [\"x\"]
  | ^^^^^^^ expected one of `from`, `to`, `exclude`
  |
  = help: write `command` above the first line that begins with `[`",
    );
}

#[test]
fn a_wrong_type_says_what_was_expected() {
    assert_errors(
        "version = 1.2\n",
        "
error: `version` in the manifest must be a string
 --> kitbag.toml:1:11
  |
1 | version = 1.2
  |           ^^^ expected a string, found a float
  |
  = help: put it in quotes: `\"1.2\"`",
    );
    assert_errors(
        "compression = 20\n",
        "
error: `compression` in the manifest must be a whole number from 1 to 19
 --> kitbag.toml:1:15
  |
1 | compression = 20
  |               ^^ expected a whole number from 1 to 19, found `20`
  |
  = help: for example `compression = 3`",
    );
    assert_errors(
        "[cargo]\nstatic = \"yes\"\n",
        "
error: `static` in `[cargo]` must be `true` or `false`
 --> kitbag.toml:2:10
  |
2 | static = \"yes\"
  |          ^^^^^ expected `true` or `false`, found a string
  |
  = help: for example `static = true`",
    );
}

#[test]
fn every_error_is_reported_in_the_order_of_the_file() {
    let text = "name = \"Hello\"\n[services.web]\nargv = [\"bin/web\"]\nrestart = \"alway\"\nstop-timeout = \"10\"\n\
                stop-signal = \"TREM\"\n[services.Two]\nargv = []\n";
    assert_errors(
        text,
        "
error: bad name `Hello`
 --> kitbag.toml:1:8
  |
1 | name = \"Hello\"
  |        ^^^^^^^ expected a small letter or a digit at its beginning

error: unknown `restart` `alway`
 --> kitbag.toml:4:11
  |
4 | restart = \"alway\"
  |           ^^^^^^^ expected `always`, `on-failure` or `never`
  |
  = help: did you mean `always`?

error: bad duration `10`
 --> kitbag.toml:5:16
  |
5 | stop-timeout = \"10\"
  |                ^^^^ expected a number with a unit, such as `500ms`, `10s` or `1m 30s`

error: unknown signal `TREM`
 --> kitbag.toml:6:15
  |
6 | stop-signal = \"TREM\"
  |               ^^^^^^ expected a name of signal(7), such as `SIGTERM`
  |
  = help: did you mean `SIGTERM`?

error: bad service name `Two`
 --> kitbag.toml:7:11
  |
7 | [services.Two]
  |           ^^^ expected a small letter or a digit at its beginning

error: `argv` is empty
 --> kitbag.toml:8:8
  |
8 | argv = []
  |        ^^ expected a program of the tree: `[\"bin/tool\", \"--flag\"]`",
    );
}

#[test]
fn a_version_has_no_white_space() {
    assert!(errors("version = \"1 2\"").contains("expected no white space in it"));
    assert!(errors("version = \"\"").contains("expected a version"));
}

#[test]
fn a_place_stays_in_the_tree_and_is_in_normal_form() {
    assert_errors(
        "[[include]]\nfrom = \"x\"\nto = \"../x\"\n",
        "
error: `to = \"../x\"` is no place in the tree
 --> kitbag.toml:3:6
  |
3 | to = \"../x\"
  |      ^^^^^^ `..` may lead out of the tree
  |
  = help: write `to = \"x\"`",
    );
    let fault = |to: &str| errors(&format!("[[include]]\nfrom = \"x\"\nto = \"{to}\"\n"));
    assert!(fault("/x").contains("without `/` before it"));
    assert!(fault("").contains("expected a path"));
    assert!(fault("a//b").contains("help: write `to = \"a/b\"`"));
    assert!(fault("a/./b").contains("help: write `to = \"a/b\"`"));
    assert!(fault("bin/").contains("help: write `to = \"bin\"`"));
    assert!(fault("a\\u0000b").contains("cannot contain NUL"));
    assert_eq!(fault("."), "");
}

#[test]
fn what_lies_outside_needs_a_place() {
    assert_errors(
        "[[include]]\nfrom = \"../shared/logo.png\"\n",
        "
error: `../shared/logo.png` lies outside of the manifest's folder
 --> kitbag.toml:2:8
  |
2 | from = \"../shared/logo.png\"
  |        ^^^^^^^^^^^^^^^^^^^^ expected a `to` beside it: its place in the tree
  |
  = help: for example `to = \"logo.png\"`",
    );
}

#[test]
fn an_include_needs_a_from() {
    assert_errors(
        "[[include]]\nto = \"x\"\n",
        "
error: `[[include]]` has no `from`
 --> kitbag.toml:1:1
  |
1 | [[include]]
  | ^^^^^^^^^^^ expected `from` in here
  |
  = help: for example `from = \"templates\"`",
    );
}

#[test]
fn seeds_stay_in_the_state_folder_and_apart() {
    let seeds = "[[seed]]\nfrom = \"a/db\"\n[[seed]]\nfrom = \"b/db\"\n";
    assert_errors(
        seeds,
        "
error: the seed `db` is given twice
 --> kitbag.toml:4:8
  |
4 | from = \"b/db\"
  |        ^^^^^^ the second one",
    );
    assert!(
        errors("[[seed]]\nfrom = \"db\"\nto = \"../db\"\n").contains("`..` may lead out of the state folder")
    );
}

#[test]
fn an_empty_command_is_refused() {
    assert_errors(
        "command = []\n",
        "
error: `command` is empty
 --> kitbag.toml:1:11
  |
1 | command = []
  |           ^^ expected a program of the tree: `[\"bin/tool\", \"--flag\"]`",
    );
    assert!(errors("command = [\"\"]").contains("`command` is empty"));
    assert!(errors("command = \"bin/x\"").contains("expected a list of strings or a table, found a string"));
    assert!(errors("[command]\ncwd = \"x\"").contains("`[command]` has no `argv`"));
    assert!(errors("[services]").contains("`services` names no service"));
}

#[test]
fn a_bundle_is_a_tool_or_supervises() {
    assert_errors(
        "command = [\"bin/a\"]\n[services.b]\nargv = [\"bin/b\"]\n",
        "
error: both `command` and `services`
 --> kitbag.toml:1:11
  |
1 | command = [\"bin/a\"]
  |           ^^^^^^^^^ a bundle is a tool that behaves as this command …
2 | [services.b]
  |  ^^^^^^^^ … or a service bundle that supervises these
  |
  = help: keep one of them",
    );
}

#[test]
fn an_unknown_placeholder_has_a_near_miss() {
    assert_errors(
        "command = [\"bin/a\", \"--db=${staet}/db\", \"${HOME}\"]\n",
        "
error: there is no placeholder `${staet}`
 --> kitbag.toml:1:27
  |
1 | command = [\"bin/a\", \"--db=${staet}/db\", \"${HOME}\"]
  |                           ^^^^^^^^
  |
  = help: did you mean `${state}`?

error: there is no placeholder `${HOME}`
 --> kitbag.toml:1:42
  |
1 | command = [\"bin/a\", \"--db=${staet}/db\", \"${HOME}\"]
  |                                          ^^^^^^^
  |
  = help: did you mean `${env.HOME}`?",
    );
    assert!(errors("[command]\nargv = [\"a\"]\nenv = { A = \"${\" }").contains("has no closing `}`"));
    assert!(errors("[command]\nargv = [\"a\"]\ncwd = \"${xyzzy}\"").contains("expected one of `${tree}`"));
}

#[test]
fn variables_have_names() {
    assert!(errors("[command]\nargv = [\"a\"]\nenv = { \"A=B\" = \"\" }").contains("bad variable `A=B`"));
}

#[test]
fn patterns_are_checked() {
    assert!(errors("exclude = [\"[a\"]").contains("bad pattern `[a`"));
}

/// The reference's examples are manifests.
#[test]
fn the_examples_of_the_reference_are_right() {
    let reference = include_str!("../../../docs/manifest.md");
    let mut blocks = 0;
    for part in reference.split("```toml\n").skip(1) {
        let block = part.split("```").next().expect("a closed block");
        blocks += 1;
        assert_eq!(errors(block), "", "in this block of docs/manifest.md:\n{block}");
    }
    assert!(blocks >= 5, "{blocks} blocks");
}

/// The reference has the table of placeholders that format/src/template.rs has, and every key.
#[test]
fn the_reference_is_complete() {
    let reference = include_str!("../../../docs/manifest.md");
    let template = include_str!("../../../format/src/template.rs");
    let rows = |line: &str| Some(line.strip_prefix("//! | `")?.split('|').next()?.trim().to_owned());
    let mut placeholders = 0;
    for row in template.lines().filter_map(rows) {
        assert!(reference.contains(&format!("| `{row}")), "docs/manifest.md lacks the placeholder `{row}");
        placeholders += 1;
    }
    assert!(placeholders >= 6);
    let presets =
        [crate::preset::python::KEYS, crate::preset::node::KEYS, crate::preset::java::KEYS].concat();
    let services = super::services::key_lists().concat();
    for (key, _) in
        [super::TOP, super::CARGO, super::INCLUDE, super::SEED, super::COMMAND, &services, &presets].concat()
    {
        assert!(reference.contains(&format!("`{key}`")), "docs/manifest.md lacks the key `{key}`");
    }
}
