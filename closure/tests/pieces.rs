//! The parts that a closure is made with, one by one.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use kitbag_closure::facts::{Kind, Target};
use kitbag_closure::search::{By, Libc, Rules, musl_path_file};
use kitbag_closure::tree::{Listing, Node, Tree};
use kitbag_closure::{ElfError, Facts, Root, ldconf};

const X86_64: Target = Target { is_64: true, is_little: true, machine: 62 };

/// A root with these files.
fn root(files: &[(&str, &str)]) -> (tempfile::TempDir, Root) {
    let folder = tempfile::tempdir().expect("a folder");
    for (path, content) in files {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, content).expect("a file");
    }
    let root = Root::new(folder.path());
    (folder, root)
}

fn texts(list: &[Vec<u8>]) -> Vec<String> {
    list.iter().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).collect()
}

#[test]
fn includes_are_read_in_order_and_once() {
    let (_folder, root) = root(&[
        (
            "etc/ld.so.conf",
            "/first\ninclude conf.d/*.conf /etc/more-[ab]\n\t/last/  # why\nrelative\n/first\n",
        ),
        ("etc/conf.d/b.conf", "/b\n"),
        ("etc/conf.d/a.conf", "# nothing\n/a=libc6\nhwcap 1 nosegneg\ninclude /etc/ld.so.conf\n"),
        ("etc/conf.d/.hidden.conf", "/hidden\n"),
        ("etc/conf.d/c.other", "/other\n"),
        ("etc/more-b", "/more b\n"),
    ]);
    assert_eq!(texts(&ldconf::folders(&root)), ["/first", "/a", "/b", "/more b", "/last"]);
}

