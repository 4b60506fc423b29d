//! Services with a user of their own under root's supervisor: they have the state folder, and root follows nothing that
//! they leave there.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use kitbag_tests::{App, Bundle, Outcome, eventually, root, tools};

const PATIENCE: Duration = Duration::from_secs(30);
/// Users that no service of this host should have.
const ONE: u32 = 61_234;
const TWO: u32 = 61_235;
const STRANGER: u32 = 61_236;

/// What is done as a service's user, in the state folder.
#[track_caller]
fn as_user(bundle: &Bundle, user: u32, script: &str) -> Outcome {
    let ids = [format!("--reuid={user}"), format!("--regid={user}"), "--clear-groups".to_owned()];
    let shell = bundle.sandbox.command("/bin/sh").args(["-c", script]).cwd(bundle.sandbox.state());
    shell.behind("setpriv", ids).run()
}

fn owner(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap_or_else(|why| panic!("{}: {why}", path.display())).uid()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

/// A service that works in the state folder: with a rendered file, an env file, and a seed that it adds to.
fn works_there() -> Bundle {
    let manifest = format!(
        "[services.web]\nargv = [\"bin/web\"]\nuser = \"{ONE}\"\ngroup = \"{ONE}\"\ncwd = \"${{state}}\"\n\
         env-files = [\"${{state}}/.kitbag/env/web?\", \"${{state}}/env?\"]\nready = {{ command = [\"bin/check\"] }}\nrestart = \"never\"\n\
         render = [{{ from = \"etc/web.conf\", to = \"conf/web.conf\" }}]\n\
         [[seed]]\nfrom = \"data\"\nto = \"deep/data\"\n"
    );
    let web = "#!/bin/sh\nset -e\ncat conf/web.conf > read\necho run >> deep/data/log\n\
               echo \"$SECRET\" > new; mv new dump\ntouch \"$PWD/written\"\nexec sleep 1000\n";
    App::new(&manifest)
        .file("bin/web", web)
        .executable("bin/web")
        .file("bin/check", "#!/bin/sh\ntest -e written\n")
        .executable("bin/check")
        .file("etc/web.conf", "state ${state}\n")
        .file("data/log", "seed\n")
        .pack()
}

#[test]
fn a_service_with_a_user_works_in_the_state_folder_and_the_rest_of_it_stays_roots() {
    if !root("services of another user") || !tools(&["setpriv"]) {
        return;
    }
    let mut bundle = works_there();
    let state = bundle.sandbox.path().join("above/it/state");
    let run = |bundle: &Bundle, args: &[&str]| bundle.command(args).env("KITBAG_STATE", &state).run();
    run(&bundle, &["start"]).exits(0);
    for file in ["read", "written", "dump", "conf", "conf/web.conf", "deep", "deep/data", "deep/data/log"] {
        assert_eq!(owner(&state.join(file)), ONE, "{file}");
    }
    assert_eq!(fs::read_to_string(state.join("read")).unwrap(), format!("state {}\n", state.display()));
    assert_eq!(mode(&state.join("conf/web.conf")), 0o600);
    // A secret of root's for the service is read for it.
    let secrets = state.join(".kitbag/env");
    fs::create_dir(&secrets).unwrap();
    fs::write(secrets.join("web"), "SECRET=known\n").unwrap();
    for path in [&secrets, &secrets.join("web")] {
        fs::set_permissions(path, PermissionsExt::from_mode(0o700)).unwrap();
    }
    run(&bundle, &["stop"]).exits(0);
    fs::remove_file(state.join("written")).unwrap();
    run(&bundle, &["start"]).exits(0);
    assert_eq!(fs::read_to_string(state.join("deep/data/log")).unwrap(), "seed\nrun\nrun\n");
    assert_eq!(fs::read_to_string(state.join("dump")).unwrap(), "known\n");
    run(&bundle, &["exec", "web", "--", "sh", "-c", "touch console"]).exits(0);
    assert_eq!(owner(&state.join("console")), ONE);
    // What is the supervisor's.
    for path in [state.clone(), state.join(".kitbag"), state.join(".kitbag.lock")] {
        assert_eq!(owner(&path), 0, "{}", path.display());
    }
    assert_eq!(mode(&state.join(".kitbag")), 0o700);
    assert_eq!(mode(&state) & 0o1007, 0o1001);
    assert_eq!(
        [mode(&bundle.sandbox.path().join("above")), mode(&bundle.sandbox.path().join("above/it"))],
        [0o711; 2]
    );
    run(&bundle, &["stop"]).exits(0);
    bundle.sandbox.processes().is_empty().then_some(()).expect("nothing is left running");
    // Without that user it is root's alone again.
    let plain = App::service("sleeps", &[], "").pack();
    bundle.file.clone_from(&plain.file);
    run(&bundle, &["start"]).exits(0);
    assert_eq!(mode(&state) & 0o077, 0);
    run(&bundle, &["stop"]).exits(0);
}

#[test]
fn a_strict_umask_of_roots_keeps_no_service_from_its_files() {
    if !root("services of another user") || !tools(&["setpriv"]) {
        return;
    }
    let bundle = works_there();
    let script = format!("umask 077; exec {} start", bundle.file.display());
    bundle.sandbox.command("/bin/sh").args(["-c", &script]).run().exits(0);
    assert_eq!(mode(&bundle.sandbox.path().join("store")), 0o755);
    assert_eq!(fs::read_to_string(bundle.sandbox.state().join("deep/data/log")).unwrap(), "seed\nrun\n");
    bundle.run(["stop"]).exits(0);
}

#[test]
fn root_follows_nothing_that_a_services_user_leaves_in_the_state_folder() {
    if !root("services of another user") || !tools(&["setpriv"]) {
        return;
    }
    let bundle = works_there();
    let state = bundle.sandbox.state();
    let outside = bundle.sandbox.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let precious = outside.join("precious");
    fs::write(&precious, "SECRET=precious\n").unwrap();
    fs::set_permissions(&precious, PermissionsExt::from_mode(0o600)).unwrap();
    let unharmed = || {
        assert_eq!(fs::read_to_string(&precious).unwrap(), "SECRET=precious\n");
        assert_eq!((owner(&precious), owner(&outside), mode(&precious)), (0, 0, 0o600));
        let names: Vec<PathBuf> =
            fs::read_dir(&outside).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(names, std::slice::from_ref(&precious));
    };
    bundle.run(["start"]).exits(0);
    let (link, outer) = (precious.display(), outside.display());
    // The file itself, and a file on its way.
    let swap = "rm conf/web.conf && ln -s {} conf/web.conf && ln -s {} conf/.kitbag.part.web.conf";
    as_user(&bundle, ONE, &swap.replace("{}", &link.to_string())).exits(0);
    bundle.run(["restart", "web"]).exits(0);
    assert!(!state.join("conf/web.conf").is_symlink() && owner(&state.join("conf/web.conf")) == ONE);
    unharmed();
    // A folder above it.
    as_user(&bundle, ONE, &format!("rm -r conf && ln -s {outer} conf")).exits(0);
    bundle.run(["restart", "web"]).exits(7).says("write ").says("conf: it is not a folder");
    unharmed();
    // An env file that the user could not read.
    as_user(&bundle, ONE, &format!("rm conf && ln -s {link} env")).exits(0);
    bundle.run(["restart", "web"]).exits(7).says("cannot read the env file");
    // One of root's that was in a folder of the user's.
    as_user(&bundle, ONE, "rm env && mkdir his").exits(0);
    for (mode, why) in [(0o600, "its service's user may not read it; "), (0o644, "it belongs to user 0; ")] {
        fs::copy(&precious, state.join("his/shadow")).unwrap();
        fs::set_permissions(state.join("his/shadow"), PermissionsExt::from_mode(mode)).unwrap();
        as_user(&bundle, ONE, "mv his/shadow env").exits(0);
        bundle.run(["restart", "web"]).exits(7).says(why).says("one of root's has to be in ");
        fs::remove_file(state.join("env")).unwrap();
    }
    assert!(!fs::read_to_string(state.join("dump")).unwrap().contains("precious"));
    // What is the supervisor's cannot be moved, nor its work taken.
    for script in ["mv .kitbag x", "rm .kitbag.lock", "ls .kitbag", "rmdir .kitbag", "mv ../state ../other"] {
        let outcome = as_user(&bundle, ONE, script);
        assert!(!outcome.status.success(), "{script}: {outcome}");
    }
    bundle.run(["stop"]).exits(0);
    // A seed's folder.
    as_user(&bundle, ONE, &format!("rm -r deep && ln -s {outer} deep")).exits(0);
    let start = bundle.run(["start"]);
    assert!(!start.status.success(), "{start}");
    unharmed();
    as_user(&bundle, ONE, "rm deep written").exits(0);
    bundle.run(["start"]).exits(0);
    assert_eq!(fs::read_to_string(state.join("deep/data/log")).unwrap(), "seed\nrun\n");
    bundle.run(["stop"]).exits(0);
}

#[test]
fn services_of_two_users_have_files_of_their_own_in_one_state_folder() {
    if !root("services of two users") || !tools(&["setpriv"]) {
        return;
    }
    let service = |name: &str, user: u32| {
        format!(
            "[services.{name}]\nargv = [\"bin/touches\", \"{name}\"]\nuser = {user}\ngroup = {user}\n\
             cwd = \"${{state}}\"\nready = {{ command = [\"bin/check\", \"{name}\"] }}\n\
             render = [{{ from = \"data\", to = \"{name}.conf\" }}, {{ from = \"data\", to = \"{name}.d/conf\" }}]\nrestart = \"never\"\n"
        )
    };
    let roots = "[services.root]\nargv = [\"bin/touches\", \"root\"]\ncwd = \"${state}\"\n\
                 render = [{ from = \"data\", to = \"conf/root.conf\" }]\nrestart = \"never\"\n\
                 env-files = [\"${state}/root.env?\", \"${state}/env/root?\"]\n[[seed]]\nfrom = \"data\"\nto = \"seeds/data\"\n";
    let bundle = App::new(&[service("one", ONE), service("two", TWO), roots.to_owned()].concat())
        .file("bin/touches", "#!/bin/sh\nset -e\ncat seeds/data > \"$1\"\nexec sleep 1000\n")
        .executable("bin/touches")
        .file("bin/check", "#!/bin/sh\ntest -s \"$1\"\n")
        .executable("bin/check")
        .file("data", "seed\n")
        .pack();
    bundle.run(["start"]).exits(0);
    let state = bundle.sandbox.state();
    let owners = ["one", "two", "seeds/data", "conf/root.conf"].map(|name| owner(&state.join(name)));
    assert_eq!(owners, [ONE, TWO, 0, 0]);
    // Nobody takes another's file away, or root's, and nobody else makes one.
    for (user, script) in [(TWO, "rm -f one"), (ONE, "mv seeds x"), (ONE, "mv conf x"), (STRANGER, "touch x")]
    {
        let outcome = as_user(&bundle, user, script);
        assert!(!outcome.status.success(), "{script}: {outcome}");
    }
    // What one puts in the way of the other's file.
    as_user(&bundle, ONE, "mkdir .kitbag.part.two.conf").exits(0);
    bundle.run(["restart", "two"]).exits(0);
    assert_eq!(owner(&state.join("two.conf")), TWO);
    as_user(&bundle, TWO, "rm -r two.d").exits(0);
    as_user(&bundle, ONE, "mkdir -m 777 two.d").exits(0);
    bundle.run(["restart", "two"]).exits(7).says("two.d: it belongs to user 61234");
    assert_eq!(fs::read_dir(state.join("two.d")).unwrap().count(), 0);
    fs::remove_dir(state.join("two.d")).unwrap();
    bundle.run(["stop"]).exits(0);
    // Nor does root's service take what a user has made for it.
    as_user(&bundle, ONE, "echo LD_PRELOAD=/x > root.env").exits(0);
    bundle
        .run(["start", "--timeout", "20s"])
        .exits(7)
        .says("services' users can make files there; one of root's");
    // One that would be his, in a folder of his, or by a link to another of root's.
    for script in ["rm root.env && mkdir env && echo A=1 > env/root", "rm -r env && ln -s conf env"] {
        as_user(&bundle, ONE, script).exits(0);
        bundle
            .run(["restart", "--timeout", "20s", "root"])
            .exits(7)
            .says("services' users can make files there");
        fs::write(state.join("conf/root"), "A=1\n").unwrap();
    }
    fs::remove_file(state.join("env")).unwrap();
    fs::remove_dir_all(state.join("conf")).unwrap();
    as_user(&bundle, ONE, "mkdir conf").exits(0);
    bundle.run(["restart", "--timeout", "20s", "root"]).exits(7).says("a folder above it in ");
    bundle.run(["stop"]).exits(0);
}

#[test]
fn what_a_former_user_has_left_leads_root_nowhere() {
    if !root("services of another user") || !tools(&["setpriv"]) {
        return;
    }
    let mut bundle = works_there();
    let state = bundle.sandbox.state();
    let outside = bundle.sandbox.path().join("outside");
    fs::create_dir(&outside).unwrap();
    bundle.run(["start"]).exits(0);
    bundle.run(["stop"]).exits(0);
    let outer = outside.display();
    let left = format!("rm -r conf && ln -s {outer} conf && ln -s {outer} log && mkdir -p his/own");
    as_user(&bundle, ONE, &left).exits(0);
    // The next version has no user.
    let [rendered, logs, seed] = [
        "render = [{ from = \"bin/web\", to = \"conf/x\" }]\n",
        "[logs]\nto = { files = \"${state}/log\" }\n",
        "[[seed]]\nfrom = \"bin/web\"\nto = \"his/own/seed\"\n",
    ]
    .map(|more| {
        let manifest = format!("[services.web]\nargv = [\"bin/web\"]\nrestart = \"never\"\n{more}");
        App::new(&manifest).file("bin/web", "#!/bin/sh\nexec sleep 1000\n").executable("bin/web").pack()
    });
    bundle.file.clone_from(&rendered.file);
    bundle.run(["start"]).exits(7).says("a folder above it in ").says("it is a symbolic link");
    bundle.run(["stop"]).exits(0);
    bundle.file.clone_from(&logs.file);
    bundle.run(["start"]).exits(1).says("cannot keep logs in ").says("it is a symbolic link");
    bundle.file.clone_from(&seed.file);
    bundle.run(["start"]).exits(1).says("cannot plant the seed ").says("it belongs to user 61234");
    // Nor does a tool that has the same state.
    let tool = App::new("command = [\"bin/hello\"]\n[[seed]]\nfrom = \"data\"\nto = \"his/own/seed\"\n");
    let tool = tool.program("bin/hello", kitbag_tests::hello()).file("data", "seed\n").pack();
    tool.command([""; 0]).env("KITBAG_STATE", &state).run().exits(125).says("it belongs to user 61234");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    assert_eq!(fs::read_dir(state.join("his/own")).unwrap().count(), 0);
    // Once nothing that is in the way is that user's.
    fs::remove_file(state.join("conf")).unwrap();
    bundle.file.clone_from(&rendered.file);
    bundle.run(["start"]).exits(0);
    assert_eq!((owner(&state.join("conf/x")), mode(&state)), (0, 0o1700));
    bundle.run(["stop"]).exits(0);
}

#[test]
fn logs_of_services_with_a_user_go_to_a_folder_of_roots_alone() {
    if !root("a service of another user") {
        return;
    }
    let user = format!("user = {ONE}\ngroup = {ONE}\n[logs]\nto = {{ files = \"${{env.LOGS}}\" }}\n");
    let bundle = App::new(&format!("[services.web]\nargv = [\"bin/web\"]\n{user}"))
        .file("bin/web", "#!/bin/sh\necho hello\nexec sleep 1000\n")
        .executable("bin/web")
        .pack();
    let (logs, outside) = (bundle.sandbox.path().join("logs"), bundle.sandbox.path().join("outside"));
    let run = |args: &[&str]| bundle.command(args).env("LOGS", &logs).run();
    for folder in [&logs, &outside] {
        fs::create_dir(folder).unwrap();
    }
    let web = logs.join("web");
    symlink(&outside, &web).unwrap();
    chown(&logs, Some(ONE), Some(ONE)).unwrap();
    run(&["start"])
        .exits(1)
        .says("cannot keep logs in ")
        .says("it belongs to user 61234; ")
        .says("`chown root`");
    // Root's now, with what the user has left in it.
    chown(&logs, Some(0), Some(0)).unwrap();
    run(&["start"]).exits(0);
    let said = || fs::read_to_string(logs.join("_kitbag/current")).unwrap_or_default();
    eventually(PATIENCE, "the link is told", || said().contains("it is a symbolic link; "));
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "{}", said());
    fs::remove_file(&web).unwrap();
    eventually(PATIENCE, "it is logged", || fs::metadata(web.join("current")).is_ok_and(|it| it.len() > 0));
    run(&["stop"]).exits(0);
}

