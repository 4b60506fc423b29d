//! How fast lines get from a pipe to files. `logs FOLDER MEGABYTES stamped|plain|json [compress]`, best on a tmpfs;
//! prints megabytes a second and the most memory that was used. It compares with
//! `logs write MEGABYTES | s6-log T s16777216 n5 FOLDER`.

use std::io::Write;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::time::Instant;

use kitbag_supervisor::logs::files::Settings as Files;
use kitbag_supervisor::logs::format::LogFormat;
use kitbag_supervisor::logs::{Logs, Settings};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Lines of 100 bytes, 64 kB at a time, as floods come.
fn write(megabytes: usize) {
    let line = [&[b'x'; 99][..], b"\n"].concat();
    let (piece, mut out) = (line.repeat(655), std::io::stdout().lock());
    for _ in 0..megabytes * 1_000_000 / piece.len() {
        out.write_all(&piece).expect("somebody reads");
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let megabytes = args.get(1).and_then(|text| text.parse().ok()).unwrap_or(1000);
    if args[0] == "write" {
        return write(megabytes);
    }
    let format = match args.get(2).map(String::as_str) {
        Some("plain") => LogFormat::Plain,
        Some("json") => LogFormat::Json,
        _ => LogFormat::Stamped,
    };
    let compress = args.get(3).is_some();
    let files = Files {
        folder: args[0].clone().into(),
        state: None,
        guarded: false,
        format,
        max_size: 16 << 20,
        max_age: None,
        keep: 5,
        compress,
    };
    let settings = Settings { quiet: true, files: Some(files), ..Settings::default() };
    let mut logs = Logs::new(settings).expect("epoll");
    logs.add_unit(0, "flood");
    let [stdout, _] = logs.open(0).expect("pipes");
    let stdout = stdout.try_clone_to_owned().expect("a descriptor");
    let begin = Instant::now();
    let mut child = Command::new(std::env::current_exe().expect("a name"))
        .args(["write", &megabytes.to_string()])
        .stdout(Stdio::from(stdout))
        .spawn()
        .expect("a writer");
    let now = || begin.elapsed().as_millis() as u64;
    loop {
        let _ = poll(&mut [PollFd::new(logs.fd().as_fd(), PollFlags::POLLIN)], PollTimeout::from(20_u8));
        logs.serve(now());
        if child.try_wait().expect("our child").is_some() && logs.drained(now()) {
            break;
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or("");
    println!("{:.0} MB/s  {peak}", megabytes as f64 / seconds);
}
