//! How a person types a command of this file again: by the same path, about the same copy.

use std::ffi::OsStr;

/// Variables that decide which copy of a bundle a command is about.
const COPY: [&str; 2] = ["KITBAG_NAME", "KITBAG_STATE"];

/// What the bundle was called by, with the variables that name this copy of it, quoted for a shell.
pub fn called() -> String {
    let mut text = String::new();
    for name in COPY {
        if let Some(value) = std::env::var_os(name) {
            text.push_str(&format!("{name}={} ", quoted(&value)));
        }
    }
    text.push_str(
        &crate::sys::executed_path().map_or_else(|| "FILE".to_owned(), |path| quoted(path.as_os_str())),
    );
    // As `main` reads it, before there is an open bundle.
    if kitbag_entry::is_tool() {
        text.push_str(" --kitbag");
    }
    text
}

/// A word as a shell reads it back (POSIX.1-2024, XCU 2.2 Quoting).
fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let is_plain =
        |byte: u8| !byte.is_ascii() || byte.is_ascii_alphanumeric() || b"%+,-./:=@_".contains(&byte);
    if !word.is_empty() && word.bytes().all(is_plain) {
        return word.into_owned();
    }
    let mut text = String::from("'");
    for letter in word.chars() {
        match letter {
            '\'' => text.push_str(r"'\''"),
            other => text.push(other),
        }
    }
    text.push('\'');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_come_back_from_a_shell_as_they_were() {
        for word in ["./rng", "", "a b", "it's", "$HOME;`x`", "~", "*", "\\", "a\nb", "a#b", "ä"] {
            let script = format!("printf %s {}", quoted(OsStr::new(word)));
            let output =
                std::process::Command::new("/bin/sh").args(["-c", &script]).output().expect("a shell");
            assert_eq!(String::from_utf8_lossy(&output.stdout), word, "{script}");
        }
        assert_eq!(quoted(OsStr::new("/opt/a-b_c.d/x")), "/opt/a-b_c.d/x");
    }
}
