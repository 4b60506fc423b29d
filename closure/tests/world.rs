//! Small programs and libraries made with gcc, and what their closure is.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use kitbag_closure::resolve::{Addition, Conflict, Link, Need, Remark, Request, Verdict, facts_of};
use kitbag_closure::tree::{Listing, Node};
use kitbag_closure::{Closure, Facts, Input, Member, Root, resolve};

/// A folder with what is built, and a tree that some of it is included in.
struct World {
    folder: tempfile::TempDir,
    tree: Listing,
    members: Vec<Member>,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("empty.c"), "").expect("a source");
        fs::write(folder.path().join("main.c"), "int main(void) { return 0; }").expect("a source");
        Self { folder, tree: Listing::default(), members: Vec::new() }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    /// Runs a compiler. `@` in an argument is the folder.
    fn build(&self, compiler: &str, output: &str, source: &str, arguments: &[&str]) -> PathBuf {
        let (output, folder) = (self.path(output), self.folder.path().to_str().expect("UTF-8"));
        fs::create_dir_all(output.parent().expect("a folder")).expect("a folder");
        let arguments = arguments.iter().map(|argument| argument.replace('@', folder));
        let mut command = Command::new(compiler);
        command
            .arg("-Wl,--no-as-needed,--allow-shlib-undefined,--no-undefined-version")
            .arg(self.path(source));
        let built = command.args(arguments).arg("-o").arg(&output).output().expect("a compiler");
        assert!(built.status.success(), "{command:?}: {}", String::from_utf8_lossy(&built.stderr));
        output
    }

    fn program(&self, output: &str, arguments: &[&str]) -> PathBuf {
        self.build("gcc", output, "main.c", arguments)
    }

    /// A library without libc, whose soname is its file name.
    fn library(&self, output: &str, arguments: &[&str]) -> PathBuf {
        let soname = format!("-Wl,-soname,{}", output.rsplit('/').next().expect("a name"));
        let all = [&["-shared", "-fPIC", "-nostdlib", &soname], arguments].concat();
        self.build("gcc", output, "empty.c", &all)
    }

    /// Includes a file, if it is ELF as a member.
    fn include(&mut self, path: &str, source: &str) {
        let source = self.path(source);
        self.tree.add(path, Node::File);
        if let Some(facts) = facts_of(&source).expect("readable") {
            self.members.push(Member { path: path.into(), source, facts });
        }
    }

    fn resolve(&self) -> Closure {
        self.resolve_on(&Root::new("/"))
    }

    fn resolve_on(&self, root: &Root) -> Closure {
        resolve(&Input { members: &self.members, tree: &self.tree, root, read: &facts_of })
    }

    /// What the real loader prints for a program.
    fn listed(&self, program: &str) -> String {
        let mut loader = Command::new("/lib64/ld-linux-x86-64.so.2");
        let output = loader.env("LD_TRACE_LOADED_OBJECTS", "1").arg(self.path(program)).output();
        String::from_utf8_lossy(&output.expect("a loader").stdout).into_owned()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn request<'a>(closure: &'a Closure, path: &str) -> &'a Request {
    closure
        .requests
        .get(path.as_bytes())
        .unwrap_or_else(|| panic!("no request for {path} in {:?}", closure.requests))
}

fn rpath(closure: &Closure, path: &str) -> Vec<String> {
    request(closure, path).rpath.iter().map(|entry| text(entry)).collect()
}

/// What comes along, without what glibc opens by itself.
fn additions(closure: &Closure) -> Vec<String> {
    closure.additions.keys().map(|path| text(path)).filter(|path| path != UNWINDER).collect()
}

const UNWINDER: &str = ".kitbag/lib/libgcc_s.so.1";

/// The file on the root that an addition is.
fn origin(closure: &Closure, path: &str) -> String {
    match &closure.additions[path.as_bytes()] {
        Addition::File { source, .. } => source.to_str().expect("UTF-8").to_owned(),
        other => panic!("{path} is {other:?}"),
    }
}

fn loads(closure: &Closure, path: &str) -> Vec<String> {
    closure.loads[path.as_bytes()].iter().map(|path| text(path)).collect()
}

fn links(chain: &[Link]) -> Vec<String> {
    chain.iter().map(ToString::to_string).collect()
}

