//! One flipped byte anywhere, a truncated, grown, stripped or rewritten file: found before the program runs, each by
//! its name.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use kitbag_format::Index;
use kitbag_format::layout::{Head, MAGIC, PartKind};
use kitbag_tests::{App, Cmd, Folder, Outcome, Sandbox, tools};

/// What the program prints when it runs.
const RAN: &str = "HELLO";

/// What is damaged: a small bundle with several frames.
struct Whole {
    bytes: Vec<u8>,
    head: Head,
    index: Index,
    frames: Vec<u64>,
}

fn whole() -> &'static Whole {
    static WHOLE: OnceLock<Whole> = OnceLock::new();
    WHOLE.get_or_init(|| {
        let app = App::tool().file("share/a", noise(1)).file("share/b", noise(2)).file("share/c", "small");
        let bundle = app.pack();
        bundle.command([""; 0]).run().succeeds().prints(RAN);
        let open = bundle.open();
        let index = open.index().unwrap();
        assert!(index.frames.len() >= 2);
        let frames = open.frame_places(&index).unwrap();
        Whole { bytes: bundle.bytes(), head: open.head().clone(), index, frames }
    })
}

/// Bytes that do not compress well.
fn noise(seed: u32) -> Vec<u8> {
    let word = |n: u32| (n ^ seed).wrapping_mul(2_654_435_761).rotate_left(n % 31).to_le_bytes();
    (1..400_000u32).flat_map(word).collect()
}

/// A damaged copy in a folder of its own.
struct Copy {
    folder: Folder,
    what: String,
}

impl Copy {
    fn of(bytes: &[u8], what: impl Into<String>) -> Self {
        let folder = Folder::new();
        let path = folder.join("bundle");
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Self { folder, what: what.into() }
    }

    fn flipped(at: u64, what: &str) -> Self {
        let mut bytes = whole().bytes.clone();
        bytes[at as usize] ^= 1 << (at % 8);
        Self::of(&bytes, format!("byte {at} flipped ({what})"))
    }

    fn verify(&self) -> Outcome {
        Cmd::kitbag(["verify"]).arg(self.folder.join("bundle")).run()
    }

    /// `kitbag verify` fails and says one of these names.
    #[track_caller]
    fn is_found(&self, names: &[&str]) {
        let outcome = self.verify();
        let named = names.iter().any(|name| outcome.said().contains(name));
        let right = named && outcome.status.code() == Some(4);
        outcome.check(right, &format!("exit status 4 and one of {names:?}: {}", self.what));
    }

    /// A first start; `None` if the kernel refuses the file.
    fn start(&self) -> Option<Outcome> {
        let sandbox = Sandbox::new();
        let start = sandbox.command(self.folder.join("bundle")).within(Duration::from_secs(10)).try_run();
        start.ok()
    }

    /// Started where it has never been unpacked, it says so and the program does not run.
    #[track_caller]
    fn refuses_to_start(&self, names: &[&str]) {
        let outcome = self.start().expect("it can be executed").exits(125).prints_no(RAN);
        let named = names.iter().any(|name| outcome.said().contains(name));
        outcome.check(named, &format!("one of {names:?}: {}", self.what));
    }

    /// Whatever damaged code does, the program does not run, and nobody is told that all is well.
    #[track_caller]
    fn never_runs(&self) {
        if let Some(outcome) = self.start() {
            let outcome = outcome.prints_no(RAN);
            let failed = !outcome.status.success() || outcome.status.signal().is_some();
            outcome.check(failed, &format!("failure: {}", self.what));
        }
    }
}

/// Does `check` for all cases on all cores.
fn each<T: Sync>(cases: &[T], check: impl Fn(&T) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    check(case);
                }
            });
        }
    });
}

/// First, middle and last byte of each part but the runtime, and of each frame.
fn places() -> Vec<(u64, String)> {
    let (head, index) = (&whole().head, &whole().index);
    let frames = whole().frames.iter().zip(&index.frames).enumerate();
    let frames =
        frames.map(|(number, (at, frame))| (format!("frame {number}"), *at, u64::from(frame.packed)));
    let parts = head.parts.iter().filter(|part| part.kind != PartKind::Runtime);
    let parts = parts.map(|part| (part.kind.name().to_owned(), part.offset, part.length));
    let all: Vec<_> = parts.chain(frames).collect();
    let three = |(name, at, length): &(String, u64, u64)| {
        [*at, at + length / 2, at + length - 1].map(|place| (place, name.clone()))
    };
    all.iter().flat_map(three).collect()
}

/// Where the head is. The magic stands in the code, too; the digest does not.
fn head_at() -> u64 {
    let digest = whole().head.digest.0;
    let is_head = |at: &[u8]| at.starts_with(&MAGIC) && at[32..] == digest;
    whole().bytes.windows(64).position(is_head).unwrap() as u64
}

/// A deterministic choice of `count` numbers below `end`.
fn chosen(count: u64, end: u64) -> Vec<u64> {
    (1..=count).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17) % end).collect()
}

