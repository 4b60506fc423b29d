//! The same inputs give the same bytes.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use kitbag_format::Index;
use kitbag_tests::{App, Bundle, Cmd, Folder, Outcome, copy, kitbag, root, tools};

/// Many small files and a large one.
fn app(order: impl Iterator<Item = usize>) -> App {
    let mut app = App::tool().file("large", large(1_500_000));
    for number in order {
        app = app.file(name(number), contents(number));
    }
    app
}

fn name(number: usize) -> String {
    format!("share/{}/{number}.txt", number % 7)
}

fn contents(number: usize) -> String {
    format!("file {number}\n").repeat(1 + number * 37 % 4000)
}

fn large(words: usize) -> Vec<u8> {
    let mut state = 1u32;
    let mut step = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    };
    (0..words).flat_map(|_| step().to_le_bytes()).collect()
}

#[track_caller]
fn same(one: &Bundle, other: &Path, what: &str) {
    let (one, other) = (one.bytes(), fs::read(other).unwrap());
    let at = one.iter().zip(&other).position(|(a, b)| a != b);
    assert!(one == other, "{what}: {} and {} bytes, first difference {at:?}", one.len(), other.len());
}

/// Packs behind a launcher, and compares.
#[track_caller]
fn packed_by(command: impl FnOnce(Cmd) -> Cmd, what: &str) {
    let app = app(0..50);
    let expected = app.pack();
    let folder = Folder::new();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
    let output = folder.join("bundle");
    command(app.pack_to(&output, [""; 0])).run().succeeds();
    same(&expected, &output, what);
}

#[test]
fn the_order_in_which_files_were_made_does_not_matter() {
    let expected = app(0..200).pack();
    same(&expected, &app((0..200).rev()).pack().file, "made in reverse order");
}

#[test]
fn the_folder_and_the_clock_do_not_matter() {
    let one = app(0..20);
    let expected = one.pack();
    let other = app(0..20);
    for number in 0..20 {
        let file = File::options().write(true).open(other.tree(name(number))).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 * number as u64)).unwrap();
    }
    assert_ne!(one.dir(), other.dir());
    same(&expected, &other.pack().file, "another folder, other times");
}

#[test]
fn permissions_beyond_the_executable_bit_do_not_matter() {
    let one = app(0..20);
    let expected = one.pack();
    for number in 0..20 {
        let mode = if number % 2 == 0 { 0o600 } else { 0o664 };
        fs::set_permissions(one.tree(name(number)), Permissions::from_mode(mode)).unwrap();
    }
    fs::set_permissions(one.tree("bin/hello"), Permissions::from_mode(0o700)).unwrap();
    same(&expected, &one.pack().file, "other permissions");
}

#[test]
fn the_umask_does_not_matter() {
    packed_by(|pack| pack.behind("sh", ["-c", "umask 077; exec \"$@\"", "sh"]), "umask 077");
}

#[test]
fn the_time_zone_and_the_language_do_not_matter() {
    packed_by(
        |pack| pack.env("TZ", "Asia/Kathmandu").env("LANG", "tr_TR.UTF-8").env("LC_ALL", "C"),
        "TZ and LANG",
    );
}

#[test]
fn the_number_of_cores_does_not_matter() {
    if tools(&["taskset"]) {
        packed_by(|pack| pack.behind("taskset", ["-c", "0"]), "one core");
    }
}

#[test]
fn the_user_does_not_matter() {
    if !root("pack as another user") || !tools(&["setpriv"]) {
        return;
    }
    // Root's build may lie where nobody may go.
    let folder = Folder::new();
    copy(kitbag(), &folder.join("kitbag"));
    let app = app(0..50);
    let expected = app.pack();
    let out = folder.dir("out");
    fs::set_permissions(&out, Permissions::from_mode(0o777)).unwrap();
    let pack = Cmd::new(folder.join("kitbag")).arg("pack").arg(app.dir()).arg("-o").arg(out.join("bundle"));
    pack.behind("setpriv", ["--reuid=65534", "--regid=65534", "--clear-groups"]).run().succeeds();
    same(&expected, &out.join("bundle"), "another user");
}

#[test]
fn taking_parts_from_an_earlier_bundle_gives_the_same_bytes_as_packing_afresh() {
    let app = app(0..100);
    let before = app.pack();
    fs::write(app.tree(name(50)), "changed").unwrap();
    let afresh = app.pack();
    let folder = Folder::new();
    let output = folder.join("bundle");
    let base = ["--base", before.file.to_str().unwrap()];
    let outcome = app.pack_to(&output, base).run().succeeds();
    let outcome = outcome.prints("frames taken over");
    same(&afresh, &output, &format!("with a base\n{outcome}"));
    copy(&before.file, &folder.join("over"));
    app.pack_to(&folder.join("over"), [""; 0]).run().succeeds().prints("frames taken over");
    same(&afresh, &folder.join("over"), "over the earlier bundle");
}

#[test]
fn the_earlier_bundle_may_be_damaged() {
    let app = app(0..100);
    let before = app.pack();
    let mut bytes = before.bytes();
    let payload = before.open().head().part(kitbag_format::layout::PartKind::Payload).unwrap().clone();
    bytes[(payload.offset + payload.length / 2) as usize] ^= 1;
    let folder = Folder::new();
    fs::write(folder.join("base"), bytes).unwrap();
    let base = folder.join("base");
    let packed: Outcome = app.pack_to(&folder.join("new"), ["--base", base.to_str().unwrap()]).run();
    packed.succeeds();
    same(&before, &folder.join("new"), "with a damaged base");
}

#[test]
fn one_changed_file_leaves_all_other_frames_as_they_were() {
    let app = app(0..400);
    let before = app.pack().open().index().unwrap();
    fs::write(app.tree(name(200)), "another length\n".repeat(100)).unwrap();
    let after = app.pack().open().index().unwrap();
    assert!(before.frames.len() > 4, "{} frames", before.frames.len());
    assert!(new_frames(&before, &after) <= 2, "{} new frames", new_frames(&before, &after));
}

#[test]
fn a_byte_put_into_a_large_file_changes_the_frames_around_it_only() {
    let mut bytes = large(8_000_000);
    let app = App::tool().file("large", &bytes);
    let before = app.pack().open().index().unwrap();
    bytes.insert(16_000_000, b'!');
    fs::write(app.tree("large"), bytes).unwrap();
    let after = app.pack().open().index().unwrap();
    assert!(before.frames.len() >= 15, "{} frames", before.frames.len());
    // The file's first frame has its header, with its length; behind the byte, cuts find their places again.
    let new = new_frames(&before, &after);
    assert!(new <= 5, "{new} of {} are new", after.frames.len());
}

fn new_frames(before: &Index, after: &Index) -> usize {
    let known = |digest| before.frames.iter().any(|frame| frame.digest == digest);
    after.frames.iter().filter(|frame| !known(frame.digest)).count()
}

#[test]
fn the_digest_that_pack_prints_is_the_one_of_inspect() {
    let bundle = app(0..1).pack();
    let inspected = Cmd::kitbag(["inspect", "--json"]).arg(&bundle.file).run().succeeds();
    let json: serde_json::Value = serde_json::from_slice(&inspected.stdout).unwrap();
    assert_eq!(json["digest"], bundle.digest());
    assert_eq!(bundle.digest(), bundle.open().digest().to_string());
}
