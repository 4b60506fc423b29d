//! A dynamic program of the machine with all it needs, beside staticx and the program itself.

use std::path::{Path, PathBuf};

use crate::Bench;
use crate::measure::{Start, median, on_path, remove, shell, timed};
use crate::peers::{self, Packer};
use crate::report::Row;
use crate::size::{bytes, memory};
use crate::start::{Place, stores};

/// Programs with many libraries; the first that is there is taken.
const PROGRAMS: [&str; 2] = ["redis-server", "jq"];
const PEER: &str = "staticx";

/// What is asked of the program: it loads everything and ends.
const VERSION: &str = "--version";

/// Makes a file of the program.
type Pack = dyn Fn(&Path) -> Result<(), String>;

/// A file with the program, and how it is made.
struct Packed {
    packer: Box<Pack>,
    file: PathBuf,
}

/// Size, packing, first and later starts.
pub fn closure(bench: &mut Bench) -> Result<(), String> {
    let found = PROGRAMS.iter().find_map(|name| Some((*name, on_path(name)?)));
    let (name, program) =
        found.ok_or("neither redis-server nor jq (Debian: apt-get install redis-server)".to_owned())?;
    let bare = Start { argv: vec![program.display().to_string(), VERSION.to_owned()], env: Vec::new() };
    let mut all = vec![kitbag(bench, name, &program)?];
    match staticx(bench, &program) {
        Ok(peer) => all.push(peer),
        Err(why) => bench.notes.push(format!("{PEER}: not measured: {why}")),
    }
    let place = Place::new(stores(bench)[0].1.clone())?;
    let sizes =
        all.iter().map(|packed| Ok(bytes(&packed.file)? / 1e6)).collect::<Result<Vec<_>, String>>()?;
    let figures = [
        ("file, MB", sizes),
        ("pack, s", pack(bench, &all)?),
        ("first start (tmpfs), ms", first(bench, &all, &place)?),
        ("later start above bare, ms", later(bench, &bare, &all, &place)?),
    ];
    for (what, figures) in figures {
        let row = Row::new(what, name, figures[0]);
        bench.add(match figures.get(1) {
            Some(theirs) => row.peer(PEER, *theirs),
            None => row,
        });
    }
    Ok(())
}

fn kitbag(bench: &Bench, name: &'static str, program: &Path) -> Result<Packed, String> {
    let ours = bench.ours();
    let Packer::Kitbag { command, .. } = ours.clone() else { return Err("no kitbag".to_owned()) };
    let project = bench.options.work.join("closure");
    let text = format!(
        "name = \"bench-{name}\"\nversion = \"1.0.0\"\ncommand = [\"bin/{name}\"]\n\n[[include]]\nfrom = {:?}\nto = \"bin/{name}\"\n",
        program.display().to_string()
    );
    std::fs::create_dir_all(&project).map_err(|error| error.to_string())?;
    std::fs::write(project.join("kitbag.toml"), text).map_err(|error| error.to_string())?;
    let cache = bench.options.work.join("closure/cache");
    let pack = move |out: &Path| {
        remove(&cache);
        let line = "XDG_CACHE_HOME=\"$1\" exec \"$2\" pack --quiet --force \"$3\" -o \"$4\"";
        shell(line, &[&cache, &command, &project, out]).map(drop)
    };
    Packed::new(bench, ours.name(), Box::new(pack))
}

fn staticx(bench: &Bench, program: &Path) -> Result<Packed, String> {
    if on_path("patchelf").is_none() {
        return Err("it needs patchelf (Debian: apt-get install patchelf)".to_owned());
    }
    let (staticx, program) = (peers::of_pypi(&bench.options.work, PEER)?, program.to_owned());
    let pack = move |out: &Path| shell("exec \"$1\" \"$2\" \"$3\"", &[&staticx, &program, out]).map(drop);
    Packed::new(bench, PEER, Box::new(pack))
}

impl Packed {
    /// Makes the file, in the work folder.
    fn new(bench: &Bench, name: &'static str, packer: Box<Pack>) -> Result<Packed, String> {
        let file = bench.options.work.join("bundles").join(format!("closure.{name}"));
        packer(&file)?;
        Ok(Packed { packer, file })
    }

    /// How it is started. Both find a folder of their own below `place`.
    fn start(&self, bench: &Bench, place: &Place) -> Start {
        let start = bench.ours().start(&self.file, &place.0);
        Start { argv: start.argv.into_iter().chain([VERSION.to_owned()]).collect(), ..start }
    }
}

/// Seconds to pack, of each.
fn pack(bench: &Bench, all: &[Packed]) -> Result<Vec<f64>, String> {
    let out = memory("closure");
    let mut seconds = vec![Vec::new(); all.len()];
    // staticx takes ten seconds.
    for _ in 0..bench.times(3) {
        for (packed, seconds) in all.iter().zip(&mut seconds) {
            let _ = std::fs::remove_file(&out);
            seconds.push(timed(|| (packed.packer)(&out))?);
        }
    }
    let _ = std::fs::remove_file(&out);
    Ok(seconds.into_iter().map(median).collect())
}

/// Milliseconds of a start with nothing unpacked, of each.
fn first(bench: &Bench, all: &[Packed], place: &Place) -> Result<Vec<f64>, String> {
    let mut taken = vec![Vec::new(); all.len()];
    for _ in 0..bench.times(20).max(5) {
        for (packed, taken) in all.iter().zip(&mut taken) {
            place.wipe()?;
            taken.push(whole(&packed.start(bench, place))?);
        }
    }
    Ok(taken.into_iter().map(median).collect())
}

/// Milliseconds that each adds to the `bare` program, in turns with it.
fn later(bench: &Bench, bare: &Start, all: &[Packed], place: &Place) -> Result<Vec<f64>, String> {
    place.wipe()?;
    let starts: Vec<Start> =
        [bare.clone()].into_iter().chain(all.iter().map(|packed| packed.start(bench, place))).collect();
    let mut above = vec![Vec::new(); starts.len()];
    for round in 0..=bench.times(200) {
        let taken = starts.iter().map(whole).collect::<Result<Vec<_>, _>>()?;
        // The first round unpacked.
        if round > 0 {
            above.iter_mut().zip(&taken).for_each(|(above, ms)| above.push(ms - taken[0]));
        }
    }
    Ok(above.into_iter().skip(1).map(median).collect())
}

/// Milliseconds from the spawn to the end.
fn whole(start: &Start) -> Result<f64, String> {
    let run = || {
        let out = start.command().output().map_err(|error| format!("{}: {error}", start.argv[0]))?;
        out.status.success().then_some(()).ok_or(format!("{}: {}", start.argv[0], out.status))
    };
    Ok(timed(run)? * 1e3)
}
