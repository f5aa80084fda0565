//! Whether certificates vouch for one another, up to a root that is trusted already.

use std::time::Duration;

use rustls::pki_types::{CertificateDer, SignatureVerificationAlgorithm, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

/// Checks certificates in DER, the leaf first and the root left out, at `now` in seconds since 1970.
pub(crate) fn verify(
    chain: &[impl AsRef<[u8]>],
    root: &[u8],
    algorithms: &[&dyn SignatureVerificationAlgorithm],
    now: u64,
) -> Result<(), webpki::Error> {
    let chain: Vec<CertificateDer> = chain.iter().map(|der| der.as_ref().into()).collect();
    let [leaf, intermediates @ ..] = chain.as_slice() else {
        return Err(webpki::Error::UnknownIssuer);
    };
    let root = CertificateDer::from(root);
    let anchors = [webpki::anchor_from_trusted_cert(&root)?];
    let leaf = EndEntityCert::try_from(leaf)?;
    let verified = leaf.verify_for_usage(
        algorithms,
        &anchors,
        intermediates,
        UnixTime::since_unix_epoch(Duration::from_secs(now)),
        // Those that we meet name no extended usage, which satisfies every one that is asked for.
        KeyUsage::client_auth(),
        None,
        None,
    );
    verified.map(drop)
}