#[track_caller]
fn complete(closure: &Closure) {
    let wrong = (&closure.missing, &closure.conflicts, &closure.unmet_versions);
    assert!(closure.is_complete(), "{wrong:#?}");
}

const LIBC: [&str; 2] = [".kitbag/lib/ld-linux-x86-64.so.2", ".kitbag/lib/libc.so.6"];

/// A thread that is cancelled aborts the whole program where glibc does not find the unwinder.
#[test]
fn what_glibc_opens_by_itself_comes_along_and_is_not_loaded_at_the_start() {
    let mut world = World::new();
    world.program("app", &[]);
    world.include("bin/app", "app");
    let closure = world.resolve();
    complete(&closure);
    assert!(closure.additions.contains_key(UNWINDER.as_bytes()), "{:?}", closure.additions.keys());
    assert_eq!(loads(&closure, "bin/app"), LIBC);
}

#[test]
fn rpath_is_inherited() {
    let mut world = World::new();
    world.library("opt/libb.so", &[]);
    world.library("other/liba.so", &["@/opt/libb.so"]);
    let paths = "-Wl,--disable-new-dtags,-rpath,@/opt:@/other";
    world.program("app", &["@/other/liba.so", paths]);
    world.include("bin/app", "app");
    let closure = world.resolve();
    complete(&closure);
    assert_eq!(additions(&closure), [LIBC[0], ".kitbag/lib/liba.so", ".kitbag/lib/libb.so", LIBC[1]]);
    assert_eq!(rpath(&closure, "bin/app"), ["/kitbag-tree/.kitbag/lib"]);
    let loader = request(&closure, "bin/app").interpreter.as_deref().map(text);
    assert_eq!(loader.as_deref(), Some("/kitbag-tree/.kitbag/lib/ld-linux-x86-64.so.2"));
    assert!(request(&closure, LIBC[0]).is_loader && !request(&closure, LIBC[1]).is_loader);
    assert_eq!(loads(&closure, "bin/app"), [LIBC[0], ".kitbag/lib/liba.so", LIBC[1], ".kitbag/lib/libb.so"]);
    let folder = world.path("");
    let folder = folder.to_str().expect("UTF-8");
    assert_eq!(
        links(&closure.why(b".kitbag/lib/libb.so")),
        [
            format!("bin/app needs liba.so, found at {folder}other/liba.so"),
            format!("{folder}other/liba.so needs libb.so, found at {folder}opt/libb.so"),
        ]
    );
    assert!(closure.why(b"bin/app").is_empty());
}

#[test]
fn runpath_is_not_inherited_and_says_where_was_searched() {
    let mut world = World::new();
    world.library("opt/libb.so", &[]);
    world.library("opt/liba.so", &["@/opt/libb.so"]);
    world.program("app", &["@/opt/liba.so", "-Wl,--enable-new-dtags,-rpath,@/opt"]);
    assert!(world.listed("app").contains("libb.so => not found"));
    world.include("bin/app", "app");
    let closure = world.resolve();
    let [missing] = closure.missing.as_slice() else { panic!("{:?}", closure.missing) };
    assert_eq!((text(&missing.name), &missing.need), ("libb.so".to_owned(), &Need::Library));
    assert_eq!(missing.chain.len(), 1, "{:?}", missing.chain);
    assert!(
        missing.tried.iter().any(|tried| tried.path == b"/usr/lib/x86_64-linux-gnu/libb.so"),
        "{:?}",
        missing.tried
    );
    assert!(missing.tried.iter().all(|tried| tried.verdict == Verdict::Absent));
    assert!(text(&missing.needed_by).ends_with("/opt/liba.so"));
}

#[test]
fn an_objects_runpath_hides_its_rpath_and_that_of_its_loaders() {
    let mut world = World::new();
    world.library("opt/libb.so", &[]);
    world.library("opt/liba.so", &["@/opt/libb.so", "-Wl,--enable-new-dtags,-rpath,/nowhere"]);
    world.program("app", &["@/opt/liba.so", "-Wl,--disable-new-dtags,-rpath,@/opt"]);
    assert!(world.listed("app").contains("libb.so => not found"));
    world.include("bin/app", "app");
    assert_eq!(world.resolve().missing.len(), 1);
}

