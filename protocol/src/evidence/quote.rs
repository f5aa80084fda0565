//! TDX quote: untrusted bytes to `Quote`, every length exact.
//!
//! Intel, "TDX DCAP: Quote Generation Library and Quote Verification Library": a header of 48 bytes, the
//! report of a TD (versions 4 and 5) or of an enclave (version 3), and the signature data with the
//! quoting enclave's report and the certificate chain of the platform.

use std::fmt;

/// Bytes of the header.
pub(crate) const HEADER_LEN: usize = 48;
/// Bytes of a TD 1.0 report in a quote.
pub(crate) const REPORT_LEN: usize = 584;
/// Bytes of the quoting enclave's report.
pub(crate) const QE_REPORT_LEN: usize = 384;
/// Largest quote that is looked at: real ones with their chain take 5 to 8 KiB.
pub(crate) const QUOTE_LEN_MAX: usize = 16 << 10;
/// Largest authentication data of the quoting enclave; Intel's has 32 bytes.
const AUTH_LEN_MAX: usize = 1024;
/// Bytes of the TD 1.5 report, and of its extended form.
const REPORT_15_LEN: usize = 648;
const REPORT_15_EX_LEN: usize = 885;
/// Version of the quotes that the simulated platform makes.
const VERSION: u16 = 4;
/// ECDSA on P-256.
const KEY_TYPE: u16 = 2;
/// TDX, and SGX.
const TEE_TDX: u32 = 0x81;
const TEE_SGX: u32 = 0;
/// Certification data: the quoting enclave's report, and in it a PEM chain.
const CERT_QE_REPORT: u16 = 6;
const CERT_PEM_CHAIN: u16 = 5;
/// "Intel SGX quoting enclave vendor".
pub(crate) const VENDOR_ID: [u8; 16] = [
    0x93, 0x9a, 0x72, 0x33, 0xf7, 0x9c, 0x4c, 0xa9, 0x94, 0x0a, 0x0d, 0xb3, 0x95, 0x7f, 0x06, 0x07,
];

/// A parsed quote. Nothing is verified yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quote {
    /// 3, 4 or 5.
    pub version: u16,
    /// Header and report: the bytes that the attestation key signed.
    pub(crate) signed: Vec<u8>,
    /// What is attested.
    pub body: Body,
    /// Signature over `signed`, r and s.
    pub(crate) signature: [u8; 64],
    /// The attestation key, x and y.
    pub(crate) attestation_key: [u8; 64],
    /// The quoting enclave's report.
    pub(crate) qe_report: [u8; QE_REPORT_LEN],
    /// Signature over it by the platform's key.
    pub(crate) qe_signature: [u8; 64],
    /// Data of the quoting enclave, hashed with its key.
    pub(crate) auth: Vec<u8>,
    /// PEM certificates, leaf first.
    pub(crate) chain: Vec<u8>,
}

/// What a quote is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
// One at a time: a box would only add an allocation.
#[allow(clippy::large_enum_variant)]
pub enum Body {
    /// An SGX enclave: its report, of 384 bytes.
    Enclave([u8; QE_REPORT_LEN]),
    /// A TD.
    Td(TdReport),
}

/// What TDX 1.5 adds to a TD's report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Td15 {
    /// Security versions that run now; `tee_tcb_svn` has those of the TD's launch.
    pub tee_tcb_svn_2: [u8; 16],
    /// Measurement of the service TD, zero if there is none.
    pub mr_service_td: [u8; 48],
}

/// The fields of a TD report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TdReport {
    /// Security versions of the TDX module and its loader.
    pub tee_tcb_svn: [u8; 16],
    /// Measurement of the TDX module.
    pub mr_seam: [u8; 48],
    /// Signer of the TDX module, zero for Intel.
    pub mr_signer_seam: [u8; 48],
    /// Attributes of the TDX module.
    pub seam_attributes: [u8; 8],
    /// Attributes of the TD; bit 0 is DEBUG.
    pub td_attributes: [u8; 8],
    /// Extended features that the TD may use.
    pub xfam: [u8; 8],
    /// Measurement of the TD's first memory.
    pub mr_td: [u8; 48],
    /// Chosen by the host at creation.
    pub mr_config_id: [u8; 48],
    /// Chosen by the host at creation.
    pub mr_owner: [u8; 48],
    /// Chosen by the host at creation.
    pub mr_owner_config: [u8; 48],
    /// Run-time measurements: firmware, boot loader and kernel, command line and initrd, application.
    pub rt_mr: [[u8; 48]; 4],
    /// What the TD wanted to be bound to.
    pub report_data: [u8; 64],
    /// In quotes of version 5.
    pub v15: Option<Td15>,
}

