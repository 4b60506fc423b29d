//! Whether references lead to ports that somebody declares, and whether no two services want the same one.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use kitbag_format::port::{Number, Port, Protocol, Reference};
use kitbag_format::template::Piece;

use super::ports::{Ports, digits};
use super::{Supervised, Text};
use crate::diagnostic::{Diagnostic, near_miss};
use crate::manifest::{Wrong, written};
use crate::read::{Late, alternatives};

/// What a service or task declares, and refers to.
#[derive(Debug)]
pub struct Party {
    /// Its name.
    pub name: Text,
    /// What a service listens on; `None`: a task.
    pub ports: Option<Ports>,
    /// How many of it run.
    pub instances: u32,
    /// Placeholders of its command, its probes and their addresses.
    pub late: Vec<Late>,
    /// The ports that its sandbox lets it connect to.
    pub connect: Vec<Text>,
}

/// The services and tasks that references can name.
#[derive(Debug, Default)]
pub struct Known<'a> {
    services: BTreeMap<&'a str, Offer<'a>>,
    tasks: BTreeSet<&'a str>,
}

#[derive(Debug)]
struct Offer<'a> {
    instances: u32,
    ports: &'a BTreeMap<String, Port>,
}

/// Reports in `errors` the references of `parties` that lead nowhere, and ports that two of them want; returns what is
/// odd and no error, with its place.
pub fn check(parties: &[Party], errors: &mut Vec<Diagnostic>) -> Vec<(Range<usize>, String)> {
    let known = Known::among(parties);
    for party in parties {
        let own = party.ports.is_some().then(|| party.name.get_ref().as_str());
        for late in &party.late {
            if let Piece::Port(reference) = &late.piece
                && let Some(wrong) = known.fault(own, reference, late.in_address)
            {
                errors.push(wrong.at(late.span.clone()));
            }
        }
        let entries = party.connect.iter();
        errors
            .extend(entries.filter_map(|entry| Some(known.connect_fault(entry.get_ref())?.at(entry.span()))));
    }
    conflicts(parties, errors)
}

impl<'a> Known<'a> {
    fn among(parties: &'a [Party]) -> Self {
        let mut known = Self::default();
        for party in parties {
            let name = party.name.get_ref().as_str();
            match &party.ports {
                Some(ports) => {
                    let offer = Offer { instances: party.instances, ports: &ports.all };
                    known.services.insert(name, offer);
                }
                None => {
                    known.tasks.insert(name);
                }
            }
        }
        known
    }

    /// Those of a manifest that was read without errors.
    pub fn of(supervised: &'a Supervised) -> Self {
        let services = supervised.services.iter().map(|(name, source)| {
            let more = &source.service.more;
            (name.get_ref().as_str(), Offer { instances: more.instances, ports: &more.ports })
        });
        let tasks = supervised.tasks.iter().map(|(name, _)| name.get_ref().as_str());
        Self { services: services.collect(), tasks: tasks.collect() }
    }

    /// What is wrong with a reference that the service `own`, or a task, makes; `in_address` of a probe, or not.
    pub fn fault(&self, own: Option<&str>, reference: &Reference, in_address: bool) -> Option<Wrong> {
        if reference.bundle.is_some() {
            return None;
        }
        let shown = |reference: Reference| written(&Piece::Port(reference));
        let port = match (&reference.unit, own) {
            (Some(unit), _) => match self.find(unit, reference, &shown) {
                Ok((service, offer)) => Self::port(service, offer, reference, &shown),
                Err(wrong) => return Some(wrong),
            },
            (None, Some(own)) => Self::port(own, self.services.get(own)?, reference, &shown),
            (None, None) => {
                let wrong = Wrong::new(format!("`{}` in a task", shown(reference.clone())));
                let wrong = wrong.label("a task declares no ports");
                return Some(wrong.help(format!("a service's is `${{ports.SERVICE.{}}}`", reference.port)));
            }
        };
        match port {
            Err(wrong) => Some(wrong),
            Ok(port) if in_address && port.protocol != Protocol::Tcp => {
                let title =
                    format!("a probe cannot ask `{}`: it speaks {}", reference.port, port.protocol.name());
                Some(Wrong::new(title).help("`tcp` and `http` connect by TCP; a `command` can ask anything"))
            }
            Ok(_) if reference.default.is_some() => {
                let title = format!("the default of `{}` has no effect", shown(reference.clone()));
                let wrong = Wrong::new(title).label("a port of this bundle is always there");
                Some(
                    wrong
                        .help(format!("write `{}`", shown(Reference { default: None, ..reference.clone() }))),
                )
            }
            Ok(_) => None,
        }
    }

