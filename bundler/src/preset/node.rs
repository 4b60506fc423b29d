//! `[app.node]`: Node, and a project with its `node_modules` as they are.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command as Process;

use kitbag_format::manifest::Command;
use serde::Deserialize;
use toml::Spanned;
use toml::de::DeTable;

use super::{Expansion, PROJECT, PROJECT_LEFT_OUT, folder_of, near_file, said};
use crate::diagnostic::Diagnostic;
use crate::read::{Key, Reader, Text};
use crate::tree;

/// npm's package `node`, which has Node's own program in it: that is in `bin/` then.
const NODE_PACKAGE: &[&str] =
    &["/node_modules/node", "/node_modules/node-bin-*", "/node_modules/node-linux-*"];

/// The table's keys.
pub const KEYS: &[Key] = &[
    ("interpreter", "interpreter = \"/usr/bin/node\""),
    ("project", "project = \"server\""),
    ("entry", "entry = \"server.js\""),
];

/// `[app.node]`, as it is written.
#[derive(Debug)]
pub struct Node {
    span: Range<usize>,
    interpreter: Option<Text>,
    project: Option<Text>,
    /// What a tool starts.
    pub entry: Option<Text>,
}

impl Reader<'_> {
    /// `[app.node]`
    pub fn node(&mut self, table: &Spanned<&DeTable<'_>>) -> Option<Node> {
        let before = self.errors.len();
        let section = self.section("`[app.node]`", table.get_ref(), table.span(), KEYS);
        let node = Node {
            span: table.span(),
            interpreter: self.string(&section, "interpreter"),
            project: self.string(&section, "project"),
            entry: self.string(&section, "entry"),
        };
        (self.errors.len() == before).then_some(node)
    }
}

/// What Node says of itself.
#[derive(Debug, Deserialize)]
struct Facts {
    executable: PathBuf,
    version: String,
    /// Parts of its own library that were built into it, as `configure` lists them.
    builtins: Option<Vec<String>>,
}

const FACTS: &str = "console.log(JSON.stringify({\
    executable: require('fs').realpathSync(process.execPath), version: process.version, \
    builtins: process.config.variables.node_builtin_shareable_builtins}))";

impl Facts {
    fn ask(program: &Path, shown: &str, span: &Range<usize>) -> Result<Self, Diagnostic> {
        let mut node = Process::new(program);
        let output = node.args(["-e", FACTS]).env_remove("NODE_OPTIONS").output().map_err(|error| {
            let missing = error.kind() == io::ErrorKind::NotFound;
            Diagnostic::new(format!("cannot start `{shown}`: {error}"))
                .at(span.clone(), "")
                .near(near_file(program, shown).as_deref().filter(|_| missing))
                .help("npm has Node's own program: `npm install --no-save node@20`, and `interpreter = \"node_modules/node/bin/node\"`")
        })?;
        let facts: Option<Self> = serde_json::from_slice(&output.stdout).ok();
        let facts = facts.filter(|_| output.status.success()).ok_or_else(|| {
            Diagnostic::new(format!("`{shown}` does not answer like Node"))
                .at(span.clone(), output.status.to_string())
                .help(said(&output.stderr))
        })?;
        facts.check(span)
    }

    /// Debian's Node reads parts of its library from /usr/share/nodejs, a path that is compiled in, and aborts
    /// where they are missing (configure's `--shared-builtin-…-path`).
    fn check(self, span: &Range<usize>) -> Result<Self, Diagnostic> {
        let has =
            |part: &str| self.builtins.as_ref().is_none_or(|all| all.iter().any(|one| one.contains(part)));
        if has("cjs-module-lexer") {
            return Ok(self);
        }
        let title = format!("`{}` cannot be moved to another host", self.executable.display());
        Err(Diagnostic::new(title)
            .at(span.clone(), "it reads parts of its library from /usr/share/nodejs, as Debian builds it")
            .help("take Node's own program: `npm install --no-save node@20`, and `interpreter = \"node_modules/node/bin/node\"`"))
    }
}

