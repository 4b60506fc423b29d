//! What of a service's surroundings is asked of the host: env files and users, and what becomes of those that are missing.

use std::fs;

use kitbag_tests::{App, Bundle, root};

/// What `V` is in the process of the service `e`, and in a console beside it.
#[track_caller]
fn both_v(bundle: &Bundle) -> [String; 2] {
    let status = bundle.run(["status", "--json"]);
    let status: serde_json::Value = serde_json::from_str(&status.text()).unwrap();
    let units = status["units"].as_array().unwrap();
    let pid = &units.iter().find(|unit| unit["name"] == "e").unwrap()["pid"];
    let environ = fs::read_to_string(format!("/proc/{pid}/environ")).unwrap();
    let v = environ.split('\0').find_map(|pair| pair.strip_prefix("V=")).unwrap_or("none").to_owned();
    let console = bundle.run(["exec", "e", "--", "sh", "-c", "printf %s $V"]).exits(0).text();
    [v, console]
}

/// Services `e`, with this in its section, and `web`.
fn beside_web(more: &str) -> Bundle {
    let e = format!("\n[services.e]\nargv = [\"bin/sleeps\"]\nstop-timeout = \"5s\"\n{more}");
    let check = "#!/bin/sh\ntest \"$OWN$FROM\" = ownfile\n";
    let app = App::service("sleeps", &[], &format!("stop-timeout = \"5s\"{e}"));
    app.file("bin/check", check).executable("bin/check").pack()
}

#[test]
fn a_restart_reads_env_files_again_and_a_bad_one_fails_its_service_alone() {
    let bundle = beside_web(
        "env-files = [\"${state}/env\"]\nready = { command = { argv = [\"bin/check\"], env = { OWN = \"own\" } } }",
    );
    let state = bundle.sandbox.state();
    let env = state.join("env");
    fs::create_dir_all(&state).unwrap();
    fs::write(&env, "V=1\nOWN=file\nFROM=file\n").unwrap();
    bundle.run(["start"]).exits(0);
    assert_eq!(both_v(&bundle), ["1", "1"]);
    fs::write(&env, "V=2\nOWN=file\nFROM=file\n").unwrap();
    assert_eq!(both_v(&bundle), ["1", "1"], "a console has what the process has");
    bundle.run(["restart", "e"]).exits(0);
    assert_eq!(both_v(&bundle), ["2", "2"]);
    bundle.run(["stop", "e"]).exits(0);
    fs::write(&env, "V=3\n").unwrap();
    bundle.run(["exec", "e", "--", "sh", "-c", "echo $V"]).exits(0).prints("3\n");
    bundle.run(["stop"]).exits(0);
    fs::write(&env, "V=1\nnonsense\n").unwrap();
    let start = bundle.run(["start", "--timeout", "2s"]).exits(10);
    start.says(&format!("could not be started: {}:2: there is no `=`; a line is", env.display()));
    bundle.run(["exec", "e", "--", "true"]).exits(1).says(":2: there is no `=`");
    bundle.run(["wait", "--ready", "web"]).exits(0);
    fs::remove_file(&env).unwrap();
    bundle
        .run(["restart", "--timeout", "1s", "e"])
        .exits(10)
        .says("cannot read the env file")
        .says("; make it, or");
    fs::write(&env, "V=4\nFROM=file\n").unwrap();
    bundle.run(["restart", "e"]).exits(0);
    assert_eq!(both_v(&bundle), ["4", "4"]);
    bundle.run(["stop"]).exits(0);
}

#[test]
fn a_user_that_is_missing_fails_its_service_alone() {
    if !root("another user") {
        return;
    }
    let bundle = beside_web("user = \"nobody-of-this-name\"\nrestart = \"never\"");
    bundle.run(["start"]).exits(7).says("there is no user `nobody-of-this-name` in /etc/passwd; add it");
    bundle.run(["wait", "--ready", "web"]).exits(0);
    bundle.run(["exec", "web", "--", "true"]).exits(0);
    // Not as root, whose place it would take.
    bundle.run(["exec", "e", "--", "true"]).exits(1).says("e cannot be started: there is no user");
    bundle.run(["stop"]).exits(0);
}
