//! Evidence of this TD from the guest components of Confidential Containers: an attestation agent beside
//! the containers of a pod, asked over HTTP on the loopback. For containers without any privilege.
//!
//! The agent takes text as report data. So it is asked for 64 digits that stand for the 64 bytes, and
//! [`digits`] says which.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use base64ct::{Base64, Encoding};
use ring::digest::{SHA256, digest};
use serde::Deserialize;

use crate::Attester;
use crate::hex::Hex;
use crate::http;
use crate::quote::QUOTE_LEN_MAX;

/// Where the agent listens in a guest (`agent.guest_components_rest_api=all`).
const AGENT: ([u8; 4], u16) = ([127, 0, 0, 1], 8006);
const CONNECT_WAIT: Duration = Duration::from_secs(1);
const ANSWER_WAIT: Duration = Duration::from_secs(40);
/// Longest answer: a quote in base64 and event logs.
const ANSWER_LEN_MAX: u64 = 4 << 20;

/// The agent of a guest.
#[derive(Debug)]
pub struct GuestComponents(SocketAddr);

/// What it answers; there are logs beside the quote.
#[derive(Deserialize)]
struct Evidence {
    quote: String,
}

/// The report data that stands for `report_data` where only text can be asked for: SHA-256 in
/// hexadecimal digits.
pub(crate) fn digits(report_data: &[u8; 64]) -> [u8; 64] {
    let text = Hex(digest(&SHA256, report_data).as_ref()).to_string();
    text.as_bytes().try_into().expect("32 bytes are 64 digits")
}

impl GuestComponents {
    /// The agent, if something listens where it should be.
    pub fn find() -> Option<Self> {
        let agent = Self(AGENT.into());
        TcpStream::connect_timeout(&agent.0, CONNECT_WAIT).ok().map(|_| agent)
    }

    fn ask(&self, text: &str) -> io::Result<Vec<u8>> {
        let mut socket = TcpStream::connect_timeout(&self.0, CONNECT_WAIT)?;
        socket.set_read_timeout(Some(ANSWER_WAIT))?;
        let request = format!(
            "GET /aa/evidence?runtime_data={text} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
            self.0
        );
        socket.write_all(request.as_bytes())?;
        let mut bytes = Vec::new();
        socket.take(ANSWER_LEN_MAX).read_to_end(&mut bytes)?;
        let answer = http::parse(&bytes, true)?;
        let answer = answer.ok_or_else(|| io::Error::other("no answer"))?;
        match answer.status {
            200 => Ok(answer.body),
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
        let quote = Base64::decode_vec(&evidence.quote).ok();
        let quote = quote.filter(|quote| quote.len() <= QUOTE_LEN_MAX);
        quote.ok_or_else(|| named(io::Error::other("its quote is no base64, or too long")))
    }

    fn name(&self) -> &'static str {
        "the guest's attestation agent"
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::{Policy, SimPlatform, Trust, Verifier};

    const NOW: u64 = 1_800_000_000;

    /// An agent that answers once, with what `body` makes of the text that it is asked with.
    fn agent(status: u16, body: impl FnOnce(&str) -> String + Send + 'static) -> GuestComponents {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
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
        GuestComponents(address)
    }

    #[test]
    fn a_quote_over_digits_is_accepted_for_the_bytes_that_they_stand_for() {
        let platform = SimPlatform::new(NOW);
        let policy = Policy::same_as(platform.report());
        let agent = agent(200, move |text| {
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
            let error = agent(status, |_| body.to_owned()).quote(&[9; 64]).expect_err(body);
            assert!(error.to_string().contains("attestation agent"), "{error}");
        }
    }
}
