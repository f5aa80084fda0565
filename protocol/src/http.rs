//! A small HTTP/1.1 client: over TLS for services that have collateral, plain for those of this machine and
//! its host. One request a connection, every length and time bounded. Blocks.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ring::digest::{SHA256, digest};
use rustls::crypto;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{CertificateError, ClientConfig, ClientConnection, RootCertStore, Stream};
use zeroize::Zeroizing;

use crate::certified::ByCertificate;

#[cfg(test)]
pub(crate) mod standin;

/// Longest wait for a connection, an answer's next bytes, and a whole answer: one that dripped a byte at a time would
/// keep a thread for as long as it liked.
const CONNECT_WAIT: Duration = Duration::from_secs(5);
const READ_WAIT: Duration = Duration::from_secs(10);
const ANSWER_WAIT: Duration = Duration::from_secs(30);
/// Longest head and body of an answer, which is kept in memory. The largest that is asked for, a revocation list, may
/// have 4 MiB.
const HEAD_LEN_MAX: usize = 64 << 10;
pub(crate) const BODY_LEN_MAX: usize = 8 << 20;
/// What is read at once, and the longest answer whose room is there from the beginning.
const BUFFER_LEN: usize = 16 << 10;
const ROOM_MAX: usize = 256 << 10;
/// Authorities of the system, where it has some.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// An address of a service: `https://host[:port][/path]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    host: String,
    port: u16,
    path: String,
}

impl Url {
    /// Reads the address; what is appended later begins with a slash.
    ///
    /// # Errors
    /// When it is not of this form.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{}' is not https://host[:port][/path]", text.escape_default());
        let rest = text.strip_prefix("https://").ok_or_else(wrong)?;
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().map_err(|_| wrong())?),
            None => (authority, 443),
        };
        let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        if host.is_empty() || !plain(host) || !plain(path) || host.contains(['[', '@']) {
            return Err(wrong());
        }
        Ok(Self { host: host.into(), port, path: path.trim_end_matches('/').into() })
    }

    /// What follows the host.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// This address, with a path if it has none.
    pub(crate) fn or_path(mut self, path: &str) -> Self {
        if self.path.is_empty() {
            self.path = path.into();
        }
        self
    }

    /// Another path of the same service.
    pub(crate) fn with_path(&self, path: &str) -> Self {
        Self { path: path.into(), ..self.clone() }
    }

    /// Scheme, host and port, the port only where it is not the usual one.
    pub(crate) fn origin(&self) -> String {
        match self.port {
            443 => format!("https://{}", self.host),
            port => format!("https://{}:{port}", self.host),
        }
    }

    /// The host, as certificates name it.
    pub fn host(&self) -> &str {
        &self.host
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "https://{}:{}{}", self.host, self.port, self.path)
    }
}

/// Whose certificate a service may show.
#[derive(Clone, Debug)]
pub enum Authority {
    /// One that the system's authorities vouch for.
    System,
    /// The one with this SHA-256, self-signed or not.
    Pinned([u8; 32]),
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    /// Wiped with the answer: it may be a secret.
    pub(crate) body: Zeroizing<Vec<u8>>,
}

impl Answer {
    /// The value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

/// What requests need.
#[derive(Clone, Debug)]
pub(crate) struct Client(Arc<ClientConfig>);

impl Client {
    /// A client that believes in one kind of certificate.
    pub(crate) fn new(authority: &Authority) -> io::Result<Self> {
        let provider = Arc::new(crypto::ring::default_provider());
        let algorithms = provider.signature_verification_algorithms;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?;
        let config = match authority {
            Authority::System => {
                let mut roots = RootCertStore::empty();
                let found = CertificateDer::pem_file_iter(AUTHORITIES).map_err(|error| {
                    io::Error::other(format!("authorities of the system, {AUTHORITIES}: {error}"))
                })?;
                roots.add_parsable_certificates(found.filter_map(Result::ok));
                builder.with_root_certificates(roots).with_no_client_auth()
            }
            Authority::Pinned(hash) => {
                let (hash, schemes) = (*hash, algorithms.supported_schemes());
                // Whoever has this certificate's key is who is meant, whatever name it has.
                let judge = move |der: &[u8], _| match digest(&SHA256, der).as_ref() == hash {
                    true => Ok(()),
                    false => Err(CertificateError::ApplicationVerificationFailure.into()),
                };
                let pinned = Arc::new(ByCertificate { judge, algorithms, schemes });
                builder.dangerous().with_custom_certificate_verifier(pinned).with_no_client_auth()
            }
        };
        Ok(Self(Arc::new(config)))
    }

    /// Asks for `url` with `path` after it.
    ///
    /// # Errors
    /// When nobody answers in time, the certificate is not the right one, or the answer is malformed.
    pub(crate) fn get(&self, url: &Url, path: &str) -> io::Result<Answer> {
        self.exchange(url, &format!("GET {}{path}", url.path), "", &[])
    }

