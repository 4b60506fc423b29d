//! kitbag beside its peers: one command, one table, the bar beside each figure.
//!
//! `cargo bench -p kitbag-tests -- [--only size,warm,…] [--input tiny,medium,large] [--quick] [--kills N] [--work DIR]
//! [--json FILE] [--update-docs]`. Exit status 1 if a bar is missed or a figure could not be taken.
//!
//! Peers are measured where they are found, Debian's being `makeself runit s6 supervisor tini dumb-init`, beside `strace`
//! and `musl-tools`. It has no scie-jump, which BENCH_SCIE_JUMP names where it is not on PATH, and no dinit, which
//! BENCH_DINIT names: `make -C src` builds it from a source tree that `./configure` was run in.

mod closure;
mod disk;
mod faults;
mod inputs;
mod measure;
mod peers;
mod ports;
mod python;
mod report;
mod services;
mod size;
mod start;

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use inputs::{Input, Inputs};
use peers::Packer;
use report::Row;

/// Pages of docs/, each with what is measured for it, in this order.
const PAGES: [(&str, &[(&str, Section)]); 2] =
    [("benchmark.md", &BUNDLES), ("benchmark-services.md", &SERVICES)];

/// The file: packing, unpacking, starting.
const BUNDLES: [(&str, Section); 11] = [
    ("size", size::size),
    ("pack", size::pack),
    ("warm", start::warm),
    ("cold", start::cold),
    ("memory", start::memory),
    ("disk", disk::beside),
    ("delta", disk::delta),
    ("faults", faults::faults),
    ("compare", start::compare),
    ("closure", closure::closure),
    ("python", python::python),
];

/// What supervises.
const SERVICES: [(&str, Section); 6] = [
    ("scale", services::scale),
    ("restart", services::restart),
    ("idle", services::idle),
    ("logs", services::logs),
    ("orphans", services::orphans),
    ("ports", ports::ports),
];

type Section = fn(&mut Bench) -> Result<(), String>;

/// What the command line says.
struct Options {
    only: Vec<String>,
    inputs: Vec<String>,
    kills: usize,
    quick: bool,
    work: PathBuf,
    json: Option<PathBuf>,
    update_docs: bool,
}

/// Everything that sections share.
pub struct Bench {
    options: Options,
    inputs: Inputs,
    packers: Vec<Packer>,
    packed: HashMap<(&'static str, String), PathBuf>,
    rows: Vec<Row>,
    /// Which rows are of which page.
    pages: Vec<(&'static str, Range<usize>)>,
    notes: Vec<String>,
    failed: bool,
}

impl Bench {
    /// kitbag, making tools.
    fn ours(&self) -> Packer {
        self.packers[0].clone()
    }

    /// kitbag, making service bundles.
    fn service(&self) -> Packer {
        match self.ours() {
            Packer::Kitbag { command, .. } => Packer::Kitbag { command, service: true },
            other => other,
        }
    }

    /// The inputs that were asked for, of those a section can use.
    fn trees(&self, of: &[&str]) -> Result<Vec<Input>, String> {
        let wanted = of.iter().filter(|name| self.options.inputs.iter().any(|input| input == *name));
        wanted.map(|name| self.inputs.tree(name)).collect()
    }

    /// The file that `packer` makes of `input`: made once in a run.
    fn file(&mut self, packer: &Packer, input: &Input) -> Result<PathBuf, String> {
        let key = (packer.name(), input.name.clone());
        if let Some(file) = self.packed.get(&key) {
            return Ok(file.clone());
        }
        let file = self.options.work.join("bundles").join(format!("{}.{}", input.name, packer.name()));
        packer.pack(input, &file)?;
        self.packed.insert(key, file.clone());
        Ok(file)
    }

    fn add(&mut self, row: Row) {
        eprint!(
            "{}",
            report::table(std::slice::from_ref(&row), &[]).lines().nth(1).unwrap_or_default().to_owned()
                + "\n"
        );
        self.rows.push(row);
    }

    /// How often something is repeated.
    fn times(&self, often: usize) -> usize {
        if self.options.quick { often.div_ceil(5) } else { often }
    }
}

fn main() -> ExitCode {
    if let Some(status) = start::as_meter() {
        return status;
    }
    match options().and_then(run) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::from(2)
        }
    }
}

