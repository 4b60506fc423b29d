use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::{Plan, PlanKind, PlanOptions, plan};
use crate::scan::Seen;

mod ports;

const HEAD: &str = "name = \"app\"\nversion = \"1\"\ncommand = [\"bin/app\"]\n";

/// A folder with an executable `bin/app` that is included, to which a test adds.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Self(TempDir::new().expect("a temporary folder"));
        folder.file("bin/app", 0o755);
        folder
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn file(&self, path: &str, mode: u32) -> &Self {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("folders");
        fs::write(&path, "text").expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("a mode");
        self
    }

    fn link(&self, target: &str, path: &str) -> &Self {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("folders");
        symlink(target, path).expect("a link");
        self
    }

    fn options(&self) -> PlanOptions {
        PlanOptions { output: Some(self.path("out")), quiet: true, root: None }
    }

    /// Plans with `HEAD`, an include of `bin`, and `more`.
    fn plan(&self, more: &str) -> Result<Plan, String> {
        self.plan_all(&format!("{HEAD}[[include]]\nfrom = \"bin\"\n{more}"))
    }

    fn plan_all(&self, text: &str) -> Result<Plan, String> {
        fs::write(self.path("kitbag.toml"), text).expect("a manifest");
        self.plan_as_is()
    }

    fn plan_as_is(&self) -> Result<Plan, String> {
        let folder = self.0.path().display().to_string();
        let short = |failure: &crate::diagnostic::Failure| failure.render(false).replace(&folder, "DIR");
        plan(self.0.path(), &self.options()).map_err(|failure| {
            assert!([2, 3].contains(&failure.code()), "{failure}");
            short(&failure)
        })
    }

    #[track_caller]
    fn error(&self, more: &str) -> String {
        self.plan(more).map(|plan| format!("{plan:?}")).expect_err("the plan must fail")
    }
}

#[track_caller]
fn assert_shown(found: &str, expected: &str) {
    assert_eq!(found.trim_end(), expected.trim(), "\n--- found\n{found}");
}

fn paths(plan: &Plan) -> Vec<String> {
    plan.entries.iter().map(super::PlanEntry::shown).collect()
}

#[test]
fn entries_are_sorted_with_every_parent() {
    let folder = Folder::new();
    folder.file("web/b", 0o644).file("web/a/x", 0o600).file("web/a-b", 0o644).link("a/x", "web/link");
    fs::create_dir(folder.path("web/empty")).expect("a folder");
    let plan = folder.plan("[[include]]\nfrom = \"web\"\nto = \"share/deep/web\"\n").expect("a plan");
    let expected = "bin, bin/app, share, share/deep, share/deep/web, share/deep/web/a, share/deep/web/a-b, \
                    share/deep/web/a/x, share/deep/web/b, share/deep/web/empty, share/deep/web/link";
    assert_eq!(paths(&plan).join(", "), expected);
    let sorted = plan.entries.windows(2).all(|pair| pair[0].path < pair[1].path);
    assert!(sorted, "{:?}", paths(&plan));
    let seen = Seen::from(&fs::metadata(folder.path("bin/app")).expect("the file"));
    assert_eq!(seen.size, 4);
    let app = PlanKind::File { source: folder.path("bin/app"), executable: true, seen, change: None };
    assert_eq!(plan.entries[1].kind, app);
    assert_eq!(plan.entries[10].kind, PlanKind::Symlink { target: b"a/x".to_vec() });
    assert_eq!(plan.manifest.commands()[0].1.argv, ["bin/app"]);
    assert_eq!((plan.compression, plan.warnings.len()), (3, 0));
}

#[test]
fn a_dot_is_the_tree_itself() {
    let folder = Folder::new();
    folder.file("dist/index.html", 0o644);
    let plan = folder.plan("[[include]]\nfrom = \"dist\"\nto = \".\"\n").expect("a plan");
    assert_eq!(paths(&plan), ["bin", "bin/app", "index.html"]);
    let error = folder.error("[[include]]\nfrom = \"dist/index.html\"\nto = \".\"\n");
    assert!(error.contains("`dist/index.html` is a file, and needs a place"), "{error}");
}