/// Why bytes are no quote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuoteError {
    /// Ends before a field is complete.
    Short {
        /// The field.
        field: &'static str,
        /// Bytes of it.
        need: usize,
        /// Bytes that were left.
        left: usize,
    },
    /// A length field disagrees with what follows.
    Length {
        /// The field.
        field: &'static str,
        /// What it says.
        value: usize,
        /// What it may say, or what follows.
        expected: usize,
    },
    /// The host had no certificate of its platform's key to put into the quote.
    NoPckCertificate {
        /// What it has instead: the type of the certification data.
        value: u16,
    },
    /// A field has a value that is not supported.
    Unsupported {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u32,
    },
    /// Bytes other than zero padding after the end.
    Trailing {
        /// How many.
        len: usize,
    },
    /// Larger than any quote.
    TooLong {
        /// Its length.
        len: usize,
    },
    /// What comes with a quote from a virtual TPM is malformed.
    Vtpm(&'static str),
}

impl fmt::Display for QuoteError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Short { field, need, left } => {
                write!(f, "quote ends in {field}: {left} of {need} bytes")
            }
            Self::Length { field, value, expected } => {
                write!(f, "quote field {field} says {value} bytes, expected {expected}")
            }
            Self::NoPckCertificate { value } => write!(
                f,
                "the quote carries no PCK certificate (certification data of type {value}): its host has none yet"
            ),
            Self::Unsupported { field, value } => write!(f, "quote has {field} {value:#x}"),
            Self::Trailing { len } => write!(f, "{len} bytes after the quote are not zero padding"),
            Self::TooLong { len } => write!(f, "quote of {len} bytes, at most {QUOTE_LEN_MAX}"),
            Self::Vtpm(what) => write!(f, "evidence of a virtual TPM: {what}"),
        }
    }
}

/// Takes fields off the front of a slice.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, need: usize, field: &'static str) -> Result<&'a [u8], QuoteError> {
        let left = self.rest.len();
        let (head, rest) =
            self.rest.split_at_checked(need).ok_or(QuoteError::Short { field, need, left })?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], QuoteError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, field)?);
        Ok(array)
    }

    fn u16(&mut self, field: &'static str) -> Result<u16, QuoteError> {
        self.array(field).map(u16::from_le_bytes)
    }

    fn len(&mut self, field: &'static str) -> Result<usize, QuoteError> {
        let value = u32::from_le_bytes(self.array(field)?);
        usize::try_from(value).map_err(|_| QuoteError::Unsupported { field, value })
    }
}

impl Quote {
    /// Whether keys and signatures are equal, as well as what the quoting enclave says; how the
    /// certificates are written down does not count.
    pub fn same_signatures(&self, other: &Self) -> bool {
        let parts = |quote: &Self| {
            let Self { signature, attestation_key, qe_report, qe_signature, auth, .. } = quote;
            (*signature, *attestation_key, *qe_report, *qe_signature, auth.clone())
        };
        parts(self) == parts(other)
    }

    /// Parses a quote of a TD (version 4 or 5) or an enclave (version 3); zero bytes may follow it,
    /// nothing else.
    ///
    /// # Errors
    /// When a field is missing, a length disagrees, or the kind of quote is another one.
    pub fn parse(bytes: &[u8]) -> Result<Self, QuoteError> {
        if bytes.len() > QUOTE_LEN_MAX {
            return Err(QuoteError::TooLong { len: bytes.len() });
        }
        let mut reader = Reader { rest: bytes };
        let kind = Kind::parse(&mut reader)?;
        let body = Body::parse(&mut reader, kind.body_len)?;
        let signed = bytes[..bytes.len() - reader.rest.len()].to_vec();
        let len = reader.len("signature length")?;
        let mut data = Reader { rest: reader.take(len, "signature data")? };
        if reader.rest.iter().any(|&byte| byte != 0) {
            return Err(QuoteError::Trailing { len: reader.rest.len() });
        }
        let signature = data.array("signature")?;
        let attestation_key = data.array("attestation key")?;
        if kind.version > 3 {
            expect(
                data.u16("certification data type")?,
                CERT_QE_REPORT,
                "certification data type",
            )?;
            let len = data.len("certification data length")?;
            exact(len, data.rest.len(), "certification data length")?;
        }
        let qe_report = data.array("QE report")?;
        let qe_signature = data.array("QE report signature")?;
        let auth_len = usize::from(data.u16("QE authentication data length")?);
        if auth_len > AUTH_LEN_MAX {
            let field = "QE authentication data length";
            return Err(QuoteError::Length { field, value: auth_len, expected: AUTH_LEN_MAX });
        }
        let auth = data.take(auth_len, "QE authentication data")?.to_vec();
        match data.u16("PCK data type")? {
            value @ 1..=4 => return Err(QuoteError::NoPckCertificate { value }),
            value => expect(value, CERT_PEM_CHAIN, "PCK data type")?,
        }
        let len = data.len("PCK chain length")?;
        exact(len, data.rest.len(), "PCK chain length")?;
        let chain = data.rest.to_vec();
        Ok(Self {
            version: kind.version,
            signed,
            body,
            signature,
            attestation_key,
            qe_report,
            qe_signature,
            auth,
            chain,
        })
    }

