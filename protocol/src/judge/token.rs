//! Tokens of remote verifiers: JSON Web Tokens (RFC 7515, 7519), their keys, and what they claim of a TD.
//!
//! A token is worth something only if one of the service's keys signed it by an algorithm that we name, it
//! is of that service, of this moment, and about this very quote: every measurement that it claims has to
//! be the quote's own, so that the policy judges what was signed.

use std::fmt;

use base64ct::{Base64, Base64UrlUnpadded, Encoding};
use ring::digest::{SHA256, digest};
use ring::signature::{
    RSA_PKCS1_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384, RsaParameters, RsaPublicKeyComponents,
};
use serde::Deserialize;
use serde_json::Value;
use x509_cert::der::Decode;

use crate::evidence::quote::TdReport;
use crate::hex::Hex;
use crate::identity::chain;
use crate::judge::dcap::Status;

/// Longest token, set of keys, and number of keys, all from a network. Tokens of Intel and Microsoft are below 16 KiB,
/// their sets have a few keys.
const TOKEN_LEN_MAX: usize = 64 << 10;
const KEYS_LEN_MAX: usize = 1 << 20;
const KEYS_MAX: usize = 64;
/// Most certificates of a key: leaf, two intermediates, root.
const CHAIN_MAX: usize = 4;
/// Clocks may differ so much, in seconds: a token made now by a clock slightly ahead would be refused without it.
const LEEWAY: u64 = 60;
/// Longest life of a token, in seconds: an hour is usual, a day is long.
const LIFE_MAX: u64 = 24 * 3600;

/// The keys that a service signs with.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    keys: Vec<Key>,
    /// SHA-256 of the certificate that every key's chain must end with.
    root: Option<[u8; 32]>,
}

#[derive(Clone, Debug)]
struct Key {
    id: String,
    modulus: Vec<u8>,
    exponent: Vec<u8>,
    /// From when and until when its certificate is valid, if it has one.
    valid: Option<[u64; 2]>,
    /// Its certificate, those that vouch for one another, the root.
    chain: Vec<Vec<u8>>,
}

/// Why a token is not believed. Each kind has a stable [`code`](TokenError::code).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenError {
    /// It is no token, or its keys are none.
    Malformed(&'static str),
    /// It is signed in a way that we do not accept.
    Algorithm,
    /// No key of the service has its key's name, or that key's time is over.
    UnknownKey,
    /// The certificates of its key do not lead to the root that they end with, or that is another one.
    Chain,
    /// The key did not sign it.
    Signature,
    /// It is of another time: its end, or its beginning.
    Time(&'static str),
    /// It is of another service.
    Issuer,
    /// It says something else than the quote.
    Claim(&'static str),
}

impl TokenError {
    /// A stable name of the kind.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "token-malformed",
            Self::Algorithm => "token-algorithm",
            Self::UnknownKey => "token-key",
            Self::Chain => "token-chain",
            Self::Signature => "token-signature",
            Self::Time(_) => "token-time",
            Self::Issuer => "token-issuer",
            Self::Claim(_) => "token-claim",
        }
    }
}

impl fmt::Display for TokenError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Malformed(what) => write!(f, "the token is malformed: {what}"),
            Self::Algorithm => write!(f, "the token is not signed by RS256 or PS384"),
            Self::UnknownKey => {
                write!(f, "no key of the service that is valid now signed the token")
            }
            Self::Chain => write!(f, "the key's certificates do not lead to the service's root"),
            Self::Signature => write!(f, "the token has a wrong signature"),
            Self::Time(what) => write!(f, "the token is {what}"),
            Self::Issuer => write!(f, "the token is of another service"),
            Self::Claim(name) => write!(f, "the token claims another {name} than the quote has"),
        }
    }
}

impl std::error::Error for TokenError {}

#[derive(Deserialize)]
struct WrittenKeys {
    keys: Vec<WrittenKey>,
}

#[derive(Deserialize)]
struct WrittenKey {
    kty: String,
    kid: Option<String>,
    n: Option<String>,
    e: Option<String>,
    #[serde(default)]
    x5c: Vec<String>,
}

