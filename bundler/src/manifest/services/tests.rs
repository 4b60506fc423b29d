use kitbag_format::manifest::Command;
use kitbag_format::service::{
    Cron, GiveUp, HealthWhen, HttpProbe, LogFormat, LogTo, Logs, More, Overlap, Probe, Process, Ready,
    ReadyWhen, Restart, Schedule, WhenSlow,
};
use toml::Spanned;
use toml::de::DeTable;

use super::super::tests::{assert_errors, errors};
use super::super::{RunSource, read};
use super::values::{parse_size, shown_ms, shown_size};
use super::{ServiceSource, Supervised};

mod ports;

/// What a manifest with these tables starts.
#[track_caller]
fn supervised(text: &str) -> Supervised {
    let table = DeTable::parse(text).expect("the test writes TOML");
    let (manifest, _) = read(text, &Spanned::new(table.span(), table.get_ref()));
    assert_eq!(errors(text), "");
    match manifest.run {
        RunSource::Services(supervised) => supervised,
        other => panic!("{other:?}"),
    }
}

/// A service `web` with these lines.
#[track_caller]
fn web(lines: &str) -> ServiceSource {
    let mut all = supervised(&format!("[services.web]\nargv = [\"bin/web\"]\n{lines}\n")).services;
    all.pop().expect("a service").1
}

/// What is wrong with such a service.
fn web_errors(lines: &str) -> String {
    errors(&format!("[services.web]\nargv = [\"bin/web\"]\n{lines}\n"))
}

fn task_errors(lines: &str) -> String {
    errors(&format!("[services.a]\nargv = [\"a\"]\n[tasks.backup]\nargv = [\"bin/backup\"]\n{lines}\n"))
}

/// Asserts that each of these lines has an error with this text.
#[track_caller]
fn assert_each(errors: fn(&str) -> String, cases: &[(&str, &str)]) {
    for (lines, expected) in cases {
        let found = errors(lines);
        assert!(found.contains(expected), "{lines}\nexpected: {expected}\nfound: {found}");
        assert_eq!(found.matches("error: ").count(), 1, "{lines}\n{found}");
    }
}

#[test]
fn a_service_that_says_little_has_the_defaults() {
    let source = web("");
    assert_eq!(source.service.more, More::default());
    assert_eq!((source.service.restart, source.service.stop_timeout_ms), (Restart::Always, 10_000));
    assert_eq!(source.commands.len(), 1);
    let all = supervised("[services.web]\nargv = [\"bin/web\"]\n");
    assert_eq!((all.tasks.len(), all.logs), (0, Logs::default()));
}

#[test]
fn a_service_can_say_everything() {
    let service = web("restart = \"on-failure\"\nsuccess = [0, 2, \"SIGTERM\", \"HUP\"]\n\
         restart-delay = { first = \"200ms\", longest = \"1m\", stable = \"30s\" }\n\
         give-up = { failures = 5, within = \"60s\" }\ninstances = 4\n\
         user = \"www-data\"\ngroup = 33\ngroups = [\"video\"]\numask = \"027\"\nnice = -5\noom-score = 500\n\
         limits = { nofile = 65536, core = \"unlimited\", as = \"2G\" }\npass-env = [\"PATH\", \"LANG\"]\n\
         env-files = [\"${state}/env?\", \"/etc/default/web\"]\nmemory-max = \"512M\"\npids-max = 100")
    .service;
    let more = &service.more;
    assert_eq!(service.restart, Restart::OnFailure);
    assert_eq!((more.success.codes.as_slice(), more.success.signals.len()), (&[2][..], 2));
    assert_eq!(more.success.signals, ["SIGTERM", "SIGHUP"]);
    assert_eq!(
        (more.backoff.first_ms, more.backoff.longest_ms, more.backoff.stable_ms),
        (200, 60_000, 30_000)
    );
    assert_eq!(more.give_up, Some(GiveUp { failures: 5, within_ms: 60_000 }));
    assert_eq!(more.instances, 4);
    let limits = [("as", Some(2 << 30)), ("core", None), ("nofile", Some(65_536))];
    let expected = Process {
        user: Some("www-data".to_owned()),
        group: Some("33".to_owned()),
        groups: Some(vec!["video".to_owned()]),
        umask: Some(0o027),
        nice: Some(-5),
        oom_score: Some(500),
        limits: limits.into_iter().map(|(name, limit)| (name.to_owned(), limit)).collect(),
        pass_env: Some(vec!["PATH".to_owned(), "LANG".to_owned()]),
        env_files: vec!["${state}/env?".to_owned(), "/etc/default/web".to_owned()],
        memory_max: Some(512 << 20),
        pids_max: Some(100),
        ..Process::default()
    };
    assert_eq!(more.process, expected);
    assert_eq!(web("umask = 0o22\npass-env = []").service.more.process.umask, Some(0o22));
}

