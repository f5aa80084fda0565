//! Resources of a Trustee, as the guest's Confidential Data Hub gets them for the containers of its pod: asked over
//! HTTP on the loopback, in the guest that is attested as a whole.
//!
//! Followed in guest-components at 8246e5e (2026-08), `api-server-rest`: the bytes as they are, 404 where it serves
//! no resources, 500 with the reason where the key broker gives none.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use zeroize::Zeroizing;

use crate::http;

/// Where the guest's REST service listens.
const HUB: ([u8; 4], u16) = ([127, 0, 0, 1], 8006);
/// It waits 50 s for the hub, which attests the guest to the key broker first.
const ANSWER_WAIT: Duration = Duration::from_secs(55);
/// A passphrase is short; a key file may be a few KiB.
const RESOURCE_LEN_MAX: usize = 64 << 10;
/// Longest part of a resource's name. Trustee has no limit of its own; a request line has.
const PART_LEN_MAX: usize = 255;
/// So much of a reason is worth a line of a log.
const REASON_LEN_MAX: usize = 300;

/// The name of a resource: `REPOSITORY/TYPE/TAG`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource(String);

impl FromStr for Resource {
    type Err = &'static str;

    /// Names as Trustee's key broker takes them: letters, digits, `-`, `_` and `.`, no `.` in front. Whatever else a
    /// request line could carry is not of a name.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_name = |part: &str| {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
            (1..=PART_LEN_MAX).contains(&part.len())
                && !part.starts_with('.')
                && part.bytes().all(plain)
        };
        let parts: Vec<&str> = text.split('/').collect();
        match parts.len() == 3 && parts.into_iter().all(is_name) {
            true => Ok(Self(text.into())),
            false => Err("expected REPOSITORY/TYPE/TAG of letters, digits, '-', '_' and '.'"),
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "cdh:{}", self.0)
    }
}

/// Why a resource was not to be had.
#[derive(Debug)]
pub enum ResourceError {
    /// Nobody answers there, or not in time, or no answer that HTTP knows.
    Io(io::Error),
    /// The guest's REST service does not serve resources.
    Off,
    /// The hub could not get it, and says why.
    Failed(String),
    /// A status that the service does not have.
    Status(u16),
    /// A resource without a byte.
    Empty,
}

impl ResourceError {
    /// Whether a later try may go better: the guest's services start beside its containers, and a key broker may be
    /// away for a while.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Io(_) | Self::Failed(_))
    }
}

impl fmt::Display for ResourceError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "the guest's data hub: {error}"),
            Self::Off => f.write_str("the guest's REST service serves no resources"),
            Self::Failed(reason) => write!(f, "the guest's data hub could not get it: {reason}"),
            Self::Status(status) => write!(f, "the guest's data hub: status {status}"),
            Self::Empty => f.write_str("the resource is empty"),
        }
    }
}

impl std::error::Error for ResourceError {}

impl Resource {
    /// Its bytes, in memory that is wiped.
    ///
    /// # Errors
    /// When the guest serves none, the key broker refuses, or nobody answers in time.
    pub fn fetch(&self) -> Result<Zeroizing<Vec<u8>>, ResourceError> {
        self.fetch_from(&HUB.into())
    }

    fn fetch_from(&self, hub: &SocketAddr) -> Result<Zeroizing<Vec<u8>>, ResourceError> {
        let request = format!(
            "GET /cdh/resource/{} HTTP/1.1\r\nHost: {hub}\r\nConnection: close\r\n\r\n",
            self.0
        );
        let answer = http::ask_plain(hub, request.as_bytes(), ANSWER_WAIT, RESOURCE_LEN_MAX);
        let answer = answer.map_err(ResourceError::Io)?;
        match answer.status {
            200 if answer.body.is_empty() => Err(ResourceError::Empty),
            200 => Ok(answer.body),
            404 => Err(ResourceError::Off),
            500 => Err(ResourceError::Failed(reason(&answer.body))),
            status => Err(ResourceError::Status(status)),
        }
    }
}

