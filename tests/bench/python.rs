//! A Python app with C extensions: what packing it costs, and how it starts beside the same files unpacked by hand
//! for the host's interpreter, and beside PyInstaller.

use std::fs;
use std::path::{Path, PathBuf};

use crate::Bench;
use crate::inputs::{Input, venv};
use crate::measure::{Start, empty, median, remove, shell, spread, timed};
use crate::peers::{self, Packer};
use crate::report::{Bar, Row};
use crate::size::{bytes, memory, payload};
use crate::start::{Place, children_ms, stores};

/// What the app is called in tables.
const APP: &str = "flask";
/// What it needs.
const PACKAGES: [&str; 6] = ["flask", "gunicorn", "numpy", "lxml", "cryptography", "psycopg[binary]"];
/// Its only template, which is changed before packing again.
const TEMPLATE: &str = include_str!("shop/templates/index.html");

/// The app with its virtual environment, and two bundles that are made of it.
struct Shop {
    /// `shop/`: the sources; `NAME/kitbag.toml`: how it is packed; `cache/`: what kitbag remembers.
    dir: PathBuf,
    venv: PathBuf,
    kitbag: PathBuf,
}

/// Size, packing, first and later starts.
pub fn python(bench: &mut Bench) -> Result<(), String> {
    let shop = Shop::new(bench)?;
    let (bundle, plain) = (shop.dir.join("flask.kitbag"), shop.dir.join("plain.kitbag"));
    shop.pack("bundle", &bundle)?; // compiles, too
    shop.pack("plain", &plain)?;
    let tree = Input { name: APP.to_owned(), dir: shop.dir.join("tree") };
    shop.unpack(&bundle, &tree.dir)?;
    let archive = pack(bench, &shop, &bundle, &tree)?;
    size(bench, &bundle, archive)?;
    let place = Place::new(stores(bench)[0].1.clone())?;
    later(bench, &shop, &bundle, &plain, &place)?;
    match one_file(bench, &shop) {
        Ok(one) => beside(bench, &shop, &bundle, &one, &place),
        Err(why) => {
            bench.notes.push(format!("PyInstaller: not measured: {why}"));
            Ok(())
        }
    }
}

impl Shop {
    /// Writes the sources and installs the packages, unless BENCH_VENV names a virtual environment of `peers::PYTHON`
    /// that has them.
    fn new(bench: &Bench) -> Result<Shop, String> {
        let dir = bench.options.work.join("python");
        let write = |name: &str, text: &str| {
            let file = dir.join(name);
            fs::create_dir_all(file.parent().unwrap_or(&dir)).map_err(|error| error.to_string())?;
            let same = fs::read(&file).is_ok_and(|found| found == text.as_bytes());
            // A file that was written just now is read again by the next pack.
            if same { Ok(()) } else { fs::write(&file, text).map_err(|error| error.to_string()) }
        };
        let venv = match std::env::var_os("BENCH_VENV") {
            Some(named) => PathBuf::from(named),
            None => venv(&dir.join("venv"), peers::PYTHON, &PACKAGES)?,
        };
        write("shop/shop.py", include_str!("shop/shop.py"))?;
        write("shop/templates/index.html", TEMPLATE)?;
        let manifest = format!(
            "name = \"bench-flask\"\nversion = \"1.0.0\"\n\n[app.python]\nvenv = {:?}\nproject = \"../shop\"\nentry = \"-m shop\"\n",
            venv.display().to_string()
        );
        write("bundle/kitbag.toml", &manifest)?;
        // The same files as they are, for the host's interpreter.
        write("plain/kitbag.toml", &format!("{manifest}\n[closure]\nenabled = false\n"))?;
        let Packer::Kitbag { command, .. } = bench.ours() else { return Err("no kitbag".to_owned()) };
        Ok(Shop { dir, venv, kitbag: command })
    }

    fn pack(&self, manifest: &str, out: &Path) -> Result<(), String> {
        let line = "XDG_CACHE_HOME=\"$1\" exec \"$2\" pack --quiet --force \"$3\" -o \"$4\"";
        shell(line, &[&self.cache(), &self.kitbag, &self.dir.join(manifest), out]).map(drop)
    }

    fn unpack(&self, file: &Path, dir: &Path) -> Result<(), String> {
        remove(dir);
        shell("exec \"$1\" unpack \"$2\" \"$3\"", &[&self.kitbag, file, dir]).map(drop)
    }

    fn cache(&self) -> PathBuf {
        self.dir.join("cache")
    }

    /// Seconds that packing takes a machine that has never packed this app.
    fn pack_anew(&self) -> Result<f64, String> {
        let out = Output::new("flask-anew");
        remove(&self.cache());
        timed(|| self.pack("bundle", &out.0))
    }

