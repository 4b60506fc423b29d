//! Slots: what the tree's path becomes in them, and where it must not go.

use std::path::Path;

use kitbag_format::slots::{FillError, Pad, Paths, is_in_closure, names_tree};

/// Fills with the tree's path alone.
fn fill(packed: &[u8], pad: Pad, tree: &Path) -> Result<Vec<u8>, FillError> {
    kitbag_format::slots::fill(packed, pad, &Paths::of_tree(tree))
}

/// Fills a NUL slot of 64 bytes; the text that is in it then.
fn filled(text: &str, tree: &str) -> String {
    let mut packed = text.as_bytes().to_vec();
    packed.resize(64, 0);
    let bytes = fill(&packed, Pad::Nul, Path::new(tree)).expect("room for it");
    assert_eq!(bytes.len(), 64);
    let end = bytes.iter().position(|byte| *byte == 0).expect("a NUL at the end");
    assert!(bytes[end..].iter().all(|byte| *byte == 0));
    String::from_utf8(bytes[..end].to_vec()).expect("a text")
}

#[test]
fn the_path_goes_in_where_the_tree_is_named() {
    for (text, expected) in [
        ("/kitbag-tree", "/t"),
        ("/kitbag-tree/lib/ld.so", "/t/lib/ld.so"),
        ("/kitbag-tree:/kitbag-tree/lib", "/t:/t/lib"),
        ("/usr/lib:/kitbag-tree/x:$ORIGIN", "/usr/lib:/t/x:$ORIGIN"),
        ("/kitbag-tree::/kitbag-tree:", "/t::/t:"),
    ] {
        assert_eq!(filled(text, "/t"), expected);
    }
    let long = "/a/path that is longer\u{e9}";
    assert_eq!(filled("/kitbag-tree:/kitbag-tree", long), format!("{long}:{long}"));
}

#[test]
fn what_only_looks_like_the_tree_stays() {
    for text in
        ["", "/kitbag-trees/x", "/kitbag-tre", "x/kitbag-tree", "/usr/kitbag-tree/x", "/kitbag-tree x", "::"]
    {
        assert_eq!(filled(text, "/t"), text);
        assert_eq!(filled(text, "relative"), text, "nothing to fill in, nothing to complain of");
    }
    let full = b"/kitbag-tree-and-more";
    assert_eq!(fill(full, Pad::Nul, Path::new("/t")).expect("as it was"), full, "no room for a NUL either");
    let behind = b"/lib\0/kitbag-tree";
    assert_eq!(fill(behind, Pad::Nul, Path::new("/t")).expect("as it was"), behind);
}

#[test]
fn spaces_pad_the_interpreter_of_a_script() {
    let packed = b"/kitbag-tree/bin/python3   ";
    assert_eq!(fill(packed, Pad::Space, Path::new("/t:")).unwrap(), b"/t:/bin/python3            ");
    let exact = fill(packed, Pad::Space, Path::new("/123456789abcde")).expect("it needs no pad");
    assert_eq!(exact, b"/123456789abcde/bin/python3");
    let error = fill(packed, Pad::Space, Path::new("/123456789abcdef")).unwrap_err();
    assert_eq!(error, FillError::TooLong { length: 16, most: 15 });
}

#[test]
fn a_path_that_is_too_long_learns_how_long_it_may_be() {
    let mut packed = b"/kitbag-tree/a:/x:/kitbag-tree".to_vec();
    packed.resize(40, 0);
    // 39 bytes and a NUL; `/a:/x:` takes 6.
    for (length, fits) in [(16, true), (17, false)] {
        let tree = format!("/{}", "t".repeat(length - 1));
        let result = fill(&packed, Pad::Nul, Path::new(&tree));
        assert_eq!(result.clone().err(), (!fits).then_some(FillError::TooLong { length, most: 16 }));
    }
    assert_eq!(
        fill(b"/kitbag-tree/x", Pad::Nul, Path::new("/")).map(|filled| filled[..3].to_vec()),
        Ok(b"//x".to_vec())
    );
    let nothing = fill(b"/kitbag-tree:", Pad::Nul, Path::new("/123456789abcdef")).unwrap_err();
    assert_eq!(nothing.to_string(), "it has 16 bytes, and 11 is the most that fits; choose a shorter one");
}

#[test]
fn letters_that_mean_something_else_are_refused() {
    let packed = [&b"/kitbag-tree"[..], &[0; 50]].concat();
    for letter in [':', '$', '\n', '\0'] {
        let tree = format!("/a{letter}b");
        assert_eq!(fill(&packed, Pad::Nul, Path::new(&tree)), Err(FillError::Letter(letter)));
    }
    let packed = [&b"/kitbag-tree"[..], &[b' '; 50]].concat();
    for letter in [' ', '\t', '\n'] {
        let tree = format!("/a{letter}b");
        assert_eq!(fill(&packed, Pad::Space, Path::new(&tree)), Err(FillError::Letter(letter)));
    }
    assert_eq!(fill(&packed, Pad::Space, Path::new("a")), Err(FillError::Relative));
    assert_eq!(FillError::Letter('\n').to_string(), "it has '\\n' in it; choose one without");
}

/// What a slot of 64 bytes holds where the tree is `/t` and its closure `/c`; and whether it names the tree.
fn with_closure(text: &str, pad: Pad) -> (String, bool) {
    let mut packed = text.as_bytes().to_vec();
    packed.resize(64, pad.byte());
    let paths = Paths { tree: Path::new("/t"), closure: Some(Path::new("/c")) };
    let filled = kitbag_format::slots::fill(&packed, pad, &paths).expect("room for it");
    let text = String::from_utf8(filled).expect("a text");
    (text.trim_end_matches(char::from(pad.byte())).to_owned(), names_tree(&packed, pad))
}

#[test]
fn what_names_the_closure_alone_is_one_text_for_all_trees_that_have_it() {
    for (text, expected, names_tree) in [
        ("/kitbag-tree/.kitbag/lib/ld.so", "/c/.kitbag/lib/ld.so", false),
        ("/kitbag-tree/.kitbag/lib.2:/kitbag-tree/.kitbag/lib", "/c/.kitbag/lib.2:/c/.kitbag/lib", false),
        ("/usr/lib:/kitbag-tree/.kitbag/etc:", "/usr/lib:/c/.kitbag/etc:", false),
        ("/usr/lib", "/usr/lib", false),
        ("/kitbag-tree/lib:/kitbag-tree/.kitbag/lib", "/t/lib:/c/.kitbag/lib", true),
        ("/kitbag-tree:/kitbag-tree/.kitbag", "/t:/t/.kitbag", true),
        ("/kitbag-tree/.kitbag/python/lib", "/t/.kitbag/python/lib", true),
        ("/kitbag-tree/.kitbag/library", "/t/.kitbag/library", true),
    ] {
        assert_eq!(with_closure(text, Pad::Nul), (expected.to_owned(), names_tree), "{text}");
    }
    // Who is started by a `#!` line looks for its own files from the path in it.
    let script = ("/t/.kitbag/lib/python".to_owned(), true);
    assert_eq!(with_closure("/kitbag-tree/.kitbag/lib/python", Pad::Space), script);
    for path in [".kitbag/lib", ".kitbag/lib/x", ".kitbag/lib.10/x/y", ".kitbag/etc/x"] {
        assert!(is_in_closure(path.as_bytes()), "{path}");
    }
    for path in ["", ".kitbag", ".kitbag/", ".kitbag/li", ".kitbag/python/lib", "x/.kitbag/lib", "lib"] {
        assert!(!is_in_closure(path.as_bytes()), "{path}");
    }
}
