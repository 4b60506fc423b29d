//! The programs of the table: how each is packed, and what it has to do in every place.

#![allow(non_upper_case_globals, reason = "they are named as their tests' modules")]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use kitbag_tests::{
    App, Bundle, Cmd, Folder, Outcome, Place, Running, Site, built, copy, tools, unmet, workspace,
};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// SHA-256 of `kitbag`.
const DIGEST: &str = "digest ";

/// A program of the table.
pub struct Program {
    /// What the build machine has to have.
    needs: &'static [&'static str],
    /// Packs it.
    pack: fn() -> Option<Bundle>,
    /// The packed file, made once a test process, among what the suite keeps.
    file: OnceLock<Option<PathBuf>>,
    /// Uses it in a place, and asserts what comes of it.
    pub check: fn(&Site),
}

impl Program {
    const fn new(needs: &'static [&'static str], pack: fn() -> Option<Bundle>, check: fn(&Site)) -> Self {
        Self { needs, pack, file: OnceLock::new(), check }
    }

    /// The packed file. None if the machine lacks something: the test is unmet.
    pub fn packed(&self, name: &str) -> Option<&Path> {
        if !tools(self.needs) {
            return None;
        }
        let file = self.file.get_or_init(|| {
            // Another test process may be using its own just now: that one keeps its file, under no name.
            let (bundle, folder, file) = ((self.pack)()?, Folder::within(&built()), built().join(name));
            copy(&bundle.file, &folder.join(name));
            fs::rename(folder.join(name), &file).unwrap();
            Some(file)
        });
        if file.is_none() {
            unmet("the program could not be built, as the first test of it says");
        }
        file.as_deref()
    }
}

pub static redis_tool: Program = Program::new(
    &["redis-server"],
    || Some(redis_app(REDIS_TOOL)),
    |site| {
        let socket = site.work().join("redis.sock");
        let args = ["--port", "0", "--save", "", "--unixsocket"].map(str::to_owned);
        let args = args.into_iter().chain([socket.display().to_string()]);
        let mut running = site.command(args).start();
        running.wait_print("ready to accept connections");
        site.maps_its_own_files_alone(running.id());
        redis_answers(&site.outside(&site.work()));
        running.stop().exits(0);
    },
);

pub static redis_service: Program = Program::new(
    &["redis-server"],
    || Some(redis_app(REDIS_SERVICE)),
    |site| {
        let mut running = site.command([""; 0]).env("SOCKET", site.work().join("redis.sock")).start();
        running.wait_print("redis | ");
        running.wait_print("ready to accept connections");
        redis_answers(&site.outside(&site.work()));
        running.stop().exits(0);
    },
);

