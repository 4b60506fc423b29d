//! A jar.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::{Draft, folder_name, names, quoted};
use crate::cli::Kind;

/// Jars that are made beside the one that runs.
const OTHERS: &[&str] = &["-sources.jar", "-javadoc.jar", "-tests.jar", "-plain.jar"];

/// The jar of a folder, where it lies or where Maven and Gradle put it.
pub fn look(dir: &Path) -> Option<Draft> {
    let mut jars = Vec::new();
    for folder in ["", "target", "build/libs"] {
        for name in names(&dir.join(folder)) {
            let is_other = OTHERS.iter().any(|end| name.ends_with(end)) || name.starts_with("original-");
            if name.ends_with(".jar") && !is_other {
                jars.push(if folder.is_empty() { name } else { format!("{folder}/{name}") });
            }
        }
    }
    let first = jars.first()?;
    let mut draft = draft(first, &folder_name(dir));
    draft.found.push(format!("`{first}`"));
    for other in &jars[1..] {
        draft.guessed.push(format!("`{first}` is meant, not `{other}`: change `jar` if not"));
    }
    Some(draft)
}

/// One jar. `from` is how the manifest names it.
pub fn of_file(path: &Path, from: &Path) -> Option<Draft> {
    let mut head = [0; 4];
    File::open(path).and_then(|mut file| file.read_exact(&mut head)).ok()?;
    // A zip file's first header.
    if head != *b"PK\x03\x04" || path.extension().is_none_or(|extension| extension != "jar") {
        return None;
    }
    let name = path.file_stem()?.to_string_lossy().into_owned();
    let mut draft = draft(&from.to_string_lossy(), &name);
    draft.found.push(format!("`{}`", path.display()));
    Some(draft)
}

fn draft(jar: &str, name: &str) -> Draft {
    let mut draft = Draft::new(Kind::Java);
    draft.head(name, "1.0.0");
    draft.line("");
    draft.line("# Runs `java -jar` on a Java runtime that jlink makes of the modules that the jar needs.");
    draft.line("[app.java]");
    draft.line(format!("jar = {}", quoted(jar)));
    draft.line("# Those that only a running program asks for:");
    draft.line("# modules = [\"java.base\", \"java.sql\"]");
    draft
        .guessed
        .push("jdeps tells which modules it needs; list them in `modules` if that is not all".to_owned());
    draft
}
