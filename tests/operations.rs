//! The guestbook as a small real system: a web server, a worker, a migration before them, a backup beside them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kitbag_tests::{Bundle, Cmd, Outcome, eventually, guestbook, page};
use serde_json::Value;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A guestbook in the background, stopped when dropped by its sandbox.
struct Book {
    bundle: Bundle,
}

impl Book {
    /// Starts it on a free port.
    #[track_caller]
    fn start() -> Self {
        let book = Self { bundle: guestbook() };
        book.again().exits(0).prints("guestbook is ready after ");
        book
    }

    /// `start` once more.
    #[track_caller]
    fn again(&self) -> Outcome {
        self.command(["start"]).env("PORT", "0").run()
    }

    fn command<const N: usize>(&self, args: [&str; N]) -> Cmd {
        self.bundle.command(args)
    }

    #[track_caller]
    fn run<const N: usize>(&self, args: [&str; N]) -> Outcome {
        self.bundle.run(args)
    }

    fn state(&self, path: &str) -> PathBuf {
        self.bundle.sandbox.state().join(path)
    }

    /// What `status --json` says of a unit.
    #[track_caller]
    fn unit(&self, name: &str) -> Value {
        let outcome = self.run(["status", "--json"]);
        let status: Value =
            serde_json::from_str(&outcome.text()).unwrap_or_else(|why| panic!("{why}\n{outcome}"));
        let units = status["units"].as_array().unwrap();
        units.iter().find(|unit| unit["name"] == name).unwrap_or_else(|| panic!("{name}\n{outcome}")).clone()
    }

    /// The main process of a unit.
    #[track_caller]
    fn pid(&self, name: &str) -> i64 {
        let unit = self.unit(name);
        unit["pid"].as_i64().unwrap_or_else(|| panic!("it runs: {unit}"))
    }

    /// Where the web server listens.
    #[track_caller]
    fn address(&self) -> String {
        fs::read_to_string(self.state("web.address")).unwrap().trim().to_owned()
    }

    fn get(&self, path: &str) -> String {
        page::get(&self.address(), path)
    }

    /// Writes into the book.
    #[track_caller]
    fn sign(&self, message: &str) {
        page::sign(&self.address(), message);
    }

    /// Stops it; nothing is left.
    #[track_caller]
    fn stop(&self) {
        self.run(["stop"]).exits(0).prints("guestbook has stopped");
        assert_eq!(self.bundle.sandbox.processes(), [0; 0], "left running");
        assert!(!self.state(".kitbag/control").exists(), "the socket is left behind");
    }

    /// The backups that there are.
    fn backups(&self) -> Vec<PathBuf> {
        let all = fs::read_dir(self.state("backups")).into_iter().flatten();
        all.map(|entry| entry.unwrap().path()).collect()
    }
}

/// Kills a process as the kernel does when memory ends.
fn kill(pid: i64, signal: &str) {
    Cmd::new("/bin/kill").args([signal, &pid.to_string()]).run().exits(0);
}

#[test]
fn start_returns_when_the_page_is_there_and_status_shows_all_four() {
    let book = Book::start();
    // Not a moment later.
    assert!(book.get("/").starts_with("HTTP/1.1 200 OK\r\n"));
    let states = ["migrate", "web", "worker", "backup"].map(|name| book.unit(name)["state"].clone());
    assert_eq!(states, ["done", "ready", "ready", "idle"]);
    assert!(
        book.unit("backup")["retry_in_ms"].as_u64().is_some_and(|ms| ms <= 86_400_000),
        "by three o'clock"
    );
    let status = book.run(["status"]).exits(0);
    status.prints("web      ready").prints("worker   ready").prints("backup   idle");
    book.run(["wait", "--ready", "--timeout", "20s"]).exits(0).is_quiet();
    book.again().exits(6).says("guestbook is running already, as process ");
    book.run([]).exits(6).says("running already");
    book.stop();
    book.run(["status"]).exits(9);
}