    /// The report of a TD.
    ///
    /// # Errors
    /// `Unsupported` for a quote of an enclave.
    pub fn td(&self) -> Result<&TdReport, QuoteError> {
        match &self.body {
            Body::Td(report) => Ok(report),
            Body::Enclave(_) => Err(QuoteError::Unsupported { field: "TEE type", value: TEE_SGX }),
        }
    }

    /// The bytes of this quote, without padding.
    pub fn encode(&self) -> Vec<u8> {
        let mut inner = Vec::new();
        inner.extend(self.qe_report);
        inner.extend(self.qe_signature);
        inner.extend(u16::try_from(self.auth.len()).unwrap_or(u16::MAX).to_le_bytes());
        inner.extend(&self.auth);
        inner.extend(CERT_PEM_CHAIN.to_le_bytes());
        put_len(&mut inner, self.chain.len());
        inner.extend(&self.chain);
        let mut data = Vec::new();
        data.extend(self.signature);
        data.extend(self.attestation_key);
        if self.version > 3 {
            data.extend(CERT_QE_REPORT.to_le_bytes());
            put_len(&mut data, inner.len());
        }
        data.extend(inner);
        let mut quote = self.signed.clone();
        put_len(&mut quote, data.len());
        quote.extend(data);
        quote
    }
}

/// The header of a version 4 TDX quote.
pub(crate) fn encode_header() -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    header[..2].copy_from_slice(&VERSION.to_le_bytes());
    header[2..4].copy_from_slice(&KEY_TYPE.to_le_bytes());
    header[4..8].copy_from_slice(&TEE_TDX.to_le_bytes());
    header[12..28].copy_from_slice(&VENDOR_ID);
    header
}

/// What the first fields of a quote say of the rest.
struct Kind {
    version: u16,
    body_len: usize,
}

impl Kind {
    fn parse(reader: &mut Reader) -> Result<Self, QuoteError> {
        let mut header = Reader { rest: reader.take(HEADER_LEN, "header")? };
        let version = header.u16("version")?;
        expect(header.u16("attestation key type")?, KEY_TYPE, "attestation key type")?;
        let tee = u32::from_le_bytes(header.array("TEE type")?);
        header.take(4, "reserved")?;
        let vendor: [u8; 16] = header.array("QE vendor")?;
        if vendor != VENDOR_ID {
            return Err(QuoteError::Unsupported { field: "QE vendor", value: vendor[0].into() });
        }
        let body_len = match (version, tee) {
            (3, TEE_SGX) => QE_REPORT_LEN,
            (4, TEE_TDX) => REPORT_LEN,
            (5, TEE_TDX) => {
                let kind = reader.u16("body type")?;
                let len = match kind {
                    2 => REPORT_LEN,
                    3 => REPORT_15_LEN,
                    4 => REPORT_15_EX_LEN,
                    _ => {
                        let field = "body type";
                        return Err(QuoteError::Unsupported { field, value: kind.into() });
                    }
                };
                exact(reader.len("body length")?, len, "body length")?;
                len
            }
            (3..=5, _) => return Err(QuoteError::Unsupported { field: "TEE type", value: tee }),
            _ => {
                return Err(QuoteError::Unsupported { field: "version", value: version.into() });
            }
        };
        Ok(Self { version, body_len })
    }
}

