//! A service bundle serves, restarts what crashes, stops as it is asked, and leaves nothing running.

use std::fs::{self, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use kitbag_tests::{
    App, Bundle, Cmd, Folder, Running, Sandbox, copy, disk_usage, eventually, guestbook, page, root, tools,
};
use nix::sys::signal::Signal;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running guestbook.
struct Book {
    running: Running,
    address: String,
}

impl Book {
    /// Starts it on a free port.
    #[track_caller]
    fn start(command: Cmd) -> Self {
        let mut running = command.env("PORT", "0").start();
        let address = Self::address(&mut running, 1);
        Self { running, address }
    }

    /// Where it listens, once it has said so for the `nth` time.
    #[track_caller]
    fn address(running: &mut Running, nth: usize) -> String {
        let mark = "listening on http://";
        running.wait_until("an address", |running| {
            running
                .text()
                .split(mark)
                .nth(nth)
                .is_some_and(|rest| rest.contains("/\\n") || rest.contains("/\n"))
        });
        let text = running.text();
        text.split(mark).nth(nth).unwrap().split('/').next().unwrap().to_owned()
    }

    fn get(&self, path: &str) -> String {
        page::get(&self.address, path)
    }

    /// Writes into the book.
    #[track_caller]
    fn sign(&self, message: &str) {
        page::sign(&self.address, message);
    }

    /// How many entries there are.
    #[track_caller]
    fn total(&self) -> u64 {
        let response = self.get("/api/entries");
        let body = response.split("\r\n\r\n").nth(1).unwrap_or_default();
        let json: serde_json::Value =
            serde_json::from_str(body).unwrap_or_else(|why| panic!("{why}\n{response}"));
        json["total"].as_u64().unwrap()
    }

    /// It serves pages, files, and what came with the snapshot.
    #[track_caller]
    fn serves(&self) {
        let page = self.get("/");
        assert!(page.starts_with("HTTP/1.1 200 OK\r\n") && page.contains("<html"), "{page}");
        let style = self.get("/static/style.css");
        let style = if style.starts_with("HTTP/1.1 200") { style } else { self.get("/style.css") };
        assert!(style.starts_with("HTTP/1.1 200 OK\r\n"), "{style}");
        assert!(self.total() > 0, "the snapshot's entries");
    }
}

#[test]
fn the_guestbook_serves_its_pages_and_the_snapshots_entries() {
    let bundle = guestbook();
    let book = Book::start(bundle.command([""; 0]));
    book.serves();
    let said = book.running.text();
    assert!(said.contains("\nweb     | guestbook: listening on "), "{said}");
    let address = book.address.clone();
    book.running.stop().exits(0);
    assert_eq!(bundle.sandbox.processes(), [0; 0], "left running");
    TcpListener::bind(address).expect("the port is free");
}

#[test]
fn run_says_the_same_as_nothing() {
    let bundle = guestbook();
    Book::start(bundle.command(["run"])).running.stop().exits(0);
    bundle.run(["run", "more"]).exits(2);
    bundle.run(["rum"]).exits(2).says("did you mean `run`?");
}

#[test]
fn what_was_written_outlives_a_restart_and_the_seed_does_not_overwrite_it() {
    let bundle = guestbook();
    let book = Book::start(bundle.command([""; 0]));
    let before = book.total();
    book.sign("first+of+all");
    assert_eq!(book.total(), before + 1);
    book.running.stop().exits(0);
    let book = Book::start(bundle.command([""; 0]));
    assert_eq!(book.total(), before + 1);
    assert!(book.get("/").contains("first of all"));
    book.running.stop().exits(0);
    // What travels inside stays as it was packed.
    let seed = fs::read(bundle.sandbox.tree().join("share/guestbook.db")).unwrap();
    assert_eq!(seed, fs::read(kitbag_tests::fixtures().join("guestbook/data/guestbook.db")).unwrap());
}

#[test]
fn what_crashes_is_started_again_and_said_with_its_name() {
    let bundle = guestbook();
    let mut book = Book::start(bundle.command([""; 0]).env("GUESTBOOK_CRASH", "1"));
    book.sign("before+the+crash");
    let before = book.total();
    book.get("/crash");
    let said = book.running.wait_say("starting again at once");
    assert!(said.contains("service web"), "{said}");
    book.address = Book::address(&mut book.running, 2);
    assert_eq!(book.total(), before);
    book.running.stop().exits(0);
}

#[test]
fn interrupts_and_hangups_stop_it_too() {
    for signal in [Signal::SIGINT, Signal::SIGHUP] {
        let bundle = guestbook();
        let book = Book::start(bundle.command([""; 0]));
        book.running.signal(signal);
        let ended = book.running.ended();
        let right = ended.status.code() == Some(0);
        ended.check(right, &format!("exit status 0 after {signal}"));
        assert_eq!(bundle.sandbox.processes(), [0; 0], "left running");
    }
}

#[test]
fn it_serves_from_a_chroot_that_holds_the_file_alone() {
    if !root("chroot") || !tools(&["chroot"]) {
        return;
    }
    let bundle = guestbook();
    let folder = Folder::new();
    copy(&bundle.file, &folder.join("guestbook"));
    for _ in ["first start", "later start"] {
        let start = Cmd::new("/guestbook").bare().behind("/usr/sbin/chroot", [folder.path()]);
        let book = Book::start(start);
        book.serves();
        book.running.stop().exits(0);
    }
    assert!(folder.join("var/lib/kitbag/guestbook/guestbook.db").exists());
}

#[test]
fn it_serves_for_anybody_from_a_chroot_where_the_folder_is_writable() {
    if !root("chroot") || !tools(&["chroot"]) {
        return;
    }
    let bundle = guestbook();
    let folder = Folder::new();
    copy(&bundle.file, &folder.join("guestbook"));
    std::os::unix::fs::chown(folder.path(), Some(65534), Some(65534)).unwrap();
    let start = Cmd::new("/guestbook").bare().env("HOME", "/home");
    let start = start.behind("/usr/sbin/chroot", ["--userspec=65534:65534", folder.path().to_str().unwrap()]);
    let book = Book::start(start);
    book.serves();
    book.running.stop().exits(0);
}

#[test]
fn a_second_start_at_the_same_time_is_refused_with_the_first_ones_process_id() {
    let bundle = guestbook();
    let book = Book::start(bundle.command([""; 0]));
    let second = bundle.command([""; 0]).env("PORT", "0").run().exits(6).says("running already");
    second.says(&book.running.id().to_string());
    book.serves();
    let other = Sandbox::new();
    let elsewhere = Book::start(bundle.command([""; 0]).env("KITBAG_STATE", other.state()));
    elsewhere.serves();
    elsewhere.running.stop().exits(0);
    book.running.stop().exits(0);
}

#[test]
fn the_state_folder_is_private_and_one_that_others_can_write_to_is_refused() {
    let bundle = guestbook();
    Book::start(bundle.command([""; 0])).running.stop().exits(0);
    let mode = fs::metadata(bundle.sandbox.state()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700, "{mode:o}");
    let open = bundle.sandbox.path().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, Permissions::from_mode(0o777)).unwrap();
    let outcome = bundle.command([""; 0]).env("PORT", "0").env("KITBAG_STATE", &open).run();
    outcome.exits(5).says("KITBAG_STATE").says("others can write to it");
}

