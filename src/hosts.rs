//! `host:port` as options give it, and the address that a server binds for it.

use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::str::FromStr;

use crate::failure::{Doing, Failure};

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
        let hosts: Vec<String> = text.split(',').map(|host| host.trim().to_owned()).collect();
        let has_port = |host: &String| {
            host.rsplit_once(':')
                .is_some_and(|(h, port)| !h.is_empty() && port.parse::<u16>().is_ok())
        };
        match hosts.iter().find(|host| !has_port(host)) {
            Some(host) => Err(format!("'{host}' is not host:port")),
            None => Ok(Self(hosts)),
        }
    }
}

/// The address that a server binds for `host:port`: loopback if that is what the name means, else all.
pub(crate) fn listen_address(host_and_port: &str) -> Result<SocketAddr, Failure> {
    let named = host_and_port.to_socket_addrs().doing(format!("address '{host_and_port}'"))?;
    let named: Vec<SocketAddr> = named.collect();
    let port = named.first().map_or(0, SocketAddr::port);
    let loopback = named.iter().all(|address| address.ip().is_loopback());
    let ip = if loopback { Ipv4Addr::LOCALHOST } else { Ipv4Addr::UNSPECIFIED };
    Ok(SocketAddr::from((ip, port)))
}
