//! Logs with real pipes, real files and real failures.

use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kitbag_supervisor::logs::files::Settings as Files;
use kitbag_supervisor::logs::format::LogFormat;
use kitbag_supervisor::logs::lines::{Batch, LONGEST_LINE, Stream};
use kitbag_supervisor::logs::reader::{Entry, Reader};
use kitbag_supervisor::logs::sink::Sink;
use kitbag_supervisor::logs::{Logs, PARTIAL_AFTER, Settings};
use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

#[path = "common/numbers.rs"]
mod numbers;
use numbers::Numbers;

/// Long enough for a loaded machine; a test that needs it has failed.
const DEADLINE: Duration = Duration::from_secs(20);

/// Logs of some units in a folder of its own, with a clock that only this test sets.
struct App {
    folder: tempfile::TempDir,
    logs: Logs,
    settings: Files,
    writers: Vec<[fs::File; 2]>,
    now: u64,
}

impl App {
    fn new(format: LogFormat, change: impl FnOnce(&mut Files)) -> Self {
        Self::of(1, format, change)
    }

    fn of(units: usize, format: LogFormat, change: impl FnOnce(&mut Files)) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut settings = Files {
            folder: folder.path().join("log"),
            state: None,
            guarded: false,
            format,
            max_size: 1 << 30,
            max_age: None,
            keep: 1000,
            compress: false,
        };
        change(&mut settings);
        let logs = Self::start(&settings);
        let mut app = Self { folder, logs, settings, writers: Vec::new(), now: 0 };
        app.open(units);
        app
    }

    fn start(settings: &Files) -> Logs {
        Logs::new(Settings { quiet: true, files: Some(settings.clone()), ..Settings::default() })
            .expect("epoll")
    }

    fn open(&mut self, units: usize) {
        self.writers.clear();
        for unit in 0..units {
            self.logs.add_unit(unit, &name(unit));
            let own = |end: std::os::fd::BorrowedFd<'_>| end.try_clone_to_owned().expect("a descriptor");
            let ends: [OwnedFd; 2] = self.logs.open(unit).expect("pipes").map(own);
            self.writers.push(ends.map(fs::File::from));
        }
    }

    /// As if the supervisor had been killed, and started again.
    fn restart(&mut self) {
        let units = self.writers.len();
        self.logs = Self::start(&self.settings);
        self.open(units);
    }

    fn print(&mut self, text: impl AsRef<[u8]>) {
        self.print_to(0, Stream::Out, text);
    }

    fn print_to(&mut self, unit: usize, stream: Stream, text: impl AsRef<[u8]>) {
        // A pipe that nobody reads meanwhile has room for so much.
        for piece in text.as_ref().chunks(60_000) {
            self.writers[unit][stream as usize].write_all(piece).expect("a pipe with room");
            self.serve();
        }
    }

    /// Until nothing is ready.
    fn serve(&mut self) {
        while {
            self.logs.serve(self.now);
            poll(&mut [PollFd::new(self.logs.fd().as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO) == Ok(1)
        } {}
    }

    fn wait(&mut self, time: u64) {
        self.now += time;
        self.serve();
    }

    fn unit(&self) -> PathBuf {
        self.settings.folder.join("web")
    }

    fn current(&self) -> String {
        String::from_utf8(fs::read(self.unit().join("current")).expect("a log")).expect("UTF-8")
    }

    /// Names of rotated files, oldest first.
    fn rotated(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.unit())
            .expect("a folder")
            .map(|entry| entry.expect("readable").file_name().into_string().expect("UTF-8"))
            .filter(|name| name != "current")
            .collect();
        names.sort();
        names
    }

    fn last(&self, count: usize) -> Vec<String> {
        let mut reader = Reader::new(&self.settings.folder, &["web"], self.settings.format);
        texts(reader.last(count).expect("readable"))
    }

    /// What the supervisor has said.
    fn said(&self) -> String {
        let own = self.settings.folder.join("_kitbag/current");
        String::from_utf8(fs::read(own).unwrap_or_default()).expect("UTF-8")
    }

    /// Waits for the compressors.
    fn compress(&mut self) {
        let until = Instant::now() + DEADLINE;
        loop {
            let Some(pid) = self.logs.children().next() else { return };
            match waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(_, status)) => {
                    assert!(self.logs.child_ended(pid, status == 0, self.now));
                }
                other => {
                    assert!(Instant::now() < until, "the compressor does not end: {other:?}");
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
        }
    }
}

fn name(unit: usize) -> String {
    if unit == 0 { "web".to_owned() } else { format!("web.{unit}") }
}

fn texts(entries: Vec<Entry>) -> Vec<String> {
    entries.into_iter().map(|entry| String::from_utf8(entry.text).expect("UTF-8")).collect()
}

fn lines(from: usize, to: usize) -> String {
    (from..to).map(|number| format!("line {number}\n")).collect()
}

#[test]
fn a_line_has_its_time_and_its_stream() {
    let mut app = App::new(LogFormat::Stamped, |_| {});
    app.print("hello\n");
    app.print_to(0, Stream::Err, "oops\n");
    let log = app.current();
    let marks: Vec<&str> = log.lines().map(|line| &line[27..]).collect();
    assert_eq!(marks, [" | hello", " ! oops"], "{log}");
    assert!(log.lines().all(|line| line[..27].ends_with('Z') && line.starts_with("20")), "{log}");
}

