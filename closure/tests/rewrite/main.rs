//! ELF files of all kinds are changed, looked at, and run where nothing but their tree is.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kitbag_closure::rewrite::{Reader, Request, RewriteError, TREE, VARIABLES, Variable, rewrite};

mod structure;
mod tree;

use tree::{Tree, library, program, run, tools};

const GLIBC: &str = "/kitbag-tree/.kitbag/lib/ld-linux-x86-64.so.2";

/// Compiles `probe.cpp` with a library that it needs and one that it opens.
struct Probe {
    dir: tempfile::TempDir,
}

impl Probe {
    fn new() -> Self {
        let probe = Self { dir: tempfile::tempdir().unwrap() };
        probe.library("libpart.so", "int part(int i) { return i + 1; }", &[]);
        probe.library("libplug.so", "int part(int); int plug(void) { return part(6); }", &["-L.", "-lpart"]);
        probe
    }

    fn library(&self, name: &str, source: &str, args: &[&str]) -> PathBuf {
        fs::write(self.dir.path().join("part.c"), source).unwrap();
        let soname = format!("-Wl,-soname,{name}");
        self.run("gcc", &["-shared", "-fPIC", "-o", name, &soname, "part.c"], args);
        self.dir.path().join(name)
    }

    fn program(&self, args: &[&str]) -> PathBuf {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/rewrite/probe.cpp");
        self.run("g++", &["-o", "probe", source, "-L.", "-lpart", "-ldl", "-Wno-stringop-overflow"], args);
        self.dir.path().join("probe")
    }

    fn run(&self, command: &str, first: &[&str], more: &[&str]) {
        run(Command::new(command).current_dir(self.dir.path()).args(first).args(more));
    }

    fn tree(&self, program: &Path) -> Tree {
        let tree = Tree::new();
        tree.add(program);
        tree.put(&self.dir.path().join("libplug.so"), "lib/libplug.so", &library(""));
        tree
    }

    fn expected(tree: &Tree, name: &str) -> String {
        let place = &tree.place;
        format!("{place}/{name}\n{place}/.kitbag/lib/ld-linux-x86-64.so.2\n2 41 7 objects\n")
    }

    /// Builds, rewrites, runs; then the same again with the file that came out.
    fn check(&self, args: &[&str]) {
        let built = self.program(args);
        self.check_file(&built);
        run(Command::new("strip").args(["--strip-all"]).arg(&built));
        self.check_file(&built);
        without_sections(&built);
        self.check_file(&built);
    }

    fn check_file(&self, built: &Path) {
        let tree = self.tree(built);
        assert_eq!(tree.run("bin/probe", &["libplug.so"]), Probe::expected(&tree, "bin/probe"));
        let unpacked = tree.path("bin/probe");
        let many = [TREE; 6].join("/lib:") + "/lib:/kitbag-tree/.kitbag/lib";
        tree.put(&unpacked, "bin/again", &program(GLIBC, &many));
        assert_eq!(tree.run("bin/again", &["libplug.so"]), Probe::expected(&tree, "bin/again"));
    }
}

/// What sstrip does, but for the bytes of the table.
fn without_sections(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    bytes[0x28..0x30].fill(0);
    bytes[0x3c..0x40].fill(0);
    fs::write(path, bytes).unwrap();
}

#[test]
fn programs_of_all_linkers_run_from_their_tree_alone() {
    if !tools(&["g++", "ld.gold", "ld.lld", "mold", "strip"]) {
        return;
    }
    let probe = Probe::new();
    for linker in ["bfd", "gold", "lld", "mold"] {
        let linker = format!("-fuse-ld={linker}");
        for more in [&[][..], &["-no-pie"], &["-g", "-Wl,-z,now"], &["-Wl,--build-id=none", "-rdynamic"]] {
            probe.check(&[&[linker.as_str()], more].concat());
        }
    }
}

