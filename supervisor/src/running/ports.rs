//! `ports`: which ports this bundle has, or every one on this host.

use kitbag_format::report::json_text;
use serde_json::json;

use super::{Line, Running, good};
use crate::commands::{Failure, print, say};
use crate::control::client::PATIENCE;
use crate::open::Own;
use crate::ports::registry::{Entry, Folders, Published, Registry, VARIABLE};
use crate::status::is_first;
use crate::store::place::Facts;

/// `ports [--host] [--json] [SVC…]`
pub fn ports(own: &Own, parser: lexopt::Parser) -> Result<(), Failure> {
    let line = Line::read(parser, false, &["host", "json"])?;
    if line.has("host") {
        line.no_names()?;
        return of_host(own, line.has("json"));
    }
    let running = Running::of(own)?;
    let mut answer = good(running.ask("GET", "/v1/ports", PATIENCE)?)?;
    let is_named = |port: &Published, name: &str| {
        port.unit == name || port.service == name || is_first(name, &port.unit)
    };
    let all = answer["ports"].as_array().map_or(&[][..], Vec::as_slice);
    let all: Vec<Published> = all.iter().filter_map(Published::from_json).collect();
    if let Some(name) = line.names.iter().find(|name| !all.iter().any(|port| is_named(port, name))) {
        return Err(Failure::Usage(format!("there is no service `{name}` with ports")));
    }
    let is_asked_for =
        |port: &&Published| line.names.is_empty() || line.names.iter().any(|name| is_named(port, name));
    let shown: Vec<&Published> = all.iter().filter(is_asked_for).collect();
    if line.has("json") {
        answer["ports"] = shown.iter().map(|port| port.to_json()).collect();
        return print(json_text(&answer).as_bytes());
    }
    let rows = shown.iter().map(|port| row(port).to_vec()).collect();
    print(table(&["NAME", "PORT", "ADDRESS", "SOCKET"], rows).as_bytes())
}

/// Those of all bundles that run here, whoever's they are.
fn of_host(own: &Own, as_json: bool) -> Result<(), Failure> {
    let facts = Facts::of_process(Some(&own.path));
    let registry = Registry::look(facts.uid, Folders::of(&facts));
    let (seen, skipped) = registry.all();
    if as_json {
        let bundles: Vec<_> = seen.iter().map(|seen| seen.entry.to_json()).collect();
        let skipped: Vec<_> = skipped
            .iter()
            .map(|it| json!({"path": it.path.to_string_lossy(), "why": it.why.to_string()}))
            .collect();
        return print(json_text(&json!({"bundles": bundles, "skipped": skipped})).as_bytes());
    }
    let mut rows = Vec::new();
    for entry in seen.iter().map(|seen| &seen.entry) {
        rows.extend(entry.ports.iter().map(|port| row_of_host(entry, port)));
    }
    print(
        table(&["BUNDLE", "NAME", "PORT", "ADDRESS", "SOCKET", "PROCESS", "USER", "STATE"], rows).as_bytes(),
    )?;
    skipped.iter().for_each(|skipped| say(&format!("not read: {skipped}")));
    // A default folder that is not there has no bundles; the one that somebody has named may be meant to be another.
    if std::env::var_os(VARIABLE).is_some() {
        registry.tried().iter().for_each(|tried| say(&format!("not read: {tried}")));
    }
    Ok(())
}

fn row_of_host(entry: &Entry, port: &Published) -> Vec<String> {
    let mut row = vec![format!("{} {}", entry.bundle, entry.version)];
    row.extend(self::row(port));
    row.extend([entry.pid.to_string(), entry.uid.to_string(), entry.state.clone()]);
    row
}

fn row(port: &Published) -> [String; 4] {
    let name = format!("{}.{}", port.unit, port.port);
    let (number, address) = match port.address {
        Some(address) => (
            format!("{}/{}", port.number, port.protocol.name()),
            std::net::SocketAddr::new(address, port.number).to_string(),
        ),
        None => ("unix".to_owned(), port.path.clone()),
    };
    [name, number, address, if port.socket { "inherited" } else { "own" }.to_owned()]
}

/// Columns with two spaces between them.
fn table(title: &[&str], rows: Vec<Vec<String>>) -> String {
    let title = title.iter().map(|word| (*word).to_owned()).collect();
    let rows: Vec<Vec<String>> = std::iter::once(title).chain(rows).collect();
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(String::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}