    /// What is wrong with `cache.main`, `redis/cache.main` or `443` among the ports to connect to.
    fn connect_fault(&self, entry: &str) -> Option<Wrong> {
        // A number that is none is reported already.
        if digits(entry).is_some() {
            return None;
        }
        let reference = Reference::parse(&format!("ports.{entry}"));
        let plain = |reference: &Reference| !entry.contains(':') && reference.default.is_none();
        let Some(reference) = reference.filter(plain) else {
            let is_number = entry.starts_with(|first: char| first.is_ascii_digit() || first == '-');
            let wrong = Wrong::new(format!("`{entry}` names no port"));
            let wrong = wrong.label("expected `SERVICE.PORT`, `BUNDLE/SERVICE.PORT` or a number");
            return (!is_number || entry.contains('.')).then_some(wrong);
        };
        if reference.bundle.is_some() {
            return None;
        }
        let shown = |reference: Reference| reference.to_string().trim_start_matches("ports.").to_owned();
        let unit = reference.unit.as_deref().unwrap_or_default();
        let (service, offer) = match self.find(unit, &reference, &shown) {
            Ok(found) => found,
            Err(wrong) => return Some(wrong),
        };
        match Self::port(service, offer, &reference, &shown) {
            Err(wrong) => Some(wrong),
            Ok(port) if port.protocol != Protocol::Tcp => {
                let title = format!("`{entry}` in `connect` has no effect");
                let label = format!("it speaks {}, and `connect` limits TCP alone", port.protocol.name());
                Some(Wrong::new(title).label(label).help("leave it out"))
            }
            Ok(_) => None,
        }
    }

    /// The service that `unit` is, or is an instance of. `shown` is how a reference is written.
    fn find(
        &self,
        unit: &str,
        reference: &Reference,
        shown: &dyn Fn(Reference) -> String,
    ) -> Result<(&'a str, &Offer<'a>), Wrong> {
        if let Some((name, offer)) = self.services.get_key_value(unit) {
            return Ok((name, offer));
        }
        let instance = unit.rsplit_once('.').and_then(|(name, index)| Some((name, digits(index)?)));
        if let Some((name, index)) = instance
            && let Some((name, offer)) = self.services.get_key_value(name)
        {
            let (last, index) = (offer.instances - 1, u32::from(index));
            return if index <= last {
                Ok((name, offer))
            } else {
                let wrong = Wrong::new(format!("there is no instance {index} of `{name}`"));
                let own = shown(Reference { unit: Some((*name).to_owned()), ..reference.clone() });
                Err(match last {
                    0 => wrong.label(format!("only one runs: `{own}`")),
                    _ => wrong.label(format!("they are numbered from 0 to {last}")),
                })
            };
        }
        if self.tasks.contains(unit) {
            let wrong = Wrong::new(format!("`{unit}` is a task"));
            return Err(wrong.label("only services have ports"));
        }
        let wrong = Wrong::new(format!("there is no service `{unit}`"));
        let with_port = |has: &dyn Fn(&BTreeMap<String, Port>) -> bool| {
            near_miss(unit, self.services.iter().filter(|(_, offer)| has(offer.ports)).map(|(name, _)| *name))
        };
        let wanted = reference.port.as_str();
        // Of what is named, the service alone may be wrong, or both; what is proposed is there.
        let near = with_port(&|ports| ports.contains_key(wanted)).map(|near| (near, wanted)).or_else(|| {
            let near = with_port(&|ports| !ports.is_empty())?;
            Some((near, near_miss(wanted, self.services[near].ports.keys().map(String::as_str))?))
        });
        if let Some((unit, port)) = near {
            let (unit, port) = (Some(unit.to_owned()), port.to_owned());
            return Err(wrong.meant(&shown(Reference { unit, port, ..reference.clone() })));
        }
        let with_bundle = shown(Reference { bundle: Some("BUNDLE".to_owned()), ..reference.clone() });
        let names = self.services.iter().filter(|(_, offer)| !offer.ports.is_empty()).map(|(name, _)| *name);
        let names: Vec<&str> = names.take(20).collect();
        let wrong = match names[..] {
            [] => wrong.label("no service declares a port"),
            _ => wrong.label(format!("expected {}", alternatives(names.into_iter()))),
        };
        Err(wrong.help(format!("another bundle's is `{with_bundle}`")))
    }

