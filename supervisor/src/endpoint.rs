//! Where a port is, and how a text has it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use kitbag_format::port::Part;

/// Where somebody listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// At this address, which may be that of no host in particular.
    Network(SocketAddr),
    /// At a socket of unix(7).
    Unix(PathBuf),
}

impl Endpoint {
    /// What a reference puts into a text.
    pub fn text(&self, part: Part) -> String {
        let address = match self {
            Self::Unix(path) => return path.display().to_string(),
            Self::Network(address) => address,
        };
        match part {
            Part::Number => address.port().to_string(),
            Part::Host => address.ip().to_string(),
            Part::Listen => address.to_string(),
            Part::Address => SocketAddr::new(reachable(address.ip()), address.port()).to_string(),
        }
    }
}

/// The address by which this host reaches who listens at `address`: what listens everywhere, by loopback. A socket of
/// IPv6 that listens everywhere takes IPv4 too, which is there where the other is switched off.
fn reachable(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) | IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_listens_everywhere_is_reached_by_loopback() {
        let everywhere = Endpoint::Network("[::]:8080".parse().unwrap());
        let all = [Part::Number, Part::Host, Part::Listen, Part::Address].map(|part| everywhere.text(part));
        assert_eq!(all, ["8080", "::", "[::]:8080", "127.0.0.1:8080"]);
        let six = Endpoint::Network("[::1]:8080".parse().unwrap());
        assert_eq!(six.text(Part::Address), "[::1]:8080");
        let path = Endpoint::Unix("/run/a.sock".into());
        assert_eq!(path.text(Part::Address), "/run/a.sock");
    }
}
