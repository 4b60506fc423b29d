//! Many services at once.

use std::thread;
use std::time::{Duration, Instant};

use crate::harness::{Scene, children, descriptors, eventually, kill, memory, processor_time};

pub fn a_thousand_services_start_and_a_hundred_come_back_and_all_stop() {
    let began = Instant::now();
    let mut app = Scene::new("crowd").start();
    let pid = app.pid();
    eventually("all have been started", || children(pid).len() == 1000);
    let started = began.elapsed();
    let (before, open) = (children(pid), descriptors(pid));
    let began = Instant::now();
    before.iter().step_by(10).for_each(|child| kill(*child, "KILL"));
    eventually("a hundred others run", || {
        let now = children(pid);
        now.len() == 1000 && now.iter().filter(|child| !before.contains(child)).count() == 100
    });
    let restarted = began.elapsed();
    assert!(descriptors(pid) <= open, "{} descriptors, {open} before", descriptors(pid));
    let began = Instant::now();
    app.signal("TERM");
    app.ends_with(0);
    println!("1000 services: started {started:?}, 100 again {restarted:?}, stopped {:?}", began.elapsed());
}

pub fn a_crash_loop_of_many_takes_bounded_time_and_memory() {
    let mut app = Scene::new("crash-loop").argument("200").start();
    let pid = app.pid();
    // Ends are told in order, a line each.
    let wait = |app: &mut crate::harness::Running, count: usize| {
        (0..count).for_each(|_| drop(app.says("exited with status 1")));
    };
    wait(&mut app, 2_000);
    let (before, open, took) = (memory(pid, "VmRSS"), descriptors(pid), processor_time(pid));
    let began = Instant::now();
    wait(&mut app, 10_000);
    let (after, took, passed) = (memory(pid, "VmRSS"), processor_time(pid) - took, began.elapsed());
    println!("10000 crashes in {passed:?}: {took:?} on a processor, {before} kB before, {after} kB after");
    assert!(after <= before + 512, "{before} kB before, {after} kB after");
    assert!(took < Duration::from_millis(10_000), "{took:?} for 10000 starts");
    // A start that is under way has a few more.
    assert!(descriptors(pid) <= open + 8, "{} descriptors, {open} before", descriptors(pid));
    thread::sleep(Duration::from_millis(10));
    app.signal("TERM");
    app.ends_with(0);
}
