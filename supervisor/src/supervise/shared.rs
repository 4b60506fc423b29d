//! What several instances of a service cannot share: packing refuses it for the manifest's `instances`, and `scale` for more.

use std::path::Path;

use kitbag_format::service::with_instance;

use crate::late::{Known, Piece};

use super::spec::{PortSpec, ServiceSpec, Where, Wish};

/// What `count` instances of this service would have to share, as a sentence's end, and what to do about it; `None`: nothing.
pub fn by(spec: &ServiceSpec, count: u32, state: &Path) -> Option<(String, String)> {
    if count < 2 {
        return None;
    }
    let wiring = spec.wiring();
    if let Some(port) = wiring.ports.iter().find(|port| numbers(port) < count) {
        let remedy = "say `socket = true` in the manifest, and all share the supervisor's socket; or give it a larger \
                      `range`, or `\"any\"`";
        return Some((format!("the port `{}` has fewer numbers", port.name), remedy.to_owned()));
    }
    let file = wiring.files.iter().find(|file| !file.to.0.contains(&Piece::Instance))?;
    let to = file.to.fill(&Known { instance: 0, port: &|_| None }).ok()?;
    let to = Path::new(&to);
    let to = to.strip_prefix(state).unwrap_or(to).to_string_lossy();
    let remedy = format!("give each its own in the manifest: `to = \"{}\"`", with_instance(&to));
    Some((format!("all have one file `{to}`"), remedy))
}

/// How many instances can have a number of this port, or have it together.
fn numbers(port: &PortSpec) -> u32 {
    match (&port.place, port.socket) {
        (Where::Net { wish: Wish::Fixed(_), .. }, None) => 1,
        (Where::Net { wish: Wish::Range(preferred, range), .. }, None) => {
            let outside = preferred.is_some_and(|number| !range.has(number));
            u32::from(range.high - range.low) + 1 + u32::from(outside)
        }
        _ => u32::MAX,
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::rc::Rc;

    use kitbag_format::port::Socket;

    use super::*;
    use crate::late::{self, Text};
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
            .map_or_else(String::new, |(why, remedy)| format!("{why}; {remedy}"))
    }

    #[test]
    fn a_port_has_a_number_for_each_or_one_socket() {
        let one = with_port(Wish::Fixed(80), None);
        assert!(told(&one, 2).starts_with("the port `http` has fewer numbers; say `socket = true`"));
        assert_eq!(told(&one, 1), "");
        assert_eq!(told(&with_port(Wish::Fixed(80), Some(Socket::default())), 9), "");
        assert_eq!(told(&with_port(Wish::Any, None), 1000), "");
        let range = Range { low: 8000, high: 8002 };
        for (preferred, enough) in [(None, 3), (Some(8001), 3), (Some(9000), 4)] {
            let spec = with_port(Wish::Range(preferred, range), None);
            assert_eq!(told(&spec, enough), "");
            assert!(told(&spec, enough + 1).contains("has fewer numbers"), "{preferred:?}");
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
