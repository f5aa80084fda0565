//! What a PCK certificate says of its machine: Intel's extension 1.2.840.113741.1.13.1.

use x509_cert::der::asn1::{AnyRef, ObjectIdentifier};
use x509_cert::der::{Decode, Reader, SliceReader, Tag, Tagged};

use super::fault::{Fault, Item, Problem};
use super::pki::Certificate;

const SGX_EXTENSION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113741.1.13.1");
/// Encoded identifier of the extension; its fields add one or two bytes.
const PREFIX: [u8; 9] = [0x2a, 0x86, 0x48, 0x86, 0xf8, 0x4d, 0x01, 0x0d, 0x01];
/// Intel's sequences have at most 18 fields; each is compared with those before it.
const FIELDS_MAX: usize = 32;

/// A machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    /// Security versions of its 16 components.
    pub svn: [u8; 16],
    /// Security version of the provisioning enclave.
    pub pce_svn: u16,
    /// Which provisioning enclave.
    pub pce_id: [u8; 2],
    /// Family, model, stepping, platform type.
    pub fmspc: [u8; 6],
    /// Identity of the processor.
    pub ppid: [u8; 16],
    /// Identity of a machine of several processors, where there is one.
    pub instance_id: Option<[u8; 16]>,
}

impl Platform {
    /// Reads the extension of a leaf.
    pub(super) fn parse(leaf: &Certificate) -> Result<Self, Fault> {
        let bytes = leaf.extension(SGX_EXTENSION);
        Self::read(bytes.ok_or(Fault::new(Item::Pck, Problem::Missing("Intel's extension")))?)
    }

    /// Reads the content of the extension.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, Fault> {
        let missing = |field| Fault::new(Item::Pck, Problem::Missing(field));
        let fields = fields(bytes, 0)?;
        let find =
            |id: &[u8]| fields.iter().find(|(found, _)| found == id).map(|(_, value)| *value);
        let tcb = find(&[2]).ok_or_else(|| missing("TCB"))?;
        let levels = nested(&tcb)?;
        let level = |id: u8| {
            let value = levels.iter().find(|(found, _)| *found == [2, id]).map(|(_, value)| *value);
            integer(&value.ok_or_else(|| missing("a component of the TCB"))?)
        };
        let mut svn = [0; 16];
        for (index, target) in svn.iter_mut().enumerate() {
            *target = u8::try_from(level(index as u8 + 1)?)
                .map_err(|_| Fault::malformed(Item::Pck, "a component above 255"))?;
        }
        Ok(Self {
            svn,
            pce_svn: level(17)?,
            pce_id: octets(&find(&[3]).ok_or_else(|| missing("PCEID"))?)?,
            fmspc: octets(&find(&[4]).ok_or_else(|| missing("FMSPC"))?)?,
            ppid: octets(&find(&[1]).ok_or_else(|| missing("PPID"))?)?,
            instance_id: find(&[6]).map(|value| octets(&value)).transpose()?,
        })
    }
}

type Field<'a> = (Vec<u8>, AnyRef<'a>);

fn malformed() -> Fault {
    Fault::malformed(Item::Pck, "Intel's extension")
}

/// The pairs of identifier (behind the prefix) and value of a sequence.
fn fields(sequence: &[u8], depth: usize) -> Result<Vec<Field<'_>>, Fault> {
    let sequence = AnyRef::from_der(sequence).map_err(|_| malformed())?;
    if sequence.tag() != Tag::Sequence || depth > 1 {
        return Err(malformed());
    }
    pairs(sequence.value())
}

fn nested<'a>(value: &AnyRef<'a>) -> Result<Vec<Field<'a>>, Fault> {
    match value.tag() {
        Tag::Sequence => pairs(value.value()),
        _ => Err(malformed()),
    }
}

fn pairs(bytes: &[u8]) -> Result<Vec<Field<'_>>, Fault> {
    let mut reader = SliceReader::new(bytes).map_err(|_| malformed())?;
    let mut found: Vec<Field> = Vec::new();
    while !reader.is_finished() {
        let pair = AnyRef::decode(&mut reader).map_err(|_| malformed())?;
        if pair.tag() != Tag::Sequence || found.len() == FIELDS_MAX {
            return Err(malformed());
        }
        let mut inside = SliceReader::new(pair.value()).map_err(|_| malformed())?;
        let id = AnyRef::decode(&mut inside).map_err(|_| malformed())?;
        let value = AnyRef::decode(&mut inside).map_err(|_| malformed())?;
        let id = id.value().strip_prefix(&PREFIX).filter(|_| id.tag() == Tag::ObjectIdentifier);
        let id = id.ok_or_else(malformed)?.to_vec();
        if !inside.is_finished() || found.iter().any(|(other, _)| *other == id) {
            return Err(malformed());
        }
        found.push((id, value));
    }
    Ok(found)
}

fn octets<const N: usize>(value: &AnyRef) -> Result<[u8; N], Fault> {
    match (value.tag(), value.value().try_into()) {
        (Tag::OctetString, Ok(bytes)) => Ok(bytes),
        _ => Err(malformed()),
    }
}

/// A non-negative integer of at most two bytes.
fn integer(value: &AnyRef) -> Result<u16, Fault> {
    match (value.tag(), value.value()) {
        (Tag::Integer, &[a]) if a < 0x80 => Ok(a.into()),
        (Tag::Integer, &[0, b]) if b >= 0x80 => Ok(b.into()),
        (Tag::Integer, &[a, b]) if (1..0x80).contains(&a) => Ok(u16::from_be_bytes([a, b])),
        (Tag::Integer, &[0, a, b]) if a >= 0x80 => Ok(u16::from_be_bytes([a, b])),
        _ => Err(malformed()),
    }
}

/// Any bytes as a certificate with Intel's extension, and as a revocation list, for the fuzzer.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(data: &[u8]) {
    if let Ok(certificate) = super::pki::Certificate::parse(data, Item::Pck) {
        let _ = Platform::parse(&certificate);
        let _ = certificate.check_issued_by(
            &certificate,
            &super::anchor::Anchor::default(),
            1_788_220_800,
            Item::Pck,
        );
    }
    let _ = Platform::read(data);
    if let Ok(list) = super::pki::RevocationList::parse(data, Item::PckCrl) {
        assert!(
            super::pki::check_dates(list.valid, list.valid[0], Item::PckCrl).is_ok()
                || list.valid[1] < list.valid[0]
        );
    }
}
