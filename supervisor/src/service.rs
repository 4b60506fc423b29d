//! A service bundle: unpack, compare the whole tree, then supervise.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kitbag_format::manifest::{Run, Service};

use crate::commands::{Failure, say};
use crate::control::Control;
use crate::expand::{self, Values};
use crate::machine::Machine;
use crate::open::Own;
use crate::place::{self, Facts};
use crate::running::background::Report;
use crate::state_folder;
use crate::store::StoreError;
use crate::supervise::{self, Bundle, ServiceSpec};
use crate::unpack::{self, Compare, Opening};

/// Where the services run.
pub enum Setting<'a> {
    /// In front of whoever started them.
    Foreground,
    /// Behind whoever started them, who waits for this report.
    Background(&'a Report),
    /// On the machine whose first process this is.
    Machine(&'a Machine),
}

/// Runs the bundle's services until they end or are asked to. Returns the exit code.
pub fn run(own: &Own, setting: &Setting<'_>) -> Result<u8, Failure> {
    let manifest = own.bundle.manifest()?;
    let Run::Services(services) = &manifest.run else { return Ok(0) };
    if let Setting::Machine(machine) = setting {
        machine.name(&manifest.name);
    }
    let facts = Facts::of_process(Some(&own.path));
    let (store, _) = place::choose(&facts, &own.bundle)?;
    let opening =
        Opening { bundle: &own.bundle, manifest: &manifest, compare: Compare::Everything, say: &say };
    let tree = unpack::open_tree(&store, &opening)?;
    tree.touch();
    let state = state_folder::choose(&facts, &manifest.name)?;
    let lock = state_folder::lock(&state)?;
    for planted in state_folder::plant(&tree.root, &state, &manifest.seeds)? {
        say(&format!("state begins with {planted} in {}", state.display()));
    }
    let values = Values { tree: &tree.root, state: Some(&state), manifest: &manifest };
    let specs =
        services.iter().map(|(name, service)| spec(name, service, &values)).collect::<Result<Vec<_>, _>>()?;
    let runtime = state_folder::runtime(&state)?;
    let control = Control::bind(&runtime).map_err(StoreError::io("listen in", &runtime))?;
    if let Setting::Background(report) = setting {
        report.supervising(&runtime)?;
    }
    let bundle = Bundle {
        name: manifest.name.clone(),
        version: manifest.version.clone(),
        state_folder: state,
        log_folder: None,
        control: Some(control),
    };
    let code = supervise::supervise(bundle, specs);
    // Held until nothing runs any more.
    drop((lock, tree));
    Ok(code)
}

fn spec(name: &str, service: &Service, values: &Values) -> Result<ServiceSpec, Failure> {
    let command = &service.command;
    let program = values.program(command);
    let mut argv = vec![program.clone().into_os_string()];
    for argument in command.argv.iter().skip(1) {
        argv.push(values.text(argument)?);
    }
    let mut env: BTreeMap<OsString, OsString> = expand::inherited(command).collect();
    for (name, text) in &command.env {
        env.insert(name.into(), values.text(text)?);
    }
    let cwd = match &command.cwd {
        Some(cwd) => PathBuf::from(values.text(cwd)?),
        None => Path::to_owned(values.tree),
    };
    Ok(ServiceSpec {
        name: name.to_owned(),
        program,
        argv,
        env: env.into_iter().collect(),
        cwd,
        restart: service.restart,
        stop_signal: supervise::signal_number(&service.stop_signal).unwrap_or(15),
        stop_timeout: Duration::from_millis(service.stop_timeout_ms),
    })
}
