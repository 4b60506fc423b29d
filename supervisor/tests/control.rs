//! The control socket with real clients, good and hostile ones. The app behind it is a fake.
#![allow(missing_docs)]

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command as Program;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kitbag_format::port::Protocol;
use kitbag_supervisor::control::client::{self, Answer};
use kitbag_supervisor::control::{
    Accepted, App, CLIENTS, Command, Control, KEPT, REQUEST_TIME, Refused, Surroundings, UNREAD_EVENTS,
    socket,
};
use kitbag_supervisor::ports::registry::Published;
use kitbag_supervisor::snapshot::{Moment, Process, Snapshot};
use kitbag_supervisor::state::Whole;
use kitbag_supervisor::status::{Ended, Event, Kind, State, Status, Unit};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

const DEADLINE: Duration = Duration::from_secs(20);
const SECOND: u64 = 1_000;

/// An app that remembers what it was asked to do.
struct Fake {
    status: Status,
    /// How often the status was made.
    looks: usize,
    asked: Vec<Command>,
}

impl App for Fake {
    fn status(&mut self) -> Status {
        self.looks += 1;
        self.status.clone()
    }

    fn ports(&mut self) -> Vec<Published> {
        vec![Published {
            unit: "web.0".to_owned(),
            service: "web".to_owned(),
            port: "http".to_owned(),
            protocol: Protocol::Tcp,
            address: Some([127, 0, 0, 1].into()),
            number: 8080,
            path: String::new(),
            socket: false,
        }]
    }

    fn command(&mut self, command: &Command) -> Result<Accepted, Refused> {
        let name = match command {
            Command::Start(name) | Command::Stop(name) | Command::Signal(name, _) => name.as_str(),
            Command::Scale(name, _) | Command::RunTask(name) => name.as_str(),
            Command::Restart(name) => name.as_deref().unwrap_or(""),
            Command::Shutdown => "",
        };
        if self.status.named(name).next().is_none() {
            return Err(Refused::Unknown);
        }
        if *command == Command::RunTask("web".into()) {
            let (what, to_fix) = ("web is a service".into(), "`start web` starts it".into());
            return Err(Refused::Unfit { what, to_fix });
        }
        if *command == Command::Start("backup".into()) {
            return Err(Refused::Conflict("the bundle is stopping".into()));
        }
        self.asked.push(command.clone());
        let units = self.status.named(name).map(|unit| unit.name.clone()).collect();
        if *command == Command::Scale("web".into(), 0) {
            self.status.units.retain(|unit| unit.service != "web");
        }
        Ok(Accepted { units })
    }

    fn snapshot(&mut self) -> Snapshot {
        let moment = Moment { boot: "b".into(), wall: 1, now: 2 };
        Snapshot {
            bundle: self.status.bundle.clone(),
            version: self.status.version.clone(),
            taken: moment,
            supervisor: Process { pid: 1, start: None },
            since: (1, 2),
            whole: Whole::default(),
            stays: true,
            open_files: None,
            strangers: Vec::new(),
            control: None,
            marks: None,
            parts: Vec::new(),
        }
    }

    fn surroundings(&mut self, name: &str) -> Result<Surroundings, Refused> {
        self.status.named(name).next().ok_or(Refused::Unknown)?;
        let env = vec![("A".into(), "1 2".into()), ("B".into(), "\"".into())];
        Ok(Surroundings {
            env,
            cwd: "/tree".into(),
            umask: Some(0o27),
            limits: vec![("core", [Some(0), None])],
            nice: -5,
            ..Surroundings::default()
        })
    }
}

fn unit(name: &str, service: &str, state: State) -> Unit {
    Unit { name: name.into(), service: service.into(), awaited: true, state, ..Unit::default() }
}