#[test]
fn musl_has_its_own_file_and_folders() {
    let (_folder, root) = root(&[("opt/etc/ld-musl-x86_64.path", "/one:/two\n/three\n")]);
    assert_eq!(musl_path_file(b"/lib/ld-musl-x86_64.so.1"), b"/etc/ld-musl-x86_64.path");
    let folders = |interpreter: &[u8]| {
        let rules = Rules::new(&root, interpreter, X86_64);
        assert_eq!(rules.libc, Libc::Musl);
        rules
            .system
            .iter()
            .map(|(folder, _)| String::from_utf8_lossy(folder).into_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(folders(b"/opt/lib/ld-musl-x86_64.so.1"), ["/one", "/two", "/three"]);
    assert_eq!(folders(b"/lib/ld-musl-x86_64.so.1"), ["/lib", "/usr/local/lib", "/usr/lib"]);
}

#[test]
fn default_folders_follow_from_where_the_loader_is() {
    let loader = "ld-linux-x86-64.so.2";
    let defaults = |real: &str, link: Option<&str>| {
        let (folder, root) = root(&[(&format!("{real}/{loader}"), "")]);
        if let Some(link) = link {
            let target = format!("/{real}");
            symlink(target, folder.path().join(link)).expect("a link");
        }
        let path = format!("/{}/{loader}", link.unwrap_or(real));
        let rules = Rules::new(&root, path.as_bytes(), X86_64);
        let lib = rules.expand(b"/x/$LIB", b"/").expect("a path");
        let folders = rules.system.into_iter().filter(|(_, by)| *by == By::Default).map(|(folder, _)| folder);
        (texts(&folders.collect::<Vec<_>>()).join(" "), String::from_utf8_lossy(&lib).into_owned())
    };
    let debian = "/lib/x86_64-linux-gnu /usr/lib/x86_64-linux-gnu /lib /usr/lib";
    assert_eq!(
        defaults("usr/lib/x86_64-linux-gnu", Some("lib64")),
        (debian.into(), "/x/lib/x86_64-linux-gnu".into())
    );
    assert_eq!(defaults("usr/lib64", Some("lib64")), ("/lib64 /usr/lib64".into(), "/x/lib64".into()));
    assert_eq!(defaults("lib64", None), ("/lib64 /usr/lib64".into(), "/x/lib64".into()));
    assert_eq!(defaults("usr/lib", Some("lib64")), ("/lib /usr/lib".into(), "/x/lib".into()));
}

#[test]
fn tokens_are_expanded_as_the_loaders_do() {
    let (_folder, root) = root(&[]);
    let glibc = Rules::new(&root, b"/lib64/ld-linux-x86-64.so.2", X86_64);
    let musl = Rules::new(&root, b"/lib/ld-musl-x86_64.so.1", X86_64);
    let expand = |rules: &Rules, entry: &str| {
        rules.expand(entry.as_bytes(), b"/opt/app").map(|path| String::from_utf8(path).expect("UTF-8"))
    };
    let all = [
        ("$ORIGIN/../lib", Some("/opt/app/../lib"), Some("/opt/app/../lib")),
        ("${ORIGIN}x", Some("/opt/appx"), Some("/opt/appx")),
        ("/x/$ORIGINAL", Some("/x/$ORIGINAL"), None),
        ("/x/${LIB}/$PLATFORM", Some("/x/lib64/x86_64"), None),
        ("/x/${LIB", Some("/x/${LIB"), None),
        ("relative", None, None),
        ("", None, None),
    ];
    for (entry, by_glibc, by_musl) in all {
        assert_eq!(
            (expand(&glibc, entry).as_deref(), expand(&musl, entry).as_deref()),
            (by_glibc, by_musl),
            "{entry}"
        );
    }
    let in_tree = |entry: &[u8]| glibc.expand_in_tree(entry, b"bin");
    assert_eq!(in_tree(b"$ORIGIN/../$LIB").as_deref(), Some(&b"bin/../lib64"[..]));
    assert_eq!((in_tree(b"/opt/$ORIGIN"), in_tree(b"$ORIGINAL"), in_tree(b"${ORIGIN}x")), (None, None, None));
}

#[test]
fn a_tree_is_never_left() {
    let mut tree = Listing::default();
    tree.add("lib/real/x.so.1", Node::File);
    tree.add("lib/x.so", Node::Link(b"real/x.so.1".to_vec()));
    tree.add("alias", Node::Link(b"lib/real/..".to_vec()));
    tree.add("out", Node::Link(b"../lib".to_vec()));
    tree.add("absolute", Node::Link(b"/lib".to_vec()));
    tree.add("loop", Node::Link(b"loop".to_vec()));
    let find = |path: &str| tree.find(path.as_bytes()).map(|path| String::from_utf8(path).expect("UTF-8"));
    for (path, found) in [
        ("lib/x.so", Some("lib/real/x.so.1")),
        ("bin/../lib/x.so", None),
        ("alias/./x.so", Some("lib/real/x.so.1")),
        ("lib/..", Some("")),
        ("lib/../..", None),
        ("out/x.so", None),
        ("absolute/x.so", None),
        ("loop", None),
        ("lib/x.so/more", None),
        ("lib//real/", Some("lib/real")),
    ] {
        assert_eq!(find(path).as_deref(), found, "{path}");
    }
}

#[test]
fn a_root_keeps_links_inside() {
    let (folder, root) = root(&[("opt/lib/x.so", "")]);
    symlink("/opt/lib", folder.path().join("absolute")).expect("a link");
    symlink("../../../opt", folder.path().join("up")).expect("a link");
    for path in ["/opt/lib/x.so", "/absolute/x.so", "/up/lib/x.so", "/../opt/lib/../lib/x.so"] {
        let found = root.find(path.as_bytes()).unwrap_or_else(|| panic!("{path} not found"));
        assert_eq!(
            (found.path.as_slice(), found.host),
            (&b"/opt/lib/x.so"[..], root_path(&folder)),
            "{path}"
        );
    }
    assert_eq!(root.inside(&root_path(&folder)).as_deref(), Some(&b"/opt/lib/x.so"[..]));
    assert_eq!(root.inside(Path::new("/elsewhere")), None);
}

fn root_path(folder: &tempfile::TempDir) -> std::path::PathBuf {
    folder.path().canonicalize().expect("a path").join("opt/lib/x.so")
}

fn seed(name: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/facts").join(name)).expect("a seed")
}

#[test]
fn all_facts_of_the_seeds_are_read() {
    let facts = |name| Facts::read(&seed(name)).expect("readable").expect("ELF");
    let library = facts("library");
    assert_eq!(
        (library.kind, library.soname.as_deref(), library.x86_level()),
        (Kind::Library, Some(&b"libone.so.1"[..]), Some(2))
    );
    assert_eq!(texts(&library.versions), ["V_1", "V_2"]);
    let [dlopen] = library.dlopen.as_slice() else { panic!("{:?}", library.dlopen) };
    assert_eq!(
        (dlopen.sonames.as_slice(), dlopen.feature.as_deref()),
        (&["libz.so.1".to_owned()][..], Some("z"))
    );
    let program = facts("program");
    assert_eq!(program.interpreter.as_deref(), Some(&b"/lib64/ld-linux-x86-64.so.2"[..]));
    assert_eq!(texts(program.runpath.as_deref().expect("a list")), ["$ORIGIN/../lib", "/opt/${LIB}"]);
    assert_eq!(
        (texts(&program.needed), texts(&program.version_needs[0].versions)),
        (vec!["libone.so.1".into()], vec!["V_1".into()])
    );
    let small = facts("library-32");
    assert_eq!(
        (small.target.to_string(), texts(small.own_path())),
        ("386 (32 bits)".into(), vec!["/opt".into()])
    );
    assert_eq!((facts("static").kind, facts("static").is_dynamic), (Kind::Static, false));
    assert!(
        Facts::read(b"#!/bin/sh").expect("readable").is_none()
            && Facts::read(b"").expect("readable").is_none()
    );
}

#[test]
fn damaged_files_are_errors_or_facts_and_never_more() {
    for name in ["library", "program", "library-32", "static"] {
        let bytes = seed(name);
        for length in 4..bytes.len() {
            let _ = Facts::read(&bytes[..length]);
        }
        for at in 4..bytes.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bytes = bytes.clone();
                bytes[at] = value;
                let _ = Facts::read(&bytes);
            }
        }
    }
}

/// Four million version needs: more than memory should be spent on.
#[test]
fn endless_tables_end() {
    let mut bytes = seed("program");
    let value = |bytes: &[u8], wanted: u64| {
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let at = (0..bytes.len() - 8).step_by(8).find(|at| word(*at) == wanted).expect("the tag");
        (at + 8, word(at + 8) as usize)
    };
    let ((_, needs), (count, _)) = (value(&bytes, 0x6fff_fffe), value(&bytes, 0x6fff_ffff));
    bytes[count..count + 8].fill(0xff);
    let first = (bytes.len() - needs) as u32;
    bytes[needs + 12..needs + 16].copy_from_slice(&first.to_le_bytes());
    let record: Vec<u8> = [[1, 0, 0, 0], [1, 0, 0, 0], [0; 4], [16, 0, 0, 0]].concat();
    bytes.extend(record.repeat(4 << 20));
    let result = Facts::read(&bytes);
    assert!(matches!(result, Err(ElfError::TooMuch)), "{result:?}");
}
