//! Evidence of a TD whose guest is measured by a virtual TPM, because other code owns the TD: Azure's
//! confidential virtual machines, in which a paravisor runs below the guest.
//!
//! A chain of four links, each checked here or by who verifies the quote:
//!
//! 1. the platform signs a TDX quote; its measurements are the paravisor's;
//! 2. the quote's report data is SHA-256 of the paravisor's claims, a JSON text;
//! 3. the claims hold the attestation key of the TPM that the paravisor is (`HCLAkPub`);
//! 4. that key signs the PCRs, which are the guest's measurements, and what the verifier wanted.
//!
//! Anybody can write claims into the report data of a TD of his own. So all of it means nothing unless the
//! quote's MRTD is a paravisor's: [`Policy`](crate::Policy) takes PCRs only beside an MRTD.

use base64ct::{Base64UrlUnpadded, Encoding};
use ring::digest::{SHA256, digest};
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents};
use serde::Deserialize;

use crate::evidence::quote::{Body, QUOTE_LEN_MAX, Quote, QuoteError};
use crate::evidence::tpm::{Attest, Pcrs};
use crate::hex::Hex;
use crate::rejection::Rejection;

/// Largest evidence of any kind.
pub(crate) const EVIDENCE_LEN_MAX: usize = QUOTE_LEN_MAX + (8 << 10);
/// Begins evidence with a TPM's quote; a TDX quote begins with its version, a small number.
const MAGIC: &[u8; 8] = b"hfl-vtpm";
/// The claim that is the attestation key.
const ATTESTATION_KEY: &str = "HCLAkPub";

/// What a peer shows: a TDX quote, and with it what a TPM says if the guest is measured by one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// The quote.
    pub quote: Quote,
    /// The TPM's part.
    pub vtpm: Option<Vtpm>,
}

/// What leads from a TDX quote to PCRs. Nothing is verified yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vtpm {
    /// The paravisor's claims.
    pub(crate) claims: Vec<u8>,
    /// The TPM's quote, a `TPMS_ATTEST`.
    pub(crate) message: Vec<u8>,
    /// Its signature.
    pub(crate) signature: Vec<u8>,
    /// The PCRs that the quote is over.
    pub(crate) pcrs: Pcrs,
}

/// The claims, as far as they matter here.
#[derive(Deserialize)]
struct Claims {
    keys: Vec<Key>,
}

#[derive(Deserialize)]
struct Key {
    kid: String,
    kty: String,
    #[serde(default)]
    n: String,
    #[serde(default)]
    e: String,
}

impl Evidence {
    /// Reads evidence of either kind.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(bytes: &[u8]) -> Result<Self, QuoteError> {
        let Some(rest) = bytes.strip_prefix(MAGIC) else {
            return Ok(Self { quote: Quote::parse(bytes)?, vtpm: None });
        };
        if bytes.len() > EVIDENCE_LEN_MAX {
            return Err(QuoteError::TooLong { len: bytes.len() });
        }
        let (quote, vtpm) = Vtpm::parse(rest).ok_or(QuoteError::Vtpm("its parts"))?;
        Ok(Self { quote: Quote::parse(quote)?, vtpm: Some(vtpm) })
    }

    /// Whether it was made for this report data: by the platform, or by a TPM that its quote leads to.
    ///
    /// # Errors
    /// When it does not lead there.
    pub fn is_over(&self, report_data: &[u8; 64]) -> Result<bool, Rejection> {
        let quoted = match &self.quote.body {
            Body::Td(report) => report.report_data,
            Body::Enclave(report) => *report.last_chunk().expect("a report ends with its data"),
        };
        let digits = digits(report_data);
        let Some(vtpm) = &self.vtpm else { return Ok([*report_data, digits].contains(&quoted)) };
        let signed = vtpm.verify(&quoted)?;
        Ok(signed == digest(&SHA256, report_data).as_ref() || signed == digits)
    }

    /// Whether bytes are evidence with a TPM's part.
    pub(crate) fn is_vtpm(bytes: &[u8]) -> bool {
        bytes.starts_with(MAGIC)
    }

    /// The TDX quote in evidence, as bytes.
    pub fn quote_bytes(bytes: &[u8]) -> &[u8] {
        let parts = bytes.strip_prefix(MAGIC).and_then(Vtpm::parse);
        parts.map_or(bytes, |(quote, _)| quote)
    }
}