/// A socket that a thread serves, as the loop would, until it is dropped. Its clock can be put forward.
struct Served {
    folder: PathBuf,
    app: Arc<Mutex<Fake>>,
    events: Arc<Mutex<Vec<Event>>>,
    ahead: Arc<AtomicU64>,
    turns: Arc<AtomicUsize>,
    /// The longest turn in microseconds of processor time.
    longest: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

static NUMBER: AtomicUsize = AtomicUsize::new(0);

fn temporary() -> PathBuf {
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let folder = std::env::temp_dir().join(format!("kitbag-control-{}-{number}", std::process::id()));
    std::fs::create_dir(&folder).expect("a temporary folder");
    folder
}

/// What this thread has used, in microseconds.
fn processor_time() -> u64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).expect("a clock");
    u64::try_from(time.tv_sec() * 1_000_000 + time.tv_nsec() / 1_000).expect("a time")
}

impl Served {
    fn new() -> Self {
        let mut backup = unit("backup", "backup", State::Idle);
        backup.kind = Kind::Task;
        let units = vec![backup, unit("web.0", "web", State::Ready), unit("web.1", "web", State::Ready)];
        let status = Status { bundle: "shop".into(), version: "1".into(), units, ..Status::default() };
        Self::at(temporary(), status)
    }

    fn at(folder: PathBuf, status: Status) -> Self {
        let mut control = Control::bind(&folder).expect("the socket is made");
        let app = Arc::new(Mutex::new(Fake { status, looks: 0, asked: Vec::new() }));
        let (events, ahead) = (Arc::<Mutex<Vec<Event>>>::default(), Arc::<AtomicU64>::default());
        let (over, turns) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let longest = Arc::<AtomicU64>::default();
        let mut served = Self {
            folder,
            app: app.clone(),
            events: events.clone(),
            ahead: ahead.clone(),
            turns: turns.clone(),
            longest: longest.clone(),
            over: over.clone(),
            thread: None,
        };
        let begin = Instant::now();
        let thread = thread::spawn(move || {
            let now = || begin.elapsed().as_millis() as u64 + ahead.load(Ordering::Relaxed);
            while !over.load(Ordering::Relaxed) {
                let pause = control.deadline().map_or(10, |at| at.saturating_sub(now()).min(10));
                let mut polled = [PollFd::new(control.fd(), PollFlags::POLLIN)];
                let ready = poll(&mut polled, PollTimeout::try_from(pause as i32).unwrap()).unwrap_or(0);
                for event in events.lock().unwrap().drain(..) {
                    control.publish(&event);
                }
                if ready > 0 || control.deadline().is_some_and(|at| at <= now()) {
                    let (begin, used) = (Instant::now(), processor_time());
                    control.serve(now(), &mut *app.lock().unwrap());
                    longest.fetch_max(processor_time() - used, Ordering::Relaxed);
                    turns.fetch_add(1, Ordering::Relaxed);
                    assert!(begin.elapsed() < Duration::from_secs(2), "a turn took {:?}", begin.elapsed());
                }
            }
        });
        served.thread = Some(thread);
        served
    }

    fn connect(&self) -> UnixStream {
        let stream = socket::connect(&self.folder).expect("somebody listens");
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream
    }

    fn ask(&self, method: &str, target: &str) -> Answer {
        client::ask(&self.folder, method, target, 20 * SECOND).expect("an answer")
    }

    fn put_forward(&self, ms: u64) {
        self.ahead.fetch_add(ms, Ordering::Relaxed);
    }

    fn publish(&self, event: &str, detail: &str) {
        let event = Event { at: 0, unit: "web.0".into(), event: event.into(), detail: detail.into() };
        self.events.lock().unwrap().push(event);
    }

    /// Changes a unit's state and tells so.
    fn set(&self, name: &str, state: State) {
        for unit in &mut self.app.lock().unwrap().status.units {
            if unit.name == name {
                unit.state = state;
            }
        }
        self.publish(state.name(), "");
    }

    fn works(&self) {
        assert_eq!(self.ask("GET", "/v1/status").value["bundle"], "shop");
    }