#[test]
fn a_state_folder_that_is_gone_is_made_again_for_its_user_alone() {
    let mut app = App::new(LogFormat::Plain, |files| {
        let state = files.folder.join("state");
        files.folder = state.join("log");
        files.state = Some(state);
    });
    app.print("hello\n");
    assert_eq!(app.current(), "hello\n");
    let state = app.settings.state.clone().expect("set above");
    for folder in [state.clone(), state.join(".kitbag")] {
        assert_eq!(fs::metadata(&folder).expect("it is made").mode() & 0o777, 0o700, "{}", folder.display());
    }
}

#[test]
fn plain_is_what_was_printed_whatever_it_is() {
    let mut app = App::new(LogFormat::Plain, |_| {});
    let bytes: Vec<u8> = (0..60_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    app.print(&bytes);
    app.print("\n");
    let log = fs::read(app.unit().join("current")).expect("a log");
    assert!(log == [&bytes[..], b"\n"].concat());
}

#[test]
fn json_lines_are_objects_with_what_was_printed() {
    let mut app = App::new(LogFormat::Json, |_| {});
    app.print(b"say \"hi\"\\ \xff\x00\n");
    let value: serde_json::Value = serde_json::from_str(&app.current()).expect("one object");
    assert_eq!(value["text"], "say \"hi\"\\ \u{fffd}\0");
    assert_eq!(value["invalid"], true);
    assert_eq!(value["service"], "web");
    assert_eq!(app.last(1), ["say \"hi\"\\ \u{fffd}\0"]);
}

#[test]
fn half_a_line_comes_after_two_seconds_and_its_rest_is_marked() {
    let mut app = App::new(LogFormat::Stamped, |_| {});
    app.print("Password: ");
    assert_eq!(app.logs.deadline(), Some(PARTIAL_AFTER));
    app.wait(PARTIAL_AFTER - 1);
    assert!(!app.unit().join("current").exists());
    app.wait(1);
    assert!(app.current().ends_with(" | Password: \n"), "{}", app.current());
    app.print("wrong\nnext\n");
    assert!(
        app.current().contains(" |+ wrong\n") && app.current().ends_with(" | next\n"),
        "{}",
        app.current()
    );
    assert_eq!(app.logs.deadline(), None);
}

#[test]
fn half_a_line_that_grows_comes_after_two_seconds_too() {
    let mut app = App::new(LogFormat::Stamped, |_| {});
    app.print("whole\n.");
    for _ in 0..5 {
        app.wait(PARTIAL_AFTER / 2);
        app.print(".");
    }
    let log = app.current();
    let marks: Vec<&str> = log.lines().map(|line| &line[27..]).collect();
    assert_eq!(marks, [" | whole", " | ..", " |+ .."], "{log}");
    assert_eq!(app.logs.deadline(), Some(app.now + PARTIAL_AFTER / 2));
}

#[test]
fn half_a_line_comes_when_its_process_ends() {
    let mut app = App::new(LogFormat::Stamped, |_| {});
    app.print("half");
    app.logs.ended(0, 0);
    assert!(app.current().ends_with(" | half\n"));
    app.print("whole\n");
    assert!(app.current().ends_with(" | whole\n"), "a restart begins a line: {}", app.current());
}

#[test]
fn a_long_line_is_cut_and_marked_and_nothing_is_missing() {
    let mut app = App::new(LogFormat::Stamped, |_| {});
    let long = "x".repeat(3 * LONGEST_LINE + 5);
    app.print(format!("{long}\nnext\n"));
    let mut reader = Reader::new(&app.settings.folder, &["web"], LogFormat::Stamped);
    let entries = reader.last(10).expect("readable");
    let continued: Vec<bool> = entries.iter().map(|entry| entry.continued).collect();
    assert_eq!(continued, [false, true, true, true, false]);
    assert_eq!(texts(entries)[..4].concat(), long);
}

#[test]
fn files_are_rotated_by_size_at_the_end_of_a_line_and_kept_in_number() {
    let mut app = App::new(LogFormat::Plain, |files| (files.max_size, files.keep) = (1000, 3));
    app.print(lines(0, 1000));
    let rotated = app.rotated();
    assert_eq!(rotated.len(), 3, "{rotated:?}");
    for name in &rotated {
        let log = fs::read_to_string(app.unit().join(name)).expect("a log");
        assert!(log.len() <= 1000 && log.len() > 980 && log.ends_with('\n'), "{name}: {}", log.len());
    }
    let all: String =
        rotated.iter().map(|name| fs::read_to_string(app.unit().join(name)).expect("a log")).collect();
    let all = all + &app.current();
    assert!(lines(0, 1000).ends_with(&all) && all.starts_with("line "));
}

#[test]
fn a_file_is_rotated_when_it_is_old() {
    let mut app = App::new(LogFormat::Plain, |files| files.max_age = Some(60_000));
    app.print("old\n");
    let at = app.logs.deadline().expect("an age");
    assert!((50_000..=60_000).contains(&at), "{at}");
    app.now = at;
    app.serve();
    assert_eq!(app.rotated().len(), 1);
    app.print("new\n");
    assert_eq!(app.current(), "new\n");
    assert_eq!(app.last(9), ["old", "new"]);
}

#[test]
fn a_clock_that_was_set_back_overwrites_nothing_and_keeps_the_order() {
    let mut app = App::new(LogFormat::Plain, |files| files.max_size = 20);
    fs::create_dir_all(app.unit()).expect("a folder");
    let future = "2999-12-31T23-59-59.999999Z.log";
    fs::write(app.unit().join(future), "from the future\n").expect("writable");
    app.print(lines(0, 10));
    let rotated = app.rotated();
    assert_eq!(rotated[0], future);
    assert_eq!(rotated[1], "3000-01-01T00-00-00.000000Z.log");
    let expected: Vec<String> =
        std::iter::once("from the future".into()).chain((0..10).map(|n| format!("line {n}"))).collect();
    assert_eq!(app.last(99), expected);
}

#[test]
fn rotated_files_are_compressed_and_still_read() {
    let mut app = App::new(LogFormat::Stamped, |files| (files.max_size, files.compress) = (100_000, true));
    for part in 0..20 {
        app.print(lines(part * 1000, part * 1000 + 1000));
    }
    app.compress();
    let rotated = app.rotated();
    assert!(rotated.len() >= 6 && rotated.iter().all(|name| name.ends_with(".log.zst")), "{rotated:?}");
    let size = |name: &String| fs::metadata(app.unit().join(name)).expect("there").len();
    assert!(
        rotated.iter().all(|name| size(name) < 40_000),
        "{:?}",
        rotated.iter().map(size).collect::<Vec<_>>()
    );
    assert_eq!(app.last(99_999).join("\n") + "\n", lines(0, 20_000));
    assert_eq!(app.last(7).join("\n") + "\n", lines(19_993, 20_000));
}

#[test]
fn what_a_killed_compressor_left_is_cleared_away_and_compressed() {
    let mut app = App::new(LogFormat::Stamped, |files| files.compress = true);
    fs::create_dir_all(app.unit()).expect("a folder");
    let stem = "2026-01-01T00-00-00.000000Z.log";
    let stamp = "2026-01-01T00:00:00.000000Z | old\n";
    fs::write(app.unit().join(stem), stamp).expect("writable");
    fs::write(app.unit().join(format!("{stem}.zst.part")), "half").expect("writable");
    app.print("new\n");
    app.compress();
    app.print("newer\n");
    app.compress();
    assert_eq!(app.rotated(), [format!("{stem}.zst")]);
    assert_eq!(app.last(9), ["old", "new", "newer"]);
}

#[test]
fn a_compression_that_failed_is_tried_again_whatever_happens_meanwhile() {
    let mut app = App::new(LogFormat::Plain, |files| (files.compress, files.max_age) = (true, Some(30_000)));
    let stem = app.unit().join("2026-01-01T00-00-00.000000Z.log");
    let in_the_way = stem.with_extension("log.zst.part");
    fs::create_dir_all(&in_the_way).expect("a folder");
    fs::write(&stem, "old\n").expect("writable");
    app.print("new\n");
    app.compress();
    assert!(stem.exists(), "it failed");
    // Its age.
    app.wait(30_000);
    assert_eq!(app.logs.deadline(), Some(60_000));
    fs::remove_dir(&in_the_way).expect("removable");
    app.wait(30_000);
    app.compress();
    let rotated = app.rotated();
    assert!(rotated.len() == 2 && rotated.iter().all(|name| name.ends_with(".zst")), "{rotated:?}");
}

#[test]
fn a_killed_supervisors_file_is_continued_and_its_torn_line_ended() {
    let mut app = App::new(LogFormat::Plain, |_| {});
    app.print("one\n");
    let current = app.unit().join("current");
    fs::OpenOptions::new().append(true).open(&current).expect("a log").write_all(b"to").expect("writable");
    app.restart();
    app.print("two\n");
    assert_eq!(app.current(), "one\nto\ntwo\n");
    assert!(app.rotated().is_empty());
}

#[test]
fn a_folder_that_was_removed_is_made_again() {
    let mut app = App::new(LogFormat::Plain, |_| {});
    app.print("one\n");
    fs::remove_dir_all(&app.settings.folder).expect("removable");
    app.print("two\n");
    assert_eq!(app.current(), "two\n");
}

#[test]
fn a_file_that_was_moved_away_is_followed_by_a_new_one_and_no_line_is_lost() {
    let mut app = App::new(LogFormat::Plain, |files| files.max_size = 50);
    app.print(lines(0, 3));
    fs::rename(app.unit().join("current"), app.unit().join("old")).expect("movable");
    for number in 3..10 {
        app.print(lines(number, number + 1));
        app.wait(2_000);
    }
    let old = fs::read_to_string(app.unit().join("old")).expect("a log");
    assert_eq!(old + &app.current(), lines(0, 10));
    assert_eq!(app.said(), "");
}

#[test]
fn a_folder_that_cannot_be_made_is_said_once_and_lines_are_counted_until_it_can() {
    let mut app = App::new(LogFormat::Plain, |_| {});
    fs::create_dir_all(&app.settings.folder).expect("a folder");
    fs::write(app.unit(), "a file in its place").expect("writable");
    for _ in 0..3 {
        app.print("lost\nlost\n");
        app.wait(1_500);
    }
    assert_eq!(app.said().matches("cannot write the log").count(), 1, "{}", app.said());
    fs::remove_file(app.unit()).expect("removable");
    app.wait(1_500);
    assert_eq!(app.current(), "kitbag: 6 lines (30 bytes) were lost here: File exists\n");
    app.print("kept\n");
    assert!(app.said().contains("logs can be written again; 6 lines were lost"), "{}", app.said());
    assert!(app.current().ends_with("lost here: File exists\nkept\n"));
    app.wait(60_000);
    assert_eq!(app.logs.deadline(), None);
}

#[test]
fn a_unit_that_is_added_again_or_prints_no_more_is_not_in_trouble_for_ever() {
    let mut app = App::new(LogFormat::Plain, |_| {});
    fs::create_dir_all(&app.settings.folder).expect("a folder");
    fs::write(app.unit(), "a file in its place").expect("writable");
    app.print("lost\n");
    app.logs.add_unit(0, "web");
    fs::remove_file(app.unit()).expect("removable");
    app.wait(1_500);
    assert_eq!(app.current(), "kitbag: 1 lines (5 bytes) were lost here: File exists\n");
    app.wait(60_000);
    assert_eq!(
        app.said().matches("logs can be written again; 1 lines were lost").count(),
        1,
        "{}",
        app.said()
    );
    assert_eq!(app.logs.deadline(), None);
}

/// Runs the test of this name again, alone, with a limit on the size of files, 32 KB: what a full disk is to write(2), EFBIG
/// instead of ENOSPC. True in there.
fn has_a_small_disk(test: &str) -> bool {
    const INSIDE: &str = "KITBAG_TEST_FULL";
    if std::env::var_os(INSIDE).is_none() {
        let me = std::env::current_exe().expect("a name");
        // dash counts blocks of 512 bytes. SIGXFSZ is ignored, as the supervisor blocks it.
        let script =
            format!("trap '' XFSZ; ulimit -S -f 64; exec '{}' --exact {test} --nocapture", me.display());
        let output = std::process::Command::new("/bin/sh").args(["-c", &script]).env(INSIDE, "1").output();
        let output = output.expect("a shell");
        assert!(
            output.status.success(),
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        return false;
    }
    true
}

#[test]
fn a_disk_with_room_for_the_count_alone_is_said_to_be_full_once() {
    if !has_a_small_disk("a_disk_with_room_for_the_count_alone_is_said_to_be_full_once") {
        return;
    }
    let mut app = App::new(LogFormat::Plain, |_| {});
    let long = "x".repeat(5_000) + "\n";
    for _ in 0..12 {
        app.print(&long);
        app.wait(1_500);
    }
    assert!(app.current().matches("1 lines (5001 bytes) were lost here").count() >= 5);
    assert_eq!(app.said().matches("cannot write the log").count(), 1, "{}", app.said());
    assert!(!app.said().contains("written again"), "{}", app.said());
    fs::write(app.unit().join("current"), "").expect("emptied");
    app.wait(1_500);
    app.print(&long);
    assert_eq!(app.said().matches("logs can be written again; ").count(), 1, "{}", app.said());
}

#[test]
fn a_full_disk_is_survived_said_once_and_resumed() {
    if !has_a_small_disk("a_full_disk_is_survived_said_once_and_resumed") {
        return;
    }
    let mut app = App::new(LogFormat::Plain, |_| {});
    for part in 0..10 {
        app.print(lines(part * 1000, part * 1000 + 1000));
    }
    let kept = app.current();
    assert!(
        kept.len() <= 32_768 && kept.ends_with('\n') && lines(0, 10_000).starts_with(&kept),
        "{}",
        kept.len()
    );
    // Somebody makes room.
    fs::OpenOptions::new()
        .write(true)
        .open(app.unit().join("current"))
        .expect("a log")
        .set_len(0)
        .expect("emptied");
    app.wait(2_000);
    let lost = 10_000 - kept.lines().count();
    let bytes = lines(0, 10_000).len() - kept.len();
    assert_eq!(
        app.current(),
        format!("kitbag: {lost} lines ({bytes} bytes) were lost here: File too large\n")
    );
    app.print("after\n");
    assert!(app.current().ends_with("\nafter\n"));
    assert_eq!(app.said().matches("cannot write the log").count(), 1);
    assert_eq!(app.said().matches(&format!("{lost} lines were lost")).count(), 1, "{}", app.said());
}

#[test]
fn a_flood_is_there_to_the_last_byte_while_others_are_heard() {
    const MEGABYTES: usize = 256;
    let mut app = App::of(2, LogFormat::Plain, |files| (files.max_size, files.keep) = (64 << 20, 99));
    let mut out = app.writers[0][0].try_clone().expect("a descriptor");
    let flood = std::thread::spawn(move || {
        let line = [&[b'x'; 99][..], b"\n"].concat();
        let piece = line.repeat(10_486);
        for _ in 0..MEGABYTES {
            out.write_all(&piece).expect("somebody reads");
        }
        piece.len() * MEGABYTES
    });
    let (mut turns, mut longest) = (0, 0);
    while !flood.is_finished() {
        poll(&mut [PollFd::new(app.logs.fd().as_fd(), PollFlags::POLLIN)], PollTimeout::from(100_u8))
            .expect("polled");
        if turns % 64 == 0 {
            writeln!(app.writers[1][0], "heard {turns}").expect("a pipe with room");
        }
        app.logs.serve(app.now);
        turns += 1;
        // Turns until the other unit's line is written.
        let heard = fs::read_to_string(app.settings.folder.join("web.1/current")).unwrap_or_default();
        let last = heard
            .lines()
            .last()
            .and_then(|line| line.strip_prefix("heard "))
            .map_or(0, |n| n.parse().unwrap_or(0));
        longest = longest.max(turns - last);
    }
    app.serve();
    let expected = flood.join().expect("a flood");
    let size = |name: String| fs::metadata(app.unit().join(name)).expect("there").len();
    let total: u64 = app.rotated().into_iter().map(size).sum::<u64>() + app.current().len() as u64;
    assert_eq!(total, expected as u64);
    assert!(longest <= 130, "another unit waited for {longest} turns");
}

/// 64,000 bytes fill a pipe of 64 KB: its last page has room for the next write's first bytes alone.
#[test]
fn a_pipe_that_was_full_gets_large_and_one_that_was_not_stays() {
    let mut app = App::of(2, LogFormat::Plain, |_| {});
    let size = |app: &App, unit: usize| fcntl(&app.writers[unit][0], FcntlArg::F_GETPIPE_SZ);
    app.print_to(0, Stream::Out, [b'\n'; 64_000]);
    app.print_to(1, Stream::Out, [b'\n'; 16_000]);
    assert_eq!((size(&app, 0), size(&app, 1)), (Ok(1 << 20), Ok(64 * 1024)));
}

#[test]
fn a_thousand_units_with_half_lines_need_little_memory() {
    let mut app = App::of(1000, LogFormat::Plain, |_| {});
    let memory = |()| {
        let status = fs::read_to_string("/proc/self/statm").expect("a /proc");
        status.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).expect("pages") * 4096
    };
    let before = memory(());
    let half = vec![b'y'; LONGEST_LINE - 1];
    for unit in 0..1000 {
        app.print_to(unit, Stream::Out, &half);
        app.print_to(unit, Stream::Err, &half);
    }
    let grown = memory(()).saturating_sub(before);
    // Other tests run in this process, too.
    assert!(grown < 16 << 20, "{grown}");
    for unit in 0..1000 {
        app.print_to(unit, Stream::Out, "\n");
        app.print_to(unit, Stream::Err, "\n");
    }
    for unit in 0..1000 {
        let log = fs::read(app.settings.folder.join(name(unit)).join("current")).expect("a log");
        assert_eq!(log.iter().filter(|byte| **byte == b'y').count(), 2 * half.len(), "unit {unit}");
    }
}

#[test]
fn a_removed_unit_leaves_nothing_unwritten_and_can_come_back() {
    let mut app = App::of(2, LogFormat::Plain, |_| {});
    writeln!(app.writers[1][0], "last\nwords").expect("a pipe with room");
    app.logs.remove_unit(1, 0);
    let current = app.settings.folder.join("web.1/current");
    assert_eq!(fs::read_to_string(&current).expect("a log"), "last\nwords\n");
    assert!(app.writers[1][0].write_all(b"x").is_err(), "its pipe is closed");
    assert_eq!(app.logs.open(1).err(), Some(nix::errno::Errno::ENOENT));
    app.logs.add_unit(1, "web.1");
    let end = app.logs.open(1).expect("pipes")[0].try_clone_to_owned().expect("a descriptor");
    fs::File::from(end).write_all(b"again\n").expect("a pipe with room");
    app.serve();
    assert_eq!(fs::read_to_string(&current).expect("a log"), "last\nwords\nagain\n");
}

/// A destination that is full until it is told otherwise, and the lines that it has got, `+` before a continuation.
#[derive(Debug, Clone, Default)]
struct Slow(Arc<Mutex<(bool, Vec<String>)>>);

impl Sink for Slow {
    fn add(&mut self, _unit: usize, _name: &str) {}

    fn remove(&mut self, _unit: usize, _now: u64) {}

    fn take(&mut self, batch: &Batch<'_>, _now: u64) {
        let mut kept = self.0.lock().expect("no panic");
        for (line, continued) in batch.lines() {
            kept.1.push(format!("{}{}", if continued { "+" } else { "" }, String::from_utf8_lossy(line)));
        }
    }

    fn flush(&mut self, _now: u64) -> bool {
        false
    }

    fn is_full(&self) -> bool {
        self.0.lock().expect("no panic").0
    }
}

impl Slow {
    /// Full, with one unit that writes there.
    fn full() -> (Self, Logs, fs::File) {
        let slow = Self::default();
        slow.set(true);
        let mut logs = Logs::new(Settings { quiet: true, ..Settings::default() }).expect("epoll");
        logs.add_sink(Box::new(slow.clone()));
        logs.add_unit(0, "web");
        let end = logs.open(0).expect("pipes")[0].try_clone_to_owned().expect("a descriptor");
        (slow, logs, end.into())
    }

    fn set(&self, full: bool) {
        self.0.lock().expect("no panic").0 = full;
    }

    fn lines(&self) -> Vec<String> {
        self.0.lock().expect("no panic").1.clone()
    }
}

#[test]
fn a_full_destination_gets_the_last_words_of_a_unit_that_is_removed() {
    let (slow, mut logs, mut out) = Slow::full();
    let text = lines(0, 6_000);
    out.write_all(text.as_bytes()).expect("a pipe with room");
    out.write_all(b"half").expect("a pipe with room");
    logs.ended(0, 0);
    assert_eq!(slow.lines().len(), 0, "it is full");
    logs.remove_unit(0, 0);
    assert!(slow.lines().join("\n") == text + "half", "{} lines", slow.lines().len());
}

#[test]
fn runs_that_a_full_destination_has_to_wait_for_stay_apart() {
    let (slow, mut logs, mut out) = Slow::full();
    for run in ["one\nhalf", "two\n", "", "a third"] {
        out.write_all(run.as_bytes()).expect("a pipe with room");
        logs.ended(0, 0);
    }
    out.write_all(b"next\n").expect("a pipe with room");
    logs.serve(0);
    assert_eq!(slow.lines().len(), 0, "it is full");
    slow.set(false);
    (0..10).for_each(|_| _ = logs.serve(0));
    assert_eq!(slow.lines(), ["one", "half", "two", "a third", "next"]);
}

#[test]
fn a_reader_merges_units_by_time() {
    let mut app = App::of(3, LogFormat::Stamped, |_| {});
    for number in 0..30 {
        app.print_to(number % 3, Stream::Out, format!("{number}\n"));
    }
    let mut reader =
        Reader::new(&app.settings.folder, &["web", "web.1", "web.2", "none"], LogFormat::Stamped);
    let entries = reader.last(10).expect("readable");
    let expected: Vec<String> = (20..30).map(|number| number.to_string()).collect();
    assert_eq!(entries.iter().map(|entry| entry.unit).collect::<Vec<_>>(), [2, 0, 1, 2, 0, 1, 2, 0, 1, 2]);
    assert_eq!(texts(entries), expected);
    app.print_to(1, Stream::Err, "next\n");
    let next = reader.more().expect("readable");
    assert_eq!((next[0].unit, next[0].stream, &next[0].text[..]), (1, Stream::Err, &b"next"[..]));
    assert!(reader.more().expect("readable").is_empty());
}

#[test]
fn files_that_cannot_be_read_are_told_in_their_place_and_hold_nobody_up() {
    let app = App::of(2, LogFormat::Stamped, |_| {});
    let folder = app.settings.folder.clone();
    let [web, other] = ["web", "web.1"].map(|name| folder.join(name));
    for folder in [&web, &other] {
        fs::create_dir_all(folder).expect("a folder");
    }
    let pipe = other.join("current");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    let damaged = web.join("2026-01-01T00-00-00.000000Z.log.zst");
    fs::write(&damaged, "no frame").expect("writable");
    fs::write(web.join("current"), "2026-01-02T00:00:00.000000Z | hello\n").expect("writable");
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut reader = Reader::new(&folder, &["web", "web.1"], LogFormat::Stamped);
        reader.follow(&folder);
        let last = texts(reader.last(10).expect("readable"));
        let more = texts(reader.more().expect("readable"));
        let _ = tell.send((last, more, reader.is_whole()));
    });
    let (last, more, is_whole) = told.recv_timeout(DEADLINE).expect("it waits for nobody");
    let cannot = |path: &Path| format!("kitbag: cannot read {}: ", path.display());
    assert!(last[0].starts_with(&cannot(&damaged)), "{last:?}");
    assert_eq!(last[1..], ["hello".to_owned(), cannot(&pipe) + "it is no regular file"]);
    assert!(more.is_empty() && !is_whole, "it is told once: {more:?}");
}