impl Keys {
    /// Reads a JSON Web Key Set (RFC 7517); other keys than RSA are left out.
    ///
    /// # Errors
    /// When it is none, or a key and its certificate are not of one another.
    pub fn parse(bytes: &[u8]) -> Result<Self, TokenError> {
        let malformed = || TokenError::Malformed("keys");
        if bytes.len() > KEYS_LEN_MAX {
            return Err(malformed());
        }
        let written: WrittenKeys = serde_json::from_slice(bytes).map_err(|_| malformed())?;
        if written.keys.len() > KEYS_MAX {
            return Err(malformed());
        }
        let rsa = written.keys.iter().filter(|key| key.kty == "RSA");
        let keys = rsa.map(Key::parse).collect::<Option<_>>().ok_or_else(malformed)?;
        Ok(Self { keys, root: None })
    }

    /// The same keys, each of which counts only if its certificates end with this one (its SHA-256).
    pub fn with_root(self, root: Option<[u8; 32]>) -> Self {
        Self { root, ..self }
    }
}

impl Key {
    fn parse(written: &WrittenKey) -> Option<Self> {
        let own = match (&written.n, &written.e) {
            (Some(n), Some(e)) => Some((
                Base64UrlUnpadded::decode_vec(n).ok()?,
                Base64UrlUnpadded::decode_vec(e).ok()?,
            )),
            _ => None,
        };
        let chain = written.x5c.iter().take(CHAIN_MAX + 1);
        let chain = chain.map(|text| Base64::decode_vec(text).ok()).collect::<Option<Vec<_>>>()?;
        if chain.len() > CHAIN_MAX {
            return None;
        }
        let certified = match chain.first() {
            Some(der) => Some(certified(der)?),
            None => None,
        };
        let valid = certified.as_ref().map(|(_, valid)| *valid);
        let certified = certified.map(|(key, _)| key);
        let key = match (own, certified) {
            (Some(own), Some(certified)) => (own == certified).then_some(own)?,
            (own, certified) => own.or(certified)?,
        };
        let (modulus, exponent) = key;
        Some(Self { id: written.kid.clone()?, modulus, exponent, valid, chain })
    }

    /// Checks that the certificates vouch for one another, and that the last is the one that is meant. One
    /// alone is not signed by another: who published it vouches for it.
    fn check_chain(&self, root: Option<&[u8; 32]>, now: u64) -> Result<(), TokenError> {
        let last = self.chain.last();
        let meant =
            root.is_none_or(|root| last.is_some_and(|last| digest(&SHA256, last).as_ref() == root));
        if !meant {
            return Err(TokenError::Chain);
        }
        let [chain @ .., root] = self.chain.as_slice() else { return Ok(()) };
        if chain.is_empty() {
            return Ok(());
        }
        chain::verify(chain, root, webpki::ALL_VERIFICATION_ALGS, now)
            .map_err(|_| TokenError::Chain)
    }
}

/// Modulus and exponent.
type Rsa = (Vec<u8>, Vec<u8>);

/// A certificate's RSA key, and when the certificate is valid.
fn certified(der: &[u8]) -> Option<(Rsa, [u64; 2])> {
    let certificate = x509_cert::Certificate::from_der(der).ok()?;
    let body = certificate.tbs_certificate();
    let key = &body.subject_public_key_info().subject_public_key;
    let mut rest = sequence(key.as_bytes()?)?;
    let (modulus, exponent) = (unsigned(&mut rest)?, unsigned(&mut rest)?);
    let validity = body.validity();
    let seconds = |time: x509_cert::time::Time| time.to_unix_duration().as_secs();
    let valid = [seconds(validity.not_before), seconds(validity.not_after)];
    rest.is_empty().then_some(((modulus, exponent), valid))
}

/// Content of a DER sequence that is all there is.
fn sequence(bytes: &[u8]) -> Option<&[u8]> {
    let any = x509_cert::der::asn1::AnyRef::from_der(bytes).ok()?;
    (x509_cert::der::Tagged::tag(&any) == x509_cert::der::Tag::Sequence).then(|| any.value())
}

/// The next unsigned integer, without its leading zero.
fn unsigned(rest: &mut &[u8]) -> Option<Vec<u8>> {
    use x509_cert::der::{Reader, SliceReader};
    let mut reader = SliceReader::new(rest).ok()?;
    let value = x509_cert::der::asn1::UintRef::decode(&mut reader).ok()?;
    *rest = reader.read_slice(reader.remaining_len()).ok()?;
    Some(value.as_bytes().to_vec())
}

/// What a verified token says.
#[derive(Clone, Debug)]
pub struct Token {
    claims: Value,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: String,
}

