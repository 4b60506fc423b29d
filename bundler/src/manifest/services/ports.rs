//! `[services.NAME.ports]`: the ports that a service listens on.

use std::collections::BTreeMap;
use std::ops::Range;

use kitbag_format::port::{
    BACKLOG, FIRST_SOCKET, Number, Port, Protocol, Socket, is_listen_address, is_port_name,
};
use kitbag_format::service::ReadyWhen;
use kitbag_format::service::fault::{MOST_PORTS, MOST_WAITING};
use kitbag_format::template::{Piece, Template};
use toml::Spanned;
use toml::de::DeValue;

use super::{Diagnostic, Key, Reader, Section, Text, inner, near_miss};

/// Keys of a port.
pub const PORT: &[Key] = &[
    ("port", "port = 8080"),
    ("prefer", "prefer = \"${env.PORT:-8080}\""),
    ("range", "range = \"8000-8999\""),
    ("address", "address = \"public\""),
    ("protocol", "protocol = \"udp\""),
    ("socket", "socket = true"),
    ("backlog", "backlog = 1024"),
    ("mode", "mode = \"0660\""),
    ("hold", "hold = false"),
];

/// The ports that a service declares.
#[derive(Debug, Default)]
pub struct Ports {
    /// What they are, by name; one that is wrong is there too, as any number of its protocol.
    pub all: BTreeMap<String, Port>,
    /// Where each stands.
    pub spans: BTreeMap<String, Range<usize>>,
}