    fn asked(&self) -> Vec<Command> {
        std::mem::take(&mut self.app.lock().unwrap().asked)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let result = self.thread.take().map(JoinHandle::join);
        let left = self.folder.join(socket::NAME).exists();
        let _ = std::fs::remove_dir_all(&self.folder);
        if !thread::panicking() {
            assert!(matches!(result, Some(Ok(()))), "the server's thread failed");
            assert!(!left, "the socket is left behind");
        }
    }
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < until, "not in time: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Reads until the server closes; a reset is an end as well.
fn rest(mut stream: &UnixStream) -> String {
    let (mut all, mut chunk) = (Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(length) => all.extend_from_slice(&chunk[..length]),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
            Err(error) => panic!("{error}; before: {:?}", String::from_utf8_lossy(&all)),
        }
    }
    String::from_utf8_lossy(&all).into_owned()
}

fn is_closed(stream: &UnixStream) -> bool {
    let mut polled = [PollFd::new(stream.as_fd(), PollFlags::POLLHUP)];
    poll(&mut polled, PollTimeout::ZERO).is_ok_and(|count| count > 0)
        && polled[0].revents().is_some_and(|flags| flags.contains(PollFlags::POLLHUP))
}

// --- The API ---

#[test]
fn requests_become_commands() {
    let served = Served::new();
    let post = |target: &str| served.ask("POST", target).code;
    let targets = [
        "/v1/services/web/stop",
        "/v1/services/web.1/start",
        "/v1/services/web/restart",
        "/v1/restart",
        "/v1/services/web/signal?signal=hup",
        "/v1/services/web/scale?instances=3",
        "/v1/tasks/backup/run",
        "/v1/stop",
    ];
    assert_eq!(targets.map(post), [202; 8]);
    let expected = [
        Command::Stop("web".into()),
        Command::Start("web.1".into()),
        Command::Restart(Some("web".into())),
        Command::Restart(None),
        Command::Signal("web".into(), 1),
        Command::Scale("web".into(), 3),
        Command::RunTask("backup".into()),
        Command::Shutdown,
    ];
    assert_eq!(served.asked(), expected);
    let units = served.ask("POST", "/v1/services/web/stop").value["units"].to_string();
    assert_eq!(units, r#"["web.0","web.1"]"#);
}

#[test]
fn errors_say_what_and_what_to_do() {
    let served = Served::new();
    let cases = [
        ("POST", "/v1/services/wbe/stop", 404, "no service or task `wbe`", "did you mean `web`?"),
        ("POST", "/v1/services/xyz/stop", 404, "no service or task `xyz`", "there are: backup, web"),
        ("GET", "/v1/stats", 404, "there is no /v1/stats", "did you mean /v1/status?"),
        ("GET", "/", 404, "there is no /", "there are: /v1/status, "),
        ("GET", "/v1/services/web/stop", 405, "does not take GET", "use POST"),
        ("POST", "/v1/status", 405, "does not take POST", "use GET"),
        ("POST", "/v1/services/web/signal?signal=NO", 400, "no signal `NO`", "?signal=HUP"),
        ("POST", "/v1/services/web/scale", 400, "no number of instances", "?instances=3"),
        ("POST", "/v1/services/web/scale?instances=-1", 400, "no number", "say how many"),
        ("POST", "/v1/tasks/web/run", 400, "web is a service", "`start web` starts it"),
        ("POST", "/v1/services/backup/start", 409, "the bundle is stopping", "try again later"),
        ("GET", "/v1/wait", 400, "wait for what?", "?ready=1"),
        ("GET", "/v1/wait?ready=1&timeout=soon", 400, "`soon` is no time", "seconds"),
        ("GET", "/v1/wait?ready=1&unit=no", 404, "no service or task `no`", "there are"),
        ("GET", "/v1/services/no/environment", 404, "no service or task `no`", "there are"),
    ];
    for (method, target, code, what, to_fix) in cases {
        let answer = served.ask(method, target);
        let text = |key: &str| answer.value[key].as_str().unwrap_or("").to_owned();
        assert_eq!(answer.code, code, "{method} {target}: {answer:?}");
        assert!(text("error").contains(what) && text("to_fix").contains(to_fix), "{target}: {answer:?}");
    }
    assert_eq!(served.asked(), []);
}

/// Their text is what it would be at once, and the loop has had many turns meanwhile.
#[test]
fn answers_about_many_units_take_turns_with_everything_else() {
    let own = std::process::id().cast_signed();
    let runs = |number| Unit { pid: Some(own), ..unit(&format!("web.{number}"), "web", State::Ready) };
    let status = Status { bundle: "shop".into(), units: (0..1_000).map(runs).collect(), ..Status::default() };
    let served = Served::at(temporary(), status.clone());
    let turns = |target: &str| {
        let before = served.turns.load(Ordering::Relaxed);
        served.longest.store(0, Ordering::Relaxed);
        let mut stream = served.connect();
        stream.write_all(format!("GET {target} HTTP/1.0\r\n\r\n").as_bytes()).unwrap();
        let answer = rest(&stream);
        let (used, longest) =
            (served.turns.load(Ordering::Relaxed) - before, served.longest.load(Ordering::Relaxed));
        println!("{target}: {used} turns, the longest with {longest} us of processor time");
        // 1.5 ms, measured without optimization: the slice, and passing a megabyte on.
        assert!(longest < 8_000, "{longest} us for a turn of {target}");
        (answer, used)
    };
    let (page, used) = turns("/metrics");
    assert!(used >= 10, "{used} turns");
    assert_eq!(page.lines().filter(|line| line.starts_with("kitbag_unit_memory_bytes{")).count(), 1_000);
    let (text, used) = turns("/v1/status");
    assert!(used >= 3, "{used} turns");
    let body = text.split_once("\r\n\r\n").expect("a body").1;
    assert_eq!(Status::from_json(&serde_json::from_str(body).expect("it is JSON")), status);
    // Another client's request does not wait for the end of a large answer.
    let mut large = served.connect();
    large.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let before = served.turns.load(Ordering::Relaxed);
    assert_eq!(served.ask("GET", "/v1/nothing").code, 404);
    assert_eq!(served.ask("GET", "/v1/services/web/environment").code, 200);
    assert!(rest(&large).ends_with('\n'));
    assert!(served.turns.load(Ordering::Relaxed) - before >= 10);
}

#[test]
fn status_metrics_and_environment_are_told() {
    let served = Served::new();
    let ports = served.ask("GET", "/v1/ports").value;
    assert_eq!((&ports["ports"][0]["unit"], &ports["ports"][0]["number"]), (&"web.0".into(), &8080.into()));
    let status = Status::from_json(&served.ask("GET", "/v1/status").value);
    assert_eq!(status, served.app.lock().unwrap().status);
    let environment = served.ask("GET", "/v1/services/web/environment").value;
    assert_eq!(environment["environment"]["B"], "\"");
    assert_eq!((&environment["cwd"], &environment["umask"]), (&"/tree".into(), &0o27.into()));
    assert_eq!(environment["limits"]["core"].to_string(), "[0,null]");
    assert_eq!(environment["nice"], -5);
    let mut stream = served.connect();
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let page = rest(&stream);
    assert!(page.contains("Content-Type: text/plain; version=0.0.4"), "{page}");
    assert!(
        page.contains(
            "kitbag_unit_state{bundle=\"shop\",service=\"web\",unit=\"web.1\",state=\"ready\"} 1\n"
        )
    );
}

#[test]
fn a_wait_ends_when_all_is_ready() {
    let served = Served::new();
    assert_eq!(served.ask("GET", "/v1/wait?ready=1&timeout=0").code, 200);
    served.set("web.1", State::Starting);
    let late = served.ask("GET", "/v1/wait?ready=1&timeout=20ms");
    assert_eq!((late.code, &late.value["final"]), (503, &false.into()));
    assert_eq!(late.value["units"][0]["unit"], "web.1");
    assert_eq!(served.ask("GET", "/v1/wait?ready=1&unit=web.0&timeout=0").code, 200);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| served.ask("GET", "/v1/wait?ready=1&timeout=20"));
        thread::sleep(Duration::from_millis(20));
        served.set("web.1", State::Ready);
        assert_eq!(waiting.join().unwrap().code, 200);
        served.set("web.1", State::Starting);
        let waiting = scope.spawn(|| served.ask("GET", "/v1/wait?ready=1&timeout=20"));
        thread::sleep(Duration::from_millis(20));
        served.app.lock().unwrap().status.units[2].last_end =
            Some(Ended { how: "exited with status 3".into(), ..Ended::default() });
        served.set("web.1", State::Failed);
        let answer = waiting.join().unwrap();
        assert_eq!((answer.code, &answer.value["final"]), (503, &true.into()));
        assert!(
            answer.fault().starts_with("web.1 is not ready (failed): it exited with status 3"),
            "{answer:?}"
        );
    });
    assert_eq!(served.ask("GET", "/v1/wait?ended=1&unit=web.1&timeout=0").value["well"], false);
    assert_eq!(served.ask("GET", "/v1/wait?ended=1&unit=web&timeout=0").code, 503);
}

