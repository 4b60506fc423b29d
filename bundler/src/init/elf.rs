//! A program that is there already.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::{Draft, folder_name, list, names, quoted};
use crate::cli::Kind;

/// The programs of a folder, as it is, in `bin/` or in `build/`.
pub fn look(dir: &Path) -> Option<Draft> {
    let mut programs = Vec::new();
    for folder in ["", "bin", "build"] {
        for name in names(&dir.join(folder)) {
            let path = if folder.is_empty() { name } else { format!("{folder}/{name}") };
            if is_program(&dir.join(&path)) {
                programs.push(path);
            }
        }
    }
    let first = programs.first()?;
    let mut draft = draft(first, first, &folder_name(dir));
    draft.found.push(format!("`{first}`"));
    for other in &programs[1..] {
        draft.guessed.push(format!(
            "`{first}` is meant, not `{other}`: `kitbag init {}` takes that",
            dir.join(other).display()
        ));
    }
    Some(draft)
}

/// One program. `from` is how the manifest names it.
pub fn of_file(path: &Path, from: &Path) -> Option<Draft> {
    if !is_elf(path) {
        return None;
    }
    let name = path.file_name()?.to_string_lossy().into_owned();
    let mut draft = draft(&from.to_string_lossy(), &name, &name);
    draft.found.push(format!("`{}`", path.display()));
    if !is_program(path) {
        draft.hints.push(format!("it is not executable: `chmod +x {}`", path.display()));
    }
    Some(draft)
}

fn draft(from: &str, name: &str, bundle: &str) -> Draft {
    let mut draft = Draft::new(Kind::Elf);
    let place = format!("bin/{}", name.rsplit('/').next().unwrap_or(name));
    draft.head(bundle, "1.0.0");
    draft.line(
        "# A tool: the bundle behaves as this program. `kitbag pack` brings the libraries it needs along.",
    );
    draft.line(format!("command = {}", list([&place])));
    draft.line("");
    draft.line("[[include]]");
    draft.line(format!("from = {}", quoted(from)));
    draft.line(format!("to = {}", quoted(&place)));
    draft.line("");
    draft.line("# What it reads: a file or folder of this one, and its place in the tree.");
    draft.line("# [[include]]");
    draft.line("# from = \"share\"");
    draft.guessed.push(format!(
        "it is a tool that behaves as `{place}`; for a server write `[services.web]` in place of `command`"
    ));
    draft
}

fn is_program(path: &Path) -> bool {
    let may = path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0);
    may && is_elf(path)
}

/// An executable or shared object (elf(5): `e_type` is `ET_EXEC` or `ET_DYN`), and no library by its name.
fn is_elf(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut head = [0; 18];
    let is_read = File::open(path).and_then(|mut file| file.read_exact(&mut head)).is_ok();
    let kind = if head[5] == 2 { head[17] } else { head[16] };
    is_read
        && head.starts_with(b"\x7fELF")
        && matches!(kind, 2 | 3)
        && !name.ends_with(".so")
        && !name.contains(".so.")
}