#[test]
fn layouts_of_all_kinds_run() {
    if !tools(&["g++", "ld.lld", "strip"]) {
        return;
    }
    let probe = Probe::new();
    probe.check(&["-Wl,-z,noseparate-code"]);
    probe.check(&["-Wl,-z,relro,-z,now", "-Wl,-z,max-page-size=65536"]);
    probe.check(&["-Wl,-z,norelro", "-Wl,-z,max-page-size=2097152"]);
    probe.check(&["-Wl,--hash-style=sysv,--disable-new-dtags,-rpath,/nowhere"]);
    probe.check(&["-Wl,--enable-new-dtags,-rpath,$ORIGIN/../nowhere", "-Wl,--spare-dynamic-tags=0"]);
    probe.check(&["-DBSS=3000000"]);
    probe.check(&["-DBSS=3000000", "-fuse-ld=lld", "-Wl,--build-id=none", "-no-pie"]);
    probe.check(&["-DBSS=100000000"]);
}

#[test]
fn a_table_that_can_go_nowhere_is_an_error() {
    if !tools(&["g++", "ld.lld", "objcopy"]) {
        return;
    }
    let probe = Probe::new();
    let args = ["-DBSS=100000000", "-fuse-ld=lld", "-Wl,--build-id=none", "-Wl,--strip-all"];
    let mut bytes = fs::read(probe.program(&args)).unwrap();
    // Notes are what the table could grow over. None of them is one:
    let count = usize::from(u16::from_le_bytes([bytes[0x38], bytes[0x39]]));
    for header in bytes[64..64 + count * 56].chunks_mut(56).filter(|header| header[0] == 4) {
        header[..4].copy_from_slice(&0x6474_e560_u32.to_le_bytes());
    }
    let error = rewrite(&bytes, &program(GLIBC, "/kitbag-tree")).unwrap_err();
    assert!(matches!(error, RewriteError::NoRoom(bytes) if bytes > 90_000_000), "{error:?}");
}

#[test]
fn a_small_change_costs_little() {
    if !tools(&["g++"]) {
        return;
    }
    let probe = Probe::new();
    let tree = Tree::new();
    let built = probe.program(&["-fuse-ld=bfd"]);
    let edits = tree.add(&built);
    let growth = edits.length - fs::metadata(&built).unwrap().len();
    assert!(growth < 12_000, "{growth}");
    assert_eq!(edits.slots.len(), 2);
    assert!(edits.slots.iter().all(|slot| slot.length >= 1024));
    let libc = Path::new("/lib/x86_64-linux-gnu/libc.so.6");
    let edits = rewrite(&fs::read(libc).unwrap(), &library("")).unwrap();
    // Its flags, the two paths of iconv's modules, and the names of two variables.
    assert_eq!((edits.length, edits.writes.len()), (fs::metadata(libc).unwrap().len(), 5));
}

#[test]
fn a_second_time_nothing_changes() {
    if !tools(&["g++", "ld.lld"]) {
        return;
    }
    let probe = Probe::new();
    for linker in ["-fuse-ld=bfd", "-fuse-ld=lld"] {
        for rpath in ["/kitbag-tree/lib:/kitbag-tree/.kitbag/lib", "$ORIGIN/a", ""] {
            let request = program(GLIBC, rpath);
            let bytes = fs::read(probe.program(&[linker])).unwrap();
            let first = rewrite(&bytes, &request).unwrap();
            let new = first.apply(&bytes);
            let second = rewrite(&new, &request).unwrap();
            assert_eq!((&second.writes, &second.slots), (&Vec::new(), &first.slots));
            let shorter = rewrite(&new, &program("/kitbag-tree/ld.so", "/kitbag-tree/lib")).unwrap();
            let grows = if rpath.contains(TREE) { 0 } else { shorter.length - second.length };
            assert_eq!(shorter.length, second.length + grows);
            structure::check(
                &new,
                &shorter.apply(&new),
                &program("/kitbag-tree/ld.so", "/kitbag-tree/lib"),
                &shorter,
            );
        }
    }
}