#[test]
fn what_lies_in_the_tree_is_used_there() {
    let mut world = World::new();
    world.library("dist/lib/private/libb.so", &[]);
    let private = "-Wl,--enable-new-dtags,-rpath,$ORIGIN/private:/opt/build/lib:$ORIGIN/nothing";
    world.library("dist/lib/liba.so", &["@/dist/lib/private/libb.so", private]);
    let lib = "-Wl,--enable-new-dtags,-rpath,/opt/build/lib:${ORIGIN}/../lib:$ORIGIN/../lib64";
    world.program("dist/bin/app", &["@/dist/lib/liba.so", lib]);
    for file in ["bin/app", "lib/liba.so", "lib/private/libb.so"] {
        world.include(file, &format!("dist/{file}"));
    }
    let closure = world.resolve();
    complete(&closure);
    assert_eq!(additions(&closure), LIBC);
    assert_eq!(rpath(&closure, "bin/app"), ["/kitbag-tree/lib", "/kitbag-tree/.kitbag/lib"]);
    assert_eq!(rpath(&closure, "lib/liba.so"), ["$ORIGIN/private"]);
    assert!(!closure.requests.contains_key(b"lib/private/libb.so".as_slice()), "it needs nothing");
    assert_eq!(loads(&closure, "bin/app"), [LIBC[0], "lib/liba.so", LIBC[1], "lib/private/libb.so"]);
    assert_eq!(
        links(&closure.why(b"lib/private/libb.so")),
        ["lib/liba.so needs libb.so, found at lib/private/libb.so"]
    );
}

#[test]
fn a_member_that_is_found_by_an_absolute_path_is_not_added_again() {
    let mut world = World::new();
    world.library("opt/libb.so", &[]);
    world.library("opt/liba.so", &["@/opt/libb.so", "-Wl,-rpath,@/opt"]);
    world.program("app", &["@/opt/liba.so", "-Wl,-rpath,@/opt"]);
    world.include("bin/app", "app");
    world.include("usr/lib/liba.so", "opt/liba.so");
    world.include("more/libb.so", "opt/libb.so");
    let closure = world.resolve();
    complete(&closure);
    assert_eq!(additions(&closure), LIBC);
    assert_eq!(rpath(&closure, "bin/app"), ["/kitbag-tree/usr/lib", "/kitbag-tree/.kitbag/lib"]);
    assert_eq!(rpath(&closure, "usr/lib/liba.so"), ["$ORIGIN/../../more"]);
}

#[test]
fn two_of_one_soname_in_one_process_are_a_conflict_with_both_chains() {
    let mut world = World::new();
    world.library("v1/libx.so.1", &["-Wl,--defsym=one=1"]);
    world.library("v2/libx.so.1", &["-Wl,--defsym=two=2"]);
    world.library("opt/liba.so", &["@/v1/libx.so.1", "-Wl,-rpath,@/v1"]);
    world.library("opt/libb.so", &["@/v2/libx.so.1", "-Wl,-rpath,@/v2"]);
    world.program("app", &["@/opt/liba.so", "@/opt/libb.so", "-Wl,-rpath,@/opt"]);
    world.include("bin/app", "app");
    let closure = world.resolve();
    let [Conflict::TwoOfOneName { name, first, second }] = closure.conflicts.as_slice() else {
        panic!("{:?}", closure.conflicts)
    };
    assert_eq!(text(name), "libx.so.1");
    assert!(text(&first[1].to).ends_with("v1/libx.so.1") && text(&second[1].to).ends_with("v2/libx.so.1"));
    // Copies are no conflict.
    fs::copy(world.path("v1/libx.so.1"), world.path("v2/libx.so.1")).expect("a copy");
    complete(&world.resolve());
}