impl Token {
    /// Checks a token's form, signature, issuer and time; `now` in seconds since 1970.
    ///
    /// # Errors
    /// The first reason not to believe it.
    pub fn verify(text: &str, keys: &Keys, issuers: &[&str], now: u64) -> Result<Self, TokenError> {
        let malformed = TokenError::Malformed;
        if text.len() > TOKEN_LEN_MAX {
            return Err(malformed("length"));
        }
        let mut parts = text.split('.');
        let (Some(head), Some(body), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(malformed("not three parts"));
        };
        let decode = |part: &str| {
            Base64UrlUnpadded::decode_vec(part).map_err(|_| malformed("not base64url"))
        };
        let header: Header =
            serde_json::from_slice(&decode(head)?).map_err(|_| malformed("header"))?;
        let algorithm: &RsaParameters = match header.alg.as_str() {
            "RS256" => &RSA_PKCS1_2048_8192_SHA256,
            "PS384" => &RSA_PSS_2048_8192_SHA384,
            _ => return Err(TokenError::Algorithm),
        };
        let in_time = |key: &&Key| key.valid.is_none_or(|[from, to]| (from..=to).contains(&now));
        let key = keys.keys.iter().filter(in_time).find(|key| key.id == header.kid);
        let key = key.ok_or(TokenError::UnknownKey)?;
        key.check_chain(keys.root.as_ref(), now)?;
        RsaPublicKeyComponents { n: &key.modulus, e: &key.exponent }
            .verify(algorithm, format!("{head}.{body}").as_bytes(), &decode(signature)?)
            .map_err(|_| TokenError::Signature)?;
        let claims: Value =
            serde_json::from_slice(&decode(body)?).map_err(|_| malformed("claims"))?;
        let token = Self { claims };
        let issuer = token.claims["iss"].as_str().unwrap_or_default();
        if !issuers.contains(&issuer.trim_end_matches('/')) {
            return Err(TokenError::Issuer);
        }
        token.check_time(now)?;
        Ok(token)
    }

    fn check_time(&self, now: u64) -> Result<(), TokenError> {
        let time = |name: &str| self.claims[name].as_u64();
        let end = time("exp").ok_or(TokenError::Malformed("no end"))?;
        let begin =
            time("nbf").or_else(|| time("iat")).ok_or(TokenError::Malformed("no beginning"))?;
        if now > end.saturating_add(LEEWAY) {
            return Err(TokenError::Time("over"));
        }
        if now.saturating_add(LEEWAY) < begin {
            return Err(TokenError::Time("not valid yet"));
        }
        match end.saturating_sub(begin) > LIFE_MAX {
            true => Err(TokenError::Time("valid for more than a day")),
            false => Ok(()),
        }
    }

    /// A claim, which newer services keep in an object of its own.
    fn claim(&self, name: &str) -> &Value {
        match &self.claims["tdx"][name] {
            Value::Null => &self.claims[name],
            found => found,
        }
    }

    /// A claim of the service about the conversation, such as a nonce.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.claims[name].as_str()
    }

    /// Whether there is such a claim.
    pub fn has(&self, name: &str) -> bool {
        !self.claim(name).is_null()
    }

    /// Checks that the token is about this TD as its quote describes it, and says what the service thinks
    /// of its platform.
    ///
    /// # Errors
    /// The first claim that is missing or says something else.
    pub fn check_td(&self, report: &TdReport) -> Result<Status, TokenError> {
        let fields: [(&'static str, &[u8]); 10] = [
            ("tdx_mrtd", &report.mr_td),
            ("tdx_rtmr0", &report.rt_mr[0]),
            ("tdx_rtmr1", &report.rt_mr[1]),
            ("tdx_rtmr2", &report.rt_mr[2]),
            ("tdx_rtmr3", &report.rt_mr[3]),
            ("tdx_mrseam", &report.mr_seam),
            ("tdx_mrsignerseam", &report.mr_signer_seam),
            ("tdx_td_attributes", &report.td_attributes),
            ("tdx_xfam", &report.xfam),
            ("tdx_report_data", &report.report_data),
        ];
        for (name, value) in fields {
            let claimed = self.claim(name).as_str().map(str::to_ascii_lowercase);
            if claimed.as_deref() != Some(Hex(value).to_string().as_str()) {
                return Err(TokenError::Claim(name));
            }
        }
        let status = self.claim("attester_tcb_status").as_str().unwrap_or_default();
        // What Intel's service said before it took the names of the documents.
        let status = if status == "OK" { "UpToDate" } else { status };
        let known = Status::ALL.into_iter().find(|known| known.name() == status);
        known.ok_or(TokenError::Claim("attester_tcb_status"))
    }
}

#[cfg(test)]
pub(crate) mod tests;