#[test]
fn a_reader_that_is_asked_once_keeps_no_file_open() {
    let mut app = App::of(20, LogFormat::Plain, |_| {});
    (0..20).for_each(|unit| app.print_to(unit, Stream::Out, "x\n"));
    let names: Vec<String> = (0..20).map(name).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let open = |folder: &Path| {
        let links = fs::read_dir("/proc/self/fd").expect("a /proc").flatten();
        links.filter(|link| fs::read_link(link.path()).is_ok_and(|to| to.starts_with(folder))).count()
    };
    let folder = &app.settings.folder;
    let before = open(folder);
    let mut reader = Reader::new(folder, &names, LogFormat::Plain);
    reader.once();
    assert_eq!(reader.last(100).expect("readable").len(), 20);
    assert_eq!(open(folder), before);
    drop(reader);
}

#[test]
fn a_reader_follows_over_rotations_and_misses_nothing() {
    let mut app = App::new(LogFormat::Plain, |files| (files.max_size, files.compress) = (500, true));
    let mut reader = Reader::new(&app.settings.folder, &["web"], LogFormat::Plain);
    assert!(reader.last(10).expect("readable").is_empty());
    let mut seen = Vec::new();
    for part in 0..20 {
        // Sometimes none, sometimes several rotations between two looks.
        app.print(lines(part * 100, part * 100 + if part % 3 == 0 { 3 } else { 100 }));
        if part % 4 == 0 {
            app.compress();
        }
        seen.extend(texts(reader.more().expect("readable")));
    }
    app.compress();
    assert_eq!(seen, app.last(usize::MAX - 1));
    assert_eq!(seen.len(), 7 * 3 + 13 * 100);
}

