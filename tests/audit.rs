//! `kitbag audit` says what a bundle needs of hosts, and its exit status is a gate.

use std::path::{Path, PathBuf};

use kitbag_tests::{App, Bundle, Cmd, Folder, Outcome, hello, tools};
use serde_json::Value;

/// The exit status of an audit that found something.
const FOUND: i32 = 8;
/// Packs without a closure: dynamic programs use the host's libraries.
const OPEN: &str = "command = [\"bin/app\"]\n[closure]\nenabled = false\n";

#[track_caller]
fn audit<S: AsRef<std::ffi::OsStr>>(bundle: &Bundle, args: impl IntoIterator<Item = S>) -> Outcome {
    Cmd::kitbag(["audit"]).arg(&bundle.file).args(args).run()
}

#[track_caller]
fn json<S: AsRef<std::ffi::OsStr>>(bundle: &Bundle, args: impl IntoIterator<Item = S>) -> Value {
    let outcome = Cmd::kitbag(["audit", "--json"]).arg(&bundle.file).args(args).run();
    serde_json::from_slice(&outcome.stdout).unwrap_or_else(|error| panic!("{error}\n{outcome}"))
}

/// A program made of this C source.
fn compiled(folder: &Folder, source: &str, args: &[&str]) -> PathBuf {
    let (code, program) = (folder.join("app.c"), folder.join("app"));
    std::fs::write(&code, source).unwrap();
    Cmd::new("gcc").arg(&code).arg("-o").arg(&program).args(args).run().succeeds();
    program
}

/// A tool that starts this program, which lies at `bin/app`.
fn tool(manifest: &str, program: &Path) -> Bundle {
    App::new(manifest).program("bin/app", program).pack()
}