#[test]
fn a_byte_flipped_in_any_part_or_frame_is_found_by_verify_and_before_the_program_starts() {
    each(&places(), |(at, what)| {
        let copy = Copy::flipped(*at, what);
        copy.is_found(&["damaged"]);
        copy.refuses_to_start(&["damaged"]);
    });
}

#[test]
fn a_byte_flipped_in_the_head_is_found_by_verify_and_before_the_program_starts() {
    let head = head_at();
    let places: Vec<u64> =
        [0, 7, 8, 12, 16, 20, 24, 31, 32, 63].into_iter().chain((64..1024).step_by(31)).collect();
    each(&places, |at| {
        let copy = Copy::flipped(head + at, "head");
        copy.is_found(&["damaged"]);
        // The flipped bit may be the one that says tool or service bundle.
        let outcome = copy.start().expect("it can be executed").prints_no(RAN).says("damaged");
        let code = outcome.status.code();
        outcome.check(matches!(code, Some(125 | 4)), "exit status 125 or 4");
    });
}

#[test]
fn a_byte_flipped_in_the_elf_header_is_found_by_verify_and_the_program_never_runs() {
    let places: Vec<u64> = (0..64).chain((64..64 + 56 * 8).step_by(5)).collect();
    each(&places, |at| {
        let copy = Copy::flipped(*at, "ELF header");
        copy.is_found(&["damaged", "not a bundle", "rewritten", "malformed"]);
        copy.never_runs();
    });
}

#[test]
fn a_byte_flipped_at_200_places_is_found_by_verify_and_the_program_never_runs() {
    each(&chosen(200, whole().head.file_length), |at| {
        let copy = Copy::flipped(*at, "anywhere");
        copy.is_found(&["damaged"]);
        copy.never_runs();
    });
}

#[test]
fn a_file_cut_at_any_length_is_found_by_verify_and_the_program_never_runs() {
    let (bytes, parts) = (&whole().bytes, &whole().head.parts);
    let ends = parts.iter().flat_map(|part| [part.offset, part.offset + part.length / 2]);
    let lengths: Vec<u64> =
        ends.chain([1, 3, 4, 63, 64, 1000, 4096]).chain([bytes.len() as u64 - 1]).collect();
    each(&lengths, |length| {
        if *length == 0 {
            return;
        }
        let copy = Copy::of(&bytes[..*length as usize], format!("cut to {length} bytes"));
        let behind_the_head = *length > parts[0].length;
        copy.is_found(if behind_the_head { &["truncated"] } else { &["truncated", "not a bundle"] });
        if behind_the_head {
            copy.refuses_to_start(&["truncated"]);
        } else {
            copy.never_runs();
        }
    });
}

#[test]
fn an_empty_file_is_not_a_bundle() {
    Copy::of(b"", "empty").is_found(&["not a bundle"]);
}

#[test]
fn appended_bytes_are_found_by_verify_and_before_the_program_starts() {
    let more: Vec<u64> = vec![1, 512, 1 << 20];
    each(&more, |more| {
        let mut bytes = whole().bytes.clone();
        bytes.resize(bytes.len() + *more as usize, b'!');
        let copy = Copy::of(&bytes, format!("{more} bytes appended"));
        copy.is_found(&["appended"]);
        copy.refuses_to_start(&["appended"]);
    });
}

#[test]
fn strip_and_objcopy_are_found_by_verify_and_before_the_program_starts() {
    if !tools(&["strip", "objcopy"]) {
        return;
    }
    let rewriters: [&[&str]; 4] = [
        &["strip", "bundle"],
        &["strip", "--strip-unneeded", "bundle"],
        &["objcopy", "--remove-section", ".kitbag.payload", "bundle"],
        &["objcopy", "--add-section", ".more=bundle", "bundle"],
    ];
    for rewriter in rewriters {
        let copy = Copy::of(&whole().bytes, rewriter.join(" "));
        Cmd::new(rewriter[0]).args(&rewriter[1..]).cwd(copy.folder.path()).run().succeeds();
        copy.is_found(&["rewritten"]);
        copy.refuses_to_start(&["rewritten"]);
    }
}

#[test]
fn other_files_are_not_bundles() {
    for path in ["/etc/passwd", "/bin/sh", "/dev/null", "/"] {
        Cmd::kitbag(["verify", path]).run().exits(4).says("not a bundle");
    }
    Cmd::kitbag(["verify", "/nonexistent/file"])
        .run()
        .exits(1)
        .says("/nonexistent/file")
        .says("No such file");
}

#[test]
fn what_is_damaged_is_not_unpacked_by_kitbag() {
    let (at, what) = places().into_iter().find(|(_, what)| what == "frame 1").unwrap();
    let copy = Copy::flipped(at, &what);
    let out = copy.folder.join("out");
    Cmd::kitbag(["unpack"]).arg(copy.folder.join("bundle")).arg(&out).run().exits(4).says("damaged");
}