#[test]
fn a_follower_misses_nothing_that_was_compressed_or_removed_since_it_was_rotated() {
    let mut app = App::new(LogFormat::Plain, |files| {
        (files.max_size, files.keep, files.compress) = (500, 3, true);
    });
    app.print("begin\n");
    let mut reader = Reader::new(&app.settings.folder, &["web"], LogFormat::Plain);
    reader.follow(&app.settings.folder);
    assert_eq!(texts(reader.last(9).expect("readable")), ["begin"]);
    let mut seen = Vec::new();
    for part in 0..100 {
        // Three files, of which the oldest goes with the next ones.
        app.print(lines(part * 100, part * 100 + 100));
        if part % 4 == 0 {
            app.compress();
        }
        seen.extend(texts(reader.more().expect("readable")));
    }
    assert_eq!(seen.join("\n") + "\n", lines(0, 10_000));
}

#[test]
fn a_follower_is_told_how_many_files_went_before_it_could_read_them() {
    for format in [LogFormat::Plain, LogFormat::Stamped, LogFormat::Json] {
        let mut app = App::new(format, |files| (files.max_size, files.keep) = (2000, 2));
        app.print("begin\n");
        let mut reader = Reader::new(&app.settings.folder, &["web"], format);
        reader.follow(&app.settings.folder);
        reader.last(0).expect("readable");
        let mut files = 0;
        let mut known = app.rotated();
        for number in 0..2_000 {
            app.print(lines(number, number + 1));
            let now = app.rotated();
            files += usize::from(now != known);
            known = now;
        }
        let seen = reader.more().expect("readable");
        // The first one was open, the last two are kept.
        let missed = format!("kitbag: {} files of this log went here", files - 3);
        let notes = seen.iter().filter(|entry| entry.text.starts_with(missed.as_bytes())).count();
        assert!(notes == 1 && files > 5, "{missed}: {notes}");
        let numbers: Vec<usize> = texts(seen)
            .iter()
            .filter_map(|text| text.strip_prefix("line ").and_then(|number| number.parse().ok()))
            .collect();
        assert_eq!((numbers[0], numbers.last()), (0, Some(&1_999)));
        assert_eq!(numbers.windows(2).filter(|two| two[1] != two[0] + 1).count(), 1, "one gap");
        assert!(reader.more().expect("readable").is_empty());
        // Lines that were read at one time have one time; files are rotated while they are written.
        app.print(lines(2_000, 4_000));
        let texts = texts(reader.more().expect("readable"));
        let note = texts.iter().position(|text| text.starts_with("kitbag: ")).expect("a note");
        let number = |at: usize| texts[at].strip_prefix("line ").and_then(|number| number.parse().ok());
        assert!(number(note + 1) > number(note - 1).map(|last: usize| last + 1), "it stands in the gap");
    }
}