#[test]
fn events_are_kept_and_followed() {
    let served = Served::new();
    for number in 0..KEPT + 10 {
        served.publish("ready", &number.to_string());
    }
    let mut lines = Vec::new();
    eventually("events are kept", || {
        lines.clear();
        client::follow(&served.folder, "/v1/events?follow=0", |line| {
            lines.push(String::from_utf8_lossy(line).into_owned());
            true
        })
        .unwrap();
        lines.len() == KEPT && lines[0].contains("\"detail\":\"10\"")
    });
    let mut seen = 0;
    client::follow(&served.folder, "/v1/events", |line| {
        seen += 1;
        if seen == KEPT {
            served.publish("failed", "now");
        }
        !line.windows(5).any(|part| part == b"\"now\"")
    })
    .unwrap();
    assert_eq!(seen, KEPT + 1);
}

#[test]
fn a_command_takes_a_json_body() {
    let served = Served::new();
    let mut stream = served.connect();
    let body = r#"{"instances": 2}"#;
    let head = format!("POST /v1/services/web/scale HTTP/1.1\r\nContent-Length: {}\r\n", body.len());
    stream.write_all(format!("{head}Expect: 100-continue\r\n\r\n").as_bytes()).unwrap();
    let mut answer = [0; 25];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(body.as_bytes()).unwrap();
    eventually("it is asked", || served.asked() == [Command::Scale("web".into(), 2)]);
    let wrong = b"POST /v1/stop HTTP/1.1\r\nContent-Length: 3\r\nConnection: close\r\n\r\nx=1";
    stream.write_all(wrong).unwrap();
    assert!(rest(&stream).contains("the body is no JSON object"));
}

