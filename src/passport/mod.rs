//! A model's passport: who trained it on what, as statements that are signed inside ps0's TD.
//!
//! Four files beside the model, in forms that others read: OpenSSF Model Signing 1.0 (`model.sig`), and in-toto
//! statements in DSSE envelopes and Sigstore bundles of v0.3: SLSA provenance v1, SCAI v0.3, in-toto test result. One
//! P-256 key signs all; a quote of ps0's TD is over this key and over the statements.

pub mod attestation;
pub mod bom;
pub mod bundle;
pub mod evaluation;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod key;
pub mod signature;
pub mod training;

use std::collections::BTreeMap;

use ring::digest::{SHA256, SHA512, digest};
use serde_json::{Value, json};

use crate::job::receipt::Hash;
use protocol::hex;

/// Digests of every file of the model directory.
pub const SIGNATURE: &str = "model.sig";
/// How the model came to be.
pub const TRAINING: &str = crate::history::PASSPORT;
/// On which hardware, by whose evidence.
pub const ATTESTATION: &str = "attestation.sigstore.json";
/// What it finds on test images.
pub const EVALUATION: &str = "evaluation.sigstore.json";
/// The public key, as OpenSSL and the official verifiers read it.
pub const PUBLIC_KEY: &str = "passport.pub";
/// The bill of materials, where one is asked for.
pub const BOM: &str = "model.cdx.json";

/// The type of every statement here.
const STATEMENT: &str = "https://in-toto.io/Statement/v1";
/// What separates this report data from others.
const LABEL: &[u8] = b"hfl-passport-v1";

/// Digests of files by their names.
pub type Files = BTreeMap<String, Hash>;

/// SHA-256.
pub fn sha256(bytes: &[u8]) -> Hash {
    digest(&SHA256, bytes).as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// What ps0's quote is over, by digests: its key, and the statements of signature, training, evaluation (if there is
/// one) and attestation, the last without the quote itself.
pub fn report_data(key: &Hash, statements: [Option<Hash>; 4]) -> [u8; 64] {
    let mut bytes = Vec::from(LABEL);
    bytes.extend_from_slice(key);
    statements.iter().for_each(|hash| bytes.extend_from_slice(&hash.unwrap_or_default()));
    digest(&SHA512, &bytes).as_ref().try_into().expect("SHA-512 has 64 bytes")
}

/// A statement's bytes: keys in their order, no spaces, so that there is one spelling.
pub fn encode(statement: &Value) -> Vec<u8> {
    serde_json::to_vec(statement).expect("JSON")
}

/// A statement about files.
fn statement(subject: Vec<Value>, kind: &str, predicate: Value) -> Value {
    json!({
        "_type": STATEMENT, "subject": subject, "predicateType": kind, "predicate": predicate
    })
}

/// A file as in-toto's `ResourceDescriptor`.
fn described(name: &str, hash: &Hash) -> Value {
    json!({"name": name, "digest": {"sha256": hex(hash)}})
}

/// These files as subjects.
fn subjects(files: &Files) -> Vec<Value> {
    files.iter().map(|(name, hash)| described(name, hash)).collect()
}
