//! A service on this machine, over TLS with a certificate of its own, for tests of its clients.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rcgen::{CertificateParams, KeyPair};
use ring::digest::{SHA256, digest};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, Stream};

/// Ends with the process.
pub(crate) struct Service {
    pub(crate) address: String,
    /// SHA-256 of its certificate.
    pub(crate) pin: [u8; 32],
    pub(crate) requests: Arc<AtomicUsize>,
}

/// What is asked for.
pub(crate) struct Request {
    pub(crate) path: String,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

/// What is answered.
pub(crate) struct Reply {
    pub(crate) status: u16,
    /// Lines, each with its end.
    pub(crate) headers: String,
    pub(crate) body: Vec<u8>,
    pub(crate) chunked: bool,
}

/// Serves until the process ends.
pub(crate) fn serve(answer: impl Fn(&Request) -> Reply + Send + 'static) -> Service {
    let key = KeyPair::generate().expect("key");
    let params = CertificateParams::new(vec!["localhost".into()]).expect("name");
    let certificate = params.self_signed(&key).expect("certificate").der().to_vec();
    let pin = digest(&SHA256, &certificate).as_ref().try_into().expect("32 bytes");
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![CertificateDer::from(certificate)], key)
        .expect("config");
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("address").port();
    let requests = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&requests);
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let Ok(mut socket) = socket else { return };
            let mut tls = ServerConnection::new(Arc::clone(&config)).expect("session");
            let mut stream = Stream::new(&mut tls, &mut socket);
            let Some(request) = read(&mut stream) else { continue };
            counter.fetch_add(1, Ordering::Relaxed);
            // The client may have left.
            let _ = stream.write_all(&written(answer(&request)));
        }
    });
    Service { address: format!("https://localhost:{port}"), pin, requests }
}

/// A client that refuses the certificate says nothing.
fn read(stream: &mut impl Read) -> Option<Request> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).ok()?;
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
    let mut body = vec![0; length.map_or(Some(0), |text| text.parse().ok())?];
    stream.read_exact(&mut body).ok()?;
    Some(Request { path: head.split(' ').nth(1)?.to_owned(), head, body })
}

fn written(reply: Reply) -> Vec<u8> {
    let Reply { status, headers, body, chunked } = reply;
    let (coding, body) = match chunked {
        false => (format!("Content-Length: {}\r\n", body.len()), body),
        true => {
            let parts = body.chunks(1000).flat_map(|part| {
                [format!("{:x}\r\n", part.len()).as_bytes(), part, b"\r\n"].concat()
            });
            ("Transfer-Encoding: chunked\r\n".into(), parts.chain(*b"0\r\n\r\n").collect())
        }
    };
    [format!("HTTP/1.1 {status} X\r\n{headers}{coding}\r\n").into_bytes(), body].concat()
}
