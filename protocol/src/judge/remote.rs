//! Remote verifiers: Intel Trust Authority (Amber before) and Microsoft Azure Attestation judge a quote and
//! answer with a token, which is verified like everything that comes over a network. Blocks.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::time::Duration;

use base64ct::{Base64, Base64UrlUnpadded, Encoding};
use ring::rand::{SecureRandom, SystemRandom};
use serde::Deserialize;
use serde_json::json;
use zeroize::Zeroizing;

use crate::evidence::quote::TdReport;
use crate::hex::{self, Hex};
use crate::http::{Answer, Authority, Client, Url};
use crate::judge::dcap::Status;
use crate::judge::token::{Keys, Token, TokenError};

/// Largest configuration file: a few lines, and nothing that was given by mistake is read to its end.
const FILE_LEN_MAX: usize = 64 << 10;
/// Pauses before a request is repeated, where a service is busy or out of order.
const PAUSES: [Duration; 3] =
    [Duration::from_millis(500), Duration::from_secs(2), Duration::from_secs(5)];
/// Where Intel's service has its keys in each region, and what its tokens name it.
const INTEL_KEYS: [(&str, &str); 2] = [
    ("api.trustauthority.intel.com", "https://portal.trustauthority.intel.com"),
    ("api.eu.trustauthority.intel.com", "https://portal.eu.trustauthority.intel.com"),
];
const INTEL_ISSUERS: [&str; 2] = ["Intel Trust Authority", "AS Attestation Token Issuer"];
/// Paths where the address has none.
const INTEL_PATH: &str = "/appraisal/v2/attest";
const AZURE_PATH: &str = "/attest/TdxVm?api-version=2023-04-01-preview";
const KEYS_PATH: &str = "/certs";

/// A service that judges quotes.
#[derive(Clone)]
pub struct RemoteVerifier {
    provider: Provider,
    url: Url,
    keys: Url,
    signing_root: Option<[u8; 32]>,
    api_key: Zeroizing<String>,
    /// Who is asked for verdicts, and who for keys: hosts of two names show two certificates.
    client: Client,
    key_client: Client,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Provider {
    Intel,
    Azure,
}

/// Why there is no verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RemoteError {
    /// The service does not answer, or not with a token.
    Service(String),
    /// Its token is not believed.
    Token(TokenError),
}

impl RemoteError {
    /// A stable name of the kind.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Service(_) => "remote-verifier",
            Self::Token(error) => error.code(),
        }
    }
}

impl fmt::Display for RemoteError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Service(what) => write!(f, "the remote verifier: {what}"),
            Self::Token(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for RemoteError {}

impl From<TokenError> for RemoteError {
    fn from(error: TokenError) -> Self {
        Self::Token(error)
    }
}

/// The file, with the keys of the system that this one replaces and one of ours.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    attestation_url: String,
    attestation_provider: String,
    #[serde(default)]
    api_key: String,
    /// SHA-256 of the certificate of the service, or of each host, where no public authority vouches for it.
    certificate_sha256: Option<Pins>,
    /// SHA-256 of the root certificate of the keys that sign tokens, where that is known.
    signing_root_sha256: Option<String>,
    #[serde(rename = "enable_metrics")]
    _enable_metrics: Option<serde_json::Value>,
    #[serde(rename = "claims")]
    _claims: Option<serde_json::Value>,
}

/// Digits for the host of the address, or for each host.
#[derive(Deserialize)]
#[serde(untagged)]
enum Pins {
    Own(String),
    Hosts(BTreeMap<String, String>),
}

impl Pins {
    /// Whose certificate each of two services may show: the one that judges, the one that has the keys.
    fn authorities(pins: Option<Self>, url: &Url, keys: &Url) -> Result<[Authority; 2], String> {
        let pins = match pins {
            None => BTreeMap::new(),
            Some(Self::Own(digits)) => BTreeMap::from([(url.host().to_owned(), digits)]),
            Some(Self::Hosts(pins)) => pins,
        };
        let hosts = [url.host(), keys.host()];
        if !pins.keys().all(|host| hosts.contains(&host.as_str())) {
            return Err(format!("certificate_sha256: expected pins of {} only", hosts.join(", ")));
        }
        let [own, of_keys] = hosts.map(|host| match pins.get(host) {
            None => Ok(Authority::System),
            Some(digits) => sha256("certificate_sha256", digits).map(Authority::Pinned),
        });
        Ok([own?, of_keys?])
    }
}

fn sha256(name: &str, digits: &str) -> Result<[u8; 32], String> {
    let bytes = hex::unhex(digits).and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or_else(|| format!("{name}: expected 64 digits"))
}

#[derive(Deserialize)]
struct Appraised {
    token: String,
}

impl fmt::Debug for RemoteVerifier {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "RemoteVerifier({:?}, {})", self.provider, self.url)
    }
}

impl RemoteVerifier {
    /// Whether a file is the configuration of a remote verifier, by a key that every such file has.
    pub fn is_configuration(bytes: &[u8]) -> bool {
        bytes.len() <= FILE_LEN_MAX
            && serde_json::from_slice::<serde_json::Value>(bytes)
                .is_ok_and(|value| value.get("attestation_provider").is_some())
    }

