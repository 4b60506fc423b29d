//! What several instances of a service cannot share: packing refuses it for the manifest's `instances`, and `scale` for more.

use std::path::Path;

use kitbag_format::service::with_instance;

use crate::late::{self, Known, Piece};

use super::spec::{PortSpec, ServiceSpec, Where, Wish};

/// Why so many instances cannot run, and what to write in the manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shared {
    /// A sentence's end: `all have one file …`.
    pub why: String,
    /// What to write.
    pub remedy: String,
}

/// What `count` instances of this service would have to share; `None`: nothing.
pub fn by(spec: &ServiceSpec, count: u32, state: &Path) -> Option<Shared> {
    if count < 2 {
        return None;
    }
    let wiring = spec.wiring();
    let file = || wiring.files.iter().find_map(|file| one_file(file, state));
    wiring.ports.iter().find_map(|port| few_numbers(port, count)).or_else(file)
}

/// A file that each instance would render.
fn one_file(file: &late::File, state: &Path) -> Option<Shared> {
    if file.to.0.contains(&Piece::Instance) {
        return None;
    }
    let to = file.to.fill(&Known { instance: 0, port: &|_| None }).ok()?;
    let to = Path::new(&to);
    let to = to.strip_prefix(state).unwrap_or(to).to_string_lossy();
    Some(Shared {
        why: format!("all have one file `{to}`"),
        remedy: format!("give each its own in the manifest: `to = \"{}\"`", with_instance(&to)),
    })
}

/// A port that has fewer numbers than there would be instances.
fn few_numbers(port: &PortSpec, count: u32) -> Option<Shared> {
    let (Where::Net { wish, .. }, None) = (&port.place, port.socket) else { return None };
    let there = match *wish {
        Wish::Any => return None,
        Wish::Fixed(_) => 1,
        Wish::Range(preferred, range) => {
            let outside = preferred.is_some_and(|number| !range.has(number));
            u32::from(range.high - range.low) + 1 + u32::from(outside)
        }
    };
    (there < count).then(|| Shared {
        why: format!("the port `{}` is {there} number{}", port.name, if there == 1 { "" } else { "s" }),
        remedy: "say `socket = true` in the manifest, and all share the supervisor's socket; or give it a larger `range`, \
                 or `\"any\"`"
            .to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::rc::Rc;

    use kitbag_format::port::Socket;

    use super::*;
    use crate::late::Text;
    use crate::ports::lease::{Listen, Net};
    use crate::ports::range::Range;
    use crate::supervise::spec::ProgramSpec;

    fn service() -> ServiceSpec {
        let (path, cwd) = (Path::new("/p").into(), Path::new("/").into());
        ServiceSpec::new("web", ProgramSpec { path, argv: vec![], env: Rc::default(), cwd })
    }

    fn with_port(wish: Wish, socket: Option<Socket>) -> ServiceSpec {
        let mut spec = service();
        let place = Where::Net { net: Net::Tcp, listen: Listen::Loopback, wish, hold: true };
        spec.wiring_mut().ports.push(PortSpec { name: "http".into(), place, socket });
        spec
    }

    /// What so many share; empty: nothing.
    fn told(spec: &ServiceSpec, count: u32) -> String {
        by(spec, count, Path::new("/state"))
            .map_or_else(String::new, |it| format!("{}; {}", it.why, it.remedy))
    }

    #[test]
    fn a_port_has_a_number_for_each_or_one_socket() {
        let one = with_port(Wish::Fixed(80), None);
        assert!(told(&one, 2).starts_with("the port `http` is 1 number; say `socket = true`"));
        assert_eq!(told(&one, 1), "");
        assert_eq!(told(&with_port(Wish::Fixed(80), Some(Socket::default())), 9), "");
        assert_eq!(told(&with_port(Wish::Any, None), 1000), "");
        let range = Range { low: 8000, high: 8002 };
        for (preferred, enough) in [(None, 3), (Some(8001), 3), (Some(9000), 4)] {
            let spec = with_port(Wish::Range(preferred, range), None);
            assert_eq!(told(&spec, enough), "");
            assert!(told(&spec, enough + 1).contains(&format!("is {enough} numbers")), "{preferred:?}");
        }
    }

    #[test]
    fn a_rendered_file_is_each_instances_own() {
        let file = |more: &[Piece]| {
            let mut to = Text::from(OsString::from("/state/"));
            to.0.extend_from_slice(more);
            let mut spec = service();
            spec.wiring_mut().files.push(late::File { to, content: Rc::default() });
            spec
        };
        let literal = |text: &str| Piece::Literal(text.into());
        let shared = file(&[literal("etc/web.conf")]);
        assert_eq!(told(&shared, 1), "");
        let remedy = "give each its own in the manifest: `to = \"etc/web-${instance}.conf\"`";
        assert_eq!(told(&shared, 2), format!("all have one file `etc/web.conf`; {remedy}"));
        assert_eq!(told(&file(&[literal("web-"), Piece::Instance]), 2), "");
    }
}
