//! Evidence of this TD from the guest components of Confidential Containers: an attestation agent beside
//! the containers of a pod, asked over HTTP on the loopback. For containers without any privilege.
//!
//! The agent takes text as report data. So it is asked for 64 digits that stand for the 64 bytes, and
//! [`digits`] says which. In pods that are virtual machines of Azure it answers with a TPM's quote too.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use base64ct::{Base64, Base64UrlUnpadded, Encoding};
use serde::Deserialize;

use crate::Attester;
use crate::evidence::azure;
use crate::evidence::vtpm::{EVIDENCE_LEN_MAX, Vtpm, digits};
use crate::hex;
use crate::http;

/// Where the agent listens in a guest (`agent.guest_components_rest_api=attestation`).
const AGENT: ([u8; 4], u16) = ([127, 0, 0, 1], 8006);
/// It is a process of the same guest: connected at once, or not running.
const CONNECT_WAIT: Duration = Duration::from_secs(1);
/// The agent waits for the host's quote service, up to 30 s by itself ([`crate::evidence::tsm`]).
const ANSWER_WAIT: Duration = Duration::from_secs(40);

/// The agent of a guest.
#[derive(Debug)]
pub struct GuestComponents(SocketAddr);

/// What it answers; there are logs beside the quote.
#[derive(Deserialize)]
#[serde(untagged)]
enum Evidence {
    Tdx { quote: String },
    Azure { td_quote: Bytes, hcl_report: Bytes, tpm_quote: TpmQuote },
}

#[derive(Deserialize)]
struct TpmQuote {
    signature: Bytes,
    message: Bytes,
    pcrs: Vec<Bytes>,
}

/// Bytes as agents write them: older ones as numbers, newer ones as digits or in base64url.
#[derive(Deserialize)]
#[serde(untagged)]
enum Bytes {
    Numbers(Vec<u8>),
    Text(String),
}

impl Bytes {
    fn decode(self, text: fn(&str) -> Option<Vec<u8>>) -> Option<Vec<u8>> {
        match self {
            Self::Numbers(bytes) => Some(bytes),
            Self::Text(written) => text(&written),
        }
    }

    fn base64(self) -> Option<Vec<u8>> {
        self.decode(|text| Base64UrlUnpadded::decode_vec(text.trim_end_matches('=')).ok())
    }

    fn digits(self) -> Option<Vec<u8>> {
        self.decode(hex::unhex)
    }
}

impl Evidence {
    /// The evidence in our form.
    fn decode(self) -> Option<Vec<u8>> {
        let (quote, report, tpm) = match self {
            Self::Tdx { quote } => return Base64::decode_vec(&quote).ok(),
            Self::Azure { td_quote, hcl_report, tpm_quote } => (td_quote, hcl_report, tpm_quote),
        };
        let report = report.base64()?;
        let (_, claims) = azure::parse_report(&report).ok()?;
        let pcrs = tpm.pcrs.into_iter().map(|pcr| pcr.digits()?.try_into().ok());
        let vtpm = Vtpm {
            claims: claims.to_vec(),
            message: tpm.message.digits()?,
            signature: tpm.signature.digits()?,
            pcrs: pcrs.collect::<Option<Vec<_>>>()?.try_into().ok()?,
        };
        Some(vtpm.encode(&quote.base64()?))
    }
}

impl GuestComponents {
    /// What logs call it.
    pub const NAME: &str = "the guest's attestation agent";

    /// The agent, if something listens where it should be.
    pub fn find() -> Option<Self> {
        let agent = Self(AGENT.into());
        TcpStream::connect_timeout(&agent.0, CONNECT_WAIT).ok().map(|_| agent)
    }

    fn ask(&self, text: &str) -> io::Result<Vec<u8>> {
        let request = format!(
            "GET /aa/evidence?runtime_data={text} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
            self.0
        );
        let answer = http::ask_plain(&self.0, request.as_bytes(), ANSWER_WAIT, http::BODY_LEN_MAX)?;
        match answer.status {
            200 => Ok(answer.body.to_vec()),
            status => Err(io::Error::other(format!("status {status}"))),
        }
    }
}

impl Attester for GuestComponents {
    fn quote(&self, report_data: &[u8; 64]) -> io::Result<Vec<u8>> {
        let text = digits(report_data);
        let text = std::str::from_utf8(&text).expect("digits");
        let named = |error: io::Error| {
            io::Error::new(error.kind(), format!("attestation agent of the guest: {error}"))
        };
        let body = self.ask(text).map_err(named)?;
        let evidence: Evidence = serde_json::from_slice(&body)
            .map_err(|_| named(io::Error::other("its answer holds no quote; is this a TD?")))?;
        let evidence = evidence.decode().filter(|evidence| evidence.len() <= EVIDENCE_LEN_MAX);
        evidence.ok_or_else(|| {
            named(io::Error::other("its quote is not encoded as it should be, or too long"))
        })
    }

    fn name(&self) -> &'static str {
        Self::NAME
    }
}

#[cfg(test)]
impl GuestComponents {
    /// An agent that answers once, with what `body` makes of the text that it is asked with.
    pub(crate) fn answering(
        status: u16,
        body: impl FnOnce(&str) -> String + Send + 'static,
    ) -> Self {
        use std::io::{Read, Write};

        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("address");
        std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().expect("a client");
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                socket.read_exact(&mut byte).expect("a request");
                request.push(byte[0]);
            }
            let request = String::from_utf8(request).expect("text");
            let text = request.split(['=', ' ']).nth(2).expect("runtime data").to_owned();
            let body = body(&text);
            let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n", body.len());
            socket.write_all((head + &body).as_bytes()).expect("an answer");
        });
        Self(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Policy, SimPlatform, Trust, Verifier};

    const NOW: u64 = 1_800_000_000;

    #[test]
    fn a_quote_over_digits_is_accepted_for_the_bytes_that_they_stand_for() {
        let platform = SimPlatform::new(NOW);
        let policy = Policy::same_as(platform.report());
        let agent = GuestComponents::answering(200, move |text| {
            let data: [u8; 64] = text.as_bytes().try_into().expect("64 digits");
            let quote = platform.quote(&data).expect("a quote");
            let encoded = Base64::encode_string(&quote);
            format!("{{\"cc_eventlog\":null,\"quote\":\"{encoded}\"}}")
        });
        let quote = agent.quote(&[9; 64]).expect("a quote");
        let verifier = Verifier { trust: Trust::Simulated, policy };
        verifier.verify(&quote, &[9; 64], None, NOW).expect("ours");
        assert!(verifier.verify(&quote, &[8; 64], None, NOW).is_err());
    }

    #[test]
    fn answers_without_a_quote_are_errors_that_name_the_agent() {
        for (status, body) in [
            (500, "{}"),
            (200, "{}"),
            (200, "{\"quote\":\"?\"}"),
            (200, "not JSON"),
            (200, "{\"quote\":7}"),
        ] {
            let error = GuestComponents::answering(status, |_| body.to_owned())
                .quote(&[9; 64])
                .expect_err(body);
            assert!(error.to_string().contains("attestation agent"), "{error}");
        }
    }
}
