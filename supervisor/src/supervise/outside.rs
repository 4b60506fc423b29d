//! Ports of other bundles that texts name: looked for in the host's registry, and waited for.

use std::net::SocketAddr;

use kitbag_format::port::{Part as PartOf, Reference};
use kitbag_format::sort;

use crate::endpoint::Endpoint;
use crate::ports::registry::{Found, Published, Registry};
use crate::ports::watch::Watch;
use crate::state::State;

use super::order::Part;
use super::ports::Ports;
use super::{Source, Supervisor, readable};

/// A port of another bundle: bundle, unit, port.
pub type Outer = (String, String, String);

/// What a text names, if it is that.
pub fn outer_of(reference: &Reference) -> Option<Outer> {
    let Reference { bundle: Some(bundle), unit: Some(unit), port, .. } = reference else { return None };
    Some((bundle.clone(), unit.clone(), port.clone()))
}

impl Ports {
    /// Where a port of another bundle is, or why that is not known.
    pub(super) fn outer(&self, key: &Outer) -> Option<&Result<Endpoint, String>> {
        self.outer.iter().find(|(known, _)| known == key).map(|(_, found)| found)
    }
}

impl Supervisor {
    /// True if a part's units wait for ports of other bundles, which is noted.
    pub(super) fn waits_outside(&mut self, part: Part) -> bool {
        let missing = self.missing_outside(part);
        let Some((_, why)) = missing.first() else { return false };
        for &id in &self.parts[part].units {
            let unit = &mut self.units[id];
            if unit.service.state == State::Needing {
                unit.reason = Some(why.clone());
            }
        }
        true
    }

    /// What a part needs of other bundles that is not there now: its name, and why.
    pub(super) fn missing_outside(&self, part: Part) -> Vec<(String, String)> {
        let missing = |reference: &Reference| {
            let key = outer_of(reference)?;
            let why = self.ports.outer(&key)?.as_ref().err()?.clone();
            Some((format!("{}/{}.{}", key.0, key.1, key.2), why))
        };
        self.parts[part].spec.wiring().outer.iter().filter_map(missing).collect()
    }

    /// Begins to look for ports of other bundles, if any are named.
    pub(super) fn look_outside(&mut self) {
        let references = self.parts.iter().flat_map(|members| members.spec.references());
        let keys = sort::set(references.filter_map(outer_of));
        self.ports.outer = keys.into_iter().map(|key| (key, Err(String::new()))).collect();
        if self.ports.outer.is_empty() {
            return;
        }
        let watch = self.ports.registry.as_ref().map(Registry::watch);
        match watch {
            Some(Ok(watch)) if self.events.add(&watch, readable(Source::Registry.token())).is_ok() => {
                self.ports.watch = Some(watch);
            }
            _ => {
                self.logs.say("ports of other bundles are looked for once: their registry cannot be watched")
            }
        }
        self.find_outside();
    }

    /// The registry has changed.
    pub(super) fn take_registry(&mut self) {
        if !self.ports.watch.as_mut().is_some_and(Watch::changed) {
            return;
        }
        self.find_outside();
        for part in 0..self.parts.len() {
            if !self.parts[part].spec.wiring().outer.is_empty() {
                self.check_needs(part);
            }
        }
    }

    /// Looks for the ports of other bundles, and tells which have come or moved.
    fn find_outside(&mut self) {
        for at in 0..self.ports.outer.len() {
            let (key, before) = &self.ports.outer[at];
            let found = self.look_up(key);
            if let Ok(endpoint) = &found
                && before.as_ref() != Ok(endpoint)
            {
                let (bundle, unit, port) = key;
                let news = format!("{bundle}/{unit}.{port} is {}", endpoint.text(PartOf::Address));
                self.publish(String::new(), "port".to_owned(), news);
            }
            self.ports.outer[at].1 = found;
        }
    }

    fn look_up(&self, (bundle, unit, port): &Outer) -> Result<Endpoint, String> {
        let Some(registry) = &self.ports.registry else {
            return Err("this bundle sees no other: no folder can be used for the registry".to_owned());
        };
        match registry.find(bundle, unit, port) {
            Found::One(port) => Ok(endpoint_of(&port)),
            Found::NoBundle => Err(format!(
                "it waits for the port {port} of {unit} in the bundle {bundle}, which does not run here as this user or \
                 root; `ports --host` shows who runs"
            )),
            Found::NoPort(names) => Err(format!(
                "it waits for the port {port} of {unit} in the bundle {bundle}, which runs and has none of that name{}",
                if names.is_empty() { String::new() } else { format!(", but {}", names.join(", ")) }
            )),
            Found::Ambiguous(states) => Err(format!(
                "{} bundles called {bundle} run here, with their state in {}; start one with KITBAG_NAME=OTHER to tell \
                 them apart",
                states.len(),
                states.join(", ")
            )),
        }
    }
}

fn endpoint_of(port: &Published) -> Endpoint {
    match port.address {
        Some(address) => Endpoint::Network(SocketAddr::new(address, port.number)),
        None => Endpoint::Unix(port.path.clone().into()),
    }
}
