//! Presets and `kitbag init` on real interpreters, with packages of PyPI and npm.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use kitbag_tests::{App, Bundle, Cmd, Folder, Running, copy, is_root, tools, unmet};

/// Debian's interpreter, or else the first one.
fn python() -> &'static str {
    if Path::new("/usr/bin/python3").exists() { "/usr/bin/python3" } else { "python3" }
}

fn output(program: &str, args: &[&str], folder: &Path) -> Option<Output> {
    Command::new(program).args(args).current_dir(folder).output().ok()
}

/// True if the command succeeds; else the test is unmet and has to return.
fn prepared(program: &str, args: &[&str], folder: &Path) -> bool {
    let output = output(program, args, folder);
    let done = output.as_ref().is_some_and(|output| output.status.success());
    if !done {
        let said = output.map(|output| String::from_utf8_lossy(&output.stderr).into_owned());
        let last =
            said.as_deref().and_then(|said| said.lines().last()).unwrap_or("it is not there").to_owned();
        unmet(&format!("needs `{program} {}`: {last}", args.join(" ")));
    }
    done
}

fn project(files: &[(&str, &str)]) -> Folder {
    let folder = Folder::new();
    for (path, text) in files {
        folder.dir(Path::new(path).parent().unwrap());
        fs::write(folder.join(path), text).unwrap();
    }
    folder
}

/// `kitbag pack`, with a cache of its own where `cache` says so.
fn packed(folder: &Folder, cache: Option<&Folder>) -> Vec<u8> {
    let out = Folder::new();
    let pack = App::at(folder.path()).pack_to(&out.join("bundle"), [""; 0]).within(Duration::from_secs(600));
    let pack = match cache {
        Some(cache) => pack.env("XDG_CACHE_HOME", cache.path()),
        None => pack,
    };
    pack.run().succeeds();
    fs::read(out.join("bundle")).unwrap()
}

/// Starts the bundle of one service on a free port, and asks it for its first page until it answers.
fn page(bundle: &Bundle) -> (Running, String) {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut running = bundle.command([""; 0]).env("PORT", port.to_string()).start();
    running.wait_until("an answer", |_| get(port).is_some());
    let page = get(port).unwrap();
    (running, page)
}

fn get(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    stream.write_all(b"GET / HTTP/1.0\r\nHost: x\r\n\r\n").ok()?;
    let mut page = String::new();
    stream.read_to_string(&mut page).ok()?;
    page.contains("200 OK").then_some(page)
}

/// The bundle's command where nothing is but the bundle, if that can be had.
fn alone(bundle: &Bundle, folder: &Folder, args: &[&str]) -> Cmd {
    if !is_root() {
        return bundle.command(args);
    }
    copy(&bundle.file, &folder.join("bundle"));
    Cmd::new("/bundle").args(args).bare().behind("/usr/sbin/chroot", [folder.path()])
}

const WEB: &str = r#"
import os, ssl, subprocess, sys, zoneinfo
from flask import Flask, render_template
import lxml.etree

app = Flask(__name__)