#[test]
fn search_paths_of_libraries_are_cut_in_place_or_written_anew() {
    if !tools(&["gcc", "ld.lld"]) {
        return;
    }
    let probe = Probe::new();
    let rpath = "-Wl,-rpath,/usr/nowhere:$ORIGIN/b:$ORIGIN/../c,--enable-new-dtags";
    for linker in ["-fuse-ld=bfd", "-fuse-ld=lld"] {
        let path = probe.library("libx.so", "int x;", &[linker, rpath]);
        let tree = Tree::new();
        let put = |wanted: &str| tree.put(&path, "libx.so", &library(wanted));
        let size = fs::metadata(&path).unwrap().len();
        // LLD leaves no spare entry: the section moves when it has to grow.
        let can_grow = linker == "-fuse-ld=bfd";
        assert_eq!(put("").length, size);
        assert_eq!(put("$ORIGIN/b").length == size, can_grow);
        assert_eq!(put("$ORIGIN/b:$ORIGIN/../c").length == size, can_grow);
        assert!(put("$ORIGIN/../c:$ORIGIN/b").length > size);
        assert!(put("$ORIGIN").slots.is_empty());
    }
}

#[test]
fn appended_data_is_found_by_its_place_and_by_the_end() {
    if !tools(&["g++"]) {
        return;
    }
    let probe = Probe::new();
    let built = probe.program(&[]);
    let mut bytes = fs::read(&built).unwrap();
    let at = bytes.len();
    bytes.extend_from_slice(b"appended by a packer, 48 bytes, with an end mark");
    fs::write(&built, &bytes).unwrap();
    let tree = probe.tree(&built);
    assert_eq!(tree.run("bin/probe", &["libplug.so"]), Probe::expected(&tree, "bin/probe"));
    let first = fs::read(tree.path("bin/probe")).unwrap();
    tree.put(&tree.path("bin/probe"), "bin/again", &program(GLIBC, &[TREE; 7].join("/.kitbag/lib:")));
    let second = fs::read(tree.path("bin/again")).unwrap();
    for new in [&first, &second] {
        assert_eq!(new[at..at + 48], bytes[at..]);
        assert!(new.ends_with(&bytes[at..]));
    }
    let count = |new: &[u8]| new.windows(48).filter(|window| *window == &bytes[at..]).count();
    assert_eq!((count(&first), count(&second)), (2, 2));
    assert_eq!(tree.run("bin/again", &[]).lines().last(), Some("2 41 0 objects"));
}

#[test]
fn libraries_that_grow_are_loaded() {
    if !tools(&["g++", "ld.gold", "ld.lld", "mold"]) {
        return;
    }
    let probe = Probe::new();
    let built = probe.program(&[]);
    for linker in ["bfd", "gold", "lld", "mold"] {
        for build_id in ["none", "sha1"] {
            let args = [format!("-fuse-ld={linker}"), format!("-Wl,--build-id={build_id}")];
            let source = "int part(int); static int z[900000]; __thread int t = 6; int plug(void) { return part(t + z[899999]); }";
            probe.library("libplug.so", source, &[args[0].as_str(), args[1].as_str(), "-L.", "-lpart"]);
            let tree = probe.tree(&built);
            let plug = probe.dir.path().join("libplug.so");
            let edits = tree.put(&plug, "lib/libplug.so", &library("$ORIGIN/elsewhere:$ORIGIN"));
            assert!(edits.length > fs::metadata(&plug).unwrap().len());
            assert_eq!(tree.run("bin/probe", &["libplug.so"]), Probe::expected(&tree, "bin/probe"));
        }
    }
}

#[test]
fn redis_jq_git_and_python_run_from_their_tree_alone() {
    if !tools(&["redis-server", "jq", "git", "python3.11"]) {
        return;
    }
    let tree = Tree::new();
    tree.add(Path::new("/usr/bin/redis-server"));
    assert!(tree.run("bin/redis-server", &["--version"]).starts_with("Redis server v="));
    tree.add(Path::new("/usr/bin/jq"));
    assert_eq!(tree.run("bin/jq", &["-n", "[1,2]|add"]), "3\n");
    tree.add(Path::new("/usr/bin/python3.11"));
    assert!(tree.run("bin/python3.11", &["--version"]).starts_with("Python 3.11"));
    tree.put_null();
    tree.add(Path::new("/usr/bin/git"));
    tree.add(Path::new("/usr/lib/git-core/git-remote-http"));
    assert!(tree.run("bin/git", &["--version"]).starts_with("git version"));
    let repository = format!("{}/repository", tree.place);
    tree.run("bin/git", &["init", "-q", "--template=", &repository]);
    let helpers = format!("--exec-path={}/bin", tree.place);
    // The helper that it starts finds its own libraries, and that there is no network.
    let output =
        tree.command("bin/git").args([&helpers, "ls-remote", "http://127.0.0.1:1/"]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("unable to access"), "{output:?}");
}