#[test]
fn two_of_one_soname_in_two_programs_both_come_along() {
    let mut world = World::new();
    world.library("v1/libx.so.1", &["-Wl,--defsym=one=1"]);
    world.library("v2/libx.so.1", &["-Wl,--defsym=two=2"]);
    world.library("v2/liby.so", &[]);
    world.program("app1", &["@/v1/libx.so.1", "-Wl,-rpath,@/v1"]);
    world.program("app2", &["@/v2/libx.so.1", "@/v2/liby.so", "-Wl,-rpath,@/v2"]);
    world.include("bin/app1", "app1");
    world.include("bin/app2", "app2");
    let closure = world.resolve();
    complete(&closure);
    assert!(origin(&closure, ".kitbag/lib/libx.so.1").ends_with("v1/libx.so.1"));
    assert!(origin(&closure, ".kitbag/lib.2/libx.so.1").ends_with("v2/libx.so.1"));
    assert_eq!(rpath(&closure, "bin/app1"), ["/kitbag-tree/.kitbag/lib"]);
    assert_eq!(rpath(&closure, "bin/app2"), ["/kitbag-tree/.kitbag/lib.2", "/kitbag-tree/.kitbag/lib"]);
    assert_eq!(
        loads(&closure, "bin/app2"),
        [LIBC[0], ".kitbag/lib.2/libx.so.1", ".kitbag/lib/liby.so", LIBC[1]]
    );
}

#[test]
fn one_file_under_two_names_is_one_file_and_a_link() {
    let mut world = World::new();
    world.library("opt/libx.so.1", &[]);
    symlink("libx.so.1", world.path("opt/libx.so")).expect("a link");
    world.build("gcc", "stub/libx.so", "empty.c", &["-shared", "-nostdlib", "-Wl,-soname,libx.so"]);
    world.library("opt/liba.so", &["@/opt/libx.so.1"]);
    world.program("app", &["@/opt/liba.so", "@/stub/libx.so", "-Wl,--disable-new-dtags,-rpath,@/opt"]);
    world.program("later", &["@/opt/libx.so.1", "-Wl,--disable-new-dtags,-rpath,@/opt"]);
    world.include("bin/app", "app");
    world.include("bin/later", "later");
    let closure = world.resolve();
    complete(&closure);
    assert!(matches!(closure.additions[b".kitbag/lib/libx.so".as_slice()], Addition::File { .. }));
    assert_eq!(closure.additions[b".kitbag/lib/libx.so.1".as_slice()], Addition::Link(b"libx.so".to_vec()));
    assert_eq!(loads(&closure, "bin/app"), [LIBC[0], ".kitbag/lib/liba.so", ".kitbag/lib/libx.so", LIBC[1]]);
}

#[test]
fn a_library_of_the_wrong_class_is_passed_over() {
    let mut world = World::new();
    world.library("opt32/libx.so", &["-m32"]);
    world.library("opt/libx.so", &[]);
    world.program("app", &["@/opt/libx.so", "-Wl,-rpath,@/opt32:@/opt"]);
    assert!(world.listed("app").contains("/opt/libx.so"));
    world.include("bin/app", "app");
    let closure = world.resolve();
    complete(&closure);
    assert!(origin(&closure, ".kitbag/lib/libx.so").ends_with("/opt/libx.so"));
    fs::remove_file(world.path("opt/libx.so")).expect("removed");
    let missing = &world.resolve().missing[0];
    let Verdict::Other(target) = missing.tried[0].verdict else { panic!("{missing:?}") };
    assert!(!target.is_64 && missing.target.is_64, "{missing:?}");
}

#[test]
fn a_text_with_a_librarys_name_ends_the_search() {
    let mut world = World::new();
    world.library("opt/libx.so", &[]);
    world.program("app", &["@/opt/libx.so", "-Wl,-rpath,@/text:@/opt"]);
    fs::create_dir(world.path("text")).expect("a folder");
    fs::write(world.path("text/libx.so"), "INPUT(libx.so.1)").expect("a text");
    assert!(!world.listed("app").contains("/opt/libx.so"), "the loader gives up, too");
    world.include("bin/app", "app");
    let missing = &world.resolve().missing[0];
    assert!(
        matches!(&missing.tried[0].verdict, Verdict::NotLoadable(why) if why == "not an ELF file"),
        "{missing:?}"
    );
}

