//! The manifest that travels inside a bundle: every default made explicit, as JSON text. See `docs/format.md`.
//!
//! The bundler writes it from `kitbag.toml`; the supervisor reads it and nothing else. A field that a
//! reader does not know is ignored. What a reader must not ignore is named in [`Manifest::requires`].

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::Map;

use crate::index::is_normal;
use crate::json::{Entries, Fields, Value, Wrong};
use crate::object;
use crate::service::{self, Logs, Task};
pub use crate::service::{Restart, Service};

/// Names in [`Manifest::requires`] that this version understands.
pub const KNOWN_REQUIREMENTS: &[&str] = &[];

/// What a bundle is and what it starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The app's name: `[a-z0-9][a-z0-9._-]*`, at most 64 bytes. Names its state folder.
    pub name: String,
    /// The app's version, free text without white space and `/`, at most 64 bytes.
    pub version: String,
    /// One line for people, possibly empty.
    pub description: String,
    /// Features that a reader must know in order to run this bundle; see [`KNOWN_REQUIREMENTS`].
    pub requires: Vec<String>,
    /// What the file does when it is run.
    pub run: Run,
    /// Files copied to the state folder where nothing is there yet.
    pub seeds: Vec<Seed>,
    /// A service bundle's tasks, by names that no service has.
    pub tasks: BTreeMap<String, Task>,
    /// What becomes of what services and tasks print.
    pub logs: Logs,
}

/// The two kinds of bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Run {
    /// A tool: the file behaves as this program.
    Command(Command),
    /// A service bundle: the file supervises these, by name.
    Services(BTreeMap<String, Service>),
}

/// A program with its arguments, environment and working directory. Strings are templates
/// (see [`crate::template`]).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Command {
    /// The program and its arguments. The program is a path in the bundle's tree without `${tree}/`, e.g. `bin/app`.
    pub argv: Vec<String>,
    /// Variables set for the program on top of the environment it inherits.
    pub env: BTreeMap<String, String>,
    /// Working directory. `None`: a tool keeps its caller's, a service has the tree.
    pub cwd: Option<String>,
    /// Files of the tree that are executed together with the program: its loader, its libraries. Where there are
    /// any, the caller's variables that begin with [`LOADER_VARIABLES`] are kept from it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub loads: Vec<String>,
}

object!(Command { argv } default { env, cwd, loads });

/// What the names of variables begin with that make a dynamic loader load something else (ld.so(8)).
pub const LOADER_VARIABLES: &str = "LD_";

/// A file of the tree that becomes a file of the state folder at the first start.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Seed {
    /// Path in the tree, of a file or a folder.
    pub from: String,
    /// Path in the state folder.
    pub to: String,
}

object!(Seed { from, to });

/// `SIGTERM`
pub fn default_stop_signal() -> String {
    "SIGTERM".to_owned()
}

/// Ten seconds.
pub const fn default_stop_timeout_ms() -> u64 {
    10_000
}

impl Manifest {
    /// The manifest as it stands in a bundle: indented JSON with a newline at its end.
    pub fn to_text(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text
    }

    /// Reads what [`Self::to_text`] wrote; the error says where the JSON is wrong.
    pub fn from_text(text: &str) -> Result<Self, Wrong> {
        let objects = text.bytes().filter(|byte| *byte == b'{').count();
        if text.len() > LONGEST_TEXT || objects > MOST_OBJECTS {
            return Err(Wrong::new("a manifest is not so long"));
        }
        serde_json::from_str(text).map_err(|error| Wrong::new(error.to_string()))
    }