#[test]
fn who_prints_for_the_first_time_is_followed_from_its_first_file() {
    let mut app = App::new(LogFormat::Plain, |files| files.max_size = 500);
    let mut reader = Reader::new(&app.settings.folder, &[], LogFormat::Plain);
    reader.follow(&app.settings.folder);
    reader.last(10).expect("readable");
    app.print(lines(0, 1000));
    assert!(app.rotated().len() > 10);
    reader.add(&app.settings.folder, "web");
    assert_eq!(texts(reader.more().expect("readable")).join("\n") + "\n", lines(0, 1000));
}

#[test]
fn a_follower_goes_on_where_a_folder_was_removed_and_comes_back() {
    let mut app = App::new(LogFormat::Plain, |files| files.max_size = 500);
    app.print("begin\n");
    let mut reader = Reader::new(&app.settings.folder, &["web"], LogFormat::Plain);
    reader.follow(&app.settings.folder);
    reader.last(0).expect("readable");
    fs::remove_dir_all(&app.settings.folder).expect("removable");
    reader.more().expect("readable");
    app.print(lines(0, 200));
    assert_eq!(texts(reader.more().expect("readable")).join("\n") + "\n", lines(0, 200));
    app.print(lines(200, 400));
    assert_eq!(texts(reader.more().expect("readable")).join("\n") + "\n", lines(200, 400));
}

