//! What a volume key vouches for: the header, by a token that cryptsetup keeps, and manifests of files.
//!
//! A LUKS2 header is not authenticated. Who has the volume key can say which segment, digest and UUID it
//! was made with: the MAC is over those, not over keyslots and labels, so that keys can be added and
//! removed with cryptsetup (a changed keyslot yields no key that matches the digest anyway).

use std::fmt;
use std::str::FromStr;

use base64ct::{Base64, Encoding};
use ring::{digest, hkdf, hmac};

use crate::Error;
use crate::header::json::Value;
use crate::header::metadata::{Metadata, Object, object};

/// Type of the token.
const TOKEN: &str = "hfl-header-mac";
const HEADER_INFO: &[u8] = b"hfl luks2 header v1";
const MANIFEST_INFO: &[u8] = b"hfl model manifest v1";

/// The SHA-256 of what the header MAC covers: what `--expect` pins.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct HeaderId(pub [u8; 32]);

impl HeaderId {
    pub(crate) fn of(covered: &str) -> Self {
        let sum = digest::digest(&digest::SHA256, covered.as_bytes());
        Self(sum.as_ref().try_into().expect("32 bytes"))
    }
}

impl fmt::Display for HeaderId {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for HeaderId {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "HeaderId({self})")
    }
}

impl FromStr for HeaderId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
        let bytes: Option<Vec<u8>> = text
            .as_bytes()
            .chunks(2)
            .map(|pair| Some(digit(pair[0])? << 4 | digit(*pair.get(1)?)?))
            .collect();
        let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or_else(|| "expected 64 hexadecimal digits".into())
    }
}

/// What the MAC covers, as text: sizes, UUID, segment and digest.
pub(crate) fn covered(metadata: &Metadata, size: u64, uuid: &str) -> String {
    let digest = metadata.segment_digest();
    object([
        ("uuid", uuid.into()),
        ("hdr_size", size.into()),
        ("keyslots_size", metadata.keyslots_len.into()),
        ("segment", metadata.segment.to_json()),
        (
            "digest",
            object([
                ("hash", digest.hash.name().into()),
                ("iterations", u64::from(digest.iterations).into()),
                ("salt", Base64::encode_string(&digest.salt).as_str().into()),
                ("digest", Base64::encode_string(&digest.digest).as_str().into()),
            ]),
        ),
    ])
    .text()
}

/// The token that goes into the header.
pub(crate) fn token(key: &[u8], uuid: &str, covered: &str) -> Value {
    let mac = hmac::sign(&derive(key, uuid, HEADER_INFO), covered.as_bytes());
    object([
        ("type", TOKEN.into()),
        ("keyslots", Value::Array(Vec::new())),
        ("alg", "hmac-sha256".into()),
        ("mac", Base64::encode_string(mac.as_ref()).as_str().into()),
    ])
}

/// Whether this is a header MAC.
pub(crate) fn is_token(token: &Value) -> bool {
    matches!(token, Value::Object(members)
        if members.iter().any(|(key, value)| key == "type" && *value == TOKEN.into()))
}

/// Whether a token claims to be the header MAC; [`verify`] checks it.
pub(crate) fn is_in(metadata: &Metadata) -> bool {
    metadata.tokens.iter().any(|(_, token)| is_token(token))
}

/// Whether the header has a MAC.
///
/// # Errors
/// `Mac` if it has one that the volume key did not make.
pub(crate) fn verify(
    metadata: &Metadata,
    key: &[u8],
    uuid: &str,
    covered: &str,
) -> Result<bool, Error> {
    let mut tokens = metadata.tokens.iter().filter(|(_, token)| is_token(token)).peekable();
    let found = tokens.peek().is_some();
    for (_, token) in tokens {
        let mac = Object::new(token.clone(), "header MAC")?.base64("mac")?;
        hmac::verify(&derive(key, uuid, HEADER_INFO), covered.as_bytes(), &mac)
            .map_err(|_| Error::Mac)?;
    }
    Ok(found)
}

/// Authenticates manifests of what is kept in a volume.
pub struct ManifestKey(hmac::Key);

impl ManifestKey {
    pub(crate) fn new(key: &[u8], uuid: &str) -> Self {
        Self(derive(key, uuid, MANIFEST_INFO))
    }

    /// The MAC of a manifest.
    pub fn sign(&self, manifest: &[u8]) -> [u8; 32] {
        hmac::sign(&self.0, manifest).as_ref().try_into().expect("32 bytes")
    }

    /// Whether this is the MAC of that manifest; in constant time.
    pub fn verify(&self, manifest: &[u8], mac: &[u8]) -> bool {
        hmac::verify(&self.0, manifest, mac).is_ok()
    }
}

impl fmt::Debug for ManifestKey {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("ManifestKey")
    }
}

/// HKDF-SHA256 of the volume key, salted with the volume's UUID.
fn derive(key: &[u8], uuid: &str, info: &[u8]) -> hmac::Key {
    let pseudo_random = hkdf::Salt::new(hkdf::HKDF_SHA256, uuid.as_bytes()).extract(key);
    pseudo_random.expand(&[info], hmac::HMAC_SHA256).expect("32 bytes").into()
}
