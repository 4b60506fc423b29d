//! What must not go wrong: many first starts at once, kills, damage.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::Bench;
use crate::inputs::Input;
use crate::measure::{Start, Use, difference, disk_use, median, walk};
use crate::report::{Bar, Row};
use crate::start::{Place, right, stores};

/// All of them, on medium.
pub fn faults(bench: &mut Bench) -> Result<(), String> {
    let Some(input) = bench.trees(&["medium"])?.pop() else { return Ok(()) };
    let ours = bench.ours();
    let file = bench.file(&ours, &input)?;
    let place = Place::new(stores(bench)[0].1.clone())?;
    let start = ours.start(&file, &place.0);
    let clean = clean(&start, &place)?;
    at_once(bench, &input, &start, &place, clean)?;
    kills(bench, &input, &start, &place, clean)?;
    heal(bench, &input, &place, "tool's program", &start, &["bin/hello"])?;
    let service = bench.service();
    let start = service.start(&bench.file(&service, &input)?, &place.0);
    let any = largest(&input).ok_or("an input without files")?;
    heal(bench, &input, &place, "service's file", &start, &[&any])
}

/// What a store holds after an undisturbed first start and one more.
fn clean(start: &Start, place: &Place) -> Result<Use, String> {
    place.wipe()?;
    start.run()?;
    start.run()?;
    Ok(disk_use(&place.0))
}

/// Not more than a clean store: nothing is left behind, nothing is there twice.
fn is_clean(now: Use, clean: Use) -> bool {
    now.names <= clean.names && now.bytes <= clean.bytes + clean.bytes / 100
}

/// Ten first starts that all live until the last has started.
fn at_once(bench: &mut Bench, input: &Input, start: &Start, place: &Place, clean: Use) -> Result<(), String> {
    place.wipe()?;
    let hold = place.0.with_extension("hold");
    fs::write(&hold, "").map_err(|error| error.to_string())?;
    let held = start.clone().env("BENCH_HOLD", &hold);
    let mut running = (0..10).map(|_| held.spawn()).collect::<Result<Vec<_>, _>>()?;
    let started: Vec<_> = running.iter_mut().map(|running| running.hello()).collect();
    let copies = disk_use(&place.0).bytes as f64 / clean.bytes as f64;
    let good = |hello: &&Result<crate::measure::Hello, String>| {
        hello.as_ref().is_ok_and(|hello| difference(&input.dir, &hello.root()).is_none())
    };
    let count = started.iter().filter(good).count();
    let _ = fs::remove_file(&hold);
    drop(running);
    bench.add(Row::new("ten first starts at once, right", &input.name, count as f64).bar(Bar::Least(10.0)));
    bench.add(Row::new("ten first starts at once, copies", &input.name, copies).bar(Bar::Most(1.05)));
    Ok(())
}

/// SIGKILL at random moments of a first start, then a start that has to be right and leave a clean store.
fn kills(bench: &mut Bench, input: &Input, start: &Start, place: &Place, clean: Use) -> Result<(), String> {
    let mut first = Vec::new();
    for _ in 0..3 {
        place.wipe()?;
        first.push(start.run()?.main_ms);
    }
    let (whole, kills) = (median(first), bench.options.kills);
    let (mut right_after, mut clean_after, mut note) = (0, 0, String::new());
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..kills {
        place.wipe()?;
        random = xorshift(random);
        let moment = whole * (random >> 11) as f64 / (1_u64 << 53) as f64;
        kill_after(start, Duration::from_secs_f64(moment / 1e3))?;
        match start.run().and_then(|hello| right(input, &hello.root())) {
            Ok(()) => right_after += 1,
            Err(why) => note = format!("killed at {moment:.1} ms: {why}"),
        }
        let left = disk_use(&place.0);
        if is_clean(left, clean) {
            clean_after += 1;
        } else if note.is_empty() {
            note = format!(
                "killed at {moment:.1} ms: {} names, {} bytes, clean {}, {}",
                left.names, left.bytes, clean.names, clean.bytes
            );
        }
    }
    let all = Bar::Least(kills as f64);
    bench.add(
        Row::new("kill -9, next start right", &input.name, right_after.into()).bar(all).note(note.clone()),
    );
    bench.add(Row::new("kill -9, nothing left behind", &input.name, clean_after.into()).bar(all).note(note));
    Ok(())
}

fn kill_after(start: &Start, moment: Duration) -> Result<(), String> {
    let began = Instant::now();
    let mut running = start.spawn()?;
    while began.elapsed() < moment {
        std::thread::sleep(Duration::from_micros(50));
    }
    running.kill();
    Ok(())
}

/// The next of a sequence of numbers that look random and are the same in each run.
fn xorshift(mut x: u64) -> u64 {
    x ^= x << 13;
    x ^= x >> 7;
    x ^ (x << 17)
}

/// What befalls a file.
#[derive(Debug, Clone, Copy)]
enum Damage {
    Changed,
    ChangedInSecret,
    Deleted,
    Emptied,
}

/// Damages files of the unpacked tree, and starts again.
fn heal(
    bench: &mut Bench,
    input: &Input,
    place: &Place,
    whose: &str,
    start: &Start,
    files: &[&str],
) -> Result<(), String> {
    let (mut healed, mut wanted, mut notes) = (0, 0, Vec::new());
    for file in files {
        for damage in [Damage::Changed, Damage::ChangedInSecret, Damage::Deleted, Damage::Emptied] {
            place.wipe()?;
            let root = started(start)?;
            inflict(&root.join(file), damage).map_err(|error| format!("{file}: {error}"))?;
            wanted += 1;
            match started(start).and_then(|root| right(input, &root)) {
                Ok(()) => healed += 1,
                Err(why) => notes.push(format!("{damage:?}: {why}")),
            }
        }
    }
    let row = Row::new(&format!("damage healed, a {whose}"), &input.name, healed.into());
    bench.add(row.bar(Bar::Least(wanted.into())).note(notes.join("; ")));
    Ok(())
}

/// Starts, waits for the program, ends it. Where it ran.
fn started(start: &Start) -> Result<PathBuf, String> {
    let mut running = start.spawn()?;
    let hello = running.hello()?;
    running.terminate();
    Ok(hello.root())
}

fn inflict(path: &Path, damage: Damage) -> std::io::Result<()> {
    let before = fs::metadata(path)?;
    if let Damage::Deleted = damage {
        fs::set_permissions(path.parent().unwrap_or(path), fs::Permissions::from_mode(0o755))?;
        return fs::remove_file(path);
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    let file = fs::OpenOptions::new().write(true).read(true).open(path)?;
    if let Damage::Emptied = damage {
        return file.set_len(0);
    }
    let (mut byte, middle) = ([0], before.size() / 2);
    file.read_exact_at(&mut byte, middle)?;
    file.write_all_at(&[byte[0] ^ 1], middle)?;
    if let Damage::ChangedInSecret = damage {
        file.set_times(
            fs::FileTimes::new().set_modified(before.modified()?).set_accessed(before.accessed()?),
        )?;
        fs::set_permissions(path, before.permissions())?;
    }
    Ok(())
}

/// The largest file of an input beside its program, by its path in the tree.
fn largest(input: &Input) -> Option<String> {
    let files = walk(&input.dir)
        .into_iter()
        .filter(|path| path.is_file() && !path.is_symlink() && *path != input.entry());
    let file = files.max_by_key(|path| fs::metadata(path).map_or(0, |meta| meta.len()))?;
    Some(file.strip_prefix(&input.dir).ok()?.display().to_string())
}