#[test]
fn a_program_for_another_machine_misses_its_loader_and_says_the_machine() {
    let mut world = World::new();
    let app = world.program("app", &[]);
    let mut bytes = fs::read(&app).expect("the program");
    bytes[18] = 183;
    fs::write(&app, bytes).expect("the program");
    world.include("bin/app", "app");
    let closure = world.resolve();
    let needs: Vec<String> = closure.missing.iter().map(|missing| text(&missing.name)).collect();
    assert_eq!(needs, ["/lib64/ld-linux-x86-64.so.2", "libc.so.6"]);
    assert_eq!(closure.missing[0].need, Need::Interpreter);
    assert_eq!(closure.missing[0].target.to_string(), "AARCH64 (64 bits)");
    assert!(matches!(closure.missing[0].tried[0].verdict, Verdict::Other(target) if target.machine == 62));
}

#[test]
fn a_version_that_the_library_lacks_is_an_error() {
    let mut world = World::new();
    fs::write(world.path("new.map"), "V_1 { global: one; }; V_2 { global: two; };").expect("a map");
    fs::write(world.path("old.map"), "V_1 { global: one; };").expect("a map");
    fs::write(world.path("both.c"), "void one(void) {} void two(void) {}").expect("a source");
    fs::write(world.path("use.c"), "void one(void); void two(void); int main(void) { one(); two(); }")
        .expect("a source");
    let shared = ["-shared", "-fPIC", "-nostdlib", "-Wl,-soname,libv.so"];
    let with = |map| [&shared[..], &[map]].concat();
    world.build("gcc", "opt/libv.so", "both.c", &with("-Wl,--version-script=@/new.map"));
    world.build("gcc", "app", "use.c", &["@/opt/libv.so", "-Wl,-rpath,@/opt"]);
    world.include("bin/app", "app");
    complete(&world.resolve());
    world.build("gcc", "opt/libv.so", "both.c", &with("-Wl,--version-script=@/old.map"));
    let closure = world.resolve();
    let [unmet] = closure.unmet_versions.as_slice() else { panic!("{:?}", closure.unmet_versions) };
    assert_eq!((text(&unmet.needed_by), text(&unmet.version)), ("bin/app".into(), "V_2".into()));
    assert!(text(&unmet.file).ends_with("opt/libv.so"));
    world.build("gcc", "opt/libv.so", "both.c", &shared);
    complete(&world.resolve());
}

/// A program whose note says what it opens.
fn opens(world: &mut World, json: &str) {
    let length = json.len() + 1;
    let quoted = json.replace('"', "\\\"");
    let source = format!(
        "__attribute__((section(\".note.dlopen\"), used, aligned(4))) static const struct {{ unsigned name, length, type; \
         char owner[4]; char text[{length}]; }} note = {{ 4, {length}, 0x407c0c0a, \"FDO\", \"{quoted}\" }}; int main(void) {{}}"
    );
    fs::write(world.path("opens.c"), source).expect("a source");
    world.build("gcc", "app", "opens.c", &["-Wl,-rpath,@/opt"]);
    (world.tree, world.members) = (Listing::default(), Vec::new());
    world.include("bin/app", "app");
}