@app.get("/")
def index():
    host = subprocess.run(["/usr/bin/python3", "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True)
    return render_template("index.html", tree=sys.prefix, xml=lxml.etree.__file__, host=host.stdout, ssl=ssl.OPENSSL_VERSION)
"#;

/// A folder with these files and a virtual environment that has these packages.
fn project_with(packages: &[&str], files: &[(&str, &str)]) -> Option<Folder> {
    let folder = project(files);
    let install = [&["-m", "pip", "install", "-q"], packages].concat();
    let made = prepared(python(), &["-m", "venv", ".venv"], folder.path())
        && prepared(&folder.join(".venv/bin/python").display().to_string(), &install, folder.path());
    made.then_some(folder)
}

#[test]
fn a_flask_app_that_init_found_serves_from_its_tree_and_the_hosts_python_still_works() {
    let files = [
        ("requirements.txt", "flask\ngunicorn\nlxml\n"),
        ("shop/__init__.py", ""),
        ("shop/web.py", WEB),
        ("shop/templates/index.html", "<p>tree {{ tree }}</p><p>xml {{ xml }}</p><p>host {{ host }}</p>"),
        (".env", "SECRET=1"),
    ];
    let Some(folder) = project_with(&["flask", "gunicorn", "lxml"], &files) else { return };
    let init = Cmd::kitbag(["init", "--force"]).cwd(folder.path()).run().succeeds();
    init.prints("Flask in `shop.web`").prints("gunicorn serves `shop.web:app`").prints("kitbag run");
    let bundle = App::at(folder.path()).pack();
    let (running, page) = page(&bundle);
    let tree = bundle.sandbox.tree();
    assert!(page.contains(&format!("tree {}", tree.display())), "{page}");
    assert!(page.contains(&format!("xml {}", tree.display())), "{page}");
    if python() == "/usr/bin/python3" {
        assert!(page.contains("host /usr\n"), "{page}");
    }
    running.stop().exits(0);
    for absent in ["app/.env", "app/.venv", "pyvenv.cfg", "lib/python3.11/test"] {
        assert!(!tree.join(absent).exists(), "{absent}");
    }
    // Nothing was written into the tree: the bytecode that is there was used.
    let again = Cmd::kitbag(["verify"]).arg(&bundle.file).run();
    again.succeeds();
}

#[test]
fn programs_of_a_virtual_environment_start_with_the_bundles_interpreter() {
    let manifest = "name = \"shop\"\nversion = \"1\"\ncommand = [\"bin/gunicorn\", \"--version\"]\n[app.python]\nvenv = \".venv\"\n";
    let Some(folder) = project_with(&["gunicorn"], &[("kitbag.toml", manifest)]) else { return };
    let bundle = App::at(folder.path()).pack();
    let root = Folder::new();
    alone(&bundle, &root, &[]).run().succeeds().prints("gunicorn");
}

#[test]
fn requirements_are_installed_once_and_packing_again_gives_the_same_bytes_even_without_the_cache() {
    let folder = project(&[
        ("requirements.txt", "click\n"),
        (
            "greet.py",
            "import click\n@click.command()\n@click.argument('name')\ndef main(name):\n    click.echo('hello ' + name)\n",
        ),
        ("kitbag.toml", ""),
    ]);
    let manifest = format!(
        "name = \"greet\"\nversion = \"1\"\n[app.python]\ninterpreter = \"{}\"\nrequirements = \"requirements.txt\"\nentry = \"greet:main\"\n",
        python()
    );
    fs::write(folder.join("kitbag.toml"), manifest).unwrap();
    let target = Folder::new();
    let install = ["-m", "pip", "install", "-q", "--target", target.path().to_str().unwrap(), "click"];
    if !prepared(python(), &install, folder.path()) {
        return;
    }
    let caches = [Folder::new(), Folder::new()];
    let first = packed(&folder, Some(&caches[0]));
    assert!(first == packed(&folder, Some(&caches[0])), "another bundle from the same cache");
    assert!(first == packed(&folder, Some(&caches[1])), "another bundle from an empty cache");
    let bundle = App::at(folder.path()).pack();
    let root = Folder::new();
    alone(&bundle, &root, &["you"]).run().succeeds().prints("hello you");
    bundle.command(["you"]).env("PYTHONPATH", "/nowhere").env("PYTHONHOME", "/nowhere").run().succeeds();
}

const PLAIN: &str = r#"
import ctypes, decimal, hashlib, json, multiprocessing, sqlite3, ssl, sys, zlib
import helper

if __name__ == "__main__":
    with multiprocessing.get_context("fork").Pool(1) as pool:
        print("pool", pool.map(helper.double, [21]))
    print(helper.__cached__, helper.__file__)
    print(sys.executable, sys.prefix, sys.argv[1:])
    try:
        helper.fail()
    except ZeroDivisionError:
        import traceback
        traceback.print_exc(file=sys.stdout)
    sys.exit(5)
"#;

/// A tool of the standard library alone, which needs no network.
fn plain() -> Option<Folder> {
    if !tools(&["python3"]) || !prepared(python(), &["-c", "import ssl, sqlite3"], Path::new("/")) {
        return None;
    }
    let manifest = format!(
        "name = \"plain\"\nversion = \"1\"\n[app.python]\ninterpreter = \"{}\"\nentry = \"tool/run.py\"\n",
        python()
    );
    let folder = project(&[
        ("tool/run.py", PLAIN),
        ("tool/helper.py", "def double(n):\n    return n * 2\ndef fail():\n    return 1 / 0\n"),
        ("broken.py", "this is no Python\n"),
    ]);
    fs::write(folder.join("kitbag.toml"), manifest).unwrap();
    Some(folder)
}

#[test]
fn a_script_runs_with_its_modules_compiled_ahead() {
    let Some(folder) = plain() else { return };
    let bundle = App::at(folder.path()).pack();
    let outcome = bundle.run(["a", "b c"]).exits(5).prints("pool [42]").prints("['a', 'b c']");
    let tree = bundle.sandbox.tree();
    let at = |path: &str| tree.join(path).display().to_string();
    // Python took the compiled file, and its tracebacks name the source where it is now.
    let outcome = outcome.prints(&at("app/tool/__pycache__/helper.")).prints(&at("bin/python3"));
    outcome.prints(&format!("File \"{}\", line 4, in fail", at("app/tool/helper.py")));
    let cached = fs::read_dir(tree.join("app/tool/__pycache__")).unwrap().flatten().next().unwrap();
    let flags = fs::read(cached.path()).unwrap()[4..8].to_vec();
    assert_eq!(flags, [1, 0, 0, 0], "hash-based, unchecked (PEP 552)");
    assert!(!tree.join("app/__pycache__").exists(), "what is no Python is not compiled");
}

#[test]
fn a_change_is_compiled_again_and_nothing_else() {
    let Some(folder) = plain() else { return };
    let cache = Folder::new();
    let first = packed(&folder, Some(&cache));
    let compiled = || fs::read_dir(cache.join("kitbag/python/compiled")).unwrap().count();
    let before = compiled();
    fs::write(
        folder.join("tool/helper.py"),
        "def double(n):\n    return n * 3\ndef fail():\n    return 1 / 0\n",
    )
    .unwrap();
    assert!(first != packed(&folder, Some(&cache)));
    assert_eq!(compiled(), before + 1);
    App::at(folder.path()).pack().run([""; 0]).exits(5).prints("pool [63]");
}

#[test]
fn what_pip_cannot_install_is_said_in_its_words() {
    if !tools(&["python3"]) || !prepared(python(), &["-m", "pip", "--version"], Path::new("/")) {
        return;
    }
    let folder = project(&[("requirements.txt", "./no-such-folder\n"), ("run.py", "")]);
    let manifest = format!(
        "name = \"x\"\nversion = \"1\"\n[app.python]\ninterpreter = \"{}\"\nrequirements = \"requirements.txt\"\nentry = \"run.py\"\n",
        python()
    );
    fs::write(folder.join("kitbag.toml"), manifest).unwrap();
    let outcome = App::at(folder.path()).refused(3);
    outcome.says("pip cannot install `requirements.txt`").says("kitbag.toml:5:16").says("no-such-folder");
}

const SERVER: &str = r#"
const app = require('express')();
app.get('/', (request, response) => response.send('by ' + process.execPath + ' ' + process.env.NODE_ENV));
app.listen(process.env.PORT, '127.0.0.1');
"#;

#[test]
fn an_express_app_that_init_found_serves_with_the_node_of_its_tree() {
    if !tools(&["npm"]) {
        return;
    }
    let package = r#"{"name": "web", "version": "2.0.1", "scripts": {"start": "node server.js"}, "dependencies": {"express": "4"}}"#;
    let folder = project(&[("package.json", package), ("server.js", SERVER)]);
    let install = ["install", "--no-audit", "--no-fund", "--no-save", "node@20", "express@4"];
    if !prepared("npm", &install, folder.path())
        || !prepared(&folder.join("node_modules/node/bin/node").display().to_string(), &["-v"], folder.path())
    {
        return;
    }
    let init = Cmd::kitbag(["init"]).cwd(folder.path()).run().succeeds();
    init.prints("package.json").prints("`express`");
    let written = fs::read_to_string(folder.join("kitbag.toml")).unwrap();
    let named =
        written.replace("# interpreter = \"/usr/bin/node\"", "interpreter = \"node_modules/node/bin/node\"");
    assert_ne!(written, named);
    fs::write(folder.join("kitbag.toml"), named).unwrap();
    let bundle = App::at(folder.path()).pack();
    let (running, page) = page(&bundle);
    let tree = bundle.sandbox.tree();
    assert!(page.contains(&format!("by {} production", tree.join("bin/node").display())), "{page}");
    assert!(!tree.join("app/node_modules/node").exists());
    running.stop().exits(0);
}

const MAIN: &str = r#"package demo;
public class Main {
    public static void main(String[] args) {
        System.out.println(System.getProperty("java.home") + " " + String.join("+", args));
        java.util.logging.Logger.getLogger("demo");
        System.exit(7);
    }
}
"#;

#[test]
fn a_jar_runs_on_a_runtime_of_the_modules_it_needs() {
    if !tools(&["javac", "jar", "jlink"]) {
        return;
    }
    let folder = project(&[("demo/Main.java", MAIN)]);
    let jar = ["--create", "--file", "demo.jar", "--main-class", "demo.Main", "demo/Main.class"];
    if !prepared("javac", &["demo/Main.java"], folder.path()) || !prepared("jar", &jar, folder.path()) {
        return;
    }
    Cmd::kitbag(["init"]).cwd(folder.path()).run().succeeds().prints("`demo.jar`");
    let caches = [Folder::new(), Folder::new()];
    assert!(packed(&folder, Some(&caches[0])) == packed(&folder, Some(&caches[1])), "another bundle");
    let bundle = App::at(folder.path()).pack();
    let root = Folder::new();
    alone(&bundle, &root, &["a", "b"]).run().exits(7).prints("/tree/lib/jvm a+b");
    // java.base, and java.logging that jdeps found: no desktop.
    bundle.run([""; 0]).exits(7);
    let release = fs::read_to_string(bundle.sandbox.tree().join("lib/jvm/release")).unwrap();
    assert!(release.contains("MODULES=\"java.base java.logging\""), "{release}");
}

#[test]
fn init_writes_once_and_says_what_else_would_fit() {
    let folder = project(&[
        ("app.py", "print('hello')\n"),
        ("requirements.txt", ""),
        ("package.json", "{}"),
        ("index.js", ""),
    ]);
    let init = |args: &[&str]| Cmd::kitbag(["init"]).args(args).cwd(folder.path()).run();
    init(&[])
        .succeeds()
        .prints("a Python project")
        .prints("--as node")
        .prints("entry")
        .prints("next: `kitbag run`");
    let first = fs::read_to_string(folder.join("kitbag.toml")).unwrap();
    init(&["--as", "node"]).exits(1).says("there is a `kitbag.toml` already").says("--force");
    assert_eq!(first, fs::read_to_string(folder.join("kitbag.toml")).unwrap());
    init(&["--as", "node", "--force"]).succeeds().prints("a Node project");
    let empty = Folder::new();
    Cmd::kitbag(["init"])
        .cwd(empty.path())
        .run()
        .exits(3)
        .says("pyproject.toml")
        .says("package.json")
        .says("a jar");
    assert_eq!(fs::read_dir(empty.path()).unwrap().count(), 0);
}

#[test]
fn init_of_a_program_packs_as_it_stands() {
    let program: PathBuf = kitbag_tests::hello().to_owned();
    let folder = Folder::new();
    Cmd::kitbag(["init"]).arg(&program).cwd(folder.path()).run().succeeds().prints("a program");
    App::at(folder.path()).pack().run(["x"]).succeeds().prints("argv[1] x");
}