#[test]
fn what_is_noted_is_in_the_files_and_remembered() {
    for format in [LogFormat::Plain, LogFormat::Stamped, LogFormat::Json] {
        let mut app = App::new(format, |_| {});
        assert_eq!(app.logs.last_noted(), None);
        app.logs.note("it begins");
        app.restart();
        assert_eq!(app.logs.last_noted().as_deref(), Some("it begins"));
        assert!(app.said().contains("it begins"));
    }
}

#[test]
fn files_are_not_for_everybody() {
    let mut app = App::new(LogFormat::Plain, |_| {});
    app.print("x\n");
    let mode = |path: &Path| fs::metadata(path).expect("there").mode() & 0o007;
    assert_eq!(mode(&app.unit().join("current")), 0);
    assert_eq!(mode(&app.unit()), 0);
    let _ = app.folder.path();
}

// --- At random ---

/// What a stream has printed, line by line, and whether the last one goes on.
#[derive(Debug, Default, Clone)]
struct Printed {
    lines: Vec<Vec<u8>>,
    is_open: bool,
}

impl Printed {
    fn add(&mut self, text: &[u8]) {
        for piece in text.split_inclusive(|byte| *byte == b'\n') {
            let (line, ends) = piece.strip_suffix(b"\n").map_or((piece, false), |line| (line, true));
            match self.lines.last_mut().filter(|_| self.is_open) {
                Some(last) => last.extend_from_slice(line),
                None => self.lines.push(line.to_vec()),
            }
            self.is_open = !ends;
        }
    }