    /// Sends a body to `url`; `headers` are lines, each with its end.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub(crate) fn post(&self, url: &Url, headers: &str, body: &[u8]) -> io::Result<Answer> {
        let headers = Zeroizing::new(format!("{headers}Content-Length: {}\r\n", body.len()));
        self.exchange(url, &format!("POST {}", url.path), &headers, body)
    }

    fn exchange(&self, url: &Url, what: &str, headers: &str, body: &[u8]) -> io::Result<Answer> {
        let Url { host, port, .. } = url;
        let request = Zeroizing::new(format!(
            "{what} HTTP/1.1\r\nHost: {host}:{port}\r\nUser-Agent: hfl\r\nAccept: */*\r\n{headers}\
             Connection: close\r\n\r\n"
        ));
        let mut socket = connect(host, *port)?;
        self.converse(&mut socket, host, &request, body).map_err(in_words)
    }

    fn converse(
        &self,
        socket: &mut TcpStream,
        host: &str,
        request: &str,
        body: &[u8],
    ) -> io::Result<Answer> {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let mut tls = ClientConnection::new(Arc::clone(&self.0), name).map_err(io::Error::other)?;
        let mut stream = Stream::new(&mut tls, socket);
        stream.write_all(request.as_bytes())?;
        stream.write_all(body)?;
        receive(&mut stream, ANSWER_WAIT, BODY_LEN_MAX)
    }
}

/// What a limit of time on a socket says, in words.
fn in_words(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            let what = format!(
                "it accepts connections, but did not answer within {} s",
                READ_WAIT.as_secs()
            );
            io::Error::new(io::ErrorKind::TimedOut, what)
        }
        _ => error,
    }
}

/// Reads an answer, which has to be there in time, with a body of at most `len_max` bytes.
fn receive(stream: &mut impl Read, wait: Duration, len_max: usize) -> io::Result<Answer> {
    let end = Instant::now() + wait;
    // Short answers, which secrets are, never grow out of their room: what they left would not be wiped.
    let room = HEAD_LEN_MAX + len_max + BUFFER_LEN;
    let mut bytes = Zeroizing::new(Vec::with_capacity(room.min(ROOM_MAX)));
    let mut buffer = Zeroizing::new(vec![0; BUFFER_LEN]);
    loop {
        if Instant::now() > end {
            let what = format!("its answer was not complete within {} s", wait.as_secs());
            return Err(io::Error::other(what));
        }
        let len = match stream.read(&mut buffer) {
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // Many servers end without saying so; a length or an end mark tells if all is there.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => 0,
            Err(error) => return Err(error),
        };
        bytes.extend_from_slice(&buffer[..len]);
        if bytes.len() > HEAD_LEN_MAX + len_max {
            return Err(io::Error::other(format!("an answer longer than {} KiB", len_max >> 10)));
        }
        if let Some(answer) = parse(&bytes, len == 0)? {
            return Ok(answer);
        }
    }
}

fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut last = io::Error::other("the name has no address");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT_WAIT) {
            Ok(socket) => {
                socket.set_read_timeout(Some(READ_WAIT))?;
                socket.set_write_timeout(Some(READ_WAIT))?;
                return Ok(socket);
            }
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                let what =
                    format!("no connection to {address} within {} s", CONNECT_WAIT.as_secs());
                last = io::Error::new(io::ErrorKind::TimedOut, what);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// One request without TLS, to somebody who ends the connection with the answer; its body has at most `len_max` bytes.
///
/// # Errors
/// When nobody answers in time, or the answer is malformed or too long.
pub(crate) fn ask_plain(
    to: &SocketAddr,
    request: &[u8],
    wait: Duration,
    len_max: usize,
) -> io::Result<Answer> {
    let mut socket = TcpStream::connect_timeout(to, CONNECT_WAIT)?;
    socket.set_read_timeout(Some(wait))?;
    socket.set_write_timeout(Some(wait))?;
    socket.write_all(request)?;
    receive(&mut socket, wait, len_max)
}

/// The answer in `bytes`, once it is complete (RFC 9112); `ended` says that no more will come.
pub(crate) fn parse(bytes: &[u8], ended: bool) -> io::Result<Option<Answer>> {
    let wrong = |what: &str| io::Error::other(format!("no HTTP answer: {what}"));
    let head = &bytes[..bytes.len().min(HEAD_LEN_MAX)];
    let Some(end) = head.windows(4).position(|four| four == b"\r\n\r\n") else {
        return match ended || bytes.len() >= HEAD_LEN_MAX {
            true => Err(wrong("no end of its head")),
            false => Ok(None),
        };
    };
    let head = std::str::from_utf8(&head[..end]).map_err(|_| wrong("head is not text"))?;
    let mut lines = head.split("\r\n");
    let mut words = lines.next().unwrap_or_default().split(' ');
    let version = words.next().unwrap_or_default();
    let status = words.next().and_then(|word| word.parse::<u16>().ok());
    let status =
        status.filter(|_| version.starts_with("HTTP/1.")).ok_or_else(|| wrong("status"))?;
    let mut headers = Vec::new();
    for line in lines {
        let (name, value) = line.split_once(':').ok_or_else(|| wrong("header"))?;
        headers.push((name.to_owned(), value.trim().to_owned()));
    }
    let mut answer = Answer { status, headers, body: Zeroizing::default() };
    let body = &bytes[end + 4..];
    let coding = answer.header("Transfer-Encoding").map(str::to_ascii_lowercase);
    match (coding.as_deref(), answer.header("Content-Length")) {
        (Some("chunked"), None) => match chunks(body).ok_or_else(|| wrong("chunks"))? {
            Some(body) => answer.body = body,
            None if ended => return Err(wrong("it ends too early")),
            None => return Ok(None),
        },
        (Some(_), _) => return Err(wrong("transfer coding")),
        (None, Some(text)) => {
            let len = text.parse::<usize>().ok().filter(|&len| len <= BODY_LEN_MAX);
            let len = len.ok_or_else(|| wrong("length"))?;
            match body.get(..len) {
                Some(body) => answer.body = body.to_vec().into(),
                None if ended => return Err(wrong("it ends too early")),
                None => return Ok(None),
            }
        }
        (None, None) if ended => answer.body = body.to_vec().into(),
        (None, None) => return Ok(None),
    }
    Ok(Some(answer))
}

/// The body that chunks make; `Some(None)` while the last is not there.
fn chunks(mut bytes: &[u8]) -> Option<Option<Zeroizing<Vec<u8>>>> {
    let mut body = Zeroizing::new(Vec::with_capacity(bytes.len()));
    loop {
        let Some(end) = bytes.windows(2).position(|two| two == b"\r\n") else {
            return (bytes.len() < 32).then_some(None);
        };
        let size = std::str::from_utf8(&bytes[..end]).ok()?.split(';').next()?.trim();
        let size = usize::from_str_radix(size, 16).ok().filter(|&size| size <= BODY_LEN_MAX)?;
        bytes = &bytes[end + 2..];
        if size == 0 {
            return Some(Some(body));
        }
        let Some(chunk) = bytes.get(..size + 2) else { return Some(None) };
        let (chunk, line_end) = chunk.split_at(size);
        if line_end != b"\r\n" {
            return None;
        }
        body.extend_from_slice(chunk);
        bytes = &bytes[size + 2..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_strictly() {
        let url = Url::parse("https://pccs.example:8081/sgx/").expect("valid");
        assert_eq!(
            (url.host(), url.to_string().as_str()),
            ("pccs.example", "https://pccs.example:8081/sgx")
        );
        assert_eq!(Url::parse("https://a").expect("valid").port, 443);
        for bad in [
            "http://a",
            "https://",
            "https://a:x",
            "https://a:99999",
            "https://a b",
            "https://u@a",
            "a",
        ] {
            assert!(Url::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn answers_are_complete_or_nothing() {
        let plain = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX: y\r\n\r\nhello";
        let chunked =
            b"HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x\r\nllo\r\n0\r\n\r\n";
        for (bytes, status) in [(&plain[..], 200), (&chunked[..], 404)] {
            let answer = parse(bytes, false).expect("valid").expect("complete");
            assert_eq!((answer.status, &answer.body[..]), (status, &b"hello"[..]));
            for len in 0..bytes.len() - 4 {
                assert!(parse(&bytes[..len], false).expect("so far").is_none(), "{len}");
                assert!(parse(&bytes[..len], true).is_err(), "{len}");
            }
        }
        let until_end =
            parse(b"HTTP/1.0 200 OK\r\n\r\nall", true).expect("valid").expect("complete");
        assert_eq!(*until_end.body, b"all");
        for bad in [
            &b"SSH-2.0\r\n\r\n"[..],
            b"HTTP/1.1 x\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n",
            b"HTTP/1.1 200 OK\r\nno header\r\n\r\n",
            &[b'x'; HEAD_LEN_MAX],
        ] {
            assert!(parse(bad, false).is_err());
        }
    }

    #[test]
    fn a_service_that_takes_too_long_is_named_as_that() {
        for kind in [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut] {
            let said = in_words(kind.into()).to_string();
            assert!(said.contains("did not answer within 10 s"), "{said}");
        }
        let other = in_words(io::ErrorKind::ConnectionReset.into());
        assert_eq!(other.kind(), io::ErrorKind::ConnectionReset);
        // One that drips a byte at a time is not waited for longer than for an answer.
        let error = receive(&mut io::repeat(b'x'), Duration::ZERO, 10).expect_err("in time");
        assert!(error.to_string().contains("was not complete within 0 s"), "{error}");
    }
}