    /// Reads the configuration.
    ///
    /// # Errors
    /// Unknown keys, an unknown provider, an address that is none; an API key is never shown.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() > FILE_LEN_MAX {
            return Err("more than 64 KiB".into());
        }
        let written: Written = serde_json::from_slice(bytes)
            .map_err(|error| format!("line {}, column {}", error.line(), error.column()))?;
        let provider = match written.attestation_provider.as_str() {
            "amber" | "ita" => Provider::Intel,
            "maa" => Provider::Azure,
            _ => return Err("attestation_provider: expected amber, ita or maa".into()),
        };
        let url = Url::parse(&written.attestation_url)?;
        let default = if provider == Provider::Intel { INTEL_PATH } else { AZURE_PATH };
        let url = url.or_path(default);
        let keys = match INTEL_KEYS.iter().find(|(host, _)| *host == url.host()) {
            Some((_, keys)) => Url::parse(keys)?.or_path(KEYS_PATH),
            None => url.with_path(KEYS_PATH),
        };
        let root = written.signing_root_sha256.as_deref();
        let signing_root = root.map(|root| sha256("signing_root_sha256", root)).transpose()?;
        let authorities = Pins::authorities(written.certificate_sha256, &url, &keys)?;
        let client = |authority| Client::new(authority).map_err(|error| error.to_string());
        let (client, key_client) = (client(&authorities[0])?, client(&authorities[1])?);
        let api_key = Zeroizing::new(written.api_key);
        Ok(Self { provider, url, keys, signing_root, api_key, client, key_client })
    }

    /// Has a quote judged: the status of its platform, if the service vouches for the TD of `report`.
    ///
    /// # Errors
    /// When the service does not answer, or its token is not about this TD.
    pub fn appraise(
        &self,
        quote: &[u8],
        report: &TdReport,
        now: u64,
    ) -> Result<Status, RemoteError> {
        let nonce = nonce()?;
        let body = self.request(quote, &nonce).to_string();
        let answer = self.ask(|| {
            let headers = match self.provider {
                Provider::Intel => format!("x-api-key: {}\r\n", *self.api_key),
                Provider::Azure if self.api_key.is_empty() => String::new(),
                Provider::Azure => format!("Authorization: Bearer {}\r\n", *self.api_key),
            };
            let headers = Zeroizing::new(format!("Content-Type: application/json\r\n{headers}"));
            self.client.post(&self.url, &headers, body.as_bytes())
        })?;
        let appraised: Appraised = serde_json::from_slice(&answer.body)
            .map_err(|_| RemoteError::Service("its answer holds no token".into()))?;
        let keys = self.ask(|| self.key_client.get(&self.keys, ""))?;
        let keys = Keys::parse(&keys.body)?.with_root(self.signing_root);
        let origin = self.url.origin();
        let issuers: &[&str] = match self.provider {
            Provider::Intel => &INTEL_ISSUERS,
            Provider::Azure => &[&origin],
        };
        let token = Token::verify(&appraised.token, &keys, issuers, now)?;
        self.check_nonce(&token, &nonce)?;
        Ok(token.check_td(report)?)
    }

    /// Azure's service repeats a nonce. Intel's would have its own in the report data, where the nonces of
    /// this connection are: a token that has one was made for another request.
    fn check_nonce(&self, token: &Token, nonce: &str) -> Result<(), TokenError> {
        match self.provider {
            Provider::Azure if token.text("nonce") != Some(nonce) => {
                Err(TokenError::Claim("nonce"))
            }
            Provider::Intel if token.has("verifier_nonce") => {
                Err(TokenError::Claim("verifier_nonce"))
            }
            _ => Ok(()),
        }
    }

    fn request(&self, quote: &[u8], nonce: &str) -> serde_json::Value {
        let plain = Base64::encode_string(quote);
        match self.provider {
            Provider::Intel if self.url.path().contains("/v2/") => json!({"tdx": {"quote": plain}}),
            Provider::Intel => json!({"quote": plain}),
            Provider::Azure => {
                json!({"quote": Base64UrlUnpadded::encode_string(quote), "nonce": nonce})
            }
        }
    }

    /// Asks until there is an answer that is one, at most four times.
    fn ask(&self, request: impl Fn() -> io::Result<Answer>) -> Result<Answer, RemoteError> {
        let mut pauses = PAUSES.iter();
        loop {
            let what = match request() {
                Ok(answer) if answer.status == 200 => return Ok(answer),
                Ok(answer) => format!("{}, {}", answer.status, meaning(answer.status)),
                Err(error) => error.to_string(),
            };
            let passes =
                ["429", "500", "502", "503", "504"].iter().any(|code| what.starts_with(code));
            match pauses.next().filter(|_| passes) {
                Some(pause) => std::thread::sleep(*pause),
                None => return Err(RemoteError::Service(format!("{}: {what}", self.url))),
            }
        }
    }
}

fn meaning(status: u16) -> &'static str {
    match status {
        400 => "the quote or the request is not what it takes",
        401 | 403 => "the API key is not accepted",
        404 => "no such path: is the address complete?",
        429 => "too many requests",
        500..=599 => "it is out of order",
        _ => "see its documentation",
    }
}

fn nonce() -> Result<String, RemoteError> {
    let mut bytes = [0; 32];
    let none = |_| RemoteError::Service("no random numbers".into());
    SystemRandom::new().fill(&mut bytes).map_err(none)?;
    Ok(Hex(&bytes).to_string())
}

#[cfg(test)]
mod tests;
