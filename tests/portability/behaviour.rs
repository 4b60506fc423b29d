//! What a packed program finds out about itself, and what of its surroundings does not matter to it.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use kitbag_tests::{App, Bundle, Cmd, Place, Sandbox, tools, workspace};

use crate::apps::{cpp_app, git_app, musl_program, python_app, redis_tool};

/// The program with plug-ins. None if it cannot be built here: the test is unmet.
fn plugins() -> Option<Bundle> {
    if !tools(&["g++"]) {
        return None;
    }
    cpp_app().map(|app| app.pack())
}

#[test]
fn argv_0_and_proc_self_exe_are_the_programs_own_file() {
    let Some(bundle) = plugins() else { return };
    for _ in ["first start", "later start"] {
        let text = bundle.run([""; 0]).succeeds().is_quiet().text();
        let program = bundle.sandbox.tree().join("bin/plugins");
        let program = program.display();
        assert!(text.contains(&format!("argv[0] {program}\nexe {program}\n")), "{text}");
    }
}

#[test]
fn it_starts_itself_again_by_proc_self_exe() {
    let Some(bundle) = plugins() else { return };
    let again = bundle.run(["--again"]).succeeds().prints("started-again, waiting\n");
    again.prints("caught from a plug-in: by name\n");
}

#[test]
fn the_callers_loader_variables_do_not_matter() {
    let Some(bundle) = plugins() else { return };
    // Libraries of a newer system: its libc, its OpenSSL.
    let Some(site) = Place::DebianTesting.site(&bundle.file) else { return };
    let other = site.outside(Path::new("/usr/lib/x86_64-linux-gnu"));
    let start = bundle.command([""; 0]).env("LD_LIBRARY_PATH", &other).env("LD_DEBUG", "libs");
    let start = start.env("LD_PRELOAD", other.join("libcrypto.so.3")).env("LD_BIND_NOW", "1");
    for start in [start.clone(), start] {
        let text = start.run().succeeds().is_quiet().prints_no("inherited").text();
        assert!(text.contains("caught from a plug-in: by path\n"), "{text}");
    }
}

#[test]
fn a_program_started_by_its_own_path_has_its_own_libraries_whatever_the_library_path() {
    let Some(bundle) = plugins() else { return };
    let Some(site) = Place::DebianTesting.site(&bundle.file) else { return };
    bundle.run([""; 0]).succeeds();
    let other = site.outside(Path::new("/usr/lib/x86_64-linux-gnu"));
    let mut running =
        Cmd::new(bundle.sandbox.tree().join("bin/plugins")).env("LD_LIBRARY_PATH", &other).start();
    let text = running.wait_print("started, waiting\n");
    assert!(
        text.contains("inherited LD_LIBRARY_PATH=") && text.contains("from a plug-in: by name\n"),
        "{text}"
    );
    let maps = fs::read_to_string(format!("/proc/{}/maps", running.id())).unwrap();
    assert!(!maps.contains(&other.display().to_string()), "{maps}");
    running.close();
    running.ended().exits(0);
}

#[test]
fn a_systems_preload_file_is_not_read() {
    let Some(bundle) = plugins() else { return };
    let Some(site) = Place::EmptyRoot.site(&bundle.file) else { return };
    // glibc's loader would say that it cannot be preloaded.
    let etc = site.outside(Path::new("/etc"));
    fs::create_dir(&etc).unwrap();
    fs::write(etc.join("ld.so.preload"), "/etc/ld.so.preload\n").unwrap();
    site.command([""; 0]).run().succeeds().is_quiet().prints("caught from a plug-in: by name\n");
}

#[test]
fn glibc_loads_modules_of_the_bundle_alone() {
    if !tools(&["gcc"]) {
        return;
    }
    for (sets, encoding) in [("", "unknown"), ("\"gconv\"", "known")] {
        let app = App::new(&format!("command = [\"bin/modules\"]\n[closure]\nsets = [{sets}]"));
        fs::create_dir(app.tree("bin")).unwrap();
        let source = workspace().join("tests/portability/modules.c");
        Cmd::new("gcc").arg("-o").arg(app.tree("bin/modules")).arg(source).run().succeeds();
        let bundle = app.pack();
        // Both have modules for encodings and one for names, the older ones such as this libc would take.
        for place in [Place::Debian11, Place::DebianTesting, Place::EmptyRoot] {
            let Some(site) = place.site(&bundle.file) else { return };
            let mut running = site.command([""; 0]).start();
            let text = running.wait_print("waiting\n");
            site.maps_its_own_files_alone(running.id());
            assert!(text.contains(&format!("ISO-8859-2 {encoding}\n")), "{text}");
            let user = if place == Place::EmptyRoot { "unknown" } else { "root" };
            assert!(text.contains(&format!("user {user}\n")), "{text}");
            running.close();
            running.ended().exits(0);
        }
    }
}