#[test]
fn the_migration_runs_before_what_needs_it_and_again_at_the_next_start() {
    let book = Book::start();
    book.run(["logs", "migrate"]).exits(0).prints("had schema version 1 and has 2 now");
    let events = book.run(["events"]).exits(0).text();
    let events: Vec<Value> = events.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let at = |unit: &str, event: &str| {
        let found = events.iter().position(|one| one["unit"] == unit && one["event"] == event);
        found.unwrap_or_else(|| panic!("{unit} {event}: {events:?}"))
    };
    assert!(at("migrate", "done") < at("web", "starting"), "{events:?}");
    assert!(at("migrate", "done") < at("worker", "starting"), "{events:?}");
    book.stop();
    book.again().exits(0);
    book.run(["logs", "migrate", "-n", "1"]).exits(0).prints("has schema version 2 already");
    book.stop();
}

#[test]
fn a_migration_that_fails_keeps_web_and_worker_from_starting_and_says_why() {
    let book = Book { bundle: guestbook() };
    book.again().exits(0);
    book.stop();
    fs::write(book.state("guestbook.db"), "no database at all, just text".repeat(100)).unwrap();
    let said = book.again().exits(7);
    said.says("migrate is not ready (failed): exited with status 1")
        .says("file is not a database")
        .says("web is not ready")
        .says("worker is not ready");
    let status = book.run(["status"]).exits(7);
    status
        .prints("migrate  failed")
        .prints("web      failed")
        .prints("it needs migrate, which exited with status 1")
        .prints("run-task migrate --wait ")
        .prints("start web worker ");
    // Not once: the second line in its log would be of this start.
    let log = book.run(["logs", "web"]).text();
    assert_eq!(log.matches("listening").count(), 1, "{log}");
    // Mended, it goes on from there.
    for name in ["guestbook.db", "guestbook.db-wal", "guestbook.db-shm"] {
        let _ = fs::remove_file(book.state(name));
    }
    book.run(["run-task", "migrate", "--wait"]).exits(0);
    book.run(["start", "web", "worker"]).exits(0);
    assert!(book.get("/").starts_with("HTTP/1.1 200 OK\r\n"));
    book.stop();
}

#[test]
fn a_killed_web_server_comes_back_and_the_worker_does_not_notice() {
    let book = Book::start();
    book.sign("before");
    let (web, worker) = (book.pid("web"), book.pid("worker"));
    kill(web, "-KILL");
    eventually(PATIENCE, "another one is ready", || {
        let unit = book.unit("web");
        unit["state"] == "ready" && unit["pid"].as_i64().is_some_and(|pid| pid != web)
    });
    let unit = book.unit("web");
    assert_eq!(
        (&unit["restarts"], &unit["last_end"]["how"]),
        (&1.into(), &"was ended by SIGKILL".into()),
        "{unit}"
    );
    assert_eq!((book.pid("worker"), &book.unit("worker")["restarts"]), (worker, &0.into()));
    assert!(book.get("/").contains("before"), "what was written is there");
    book.stop();
}

#[test]
fn a_hung_web_server_is_killed_and_started_again() {
    let book = Book::start();
    let web = book.pid("web");
    kill(web, "-STOP");
    // Three checks, five seconds apart, of up to two seconds.
    eventually(2 * PATIENCE, "another one is ready", || {
        let unit = book.unit("web");
        unit["state"] == "ready" && unit["pid"].as_i64().is_some_and(|pid| pid != web)
    });
    let how = "failed 3 checks in a row, and was ended by SIG";
    let unit = book.unit("web");
    assert!(unit["last_end"]["how"].as_str().is_some_and(|text| text.starts_with(how)), "{unit}");
    assert!(book.get("/").starts_with("HTTP/1.1 200 OK\r\n"));
    book.stop();
}