impl Vtpm {
    /// The evidence's bytes: with `quote`, each part behind its length.
    pub(crate) fn encode(&self, quote: &[u8]) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        for part in [quote, &self.claims, &self.message, &self.signature] {
            bytes.extend((part.len() as u32).to_be_bytes());
            bytes.extend(part);
        }
        bytes.extend(self.pcrs.as_flattened());
        bytes
    }

    fn parse(mut rest: &[u8]) -> Option<(&[u8], Self)> {
        let mut parts = [&[][..]; 4];
        for part in &mut parts {
            let (len, after) = rest.split_first_chunk()?;
            let len = usize::try_from(u32::from_be_bytes(*len)).ok()?;
            (*part, rest) = after.split_at_checked(len)?;
        }
        let mut pcrs = [[0; 32]; 24];
        let [quote, claims, message, signature] = parts;
        if rest.len() != pcrs.as_flattened().len() {
            return None;
        }
        pcrs.as_flattened_mut().copy_from_slice(rest);
        let [claims, message, signature] = [claims, message, signature].map(<[u8]>::to_vec);
        Some((quote, Self { claims, message, signature, pcrs }))
    }

    /// The PCRs, not verified.
    pub fn pcrs(&self) -> &Pcrs {
        &self.pcrs
    }

    /// Follows the chain from the report data of a TDX quote to the PCRs. Returns what the TPM was asked to
    /// sign with them.
    ///
    /// # Errors
    /// The first link that does not hold.
    pub fn verify(&self, quoted: &[u8; 64]) -> Result<&[u8], Rejection> {
        let wrong = Rejection::Vtpm;
        if digest(&SHA256, &self.claims).as_ref() != &quoted[..32] {
            return Err(wrong("the quote is over other claims"));
        }
        let key = attestation_key(&self.claims).ok_or(wrong("the claims hold no key of a TPM"))?;
        key.verify(&RSA_PKCS1_2048_8192_SHA256, &self.message, &self.signature)
            .map_err(|_| wrong("the key in the claims did not sign the TPM's quote"))?;
        let attest = Attest::parse(&self.message)
            .ok_or(wrong("the TPM signed something else than a quote over all PCRs"))?;
        match digest(&SHA256, self.pcrs.as_flattened()).as_ref() == attest.digest {
            true => Ok(attest.extra),
            false => Err(wrong("the TPM's quote is over other PCRs")),
        }
    }
}

/// The only attestation key in the claims.
pub(crate) fn attestation_key(claims: &[u8]) -> Option<RsaPublicKeyComponents<Vec<u8>>> {
    let claims: Claims = serde_json::from_slice(claims).ok()?;
    let mut keys = claims.keys.into_iter().filter(|key| key.kid == ATTESTATION_KEY);
    let key = keys.next().filter(|key| key.kty == "RSA")?;
    let number = |text: &str| Base64UrlUnpadded::decode_vec(text).ok();
    match keys.next() {
        None => Some(RsaPublicKeyComponents { n: number(&key.n)?, e: number(&key.e)? }),
        Some(_) => None,
    }
}

/// The report data that stands for `report_data` where only text can be asked for: SHA-256 in
/// hexadecimal digits.
pub(crate) fn digits(report_data: &[u8; 64]) -> [u8; 64] {
    let text = Hex(digest(&SHA256, report_data).as_ref()).to_string();
    text.as_bytes().try_into().expect("32 bytes are 64 digits")
}