    /// What a reader refuses, as words after "its manifest", or `None`. Names become parts of paths, so a hostile
    /// one must not lead anywhere else; what it says of services is within bounds that a supervisor can live with
    /// ([`service::fault`]).
    pub fn fault(&self) -> Option<&'static str> {
        let commands = self.commands();
        let programs = commands.iter().map(|(_, command)| command.argv.first().map_or("", String::as_str));
        let loaded = commands.iter().flat_map(|(_, command)| command.loads.iter().map(String::as_str));
        let seeded = self.seeds.iter().flat_map(|seed| [seed.from.as_str(), seed.to.as_str()]);
        if !is_name(&self.name) || commands.iter().any(|(name, _)| name.is_some_and(|name| !is_name(name))) {
            Some("has a name that is none")
        } else if !is_version(&self.version) {
            Some("has a version that is none")
        } else if commands.is_empty()
            || programs.chain(loaded).chain(seeded).any(|path| !is_normal(path.as_bytes()))
        {
            Some("has no program, or a path that leaves the tree")
        } else {
            service::fault::fault(self)
        }
    }

    /// True for a tool, false for a service bundle.
    pub const fn is_tool(&self) -> bool {
        matches!(self.run, Run::Command(_))
    }

    /// Every command, to change it.
    pub fn commands_mut(&mut self) -> Vec<&mut Command> {
        let of_tasks = self.tasks.values_mut().map(|task| &mut task.command);
        match &mut self.run {
            Run::Command(command) => vec![command],
            Run::Services(services) => {
                services.values_mut().flat_map(Service::commands_mut).chain(of_tasks).collect()
            }
        }
    }

    /// Every command with the name of its service or task, or `None` for a tool's; a service's probes are
    /// commands of its.
    pub fn commands(&self) -> Vec<(Option<&str>, &Command)> {
        match &self.run {
            Run::Command(command) => vec![(None, command)],
            Run::Services(services) => {
                let of_services = services.iter().flat_map(|(name, service)| {
                    service.commands().into_iter().map(move |it| (Some(name.as_str()), it))
                });
                let of_tasks = self.tasks.iter().map(|(name, task)| (Some(name.as_str()), &task.command));
                of_services.chain(of_tasks).collect()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Manifest {
    /// Services and tasks one by one; the rest is a few fields.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ManifestVisitor)
    }
}

struct ManifestVisitor;

impl<'de> Visitor<'de> for ManifestVisitor {
    type Value = Manifest;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Manifest, A::Error> {
        let (mut services, mut tasks, mut rest) = (None, BTreeMap::new(), Map::new());
        while let Some(name) = map.next_key::<String>()? {
            match name.as_str() {
                "services" => services = Some(map.next_value_seed(Entries::named("services"))?),
                "tasks" => tasks = map.next_value_seed(Entries::named("tasks"))?,
                "name" | "version" | "description" | "requires" | "command" | "seeds" | "logs" => {
                    rest.insert(name, map.next_value()?);
                }
                _ => _ = map.next_value::<IgnoredAny>()?,
            }
        }
        Manifest::of(services, tasks, &rest).map_err(A::Error::custom)
    }
}

impl Manifest {
    /// Services and tasks, with the rest of the fields.
    fn of(
        services: Option<BTreeMap<String, Service>>,
        tasks: BTreeMap<String, Task>,
        rest: &Map<String, Value>,
    ) -> Result<Self, Wrong> {
        let mut fields = Fields::from(rest);
        let mut command = None;
        fields.optional("command", &mut command);
        let mut it = Self {
            name: String::new(),
            version: String::new(),
            description: String::new(),
            requires: Vec::new(),
            run: Run::Services(BTreeMap::new()),
            seeds: Vec::new(),
            tasks,
            logs: Logs::default(),
        };
        let Self { name, version, description, requires, run: _, seeds, tasks: _, logs } = &mut it;
        fields.required("name", name);
        fields.required("version", version);
        fields.optional("description", description);
        fields.optional("requires", requires);
        fields.optional("seeds", seeds);
        fields.optional("logs", logs);
        let mut it = fields.end(it)?;
        it.run = match (command, services) {
            (Some(command), None) => Run::Command(command),
            (None, Some(services)) => Run::Services(services),
            _ => return Err(Wrong::new("either `command` or `services` is expected")),
        };
        Ok(it)
    }
}

impl Serialize for Manifest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("name", &self.name)?;
        map.serialize_entry("version", &self.version)?;
        map.serialize_entry("description", &self.description)?;
        map.serialize_entry("requires", &self.requires)?;
        match &self.run {
            Run::Command(command) => map.serialize_entry("command", command)?,
            Run::Services(services) => map.serialize_entry("services", services)?,
        }
        map.serialize_entry("seeds", &self.seeds)?;
        if !self.tasks.is_empty() {
            map.serialize_entry("tasks", &self.tasks)?;
        }
        if !self.is_tool() {
            // A tool prints for itself.
            map.serialize_entry("logs", &self.logs)?;
        }
        map.end()
    }
}

/// The longest text, in bytes, and the most objects in one: what is read takes some twenty times as much memory, and 600 bytes
/// for each object. Ten thousand services are a tenth of that.
const LONGEST_TEXT: usize = 32 << 20;
const MOST_OBJECTS: usize = 1 << 18;

/// Longest name and longest version, in bytes.
const LONGEST: usize = 64;

/// True for a name of a bundle or a service: `[a-z0-9][a-z0-9._-]*`, at most 64 bytes.
pub fn is_name(name: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    name.len() <= LONGEST
        && name.bytes().next().is_some_and(letter)
        && name.bytes().all(|byte| letter(byte) || b"._-".contains(&byte))
}

/// True for a version: not empty, at most 64 bytes, no `/`, white space or control characters.
fn is_version(version: &str) -> bool {
    let odd = |letter: char| letter == '/' || letter.is_whitespace() || letter.is_control();
    (1..=LONGEST).contains(&version.len()) && !version.contains(odd)
}
