//! `[services.NAME.sandbox]` and `render`: what a service or task may do, and files that are made for it.

use kitbag_format::port::{Bind, Files, Render, Sandbox};
use kitbag_format::service::fault::RESERVED;
use kitbag_format::service::with_instance;
use kitbag_format::template::{Piece, Template};
use toml::Spanned;

use super::ports::digits;
use super::{Diagnostic, Key, Reader, RenderSource, Section, Text, inner, plain, whole};

/// Keys of `sandbox`.
pub const SANDBOX: &[Key] = &[
    ("bind", "bind = \"any\""),
    ("connect", "connect = [\"cache.main\", 443]"),
    ("files", "files = true"),
    ("read", "read = [\"/etc/resolv.conf\"]"),
    ("write", "write = [\"/var/spool/app\"]"),
];
/// Keys of one in `render`.
pub const RENDER: &[Key] = &[("from", "from = \"etc/web.conf\""), ("to", "to = \"web.conf\"")];

/// Where files can be that a sandbox names.
const BASES: &[&str] = &["${state}", "${tree}", "${env."];

impl Reader<'_> {
    /// `sandbox` of a service or task, with the ports that it may connect to; `bind` where it does not say so.
    pub(super) fn sandbox(&mut self, unit: &Section<'_>, bind: Bind) -> (Sandbox, Vec<Text>) {
        let mut sandbox = Sandbox { bind, ..Sandbox::default() };
        let Some(table) = self.table(unit, "sandbox") else { return (sandbox, Vec::new()) };
        let title = inner(unit, "sandbox");
        let section = self.section(&title, table.get_ref(), table.span(), SANDBOX);
        sandbox.bind = self.choice(&section, "bind", Bind::WORDS).unwrap_or(bind);
        let connect = self.connect(&section);
        sandbox.connect = connect.as_deref().map(plain);
        sandbox.files = self.files(&section);
        (sandbox, connect.unwrap_or_default())
    }

    /// References to ports, without `${ports.…}` around them, and numbers.
    fn connect(&mut self, section: &Section<'_>) -> Option<Vec<Text>> {
        let value = section.get("connect")?;
        let Some(items) = value.get_ref().as_array() else {
            self.wrong_type(section, "connect", value, "a list of ports");
            return None;
        };
        let mut ports = Vec::new();
        for item in items.iter() {
            let number = whole(item.get_ref());
            let text = number.map(|number| Spanned::new(item.span(), number.to_string()));
            match text.or_else(|| self.text_of(item)) {
                Some(text) => ports.push(text),
                None => self.wrong_type(section, "connect", item, "a port or a number in a list of ports"),
            }
        }
        for port in &mut ports {
            // With a `.` it is the port of a service, whose name may begin with a digit.
            let is_number = port.get_ref().starts_with(|first: char| first.is_ascii_digit() || first == '-')
                && !port.get_ref().contains('.');
            let number = digits(port.get_ref()).filter(|number| *number != 0);
            if is_number && number.is_none() {
                self.check(port, Some("expected a number from 1 to 65535".to_owned()), "bad port");
            }
            if let Some(number) = number {
                *port = Spanned::new(port.span(), number.to_string());
            }
        }
        self.unique("the port", ports.iter());
        Some(ports)
    }

    fn files(&mut self, section: &Section<'_>) -> Option<Files> {
        let files = self.boolean(section, "files");
        let mut paths = |key| {
            let paths = self.strings(section, key).map(Spanned::into_inner).unwrap_or_default();
            paths.iter().for_each(|path| self.place_of_host(path, BASES, "bad path"));
            plain(&paths)
        };
        let (read, write) = (paths("read"), paths("write"));
        let named = ["read", "write"].into_iter().find(|key| section.get(key).is_some());
        if let (Some(false), Some(named)) = (files, named) {
            let error = Diagnostic::new(format!("both `files = false` and `{named}` in {}", section.title()))
                .at(section.key_span("files"), "files are not limited …")
                .at(section.key_span(named), "… to these")
                .help("leave `files` out");
            self.errors.push(error);
        }
        (files == Some(true) || named.is_some()).then_some(Files { read, write })
    }

    /// `render` of a service or task, of which so many instances run.
    pub(super) fn render(&mut self, unit: &Section<'_>, instances: u32) -> Vec<RenderSource> {
        let tables = self.tables(unit, "render");
        let title = inner(unit, "render");
        let mut renders = Vec::new();
        for table in &tables {
            let section = self.section(&title, table.get_ref(), table.span(), RENDER);
            renders.extend(self.rendered(&section, instances));
        }
        renders
    }

    fn rendered(&mut self, section: &Section<'_>, instances: u32) -> Option<RenderSource> {
        self.require(section, "from");
        let from = self.string(section, "from");
        let to = self.string(section, "to");
        let from = from?;
        self.as_it_stands(&from);
        let to = self.place_in_state(section, &from, to)?;
        let has_instance = self.target(&to)?;
        if !has_instance && instances > 1 {
            let error = Diagnostic::new(format!("{instances} instances have one file `{}`", to.get_ref()))
                .at(to.span(), "each needs its own")
                .help(format!("for example `to = \"{}\"`", with_instance(to.get_ref())));
            self.errors.push(error);
        }
        Some(RenderSource { from, to })
    }

    /// Whether the instance is part of the place of a rendered file; `None` if its placeholders are none.
    fn target(&mut self, to: &Text) -> Option<bool> {
        // Its placeholders are looked up nowhere.
        let before = self.late.len();
        let sound = self.late_template(to, false);
        self.late.truncate(before);
        let pieces = Template::parse(to.get_ref()).ok().filter(|_| sound)?.0;
        let odd = pieces.iter().any(|piece| !matches!(piece, Piece::Text(_) | Piece::Instance));
        let fault = if odd {
            Some("of the placeholders only `${instance}` can be part of it")
        } else if to.get_ref().split('/').next() == Some(RESERVED) {
            Some("that folder is the supervisor's")
        } else {
            None
        };
        self.check(to, fault.map(str::to_owned), "bad place in the state folder");
        Some(pieces.contains(&Piece::Instance))
    }
}

/// What a rendered file is in the manifest that travels.
pub(super) fn renders(sources: &[RenderSource]) -> Vec<Render> {
    let render = |source: &RenderSource| Render {
        from: source.from.get_ref().clone(),
        to: source.to.get_ref().clone(),
    };
    sources.iter().map(render).collect()
}