    /// Forgets what files held, and not what was compiled.
    fn forget(&self) {
        remove(&self.cache().join("kitbag/scan"));
    }
}

/// Seconds to pack, beside `tar | zstd` of what is in the bundle, and to pack again. Returns the archive's bytes.
fn pack(bench: &mut Bench, shop: &Shop, bundle: &Path, tree: &Input) -> Result<f64, String> {
    let (ours, theirs) = (Output::new("flask"), Output::new("flask.tar.zst"));
    let [our, their] = turns(bench.times(15).max(5), |at| {
        shop.forget();
        shell("rm -f \"$1\" \"$2\"; sync", &[&ours.0, &theirs.0])?;
        cost(|| if at == 0 { shop.pack("bundle", &ours.0) } else { Packer::Tools.pack(tree, &theirs.0) })
    })?;
    Packer::Tools.pack(tree, &theirs.0)?;
    let row = |what, figure, peer| Row::new(what, APP, figure / 1e3).peer(Packer::Tools.name(), peer / 1e3);
    let note = format!("{} ms; peer {} ms", spread(&our.ms), spread(&their.ms));
    let seconds = median(their.ms);
    bench.add(row("pack, s", median(our.ms), seconds).bar(Bar::Ratio(1.3)).note(note));
    bench.add(row("pack, CPU s", median(our.cpu), median(their.cpu)));
    let again = again(bench, shop, bundle)?;
    bench.add(row("pack again, one template changed, s", again, seconds).bar(Bar::Most(0.5)));
    bytes(&theirs.0)
}

/// A file in memory that is gone afterwards.
struct Output(PathBuf);

