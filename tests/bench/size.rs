//! What a file weighs and what packing costs.

use std::fs;
use std::path::{Path, PathBuf};

use crate::Bench;
use crate::inputs::Input;
use crate::measure::{median, shell, timed};
use crate::peers::Packer;
use crate::report::{Bar, Row};

/// Bundle and payload beside `tar | zstd`, and the runtime, which is what a bundle has and its payload has not.
pub fn size(bench: &mut Bench) -> Result<(), String> {
    for input in bench.trees(&["tiny", "medium", "large"])? {
        let ours = bench.ours();
        let file = bench.file(&ours, &input)?;
        let (bundle, payload) = (bytes(&file)?, payload(&file)?);
        if input.name == "tiny" {
            let runtime = (bundle - payload) / 1e6;
            bench.add(Row::new("all but the payload, MB", "tiny", runtime).bar(Bar::Most(1.5)));
            continue;
        }
        for peer in bench.packers.clone().iter().skip(1) {
            let theirs = bytes(&bench.file(peer, &input)?)? / 1e6;
            let row =
                |what: &str, ours: f64| Row::new(what, &input.name, ours / 1e6).peer(peer.name(), theirs);
            let bar = |row: Row| if *peer == Packer::Tools { row.bar(Bar::Ratio(1.07)) } else { row };
            bench.add(bar(row("payload, MB", payload)));
            bench.add(row("file, MB", bundle));
        }
    }
    Ok(())
}

/// The section `.kitbag.payload`, as binutils see it.
pub fn payload(file: &Path) -> Result<f64, String> {
    let said = shell(
        "readelf -SW \"$1\" | sed -n 's/^.*\\.kitbag\\.payload *[A-Z0-9]* *[0-9a-f]* [0-9a-f]* \\([0-9a-f]*\\) .*$/\\1/p'",
        &[file],
    )?;
    let size = u64::from_str_radix(said.trim(), 16)
        .map_err(|_| "readelf shows no section .kitbag.payload".to_owned())?;
    Ok(size as f64)
}

/// Bytes of a file.
pub fn bytes(file: &Path) -> Result<f64, String> {
    fs::metadata(file).map(|meta| meta.len() as f64).map_err(|error| format!("{}: {error}", file.display()))
}

/// Seconds to pack, and to pack again when a file has changed.
pub fn pack(bench: &mut Bench) -> Result<(), String> {
    for input in bench.trees(&["medium", "large"])? {
        let often = bench.times(if input.name == "large" { 5 } else { 9 }).max(3);
        let packers = bench.packers.clone();
        let mut seconds = vec![Vec::new(); packers.len()];
        for round in 0..often {
            for turn in 0..packers.len() {
                let at = (round + turn) % packers.len();
                let (packer, seconds) = (&packers[at], &mut seconds[at]);
                let out = memory(&format!("{}.timed", packer.name()));
                let _ = fs::remove_file(&out);
                shell("sync", &[])?;
                seconds.push(timed(|| packer.pack(&input, &out))?);
                let _ = fs::remove_file(&out);
            }
        }
        let middle: Vec<f64> = seconds.into_iter().map(median).collect();
        for (packer, theirs) in packers.iter().zip(&middle).skip(1) {
            let row = Row::new("pack, s", &input.name, middle[0]).peer(packer.name(), *theirs);
            bench.add(if *packer == Packer::Tools { row.bar(Bar::Ratio(1.0)) } else { row });
        }
        let again = again(bench, &input, often)?;
        bench.add(
            Row::new("pack again, one file changed, s", &input.name, again)
                .peer("tar+zstd+sh", middle[1])
                .bar(Bar::Ratio(0.25)),
        );
    }
    Ok(())
}

/// A file in memory: kitbag synchronises what it writes and the peers do not, which would measure the disk.
pub fn memory(name: &str) -> PathBuf {
    PathBuf::from(format!("/dev/shm/kitbag-bench-{}-{name}", std::process::id()))
}

/// A person's second pack: the same folder to the same place, with one file written anew since.
fn again(bench: &mut Bench, input: &Input, often: usize) -> Result<f64, String> {
    let ours = bench.ours();
    let Packer::Kitbag { command, .. } = &ours else { return Err("no kitbag".to_owned()) };
    let file = bench.file(&ours, input)?; // makes the project folder too
    let project = file.with_extension("project");
    let out = memory("again");
    let pack = || shell("\"$1\" pack --quiet --force \"$2\" -o \"$3\"", &[command, &project, &out]);
    let text = input.dir.join("changed.txt");
    let change = |round| fs::write(&text, format!("round {round}\n")).map_err(|error| error.to_string());
    change(0)?;
    pack()?;
    let mut seconds = Vec::new();
    for round in 1..=often {
        change(round)?;
        shell("sync", &[])?;
        seconds.push(timed(|| pack().map(drop))?);
    }
    fs::remove_file(&text).map_err(|error| error.to_string())?;
    pack()?;
    let equal = shell("cmp \"$1\" \"$2\"", &[&file, &out]);
    let _ = fs::remove_file(&out);
    equal.map_err(|_| "packing again gave another file than packing anew".to_owned())?;
    Ok(median(seconds))
}
