//! `host:port` as options give it, and the address that a server binds for it.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::str::FromStr;

use protocol::{Net, unhex};

use crate::failure::Failure;

/// Comma-separated names.
#[derive(Clone, Debug)]
pub(crate) struct HostList(pub(crate) Vec<String>);

impl HostList {
    /// A list of one.
    pub(crate) fn one(host: &str) -> Self {
        Self(vec![host.to_owned()])
    }
}

impl FromStr for HostList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let hosts = text.split(',').map(|host| with_port(host.trim()).map(str::to_owned));
        hosts.collect::<Result<_, _>>().map(Self)
    }
}

/// `host:port`, as it is.
fn with_port(host: &str) -> Result<&str, String> {
    match host.rsplit_once(':') {
        Some((name, port)) if !name.is_empty() && port.parse::<u16>().is_ok() => Ok(host),
        _ => Err(format!("'{host}' is not host:port")),
    }
}

/// `host:port#SHA256`: an address, and the key that whoever is met there has to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinnedHost {
    /// `host:port`.
    pub address: String,
    /// SHA-256 of the SubjectPublicKeyInfo, if it is named.
    pub key: Option<[u8; 32]>,
}

impl PinnedHost {
    /// An address without a key.
    pub(crate) fn of(address: &str) -> Self {
        Self { address: address.into(), key: None }
    }
}

impl FromStr for PinnedHost {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, digits) = match text.split_once('#') {
            None => return with_port(text).map(Self::of),
            Some((address, digits)) => (with_port(address)?, digits),
        };
        let key = unhex(digits).and_then(|bytes| bytes.try_into().ok());
        match key {
            Some(key) => Ok(Self { address: address.into(), key: Some(key) }),
            None => Err("after '#': 64 digits of the owner's key (hfl identity show)".into()),
        }
    }
}

/// Where a server listens for a `host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ListenAddresses {
    /// Each of these, as far as this machine has it.
    addresses: Vec<SocketAddr>,
}

/// The addresses that a server binds for `host:port`. What means this machine alone is bound as it is; any other
/// name may be what a router or a service maps to us, so every address is. A name that belongs to no family is
/// served in both. A name that cannot be looked up is not needed to listen.
///
/// # Errors
/// When there is no port.
pub(crate) fn listen_addresses(host_and_port: &str) -> Result<ListenAddresses, Failure> {
    let port = host_and_port.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
    let port = port.ok_or_else(|| Failure::usage(format!("'{host_and_port}' is not host:port")))?;
    let named: Vec<SocketAddr> = match host_and_port.to_socket_addrs() {
        Ok(named) => named.collect(),
        Err(error) => {
            log::warn!("{host_and_port}: {error}; listening on every address of this machine");
            Vec::new()
        }
    };
    let mut ips: Vec<IpAddr> = match host_and_port.parse::<SocketAddr>() {
        Ok(literal) if literal.ip().is_loopback() => vec![literal.ip()],
        Ok(SocketAddr::V4(_)) => vec![Ipv4Addr::UNSPECIFIED.into()],
        Ok(SocketAddr::V6(_)) => vec![Ipv6Addr::UNSPECIFIED.into()],
        Err(_) if !named.is_empty() && named.iter().all(|address| address.ip().is_loopback()) => {
            vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]
        }
        // A socket of both families, or of the only one that this machine has.
        Err(_) => vec![Ipv6Addr::UNSPECIFIED.into(), Ipv4Addr::UNSPECIFIED.into()],
    };
    ips.dedup();
    Ok(ListenAddresses { addresses: ips.into_iter().map(|ip| (ip, port).into()).collect() })
}

impl ListenAddresses {
    /// Listens; the first address that was bound.
    ///
    /// # Errors
    /// When none could be, with the reason of the first.
    pub(crate) fn listen(&self, net: &mut Net) -> Result<SocketAddr, Failure> {
        self.bind(|address| net.listen(address))
    }

    /// Whether somebody else listens there.
    ///
    /// # Errors
    /// As [`ListenAddresses::listen`].
    pub(crate) fn are_free(&self) -> Result<SocketAddr, Failure> {
        let mut kept = Vec::new();
        self.bind(|address| {
            let listener = TcpListener::bind(address)?;
            let local = listener.local_addr();
            kept.push(listener);
            local
        })
    }

    fn bind(
        &self,
        mut listen: impl FnMut(SocketAddr) -> io::Result<SocketAddr>,
    ) -> Result<SocketAddr, Failure> {
        let mut bound = None;
        let mut refused = None;
        for address in &self.addresses {
            // The socket of both families has taken the port of the other.
            if bound.is_some_and(|bound: SocketAddr| bound.ip() == Ipv6Addr::UNSPECIFIED) {
                break;
            }
            match listen(*address) {
                Ok(local) => bound = bound.or(Some(local)),
                Err(error) => refused = refused.or(Some((*address, error))),
            }
        }
        match (bound, refused) {
            // A port that somebody else has on one family would split who comes to us.
            (Some(_), Some((address, error))) if error.kind() == ErrorKind::AddrInUse => {
                Err(in_use(address, &error))
            }
            (Some(bound), _) => Ok(bound),
            (None, Some((address, error))) => Err(in_use(address, &error)),
            (None, None) => Err(Failure::new("no address to listen on")),
        }
    }
}

fn in_use(address: SocketAddr, error: &io::Error) -> Failure {
    Failure::new(format!("listen on {address}: {error}"))
        .hint("another port, or end the program that uses this one")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_without_a_family_are_served_in_both() {
        let found = |host: &str| listen_addresses(host).expect(host).addresses;
        let parsed = |texts: &[&str]| -> Vec<SocketAddr> {
            texts.iter().map(|text| text.parse().expect("an address")).collect()
        };
        for (host, expected) in [
            ("127.0.0.1:7", &["127.0.0.1:7"][..]),
            ("[::1]:7", &["[::1]:7"]),
            ("localhost:7", &["127.0.0.1:7", "[::1]:7"]),
            ("10.1.2.3:7", &["0.0.0.0:7"]),
            ("[fd00::1]:7", &["[::]:7"]),
            ("no.such.host.invalid:7", &["[::]:7", "0.0.0.0:7"]),
        ] {
            assert_eq!(found(host), parsed(expected), "{host}");
        }
        assert!(listen_addresses("localhost").is_err() && listen_addresses("a:70000").is_err());
    }
}