#[test]
fn a_missing_include_has_a_near_miss() {
    let folder = Folder::new();
    folder.file("assets/templates/x", 0o644);
    assert_shown(
        &folder.error("[[include]]\nfrom = \"assets/templats\"\n"),
        "
error: there is no `assets/templats` to include
 --> DIR/kitbag.toml:7:8
  |
7 | from = \"assets/templats\"
  |        ^^^^^^^^^^^^^^^^^ looked for DIR/assets/templats
  |
  = help: did you mean `assets/templates`?",
    );
    assert!(folder.error("[[include]]\nfrom = \"*.html\"\n").contains("is a path, not a pattern"));
}

#[test]
fn two_files_for_one_place_are_named_both() {
    let folder = Folder::new();
    folder.file("one", 0o644).file("two", 0o644);
    let both = "[[include]]\nfrom = \"one\"\nto = \"x\"\n[[include]]\nfrom = \"two\"\nto = \"x\"\n";
    assert_shown(
        &folder.error(both),
        "
error: two files for one place: `x` of the tree
  --> DIR/kitbag.toml:10:8
   |
 7 | from = \"one\"
   |        ----- DIR/one from here
...
10 | from = \"two\"
   |        ^^^^^ DIR/two from here
   |
   = help: give one of them another `to`, or exclude it",
    );
    let same = "[[include]]\nfrom = \"one\"\nto = \"x\"\n[[include]]\nfrom = \"one\"\nto = \"x\"\n";
    folder.plan(same).expect("one file twice is no conflict");
}

#[test]
fn a_file_is_no_folder() {
    let folder = Folder::new();
    folder.file("one", 0o644).file("two", 0o644);
    let error =
        folder.error("[[include]]\nfrom = \"one\"\nto = \"x\"\n[[include]]\nfrom = \"two\"\nto = \"x/y\"\n");
    assert!(error.contains("a file where a folder is needed: `x` of the tree"), "{error}");
    assert!(error.contains("DIR/one from here") && error.contains("DIR/two from here"), "{error}");
}