/// The host's programs have another libc: what leads the bundle's to its modules and locales is not for them.
#[test]
fn what_leads_the_bundles_libc_means_nothing_to_the_hosts_programs() {
    if !tools(&["gcc", "env"]) {
        return;
    }
    let app = App::new("command = [\"bin/asks\"]\n[closure]\nsets = [\"gconv\", \"locales\"]");
    fs::create_dir(app.tree("bin")).unwrap();
    let source = workspace().join("tests/portability/asks.c");
    Cmd::new("gcc").arg("-o").arg(app.tree("bin/asks")).arg(source).run().succeeds();
    let bundle = app.pack();
    let said = bundle.run([""; 0]).succeeds().prints("locale C.UTF-8\nISO-8859-2 known\n").prints("PATH=");
    said.prints_no("GCONV_PATH=").prints_no("LOCPATH=");
    let Some(site) = Place::EmptyRoot.site(&bundle.file) else { return };
    site.command(["alone"]).run().succeeds().prints("locale C.UTF-8\nISO-8859-2 known\n");
}

/// Certificates, time zones and settings of the bundle's Python are not for those of the host.
#[test]
fn what_leads_the_bundles_python_means_nothing_to_the_hosts_programs() {
    if !tools(&["python3.11", "env"]) {
        return;
    }
    let manifest = "name = \"app\"\nversion = \"1\"
command = [\"bin/python3\", \"${tree}/app/main.py\"]
[app.python]
interpreter = \"/usr/bin/python3.11\"
project = \"project\"
[closure]
sets = [\"certificates\", \"timezones\"]";
    let source = fs::read(workspace().join("tests/portability/surroundings.py")).unwrap();
    let app = App::with_manifest(manifest);
    fs::create_dir(app.dir().join("project")).unwrap();
    fs::write(app.dir().join("project/main.py"), source).unwrap();
    let bundle = app.pack();
    for (place, is_host) in [(Place::Moved, true), (Place::EmptyRoot, false)] {
        let Some(site) = place.site(&bundle.file) else { continue };
        let text = site.command([""; 0]).run().succeeds().text();
        let line = |start: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(start))
                .unwrap_or_else(|| panic!("{start}: {text}"))
        };
        let (authorities, offset) = (line("authorities "), line("offset "));
        assert!(authorities.ends_with("/tree/etc/ssl/certs/ca-certificates.crt"), "{text}");
        assert_eq!((line("trusts "), line("flags ")), ("True", "1 1"), "{text}");
        assert!(offset.starts_with("2:00:00 /") && offset.ends_with("/tree/usr/share/zoneinfo"), "{text}");
        let child = line("its child ");
        assert!(child.starts_with(authorities) && child.ends_with("/tree/usr/share/zoneinfo',) 1"), "{text}");
        if !is_host {
            continue;
        }
        let inherited: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("inherited ")).collect();
        for name in ["SSL_CERT_FILE", "TZDIR", "PYTHONTZPATH", "PYTHONNOUSERSITE", "PYTHONDONTWRITEBYTECODE"]
        {
            assert!(!inherited.iter().any(|line| line.starts_with(&format!("{name}="))), "{name}\n{text}");
        }
        for line in inherited.iter().filter(|line| line.contains("/v1/trees/")) {
            assert!(line.starts_with("KIT"), "{line}");
        }
        if Path::new("/usr/bin/python3").exists() {
            let host = line("the host's ");
            assert!(!host.contains("/v1/trees/") && host.ends_with(") 0"), "{text}");
        }
    }
}

/// A file that nobody made to ask otherwise asks for the plain name.
#[test]
fn a_variable_has_its_plain_name_too_if_another_file_asks_for_that() {
    if !tools(&["env"]) {
        return;
    }
    let app = || {
        App::new("command = [\"bin/env\"]\n[closure]\nsets = [\"timezones\"]")
            .program("bin/env", Path::new("/usr/bin/env"))
            .file("share/README.md", "It reads TZDIR and PYTHONTZPATH.\n")
    };
    let Some(site) = Place::Moved.site(&app().pack().file) else { return };
    let start = site.command([""; 0]).run().succeeds().prints("KITTZ=/");
    start.prints_no("\nTZDIR=").prints_no("PYTHONTZPATH=").prints_no("KITBAGTZPATH=");
    let sandbox = Sandbox::new();
    let file = sandbox.path().join("bundle");
    let app = app().file("share/zones.rb", "puts ENV['TZDIR']\n");
    app.pack_to(&file, [""; 0]).run().succeeds().says("`share/zones.rb` names TZDIR: it is set");
    let Some(site) = Place::Moved.site(&file) else { return };
    let start = site.command([""; 0]).run().succeeds();
    start.prints("KITTZ=/").prints("\nTZDIR=/").prints_no("PYTHONTZPATH=");
}