/// Starts a bundle of one helper and waits until the helper is ready.
#[track_caller]
fn ready(bundle: &Bundle, helper: &str) -> Running {
    let mut running = bundle.command([""; 0]).start();
    running.wait_print(&format!("{helper}: ready"));
    running
}

#[test]
fn a_service_that_ignores_term_is_killed_when_its_grace_is_over() {
    let bundle = App::service("ignores-term", &[], "stop-timeout = \"300ms\"").pack();
    let running = ready(&bundle, "ignores-term");
    let begin = Instant::now();
    running.stop().exits(0).says("service web did not stop within 0.3 s; sending SIGKILL");
    assert!(begin.elapsed() >= Duration::from_millis(300), "killed after {:?}", begin.elapsed());
    assert_eq!(bundle.sandbox.processes(), [0; 0], "left running");
}

#[test]
fn asked_twice_it_does_not_wait_for_the_grace() {
    let bundle = App::service("ignores-term", &[], "stop-timeout = \"10m\"").pack();
    let mut running = ready(&bundle, "ignores-term");
    running.signal(Signal::SIGTERM);
    running.wait_say("stopping");
    let begin = Instant::now();
    // The same request within a tenth of a second counts once.
    eventually(PATIENCE, "it is stopped at once", || {
        running.signal(Signal::SIGTERM);
        running.has_ended()
    });
    running.ended().says("SIGKILL");
    assert!(begin.elapsed() < Duration::from_secs(20));
    assert_eq!(bundle.sandbox.processes(), [0; 0], "left running");
}

