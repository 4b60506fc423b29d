//! Limits by cgroup v2, on a kernel that has its controllers: what meets them, what is said of it, and what is left.

use std::path::Path;

use kitbag_tests::{App, Bundle};

use super::{Machine, compiled, kernel};

/// The kernel says nothing of what it kills, which could stand in the middle of our lines; and what it does not know is for
/// the environment of its first process.
const OPTIONS: &str = "loglevel=1 NO_COLOR=1";

/// Services of the first process.
const SERVICES: &str = r#"
[services.eater]
argv = ["bin/limits", "eat-once", "48"]
memory-max = "24M"
restart = "on-failure"
[services.few]
argv = ["bin/limits", "fork-and-stay", "20"]
pids-max = 5
[services.many]
argv = ["bin/limits", "fork-and-stay", "20"]
[services.bomb]
argv = ["bin/limits", "bomb"]
pids-max = 100
stop-timeout = "300ms"
[services.nest]
argv = ["bin/limits", "nest"]
memory-max = "64M"
[tasks.glutton]
argv = ["bin/limits", "eat", "400"]
memory-max = "1G"
oom-score = 1000
on-demand = true
[services.all]
argv = ["bin/limits", "look-at-all"]
restart = "never"
"#;

/// Those of a bundle that is not.
const INNER: &str = r#"
[services.look]
argv = ["bin/limits", "look", "/sys/fs/cgroup/house"]
memory-max = "16M"
pids-max = 10
restart = "never"
"#;

/// A bundle with `limits.c` and these services.
fn bundle(name: &str, program: &Path, services: &str) -> Bundle {
    let includes = "[[include]]\nfrom = \"tree\"\nto = \".\"\n";
    let manifest = format!("name = \"{name}\"\nversion = \"1\"\n{includes}{services}");
    App::with_manifest(&manifest).program("bin/limits", program).pack()
}

/// Asserts that a machine has printed all of these.
#[track_caller]
fn expect(said: &str, all: &[&str]) {
    for expected in all {
        assert!(said.contains(expected), "`{expected}` in\n{said}");
    }
}

#[test]
fn limits_hold_are_told_and_leave_nothing() {
    let Some(kernel) = kernel() else { return };
    let (_folder, program) = compiled("limits");
    let (init, inner) = (bundle("limits", &program, SERVICES), bundle("inner", &program, INNER));
    let files = [("init", &init), ("inner", &inner)];
    let said = Machine::boot_with(&kernel, &files, "microvm", OPTIONS).until_off();
    // The supervisor is in a leaf, as are services without limits: above it there can be no process but in the root.
    expect(&said, &["all     | service in 0::/kitbag-1\r\n", "all     | supervisor in 0::/kitbag-1\r\n"]);
    expect(&said, &["all     | controllers below: memory pids.\r\n"]);
    // Memory: the status of one that runs again, and the event of its end, tell why it was ended.
    let ended = "was ended by SIGKILL (its cgroup has reached its memory limit)";
    expect(&said, &[&format!("service eater {ended} after "), " s; starting again at once\r\n"]);
    expect(&said, &[&format!("\"how\": \"{ended}\""), "status: 1.\r\n"]);
    expect(&said, &[&format!("{{\"detail\":\"{ended}\",\"event\":\"stopping\"")]);
    expect(&said, &["what ate beside it ended by signal 9\r\n", "stopped: 0.\r\n"]);
    expect(&said, &["task glutton was ended by SIGKILL after "]);
    assert!(!said.contains("has eaten"), "{said}");
    // Processes.
    expect(&said, &["few     | forked 4, then: Resource temporarily unavailable\r\n"]);
    expect(&said, &["many    | forked 20, then: enough\r\n"]);
    expect(&said, &["beside it in 0::/kitbag-1.few\r\n"]);
    expect(&said, &["all     | forked 0, then: Resource temporarily unavailable\r\n"]);
    // A stop.
    expect(&said, &["bombs are there\r\n", "service bomb did not stop within 0.3 s; sending SIGKILL\r\n"]);
    expect(&said, &["bombs: populated 0 frozen 0.\r\n", "what stayed beside it ended by signal 9\r\n"]);
    assert!(!said.contains("keeps its mark") && !said.contains("left behind by services"), "{said}");
    // A supervisor in a service's cgroup.
    expect(&said, &["service nest was ended by SIGKILL after ", "nested again, 2 folders\r\n"]);
    expect(&said, &["nested: 0 folders, populated 0 frozen 0.\r\n"]);
    // Another supervisor, which does not begin in the root.
    expect(&said, &["look | controllers below: memory pids.\r\n"]);
    expect(&said, &["cgroup /sys/fs/cgroup/house has other processes in it; start this in one of its own"]);
    expect(&said, &["look | service in 0::/house\r\n", "look | controllers below: .\r\n"]);
    let left = "inner ended with 0; left: 0 folders, controllers '', no process.\r\n";
    assert_eq!(said.matches(left).count(), 2, "{said}");
    expect(&said, &["all looked at\r\n", "reboot: Power down"]);
}

#[test]
fn a_limit_whose_controller_is_missing_is_named_and_the_others_hold() {
    let Some(kernel) = kernel() else { return };
    let (_folder, program) = compiled("limits");
    let few = "[services.few]\nargv = [\"bin/limits\", \"fork\", \"20\"]\nrestart = \"never\"\n\
               memory-max = \"24M\"\npids-max = 5\n";
    let init = bundle("limits", &program, few);
    let options = format!("{OPTIONS} cgroup_disable=memory");
    let said = Machine::boot_with(&kernel, &[("init", &init)], "microvm", &options).until_off();
    expect(
        &said,
        &[
            "kitbag: some limits do not hold: cgroup /sys/fs/cgroup does not have the controller `memory`\r\n",
            "few | forked 4, then: Resource temporarily unavailable\r\n",
            "service few exited with status 0",
            "reboot: Power down",
        ],
    );
}