    fn port(
        service: &str,
        offer: &Offer<'a>,
        reference: &Reference,
        shown: &dyn Fn(Reference) -> String,
    ) -> Result<&'a Port, Wrong> {
        let ports = offer.ports;
        if let Some(port) = ports.get(&reference.port) {
            return Ok(port);
        }
        let wrong = Wrong::new(format!("`{service}` declares no port `{}`", reference.port));
        let names = || ports.keys().map(String::as_str);
        Err(match near_miss(&reference.port, names()) {
            Some(near) => wrong.meant(&shown(Reference { port: near.to_owned(), ..reference.clone() })),
            None if ports.is_empty() => {
                let table = format!("write `[services.{service}.ports]`");
                wrong
                    .label("it declares none")
                    .help(format!("{table} and below it `{} = \"any\"`", reference.port))
            }
            None => wrong.label(format!("expected {}", alternatives(names().take(20)))),
        })
    }
}

/// A port and whose it is.
struct Wanted<'a> {
    name: String,
    port: &'a Port,
    span: Range<usize>,
}

fn wanted(parties: &[Party]) -> Vec<Wanted<'_>> {
    let mut all = Vec::new();
    for party in parties {
        for (name, port) in party.ports.iter().flat_map(|ports| &ports.all) {
            let spans = party.ports.as_ref().map(|ports| &ports.spans);
            let span = spans.and_then(|spans| spans.get(name)).cloned().unwrap_or_default();
            all.push(Wanted { name: format!("{}.{name}", party.name.get_ref()), port, span });
        }
    }
    // In the order of the file, so that the second one is the wrong one.
    all.sort_by_key(|wanted| wanted.span.start);
    all
}

/// Fixed numbers that two ports want. A number is leased as a whole, whatever the address: one that listens everywhere
/// leaves none of it to others.
fn conflicts(parties: &[Party], errors: &mut Vec<Diagnostic>) -> Vec<(Range<usize>, String)> {
    let all = wanted(parties);
    let mut fixed: BTreeMap<(Protocol, &str), &Wanted<'_>> = BTreeMap::new();
    for wanted in &all {
        let Number::Fixed(number) = &wanted.port.number else { continue };
        let key = (wanted.port.protocol, number.as_str());
        match fixed.get(&key) {
            Some(first) => errors.push(conflict(first, wanted, number)),
            None => {
                fixed.insert(key, wanted);
            }
        }
    }
    let mut odd = Vec::new();
    for wanted in &all {
        if let Number::Range { prefer: Some(number), .. } = &wanted.port.number
            && let Some(holder) = fixed.get(&(wanted.port.protocol, number.as_str()))
        {
            let text =
                format!("`{}` prefers {number} and never gets it: it is `{}`'s", wanted.name, holder.name);
            odd.push((wanted.span.clone(), text));
        }
    }
    odd
}

fn conflict(first: &Wanted<'_>, second: &Wanted<'_>, number: &str) -> Diagnostic {
    let protocol = first.port.protocol.name();
    let title = format!("`{}` and `{}` have one port: {number}/{protocol}", first.name, second.name);
    let label = if first.port.address == second.port.address {
        "this one too"
    } else {
        "this one too: a number is leased for all addresses"
    };
    Diagnostic::new(title)
        .at(second.span.clone(), label)
        .with(first.span.clone(), format!("this one is {number}/{protocol}"))
        .help("give one of them another number, a `range`, or `\"any\"`: who needs it writes `${ports.SERVICE.NAME}`")
}
