//! A Cargo project.

use std::path::Path;

use super::{Draft, list, quoted};
use crate::cargo;
use crate::cli::Kind;

/// The package of a folder, or the first one of its workspace that has a bin.
pub fn cargo(dir: &Path) -> Option<Draft> {
    if !dir.join("Cargo.toml").is_file() {
        return None;
    }
    let packages = cargo::with_bins(dir);
    let (is_own, name, bins) = packages.first()?;
    let mut draft = Draft::new(Kind::Cargo);
    draft.found.push(format!(
        "the package `{name}` with {}",
        bins.iter().map(|bin| format!("`{bin}`")).collect::<Vec<_>>().join(", ")
    ));
    draft.line(
        "# Name, version and the programs in bin/ are the Cargo package's. Here stands what is not Rust.",
    );
    draft.line("");
    let first = bins.first()?;
    if bins.len() == 1 {
        draft.line("# A package with one bin is a tool that behaves as it. For a server:");
        draft.line("# [services.web]");
        draft.line(format!("# argv = {}", list([format!("bin/{first}")])));
    } else {
        draft.line("# A tool: the bundle behaves as this program.");
        draft.line(format!("command = {}", list([format!("bin/{first}")])));
        draft.guessed.push(format!("it is a tool that behaves as `bin/{first}`"));
    }
    let assets = ["templates", "static", "assets", "public", "migrations"];
    let asset = assets.into_iter().find(|name| dir.join(name).is_dir());
    draft.line("");
    match asset {
        Some(asset) => {
            draft.line("[[include]]");
            draft.line(format!("from = {}", quoted(asset)));
            draft.found.push(format!("the folder `{asset}`"));
            draft.guessed.push(format!(
                "the program reads `${{tree}}/{asset}`: tell it so by an argument or a variable"
            ));
        }
        None => {
            draft.line("# [[include]]");
            draft.line("# from = \"templates\"");
        }
    }
    if !is_own {
        draft.line("");
        draft.line("[cargo]");
        draft.line(format!("package = {}", quoted(name)));
        for (_, other, _) in &packages[1..] {
            draft.guessed.push(format!("`{name}` is meant, not `{other}`: change `package` if not"));
        }
    }
    Some(draft)
}