#[test]
fn nothing_of_the_host_is_opened() {
    if !tools(&["strace", "redis-server"]) {
        return;
    }
    let tree = Tree::in_place();
    tree.add(Path::new("/usr/bin/redis-server"));
    let log = tree.path("log");
    let mut command = Command::new("strace");
    // Cargo sets it for tests.
    command.env_remove("LD_LIBRARY_PATH");
    command.args(["-f", "-e", "trace=file", "-o"]).arg(&log).arg(tree.path("bin/redis-server"));
    run(command.arg("--version"));
    let log = fs::read_to_string(log).unwrap();
    let libraries = format!("\"{}/.kitbag/lib/libc.so.6\"", tree.place);
    assert!(log.contains(&libraries) && log.contains("\"/dev/null/preload\""), "{log}");
    // What the program reads after that, as locales, is another matter.
    let inside = format!("\"{}/", tree.place);
    let outside = |line: &&str| line.contains(".so") && !line.contains(&inside);
    assert_eq!(log.lines().filter(outside).collect::<Vec<_>>(), Vec::<&str>::new());
}

#[test]
fn the_cache_of_the_host_is_not_asked_for_what_is_missing() {
    if !tools(&["strace", "g++"]) {
        return;
    }
    let probe = Probe::new();
    let tree = Tree::in_place();
    tree.add(&probe.program(&[]));
    let log = tree.path("log");
    let mut command = Command::new("strace");
    // Cargo sets it for tests.
    command.env_remove("LD_LIBRARY_PATH");
    command.args(["-e", "trace=file", "-o"]).arg(&log).arg(tree.path("bin/probe")).arg("libz.so.1");
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("libz.so.1: cannot open shared object file"), "{said}");
    let log = fs::read_to_string(log).unwrap();
    let places: Vec<&str> = log.lines().filter(|line| line.contains("libz.so.1\", O_RDONLY")).collect();
    assert!(places.iter().all(|line| line.contains(&format!("\"{}/", tree.place))), "{places:?}");
    assert!(!log.contains("/etc/ld.so"), "{log}");
}

