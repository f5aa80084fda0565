//! Collateral from a service: Intel's PCS or a PCCS, version 4 of their interface. Blocks.
//!
//! Nothing that comes is believed because of where it comes from: it is judged like any other collateral.

use std::fmt;
use std::io;
use std::time::Duration;

use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::hex::{self, Hex};
use crate::http::{Answer, Authority, Client, Url};
use crate::judge::dcap::{Collateral, Origin};

/// Intel's own service, and where its root's revocation list is.
const INTEL: &str = "api.trustedservices.intel.com";
const INTEL_CERTIFICATES: &str = "https://certificates.trustedservices.intel.com";
/// What users write at the end of an address, as in `sgx_default_qcnl.conf`.
const SUFFIX: &str = "/sgx/certification/v4";

/// Pauses before a request is repeated, where the service is busy.
const PAUSES: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(2)];

/// A service.
#[derive(Clone, Debug)]
pub struct Pccs {
    base: Url,
    edition: Edition,
    client: Client,
}

/// Which of the documents that are valid at a time: Intel publishes new ones before everybody has to have the patches
/// that they are about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Edition {
    /// What the service gives by itself.
    #[default]
    Usual,
    /// Those that everybody has had time for.
    Standard,
    /// The newest.
    Early,
    /// Those of an evaluation number.
    Number(u32),
}

impl Edition {
    /// What an address has after `?`.
    fn parse(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some(("update", "standard")) => Some(Self::Standard),
            Some(("update", "early")) => Some(Self::Early),
            Some(("tcbEvaluationDataNumber", number)) => number.parse().ok().map(Self::Number),
            _ => None,
        }
        .ok_or_else(|| {
            format!(
                "'{}' after '?': expected update=early, update=standard or tcbEvaluationDataNumber=N",
                text.escape_default()
            )
        })
    }

    /// What a request says of it, after `first`.
    fn query(self, first: char) -> String {
        match self {
            Self::Usual => String::new(),
            Self::Standard => format!("{first}update=standard"),
            Self::Early => format!("{first}update=early"),
            Self::Number(number) => format!("{first}tcbEvaluationDataNumber={number}"),
        }
    }
}

/// Why there is no collateral. Each kind has a stable [`code`](FetchError::code).
#[derive(Debug)]
pub enum FetchError {
    /// Nobody answers, or not with the right certificate.
    Unreachable {
        /// The service.
        service: String,
        /// What happened.
        error: io::Error,
    },
    /// The service answers, but not with what was asked for.
    Status {
        /// What was asked for.
        what: &'static str,
        /// Its answer.
        status: u16,
    },
    /// The answer is not what it should be.
    Malformed(&'static str),
}

impl FetchError {
    /// A stable name of the kind.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => "pccs-unreachable",
            Self::Status { status: 404, .. } => "pccs-no-data",
            Self::Status { .. } => "pccs-status",
            Self::Malformed(_) => "pccs-malformed",
        }
    }
}

impl fmt::Display for FetchError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Unreachable { service, error } => {
                write!(f, "{service}: {error}")?;
                match error.to_string().contains("UnknownIssuer") {
                    true => f.write_str(
                        "; a certificate of the service's own is named by its SHA-256: https://HOST:PORT#SHA256",
                    ),
                    false => Ok(()),
                }
            }
            Self::Status { what, status } => {
                write!(f, "no {what}: {status}, {}", meaning(*status))
            }
            Self::Malformed(what) => write!(f, "its {what} is malformed"),
        }
    }
}

impl std::error::Error for FetchError {}

/// What a status of PCS or PCCS means, and what to do.
fn meaning(status: u16) -> &'static str {
    match status {
        400 => "the request is not understood: is this version 4 of the interface?",
        401 | 403 => "access is denied: does the service want an API key?",
        404 => "there is none for this kind of platform: the PCCS has to fetch it first",
        410 => "that evaluation number is withdrawn",
        429 => "too many requests: try later",
        460 => "the platform is not registered with the PCCS",
        461 => "the platform's security version is not known to the PCCS",
        462 => "the platform's certificate is not there: register the platform again",
        500 => "an error inside the service: see its log",
        502..=504 => "the PCCS cannot reach Intel's service",
        _ => "see the log of the service",
    }
}

impl Pccs {
    /// A service at `base`, with or without `/sgx/certification/v4` at its end; after `?` which documents are asked
    /// for: `update=early`, `update=standard` or `tcbEvaluationDataNumber=N`.
    ///
    /// # Errors
    /// When the address is none, or the system has no authorities to believe in.
    pub fn new(base: &str, authority: &Authority) -> io::Result<Self> {
        let (base, edition) = Self::parse(base).map_err(io::Error::other)?;
        Ok(Self { base, edition, client: Client::new(authority)? })
    }

