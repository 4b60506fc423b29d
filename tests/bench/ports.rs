//! What ports cost a start, and whether supervisors that begin at once get in each other's way.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::Bench;
use crate::measure::{empty, median, timed, tool};
use crate::peers::Packer;
use crate::report::{Bar, Row};

/// Ports of the large bundle.
const PORTS: usize = 1_000;
/// Supervisors that begin at once.
const AT_ONCE: usize = 100;
/// Units that sleep, in the large bundle.
const UNITS: usize = 20;

/// A bundle of services that sleep, and where its copies keep what they keep.
struct Site {
    folder: PathBuf,
    file: PathBuf,
}

impl Site {
    /// Packs a bundle whose one service has so many instances, with so many ports each.
    fn new(bench: &Bench, name: &str, instances: usize, ports: usize) -> Result<Self, String> {
        let folder = bench.options.work.join("ports").join(name);
        empty(&folder)?;
        let ports: String = (0..ports).map(|at| format!("p{at} = \"any\"\n")).collect();
        let manifest = format!(
            "name = \"bench\"\nversion = \"1\"\n[[include]]\nfrom = \"/usr/bin/sleep\"\nto = \"bin/sleep\"\n\
             [services.sleeps]\nargv = [\"bin/sleep\", \"infinity\"]\ninstances = {instances}\n\
             [services.sleeps.ports]\n{ports}"
        );
        let project = folder.join("project");
        let write = || {
            fs::create_dir_all(&project)?;
            fs::write(project.join("kitbag.toml"), &manifest)
        };
        write().map_err(|error| format!("{}: {error}", project.display()))?;
        let file = folder.join("bundle");
        let Packer::Kitbag { command, .. } = bench.ours() else { return Err("no kitbag".to_owned()) };
        tool(&[
            &*command.to_string_lossy(),
            "pack",
            "--quiet",
            &*project.to_string_lossy(),
            "-o",
            &*file.to_string_lossy(),
        ])?;
        Ok(Self { folder, file })
    }

    /// A command of the copy of this number.
    fn command(&self, copy: usize, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.file);
        command
            .args(arguments)
            .env("KITBAG_STORE", self.folder.join("store"))
            .env("KITBAG_RUN", self.folder.join("run"));
        command
            .env("KITBAG_STATE", self.folder.join(format!("state-{copy}")))
            .env("KITBAG_NAME", format!("copy-{copy}"));
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// Does that with so many copies at once.
    fn all(&self, copies: usize, word: &str) -> Result<(), String> {
        let begun: Vec<_> = (0..copies).map(|copy| self.command(copy, &[word]).spawn()).collect();
        let mut failed = 0;
        for child in begun {
            let status = child.and_then(|mut child| child.wait()).map_err(|error| error.to_string())?;
            failed += usize::from(!status.success());
        }
        if failed == 0 { Ok(()) } else { Err(format!("{word}: {failed} of {copies} failed")) }
    }

    /// Milliseconds until so many copies, begun at once, are ready; they are stopped again.
    fn started(&self, copies: usize) -> Result<f64, String> {
        let took = timed(|| self.all(copies, "start"));
        let clear = self.all(copies, "stop");
        let took = took?;
        clear.map(|()| took * 1000.0)
    }

    /// The numbers that all copies have.
    fn numbers(&self) -> Result<Vec<u64>, String> {
        let mut command = self.command(0, &["ports", "--host", "--json"]);
        let output = command.stdout(Stdio::piped()).output().map_err(|error| error.to_string())?;
        let told: serde_json::Value =
            serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())?;
        let bundles = told["bundles"].as_array().map_or(&[][..], Vec::as_slice);
        let ports = bundles.iter().flat_map(|bundle| bundle["ports"].as_array().into_iter().flatten());
        Ok(ports.filter_map(|port| port["number"].as_u64()).collect())
    }
}

/// Ports and starts.
pub fn ports(bench: &mut Bench) -> Result<(), String> {
    let times = bench.times(11);
    let with = Site::new(bench, "with", UNITS, PORTS / UNITS)?;
    let without = Site::new(bench, "without", UNITS, 0)?;
    let mut took = [Vec::new(), Vec::new(), Vec::new()];
    for site in [&with, &without] {
        // Unpacked, and with numbers that it had before.
        site.started(1)?;
    }
    for _ in 0..times {
        // A first start chooses; later ones take what they had.
        let _ = fs::remove_file(with.folder.join("state-0/.kitbag/ports"));
        took[0].push(with.started(1)?);
        took[1].push(with.started(1)?);
        took[2].push(without.started(1)?);
    }
    let [chosen, again, none] = took.map(median);
    let row = |what: &str, figure: f64| {
        Row::new(what, &format!("{PORTS} ports"), figure).peer("without ports", none)
    };
    bench.add(row("start until ready, numbers chosen (ms)", chosen).bar(Bar::Most(1_000.0)));
    bench.add(row("start until ready, numbers as before (ms)", again).bar(Bar::Most(1_000.0)));
    let lease = (chosen.max(again) - none).max(0.0) / PORTS as f64;
    let lease = Row::new("a lease, lent and told (ms)", &format!("{PORTS} ports"), lease);
    bench.add(lease.bar(Bar::Most(1.0)));

    let copies = Site::new(bench, "copies", 1, 3)?;
    copies.started(1)?;
    let ten = median((0..times).map(|_| copies.started(AT_ONCE / 10)).collect::<Result<_, _>>()?);
    let mut hundred = Vec::new();
    for _ in 0..times.min(5) {
        hundred.push(timed(|| copies.all(AT_ONCE, "start"))? * 1000.0);
        let numbers = copies.numbers()?;
        let different = numbers.iter().collect::<BTreeSet<_>>().len();
        copies.all(AT_ONCE, "stop")?;
        if (numbers.len(), different) != (3 * AT_ONCE, 3 * AT_ONCE) {
            return Err(format!("{AT_ONCE} supervisors have {different} numbers in {} ports", numbers.len()));
        }
    }
    let row = Row::new(
        "begun at once until all are ready, each (ms)",
        &format!("{AT_ONCE} bundles"),
        median(hundred) / AT_ONCE as f64,
    );
    bench.add(
        row.peer("10 at once", ten / (AT_ONCE / 10) as f64)
            .bar(Bar::Ratio(1.25))
            .note("no number twice, as `ports --host` tells; each has three"),
    );
    Ok(())
}
