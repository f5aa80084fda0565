//! TLS 1.3 with certificates that are judged by their evidence: no names, no authorities.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::time_provider::TimeProvider;
use rustls::{
    CertificateError, ClientConfig, Error, OtherError, ServerConfig, SignatureScheme, version,
};

use crate::certified::ByCertificate;
use crate::identity::certificate::{self, Identity};
use crate::judge::verify::Verifier;
use crate::rejection::Rejection;

/// Both rustls configurations of a party.
pub(crate) struct Tls {
    pub(crate) client: Arc<ClientConfig>,
    pub(crate) server: Arc<ServerConfig>,
}

impl Tls {
    pub(crate) fn new(
        identity: &Identity,
        verifier: &Verifier,
        clock: fn() -> u64,
    ) -> Result<Self, Error> {
        let provider = Arc::new(provider());
        let (verifier, own_key) = (verifier.clone(), identity.spki_hash);
        let peers = Arc::new(ByCertificate {
            judge: move |der: &[u8], now| check(&verifier, &own_key, der, now),
            algorithms: provider.signature_verification_algorithms,
            schemes: vec![SignatureScheme::ECDSA_NISTP256_SHA256],
        });
        let chain = vec![CertificateDer::from(identity.certificate.clone())];
        let key = || PrivateKeyDer::from(PrivatePkcs8KeyDer::from(identity.key.to_vec()));
        let time = Arc::new(Clock(clock));

        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&version::TLS13])?
            .with_client_cert_verifier(Arc::clone(&peers) as _)
            .with_single_cert(chain.clone(), key())?;
        // A resumed session would skip the certificate, early data would come before any evidence.
        server.send_tls13_tickets = 0;
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.max_early_data_size = 0;
        server.time_provider = Arc::clone(&time) as _;

        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(peers)
            .with_client_auth_cert(chain, key())?;
        client.resumption = Resumption::disabled();
        client.time_provider = time;
        Ok(Self { client: Arc::new(client), server: Arc::new(server) })
    }
}

/// The rejection behind a TLS error, if evidence was the reason.
pub(crate) fn rejection(error: &Error) -> Option<Rejection> {
    match error {
        Error::InvalidCertificate(CertificateError::Other(OtherError(other))) => {
            other.downcast_ref().cloned()
        }
        _ => None,
    }
}

fn provider() -> CryptoProvider {
    CryptoProvider {
        // AES-128 first: every TDX machine has AES instructions, and gradients are many bytes.
        cipher_suites: vec![
            ring::cipher_suite::TLS13_AES_128_GCM_SHA256,
            ring::cipher_suite::TLS13_AES_256_GCM_SHA384,
        ],
        ..ring::default_provider()
    }
}

struct Clock(fn() -> u64);

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("Clock")
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs((self.0)())))
    }
}

/// Whether a peer's certificate is not our own, and its evidence is judged well.
fn check(verifier: &Verifier, own_key: &[u8; 32], der: &[u8], now: UnixTime) -> Result<(), Error> {
    let refuse = |rejection: Rejection| {
        Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(rejection))))
    };
    if certificate::spki_hash(der).map_err(refuse)? == *own_key {
        return Err(refuse(Rejection::Reflection));
    }
    verifier.verify_certificate(der, now.as_secs()).map_err(refuse)?;
    Ok(())
}