impl Reader<'_> {
    /// `ports` of a service, of which so many instances run.
    pub(super) fn ports(&mut self, service: &Section<'_>, instances: u32) -> Ports {
        let mut ports = Ports::default();
        let Some(table) = self.table(service, "ports") else { return ports };
        let title = inner(service, "ports");
        if table.get_ref().len() > MOST_PORTS.0 {
            let error = Diagnostic::new(format!("{title} has more than {} ports", MOST_PORTS.0));
            self.errors.push(error.at(service.key_span("ports"), ""));
        }
        let section = self.free_section(&title, table.get_ref(), table.span());
        for (name, value) in table.get_ref().iter() {
            let name = Spanned::new(name.span(), name.get_ref().clone().into_owned());
            self.check(&name, port_name_fault(name.get_ref()), "bad port name");
            let before = self.errors.len();
            let port = self.port(&section, &name, value);
            if self.errors.len() == before {
                self.enough(&name, &port, value.span(), instances);
            }
            ports.spans.insert(name.get_ref().clone(), name.span());
            ports.all.insert(name.into_inner(), port);
        }
        ports
    }

    /// Reports a readiness descriptor whose number an inherited socket has.
    pub(super) fn meets_no_socket(
        &mut self,
        service: &Section<'_>,
        ready: &ReadyWhen,
        ports: &BTreeMap<String, Port>,
    ) {
        let free = FIRST_SOCKET + ports.values().filter(|port| port.socket.is_some()).count();
        if let ReadyWhen::Newline(number) = ready
            && usize::from(*number) < free
            && free > FIRST_SOCKET
        {
            let error =
                Diagnostic::new(format!("`newline = {number}` is the number of a socket that it inherits"))
                    .at(
                        service.key_span("ready"),
                        format!("sockets are 3 and following: expected {free} or more"),
                    );
            self.errors.push(error);
        }
    }

    fn port(&mut self, ports: &Section<'_>, name: &Text, value: &Spanned<DeValue<'_>>) -> Port {
        if let Some(table) = value.get_ref().as_table() {
            let title = inner(ports, name.get_ref());
            let section = self.section(&title, table, value.span(), PORT);
            return self.port_table(&section);
        }
        let number = match self.number_text(value) {
            Some(text) => self.number(&text),
            None => {
                self.wrong_type(ports, name.get_ref(), value, "a port, \"any\" or a table");
                None
            }
        };
        Port { number: number.unwrap_or_default(), ..Port::default() }
    }

    fn port_table(&mut self, section: &Section<'_>) -> Port {
        let protocol = self.choice(section, "protocol", Protocol::WORDS).unwrap_or_default();
        let socket = self.socket(section, protocol);
        let mut port = Port { protocol, socket, ..Port::default() };
        if protocol == Protocol::Unix {
            for key in ["port", "prefer", "range", "address"] {
                self.idle(section, key, "a unix socket is a path, which the supervisor chooses");
            }
            self.idle(section, "hold", "nobody else makes a socket at that path");
            return port;
        }
        port.number = self.port_number(section);
        if let Some(address) = self.string(section, "address") {
            if self.template(&address) {
                self.check(&address, listen_fault(address.get_ref()), "bad address");
            }
            port.address = address.into_inner();
        }
        port.hold = self.boolean(section, "hold").unwrap_or(true);
        if !port.hold && socket.is_some() {
            self.idle(section, "hold", "the socket that the supervisor makes holds the port");
        }
        port
    }

    fn socket(&mut self, section: &Section<'_>, protocol: Protocol) -> Option<Socket> {
        let wanted = self.boolean(section, "socket").unwrap_or_default();
        let backlog = self.integer(section, "backlog", 1..=MOST_WAITING);
        let mode = self.octal(section, "mode");
        if protocol == Protocol::Udp {
            self.idle(section, "backlog", "datagrams wait for no accept(2)");
        }
        if protocol != Protocol::Unix {
            self.idle(section, "mode", "only a unix socket has permissions");
        }
        if !wanted && section.get("socket").is_none_or(|value| value.get_ref().is_bool()) {
            self.need_socket(section, "backlog", protocol != Protocol::Udp);
            self.need_socket(section, "mode", protocol == Protocol::Unix);
        }
        let default = Socket::default();
        wanted.then(|| Socket { backlog: backlog.unwrap_or(BACKLOG), mode: mode.unwrap_or(default.mode) })
    }

    /// Reports `key` without `socket = true`, if it is there and means something.
    fn need_socket(&mut self, section: &Section<'_>, key: &str, has_meaning: bool) {
        if has_meaning && section.get(key).is_some() {
            let error = Diagnostic::new(format!("`{key}` without `socket` in {}", section.title()))
                .at(section.key_span(key), "the service makes its own socket, and says so itself")
                .help("write `socket = true` beside it: the supervisor listens, and the service inherits the socket");
            self.errors.push(error);
        }
    }

    /// `port`, or `range` with `prefer` or without; without all of them, any.
    fn port_number(&mut self, section: &Section<'_>) -> Number {
        let fixed = section.get("port");
        for key in ["prefer", "range"] {
            if fixed.is_some() && section.get(key).is_some() {
                self.both(section, "port", key);
            }
        }
        if let Some(value) = fixed {
            let text = self.number_text(value);
            if text.is_none() {
                self.wrong_type(section, "port", value, "a port or \"any\"");
            }
            return text.and_then(|text| self.number(&text)).unwrap_or_default();
        }
        let prefer = section.get("prefer").and_then(|value| {
            let text = self.number_text(value);
            if text.is_none() {
                self.wrong_type(section, "prefer", value, "a port");
            }
            self.fixed(&text?)
        });
        if section.get("range").is_none() && section.get("prefer").is_some() {
            let error = Diagnostic::new(format!("`prefer` without `range` in {}", section.title()))
                .at(
                    section.key_span("prefer"),
                    "expected `range` beside it: what to take where this one is taken",
                )
                .help("for example `range = \"8000-8999\"`; `port` takes this one and no other");
            self.errors.push(error);
        }
        match self.range(section) {
            Some((low, high)) => Number::Range { prefer, low, high },
            None => Number::Any,
        }
    }

    fn range(&mut self, section: &Section<'_>) -> Option<(u16, u16)> {
        let text = self.string_as(section, "range", "two ports with a dash, in quotes")?;
        let bounds = text.get_ref().split_once('-').map(|(low, high)| (digits(low), digits(high)));
        let fault = match bounds {
            Some((Some(low @ 1..), Some(high @ 1..))) if low <= high => return Some((low, high)),
            Some((Some(low @ 1..), Some(high @ 1..))) => format!("it runs backwards: write `{high}-{low}`"),
            _ => "expected two numbers from 1 to 65535, such as `8000-8999`".to_owned(),
        };
        self.check(&text, Some(fault), "bad range");
        None
    }

    /// A number, written as one or in quotes.
    fn number_text(&self, value: &Spanned<DeValue<'_>>) -> Option<Text> {
        let written = value.get_ref().as_integer().map(|_| {
            Spanned::new(value.span(), self.text.get(value.span()).unwrap_or_default().replace('_', ""))
        });
        written.or_else(|| self.text_of(value))
    }

    fn number(&mut self, text: &Text) -> Option<Number> {
        if text.get_ref() == "any" { Some(Number::Any) } else { self.fixed(text).map(Number::Fixed) }
    }

    /// A template of a number.
    fn fixed(&mut self, text: &Text) -> Option<String> {
        if !self.template(text) {
            return None;
        }
        let fault = number_fault(text.get_ref());
        let sound = fault.is_none();
        self.check(text, fault, "bad port");
        let plain = digits(text.get_ref()).map(|number| number.to_string());
        sound.then(|| plain.unwrap_or_else(|| text.get_ref().clone()))
    }

    /// Reports a port of which there are fewer numbers than instances.
    fn enough(&mut self, name: &Text, port: &Port, span: Range<usize>, instances: u32) {
        if instances < 2 || port.socket.is_some() || port.protocol == Protocol::Unix {
            return;
        }
        // How many there are, and the first of as many as are needed.
        let (there, first) = match &port.number {
            Number::Any => return,
            Number::Fixed(number) => (1, digits(number).unwrap_or(8000)),
            Number::Range { prefer, low, high } => {
                let preferred = prefer.as_deref().map(digits);
                let outside = preferred.is_some_and(|it| it.is_none_or(|it| !(*low..=*high).contains(&it)));
                (u32::from(high - low) + 1 + u32::from(outside), *low)
            }
        };
        if there >= instances {
            return;
        }
        let numbers = if there == 1 { "one number".to_owned() } else { format!("{there} numbers") };
        let last = u32::from(first) + instances - 1;
        let error =
            Diagnostic::new(format!("the port `{}` is {numbers} for {instances} instances", name.get_ref()))
                .at(span, "two instances cannot bind one number")
                .help("`socket = true`: the supervisor listens, and all instances share its socket")
                .help(match last {
                    0..=65_535 => {
                        format!("or each has one of its own: `range = \"{first}-{last}\"`, or `\"any\"`")
                    }
                    _ => "or each has one of its own: `\"any\"`".to_owned(),
                });
        self.errors.push(error);
    }
}