#[test]
fn readiness_is_shown_in_six_ways() {
    let ready = |lines: &str| web(lines).service.more.ready;
    let default = Ready::default();
    assert_eq!(ready("ready = \"notify\"").when, ReadyWhen::Notify);
    let notify = ready("ready = { notify = true, timeout = \"5m\" }");
    assert_eq!(notify, Ready { when: ReadyWhen::Notify, timeout_ms: 300_000, ..default.clone() });
    assert_eq!(ready("ready = { newline = 4 }").when, ReadyWhen::Newline(4));
    let up_for = ready("ready = { up-for = \"2m\" }");
    assert_eq!((up_for.when, up_for.timeout_ms), (ReadyWhen::UpFor(120_000), 180_000));
    let tcp = ready("ready = { tcp = \"localhost:${env.PORT:-80}\", interval = \"50ms\" }");
    assert_eq!(tcp.when, ReadyWhen::Probe(Probe::Tcp("localhost:${env.PORT:-80}".to_owned())));
    assert_eq!(tcp.interval_ms, 50);
    let http = |address: &str, path: &str, status: &[u16]| {
        let (address, path) = (address.to_owned(), path.to_owned());
        ReadyWhen::Probe(Probe::Http(HttpProbe { address, path, status: status.to_vec() }))
    };
    let url = "ready = { http = \"http://[::1]:8080/health?z=1\", status = [200, 204] }";
    assert_eq!(ready(url).when, http("[::1]:8080", "/health?z=1", &[200, 204]));
    assert_eq!(
        ready("ready = { http = \"http://${env.A:-[::1]:1}\" }").when,
        http("${env.A:-[::1]:1}", "/", &[])
    );
    let url = "ready = { http = \"http://${env.BIND:-127.0.0.1:80}/x\" }";
    assert_eq!(ready(url).when, http("${env.BIND:-127.0.0.1:80}", "/x", &[]));
    let source = web("ready = { command = [\"bin/check\", \"-q\"] }");
    assert_eq!(source.service.more.ready.when, ReadyWhen::Probe(Probe::Command(Command::default())));
    assert_eq!(source.commands.len(), 2);
    assert_eq!(source.commands[1].argv[1].get_ref(), "-q");
}

#[test]
fn health_has_its_defaults() {
    let health = |lines: &str| web(lines).service.more.health.expect("health");
    let probed = health("health = { tcp = \"127.0.0.1:80\" }");
    assert_eq!((probed.interval_ms, probed.timeout_ms, probed.failures), (10_000, 2_000, 3));
    assert_eq!(probed.kill_signal, "SIGABRT");
    let watched = health("health = { watchdog = \"30s\", kill-signal = \"QUIT\" }");
    assert_eq!((watched.when, watched.interval_ms), (HealthWhen::Watchdog, 30_000));
    assert_eq!((watched.failures, watched.kill_signal.as_str()), (1, "SIGQUIT"));
    let both =
        web("ready = { command = [\"bin/a\"] }\nhealth = { command = { argv = [\"bin/b\"], cwd = \"/\" } }");
    let programs: Vec<&str> =
        both.commands.iter().map(|command| command.argv[0].get_ref().as_str()).collect();
    assert_eq!(programs, ["bin/web", "bin/a", "bin/b"]);
}

