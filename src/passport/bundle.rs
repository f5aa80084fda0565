//! A statement in a DSSE envelope in a Sigstore bundle: written in one way, and read in no other.

use std::io;

use base64ct::{Base64, Encoding};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::passport::key::{PassportKey, PublicKey};
use crate::passport::{encode, sha256};
use protocol::hex;

/// What is in the envelope.
const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
/// What the bundle is.
const MEDIA_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Bundle {
    media_type: String,
    verification_material: Material,
    dsse_envelope: Envelope,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Material {
    public_key: KeyIdentifier,
    tlog_entries: [(); 0],
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyIdentifier {
    hint: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Envelope {
    payload: String,
    payload_type: String,
    signatures: [Signature; 1],
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Signature {
    sig: String,
    keyid: String,
}

/// Signs a statement; the bytes of its file.
///
/// # Errors
/// When there are no random numbers.
pub fn sign(statement: &Value, key: &PassportKey) -> io::Result<Vec<u8>> {
    let payload = encode(statement);
    let signature = key.sign(&pre_authentication(&payload))?;
    Ok(written(&payload, &signature, &key.public()))
}

/// The statement of a file that this key has signed. Every byte of the file counts, also those that a signature does
/// not cover.
///
/// # Errors
/// What is wrong with it.
pub fn verify(bytes: &[u8], key: &PublicKey) -> Result<Value, String> {
    let (payload, signature) = opened(bytes)?;
    if !key.verify(&pre_authentication(&payload), &signature) {
        return Err("the signature is not that of the passport's key".into());
    }
    if written(&payload, &signature, key) != bytes {
        return Err("it is not as hfl writes it".into());
    }
    let statement: Value = serde_json::from_slice(&payload).map_err(|error| error.to_string())?;
    match encode(&statement) == payload {
        true => Ok(statement),
        false => Err("the statement is not as hfl writes it".into()),
    }
}

/// The statement of a file, whoever signed it: to find in it the key that has to have.
///
/// # Errors
/// When it is no bundle.
pub fn peek(bytes: &[u8]) -> Result<Value, String> {
    serde_json::from_slice(&opened(bytes)?.0).map_err(|error| error.to_string())
}

fn opened(bytes: &[u8]) -> Result<(Vec<u8>, Vec<u8>), String> {
    let bundle: Bundle = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let Envelope { payload, signatures: [signature], .. } = bundle.dsse_envelope;
    let decode = |text: &str| Base64::decode_vec(text).map_err(|_| "no base64".to_owned());
    Ok((decode(&payload)?, decode(&signature.sig)?))
}

fn written(payload: &[u8], signature: &[u8], key: &PublicKey) -> Vec<u8> {
    let bundle = Bundle {
        media_type: MEDIA_TYPE.into(),
        verification_material: Material {
            public_key: KeyIdentifier { hint: hex(&sha256(key.pem().as_bytes())) },
            tlog_entries: [],
        },
        dsse_envelope: Envelope {
            payload: Base64::encode_string(payload),
            payload_type: PAYLOAD_TYPE.into(),
            signatures: [Signature { sig: Base64::encode_string(signature), keyid: String::new() }],
        },
    };
    serde_json::to_vec(&bundle).expect("plain text")
}

/// DSSE's pre-authentication encoding (secure-systems-lab/dsse, protocol.md).
fn pre_authentication(payload: &[u8]) -> Vec<u8> {
    let mut bytes =
        format!("DSSEv1 {} {PAYLOAD_TYPE} {} ", PAYLOAD_TYPE.len(), payload.len()).into_bytes();
    bytes.extend_from_slice(payload);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bit_of_a_file_counts() {
        let key = PassportKey::generate().expect("a key");
        let statement = serde_json::json!({"b": 1, "a": [2.5, "x"]});
        let file = sign(&statement, &key).expect("signed");
        assert_eq!(verify(&file, &key.public()), Ok(statement.clone()));
        assert_eq!(peek(&file), Ok(statement));
        for at in 0..file.len() {
            for bit in 0..8 {
                let mut changed = file.clone();
                changed[at] ^= 1 << bit;
                assert!(verify(&changed, &key.public()).is_err(), "bit {bit} of byte {at}");
            }
        }
        for added in [[&file[..], b"\n"].concat(), [b" ", &file[..]].concat()] {
            assert!(verify(&added, &key.public()).is_err());
        }
        let other = PassportKey::generate().expect("a key");
        assert!(verify(&file, &other.public()).is_err());
    }

    #[test]
    fn every_number_of_a_statement_reads_back() {
        let key = PassportKey::generate().expect("a key");
        let numbers: Vec<f64> = (1..2000).map(|at| f64::from(at as f32 * 1e-4)).collect();
        let statement = serde_json::json!({ "numbers": numbers });
        let file = sign(&statement, &key).expect("signed");
        assert_eq!(verify(&file, &key.public()), Ok(statement));
    }
}
