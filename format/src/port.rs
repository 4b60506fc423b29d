//! Ports that services declare, how a text refers to them, and what a service may do on the network and with files.
//!
//! A reference stands in `${…}` of a template (see [`crate::template`]):
//!
//! | reference                      | whose port                                                            |
//! |--------------------------------|-----------------------------------------------------------------------|
//! | `port.NAME`                    | the service's own                                                     |
//! | `ports.UNIT.NAME`              | of a service of this bundle; `web.2` is one of several instances, `web` the first |
//! | `ports.BUNDLE/UNIT.NAME`       | of another bundle that runs on this host                              |
//!
//! each with `:host`, `:listen` or `:address` behind it ([`Part`]), and `:-TEXT` for what to take where another bundle's
//! port is not there.

use std::fmt;
use std::net::IpAddr;

use serde::Serialize;

use crate::json::{FromJson, Value, Variant, Wrong};
use crate::{object, words};

/// What every program may use of the host, in a sandbox too: devices without memory, and terminals.
pub const DEVICES: &[&str] = &[
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
    "/dev/pts",
    "/dev/ptmx",
];

/// A port that a service declares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Port {
    /// What is spoken there.
    pub protocol: Protocol,
    /// `loopback`, `public`, or an address in numbers, of IPv4 or IPv6; a template. Of no meaning for unix sockets.
    pub address: String,
    /// Which number it gets. Of no meaning for unix sockets.
    pub number: Number,
    /// The supervisor makes the socket, listens, and the service inherits it (sd_listen_fds(3)); `None`: the service
    /// makes its own.
    pub socket: Option<Socket>,
    /// Nobody else can bind the number while the service does not run; and a service that does not set `SO_REUSEADDR`
    /// could not either while the supervisor keeps it.
    pub hold: bool,
}

object!(Port default { protocol, address, number, socket, hold });

impl Default for Port {
    /// Any number of TCP on loopback, kept.
    fn default() -> Self {
        Self {
            protocol: Protocol::default(),
            address: "loopback".to_owned(),
            number: Number::default(),
            socket: None,
            hold: true,
        }
    }
}

/// What is spoken at a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// A stream socket of unix(7), at a path that the supervisor chooses.
    Unix,
}

words!(Protocol { Tcp = "tcp", Udp = "udp", Unix = "unix" });

impl Protocol {
    /// As services(5) writes it: `tcp`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Unix => "unix",
        }
    }
}

/// Which number a port gets.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Number {
    /// Any that is free.
    #[default]
    Any,
    /// This one, a template of a number: `8080`, `${env.PORT:-8080}`.
    Fixed(String),
    /// One of these.
    Range {
        /// This one if it is free, a template of a number; it need not be in the range.
        prefer: Option<String>,
        /// The first.
        low: u16,
        /// The last.
        high: u16,
    },
}

impl FromJson for Number {
    fn from_json(value: &Value) -> Result<Self, Wrong> {
        let variant = Variant::of(value)?;
        match variant.name {
            "any" => variant.alone(Self::Any),
            "fixed" => variant.read().map(Self::Fixed),
            "range" => {
                let Range { prefer, low, high } = variant.read()?;
                Ok(Self::Range { prefer, low, high })
            }
            _ => Err(variant.unknown()),
        }
    }
}

/// [`Number::Range`], as it is read.
#[derive(Default)]
struct Range {
    prefer: Option<String>,
    low: u16,
    high: u16,
}

object!(Range { low, high } default { prefer });

/// A socket that the supervisor makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Socket {
    /// Connections that wait for a service to take them: listen(2).
    pub backlog: u32,
    /// Permissions of a unix socket: `0o600`.
    pub mode: u32,
}

object!(Socket { backlog, mode });

/// Connections that wait where the manifest does not say; the kernel lowers it to `net.core.somaxconn`.
pub const BACKLOG: u32 = 4096;

impl Default for Socket {
    fn default() -> Self {
        Self { backlog: BACKLOG, mode: 0o600 }
    }
}

/// The first descriptor of the sockets that a service inherits: sd_listen_fds(3), SD_LISTEN_FDS_START.
pub const FIRST_SOCKET: usize = 3;

/// What a service may do beside running: Landlock (landlock(7)) sees to it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Sandbox {
    /// Which TCP ports it may bind.
    pub bind: Bind,
    /// The TCP ports that it may connect to, of whatever host: `SERVICE.PORT`, `BUNDLE/SERVICE.PORT`, or numbers; `None`: all.
    pub connect: Option<Vec<String>>,
    /// The files that it may use; `None`: all that its user may.
    pub files: Option<Files>,
}

object!(Sandbox default { bind, connect, files });

/// Which TCP ports a service may bind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bind {
    /// All.
    #[default]
    Any,
    /// Those that it declares, and port 0, for which the kernel chooses one.
    Declared,
}

words!(Bind { Any = "any", Declared = "declared" });

/// Files that a service may use beside the bundle's tree, which it may read and execute, its state folder, where it may do
/// anything, and a few devices.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Files {
    /// Paths of the host, templates, that it may read and execute, with all below them. One that is not there is no error.
    pub read: Vec<String>,
    /// Paths where it may do anything.
    pub write: Vec<String>,
}

object!(Files default { read, write });

/// A file that is made of one of the tree, its placeholders filled in, before each start of the service.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Render {
    /// Path in the tree, of a text with placeholders.
    pub from: String,
    /// Path in the state folder, a template: `redis.conf`, `web-${instance}.conf`.
    pub to: String,
}

