//! A service bundle in the foreground: unpack, compare the whole tree, then supervise.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kitbag_format::manifest::{Manifest, Run, Service};

use crate::commands::{Failure, say};
use crate::environment::environment;
use crate::expand::{self, Values};
use crate::identity::Accounts;
use crate::machine::Machine;
use crate::open::Own;
use crate::place::{self, Facts};
use crate::spawn::Setup;
use crate::state_folder;
use crate::supervise::{self, ServiceSpec};
use crate::unpack::{self, Compare, Opening};

/// Runs the bundle's services until they end or are asked to. Returns the exit code. `machine`: the one that this is
/// the first process of.
pub fn run(own: &Own, machine: Option<&Machine>) -> Result<u8, Failure> {
    let manifest = own.bundle.manifest()?;
    let Run::Services(services) = &manifest.run else { return Ok(0) };
    if let Some(machine) = machine {
        machine.name(&manifest.name);
    }
    let facts = Facts::of_process(Some(&own.path));
    let (store, _) = place::choose(&facts, &own.bundle)?;
    let opening =
        Opening { bundle: &own.bundle, manifest: &manifest, compare: Compare::Everything, say: &say };
    let tree = unpack::open_tree(&store, &opening)?;
    tree.touch();
    let state = if needs_state(&manifest, services) {
        Some(state_folder::choose(&facts, &manifest.name)?)
    } else {
        None
    };
    let lock = state.as_deref().map(state_folder::lock).transpose()?;
    if let Some(state) = &state {
        for planted in state_folder::plant(&tree.root, state, &manifest.seeds)? {
            say(&format!("state begins with {planted} in {}", state.display()));
        }
    }
    let temporary = state.as_deref().and_then(|state| state_folder::temporary(&facts, state, &say));
    let values = Values {
        tree: &tree.root,
        state: state.as_deref(),
        manifest: &manifest,
        temporary: temporary.as_deref(),
    };
    let accounts = Accounts::of_host();
    let specs = services.iter().map(|(name, service)| spec(name, service, &values, &accounts));
    let specs = specs.collect::<Result<Vec<_>, _>>()?;
    let code = supervise::supervise(&manifest.name, specs);
    // Held until nothing runs any more.
    drop((lock, tree));
    Ok(code)
}

fn needs_state(manifest: &Manifest, services: &BTreeMap<String, Service>) -> bool {
    !manifest.seeds.is_empty() || services.values().any(|service| expand::uses_state(&service.command))
}

fn spec(name: &str, service: &Service, values: &Values, accounts: &Accounts) -> Result<ServiceSpec, Failure> {
    let command = &service.command;
    let program = values.program(command);
    let mut argv = vec![program.clone().into_os_string()];
    for argument in command.argv.iter().skip(1) {
        argv.push(values.text(argument)?);
    }
    let process = &service.more.process;
    let (setup, identity) = Setup::resolve(process, values, accounts).map_err(wrong(name))?;
    let env = environment(command, process, identity.as_ref(), values).map_err(wrong(name))?;
    let cwd = match &command.cwd {
        Some(cwd) => PathBuf::from(values.text(cwd)?),
        None => Path::to_owned(values.tree),
    };
    Ok(ServiceSpec {
        name: name.to_owned(),
        program,
        argv,
        env,
        cwd,
        setup,
        restart: service.restart,
        stop_signal: supervise::signal_number(&service.stop_signal).unwrap_or(15),
        stop_timeout: Duration::from_millis(service.stop_timeout_ms),
    })
}

/// Marks an error with the service that it is about.
fn wrong<E: Display>(name: &str) -> impl Fn(E) -> Failure {
    move |error| Failure::Service(format!("service {name}: {error}"))
}