#[test]
fn the_delay_before_a_restart_grows() {
    let bundle = App::service("crashes-at-once", &[], "").pack();
    let mut running = bundle.command([""; 0]).start();
    running.wait_until("three restarts", |running| running.said().matches("starting again in").count() >= 3);
    let said = running.said();
    // Each is twice the one before it, and up to a quarter longer.
    let rest = said.split("starting again in ").skip(1);
    let delays: Vec<f64> = rest.map(|rest| rest.split(' ').next().unwrap().parse().unwrap()).collect();
    let bounds = [(0.1, 0.125), (0.2, 0.25), (0.4, 0.5)];
    let fits = |(delay, (least, most)): (&f64, (f64, f64))| (least - 0.06..=most + 0.06).contains(delay);
    let right = delays.iter().zip(bounds).all(fits);
    assert!(right && said.contains("service web exited with status 3"), "{delays:?}\n{said}");
    running.stop().exits(0);
}

#[test]
fn a_service_that_must_not_be_restarted_ends_the_bundle_with_its_own_exit_status() {
    let never = App::service("crashes-at-once", &[], "restart = \"never\"").pack();
    never.run([""; 0]).exits(7).says("service web").says("exited with status 3");
    let well = App::service("exits-zero", &[], "restart = \"on-failure\"").pack();
    well.run([""; 0]).exits(0);
}

#[test]
fn orphans_that_a_service_leaves_behind_are_swept() {
    let bundle = App::service("forks-orphans", &["3", "stay"], "").pack();
    let mut running = ready(&bundle, "forks-orphans");
    running.wait_until("three orphans", |running| running.text().matches("adopted by").count() == 3);
    let adopted = format!("adopted by {}", running.id());
    assert_eq!(running.text().matches(&adopted).count(), 3, "by the supervisor\n{}", running.text());
    running.stop().exits(0);
    assert_eq!(bundle.sandbox.processes(), [0; 0], "left running");
}

#[test]
fn orphans_that_end_are_reaped() {
    let bundle = App::service("forks-orphans", &["20"], "").pack();
    let mut running = ready(&bundle, "forks-orphans");
    running.wait_until("20 orphans", |running| running.text().matches("adopted by").count() == 20);
    let id = running.id();
    let children = || fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
    if Path::new(&format!("/proc/{id}/task/{id}/children")).exists() {
        eventually(PATIENCE, "one child is left", || children().split_whitespace().count() == 1);
    }
    running.stop().exits(0);
}

#[test]
fn a_flood_of_output_is_not_lost_and_memory_is_bounded_where_the_reader_is_slow() {
    let bundle = App::service("prints-forever-no-newline", &[], "stop-timeout = \"1s\"").pack();
    // A reader that does not read at all: the pipe's other end is held by `sleep`.
    let log = bundle.sandbox.path().join("pid");
    let script = format!("\"$0\" & echo $! > '{}'; wait $!", log.display());
    let sleeping = format!("{{ {script}; }} | sleep 1000");
    let mut shell = bundle.sandbox.command("sh").args(["-c", &sleeping]).arg(&bundle.file).start();
    eventually(PATIENCE, "it has started", || fs::read_to_string(&log).is_ok_and(|id| id.ends_with('\n')));
    let id: u32 = fs::read_to_string(&log).unwrap().trim().parse().unwrap();
    // The service is blocked once nobody reads: its processor time stands still.
    let service =
        || bundle.sandbox.processes().into_iter().find(|pid| comm(*pid).starts_with("prints-foreve"));
    eventually(PATIENCE, "the service runs", || service().is_some());
    let pid = service().unwrap();
    let mut before = 0;
    eventually(PATIENCE, "the service waits for the reader", || {
        let now = ticks(pid);
        std::thread::sleep(Duration::from_millis(100));
        let waits = now == before;
        before = now;
        waits
    });
    let peak = status(id, "VmHWM:");
    assert!(peak < 20_000, "{peak} kB at most");
    assert!(!shell.has_ended());
    drop(shell);
}

fn comm(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default()
}

/// Processor time of a process, in clock ticks.
fn ticks(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<u64> = stat
        .rsplit(')')
        .next()
        .unwrap_or("")
        .split_whitespace()
        .map(|field| field.parse().unwrap_or(0))
        .collect();
    fields.get(11).unwrap_or(&0) + fields.get(12).unwrap_or(&0)
}