impl Output {
    fn new(name: &str) -> Output {
        Output(memory(name))
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Milliseconds of a person's second pack: to the same place, with the template written anew since.
fn again(bench: &Bench, shop: &Shop, bundle: &Path) -> Result<f64, String> {
    let out = Output::new("flask-again");
    let template = shop.dir.join("shop/templates/index.html");
    let change = |text: &str| fs::write(&template, text).map_err(|error| error.to_string());
    shop.pack("bundle", &out.0)?;
    let mut ms = Vec::new();
    for round in 0..bench.times(9).max(3) {
        change(&format!("{TEMPLATE}<!-- {round} -->\n"))?;
        shell("sync", &[])?;
        ms.push(cost(|| shop.pack("bundle", &out.0))?.0);
    }
    change(TEMPLATE)?;
    shop.pack("bundle", &out.0)?;
    let equal = shell("cmp \"$1\" \"$2\"", &[bundle, &out.0]);
    equal.map_err(|_| "packing again gave another file than packing anew".to_owned())?;
    Ok(median(ms))
}

fn size(bench: &mut Bench, bundle: &Path, archive: f64) -> Result<(), String> {
    let row = |what, bytes: f64| Row::new(what, APP, bytes / 1e6).peer(Packer::Tools.name(), archive / 1e6);
    bench.add(row("payload, MB", payload(bundle)?).bar(Bar::Ratio(1.07)));
    bench.add(row("file, MB", bytes(bundle)?));
    Ok(())
}

/// Later starts in turns with the same files, unpacked, under the host's interpreter.
fn later(bench: &mut Bench, shop: &Shop, bundle: &Path, plain: &Path, place: &Place) -> Result<(), String> {
    let hand = by_hand(shop, plain, &place.0.join("by-hand"))?;
    let starts = [bench.ours().start(bundle, &place.0.join("store")), hand];
    for (start, dir) in starts.iter().zip(["store", "by-hand"]) {
        let interpreter = start.run()?.exe;
        if !interpreter.starts_with(place.0.join(dir)) {
            return Err(format!("it ran with {}, not with that in {dir}", interpreter.display()));
        }
    }
    let [our, their] = starts_in_turns(&starts, bench.times(60).max(10))?;
    let above = our.ms.iter().zip(&their.ms).map(|(ours, theirs)| ours - theirs).collect();
    let note = format!("{}; peer {}", spread(&our.ms), spread(&their.ms));
    let row = |what, ours, theirs| Row::new(what, APP, ours).peer("by hand", theirs);
    let by_hand = median(their.ms);
    bench.add(row("later start, ms", median(our.ms), by_hand).note(note));
    bench.add(row("later start, CPU ms", median(our.cpu), median(their.cpu)));
    let most = Bar::Most((by_hand * 0.03).max(2.0));
    bench.add(Row::new("later start above by hand, ms", APP, median(above)).bar(most));
    Ok(())
}

/// The app as a person unpacks it who has no bundle: a virtual environment of the host's interpreter with the files of
/// `plain`, started in the words of the bundle. Its module path is the bundle's, so nothing else of the host is read.
fn by_hand(shop: &Shop, plain: &Path, dir: &Path) -> Result<Start, String> {
    shop.unpack(plain, dir)?;
    shell(
        "cd \"$1\" && rm -r bin && mkdir bin && cp -P \"$2\"/bin/python* bin && cp \"$2\"/pyvenv.cfg .
         for d in lib/python3*/dist-packages; do [ ! -d \"$d\" ] || mv \"$d\" \"${d%/*}/site-packages\"; done",
        &[dir, &shop.venv],
    )?;
    let python = dir.join("bin/python").display().to_string();
    Ok(Start { argv: vec![python, "-I".into(), "-B".into(), "-m".into(), "shop".into()], env: Vec::new() })
}

/// What one of two contenders took: milliseconds, and those of CPU, which on a busy machine say what the first cannot.
#[derive(Default)]
struct Taken {
    ms: Vec<f64>,
    cpu: Vec<f64>,
}

/// Milliseconds of some work, and of CPU in child processes.
fn cost(work: impl FnOnce() -> Result<(), String>) -> Result<(f64, f64), String> {
    let before = children_ms();
    let seconds = timed(work)?;
    Ok((seconds * 1e3, children_ms() - before))
}

/// Does the work of two contenders, 0 and 1, in turns.
fn turns(
    rounds: usize,
    mut work: impl FnMut(usize) -> Result<(f64, f64), String>,
) -> Result<[Taken; 2], String> {
    let mut taken = [Taken::default(), Taken::default()];
    for round in 0..rounds {
        for turn in 0..2 {
            let at = (round + turn) % 2;
            let (ms, cpu) = work(at)?;
            taken[at].ms.push(ms);
            taken[at].cpu.push(cpu);
        }
    }
    Ok(taken)
}

/// Milliseconds from the spawn to the page, and of CPU to the end. numpy's threads, which wait in a loop, are left out.
fn starts_in_turns(starts: &[Start; 2], rounds: usize) -> Result<[Taken; 2], String> {
    let starts = starts.clone().map(|start| start.env("OPENBLAS_NUM_THREADS", "1"));
    turns(rounds, |at| {
        let before = children_ms();
        let ms = starts[at].run()?.main_ms;
        Ok((ms, children_ms() - before))
    })
}

/// PyInstaller's file of the app, and the seconds that making it took; a quick run takes an earlier one.
struct OneFile {
    file: PathBuf,
    seconds: Option<f64>,
}

fn one_file(bench: &Bench, shop: &Shop) -> Result<OneFile, String> {
    let file = shop.dir.join("pyinstaller/dist/shop");
    if bench.options.quick && file.exists() {
        return Ok(OneFile { file, seconds: None });
    }
    let pyinstaller = peers::of_pypi(&bench.options.work, "pyinstaller")?;
    let make = || {
        shell(
            "site=$(echo \"$2\"/lib/python3*/site-packages); mkdir -p \"$4\"; cd \"$4\"
             PYINSTALLER_CONFIG_DIR=\"$4/config\" exec \"$1\" --onefile --clean --noconfirm --log-level ERROR --paths \"$site\" \
             --collect-all psycopg_binary --add-data \"$3/templates:templates\" \"$3/shop.py\"",
            &[&pyinstaller, &shop.venv, &shop.dir.join("shop"), &shop.dir.join("pyinstaller")],
        )
        .map(drop)
    };
    let seconds = Some(timed(make)?);
    Ok(OneFile { file, seconds })
}

/// Size, first and later starts beside PyInstaller's file, which unpacks at every start.
fn beside(bench: &mut Bench, shop: &Shop, bundle: &Path, one: &OneFile, place: &Place) -> Result<(), String> {
    const PEER: &str = "PyInstaller";
    let (store, temporary) = (place.0.join("store"), place.0.join("temporary"));
    let starts = [
        bench.ours().start(bundle, &store),
        Start::of(&one.file).env("HOME", &place.0).env("TMPDIR", &temporary),
    ];
    empty(&temporary)?;
    for start in &starts {
        start.run()?;
    }
    let [our, their] = starts_in_turns(&starts, bench.times(20).max(5))?;
    let each = median(their.ms);
    let mut first = Vec::new();
    for _ in 0..bench.times(9).max(3) {
        empty(&store)?;
        first.push(starts[0].run()?.main_ms);
    }
    let row = |what, ours: f64, theirs: f64| Row::new(what, APP, ours).peer(PEER, theirs);
    bench.add(row("first start (tmpfs), ms", median(first), each));
    bench.add(row("later start, ms", median(our.ms), each));
    bench.add(row("file, MB", bytes(bundle)? / 1e6, bytes(&one.file)? / 1e6));
    match one.seconds {
        Some(seconds) => bench.add(row("pack, nothing remembered, s", shop.pack_anew()?, seconds)),
        None => bench.notes.push(format!("pack beside {PEER}: left out by --quick")),
    }
    Ok(())
}
