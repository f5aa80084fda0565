//! Evidence of a confidential virtual machine of Azure: claims from its virtual TPM, a TDX quote from the
//! host's metadata service, PCRs signed by the TPM. Blocks.
//!
//! The paravisor keeps a report in the TPM (the "HCL report"): a TDREPORT of its TD, whose report data is the
//! hash of the claims that follow it. The metadata service makes a quote of it. Both are asked for once a
//! process; what is fresh for each connection is the TPM's signature over it and the PCRs.

use std::fs::OpenOptions;
use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use base64ct::{Base64UrlUnpadded, Encoding};
use ring::digest::{SHA256, digest};
use serde::Deserialize;
use serde_json::json;

use crate::Attester;
use crate::evidence::quote::{QUOTE_LEN_MAX, Quote};
use crate::evidence::tpm::Tpm;
use crate::evidence::vtpm::Vtpm;
use crate::http;

/// The virtual TPM, through the kernel's resource manager.
const DEVICE: &str = "/dev/tpmrm0";
/// Where the paravisor's report is, and the key that signs.
const REPORT_INDEX: u32 = 0x0140_0001;
const ATTESTATION_KEY: u32 = 0x8100_0003;
/// The metadata service of every virtual machine there.
const METADATA: ([u8; 4], u16) = ([169, 254, 169, 254], 80);
/// The service is on the same host and answers in milliseconds; one that does not is not there.
const ANSWER_WAIT: Duration = Duration::from_secs(10);
/// The service takes a few requests a second only, of all that run here.
const ATTEMPTS: u32 = 4;
const PAUSE: Duration = Duration::from_millis(500);
/// Parts of the paravisor's report.
const TDREPORT: std::ops::Range<usize> = 32..32 + 1024;
const CLAIMS_HEAD: std::ops::Range<usize> = 1216..1236;
const KIND_TDX: u32 = 4;
const HASH_SHA256: u32 = 1;

/// A confidential virtual machine of Azure.
pub struct AzureVm {
    tpm: Mutex<Tpm>,
    metadata: SocketAddr,
    /// The quote, and the claims that it is over.
    certified: Mutex<Option<(Vec<u8>, Vec<u8>)>>,
}

#[derive(Deserialize)]
struct Answer {
    quote: String,
}

impl AzureVm {
    /// The machine that this is, if it has a TPM with a paravisor's report.
    pub fn find() -> Option<Self> {
        let device = OpenOptions::new().read(true).write(true).open(DEVICE).ok()?;
        let mut tpm = Tpm::new(device);
        tpm.nv_len(REPORT_INDEX).ok()?;
        Some(Self::with(tpm, METADATA.into()))
    }

    pub(crate) fn with(tpm: Tpm, metadata: SocketAddr) -> Self {
        Self { tpm: Mutex::new(tpm), metadata, certified: Mutex::new(None) }
    }

    /// The quote of this machine's TD and the claims that it is over.
    fn certified(&self, tpm: &mut Tpm) -> io::Result<(Vec<u8>, Vec<u8>)> {
        let mut known = self.certified.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = &*known {
            return Ok(known.clone());
        }
        let (report, claims) = report(tpm)?;
        let quote = self.quote_of(&report)?;
        Ok(known.insert((quote, claims)).clone())
    }