/// An ELF header and nothing else, executable, for another machine: EM_AARCH64.
fn program_of_another_machine() -> Vec<u8> {
    let mut bytes = vec![0; 64];
    bytes[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    bytes[16..20].copy_from_slice(&[2, 0, 183, 0]);
    bytes[52..56].copy_from_slice(&[64, 0, 56, 0]);
    bytes
}

#[test]
fn a_static_program_passes_whatever_the_limits() {
    let bundle = App::tool().pack();
    audit(&bundle, [""; 0])
        .succeeds()
        .is_quiet()
        .prints("none needed, static: bin/hello\n")
        .prints_no("finding");
    let limits = ["--self-contained", "--cpu", "x86-64", "--kernel", "3.10"];
    audit(&bundle, limits).succeeds().prints("processor   x86-64-v1\n");
    let said = json(&bundle, [""; 0]);
    assert_eq!(said["passed"], true, "{said:#}");
    assert_eq!(said["libc"][0]["from"], "static", "{said:#}");
    assert_eq!(said["libc"][0]["files"], serde_json::json!(["bin/hello"]), "{said:#}");
}

#[test]
fn the_keys_of_its_json_stay_what_they_are() {
    let said = json(&App::tool().pack(), [""; 0]);
    let keys: Vec<&str> = said.as_object().unwrap().keys().map(String::as_str).collect();
    let expected = [
        "digest",
        "findings",
        "kernel",
        "libc",
        "libraries",
        "machines",
        "mentions",
        "name",
        "origins",
        "passed",
        "permissions",
        "processor",
        "scripts",
        "size",
        "version",
    ];
    assert_eq!(keys, expected);
    assert_eq!(said["permissions"], serde_json::json!({"setgid": 0, "setuid": 0, "world_writable": 0}));
    assert!(said["size"]["parts"].as_array().unwrap().len() >= 4, "{said:#}");
    assert!(
        said["kernel"]["least"].is_string() && said["processor"]["needed"]["least"].is_string(),
        "{said:#}"
    );
    assert!(said["libraries"]["host"].is_object() && said["libraries"]["missing"].is_object(), "{said:#}");
}

#[test]
fn a_server_of_the_distribution_takes_its_glibc_along_and_passes() {
    if !tools(&["redis-server"]) {
        return;
    }
    let bundle = App::with_manifest(
        "name = \"redis\"\nversion = \"7.0\"\ncommand = [\"bin/redis-server\"]\n\
         [[include]]\nfrom = \"/usr/bin/redis-server\"\nto = \"bin/redis-server\"\n",
    );
    let bundle = bundle.pack();
    audit(&bundle, ["--self-contained"]).succeeds().prints(" comes along: bin/redis-server\n");
    let said = json(&bundle, [""; 0]);
    let libc = said["libc"].as_array().unwrap();
    assert_eq!(libc.len(), 1, "{said:#}");
    assert_eq!((&libc[0]["from"], &libc[0]["name"]), (&"bundle".into(), &"glibc".into()), "{said:#}");
    let host = Cmd::new("getconf").arg("GNU_LIBC_VERSION").run().succeeds().text();
    assert_eq!(format!("glibc {}\n", libc[0]["version"].as_str().unwrap()), host);
    assert_eq!(said["libraries"], serde_json::json!({"host": {}, "missing": {}}));
    let mentions = said["mentions"].as_array().unwrap();
    let of_redis = |mention: &&Value| mention["path"] == "/proc/self/smaps";
    let mention = mentions.iter().find(of_redis).expect("a path of redis-server");
    assert_eq!((&mention["place"], &mention["in_bundle"]), (&"kernel".into(), &false.into()));
    assert!(mentions.iter().all(|mention| !mention["path"].as_str().unwrap().starts_with("/kitbag-tree")));
}

#[test]
fn without_its_closure_a_program_asks_for_the_least_glibc_that_it_needs() {
    if !tools(&["gcc"]) {
        return;
    }
    // memfd_create came with glibc 2.27 (memfd_create(2)); __libc_start_main has a version of 2.34 since then.
    let folder = Folder::new();
    let source =
        "#define _GNU_SOURCE\n#include <sys/mman.h>\nint main(void) { return memfd_create(\"x\", 0) < 0; }";
    let bundle = tool(OPEN, &compiled(&folder, source, &[]));
    let least = json(&bundle, [""; 0])["libc"][0]["version"].as_str().expect("a version").to_owned();
    let minor: u32 = least.strip_prefix("2.").unwrap().parse().unwrap();
    assert!(least == "2.27" || least == "2.34", "{least}");

    let outcome = audit(&bundle, [""; 0]).exits(FOUND).says("1 finding keeps it from passing");
    outcome.prints(&format!("finding: loader: bin/app: the host's glibc {least} or later; "));
    audit(&bundle, ["--glibc", &least]).succeeds();
    let outcome = audit(&bundle, ["--glibc".to_owned(), format!("2.{}", minor - 1)]).exits(FOUND);
    outcome.prints(&format!(
        "finding: glibc: bin/app: the host's glibc {least} or later, more than 2.{}",
        minor - 1
    ));
    audit(&bundle, ["--self-contained"])
        .exits(FOUND)
        .prints("finding: loader: bin/app: ")
        .prints_no("--glibc");
    audit(&bundle, ["--allow", "ld-linux*"]).succeeds();
}

/// A program, and the library `libgreet.so.1` that it needs.
fn greeter(folder: &Folder, args: &[&str]) -> (PathBuf, PathBuf) {
    let library = folder.join("libgreet.so");
    std::fs::write(folder.join("greet.c"), "int greet(void) { return 0; }").unwrap();
    let gcc = Cmd::new("gcc").args(["-shared", "-Wl,-soname,libgreet.so.1", "-o"]).arg(&library);
    gcc.arg(folder.join("greet.c")).run().succeeds();
    let source = "int greet(void);\nint main(void) { return greet(); }";
    let program = compiled(folder, source, &[&[library.to_str().unwrap()], args].concat());
    (program, library)
}

#[test]
fn a_library_of_the_host_is_a_finding_unless_it_is_granted() {
    if !tools(&["gcc"]) {
        return;
    }
    let folder = Folder::new();
    let (program, library) = greeter(&folder, &["-Wl,-rpath,$ORIGIN/../lib"]);

    let bundle = tool(OPEN, &program);
    let outcome = audit(&bundle, ["--glibc", "2.99"]).exits(FOUND);
    outcome.prints("finding: library: bin/app: the host's libgreet.so.1; ");
    audit(&bundle, ["--glibc", "2.99", "--allow", "libgreet.so.*"]).succeeds();
    // In the folder that the program searches it is the bundle's.
    let app = App::new(OPEN).program("bin/app", &program).program("lib/libgreet.so.1", &library);
    audit(&app.pack(), ["--glibc", "2.99"]).succeeds();
}

#[test]
fn a_library_that_was_left_out_is_a_finding_as_no_host_can_help() {
    if !tools(&["gcc"]) {
        return;
    }
    let folder = Folder::new();
    let (program, _) = greeter(&folder, &[]);
    let manifest = "command = [\"bin/app\"]\n[closure]\noptional = [\"libgreet.so.*\"]\n";
    let outcome = audit(&tool(manifest, &program), ["--glibc", "2.99"]).exits(FOUND);
    outcome.prints("finding: library: bin/app: libgreet.so.1, which is not in the bundle; ");
}

#[test]
fn musl_comes_along_as_its_loader() {
    if !tools(&["musl-gcc"]) {
        return;
    }
    let folder = Folder::new();
    std::fs::write(folder.join("app.c"), "int main(void) { return 0; }").unwrap();
    let program = folder.join("app");
    Cmd::new("musl-gcc").arg(folder.join("app.c")).arg("-o").arg(&program).run().succeeds();
    let closed = tool("command = [\"bin/app\"]\n", &program);
    audit(&closed, ["--self-contained"]).succeeds().prints("libc        musl comes along: bin/app\n");
    let open = tool(OPEN, &program);
    let outcome = audit(&open, ["--glibc", "2.99"]).exits(FOUND).prints("the host's musl: bin/app\n");
    outcome.prints("finding: loader: bin/app: the host's loader /lib/ld-musl-");
    audit(&open, ["--allow", "/lib/ld-musl-*"]).succeeds();
}

#[test]
fn a_processor_beyond_the_limit_is_a_finding() {
    if !tools(&["gcc"]) || std::env::consts::ARCH != "x86_64" {
        return;
    }
    let folder = Folder::new();
    let program = compiled(&folder, "int main(void) { return 0; }", &["-static", "-Wl,-z,x86-64-v3"]);
    let bundle = tool("command = [\"bin/app\"]\n", &program);
    audit(&bundle, [""; 0]).succeeds().prints("processor   x86-64-v3: bin/app\n");
    audit(&bundle, ["--cpu", "x86-64-v3"]).succeeds();
    let outcome = audit(&bundle, ["--cpu", "x86-64-v2"]).exits(FOUND);
    outcome.prints("finding: cpu: bin/app: a processor of level x86-64-v3, more than x86-64-v2; ");
    let outcome = audit(&bundle, ["--kernel", "2.6.32", "--cpu", "x86-64-v4"]).exits(FOUND);
    outcome.prints("finding: kernel: the runtime, bin/app: Linux ");
}

#[test]
fn instructions_that_occur_are_told_and_are_no_need() {
    if !tools(&["gcc"]) || std::env::consts::ARCH != "x86_64" {
        return;
    }
    let folder = Folder::new();
    let source = "void _start(void) { __asm__ volatile(\"vpaddd %ymm0, %ymm0, %ymm0\"); for (;;) {} }";
    let program = compiled(&folder, source, &["-nostdlib", "-static", "-Wa,-mx86-used-note=yes"]);
    let bundle = tool("command = [\"bin/app\"]\n", &program);
    let outcome = audit(&bundle, ["--cpu", "x86-64"]).succeeds();
    outcome.prints("processor   x86-64-v1\n              instructions of x86-64-v3 occur in bin/app, ");
    let used = &json(&bundle, [""; 0])["processor"]["used"];
    assert_eq!(*used, serde_json::json!({"least": "x86-64-v3", "files": ["bin/app"]}));
}

#[test]
fn a_script_for_an_interpreter_of_the_host_counts_where_it_is_started() {
    let perl = "#!/usr/bin/perl\nprint 1;\n";
    let script = |app: App| app.program("bin/script", Path::new("/bin/true")).file("bin/script", perl);
    let bundle = script(App::tool()).pack();
    audit(&bundle, [""; 0]).succeeds().prints("scripts     for the host's /usr/bin/perl: bin/script\n");
    let outcome = audit(&bundle, ["--self-contained"]).exits(FOUND);
    outcome.prints("finding: interpreter: bin/script: the host's /usr/bin/perl; ");
    audit(&bundle, ["--self-contained", "--allow", "/usr/bin/*"]).succeeds();

    let started = script(App::new("command = [\"bin/script\"]\n")).pack();
    audit(&started, [""; 0])
        .exits(FOUND)
        .prints("finding: interpreter: bin/script: the host's /usr/bin/perl; ");
    audit(&started, ["--allow", "perl"]).succeeds();
}

#[test]
fn a_program_for_another_machine_is_a_finding() {
    let app = App::tool().program("bin/other", hello()).file("bin/other", program_of_another_machine());
    let outcome = audit(&app.pack(), [""; 0]).exits(FOUND);
    outcome.prints("AARCH64 (64 bits): 1 file\n").prints("finding: machine: bin/other: not for X86_64");
}

#[test]
fn what_begins_as_a_program_and_is_none_is_a_finding() {
    let app =
        App::tool().program("bin/half", hello()).file("bin/half", &std::fs::read(hello()).unwrap()[..100]);
    let outcome = audit(&app.pack(), [""; 0]).exits(FOUND);
    outcome.prints("finding: elf: bin/half: begins as a program, but its ELF headers point to ");
}

#[test]
fn a_path_of_the_host_is_marked_where_the_bundle_has_one() {
    if !tools(&["gcc"]) {
        return;
    }
    let folder = Folder::new();
    let source = "#include <stdio.h>\nint main(void) { return !fopen(\"/usr/share/app/a\", \"r\") \
                  || !fopen(\"/usr/share/app/b\", \"r\"); }";
    let program = compiled(&folder, source, &["-static"]);
    let app = App::new("command = [\"bin/app\"]\n").program("bin/app", &program).file("usr/share/app/b", "b");
    let bundle = app.pack();
    let said = json(&bundle, [""; 0]);
    let mark = |path: &str| {
        let mention = said["mentions"].as_array().unwrap().iter().find(|mention| mention["path"] == path);
        mention.unwrap_or_else(|| panic!("{path}: {said:#}"))["in_bundle"].clone()
    };
    assert_eq!((mark("/usr/share/app/a"), mark("/usr/share/app/b")), (false.into(), true.into()));
    audit(&bundle, [""; 0]).succeeds().prints("the bundle has 1 of them in its own tree\n");
}

#[test]
fn a_damaged_bundle_is_not_audited() {
    let bundle = App::tool().pack();
    let mut bytes = bundle.bytes();
    let payload =
        bundle.open().head().part(kitbag_format::layout::PartKind::Payload).unwrap().offset as usize;
    bytes[payload + 10] ^= 1;
    std::fs::write(&bundle.file, bytes).unwrap();
    audit(&bundle, [""; 0]).exits(4).prints_no("kernel");
}

#[test]
fn limits_that_make_no_sense_are_wrong_use() {
    let bundle = App::tool().pack();
    let wrong: [&[&str]; 5] = [
        &["--kernel", "four"],
        &["--cpu", "v3"],
        &["--glibc", "2"],
        &["--allow", "["],
        &["--self-contained", "--glibc", "2.31"],
    ];
    for args in wrong {
        audit(&bundle, args).exits(2);
    }
    Cmd::kitbag(["audit", "--help"]).run().succeeds().prints("Example").prints("Usage:");
}
