//! The evidence in a certificate of any form that is known: a quote, and what binds it to the key.
//!
//! * `ccc`: "interoperable RA-TLS" of the Confidential Computing Consortium. Extension 2.23.133.5.4.9 (DICE
//!   tagged evidence) holds the CBOR `60000([quote, claims])`; the claims are a CBOR map with
//!   `"pubkey-hash": << [algorithm, hash of the SubjectPublicKeyInfo] >>`, and the quote's report data
//!   is SHA-256 of the claims, zero-padded.
//! * `gramine`: a quote in an extension of its own, over SHA-256 of the SubjectPublicKeyInfo.
//! * `dstack`: a quote in an OCTET STRING, over SHA-512 of a label and the SubjectPublicKeyInfo.
//!
//! A certificate with tagged evidence is judged by that alone, whatever else is in it.

use ring::digest::{Algorithm, SHA256, SHA384, SHA512, digest};
use x509_cert::der::asn1::{ObjectIdentifier, OctetString};
use x509_cert::der::{Decode, Encode};

use crate::evidence::vtpm::Evidence;
use crate::rejection::Rejection;

/// Largest certificate that is looked at; evidence with an event log takes some 13 kB.
pub(crate) const CERTIFICATE_LEN_MAX: usize = 48 << 10;
/// DICE tagged evidence.
pub(super) const CCC: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.23.133.5.4.9");
/// Gramine's, in which an encoded identifier became part of the identifier by mistake.
const GRAMINE: ObjectIdentifier = ObjectIdentifier::new_unwrap("0.6.9.42.840.113741.1337.6");
/// dstack's quote.
const DSTACK: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.62397.1.1");
const DSTACK_LABEL: &[u8] = b"ratls-cert:";
/// CBOR tag 60000 (a quote with claims) and the head of an array of two.
pub(super) const TAGGED_PAIR: &[u8] = &[0xd9, 0xea, 0x60, 0x82];
/// The same with a tag of our own ("hfl1"), for what is no quote alone: evidence with a virtual TPM's part.
pub(super) const TAGGED_VTPM_PAIR: &[u8] = &[0xda, 0x68, 0x66, 0x6c, 0x31, 0x82];
/// Most claims, which are read before anything about the peer is known; ours and others' have one or two.
const CLAIMS_MAX: usize = 16;

/// A form of certificates with evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Of the Confidential Computing Consortium.
    Interoperable,
    /// Of Gramine before version 1.8.
    Gramine,
    /// Of dstack.
    Dstack,
}

impl Form {
    /// A stable name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Interoperable => "ccc",
            Self::Gramine => "gramine",
            Self::Dstack => "dstack",
        }
    }
}

/// Evidence from a certificate, and what it must be over to vouch for the certificate's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateEvidence {
    /// How it is written.
    pub form: Form,
    /// The quote, as [`Evidence`] reads it; nothing of it is verified yet.
    pub quote: Vec<u8>,
    /// The report data that binds the quote to the key.
    pub report_data: [u8; 64],
}

impl CertificateEvidence {
    /// Reads a certificate in DER.
    ///
    /// # Errors
    /// When it is no certificate, carries no evidence that is known, or evidence about another key.
    pub fn parse(certificate: &[u8]) -> Result<Self, Rejection> {
        if certificate.len() > CERTIFICATE_LEN_MAX {
            return Err(Rejection::Certificate("too large"));
        }
        let parsed = x509_cert::Certificate::from_der(certificate)
            .map_err(|_| Rejection::Certificate("not DER"))?;
        let body = parsed.tbs_certificate();
        let spki = body.subject_public_key_info().to_der();
        let spki = spki.map_err(|_| Rejection::Certificate("public key"))?;
        let extensions = body.extensions().map_or(&[][..], Vec::as_slice);
        let find = |id: ObjectIdentifier| {
            let mut found = extensions.iter().filter(|extension| extension.extn_id == id);
            match (found.next(), found.next()) {
                (Some(_), Some(_)) => Err(Rejection::Certificate("two evidence extensions")),
                (found, _) => Ok(found.map(|extension| extension.extn_value.as_bytes())),
            }
        };
        if let Some(content) = find(CCC)? {
            return interoperable(content, &spki);
        }
        if let Some(quote) = find(GRAMINE)? {
            let report_data = padded(&SHA256, &spki);
            return Ok(Self { form: Form::Gramine, quote: quote.to_vec(), report_data });
        }
        if let Some(content) = find(DSTACK)? {
            let quote = OctetString::from_der(content);
            let quote = quote.map_err(|_| Rejection::Certificate("evidence extension"))?;
            let report_data = padded(&SHA512, &[DSTACK_LABEL, &spki].concat());
            let quote = quote.as_bytes().to_vec();
            return Ok(Self { form: Form::Dstack, quote, report_data });
        }
        Err(Rejection::MissingEvidence)
    }
}