    /// The same of what was read.
    fn read(entries: &[Entry], stream: Stream) -> Vec<Vec<u8>> {
        let mut printed = Self::default();
        for entry in entries.iter().filter(|entry| entry.stream == stream) {
            printed.is_open = entry.continued;
            printed.add(&entry.text);
            if entry.text.is_empty() && !entry.continued {
                printed.lines.push(Vec::new());
            }
        }
        printed.lines
    }
}

/// Some lines, whole or not, short or long.
fn words(numbers: &mut Numbers) -> Vec<u8> {
    let mut text = Vec::new();
    for _ in 0..numbers.below(40) {
        let length = match numbers.below(40) {
            0 => LONGEST_LINE - 2 + numbers.below(5),
            1 => numbers.below(3 * LONGEST_LINE),
            2..8 => 0,
            _ => numbers.below(100),
        };
        let begin = numbers.below(26);
        text.extend(b"abcdefghijklmnopqrstuvwxyz".iter().cycle().skip(begin).take(length));
        if numbers.below(5) > 0 {
            text.push(b'\n');
        }
    }
    text
}

/// Whatever is printed, in whatever pieces, while files are rotated, compressed and followed: each line is there once, whole
/// and in its place.
fn logs_at_random(seed: u64) {
    const UNITS: usize = 3;
    let numbers = &mut Numbers::new(seed);
    for format in [LogFormat::Stamped, LogFormat::Json, LogFormat::Plain] {
        let size = 500 + numbers.below(100_000) as u64;
        let mut app = App::of(UNITS, format, |files| {
            (files.max_size, files.keep, files.compress) = (size, 100_000, true);
        });
        let names: Vec<String> = (0..UNITS).map(name).collect();
        let mut followers: Vec<Reader> =
            names.iter().map(|name| Reader::new(&app.settings.folder, &[name], format)).collect();
        for reader in &mut followers {
            reader.follow(&app.settings.folder);
            reader.last(0).expect("readable");
        }
        let mut printed = vec![[Printed::default(), Printed::default()]; UNITS];
        let mut followed = vec![Vec::new(); UNITS];
        for _ in 0..150 {
            let unit = numbers.below(UNITS);
            // Plain logs do not tell streams apart.
            let streams: &[Stream] =
                if format == LogFormat::Plain { &[Stream::Out] } else { &[Stream::Out, Stream::Err] };
            match numbers.below(20) {
                0..12 => {
                    let (stream, text) = (numbers.one(streams), words(numbers));
                    app.print_to(unit, stream, &text);
                    printed[unit][stream as usize].add(&text);
                }
                12 | 13 => app.wait(numbers.below(3_000) as u64),
                14 => {
                    app.logs.ended(unit, app.now);
                    printed[unit].iter_mut().for_each(|stream| stream.is_open = false);
                }
                15 => {
                    app.logs.remove_unit(unit, app.now);
                    printed[unit].iter_mut().for_each(|stream| stream.is_open = false);
                    app.logs.add_unit(unit, &names[unit]);
                    let own =
                        |end: std::os::fd::BorrowedFd<'_>| end.try_clone_to_owned().expect("a descriptor");
                    app.writers[unit] = app.logs.open(unit).expect("pipes").map(own).map(fs::File::from);
                }
                16 => app.compress(),
                17 if numbers.below(5) == 0 => {
                    for (unit, streams) in printed.iter_mut().enumerate() {
                        app.logs.ended(unit, app.now);
                        streams.iter_mut().for_each(|stream| stream.is_open = false);
                    }
                    app.compress();
                    app.restart();
                }
                _ => followed[unit].extend(followers[unit].more().expect("readable")),
            }
        }
        (0..UNITS).for_each(|unit| app.logs.ended(unit, app.now));
        app.compress();
        for unit in 0..UNITS {
            while {
                let more = followers[unit].more().expect("readable");
                let is_more = !more.is_empty();
                followed[unit].extend(more);
                is_more
            } {}
            let mut reader = Reader::new(&app.settings.folder, &[&names[unit]], format);
            let kept = reader.last(usize::MAX - 1).expect("readable");
            for stream in [Stream::Out, Stream::Err] {
                let wanted = &printed[unit][stream as usize].lines;
                for (what, entries) in [("kept", &kept), ("followed", &followed[unit])] {
                    let mut found = Printed::read(entries, stream);
                    let mut wanted = wanted.clone();
                    if format == LogFormat::Plain {
                        // What was cut is not marked.
                        (found, wanted) = (vec![found.concat()], vec![wanted.concat()]);
                    }
                    let at = wanted.iter().zip(&found).position(|(one, other)| one != other);
                    assert!(
                        at.is_none() && wanted.len() == found.len(),
                        "seed {seed}, {format:?}, {what}: of {} {stream:?}, line {at:?} of {} ({} found): {:?}, and not {:?}",
                        names[unit],
                        wanted.len(),
                        found.len(),
                        at.map(|at| String::from_utf8_lossy(&found[at])),
                        at.map(|at| String::from_utf8_lossy(&wanted[at])),
                    );
                }
            }
        }
    }
}

#[test]
fn whatever_is_printed_each_line_is_there_once_and_in_its_place() {
    Numbers::seeds().into_iter().for_each(logs_at_random);
}