#[test]
fn what_the_manifest_sets_is_set_as_it_says() {
    if !tools(&["env"]) {
        return;
    }
    let run =
        "[command]\nargv = [\"bin/env\"]\nenv = { TZDIR = \"/zones\" }\n[closure]\nsets = [\"timezones\"]";
    let bundle = App::new(run).program("bin/env", Path::new("/usr/bin/env")).pack();
    let Some(site) = Place::Moved.site(&bundle.file) else { return };
    site.command([""; 0]).run().succeeds().prints("KITTZ=/zones\n").prints("\nTZDIR=/zones\n");
}

#[test]
fn where_no_folder_for_temporary_files_can_be_used_the_state_has_one() {
    let run = "[command]\nargv = [\"bin/env\"]\nenv = { DATA = \"${state}\" }";
    let bundle = App::new(run).program("bin/env", Path::new("/usr/bin/env")).pack();
    let Some(site) = Place::EmptyRoot.site(&bundle.file) else { return };
    let start = || site.command([""; 0]);
    start().run().succeeds().prints("TMPDIR=/state/tmp\n").says("TMPDIR is /state/tmp");
    start().run().succeeds().prints("TMPDIR=/state/tmp\n").is_quiet();
    let mode = fs::metadata(site.outside(Path::new("/state/tmp"))).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    // Another caller has one.
    start().env("TMPDIR", site.work()).run().succeeds().prints("TMPDIR=/work\n").is_quiet();
    start().env("TMPDIR", "/nowhere").run().succeeds().prints("TMPDIR=/state/tmp\n").is_quiet();
    fs::remove_dir(site.outside(Path::new("/state/tmp"))).unwrap();
    start().env("TMPDIR", "/nowhere").run().succeeds().prints("TMPDIR=/state/tmp\n");
    fs::create_dir(site.outside(Path::new("/tmp"))).unwrap();
    // It is asked once for each caller's TMPDIR; this one's is a new question.
    start().env("TMPDIR", "/elsewhere").run().succeeds().prints("TMPDIR=/elsewhere\n").is_quiet();
}

#[test]
fn programs_of_older_and_newer_systems_are_packed_from_their_trees_and_run_here() {
    let Some(bundle) = plugins() else { return };
    for (place, version) in [(Place::Debian11, "glibc 2.31\n"), (Place::DebianTesting, "glibc 2.4")] {
        let Some(site) = place.site(&bundle.file) else { return };
        let root = site.outside(Path::new("/"));
        let app = App::new("command = [\"bin/getconf\", \"GNU_LIBC_VERSION\"]");
        let app = app.program("bin/getconf", &root.join("usr/bin/getconf"));
        let sandbox = Sandbox::new();
        let file = sandbox.path().join("bundle");
        let packed = app.pack_to(&file, [OsStr::new("--root"), root.as_os_str()]).run().succeeds();
        packed.is_quiet();
        sandbox.command(&file).run().succeeds().is_quiet().prints(version);
    }
}

#[test]
fn musls_loader_reads_no_path_file_of_the_system() {
    if !tools(&["musl-gcc"]) {
        return;
    }
    let Some(bundle) = musl_program() else { return };
    let Some(site) = Place::EmptyRoot.site(&bundle.file) else { return };
    let (etc, lib) = (site.outside(Path::new("/etc")), site.outside(Path::new("/lib")));
    fs::create_dir(&etc).unwrap();
    fs::create_dir(&lib).unwrap();
    fs::write(etc.join("ld-musl-x86_64.path"), "/lib\n").unwrap();
    fs::write(lib.join("libtwice.so"), "no library\n").unwrap();
    site.command([""; 0]).run().succeeds().is_quiet().prints("musl says 42\n");
}

#[test]
fn gdb_runs_the_program_and_sees_its_libraries() {
    if !tools(&["gdb"]) {
        return;
    }
    let Some(bundle) = plugins() else { return };
    bundle.run([""; 0]).succeeds();
    let tree = bundle.sandbox.tree();
    let gdb =
        Cmd::new("gdb").args(["-nx", "-batch", "-ex", "set startup-with-shell off", "-ex", "break main"]);
    let gdb = gdb.args(["-ex", "run", "-ex", "backtrace", "-ex", "info sharedlibrary", "-ex", "continue"]);
    let gdb = gdb.arg(tree.join("bin/plugins")).env_remove("DEBUGINFOD_URLS").run().succeeds();
    let closures = fs::read_dir(bundle.sandbox.store().join("v1/closures")).unwrap();
    let closure = closures.map(|entry| entry.unwrap().path()).next().unwrap();
    let own = |name: &str| closure.join(".kitbag/lib").join(name).display().to_string();
    gdb.prints("in main ()")
        .prints(&own("libstdc++.so.6"))
        .prints(&own("ld-linux-x86-64.so.2"))
        .prints("exited normally");
}