/// A hash, with zeros up to the length of report data.
fn padded(algorithm: &'static Algorithm, bytes: &[u8]) -> [u8; 64] {
    let hash = digest(algorithm, bytes);
    let mut data = [0; 64];
    data[..hash.as_ref().len()].copy_from_slice(hash.as_ref());
    data
}

fn interoperable(content: &[u8], spki: &[u8]) -> Result<CertificateEvidence, Rejection> {
    let malformed = Rejection::Certificate("evidence extension");
    let plain = content.strip_prefix(TAGGED_PAIR);
    let items = plain.or_else(|| content.strip_prefix(TAGGED_VTPM_PAIR));
    let (quote, rest) = items.and_then(|items| item(items, BYTES)).ok_or(malformed.clone())?;
    if Evidence::is_vtpm(quote) == plain.is_some() {
        return Err(malformed);
    }
    let (claims, []) = item(rest, BYTES).ok_or(malformed.clone())? else {
        return Err(malformed);
    };
    let (algorithm, hash) = key_hash(claims).ok_or(Rejection::Certificate("claims"))?;
    match digest(algorithm, spki).as_ref() == hash {
        true => Ok(CertificateEvidence {
            form: Form::Interoperable,
            quote: quote.to_vec(),
            report_data: padded(&SHA256, claims),
        }),
        false => Err(Rejection::ReportData),
    }
}

/// Algorithm and hash of the claim `pubkey-hash`; other claims may be there too, each once.
fn key_hash(claims: &[u8]) -> Option<(&'static Algorithm, &[u8])> {
    let (count, mut rest) = head(claims, MAP)?;
    let mut names: Vec<&[u8]> = Vec::new();
    let mut found = None;
    if count > CLAIMS_MAX {
        return None;
    }
    for _ in 0..count {
        let (name, after) = item(rest, TEXT)?;
        let (value, after) = item(after, BYTES)?;
        rest = after;
        if names.contains(&name) {
            return None;
        }
        names.push(name);
        if name == b"pubkey-hash" {
            found = Some(value);
        }
    }
    let (2, inside) = head(found?, ARRAY)? else { return None };
    let (id, inside) = head(inside, NUMBER)?;
    let (hash, []) = item(inside, BYTES)? else { return None };
    // IANA's named information hash algorithms.
    let algorithm = match id {
        1 => &SHA256,
        7 => &SHA384,
        8 => &SHA512,
        _ => return None,
    };
    (rest.is_empty() && hash.len() == algorithm.output_len()).then_some((algorithm, hash))
}

/// Major types of CBOR (RFC 8949, 3.1).
const NUMBER: u8 = 0;
const BYTES: u8 = 2;
const TEXT: u8 = 3;
const ARRAY: u8 = 4;
const MAP: u8 = 5;

/// Head of a byte string of definite length, in shortest form.
pub(super) fn bytes_head(len: usize) -> Vec<u8> {
    match u16::try_from(len) {
        Ok(short @ 0..=23) => vec![BYTES << 5 | short as u8],
        Ok(byte @ 24..=255) => vec![BYTES << 5 | 24, byte as u8],
        Ok(word) => [&[BYTES << 5 | 25], word.to_be_bytes().as_slice()].concat(),
        Err(_) => unreachable!("quotes and claims are shorter than 64 KiB"),
    }
}

/// The number of a head of this type in shortest form, and what follows it.
fn head(input: &[u8], major: u8) -> Option<(usize, &[u8])> {
    let (&first, rest) = input.split_first()?;
    if first >> 5 != major {
        return None;
    }
    match (first & 0x1f, rest) {
        (short @ 0..=23, rest) => Some((short.into(), rest)),
        (24, [len @ 24..=255, rest @ ..]) => Some((usize::from(*len), rest)),
        (25, [high @ 1..=255, low, rest @ ..]) => {
            Some((usize::from(u16::from_be_bytes([*high, *low])), rest))
        }
        _ => None,
    }
}