object!(Render { from, to });

/// Which port a text refers to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference {
    /// Of another bundle on this host, by its name.
    pub bundle: Option<String>,
    /// Of this service or instance; `None`: the service's own.
    pub unit: Option<String>,
    /// The port's name.
    pub port: String,
    /// What of it is put into the text.
    pub part: Part,
    /// What to take where there is no such port now.
    pub default: Option<String>,
}

/// What a reference puts into a text. Of a unix socket each is its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Part {
    /// The number.
    #[default]
    Number,
    /// `:host`, the address to listen on: `127.0.0.1`, `::`
    Host,
    /// `:listen`, the same with the number: `127.0.0.1:8080`, `[::]:8080`
    Listen,
    /// `:address`, where to connect on this host: `127.0.0.1:8080`, also of a port that listens everywhere.
    Address,
}

const PARTS: &[(&str, Part)] = &[("host", Part::Host), ("listen", Part::Listen), ("address", Part::Address)];

impl Reference {
    /// Parses what stands in `${…}`, `port.http` or `ports.db.main:address`; `None` if it is no reference.
    pub fn parse(text: &str) -> Option<Self> {
        let (head, default) = match text.split_once(":-") {
            Some((head, default)) => (head, Some(default.to_owned())),
            None => (text, None),
        };
        let (name, part) = match head.split_once(':') {
            Some((name, part)) => (name, PARTS.iter().find(|(word, _)| *word == part)?.1),
            None => (head, Part::default()),
        };
        let (bundle, unit, port) = match name.strip_prefix("ports.") {
            Some(other) => {
                let (bundle, rest) = match other.split_once('/') {
                    Some((bundle, rest)) => (Some(bundle), rest),
                    None => (None, other),
                };
                let (unit, port) = rest.rsplit_once('.')?;
                (bundle, Some(unit), port)
            }
            None => (None, None, name.strip_prefix("port.")?),
        };
        let sound = bundle.into_iter().chain(unit).all(crate::manifest::is_name) && is_port_name(port);
        sound.then(|| Self {
            bundle: bundle.map(str::to_owned),
            unit: unit.map(str::to_owned),
            port: port.to_owned(),
            part,
            default,
        })
    }
}

impl fmt::Display for Reference {
    /// As it stands in `${…}`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.bundle, &self.unit) {
            (Some(bundle), Some(unit)) => write!(f, "ports.{bundle}/{unit}.{}", self.port)?,
            (_, Some(unit)) => write!(f, "ports.{unit}.{}", self.port)?,
            (_, None) => write!(f, "port.{}", self.port)?,
        }
        if let Some((word, _)) = PARTS.iter().find(|(_, part)| *part == self.part) {
            write!(f, ":{word}")?;
        }
        self.default.as_ref().map_or(Ok(()), |default| write!(f, ":-{default}"))
    }
}

/// True for the name of a port: `[a-z][a-z0-9_-]*`, at most 32 bytes.
pub fn is_port_name(name: &str) -> bool {
    name.len() <= 32
        && name.bytes().next().is_some_and(|first| first.is_ascii_lowercase())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte))
}

/// True for what [`Port::address`] may be once its placeholders are filled in.
pub fn is_listen_address(text: &str) -> bool {
    matches!(text, "loopback" | "public") || text.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bundle, unit, port, part and default.
    type Parts = (Option<&'static str>, Option<&'static str>, &'static str, Part, Option<&'static str>);

    fn reference(text: &str) -> Option<Parts> {
        // Leaked, so that the table below is short.
        let it: &'static Reference = Box::leak(Box::new(Reference::parse(text)?));
        assert_eq!(it.to_string(), text, "what was parsed is written the same");
        Some((it.bundle.as_deref(), it.unit.as_deref(), &it.port, it.part, it.default.as_deref()))
    }

    #[test]
    fn references_name_a_port_of_the_service_the_bundle_or_the_host() {
        assert_eq!(reference("port.http"), Some((None, None, "http", Part::Number, None)));
        assert_eq!(reference("ports.db.main:address"), Some((None, Some("db"), "main", Part::Address, None)));
        assert_eq!(reference("ports.web.2.http"), Some((None, Some("web.2"), "http", Part::Number, None)));
        assert_eq!(
            reference("ports.redis/cache.main:listen:-127.0.0.1:6379"),
            Some((Some("redis"), Some("cache"), "main", Part::Listen, Some("127.0.0.1:6379")))
        );
        assert_eq!(reference("ports.a/b.c:-"), Some((Some("a"), Some("b"), "c", Part::Number, Some(""))));
    }

    #[test]
    fn what_names_no_port_is_no_reference() {
        for text in [
            "port",
            "port.",
            "port.Http",
            "port.a.b",
            "ports.db",
            "ports./db.main",
            "ports.a/b/c.d",
            "port.http:port",
            "port.http:",
            "ports.Db.main",
            "ports...main",
            "port.1st",
            "portx.a",
        ] {
            assert_eq!(reference(text), None, "{text}");
        }
    }

    #[test]
    fn addresses_are_words_or_numbers() {
        for text in ["loopback", "public", "127.0.0.1", "::", "fe80::1", "10.0.0.7"] {
            assert!(is_listen_address(text), "{text}");
        }
        for text in ["", "localhost", "127.0.0.1:80", "[::1]", "everywhere", "1.2.3"] {
            assert!(!is_listen_address(text), "{text}");
        }
    }
}