#[test]
fn redis_with_a_user_and_a_rendered_file_keeps_its_data() {
    if !root("a service of another user") || !tools(&["redis-server"]) {
        return;
    }
    let manifest = format!(
        "[services.redis]\nargv = [\"bin/redis-server\", \"${{state}}/redis.conf\"]\nuser = {ONE}\ngroup = {ONE}\n\
         cwd = \"${{state}}\"\nports.main = \"any\"\nready = {{ tcp = \"${{port.main:address}}\" }}\n\
         render = [{{ from = \"redis.conf\" }}]\n"
    );
    let app = App::new(&manifest)
        .program("bin/redis-server", Path::new("/usr/bin/redis-server"))
        .file("redis.conf", "port ${port.main}\ndir ${state}\nsave 3600 1\n");
    let bundle = app.pack();
    let ask = |commands: &str, answer: &str| {
        let ports = bundle.run(["ports", "--json"]).exits(0).text();
        let ports: serde_json::Value = serde_json::from_str(&ports).unwrap();
        let number = ports["ports"][0]["number"].as_u64().unwrap() as u16;
        let mut stream = TcpStream::connect(("127.0.0.1", number)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(commands.as_bytes()).unwrap();
        let mut bytes = vec![0; answer.len()];
        stream.read_exact(&mut bytes).unwrap();
        assert_eq!(String::from_utf8_lossy(&bytes), answer);
    };
    bundle.run(["start"]).exits(0);
    ask("SET a 41\r\nINCR a\r\nSAVE\r\n", "+OK\r\n:42\r\n+OK\r\n");
    bundle.run(["stop"]).exits(0);
    assert_eq!(owner(&bundle.sandbox.state().join("dump.rdb")), ONE);
    bundle.run(["start"]).exits(0);
    ask("GET a\r\n", "$2\r\n42\r\n");
    bundle.run(["stop"]).exits(0);
    eventually(PATIENCE, "nothing is left running", || bundle.sandbox.processes().is_empty());
}