const REDIS_TOOL: &str = "command = [\"bin/redis-server\"]";
const REDIS_SERVICE: &str = "[services.redis]
argv = [\"bin/redis-server\", \"--port\", \"0\", \"--save\", \"\", \"--unixsocket\", \"${env.SOCKET}\"]";

fn redis_app(run: &str) -> Bundle {
    including(run, &[("/usr/bin/redis-server", "bin/redis-server", "")]).pack()
}

/// Connects to a socket in a folder. By way of the open folder, as a socket's path may be of 107 bytes (unix(7)).
fn connect(folder: &Path, name: &str) -> UnixStream {
    let folder = File::open(folder).unwrap();
    let stream = UnixStream::connect(format!("/proc/self/fd/{}/{name}", folder.as_raw_fd())).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Talks to the server whose socket is in this folder.
fn redis_answers(folder: &Path) {
    let mut stream = connect(folder, "redis.sock");
    for (request, response) in
        [("PING", "+PONG\r\n"), ("SET key value", "+OK\r\n"), ("GET key", "$5\r\nvalue\r\n")]
    {
        stream.write_all(format!("{request}\r\n").as_bytes()).unwrap();
        let mut read = vec![0; response.len()];
        stream.read_exact(&mut read).unwrap();
        assert_eq!(String::from_utf8_lossy(&read), response, "{request}");
    }
}

pub static jq: Program = Program::new(
    &["jq"],
    || Some(including("command = [\"bin/jq\"]", &[("/usr/bin/jq", "bin/jq", "")]).pack()),
    |site| {
        let input = br#"[{"name": "kit", "size": 40}, {"name": "bag", "size": 2}]"#;
        let ask =
            |filter: &str| site.command(["-c", filter]).stdin(input.to_vec()).run().succeeds().is_quiet();
        assert_eq!(ask("map(.size) | add").text(), "42\n");
        // Regular expressions are another library's.
        assert_eq!(ask("map(.name | test(\"^k\"))").text(), "[true,false]\n");
    },
);

pub static git: Program = Program::new(
    &["git"],
    || Some(git_app().pack()),
    |site| {
        site.devices();
        let folder = site.outside(&site.work());
        let _ = fs::remove_dir_all(folder.join("repository"));
        let _ = fs::remove_dir_all(folder.join("clone"));
        let at = |name: &str| site.work().join(name).display().to_string();
        let run = |args: &[&str]| {
            let who = ["AUTHOR", "COMMITTER"];
            let who = who.iter().fold(site.command(args), |start, role| {
                start
                    .env(format!("GIT_{role}_NAME"), "Ada")
                    .env(format!("GIT_{role}_EMAIL"), "ada@example.org")
            });
            who.run().succeeds()
        };
        let repository = at("repository");
        run(&["init", "-q", "-b", "main", &repository]);
        run(&["-C", &repository, "commit", "-q", "--allow-empty", "-m", "first"]);
        run(&["-C", &repository, "log", "--format=%an: %s"]).prints("Ada: first");
        // It calls its own helpers. A folder it clones with the place's shell (`SHELL_PATH`), a file of commits without.
        run(&["-C", &repository, "bundle", "create", "-q", &at("commits"), "main"]);
        let from = if site.place.has_shell() { repository } else { at("commits") };
        run(&["clone", "-q", "-b", "main", &from, &at("clone")]);
        run(&["-C", &at("clone"), "log", "--format=%s"]).prints("first");
    },
);

/// git with its helpers, as Debian has them; those that are shell and Perl scripts stay away.
pub fn git_app() -> App {
    let run = "[command]
argv = [\"bin/git\"]
env = { GIT_EXEC_PATH = \"${tree}/libexec/git-core\", GIT_TEMPLATE_DIR = \"${tree}/share/templates\" }";
    let helpers = "exclude = [\"git-*--*\", \"mergetools\", \"git-sh-*\", \"git-http-*\"]";
    including(
        run,
        &[
            ("/usr/bin/git", "bin/git", ""),
            ("/usr/lib/git-core", "libexec/git-core", helpers),
            ("/usr/share/git-core/templates", "share/templates", ""),
        ],
    )
}

pub static cpp: Program = Program::new(
    &["g++"],
    || cpp_app().map(|app| app.pack()),
    |site| {
        let mut running = site.command([""; 0]).start();
        let text = running.wait_print("started, waiting\n");
        site.maps_its_own_files_alone(running.id());
        for name in ["by path", "by origin", "by name"] {
            assert!(text.contains(&format!("caught from a plug-in: {name}\n")), "{text}");
        }
        assert!(!text.contains("inherited"), "{text}");
        ends(running);
        calls_the_shell(site, site.command(["--shell"]));
    },
);

/// A program with three plug-ins: one that it opens beside itself, one by `$ORIGIN` in its search path, one by its name,
/// which lies in a folder of the build machine, as does the library that all of them need.
pub fn cpp_app() -> Option<App> {
    let build = Folder::new();
    let app = App::new("command = [\"bin/plugins\"]");
    for folder in ["bin", "plugins"] {
        fs::create_dir(app.tree(folder)).unwrap();
    }
    let script = "set -eu
        g++ -shared -fPIC -DHELPER -Wl,-soname,libhelper.so.1 -o libhelper.so.1 \"$SOURCES/plugin.cpp\"
        plugin() {
            g++ -shared -fPIC -DNAME=\"\\\"$1\\\"\" -Wl,-rpath,\"$PWD\" -Wl,-soname,\"${2##*/}\" -o \"$2\" \\
                \"$SOURCES/plugin.cpp\" libhelper.so.1
        }
        plugin 'by path' \"$TREE/plugins/by_path.so\"
        plugin 'by origin' \"$TREE/plugins/by_origin.so\"
        plugin 'by name' libby_name.so.1
        g++ -o \"$TREE/bin/plugins\" \"$SOURCES/plugins.cpp\" -ldl -Wl,-rpath,'$ORIGIN/../plugins:'\"$PWD\"";
    compile(script, &build, &app)?;
    // What the plug-ins need has to be there while it is packed, and not later.
    Some(app.keeping(build))
}

pub static musl: Program = Program::new(&["musl-gcc"], musl_program, |site| {
    let mut running = site.command([""; 0]).start();
    let text = running.wait_print("waiting\n");
    site.maps_its_own_files_alone(running.id());
    assert!(text.contains("musl says 42\n"), "{text}");
    ends(running);
    calls_the_shell(site, site.command(["--shell"]));
});

/// The musl program, packed.
pub fn musl_program() -> Option<Bundle> {
    musl_app().map(|app| app.pack())
}

fn musl_app() -> Option<App> {
    let build = Folder::new();
    let app = App::new("command = [\"bin/musl\"]");
    fs::create_dir(app.tree("bin")).unwrap();
    let script = "set -eu
        musl-gcc -shared -fPIC -DLIBRARY -o libtwice.so \"$SOURCES/musl.c\"
        musl-gcc -o \"$TREE/bin/musl\" \"$SOURCES/musl.c\" libtwice.so -Wl,-rpath,\"$PWD\"";
    compile(script, &build, &app)?;
    Some(app.keeping(build))
}

/// Runs a script that builds an app's tree; else the test is unmet.
fn compile(script: &str, build: &Folder, app: &App) -> Option<Outcome> {
    let sources = workspace().join("tests/portability");
    let built = Cmd::new("bash").args(["-c", script]).cwd(build.path());
    let built = built.env("SOURCES", sources).env("TREE", app.tree("")).run();
    Some(built.succeeds())
}

pub static python: Program = Program::new(
    &["python3.11"],
    || Some(python_app(PYTHON).pack()),
    |site| {
        let mut running = site.command([""; 0]).start();
        let text = running.wait_print("waiting\n");
        site.maps_its_own_files_alone(running.id());
        assert!(!text.contains("/usr/bin/python") && !text.contains("\nLD_"), "{text}");
        for line in [
            DIGEST,
            "sum 42\n",
            "back there and back\n",
            "size 8\n",
            "child glibc 2.",
            "context SSLContext OpenSSL 3.",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        assert_eq!(text.contains("the shell of the place\n"), site.place.has_shell(), "{text}");
        ends(running);
    },
);

const PYTHON: &str = "command = [\"bin/python3\", \"-B\", \"${tree}/share/check.py\"]";

/// The interpreter and its library, by hand, and what lies in the app's folder `tree`.
pub fn python_app(run: &str) -> App {
    let library =
        "exclude = [\"__pycache__\", \"/test\", \"config-3.11-*\", \"sitecustomize.py\", \"ensurepip\"]";
    let check = workspace().join("tests/portability/check.py").display().to_string();
    including(
        run,
        &[
            ("/usr/bin/python3.11", "bin/python3", ""),
            ("/usr/lib/python3.11", "lib/python3.11", library),
            (&check, "share/check.py", ""),
        ],
    )
}

pub static flask: Program = Program::new(
    &["python3.11"],
    || flask_app().map(|app| app.pack()),
    |site| {
        site.devices();
        let mut running = site.command([""; 0]).env("SOCKET", site.work().join("web.sock")).start();
        running.wait_until("two workers", |running| {
            running.text().matches("Booting worker").count()
                + running.said().matches("Booting worker").count()
                >= 2
        });
        let work = site.outside(&site.work());
        assert!(get(&work, "/").contains("<ul><li>kit</li><li>bag</li></ul>"), "{}", get(&work, "/"));
        let facts = get(&work, "/facts");
        let facts: serde_json::Value = serde_json::from_str(facts.split("\r\n\r\n").nth(1).unwrap()).unwrap();
        assert!(facts["executable"].as_str().unwrap().contains("/v1/trees/"), "{facts}");
        assert_eq!(facts["secret"], "kept", "{facts}");
        assert_eq!(facts["offset"], "2:00:00", "{facts}");
        assert!(facts["authorities"].as_u64().unwrap() > 50, "{facts}");
        assert_eq!(facts["child"], format!("a child of {}", facts["worker"]), "{facts}");
        assert_eq!(facts["loader"], serde_json::json!([]), "{facts}");
        let own = site.work().with_file_name("state").join("tmp").display().to_string();
        assert_eq!(facts["temporary"] == own, site.place == Place::EmptyRoot, "{facts}");
        site.maps_its_own_files_alone(facts["worker"].as_u64().unwrap() as u32);
        running.stop().exits(0);
    },
);

const FLASK: &str = "name = \"app\"
version = \"1\"
[app.python]
interpreter = \"/usr/bin/python3.11\"
venv = \"VENV\"
project = \"project\"
[closure]
sets = [\"certificates\", \"timezones\"]
[services.web]
argv = [\"bin/python3\", \"-m\", \"gunicorn\", \"--workers\", \"2\", \"--bind\", \"unix:${env.SOCKET}\", \"web:app\"]
env = { DATA = \"${state}\" }
";

/// Flask and gunicorn from PyPI in a virtual environment, which is made once and kept.
fn flask_app() -> Option<App> {
    let packages = ["flask", "gunicorn", "lxml", "cryptography"];
    let venv = kitbag_tests::kept("venv-of-portability", |venv| {
        let script =
            "python3.11 -m venv \"$0\" && \"$0\"/bin/pip install -q --disable-pip-version-check \"$@\"";
        let made = Cmd::new("bash").args(["-c", script]).arg(venv).args(packages).within(PATIENCE * 4).run();
        made.status.success().then_some(()).ok_or_else(|| made.to_string())
    })?;
    let app = App::with_manifest(&FLASK.replace("VENV", &venv.display().to_string()));
    let project = workspace().join("tests/portability/flask");
    let copied = Cmd::new("cp").arg("-r").arg(project).arg(app.dir().join("project")).run();
    copied.succeeds();
    Some(app)
}

/// The answer of the server whose socket is in this folder.
fn get(folder: &Path, path: &str) -> String {
    let mut stream = connect(folder, "web.sock");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

pub static node: Program = Program::new(
    &["npm"],
    || node_app().map(|app| app.pack()),
    |site| {
        site.devices();
        let mut running = site.command([""; 0]).start();
        let text = running.wait_print("waiting\n");
        site.maps_its_own_files_alone(running.id());
        for line in
            [DIGEST, "back there and back\n", "served a page by Express\n", "message from the child of v20."]
        {
            assert!(text.contains(line), "{line}\n{text}");
        }
        ends(running);
    },
);

/// Node itself and Express from npm. Debian's Node reads parts of its library by a path that is compiled in.
fn node_app() -> Option<App> {
    let folder = kitbag_tests::kept("node-of-portability", |folder| {
        let install = ["install", "--no-audit", "--no-fund", "--prefix", ".", "node@20", "express@4"];
        let made = Cmd::new("npm").args(install).cwd(folder).within(PATIENCE * 4).run();
        let there = folder.join("node_modules/node/bin/node").exists();
        (made.status.success() && there).then_some(()).ok_or_else(|| made.to_string())
    })?;
    let [modules, program] = ["node_modules", "node_modules/node/bin/node"].map(|path| folder.join(path));
    let check = workspace().join("tests/portability/check.js");
    let [modules, program, check] = [modules, program, check].map(|path| path.display().to_string());
    let without = "exclude = [\"/node\", \"/node-*\", \"/.bin\"]";
    Some(including(
        "command = [\"bin/node\", \"${tree}/share/check.js\"]",
        &[
            (&program, "bin/node", ""),
            (&modules, "share/node_modules", without),
            (&check, "share/check.js", ""),
        ],
    ))
}

pub static jar: Program = Program::new(
    &["javac", "jar", "jlink"],
    || jar_app().map(|app| app.pack()),
    |site| {
        site.devices();
        let mut running = site.command([""; 0]).start();
        let text = running.wait_print("waiting\n");
        site.maps_its_own_files_alone(running.id());
        for line in [DIGEST, "random true\n", "sum 100\n", "/tree/runtime\n"] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        assert_eq!(text.contains("the shell of the place\n"), site.place.has_shell(), "{text}");
        assert!(!text.contains("\nLD_"), "{text}");
        ends(running);
    },
);

fn jar_app() -> Option<App> {
    let build = Folder::new();
    // Java takes the letters of its own path for what the locale says that they are, and `C` has none but ASCII.
    let app = App::new(
        "[command]\nargv = [\"runtime/bin/java\", \"-jar\", \"${tree}/check.jar\"]\n\
         env = { LC_ALL = \"C.UTF-8\" }\n[closure]\nsets = [\"locales\"]",
    );
    let script = "set -eu
        javac -d classes \"$SOURCES/Check.java\"
        jar --create --file \"$TREE/check.jar\" --main-class Check -C classes .
        jlink --add-modules java.base --strip-java-debug-attributes --output \"$TREE/runtime\"";
    compile(script, &build, &app)?;
    Some(app)
}

/// An app of files of this machine: what it runs, and for each include where from, where to, and more lines.
fn including(run: &str, includes: &[(&str, &str, &str)]) -> App {
    let (top, tables) = if run.starts_with('[') { ("", run) } else { (run, "") };
    let include = |(from, to, more): &(&str, &str, &str)| {
        format!("[[include]]\nfrom = \"{from}\"\nto = \"{to}\"\n{more}\n")
    };
    let includes: String = includes.iter().map(include).collect();
    App::new(&format!("{top}\n{includes}{tables}\n"))
}

/// Ends a program that waits for the end of its input.
#[track_caller]
fn ends(mut running: Running) {
    running.close();
    running.ended().exits(0);
}

/// A command that calls `/bin/sh` works where there is one, with the place's libc, and leaks nothing to it.
#[track_caller]
fn calls_the_shell(site: &Site, command: Cmd) {
    if !site.place.has_shell() {
        return;
    }
    let text = command.run().succeeds().prints("the shell of the place\n").prints_no("\nLD_").text();
    match site.place {
        Place::Debian11 => assert!(text.contains("glibc 2.31\n"), "{text}"),
        Place::DebianTesting => assert!(text.contains("glibc 2.4"), "{text}"),
        _ => {}
    }
}