#[test]
fn a_musl_program_runs_from_its_tree_alone() {
    if !tools(&["musl-gcc", "strace"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("part.c"), "int part(void) { return 7; }").unwrap();
    let source = "#include <stdio.h>\nint part(void);\nint main(int c, char **v) { printf(\"%s %d\\n\", v[0], part()); }";
    fs::write(dir.path().join("main.c"), source).unwrap();
    let musl = |args: &str| run(Command::new("musl-gcc").current_dir(dir.path()).args(args.split(' ')));
    musl("-shared -fPIC -o libpart.so part.c");
    for args in ["-fPIE -pie", "-no-pie", "-Wl,--build-id=none -Wl,-z,max-page-size=65536"] {
        musl(&format!("-o main main.c -L. -lpart {args}"));
        for tree in [Tree::new(), Tree::in_place()] {
            let loader = Path::new("/lib/ld-musl-x86_64.so.1");
            let is_loader = Request { is_loader: true, ..Request::default() };
            let edits = tree.put(loader, ".kitbag/lib/ld-musl-x86_64.so.1", &is_loader);
            assert!(edits.is_empty() && edits.unpatched.is_empty());
            tree.write(".kitbag/etc/ld-musl-x86_64.path", b"");
            tree.put(&dir.path().join("libpart.so"), ".kitbag/lib/libpart.so", &library("$ORIGIN/elsewhere"));
            let request = program("/kitbag-tree/.kitbag/lib/ld-musl-x86_64.so.1", "/kitbag-tree/.kitbag/lib");
            tree.put(&dir.path().join("main"), "bin/main", &request);
            assert_eq!(tree.run("bin/main", &[]), format!("{}/bin/main 7\n", tree.place));
        }
    }
}

#[test]
fn a_32_bit_program_runs_from_its_tree_alone() {
    if !tools(&["g++"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("main.cpp"), "int main() { try { throw 1; } catch (int i) { return i - 1; } }")
        .unwrap();
    for args in [&["-m32"][..], &["-m32", "-no-pie"], &["-m32", "-fuse-ld=lld", "-Wl,--build-id=none"]] {
        let built = dir.path().join("main");
        let mut command = Command::new("g++");
        command.current_dir(dir.path()).args(["-o", "main", "main.cpp"]).args(args);
        if !command.stderr(Stdio::null()).status().unwrap().success() {
            tools(&["g++-multilib"]);
            return;
        }
        let tree = Tree::new();
        tree.add(&built);
        tree.run("bin/main", &[]);
        run(Command::new("strip").arg(&built));
        tree.add(&built);
        tree.run("bin/main", &[]);
    }
}

#[test]
fn machines_of_other_kinds_keep_their_structure() {
    if !tools(&["llvm-mc", "ld.lld"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let source = ".globl _start\n_start:\n nop\n.data\n.globl d\nd:\n .long 1\n.bss\n .space 70000\n";
    fs::write(dir.path().join("a.s"), source).unwrap();
    let step =
        |command: &str, args: &str| run(Command::new(command).current_dir(dir.path()).args(args.split(' ')));
    for (triple, emulation) in [
        ("aarch64", "aarch64linux"),
        ("mips", "elf32btsmip"),
        ("powerpc64", "elf64ppc"),
        ("armv7", "armelf_linux_eabi"),
    ] {
        step("llvm-mc", &format!("-triple={triple}-linux-gnu -filetype=obj -o a.o a.s"));
        for more in ["", " --build-id", " -z max-page-size=65536 --strip-all", " -z now --hash-style=sysv"] {
            step("ld.lld", &format!("-m {emulation} -shared -soname liba.so -o liba.so a.o"));
            let link = format!("-m {emulation} -pie --dynamic-linker=/lib/ld.so.1 -o a a.o liba.so{more}");
            step("ld.lld", &link);
            let tree = Tree::new();
            let request = program("/kitbag-tree/.kitbag/lib/ld.so.1", "/kitbag-tree/.kitbag/lib");
            tree.put(&dir.path().join("a"), "bin/a", &request);
            tree.put(
                &tree.path("bin/a"),
                "bin/b",
                &program("/kitbag-tree/ld.so.1", "/kitbag-tree/lib:/kitbag-tree"),
            );
            tree.put(&tree.path("bin/b"), "bin/c", &program("/lib/ld.so.1", "$ORIGIN"));
            tree.put(&dir.path().join("liba.so"), "liba.so", &library("$ORIGIN/x"));
        }
    }
}

#[test]
fn readelf_and_gdb_find_what_they_look_for() {
    if !tools(&["g++", "gdb", "readelf"]) {
        return;
    }
    let probe = Probe::new();
    for args in [&["-g", "-fuse-ld=bfd"][..], &["-g", "-fuse-ld=lld", "-Wl,--build-id=none"]] {
        let tree = Tree::in_place();
        tree.add(&probe.program(args));
        let built = tree.path("bin/probe");
        let mut command = Command::new("readelf");
        let output = command.args(["--all", "--wide"]).arg(&built).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let warnings = String::from_utf8_lossy(&output.stderr);
        assert!(!warnings.contains("arning") && !warnings.contains("rror"), "{warnings}");
        let place = &tree.place;
        assert!(text.contains(&format!("Library rpath: [{place}/lib:{place}/.kitbag/lib]")), "{text}");
        assert!(text.contains(&format!("interpreter: {place}/.kitbag/lib/ld-linux-x86-64.so.2]")), "{text}");
        assert!(text.contains("NODEFLIB"), "{text}");
        let script = ["break main", "run", "info sharedlibrary", "next", "print of_thread", "kill"];
        let mut command = Command::new("gdb");
        command.args(["-nx", "-batch"]).args(script.iter().flat_map(|line| ["-ex", line])).arg(&built);
        let said = run(&mut command);
        assert!(said.contains("Breakpoint 1, main (") && said.contains("$1 = 40"), "{said}");
        assert!(said.contains(&format!("{place}/.kitbag/lib/libpart.so")), "{said}");
    }
}

#[test]
fn static_programs_stay_as_they_are() {
    if !tools(&["gcc"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("main.c"), "int main(void) { return 0; }").unwrap();
    for args in [&["-static"][..], &["-static-pie"], &["-c"]] {
        run(Command::new("gcc").current_dir(dir.path()).args(["-o", "main", "main.c"]).args(args));
        let bytes = fs::read(dir.path().join("main")).unwrap();
        let edits = rewrite(&bytes, &Request::default()).unwrap();
        assert!(edits.is_empty() && edits.length == bytes.len() as u64, "{args:?}");
        assert_eq!(rewrite(&bytes, &program(GLIBC, "")), Err(RewriteError::NoInterpreter));
    }
    run(Command::new("gcc").current_dir(dir.path()).args(["-g", "-o", "main", "main.c"]));
    run(Command::new("objcopy").current_dir(dir.path()).args(["--only-keep-debug", "main", "main.debug"]));
    let bytes = fs::read(dir.path().join("main.debug")).unwrap();
    assert!(rewrite(&bytes, &Request::default()).unwrap().is_empty());
    assert_eq!(rewrite(b"text", &Request::default()), Err(RewriteError::Malformed("header")));
}

#[test]
fn a_loader_that_is_not_known_is_told_about() {
    let request = Request { is_loader: true, ..Request::default() };
    let libc = fs::read("/lib/x86_64-linux-gnu/libc.so.6").unwrap();
    let edits = rewrite(&libc, &request).unwrap();
    assert!(edits.is_empty() && edits.unpatched == ["/ld.so.cache", "/ld.so.preload"], "{edits:?}");
    let loader = fs::read("/lib64/ld-linux-x86-64.so.2").unwrap();
    let edits = rewrite(&loader, &request).unwrap();
    assert_eq!((edits.length, edits.writes.len()), (loader.len() as u64, 2));
    let again = rewrite(&edits.apply(&loader), &request).unwrap();
    assert!(again.is_empty() && again.unpatched.is_empty(), "{again:?}");
}

#[test]
fn the_c_library_forgets_where_the_host_has_modules_for_encodings() {
    let libc = fs::read("/lib/x86_64-linux-gnu/libc.so.6").unwrap();
    let edits = rewrite(&libc, &Request::default()).unwrap();
    let changed = edits.apply(&libc);
    let count =
        |bytes: &[u8], text: &[u8]| bytes.windows(text.len()).filter(|window| *window == text).count();
    assert_eq!(count(&libc, b"/usr/lib/x86_64-linux-gnu/gconv"), 2);
    assert_eq!(count(&changed, b"/usr/lib/x86_64-linux-gnu/gconv"), 0);
    // As long as it was: glibc has the length of this one from its compiler.
    assert_eq!(count(&changed, b"\0/dev/tty//////////////////gconv\0"), 1);
    assert_eq!(count(&changed, b"/dev/tty//////////////////gconv/gconv-modules.cache\0"), 1);
    for Variable { name, own, reader } in VARIABLES {
        let is_there = usize::from(matches!(name, "GCONV_PATH" | "LOCPATH" | "TZDIR"));
        let is_renamed = usize::from(reader == Reader::Libc);
        let [name, own] = [name, own].map(|text| format!("\0{text}\0"));
        let counts = [&libc, &changed].map(|bytes| count(bytes, name.as_bytes()));
        assert_eq!(counts, [is_there, is_there - is_renamed], "{name:?}");
        assert_eq!(count(&changed, own.as_bytes()), is_renamed, "{own:?}");
    }
    assert!(rewrite(&changed, &Request::default()).unwrap().is_empty());
}

/// What a file is made to ask for: where it asks, and nowhere else.
#[test]
fn variables_are_renamed_where_strings_are_asked_for() {
    if !tools(&["gcc"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let source = r#"
        #include <stdio.h>
        #include <stdlib.h>
        const char counted[] = "\x05\0\0\0TZDIR", longer[] = "\0MY_TZDIR";
        int TZDIR(void) { return 1; }
        int main(void) {
            printf("%s %s %s %s %d\n", getenv("TZDIR"), getenv("SSL_CERT_FILE"), counted + 4, longer + 1, TZDIR());
            return 0;
        }"#;
    fs::write(dir.path().join("main.c"), source).unwrap();
    run(Command::new("gcc").current_dir(dir.path()).args(["-rdynamic", "-o", "main", "main.c"]));
    let file = dir.path().join("main");
    let bytes = fs::read(&file).unwrap();
    let variables = vec![*Variable::named("TZDIR").unwrap()];
    let request = Request { variables, ..Request::default() };
    let edits = rewrite(&bytes, &request).unwrap();
    let names: Vec<_> = edits.writes.iter().filter(|(_, bytes)| bytes == b"KITTZ").collect();
    assert_eq!(names.len(), 1, "{names:?}");
    let changed = edits.apply(&bytes);
    assert!(rewrite(&changed, &request).unwrap().is_empty());
    fs::write(&file, &changed).unwrap();
    // Without default folders it finds its libraries by this variable alone.
    let mut command = Command::new(&file);
    command.env("LD_LIBRARY_PATH", "/lib/x86_64-linux-gnu").env("KITTZ", "own").env("TZDIR", "host");
    assert_eq!(run(command.env("SSL_CERT_FILE", "file")), "own file TZDIR MY_TZDIR 1\n");
}

/// What OpenSSL, ncurses and others call them here.
#[test]
fn installed_libraries_ask_for_variables_as_the_table_says() {
    for (file, names) in [
        ("libc.so.6", &["TZDIR"][..]),
        ("libcrypto.so.3", &["SSL_CERT_FILE", "SSL_CERT_DIR"]),
        ("libtinfo.so.6", &["TERMINFO_DIRS"]),
    ] {
        let Ok(bytes) = fs::read(Path::new("/usr/lib/x86_64-linux-gnu").join(file)) else { continue };
        let request = Request { variables: VARIABLES.to_vec(), ..Request::default() };
        let edits = rewrite(&bytes, &request).unwrap();
        for Variable { name, own, .. } in names.iter().map(|name| Variable::named(name).unwrap()) {
            let found = edits.writes.iter().filter(|(_, bytes)| bytes == own.as_bytes()).count();
            assert_eq!(found, 1, "{name} in {file}");
        }
    }
}

#[test]
fn texts_that_are_too_long_are_errors() {
    let bytes = fs::read("/proc/self/exe").unwrap();
    let long = "/kitbag-tree/".to_string() + &"x".repeat(9000);
    assert_eq!(rewrite(&bytes, &program(&long, "")), Err(RewriteError::NoInterpreter), "a test is static");
    let Some(path) = tree::installed_programs().into_iter().next() else { return };
    let bytes = fs::read(path).unwrap();
    assert_eq!(rewrite(&bytes, &program(&long, "")), Err(RewriteError::InterpreterTooLong(9013, 4095)));
    assert_eq!(rewrite(&bytes, &program("/x", &long)), Err(RewriteError::RpathTooLong(9013, 8191)));
}

#[test]
fn hostile_headers_are_errors_or_harmless() {
    if !tools(&["g++"]) {
        return;
    }
    let probe = Probe::new();
    let requests = [program(GLIBC, "/kitbag-tree/lib"), library("$ORIGIN"), library("")];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    for linker in ["-fuse-ld=bfd", "-fuse-ld=lld"] {
        let bytes = fs::read(probe.program(&[linker])).unwrap();
        let dynamic = structure::dynamic_range(&bytes);
        let rewritten = rewrite(&bytes, &requests[0]).unwrap().apply(&bytes);
        for round in 0..4_000 {
            let mut broken = if round % 4 == 0 { rewritten.clone() } else { bytes.clone() };
            for _ in 0..=random(3) {
                let at = if random(4) == 0 { dynamic.start + random(dynamic.len()) } else { random(1000) };
                broken[at] = [0, 1, 0x7f, 0xff, 0x80, random(256) as u8][random(6)];
            }
            if random(20) == 0 {
                broken.truncate(random(bytes.len()));
            }
            let request = &requests[random(3)];
            if let Ok(edits) = rewrite(&broken, request) {
                let grown = edits.length - broken.len() as u64;
                assert!(grown < 17 << 20, "{grown}");
                let end = edits.writes.last().map_or(0, |(at, new)| at + new.len() as u64);
                assert!(end <= edits.length);
                let mut pairs = edits.writes.windows(2);
                assert!(pairs.all(|pair| pair[0].0 + pair[0].1.len() as u64 <= pair[1].0));
            }
        }
    }
}

#[test]
fn every_installed_program_says_the_same_from_its_tree() {
    if !tools(&["ldd"]) {
        return;
    }
    let tree = Tree::in_place();
    let mut differing = BTreeMap::new();
    let mut programs = 0;
    // Java's programs, and gcc's wrappers, look around themselves for what they start.
    let looks_around =
        |path: &Path| path.starts_with("/usr/lib/jvm") || path.to_string_lossy().contains("-gcc-");
    for path in tree::installed_programs() {
        if looks_around(&path) {
            continue;
        }
        let growth = tree.add(&path).length - fs::metadata(&path).unwrap().len();
        assert!(growth < 12_000, "{}: {growth} bytes more", path.display());
        let new = tree.path("bin").join(path.file_name().unwrap());
        let (before, after) = (version(&path, &tree), version(&new, &tree));
        fs::remove_file(new).unwrap();
        programs += 1;
        if before != after {
            differing.insert(path, (before, after));
        }
    }
    println!("{programs} programs");
    assert!(differing.is_empty(), "{} of {programs}: {differing:#?}", differing.len());
}

#[test]
fn every_installed_library_can_be_changed() {
    let mut libraries = 0;
    for entry in fs::read_dir("/usr/lib/x86_64-linux-gnu").expect("Debian's libraries") {
        let path = entry.unwrap().path();
        let is_large = fs::metadata(&path).is_ok_and(|metadata| metadata.len() > 20 << 20);
        let is_library = path.to_string_lossy().contains(".so") && !is_large;
        let bytes = fs::read(&path).ok().filter(|bytes| bytes.starts_with(b"\x7fELF") && is_library);
        let Some(bytes) = bytes else { continue };
        for rpath in ["", "$ORIGIN/../x.libs"] {
            let request = library(rpath);
            let edits =
                rewrite(&bytes, &request).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let growth = edits.length - bytes.len() as u64;
            assert!(edits.slots.is_empty() && growth < 10_000, "{}: {growth}", path.display());
            if !edits.is_empty() {
                structure::check(&bytes, &edits.apply(&bytes), &request, &edits);
                libraries += 1;
            }
        }
    }
    assert!(libraries > 100, "{libraries}");
}

/// What a program does and says when asked for its version: without times, process numbers and its own folder.
fn version(path: &Path, tree: &Tree) -> (Option<i32>, String) {
    let mut command = Command::new(path);
    let out = tempfile::tempfile().unwrap();
    command.arg("--version").current_dir(tree.path("")).env_clear().env("HOME", "/dev/null/home");
    command.env("PATH", "/usr/bin:/bin").stdin(Stdio::null());
    command.stdout(out.try_clone().unwrap()).stderr(out.try_clone().unwrap());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let deadline = Instant::now() + Duration::from_secs(5);
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status.code(),
            None if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(1)),
            None => {
                child.kill().unwrap();
                child.wait().unwrap();
                break None;
            }
        }
    };
    let said = read_all(out);
    let folder = path.parent().and_then(Path::to_str).unwrap();
    let name = path.file_name().and_then(OsStr::to_str).unwrap();
    let said = said.replace(&format!("{folder}/{name}"), name);
    // Some start others, whose order is theirs.
    let mut lines: Vec<&str> = said.lines().collect();
    lines.sort_unstable();
    (status, lines.join("\n").replace(|letter: char| letter.is_ascii_digit(), ""))
}

fn read_all(mut file: fs::File) -> String {
    use std::io::{Read, Seek};
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}