/// What is wrong with the name of a port, if anything.
fn port_name_fault(name: &str) -> Option<String> {
    let expected = "expected small letters, digits, `_` and `-`, a letter first, 32 characters at most";
    (!is_port_name(name)).then(|| expected.to_owned())
}

/// The number that `text` is, of digits alone.
pub fn digits(text: &str) -> Option<u16> {
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

/// What the template `text` is where no variable is set, and `open` for those without a default; else what is wrong
/// with it.
fn filled(text: &str, open: &str) -> Result<String, String> {
    let pieces = Template::parse(text).map(|template| template.0).unwrap_or_default();
    let piece = |piece: &Piece| match piece {
        Piece::Text(text) => Ok(text.clone()),
        Piece::Env(_, default) => Ok(default.clone().unwrap_or_else(|| open.to_owned())),
        _ => Err("of the placeholders only `${env.NAME}` can be part of it".to_owned()),
    };
    pieces.iter().map(piece).collect()
}

/// What is wrong with a template of a number, if anything. Where the host's environment is all of it, it is one.
fn number_fault(text: &str) -> Option<String> {
    let value = match filled(text, "1") {
        Ok(value) => value,
        Err(fault) => return Some(fault),
    };
    let fault = match digits(&value) {
        Some(1..) => return None,
        // As with bind(2): any, unless the environment says which.
        Some(0) if text.contains("${") => return None,
        Some(0) => "write `\"any\"` for one that is free",
        None if value.is_empty() && !text.is_empty() => {
            "expected a number where the variable is not set: `${env.PORT:-8080}`"
        }
        None if value.contains('-') && value.split('-').all(|part| digits(part).is_some()) => {
            return Some(format!("a range stands in a table: `{{ range = \"{value}\" }}`"));
        }
        None if near_miss(&value, ["any"]).is_some() => "expected `any` or a number",
        None => "expected a number from 1 to 65535, such as `8080` or `${env.PORT:-8080}`, or `any`",
    };
    Some(fault.to_owned())
}

/// What is wrong with an address to listen on, if anything.
fn listen_fault(text: &str) -> Option<String> {
    let value = match filled(text, "") {
        Ok(value) => value,
        Err(fault) => return Some(fault),
    };
    let is_open = Template::parse(text)
        .is_ok_and(|template| template.0.iter().any(|piece| matches!(piece, Piece::Env(_, None))));
    if is_open || is_listen_address(&value) {
        return None;
    }
    let bare = value.trim_start_matches('[').trim_end_matches(']');
    let expected = "expected `loopback`, `public`, or an address in numbers such as `10.0.0.7` or `::1`";
    Some(match near_miss(&value, ["loopback", "public"]) {
        Some(near) => format!("did you mean `{near}`?"),
        None if value == "localhost" => "that is `loopback`".to_owned(),
        None if bare != value && is_listen_address(bare) => format!("write it without brackets: `{bare}`"),
        None => expected.to_owned(),
    })
}
