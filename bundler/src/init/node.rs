//! A Node project.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::{Draft, folder_name, list, quoted};
use crate::cli::Kind;

/// Packages that serve.
const SERVERS: &[&str] = &[
    "express",
    "koa",
    "fastify",
    "@hapi/hapi",
    "restify",
    "polka",
    "@nestjs/core",
    "hono",
    "@hono/node-server",
    "ws",
    "socket.io",
];
/// Where people start without saying so.
const USUAL: &[&str] =
    &["index.js", "server.js", "app.js", "main.js", "index.mjs", "index.cjs", "src/index.js"];

/// The project of a package.json.
pub fn look(dir: &Path) -> Option<Draft> {
    let text = fs::read_to_string(dir.join("package.json")).ok()?;
    let package: Value = serde_json::from_str(&text).unwrap_or_default();
    let field = |name: &str| package.get(name).and_then(Value::as_str);
    let mut draft = Draft::new(Kind::Node);
    draft.found.push("package.json".to_owned());
    let name = field("name").map_or_else(|| folder_name(dir), str::to_owned);
    draft.head(&name, field("version").unwrap_or("1.0.0"));

    let dependencies: Vec<&str> = package
        .get("dependencies")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .map(|(name, _)| name.as_str())
        .collect();
    let server = SERVERS.iter().find(|server| dependencies.contains(server));
    let start = package.pointer("/scripts/start").and_then(Value::as_str);
    let (entry, why) = entry(dir, &package, start);
    draft.line("");
    draft.line("# Node, this project and its node_modules as they are: `npm ci --omit=dev` leaves out what only builds it.");
    draft.line("[app.node]");
    draft.line("# interpreter = \"/usr/bin/node\"");
    if server.is_some() || start.is_some_and(|start| start.contains("serve")) {
        draft.line("");
        draft.line("[services.web]");
        draft.line(format!("argv = {}", list(["bin/node".to_owned(), format!("${{tree}}/app/{entry}")])));
        draft.port(8080);
        let what = server.map_or_else(|| "its start script".to_owned(), |server| format!("`{server}`"));
        draft.guessed.push(format!(
            "it is a server, because of {what}, on the port that PORT names: 8080, or another that is free"
        ));
    } else {
        draft.line("# A tool: the bundle behaves as this script.");
        draft.line(format!("entry = {}", quoted(&entry)));
        draft
            .guessed
            .push("it is a tool; for a server write `[services.web]` in place of `entry`".to_owned());
    }
    draft.sets();
    draft.guessed.push(format!("it starts with `{entry}`{why}"));
    if !dir.join(&entry).is_file() {
        draft.hints.push(format!("there is no `{entry}`: build the project, or change the manifest"));
    }
    if !dependencies.is_empty() && !dir.join("node_modules").is_dir() {
        draft.hints.push("its packages are not installed: `npm ci --omit=dev`".to_owned());
    }
    Some(draft)
}

/// The script that is started, and why it is that one.
fn entry(dir: &Path, package: &Value, start: Option<&str>) -> (String, &'static str) {
    let plain = |path: &str| path.trim_start_matches("./").to_owned();
    let is_script = |word: &&str| [".js", ".mjs", ".cjs"].iter().any(|end| word.ends_with(end));
    if let Some(script) =
        start.and_then(|start| start.strip_prefix("node ")?.split_whitespace().find(is_script))
    {
        return (plain(script), ", as its start script does");
    }
    let bin = package
        .get("bin")
        .and_then(|bin| bin.as_str().or_else(|| bin.as_object()?.values().next()?.as_str()));
    if let Some(bin) = bin {
        return (plain(bin), ", its `bin`");
    }
    if let Some(main) = package.get("main").and_then(Value::as_str) {
        let main = plain(main);
        let with_end = format!("{main}.js");
        let found = if !dir.join(&main).is_file() && dir.join(&with_end).is_file() { with_end } else { main };
        return (found, ", its `main`");
    }
    let usual = USUAL.iter().find(|name| dir.join(name).is_file()).unwrap_or(&"index.js");
    ((*usual).to_owned(), "")
}