    /// Has the host make a quote of a TDREPORT.
    fn quote_of(&self, report: &[u8]) -> io::Result<Vec<u8>> {
        let named = |what: String| io::Error::other(format!("metadata service: {what}"));
        let body = json!({"report": Base64UrlUnpadded::encode_string(report)}).to_string();
        let request = format!(
            "POST /acc/tdquote HTTP/1.1\r\nHost: {}\r\nMetadata: true\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            self.metadata.ip(),
            body.len()
        );
        let mut attempt = 0;
        let answer = loop {
            attempt += 1;
            let answer = http::ask_plain(
                &self.metadata,
                request.as_bytes(),
                ANSWER_WAIT,
                http::BODY_LEN_MAX,
            );
            match answer.map_err(|error| named(error.to_string()))? {
                answer if answer.status == 200 => break answer,
                answer if matches!(answer.status, 429 | 500..) && attempt < ATTEMPTS => {
                    std::thread::sleep(PAUSE * attempt);
                }
                answer => return Err(named(format!("status {}", answer.status))),
            }
        };
        let answer: Answer = serde_json::from_slice(&answer.body)
            .map_err(|_| named("its answer holds no quote".into()))?;
        let quote = Base64UrlUnpadded::decode_vec(answer.quote.trim_end_matches('='));
        let quote = quote.ok().filter(|quote| quote.len() <= QUOTE_LEN_MAX);
        let quote = quote.ok_or_else(|| named("its quote is no base64url, or too long".into()))?;
        let parsed = Quote::parse(&quote).map_err(|error| named(error.to_string()))?;
        match parsed.td().is_ok_and(|td| td.report_data[..] == report[128..192]) {
            true => Ok(quote),
            false => Err(named("its quote is of another report".into())),
        }
    }
}

impl Attester for AzureVm {
    fn quote(&self, report_data: &[u8; 64]) -> io::Result<Vec<u8>> {
        let mut tpm = self.tpm.lock().unwrap_or_else(PoisonError::into_inner);
        let (quote, claims) = self.certified(&mut tpm)?;
        let mut quoted = [0; 64];
        quoted[..32].copy_from_slice(digest(&SHA256, &claims).as_ref());
        let extra = digest(&SHA256, report_data);
        let mut attempt = 0;
        loop {
            attempt += 1;
            let pcrs = tpm.pcrs()?;
            let (message, signature) = tpm.quote(ATTESTATION_KEY, extra.as_ref())?;
            let vtpm = Vtpm { claims: claims.clone(), message, signature, pcrs };
            match vtpm.verify(&quoted).map(|signed| signed == extra.as_ref()) {
                Ok(true) => return Ok(vtpm.encode(&quote)),
                // Somebody may have extended a PCR in between.
                Err(_) if attempt < ATTEMPTS => {}
                Ok(false) => return Err(io::Error::other("the TPM signed something else")),
                Err(why) => return Err(io::Error::other(format!("the TPM's evidence: {why}"))),
            }
        }
    }

    fn name(&self) -> &'static str {
        "Azure's virtual TPM"
    }
}

/// The paravisor's TDREPORT and its claims. It writes them anew now and then, so a reader may meet halves.
fn report(tpm: &mut Tpm) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        let bytes = tpm.nv_read(REPORT_INDEX)?;
        match parse_report(&bytes) {
            Ok((report, claims)) => return Ok((report.to_vec(), claims.to_vec())),
            Err(_) if attempt < ATTEMPTS => std::thread::sleep(PAUSE),
            Err(what) => return Err(io::Error::other(format!("the paravisor's report: {what}"))),
        }
    }
}

/// The TDREPORT in a paravisor's report, and the claims that its report data is the hash of.
pub(crate) fn parse_report(bytes: &[u8]) -> Result<(&[u8], &[u8]), &'static str> {
    let (Some(report), Some(head)) = (bytes.get(TDREPORT), bytes.get(CLAIMS_HEAD)) else {
        return Err("too short");
    };
    if !bytes.starts_with(b"HCLA") {
        return Err("it does not begin with HCLA");
    }
    let number = |at: usize| head[at..].first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
    if number(8) != Some(KIND_TDX) {
        return Err("it is of no TD (another kind of confidential virtual machine?)");
    }
    if number(12) != Some(HASH_SHA256) {
        return Err("its claims are hashed with something else than SHA-256");
    }
    let len = number(16).and_then(|len| usize::try_from(len).ok());
    let claims = len.and_then(|len| bytes[CLAIMS_HEAD.end..].get(..len));
    let claims = claims.ok_or("its claims are longer than it is")?;
    match digest(&SHA256, claims).as_ref() == &report[128..160] {
        true => Ok((report, claims)),
        false => Err("its TDREPORT is over other claims"),
    }
}

#[cfg(test)]
mod tests;