#[test]
fn the_path_of_the_tree_holds_the_odd_letters_of_the_home() {
    let Some(bundle) = plugins() else { return };
    let Some(site) = Place::OddPath.site(&bundle.file) else { return };
    let text = site.command([""; 0]).run().succeeds().text();
    assert!(text.starts_with("argv[0] /") && text.contains("日本 #1/home/.cache/kitbag/v1/trees/"), "{text}");
}

#[test]
fn where_nothing_may_be_executed_that_is_said() {
    let Some(bundle) = plugins() else { return };
    let Some(site) = Place::Noexec.site(&bundle.file) else { return };
    let start = site.command([""; 0]).env("KITBAG_STORE", site.work().join("store")).run();
    start
        .exits(125)
        .says("noexec")
        .says("set KITBAG_STORE to a folder of your own, on a disk that allows exec");
}

#[test]
fn a_store_that_was_moved_is_filled_in_anew() {
    let Some(bundle) = plugins() else { return };
    bundle.run([""; 0]).succeeds();
    let moved = bundle.sandbox.path().join("another store");
    fs::rename(bundle.sandbox.store(), &moved).unwrap();
    for _ in ["first start", "later start"] {
        let mut running = bundle.command([""; 0]).env("KITBAG_STORE", &moved).start();
        let text = running.wait_print("started, waiting\n");
        assert!(text.starts_with(&format!("argv[0] {}/", moved.display())), "{text}");
        let maps = fs::read_to_string(format!("/proc/{}/maps", running.id())).unwrap();
        let own = format!("{}/v1/trees/", moved.display());
        assert!(maps.lines().all(|line| !line.contains(".so") || line.contains(&own)), "{maps}");
        running.close();
        running.ended().exits(0);
    }
}

/// The check that most tests of the table rely on.
#[test]
fn code_of_the_place_would_be_noticed() {
    for (enabled, is_noticed) in [(true, false), (false, true)] {
        let app = App::new(&format!("command = [\"bin/cat\"]\n[closure]\nenabled = {enabled}"));
        let bundle = app.program("bin/cat", Path::new("/bin/cat")).pack();
        let Some(site) = Place::DebianTesting.site(&bundle.file) else { return };
        let mut running = site.command([""; 0]).start();
        running.feed(b"it runs\n");
        running.wait_print("it runs\n");
        let look = std::panic::AssertUnwindSafe(|| site.maps_its_own_files_alone(running.id()));
        assert_eq!(std::panic::catch_unwind(look).is_err(), is_noticed);
        running.close();
        running.ended().exits(0);
    }
}

#[test]
fn a_script_in_the_tree_starts_with_the_bundles_interpreter() {
    if !tools(&["python3.11"]) {
        return;
    }
    let app = python_app("command = [\"bin/tool\"]");
    let script = "#!/usr/bin/env python3\nimport sys\nprint('by', sys.executable, sys.argv[1:])\n";
    let bundle = app.file("bin/tool", script).executable("bin/tool").pack();
    let Some(site) = Place::EmptyRoot.site(&bundle.file) else { return };
    let outcome = site.command(["one", "two words"]).run().succeeds();
    outcome.prints("by /var/cache/kitbag/").prints("/tree/bin/python3 ['one', 'two words']\n");
}

#[test]
fn a_shell_of_the_place_runs_the_bundles_git_and_git_runs_the_shell() {
    if !tools(&["git", "sh"]) {
        return;
    }
    let bundle = git_app().pack();
    let alias = ["-c", "alias.places=!echo from the shell; git --version; git --exec-path", "places"];
    let outcome = bundle.run(alias).succeeds().prints("from the shell\ngit version 2.");
    outcome.prints(&format!("{}/libexec/git-core\n", bundle.sandbox.tree().display()));
}

#[test]
fn a_server_uses_no_library_of_a_system_that_has_newer_ones_of_the_same_names() {
    let Some(file) = redis_tool.packed("portable-redis_tool") else { return };
    let Some(site) = Place::DebianTesting.site(file) else { return };
    // Its loader's cache has them.
    let cache = fs::read(site.outside(Path::new("/etc/ld.so.cache"))).unwrap();
    for name in ["libc.so.6", "libsystemd.so.0"] {
        assert!(String::from_utf8_lossy(&cache).contains(name), "{name}");
    }
    (redis_tool.check)(&site);
}