#[test]
fn an_address_is_one_after_its_placeholders_are_filled_in() {
    let tcp = |address: &str| web_errors(&format!("ready = {{ tcp = \"{address}\" }}"));
    for sound in
        ["${env.BIND}", "${env.HOST}:80", "127.0.0.1:${env.PORT}", "${env.HOST}:${env.PORT}", "[::1]:80"]
    {
        assert_eq!(tcp(sound), "", "{sound}");
    }
    for (wrong, expected) in [
        ("8080", "such as `127.0.0.1:8080`"),
        (":8080", "such as `127.0.0.1:8080`"),
        ("127.0.0.1", "such as `127.0.0.1:8080`"),
        ("localhost", "such as `127.0.0.1:8080`"),
        ("localhost:http", "such as `127.0.0.1:8080`"),
        ("locahost:80", "such as `127.0.0.1:8080`"),
        ("127.0.0.1:0", "such as `127.0.0.1:8080`"),
        ("127.0.0.1:${env.PORT:-http}", "such as `127.0.0.1:8080`"),
        ("example.org:80", "of names only `localhost` is known"),
        ("${state}/socket", "only `${env.NAME}` and ports can be part of it"),
    ] {
        assert!(tcp(wrong).contains(expected), "{wrong}: {}", tcp(wrong));
    }
}