/// A number of kilobytes of `/proc/PID/status`.
fn status(pid: u32, name: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn every_line_of_output_has_the_services_name() {
    let bundle = App::new(
        "[services.web]\nargv = [\"bin/prints\", \"1000\"]\nrestart = \"never\"\n\
         [services.mailer]\nargv = [\"bin/prints\", \"1000\", \"lines\", \"stderr\"]\nrestart = \"never\"\n",
    );
    let bundle = bundle.helper("prints").pack();
    let outcome = bundle.run([""; 0]).exits(0);
    let text = outcome.text() + &outcome.said();
    for n in [1, 500, 1000] {
        for line in [format!("web    | line {n}\n"), format!("mailer | line {n}\n")] {
            assert!(text.contains(&line), "{line}\n{outcome}");
        }
    }
    assert_eq!(text.matches(" | line ").count(), 2000, "{outcome}");
}

#[test]
fn a_services_working_directory_environment_and_arguments_are_the_manifests() {
    let app = App::new(
        "[services.web]\nargv = [\"bin/hello\", \"${tree}\", \"--cwd\", \"--env\", \"GREETING\"]\nrestart = \"never\"\n\
         env = { GREETING = \"${name} in ${state}\" }\n",
    );
    let bundle = app.program("bin/hello", kitbag_tests::hello()).pack();
    let outcome = bundle.run([""; 0]).exits(0);
    let (tree, state) = (bundle.sandbox.tree(), bundle.sandbox.state());
    let outcome = outcome.prints(&format!("web | argv[1] {}\n", tree.display()));
    outcome
        .prints(&format!("web | cwd {}\n", tree.display()))
        .prints(&format!("web | GREETING=app in {}\n", state.display()));
}

/// Damage, and what to call it.
type Way = (&'static str, fn(&Path));

#[test]
fn any_file_of_the_tree_that_is_damaged_is_healed_and_said_before_anything_starts() {
    let app =
        App::service("sleeps", &[], "").file("share/deep/notes.txt", "notes").file("share/other", "other");
    let bundle = app.pack();
    ready(&bundle, "sleeps").stop().exits(0);
    let tree = bundle.sandbox.tree();
    let ways: [Way; 4] = [
        ("changed", |path| fs::write(path, "NOTES").unwrap()),
        ("emptied", |path| fs::write(path, "").unwrap()),
        ("deleted", |path| fs::remove_file(path).unwrap()),
        ("changed with mtime put back", |path| {
            let then = fs::metadata(path).unwrap().modified().unwrap();
            fs::write(path, "nOTES").unwrap();
            fs::File::options().write(true).open(path).unwrap().set_modified(then).unwrap();
        }),
    ];
    for (what, damage) in ways {
        let path = tree.join("share/deep/notes.txt");
        for path in [path.parent().unwrap(), &path] {
            fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
        }
        damage(&path);
        fs::set_permissions(path.parent().unwrap(), Permissions::from_mode(0o555)).unwrap();
        let running = ready(&bundle, "sleeps");
        assert!(running.said().contains("share/deep/notes.txt"), "{what}: {}", running.said());
        assert_eq!(fs::read(&path).unwrap(), b"notes", "{what}");
        running.stop().exits(0);
    }
    let running = ready(&bundle, "sleeps");
    assert!(!running.said().contains("healed"), "{}", running.said());
    running.stop().exits(0);
}

#[test]
fn services_that_heed_sigterm_go_when_the_supervisor_is_killed() {
    let app = App::new(
        "[services.one]\nargv = [\"bin/sleeps\"]\n[services.two]\nargv = [\"bin/prints-forever-no-newline\"]\n",
    );
    let bundle = app.helper("sleeps").helper("prints-forever-no-newline").pack();
    let running = ready(&bundle, "sleeps");
    running.signal(Signal::SIGKILL);
    running.ended().dies_by(9);
    eventually(PATIENCE, "nothing is left running", || bundle.sandbox.processes().is_empty());
    // The lock went with it.
    ready(&bundle, "sleeps").stop().exits(0);
}

/// Moves the last use of every tree in the store back by an hour.
fn age(sandbox: &Sandbox) {
    let then = SystemTime::now() - Duration::from_secs(3600);
    for tree in sandbox.trees() {
        fs::File::open(tree.join("record")).unwrap().set_modified(then).unwrap();
    }
}

#[test]
fn gc_keeps_the_running_bundle_and_removes_others() {
    let (sandbox, app) = (Sandbox::new(), App::service("sleeps", &[], "").file("share/version", "1"));
    let first = app.pack();
    fs::write(app.tree("share/version"), vec![b'2'; 500_000]).unwrap();
    let second = app.pack();
    let stopped = {
        let mut running = sandbox.command(&second.file).start();
        running.wait_print("sleeps: ready");
        running.stop()
    };
    stopped.exits(0);
    let mut running = sandbox.command(&first.file).start();
    running.wait_print("sleeps: ready");
    age(&sandbox);
    let gc = |args: &[&str]| sandbox.command(&first.file).arg("gc").args(args).run().succeeds();
    gc(&["--keep", "0", "--dry-run"]).prints("would be removed").prints("in use").prints("would free");
    assert_eq!(sandbox.trees().len(), 2, "a dry run removes nothing");
    let before = disk_usage([sandbox.store().as_path()]);
    gc(&["--older-than", "0s"]).prints("removed").prints("in use").prints("freed");
    assert_eq!(sandbox.trees().len(), 1);
    assert!(sandbox.trees()[0].ends_with(first.digest()), "the running one stays");
    assert!(disk_usage([sandbox.store().as_path()]) < before);
    assert!(!running.has_ended());
    running.stop().exits(0);
}

#[test]
fn a_program_that_cannot_be_executed_is_said_with_its_path_and_reason() {
    let app = App::new("[services.web]\nargv = [\"bin/broken\"]\nrestart = \"never\"\n")
        .file("bin/broken", "\x7fELF");
    fs::set_permissions(app.tree("bin/broken"), Permissions::from_mode(0o755)).unwrap();
    app.pack().run([""; 0]).exits(7).says("service web could not be started").says("bin/broken");
}

#[test]
fn kitbag_run_packs_and_starts_and_passes_arguments_and_status() {
    let (app, sandbox) = (App::tool(), Sandbox::new());
    let run = || sandbox.command(kitbag_tests::kitbag()).arg("run").arg(app.dir());
    run().args(["--", "a", "--exit", "9"]).run().exits(9).prints("argv[1] a");
    run().run().succeeds().prints("HELLO");
}

#[test]
fn what_an_outer_supervisor_tells_this_one_does_not_reach_services() {
    let ready = "[services.tells]\nargv = [\"bin/sleeps\"]\nready = { up-for = \"0s\" }\n\
                 health = { watchdog = \"1h\" }\nenv = { OUTER = \"${env.NOTIFY_SOCKET}\" }";
    let bundle = App::service("sleeps", &[], &format!("\n{ready}")).pack();
    let outer = ["NOTIFY_SOCKET", "WATCHDOG_PID", "FDSTORE", "JOURNAL_STREAM", "MAINPID", "LISTEN_PID"];
    let mut start = bundle.command(["start"]).env("WATCHDOG_USEC", "5").env("INVOCATION_ID", "outer");
    for name in outer {
        start = start.env(name, "outer");
    }
    start.run().exits(0);
    let of = |service: &str| -> String {
        let outcome = bundle.run(["status", "--json"]).exits(0);
        let status: serde_json::Value = serde_json::from_str(&outcome.text()).unwrap();
        let units = status["units"].as_array().unwrap();
        let unit = units.iter().find(|unit| unit["name"] == service).unwrap();
        fs::read_to_string(format!("/proc/{}/environ", unit["pid"])).unwrap().replace('\0', "\n")
    };
    let console = bundle.run(["exec", "web", "--", "env"]).exits(0).text();
    for text in [of("web"), console] {
        assert!(text.contains("INVOCATION_ID=outer\n"), "it is the services' too: {text}");
        let names = text.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name);
        let leaked: Vec<&str> =
            names.filter(|name| outer.contains(name) || *name == "WATCHDOG_USEC").collect();
        assert_eq!(leaked, [""; 0], "{text}");
    }
    // Its own, and what the manifest passes on.
    let own = of("tells");
    assert!(own.contains("WATCHDOG_USEC=3600000000\n") && own.contains("OUTER=outer\n"), "{own}");
    assert!(own.contains("NOTIFY_SOCKET=@") && !own.contains("NOTIFY_SOCKET=outer"), "{own}");
    bundle.run(["stop"]).exits(0);
}
