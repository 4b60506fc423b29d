//! Two versions: side by side on disk, and on the wire.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use crate::Bench;
use crate::inputs::Input;
use crate::measure::{disk_use, empty, on_path, shell, walk};
use crate::peers::Packer;
use crate::report::{Bar, Row};
use crate::start::{Place, stores};

/// Version 2 beside version 1 in one store. On a disk each folder has a block, and no folder can be shared.
pub fn beside(bench: &mut Bench) -> Result<(), String> {
    for pair in ["small", "packages"] {
        let (first, second) = bench.inputs.pair(pair)?;
        let new = new_bytes(&first, &second);
        let folders = walk(&second.dir).iter().filter(|path| path.is_dir() && !path.is_symlink()).count();
        let kitbag = bench.ours();
        for (kind, dir) in stores(bench) {
            let ours = used(bench, &kitbag, [&first, &second], &dir)?;
            let theirs = used(bench, &Packer::Tools, [&first, &second], &dir)?;
            let row = Row::new(&format!("v1 and v2 in one store ({kind}), MB"), pair, ours[1]);
            let note = format!("v1 alone {:.1}, new in v2 {new:.2}, folders of v2 {folders}", ours[0]);
            let most = Bar::Most((ours[0] + new) * 1.03);
            bench.add(row.peer("tar+zstd+sh", theirs[1]).bar(most).note(note));
        }
    }
    Ok(())
}

/// MB of a store after the first version has run, and after the second.
fn used(bench: &mut Bench, packer: &Packer, versions: [&Input; 2], dir: &Path) -> Result<Vec<f64>, String> {
    let place = Place::new(dir.to_owned())?;
    let mut used = Vec::new();
    for (version, number) in versions.into_iter().zip(["1", "2"]) {
        // The line of shell has one tree a folder.
        let own = place.0.join(if *packer == Packer::Tools { &version.name } else { "store" });
        fs::create_dir_all(&own).map_err(|error| error.to_string())?;
        let hello = packer.start(&bench.file(packer, version)?, &own).run()?;
        if hello.version != number {
            return Err(format!("{}: version {number} started {}", packer.name(), hello.version));
        }
        used.push(disk_use(&place.0).bytes as f64 / 1e6);
    }
    Ok(used)
}

/// MB of files of `second` whose contents `first` has nowhere, in whole blocks.
fn new_bytes(first: &Input, second: &Input) -> f64 {
    let contents =
        |input: &Input| walk(&input.dir).into_iter().filter(|path| path.is_file() && !path.is_symlink());
    let known: HashSet<Vec<u8>> = contents(first).filter_map(|path| fs::read(path).ok()).collect();
    let new = contents(second).filter_map(|path| fs::read(path).ok()).filter(|bytes| !known.contains(bytes));
    new.map(|bytes| (bytes.len() as u64).next_multiple_of(4096)).sum::<u64>() as f64 / 1e6
}

/// Bytes that rsync moves to bring a bundle of version 1 to version 2.
pub fn delta(bench: &mut Bench) -> Result<(), String> {
    if on_path("rsync").is_none() {
        return Err("no rsync (Debian: apt-get install rsync)".to_owned());
    }
    for (pair, bar) in [("small", 0.5), ("packages", 4.0), ("binary", 7.5)] {
        let (first, second) = match bench.inputs.pair(pair) {
            Ok(pair) => pair,
            Err(why) => {
                bench.failed = true;
                bench.notes.push(format!("NOT MEASURED: rsync, {pair}: {why}"));
                continue;
            }
        };
        let mut moved = Vec::new();
        for packer in bench.packers.clone() {
            let (old, new) = (bench.file(&packer, &first)?, bench.file(&packer, &second)?);
            moved.push((packer.name(), rsync(&old, &new, &bench.options.work.join("rsync"))?));
        }
        let bar = bar_of(bench, pair, bar, &second)?;
        for (name, theirs) in &moved[1..] {
            let row = Row::new("rsync v1 to v2, MB", pair, moved[0].1).peer(name, *theirs);
            bench.add(if *name == "tar+zstd+sh" { row.bar(Bar::Most(bar)) } else { row });
        }
    }
    Ok(())
}

/// 7.5 MB are 1.07 times what the whole program of the first measurement compressed to (7.0); another
/// program is measured against the same share of itself.
fn bar_of(bench: &mut Bench, pair: &str, bar: f64, second: &Input) -> Result<f64, String> {
    if pair != "binary" {
        return Ok(bar);
    }
    let whole = fs::metadata(bench.file(&Packer::Tools, second)?).map_err(|error| error.to_string())?.len();
    Ok(whole as f64 / 1e6 * 1.07)
}

/// MB sent and received, with rsync's own compression, over a local pipe.
fn rsync(old: &Path, new: &Path, dir: &Path) -> Result<f64, String> {
    empty(dir)?;
    let target = dir.join("file");
    shell("cp \"$1\" \"$2\" && touch -d @1 \"$2\"", &[old, &target])?;
    let said = shell(
        "rsync -z --no-whole-file --stats --no-human-readable \"$1\" \"$2\" && cmp \"$1\" \"$2\"",
        &[new, &target],
    )?;
    let total =
        |line: &str| line.split_once(": ").and_then(|(_, n)| n.trim().replace(',', "").parse::<f64>().ok());
    let bytes = said.lines().filter(|line| line.starts_with("Total bytes ")).filter_map(total).sum::<f64>();
    crate::measure::remove(dir);
    Ok(bytes / 1e6)
}
