//! The commands about a bundle as scripts type them, and operators at three in the morning.

use std::fs;
use std::time::Duration;

use kitbag_tests::{App, Bundle, eventually};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A bundle of a service that sleeps.
fn sleeper() -> Bundle {
    App::service("sleeps", &[], "stop-timeout = \"5s\"").pack()
}

#[track_caller]
fn is_gone(bundle: &Bundle) {
    assert_eq!(bundle.sandbox.processes(), [0; 0], "left running");
}

// --- Logs ---

#[test]
fn logs_are_found_where_they_were_written_when_nothing_runs_any_more() {
    let more = "restart = \"never\"\n[logs]\nto = { files = \"${env.LOGS}/shop\" }";
    let bundle = App::service("prints", &["20"], more).pack();
    let place = bundle.sandbox.path().join("var");
    bundle.command(["start"]).env("LOGS", &place).run().exits(0);
    eventually(PATIENCE, "it has ended", || bundle.sandbox.processes().is_empty());
    assert!(place.join("shop/web/current").is_file());
    // The variable is not there any more, nor is the default place.
    bundle.run(["logs", "-n", "1", "web"]).exits(0).prints("line 20\n").prints_no("line 19\n");
    let other = bundle.sandbox.path().join("other");
    bundle.command(["start"]).env("LOGS", &other).run().exits(0);
    eventually(PATIENCE, "it has ended", || bundle.sandbox.processes().is_empty());
    fs::remove_dir_all(&place).unwrap();
    bundle.run(["logs", "-n", "1", "web"]).exits(0).prints("line 20\n");
}

#[test]
fn logs_are_found_below_a_state_folder_of_ones_own() {
    let bundle = App::service("prints", &["20"], "restart = \"never\"").pack();
    let state = bundle.sandbox.path().join("elsewhere");
    bundle.command(["start"]).env("KITBAG_STATE", &state).run().exits(0);
    eventually(PATIENCE, "it has ended", || bundle.sandbox.processes().is_empty());
    let logs = bundle.command(["logs", "-n", "1", "web"]).env("KITBAG_STATE", &state).run().exits(0);
    logs.prints("line 20\n");
    bundle.run(["logs"]).exits(9).says("app is not running");
}
