//! Scripts: a `#!` line that names an interpreter of the bundle leads to that one (execve(2), "Interpreter scripts").

use kitbag_closure::rewrite::{Edits, Slot, TREE};

/// Most bytes of a first line that the kernel reads, its newline included (BINPRM_BUF_SIZE; 128 before Linux 5.1).
const LONGEST_LINE: usize = 255;

/// What a first line says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shebang<'a> {
    /// Whom it asks for.
    pub interpreter: Interpreter<'a>,
    /// The one argument that the kernel passes on; may be empty.
    pub argument: &'a [u8],
}

/// How a first line asks for its interpreter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interpreter<'a> {
    /// By a path.
    Path(&'a [u8]),
    /// By a name that `env` looks for in `PATH`.
    Name(&'a [u8]),
}

impl<'a> Interpreter<'a> {
    /// The last part of its path, or its name.
    pub fn name(&self) -> &'a [u8] {
        let (Self::Path(text) | Self::Name(text)) = *self;
        text.rsplit(|byte| *byte == b'/').next().unwrap_or(text)
    }
}

/// Reads a first line without its `#!`. `None`: it names nobody, or asks `env` for more than a program with one
/// argument, which no line without `env` can say.
pub fn parse(line: &[u8]) -> Option<Shebang<'_>> {
    let (path, argument) = first_word(line.trim_ascii());
    if path.is_empty() {
        return None;
    }
    let shebang = Shebang { interpreter: Interpreter::Path(path), argument };
    if shebang.interpreter.name() != b"env" || argument.is_empty() {
        return Some(shebang);
    }
    let (name, argument) = match first_word(argument) {
        (b"-S" | b"--split-string", rest) => first_word(rest),
        asked => asked,
    };
    let is_plain = !name.starts_with(b"-") && !name.contains(&b'=') && !argument.contains(&b' ');
    is_plain.then_some(Shebang { interpreter: Interpreter::Name(name), argument })
}

fn first_word(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text.iter().position(|byte| matches!(byte, b' ' | b'\t')).unwrap_or(text.len());
    (&text[..end], text[end..].trim_ascii())
}

/// The edits that make `script` start with the program at `path` of the tree. `None`: no line is long enough.
pub fn lead_to(script: &[u8], path: &[u8], argument: &[u8]) -> Option<Edits> {
    let old = script.iter().position(|byte| *byte == b'\n').unwrap_or(script.len());
    let mut interpreter = [TREE.as_bytes(), b"/", path].concat();
    // `#!`, a space before an argument, and the newline.
    let beside = 2 + if argument.is_empty() { 0 } else { 1 + argument.len() } + 1;
    let length = LONGEST_LINE.checked_sub(beside).filter(|length| *length >= interpreter.len())?;
    interpreter.resize(length, b' ');
    let space: &[u8] = if argument.is_empty() { b"" } else { b" " };
    let bytes = [b"#!", interpreter.as_slice(), space, argument, &script[old..]].concat();
    let slots = vec![Slot { at: 2, length: length as u32 }];
    Some(Edits { length: bytes.len() as u64, writes: vec![(0, bytes)], slots, unpatched: Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Option<(Interpreter<'_>, &str)> {
        parse(line.as_bytes()).map(|found| (found.interpreter, str::from_utf8(found.argument).unwrap()))
    }

    #[test]
    fn a_first_line_names_its_interpreter_by_path_or_through_env() {
        assert_eq!(read("/bin/sh"), Some((Interpreter::Path(b"/bin/sh"), "")));
        assert_eq!(read(" /usr/bin/python3 -I -s "), Some((Interpreter::Path(b"/usr/bin/python3"), "-I -s")));
        assert_eq!(read("/usr/bin/env python3"), Some((Interpreter::Name(b"python3"), "")));
        assert_eq!(read("/usr/bin/env -S node --harmony"), Some((Interpreter::Name(b"node"), "--harmony")));
    }

    #[test]
    fn what_only_env_can_do_stays_with_env() {
        for line in ["", "/usr/bin/env -S a b c", "/usr/bin/env -i sh", "/usr/bin/env A=1 sh"] {
            assert_eq!(read(line), None, "{line}");
        }
    }

    #[test]
    fn a_line_that_was_led_elsewhere_has_a_slot_before_its_argument_and_the_rest_as_it_was() {
        let edits = lead_to(b"#!/usr/bin/python3 -I\nprint(1)\n", b"bin/python3", b"-I").unwrap();
        let script = edits.apply(b"#!/usr/bin/python3 -I\nprint(1)\n");
        let slot = edits.slots[0];
        let (begin, end) = (slot.at as usize, slot.at as usize + slot.length as usize);
        assert_eq!(script[begin..end].trim_ascii_end(), b"/kitbag-tree/bin/python3");
        assert_eq!(&script[end..], b" -I\nprint(1)\n");
        assert_eq!(script.iter().position(|byte| *byte == b'\n'), Some(254));
    }

    #[test]
    fn no_line_is_longer_than_the_kernel_reads() {
        assert_eq!(lead_to(b"#!x", &[b'x'; 300], b""), None);
        assert!(lead_to(b"#!x", &[b'x'; 239], b"").is_some());
    }
}