/// Finds Node and the project.
///
/// Fails where one of them, or the entry, is not there.
pub fn expand(node: &Node, dir: &Path) -> Result<Expansion, Diagnostic> {
    let span = node.interpreter.as_ref().map_or_else(|| node.span.clone(), Spanned::span);
    let written = node.interpreter.as_ref().map_or("node", |written| written.get_ref());
    let program = if written.contains('/') { tree::join(dir, written) } else { PathBuf::from(written) };
    let facts = Facts::ask(&folder_of(&program, written), written, &span)?;
    let mut expansion = Expansion {
        what: format!("Node {} of {}", facts.version, facts.executable.display()),
        env: [("NODE_PATH", ""), ("NODE_ENV", "${env.NODE_ENV:-production}")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        cwd: Some(format!("${{tree}}/{PROJECT}")),
        kind: "node",
        examples: ("server.js", "[\"bin/node\", \"${tree}/app/server.js\"]"),
        ..Expansion::default()
    };
    expansion.include(&span, &facts.executable, "bin/node", &[]);
    let (span, written) = match &node.project {
        Some(project) => (project.span(), project.get_ref().as_str()),
        None => (node.span.clone(), "."),
    };
    let project = tree::join(dir, written);
    if !project.is_dir() {
        let error = Diagnostic::new(format!("there is no folder `{written}` of the project"));
        return Err(error.at(span, "").near(near_file(&project, written).as_deref()));
    }
    // What npm and bundlers build is what runs: `dist` and `build` come along.
    let left_out = PROJECT_LEFT_OUT.iter().filter(|pattern| !matches!(**pattern, "/dist" | "/build"));
    let left_out: Vec<&str> = left_out.chain(NODE_PACKAGE).copied().collect();
    expansion.include(&span, Path::new(written), PROJECT, &left_out);
    expansion.count(format!("project `{written}`"));
    if let Some(entry) = &node.entry {
        check_entry(entry, &project)?;
        let script = format!("${{tree}}/{PROJECT}/{}", entry.get_ref().trim_start_matches("./"));
        expansion.command = Some(Command { argv: vec!["bin/node".to_owned(), script], ..Command::default() });
    }
    Ok(expansion)
}

fn check_entry(entry: &Text, project: &Path) -> Result<(), Diagnostic> {
    let path = project.join(entry.get_ref());
    if path.is_file() && !entry.get_ref().contains('$') {
        return Ok(());
    }
    let near = near_file(&path, entry.get_ref());
    let error = Diagnostic::new(format!("there is no script `{}` in the project", entry.get_ref()));
    let error = error.at(entry.span(), format!("looked for {}", path.display()));
    Err(error.near(near.as_deref()).help("if a build makes it, build first"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use tempfile::TempDir;

    use crate::plan::{Plan, PlanEntry, PlanOptions, plan};

    /// Plans a project whose Node is a script that says these parts are built in.
    fn planned(builtins: &str, lines: &str) -> Result<Plan, String> {
        let folder = TempDir::new().expect("a temporary folder");
        let path = |path: &str| folder.path().join(path);
        let node = path("node_modules/node/bin/node").display().to_string();
        let facts = format!(r#"{{"executable": "{node}", "version": "v20.1.0", "builtins": {builtins}}}"#);
        for (file, text) in [
            ("node_modules/node/bin/node", format!("#!/bin/sh\ncat <<'EOF'\n{facts}\nEOF\n")),
            ("node_modules/express/index.js", String::new()),
            ("dist/server.js", String::new()),
            (".env", String::new()),
            (
                "kitbag.toml",
                format!(
                    "name = \"web\"\nversion = \"1\"\n[app.node]\ninterpreter = \"node_modules/node/bin/node\"\n{lines}"
                ),
            ),
        ] {
            let file = path(file);
            fs::create_dir_all(file.parent().expect("a parent")).expect("folders");
            fs::write(&file, text).expect("a file");
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("a mode");
        }
        let options = PlanOptions { output: Some(path("out")), quiet: true, ..PlanOptions::default() };
        plan(folder.path(), &options).map_err(|failure| failure.render(false))
    }

    const WHOLE: &str = r#"["deps/cjs-module-lexer/lexer.js", "deps/undici/undici.js"]"#;

    #[test]
    fn it_brings_node_the_project_and_its_modules() {
        let plan = planned(WHOLE, "entry = \"dist/server.js\"\n").unwrap();
        let paths: Vec<String> = plan.entries.iter().map(PlanEntry::shown).collect();
        for path in ["bin/node", "app/dist/server.js", "app/node_modules/express/index.js"] {
            assert!(paths.iter().any(|found| found == path), "{path} in {paths:?}");
        }
        assert!(!paths.iter().any(|path| path == "app/.env" || path == "app/node_modules/node"), "{paths:?}");
        let manifest = plan.manifest.to_text();
        assert!(manifest.contains("${tree}/app/dist/server.js"), "{manifest}");
    }

    #[test]
    fn a_node_that_reads_its_library_from_a_fixed_place_is_refused() {
        let message = planned("[]", "entry = \"dist/server.js\"\n").unwrap_err();
        assert!(message.contains("cannot be moved to another host"), "{message}");
        assert!(message.contains("/usr/share/nodejs") && message.contains("npm install"), "{message}");
    }

    #[test]
    fn an_entry_that_is_not_there_is_shown_with_what_was_meant() {
        let message = planned(WHOLE, "entry = \"dist/sever.js\"\n").unwrap_err();
        assert!(message.contains("kitbag.toml:5:9"), "{message}");
        assert!(message.contains("did you mean `dist/server.js`?"), "{message}");
    }
}