#[test]
fn a_misspelt_probe_is_shown_with_the_one_that_was_meant() {
    assert_errors(
        "[services.web]\nargv = [\"bin/web\"]\nready = { tpc = \"127.0.0.1:80\", timeout = \"1s\" }\n",
        "
error: unknown key `tpc` in `[services.web.ready]`
 --> kitbag.toml:3:11
  |
3 | ready = { tpc = \"127.0.0.1:80\", timeout = \"1s\" }
  |           ^^^
  |
  = help: did you mean `tcp`?",
    );
}

#[test]
fn wrong_probes_are_told_why() {
    assert_each(
        web_errors,
        &[
            ("ready = \"notfy\"", "expected \"notify\" or a table"),
            ("ready = 3", "expected \"notify\" or a table"),
            ("ready = { notify = false }", "`notify` in `[services.web.ready]` has no effect"),
            ("ready = { newline = 2 }", "a whole number from 3 to 255"),
            (
                "ready = { up-for = \"2s\", timeout = \"1s\" }",
                "`timeout` in `[services.web.ready]` has no effect",
            ),
            ("ready = { notify = true, interval = \"1s\" }", "only a probe is tried again"),
            ("ready = { tcp = \"127.0.0.1:1\", http = \"http://127.0.0.1:1\" }", "both `tcp` and `http`"),
            ("ready = { tcp = \"127.0.0.1:1\", status = [200] }", "only `http` has a status"),
            ("ready = { tcp = \"127.0.0.1:1\", interval = \"0s\" }", "expected 10ms or more"),
            ("ready = { http = \"127.0.0.1:1/\" }", "expected `http://` at its beginning"),
            ("ready = { http = \"https://127.0.0.1:1/\" }", "a probe speaks no TLS"),
            ("ready = { http = \"http://127.0.0.1/\" }", "such as `127.0.0.1:8080`"),
            ("ready = { http = \"http://127.0.0.1:1/a b\" }", "printing ASCII letters"),
            ("ready = { http = \"http://127.0.0.1:1/${name}\" }", "without placeholders"),
            ("ready = { http = \"http://127.0.0.1:1/\", status = [99] }", "an HTTP status from 100 to 599"),
            ("ready = { command = [] }", "`command` is empty"),
            ("ready = { tcp = \"${env.PORT\" }", "has no closing `}`"),
            ("health = { watchdog = \"30s\", interval = \"1s\" }", "how long the service may be silent"),
            ("health = { tcp = \"127.0.0.1:1\", failures = 0 }", "a whole number from 1 to 1000"),
            ("health = { tcp = \"127.0.0.1:1\", kill-signal = \"SIGABORT\" }", "unknown signal `SIGABORT`"),
            ("health = { interval = \"1s\" }", "expected `tcp`, `http`, `command` or `watchdog`"),
            ("health = \"watchdog\"", "expected a table"),
        ],
    );
}

#[test]
fn wrong_settings_are_told_why() {
    assert_each(
        web_errors,
        &[
            ("success = [256]", "an exit status from 0 to 255"),
            ("success = [\"SIGTREM\"]", "did you mean `SIGTERM`?"),
            ("success = 2", "a list of exit statuses and signals"),
            ("restart-delay = { first = \"1m\" , longest = \"1s\" }", "is shorter than `first`"),
            ("restart-delay = { first = \"0s\" }", "expected 1ms or more"),
            ("restart-delay = \"1s\"", "expected a table"),
            ("give-up = { failures = 5 }", "`[services.web.give-up]` has no `within`"),
            ("give-up = { failures = 0, within = \"1m\" }", "a whole number from 1 to 10000"),
            ("instances = 0", "a whole number from 1 to 1000"),
            ("instances = 1001", "a whole number from 1 to 1000"),
            ("stop-timeout = \"25h\"", "expected 1d at most"),
            ("stop-timeout = 10", "expected a time with its unit, in quotes"),
            ("user = \"a:b\"", "expected the name or number of a user of the host"),
            ("group = \"\"", "expected the name or number of a group of the host"),
            ("user = -1", "expected a name or a number"),
            ("umask = \"888\"", "octal digits in quotes"),
            ("umask = 27", "octal digits in quotes"),
            ("umask = \"1777\"", "octal digits in quotes"),
            ("nice = 20", "a whole number from -20 to 19"),
            ("oom-score = -1001", "a whole number from -1000 to 1000"),
            ("limits = { nofiles = 1 }", "did you mean `nofile`?"),
            ("limits = { nofile = \"1M\" }", "a whole number or \"unlimited\""),
            ("limits = { core = \"1 MB\" }", "a size such as \"512M\" or \"unlimited\""),
            ("pass-env = [\"A=B\"]", "bad variable `A=B`"),
            ("env-files = [\"env\"]", "an absolute path, or one that begins with `${state}/`"),
            ("env-files = [\"/etc/${nmae}\"]", "did you mean `${name}`?"),
            ("memory-max = \"512\"", "a size from \"1M\" to \"16T\""),
            ("memory-max = \"1MB\"", "a size from \"1M\" to \"16T\""),
            ("pids-max = 0", "a whole number from 1"),
            ("schedule = \"@daily\"", "unknown key `schedule` in `[services.web]`"),
            ("need = [\"a\"]", "did you mean `needs`?"),
        ],
    );
}

#[test]
fn tasks_run_at_the_start_on_a_schedule_or_when_asked() {
    let schedule = |lines: &str| {
        let text = format!("[services.a]\nargv = [\"a\"]\n[tasks.t]\nargv = [\"b\"]\n{lines}\n");
        supervised(&text).tasks.pop().expect("a task").1.task
    };
    let cron = |expression: &str, zone: &str| {
        Schedule::Cron(Cron { expression: expression.to_owned(), zone: zone.to_owned() })
    };
    assert_eq!(schedule("").schedule, Schedule::Start);
    assert_eq!(schedule("on-demand = true").schedule, Schedule::Asked);
    assert_eq!(schedule("every = \"1h\"").schedule, Schedule::Every(3_600_000));
    assert_eq!(schedule("schedule = \"0 3 * * *\"").schedule, cron("0 3 * * *", "UTC"));
    let task = schedule(
        "schedule = \"@daily\"\ntime-zone = \"Europe/Berlin\"\noverlap = \"queue\"\ncatch-up = true\n\
         timeout = \"30m\"\nneeds = [\"a\"]\nstop-signal = \"INT\"\nuser = \"nobody\"\nsuccess = [1]",
    );
    assert_eq!(task.schedule, cron("@daily", "Europe/Berlin"));
    assert_eq!((task.overlap, task.catch_up, task.timeout_ms), (Overlap::Queue, true, Some(1_800_000)));
    assert_eq!(
        (task.needs, task.stop_signal.as_str(), task.success.codes),
        (vec!["a".to_owned()], "SIGINT", vec![1])
    );
    assert_eq!(task.process.user.as_deref(), Some("nobody"));
}

#[test]
fn wrong_tasks_are_told_why() {
    assert_each(
        task_errors,
        &[
            ("schedule = \"0 3 * *\"", "expected five fields"),
            ("schedule = \"0 25 * * *\"", "`25`, hour, is not from 0 to 23"),
            ("schedule = \"@dayly\"", "expected `@daily`"),
            ("schedule = \"@daily\"\nevery = \"1h\"", "both `schedule` and `every`"),
            ("every = \"1h\"\non-demand = true", "both `every` and `on-demand`"),
            ("every = \"10ms\"", "expected 1s or more"),
            ("every = \"1h\"\ntime-zone = \"UTC\"", "only `schedule` names times of day"),
            ("catch-up = true", "only with `schedule` a run can have been missed"),
            ("schedule = \"@daily\"\ntime-zone = \"../etc\"", "expected `UTC`, `local`"),
            ("overlap = \"skp\"", "did you mean `skip`?"),
            ("timeout = \"0s\"", "expected 10ms or more"),
            ("restart = \"never\"", "unknown key `restart` in `[tasks.backup]`"),
            ("needs = [\"backup\"]", "`backup` needs itself"),
        ],
    );
    assert!(errors("[tasks.a]\nargv = [\"a\"]\n").contains("`tasks` without `services`"));
    assert!(errors("command = [\"a\"]\n[logs]\n").contains("`logs` without `services`"));
    assert!(
        errors("[services.a]\nargv = [\"a\"]\n[tasks]\nb = 1\n")
            .contains("write `[tasks.b]` and `argv` below it")
    );
}

#[test]
fn a_name_that_stands_for_an_instance_is_shown_with_the_service() {
    assert_errors(
        "[services.web]\nargv = [\"a\"]\n[services.\"web.1\"]\nargv = [\"a\"]\n",
        "
error: `web.1` stands for an instance of the service `web`
 --> kitbag.toml:3:11
  |
1 | [services.web]
  |           --- the service
2 | argv = [\"a\"]
3 | [services.\"web.1\"]
  |           ^^^^^^^ as `web.0` and so on do, however many run
  |
  = help: rename one of them, such as `web-1`",
    );
    let beside = |other: &str| format!("[services.web]\nargv = [\"a\"]\n{other}\nargv = [\"a\"]\n");
    assert!(
        errors(&beside("[tasks.\"web.12\"]"))
            .contains("`web.12` stands for an instance of the service `web`")
    );
}

#[test]
fn an_unknown_need_is_shown_with_the_one_that_was_meant() {
    assert_errors(
        "[services.web]\nargv = [\"a\"]\nneeds = [\"databse\", \"cache\"]\n[services.database]\nargv = [\"a\"]\n",
        "
error: `web` needs `databse`, which does not exist
 --> kitbag.toml:3:10
  |
3 | needs = [\"databse\", \"cache\"]
  |          ^^^^^^^^^
  |
  = help: did you mean `database`?

error: `web` needs `cache`, which does not exist
 --> kitbag.toml:3:21
  |
3 | needs = [\"databse\", \"cache\"]
  |                     ^^^^^^^ expected `database`",
    );
    assert!(web_errors("needs = [\"x\"]").contains("there is no other service and no task"));
    assert!(web_errors("needs = [\"x\", \"x\"]").contains("the need `x` is given twice"));
}

#[test]
fn a_circle_of_needs_is_named_as_a_whole() {
    assert_errors(
        "[services.web]\nargv = [\"a\"]\nneeds = [\"db\"]\n[services.db]\nargv = [\"a\"]\nneeds = [\"migrate\"]\n\
         [tasks.migrate]\nargv = [\"a\"]\nneeds = [\"web\"]\n[services.other]\nargv = [\"a\"]\nneeds = [\"web\"]\n",
        "
error: services that wait for each other: `db` needs `migrate` needs `web` needs `db`
 --> kitbag.toml:3:10
  |
3 | needs = [\"db\"]
  |          ^^^^
...
6 | needs = [\"migrate\"]
  |          ^^^^^^^^^
...
9 | needs = [\"web\"]
  |          ^^^^^
  |
  = help: leave one of these needs out: none of them could start first",
    );
}

#[test]
fn two_circles_are_two_errors_and_a_long_way_is_none() {
    let service = |name: &str, needs: &str| format!("[services.{name}]\nargv = [\"a\"]\nneeds = [{needs}]\n");
    let two = service("a", "\"b\", \"c\"")
        + &service("b", "\"a\"")
        + &service("c", "\"d\"")
        + &service("d", "\"c\"");
    assert_eq!(errors(&two).matches("wait for each other").count(), 2, "{}", errors(&two));
    let way: String = (0..500).map(|n| service(&format!("s{n}"), &format!("\"s{}\"", n + 1))).collect();
    assert_eq!(errors(&(way + &service("s500", ""))), "");
    let diamond =
        service("a", "\"b\", \"c\"") + &service("b", "\"d\"") + &service("c", "\"d\"") + &service("d", "");
    assert_eq!(errors(&diamond), "");
}

#[test]
fn nothing_waits_for_a_task_of_another_time() {
    let needs = |lines: &str| {
        errors(&format!(
            "[services.a]\nargv = [\"a\"]\nneeds = [\"t\"]\n[tasks.t]\nargv = [\"b\"]\n{lines}\n"
        ))
    };
    assert_eq!(needs(""), "");
    assert!(needs("every = \"1h\"").contains("nothing can wait for task `t`, which runs on a schedule"));
    let asked = needs("on-demand = true");
    assert!(asked.contains("which runs only when somebody asks"), "{asked}");
    assert!(asked.contains("runs once at the start, before what needs it"), "{asked}");
}

#[test]
fn a_service_and_a_task_have_different_names() {
    assert_errors(
        "[services.web]\nargv = [\"a\"]\n[tasks.web]\nargv = [\"b\"]\n",
        "
error: a service and a task are both called `web`
 --> kitbag.toml:3:8
  |
1 | [services.web]
  |           --- the service
2 | argv = [\"a\"]
3 | [tasks.web]
  |        ^^^ the task
  |
  = help: give one of them another name: `needs` and commands know both by it",
    );
}

#[test]
fn logs_go_where_they_are_told() {
    let logs = |lines: &str| supervised(&format!("[services.a]\nargv = [\"a\"]\n[logs]\n{lines}\n")).logs;
    assert_eq!(logs(""), Logs::default());
    assert_eq!(logs("to = \"auto\"").to, LogTo::Auto);
    assert_eq!(logs("to = \"stdout\"").to, LogTo::Stdout);
    let all = logs(
        "to = { files = \"/var/log/app\" }\nformat = \"json\"\nmax-size = \"1MiB\"\nmax-age = \"1day\"\nkeep = 0\n\
         compress = false\nwhen-slow = \"drop\"",
    );
    let expected = Logs {
        to: LogTo::Files("/var/log/app".to_owned()),
        format: LogFormat::Json,
        max_size: 1 << 20,
        max_age_ms: Some(86_400_000),
        keep: 0,
        compress: false,
        when_slow: WhenSlow::Drop,
    };
    assert_eq!(all, expected);
}

#[test]
fn wrong_logs_are_told_why() {
    assert_each(
        |lines| errors(&format!("[services.a]\nargv = [\"a\"]\n[logs]\n{lines}\n")),
        &[
            ("to = \"stdot\"", "did you mean `stdout`?"),
            ("to = \"stdot\"", "expected `auto`, `stdout` or a table `{ files = \"…\" }`"),
            ("to = \"file\"", "write `to = { files = \"${state}/log\" }`"),
            ("to = 1", "expected `\"auto\"`, `\"stdout\"` or a table"),
            ("to = {}", "`[logs.to]` has no `files`"),
            ("to = { files = \"log\" }", "an absolute path, or one that begins with `${state}/`"),
            ("to = { files = \"${tree}/log\" }", "begins with `${state}/`"),
            ("format = \"xml\"", "expected `stamped`, `plain` or `json`"),
            ("max-size = 100", "a size from \"4K\" to \"1T\""),
            ("max-age = \"1ms\"", "expected 1s or more"),
            ("keep = 1001", "a whole number from 0 to 1000"),
            ("compress = \"zstd\"", "expected `true` or `false`"),
            ("when-slow = \"wait\"", "expected `block` or `drop`"),
            ("maxsize = \"1M\"", "did you mean `max-size`?"),
        ],
    );
}

#[test]
fn sizes_and_times_are_read_and_shown() {
    let sizes = [("0", Some(0)), ("4096", Some(4096)), ("16k", Some(16 << 10)), ("2 G", Some(2 << 30))];
    let others = [("1KiB", Some(1024)), ("1kb", None), ("", None), ("M", None), ("1.5M", None), ("-1", None)];
    for (text, expected) in sizes.into_iter().chain(others).chain([("99999999999T", None), ("1iB", None)]) {
        assert_eq!(parse_size(text), expected, "{text}");
    }
    assert_eq!([0, 1000, 4096, 3 << 20].map(shown_size), ["0", "1000", "4K", "3M"]);
    assert_eq!([0, 10, 1_000, 90_000, 86_400_000].map(shown_ms), ["0ms", "10ms", "1s", "90s", "1d"]);
}
