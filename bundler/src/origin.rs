//! Where the files of a bundle are from, and why they are in it. What came along by itself travels in the manifest,
//! under the key `origins` that the runtime steps over.

use std::collections::BTreeMap;

use kitbag_format::index::Index;
use kitbag_format::manifest::Manifest;
use kitbag_format::report::bytes;
use kitbag_format::{Bundle, Error};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The manifest's key.
const KEY: &str = "origins";

/// A file that came along by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Its path in the tree.
    pub path: String,
    /// Where it was found: a path of the build machine.
    pub from: String,
    /// How it came in, from an included file on: the last one is its own.
    pub needs: Vec<Need>,
}

/// Somebody's need.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Need {
    /// Who needs it: a path in the tree, or an absolute one on the build machine.
    pub by: String,
    /// The name that is asked for.
    pub name: String,
}

/// A manifest with origins.
#[derive(Serialize)]
struct Text<'a> {
    #[serde(flatten)]
    manifest: &'a Manifest,
    origins: &'a [Origin],
}

/// The manifest's text with the origins in it.
pub fn add_to(manifest: &Manifest, origins: &[Origin]) -> String {
    if origins.is_empty() {
        return manifest.to_text();
    }
    kitbag_format::report::json_text(&Text { manifest, origins })
}

/// What is known of a bundle's files.
pub struct Origins {
    index: Index,
    came_along: BTreeMap<String, Origin>,
}

impl Origins {
    /// Reads the index and the manifest of `bundle`.
    pub fn of(bundle: &Bundle) -> Result<Self, Error> {
        let value: Value = serde_json::from_str(&bundle.manifest_text()?).unwrap_or_default();
        let origins: Vec<Origin> = serde_json::from_value(value[KEY].clone()).unwrap_or_default();
        let came_along = origins.into_iter().map(|origin| (origin.path.clone(), origin)).collect();
        Ok(Self { index: bundle.index()?, came_along })
    }

    /// Every path that can be asked for.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.index.entries.iter().filter_map(|entry| str::from_utf8(&entry.path).ok())
    }

    /// Why the file at `wanted` is there, or each one of this name; `None` if there is none.
    pub fn why(&self, wanted: &str) -> Option<String> {
        let named = |path: &&str| *path == wanted || path.rsplit('/').next() == Some(wanted);
        let lines: Vec<String> = self.paths().filter(named).map(|path| self.reason(path)).collect();
        (!lines.is_empty()).then(|| lines.concat())
    }

    fn reason(&self, path: &str) -> String {
        let Some(origin) = self.came_along.get(path) else {
            let what =
                if path.starts_with(".kitbag") { "made by kitbag" } else { "included by the manifest" };
            return format!("{path}\n  {what}\n");
        };
        let mut text = format!("{path}\n  from {}\n", origin.from);
        for need in &origin.needs {
            text.push_str(&format!("  {} needs {}\n", need.by, need.name));
        }
        text
    }

    /// Files and bytes by where they are from: what was included, and what came along from each folder.
    fn sums(&self) -> BTreeMap<String, (usize, u64)> {
        let mut sums = BTreeMap::new();
        for entry in self.index.entries.iter().filter(|entry| entry.size() > 0) {
            let origin = str::from_utf8(&entry.path).ok().and_then(|path| self.came_along.get(path));
            let from = origin.and_then(|origin| origin.from.rsplit_once('/')).map(|(folder, _)| folder);
            let sum: &mut (usize, u64) = sums.entry(from.unwrap_or_default().to_owned()).or_default();
            *sum = (sum.0 + 1, sum.1 + entry.size());
        }
        sums
    }

    /// Lines below those of [`kitbag_format::report::Summary`]; none where nothing came along.
    pub fn to_text(&self) -> String {
        if self.came_along.is_empty() {
            return String::new();
        }
        let line = |(from, (files, size)): (String, (usize, u64))| {
            let from = if from.is_empty() { "included" } else { &from };
            format!("  {:<12}{from}: {files} files, {}\n", "from", bytes(size))
        };
        self.sums().into_iter().map(line).collect()
    }

    /// The same sums for programs: each with its folder, or none for what was included.
    pub fn sums_json(&self) -> Value {
        let one = |(from, (files, size)): (String, (usize, u64))| {
            let from = Some(from).filter(|from| !from.is_empty());
            json!({ "from": from, "files": files, "bytes": size })
        };
        self.sums().into_iter().map(one).collect()
    }

    /// What came along, with sizes.
    pub fn to_json(&self) -> Value {
        let sizes: BTreeMap<&[u8], u64> =
            self.index.entries.iter().map(|entry| (entry.path.as_slice(), entry.size())).collect();
        let one = |origin: &Origin| {
            let mut value = json!(origin);
            value["bytes"] = json!(sizes.get(origin.path.as_bytes()));
            value
        };
        self.came_along.values().map(one).collect()
    }
}