#[test]
fn the_program_is_in_the_tree_and_executable() {
    let folder = Folder::new();
    folder.file("bin/data", 0o644);
    let with = |program: &str| {
        let text = format!(
            "name = \"app\"\nversion = \"1\"\ncommand = [\"{program}\"]\n[[include]]\nfrom = \"bin\"\n"
        );
        folder.plan_all(&text)
    };
    assert_shown(
        &with("bin/ap").expect_err("a near miss"),
        "
error: there is no `bin/ap` in the tree
 --> DIR/kitbag.toml:3:12
  |
3 | command = [\"bin/ap\"]
  |            ^^^^^^^^ expected the path of a program in the tree
  |
  = help: did you mean `bin/app`?",
    );
    assert!(with("app").expect_err("elsewhere").contains("did you mean `bin/app`?"));
    assert_shown(
        &with("bin/data").expect_err("not executable"),
        "
error: `bin/data` cannot be started
 --> DIR/kitbag.toml:3:12
  |
3 | command = [\"bin/data\"]
  |            ^^^^^^^^^^ it is not executable
  |
  = help: chmod +x DIR/bin/data",
    );
    assert!(with("bin").expect_err("a folder").contains("it is a folder, not a program"));
    let absolute = with("/usr/bin/python3").expect_err("absolute");
    assert!(absolute.contains("it runs from the bundle's tree: include it"), "{absolute}");
    assert!(with("${state}/app").expect_err("state").contains("only `${tree}/` may begin it"));
    assert!(with("../app").expect_err("escape").contains("expected a path without `.`, `..`"));
    let plan = with("${tree}/bin/app").expect("a plan");
    assert_eq!(plan.manifest.commands()[0].1.argv, ["bin/app"]);
}

#[test]
fn something_is_started() {
    let folder = Folder::new();
    let error = folder.plan_all("name = \"app\"\nversion = \"1\"\n").expect_err("nothing to start");
    assert_shown(
        &error,
        "
error: the manifest says nothing to start: neither `command` nor `services`
--> DIR/kitbag.toml
 = help: a tool, which behaves as one program: `command = [\"bin/tool\"]`
 = help: a service bundle: `[services.tool]` and below it `argv = [\"bin/tool\"]`",
    );
}

#[test]
fn name_and_version_are_needed() {
    let error = Folder::new()
        .plan_all("command = [\"bin/app\"]\n[[include]]\nfrom = \"bin\"\n")
        .expect_err("no name");
    assert!(error.contains("the manifest has no `name`"), "{error}");
    assert!(error.contains("help: write `version = \"1.2.3\"` at its beginning"), "{error}");
}

#[test]
fn files_that_cannot_travel_are_refused() {
    let folder = Folder::new();
    folder.file("etc/su", 0o4755).file("etc/sg", 0o2755);
    let _socket = UnixListener::bind(folder.path("etc/socket")).expect("a socket");
    let made = Command::new("mkfifo").arg(folder.path("etc/fifo")).status().expect("mkfifo");
    assert!(made.success());
    let error = folder.error("[[include]]\nfrom = \"etc\"\n");
    assert!(error.contains("`DIR/etc/su`") && error.contains("its setuid bit cannot travel"), "{error}");
    assert!(error.contains("`chmod g-s` it, or exclude it"), "{error}");
    assert!(error.contains("a socket: a bundle holds files, folders and links only"), "{error}");
    assert!(error.contains("a fifo: a bundle holds"), "{error}");
    let device = folder.error("[[include]]\nfrom = \"/dev/null\"\nto = \"null\"\n");
    assert!(device.contains("a device: a bundle holds"), "{device}");
    folder.plan("[[include]]\nfrom = \"etc\"\nexclude = [\"*\"]\n").expect("they can be excluded");
}

#[test]
fn links_stay_in_the_tree() {
    let folder = Folder::new();
    folder.link("/etc/passwd", "links/absolute");
    assert_shown(
        &folder.error("[[include]]\nfrom = \"links\"\n"),
        "
error: link cannot be packed: `DIR/links/absolute`
 --> DIR/kitbag.toml:7:8
  |
7 | from = \"links\"
  |        ^^^^^^^ it leads to `/etc/passwd`: an absolute link would leave the tree
  |
  = help: make it relative (`ln -sr`) if that place is included too; else include what it leads to",
    );
    let folder = Folder::new();
    folder.link("../../outside", "links/escaping").link("../bin/../bin/app", "links/detour");
    let error = folder.error("[[include]]\nfrom = \"links\"\n");
    assert!(error.contains("it leads to `../../outside`: that is outside of the tree"), "{error}");
    assert!(error.contains("`..` after a name cannot be checked"), "{error}");

    let folder = Folder::new();
    folder.link("../bin/app", "links/good").link("..", "links/top").link("nothing", "links/dangling");
    let plan = folder.plan("[[include]]\nfrom = \"links\"\n").expect("a plan");
    let warning = "the link `links/dangling` leads to `nothing`, where the tree has nothing";
    assert_eq!(plan.warnings, [warning]);
}

#[test]
fn a_program_may_be_a_link_and_an_include_follows_one() {
    let folder = Folder::new();
    folder.link("app", "bin/alias").link("bin", "programs");
    let text =
        "name = \"app\"\nversion = \"1\"\ncommand = [\"programs/alias\"]\n[[include]]\nfrom = \"programs\"\n";
    let plan = folder.plan_all(text).expect("a plan");
    assert_eq!(paths(&plan), ["programs", "programs/alias", "programs/app"]);
    folder.link("loop", "bin/loop");
    let looped = folder.plan_all(&text.replace("alias", "loop")).expect_err("a loop");
    assert!(looped.contains("there is no `programs/loop` in the tree"), "{looped}");
}

#[test]
fn patterns_are_like_those_of_gitignore() {
    let folder = Folder::new();
    for file in ["web/a.bak", "web/a/b.bak", "web/a/keep", "web/cache/x", "web/a/cache/y", "web/.git/config"]
    {
        folder.file(file, 0o644);
    }
    let manifest = HEAD.replace("command", "exclude = [\"*.bak\", \"**/.git\", \"*.none\"]\ncommand")
        + "[[include]]\nfrom = \"bin\"\n[[include]]\nfrom = \"web\"\nexclude = [\"/cache/\"]\n";
    let plan = folder.plan_all(&manifest).expect("a plan");
    assert_eq!(paths(&plan)[2..], ["web", "web/a", "web/a/cache", "web/a/cache/y", "web/a/keep"]);
    let warning =
        format!("`*.none` in `exclude` matches nothing ({} line 3)", folder.path("kitbag.toml").display());
    assert_eq!(plan.warnings, [warning]);
}

#[test]
fn names_are_bytes() {
    let folder = Folder::new();
    fs::create_dir(folder.path("web")).expect("a folder");
    fs::write(folder.path("web").join(OsStr::from_bytes(b"\xff\n")), "").expect("a file");
    let plan = folder.plan("[[include]]\nfrom = \"web\"\n").expect("a plan");
    assert_eq!(plan.entries.last().map(|entry| entry.path.as_slice()), Some(&b"web/\xff\n"[..]));
}

/// Makes `levels` folders, each in the one before and with a name of 200 bytes, in `folder`; a shell can,
/// because it walks there.
fn nest(folder: &Path, levels: usize) {
    let script = "cd \"$0\" && i=0 && while [ $i -lt $1 ]; do mkdir -p $2 && cd -P $2 && i=$((i+1)); done";
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(script).arg(folder).arg(levels.to_string()).arg(long_name());
    assert!(shell.status().expect("sh").success());
}

fn long_name() -> String {
    "d".repeat(200)
}

#[test]
fn a_path_too_long_for_a_tree_is_refused() {
    let folder = Folder::new();
    nest(&folder.path("bin"), 16);
    let error = folder.error("");
    assert!(error.contains("its path in the tree has 3219 bytes; 3072 are the most"), "{error}");
}

#[test]
fn a_path_too_long_for_the_system_is_refused() {
    let folder = Folder::new();
    fs::create_dir(folder.path("deep")).expect("a folder");
    nest(&folder.path("deep"), 24);
    let from = vec![long_name(); 10].join("/");
    let error = folder.error(&format!("[[include]]\nfrom = \"deep/{from}\"\nto = \"x\"\n"));
    assert!(error.contains("more than the system takes (PATH_MAX, 4096)"), "{error}");
}

#[test]
fn the_output_is_left_out() {
    let folder = Folder::new();
    folder.file("out", 0o755);
    let all = "name = \"app\"\nversion = \"1\"\ncommand = [\"bin/app\"]\n[[include]]\nfrom = \".\"\n";
    let plan = folder.plan_all(all).expect("a plan");
    assert_eq!(paths(&plan), ["bin", "bin/app", "kitbag.toml"]);
    let error = folder.plan_all(&all.replace("bin/app", "out")).expect_err("the output is no program");
    assert!(error.contains("it is the file that the bundle is written to"), "{error}");
    let error = folder.error("[[include]]\nfrom = \"out\"\n");
    assert!(error.contains("`out` is both packed and written"), "{error}");
}

#[test]
fn seeds_are_in_the_tree() {
    let folder = Folder::new();
    folder.file("share/app.db", 0o644);
    let plan =
        folder.plan("[[include]]\nfrom = \"share\"\n[[seed]]\nfrom = \"share/app.db\"\n").expect("a plan");
    assert_eq!(
        (plan.manifest.seeds[0].from.as_str(), plan.manifest.seeds[0].to.as_str()),
        ("share/app.db", "app.db")
    );
    let error = folder.error("[[include]]\nfrom = \"share\"\n[[seed]]\nfrom = \"share/ap.db\"\n");
    assert!(error.contains("there is no `share/ap.db` in the tree"), "{error}");
    assert!(error.contains("did you mean `share/app.db`?"), "{error}");
}

#[test]
fn services_have_their_defaults() {
    let folder = Folder::new();
    let text = "name = \"app\"\nversion = \"1\"\n[[include]]\nfrom = \"bin\"\n[services.web]\nargv = [\"bin/app\"]\n\
                cwd = \"bin\"\nrestart = \"on-failure\"\nstop-signal = \"INT\"\nstop-timeout = \"1500ms\"\n";
    let plan = folder.plan_all(text).expect("a plan");
    let kitbag_format::manifest::Run::Services(services) = &plan.manifest.run else { panic!("{plan:?}") };
    let web = &services["web"];
    assert_eq!((web.stop_signal.as_str(), web.stop_timeout_ms), ("SIGINT", 1500));
    assert_eq!(web.command.cwd.as_deref(), Some("${tree}/bin"));
    let error = folder.plan_all(&text.replace("cwd = \"bin\"", "cwd = \"bim\"")).expect_err("no such folder");
    assert!(error.contains("there is no `bim` in the tree"), "{error}");
}

#[test]
fn a_folder_without_a_manifest_is_told_what_to_write() {
    let error = Folder::new().plan_as_is().expect_err("nothing there");
    assert!(error.contains("nothing in `DIR` says what to pack"), "{error}");
    assert!(error.contains("command = [\"bin/hello\"]"), "{error}");
}

#[test]
fn syntax_errors_are_shown() {
    let error = Folder::new().plan_all("name = \"a\nversion = \n").expect_err("not TOML");
    assert!(error.contains("not TOML") && error.contains("kitbag.toml:1:"), "{error}");
    assert!(error.contains("kitbag.toml:2:"), "every one: {error}");
}

#[test]
fn a_hundred_thousand_files_are_quick() {
    let folder = Folder::new();
    for part in 0..100 {
        let dir = folder.path(&format!("many/{part}"));
        fs::create_dir_all(&dir).expect("a folder");
        let first = dir.join("0");
        fs::write(&first, "").expect("a file");
        (1..1000).for_each(|file| fs::hard_link(&first, dir.join(file.to_string())).expect("a link"));
    }
    let start = Instant::now();
    let plan = folder.plan("[[include]]\nfrom = \"many\"\nexclude = [\"*.bak\"]\n").expect("a plan");
    assert_eq!(plan.entries.len(), 100_000 + 100 + 1 + 2);
    eprintln!("100,000 files: {:?}", start.elapsed());
    // The bound is generous: this is no benchmark.
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

/// A Cargo package in `folder`: its `Cargo.toml` gets `more`.
fn cargo_package(folder: &Folder, name: &str, bins: &[&str], more: &str) {
    let text = format!(
        "[package]\nname = \"{name}\"\nversion = \"0.3.0\"\nedition = \"2021\"\n{more}\n[workspace]\n"
    );
    fs::write(folder.path("Cargo.toml"), text).expect("a Cargo.toml");
    for bin in bins {
        let path = folder.path(&format!("src/bin/{bin}.rs"));
        fs::create_dir_all(path.parent().expect("a parent")).expect("folders");
        fs::write(path, "fn main() { println!(\"hello\"); }").expect("a source");
    }
}

#[test]
fn a_cargo_package_needs_nothing_more() {
    let folder = Folder::new();
    cargo_package(&folder, "hello-there", &["hello"], "description = \"Says\\nhello\"");
    let plan = folder.plan_as_is().expect("a plan");
    assert_eq!((plan.manifest.name.as_str(), plan.manifest.version.as_str()), ("hello-there", "0.3.0"));
    assert_eq!(plan.manifest.description, "Says hello");
    assert_eq!(plan.manifest.commands()[0].1.argv, ["bin/hello"]);
    assert_eq!(paths(&plan), ["bin", "bin/hello"]);
    let PlanKind::File { source, executable: true, seen, .. } = &plan.entries[1].kind else {
        panic!("{plan:?}")
    };
    assert!(seen.size > 100_000, "{}", seen.size);
    assert!(!has_interpreter(source), "{} must be static", source.display());
}

/// Whether the ELF file names an interpreter, as `readelf` sees it.
fn has_interpreter(path: &Path) -> bool {
    let output = Command::new("readelf").args(["-lW"]).arg(path).output().expect("readelf");
    assert!(output.status.success());
    String::from_utf8_lossy(&output.stdout).contains("INTERP")
}

#[test]
fn several_bins_need_a_command() {
    let folder = Folder::new();
    cargo_package(&folder, "two", &["a", "b"], "");
    let error = folder.plan_as_is().expect_err("nothing to start");
    assert!(error.contains("the package has several bins: `bin/a`, `bin/b`"), "{error}");
    assert!(!folder.path("target").exists(), "nothing was built");
    let error = folder.plan_all("[cargo]\nbins = [\"a\", \"bb\"]\n").expect_err("no such bin");
    assert!(
        error.contains("package `two` has no bin `bb`") && error.contains("did you mean `b`?"),
        "{error}"
    );
    let error = folder.plan_all("[cargo]\npackage = \"tow\"\n").expect_err("no such package");
    assert!(error.contains("there is no package `tow`") && error.contains("did you mean `two`?"), "{error}");
}

#[test]
fn a_manifest_may_stand_in_cargo_toml() {
    let folder = Folder::new();
    let metadata = "[package.metadata.kitbag]\nnmae = \"x\"\n";
    cargo_package(&folder, "one", &["one"], metadata);
    let error = folder.plan_as_is().expect_err("an unknown key");
    assert!(error.contains("DIR/Cargo.toml:6:1") && error.contains("did you mean `name`?"), "{error}");
    let error = folder.plan_all("name = \"x\"\n").expect_err("two manifests");
    assert!(error.contains("two manifests: `kitbag.toml` and `[package.metadata.kitbag]`"), "{error}");
}

#[test]
fn a_bin_and_a_file_for_one_place() {
    let folder = Folder::new();
    cargo_package(&folder, "app", &["app"], "");
    let error = folder.plan_all("[[include]]\nfrom = \"bin\"\n").expect_err("two files");
    assert!(error.contains("two files for one place: `bin/app` of the tree"), "{error}");
    assert!(error.contains("is also the place of a Cargo bin"), "{error}");
}

#[test]
fn cargo_options_need_a_cargo_project() {
    let error = Folder::new().plan("[cargo]\nstatic = true\n").expect_err("no Cargo.toml");
    assert!(error.contains("`[cargo]` without a Cargo project"), "{error}");
}

/// Manifest of a service bundle with these tables.
fn services(more: &str) -> String {
    format!("name = \"app\"\nversion = \"1\"\n[[include]]\nfrom = \"bin\"\n{more}")
}

#[test]
fn a_probe_is_a_program_of_the_tree_and_sees_what_its_service_sees() {
    let folder = Folder::new();
    folder.file("bin/check", 0o755).file("bin/notes", 0o644);
    let text = services(
        "[services.web]\nargv = [\"bin/app\"]\nenv = { A = \"1\", B = \"2\" }\ncwd = \"${state}\"\n\
         ready = { command = [\"bin/check\"] }\n\
         health = { command = { argv = [\"bin/app\", \"-q\"], env = { B = \"3\" }, cwd = \"bin\" } }\n",
    );
    let plan = folder.plan_all(&text).expect("a plan");
    let commands: Vec<_> = plan.manifest.commands().into_iter().map(|(_, command)| command.clone()).collect();
    let shown = |number: usize| {
        let command: &kitbag_format::manifest::Command = &commands[number];
        let env: Vec<String> = command.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        format!("{} | {} | {}", command.argv.join(" "), env.join(" "), command.cwd.as_deref().unwrap_or("-"))
    };
    assert_eq!(commands.len(), 3);
    assert_eq!(shown(0), "bin/app | A=1 B=2 | ${state}");
    assert_eq!(shown(1), "bin/check | A=1 B=2 | ${state}");
    assert_eq!(shown(2), "bin/app -q | A=1 B=3 | ${tree}/bin");
    let missing = folder.plan_all(&text.replace("bin/check", "bin/chek")).expect_err("no such program");
    assert!(
        missing.contains("there is no `bin/chek` in the tree")
            && missing.contains("did you mean `bin/check`?")
    );
    let data = folder.plan_all(&text.replace("bin/check", "bin/notes")).expect_err("no program");
    assert!(data.contains("it is not executable"), "{data}");
}

#[test]
fn tasks_and_logs_travel() {
    let folder = Folder::new();
    let text = services(
        "[services.web]\nargv = [\"bin/app\"]\nneeds = [\"migrate\"]\n[tasks.migrate]\nargv = [\"bin/app\", \"up\"]\n\
         [tasks.backup]\nargv = [\"bin/app\", \"${state}/b\"]\nschedule = \"0 3 * * *\"\n[logs]\nkeep = 9\n",
    );
    let plan = folder.plan_all(&text).expect("a plan");
    assert_eq!(plan.manifest.tasks.keys().collect::<Vec<_>>(), ["backup", "migrate"]);
    assert_eq!(plan.manifest.tasks["migrate"].command.argv, ["bin/app", "up"]);
    assert_eq!((plan.manifest.logs.keep, plan.warnings.len()), (9, 0));
    let again = kitbag_format::Manifest::from_text(&plan.manifest.to_text()).expect("a manifest");
    assert_eq!((&again, again.fault()), (&plan.manifest, None));
    let missing =
        folder.plan_all(&text.replace("\"bin/app\", \"up\"", "\"bin/ap\"")).expect_err("no program");
    assert!(missing.contains("did you mean `bin/app`?"), "{missing}");
}

#[test]
fn a_time_zone_is_known_or_the_near_one_is_meant() {
    let folder = Folder::new();
    let with = |zone: &str| {
        let task = "[tasks.t]\nargv = [\"bin/app\"]\nschedule = \"@daily\"\ntime-zone = ";
        folder.plan_all(&services(&format!("[services.web]\nargv = [\"bin/app\"]\n{task}\"{zone}\"\n")))
    };
    for zone in ["UTC", "local"] {
        assert_eq!(with(zone).expect("a plan").warnings.len(), 0);
    }
    if !Path::new("/usr/share/zoneinfo/Europe/Berlin").exists() {
        eprintln!("not tried further: this machine has no time zones");
        return;
    }
    let warnings = with("Europe/Berlin").expect("a plan").warnings.join("\n");
    assert!(warnings.contains("`sets = [\"timezones\"]` in `[closure]` brings it along"), "{warnings}");
    let error = with("Europe/Berln").expect_err("no such zone");
    assert!(error.contains("unknown time zone `Europe/Berln`"), "{error}");
    assert!(error.contains("did you mean `Europe/Berlin`?"), "{error}");
}

#[test]
fn more_services_than_a_supervisor_takes_are_refused() {
    let many: String =
        (0..11).map(|n| format!("[services.s{n}]\nargv = [\"bin/app\"]\ninstances = 1000\n")).collect();
    let error = Folder::new().plan_all(&services(&many)).expect_err("11,000 instances");
    assert!(error.contains("it has more services than a supervisor takes"), "{error}");
}