#[test]
fn what_a_note_says_is_dlopened_comes_along() {
    let mut world = World::new();
    world.library("opt/libb.so", &[]);
    world.library("opt/libplug.so.2", &["@/opt/libb.so", "-Wl,-rpath,@/opt"]);
    opens(&mut world, r#"[{"soname":["libplug.so.3","libplug.so.2"],"feature":"plug"}]"#);
    let closure = world.resolve();
    complete(&closure);
    assert_eq!(additions(&closure), [LIBC[0], ".kitbag/lib/libb.so", LIBC[1], ".kitbag/lib/libplug.so.2"]);
    assert_eq!(loads(&closure, "bin/app"), LIBC, "not at the start");
    opens(&mut world, r#"[{"soname":["libno.so"],"priority":"required"}]"#);
    let missing = &world.resolve().missing[0];
    assert!(matches!(&missing.need, Need::Dlopen(_)) && missing.name == b"libno.so", "{missing:?}");
    opens(&mut world, r#"[{"soname":["libno.so"],"priority":"recommended"}]"#);
    let closure = world.resolve();
    complete(&closure);
    assert!(matches!(closure.remarks.as_slice(), [Remark::NotThere(_)]), "{:?}", closure.remarks);
    opens(&mut world, r#"[{"soname":["libplug.so.2"],"priority":"suggested"}]"#);
    let closure = world.resolve();
    assert_eq!((additions(&closure).len(), closure.remarks.len()), (2, 0));
}

#[test]
fn musl_programs_get_their_loader_and_nothing_of_the_host() {
    let mut world = World::new();
    if !Path::new("/usr/bin/musl-gcc").exists() {
        println!("NOT RUN: needs musl-gcc");
        return;
    }
    world.library("opt/libb.so", &[]);
    world.library("opt/liba.so", &["@/opt/libb.so"]);
    world.build("musl-gcc", "app", "main.c", &["@/opt/liba.so", "-Wl,--enable-new-dtags,-rpath,@/opt"]);
    world.include("bin/app", "app");
    let closure = world.resolve();
    complete(&closure);
    let all = [
        ".kitbag/etc/ld-musl-x86_64.path",
        ".kitbag/lib/ld-musl-x86_64.so.1",
        ".kitbag/lib/liba.so",
        ".kitbag/lib/libb.so",
    ];
    assert_eq!(additions(&closure), all, "RUNPATH is inherited, libc.so is the loader");
    assert_eq!(closure.additions[all[0].as_bytes()], Addition::Empty);
    assert!(closure.requests.values().all(|request| !request.is_loader));
    assert_eq!(loads(&closure, "bin/app"), all[1..]);
    // The same program runs: musl finds libb.so by the program's RUNPATH.
    assert!(Command::new(world.path("app")).status().expect("the program").success());
}

#[test]
fn static_programs_stay_as_they_are() {
    let mut world = World::new();
    world.program("static", &["-static"]);
    world.program("static-pie", &["-static-pie"]);
    world.build("gcc", "object.o", "main.c", &["-c"]);
    for file in ["static", "static-pie", "object.o"] {
        world.include(file, file);
    }
    let closure = world.resolve();
    complete(&closure);
    assert!(closure.additions.is_empty() && closure.requests.is_empty(), "{closure:?}");
}

#[test]
fn a_plug_in_finds_what_its_program_has_loaded() {
    let mut world = World::new();
    world.library("dist/lib/libcore.so", &[]);
    world.library("opt/libextra.so", &["-Wl,--defsym=extra=1"]);
    world
        .library("dist/plugins/plug.so", &["@/dist/lib/libcore.so", "@/opt/libextra.so", "-Wl,-rpath,@/opt"]);
    world.program("dist/bin/app", &["@/dist/lib/libcore.so", "-Wl,--enable-new-dtags,-rpath,$ORIGIN/../lib"]);
    for file in ["bin/app", "lib/libcore.so", "plugins/plug.so"] {
        world.include(file, &format!("dist/{file}"));
    }
    let closure = world.resolve();
    complete(&closure);
    assert_eq!(additions(&closure), [LIBC[0], LIBC[1], ".kitbag/lib/libextra.so"]);
    assert_eq!(rpath(&closure, "plugins/plug.so"), Vec::<String>::new());
    // Alone, without a program and the library, it is missing.
    world.members.drain(..2);
    assert_eq!(world.resolve().missing.len(), 1);
}

#[test]
fn a_plug_in_may_need_what_its_program_opens_by_path() {
    let mut world = World::new();
    world.library("dist/lib/server/libjvm.so", &[]);
    world.library("dist/lib/libnet.so", &["@/dist/lib/server/libjvm.so"]);
    world.program("dist/bin/java", &[]);
    for file in ["bin/java", "lib/server/libjvm.so", "lib/libnet.so"] {
        world.include(file, &format!("dist/{file}"));
    }
    let closure = world.resolve();
    complete(&closure);
    let [Remark::LoadedBefore { needed_by, path, .. }] = closure.remarks.as_slice() else {
        panic!("{:?}", closure.remarks)
    };
    assert_eq!((text(needed_by), text(path)), ("lib/libnet.so".into(), "lib/server/libjvm.so".into()));
}

#[test]
fn a_plug_in_gets_its_own_library_where_another_program_has_one_of_that_name() {
    let mut world = World::new();
    world.library("v1/libx.so.1", &["-Wl,--defsym=one=1"]);
    world.library("v2/libx.so.1", &["-Wl,--defsym=two=2"]);
    world.library("plug.so", &["@/v2/libx.so.1", "-Wl,-rpath,@/v2"]);
    world.program("user", &["@/v1/libx.so.1", "-Wl,-rpath,@/v1"]);
    world.program("host", &[]);
    world.include("a/user", "user");
    world.include("b/host", "host");
    world.include("b/plug.so", "plug.so");
    let closure = world.resolve();
    complete(&closure);
    assert!(origin(&closure, ".kitbag/lib.2/libx.so.1").ends_with("v2/libx.so.1"));
    assert_eq!(rpath(&closure, "b/plug.so"), ["$ORIGIN/../.kitbag/lib.2"]);
}

#[test]
fn a_need_by_path_is_found_and_refused() {
    let mut world = World::new();
    world.build("gcc", "opt/libx.so", "empty.c", &["-shared", "-nostdlib"]);
    world.program("app", &["@/opt/libx.so"]);
    world.include("bin/app", "app");
    let closure = world.resolve();
    assert!(closure.missing.is_empty());
    assert!(matches!(&closure.conflicts[..], [Conflict::NeededByPath { .. }]), "{:?}", closure.conflicts);
}

#[test]
fn variants_for_processor_levels_come_along_with_their_needs() {
    let mut world = World::new();
    world.library("opt/libfast.so", &[]);
    world.library("opt/libx.so", &[]);
    world.library("opt/glibc-hwcaps/x86-64-v3/libx.so", &["@/opt/libfast.so", "-Wl,-rpath,@/opt"]);
    world.program("app", &["@/opt/libx.so", "-Wl,-rpath,@/opt"]);
    world.include("bin/app", "app");
    let closure = world.resolve();
    complete(&closure);
    let variant = ".kitbag/lib/glibc-hwcaps/x86-64-v3/libx.so";
    assert_eq!(additions(&closure)[0], variant);
    assert!(additions(&closure).contains(&".kitbag/lib/libfast.so".to_owned()));
    assert_eq!(rpath(&closure, variant), Vec::<String>::new());
}

#[test]
fn another_root_has_its_own_configuration_links_and_loader() {
    let mut world = World::new();
    let root = world.path("root");
    for folder in ["etc/ld.so.conf.d", "usr/lib64", "opt/real", "srv/hidden"] {
        fs::create_dir_all(root.join(folder)).expect("a folder");
    }
    fs::write(root.join("etc/ld.so.conf"), "# comment\ninclude ld.so.conf.d/*.conf\n/srv/last/ # more\n")
        .expect("a file");
    fs::write(root.join("etc/ld.so.conf.d/a.conf"), "/opt/linked\n").expect("a file");
    fs::write(root.join("etc/ld.so.conf.d/.hidden.conf"), "/srv/hidden\n").expect("a file");
    symlink("/opt/real", root.join("opt/linked")).expect("a link");
    symlink("/usr/lib64", root.join("lib64")).expect("a link");
    for (from, to) in [
        ("/lib64/ld-linux-x86-64.so.2", "usr/lib64/ld-linux-x86-64.so.2"),
        ("/lib/x86_64-linux-gnu/libc.so.6", "usr/lib64/libc.so.6"),
    ] {
        fs::copy(from, root.join(to)).expect("a copy");
    }
    world.library("root/opt/real/libx.so", &[]);
    world.library("root/srv/hidden/libx.so", &[]);
    world.program("root/usr/bin/app", &["@/root/opt/real/libx.so"]);
    world.include("bin/app", "root/usr/bin/app");
    let closure = world.resolve_on(&Root::new(&root));
    complete(&closure);
    assert_eq!(
        origin(&closure, ".kitbag/lib/libx.so"),
        root.join("opt/real/libx.so").to_str().expect("UTF-8")
    );
    assert_eq!(
        links(&closure.why(b".kitbag/lib/libx.so")),
        ["bin/app needs libx.so, found at /opt/linked/libx.so"]
    );
    assert_eq!(origin(&closure, LIBC[1]), root.join("usr/lib64/libc.so.6").to_str().expect("UTF-8"));
}

#[test]
fn a_stripped_section_table_hides_nothing() {
    let world = World::new();
    world.library("libx.so", &[]);
    let app = world.program("app", &["@/libx.so", "-Wl,-rpath,@"]);
    let mut bytes = fs::read(&app).expect("the program");
    let whole = Facts::read(&bytes).expect("readable").expect("ELF");
    bytes[40..48].fill(0);
    bytes[58..64].fill(0);
    let stripped = Facts::read(&bytes).expect("readable").expect("ELF");
    assert!(whole.has_sections && !stripped.has_sections && whole.needed.len() == 2);
    assert_eq!(Facts { has_sections: true, ..stripped }, whole);
}

#[test]
fn facts_of_a_huge_library_are_read_in_few_bytes() {
    let world = World::new();
    let path = world.library("libx.so", &["-Wl,-rpath,/opt"]);
    fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .and_then(|file| file.set_len(1 << 30))
        .expect("a huge file");
    let read = || {
        let text = fs::read_to_string("/proc/thread-self/io").expect("counters");
        text.lines().find_map(|line| line.strip_prefix("rchar: ")?.parse::<u64>().ok()).expect("rchar")
    };
    let before = read();
    let facts = facts_of(&path).expect("readable").expect("ELF");
    let bytes = read() - before;
    assert!(bytes < 64 << 10, "{bytes} bytes read");
    assert_eq!(facts.runpath.as_deref(), Some([b"/opt".to_vec()].as_slice()));
}

#[test]
fn the_order_of_members_changes_nothing() {
    let mut world = World::new();
    world.library("v1/libx.so.1", &["-Wl,--defsym=one=1"]);
    world.library("v2/libx.so.1", &["-Wl,--defsym=two=2"]);
    for number in 0..6 {
        let folder = if number % 2 == 0 { "@/v1" } else { "@/v2" };
        let (library, rpath) = (format!("{folder}/libx.so.1"), format!("-Wl,-rpath,{folder}"));
        world.program(&format!("app{number}"), &[&library, &rpath]);
        world.library(&format!("plug{number}.so"), &[&library, &rpath]);
        world.include(&format!("bin/app{number}"), &format!("app{number}"));
        world.include(&format!("lib/plug{number}.so"), &format!("plug{number}.so"));
    }
    let one = format!("{:?}", world.resolve());
    world.members.reverse();
    assert_eq!(one, format!("{:?}", world.resolve()));
    world.members.swap(0, 5);
    assert_eq!(one, format!("{:?}", world.resolve()));
}

/// A chain of a thousand libraries, each needing the next one and the first.
#[test]
fn a_thousand_libraries_are_quick() {
    let mut world = World::new();
    world.library("stub/libn0001.so", &[]);
    let bytes = fs::read(world.library("stub/libn0000.so", &["@/stub/libn0001.so"])).expect("a library");
    world.program("app", &["@/stub/libn0000.so", "-Wl,--disable-new-dtags,-rpath,@/opt"]);
    fs::create_dir(world.path("opt")).expect("a folder");
    let place = |name: &[u8]| bytes.windows(name.len()).position(|part| part == name).expect("a name in it");
    let (own, next) = (place(b"libn0000") + 4, place(b"libn0001") + 4);
    for number in 0..1000 {
        let mut bytes = bytes.clone();
        bytes[own..own + 4].copy_from_slice(format!("{number:04}").as_bytes());
        bytes[next..next + 4].copy_from_slice(format!("{:04}", (number + 1) % 1000).as_bytes());
        fs::write(world.path(&format!("opt/libn{number:04}.so")), bytes).expect("a library");
    }
    world.include("bin/app", "app");
    // Time on a processor: the machine may have other things to do.
    let spent = || {
        let text = fs::read_to_string("/proc/thread-self/schedstat").expect("the scheduler's numbers");
        text.split(' ')
            .next()
            .and_then(|number| number.parse().ok())
            .map(Duration::from_nanos)
            .expect("nanoseconds")
    };
    let start = spent();
    let closure = world.resolve();
    let took = spent() - start;
    complete(&closure);
    assert_eq!(additions(&closure).len(), 1002);
    assert_eq!(closure.why(b".kitbag/lib/libn0999.so").len(), 1000);
    println!("{took:?}");
    let most = if cfg!(debug_assertions) { 2000 } else { 100 };
    assert!(took.as_millis() < most, "{took:?}");
}
