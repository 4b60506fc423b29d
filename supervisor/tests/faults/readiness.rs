//! Services that say that they are ready by a newline, or do not say it.

use crate::harness::{Scene, Supervisor};

pub fn a_newline_is_readiness_and_a_silent_end_of_the_pipe_is_not() {
    let mut app = Scene::new("newline").argument("printf 'not yet' >&7; echo >&7; exec sleep 1000").start();
    app.prints("next | needs are met");
    app.stops(Supervisor::Kitbag);
    let mut app = Scene::new("newline").argument("printf 'not yet' >&7; exec 7>&-; exec sleep 1000").start();
    let sentence = app.says("web was not ready within 0.5 s");
    assert!(sentence.contains("it closed its readiness descriptor without a newline"), "{sentence}");
    app.says("service next is not started");
    app.ends_with(7);
}