/// A string of this type, and what follows it.
fn item(input: &[u8], major: u8) -> Option<(&[u8], &[u8])> {
    let (len, rest) = head(input, major)?;
    rest.split_at_checked(len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Quote;
    use crate::evidence::quote::Body;

    #[test]
    fn certificates_of_others_are_read_in_their_form() {
        let samples: [(&[u8], Form, u16); 3] = [
            (include_bytes!("gramine.der"), Form::Interoperable, 3),
            (include_bytes!("rats-tls.der"), Form::Interoperable, 3),
            (include_bytes!("dstack.der"), Form::Dstack, 4),
        ];
        for (certificate, form, version) in samples {
            let evidence = CertificateEvidence::parse(certificate).expect("evidence");
            assert_eq!(evidence.form, form);
            let quote = Quote::parse(&evidence.quote).expect("a quote");
            assert_eq!(quote.version, version);
            let bound = match &quote.body {
                Body::Td(report) => report.report_data,
                Body::Enclave(report) => report[320..].try_into().expect("64 bytes"),
            };
            assert_eq!(bound, evidence.report_data, "{}", form.name());
        }
    }

    /// Gramine writes both forms: without the tagged evidence the older one is read, and a damaged
    /// tagged one is not passed over for it.
    #[test]
    fn tagged_evidence_decides_where_it_is() {
        let both = include_bytes!("gramine.der");
        let id = [0x67, 0x81, 0x05, 0x05, 0x04, 0x09];
        let at = both.windows(6).position(|bytes| bytes == id).expect("the extension");
        let mut other = both.to_vec();
        other[at + 5] = 8;
        let older = CertificateEvidence::parse(&other).expect("the older form");
        assert_eq!(older.form, Form::Gramine);
        let tagged = CertificateEvidence::parse(both).expect("the newer form");
        assert_eq!(tagged.form, Form::Interoperable);
        // The quote is over the claims, so the older form does not bind it.
        assert_ne!(older.report_data, tagged.report_data);
        let tag = both.windows(4).position(|bytes| bytes == TAGGED_PAIR).expect("tag");
        let mut damaged = both.to_vec();
        damaged[tag + 2] ^= 1;
        let refused = CertificateEvidence::parse(&damaged);
        assert_eq!(refused, Err(Rejection::Certificate("evidence extension")));
    }

    #[test]
    fn claims_are_maps_with_one_hash_of_a_known_kind() {
        let claim = |name: &str, value: &[u8]| {
            let head = [TEXT << 5 | name.len() as u8];
            [&head[..], name.as_bytes(), &bytes_head(value.len()), value].concat()
        };
        let hash = |id: u8, len: usize| {
            let body = [&[0x82, id][..], &bytes_head(len), &vec![7; len]].concat();
            claim("pubkey-hash", &body)
        };
        let map =
            |count: u8, claims: &[Vec<u8>]| [&[MAP << 5 | count][..], &claims.concat()].concat();
        for (id, len) in [(1, 32), (7, 48), (8, 64)] {
            let (_, found) =
                key_hash(&map(1, &[hash(id, len)])).map(|(a, h)| (a, h.to_vec())).expect("valid");
            assert_eq!(found, vec![7; len]);
        }
        let extra = [claim("nonce", &[1; 32]), hash(1, 32)];
        assert!(key_hash(&map(2, &extra)).is_some());
        for bad in [
            map(1, &[hash(2, 32)]),
            map(1, &[hash(1, 48)]),
            map(0, &[]),
            map(1, &[claim("nonce", &[1])]),
            map(2, &[hash(1, 32), hash(1, 32)]),
            map(1, &[hash(1, 32), vec![0]]),
            map(2, &[hash(1, 32)]),
            vec![0xbf, 0xff],
            Vec::new(),
        ] {
            assert!(key_hash(&bad).is_none(), "{bad:x?}");
        }
    }

    #[test]
    fn strings_are_read_in_shortest_form_only() {
        for len in [0, 23, 24, 255, 256, 5000] {
            let body = vec![7; len];
            let encoded = [bytes_head(len), body.clone(), vec![9]].concat();
            assert_eq!(item(&encoded, BYTES), Some((&body[..], &[9][..])));
        }
        for bad in [&[0x58, 3, 1, 1, 1][..], &[0x59, 0, 3, 1, 1, 1], &[0x42, 1], &[0x5f, 0xff], &[]]
        {
            assert_eq!(item(bad, BYTES), None);
        }
    }
}