    /// Whether an address is one of a service.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(address: &str) -> Result<(), String> {
        Self::parse(address).map(drop)
    }

    fn parse(address: &str) -> Result<(Url, Edition), String> {
        let (base, edition) = match address.split_once('?') {
            None => (address, Edition::Usual),
            Some((base, edition)) => (base, Edition::parse(edition)?),
        };
        let base = base.trim_end_matches('/');
        Ok((Url::parse(base.strip_suffix(SUFFIX).unwrap_or(base))?, edition))
    }

    /// Everything that is needed to judge quotes of one kind of platform.
    ///
    /// # Errors
    /// The first thing that could not be had.
    pub fn fetch(&self, origin: &Origin) -> Result<Collateral, FetchError> {
        let family = if origin.is_tdx { "tdx" } else { "sgx" };
        let fmspc = Hex(&origin.fmspc).to_string().to_uppercase();
        let base = format!("/{family}/certification/v4");
        let info = self.get(
            &self.base,
            &format!("{base}/tcb?fmspc={fmspc}{}", self.edition.query('&')),
            "TCB info",
        )?;
        let identity = self.get(
            &self.base,
            &format!("{base}/qe/identity{}", self.edition.query('?')),
            "QE identity",
        )?;
        let ca = if origin.is_platform_ca { "platform" } else { "processor" };
        let path = format!("{SUFFIX}/pckcrl?ca={ca}&encoding=der");
        let list = self.get(&self.base, &path, "revocation list")?;
        let tcb: TcbAnswer =
            serde_json::from_slice(&info.body).map_err(|_| FetchError::Malformed("TCB info"))?;
        let qe: QeAnswer = serde_json::from_slice(&identity.body)
            .map_err(|_| FetchError::Malformed("QE identity"))?;
        let signature = |text: &str, what| hex::unhex(text).ok_or(FetchError::Malformed(what));
        let chain = |answer: &Answer, names: &[&str], what| {
            let found = names.iter().find_map(|name| answer.header(name));
            found.and_then(percent_decoded).ok_or(FetchError::Malformed(what))
        };
        Ok(Collateral {
            tcb_info_issuer_chain: chain(
                &info,
                &["TCB-Info-Issuer-Chain", "SGX-TCB-Info-Issuer-Chain"],
                "chain of the TCB info",
            )?,
            tcb_info_signature: signature(&tcb.signature, "signature of the TCB info")?,
            tcb_info: tcb.info.get().as_bytes().to_vec(),
            qe_identity_issuer_chain: chain(
                &identity,
                &["SGX-Enclave-Identity-Issuer-Chain"],
                "chain of the QE identity",
            )?,
            qe_identity_signature: signature(&qe.signature, "signature of the QE identity")?,
            qe_identity: qe.identity.get().as_bytes().to_vec(),
            root_ca_crl: self.root_list()?,
            pck_crl: der(&list.body).ok_or(FetchError::Malformed("revocation list"))?,
        })
    }

    /// The revocation list of the root: a PCCS has it in hexadecimal, Intel elsewhere.
    fn root_list(&self) -> Result<Vec<u8>, FetchError> {
        const WHAT: &str = "revocation list of the root";
        let answer = match self.base.host() == INTEL {
            true => {
                let url =
                    Url::parse(INTEL_CERTIFICATES).map_err(|_| FetchError::Malformed(WHAT))?;
                self.get(&url, "/IntelSGXRootCA.der", WHAT)?
            }
            false => self.get(&self.base, &format!("{SUFFIX}/rootcacrl"), WHAT)?,
        };
        der(&answer.body).ok_or(FetchError::Malformed(WHAT))
    }

    /// Asks, and again after a while where the service is busy.
    fn get(&self, url: &Url, path: &str, what: &'static str) -> Result<Answer, FetchError> {
        let mut pauses = PAUSES.iter();
        loop {
            let answer = self
                .client
                .get(url, path)
                .map_err(|error| FetchError::Unreachable { service: url.to_string(), error })?;
            match (answer.status, pauses.next()) {
                (200, _) => return Ok(answer),
                (429 | 503, Some(pause)) => std::thread::sleep(*pause),
                (status, _) => return Err(FetchError::Status { what, status }),
            }
        }
    }
}

/// Documents are signed as the bytes that they are: they are cut out, not written again.
#[derive(Deserialize)]
struct TcbAnswer<'a> {
    #[serde(borrow, rename = "tcbInfo")]
    info: &'a RawValue,
    signature: String,
}

#[derive(Deserialize)]
struct QeAnswer<'a> {
    #[serde(borrow, rename = "enclaveIdentity")]
    identity: &'a RawValue,
    signature: String,
}

/// A list in DER, which services also send as PEM or in hexadecimal.
fn der(body: &[u8]) -> Option<Vec<u8>> {
    if body.first() == Some(&0x30) && body.get(1).is_some_and(|&byte| byte & 0x80 != 0) {
        return Some(body.to_vec());
    }
    if body.trim_ascii_start().starts_with(b"-----BEGIN") {
        return CertificateRevocationListDer::from_pem_slice(body).ok().map(|list| list.to_vec());
    }
    let text = std::str::from_utf8(body).ok()?.trim();
    hex::unhex(text.trim_matches('"'))
}

/// The text that a header carries URL-encoded; forms write a space as '+', which is also a digit of
/// base64.
fn percent_decoded(text: &str) -> Option<Vec<u8>> {
    let form = text.contains("BEGIN+CERTIFICATE");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes().iter();
    while let Some(&byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let pair = [*rest.next()?, *rest.next()?];
                *hex::unhex(std::str::from_utf8(&pair).ok()?)?.first()?
            }
            b'+' if form => b' ',
            other => other,
        });
    }
    Some(bytes)
}

#[cfg(test)]
pub(crate) mod tests;