#[test]
fn curl_can_talk_to_it() {
    let served = Served::new();
    let path = served.folder.join(socket::NAME);
    let curl = |arguments: &[&str]| {
        Program::new("curl").args(["-sS", "--unix-socket"]).arg(&path).args(arguments).output()
    };
    let Ok(output) = curl(&["http://kitbag/v1/status"]) else {
        return println!("no curl here: not tested");
    };
    assert!(String::from_utf8_lossy(&output.stdout).contains("\"bundle\":\"shop\""), "{output:?}");
    let posted = curl(&["-d", r#"{"signal": "USR1"}"#, "http://kitbag/v1/services/web/signal"]).unwrap();
    assert!(String::from_utf8_lossy(&posted.stdout).contains("\"accepted\":true"), "{posted:?}");
    assert_eq!(served.asked(), [Command::Signal("web".into(), 10)]);
    assert!(!curl(&["-f", "http://kitbag/nowhere"]).unwrap().status.success());
}

// --- Hostile clients ---

#[test]
fn pipelined_requests_are_answered_in_order() {
    let served = Served::new();
    let mut stream = served.connect();
    let mut requests = String::new();
    for number in 0..50 {
        requests.push_str(&format!("GET /v1/nothing{number} HTTP/1.1\r\n\r\n"));
    }
    stream.write_all(requests.as_bytes()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let answers = rest(&stream);
    let order: Vec<usize> = (0..50)
        .map(|number| answers.find(&format!("no /v1/nothing{number}\"")).expect("each is answered"))
        .collect();
    assert!(order.is_sorted());
}

#[test]
fn a_task_that_was_stopped_before_it_ran_has_not_ended_well() {
    let served = Served::new();
    let well = |state| {
        served.set("backup", state);
        served.ask("GET", "/v1/wait?ended=1&unit=backup").value["well"].clone()
    };
    assert_eq!([State::Idle, State::Done].map(well), [true, true]);
    assert_eq!([State::Stopped, State::Failed].map(well), [false, false]);
    served.set("web.0", State::Stopped);
    served.set("web.1", State::Stopped);
    assert_eq!(served.ask("GET", "/v1/wait?ended=1&unit=web").value["well"], true, "a service is told to");
}

#[test]
fn who_waits_for_an_instance_that_is_scaled_away_is_told_that_there_is_none() {
    let served = Served::new();
    for unit in &mut served.app.lock().unwrap().status.units[1..] {
        unit.instance = unit.name.rsplit_once('.').and_then(|(_, number)| number.parse().ok());
    }
    for (goal, state) in [("ready", State::Starting), ("ended", State::Ready)] {
        served.set("web.1", state);
        let mut waiting = served.connect();
        write!(waiting, "GET /v1/wait?{goal}=1&unit=web.1&timeout=60 HTTP/1.0\r\n\r\n").unwrap();
        served.works();
        let gone = served.app.lock().unwrap().status.units.pop().unwrap();
        served.publish("gone", "");
        let answer = rest(&waiting);
        assert!(answer.starts_with("HTTP/1.1 404 "), "{goal}: {answer}");
        assert!(answer.contains("there is no web.1: web has one instance, web.0"), "{goal}: {answer}");
        served.app.lock().unwrap().status.units.push(gone);
    }
}

#[test]
fn waits_of_one_turn_share_one_look_and_a_command_ends_it() {
    let served = Served::new();
    let waits = "GET /v1/wait?ended=1&unit=web&timeout=0 HTTP/1.1\r\n\r\n".repeat(100);
    let mut clients: Vec<UnixStream> = (0..10).map(|_| served.connect()).collect();
    served.works();
    let looks = || served.app.lock().unwrap().looks;
    let (before, turns) = (looks(), served.turns.load(Ordering::Relaxed));
    for client in &mut clients {
        client.write_all(waits.as_bytes()).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
    }
    for client in &clients {
        assert_eq!(rest(client).matches("HTTP/1.1 503 ").count(), 100);
    }
    let (looks, turns) = (looks() - before, served.turns.load(Ordering::Relaxed) + 1 - turns);
    assert!(looks <= turns, "{looks} looks in {turns} turns");
    // What a command has changed is seen by who asks after it.
    let mut client = served.connect();
    let both = "POST /v1/services/web/scale?instances=0 HTTP/1.1\r\n\r\n";
    let wait = "GET /v1/wait?ended=1&unit=web&timeout=0 HTTP/1.1\r\n\r\n";
    client.write_all(format!("{wait}{both}{wait}").as_bytes()).unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    let answers = rest(&client);
    let codes: Vec<&str> = answers.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect();
    assert_eq!(codes, ["503", "202", "404"], "{answers}");
}

#[test]
fn one_byte_at_a_time_is_a_request_too() {
    let served = Served::new();
    let mut stream = served.connect();
    for byte in b"GET /v1/status HTTP/1.1\r\nConnection: close\r\n\r\n" {
        stream.write_all(&[*byte]).unwrap();
        thread::sleep(Duration::from_micros(300));
    }
    assert!(rest(&stream).starts_with("HTTP/1.1 200 OK\r\n"));
}

#[test]
fn half_a_request_has_its_time_and_no_more() {
    let served = Served::new();
    let (mut half, silent) = (served.connect(), served.connect());
    half.write_all(b"GET /v1/status HT").unwrap();
    served.works();
    assert!(!is_closed(&half));
    served.put_forward(REQUEST_TIME / 2);
    half.write_all(b"T").unwrap();
    served.works();
    served.put_forward(REQUEST_TIME / 2 + 1);
    assert!(rest(&half).starts_with("HTTP/1.1 408 "));
    assert_eq!(rest(&silent), "");
    served.works();
}

#[test]
fn garbage_and_giants_are_refused() {
    let served = Served::new();
    let long_head = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(9000));
    let long_body = "POST /v1/stop HTTP/1.1\r\nContent-Length: 70000\r\n\r\n".to_owned();
    let cases = [
        ("\x16\x03\x01 hello".to_owned(), "400"),
        (long_head, "431"),
        (long_body, "413"),
        ("\r\n".repeat(9000), "431"),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(), "411"),
    ];
    for (text, code) in cases {
        let mut stream = served.connect();
        // It may be refused, and closed, before it is all sent.
        let _ = stream.write_all(text.as_bytes());
        let answer = rest(&stream);
        assert!(answer.starts_with(&format!("HTTP/1.1 {code} ")), "{code}: {answer:?}");
    }
    assert_eq!(served.asked(), []);
    served.works();
}

#[test]
fn who_never_reads_is_dropped_and_nobody_waits_for_him() {
    let served = Served::new();
    let stuck = served.connect();
    stuck.set_nonblocking(true).unwrap();
    // More requests than its answers find room for.
    let mut wrote = 0;
    eventually("it is full", || {
        match (&stuck).write(&b"GET /metrics HTTP/1.1\r\n\r\n".repeat(100)) {
            Ok(length) => wrote += length,
            Err(_) => return true,
        }
        wrote > 10_000_000
    });
    served.works();
    assert!(!is_closed(&stuck));
    served.put_forward(REQUEST_TIME + 1);
    eventually("it is dropped", || is_closed(&stuck));
    served.works();
}

#[test]
fn who_follows_events_and_never_reads_is_dropped() {
    let served = Served::new();
    let mut stuck = served.connect();
    stuck.write_all(b"GET /v1/events HTTP/1.1\r\n\r\n").unwrap();
    let detail = "x".repeat(1000);
    let mut published = 0;
    eventually("it is dropped", || {
        for _ in 0..100 {
            served.publish("ready", &detail);
            published += 1;
        }
        served.works();
        is_closed(&stuck)
    });
    assert!(published * 1000 > UNREAD_EVENTS, "it was dropped after {published} events");
}

#[test]
fn a_thousand_connections_keep_nobody_out() {
    let served = Served::new();
    let mut streams = Vec::new();
    for number in 0..1000 {
        let mut stream = served.connect();
        if number % 2 == 0 {
            let _ = stream.write_all(b"GET /v1/sta");
        }
        streams.push(stream);
    }
    served.works();
    let open = |streams: &[UnixStream]| streams.iter().filter(|stream| !is_closed(stream)).count();
    eventually("the others are closed", || open(&streams) <= CLIENTS);
    drop(streams);
    served.works();
}

#[test]
fn who_gets_the_place_of_one_that_goes_is_not_taken_for_him() {
    let served = Served::new();
    let mut streams: Vec<UnixStream> = (0..CLIENTS).map(|_| served.connect()).collect();
    for stream in &mut streams {
        stream.write_all(b"GET /v1/ports HTTP/1.1\r\n\r\n").unwrap();
        assert!(stream.read(&mut [0; 1000]).unwrap() > 0);
        served.put_forward(1);
    }
    let turn = served.app.lock().unwrap();
    // In one turn: the newcomer first, and then the end of who has been silent for the longest time.
    let mut newcomer = served.connect();
    drop(streams.remove(0));
    let turns = served.turns.load(Ordering::Relaxed);
    drop(turn);
    eventually("the turn is over", || served.turns.load(Ordering::Relaxed) > turns);
    newcomer.write_all(b"GET /v1/ports HTTP/1.0\r\n\r\n").unwrap();
    assert!(rest(&newcomer).starts_with("HTTP/1.1 200 "));
}

#[test]
fn clients_that_wait_cost_no_turns() {
    let served = Served::new();
    served.set("web.0", State::Starting);
    let mut waiting = served.connect();
    waiting
        .write_all(b"GET /v1/wait?ready=1&timeout=60 HTTP/1.1\r\n\r\nGET /v1/status HTTP/1.1\r\n\r\n")
        .unwrap();
    waiting.shutdown(std::net::Shutdown::Write).unwrap();
    let mut events = served.connect();
    events.write_all(b"GET /v1/events HTTP/1.1\r\n\r\nmore that nobody reads").unwrap();
    served.works();
    thread::sleep(Duration::from_millis(50));
    let before = served.turns.load(Ordering::Relaxed);
    thread::sleep(Duration::from_millis(200));
    assert_eq!(served.turns.load(Ordering::Relaxed), before);
    served.set("web.0", State::Ready);
    let answers = rest(&waiting);
    assert!(answers.contains("{\"ready\":true}") && answers.contains("\"bundle\":\"shop\""), "{answers}");
}

// --- Places and people ---

#[test]
fn a_state_folder_may_have_a_long_path() {
    let base = temporary();
    let folder = base.join("long".repeat(20)).join("path".repeat(20));
    std::fs::create_dir_all(&folder).unwrap();
    assert!(folder.as_os_str().len() > 108);
    let served = Served::at(folder, Status { bundle: "shop".into(), ..Status::default() });
    served.works();
    drop(served);
    std::fs::remove_dir_all(base).unwrap();
}

#[test]
fn a_socket_left_behind_is_replaced() {
    let folder = temporary();
    drop(std::os::unix::net::UnixListener::bind(folder.join(socket::NAME)).unwrap());
    assert_eq!(socket::connect(&folder).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    Served::at(folder, Status { bundle: "shop".into(), ..Status::default() }).works();
}

#[test]
fn another_user_is_refused() {
    if !nix::unistd::geteuid().is_root() {
        return println!("not root: not tested");
    }
    let served = Served::new();
    let path = served.folder.join(socket::NAME);
    // Opened up on purpose: the folder alone keeps others out already.
    for (path, mode) in [(served.folder.as_path(), 0o755), (&path, 0o666)] {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    }
    let as_nobody = |arguments: &[&str]| {
        use std::os::unix::process::CommandExt;
        let mut curl = Program::new("curl");
        curl.args(["-sS", "-i", "--unix-socket"]).arg(&path).args(arguments).uid(65534).gid(65534);
        curl.output().map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let Ok(answer) = as_nobody(&["http://kitbag/v1/status"]) else {
        return println!("no curl here: not tested");
    };
    assert!(answer.contains("403 Forbidden") && answer.contains("for the bundle's own user"), "{answer}");
    let answer = as_nobody(&["-X", "POST", "http://kitbag/v1/stop"]).unwrap();
    assert!(answer.contains("403 Forbidden"), "{answer}");
    assert_eq!(served.asked(), []);
    served.works();
}