impl Body {
    fn parse(reader: &mut Reader, len: usize) -> Result<Self, QuoteError> {
        if len == QE_REPORT_LEN {
            return reader.array("enclave report").map(Self::Enclave);
        }
        let mut fields = Reader { rest: reader.take(len, "TD report")? };
        let mut report = TdReport::parse(&mut fields)?;
        if len >= REPORT_15_LEN {
            report.v15 = Some(Td15 {
                tee_tcb_svn_2: fields.array("TEE_TCB_SVN_2")?,
                mr_service_td: fields.array("MRSERVICETD")?,
            });
        }
        Ok(Self::Td(report))
    }
}

fn expect(value: u16, wanted: u16, field: &'static str) -> Result<(), QuoteError> {
    if value == wanted {
        return Ok(());
    }
    Err(QuoteError::Unsupported { field, value: value.into() })
}

fn exact(value: usize, expected: usize, field: &'static str) -> Result<(), QuoteError> {
    if value == expected { Ok(()) } else { Err(QuoteError::Length { field, value, expected }) }
}

fn put_len(target: &mut Vec<u8>, len: usize) {
    target.extend(u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes());
}

impl TdReport {
    fn parse(reader: &mut Reader) -> Result<Self, QuoteError> {
        Ok(Self {
            tee_tcb_svn: reader.array("TEE_TCB_SVN")?,
            mr_seam: reader.array("MRSEAM")?,
            mr_signer_seam: reader.array("MRSIGNERSEAM")?,
            seam_attributes: reader.array("SEAMATTRIBUTES")?,
            td_attributes: reader.array("TDATTRIBUTES")?,
            xfam: reader.array("XFAM")?,
            mr_td: reader.array("MRTD")?,
            mr_config_id: reader.array("MRCONFIGID")?,
            mr_owner: reader.array("MROWNER")?,
            mr_owner_config: reader.array("MROWNERCONFIG")?,
            rt_mr: [
                reader.array("RTMR0")?,
                reader.array("RTMR1")?,
                reader.array("RTMR2")?,
                reader.array("RTMR3")?,
            ],
            report_data: reader.array("REPORTDATA")?,
            v15: None,
        })
    }

    /// The 584 bytes of a TD 1.0 report.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(REPORT_LEN);
        bytes.extend(self.tee_tcb_svn);
        bytes.extend(self.mr_seam);
        bytes.extend(self.mr_signer_seam);
        bytes.extend(self.seam_attributes);
        bytes.extend(self.td_attributes);
        bytes.extend(self.xfam);
        bytes.extend(self.mr_td);
        bytes.extend(self.mr_config_id);
        bytes.extend(self.mr_owner);
        bytes.extend(self.mr_owner_config);
        bytes.extend(self.rt_mr.as_flattened());
        bytes.extend(self.report_data);
        bytes
    }

    /// Whether the host can read and change this TD's memory.
    pub fn is_debug(&self) -> bool {
        self.td_attributes[0] & 1 == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Attester, SimPlatform};

    #[test]
    fn every_truncation_is_an_error_and_encoding_is_the_inverse() {
        let bytes = SimPlatform::new(1_800_000_000).quote(&[7; 64]).expect("a simulated quote");
        let quote = Quote::parse(&bytes).expect("our own quote");
        assert_eq!(quote.td().expect("a TD").report_data, [7; 64]);
        assert_eq!(quote.encode(), bytes);
        for len in 0..bytes.len() {
            assert!(Quote::parse(&bytes[..len]).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn only_zero_padding_may_follow() {
        let mut bytes = SimPlatform::new(1_800_000_000).quote(&[7; 64]).expect("a simulated quote");
        bytes.extend([0; 100]);
        assert!(Quote::parse(&bytes).is_ok());
        bytes.push(1);
        assert_eq!(Quote::parse(&bytes), Err(QuoteError::Trailing { len: 101 }));
        bytes.resize(QUOTE_LEN_MAX + 1, 0);
        assert!(matches!(Quote::parse(&bytes), Err(QuoteError::TooLong { .. })));
    }

    #[test]
    fn length_fields_at_their_extremes_are_errors() {
        let bytes = SimPlatform::new(1_800_000_000).quote(&[7; 64]).expect("a simulated quote");
        for (at, width) in [(632, 4), (766, 4), (770 + 384 + 64, 2)] {
            for value in [0, 1, u32::MAX / 2, u32::MAX - 3, u32::MAX] {
                let mut bytes = bytes.clone();
                bytes[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
                assert!(Quote::parse(&bytes).is_err(), "length at {at} = {value}");
            }
        }
    }
}
