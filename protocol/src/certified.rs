//! `ByCertificate`: a verifier of rustls that asks one question about a peer's certificate, and leaves signatures to
//! rustls. TLS 1.3 only.

use std::fmt;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible, SignatureScheme};

/// Neither names nor authorities count: what `judge` says of the certificate (DER, at a time) does.
pub(crate) struct ByCertificate<F> {
    pub(crate) judge: F,
    pub(crate) algorithms: WebPkiSupportedAlgorithms,
    /// What a peer may sign with.
    pub(crate) schemes: Vec<SignatureScheme>,
}

impl<F> ByCertificate<F> {
    fn check_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }
}

impl<F> fmt::Debug for ByCertificate<F> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("ByCertificate")
    }
}

/// TLS 1.2 is not offered, so its signatures are never asked about.
fn no_tls12() -> Error {
    Error::PeerIncompatible(PeerIncompatible::Tls13RequiredForQuic)
}

impl<F: Fn(&[u8], UnixTime) -> Result<(), Error> + Send + Sync> ServerCertVerifier
    for ByCertificate<F>
{
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer,
        _: &[CertificateDer],
        _: &ServerName,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        (self.judge)(end_entity, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes.clone()
    }
}

impl<F: Fn(&[u8], UnixTime) -> Result<(), Error> + Send + Sync> ClientCertVerifier
    for ByCertificate<F>
{
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer,
        _: &[CertificateDer],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        (self.judge)(end_entity, now).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes.clone()
    }
}