fn run(options: Options) -> Result<bool, String> {
    let bundles = options.work.join("bundles");
    std::fs::create_dir_all(&bundles).map_err(|error| format!("{}: {error}", bundles.display()))?;
    let (packers, notes) = peers::all(&kitbag()?);
    let inputs = Inputs::new(&options.work);
    let mut bench = Bench {
        options,
        inputs,
        packers,
        notes,
        packed: HashMap::new(),
        rows: Vec::new(),
        pages: Vec::new(),
        failed: false,
    };
    for (page, sections) in PAGES {
        let first = bench.rows.len();
        for (name, section) in sections {
            let wanted = bench.options.only.is_empty() || bench.options.only.iter().any(|only| only == name);
            if wanted && let Err(why) = section(&mut bench) {
                bench.failed = true;
                eprintln!("{name}: {why}");
                bench.notes.push(format!("NOT MEASURED: {name}: {why}"));
            }
        }
        bench.pages.push((page, first..bench.rows.len()));
    }
    publish(&bench)?;
    Ok(!bench.failed && bench.rows.iter().all(|row| row.passes() != Some(false)))
}

fn publish(bench: &Bench) -> Result<(), String> {
    let machine = machine();
    println!("{machine}\n{}", report::table(&bench.rows, &bench.notes));
    let write = |file: &Path, text: String| {
        std::fs::write(file, text).map_err(|error| format!("{}: {error}", file.display()))
    };
    if let Some(file) = &bench.options.json {
        write(file, report::json(&bench.rows, &bench.notes, &machine))?;
    }
    if bench.options.update_docs {
        for (page, rows) in bench.pages.iter().filter(|(_, rows)| !rows.is_empty()) {
            let text = report::markdown(&bench.rows[rows.clone()], &bench.notes, &machine);
            write(&workspace().join("docs").join(page), text)?;
        }
    }
    Ok(())
}

/// Cores, kernel and load: figures mean little without.
fn machine() -> String {
    let read = |file: &str| std::fs::read_to_string(file).unwrap_or_default().trim().to_owned();
    let load = read("/proc/loadavg");
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!(
        "{cores} cores, Linux {}, load {}",
        read("/proc/sys/kernel/osrelease"),
        load.split(' ').next().unwrap_or("?")
    )
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_owned()
}

/// Builds the command, and asks cargo where it is; KITBAG names another one.
fn kitbag() -> Result<PathBuf, String> {
    if let Some(file) = std::env::var_os("KITBAG") {
        return Ok(file.into());
    }
    let manifest = workspace().join("Cargo.toml").display().to_string();
    let cargo = std::env::var("CARGO").unwrap_or("cargo".to_owned());
    let build =
        [&cargo, "build", "--release", "-p", "kitbag", "--message-format=json", "--manifest-path", &manifest];
    let said = measure::tool(&build)?;
    let mut executable = said.lines().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        (message["target"]["name"] == "kitbag").then(|| message["executable"].as_str().map(PathBuf::from))?
    });
    executable.next_back().ok_or("cargo built no kitbag".to_owned())
}

fn options() -> Result<Options, String> {
    let mut options = Options {
        only: Vec::new(),
        inputs: ["tiny", "medium", "large"].map(str::to_owned).into(),
        kills: 50,
        quick: false,
        work: std::env::temp_dir().join("kitbag-bench"),
        json: None,
        update_docs: false,
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} wants a value"));
        let list = |text: String| text.split(',').map(str::to_owned).collect();
        match arg.as_str() {
            "--bench" => {} // cargo says this
            "--quick" => options.quick = true,
            "--update-docs" => options.update_docs = true,
            "--only" => options.only = list(value()?),
            "--input" => options.inputs = list(value()?),
            "--kills" => options.kills = value()?.parse().map_err(|error| format!("--kills: {error}"))?,
            "--work" => {
                options.work = std::path::absolute(value()?).map_err(|error| format!("--work: {error}"))?;
            }
            "--json" => options.json = Some(value()?.into()),
            _ => return Err(format!("`{arg}` is no option; see tests/bench/main.rs")),
        }
    }
    let sections: Vec<&str> =
        PAGES.iter().flat_map(|(_, sections)| sections.iter().map(|(name, _)| *name)).collect();
    known("section", &options.only, &sections)?;
    known("input", &options.inputs, &["tiny", "medium", "large"])?;
    Ok(options)
}

fn known(what: &str, asked: &[String], all: &[&str]) -> Result<(), String> {
    match asked.iter().find(|name| !all.contains(&name.as_str())) {
        Some(name) => Err(format!("there is no {what} `{name}`; there are {}", all.join(", "))),
        None => Ok(()),
    }
}