#[test]
fn a_backup_by_hand_is_a_whole_database_and_brings_back_what_it_has() {
    let book = Book::start();
    book.sign("worth+keeping");
    book.run(["run-task", "backup", "--wait"]).exits(0);
    let backups = book.backups();
    let [copy] = backups.as_slice() else { panic!("one file: {backups:?}") };
    let verify = |copy: &Path| book.command(["exec", "web", "--", "bin/guestbook", "verify"]).arg(copy).run();
    verify(copy).exits(0).prints("is whole, with 6 entries");
    assert_eq!(
        (&book.unit("backup")["state"], &book.unit("backup")["last_end"]["well"]),
        (&"idle".into(), &true.into())
    );
    book.sign("lost");
    book.run(["stop", "web", "worker"]).exits(0);
    book.command(["exec", "web", "--", "bin/guestbook", "restore"]).arg(copy).run().exits(0);
    book.run(["start", "web", "worker"]).exits(0);
    let page = book.get("/");
    assert!(page.contains("worth keeping") && !page.contains("lost"), "{page}");
    // A copy that is damaged is told from a whole one.
    fs::write(copy, "no database at all, just text".repeat(100)).unwrap();
    verify(copy).exits(1).says("not a database");
    book.stop();
    // How the last run ended is known after a start, too.
    book.again().exits(0);
    assert_eq!(book.unit("backup")["last_end"]["how"], "exited with status 0");
    book.stop();
}

#[test]
fn a_backup_that_fails_is_told_and_disturbs_nobody() {
    let book = Book::start();
    let web = book.pid("web");
    fs::write(book.state("backups"), "a file where the folder should be").unwrap();
    book.run(["run-task", "backup", "--wait"]).exits(7).says("exited with status 1");
    assert_eq!(book.unit("backup")["last_end"]["well"], false);
    book.run(["logs", "-n", "1", "backup"]).exits(0).prints("backups`: ");
    assert_eq!((book.pid("web"), book.unit("web")["state"].as_str()), (web, Some("ready")));
    book.stop();
}

#[test]
fn three_workers_share_the_work_and_two_of_them_go_again() {
    let book = Book::start();
    book.run(["scale", "worker=3"]).exits(0);
    book.run(["wait", "--ready"]).exits(0);
    let workers = ["worker", "worker.1", "worker.2"].map(|name| book.pid(name));
    for n in 0..9 {
        book.sign(&format!("message+{n}"));
    }
    eventually(PATIENCE, "each entry has its excerpt", || {
        let feed = book.get("/feed.xml");
        (0..9).all(|n| feed.contains(&format!("<title>message {n}</title>")))
    });
    book.run(["scale", "worker=1"]).exits(0);
    eventually(PATIENCE, "two of them are gone", || {
        let all = book.bundle.sandbox.processes();
        workers.iter().filter(|pid| all.contains(&(**pid as i32))).count() == 1
    });
    book.stop();
}

#[test]
fn logs_and_exec_see_what_the_service_sees() {
    let book = Book::start();
    let last = format!("guestbook: listening on http://{}/\n", book.address());
    let log = book.run(["logs", "-n", "1", "web"]).exits(0).prints(&last).text();
    assert_eq!(log.lines().count(), 1, "{log}");
    book.run(["logs", "-n", "100"]).exits(0).prints("migrate | ").prints("web     | ");
    let script = "echo $GUESTBOOK_ADDRESS; pwd; exec bin/guestbook check";
    let shown =
        format!("{}\n{}\n", book.state("web.address").display(), book.bundle.sandbox.tree().display());
    book.run(["exec", "web", "--", "sh", "-c", script]).exits(0).prints(&shown);
    kill(book.pid("web"), "-STOP");
    book.run(["exec", "web", "--", "bin/guestbook", "check"]).exits(1).says("nothing answers on 127.0.0.1:");
    kill(book.pid("web"), "-CONT");
    book.stop();
}

#[test]
fn a_server_that_cannot_start_is_given_up_on_and_start_says_so() {
    let book = Book { bundle: guestbook() };
    // Where it wants to write its address there is a folder.
    let place = book.state("web.address");
    fs::create_dir_all(&place).unwrap();
    fs::set_permissions(book.state(""), fs::Permissions::from_mode(0o700)).unwrap();
    let said = book.again().exits(7);
    said.says("web is not ready (failed)").says(&format!("cannot use `{}`", place.display()));
    let status = book.run(["status"]).exits(7);
    status.prints("web      failed").prints("restart web").prints("worker   ready");
    fs::remove_dir(&place).unwrap();
    book.run(["restart", "web"]).exits(0);
    assert!(book.get("/").starts_with("HTTP/1.1 200 OK\r\n"));
    book.stop();
}