/// What somebody else says, as it may stand in a log.
fn reason(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    match text.trim().chars().take(REASON_LEN_MAX).flat_map(char::escape_default).collect() {
        said if String::is_empty(&said) => "it does not say why".into(),
        said => said,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;

    use super::*;

    /// A guest's REST service after `api-server-rest/src/router.rs` of guest-components at 8246e5e: which features
    /// are on, and one resource that the key broker behind it gives out.
    fn hub(features: &'static str, resource: &'static str, bytes: Vec<u8>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("address");
        std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().expect("a client");
            let mut request = BufReader::new(&socket).lines().map_while(Result::ok);
            let line = request.next().expect("a request line");
            request.find(String::is_empty).expect("its end");
            let path = line.strip_prefix("GET ").and_then(|rest| rest.strip_suffix(" HTTP/1.1"));
            let (status, body) = match path.and_then(|path| path.strip_prefix("/cdh/resource/")) {
                None => (404, b"URL NOT FOUND".to_vec()),
                Some(_) if features == "attestation" => {
                    (404, b"Resource Feature Not Enabled".to_vec())
                }
                Some(path) if path == resource => (200, bytes),
                Some(_) => (500, b"rpc status: KBS Client error:\n request unauthorized".to_vec()),
            };
            let head = format!(
                "HTTP/1.1 {status} X\r\ncontent-type: application/octet-stream\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            // A client that has read enough may be gone.
            let _ = socket.write_all(head.as_bytes()).and_then(|()| socket.write_all(&body));
        });
        address
    }

    fn named(text: &str) -> Resource {
        text.parse().expect("a name")
    }

    #[test]
    fn a_resource_comes_as_its_bytes() {
        let bytes = vec![0, 10, 13, 255, b'x', 10];
        let hub = hub("all", "default/hfl/model.key", bytes.clone());
        let found = named("default/hfl/model.key").fetch_from(&hub).expect("the resource");
        assert_eq!(*found, bytes);
    }

    #[test]
    fn what_is_not_given_says_why_and_whether_to_try_again() {
        let long = vec![7; RESOURCE_LEN_MAX + (64 << 10) + 1];
        let cases: [(&str, &str, Vec<u8>, &str, bool); 4] = [
            ("attestation", "a/b/c", vec![1], "serves no resources", false),
            ("resource", "a/b/other", vec![1], "error:\\n request unauthorized", true),
            ("resource", "a/b/c", vec![], "empty", false),
            ("resource", "a/b/c", long, "longer than", true),
        ];
        for (features, resource, bytes, part, is_transient) in cases {
            let error = named("a/b/c").fetch_from(&hub(features, resource, bytes));
            let error = error.expect_err(part);
            assert!(error.to_string().contains(part), "{error}");
            assert_eq!(error.is_transient(), is_transient, "{error}");
        }
        let nobody = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
        let error = named("a/b/c").fetch_from(&nobody.expect("address")).expect_err("nobody");
        assert!(matches!(error, ResourceError::Io(_)), "{error}");
    }

    #[test]
    fn names_have_three_parts_and_nothing_that_a_request_could_be_made_of() {
        assert_eq!(named("default/my-key_1/v1.0").to_string(), "cdh:default/my-key_1/v1.0");
        let long = format!("a/b/{}", "c".repeat(PART_LEN_MAX + 1));
        for bad in [
            "",
            "a",
            "a/b",
            "a/b/c/d",
            "a//c",
            "/a/b",
            "a/b/",
            "a/../c",
            "a/b/.c",
            "a/b/c d",
            "a/b/c\r\nX: y",
            "a/b/c?d",
            "a/b/%2e",
            "a/b/\u{e9}",
            &long,
        ] {
            assert!(bad.parse::<Resource>().is_err(), "{bad:?}");
        }
    }
}
